"""Tails of real station rain: fits against scipy, intervals against brute force, and how often they hold the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray
from numpy.typing import NDArray
from scipy import optimize, special, stats
from scores.categorical import BinaryContingencyManager

from nbhelpers.core.errors import UserError
from nbhelpers.science.extremes import (
    Estimate,
    Gpd,
    exceedance_rate,
    fit_gpd,
    return_level,
    sedi,
)

SEASON = 214  # days, April to October
COVERAGE_STATIONS, REPEATS = range(0, 64, 8), 60


@dataclass(frozen=True)
class Station:
    excess: NDArray[np.float64]  # of the peaks of its clusters, mm
    threshold: float  # mm/day: nine wet days of ten stay below
    years: float  # with measurements
    fit: Gpd


def cluster_peaks(values: np.ndarray, threshold: float, days: np.ndarray) -> np.ndarray:
    """Highest values of the runs of consecutive days above a threshold: Smith and Weissman (1994)."""
    above = np.flatnonzero(values > threshold)
    starts = np.flatnonzero(np.diff(days[above], prepend=-np.inf) > 1)
    return np.maximum.reduceat(values[above], starts)


@pytest.fixture(scope="module")
def stations(real_data: Path) -> list[Station]:
    """64 stations in Colorado, April to October 1990–2019."""
    file = np.load(real_data / "rain/colorado_ghcn_daily_1990_2019.npz")
    days = file["date"].astype("datetime64[D]").astype(int)
    found = []
    for series in file["prcp_mm"].astype(float).T:
        threshold = float(np.nanquantile(series[series >= 1], 0.9))
        excess = cluster_peaks(series, threshold, days=days) - threshold
        found.append(Station(excess, threshold, np.isfinite(series).sum() / SEASON, fit_gpd(excess)))
    return found


def holds(interval: Estimate, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def log_likelihood(excess: NDArray, shape: float, scale: float) -> float:
    return float(stats.genpareto.logpdf(excess, shape, scale=scale).sum())


def test_fits_of_all_stations_are_as_likely_as_scipys_and_the_same(stations: list[Station]) -> None:
    assert len(stations) == 64
    for station in stations:
        # scipy's fit stops at 1e-4; asked for more digits, it is the same law.
        def search(function, start, args, disp):
            return optimize.fmin(function, start, args=args, disp=disp, xtol=1e-9, ftol=1e-11, maxiter=2000)

        shape, _, scale = stats.genpareto.fit(station.excess, 0.1, floc=0, scale=6.0, optimizer=search)
        fit = station.fit
        assert fit.shape.value == pytest.approx(shape, abs=1e-6)
        assert fit.scale.value == pytest.approx(scale, rel=1e-6)
        found, theirs = (log_likelihood(station.excess, *law) for law in [(fit.shape[0], fit.scale[0]), (shape, scale)])
        assert found >= theirs - 1e-9


def profile_edge(excess: NDArray, lowest: float, law, start: float, stop: float) -> float:
    """Where the profile likelihood of a quantity falls to ``lowest``, by brute force; ``law(quantity, free)``."""

    def drop(quantity: float) -> float:
        def loss(free: float) -> float:
            shape, scale = law(quantity, free)
            value = log_likelihood(excess, shape, scale) if scale > 0 else -np.inf
            return -value if np.isfinite(value) else 1e9

        grid = np.linspace(-0.9, 3.5, 150)
        best = grid[int(np.argmin([loss(free) for free in grid]))]
        found = optimize.minimize_scalar(
            loss, bounds=(best - 0.03, best + 0.03), method="bounded", options={"xatol": 1e-9}
        )
        return -found.fun - lowest

    return float(optimize.brentq(drop, start, stop, xtol=1e-7))


@pytest.mark.parametrize("number", [0, 30])
def test_intervals_are_where_the_profile_likelihood_falls_by_its_quantile(stations: list[Station], number: int) -> None:
    station = stations[number]
    excess, fit = station.excess, station.fit
    lowest = log_likelihood(excess, fit.shape.value, fit.scale.value) - stats.chi2.ppf(0.95, 1) / 2
    rate, years = len(excess) / station.years, 50
    level = return_level(fit, threshold=station.threshold, rate=rate, years=years)

    def by_level(x: float, shape: float) -> tuple[float, float]:
        return shape, (x - station.threshold) / special.boxcox(rate * years, shape)

    laws = {
        "shape": (fit.shape, lambda x, free: (x, math.exp(free)), 0.4),
        "scale": (fit.scale, lambda x, free: (free, x), 0.5 * fit.scale.value),
        "level": (level, by_level, 0.35 * level.value),
    }
    for name, (interval, law, reach) in laws.items():
        low = profile_edge(excess, lowest, law, interval.value - reach, interval.value)
        high = profile_edge(excess, lowest, law, interval.value, interval.value + 4 * reach)
        assert interval[1:] == pytest.approx((low, high), rel=1e-4, abs=1e-4), name


def test_known_laws_lie_in_their_intervals_at_the_nominal_rate(stations: list[Station]) -> None:
    """Samples of each station's own law, as many as it has in as many years, Poisson; 8 × 60 of them."""
    rng = np.random.default_rng(0)
    held: dict[str, list[bool]] = {"shape": [], "scale": [], "10 years": [], "50 years": []}
    for station in (stations[i] for i in COVERAGE_STATIONS):
        shape, scale = station.fit.shape.value, station.fit.scale.value
        rate = len(station.excess) / station.years
        for _ in range(REPEATS):
            n = rng.poisson(len(station.excess))
            fit = fit_gpd(stats.genpareto.rvs(shape, scale=scale, size=n, random_state=rng))
            held["shape"].append(holds(fit.shape, shape))
            held["scale"].append(holds(fit.scale, scale))
            for years in (10, 50):
                truth = station.threshold + scale * special.boxcox(rate * years, shape)
                found = return_level(fit, threshold=station.threshold, rate=n / station.years, years=years)
                held[f"{years} years"].append(holds(found, truth))
    n = len(COVERAGE_STATIONS) * REPEATS
    # Likelihood intervals of some 120 values hold 94 % rather than 95: 1 % is granted beyond chance.
    lowest, highest = stats.binom.ppf(0.001, n, 0.94), stats.binom.ppf(0.999, n, 0.95)
    for name, found in held.items():
        assert lowest <= sum(found) <= highest, f"{name}: {sum(found)} of {n}"


