"""The ablation as a picture: what sharpness costs in field error, for one step and for rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbhelpers.stages.neural_operator.sweep_verdict import COST, SHARPNESS
from nbhelpers.stages.neural_operator.verdict import DEARER, HALF

COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#b7950b", "#7d3c98", "#d35400", "#117a65", "#5b2c6f")
PANELS = {
    "one step ahead": (COST, SHARPNESS),
    "over the rollout": ("rollout_field_error", "rollout_spectrum_error_high"),
}


def sweep_figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """The figures of an ablation's report, by file name."""
    yield "sweep", sweep_figure(report)
    yield "sweep_test", sweep_figure(report, split="test")


def sweep_figure(report: Mapping[str, Any], *, split: str = "val") -> Figure:
    """High-band spectrum error against field error, every seed a point, lines from field error alone.

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
    for index, (name, cells) in enumerate(compared.items()):
        if cost not in cells or sharpness not in cells:
            continue
        colour = "#17202a" if name == report["reference"] else COLOURS[index % len(COLOURS)]
        seeds = cells[cost]["seeds"]
        for number, seed in enumerate(seeds):
            x, y = cells[cost]["seeds"][seed], cells[sharpness]["seeds"][seed]
            axes.plot(x, y, "o", color=colour, ms=6, label=name if number == 0 else None)
            if theirs is not None and seed in theirs[cost]["seeds"]:
                begin = theirs[cost]["seeds"][seed], theirs[sharpness]["seeds"][seed]
                axes.plot([begin[0], x], [begin[1], y], color=colour, lw=0.7, alpha=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if theirs is not None and cost == COST:
        x, y = theirs[cost]["value"], theirs[sharpness]["value"]
        axes.axvline(DEARER * x, color="#888", lw=0.8, ls=":")
        axes.axhline(HALF * y, color="#888", lw=0.8, ls=":")
        axes.text(DEARER * x, y, " +5 %", fontsize=7, color="#666")
    axes.set_xlabel(f"{cost.replace('_', ' ')} ↓", fontsize=8)
    axes.set_ylabel(f"{sharpness.replace('_', ' ')} ↓", fontsize=8)
    axes.tick_params(labelsize=7, which="both")
    axes.grid(alpha=0.25, which="both")
