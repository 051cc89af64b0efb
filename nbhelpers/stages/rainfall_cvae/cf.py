"""What lies in a NetCDF file by the CF conventions: axes of a variable, its days, and a window of its values.

One-dimensional axes alone: latitude and longitude, rotated ones, or those of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.grid import DEGREE_KM, Grid, Kind, continuous

_Y = {"lat": "geographic", "latitude": "geographic", "rlat": "rotated", "grid_latitude": "rotated"}
_Y |= {"y": "projected", "yc": "projected", "projection_y_coordinate": "projected"}
_X = {"lon": "geographic", "longitude": "geographic", "rlon": "rotated", "grid_longitude": "rotated"}
_X |= {"x": "projected", "xc": "projected", "projection_x_coordinate": "projected"}


@dataclass(frozen=True)
class Axes:
    """Where time and place stand among the dimensions of a variable, and the grid as it lies in the file."""

    time: int | None  # position among the dimensions; None in a file of one map
    y: int
    x: int
    grid: Grid  # in our order
    rows: NDArray[np.intp]  # (H,) index in the file of each of our rows
    columns: NDArray[np.intp]


def opened(path: Path) -> Any:
    """The dataset, to be used in a ``with``; one sentence where it cannot be opened."""
    try:
        import netCDF4
    except ImportError as error:
        raise UserError(f"{path} needs the package netCDF4: `pip install netCDF4`.") from error
    if not path.is_file():
        raise UserError(f"{path} is not there: give the path of a NetCDF file.")
    try:
        return netCDF4.Dataset(path)
    except OSError as error:
        raise UserError(
            f"{path} is no whole NetCDF file ({error.strerror or error}): fetch or write it again."
        ) from error


def variable_of(dataset: Any, path: Path, name: str) -> Any:
    if name not in dataset.variables:
        raise UserError(f"{path} has no variable {name!r}: it has {', '.join(dataset.variables)}.")
    return dataset.variables[name]


def axes_of(dataset: Any, values: Any, path: Path) -> Axes:
    """Find time, y and x among the dimensions; other dimensions must have one entry."""
    time = y = x = None
    kinds: list[Kind] = []
    for position, name in enumerate(values.dimensions):
        coordinate = dataset.variables.get(name)
        if coordinate is not None and " since " in getattr(coordinate, "units", ""):
            time = position
        elif (kind := _kind(name, coordinate, _Y, "degree_north")) is not None:
            y = position
            kinds.append(kind)
        elif (kind := _kind(name, coordinate, _X, "degree_east")) is not None:
            x = position
            kinds.append(kind)
        elif len(dataset.dimensions[name]) != 1:
            raise UserError(
                f"{path}: {values.name} has a dimension {name} of {len(dataset.dimensions[name])} without a coordinate "
                "variable of time, latitude or longitude (rlat, rlon; x, y): choose one level, or bring a curvilinear "
                "grid to a regular one, e.g. with `cdo remapbil`."
            )
    if y is None or x is None or kinds[0] != kinds[1]:
        raise UserError(
            f"{path}: {values.name} lies on ({', '.join(values.dimensions)}), expected one-dimensional lat and lon (or "
            "rlat and rlon, or x and y): bring it to a regular grid, e.g. with `cdo remapbil`."
        )
    down, across = (dataset.variables[values.dimensions[position]] for position in (y, x))
    ys, rows = _ordered(down, path, falling=True, longitudes=False)
    xs, columns = _ordered(across, path, falling=False, longitudes=kinds[0] == "geographic")
    metres = 1.0 if getattr(down, "units", "m") == "km" else 1e-3
    unit_km = metres if kinds[0] == "projected" else DEGREE_KM
    return Axes(time, y, x, Grid(ys, xs, kinds[0], unit_km, _mapping(dataset, values)), rows, columns)


def _kind(name: str, coordinate: Any, known: Mapping[str, str], direction: str) -> Kind | None:
    if coordinate is None or coordinate.ndim != 1:
        return None
    for word in (getattr(coordinate, "standard_name", ""), name.lower()):
        if word in known:
            return known[word]  # type: ignore[return-value]
    units = getattr(coordinate, "units", "").replace("degrees", "degree")
    return "geographic" if units == direction else None


def _ordered(
    coordinate: Any, path: Path, *, falling: bool, longitudes: bool
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The coordinate in our order, and where each of its values stands in the file."""
    values = _floats(coordinate[:])
    if longitudes:
        values = continuous(values)
    steps = np.diff(values)
    usual = np.median(steps) if len(steps) else 0.0
    if not usual or not np.allclose(steps, usual, rtol=0.05, atol=0):
        raise UserError(
            f"{path}: {coordinate.name} has {len(values)} values that are not evenly spaced, expected two or more on a "
            "regular grid: regrid the file, e.g. with `cdo remapbil`."
        )
    order = np.arange(len(values))
    return (values[::-1], order[::-1]) if (usual > 0) == falling else (values, order)


