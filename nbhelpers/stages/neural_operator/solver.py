"""Two-dimensional incompressible flow in a periodic box: a pseudo-spectral Navier-Stokes solver, batched, in torch.

The vorticity ``w = dv/dx - du/dy`` obeys

    dw/dt + u dw/dx + v dw/dy = viscosity lap(w) - drag w + f,    lap(psi) = -w,  u = dpsi/dy,  v = -dpsi/dx.

* **Space.** Fourier-Galerkin: modes with ``|n| < N/3`` along each axis are kept (Orszag's 2/3 rule), so products are
  free of aliasing and the inviscid equation conserves energy and enstrophy. The advection is written with the velocity
  alone, ``(dxx - dyy)(-uv) + dxdy(u² - v²)``, which takes four transforms instead of five (Basdevant 1983,
  J. Comput. Phys. 50).
* **Time.** Classical Runge-Kutta of order four on ``exp((viscosity k² + drag) t) w`` (integrating factor: Canuto et al.
  1988, "Spectral Methods in Fluid Dynamics", ch. 4): viscosity and drag are exact and limit no step.

Fields are ``(B, H, W)``, rows along y, columns along x; a solver works in the dtype and on the device of what it is
given, and the flow of one member never depends on the others. A uniform flow has no vorticity: none is carried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, pi

import torch
from torch import Tensor

from nbhelpers.core.errors import UserError

Forcing = Callable[[Tensor, Tensor], Tensor]
TAIL = 0.9  # of the cut-off: where the last tenth of the resolved wavenumbers begins
LARGEST_TAIL = 0.02  # share of the enstrophy there; a flat enstrophy spectrum has 0.1, a resolved one falls steeply


@dataclass(frozen=True)
class Flow:
    """What drives and damps a flow, and the box it lives in."""

    viscosity: float  # kinematic, length² / time
    lengths: tuple[float, float] = (2 * pi, 2 * pi)  # of the box: (along y, along x)
    drag: float = 0.0  # linear, 1 / time
    forcing: Forcing | Tensor | None = None  # of the vorticity, steady: a field (H, W) or f(y, x)


def kolmogorov_forcing(amplitude: float, waves: int, length: float = 2 * pi) -> Forcing:
    """The curl of the force ``amplitude sin(k y)`` along x, with ``waves`` wavelengths in ``length``."""
    k = 2 * pi * waves / length
    return lambda y, x: (-amplitude * k * torch.cos(k * y)).expand(y.shape[0], x.shape[1])


def fno_forcing(y: Tensor, x: Tensor) -> Tensor:
    """``0.1 (sin 2pi(x + y) + cos 2pi(x + y))`` on the unit square (Li et al. 2021, arXiv:2010.08895, sec. 5.3)."""
    return 0.1 * (torch.sin(2 * pi * (x + y)) + torch.cos(2 * pi * (x + y)))


def grid(size: tuple[int, int], lengths: tuple[float, float], like: Tensor) -> tuple[Tensor, Tensor]:
    """``y (H, 1)`` and ``x (1, W)`` of the grid points, dtype and device of ``like``."""
    y, x = (
        torch.arange(n, dtype=like.dtype, device=like.device) * (length / n)
        for n, length in zip(size, lengths, strict=True)
    )
    return y[:, None], x[None, :]


@dataclass(frozen=True)
class Waves:
    """The wave vectors of ``rfft2`` of a field: shapes broadcast to ``(H, W // 2 + 1)``."""

    y: Tensor  # (H, 1), 1 / length
    x: Tensor  # (1, W // 2 + 1)
    cut: Tensor  # largest of |n| / (N/3) over the axes: below 1 are the modes that the 2/3 rule keeps

    @property
    def squared(self) -> Tensor:
        return self.y**2 + self.x**2

    @property
    def inverse(self) -> Tensor:
        """``1 / k²``; 0 for the mean and for Nyquist modes, which have no real derivative."""
        squared = self.squared
        usable = (squared > 0) & (self.cut < 1.5)
        return torch.where(usable, 1 / torch.where(usable, squared, 1), 0)


def waves(size: tuple[int, int], lengths: tuple[float, float], like: Tensor) -> Waves:
    """Of fields ``(..., H, W)`` in a box of ``lengths`` (y, x); real dtype and device of ``like``."""
    rows, columns = size
    y = torch.fft.fftfreq(rows, 1 / rows, dtype=like.dtype, device=like.device)[:, None]
    x = torch.fft.rfftfreq(columns, 1 / columns, dtype=like.dtype, device=like.device)[None, :]
    cut = torch.maximum(y.abs() * 3 / rows, x.abs() * 3 / columns)
    return Waves(y * (2 * pi / lengths[0]), x * (2 * pi / lengths[1]), cut)


def velocity(vorticity: Tensor, lengths: tuple[float, float]) -> Tensor:
    """``(..., H, W) -> (..., 2, H, W)``: (u, v) of zero mean with this vorticity, free of divergence.

    The mean and the Nyquist modes of the vorticity have no such velocity and are left out.
    """
    size = _size(vorticity)
    k = waves(size, lengths, vorticity)
    psi = torch.fft.rfft2(vorticity) * k.inverse
    return torch.fft.irfft2(torch.stack([1j * k.y * psi, -1j * k.x * psi], dim=-3), s=size)


def vorticity_of(velocity: Tensor, lengths: tuple[float, float]) -> Tensor:
    """``(..., 2, H, W) -> (..., H, W)``: dv/dx - du/dy."""
    size = _size(velocity)
    k = waves(size, lengths, velocity)
    u, v = torch.fft.rfft2(velocity).unbind(-3)
    return torch.fft.irfft2(torch.where(k.cut < 1.5, 1j * k.x * v - 1j * k.y * u, 0), s=size)


def divergence(velocity: Tensor, lengths: tuple[float, float]) -> Tensor:
    """``(..., 2, H, W) -> (..., H, W)``: du/dx + dv/dy."""
    size = _size(velocity)
    k = waves(size, lengths, velocity)
    u, v = torch.fft.rfft2(velocity).unbind(-3)
    return torch.fft.irfft2(torch.where(k.cut < 1.5, 1j * k.x * u + 1j * k.y * v, 0), s=size)


def energy(vorticity: Tensor, lengths: tuple[float, float]) -> Tensor:
    """``(..., H, W) -> (...)``: kinetic energy of a unit of mass, mean of (u² + v²) / 2."""
    return velocity(vorticity, lengths).square().sum(-3).mean((-2, -1)) / 2


def enstrophy(vorticity: Tensor) -> Tensor:
    """``(..., H, W) -> (...)``: mean of w² / 2."""
    return vorticity.square().mean((-2, -1)) / 2


def dealias(field: Tensor) -> Tensor:
    """The field ``(..., H, W)`` without the modes that the solver does not carry."""
    kept = waves(_size(field), (1.0, 1.0), field).cut < 1
    return torch.fft.irfft2(torch.where(kept, torch.fft.rfft2(field), 0), s=_size(field))


def courant(vorticity: Tensor, lengths: tuple[float, float], dt: float) -> Tensor:
    """``(B, H, W) -> (B,)``: the largest ``dt (|u|/dx + |v|/dy)``. Stable up to ``sqrt(8) / (2 pi/3) = 1.35``."""
    rows, columns = _size(vorticity)
    u, v = velocity(vorticity, lengths).abs().unbind(-3)
    return dt * (u * (columns / lengths[1]) + v * (rows / lengths[0])).amax((-2, -1))


def stable_dt(vorticity: Tensor, flow: Flow, *, cfl: float = 0.5) -> float:
    """The step at which the fastest point of a batch ``(B, H, W)`` has a Courant number of ``cfl``; inf at rest."""
    fastest = float(courant(vorticity, flow.lengths, 1.0).max())
    return cfl / fastest if fastest > 0 else float("inf")


def steps_for(duration: float, dt: float) -> int:
    """Equal steps of at most ``dt`` that make up ``duration``, at least one."""
    return max(1, ceil(duration / dt - 1e-9))


def advance(vorticity: Tensor, flow: Flow, *, dt: float, steps: int) -> Tensor:
    """The vorticity ``(B, H, W)`` after ``steps`` steps of ``dt``, without the modes the 2/3 rule drops."""
    return next(frames(vorticity, flow, dt=dt, steps_per_frame=steps))


def trajectory(vorticity: Tensor, flow: Flow, *, dt: float, steps_per_frame: int, n_frames: int) -> Tensor:
    """``(B, H, W) -> (B, T, H, W)``: ``n_frames`` frames, the first one ``steps_per_frame`` steps after the start."""
    run = frames(vorticity, flow, dt=dt, steps_per_frame=steps_per_frame)
    return torch.stack([next(run) for _ in range(n_frames)], dim=1)


@torch.no_grad()
def frames(vorticity: Tensor, flow: Flow, *, dt: float, steps_per_frame: int) -> Iterator[Tensor]:
    """Endlessly: the vorticity ``(B, H, W)`` after every ``steps_per_frame`` steps of ``dt``.

    Between frames the state stays spectral: reading a frame changes nothing.

    Raises:
        UserError: the field ceased to be finite, as it does when ``dt`` is too large.
    """
    size = _size(vorticity)
    step = _stepper(size, flow, dt, vorticity)
    spectrum = torch.fft.rfft2(dealias(vorticity))
    while True:
        for _ in range(steps_per_frame):
            spectrum = step(spectrum)
        frame = torch.fft.irfft2(spectrum, s=size)
        if not bool(torch.isfinite(frame).all()):
            raise UserError(
                f"the flow blew up with a step of {dt:g} on a grid of {size[0]} x {size[1]}: choose a smaller step "
                f"(stable_dt gives one) or look for values that are not finite in the vorticity it began with."
            )
        yield frame


def _stepper(size: tuple[int, int], flow: Flow, dt: float, like: Tensor) -> Callable[[Tensor], Tensor]:
    """One step of ``dt`` on spectra ``(B, H, W // 2 + 1)``; everything that does not change is computed here, once."""
    k = waves(size, flow.lengths, like)
    kept = k.cut < 1
    to_velocity = torch.stack([1j * k.y * k.inverse, -1j * k.x * k.inverse])[:, None]
    # (u v)^ and (u² - v²)^ to the advection's spectrum: -(ikx)² + (iky)² and (ikx)(iky), nothing beyond the cut-off.
    of_shear = torch.where(kept, k.x**2 - k.y**2, 0)
    of_normal = torch.where(kept, -(k.x * k.y), 0)
    half = torch.exp(-(flow.viscosity * k.squared + flow.drag) * (dt / 2))
    force = None
    if flow.forcing is not None:
        field = flow.forcing(*grid(size, flow.lengths, like)) if callable(flow.forcing) else flow.forcing
        force = torch.where(kept, torch.fft.rfft2(field.to(like)), 0)

    def tendency(spectrum: Tensor) -> Tensor:
        u, v = torch.fft.irfft2(to_velocity * spectrum, s=size)
        shear, normal = torch.fft.rfft2(torch.stack([u * v, (u - v) * (u + v)]))
        rate = of_shear * shear + of_normal * normal
        return rate if force is None else rate + force

    def step(spectrum: Tensor) -> Tensor:
        moved = half * spectrum
        first = half * tendency(spectrum)
        second = tendency(moved + (dt / 2) * first)
        third = tendency(moved + (dt / 2) * second)
        fourth = tendency(half * (moved + dt * third))
        return half * (moved + (dt / 6) * (first + 2 * (second + third))) + (dt / 6) * fourth

    return step


def tail_share(vorticity: Tensor) -> Tensor:
    """``(B, H, W) -> (B,)``: share of the enstrophy in the last tenth of the resolved wavenumbers."""
    cut = waves(_size(vorticity), (1.0, 1.0), vorticity).cut
    # A column of rfft2 stands for its mirror image too, but for the first (and the Nyquist one, which is cut off).
    power = torch.fft.rfft2(vorticity).abs().square()
    power[..., 1:] *= 2
    whole = torch.where((cut < 1) & (cut > 0), power, 0).sum((-2, -1))
    tail = torch.where((cut < 1) & (cut >= TAIL), power, 0).sum((-2, -1))
    return tail / whole.clamp_min(torch.finfo(vorticity.dtype).tiny)


def check_resolved(vorticity: Tensor, flow: Flow) -> None:
    """Raise UserError unless the enstrophy spectrum of every member ``(B, H, W)`` has fallen before the cut-off.

    Enstrophy runs down to the scale where viscosity eats it. If the grid ends before, it piles up at the cut-off and
    the small scales are the truncation's, not the flow's. The measure is :func:`tail_share`: 0.1 when the spectrum
    is flat. Its square root is about the relative error of the vorticity (measured on decaying turbulence beside a
    grid three times as fine, after five turnover times).
    """
    worst = float(tail_share(vorticity).max())
    if worst > LARGEST_TAIL:
        rows, columns = _size(vorticity)
        raise UserError(
            f"{rows} x {columns} points do not resolve the flow at viscosity {flow.viscosity:g}: {worst:.1%} of its "
            f"enstrophy lies in the last tenth of the wavenumbers, expected at most {LARGEST_TAIL:.0%}; choose a "
            "larger viscosity, a slower flow (u_rms) or a finer grid."
        )


def _size(field: Tensor) -> tuple[int, int]:
    return field.shape[-2], field.shape[-1]
