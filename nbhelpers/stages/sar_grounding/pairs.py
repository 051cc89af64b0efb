"""Pairs of S1 and S2 images as they lie on people's disks: BigEarthNet's patches, and GeoTIFFs of equal names."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from nbhelpers.core.errors import UserError
from nbhelpers.science.bigearthnet_metadata import NAME, find_metadata
from nbhelpers.science.sentinel2 import BANDS, RESOLUTION, bands_of, offset_of_scene
from nbhelpers.stages.sar_grounding.grids import Grid, grid_of
from nbhelpers.stages.sar_grounding.layout import RTC
from nbhelpers.stages.sar_grounding.metadata import Row, read_metadata

NEEDED = ("B02", "B03", "B04", "B08")
POLARISATIONS = ("VV", "VH")
LABELS = "_labels_metadata.json"  # ends the name of the JSON in each of BigEarthNet v1's folders
SUFFIXES = (".tif", ".tiff")
_RTC = re.compile(r"(?<![A-Z])RTC(?![A-Z])", re.IGNORECASE)  # S1RTC, sentinel-1-rtc
_DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})T\d{2}")


@dataclass(frozen=True)
class Pair:
    """Two images that show one place, known by their headers; pixels are read when asked for."""

    name: str
    s1: Grid
    s2: Grid
    names: tuple[str, str]  # files or folders of S1 and of S2, for messages
    bands: tuple[str, ...]  # of S2, in the order that `read_s2` gives them
    offset: int  # DN to add, as the files or their names declare
    date_s1: str | None
    date_s2: str | None
    source: str
    country: str | None
    read_s1: Callable[[], NDArray[np.float32]]  # (2, H, W) dB: VV, VH; NaN where the file says "no data"
    read_s2: Callable[[], NDArray]  # (C, H, W) as stored, at 10 m; 0 (NaN in fractions) where the file says "no data"


def find_pairs(s1: Path, s2: Path) -> tuple[list[Pair], tuple[str, ...]]:
    """Pairs of BigEarthNet where ``s1`` holds its folders, else of GeoTIFFs of equal names; and remarks, if any.

    Version 1 names the partner in a JSON beside each S1 patch, version 2 in its ``metadata.parquet``, which is looked
    for in ``s2``, ``s1`` and the folders that these are in. It names the countries of both.

    Raises:
        UserError: no such folder, nothing in it, an image without its partner, version 2 without its metadata.
    """
    for folder in (s1, s2):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: name those of the S1 and of the S2 images.")
    patches = sorted(s1.glob(f"*/*{LABELS}"))
    version_2 = not patches and next(s1.glob(f"*/*/*_{POLARISATIONS[0]}.tif"), None) is not None
    if patches or version_2:
        path = find_metadata(s2, s1, s2.parent, s1.parent)
        if version_2:
            if path is None:
                raise UserError(
                    f"{s1} holds patches of BigEarthNet v2, but no {NAME} that names the pairs lies in or beside it or "
                    f"{s2}: fetch it from where the patches are from."
                )
            return _version_2(s1, s2, read_metadata(path), str(path))
        if path is not None and find_spec("pyarrow") is None:
            said = f"{path} would name the countries, but pyarrow is not installed: they are left open"
            return [_version_1(one, s2, {}) for one in patches], (said,)
        return [_version_1(one, s2, read_metadata(path) if path is not None else {}) for one in patches], ()
    files = {path.stem: path for path in sorted(s1.iterdir()) if path.suffix.lower() in SUFFIXES}
    if not files:
        raise UserError(
            f"{s1} holds no S1 images: expected folders with *{LABELS} as in BigEarthNet v1, folders of scenes with "
            "folders of patches as in v2, or GeoTIFFs with VV and VH whose names are those of the S2 files."
        )
    partners = {path.stem: path for path in sorted(s2.iterdir()) if path.suffix.lower() in SUFFIXES}
    for name in sorted(files.keys() ^ partners.keys()):
        there, absent = (files[name], s2) if name in files else (partners[name], s1)
        raise UserError(f"{there} has no partner of that name in {absent}: add it, or take the file away.")
    return [_geotiff(files[name], partners[name]) for name in files], ()


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An image opened by rasterio; ``UserError`` where that or reading it fails."""
    if not path.is_file():
        raise UserError(f"{path} is not there: fetch it again, or take the pair away.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said in our own words
            file = rasterio.open(path)
        with file:
            yield file
    except RasterioError as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again, or take the pair away.") from error


def _version_1(labels: Path, s2: Path, rows: Mapping[str, Row]) -> Pair:
    folder, name = labels.parent, labels.name[: -len(LABELS)]
    try:
        about = json.loads(labels.read_text(encoding="utf-8"))
        partner, time = str(about["corresponding_s2_patch"]), str(about.get("acquisition_time", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{labels} does not name the patch's S2 partner in 'corresponding_s2_patch' ({error!r}): fetch it again."
        ) from error
    if not (s2 / partner).is_dir():
        raise UserError(f"{labels} names {partner}, which is not in {s2}: add that patch, or take {name} away.")
    country = rows[name].country if name in rows else None
    return _patches(folder, name, s2 / partner, date_s1=_date(time) or _date(name), version="v1", country=country)


def _version_2(s1: Path, s2: Path, rows: Mapping[str, Row], table: str) -> tuple[list[Pair], tuple[str, ...]]:
    """Patches lie in folders of their scenes; those that ``table`` does not list have snow, cloud or shadow."""
    here, there = ({path.name: path for path in sorted(root.glob("*/*")) if path.is_dir()} for root in (s1, s2))
    listed = [name for name in here if name in rows]
    if not listed:
        raise UserError(f"{table} lists none of the {len(here)} patches in {s1}: take the file of the same version.")
    pairs = []
    for name in listed:
        partner = rows[name].s2_name
        if partner not in there:
            raise UserError(f"{table} pairs {name} with {partner}, which is not in {s2}: add it, or take {name} away.")
        one, country = there[partner], rows[name].country
        pairs.append(_patches(here[name], name, one, date_s1=_date(name), version="v2", country=country))
    if lost := len(here) - len(listed):
        return pairs, (f"{lost} of {len(here)} S1 patches are left out because {table} does not list them",)
    return pairs, ()


def _patches(folder: Path, name: str, other: Path, *, date_s1: str | None, version: str, country: str | None) -> Pair:
    """Of the S1 patch ``name`` in ``folder`` and the S2 patch in ``other``, each band in a file of its own."""
    of_s1 = [folder / f"{name}_{one}.tif" for one in POLARISATIONS]
    partner = other.name
    bands = tuple(band for band in BANDS if (other / f"{partner}_{band}.tif").is_file())
    if absent := [band for band in NEEDED if band not in bands]:
        raise UserError(f"{other} lacks band {absent[0]}: fetch the patch again.")
    of_s2 = [other / f"{partner}_{band}.tif" for band in bands]
    with opened(of_s1[0]) as file:
        grid_s1 = grid_of(file, str(of_s1[0]))
    blue = of_s2[bands.index(NEEDED[0])]
    with opened(blue) as file:
        grid_s2 = grid_of(file, str(blue))
        offset = offset_of_scene(blue, [(file.scales[0], file.offsets[0])])
    steps = [RESOLUTION[band] // 10 for band in bands]
    return Pair(
        name=name,
        s1=grid_s1,
        s2=grid_s2,
        names=(str(folder), str(other)),
        bands=bands,
        offset=offset,
        date_s1=date_s1,
        date_s2=_date(partner),
        source=f"BigEarthNet {version} {name} / {partner}",
        country=country,
        read_s1=lambda: _stack(of_s1, [1, 1], grid_s1.shape, np.nan),
        read_s2=lambda: _stack(of_s2, steps, grid_s2.shape, 0),
    )


def _geotiff(s1: Path, s2: Path) -> Pair:
    with opened(s1) as file:
        grid_s1, channels = grid_of(file, str(s1)), _channels(file, s1)
        date_s1 = _date(file.tags().get("datetime", "")) or _date(s1.stem)
    with opened(s2) as file:
        grid_s2, numbers = grid_of(file, str(s2)), bands_of(file, NEEDED)
        if absent := [band for band in NEEDED if band not in numbers]:
            raise UserError(
                f"{s2} has {file.count} bands and no {absent[0]} that can be told: describe the bands (B02, B03, …), "
                "or give the 12 of level 2A in their order."
            )
        bands = BANDS if set(BANDS) == set(numbers) else NEEDED
        chosen = [numbers[band] for band in bands]
        offset = offset_of_scene(s2, [(file.scales[n - 1], file.offsets[n - 1]) for n in chosen])
        date_s2 = _date(file.tags().get("datetime", "")) or _date(s2.stem)

    corrected = f"; {RTC}" if _RTC.search(f"{s1.parent.name}/{s1.name}") else ""

    def read(path: Path, wanted: list[int], missing: float) -> NDArray:
        with opened(path) as image:
            return _without_nodata(image, image.read(wanted), missing)

    return Pair(
        name=s1.stem,
        s1=grid_s1,
        s2=grid_s2,
        names=(str(s1), str(s2)),
        bands=bands,
        offset=offset,
        date_s1=date_s1,
        date_s2=date_s2,
        source=f"{s1.parent.name}/{s1.name} and {s2.parent.name}/{s2.name}{corrected}",
        country=None,
        read_s1=lambda: read(s1, channels, np.nan).astype(np.float32),
        read_s2=lambda: read(s2, chosen, 0),
    )


def _channels(file: Any, path: Path) -> list[int]:
    """Numbers of VV and VH: by their descriptions, else the first and the second of two."""
    texts = [(text or "").upper() for text in file.descriptions]
    named = {one: n for n, text in enumerate(texts, 1) for one in POLARISATIONS if one in text}
    if len(named) == 2:
        return [named[one] for one in POLARISATIONS]
    if file.count != 2 or named:
        raise UserError(f"{path} has {file.count} bands, expected two, VV and VH: describe them by these names.")
    return [1, 2]


def _stack(paths: Sequence[Path], steps: Sequence[int], shape: tuple[int, int], missing: float) -> NDArray:
    """``(C, H, W)`` of files of one band, each pixel of which is ``step`` pixels of the result along a side."""
    layers = []
    for path, step in zip(paths, steps, strict=True):
        with opened(path) as file:
            values = _without_nodata(file, file.read(1), missing)
        fine = values.repeat(step, 0).repeat(step, 1)
        if fine.shape != shape:
            raise UserError(
                f"{path} has {values.shape} pixels of {10 * step} m, expected {shape[0] // step} x {shape[1] // step} "
                "as the pair's other bands: fetch the patch again."
            )
        layers.append(fine)
    return np.stack(layers)


def _without_nodata(file: Any, values: NDArray, missing: float) -> NDArray:
    """``values`` with ``missing`` (NaN in fractions) where the file declares no data."""
    if file.nodata is None:
        return values
    gaps = np.isnan(values) if np.isnan(file.nodata) else values == file.nodata
    if np.issubdtype(values.dtype, np.floating) or np.isnan(missing):
        return np.where(gaps, np.nan, values).astype(np.float32)
    return np.where(gaps, 0, values).astype(values.dtype)


def _date(text: str) -> str | None:
    """``2017-06-13`` of ``S2A_MSIL2A_20170613T101031_87_48`` or ``2017-06-13T16:50:43``; None without a date."""
    found = _DATE.search(text)
    return "-".join(found.groups()) if found else None
