"""The flow solver and its initial fields against exact solutions, budgets, symmetries and published spectra."""

from __future__ import annotations

from math import log2, pi

import pytest
import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import initial, solver
from nbhelpers.stages.neural_operator.solver import Flow

BOX = (2 * pi, 2 * pi)
LONG = (2 * pi, 3 * pi)
Size = tuple[int, int]
Box = tuple[float, float]


def turbulence(size: Size = (32, 32), box: Box = BOX, members: int = 2) -> Tensor:
    return initial.decaying_turbulence(range(members), size, box, u_rms=1.0, peak=3.0)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def angles(size: Size) -> tuple[Tensor, Tensor]:
    """y and x of the grid points, as angles that run from 0 to 2 pi across the box."""
    return solver.grid(size, BOX, torch.zeros((), dtype=torch.float64))


def smooth(size: Size) -> Tensor:
    """A few long waves that feed each other, the same on every grid."""
    y, x = angles(size)
    return (torch.cos(x) * torch.sin(2 * y) + torch.sin(x + y) + 0.5 * torch.cos(2 * x - y + 1.0))[None]


def integral(rates: Tensor, dt: float) -> Tensor:
    """Simpson's rule along the last axis, of an odd number of values."""
    weights = torch.full(rates.shape[-1:], 2.0, dtype=rates.dtype)
    weights[1::2] = 4.0
    weights[0] = weights[-1] = 1.0
    return (rates * weights).sum(-1) * dt / 3


@pytest.mark.parametrize(("size", "box", "turns"), [((32, 32), BOX, (1, 1)), ((24, 40), LONG, (2, 3))])
def test_taylor_green_decays_as_the_exact_solution(size: Size, box: Box, turns: tuple[int, int]) -> None:
    w = initial.taylor_green(size, box, amplitude=2.0, waves_yx=turns)
    after = solver.advance(w, Flow(0.05, box, drag=0.1), dt=0.02, steps=100)
    k2 = sum((2 * pi * n / side) ** 2 for n, side in zip(turns, box, strict=True))
    exact = w * torch.exp(torch.tensor(-(0.05 * k2 + 0.1) * 2.0, dtype=torch.float64))
    assert distance(w, exact) > 0.3
    assert distance(after, exact) < 1e-12


def test_waves_of_one_length_do_not_move_each_other() -> None:
    y, x = angles((32, 40))
    w = (torch.cos(3 * x + 4 * y) + torch.sin(5 * x) + torch.cos(4 * x - 3 * y + 0.3))[None]
    assert distance(solver.advance(w, Flow(0.0), dt=0.01, steps=50), w) < 1e-12
    # In a longer box their lengths differ, so they do.
    assert distance(solver.advance(w, Flow(0.0, LONG), dt=0.01, steps=50), w) > 1e-2


def test_advection_carries_the_vorticity_downstream() -> None:
    """w = cos y + sin 2x has u = -sin y, v = -cos(2x) / 2, so dw/dt = -u w_x - v w_y = 1.5 sin y cos 2x."""
    y, x = angles((16, 20))
    w = (torch.cos(y) + torch.sin(2 * x))[None]
    rate = (solver.advance(w, Flow(0.0), dt=1e-5, steps=1) - w) / 1e-5
    assert distance(rate[0], 1.5 * torch.sin(y) * torch.cos(2 * x)) < 1e-4


def test_order_in_time_is_four() -> None:
    flow = Flow(0.01, LONG, drag=0.05, forcing=solver.kolmogorov_forcing(1.0, 2))
    w = turbulence((24, 36), LONG)
    ends = [solver.advance(w, flow, dt=0.8 / steps, steps=steps) for steps in (20, 40, 80)]
    rate = log2(float((ends[0] - ends[1]).norm() / (ends[1] - ends[2]).norm()))
    assert 3.8 < rate < 4.5
    assert distance(ends[1], ends[2]) < 1e-5


