"""Errors of fields: relative squared error, its Sobolev form, and the divergence of a velocity.

All are relative, per frame and channel, and squared: a uniform error of 10 % is 0.01. A frame's channel without energy
has no relative error: it is left out, and :func:`silent_channels` names it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science import spectra

SILENT = 1e-12  # mean square, in squared model units, of a channel that holds nothing but rounding


def field_error(prediction: Tensor, target: Tensor, *, valid: Tensor | None = None, dims: int = 2) -> Tensor:
    """Relative squared error ∫(ŷ − y)² dx / ∫y² dx, the mean over batch, time and channel.

    Args:
        prediction, target: ``(B, T, C, H, W)`` in model units, or ``(B, T, C, D, H, W)`` with ``dims=3``.
        valid: ``(B, H, W)`` bool, False inside obstacles; what stands there does not count, NaN included.

    Returns:
        float32 scalar without unit (float64 for float64 fields); 0 if every channel is silent.

    Raises:
        UserError: the shapes do not fit.
    """
    check_fields(prediction, target, dims)
    energy = _mean_square(target, valid, dims)
    counted = energy > SILENT
    error = _mean_square(spectra.at_least_float32(prediction) - target, valid, dims)
    return mean_of(error / torch.where(counted, energy, 1.0), counted)


def silent_channels(target: Tensor, *, valid: Tensor | None = None, dims: int = 2) -> Tensor:
    """``(B, T, C)`` bool: True where a frame's channel has a root mean square below 1e-6 model units.

    Constant channels are so once their mean is removed. Arguments as :func:`field_error`.
    """
    return _mean_square(target, valid, dims) <= SILENT


def sobolev(
    prediction: Tensor, target: Tensor, *, order: float = 1.0, lengths: spectra.Lengths = None, dims: int = 2
) -> Tensor:
    """Relative squared error in the Sobolev norm H^s: Σ_k (1 + |k|²)^s |ŷ − y|²_k / Σ_k (1 + |k|²)^s |y|²_k.

    |k| is counted in fundamentals, so the value has no unit; order 0 is :func:`field_error`. For s = 1 the norm is
    ∫ f² + |∇f|² dx on a box of length 2π, as in Li et al. (2022), arXiv:2106.06898.

    Args:
        prediction, target: ``(B, T, C, H, W)`` in model units, or ``(B, T, C, D, H, W)`` with ``dims=3``.
        lengths: of the box, rows first; periodic.
    """
    check_fields(prediction, target, dims)
    shape = target.shape[-dims:]
    smoothness = (1 + spectra.squared_wavenumber(shape, lengths=lengths)) ** order
    # Divided by the largest, which the ratio does not see: huge fields would overflow else.
    weights = smoothness / smoothness.max() * spectra.multiplicity(shape)
    axes = tuple(range(-dims, 0))

    def norm(field: Tensor) -> Tensor:
        power = spectra.mode_power(spectra.coefficients(field, dims=dims))
        return (power * weights.to(power)).sum(axes)

    counted = ~silent_channels(target, dims=dims)
    error = norm(spectra.at_least_float32(prediction) - target)
    return mean_of(error / torch.where(counted, norm(target), 1.0), counted)


def divergence_penalty(velocity: Tensor, *, lengths: spectra.Lengths = None, dims: int = 2) -> Tensor:
    """∫(∇·v)² dx / ∫|∇v|² dx of a periodic velocity, spectral derivatives, the mean over batch and time.

    Between 0 (incompressible) and 1 (a gradient of a potential); no unit. Frames without a gradient are left out.

    Args:
        velocity: ``(B, T, 2, H, W)``, u along x and v along y, both in the same unit: undo a normalisation that
            differs between them first. ``(B, T, 3, D, H, W)`` with ``dims=3``.
        lengths: of the box, rows first.

    Raises:
        UserError: the number of channels is not that of the space dimensions.
    """
    if velocity.ndim != 3 + dims or velocity.shape[2] != dims:
        raise UserError(
            f"A divergence needs a velocity of shape (B, T, {dims}, ...) with {dims} space dimensions, not "
            f"{tuple(velocity.shape)}: pass the velocity channels alone, e.g. fields[:, :, :{dims}]."
        )
    velocity = spectra.at_least_float32(velocity)
    axes = tuple(range(-dims, 0))
    # The ratio does not change with the scale, which would overflow times |k|² else.
    largest = velocity.detach().abs().amax((2, *axes), keepdim=True)
    velocity = velocity / torch.where(largest > 0, largest, 1.0)
    shape = velocity.shape[-dims:]
    modes = spectra.coefficients(velocity, dims=dims)
    weights = spectra.multiplicity(shape).to(velocity)

    def integral(power: Tensor) -> Tensor:
        return (power * weights).sum(axes)

    # Channel 0 is the velocity along x, the last axis.
    along = reversed(spectra.wavenumbers(shape, lengths=lengths, derivative=True))
    divergence = torch.stack([k.to(velocity) * mode for k, mode in zip(along, modes.unbind(2), strict=True)]).sum(0)
    squares = spectra.squared_wavenumber(shape, lengths=lengths, derivative=True).to(velocity)
    gradient = integral(squares * spectra.mode_power(modes).sum(2))
    counted = gradient > SILENT
    return mean_of(integral(spectra.mode_power(divergence)) / torch.where(counted, gradient, 1.0), counted)


def mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the values where ``counted``; 0 with a gradient of 0 where nothing is."""
    return (values * (counted.to(values) / counted.sum().clamp(min=1))).sum()


def check_fields(prediction: Tensor, target: Tensor, dims: int) -> None:
    """
    Raises:
        UserError: the two differ in shape, or have other than batch, time, channel and ``dims`` space dimensions.
    """
    if prediction.shape != target.shape or target.ndim != 3 + dims:
        raise UserError(
            f"The prediction has shape {tuple(prediction.shape)} and the target {tuple(target.shape)}, but a loss "
            f"needs two fields of one shape (batch, time, channel, {'rows' if dims == 2 else 'depth, rows'}, columns): "
            f"reshape them, or set dims to the number of space dimensions."
        )


def _mean_square(field: Tensor, valid: Tensor | None, dims: int) -> Tensor:
    """``(B, T, C)`` mean of squares over the valid points."""
    axes = tuple(range(-dims, 0))
    field = spectra.at_least_float32(field)
    if valid is None:
        return (field / field[0, 0, 0].numel() ** 0.5).square().sum(axes)  # divided first: huge squares overflow
    valid = valid[:, None, None]
    points = valid.sum(axes, keepdim=True).clamp(min=1)
    return (torch.where(valid, field, 0.0) / points.sqrt()).square().sum(axes)
