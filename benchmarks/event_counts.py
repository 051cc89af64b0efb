"""Exact event counts at six thresholds: one joint histogram of grey levels against ``numpy.histogram2d``."""

from __future__ import annotations

import numpy as np
import torch
from side_by_side import record, side_by_side

from nbhelpers.stages.perceptual_unet.contingency import counts_at, joint_histogram
from nbhelpers.stages.perceptual_unet.data import THRESHOLDS

torch.set_num_threads(1)
rng = np.random.default_rng(0)
forecast, observed = (torch.from_numpy(rng.integers(0, 255, (1, 12, 384, 384), dtype=np.uint8)) for _ in range(2))


def joint() -> np.ndarray:
    histogram = joint_histogram(forecast, observed).numpy()
    return np.stack([counts_at(histogram, threshold).sum((0, 1)) for threshold in THRESHOLDS])


def by_histogram2d() -> np.ndarray:
    rows = []
    x, y = observed.numpy().ravel(), forecast.numpy().ravel()
    for threshold in THRESHOLDS:
        table, _, _ = np.histogram2d(x >= threshold, y >= threshold, bins=2, range=[[0, 1], [0, 1]])
        rows.append([table[1, 1], table[1, 0], table[0, 1], table[0, 0]])
    return np.array(rows)


assert (joint() == by_histogram2d()).all()
seconds = side_by_side({"joint_histogram": joint, "histogram2d": by_histogram2d})
record(
    "event_counts",
    {
        "what": "hits, misses, false alarms, correct negatives at 6 thresholds of 12 frames of 384 x 384, one thread",
        "seconds": seconds,
        "ratio": seconds["histogram2d"] / seconds["joint_histogram"],
    },
)
