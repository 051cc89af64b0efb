"""What is found out about a data folder in one reading of all its days: statistics, gaps and measures of its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
from numpy.typing import NDArray

from nbhelpers.stages.rainfall_cvae.layout import WET

SAMPLED = 400  # training days, evenly spaced, behind P99.9


@dataclass
class Survey:
    """Sums over days as they are read; of the training days alone unless said otherwise."""

    land: NDArray[np.bool_]  # (H, W)
    pr: int  # number of the channel that is rain
    pr_scale: float  # its factor to mm/day
    p95: float  # mm/day
    n_train: int  # days in the training split
    every: int = field(init=False)  # training days from one sampled day to the next
    days: int = 0
    x_sum: NDArray | float = 0.0  # (2, C): channels as the files have them, and `pr` as log1p(mm/day)
    x_squares: NDArray | float = 0.0  # (C,), `pr` as log1p(mm/day)
    rain_sum: NDArray | float = 0.0  # (H, W)
    rain_squares: NDArray | float = 0.0
    measured: NDArray | int = 0  # (H, W) days with a value
    pr_sum: float = 0.0  # mean of `pr` over the coarse cells that are land, mm/day
    wet: int = 0  # land pixels of at least 1 mm/day
    extreme: int = 0  # and of at least `p95`
    sample: list[NDArray] = field(default_factory=list)  # measured land pixels of some days
    missing: dict[int, float] = field(default_factory=dict)  # of all splits: share of the land, by day, where not 0
    never: NDArray | None = None  # (H, W) of all splits: land that no day has measured
    all_days: int = 0  # of all splits

    def __post_init__(self) -> None:
        self.every = -(-self.n_train // SAMPLED)

    def add(self, day: int, x: NDArray[np.float32], y: NDArray[np.float32], *, train: bool) -> None:
        """One day as it was read."""
        gaps = np.isnan(y) & self.land
        self.all_days += 1
        self.never = gaps if self.never is None else self.never & gaps
        if gaps.any():
            self.missing[day] = float(gaps[self.land].mean())
        if not train:
            return
        modelled = x.astype(np.float64)
        raw_means = modelled.mean((1, 2))
        modelled[self.pr] = log_rain(modelled[self.pr] * self.pr_scale)
        self.x_sum = self.x_sum + np.stack([raw_means, modelled.mean((1, 2))])
        self.x_squares = self.x_squares + (modelled**2).mean((1, 2))
        known = np.isfinite(y)
        rain = np.where(known, y, 0.0).astype(np.float64)
        self.rain_sum, self.rain_squares = self.rain_sum + rain, self.rain_squares + rain**2
        self.measured = self.measured + known
        self.pr_sum += float((x[self.pr] * land_share(self.land, x.shape[1:])).sum() * self.pr_scale)
        self.wet += int((rain >= WET).sum())
        self.extreme += int((rain >= self.p95).sum())
        if self.days % self.every == 0:
            self.sample.append(y[known])
        self.days += 1

    @property
    def x_statistics(self) -> tuple[NDArray, NDArray, NDArray]:
        """``(C,)`` mean and standard deviation, ``pr`` as log1p(mm/day), and the mean of the channels as they are."""
        raw, mean = np.asarray(self.x_sum) / self.days
        return mean, _deviation(np.asarray(self.x_squares) / self.days, mean), raw

    @property
    def rain_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``(H, W)`` mean and standard deviation of each pixel in mm/day, NaN where nothing was measured."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.asarray(self.rain_sum) / self.measured
            deviation = _deviation(np.asarray(self.rain_squares) / self.measured, mean)
        return mean.astype(np.float32), deviation.astype(np.float32)

    @property
    def rain_mean(self) -> float:
        """Mean over the measured land pixels of all training days, mm/day."""
        return float(np.sum(self.rain_sum) / max(1, np.sum(self.measured)))

    def percentile(self, share: float) -> float:
        """Of the measured land pixels of the sampled days, mm/day."""
        return float(np.quantile(np.concatenate(self.sample), share))

    def worst(self, dates: dict[int, date], n: int = 3) -> str:
        """The days with most of the land missing, in words."""
        days = sorted(self.missing, key=lambda day: -self.missing[day])[:n]
        return ", ".join(f"day {day} ({dates[day]}) {self.missing[day]:.1%}" for day in days)


def log_rain(rain: NDArray) -> NDArray:
    """log(1 + mm/day); packing noise below 0 counts as 0."""
    return np.log1p(np.maximum(rain, 0.0))


def land_share(land: NDArray[np.bool_], coarse: Sequence[int]) -> NDArray[np.float64]:
    """``(h, w)`` weights of the coarse cells by the land in them; they sum to 1."""
    (height, width), (rows, columns) = land.shape, coarse
    share = land.reshape(rows, height // rows, columns, width // columns).mean((1, 3))
    return share / share.sum()


def _deviation(squares: NDArray, mean: NDArray) -> NDArray:
    return np.sqrt(np.maximum(squares - mean**2, 0.0))
