"""Pictures of an ensemble: probability maps, reliability, spread against error, and what blur does to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science.image_quality import power_by_wavelength
from nbhelpers.stages.perceptual_unet.contingency import to_levels
from nbhelpers.stages.perceptual_unet.data import MISSING, THRESHOLDS, VIL
from nbhelpers.stages.perceptual_unet.ensemble import Ensemble, Scores, forecast_members
from nbhelpers.stages.perceptual_unet.ensemble_scores import (
    exceeding,
    probability_matched_mean,
    reliability_table,
)
from nbhelpers.stages.perceptual_unet.figures import MISSING_COLOUR, WHO, colour_bar, show_levels
from nbhelpers.stages.perceptual_unet.windows import Batch
from nbhelpers.training.metrics import Metric, summarise

RAIN, STRONG = 74, 133  # grey levels of the maps and diagrams
COLOURS = (WHO["model"], WHO["advection"])  # of the ensemble, and of the one it is compared with
SHOWN = 3  # members in a row
MIN_SHARE = 0.01  # of the pixels, from which on a level is there and not a speck


def strongest_window(ensemble: Ensemble, *, split: str = "test") -> Batch:
    """The fixed window with most strong rain in its last frame, the same in every call."""
    best, found = (-1, -1), None
    for batch in ensemble.task.batches(split, epoch=0):
        for i, level in enumerate(batch.frames[:, -1]):
            strength = (int(_count(level, STRONG)), int(_count(level, RAIN)))
            if strength > best:
                best, found = strength, Batch(batch.frames[i : i + 1], batch.events[i : i + 1])
    assert found is not None  # no split is empty
    return found


def _count(levels: Tensor, threshold: int) -> Tensor:
    return ((levels >= threshold) & (levels != MISSING)).sum()


def exceedance_figure(ensemble: Ensemble, batch: Batch) -> Figure:
    """Truth, probability-matched mean and probability maps at the longest lead, for the first window of ``batch``."""
    members = forecast_members(ensemble, Batch(batch.frames[:1], batch.events[:1]))[:, :, -1:]
    truth = batch.frames[0, -1].numpy()
    matched = to_levels(probability_matched_mean(members))[0, 0].cpu().numpy()
    figure = Figure(figsize=(12.0, 3.3), layout="constrained")
    axes = figure.subplots(1, 4)
    lead = f"+{ensemble.task.leads[-1]} min"
    show_levels(axes[0], truth, title=f"truth, {lead}")
    matched = np.where(truth == MISSING, MISSING, matched)
    image = show_levels(axes[1], matched, title=f"probability-matched mean, {lead}")
    colour_bar(figure, image, axes[:2])
    for one, threshold in zip(axes[2:], (RAIN, STRONG), strict=True):
        probability = _probability(members, threshold)
        measured = truth != MISSING
        said, seen = probability[measured].mean(), (truth >= threshold)[measured].mean()
        title = f"P(level ≥ {threshold})\nmean {said:.1%}, observed {seen:.1%}"
        shown = _show_probability(one, probability, truth, threshold, len(ensemble.members), title)
    _probability_bar(figure, shown, axes[2:])
    figure.suptitle(f"event {batch.events[0]}, {len(ensemble.members)} members, {ensemble.loss}", fontsize=9)
    return figure


def _probability(members: Tensor, threshold: int) -> NDArray[np.float64]:
    """``(H, W)`` share of ``(1, M, 1, H, W)`` members in model units that reach the threshold."""
    return exceeding(to_levels(members), threshold)[0, 0].cpu().numpy() / members.shape[1]


def _show_probability(
    axes: Axes, probability: NDArray, truth: NDArray[np.uint8], threshold: int, n_members: int, title: str
) -> AxesImage:
    edges = (np.arange(n_members + 2) - 0.5) / n_members
    palette = matplotlib.colormaps["BuPu"].resampled(n_members + 1).with_extremes(bad=MISSING_COLOUR)
    masked = np.ma.masked_where(truth == MISSING, probability)
    image = axes.imshow(masked, cmap=palette, norm=BoundaryNorm(edges, palette.N), interpolation="nearest")
    observed = (truth >= threshold) & (truth != MISSING)
    if observed.any() and not observed.all():
        axes.contour(observed, levels=[0.5], colors=WHO["truth"], linewidths=0.7)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def _probability_bar(figure: Figure, image: AxesImage, axes: Any) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.015, format=PercentFormatter(1, decimals=0))
    bar.set_ticks([0, 0.5, 1])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.set_label("share of members; line: where it was observed", fontsize=8)


def reliability_figure(scores: Mapping[str, Scores]) -> Figure:
    """How often it rained where the ensembles said so with each probability, and how often they said it."""
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=(2.4, 1), sharex=True)
    for (top, bottom), threshold in zip(axes.T, (RAIN, STRONG), strict=True):
        top.plot([0, 1], [0, 1], color=WHO["persistence"], lw=1)
        width = 0.8 / len(scores) / max(len(_table(mine, threshold)[0]) for mine in scores.values())
        for k, (colour, (name, mine)) in enumerate(zip(COLOURS, scores.items(), strict=False)):
            p, pixels, events = _table(mine, threshold)
            there = pixels > 0
            brier, off = (mine["ensemble"][f"{part}_{threshold}"].value for part in ("brier", "reliability"))
            label = f"{name}\nBrier {brier:.4f}, of which reliability {off:.4f}"
            top.plot(p[there], events[there] / pixels[there], "o-", ms=4, color=colour, label=label)
            bars = bottom.bar((p + (k - (len(scores) - 1) / 2) * width)[there], pixels[there], width, color=colour)
            bottom.bar_label(bars, [_short(n) for n in pixels[there]], fontsize=6, rotation=90, padding=2)
        base = events.sum() / pixels.sum()
        top.axhline(base, color=WHO["persistence"], lw=0.8, ls=":")
        n = mine["ensemble"][f"brier_{threshold}"].groups
        top.set_title(f"level ≥ {threshold}: observed in {base:.1%} of the pixels of {n} events", fontsize=9)
        top.set_ylabel("observed frequency", fontsize=8)
        top.legend(fontsize=7, loc="upper left")
        bottom.set_yscale("log")
        bottom.margins(y=0.45)
        bottom.set_ylabel("pixels", fontsize=8)
        bottom.set_xlabel("forecast probability (share of members)", fontsize=8)
    for one in axes.flat:
        one.tick_params(labelsize=7)
        one.grid(alpha=0.25)
    figure.suptitle("on the line: probabilities that mean what they say; dotted: how often it is observed", fontsize=9)
    return figure


def _table(scores: Scores, threshold: int) -> tuple[NDArray, NDArray, NDArray]:
    return reliability_table(scores["ensemble"][f"brier_{threshold}"])


def _short(count: float) -> str:
    return f"{count:.0f}" if count < 10_000 else f"{count / 1e3:.0f}k" if count < 1e7 else f"{count / 1e6:.0f}M"


def spread_figure(scores: Mapping[str, Scores], leads: Sequence[int]) -> Figure:
    """Spread of the members against the error of their mean, by lead time: equal where an ensemble knows its error."""
    figure = Figure(figsize=(4.4 * len(scores) + 0.4, 3.3), layout="constrained")
    axes = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    for one, colour, (name, mine) in zip(axes, COLOURS, scores.items(), strict=False):
        own = mine["ensemble"]
        _by_lead(one, own["rmse_mean"], leads, color=WHO["truth"], label="error of the ensemble mean")
        _by_lead(one, own["spread"], leads, color=colour, label="spread of the members")
        first, last = own["spread_skill"].by_label[[0, -1]]
        one.set_title(
            f"{name}\nspread/error {first:.2f} at {leads[0]} min, {last:.2f} at {leads[-1]} min"
            if len(leads) > 1
            else f"{name}\nspread/error {last:.2f}",
            fontsize=9,
        )
        one.set_xlabel("lead time (min)", fontsize=8)
        one.tick_params(labelsize=7)
        one.grid(alpha=0.25)
        one.legend(fontsize=7, loc="upper left")
    axes[0].set_ylabel("level/255", fontsize=8)
    axes[0].set_ylim(0, 1.25 * axes[0].get_ylim()[1])  # room for the legend
    n = own["spread"].groups
    figure.suptitle(f"{n} events, bands are 95 % bootstrap intervals", fontsize=9)
    return figure


def _by_lead(axes: Axes, metric: Metric, leads: Sequence[int], **style: Any) -> None:
    entry = summarise(metric)
    by_label = list(entry["by_label"].values()) if "by_label" in entry else [entry]
    low, high = (np.array([one["ci95"][end] for one in by_label], dtype=float) for end in (0, 1))
    axes.plot(leads, metric.by_label, "o-", ms=3, **style)
    axes.fill_between(leads, low, high, color=style["color"], alpha=0.12, lw=0)


def blur_figure(ensembles: Mapping[str, Ensemble], scores: Mapping[str, Scores], batch: Batch) -> Figure:
    """Why blur ruins an ensemble: two of them on the first window of ``batch`` at the longest lead.

    Blurred members agree with each other: on too little strong rain. Whatever their number, the probability of strong
    rain stays near 0, and their spread says that they are sure. Strong is the highest event level that was observed on
    1 % of the window's pixels.
    """
    truth = batch.frames[0, -1]
    measured = truth != MISSING
    level = max((t for t in THRESHOLDS if _count(truth, t) >= MIN_SHARE * measured.sum()), default=THRESHOLDS[0])
    seen = int(_count(truth, level))
    figure = Figure(figsize=(14.4, 5.8), layout="constrained")
    axes = figure.subplots(2, SHOWN + 2)
    image = show_levels(axes[0, 0], truth.numpy(), title=f"truth: {seen} pixels ≥ {level}")
    _spectrum(axes[1, 0], VIL.to_model(batch.frames[:1, -1:])[0], color=WHO["truth"], lw=2, label="truth")
    said = []
    for row, colour, (name, ensemble) in zip(axes[:, 1:], COLOURS, ensembles.items(), strict=False):
        members = forecast_members(ensemble, Batch(batch.frames[:1], batch.events[:1]))[:, :, -1:].cpu()
        members = torch.where(measured, members, 0.0)
        said.append(f"{_count(to_levels(members), level) / len(ensemble.members):.0f} ({name})")
        shown = _members_row(row, members, truth.numpy(), level, scores[name])
        row[0].set_ylabel(name, fontsize=8)
        for k, member in enumerate(members.unbind(1)):
            _spectrum(axes[1, 0], member, color=colour, lw=0.9, label="_" if k else name)
    axes[1, 0].invert_xaxis()
    axes[1, 0].legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    colour_bar(figure, image, axes[:, :-1])
    _probability_bar(figure, shown, axes[:, -1])
    lead = next(iter(ensembles.values())).task.leads[-1]
    figure.suptitle(
        f"event {batch.events[0]}, +{lead} min: level ≥ {level} observed on {seen} pixels; on average a member has "
        + " and ".join(said),
        fontsize=10,
    )
    return figure


def _members_row(
    axes: Sequence[Axes], members: Tensor, truth: NDArray[np.uint8], threshold: int, scores: Scores
) -> AxesImage:
    """Some of the ``(1, M, 1, H, W)`` members and what all of them together say of strong rain."""
    for one in axes:
        one.axis("off")  # where there are fewer members than places
    for k, (one, level) in enumerate(zip(axes[:SHOWN], to_levels(members)[0, :, 0], strict=False)):
        one.axis("on")
        masked = np.where(truth == MISSING, MISSING, level.numpy())
        show_levels(one, masked, title=f"member {k + 1}: {_count(level, threshold)} pixels ≥ {threshold}")
    probability = _probability(members, threshold)
    strong = (truth >= threshold) & (truth != MISSING)
    title = f"P(level ≥ {threshold})" + (f"\n{probability[strong].mean():.0%} where observed" if strong.any() else "")
    shown = _show_probability(axes[-1], probability, truth, threshold, members.shape[1], title)
    axes[-1].axis("on")
    bias, ratio = scores["member"][f"bias_{threshold}"], scores["ensemble"]["spread_skill"]
    axes[-1].set_xlabel(
        f"all {bias.groups} events:\nfrequency bias {bias.by_label[-1]:.2f}\nspread/error {ratio.by_label[-1]:.2f}",
        fontsize=8,
    )
    return shown


def _spectrum(axes: Axes, frame: Tensor, **style: Any) -> None:
    """Radially averaged power of ``(1, 1, H, W)`` in model units."""
    power = power_by_wavelength(frame)[0, 0].numpy()
    axes.loglog(min(frame.shape[-2:]) / np.arange(1, len(power) + 1), power, **style)
    axes.set_title("power spectra", fontsize=9)
    axes.set_xlabel("wavelength (pixels; 1 km for SEVIR)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, which="both")
