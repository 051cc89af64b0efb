"""The day-file layout as it is written: whole years to a split, extremes from training years, a folder whole or not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rain import CHANNELS, statics, tiny_days, weather

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.folder import Day
from nbhelpers.stages.rainfall_cvae.split import blocks, season, split_days, years_of
from nbhelpers.stages.rainfall_cvae.thresholds import category, thresholds

SHAPE = (16, 20)  # of tiny_days


def metadata(folder: Path, name: str) -> dict:
    return json.loads((folder / "metadata" / f"{name}.json").read_text())


def some_days(*dates: date, change: float = 1.0, year: int | None = None) -> list[Day]:
    """Tiny weather of ``dates``; the rain of ``year`` times ``change``."""
    return [(when, x, y * (change if when.year == year else 1.0)) for when, x, y in weather(dates)]


def from_to(first: date, n: int) -> list[date]:
    return [first + timedelta(day) for day in range(n)]


def test_every_file_of_the_layout(tmp_path: Path) -> None:
    folder = tiny_days(tmp_path / "rain")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    names = [f"{inner}/day_{day:06d}.npy" for inner in ("X_lr", "Y_hr") for day in range(120)]
    names += [f"statics/{name}.npy" for name in ("land_sea_mask", "dist_to_coast_km", "elevation_m")]
    meta = ("split", "dates", "categories", "thresholds", "H_W", "dataset")
    assert found == {*names, *(f"metadata/{name}.json" for name in meta)}
    x, y = np.load(folder / "X_lr/day_000007.npy"), np.load(folder / "Y_hr/day_000007.npy")
    assert x.shape == (len(CHANNELS), 4, 5) and y.shape == (1, *SHAPE) and x.dtype == y.dtype == np.float32
    assert np.load(folder / "statics/land_sea_mask.npy").shape == (1, *SHAPE)
    assert metadata(folder, "dates")["000041"] == "2002-01-02"
    assert metadata(folder, "H_W") == {"H": 16, "W": 20}
    about = metadata(folder, "dataset")
    assert about["factor"] == 4 and about["channels"] == list(CHANNELS) and about["simulated"] is True


def test_whole_years_in_time_order(tmp_path: Path) -> None:
    split = metadata(tiny_days(tmp_path / "rain", n_years=10, days_per_year=12), "split")
    year = {name: sorted({day // 12 for day in days}) for name, days in split.items()}
    assert year == {"train": [0, 1, 2, 3, 4, 5], "val": [6, 7], "test": [8, 9]}
    assert sum(map(len, split.values())) == 120


@given(st.integers(3, 40))
@settings(max_examples=30, deadline=None)
def test_every_split_has_a_year_and_no_year_is_in_two(n_years: int) -> None:
    dates = {index: date(1980 + index // 3, 5, 1 + index % 3) for index in range(3 * n_years)}
    years = {name: {dates[day].year for day in days} for name, days in split_days(dates).items()}
    assert all(years.values()) and sum(map(len, years.values())) == n_years
    assert max(years["train"]) < min(years["val"]) <= max(years["val"]) < min(years["test"])


def test_a_winter_is_one_year() -> None:
    when = {0: date(2001, 11, 30), 1: date(2001, 12, 31), 2: date(2002, 1, 1), 3: date(2002, 2, 1), 4: date(2003, 1, 1)}
    assert years_of(when) == {0: 2002, 1: 2002, 2: 2002, 3: 2002, 4: 2003}
    whole = {month: date(2001, month, 1) for month in range(1, 13)}
    assert set(years_of(whole).values()) == {2001}  # all months: the calendar's year
    assert years_of({0: date(2001, 6, 1), 1: date(2001, 12, 1)}) == {0: 2001, 1: 2001}  # nothing runs over New Year


def test_years_can_be_named() -> None:
    dates = {index: date(2001 + index, 1, 1) for index in range(5)}
    split = split_days(dates, {"train": [2004, 2005], "val": [2001], "test": [2003]})
    assert split == {"train": (3, 4), "val": (0,), "test": (2,)}
    with pytest.raises(UserError, match="no day is of the val years \\[1999\\]"):
        split_days(dates, {"train": [2004], "val": [1999], "test": [2003]})
    with pytest.raises(UserError, match="share 1 of their keys, e.g. '2003'"):
        split_days(dates, {"train": [2003], "val": [2001], "test": [2003]})


def test_thresholds_are_of_the_wet_land_of_the_training_years(tmp_path: Path) -> None:
    dates = [when for year in (2001, 2002, 2003) for when in from_to(date(year, 1, 1), 40)]
    days = some_days(*dates)
    land = statics(SHAPE)["land_sea_mask"] > 0.5
    train = np.concatenate([y[land] for when, _, y in days if when.year == 2001])
    found = metadata(tiny_days(tmp_path / "plain", days=days), "thresholds")
    assert found["P95"] == pytest.approx(np.quantile(train[train >= 1], 0.95), abs=1e-3)
    assert found["years"] == [2001] and found["units"] == "mm/day" and found["wet"] == 1.0
    wetter = tiny_days(tmp_path / "test", days=some_days(*dates, change=3.0, year=2003))
    assert metadata(wetter, "thresholds") == found  # the test year has no say
    other = tiny_days(tmp_path / "train", days=some_days(*dates, change=3.0, year=2001))
    assert metadata(other, "thresholds")["P95"] > 2 * found["P95"]


def test_rain_over_sea_has_no_say_in_thresholds() -> None:
    land = np.array([[True, False]])
    fields = [np.array([[amount, 500.0]]) for amount in np.linspace(1, 100, 400)]
    assert thresholds(fields, land, [2001])["P99.5"] < 101


def test_categories_by_the_share_of_the_land() -> None:
    land = np.ones((10, 10), bool)
    land[:, 9] = False  # 90 land pixels: 2 % are 1.8
    rain = np.where(land, 0.0, 99.0)
    assert category(rain, land, 20.0) == "dry"
    rain[0, 0] = 99.0
    assert category(rain, land, 20.0) == "dry"  # 1 of 90
    rain[0, 1] = 20.0
    assert category(rain, land, 20.0) == "heavy"  # 2 of 90
    rain[0, :2] = 19.9
    assert category(rain, land, 20.0) == "moderate"
    assert category(np.where(land, np.nan, 50.0), land, 20.0) == "dry"


def test_all_dry_training_years_are_refused(tmp_path: Path) -> None:
    dates = [when for year in (2001, 2002, 2003) for when in from_to(date(year, 1, 1), 10)]
    with pytest.raises(UserError, match=r"only 0 land pixels of all training days .*multiply mm/h by 24"):
        tiny_days(tmp_path / "rain", days=some_days(*dates, change=0.0, year=2001))
    assert not list(tmp_path.iterdir())


def swapped(days: Iterable[Day]) -> list[Day]:
    first, second, *rest = days
    return [second, first, *rest]


@pytest.mark.parametrize(
    ("days", "changes", "said"),
    [
        (swapped(some_days(*from_to(date(2001, 1, 1), 3))), {}, "2001-01-01 comes after 2001-01-02"),
        ([], {}, "there is no day to write"),
        (some_days(*from_to(date(2001, 1, 1), 9)), {}, r"are of 1 year\(s\) \(2001\), but a split by years needs"),
        ([(date(2001, 1, 1), np.zeros((3, 3, 5)), np.zeros(SHAPE))], {}, "one whole multiple"),
        ([(date(2001, 1, 1), np.zeros((3, 2, 5)), np.zeros(SHAPE))], {}, "one whole multiple"),
        ([(date(2001, 1, 1), np.zeros((2, 4, 5)), np.zeros(SHAPE))], {}, r"predictors of shape \(2, 4, 5\)"),
        (None, {"statics": {"land_sea_mask": np.ones(SHAPE)}}, "statics lack 'dist_to_coast_km'"),
        (None, {"channels": ("tas", "huss")}, "with 'pr' among them"),
        (None, {"x_units": {"tas": "K", "pr": "mm/day"}}, "in which unit 'huss' is"),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(
    tmp_path: Path, days: list[Day] | None, changes: dict, said: str
) -> None:
    given_days = weather(from_to(date(2001, 1, 1), 3)) if days is None else iter(days)
    with pytest.raises(UserError, match=said):
        tiny_days(tmp_path / "rain", days=given_days, **changes)
    assert not list(tmp_path.iterdir())


def test_days_are_never_written_over(tmp_path: Path) -> None:
    folder = tiny_days(tmp_path / "rain", days_per_year=10)
    before = (folder / "metadata/dataset.json").read_bytes()
    with pytest.raises(UserError, match="holds files already"):
        tiny_days(folder, days_per_year=10, name="other")
    assert (folder / "metadata/dataset.json").read_bytes() == before


def test_blocks_are_five_days_of_one_season() -> None:
    when = dict(enumerate([*from_to(date(2001, 2, 22), 12), date(2001, 3, 10)]))
    label = blocks(when, when)
    first = [label[day] for day in sorted(label)]
    assert first == ["2001-02-22"] * 5 + ["2001-02-27"] * 2 + ["2001-03-01"] * 5 + ["2001-03-10"]
    assert [season(date(2001, month, 1)) for month in (12, 2, 3, 6, 9, 11)] == "DJF DJF MAM JJA SON SON".split()
