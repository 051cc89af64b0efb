"""The terms of ``L = MSE + μ·MAE + (λ/S)·P``, and LPIPS as the metric that none of them is, of radar frames."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nbhelpers.science.perceptual import Lpips, PerceptualLoss


def pixel_weights(valid: Tensor, target: Tensor, *, emphasis: float = 0.0, even_leads: bool = False) -> Tensor:
    """Weights ``(B, T, H, W)`` of the pixel errors: 0 where nothing was measured, else (1 + emphasis·y)/k.

    The mean squared error is smallest for the mean of all that may come; where strong rain is possible, that is weaker
    rain, and forecasts of strong rain become rare. Weights that grow with what came make up for it (Shi et al. 2017,
    arXiv:1706.03458, whose balanced errors have them in steps).

    Args:
        valid: mask ``(B, T, H, W)``.
        target: what came, of the same shape, in model units.
        emphasis: how much more than a dry pixel one at full scale counts.
        even_leads: divide by the number k = 1 … T of the lead: errors grow with it, and the first leads would have
            little say.
    """
    weights = valid * (1 + emphasis * target)
    if even_leads:
        weights = weights / torch.arange(1, target.shape[1] + 1, device=target.device).view(-1, 1, 1)
    return weights


def squared_error(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean squared error Σ w(ŷ − y)²/Σ w of ``(B, T, H, W)`` in model units; 0 where all weights are 0."""
    return _weighted_mean(torch.where(weights > 0, prediction - target, 0.0).square(), weights)


def absolute_error(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean absolute error Σ w|ŷ − y|/Σ w; arguments as :func:`squared_error`.

    Smallest for the median, which is dry where rain is unlikely; the squared error leaves drizzle there.
    """
    return _weighted_mean(torch.where(weights > 0, prediction - target, 0.0).abs(), weights)


def _weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    return (weights * errors).sum() / weights.sum().clamp(min=1e-6)


def perceptual_error(
    perceptual: PerceptualLoss, target: Tensor, valid: Tensor, *, n_frames: int | None = None
) -> Callable[[Tensor], Tensor]:
    """``P`` of frames as grey images, as a function of the prediction ``(B, T, H, W)`` in model units.

    Args:
        target: ``(B, T, H, W)`` in [0, 1]; its features are computed once, without gradient.
        valid: mask of the same shape; missing pixels are made equal in both images.
        n_frames: look at this many frames of each sample only, in turn through the batch from a random one on, so
            that every lead time is seen equally often; None looks at all.
    """
    leads = None
    if n_frames is not None and n_frames < target.shape[1]:
        first = torch.randint(target.shape[1], ())
        turn = torch.arange(len(target) * n_frames).view(-1, n_frames)
        leads = ((first + turn) % target.shape[1]).to(target.device)

    def images(frames: Tensor) -> Tensor:
        return _grey(_some_frames(frames, leads))

    loss = perceptual.against(images(target), images(valid))
    # Float32 before one frame becomes three channels, whose gradients are summed in the precision of the frame.
    return lambda prediction: loss(images(prediction.float()))


def frame_distance(lpips: Lpips, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """``(B, T)`` distances of ``(B, T, H, W)`` frames in [0, 1]; missing pixels are equal in both."""
    shown = torch.where(valid, prediction, target)
    return lpips(_grey(shown), _grey(target)).reshape(target.shape[:2])


def _grey(frames: Tensor) -> Tensor:
    """``(B·T, 3, H, W)`` images whose three channels are the same frame."""
    return frames.flatten(0, 1).unsqueeze(1).expand(-1, 3, -1, -1)


def _some_frames(frames: Tensor, leads: Tensor | None) -> Tensor:
    """``(B, len(leads[0]), H, W)`` of ``(B, T, H, W)``: the frames ``leads[b]`` of each sample b; all when None."""
    if leads is None:
        return frames
    return frames[torch.arange(len(frames), device=frames.device)[:, None], leads]
