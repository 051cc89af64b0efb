"""Simulated landscapes written as BigEarthNet v2 patches: data for demos and tests where the archive is not at hand.

What the landscapes are is in ``landscape.py``; here are the files, their names and places on the map, and the care
taken not to overwrite anything. Every place lies in a UTM square of its own, in a part of Europe whose landscapes are
of its region's kind; date, orbit and position within the square are made up.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine
from tqdm.auto import tqdm

from nbhelpers.core.disk import check_room, disk_errors
from nbhelpers.core.errors import UserError
from nbhelpers.science.landscape.regions import REGIONS, Region
from nbhelpers.stages.super_resolution.landscape import VERSION, landscape
from nbhelpers.stages.super_resolution.patch import (
    BANDS,
    DEFAULT_BANDS,
    DTYPE,
    FOLDER,
    NODATA,
    RESOLUTION,
    SIMULATION_NAME,
    SIZE,
    common_resolution,
    write_patch,
)
from nbhelpers.stages.super_resolution.place import mgrs_square

UNFINISHED = ".unfinished"  # folder of the place that is being written
SQUARE = 100_000  # m, side of a square of the military grid
# Squares of each region: UTM zone, then columns (easting) and rows (northing) of squares.
SQUARES = {
    "loess plain": ((33, range(3, 7), range(54, 59)),),
    "wet pasture": ((29, range(4, 7), range(57, 61)), (30, range(5, 7), range(57, 60))),
    "boreal lakes": ((35, range(3, 7), range(67, 70)), (33, range(5, 7), range(67, 70))),
    "dry plateau": ((29, range(5, 7), range(41, 44)), (30, range(3, 7), range(41, 44))),
    "dense lowland": ((31, range(5, 7), range(56, 59)), (32, range(3, 5), range(55, 60))),
    "alpine foreland": ((32, range(3, 7), range(51, 53)), (33, range(3, 7), range(51, 53))),
    "black earth": ((34, range(3, 7), range(49, 52)), (35, range(3, 6), range(49, 51))),
    "narrow strips": ((34, range(4, 7), range(46, 49)), (34, range(3, 7), range(54, 56))),
}
MOST_PLACES = 120  # 15 rounds through the regions, each of which has 16 squares or more; the 16th is for single scenes
MOST_PATCHES = 256  # of a place; larger pictures would need gigabytes
MOST_PIXELS = 2048  # along a side of a scene, for the same reason


@dataclass(frozen=True)
class Place:
    """One picture, later cut into patches, and where it lies."""

    index: int
    region: Region
    product: str  # S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP
    epsg: int
    corner: tuple[int, int]  # easting and northing of the upper left corner of the square, m
    first: tuple[int, int]  # column and row of the upper left patch, counted from that corner


def simulate(
    data_dir: Path,
    *,
    n_places: int = 24,
    patches_per_place: int = 9,
    bands: Sequence[str] = DEFAULT_BANDS,
    seed: int = 0,
    clouds: bool = False,
    progress: bool = True,
) -> Path:
    """Write ``n_places`` simulated landscapes, each cut into adjoining patches of 1.2 km; returns ``data_dir``.

    The folder then holds ``BigEarthNet-S2/<product>/<patch>/<patch>_<band>.tif`` as BigEarthNet v2 does, and
    ``SIMULATED.json`` beside the products, which says so. Places appear whole: a simulation that was killed goes on
    with the first that is not there; with the same parameters a complete folder is left as it is. Place ``k`` depends
    on ``(seed, k)``, ``patches_per_place`` and ``clouds`` and is of the region ``k mod 8``; a band is the same
    whatever others there are.

    Args:
        patches_per_place: a square number: 9 patches are a picture of 360 x 360 pixels of 10 m.
        bands: of any resolution, 10, 20 and 60 m at a time too.

    Raises:
        UserError: impossible parameters, too little disk, or a folder that holds anything but these patches.
    """
    for name, value, most in (
        ("n_places", n_places, MOST_PLACES),
        ("patches_per_place", patches_per_place, MOST_PATCHES),
    ):
        if not 1 <= value <= most:
            raise UserError(f"{name} is {value}, expected 1 to {most}: choose another {name}.")
    side = isqrt(patches_per_place)
    if side**2 != patches_per_place:
        raise UserError(f"patches_per_place is {patches_per_place}, expected a square number: choose {side**2}.")
    if seed < 0:
        raise UserError(f"seed is {seed}, expected 0 or more: choose another seed.")
    if not bands or len(set(bands)) < len(bands) or not set(bands) <= set(BANDS):
        raise UserError(f"bands are {', '.join(bands) or 'none'}: give each once, some of {', '.join(BANDS)}.")
    places = [_place(index, seed=seed, side=side) for index in range(n_places)]
    marker = {
        "simulated": True,
        "version": VERSION,
        "n_places": n_places,
        "patches_per_place": patches_per_place,
        "bands": list(bands),
        "seed": seed,
        "clouds": clouds,
    }
    _check_folder(data_dir, marker)
    root = data_dir / FOLDER
    missing = [place for place in places if not (root / place.product).is_dir()]
    with disk_errors(root / SIMULATION_NAME):
        root.mkdir(parents=True, exist_ok=True)
        pixels = sum((SIZE * 10 // RESOLUTION[band]) ** 2 for band in bands)
        check_room(root, len(missing) * patches_per_place * (2 * pixels + 1024), "a simulation of these places")
        _write_json(root / SIMULATION_NAME, marker)
        unfinished = root / UNFINISHED
        for place in tqdm(missing, desc="simulating landscapes", unit="place", disable=not progress):
            shutil.rmtree(unfinished, ignore_errors=True)
            _write_place(unfinished / place.product, place, side=side, bands=bands, seed=seed, clouds=clouds)
            os.replace(unfinished / place.product, root / place.product)
        shutil.rmtree(unfinished, ignore_errors=True)
    return data_dir


def simulation_record(data_dir: Path) -> dict[str, Any] | None:
    """How the data in ``data_dir`` (or its ``BigEarthNet-S2``) were simulated; None for data that do not say so."""
    for record in (data_dir / SIMULATION_NAME, data_dir / FOLDER / SIMULATION_NAME):
        if record.is_file():
            found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            return found
    return None


def write_scene(
    path: Path,
    *,
    size: tuple[int, int] = (512, 512),
    region: str = "loess plain",
    bands: Sequence[str] = DEFAULT_BANDS,
    seed: int = 0,
    clouds: bool = False,
) -> Path:
    """Write one simulated scene of ``size`` (H, W) pixels as a GeoTIFF of several bands; returns ``path``.

    uint16 digital numbers, no data 0, bands described by their names. No data set of :func:`simulate` holds that place,
    so it stands for a scene of a user's own.

    Raises:
        UserError: an unknown region, bands of several resolutions, an impossible size, or a disk that is full.
    """
    metres = common_resolution(bands)
    chosen = next((index for index, known in enumerate(REGIONS) if known.name == region), None)
    if chosen is None:
        names = ", ".join(known.name for known in REGIONS)
        raise UserError(f"region is {region!r}, expected one of {names}: choose one of them.")
    if not 16 <= min(size) <= max(size) <= MOST_PIXELS:
        raise UserError(f"size is {size[0]} x {size[1]}, expected 16 to {MOST_PIXELS} a side: choose another size.")
    place = _place(MOST_PLACES + chosen, seed=seed, side=1)
    scale = metres // 10
    fine = (size[0] * scale, size[1] * scale)
    pictures = landscape(place.region, size=fine, bands=bands, seed=(seed, place.index), clouds=clouds)
    profile = {"driver": "GTiff", "dtype": DTYPE, "count": len(bands), "height": size[0], "width": size[1]}
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        georeference = {"crs": f"EPSG:{place.epsg}", "transform": _transform(place, 0, 0, metres=metres)}
        with rasterio.open(part, "w", nodata=NODATA, **georeference, **profile) as file:
            for number, band in enumerate(bands, start=1):
                file.write(pictures[band], number)
                file.set_band_description(number, band)
        os.replace(part, path)
    return path


def _place(index: int, *, seed: int, side: int) -> Place:
    """Place ``index``, one region after the other."""
    rng = np.random.default_rng([seed, index, 2])
    region = REGIONS[index % len(REGIONS)]
    squares = [(zone, x, y) for zone, columns, rows in SQUARES[region.name] for x in columns for y in rows]
    zone, column, row = squares[index // len(REGIONS) * 7 % len(squares)]  # neighbours of a square come later
    tile = mgrs_square(f"EPSG:{32600 + zone}", (column + 0.5) * SQUARE, (row + 0.5) * SQUARE)
    year, orbit = int(rng.integers(2017, 2019)), int(rng.integers(1, 144))
    time = datetime.strptime(f"{year}{region.season}", "%Y%m%d") + timedelta(
        days=int(rng.integers(-8, 9)), hours=10, minutes=int(rng.integers(60)), seconds=31
    )
    product = f"S2{rng.choice(list('AB'))}_MSIL2A_{time:%Y%m%dT%H%M%S}_N9999_R{orbit:03d}_T{tile}"
    first = rng.integers(0, SQUARE // (10 * SIZE) - side, 2)
    corner = (column * SQUARE, (row + 1) * SQUARE)
    return Place(index, region, product, 32600 + zone, corner, (int(first[0]), int(first[1])))


def _transform(place: Place, column: int, row: int, *, metres: int = 10) -> Affine:
    """Of the patch ``column``, ``row`` of ``place`` with pixels of ``metres``."""
    patch = 10 * SIZE
    east, north = place.corner
    return Affine(
        metres, 0, east + patch * (place.first[0] + column), 0, -metres, north - patch * (place.first[1] + row)
    )


def _write_place(folder: Path, place: Place, *, side: int, bands: Sequence[str], seed: int, clouds: bool) -> None:
    size = side * SIZE
    pictures = landscape(place.region, size=(size, size), bands=bands, seed=(seed, place.index), clouds=clouds)
    for row in range(side):
        for column in range(side):
            patch = {}
            for band, picture in pictures.items():
                n = SIZE * 10 // RESOLUTION[band]
                patch[band] = picture[row * n : (row + 1) * n, column * n : (column + 1) * n]
            name = f"{place.product}_{place.first[0] + column}_{place.first[1] + row}"
            write_patch(folder, name, patch, crs=f"EPSG:{place.epsg}", transform=_transform(place, column, row))


def _check_folder(data_dir: Path, marker: dict[str, Any]) -> None:
    """Raise rather than let anything but these patches be overwritten or mixed with them."""
    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"{data_dir} is a file, expected a folder for the patches: choose another folder.")
    record = data_dir / FOLDER / SIMULATION_NAME
    if not record.is_file():
        other = next((path for path in sorted(data_dir.glob("*")) if not path.name.startswith(".")), None)
        if other is not None:
            raise UserError(f"{data_dir} holds {other.name} but no simulated patches: choose another, empty folder.")
        return
    try:
        old = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{record} is not JSON ({error}): choose another folder for the patches.") from error
    old = old if isinstance(old, dict) else {}
    differs = ", ".join(f"{key}={old.get(key)} (asked: {new})" for key, new in marker.items() if old.get(key) != new)
    if differs:
        raise UserError(f"{data_dir} holds patches simulated with {differs}: choose another folder or delete this one.")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
    os.replace(part, path)
