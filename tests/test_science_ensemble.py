"""Scores of ensembles against other packages, definitions, closed forms and their chance levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import properscoring
import pytest
import torch
import xarray
from scores import probability
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science import ensemble


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=["made up", "climate model"])
def rain(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """(20, 6, 28, 30) other days as members and (20, 28, 30) the days, mm/day float32, with a sea."""
    if request.param == "made up":
        fields = (normal(1600, 28, 30).float() * 8 - 6).clamp(min=0.0)
    else:
        real_data: Path = request.getfixturevalue("real_data")
        fields = torch.from_numpy(np.load(real_data / "rain/CORDEX_Iberia_pr.npz")["pr"])
    days = torch.arange(20) * 80 + 30
    observed, members = fields[days].clone(), torch.stack([fields[days + 7 * k] for k in range(1, 7)], 1)
    observed[:, :, :6] = torch.nan
    return members, observed


def labelled(members: Tensor, observed: Tensor) -> tuple[xarray.DataArray, xarray.DataArray]:
    return (
        xarray.DataArray(members.double().numpy(), dims=("day", "member", "y", "x")),
        xarray.DataArray(observed.double().numpy(), dims=("day", "y", "x")),
    )


@pytest.mark.parametrize("fair", [True, False])
def test_crps_is_that_of_scores(rain: tuple[Tensor, Tensor], fair: bool) -> None:
    method = "fair" if fair else "ecdf"
    expected = probability.crps_for_ensemble(*labelled(*rain), "member", method=method, preserve_dims="all")
    found = (ensemble.fair_crps if fair else ensemble.crps)(*rain)
    assert found.isnan().sum() == 20 * 28 * 6
    np.testing.assert_allclose(found.numpy(), expected.to_numpy(), rtol=0, atol=1e-10)


def test_the_biased_crps_is_that_of_properscoring(rain: tuple[Tensor, Tensor]) -> None:
    members, observed = (part.double().numpy() for part in rain)
    expected = properscoring.crps_ensemble(observed, members, axis=1)
    np.testing.assert_allclose(ensemble.crps(*rain).numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("fair", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 5.0, 20.0])
def test_threshold_weighted_crps_is_that_of_scores(rain: tuple[Tensor, Tensor], threshold: float, fair: bool) -> None:
    expected = probability.tail_tw_crps_for_ensemble(
        *labelled(*rain), "member", threshold, method="fair" if fair else "ecdf", tail="upper", preserve_dims="all"
    )
    found = ensemble.threshold_weighted_crps(*rain, threshold, fair=fair)
    np.testing.assert_allclose(found.numpy(), expected.to_numpy(), rtol=0, atol=1e-10)


def test_threshold_weighted_crps_is_the_integral_above_the_threshold() -> None:
    # Members 1 and 4, truth 3, threshold 2: (½ − 0)² from 2 to 3, (½ − 1)² from 3 to 4.
    found = ensemble.threshold_weighted_crps(torch.tensor([[[1.0], [4.0]]]), torch.tensor([[3.0]]), 2.0, fair=False)
    assert float(found) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("m", [2, 3, 8])
def test_fair_crps_is_its_definition_over_all_pairs(m: int) -> None:
    x, y = random(2, m, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    pairs = (x[:, :, None] - x[:, None]).abs().sum((1, 2))
    expected = (x - y[:, None]).abs().mean(1) - pairs / (2 * m * (m - 1))
    torch.testing.assert_close(ensemble.fair_crps(x, y), expected, rtol=0, atol=1e-12)


def test_fair_crps_by_hand() -> None:
    # Members 1, 2, 6 and truth 3: (2 + 1 + 3)/3 − (1 + 5 + 4)/(3·2) = 2 − 10/6.
    x = torch.tensor([6.0, 1.0, 2.0]).reshape(1, 3, 1, 1, 1)
    assert float(ensemble.fair_crps(x, torch.full((1, 1, 1, 1), 3.0))) == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize("m", [2, 5, 20])
def test_fair_crps_has_no_bias_from_the_number_of_members(m: int) -> None:
    # CRPS of N(0, 1) against 0 is (√2 − 1)/√π. The usual form would have 0.51 with two members.
    found = ensemble.fair_crps(normal(1, m, 1, 400, 400), torch.zeros(1, 1, 400, 400))
    assert float(found.mean()) == pytest.approx((2**0.5 - 1) / np.pi**0.5, abs=4e-3)


def test_a_single_member_has_no_fair_crps() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        ensemble.fair_crps(random(1, 1, 1, 2, 2), random(1, 1, 2, 2))


def test_a_rank_counts_the_members_below_and_draws_among_ties() -> None:
    members = torch.tensor([0.0, 0.0, 1.0, 3.0]).view(1, 4, 1).expand(-1, -1, 30_000)
    places = {y: ensemble.ranks(members, torch.full((1, 30_000), y), draw()) for y in (-1.0, 0.0, 1.0, 2.0, 9.0)}
    assert (places[-1.0] == 0).all() and (places[2.0] == 3).all() and (places[9.0] == 4).all()
    # Two members equal a dry truth: three places for it, one as likely as another.
    counts = ensemble.rank_histogram(places[0.0], 4)[0]
    assert counts[3:].sum() == 0 and (counts[:3] - 10_000).abs().max() < 400
    assert set(places[1.0].unique().tolist()) == {2, 3}
    again = ensemble.ranks(members, torch.zeros(1, 30_000), draw())
    assert torch.equal(again, places[0.0])


def test_what_was_not_measured_has_no_rank(rain: tuple[Tensor, Tensor]) -> None:
    members, observed = rain
    places = ensemble.ranks(members, observed, draw())
    assert torch.equal(places == -1, observed.isnan())
    counts = ensemble.rank_histogram(places, 6)
    assert counts.shape == (20, 7) and (counts.sum(1) == 28 * 24).all()
    every = ensemble.rank_histogram(places.flatten()[None], 6)
    assert torch.equal(every[0], counts.sum(0))
    assert [int((places == k).sum()) for k in range(7)] == every[0].tolist()


def test_the_reliability_index_by_hand() -> None:
    counts = np.array([[10, 10, 10, 10], [40, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(ensemble.reliability_index(counts), [0, 0.75 + 3 * 0.25, np.nan])


def test_spread_equals_error_at_every_scale_where_the_truth_is_as_one_more_member() -> None:
    # Noise that fills blocks of 4 pixels, and half of it all of the field.
    fields = normal(3000, 5, 1, 1, seed=2) + normal(3000, 5, 4, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    members, observed = fields[:, :4], fields[:, 4]
    for size in (1, 4, 8, None):
        means = [ensemble.block_means(part, size) for part in (members, observed)]
        variance, error = (part.mean().numpy() for part in ensemble.variance_and_error(*means))
        assert float(ensemble.spread(variance, 4) / np.sqrt(error)) == pytest.approx(1, abs=0.04)
    variance, _ = ensemble.variance_and_error(members, observed)
    np.testing.assert_allclose(variance.numpy(), members.numpy().var(1, ddof=1), rtol=1e-12)


def test_block_means_are_over_valid_pixels_and_need_enough_of_them() -> None:
    fields, valid = random(2, 3, 10, 13), random(10, 13, seed=1) > 0.4
    valid[:4, :4] = False
    valid[0, 0] = True
    found = ensemble.block_means(fields, 4, valid)
    assert found.shape == (2, 3, 3, 4)
    for i, j in np.ndindex(3, 4):
        block = (..., slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
        if valid[block].sum() < 8:
            assert found[..., i, j].isnan().all()
        else:
            torch.testing.assert_close(found[..., i, j], fields[block][..., valid[block]].mean(-1))
    assert found[..., 0, 0].isnan().all() and ensemble.block_means(fields, 4, valid, min_share=0)[0, 0, 0, 0] > 0
    torch.testing.assert_close(ensemble.block_means(fields, None, valid)[..., 0, 0], fields[..., valid].mean(-1))
    missing = torch.where(valid, fields, torch.nan)
    assert torch.equal(ensemble.block_means(missing, 4).nan_to_num(), found.nan_to_num())
    with pytest.raises(UserError, match="block size is 0"):
        ensemble.block_means(fields, 0)
