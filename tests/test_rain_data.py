"""A data folder opened: what its statistics are of, and every fault it may have in one clear sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rain import long_training, tiny_days

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.data import Days, open_days
from nbhelpers.stages.rainfall_cvae.split import keys
from nbhelpers.training.guards.leakage import Leakage
from nbhelpers.training.guards.rehearsal import Rehearsal

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 days of three years: 0-19 train, 20-39 val, 40-59 test."""
    return tiny_days(tmp_path_factory.mktemp("data") / "rain", days_per_year=20)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "rain"))


@pytest.fixture(scope="module")
def days(made: Path) -> Days:
    return open_days(made)


def rain(day: int, change: Callable[[np.ndarray], Any]) -> Change:
    """Let ``change`` work on the rain ``(1, H, W)`` of a day."""
    return on_file(f"Y_hr/day_{day:06d}.npy", change)


def on_file(name: str, change: Callable[[np.ndarray], Any]) -> Change:
    def apply(folder: Path) -> None:
        value = np.load(folder / name)
        changed = change(value)
        np.save(folder / name, value if changed is None else changed)

    return apply


def everywhere(inner: str, change: Callable[[np.ndarray], Any]) -> Change:
    def apply(folder: Path) -> None:
        for path in sorted((folder / inner).iterdir()):
            on_file(f"{inner}/{path.name}", change)(folder)

    return apply


def on_json(name: str, change: Callable[[dict], Any]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "metadata" / f"{name}.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return apply


def times(factor: float, channel: int | None = None) -> Callable[[np.ndarray], None]:
    def change(value: np.ndarray) -> None:
        value[slice(None) if channel is None else channel] *= factor

    return change


def put(where: Any, what: float) -> Callable[[np.ndarray], None]:
    return lambda value: value.__setitem__(where, what)


def test_what_it_says_of_itself(days: Days) -> None:
    assert days.x_shape == (3, 4, 5) and days.shape == (16, 20) and days.factor == 4 and days.pixel_km == 12.0
    assert {name: (len(found), set(days.years[name])) for name, found in days.split.items()} == {
        "train": (20, {2001}),
        "val": (20, {2002}),
        "test": (20, {2003}),
    }
    assert list(days.thresholds) == ["P90", "P95", "P99", "P99.5"]
    assert set(days.category) == set(range(60)) and set(days.category.values()) == {"dry", "moderate", "heavy"}
    assert days.static_names == ("land_sea_mask", "dist_to_coast_km", "elevation_m")
    assert set(np.unique(days.statics[0])) == {0.0, 1.0}
    assert np.allclose(days.statics[1:].mean((1, 2)), 0, atol=1e-5) and np.allclose(days.statics[1:].std((1, 2)), 1)
    assert days.season(0) == "DJF" and days.blocks("val")[20] == "2002-01-01" == days.blocks("val")[24]
    assert not days.unreadable and days.missing == 0.0


def test_statistics_are_of_the_training_days(days: Days) -> None:
    x = np.stack([days.x(day) for day in range(20)]).astype(np.float64)
    x[:, 1] = np.log1p(x[:, 1])
    assert np.allclose(days.x_mean, x.mean((0, 2, 3)), rtol=1e-5)
    assert np.allclose(days.x_std, x.std((0, 2, 3)), rtol=1e-4)
    y = np.stack([days.y(day) for day in range(20)]).astype(np.float64)
    assert np.allclose(days.rain_mean[days.land], y.mean(0)[days.land], rtol=1e-5)
    assert np.allclose(days.rain_std[days.land], y.std(0)[days.land], rtol=1e-4)
    assert not days.rain_mean[~days.land].any() and np.isfinite(days.rain_std).all()


def test_predictors_standardised_with_rain_as_its_logarithm(days: Days) -> None:
    x = torch.from_numpy(np.stack([days.x(day) for day in days.split["train"]]))
    z = days.standardise_x(x)
    assert z.shape == x.shape and z.dtype == torch.float32
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(3), atol=2e-3)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(3), atol=2e-3)
    assert torch.allclose(z[:, 1] * float(days.x_std[1]) + float(days.x_mean[1]), x[:, 1].log1p(), atol=1e-5)


