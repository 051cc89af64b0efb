"""Where the SAR image has something to say: structure beyond speckle, and backscatter beyond the radar's own noise."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 3.0  # pixels; standard deviation of the Gaussian window in which variances are taken
FLAT = 0.02  # share of every tile in which there is taken to be nothing but speckle
# Variance of speckle over the local variance that such a share stays below: local variances scatter about their mean.
FLAT_FACTOR = 1.50  # 1.37 if pixels are independent, 1.65 as Sentinel-1's are, less what structure is in every part
LEAST_VARIANCE, ONE_LOOK = 0.01, 31.0  # dB², limits of speckle: an image without any, and 5.57² of a single look
NOISE_DB = -25.0  # noise equivalent backscatter; Sentinel-1 must reach -22 dB, and reaches -24 to -30


@torch.no_grad()
def sar_confidence(s1: Tensor) -> Tensor:
    """``(B, H, W)`` in [0, 1): the share of the local variance of backscatter in dB that is structure, not speckle.

    c = max(0, 1 − 1/r) with r the local variance over that of speckle, averaged over VV and VH; 0 where not measured.
    Speckle multiplies power, so that in dB its variance is the same everywhere in a tile: it is read off the flattest
    ``FLAT`` of it. The share is calibrated: over simulated landscapes, whose structure is known, c is what they have of
    it on average (a little more on even ground, less where no part of a tile is flat). On nothing but speckle its mean
    is about 0.1. After the weight of Lee (1980), IEEE TPAMI 2.

    Args:
        s1: ``(B, 2, H, W)`` dB, NaN where not measured.
    """
    measured = s1.isfinite().all(1, keepdim=True)
    x = torch.where(measured, s1.float(), 0.0)
    x = torch.where(measured, x - x.mean((-2, -1), keepdim=True), 0.0)
    weight = _blur(measured.float()).clamp(min=1e-6)
    mean, square = (_blur(y) / weight for y in (x, x.square()))
    variance = (square - mean.square()).clamp(min=0)
    seen = torch.where(measured, variance, torch.nan).flatten(2)
    speckle = FLAT_FACTOR * torch.nanquantile(seen, FLAT, dim=2)[..., None, None].nan_to_num()
    excess = (variance / speckle.clamp(LEAST_VARIANCE, ONE_LOOK)).mean(1)
    return torch.where(measured[:, 0], (1 - 1 / excess.clamp(min=1)), 0.0)


@torch.no_grad()
def backscatter_weight(s1: Tensor) -> Tensor:
    """``(B, H, W)`` in [0, 1): σ/(σ + noise), the share of the power that came back from the ground, mean of VV and VH.

    Close to 1 over land, lower over calm water and in shadow; 0 where not measured.

    Args:
        s1: ``(B, 2, H, W)`` dB, NaN where not measured; best despeckled.
    """
    share = torch.sigmoid((s1.float() - NOISE_DB) * (torch.log(torch.tensor(10.0)) / 10))
    return share.mean(1).nan_to_num()


def _blur(images: Tensor) -> Tensor:
    """Sums of ``(B, C, H, W)`` under a Gaussian, only over what lies in the image."""

    def window(side: int) -> Tensor:
        x = torch.arange(side, device=images.device, dtype=torch.float32)
        return torch.exp(-0.5 * ((x[:, None] - x) / WINDOW).square())

    with torch.autocast(images.device.type, enabled=False):
        return window(images.shape[-2]) @ (images @ window(images.shape[-1])) / (2 * torch.pi * WINDOW**2)
