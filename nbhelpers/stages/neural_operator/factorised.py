"""FFNO2d: the Fourier neural operator with one axis at a time, so that many layers stay small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nbhelpers.stages.neural_operator.fno import (
    check_fields,
    checked_modes,
    full_precision,
    mode_product,
    pointwise_mlp,
    real_transform,
    with_grid,
)


class AxisConv(nn.Module):
    """One complex C × C matrix for each of the lowest modes along x, another set along y; the two are summed.

    Tran et al. 2023, eq. 7. In float32 also under autocast; the result has the dtype of the input.
    """

    def __init__(self, width: int, modes: tuple[int, int]):
        super().__init__()
        self.along_y = nn.Parameter(torch.randn(modes[0], width, 2 * width) / width**2)  # real parts, imaginary parts
        self.along_x = nn.Parameter(torch.randn(modes[1], width, 2 * width) / width**2)  # as small as in FNO2d

    def forward(self, x: Tensor, transforms: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """``(B, H, W, C)`` → the same shape; transforms from and to y, from and to x."""
        batch, height, width, channels = x.shape
        from_y, to_y, from_x, to_x = transforms
        ky, kx = len(from_y) // 2, len(from_x) // 2
        with torch.autocast(x.device.type, enabled=False):
            fields = full_precision(x)
            z = torch.matmul(from_x, fields).view(batch * height, 2, kx, channels).permute(2, 0, 1, 3)
            z = mode_product(z, self.along_x[:kx]).permute(1, 2, 0, 3)
            out = torch.matmul(to_x, z.reshape(batch, height, 2 * kx, channels))
            z = torch.matmul(from_y, fields.reshape(batch, height, width * channels))
            z = z.view(batch, 2, ky, width, channels).permute(2, 0, 3, 1, 4)
            z = mode_product(z.reshape(ky, batch * width, 2, channels), self.along_y[:ky])
            z = z.view(ky, batch, width, 2, channels).permute(1, 3, 0, 2, 4)
            z = torch.matmul(to_y, z.reshape(batch, 2 * ky, width * channels))
            out = out + z.view(batch, height, width, channels)
        return out.to(x.dtype)


class FFNO2d(nn.Module):
    """Factorised Fourier neural operator (Tran et al. 2023, arXiv:2111.13802), for any resolution.

    ``layers`` times ``x ← x + W₂ relu(W₁ K x)`` with K the spectral convolution along each axis; the hidden layer has
    ``4 · width`` channels. Here without the paper's weight normalisation, and projected as by FNO2d.

    Args:
        channels_in, channels_out: fields in and out; frames and parameters are channels.
        width: channels between.
        modes: kept Fourier modes along each axis, one number or (y, x); a grid that has fewer keeps all it has.
        layers: blocks; because of the residual connection deep stacks train.
        shared: one set of spectral weights for all layers, as the paper does for Navier-Stokes.
        grid: append the coordinates of each point; without them the model commutes with shifts of a periodic box.

    Raises:
        UserError: no mode is left, or a batch has other channels than ``channels_in``.
    """

    def __init__(
        self,
        *,
        channels_in: int,
        channels_out: int,
        width: int,
        modes: int | Sequence[int],
        layers: int = 4,
        shared: bool = True,
        grid: bool = True,
    ):
        super().__init__()
        self.channels_in, self.layers, self.grid, self.modes = channels_in, layers, grid, checked_modes(modes)
        self.lifting = nn.Linear(channels_in + 2 * grid, width)
        self.spectral = nn.ModuleList(AxisConv(width, self.modes) for _ in range(1 if shared else layers))
        self.feed_forward = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)) for _ in range(layers)
        )
        self.projection = pointwise_mlp(width, 2 * width, channels_out)

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return f"grid={self.grid}"

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels_in, H, W)`` → ``(B, channels_out, H, W)``."""
        check_fields(x, self.channels_in)
        x = self.lifting(with_grid(x) if self.grid else x.permute(0, 2, 3, 1).contiguous())
        like = full_precision(x[:0])
        transforms = (
            *real_transform(x.shape[1], self.modes[0], like),
            *real_transform(x.shape[2], self.modes[1], like),
        )
        for index, feed_forward in enumerate(self.feed_forward):
            x = x + feed_forward(self.spectral[index % len(self.spectral)](x, transforms))
        return self.projection(x).permute(0, 3, 1, 2).contiguous()
