"""Settings of the turbulence stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nbhelpers.core.errors import UserError
from nbhelpers.core.settings import replace_checked
from nbhelpers.stages.neural_operator.loss_params import LossParams, migrate
from nbhelpers.training.flexible import PRESETS, FlexibleScheduler, SchedulerParams, completed

YARDSTICK = "field_error"  # the term in whose magnitude the weights of the others are given
# What can be watched, and whether a higher or a lower value is better; None: best at 1, so it picks nothing.
BETTER: dict[str, Literal["min", "max"] | None] = {
    "field_error": "min", "rel_l2": "min", "spectrum_error": "min", "spectrum_error_high": "min", "lsd": "min",
    "rollout_field_error": "min", "rollout_rel_l2": "min", "rollout_spectrum_error_high": "min",
    "trajectory_rel_l2": "min", "correlation_time": "max", "energy_ratio": None, "enstrophy_ratio": None,
    "divergence": "min", "blow_up_rate": "min",
}  # fmt: skip
Profile = Literal["smoke", "quick", "t4", "full"]


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes."""

    # The sizes behind the names: smoke (a minute, CI), quick (10 min on 2 CPU cores), t4 (an hour on a T4), full.
    profile: Profile = "t4"
    # Seed of weights and of the order of the windows.
    seed: int = 0

    # Fields that are read and predicted, separated by commas: velocity, vorticity, pressure, density, velocityZ.
    fields: str = "velocity"
    # Which public set the data are (its split and its constants); auto goes by dataset.json, else by description.json.
    data_set: Literal["auto", "inc", "tra", "iso"] = "auto"
    # Frames of a training window, and how many frames of the files lie between two of them.
    sequence_length: tuple[int, int] = (2, 1)
    # How many of them the model sees.
    n_in: int = 1
    # How the others are trained: each from true frames (teacher), or the model's own forecast as input, with gradients
    # through all steps (unrolled) or through the last one alone (pushforward).
    training: Literal["teacher", "unrolled", "pushforward"] = "teacher"
    # Windows drawn in an epoch.
    windows_per_epoch: int = 400
    # Fixed windows of each validation and test simulation, evenly spaced in time.
    eval_windows: int = 2
    # Steps of the rollouts that are scored.
    rollout_steps: int = 10
    # Windows in a step.
    batch_size: int = 8
    # Loader processes; 0 reads in the training process, which is fastest when the simulations fit in memory.
    num_workers: int = 0
    # Memory for read simulations, in GB.
    cache_gb: float = 4.0

    # Fourier neural operator, factorised one, or a U-Net.
    model: Literal["fno", "ffno", "unet"] = "fno"
    # Channels of its layers.
    width: int = 24
    # Wavenumbers kept each way (fno, ffno).
    modes: int = 16
    # Layers; levels of the U-Net.
    layers: int = 4
    # Tell the model where each point lies (fno, ffno); without it a shifted flow has a shifted forecast, which is right
    # in periodic boxes where nothing depends on the place.
    coordinates: bool = True
    # What the model puts out: the next state, or its change since the last one.
    predicts: Literal["state", "change"] = "state"
    # Reynolds number, Mach number and the like as further input channels.
    condition: bool = False
    # Project the predicted velocity onto fields without divergence (periodic domains).
    divergence_free: bool = False
    # Give every predicted channel the spatial mean of the last frame.
    keep_mean: bool = False

    # Weights of the loss terms, e.g. sobolev=0.1; with a scheduler those of its two terms are its own.
    loss: LossParams = LossParams()
    # Hand weight from one loss term to another when a metric stops improving, e.g. patience=2,final_weight_target=0.1,
    # or a preset (tra, iso, inc: made for long runs and much spectrum); none keeps the weights as they are.
    scheduler: SchedulerParams | None = None
    # What a weight is measured in: running, the magnitude that field_error has at the time, so that 0.3 and 0.7 mean
    # what they say; or none, the raw terms.
    normalise: Literal["running", "none"] = "running"
    # Share of the gradient that spectrum_error shall have (0.1 = 10 %), instead of its weight.
    spectrum_share: float | None = None
    # Taper fields before their spectra are taken: hann for domains that are not periodic; auto decides by the data.
    window: Literal["auto", "none", "hann"] = "auto"

    # Passes over the training windows.
    epochs: int = 40
    # Learning rate of Adam.
    lr: float = 4e-3
    # Let the learning rate fall to zero along a cosine over all epochs.
    cosine: bool = True
    # Decoupled weight decay (AdamW); 0 is Adam.
    weight_decay: float = 0.0
    # Largest norm of the whole gradient; 0 switches clipping off.
    grad_clip: float = 1.0
    # Batches whose gradients are added up before a step: a larger batch in the memory of a small one.
    accumulate: int = 1
    # Score and ship a running average of the weights with this decay, e.g. 0.999; 0 switches it off.
    ema_decay: float = 0.0
    # Validation metric that picks the best checkpoint.
    monitor: str = "field_error"
    # Stop after this many epochs without a better monitor; none trains to the end.
    patience: int | None = None
    # Epochs during which patience is not counted.
    armed_after: int = 0

    # Fields that may differ when a run is continued.
    may_change: ClassVar[frozenset[str]] = frozenset({"epochs", "num_workers", "patience"})

    def __post_init__(self) -> None:
        for name in (
            "n_in", "windows_per_epoch", "eval_windows", "rollout_steps", "batch_size", "width", "modes", "layers",
            "epochs", "accumulate",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1.")
        for name in ("lr", "cache_gb"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected a number above 0.")
        for name in ("seed", "num_workers", "weight_decay", "grad_clip", "armed_after"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}, expected 0 (off) or a decay below 1, e.g. 0.999.")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience is {self.patience}, expected at least 1 epoch, or none to train to the end.")
        if not self.field_names:
            raise UserError(f"fields is {self.fields!r}, expected names with commas between, e.g. velocity,pressure.")
        length, stride = self.sequence_length
        if length <= self.n_in or stride < 1:
            raise UserError(
                f"sequence_length is {length} {stride} with n_in {self.n_in}, expected more frames than n_in and a "
                "stride of at least 1."
            )
        if self.spectrum_share is not None and not 0 < self.spectrum_share < 1:
            raise UserError(f"spectrum_share is {self.spectrum_share}, expected a share between 0 and 1, or none.")
        if self.spectrum_share is not None and (self.scheduler is not None or self.loss.spectrum_error > 0):
            raise UserError(
                "spectrum_share weights spectrum_error, and so does the scheduler or loss: set one of them (scheduler "
                "to none, spectrum_error in loss to 0)."
            )
        others = [name for name, weight in vars(self.loss).items() if weight > 0 and name != YARDSTICK]
        if self.normalise == "running" and not self.loss.field_error and len(others) > 1:
            raise UserError(
                f"normalise is running, which measures the weights of {' and '.join(others)} by {YARDSTICK}, but that "
                "has the weight 0: give it one, or set normalise to none."
            )
        self._check_scheduler()

    def _check_scheduler(self) -> None:
        params = self.scheduler
        if params is None:
            return
        for name in (params.source, params.target):
            if name not in vars(self.loss):
                raise UserError(
                    f"the scheduler hands weight between {params.source} and {params.target}, but the loss has "
                    f"{', '.join(vars(self.loss))}: choose two of these."
                )
        overruled = {params.source: 1.0, params.target: 0.0}
        if any(vars(self.loss)[name] != plain for name, plain in overruled.items()):
            raise UserError(
                f"loss and scheduler both weigh {params.source} and {params.target}: leave the scheduler's terms out "
                "of loss, or set scheduler to none."
            )
        self.make_scheduler()

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the fields in order."""
        return tuple(name.strip() for name in self.fields.split(",") if name.strip())

    @property
    def steps_ahead(self) -> int:
        """Frames of a training window that are predicted."""
        return self.sequence_length[0] - self.n_in

    def make_scheduler(self) -> FlexibleScheduler | None:
        """A fresh loss scheduler for the whole run.

        Raises:
            UserError: a hand-over that does not fit into the epochs, or a metric that is not followed.
        """
        if self.scheduler is None:
            return None
        try:
            scheduler = FlexibleScheduler(self.scheduler, known_metrics=BETTER, epochs=self.epochs)
        except ValueError as error:
            raise UserError(f"scheduler: {error}.") from error
        metric, better = self.scheduler.monitor_metric, BETTER.get(self.scheduler.monitor_metric)
        if self.scheduler.trigger != "epoch" and better != self.scheduler.mode:
            cure = f"set mode to {better}" if better else "choose a metric that is better when it is lower"
            raise UserError(f"scheduler: mode is {self.scheduler.mode}, which is not how {metric} is better: {cure}.")
        return scheduler

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

        The scheduler may be given as settings, or as the name of a preset; loss weights under their older names
        (recMSE, predMSE) are taken over with a note.
        """
        changes = dict(changes)
        preset = changes.get("scheduler")
        if isinstance(preset, str) and preset.lower() != "none":
            if preset not in PRESETS:
                known = ", ".join(PRESETS)
                raise UserError(f"{source} sets scheduler to {preset!r}, expected one of {known}, or none.")
            changes["scheduler"] = SchedulerParams(**PRESETS[preset])
        if isinstance(changes.get("scheduler"), Mapping):
            changes["scheduler"] = completed(changes["scheduler"])
        if isinstance(changes.get("loss"), Mapping):
            changes["loss"] = migrate(changes["loss"])
        return replace_checked(self, changes, source=source)


PROFILES: dict[str, dict[str, Any]] = {
    # Nothing in a decaying flow depends on the place, so its models are not told it.
    "smoke": {
        "windows_per_epoch": 64, "epochs": 6, "rollout_steps": 5, "eval_windows": 1, "width": 12, "modes": 8,
        "layers": 3, "coordinates": False,
        "scheduler": SchedulerParams(
            trigger="epoch", patience=1, warmup_epochs=2, min_epochs=3, final_weight_source=0.95,
            final_weight_target=0.05, transition_step=0.025, adaptive_step=False,
        ),
    },
    "quick": {
        "epochs": 25, "coordinates": False,
        "scheduler": SchedulerParams(
            patience=1, min_delta=0.04, ema_beta=0.0, warmup_epochs=8, min_epochs=10, final_weight_source=0.95,
            final_weight_target=0.05, transition_step=0.0125, adaptive_step=False,
        ),
    },
    "t4": {
        "windows_per_epoch": 8000, "width": 32, "epochs": 60, "batch_size": 20, "rollout_steps": 15,
        "coordinates": False,
        "scheduler": SchedulerParams(
            patience=2, min_delta=0.02, ema_beta=0.0, warmup_epochs=15, min_epochs=20, final_weight_source=0.95,
            final_weight_target=0.05, transition_step=0.0125, adaptive_step=False,
        ),
    },
    "full": {
        "windows_per_epoch": 20_000, "width": 64, "epochs": 200, "batch_size": 20, "rollout_steps": 40,
        "coordinates": False,
        "scheduler": SchedulerParams(
            patience=4, min_delta=0.02, ema_beta=0.0, warmup_epochs=50, min_epochs=70, final_weight_source=0.95,
            final_weight_target=0.05, transition_step=0.0125, adaptive_step=False,
        ),
    },
}  # fmt: skip

# How much is simulated for each profile.
SIMULATED: dict[str, dict[str, int]] = {
    "smoke": {"n_simulations": 12, "size": 64, "n_frames": 12},
    "quick": {"n_simulations": 56, "size": 64, "n_frames": 24},
    "t4": {"n_simulations": 500, "size": 64, "n_frames": 32},
    "full": {"n_simulations": 1200, "size": 128, "n_frames": 50},
}


def simulated(profile: str, *, kind: str = "decaying") -> dict[str, Any]:
    """What to simulate for a profile: decaying or Kolmogorov flow, or the FNO benchmark with its own frames."""
    much: dict[str, Any] = {**SIMULATED[profile], "kind": kind}
    if kind == "fno":  # solved on 256 x 256 points in the paper, which takes hours on a CPU
        much |= {"n_frames": None, "solve_size": {"smoke": 64, "quick": 64, "t4": 128}.get(profile, 256)}
    return much
