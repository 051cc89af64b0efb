"""How close an image of several bands is to the true one: error, structure, spectrum of colours, sharpness.

Every score takes two images ``(B, C, H, W)``, in any units that both share, and is computed in float64. Bands are not
mixed but in the two scores that are defined over all of them. ``border`` leaves out that many pixels on all four sides.
All raise UserError for images of different shapes, and for such of which the border leaves nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science import spectra

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5  # pixels: a window of 11 x 11


def psnr(prediction: Tensor, truth: Tensor, *, data_range: float, border: int = 0) -> Tensor:
    """``(B, C)`` peak signal-to-noise ratio 10·log₁₀(data_range²/MSE) in dB; infinite for equal images."""
    prediction, truth = _inside(prediction, truth, border)
    return 10 * torch.log10(data_range**2 / (prediction - truth).square().mean((-2, -1)))


def ssim(prediction: Tensor, truth: Tensor, *, data_range: float, border: int = 0) -> Tensor:
    """``(B, C)`` mean structural similarity.

    Gaussian window of 11 pixels and σ = 1.5, constants (0.01·data_range)² and (0.03·data_range)², population variances,
    over the pixels that the window fits into (torchmetrics averages those near the edge too, beside mirrored ones).
    Wang, Bovik, Sheikh, Simoncelli (2004), IEEE TIP 13.

    Raises:
        UserError: images smaller than the window.
    """
    prediction, truth = _inside(prediction, truth, border, smallest=2 * SSIM_RADIUS + 1)
    window = gaussian_window(SSIM_SIGMA, SSIM_RADIUS).to(truth.device)
    x, y = prediction.flatten(0, 1).unsqueeze(1), truth.flatten(0, 1).unsqueeze(1)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).reshape(truth.shape[:2])


def gaussian_window(sigma: float, radius: int) -> Tensor:
    """``(2·radius + 1,)`` float64 weights of a Gaussian of ``sigma`` pixels, with sum 1."""
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    return weights / weights.sum()


def spectral_angle(prediction: Tensor, truth: Tensor, *, border: int = 0) -> Tensor:
    """``(B,)`` mean angle over the pixels between the bands of both images as vectors, in degrees (SAM).

    Units must be 0 where there is no light: reflectance, not model units, whose 0 is grey. It is 2·atan2(|u − v|,
    |u + v|) of the unit vectors (Kahan): the arc cosine of Kruse et al. (1993), Remote Sens. Environ. 44, is the same
    angle, but gives equal spectra up to 1e-6 degrees in float64 and 0.03 in float32. A pixel that is 0 in all bands of
    one image counts 90 degrees, of both 0.
    """
    u, v = (_directions(image) for image in _inside(prediction, truth, border))
    angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
    return torch.rad2deg(angle).mean((-2, -1))


def _directions(image: Tensor) -> Tensor:
    """Unit vectors along the bands; 0 where all bands are 0."""
    length = image.norm(dim=1, keepdim=True)
    return image / torch.where(length > 0, length, 1.0)


def ergas(prediction: Tensor, truth: Tensor, *, scale: float, border: int = 0) -> Tensor:
    """``(B,)`` relative global error in synthesis, ERGAS = 100·(h/l)·√(mean over bands of (RMSE/mean of the truth)²).

    Wald (2000), "Quality of high resolution synthesised images: is there a simple criterion?". Units as for
    :func:`spectral_angle`; infinite where a band of the truth has mean 0.

    Args:
        scale: l/h, the side of an LR pixel in HR pixels (4 for 40 m → 10 m), the ``ratio`` of torchmetrics from 1.4 on.
    """
    prediction, truth = _inside(prediction, truth, border)
    squares = (prediction - truth).square().mean((-2, -1)) / truth.mean((-2, -1)).square()
    return 100 / scale * squares.mean(-1).sqrt()


def power_by_wavelength(images: Tensor) -> Tensor:
    """``(B, C, bins)`` radially averaged power of ``(B, C, H, W)`` images after a Hann window.

    Bin k holds wavenumbers that round to k cycles over the shorter side (k = 1 … half of it), so its wavelength is
    ``min(H, W)/k`` pixels. Float64 for float64 images, else float32.
    """
    shape = images.shape[-2:]
    side = min(shape)
    energy = spectra.shell_energy(images, window="hann", wavelength=side, n_shells=side // 2)
    modes = spectra.modes_per_shell(shape, wavelength=side, n_shells=side // 2)
    # As the squared modulus of an unscaled transform of the tapered image.
    factor = shape.numel() * spectra.hann(shape).square().sum() / modes
    return (energy * factor.to(energy))[..., 1:-1]


def fine_power(images: Tensor, *, max_wavelength: float = 8.0) -> Tensor:
    """``(B, C)`` power at wavelengths of at most ``max_wavelength`` pixels: what a blurred image lacks.

    Under an image that is coarser by ``scale``, 2·scale is the shortest wave that it can hold.
    """
    power = power_by_wavelength(images)
    wavelength = min(images.shape[-2:]) / torch.arange(1, power.shape[-1] + 1, device=images.device)
    return power[..., wavelength <= max_wavelength].sum(-1)


def _inside(prediction: Tensor, truth: Tensor, border: int, *, smallest: int = 1) -> tuple[Tensor, Tensor]:
    """Both images in float64 without their border.

    Raises:
        UserError: their shapes differ, or nothing (less than ``smallest`` pixels each way) is left.
    """
    if prediction.shape != truth.shape or truth.ndim != 4:
        raise UserError(
            f"Images to compare have the shapes {tuple(prediction.shape)} and {tuple(truth.shape)}, expected twice the "
            f"same (images, bands, rows, columns): bring both to one grid."
        )
    rows, columns = (side - 2 * border for side in truth.shape[-2:])
    if min(rows, columns) < smallest:
        raise UserError(
            f"Images of {truth.shape[-2]} x {truth.shape[-1]} pixels without a border of {border} have less than "
            f"{smallest} pixels each way: compare larger images."
        )
    inside = (..., slice(border, border + rows), slice(border, border + columns))
    return prediction.double()[inside], truth.double()[inside]
