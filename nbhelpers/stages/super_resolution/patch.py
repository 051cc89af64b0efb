"""BigEarthNet's file format: one small GeoTIFF a band, its names and what its numbers mean.

Clasen et al. (2024), "reBEN: Refined BigEarthNet Dataset for Remote Sensing Image Analysis" (v2); Sumbul et al. (2019),
"BigEarthNet: A Large-Scale Benchmark Archive for Remote Sensing Image Understanding" (v1). Both versions name a file
``<patch id>/<patch id>_<band>.tif``; v2 puts the patches of a Sentinel-2 product into one more folder.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import ArrayLike
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from nbhelpers.core.errors import UserError
from nbhelpers.science.sentinel2 import BANDS, DN_PER_REFLECTANCE, RESOLUTION

DEFAULT_BANDS = ("B02", "B03", "B04", "B08")  # blue, green, red, near infrared: all that there is at 10 m
DTYPE = "uint16"  # of the digital numbers (DN)
NODATA = 0  # DN of a pixel that was not measured
SIZE = 120  # pixels of 10 m along a side of BigEarthNet's patches
FOLDER = "BigEarthNet-S2"  # what the archive of v2 unpacks to
FOLDERS = (FOLDER, "BigEarthNet-S2-v1.0", "BigEarthNet-v1.0")  # and those of v1
SIMULATION_NAME = "SIMULATED.json"  # stands in the folder of simulated data and says how they were made

# S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57, in a folder named by all but the last two numbers (column, row).
V2_NAME = re.compile(r"(?P<product>S2[A-D]_MSIL2A_\d{8}T\d{5,6}_N\d{4}_R\d{3}_T(?P<tile>\d{2}[A-Z]{3}))_\d+_\d+")
# S2A_MSIL2A_20170613T101031_87_48; the hour of early mornings lacks its zero.
V1_NAME = re.compile(r"(?P<product>S2[A-D]_MSIL2A_\d{8}T\d{5,6})_\d+_\d+")


@dataclass(frozen=True)
class Patch:
    """One patch of a data set, by what is known of it before its pixels are read."""

    index: int  # its position in the data set that it is read from
    id: str  # as its folder is called
    place: str  # tile such as 33UUP, or the folder it came in: the unit of the split
    country: str | None = None  # of metadata.parquet; None where that is absent or does not list the patch
    official: str | None = None  # split in metadata.parquet: train, validation or test
    part: str = ""  # "val" for patches of a folder that was given for validation


def band_file(folder: Path, name: str, band: str) -> Path:
    """The GeoTIFF of ``band`` of the patch ``name`` in its own ``folder``."""
    return folder / f"{name}_{band}.tif"


def common_resolution(bands: Sequence[str]) -> int:
    """Metres a pixel, the same for all ``bands``.

    Raises:
        UserError: no bands, an unknown or repeated one, or bands of two resolutions, which make no one image.
    """
    if not bands or len(set(bands)) < len(bands) or not set(bands) <= set(BANDS):
        raise UserError(f"bands are {', '.join(bands) or 'none'}: give each once, some of {', '.join(BANDS)}.")
    by_metres = {RESOLUTION[band]: band for band in reversed(bands)}
    if len(by_metres) > 1:
        (fine, one), (coarse, other) = sorted(by_metres.items())[:2]
        raise UserError(
            f"band {one} has pixels of {fine} m and band {other} of {coarse} m: choose bands of one resolution, such "
            f"as {', '.join(DEFAULT_BANDS)}."
        )
    return next(iter(by_metres))


def moved(transform: Affine, *, column: float = 0, row: float = 0, size: float = 1) -> Affine:
    """The transform of pixels ``size`` times as large, the first of which begins at ``column`` and ``row``."""
    # In numbers: affine 3 warns of ``transform * other``, and affine 2 knows no other operator.
    a, b, c, d, e, f = tuple(transform)[:6]
    return Affine(a * size, b * size, a * column + b * row + c, d * size, e * size, d * column + e * row + f)


def write_patch(
    folder: Path,
    name: str,
    bands: Mapping[str, ArrayLike],
    *,
    crs: Any = None,
    transform: Affine | None = None,
    offset: int = 0,
) -> Path:
    """Write the patch ``name`` into ``folder/name``, one uint16 GeoTIFF a band, as BigEarthNet's own files are.

    Args:
        folder: for v2 that of the product (``BigEarthNet-S2/<product>``), for v1 the data set's own.
        bands: ``(H, W)`` digital numbers by band name; a band of 20 m has half as many rows and columns.
        crs: anything that rasterio takes, e.g. ``"EPSG:32633"``; None: no georeference.
        transform: of the 10 m pixels; bands of 20 and 60 m get the same corner and larger pixels.
        offset: in DN, written as the GeoTIFF's own scale and offset when it is not 0.

    Returns:
        The folder of the patch.
    """
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    for band, values in bands.items():
        pixels = np.asarray(values)
        if pixels.dtype != DTYPE or pixels.ndim != 2:
            raise ValueError(f"band {band} is {pixels.dtype} of shape {pixels.shape}, not (H, W) {DTYPE}")
        height, width = pixels.shape
        georeference: dict[str, Any] = {"crs": crs} if crs is not None else {}
        if transform is not None:
            georeference["transform"] = moved(transform, size=RESOLUTION[band] / 10)
        profile = {"driver": "GTiff", "dtype": DTYPE, "count": 1, "height": height, "width": width, **georeference}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the caller's choice
            with rasterio.open(band_file(target, name, band), "w", **profile) as opened:
                opened.write(pixels, 1)
                if offset:
                    opened.scales = (1 / DN_PER_REFLECTANCE,)
                    opened.offsets = (offset / DN_PER_REFLECTANCE,)
    return target
