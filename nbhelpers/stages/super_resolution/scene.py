"""A scene of any size through the network: tiles that overlap, blended, then projected as one image.

The projection comes last and sees the whole scene: tiles that each degrade to their input do not, once blended, make an
image that does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from scipy import ndimage
from torch import Tensor
from tqdm.auto import tqdm

from nbhelpers.core.disk import human_bytes
from nbhelpers.core.errors import UserError
from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution.blocks import REACH
from nbhelpers.stages.super_resolution.units import Units

TILE = 256  # LR pixels along a side of a tile
# LR pixels along the inner edges of a tile that count nothing. What lies beyond an edge changes the output of a trained
# network (2 RRDBs, real tiles) by up to 2e-2 of reflectance 4 pixels from it, 1e-4 at 24, and 2e-5 at 28, where the
# local contrast ends; that of 12 RRDBs and 6 RRFDBs, untrained with weights that make as much detail, by 3e-5 at 28.
MARGIN = REACH
RAMP = 16  # LR pixels further in over which a tile gives way to the next
CONSISTENT = 1e-5  # reflectance
COPIES = 5  # of one band, that the projection needs beside the image

Network = Callable[[Tensor], Tensor]  # (B, C, h, w) → (B, C, s·h, s·w), both in model units


@dataclass(frozen=True)
class Consistency:
    """How well a super-resolved scene degrades to its input, over the pixels that were measured."""

    residual: float  # largest |degrade(SR) − LR|, reflectance
    above: float  # share of the LR values (pixels of each band) that are off by more than 1e-5
    missing: float  # share of the LR pixels that were not measured and are not in the above

    def __str__(self) -> str:
        lost = f"; {self.missing:.1%} of its pixels were not measured" if self.missing else ""
        return (
            f"degrades to its input up to {self.residual:.1e} reflectance, with {self.above:.2%} of the values off by "
            f"more than {CONSISTENT:g}{lost}"
        )


@torch.no_grad()
def super_resolve_scene(
    network: Network,
    low: Tensor,
    *,
    degradation: Degradation,
    units: Units,
    device: torch.device | None = None,
    tile: int = TILE,
    margin: int = MARGIN,
    batch_size: int = 1,
    consistency: bool = True,
    progress: bool = False,
) -> tuple[Tensor, Consistency]:
    """Enlarge a scene, nowhere negative; with ``consistency`` its degradation is ``low`` again.

    Neighbouring tiles share at least 2 · ``margin`` + ``RAMP`` LR pixels and are blended by raised cosines whose sum is
    1. At the edges of the scene nothing is added to it: the network has learnt what the edges of a patch look like,
    and mirrored surroundings were no better (within 0.03 dB). A scene that is no larger than a tile is one tile.

    A pixel that is NaN in any band was not measured: the network sees the nearest measured one in its place, and its
    block of s x s is NaN in every band of the result. An LR value below 0 has no image without negative pixels that
    explains it: it leaves a residual.

    Args:
        network: the generator, on ``device`` and in evaluation mode. Whether it projects makes no difference.
        low: ``(C, h, w)`` float32 reflectance, on the CPU.
        degradation: D, of the same bands and scale.
        units: between reflectance and model units.
        device: of the network; None: the CPU.
        tile: LR pixels along a side; more need more memory and share less.
        margin: LR pixels along a tile's inner edges that get no weight.
        batch_size: tiles at a time; more than 1 pays on a GPU.
        consistency: project; otherwise negative values are set to 0 and that is all.

    Returns:
        The image ``(C, s·h, s·w)`` float32 reflectance on the CPU, and how consistent it is. Beside the image memory is
        needed for some five bands of it and for what the network takes for a tile.

    Raises:
        UserError: nothing was measured, too little memory, or a scene of other bands than the degradation's.
    """
    scale, device = degradation.scale, device or torch.device("cpu")
    if low.ndim != 3 or len(low) != len(degradation.mtf):
        raise UserError(
            f"The scene has the shape {tuple(low.shape)}, expected ({len(degradation.mtf)}, rows, columns): hand over "
            f"the bands that the network was trained with."
        )
    if tile <= 2 * margin + RAMP:
        raise UserError(
            f"A tile of {tile} pixels has no middle beside its overlaps: set tile above {2 * margin + RAMP}."
        )
    _check_memory(low, scale)
    measured = ~torch.isnan(low).any(0)
    if not measured.any():
        raise UserError("The scene holds no pixel that was measured in all bands: choose another part of it.")
    low = _filled(low, measured)

    def enlarge(part: Tensor) -> Tensor:
        return units.to_reflectance(network(units.to_model(part.to(device))).float())

    image = _blended(enlarge, low, scale, tile, margin, batch_size=batch_size, progress=progress)
    residual, above = 0.0, 0
    for band, mtf in enumerate(degradation.mtf):
        one = Degradation(scale, (mtf,))
        fine, coarse = image[band : band + 1].to(device), low[band : band + 1].to(device)
        if consistency:
            one.project_scene(fine, coarse, floor=0.0)
        else:
            fine.clamp_(min=0.0)
        off = (one.degrade(fine) - coarse).abs()[0][measured.to(device)]
        residual, above = max(residual, float(off.max())), above + int((off > CONSISTENT).sum())
        image[band] = fine[0].cpu()
    share = float(measured.double().mean())
    blocks = image.unflatten(-1, (-1, scale)).unflatten(-3, (-1, scale))  # (C, h, s, w, s)
    blocks.masked_fill_(~measured[:, None, :, None], torch.nan)
    return image, Consistency(residual, above / (share * low.numel()), 1 - share)


def tiles(n: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """First pixel and the one after the last of the tiles of an axis of ``n``: equally long, spread evenly."""
    if n <= tile:
        return [(0, n)]
    count = math.ceil((n - overlap) / (tile - overlap))
    starts = [round(k * (n - tile) / (count - 1)) for k in range(count)]
    return [(start, start + tile) for start in starts]


def weights(n: int, places: list[tuple[int, int]], scale: int, margin: int) -> list[Tensor]:
    """Weight of every HR pixel of each tile along an axis of ``n`` LR pixels; over all tiles they sum to 1.

    0 over ``margin`` LR pixels from an inner edge, then (1 − cos πt)/2 over ``RAMP``, then 1, divided by the sum.
    """
    t = (torch.arange(RAMP * scale, dtype=torch.float64) + 0.5) / (RAMP * scale)
    rise = torch.cat([torch.zeros(margin * scale, dtype=torch.float64), (1 - torch.cos(math.pi * t)) / 2])
    total, found = torch.zeros(n * scale, dtype=torch.float64), []
    for start, stop in places:
        weight = torch.ones((stop - start) * scale, dtype=torch.float64)
        if start > 0:
            weight[: len(rise)] *= rise
        if stop < n:
            weight[-len(rise) :] *= rise.flip(0)
        total[start * scale : stop * scale] += weight
        found.append(weight)
    return [
        (weight / total[start * scale : stop * scale]).float()
        for weight, (start, stop) in zip(found, places, strict=True)
    ]


def _blended(
    enlarge: Network, low: Tensor, scale: int, tile: int, margin: int, *, batch_size: int, progress: bool
) -> Tensor:
    """``(C, s·h, s·w)`` reflectance from tiles of ``low``, which ``enlarge`` takes and gives as reflectance."""
    axes = [tiles(n, tile, 2 * margin + RAMP) for n in low.shape[-2:]]
    by_axis = [weights(n, places, scale, margin) for n, places in zip(low.shape[-2:], axes, strict=True)]
    grid = [
        (rows, columns)
        for rows in zip(axes[0], by_axis[0], strict=True)
        for columns in zip(axes[1], by_axis[1], strict=True)
    ]
    image = torch.zeros(len(low), *(n * scale for n in low.shape[-2:]))
    with tqdm(total=len(grid), desc="super-resolving", unit="tile", disable=None if progress else True) as bar:
        for first in range(0, len(grid), batch_size):
            part = grid[first : first + batch_size]
            found = enlarge(torch.stack([low[:, slice(*rows), slice(*columns)] for (rows, _), (columns, _) in part]))
            for ((rows, down), (columns, across)), one in zip(part, found.cpu(), strict=True):
                there = image[:, rows[0] * scale : rows[1] * scale, columns[0] * scale : columns[1] * scale]
                there += down[:, None] * across * one
            bar.update(len(part))
    return image


def _filled(low: Tensor, measured: Tensor) -> Tensor:
    """``low`` with the nearest measured pixel's values in place of each that was not."""
    if measured.all():
        return low
    gaps = ~measured.numpy()
    rows, columns = ndimage.distance_transform_edt(gaps, return_distances=False, return_indices=True)
    filled = low.clone()
    filled[:, gaps] = low[:, rows[gaps], columns[gaps]]
    return filled


def _check_memory(low: Tensor, scale: int) -> None:
    """Raise before an hour of tiles rather than after it."""
    band = low[0].numel() * scale**2 * np.dtype(np.float32).itemsize
    needed, there = (len(low) + COPIES) * band, psutil.virtual_memory().available
    if needed > there:
        height, width = low.shape[-2:]
        raise UserError(
            f"A scene of {height} x {width} pixels needs {human_bytes(needed)} of memory at scale {scale} and there "
            f"are {human_bytes(there)}: cut it into parts, e.g. with `rio clip`, and do one after the other."
        )
