"""Days of coarse weather and high-resolution rain: the data folder opened, checked and kept in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import SPLITS
from nbhelpers.stages.rainfall_cvae import layout, metadata
from nbhelpers.stages.rainfall_cvae.day_files import UnreadableDay, read_array, read_x, read_y
from nbhelpers.stages.rainfall_cvae.plausible import check_rain, check_temperatures, rain_factor
from nbhelpers.stages.rainfall_cvae.split import blocks, checked_years, season
from nbhelpers.stages.rainfall_cvae.survey import Survey

MAX_UNREADABLE = 0.001  # of the training days; of validation and test none, because scores would change with it
MAX_MISSING = 0.001  # of the land pixels of all days
P95_SHARE = (0.02, 0.09)  # of the wet training pixels that lie at or above P95: 0.05 but for ties and thinning
BUDGET = 4_000_000_000  # bytes of days in memory: 20 years of 156 x 132 pixels are 0.7 GB


class Store:
    """Days as they were read, kept in memory until ``budget`` bytes are full; whatever is not kept is read again."""

    def __init__(self, folder: Path, x_shape: tuple[int, int, int], land: NDArray[np.bool_], budget: int):
        self._folder, self._x_shape, self._land, self._left = folder, x_shape, land, budget
        self._kept: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def __getitem__(self, day: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``(C, h, w)`` and ``(H, W)``."""
        if day in self._kept:
            return self._kept[day]
        both = read_x(self._folder, day, self._x_shape), read_y(self._folder, day, self._land)
        if (size := both[0].nbytes + both[1].nbytes) <= self._left:
            self._left -= size
            self._kept[day] = both
        return both


@dataclass(frozen=True, eq=False)
class Days:
    """A data folder. Statistics are those of the training days alone; rain is in mm/day, NaN where not measured."""

    folder: Path
    name: str
    source: str  # where the rain comes from, in words
    simulated: bool
    channels: tuple[str, ...]  # of x; one is "pr"
    x_units: Mapping[str, str]
    x_shape: tuple[int, int, int]  # C, h, w
    shape: tuple[int, int]  # H, W
    factor: int  # H / h = W / w
    pixel_km: float  # side of a high-resolution pixel
    land: NDArray[np.bool_]  # (H, W): land on which rain was measured at least once
    statics: NDArray[np.float32]  # (S, H, W): the land mask as 0 and 1, the others with mean 0 and deviation 1
    static_names: tuple[str, ...]  # land_sea_mask, dist_to_coast_km, then any others by name
    dates: Mapping[int, date]  # of all days
    split: Mapping[str, tuple[int, ...]]  # train, val, test: days in time order
    years: Mapping[str, frozenset[int]]  # of each split; a winter may count to the year in which it ends
    category: Mapping[int, str]  # dry, moderate or heavy
    thresholds: Mapping[str, float]  # mm/day: P90, P95, P99, P99.5 of the wet land pixels of the training years
    x_mean: NDArray[np.float32]  # (C,), of `pr` as log1p(mm/day)
    x_std: NDArray[np.float32]  # (C,)
    rain_mean: NDArray[np.float32]  # (H, W) mm/day, 0 where nothing was measured
    rain_std: NDArray[np.float32]  # (H, W) mm/day, 0 where nothing was measured
    unreadable: Mapping[int, str]  # training days that cannot be read, and why; few, or the folder does not open
    missing: float  # share of the land pixels of all days without a value
    pr_scale: float  # factor of channel `pr` to mm/day
    store: Store = field(repr=False)

    def x(self, day: int) -> NDArray[np.float32]:
        """``(C, h, w)`` predictors as the files have them."""
        return self.store[day][0]

    def y(self, day: int) -> NDArray[np.float32]:
        """``(H, W)`` rain in mm/day, NaN over sea and where it was not measured."""
        return self.store[day][1]

    def season(self, day: int) -> str:
        """DJF, MAM, JJA or SON."""
        return season(self.dates[day])

    def blocks(self, split: str) -> dict[int, str]:
        """Label of the block of each day of a split: up to 5 consecutive days of one season."""
        return blocks(self.split[split], self.dates)

    def pr(self, x: Tensor) -> Tensor:
        """``(B, h, w)`` coarse rain in mm/day of raw predictors ``(B, C, h, w)``; packing noise below 0 becomes 0."""
        return (x[:, self.channels.index(layout.PR)] * self.pr_scale).clamp(min=0.0)

    def standardise_x(self, x: Tensor) -> Tensor:
        """Raw predictors ``(B, C, h, w)`` with mean 0 and deviation 1 by channel; ``pr`` as log1p(mm/day) before."""
        pr = self.channels.index(layout.PR)
        changed = torch.cat((x[:, :pr], self.pr(x).log1p()[:, None], x[:, pr + 1 :]), dim=1)
        mean, std = (torch.from_numpy(one).to(x.device)[:, None, None] for one in (self.x_mean, self.x_std))
        return (changed - mean) / std


