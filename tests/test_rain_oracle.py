"""Redraws of simulated rain: calibrated against what fell, and a floor that x nearly reaches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.stats import chi2, t

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.oracle import Oracle, has_truth
from nbhelpers.stages.rainfall_cvae.rain_truth import conditions, draw_rain, noise_amplitude
from nbhelpers.stages.rainfall_cvae.simulate import simulate
from nbhelpers.stages.rainfall_cvae.terrain import block_mean
from nbhelpers.stages.rainfall_cvae.weather import NOISE, coarse_maps, saturation, weather

K = 8


class Silence:
    """Stands for a random generator that draws nothing but zeros."""

    def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("rain") / "data", n_years=3, seed=2, progress=False)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(SimpleNamespace(folder=folder))


@pytest.fixture(scope="module")
def redrawn(folder: Path, oracle: Oracle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Days (N,), what fell (N, H, W) and redraws (N, K, H, W), every third day."""
    days = np.arange(0, 1096, 3)
    fell = np.stack([np.load(folder / "Y_hr" / f"day_{day:06d}.npy")[0] for day in days])
    return days, fell, np.stack([oracle.members(day, K, seed=0) for day in days])


def fair_crps(members: np.ndarray, fell: np.ndarray) -> float:
    """Mean over everything; members (N, K, ...)."""
    k = members.shape[1]
    error = np.abs(members - fell[:, None]).mean(axis=1)
    pairs = sum(np.abs(members[:, i] - members[:, j]) for i in range(k) for j in range(i))
    return float((error - pairs / (k * (k - 1))).mean())


def at_scales(fell: np.ndarray, members: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    land = np.isfinite(fell[0])
    whole = block_mean(land.astype(float), 4) == 1
    pixel, domain = (fell[:, land], members[:, :, land]), (fell[:, land].mean(-1), members[:, :, land].mean(-1))
    return {
        "pixel": pixel,
        "block": (block_mean(fell, 4)[:, whole], block_mean(members, 4)[..., whole]),
        "domain": domain,
    }


def test_members_are_rain_on_land_and_a_function_of_day_and_seed(oracle: Oracle) -> None:
    one, same, other = (oracle.members(40, 3, seed=seed) for seed in (1, 1, 2))
    assert one.shape == (3, 52, 44) and one.dtype == np.float32
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other, equal_nan=True)
    np.testing.assert_array_equal(np.isfinite(one), np.broadcast_to(oracle.land.land, one.shape))
    assert np.nanmin(one) == 0
    np.testing.assert_array_equal(oracle.members(40, 1, seed=1)[0], one[0])  # a member does not depend on k
    assert not np.array_equal(one[0], one[1], equal_nan=True)


def test_spread_equals_skill_at_pixel_block_and_domain_scale(redrawn: tuple) -> None:
    """In square roots of mm, lest a few thunderstorms decide."""
    _, fell, members = redrawn
    for scale, (truth, draws) in at_scales(fell, members).items():
        truth, draws = np.sqrt(truth), np.sqrt(draws)
        variance = draws.var(axis=1, ddof=1).mean() * (1 + 1 / K)
        error = np.square(draws.mean(axis=1) - truth).mean()
        margin = 0.15 if scale == "domain" else 0.07  # three standard errors of 366 days
        assert abs(np.sqrt(variance / error) - 1) < margin, scale


def test_ranks_are_flat(redrawn: tuple) -> None:
    """A pixel, a block and the domain's mean on each day: days are independent given their states."""
    _, fell, members = redrawn
    rng = np.random.default_rng(0)
    for scale, (truth, draws) in at_scales(fell, members).items():
        if scale != "domain":
            place = rng.integers(truth.shape[1], size=len(truth))
            every = np.arange(len(truth))
            truth, draws = truth[every, place], draws[every, :, place]
        below, ties = (draws < truth[:, None]).sum(axis=1), (draws == truth[:, None]).sum(axis=1)
        counts = np.bincount(below + rng.integers(0, ties + 1), minlength=K + 1)
        expected = len(truth) / (K + 1)
        assert np.square(counts - expected).sum() / expected < chi2.ppf(0.999, K), (scale, counts)


