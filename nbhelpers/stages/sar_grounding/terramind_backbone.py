"""Route (a) of TerraMind: its encoder with LoRA, a decoder that looks at the SAR tokens, a correction to opt_v2.

Nothing is sampled, so every loss on pixels reaches the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn

from nbhelpers.science.sentinel2 import DN_PER_REFLECTANCE as DN
from nbhelpers.stages.sar_grounding.adapters import Adapted
from nbhelpers.stages.sar_grounding.terramind import (
    OPTICAL,
    PATCH,
    PLACES,
    S2_STD,
    SAR,
    Size,
    Units,
    build_encoder,
    pad_to_patches,
)

TARGETS = r"encoder\.\d+\.(attn\.(qkv|proj)|mlp\.fc\d)"  # layers that get adapters: attention and MLP


class TerraMindBackbone(nn.Module):
    """opt_v3 = opt_v2 + σ · head(decoder(tokens of SAR and opt_v2, pixels)), with σ the bands' standard deviation.

    The frozen encoder sees the tokens of both images at once and has LoRA in every layer. In the decoder, which is
    trained in full, the optical tokens look at the SAR tokens once more (cross-attention); enlarged 16 times, they
    meet the pixels of both images, because a token knows little of where in its 16 × 16 pixels an edge lies. The head
    starts at zero, so training starts at the identity.

    What was not measured in either image counts as its mean; where opt_v2 is NaN, opt_v3 is.

    Args:
        size: of TerraMind: tiny has 192 numbers a token and trains on a processor, base 768, large 1024.
        pretrained: load its weights from the Hugging Face hub; else they are random, the same each time.
        lora_rank: rank of the adapters.
        lora_alpha: their change is multiplied by lora_alpha / lora_rank.
        width: channels of the decoder at full resolution.

    Raises:
        UserError: terratorch or the weights are missing.
    """

    scale: Tensor
    trained_in_full = ("look", "up", "stem", "mix", "head")  # the decoder

    def __init__(
        self,
        size: Size = "tiny",
        *,
        pretrained: bool = True,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        width: int = 32,
    ):
        super().__init__()
        network = build_encoder(size, pretrained=pretrained)
        dim = int(network.out_channels[-1])  # type: ignore[index]
        self.size, self.pretrained = size, pretrained
        self.units = Units()
        self.register_buffer("scale", torch.tensor(S2_STD)[list(PLACES), None, None] / DN, persistent=False)
        self.encoder = Adapted(network, targets=TARGETS, rank=lora_rank, alpha=lora_alpha)
        self.look = Look(dim)
        self.up = nn.Sequential(
            *(nn.Conv2d(dim, 16 * width, 1), nn.PixelShuffle(4), nn.GELU()),
            *(nn.Conv2d(width, 16 * width, 3, padding=1), nn.PixelShuffle(4), nn.GELU()),
        )
        self.stem = nn.Sequential(nn.Conv2d(2 + len(PLACES), width, 3, padding=1), nn.GELU())
        self.mix = nn.Sequential(*_conv(2 * width, width), *_conv(width, width))
        self.head = nn.Conv2d(width, len(PLACES), 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    @property
    def gap(self) -> Tensor:
        """``(4, 1, 1)`` reflectance that counts where opt_v2 was not measured: the mean that TerraMind knows."""
        return self.units.mean_reflectance

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return f"size={self.size}, pretrained={self.pretrained}, {self.encoder.extra_repr()}"

    def forward(
        self, s1: Tensor, opt_v2: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Ground an image of any size.

        Args:
            s1: ``(B, 2, H, W)`` VV and VH in dB.
            opt_v2: ``(B, 4, H, W)`` reflectance of B2, B3, B4, B8.
            generator: for the interface; nothing is drawn here.

        Returns:
            ``(B, 4, H, W)`` reflectance, float32.
        """
        height, width = opt_v2.shape[-2:]
        sar, optical = (pad_to_patches(x) for x in (self.units.sar(s1), self.units.optical(opt_v2)))
        rows, columns = (side // PATCH for side in sar.shape[-2:])
        tokens = self.encoder({SAR: sar, OPTICAL: optical})[-1]
        seen = self.look(tokens[OPTICAL], tokens[SAR])
        coarse = self.up(seen.transpose(1, 2).unflatten(2, (rows, columns)))
        fine = self.mix(torch.cat([self.stem(torch.cat([sar, optical], 1)), coarse], 1))
        return opt_v2.float() + self.scale * self.head(fine).float()[..., :height, :width]


class Look(nn.Module):
    """x + attention(x → context), then x + MLP(x): each token takes from the context what concerns it."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm_x, self.norm_context, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, max(dim // 64, 1), batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``(B, N, dim)`` and ``(B, M, dim)`` → ``(B, N, dim)``."""
        context = self.norm_context(context)
        x = x + self.attention(self.norm_x(x), context, context, need_weights=False)[0]
        return x + self.mlp(self.norm(x))


def _conv(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, 3, padding=1), nn.GroupNorm(gcd(8, n_out), n_out), nn.GELU()]
