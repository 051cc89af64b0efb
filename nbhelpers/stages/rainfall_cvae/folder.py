"""Writing the day-file layout, from whatever makes days: a simulator, NetCDF files, an open rain product."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.disk import disk_errors, whole_folder
from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import layout
from nbhelpers.stages.rainfall_cvae.split import split_days, years_of
from nbhelpers.stages.rainfall_cvae.thresholds import category, thresholds

Day = tuple[date, NDArray, NDArray]  # date, x (C, h, w), y (H, W) mm/day


def check_new(folder: Path) -> None:
    """``UserError`` if there is anything at this place that writing days there would mix with."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds files already: delete it, or choose another folder for these days.")


def write_days(
    folder: Path,
    days: Iterable[Day],
    *,
    statics: Mapping[str, NDArray],
    channels: Sequence[str],
    x_units: Mapping[str, str],
    name: str,
    source: str,
    simulated: bool,
    pixel_km: float,
    years: Mapping[str, Collection[int]] | None = None,
) -> Path:
    """Write a whole data folder; it appears when it is complete, and not at all if anything goes wrong.

    Days are written as they come, so that memory does not limit how many there are; they get the numbers 0, 1, 2, …
    The split is by years (see ``split.split_days``); thresholds are those of the training years.

    Args:
        folder: does not exist, or is empty.
        days: date, predictors ``(C, h, w)`` in ``x_units`` and rain ``(H, W)`` in mm/day, NaN where not measured;
            dates rise.
        statics: ``(H, W)`` by name: ``land_sea_mask`` (1 land, 0 sea), ``dist_to_coast_km`` and any more.
        channels: names of the C predictors; one is ``pr``.
        x_units: unit of each channel, e.g. {"tas": "K", "pr": "mm/day"}.
        source: where the rain comes from, for the report.
        pixel_km: side of a high-resolution pixel.
        years: years for "train", "val" and "test"; default: 70, 15 and 15 % of them in time order.

    Raises:
        UserError: the folder holds something, statics or shapes that do not fit, dates that do not rise, too few
            years, hardly any rain in the training years.
    """
    check_new(folder)
    static = {key: np.asarray(value, np.float32) for key, value in statics.items()}
    size = _check_statics(static)
    _check_channels(channels, x_units)
    land = static[layout.LAND] > 0.5
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as part:
            for inner in (layout.X_FOLDER, layout.Y_FOLDER, layout.STATICS_FOLDER, layout.METADATA_FOLDER):
                (part / inner).mkdir()
            for key, value in static.items():
                np.save(part / layout.STATICS_FOLDER / f"{key}.npy", value[None])
            dates, coarse = _write_all(part, days, n_channels=len(channels), size=size)
            _write_metadata(part, dates, land, years)
            layout.write_json(part, layout.SIZE_NAME, {"H": size[0], "W": size[1]})
            about: dict[str, Any] = {"name": name, "channels": list(channels), "x_units": dict(x_units)}
            about |= {"source": source, "simulated": simulated, "factor": size[0] // coarse[0], "pixel_km": pixel_km}
            layout.write_json(part, layout.DATASET_NAME, about)
    return folder


def _write_all(
    part: Path, days: Iterable[Day], *, n_channels: int, size: tuple[int, int]
) -> tuple[dict[int, date], tuple[int, int]]:
    dates: dict[int, date] = {}
    coarse: tuple[int, int] | None = None
    for number, (when, x, y) in enumerate(days):
        if number and when <= dates[number - 1]:
            raise UserError(f"{when} comes after {dates[number - 1]}: give days in time order, each date once.")
        if coarse is None:
            coarse = _check_factor(x.shape, size)
        if x.shape != (n_channels, *coarse) or y.shape != size:
            raise UserError(
                f"{when} has predictors of shape {x.shape} and rain of shape {y.shape}, expected "
                f"{(n_channels, *coarse)} and {size}: bring all days to one grid."
            )
        np.save(layout.x_file(part, number), np.asarray(x, np.float32))
        np.save(layout.y_file(part, number), np.asarray(y, np.float32)[None])
        dates[number] = when
    if coarse is None:
        raise UserError("there is no day to write: check the dates that were asked for.")
    return dates, coarse


def _write_metadata(
    part: Path, dates: Mapping[int, date], land: NDArray[np.bool_], years: Mapping[str, Collection[int]] | None
) -> None:
    split = split_days(dates, years)
    year = years_of(dates)
    rain = (np.load(layout.y_file(part, day))[0] for day in split["train"])
    extremes = thresholds(rain, land, {year[day] for day in split["train"]})
    categories: dict[str, list[int]] = {one: [] for one in layout.CATEGORIES}
    for day in dates:
        categories[category(np.load(layout.y_file(part, day))[0], land, extremes["P95"])].append(day)
    layout.write_json(part, layout.SPLIT_NAME, {key: list(value) for key, value in split.items()})
    layout.write_json(part, layout.DATES_NAME, {f"{day:06d}": when.isoformat() for day, when in dates.items()})
    layout.write_json(part, layout.CATEGORIES_NAME, categories)
    layout.write_json(part, layout.THRESHOLDS_NAME, extremes)


def _check_statics(static: Mapping[str, NDArray]) -> tuple[int, int]:
    if absent := [key for key in (layout.LAND, layout.COAST) if key not in static]:
        raise UserError(f"statics lack {absent[0]!r} (they have {', '.join(static) or 'none'}): add it.")
    shapes = {value.shape for value in static.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise UserError(f"statics have the shapes {sorted(shapes)}, expected one (H, W): bring them to one grid.")
    height, width = next(iter(shapes))
    return height, width


def _check_channels(channels: Sequence[str], x_units: Mapping[str, str]) -> None:
    if layout.PR not in channels or len(set(channels)) < len(channels):
        raise UserError(f"channels are {list(channels)}, expected different names with {layout.PR!r} among them.")
    if absent := [channel for channel in channels if channel not in x_units]:
        raise UserError(f"x_units does not say in which unit {absent[0]!r} is: name one for every channel.")


def _check_factor(x_shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the coarse grid, of which ``size`` is one whole multiple."""
    fits = len(x_shape) == 3 and all(fine % coarse == 0 for fine, coarse in zip(size, x_shape[1:], strict=True))
    if not fits or size[0] // x_shape[1] != size[1] // x_shape[2]:
        raise UserError(
            f"rain has {size[0]} x {size[1]} pixels and predictors the shape {x_shape}, expected (C, h, w) of which "
            "height and width are one whole multiple: cut or regrid one of them."
        )
    return x_shape[1], x_shape[2]