def dependent(rng: np.random.Generator, *, blocks: int, pixels: int, shape: float, scale: float) -> list[NDArray]:
    """Excesses of events that most pixels share, about one in nine blocks."""
    found = []
    for events in rng.poisson(1 / 9, blocks):
        common = 0.7**0.5 * rng.normal(size=(events, 1)) + 0.3**0.5 * rng.normal(size=(events, pixels))
        found.append(stats.genpareto.ppf(stats.norm.cdf(common), shape, scale=scale).ravel())
    return found


def test_blocks_widen_intervals_of_dependent_pixels_until_they_hold() -> None:
    rng, shape, scale, years, held, naive = np.random.default_rng(0), 0.1, 7.0, 10, [], []
    truth = 20 + scale * special.boxcox(4 * 50, shape)
    for _ in range(50):
        excesses = dependent(rng, blocks=36 * years, pixels=10, shape=shape, scale=scale)
        counts = [len(block) for block in excesses]
        pooled, labels = np.concatenate(excesses), np.repeat(np.arange(len(counts)), counts)
        rate = exceedance_rate(np.array(counts) / 10, years=years)
        fit, plain = fit_gpd(pooled, blocks=labels), fit_gpd(pooled)
        assert fit.shape.value == plain.shape.value and fit.n == len(pooled)
        held.append(holds(return_level(fit, threshold=20, rate=rate, years=50), truth))
        naive.append(holds(return_level(plain, threshold=20, rate=rate.value, years=50), truth))
    assert sum(held) >= stats.binom.ppf(0.001, 50, 0.95), f"{sum(held)} of 50"
    assert sum(naive) < 0.8 * 50, f"{sum(naive)} of 50: pixels of one event pass for independent"


