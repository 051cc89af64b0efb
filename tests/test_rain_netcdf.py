"""NetCDF files as models, reanalyses and rain products write them: units, calendars, order, packing, gaps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf import days, made, rain_at, write_nc

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.cf import opened
from nbhelpers.stages.rainfall_cvae.grid import (
    DEGREE_KM,
    NO_COAST_KM,
    Grid,
    covering,
    distance_to_sea,
    in_box,
    pixel_km,
)
from nbhelpers.stages.rainfall_cvae.netcdf import Series, cut, find_rain, open_series, read, read_land
from nbhelpers.stages.rainfall_cvae.units import TARGETS, conversion

LAT, LON = np.arange(40.25, 44, 0.5), np.arange(-3.75, 2, 0.5)  # 8 x 12 pixels
SOME = days(1990)


def rain_file(path: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {"y": LAT, "x": LON, "moments": SOME, "dims": ("time", "lat", "lon"), **changes}
    values = options.pop("values", None)
    if values is None:
        values = made(options["y"], options["x"], options["moments"])
    return write_nc(path, options.pop("variable", "pr"), values, **options)


def rain(*paths: Path, **options: Any) -> Series:
    return open_series(paths, "mm/day", **{"choose": find_rain, **options})


def check_places(series: Series, *, rtol: float = 1e-6) -> None:
    """Every value is that of the place and day where the series says it is, one by one."""
    found = read(series, list(series.where))
    for t, when in enumerate(series.where):
        for i, lat in enumerate(series.grid.y):
            for j, lon in enumerate(series.grid.x):
                expected = rain_at(lat, lon, (when.year, when.month, when.day))
                assert found[t, i, j] == pytest.approx(expected, rel=rtol, abs=1e-4), (when, lat, lon)


@pytest.mark.parametrize(
    ("units", "target", "value", "expected"),
    [
        ("kg m-2 s-1", "mm/day", 1 / 86400, 1.0),
        ("kg m**-2 s**-1", "mm/day", 1 / 86400, 1.0),
        ("kg/m2/s", "mm/day", 1 / 86400, 1.0),
        ("kg m^-2 s^-1", "mm/day", 1 / 86400, 1.0),
        ("mm s-1", "mm/day", 1 / 86400, 1.0),
        ("m s-1", "mm/day", 1e-3 / 86400, 1.0),
        ("mm/day", "mm/day", 3.5, 3.5),
        ("mm d-1", "mm/day", 3.5, 3.5),
        ("mm day**-1", "mm/day", 3.5, 3.5),
        ("mm/h", "mm/day", 0.5, 12.0),
        ("mm hr-1", "mm/day", 0.5, 12.0),
        ("cm/day", "mm/day", 0.5, 5.0),
        ("mm", "mm/day", 3.5, 3.5),
        ("kg m-2", "mm/day", 3.5, 3.5),
        ("m", "mm/day", 0.002, 2.0),
        ("K", "K", 280.0, 280.0),
        ("degC", "K", 10.0, 283.15),
        ("Celsius", "K", 10.0, 283.15),
        ("°C", "K", 10.0, 283.15),
        ("deg C", "K", 10.0, 283.15),
        ("1", "kg/kg", 0.01, 0.01),
        ("kg kg-1", "kg/kg", 0.01, 0.01),
        ("kg/kg", "kg/kg", 0.01, 0.01),
        ("g kg**-1", "kg/kg", 8.0, 0.008),
        ("m s-1", "m/s", 4.0, 4.0),
        ("m/s", "m/s", 4.0, 4.0),
        ("km/h", "m/s", 36.0, 10.0),
    ],
)
def test_units(units: str, target: str, value: float, expected: float) -> None:
    scale = conversion(units, target)
    assert scale is not None and value * scale[0] + scale[1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("units", "target"),
    [("mm/month", "mm/day"), ("", "mm/day"), ("0.1 mm", "mm/day"), ("K", "mm/day"), ("kg m-1 s-1", "mm/day")]
    + [("mm2/day", "mm/day"), ("1", "mm/day"), ("s-1", "mm/day"), ("inch", "mm/day"), ("mm/h/day", "mm/day")]
    + [("F", "K"), ("%", "kg/kg"), ("knots", "m/s"), ("m s-2", "m/s"), ("degC-1", "K")],
)
def test_units_that_mean_nothing(units: str, target: str) -> None:
    assert conversion(units, target) is None


def test_each_target_reads_itself() -> None:
    assert {target: conversion(target, target) for target in TARGETS.values()} == dict.fromkeys(
        TARGETS.values(), (1.0, 0.0)
    )


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "north first": {"y": LAT[::-1]},
    "west last": {"x": LON[::-1]},
    "0 to 360 across Greenwich": {"x": LON % 360},
    "far east": {"x": LON + 200.0},
    "time last": {"dims": ("lat", "lon", "time")},
    "lon before lat": {"dims": ("time", "lon", "lat"), "y": LAT[::-1]},
    "other names": {"dims": ("time", "latitude", "longitude")},
    "floats of 32 bits": {"y": LAT.astype("f4"), "values": made(LAT, LON, SOME).astype("f4")},
    "hours": {"since": "hours since 1990-01-01 00:00:00"},
    "noon": {"moments": [(*when, 12) for when in SOME]},
    "noleap": {"calendar": "noleap", "moments": [(1992, 2, 27), (1992, 2, 28), (1992, 3, 1), (1992, 3, 2)]},
    "days in another order": {"moments": SOME[::-1]},
    "rotated": {"dims": ("time", "rlat", "rlon"), "y": LAT - 40, "x": LON},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_value_is_put_in_its_place(tmp_path: Path, layout: str) -> None:
    changes = LAYOUTS[layout]
    series = rain(rain_file(tmp_path / "a.nc", **changes))
    assert (np.diff(series.grid.y) < 0).all() and (np.diff(series.grid.x) > 0).all()
    assert list(series.where) == sorted(series.where) and len(series.where) == len(changes.get("moments", SOME))
    check_places(series)


def test_units_of_a_flux_are_converted(tmp_path: Path) -> None:
    values = made(LAT, LON, SOME)
    check_places(rain(rain_file(tmp_path / "a.nc", values=values / 86400, units="kg m-2 s-1")))
    check_places(rain(rain_file(tmp_path / "b.nc", values=values / 24, units="mm/h")))


def test_packed_values_and_fill_values(tmp_path: Path) -> None:
    values = made(LAT, LON, SOME)
    values[:, 2, 5] = np.nan
    values[3, 0, 0] = np.nan
    series = rain(rain_file(tmp_path / "a.nc", values=values, fill=-32768, packing=(0.01, 300.0)))
    found = read(series, list(series.where))[:, ::-1]  # the file's rows begin in the south
    assert (np.isnan(found) == np.isnan(values)).all()
    assert np.nanmax(np.abs(found - values)) <= 0.005 + 1e-4
    plain = rain(rain_file(tmp_path / "b.nc", values=values, fill=-9999.0))
    np.testing.assert_array_equal(read(plain, list(plain.where))[:, ::-1], values.astype(np.float32))
    declared = rain_file(
        tmp_path / "c.nc", values=np.nan_to_num(values, nan=-9999.0), attributes={"missing_value": -9999.0}
    )
    np.testing.assert_array_equal(read(rain(declared), list(plain.where))[:, ::-1], values.astype(np.float32))


def test_days_of_360_that_no_calendar_has(tmp_path: Path) -> None:
    moments = [(1990, 2, day) for day in range(25, 31)] + [(1990, 3, 1)]
    series = rain(rain_file(tmp_path / "a.nc", moments=moments, calendar="360_day"))
    expected = [date(1990, 2, day) for day in range(25, 29)] + [date(1990, 3, 1)]
    assert list(series.where) == expected and series.no_dates == 2
    check_places(series)


def test_several_files_and_some_days_of_them(tmp_path: Path) -> None:
    late = rain_file(tmp_path / "a.nc", moments=days(1991))
    early = rain_file(tmp_path / "b.nc", moments=days(1990), units="kg m-2 s-1", values=made(LAT, LON, SOME) / 86400)
    series = rain(late, early)
    check_places(series)
    chosen = [date(1990, 1, 2), date(1990, 1, 3), date(1990, 1, 7), date(1991, 1, 1)]
    found = read(series, chosen)
    for t, when in enumerate(chosen):
        expected = made(LAT[::-1], LON, [(when.year, when.month, when.day)])[0]
        np.testing.assert_allclose(found[t], expected, rtol=1e-6)


def test_a_dimension_of_one_level_is_no_dimension(tmp_path: Path) -> None:
    with netCDF4.Dataset(rain_file(tmp_path / "a.nc"), "a") as file:
        file.createDimension("height", 1)
        tall = file.createVariable("high", "f8", ("time", "height", "lat", "lon"))
        tall.units = "mm/day"
        tall[:] = file["pr"][:][:, None]
    check_places(rain(tmp_path / "a.nc", variable="high"))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"variable": "precip"}, "precip"),
        ({"variable": "RR"}, "RR"),
        ({"variable": "data", "attributes": {"standard_name": "lwe_precipitation_rate"}}, "data"),
    ],
)
def test_the_rain_is_found(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    path = rain_file(tmp_path / "a.nc", **changes)
    with netCDF4.Dataset(path, "a") as file:
        file.createVariable("tas", "f4", file[found].dimensions)
    with opened(path) as file:
        assert find_rain(file, path) == found


def two_rains(file: Any) -> None:
    file.createVariable("precip", "f4", ("time", "lat", "lon"))


def two_dimensional(file: Any) -> None:
    for name in ("lat", "lon"):
        file.renameVariable(name, f"{name}_old")
        file.renameDimension(name, f"{name}_index")
    for name in ("lat", "lon"):
        file.createVariable(name, "f8", ("lat_index", "lon_index"))


def rename_rain(file: Any) -> None:
    file.renameVariable("pr", "q17")


def uneven(file: Any) -> None:
    file["lat"][3] += 0.2


def no_time(file: Any) -> None:
    file["time"].delncattr("units")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (two_rains, r"has pr, precip that could be the rain.*--variable"),
        (rename_rain, r"has no variable that could be the rain \(variables over time and place: q17\)"),
        (two_dimensional, r"dimension lat_index of 8 without a coordinate.*curvilinear.*cdo remapbil"),
        (uneven, r"lat has 8 values that are not evenly spaced"),
        (no_time, r"a dimension time of 8 without a coordinate"),
    ],
)
def test_a_file_that_cannot_be_understood(tmp_path: Path, change: Callable[[Any], None], said: str) -> None:
    with netCDF4.Dataset(rain_file(tmp_path / "a.nc"), "a") as file:
        change(file)
    with pytest.raises(UserError, match=said):
        rain(tmp_path / "a.nc")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"units": "mm/month"}, r"pr is in 'mm/month', which is not known.*kg m-2 s-1"),
        ({"units": None}, r"pr has no units attribute"),
        ({"moments": [(1990, 1, 1, hour) for hour in range(24)]}, r"has 24 values of pr for 1990-01-01.*cdo daysum"),
        ({"moments": [(1990, month, 16) for month in range(1, 9)]}, r"comes every 31 days.*expected daily values"),
        ({"calendar": "standard", "since": "days since 1980-01-01", "variable": "tas"}, r"has no variable that could"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        rain(rain_file(tmp_path / "a.nc", **changes))


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    one = rain_file(tmp_path / "a.nc")
    with pytest.raises(UserError, match=r"a.nc and .*b.nc both have pr of 1990-01-01"):
        rain(one, rain_file(tmp_path / "b.nc"))
    with pytest.raises(UserError, match=r"c.nc has 8 x 12 pixels.*expected one grid"):
        rain(one, rain_file(tmp_path / "c.nc", moments=days(1991), x=LON + 0.25))
    with pytest.raises(UserError, match=r"one order of rows"):
        rain(one, rain_file(tmp_path / "d.nc", moments=days(1991), y=LAT[::-1]))
    with pytest.raises(UserError, match=r"no variable 'precip': it has lat, lon, time, pr"):
        rain(one, variable="precip")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.nc is not there"):
        rain(tmp_path / "nowhere.nc")
    (tmp_path / "text.nc").write_text("not NetCDF")
    with pytest.raises(UserError, match=r"text.nc is no whole NetCDF file"):
        rain(tmp_path / "text.nc")
    whole = rain_file(tmp_path / "a.nc").read_bytes()
    (tmp_path / "half.nc").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half.nc is no whole NetCDF file"):
        rain(tmp_path / "half.nc")


def test_damaged_values_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).gamma(1, 5, (8, 80, 120))
    path = rain_file(tmp_path / "a.nc", y=np.linspace(40, 44, 80), x=np.linspace(0, 6, 120), values=noise)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    series = rain(path)
    with pytest.raises(UserError, match=r"a.nc is damaged"):
        read(series, list(series.where))


def globe(step: float) -> Grid:
    y, x = np.arange(90 - step / 2, -90, -step), np.arange(step / 2, 360, step)
    return Grid(y, x, "geographic", DEGREE_KM)


@pytest.mark.parametrize("x", [LON, LON % 360])
@pytest.mark.parametrize("box", [(-2.0, 41.0, 1.0, 43.0), (358.0, 41.0, 361.0, 43.0), (358.0, 41.0, 1.0, 43.0)])
def test_a_box_is_cut_out(tmp_path: Path, x: Any, box: tuple[float, float, float, float]) -> None:
    series = rain(rain_file(tmp_path / "a.nc", x=x))
    part = cut(series, *in_box(series.grid, box))
    np.testing.assert_allclose(part.grid.y, [42.75, 42.25, 41.75, 41.25])
    np.testing.assert_allclose(part.grid.x, [-1.75, -1.25, -0.75, -0.25, 0.25, 0.75])
    check_places(part)


def test_a_box_across_the_edge_of_the_files(tmp_path: Path) -> None:
    around = np.arange(0, 360, 5.0)
    for number, x in enumerate((around, around - 180, (around + 180) % 360 - 180)):
        series = rain(rain_file(tmp_path / f"{number}.nc", x=x))
        for box, expected in (
            ((-11, 40, 11, 45), [-10, -5, 0, 5, 10]),
            ((170, 40, -170, 45), [170, 175, 180, 185, 190]),
        ):
            part = cut(series, *in_box(series.grid, box))
            np.testing.assert_allclose((part.grid.x - expected) % 360, 0, atol=1e-9)
            check_places(part)


@pytest.mark.parametrize("box", [(50, 40, 60, 45), (-2, 60, 1, 70), (-2, 41, -1.9, 43), (1, 40, -1, 45)])
def test_a_box_beside_the_data(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    series = rain(rain_file(tmp_path / "a.nc"))
    with pytest.raises(UserError, match=r"the box .* holds .* 40.25 to 43.75 north"):
        in_box(series.grid, box)


@pytest.mark.parametrize("turn", [0.0, -360.0, 360.0])
def test_fine_pixels_are_found_under_coarse_cells(turn: float) -> None:
    coarse = Grid(np.array([43.0, 42.0]), np.array([-1.0, 0.0, 1.0]) + turn, "geographic", DEGREE_KM)
    factor, rows, columns = covering(globe(0.25), coarse)
    fine = globe(0.25)
    assert factor == 4
    np.testing.assert_allclose(fine.y[rows].reshape(2, 4).mean(axis=1), coarse.y)
    middles = fine.x[columns].reshape(3, 4)
    np.testing.assert_allclose((middles - coarse.x[:, None] + 180) % 360 - 180, [[-0.375, -0.125, 0.125, 0.375]] * 3)


def test_all_of_the_globe_is_covered() -> None:
    factor, rows, columns = covering(globe(1.0), globe(3.0))
    assert factor == 3 and (rows == np.arange(180)).all() and (columns == np.arange(360)).all()


def test_blocks_may_lie_half_a_pixel_off() -> None:
    coarse = Grid(np.array([43.0, 42.0]), np.array([0.0, 1.0]), "geographic", DEGREE_KM)
    fine = Grid(np.arange(45, 39, -0.25), np.arange(-3, 4, 0.25), "geographic", DEGREE_KM)
    factor, rows, columns = covering(fine, coarse)
    off = fine.y[rows].reshape(2, 4).mean(axis=1) - coarse.y, fine.x[columns].reshape(2, 4).mean(axis=1) - coarse.x
    assert factor == 4 and np.abs(off).max() <= 0.125 + 1e-9


@pytest.mark.parametrize(
    ("y", "x"),
    [
        (np.arange(45, 42.2, -0.25), np.arange(-3, 4, 0.25)),  # ends inside the southern cells
        (np.arange(45, 39, -0.25), np.arange(0, 4, 0.25)),  # begins inside the western cells
        (np.arange(45, 39, -0.25), np.arange(-3, 4, 0.2)),  # five pixels a cell one way, four the other
        (np.arange(45, 39, -1.0), np.arange(-3, 4, 1.0)),  # as coarse as the predictors
    ],
)
def test_grids_that_do_not_fit(y: Any, x: Any) -> None:
    coarse = Grid(np.array([43.0, 42.0]), np.array([0.0, 1.0]), "geographic", DEGREE_KM)
    with pytest.raises(UserError, match=rf"the rain has {len(y)} x {len(x)} pixels.*the predictors have 2 x 2 pixels"):
        covering(Grid(y, x, "geographic", DEGREE_KM), coarse)


def test_a_ratio_that_is_no_whole_number() -> None:
    coarse = Grid(43 - 0.9 * np.arange(6), 0.9 * np.arange(6), "geographic", DEGREE_KM)
    fine = Grid(np.arange(45, 35, -0.25), np.arange(-3, 8, 0.25), "geographic", DEGREE_KM)
    with pytest.raises(UserError, match=r"a cell has 3.60 x 3.60 of them"):
        covering(fine, coarse)


def test_other_projections() -> None:
    y, x = np.arange(45, 39, -0.25), np.arange(-3, 4, 0.25)
    coarse = Grid(
        np.array([43.0, 42.0]), np.array([0.0, 1.0]), "rotated", DEGREE_KM, (("grid_north_pole_latitude", 39.25),)
    )
    with pytest.raises(UserError, match=r"geographic grid .* rotated"):
        covering(Grid(y, x, "geographic", DEGREE_KM), coarse)
    with pytest.raises(UserError, match=r"'grid_north_pole_latitude': 40.0"):
        covering(Grid(y, x, "rotated", DEGREE_KM, (("grid_north_pole_latitude", 40.0),)), coarse)
    assert covering(Grid(y, x, "rotated", DEGREE_KM, (("grid_north_pole_latitude", 39.25),)), coarse)[0] == 4


def test_metres_and_kilometres() -> None:
    coarse = Grid(np.array([200.0, 100.0]), np.array([100.0, 200.0]), "projected", 1.0)
    fine = Grid(np.arange(237_500, 0, -25_000.0), np.arange(12_500, 300_000, 25_000.0), "projected", 0.001)
    factor, rows, columns = covering(fine, coarse)
    assert factor == 4 and pixel_km(fine) == (25.0, 25.0) and pixel_km(coarse) == (100.0, 100.0)
    np.testing.assert_allclose(fine.y[rows].reshape(2, 4).mean(axis=1), coarse.y * 1000)


def test_pixels_and_the_distance_to_the_sea() -> None:
    grid = Grid(np.array([61.0, 60.0, 59.0]), np.arange(4.0), "geographic", DEGREE_KM)
    down, right = pixel_km(grid)
    assert down == pytest.approx(111.19, abs=0.01) and right == pytest.approx(down / 2)
    land = np.ones((3, 4), bool)
    assert (distance_to_sea(land, grid) == NO_COAST_KM).all()
    land[0, 0] = False
    expected = [[np.hypot(i * down, j * right) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(distance_to_sea(land, grid), expected, rtol=1e-6)


@pytest.mark.parametrize("percent", [True, False])
def test_a_land_mask_is_put_on_the_rain(tmp_path: Path, percent: bool) -> None:
    series = rain(rain_file(tmp_path / "a.nc"))
    share = np.zeros((8, 12))
    share[5, 3:] = 0.5  # land; 42.75 north
    share[6] = 0.49
    share[7] = np.nan
    options: dict[str, Any] = {"y": LAT, "x": LON % 360, "moments": None, "dims": ("lat", "lon"), "fill": -1.0}
    mask = write_nc(
        tmp_path / "mask.nc", "sftlf", share * (100 if percent else 1), units="%" if percent else "1", **options
    )
    expected = np.zeros((8, 12), bool)
    expected[2, 3:] = True
    assert (read_land(mask, series) == expected).all()
    part = cut(series, *in_box(series.grid, (-2, 42, 0, 43)))
    assert (read_land(mask, part) == expected[2:4, 4:8]).all()
    moved = write_nc(tmp_path / "moved.nc", "sftlf", share, units="1", **{**options, "x": LON + 0.2})
    with pytest.raises(UserError, match=r"give a mask on the grid of the rain"):
        read_land(moved, series)
    with pytest.raises(UserError, match=r"a.nc has none of sftlf, lsm"):
        read_land(tmp_path / "a.nc", series)
