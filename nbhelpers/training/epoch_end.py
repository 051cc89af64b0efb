"""The end of an epoch: scores, the row of history.csv, what the guards say, and a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbhelpers.training import history
from nbhelpers.training.guards.guard import Epoch
from nbhelpers.training.metrics import values
from nbhelpers.training.qualified import epoch_of, none_qualified
from nbhelpers.training.session import Session
from nbhelpers.training.state import EpochSums
from nbhelpers.training.task import Evaluation


def score(session: Session, epoch: int) -> tuple[dict[str, Any], Evaluation]:
    """The epoch's row of history.csv, and the scores it was made from."""
    task, phase, progress, sums = session.task, session.phase, session.progress, session.progress.sums
    for module in task.modules.values():
        module.eval()
    with session.averaged():
        scored = task.evaluate("val")
    row: dict[str, Any] = {"epoch": epoch + 1, "step": progress.step, "phase": phase.name}
    row |= {f"train_{name}": value for name, value in sums.means().items()}
    low, high = (sums.low, sums.high) if sums.low <= sums.high else (None, None)  # every step may have been skipped
    row |= {"train_prediction_min": low, "train_prediction_max": high, "train_skill": sums.skill()}
    row |= {"skipped_steps": sums.skipped}
    row |= {f"val_{name}": value for name, value in values(scored.metrics).items()}
    for name, spread in scored.spreads.items():
        row |= {f"val_{name}_min": spread.low, f"val_{name}_max": spread.high}
    row |= {f"lr_{name}": optimizer.param_groups[0]["lr"] for name, optimizer in phase.optimizers.items()}
    if task.loss_scheduler is not None:  # with the weights that this epoch had
        row |= {f"schedule_{name}": weight for name, weight in task.loss_scheduler.get_loss_weights().items()}
    return row, scored


def finish_epoch(session: Session, row: dict[str, Any], scored: Evaluation, *, steps: int) -> None:
    """Rows, guards and a checkpoint, in this order: what the guards remember belongs to the checkpoint."""
    task, run, progress, scheduler = session.task, session.run, session.progress, session.task.loss_scheduler
    phase, monitor = session.phase, session.monitor
    monitored = row[f"val_{monitor.metric}"]
    progress.epoch, progress.batch, progress.seconds, progress.sums = row["epoch"], 0, 0.0, EpochSums()
    is_armed = not session.is_warming_up
    is_best = is_armed and monitor.better(monitored, progress.best)
    if is_best:
        progress.best = monitored
    if is_armed and monitor.better(monitored, progress.mark, by=monitor.delta):
        progress.mark, progress.stale = monitored, 0
    elif is_armed and (scheduler is None or scheduler.finished):
        progress.stale += 1
    if is_armed and phase.keep > 1:
        progress.rank(monitored, monitor, phase.keep)
    moved = ""
    if scheduler is not None and scheduler.step(row["epoch"], values(scored.metrics)):
        weights = ", ".join(f"{name} {weight:.3g}" for name, weight in scheduler.get_loss_weights().items())
        moved = f"loss weights from now on: {weights} ({scheduler.events[-1][3]})"
        if row["epoch"] < session.phase_end:
            progress.forget_best()  # under other weights: the best has the last weights
    history.append_rows(run.history_file, [row])
    _tell(session, row, is_best)
    if moved:
        print(moved, flush=True)
    rows = history.read_rows(run.history_file)
    session.watch.on_epoch(
        Epoch(task, session.modules, phase, row["epoch"], progress.step, steps, rows, scored, session.epochs)
    )
    session.save(best=is_best or (is_armed and progress.best is None))
    if session.phase_is_over:
        _tell_end(session, rows)


def last_seen(session: Session) -> dict[str, float]:
    """What the last epoch scored in the monitor's ``beside``, for the progress bar; nothing before the first."""
    row = (history.read_rows(session.run.history_file) or [{}])[-1]
    names = [f"val_{metric}" for metric in session.monitor.beside]
    return {name: row[name] for name in names if row.get(name) is not None}


def _tell_end(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Why a phase ends before its last epoch, what its best epoch is, and whether there is one."""
    monitor, progress, phase = session.monitor, session.progress, session.phase
    best = None
    if progress.best is not None:
        best = f"best val_{monitor.metric} {progress.best:.4g} at epoch {epoch_of(rows, progress.best_step)}"
    if session.patience_ran_out():
        stale = f"val_{monitor.metric} has not improved{monitor.margin} for {monitor.patience} epochs"
        told = stale if best is None else f"{best}; {stale}"
        if session.is_over:
            print(f"Early stopping: {told}. A larger patience goes on from here.")
        else:
            print(f"Phase {phase.name!r} ends early: {told}.")
    if said := none_qualified(rows, phase.name, monitor, progress.best_step, several=len(session.phases) > 1):
        print(said)


def _tell(session: Session, row: Mapping[str, Any], is_best: bool) -> None:
    """One plain line an epoch: what a log file keeps when the progress bars are gone."""
    totals = {key.replace("train_total", "loss"): row[key] for key in row if key.startswith("train_total")}
    shown = totals or {"loss": float("nan")}
    monitor = session.monitor
    shown |= {name: row[name] for name in ("val_mse",) if name in row}
    shown |= {name: row[name] for name in (f"val_{metric}" for metric in (monitor.metric, *monitor.beside))}
    rates = dict.fromkeys(f"{row[f'lr_{name}']:.3g}" for name in session.phase.optimizers)  # one if all are the same
    numbers = "  ".join([*(f"{name} {value:.4g}" for name, value in shown.items()), f"lr {'/'.join(rates)}"])
    several = f" ({session.phase.name})" if len(session.phases) > 1 else ""
    news = "  best so far" if is_best else ""
    if session.progress.stale and monitor.patience is not None:
        news += f"  no improvement{monitor.margin} ({session.progress.stale}/{monitor.patience})"
    print(f"epoch {row['epoch']}/{session.epochs}{several}  {numbers}  {row['seconds']:.0f} s{news}", flush=True)
