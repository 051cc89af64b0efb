"""Linear predictors: exact where the world is linear, of use where it is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator.initial import decaying_turbulence
from nbhelpers.stages.neural_operator.linear import fit_linear, fit_periodic, principal_modes
from nbhelpers.stages.neural_operator.solver import Flow, trajectory, velocity

Batches = list[tuple[Tensor, Tensor]]


def relative_l2(prediction: Tensor, truth: Tensor) -> float:
    return float(((prediction - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean())


def smooth_fields(n: int, size: tuple[int, int] = (18, 24), channels: int = 2, highest: int = 3) -> Tensor:
    """Random fields of the lowest wavenumbers, (n, channels, H, W)."""
    spectrum = torch.fft.rfft2(torch.randn(n, channels, *size, dtype=torch.float64))
    ky = torch.fft.fftfreq(size[0], 1 / size[0])[:, None].abs()
    kx = torch.fft.rfftfreq(size[1], 1 / size[1]).abs()
    return torch.fft.irfft2(spectrum * ((ky <= highest) & (kx <= highest)), s=size)


def advected_and_diffused(x: Tensor) -> Tensor:
    """Exact solution on the torus after one time step: the first channel drifts and spreads, and feeds the second."""
    ky = torch.fft.fftfreq(x.shape[-2], 1 / x.shape[-2])[:, None]
    kx = torch.fft.rfftfreq(x.shape[-1], 1 / x.shape[-1])
    step = torch.exp(-0.01 * (kx**2 + ky**2) + 1j * (0.3 * kx - 0.2 * ky))
    one, two = torch.fft.rfft2(x).unbind(1)
    return torch.fft.irfft2(torch.stack((step * one, 0.9 * two + 0.1 * step * one), 1), s=x.shape[-2:])


def pairs(n: int, batch: int = 32) -> Batches:
    x = smooth_fields(n)
    return list(zip(x.split(batch), advected_and_diffused(x).split(batch), strict=True))


def test_a_linear_equation_is_learnt_exactly() -> None:
    torch.manual_seed(0)
    train, test = pairs(320), pairs(16)[0]
    rank = 2 * 7 * 7  # real degrees of freedom of two channels with wavenumbers -3 … 3
    for predictor in (fit_periodic(train), fit_linear(train, rank=rank)):
        assert relative_l2(predictor(test[0]), test[1]) < 1e-5
        state, truth = test[0].float(), test[0]
        for _ in range(10):
            state, truth = predictor(state), advected_and_diffused(truth)
        assert state.dtype is torch.float32
        assert relative_l2(state.double(), truth) < 1e-4
    assert relative_l2(test[0], test[1]) > 0.2


def test_few_pairs_suffice_where_places_are_alike() -> None:
    torch.manual_seed(0)
    train, test = pairs(8), pairs(16)[0]
    assert relative_l2(fit_periodic(train)(test[0]), test[1]) < 1e-4


def test_the_rest_gets_a_gain_of_its_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 1, 6, 6, dtype=torch.float64) * 0.1
    x[:, 0, 0, 0] += torch.randn(400) * 5  # the one pattern of rank 1
    y = 0.7 * x
    y[:, 0, 0, 0] = -2 * x[:, 0, 0, 0]
    predictor = fit_linear([(x, y)], rank=1)
    assert predictor.rest == pytest.approx(0.7, abs=0.01)
    assert float(predictor.matrix) == pytest.approx(-2, abs=0.01)
    assert relative_l2(predictor(x), y) < 0.05


@pytest.mark.parametrize("batch", [5, 64, 300])
def test_patterns_in_batches_are_those_of_the_svd(batch: int) -> None:
    torch.manual_seed(0)
    strength = 0.8 ** torch.arange(60, dtype=torch.float64)
    frames = (torch.randn(300, 60, dtype=torch.float64) * strength) @ torch.linalg.qr(torch.randn(60, 60).double()).Q
    modes = principal_modes(frames.view(300, 1, 6, 10).split(batch), 8).flatten(1)
    torch.testing.assert_close(modes @ modes.T, torch.eye(8, dtype=torch.float64))
    best = torch.linalg.svd(frames).S[:8].square().sum()
    assert (frames @ modes.T).square().sum() > 0.9999 * best


def test_same_batches_same_predictor() -> None:
    torch.manual_seed(0)
    train = pairs(64)
    assert torch.equal(fit_linear(train, rank=20).matrix, fit_linear(train, rank=20).matrix)
    assert torch.equal(fit_periodic(train).matrices, fit_periodic(train).matrices)


def test_decaying_turbulence_is_predicted_better_than_by_persistence() -> None:
    box = (1.0, 1.0)
    vorticity = decaying_turbulence(range(48), (32, 32), box, u_rms=0.2, peak=2 * math.pi * 3).float()
    flow = Flow(viscosity=2e-3, lengths=box)
    frames = velocity(trajectory(vorticity, flow, dt=0.025, steps_per_frame=20, n_frames=6), box)
    x, y = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    train, (x_test, y_test) = [(x[:180], y[:180])], (x[180:], y[180:])
    persistence = relative_l2(x_test, y_test)
    reduced = relative_l2(fit_linear(train, rank=32)(x_test), y_test)
    periodic = relative_l2(fit_periodic(train)(x_test), y_test)
    assert periodic < 0.9 * reduced < 0.9 * persistence


def test_mistakes_are_named() -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="no pairs"):
        fit_periodic([])
    with pytest.raises(UserError, match="not a generator"):
        fit_linear((pair for pair in pairs(64)), rank=4)
    with pytest.raises(UserError, match=r"\(2, 1, 8, 8\) with \(2, 2, 8, 8\)"):
        fit_periodic([(torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, 8, 8))])
    with pytest.raises(UserError, match="200 patterns were asked for and the frames span 98"):
        fit_linear(pairs(320), rank=200)
    with pytest.raises(UserError, match="rank=0"):
        fit_linear(pairs(4), rank=0)
