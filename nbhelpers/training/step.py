"""One optimizer step over a window of batches: probe the terms, weigh them, backward, unscale, clip, step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nbhelpers.training.ledger import Balance, Entry, entries, probe, surrogate
from nbhelpers.training.task import Batch, Phase, Task, Update
from nbhelpers.training.weights import Moving, Share

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
    right: float  # share of a discriminator's decisions that are right; in a window's sum, times its samples


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
    suspects: tuple[str, ...]  # terms whose value or gradient was not finite
    accuracy: float | None = None  # of a discriminator, averaged over the window's samples

    @property
    def total(self) -> float:
        """The weighted loss."""
        return sum(self.weights[name] * value for name, value in self.raw.items())

    def columns(self, *, several: bool = False) -> dict[str, float]:
        """What history.csv averages over the epoch; weights that are numbers stand in config.json already.

        Args:
            several: whether there are other optimizers, whose losses are not to be mixed with this one's.
        """
        moving = {t.name for t in self.update.terms if isinstance(t.weight, Share | Moving) or t.relative_to}
        cells = {f"total_{self.update.optimizer}" if several else "total": self.total, **self.raw}
        if self.accuracy is not None:
            cells[f"accuracy_{self.update.optimizer}"] = self.accuracy
        return cells | {f"weight_{name}": self.weights[name] for name in sorted(moving)}


class _Window:
    """What one optimizer gathers over the batches of its step."""

    def __init__(self, optimizer: str, batches: int):
        self.optimizer, self.batches = optimizer, batches
        self.nominal = 0  # samples of a full window, if all batches were as large as the first
        self.samples = 0
        self.raw: dict[str, float] = {}
        self.seen = Seen(math.inf, -math.inf, 0.0, 0.0, 0.0, 0.0, 0.0)
        self.skipped: Skipped | None = None
        self.suspects: tuple[str, ...] = ()

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
            mine.right + size * seen.right,
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
        time: in epochs of the phase, for weights that rise.
        with_shares: whether the ledger's rows are wanted in any case.
        probing: for so long after a weight has risen they are wanted too, in epochs.
    """
    # A batch of which nothing could be read has no update, and must not be the one that steps.
    window = [batch for batch in window if not task.unreadable(batch) or _samples(task, batch)]
    applied = False
    gathered: dict[int, _Window] = {}  # by the update's place among those of a batch
    for number, batch in enumerate(window):
        for place, update in enumerate(task.updates(batch, phase)):
            optimizer = phase.optimizers[update.optimizer]
            if number == 0:
                if len(window) > 1 and update.optimizer in [one.optimizer for one in gathered.values()]:
                    raise ValueError(f"optimizer {update.optimizer!r} steps twice a batch, so accumulate must be 1")
                gathered[place] = _Window(update.optimizer, len(window))
                optimizer.zero_grad()
            mine = gathered[place]
            is_last = number == len(window) - 1
            probed = probe(update.prediction, update.terms)
            size = len(update.prediction)
            factor = mine.factor(size)
            shares, weights = None, dict.fromkeys(probed.names, math.nan)
            numbers = zip(probed.names, probed.raw, probed.norms, strict=True)
            if suspects := tuple(n for n, raw, norm in numbers if not (math.isfinite(raw) and math.isfinite(norm))):
                finite = all(map(math.isfinite, probed.raw))
                mine.skipped, mine.suspects = "gradient not finite" if finite else "loss not finite", suspects
            else:
                weights = balance.weights(probed, update.terms, time=time)
                risen = any(isinstance(t.weight, Moving) and 0 <= time - t.weight.end < probing for t in update.terms)
                if is_last and (with_shares or risen):
                    shares = entries(probed, weights)
                loss = surrogate(probed, {name: factor * weight for name, weight in weights.items()})
                # Only into this optimizer's own tensors: a generator's loss runs through the discriminator too.
                accelerator.backward(loss, inputs=_tensors(optimizer))
            mine.add(probed.names, probed.raw, size, _look(update))
            if is_last:
                if mine.skipped is None:
                    mine.skipped = _apply(optimizer, accelerator.scaler, mine, task.config.grad_clip)
                    applied = True
                    if accelerator.scaler is not None and len(window) == 1:
                        accelerator.scaler.update()
                if mine.skipped is None and update.optimizer in phase.schedulers:
                    phase.schedulers[update.optimizer].step()
                raw = {name: value / mine.samples for name, value in mine.raw.items()}
                accuracy = None if update.accuracy is None else mine.seen.right / mine.samples
                yield Outcome(batch, update, raw, weights, mine.seen, shares, mine.skipped, mine.suspects, accuracy)
    if accelerator.scaler is not None and len(window) > 1 and applied:  # not before: a window has one scale
        accelerator.scaler.update()


def _samples(task: Task, batch: Batch) -> int:
    return max(len(raw) for raw in task.look(batch).raw.values())


def _look(update: Update) -> Seen:
    prediction = update.prediction.detach().float()
    low, high = prediction.aminmax()
    zero = torch.zeros_like(low)
    right = zero if update.accuracy is None else update.accuracy.detach().to(zero)
    if update.target is None:
        return Seen(*torch.stack([low, high, zero, zero, zero, zero, right]).tolist())
    target = update.target.detach().float()
    error = prediction - target
    if update.valid is None:
        n = torch.tensor(float(target.numel()), device=target.device)
    else:
        error, target = torch.where(update.valid, error, 0.0), torch.where(update.valid, target, 0.0)
        n = update.valid.sum().float()
    sums = [n, error.square().sum(), target.sum(), target.square().sum()]
    return Seen(*torch.stack([low, high, *sums, right]).tolist())


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the optimizer trains."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _apply(optimizer: torch.optim.Optimizer, scaler: Any, window: _Window, grad_clip: float) -> Skipped | None:
    """Step on the gathered gradients; says why if it did not.

    Accelerate's own step is passed by: it would unscale the gradients of all optimizers, those in mid-window too, and
    change the scale between two optimizers of one window.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    tensors = _tensors(optimizer)
    if scaler is not None:
        scaler.unscale_(inner)
    if window.samples != window.nominal:
        for gradient in (tensor.grad for tensor in tensors):
            if gradient is not None:
                gradient.mul_(window.nominal / window.samples)
    norm = float(nn.utils.clip_grad_norm_(tensors, grad_clip if grad_clip > 0 else math.inf))
    if not math.isfinite(norm):
        return "gradient not finite" if scaler is None else "fp16 overflow"
    if scaler is None:
        inner.step()
    else:
        scaler.step(inner)
    return None
