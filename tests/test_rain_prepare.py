"""Day files made from real NetCDF-4 files: every value in its place, and a sentence for every mistake."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf import Moment, days, made, rain_at, write_nc
from numpy.typing import NDArray

from nbhelpers.cli import main
from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import rain_files
from nbhelpers.stages.rainfall_cvae.coarsen import block_means
from nbhelpers.stages.rainfall_cvae.data import open_days
from nbhelpers.stages.rainfall_cvae.grid import DEGREE_KM, NO_COAST_KM
from nbhelpers.stages.rainfall_cvae.prepare import prepare_downscaling, prepare_rain

YEARS = (1990, 1991, 1992, 1993)
COARSE_LAT, COARSE_LON = [43.0, 42.0, 41.0], [-1.0, 0.0, 1.0, 2.0]  # cells of 1 degree
LAT, LON = np.arange(38.125, 45, 0.25), np.arange(-3.875, 4, 0.25)  # pixels of 0.25 degrees, a larger map
# What the made predictors are, as a day file should have them, and how the made files say it.
BASES = {"tas": 283.15, "huss": 0.005, "sfcWind": 3.0, "tasmax": 288.0, "tasmin": 278.0}
UNITS = {"tas": "degC", "huss": "g kg-1", "sfcWind": "m s-1", "tasmax": "K", "tasmin": "K"}


def predictor_at(name: str, lat: float, lon: float, when: Moment) -> float:
    east = (lon + 180) % 360 - 180
    return BASES[name] * (1 + 0.001 * (lat - 40) + 0.0002 * east + 0.00003 * when[2] + 0.00002 * (when[0] % 100))


def is_sea(lat: float, lon: float) -> bool:
    return lat < 41.2 and lon < 0.6


def fine_rain(moments: list[Moment]) -> NDArray[np.float64]:
    sea = [[is_sea(lat, lon) for lon in LON] for lat in LAT]
    return np.where(sea, np.nan, made(LAT, LON, moments))


def write_rain(path: Path, moments: list[Moment], **changes: Any) -> Path:
    values = changes.pop("values", None)
    options: dict[str, Any] = {"y": LAT, "x": LON, "moments": moments, "dims": ("time", "latitude", "longitude")}
    options |= {"fill": -9999.0, "about": {"title": "Made rain", "institution": "Nowhere"}, **changes}
    return write_nc(
        path, options.pop("variable", "precip"), fine_rain(moments) if values is None else values, **options
    )


def write_predictors(folder: Path, moments: list[Moment], *, calendar: str = "noleap", **changes: Any) -> Path:
    """Six variables on 3 x 4 cells, longitudes from 0 to 360, ``tas`` in two files, ``pr`` as a flux."""
    half = len(moments) // 2
    options: dict[str, Any] = {"y": COARSE_LAT, "x": np.mod(COARSE_LON, 360), "calendar": calendar, **changes}
    about = {"title": "Made weather", "source_id": "MODEL-1"}
    for name in (*BASES, "pr"):
        for part in (moments[:half], moments[half:]) if name == "tas" else (moments,):
            if name == "pr":
                fine = made(LAT, LON, part)
                lon = [int(np.abs(LON - (x - 0.375)).argmin()) for x in COARSE_LON]
                lat = [int(np.abs(LAT - (y - 0.375)).argmin()) for y in COARSE_LAT]
                blocks = [[fine[:, i : i + 4, j : j + 4].mean((1, 2)) for j in lon] for i in lat]
                values, units = np.moveaxis(np.array(blocks), 2, 0) / 86400, "kg m-2 s-1"
            else:
                east, north = COARSE_LON, options["y"]
                values = np.array([[[predictor_at(name, y, x, t) for x in east] for y in north] for t in part])
                values = values - 273.15 if name == "tas" else values * 1000 if name == "huss" else values
                units = UNITS[name]
            span = f"{part[0][0]}{part[0][1]:02d}{part[0][2]:02d}"
            path = folder / f"{name}_day_MODEL-1_historical_{span}.nc"
            write_nc(path, name, values, moments=part, units=units, about=about, **options)
    return folder


def json_of(folder: Path, name: str) -> Any:
    return json.loads((folder / "metadata" / f"{name}.json").read_text())


def arrays(folder: Path, what: str) -> dict[date, NDArray[np.float32]]:
    dates = json_of(folder, "dates")
    return {date.fromisoformat(when): np.load(folder / what / f"day_{day}.npy") for day, when in dates.items()}


def check_fine(folder: Path, lat: NDArray, lon: NDArray, sea: Callable[[float, float], bool] = is_sea) -> None:
    for when, y in arrays(folder, "Y_hr").items():
        assert y.shape == (1, len(lat), len(lon)) and y.dtype == np.float32
        for i, north in enumerate(lat):
            for j, east in enumerate(lon):
                expected = np.nan if sea(north, east) else rain_at(north, east, (when.year, when.month, when.day))
                assert y[0, i, j] == pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True), (when, north, east)


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made predictors in ``coarse/`` and the rain in ``rain/``, one file a year."""
    root = tmp_path_factory.mktemp("weather")
    write_predictors(root / "coarse", days(*YEARS, 1994))
    for year in YEARS:
        write_rain(root / "rain" / f"rain.{year}.nc", [(year - 1, 12, 31), *days(year, n=6)])
    return root


