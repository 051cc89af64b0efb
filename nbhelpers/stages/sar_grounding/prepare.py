"""Tiles from pairs of S1 and S2 images, for ``nbhelpers data prepare tiles``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import SPLITS
from nbhelpers.science.sentinel2 import BANDS, high_darks
from nbhelpers.stages.sar_grounding.folder import Tile, split_blocks, write_tiles
from nbhelpers.stages.sar_grounding.grids import Grid, blocks_of, shared_part
from nbhelpers.stages.sar_grounding.layout import About, S2Units, check_empty
from nbhelpers.stages.sar_grounding.pairs import NEEDED, Pair, find_pairs
from nbhelpers.stages.sar_grounding.units import check_db, check_optical

BLOCK_KM = 10.0  # landscapes a block apart are hardly alike; a patch of BigEarthNet is 1.2 km wide
MOST_MISSING = 0.2  # of a tile's pixels, in S1 or in S2; one with more gaps is left out

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    folder: Path
    tiles: dict[str, int]  # number by split
    blocks: dict[str, tuple[str, ...]]  # by split
    left_out: int  # tiles with too many gaps
    all_bands: bool  # whether the tiles hold the 12 bands of level 2A too
    warnings: tuple[str, ...]  # what to look at before the tiles are trusted, a sentence each

    def __str__(self) -> str:
        counts = ", ".join(f"{self.tiles[split]} {split} in {len(self.blocks[split])} block(s)" for split in SPLITS)
        lost = f"; {self.left_out} tiles with gaps are left out" if self.left_out else ""
        bands = "12 bands" if self.all_bands else "4 bands"
        return "\n".join([f"tiles of {bands} in {self.folder}: {counts}{lost}", *self.warnings])


def prepare_tiles(
    folder: Path,
    *,
    s1: Path,
    s2: Path,
    size: int | None = None,
    s2_units: S2Units = "dn",
    offset: int | None = None,
    block_km: float = BLOCK_KM,
) -> Prepared:
    """Write a folder of tiles from BigEarthNet's S1 and S2 patches, or from GeoTIFFs of equal names.

    BigEarthNet's pairs are those that the S1 patches' ``labels_metadata.json`` (v1) or ``metadata.parquet`` (v2) name;
    the latter names countries, too. Nothing is resampled, but bands of 20 and 60 m, whose pixels are repeated: S1 and
    S2 lie on one grid, or a crop brings them to it. Blocks are squares of ``block_km`` on the ground, joined where
    images of two show the same ground; whole blocks go to a split.

    Args:
        folder: new or empty.
        s1: folder of S1 images, VV and VH in dB.
        s2: folder of S2 images; ``metadata.parquet`` lies in or beside either of the two.
        size: pixels along a side of a tile; an image is cut into as many as fit, from its middle. None: an image is a
            tile.
        s2_units: of the S2 images: "dn" for digital numbers.
        offset: DN to add; None: as the files' tags say, else the processing baseline in their names, else 0.

    Raises:
        UserError: images without partner, on different grids, without georeference, smaller than ``size`` or, without
            it, of several sizes; numbers in other units than declared; fewer than three blocks; a folder with files.
    """
    check_empty(folder, "these tiles")
    if size is not None and size < 1:
        raise UserError(f"size is {size}, expected 1 or more pixels: leave it out to take whole images.")
    if not block_km > 0:
        raise UserError(f"block_km is {block_km:g}, expected above 0: 10 is usual.")
    pairs, remarks = find_pairs(s1, s2)
    shared = [shared_part(pair.s1, pair.s2, pair.names) for pair in pairs]
    grids = {pair.name: _cut(pair.s1, part) for pair, (part, _) in zip(pairs, shared, strict=True)}
    windows = {name: _windows(grid.shape, size, name) for name, grid in grids.items()}
    _check_one_size(windows)
    _check_one_pixel(grids)
    blocks = blocks_of(grids, block_km=block_km)
    split = split_blocks(blocks.values())
    all_bands = s2_units == "dn" and all(pair.bands == BANDS for pair in pairs)
    counts: Counter[str] = Counter()
    warned: list[str] = [*remarks]

    def tiles() -> Iterator[Tile]:
        for pair, parts in tqdm(zip(pairs, shared, strict=True), desc="cutting tiles", total=len(pairs), disable=None):
            radar, optical = _read(pair, parts, s2_units, pair.offset if offset is None else offset)
            if offset is None and s2_units == "dn" and pair.offset == 0:
                warned.extend(_darks(pair, optical))
            for window in windows[pair.name]:
                here, there = radar[(..., *window)], optical[(..., *window)]
                if _missing(here, there) > MOST_MISSING:
                    counts["left out"] += 1
                    continue
                about = _about(pair, _cut(grids[pair.name], window), blocks[pair.name], split, s2_units, offset)
                counts[about.split] += 1
                four = there[[pair.bands.index(band) for band in NEEDED]].astype(np.float32)
                yield Tile(about, here, four, s2_l2a=there if all_bands else None)

    write_tiles(folder, tiles())
    return Prepared(
        folder,
        {name: counts[name] for name in SPLITS},
        {name: tuple(sorted(block for block, one in split.items() if one == name)) for name in SPLITS},
        counts["left out"],
        all_bands,
        tuple(warned),
    )


def _cut(grid: Grid, window: Window) -> Grid:
    rows, columns = window
    return grid.cut(rows.start, columns.start, (rows.stop - rows.start, columns.stop - columns.start))


def _windows(shape: tuple[int, int], size: int | None, name: str) -> list[Window]:
    """Adjoining squares of ``size`` from the middle of an image; without a size all of it."""
    if size is None:
        return [(slice(0, shape[0]), slice(0, shape[1]))]
    if min(shape) < size:
        raise UserError(f"{name} has {shape[0]} x {shape[1]} pixels, fewer than a tile of {size}: give a smaller size.")
    starts = [range(length % size // 2, length - size + 1, size) for length in shape]
    return [(slice(r, r + size), slice(c, c + size)) for r in starts[0] for c in starts[1]]


def _check_one_size(windows: dict[str, list[Window]]) -> None:
    sizes = {(rows.stop - rows.start, columns.stop - columns.start): n for n, ((rows, columns), *_) in windows.items()}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise UserError(f"{first} has {one} pixels and {second} {other}: give a size that tiles are cut to.")


def _check_one_pixel(grids: dict[str, Grid]) -> None:
    found = {round(grid.pixel_m or 0.0, 3): name for name, grid in grids.items()}
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise UserError(f"{first} has pixels of {one:g} m and {second} of {other:g} m: prepare them one by one.")


def _read(pair: Pair, parts: tuple[Window, Window], s2_units: str, offset: int) -> tuple[NDArray[np.float32], NDArray]:
    """``(2, H, W)`` dB and ``(C, H, W)`` numbers on the grid that both share, checked."""
    radar, optical = pair.read_s1()[(..., *parts[0])].astype(np.float32), pair.read_s2()[(..., *parts[1])]
    check_db(radar, pair.names[0])
    four = optical[[pair.bands.index(band) for band in NEEDED]]
    check_optical(four, s2_units, offset, pair.names[1])
    return radar, optical


def _darks(pair: Pair, optical: NDArray) -> Sequence[str]:
    blue = optical[pair.bands.index(NEEDED[0])]
    seen = blue[blue != 0]
    warning = high_darks(float(np.percentile(seen, 1))) if seen.size else None
    return [f"{pair.names[1]}: {warning}"] if warning else []


def _missing(radar: NDArray, optical: NDArray) -> float:
    gaps = np.isnan(radar).any(0) | (optical == 0).any(0)
    if np.issubdtype(optical.dtype, np.floating):
        gaps |= np.isnan(optical).any(0)
    return float(gaps.mean())


def _about(pair: Pair, grid: Grid, block: str, split: dict[str, str], s2_units: S2Units, offset: int | None) -> About:
    declared = pair.offset if offset is None else offset
    assert grid.pixel_m is not None  # or the pair would not have been found
    return About(
        split=split[block],
        block=block,
        s1_units="dB",
        s2_units=s2_units,
        s2_offset=declared if s2_units == "dn" else 0,
        pixel_m=grid.pixel_m,
        source=pair.source,
        simulated=False,
        country=pair.country,
        date_s1=pair.date_s1,
        date_s2=pair.date_s2,
        crs=grid.crs,
        transform=grid.transform,
    )
