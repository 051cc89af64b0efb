"""What the first batches of a split hold, measured once before training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nbhelpers.core.fields import Field
from nbhelpers.training.task import Task

BATCHES = 16  # a single dry or flat one is legal; all of them are not
IMAGES = 48  # of a batch and field, evenly spaced over samples, times and channels: more would say the same
FLAT = 1e-12  # variance over mean square below which a sample has none: resampling a constant leaves rounding errors


@dataclass(frozen=True)
class FieldSurvey:
    """One field over the surveyed batches, raw values, missing ones left out."""

    mean: float
    std: float
    low: float
    high: float
    autocorrelation: float  # of neighbouring pixels, as deviations from their image's mean; NaN where no image varies
    missing: float  # share of values that are the declared missing value, or NaN
    absolute_mean: float  # mean |x| in model units


@dataclass(frozen=True)
class Survey:
    """A split's first batches."""

    batches: int
    samples: int
    fields: Mapping[str, FieldSurvey]
    likeness: float | None  # mean correlation of each target with its own input; None where a stage has no pair
    chance: float | None  # the same with the input of the sample before it
    pairs: int  # samples behind these two: neither flat nor without measured pixels
    unreadable: tuple[str, ...]  # what was left out of these batches because it could not be read


def measured(field: Field, raw: Tensor) -> Tensor:
    """Bool, of ``raw``'s shape: where there is a value, neither the field's missing one nor NaN."""
    if raw.is_floating_point():
        return field.to_model(raw)[1] & ~torch.isnan(raw)
    return field.to_model(raw)[1]


def survey(task: Task, split: str) -> Survey:
    """Measure the first ``BATCHES`` batches of epoch 0 of ``split``."""
    sums = {name: _Sums() for name in task.fields}
    batches = samples = 0
    unreadable: list[str] = []
    own, other = [], []
    last: Tensor | None = None  # the last input of the batch before, so that batches of one sample have a chance too
    for batch in itertools.islice(task.batches(split, 0), BATCHES):
        sample = task.look(batch)
        batches += 1
        unreadable += task.unreadable(batch)
        samples += max((len(raw) for raw in sample.raw.values()), default=0)
        for name, raw in sample.raw.items():
            images = raw.flatten(0, -3)
            sums[name].add(task.fields[name], images[:: math.ceil(len(images) / IMAGES) or 1].cpu())
        if sample.pair is not None:
            target, input_ = (x.cpu().double().flatten(1) for x in sample.pair)
            shifted = input_[:-1] if last is None else torch.cat([last, input_[:-1]])
            own.append(_correlations(target, input_))
            other.append(_correlations(target[len(target) - len(shifted) :], shifted))
            last = input_[-1:]
    fields = {name: sums[name].result(field) for name, field in task.fields.items()}
    if not own:
        return Survey(batches, samples, fields, None, None, 0, tuple(unreadable))
    likeness, chance = _defined(own), _defined(other)
    pairs = min(len(likeness), len(chance))
    return Survey(batches, samples, fields, _mean(likeness), _mean(chance), pairs, tuple(unreadable))


@dataclass
class _Sums:
    """Running sums over batches, of differences from the declared mean: large offsets then cancel exactly enough."""

    values: int = 0
    measured: int = 0
    total: float = 0.0
    squares: float = 0.0
    absolute: float = 0.0  # of |x| in model units
    low: float = math.inf
    high: float = -math.inf
    # Over pairs of neighbours that are both measured, of deviations from their own image's mean: levels that differ
    # between images (bands, days) would make noise look smooth.
    products: float = 0.0
    mean_squares: float = 0.0

    def add(self, field: Field, raw: Tensor) -> None:
        known = measured(field, raw)
        complete = bool(known.all())
        values = raw if complete else raw[known]
        self.values += raw.numel()
        self.measured += values.numel()
        if values.numel() == 0:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        # Differences from the declared mean; what grows with their number is summed in float64.
        x = raw.double() - field.mean
        x = x if complete else x.where(known, 0.0)
        self.total += float(x.sum())
        self.squares += float(x.square().sum())
        self.absolute += float(field.transform.forward(values.double()).abs().sum())
        deviations = _deviations(x, known)
        for axis in (-1, -2):
            n = x.shape[axis] - 1
            a, b = (deviations.narrow(axis, i, n) for i in (0, 1))
            a_known, b_known = (known.narrow(axis, i, n) for i in (0, 1))
            self.products += _sum(a * b)
            self.mean_squares += (_sum(a.square() * b_known) + _sum(b.square() * a_known)) / 2

    def result(self, field: Field) -> FieldSurvey:
        n, nan = self.measured, math.nan
        missing = 1 - n / self.values if self.values else nan
        if n == 0:
            return FieldSurvey(nan, nan, nan, nan, nan, missing, nan)
        mean = self.total / n
        # What is left of a constant's squares after the subtraction is rounding, not variance.
        variance = max(0.0, self.squares / n - mean**2) if self.low < self.high else 0.0
        autocorrelation = self.products / self.mean_squares if self.mean_squares > 0 else nan
        std, low, high, absolute = math.sqrt(variance), self.low, self.high, self.absolute / n
        return FieldSurvey(mean + field.mean, std, low, high, autocorrelation, missing, absolute)


def _deviations(x: Tensor, known: Tensor) -> Tensor:
    """``(N, H, W)`` float32 differences from each image's own mean; 0 where nothing is known and in flat images."""
    n = known.sum((-2, -1), keepdim=True).clamp(min=1)
    deviations = (x - x.sum((-2, -1), keepdim=True) / n).where(known, 0.0)
    squares, all_squares = (values.square().sum((-2, -1), keepdim=True) for values in (deviations, x))
    return deviations.where(squares > FLAT * all_squares, 0.0).float()


def _sum(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def _correlations(a: Tensor, b: Tensor) -> Tensor:
    """(B,) correlations of the rows of ``(B, pixels)`` over pixels that both have; NaN where one of them is flat."""
    known = ~(torch.isnan(a) | torch.isnan(b))
    n = known.sum(1, keepdim=True).double()
    a, b = (torch.where(known, x, 0.0) for x in (a, b))
    square_a, square_b = (x.square().sum(1) for x in (a, b))
    a, b = (torch.where(known, x - x.sum(1, keepdim=True) / n, 0.0) for x in (a, b))
    left_a, left_b = (x.square().sum(1) for x in (a, b))
    varies = (left_a > FLAT * square_a) & (left_b > FLAT * square_b)
    return torch.where(varies, (a * b).sum(1) / (left_a * left_b).sqrt(), math.nan)


def _defined(parts: list[Tensor]) -> Tensor:
    values = torch.cat(parts)
    return values[~torch.isnan(values)]


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
