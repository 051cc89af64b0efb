"""Coarse predictors made from the rain itself, and how often each pixel was measured."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def block_means(rain: NDArray, factor: int) -> NDArray[np.float32]:
    """``(…, h, w)`` mean over the measured pixels of each block of factor x factor of ``(…, H, W)``; NaN where none is.

    H and W are multiples of ``factor``. Sums are of 64 bits.
    """
    *lead, height, width = rain.shape
    blocks = rain.reshape(*lead, height // factor, factor, width // factor, factor)
    measured = np.isfinite(blocks)
    n_measured = measured.sum(axis=(-3, -1))
    total = np.where(measured, blocks, 0).sum(axis=(-3, -1), dtype=np.float64)
    return np.where(n_measured > 0, total / np.maximum(n_measured, 1), np.nan).astype(np.float32)


def measured_share(fields: Iterable[NDArray]) -> NDArray[np.float64]:
    """``(H, W)``: on which share of the days each pixel of ``(N, H, W)`` has a value; days without any don't count."""
    n_days, counts = 0, np.zeros(())
    for some in fields:
        measured = np.isfinite(some)
        n_days += int(measured.any(axis=(1, 2)).sum())
        counts = counts + measured.sum(axis=0)
    return counts / max(1, n_days)
