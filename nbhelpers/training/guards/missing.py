"""A missing-value sentinel that reaches a loss or a metric as if it were data (G5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nbhelpers.core.fields import Field
from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Rehearsal, Step
from nbhelpers.training.guards.survey import measured
from nbhelpers.training.ledger import probe
from nbhelpers.training.task import Evaluation, Sample, Task, Update

STEPS = 50  # how long to wait for a batch with missing pixels
SHAKE = 0.1  # of the field's standard deviation: noise on the prediction at which the terms are probed
TOLERANCE = 1e-3  # of the field's standard deviation: how far rounding may carry a value out of the valid range


@dataclass
class MissingValues(Guard):
    """Where the target is missing, no term may pull at the prediction, and no metric may see a value."""

    name = "missing_values"

    waiting: int = STEPS  # further updates whose batch is looked at; 0 once a batch with missing pixels was judged

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        for update, _ in rehearsal.updates:
            yield from self._look(rehearsal.step, rehearsal.task, rehearsal.first, update)
        if rehearsal.evaluation is not None:
            yield from self._judge_metrics(rehearsal.step, rehearsal.task, rehearsal.evaluation)

    def on_step(self, step: Step) -> Iterator[Finding]:
        if self.waiting:
            self.waiting -= 1
            yield from self._look(step.step, step.task, step.task.look(step.batch), step.update)

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        yield from self._judge_metrics(epoch.step, epoch.task, epoch.evaluation)

    def _look(self, step: int, task: Task, sample: Sample, update: Update) -> Iterator[Finding]:
        missing = _missing(task, sample, update.prediction)
        terms = [term for term in update.terms if term.at is None]
        if missing is None or not terms:
            return
        self.waiting = 0
        probed = probe(_shaken(update.prediction, task.fields["target"]), terms)
        for term, gradient in zip(terms, probed.gradients, strict=True):
            there = gradient[missing.to(gradient.device)]
            if bool((there == 0).all()):  # NaN is not 0 either
                continue
            share = float(there.norm() / gradient.norm())
            yield self.stop(
                step,
                f"loss term {term.name!r} takes missing values of the target for data",
                evidence=f"{float(missing.float().mean()):.2%} of the target's pixels are missing and "
                f"{share:.2%} of the norm of the term's gradient lies on them, expected 0",
                cure=f"Leave missing pixels out of {term.name!r}: multiply by the mask that Field.to_model returns, "
                "and divide by its sum.",
            )

    def _judge_metrics(self, step: int, task: Task, evaluation: Evaluation) -> Iterator[Finding]:
        if "target" not in evaluation.spreads or "target" not in task.fields:
            return
        field, spread = task.fields["target"], evaluation.spreads["target"]
        low, high = _legal(field)
        slack = TOLERANCE * abs(field.std / field.transform.scale)
        if not (low - slack <= spread.low and spread.high <= high + slack):
            yield self.stop(
                step,
                "validation scores the model against target values outside the valid range of the field",
                evidence=f"target from {spread.low:.6g} to {spread.high:.6g} in model units, {field.name} may lie in "
                f"{low:.6g} to {high:.6g}; its missing value is {field.missing}",
                cure="Leave missing pixels out of the metrics, and check the units of the validation files.",
            )


def _shaken(prediction: Tensor, field: Field) -> Tensor:
    """The prediction with some noise: where a repeated input is missing too, a wrong loss would feel nothing."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(prediction.shape, generator=generator).to(prediction.device)
    return prediction.detach().float() + SHAKE * abs(field.std / field.transform.scale) * noise


def _missing(task: Task, sample: Sample, prediction: Tensor) -> Tensor | None:
    """Bool, of the prediction's shape; None where there is no missing pixel or the target has another shape."""
    target = sample.raw.get("target")
    if target is None or target.shape != prediction.shape:
        return None
    missing = ~measured(task.fields["target"], target)
    return missing if bool(missing.any()) else None


def _legal(field: Field) -> tuple[float, float]:
    """The valid range in model units."""
    ends = field.transform.forward(torch.tensor(field.valid_range, dtype=torch.float64))
    return float(ends.min()), float(ends.max())
