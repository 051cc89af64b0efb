"""Settings of the rainfall stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nbhelpers.core.errors import UserError
from nbhelpers.core.settings import replace_checked
from nbhelpers.training.weights import Ramp, Share

Profile = Literal["smoke", "quick", "t4", "full"]
# What checkpoints may be selected by, all on validation and lower is better; l_rec has seen the day that it predicts.
SELECTABLE = ("crps", "tw_crps", "mae_all", "mae_tail", "l_rec")
ALTERNATIVES = ("lambda_ext", "tail_share")  # a weight and a gradient share of the same term
RATIO = 10_000  # parameters a training day; more than that is absurd


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes."""

    # The sizes behind the names: smoke (a minute, CI), quick (10 min on 2 CPU cores), t4 (an hour on a T4), full.
    profile: Profile = "t4"
    # Seed of weights, order of the days and latent draws.
    seed: int = 0
    # A widespread set of weights that is kept for comparison: classical is tail_mae with lambda_ext 5, beta_kl 0.01.
    preset: Literal["none", "classical"] = "none"

    # Hold the rain against plausible climates; off for a place so dry that its rain does not look like mm/day.
    check_units: bool = True
    # Days of the validation split that are scored after every epoch, evenly spaced; none: all.
    eval_days: int | None = 200
    # Days of the test split that are scored for the report; none: all.
    test_days: int | None = None
    # Members drawn for each scored day.
    members: int = 16
    # Days in a step.
    batch_size: int = 64
    # Loader processes; 0 reads in the training process, which is fastest when the days fit in memory.
    num_workers: int = 0
    # How many times as often a heavy day is drawn; a likelihood undoes it by weights, the errors of tail_mae do not.
    heavy_oversampling: float = 1.0
    # Standard deviation of noise on the predictors of training days, in standard deviations of each.
    noise: float = 0.0
    # Mix pairs of training days with a share drawn from Beta(mixup, mixup); 0 switches it off. It damps extremes.
    mixup: float = 0.0
    # Mirror training days together with their static maps.
    flips: bool = False

    # Channels at the fine grid; twice and four times as many at coarser ones.
    base_filters: int = 32
    # Channels of the encoded rain in the posterior.
    d_y: int = 128
    # Channels of the latent map; 0 trains without a latent (the control that says whether it is needed).
    d_z: int = 16
    # Share of the channels dropped in encoders and decoder while training.
    dropout: float = 0.1
    # What the decoder's output is: the parameters of a distribution of rain (hurdle_gamma), or the rain (tail_mae).
    likelihood: Literal["hurdle_gamma", "tail_mae"] = "hurdle_gamma"
    # Tail of the rain of wet pixels under hurdle_gamma: gamma, or an extended generalised Pareto distribution.
    tail: Literal["gamma", "gpd"] = "gpd"
    # Scale in which rain enters the posterior and, with tail_mae, leaves the decoder.
    transform: Literal["none", "log1p", "zscore"] = "log1p"
    # What keeps the output of tail_mae from being negative, in the scale of transform.
    output_activation: Literal["softplus", "relu", "none"] = "softplus"
    # Share of training days whose latent is drawn from the prior instead of the posterior.
    prior_fraction: float = 0.7

    # Weight of the mean absolute error (tail_mae).
    lambda_base: float = 1.0
    # Weight of the error on extreme pixels; setting it switches tail_share off (tail_mae).
    lambda_ext: float | None = None
    # Share of the gradient that the error on extreme pixels shall have; used when lambda_ext is not set (tail_mae).
    tail_share: float | None = 0.3
    # Multiply the error on extreme pixels by the share of days that have any, a known mistake kept for comparison.
    dilute_tail: bool = False
    # Weight of the error of the day's mean over land (tail_mae).
    lambda_mass: float = 0.01
    # Weight of the KL divergence per land pixel once it has risen; 1 is the variational bound under hurdle_gamma.
    beta_kl: float = 0.3
    # Epochs over which it rises from 0; neither a best checkpoint nor patience counts before.
    warmup_epochs: float = 8
    # Nats of each latent that the KL does not charge for.
    free_bits: float = 0.0

    # Passes over the training days.
    epochs: int = 40
    # Learning rate of AdamW.
    lr: float = 2e-3
    # Let the learning rate fall to zero along a cosine over all epochs.
    cosine: bool = True
    # Decoupled weight decay.
    weight_decay: float = 1e-4
    # Largest norm of the whole gradient; 0 switches clipping off.
    grad_clip: float = 1.0
    # Batches whose gradients are added up before a step: a larger batch in the memory of a small one.
    accumulate: int = 1
    # Score and ship a running average of the weights with this decay; 0 switches it off. Without it epochs wander along
    # the trade between all pixels and extreme ones, and which of them is picked decides more than the weight does.
    ema_decay: float = 0.999
    # Validation metric that picks the best checkpoint: crps, tw_crps, mae_all or mae_tail of prior members, or l_rec.
    early_stopping_metric: str = "crps"
    # Stop after this many epochs without a better one; none trains to the end.
    early_stopping_patience: int | None = 25
    # Epoch from which checkpoints are ranked and patience counts; none: the end of the warm-up.
    armed_after: int | None = None

    # Fields that may differ when a run is continued.
    may_change: ClassVar[frozenset[str]] = frozenset({"epochs", "num_workers", "early_stopping_patience"})

    def __post_init__(self) -> None:
        for name in ("batch_size", "base_filters", "d_y", "epochs", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1.")
        for name in ("base_filters", "d_y"):
            if getattr(self, name) % 4:
                raise UserError(f"{name} is {getattr(self, name)}, expected a multiple of 4 (groups of a norm layer).")
        if self.members < 2:
            raise UserError(f"members is {self.members}, expected at least 2: one draw has no spread to score.")
        for name in ("eval_days", "test_days"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1, or none for all.")
        if not self.lr > 0:
            raise UserError(f"lr is {self.lr}, expected a number above 0.")
        for name in (
            "seed", "num_workers", "noise", "mixup", "d_z", "lambda_base", "lambda_mass", "beta_kl", "warmup_epochs",
            "free_bits", "weight_decay", "grad_clip",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more.")
        if not self.heavy_oversampling >= 1:
            raise UserError(
                f"heavy_oversampling is {self.heavy_oversampling}, expected 1 (as often as others) or more."
            )
        for name in ("dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 (off) or a number below 1.")
        if not 0 <= self.prior_fraction <= 1:
            raise UserError(f"prior_fraction is {self.prior_fraction}, expected a share between 0 and 1.")
        if (self.lambda_ext is None) == (self.tail_share is None):
            raise UserError("set either lambda_ext or tail_share (and the other to none): both weight the same term.")
        if self.lambda_ext is not None and not self.lambda_ext >= 0:
            raise UserError(f"lambda_ext is {self.lambda_ext}, expected 0 or more.")
        if self.tail_share is not None and not 0 <= self.tail_share < 1:
            raise UserError(f"tail_share is {self.tail_share}, expected a share in [0, 1), e.g. 0.3 for 30 %.")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise UserError(
                f"early_stopping_patience is {self.early_stopping_patience}, expected at least 1 epoch, or none."
            )
        if self.armed_after is not None and self.armed_after < 0:
            raise UserError(f"armed_after is {self.armed_after}, expected 0 or more, or none for the warm-up's end.")
        if self.early_stopping_metric.startswith("posterior_"):
            raise UserError(
                f"early_stopping_metric is {self.early_stopping_metric}, which scores samples that have seen the day "
                f"they predict: choose one of {', '.join(SELECTABLE)}, of prior samples."
            )
        if self.early_stopping_metric not in SELECTABLE:
            raise UserError(
                f"early_stopping_metric is {self.early_stopping_metric!r}, expected one of {', '.join(SELECTABLE)}."
            )

        if self.flips and self.transform == "zscore":
            raise UserError("flips mirror the days but not the statistics of each pixel: set flips off, or log1p.")

    @property
    def armed(self) -> int:
        """Epoch from which checkpoints are ranked and patience counts."""
        return armed_after(vars(self))

    @property
    def tail_weight(self) -> float | Share:
        """The factor of the error on extreme pixels, or the share of the gradient it shall have."""
        return Share(self.tail_share or 0.0) if self.lambda_ext is None else self.lambda_ext

    @property
    def kl_weight(self) -> float | Ramp:
        """The factor of the KL divergence over the run."""
        return Ramp(self.beta_kl, self.warmup_epochs) if self.warmup_epochs else self.beta_kl

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
        """A checked copy.

        A preset brings its settings along, save those that are changed beside it; a weight switches the share of the
        same term off and the other way round; metrics may be spelt MAE_all, MAE_tail, L_rec.
        """
        changes = dict(changes)
        preset = changes.get("preset", "none")
        if preset != self.preset and isinstance(preset, str):
            changes = {**PRESETS.get(preset, {}), **changes}
        for one, other in (ALTERNATIVES, ALTERNATIVES[::-1]):
            if changes.get(one) is not None:
                changes.setdefault(other, None)
        if isinstance(metric := changes.get("early_stopping_metric"), str):
            changes["early_stopping_metric"] = metric.lower()
        return replace_checked(self, changes, source=source)


def armed_after(settings: Mapping[str, Any]) -> int:
    """Epoch from which checkpoints are ranked and patience counts, of settings by name."""
    if settings["armed_after"] is not None:
        return settings["armed_after"]
    return math.ceil(settings["warmup_epochs"]) if settings["d_z"] else 0


PRESETS: dict[str, dict[str, Any]] = {
    "classical": {
        "likelihood": "tail_mae", "lambda_base": 1.0, "lambda_ext": 5.0, "lambda_mass": 0.01, "beta_kl": 0.01,
        "prior_fraction": 0.0,
    },
}  # fmt: skip

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "base_filters": 8, "d_y": 16, "d_z": 4, "dropout": 0.0, "batch_size": 32, "epochs": 3, "warmup_epochs": 1,
        "lr": 4e-3, "ema_decay": 0.9, "members": 8, "eval_days": 16, "test_days": 32, "early_stopping_patience": None,
    },
    "quick": {
        "base_filters": 16, "d_y": 64, "d_z": 8, "dropout": 0.0, "batch_size": 32, "epochs": 12, "warmup_epochs": 3,
        "lr": 3e-3, "ema_decay": 0.995, "eval_days": 100, "test_days": 365, "early_stopping_patience": None,
    },
    "t4": {},
    "full": {
        "base_filters": 64, "d_y": 256, "d_z": 64, "dropout": 0.2, "epochs": 100, "warmup_epochs": 15, "lr": 1e-4,
    },
}  # fmt: skip

# What `data simulate` writes for each profile.
SIMULATED: dict[str, dict[str, Any]] = {
    "smoke": {"n_years": 3, "factor": 4, "coarse": (6, 6)},
    "quick": {"n_years": 18, "factor": 4},
    "t4": {"n_years": 20, "factor": 12},
    "full": {"n_years": 30, "factor": 12},
}
