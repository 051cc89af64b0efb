"""The terms of the rainfall losses against closed forms, and what must never enter them: sea, gaps, dry batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nbhelpers.stages.rainfall_cvae import losses
from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle
from nbhelpers.stages.rainfall_cvae.model import LOG_VARIANCE, draw, kl_by_latent

SHAPE = (3, 6, 5)
P95 = 20.0


def rain(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three days in mm/day and where they were measured: many extremes, one extreme pixel, none."""
    rng = np.random.default_rng(seed)
    fields = rng.gamma(0.5, 6.0, SHAPE).clip(max=19.0)
    fields[0, 1:4, 1:3] = (25, 40), (21, 90), (20, 33)
    fields[1, 5, 4] = 60.0
    valid = rng.random(SHAPE) < 0.7
    valid[0, 1:4, 1:3] = valid[1, 5, 4] = True
    valid[2, 0] = True
    return torch.tensor(fields, dtype=torch.float32), torch.tensor(valid)


def guess(seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gamma(1.0, 5.0, SHAPE)).float()


def gradient(loss: losses.Loss, prediction: Tensor) -> Tensor:
    leaf = prediction.detach().clone().requires_grad_(True)
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    return found


# --- errors in mm/day ------------------------------------------------------------------------------------------------


def test_mae_is_the_mean_over_measured_pixels_of_all_days() -> None:
    y, valid = rain()
    by_hand = np.abs(guess().numpy() - y.numpy())[valid.numpy()].mean()
    loss = losses.absolute_error(y, valid)
    assert float(loss(guess())) == pytest.approx(float(by_hand), rel=1e-6)
    assert float(gradient(loss, guess()).abs().sum()) == pytest.approx(1.0), "weight 1 acts as 1"


def test_error_on_extremes_is_a_mean_over_days_that_have_them() -> None:
    y, valid = rain()
    error = (guess() - y).abs().numpy()
    extreme = (y >= P95).numpy() & valid.numpy()
    assert list(extreme.sum((1, 2))) == [6, 1, 0], "20 mm itself counts"
    by_hand = np.mean([error[0][extreme[0]].mean(), error[1][extreme[1]].mean()])
    loss, events = losses.tail_error(y, valid, P95, diluted=False)
    assert events == 2 and float(loss(guess())) == pytest.approx(float(by_hand), rel=1e-6)
    assert float(loss(guess())) != pytest.approx(float(error[extreme].mean()), rel=0.01), "not a mean over pixels"
    found = gradient(loss, guess()).abs()
    assert found[0, 1, 1].item() == pytest.approx(1 / (2 * 6)) and found[1, 5, 4].item() == pytest.approx(1 / 2)
    assert float(found.sum()) == pytest.approx(1.0)


def test_diluted_it_is_multiplied_by_the_share_of_days_that_have_any() -> None:
    y, valid = rain()
    (plain, events), (diluted, same) = (losses.tail_error(y, valid, P95, diluted=which) for which in (False, True))
    assert events == same == 2
    assert float(diluted(guess())) == pytest.approx(2 / 3 * float(plain(guess())), rel=1e-6)
    # One day of ten: a weight of 2 acts as 0.2, the historical case.
    ten = torch.zeros(10, 4, 4)
    ten[3, 0, 0] = 50.0
    measured = torch.ones_like(ten, dtype=torch.bool)
    loss, _ = losses.tail_error(ten, measured, P95, diluted=True)
    assert float(2.0 * gradient(loss, torch.zeros_like(ten)).abs().sum()) == pytest.approx(0.2)
    loss, _ = losses.tail_error(ten, measured, P95, diluted=False)
    assert float(2.0 * gradient(loss, torch.zeros_like(ten)).abs().sum()) == pytest.approx(2.0)


@pytest.mark.parametrize("diluted", [False, True])
def test_a_batch_without_extremes_has_an_error_of_0_with_a_graph(diluted: bool) -> None:
    y, valid = rain()
    loss, events = losses.tail_error(y.clamp(max=19.9), valid, P95, diluted=diluted)
    assert events == 0 and float(loss(guess())) == 0.0
    assert torch.equal(gradient(loss, guess()), torch.zeros(SHAPE))


def test_mass_is_the_error_of_each_days_mean() -> None:
    y, valid = rain()
    difference = np.where(valid.numpy(), guess().numpy() - y.numpy(), 0.0)
    by_hand = np.abs(difference.sum((1, 2)) / valid.numpy().sum((1, 2))).mean()
    assert float(losses.mass_error(y, valid)(guess())) == pytest.approx(float(by_hand), rel=1e-5)
    # Errors of opposite sign cancel within a day and not between days.
    flat, all_land = torch.zeros(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool)
    within = torch.tensor([[[3.0, -3.0], [1.0, -1.0]]]).expand(2, 2, 2)
    between = torch.tensor([2.0, -2.0])[:, None, None].expand(2, 2, 2)
    assert float(losses.mass_error(flat, all_land)(within)) == 0.0
    assert float(losses.mass_error(flat, all_land)(between)) == 2.0


