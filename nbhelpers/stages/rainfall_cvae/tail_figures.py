"""How heavy the heaviest rain is: quantiles of members against those observed, and return levels, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science.extremes import (
    MIN_BLOCKS,
    MIN_EXCESSES,
    Estimate,
    Gpd,
    exceedance_rate,
    fit_gpd,
    return_level,
)
from nbhelpers.stages.rainfall_cvae.drawing import MARKS, WHO, name_of, tidy
from nbhelpers.stages.rainfall_cvae.drawn import Drawn
from nbhelpers.stages.rainfall_cvae.histogram import log_histogram, quantile_table

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.task import RainfallTask

THRESHOLD = "P95"  # that excesses are taken of
LONGEST = 20.0  # years of the longest return period
SHORTEST = 1.0
FITTED = ("observed", "model", "oracle")
FEWEST = 10  # values above a return level that is counted and not fitted
ROOM = 2.0  # times the highest level: the top of the picture, beyond which intervals are cut
Table = Mapping[str, Mapping[str, Any]]


def quantile_tables(task: RainfallTask, drawn: Drawn) -> dict[str, Table]:
    """By predictor, quantiles of the land rain of the drawn days with intervals over blocks of days.

    The same as :meth:`~nbhelpers.stages.rainfall_cvae.verification.RainVerification.quantiles`, without its scores.
    """
    measured = (~drawn.observed.isnan() & torch.from_numpy(task.days.land))[:, None]
    block = blocks_of(task, drawn)

    def counts(fields: Tensor) -> NDArray[np.float64]:
        found = log_histogram(torch.where(measured, fields, torch.nan)).double()
        found[:, 0] -= (~measured).sum((1, 2, 3)) * fields.shape[1]  # sea and gaps are counted as dry
        sums = np.zeros((block.max() + 1, found.shape[1]))
        np.add.at(sums, block, found.numpy())
        return sums

    observed = counts(drawn.observed[:, None])
    return {name: quantile_table(counts(members), observed) for name, members in drawn.members.items()}


def blocks_of(task: RainfallTask, drawn: Drawn) -> NDArray[np.int64]:
    """``(N,)`` number of the block of each drawn day."""
    labels = task.days.blocks(drawn.split)
    return np.unique([labels[day] for day in drawn.days], return_inverse=True)[1]


def quantile_figure(tables: Mapping[str, Table], *, title: str = "") -> Figure:
    """Quantiles of all land rain, of members against observed: on the diagonal where members rain as the world does.

    Args:
        tables: of :func:`quantile_tables`, the model first.
    """
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = np.inf, 0.0
    labels = [label for label, row in next(iter(tables.values())).items() if row["observed"] > 0]
    for name, table in tables.items():
        # A quantile below 0.1 mm/day is 0: there is no place for it on a logarithmic axis.
        rows = {label: row for label, row in table.items() if row["observed"] > 0 and row["predicted"] > 0}
        if not rows:
            continue
        x, y = (np.array([row[what] for row in rows.values()]) for what in ("observed", "predicted"))
        low, high = min(low, x.min(), y.min()), max(high, x.max(), y.max())
        style = {"color": WHO[name], "marker": MARKS[name], "ms": 5, "lw": 1.0, "label": name_of(name)}
        errors = {"xerr": _bars(rows, "observed"), "yerr": _bars(rows, "predicted")} if name == "model" else {}
        left.errorbar(x, y, **errors, **style, elinewidth=0.8, capsize=2, zorder=3 if name == "model" else 2)
        places = [labels.index(label) for label in rows]
        right.plot(places, y / x, **style, zorder=3 if name == "model" else 2)
        if name == "model":
            for label, row in rows.items():
                left.annotate(label, (row["observed"], row["predicted"]), (6, -10), textcoords="offset points",
                              fontsize=7)  # fmt: skip
    if high:
        left.plot([low / 1.3, 1.3 * high], [low / 1.3, 1.3 * high], color=WHO["observed"], lw=0.8, zorder=1)
        left.set_xscale("log")
        left.set_yscale("log")
        left.legend(fontsize=7)
    tidy(left, "quantiles of all land rain, bars: 95 % intervals of both", "observed, mm/day", "members, mm/day")
    right.set_xticks(range(len(labels)), labels)
    right.axhspan(0.9, 1.1, color="#000", alpha=0.08, lw=0)
    right.axhline(1, color=WHO["observed"], lw=0.8)
    tidy(right, "members' quantile over that observed, band: ± 10 %", "quantile of all land pixel-days", "ratio → 1")
    figure.suptitle(title, fontsize=9)
    return figure


def _bars(rows: Table, what: str) -> NDArray[np.float64] | None:
    """``(2, n)`` lengths of the error bars; None without intervals. A limit of 0 lies off a logarithmic axis."""
    limits = [row[f"{what}_ci95"] for row in rows.values()]
    if any(each is None for each in limits):
        return None
    value, (low, high) = np.array([row[what] for row in rows.values()]), np.array(limits).T
    return np.stack([value - np.clip(low, 0.05 * value, value), np.clip(high - value, 0, None)])


@dataclass(frozen=True, eq=False)
class Tail:
    """Return levels of a land pixel, from all of them together."""

    rate: Estimate  # exceedances of the threshold a year and pixel
    law: Gpd | None  # None: too few exceedances to fit one
    n: int  # exceedances
    years: float  # that the days cover
    threshold: float  # mm/day
    counted: tuple[NDArray[np.float64], NDArray[np.float64]]  # return periods in years and levels as they were counted

    def levels(self, periods: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(3, n)`` mm/day: level and interval of each return period in years; NaN below the threshold's own."""
        if self.law is None:
            return np.full((3, len(periods)), np.nan)
        found = [
            return_level(self.law, threshold=self.threshold, rate=self.rate, years=years)
            if self.rate.value * years > 1
            else (np.nan, np.nan, np.nan)
            for years in periods
        ]
        return np.array(found).T


