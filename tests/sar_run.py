"""Small but real runs of SAR grounding: simulated scenes and a tiny generator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sar_tiles import make_tile

from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.stages.sar_grounding.folder import Tile, write_tiles
from nbhelpers.stages.sar_grounding.simulate import simulate
from nbhelpers.stages.sar_grounding.task import GroundingTask

SIZE = 48  # pixels; the agreement with the SAR image needs 42
SMALL: dict[str, Any] = {
    "fine": 8,
    "coarse": 8,
    "timesteps": 2,
    "batch_size": 4,
    "epochs": 2,
    "lpips_weights": "random",
}


def scenes(folder: Path, *, n_scenes: int = 4) -> Path:
    """Simulated tiles of 48 x 48 pixels, four a scene."""
    return simulate(folder, n_scenes=n_scenes, size=SIZE, progress=False)


BLOCKS = {"a": "train", "b": "train", "c": "train", "d": "val", "e": "val", "f": "test", "g": "test"}


def few_tiles(folder: Path, *, gaps: bool = False, a_block: int = 2) -> Path:
    """Tiles of three blocks for training, one of each of two for validation, and for test.

    Args:
        gaps: the edge of a swath in S1 and in both optical images of every other tile.
        a_block: tiles of each training block.
    """
    tiles: list[Tile] = []
    for number, (block, split) in enumerate(BLOCKS.items()):
        for n in range(a_block if split == "train" else 1):
            tile = make_tile(100 * number + n, split=split, block=block, size=SIZE, simulated=True)
            if gaps and len(tiles) % 2:
                tile.s1[:, :6], tile.s2[:, :, :4], tile.opt_v2[:, :, :3] = np.nan, np.nan, np.nan
            tiles.append(tile)
    return write_tiles(folder, tiles)


def task_on(folder: Path, **changes: Any) -> GroundingTask:
    return GroundingTask(Config.for_profile("smoke", **(SMALL | changes)), folder)


def flags(**settings: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def write_new(
    npz: Path, s1: NDArray[np.float32], opt_v2: NDArray[np.floating[Any]], *, key: str = "opt_v2", **about: Any
) -> Path:
    """A tile without truth, ``(2, H, W)`` and ``(4, H, W)``, in dB and reflectance unless ``about`` says otherwise."""
    npz.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"s1_vv": s1[0], "s1_vh": s1[1], key: opt_v2}
    np.savez(npz, **arrays)
    said = {"s1_units": "dB", "s2_units": "reflectance", "s2_offset": 0} | about
    npz.with_suffix(".json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))
    return npz
