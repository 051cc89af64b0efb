"""Losses of the operator stage: closed forms, invariances, gradients, and fields at the edge of float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science import spectra
from nbhelpers.stages.neural_operator.field_losses import divergence_penalty, field_error, silent_channels, sobolev
from nbhelpers.stages.neural_operator.spectral_losses import (
    lsd,
    relative_log,
    shell_log_errors,
    spectral_power,
    spectrum_error,
    spectrum_note,
)

LOSSES: dict[str, Callable[..., Tensor]] = {
    "field_error": field_error,
    "sobolev": sobolev,
    "spectrum_error": spectrum_error,
    "tapered_spectrum_error": partial(spectrum_error, window="hann"),
    "relative_log": relative_log,
    "spectral_power": spectral_power,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def turbulence(
    seed: int, shape: tuple[int, ...] = (2, 3, 2, 64, 64), *, slope: float = 3.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random phases and energies that fall as k^-slope; every channel has variance 1."""
    generator = torch.Generator().manual_seed(seed)
    dims = len(shape) - 3
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    radius = spectra.squared_wavenumber(shape[3:]).sqrt()
    axes = tuple(range(-dims, 0))
    modes = torch.fft.rfftn(noise, dim=axes) * radius.clamp(min=1) ** (-(slope + dims - 1) / 2) * (radius > 0)
    field = torch.fft.irfftn(modes, s=shape[3:], dim=axes)
    return (field / field.std(axes, keepdim=True)).to(dtype)


def other_phases(field: Tensor, seed: int) -> Tensor:
    """Every Fourier mode turned by its own random angle: those of real noise, so that the field stays real."""
    noise = torch.fft.rfft2(torch.randn(field.shape, generator=torch.Generator().manual_seed(seed)).to(field))
    return torch.fft.irfft2(torch.fft.rfft2(field) * noise / noise.abs(), s=field.shape[-2:])


# field error


def test_a_uniform_relative_error_is_squared() -> None:
    target = turbulence(0) * torch.tensor([1.0, 30.0]).view(1, 1, 2, 1, 1)
    assert float(field_error(1.1 * target, target)) == pytest.approx(0.01, rel=1e-5)
    assert float(sobolev(1.1 * target, target, order=2)) == pytest.approx(0.01, rel=1e-5)


def test_field_error_is_relative_to_each_frame_and_channel() -> None:
    target = turbulence(1, (2, 2, 3, 16, 16), dtype=torch.float64) * torch.rand(2, 2, 3, 1, 1, dtype=torch.float64)
    prediction = turbulence(2, (2, 2, 3, 16, 16), dtype=torch.float64)
    values = [
        ((prediction - target)[index] ** 2).mean() / (target[index] ** 2).mean()
        for index in [(b, t, c) for b in range(2) for t in range(2) for c in range(3)]
    ]
    torch.testing.assert_close(field_error(prediction, target), torch.stack(values).mean())


def test_what_stands_in_obstacles_does_not_count() -> None:
    target, prediction = turbulence(3), turbulence(4)
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    valid[0, 10:20, 30:50] = False
    spoilt = [torch.where(valid[:, None, None], field, math.nan) for field in (prediction, target)]
    expected = torch.stack(
        [
            ((p - y)[..., v].square().mean(-1) / y[..., v].square().mean(-1)).mean()
            for p, y, v in zip(prediction, target, valid, strict=True)
        ]
    ).mean()
    torch.testing.assert_close(field_error(*spoilt, valid=valid), expected)
    kept = [torch.where(valid[:, None, None], field, 5.0) for field in (prediction, target)]
    for loss in (spectrum_error, relative_log, spectral_power):
        leaf = spoilt[0].clone().requires_grad_()
        value = loss(leaf, spoilt[1], valid=valid)
        torch.testing.assert_close(value, loss(*kept, valid=valid))
        value.backward()
        assert leaf.grad is not None and leaf.grad.isfinite().all() and (leaf.grad[0, ..., ~valid[0]] == 0).all()


def test_a_sample_that_is_all_obstacle_is_left_out() -> None:
    target, prediction = turbulence(3), turbulence(4)
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    valid[1] = False
    for loss in (field_error, spectrum_error):
        alone = loss(prediction[:1], target[:1], valid=valid[:1])
        torch.testing.assert_close(loss(prediction, target, valid=valid), alone)


