"""Samples that could not be read and were left out or replaced (G4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Rehearsal
from nbhelpers.training.task import Batch, Task

MAX_SHARE = 0.001  # of an epoch's samples: one bad file in a large archive is usual, one in a small one is not


@dataclass
class Unreadable(Guard):
    """Counts what the loader left out. It speaks once, and stops the run when it is more than ``MAX_SHARE``."""

    name = "unreadable_samples"

    planned: float = math.inf  # samples of a training epoch
    unreadable: int = 0  # in the running epoch

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        train = rehearsal.surveys["train"]
        seen = train.samples + len(train.unreadable)
        self.planned = rehearsal.batches_per_epoch * seen / max(1, train.batches)
        yield from self._judge(train.unreadable, len(train.unreadable), rehearsal.step)

    def on_batches(self, task: Task, batches: Sequence[Batch], step: int) -> Iterator[Finding]:
        said = [reason for batch in batches for reason in task.unreadable(batch)]
        self.unreadable += len(said)
        yield from self._judge(said, self.unreadable, step)

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        self.unreadable = 0
        yield from ()

    def _judge(self, said: Sequence[str], count: int, step: int) -> Iterator[Finding]:
        if not said:
            return
        evidence = f"{count} of about {self.planned:.0f} samples of an epoch; {said[0]}"
        if count > MAX_SHARE * self.planned:
            yield self.stop(
                step,
                "too many training samples cannot be read",
                evidence=evidence,
                cure="Repair or fetch these files again, or take them out of the catalogue.",
            )
        else:
            yield self.warn(
                step,
                "some training samples cannot be read and are left out",
                evidence=evidence,
                cure="Repair or fetch them again when the run is done.",
            )
