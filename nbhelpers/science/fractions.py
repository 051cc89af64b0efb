"""How alike two rain fields are beyond the single pixel: fractions of events in squares, and power by wavelength."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science import spectra


def fss_sums(
    forecast: Tensor, observed: Tensor, size: int, *, valid: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """``(..., 2)``: numerator and denominator of 1 − FSS, the fractions skill score, which add up over fields.

    FSS = 1 − Σ(P_f − P_o)²/(ΣP_f² + ΣP_o²) with P the share of event pixels in a square of ``size`` pixels around each
    pixel; beyond the field, as where nothing was measured, there are no events. Roberts and Lean (2008), MWR 136. With
    f the share of event pixels, a forecast of events at random has about f at size 1, and one that says f everywhere
    ½ + f/2, from which on a forecast is called useful.

    Args:
        forecast, observed: ``(..., H, W)`` bool, event or not.
        size: pixels along the side of the square.
        valid: bool that broadcasts to the fields; all pixels when None.
        dtype: of the sums; float32 is exact to six digits and takes half the time.

    Raises:
        UserError: ``size`` is less than 1.
    """
    if size < 1:
        raise UserError(f"The squares of an FSS have {size} pixels along a side: set the size to 1 or more.")
    if valid is not None:
        forecast, observed = forecast & valid, observed & valid
    # The padding of an even square is one pixel longer at its end, so that every square lies where its partner does.
    pad = ((size - 1) // 2, size // 2) * 2

    def fraction(events: Tensor) -> Tensor:
        images = F.pad(events.to(dtype), pad)
        pooled = F.avg_pool2d(images.reshape(-1, 1, *images.shape[-2:]), size, stride=1)
        return pooled.reshape(events.shape)

    forecast_fraction, observed_fraction = fraction(forecast), fraction(observed)
    difference = (forecast_fraction - observed_fraction).square().sum((-2, -1))
    return torch.stack([difference, (forecast_fraction.square() + observed_fraction.square()).sum((-2, -1))], -1)


def rapsd(fields: Tensor, *, valid: Tensor | None = None, lengths: spectra.Lengths = None) -> Tensor:
    """``(..., n)`` float64: radially averaged power spectral density of fields, entry k at k waves along the long side.

    The mean of |F(k)|²/(H·W) over the modes whose wavenumber rounds to k, F the plain discrete Fourier transform; k = 0
    (the mean of the field) to the last below half the long side. There is no window: both fields of a ratio must have
    the same edges, and pixels that were not measured are 0 in both.

    Args:
        fields: ``(..., H, W)``; NaN counts as 0.
        valid: bool that broadcasts to ``fields``; elsewhere they are taken as 0. Give members the truth's.
        lengths: of the sides, as in :mod:`~nbhelpers.science.spectra`; None for square pixels. (pysteps' function of
            this name counts waves per side, whichever its length: that is ``lengths=(1, 1)``.)
    """
    shape = fields.shape[-2:]
    measured = ~fields.isnan() if valid is None else valid & ~fields.isnan()
    fields = torch.where(measured, fields.double(), 0.0)
    n_shells = (max(shape) - 1) // 2
    energy = spectra.shell_energy(fields, lengths=lengths, n_shells=n_shells)
    modes = spectra.modes_per_shell(shape, lengths=lengths, n_shells=n_shells).to(fields.device)
    return (energy * shape.numel() / modes)[..., :-1]


def rapsd_wavelengths(shape: Sequence[int]) -> Tensor:
    """``(n,)`` float64 wavelengths in pixels of the entries of :func:`rapsd` for square pixels; the first is infinite.

    Args:
        shape: (H, W) of the fields.
    """
    side = max(shape)
    return side / torch.arange((side - 1) // 2 + 1, dtype=torch.float64)