def test_the_gradient_of_the_mass_error_is_as_large_as_that_of_the_mae_and_a_sum_would_not_be() -> None:
    """Where all errors of a day have one sign the two are the same function; summed over land it is n_land times it."""
    y, valid = rain()
    valid = valid[:1].expand(SHAPE)  # the same land every day
    n_land = int(valid[0].sum())
    above = y + 1.0
    mae, mass = (gradient(loss(y, valid), above) for loss in (losses.absolute_error, losses.mass_error))
    torch.testing.assert_close(mae, mass)

    def summed(prediction: Tensor) -> Tensor:
        return ((prediction - y) * valid).flatten(1).sum(1).abs().mean()

    assert float(gradient(summed, above).norm() / mass.norm()) == pytest.approx(n_land)
    assert n_land * 0.01 > 0.1, "at lambda 0.01 a sum is no small term any more"


# --- KL --------------------------------------------------------------------------------------------------------------


def latent(
    mean: float, log_variance: float, *, d: int = 2, days: int = 3, prior: tuple[float, float] = (0, 0)
) -> Tensor:
    """Statistics of a posterior N(mean, exp(log_variance)) and a prior, the same for every latent: 2 x 4 of each."""
    numbers = torch.tensor([mean, log_variance, *prior]).repeat_interleave(d)
    return numbers[None, :, None, None].expand(days, 4 * d, 2, 4).clone()


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.5, 1.0), (0.0, 0.25), (-2.0, 3.0)])
def test_kl_against_a_standard_normal(mean: float, variance: float) -> None:
    each = 0.5 * (mean**2 + variance - 1 - math.log(variance))
    n_land, latents = 37, 2 * 2 * 4
    loss = losses.kl_divergence(n_land, torch.ones(3), free_bits=0.0)
    found = float(loss(latent(mean, math.log(variance))))
    assert found == pytest.approx(each * latents / n_land, rel=1e-5, abs=1e-7)


def test_kl_against_a_learned_prior_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    stats = torch.randn(4, 4 * 3, 2, 2, generator=generator)
    q_mean, q_log, p_mean, p_log = stats.chunk(4, 1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(q_mean, (q_log / 2).exp()), torch.distributions.Normal(p_mean, (p_log / 2).exp())
    )
    torch.testing.assert_close(kl_by_latent(stats), expected)
    whole = float(losses.kl_divergence(10, torch.ones(4), free_bits=0.0)(stats))
    assert whole == pytest.approx(float(expected.sum() / 4 / 10), rel=1e-5)
    same = torch.cat([stats[:, :6], stats[:, :6]], 1)
    assert float(kl_by_latent(same).abs().max()) < 1e-6


def test_kl_pulls_at_mean_and_log_variance_as_the_formula_says() -> None:
    """d/dμ = μ, d/d ln σ² = ½(σ² − 1), per latent and land pixel, in the mean over days."""
    mean, log_variance, n_land = 1.5, math.log(0.25), 37
    found = gradient(losses.kl_divergence(n_land, torch.ones(3), free_bits=0.0), latent(mean, log_variance))
    torch.testing.assert_close(found[:, :2], torch.full((3, 2, 2, 4), mean / n_land / 3))
    torch.testing.assert_close(found[:, 2:4], torch.full((3, 2, 2, 4), 0.5 * (0.25 - 1) / n_land / 3))


def test_free_bits_charge_nothing_below_them_and_the_rest_in_full() -> None:
    each = 0.5 * 1.5**2  # nats of each latent
    for free, charged, pulls in ((0.0, each, True), (1.0, each, True), (2.0, 2.0, False)):
        loss = losses.kl_divergence(10, torch.ones(3), free_bits=free)
        assert float(loss(latent(1.5, 0.0))) == pytest.approx(charged * 16 / 10, rel=1e-5)
        assert bool(gradient(loss, latent(1.5, 0.0)).abs().sum() > 0) == pulls
    # In the mean over the batch: a day that uses a latent pays for one that does not.
    mixed = torch.cat([latent(2.0, 0.0, days=1), latent(0.0, 0.0, days=1)])
    assert float(losses.kl_divergence(1, torch.ones(2), free_bits=0.9)(mixed)) == pytest.approx(16.0, rel=1e-5)


