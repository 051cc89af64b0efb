"""The generator that the settings ask for, for training and for using a run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbhelpers.stages.sar_grounding.adapters import Adapted
from nbhelpers.stages.sar_grounding.compact import Compact
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.stages.sar_grounding.survey import Statistics
from nbhelpers.stages.sar_grounding.tiles import Tiles
from nbhelpers.training import checkpoint

# Attention and perceptrons of the compact model, on whose frozen weights LoRA can be put.
COMPACT_TARGETS = r"denoiser\.blocks\.\d+\.(attention\.(q|kv|proj)|widen|narrow)"

UNKNOWN = Statistics(*((0.0,) * n if what == "mean" else (1.0,) * n for n in (2, 4, 4) for what in ("mean", "std")))


def residual_std(tiles: Tiles) -> tuple[float, ...]:
    """Standard deviation of truth − opt_v2 in each band over the training tiles, reflectance."""
    readable = [name for name in tiles.split["train"] if name not in tiles.unreadable]
    squares = [
        np.nanmean((tiles.s2(name) - tiles.opt_v2(name)).astype(np.float64) ** 2, axis=(1, 2)) for name in readable
    ]
    return tuple(np.sqrt(np.mean(squares, axis=0)).tolist())


def make_generator(config: Config, tiles: Tiles | None = None) -> nn.Module:
    """The generator with weights of its own, or with a frozen base and LoRA.

    Args:
        tiles: of whose statistics the compact model makes its units; None: it gets its weights from a checkpoint,
            where these stand as well.

    Raises:
        UserError: a base or an extra that is not there.
    """
    if config.model == "compact":
        return _compact(config, tiles)
    if config.model == "terramind-backbone":
        from nbhelpers.stages.sar_grounding.terramind_backbone import TerraMindBackbone

        return TerraMindBackbone(
            size=config.terramind,
            pretrained=config.pretrained,
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
        )
    from nbhelpers.stages.sar_grounding.terramind_tokens import TerraMindTokens

    return TerraMindTokens(
        size=config.terramind,
        pretrained=config.pretrained,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        timesteps=config.timesteps,
    )


def _compact(config: Config, tiles: Tiles | None) -> nn.Module:
    found = UNKNOWN if tiles is None else tiles.statistics
    compact = Compact(
        sar_mean=found.s1_mean,
        sar_std=found.s1_std,
        optical_mean=found.opt_v2_mean,
        optical_std=found.opt_v2_std,
        residual_std=found.opt_v2_std if tiles is None else residual_std(tiles),
        timesteps=config.timesteps,
        noise=config.noise,
        fine=config.fine,
        coarse=config.coarse,
        with_sar=config.use_sar,
    )
    if config.base is None:
        return compact
    checkpoint.load_weights(checkpoint.at(Path(config.base)), {"generator": compact})
    return Adapted(compact, targets=targets(config), rank=config.lora_rank, alpha=config.lora_alpha)


def gap_values(generator: nn.Module) -> Tensor:
    """``(4, 1, 1)`` reflectance that the generator takes where opt_v2 was not measured: the mean that it knows."""
    plain: Any = getattr(generator, "module", generator)  # within accelerate's wrapping, if there is any
    base: Any = plain.base if isinstance(plain, Adapted) else plain
    gap: Tensor = base.gap
    return gap


def targets(config: Config) -> str:
    """Regular expression of the layers that get LoRA."""
    if config.model == "compact":
        return COMPACT_TARGETS
    if config.model == "terramind-backbone":
        from nbhelpers.stages.sar_grounding.terramind_backbone import TARGETS
    else:
        from nbhelpers.stages.sar_grounding.terramind_tokens import TARGETS
    return TARGETS


def trained(generator: nn.Module) -> list[nn.Parameter]:
    """What an optimizer gets."""
    return [parameter for parameter in generator.parameters() if parameter.requires_grad]


def seeded(seed: int, *words: str) -> torch.Generator:
    """Noise that is the same on every device, by a seed and what it is for."""
    # Of the whole word: names of tiles differ in their last letters.
    numbers = [seed, *(int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") for word in words)]
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
