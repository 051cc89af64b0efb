"""Everything that members are scored by, streamed batch by batch into sums for each block of days."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.stages.rainfall_cvae import calibration, frequencies, histogram, patterns
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.layout import CATEGORIES
from nbhelpers.stages.rainfall_cvae.points import FAR_TAIL, TAIL, Columns, Points, pixel_metrics, pixel_sums
from nbhelpers.training.metrics import Metric
from nbhelpers.training.task import Spread

SCALES = ("pixel", "block", "domain")


class RainVerification:
    """Add members and the days that they are to resemble, then ask for the metrics.

    Groups are blocks of days (``Days.blocks``), in one order whatever was added first, so that any two that were given
    the same days are paired. Only measured land counts.

    Args:
        days: where thresholds, categories, blocks and the land mask come from.
        n_members: of every stack, K; with 1 the CRPS is the absolute error, and nothing is said of spread.
        full: False leaves out what only a report needs: ranks, spatial scores, SEDI, and diversity.
    """

    def __init__(self, days: Days, *, n_members: int, full: bool = True):
        self.n_members, self.full = n_members, full
        self._days = days
        self._thresholds = {name: float(days.thresholds[name]) for name in (TAIL, FAR_TAIL)}
        self._block = {day: (split, block) for split in days.split for day, block in days.blocks(split).items()}
        self._sums: dict[Any, dict[str, NDArray[np.float64]]] = {}  # by block, by name
        self._seen: dict[str, list[list[float]]] = {"prediction": [], "target": []}  # low, high, n, sum, squares
        self._columns: tuple[str, ...] = ()

    @torch.no_grad()
    def add(self, members: Tensor, observed: Tensor, days: Sequence[int]) -> None:
        """Take in a batch; the results do not depend on how days are batched.

        Args:
            members: ``(B, K, H, W)`` mm/day.
            observed: ``(B, H, W)`` mm/day, NaN where not measured.
            days: numbers of the B days.

        Raises:
            ValueError: the stack has another shape than ``n_members`` and the truth ask for.
        """
        wanted = (len(days), self.n_members, *self._days.shape)
        if members.shape != wanted or observed.shape != (wanted[0], *wanted[2:]):
            raise ValueError(f"members {tuple(members.shape)} of {tuple(observed.shape)}: expected members {wanted}")
        land = torch.from_numpy(self._days.land).to(observed.device)
        points = Points.of(members, observed, land)
        pixel = pixel_sums(points, self._thresholds)
        self._columns = tuple(pixel)
        sums = {
            "hist_pred": _measured(histogram.log_histogram(points.members), points, self.n_members),
            "hist_obs": _measured(histogram.log_histogram(points.observed), points, 1),
        }
        if self.n_members > 1:
            spreads = calibration.spread_sums(members, observed, land, points, self._days.factor)
            sums |= {f"spread_{scale}": values for scale, values in spreads.items()}
        if self.full:
            sums |= patterns.pattern_sums(members, observed, land, self._thresholds[TAIL], self._days.factor)
            if self.n_members > 1:
                sums["ranks"] = calibration.rank_counts(points, days)
        self._store(torch.stack(list(pixel.values()), -1), sums, days)
        self._widen("prediction", points.members[points.measured])
        self._widen("target", points.observed[points.measured])

    def _store(self, pixel: Tensor, sums: dict[str, Tensor], days: Sequence[int]) -> None:
        """Add the rows of the B days, ``(B, columns)`` and ``(B, ...)``, to their blocks."""
        arrays = {name: values.double().cpu().numpy() for name, values in sums.items()}
        columns = pixel.cpu().numpy()
        for index, day in enumerate(days):
            mine = self._sums.setdefault(self._block[day], {})
            row = np.zeros((len(CATEGORIES), columns.shape[1]))
            row[CATEGORIES.index(self._days.category[day])] = columns[index]
            for name, value in [("pixel", row), *((name, values[index]) for name, values in arrays.items())]:
                mine[name] = mine[name] + value if name in mine else value

    def _widen(self, name: str, x: Tensor) -> None:
        if x.numel():
            low, high = x.aminmax()
            self._seen[name].append([float(low), float(high), x.numel(), float(x.sum()), float(x.square().sum())])

    def spreads(self) -> dict[str, Spread]:
        """Where the members ("prediction") and the truth ("target") lie on measured land, in mm/day."""
        found = {}
        for name, seen in self._seen.items():
            low, high, n, total, squares = zip(*seen, strict=True)
            mean = sum(total) / sum(n)
            found[name] = Spread(min(low), max(high), math.sqrt(max(0.0, sum(squares) / sum(n) - mean**2)))
        return found

    def _stacked(self, name: str) -> NDArray[np.float64]:
        """``(groups, ...)``."""
        return np.stack([self._sums[block][name] for block in sorted(self._sums)])

    def metrics(self) -> dict[str, Metric]:
        """All scores of what was added, by name; see the functions that make them for what each is."""
        columns = Columns(self._columns, self._stacked("pixel"))
        metrics = pixel_metrics(columns, self._thresholds, self.n_members)
        metrics |= frequencies.frequency_metrics(columns, self._thresholds)
        metrics |= histogram.quantile_metrics(self._stacked("hist_pred"), self._stacked("hist_obs"))
        if self.n_members > 1:
            metrics |= calibration.spread_metrics(
                {scale: self._stacked(f"spread_{scale}") for scale in SCALES}, self.n_members
            )
        if self.full:
            metrics |= frequencies.sedi_metrics(columns, self._thresholds)
            metrics |= patterns.pattern_metrics(
                self._stacked, self._days.shape, self._thresholds[TAIL], self._days.factor
            )
            if self.n_members > 1:
                metrics |= calibration.rank_metrics(self._stacked("ranks"))
                metrics["diversity"] = calibration.diversity(columns)
        return metrics

    def quantiles(self, *, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Quantiles of the rain of members and truth with intervals, for a Q–Q plot."""
        return histogram.quantile_table(self._stacked("hist_pred"), self._stacked("hist_obs"), seed=seed)


def _measured(counts: Tensor, points: Points, times: int) -> Tensor:
    """Histograms without the zeros that stand for what was not measured, ``times`` at each pixel."""
    counts[:, 0] -= times * (~points.measured).sum(1)
    return counts