@pytest.mark.parametrize("loss", [field_error, sobolev, spectrum_error, relative_log, spectral_power])
def test_silent_channels_are_named_and_left_out(loss: Callable[..., Tensor]) -> None:
    target, prediction = turbulence(5), turbulence(6)
    target[0, 1, 1] = 1e-8 * torch.randn(64, 64)  # a constant whose mean was removed leaves rounding
    target[1, :, 0] = 0.0
    silent = silent_channels(target)
    assert silent.nonzero().tolist() == [[0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 2, 0]]
    wild = prediction.clone()
    wild[silent] = 1e6 * torch.randn(4, 64, 64)
    torch.testing.assert_close(loss(wild, target), loss(prediction, target), rtol=0, atol=0)
    loud = [
        loss(*(field[b, t, c].view(1, 1, 1, 64, 64) for field in (prediction, target)))
        for b, t, c in (~silent).nonzero()
    ]
    torch.testing.assert_close(loss(prediction, target), torch.stack(loud).mean())


def test_a_constant_channel_has_a_field_error_and_no_spectrum() -> None:
    target = turbulence(5)
    target[:, :, 1] = 300.0 + 1e-4 * torch.randn(2, 3, 64, 64)  # as float32 rounds such values
    prediction = 1.1 * target
    assert float(field_error(prediction, target)) == pytest.approx(0.01, rel=1e-5)
    _, counted = shell_log_errors(prediction, target)
    assert counted[:, :, 0].all() and not counted[:, :, 1].any()
    assert float(spectrum_error(prediction, target)) == pytest.approx((2 * math.log(1.1)) ** 2, rel=1e-4)


# spectrum error


@pytest.mark.parametrize("gain", [0.5, 1.1, 30.0])
def test_a_gain_has_a_closed_form_in_every_band(gain: float) -> None:
    target = turbulence(7, dtype=torch.float64)
    expected = (2 * math.log(gain)) ** 2
    for band in (None, *spectra.BANDS):
        assert float(spectrum_error(gain * target, target, band=band)) == pytest.approx(expected, rel=1e-12)
    in_db = lsd(spectrum_error(gain * target, target))
    assert float(in_db) == pytest.approx(abs(20 * math.log10(gain)), rel=1e-12)
    assert float(spectral_power(gain * target, target)) == pytest.approx((1 - gain**2) ** 2, rel=0.05)  # less the floor


def test_spectrum_error_equals_its_definition() -> None:
    prediction, target = turbulence(8, dtype=torch.float64), turbulence(9, slope=4.0, dtype=torch.float64)
    guess, truth = (spectra.shell_energy(field)[..., 1:-1] for field in (prediction, target))
    squares = (guess / truth).log().square()
    torch.testing.assert_close(spectrum_error(prediction, target), squares.mean())
    found, counted = shell_log_errors(prediction, target)
    torch.testing.assert_close(found, squares)
    assert counted.all() and found.shape == (2, 3, 2, 21)
    relative = squares.sum(-1) / truth.log().square().sum(-1)
    torch.testing.assert_close(relative_log(prediction, target), relative.mean())
    floor = 1e-7 * target.var((-1, -2), correction=0)[..., None]
    power = (1 - (guess + floor) / (truth + floor)).square().mean()
    torch.testing.assert_close(spectral_power(prediction, target), power)


def test_the_bands_add_up_to_the_whole() -> None:
    prediction, target = turbulence(8), turbulence(9, slope=4.0)
    bands = torch.stack([spectrum_error(prediction, target, band=band) for band in spectra.BANDS])
    torch.testing.assert_close(bands.mean(), spectrum_error(prediction, target))
    assert bands[2] > bands[0]
    found, _ = shell_log_errors(prediction, target, band="mid")
    torch.testing.assert_close(found, shell_log_errors(prediction, target)[0][..., 7:14])


@pytest.mark.parametrize("window", ["none", "hann"])
def test_units_do_not_change_the_spectrum_error_and_do_change_the_older_one(window: spectra.Window) -> None:
    prediction, target = turbulence(8), turbulence(9, slope=4.0)
    found = spectrum_error(prediction, target, window=window)
    for scaled in (1000.0, 1e-3):
        other = spectrum_error(scaled * prediction, scaled * target, window=window)
        torch.testing.assert_close(other, found, rtol=1e-4, atol=0)
    offset = spectrum_error(prediction + 3, target - 5, window=window)
    torch.testing.assert_close(offset, found, rtol=1e-3, atol=0)
    older = [float(relative_log(scale * prediction, scale * target, window=window)) for scale in (1.0, 1000.0)]
    assert max(older) > 2 * min(older)


