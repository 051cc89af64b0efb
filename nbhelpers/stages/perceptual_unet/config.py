"""Settings of the radar-nowcasting stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nbhelpers.core.errors import UserError
from nbhelpers.core.settings import replace_checked
from nbhelpers.training.weights import Share

Profile = Literal["smoke", "quick", "t4", "full"]
Net = Literal["vgg16", "squeeze", "alex"]

CLASSICAL_LAMBDA = (1e-4, 5e-3)  # the range of λ in use for this loss, with S = 6000: there the term is all but off
CLASSICAL_SCALE = 6000.0
MIN_SIDE = 32  # pixels; the feature networks pool smaller images away


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. Lengths are in pixels of the radar grid (1 km for SEVIR)."""

    # The sizes behind the names: smoke (a minute, CI), quick (10 min on 2 CPU cores), t4 (an hour on a T4), full.
    profile: Profile = "t4"
    # Seed of weights and of the random windows.
    seed: int = 0

    # Frames the model sees.
    n_in: int = 12
    # Frames it predicts.
    n_out: int = 1
    # Minutes between frames; none takes the data's own step.
    step_minutes: int | None = None
    # Events used: tiny 8 training + 4 evaluation, medium 24 + 6, large 48 + 12, or all.
    subset: Literal["tiny", "medium", "large", "all"] = "all"
    # Largest pct_missing (a fraction, 0-1) an event may have; SEVIR's protocol wants 0.
    max_pct_missing: float = 0.0
    # Side of the random training crops; 0 trains on whole frames.
    crop: int = 256
    # Random windows drawn in an epoch, about as many (and at least one) from each training event.
    windows_per_epoch: int = 1600
    # Fixed windows of each validation and test event, evenly spaced in time.
    eval_windows: int = 3
    # Flip and rotate training windows by quarter turns.
    augment: bool = True
    # Windows in a step.
    batch_size: int = 4
    # Loader processes; 0 reads in the training process, which is fastest when the events fit in memory.
    num_workers: int = 0
    # Memory for decoded events, in GB; where they do not all fit, it also decides the order they are drawn in.
    cache_gb: float = 4.0

    # Channels of the first UNet level; each level doubles them.
    base_channels: int = 32
    # Poolings (and as many up-samplings).
    depth: int = 4
    # Forecast that the net corrects: none, the last frame, or the last frame moved along its motion; with the last one
    # the net works in coordinates that move with the rain.
    first_guess: Literal["none", "persistence", "advection"] = "advection"

    # How much more than a dry pixel one at full scale counts in the pixel errors: w = 1 + emphasis·y; 0: all alike.
    emphasis: float = 2.0
    # Divide the pixel errors at the k-th lead time by k, so that the first ones, where errors are small, have a say.
    even_leads: bool = True
    # Weight μ of the mean absolute error beside the mean squared one; 0 leaves it out.
    mae_weight: float = 0.1
    # Weight λ of the perceptual term in MSE + μ·MAE + (λ/S)·P; setting it switches perceptual_share off.
    lambda_perc: float | None = None
    # S in that formula.
    perceptual_scale: float = CLASSICAL_SCALE
    # Share of the gradient that the perceptual term shall have (0.1 = 10 %); used when lambda_perc is not set.
    perceptual_share: float | None = 0.1
    # Predicted frames of each window that the perceptual term looks at, in turn; none for all.
    perceptual_frames: int | None = None
    # Network whose features the perceptual term compares.
    backbone: Net = "vgg16"
    # Its weights: imagenet (downloaded), the path of a state dict, or random (named in the report).
    backbone_weights: str = "imagenet"
    # Network of the LPIPS metric.
    lpips_net: Net = "alex"
    # Its weights, as above; none takes those of the backbone when the nets are the same, else imagenet.
    lpips_weights: str | None = None

    # Passes over the training events.
    epochs: int = 10
    # Learning rate of Adam.
    lr: float = 1e-3
    # Let the learning rate fall to zero along a cosine over all epochs.
    cosine: bool = True
    # Largest norm of the whole gradient; 0 switches clipping off.
    grad_clip: float = 1.0
    # Batches whose gradients are added up before a step: a larger batch in the memory of a small one.
    accumulate: int = 1
    # Score and ship a running average of the weights with this decay, e.g. 0.999; 0 switches it off.
    ema_decay: float = 0.0
    # Validation metric that picks the best checkpoint.
    monitor: str = "csi_74"
    # Stop after this many epochs without a better monitor; none trains to the end.
    patience: int | None = None
    # Epochs during which patience is not counted.
    armed_after: int = 0

    # Fields that may differ when a run is continued.
    may_change: ClassVar[frozenset[str]] = frozenset({"epochs", "num_workers", "patience"})

    def __post_init__(self) -> None:
        for name in (
            "n_out",
            "windows_per_epoch",
            "eval_windows",
            "batch_size",
            "base_channels",
            "epochs",
            "accumulate",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.n_in < 2:
            raise UserError(f"n_in is {self.n_in}, expected at least 2: one frame shows no motion.")
        for name in ("lr", "perceptual_scale", "cache_gb"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected a number above 0.")
        for name in (
            "seed",
            "depth",
            "num_workers",
            "crop",
            "grad_clip",
            "max_pct_missing",
            "armed_after",
            "emphasis",
            "mae_weight",
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}, expected 0 (off) or a decay below 1, e.g. 0.999.")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience is {self.patience}, expected at least 1 epoch, or none to train to the end.")
        if self.perceptual_frames is not None and self.perceptual_frames < 1:
            raise UserError(f"perceptual_frames is {self.perceptual_frames}, expected at least 1, or none for all.")
        if (self.lambda_perc is None) == (self.perceptual_share is None):
            raise UserError(
                "set either lambda_perc or perceptual_share (and the other to none): both weight the same term."
            )
        if 0 < self.crop < MIN_SIDE:
            raise UserError(f"crop is {self.crop}, expected 0 (whole frames) or at least {MIN_SIDE} pixels.")
        if self.lambda_perc is not None and not self.lambda_perc >= 0:
            raise UserError(f"lambda_perc is {self.lambda_perc}, expected 0 or more.")
        if self.perceptual_share is not None and not 0 <= self.perceptual_share < 1:
            raise UserError(
                f"perceptual_share is {self.perceptual_share}, expected a share in [0, 1), e.g. 0.1 for 10 %."
            )

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
        """A checked copy; setting λ switches the share off and the other way round."""
        changes = dict(changes)
        for one, other in (("lambda_perc", "perceptual_share"), ("perceptual_share", "lambda_perc")):
            if changes.get(one) is not None:
                changes.setdefault(other, None)
        return replace_checked(self, changes, source=source)

    @property
    def perceptual_weight(self) -> float | Share:
        """The factor λ/S of the perceptual term, or the share of the gradient it shall have."""
        if self.lambda_perc is not None:
            return self.lambda_perc / self.perceptual_scale
        return Share(self.perceptual_share or 0.0)

    @property
    def perceptual_is_off(self) -> bool:
        """Whether the loss has no perceptual term."""
        return self.lambda_perc == 0 or self.perceptual_share == 0

    @property
    def lpips_source(self) -> str:
        """Weights of the LPIPS network once the default is filled in."""
        if self.lpips_weights is not None:
            return self.lpips_weights
        return self.backbone_weights if self.lpips_net == self.backbone else "imagenet"


_SMALL_NET: dict[str, Any] = {"backbone": "squeeze", "lpips_net": "squeeze"}  # 5 MB instead of 800 MB of weights

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        **_SMALL_NET, "n_in": 6, "n_out": 3, "crop": 64, "windows_per_epoch": 40, "eval_windows": 1, "base_channels": 8,
        "depth": 3, "batch_size": 8, "epochs": 2, "max_pct_missing": 0.3, "lr": 2e-3, "perceptual_frames": 1,
    },
    "quick": {
        **_SMALL_NET, "n_out": 6, "crop": 128, "windows_per_epoch": 800, "base_channels": 16, "batch_size": 8,
        "epochs": 8, "max_pct_missing": 0.3, "perceptual_frames": 1,
    },
    "t4": {"n_out": 6, "crop": 256, "batch_size": 8, "epochs": 20, "perceptual_frames": 2},
    "full": {
        "n_in": 13, "n_out": 12, "crop": 0, "windows_per_epoch": 20_000, "batch_size": 8, "epochs": 50,
        "perceptual_frames": 2,
        "cache_gb": 12.0,
    },
}  # fmt: skip

# What `data simulate` writes for each profile: SEVIR's 5-minute step, smaller grids.
SIMULATED: dict[str, dict[str, int]] = {
    "smoke": {"n_events": 12, "size": 96, "n_frames": 25},
    "quick": {"n_events": 48, "size": 192, "n_frames": 49},
    "t4": {"n_events": 200, "size": 256, "n_frames": 49},
    "full": {"n_events": 800, "size": 384, "n_frames": 49},
}
