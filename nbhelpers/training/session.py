"""One call of ``fit``: its parts, where it begins, how it saves, and how it is left when it is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, history, mirror, pointers
from nbhelpers.training.checkpoint import Checkpoint
from nbhelpers.training.ema import Ema, load
from nbhelpers.training.guards.survey import Survey
from nbhelpers.training.guards.watch import Watch
from nbhelpers.training.ledger import Balance
from nbhelpers.training.opening import check_same_run
from nbhelpers.training.run import Run
from nbhelpers.training.saving import Saver
from nbhelpers.training.state import Progress, capture, restore
from nbhelpers.training.stop_button import StopButton
from nbhelpers.training.task import Monitor, Phase, Task, monitor_of


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
    surveys: Mapping[str, Survey] = field(default_factory=dict)  # of the data, once a call

    @property
    def phase(self) -> Phase:
        """The running one."""
        return self.phases[self.progress.phase]

    @property
    def monitor(self) -> Monitor:
        """By what the running phase is ranked."""
        return monitor_of(self.task, self.phase)

    @property
    def phase_end(self) -> int:
        """Epochs of the run after which the running phase is over."""
        return self.progress.began_epoch + self.phase.epochs

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, as far as one can know: patience may end a phase before."""
        return self.phase_end + sum(phase.epochs for phase in self.phases[self.progress.phase + 1 :])

    @property
    def phase_is_over(self) -> bool:
        return self.progress.epoch >= self.phase_end or self.patience_ran_out()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self.phase_is_over and not any(phase.epochs for phase in self.phases[self.progress.phase + 1 :])

    @property
    def is_warming_up(self) -> bool:
        """Whether the finished epochs lie in the phase's warm-up, none of whose checkpoints is chosen as the best."""
        armed_after = self.monitor.armed_after
        return armed_after > 0 and self.progress.epoch - self.progress.began_epoch <= armed_after

    @property
    def ended_epoch(self) -> int | None:
        """The epoch of the running phase that has just ended; None within one and before the first."""
        progress = self.progress
        return progress.epoch if progress.batch == 0 and progress.epoch > progress.began_epoch else None

    @property
    def average_is_due(self) -> bool:
        """Whether the run has ended with ranked checkpoints that are not averaged yet."""
        return self.is_over and bool(self.progress.ranked) and "average" not in pointers.names(self.run)

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
                self.progress.keep(checkpoint.digest_of(checkpoint.tensors_of(self.modules)), best=best)
                state["progress"] = dataclasses.asdict(self.progress)
                ranked = self.progress.ranked if self.phase.keep > 1 else None
                epoch = None if self.phase.prune else self.ended_epoch
                self.saver.save(self.progress.step, self.modules, state, best=best, ranked=ranked, epoch=epoch)
            self.copy()

    def copy(self) -> None:
        """Bring the copy in the second folder up to date."""
        if (problem := self.saver.copy_problem(self.progress.step)) is not None:
            self.watch.record(problem)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the modules hold the weights to score and to ship; no exchange is torn by the button.

        Only parameters are exchanged: a buffer that is set within the block (what a scoring fits on validation) stays.
        """
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
        """Whether the running phase ends before its last epoch."""
        patience = self.monitor.patience
        return patience is not None and self.progress.stale >= patience and self.progress.epoch < self.phase_end


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
    if scheduler is not None and scheduler.events and scheduler.events[-1][0] == progress.epoch < session.phase_end:
        progress.forget_best()  # weights moved as the run ended, and now it goes on with others
    home = run if own else Run(found.folder.resolve().parents[1])
    if start is not None:
        if own:  # first of all: rows are cut below that a later checkpoint would miss
            checkpoint.point_at(run, found)
            _forget_later(run, found)
        else:
            _take_over(home, session)
    lost = _name_best(session, home)
    # Rows written after the checkpoint belong to work that will be done again.
    history.keep_rows(run.history_file, lambda row: row["epoch"] <= progress.epoch)
    history.keep_rows(run.ledger_file, lambda row: row["step"] < progress.step)
    within = f", batch {progress.batch} of epoch {progress.epoch + 1}" if progress.batch else ""
    print(f"Resuming {run.folder} after epoch {progress.epoch} (step {progress.step}{within}).")
    _tell_ended(session)
    if lost or not own:  # at once: the run could not be taken up again
        session.save(best=lost and not session.is_warming_up)
    return progress.step


def _name_best(session: Session, home: Run) -> bool:
    """Let ``best.json`` name what was best when the checkpoint that was taken up was saved.

    It may name a later one: training went back, or was killed between two pointers.

    Args:
        home: the run whose checkpoint it is. The best and the ranked ones of another run are copied.

    Returns:
        Whether the best one is gone; what was taken up is then the best that there is, unless it is in a warm-up.
    """
    run, progress = session.run, session.progress
    if home is run:
        checkpoint.find(run, "best")  # raises where it is damaged, which is not the same as gone
    there: dict[int, pointers.Pointer] = {}
    for step, weights in progress.kept.items():
        kept = checkpoint.holding(run, step, weights)
        if kept is None and home is not run and (theirs := checkpoint.holding(home, step, weights)) is not None:
            kept = mirror.take(theirs, run)
        if kept is not None:
            there[step] = checkpoint.pointer_to(kept)
    if progress.best_step not in there:
        lost = progress.best_step is not None
        progress.best, progress.best_step, progress.mark, progress.ranked = None, None, None, {}  # stays ended if stale
        if not lost or session.is_warming_up:  # nothing is best yet
            pointers.forget(run, "best")
        return lost
    pointer = there[progress.best_step]
    progress.ranked = {step: value for step, value in progress.ranked.items() if step in there}
    if session.phase.keep > 1 and progress.best_step > progress.began_step:
        pointer = pointer | {"ranked": [{**there[step], "value": value} for step, value in progress.ranked.items()]}
    pointers.write(run, "best", pointer)
    return False


def _forget_later(run: Run, found: Checkpoint) -> None:
    """Going back to ``found``, the run has not ended any phase that ended later."""
    for which in pointers.names(run):
        if which not in ("best", "last") and pointers.check(run, which)["step"] > found.step:
            pointers.forget(run, which)


def _tell_ended(session: Session) -> None:
    """An ended phase stays as it is, whatever number of epochs the settings give it now."""
    rows = history.read_rows(session.run.history_file)
    for phase in session.phases[: session.progress.phase]:
        done = sum(row["phase"] == phase.name for row in rows)
        if done != phase.epochs:
            print(f"Phase {phase.name!r} has ended after {done} of {phase.epochs} epochs and stays as it is.")


def _take_over(donor: Run, session: Session) -> None:
    """What belongs to another run's checkpoint, in place of the run's own: rows, and the ends of earlier phases."""
    run, progress = session.run, session.progress
    for which in pointers.names(run):
        if which not in ("best", "last"):
            pointers.forget(run, which)
    if (last := pointers.read(run, "last")) is not None:  # the epochs listed there were of what this run was before
        pointers.write(run, "last", {key: value for key, value in last.items() if key != "epochs"})
    for phase in session.phases[: progress.phase]:
        for which in (f"{phase.name}_best", f"{phase.name}_last"):
            found = checkpoint.find(donor, which)
            if found is not None and found.step <= progress.step:
                pointers.write(run, which, checkpoint.pointer_to(mirror.take(found, run)))
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
    if not session.stop.torn and session.is_over and not session.average_is_due:
        return False
    where = "from the beginning" if last is None or last.step == 0 else f"from step {last.step}"
    epoch = min(progress.epoch + 1, session.epochs)
    print(f"Stopped in epoch {epoch} of {session.epochs}. Run again to go on {where}.")
    return True