def test_lengths_reach_the_shells() -> None:
    target = turbulence(10, (1, 1, 1, 64, 32), dtype=torch.float64)
    radius = spectra.squared_wavenumber((64, 32), lengths=(1.0, 1.0)).sqrt()
    modes = torch.fft.rfft2(target)
    modes[..., radius.round() == 6] *= 2
    prediction = torch.fft.irfft2(modes, s=(64, 32))
    squares, _ = shell_log_errors(prediction, target, lengths=(1.0, 1.0))
    expected = torch.zeros(1, 1, 1, 10, dtype=torch.float64)
    expected[..., 5] = math.log(4.0) ** 2
    torch.testing.assert_close(squares, expected)


def test_channels_do_not_cancel() -> None:
    u, wrong = turbulence(11, (2, 2, 1, 64, 64)), turbulence(12, (2, 2, 1, 64, 64), slope=5.0)
    found = spectrum_error(torch.cat([wrong, -wrong], 2), torch.cat([u, -u], 2))
    torch.testing.assert_close(found, spectrum_error(wrong, u))
    assert found > 1


def test_phases_do_not_count() -> None:
    target = turbulence(13)
    shifted, scrambled = target.roll((5, 17), (-2, -1)), other_phases(target, 1)
    for prediction in (shifted, scrambled):
        assert float(field_error(prediction, target)) > 0.5
        assert float(spectrum_error(prediction, target)) < 1e-6


def test_what_lies_below_the_floor_counts_as_the_floor() -> None:
    smooth = turbulence(14, dtype=torch.float64)
    modes = torch.fft.rfft2(smooth)
    radius = spectra.squared_wavenumber((64, 64)).sqrt()
    fine = torch.where(modes == 0, 0, modes / modes.abs()) * (radius.round() > 14)
    # Both leave less than 1e-7 of the total beyond shell 14.
    dust, more_dust = (torch.fft.irfft2(modes * (radius.round() <= 14) + level * fine) for level in (1e-3, 1e-2))
    assert float(spectrum_error(more_dust, dust)) == pytest.approx(0.0, abs=1e-12)
    total = smooth.var((-1, -2), correction=0)[..., None]
    truth = spectra.shell_energy(smooth)[..., 15:22]
    squares, _ = shell_log_errors(dust, smooth, band="high")
    torch.testing.assert_close(squares, (truth / (1e-7 * total)).log().square(), rtol=1e-6, atol=0)
    leaf = dust.clone().requires_grad_()
    spectrum_error(leaf, smooth, band="high").backward()
    with torch.no_grad():  # the way down the gradient lifts the missing shells
        energy, lifted = (spectra.shell_energy(f)[..., 15:22] for f in (leaf, leaf - 1e-12 * leaf.grad))
    assert (lifted > energy).all()


def test_a_window_sees_the_small_scales_beneath_a_ramp() -> None:
    ramp = 3 * torch.linspace(-1, 1, 64)[:, None].expand(2, 3, 2, 64, 64)
    rough, smooth = turbulence(15, slope=2.0), turbulence(15, slope=3.0)
    expected = float(spectrum_error(smooth, rough, window="hann", band="high"))
    plain, tapered = (
        float(spectrum_error(ramp + smooth, ramp + rough, window=window, band="high")) for window in ("none", "hann")
    )
    assert tapered == pytest.approx(expected, rel=0.05)
    assert plain < 0.5 * expected


