"""Schedules that cannot finish, that nobody steps, or that follow a metric that does not exist (G8, G9)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from nbhelpers.training.flexible import FlexibleScheduler, earliest_finish
from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Rehearsal
from nbhelpers.training.guards.horizon import horizon
from nbhelpers.training.task import monitor_of
from nbhelpers.training.weights import Ramp

MAX_MISS = 0.05  # of the run's steps: how far from the run's end the learning rate may reach its own (or one epoch)


class Schedule(Guard):
    """Loss ramps, patience and learning rates against the length of their phase, a hand-over against the run's."""

    name = "schedule"
    exit_code = 2

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        phase, phases = rehearsal.phase, list(rehearsal.task.phases)
        terms = [term for update, _ in rehearsal.updates for term in update.terms]
        ends = {term.name: term.weight.end for term in terms if isinstance(term.weight, Ramp)}
        yield from self._ramps(rehearsal, ends)
        if (loss_scheduler := rehearsal.task.loss_scheduler) is not None:
            end = earliest_finish(loss_scheduler.params)  # in epochs of the run
            left = phases[[one.name for one in phases].index(phase.name) :]
            epochs = rehearsal.began_epoch + sum(one.epochs for one in left)
            yield from self._hand_over(rehearsal.step, loss_scheduler, end, epochs)
            ends[loss_scheduler.params.target] = math.inf if end is None else end - rehearsal.began_epoch
        yield from self._patience(rehearsal, ends)
        for name, scheduler in phase.schedulers.items():
            yield from self._learning_rate(rehearsal, name, scheduler)

    def _ramps(self, rehearsal: Rehearsal, ramps: Mapping[str, float]) -> Iterator[Finding]:
        whole = _whole(rehearsal)
        for name, end in ramps.items():
            if end > rehearsal.phase.epochs:
                yield self.stop(
                    rehearsal.step,
                    f"the weight of loss term {name!r} is still rising when {whole} ends",
                    evidence=f"its ramp ends at epoch {end:g}, {whole} at {rehearsal.phase.epochs}",
                    cure="Shorten the ramp or train for more epochs.",
                )

    def _hand_over(self, step: int, scheduler: FlexibleScheduler, end: int | None, epochs: int) -> Iterator[Finding]:
        params = scheduler.params
        if end == epochs:
            yield self.warn(
                step,
                f"the hand-over of weight from {params.source!r} to {params.target!r} ends with the run, so nothing is "
                "trained with the weights that it ends at",
                evidence=f"it needs {end} epochs even if {params.monitor_metric} never improves, the run has {epochs}",
                cure="Lower warmup_epochs, min_epochs or patience, raise transition_step, or train for more epochs.",
            )
        elif end is None or end > epochs:
            yield self.stop(
                step,
                f"the hand-over of weight from {params.source!r} to {params.target!r} cannot finish in this run",
                evidence=f"it needs {'for ever' if end is None else f'{end} epochs'} even if {params.monitor_metric} "
                f"never improves, the run has {epochs}",
                cure="Lower warmup_epochs, min_epochs or patience, raise transition_step, or train for more epochs.",
            )

    def _patience(self, rehearsal: Rehearsal, ends: Mapping[str, float]) -> Iterator[Finding]:
        monitor, epochs = monitor_of(rehearsal.task, rehearsal.phase), rehearsal.phase.epochs
        if monitor.armed_after >= epochs:
            yield self.stop(
                rehearsal.step,
                f"no checkpoint of {_whole(rehearsal)} could be chosen as the best: all of it is warm-up",
                evidence=f"armed after {monitor.armed_after} epochs, {_whole(rehearsal)} ends at {epochs}",
                cure="Shorten the warm-up (armed_after) or train for more epochs.",
            )
        if monitor.patience is None:
            return
        last = max(ends, key=lambda name: ends[name], default=None)
        if last is not None and monitor.armed_after < ends[last]:
            yield self.stop(
                rehearsal.step,
                f"early stopping counts epochs in which the weight of loss term {last!r} is still rising",
                evidence=f"armed after {monitor.armed_after} epochs, its weight stands from epoch {ends[last]:g} on",
                cure="Set armed_after to that epoch or later.",
            )
        if monitor.armed_after + monitor.patience >= epochs:
            yield self.stop(
                rehearsal.step,
                "early stopping is asked for and can never act",
                evidence=f"armed after {monitor.armed_after} epochs with a patience of {monitor.patience}, in "
                f"{_whole(rehearsal).replace('the run', 'a run')} of {epochs}",
                cure="Lower patience or armed_after, train for more epochs, or set patience to none.",
            )

    def _learning_rate(self, rehearsal: Rehearsal, name: str, scheduler: LRScheduler) -> Iterator[Finding]:
        phase = rehearsal.phase
        # An optimizer may step several times a batch (a critic).
        per_batch = max(1, sum(update.optimizer == name for update, _ in rehearsal.updates))
        epoch = rehearsal.steps_per_epoch * per_batch
        steps = phase.epochs * epoch
        slack = max(epoch, MAX_MISS * steps)
        if steps - scheduler.last_epoch <= slack:  # a run taken up so late that its end may lie behind it
            return
        end = horizon(scheduler, steps)
        if end is not None and abs(end - steps) > slack:
            yield self.stop(
                rehearsal.step,
                f"the learning rate of optimizer {name!r} in phase {phase.name!r} is made for a run of another length",
                evidence=f"it reaches its end at step {end}, the phase has {steps} steps ({epoch} an epoch)",
                cure="Set the scheduler's length to epochs times steps an epoch (it steps once a step, not an epoch).",
            )


