"""Tiny but whole folders of S1 and S2 tiles, written as the stage's own writer does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nbhelpers.stages.sar_grounding.folder import Tile, write_tiles
from nbhelpers.stages.sar_grounding.layout import About
from nbhelpers.stages.sar_grounding.tiles import Tiles

SIZE = 24
SPLIT = {"a": "train", "b": "train", "c": "val", "d": "test"}  # of the blocks, which have two tiles each


def smooth(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """``(H, W)`` correlated field, mean 0, standard deviation 1."""
    field = gaussian_filter(rng.standard_normal((size, size)), 2, mode="wrap")
    return (field / field.std()).astype(np.float32)


def make_tile(seed: int, *, split: str = "train", block: str = "a", size: int = SIZE, **about: Any) -> Tile:
    """S1 of VV -11 and VH -17 dB, S2 of reflectances about 0.04 to 0.3, and a poor image of it."""
    rng = np.random.default_rng(seed)
    s1 = np.stack([level + 3 * smooth(rng, size) for level in (-11, -17)])
    s2 = np.stack([level * (1 + 0.2 * smooth(rng, size)) for level in (0.04, 0.07, 0.06, 0.3)])
    poor = np.stack([gaussian_filter(band, 2) for band in s2])
    declared = About(
        split=split,
        block=block,
        s1_units="dB",
        s2_units="reflectance",
        s2_offset=0,
        pixel_m=10.0,
        source="made for a test",
        simulated=False,
    )
    return Tile(replace(declared, **about), s1, s2, opt_v2=poor)


def in_dn(tile: Tile, *, offset: int = 0) -> Tile:
    """The same tile in whole digital numbers."""
    about = replace(tile.about, s2_units="dn", s2_offset=offset)
    return replace(tile, about=about, s2=np.round(tile.s2 * 1e4 - offset).astype(np.float32))


def make_tiles() -> list[Tile]:
    """Two tiles of each block."""
    return [
        make_tile(10 * number + n, split=split, block=block)
        for number, (block, split) in enumerate(SPLIT.items())
        for n in range(2)
    ]


def write_folder(folder: Path, *, change: Callable[[int, Tile], Tile] = lambda _, tile: tile) -> Path:
    """Eight tiles: tile_000 … tile_003 for training, then two each for validation and test."""
    return write_tiles(folder, [change(number, tile) for number, tile in enumerate(make_tiles())])


def tile_file(folder: Path, name: str) -> Path:
    """The .npz of a tile."""
    return next(folder.glob(f"tiles/*/{name}.npz"))


def rewrite(npz: Path, **arrays: Any) -> None:
    """Change arrays of an .npz; None takes one away."""
    with np.load(npz) as file:
        kept: Mapping[str, Any] = {key: file[key] for key in file.files}
    np.savez(npz, **{key: value for key, value in {**kept, **arrays}.items() if value is not None})


def redeclare(npz: Path, **values: Any) -> None:
    """Change what the JSON beside a file says; None takes a key away."""
    path = npz.with_suffix(".json")
    about = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({key: value for key, value in about.items() if value is not None}), encoding="utf-8")


def measured(tiles: Tiles, name: str) -> NDArray[np.bool_]:
    """``(H, W)`` where S1, the truth and opt_v2 were all measured."""
    return np.isfinite(np.concatenate(tiles.store[name])).all(axis=0)
