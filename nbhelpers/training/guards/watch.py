"""All guards of a run: shown what happens, heard, and on record in guards.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.training.guards.adapters import Adapters
from nbhelpers.training.guards.balance import LossBalance
from nbhelpers.training.guards.blank import BlankPredictions
from nbhelpers.training.guards.finite import LossSpike, NotFinite
from nbhelpers.training.guards.gan_balance import GanBalance
from nbhelpers.training.guards.gradients import DeadGradients
from nbhelpers.training.guards.guard import Epoch, Finding, Guard, GuardStop, Rehearsal, Step
from nbhelpers.training.guards.hand_over import HandOver
from nbhelpers.training.guards.latent import Latent
from nbhelpers.training.guards.leakage import Leakage
from nbhelpers.training.guards.memory import MemoryGrowth
from nbhelpers.training.guards.milestones import Milestones, StandingStill
from nbhelpers.training.guards.missing import MissingValues
from nbhelpers.training.guards.output_range import OutputRange
from nbhelpers.training.guards.rare_events import RareEvents
from nbhelpers.training.guards.reconstruction import Reconstruction
from nbhelpers.training.guards.schedule import Schedule, SchedulerNotStepped, UnknownMonitor
from nbhelpers.training.guards.signal import Noise, NoSkill, UnrelatedPairs
from nbhelpers.training.guards.units import Units
from nbhelpers.training.guards.unreadable import Unreadable
from nbhelpers.training.run import Run, write_json, writing
from nbhelpers.training.task import Batch, Task


def all_guards() -> list[Guard]:
    """A fresh one of each, in the order in which they look: what explains most comes first."""
    return [
        Leakage(),
        Schedule(),
        UnknownMonitor(),
        Reconstruction(),
        Noise(),  # before units: noise has whatever units it was drawn in
        Units(),
        UnrelatedPairs(),
        Unreadable(),
        MissingValues(),
        OutputRange(),
        NotFinite(),
        Adapters(),  # before dead gradients: it knows why
        DeadGradients(),
        LossBalance(),
        GanBalance(),
        RareEvents(),
        LossSpike(),
        SchedulerNotStepped(),
        HandOver(),
        NoSkill(),
        BlankPredictions(),
        Latent(),
        StandingStill(),
        Milestones(),
        MemoryGrowth(),
    ]


class Watch:
    """The guards of one run."""

    def __init__(self, run: Run):
        self._run = run
        self._guards = {guard.name: guard for guard in all_guards()}
        self.findings: list[Finding] = []

    def before(self, rehearsal: Rehearsal) -> None:
        """Show the guards what is known before training."""
        self._hear(lambda guard: guard.before(rehearsal))

    def on_batches(self, task: Task, batches: Sequence[Batch], step: int) -> None:
        self._hear(lambda guard: guard.on_batches(task, batches, step))

    def on_step(self, step: Step) -> None:
        self._hear(lambda guard: guard.on_step(step))

    def on_epoch(self, epoch: Epoch) -> None:
        self._hear(lambda guard: guard.on_epoch(epoch))

    def _hear(self, ask: Callable[[Guard], Iterator[Finding]]) -> None:
        for guard in self._guards.values():
            for finding in ask(guard):
                self.record(finding, exit_code=guard.exit_code)

    def record(self, finding: Finding, *, exit_code: int = 3) -> None:
        """Say and write down what a guard has found; the same thing once.

        Raises:
            GuardStop: the finding says stop.
        """
        said = any((old.name, old.message) == (finding.name, finding.message) for old in self.findings)
        if said and finding.severity != "stop":
            return
        self.findings.append(finding)
        self.write()
        if finding.severity == "stop":
            raise GuardStop(finding, exit_code)
        tqdm.write(str(finding))

    def write(self) -> None:
        """Bring guards.json up to date."""
        with writing(self._run.guards_file):
            write_json(self._run.guards_file, [dataclasses.asdict(finding) for finding in self.findings])

    def state_dict(self) -> dict[str, Any]:
        return {
            "guards": {name: guard.state_dict() for name, guard in self._guards.items()},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, saved in state["guards"].items():
            self._guards[name].load_state_dict(saved)
        self.findings = [Finding(**finding) for finding in state["findings"]]
        self.write()


def read_guards(run: Run) -> list[dict[str, Any]]:
    """The findings of a run so far.

    Raises:
        UserError: guards.json is damaged.
    """
    if not run.guards_file.exists():
        return []
    try:
        return list(json.loads(run.guards_file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{run.guards_file} is not valid JSON ({error}): restore or delete it.") from error
