"""Whether members can be believed: ranks of the truth, spread against error, and what the latent does for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nbhelpers.stages.rainfall_cvae.batches import EVAL_BATCH, loader, spaced
from nbhelpers.stages.rainfall_cvae.drawing import MARKS, WHO, name_of, tidy, whiskers
from nbhelpers.stages.rainfall_cvae.model import kl_by_latent
from nbhelpers.stages.rainfall_cvae.validation import ACTIVE, FEW, Diagnosis
from nbhelpers.stages.rainfall_cvae.verdict import SPREAD
from nbhelpers.stages.rainfall_cvae.verification import SCALES

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.task import RainfallTask

RANKED = ("model", "oracle", "analogues", "climatology")
SCALE_NAMES = {"pixel": "a pixel", "block": "a coarse cell", "domain": "the domain"}
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 1, 1.25, 1.5, 2, 3, 5)
INTACT, SHUFFLED = "#0072b2", "#e69f00"


def scores_of(report: Mapping[str, Any], metric: str) -> dict[str, Mapping[str, Any]]:
    """Entries of a metric by predictor, the model first; those that are drawn and have it."""
    everyone = {"model": report["metrics"], **report["baselines"]}
    return {name: everyone[name][metric] for name in MARKS if name in everyone and metric in everyone[name]}


def rank_figure(report: Mapping[str, Any]) -> Figure | None:
    """How often the truth came at each place among the members, over how often it should; None without ranks.

    Flat (1) for members that are like the truth; a trough says that they differ too little, a slope that they are
    biased.
    """
    found = {name: entry for name, entry in scores_of(report, "rank_histogram").items() if name in RANKED}
    if not found:
        return None
    index, chance = scores_of(report, "reliability_index"), scores_of(report, "reliability_index_chance")
    figure = Figure(figsize=(2.9 * len(found) + 0.4, 2.9), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (name, entry) in zip(panels, found.items(), strict=True):
        values, errors = whiskers(list(entry["by_label"].values()))
        at = np.arange(len(values))
        axes.bar(at, values, 0.9, color=WHO[name], alpha=0.75)
        axes.errorbar(at, values, yerr=errors, fmt="none", ecolor="#000", elinewidth=0.8)
        axes.axhline(1, color="#000", lw=1, ls="--")
        said = f"{index[name]['value']:.3f}, by chance {chance[name]['value']:.3f}"
        tidy(axes, f"{name_of(name)}\nreliability index {said}", f"rank among {len(values) - 1} members")
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("share of the rank / flat share", fontsize=8)
    n = next(iter(found.values()))["n"]
    figure.suptitle(
        f"land pixels of {report['data']['scored_split']} days, bars: 95 % intervals over {n} blocks of days; dashed: "
        "what is expected",
        fontsize=9,
    )
    return figure


def spread_figure(report: Mapping[str, Any]) -> Figure | None:
    """Spread of the members over the error of their mean, at three scales; None without any."""
    metrics = {scale: scores_of(report, f"spread_skill_{scale}") for scale in SCALES}
    who = list(dict.fromkeys(name for found in metrics.values() for name in found))
    if not who:
        return None
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(*SPREAD, color="#000", alpha=0.08, lw=0, label=f"{SPREAD[0]:g} … {SPREAD[1]:g}")
    axes.axhline(1, color="#000", lw=0.8)
    for place, name in enumerate(who):
        values, errors = whiskers([metrics[scale][name] for scale in SCALES])
        at = np.arange(len(SCALES)) + (place - (len(who) - 1) / 2) * 0.7 / len(who)
        axes.errorbar(at, values, yerr=errors, fmt=MARKS[name], color=WHO[name], ms=6, capsize=2, elinewidth=1,
                      label=name_of(name))  # fmt: skip
    axes.set_xticks(range(len(SCALES)), [f"of {SCALE_NAMES[scale]}" for scale in SCALES])
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in TICKS if min(low, 0.5) <= tick <= max(high, 2)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    n = metrics["pixel"][who[0]]["n"]
    what = f"{report['data']['scored_split']} days, 95 % intervals over {n} blocks"
    tidy(axes, f"below 1 members are too sure of themselves\n{what}", "", "spread / error of the mean → 1")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@dataclass(frozen=True, eq=False)
class LatentUse:
    """What the latent does on some days of a split."""

    split: str
    n_days: int
    kl: NDArray[np.float64]  # (d_z,) nats a day of each channel, summed over its map
    active: tuple[int, int]  # latents whose posterior mean varies over the days, and how many there are
    z_share: float  # of the variance of prior members, how much comes from z
    crps: Mapping[str, float]  # mm/day by "prior", "prior, weather shuffled", "posterior", "posterior, z shuffled"


@torch.no_grad()
def latent_use(task: RainfallTask, *, split: str = "val", most: int = 48) -> LatentUse:
    """Ask the model as it is, on at most so many evenly spaced scored days (at least two, which are exchanged)."""
    days = spaced(task.scored(split), most)
    diagnosis, sampler = Diagnosis(task), task.sampler
    kl: list[torch.Tensor] = []
    for batch in loader(task.days, days, batch_size=EVAL_BATCH):
        diagnosis.add(batch)
        inputs = sampler.inputs(batch)
        context = sampler.cvae.weather(inputs.x, inputs.statics[0])
        both = torch.cat([sampler.latent(inputs, context, "posterior"), sampler.latent(inputs, context, "prior")], 1)
        kl.append(kl_by_latent(both).sum((-2, -1)).double().cpu())
    found, active = diagnosis.dependence, diagnosis.active_units
    assert active is not None  # there is a latent
    crps = {
        "prior": found["x"].intact,
        "prior, weather of\nanother day": found["x"].shuffled,
        "posterior": found["z"].intact,
        "posterior, z of\nanother day": found["z"].shuffled,
    }
    share = diagnosis.metrics()["z_share"].value
    return LatentUse(split, len(days), torch.cat(kl).mean(0).numpy(), active, share, crps)


def latent_figure(use: LatentUse) -> Figure:
    """KL of each channel, active units, the latent's share of the prior variance, and the ablations."""
    figure = Figure(figsize=(11.0, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1.6))
    left.bar(range(len(use.kl)), use.kl, color=WHO["posterior"])
    tidy(left, f"KL(q‖p), {use.kl.sum():.3g} nats a day in all", "latent channel", "nats a day")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    active, n = use.active
    shares = {f"active units\n{active} of {n}": active / n, "z's share of the\nprior variance": use.z_share}
    bars = middle.bar(range(2), list(shares.values()), 0.6, color=[WHO["posterior"], WHO["model"]])
    middle.bar_label(bars, [f"{100 * value:.3g} %" for value in shares.values()], fontsize=8, padding=2)
    middle.set_xticks(range(2), list(shares))
    middle.set_ylim(0, 1.1)
    tidy(middle, "is the latent used, and does it matter?", "", "share")
    _ablations(right, use.crps)
    for axes in (left, middle, right):
        axes.grid(visible=False, axis="x")
    what = f"active: the variance of the posterior's mean over the days is above {ACTIVE:g}"
    figure.suptitle(f"{use.n_days} {use.split} days; {what}", fontsize=9)
    return figure


def _ablations(axes: Axes, crps: Mapping[str, float]) -> None:
    colours = [SHUFFLED if "another" in name else INTACT for name in crps]
    bars = axes.bar(range(len(crps)), list(crps.values()), 0.7, color=colours)
    axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
    axes.set_xticks(range(len(crps)), list(crps))
    axes.margins(y=0.3)
    tidy(axes, f"fair CRPS of {FEW} members: what is ignored may be shuffled", "", "mm/day ↓")
    patches = [Patch(color=INTACT), Patch(color=SHUFFLED)]
    axes.legend(patches, ["as it is", "shuffled"], fontsize=7, ncols=2, loc="upper right")
