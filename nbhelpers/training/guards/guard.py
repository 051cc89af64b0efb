"""What a guard is, what it is shown, and what it says."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from nbhelpers.core.errors import UserError
from nbhelpers.training.guards.survey import Survey
from nbhelpers.training.ledger import Entry, Probe
from nbhelpers.training.task import Batch, Evaluation, Phase, Sample, Task, Update

BOX_WIDTH = 96  # characters; a notebook's output cell is a little wider


@dataclass(frozen=True)
class Finding:
    """One row of guards.json."""

    name: str  # of the guard
    severity: Literal["info", "warn", "stop"]
    step: int  # optimizer steps finished when it was found
    evidence: str  # the numbers it was decided on
    message: str  # what is wrong, without numbers: a guard says the same thing once
    cure: str  # what to do

    def __str__(self) -> str:
        """The finding in one line."""
        message = self.message[:1].upper() + self.message[1:]
        return f"{self.severity.upper()} {self.name} (step {self.step}): {message} ({self.evidence}). {self.cure}"


class GuardStop(UserError):
    """A guard has stopped the run: exit code 3, or 2 where settings are at fault; a box in a notebook."""

    def __init__(self, finding: Finding, exit_code: int):
        super().__init__(str(finding))
        self.finding, self.exit_code = finding, exit_code

    def _render_traceback_(self) -> list[str]:
        said = self.finding
        title = f" STOPPED · {said.name} · step {said.step} "
        lines = ["┌─" + title + "─" * (BOX_WIDTH - len(title) - 1) + "┐"]
        for label, text in (("", said.message), ("measured: ", said.evidence), ("what to do: ", said.cure)):
            for line in textwrap.wrap(label + text, BOX_WIDTH - 2, break_on_hyphens=False):
                lines.append(f"│ {line:<{BOX_WIDTH - 1}}│")
        return [*lines, "└" + "─" * BOX_WIDTH + "┘"]


@dataclass(frozen=True)
class Rehearsal:
    """What is known before a phase's first step: the data, and the model as it is then on the first batch.

    When a run begins or is taken up, all phases that are left are rehearsed; each once more when it begins.
    """

    task: Task
    phase: Phase
    modules: Mapping[str, nn.Module]  # the plain ones, without accelerate's wrapping
    step: int  # optimizer steps finished: 0, or where a run is taken up
    began_epoch: int  # epochs of the run finished when the phase began, or will begin if none ends early
    began_step: int  # optimizer steps finished then
    surveys: Mapping[str, Survey]  # of the first batches of "train" and "val"
    first: Sample  # the first training batch
    updates: Sequence[tuple[Update, Probe]]  # of that batch in the phase, no step taken
    evaluation: Evaluation | None  # of the untrained model on validation; None where a run is taken up, or goes on
    batches_per_epoch: int
    steps_per_epoch: int  # optimizer steps
    is_ahead: bool = False  # whether the phase is still to come

    @property
    def begins(self) -> bool:
        """Whether the phase's first step comes next."""
        return not self.is_ahead and self.step == self.began_step


@dataclass(frozen=True)
class Step:
    """One finished optimizer step; gradients still stand in ``parameter.grad``, unscaled and clipped."""

    task: Task
    modules: Mapping[str, nn.Module]  # the plain ones, without accelerate's wrapping
    phase: Phase
    step: int  # optimizer steps finished, this one included
    time: float  # in epochs of the phase, the fraction of the running one included
    batch: Batch  # the last of the step
    update: Update
    total: float  # the weighted loss
    raw: Mapping[str, float]  # its terms, unweighted
    shares: Sequence[Entry] | None  # the ledger's rows, on steps on which they were taken
    skipped: Literal["loss not finite", "gradient not finite", "fp16 overflow"] | None  # why no step was taken
    suspects: Sequence[str] = ()  # terms whose value or gradient was not finite
    accuracy: float | None = None  # the share of a discriminator's decisions that were right


@dataclass(frozen=True)
class Epoch:
    """One finished epoch, scored on validation."""

    task: Task
    modules: Mapping[str, nn.Module]
    phase: Phase
    epoch: int  # finished ones
    step: int  # optimizer steps finished
    steps: int  # of this epoch
    rows: Sequence[Mapping[str, Any]]  # history.csv, this epoch's row last
    evaluation: Evaluation
    epochs: int  # of the whole run, if no phase to come ends early

    @property
    def phase_rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows of the running phase."""
        return [row for row in self.rows if row["phase"] == self.phase.name]


class Guard:
    """Base of all guards. A guard with a memory is a dataclass whose fields are plain types: they are checkpointed."""

    name: ClassVar[str]
    exit_code: ClassVar[int] = 3  # of a stop; 2 for guards that find fault with the settings

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        """Before training, also when a run is taken up again."""
        yield from ()

    def on_batches(self, task: Task, batches: Sequence[Batch], step: int) -> Iterator[Finding]:
        """Before each optimizer step, with all batches that it will use; ``step`` are finished."""
        yield from ()

    def on_step(self, step: Step) -> Iterator[Finding]:
        """After every update of every optimizer step."""
        yield from ()

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        """After every epoch."""
        yield from ()

    def warn(self, step: int, message: str, *, evidence: str, cure: str) -> Finding:
        return Finding(self.name, "warn", step, evidence, message, cure)

    def stop(self, step: int, message: str, *, evidence: str, cure: str) -> Finding:
        return Finding(self.name, "stop", step, evidence, message, cure)

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(copy.deepcopy(dict(state)))
