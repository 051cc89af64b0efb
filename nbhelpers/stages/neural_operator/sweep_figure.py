"""The ablation as a picture: what sharpness costs in field error, for one step and for rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter, ScalarFormatter

from nbhelpers.stages.neural_operator.sweep_verdict import COST, SHARPNESS
from nbhelpers.stages.neural_operator.verdict import DEARER, HALF

COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#b7950b", "#7d3c98", "#d35400", "#117a65", "#5b2c6f")
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
PANELS = {
    "one step ahead": (COST, SHARPNESS),
    "over the rollout": ("rollout_field_error", "rollout_spectrum_error_high"),
}


def sweep_figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """The figures of an ablation's report, by file name."""
    yield "sweep", sweep_figure(report)
    yield "sweep_test", sweep_figure(report, split="test")


def sweep_figure(report: Mapping[str, Any], *, split: str = "val") -> Figure:
    """High-band spectrum error against field error, both relative to field error alone of the same seed, a point each.

    Args:
        split: "val", on which the choice is made, or "test".
    """
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    for axes, (title, metrics) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        _trade(axes, report, split, *metrics)
        axes.set_title(title, fontsize=9)
    figure.axes[0].legend(fontsize=7)
    n = next(iter(report[split].values()))[COST]["n"]
    name = {"val": "validation", "test": "test"}[split]
    seeds = ", ".join(map(str, report["seeds"]))
    figure.suptitle(f"{report['sweep']}: {n} {name} simulations, seeds {seeds}", fontsize=10)
    return figure


def _trade(axes: Axes, report: Mapping[str, Any], split: str, cost: str, sharpness: str) -> None:
    compared = report[split]
    theirs = compared.get(report["reference"])
    if theirs is None:
        axes.text(0.5, 0.5, f"no finished run of {report['reference']}", ha="center", transform=axes.transAxes)
        return
    for index, (name, cells) in enumerate(compared.items()):
        colour = "#17202a" if name == report["reference"] else COLOURS[index % len(COLOURS)]
        seeds = [seed for seed in cells[cost]["seeds"] if seed in theirs[cost]["seeds"]]
        points = [[cells[m]["seeds"][seed] / theirs[m]["seeds"][seed] for seed in seeds] for m in (cost, sharpness)]
        axes.plot(*points, "o", color=colour, ms=6, label=name)
        for x, y in zip(*points, strict=True):
            axes.plot([1, x], [1, y], color=colour, lw=0.7, alpha=0.5)
    axes.set_yscale("log")
    if cost == COST:
        low = min(HALF / 2, 0.8 * axes.get_ylim()[0])
        corner = (min(0.99, axes.get_xlim()[0]), low)
        axes.add_patch(Rectangle(corner, DEARER - corner[0], HALF - low, color="#1e8449", alpha=0.12, lw=0))
        axes.text(DEARER, HALF, "the floor ", fontsize=7, color="#1e8449", ha="right", va="bottom")
        axes.set_xlim(corner[0], max(1.01 * DEARER, axes.get_xlim()[1]))
        axes.set_ylim(low, max(1.2, axes.get_ylim()[1]))
    axes.set_xlabel(f"{cost.replace('_', ' ')}, times field-only ↓", fontsize=8)
    axes.set_ylabel(f"{sharpness.replace('_', ' ')}, times field-only ↓", fontsize=8)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([tick for tick in TICKS if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]])
    axes.tick_params(labelsize=7, which="both")
    axes.grid(alpha=0.25, which="both")
