"""What a prediction must fulfil whatever the network thinks: no divergence, the mean that it had."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbhelpers.core.errors import UserError


def _wavenumbers(size: int, length: float, *, half: bool, like: Tensor) -> Tensor:
    """Angular wavenumbers of an axis for first derivatives.

    0 at the Nyquist mode of an even size: ``cos(π j)`` has no slope at the points of its grid, nor a sine beside it.
    """
    frequencies = torch.fft.rfftfreq(size) if half else torch.fft.fftfreq(size)
    modes = (frequencies.double() * size).round()
    modes[modes.abs() * 2 == size] = 0.0
    return (2 * math.pi / length * modes).to(like)


def leray(velocity: Tensor, lengths: tuple[float, float]) -> Tensor:
    """The divergence-free part of a periodic velocity field: Helmholtz-Leray projection.

    ``û ← û - k (k · û) / |k|²`` for every wavenumber k; the mean stays. The divergence that vanishes is the spectral
    one, ``irfft(i k · û)``, with no derivative at the Nyquist modes of even sizes. A field without divergence
    comes back as it was, so projecting twice is projecting once.

    Args:
        velocity: ``(…, 2, H, W)``, first u along x (columns), then v along y (rows), in units of one another: if the
            channels were normalised by different numbers, undo that first. Half precisions are computed in float32.
        lengths: sides ``(Ly, Lx)`` of the box.

    Returns:
        ``(…, 2, H, W)`` in the dtype of ``velocity``.

    Raises:
        UserError: there are not two channels, or a side of the box has no length.
    """
    if velocity.ndim < 3 or velocity.shape[-3] != 2:
        raise UserError(
            f"the projection got a tensor of shape {tuple(velocity.shape)} and needs a velocity (…, 2, H, W) with "
            "channels u, v: hand over those two channels alone"
        )
    if min(lengths) <= 0:
        raise UserError(f"the box has the sides (Ly, Lx) = {tuple(lengths)}: both must be above 0")
    height, width = velocity.shape[-2:]
    with torch.autocast(velocity.device.type, enabled=False):
        full = velocity.float() if velocity.dtype in (torch.float16, torch.bfloat16) else velocity
        ky = _wavenumbers(height, lengths[0], half=False, like=full)[:, None]
        kx = _wavenumbers(width, lengths[1], half=True, like=full)
        square = kx**2 + ky**2
        u, v = torch.fft.rfft2(full).unbind(-3)
        potential = (kx * u + ky * v) / torch.where(square > 0, square, 1.0)  # k · û is 0 where k is
        projected = torch.stack((u - kx * potential, v - ky * potential), -3)
        return torch.fft.irfft2(projected, s=(height, width)).to(velocity.dtype)


def keep_mean(prediction: Tensor, reference: Tensor) -> Tensor:
    """Give each channel of the prediction the spatial mean that it has in the reference, e.g. in the last input frame.

    Mass in a closed or periodic box, momentum in an unforced one, do not change with time.

    Args:
        prediction, reference: ``(…, C, H, W)``.

    Returns:
        ``(…, C, H, W)`` in the dtype of ``prediction``.

    Raises:
        UserError: the two differ in shape.
    """
    if prediction.shape != reference.shape:
        raise UserError(
            f"the prediction has the shape {tuple(prediction.shape)} and the reference {tuple(reference.shape)}: "
            "hand over the same channels of both"
        )
    wanted, had = (field.to(torch.promote_types(field.dtype, torch.float32)) for field in (reference, prediction))
    return (had + (wanted - had).mean((-2, -1), keepdim=True)).to(prediction.dtype)
