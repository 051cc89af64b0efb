"""Scores of an ensemble of forecasts: streamed in batches, grouped by event, missing pixels left out.

Members lie in one stack ``(B, M, T, H, W)``: B windows, M members, T lead times. Events are compared on grey levels, as
in ``contingency.py``, so a probability is k/M: the share of members at or above the level.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science.ensemble import fair_crps, spread, variance_and_error
from nbhelpers.stages.perceptual_unet.contingency import to_levels
from nbhelpers.stages.perceptual_unet.data import MISSING, THRESHOLDS, VIL
from nbhelpers.training.metrics import Metric, ratio

Sums = NDArray[np.float64]


def exceeding(levels: Tensor, threshold: int) -> Tensor:
    """``(B, T, H, W)`` int16: how many of the members in ``(B, M, T, H, W)`` uint8 grey levels reach ``threshold``."""
    return (levels >= threshold).sum(1, dtype=torch.int16)


def probability_matched_mean(members: Tensor) -> Tensor:
    """``(B, T, H, W)``: the pattern of the ensemble mean with the values of the members.

    All members' values of a frame are sorted, each M neighbours are averaged (which keeps the members' total), and the
    pixels receive them in the order of the ensemble mean. It undoes the smoothing of the mean and not its displacement.
    Ebert (2001), MWR 129, who takes every M-th value.

    Args:
        members: ``(B, M, T, H, W)``.
    """
    return torch.stack([_matched(one) for one in members])  # one by one: sorting needs four times their memory


def _matched(members: Tensor) -> Tensor:
    """``(T, H, W)`` of one window's ``(M, T, H, W)``."""
    m, _, height, width = members.shape
    pooled = members.transpose(0, 1).flatten(1).sort(dim=-1).values
    values = pooled.unflatten(-1, (height * width, m)).mean(-1)
    order = members.mean(0).flatten(1).argsort(dim=-1, stable=True)
    return torch.empty_like(values).scatter_(-1, order, values).unflatten(-1, (height, width))


class EnsembleVerification:
    """Accumulate members' forecasts, then compute the scores of all of them.

    Args:
        leads: minutes ahead of each forecast frame.
        n_members: members in every stack.
    """

    def __init__(self, leads: Sequence[int], n_members: int):
        self.labels = tuple(f"{minutes} min" for minutes in leads)
        self.n_members = n_members
        self._events: dict[str, dict[str, Sums]] = defaultdict(dict)

    @torch.no_grad()
    def accumulate(self, members: Tensor, observed: Tensor, events: Sequence[str]) -> None:
        """Add forecasts.

        Args:
            members: ``(B, M, T, H, W)`` in model units; clipped to [0, 1] before scoring.
            observed: ``(B, T, H, W)`` uint8 grey levels, 255 missing.
            events: event id of each of the B windows.
        """
        for sample, event in enumerate(events):  # one by one: the stack is large, and sorting it takes several copies
            mine = self._events[event]
            for name, sums in self._sums(members[sample : sample + 1].clamp(0, 1), observed[sample : sample + 1]):
                mine[name] = mine[name] + sums if name in mine else sums

    def _sums(self, members: Tensor, observed: Tensor) -> list[tuple[str, Sums]]:
        """What one window adds, each ``(T, k)``."""
        target, valid = VIL.to_model(observed)
        n_pixels = valid.double()
        variance, error = variance_and_error(members, target)
        parts = {
            "crps": [torch.where(valid, fair_crps(members, target), 0.0), n_pixels],
            "spread": [torch.where(valid, part, 0.0) for part in (variance, error)] + [n_pixels],
        }
        found = [
            (name, torch.stack([part[0].sum((-2, -1)) for part in each], -1).cpu().numpy())
            for name, each in parts.items()
        ]
        levels = to_levels(members)
        frames = torch.arange(observed.shape[1], device=observed.device)[None, :, None, None]
        for threshold in THRESHOLDS:
            cell = (frames * (self.n_members + 1) + exceeding(levels, threshold)) * 2 + (observed >= threshold)
            counts = torch.bincount(cell[observed != MISSING], minlength=2 * (self.n_members + 1) * observed.shape[1])
            table = counts.reshape(observed.shape[1], self.n_members + 1, 2).double().cpu().numpy()
            pixels_and_events = np.stack([table.sum(-1), table[..., 1]], -1)
            found.append((f"table_{threshold}", pixels_and_events.reshape(observed.shape[1], -1)))
        return found

    def compute(self) -> dict[str, Metric]:
        """Metrics over all accumulated forecasts, events as groups and lead times as labels.

        ``crps`` (fair), ``spread``, ``rmse_mean`` and ``spread_skill``, and for each event level ``brier_74`` with its
        parts ``reliability_74``, ``resolution_74`` and ``uncertainty_74``.
        """
        order = sorted(self._events)
        sums = {name: np.stack([self._events[event][name] for event in order]) for name in self._events[order[0]]}
        comparable, units = partial(_spread, m=self.n_members), "level/255"
        labels = self.labels
        metrics = {
            "crps": Metric(sums["crps"], ratio, labels, "lower", f"{units}, fair"),
            "spread": Metric(sums["spread"], comparable, labels, None, f"{units}, comparable with rmse_mean"),
            "rmse_mean": Metric(sums["spread"], _rmse, labels, "lower", f"{units}, of the ensemble mean"),
            "spread_skill": Metric(
                sums["spread"], lambda s: comparable(s) / _rmse(s), labels, "one", "spread / error of the ensemble mean"
            ),
        }
        for threshold in THRESHOLDS:
            table, what = sums[f"table_{threshold}"], f"grey level >= {threshold}"
            metrics |= {
                f"brier_{threshold}": Metric(table, brier, labels, "lower", what),
                f"reliability_{threshold}": Metric(table, reliability, labels, "lower", f"part of Brier, {what}"),
                f"resolution_{threshold}": Metric(table, resolution, labels, "higher", f"part of Brier, {what}"),
                f"uncertainty_{threshold}": Metric(table, uncertainty, labels, None, f"part of Brier, {what}"),
            }
        return metrics


