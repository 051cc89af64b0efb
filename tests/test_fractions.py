"""Fractions skill score and radial spectra against other packages, plain loops and closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from scipy import ndimage
from scores.spatial import fss_2d_binary
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science import fractions
from nbhelpers.training.metrics import ratio


@pytest.fixture(scope="module", params=["made up", "climate model"])
def rain(request: pytest.FixtureRequest) -> Tensor:
    """(12, 28, 30) mm/day, a day and the next by turns."""
    if request.param == "made up":
        noise = torch.randn(12, 34, 36, generator=torch.Generator().manual_seed(0))
        return (20 * torch.nn.functional.avg_pool2d(noise, 7, 1)).clamp(min=0.0)
    real_data: Path = request.getfixturevalue("real_data")
    fields = torch.from_numpy(np.load(real_data / "rain/CORDEX_Iberia_pr.npz")["pr"])
    wettest = fields.mean((1, 2)).argsort(descending=True)[:6]
    return fields[[i for day in wettest.tolist() for i in (day, day - 1)]]


def fss(sums: Tensor) -> float:
    return 1 - float(sums[..., 0].sum() / sums[..., 1].sum())


def naive_fss_sums(forecast: np.ndarray, observed: np.ndarray, size: int) -> tuple[float, float]:
    """Squares of ``size`` pixels around every pixel, nothing beyond the field."""
    before, after = (size - 1) // 2, size // 2
    difference = total = 0.0
    for y, x in np.ndindex(forecast.shape):
        window = (slice(max(y - before, 0), y + after + 1), slice(max(x - before, 0), x + after + 1))
        a, b = forecast[window].sum() / size**2, observed[window].sum() / size**2
        difference, total = difference + (a - b) ** 2, total + a**2 + b**2
    return difference, total


@pytest.mark.parametrize("size", [1, 3, 4, 16])
def test_fss_equals_a_loop(rain: Tensor, size: int) -> None:
    forecast, observed = (rain > 8).reshape(1, 12, 28, 30)[:, :2], (rain > 8).reshape(1, 12, 28, 30)[:, 2:4]
    found = fractions.fss_sums(forecast, observed, size)
    single = fractions.fss_sums(forecast, observed, size, dtype=torch.float32)
    assert found.shape == (1, 2, 2) and single.dtype == torch.float32
    for t in range(2):
        expected = naive_fss_sums(forecast[0, t].numpy(), observed[0, t].numpy(), size)
        np.testing.assert_allclose(found[0, t].numpy(), expected, rtol=1e-12)
        np.testing.assert_allclose(single[0, t].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_fss_is_that_of_scores(rain: Tensor, size: int) -> None:
    # `scores` takes only squares within the field: it is given one with as much around it as ours sees beyond.
    pad = ((size - 1) // 2, size // 2)
    events = np.pad((rain >= 8).numpy(), ((0, 0), pad, pad))
    forecast, observed = (xarray.DataArray(events[i::2], dims=("day", "y", "x")) for i in (0, 1))
    expected = fss_2d_binary(forecast, observed, window_size=(size, size), spatial_dims=("y", "x"), reduce_dims="all")
    found = fractions.fss_sums(rain[0::2] >= 8, rain[1::2] >= 8, size)
    assert fss(found) == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_fss_is_that_of_pysteps(rain: Tensor, size: int) -> None:
    spatialscores = pytest.importorskip("pysteps.verification.spatialscores")
    expected = spatialscores.fss_init(8.0, size)
    for day in range(0, 12, 2):  # mirrored: an even square of pysteps has its longer half before the pixel, not after
        spatialscores.fss_accum(expected, rain[day].numpy()[::-1, ::-1], rain[day + 1].numpy()[::-1, ::-1])
    found = fractions.fss_sums(rain[0::2] >= 8, rain[1::2] >= 8, size)
    assert fss(found) == pytest.approx(spatialscores.fss_compute(expected), abs=1e-10)


def test_fss_leaves_out_what_was_not_measured(rain: Tensor) -> None:
    land = torch.ones(28, 30, dtype=torch.bool)
    land[:, 18:] = False
    found = fractions.fss_sums(rain[0::2] >= 8, rain[1::2] >= 8, 5, valid=land)
    wild = fractions.fss_sums((rain[0::2] >= 8) | ~land, rain[1::2] >= 8, 5, valid=land)
    dry = torch.where(land, rain, 0.0)
    assert torch.equal(found, wild) and torch.equal(found, fractions.fss_sums(dry[0::2] >= 8, dry[1::2] >= 8, 5))
    assert not torch.equal(found, fractions.fss_sums(rain[0::2] >= 8, rain[1::2] >= 8, 5))


def test_sums_over_fields_give_the_fss_of_all(rain: Tensor) -> None:
    sums = fractions.fss_sums(rain[0::2] >= 8, rain[1::2] >= 8, 5)
    windows = [ndimage.uniform_filter((rain.numpy()[i::2] >= 8) * 1.0, (0, 5, 5), mode="constant") for i in (0, 1)]
    expected = 1 - ((windows[0] - windows[1]) ** 2).sum() / (windows[0] ** 2 + windows[1] ** 2).sum()
    assert float(1 - ratio(sums.sum(0).numpy())) == pytest.approx(expected, abs=1e-12)


def test_fss_forgives_a_displacement_within_its_square() -> None:
    observed = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    observed[0, 0, 30:34, 30:34] = True
    forecast = observed.roll(5, dims=-1)
    found = [fss(fractions.fss_sums(forecast, observed, size)) for size in (1, 4, 16)]
    assert found[0] == 0.0 and found[0] < found[1] < 0.5 < 0.7 < found[2] < 1
    perfect = fractions.fss_sums(observed, observed, 4)[0, 0]
    assert perfect[0] == 0 and perfect[1] > 0
    with pytest.raises(UserError, match="0 pixels"):
        fractions.fss_sums(forecast, observed, 0)


def test_chance_has_the_fss_that_is_said() -> None:
    events = torch.rand(2, 400, 400, generator=torch.Generator().manual_seed(0)) < 0.1
    assert fss(fractions.fss_sums(events[0], events[1], 1)) == pytest.approx(0.1, abs=5e-3)


def by_hand(field: np.ndarray, *, stretch: bool = True) -> np.ndarray:
    """Mean |F|²/(HW) in rings of the whole plane, of waves along the long side (or along each side)."""
    power = np.abs(np.fft.fft2(field)) ** 2 / field.size
    side = max(field.shape)
    waves = [np.fft.fftfreq(n, 1 / n) * (side / n if stretch else 1) for n in field.shape]
    ring = np.floor(np.hypot(waves[0][:, None], waves[1][None]) + 0.5 + 1e-9)  # 8.5 occurs, in 28 x 30
    return np.array([power[ring == k].mean() for k in range((side + 1) // 2)])


@pytest.mark.parametrize("shape", [(28, 28), (27, 27), (28, 30), (25, 28), (26, 21)])
def test_the_spectrum_is_that_of_pysteps(rain: Tensor, shape: tuple[int, int]) -> None:
    fields = rain[:, : shape[0], : shape[1]].double()
    found = fractions.rapsd(fields)
    per_side = fractions.rapsd(fields, lengths=(1, 1))
    assert found.shape == per_side.shape == (12, len(fractions.rapsd_wavelengths(shape)))
    for field, mine, other in zip(fields.numpy(), found.numpy(), per_side.numpy(), strict=True):
        np.testing.assert_allclose(mine, by_hand(field), rtol=1e-10)
        np.testing.assert_allclose(other, by_hand(field, stretch=False), rtol=1e-10)
    spectral = pytest.importorskip("pysteps.utils.spectral")
    for field, other in zip(fields.numpy(), per_side.numpy(), strict=True):
        expected, frequency = spectral.rapsd(field, fft_method=np.fft, return_freq=True)
        np.testing.assert_allclose(other, expected, rtol=1e-10)
        np.testing.assert_allclose(1 / fractions.rapsd_wavelengths(shape), np.abs(frequency), atol=1e-15)


def test_a_wave_lies_at_its_wavelength_whatever_the_shape_of_the_field() -> None:
    x = torch.arange(60.0, dtype=torch.float64)
    for field in (torch.cos(2 * torch.pi * x / 12).expand(36, 60), torch.cos(2 * torch.pi * x[:36] / 12)[:, None]):
        field = field.expand(36, 60)
        power = fractions.rapsd(field)
        assert fractions.rapsd_wavelengths((36, 60))[power.argmax()] == 12 and (power > 1e-9).sum() == 1


def test_the_spectrum_takes_what_was_not_measured_as_zero(rain: Tensor) -> None:
    land = torch.ones(28, 30, dtype=torch.bool)
    land[:, 18:] = False
    filled = fractions.rapsd(torch.where(land, rain, 0.0))
    assert torch.equal(fractions.rapsd(torch.where(land, rain, torch.nan)), filled)
    assert torch.equal(fractions.rapsd(rain, valid=land), filled)
    assert not torch.equal(fractions.rapsd(rain), filled)
