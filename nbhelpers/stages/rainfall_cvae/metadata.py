"""What stands beside the days of a data folder (dates, splits, categories, thresholds, statics), read and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import SPLITS
from nbhelpers.stages.rainfall_cvae import layout
from nbhelpers.stages.rainfall_cvae.day_files import read_array


@dataclass(frozen=True)
class About:
    """``dataset.json``."""

    name: str
    source: str
    simulated: bool
    channels: tuple[str, ...]
    x_units: Mapping[str, str]
    factor: int  # high-resolution pixels to a coarse one, along a side
    pixel_km: float


def read_about(folder: Path) -> About:
    found = layout.read_json(folder, layout.DATASET_NAME)
    path = layout.metadata_file(folder, layout.DATASET_NAME)
    kinds: dict[str, type] = {
        "name": str,
        "source": str,
        "simulated": bool,
        "channels": list,
        "x_units": dict,
        "factor": int,
    }
    wrong = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    if not isinstance(found.get("pixel_km"), int | float):
        wrong.append("pixel_km")
    if wrong:
        raise UserError(f"{path} has {found.get(wrong[0])!r} for {wrong[0]!r}: correct it, or make the folder again.")
    channels, units = tuple(found["channels"]), found["x_units"]
    if layout.PR not in channels:
        raise UserError(
            f"{path} names the channels {', '.join(channels)}, expected {layout.PR!r} among them: the coarse rain is "
            "needed to compare with, so add it to the predictors."
        )
    if absent := [channel for channel in channels if not isinstance(units.get(channel), str)]:
        raise UserError(f"{path} does not say in x_units in which unit {absent[0]!r} is: add it.")
    if found["factor"] < 1 or found["pixel_km"] <= 0:
        raise UserError(
            f"{path} has the factor {found['factor']} and pixels of {found['pixel_km']} km: correct them, both are "
            "positive."
        )
    return About(
        found["name"],
        found["source"],
        found["simulated"],
        channels,
        units,
        found["factor"],
        float(found["pixel_km"]),
    )


def read_statics(folder: Path) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """``(S, H, W)`` as the files have them, the land mask as 0 and 1 first, and their names."""
    inside = {path.stem: path for path in (folder / layout.STATICS_FOLDER).glob("*.npy")}
    if absent := [name for name in (layout.LAND, layout.COAST) if name not in inside]:
        raise UserError(
            f"{folder / layout.STATICS_FOLDER} has no {absent[0]}.npy (it holds {', '.join(sorted(inside)) or 'none'}):"
            " write it, or make the folder again."
        )
    names = (layout.LAND, layout.COAST, *sorted(set(inside) - {layout.LAND, layout.COAST}))
    fields = [read_array(inside[name]) for name in names]
    size = layout.read_json(folder, layout.SIZE_NAME)
    expected = (1, size.get("H"), size.get("W"))
    for name, value in zip(names, fields, strict=True):
        if value.shape != expected:
            raise UserError(f"{inside[name]} has shape {value.shape}, but H_W.json says {expected}: correct one.")
    if not set(np.unique(fields[0])) <= {0.0, 1.0} or not fields[0].any():
        raise UserError(
            f"{inside[layout.LAND]} holds values from {np.nanmin(fields[0]):g} to {np.nanmax(fields[0]):g}, expected 1 "
            "over land, 0 over sea and some land: write it as a mask."
        )
    return np.concatenate(fields).astype(np.float32), names


def standardised(
    statics: NDArray[np.float32], land: NDArray[np.bool_], names: Sequence[str], folder: Path
) -> NDArray[np.float32]:
    """``(S, H, W)``: the mask as it is, the others with mean 0 and deviation 1 (0 where they are NaN, over sea)."""
    scaled = [statics[0]]
    for name, value in zip(names[1:], statics[1:], strict=True):
        if not np.isfinite(value[land]).all():
            raise UserError(f"static {name!r} in {folder} is NaN or infinite over land: fill it there.")
        known = np.isfinite(value)
        deviation = float(value[known].std()) or 1.0  # one value everywhere becomes 0
        scaled.append(np.where(known, (value - value[known].mean()) / deviation, 0.0))
    return np.stack(scaled).astype(np.float32)


def read_dates(folder: Path) -> dict[int, date]:
    """Date of each day; every date once."""
    path = layout.metadata_file(folder, layout.DATES_NAME)
    found = layout.read_json(folder, layout.DATES_NAME)
    try:
        dates = {int(key): date.fromisoformat(value) for key, value in found.items()}
    except (TypeError, ValueError) as error:
        raise UserError(f'{path} has an entry unlike "000017": "1990-01-18" ({error}): correct it.') from error
    twice = [when for when, count in Counter(dates.values()).items() if count > 1]
    if twice or len(dates) < len(found):
        what = f"the date {twice[0]} for more than one day" if twice else "a day twice"
        raise UserError(f"{path} has {what}: give every day a date of its own.")
    return dates


def read_split(folder: Path, dates: Mapping[int, date]) -> dict[str, tuple[int, ...]]:
    """Days of train, val and test in time order, none of them twice or unknown."""
    path = layout.metadata_file(folder, layout.SPLIT_NAME)
    found = layout.read_json(folder, layout.SPLIT_NAME)
    if set(found) != set(SPLITS):
        raise UserError(f"{path} has the splits {sorted(found)}, expected {', '.join(SPLITS)}: name all three.")
    where: dict[int, str] = {}
    for name in SPLITS:
        if not found[name] or not all(type(day) is int for day in found[name]):
            raise UserError(f"{path} has no list of numbers of days for {name!r}: give every split days.")
        for day in found[name]:
            if day in where:
                raise UserError(f"{path} has day {day} in {where[day]} and in {name}: leave it in one of them, once.")
            if day not in dates:
                raise UserError(f"{path} has day {day} in {name}, but dates.json does not know it: add its date.")
            where[day] = name
    return {name: tuple(sorted(found[name], key=lambda day: dates[day])) for name in SPLITS}


def read_categories(folder: Path, days: Sequence[int]) -> dict[int, str]:
    """Category of each of ``days``."""
    path = layout.metadata_file(folder, layout.CATEGORIES_NAME)
    found = layout.read_json(folder, layout.CATEGORIES_NAME)
    if set(found) != set(layout.CATEGORIES):
        raise UserError(f"{path} has {sorted(found)}, expected {', '.join(layout.CATEGORIES)}: make the folder again.")
    counts = Counter(day for members in found.values() for day in members)
    if wrong := [day for day in days if counts[day] != 1]:
        raise UserError(
            f"{path} has day {wrong[0]} in {counts[wrong[0]]} categories, expected one for each day: make the folder "
            "again."
        )
    return {day: name for name, members in found.items() for day in members}


def read_thresholds(folder: Path, years: Mapping[str, set[int]]) -> dict[str, float]:
    """P90 to P99.5 in mm/day, which no year of validation or test has touched."""
    path = layout.metadata_file(folder, layout.THRESHOLDS_NAME)
    found = layout.read_json(folder, layout.THRESHOLDS_NAME)
    if found.get("units") != layout.UNITS:
        raise UserError(f"{path} is in {found.get('units')!r}, expected mm/day: make the folder again.")
    values = {name: found.get(name) for name in layout.PERCENTILES}
    numbers = [value for value in values.values() if isinstance(value, int | float)]
    if len(numbers) < len(values) or numbers != sorted(numbers) or not numbers[0] >= layout.WET:
        raise UserError(
            f"{path} has {values}, expected numbers that rise from at least {layout.WET:g} mm/day: make the folder "
            "again."
        )
    if foreign := sorted((years["val"] | years["test"]) & set(found.get("years", []))):
        raise UserError(
            f"{path} was made with the year {foreign[0]} of validation or test: compute thresholds of the training "
            "years alone."
        )
    return {name: float(value) for name, value in zip(values, numbers, strict=True)}
