"""The compact generator's networks: a SAR encoder, cross-attention from optical to SAR features, and a denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 2  # pixels; what a 2 × 2 patch holds is turned into channels, so no layer works on the full grid
WINDOW, HALO = 8, 4  # cells of the coarse grid: a window's queries, and how far beyond it their keys lie
COARSE = 2 * PATCH  # pixels of a cell of the coarse grid
MULTIPLE = COARSE * WINDOW  # pixels; height and width of what the networks see
TIMES = 32  # features that a time step is written in


class Residual(nn.Module):
    """Two convolutions around a skip, without a norm (its statistics would make a tile depend on what is cut off).

    Args:
        conditions: features of a vector that scales and shifts the channels in between (Perez et al. 2018, "FiLM",
            arXiv:1709.07871); 0: none.
    """

    def __init__(self, channels: int, conditions: int = 0):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(conditions, 2 * channels) if conditions else None
        with torch.no_grad():
            self.second.weight.mul_(0.5)  # so that the skips' sum does not grow with depth

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``(B, C, h, w)``, with ``condition`` ``(B, conditions)``."""
        hidden = self.first(F.silu(x))
        if self.film is not None:
            scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
            hidden = hidden * (1 + scale) + shift
        return x + self.second(F.silu(hidden))


class Encoder(nn.Module):
    """What a second image shows, on the fine grid (half the pixels) and on the coarse one (a quarter)."""

    def __init__(self, channels: int, fine: int, coarse: int):
        super().__init__()
        self.enter = nn.Conv2d(channels * PATCH**2, fine, 3, padding=1)
        self.fine = nn.Sequential(Residual(fine), Residual(fine))
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.coarse = Residual(coarse)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)`` → ``(B, fine, H/2, W/2)`` and ``(B, coarse, H/4, W/4)``."""
        fine = self.fine(self.enter(F.pixel_unshuffle(image, PATCH)))
        return fine, self.coarse(self.down(fine))


class CrossAttention(nn.Module):
    """Each cell of one map asks the cells of another that lie around it.

    Windows of 8 × 8 queries look at the 16 × 16 keys within and around them, with a learned bias for each offset
    (Liu et al. 2021, "Swin transformer", arXiv:2103.14030): memory grows with the area and not with its square.
    """

    offsets: Tensor

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_y = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        reach = WINDOW + 2 * HALO
        self.bias = nn.Parameter(torch.zeros((WINDOW + reach - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij"), -1).view(
            -1, 1, 2
        )
        there = torch.stack(torch.meshgrid(torch.arange(reach), torch.arange(reach), indexing="ij"), -1).view(1, -1, 2)
        offset = there - place + WINDOW - 1
        self.register_buffer("offsets", offset[..., 0] * (WINDOW + reach - 1) + offset[..., 1], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """What ``x`` ``(B, h, w, C)`` learns from ``y`` of the same shape; h and w are multiples of the window."""
        b, h, w, c = x.shape
        rows, columns, reach = h // WINDOW, w // WINDOW, WINDOW + 2 * HALO
        q = self.q(self.norm_x(x)).view(b, rows, WINDOW, columns, WINDOW, self.heads, -1)
        q = q.permute(0, 1, 3, 5, 2, 4, 6).reshape(b * rows * columns, self.heads, WINDOW**2, -1)
        kv = F.pad(self.kv(self.norm_y(y)).permute(0, 3, 1, 2), [HALO] * 4, mode="replicate")
        kv = kv.unfold(2, reach, WINDOW).unfold(3, reach, WINDOW)  # (B, 2C, rows, columns, reach, reach)
        kv = kv.reshape(b, 2, self.heads, -1, rows, columns, reach**2).permute(1, 0, 4, 5, 2, 6, 3)
        k, v = kv.reshape(2, b * rows * columns, self.heads, reach**2, -1)
        bias = self.bias[self.offsets].permute(2, 0, 1)[None].to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = out.view(b, rows, columns, self.heads, WINDOW, WINDOW, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return self.proj(out.reshape(b, h, w, c))


class CrossBlock(nn.Module):
    """Cross-attention and a two-layer perceptron, each around a skip."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.attention = CrossAttention(channels, heads)
        self.norm = nn.LayerNorm(channels)
        self.widen, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``(B, C, h, w)`` twice → the first with what it found in the second."""
        tokens, others = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
        tokens = tokens + self.attention(tokens, others)
        tokens = tokens + self.narrow(F.gelu(self.widen(self.norm(tokens))))
        return tokens.permute(0, 3, 1, 2)


class Denoiser(nn.Module):
    """The clean residual, from a noisy one, the optical image that it belongs to, and SAR features.

    It starts at 0: the last layer's weights do.

    Args:
        bands: of the optical image and its residual.
        fine, coarse: channels on the two grids, those of the :class:`Encoder`.
        heads, blocks: of the cross-attention on the coarse grid.
    """

    def __init__(self, bands: int, *, fine: int, coarse: int, heads: int, blocks: int):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIMES, coarse), nn.SiLU(), nn.Linear(coarse, coarse), nn.SiLU())
        self.enter = nn.Conv2d(2 * bands * PATCH**2, fine, 3, padding=1)
        self.fine = Residual(fine, coarse)
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.coarse = Residual(coarse, coarse)
        self.blocks = nn.ModuleList(CrossBlock(coarse, heads) for _ in range(blocks))
        self.up = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.fuse = nn.Conv2d(3 * fine, fine, 1)
        self.last = Residual(fine, coarse)
        self.head = nn.Conv2d(fine, bands * PATCH**2, 3, padding=1)
        for tensor in self.head.parameters():
            nn.init.zeros_(tensor)

    def forward(self, noisy: Tensor, optical: Tensor, seen: Sequence[Tensor], time: Tensor) -> Tensor:
        """``(B, bands, H, W)`` from two such, what an :class:`Encoder` saw, and ``(B,)`` times between 0 and 1."""
        condition = self.time(waves(time))
        fine = self.enter(F.pixel_unshuffle(torch.cat([noisy, optical], 1), PATCH))
        fine = self.fine(fine, condition)
        coarse = self.coarse(self.down(fine), condition)
        for block in self.blocks:
            coarse = block(coarse, seen[1])
        hidden = self.fuse(torch.cat([self.up(coarse), fine, seen[0]], 1))
        return F.pixel_shuffle(self.head(F.silu(self.last(hidden, condition))), PATCH)


def waves(time: Tensor) -> Tensor:
    """``(B,)`` → ``(B, TIMES)``: sines and cosines of frequencies from ½ to 16 periods."""
    frequencies = 2.0 ** torch.linspace(-1, 4, TIMES // 2, device=time.device)
    angles = 2 * math.pi * time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)
