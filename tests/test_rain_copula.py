"""Spatial noise of rain: its margins and correlation against theory, and its length found again under dry pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.copula import (
    Correlation,
    censored_scores,
    correlated_uniform,
    fit,
    latent_correlogram,
    normal_scores,
    torus_distance,
)
from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle, Tail

ROUGH = Correlation(nugget=0.1, length=5.0, exponent=1.0)
SMOOTH = Correlation(nugget=0.0, length=8.0, exponent=1.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coast(height: int, width: int) -> Tensor:
    """A land mask with sea in one corner and a lake."""
    land = torch.ones((height, width), dtype=torch.bool)
    land[: height // 3, : width // 3] = False
    land[height // 2 : height // 2 + 3, width // 2 : width // 2 + 4] = False
    return land


def rain(
    correlation: Correlation, *, n: int = 120, shape: tuple[int, int] = (52, 44), varied: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw maps of gamma hurdles, dry in about 60 % of cases, draws of them with NaN over the sea, and the land."""
    raw = torch.zeros((n, 3, *shape))
    raw[:, 0] = math.log(0.4 / 0.6)
    if varied:  # from day to day and across the map
        raw[:, 0] += 1.5 * torch.randn((n, 1, 1), generator=seeded(1)) + torch.linspace(-1, 1, shape[1])
    y = Hurdle().quantile(raw, correlated_uniform((n, *shape), correlation, generator=seeded(2)))
    land = coast(*shape)
    return raw, torch.where(land, y, math.nan), land


