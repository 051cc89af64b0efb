"""Settings of the super-resolution stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nbhelpers.core.errors import UserError
from nbhelpers.core.settings import replace_checked
from nbhelpers.training.weights import Share

Profile = Literal["smoke", "quick", "t4", "full"]
Net = Literal["vgg19", "squeeze", "alex"]

CLASSICAL_PERC, CLASSICAL_ADV = 1.0, 1e-3  # ESRGAN-like weights of VGG19 features and of the adversarial term
# Each pair weighs the same loss term, by a number or by a share of the gradient.
ALTERNATIVES = (("lambda_perc", "perceptual_share"), ("lambda_adv", "adversarial_share"))


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. Lengths are in pixels of the high resolution (10 m as a rule)."""

    # The sizes behind the names: smoke (a minute, CI), quick (10 min on 2 CPU cores), t4 (an hour on a T4), full.
    profile: Profile = "t4"
    # Seed of weights and of the random crops.
    seed: int = 0

    # Sentinel-2 bands of one resolution.
    bands: tuple[str, ...] = ("B02", "B03", "B04", "B08")
    # Red, green and blue of pictures, of the perceptual term and of LPIPS: three of the bands.
    rgb: tuple[str, str, str] = ("B04", "B03", "B02")
    # How many times finer than its input the output is.
    scale: Literal[2, 4, 8] = 4
    # Modulation transfer function of the low resolution at its Nyquist frequency: one value, or one a band.
    mtf: tuple[float, ...] = (0.30,)
    # Standard deviation of noise added to all inputs, as reflectance; with consistency it stays in the output.
    noise: float = 0.0
    # Reflectance that is 1 in model units (0 is -1), and the data range of PSNR and SSIM.
    max_reflectance: float = 1.0
    # Digital number added to all files (-1000 for products since January 2022); none takes what each product says.
    offset: int | None = None
    # Reflectance to model units: by max_reflectance, or by each band's 2nd and 98th percentile over the training set.
    scaling: Literal["physical", "percentile"] = "physical"
    # What no two splits share: the tile of each patch, its country, or what the data set's own split says.
    split: Literal["place", "country", "official"] = "place"
    # Places held out by name, instead of those that the rule picks.
    val_places: tuple[str, ...] = ()
    # The same for the test split.
    test_places: tuple[str, ...] = ()
    # A separate folder of validation patches; none splits the data folder.
    val_dir: str | None = None
    # Patches that are used at most, as many from each place as there are; none: all that the folders hold.
    max_patches: int | None = None
    # Side of the random training crops.
    crop: int = 120
    # Random crops drawn in an epoch.
    crops_per_epoch: int = 4000
    # Whole patches of the validation and of the test split that are scored, at most.
    eval_patches: int = 400
    # Flip and rotate training crops by quarter turns.
    augment: bool = True
    # Crops in a step.
    batch_size: int = 8
    # Loader processes; 0 reads in the training process, which is fastest when the patches fit in memory.
    num_workers: int = 0
    # Memory for decoded patches, in GB.
    cache_gb: float = 4.0

    # Channels of the generator's trunk.
    features: int = 64
    # Channels that each dense convolution adds.
    growth: int = 32
    # Residual-in-residual dense blocks.
    num_rrdb: int = 12
    # Residual-in-residual receptive-field dense blocks after them.
    num_rrfdb: int = 6
    # Correct every output so that its degradation is the input.
    consistency: bool = True
    # Average the outputs of the eight mirrored and turned inputs when scoring and predicting: eight times the time.
    self_ensemble: bool = False
    # Judge of the second stage: a U-Net that says real or not for every pixel, or a VGG-style one for every patch.
    discriminator: Literal["unet", "vgg"] = "unet"
    # Channels of its first layer.
    discriminator_features: int = 64

    # Share of the absolute error in the first stage's pixel loss; the rest is squared error.
    l1_part: float = 0.8
    # Weight of the absolute error in the second stage.
    lambda_pix: float = 1.0
    # Weight of the perceptual term in the second stage; setting it switches perceptual_share off.
    lambda_perc: float | None = None
    # Share of the gradient that the perceptual term shall have; used when lambda_perc is not set.
    perceptual_share: float | None = 0.3
    # Weight of the adversarial term; setting it switches adversarial_share off.
    lambda_adv: float | None = None
    # Share of the gradient that the adversarial term shall have; used when lambda_adv is not set.
    adversarial_share: float | None = 0.1
    # Epochs over which the adversarial term's weight rises from 0.
    adversarial_ramp: float = 2.0
    # Network whose features the perceptual term compares, on the RGB bands.
    backbone: Net = "vgg19"
    # Its weights: imagenet (downloaded), the path of a state dict, or random (named in the report).
    backbone_weights: str = "imagenet"
    # Network of the LPIPS metric.
    lpips_net: Literal["squeeze", "alex", "vgg16"] = "alex"
    # Its weights, as above; none takes those of the backbone when the nets are the same, else imagenet.
    lpips_weights: str | None = None

    # Epochs with the pixel loss alone.
    stage1_epochs: int = 50
    # Epochs with perceptual and adversarial terms; 0 leaves the second stage out.
    stage2_epochs: int = 30
    # Learning rate of the first stage; it falls along a cosine.
    stage1_lr: float = 1e-4
    # Learning rate of the generator in the second stage; halved at 1/2, 3/4 and 7/8 of it.
    stage2_lr: float = 5e-5
    # The discriminator's learning rate over the generator's.
    discriminator_lr_factor: float = 2.0
    # Weight decay of all optimizers.
    weight_decay: float = 1e-4
    # Largest norm of each network's gradient; 0 switches clipping off.
    grad_clip: float = 0.1
    # Batches whose gradients are added up before a step: a larger batch in the memory of a small one.
    accumulate: int = 1
    # Score and ship a running average of the weights with this decay; 0 switches it off.
    ema_decay: float = 0.999
    # How many of the second stage's best checkpoints may be averaged into the shipped generator; 1: the best alone.
    ensemble: int = 3
    # Validation metric that picks the second stage's best checkpoints (the first stage's is psnr).
    monitor: str = "lpips"
    # By this epoch PSNR on validation must be as good as bicubic interpolation's.
    bicubic_by: int = 5

    # Fields that may differ when a run is continued.
    may_change: ClassVar[frozenset[str]] = frozenset({"stage2_epochs", "num_workers", "cache_gb"})

    def __post_init__(self) -> None:
        for name in (
            "crops_per_epoch", "eval_patches", "batch_size", "features", "growth", "num_rrdb", "discriminator_features",
            "stage1_epochs", "accumulate", "ensemble", "bicubic_by",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.max_patches is not None and self.max_patches < 3:
            raise UserError(f"max_patches is {self.max_patches}, expected at least 3 (one a split), or none for all.")
        for name in ("max_reflectance", "cache_gb", "stage1_lr", "stage2_lr", "discriminator_lr_factor"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected a number above 0.")
        for name in (
            "seed", "noise", "num_workers", "num_rrfdb", "stage2_epochs", "weight_decay", "grad_clip", "lambda_pix",
            "adversarial_ramp",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}, expected 0 (off) or a decay below 1, e.g. 0.999.")
        if not 0 <= self.l1_part <= 1:
            raise UserError(f"l1_part is {self.l1_part}, expected a part between 0 and 1.")
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise UserError(f"bands is {' '.join(self.bands)!r}, expected different band names, e.g. B02 B03 B04 B08.")
        if not set(self.rgb) <= set(self.bands):
            raise UserError(
                f"rgb is {' '.join(self.rgb)}, expected three of the bands ({' '.join(self.bands)}): set rgb too."
            )
        if len(self.mtf) not in (1, len(self.bands)) or not all(0 < value < 1 for value in self.mtf):
            raise UserError(
                f"mtf is {self.mtf}, expected one value between 0 and 1, or one a band ({len(self.bands)} of them)."
            )
        if self.crop % 8 or self.crop < MIN_CROP:
            raise UserError(f"crop is {self.crop}, expected a multiple of 8 of at least {MIN_CROP} pixels.")
        if shared := set(self.val_places) & set(self.test_places):
            raise UserError(f"{', '.join(sorted(shared))} stands in val_places and in test_places: leave it in one.")
        for number, share in ALTERNATIVES:
            weight, target = getattr(self, number), getattr(self, share)
            if (weight is None) == (target is None):
                raise UserError(f"set either {number} or {share} (and the other to none): both weight the same term.")
            if weight is not None and not weight >= 0:
                raise UserError(f"{number} is {weight}, expected 0 or more.")
            if target is not None and not 0 <= target < 1:
                raise UserError(f"{share} is {target}, expected a share in [0, 1), e.g. 0.1 for 10 %.")
        if (self.perceptual_share or 0) + (self.adversarial_share or 0) >= 1:
            raise UserError(
                f"perceptual_share {self.perceptual_share} and adversarial_share {self.adversarial_share} leave "
                "nothing for the pixel error: lower one of them."
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
        """A checked copy; setting a weight switches the share of the same term off and the other way round."""
        changes = dict(changes)
        for pair in ALTERNATIVES:
            for one, other in (pair, pair[::-1]):
                if changes.get(one) is not None:
                    changes.setdefault(other, None)
        return replace_checked(self, changes, source=source)

    @property
    def perceptual_weight(self) -> float | Share:
        """The factor of the perceptual term, or the share of the gradient it shall have."""
        return Share(self.perceptual_share or 0.0) if self.lambda_perc is None else self.lambda_perc

    @property
    def adversarial_weight(self) -> float | Share:
        """The same of the adversarial term, once it has risen."""
        return Share(self.adversarial_share or 0.0) if self.lambda_adv is None else self.lambda_adv

    @property
    def mtf_by_band(self) -> tuple[float, ...]:
        """One value a band."""
        return self.mtf * len(self.bands) if len(self.mtf) == 1 else self.mtf

    @property
    def lpips_source(self) -> str:
        """Weights of the LPIPS network once the default is filled in."""
        if self.lpips_weights is not None:
            return self.lpips_weights
        return self.backbone_weights if self.lpips_net == self.backbone else "imagenet"


MIN_CROP = 32  # the feature networks and the discriminator halve smaller images away

_SMALL_NETS: dict[str, Any] = {  # 5 MB instead of 550 MB of weights
    "backbone": "squeeze", "lpips_net": "squeeze", "features": 32, "growth": 16, "num_rrdb": 1, "num_rrfdb": 1,
    "discriminator_features": 16, "grad_clip": 1.0,
}  # fmt: skip

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        **_SMALL_NETS, "features": 16, "growth": 8, "crop": 32, "crops_per_epoch": 128, "batch_size": 16,
        "stage1_epochs": 2, "stage2_epochs": 2, "stage1_lr": 1e-3, "stage2_lr": 2e-4, "ema_decay": 0.9, "ensemble": 2,
        "adversarial_ramp": 1.0, "bicubic_by": 2,
    },
    # Small crops, because what counts is how many different ones are seen; and a discriminator that learns slowly,
    # because at twice the generator's rate it knows every output of so small a generator within a hundred steps.
    "quick": {
        **_SMALL_NETS, "crop": 48, "crops_per_epoch": 1200, "batch_size": 16, "stage1_epochs": 24, "stage2_epochs": 8,
        "stage1_lr": 1e-3, "stage2_lr": 2e-4, "discriminator_lr_factor": 0.1, "ema_decay": 0.998,
        "perceptual_share": 0.5, "adversarial_share": 0.2, "adversarial_ramp": 1.0, "self_ensemble": True,
        "eval_patches": 32,
    },
    "t4": {"stage1_epochs": 20, "stage2_epochs": 12, "max_patches": 20_000},
    "full": {"crops_per_epoch": 20_000, "stage2_epochs": 50, "cache_gb": 12.0, "ensemble": 5},
}  # fmt: skip

# What `data simulate` writes for each profile: places, and patches of 120 x 120 pixels cut from each.
SIMULATED: dict[str, dict[str, int]] = {
    "smoke": {"n_places": 8, "patches_per_place": 4},
    "quick": {"n_places": 24, "patches_per_place": 9},
    "t4": {"n_places": 48, "patches_per_place": 25},
    "full": {"n_places": 120, "patches_per_place": 64},
}
