"""Everything of a run that changes while it trains, as plain types and tensors: what makes a resume exact.

There is no random generator in it: before every step the generators are seeded from (seed, step), so that neither a
restart, nor loader processes, nor an evaluation in between can shift them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nbhelpers.core.errors import UserError
from nbhelpers.training import ema as averaging
from nbhelpers.training.checkpoint import Checkpoint, load_state, load_weights
from nbhelpers.training.ema import Ema
from nbhelpers.training.flexible import FlexibleScheduler
from nbhelpers.training.guards.watch import Watch
from nbhelpers.training.ledger import Balance
from nbhelpers.training.step import Outcome
from nbhelpers.training.task import Monitor, Phase


@dataclass
class EpochSums:
    """Running sums of one training epoch, for its row of history.csv."""

    counts: dict[str, int] = field(default_factory=dict)  # a term may stand in one update of several only
    sums: dict[str, float] = field(default_factory=dict)
    low: float = math.inf  # of the predictions
    high: float = -math.inf
    n: float = 0.0  # measured target values
    target: float = 0.0  # their sum
    target_squares: float = 0.0
    squared_error: float = 0.0
    skipped: int = 0  # steps that were not taken because something was not finite

    def add(self, outcome: Outcome, *, several: bool) -> None:
        """Take an update's step into account.

        Args:
            several: whether the phase has several optimizers. Each then has a total of its own, and only predictions
                that have a target count as such: a discriminator's decisions are none.
        """
        if outcome.skipped:
            self.skipped += 1
            return
        for name, value in outcome.columns(several=several).items():
            self.counts[name] = self.counts.get(name, 0) + 1
            self.sums[name] = self.sums.get(name, 0.0) + value
        seen = outcome.seen
        if not several or outcome.update.target is not None:
            self.low, self.high = min(self.low, seen.low), max(self.high, seen.high)
        self.n += seen.n
        self.target += seen.target
        self.target_squares += seen.target_squares
        self.squared_error += seen.squared_error

    def means(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in self.sums.items()}

    def skill(self) -> float | None:
        """1 − MSE/MSE of the best constant, over the epoch; None without a target or with a constant one."""
        about_mean = self.target_squares - self.target**2 / self.n if self.n else 0.0
        return 1.0 - self.squared_error / about_mean if about_mean > 0 else None


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0  # finished optimizer steps
    epoch: int = 0  # finished epochs
    batch: int = 0  # batches of the running epoch that finished steps have used
    phase: int = 0  # number of the running phase
    began_epoch: int = 0  # epochs finished when it began
    began_step: int = 0  # steps finished when it began
    best: float | None = None  # monitored value of the phase's best checkpoint; None: the next one is better
    best_step: int | None = None  # of the checkpoint that best.json names
    mark: float | None = None  # monitored value that patience is counted from: the next has to be better by its delta
    stale: int = 0  # epochs since then, those before the monitor is armed left out
    ranked: dict[int, float] = field(default_factory=dict)  # steps and monitored values of the best ones that are kept
    kept: dict[int, str] = field(default_factory=dict)  # digests of the weights of these and of the best one, by step
    seconds: float = 0.0  # spent in the running epoch
    sums: EpochSums = field(default_factory=EpochSums)  # of the running epoch

    def forget_best(self) -> None:
        """What was best so far is no measure of what comes; best.json names it until there is another."""
        self.best, self.mark, self.stale, self.ranked = None, None, 0, {}

    def keep(self, weights: str, *, best: bool) -> None:
        """Know the checkpoint of this step again by the digest of its weights, if it is the best or a ranked one."""
        if best:
            self.best_step = self.step
        if best or self.step in self.ranked:
            self.kept[self.step] = weights
        named = {self.best_step, *self.ranked}
        self.kept = {step: digest for step, digest in self.kept.items() if step in named}

    def rank(self, value: float, monitor: Monitor, keep: int) -> None:
        """Put the newest checkpoint among the ``keep`` best ones, best first, if it is one of them."""
        if value == value:
            sign = 1 if monitor.mode == "min" else -1
            ranked = sorted([*self.ranked.items(), (self.step, value)], key=lambda one: sign * one[1])
            self.ranked = dict(ranked[:keep])


def capture(
    phases: Sequence[Phase],
    scaler: Any,
    loss_scheduler: FlexibleScheduler | None,
    balance: Balance,
    watch: Watch,
    ema: Ema | None,
    progress: Progress,
) -> dict[str, Any]:
    """The state beside the weights. With an average, model.safetensors holds the average and the weights stand here."""
    return {
        "progress": dataclasses.asdict(progress),
        "phases": {
            phase.name: {
                "optimizers": {name: optimizer.state_dict() for name, optimizer in phase.optimizers.items()},
                "schedulers": {name: scheduler.state_dict() for name, scheduler in phase.schedulers.items()},
            }
            for phase in phases
        },
        "scaler": None if scaler is None else scaler.state_dict(),
        "loss_scheduler": None if loss_scheduler is None else loss_scheduler.state_dict(),
        "balance": balance.state_dict(),
        "guards": watch.state_dict(),
        "ema": None if ema is None else {"updates": ema.updates, "weights": ema.trained()},
    }


def restore(
    found: Checkpoint,
    modules: Mapping[str, nn.Module],
    phases: Sequence[Phase],
    scaler: Any,
    loss_scheduler: FlexibleScheduler | None,
    balance: Balance,
    watch: Watch,
    ema: Ema | None,
) -> Progress:
    """Put a checkpoint back into everything that :func:`capture` took it from.

    Raises:
        UserError: damaged files, another architecture, other phases.
    """
    state = load_state(found)
    load_weights(found, modules)
    if (names := {phase.name for phase in phases}) != state["phases"].keys():
        raise UserError(
            f"{found.folder} was saved by a run with the phases {', '.join(state['phases'])}, this task has "
            f"{', '.join(sorted(names))}: go back to its settings or start a run of another name."
        )
    for phase in phases:
        saved = state["phases"][phase.name]
        for name, optimizer in phase.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        for name, scheduler in phase.schedulers.items():
            scheduler.load_state_dict(saved["schedulers"][name])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    if loss_scheduler is not None and state["loss_scheduler"] is not None:
        loss_scheduler.load_state_dict(state["loss_scheduler"])
    balance.load_state_dict(state["balance"])
    watch.load_state_dict(state["guards"])
    if ema is not None and state["ema"] is not None:
        ema.restart(state["ema"]["updates"])
        averaging.load(modules, state["ema"]["weights"])
    progress = dict(state["progress"])
    return Progress(**{**progress, "sums": EpochSums(**progress["sums"])})
