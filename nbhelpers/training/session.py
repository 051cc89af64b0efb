"""One call of ``fit``: its parts, where it begins, how it saves, and how it is left when it is stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, history
from nbhelpers.training.ema import Ema, load
from nbhelpers.training.guards.watch import Watch
from nbhelpers.training.ledger import Balance
from nbhelpers.training.opening import check_same_run
from nbhelpers.training.run import Run
from nbhelpers.training.saving import Saver
from nbhelpers.training.state import Progress, capture, restore
from nbhelpers.training.stop_button import StopButton
from nbhelpers.training.task import Phase, Task


@dataclass
class Session:
    """One call of ``fit``."""

    task: Task
    run: Run
    accelerator: Accelerator
    modules: dict[str, nn.Module]  # plain ones; task.modules has accelerate's
    phases: list[Phase]
    ema: Ema | None
    watch: Watch
    saver: Saver
    stop: StopButton
    on_epoch: Callable[[list[dict[str, Any]]], None] | None
    balance: Balance = field(default_factory=Balance)
    progress: Progress = field(default_factory=Progress)

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def state(self) -> dict[str, Any]:
        return capture(
            self.phases,
            self.accelerator.scaler,
            self.task.loss_scheduler,
            self.balance,
            self.watch,
            self.ema,
            self.progress,
        )

    def save(self, *, best: bool = False) -> None:
        """A checkpoint of this moment; its copy in the second folder may fail, the run then goes on without."""
        with self.stop.held():
            state = self.state()
            with self.averaged():
                self.saver.save(self.progress.step, self.modules, state, best=best)
            if (problem := self.saver.copy_problem(self.progress.step)) is not None:
                self.watch.record(problem)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the modules hold the weights to score and to ship; no exchange is torn by the button."""
        own = None
        try:
            if self.ema is not None:
                with self.stop.held():
                    own = self.ema.take_in()
            yield
        finally:
            if own is not None:
                with self.stop.held():
                    load(self.modules, own)

    def patience_ran_out(self) -> bool:
        """Whether the run ends before its last epoch."""
        patience = self.task.monitor.patience
        return patience is not None and self.progress.stale >= patience and self.progress.epoch < self.epochs


def take_up(session: Session, start: Path | None) -> int | None:
    """Put the given or the last checkpoint back; returns its step, or None for a fresh start."""
    run, phases = session.run, session.phases
    checkpoint.clean(run)
    found = checkpoint.find(run, "last") if start is None else checkpoint.at(start)
    if found is None:
        if any(optimizer.state_dict()["state"] for phase in phases for optimizer in phase.optimizers.values()):
            raise UserError(
                f"this task has been trained before, so {run.name!r} would start from its weights and not from "
                "scratch: make the task anew (run the cell that does) and train that."
            )
        history.keep_rows(run.history_file, lambda row: False)
        history.keep_rows(run.ledger_file, lambda row: False)
        session.watch.write()
        return None
    if start is not None:
        check_same_run(session.task, run, found)
    session.progress = restore(
        found,
        session.modules,
        phases,
        session.accelerator.scaler,
        session.task.loss_scheduler,
        session.balance,
        session.watch,
        session.ema,
    )
    progress, own = session.progress, found.folder.resolve().parent == run.checkpoints.resolve()
    scheduler = session.task.loss_scheduler
    if scheduler is not None and scheduler.events and scheduler.events[-1][0] == progress.epoch < session.epochs:
        progress.best, progress.stale = None, 0  # weights moved as the run ended, and now it goes on with others
    if start is not None:
        if own:  # first of all: rows are cut below that a later checkpoint would miss
            checkpoint.point_at(run, found)
        else:
            _take_over(Run(found.folder.resolve().parents[1]), run)
        best = checkpoint.find(run, "best")
        if not own or best is None or best.step > found.step:
            progress.best, progress.stale = None, 0
    # Rows written after the checkpoint belong to work that will be done again.
    history.keep_rows(run.history_file, lambda row: row["epoch"] <= progress.epoch)
    history.keep_rows(run.ledger_file, lambda row: row["step"] < progress.step)
    within = f", batch {progress.batch} of epoch {progress.epoch + 1}" if progress.batch else ""
    print(f"Resuming {run.folder} after epoch {progress.epoch} (step {progress.step}{within}).")
    if not own:
        session.save(best=progress.best is None)
    return progress.step


def _take_over(donor: Run, run: Run) -> None:
    """The rows that belong to another run's checkpoint, in place of the run's own."""
    for theirs, ours in ((donor.history_file, run.history_file), (donor.ledger_file, run.ledger_file)):
        history.keep_rows(ours, lambda row: False)
        history.append_rows(ours, history.read_rows(theirs))


def leave(session: Session) -> bool:
    """After the stop button: save this moment if it is a whole one, and say where the run will go on.

    Returns:
        Whether there is anything left to train.
    """
    run, progress = session.run, session.progress
    last = checkpoint.find(run, "last")
    if not session.stop.torn and progress.step != (0 if last is None else last.step):
        session.save()
        last = checkpoint.find(run, "last")
    if not session.stop.torn and progress.epoch == session.epochs:
        return False
    where = "from the beginning" if last is None or last.step == 0 else f"from step {last.step}"
    print(f"Stopped in epoch {progress.epoch + 1} of {session.epochs}. Run again to go on {where}.")
    return True
