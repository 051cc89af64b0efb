"""UNet2d: the comparison that looks around itself instead of at the spectrum."""

from __future__ import annotations

from math import gcd
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator.fno import check_fields


class ResidualBlock(nn.Module):
    """(Group norm → GELU → 3×3 convolution) twice, added to its input; the second convolution starts at zero."""

    def __init__(self, n_in: int, n_out: int, padding_mode: Literal["circular", "replicate"]):
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, padding=1, padding_mode=padding_mode)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1, padding_mode=padding_mode)
        self.norms = nn.ModuleList(nn.GroupNorm(gcd(8, n), n) for n in (n_in, n_out))
        self.across = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.first(F.gelu(self.norms[0](x)))
        return self.across(x) + self.second(F.gelu(self.norms[1](out)))


class UNet2d(nn.Module):
    """A U-Net (Ronneberger et al. 2015) of residual blocks with group norm, for periodic boxes by default.

    It runs at other resolutions than it was trained at, but its stencils then cover another part of the box.

    Args:
        channels_in, channels_out: fields in and out; frames and parameters are channels.
        width: channels of the first level; level k has ``width * 2**k``.
        depth: halvings of the resolution. Sides that are no multiple of ``2**depth`` are filled up on both sides, with
            what lies across the boundary or with the edge, and cut again.
        periodic: what lies beyond a side is the opposite side; else the edge is repeated.

    Raises:
        UserError: a batch has other channels than ``channels_in``, or fields below ``2**depth`` points a side.
    """

    def __init__(self, *, channels_in: int, channels_out: int, width: int, depth: int = 3, periodic: bool = True):
        super().__init__()
        mode: Literal["circular", "replicate"] = "circular" if periodic else "replicate"
        self.channels_in, self.depth, self.padding_mode = channels_in, depth, mode
        widths = [width * 2**level for level in range(depth + 1)]
        self.lifting = nn.Conv2d(channels_in, width, 3, padding=1, padding_mode=mode)
        self.down = nn.ModuleList(ResidualBlock(a, b, mode) for a, b in zip([width, *widths], widths, strict=False))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2) for level in reversed(range(depth))
        )
        self.merge = nn.ModuleList(
            ResidualBlock(2 * widths[level], widths[level], mode) for level in reversed(range(depth))
        )
        self.norm = nn.GroupNorm(gcd(8, width), width)
        self.projection = nn.Conv2d(width, channels_out, 1)

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return f"depth={self.depth}, padding_mode={self.padding_mode}"

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels_in, H, W)`` → ``(B, channels_out, H, W)``."""
        check_fields(x, self.channels_in)
        height, width = x.shape[-2:]
        multiple = 2**self.depth
        if min(height, width) < multiple:
            raise UserError(
                f"fields of {height} x {width} points cannot be halved {self.depth} times: build the U-Net with a "
                f"depth of {min(height, width).bit_length() - 1} or less"
            )
        fill_y, fill_x = -height % multiple, -width % multiple
        top, left = fill_y // 2, fill_x // 2
        if fill_y or fill_x:
            x = F.pad(x, (left, fill_x - left, top, fill_y - top), mode=self.padding_mode)
        x = self.lifting(x)
        skips = []
        for level, block in enumerate(self.down):
            if level:
                x = F.avg_pool2d(x, 2)
            x = block(x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((skips.pop(), up(x)), 1))
        x = self.projection(F.gelu(self.norm(x)))
        return x[..., top : top + height, left : left + width]
