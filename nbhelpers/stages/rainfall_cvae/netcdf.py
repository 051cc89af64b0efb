"""Daily NetCDF files of one variable, read piece by piece in known units and in one order of rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.cf import Axes, axes_of, dates_of, opened, variable_of, window
from nbhelpers.stages.rainfall_cvae.grid import Grid, continuous
from nbhelpers.stages.rainfall_cvae.units import SPELLINGS, conversion

RAIN_NAMES = ("pr", "precip", "precipitation", "prcp", "rain", "rainfall", "rr", "tp", "prec", "rain_rate")
RAIN_STANDARD_NAMES = (
    "precipitation_flux lwe_precipitation_rate precipitation_amount lwe_thickness_of_precipitation_amount "
    "rainfall_flux rainfall_rate rainfall_amount thickness_of_rainfall_amount"
).split()
LAND_NAMES = ("sftlf", "lsm", "land_sea_mask", "landmask", "land_mask", "land")


@dataclass(frozen=True)
class Series:
    """One variable on every day of one or several files; nothing but the axes is read before :func:`read`."""

    variable: str
    target: str  # unit of what is read
    grid: Grid
    rows: NDArray[np.intp]  # (H,) index in the files of each row
    columns: NDArray[np.intp]  # (W,) likewise
    where: Mapping[date, tuple[Path, int]]  # file of each day and its place in it; days in time order
    about: str  # what the first file says of itself
    no_dates: int  # values of a day that no calendar of ours has, such as 30 February; they are left out


def open_series(
    paths: Sequence[Path], target: str, *, variable: str | None = None, choose: Callable[[Any, Path], str] | None = None
) -> Series:
    """The daily series in ``paths``, sorted by time.

    Args:
        target: unit to convert to, of ``units.TARGETS``.
        variable: its name in every file; else ``choose(dataset, path)`` finds it in the first.

    Raises:
        UserError: a file that is absent or no NetCDF, no such variable, no or unknown units, curvilinear or irregular
            axes, several values or none a day, two files with one day or with two grids.
    """
    where: dict[date, tuple[Path, int]] = {}
    axes: Axes | None = None
    about, no_dates = "", 0
    for path in paths:
        with opened(path) as dataset:
            if variable is None and choose is not None:
                variable = choose(dataset, path)
            values = variable_of(dataset, path, str(variable))
            scale_of(values, path, target)
            here = axes_of(dataset, values, path)
            if here.time is None:
                raise UserError(f"{path}: {variable} has no time axis ('… since …'), expected one value a day.")
            if axes is None:
                axes, about = here, _about(dataset, path)
            _check_same_grid(axes, here, path, paths[0])
            dates, missed = dates_of(dataset, values, here, path)
            no_dates += missed
            for index, when in dates:
                if when in where and where[when][0] != path:
                    raise UserError(f"{where[when][0]} and {path} both have {variable} of {when}: leave one out.")
                if when in where:
                    n = sum(other == when for _, other in dates)
                    raise UserError(
                        f"{path} has {n} values of {variable} for {when}, expected one a day: make daily ones first, "
                        "e.g. with `cdo daysum` (amounts) or `cdo daymean` (rates)."
                    )
                where[when] = (path, index)
    if axes is None or not where:
        raise UserError(f"{', '.join(map(str, paths)) or 'nothing'} holds no day: give NetCDF files of daily values.")
    where = dict(sorted(where.items()))
    _check_daily(list(where), str(variable), paths[0])
    return Series(str(variable), target, axes.grid, axes.rows, axes.columns, where, about, no_dates)


def cut(series: Series, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Series:
    """The series on some of its rows and columns, columns in eastward order."""
    x = series.grid.x[columns]
    if series.grid.kind == "geographic":
        x = continuous(x)
    grid = replace(series.grid, y=series.grid.y[rows], x=x)
    return replace(series, grid=grid, rows=series.rows[rows], columns=series.columns[columns])


def read(series: Series, days: Sequence[date]) -> NDArray[np.float32]:
    """``(N, H, W)`` in ``series.target``, NaN where missing; neighbouring days of a file are read at once.

    Raises:
        UserError: a file that is damaged, or has changed since it was opened.
    """
    pieces: list[NDArray[np.float32]] = []
    start = 0
    while start < len(days):
        path, first = series.where[days[start]]
        stop = start + 1
        while stop < len(days) and series.where[days[stop]] == (path, first + stop - start):
            stop += 1
        with opened(path) as dataset:
            values = variable_of(dataset, path, series.variable)
            axes = axes_of(dataset, values, path)
            stored = window(values, axes, path, slice(first, first + stop - start), series.rows, series.columns)
            factor, offset = scale_of(values, path, series.target)
        pieces.append((stored * factor + offset).astype(np.float32))
        start = stop
    return np.concatenate(pieces)


def read_land(path: Path, series: Series) -> NDArray[np.bool_]:
    """``(H, W)`` at the pixels of ``series``: where at least half a pixel is land by the mask in ``path``.

    The mask is named as in ``LAND_NAMES``, in percent or from 0 to 1, on the grid of the series' files.

    Raises:
        UserError: no such variable, or another grid.
    """
    with opened(path) as dataset:
        found = [name for name in dataset.variables if name.lower() in LAND_NAMES]
        if len(found) != 1:
            raise UserError(
                f"{path} has {', '.join(found) or 'none'} of {', '.join(LAND_NAMES)}, expected one of them."
            )
        values = variable_of(dataset, path, found[0])
        axes = axes_of(dataset, values, path)
        period = 360.0 if axes.grid.kind == "geographic" else None
        rows = _places(axes.grid.y, series.grid.y, period=None)
        columns = _places(axes.grid.x, series.grid.x, period=period)
        if rows is None or columns is None or axes.grid.kind != series.grid.kind:
            raise UserError(
                f"{path} has {axes.grid} and the rain has {series.grid}: give a mask on the grid of the rain."
            )
        share = window(values, axes, path, slice(0, 1), axes.rows[rows], axes.columns[columns])[0]
        percent = getattr(values, "units", "1") in ("%", "percent")
    return np.nan_to_num(share) >= (50.0 if percent else 0.5)


def find_rain(dataset: Any, path: Path) -> str:
    """Name of the one variable that is rain by its name or standard name."""
    gridded = [name for name, values in dataset.variables.items() if values.ndim >= 3]
    named = [name for name in gridded if name.lower() in RAIN_NAMES]
    found = [name for name in gridded if getattr(dataset[name], "standard_name", "") in RAIN_STANDARD_NAMES] or named
    if len(found) != 1:
        raise UserError(
            f"{path} has {', '.join(found) or 'no variable'} that could be the rain (variables over time and place: "
            f"{', '.join(gridded) or 'none'}): name it with --variable."
        )
    return found[0]


def scale_of(values: Any, path: Path, target: str) -> tuple[float, float]:
    """Factor and offset that bring ``values`` to ``target``."""
    units = getattr(values, "units", None)
    if units is None:
        raise UserError(
            f"{path}: {values.name} has no units attribute, expected one of {SPELLINGS[target]}: add it, e.g. with "
            f"`ncatted -a units,{values.name},c,c,'…' FILE`."
        )
    scale = conversion(str(units), target)
    if scale is None:
        raise UserError(
            f"{path}: {values.name} is in {units!r}, which is not known as a unit of it, expected one of "
            f"{SPELLINGS[target]}: convert it, or correct the units attribute."
        )
    return scale


def _check_same_grid(axes: Axes, here: Axes, path: Path, first: Path) -> None:
    order = np.array_equal(axes.rows, here.rows) and np.array_equal(axes.columns, here.columns)
    if not (order and axes.grid.same_as(here.grid)):
        raise UserError(
            f"{path} has {here.grid} and {first} has {axes.grid}, expected one grid in one order of rows in all files: "
            "regrid one of them."
        )


def _check_daily(days: Sequence[date], variable: str, first: Path) -> None:
    gaps = np.diff([day.toordinal() for day in days])
    if len(gaps) and np.median(gaps) != 1:
        raise UserError(
            f"{first}: {variable} comes every {np.median(gaps):g} days from {days[0]} to {days[-1]}, expected daily "
            "values: give a daily product."
        )


def _about(dataset: Any, path: Path) -> str:
    """Title, institution and model by the file's global attributes; its name if it has none of them."""
    names = ("title", "institution", "source_id", "model_id", "experiment_id")
    told = [str(getattr(dataset, name)).strip() for name in names if getattr(dataset, name, "")]
    return ", ".join(dict.fromkeys(told)) or path.stem


def _places(theirs: NDArray, ours: NDArray, *, period: float | None) -> NDArray[np.intp] | None:
    """Which of ``theirs`` each of ``ours`` is; None if one is not there."""
    apart = np.abs(theirs[None] - ours[:, None])
    if period is not None:
        apart = np.minimum(apart % period, period - apart % period)
    step = np.abs(np.diff(theirs)).min()
    return apart.argmin(axis=1) if apart.min(axis=1).max() <= 0.1 * step else None
