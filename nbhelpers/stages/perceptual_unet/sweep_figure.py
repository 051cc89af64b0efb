"""The sweep as a picture: what sharpness costs in skill, and from which gradient share on the term matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.stages.perceptual_unet.figures import WHO
from nbhelpers.stages.perceptual_unet.sweep_verdict import distance_key, is_absolute
from nbhelpers.stages.perceptual_unet.verdict import HEADLINE, REFERENCE_CSI, REFERENCE_LPIPS, SHARP

COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#b7950b", "#7d3c98", "#d35400", "#117a65", "#a04000", "#5b2c6f", "#1a5276")
BASELINES = {"persistence": "v", "advection": "^"}


def sweep_figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """The figures of a sweep's report, by file name."""
    yield "sweep", sweep_figure(report)
    yield "sweep_test", sweep_figure(report, split="test")


def sweep_figure(report: Mapping[str, Any], *, split: str = "val") -> Figure:
    """CSI@74 against the feature distance, and both relative to λ = 0 against the gradient share.

    Args:
        split: "val", on which the choice is made, or "test".
    """
    figure = Figure(figsize=(11.5, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _trade(left, report, split)
    _by_share(right, report, split)
    n = next(iter(report[split].values()))[HEADLINE]["n"]
    title = {"val": "validation", "test": "test"}[split]
    seeds = ", ".join(map(str, report["seeds"]))
    figure.suptitle(f"{report['sweep']}: {n} {title} events, seeds {seeds}", fontsize=10)
    return figure


def _shares(report: Mapping[str, Any]) -> dict[str, float]:
    """Gradient share of each finished setting, mean over its seeds, smallest first."""
    found = {
        name: float(np.mean([r["grad_share"] for r in report["rows"] if r["setting"] == name and r["stopped"] is None]))
        for name in report["val"]
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _colours(report: Mapping[str, Any]) -> dict[str, str]:
    others = [name for name in report["settings"] if name != report["reference"]]
    return {report["reference"]: "#17202a"} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}


def _trade(axes: Axes, report: Mapping[str, Any], split: str) -> None:
    distance, colours, reference = distance_key(report), _colours(report), report["reference"]
    path = []
    for name, share in _shares(report).items():
        csi, far = report[split][name][HEADLINE], report[split][name][distance]
        if csi["value"] is None or far["value"] is None:
            continue
        path.append((far["value"], csi["value"]))
        seeds = [(far["seeds"][seed], csi["seeds"][seed]) for seed in csi["seeds"] if csi["seeds"][seed] is not None]
        across, up = zip(*seeds, strict=True)
        axes.scatter(across, up, s=14, color=colours[name], alpha=0.55, zorder=3)
        mark, size = ("*", 170) if name == reference else ("o", 60)
        title = f"{name} ({share:.1%} of the gradient)" if name != reference else f"{name} (no such term)"
        title += ", best" if name == report["best"] else ""
        x, y = path[-1]
        above = 5 if name == reference else 4
        axes.scatter(x, y, s=size, marker=mark, color=colours[name], edgecolor="white", zorder=above, label=title)
    if path:
        axes.plot(*zip(*path, strict=True), color="#95a5a6", lw=1, zorder=2)
    _shade_rule(axes, report, split)
    axes.autoscale(False)  # a baseline far away shall not squeeze what is compared
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for name, marker in BASELINES.items() if split == "val" else ():  # the baselines are scored there only
        far, csi = (report["baselines"].get(name, {}).get(metric) for metric in (distance, HEADLINE))
        if far is not None and csi is not None:
            inside = left <= far <= right and bottom <= csi <= top
            title = name if inside else f"{name}, outside: {far:.3f}; {csi:.3f}"
            axes.scatter(far, csi, marker=marker, color=WHO[name], s=50, label=title, zorder=3)
    axes.set_xlabel(f"{distance.replace('_', ' ')} (smaller is sharper)", fontsize=8)
    axes.set_ylabel("CSI, level ≥ 74 (larger is better)", fontsize=8)
    axes.set_title("what sharpness costs: small dots are seeds, the line follows the gradient share", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    """Below the axes: inside, it would cover points or the region of the rule."""
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)


def _shade_rule(axes: Axes, report: Mapping[str, Any], split: str) -> None:
    """The region that the rule allows, within what the points need; where it lies outside, an edge of it is shown."""
    cells = report[split].get(report["reference"])
    if is_absolute(report):
        edge, floor = SHARP, None
    elif cells and cells[HEADLINE]["value"] is not None:
        edge = REFERENCE_LPIPS * cells[distance_key(report)]["value"]
        floor = REFERENCE_CSI * cells[HEADLINE]["value"]
    else:
        return
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    left = min(left, edge - 0.04 * (right - left))
    right += 0.05 * (right - left)  # the points were in the middle before, and shall not lie on the frame now
    if floor is not None:
        bottom = min(bottom, floor - 0.04 * (top - bottom))
        top += 0.05 * (top - bottom)
    lower = bottom if floor is None else floor
    region = Rectangle((left, lower), edge - left, top - lower, color="#27ae60", alpha=0.13, lw=0, zorder=0)
    region.set_label("allowed by the rule")
    axes.add_patch(region)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _by_share(axes: Axes, report: Mapping[str, Any], split: str) -> None:
    distance, cells = distance_key(report), report[split].get(report["reference"])
    axes.set_title("from which gradient share on does it matter?", fontsize=9)
    axes.set_xlabel("share of the gradient (median over the run)", fontsize=8)
    axes.set_ylabel(f"relative to {report['reference']} (%)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    shares = {name: share for name, share in _shares(report).items() if share > 0 and name != report["reference"]}
    if not cells or not cells[HEADLINE]["value"] or not shares:
        axes.text(0.5, 0.5, "nothing to compare with yet", ha="center", transform=axes.transAxes, fontsize=8)
        return
    axes.set_xscale("log")
    for name, title, colour, marker in (
        (HEADLINE, "CSI, level ≥ 74 ↑", "#2471a3", "o"),
        (distance, f"{distance.replace('_', ' ')} ↓", "#c0392b", "s"),
    ):
        base = cells[name]["value"]
        values = [report[split][setting][name]["value"] for setting in shares]
        axes.plot(
            list(shares.values()), [100 * v / base for v in values], "-", marker=marker, color=colour, label=title
        )
        spread = report["spread"][split][name]["of_differences"]
        if spread is not None:
            half = 100 * spread / base
            axes.axhspan(100 - half, 100 + half, color=colour, alpha=0.12, lw=0, label=f"{title[:-2]}: ± seed to seed")
        for setting, share in shares.items():
            own = cells[name]["seeds"]  # each seed beside the reference run of the same seed
            mine = report[split][setting][name]["seeds"]
            seeds = [100 * v / own[seed] for seed, v in mine.items() if v is not None and own.get(seed)]
            axes.scatter([share] * len(seeds), seeds, s=10, color=colour, alpha=0.5)
    axes.axhline(100, color="#17202a", lw=0.8, ls=":")
    low, high = min([*shares.values(), INERT_SHARE]) / 2, max(*shares.values(), 0.3) * 1.6
    axes.set_xlim(low, min(high, 1.0))
    axes.axvspan(low, INERT_SHARE, color="#d5d8dc", alpha=0.6, lw=0, zorder=0, label=f"inert, below {INERT_SHARE:.0%}")
    if high > DROWNING_SHARE:
        axes.axvspan(DROWNING_SHARE, 1.0, color="#f1948a", alpha=0.4, lw=0, zorder=0, label="drowns the MSE")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.xaxis.set_minor_formatter(NullFormatter())
    _legend_below(axes)
