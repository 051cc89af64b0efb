"""Settings of the SAR-grounding stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nbhelpers.core.errors import UserError
from nbhelpers.core.settings import replace_checked

Profile = Literal["smoke", "quick", "t4", "full"]
WEIGHTS = ("sar_weight", "cycle_weight", "identity_weight", "lpips_weight", "spectral_weight")


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. Lengths are in pixels of the tiles (10 m as a rule)."""

    # The sizes behind the names: smoke (a minute, CI), quick (10 min on 2 CPU cores), t4 (an hour on a T4), full.
    profile: Profile = "t4"
    # Seed of weights, of the order of tiles and of the noise.
    seed: int = 42
    # Sets of weights and lengths with a name: sar_focus, perceptual, fast, debug.
    preset: Literal["none", "sar_focus", "perceptual", "fast", "debug"] = "none"

    # Folder of the previous step's images, tile_XXX.npz with opt_v2; none: those of simulated tiles, or a proxy.
    stage2_dir: str | None = None
    # Which images are refined: a previous step's (stage2), degraded ones (simulated), or the truth with noise (proxy).
    opt_v2_source: Literal["stage2", "simulated", "proxy"] | None = None
    # Tiles of each split that are used at most; none: all.
    max_samples: int | None = None
    # Side of the random crops that training sees of larger tiles, a multiple of 32; none: whole tiles.
    tile_size: int | None = None
    # Tiles in a batch.
    batch_size: int = 1
    # Batches whose gradients are added up before a step: a larger batch in the memory of a small one.
    grad_accum: int = 8
    # Loader processes; 0 reads in the training process; none: 0 where all fits in memory, else up to 4.
    num_workers: int | None = None

    # The generator: compact, or TerraMind with LoRA (extra `terramind`) as an encoder or as a generator of tokens.
    model: Literal["compact", "terramind-backbone", "terramind-tokens"] = "compact"
    # Denoising steps of a sample.
    timesteps: int = 10
    # Noise that a sample of the compact model starts from: 1 has the detail of the truth, near 0 its best estimate.
    noise: float = 0.3
    # Channels of the compact model at a half and at a quarter of the resolution.
    fine: int = 48
    # The latter.
    coarse: int = 64
    # Let the model see the SAR image; off trains the control that never does.
    use_sar: bool = True
    # Checkpoint of a compact run whose weights are frozen and get LoRA; none trains all weights.
    base: str | None = None
    # Which TerraMind.
    terramind: Literal["tiny", "small", "base", "large"] = "base"
    # Rank of LoRA (TerraMind, or compact with a base).
    lora_rank: int = 8
    # The change of a layer's weights is lora_alpha / lora_rank times that of its adapter.
    lora_alpha: float = 16.0
    # Take TerraMind's published weights; off starts it at random, which the report says.
    pretrained: bool = True

    # Weight of the agreement of edges and texture with the SAR image.
    sar_weight: float = 1.0
    # Weight of the closeness to opt_v2.
    cycle_weight: float = 0.5
    # Weight of the closeness to opt_v2 where the SAR has nothing to say.
    identity_weight: float = 0.3
    # Weight of the LPIPS distance of red, green and blue to the truth.
    lpips_weight: float = 0.1
    # Weight of the absolute error against the truth.
    spectral_weight: float = 1.0
    # Network of LPIPS.
    lpips_net: Literal["squeeze", "alex", "vgg16"] = "alex"
    # Its weights: imagenet (downloaded), the path of a state dict, or random (named in the report).
    lpips_weights: str = "imagenet"

    # Passes over the training tiles.
    epochs: int = 50
    # Learning rate of AdamW; it falls along a cosine.
    lr: float = 1e-4
    # Decoupled weight decay.
    weight_decay: float = 1e-5
    # Largest norm of the gradient; 0 switches clipping off.
    grad_clip: float = 1.0
    # Score and ship a running average of the weights with this decay; 0 switches it off.
    ema_decay: float = 0.0
    # What picks the best checkpoint: the error against the truth, or the agreement with the SAR image, which counts
    # only where error and LPIPS are no worse than those of opt_v2: alone it would reward painting speckle.
    early_stop_metric: Literal["spectral_l1", "sar_agreement"] = "spectral_l1"
    # Stop after this many epochs without a better one; none trains to the end.
    early_stop_patience: int | None = 5
    # By how much it has to be better for that; any gain makes the best checkpoint.
    early_stop_delta: float = 1e-4

    # Fields that may differ when a run is continued.
    may_change: ClassVar[frozenset[str]] = frozenset(
        {"epochs", "num_workers", "early_stop_patience", "early_stop_delta"}
    )

    def __post_init__(self) -> None:
        for name in ("batch_size", "grad_accum", "timesteps", "lora_rank", "epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1.")
        for name in ("max_samples", "early_stop_patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1, or none.")
        for name in ("lr", "lora_alpha", "noise"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected a number above 0.")
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"num_workers is {self.num_workers}, expected 0 or more, or none.")
        for name in ("seed", "weight_decay", "grad_clip", "early_stop_delta", *WEIGHTS):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more.")
        if not any(getattr(self, name) for name in WEIGHTS):
            raise UserError("all five weights are 0: give spectral_weight, or another, a number above 0.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}, expected 0 (off) or a decay below 1, e.g. 0.999.")
        if self.tile_size is not None and (self.tile_size % 32 or self.tile_size < 64):
            raise UserError(
                f"tile_size is {self.tile_size}, expected a multiple of 32 of at least 64, or none for whole tiles."
            )
        for name in ("fine", "coarse"):
            if getattr(self, name) < 4 or getattr(self, name) % 4:
                raise UserError(f"{name} is {getattr(self, name)}, expected a multiple of 4 (heads of the attention).")
        if self.base is not None and self.model != "compact":
            raise UserError(f"base is given, but model is {self.model}: its base is TerraMind, so leave base out.")
        if not self.use_sar and self.model != "compact":
            raise UserError(f"use_sar is off, but model is {self.model}: only the compact model has such a control.")

    @property
    def accumulate(self) -> int:
        """Batches in a step, as ``fit`` knows them."""
        return self.grad_accum

    @classmethod
    def for_profile(cls, profile: str, **changes: Any) -> Config:
        """The settings of ``profile`` with ``changes``.

        Raises:
            UserError: unknown profile or setting, or a value that makes no sense.
        """
        if profile not in PROFILES:
            raise UserError(f"profile {profile!r} is unknown: choose one of {', '.join(PROFILES)}.")
        base = cls(profile=profile, **PROFILES[profile])  # type: ignore[arg-type]
        return base.replace(changes, source="the call")

    def replace(self, changes: Mapping[str, Any], *, source: str) -> Config:
        """A checked copy; a preset brings its settings along, save those that are changed beside it."""
        preset = changes.get("preset", "none")
        if preset != self.preset and isinstance(preset, str):
            changes = {**PRESETS.get(preset, {}), **changes}
        return replace_checked(self, changes, source=source)


