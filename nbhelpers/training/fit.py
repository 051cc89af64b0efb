"""The training loop of every stage: it knows a ``Task``, a run folder, and accelerate."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import is_notebook, pick_device, pick_precision, seed_everything
from nbhelpers.training import checkpoint, history
from nbhelpers.training.ledger import Balance, entries, probe, surrogate, weighted_sum
from nbhelpers.training.metrics import values
from nbhelpers.training.run import Run
from nbhelpers.training.task import Phase, Task, Update
from nbhelpers.training.weights import Share

LEDGER_EVERY = 10  # steps between rows of ledger.csv


@dataclass(frozen=True)
class Fitted:
    """What a call of ``fit`` did."""

    run: Run
    epochs: int  # finished epochs, those of earlier calls included
    resumed_from: int | None  # step at which an earlier run was taken up
    interrupted: bool  # stopped by the user; run again to go on


@dataclass
class _Progress:
    """Everything of a run that changes while it trains and is not a tensor; checkpointed whole."""

    step: int = 0  # batches seen
    epoch: int = 0  # finished epochs
    best: float | None = None  # monitored value of the best checkpoint


@dataclass
class _EpochSums:
    """Running sums of one training epoch, for its row of history.csv."""

    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # a term may stand in one update of several only
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    low: float = math.inf
    high: float = -math.inf

    def add(self, terms: Mapping[str, float], low: float, high: float) -> None:
        for name, value in terms.items():
            self.counts[name] = self.counts.get(name, 0) + 1
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.low, self.high = min(self.low, low), max(self.high, high)

    def means(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in self.sums.items()}


def fit(
    task: Task,
    run: Run,
    *,
    start: Path | None = None,
    tracker: str = "none",
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Fitted:
    """Train ``task`` in ``run``'s folder; an existing run goes on from its last checkpoint.

    After every epoch the model is scored on validation, a row is added to ``history.csv`` and a checkpoint written.

    Args:
        start: a checkpoint folder to go on from instead of the run's last one.
        tracker: "tensorboard" or "wandb" to log the history there as well.
        on_epoch: called with the whole history after each epoch, for live figures.

    Raises:
        UserError: a loss that is not finite, a device out of memory, a checkpoint that does not fit.
    """
    seed_everything(task.config.seed)
    device = pick_device()
    accelerator = _accelerator(device, tracker, run, task)
    task.to(accelerator.device)
    plain = dict(task.modules)
    for name, module in plain.items():
        if accelerator.device.type == "cuda":
            module = module.to(memory_format=torch.channels_last)
        task.modules[name] = accelerator.prepare(module)
    phases = [_prepared(phase, accelerator) for phase in task.phases]
    balance, progress = Balance(), _Progress()
    resumed = _resume(run, plain, phases, accelerator, balance, progress, start)
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    if resumed is None and accelerator.is_main_process:
        # A run stopped in its first epoch is done again from here, also by the task that has trained half an epoch.
        state = _state(phases[0], accelerator, balance, progress)
        checkpoint.save(run, step=0, modules=plain, state=state, best=False)
    interrupted = False
    try:
        first = 0
        for phase in phases:
            for epoch in range(max(first, progress.epoch), first + phase.epochs):
                _train_epoch(task, run, phase, epoch, accelerator, balance, progress, plain, on_epoch)
            first += phase.epochs
    except KeyboardInterrupt:
        interrupted = True
        saved = f"{progress.epoch} finished epochs are saved; run again to go on from there"
        print(f"Stopped in epoch {progress.epoch + 1}: {saved if progress.epoch else 'run again to begin anew'}.")
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"{accelerator.device} ran out of memory: {task.oom_advice[0]} and start a run of another name."
        ) from error
    finally:
        for name, module in plain.items():  # accelerate leaves its autocast in `forward`; reports are float32
            task.modules[name] = accelerator.unwrap_model(module, keep_fp32_wrapper=False)
        accelerator.end_training()
    return Fitted(run, progress.epoch, resumed, interrupted)


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


def _train_epoch(
    task: Task,
    run: Run,
    phase: Phase,
    epoch: int,
    accelerator: Accelerator,
    balance: Balance,
    progress: _Progress,
    plain: Mapping[str, nn.Module],
    on_epoch: Callable[[list[dict[str, Any]]], None] | None,
) -> None:
    began = time.monotonic()
    sums, ledger_rows = _EpochSums(), []
    loader = accelerator.prepare_data_loader(task.batches("train", epoch), device_placement=False)
    for module in task.modules.values():
        module.train()
    total_epochs = sum(p.epochs for p in task.phases)
    quiet = not accelerator.is_main_process or not (is_notebook() or sys.stderr.isatty())
    bar = tqdm(loader, desc=f"epoch {epoch + 1}/{total_epochs}", leave=False, disable=quiet, unit="step")
    for batch in bar:
        for update in task.updates(batch, phase):
            terms, rows = _step(task, update, phase, accelerator, balance, progress.step)
            prediction = update.prediction.detach()
            sums.add(terms, float(prediction.min()), float(prediction.max()))
            ledger_rows += rows
        progress.step += 1
        if not quiet:
            bar.set_postfix({name: f"{value:.4g}" for name, value in sums.means().items()}, refresh=False)
    if not sums.counts:
        raise UserError("the training split yields no batch: give more events or a smaller batch_size.")
    row = _score(task, phase, epoch, progress, sums)
    row["seconds"] = round(time.monotonic() - began, 2)
    monitored = row[f"val_{task.monitor.metric}"]
    is_best = task.monitor.better(monitored, progress.best)
    if is_best:
        progress.best = monitored
    progress.epoch = epoch + 1
    if accelerator.is_main_process:
        history.append_rows(run.ledger_file, ledger_rows)
        history.append_rows(run.history_file, [row])
        state = _state(phase, accelerator, balance, progress)
        checkpoint.save(run, step=progress.step, modules=plain, state=state, best=is_best or progress.best is None)
        accelerator.log(
            {key: value for key, value in row.items() if isinstance(value, (int, float))}, step=progress.step
        )
        _tell(task, row, total_epochs, is_best)
        if on_epoch is not None:
            on_epoch(history.read_rows(run.history_file))
    accelerator.wait_for_everyone()


def _step(
    task: Task, update: Update, phase: Phase, accelerator: Accelerator, balance: Balance, step: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """One optimizer step; returns the raw terms and their weighted total, and ledger rows when they are due."""
    probed = probe(update.prediction, update.terms)
    if not bool(torch.isfinite(probed.raw + probed.norms).all()):
        numbers = zip(probed.names, probed.raw.tolist(), probed.norms.tolist(), strict=True)
        bad = [f"{name} = {raw}, its gradient's norm {norm}" for name, raw, norm in numbers]
        raise UserError(
            f"the loss is not finite at step {step} ({'; '.join(bad)}): lower the learning rate, or look at the batch; "
            "the last checkpoint is from before."
        )
    weights = balance.weights(probed, update.terms)
    gradient = weighted_sum(
        probed.gradients, torch.tensor([weights[n] for n in probed.names], device=probed.raw.device)
    )
    optimizer = phase.optimizers[update.optimizer]
    optimizer.zero_grad()
    accelerator.backward(surrogate(update.prediction, gradient))
    if task.config.grad_clip > 0:
        if accelerator.scaler is not None:
            accelerator.scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, task.config.grad_clip)
    optimizer.step()
    if update.optimizer in phase.schedulers:
        phase.schedulers[update.optimizer].step()
    raw = dict(zip(probed.names, probed.raw.tolist(), strict=True))
    total = sum(weights[name] * raw[name] for name in raw)
    rows = []
    if step % LEDGER_EVERY == 0:
        rows = [{"step": step, **dataclasses.asdict(entry)} for entry in entries(probed, weights)]
    shares = {f"weight_{t.name}": weights[t.name] for t in update.terms if isinstance(t.weight, Share)}
    return {"total": total, **raw, **shares}, rows


def _score(task: Task, phase: Phase, epoch: int, progress: _Progress, sums: _EpochSums) -> dict[str, Any]:
    for module in task.modules.values():
        module.eval()
    scored = task.evaluate("val")
    row: dict[str, Any] = {"epoch": epoch + 1, "step": progress.step, "phase": phase.name}
    row |= {f"train_{name}": value for name, value in sums.means().items()}
    row |= {"train_prediction_min": sums.low, "train_prediction_max": sums.high}
    row |= {f"val_{name}": value for name, value in values(scored.metrics).items()}
    for name, (low, high) in scored.ranges.items():
        row |= {f"val_{name}_min": low, f"val_{name}_max": high}
    if f"val_{task.monitor.metric}" not in row:
        known = ", ".join(sorted(scored.metrics))
        raise UserError(
            f"monitor metric {task.monitor.metric!r} is not among the validation metrics: choose one of {known}."
        )
    row |= {f"lr_{name}": optimizer.param_groups[0]["lr"] for name, optimizer in phase.optimizers.items()}
    return row


def _state(phase: Phase, accelerator: Accelerator, balance: Balance, progress: _Progress) -> dict[str, Any]:
    return {
        "progress": dataclasses.asdict(progress),
        "phase": phase.name,
        "optimizers": {name: optimizer.state_dict() for name, optimizer in phase.optimizers.items()},
        "schedulers": {name: scheduler.state_dict() for name, scheduler in phase.schedulers.items()},
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "balance": balance.state_dict(),
        "rng": torch.get_rng_state(),
    }


def _resume(
    run: Run,
    plain: Mapping[str, nn.Module],
    phases: list[Phase],
    accelerator: Accelerator,
    balance: Balance,
    progress: _Progress,
    start: Path | None,
) -> int | None:
    """Take up the given or the last checkpoint; returns its step, or None for a fresh start."""
    found = checkpoint.at(start) if start is not None else checkpoint.find(run, "last")
    if found is None:
        if any(optimizer.state_dict()["state"] for phase in phases for optimizer in phase.optimizers.values()):
            raise UserError(
                f"this task has been trained before, so {run.name!r} would start from its weights and not from "
                "scratch: make the task anew (run the cell that does) and train that."
            )
        if accelerator.is_main_process:
            history.keep_rows(run.history_file, lambda row: False)
            history.keep_rows(run.ledger_file, lambda row: False)
        return None
    state = checkpoint.load_state(found)
    checkpoint.load_weights(found, plain)
    phase = next((phase for phase in phases if phase.name == state["phase"]), None)
    if phase is None:
        raise UserError(f"{found.folder} was saved in phase {state['phase']!r}, which this task does not have.")
    for name, saved in state["optimizers"].items():
        phase.optimizers[name].load_state_dict(saved)
    for name, saved in state["schedulers"].items():
        phase.schedulers[name].load_state_dict(saved)
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    balance.load_state_dict(state["balance"])
    torch.set_rng_state(state["rng"])
    for key, value in state["progress"].items():
        setattr(progress, key, value)
    if start is not None and not _knows_the_best(run, found):
        progress.best = None
    if accelerator.is_main_process:
        # Rows written after the checkpoint belong to work that will be done again.
        history.keep_rows(run.history_file, lambda row: row["step"] <= progress.step)
        history.keep_rows(run.ledger_file, lambda row: row["step"] < progress.step)
        print(f"Resuming {run.folder} after epoch {progress.epoch} (step {progress.step}).")
    return progress.step


def _knows_the_best(run: Run, found: checkpoint.Checkpoint) -> bool:
    """Whether the best score in ``found``'s state is that of the run's best checkpoint: same run, not from later on."""
    best = checkpoint.find(run, "best")
    return found.folder.resolve().parent == run.checkpoints.resolve() and best is not None and best.step <= found.step


def _tell(task: Task, row: Mapping[str, Any], total_epochs: int, is_best: bool) -> None:
    """One plain line an epoch: what a log file keeps when the progress bars are gone."""
    shown = {"loss": row["train_total"]}
    shown |= {name: row[name] for name in ("val_mse",) if name in row}
    shown[f"val_{task.monitor.metric}"] = row[f"val_{task.monitor.metric}"]
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
    print(
        f"epoch {row['epoch']}/{total_epochs}  {numbers}  {row['seconds']:.0f} s{'  best so far' if is_best else ''}",
        flush=True,
    )