def years_of(task: RainfallTask, drawn: Drawn) -> float:
    """How many years the drawn days stand for; a year has as many days as the split has in one (a winter, perhaps)."""
    days = task.days
    return len(drawn.days) * len(days.years[drawn.split]) / len(days.split[drawn.split])


def tail_of(task: RainfallTask, drawn: Drawn, fields: Tensor) -> Tail:
    """The tail of fields ``(N, K, H, W)`` in mm/day of the drawn days (K = 1: the observed), over measured land.

    Pixels, members and days of one block depend on each other: intervals are those of independent blocks of days.
    """
    threshold, years = float(task.days.thresholds[THRESHOLD]), years_of(task, drawn)
    measured = (~drawn.observed.isnan()).numpy()[:, None] & task.days.land
    rain = np.where(measured, fields.numpy(), np.nan)
    k = rain.shape[1]
    pixels = measured.sum() / len(rain)  # of a day
    block = blocks_of(task, drawn)
    day = np.broadcast_to(block[:, None, None, None], rain.shape)
    above = rain > threshold
    counts = np.bincount(day[above], minlength=int(block.max()) + 1) / (pixels * k)
    excess = rain[above].astype(float) - threshold
    law = fit_gpd(excess, blocks=day[above]) if len(excess) >= MIN_EXCESSES else None
    ordered = np.sort(rain[np.isfinite(rain)])[::-1].astype(float)
    a_year = pixels * k * years  # values that exceed a level once a year and pixel
    places = np.unique(np.geomspace(FEWEST, max(FEWEST, min(a_year / SHORTEST, len(ordered))), 9).astype(int)) - 1
    places = places[places < len(ordered)]
    periods = a_year / (places + 1)
    near = (periods >= SHORTEST) & (periods <= LONGEST)
    rate = exceedance_rate(counts, years=years)
    return Tail(rate, law, len(excess), years, threshold, (periods[near], ordered[places][near]))


def return_figure(task: RainfallTask, drawn: Drawn) -> Figure:
    """Return levels of a land pixel up to twenty years: observed against prior members, and the oracle's."""
    fields = {"observed": drawn.observed[:, None], **drawn.members}
    tails = {name: tail_of(task, drawn, fields[name]) for name in FITTED if name in fields}
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, tail in tails.items():
        _draw_tail(axes, name, tail)
    axes.set_xscale("log")
    axes.set_xlim(0.95 * SHORTEST, 1.05 * LONGEST)
    axes.set_xticks((1, 2, 5, 10, 20), ("1", "2", "5", "10", "20"))
    axes.minorticks_off()
    some = next(iter(tails.values()))
    blocks = int(blocks_of(task, drawn).max()) + 1
    highest = max(float(np.nanmax([some.threshold, *np.asarray(line.get_ydata())])) for line in axes.lines)
    # Intervals of a few rainy blocks may end far above: what is compared shall fill the picture.
    axes.set_ylim(0, min(axes.get_ylim()[1], ROOM * highest))
    tidy(axes, "", "return period of a single pixel, years", "return level, mm/day")
    axes.legend(fontsize=7, loc="upper left")
    few = f" (fewer than {MIN_BLOCKS}: no intervals)" if blocks < MIN_BLOCKS else ""
    figure.suptitle(
        f"{len(drawn.days)} {drawn.split} days = {some.years:.3g} years of {int(task.days.land.sum()):,} land pixels; "
        f"lines: GPD above {THRESHOLD} = {some.threshold:.3g} mm/day,\nbands: 95 % intervals from {blocks} blocks of "
        f"days{few}; marks: as counted among all pixels",
        fontsize=9,
    )
    return figure


def _draw_tail(axes: Axes, name: str, tail: Tail) -> None:
    periods = np.geomspace(SHORTEST, LONGEST, 40)
    level, low, high = tail.levels(periods)
    fitted = f", ξ = {tail.law.shape.value:.2f}" if tail.law is not None else ": too few to fit"
    label = f"{name_of(name)}, n = {tail.n:,} exceedances{fitted}"
    axes.plot(periods, level, color=WHO[name], lw=2, ls="--" if name == "oracle" else "-", label=label)
    if name != "oracle":
        axes.fill_between(periods, low, high, color=WHO[name], alpha=0.15, lw=0)
    if len(tail.counted[0]):
        axes.plot(*tail.counted, MARKS.get(name, "x"), ms=4, color=WHO[name], mfc="none")
