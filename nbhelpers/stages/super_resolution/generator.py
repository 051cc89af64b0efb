"""Generator: a bicubic enlargement, the detail that RRDB and RRFDB add to it, and the projection onto what was seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution.blocks import SLOPE, ResidualInResidual, conv, enlarge, local_contrast


class Generator(nn.Module):
    """SR = P(bicubic(LR) + std(LR)·net((LR − mean(LR))/std(LR))), with mean and std of the surroundings.

    net: convolution → RRDBs → RRFDBs → convolution, with a long skip, → sub-pixel up-sampling (Shi et al. 2016,
    arXiv:1609.05158) → convolution. P is the consistency projection: degrade(SR) = LR. Because the weights start small
    (Kaiming × 0.1), an untrained generator is close to P(bicubic(LR)). Brightness and contrast of a place make no
    difference to what the network sees, and where there is no contrast it can add none.

    9.8 million parameters with its defaults (at ×2 too; 10.0 at ×8). ``features=32, growth=16, num_rrdb=1,
    num_rrfdb=1``, for training on a processor, has 0.27 million.

    Args:
        bands: channels C of the images.
        scale: s, 2, 4 or 8.
        features: channels within the network.
        growth: channels that each convolution of a dense block adds.
        num_rrdb: residual-in-residual dense blocks (ESRGAN, arXiv:1809.00219).
        num_rrfdb: the same with receptive-field blocks (RFB-ESRGAN, arXiv:2005.12597), whose branches have growth/4
            channels each.
        degradation: how LR came from HR, with the same scale and bands.
        consistency: project the output, so that degrade(SR) = LR to 1e-5.

    Raises:
        UserError: scale or number of bands are not the degradation's.
    """

    def __init__(
        self,
        bands: int,
        *,
        scale: int,
        features: int = 64,
        growth: int = 32,
        num_rrdb: int = 12,
        num_rrfdb: int = 6,
        degradation: Degradation,
        consistency: bool = True,
    ):
        super().__init__()
        if (scale, bands) != (degradation.scale, len(degradation.mtf)):
            raise UserError(
                f"The generator was asked for scale {scale} and {bands} bands and its degradation has scale "
                f"{degradation.scale} and {len(degradation.mtf)} bands: make both with the same configuration."
            )
        self.scale, self.consistency, self.degradation = scale, consistency, degradation
        fine = max(features // scale, 8)  # channels at full resolution, where each costs s² times as much
        self.head = conv(bands, features)
        self.body = nn.Sequential(
            *(ResidualInResidual(features, growth) for _ in range(num_rrdb)),
            *(ResidualInResidual(features, growth, max(growth // 4, 4)) for _ in range(num_rrfdb)),
            conv(features, features),
        )
        self.up = nn.Sequential(
            conv(features, fine * scale**2), nn.PixelShuffle(scale), nn.LeakyReLU(SLOPE, inplace=True)
        )
        self.tail = conv(fine, bands)

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return f"scale={self.scale}, consistency={self.consistency}, mtf={self.degradation.mtf}"

    def forward(self, lr: Tensor) -> Tensor:
        """``(B, C, h, w)`` → ``(B, C, s·h, s·w)``, both in model units, float32; not clamped to any range."""
        lr = lr.float()
        contrast = local_contrast(lr)
        shallow = self.head(contrast.normalise(lr))
        detail = self.tail(self.up(shallow + self.body(shallow))).float()
        sr = enlarge(lr, self.scale) + detail * contrast.upsample(self.scale).std
        return self.degradation.project(sr, lr) if self.consistency else sr


def self_ensemble(generator: Callable[[Tensor], Tensor], low: Tensor) -> Tensor:
    """The mean over the eight mirrored and turned inputs, each output turned back: no direction is preferred.

    Timofte, Rothe, Van Gool (2016), "Seven ways to improve example-based single image super resolution", CVPR. It
    costs eight times as much; a mean of consistent images is consistent.

    Args:
        low: ``(B, C, h, w)``.
    """
    outputs = []
    for turns in range(4):
        for mirrored in (False, True):
            x = torch.rot90(low, turns, (-2, -1))
            y = generator(x.flip(-1) if mirrored else x).float()
            outputs.append(torch.rot90(y.flip(-1) if mirrored else y, -turns, (-2, -1)))
    return torch.stack(outputs).mean(0)
