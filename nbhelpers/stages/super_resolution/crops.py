"""Random crops of the training patches, whole patches for scoring, and their loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.config import Config

EVAL_BATCH = 4  # whole patches at once while scoring


@dataclass(frozen=True)
class Crop:
    """Where one sample is cut out, mirrored by ``symmetry``."""

    patch: int  # number of the patch in the data set
    top: float = 0.0  # 0-1: how far down, of the way that there is (patches of a set may differ in size)
    left: float = 0.0  # the same to the right
    side: int = 0  # pixels; 0: the whole patch
    symmetry: int = 0  # 0-7, one of a square's: 4 swaps rows and columns, then 1 mirrors top-down, 2 left-right


@dataclass(frozen=True)
class Batch:
    """Samples of one shape as they come from the loader: high resolution, digital numbers with their offset added."""

    dn: Tensor  # (B, C, H, W) float32
    patches: tuple[int, ...]  # number of the patch of each sample
    unreadable: tuple[str, ...] = ()  # why samples that belong here are not, a sentence each

    def pin_memory(self) -> Batch:
        """Called by the loader where there is a GPU."""
        return Batch(self.dn.pin_memory(), self.patches, self.unreadable)


class Reader:
    """Decoded patches, kept in memory until it is full.

    Args:
        read: number of a patch -> ``(C, H, W)`` float32; raises ``UserError`` for one that cannot be read.
        bytes_: memory for them.
    """

    def __init__(self, read: Callable[[int], np.ndarray], bytes_: int):
        self._read, self._left = read, bytes_
        self._kept: dict[int, np.ndarray] = {}

    def __getitem__(self, patch: int) -> np.ndarray:
        if patch in self._kept:
            return self._kept[patch]
        pixels = self._read(patch)
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[patch] = pixels
        return pixels


def check_sizes(shapes: Sequence[tuple[int, int]], config: Config) -> None:
    """Raise ``UserError`` unless a training crop fits into patches of all ``shapes`` (H, W)."""
    height, width = min(shapes, key=min)
    if min(height, width) < config.crop:
        raise UserError(
            f"crop is {config.crop}, but the smallest training patch has {height} x {width} pixels: set crop to at "
            f"most {min(height, width) // 8 * 8}."
        )


def random_crops(patches: Sequence[int], config: Config, *, epoch: int) -> list[Crop]:
    """The training crops of an epoch, a pure function of (seed, epoch) and the patches.

    Every patch is drawn equally often, give or take one.
    """
    rng = np.random.default_rng([config.seed, epoch])
    rounds = -(-config.crops_per_epoch // len(patches))
    order = np.concatenate([rng.permutation(len(patches)) for _ in range(rounds)])[: config.crops_per_epoch]
    crops = []
    for index in order:
        top, left = rng.random(2)
        symmetry = int(rng.integers(8)) if config.augment else 0
        crops.append(Crop(patches[index], top, left, config.crop, symmetry))
    return crops


def generators(patches: Sequence[int], config: Config) -> list[torch.Generator]:
    """A source of noise for each of ``patches`` that depends on the seed and on its number alone."""
    seeds = (np.random.SeedSequence([config.seed, patch]).generate_state(1)[0] for patch in patches)
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


class CropDataset(Dataset):
    """Cuts crops out of patches; index in, ``(C, H, W)`` float32 and number of the patch out.

    Args:
        forgiving: a patch that cannot be read gives None and the reason, and does not raise; how many of them a
            training may do without is not decided here.
    """

    def __init__(self, crops: Sequence[Crop], reader: Reader, *, forgiving: bool = False):
        self.crops, self.reader, self.forgiving = crops, reader, forgiving

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        crop = self.crops[index]
        try:
            pixels = _cut(self.reader[crop.patch], crop)
        except UserError as error:
            if not self.forgiving:
                raise
            return None, crop.patch, str(error)
        if crop.symmetry & 4:
            pixels = pixels.transpose(0, 2, 1)
        sample = torch.from_numpy(np.ascontiguousarray(pixels))
        mirrored = [dim for bit, dim in ((1, 1), (2, 2)) if crop.symmetry & bit]
        return sample.flip(mirrored) if mirrored else sample, crop.patch, ""


def _cut(pixels: np.ndarray, crop: Crop) -> np.ndarray:
    if not crop.side:
        return pixels
    height, width = pixels.shape[-2:]
    if min(height, width) < crop.side:
        raise UserError(f"a patch has {height} x {width} pixels and crops of {crop.side} are asked for: lower crop.")
    row, column = int(crop.top * (height - crop.side + 1)), int(crop.left * (width - crop.side + 1))
    return pixels[:, row : row + crop.side, column : column + crop.side]


def collate(samples: Sequence[tuple[Tensor | None, int, str]]) -> Batch:
    """A batch of the samples that could be read."""
    read = [(pixels, patch) for pixels, patch, _ in samples if pixels is not None]
    dn = torch.stack([pixels for pixels, _ in read]) if read else torch.empty(0, 1, 1, 1)
    return Batch(dn, tuple(patch for _, patch in read), tuple(reason for _, _, reason in samples if reason))


def same_shape(shapes: Sequence[tuple[int, int]], size: int) -> list[list[int]]:
    """Indices of ``shapes`` in batches of at most ``size``, each of one shape: patches of a set may differ in size."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(index)
    return [group[i : i + size] for group in by_shape.values() for i in range(0, len(group), size)]


def in_order(n: int, size: int) -> list[list[int]]:
    """The indices 0 to n − 1 in batches of ``size``; the last may be smaller."""
    return [list(range(first, min(first + size, n))) for first in range(0, n, size)]


def loader(
    crops: Sequence[Crop],
    reader: Reader,
    *,
    batches: Sequence[Sequence[int]],
    num_workers: int = 0,
    forgiving: bool = False,
) -> DataLoader:
    """Batches of ``crops``, each of those whose indices stand in one of ``batches``."""
    return DataLoader(
        CropDataset(crops, reader, forgiving=forgiving),
        batch_sampler=_Listed(batches),
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


class _Listed:
    """A batch sampler that knows its batches."""

    def __init__(self, batches: Sequence[Sequence[int]]):
        self._batches = [list(batch) for batch in batches]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