def test_volumes() -> None:
    shape = (1, 2, 2, 12, 15, 18)
    target, prediction = turbulence(16, shape, dtype=torch.float64), turbulence(17, shape, dtype=torch.float64)
    gain = spectrum_error(1.5 * target, target, dims=3, lengths=(1.0, 2.0, 3.0))
    assert float(gain) == pytest.approx((2 * math.log(1.5)) ** 2, rel=1e-12)
    assert float(field_error(1.1 * target, target, dims=3)) == pytest.approx(0.01)
    assert float(spectrum_error(target.roll((1, 2, 3), (-3, -2, -1)), target, dims=3)) == pytest.approx(0, abs=1e-12)
    flat = partial(torch.flatten, start_dim=-3)
    expected = ((flat(prediction) - flat(target)).square().mean(-1) / flat(target).square().mean(-1)).mean()
    torch.testing.assert_close(field_error(prediction, target, dims=3), expected)
    valid = torch.ones(1, 12, 15, 18, dtype=torch.bool)
    torch.testing.assert_close(field_error(prediction, target, dims=3, valid=valid), expected)
    assert spectrum_error(prediction, target, dims=3, valid=valid, window="hann").isfinite()


# Sobolev and divergence


def test_sobolev_of_order_0_is_the_field_error_and_of_order_1_has_the_gradient() -> None:
    target, prediction = turbulence(18, dtype=torch.float64), turbulence(19, dtype=torch.float64)
    torch.testing.assert_close(sobolev(prediction, target, order=0), field_error(prediction, target))

    def norm(field: Tensor) -> Tensor:
        gradients = [
            torch.fft.ifft(
                torch.fft.fft(field, dim=dim) * (1j * torch.fft.fftfreq(64, 1 / 64).view(-1, *[1] * (-1 - dim))),
                dim=dim,
            )
            for dim in (-2, -1)
        ]
        return (field.square() + sum(gradient.abs().square() for gradient in gradients)).mean((-1, -2))

    expected = (norm(prediction - target) / norm(target)).mean()
    torch.testing.assert_close(sobolev(prediction, target), expected)


@pytest.mark.parametrize("lengths", [None, (2.0, 1.0)])
@pytest.mark.parametrize("shape", [(64, 64), (48, 33)])
def test_divergence_of_a_curl_is_0_and_of_a_gradient_is_1(
    shape: tuple[int, int], lengths: tuple[float, float] | None
) -> None:
    potential = turbulence(20, (2, 3, 1, *shape), slope=6.0, dtype=torch.float64)
    ky, kx = spectra.wavenumbers(shape, lengths=lengths, derivative=True)
    modes = torch.fft.rfft2(potential)
    along_y, along_x = (torch.fft.irfft2(1j * k * modes, s=shape) for k in (ky, kx))
    curl, gradient = torch.cat([along_y, -along_x], 2), torch.cat([along_x, along_y], 2)
    assert float(divergence_penalty(curl, lengths=lengths)) == pytest.approx(0, abs=1e-20)
    assert float(divergence_penalty(gradient, lengths=lengths)) == pytest.approx(1, rel=1e-9)
    assert float(divergence_penalty(torch.cat([along_y, along_x], 2), lengths=lengths)) > 0.1
    half = divergence_penalty(1e6 * (curl + gradient), lengths=lengths)
    assert float(half) == pytest.approx(0.5, abs=0.05)


def test_divergence_of_a_volume() -> None:
    potential = turbulence(21, (1, 1, 1, 8, 10, 12), dtype=torch.float64)
    along_z, along_y, along_x = (
        torch.fft.irfftn(1j * k * torch.fft.rfftn(potential, dim=(-3, -2, -1)), s=(8, 10, 12), dim=(-3, -2, -1))
        for k in spectra.wavenumbers((8, 10, 12), derivative=True)
    )
    zero = torch.zeros_like(along_x)
    assert float(divergence_penalty(torch.cat([along_y, -along_x, zero], 2), dims=3)) == pytest.approx(0, abs=1e-20)
    assert float(divergence_penalty(torch.cat([along_x, along_y, along_z], 2), dims=3)) == pytest.approx(1)


# all of them


@every_loss
def test_gradients_are_those_of_finite_differences(loss: Callable[..., Tensor]) -> None:
    target = turbulence(22, (1, 1, 2, 7, 10), dtype=torch.float64)
    prediction = turbulence(23, (1, 1, 2, 7, 10), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, target), prediction)


