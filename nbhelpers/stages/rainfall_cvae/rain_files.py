"""Rain and predictors as preparing needs them: opened, checked, the land found, read in pieces that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.core.manifest import say
from nbhelpers.stages.rainfall_cvae.coarsen import measured_share
from nbhelpers.stages.rainfall_cvae.grid import NO_COAST_KM
from nbhelpers.stages.rainfall_cvae.layout import COAST, PR
from nbhelpers.stages.rainfall_cvae.netcdf import Series, find_rain, open_series, read, read_land
from nbhelpers.stages.rainfall_cvae.units import TARGETS

BLOCK_BYTES = 64 * 2**20  # of rain read at once
MOST_DAYS = 366  # read at once, however small the grid is
OFTEN = 0.5  # of the days; what is measured less often is no land
ROUNDING = 0.1  # mm/day below zero that packing and interpolation leave in files; taken as 0


def open_rain(sources: Sequence[Path], variable: str | None) -> Series:
    paths: list[Path] = []
    for source in sources:
        found = sorted(source.glob("*.nc")) if source.is_dir() else [source]
        if not found:
            raise UserError(f"{source} holds no .nc file: give the path of NetCDF files of daily rain.")
        paths += [path for path in found if path not in paths]
    series = open_series(paths, TARGETS[PR], variable=variable, choose=find_rain)
    if series.no_dates:
        say(f"{series.no_dates} days of the rain left out that are in no calendar of ours (29 and 30 February).")
    return series


def open_predictor(folder: Path, name: str) -> Series:
    """The daily series of one predictor, from ``<name>_day_*.nc`` in ``folder``."""
    if name not in TARGETS:
        raise UserError(f"there is no predictor {name!r}: choose among {', '.join(TARGETS)}.")
    found = sorted(folder.glob(f"{name}_day_*.nc"))
    if not found:
        there = ", ".join(sorted(path.name for path in folder.glob("*.nc"))) or "no .nc file"
        raise UserError(
            f"{folder} has no {name}_day_*.nc (it has {there}): add the daily files of {name}, or name the predictors "
            "to take with --channels."
        )
    return open_series(found, TARGETS[name], variable=name)


def in_pieces(rain: Series, days: Sequence[date], what: str) -> Iterator[list[date]]:
    """Runs of days, a year at most, whose fields take no more than BLOCK_BYTES, with a progress bar."""
    height, width = rain.grid.shape
    most = max(1, min(MOST_DAYS, BLOCK_BYTES // (height * width * 8)))
    with tqdm(total=len(days), desc=what, unit="day", disable=None) as bar:
        for start in range(0, len(days), most):
            some = list(days[start : start + most])
            yield some
            bar.update(len(some))


def find_land(rain: Series, days: Sequence[date], mask: Path | None) -> NDArray[np.bool_]:
    """``(H, W)``: what is measured on at least half of the days, and land by the mask, if there is one.

    A product without values over sea has none of them on any day; a pixel of a few days (at a shore, at a radar's rim)
    would be a gap on all others.
    """
    share = measured_share(read(rain, some) for some in in_pieces(rain, days, "looking for the sea"))
    if rare := int(((share > 0) & (share < OFTEN)).sum()):
        say(f"{rare} pixels with rain on fewer than {OFTEN:.0%} of the days count as sea.")
    land = share >= OFTEN
    if mask is not None:
        land &= read_land(mask, rain)
    if not land.any():
        raise UserError(
            f"no pixel of {rain.grid} is land with a value of {rain.variable} on most days: choose another --box, or "
            "another --land."
        )
    if land.all():
        say(f"there is no sea in the rain: {COAST} is {NO_COAST_KM:g} everywhere (--land brings a mask).")
    return land


def read_rain(rain: Series, days: Sequence[date], land: NDArray[np.bool_]) -> NDArray[np.float32]:
    """``(N, H, W)`` mm/day, NaN over sea and where missing."""
    values = read(rain, days)
    lowest = np.nanmin(values, initial=0.0)
    if lowest < -ROUNDING:
        when = days[int(np.argmin(np.nanmin(values, axis=(1, 2), initial=0.0)))]
        raise UserError(
            f"{rain.where[when][0]} has {rain.variable} of {lowest:g} mm/day on {when}, expected 0 or more: declare "
            "the value that stands for missing as _FillValue, or correct the file."
        )
    return np.where(land, np.maximum(values, 0), np.float32(np.nan))


def read_predictor(series: Series, days: Sequence[date]) -> NDArray[np.float32]:
    values = read(series, days)
    if (missing := np.isnan(values).any(axis=(1, 2))).any():
        when = days[int(missing.argmax())]
        raise UserError(
            f"{series.where[when][0]} lacks values of {series.variable} on {when}, expected one in every coarse cell: "
            "take a --box without gaps, or fill them."
        )
    return values
