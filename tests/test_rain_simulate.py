"""Simulated weather and rain: the layout, the land, the weather's persistence and seasons, a believable climate."""

from __future__ import annotations

from datetime import date
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label
from scipy.special import kv

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import rain_truth
from nbhelpers.stages.rainfall_cvae.data import open_days
from nbhelpers.stages.rainfall_cvae.rain_truth import CELL_KM, CELL_PEAK, CELL_SHAPE, CELL_VARIES, Conditions
from nbhelpers.stages.rainfall_cvae.simulate import Settings, simulate, simulated_days
from nbhelpers.stages.rainfall_cvae.terrain import Grid, block_mean, terrain
from nbhelpers.stages.rainfall_cvae.weather import CHANNELS, PERSISTENCE, state_series

TINY = {"n_years": 3, "seed": 4, "factor": 2, "coarse": (5, 4), "progress": False}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("rain") / "data", **TINY)


@pytest.fixture(scope="module")
def years() -> tuple[list[date], np.ndarray, np.ndarray]:
    """Dates, x (N, 6, 13, 11) and y (N, 52, 44) of three years."""
    dates, x, y = zip(*simulated_days(Settings(3, 0, 4, (13, 11), 1991)), strict=True)
    return list(dates), np.stack(x), np.stack(y)


def test_the_layout_is_the_stages(tiny: Path) -> None:
    days = open_days(tiny)
    assert days.channels == CHANNELS and days.x_shape == (6, 5, 4) and days.shape == (10, 8) and days.factor == 2
    assert days.simulated and days.pixel_km == 12.0
    assert set(days.static_names) == {"land_sea_mask", "dist_to_coast_km", "elevation_m"}
    assert len(days.dates) == 1096 and days.dates[0] == date(1991, 1, 1) and days.dates[1095] == date(1993, 12, 31)
    land = terrain(seed=4, factor=2, coarse=(5, 4)).land
    np.testing.assert_array_equal(days.land, land)
    for day in (0, 500, 1095):
        np.testing.assert_array_equal(np.isfinite(days.y(day)), land)
        assert np.isfinite(days.x(day)).all()


def test_same_settings_give_the_same_bytes_and_other_seeds_other_days(tiny: Path, tmp_path: Path) -> None:
    again = simulate(tmp_path / "again", **TINY)
    assert contents(again) == contents(tiny)
    one, other = (next(simulated_days(Settings(3, seed, 2, (5, 4), 1991))) for seed in (4, 5))
    assert not np.array_equal(one[2], other[2], equal_nan=True)


def test_a_day_does_not_depend_on_how_many_follow() -> None:
    short, long = (simulated_days(Settings(n, 1, 4, (13, 11), 1991)) for n in (3, 9))
    for one, other in islice(zip(short, long, strict=False), 5):
        assert one[0] == other[0]
        for index in (1, 2):
            np.testing.assert_array_equal(one[index], other[index])