def test_extreme_statistics_stay_finite_and_are_what_is_drawn() -> None:
    """Beyond the bounds KL and draw see the same clamped variance."""
    for value in (-80.0, 80.0):
        stats = latent(0.0, value)
        assert math.isfinite(float(losses.kl_divergence(5, torch.ones(3), free_bits=0.0)(stats)))
        spread = draw(stats[:, :4], torch.ones(3, 2, 2, 4))
        bound = LOG_VARIANCE[value > 0]
        torch.testing.assert_close(spread, torch.full_like(spread, math.exp(bound / 2)))


# --- the likelihood --------------------------------------------------------------------------------------------------


def raw_maps(hurdle: Hurdle, seed: int = 2) -> Tensor:
    return torch.randn(3, hurdle.channels, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tail", ["gamma", "gpd"])
def test_the_likelihood_is_a_mean_over_measured_pixels(tail: str) -> None:
    hurdle = Hurdle(tail)  # type: ignore[arg-type]
    y, valid = rain()
    raw = raw_maps(hurdle)
    each = hurdle.nll(raw, y, valid)
    found = losses.negative_log_likelihood(hurdle, y, valid, torch.ones(3))(raw)
    assert float(found) == pytest.approx(float(each[valid].mean()), rel=1e-6)


def test_weights_undo_oversampling_exactly() -> None:
    """A heavy day drawn four times with weight 1/4 each has the gradient of the plain epoch."""
    hurdle = Hurdle("gpd")
    y, _ = rain()
    valid = torch.ones(SHAPE, dtype=torch.bool)
    raw = raw_maps(hurdle)

    def with_weights(which: list[int], weight: list[float]) -> tuple[float, Tensor]:
        """Loss and its gradient at the raw maps of each different day."""
        leaf = raw.clone().requires_grad_(True)
        loss = losses.negative_log_likelihood(hurdle, y[which], valid[which], torch.tensor(weight))
        value = loss(leaf[which])
        (found,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), found

    plain, expected = with_weights([0, 1, 2], [1.0, 1.0, 1.0])
    # 3 days, 12 draws: in the mean 2 of each other day and 8 of the heavy one, weighed 2 / draws.
    value, found = with_weights([0] * 8 + [1, 1, 2, 2], [0.25] * 8 + [1.0] * 4)
    assert value == pytest.approx(plain, rel=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    unweighted, other = with_weights([0] * 8 + [1, 1, 2, 2], [1.0] * 12)
    assert unweighted != pytest.approx(plain, rel=0.05) and not torch.allclose(other, expected, rtol=0.1)


def test_weights_undo_oversampling_in_the_kl_too() -> None:
    stats = torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(3))
    plain = losses.kl_divergence(7, torch.ones(3), free_bits=0.0)(stats)
    again = losses.kl_divergence(7, torch.tensor([0.25] * 4 + [1.0, 1.0]), free_bits=0.0)(stats[[0] * 4 + [1, 2]])
    assert float(again) == pytest.approx(float(plain), rel=1e-5)


# --- what never enters -----------------------------------------------------------------------------------------------


def every_loss(y: Tensor, valid: Tensor) -> dict[str, tuple[losses.Loss, Callable[[], Tensor]]]:
    found: dict[str, tuple[losses.Loss, Callable[[], Tensor]]] = {
        "mae": (losses.absolute_error(y, valid), guess),
        "mae_ext": (losses.tail_error(y, valid, P95, diluted=False)[0], guess),
        "mass": (losses.mass_error(y, valid), guess),
    }
    for tail in ("gamma", "gpd"):
        hurdle = Hurdle(tail)  # type: ignore[arg-type]
        nll = losses.negative_log_likelihood(hurdle, y, valid, torch.ones(len(y)))
        found[tail] = (nll, lambda hurdle=hurdle: raw_maps(hurdle))  # type: ignore[misc]
    return found


def test_what_stands_at_pixels_that_were_not_measured_changes_nothing() -> None:
    y, valid = rain()
    other = torch.where(valid, y, 777.0)
    for name, (loss, make) in every_loss(y, valid).items():
        again, _ = every_loss(other, valid)[name]
        assert float(again(make())) == float(loss(make())), name
        found = gradient(loss, make())
        outside = found[~valid] if found.ndim == 3 else found.movedim(1, -1)[~valid]
        assert not outside.any(), name
        assert found.isfinite().all() and found.any(), name


def test_a_dry_batch_has_finite_losses_and_gradients() -> None:
    _, valid = rain()
    for name, (loss, make) in every_loss(torch.zeros(SHAPE), valid).items():
        assert math.isfinite(float(loss(make()))), name
        found = gradient(loss, make())
        assert found.isfinite().all(), name
        assert bool(found.any()) == (name != "mae_ext"), name


def test_a_batch_of_which_nothing_was_measured_has_losses_of_0() -> None:
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    for name, (loss, make) in every_loss(rain()[0], nothing).items():
        assert float(loss(make())) == 0.0 and not gradient(loss, make()).any(), name
