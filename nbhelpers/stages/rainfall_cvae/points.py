"""Scores of single pixels: the members' median, their CRPS, how often it rains and how often it rains hard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science.ensemble import crps, fair_crps, threshold_weighted_crps
from nbhelpers.stages.rainfall_cvae.layout import CATEGORIES, WET
from nbhelpers.training.metrics import Metric, Statistic, ratio

Better = Literal["lower", "higher", "one"] | None
TAIL, FAR_TAIL = "P95", "P99"  # the thresholds that tails are scored at
WET_LEVELS = {"01": 0.1, "1": WET}  # mm/day, by the end of the metrics' names


@dataclass(frozen=True)
class Points:
    """The land pixels of a batch of days. What was not measured is 0 in members and truth, and so adds no error."""

    members: Tensor  # (B, P, K) float64 mm/day, ascending along the members
    observed: Tensor  # (B, P) float64 mm/day
    measured: Tensor  # (B, P) bool

    @classmethod
    def of(cls, members: Tensor, observed: Tensor, land: Tensor) -> Points:
        """Gather the pixels of ``land`` ``(H, W)`` bool from ``(B, K, H, W)`` and ``(B, H, W)``, NaN not measured."""
        index = land.flatten().nonzero()[:, 0]
        truth = observed.flatten(1)[:, index].double()
        measured = ~truth.isnan()
        drawn = members.flatten(2)[..., index].transpose(1, 2).sort(dim=-1).values.double()
        if not measured.all():
            truth, drawn = torch.where(measured, truth, 0.0), torch.where(measured[..., None], drawn, 0.0)
        return cls(drawn, truth, measured)

    @property
    def n_members(self) -> int:
        return self.members.shape[-1]

    @property
    def median(self) -> Tensor:
        """``(B, P)``: the middle member, of an even number the mean of the two in the middle; NaN if any member is."""
        k = self.n_members
        middle = (self.members[..., (k - 1) // 2] + self.members[..., k // 2]) / 2
        return torch.where(self.members[..., -1].isnan(), torch.nan, middle)  # sorting puts NaN last


def pixel_sums(points: Points, thresholds: Mapping[str, float]) -> dict[str, Tensor]:
    """``(B,)`` sums of each day over its pixels, by name; those of members are means over the members."""
    members, y, median = points.members, points.observed, points.median
    error, tail = (median - y).abs(), y >= thresholds[TAIL]
    # One member has no spread: its CRPS is its absolute error.
    score = fair_crps if points.n_members > 1 else crps
    values = {
        "n": points.measured,
        "crps": score(members.flatten(0, 1), y.flatten()).view_as(y),
        "tw_crps": _tail_crps(points, thresholds[TAIL]),
        "absolute": error,
        "squared": error.square(),
        "tail_absolute": error * tail,
        "tail_squared": error.square() * tail,
        "member_absolute": (members - y[..., None]).abs().mean(-1),
        "rain_pred": members.mean(-1),
        "x": median,
        "y": y,
        "xx": median.square(),
        "yy": y.square(),
        "xy": median * y,
    }
    levels = {f"wet_{name}": mm for name, mm in WET_LEVELS.items()}
    for name, mm in {**levels, TAIL: thresholds[TAIL], FAR_TAIL: thresholds[FAR_TAIL]}.items():
        reached, event = (members >= mm).sum(-1) / points.n_members, y >= mm
        values |= {f"{name}_pred": reached, f"{name}_obs": event, f"{name}_hits": reached * event}
    found = {name: value.sum(1, dtype=torch.float64) for name, value in values.items()}
    found["days"] = torch.ones_like(found["n"])
    for name in (TAIL, FAR_TAIL):
        found[f"{name}_days"] = (found[f"{name}_obs"] > 0).double()
    return found


def _tail_crps(points: Points, threshold: float) -> Tensor:
    """``(B, P)`` threshold-weighted CRPS, which is 0 where neither a member nor the truth exceeds the threshold."""
    beyond = (points.members[..., -1] > threshold) | (points.observed > threshold)
    found = torch.zeros_like(points.observed)
    found[beyond] = threshold_weighted_crps(
        points.members[beyond], points.observed[beyond], threshold, fair=points.n_members > 1
    )
    return found


@dataclass(frozen=True)
class Columns:
    """Pixel sums of all groups, as metrics take them out by name."""

    names: tuple[str, ...]  # of the last axis
    sums: NDArray[np.float64]  # (groups, categories, names)

    def metric(self, columns: str, statistic: Statistic, better: Better, units: str, *, strata: bool = False) -> Metric:
        """The metric of some columns, by category of the day when ``strata``, else of all days alike."""
        sums = self.sums[..., [self.names.index(name) for name in columns.split()]]
        if not strata:
            sums = sums.sum(1, keepdims=True)
        return Metric(sums, statistic, CATEGORIES if strata else ("all",), better, units)

    def count(self, name: str) -> NDArray[np.float64]:
        """``(categories,)`` totals of one column."""
        return self.sums[..., self.names.index(name)].sum(0)


def pixel_metrics(columns: Columns, thresholds: Mapping[str, float], n_members: int) -> dict[str, Metric]:
    """Scores of the members' distribution and of their median; ``crps``, ``tw_crps`` and ``mae_all`` by category too.

    ``crps`` (fair), ``tw_crps`` (above P95), ``mae_all``, ``rmse_all``, ``mae_tail`` and ``rmse_tail`` (over pixels
    whose truth is at least P95) and ``corr`` (Pearson's, over all pixels of all days).
    """
    days = ", ".join(f"{int(n):,} {name}" for name, n in zip(CATEGORIES, columns.count("days"), strict=True))
    whole = f"mm/day; days: {days}"
    tail = f">= P95 = {thresholds[TAIL]:.3g} mm/day, {counted(columns, TAIL)}"
    median = f"median of {n_members}, " if n_members > 1 else ""
    fair = "fair, " if n_members > 1 else "one member, "
    return {
        "crps": columns.metric("crps n", ratio, "lower", f"{fair}{whole}", strata=True),
        "tw_crps": columns.metric("tw_crps n", ratio, "lower", f"{fair}mm/day, where {tail}", strata=True),
        "mae_all": columns.metric("absolute n", ratio, "lower", f"{median}{whole}", strata=True),
        "mae_tail": columns.metric("tail_absolute P95_obs", ratio, "lower", f"{median}mm/day, truth {tail}"),
        "rmse_all": columns.metric("squared n", _root, "lower", f"{median}mm/day"),
        "rmse_tail": columns.metric("tail_squared P95_obs", _root, "lower", f"{median}mm/day, truth {tail}"),
        "corr": columns.metric("n x y xx yy xy", _correlation, "higher", f"{median}1"),
    }


def counted(columns: Columns, threshold: str) -> str:
    """How much observed rain reaches a threshold, in words."""
    pixels, days = (int(columns.count(f"{threshold}_{what}").sum()) for what in ("obs", "days"))
    return f"n = {pixels:,} pixels on {days:,} days"


def _root(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(ratio(sums))


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    product = np.maximum(n * xx - x**2, 0.0) * np.maximum(n * yy - y**2, 0.0)
    return ratio(np.stack([n * xy - x * y, np.sqrt(product)], -1))
