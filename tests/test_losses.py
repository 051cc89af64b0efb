"""The loss terms of radar frames against direct computations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nbhelpers.science.perceptual import Lpips, PerceptualLoss
from nbhelpers.stages.perceptual_unet.losses import (
    absolute_error,
    frame_distance,
    perceptual_error,
    pixel_weights,
    squared_error,
)

Error = Callable[[Tensor, Tensor, Tensor], Tensor]


def radar(seed: int, *, shape: tuple[int, ...] = (2, 2, 64, 48)) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction, a target in [0, 1] and a mask with a missing sector."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator)
    prediction = (target + 0.3 * torch.randn(shape, generator=generator)).requires_grad_(True)
    valid = torch.ones(shape, dtype=torch.bool)
    valid[0, :, :20, 10:30] = False
    return prediction, torch.where(valid, target, 0.0), valid


# --- pixel errors -------------------------------------------------------------------------------------------------

ERRORS = [(squared_error, 2), (absolute_error, 1)]


@pytest.mark.parametrize(("error", "power"), ERRORS)
def test_plain_errors_are_numpys_mean_over_measured_pixels(error: Error, power: int) -> None:
    prediction, target, valid = radar(0)
    value = error(prediction, target, pixel_weights(valid, target))
    difference = (prediction.detach().double().numpy() - target.double().numpy())[valid.numpy()]
    assert value.item() == pytest.approx(np.mean(np.abs(difference) ** power), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, prediction)
    slope = power * np.sign(difference) * np.abs(difference) ** (power - 1)
    np.testing.assert_allclose(gradient.numpy()[valid.numpy()], slope / difference.size, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize(("error", "power"), ERRORS)
def test_weighted_errors_are_numpys_average(error: Error, power: int) -> None:
    prediction, target, valid = radar(0)
    value = error(prediction, target, pixel_weights(valid, target, emphasis=3.0, even_leads=True))
    weights = valid.numpy() * (1 + 3 * target.double().numpy()) / np.array([1, 2])[:, None, None]
    difference = prediction.detach().double().numpy() - target.double().numpy()
    assert value.item() == pytest.approx(np.average(np.abs(difference) ** power, weights=weights), rel=1e-6)


def test_emphasis_moves_the_best_guess_towards_strong_rain_and_the_absolute_error_leaves_dry_ground_dry() -> None:
    chance = torch.tensor([0.0] * 7 + [0.6] * 3).reshape(10, 1, 1, 1)  # rain in three of ten cases
    guesses = torch.linspace(0, 0.6, 61).reshape(-1, 1, 1, 1, 1)

    def best(error: Error, emphasis: float) -> float:
        weights = pixel_weights(torch.ones_like(chance, dtype=torch.bool), chance, emphasis=emphasis)
        return float(guesses[int(torch.stack([error(g, chance, weights) for g in guesses]).argmin())])

    assert best(squared_error, 0) == pytest.approx(0.18, abs=1e-6)  # the mean
    assert best(squared_error, 2) == pytest.approx(0.6 * 3 * 2.2 / (7 + 3 * 2.2), abs=0.01)
    assert best(absolute_error, 0) == 0  # the median


@pytest.mark.parametrize(("error", "power"), ERRORS)
def test_missing_pixels_have_no_gradient_and_no_say(error: Error, power: int) -> None:
    prediction, target, valid = radar(0)
    weights = pixel_weights(valid, target, emphasis=2.0)
    (gradient,) = torch.autograd.grad(error(prediction, target, weights), prediction)
    assert (gradient[~valid] == 0).all() and (gradient[valid] != 0).any()
    wild = torch.where(valid, prediction, torch.tensor(1e9))
    assert error(wild, target, weights) == error(prediction, target, weights)


def test_nothing_measured_costs_nothing() -> None:
    prediction, target, valid = radar(0)
    value = squared_error(prediction, target, pixel_weights(torch.zeros_like(valid), target))
    (gradient,) = torch.autograd.grad(value, prediction)
    assert value.item() == 0.0 and (gradient == 0).all()


# --- perceptual term and LPIPS ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perceptual() -> PerceptualLoss:
    return PerceptualLoss("squeeze", "random")


def grey(frames: Tensor) -> Tensor:
    return torch.stack([frames.reshape(-1, *frames.shape[-2:])] * 3, 1)


def test_the_perceptual_term_is_that_of_grey_images(perceptual: PerceptualLoss) -> None:
    prediction, target, valid = radar(1)
    value = perceptual_error(perceptual, target, torch.ones_like(valid))(prediction)
    expected = perceptual.against(grey(target))(grey(prediction))
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(v, prediction)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients)
    assert value.item() > 0 and gradients[0].any()


def test_missing_pixels_do_not_reach_the_perceptual_term(perceptual: PerceptualLoss) -> None:
    prediction, target, valid = radar(2)
    loss = perceptual_error(perceptual, target, valid)
    value = loss(prediction)
    (gradient,) = torch.autograd.grad(value, prediction)
    assert (gradient[~valid] == 0).all() and (gradient[valid] != 0).any()
    assert loss(torch.where(valid, prediction, torch.tensor(7.0))) == value
    assert loss(torch.where(valid, target, torch.tensor(7.0))) == 0.0


def test_a_forecast_in_half_precision_has_its_gradient_summed_in_float32(perceptual: PerceptualLoss) -> None:
    prediction, target, valid = radar(3)
    half = prediction.detach().bfloat16().requires_grad_(True)
    same = half.detach().float().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = perceptual_error(perceptual, target, valid)
        value, expected = loss(half), loss(same)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    (gradient,), (reference,) = torch.autograd.grad(value, half), torch.autograd.grad(expected, same)
    assert torch.equal(gradient, reference.bfloat16())


def test_some_frames_of_each_sample_cover_every_lead_time_in_a_batch(perceptual: PerceptualLoss) -> None:
    target, prediction = torch.rand(2, 6, 3, 48, 48)
    valid = torch.ones_like(target, dtype=torch.bool)
    prediction.requires_grad_(True)
    some = perceptual_error(perceptual, target, valid, n_frames=1)
    some(prediction).backward()
    touched = prediction.grad.abs().sum((-2, -1)) > 0
    assert touched.sum(1).tolist() == [1] * 6 and touched.sum(0).tolist() == [2, 2, 2]
    lead = touched.float().argmax(1)
    rows = torch.arange(6)
    direct = perceptual_error(perceptual, target[rows, lead][:, None], valid[:, :1])(prediction[rows, lead][:, None])
    torch.testing.assert_close(some(prediction), direct)
    firsts = set()
    for _ in range(40):
        prediction.grad = None
        perceptual_error(perceptual, target[:1], valid[:1], n_frames=1)(prediction[:1]).backward()
        firsts.add(int((prediction.grad[0].abs().sum((-2, -1)) > 0).int().argmax()))
    assert firsts == {0, 1, 2}, "a batch of few samples must not always look at the first lead times"
    all_of_them = perceptual_error(perceptual, target, valid)(prediction)
    torch.testing.assert_close(perceptual_error(perceptual, target, valid, n_frames=9)(prediction), all_of_them)


def test_frames_have_the_distance_of_grey_images_and_missing_pixels_change_nothing() -> None:
    lpips = Lpips("squeeze", "random")
    prediction, target, valid = radar(7)
    found = frame_distance(lpips, prediction, target, torch.ones_like(valid))
    assert found.shape == (2, 2) and (found > 0).all()
    torch.testing.assert_close(found.flatten(), lpips(grey(prediction), grey(target)))
    assert (frame_distance(lpips, target, target, valid) == 0).all()
    wild = torch.where(valid, prediction, torch.tensor(0.9))
    assert torch.equal(frame_distance(lpips, wild, target, valid), frame_distance(lpips, prediction, target, valid))
