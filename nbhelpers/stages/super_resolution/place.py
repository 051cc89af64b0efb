"""Where a patch lies: the Sentinel-2 tile, from its name or from its georeference.

Tiles are named by a square of the Military Grid Reference System (MGRS): UTM zone, latitude band, and two letters for
the square of 100 km. A tile is 109.8 km wide, so that its last patches lie in the next square: the tile of a patch is
that of the tile's centre, which BigEarthNet's column and row numbers give.
"""

from __future__ import annotations

import re
from typing import Any

from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points

from nbhelpers.stages.super_resolution.patch import SIZE, V1_NAME, V2_NAME, moved

_BANDS = "CDEFGHJKLMNPQRSTUVWX"  # 8 degrees of latitude each from 80 S; I and O are never used
_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")  # of zones 3, 6, …; 1, 4, …; 2, 5, …
_ROWS = "ABCDEFGHJKLMNPQRSTUV"  # 2000 km from the equator, then again; even zones begin at F
_TILE = 109_800  # metres along a side of a Sentinel-2 tile
_STEP = SIZE * 10  # metres from one patch of BigEarthNet to the next


def tile_in_name(name: str) -> str | None:
    """``33UUP`` of a patch or product named as in BigEarthNet v2; None for other names."""
    found = V2_NAME.fullmatch(name) or V2_NAME.fullmatch(f"{name}_0_0")
    return found["tile"] if found else None


def mgrs_square(crs: Any, x: float, y: float) -> str | None:
    """Name of the MGRS square of 100 km that holds a point, e.g. ``33UUP``; None outside the UTM zones.

    Args:
        crs: of the coordinates, which must be WGS 84 / UTM (EPSG 32601–32660, 32701–32760); None gives None.
        x: easting in metres.
        y: northing in metres.
    """
    code = CRS.from_user_input(crs).to_epsg() if crs is not None else None
    if code is None or not (32601 <= code <= 32660 or 32701 <= code <= 32760):
        return None
    zone = code % 100
    _, (latitude,) = warp_points(crs, "EPSG:4326", [x], [y])
    column = int(x // 100_000) - 1
    if not -80 <= latitude <= 84 or not 0 <= column < 8:
        return None
    band = _BANDS[min(int((latitude + 80) // 8), len(_BANDS) - 1)]
    row = _ROWS[(int(y // 100_000) + (5 if zone % 2 == 0 else 0)) % len(_ROWS)]
    return f"{zone:02d}{band}{_COLUMNS[zone % 3][column]}{row}"


def place_of(name: str, crs: Any, transform: Affine, shape: tuple[int, int]) -> str | None:
    """The tile of a patch by its georeference; None where that is not UTM.

    Args:
        name: of the patch; column and row at the end of a BigEarthNet v1 name tell where in its tile the patch lies.
        transform: of the pixels of one of its bands.
        shape: (H, W) of that band.
    """
    centre = moved(transform, column=shape[1] / 2, row=shape[0] / 2)
    x, y = centre.c, centre.f
    if V1_NAME.fullmatch(name) and (numbers := re.search(r"_(\d+)_(\d+)$", name)):
        corner_x, corner_y = transform.c - int(numbers[1]) * _STEP, transform.f + int(numbers[2]) * _STEP
        x, y = corner_x + _TILE / 2, corner_y - _TILE / 2
    return mgrs_square(crs, x, y)