def test_blocks_of_independent_values_change_little(stations: list[Station]) -> None:
    widths = []
    for station in stations[::4]:
        fit = fit_gpd(station.excess, blocks=np.arange(len(station.excess)))
        widths.append((fit.shape.high - fit.shape.low) / (station.fit.shape.high - station.fit.shape.low))
    assert np.mean(widths) == pytest.approx(1, abs=0.05)


def test_too_few_blocks_give_no_interval() -> None:
    excess = np.random.default_rng(0).exponential(size=90)
    fit = fit_gpd(excess, blocks=np.arange(90) % 9)
    rate = exceedance_rate(np.full(9, 10), years=3)
    found = [fit.shape, fit.scale, rate, return_level(fit, threshold=1, rate=rate, years=20)]
    assert all(math.isfinite(e.value) and math.isnan(e.low) and math.isnan(e.high) for e in found)


def test_the_interval_of_a_rate_holds_it() -> None:
    rng = np.random.default_rng(0)
    held = [holds(exceedance_rate(rng.poisson(4, 30), years=30), 4.0) for _ in range(500)]
    assert stats.binom.ppf(0.001, 500, 0.95) <= sum(held) <= stats.binom.ppf(0.999, 500, 0.95)


def test_an_uncertain_rate_widens_return_levels(stations: list[Station]) -> None:
    station = stations[0]
    rate = len(station.excess) / station.years
    known, unsure = (
        return_level(station.fit, threshold=station.threshold, rate=r, years=10)
        for r in (rate, Estimate(rate, 0.5 * rate, 2 * rate))
    )
    alone = [
        station.threshold + station.fit.scale[0] * special.boxcox(10 * r, station.fit.shape[0])
        for r in (rate / 2, 2 * rate)
    ]
    assert (
        known.value
        == unsure.value
        == pytest.approx(station.threshold + station.fit.scale[0] * special.boxcox(10 * rate, station.fit.shape[0]))
    )
    for limit, own, other in zip(unsure[1:], known[1:], alone, strict=True):
        assert abs(limit - known.value) == pytest.approx(math.hypot(own - known.value, other - known.value))


def test_the_exponential_law_is_no_special_case() -> None:
    excess = -np.log(1 - (np.arange(4000) + 0.5) / 4000)  # quantiles of the exponential law
    fit = fit_gpd(excess)
    assert fit.shape.value == pytest.approx(0, abs=2e-3) and fit.scale.value == pytest.approx(1, abs=2e-3)
    level = return_level(fit, threshold=2, rate=5, years=20)
    assert level.low < 2 + math.log(100) < level.high


def test_what_is_no_tail_is_refused() -> None:
    with pytest.raises(UserError, match="has 9 values above"):
        fit_gpd(np.ones(9))
    with pytest.raises(UserError, match="between -1 and 18"):
        fit_gpd(np.arange(20.0) - 1)
    with pytest.raises(UserError, match="return level of 2 years lies below"):
        return_level(fit_gpd(np.arange(20.0)), threshold=30, rate=0.5, years=2)


def test_sedi_is_that_of_scores_and_undefined_without_a_miss_or_a_false_alarm() -> None:
    counts = np.array([[82, 23, 38, 222], [3, 9, 14, 6000], [5, 0, 3, 40], [5, 3, 0, 40], [0, 0, 3, 40]])
    found = sedi(counts)
    for (hits, misses, false_alarms, negatives), mine in zip(counts[:2].tolist(), found[:2], strict=True):
        events = [(1, 1)] * hits + [(0, 1)] * misses + [(1, 0)] * false_alarms + [(0, 0)] * negatives
        forecast, observed = (xarray.DataArray([pair[i] for pair in events], dims="case") for i in (0, 1))
        manager = BinaryContingencyManager(forecast, observed)
        assert mine == pytest.approx(float(manager.symmetric_extremal_dependence_index()), abs=1e-10)
    assert np.isnan(found[2:]).all()
    assert sedi([20, 80, 180, 720]) == pytest.approx(0, abs=1e-12)  # as many hits as by chance
