"""The sweep as a picture: what a better tail costs over all pixels, and where diluting the weight takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import FuncFormatter

from nbhelpers.stages.rainfall_cvae.sweep_verdict import DILUTED, TAIL, TITLES, Pair, events, points
from nbhelpers.stages.rainfall_cvae.verdict import DEARER

COLOURS = ("#c0392b", "#2471a3", "#7d3c98", "#b7950b", "#117a65", "#d35400", "#e377c2", "#6e2c00")
REFERENCE, FLOOR = "#17202a", "#1e8449"
LEAST = 0.01  # of plain MAE's errors, shown around (1, 1): less is no difference, and shall not fill the picture
ROOM = 0.08  # of the range of the points, left free around them


def sweep_figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """The figures of a sweep's report, by file name."""
    yield "sweep", sweep_figure(report)
    yield "sweep_test", sweep_figure(report, split="test")


def sweep_figure(report: Mapping[str, Any], *, split: str = "val") -> Figure:
    """MAE_all against MAE_tail, both relative to plain MAE's of the same seed, a point for each run.

    Arrows lead from a weight to the same weight diluted.

    Args:
        split: "val", on which the choice is made, or "test".
    """
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    axes = figure.subplots()
    cells = next(iter(report[split].values()))
    if points(report, split):
        _runs(axes, report, split)
        axes.set_xlabel(f"MAE over all pixels, against {report['reference']}'s of the same seed ↓", fontsize=8)
        axes.set_ylabel(f"MAE on extremes, against {report['reference']}'s of the same seed ↓", fontsize=8)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda ratio, _: _percent(ratio)))
        figure.legend(fontsize=7, loc="outside right center", frameon=False)
    else:
        said = f"no seed has scores of both {report['reference']} and another setting"
        axes.text(0.5, 0.5, said, ha="center", transform=axes.transAxes)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    seeds = ", ".join(map(str, report["seeds"]))
    title = f"{report['sweep']}, {TITLES[split]}: n = {cells[TAIL]['n']} blocks of days, seeds {seeds} (numbers)"
    figure.suptitle(f"{title}\n{events(cells[TAIL])}" if split == "val" else title, fontsize=9)
    return figure


def _runs(axes: Axes, report: Mapping[str, Any], split: str) -> None:
    """Every run in the colour of its setting, diluted ones hollow in the colour of theirs."""
    found = {point.name: point for point in points(report, split)}
    plain = list(dict.fromkeys(name.removesuffix(DILUTED) for name in report["settings"]))
    for name, point in found.items():
        partner = name.removesuffix(DILUTED)
        colour = COLOURS[(plain.index(partner) - 1) % len(COLOURS)]
        label = f"{name}, best" if name == report["best"] else name
        label += "\n(arrows lead there)" if name != partner and partner in found else ""
        whole, tail = ([pair[i] for pair in point.by_seed.values()] for i in (1, 0))
        fill = "none" if name != partner else colour
        axes.plot(whole, tail, "o", color=colour, mfc=fill, ms=6, ls="none", label=label, zorder=3)
        for seed, (y, x) in point.by_seed.items():
            axes.annotate(seed, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=6, color=colour)
            if name != partner and partner in found and seed in found[partner].by_seed:
                tail_before, whole_before = found[partner].by_seed[seed]
                axes.add_patch(_arrow((whole_before, tail_before), (x, y), colour))
            elif name == partner:
                axes.plot([1, x], [1, y], color=colour, lw=0.6, alpha=0.4, zorder=2)
    axes.plot(1, 1, "*", color=REFERENCE, ms=11, ls="none", label=report["reference"], zorder=3)
    pairs = [pair for point in found.values() for pair in point.by_seed.values()]
    (left, right), (bottom, top) = (_range([1.0, *(pair[i] for pair in pairs)]) for i in (1, 0))
    right = max(right, DEARER + LEAST)
    label = f"the floor: better on extremes,\nat most {DEARER - 1:.0%} more over all"
    axes.add_patch(Rectangle((left, bottom), DEARER - left, 1 - bottom, color=FLOOR, alpha=0.1, lw=0, label=label))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _arrow(start: Pair, end: Pair, colour: str) -> FancyArrowPatch:
    return FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=9, shrinkA=4, shrinkB=4, color=colour, lw=0.9, zorder=2
    )


def _percent(ratio: float) -> str:
    change = round(100 * (ratio - 1), 6)
    return f"{change:+.3g} %" if change else "the same"


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(*values, 1 - LEAST), max(*values, 1 + LEAST)
    room = ROOM * (high - low)
    return low - room, high + room
