"""Scores of an ensemble of fields, pixel by pixel: what they add up to over days and pixels is the caller's.

Members lie in one stack ``(B, M, ...)``: B samples (days, windows), M members; the truth is ``(B, ...)``. All is
computed in float64. A pixel whose truth (or a member) is NaN, not measured, has NaN for a score, and no rank.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.core.errors import UserError


def fair_crps(members: Tensor, observed: Tensor) -> Tensor:
    """``(B, ...)`` float64: the continuous ranked probability score, as if of infinitely many members.

    mean|xᵢ − y| − Σᵢⱼ|xᵢ − xⱼ| / (2m(m − 1)), whose double sum over sorted members is 2 Σᵢ (2i − m − 1) x₍ᵢ₎. It has no
    bias from the number of members, so ensembles of different sizes compare. Ferro (2014), QJRMS 140.

    Args:
        members: ``(B, M, ...)`` with at least two members.
        observed: ``(B, ...)`` in the same units.

    Raises:
        ValueError: a single member.
    """
    m = members.shape[1]
    if m < 2:
        raise ValueError(f"{m} member has no spread: fair CRPS needs at least 2")
    return _error(members, observed) - _sorted_sum(members) / (m * (m - 1))


def crps(members: Tensor, observed: Tensor) -> Tensor:
    """``(B, ...)`` float64: the CRPS of the members' own step function, mean|xᵢ − y| − Σᵢⱼ|xᵢ − xⱼ| / (2m²).

    It charges an ensemble for being small; one member has its absolute error. Hersbach (2000), Weather Forecast. 15.

    Args:
        members, observed: as for :func:`fair_crps`.
    """
    return _error(members, observed) - _sorted_sum(members) / members.shape[1] ** 2


def threshold_weighted_crps(members: Tensor, observed: Tensor, threshold: float, *, fair: bool = True) -> Tensor:
    """``(B, ...)`` float64: the CRPS in which only what lies above ``threshold`` counts, ∫ₜ^∞ (F(x) − 1{y ≤ x})² dx.

    It is the CRPS of max(x, t): the chaining function of the weight 1{x ≥ t}. Gneiting and Ranjan (2011), J. Bus. Econ.
    Stat. 29; Allen, Ginsbourger and Ziegel (2023), SIAM/ASA J. Uncertain. Quantif. 11. Unlike the error on those pixels
    where much fell, it is proper: rain too often too heavy costs as well.

    Args:
        members, observed: as for :func:`fair_crps`.
        threshold: in their units.
        fair: as if of infinitely many members (:func:`fair_crps`), else :func:`crps`.
    """
    score = fair_crps if fair else crps
    return score(members.double().clamp(min=threshold), observed.double().clamp(min=threshold))


def _error(members: Tensor, observed: Tensor) -> Tensor:
    return (members.double() - observed.double()[:, None]).abs().mean(1)


def _sorted_sum(members: Tensor) -> Tensor:
    """½ Σᵢⱼ |xᵢ − xⱼ| by sorting."""
    m = members.shape[1]
    rank = torch.arange(1 - m, m, 2, dtype=torch.float64, device=members.device)
    return torch.einsum("m,bm...->b...", rank, members.sort(dim=1).values.double())


def ranks(members: Tensor, observed: Tensor, generator: torch.Generator) -> Tensor:
    """``(B, ...)`` int64: the truth's place among the members, 0 (below all) … M; −1 where something is NaN.

    Among members that equal it (dry pixels), its place is drawn: else all dry pixels would fall into one rank.
    Hamill and Colucci (1998), MWR 126.

    Args:
        members: ``(B, M, ...)``.
        observed: ``(B, ...)``.
        generator: draws the ties, on the device of the fields.
    """
    truth = observed[:, None]
    below, equal = (members < truth).sum(1), (members == truth).sum(1)
    drawn = torch.rand(observed.shape, generator=generator, device=observed.device, dtype=torch.float64)
    place = below + (drawn * (equal + 1)).long()
    return torch.where(observed.isnan() | members.isnan().any(1), -1, place)


def rank_histogram(places: Tensor, n_members: int) -> Tensor:
    """``(B, M + 1)`` int64: how often each rank came in each sample; entries of −1 in ``places`` are left out.

    Args:
        places: ``(B, ...)`` of :func:`ranks`.
        n_members: M.
    """
    found = places.new_zeros(len(places), n_members + 2)
    flat = (places + 1).flatten(1)
    return found.scatter_add_(1, flat, torch.ones_like(flat))[:, 1:]


def reliability_index(counts: NDArray) -> NDArray[np.float64]:
    """``(...)``: Σₖ |fₖ − 1/(M + 1)| of the rank histograms ``(..., M + 1)``, 0 when flat; NaN for empty ones.

    Delle Monache et al. (2006), J. Geophys. Res. 111. It is never 0, by chance.
    """
    counts = np.asarray(counts, dtype=float)
    n = counts.sum(-1, keepdims=True)
    share = np.divide(counts, n, out=np.full_like(counts, np.nan), where=n > 0)
    return np.abs(share - 1 / counts.shape[-1]).sum(-1)


def variance_and_error(members: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased variance of the members, and squared error of their mean; each ``(B, ...)`` float64.

    Args:
        members: ``(B, M, ...)`` with at least two members.
        observed: ``(B, ...)``.
    """
    mean = members.double().mean(1)
    return (members - mean[:, None]).square().sum(1) / (members.shape[1] - 1), (mean - observed).square()


def spread(variance: NDArray[np.float64], n_members: int) -> NDArray[np.float64]:
    """Root of the mean variance of the members times (m + 1)/m, which the error of a mean of m members should equal.

    The truth, if it is as one more member, differs from that mean by its own variance and 1/m of it. Fortin et al.
    (2014), J. Hydrometeor. 15.

    Args:
        variance: ``(...)``, the means over pixels of what :func:`variance_and_error` returns.
    """
    return np.sqrt((n_members + 1) / n_members * variance)


def block_means(fields: Tensor, size: int | None, valid: Tensor | None = None, *, min_share: float = 0.5) -> Tensor:
    """``(..., ⌈H/size⌉, ⌈W/size⌉)`` float64 means over the valid pixels of each block; NaN where they are too few.

    Take them of members and truth over the same ``valid`` pixels. Blocks at the end of an axis may be cut.

    Args:
        fields: ``(..., H, W)``.
        size: pixels along the side of a block; None: one block, the whole field, ``(..., 1, 1)``, for which one valid
            pixel is enough.
        valid: bool that broadcasts to ``fields``; where they are not NaN when None.
        min_share: of a whole block's pixels that must be valid.

    Raises:
        UserError: ``size`` is less than 1.
    """
    if size is not None and size < 1:
        raise UserError(f"The block size is {size} pixels, expected at least 1: use 1 for pixels, None for the field.")
    valid = ~fields.isnan() if valid is None else valid.expand(fields.shape)
    total = torch.where(valid, fields.double(), 0.0)
    weight = valid.double()
    if size is None:
        total, count = total.sum((-2, -1), keepdim=True), weight.sum((-2, -1), keepdim=True)
        return torch.where(count > 0, total / count, torch.nan)
    total, count = _block_sums(total, size), _block_sums(weight, size)
    enough = count >= max(min_share * size**2, 1)
    return torch.where(enough, total / count, torch.nan)


def _block_sums(fields: Tensor, size: int) -> Tensor:
    height, width = fields.shape[-2:]
    padded = F.pad(fields, (0, -width % size, 0, -height % size))
    return padded.unflatten(-1, (-1, size)).unflatten(-3, (-1, size)).sum((-3, -1))
