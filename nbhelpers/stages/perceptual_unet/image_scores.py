"""The fractions skill score of frames, and the blur of a baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.science.image_quality import gaussian_window


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """``(B, T, H, W)`` frames smoothed by a Gaussian of ``sigma`` pixels, edges replicated."""
    radius = int(4 * sigma + 0.5)
    weights = gaussian_window(sigma, radius).to(frames)
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
