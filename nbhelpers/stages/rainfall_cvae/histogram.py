"""Histograms of rain that add up over days, fine enough that quantiles are read from them to a per cent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.training.metrics import Metric, bootstrap_weights, ratio

LOWEST, HIGHEST = 0.1, 2000.0  # mm/day; what is below LOWEST is counted, without its amount
WIDTH = 0.01  # of a bin, in ln(rain); within one the values are taken to lie evenly
N_BINS = int(np.ceil(np.log(HIGHEST / LOWEST) / WIDTH))
FEWEST = 10  # values above a quantile that is worth giving
# Of all land pixel-days; the last one has a thousandth of them above it.
PROBABILITIES = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


def log_histogram(rain: Tensor) -> Tensor:
    """``(B, 1 + N_BINS)`` int64 counts of each day: first those below LOWEST, in the last bin all beyond it too.

    Args:
        rain: ``(B, ...)`` mm/day; NaN counts as below LOWEST.
    """
    place = (rain.flatten(1).float() / LOWEST).log() / WIDTH + 1
    bins = torch.where(place > 0, place, 0.0).clamp(max=N_BINS).int()  # log(0) and NaN are not above 0
    bins += (1 + N_BINS) * torch.arange(len(rain), dtype=torch.int32, device=rain.device)[:, None]
    return torch.bincount(bins.flatten(), minlength=len(rain) * (1 + N_BINS)).view(len(rain), 1 + N_BINS)


def quantiles(counts: NDArray[np.float64], probabilities: Sequence[float]) -> list[NDArray[np.float64]]:
    """For each probability ``(...)`` mm/day of counts ``(..., 1 + N_BINS)``; 0 below LOWEST, NaN of nothing."""
    cumulative = counts.cumsum(-1)
    return [_quantile(cumulative, probability) for probability in probabilities]


def _quantile(cumulative: NDArray[np.float64], probability: float) -> NDArray[np.float64]:
    n = cumulative[..., -1]
    wanted = probability * n
    index = (cumulative < wanted[..., None]).sum(-1).clip(max=N_BINS)
    above = np.take_along_axis(cumulative, index[..., None], -1)[..., 0]
    below = np.take_along_axis(cumulative, np.maximum(index - 1, 0)[..., None], -1)[..., 0]
    part = np.divide(wanted - below, above - below, out=np.zeros(n.shape), where=above > below).clip(0, 1)
    value = np.where(index > 0, LOWEST * np.exp(WIDTH * (index - 1 + part)), 0.0)
    return np.where(n > 0, value, np.nan)


def quantile_metrics(predicted: NDArray, observed: NDArray) -> dict[str, Metric]:
    """``p99_ratio`` and ``p999_ratio``: the quantile of all members' land rain over that of the truth's.

    Args:
        predicted, observed: counts ``(groups, 1 + N_BINS)``.
    """
    sums = np.concatenate([predicted, observed], -1)[:, None]
    return {
        name: Metric(sums, partial(_quantile_ratio, probability=p), ("all",), "one", f"P{100 * p:g} of all land rain")
        for name, p in (("p99_ratio", 0.99), ("p999_ratio", 0.999))
    }


def _quantile_ratio(sums: NDArray[np.float64], *, probability: float) -> NDArray[np.float64]:
    both = [quantiles(counts, [probability])[0] for counts in np.split(sums, 2, axis=-1)]
    return ratio(np.stack(both, -1))


def quantile_table(predicted: NDArray, observed: NDArray, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Quantiles of both in mm/day, ``{"P99": {"predicted", "observed", "predicted_ci95", "observed_ci95"}, …}``.

    The intervals are a bootstrap's over groups, the same resamples for both; None with a single group. A quantile with
    fewer than FEWEST observed values above it is left out.

    Args:
        predicted, observed: counts ``(groups, 1 + N_BINS)``.
    """
    groups = len(observed)
    weights = bootstrap_weights(groups, seed)
    both = {"predicted": predicted, "observed": observed}
    known = [p for p in PROBABILITIES if (1 - p) * observed.sum() >= FEWEST]
    table: dict[str, dict[str, Any]] = {f"P{100 * p:g}": {} for p in known}
    for who, counts in both.items():
        values = quantiles(counts.sum(0), known)
        resampled = quantiles(weights @ counts, known)
        for row, value, spread in zip(table.values(), values, resampled, strict=True):
            row[who] = float(value)
            row[f"{who}_ci95"] = np.nanpercentile(spread, [2.5, 97.5]).tolist() if groups > 1 else None
    return table
