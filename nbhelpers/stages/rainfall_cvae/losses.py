"""The terms of both likelihoods, each a function of what the model puts out alone; only measured land counts.

``hurdle_gamma``: L = NLL + β·KL, the negative variational bound per pixel (at β = 1).
``tail_mae``: L = λ_base·MAE + λ_ext·MAE_ext + λ_mass·L_mass + β·KL, errors in mm/day.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle
from nbhelpers.stages.rainfall_cvae.model import kl_by_latent

Loss = Callable[[Tensor], Tensor]


def per_pixel(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``(B, H, W)`` over the measured pixels; 0 where there are none."""
    return (values * valid).sum() / valid.sum().clamp(min=1)


def negative_log_likelihood(hurdle: Hurdle, rain: Tensor, valid: Tensor, weight: Tensor) -> Loss:
    """Nats a pixel of ``(B, P, H, W)`` maps; the ``(B,)`` weights undo that some days are drawn more often."""
    each = (weight[:, None, None] * valid).float()

    def nll(raw: Tensor) -> Tensor:
        return (each * hurdle.nll(raw.float(), rain, valid)).sum() / each.sum().clamp(min=1e-6)

    return nll


def absolute_error(rain: Tensor, valid: Tensor) -> Loss:
    """MAE in mm/day of ``(B, H, W)`` predictions."""
    return lambda prediction: per_pixel((prediction.float() - rain).abs(), valid)


def tail_error(rain: Tensor, valid: Tensor, threshold: float, *, diluted: bool) -> tuple[Loss, int]:
    """MAE_ext in mm/day, and how many days of the batch have extremes.

    Each day's mean error over its pixels of at least ``threshold`` mm/day, averaged over the days that have such
    pixels. ``diluted`` multiplies it by the share of these days, which is what averaging over all days amounts to.
    """
    extreme = valid & (rain >= threshold)
    pixels = extreme.flatten(1).sum(1)
    has = pixels > 0
    events = int(has.sum())
    # Each extreme pixel's part in the mean of means; all 0 in a batch without extremes.
    part = extreme / (pixels.clamp(min=1) * max(1, events))[:, None, None]
    part = part * (events / max(1, len(rain))) if diluted else part

    def error(prediction: Tensor) -> Tensor:
        return (part * (prediction.float() - rain).abs()).sum()

    return error, events


def mass_error(rain: Tensor, valid: Tensor) -> Loss:
    """|mean(ŷ − y)| of each day over land, in mm/day, averaged over days.

    A mean: the sum over land that it is sometimes written as has as many times the gradient as there are pixels.
    """
    pixels = valid.flatten(1).sum(1)

    def error(prediction: Tensor) -> Tensor:
        difference = ((prediction.float() - rain) * valid).flatten(1).sum(1) / pixels.clamp(min=1)
        return difference.abs().sum() / (pixels > 0).sum().clamp(min=1)

    return error


def kl_divergence(n_land: int, weight: Tensor, *, free_bits: float) -> Loss:
    """KL(q‖p) in nats a land pixel, of the ``(B, 4 d_z, h, w)`` statistics of the latent.

    Summed over latents, each at least ``free_bits`` in the mean over the batch (Kingma et al. 2016, arXiv:1606.04934),
    and divided by the pixels of land, so that β weighs it against an error per pixel whatever the size of the grid.
    """
    days = weight / weight.sum().clamp(min=1e-6)

    def kl(latent: Tensor) -> Tensor:
        each = torch.einsum("b,b...->...", days.to(latent.device), kl_by_latent(latent))
        return (each.clamp(min=free_bits) if free_bits else each).sum() / n_land

    return kl
