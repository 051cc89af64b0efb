"""Batches of tiles: random crops of the training tiles, whole tiles for scoring, and the loader."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.layout import BANDS, N_L2A, S1_KEYS
from nbhelpers.stages.sar_grounding.tile_files import UnreadableTile
from nbhelpers.stages.sar_grounding.tiles import Tiles

EVAL_BATCH, EVAL_PIXELS = 8, 8 * 128**2  # at most so many tiles, and pixels of them, at once while scoring


@dataclass(frozen=True)
class Batch:
    """Tiles as they come from the loader; NaN where not measured."""

    s1: Tensor  # (B, 2, H, W) dB
    opt_v2: Tensor  # (B, 4, H, W) reflectance, the image to refine
    truth: Tensor  # (B, 4, H, W) reflectance
    tiles: tuple[str, ...]  # their names
    unreadable: tuple[str, ...] = ()  # why tiles that belong here are not, a sentence each
    l2a: Tensor | None = None  # (B, 12, H, W) DN of all bands of the truth, where they were asked for

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return self._each(lambda image: image.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the loader where there is a GPU."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: change(image) for name, image in vars(self).items() if isinstance(image, Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class Sample:
    """One tile of a batch, or a part of it."""

    tile: str
    s1: Tensor  # (2, H, W)
    opt_v2: Tensor  # (4, H, W)
    truth: Tensor  # (4, H, W)
    l2a: Tensor | None = None  # (12, H, W)


class TileDataset(Dataset):
    """Place in an order in; the tile there out, or the reason why it cannot be read.

    Args:
        crop: side of a random crop, a pure function of ``key`` and the place; None: whole tiles.
        key: seed and epoch.
        forgiving: a tile that cannot be read gives the reason, and does not raise; how many of them a training may do
            without is not decided here.
        all_bands: with the 12 bands of the truth.
    """

    def __init__(
        self,
        tiles: Tiles,
        names: Sequence[str],
        *,
        crop: int | None,
        key: tuple[int, int],
        forgiving: bool,
        all_bands: bool,
    ):
        self.tiles, self.names, self.crop, self.key, self.forgiving = tiles, names, crop, key, forgiving
        self.all_bands = all_bands

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> Sample | str:
        name, tiles = self.names[place], self.tiles
        part: tuple[slice, ...] = ()
        if self.crop is not None:
            # numpy fills a short seed with zeros: without the 1, place 0 would repeat the numbers behind the order.
            rng = np.random.default_rng([*self.key, place, 1])
            corner = [int(rng.integers(side - self.crop + 1)) for side in tiles.size]
            part = (slice(None), *(slice(first, first + self.crop) for first in corner))
        try:
            s1, truth, opt_v2 = tiles.store[name]
            images = (s1, opt_v2, truth, *((tiles.s2_l2a(name),) if self.all_bands else ()))
            return Sample(name, *(torch.from_numpy(image[part].copy()) for image in images))
        except UnreadableTile as error:
            if self.forgiving:
                return str(error)
            # A loader's worker hands its error over as text, from which this class alone takes the sentence.
            raise UserError(str(error)) from error


def collate(samples: Sequence[Sample | str], *, size: tuple[int, int]) -> Batch:
    """A batch of the tiles that could be read; it may be empty."""
    read = [one for one in samples if isinstance(one, Sample)]

    def stacked(images: Sequence[Tensor], channels: int) -> Tensor:
        return torch.stack(list(images)) if images else torch.empty(0, channels, *size)

    return Batch(
        stacked([one.s1 for one in read], len(S1_KEYS)),
        stacked([one.opt_v2 for one in read], len(BANDS)),
        stacked([one.truth for one in read], len(BANDS)),
        tuple(one.tile for one in read),
        tuple(one for one in samples if isinstance(one, str)),
        stacked(l2a, N_L2A) if (l2a := [one.l2a for one in read if one.l2a is not None]) else None,
    )


def loader(
    tiles: Tiles,
    names: Sequence[str],
    *,
    batch_size: int,
    start: int = 0,
    crop: int | None = None,
    seed: int = 0,
    epoch: int = 0,
    num_workers: int = 0,
    forgiving: bool = False,
    all_bands: bool = False,
) -> DataLoader:
    """Batches of the named tiles in the given order, from batch number ``start`` on; the last may be smaller.

    What a batch holds is a function of (names, batch_size, its number, crop, seed, epoch) alone.
    """
    groups = [list(range(i, min(i + batch_size, len(names)))) for i in range(0, len(names), batch_size)]
    return DataLoader(
        TileDataset(tiles, names, crop=crop, key=(seed, epoch), forgiving=forgiving, all_bands=all_bands),
        batch_sampler=groups[start:],
        collate_fn=partial(collate, size=tiles.size if crop is None else (crop, crop)),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def eval_batch(tiles: Tiles) -> int:
    """Tiles at once while scoring: fewer of large ones."""
    return max(1, min(EVAL_BATCH, EVAL_PIXELS // math.prod(tiles.size)))


def training_order(names: Sequence[str], *, seed: int, epoch: int) -> tuple[str, ...]:
    """The training tiles in the order of an epoch, a pure function of (seed, epoch) and the names."""
    order = np.random.default_rng([seed, epoch]).permutation(len(names))
    return tuple(names[index] for index in order)
