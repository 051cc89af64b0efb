"""Everything a forecast is scored by, streamed batch by batch into sums for each event."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science.fractions import fss_sums
from nbhelpers.science.image_quality import fine_power, ssim
from nbhelpers.science.perceptual import Lpips, PerceptualLoss
from nbhelpers.stages.perceptual_unet.contingency import (
    event_metrics,
    joint_histogram,
    max_pool,
    pooled_metrics,
    to_levels,
)
from nbhelpers.stages.perceptual_unet.data import VIL
from nbhelpers.stages.perceptual_unet.losses import frame_distance, perceptual_error
from nbhelpers.training.metrics import Metric, mean_metric, ratio
from nbhelpers.training.task import Evaluation, Spread

POOLS = (4, 16)  # pixels, for pooled CSI
FSS_THRESHOLD, FSS_SIZES = 74, (1, 4, 16)


@dataclass
class _Sums:
    """One event's sums; arrays have the lead time as first axis."""

    histogram: dict[int, NDArray[np.int64]] = field(default_factory=dict)  # by pooling size
    scalars: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # (leads, k)


class Verification:
    """Accumulate forecasts, then compute the metrics of all of them.

    Args:
        leads: minutes ahead of each forecast frame.
        lpips: the feature distance to report; it comes under the key that it names itself.
        perceptual: a loss term whose raw value is wanted as well, under the key ``perceptual``.
    """

    def __init__(self, leads: Sequence[int], lpips: Lpips, *, perceptual: PerceptualLoss | None = None):
        self.labels = tuple(f"{minutes} min" for minutes in leads)
        self.lpips, self.perceptual = lpips, perceptual
        self._events: dict[str, _Sums] = defaultdict(_Sums)
        self._seen: dict[str, list[tuple[float, float, int, float, float]]] = defaultdict(list)

    @torch.no_grad()
    def accumulate(self, forecast: Tensor, observed: Tensor, events: Sequence[str]) -> None:
        """Add forecasts.

        Args:
            forecast: ``(B, T, H, W)`` in model units; clipped to [0, 1] before scoring.
            observed: ``(B, T, H, W)`` uint8 grey levels, 255 missing.
            events: event id of each of the B windows.
        """
        target, valid = VIL.to_model(observed)
        self._widen("prediction", forecast)
        self._widen("target", target[valid])
        # Missing pixels are equal in both images, so that they count as nothing in scores of whole frames.
        forecast = torch.where(valid, forecast.float().clamp(0, 1), target)
        levels = to_levels(forecast)
        histograms = {1: joint_histogram(levels, observed)}
        for size in POOLS:
            # A missing pixel must not lend its target value (0) to a forecast maximum, nor hide one: both see 0 there.
            histograms[size] = joint_histogram(max_pool(levels, size), max_pool(observed, size))
        for sample, event in enumerate(events):
            mine = self._events[event]
            for size, histogram in histograms.items():
                _add(mine.histogram, size, histogram[sample].cpu().numpy())
        error = torch.where(valid, forecast - target, 0.0).double()
        n_pixels = valid.sum((-2, -1)).double()
        ones = torch.ones_like(n_pixels)
        scalars = {
            "mse": torch.stack([error.square().sum((-2, -1)), n_pixels], -1),
            "mae": torch.stack([error.abs().sum((-2, -1)), n_pixels], -1),
            "ssim": torch.stack([ssim(forecast, target, data_range=1.0), ones], -1),
            "lpips": torch.stack([frame_distance(self.lpips, forecast, target, valid), ones], -1),
            "rapsd_ratio": torch.stack([fine_power(forecast), fine_power(target)], -1),
        }
        if self.perceptual is not None:
            frames = [
                perceptual_error(self.perceptual, y, m)(x) for x, y, m in _frame_by_frame(forecast, target, valid)
            ]
            scalars["perceptual"] = torch.stack([torch.stack(frames).reshape(n_pixels.shape), ones], -1)
        for size in FSS_SIZES:
            scalars[f"fss_{FSS_THRESHOLD}_{size}"] = fss_sums(
                levels >= FSS_THRESHOLD, torch.where(valid, observed, 0) >= FSS_THRESHOLD, size, dtype=torch.float32
            )
        for name, values in scalars.items():
            for sample, event in enumerate(events):
                _add(self._events[event].scalars, name, values[sample].double().cpu().numpy())

    def _widen(self, name: str, values: Tensor) -> None:
        if values.numel():
            x = values.double()
            self._seen[name].append(
                (float(x.min()), float(x.max()), x.numel(), float(x.sum()), float(x.square().sum()))
            )

    def _spreads(self) -> dict[str, Spread]:
        spreads = {}
        for name, seen in self._seen.items():
            low, high, n, total, squares = zip(*seen, strict=True)
            mean = sum(total) / sum(n)
            spreads[name] = Spread(min(low), max(high), max(0.0, sum(squares) / sum(n) - mean**2) ** 0.5)
        return spreads

    def compute(self) -> Evaluation:
        """Metrics over all accumulated forecasts, events as groups and lead times as labels."""
        order = sorted(self._events)

        def stacked(name: str) -> NDArray[np.float64]:
            return np.stack([self._events[event].scalars[name] for event in order])

        def mean(name: str, better: str, units: str) -> Metric:
            sums = stacked(name)
            return mean_metric(sums[..., 0], sums[..., 1], labels=self.labels, better=better, units=units)

        metrics = {
            "mse": mean("mse", "lower", "(level/255)^2"),
            "mae": mean("mae", "lower", "level/255"),
            "ssim": mean("ssim", "higher", "window 11, data range 1"),
            self.lpips.key: mean("lpips", "lower", self.lpips.name),
            "rapsd_ratio": Metric(
                stacked("rapsd_ratio"), ratio, self.labels, "one", "power at wavelengths <= 8 px, forecast/observed"
            ),
        }
        if self.perceptual is not None:
            metrics["perceptual"] = mean("perceptual", "lower", f"raw feature MSE, {self.perceptual.weights}")
        for size in FSS_SIZES:
            name = f"fss_{FSS_THRESHOLD}_{size}"
            metrics[name] = Metric(
                stacked(name), _fss, self.labels, "higher", f"square of {size} px, level >= {FSS_THRESHOLD}"
            )
        histograms = {size: np.stack([self._events[event].histogram[size] for event in order]) for size in (1, *POOLS)}
        metrics |= event_metrics(histograms[1], self.labels)
        for size in POOLS:
            metrics |= pooled_metrics(histograms[size], self.labels, size)
        return Evaluation(metrics, self._spreads())


def _frame_by_frame(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """``(1, 1, H, W)`` pieces of ``(B, T, H, W)`` tensors, sample by sample and lead by lead."""
    return zip(*(tensor.flatten(0, 1)[:, None, None].unbind() for tensor in tensors), strict=True)


def _add(store: dict, key: object, value: NDArray) -> None:
    store[key] = store[key] + value if key in store else value


def _fss(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 - ratio(sums)
