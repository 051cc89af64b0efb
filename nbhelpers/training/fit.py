"""The training loop of every stage: it knows a ``Task``, a run folder, and accelerate."""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import is_notebook, pick_device, pick_precision, seed_everything
from nbhelpers.training import border, history
from nbhelpers.training.ema import Ema
from nbhelpers.training.epoch_end import finish_epoch, last_seen, score
from nbhelpers.training.guards.guard import GuardStop, Step
from nbhelpers.training.guards.memory import measure, out_of_memory
from nbhelpers.training.guards.rehearsal import rehearse
from nbhelpers.training.guards.watch import Watch
from nbhelpers.training.ledger import LEDGER_EVERY, LEDGER_FIRST
from nbhelpers.training.lock import locked
from nbhelpers.training.run import Run
from nbhelpers.training.saving import Saver
from nbhelpers.training.session import Session, leave, take_up
from nbhelpers.training.step import optimizer_step
from nbhelpers.training.stop_button import StopButton
from nbhelpers.training.task import Batch, Phase, Task
from nbhelpers.training.weight_average import greedy_average

SAVE_MINUTES = 5.0  # between checkpoints within an epoch


@dataclass(frozen=True)
class Fitted:
    """What a call of ``fit`` did."""

    run: Run
    epochs: int  # finished epochs, those of earlier calls included
    resumed_from: int | None  # step at which an earlier run was taken up
    interrupted: bool  # stopped by the user; run again to go on
    stopped_early: bool = False  # the patience of the last phase's monitor ran out


def fit(
    task: Task,
    run: Run,
    *,
    start: Path | None = None,
    tracker: str = "none",
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
    save_minutes: float = SAVE_MINUTES,
) -> Fitted:
    """Train ``task`` in ``run``'s folder; an existing run goes on exactly where its last checkpoint stands.

    After every epoch the model is scored on validation, a row is added to ``history.csv`` and a checkpoint written.
    Guards look on before training, at every step and after every epoch; what they find goes to ``guards.json``.

    Args:
        start: a checkpoint folder to go on from instead of the run's last one.
        tracker: "tensorboard" or "wandb" to log the history there as well.
        on_epoch: called with the whole history after each epoch, the modules holding the weights that were scored; for
            live figures.
        save_minutes: at least so often a checkpoint is written, within an epoch too.

    Raises:
        GuardStop: the run cannot be believed, or cannot go on; the last checkpoint stays.
        SystemExit: the process was told to end (SIGTERM); the run is saved.
        UserError: a checkpoint that does not fit, a disk that is full, a folder that another process trains in.
    """
    if any(phase.keep > 1 for phase in task.phases[:-1]):
        raise ValueError("only the last phase's checkpoints are averaged: the others must have keep=1")
    with locked(run), StopButton() as stop:
        device = pick_device()
        accelerator = _accelerator(device, tracker, run, task)
        task.to(accelerator.device)
        deterministic = torch.backends.cudnn.deterministic
        torch.backends.cudnn.deterministic = True  # else a resumed run may sum in another order than one in one go
        plain = dict(task.modules)
        for name, module in plain.items():
            task.modules[name] = accelerator.prepare(module)
        session = Session(
            task,
            run,
            accelerator,
            plain,
            [_prepared(phase, accelerator) for phase in task.phases],
            Ema(plain, task.config.ema_decay) if task.config.ema_decay > 0 else None,
            Watch(run),
            Saver(run, minutes=save_minutes),
            stop,
            on_epoch,
        )
        interrupted, resumed = False, None
        try:
            with stop.held():  # until it is done, there is no moment to save
                resumed = take_up(session, start)
            _train(session, fresh=resumed is None)
        except KeyboardInterrupt:
            interrupted = leave(session)
            if stop.ends_process:
                raise SystemExit(128 + signal.SIGTERM) from None
        except (RuntimeError, MemoryError) as error:
            finding = out_of_memory(error, task, step=session.progress.step)
            if finding is None:
                raise
            try:
                session.watch.record(finding)
            except GuardStop as stopped:
                raise stopped from error
        finally:
            torch.backends.cudnn.deterministic = deterministic
            for name, module in plain.items():  # accelerate leaves its autocast in `forward`; reports are float32
                task.modules[name] = accelerator.unwrap_model(module, keep_fp32_wrapper=False)
            accelerator.end_training()
        return Fitted(run, session.progress.epoch, resumed, interrupted, session.patience_ran_out())


def _accelerator(device: torch.device, tracker: str, run: Run, task: Task) -> Accelerator:
    log_with = None if tracker == "none" else tracker
    try:
        accelerator = Accelerator(
            mixed_precision=pick_precision(device), cpu=device.type == "cpu", log_with=log_with, project_dir=run.folder
        )
        if log_with is not None and not accelerator.log_with:  # accelerate passes over a missing one in silence
            raise ImportError(f"no module named {tracker!r}")
        accelerator.init_trackers(task.stage)
    except (ImportError, ValueError) as error:
        raise UserError(f"tracker {tracker!r} cannot be used ({error}): install it or leave --tracker away.") from error
    return accelerator


