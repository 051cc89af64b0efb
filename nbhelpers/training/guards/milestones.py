"""A run that is not worth going on: a score that it should have reached by now, or a loss that stands still."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Step

STILL_EPOCHS = 3  # in a row
DIGITS = 6  # significant ones of the loss that do not change


class Milestones(Guard):
    """Holds the best validation score so far against what the task asks for by an epoch."""

    name = "milestones"

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        for milestone in epoch.task.milestones:
            if milestone.epoch != epoch.epoch:
                continue
            column = [row.get(f"val_{milestone.metric}") for row in epoch.rows]
            values = [value for value in column if isinstance(value, (int, float)) and math.isfinite(value)]
            if milestone.at_least is not None:
                reached = max(values, default=-math.inf)
                missed, bound = reached < milestone.at_least, f"at least {milestone.at_least:.6g}"
            else:
                assert milestone.at_most is not None
                reached = min(values, default=math.inf)
                missed, bound = reached > milestone.at_most, f"at most {milestone.at_most:.6g}"
            if missed:
                yield self.stop(
                    epoch.step,
                    f"the {milestone.metric} on validation is not what it has to be after epoch {milestone.epoch}",
                    evidence=f"the best so far is {f'{reached:.6g}' if values else 'undefined'}, expected {bound}",
                    cure=milestone.cure,
                )


@dataclass
class StandingStill(Guard):
    """Looks for an objective whose training loss is the same, but for rounding, epoch after epoch.

    A loss that is 0 throughout is a condition that is met, and no fault.
    """

    name = "standing_still"

    objectives: list[str] = field(default_factory=list)  # the terms that are minimised

    def on_step(self, step: Step) -> Iterator[Finding]:
        self.objectives = sorted({*self.objectives, *(t.name for t in step.update.terms if t.role != "regulariser")})
        yield from ()

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        for term in self.objectives:
            values = [row.get(f"train_{term}") for row in epoch.phase_rows[-STILL_EPOCHS:]]
            if len(values) < STILL_EPOCHS or not all(isinstance(value, (int, float)) and value for value in values):
                continue
            if len({f"{value:.{DIGITS - 1}e}" for value in values}) == 1:
                yield self.stop(
                    epoch.step,
                    f"loss term {term!r} stands still: nothing is learnt from it",
                    evidence=f"{values[-1]:.6g} in training in each of the last {STILL_EPOCHS} epochs",
                    cure="Check that the optimizer has the model's parameters and a learning rate above 0, that "
                    "gradients reach them, and that batches differ.",
                )
