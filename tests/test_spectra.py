"""Shells of wavenumber against a loop over all modes, Parseval, and plane waves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science import spectra

BOXES = [
    ((16, 16), None),
    ((32, 16), None),
    ((15, 21), None),
    ((12, 9), (2 * math.pi, 1.0)),
    ((9, 12), (1.0, 3.0)),
    ((8, 10, 7), None),
    ((6, 9, 8), (1.0, 2.0, 0.7)),
]


def by_loop(field: np.ndarray, lengths: tuple[float, ...] | None, wavelength: float, n_shells: int) -> np.ndarray:
    """Mode by mode over the whole plane of wavenumbers."""
    sums = np.zeros(n_shells + 2)
    modes = np.fft.fftn(field) / field.size
    for index in np.ndindex(field.shape):
        squares = 0.0
        for i, points, length in zip(index, field.shape, lengths or field.shape, strict=True):
            waves = i if 2 * i <= points else i - points
            squares += (waves * wavelength / length) ** 2
        shell = math.floor(math.sqrt(squares) + 0.5 + 1e-9)
        sums[min(shell, n_shells + 1)] += abs(modes[index]) ** 2
    return sums


@pytest.mark.parametrize(("shape", "lengths"), BOXES)
def test_shells_equal_a_loop_over_all_modes(shape: tuple[int, ...], lengths: tuple[float, ...] | None) -> None:
    field = torch.randn(2, 3, *shape, dtype=torch.float64) + 0.5
    found = spectra.shell_energy(field, dims=len(shape), lengths=lengths)
    n_shells = spectra.resolved_shells(shape, lengths=lengths)
    assert found.shape == (2, 3, n_shells + 2)
    for b, c in np.ndindex(2, 3):
        expected = by_loop(field[b, c].numpy(), lengths, max(lengths or shape), n_shells)
        np.testing.assert_allclose(found[b, c].numpy(), expected, rtol=1e-10)


def test_the_wavelength_and_the_number_of_shells_can_be_set() -> None:
    field = torch.randn(20, 30, dtype=torch.float64)
    found = spectra.shell_energy(field, wavelength=20, n_shells=10)
    np.testing.assert_allclose(found.numpy(), by_loop(field.numpy(), None, 20, 10), rtol=1e-10)
    ones = by_loop(np.eye(1, 600).reshape(20, 30) * 600, None, 20, 10)  # a peak has equal energy in all modes
    assert spectra.modes_per_shell((20, 30), wavelength=20, n_shells=10).tolist() == pytest.approx(ones)
    assert spectra.modes_per_shell((20, 30)).sum() == 600


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("shape", "lengths"), [*BOXES, ((64, 64), None), ((128, 96), (1.0, 4.0))])
def test_parseval(
    shape: tuple[int, ...], lengths: tuple[float, ...] | None, dtype: torch.dtype, tolerance: float
) -> None:
    field = (torch.randn(4, *shape, dtype=torch.float64) + 1).to(dtype)
    total = spectra.shell_energy(field, dims=len(shape), lengths=lengths).double().sum(-1)
    expected = field.double().square().flatten(1).mean(1)
    torch.testing.assert_close(total, expected, rtol=tolerance, atol=0)


def test_parseval_of_a_tapered_field_and_its_energy_correction() -> None:
    torch.manual_seed(0)
    field = torch.randn(200, 32, 40, dtype=torch.float64)
    found = spectra.shell_energy(field, window="hann").sum(-1)
    taper = spectra.hann((32, 40))
    expected = (field * taper).square().mean((1, 2)) / taper.square().mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.02)  # white noise keeps its energy


def wave(shape: tuple[int, ...], waves: tuple[int, ...]) -> Tensor:
    axes = [torch.arange(points, dtype=torch.float64) * n / points for points, n in zip(shape, waves, strict=True)]
    phase = torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)
    return math.sqrt(2) * torch.cos(2 * math.pi * phase + 0.3)


@pytest.mark.parametrize("lengths", [None, (1.0, 1.0), (2.0, 5.0)])
@pytest.mark.parametrize("shape", [(128, 64), (63, 45), (64, 64)])
def test_a_plane_wave_lands_in_the_shell_of_its_wavenumber(
    shape: tuple[int, int], lengths: tuple[float, float] | None
) -> None:
    box = lengths or shape
    n_shells = spectra.resolved_shells(shape, lengths=lengths)
    for waves in itertools.product((-9, 0, 4), (0, 1, 7)):
        radius = math.hypot(*(n * max(box) / length for n, length in zip(waves, box, strict=True)))
        expected = torch.zeros(n_shells + 2, dtype=torch.float64)
        expected[min(math.floor(radius + 0.5), n_shells + 1)] = 2.0 if waves == (0, 0) else 1.0
        if waves == (0, 0):
            expected *= math.cos(0.3) ** 2
        found = spectra.shell_energy(wave(shape, waves), lengths=lengths)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(
    ("shape", "lengths", "expected"),
    [
        ((64, 64), None, 21),
        ((96, 96), None, 32),
        ((128, 128), (1.0, 1.0), 42),
        ((128, 64), (2.0, 1.0), 42),  # square cells
        ((128, 64), (1.0, 1.0), 21),  # the coarser side decides
        ((64, 64), (1.0, 4.0), 21),  # cells four times as wide as high
        ((64, 64, 32), (1.0, 1.0, 1.0), 10),
    ],
)
def test_the_resolved_cut_off_is_two_thirds_of_the_smallest_nyquist(
    shape: tuple[int, ...], lengths: tuple[float, ...] | None, expected: int
) -> None:
    assert spectra.resolved_shells(shape, lengths=lengths) == expected
    smallest = min(n / 2 / length for n, length in zip(shape, lengths or shape, strict=True))
    assert expected == math.floor(2 / 3 * smallest * max(lengths or shape) + 1e-9)


def test_no_resolved_shell_is_empty() -> None:
    for shape, lengths in [((64, 64), (1.0, 7.3)), ((45, 32), (2.0, 1.0)), ((9, 9, 30), None)]:
        assert (spectra.modes_per_shell(shape, lengths=lengths) > 0).all()


def test_bands_are_thirds() -> None:
    assert spectra.bands(21) == {"low": slice(0, 7), "mid": slice(7, 14), "high": slice(14, 21)}
    covered = [i for band in spectra.bands(10).values() for i in range(10)[band]]
    assert covered == list(range(10))


@pytest.mark.parametrize("shape", [(6, 8), (7, 8), (8, 7), (5, 4, 6)])
@pytest.mark.parametrize("window", ["none", "hann"])
def test_the_gradient_is_that_of_finite_differences(shape: tuple[int, ...], window: spectra.Window) -> None:
    field = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f: spectra.shell_energy(f, dims=len(shape), lengths=range(1, len(shape) + 1), window=window), field
    )


def test_a_window_lowers_the_leakage_of_a_ramp() -> None:
    ramp = torch.linspace(-1, 1, 64)[:, None].expand(64, 64)
    plain, tapered = (spectra.shell_energy(ramp, window=window) for window in ("none", "hann"))
    assert tapered[8:-1].sum() / tapered.sum() < 0.01 * plain[8:-1].sum() / plain.sum()


def test_autocast_leaves_the_spectrum_in_float32() -> None:
    field = torch.randn(3, 32, 32)
    expected = spectra.shell_energy(field)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = spectra.shell_energy(field)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert spectra.shell_energy(field.bfloat16()).dtype == torch.float32


def test_shells_first_made_in_inference_serve_training() -> None:
    field = torch.randn(22, 26)
    with torch.inference_mode():
        spectra.shell_energy(field)
    leaf = field.clone().requires_grad_()
    spectra.shell_energy(leaf)[1:-1].sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0


def test_the_derivative_of_a_wave_is_exact_and_the_nyquist_wave_has_none() -> None:
    ky, kx = spectra.wavenumbers((8, 12), lengths=(2.0, 1.0), derivative=True)
    assert ky.shape == (8, 1) and kx.shape == (1, 7)
    assert ky.flatten().tolist() == [0, 1, 2, 3, 0, -3, -2, -1]
    assert kx.flatten().tolist() == [0, 2, 4, 6, 8, 10, 0]
    assert spectra.wavenumbers((8, 7))[0].flatten()[4].abs() == 4


def test_rounding_does_not_move_a_wave_on_the_edge_of_two_shells() -> None:
    assert 0.3 / 0.2 < 3.0 / 2.0  # so that one wave along the second side has a wavenumber below 1.5, or 1.5
    edge = wave((16, 16), (0, 1))
    torch.testing.assert_close(
        spectra.shell_energy(edge, lengths=(0.3, 0.2)), spectra.shell_energy(edge, lengths=(3, 2))
    )
    assert spectra.shell_energy(edge, lengths=(0.3, 0.2))[2] == pytest.approx(1.0)


def test_an_unknown_window_is_named() -> None:
    with pytest.raises(UserError, match="'Hann'.*one of none, hann"):
        spectra.shell_energy(torch.zeros(8, 8), window="Hann")


@pytest.mark.parametrize("lengths", [(1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, math.inf), (1.0, 1.0, 1.0)])
def test_lengths_that_are_no_box_are_named(lengths: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="one length per space dimension"):
        spectra.shell_energy(torch.zeros(8, 8), lengths=lengths)


def test_a_field_too_small_for_a_shell_is_named() -> None:
    with pytest.raises(UserError, match="2 x 2 points resolves no shell"):
        spectra.resolved_shells((2, 2))
