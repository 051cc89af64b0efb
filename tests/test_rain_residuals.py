"""The copula's correlation from held-out days: pairs, windows, and a spread equal to skill at all scales."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rain_run import simulated, task_on
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import copula
from nbhelpers.stages.rainfall_cvae.copula import Correlation, correlated_uniform
from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle, Tail
from nbhelpers.stages.rainfall_cvae.pixel_pairs import Pairs, window_sides, window_squares
from nbhelpers.stages.rainfall_cvae.residuals import (
    ORDERS,
    Windows,
    calibrated,
    drawn_squares,
    fit,
    fit_correlation,
    rain_moments,
    windows_of,
)

FACTOR = 4
SHAPE = (24, 28)
OPEN = Correlation(nugget=0.1, length=5.0, exponent=1.0)  # the coarse rain says nothing of a cell's mean
KNOWN = Correlation(nugget=0.0, length=6.0, exponent=1.0, known=0.85)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weather(n: int) -> Tensor:
    """Raw maps of gamma hurdles, wetter from day to day and across the map."""
    raw = torch.zeros((n, 3, *SHAPE))
    raw[:, 0] = 1.5 * torch.randn((n, 1, 1), generator=seeded(1)) + torch.linspace(-1, 1, SHAPE[1])
    return raw


def rain(raw: Tensor, correlation: Correlation, seed: int = 2) -> Tensor:
    noise = correlated_uniform((len(raw), *SHAPE), correlation, factor=FACTOR, generator=seeded(seed))
    return Hurdle().quantile(raw, noise)


def evidence(raws: list[Tensor], y: Tensor) -> tuple[np.ndarray, np.ndarray, Windows, Pairs]:
    land = torch.ones(SHAPE, dtype=torch.bool)
    pairs = Pairs(land, FACTOR)
    scores = copula.censored_scores(Hurdle(), raws[0], y, land)
    windows = windows_of(Hurdle(), raws, y, land.expand_as(y), pairs.sides)
    return *copula.latent_correlogram(*scores, land, 8), windows, pairs


# --- windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "shape", "expected"),
    [
        (4, (28, 28), (1, 2, 4, 8, 16, 32)),
        (12, (36, 24), (1, 2, 4, 12, 24, 48)),
        (7, (14, 7), (1, 7, 14)),
        (4, (4, 4), (1, 2, 4, 8)),
    ],
)
def test_windows_grow_from_a_pixel_by_way_of_the_cell_to_the_map(
    factor: int, shape: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert window_sides(factor, shape) == expected


def test_sums_over_windows_are_those_one_by_one() -> None:
    fields = torch.randn((2, 3, 11, 9), generator=seeded(), dtype=torch.float64)
    sides = (1, 2, 6, 12)
    squares = window_squares(fields, sides)
    assert squares.shape == (2, 3, 4)
    for index, side in enumerate(sides):
        corners = [(r, c) for r in range(0, 11, side) for c in range(0, 9, side)]
        by_hand = sum(fields[..., r : r + side, c : c + side].sum((-2, -1)) ** 2 for r, c in corners)
        torch.testing.assert_close(squares[..., index], by_hand)


# --- pairs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("correlation", [OPEN, KNOWN, Correlation(0.0, 0.0, 1.0, 0.6)])
def test_correlations_of_pairs_are_those_of_the_whole_covariance_matrix(factor: int, correlation: Correlation) -> None:
    height, width = 8 * factor, 4 * factor
    land = torch.ones((height, width), dtype=torch.bool)
    pairs = Pairs(land, factor)
    near, powers = pairs.correlations(correlation, 3)
    assert near.shape == (factor,) and powers.shape == (len(pairs.sides) - 1, 3)
    row, column = torch.cartesian_prod(torch.arange(height), torch.arange(width)).unbind(1)
    distance = torch.hypot(*(p[:, None].double() - p for p in (row, column)))
    cell = row // factor * 4 + column // factor
    off = (
        torch.eye(height * width, dtype=torch.float64)
        - correlation.known * (cell[:, None] == cell).double() / factor**2
    )
    covariance = off @ correlation.at(distance) @ off.T
    rho = covariance / torch.outer(*[covariance.diagonal().sqrt()] * 2)

    def window(side: int) -> Tensor:
        number = row // side * width + column // side
        return number[:, None] == number

    for index, (side, inner) in enumerate(zip(pairs.sides[1:], pairs.sides, strict=False)):
        among = rho[window(side) & ~window(inner)]
        exact = torch.stack([(among**n).mean() for n in (1, 2, 3)])
        if side <= 2 * factor:
            torch.testing.assert_close(powers[index], exact)
        else:  # only as a mean
            assert powers[index, 0].item() == pytest.approx(exact[0].item(), rel=0.05, abs=5e-4)
    inside = (row >= factor) & (row < height - factor) & (column >= factor) & (column < width - factor)
    for n in range(1, factor + 1):
        shell = ((distance + 0.5).long() == n)[inside]
        assert near[n - 1].item() == pytest.approx(rho[inside][shell].mean().item(), abs=1e-9)


def test_pairs_of_the_sea_do_not_count() -> None:
    land = torch.zeros((16, 16), dtype=torch.bool)
    land[0, 0] = land[0, 15] = True
    _, powers = Pairs(land, 2).correlations(OPEN, 1)
    assert powers[-1, 0].item() == pytest.approx(OPEN.at(torch.tensor(15.0, dtype=torch.float64)).item())


# --- rain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["gamma", "gpd"])
def test_covariances_of_rain_are_those_of_draws(tail: Tail) -> None:
    hurdle, n, rho = Hurdle(tail), 400_000, 0.6
    raw = torch.tensor([[0.5, 1.0, 0.5, -1.0], [-1.0, 0.0, -0.5, -1.0]])[:, : hurdle.channels]
    mean, variance, coefficients = rain_moments(hurdle, raw[..., None, None])
    assert mean.shape == (2, 1, 1) and coefficients.shape == (2, ORDERS, 1, 1)
    torch.testing.assert_close(mean.float(), hurdle.mean(raw[..., None, None]), rtol=0.03, atol=0)
    one, other = torch.randn((2, n), generator=seeded(), dtype=torch.float64)
    g = torch.stack([one, rho * one + math.sqrt(1 - rho**2) * other])
    y = hurdle.quantile(raw[..., None, None], torch.special.ndtr(g)[:, None, :].reshape(2, 1, n))[:, 0]
    covariance = torch.cov(y)
    torch.testing.assert_close(variance.flatten(), covariance.diagonal(), rtol=0.08, atol=0)
    power = rho ** torch.arange(1, ORDERS + 1)
    theory = (coefficients[0, :, 0, 0] * coefficients[1, :, 0, 0] * power).sum()
    assert theory.item() == pytest.approx(covariance[0, 1].item(), rel=0.05)


@pytest.mark.parametrize("correlation", [OPEN, KNOWN])
def test_the_variance_of_windows_is_nearly_that_of_draws(correlation: Correlation) -> None:
    raw = weather(60)
    _, _, windows, pairs = evidence([raw], rain(raw, correlation))
    valid = torch.ones((60, *SHAPE), dtype=torch.bool)
    drawn = drawn_squares(Hurdle(), raw, valid, correlation, pairs, seeded(3)).mean(0)
    theory = windows.variance(pairs.correlations(correlation, ORDERS)[1].numpy())
    np.testing.assert_allclose(theory, drawn, rtol=0.35)
    np.testing.assert_allclose(theory[:2], drawn[:2], rtol=0.06)


def test_what_the_latent_explains_is_not_asked_of_the_noise() -> None:
    raw, pairs = weather(600), Pairs(torch.ones(SHAPE, dtype=torch.bool), FACTOR)
    shift = torch.zeros((3, *raw.shape))
    shift[:, :, 0] = 1.0 * torch.randn((3, 600, 1, 1), generator=seeded(5))
    truth, first, second = raw + shift
    y, valid = rain(truth, OPEN), torch.ones((600, *SHAPE), dtype=torch.bool)
    windows = windows_of(Hurdle(), [first, second], y, valid, pairs.sides)
    noise = windows.variance(pairs.correlations(OPEN, ORDERS)[1].numpy())
    assert windows.latent.mean(0)[-1] > 0.3 * noise[-1]
    np.testing.assert_allclose(windows.latent.mean(0) + noise, windows.error.mean(0), rtol=0.15)
    np.testing.assert_array_equal(windows_of(Hurdle(), [first], y, valid, pairs.sides).latent, 0)


# --- fit ----------------------------------------------------------------------------------------------------------


def test_where_nothing_is_known_the_fit_is_the_simple_one() -> None:
    raw = weather(150)
    found = fit(*evidence([raw], rain(raw, OPEN)))
    assert found.known < 0.1
    near = torch.arange(1, 9, dtype=torch.float64)
    torch.testing.assert_close(found.at(near), OPEN.at(near), rtol=0, atol=0.06)


def test_spread_equals_skill_at_every_scale_where_cell_means_are_known() -> None:
    raw = weather(300)
    lags, curve, windows, pairs = evidence([raw], rain(raw, KNOWN))
    valid = torch.ones((300, *SHAPE), dtype=torch.bool)

    def drawn(correlation: Correlation, seed: int = 3) -> np.ndarray:
        return drawn_squares(Hurdle(), raw, valid, correlation, pairs, seeded(seed)).mean(0)

    def spread_by_skill(correlation: Correlation) -> np.ndarray:
        return np.sqrt(drawn(correlation, 4) / windows.error.mean(0))

    found = calibrated(lags, curve, windows, pairs, drawn)
    assert found.known == pytest.approx(KNOWN.known, abs=0.1)
    np.testing.assert_allclose(spread_by_skill(found), 1, atol=0.12)
    # What the positive correlations alone make of it.
    simple = copula.fit(lags, curve)
    assert simple.known == 0 and spread_by_skill(simple)[pairs.sides.index(FACTOR)] > 1.5


def test_what_the_expansion_leaves_out_is_made_up_for() -> None:
    raw = weather(300)
    lags, curve, windows, pairs = evidence([raw], rain(raw, KNOWN))

    def expected(correlation: Correlation) -> np.ndarray:
        return windows.variance(pairs.correlations(correlation, ORDERS)[1].numpy())

    one, twice = (calibrated(lags, curve, windows, pairs, lambda c, n=n: n * expected(c)) for n in (1, 2))
    assert one == fit(lags, curve, windows, pairs)
    assert expected(twice)[-1] < 0.7 * expected(one)[-1]


def test_independent_rain_is_called_independent() -> None:
    raw = weather(100)
    found = fit(*evidence([raw], rain(raw, Correlation(0.0, 0.0, 1.0))))
    assert found.length == 0 and found.known < 0.1


def test_a_map_without_neighbours_is_a_mistake() -> None:
    raw = weather(3)
    lags, curve, windows, pairs = evidence([raw], rain(raw, OPEN))
    with pytest.raises(UserError, match="no two measured pixels"):
        fit(lags, np.full_like(curve, math.nan), windows, pairs)


@pytest.mark.parametrize("d_z", [0, 2])
def test_the_correlation_of_a_model_is_fitted_on_its_validation_days(tmp_path: Path, d_z: int) -> None:
    task = task_on(simulated(tmp_path / "days"), d_z=d_z)
    batches = list(task.batches("val", 0))
    found = fit_correlation(task.sampler, batches, seed=0)
    # An untrained model knows nothing of the weather, which all pixels of a day share.
    assert found.length > 1
    assert fit_correlation(task.sampler, batches, seed=0) == found
