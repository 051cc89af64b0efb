"""Blur and fractions skill score of frames against scipy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from nbhelpers.stages.perceptual_unet import image_scores as scores


def pair(seed: int, *, shape: tuple[int, ...] = (2, 3, 40, 57)) -> tuple[Tensor, Tensor]:
    """Two different smooth fields in [0, 1]."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 0, 0, 2, 2))
    fields = (fields - fields.min()) / (fields.max() - fields.min())
    one, other = torch.from_numpy(fields).float()
    return one, 0.7 * one + 0.3 * other


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_the_blur_is_scipys(sigma: float) -> None:
    frames, _ = pair(2)
    expected = ndimage.gaussian_filter(frames.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(scores.gaussian_blur(frames, sigma).numpy(), expected, atol=2e-6)


def naive_fss_sums(forecast: np.ndarray, observed: np.ndarray, size: int) -> tuple[float, float]:
    """Squares of ``size`` pixels around every pixel, nothing beyond the frame."""
    before, after = (size - 1) // 2, size // 2
    difference = total = 0.0
    for y, x in np.ndindex(forecast.shape):
        window = (slice(max(y - before, 0), y + after + 1), slice(max(x - before, 0), x + after + 1))
        a, b = forecast[window].sum() / size**2, observed[window].sum() / size**2
        difference, total = difference + (a - b) ** 2, total + a**2 + b**2
    return difference, total


@pytest.mark.parametrize("size", [1, 3, 4, 16])
def test_fss_equals_a_loop(size: int) -> None:
    forecast, observed = (frames > 0.55 for frames in pair(3, shape=(1, 2, 20, 27)))
    found = scores.fss_sums(forecast, observed, size)
    assert found.shape == (1, 2, 2)
    for t in range(2):
        expected = naive_fss_sums(forecast[0, t].numpy(), observed[0, t].numpy(), size)
        np.testing.assert_allclose(found[0, t].numpy(), expected, rtol=1e-5)


def test_fss_forgives_a_displacement_within_its_square() -> None:
    observed = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    observed[0, 0, 30:34, 30:34] = True
    forecast = observed.roll(5, dims=-1)
    fss = [float(1 - s[..., 0] / s[..., 1]) for s in (scores.fss_sums(forecast, observed, n) for n in (1, 4, 16))]
    assert fss[0] == 0.0 and fss[0] < fss[1] < 0.5 < 0.7 < fss[2] < 1
    perfect = scores.fss_sums(observed, observed, 4)[0, 0]
    assert perfect[0] == 0 and perfect[1] > 0
