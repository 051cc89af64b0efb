"""Edges and texture of images at several scales, where the filter fits, brought to one range for every image.

Maps lie inside: a filter with a radius of r pixels leaves ``(H − 2r, W − 2r)`` of ``(H, W)``. An image continued beyond
its border (mirrored, say) is flatter there, in *both* images of any pair, which are then alike at their rims by
construction.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science.image_quality import gaussian_window

REACH = 2.5  # standard deviations at which a Gaussian filter ends
STRONG = 0.95  # quantile of a map at which it begins to saturate: a corner reflector must not outweigh a coastline
LEAST_SIDE = 12  # pixels of a map each way: in less there is nothing to correlate


def radius(sigma: float) -> int:
    """Pixels that a map at scale ``sigma`` lacks on each side."""
    return math.ceil(REACH * sigma)


def edge_strength(images: Tensor, sigma: float, *, least: float) -> Tensor:
    """``(B, h, w)`` slope of images at one scale, of all their channels together, in their units per pixel.

    √(Σ_c |∇(G_σ ∗ x_c)|² + ε²) − ε with Gaussian derivatives, exact for planes; ε = ``least`` makes it differentiable
    where an image is flat. A joint gradient of several bands: Di Zenzo (1986), Comput. Vis. Graph. Image Process. 33.

    Args:
        images: ``(B, C, H, W)`` without NaN.
        sigma: of the Gaussian, in pixels.
        least: slope below which an image counts as flat.

    Raises:
        UserError: the images are too small for the filter.
    """
    x = _checked(images, sigma)
    (smooth_rows, slope_rows), (smooth_columns, slope_columns) = (_filters(side, sigma, x) for side in x.shape[-2:])
    with torch.autocast(x.device.type, enabled=False):
        down, across = slope_rows.mT @ (x @ smooth_columns), smooth_rows.mT @ (x @ slope_columns)
    energy = (down.square() + across.square()).sum(1)
    return (energy + least**2).sqrt() - least


def local_deviation(images: Tensor, sigma: float, *, least: float) -> Tensor:
    """``(B, h, w)`` standard deviation within a Gaussian window, √(Σ_c var_c + ε²) − ε, in the images' units.

    Args:
        images, sigma: as for :func:`edge_strength`, and its error.
        least: ε, deviation below which an image counts as flat.
    """
    x = _checked(images, sigma)
    x = x - x.mean((-2, -1), keepdim=True)  # the square of the mean would leave few digits to the variance
    (rows, _), (columns, _) = (_filters(side, sigma, x) for side in x.shape[-2:])
    with torch.autocast(x.device.type, enabled=False):
        mean, square = (rows.mT @ (y @ columns) for y in (x, x.square()))
    variance = (square - mean.square()).clamp(min=0).sum(1)
    return (variance + least**2).sqrt() - least


def saturated(strength: Tensor, valid: Tensor, *, least: float) -> Tensor:
    """``(B, h, w)`` in [0, 1): tanh(e/q) with q the map's own quantile at ``STRONG``; 0 where not valid.

    Correlation does not feel q itself, but the few pixels far above it. The quantile carries no gradient.

    Args:
        strength: ``(B, h, w)``, not negative.
        valid: bool, of its shape.
        least: lower bound of q, in the units of the strength.
    """
    measured = torch.where(valid, strength.detach(), torch.nan).flatten(1)
    strong = torch.nanquantile(measured, STRONG, dim=1)[:, None, None].nan_to_num().clamp(min=least)
    return torch.where(valid, torch.tanh(strength / strong), 0.0)


def inside(valid: Tensor, reach: int) -> Tensor:
    """``(B, H − 2·reach, W − 2·reach)`` bool: where a filter of that radius saw nothing but ``valid`` ``(B, H, W)``."""
    missing = F.max_pool2d((~valid).float()[:, None], (2 * reach + 1, 1), stride=1)
    return F.max_pool2d(missing, (1, 2 * reach + 1), stride=1)[:, 0] == 0


def _filters(side: int, sigma: float, images: Tensor) -> tuple[Tensor, ...]:
    """Two ``(side, side − 2r)`` matrices: they smooth a row of pixels (weights of sum 1), and take its slope.

    Products with these banded matrices are many times faster on a CPU than convolutions with one channel, for tiles.
    """
    reach = radius(sigma)
    smooth = gaussian_window(sigma, reach)
    x = torch.arange(-reach, reach + 1, dtype=smooth.dtype)
    slope = x * smooth / (x.square() * smooth).sum()  # a plane that rises by 1 per pixel has slope 1
    along = torch.arange(side)[:, None] - torch.arange(side - 2 * reach)  # place in the filter of each pixel of a row
    reached = (along >= 0) & (along <= 2 * reach)
    matrices = torch.where(reached, torch.stack([smooth, slope])[:, along.clamp(0, 2 * reach)], 0.0)
    return tuple(matrices.to(images.device, torch.float32))


def _checked(images: Tensor, sigma: float) -> Tensor:
    """The images as float32.

    Raises:
        UserError: they have another number of axes, or are too small.
    """
    needed = 2 * radius(sigma) + LEAST_SIDE
    if images.ndim != 4 or min(images.shape[-2:]) < needed:
        raise UserError(
            f"Images of shape {tuple(images.shape)} cannot show edges at a scale of {sigma:g} pixels, which needs "
            f"(images, channels, rows, columns) with at least {needed} pixels each way: use larger tiles."
        )
    return images.float()
