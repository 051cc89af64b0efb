"""Exact event scores: joint histograms of forecast level and observed class, and what follows from them.

A forecast of the model lies in [0, 1]; it is compared on grey levels, where "at least 219" has one meaning. (In
float32, 219/255 decoded by multiplication lies below itself for 120 of the 256 levels.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.stages.perceptual_unet.data import MISSING, THRESHOLDS
from nbhelpers.training.metrics import Metric, ratio

CLASSES = len(THRESHOLDS) + 1  # below the first threshold, between two, from the last on
Counts = NDArray[np.float64]  # (..., 4): hits, misses, false alarms, correct negatives


def to_levels(frames: Tensor) -> Tensor:
    """Grey levels uint8 of ``frames`` in [0, 1], rounded; 255 (missing) is never forecast."""
    return (frames * 255.0).round().clamp(0, MISSING - 1).to(torch.uint8)


def joint_histogram(forecast: Tensor, observed: Tensor) -> Tensor:
    """Counts of (observed class, forecast level) in every frame, as ``(B, T, 7, 256)`` int64.

    Args:
        forecast, observed: ``(B, T, H, W)`` uint8 grey levels; pixels with observed 255 are left out.
    """
    # One table look-up turns a level into the offset of its class; missing pixels go to a class of their own.
    table = torch.bucketize(torch.arange(256), torch.tensor(THRESHOLDS), right=True)
    table[MISSING] = CLASSES
    cells = (CLASSES + 1) * 256
    frames = torch.arange(observed[..., 0, 0].numel(), device=observed.device) * cells
    index = (table * 256).to(observed.device)[observed.int()] + forecast + frames.reshape(*observed.shape[:2], 1, 1)
    counts = torch.bincount(index.flatten(), minlength=frames.numel() * cells)
    return counts.reshape(*observed.shape[:2], CLASSES + 1, 256)[:, :, :CLASSES]


def max_pool(levels: Tensor, size: int) -> Tensor:
    """The largest level in each ``size``×``size`` block, missing ones aside; a block without a measurement is missing.

    Rows and columns that do not fill a block are left out, as is usual for pooled scores.
    """
    height, width = levels.shape[-2] // size * size, levels.shape[-1] // size * size
    blocks = levels[..., :height, :width].unflatten(-1, (-1, size)).unflatten(-3, (-1, size))
    measured = torch.where(blocks == MISSING, 0, blocks).amax((-3, -1))
    return torch.where((blocks == MISSING).all(-1).all(-2), MISSING, measured).to(torch.uint8)


def counts_at(histogram: NDArray[np.int64], threshold: int, forecast_threshold: int | None = None) -> Counts:
    """Hits, misses, false alarms and correct negatives of ``(..., 7, 256)`` histograms.

    Args:
        threshold: one of the grey levels in ``THRESHOLDS``; an event is a pixel at or above it.
        forecast_threshold: another level for the forecast (scores at matched bias).
    """
    first = THRESHOLDS.index(threshold) + 1
    level = threshold if forecast_threshold is None else forecast_threshold
    event, quiet = histogram[..., first:, :].sum(-2), histogram[..., :first, :].sum(-2)
    parts = [event[..., level:], event[..., :level], quiet[..., level:], quiet[..., :level]]
    return np.stack([part.sum(-1) for part in parts], axis=-1).astype(np.float64)


def _divide(numerator: Counts, denominator: Counts) -> Counts:
    return ratio(np.stack([numerator, denominator], -1))


def csi(counts: Counts) -> Counts:
    """Critical success index: hits / (hits + misses + false alarms)."""
    hits, misses, false_alarms, _ = np.moveaxis(counts, -1, 0)
    return _divide(hits, hits + misses + false_alarms)


def pod(counts: Counts) -> Counts:
    """Probability of detection: hits / (hits + misses)."""
    hits, misses, _, _ = np.moveaxis(counts, -1, 0)
    return _divide(hits, hits + misses)


def sucr(counts: Counts) -> Counts:
    """Success ratio, 1 − false-alarm ratio: hits / (hits + false alarms)."""
    hits, _, false_alarms, _ = np.moveaxis(counts, -1, 0)
    return _divide(hits, hits + false_alarms)


def frequency_bias(counts: Counts) -> Counts:
    """Forecast events per observed event: (hits + false alarms) / (hits + misses)."""
    hits, misses, false_alarms, _ = np.moveaxis(counts, -1, 0)
    return _divide(hits + false_alarms, hits + misses)


def hss(counts: Counts) -> Counts:
    """Heidke skill score: 2(ad − bc) / ((a + c)(c + d) + (a + b)(b + d)); 0 is chance, 1 perfect."""
    hits, misses, false_alarms, negatives = np.moveaxis(counts, -1, 0)
    return _divide(
        2 * (hits * negatives - misses * false_alarms),
        (hits + misses) * (misses + negatives) + (hits + false_alarms) * (false_alarms + negatives),
    )


def csi_mean(counts: Counts) -> Counts:
    """Mean CSI over the thresholds, for counts of all of them side by side in the last axis."""
    scores = csi(counts.reshape(*counts.shape[:-1], len(THRESHOLDS), 4))
    defined = ~np.isnan(scores)
    return _divide(np.where(defined, scores, 0.0).sum(-1), defined.sum(-1).astype(float))


def matched_level(histogram: NDArray[np.int64], threshold: int) -> int:
    """The forecast level at which the pooled frequency bias comes closest to 1."""
    pooled = histogram.reshape(-1, CLASSES, 256).sum(0)
    forecast_events = pooled.sum(0)[::-1].cumsum()[::-1]
    observed_events = pooled[THRESHOLDS.index(threshold) + 1 :].sum()
    return int(np.abs(forecast_events - observed_events).argmin())


SCORES: dict[str, tuple[Callable[[Counts], Counts], str]] = {
    "csi": (csi, "higher"),
    "pod": (pod, "higher"),
    "sucr": (sucr, "higher"),
    "bias": (frequency_bias, "one"),
    "hss": (hss, "higher"),
}


def event_metrics(histogram: NDArray[np.int64], labels: tuple[str, ...]) -> dict[str, Metric]:
    """All event scores of ``(groups, labels, 7, 256)`` histograms at full resolution."""
    metrics: dict[str, Metric] = {}
    at = {threshold: counts_at(histogram, threshold) for threshold in THRESHOLDS}
    for threshold, counts in at.items():
        for name, (score, better) in SCORES.items():
            metrics[f"{name}_{threshold}"] = Metric(counts, score, labels, better, f"grey level >= {threshold}")  # type: ignore[arg-type]
        level = matched_level(histogram, threshold)
        metrics[f"csi_matched_{threshold}"] = Metric(
            counts_at(histogram, threshold, level),
            csi,
            labels,
            "higher",
            f"forecast cut at level {level}, where bias is closest to 1",
        )
    metrics["csi_m"] = Metric(
        np.concatenate(list(at.values()), -1), csi_mean, labels, "higher", "mean over six thresholds"
    )
    return metrics


def pooled_metrics(histogram: NDArray[np.int64], labels: tuple[str, ...], size: int) -> dict[str, Metric]:
    """CSI of max-pooled frames, which forgives displacements of less than a block."""
    at = {threshold: counts_at(histogram, threshold) for threshold in THRESHOLDS}
    metrics = {
        f"csi_{threshold}_pool{size}": Metric(
            counts, csi, labels, "higher", f"max over {size}x{size} pixels >= {threshold}"
        )
        for threshold, counts in at.items()
    }
    joined = np.concatenate(list(at.values()), -1)
    metrics[f"csi_m_pool{size}"] = Metric(
        joined, csi_mean, labels, "higher", f"mean over six thresholds, {size}x{size} pixels"
    )
    return metrics
