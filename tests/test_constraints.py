"""Projections: what they promise holds to rounding, and what fulfilled it already is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import solver
from nbhelpers.stages.neural_operator.constraints import keep_mean, leray

BOXES = [((16, 16), (1.0, 1.0)), ((12, 20), (2.0, 5.0)), ((15, 21), (6.0, 1.0)), ((16, 9), (1.0, 3.0))]


def divergence(field: Tensor, lengths: tuple[float, float]) -> Tensor:
    """By the FFT of one axis at a time; at Nyquist a real field has no derivative."""
    total = torch.zeros_like(field[..., 0, :, :])
    for channel, axis, length in ((0, -1, lengths[1]), (1, -2, lengths[0])):
        component = field[..., channel, :, :]
        size = component.shape[axis]
        k = 2j * math.pi / length * torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
        if size % 2 == 0:
            k[size // 2] = 0
        k = k if axis == -1 else k[:, None]
        total = total + torch.fft.ifft(torch.fft.fft(component, dim=axis) * k, dim=axis).real
    return total


def noise(size: tuple[int, int]) -> Tensor:
    torch.manual_seed(0)
    return 3 + torch.randn(2, 3, 2, *size, dtype=torch.float64)


@pytest.mark.parametrize(("size", "lengths"), BOXES)
def test_no_divergence_and_twice_is_once(size: tuple[int, int], lengths: tuple[float, float]) -> None:
    field = noise(size)
    projected = leray(field, lengths)
    assert divergence(field, lengths).abs().max() > 1
    assert divergence(projected, lengths).abs().max() <= 1e-10
    assert solver.divergence(projected, lengths).abs().max() <= 1e-10
    torch.testing.assert_close(leray(projected, lengths), projected, rtol=0, atol=1e-12)
    torch.testing.assert_close(projected.mean((-2, -1)), field.mean((-2, -1)))


@pytest.mark.parametrize(("size", "lengths"), BOXES)
def test_it_is_orthogonal(size: tuple[int, int], lengths: tuple[float, float]) -> None:
    """So it is the nearest divergence-free field: what is taken away has no part along what stays."""
    field = noise(size)
    projected = leray(field, lengths)
    assert abs(float(((field - projected) * projected).sum())) < 1e-9 * float(field.square().sum())
    assert 0.2 < (projected - projected.mean((-2, -1), True)).square().sum() / (field - 3).square().sum() < 0.8


@pytest.mark.parametrize(("size", "lengths"), BOXES)
def test_flows_pass_and_gradients_go(size: tuple[int, int], lengths: tuple[float, float]) -> None:
    flow = solver.velocity(noise(size)[:, :, 0], lengths) + 0.7
    torch.testing.assert_close(leray(flow, lengths), flow, rtol=0, atol=1e-12)
    shear = torch.zeros(2, *size, dtype=torch.float64)
    shear[0] = (-1.0) ** torch.arange(size[0])[:, None]  # u alternates along y: the highest wave, and no divergence
    torch.testing.assert_close(leray(shear, lengths), shear, rtol=0, atol=1e-12)
    y, x = solver.grid(size, lengths, flow)
    angle = 2 * math.pi * (x / lengths[1] + 2 * y / lengths[0])
    gradient = torch.stack((torch.cos(angle) / lengths[1], 2 * torch.cos(angle) / lengths[0]))
    assert leray(gradient, lengths).abs().max() < 1e-12


def test_u_lies_along_the_columns() -> None:
    rows, columns = torch.arange(16)[:, None] * torch.ones(16), torch.ones(16, 1) * torch.arange(16)
    zero, wave = torch.zeros(16, 16), 2 * math.pi / 16
    sheared = torch.stack((torch.sin(wave * rows), zero))
    squeezed = torch.stack((torch.sin(wave * columns), zero))
    torch.testing.assert_close(leray(sheared, (1.0, 1.0)), sheared, rtol=0, atol=1e-6)
    assert leray(squeezed, (1.0, 1.0)).abs().max() < 1e-6


def test_gradients_are_right() -> None:
    field = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: leray(f, (1.0, 2.0)), field)


def test_half_precision_is_computed_in_float32() -> None:
    field = noise((16, 16)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        projected = leray(field, (1.0, 1.0))
    assert projected.dtype is torch.bfloat16
    assert torch.equal(projected, leray(field.float(), (1.0, 1.0)).bfloat16())


def test_the_mean_of_the_reference() -> None:
    torch.manual_seed(0)
    prediction, reference = torch.randn(2, 3, 8, 9), torch.randn(2, 3, 8, 9) + torch.arange(3)[:, None, None]
    kept = keep_mean(prediction, reference)
    torch.testing.assert_close(kept.mean((-2, -1)), reference.mean((-2, -1)))
    spread = (-2, -1)
    torch.testing.assert_close(
        kept - kept.mean(spread, True), prediction - prediction.mean(spread, True), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(keep_mean(kept, reference), kept)
    assert keep_mean(prediction.bfloat16(), reference).dtype is torch.bfloat16


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"\(1, 3, 8, 8\).*u, v"):
        leray(torch.zeros(1, 3, 8, 8), (1.0, 1.0))
    with pytest.raises(UserError, match="above 0"):
        leray(torch.zeros(2, 8, 8), (0.0, 1.0))
    with pytest.raises(UserError, match="same channels"):
        keep_mean(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 8))
