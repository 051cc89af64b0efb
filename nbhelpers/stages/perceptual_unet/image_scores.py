"""Scores of whole frames: structural similarity, fractions skill score and sharpness by power spectrum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.science import spectra


def ssim(forecast: Tensor, observed: Tensor) -> Tensor:
    """``(B, T)`` mean structural similarity of ``(B, T, H, W)`` frames in [0, 1].

    Gaussian window of 11 pixels and σ = 1.5, data range 1, population variances, over the pixels that the window
    fits into. Wang, Bovik, Sheikh, Simoncelli (2004), IEEE TIP 13.
    """
    window = _gaussian(1.5, 5).to(forecast.device)
    x, y = forecast.double().flatten(0, 1).unsqueeze(1), observed.double().flatten(0, 1).unsqueeze(1)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).reshape(forecast.shape[:2])


def _gaussian(sigma: float, radius: int) -> Tensor:
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    return weights / weights.sum()


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """``(B, T, H, W)`` frames smoothed by a Gaussian of ``sigma`` pixels, edges replicated."""
    radius = int(4 * sigma + 0.5)
    weights = _gaussian(sigma, radius).to(frames)
    images = F.pad(frames.flatten(0, 1).unsqueeze(1), (radius,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(images, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return blurred.squeeze(1).reshape(frames.shape)


def fss_sums(forecast: Tensor, observed: Tensor, size: int) -> Tensor:
    """``(B, T, 2)``: numerator and denominator of 1 − FSS, which add up over frames.

    FSS = 1 − Σ(P_f − P_o)²/(ΣP_f² + ΣP_o²) with P the share of event pixels in a square of ``size`` pixels. Roberts
    and Lean (2008), MWR 136.

    Args:
        forecast, observed: ``(B, T, H, W)`` bool, event or not.
    """
    # The padding of an even square is one pixel longer at its end, so that every square lies where its partner does.
    pad = ((size - 1) // 2, size // 2) * 2

    def fraction(events: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(events.float(), pad), size, stride=1)

    forecast_fraction, observed_fraction = fraction(forecast), fraction(observed)
    difference = (forecast_fraction - observed_fraction).square().sum((-2, -1))
    return torch.stack([difference, (forecast_fraction.square() + observed_fraction.square()).sum((-2, -1))], -1)


def power_by_wavelength(frames: Tensor) -> Tensor:
    """``(B, T, bins)`` radially averaged power of ``(B, T, H, W)`` frames after a Hann window.

    Bin k holds wavenumbers that round to k cycles over the shorter side (k = 1 … half of it), so its wavelength is
    ``min(H, W)/k`` pixels.
    """
    shape = frames.shape[-2:]
    side = min(shape)
    energy = spectra.shell_energy(frames.float(), window="hann", wavelength=side, n_shells=side // 2)
    modes = spectra.modes_per_shell(shape, wavelength=side, n_shells=side // 2)
    # As the squared modulus of an unscaled transform of the tapered frame.
    scale = shape.numel() * spectra.hann(shape).square().sum() / modes
    return (energy * scale.to(energy))[..., 1:-1]


def fine_power(frames: Tensor, *, max_wavelength: float = 8.0) -> Tensor:
    """``(B, T)`` power at wavelengths of at most ``max_wavelength`` pixels: what a blurred forecast lacks."""
    power = power_by_wavelength(frames)
    wavelength = min(frames.shape[-2:]) / torch.arange(1, power.shape[-1] + 1, device=frames.device)
    return power[..., wavelength <= max_wavelength].sum(-1)