def open_days(folder: Path, *, check_units: bool = True, budget: int = BUDGET) -> Days:
    """Open a folder in the day-file layout; every day is read once and checked.

    Args:
        check_units: False for a climate so dry that its rain does not look like mm/day (see ``plausible``).
        budget: bytes of days to keep in memory.

    Raises:
        UserError: a file of the layout is absent, damaged or of another shape; a date or a day stands twice; a year
            in two splits; rain below 0, beyond what is possible or in other units; NaN over land, unreadable days
            beyond their budgets; thresholds that are not those of the training days.
    """
    if not folder.is_dir():
        raise UserError(f"data folder {folder} does not exist: give --data-dir the one that holds {layout.Y_FOLDER}.")
    about = metadata.read_about(folder)
    statics, names = metadata.read_statics(folder)
    land = statics[0] > 0.5
    dates = metadata.read_dates(folder)
    split = metadata.read_split(folder, dates)
    years = checked_years(split, dates)
    thresholds = metadata.read_thresholds(folder, years)
    category = metadata.read_categories(folder, [day for name in SPLITS for day in split[name]])
    scale = rain_factor(about.x_units[layout.PR], f"channel {layout.PR!r} in {folder}")
    x_shape = _x_shape(folder, split, about, land)
    survey = Survey(land, about.channels.index(layout.PR), scale, thresholds["P95"], len(split["train"]))
    store = Store(folder, x_shape, land, budget)
    unreadable = _read_all(store, split, survey, folder)
    missing = _check_missing(survey, land, dates, folder)
    x_mean, x_std, raw = survey.x_statistics
    _check_varies(x_std, about.channels, folder)
    if check_units:
        check_temperatures(raw, about.channels, about.x_units, where=str(folder))
        check_rain(survey.rain_mean, survey.percentile(0.999), survey.pr_sum / survey.days, where=str(folder))
    _check_p95(survey, folder)
    rain_mean, rain_std = survey.rain_statistics
    return Days(
        folder=folder,
        name=about.name,
        source=about.source,
        simulated=about.simulated,
        channels=about.channels,
        x_units=about.x_units,
        x_shape=x_shape,
        shape=(land.shape[0], land.shape[1]),
        factor=land.shape[0] // x_shape[1],
        pixel_km=about.pixel_km,
        land=np.isfinite(rain_mean) & land,
        statics=metadata.standardised(statics, land, names, folder),
        static_names=names,
        dates=dates,
        split=split,
        years={name: frozenset(found) for name, found in years.items()},
        category=category,
        thresholds=thresholds,
        x_mean=x_mean.astype(np.float32),
        x_std=x_std.astype(np.float32),
        rain_mean=np.nan_to_num(rain_mean),
        rain_std=np.nan_to_num(rain_std),
        unreadable=unreadable,
        missing=missing,
        pr_scale=scale,
        store=store,
    )


