"""The advection baseline: known motions come back, missing data create none, and persistence is beaten."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.advection import (
    advection_nowcast,
    extrapolate,
    motion_field,
    moving_frames,
)
from nbhelpers.stages.perceptual_unet.bilinear import ReadLearnt, read

WET = 16 / 255
VELOCITIES = [(1.0, 0.0), (3.3, -1.7), (-5.5, 2.25), (0.3, 0.2), (-10.0, 0.0), (8.0, 6.0)]


def rain(size: int, seed: int) -> Tensor:
    """(size, size) rain-like field in [0, 1], about 60 % wet: power spectrum ~ k^-2.5, cut off at dry."""
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    wavenumber = torch.sqrt(torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size) ** 2)
    wavenumber[0, 0] = math.inf
    field = torch.fft.irfft2(torch.fft.rfft2(noise) * wavenumber**-1.25, s=(size, size))
    return (0.13 * field / field.std() + 0.1).clamp(0, 1)


def shifted(image: Tensor, dx: float, dy: float) -> Tensor:
    """Image moved by (dx, dy) px, periodic, through the Fourier shift theorem."""
    height, width = image.shape
    turns = torch.fft.fftfreq(height)[:, None] * dy + torch.fft.rfftfreq(width) * dx
    return torch.fft.irfft2(torch.fft.rfft2(image) * torch.exp(-2j * math.pi * turns), s=(height, width)).clamp(0, 1)


def moving(image: Tensor, velocity: tuple[float, float], frames: int, size: int) -> Tensor:
    """(1, frames, size, size): the middle of a larger image that moves, so that rain enters at the borders."""
    low = (image.shape[-1] - size) // 2
    steps = [shifted(image, velocity[0] * t, velocity[1] * t) for t in range(frames)]
    return torch.stack(steps)[None, :, low : low + size, low : low + size]


def error(motion: Tensor, velocity: tuple[float, float], wet: Tensor) -> Tensor:
    """Distance in px between the estimated and the true motion at the wet pixels of batch member 0."""
    return torch.linalg.vector_norm(motion[0] - torch.tensor(velocity)[:, None, None], dim=0)[wet]


def csi_74(forecast: Tensor, truth: Tensor, seen: Tensor | bool = True) -> float:
    hit, event = (forecast * 255).round() >= 74, (truth * 255).round() >= 74
    return float((hit & event & seen).sum() / ((hit | event) & seen).sum())


def events(folder: Path, indices: list[int], frames: slice) -> tuple[Tensor, Tensor]:
    """Real radar (B, T, 384, 384) in [0, 1], dry where missing, and where it is not missing."""
    (path,) = (folder / "radar_sevir_layout" / "vil").rglob("*.h5")
    with h5py.File(path) as file:
        vil = np.stack([file["vil"][i][..., frames] for i in indices])
    grey = torch.from_numpy(np.ascontiguousarray(np.moveaxis(vil, -1, 1)))
    return grey.float().where(grey != 255, 0.0) / 255, grey != 255


@pytest.mark.parametrize("velocity", VELOCITIES)
def test_known_shift_of_a_synthetic_field(velocity: tuple[float, float]) -> None:
    frames = moving(rain(256, seed=1), velocity, frames=4, size=128)
    assert error(motion_field(frames), velocity, frames[0, -1] > WET).max() < 0.1


@pytest.mark.parametrize("velocity", VELOCITIES)
@pytest.mark.parametrize("event", [1, 4])
def test_known_shift_of_real_radar(real_data: Path, event: int, velocity: tuple[float, float]) -> None:
    still, _ = events(real_data, [event], slice(10, 11))
    frames = moving(still[0, 0], velocity, frames=4, size=288)
    wrong = error(motion_field(frames), velocity, frames[0, -1] > WET)
    assert wrong.square().mean().sqrt() < 0.05 and wrong.quantile(0.97) < 0.1


def test_two_frames_and_large_displacements_of_real_radar(real_data: Path) -> None:
    for event, velocity, frames in ((1, (3.3, -1.7), 2), (10, (12.0, -0.5), 3), (10, (12.0, -0.5), 12)):
        still, _ = events(real_data, [event], slice(10, 11))
        video = moving(still[0, 0], velocity, frames, size=336)
        wrong = error(motion_field(video), velocity, video[0, -1] > WET)
        assert wrong.square().mean().sqrt() < 0.05 and wrong.quantile(0.97) < 0.1


def test_rotation() -> None:
    big, size, turn = rain(256, seed=3), 160, 0.03
    offsets = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    frames = []
    for t in range(5):  # a pixel's content comes from the position turned back by t * turn
        cos, sin = math.cos(turn * t), math.sin(turn * t)
        grid = torch.stack([cos * x + sin * y, -sin * x + cos * y], -1)[None] / (256 / 2)
        frames.append(torch.nn.functional.grid_sample(big[None, None], grid, mode="bicubic", align_corners=False)[0])
    video = torch.stack(frames, 1).clamp(0, 1)
    truth = torch.stack([-turn * y, turn * x])
    wrong = torch.linalg.vector_norm(motion_field(video)[0] - truth, dim=0)[video[0, -1] > WET]
    assert truth.norm(dim=0).max() > 3 and wrong.square().mean().sqrt() < 0.15 and wrong.quantile(0.95) < 0.3


def test_noise_growth_and_decay_do_not_spoil_the_motion() -> None:
    frames = moving(rain(256, seed=5), (4.0, -3.0), frames=6, size=128)
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    trend = 1 + 0.06 * torch.arange(6).view(1, -1, 1, 1) * torch.linspace(-1, 1, 128)  # decays left, grows right
    frames = ((frames * trend + 0.03 * noise) * (frames > 0)).clamp(0, 1)
    wrong = error(motion_field(frames), (4.0, -3.0), frames[0, -1] > WET)
    assert wrong.square().mean().sqrt() < 0.15


def test_a_cell_born_in_between_hardly_disturbs_the_motion_around() -> None:
    frames = moving(rain(256, seed=1), (3.3, -1.7), frames=4, size=128)
    y, x = torch.meshgrid(torch.arange(128) - 64, torch.arange(128) - 64, indexing="ij")
    cell = torch.exp(-(x**2 + y**2) / (2 * 10**2))  # stands still and grows to 0.8
    frames = torch.maximum(frames, torch.tensor([0.0, 0.2, 0.5, 0.8]).view(4, 1, 1) * cell)
    assert error(motion_field(frames), (3.3, -1.7), x == x).square().mean().sqrt() < 0.385


def test_a_straight_band_moves_across_itself() -> None:
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    frames = torch.stack([torch.exp(-(((0.8 * (x - 3 * t) + 0.6 * y - 60) / 6) ** 2) / 2) for t in range(4)])[None]
    motion = motion_field(frames)[0][:, frames[0, -1] > WET]
    across, along = 0.8 * motion[0] + 0.6 * motion[1], 0.8 * motion[1] - 0.6 * motion[0]
    assert (across - 0.8 * 3).abs().max() < 0.05 and along.abs().max() < 1  # no texture tells how it moves along


def test_dry_frames_stand_still() -> None:
    dry = torch.zeros(2, 4, 64, 80)
    assert torch.equal(motion_field(dry), torch.zeros(2, 2, 64, 80))
    assert torch.equal(advection_nowcast(dry, 3), torch.zeros(2, 3, 64, 80))


def test_dry_area_takes_the_motion_of_the_rain_around() -> None:
    y, x = torch.meshgrid(torch.arange(192.0), torch.arange(192.0), indexing="ij")
    shower = rain(192, seed=2) * torch.exp(-((x - 60) ** 2 + (y - 60) ** 2) / (2 * 12**2))
    frames = torch.stack([shifted(shower, 3.0 * t, 2.0 * t) for t in range(4)])[None]
    motion = motion_field(frames)
    assert frames[0, :, 150:, 150:].max() < 1e-3
    assert error(motion, (3.0, 2.0), torch.ones(192, 192, dtype=torch.bool)).max() < 0.3


def sector(size: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (x > size // 2) & ((y - size // 2).abs() < (x - size // 2) / 2)


def test_missing_sector_neither_stops_nor_creates_motion() -> None:
    frames = moving(rain(256, seed=1), (3.3, -1.7), frames=6, size=128)
    valid = ~sector(128).expand_as(frames)
    holed = frames.where(valid, torch.nan)  # whatever stands in the missing pixels is not looked at
    assert error(motion_field(holed, valid=valid), (3.3, -1.7), frames[0, -1] > WET).max() < 0.1
    assert advection_nowcast(holed, 6, valid=valid).isfinite().all()

    columns = (torch.arange(128) % 32 > 10).expand_as(frames)  # edges of missing areas are no texture
    wrong = error(motion_field(0.4 + frames / 2, valid=columns), (3.3, -1.7), columns[0, 0])
    assert wrong.square().mean().sqrt() < 0.2

    still = frames[:, :1].expand(-1, 6, -1, -1)
    blinking = valid.clone()
    blinking[:, ::2] = True
    motion = motion_field(still.where(blinking, 1.0), valid=blinking)
    assert motion.abs().max() < 0.01


def test_hole_in_the_last_frame_is_filled_from_older_frames() -> None:
    frames = moving(rain(256, seed=1), (3.0, -2.0), frames=6, size=128)
    valid = torch.ones_like(frames, dtype=torch.bool)
    valid[:, -1] = ~sector(128)
    whole = advection_nowcast(frames, 3)
    filled = advection_nowcast(frames.where(valid, 1.0), 3, valid=valid)
    assert (filled - whole).abs().mean() < 0.02 * whole.mean()


def test_extrapolating_an_integer_shift_is_exact() -> None:
    frame = rain(96, seed=4)[None, :, :80]
    motion = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 96, 80)
    forecast = extrapolate(frame, motion, 4)
    for lead in range(1, 5):
        inside = forecast[:, lead - 1, : 96 - 2 * lead, 3 * lead :]
        torch.testing.assert_close(inside, frame[:, 2 * lead :, : 80 - 3 * lead], atol=1e-4, rtol=0)
    half = extrapolate(frame, motion / 2, 8)  # every other lead lies on pixels again: no blur has piled up
    torch.testing.assert_close(half[:, 1::2, :80, 20:], forecast[..., :80, 20:], atol=1e-4, rtol=0)


def test_border_rule_keeps_the_forecast_of_the_lead_before() -> None:
    frame = torch.arange(1.0, 33.0).expand(1, 32, 32) / 64
    motion = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 32, 32)
    forecast = extrapolate(frame, motion, 2)[0, :, 0] * 64
    assert forecast[0, :4].round().tolist() == [1, 2, 1, 2] and forecast[1, :6].round().tolist() == [1, 2, 1, 2, 1, 2]
    seen = torch.ones(1, 32, 32, dtype=torch.bool)
    seen[..., 8:12] = False
    gap = extrapolate(frame, motion, 2, valid=seen)[0, :, 0] * 64
    assert gap[0, 8:15].round().tolist() == [7, 8, 0, 0, 13, 14, 13]


def test_trajectories_follow_a_rotation() -> None:
    offsets = torch.arange(97.0) - 48
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    disk = torch.exp(-((x - 20) ** 2 + y**2) / (2 * 6**2))[None]
    turn = math.pi / 2 / 15
    forecast = extrapolate(disk, torch.stack([-turn * y, turn * x])[None], 15)[:, -1]
    target = torch.exp(-(x**2 + (y - 20) ** 2) / (2 * 6**2))[None]  # x to the right turns into y down
    assert (forecast - target).abs().max() < 0.03


def test_beats_persistence_on_translating_storms() -> None:
    for seed, velocity in ((7, (4.0, 1.5)), (8, (-2.2, 3.1)), (9, (0.9, -0.6))):
        frames = moving(rain(256, seed), velocity, frames=12, size=128)
        past, future = frames[:, :6], frames[:, 6:]
        forecast, persistence = advection_nowcast(past, 6), past[:, -1:].expand(-1, 6, -1, -1)
        for lead in range(6):
            now, held, truth = forecast[:, lead], persistence[:, lead], future[:, lead]
            assert (now - truth).square().mean() < 0.6 * (held - truth).square().mean()
            assert csi_74(now, truth) > csi_74(held, truth) + 0.05


@pytest.mark.parametrize(("step", "n_in", "n_out", "csi_from"), [(5, 4, 4, 0), (1, 12, 20, 4)])
def test_beats_persistence_on_real_radar(real_data: Path, step: int, n_in: int, n_out: int, csi_from: int) -> None:
    """Frames 10 min apart: at every lead; 2 min apart: squared error at every lead, CSI from 10 min to 40 min."""
    frames, valid = events(real_data, [1, 4, 7, 11, 15], slice(None, None, step))
    frames, valid = frames[:, : n_in + n_out], valid[:, : n_in + n_out]
    forecast = advection_nowcast(frames[:, :n_in], n_out, valid=valid[:, :n_in])
    for lead in range(n_out):
        truth, seen, held = frames[:, n_in + lead], valid[:, n_in + lead], frames[:, n_in - 1]
        now = forecast[:, lead]
        assert (now - truth)[seen].square().mean() < (held - truth)[seen].square().mean()
        assert lead < csi_from or csi_74(now, truth, seen) > csi_74(held, truth, seen)


def test_leads_at_which_the_mosaic_stands_still_are_persisted() -> None:
    image = rain(256, seed=6)
    frames = torch.cat([moving(shifted(image, 9.0 * (t // 3), 0.0), (0, 0), 1, 128) for t in range(15)], 1)
    forecast = advection_nowcast(frames[:, :12], 3)
    assert torch.equal(forecast[:, 0], frames[:, 11])
    held = (frames[:, 11] - frames[:, 14]).square().mean()
    assert (forecast[:, 2] - frames[:, 14]).square().mean() < 0.5 * held


def test_in_moving_coordinates_rain_that_only_moves_stands_still() -> None:
    frames = moving(rain(256, seed=2), (3.3, -1.7), frames=8, size=128)
    aligned = moving_frames(frames, 3).aligned[..., 40:-40, 40:-40]
    last = frames[..., 40:-40, 40:-40]
    assert torch.equal(aligned[:, -1], last[:, -1])
    drift, moved = ((x[:, :-1] - x[:, -1:]).square().mean((0, 2, 3)) for x in (aligned, last))
    assert (drift < 0.1 * moved).all()  # what is left is the blur of one bilinear interpolation


def test_what_is_said_in_moving_coordinates_comes_out_where_the_air_has_gone() -> None:
    frames = moving(rain(256, seed=2), (4.0, -2.0), frames=8, size=128)
    view = moving_frames(frames, 3)
    cell = torch.zeros(1, 3, 128, 128)
    cell[..., 60:68, 50:58] = 1.0  # growth over one place, at every lead
    cell.requires_grad_()
    carried = view.carry(cell)
    rows, columns = torch.meshgrid(*[torch.arange(128.0)] * 2, indexing="ij")
    for lead in range(3):
        weights = carried[0, lead].detach()
        centre = [
            float((weights * x).sum() / weights.sum())
            for x in torch.meshgrid(*[torch.arange(128.0)] * 2, indexing="ij")
        ]
        assert centre == pytest.approx([63.5 - 2 * (lead + 1), 53.5 + 4 * (lead + 1)], abs=0.3)
    (gradient,) = torch.autograd.grad(carried.sum(), cell)
    assert gradient[0, :, 40:90, 40:90].min() > 0.5, "all that is carried can be learnt"
    still = view.aligned[:, -1:].expand(-1, 3, -1, -1)
    assert torch.equal(view.carry(still), advection_nowcast(frames, 3))


def test_batch_equals_single_and_odd_sizes_work() -> None:
    first = moving(rain(256, seed=1), (3.3, -1.7), frames=5, size=101)[..., :77]
    second = moving(rain(256, seed=2), (-1.2, 0.4), frames=5, size=101)[..., :77]
    frames = torch.cat([first, torch.zeros_like(first), second])
    valid = torch.ones_like(frames, dtype=torch.bool)
    valid[2, :, 30:50, 20:40] = False
    together = advection_nowcast(frames, 4, valid=valid)
    apart = [advection_nowcast(frames[i : i + 1], 4, valid=valid[i : i + 1]) for i in range(3)]
    assert together.shape == (3, 4, 101, 77)
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("frames", "valid", "found"),
    [
        (torch.zeros(4, 64, 64), None, r"\(4, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), None, "at least 2"),
        (torch.zeros(1, 4, 64, 64, dtype=torch.uint8), None, "uint8"),
        (torch.zeros(1, 4, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool), "mask"),
    ],
)
def test_wrong_input_is_named(frames: Tensor, valid: Tensor | None, found: str) -> None:
    with pytest.raises(UserError, match=found):
        advection_nowcast(frames, 3, valid=valid)


def test_the_gradient_of_reading_is_grid_samples_own() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 9, 12, generator=generator, dtype=torch.float64)
    place = torch.rand(2, 2, 7, 8, generator=generator, dtype=torch.float64) * 16 - 2  # some of them outside
    weights = torch.rand(2, 1, 7, 8, generator=generator, dtype=torch.float64)
    gradients = []
    for function in (read, ReadLearnt.apply):
        leaf = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((function(leaf, place) * weights).sum(), leaf)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)
    assert gradients[1].abs().max() > 0
