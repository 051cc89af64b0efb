"""Images of reflectance written as GeoTIFFs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine

from nbhelpers.core.disk import check_room, disk_errors
from nbhelpers.core.errors import UserError

BLOCK = 256  # pixels along a side of the file's tiles


def write_reflectance(
    path: Path,
    image: NDArray[np.float32],
    *,
    bands: Sequence[str],
    crs: Any,
    transform: Affine,
    tags: Mapping[str, str],
) -> Path:
    """Write ``(C, H, W)`` reflectance as a GeoTIFF in float32, in tiles, compressed without loss; returns ``path``.

    NaN is the no-data value, which no reflectance can be. The file is there when it is whole and holds what it should.

    Args:
        bands: names of the channels.
        crs: anything that rasterio takes; None: no georeference.
        transform: of the pixels.
        tags: to stand in the file, by name.

    Raises:
        UserError: the disk is full or not writable; what stood at ``path`` stays.
    """
    count, height, width = image.shape
    profile = {
        "driver": "GTiff", "dtype": "float32", "count": count, "height": height, "width": width, "nodata": np.nan,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band", "compress": "deflate",
        "predictor": 3, "bigtiff": "IF_SAFER", "num_threads": "ALL_CPUS", "crs": crs, "transform": transform,
    }  # fmt: skip
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path.parent, image.nbytes, str(path))
        try:
            with quiet(), rasterio.open(part, "w", **profile) as file:
                file.update_tags(**tags)
                for number, (band, name) in enumerate(zip(image, bands, strict=True), start=1):
                    file.write(band, number)
                    file.set_band_description(number, name)
            # GDAL says nothing of a disk that gets full while it closes a file.
            with quiet(), rasterio.open(part) as file:
                for number, band in enumerate(image, start=1):
                    if not np.array_equal(file.read(number), band, equal_nan=True):
                        raise UserError(f"{path} does not hold what was written to it: check the disk and run again.")
            os.replace(part, path)
        except RasterioError as error:
            raise UserError(
                f"{path} could not be written ({error}): make room on that disk or choose another one with --to."
            ) from error
        finally:
            part.unlink(missing_ok=True)
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Without rasterio's warning that an image has no georeference: it is an image, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
