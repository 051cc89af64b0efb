"""Scenes as GeoTIFFs: reading reflectance out of what people have, writing what was made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science.geotiff import quiet, write_reflectance
from nbhelpers.science.sentinel2 import band_in, bands_of, high_darks, offset_of_scene
from nbhelpers.stages.super_resolution.patch import DN_PER_REFLECTANCE, NODATA, moved

LOWEST, HIGHEST = -0.5, 10.0  # reflectance; what lies outside is in other units, or is an undeclared no-data value
SUFFIXES = (".tif", ".tiff", ".jp2")


@dataclass(frozen=True)
class Scene:
    """An image and where it lies."""

    image: Tensor  # (C, h, w) float32 reflectance; NaN in all bands where one of them was not measured
    bands: tuple[str, ...]  # of the channels, e.g. B02
    crs: Any  # rasterio's; None without one
    transform: Affine  # of the pixels
    source: tuple[Path, ...]  # the files
    units: str  # what the files hold, in words
    warnings: tuple[str, ...] = ()  # what to look at before the image is trusted, a sentence each

    @property
    def metres(self) -> float | None:
        """Side of a pixel; None where the CRS is none with a unit of length."""
        if self.crs is None or not self.crs.is_projected:
            return None
        return float(abs(self.transform.determinant) ** 0.5 * self.crs.linear_units_factor[1])


def read_scene(path: Path | Sequence[Path], bands: Sequence[str], *, offset: int | None = None) -> Scene:
    """Read ``bands`` of a scene as reflectance.

    Bands are found by the descriptions in the file (B02 or B2); without these a file of as many bands as are asked for
    has them in that order, and one of 12 or 13 bands is level 2A or 1C in its order (B01 … B08, B8A, …). In a
    folder, or several files, each has one band and its name says which (``…_B02_10m.jp2``).

    Integers of 16 bits are digital numbers, reflectance = (DN + offset)/1e4, and so is everything with a scale tag of
    1e-4; other floating-point numbers are reflectance. Not measured is what the file says (its no-data value or mask),
    0 in digital numbers, and NaN.

    Args:
        path: a file with several bands, a folder with one file a band, or those files.
        offset: to add to digital numbers; None: as the file's tags say, else the processing baseline in its name or a
            folder's (-1000 from 04.00 on), else 0.

    Raises:
        UserError: no such file, bands that are absent or of different grids, or numbers that cannot be told from
            reflectance.
    """
    files = _files(path)
    with ExitStack() as stack:
        opened = [stack.enter_context(_opened(file)) for file in files]
        layers = _layers(opened, tuple(bands))
        first = layers[0][0]
        for file, _ in layers:
            if (file.shape, file.crs) != (first.shape, first.crs) or not file.transform.almost_equals(first.transform):
                raise UserError(
                    f"{file.name} has {file.height} x {file.width} pixels and {first.name} {first.height} x "
                    f"{first.width}, or another georeference: give bands of one resolution and one place."
                )
        digital = {_is_digital(file, number) for file, number in layers}
        if len(digital) > 1:
            raise UserError(f"{_name(files)} mixes digital numbers and reflectance: give all bands in one unit.")
        added = None
        if digital.pop():
            tags = [(file.scales[number - 1], file.offsets[number - 1]) for file, number in layers]
            added = offset_of_scene(files[0], tags) if offset is None else offset
        image = np.stack([_read(file, number, added) for file, number in layers])
    image[:, np.isnan(image).any(0)] = np.nan
    low, high = np.nanmin(image, initial=0.0), np.nanmax(image, initial=0.0)
    if not LOWEST <= low <= high <= HIGHEST:
        raise UserError(
            f"{_name(files)} would have reflectances from {low:.3g} to {high:.3g}, expected 0 to about 1: if they are "
            f"digital numbers write them as uint16 (or with the scale tag 1e-4), if they are no data declare the value."
        )
    units = "reflectance" if added is None else f"digital numbers, reflectance = (DN {added:+d}) / {DN_PER_REFLECTANCE}"
    warning = None
    if added == 0 and offset is None and "B02" in bands and not np.isnan(image).all():
        blue = image[tuple(bands).index("B02")]
        warning = high_darks(float(np.nanpercentile(blue, 1)) * DN_PER_REFLECTANCE)
    warned = (warning,) if warning else ()
    return Scene(torch.from_numpy(image), tuple(bands), first.crs, first.transform, tuple(files), units, warned)


def write_scene(path: Path, image: Tensor, *, like: Scene, scale: int, tags: Mapping[str, str]) -> Path:
    """Write a super-resolved scene as a GeoTIFF in float32, in tiles, compressed without loss; returns ``path``.

    Same CRS and upper left corner as ``like``, pixels ``scale`` times smaller, its bands' names, and NaN as the no-data
    value, which no reflectance can be. Integers would round at 1e-4, ten times what the projection promises.

    Args:
        image: ``(C, scale·h, scale·w)`` reflectance.
        tags: to stand in the file, by name.

    Raises:
        UserError: the disk is full or not writable (what stood at ``path`` stays), or ``path`` is the scene itself.
    """
    if path.resolve() in {one.resolve() for one in like.source}:
        raise UserError(f"{path} is the scene that was read: choose another file to write to.")
    names, transform = like.bands, moved(like.transform, size=1 / scale)
    return write_reflectance(path, image.numpy(), bands=names, crs=like.crs, transform=transform, tags=tags)


def _files(path: Path | Sequence[Path]) -> list[Path]:
    given = [Path(path)] if isinstance(path, (str, Path)) else [Path(one) for one in path]
    found: list[Path] = []
    for one in given:
        found += sorted(file for file in one.iterdir() if file.suffix.lower() in SUFFIXES) if one.is_dir() else [one]
    for file in found:
        if not file.is_file():
            raise UserError(f"{file} does not exist: give the scene's GeoTIFF, or the folder with one file a band.")
    if not found:
        raise UserError(f"{_name(given)} holds no {', '.join(SUFFIXES)}: give the scene's GeoTIFF or its folder.")
    return found


def _name(files: Sequence[Path]) -> str:
    return str(files[0] if len(files) == 1 else files[0].parent if files else "the scene")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with quiet():
            file = rasterio.open(path)
    except RasterioError as error:
        raise UserError(f"{path} is not a readable GeoTIFF ({error}): export or fetch it again.") from error
    with file:
        yield file


def _layers(opened: Sequence[Any], bands: tuple[str, ...]) -> list[tuple[Any, int]]:
    """File and number of the layer of each band."""
    named: dict[str, tuple[Any, int]] = {}
    for file in opened:
        by_file = band_in(Path(file.name).stem) if file.count == 1 and not any(file.descriptions) else None
        alone = len(opened) == 1 and by_file is None
        for band, number in ({by_file: 1} if by_file else bands_of(file, bands if alone else ())).items():
            if band in named and band in bands:
                raise UserError(f"{file.name} and {named[band][0].name} both hold {band}: give each band once.")
            named[band] = (file, number)
    if set(bands) <= named.keys():
        return [named[band] for band in bands]
    first, count = opened[0], sum(file.count for file in opened)
    said = ", ".join(sorted(named)) or ", ".join(filter(None, first.descriptions)) or "no names"
    raise UserError(
        f"{_name([Path(file.name) for file in opened])} has {count} band(s) with {said}, expected {', '.join(bands)}: "
        f"describe the bands by these names, or give exactly these {len(bands)} or all 12 of level 2A without names."
    )


def _is_digital(file: Any, number: int) -> bool:
    dtype = np.dtype(file.dtypes[number - 1])
    if dtype.kind == "f":
        return file.scales[number - 1] != 1
    if dtype.kind in "iu" and dtype.itemsize >= 2:
        return True
    raise UserError(
        f"{file.name} holds {dtype} values, expected uint16 or int16 digital numbers or float32 reflectance: a picture "
        f"has lost its units; export the bands again."
    )


def _read(file: Any, number: int, offset: int | None) -> NDArray[np.float32]:
    """``(h, w)`` reflectance of one layer, NaN where nothing was measured."""
    try:
        values, measured = file.read(number), file.read_masks(number) > 0
    except RasterioError as error:
        raise UserError(f"{file.name} cannot be read ({error}): export or fetch it again.") from error
    if offset is None:
        reflectance = values.astype(np.float32) + np.float32(file.offsets[number - 1])
    else:
        measured &= values != NODATA
        reflectance = (values.astype(np.float32) + offset) / DN_PER_REFLECTANCE
    reflectance[~measured | ~np.isfinite(reflectance)] = np.nan
    return reflectance
