"""Day files from NetCDF: a rain product alone, or high-resolution rain beside the predictors of a coarse model.

For ``nbhelpers data prepare rainfall-cvae``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nbhelpers.core.errors import UserError
from nbhelpers.core.manifest import say
from nbhelpers.stages.rainfall_cvae.coarsen import block_means
from nbhelpers.stages.rainfall_cvae.folder import Day, check_new, write_days
from nbhelpers.stages.rainfall_cvae.grid import covering, distance_to_sea, in_box, pixel_km
from nbhelpers.stages.rainfall_cvae.layout import COAST, LAND, PR
from nbhelpers.stages.rainfall_cvae.netcdf import Series, cut
from nbhelpers.stages.rainfall_cvae.rain_files import (
    find_land,
    in_pieces,
    open_predictor,
    open_rain,
    read_predictor,
    read_rain,
)
from nbhelpers.stages.rainfall_cvae.split import years_of
from nbhelpers.stages.rainfall_cvae.units import TARGETS

Box = tuple[float, float, float, float]  # west, south, east, north; degrees of the files' own coordinates

MOST_MISSING = 0.01  # of a day's land pixels; a day with more gaps is left out
CHANNELS = tuple(TARGETS)  # tas, pr, huss, sfcWind, tasmax, tasmin


def prepare_rain(
    folder: Path,
    files: Sequence[Path],
    *,
    factor: int,
    box: Box | None = None,
    months: Collection[int] | None = None,
    variable: str | None = None,
    land: Path | None = None,
    years: Mapping[str, Collection[int]] | None = None,
) -> Path:
    """Write day files of which the fine field is a daily rain product and the coarse one its block means.

    The one predictor is ``pr``: the mean over the measured pixels of factor x factor, mm/day, and 0 in blocks of sea
    alone, as the statics tell the reader. Pixels that most days lack are sea. Days that lack a whole block of land, or
    1 % of it, are left out. Where ``factor`` does not divide the grid, its southern and eastern rest is cut off.

    Args:
        folder: new or empty.
        files: NetCDF files, or folders of them, such as the yearly ones of CHIRPS.
        factor: fine pixels in a coarse one, along a side.
        box: part of the grid to take, (west, south, east, north).
        months: 1 to 12; default: all.
        variable: name of the rain; default: found by its name or standard name.
        land: NetCDF with a land mask (such as sftlf) on the rain's grid, for a product that has values over sea too.
        years: those of "val" and "test" (the rest trains), or of all three splits; default: as ``write_days``.

    Raises:
        UserError: files that are absent, unreadable or not daily, an unknown variable or unit, a grid that is not
            regular or smaller than two blocks, negative rain, no land, too few years.
    """
    check_new(folder)  # before files are read for minutes
    rain = open_rain(files, variable)
    if box is not None:
        rain = cut(rain, *in_box(rain.grid, box))
    rain = _whole_blocks(rain, factor)
    days = _of_months(list(rain.where), months)
    on_land = find_land(rain, days, land)
    blocks_of_land = on_land.reshape(on_land.shape[0] // factor, factor, -1, factor).any(axis=(1, 3))
    if not blocks_of_land.all():
        alone = (~blocks_of_land).sum()
        say(f"{alone} of {blocks_of_land.size} coarse cells lie over sea alone: their pr is the nearest land cell's.")
    # A zero there would be read as a dry coast, and interpolated into it.
    nearest = distance_transform_edt(~blocks_of_land, return_distances=False, return_indices=True)

    def fields() -> Iterator[Day]:
        for some in in_pieces(rain, days, "writing days"):
            for when, y in zip(some, read_rain(rain, some, on_land), strict=True):
                yield when, block_means(y, factor)[tuple(nearest)][None], y

    source = f"{rain.about}; predictors are means of {factor} x {factor} pixels of the rain itself"
    _write(folder, fields(), rain, on_land, channels=(PR,), source=source, years=_all_years(years, days))
    return folder


def prepare_downscaling(
    folder: Path,
    predictors: Path,
    rain: Sequence[Path],
    *,
    factor: int | None = None,
    channels: Sequence[str] = CHANNELS,
    box: Box | None = None,
    months: Collection[int] | None = None,
    variable: str | None = None,
    land: Path | None = None,
    years: Mapping[str, Collection[int]] | None = None,
) -> Path:
    """Write day files of coarse predictors and fine rain, on the days that all of them have.

    The rain is cut to the pixels that the coarse cells cover. Days that lack 1 % of the land are left out.
    Arguments not named here are as in :func:`prepare_rain`.

    Args:
        predictors: folder of daily ``<variable>_day_*.nc`` on one coarse grid, several files a variable in time.
        rain: NetCDF files of high-resolution rain, or folders of them; NaN or fill values over sea.
        factor: fine pixels in a coarse one, to be sure; default: what the grids say.
        channels: predictors to take, in this order; ``pr`` must be among them.
        box: part of the coarse grid to take.

    Raises:
        UserError: as :func:`prepare_rain`; a variable without a file, grids that do not fit into one another, no
            common day, missing values in a predictor.
    """
    check_new(folder)  # before files are read for minutes
    coarse = {name: open_predictor(predictors, name) for name in channels}
    first = next(iter(coarse.values()))
    for name, one in coarse.items():
        if not one.grid.same_as(first.grid):
            raise UserError(f"{name} has {one.grid} and {first.variable} has {first.grid}: regrid one of them.")
    if box is not None:
        coarse = {name: cut(one, *in_box(one.grid, box)) for name, one in coarse.items()}
        first = next(iter(coarse.values()))
    fine = open_rain(rain, variable)
    found, *places = covering(fine.grid, first.grid)
    if factor not in (None, found):
        raise UserError(
            f"--factor is {factor}, but a cell of {predictors} covers {found} x {found} pixels of the rain."
        )
    fine = cut(fine, *places)
    common = set(fine.where).intersection(*(one.where for one in coarse.values()))
    _check_common(common, {"rain": fine, **coarse})
    days = _of_months(sorted(common), months)
    on_land = find_land(fine, days, land)

    def fields() -> Iterator[Day]:
        for some in in_pieces(fine, days, "writing days"):
            xs = np.stack([read_predictor(one, some) for one in coarse.values()], axis=1)
            yield from zip(some, xs, read_rain(fine, some, on_land), strict=True)

    source = f"{fine.about}; predictors: {first.about}"
    _write(folder, fields(), fine, on_land, channels=tuple(channels), source=source, years=_all_years(years, days))
    return folder


def _whole_blocks(rain: Series, factor: int) -> Series:
    height, width = (length // factor * factor for length in rain.grid.shape)
    if factor < 2 or min(height, width) < 2 * factor:
        raise UserError(
            f"the factor is {factor} and the rain has {rain.grid}, expected a factor of 2 or more that leaves at least "
            "2 x 2 coarse cells: choose another --factor or a larger --box."
        )
    if (height, width) != rain.grid.shape:
        say(f"{rain.grid.shape[0]} x {rain.grid.shape[1]} pixels cut to {height} x {width}, multiples of {factor}.")
    return cut(rain, np.arange(height), np.arange(width))


def _of_months(days: Sequence[date], months: Collection[int] | None) -> list[date]:
    if unknown := [month for month in months or () if month not in range(1, 13)]:
        raise UserError(f"there is no month {unknown[0]}: give numbers from 1 to 12.")
    chosen = [day for day in days if months is None or day.month in months]
    if not chosen:
        there = ", ".join(map(str, sorted({day.month for day in days})))
        raise UserError(f"no day is of the months {sorted(months or ())}: there are days of the months {there}.")
    return chosen


def _check_common(common: Collection[date], series: Mapping[str, Series]) -> None:
    spans = {name: f"{name} {min(one.where)} to {max(one.where)}" for name, one in series.items()}
    if not common:
        raise UserError(f"no day is in all files ({'; '.join(spans.values())}): give files of the same time.")
    numbers = Counter(len(one.where) for one in series.values())
    if set(numbers) == {len(common)}:
        say(f"{len(common)} days, the same in all files.")
    else:
        told = ", ".join(f"{name} has {len(one.where)}" for name, one in series.items())
        say(f"{len(common)} common days ({told}); the others are left out.")


def _all_years(
    years: Mapping[str, Collection[int]] | None, days: Sequence[date]
) -> Mapping[str, Collection[int]] | None:
    """With the training years, where only the others are named."""
    if years is None or "train" in years:
        return years
    taken = {year for some in years.values() for year in some}
    return {"train": sorted(set(years_of(dict(enumerate(days))).values()) - taken), **years}


def _write(
    folder: Path,
    fields: Iterator[Day],
    rain: Series,
    land: NDArray[np.bool_],
    *,
    channels: Sequence[str],
    source: str,
    years: Mapping[str, Collection[int]] | None,
) -> None:
    left_out: list[date] = []
    write_days(
        folder,
        _whole_days(fields, land, left_out),
        statics={LAND: land, COAST: distance_to_sea(land, rain.grid)},
        channels=channels,
        x_units={name: TARGETS[name] for name in channels},
        name=rain.about.split(",")[0],
        source=source,
        simulated=False,
        pixel_km=round(sqrt(np.prod(pixel_km(rain.grid))), 3),
        years=years,
    )
    if left_out:
        say(f"{len(left_out)} days with gaps in the rain over land left out; the first is {left_out[0]}.")


def _whole_days(fields: Iterator[Day], land: NDArray[np.bool_], left_out: list[date]) -> Iterator[Day]:
    """The days of which x has no gap, and y hardly one over land; the dates of the others go to ``left_out``."""
    n_days = 0
    for when, x, y in fields:
        n_days += 1
        if np.isnan(x).any() or np.isnan(y[land]).mean() > MOST_MISSING:
            left_out.append(when)
        else:
            yield when, x, y
    if n_days and n_days == len(left_out):
        raise UserError(
            f"each of the {n_days} days lacks rain at more than {MOST_MISSING:.0%} of the pixels that most days have, "
            "or in a whole coarse cell: take a --box that is measured every day, or mask the rest with --land."
        )
