"""Simulated scenes as tiles: one landscape seen by Sentinel-2 and by Sentinel-1, and a poor optical image to refine.

What stands on the ground is painted once (``science.landscape``); the camera sees its colours, the radar its roughness,
water and height (``backscatter.py``, ``radar.py``), so that most edges appear in both, and some in one only: soils and
meadows of two colours are one for the radar, two equally green fields of other tillage one for the camera. The poor
image (``degraded.py``) has lost structure that the radar still shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from nbhelpers.core.disk import check_room
from nbhelpers.core.errors import UserError
from nbhelpers.science.landscape.canvas import Canvas
from nbhelpers.science.landscape.painting import paint_landscape
from nbhelpers.science.landscape.regions import REGIONS, Region
from nbhelpers.science.landscape.sensor import observe
from nbhelpers.stages.sar_grounding.backscatter import SPREAD, palette
from nbhelpers.stages.sar_grounding.degraded import degraded, name_seed
from nbhelpers.stages.sar_grounding.folder import Tile, split_blocks, write_tiles
from nbhelpers.stages.sar_grounding.layout import About, read_json
from nbhelpers.stages.sar_grounding.radar import View, sentinel1

VERSION = 1  # of the scenes: raise it whenever the same settings give other tiles
RECORD = "SIMULATED.json"
SIDE = 2  # tiles along a side of a scene, which is one block
BANDS = ("B02", "B03", "B04", "B08")
PIXEL_M = 10.0
APART = 20_000.0  # m between scenes on the map
ACROSS = 20  # scenes along a row of the map
INCIDENCE = (31.0, 46.0)  # degrees, of the wide swath
WIND_DB = (-2.0, 6.0)  # backscatter of water above that of a calm day

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """Everything that the simulated numbers depend on."""

    n_scenes: int
    size: int  # pixels along a side of a tile
    seed: int
    version: int = VERSION


def simulate(folder: Path, *, n_scenes: int, size: int = 96, seed: int = 0, progress: bool = True) -> Path:
    """Write ``n_scenes`` scenes of 4 tiles of ``size`` x ``size`` pixels of 10 m, and ``stage2_outputs``.

    A scene is a block; about 60, 15 and 25 % of the blocks are for training, validation and test. Scene ``k`` is of
    the region ``k mod 8`` and depends on ``(seed, k)`` and ``size``; its split depends on ``n_scenes`` too. The folder
    appears when it is whole; one that holds the same tiles already is left as it is.

    Raises:
        UserError: impossible settings, too little disk, or a folder that holds anything but these tiles.
    """
    settings = Settings(n_scenes, size, seed)
    for name, value, (least, most) in (
        ("n_scenes", n_scenes, (3, 100_000)),
        ("size", size, (16, 1024)),
        ("seed", seed, (0, 2**31)),
    ):
        if not least <= value <= most:
            raise UserError(f"{name} is {value}, expected {least} to {most}: choose another {name}.")
    if _is_there(folder, settings):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_room(folder.parent, n_scenes * SIDE**2 * (size**2 * 40 + 4096), "a simulation of these scenes")
    scenes = tqdm(range(n_scenes), desc="simulating scenes", unit="scene", disable=not progress)
    split = split_blocks(block_name(number) for number in range(n_scenes))
    tiles = (tile for number in scenes for tile in scene_tiles(settings, number, split=split[block_name(number)]))
    return write_tiles(folder, tiles, records={RECORD: asdict(settings)})


def block_name(number: int) -> str:
    """Of the scene ``number``."""
    return f"scene_{number:04d}"


def scene_tiles(settings: Settings, number: int, *, split: str) -> Iterator[Tile]:
    """The tiles of one scene."""
    region = REGIONS[number % len(REGIONS)]
    s1, s2 = scene(region, size=SIDE * settings.size, seed=(settings.seed, number))
    east, north = 300_000 + APART * (number % ACROSS), 5_000_000 + APART * (number // ACROSS)
    for row in range(SIDE):
        for column in range(SIDE):
            down, across = (slice(n * settings.size, (n + 1) * settings.size) for n in (row, column))
            left, top = (PIXEL_M * settings.size * n for n in (column, row))
            about = About(
                split=split,
                block=block_name(number),
                s1_units="dB",
                s2_units="reflectance",
                s2_offset=0,
                pixel_m=PIXEL_M,
                source=f"nbhelpers: simulated, {region.name}",
                simulated=True,
                crs="EPSG:32633",
                transform=(PIXEL_M, 0.0, east + left, 0.0, -PIXEL_M, north - top),
            )
            poor = degraded(
                s2[:, down, across], seed=name_seed(f"{settings.seed} {number} {row} {column}", salt="simulated")
            )
            yield Tile(about, s1[:, down, across], s2[:, down, across], opt_v2=poor)


def scene(region: Region, *, size: int, seed: tuple[int, ...]) -> tuple[Array, Array]:
    """``(2, size, size)`` dB and ``(4, size, size)`` reflectance of one landscape, a function of the arguments."""
    rng = np.random.default_rng([*seed, 5])
    view = View(incidence=float(rng.uniform(*INCIDENCE)), ascending=bool(rng.integers(2)))
    materials = palette(BANDS, wind_db=float(rng.uniform(*WIND_DB)))
    canvas = Canvas(rng, region, (2 * size, 2 * size), materials, n_lit=len(BANDS), spread=SPREAD)
    paint_landscape(canvas)
    power, height = canvas.values[len(BANDS) : -1], canvas.values[-1]
    s1 = sentinel1(power, height, canvas.slope, view, rng)
    return s1, np.stack([observe(band, round(PIXEL_M), rng) for band in canvas.lit])


def _is_there(folder: Path, settings: Settings) -> bool:
    """Whether ``folder`` holds these very tiles; raise rather than let anything else be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, expected a folder for the tiles: choose another folder.")
    record = folder / RECORD
    if not record.is_file():
        other = next(iter(sorted(folder.glob("*"))), None)
        if other is not None:
            raise UserError(f"{folder} holds {other.name} but no simulated tiles: choose another, empty folder.")
        return False
    old, new = read_json(record), asdict(settings)
    differs = ", ".join(f"{key}={old.get(key)} (asked: {value})" for key, value in new.items() if old.get(key) != value)
    if differs:
        raise UserError(f"{folder} holds tiles simulated with {differs}: choose another folder or delete this one.")
    return True
