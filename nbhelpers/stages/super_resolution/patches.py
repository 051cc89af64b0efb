"""A set of patches, whether it lies in folders of GeoTIFFs or is packed: one way to open and to read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nbhelpers.stages.super_resolution.folder import PatchFolder
from nbhelpers.stages.super_resolution.packed import INDEX_NAME, PackedPatches
from nbhelpers.stages.super_resolution.patch import DEFAULT_BANDS, Patch


class Patches(Protocol):
    """What training asks of its data; ``patches[i]`` is the image of ``patches.patches[i]``."""

    root: Path  # where they lie
    bands: tuple[str, ...]  # in the order of the images
    resolution: int  # metres a pixel
    patches: tuple[Patch, ...]  # in the order of their index

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """``(C, H, W)`` float32 DN with the offset added (reflectance times 1e4); UserError if it cannot be read."""

    def raw(self, index: int) -> tuple[NDArray[np.uint16], int]:
        """``(C, H, W)`` uint16 DN as stored, 0 where nothing was measured, and the offset that belongs to them."""

    def georeference(self, index: int) -> tuple[str | None, tuple[float, ...]]:
        """CRS as text (None without one), and the six numbers of the transform of the patch's pixels."""


def open_patches(data_dir: Path, bands: Sequence[str] = DEFAULT_BANDS, *, offset: int | None = None) -> Patches:
    """The patches of a folder in BigEarthNet's layout or of a packed set, found but not read yet.

    Args:
        bands: names such as B02, all of one resolution.
        offset: DN to add in all patches; None: as each file, its name or the packed set's index says.

    Raises:
        UserError: as :class:`~nbhelpers.stages.super_resolution.folder.PatchFolder` and
            :class:`~nbhelpers.stages.super_resolution.packed.PackedPatches`.
    """
    if (data_dir / INDEX_NAME).is_file():
        return PackedPatches(data_dir, bands, offset=offset)
    return PatchFolder(data_dir, bands, offset=offset)


class WithValidation:
    """Two sets as one: the patches of ``own``, then those of ``validation`` with ``part`` "val"."""

    def __init__(self, own: Patches, validation: Patches):
        self.root, self.bands, self.resolution = own.root, own.bands, own.resolution
        self.parts = (own, validation)
        moved = (dataclasses.replace(one, index=len(own) + one.index, part="val") for one in validation.patches)
        self.patches = (*own.patches, *moved)

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        part, there = self._find(index)
        return part[there]

    def raw(self, index: int) -> tuple[NDArray[np.uint16], int]:
        part, there = self._find(index)
        return part.raw(there)

    def georeference(self, index: int) -> tuple[str | None, tuple[float, ...]]:
        part, there = self._find(index)
        return part.georeference(there)

    def _find(self, index: int) -> tuple[Patches, int]:
        n_own = len(self.parts[0])
        return (self.parts[0], index) if index < n_own else (self.parts[1], index - n_own)
