"""A small deterministic downscaler, the kind of model that synthetic days are made for: weather in, one field out.

It minimises the squared error of log(1 + rain), the usual choice, and so puts out something near the conditional mean
of that: smooth fields whose extremes are too rare and too weak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import pick_device
from nbhelpers.stages.rainfall_cvae.batches import Batch
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.facts import static_maps
from nbhelpers.stages.rainfall_cvae.transform import MOST_LOG

WIDTHS = (32, 16)  # channels on the coarse and on the fine grid
LR = 3e-3
# Rain ``(H, W)`` in mm/day to go with a day's weather: draws, or None for what was observed.
Fields = Sequence[NDArray[np.float32] | None]


@dataclass(frozen=True)
class Training:
    """How a downscaler is trained; the same for all sets of days that are compared."""

    steps: int = 600
    batch_size: int = 32
    # Part of every batch that is taken from the days added, if there are any.
    share: float = 0.5
    seed: int = 0  # of weights and of what is drawn

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2:
            raise UserError(
                f"steps is {self.steps} and batch_size {self.batch_size}, expected at least 1 and 2: raise them."
            )
        if not 0 < self.share < 1:
            raise UserError(f"share is {self.share}, expected a part of the batch between 0 and 1, e.g. 0.5.")


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class Downscaler(nn.Module):
    """Weather ``(B, C, h, w)`` to rain ``(B, H, W)`` as log(1 + mm/day).

    Args:
        days: whose weather, static maps and climate it is made for.
    """

    statics: Tensor  # (1, S, H, W)

    def __init__(self, days: Days):
        super().__init__()
        self.days = days
        self.register_buffer("statics", static_maps(days)[None])
        (coarse, fine), n_statics = WIDTHS, self.statics.shape[1]
        self.weather = nn.Sequential(
            _conv(len(days.channels) + n_statics, coarse), nn.SiLU(), _conv(coarse, coarse), nn.SiLU(),
            _conv(coarse, coarse), nn.SiLU(), nn.Conv2d(coarse, fine, 1),
        )  # fmt: skip
        self.place = nn.Sequential(
            _conv(fine + n_statics, fine), nn.SiLU(), _conv(fine, fine), nn.SiLU(), nn.Conv2d(fine, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Raw predictors, as the files have them, to log(1 + mm/day)."""
        statics = self.statics.expand(len(x), *self.statics.shape[1:])
        around = F.avg_pool2d(statics, self.days.factor)
        weather = self.weather(torch.cat([self.days.standardise_x(x), around], 1))
        fine = F.interpolate(weather, size=self.days.shape, mode="bilinear", align_corners=False)
        return F.softplus(self.place(torch.cat([fine, statics], 1))[:, 0])

    @torch.no_grad()
    def rain(self, batch: Batch) -> Tensor:
        """``(B, 1, H, W)`` mm/day."""
        return self(batch.x.to(self.statics.device)).clamp(max=MOST_LOG).expm1()[:, None]


def train_downscaler(days: Days, training: Training, added: Mapping[int, Fields] | None = None) -> Downscaler:
    """Train on the training days of ``days`` and on days added to them.

    The training days pass in a new order every epoch. Of the days added, ``training.share`` of every batch is drawn:
    first a day, then one of its fields, so that a day with many draws counts no more than one with few. The number of
    steps, the batch size and, given the seed, the first weights and the order of the training days do not depend on
    what is added; with it, a batch has as many fewer of them.

    Args:
        added: fields by day; the weather is that of the day.

    Raises:
        UserError: no field to add.
    """
    if added is not None and not any(added.values()):
        raise UserError("there is no field to add to the training days: draw more, or for other days.")
    torch.manual_seed(training.seed)
    net = Downscaler(days).to(device := pick_device())
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    order, draws = _Order(days, training.seed), np.random.default_rng([training.seed, 1])
    n_added = max(1, round(training.share * training.batch_size)) if added else 0
    pool = [(day, list(fields)) for day, fields in (added or {}).items() if fields]
    for _ in range(training.steps):
        batch: list[tuple[int, NDArray[np.float32] | None]] = [
            (day, None) for day in order.next(training.batch_size - n_added)
        ]
        for place in draws.integers(len(pool), size=n_added) if n_added else ():
            day, fields = pool[place]
            batch.append((day, fields[draws.integers(len(fields))]))
        x = torch.from_numpy(np.stack([days.x(day) for day, _ in batch]))
        y = torch.from_numpy(np.stack([days.y(day) if drawn is None else drawn for day, drawn in batch]))
        x, y = x.to(device), y.to(device)
        valid = y.isfinite()
        error = torch.where(valid, net(x) - y.nan_to_num().log1p(), 0.0)
        loss = error.square().sum() / valid.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net.eval()


class _Order:
    """Training days without end, each once an epoch."""

    def __init__(self, days: Days, seed: int):
        self._days = [day for day in days.split["train"] if day not in days.unreadable]
        self._rng, self._left = np.random.default_rng([seed, 0]), list[int]()

    def next(self, n: int) -> list[int]:
        while len(self._left) < n:
            self._left += self._rng.permutation(self._days).tolist()
        taken, self._left = self._left[:n], self._left[n:]
        return taken
