"""Tiles to be refined that nobody knows the truth of: S1, the image of the previous step, and what they declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding import layout
from nbhelpers.stages.sar_grounding.tile_files import read_arrays
from nbhelpers.stages.sar_grounding.units import Look, check_all, check_db, check_optical, look, to_reflectance

Array = NDArray[np.float32]
DECLARED = ("s1_units", "s2_units", "s2_offset")  # in the JSON beside a tile; opt_v2 is in s2_units


@dataclass(frozen=True)
class NewTile:
    """One tile's files and what its JSON declares; pixels are read when asked for."""

    npz: Path  # with s1_vv, s1_vh (H, W) and opt_v2 (4, H, W)
    units: layout.S2Units
    offset: int  # DN to add
    crs: str | None
    transform: tuple[float, ...] | None  # six numbers
    source: str | None  # where the tile comes from, if it says

    @property
    def name(self) -> str:
        return self.npz.stem

    def read(self) -> tuple[Array, Array]:
        """``(2, H, W)`` dB and ``(4, H, W)`` reflectance of opt_v2, NaN where not measured.

        Raises:
            UserError: the file is damaged, lacks a key, has bands of several shapes or numbers in other units than
                declared, or nothing in it was measured.
        """
        return self._read()[:2]

    def _read(self) -> tuple[Array, Array, Look]:
        vv, vh, stored = read_arrays(self.npz, (*layout.S1_KEYS, layout.OPT_KEY))
        if vv.ndim != 2 or vh.shape != vv.shape or stored.shape != (len(layout.BANDS), *vv.shape):
            raise UserError(
                f"{self.npz} holds s1_vv of shape {vv.shape}, s1_vh of {vh.shape} and opt_v2 of {stored.shape}, "
                f"expected (H, W), (H, W) and ({len(layout.BANDS)}, H, W): bring them to one grid."
            )
        s1 = np.stack([vv, vh]).astype(np.float32)
        check_db(s1, str(self.npz))
        check_optical(stored, self.units, self.offset, str(self.npz))
        opt_v2 = to_reflectance(stored, self.units, self.offset)
        for what, image in (("S1", s1), (layout.OPT_KEY, opt_v2)):
            if np.isnan(image).any(0).all():
                raise UserError(f"{self.npz} holds no pixel of {what} that was measured: take the tile away.")
        return s1, opt_v2, look(s1, stored, self.units, self.offset)


def open_new_tiles(folder: Path) -> tuple[tuple[NewTile, ...], tuple[str, ...]]:
    """The tiles ``*.npz`` of a folder, each of any size, by name, and what to look at before they are trusted.

    Every tile is read once and checked, so that an hour of work does not end at the last one.

    Raises:
        UserError: no such folder, no tile in it, a JSON that is absent or lacks something, and as
            :meth:`NewTile.read` and ``units.check_all``.
    """
    if not folder.is_dir():
        raise UserError(f"--input-dir {folder} is not a folder: name the one with the tiles, *.npz and a .json beside.")
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise UserError(
            f"--input-dir {folder} holds no .npz: expected tiles with {', '.join((*layout.S1_KEYS, layout.OPT_KEY))}."
        )
    tiles = tuple(_declared(path) for path in paths)
    looks = {}
    for tile in tqdm(tiles, desc="reading tiles", unit="tile", leave=False, disable=None):
        looks[tile.name] = tile._read()[2]
    return tiles, check_all(looks, where=str(folder))


def _declared(npz: Path) -> NewTile:
    path = npz.with_suffix(".json")
    value: Mapping[str, Any] = layout.read_declared(path, DECLARED)
    crs = value.get("crs")
    return NewTile(
        npz, value["s2_units"], value["s2_offset"], crs, layout.transform_in(value, path), value.get("source")
    )
