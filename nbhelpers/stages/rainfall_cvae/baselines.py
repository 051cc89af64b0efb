"""Predictors that need no training: what a model's members must beat, and on simulated days what they cannot.

Each is made once for a data folder and then maps a batch to members ``(B, K, H, W)`` in mm/day, 0 over sea, on the
batch's device. No day is predicted from itself or from days within NEAR of it, so that training days can be scored too.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.batches import Batch
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.layout import PR
from nbhelpers.stages.rainfall_cvae.oracle import Oracle

Baseline = Callable[[Batch], Tensor]

NEAR = 10  # days on either side of a day that say nothing new of it: the weather of next week still remembers
SEASON = 45  # days on either side of a calendar day that analogues are sought in, any year
YEAR = 365.25


def climatology(days: Days, k: int, seed: int = 0) -> Baseline:
    """K training days of the same season, drawn with replacement; by the day's own number, whatever its batch.

    Drawn so, the fair CRPS of the members is on average that of the season's whole distribution.
    """
    pool = _Pool.of(days)

    def members(batch: Batch) -> Tensor:
        drawn = []
        for day in batch.days:
            allowed = pool.days[(pool.season == days.season(day)) & pool.far(days.dates[day])]
            if not len(allowed):
                raise _too_few(days, day, f"of {days.season(day)}", 0, 1)
            drawn.append(np.random.default_rng([seed, day]).choice(allowed, size=k))
        return _fields(days, drawn, batch.x)

    return members


def analogues(days: Days, k: int) -> Baseline:
    """The rain of the K training days with the most similar predictors, within SEASON days of the calendar day.

    Similar is a small Euclidean distance over coarse pixels and channels, standardised as the model gets them (rain as
    its logarithm), with the rain weighing as much as all other channels together: of six channels alike, three are
    temperatures, and the CRPS was 1.43 instead of 1.36 mm/day (simulated). After Lorenz (1969), J. Atmos. Sci. 26.
    """
    pool = _Pool.of(days)
    weight = torch.ones(len(days.channels), 1, 1)
    weight[days.channels.index(PR)] = max(len(days.channels) - 1, 1) ** 0.5

    def position(x: Tensor) -> Tensor:
        return (days.standardise_x(x).cpu() * weight).flatten(1)

    library = position(torch.from_numpy(np.stack([days.x(int(day)) for day in pool.days])))

    def members(batch: Batch) -> Tensor:
        distance = torch.cdist(position(batch.x), library).numpy()
        nearest = []
        for row, day in zip(distance, batch.days, strict=True):
            allowed = pool.around(days.dates[day]) & pool.far(days.dates[day])
            if allowed.sum() < k:
                raise _too_few(days, day, f"within {SEASON} days of its calendar day", int(allowed.sum()), k)
            nearest.append(pool.days[np.argsort(np.where(allowed, row, np.inf), kind="stable")[:k]])
        return _fields(days, nearest, batch.x)

    return members


def bilinear(days: Days) -> Baseline:
    """The coarse rain, interpolated between the centres of its pixels: one member."""

    def members(batch: Batch) -> Tensor:
        return F.interpolate(days.pr(batch.x)[:, None], size=days.shape, mode="bilinear", align_corners=False)

    return members


def oracle(days: Days, k: int, seed: int = 0) -> Baseline:
    """K redraws of the simulated rain given the true state of the weather: no model can be better on average.

    Raises:
        UserError: the days were not simulated.
    """
    truth = Oracle(days)

    def members(batch: Batch) -> Tensor:
        drawn = np.stack([truth.members(day, k, seed=seed) for day in batch.days])
        return torch.from_numpy(np.nan_to_num(drawn)).to(batch.x.device)

    return members


@dataclass(frozen=True)
class _Pool:
    """Training days whose rain was measured everywhere on land."""

    days: NDArray[np.int64]  # (N,)
    ordinal: NDArray[np.int64]  # (N,) days since the year 1
    calendar: NDArray[np.int64]  # (N,) day of the year
    season: NDArray[np.str_]  # (N,)

    @classmethod
    def of(cls, days: Days) -> _Pool:
        readable = [day for day in days.split["train"] if day not in days.unreadable]
        whole = [day for day in readable if np.isfinite(days.y(day)[days.land]).all()]
        if not whole:
            raise UserError(
                f"no training day in {days.folder} has rain on all land pixels, expected some to draw baselines from: "
                "set the land mask to 0 where rain is often missing."
            )
        dates = [days.dates[day] for day in whole]
        return cls(
            np.array(whole),
            np.array([date.toordinal() for date in dates]),
            np.array([date.timetuple().tm_yday for date in dates]),
            np.array([days.season(day) for day in whole]),
        )

    def far(self, date: datetime.date) -> NDArray[np.bool_]:
        """``(N,)``: more than NEAR days away."""
        return np.abs(self.ordinal - date.toordinal()) > NEAR

    def around(self, date: datetime.date) -> NDArray[np.bool_]:
        """``(N,)``: within SEASON days of the calendar day."""
        apart = np.abs(self.calendar - date.timetuple().tm_yday)
        return np.minimum(apart, YEAR - apart) <= SEASON


def _too_few(days: Days, day: int, where: str, found: int, wanted: int) -> UserError:
    return UserError(
        f"day {day} ({days.dates[day]}) has {found} training days {where} in {days.folder}, expected {wanted} or more "
        "to draw members from: train on more years, or set `members` lower."
    )


def _fields(days: Days, chosen: list[NDArray[np.int64]], like: Tensor) -> Tensor:
    """``(B, K, H, W)`` rain of K days for each of B."""
    rain = np.stack([[days.y(int(day)) for day in row] for row in chosen])
    return torch.from_numpy(np.nan_to_num(rain)).to(like.device)