def test_a_finished_folder_is_left_alone_and_others_are_refused(tiny: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    assert simulate(tiny, **TINY) == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before
    with pytest.raises(UserError, match=r"seed=4 \(asked: 7\)"):
        simulate(tiny, **{**TINY, "seed": 7})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt but no simulated days"):
        simulate(tmp_path, **TINY)
    with pytest.raises(UserError, match="is a file"):
        simulate(tmp_path / "notes.txt", **TINY)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"n_years": 2}, "n_years is 2, expected at least 3"),
        ({"factor": 5}, "factor is 5, expected a divisor of 12"),
        ({"coarse": (13, 3)}, "coarse is 3, expected at least 4"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_settings_are_one_sentence(setting: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        simulate(tmp_path / "data", **{**TINY, **setting})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(4))
def test_the_land_has_a_shore_and_hills_and_is_the_same_at_every_factor(seed: int) -> None:
    land, finer = (terrain(seed=seed, factor=factor, coarse=(13, 11)) for factor in (4, 12))
    assert 0.6 <= land.land.mean() <= 0.75
    assert 1000 < land.elevation.max() < 2000 and 200 < np.median(land.elevation[land.land]) < 1000
    assert (land.elevation[~land.land] == 0).all() and (land.elevation[land.land] > 0).all()
    # no lakes: every body of water reaches the domain's edge
    bodies, count = label(~finer.land)
    edge = np.concatenate([bodies[0], bodies[-1], bodies[:, 0], bodies[:, -1]])
    assert set(range(1, count + 1)) <= set(edge)
    assert land.coast_km.min() == 6.0 and 60 < land.coast_km[land.land].max() < 300
    assert np.mean(land.land == (block_mean(finer.land.astype(float), 3) >= 0.5)) > 0.99
    assert np.abs(land.elevation - block_mean(finer.elevation, 3))[land.land].mean() < 20


def test_the_state_persists_from_day_to_day_as_stated() -> None:
    states = state_series(20000, seed=0)
    np.testing.assert_allclose(states.std(axis=0), 1, atol=0.05)
    lag = [np.corrcoef(column[1:], column[:-1])[0, 1] for column in states.T]
    np.testing.assert_allclose(lag, list(PERSISTENCE.values()), atol=0.03)
    cross = np.corrcoef(states.T) - np.eye(len(PERSISTENCE))
    assert np.abs(cross).max() < 0.06


def test_predictors_have_real_units_seasons_and_order(years: tuple) -> None:
    dates, x, _ = years
    tas, pr, huss, wind, tasmax, tasmin = np.moveaxis(x, 1, 0)
    assert 250 < tas.min() < tas.max() < 315 and 282 < tas.mean() < 290
    assert pr.min() >= 0 and pr.max() < 300
    assert 1e-4 < huss.min() < huss.max() < 0.03 and 0.005 < huss.mean() < 0.01
    assert 0 < wind.min() < wind.max() < 30
    assert (tasmax > tas).all() and (tas > tasmin).all()
    month = np.array([one.month for one in dates])
    summer, winter = np.isin(month, (6, 7, 8)), np.isin(month, (12, 1, 2))
    assert 10 < tas[summer].mean() - tas[winter].mean() < 20
    assert huss[summer].mean() > 1.5 * huss[winter].mean()
    daily = tas.mean(axis=(1, 2)) - 7.5 * -np.cos(2 * np.pi * (np.arange(len(dates)) - 15) / 365.25)
    assert np.corrcoef(daily[1:], daily[:-1])[0, 1] > 0.6


def test_the_climate_is_that_of_a_wet_mediterranean_coast(years: tuple) -> None:
    dates, _, y = years
    np.testing.assert_array_equal(np.isfinite(y), np.broadcast_to(np.isfinite(y[0]), y.shape))
    rain = y[:, np.isfinite(y[0])]
    assert 2 < rain.mean() < 4
    assert 0.25 < (rain >= 1).mean() < 0.4 and (rain == 0).mean() > 0.4
    assert 25 < np.quantile(rain[rain >= 1], 0.95) < 35
    assert 70 < np.quantile(rain, 0.999) < 120 and 150 < rain.max() < 1000
    month = np.array([one.month for one in dates])
    summer, winter = (rain[np.isin(month, months)] for months in ((6, 7, 8), (12, 1, 2)))
    assert winter.mean() > 1.5 * summer.mean() > 0.75  # dry summers, but not without thunderstorms
    # the day is one piece of weather: the domain's wet and dry days come in spells
    daily = np.log(rain.mean(axis=1) + 0.1)
    assert 0.2 < np.corrcoef(daily[1:], daily[:-1])[0, 1] < 0.7


def test_windward_slopes_get_more_rain_than_lee_slopes(years: tuple) -> None:
    _, _, y = years
    land = terrain(seed=0, factor=4, coarse=(13, 11))
    mean = np.where(land.land, y.mean(axis=0), np.nan)  # the wind blows from the west on average
    steep = np.abs(land.slope_east) > 15
    assert np.nanmean(mean[steep & (land.slope_east > 0)]) > 1.15 * np.nanmean(mean[steep & (land.slope_east < 0)])


def test_coarse_rain_tells_of_the_rain_but_not_all(years: tuple) -> None:
    _, x, y = years
    land = np.isfinite(y[0])
    whole = block_mean(land.astype(float), 4) == 1
    blocks = block_mean(y, 4)[:, whole]
    coarse = x[:, 1][:, whole]
    assert 0.7 < np.corrcoef(np.log1p(coarse).ravel(), np.log1p(blocks).ravel())[0, 1] < 0.95
    assert 0.8 < coarse.mean() / blocks.mean() < 0.98  # too weak
    assert (coarse >= 0.1).mean() > (blocks >= 0.1).mean() + 0.03  # and too often
    domain, model = blocks.mean(axis=1), coarse.mean(axis=1)
    assert 0.8 < np.corrcoef(domain, model)[0, 1] < 0.97


def test_the_noise_has_the_stated_correlation() -> None:
    """Matérn of smoothness 1: ``(r / L) K1(r / L)``."""
    grid = Grid((40, 40), 6.0)
    amplitude = rain_truth.noise_amplitude(grid)
    rng = np.random.default_rng(0)
    e = np.stack([rain_truth._noise(grid.shape, amplitude, rng) for _ in range(1500)])
    assert abs(e.var() - 1) < 0.03
    for pixels in (1, 3, 8, 20, 30):
        r = 6.0 * pixels
        expected = sum(
            share * r / length * kv(1, r / length)
            for length, share in zip(rain_truth.NOISE_KM, rain_truth.NOISE_SHARE, strict=True)
        )
        assert abs((e[:, :, pixels:] * e[:, :, :-pixels]).mean() - expected) < 0.03
        assert abs((e[:, pixels:] * e[:, :-pixels]).mean() - expected) < 0.03


def test_cells_bring_the_stated_volume() -> None:
    """The bell ``(1 - d²)²`` on an ellipse has a third of its area as mean height times area."""
    grid = Grid((100, 100), 3.0)
    rate = np.zeros(grid.shape)
    rate[35:65, 35:65] = 0.004
    law = Conditions(rate, rate, rate, wind=(3.0, -4.0))
    rng = np.random.default_rng(0)
    volumes = [rain_truth._cells(law, grid, rng).sum() * 9.0 for _ in range(8000)]
    stretch = 1 + 5.0 / 8
    one = CELL_PEAK / (1 - CELL_SHAPE) * np.pi / 3 * stretch * CELL_KM**2 * np.exp(2 * CELL_VARIES**2)
    assert np.mean(volumes) == pytest.approx(rate.sum() * one, rel=0.05)
