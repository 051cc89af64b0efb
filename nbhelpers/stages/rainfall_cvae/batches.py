"""Batches of days: the order of a training epoch, heavy days drawn more often, and the loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.augment import Augmentation, Fields, mixed, noisy, symmetries, turn, turned
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.day_files import UnreadableDay

PLAIN = Augmentation()
EVAL_BATCH = 16  # days at once while scoring and drawing, each with all its members


@dataclass(frozen=True)
class Order:
    """Days in the order in which an epoch takes them."""

    days: tuple[int, ...]
    weights: tuple[float, ...]  # undo the oversampling: weighted frequencies are those of the data; 1 on average


@dataclass(frozen=True)
class Batch:
    """Days as they come from the loader, in the files' units."""

    x: Tensor  # (B, C, h, w) float32 raw predictors
    y: Tensor  # (B, H, W) float32 mm/day, NaN where not measured
    weight: Tensor  # (B,) float32 importance of each day, 1 without oversampling
    days: tuple[int, ...]
    flip: tuple[int, ...]  # code of `augment.turned` by which x and y were turned; land and statics must be too
    unreadable: tuple[str, ...] = ()  # why days that belong here are not, a sentence each

    def pin_memory(self) -> Batch:
        """Called by the loader where there is a GPU."""
        return replace(self, x=self.x.pin_memory(), y=self.y.pin_memory(), weight=self.weight.pin_memory())


def statics_of(batch: Batch, statics: Tensor) -> Tensor:
    """Statics ``(S, H, W)``, or the land ``(H, W)``, for each day of a batch, turned as it was: ``(B, S, H, W)``."""
    return turned(statics, batch.flip) if any(batch.flip) else statics.expand(len(batch.flip), *statics.shape)


def spaced(days: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many of the days, evenly spaced."""
    n = len(days)
    return tuple(days) if n <= most else tuple(days[i * n // most] for i in range(most))


def training_order(days: Days, *, seed: int, epoch: int, heavy_oversampling: float = 1.0) -> Order:
    """The training days of an epoch, a pure function of (seed, epoch) and the days; as many as there are.

    A heavy day is drawn ``heavy_oversampling`` times as often as another. With c = N / (n_other + times · n_heavy), a
    day is drawn c or c · times times in the mean, its own number never more than one away from that (systematic
    sampling; Cochran 1977, chapter 8), and weighs the inverse of it.
    """
    if not heavy_oversampling >= 1:
        raise UserError(f"heavy_oversampling is {heavy_oversampling}, expected 1 (as often as others) or more.")
    rng = np.random.default_rng([seed, epoch])
    train = np.array(days.split["train"])
    # A day that cannot be read is not drawn more often: it would be counted as many unreadable ones.
    heavy = np.array([days.category[day] == "heavy" and day not in days.unreadable for day in train.tolist()])
    times = np.where(heavy, float(heavy_oversampling), 1.0)
    shuffled = rng.permutation(len(train))
    shuffled = shuffled[np.argsort(heavy[shuffled], kind="stable")]  # so that the heavy ones' total is exact to one day
    expected = times * (len(train) / times.sum())
    points = rng.random() + np.arange(len(train))
    drawn = np.searchsorted(np.cumsum(expected[shuffled]), points, side="right").clip(max=len(train) - 1)
    chosen = rng.permutation(shuffled[drawn])
    return Order(tuple(train[chosen].tolist()), tuple((1 / expected[chosen]).tolist()))


@dataclass(frozen=True)
class Sample:
    """One day of a batch."""

    x: Tensor  # (C, h, w)
    y: Tensor  # (H, W)
    weight: float
    day: int
    flip: int


class DayDataset(Dataset):
    """Place in an order in; the day there out, or the reason why it cannot be read.

    Args:
        forgiving: a day that cannot be read gives the reason, and does not raise; how many of them a training may do
            without is not decided here.
    """

    def __init__(self, days: Days, order: Order, augmentation: Augmentation, *, key: tuple[int, int], forgiving: bool):
        self.days, self.order, self.augmentation, self.forgiving = days, order, augmentation, forgiving
        self.key = key  # seed, epoch
        self.codes = symmetries(days) if augmentation.flips else 1

    def __len__(self) -> int:
        return len(self.order.days)

    def __getitem__(self, place: int) -> Sample | str:
        try:
            return self._sample(place)
        except UnreadableDay as error:
            if self.forgiving:
                return str(error)
            # A loader's worker hands its error over as text, from which this class alone takes the sentence.
            raise UserError(str(error)) from error

    def _sample(self, place: int) -> Sample:
        day, weight = self.order.days[place], self.order.weights[place]
        fields, code = (self.days.x(day), self.days.y(day)), 0
        if self.augmentation != PLAIN:
            # numpy fills a short seed with zeros: without the 1, place 0 would repeat the numbers behind the order.
            rng = np.random.default_rng([*self.key, place, 1])
            if self.augmentation.mixup:
                fields, weight = self._mixed(fields, weight, rng)
            if self.augmentation.noise:
                fields = noisy(fields[0], self.days, self.augmentation.noise, rng), fields[1]
            code = int(rng.integers(self.codes))
        x, y = turn(fields, code)
        return Sample(torch.from_numpy(x), torch.from_numpy(y), weight, day, code)

    def _mixed(self, fields: Fields, weight: float, rng: np.random.Generator) -> tuple[Fields, float]:
        """A mixture with a day drawn from the same order, unless that one cannot be read."""
        other, a = int(rng.integers(len(self.order.days))), self.augmentation.mixup
        share, day = float(rng.beta(a, a)), self.order.days[other]
        if day in self.days.unreadable:
            return fields, weight
        both = mixed(fields, (self.days.x(day), self.days.y(day)), share)
        return both, share * weight + (1 - share) * self.order.weights[other]


def collate(samples: Sequence[Sample | str], *, x_shape: tuple[int, int, int], shape: tuple[int, int]) -> Batch:
    """A batch of the days that could be read; it may be empty."""
    read = [one for one in samples if isinstance(one, Sample)]
    return Batch(
        torch.stack([one.x for one in read]) if read else torch.empty(0, *x_shape),
        torch.stack([one.y for one in read]) if read else torch.empty(0, *shape),
        torch.tensor([one.weight for one in read], dtype=torch.float32),
        tuple(one.day for one in read),
        tuple(one.flip for one in read),
        tuple(one for one in samples if isinstance(one, str)),
    )


def loader(
    days: Days,
    which: Sequence[int] | Order,
    *,
    batch_size: int,
    start: int = 0,
    augmentation: Augmentation = PLAIN,
    seed: int = 0,
    epoch: int = 0,
    num_workers: int = 0,
    forgiving: bool = False,
) -> DataLoader:
    """Batches of ``which`` days in the given order, from batch number ``start`` on; the last may be smaller.

    What a batch holds is a function of (which, batch_size, its number, augmentation, seed, epoch) alone.

    Args:
        augmentation: drawn for each place in the order from (seed, epoch, place).
        forgiving: do without days that cannot be read, and say which in ``Batch.unreadable``; else they raise.
    """
    order = which if isinstance(which, Order) else Order(tuple(which), (1.0,) * len(which))
    size = len(order.days)
    groups = [list(range(first, min(first + batch_size, size))) for first in range(0, size, batch_size)]
    return DataLoader(
        DayDataset(days, order, augmentation, key=(seed, epoch), forgiving=forgiving),
        batch_sampler=groups[start:],
        collate_fn=partial(collate, x_shape=days.x_shape, shape=days.shape),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
