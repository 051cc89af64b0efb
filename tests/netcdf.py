"""Real NetCDF-4 files on small made grids, whose values tell where and when they belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cftime
import netCDF4
import numpy as np
from numpy.typing import NDArray

Moment = tuple[int, ...]  # year, month, day and perhaps hour
AXES = {
    "lat": {"standard_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "units": "degrees_east"},
    "rlat": {"standard_name": "grid_latitude", "units": "degrees"},
    "rlon": {"standard_name": "grid_longitude", "units": "degrees"},
    "y": {"standard_name": "projection_y_coordinate", "units": "m"},
    "x": {"standard_name": "projection_x_coordinate", "units": "m"},
    "latitude": {"units": "degrees_north"},
    "longitude": {"units": "degrees_east"},
}


def days(*years: int, month: int = 1, n: int = 8) -> list[Moment]:
    """The first days of a month of some years."""
    return [(year, month, day) for year in years for day in range(1, n + 1)]


def rain_at(lat: float, lon: float, when: Moment) -> float:
    """Made rain in mm/day; no two pixels, and no two days of a pixel, are alike."""
    east = (lon + 180) % 360 - 180
    return (
        (37 * abs(lat) + 11.3 * (east + 200) + 2.7 * when[2] + 5.1 * when[1] + 0.9 * (when[0] % 100)) % 60
    ) ** 2 / 120


def made(y: Sequence[float], x: Sequence[float], moments: Sequence[Moment]) -> NDArray[np.float64]:
    """``(T, H, W)`` of :func:`rain_at`."""
    return np.array([[[rain_at(lat, lon, when) for lon in x] for lat in y] for when in moments])


def write_nc(
    path: Path,
    variable: str,
    values: NDArray[Any],
    *,
    y: Sequence[float],
    x: Sequence[float],
    moments: Sequence[Moment] | None,
    units: str | None = "mm/day",
    dims: tuple[str, ...] = ("time", "lat", "lon"),
    calendar: str = "standard",
    since: str = "days since 1980-01-01",
    fill: float | None = None,
    packing: tuple[float, float] | None = None,
    attributes: Mapping[str, Any] | None = None,
    about: Mapping[str, str] | None = None,
    mapping: Mapping[str, float] | None = None,
) -> Path:
    """Write ``(T, H, W)`` (``(H, W)`` without ``moments``) as ``variable``; NaN becomes the fill value.

    ``dims`` may stand in any order; ``packing`` is (scale_factor, add_offset) of 16-bit integers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts(about or {})
        names = [name for name in dims if name != "time"]
        down = next(name for name in names if name in ("lat", "rlat", "y", "latitude"))
        across = next(name for name in names if name in ("lon", "rlon", "x", "longitude"))
        for name, axis in ((down, y), (across, x)):
            file.createDimension(name, len(axis))
            file.createVariable(name, "f8", (name,)).setncatts(AXES[name])
            file[name][:] = axis
        order = [down, across]
        if moments is not None:
            order = ["time", *order]
            file.createDimension("time", None)
            time = file.createVariable("time", "f8", ("time",))
            time.setncatts({"units": since, "calendar": calendar})
            dates = [cftime.datetime(*when, calendar=calendar) for when in moments]
            time[:] = cftime.date2num(dates, since, calendar)
        kind = "i2" if packing else values.dtype.str[1:]
        stored = file.createVariable(variable, kind, dims, fill_value=fill, zlib=True)
        if packing:
            stored.setncatts({"scale_factor": packing[0], "add_offset": packing[1]})
        if units is not None:
            stored.units = units
        if mapping is not None:
            file.createVariable("crs", "i4").setncatts(dict(mapping))
            stored.grid_mapping = "crs"
        stored.setncatts(dict(attributes or {}))
        in_order = np.transpose(values, [order.index(name) for name in dims])
        stored[:] = np.ma.array(np.nan_to_num(in_order), mask=np.isnan(in_order))
    return path
