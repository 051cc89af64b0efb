"""Scores of whole frames against scikit-image, scipy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity
from torch import Tensor

from nbhelpers.stages.perceptual_unet import image_scores as scores

SHAPES = [(48, 48), (40, 57), (11, 30)]


def pair(seed: int, *, shape: tuple[int, ...] = (2, 3, 40, 57)) -> tuple[Tensor, Tensor]:
    """Two different smooth fields in [0, 1]."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 0, 0, 2, 2))
    fields = (fields - fields.min()) / (fields.max() - fields.min())
    one, other = torch.from_numpy(fields).float()
    return one, 0.7 * one + 0.3 * other


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_equals_scikit_image(shape: tuple[int, int]) -> None:
    forecast, observed = pair(0, shape=(2, 3, *shape))
    found = scores.ssim(forecast, observed)
    assert found.shape == (2, 3)
    for b, t in np.ndindex(2, 3):
        images = [image[b, t].double().numpy() for image in (forecast, observed)]
        # Its mean leaves out the border that the window does not fit into, as ours does.
        expected = structural_similarity(
            *images, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
        assert float(found[b, t]) == pytest.approx(expected, abs=1e-6)
    assert 0.3 < float(found.mean()) < 0.99


def test_ssim_is_one_for_equal_frames_dry_ones_included() -> None:
    forecast, _ = pair(1)
    forecast[0, 0] = 0.0
    torch.testing.assert_close(scores.ssim(forecast, forecast), torch.ones(2, 3).double())


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


def sine(height: int, width: int, *, rows: float = np.inf, columns: float = np.inf) -> Tensor:
    """A wave with the given wavelengths in pixels along each axis."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (0.5 + 0.4 * torch.sin(2 * np.pi * (y / rows + x / columns)))[None, None].float()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (90, 60), (61, 75)])
def test_a_sine_lands_in_the_bin_of_its_wavelength(height: int, width: int) -> None:
    side = min(height, width)
    for k in (4, 9, 20):
        along, diagonal = side / k, side / k * np.sqrt(2)
        for rows, columns in [(along, np.inf), (np.inf, along), (diagonal, diagonal)]:
            wave = sine(height, width, rows=rows, columns=columns)
            power = scores.power_by_wavelength(wave - wave.mean())[0, 0]
            assert len(power) == side // 2
            whole_waves = all(length / p % 1 == 0 for length, p in ((height, rows), (width, columns)))
            assert abs(int(power.argmax()) - (k - 1)) <= (0 if whole_waves else 1)
            near = power[max(k - 3, 0) : k + 2].sum()  # the Hann window leaks into the neighbouring bins only
            assert near > 0.97 * power.sum()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80), (33, 45), (40, 27)])
def test_the_spectrum_is_the_radial_average_of_the_whole_plane_and_keeps_the_energy(height: int, width: int) -> None:
    frames, _ = pair(4, shape=(1, 2, height, width))
    found = scores.power_by_wavelength(frames).double().numpy()
    window = np.outer(np.hanning(height), np.hanning(width))
    side = min(height, width)
    ky, kx = np.fft.fftfreq(height)[:, None] * side, np.fft.fftfreq(width)[None, :] * side
    ring = np.hypot(ky, kx).round().astype(int)
    for t in range(2):
        windowed = frames[0, t].double().numpy() * window
        power = np.abs(np.fft.fft2(windowed)) ** 2
        assert power.sum() == pytest.approx(height * width * (windowed**2).sum(), rel=1e-9)  # Parseval
        expected = [power[ring == k].mean() for k in range(1, side // 2 + 1)]
        np.testing.assert_allclose(found[0, t], expected, rtol=2e-3, atol=1e-6 * max(expected))
        rings = np.array([(ring == k).sum() for k in range(1, side // 2 + 1)])
        rest = power[(ring == 0) | (ring > side // 2)].sum()
        assert (found[0, t] * rings).sum() + rest == pytest.approx(power.sum(), rel=1e-5)


def test_fine_power_counts_wavelengths_up_to_its_limit() -> None:
    fine, edge, coarse = (
        scores.fine_power(sine(96, 96, columns=length) - 0.5, max_wavelength=8.0).item() for length in (6.0, 8.0, 16.0)
    )
    assert 0.3 < edge / fine < 3
    assert coarse < 1e-3 * fine


def test_blurring_lowers_the_fine_power_and_a_shift_does_not() -> None:
    rng = np.random.default_rng(5)
    frames = torch.from_numpy(ndimage.gaussian_filter(rng.random((1, 1, 96, 80)), (0, 0, 1, 1))).float()
    sharp = scores.fine_power(frames)
    ratios = [float(scores.fine_power(scores.gaussian_blur(frames, sigma)) / sharp) for sigma in (0.5, 1.0, 2.0)]
    assert 1 > ratios[0] > ratios[1] > ratios[2] > 0
    assert ratios[2] < 0.1
    assert float(scores.fine_power(frames.roll((3, 5), (-2, -1))) / sharp) == pytest.approx(1, abs=0.15)