def test_the_gradient_of_the_divergence_is_that_of_finite_differences() -> None:
    velocity = turbulence(24, (1, 2, 2, 6, 9), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(divergence_penalty, velocity)


FRAMES: dict[str, Tensor] = {
    "zero": torch.zeros(1, 2, 2, 32, 32),
    "constant": torch.full((1, 2, 2, 32, 32), 0.37),
    "huge": 1e18 * turbulence(25, (1, 2, 2, 32, 32)),
    "huge constant": torch.full((1, 2, 2, 32, 32), 1e18),
    "usual": turbulence(26, (1, 2, 2, 32, 32)),
    "tiny": 1e-5 * turbulence(27, (1, 2, 2, 32, 32)),
}


# A huge error of a tiny field, 1e46, is beyond float32.
PAIRS = [(guess, truth) for guess in FRAMES for truth in FRAMES if not ("huge" in guess and truth == "tiny")]


@pytest.mark.parametrize(("guess", "truth"), PAIRS)
@every_loss
def test_extreme_fields_give_finite_values_and_gradients(loss: Callable[..., Tensor], guess: str, truth: str) -> None:
    prediction = FRAMES[guess].clone().requires_grad_()
    value = loss(prediction, FRAMES[truth])
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    value.backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()


def test_high_orders_of_huge_fields_are_finite() -> None:
    target, prediction = FRAMES["usual"], turbulence(31, (1, 2, 2, 32, 32))
    expected = sobolev(prediction, target, order=4)
    torch.testing.assert_close(sobolev(1e18 * prediction, 1e18 * target, order=4), expected)


def test_the_divergence_does_not_change_with_the_scale() -> None:
    velocity = torch.randn(1, 2, 2, 64, 64)
    torch.testing.assert_close(divergence_penalty(1e18 * velocity), divergence_penalty(velocity))
    torch.testing.assert_close(divergence_penalty(1e-9 * velocity), divergence_penalty(velocity))


def test_the_older_form_is_finite_where_all_logarithms_are_0() -> None:
    x = torch.arange(8, dtype=torch.float64) * math.pi / 4
    target = math.sqrt(2) * (x.cos() + (2 * x).cos()).expand(1, 1, 1, 8, 8)  # an energy of 1 in both shells
    assert 1 < float(relative_log(2 * target, target)) < 1e7


@pytest.mark.parametrize("frames", FRAMES)
def test_the_divergence_of_extreme_fields_is_finite(frames: str) -> None:
    velocity = FRAMES[frames].clone().requires_grad_()
    value = divergence_penalty(velocity, lengths=(1e-3, 1e-3))
    value.backward()
    assert 0 <= value.item() <= 1 and velocity.grad is not None and velocity.grad.isfinite().all()


@every_loss
def test_a_perfect_prediction_has_no_error_and_no_gradient(loss: Callable[..., Tensor]) -> None:
    target = turbulence(28)
    prediction = target.clone().requires_grad_()
    value = loss(prediction, target)
    value.backward()
    assert value.item() == 0 and prediction.grad is not None and (prediction.grad == 0).all()


@every_loss
def test_autocast_gives_the_value_of_float32(loss: Callable[..., Tensor]) -> None:
    prediction, target = turbulence(29), turbulence(30)
    expected = loss(prediction, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(prediction, target)
        low = loss(prediction.bfloat16(), target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert found.dtype == low.dtype == torch.float32
    torch.testing.assert_close(low, loss(prediction.bfloat16().float(), target), rtol=1e-6, atol=0)


@every_loss
def test_shapes_that_do_not_fit_are_named(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(UserError, match=r"\(1, 2, 2, 32, 32\).*\(1, 2, 1, 32, 32\)"):
        loss(torch.zeros(1, 2, 2, 32, 32), torch.zeros(1, 2, 1, 32, 32))
    with pytest.raises(UserError, match="dims"):
        loss(torch.zeros(2, 2, 32, 32), torch.zeros(2, 2, 32, 32))


def test_wrong_bands_and_velocities_are_named() -> None:
    with pytest.raises(UserError, match="low, mid, high"):
        spectrum_error(turbulence(1), turbulence(1), band="highest")
    with pytest.raises(UserError, match="larger fields"):
        spectrum_error(torch.randn(1, 1, 1, 8, 8), torch.randn(1, 1, 1, 8, 8), band="high")
    with pytest.raises(UserError, match="velocity channels alone"):
        divergence_penalty(torch.zeros(1, 1, 3, 16, 16))


def test_a_note_tells_of_few_shells() -> None:
    note = spectrum_note((24, 64))
    assert note is not None and "24 x 64" in note and str(spectra.resolved_shells((24, 64))) in note
    assert spectrum_note((32, 64)) is None and spectrum_note((64, 64, 16)) is not None