def test_coarse_rain_in_another_unit_is_the_same_weather(days: Days, folder: Path) -> None:
    everywhere("X_lr", times(1 / 86_400, channel=1))(folder)
    on_json("dataset", lambda about: about["x_units"].update(pr="kg m-2 s-1"))(folder)
    other = open_days(folder)
    mine, theirs = (torch.from_numpy(one.x(3))[None] for one in (days, other))
    assert torch.allclose(days.pr(mine), other.pr(theirs), rtol=1e-5)
    assert torch.allclose(days.standardise_x(mine), other.standardise_x(theirs), atol=1e-4)


def test_rain_over_sea_is_ignored(days: Days, folder: Path) -> None:
    sea = np.load(folder / "statics/land_sea_mask.npy") < 0.5
    everywhere("Y_hr", lambda y: np.where(sea, np.float32(700.0), y))(folder)
    other = open_days(folder)
    assert np.isnan(other.y(5)[sea[0]]).all() and sea.any()
    assert np.array_equal(other.rain_mean, days.rain_mean) and np.array_equal(other.y(5), days.y(5), equal_nan=True)


def test_packing_noise_below_zero_becomes_zero(folder: Path) -> None:
    rain(3, lambda y: np.where(y == 0, np.float32(-0.004), y))(folder)
    y = open_days(folder).y(3)
    assert np.nanmin(y) == 0.0 and (y == 0).any()


