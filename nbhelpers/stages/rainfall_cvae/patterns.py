"""Scores of the pattern beyond the single pixel: fractions of events in squares, and the power of fine scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science.fractions import fss_sums, rapsd, rapsd_wavelengths
from nbhelpers.stages.rainfall_cvae.layout import WET
from nbhelpers.training.metrics import Metric, ratio

Sums = NDArray[np.float64]


def windows(factor: int) -> tuple[int, ...]:
    """Sides of the FSS's squares in pixels: a pixel, a coarse cell, four of them."""
    return tuple(dict.fromkeys((1, factor, 4 * factor)))


def octaves(shape: Sequence[int], factor: int) -> dict[str, Tensor]:
    """Which entries of the RAPSD are finer than the predictors can hold, by octave of the wavelength.

    2·factor pixels are two coarse cells, the shortest wave of the coarse grid.
    """
    wavelength = rapsd_wavelengths(shape)
    found: dict[str, Tensor] = {}
    longest: float = 2 * factor
    while longest > 2:
        shortest = max(2, longest / 2)
        inside = (wavelength >= shortest) & (wavelength < longest)
        if inside.any():
            found[f"{shortest:g}-{longest:g} px"] = inside
        longest = shortest
    return found


def pattern_sums(members: Tensor, observed: Tensor, land: Tensor, p95: float, factor: int) -> dict[str, Tensor]:
    """``fss_…`` ``(B, windows, 2)`` and ``power`` ``(B, octaves, 2)`` of members ``(B, K, H, W)`` and their truth."""
    valid = land & ~observed.isnan()
    sums = {}
    for name, mm in (("fss_p95", p95), ("fss_1", WET)):
        # The share of members that reach the level; sea has no events, in either.
        chance = torch.where(valid, (members >= mm).double().mean(1), 0.0)
        event = torch.where(valid, (observed >= mm).double(), 0.0)
        sums[name] = torch.stack([fss_sums(chance, event, size, dtype=torch.float32) for size in windows(factor)], 1)
    power = [rapsd(members, valid=valid[:, None]).mean(1), rapsd(observed, valid=valid)]
    bands = octaves(observed.shape[-2:], factor).values()
    if bands:
        sums["power"] = torch.stack([torch.stack([one[:, band].sum(-1) for one in power], -1) for band in bands], 1)
    return sums


def pattern_metrics(stacked: Callable[[str], Sums], shape: Sequence[int], p95: float, factor: int) -> dict[str, Metric]:
    """``fss_p95`` and ``fss_1`` (1 mm/day) by size of the square, ``rapsd_ratio`` by octave of the wavelength.

    FSS is that of the probability, the share of members at or above the level, and not the mean FSS of the members:
    Σ(P_f − P_o)² is then a Brier score of neighbourhood probabilities, which honest spread does not make worse, while
    each member by itself pays twice for rain that it has put elsewhere, and blurred ones would win. Schwartz et al.
    (2010), Weather Forecast. 25; Duc, Saito and Seko (2013), Tellus A 65. Power is that of single members: their
    mean is smooth. It is not tapered towards the edges, which would double the scatter of so small a domain; its jumps
    between opposite edges and at coasts, alike in both, leave bilinear rain some 0.2 of the observed power.

    Args:
        stacked: the sums of a name over groups, ``(groups, labels, 2)``.
        shape: (H, W).
    """
    squares = tuple(f"{size} px" for size in windows(factor))
    metrics = {
        name: Metric(stacked(name), _skill, squares, "higher", f"share of members >= {mm:.3g} mm/day")
        for name, mm in (("fss_p95", p95), ("fss_1", WET))
    }
    if labels := tuple(octaves(shape, factor)):
        what = f"power of single members / observed, wavelengths < {2 * factor} px, sea as 0"
        metrics["rapsd_ratio"] = Metric(stacked("power"), ratio, labels, "one", what)
    return metrics


def _skill(sums: Sums) -> Sums:
    return 1.0 - ratio(sums)
