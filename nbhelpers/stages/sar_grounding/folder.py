"""Writing the tile layout, from whatever makes tiles: a simulator, BigEarthNet's pairs, GeoTIFFs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.disk import disk_errors, whole_folder
from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import SPLITS, by_hash
from nbhelpers.stages.sar_grounding import layout
from nbhelpers.stages.sar_grounding.layout import About

FRACTIONS = (0.6, 0.15, 0.25)  # train, val, test of the blocks


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile to write. NaN (in digital numbers: 0) where nothing was measured."""

    about: About
    s1: NDArray[np.float32]  # (2, H, W) dB: VV, VH
    s2: NDArray[np.float32]  # (4, H, W) B2, B3, B4, B8 in `about.s2_units`
    opt_v2: NDArray[np.float32] | None = None  # (4, H, W) reflectance
    s2_l2a: NDArray | None = None  # (12, H, W) digital numbers with the offset still in them


def write_tiles(folder: Path, tiles: Iterable[Tile], *, records: dict[str, object] | None = None) -> Path:
    """Write a whole data folder; it appears when it is complete, and not at all if anything goes wrong.

    Tiles are written as they come, named tile_000, tile_001, …; those with an ``opt_v2`` get a file in
    ``stage2_outputs`` too.

    Args:
        folder: does not exist, or is empty.
        records: JSON files to write beside the tiles, by name.

    Raises:
        UserError: the folder holds something, shapes that do not fit, a split without tiles, a block in two splits.
    """
    layout.check_empty(folder, "these tiles")
    counts: Counter[str] = Counter()
    split_of: dict[str, str] = {}
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as part:
            for split in SPLITS:
                (part / layout.TILES / split).mkdir(parents=True)
            for number, tile in enumerate(tiles):
                _check(tile, number)
                about = tile.about
                if split_of.setdefault(about.block, about.split) != about.split:
                    raise UserError(
                        f"block {about.block!r} is in {split_of[about.block]} and in {about.split}: give each block to "
                        "one split."
                    )
                counts[about.split] += 1
                _write(part, f"tile_{number:03d}", tile)
            if empty := [split for split in SPLITS if not counts[split]]:
                raise UserError(f"there is no {empty[0]} tile to write: give tiles of more places.")
            for name, record in (records or {}).items():
                text = json.dumps(record, indent=1) + "\n"
                (part / name).write_text(text, encoding="utf-8", newline="\n")
    return folder


def split_blocks(blocks: Iterable[str]) -> dict[str, str]:
    """Split of each block, by a hash of its name: about 60, 15 and 25 % of them.

    Raises:
        UserError: fewer than three blocks.
    """
    unique = sorted(set(blocks))
    if len(unique) < 3:
        raise UserError(
            f"the tiles lie in {len(unique)} block(s) of neighbours ({', '.join(unique)}), but training, validation "
            "and test need one each: add images of other places, or make the blocks smaller (block_km)."
        )
    return {block: split for split, members in by_hash(unique, FRACTIONS).items() for block in members}


def _check(tile: Tile, number: int) -> None:
    size = tile.s1.shape[1:]
    for name, array, channels in (
        ("s1", tile.s1, 2),
        ("s2", tile.s2, 4),
        ("opt_v2", tile.opt_v2, 4),
        ("s2_l2a", tile.s2_l2a, layout.N_L2A),
    ):
        if array is not None and array.shape != (channels, *size):
            raise UserError(
                f"tile {number} has {name} of shape {array.shape}, expected {(channels, *size)}: bring all images of a "
                "tile to one grid."
            )


def _write(part: Path, name: str, tile: Tile) -> None:
    npz = part / layout.TILES / tile.about.split / f"{name}.npz"
    arrays: dict[str, Any] = {}
    for key, channel in zip((*layout.S1_KEYS, *layout.S2_KEYS), (*tile.s1, *tile.s2), strict=True):
        arrays[key] = np.asarray(channel, np.float32)
    if tile.s2_l2a is not None:
        arrays[layout.L2A_KEY] = np.asarray(tile.s2_l2a)
    np.savez(npz, **arrays)
    layout.write_about(npz, tile.about)
    if tile.opt_v2 is not None:
        out = part / layout.STAGE2
        out.mkdir(exist_ok=True)
        poor: dict[str, Any] = {layout.OPT_KEY: np.asarray(tile.opt_v2, np.float32)}
        np.savez(out / f"{name}.npz", **poor)
        units = json.dumps({"s2_units": "reflectance", "s2_offset": 0}) + "\n"
        (out / f"{name}.json").write_text(units, encoding="utf-8", newline="\n")
