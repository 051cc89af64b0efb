"""The five terms, each a function of the refined image ``(B, 4, H, W)`` (reflectance) alone.

L = α·SAR + β·cycle + γ·identity + δ·LPIPS + ε·spectral. Errors in reflectance are measured in the standard deviation of
their band over the training tiles: in plain reflectance their gradients are a hundredth of that of a correlation. So
measured, on real pairs with the default weights, SAR has 45-85 % of the gradient and the spectral term 10-20 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nbhelpers.science.perceptual import Lpips
from nbhelpers.science.sar_agreement import (
    LEAST_DB,
    LEAST_LOG,
    correlation,
    despeckled,
    log_reflectance,
    optical_edges,
    sar_edges,
    texture,
)
from nbhelpers.stages.sar_grounding.confidence import backscatter_weight
from nbhelpers.stages.sar_grounding.layout import RGB

Loss = Callable[[Tensor], Tensor]

TEXTURE_SCALE = 3.0  # pixels; standard deviation of the window of local variances
KNEE = 0.1  # standard deviations up to which departures from opt_v2 are charged by their square
STRETCH = 0.3  # reflectance that is white in pictures, and for networks that were trained on photographs


def sar_consistency(s1: Tensor) -> Loss:
    """1 − ½(ρ_edges + ρ_texture): 0 for the SAR image's own structure, 1 by chance, 2 for its opposite.

    ρ_edges is the centred correlation of the edge maps, averaged over scales; ρ_texture that of the maps of local
    standard deviation (a mean squared error of variances is unbounded and drowns the rest). Both are weighted by
    :func:`~nbhelpers.stages.sar_grounding.confidence.backscatter_weight`.

    Args:
        s1: ``(B, 2, H, W)`` dB, NaN where not measured; a sample without any S1 costs 1 and has no gradient.

    Raises:
        UserError: the images are too small for the coarsest scale.
    """
    with torch.no_grad():
        measured = s1.isfinite().all(1)
        smooth = torch.where(measured[:, None], despeckled(s1), torch.nan)
        weight = backscatter_weight(smooth)
        edges = sar_edges(s1)
        rough = texture(smooth.nan_to_num(), measured, TEXTURE_SCALE, least=LEAST_DB)

    def consistency(refined: Tensor) -> Tensor:
        everywhere = torch.ones_like(measured)  # a NaN that a model made must reach the loss
        found = optical_edges(refined, everywhere)
        pairs = zip(edges.maps, found.maps, edges.valid, strict=True)
        edge = torch.stack([correlation(a, b, _middle(weight, a) * valid) for a, b, valid in pairs]).mean(0)
        mine = texture(log_reflectance(refined), everywhere, TEXTURE_SCALE, least=LEAST_LOG)
        texture_rho = correlation(rough, mine, _middle(weight, rough) * (rough > 0))
        return (1 - 0.5 * (edge + texture_rho)).mean()

    return consistency


def cycle_error(opt_v2: Tensor, unit: Tensor, valid: Tensor | None = None) -> Loss:
    """Mean of √(d² + k²) − k with d = (opt_v3 − opt_v2)/unit and k = ``KNEE``: closeness to the input.

    Smooth where a residual model starts, and linear far away, where clouds have to be replaced. Charbonnier et al.
    (1997), IEEE TIP 6.

    Args:
        opt_v2: ``(B, 4, H, W)`` reflectance.
        unit: what errors of each band are measured in; broadcasts with it.
        valid: ``(B, H, W)`` bool, pixels that count; all of them when None.
    """
    error = _errors(opt_v2, unit, valid)
    return lambda refined: _departure(error(refined)).mean() / _share(valid)


def identity_error(opt_v2: Tensor, unit: Tensor, confidence: Tensor, valid: Tensor | None = None) -> Loss:
    """The same departure from opt_v2, weighted by 1 − c: keep it where the SAR has nothing to say.

    The mean of c belongs into the report: near 1 this term is off, near 0 it is the cycle term once more.

    Args:
        opt_v2, unit, valid: as for :func:`cycle_error`.
        confidence: ``(B, H, W)`` c in [0, 1], :func:`~nbhelpers.stages.sar_grounding.confidence.sar_confidence`.
    """
    keep, error = (1 - confidence)[:, None], _errors(opt_v2, unit, valid)
    return lambda refined: (keep * _departure(error(refined))).mean() / _share(valid)


def lpips_error(lpips: Lpips, truth: Tensor, valid: Tensor | None = None) -> Loss:
    """LPIPS distance of red, green and blue, in this order, mean over the batch.

    Args:
        lpips: its network sees both images in float32.
        truth: ``(B, 4, H, W)`` reflectance.
        valid: ``(B, H, W)`` bool, where the truth was measured; elsewhere both images are made equal.
    """
    truth = _filled(truth, truth, valid)
    target = 2 * picture(truth) - 1

    def distance(refined: Tensor) -> Tensor:
        with torch.autocast(refined.device.type, enabled=False):
            return lpips.distance(2 * picture(_filled(refined.float(), truth, valid)) - 1, target).mean()

    return distance


def spectral_error(truth: Tensor, unit: Tensor, valid: Tensor | None = None) -> Loss:
    """Mean of |opt_v3 − truth|/unit over bands and measured pixels.

    Args:
        truth: ``(B, 4, H, W)`` reflectance.
        unit, valid: as for :func:`cycle_error`.
    """
    error = _errors(truth, unit, valid)
    return lambda refined: error(refined).abs().mean() / _share(valid)


def picture(reflectance: Tensor, channels: Sequence[int] = RGB) -> Tensor:
    """``(B, 3, H, W)`` images in [0, 1], red, green, blue, with one stretch for all."""
    return (reflectance[:, list(channels)] / STRETCH).clamp(0, 1)


def _errors(reference: Tensor, unit: Tensor, valid: Tensor | None) -> Loss:
    """``(B, 4, H, W)`` differences from a reference in its unit, 0 where it is not valid."""
    reference = _filled(reference, reference, valid)
    return lambda refined: (_filled(refined.float(), reference, valid) - reference) / unit


def _departure(error: Tensor) -> Tensor:
    return (error.square() + KNEE**2).sqrt() - KNEE


def _share(valid: Tensor | None) -> Tensor | float:
    """By which a mean over all pixels becomes one over the valid ones."""
    return 1.0 if valid is None else valid.float().mean().clamp(min=1e-6)


def _middle(weight: Tensor, like: Tensor) -> Tensor:
    """The part of ``(B, H, W)`` that a map of an inner part lies on."""
    top, left = ((whole - part) // 2 for whole, part in zip(weight.shape[-2:], like.shape[-2:], strict=True))
    return weight[:, top : top + like.shape[-2], left : left + like.shape[-1]]


def _filled(image: Tensor, reference: Tensor, valid: Tensor | None) -> Tensor:
    """``image`` where valid, else the reference, or 0 where that is NaN."""
    return image if valid is None else torch.where(valid[:, None], image, reference.nan_to_num())