def _mapping(dataset: Any, values: Any) -> tuple[tuple[str, float], ...]:
    """Numbers that define the projection, where the file names them."""
    holder = dataset.variables.get(getattr(values, "grid_mapping", ""))
    numbers = {name: np.ravel(holder.getncattr(name)) for name in holder.ncattrs()} if holder is not None else {}
    poles = ("pole", "meridian", "parallel", "origin")
    return tuple(
        (name, float(value[0]))
        for name, value in sorted(numbers.items())
        if any(word in name for word in poles) and len(value) == 1 and np.issubdtype(value.dtype, np.number)
    )


def dates_of(dataset: Any, values: Any, axes: Axes, path: Path) -> tuple[list[tuple[int, date]], int]:
    """Index and date of each value, and the number of those without a date in our calendar."""
    import netCDF4

    time = dataset.variables[values.dimensions[axes.time or 0]]
    calendar = getattr(time, "calendar", "standard")
    try:
        moments: Any = netCDF4.num2date(_floats(time[:]), time.units, calendar)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: its time ({time.units}, calendar {calendar}) cannot be read ({error}).") from error
    dated: list[tuple[int, date]] = []
    for index, moment in enumerate(moments):
        try:
            dated.append((index, date(moment.year, moment.month, moment.day)))
        except ValueError:  # 29 or 30 February of a calendar with 30 days a month
            continue
    return dated, len(moments) - len(dated)


def window(
    values: Any, axes: Axes, path: Path, days: slice, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """``(T, H, W)`` unpacked, NaN where missing; what lies together in the file is read at once."""
    pieces = []
    for run in _runs(columns):
        where: list[Any] = [0] * values.ndim
        where[axes.y], where[axes.x] = slice(rows.min(), rows.max() + 1), slice(run.min(), run.max() + 1)
        if axes.time is not None:
            where[axes.time] = days
        try:
            stored = _floats(values[tuple(where)])
        except RuntimeError as error:  # what the library says of bytes that it cannot decode
            raise UserError(f"{path} is damaged ({error}): fetch or write it again.") from error
        if axes.time is None:
            places = [axes.y, axes.x]
            stored = stored[None] if axes.y < axes.x else stored.T[None]
        else:
            places = [axes.time, axes.y, axes.x]
            stored = np.transpose(stored, np.argsort(np.argsort(places)).tolist())
        pieces.append(stored[:, rows - rows.min()][:, :, run - run.min()])
    return np.concatenate(pieces, axis=2)


def _floats(stored: Any) -> NDArray[np.float64]:
    """64 bits, NaN where masked."""
    return np.ma.filled(np.ma.asarray(stored, np.float64), np.nan)


def _runs(indices: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The indices, parted where neighbours do not lie side by side."""
    return np.split(indices, np.flatnonzero(np.abs(np.diff(indices)) != 1) + 1)
