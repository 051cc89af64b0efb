"""Turbulence surrogates as a ``Task``: data, model, losses and scores put together."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from nbhelpers.core.errors import UserError
from nbhelpers.core.fields import Affine, Field
from nbhelpers.core.runtime import pick_device
from nbhelpers.core.splits import hash_order, split_hash
from nbhelpers.stages.neural_operator import baselines, sequences
from nbhelpers.stages.neural_operator.checks import check_settings
from nbhelpers.stages.neural_operator.config import BETTER, Config
from nbhelpers.stages.neural_operator.data import FrameCache, open_collection
from nbhelpers.stages.neural_operator.domain import domain_of
from nbhelpers.stages.neural_operator.losses import loss_functions, loss_terms, weights_of
from nbhelpers.stages.neural_operator.model import Stepper, one_step, rollout
from nbhelpers.stages.neural_operator.sequences import Batch
from nbhelpers.stages.neural_operator.spectral_losses import spectrum_note
from nbhelpers.stages.neural_operator.split import fingerprint, keys
from nbhelpers.stages.neural_operator.verification import HELD, Forecast, Verification, metrics_of
from nbhelpers.training.task import (
    Evaluation,
    Gate,
    LossTerm,
    Milestone,
    Monitor,
    Phase,
    Predictor,
    Sample,
    Update,
    Verdict,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nbhelpers.stages.neural_operator.linear import LinearPredictor, PeriodicPredictor

STAGE = "neural-operator"
STATED = "the units that the set states its mean and standard deviation in"
EVAL_BATCH = 8  # windows at once while scoring
LOOKED_INTO = 16  # simulations whose frames count in the data's sha256; each is a short read
GB = 1_000_000_000


def _monitor(config: Config) -> Monitor:
    """How to compare checkpoints by ``config.monitor``.

    Raises:
        UserError: a metric that does not exist or that has no better end (an energy ratio is best at 1).
    """
    mode = BETTER.get(config.monitor)
    if mode is None:
        known = [name for name, better in BETTER.items() if better is not None]
        raise UserError(f"monitor is {config.monitor!r}, expected one of {', '.join(known)}.")
    return Monitor(config.monitor, mode, config.patience, config.armed_after)


class OperatorTask:
    """The next state of a flow from the last ones, on simulations in the layout of the public sets.

    Args:
        config: the resolved settings.
        data_dir: folder of the ``sim_%06d`` folders, or a ``.mat`` file of the FNO benchmark.

    Raises:
        UserError: data that are missing, damaged or do not fit the settings.
    """

    stage = STAGE

    def __init__(self, config: Config, data_dir: Path):
        self.config, self.data_dir = config, Path(data_dir)
        self.collection = open_collection(self.data_dir, fields=config.field_names, kind=config.data_set)
        self.split = sequences.split_collection(self.collection)
        self.cache = FrameCache(self.collection, int(config.cache_gb * GB))
        self.domain = domain_of(self.collection, window=config.window)
        self.fields: Mapping[str, Field] = {
            name: Field(name, STATED, (-math.inf, math.inf), mean, std, None, Affine(std, mean))
            for name, mean, std in zip(self.collection.channels, self.collection.mean, self.collection.std, strict=True)
            if name not in self.collection.constant  # what never varies has no statistics to be held to
        }
        check_settings(config, self.collection, self.split, has_velocity=self.domain.velocity is not None)
        torch.manual_seed(config.seed)
        stepper = Stepper(
            config,
            channels=len(self.collection.channels),
            conditions=len(self.collection.facts.conditions) if config.condition else 0,
            domain=self.domain,
            periodic=self.collection.facts.periodic,
            constant=[self.collection.channels.index(name) for name in self.collection.constant],
        )
        self.modules: MutableMapping[str, nn.Module] = {"stepper": stepper}
        self.loss_scheduler = config.make_scheduler()
        self.weights = weights_of(config, self.loss_scheduler)
        self.phases = (self._phase(stepper),)
        self.monitor = _monitor(config)
        self.milestones: Sequence[Milestone] = ()
        self.controls: Mapping[str, Predictor] = {}
        self.event_level: float | None = None
        self.nulls: Mapping[str, Predictor] = {
            "persistence": self._null(baselines.persistence),
            "mean": self._null(baselines.mean),
            "linear": self._null(lambda history: self.linear(history[:, -1])),
        }
        self.headlines: Sequence[str] = tuple(name for name in metrics_of(self.domain) if name != "trajectory_rel_l2")
        self.oom_advice: Sequence[str] = (
            f"halve batch_size (it is {config.batch_size})",
            f"predict fewer frames of a window: lower sequence_length (it is {config.sequence_length})",
            f"lower width (it is {config.width}) or modes (it is {config.modes})",
        )
        self.to(pick_device())

    @property
    def _train_window(self) -> dict[str, Any]:
        length, stride = self.config.sequence_length
        return {"length": length, "stride": stride}

    @property
    def _eval_window(self) -> dict[str, Any]:
        return {"length": self.config.n_in + self.config.rollout_steps, "stride": self.config.sequence_length[1]}

    def _phase(self, stepper: nn.Module) -> Phase:
        config = self.config
        optimizer = torch.optim.AdamW(stepper.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        batches = math.ceil(config.windows_per_epoch / config.batch_size)
        steps = config.epochs * math.ceil(batches / config.accumulate)
        schedulers = {}
        if config.cosine:
            cosine = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))
            schedulers["stepper"] = cosine
        return Phase("train", config.epochs, {"stepper": optimizer}, schedulers)

    def to(self, device: torch.device) -> None:
        self.device = device
        for module in self.modules.values():
            module.to(device)

    @cached_property
    def linear(self) -> LinearPredictor | PeriodicPredictor:
        """The linear baseline, fitted to training frames when it is first asked for."""
        stride = self.config.sequence_length[1]
        windows = sequences.fixed_windows(
            self.split.segments["train"], length=2, stride=stride, per_segment=baselines.PAIRS_PER_SEGMENT
        )

        def read() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in sequences.loader(windows, self.cache, length=2, stride=stride, batch_size=64, forgiving=True):
                now, after = self.to_model(batch.frames).cpu().unbind(1)
                yield now, after

        return baselines.fit(baselines.Pairs(read, len(windows)), periodic=self.collection.facts.periodic)

    def keys(self) -> dict[str, dict[str, set[str]]]:
        """Simulations (their frames, where the split is in time) and their content."""
        return keys(self.split, self.cache.read)

    def look(self, batch: Batch) -> Sample:
        """Raw values by channel, and the first frame to predict beside the last one seen."""
        n_in = self.config.n_in
        channels = self.collection.channels
        raw = {name: batch.frames[:, :, channels.index(name)] for name in self.fields}
        varying = [channels.index(name) for name in self.fields]
        last, first = batch.frames[:, n_in - 1 : n_in + 1, varying].unbind(1)
        return Sample(raw, (first, last))

    def unreadable(self, batch: Batch) -> Sequence[str]:
        return batch.unreadable

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        """Random windows of the training simulations, or the fixed windows of another split (whatever the epoch)."""
        config, segments = self.config, self.split.segments[split]
        if split != "train":
            fixed = sequences.fixed_windows(segments, per_segment=config.eval_windows, **self._eval_window)
            fixed = fixed[start * EVAL_BATCH :]
            return sequences.loader(
                fixed, self.cache, batch_size=EVAL_BATCH, num_workers=config.num_workers, **self._eval_window
            )
        drawn = sequences.training_windows(
            segments,
            epoch=epoch,
            seed=config.seed,
            per_epoch=config.windows_per_epoch,
            group=self.cache.simulations_that_fit(),
            **self._train_window,
        )
        drawn = drawn[start * config.batch_size :]
        return sequences.loader(
            drawn,
            self.cache,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            forgiving=True,
            **self._train_window,
        )

    def to_model(self, frames: Tensor) -> Tensor:
        """``(…, C, H, W)`` raw values in model units, on the device."""
        mean, std = (self._per_channel(values) for values in (self.collection.mean, self.collection.std))
        return (frames.to(self.device, non_blocking=True) - mean) / std

    def to_units(self, fields: Tensor) -> Tensor:
        """Model values back in the units of the files."""
        mean, std = (self._per_channel(values) for values in (self.collection.mean, self.collection.std))
        return fields * std + mean

    def _per_channel(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)[:, None, None]

    def conditions(self, batch: Batch) -> Tensor | None:
        """``(B, P)`` standardised parameters of the simulations, where the model is told them."""
        known = self.collection.facts.conditions
        if not (self.config.condition and known):
            return None
        raw = batch.parameters.to(self.device)
        return (raw - raw.new_tensor([one.mean for one in known])) / raw.new_tensor([one.std for one in known])

    def valid(self, batch: Batch) -> Tensor | None:
        """``(B, H, W)`` bool, False inside obstacles; None where there are none."""
        return None if batch.inside is None else ~batch.inside.to(self.device)

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        if not len(batch.frames):
            return
        frames, conditions, valid = self.to_model(batch.frames), self.conditions(batch), self.valid(batch)
        prediction = self.predict(frames, conditions)
        target = frames[:, -prediction.shape[1] :]
        measured = None if valid is None else valid[:, None, None].expand_as(target)
        yield Update("stepper", prediction, self.terms(target, valid), target, measured)

    def predict(self, frames: Tensor, conditions: Tensor | None) -> Tensor:
        """``(B, T, C, H, W)`` predictions of a training window's last frames, as ``config.training`` says."""
        n_in, steps = self.config.n_in, self.config.steps_ahead
        stepper = self.modules["stepper"]
        if self.config.training == "teacher":
            return one_step(stepper, frames, conditions, n_in=n_in)
        if self.config.training == "unrolled":
            return rollout(stepper, frames[:, :n_in], conditions, steps=steps)
        # Pushforward (Brandstetter, Worrall, Welling 2022, arXiv:2202.03376): the model sees its own errors, and learns
        # to mend them, but no gradient runs through how they came about.
        with torch.no_grad():
            seen = rollout(stepper, frames[:, :n_in], conditions, steps=steps - 1) if steps > 1 else frames[:, :0]
        return stepper(torch.cat([frames[:, :n_in], seen], 1)[:, -n_in:], conditions)[:, None]

    def terms(self, target: Tensor, valid: Tensor | None) -> tuple[LossTerm, ...]:
        """The summands of the loss against ``target``, ``(B, T, C, H, W)`` in model units."""
        return loss_terms(self.config, self.weights, loss_functions(target, self.domain, valid))

    @torch.no_grad()
    def forecast(self, batch: Batch) -> Forecast:
        """The model's forecasts of a batch of validation or test windows."""
        stepper, n_in = self.modules["stepper"].eval(), self.config.n_in
        frames, conditions = self.to_model(batch.frames), self.conditions(batch)
        steps = frames.shape[1] - n_in
        return Forecast(
            one_step(stepper, frames, conditions, n_in=n_in),
            rollout(stepper, frames[:, :n_in], conditions, steps=steps, held=HELD),
        )

    def _null(self, step: baselines.Step) -> Predictor:
        """A predictor of a batch from a rule that gives the next frame of ``(B, n_in, C, H, W)``."""

        def forecast(batch: Batch) -> Forecast:
            frames = self.to_model(batch.frames)
            return baselines.forecast(step, frames, n_in=self.config.n_in)

        return forecast

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        """One step ahead from true frames at every frame of a window, and rollouts from its first ones.

        Groups are simulations; published test sets are scored apart, too.
        """
        test_sets = {one.simulation.name: one.label for one in self.split.segments[split] if one.label}
        scores = Verification(self.domain, steps=self.config.rollout_steps, test_sets=test_sets)
        for batch in self.batches(split, 0):
            target = self.to_model(batch.frames)[:, self.config.n_in :]
            scores.add((predictor or self.forecast)(batch), target, batch.simulations, self.valid(batch))
        return scores.evaluation()

    def describe_data(self) -> dict[str, Any]:
        facts, one = self.collection.facts, self.collection
        rows = [[sim.name, sim.frames.start, sim.frames.stop, dict(sim.parameters)] for sim in one.simulations]
        segments = {segment.simulation.name: segment for group in self.split.segments.values() for segment in group}
        looks = [fingerprint(segments[name], self.cache.read) for name in hash_order(segments)[:LOOKED_INTO]]
        content = [one.channels, one.shape, one.mean, one.std, facts.lengths, rows, looks]
        ids = {
            name: [f"{part.simulation.name} {part.frames.start}-{part.frames.stop}" for part in group]
            for name, group in self.split.segments.items()
        }
        return {
            "source": str(self.data_dir.resolve()),
            "sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            "simulated": facts.simulated is not None,
            "set": facts.name,
            "channels": list(one.channels),
            "shape": list(one.shape),
            "frame_gap": facts.frame_gap * self.config.sequence_length[1],
            "split": {"rule": self.split.rule, **{name: len(group) for name, group in ids.items()}},
            "split_sha256": split_hash(ids),
        }

    def remarks(self) -> list[str]:
        one, found = self.collection, []
        if one.facts.simulated is not None:
            found.append(
                f"Simulated flow ({one.facts.name}), made by this package's solver: comparable with published numbers "
                "of the same specification, but not the published set."
            )
        if one.constant:
            found.append(f"Channels that never vary are kept as they are and not scored: {', '.join(one.constant)}.")
        if one.estimated:
            found.append(
                f"Nobody states mean and standard deviation of {', '.join(one.estimated)}: they are estimated from a "
                "few training frames."
            )
        if (note := spectrum_note(one.shape)) is not None:
            found.append(note)
        return found

    def judge(
        self,
        report: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        reference: Mapping[str, Any] | None = None,
    ) -> tuple[Sequence[Gate], Verdict]:
        from nbhelpers.stages.neural_operator.verdict import gates, verdict

        return gates(report, history, reference), verdict(report, history, reference)

    def figures(self, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
        from nbhelpers.stages.neural_operator.figures import report_figures

        yield from report_figures(self, report, history)
