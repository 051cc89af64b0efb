"""Scores of images of several bands against torchmetrics, scikit-image, numpy and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional import image as torchmetrics

from nbhelpers.core.errors import UserError
from nbhelpers.science import image_quality as quality

SHAPES = [(48, 48), (40, 57), (11, 30)]


def pair(seed: int, *, shape: tuple[int, ...] = (2, 3, 40, 57)) -> tuple[Tensor, Tensor]:
    """Two different smooth fields in [0, 1]."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 0, 0, 2, 2))
    fields = (fields - fields.min()) / (fields.max() - fields.min())
    one, other = torch.from_numpy(fields).float()
    return one, 0.7 * one + 0.3 * other


def blurred(images: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def random_pair() -> tuple[Tensor, Tensor]:
    """Reflectances of four bands of very different brightness, and a noisy prediction."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 4, 50, 44, generator=generator, dtype=torch.float64)
    truth = truth * torch.tensor([0.1, 0.2, 0.3, 0.9]).view(-1, 1, 1) + 0.01
    return truth + 0.05 * torch.randn(truth.shape, generator=generator), truth


@pytest.fixture(scope="module")
def real_pair(real_data: Path) -> tuple[Tensor, Tensor]:
    """(N, 4, 120, 120) reflectances of real patches, and the same after a blur."""
    images = []
    for patch in sorted(p for p in (real_data / "bigearthnet/BigEarthNet-S2").iterdir() if p.is_dir()):
        bands = []
        for band in ("B02", "B03", "B04", "B08"):
            with rasterio.open(patch / f"{patch.name}_{band}.tif") as file:
                bands.append(file.read(1).astype(np.float64) / 1e4)
        images.append(np.stack(bands))
    truth = torch.from_numpy(np.stack(images))
    return blurred(truth, 1.2), truth


@pytest.fixture(scope="module", params=["random", "real"])
def images(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    return random_pair() if request.param == "random" else request.getfixturevalue("real_pair")


# --- psnr and ssim ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_range", [1.0, 0.3])
@pytest.mark.parametrize("border", [0, 4])
def test_psnr_and_ssim_equal_the_libraries(images: tuple[Tensor, Tensor], data_range: float, border: int) -> None:
    prediction, truth = images
    psnr, ssim = (
        score(prediction, truth, data_range=data_range, border=border) for score in (quality.psnr, quality.ssim)
    )
    assert psnr.shape == ssim.shape == truth.shape[:2] and psnr.dtype == ssim.dtype == torch.float64
    height, width = truth.shape[-2:]
    for b, c in np.ndindex(*truth.shape[:2]):
        x, y = (image[b, c, border : height - border, border : width - border] for image in (prediction, truth))
        a, t = x.numpy(), y.numpy()
        assert float(psnr[b, c]) == pytest.approx(peak_signal_noise_ratio(t, a, data_range=data_range), abs=1e-6)
        theirs = torchmetrics.peak_signal_noise_ratio(x, y, data_range=data_range)
        assert float(psnr[b, c]) == pytest.approx(float(theirs), rel=1e-6)  # its logarithm is one in float32
        # Its mean leaves out the border that the window does not fit into, as ours does.
        expected = structural_similarity(
            t, a, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=data_range
        )
        assert float(ssim[b, c]) == pytest.approx(expected, abs=1e-6)
        _, full = torchmetrics.structural_similarity_index_measure(
            x[None, None], y[None, None], data_range=data_range, return_full_image=True
        )
        # Its mean has the border too, with the image mirrored there.
        assert float(ssim[b, c]) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-6)
    assert 10 < float(psnr.mean()) < 60 and 0.1 < float(ssim.mean()) < 0.999


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_of_any_shape_equals_scikit_image(shape: tuple[int, int]) -> None:
    prediction, truth = pair(0, shape=(2, 3, *shape))
    found = quality.ssim(prediction, truth, data_range=1.0)
    assert found.shape == (2, 3)
    for b, c in np.ndindex(2, 3):
        arrays = [image[b, c].double().numpy() for image in (prediction, truth)]
        expected = structural_similarity(
            *arrays, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
        assert float(found[b, c]) == pytest.approx(expected, abs=1e-6)
    assert 0.3 < float(found.mean()) < 0.99


def test_ssim_is_one_for_equal_images_flat_ones_included() -> None:
    image, _ = pair(1)
    image[0, 0] = 0.0
    torch.testing.assert_close(quality.ssim(image, image, data_range=1.0), torch.ones(2, 3).double())


def test_psnr_has_its_closed_forms() -> None:
    noise = torch.randn(1, 1, 1000, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std(correction=0)
    assert quality.psnr(torch.zeros_like(noise), noise, data_range=2).item() == pytest.approx(6.0206, abs=1e-4)
    truth = torch.rand(1, 1, 20, 20)
    assert quality.psnr(truth + 0.1, truth, data_range=1).item() == pytest.approx(20, abs=1e-5)
    assert quality.psnr(truth, truth, data_range=1).item() == math.inf


def test_units_do_not_matter_where_the_data_range_has_them_too() -> None:
    prediction, truth = random_pair()
    for score in (quality.psnr, quality.ssim):
        in_dn = score(prediction * 1e4, truth * 1e4, data_range=1e4)
        torch.testing.assert_close(in_dn, score(prediction, truth, data_range=1.0), rtol=1e-9, atol=0)
        assert (score(prediction, truth, data_range=2.0) > score(prediction, truth, data_range=1.0) + 1e-4).all()


SCORES: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: quality.psnr(x, y, data_range=1.0),
    lambda x, y: quality.ssim(x, y, data_range=1.0),
]


@pytest.mark.parametrize("score", SCORES)
def test_a_band_alone_has_the_score_it_has_among_others(score: Callable[[Tensor, Tensor], Tensor]) -> None:
    prediction, truth = random_pair()
    together = score(prediction, truth)
    assert together.shape == (3, 4) and together.dtype == torch.float64
    for b, c in np.ndindex(3, 4):
        alone = score(prediction[b : b + 1, c : c + 1], truth[b : b + 1, c : c + 1])
        assert alone.item() == pytest.approx(together[b, c].item(), rel=1e-12)
    spoilt = prediction.clone()
    spoilt[1, 2] = 5 * torch.rand(50, 44, generator=torch.Generator().manual_seed(1)).double()
    changed = score(spoilt, truth) != together
    assert changed.sum() == 1 and changed[1, 2]


@pytest.mark.parametrize(
    "score", [*SCORES, quality.spectral_angle, lambda x, y: quality.ergas(x, y, scale=4)], ids=lambda score: ""
)
def test_float32_images_are_scored_in_float64(score: Callable[[Tensor, Tensor], Tensor]) -> None:
    prediction, truth = (image.float() for image in random_pair())
    torch.testing.assert_close(score(prediction, truth), score(prediction.double(), truth.double()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["psnr", "ssim", "spectral_angle", "ergas"])
def test_the_border_has_no_say(name: str) -> None:
    keywords = {
        "psnr": {"data_range": 1.0},
        "ssim": {"data_range": 1.0},
        "spectral_angle": {},
        "ergas": {"scale": 4},
    }[name]
    score = getattr(quality, name)
    prediction, truth = random_pair()
    inner = (..., slice(4, -4), slice(4, -4))
    wild = torch.full_like(prediction, 9.0)
    wild[inner] = prediction[inner]
    found = score(wild, truth, border=4, **keywords)
    assert torch.equal(found, score(prediction, truth, border=4, **keywords))
    torch.testing.assert_close(found, score(prediction[inner], truth[inner], **keywords))
    assert not torch.equal(found, score(wild, truth, **keywords))


# --- all bands together -------------------------------------------------------------------------------------------


def test_the_spectral_angle_equals_torchmetrics(images: tuple[Tensor, Tensor]) -> None:
    prediction, truth = images
    theirs = torchmetrics.spectral_angle_mapper(prediction, truth, reduction="none")
    expected = torch.rad2deg(theirs).mean((-2, -1))
    found = quality.spectral_angle(prediction, truth)
    assert found.shape == (len(truth),)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert float(found.min()) > 0.1


@pytest.mark.parametrize("degrees", [0.0, 1e-9, 1e-4, 1.0, 60.0, 90.0, 179.9999, 180.0])
def test_the_spectral_angle_is_exact_at_any_size(degrees: float) -> None:
    truth = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 4, 5)
    turn = math.radians(degrees)
    other = torch.tensor([math.cos(turn), math.sin(turn), 0.0], dtype=torch.float64).view(1, 3, 1, 1).expand_as(truth)
    assert quality.spectral_angle(3 * other, 0.2 * truth).item() == pytest.approx(degrees, rel=1e-12, abs=1e-13)


def test_equal_spectra_have_no_angle_whatever_their_brightness(real_pair: tuple[Tensor, Tensor]) -> None:
    _, truth = real_pair
    assert float(quality.spectral_angle(0.37 * truth, truth).max()) < 1e-13


def test_black_pixels_are_at_right_angles_to_others_and_equal_to_black_ones() -> None:
    truth = torch.ones(1, 4, 2, 2)
    prediction = truth.clone()
    prediction[..., 0, 0] = 0
    assert quality.spectral_angle(prediction, truth).item() == pytest.approx(90 / 4)
    assert quality.spectral_angle(truth, prediction).item() == pytest.approx(90 / 4)
    assert quality.spectral_angle(prediction, prediction).item() == 0


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_ergas_equals_torchmetrics(images: tuple[Tensor, Tensor], scale: int) -> None:
    prediction, truth = images
    expected = torchmetrics.error_relative_global_dimensionless_synthesis(
        prediction, truth, ratio=scale, reduction="none"
    )
    found = quality.ergas(prediction, truth, scale=scale)
    assert found.shape == (len(truth),)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_ergas_has_its_closed_form() -> None:
    truth = torch.tensor([0.1, 0.4]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    prediction = truth * torch.tensor([1.3, 0.6]).view(1, 2, 1, 1)  # relative errors 0.3 and 0.4
    assert quality.ergas(prediction, truth, scale=4).item() == pytest.approx(25 * math.sqrt(0.125), rel=1e-6)


# --- power --------------------------------------------------------------------------------------------------------


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
            power = quality.power_by_wavelength(wave - wave.mean())[0, 0]
            assert len(power) == side // 2
            whole_waves = all(length / p % 1 == 0 for length, p in ((height, rows), (width, columns)))
            assert abs(int(power.argmax()) - (k - 1)) <= (0 if whole_waves else 1)
            near = power[max(k - 3, 0) : k + 2].sum()  # the Hann window leaks into the neighbouring bins only
            assert near > 0.97 * power.sum()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80), (33, 45), (40, 27)])
def test_the_spectrum_is_the_radial_average_of_the_whole_plane_and_keeps_the_energy(height: int, width: int) -> None:
    frames, _ = pair(4, shape=(1, 2, height, width))
    found = quality.power_by_wavelength(frames).double().numpy()
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
        quality.fine_power(sine(96, 96, columns=length) - 0.5, max_wavelength=8.0).item() for length in (6.0, 8.0, 16.0)
    )
    assert 0.3 < edge / fine < 3
    assert coarse < 1e-3 * fine


def test_blurring_lowers_the_fine_power_and_a_shift_does_not() -> None:
    rng = np.random.default_rng(5)
    frames = torch.from_numpy(ndimage.gaussian_filter(rng.random((1, 1, 96, 80)), (0, 0, 1, 1))).float()
    sharp = quality.fine_power(frames)
    ratios = [float(quality.fine_power(blurred(frames, sigma)) / sharp) for sigma in (0.5, 1.0, 2.0)]
    assert 1 > ratios[0] > ratios[1] > ratios[2] > 0
    assert ratios[2] < 0.1
    assert float(quality.fine_power(frames.roll((3, 5), (-2, -1))) / sharp) == pytest.approx(1, abs=0.15)


def test_fine_power_grows_with_the_square_of_amplitudes_of_waves_up_to_its_limit() -> None:
    fine, coarse = (sine(96, 96, columns=length).double() - 0.5 for length in (4.0, 24.0))
    mixed, without = fine + coarse, 0.1 * fine + coarse

    def ratio(limit: float) -> float:
        return float(
            quality.fine_power(without, max_wavelength=limit) / quality.fine_power(mixed, max_wavelength=limit)
        )

    assert ratio(8.0) == pytest.approx(0.01, rel=1e-2) and ratio(32.0) > 0.4


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1, 40, 57), (2, 3, 40, 56), (3, 40, 57)])
def test_images_of_other_shapes_are_refused_and_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"shapes .* expected twice the same .*: bring both to one grid"):
        quality.psnr(torch.zeros(shape), torch.zeros(2, 3, 40, 57), data_range=1.0)


def test_images_that_are_all_border_are_refused() -> None:
    small = torch.rand(1, 4, 16, 30)
    with pytest.raises(UserError, match="16 x 30 pixels without a border of 8 have less than 1 pixels each way"):
        quality.spectral_angle(small, small, border=8)
    with pytest.raises(UserError, match="border of 3 have less than 11 pixels"):
        quality.ssim(small, small, data_range=1.0, border=3)
