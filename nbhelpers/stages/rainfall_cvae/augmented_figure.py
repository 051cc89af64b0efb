"""What synthetic days change in the tail, as a picture: quantiles, hits against false alarms, and the price."""

from __future__ import annotations

from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

from nbhelpers.stages.rainfall_cvae.augmented import SCORES, Demonstration
from nbhelpers.stages.rainfall_cvae.drawing import tidy

COLOURS = {"plain": "#17202a", "oversampled": "#b7950b", "synthetic": "#2471a3", "synthetic_heavy": "#c0392b"}
FURTHER = ("#1e8449", "#7d3c98")  # of sets that were added by the caller
NAMES = {
    "plain": "training days alone",
    "oversampled": "+ heavy days again",
    "synthetic": "+ draws of heavy days",
    "synthetic_heavy": "+ their heavy draws",
}
MARKS = {"p95": "o", "p99": "^"}
BIASES = (0.25, 0.5, 1.0, 2.0)  # frequency predicted over observed, whose lines are drawn
PRICES = ("mae_all", "rmse_all", "mae_tail", "rmse_tail")  # relative to those without added days
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def augmentation_figure(shown: Demonstration) -> Figure:
    """Q–Q plot of all rain, hits against false alarms, and errors relative to training without added days."""
    figure = Figure(figsize=(12.6, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _quantiles(left, shown)
    _alarms(middle, shown)
    _price(right, shown)
    n = len(shown.seeds)
    figure.suptitle(
        f"one downscaler, {shown.training.steps} steps each, {n} seed{'s' if n > 1 else ''}; scored on {shown.scored}",
        fontsize=10,
    )
    return figure


def _colour(shown: Demonstration, name: str) -> str:
    others = [one for one in shown.scores if one not in COLOURS]
    return COLOURS.get(name) or FURTHER[others.index(name) % len(FURTHER)]


def _quantiles(axes: Axes, shown: Demonstration) -> None:
    observed = shown.quantiles["observed"]
    there = [p for p, mm in observed.items() if mm >= 1]
    x = [observed[p] for p in there]
    axes.plot(x, x, color="#7f8c8d", lw=1)
    for name in shown.scores:
        y = [max(shown.quantiles[name][p], 0.1) for p in there]
        axes.plot(x, y, "o-", ms=3.5, lw=1.2, color=_colour(shown, name), label=NAMES.get(name, name.replace("_", " ")))
    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.set_xticks([tick for tick in TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]])
    for p in there:
        if p in ("P90", "P95", "P99", "P99.9"):
            axes.annotate(
                p, (observed[p], observed[p]), fontsize=7, xytext=(-4, 4), textcoords="offset points", ha="right"
            )
    tidy(axes, "quantiles of all land rain", "observed, mm/day", "predicted, mm/day")
    axes.legend(fontsize=7, loc="lower right")


def _alarms(axes: Axes, shown: Demonstration) -> None:
    """Hits over observed against false alarms over predicted; lines of equal frequency (Roebber 2009, WAF 24)."""
    highest, most = 0.0, 0.0
    for name in shown.scores:
        for level, mark in MARKS.items():
            mine = shown.scores[name]
            alarms, hits = mine[f"false_alarm_ratio_{level}"], mine[f"hit_rate_{level}"]
            axes.plot(alarms, hits, mark, ms=4, color=_colour(shown, name), alpha=0.45, mew=0)
            axes.plot(fmean(alarms), fmean(hits), mark, ms=8, color=_colour(shown, name), mec="white", mew=0.7)
            highest = max(highest, *(one for one in hits if np.isfinite(one)), 0.0)
            most = max(most, *(one for one in alarms if np.isfinite(one)), 0.0)
    right, top = min(1.0, 1.25 * most + 0.05), min(1.0, 1.4 * highest + 0.02)
    along = np.linspace(0, right, 100)
    for bias in BIASES:
        axes.plot(along, bias * (1 - along), color="#7f8c8d", lw=0.7, ls="-" if bias == 1 else ":", zorder=0)
        start = max(0.0, 1 - 0.97 * top / bias)  # where the line enters from above
        if start < right:
            axes.text(start, min(bias, 0.97 * top), f" {bias:g}x", fontsize=7, color="#7f8c8d", va="top")
    axes.set_xlim(0, right)
    axes.set_ylim(0, top)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    marks = [
        Line2D(
            [],
            [],
            color="#7f8c8d",
            marker=mark,
            ls="",
            ms=6,
            label=f">= {level.upper()}, {shown.thresholds[level.upper()]:.3g} mm/day",
        )
        for level, mark in MARKS.items()
    ]
    axes.legend(handles=marks, fontsize=7, loc="upper right")
    tidy(axes, "extremes found; grey: how often, times observed", "false alarms / predicted", "hits / observed")


def _price(axes: Axes, shown: Demonstration) -> None:
    """Errors of the sets with added days over those without, a dot a seed."""
    names = [name for name in shown.scores if name != "plain"]
    for index, score in enumerate(PRICES):
        for place, name in enumerate(names):
            pairs = zip(shown.scores[name][score], shown.scores["plain"][score], strict=True)
            ratios = [ours / theirs for ours, theirs in pairs]
            at = index + (place - (len(names) - 1) / 2) * 0.8 / len(names)
            axes.plot([at] * len(ratios), ratios, "o", ms=4, color=_colour(shown, name), alpha=0.45, mew=0)
            axes.plot([at - 0.08, at + 0.08], [fmean(ratios)] * 2, color=_colour(shown, name), lw=2)
    axes.axhline(1, color=COLOURS["plain"], lw=1)
    labels = [SCORES[score][0].removesuffix(", mm/day").replace(" where truth ", "\n") for score in PRICES]
    axes.set_xticks(range(len(PRICES)), labels)
    tidy(axes, "errors, times those of the training days alone ↓")
