"""UNet2D: frames in as channels, frames out as channels, every pixel at its place."""

from __future__ import annotations

from math import gcd
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def double_conv(n_in: int, n_out: int) -> nn.Sequential:
    """(3×3 convolution → group norm → ReLU) twice; group norm, because batches are small.

    Of up to eight groups, as many as divide ``n_out``.
    """
    layers: list[nn.Module] = []
    for channels in (n_in, n_out):
        layers += [
            nn.Conv2d(channels, n_out, 3, padding=1, bias=False),
            nn.GroupNorm(gcd(8, n_out), n_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet2D(nn.Module):
    """A UNet with as many up-samplings as poolings (Ronneberger et al. 2015).

    Sizes that are no multiple of ``2**depth`` are padded at the bottom and right by their edge and cropped again, so
    that a pixel of the output lies over the same pixel of the input at any size.

    Args:
        n_in: input frames.
        n_out: predicted frames.
        base: channels of the first level; level k has ``base * 2**k``.
        depth: poolings.
        residual: predict a correction to the last frame; the head starts at zero, so training starts at persistence.
        coordinates: those that the caller gives the frames in, "fixed" or "moving" with the rain. They change what the
            weights mean and nothing here.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        base: int = 32,
        depth: int = 4,
        residual: bool = True,
        coordinates: Literal["fixed", "moving"] = "fixed",
    ):
        super().__init__()
        widths = [base * 2**level for level in range(depth + 1)]
        self.depth, self.residual, self.coordinates = depth, residual, coordinates
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip([n_in, *widths], widths, strict=False))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2) for level in reversed(range(depth))
        )
        self.merge = nn.ModuleList(double_conv(2 * widths[level], widths[level]) for level in reversed(range(depth)))
        self.head = nn.Conv2d(base, n_out, 1)
        if residual:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return f"depth={self.depth}, residual={self.residual}, coordinates={self.coordinates}"

    def forward(self, frames: Tensor) -> Tensor:
        """``(B, n_in, H, W)`` scaled frames in time order → ``(B, n_out, H, W)``, not clipped."""
        height, width = frames.shape[-2:]
        multiple = 2**self.depth
        x = F.pad(frames, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        skips = []
        for level, block in enumerate(self.down):
            if level:
                x = F.max_pool2d(x, 2)
            x = block(x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        out = self.head(x)[..., :height, :width]
        return out + frames[:, -1:] if self.residual else out