def test_a_few_missing_pixels_stay_missing(folder: Path) -> None:
    rain(3, put((0, 15, slice(0, 3)), np.nan))(folder)
    days = open_days(folder)
    assert np.isnan(days.y(3)[15, :3]).all() and days.land[15, :3].all()
    assert days.missing == pytest.approx(3 / (60 * days.land.sum()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (everywhere("Y_hr", put((0, 15, slice(0, 3)), np.nan)), r"NaN over land.*3 of 299 land .* row 15 column 0"),
        (rain(5, put((0, slice(9, 15)), np.nan)), r"NaN over land.*0\.67%.* 1 of 60 .* day 5 \(2001-01-06\) 40\.1%"),
        (rain(30, put((0, slice(4, 16)), np.nan)), r"day_000030\.npy is NaN over 79\.6% of the land"),
        (rain(5, put((0, 9, 9), -9999.0)), r"negative rain, down to -9999 mm/day .*'not measured' write NaN"),
        (rain(5, put((0, 9, 9), -0.5)), r"day_000005\.npy holds negative rain, down to -0\.5"),
        (rain(5, put((0, 9, 9), 1e20)), r"holds 1e\+20 as rain in mm/day, more than has ever been measured"),
        (rain(5, lambda y: y[:, 1:]), r"day_000005\.npy has shape \(1, 15, 20\), expected \(1, 16, 20\)"),
        (rain(5, lambda y: np.nan_to_num(y).astype(np.int16)), r"holds int16, expected float32: unpack"),
        (on_file("X_lr/day_000007.npy", lambda x: x[:, :3]), r"day_000007\.npy has shape \(3, 3, 5\)"),
        (on_file("X_lr/day_000000.npy", lambda x: x[:2]), r"shape \(2, 4, 5\), but 3 channels, 16 x 20 pixels"),
        (on_file("X_lr/day_000025.npy", put((2, 0, 0), np.nan)), r"NaN or infinity in channel\(s\) \[2\]"),
        (on_file("statics/elevation_m.npy", lambda x: x[:, 1:]), r"\(1, 15, 20\), but H_W\.json says \(1, 16, 20\)"),
        (on_file("statics/elevation_m.npy", put((0, 15, 15), np.nan)), "'elevation_m' .* is NaN .* over land"),
        (on_file("statics/land_sea_mask.npy", times(0.5)), "values from 0 to 0.5, expected 1 over land"),
        (everywhere("X_lr", lambda x: x.__setitem__(2, 0.01)), "channel 'huss' .* has one value on all training days"),
        (lambda folder: (folder / "statics/dist_to_coast_km.npy").unlink(), "has no dist_to_coast_km.npy"),
        (lambda folder: (folder / "metadata/dates.json").unlink(), r"dates\.json is not there"),
        (lambda folder: (folder / "metadata/split.json").write_text("{"), r"split\.json cannot be read"),
        (lambda folder: (folder / "metadata/split.json").write_text("[1]"), "holds a list, expected a JSON object"),
        (
            on_json("dates", lambda dates: dates.update({"000001": "2001-01-01"})),
            "the date 2001-01-01 .* more than one",
        ),
        (on_json("dates", lambda dates: dates.update({"000001": "1.1.01"})), r"dates\.json has an entry"),
        (on_json("dates", lambda dates: dates.pop("000017")), r"has day 17 in train, but dates\.json does not know"),
        (on_json("split", lambda split: split["val"].append(17)), "has day 17 in train and in val"),
        (on_json("split", lambda split: split.update(val=[])), "no list of numbers of days for 'val'"),
        (on_json("split", lambda split: split.pop("val")), r"splits \['test', 'train'\], expected train, val, test"),
        (on_json("categories", lambda found: found["dry"].extend([4, 4])), "has day 4 in 3 categories"),
        (on_json("thresholds", lambda found: found.update(years=[2001, 2003])), "with the year 2003 of validation or"),
        (on_json("thresholds", lambda found: found.update(P95=2.0)), "expected numbers that rise"),
        (on_json("thresholds", lambda found: found.update(P90=1.0, P95=2.0)), r"or above P95 = 2 mm/day .* about 5 %"),
        (on_json("thresholds", lambda found: found.update(units="mm/h")), "is in 'mm/h', expected mm/day"),
        (on_json("dataset", lambda about: about.update(channels=["tas", "rain", "huss"])), "expected 'pr' among them"),
        (on_json("dataset", lambda about: about.update(factor=12)), "the factor 12 of dataset.json"),
        (on_json("dataset", lambda about: about.pop("pixel_km")), "has None for 'pixel_km'"),
        (on_json("dataset", lambda about: about["x_units"].update(pr="parsec")), "'parsec', which is no known unit"),
    ],
)
def test_a_fault_is_one_clear_sentence(folder: Path, change: Change, said: str) -> None:
    change(folder)
    with pytest.raises(UserError, match=said) as caught:
        open_days(folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", ")"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (everywhere("Y_hr", times(1 / 24)), r"the predictor 'pr' has .* the rain looks like mm/h, so multiply by 24"),
        (everywhere("Y_hr", times(1 / 86_400)), "the rain looks like kg m-2 s-1, so multiply by 86,400"),
        (everywhere("Y_hr", times(1 / 1000)), "the rain looks like m/day, so multiply by 1,000"),
        (everywhere("Y_hr", times(10)), "the rain looks like tenths of mm/day, so divide by 10"),
        (everywhere("X_lr", times(1 / 86_400, 1)), "'pr' looks like kg m-2 s-1, so multiply by 86,400"),
        (everywhere("X_lr", lambda x: x.__setitem__(1, (x[1] - 4) / 8)), "it was standardised, or it is not rain"),
        (everywhere("Y_hr", times(0)), "the rain of all training days in .* is 0 over land"),
        (
            everywhere("X_lr", lambda x: x.__setitem__(0, x[0] - 273)),
            "'tas' .* in K and has a mean .* temperature in °C",
        ),
    ],
)
def test_other_units_are_named(folder: Path, change: Change, said: str) -> None:
    # Thresholds follow the data, as those of a folder made by mistake would.
    on_json("thresholds", lambda found: found.update(P90=1.0, P95=1.0, P99=1.0))(folder)
    change(folder)
    with pytest.raises(UserError, match=said):
        open_days(folder)


def test_both_in_mm_an_hour_are_no_climate(folder: Path) -> None:
    """A pair made from one rain product agrees with itself, whatever its unit."""
    everywhere("Y_hr", times(1 / 24))(folder)
    everywhere("X_lr", times(1 / 24, channel=1))(folder)
    with pytest.raises(
        UserError, match=r"rain in mm/day has a mean of 0\.05 to 30 .*looks like mm/h, so multiply by 24"
    ):
        open_days(folder)


def test_a_dry_climate_can_be_opened(tmp_path: Path, made: Path) -> None:
    days = [(when, x * np.array([1, 0.3, 1])[:, None, None], y * 0.3) for when, x, y in _days(made)]
    folder = tiny_days(tmp_path / "dry", days=[(when, x, np.minimum(y, 9)) for when, x, y in days])
    with pytest.raises(UserError, match=r"P99\.9 of 9 over land"):
        open_days(folder)
    assert open_days(folder, check_units=False).rain_mean.max() < 9


