"""One optimizer step over a window of batches: probe the terms, weigh them, backward, unscale, clip, step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import nn

from nbhelpers.training.ledger import Balance, Entry, entries, probe, surrogate
from nbhelpers.training.task import Batch, Phase, Task, Update
from nbhelpers.training.weights import Ramp, Share

Skipped = Literal["loss not finite", "gradient not finite", "fp16 overflow"]


@dataclass(frozen=True)
class Seen:
    """What a step's predictions and targets looked like, in model units."""

    low: float  # of the prediction
    high: float
    n: float  # measured target values; 0 when the update has no target
    squared_error: float  # summed over those values
    target: float  # their sum
    target_squares: float  # the sum of their squares


@dataclass(frozen=True)
class Outcome:
    """What one optimizer did in one step."""

    batch: Batch  # the window's last batch
    update: Update  # of that batch
    raw: dict[str, float]  # unweighted terms, averaged over the window's samples
    weights: dict[str, float]  # as used for the last batch
    seen: Seen
    shares: list[Entry] | None  # the ledger's rows, if they were asked for
    skipped: Skipped | None  # why no step was taken

    @property
    def total(self) -> float:
        """The weighted loss."""
        return sum(self.weights[name] * value for name, value in self.raw.items())

    def columns(self) -> dict[str, float]:
        """What history.csv averages over the epoch; weights that are numbers stand in config.json already."""
        moving = {term.name for term in self.update.terms if isinstance(term.weight, (Share, Ramp))}
        return {"total": self.total, **self.raw, **{f"weight_{name}": self.weights[name] for name in sorted(moving)}}


class _Window:
    """What one optimizer gathers over the batches of its step."""

    def __init__(self, window: Sequence[Batch]):
        self.batches = len(window)
        self.nominal = 0  # samples of a full window, if all batches were as large as the first
        self.samples = 0
        self.raw: dict[str, float] = {}
        self.seen = Seen(math.inf, -math.inf, 0.0, 0.0, 0.0, 0.0)
        self.skipped: Skipped | None = None

    def factor(self, size: int) -> float:
        """Weight of a batch's mean loss in the window's, before it is known how many samples the window will have."""
        self.nominal = self.nominal or size * self.batches
        self.samples += size
        return size / self.nominal

    def add(self, names: Sequence[str], raw: Sequence[float], size: int, seen: Seen) -> None:
        for name, value in zip(names, raw, strict=True):
            self.raw[name] = self.raw.get(name, 0.0) + size * value
        mine = self.seen
        self.seen = Seen(
            min(mine.low, seen.low),
            max(mine.high, seen.high),
            mine.n + seen.n,
            mine.squared_error + seen.squared_error,
            mine.target + seen.target,
            mine.target_squares + seen.target_squares,
        )


def optimizer_step(
    task: Task,
    phase: Phase,
    window: Sequence[Batch],
    *,
    accelerator: Accelerator,
    balance: Balance,
    time: float,
    probing: float,
    with_shares: bool,
) -> Iterator[Outcome]:
    """Every optimizer's step over ``window``, one after the other; gradients stay until the optimizer's next turn.

    The gradient is that of the mean loss over the window's samples, whatever the sizes of its batches. A loss or
    gradient that is not finite costs the step and nothing else.

    Args:
        time: in epochs, for weights that rise.
        with_shares: whether the ledger's rows are wanted in any case.
        probing: for so long after a weight has risen they are wanted too, in epochs.
    """
    gathered: dict[int, _Window] = {}  # by the update's place among those of a batch
    for number, batch in enumerate(window):
        for place, update in enumerate(task.updates(batch, phase)):
            optimizer = phase.optimizers[update.optimizer]
            if number == 0:
                gathered[place] = _Window(window)
                optimizer.zero_grad()
            mine = gathered[place]
            is_last = number == len(window) - 1
            probed = probe(update.prediction, update.terms)
            size = len(update.prediction)
            factor = mine.factor(size)
            shares, weights = None, dict.fromkeys(probed.names, math.nan)
            if all(map(math.isfinite, (*probed.raw, *probed.norms))):
                weights = balance.weights(probed, update.terms, time=time)
                risen = any(isinstance(t.weight, Ramp) and 0 <= time - t.weight.end < probing for t in update.terms)
                if is_last and (with_shares or risen):
                    shares = entries(probed, weights)
                accelerator.backward(surrogate(probed, {name: factor * weight for name, weight in weights.items()}))
            else:
                mine.skipped = "loss not finite"
            mine.add(probed.names, probed.raw, size, _look(update))
            if is_last:
                mine.skipped = mine.skipped or _apply(optimizer, accelerator, mine, task.config.grad_clip)
                if mine.skipped is None and update.optimizer in phase.schedulers:
                    phase.schedulers[update.optimizer].step()
                raw = {name: value / mine.samples for name, value in mine.raw.items()}
                yield Outcome(batch, update, raw, weights, mine.seen, shares, mine.skipped)


def _look(update: Update) -> Seen:
    prediction = update.prediction.detach().float()
    low, high = prediction.aminmax()
    if update.target is None:
        return Seen(float(low), float(high), 0.0, 0.0, 0.0, 0.0)
    target = update.target.detach().float()
    error = prediction - target
    if update.valid is None:
        n = torch.tensor(float(target.numel()), device=target.device)
    else:
        error, target = torch.where(update.valid, error, 0.0), torch.where(update.valid, target, 0.0)
        n = update.valid.sum().float()
    sums = [n, error.square().sum(), target.sum(), target.square().sum()]
    return Seen(*torch.stack([low, high, *sums]).tolist())


def _apply(
    optimizer: torch.optim.Optimizer, accelerator: Accelerator, window: _Window, grad_clip: float
) -> Skipped | None:
    """Step on the gathered gradients; says why if it did not."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    scaler = accelerator.scaler
    if scaler is not None:  # of this optimizer only: accelerate would unscale all, those in mid-window too
        scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
    if window.samples != window.nominal:
        for parameter in parameters:
            parameter.grad.mul_(window.nominal / window.samples)
    norm = nn.utils.clip_grad_norm_(parameters, grad_clip if grad_clip > 0 else math.inf)
    finite = math.isfinite(float(norm))
    if scaler is None and not finite:
        return "gradient not finite"
    optimizer.step()  # with a scaler, only where all gradients are finite
    return None if finite else "fp16 overflow"