def test_climate_of_the_redraws_is_that_of_what_fell(redrawn: tuple) -> None:
    """Given the states, what fell is one more redraw: its climate may differ as much as theirs among each other."""
    _, fell, members = redrawn
    truth, draws = at_scales(fell, members)["pixel"]
    climate = {
        "mean": lambda rain: rain.mean(),
        "wet at 0.1 mm": lambda rain: (rain >= 0.1).mean(),
        "wet at 1 mm": lambda rain: (rain >= 1).mean(),
        "P99": lambda rain: np.quantile(rain, 0.99),
        "P99.9": lambda rain: np.quantile(rain, 0.999),
    }
    for name, number in climate.items():
        redraws = [number(draws[:, k]) for k in range(K)]
        away = (number(truth) - np.mean(redraws)) / (np.std(redraws, ddof=1) * np.sqrt(1 + 1 / K))
        assert abs(away) < t.ppf(0.9995, K - 1), (name, number(truth), redraws)


def test_oracle_beats_coarse_rain_which_beats_climatology(folder: Path, redrawn: tuple) -> None:
    days, fell, members = redrawn
    land = np.isfinite(fell[0])
    truth = fell[:, land]
    best = fair_crps(members[..., land], truth)
    at = np.meshgrid(*((np.arange(n) + 0.5) / 4 - 0.5 for n in land.shape), indexing="ij")
    coarse = [np.load(folder / "X_lr" / f"day_{day:06d}.npy")[1] for day in days]
    bilinear = np.stack([map_coordinates(pr, at, order=1, mode="nearest")[land] for pr in coarse])
    rng = np.random.default_rng(0)
    season = days % 365.25 // 91.4
    pools = [np.flatnonzero((season == now) & (np.abs(days - day) > 20)) for now, day in zip(season, days, strict=True)]
    climatology = np.stack([truth[rng.choice(pool, 16, replace=False)] for pool in pools])
    by_name = best, np.abs(bilinear - truth).mean(), fair_crps(climatology, truth)
    assert by_name[0] < 0.75 * by_name[1] and by_name[1] < by_name[2], by_name


def test_x_tells_nearly_all_of_the_state(oracle: Oracle) -> None:
    """An observer who must guess the state from one day's x (without its rain) loses less than 3 % of the CRPS.

    The guess is the Gauss-Newton (Laplace) posterior: precision ``I + J' R^-1 J``, J the change of x with the state.
    """
    land, amplitude = oracle.land, noise_amplitude(oracle.land.fine)
    noise = np.array([NOISE["tas"], NOISE["huss"], NOISE["sfcWind"], NOISE["range"], NOISE["range"]])
    nothing = np.zeros(land.coarse.shape)

    def seen(state: np.ndarray, day: int) -> np.ndarray:
        sky = weather(state, day_of_year=day % 365 + 1, grid=land.coarse)
        tas, _, huss, wind, above, below = coarse_maps(sky, land, nothing, Silence()).astype(float)
        maps = tas, np.log(huss / saturation(tas)), wind, above - tas, tas - below
        return np.concatenate([one.ravel() / size for one, size in zip(maps, noise, strict=True)])

    def drawn(state: np.ndarray, day: int, number: int) -> np.ndarray:
        law = conditions(weather(state, day_of_year=day % 365 + 1, grid=land.fine), land)
        return draw_rain(law, land.fine, amplitude, np.random.default_rng([9, day, number]))[land.land]

    rng = np.random.default_rng(3)
    fell, knowing, guessing = [], [], []
    for day in range(0, 1096, 10):
        state = oracle.states[day]
        step = 0.05 * np.eye(len(state))
        slope = np.stack([(seen(state + one, day) - seen(state - one, day)) / 0.1 for one in step], axis=1)
        root = np.linalg.cholesky(np.linalg.inv(np.eye(len(state)) + slope.T @ slope))
        guess = state + root @ rng.standard_normal(len(state))
        fell.append(drawn(state, day, K))
        knowing.append([drawn(state, day, k) for k in range(K)])
        guessing.append([drawn(guess + root @ rng.standard_normal(len(state)), day, k) for k in range(K)])
    fell, knowing, guessing = np.stack(fell), np.array(knowing), np.array(guessing)
    loss = fair_crps(guessing, fell) / fair_crps(knowing, fell) - 1
    assert -0.01 < loss < 0.03, loss


def test_only_simulated_folders_have_a_truth(folder: Path, tmp_path: Path) -> None:
    assert has_truth(folder) and not has_truth(tmp_path)
    with pytest.raises(UserError, match=r"settings\.json is missing: redraws need a folder that nbhelpers simulated"):
        Oracle(SimpleNamespace(folder=tmp_path))


def test_days_of_another_version_of_the_law_are_not_redrawn(folder: Path, tmp_path: Path) -> None:
    record = folder / "truth" / "settings.json"
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / record.name).write_text(record.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(UserError, match="simulated by version 0 of the rain's law"):
        Oracle(SimpleNamespace(folder=tmp_path))