@pytest.fixture(scope="module")
def prepared(weather: Path) -> Path:
    return prepare_downscaling(weather / "prepared", weather / "coarse", [weather / "rain"])


def test_downscaling_pairs_are_in_their_places(prepared: Path) -> None:
    fine_lat, fine_lon = np.arange(43.375, 40.5, -0.25), np.arange(-1.375, 2.5, 0.25)
    check_fine(prepared, fine_lat, fine_lon)
    xs = arrays(prepared, "X_lr")
    assert list(xs) == [date(year, 1, day) for year in YEARS for day in range(1, 7)]  # those that all files have
    channels = json_of(prepared, "dataset")["channels"]
    assert channels == ["tas", "pr", "huss", "sfcWind", "tasmax", "tasmin"]
    for when, x in xs.items():
        moment = (when.year, when.month, when.day)
        assert x.shape == (6, 3, 4)
        for i, lat in enumerate(COARSE_LAT):
            for j, lon in enumerate(COARSE_LON):
                for name in BASES:
                    expected = predictor_at(name, lat, lon, moment)
                    assert x[channels.index(name), i, j] == pytest.approx(expected, rel=1e-6), (name, when, lat, lon)
                cell = [
                    rain_at(lat + a, lon + b, moment)
                    for a in (-0.375, -0.125, 0.125, 0.375)
                    for b in (-0.375, -0.125, 0.125, 0.375)
                ]
                assert x[1, i, j] == pytest.approx(np.mean(cell), rel=1e-6), (when, lat, lon)


def test_downscaling_metadata_and_statics(prepared: Path) -> None:
    about = json_of(prepared, "dataset")
    assert about["x_units"] == {
        "tas": "K",
        "pr": "mm/day",
        "huss": "kg/kg",
        "sfcWind": "m/s",
        "tasmax": "K",
        "tasmin": "K",
    }
    assert about["name"] == "Made rain" and about["simulated"] is False and about["factor"] == 4
    assert about["source"] == "Made rain, Nowhere; predictors: Made weather, MODEL-1"
    narrow = np.cos(np.radians(42))
    assert about["pixel_km"] == pytest.approx(0.25 * DEGREE_KM * np.sqrt(narrow), abs=1e-3)
    lat, lon = np.arange(43.375, 40.5, -0.25), np.arange(-1.375, 2.5, 0.25)
    sea = np.array([[is_sea(y, x) for x in lon] for y in lat])
    land, coast = (np.load(prepared / "statics" / f"{name}.npy")[0] for name in ("land_sea_mask", "dist_to_coast_km"))
    assert (land == ~sea).all() and 0 < sea.sum() < sea.size
    rows, columns = np.nonzero(sea)
    down, right = 0.25 * DEGREE_KM, 0.25 * DEGREE_KM * narrow
    for i in range(land.shape[0]):
        for j in range(land.shape[1]):
            nearest = np.hypot((rows - i) * down, (columns - j) * right).min()
            assert coast[i, j] == pytest.approx(nearest, rel=1e-5)


