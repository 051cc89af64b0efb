"""Forecasts that need no training: every score of the model stands beside theirs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nbhelpers.science.image_quality import gaussian_window
from nbhelpers.stages.perceptual_unet.advection import advection_nowcast
from nbhelpers.stages.perceptual_unet.data import VIL

BLUR_SIGMA = 2.0  # pixels; about what an MSE-trained net loses at half an hour


def persistence(frames: Tensor, n_in: int, n_out: int) -> Tensor:
    """The last input frame, repeated: ``(B, n_in + n_out, H, W)`` uint8 → ``(B, n_out, H, W)`` in [0, 1]."""
    last, _ = VIL.to_model(frames[:, n_in - 1 : n_in])
    return last.expand(-1, n_out, -1, -1)


def advection(frames: Tensor, n_in: int, n_out: int) -> Tensor:
    """The last input frame, moved along the motion of the inputs; shapes as in :func:`persistence`."""
    inputs, valid = VIL.to_model(frames[:, :n_in])
    return advection_nowcast(inputs, n_out, valid=valid)


def blurred_truth(frames: Tensor, n_in: int, n_out: int) -> Tensor:
    """A control, no forecast: the truth, blurred. A distance that likes it would like blurred forecasts as well."""
    del n_out
    truth, _ = VIL.to_model(frames[:, n_in:])
    return gaussian_blur(truth, BLUR_SIGMA).clamp(0, 1)


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """``(B, T, H, W)`` frames smoothed by a Gaussian of ``sigma`` pixels, edges replicated."""
    radius = int(4 * sigma + 0.5)
    weights = gaussian_window(sigma, radius).to(frames)
    images = F.pad(frames.flatten(0, 1).unsqueeze(1), (radius,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(images, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return blurred.squeeze(1).reshape(frames.shape)
