"""FNO2d: a pointwise net and, between its layers, convolutions that act on the lowest Fourier modes only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbhelpers.core.errors import UserError

# The discrete Fourier transforms are matrix products with the few rows that are wanted. At the sizes and mode numbers
# of these models that is faster than the FFT of the whole spectrum, needs no cutting and pasting of spectra, and works
# alike at any size (benchmarks/fno_step.py). Complex numbers are pairs of real ones throughout: real parameters
# are what optimizers, safetensors, gradient scalers and autocast all know.


def full_precision(x: Tensor) -> Tensor:
    """float32 in place of a half precision: the spectrum of a smooth field spans more decades than those hold."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _angles(modes: Tensor, size: int) -> Tensor:
    """``2π k j / size`` of modes k and points j, ``(K, size)`` float64, reduced as integers: exact at any size."""
    points = torch.arange(size, device=modes.device)
    return (modes[:, None] * points % size).double() * (2 * math.pi / size)


def real_transform(size: int, modes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of the truncated real Fourier transform along one axis and of its inverse.

    Forward ``(2·K, size)``: the real parts of modes 0…K-1, then the imaginary ones. Inverse ``(size, 2·K)``: every mode
    but 0 and Nyquist stands for its conjugate as well. K is ``modes``, or as many as the axis has.
    """
    wavenumbers = torch.arange(min(modes, size // 2 + 1), device=like.device)
    angles = _angles(wavenumbers, size)
    cosine, sine = angles.cos(), angles.sin()
    twice = torch.where((wavenumbers == 0) | (2 * wavenumbers == size), 1.0, 2.0)[:, None]
    forward = torch.cat((cosine, -sine)) / size
    inverse = torch.cat((cosine * twice, -sine * twice)).T
    return forward.to(like), inverse.contiguous().to(like)


def kept_rows(size: int, modes: int) -> tuple[int, int]:
    """How many wavenumbers 0, 1, … and how many -1, -2, … of ``modes`` each an axis of ``size`` points has."""
    return min(modes, (size + 1) // 2), min(modes, size // 2)


def complex_transform(size: int, modes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of the truncated complex transform along one axis, ``(K·2, size·2)``, and of its inverse.

    Real and imaginary part alternate on both sides; the modes are 0, 1, …, then the negative ones up to -1.
    """
    up, down = kept_rows(size, modes)
    angles = _angles(torch.arange(-down, up, device=like.device).roll(up), size)
    cosine, sine = angles.cos(), angles.sin()
    rotation = torch.stack((torch.stack((cosine, sine), -1), torch.stack((-sine, cosine), -1)), 1)  # (K, 2, size, 2)
    forward = rotation.reshape(2 * len(angles), 2 * size)
    return (forward / size).to(like), forward.T.contiguous().to(like)


def mode_product(z: Tensor, weight: Tensor) -> Tensor:
    """A complex matrix for every mode: ``(K, rows, 2, C_in)``, ``(K, C_in, 2·C_out)`` → ``(K, rows, 2, C_out)``.

    The 2 is (real, imaginary); ``weight`` holds the real parts of the matrix beside the imaginary ones, so that one
    batched product gives all four combinations.
    """
    modes, rows, _, channels = z.shape
    both = torch.bmm(z.reshape(modes, 2 * rows, channels), weight).view(modes, rows, 2, 2, -1)
    real = both[:, :, 0, 0] - both[:, :, 1, 1]
    imaginary = both[:, :, 0, 1] + both[:, :, 1, 0]
    return torch.stack((real, imaginary), 2)


@dataclass(frozen=True)
class Transforms:
    """The four matrices that one grid needs; every layer of a model uses the same."""

    from_x: Tensor  # (2·kx, W), see real_transform
    to_x: Tensor  # (W, 2·kx)
    from_y: Tensor  # (ky·2, H·2), see complex_transform
    to_y: Tensor  # (H·2, ky·2)

    @classmethod
    def of(cls, x: Tensor, modes: tuple[int, int]) -> Transforms:
        """For fields ``(B, H, W, C)``."""
        like = full_precision(x[:0])
        return cls(
            *real_transform(x.shape[2], modes[1], like),
            *complex_transform(x.shape[1], modes[0], like),
        )


class SpectralConv2d(nn.Module):
    """Convolution given by one complex C × C matrix for each of the lowest modes; the other modes are dropped.

    Kept are ``kx = 0 … modes_x - 1`` and ``ky = -modes_y … modes_y - 1`` (Li et al. 2021, arXiv:2010.08895, with their
    choice of modes). Computed in float32 also under autocast; the result has the dtype of the input.
    """

    def __init__(self, width: int, modes: tuple[int, int]):
        super().__init__()
        self.modes = modes
        # Wavenumbers of y in the order 0, 1, …, -2, -1, those of x; last axis: real parts, then imaginary parts. As
        # small as in the paper: with weights that keep the variance, training starts from a rough function and ends
        # worse (decaying turbulence, 300 steps: relative L2 0.082 instead of 0.058).
        self.weight = nn.Parameter(torch.randn(2 * modes[0], modes[1], width, 2 * width) / width**2)

    def forward(self, x: Tensor, transforms: Transforms) -> Tensor:
        """``(B, H, W, C)`` → the same shape."""
        batch, height, width, channels = x.shape
        rows, columns = len(transforms.from_y) // 2, len(transforms.from_x) // 2
        weight = self.weight[:, :columns]
        if rows < len(weight):
            up, down = kept_rows(height, self.modes[0])
            weight = torch.cat((weight[:up], weight[len(weight) - down :]))
        with torch.autocast(x.device.type, enabled=False):
            z = torch.matmul(transforms.from_x, full_precision(x))  # (B, H, (2, kx), C)
            z = torch.matmul(transforms.from_y, z.view(batch, 2 * height, columns * channels))  # (B, (ky, 2), (kx, C))
            z = z.view(batch, rows, 2, columns, channels).permute(1, 3, 0, 2, 4)
            z = mode_product(
                z.reshape(rows * columns, batch, 2, channels), weight.reshape(rows * columns, channels, -1)
            )
            z = z.view(rows, columns, batch, 2, channels).permute(2, 0, 3, 1, 4)
            z = torch.matmul(transforms.to_y, z.reshape(batch, 2 * rows, columns * channels))
            z = torch.matmul(transforms.to_x, z.view(batch, height, 2 * columns, channels))
        return z.to(x.dtype)


def pointwise_mlp(n_in: int, hidden: int, n_out: int) -> nn.Sequential:
    """Two linear layers with a GELU between, at every point by itself."""
    return nn.Sequential(nn.Linear(n_in, hidden), nn.GELU(), nn.Linear(hidden, n_out))


def with_grid(x: Tensor) -> Tensor:
    """Fields ``(B, C, H, W)`` → ``(B, H, W, C + 2)``: the channels, then y / Ly and x / Lx in [0, 1)."""
    batch, _, height, width = x.shape
    y = torch.arange(height, device=x.device, dtype=x.dtype) / height
    columns = torch.arange(width, device=x.device, dtype=x.dtype) / width
    grid = torch.stack((y[:, None].expand(height, width), columns.expand(height, width)), -1)
    return torch.cat((x.permute(0, 2, 3, 1), grid.expand(batch, -1, -1, -1)), -1)


def checked_modes(modes: int | Sequence[int]) -> tuple[int, int]:
    """Modes along (y, x), at least one each."""
    along_y, along_x = (modes, modes) if isinstance(modes, int) else modes
    if along_y < 1 or along_x < 1:
        raise UserError(f"modes={modes} leaves no Fourier mode: set modes to 1 or more along each axis")
    return along_y, along_x


def check_fields(x: Tensor, channels_in: int) -> None:
    """The one way in which a batch can be unfit for an operator: its shape."""
    if x.ndim != 4 or x.shape[1] != channels_in:
        raise UserError(
            f"a batch has the shape {tuple(x.shape)}, but the model was built for (B, {channels_in}, H, W): "
            "stack input frames and parameters as channels, or build it with another channels_in"
        )


class FNO2d(nn.Module):
    """Fourier neural operator (Li et al. 2021, arXiv:2010.08895); runs at any resolution, whatever it was trained at.

    Lifting by a pointwise MLP; ``layers`` times ``x ← gelu(K x + W x + b)`` with the spectral convolution K
    and the pointwise W (no gelu in the last); projection by a pointwise MLP; both MLPs have ``2 · width`` hidden
    channels. The function is that of ``neuralop.models.FNO`` without its channel MLP (tests/test_operators.py).

    Args:
        channels_in, channels_out: fields in and out; frames and parameters are channels.
        width: channels between.
        modes: kept Fourier modes of each sign along y, and along x; one number or (y, x). A grid that has fewer keeps
            all it has.
        layers: blocks.
        grid: append the coordinates of each point to the input. Without them, on a periodic box, a shifted input gives
            the shifted output.
        padding: fraction of the height and width that is put as zeros on each side while the blocks act, for domains
            that are not periodic.

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
        grid: bool = True,
        padding: float = 0.0,
    ):
        super().__init__()
        self.channels_in, self.grid, self.padding, self.modes = channels_in, grid, padding, checked_modes(modes)
        self.lifting = pointwise_mlp(channels_in + 2 * grid, 2 * width, width)
        self.spectral = nn.ModuleList(SpectralConv2d(width, self.modes) for _ in range(layers))
        self.skip = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.projection = pointwise_mlp(width, 2 * width, channels_out)

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return f"grid={self.grid}, padding={self.padding}"

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels_in, H, W)`` → ``(B, channels_out, H, W)``."""
        check_fields(x, self.channels_in)
        height, width = x.shape[-2:]
        top, left = round(self.padding * height), round(self.padding * width)
        x = with_grid(x) if self.grid else x.permute(0, 2, 3, 1).contiguous()
        x = self.lifting(x)
        if top or left:
            x = F.pad(x, (0, 0, left, left, top, top))
        transforms = Transforms.of(x, self.modes)
        for index, (spectral, skip) in enumerate(zip(self.spectral, self.skip, strict=True)):
            x = spectral(x, transforms) + skip(x)
            if index + 1 < len(self.skip):
                x = F.gelu(x)
        x = self.projection(x[:, top : top + height, left : left + width])
        return x.permute(0, 3, 1, 2).contiguous()