def _x_shape(
    folder: Path, split: Mapping[str, tuple[int, ...]], about: metadata.About, land: NDArray[np.bool_]
) -> tuple[int, int, int]:
    """C, h and w of the first training day that can be read, if they fit what the metadata say."""
    x, file = None, layout.x_file(folder, split["train"][0])
    for day in split["train"]:
        try:
            x, file = read_array(layout.x_file(folder, day)), layout.x_file(folder, day)
            break
        except UnreadableDay:  # counted and judged when all days are read
            continue
    if x is None:
        raise UserError(f"no training day can be read, the first should be {file}: make the folder again.")
    expected = (len(about.channels), land.shape[0] // about.factor, land.shape[1] // about.factor)
    if x.shape != expected or any(side % about.factor for side in land.shape):
        raise UserError(
            f"{file} has shape {x.shape}, but {len(about.channels)} channels, {land.shape[0]} x {land.shape[1]} pixels "
            f"and the factor {about.factor} of dataset.json make {expected}: correct dataset.json, or regrid the days."
        )
    return expected


def _read_all(store: Store, split: Mapping[str, tuple[int, ...]], survey: Survey, folder: Path) -> dict[int, str]:
    """Read every day once; returns the training days that cannot be read, which must be few."""
    unreadable: dict[int, str] = {}
    every = [(name, day) for name in SPLITS for day in split[name]]
    for name, day in tqdm(every, desc="reading days", unit="day", leave=False, disable=None):
        try:
            x, y = store[day]
        except UnreadableDay as error:
            if name != "train":
                raise
            unreadable[day] = str(error)
            continue
        survey.add(day, x, y, train=name == "train")
    if len(unreadable) > MAX_UNREADABLE * len(split["train"]):
        raise UserError(
            f"{len(unreadable)} of {len(split['train'])} training days in {folder} cannot be read, at most "
            f"{MAX_UNREADABLE:.1%} may be: {next(iter(unreadable.values()))}"
        )
    return unreadable


def _check_missing(survey: Survey, land: NDArray[np.bool_], dates: dict[int, date], folder: Path) -> float:
    """The share of the land pixels of all days that has no value; ``UserError`` when it is more than a few."""
    missing = sum(survey.missing.values()) / survey.all_days
    if missing <= MAX_MISSING:
        return missing
    assert survey.never is not None  # a day was read
    never = int(survey.never.sum())
    if never / land.sum() > missing / 2:
        rows, columns = np.nonzero(survey.never)
        raise UserError(
            f"NaN over land in {folder}: {never} of {int(land.sum())} land pixels ({never / land.sum():.2%}), e.g. row "
            f"{rows[0]} column {columns[0]}, have no rain on any day: the land_sea_mask is not that of the rain, so "
            "set it to 0 there or use the rain product's own mask."
        )
    raise UserError(
        f"NaN over land in {folder}: {missing:.2%} of the land pixels of all days have no rain, at most "
        f"{MAX_MISSING:.1%} may be missing; {len(survey.missing)} of {survey.all_days} days have gaps, most on "
        f"{survey.worst(dates)}: take these days out of split.json, or fill them from the source."
    )


def _check_varies(x_std: NDArray, channels: tuple[str, ...], folder: Path) -> None:
    if constant := [channel for channel, std in zip(channels, x_std, strict=True) if not std > 0]:
        raise UserError(
            f"channel {constant[0]!r} in {folder} has one value on all training days: it says nothing about the "
            "weather, so prepare it again or leave it out."
        )


def _check_p95(survey: Survey, folder: Path) -> None:
    share, (low, high) = survey.extreme / max(1, survey.wet), P95_SHARE
    if not low <= share <= high:
        raise UserError(
            f"{share:.1%} of the wet land pixels of the training days in {folder} are at or above P95 = "
            f"{survey.p95:g} mm/day of thresholds.json, expected about 5 %: the thresholds are of other days or in "
            "other units, so make the folder again."
        )