def test_error_falls_faster_than_any_power_of_the_grid() -> None:
    fine = solver.advance(smooth((96, 96)), Flow(0.05), dt=0.005, steps=200)
    errors = {
        n: distance(solver.advance(smooth((n, n)), Flow(0.05), dt=0.005, steps=200), fine[:, :: 96 // n, :: 96 // n])
        for n in (12, 24, 48)
    }
    assert errors[12] > 1e-4
    assert errors[24] < errors[12] / 2**6
    assert errors[48] < errors[24] / 2**12


def test_inviscid_flow_keeps_energy_and_enstrophy() -> None:
    w = solver.dealias(turbulence((32, 48), LONG))
    after = solver.advance(w, Flow(0.0, LONG), dt=0.002, steps=500)
    assert distance(after, w) > 0.5
    assert distance(solver.energy(after, LONG), solver.energy(w, LONG)) < 1e-9
    assert distance(solver.enstrophy(after), solver.enstrophy(w)) < 1e-9


def test_energy_and_enstrophy_budgets_close() -> None:
    """dE/dt = -2 nu Z - 2 drag E + <u·F> and dZ/dt = -2 nu P - 2 drag Z + <w f>, over O(1) time."""
    drag, viscosity, dt = 0.1, 0.02, 0.0025
    forcing = solver.kolmogorov_forcing(1.0, 2)
    w0 = solver.dealias(turbulence((24, 36), LONG))
    flow = Flow(viscosity, LONG, drag=drag, forcing=forcing)
    w = torch.cat([w0[:, None], solver.trajectory(w0, flow, dt=dt, steps_per_frame=1, n_frames=400)], dim=1)
    f = forcing(*solver.grid((24, 36), LONG, w))
    y, _ = solver.grid((24, 36), LONG, w)
    u = solver.velocity(w, LONG)
    push = (u[:, :, 0] * torch.sin(2 * y)).mean((-2, -1))  # the force is sin(2 y) along x
    energy, enstrophy = solver.energy(w, LONG), solver.enstrophy(w)
    k = solver.waves((24, 36), LONG, w)
    spectrum = torch.fft.rfft2(w)
    gradient = torch.fft.irfft2(torch.stack([1j * k.x * spectrum, 1j * k.y * spectrum], dim=2), s=(24, 36))
    palinstrophy = gradient.square().sum(2).mean((-2, -1)) / 2
    gained = integral(-2 * viscosity * enstrophy - 2 * drag * energy + push, dt)
    made = integral(-2 * viscosity * palinstrophy - 2 * drag * enstrophy + (w * f).mean((-2, -1)), dt)
    for before_to_after, budget in ((energy, gained), (enstrophy, made)):
        change = before_to_after[:, -1] - before_to_after[:, 0]
        assert float(change.abs().min()) > 1e-2
        assert float((change - budget).abs().max()) < 1e-8
    assert float(integral(push, dt).abs().min()) > 1e-3  # the forcing does matter


@pytest.mark.parametrize("size", [(32, 32), (24, 45), (33, 20)])
def test_velocity_is_free_of_divergence_and_gives_its_vorticity_back(size: Size) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    w = solver.dealias(noise)
    w = w - w.mean((-2, -1), keepdim=True)
    for field in (w, noise):  # noise has Nyquist modes and a mean
        u = solver.velocity(field, LONG)
        assert u.shape == (2, 3, 2, *size)
        assert float(solver.divergence(u, LONG).abs().max()) < 1e-10
    assert distance(solver.vorticity_of(solver.velocity(w, LONG), LONG), w) < 1e-12
    y, x = angles(size)
    if size[0] % 2 == 0:
        assert float(solver.velocity(torch.cos(size[0] // 2 * y) * torch.cos(3 * x), LONG).abs().max()) < 1e-12
    u = torch.stack([torch.sin(y) + 0 * x, 2 * torch.cos(x) + 0 * y])
    assert distance(solver.vorticity_of(u, BOX), -2 * torch.sin(x) - torch.cos(y)) < 1e-12  # dv/dx - du/dy
    assert (
        distance(
            solver.divergence(torch.stack([torch.sin(x) + 0 * y, torch.sin(y) + 0 * x]), BOX),
            torch.cos(x) + torch.cos(y),
        )
        < 1e-12
    )
    assert distance(solver.energy(w, LONG), solver.velocity(w, LONG).square().mean((-2, -1)).sum(-1) / 2) < 1e-12


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (27, 35)])
def test_only_the_lower_two_thirds_are_carried(size: Size) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(1, *size, generator=generator, dtype=torch.float64)
    for field in (solver.dealias(w), solver.advance(w, Flow(1e-3), dt=1e-3, steps=3)):
        power = torch.fft.fft2(field).abs()[0]
        beyond = torch.zeros(size, dtype=torch.bool)
        for axis, n in enumerate(size):
            index = torch.fft.fftfreq(n, 1 / n).abs() * 3 >= n
            beyond |= index[:, None] if axis == 0 else index[None]
        assert float(power[beyond].max()) < 1e-12 * float(power.max())
        assert float(power[~beyond].flatten()[1:].min()) > 1e-4 * float(power.max())


def test_advection_is_free_of_aliasing() -> None:
    """On the modes it carries, the rate of change is that of a grid twice as fine."""
    generator = torch.Generator().manual_seed(0)
    coarse = solver.dealias(torch.randn(1, 24, 24, generator=generator, dtype=torch.float64))
    spectrum = torch.fft.fftshift(torch.fft.fft2(coarse, norm="forward"))
    fine = torch.fft.ifft2(
        torch.fft.ifftshift(torch.nn.functional.pad(spectrum, (12, 12, 12, 12))), norm="forward"
    ).real
    dt = 1e-6
    rates = [(solver.advance(w, Flow(0.0), dt=dt, steps=1) - w) / dt for w in (coarse, fine)]
    inner = [torch.fft.fft2(rate, norm="forward")[:, :8, :8] for rate in rates]
    assert float((inner[0] - inner[1]).abs().max()) < 1e-4 * float(inner[1].abs().max())


def test_members_of_a_batch_are_alone_and_shifts_shift() -> None:
    flow = Flow(0.005, LONG, drag=0.01)
    w = turbulence((24, 40), LONG, members=3)
    together = solver.advance(w, flow, dt=0.02, steps=50)
    for member in range(3):
        alone = solver.advance(w[member : member + 1], flow, dt=0.02, steps=50)
        assert distance(alone[0], together[member]) < 1e-12
    moved = solver.advance(w.roll((5, -9), (1, 2)), flow, dt=0.02, steps=50)
    assert distance(moved, together.roll((5, -9), (1, 2))) < 1e-11
    turned = solver.advance(w.flip(1, 2).roll((1, 1), (1, 2)), flow, dt=0.02, steps=50)  # half a turn keeps the sense
    assert distance(turned, together.flip(1, 2).roll((1, 1), (1, 2))) < 1e-11


def test_transposed_boxes_hold_mirrored_flows() -> None:
    w = turbulence((24, 40), LONG)
    after = solver.advance(w, Flow(0.005, LONG), dt=0.02, steps=50)
    mirrored = solver.advance(-w.mT.contiguous(), Flow(0.005, (LONG[1], LONG[0])), dt=0.02, steps=50)
    assert distance(mirrored, -after.mT) < 1e-11


def test_mean_is_kept_and_drag_wears_it_off() -> None:
    w = turbulence() + 0.7
    kept = solver.advance(w, Flow(0.01), dt=0.02, steps=50)
    assert float((kept.mean((-2, -1)) - 0.7).abs().max()) < 1e-13
    worn = solver.advance(w, Flow(0.01, drag=0.5), dt=0.02, steps=50)
    assert float((worn.mean((-2, -1)) - 0.7 * torch.exp(torch.tensor(-0.5, dtype=torch.float64))).abs().max()) < 1e-12


def test_frames_are_the_states_on_the_way_and_forcing_may_be_a_field() -> None:
    w = turbulence((24, 40), LONG)
    force = solver.kolmogorov_forcing(0.5, 3)
    flow = Flow(0.01, LONG, forcing=force)
    frames = solver.trajectory(w, flow, dt=0.02, steps_per_frame=5, n_frames=3)
    assert frames.shape == (2, 3, 24, 40)
    as_field = Flow(0.01, LONG, forcing=force(*solver.grid((24, 40), LONG, w)))
    for frame in range(3):
        expected = solver.advance(w, as_field, dt=0.02, steps=5 * (frame + 1))
        assert distance(frames[:, frame], expected) < 1e-13


def test_single_precision_is_close_to_double() -> None:
    flow = Flow(0.005, forcing=solver.kolmogorov_forcing(1.0, 2))
    w = turbulence((48, 48))
    double = solver.advance(w, flow, dt=0.01, steps=100)
    single = solver.advance(w.float(), flow, dt=0.01, steps=100)
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert 0 < distance(single.double(), double) < 2e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees() -> None:
    flow = Flow(0.005, forcing=solver.kolmogorov_forcing(1.0, 2))
    w = turbulence((48, 48))
    there = solver.advance(w.cuda(), flow, dt=0.01, steps=100)
    assert there.is_cuda
    assert distance(there.cpu(), solver.advance(w, flow, dt=0.01, steps=100)) < 1e-10


def test_stable_dt_is_stable_and_a_step_far_beyond_is_named() -> None:
    w = turbulence((64, 64))
    flow = Flow(0.0)
    dt = solver.stable_dt(w, flow, cfl=0.5)
    assert float(solver.courant(w, BOX, dt).max()) == pytest.approx(0.5)
    assert solver.energy(solver.advance(w, flow, dt=dt, steps=60), BOX).tolist() == pytest.approx(
        solver.energy(w, BOX).tolist(), rel=1e-3
    )
    with pytest.raises(UserError, match="blew up with a step of .* smaller step"):
        solver.advance(w, flow, dt=10 * dt, steps=200)
    y, x = angles((32, 40))
    crossed = solver.courant(
        torch.stack([torch.cos(x) + 0 * y, torch.cos(y) + 0 * x, torch.cos(x) + torch.cos(y)]), BOX, 0.1
    )
    assert crossed.tolist() == pytest.approx([3.2 / (2 * pi), 4.0 / (2 * pi), 7.2 / (2 * pi)])
    assert solver.stable_dt(torch.zeros(1, 16, 16), flow) == float("inf")
    assert [solver.steps_for(0.7, step) for step in (0.1, 0.7, 0.699, 5.0)] == [7, 1, 2, 1]


def test_resolution_is_judged_by_the_end_of_the_enstrophy_spectrum() -> None:
    w = initial.decaying_turbulence([0], (64, 64), u_rms=1.0, peak=5.0)
    rough = solver.advance(w, Flow(1e-3), dt=0.01, steps=300)
    with pytest.raises(UserError, match=r"64 x 64 points do not resolve .* viscosity 0\.001.*%.*finer grid"):
        solver.check_resolved(rough, Flow(1e-3))
    fine = solver.advance(0.2 * w, Flow(1e-3), dt=0.04, steps=105)
    solver.check_resolved(fine, Flow(1e-3))
    assert float(solver.tail_share(rough)) > 2 * float(solver.tail_share(fine))
    y, x = angles((60, 60))  # carries 1..19; the last tenth begins at 18
    tail = torch.cos(18 * y) + 0 * x
    body = 3 * torch.cos(2 * x) * torch.cos(5 * y) * 2**0.5
    beyond = 5 * torch.cos(25 * x) + 0 * y
    assert float(solver.tail_share((tail + body + beyond + 4.0)[None])) == pytest.approx(0.1)


def test_gaussian_field_has_the_published_spectrum() -> None:
    fields = initial.gaussian_field(range(300), (32, 32), seed=3)
    assert float(fields.mean((-2, -1)).abs().max()) < 1e-14
    power = torch.fft.fft2(fields, norm="forward").abs().square()
    n = torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    squared = n[:, None] ** 2 + n[None] ** 2
    for shell in (1, 2, 4, 5, 8, 10, 25, 50, 100):
        expected = 7.0**3 * (4 * pi**2 * shell + 49) ** -2.5
        modes = squared == shell
        found = float(power[:, modes].mean())
        error = expected / (300 * int(modes.sum()) / 2) ** 0.5  # a mode and its mirror image are one draw
        assert abs(found - expected) < 4 * error, shell
    printed = initial.gaussian_field([7], (32, 32), seed=3, scale=7.0**1.5)
    assert distance(printed * 7**0.75, initial.gaussian_field([7], (32, 32), seed=3)) < 1e-12


def test_random_starts_depend_on_seed_and_number_alone() -> None:
    for draw in (
        lambda numbers, seed: initial.gaussian_field(numbers, (16, 24), seed=seed),
        lambda numbers, seed: initial.decaying_turbulence(numbers, (16, 24), LONG, u_rms=1.0, peak=3.0, seed=seed),
    ):
        batch = draw([4, 5, 6], 1)
        assert torch.equal(draw([6], 1)[0], batch[2])
        assert not torch.equal(batch[0], batch[1])
        assert not torch.equal(draw([6], 2)[0], batch[2])


def test_decaying_turbulence_has_its_speed_and_its_peak() -> None:
    w = initial.decaying_turbulence(range(20), (64, 96), LONG, u_rms=0.3, peak=6.0)
    u = solver.velocity(w, LONG)
    assert u.square().sum(1).mean((-2, -1)).sqrt().tolist() == pytest.approx([0.3] * 20)
    k = solver.waves((64, 96), LONG, w).squared.sqrt().expand(64, -1)
    power = torch.fft.rfft2(u).abs().square().sum(1).mean(0)
    power[:, 1:] *= 2
    shells = [float(power[(k > shell - 0.5) & (k <= shell + 0.5)].sum()) for shell in range(1, 16)]
    assert shells.index(max(shells)) + 1 in (5, 6, 7)
    assert shells[1] < 0.02 * max(shells) and shells[14] < 0.02 * max(shells)


def test_benchmark_forcing_is_the_published_one() -> None:
    y, x = solver.grid((8, 8), (1.0, 1.0), torch.zeros((), dtype=torch.float64))
    force = solver.fno_forcing(y, x)
    assert force.shape == (8, 8)
    assert float(force[1, 1]) == pytest.approx(0.1)  # sin(pi/2) + cos(pi/2)
    assert float(force[0, 4]) == pytest.approx(-0.1)  # sin(pi) + cos(pi)
