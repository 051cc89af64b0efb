"""Forecasts that need no training: nothing changes, the mean state, and the best linear step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nbhelpers.stages.neural_operator.linear import LinearPredictor, PeriodicPredictor, fit_linear, fit_periodic
from nbhelpers.stages.neural_operator.verification import HELD, Forecast

Step = Callable[[Tensor], Tensor]  # (B, n_in, C, H, W) -> the next (B, C, H, W), model units
PAIRS_PER_SEGMENT = 16  # of neighbouring training frames, that the linear baseline is fitted to
RANK, PAIRS_PER_PATTERN = 64, 4  # patterns of the reduced fit, fewer where there are few pairs
DISTINCT = 1e-6  # of the largest singular value: below it, float32 holds rounding and no pattern


@dataclass(frozen=True)
class Pairs:
    """Neighbouring frames ``(N, C, H, W)`` twice, in batches that can be read again."""

    read: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    count: int  # of pairs

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.read()


def fit(pairs: Pairs, *, periodic: bool) -> LinearPredictor | PeriodicPredictor:
    """The linear step that fits the training pairs best: by wavenumber in a periodic box, by patterns elsewhere."""
    if periodic:
        return fit_periodic(pairs)
    return fit_linear(pairs, rank=max(1, min(RANK, pairs.count // PAIRS_PER_PATTERN, _spanned(pairs, 2 * RANK))))


def _spanned(pairs: Pairs, most: int) -> int:
    """How many patterns the first ``most`` frames span: few in a steady or a laminar flow."""
    frames: list[Tensor] = []
    for now, _ in pairs:
        frames += now.flatten(1).double()
        if len(frames) >= most:
            break
    lengths = torch.linalg.svdvals(torch.stack(frames[:most]))
    return int((lengths > DISTINCT * lengths[0]).sum())


def persistence(history: Tensor) -> Tensor:
    """The last frame again."""
    return history[:, -1]


def mean(history: Tensor) -> Tensor:
    """The mean over the training set: 0 in model units."""
    return torch.zeros_like(history[:, -1])


def forecast(step: Step, frames: Tensor, *, n_in: int) -> Forecast:
    """What a rule forecasts for windows ``(B, T, C, H, W)`` in model units."""
    steps = frames.shape[1] - n_in
    one = torch.stack([step(frames[:, i : i + n_in]) for i in range(steps)], 1)
    history, found = frames[:, :n_in], []
    for _ in range(steps):
        found.append(step(history).clamp(-HELD, HELD))
        history = torch.cat([history[:, 1:], found[-1][:, None]], 1)
    return Forecast(one, torch.stack(found, 1))