def randomised(hurdle: Hurdle, raw: Tensor, y: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
    """Normal scores of rain, those of dry pixels drawn below the cut (Dunn and Smyth 1996); NaN where not measured."""
    u = hurdle.cdf(raw, y)
    u = torch.where(y < hurdle.wet, u * torch.rand(y.shape, generator=generator), u)
    return torch.where(valid, normal_scores(u), math.nan)


def correlogram(field: Tensor, land: Tensor, max_lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a field that is seen everywhere on land."""
    field = field - field[land.expand_as(field) & field.isfinite()].mean()
    return latent_correlogram(field, torch.full_like(field, -8.0), land, max_lag)


# --- residuals ----------------------------------------------------------------------------------------------------


def test_normal_scores_are_finite_and_undo_the_distribution_function() -> None:
    u = torch.tensor([0.0, 1e-20, 0.3, 0.5, 0.975, 1.0])
    scores = normal_scores(u)
    assert scores.isfinite().all() and scores[0] < -12 and scores[-1] > 5
    torch.testing.assert_close(scores[2:5], torch.tensor([-0.524401, 0.0, 1.959964]))
    assert normal_scores(torch.tensor([1.0], dtype=torch.float64)).isfinite()


@pytest.mark.parametrize("tail", ["gamma", "gpd"])
def test_residuals_of_draws_are_standard_normal_and_those_of_another_likelihood_are_not(tail: Tail) -> None:
    hurdle = Hurdle(tail)
    raw = torch.randn((20, hurdle.channels, 30, 30), generator=seeded())
    y = hurdle.quantile(raw, torch.rand((20, 30, 30), generator=seeded(1)))
    valid = coast(30, 30).expand_as(y)
    residuals = randomised(hurdle, raw, y, valid, seeded(2))
    assert residuals[~valid].isnan().all() and residuals[valid].isfinite().all()
    assert stats.kstest(residuals[valid].numpy(), "norm").pvalue > 0.01
    for map_ in range(3):
        other = raw.clone()
        other[:, map_] += 0.5
        assert stats.kstest(randomised(hurdle, other, y, valid, seeded(2))[valid].numpy(), "norm").pvalue < 1e-3


def test_censored_scores_are_the_mean_of_the_randomised_ones() -> None:
    raw, y, land = rain(ROUGH, n=4, varied=True)
    scores, cut = censored_scores(Hurdle(), raw, y, land)
    draws = torch.stack([randomised(Hurdle(), raw, y, land, seeded(seed)) for seed in range(100)])
    dry = (y < 0.1) & land
    assert scores[:, ~land].isnan().all() and cut[:, ~land].isnan().all()
    torch.testing.assert_close(scores[land & ~dry], draws[0][land & ~dry])
    error = (draws.mean(0) - scores)[dry] / (draws.std(0)[dry] / 10)
    assert error.abs().max() < 6 and error.square().mean().item() == pytest.approx(1, abs=0.15)
    assert (scores[dry] < cut[dry]).all() and (scores[land & ~dry] >= cut[land & ~dry] - 1e-5).all()


# --- correlograms -------------------------------------------------------------------------------------------------


def test_the_correlogram_of_a_field_seen_everywhere_is_that_of_all_pairs_one_by_one() -> None:
    land = coast(9, 7)
    field = torch.randn((3, 9, 7), generator=seeded()).cumsum(1)
    field[1, 4, 2] = math.nan
    lags, correlation = correlogram(field, land, 4)
    rows, columns = np.mgrid[:9, :7]
    distance = np.hypot(rows.ravel()[:, None] - rows.ravel(), columns.ravel()[:, None] - columns.ravel())
    values = torch.where(land, field, math.nan).flatten(1).double().numpy()
    values = values - np.nanmean(values)
    products = values[:, :, None] * values[:, None]
    for n in range(1, 5):
        near = (distance >= n - 0.5) & (distance < n + 0.5) & np.isfinite(products)
        assert lags[n - 1] == pytest.approx(np.broadcast_to(distance, near.shape)[near].mean())
        assert correlation[n - 1] == pytest.approx(products[near].mean() / np.nanmean(values**2), rel=1e-6)


@pytest.mark.parametrize("truth", [ROUGH, SMOOTH, Correlation(0.0, 3.0, 1.0)])
@pytest.mark.parametrize("varied", [False, True])
def test_the_length_is_found_again_where_most_pixels_are_dry(truth: Correlation, varied: bool) -> None:
    raw, y, land = rain(truth, varied=varied)
    assert 0.5 < ((y < 0.1) & land).sum() / (land.sum() * len(y)) < 0.7
    lags, latent = latent_correlogram(*censored_scores(Hurdle(), raw, y, land), land, 20)
    found = fit(lags, latent)
    assert found.length == pytest.approx(truth.length, rel=0.15)
    near = torch.from_numpy(lags[:5])
    np.testing.assert_allclose(latent[:5], truth.at(near), atol=0.04)
    torch.testing.assert_close(found.at(near), truth.at(near), rtol=0, atol=0.04)
    # What the random draws of dry pixels make of it.
    naive = fit(*correlogram(randomised(Hurdle(), raw, y, land, seeded()), land, 20))
    assert naive.nugget > truth.nugget + 0.15


def test_margins_that_are_too_narrow_do_not_pass_for_correlation() -> None:
    raw, y, land = rain(ROUGH)
    scores, cut = censored_scores(Hurdle(), raw, y, land)
    _, expected = latent_correlogram(scores, cut, land, 10)
    _, wide = latent_correlogram(1.4 * scores, cut, land, 10)
    np.testing.assert_allclose(wide, expected, rtol=1e-3)


# --- fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [ROUGH, SMOOTH, Correlation(0.3, 15.0, 0.6), Correlation(0.0, 1.0, 1.0)])
def test_the_fit_finds_the_parameters_of_a_curve(truth: Correlation) -> None:
    lags = np.arange(1, 25, dtype=np.float64)
    curve = truth.at(torch.from_numpy(lags)).numpy()
    curve[7] = math.nan  # no pair
    found = fit(lags, curve)
    near = torch.linspace(1, 24, 50)
    torch.testing.assert_close(found.at(near), truth.at(near), rtol=0, atol=0.005)
    assert found.length == pytest.approx(truth.length, rel=0.1)
    assert f"{found.length:.1f} pixels" in str(found)


def test_an_outlier_hardly_moves_the_fit() -> None:
    lags = np.arange(1, 25, dtype=np.float64)
    curve = ROUGH.at(torch.from_numpy(lags)).numpy()
    curve[12] += 0.5
    assert fit(lags, curve).length == pytest.approx(ROUGH.length, rel=0.1)


def test_white_residuals_are_called_independent() -> None:
    field = torch.randn((50, 30, 30), generator=seeded())
    found = fit(*correlogram(field, coast(30, 30), 10))
    assert found.length == 0 and "independent" in str(found)
    u = correlated_uniform((50, 30, 30), found, generator=seeded())
    _, left = correlogram(normal_scores(u), torch.ones(30, 30, dtype=torch.bool), 10)
    assert np.abs(left).max() < 0.02


def test_a_map_without_neighbours_is_a_mistake() -> None:
    land = torch.zeros((6, 6), dtype=torch.bool)
    land[0, 0] = True
    with pytest.raises(UserError, match="no two measured pixels"):
        fit(*correlogram(torch.randn((4, 6, 6), generator=seeded()), land, 3))


def test_parameters_fit_into_a_buffer() -> None:
    values = Correlation(0.1, 5.0, 1.0, 0.9).as_tensor()
    assert values.shape == (4,) and values.dtype == torch.float32
    back = Correlation.from_tensor(values)
    assert (back.nugget, back.length, back.exponent, back.known) == pytest.approx((0.1, 5.0, 1.0, 0.9))


def test_a_correlation_says_what_is_known() -> None:
    assert "5.0 pixels" in str(ROUGH) and "known" not in str(ROUGH)
    assert "90% of a coarse cell's mean is known" in str(Correlation(0.1, 5.0, 1.0, 0.9))
    assert "no spatial noise, 50% of" in str(Correlation(0.0, 0.0, 1.0, 0.5))


# --- noise --------------------------------------------------------------------------------------------------------

NOISES = [ROUGH, SMOOTH, Correlation(0.0, 0.0, 1.0), Correlation(0.0, 40.0, 2.0), Correlation(0.2, 30.0, 0.4)]


@pytest.mark.parametrize("correlation", NOISES)
def test_every_pixel_of_the_noise_is_uniform(correlation: Correlation) -> None:
    u = correlated_uniform((3001, 9, 7), correlation, generator=seeded())
    assert u.shape == (3001, 9, 7) and u.dtype == torch.float32 and (u > 0).all() and (u < 1).all()
    for row, column in ((0, 0), (8, 6), (4, 3)):
        assert stats.kstest(u[:, row, column].numpy(), "uniform").pvalue > 0.005
    # Fields are independent of each other, also the two that come out of one transform.
    scores = normal_scores(u)
    assert abs((scores[:-1] * scores[1:]).mean()) < 5 / math.sqrt(3000)


@pytest.mark.parametrize("correlation", NOISES)
def test_the_noise_has_the_correlation_of_theory_in_every_direction(correlation: Correlation) -> None:
    scores = normal_scores(correlated_uniform((3000, 24, 20), correlation, generator=seeded())).double()
    for down, right in ((0, 1), (1, 0), (2, 2), (3, -3), (0, 8), (12, 0), (15, 15), (23, 0)):
        a = scores[:, down:, max(right, 0) : 20 + min(right, 0)]
        b = scores[:, : 24 - down, max(-right, 0) : 20 - max(right, 0)]
        each = (a * b).mean((1, 2))
        theory = correlation.at(torch.tensor(math.hypot(down, right))).item()
        # 0.01: the eigenvalues below 0 of long and smooth correlations.
        assert each.mean().item() == pytest.approx(theory, abs=4 * each.std().item() / math.sqrt(3000) + 0.01)
    assert scores.square().mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("correlation", NOISES)
@pytest.mark.parametrize("block", [4, 12])
def test_means_of_blocks_vary_as_theory_has_it(correlation: Correlation, block: int) -> None:
    scores = normal_scores(correlated_uniform((2000, 24, 24), correlation, generator=seeded())).double()
    means = scores.unfold(1, block, block).unfold(2, block, block).mean((-1, -2))
    rows, columns = torch.meshgrid(torch.arange(block), torch.arange(block), indexing="ij")
    distance = torch.hypot(*(c.flatten()[:, None] - c.flatten() for c in (rows.double(), columns.double())))
    theory = correlation.at(distance).mean().item()
    each = means.square().mean((1, 2))
    assert each.mean().item() == pytest.approx(theory, abs=4 * each.std().item() / math.sqrt(2000) + 0.01 * theory)


@pytest.mark.parametrize("correlation", [Correlation(0.0, 6.0, 1.0, 0.9), Correlation(0.0, 0.0, 1.0, 0.5)])
def test_the_known_share_of_cell_means_is_taken_off_the_noise(correlation: Correlation) -> None:
    u = correlated_uniform((4000, 12, 8), correlation, factor=4, generator=seeded())
    for row, column in ((0, 0), (5, 2), (11, 7)):
        assert stats.kstest(u[:, row, column].numpy(), "uniform").pvalue > 0.005
    # Against the whole covariance matrix, written down.
    rows, columns = (place.flatten() for place in torch.meshgrid(torch.arange(12), torch.arange(8), indexing="ij"))
    distance = torch.hypot(*(p[:, None].double() - p for p in (rows, columns)))
    cell = rows // 4 * 2 + columns // 4
    mean = (cell[:, None] == cell).double() / 16
    off = torch.eye(96, dtype=torch.float64) - correlation.known * mean
    covariance = off @ correlation.at(distance) @ off.T
    theory = covariance / torch.outer(*[covariance.diagonal().sqrt()] * 2)
    drawn = torch.cov(normal_scores(u).flatten(1).double().T, correction=0)
    torch.testing.assert_close(drawn, theory, rtol=0, atol=0.08)
    torch.testing.assert_close(mean @ drawn @ mean, mean @ theory @ mean, rtol=0.1, atol=0.003)


def test_without_a_known_share_the_cells_do_not_matter() -> None:
    fields = [correlated_uniform((3, 8, 8), ROUGH, factor=factor, generator=seeded()) for factor in (1, 4)]
    assert torch.equal(*fields)


def test_the_same_generator_draws_the_same_fields() -> None:
    first, again, other = (correlated_uniform((3, 8, 8), ROUGH, generator=seeded(s)) for s in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_distances_go_round_the_torus_the_shorter_way() -> None:
    distance = torus_distance((6, 5))
    assert distance.shape == (6, 5)
    assert distance[5, 0] == 1 and distance[3, 0] == 3 and distance[0, 3] == 2
    assert distance[4, 4] == pytest.approx(math.sqrt(5))
