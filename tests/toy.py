"""A whole ``Task`` in little: one convolution that takes the noise out of 8×8 fields, trained in a blink."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from nbhelpers.core.fields import Affine, Field
from nbhelpers.training.fit import Fitted, fit
from nbhelpers.training.flexible import FlexibleScheduler, SchedulerParams
from nbhelpers.training.metrics import Metric, mean_metric
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import (
    Evaluation,
    Gate,
    LossTerm,
    Milestone,
    Monitor,
    Phase,
    Predictor,
    Sample,
    Spread,
    Update,
    Verdict,
)
from nbhelpers.training.weights import Scheduled, Share, Weight

SIZE = 8
COUNTS = {"train": 24, "val": 8, "test": 8}  # fields in each split
HALVES = ("top", "bottom")
STEPS_PER_EPOCH = 4


@dataclass(frozen=True)
class ToyConfig:
    """What a toy run computes."""

    profile: str = "smoke"
    seed: int = 0
    data_seed: int = 0  # other fields, that is, other data
    epochs: int = 2
    lr: float = 0.03
    width: int = 1  # input channels of the convolution: copies of the field
    slope_weight: float | None = None  # a plain weight instead of slope_share
    slope_share: float = 0.1
    scheduler: SchedulerParams | None = None  # hands weight from mse to slope, or between what it names
    relative: bool = False  # the slope's weight is in units of the mse's running magnitude
    grad_clip: float = 1.0
    accumulate: int = 1
    batch_size: int = 6  # of the training split
    ema_decay: float = 0.0
    patience: int | None = None
    armed_after: int = 0
    delta: float = 0.0
    monitor: str = "mse"
    mode: Literal["min", "max"] = "min"  # "max" takes the worst epoch for the best, which is an early one
    workers: int = 0

    may_change: ClassVar[frozenset[str]] = frozenset({"epochs", "workers", "patience"})


class ToyTask:
    """Denoising with a mean squared error and a slope term; dropout makes every step draw from torch's generator."""

    stage = "toy"
    headlines: Sequence[str] = ("mse", "mae")
    oom_advice: Sequence[str] = ("take smaller fields",)

    def __init__(self, config: ToyConfig):
        self.config, self.device = config, torch.device("cpu")
        torch.manual_seed(config.seed)
        net = nn.Sequential(nn.Dropout(0.05), nn.Conv2d(config.width, 1, 3, padding=1))
        self.modules: MutableMapping[str, nn.Module] = {"net": net}
        optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
        schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step / 50))
        self.phases: Sequence[Phase] = (Phase("train", config.epochs, {"net": optimizer}, {"net": schedule}),)
        field = Field("height", "m", (-10.0, 10.0), 0.0, 1.0, None, Affine())
        self.fields: Mapping[str, Field] = {"input": field, "target": field}
        self.nulls: Mapping[str, Predictor] = {"as_it_is": lambda batch: batch[0], "zero": lambda batch: batch[0] * 0}
        self.monitor = Monitor(config.monitor, config.mode, config.patience, config.armed_after, config.delta)
        self.milestones: Sequence[Milestone] = ()
        self.controls: Mapping[str, Predictor] = {}
        self.loss_scheduler = None if config.scheduler is None else FlexibleScheduler(config.scheduler)
        self.event_level: float | None = None

    def to(self, device: torch.device) -> None:
        self.device = device

    def keys(self) -> dict[str, dict[str, list[str]]]:
        return {"field": {split: [f"{split} {number}" for number in range(n)] for split, n in COUNTS.items()}}

    def look(self, batch: Any) -> Sample:
        noisy, clean = batch
        return Sample({"input": noisy, "target": clean}, (clean, noisy))

    def unreadable(self, batch: Any) -> Sequence[str]:
        return ()

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        """Noisy and clean fields, ``(B, 1, 8, 8)`` each; training fields have new noise every epoch."""
        epoch = epoch if split == "train" else 0
        rng = np.random.default_rng([self.config.data_seed, list(COUNTS).index(split)])
        phases = rng.uniform(0, 2 * np.pi, (COUNTS[split], 2, 1, 1))
        y, x = np.mgrid[:SIZE, :SIZE] / SIZE
        clean = np.sin(2 * np.pi * x + phases[:, 0]) + np.cos(2 * np.pi * y + phases[:, 1])
        noise = np.random.default_rng([self.config.seed, list(COUNTS).index(split), epoch]).normal(size=clean.shape)
        pair = [torch.tensor(field[:, None], dtype=torch.float32) for field in (clean + 0.7 * noise, clean)]
        size = self.config.batch_size if split == "train" else 2
        pair = [field[start * size :] for field in pair]
        return DataLoader(TensorDataset(*pair), batch_size=size, num_workers=self.config.workers)

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        noisy, clean = (field.to(self.device) for field in batch)
        prediction = self.modules["net"](noisy.expand(-1, self.config.width, -1, -1))
        yield Update("net", prediction, self.terms(clean), target=clean)

    def terms(self, clean: Tensor) -> tuple[LossTerm, ...]:
        weights: dict[str, Weight] = {"mse": 1.0, "slope": Share(self.config.slope_share)}
        if self.config.slope_weight is not None:
            weights["slope"] = self.config.slope_weight
        if self.loss_scheduler is not None:
            weights = {name: Scheduled(self.loss_scheduler, name) for name in weights}
        slope, relative_to = clean.diff(dim=-1), "mse" if self.config.relative else None
        return (
            LossTerm("mse", lambda prediction: (prediction - clean).square().mean(), weights["mse"]),
            LossTerm(
                "slope",
                lambda prediction: (prediction.diff(dim=-1) - slope).square().mean(),
                weights["slope"],
                relative_to=relative_to,
            ),
        )

    @torch.no_grad()
    def predict(self, batch: Any) -> Tensor:
        net = self.modules["net"].eval()
        return net(batch[0].to(self.device).expand(-1, self.config.width, -1, -1))

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        squared, absolute, seen = [], [], []
        for batch in self.batches(split, 0):
            prediction = (predictor or self.predict)(batch).cpu().double()
            error = (prediction - batch[1]).reshape(-1, len(HALVES), SIZE // len(HALVES) * SIZE)
            squared.append(error.square().sum(-1).numpy())
            absolute.append(error.abs().sum(-1).numpy())
            seen.append(torch.stack([prediction, batch[1].double()]))
        counts = np.full((COUNTS[split], len(HALVES)), SIZE * SIZE / len(HALVES))

        def mean(sums: list[np.ndarray], counts: np.ndarray, units: str) -> Metric:
            return mean_metric(np.concatenate(sums), counts, labels=HALVES, better="lower", units=units)

        metrics = {"mse": mean(squared, counts, "m^2"), "mae": mean(absolute, counts, "m")}
        metrics["never_counted"] = mean(squared, 0 * counts, "m")  # undefined, as the score of an event nobody saw
        both = dict(zip(("prediction", "target"), torch.cat(seen, dim=1), strict=True))
        return Evaluation(
            metrics, {name: Spread(float(x.min()), float(x.max()), float(x.std())) for name, x in both.items()}
        )

    def describe_data(self) -> dict[str, Any]:
        digest = hashlib.sha256(str([self.config.data_seed, COUNTS]).encode()).hexdigest()
        return {"source": "made up", "sha256": digest, "split": {"rule": "drawn", **COUNTS}, "split_sha256": digest}

    def remarks(self) -> list[str]:
        return ["Made-up fields."]

    def judge(
        self,
        report: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        reference: Mapping[str, Any] | None = None,
    ) -> tuple[Sequence[Gate], Verdict]:
        better = report["baselines"]["as_it_is"]["mse"]["model_minus_this"]["is_better"]
        against = "no reference" if reference is None else f"reference {reference['run']}"
        return [Gate("less noise", better, against)], Verdict("done", f"{len(history)} epochs.", "go home.")

    def figures(self, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([row["train_total"] for row in history])
        yield "curve", figure


def toy(output_dir: Path, run_name: str = "run", *, resume: str = "auto", **settings: Any) -> tuple[ToyTask, Run]:
    """A fresh task and its run folder, as a new process would have them."""
    task = ToyTask(dataclasses.replace(ToyConfig(), **settings))
    return task, open_run(task, output_dir, run_name, resume=resume)


def train(output_dir: Path, run_name: str = "run", **settings: Any) -> Fitted:
    """What one call of the command line does: a fresh task, the folder, ``fit``."""
    return fit(*toy(output_dir, run_name, **settings))