def test_the_reader_opens_what_was_prepared(prepared: Path) -> None:
    opened = open_days(prepared)
    assert opened.x_shape == (6, 3, 4) and opened.shape == (12, 16) and opened.factor == 4
    assert {name: set(found) for name, found in opened.years.items()} == {
        "train": {1990, 1991},
        "val": {1992},
        "test": {1993},
    }


def test_common_days_are_told(
    weather: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_downscaling(tmp_path / "a", weather / "coarse", [weather / "rain"], channels=("pr", "tas"))
    assert "24 common days (rain has 28, pr has 40, tas has 40); the others are left out" in capsys.readouterr().err
    assert json_of(tmp_path / "a", "dataset")["channels"] == ["pr", "tas"]
    whole = arrays(prepared, "X_lr")
    for when, x in arrays(tmp_path / "a", "X_lr").items():
        np.testing.assert_array_equal(x, whole[when][[1, 0]])


def test_a_box_of_the_coarse_grid(weather: Path, prepared: Path, tmp_path: Path) -> None:
    box = (359.2, 41.5, 361.2, 43.5)  # cells at 0 and 1 east, 42 and 43 north
    folder = prepare_downscaling(tmp_path / "a", weather / "coarse", [weather / "rain"], box=box, factor=4)
    for what, part in (("X_lr", np.s_[:, :2, 1:3]), ("Y_hr", np.s_[:, :8, 4:12])):
        whole = arrays(prepared, what)
        for when, found in arrays(folder, what).items():
            np.testing.assert_array_equal(found, whole[when][part])


def test_pieces_make_no_difference(
    weather: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rain_files, "BLOCK_BYTES", 4 * 12 * 16 * 8)  # four days at once, across the ends of the files
    folder = prepare_downscaling(tmp_path / "a", weather / "coarse", [weather / "rain"])
    for what in ("X_lr", "Y_hr"):
        whole = arrays(prepared, what)
        for when, found in arrays(folder, what).items():
            np.testing.assert_array_equal(found, whole[when])


def without_huss(folder: Path) -> None:
    next(folder.glob("huss_day_*")).unlink()


def unknown_unit(folder: Path) -> None:
    with netCDF4.Dataset(next(folder.glob("tasmax_day_*")), "a") as file:
        file["tasmax"].units = "degF"


def a_gap(folder: Path) -> None:
    with netCDF4.Dataset(next(folder.glob("huss_day_*")), "a") as file:
        file["huss"][9, 1, 2] = np.nan


def another_name(folder: Path) -> None:
    with netCDF4.Dataset(next(folder.glob("sfcWind_day_*")), "a") as file:
        file.renameVariable("sfcWind", "uas")


def staggered(folder: Path) -> None:
    with netCDF4.Dataset(next(folder.glob("sfcWind_day_*")), "a") as file:
        file["lon"][:] = file["lon"][:] + 0.5


def beyond_the_rain(folder: Path) -> None:
    for path in folder.glob("*.nc"):
        with netCDF4.Dataset(path, "a") as file:
            file["lat"][:] = file["lat"][:] + 2


def next_century(folder: Path) -> None:
    for path in folder.glob("*.nc"):
        with netCDF4.Dataset(path, "a") as file:
            file["time"].units = "days since 2080-01-01"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_huss, r"coarse has no huss_day_\*.nc \(it has pr_day_MODEL-1.*add the daily files"),
        (unknown_unit, r"tasmax is in 'degF', which is not known as a unit of it, expected one of K, degC"),
        (a_gap, r"huss_day_.*lacks values of huss on 1991-01-02"),
        (another_name, r"has no variable 'sfcWind': it has .*uas"),
        (staggered, r"sfcWind has 3 x 4 pixels.*and tas has 3 x 4"),
        (beyond_the_rain, r"the rain has 28 x 32 pixels, 38.125 to 44.875 .* and the predictors have 3 x 4 pixels"),
        (next_century, r"no day is in all files \(rain 1989-12-31 to 1993-01-06; tas 2090"),
    ],
)
def test_predictors_that_cannot_be_used(
    weather: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    coarse = write_predictors(tmp_path / "coarse", days(*YEARS[:2]))
    change(coarse)
    with pytest.raises(UserError, match=said):
        prepare_downscaling(tmp_path / "to", coarse, [weather / "rain"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coarse"]


def test_wrong_arguments_of_downscaling(weather: Path, tmp_path: Path) -> None:
    coarse, rain = weather / "coarse", [weather / "rain"]
    with pytest.raises(UserError, match=r"--factor is 3, but a cell of .*coarse covers 4 x 4 pixels"):
        prepare_downscaling(tmp_path / "to", coarse, rain, factor=3)
    with pytest.raises(UserError, match=r"nowhere has no tas_day_\*.nc \(it has no .nc file\)"):
        prepare_downscaling(tmp_path / "to", tmp_path / "nowhere", rain)
    with pytest.raises(UserError, match=r"there is no predictor 'psl': choose among tas, pr"):
        prepare_downscaling(tmp_path / "to", coarse, rain, channels=("pr", "psl"))
    with pytest.raises(UserError, match=r"'pr' among them"):
        prepare_downscaling(tmp_path / "to", coarse, rain, channels=("tas",))
    with pytest.raises(UserError, match=r"no day is of the months \[7\]: there are days of the months 1\."):
        prepare_downscaling(tmp_path / "to", coarse, rain, months=[7])


def chirps_like(folder: Path, *years: int, **changes: Any) -> Path:
    """One file a year as CHIRPS has them: no standard name of CF, rows from the south, -9999 over sea."""
    for year in years:
        moments = changes.get("moments", days(year, n=5) + days(year, month=2, n=3))
        attributes = {"standard_name": "convective precipitation rate"}
        since = "days since 1980-1-1 0:0:0"
        write_rain(
            folder / f"chirps-v2.0.{year}.days_p25.nc",
            moments,
            since=since,
            attributes=attributes,
            **{key: value for key, value in changes.items() if key != "moments"},
        )
    return folder


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chirps_like(tmp_path_factory.mktemp("chirps"), *YEARS)


def test_rain_alone_becomes_its_own_block_means(
    product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = (-3.3, 38.5, 2.5, 43.0)  # 18 rows from 42.875 down, 23 columns from -3.125 on
    folder = prepare_rain(tmp_path / "a", [product], factor=4, box=box)
    told = capsys.readouterr().err
    assert "18 x 23 pixels cut to 16 x 20, multiples of 4" in told and "coarse cells lie over sea alone" in told
    lat, lon = 42.875 - 0.25 * np.arange(16), -3.125 + 0.25 * np.arange(20)
    check_fine(folder, lat, lon)
    xs, only_sea = arrays(folder, "X_lr"), 0
    assert len(xs) == 32
    for when, x in xs.items():
        assert x.shape == (1, 4, 5)
        means = {}
        for i in range(4):
            for j in range(5):
                cell = [
                    rain_at(y, z, (when.year, when.month, when.day))
                    for y in lat[4 * i : 4 * i + 4]
                    for z in lon[4 * j : 4 * j + 4]
                    if not is_sea(y, z)
                ]
                only_sea += not cell
                if cell:
                    means[i, j] = np.mean(cell)
        for i, j in np.ndindex(4, 5):  # over sea alone: as the nearest land cell, or one of those
            least = min(math.hypot(i - y, j - z) for y, z in means)
            near = [mean for (y, z), mean in means.items() if math.isclose(math.hypot(i - y, j - z), least)]
            assert any(x[0, i, j] == pytest.approx(mean, rel=1e-5) for mean in near)
    assert 0 < only_sea < 4 * 5 * len(xs) and f"{only_sea // 32} of 20 coarse cells" in told
    about = json_of(folder, "dataset")
    assert about["channels"] == ["pr"] and about["factor"] == 4
    assert about["source"] == "Made rain, Nowhere; predictors are means of 4 x 4 pixels of the rain itself"
    assert open_days(folder).shape == (16, 20)


def test_months_and_years(product: Path, tmp_path: Path) -> None:
    years = {"val": [1990], "test": [1992]}
    folder = prepare_rain(tmp_path / "a", sorted(product.glob("*.nc")), factor=7, months=[2], years=years)
    dates, split = json_of(folder, "dates"), json_of(folder, "split")
    assert {when[5:7] for when in dates.values()} == {"02"} and len(dates) == 12
    found = {name: {dates[f"{day:06d}"][:4] for day in chosen} for name, chosen in split.items()}
    assert found == {"train": {"1991", "1993"}, "val": {"1990"}, "test": {"1992"}}
    assert json_of(folder, "thresholds")["years"] == [1991, 1993]


def test_no_sea_and_a_land_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moments = [moment for year in YEARS for moment in days(year)]
    model = write_rain(tmp_path / "model.nc", moments, values=made(LAT, LON, moments))
    folder = prepare_rain(tmp_path / "all", [model], factor=4)
    assert "there is no sea in the rain: dist_to_coast_km is 1000 everywhere" in capsys.readouterr().err
    assert (np.load(folder / "statics" / "land_sea_mask.npy") == 1).all()
    assert (np.load(folder / "statics" / "dist_to_coast_km.npy") == NO_COAST_KM).all()
    share = np.array([[0.0 if is_sea(lat, lon) else 100.0 for lon in LON] for lat in LAT])
    options: dict[str, Any] = {"y": LAT, "x": LON, "moments": None, "units": "%", "dims": ("lat", "lon")}
    mask = write_nc(tmp_path / "sftlf.nc", "sftlf", share, **options)
    masked = prepare_rain(tmp_path / "masked", [model], factor=4, land=mask)
    check_fine(masked, LAT[::-1], LON)
    nowhere = write_nc(tmp_path / "none.nc", "sftlf", np.zeros_like(share), **options)
    with pytest.raises(UserError, match=r"no pixel of 28 x 32 pixels.* is land"):
        prepare_rain(tmp_path / "b", [model], factor=4, land=nowhere)


def test_days_with_gaps_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moments = [moment for year in YEARS for moment in days(year)]
    values = fine_rain(moments)
    values[3, 20:, 20:] = np.nan  # part of the day
    values[10] = np.nan
    values[12, -1, -1] = np.nan  # a pixel
    path = write_rain(tmp_path / "rain.nc", moments, values=values)
    folder = prepare_rain(tmp_path / "a", [path], factor=4)
    assert "2 days with gaps in the rain over land left out; the first is 1990-01-04." in capsys.readouterr().err
    found = arrays(folder, "Y_hr")
    assert len(found) == 30 and date(1990, 1, 4) not in found and date(1991, 1, 3) not in found
    assert np.isnan(found[date(1991, 1, 5)][0, 0, -1])
    x = arrays(folder, "X_lr")[date(1991, 1, 5)]
    last = [rain_at(lat, lon, (1991, 1, 5)) for lat in LAT[-4:] for lon in LON[-4:]][:-1]
    assert x[0, 0, -1] == pytest.approx(np.mean(last), rel=1e-5)
    assert "count as sea" not in capsys.readouterr().err
    values[::3, 0, 0] = 7.0  # a pixel of the sea on some days
    prepare_rain(tmp_path / "c", [write_rain(tmp_path / "shore.nc", moments, values=values)], factor=4)
    assert "1 pixels with rain on fewer than 50% of the days count as sea" in capsys.readouterr().err
    assert all(np.isnan(y[0, -1, 0]) for y in arrays(tmp_path / "c", "Y_hr").values())
    patchy = np.where(np.arange(len(moments))[:, None, None] % 8 == np.arange(32) % 8, np.nan, fine_rain(moments))
    with pytest.raises(UserError, match=r"each of the 32 days lacks rain at more than 1%"):
        prepare_rain(tmp_path / "b", [write_rain(tmp_path / "patchy.nc", moments, values=patchy)], factor=4)


def test_a_failure_late_leaves_no_folder(tmp_path: Path) -> None:
    moments = [moment for year in YEARS for moment in days(year)]
    values = fine_rain(moments)
    values[-1, 20, 10], values[2, 20, 10] = -9999.0, -0.05
    path = write_rain(tmp_path / "rain.nc", moments, values=values, fill=-1.0)
    with pytest.raises(UserError, match=r"precip of -9999 mm/day on 1993-01-08, expected 0 or more: declare"):
        prepare_rain(tmp_path / "a", [path], factor=4)
    assert [one.name for one in tmp_path.iterdir()] == ["rain.nc"]
    values[-1, 20, 10] = 4.0
    folder = prepare_rain(tmp_path / "a", [write_rain(path, moments, values=values, fill=-1.0)], factor=4)
    assert arrays(folder, "Y_hr")[date(1990, 1, 3)][0, 7, 10] == 0  # what packing leaves below 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"factor": 20}, r"the factor is 20 and the rain has 28 x 32 pixels.*2 x 2 coarse cells"),
        ({"factor": 1}, r"the factor is 1"),
        ({"factor": 4, "box": (100.0, 0.0, 110.0, 10.0)}, r"the box 100 0 110 10 .* give a --box inside"),
        ({"factor": 4, "months": [13]}, r"there is no month 13"),
        ({"factor": 4, "variable": "tp"}, r"has no variable 'tp': it has latitude, longitude, time, precip"),
        ({"factor": 4, "years": {"val": [1990], "test": [2001]}}, r"no day is of the test years \[2001\]"),
        ({"factor": 4, "years": {"val": [1990], "test": [1990]}}, r"1990"),
        ({"factor": 4, "land": Path("nowhere.nc")}, r"nowhere.nc is not there"),
    ],
)
def test_wrong_arguments_of_rain_alone(product: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare_rain(tmp_path / "a", [product], **options)
    assert not list(tmp_path.iterdir())


def test_wrong_files_of_rain_alone(product: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no .nc file"):
        prepare_rain(tmp_path / "a", [tmp_path], factor=4)
    with pytest.raises(UserError, match=r"gone.nc is not there"):
        prepare_rain(tmp_path / "a", [tmp_path / "gone.nc"], factor=4)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"holds files already"):
        prepare_rain(tmp_path, [product], factor=4)
    one_year = chirps_like(tmp_path / "one", 1990)
    with pytest.raises(UserError, match=r"a split by years needs at least 3"):
        prepare_rain(tmp_path / "a", [one_year], factor=4)
    assert (tmp_path / "mine.txt").read_text() == "kept" and not (tmp_path / "a").exists()


def test_a_block_mean_is_of_what_was_measured() -> None:
    rain = np.array([[1.0, 2.0, np.nan, np.nan], [3.0, 6.0, np.nan, np.nan]])
    np.testing.assert_array_equal(block_means(rain, 2), np.array([[3.0, np.nan]], np.float32))
    rain[0, 2] = 5.0
    np.testing.assert_array_equal(block_means(np.stack([rain, rain + 1]), 2), [[[3.0, 5.0]], [[4.0, 6.0]]])


@pytest.mark.parametrize("stage", ["rainfall-cvae", "rainfall"])
def test_the_command_with_rain_alone(
    product: Path, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(path) for path in sorted(product.glob("*.nc"))]
    to = ["--to", str(tmp_path / "a")]
    years = ["--years-val", "1992", "--years-test", "1993"]
    box = ["--box", "-3.5", "39", "2.5", "44", "--months", "1", "2"]
    assert main(["data", "prepare", stage, "--rain", *files, *to, *years, *box]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a'}\n"
    assert json_of(tmp_path / "a", "dataset")["factor"] == 4
    assert json_of(tmp_path / "a", "thresholds")["years"] == [1990, 1991]


def test_the_command_with_predictors(
    weather: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "prepare", "rainfall-cvae", "--rain", str(weather / "rain"), "--to", str(tmp_path / "a")]
    coarse = ["--predictors", str(weather / "coarse")]
    assert main([*command, *coarse, "--variable", "precip", "--channels", "tas", "pr"]) == 0
    assert json_of(tmp_path / "a", "dataset")["channels"] == ["tas", "pr"]
    whole = arrays(prepared, "Y_hr")
    for when, y in arrays(tmp_path / "a", "Y_hr").items():
        np.testing.assert_array_equal(y, whole[when])
    assert main([*command, *coarse]) == 2
    assert "holds files already" in capsys.readouterr().err
    assert main([*command, "--channels", "tas"]) == 2
    assert "--channels chooses among the files of --predictors" in capsys.readouterr().err
    assert main([*command, "--years-val", "1990"]) == 2
    assert "give both" in capsys.readouterr().err


def test_real_winters_of_a_climate_model(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(real_data / "rain" / "CORDEX_Iberia_pr.npz", allow_pickle=False) as file:
        pr, lon, lat, dates = (file[name] for name in ("pr", "lon", "lat", "date"))
    moments = [tuple(int(part) for part in when.split("-")) for when in dates]
    flux = (pr / np.float32(86400)).astype(np.float32)
    about = {"title": "CORDEX, Iberia", "source_id": "regional climate model"}
    options: dict[str, Any] = {"y": lat, "x": lon, "dims": ("time", "rlat", "rlon"), "units": "kg m-2 s-1"}
    path = write_nc(tmp_path / "pr_day_Iberia.nc", "pr", flux, moments=moments, about=about, **options)
    folder = prepare_rain(tmp_path / "iberia", [path], factor=4)
    assert "28 x 30 pixels cut to 28 x 28, multiples of 4" in capsys.readouterr().err
    found, means = arrays(folder, "Y_hr"), arrays(folder, "X_lr")
    assert [when.isoformat() for when in found] == dates.tolist()
    expected = pr[:, ::-1, :28]
    np.testing.assert_allclose(np.stack([found[when][0] for when in found]), expected, rtol=2e-7)
    blocks = expected.reshape(-1, 7, 4, 7, 4).mean((2, 4), dtype=np.float64)
    np.testing.assert_allclose(np.stack([means[when][0] for when in means]), blocks, rtol=1e-6, atol=1e-7)
    opened = open_days(folder)
    assert opened.source.startswith("CORDEX, Iberia, regional climate model") and opened.land.all()
    winters = [opened.years[name] for name in ("train", "val", "test")]
    assert sorted(set().union(*winters)) == list(range(1983, 2003)) and sum(map(len, winters)) == 20
    december = {opened.dates[day].year + 1 for day in opened.split["test"] if opened.dates[day].month == 12}
    assert december == set(winters[2])  # a winter is never divided


def test_real_hourly_rain_is_refused(real_data: Path, tmp_path: Path) -> None:
    with np.load(real_data / "rain" / "radolan_rw_20221018_hourly.npz", allow_pickle=False) as file:
        rain, times = file["rw"][:, 400:440, 400:440], file["time"]
    moments = [(int(t[:4]), int(t[4:6]), int(t[6:8]), int(t[9:11]), int(t[11:])) for t in times]
    options: dict[str, Any] = {"y": np.arange(40) * 1000.0, "x": np.arange(40) * 1000.0, "dims": ("time", "y", "x")}
    path = write_nc(tmp_path / "rw.nc", "rw", rain, moments=moments, units="mm h-1", fill=-1.0, **options)
    with pytest.raises(UserError, match=r"rw.nc has 24 values of rw for 2022-10-18, expected one a day: make daily"):
        prepare_rain(tmp_path / "a", [path], factor=4, variable="rw")
