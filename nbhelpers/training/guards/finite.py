"""G18: steps that were skipped because something was not finite, and losses that jump."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Step
from nbhelpers.training.weights import Ramp, Scheduled

IN_A_ROW = 10  # skipped steps; a scaler that starts at 65536 skips fewer in a healthy fp16 run
TRAIN_SPIKE = 10.0  # times the running median; batches differ, dry ones from wet ones by much
TRAIN_RECORD = 5.0  # times the largest of them too: where dry and wet batches alternate, 10 times the median is usual
TRAIN_WINDOW = 200  # steps behind the running median
TRAIN_LEAST = 20  # steps before there is one
VAL_SPIKE = 2.0  # times the median of the earlier epochs, which all saw the same batches
VAL_LEAST = 3  # earlier epochs


@dataclass
class NotFinite(Guard):
    """Reports skipped steps, and stops when an optimizer takes none any more."""

    name = "not_finite"

    in_a_row: dict[str, int] = field(default_factory=dict)  # skipped ones up to now, by optimizer
    skipped: dict[str, int] = field(default_factory=dict)  # all of them, by reason

    def on_step(self, step: Step) -> Iterator[Finding]:
        optimizer, reason = step.update.optimizer, step.skipped
        if reason is None:
            self.in_a_row[optimizer] = 0
            return
        self.in_a_row[optimizer] = self.in_a_row.get(optimizer, 0) + 1
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        row = self.in_a_row[optimizer]
        named = step.suspects or list(step.raw)  # behind the prediction none of them is more suspect than another
        terms = ", ".join(f"{name} = {step.raw[name]:.4g}" for name in named)
        evidence = f"{row} in a row, {self.skipped[reason]} of {step.step} steps, {terms}"
        if reason == "fp16 overflow":
            cure = "Lower the learning rate, or compute the layer that overflows in float32."
        elif reason == "loss not finite":
            cure = "Lower the learning rate, or look in the batch and in the terms named for what is not finite."
        else:
            cure = (
                "Lower the learning rate, or look for a root, a logarithm or a division at 0 in the terms of the loss."
            )
        if row >= IN_A_ROW:
            yield self.stop(step.step, f"no step is taken any more: {reason}", evidence=evidence, cure=cure)
        elif reason == "fp16 overflow":
            message = "a step was skipped because a gradient overflowed in fp16, as happens while its scale is sought"
            calm = "Do nothing: the scaler lowers its scale by itself, and only many in a row matter."
            yield Finding(self.name, "info", step.step, evidence, message, calm)
        else:
            yield self.warn(step.step, f"a step was skipped: {reason}", evidence=evidence, cure=cure)


@dataclass
class LossSpike(Guard):
    """Compares the training loss with its running median, and each objective on validation with its earlier epochs.

    Both within a phase: the next one has another loss.
    """

    name = "loss_spike"

    totals: dict[str, list[float]] = field(default_factory=dict)  # the latest, by phase and optimizer
    objectives: list[str] = field(default_factory=list)  # the terms that are minimised
    scheduled: dict[str, list[float]] = field(default_factory=dict)  # weights that a loss scheduler moves, likewise

    def on_step(self, step: Step) -> Iterator[Finding]:
        self.objectives = sorted({*self.objectives, *(t.name for t in step.update.terms if t.role != "regulariser")})
        key = f"{step.phase.name}/{step.update.optimizer}"
        ramps = [term.weight for term in step.update.terms if isinstance(term.weight, Ramp)]
        if any(ramp.start <= step.time < ramp.end for ramp in ramps):
            self.totals[key] = []  # the loss rises with its weights, which says nothing
            return
        scheduled = [t.weight.at(step.time) for t in step.update.terms if isinstance(t.weight, Scheduled)]
        if scheduled != self.scheduled.setdefault(key, scheduled):
            self.totals[key], self.scheduled[key] = [], scheduled
        if not math.isfinite(step.total):
            return
        totals = self.totals.setdefault(key, [])
        usual = median(totals) if len(totals) >= TRAIN_LEAST else 0.0
        if 0 < TRAIN_SPIKE * usual < step.total and step.total > TRAIN_RECORD * max(totals):
            yield self.warn(
                step.step,
                f"the training loss of {step.update.optimizer} has jumped",
                evidence=f"{step.total:.4g}, after a median of {usual:.4g} and at most {max(totals):.4g} in the "
                f"{len(totals)} steps before",
                cure="Look at the batch of this step, or lower the learning rate or grad_clip.",
            )
        totals.append(step.total)
        del totals[:-TRAIN_WINDOW]

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        for term in self.objectives:
            column = [row.get(f"val_{term}") for row in epoch.phase_rows]  # not every stage follows every term
            values = [value for value in column if isinstance(value, (int, float)) and math.isfinite(value)]
            if len(values) <= VAL_LEAST or values[-1] != column[-1]:
                continue
            usual = median(values[:-1])
            if 0 < VAL_SPIKE * usual < values[-1]:
                yield self.warn(
                    epoch.step,
                    f"{term} on validation has jumped",
                    evidence=f"{values[-1]:.4g} after a median of {usual:.4g} over {len(values) - 1} epochs",
                    cure="Go on from the best checkpoint with a lower learning rate.",
                )
