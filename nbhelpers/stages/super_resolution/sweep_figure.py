"""The sweep as a picture: the perception-distortion plane, where sharper is to the left and more faithful is up.

Beyond some curve in that plane nothing can look more real without being less accurate (Blau and Michaeli, The
Perception-Distortion Tradeoff, CVPR 2018); a sweep shows how its settings move along that trade.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nbhelpers.stages.super_resolution.score_figures import WHO, name_of, tidy
from nbhelpers.stages.super_resolution.sweep_verdict import FIDELITY, distance_key
from nbhelpers.stages.super_resolution.verdict import PRICE, PROJECTED
from nbhelpers.training.sweep_scores import number

COLOURS = ("#c0392b", "#1e8449", "#b7950b", "#7d3c98", "#d35400", "#117a65", "#e377c2", "#6e2c00")
BASELINES = {"bicubic": "v", PROJECTED: "^"}
POWER = "rapsd_ratio"
LEAST_RANGE = 0.1  # dB shown: less is no difference, and shall not fill the picture


def sweep_figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """The figures of a sweep's report, by file name."""
    yield "sweep", sweep_figure(report)
    yield "sweep_test", sweep_figure(report, split="test")


def sweep_figure(report: Mapping[str, Any], *, split: str = "val") -> Figure:
    """PSNR against the feature distance and against the power of fine structure, a point for each run.

    Args:
        split: "val", on which the choice is made, or "test".
    """
    figure = Figure(figsize=(10.5, 5.0), layout="constrained")
    key = distance_key(report)
    left, right = figure.subplots(1, 2, sharey=True)
    _runs(left, report, split, key)
    _runs(right, report, split, POWER)
    bottom, top = left.get_ylim()
    if (room := LEAST_RANGE - (top - bottom)) > 0:
        left.set_ylim(bottom - room / 2, top + room / 2)
    _shade_rule(left, report, split, key)
    right.axvline(1, color="#17202a", lw=0.8, ls=":", label="as much as the truth has")
    _baselines(left, report, split, key)
    _baselines(right, report, split, POWER)
    tidy(left, "what looking real costs in accuracy", f"{key.replace('_', ' ')} (smaller is sharper)")
    tidy(right, "fine structure that comes with it", "power of fine structure over the truth's (1 is right)")
    left.set_ylabel("PSNR (dB, larger is more faithful)", fontsize=8)
    for axes in (left, right):
        axes.ticklabel_format(useOffset=False, style="plain")
        axes.locator_params(axis="x", nbins=6)
    figure.legend(*_entries(left, right), fontsize=7, loc="outside lower center", ncols=3, frameon=False)
    n = next(iter(report[split].values()))[FIDELITY]["n"]
    title = {"val": "validation", "test": "test"}[split]
    seeds = ", ".join(map(str, report["seeds"]))
    figure.suptitle(f"{report['sweep']}: {n} {title} places, seeds {seeds}; a line joins runs of a seed", fontsize=10)
    return figure


def _runs(axes: Axes, report: Mapping[str, Any], split: str, across: str) -> None:
    """Every run, joined with the first stage of the same seed."""
    theirs = report[split].get(report["reference"])
    others = [name for name in report["settings"] if name != report["reference"]]
    for name, cells in report[split].items():
        is_reference = name == report["reference"]
        colour = "#17202a" if is_reference else COLOURS[others.index(name) % len(COLOURS)]
        points = {seed: (cells[across]["seeds"][seed], psnr) for seed, psnr in cells[FIDELITY]["seeds"].items()}
        label = f"{name}, best" if name == report["best"] else name
        mark, size = ("*", 10) if is_reference else ("o", 6)
        axes.plot(*zip(*points.values(), strict=True), mark, color=colour, ms=size, label=label, zorder=3)
        for seed, (x, y) in points.items():
            if theirs is not None and seed in theirs[FIDELITY]["seeds"]:
                start = (theirs[across]["seeds"][seed], theirs[FIDELITY]["seeds"][seed])
                axes.plot([start[0], x], [start[1], y], color=colour, lw=0.7, alpha=0.5, zorder=2)


def _shade_rule(axes: Axes, report: Mapping[str, Any], split: str, key: str) -> None:
    """The part of the plane that the rule allows, as far as the runs need it."""
    cells = report[split].get(report["reference"])
    if cells is None:
        return
    edge, top = (fmean(cells[name]["seeds"].values()) for name in (key, FIDELITY))
    (left, right), (bottom, high) = axes.get_xlim(), axes.get_ylim()
    floor = max(top - PRICE, bottom)
    label = f"sharper than {report['reference']}, at most {PRICE:g} dB below (down to {top - PRICE:.2f})"
    region = Rectangle((left, floor), edge - left, high - floor, color="#27ae60", alpha=0.13, lw=0, zorder=0)
    region.set_label(label)
    axes.add_patch(region)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, high)


def _baselines(axes: Axes, report: Mapping[str, Any], split: str, across: str) -> None:
    """Enlargements without training, scored on validation only; one far away does not squeeze what is compared."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    axes.autoscale(False)  # after the limits were asked for: else what is drawn so far would not count
    for name, marker in BASELINES.items() if split == "val" else ():
        x, y = (report["baselines"].get(name, {}).get(metric) for metric in (across, FIDELITY))
        if x is None or y is None:
            continue
        inside = left <= x <= right and bottom <= y <= top
        label = name_of(name) if inside else f"{name_of(name)}, outside: {across} {number(x)}, {y:.2f} dB"
        axes.plot(x, y, marker, color=WHO[name], ms=7, mfc="none", label=label, ls="none")


def _entries(left: Axes, right: Axes) -> tuple[list[Any], list[str]]:
    """Of both panels, each label once."""
    handles, labels = left.get_legend_handles_labels()
    for handle, label in zip(*right.get_legend_handles_labels(), strict=True):
        if label not in labels:
            handles.append(handle)
            labels.append(label)
    return handles, labels
