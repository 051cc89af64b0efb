"""The same Fourier series on other points."""

from __future__ import annotations

import torch
from torch import Tensor


def resample(field: Tensor, size: tuple[int, int]) -> Tensor:
    """``(..., H, W) -> (..., *size)``: a periodic field on other points, without what either grid lacks.

    Modes at and beyond the Nyquist wavenumber of the coarser grid are cut off; on the same grid nothing is.
    """
    had = (field.shape[-2], field.shape[-1])
    if had == size:
        return field
    spectrum = torch.fft.rfft2(field, norm="forward")
    high, wide = ((min(pair) - 1) // 2 for pair in zip(had, size, strict=True))  # the highest modes below Nyquist
    after = spectrum.new_zeros(*field.shape[:-2], size[0], size[1] // 2 + 1)
    after[..., : high + 1, : wide + 1] = spectrum[..., : high + 1, : wide + 1]
    after[..., size[0] - high :, : wide + 1] = spectrum[..., had[0] - high :, : wide + 1]
    return torch.fft.irfft2(after, s=size, norm="forward")
