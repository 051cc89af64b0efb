"""G9: a loss scheduler that nobody steps, that does not move, or whose weights no loss term uses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbhelpers.training.flexible import FlexibleScheduler, trajectory
from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Step
from nbhelpers.training.task import Update
from nbhelpers.training.weights import Scheduled

ROUNDING = 1e-9


@dataclass
class HandOver(Guard):
    """After every epoch: was the scheduler asked, did it do what its own rule says, and did the loss follow it?

    What its rule says is worked out anew from the metric in history.csv; what the loss used is read off its terms.
    """

    name = "loss_scheduler"

    used: dict[str, float] = field(default_factory=dict)  # weights that the loss had in the last step, by component

    def on_step(self, step: Step) -> Iterator[Finding]:
        found = _schedulers(step.update)
        for scheduler in found:
            if scheduler is not step.task.loss_scheduler:
                yield self.warn(
                    step.step,
                    "a loss term has a scheduled weight whose scheduler nobody steps, so it stays as it is",
                    evidence=f"weights {_words(scheduler.get_loss_weights())}; the task's loss_scheduler is "
                    f"{'none' if step.task.loss_scheduler is None else 'another one'}",
                    cure="Make it the task's loss_scheduler, which fit steps after every epoch.",
                )
        scheduled = [term.weight for term in step.update.terms if isinstance(term.weight, Scheduled)]
        self.used.update({weight.component: weight.at(step.time) for weight in scheduled})

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        scheduler = epoch.task.loss_scheduler
        if scheduler is None:
            return
        names = scheduler.get_loss_weights()
        if unused := [name for name in names if name not in self.used]:
            yield self.warn(
                epoch.step,
                f"the loss scheduler moves the weight of {' and '.join(unused)}, and no loss term uses it",
                evidence=f"scheduled terms of the last step: {', '.join(self.used) or 'none'}",
                cure="Give the term the weight Scheduled(scheduler, name) instead of a number.",
            )
        if scheduler.epoch != epoch.epoch:
            yield self.warn(
                epoch.step,
                "the loss scheduler was not stepped in this epoch",
                evidence=f"it stands at epoch {scheduler.epoch}, {epoch.epoch} are finished",
                cure="Call its step(epoch, metrics) once after every epoch.",
            )
            return
        expected, weights = _by_its_rule(scheduler, epoch.rows), scheduler.get_loss_weights()
        if expected is not None and _differ(weights, expected):
            yield self.warn(
                epoch.step,
                "the loss scheduler did not move weight as its trigger says",
                evidence=f"after epoch {epoch.epoch} its weights are {_words(weights)}, by the rule {_words(expected)}",
                cure="Find out what changes or keeps its weights besides its own step.",
            )
        if epoch.epoch == epoch.epochs and not scheduler.finished:
            yield self._unfinished(epoch, scheduler)

    def _unfinished(self, epoch: Epoch, scheduler: FlexibleScheduler) -> Finding:
        params, weights = scheduler.params, scheduler.get_loss_weights()
        never = "the loss scheduler never fired, so the run had its first weights to the end"
        return self.warn(
            epoch.step,
            "the run has ended before its loss weights were handed over" if scheduler.events else never,
            evidence=f"{params.target} has the weight {weights[params.target]:.4g} of {params.final_weights[1]:.4g} "
            f"after {len(scheduler.events)} steps; trigger {params.trigger} on {params.monitor_metric}, patience "
            f"{params.patience}, min_delta {params.min_delta:g}, ema_beta {params.ema_beta:g}",
            cure="Raise min_delta, lower patience or ema_beta, take the trigger 'epoch', or train for more epochs.",
        )


def _schedulers(update: Update) -> list[FlexibleScheduler]:
    """Those that stand behind the update's weights, each once."""
    found = [term.weight.scheduler for term in update.terms if isinstance(term.weight, Scheduled)]
    return list({id(scheduler): scheduler for scheduler in found}.values())


def _by_its_rule(scheduler: FlexibleScheduler, rows: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """The weights that the metric in the history leads to; None where the history does not reach back to its start."""
    metric = [row.get(f"val_{scheduler.params.monitor_metric}") for row in rows]
    if len(rows) != scheduler.epoch or rows[0]["epoch"] != 1:
        return None
    values = [math.nan if value is None else float(value) for value in metric]
    _, source, target = trajectory(scheduler.params, len(rows), values)[-1]
    return {scheduler.params.source: source, scheduler.params.target: target}


def _differ(weights: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    return any(not math.isclose(weights[name], expected[name], abs_tol=ROUNDING) for name in weights)


def _words(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.4g}" for name, weight in weights.items())
