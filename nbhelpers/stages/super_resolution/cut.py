"""Cutting whole scenes into patches in BigEarthNet's layout, for ``nbhelpers data prepare super-resolution``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from tqdm.auto import tqdm

from nbhelpers.core.disk import disk_errors, file_sha256
from nbhelpers.core.errors import UserError
from nbhelpers.science.sentinel2 import LEVEL_1C, bands_of, offset_of_scene
from nbhelpers.stages.super_resolution.folder import PLACES_NAME, opened
from nbhelpers.stages.super_resolution.patch import (
    BANDS,
    DN_PER_REFLECTANCE,
    DTYPE,
    FOLDER,
    NODATA,
    RESOLUTION,
    SIZE,
    moved,
    write_patch,
)
from nbhelpers.stages.super_resolution.place import mgrs_square, tile_in_name

SHIFT = 1000  # DN added to patches with values below 1, as in products of baseline 04.00, so that 0 stays "no data"
MAX_REFLECTANCE = 20.0  # floats above it are digital numbers or something else
RECORD_NAME = "CUT.json"  # in the folder of a scene's patches: what they were cut from, and how
_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Cutting:
    """What was written."""

    folder: Path  # the data folder
    n_patches: int
    places: tuple[str, ...]  # of the scenes, sorted, each once
    bands: tuple[str, ...]  # that every patch has

    def __str__(self) -> str:
        return (
            f"{self.n_patches} patches with {', '.join(self.bands)} in {self.folder}; places: {', '.join(self.places)}"
        )


def cut_scenes(
    sources: Sequence[Path],
    to: Path,
    *,
    bands: Sequence[str] = (),
    size: int = SIZE,
    place: str | None = None,
    offset: int | None = None,
) -> Cutting:
    """Cut GeoTIFF scenes into square patches with georeference, and note in ``places.json`` where each scene lies.

    The bands written are those whose own resolution is the scene's pixel size: others were enlarged or reduced. Where
    ``size`` does not divide a scene, the last row and column of patches overlap those before. Pixels without data (the
    file's nodata value; 0 in whole numbers, NaN in floats) become 0; a patch of nothing else is not written.
    A scene that was cut to this folder in the same way before is left as it is, and counted.

    Args:
        sources: GeoTIFFs, or folders of them; whole numbers are DN, floats reflectance.
        to: a data folder, new or made before.
        bands: to write; default: all. The file's band descriptions say which is which. One without descriptions and
            with as many bands as are given has these in this order; else 12 are level 2A, 13 level 1C in their order.
        size: pixels along a side.
        place: of all these scenes; default: the tile in the file's name, the MGRS square of its centre, or its name.
        offset: DN to add; default: the file's tags, else the processing baseline in its name or a folder's.

    Raises:
        UserError: no scene, unknown or too few bands, pixels that are no 10, 20 or 60 m, a scene smaller than ``size``,
            values that are neither DN nor reflectance, a scene that was cut to this folder in another way.
    """
    scenes = list(_scenes(sources))
    root = to / FOLDER
    places: dict[str, str] = {}
    n_patches, written = 0, list[str]()
    for path in tqdm(scenes, desc="cutting scenes", unit="scene", disable=None):
        product = root / path.stem
        with opened(path) as scene:
            here = _bands_here(scene, path, bands)
            if written and list(here) != written:
                raise UserError(f"{path} has the bands {', '.join(here)}, the scene before it {', '.join(written)}.")
            written = list(here)
            places[path.stem] = place or tile_in_name(path.stem) or _square(scene) or path.stem
            record: dict[str, Any] = {
                "source": file_sha256(path),
                "bands": written,
                "size": size,
                "place": places[path.stem],
                "offset": _offset(scene, path, here, offset),
            }
            if product.exists():
                n_patches += _cut_before(product, record)
                continue
            unfinished = root / f".{path.stem}.cutting"  # readers pass over names with a dot
            with disk_errors(unfinished):
                shutil.rmtree(unfinished, ignore_errors=True)  # of an interrupted run of ours
                n_new = _cut(scene, unfinished, path.stem, here, size=size, offset=record["offset"])
                _write_json(unfinished / RECORD_NAME, {**record, "n_patches": n_new})
                _note_place(root / PLACES_NAME, path.stem, places[path.stem])
                unfinished.replace(product)
                n_patches += n_new
    return Cutting(to, n_patches, tuple(sorted(set(places.values()))), tuple(written))


def _cut_before(product: Path, record: dict[str, Any]) -> int:
    """Number of the patches that are there already and whole; UserError where they are others than would be cut."""
    try:
        there = json.loads((product / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not of ours, or of no scene at all
        there = {}
    changed = [name for name, value in record.items() if there.get(name) != value]
    found = sum(path.is_dir() for path in product.iterdir())
    if changed or found != there["n_patches"]:
        why = (
            f"cut with another {' and '.join(changed)}" if changed else f"of {there['n_patches']} patches {found} left"
        )
        raise UserError(f"{product} exists already ({why}): remove it, or give --to another folder.")
    return found


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _note_place(notes: Path, name: str, place: str) -> None:
    known = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    _write_json(notes, {**known, name: place})


def _scenes(sources: Sequence[Path]) -> Iterator[Path]:
    for source in sources:
        if source.is_file():
            yield source
            continue
        found = sorted(path for path in source.glob("*") if path.suffix.lower() in _SUFFIXES)
        if not found:
            raise UserError(f"{source} is no GeoTIFF and no folder with .tif files: give the path of scenes.")
        yield from found


def _bands_here(scene: Any, path: Path, asked: Sequence[str]) -> dict[str, int]:
    """Number of each band to write (from 1, as rasterio counts): those at home in the scene's pixels."""
    if unknown := [name for name in asked if name not in LEVEL_1C]:
        raise UserError(f"{path}: there is no band {unknown[0]!r}; known are {', '.join(LEVEL_1C)}.")
    found = bands_of(scene, asked)
    if not found:
        raise UserError(
            f"{path} has {scene.count} bands and {'no' if not asked else len(asked)} names for them: give --bands with "
            "the name of each in the file's order, such as B02 B03 B04 B08."
        )
    if absent := [name for name in asked if name not in found]:
        raise UserError(
            f"{path} has the bands {', '.join(found)} and --bands asks for {absent[0]}: leave --bands out, or correct "
            "the band descriptions in the file."
        )
    names = {name: found[name] for name in asked or found}
    width = abs(scene.transform.a) if scene.crs else 10.0  # without a georeference there is nothing else to go by
    metres = next((known for known in (10, 20, 60) if abs(width - known) < 0.01 * known), None)
    if metres is None or (scene.crs and not scene.crs.is_projected):
        raise UserError(
            f"{path} has pixels of {width:g} {'m' if scene.crs.is_projected else 'degrees'}, expected 10, 20 or 60 m: "
            "warp it to its UTM zone first, e.g. `gdalwarp -t_srs EPSG:32633 -tr 10 10`."
        )
    here = {name: number for name, number in names.items() if RESOLUTION.get(name) == metres}
    if not here:
        raise UserError(
            f"{path} has pixels of {metres} m, but none of its bands {', '.join(names)} was measured at that: take a "
            f"scene with {', '.join(band for band in BANDS if RESOLUTION[band] == metres)}."
        )
    return here


def _offset(scene: Any, path: Path, bands: dict[str, int], asked: int | None) -> int:
    if np.issubdtype(np.dtype(scene.dtypes[0]), np.floating):
        return 0  # they are reflectances already
    if asked is not None:
        return asked
    return offset_of_scene(path, [(scene.scales[number - 1], scene.offsets[number - 1]) for number in bands.values()])


def _square(scene: Any) -> str | None:
    centre = moved(scene.transform, column=scene.width / 2, row=scene.height / 2)
    return mgrs_square(scene.crs, centre.c, centre.f)


def _cut(scene: Any, folder: Path, name: str, bands: dict[str, int], *, size: int, offset: int) -> int:
    """Write the scene's patches into ``folder``; returns their number."""
    if min(scene.height, scene.width) < size:
        raise UserError(
            f"{scene.name} has {scene.height} x {scene.width} pixels, which is smaller than a patch of {size}: give a "
            "smaller --size."
        )
    metres = RESOLUTION[next(iter(bands))]  # write_patch wants the transform of 10 m pixels
    folder.mkdir(parents=True)
    n_patches = 0
    for down, row in enumerate(_starts(scene.height, size)):
        for right, column in enumerate(_starts(scene.width, size)):
            window = Window(column, row, size, size)
            stored = scene.read(list(bands.values()), window=window)
            pixels, added = _digital_numbers(stored, scene.nodata, offset, scene.name)
            if not pixels.any():
                continue
            corner = moved(scene.transform, column=column, row=row, size=10 / metres)
            write_patch(
                folder,
                f"{name}_{right}_{down}",
                dict(zip(bands, pixels, strict=True)),
                crs=scene.crs,
                transform=corner if scene.crs else None,
                offset=added,
            )
            n_patches += 1
    return n_patches


def _starts(length: int, size: int) -> list[int]:
    starts = list(range(0, length - size + 1, size))
    return starts if starts[-1] + size == length else [*starts, length - size]


def _digital_numbers(stored: NDArray, nodata: float | None, offset: int, source: str) -> tuple[NDArray, int]:
    """``(C, H, W)`` uint16 DN, 0 where there is no data, and their offset."""
    floats = np.issubdtype(stored.dtype, np.floating)
    missing = np.isnan(stored) if floats else stored == NODATA
    if nodata is not None:
        missing |= stored == nodata
    if missing.all():
        return np.zeros(stored.shape, DTYPE), offset
    if floats:
        highest = float(stored[~missing].max())
        if highest > MAX_REFLECTANCE:
            raise UserError(
                f"{source} holds floats up to {highest:g}, expected reflectance (about 0 to 1): save digital numbers "
                "as uint16."
            )
        numbers = np.round(np.where(missing, 0, stored) * float(DN_PER_REFLECTANCE)).astype(np.int64)
    else:
        numbers = stored.astype(np.int64)
    if numbers[~missing].min() < 1:
        numbers, offset = numbers + SHIFT, offset - SHIFT
    low, high = int(numbers[~missing].min()), int(numbers[~missing].max())
    if low < 1 or high > np.iinfo(DTYPE).max:
        raise UserError(
            f"{source} holds reflectances of {(low + offset) / DN_PER_REFLECTANCE:g} to "
            f"{(high + offset) / DN_PER_REFLECTANCE:g}, which do not fit into {DTYPE} digital numbers: declare its "
            "nodata value, or check its units."
        )
    numbers[missing] = NODATA
    return numbers.astype(DTYPE), offset
