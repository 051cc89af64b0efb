"""How well the structure of an optical image agrees with a SAR image of the same place, with chance taken out.

Edges of unrelated images have a cosine of about π/4, because both are positive; their centred correlation is 0. What
two images share merely by being a city or a lake is estimated from one of them shifted, and subtracted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science.edges import edge_strength, inside, local_deviation, radius, saturated

SCALES = (1.5, 3.0, 6.0)  # pixels: walls and ditches, fields, coasts and towns
LOOKS = 3  # pixels along the side of the squares over which backscatter is averaged against speckle
DARK = 0.05  # reflectance added before the logarithm, so that noise over water is no edge
LEAST_DB, LEAST_LOG = 0.01, 1e-3  # per pixel; below these slopes (and deviations) SAR and optical images are flat
TINY = 1e-6  # variance of a map in [0, 1) that is added to its own: the correlation with a flat map is 0
MIN_SHARE = 0.25  # of a map that must be measured for a score
N_SHIFTS, LEAST_SHIFT = 24, 1 / 3  # circular shifts of the null, and the least of them as a share of the sides
COSINE_CHANCE = math.pi / 4  # of the raw cosine, for white noise: that of two Rayleigh-distributed maps
BANDS = ((0.8, "excellent"), (0.7, "good"), (0.5, "moderate"))  # of the relative agreement, each from its bound up
LEAST_TRUTH = 0.01  # above chance that the truth must be for anything to be measured relative to it


def _spread_shifts() -> tuple[tuple[float, float], ...]:
    """Shares of height and width, spread evenly (the R₂ sequence of M. Roberts), all far from no shift at all."""
    plastic = 1.32471795724474602596  # the real root of x³ = x + 1
    found: list[tuple[float, float]] = []
    k = 0
    while len(found) < N_SHIFTS:
        k += 1
        u, v = k / plastic % 1, k / plastic**2 % 1
        if math.hypot(min(u, 1 - u), min(v, 1 - v)) >= LEAST_SHIFT:
            found.append((u, v))
    return tuple(found)


SHIFTS = _spread_shifts()


@dataclass(frozen=True)
class EdgeMaps:
    """Edges of a batch at each scale; the maps of larger scales are smaller."""

    maps: tuple[Tensor, ...]  # (B, h, w) in [0, 1), 0 where not valid
    valid: tuple[Tensor, ...]  # bool, of the same shapes
    naive: Tensor  # (B, h, w) plain slope of the first scale, of one channel, neither despeckled nor saturated


@dataclass(frozen=True)
class Agreement:
    """Scores of a batch; NaN where not ``known``."""

    known: Tensor  # (B,) bool: at least MIN_SHARE of the coarsest map was measured in both images
    score: Tensor  # (B,): clip(½ + ½(ρ − ρ₀), 0, 1), both averaged over scales; ½ is chance
    rho: Tensor  # (B, scales): centred correlation of the maps
    rho_null: Tensor  # (B, scales): its mean over the circular shifts
    cosine: Tensor  # (B,): raw cosine of the naive maps; chance is COSINE_CHANCE


def despeckled(s1: Tensor, *, size: int = LOOKS) -> Tensor:
    """``(B, C, H, W)`` dB of the mean power in squares around each pixel; of measured pixels only.

    Args:
        s1: ``(B, C, H, W)`` backscatter in dB, NaN where not measured. A square without any measured pixel gives NaN.
        size: odd, pixels along the side of a square; 1 changes nothing.
    """
    measured = s1.isfinite()
    power = torch.where(measured, 10 ** (s1.float() / 10), 0.0)

    def pool(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, size, stride=1, padding=size // 2)

    return 10 * torch.log10(pool(power) / pool(measured.float()))


def log_reflectance(optical: Tensor) -> Tensor:
    """``ln(max(ρ, 0) + DARK)``: edges count by contrast, as those of backscatter in dB do."""
    return (optical.float().clamp(min=0) + DARK).log()


def sar_edges(s1: Tensor) -> EdgeMaps:
    """Edges of VV and VH together.

    Args:
        s1: ``(B, 2, H, W)`` dB, NaN where not measured.

    Raises:
        UserError: the images are too small for the coarsest scale.
    """
    valid = s1.isfinite().all(1)
    return _edges(torch.where(valid[:, None], despeckled(s1), 0.0), torch.where(valid, s1[:, 0], 0.0), valid, LEAST_DB)


def optical_edges(optical: Tensor, valid: Tensor | None = None) -> EdgeMaps:
    """Edges of all bands together; differentiable.

    Args:
        optical: ``(B, C, H, W)`` reflectance.
        valid: ``(B, H, W)`` bool, where it was measured; where no band is NaN when None. Give the truth's for what a
            model made, so that its own NaN are seen and not left out.

    Raises:
        UserError: the images are too small for the coarsest scale.
    """
    valid = optical.isfinite().all(1) if valid is None else valid
    measured = torch.where(valid[:, None], optical, 0.0)
    return _edges(log_reflectance(measured), measured.mean(1), valid, LEAST_LOG)


def _edges(images: Tensor, naive: Tensor, valid: Tensor, least: float) -> EdgeMaps:
    masks = tuple(inside(valid, radius(sigma)) for sigma in SCALES)
    maps = tuple(
        saturated(edge_strength(images, sigma, least=least), mask, least=least)
        for sigma, mask in zip(SCALES, masks, strict=True)
    )
    return EdgeMaps(maps, masks, edge_strength(naive.detach()[:, None], SCALES[0], least=0.0))


def texture(images: Tensor, valid: Tensor, sigma: float, *, least: float) -> Tensor:
    """``(B, h, w)`` in [0, 1): local standard deviation, saturated as edges are; differentiable.

    Args:
        images: ``(B, C, H, W)`` dB or :func:`log_reflectance`, without NaN.
        valid: ``(B, H, W)``.
        sigma: of the Gaussian window, in pixels.
        least: deviation below which an image counts as flat.
    """
    return saturated(local_deviation(images, sigma, least=least), inside(valid, radius(sigma)), least=least)


def correlation(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """``(B,)`` centred correlation Σw(a − ā)(b − b̄)/√(…) of maps ``(B, h, w)`` in [0, 1); 0 for flat maps.

    Args:
        weight: ``(B, h, w)``, not negative, 0 where a map was not measured.
    """
    share = weight / weight.sum((-2, -1), keepdim=True).clamp(min=TINY)
    a = a - (share * a).sum((-2, -1), keepdim=True)
    b = b - (share * b).sum((-2, -1), keepdim=True)
    var_a, var_b = ((share * x.square()).sum((-2, -1)) + TINY for x in (a, b))
    return (share * a * b).sum((-2, -1)) / (var_a * var_b).sqrt()


@torch.no_grad()
def agreement(sar: EdgeMaps, optical: EdgeMaps) -> Agreement:
    """Scores of a batch of pairs from :func:`sar_edges` and :func:`optical_edges`; see :class:`Agreement`."""
    found, null = [], []
    for a, b, valid_a, valid_b in zip(sar.maps, optical.maps, sar.valid, optical.valid, strict=True):
        found.append(correlation(a, b, (valid_a & valid_b).float()))
        null.append(_null(a, b, valid_a, valid_b))
    rho, rho_null = torch.stack(found, -1), torch.stack(null, -1)
    score = (0.5 + 0.5 * (rho - rho_null).mean(-1)).clamp(0, 1)
    fine, coarse = ((sar.valid[i] & optical.valid[i]).float() for i in (0, -1))
    known = coarse.mean((-2, -1)) >= MIN_SHARE
    a, b = sar.naive, optical.naive
    dot, aa, bb = ((fine * product).sum((-2, -1)) for product in (a * b, a * a, b * b))
    cosine = dot / (aa * bb).sqrt().clamp(min=TINY**2)
    return Agreement(
        known,
        torch.where(known, score, torch.nan),
        torch.where(known[:, None], rho, torch.nan),
        torch.where(known[:, None], rho_null, torch.nan),
        torch.where(known, cosine, torch.nan),
    )


def _null(a: Tensor, b: Tensor, valid_a: Tensor, valid_b: Tensor) -> Tensor:
    """``(B,)`` mean correlation over ``SHIFTS`` of b, each over the pixels that are valid in both then."""
    height, width = a.shape[-2:]
    # Every sum that a correlation is made of is a product of one of three maps of each; one product gives them all.
    sums_a, sums_b = (torch.stack([m, x * m, x * x * m], 1) for x, m in ((a, valid_a.float()), (b, valid_b.float())))
    flat = sums_a.flatten(2)
    found = []
    for u, v in SHIFTS:
        rolled = sums_b.roll((round(u * height), round(v * width)), (-2, -1)).flatten(2)
        s = flat @ rolled.mT / rolled.shape[-1]
        n = s[:, 0, 0].clamp(min=TINY)
        mean_a, mean_b = s[:, 1, 0] / n, s[:, 0, 1] / n
        var_a, var_b = s[:, 2, 0] / n - mean_a.square(), s[:, 0, 2] / n - mean_b.square()
        covariance = s[:, 1, 1] / n - mean_a * mean_b
        found.append(covariance / ((var_a.clamp(min=0) + TINY) * (var_b.clamp(min=0) + TINY)).sqrt())
    return torch.stack(found).mean(0)


def relative_agreement(found: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(found − ½)/(truth − ½)`` of any shape: 0 is chance, 1 as much as the true image; NaN where that is at chance.

    Real, perfectly paired images score 0.54–0.79: what a grounded image can reach is its truth's score.
    """
    above = truth - 0.5
    return np.divide(found - 0.5, above, out=np.full(above.shape, np.nan), where=above >= LEAST_TRUTH)


def band(relative: float) -> str:
    """ "excellent" from 0.8 on, "good" from 0.7, "moderate" from 0.5, "poor" below; "unknown" for NaN."""
    if math.isnan(relative):
        return "unknown"
    return next((name for bound, name in BANDS if relative >= bound), "poor")
