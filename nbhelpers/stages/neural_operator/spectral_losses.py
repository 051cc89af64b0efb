"""Errors of power spectra: every channel has its own spectrum, and phases do not count.

Channels are never averaged before the transform, where u and −u would cancel. Energies are sums over shells of true
wavenumber up to the resolved cut-off (:mod:`nbhelpers.science.spectra`), floored at 1e-7 of the truth's total of that
frame and channel, the mean left out: below it, float32 holds noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science import spectra
from nbhelpers.stages.neural_operator.field_losses import SILENT, check_fields, mean_of

FLOOR = 1e-7  # of the truth's total energy
LARGEST_RATIO = 1e18  # of energies whose square float32 still holds
FEW_POINTS = 32


def spectrum_error(
    prediction: Tensor,
    target: Tensor,
    *,
    lengths: spectra.Lengths = None,
    window: spectra.Window = "none",
    valid: Tensor | None = None,
    band: str | None = None,
    dims: int = 2,
) -> Tensor:
    """Squared log-spectral distance: the mean of (ln Ê_n − ln E_n)² over shells, channels, frames and batch.

    E_n = Σ_{shell n} |f̂(k)|². The same in every unit of the fields; a gain g on the prediction gives (2 ln g)². Log-
    spectral distance: Gray and Markel (1976), IEEE TASSP 24. :func:`lsd` states it in dB.

    Args:
        prediction, target: ``(B, T, C, H, W)`` in model units, or ``(B, T, C, D, H, W)`` with ``dims=3``.
        lengths: of the box, rows first; the numbers of points when None.
        window: "hann" for fields that are not periodic; their weighted mean is removed first.
        valid: ``(B, H, W)`` bool, False inside obstacles: both fields become their mean over the valid points there,
            and that mean is removed.
        band: "low", "mid" or "high" third of the shells; all when None.

    Returns:
        float32 scalar (float64 for float64 fields); 0 if no channel has a spectrum. Where the prediction lies below
        the floor, its error is that of the floor, and a gradient still lifts it.

    Raises:
        UserError: the shapes do not fit, or the band is unknown.
    """
    squares, counted = shell_log_errors(
        prediction, target, lengths=lengths, window=window, valid=valid, band=band, dims=dims
    )
    return mean_of(squares.mean(-1), counted)


def shell_log_errors(
    prediction: Tensor,
    target: Tensor,
    *,
    lengths: spectra.Lengths = None,
    window: spectra.Window = "none",
    valid: Tensor | None = None,
    band: str | None = None,
    dims: int = 2,
) -> tuple[Tensor, Tensor]:
    """``(B, T, C, shells)`` values of (ln Ê_n − ln E_n)², and ``(B, T, C)`` bool, which channels have a spectrum.

    Arguments as :func:`spectrum_error`, which is the mean of them.
    """
    guess, truth, floor, counted = _energies(prediction, target, lengths, window, valid, band, dims)
    return (_log_above(guess, floor) - _log_above(truth, floor)).square(), counted


def lsd(error: Tensor) -> Tensor:
    """Log-spectral distance in dB, √mean (10 log₁₀ Ê_n/E_n)², of a mean of squared errors of ln E."""
    return 10 / math.log(10) * error.sqrt()


def relative_log(
    prediction: Tensor,
    target: Tensor,
    *,
    lengths: spectra.Lengths = None,
    window: spectra.Window = "none",
    valid: Tensor | None = None,
    dims: int = 2,
) -> Tensor:
    """Older definition, to compare with earlier runs: Σ_n (ln Ê_n − ln E_n)² / Σ_n (ln E_n)², the mean over channels.

    **Its value depends on the unit of the fields**, since ln E does: one error scores 0.9 or 0.03. Train and compare
    by :func:`spectrum_error`. Arguments as there.
    """
    guess, truth, floor, counted = _energies(prediction, target, lengths, window, valid, None, dims)
    log_truth = _log_above(truth, floor)
    squares = (_log_above(guess, floor) - log_truth).square().sum(-1)
    scale = log_truth.square().sum(-1)
    return mean_of(squares / scale.clamp(min=1e-6), counted)  # all energies may be 1, the logarithms then 0


def spectral_power(
    prediction: Tensor,
    target: Tensor,
    *,
    lengths: spectra.Lengths = None,
    window: spectra.Window = "none",
    valid: Tensor | None = None,
    dims: int = 2,
) -> Tensor:
    """Binned spectral power loss: the mean of (1 − (Ê_n + ε)/(E_n + ε))² over shells, channels, frames and batch.

    Bins are the shells, all of weight 1, and ε is the floor. An energy that is missing costs at most 1, one that is
    too large has no bound, unlike :func:`spectrum_error`. Chakraborty, Mohan, Maulik (2025), arXiv:2502.00472.
    Ratios beyond 1e18 count as that, without a gradient. Arguments as :func:`spectrum_error`.
    """
    guess, truth, floor, counted = _energies(prediction, target, lengths, window, valid, None, dims)
    ratio = ((guess + floor) / (truth + floor)).clamp(max=LARGEST_RATIO)
    return mean_of((1 - ratio).square().mean(-1), counted)


def spectrum_note(shape: tuple[int, ...]) -> str | None:
    """What to tell about fields of ``shape`` (H, W) or (D, H, W) whose spectrum has few shells; None if it has not."""
    if min(shape) >= FEW_POINTS:
        return None
    return (
        f"The spectrum of {' x '.join(map(str, shape))} points has few shells of wavenumbers, "
        f"{spectra.resolved_shells(shape)}: below {FEW_POINTS} points a side, bands are coarse and "
        "their energies scatter from frame to frame."
    )


def shell_energies(
    field: Tensor,
    *,
    lengths: spectra.Lengths = None,
    window: spectra.Window = "none",
    valid: Tensor | None = None,
    dims: int = 2,
) -> Tensor:
    """``(B, T, C, shells + 2)`` as :func:`spectra.shell_energy`, of what all errors, scores and figures look at.

    The (weighted) mean is taken off first, and obstacles hold none of the rest. Arguments as :func:`spectrum_error`.
    """
    if valid is not None or window != "none":  # else the mean is no shell's
        field = fluctuation(field, valid, window=window, dims=dims)
    return spectra.shell_energy(field, dims=dims, lengths=lengths, window=window)


def fluctuation(field: Tensor, valid: Tensor | None, *, window: spectra.Window = "none", dims: int = 2) -> Tensor:
    """``(B, T, C, …)`` less the mean of each frame and channel, weighted by the window; 0 inside obstacles."""
    field = spectra.at_least_float32(field)
    axes = tuple(range(-dims, 0))
    weights = torch.ones_like(field[:, :1, :1]) if valid is None else valid[:, None, None].to(field)
    if window == "hann":
        weights = weights * spectra.hann(field.shape[-dims:]).to(field)
    field = torch.where(weights > 0, field, 0.0)
    mean = (field * weights).sum(axes, keepdim=True) / weights.sum(axes, keepdim=True).clamp(min=1e-12)
    return torch.where(weights > 0, field - mean, 0.0)


def _energies(
    prediction: Tensor,
    target: Tensor,
    lengths: spectra.Lengths,
    window: spectra.Window,
    valid: Tensor | None,
    band: str | None,
    dims: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(B, T, C, shells)`` energies of prediction and truth, ``(B, T, C, 1)`` floor, ``(B, T, C)`` which count."""
    check_fields(prediction, target, dims)
    guess, truth = (
        shell_energies(field, lengths=lengths, window=window, valid=valid, dims=dims) for field in (prediction, target)
    )
    total = truth.detach()[..., 1:].sum(-1)
    counted = total > SILENT * (1 + truth.detach()[..., 0])  # a constant leaves rounding in its other modes
    floor = FLOOR * torch.where(counted, total, 1.0)[..., None]
    shells = _shells_of(band, truth.shape[-1] - 2)
    return guess[..., 1:-1][..., shells], truth[..., 1:-1][..., shells], floor, counted


def _shells_of(band: str | None, n_shells: int) -> slice:
    if band is None:
        return slice(None)
    if band not in spectra.BANDS or n_shells < len(spectra.BANDS):
        raise UserError(
            f"The band {band!r} of a spectrum of {n_shells} shells was asked for, but bands are "
            f"{', '.join(spectra.BANDS)} and need {len(spectra.BANDS)} shells: name one of them, or use larger fields."
        )
    return spectra.bands(n_shells)[band]


def _log_above(energy: Tensor, floor: Tensor) -> Tensor:
    """ln max(E, floor), with the gradient 1/max(E, floor): one of 0 would leave a missing shell missing."""
    return (energy + (floor - energy).clamp(min=0).detach()).log()