PRESETS: dict[str, dict[str, Any]] = {
    "sar_focus": {"sar_weight": 2.0, "cycle_weight": 0.3, "identity_weight": 0.2},
    "perceptual": {"lpips_weight": 0.5, "sar_weight": 0.8},
    "fast": {"early_stop_patience": 3, "early_stop_delta": 5e-4, "epochs": 30},
    "debug": {"max_samples": 100, "epochs": 5, "grad_accum": 2},
}

# With the classical weights the agreement has 60 % of the gradient and rises far above that of the true images: the
# model paints the SAR image. Chosen on validation, simulated scenes.
_BALANCED: dict[str, Any] = {"sar_weight": 0.02, "cycle_weight": 0.05, "identity_weight": 0.05, "noise": 0.1}
_SMALL: dict[str, Any] = {**_BALANCED, "lpips_net": "squeeze", "early_stop_patience": None, "grad_accum": 1}

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {**_SMALL, "fine": 16, "coarse": 16, "batch_size": 8, "epochs": 3, "lr": 3e-3, "timesteps": 4},
    "quick": {**_SMALL, "batch_size": 8, "epochs": 16, "lr": 2e-3, "ema_decay": 0.99},
    "t4": {**_BALANCED, "batch_size": 8, "grad_accum": 1, "lr": 5e-4, "ema_decay": 0.999, "tile_size": 128},
    "full": {},
}

# What `data simulate` writes for each profile.
SIMULATED: dict[str, dict[str, int]] = {
    "smoke": {"n_scenes": 14, "size": 48},
    "quick": {"n_scenes": 120, "size": 64},
    "t4": {"n_scenes": 400, "size": 128},
    "full": {"n_scenes": 1200, "size": 128},
}
