"""Where flows begin: vorticity fields ``(B, H, W)``, float64, of zero mean.

A random field is white noise, drawn with ``numpy`` from ``(seed, number)`` and shaped in Fourier space, so simulation
``number`` begins alike on every machine and in every batch (another grid draws another field of the same law).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import numpy as np
import torch
from torch import Tensor

from nbhelpers.stages.neural_operator.solver import grid, velocity, waves

FNO_ALPHA, FNO_TAU = 2.5, 7.0
# The paper prints a covariance of 7^(3/2) (-lap + 49)^(-2.5). The public generator scales the *field* by 7^(3/2), which
# makes it 7^3 (versions that draw two unit normals a mode: 2 * 7^3). Which made the published files was not checked.
FNO_SCALE = FNO_TAU**3


def gaussian_field(
    numbers: Sequence[int],
    size: tuple[int, int],
    *,
    seed: int = 0,
    alpha: float = FNO_ALPHA,
    tau: float = FNO_TAU,
    scale: float = FNO_SCALE,
) -> Tensor:
    """Gaussian random fields on the unit torus, N(0, ``scale`` (-lap + tau²)^(-alpha)), as the FNO benchmark's.

    In words: with ``w = sum_n c_n exp(2 pi i n·x)``, ``E |c_n|² = scale (4 pi² |n|² + tau²)^(-alpha)``; the mean and
    the Nyquist modes are 0. Source: Li et al. 2021, arXiv:2010.08895, sec. 5.3.
    """
    noise = _noise(numbers, size, seed)
    k = waves(size, (1.0, 1.0), noise)
    power = torch.where(k.inverse > 0, scale * (k.squared + tau**2) ** -alpha, 0)
    rows, columns = size
    spectrum = torch.fft.rfft2(noise) * (power * (rows * columns)).sqrt()
    return torch.fft.irfft2(spectrum, s=size)


def decaying_turbulence(
    numbers: Sequence[int],
    size: tuple[int, int],
    lengths: tuple[float, float] = (2 * pi, 2 * pi),
    *,
    u_rms: float,
    peak: float,
    seed: int = 0,
) -> Tensor:
    """Random phases under the energy spectrum ``E(k) ~ k^7 exp(-3.5 (k / peak)²)``, highest at the wavenumber ``peak``.

    Each field is scaled to a root mean square speed ``u_rms = <u² + v²>^(1/2)`` exactly. The flow finds its own small
    scales in a few turnover times ``1 / (peak u_rms)``. Source: San, Staples 2012, Computers & Fluids 63 (s = 3).
    """
    noise = _noise(numbers, size, seed)
    k = waves(size, lengths, noise)
    # Vorticity has k² times the energy, and a mode its share of a ring of circumference 2 pi k: |w_k|² ~ k E(k).
    power = torch.where(k.inverse > 0, k.squared**4 * torch.exp(-3.5 * k.squared / peak**2), 0)
    phases = torch.fft.rfft2(noise)
    vorticity = torch.fft.irfft2(phases / phases.abs() * power.sqrt(), s=size)
    speed = velocity(vorticity, lengths).square().sum(-3).mean((-2, -1)).sqrt()
    return vorticity * (u_rms / speed)[:, None, None]


def taylor_green(
    size: tuple[int, int],
    lengths: tuple[float, float] = (2 * pi, 2 * pi),
    *,
    amplitude: float = 1.0,
    waves_yx: tuple[int, int] = (1, 1),
) -> Tensor:
    """``amplitude sin(k_y y) sin(k_x x)``, shape ``(1, H, W)``: the eddies only decay, by ``exp(-viscosity k² t)``.

    An exact solution, because lap(w) = -k² w makes the advection vanish (Taylor, Green 1937, Proc. R. Soc. A 158).
    """
    y, x = grid(size, lengths, torch.zeros((), dtype=torch.float64))
    k_y, k_x = (2 * pi * n / length for n, length in zip(waves_yx, lengths, strict=True))
    return (amplitude * torch.sin(k_y * y) * torch.sin(k_x * x))[None]


def _noise(numbers: Sequence[int], size: tuple[int, int], seed: int) -> Tensor:
    """White Gaussian noise of unit variance, ``(B, H, W)`` float64."""
    fields = [np.random.default_rng([seed, number]).standard_normal(size) for number in numbers]
    return torch.from_numpy(np.stack(fields))