def test_real_winters(tmp_path: Path, real_data: Path) -> None:
    """Winters of a regional climate model: plausible as they are, and not as mm/h; none is cut at New Year."""
    file = np.load(real_data / "rain/CORDEX_Iberia_pr.npz")
    dates = [date.fromisoformat(one) for one in file["date"][:360]]
    folders = {}
    for factor in (1.0, 1 / 24):
        fields = file["pr"][:360, :, :28] * np.float32(factor)
        blocks = fields.reshape(360, 1, 7, 4, 7, 4).mean((3, 5))
        folders[factor] = tmp_path / f"{factor:.2f}"
        about: dict[str, Any] = {"channels": ("pr",), "x_units": {"pr": "mm/day"}, "simulated": False}
        about["statics"] = {"land_sea_mask": np.ones((28, 28)), "dist_to_coast_km": np.zeros((28, 28))}
        tiny_days(folders[factor], days=list(zip(dates, blocks, fields, strict=True)), **about)
    days = open_days(folders[1.0])
    assert {name: set(years) for name, years in days.years.items()} == {
        "train": {1983, 1984},
        "val": {1985},
        "test": {1986},
    }
    assert days.dates[days.split["test"][0]] == date(1985, 12, 1) and days.missing == 0
    with pytest.raises(UserError, match="looks like mm/h, so multiply by 24"):
        open_days(folders[1 / 24])


def _days(folder: Path) -> list:
    days = open_days(folder)
    return [(days.dates[day], days.x(day), days.y(day)) for day in days.dates]


def test_shuffled_days_leak(folder: Path) -> None:
    order = np.random.default_rng(0).permutation(60).tolist()
    on_json("split", lambda split: split.update(train=order[:40], val=order[40:50], test=order[50:]))(folder)
    with pytest.raises(UserError, match="days of the year 2001 stand in train and val .*weather of neighbouring days"):
        open_days(folder)


def test_unreadable_training_days_have_a_budget(tmp_path: Path) -> None:
    folder = long_training(tmp_path / "rain")
    (folder / "Y_hr/day_000009.npy").write_bytes(b"half a file")
    days = open_days(folder)
    assert list(days.unreadable) == [9] and "day_000009.npy cannot be read" in days.unreadable[9]
    assert 9 in days.split["train"]  # counted as unreadable by whoever draws it
    (folder / "X_lr/day_000011.npy").unlink()
    with pytest.raises(UserError, match=r"2 of 1100 training days in .* at most 0\.1% may be: .*day_0000"):
        open_days(folder)


def test_an_unreadable_validation_day_is_one_too_many(folder: Path) -> None:
    path = folder / "Y_hr/day_000030.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"day_000030\.npy cannot be read"):
        open_days(folder)


def test_what_memory_forgets_is_read_again(made: Path, days: Days) -> None:
    frugal = open_days(made, budget=0)
    assert np.array_equal(frugal.y(25), days.y(25), equal_nan=True) and frugal.y(25) is not frugal.y(25)
    assert days.y(25) is days.y(25)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data folder .* does not exist"):
        open_days(tmp_path / "absent")


def test_keys_find_a_copied_day_under_another_date(days: Days, folder: Path) -> None:
    clean = keys(days)
    assert clean["year"] == {"train": {"2001"}, "val": {"2002"}, "test": {"2003"}}
    assert clean["day"]["val"] >= {"2002-01-01"} and len(clean["content"]["train"]) > 15
    assert not list(Leakage().before(_rehearsal(clean)))
    heavy = next(day for day in days.split["test"] if days.category[day] == "heavy")
    shutil.copy(folder / f"Y_hr/day_{heavy:06d}.npy", folder / "Y_hr/day_000002.npy")
    found = list(Leakage().before(_rehearsal(keys(open_days(folder)))))
    assert [finding.severity for finding in found] == ["stop"] and "content" in found[0].message


def test_dry_days_are_equal_without_being_copies(folder: Path) -> None:
    for day in (3, 30, 50):
        rain(day, times(0))(folder)
    assert not list(Leakage().before(_rehearsal(keys(open_days(folder)))))


def _rehearsal(found: dict) -> Rehearsal:
    class OnlyKeys:
        def keys(self) -> dict:
            return found

    rehearsal = object.__new__(Rehearsal)
    for name, value in {"task": OnlyKeys(), "step": 0}.items():
        object.__setattr__(rehearsal, name, value)
    return rehearsal