def _spread(sums: Sums, *, m: int) -> Sums:
    return spread(ratio(sums[..., [0, 2]]), m)


def _rmse(sums: Sums) -> Sums:
    return np.sqrt(ratio(sums[..., 1:]))


def _unpacked(sums: Sums) -> tuple[Sums, Sums, Sums]:
    """Probabilities k/m ``(m + 1,)``, and pixels and events at each ``(..., m + 1)``, of flattened counts."""
    table = sums.reshape(*sums.shape[:-1], -1, 2)
    return np.linspace(0, 1, table.shape[-2]), table[..., 0], table[..., 1]


def _share(part: Sums, whole: Sums) -> Sums:
    return ratio(np.stack(np.broadcast_arrays(part, whole), -1))


def brier(sums: Sums) -> Sums:
    """Mean of (p − o)² over pixels, p a probability and o 1 for an event; = reliability − resolution + uncertainty."""
    p, pixels, events = _unpacked(sums)
    return _share((events * (1 - p) ** 2 + (pixels - events) * p**2).sum(-1), pixels.sum(-1))


def reliability(sums: Sums) -> Sums:
    """Mean squared distance of each forecast probability from how often the event then came. Murphy (1973), JAM 12."""
    p, pixels, events = _unpacked(sums)
    off = np.where(pixels > 0, (p - _share(events, pixels)) ** 2, 0.0)
    return _share((pixels * off).sum(-1), pixels.sum(-1))


def resolution(sums: Sums) -> Sums:
    """Mean squared distance of how often the event came at each forecast probability from how often it came at all."""
    _, pixels, events = _unpacked(sums)
    base = _share(events.sum(-1), pixels.sum(-1))[..., None]
    off = np.where(pixels > 0, (_share(events, pixels) - base) ** 2, 0.0)
    return _share((pixels * off).sum(-1), pixels.sum(-1))


def uncertainty(sums: Sums) -> Sums:
    """The Brier score of always saying how often the event comes: ō(1 − ō)."""
    _, pixels, events = _unpacked(sums)
    base = _share(events.sum(-1), pixels.sum(-1))
    return base * (1 - base)


def reliability_table(metric: Metric) -> tuple[Sums, Sums, Sums]:
    """Forecast probabilities, and how many pixels and events there were at each, of a ``brier_…`` metric, pooled."""
    return _unpacked(metric.sums.sum((0, 1)))


def as_if_sure(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """What a single forecast scores when it is read as certain, from its own metrics.

    Its CRPS is its mean absolute error, its Brier score the share of pixels that it calls wrongly.
    """
    sure = {"crps": metrics["mae"]}
    for threshold in THRESHOLDS:
        counts = metrics[f"csi_{threshold}"]
        sure[f"brier_{threshold}"] = Metric(counts.sums, _wrong, counts.labels, "lower", counts.units)
    return sure


def _wrong(counts: Sums) -> Sums:
    return _share(counts[..., 1] + counts[..., 2], counts.sum(-1))