def _prepared(phase: Phase, accelerator: Accelerator) -> Phase:
    optimizers = {name: accelerator.prepare(optimizer) for name, optimizer in phase.optimizers.items()}
    return dataclasses.replace(phase, optimizers=optimizers)


def _train(session: Session, *, fresh: bool) -> None:
    """All that is left of the run, phase by phase."""
    progress = session.progress
    ahead = len(session.phases)  # phases to rehearse: at first all that are left, so that no fault waits for its turn
    while True:
        while not session.phase_is_over:
            if ahead:
                _rehearse(session, session.phases[progress.phase :][:ahead])
                ahead = 0
            border.begin_epoch(session)
            if fresh and progress.step == 0:
                # A run stopped in its first epoch is done again from here, also by a task that has trained a bit of it.
                session.save()
            _train_epoch(session, session.phase, progress.epoch)
        border.end_phase(session)
        if session.is_over:
            break
        border.next_phase(session)
        ahead = ahead or 1  # again, now that it begins: with the weights that it starts from
    if session.average_is_due:
        greedy_average(session)


def _rehearse(session: Session, phases: Sequence[Phase]) -> None:
    """Show the guards the running phase, and those of ``phases`` that come after it, on their first batches."""
    task, progress = session.task, session.progress
    epoch, step = progress.began_epoch, progress.began_step
    for phase in [phase for phase in phases if phase.epochs]:
        _reseed(task, progress.step)
        shown = rehearse(
            task,
            phase,
            session.modules,
            step=progress.step,
            began=(epoch, step),
            surveys=session.surveys,
            is_ahead=phase is not session.phase,
        )
        session.surveys = shown.surveys
        session.watch.before(shown)
        epoch, step = epoch + phase.epochs, step + phase.epochs * shown.steps_per_epoch


def _train_epoch(session: Session, phase: Phase, epoch: int) -> None:
    task, progress, accelerator = session.task, session.progress, session.accelerator
    began, before = time.monotonic(), progress.seconds
    loader = task.batches("train", epoch, start=progress.batch)
    n_batches = progress.batch + len(loader)
    for module in task.modules.values():
        module.train()
    quiet = not (is_notebook() or sys.stderr.isatty())
    title = f"epoch {epoch + 1}/{session.epochs}"
    first = progress.step - math.ceil(progress.batch / task.config.accumulate)
    begun = epoch - progress.began_epoch
    seen = {} if quiet else last_seen(session)
    with tqdm(total=n_batches, initial=progress.batch, desc=title, leave=False, disable=quiet, unit="batch") as bar:
        for window in _windows(loader, task.config.accumulate):
            with session.stop.held():
                _step(session, phase, window, time=begun + progress.batch / n_batches, n_batches=n_batches)
                progress.step += 1
                progress.batch += len(window)
                progress.seconds = before + time.monotonic() - began
            if session.saver.due():
                session.save()
            bar.update(len(window))
            if not quiet:
                means = progress.sums.means()
                shown = {name: v for name, v in means.items() if name.startswith("total")} | seen | means
                bar.set_postfix({name: f"{v:.4g}" for name, v in shown.items()}, refresh=False)
    row, scored = score(session, epoch)
    row["seconds"] = round(before + time.monotonic() - began, 2)
    row |= measure()
    with session.stop.held():
        finish_epoch(session, row, scored, steps=progress.step - first)
    accelerator.log({key: value for key, value in row.items() if isinstance(value, (int, float))}, step=progress.step)
    if session.on_epoch is not None:
        with session.averaged():  # a picture of what is scored
            session.on_epoch(history.read_rows(session.run.history_file))


def _windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of ``size`` batches; the last may be shorter."""
    window: list[Batch] = []
    for batch in batches:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def _step(session: Session, phase: Phase, window: list[Batch], *, time: float, n_batches: int) -> None:
    """One optimizer step, its ledger rows, its guards."""
    task, progress = session.task, session.progress
    session.watch.on_batches(task, window, progress.step)
    _reseed(task, progress.step)
    outcomes = optimizer_step(
        task,
        phase,
        window,
        accelerator=session.accelerator,
        balance=session.balance,
        time=time,
        probing=LEDGER_FIRST * task.config.accumulate / n_batches,
        with_shares=progress.step - progress.began_step < LEDGER_FIRST or progress.step % LEDGER_EVERY == 0,
    )
    stepped = False
    for outcome in outcomes:
        progress.sums.add(outcome, several=len(phase.optimizers) > 1)
        stepped |= outcome.skipped is None
        if outcome.shares is not None:
            where = {"step": progress.step, "phase": phase.name, "optimizer": outcome.update.optimizer}
            session.saver.ledger_rows += [{**where, **entry.row()} for entry in outcome.shares]
        session.watch.on_step(
            Step(
                task,
                session.modules,
                phase,
                progress.step + 1,
                time,
                outcome.batch,
                outcome.update,
                outcome.total,
                outcome.raw,
                outcome.shares,
                outcome.skipped,
                outcome.suspects,
                outcome.accuracy,
            )
        )
    if stepped and session.ema is not None:
        session.ema.update()


def _reseed(task: Task, step: int) -> None:
    """All generators as a function of (seed, step) alone."""
    seed_everything(int(np.random.SeedSequence([task.config.seed, step]).generate_state(1)[0]))
