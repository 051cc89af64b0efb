"""Networks of the conditional VAE: encoder of the weather, prior, posterior, decoder.

The latent is a map on the coarse grid: where it rains matters, and what a latent says about one place should move
with that place. Every network sees the static maps at its own resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL = 3
GROUPS = 4  # of the normalisation; channels are multiples of it


class Residual(nn.Module):
    """Two 3 x 3 convolutions on top of ``(B, channels, H, W)``; ``beside`` it, further maps that they may look at."""

    def __init__(self, channels: int, beside: int = 0, *, dropout: float):
        super().__init__()
        self.first = nn.Conv2d(channels + beside, channels, KERNEL, padding=1)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.second = nn.Conv2d(channels, channels, KERNEL, padding=1)

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        return x + self.second(self.dropout(F.silu(self.norm(self.first(torch.cat([x, *beside], 1))))))


class WeatherEncoder(nn.Module):
    """``(B, C, h, w)`` standardised predictors and ``(B, S, h, w)`` statics to ``(B, channels, h, w)``.

    The mean over the domain joins every cell: how moist the whole day is says much about each place.
    """

    def __init__(self, n_predictors: int, n_statics: int, channels: int, *, dropout: float):
        super().__init__()
        self.enter = nn.Conv2d(n_predictors + n_statics, channels, 1)
        self.first = Residual(channels, dropout=dropout)
        self.second = Residual(channels, channels, dropout=dropout)
        self.third = Residual(channels, dropout=dropout)

    def forward(self, x: Tensor, statics: Tensor) -> Tensor:
        hidden = F.silu(self.first(self.enter(torch.cat([x, statics], 1))))
        whole = hidden.mean((-2, -1), keepdim=True).expand_as(hidden)
        return F.silu(self.third(F.silu(self.second(hidden, whole))))


class Prior(nn.Module):
    """Mean and log-variance of p(z|x): ``(B, channels, h, w) -> (B, 2 d_z, h, w)``."""

    def __init__(self, channels: int, d_z: int):
        super().__init__()
        self.body = Residual(channels, dropout=0.0)
        self.head = nn.Conv2d(channels, 2 * d_z, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)  # begins as N(0, 1)

    def forward(self, context: Tensor) -> Tensor:
        return self.head(F.silu(self.body(context)))


class Posterior(nn.Module):
    """Mean and log-variance of q(z|x, y): the rain is brought down to the coarse grid and meets the weather there.

    Args:
        steps: factors by which the fine grid shrinks, finest first; their product is the whole factor.
        d_y: channels of the encoded rain.
    """

    def __init__(
        self,
        n_statics: int,
        context: int,
        *,
        steps: Sequence[int],
        base_filters: int,
        d_y: int,
        d_z: int,
        dropout: float,
    ):
        super().__init__()
        widths = [2 + n_statics, *(min(base_filters * 2**level, d_y) for level in range(1, len(steps))), d_y]
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, max(step, KERNEL), stride=step, padding=1 if step < KERNEL else 0)
            for a, b, step in zip(widths[:-1], widths[1:], steps, strict=True)
        )
        self.blocks = nn.ModuleList(Residual(width, dropout=dropout) for width in widths[1:])
        self.head = nn.Conv2d(d_y + context, 2 * d_z, 1)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, rain: Tensor, measured: Tensor, statics: Tensor, context: Tensor) -> Tensor:
        """``(B, 2 d_z, h, w)`` of transformed rain ``(B, H, W)`` (0 where not measured) and its bool mask."""
        hidden = torch.cat([rain[:, None], measured[:, None].to(rain.dtype), statics], 1)
        for down, block in zip(self.down, self.blocks, strict=True):
            hidden = F.silu(block(F.silu(down(hidden))))
        return self.head(torch.cat([hidden, context], 1))


class Decoder(nn.Module):
    """What is drawn and what is known about the weather, up to the fine grid: ``(B, n_out, H, W)``.

    Args:
        steps: factors by which the grid grows, coarsest first.
    """

    def __init__(
        self,
        d_z: int,
        context: int,
        n_statics: int,
        n_out: int,
        *,
        steps: Sequence[int],
        base_filters: int,
        dropout: float,
    ):
        super().__init__()
        self.steps = tuple(steps)
        widths = [base_filters * 2**level for level in range(len(steps), -1, -1)]
        widths = [min(width, 4 * base_filters) for width in widths]
        self.enter = nn.Conv2d(d_z + context, widths[0], 1)
        self.first = Residual(widths[0], n_statics, dropout=dropout)
        self.carried = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.known = nn.ModuleList(nn.Conv2d(context, width, 1) for width in widths[1:])
        self.blocks = nn.ModuleList(Residual(width, n_statics, dropout=dropout) for width in widths[1:])
        self.head = nn.Conv2d(widths[-1], n_out, 1)

    def forward(self, z: Tensor, context: Tensor, statics: Sequence[Tensor]) -> Tensor:
        """``statics``: the static maps at each resolution, coarsest first, ``(B, S, ·, ·)``."""
        hidden = F.silu(self.first(self.enter(torch.cat([z, context], 1)), statics[0]))
        for carried, known, block, static in zip(self.carried, self.known, self.blocks, statics[1:], strict=True):
            finer = enlarged(carried(hidden), static) + enlarged(known(context), static)
            hidden = F.silu(block(finer, static))
        return self.head(hidden)


def enlarged(coarse: Tensor, like: Tensor) -> Tensor:
    """``coarse`` interpolated bilinearly to the grid of ``like``."""
    return F.interpolate(coarse, size=like.shape[-2:], mode="bilinear", align_corners=False)