@dataclass
class SchedulerNotStepped(Guard):
    """Schedulers that were made and that nobody steps."""

    name = "scheduler_not_stepped"

    steps: dict[str, int] = field(default_factory=dict)  # scheduler steps so far, by "phase/optimizer"

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        phases = rehearsal.task.phases
        driven = {id(_plain(scheduler.optimizer)) for phase in phases for scheduler in phase.schedulers.values()}
        for phase in phases:
            for name, scheduler in phase.schedulers.items():
                self.steps.setdefault(f"{phase.name}/{name}", scheduler.last_epoch)  # a run taken up has it
                if name not in phase.optimizers:
                    yield self.warn(
                        rehearsal.step,
                        f"scheduler {name!r} of phase {phase.name!r} belongs to no optimizer, so nobody steps it",
                        evidence=f"the phase's optimizers are {', '.join(phase.optimizers)}",
                        cure="Give the scheduler the name of its optimizer.",
                    )
            for name, optimizer in phase.optimizers.items():
                # torch writes "initial_lr" into an optimizer when a scheduler is made for it.
                made = any("initial_lr" in group for group in optimizer.param_groups)
                if made and id(_plain(optimizer)) not in driven:
                    yield self.warn(
                        rehearsal.step,
                        f"a scheduler was made for optimizer {name!r} and is in no phase, so nobody steps it",
                        evidence=f"schedulers of phase {phase.name!r}: {', '.join(phase.schedulers) or 'none'}",
                        cure=f"Put it into the phase's schedulers as {name!r}.",
                    )

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        taken = epoch.steps - (epoch.rows[-1].get("skipped_steps") or 0)  # a step that is skipped moves no scheduler
        for name, scheduler in epoch.phase.schedulers.items():
            key = f"{epoch.phase.name}/{name}"
            if taken > 0 and name in epoch.phase.optimizers and scheduler.last_epoch == self.steps.get(key):
                yield self.warn(
                    epoch.step,
                    f"scheduler {name!r} has not been stepped",
                    evidence=f"it stands at {scheduler.last_epoch} after an epoch of {taken:g} steps",
                    cure="Check that the optimizer of that name is updated in this phase.",
                )
            self.steps[key] = scheduler.last_epoch


class UnknownMonitor(Guard):
    """A metric to select checkpoints by that validation does not have."""

    name = "unknown_monitor"
    exit_code = 2

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        if rehearsal.evaluation is None:
            return
        known = sorted(rehearsal.evaluation.metrics)
        task = rehearsal.task
        wanted = {"monitor": task.monitor.metric}
        wanted |= {
            f"the monitor of phase {phase.name!r}": phase.monitor.metric
            for phase in task.phases
            if phase.monitor is not None
        }
        wanted |= {f"the milestone of epoch {milestone.epoch}": milestone.metric for milestone in task.milestones}
        if (scheduler := task.loss_scheduler) is not None:
            wanted["the loss scheduler's monitor_metric"] = scheduler.params.monitor_metric
        for setting, metric in wanted.items():
            if metric not in known:
                yield self.stop(
                    rehearsal.step,
                    f"{metric!r} is not among the validation metrics: choose one of {', '.join(known)}",
                    evidence=f"{len(known)} metrics after scoring the untrained model",
                    cure=f"Set {setting} to one of these.",
                )


def _whole(rehearsal: Rehearsal) -> str:
    """What a schedule has to fit into."""
    return "the run" if len(rehearsal.task.phases) == 1 else f"phase {rehearsal.phase.name!r}"


def _plain(optimizer: Any) -> Any:
    """The optimizer itself, without accelerate's wrapping."""
    return getattr(optimizer, "optimizer", optimizer)
