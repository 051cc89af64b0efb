"""Power spectra of real fields in shells of true wavenumber, for boxes of any shape, differentiable.

A field on a box with side lengths L_i has modes with n_i waves along side i. Their wavenumber is counted in
fundamentals, waves per longest side: |k| = √Σ (n_i · L_max/L_i)². Shell n holds n − ½ ≤ |k| < n + ½.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbhelpers.core.errors import UserError

Window = Literal["none", "hann"]
Lengths = Sequence[float] | None  # of the box, one per space dimension; None: the numbers of points, spacing 1
BANDS = ("low", "mid", "high")
TIES = 1e-9  # rounding of √ and of ratios of lengths must not decide on which side of n − ½ a mode falls


def shell_energy(
    field: Tensor,
    *,
    dims: int = 2,
    lengths: Lengths = None,
    window: Window = "none",
    wavelength: float | None = None,
    n_shells: int | None = None,
) -> Tensor:
    """Energy of a real field in each shell of wavenumbers: ``(..., n_shells + 2)``.

    E_n = Σ |f̂(k)|² over all modes of shell n, conjugates included, with f̂(k) = (1/V) ∫ f(x) e^{−ik·x} dx, so that
    E_n has the unit of f². Entry 0 is the mean's (|k| < ½), entries 1 … n_shells are the shells, the last one gathers
    all beyond. Parseval: their sum is the mean of f² (of the tapered f, divided by the mean of the squared window).
    The transform is exact for fields that the grid resolves; it runs in float32 (float64 for float64 fields) under
    autocast too.

    Args:
        field: ``(..., H, W)``, or ``(..., D, H, W)`` with ``dims=3``.
        lengths: of the box along those axes, in any one unit.
        window: "hann" tapers fields that are not periodic. Take their mean off first: its peak is two shells wide.
        wavelength: of shell 1, in the unit of ``lengths``; the longest length when None.
        n_shells: how many shells; :func:`resolved_shells` when None.

    Raises:
        UserError: the window is unknown, the lengths are no box, or no shell is resolved.
    """
    if window not in get_args(Window):
        raise UserError(
            f"The window {window!r} of a spectrum is unknown, expected one of {', '.join(get_args(Window))}: set "
            f"`window` to none for periodic fields and to hann for others."
        )
    shape = tuple(field.shape[-dims:])
    sides = _sides(shape, lengths)
    if n_shells is None:
        n_shells = resolved_shells(shape, lengths=sides)
    field = at_least_float32(field)
    if window == "hann":
        taper = hann(shape)
        field = field * (taper / taper.square().mean().sqrt()).to(field)
    shell, weights = _shells(shape, sides, wavelength or max(sides), n_shells, field.device)
    energy: Tensor = _ShellEnergy.apply(field, shell, weights, n_shells + 2)
    return energy


class _ShellEnergy(torch.autograd.Function):
    """Energies by shell of fields; the derivative ∂E_n/∂f = (2/N) Σ_{k in shell n} f̂(k) e^{ik·x} is one inverse FFT.

    Autograd's own path would transform the whole plane of complex modes, and take twice as long.
    """

    @staticmethod
    def forward(ctx: Any, field: Tensor, shell: Tensor, weights: Tensor, n_sums: int) -> Tensor:
        spectrum = coefficients(field, dims=shell.ndim)
        ctx.save_for_backward(spectrum, shell)
        ctx.shape = field.shape[-shell.ndim :]
        # Summed in float64, which the weights are: a shell has thousands of modes.
        power = ((spectrum * spectrum.conj()).real * weights).flatten(-shell.ndim)
        sums = power.new_zeros(*power.shape[:-1], n_sums)
        return sums.scatter_add_(-1, shell.flatten().expand_as(power), power).to(field.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        spectrum, shell = ctx.saved_tensors
        factors = (gradient * (2 / ctx.shape.numel())).gather(-1, shell.flatten().expand(*gradient.shape[:-1], -1))
        return torch.fft.irfftn(spectrum * factors.view(spectrum.shape), s=ctx.shape, norm="forward"), None, None, None


def resolved_shells(shape: Sequence[int], *, lengths: Lengths = None) -> int:
    """Number of shells up to ⅔ of the smallest Nyquist wavenumber, e.g. 21 for 64 × 64.

    Fields from a dealiased solver hold only rounding noise beyond (Orszag 1971, J. Atmos. Sci. 28).

    Raises:
        UserError: no shell is left.
    """
    sides = _sides(tuple(shape), lengths)
    spacing = max(side / points for side, points in zip(sides, shape, strict=True))
    n_shells = math.floor(max(sides) / (3 * spacing) + TIES)
    if n_shells < 1:
        raise UserError(
            f"A field of {' x '.join(map(str, shape))} points resolves no shell of wavenumbers, which takes a longest "
            f"side of at least 3 of its widest cells: use larger fields or a loss without a spectrum."
        )
    return n_shells


def bands(n_shells: int) -> dict[str, slice]:
    """Thirds of the shells 1 … n_shells, as slices of an axis that starts with shell 1: low, mid, high."""
    edges = [round(n_shells * i / len(BANDS)) for i in range(len(BANDS) + 1)]
    return {name: slice(*edges[i : i + 2]) for i, name in enumerate(BANDS)}


def modes_per_shell(
    shape: Sequence[int], *, lengths: Lengths = None, wavelength: float | None = None, n_shells: int | None = None
) -> Tensor:
    """``(n_shells + 2,)`` float64 numbers of modes that :func:`shell_energy` sums in each entry."""
    sides = _sides(tuple(shape), lengths)
    if n_shells is None:
        n_shells = resolved_shells(shape, lengths=sides)
    shell, weights = _shells(tuple(shape), sides, wavelength or max(sides), n_shells, torch.device("cpu"))
    return torch.bincount(shell.flatten(), weights.expand_as(shell).flatten(), minlength=n_shells + 2)


def shell_numbers(shape: Sequence[int], *, lengths: Lengths = None) -> Tensor:
    """``(..., H, W//2 + 1)`` int64 entry of :func:`shell_energy` that each of the :func:`coefficients` is summed in.

    0 for the mean, n for shell n, and one more than the number of resolved shells for all beyond the cut-off.
    """
    sides = _sides(tuple(shape), lengths)
    n_shells = resolved_shells(shape, lengths=sides)
    return _shells(tuple(shape), sides, max(sides), n_shells, torch.device("cpu"))[0].clone()


def hann(shape: Sequence[int]) -> Tensor:
    """Product of Hann windows, 0 at all edges, of the given shape; float64."""
    window = torch.ones((), dtype=torch.float64)
    for points in shape:
        window = window[..., None] * torch.hann_window(points, periodic=False, dtype=torch.float64)
    return window


def at_least_float32(field: Tensor) -> Tensor:
    """Float64 stays; all else becomes float32, because squares of half precision overflow and FFTs lack it."""
    return field if field.dtype == torch.float64 else field.float()


def coefficients(field: Tensor, *, dims: int = 2) -> Tensor:
    """``(..., H, W//2 + 1)`` Fourier coefficients f̂ of a real field, divided by its number of points."""
    return torch.fft.rfftn(at_least_float32(field), dim=tuple(range(-dims, 0)), norm="forward")


def mode_power(spectrum: Tensor) -> Tensor:
    """|f̂|², cheaper backward than ``abs().square()`` and with a gradient at 0."""
    return spectrum.real.square() + spectrum.imag.square()


def wavenumbers(shape: Sequence[int], *, lengths: Lengths = None, derivative: bool = False) -> list[Tensor]:
    """Wavenumbers of :func:`coefficients` in fundamentals, float64: one tensor per axis, which broadcast together.

    Args:
        derivative: 0 instead of the Nyquist wavenumber, whose wave has no odd derivative on the grid.
    """
    sides = _sides(tuple(shape), lengths)
    axes = []
    for axis, (points, side) in enumerate(zip(shape, sides, strict=True)):
        frequency = torch.fft.rfftfreq if axis == len(shape) - 1 else torch.fft.fftfreq
        waves = frequency(points, 1 / points, dtype=torch.float64).round()
        if derivative:
            waves = torch.where(2 * waves.abs() == points, 0.0, waves)
        axes.append((waves * (max(sides) / side)).view([-1 if i == axis else 1 for i in range(len(shape))]))
    return axes


def multiplicity(shape: Sequence[int]) -> Tensor:
    """``(W//2 + 1,)``: how often each column of the half plane stands in the whole one; float64."""
    columns = torch.full((shape[-1] // 2 + 1,), 2.0, dtype=torch.float64)  # itself and its conjugate
    columns[0] = 1.0
    if shape[-1] % 2 == 0:
        columns[-1] = 1.0
    return columns


def squared_wavenumber(shape: Sequence[int], *, lengths: Lengths = None, derivative: bool = False) -> Tensor:
    """``(..., H, W//2 + 1)`` |k|² in squared fundamentals, float64; arguments as :func:`wavenumbers`."""
    along = torch.broadcast_tensors(*wavenumbers(shape, lengths=lengths, derivative=derivative))
    return torch.stack(along).square().sum(0)


def _sides(shape: tuple[int, ...], lengths: Lengths) -> tuple[float, ...]:
    sides = tuple(float(length) for length in (shape if lengths is None else lengths))
    if len(sides) != len(shape) or not all(0 < side < math.inf for side in sides):
        raise UserError(
            f"The lengths of the box are {sides}, but a field of {' x '.join(map(str, shape))} points needs "
            f"{len(shape)} positive ones: give `lengths` one length per space dimension, rows before columns."
        )
    return sides


@lru_cache(maxsize=16)
def _shells(
    shape: tuple[int, ...], sides: tuple[float, ...], wavelength: float, n_shells: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """``(..., H, W//2 + 1)`` entry that each mode of the half plane is summed in, and its :func:`multiplicity`."""
    with torch.inference_mode(False), torch.device("cpu"):  # made in validation, it must serve training as well
        radius = squared_wavenumber(shape, lengths=sides).sqrt() * (wavelength / max(sides))
        shell = torch.floor(radius + 0.5 + TIES).long().clamp(max=n_shells + 1)
        return shell.to(device), multiplicity(shape).to(device)
