"""Route (b) of TerraMind: the generator proper, trained to name the tokens of the true Sentinel-2 image.

A token is the number, out of 15,360, of what a square of 16 × 16 pixels looks like in all 12 bands. Training is
cross-entropy on these numbers, with LoRA on the self- and cross-attention of encoder and decoder; an image is made by
drawing numbers and decoding them. Drawing passes no gradient back, so no loss on pixels can train this route.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.science.sentinel2 import BANDS as L2A
from nbhelpers.stages.sar_grounding.adapters import Adapted, matching
from nbhelpers.stages.sar_grounding.layout import L2A_KEY
from nbhelpers.stages.sar_grounding.terramind import (
    PATCH,
    Frozen,
    Size,
    Units,
    build_generator,
    pad_to_patches,
)
from nbhelpers.stages.sar_grounding.units import LEAST_DN
from nbhelpers.training.checkpoint import digest_of

# Whole names: `qkv` or `proj` alone would adapt the tokenizer as well, and with it change what the numbers mean.
TARGETS = r"sampler\.model\.(encoder|decoder)\.\d+\.(attn|self_attn|cross_attn)\.(qkv|q|kv|proj)"
IMAGES = ("untok_sen1grd@224", "untok_sen2l2a@224")  # the library's names for the embeddings of SAR and optical image
TARGET = "tok_sen2l2a@224"  # and for the tokens
IGNORED = -100  # number of a token that is not learnt, because its square was not measured in full
TOP_P = 0.8  # tokens are drawn from the likeliest that together have this probability, the library's default


class TokenLogits(nn.Module):
    """Which token belongs where: the library's encoder and decoder, and one step of it for all tokens at once.

    Args:
        sampler: of the library's generation model.
    """

    def __init__(self, sampler: nn.Module):
        super().__init__()
        self.sampler = sampler

    def forward(self, sar: Tensor, optical: Tensor) -> Tensor:
        """``(B, 2, S, S)`` and ``(B, 12, S, S)``, standardised → ``(B, (S/16)², 15360)`` logits."""
        model: Any = self.sampler.model
        images = [model.encoder_embeddings[name](x) for name, x in zip(IMAGES, (sar, optical), strict=True)]
        place = torch.cat([image["emb"] for image in images], 1)
        seen = model.forward_encoder(torch.cat([image["x"] for image in images], 1) + place, encoder_mask=None)
        context = model.decoder_proj_context(seen) + place
        nothing = torch.zeros(len(sar), images[0]["x"].shape[1], dtype=torch.long, device=sar.device)
        wanted = model.decoder_embeddings[TARGET]
        asked = model.mask_token + wanted.forward_embed({"tensor": nothing})["emb"]
        told = model.forward_decoder(asked, context, encoder_mask=None, decoder_attention_mask=None)
        return wanted.forward_logits(told)


class TerraMindTokens(nn.Module):
    """TerraMind's generator on SAR and opt_v2, with LoRA, beside its frozen tokenizer.

    opt_v2 enters as the four of 12 bands that it has, the others at their mean. Tiles that are no square of a multiple
    of 32 pixels are padded by their edge. What was not measured in either image counts as its mean.

    Args:
        size: of TerraMind; the tokenizer has 289 million parameters with any.
        pretrained: load the weights from the Hugging Face hub; else they are random, the same each time, and tokens
            and images mean nothing.
        lora_rank: rank of the adapters.
        lora_alpha: their change is multiplied by lora_alpha / lora_rank.
        timesteps: steps in which the tokenizer's diffusion decoder makes pixels of tokens.
        targets: regular expression of the whole names, in the library's generation model, of the layers to adapt.

    Raises:
        UserError: terratorch or the weights are missing, or the targets hit nothing, or the tokenizer.
    """

    def __init__(
        self,
        size: Size = "tiny",
        *,
        pretrained: bool = True,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        timesteps: int = 10,
        targets: str = TARGETS,
    ):
        super().__init__()
        network: Any = build_generator(size, pretrained=pretrained)
        refuse_tokenizer(network, targets)
        self.size, self.pretrained, self.timesteps = size, pretrained, timesteps
        self.units = Units()
        self.predictor = Adapted(TokenLogits(network.sampler), targets=targets, rank=lora_rank, alpha=lora_alpha)
        self.tokenizer = Frozen(network.tokenizer[TARGET])
        self._tokenizer_sha256 = digest_of(network.tokenizer[TARGET].state_dict())

    @property
    def gap(self) -> Tensor:
        """``(4, 1, 1)`` reflectance that counts where opt_v2 was not measured: the mean that TerraMind knows."""
        return self.units.mean_reflectance

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return (
            f"size={self.size}, pretrained={self.pretrained}, timesteps={self.timesteps}, "
            f"{self.predictor.extra_repr()}, tokenizer={self._tokenizer_sha256}"
        )

    def logits(self, s1: Tensor, opt_v2: Tensor) -> Tensor:
        """Scores of all tokens at every place.

        Args:
            s1: ``(B, 2, H, W)`` VV and VH in dB.
            opt_v2: ``(B, 4, H, W)`` reflectance of B2, B3, B4, B8.

        Returns:
            ``(B, n², 15360)``, row by row, for the square of n × n tokens that the padded image has.
        """
        sar, optical = self.units.sar(s1), self.units.among_l2a(self.units.optical(opt_v2))
        return self.predictor(pad_to_patches(sar, square=True), pad_to_patches(optical, square=True))

    @torch.no_grad()
    def tokens(self, l2a: Tensor) -> Tensor:
        """The tokenizer's numbers for true images, the targets of :meth:`cross_entropy`.

        Args:
            l2a: ``(B, 12, H, W)`` DN of all bands of level 2A, from B1 to B12, s2_offset added; NaN = not measured.

        Returns:
            ``(B, n, n)`` int64; ``IGNORED`` where a square was not measured in full or reaches beyond the image.

        Raises:
            UserError: other than 12 bands, or reflectance instead of DN.
        """
        if l2a.shape[1] != len(L2A):
            raise UserError(
                f"the token route needs all {len(L2A)} bands of the true Sentinel-2 image ({L2A_KEY} of a tile: "
                f"{', '.join(L2A)}) and got {l2a.shape[1]}: prepare the tiles with them, or train "
                "--model terramind-backbone, which takes 4."
            )
        missing = l2a.isnan()
        highest = float(l2a.masked_fill(missing, -torch.inf).max())
        if -torch.inf < highest < LEAST_DN:
            raise UserError(
                f"the highest number in the true Sentinel-2 image is {highest:.3g}, and the token route takes digital "
                f"numbers (reflectance x 1e4): multiply {L2A_KEY} by 1e4."
            )
        ids = self.tokenizer.network.tokenize(pad_to_patches(self.units.l2a(l2a), square=True)).long()  # type: ignore[operator]
        side = PATCH * ids.shape[-1]
        known = torch.zeros(len(l2a), 1, side, side, device=l2a.device)
        known[..., : l2a.shape[-2], : l2a.shape[-1]] = (~missing.any(1, keepdim=True)).float()
        return ids.masked_fill(F.avg_pool2d(known, PATCH)[:, 0] < 1, IGNORED)

    def cross_entropy(self, s1: Tensor, opt_v2: Tensor, tokens: Tensor) -> Tensor:
        """Mean of −log p(true token), over the tokens that are known; ln 15360 = 9.64 is chance.

        Args:
            s1: ``(B, 2, H, W)`` VV and VH in dB.
            opt_v2: ``(B, 4, H, W)`` reflectance of B2, B3, B4, B8.
            tokens: ``(B, n, n)`` of :meth:`tokens`.

        Returns:
            Scalar; 0 where no token is known.
        """
        return token_error(tokens)(self.logits(s1, opt_v2))

    def forward(
        self, s1: Tensor, opt_v2: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> Tensor:
        """Draw images; or, for training, give what :meth:`logits` gives, in the precision of a wrapped call.

        Args:
            s1: ``(B, 2, H, W)`` VV and VH in dB.
            opt_v2: ``(B, 4, H, W)`` reflectance of B2, B3, B4, B8.
            generator: one number is drawn from it, and everything else follows from that. One for each image makes it
                independent of the others, and they are drawn one by one. None: no image is drawn.

        Returns:
            ``(B, 4, H, W)`` reflectance, float32, without a gradient; without a generator ``(B, n², 15360)`` logits.

        Raises:
            UserError: in training mode with gradients on, where the image could only be wanted for a loss.
        """
        if generator is None:
            return self.logits(s1, opt_v2)
        if self.training and torch.is_grad_enabled():
            raise UserError(
                "a loss on the pixels of the token route trains nothing, because its tokens are drawn and that passes "
                "no gradient back: train it with cross-entropy on tokens, or train --model terramind-backbone."
            )
        if isinstance(generator, torch.Generator):
            return self._drawn(s1, opt_v2, generator)
        each = zip(s1.split(1), opt_v2.split(1), generator, strict=True)
        return torch.cat([self._drawn(*one) for one in each])

    @torch.no_grad()
    def _drawn(self, s1: Tensor, opt_v2: Tensor, generator: torch.Generator) -> Tensor:
        height, width = opt_v2.shape[-2:]
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        # The library draws its noise on the processor, wherever the network is.
        local = torch.Generator().manual_seed(seed)
        logits = self.logits(s1, opt_v2)
        n = round(logits.shape[1] ** 0.5)
        ids = draw(logits, local).unflatten(1, (n, n)).to(s1.device)
        decode: Any = self.tokenizer.network.decode_tokens
        image = decode(ids, image_size=n * PATCH, timesteps=self.timesteps, generator=local, verbose=False)
        return self.units.reflectance(image)[..., :height, :width]


def token_error(tokens: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean of −log p(true token) as a function of logits ``(B, n², 15360)``, over the tokens that are known.

    Args:
        tokens: ``(B, n, n)`` of :meth:`TerraMindTokens.tokens`.
    """
    wanted = tokens.flatten()

    def error(logits: Tensor) -> Tensor:
        each = F.cross_entropy(logits.float().flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum")
        return each / (wanted != IGNORED).sum().clamp(min=1)

    return error


def draw(logits: Tensor, generator: torch.Generator, *, top_p: float = TOP_P) -> Tensor:
    """One number for each place, drawn from the likeliest that together have probability ``top_p``.

    Holtzman et al. (2020), "The curious case of neural text degeneration", arXiv:1904.09751.

    Args:
        logits: ``(B, N, V)``.
        generator: on the processor.
        top_p: 0 takes the likeliest one.

    Returns:
        ``(B, N)`` int64, on the processor.
    """
    p, order = logits.float().cpu().softmax(-1).sort(dim=-1, descending=True)
    p[..., 1:] *= (p.cumsum(-1)[..., :-1] < top_p).float()  # the likeliest always stays
    chosen = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(*p.shape[:2], 1)
    return order.gather(-1, chosen)[..., 0]


def refuse_tokenizer(network: nn.Module, targets: str) -> None:
    """See that LoRA targets stay clear of the tokenizer of the library's generation model.

    peft takes a plain name such as ``qkv`` for the end of a layer's name, so that is looked for as well.

    Raises:
        UserError: they hit the tokenizer, or no layer at all, or are no regular expression.
    """
    if hit := [name for name in matching(network, rf"(.*\.)?({targets})") if name.startswith("tokenizer.")]:
        raise UserError(
            f"LoRA targets {targets!r} hit {len(hit)} layers of the tokenizer, e.g. {hit[0]}, which must stay as it "
            f"is: give whole names such as {TARGETS!r}."
        )
