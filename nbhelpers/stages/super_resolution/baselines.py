"""Enlargements that need no network: bicubic, Lanczos, a linear filter, and each of them projected.

All map an LR image ``(B, C, H, W)`` to an HR image ``(B, C, H*s, W*s)``. LR pixel i is centred on its block of s HR
pixels, as :class:`~nbhelpers.science.degradation.Degradation` makes it. The projected ones are the bar: the projection
alone recovers most of what a sharper image gains in PSNR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.core.errors import UserError
from nbhelpers.science.degradation import Degradation
from nbhelpers.science.spectra import at_least_float32

Enlargement = Callable[[Tensor], Tensor]
LOBES = 3  # of the Lanczos kernel: it reaches so many LR pixels to each side


def bicubic(lr: Tensor, scale: int, *, a: float = -0.75) -> Tensor:
    """Cubic convolution (Keys 1981, IEEE Trans. Acoust. 29) with the slope ``a`` of the kernel at distance 1.

    −0.75 is PyTorch's and OpenCV's, −0.5 Keys's and Pillow's: on real patches they differ by some 0.15 dB. Beyond an
    edge −0.75 repeats the last pixel, −0.5 takes the mean over the pixels there are; as PyTorch and Pillow do.
    """
    if a not in (-0.75, -0.5):
        raise UserError(f"The bicubic kernel a={a} is unknown: set `a` to -0.75 (PyTorch) or -0.5 (Pillow).")
    # Enlarging, there is nothing to filter before sampling: what else antialias changes is the kernel.
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False, antialias=a == -0.5)


def lanczos(lr: Tensor, scale: int) -> Tensor:
    """Windowed sinc, sinc(x) sinc(x/3) for |x| < 3 (Duchon 1979, J. Appl. Meteorol. 18), weights summing to 1.

    Pillow's kernel; beyond an edge the image goes on symmetrically.
    """
    phase = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5  # of HR pixels in their LR pixel
    distance = phase[:, None] - torch.arange(-LOBES, LOBES + 1)
    kernel = torch.sinc(distance) * torch.sinc(distance / LOBES) * (distance.abs() < LOBES)
    kernel = kernel / kernel.sum(1, keepdim=True)
    weight = torch.einsum("iu,jv->ijuv", kernel, kernel).flatten(0, 1)[:, None]
    return _block_filter(lr, weight.repeat(lr.shape[1], 1, 1, 1), scale)


def projected(enlarge: Enlargement, degradation: Degradation) -> Enlargement:
    """The same enlargement with the least correction that makes it degrade to its input."""
    return lambda lr: degradation.project(enlarge(lr), lr)


@dataclass(frozen=True)
class LinearFilter:
    """Ridge regression from the LR pixels about a block to the s x s HR pixels of the block, the same everywhere.

    With p the n x n LR pixels about a block in one band and p̄ their mean, the HR pixels of that band are p̄ + W (p − p̄):
    darker and brighter places share one filter, and a constant stays constant. Each band has its own W. (Predicting a
    band from all bands lost 0.02 to 0.1 dB on real places that the fit had not seen.)
    """

    weight: Tensor  # (C*s*s, 1, n, n): of each HR pixel of the block, with the mean in it
    scale: int  # s

    @classmethod
    def fit(cls, pairs: Iterable[tuple[Tensor, Tensor]], *, size: int = 9, ridge: float = 1e-4) -> LinearFilter:
        """Fit W to batches of LR images ``(B, C, H, W)`` with their HR images ``(B, C, H*s, W*s)``, each read once.

        W = Y Pᵀ (P Pᵀ + λ I)⁻¹ in float64, from sums over the batches in all eight turns and mirrors, as land has no
        preferred side; λ = ``ridge`` · trace(P Pᵀ) / n², so that it follows the unit and the number of pixels.

        Args:
            size: n, odd. 9 gains about 0.1 dB over 5 on real places that the fit had not seen.

        Raises:
            UserError: there are no pairs, they do not fit one another, or ``size`` is even.
        """
        if size < 1 or size % 2 == 0:
            raise UserError(f"A linear filter of size={size} has no middle pixel: set `size` to an odd number, e.g. 9.")
        gram, cross, scale = torch.zeros(()), torch.zeros(()), 0
        for lr, hr in pairs:
            scale = hr.shape[-1] // lr.shape[-1]
            if scale == 0 or hr.shape != (*lr.shape[:2], lr.shape[2] * scale, lr.shape[3] * scale):
                raise UserError(
                    f"A linear filter got an LR batch of {tuple(lr.shape)} with an HR batch of {tuple(hr.shape)}: hand "
                    f"over pairs whose rows and columns differ by the scale alone."
                )
            for lr_view, hr_view in zip(_eight_views(lr.double()), _eight_views(hr.double()), strict=True):
                near, mean = _neighbourhoods(lr_view, size)  # (C, n*n, pixels), (C, 1, pixels)
                blocks = F.pixel_unshuffle(hr_view, scale).unflatten(1, (lr.shape[1], -1))
                blocks = blocks.permute(1, 2, 0, 3, 4).flatten(2) - mean  # (C, s*s, pixels)
                gram, cross = gram.to(near) + near @ near.mT, cross.to(near) + blocks @ near.mT
        if scale == 0:
            raise UserError("A linear filter got no pairs to be fitted to: hand over at least one batch (lr, hr).")
        trace = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)
        ridges = ridge * trace[:, None, None] * torch.eye(size**2).to(gram)
        weight = torch.linalg.solve(gram + ridges, cross.mT).mT.reshape(-1, 1, size, size)
        weight = weight - weight.mean((-2, -1), keepdim=True) + 1 / size**2  # p̄ + W (p − p̄) as a filter of p
        return cls(weight, scale)

    def __call__(self, lr: Tensor) -> Tensor:
        """``(B, C, H*s, W*s)`` of ``lr`` ``(B, C, H, W)``; beyond an edge the image goes on symmetrically."""
        bands = len(self.weight) // self.scale**2
        if lr.ndim != 4 or lr.shape[1] != bands:
            raise UserError(
                f"A linear filter fitted to {bands} bands met an LR batch of {tuple(lr.shape)}: hand over the bands "
                f"that it was fitted to, (batch, bands, rows, columns)."
            )
        return _block_filter(lr, self.weight, self.scale)


def _eight_views(image: Tensor) -> Iterator[Tensor]:
    """The image in its four turns, each as it is and mirrored."""
    for quarters in range(4):
        turned = image.rot90(quarters, (-2, -1))
        yield turned
        yield turned.flip(-1)


def _neighbourhoods(lr: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """``(C, n*n, B*H*W)`` pixels about each pixel less their mean, and that mean, ``(C, 1, B*H*W)``."""
    near = F.unfold(_symmetric_border(lr, size // 2), size).unflatten(1, (lr.shape[1], -1))
    near = near.permute(1, 2, 0, 3).flatten(2)
    means = near.mean(1, keepdim=True)
    return near - means, means


def _block_filter(lr: Tensor, weight: Tensor, scale: int) -> Tensor:
    """Every HR pixel of a block as a sum of LR pixels of its band with weights ``(C*s*s, 1, n, n)``, not in half."""
    lr = _symmetric_border(at_least_float32(lr), weight.shape[-1] // 2)
    with torch.autocast(lr.device.type, enabled=False):
        return F.pixel_shuffle(F.conv2d(lr, weight.to(lr), groups=lr.shape[1]), scale)


def _symmetric_border(image: Tensor, width: int) -> Tensor:
    """The image with ``width`` more pixels on every side: mirrored, the edge pixel twice, as the degradation does."""
    for axis in (-2, -1):
        n = image.shape[axis]
        place = torch.arange(-width, n + width, device=image.device) % (2 * n)
        image = image.index_select(axis, torch.minimum(place, 2 * n - 1 - place))
    return image
