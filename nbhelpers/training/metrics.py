"""Metrics as functions of per-group sums, so that they stream, merge, and have honest intervals.

A group is what is independent of the others: an event, a tile, a trajectory, a day. Pixels and windows of one group
are not independent, so intervals and tests resample groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

MIN_GROUPS = 6  # with fewer, the bootstrap's intervals are far too narrow to call anything better
RESAMPLES = 2000  # of the bootstrap; the 95 % limits then move by a few per cent of their width


@dataclass(frozen=True)
class Metric:
    """A score that depends on the data only through sums.

    The pooled value is ``statistic(sums.sum over groups and labels)``; summing over groups alone gives one value a
    label (a lead time, a band), whose mean is the other reduction found in papers.
    """

    sums: NDArray[np.float64]  # (groups, labels, k): k additive quantities of each group at each label
    statistic: Statistic  # (..., k) -> (...)
    labels: tuple[str, ...]  # names of the second axis, e.g. ("5 min", "10 min"); one label when there is no axis
    better: Literal["lower", "higher", "one"] | None  # None: a description, not a score
    units: str

    @property
    def value(self) -> float:
        """Pooled over groups and labels."""
        return float(self.statistic(self.sums.sum((0, 1))))

    @property
    def by_label(self) -> NDArray[np.float64]:
        """(labels,): pooled over groups."""
        return self.statistic(self.sums.sum(0))

    @property
    def groups(self) -> int:
        return len(self.sums)

    def resampled(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pooled values (resamples,) and values by label (resamples, labels) for group counts ``weights``."""
        sums = np.tensordot(weights, self.sums, axes=1)
        by_label = self.statistic(sums)
        return self.statistic(sums.sum(1)) if len(self.labels) > 1 else by_label[:, 0], by_label


def mean_metric(sums: NDArray, counts: NDArray, *, labels: tuple[str, ...], better: Any, units: str) -> Metric:
    """A plain mean: ``sums`` and ``counts`` are (groups, labels)."""
    return Metric(np.stack([sums, counts], -1).astype(float), ratio, labels, better, units)


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """``sums[..., 0] / sums[..., 1]``; NaN where nothing was counted."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] != 0)


@lru_cache(maxsize=1)  # all metrics of a report are resampled alike; with 10,000 groups these are 160 MB
def bootstrap_weights(groups: int, seed: int) -> NDArray[np.float64]:
    """``(RESAMPLES, groups)`` how often each resample has drawn each group; not to be written to."""
    rng = np.random.default_rng([seed, groups])
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES).astype(float)
    weights.flags.writeable = False
    return weights


def _interval(values: NDArray[np.float64], groups: int) -> list[Any]:
    """The 2.5th and 97.5th percentile along axis 0, over the resamples in which the score is defined.

    A single group has no spread to resample: its interval is undefined, not of width 0.
    """
    if groups < 2:
        values = np.full_like(values, np.nan)
    undefined = np.isnan(values).all(axis=0)
    with np.errstate(invalid="ignore"):  # numpy takes differences, of infinite scores too
        limits = np.nanpercentile(np.where(undefined, 0.0, values), [2.5, 97.5], axis=0)
    limits = np.where(undefined, np.nan, limits)
    return [_plain(limits[0]), _plain(limits[1])]


def _plain(value: NDArray[np.float64] | float) -> Any:
    """Floats or lists of floats for JSON; undefined and infinite values as None."""
    array = np.asarray(value, dtype=float)
    if array.ndim:
        return [_plain(item) for item in array]
    return float(array) if np.isfinite(array) else None


def summarise(metric: Metric, *, seed: int = 0) -> dict[str, Any]:
    """``{value, ci95, n, units, mean_over_labels, by_label}`` of one metric, ready for report.json."""
    pooled, by_label = metric.resampled(bootstrap_weights(metric.groups, seed))
    entry: dict[str, Any] = {
        "value": _plain(metric.value),
        "ci95": _interval(pooled, metric.groups),
        "n": metric.groups,
        "units": metric.units,
        "better": metric.better,
    }
    if len(metric.labels) > 1:
        low, high = _interval(by_label, metric.groups)
        values = _plain(metric.by_label)
        defined = metric.by_label[~np.isnan(metric.by_label)]
        entry["mean_over_labels"] = _plain(defined.mean()) if len(defined) else None
        entry["by_label"] = {
            label: {"value": v, "ci95": [lo, hi]}
            for label, v, lo, hi in zip(metric.labels, values, low, high, strict=True)
        }
    return entry


def paired_difference(metric: Metric, other: Metric, *, seed: int = 0) -> dict[str, Any]:
    """``metric - other`` with the 95 % bootstrap interval over the groups that both were scored on.

    ``is_better`` is True (False) when the interval excludes 0 on the good (bad) side, else None; always None with
    fewer than ``MIN_GROUPS`` groups.

    Raises:
        ValueError: when the two were not scored on the same number of groups and labels.
    """
    if metric.sums.shape[:2] != other.sums.shape[:2] or metric.labels != other.labels:
        raise ValueError(f"not paired: {metric.sums.shape[:2]} against {other.sums.shape[:2]} groups and labels")
    weights = bootstrap_weights(metric.groups, seed)
    (pooled_a, label_a), (pooled_b, label_b) = metric.resampled(weights), other.resampled(weights)
    sign = {"lower": -1.0, "higher": 1.0}.get(metric.better or "")
    entry = _difference(metric.value - other.value, pooled_a - pooled_b, metric.groups, sign)
    if len(metric.labels) > 1:
        by_label = metric.by_label - other.by_label
        counted = (metric.sums != 0).any(-1).sum(0)  # not every group has something at every label
        entry["by_label"] = {
            label: _difference(by_label[i], (label_a - label_b)[:, i], int(counted[i]), sign)
            for i, label in enumerate(metric.labels)
        }
    return entry


def _difference(value: float, resamples: NDArray[np.float64], groups: int, sign: float | None) -> dict[str, Any]:
    low, high = _interval(resamples, groups)
    is_better = None
    if groups >= MIN_GROUPS and sign is not None and low is not None and (low > 0 or high < 0):
        is_better = bool(sign * low > 0)
    return {"value": _plain(value), "ci95": [low, high], "is_better": is_better}


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Pooled values only, for history.csv and the monitor."""
    return {name: metric.value for name, metric in metrics.items()}
