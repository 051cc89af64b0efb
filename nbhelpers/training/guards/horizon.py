"""Where a learning-rate schedule ends, found by running a copy of it ahead."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

LOOK_AHEAD = 4  # times the run's steps; a schedule made for a longer run looks like a constant one
END = 0.1  # of its peak: a rate that never falls below it has no end
ROUNDING = 1e-6  # of the whole fall, within which the lowest rate counts as reached
JUMP = 0.6  # of the whole range in one step: up, a warm restart; down, a staircase
BEND = 0.75  # time from 1/4 to 1/8 of the fall over that from 1/2 to 1/4: cosine 0.62, line 0.5, exponential 1


def horizon(scheduler: LRScheduler, steps: int) -> int | None:
    """Step at which the learning rate comes to its end, looking ahead over ``LOOK_AHEAD`` times ``steps``.

    A schedule has an end when it falls gradually to its lowest rate and ever faster in relation to what is left: cosine
    and linear decays do, whatever comes after; asymptotes (exponential, 1/t), staircases, warm restarts and cycles
    do not, and have no length that a run could miss.

    Returns:
        The step counted from the schedule's own beginning; None when it has no end.
    """
    if isinstance(scheduler, ReduceLROnPlateau):  # falls when a metric says so
        return None
    curve = run_ahead(scheduler, LOOK_AHEAD * steps)
    end = end_of(curve, start=scheduler.last_epoch)
    return None if end is None else scheduler.last_epoch + end


def run_ahead(scheduler: LRScheduler, until: int) -> NDArray[np.float64]:
    """(n,) learning rates, summed over parameter groups, from now to the schedule's step ``until``.

    The scheduler and its optimizer stay as they are: a copy drives an optimizer that has the same settings and no
    parameters worth the name.
    """
    real = scheduler.optimizer
    settings = [{key: copy.deepcopy(group[key]) for key in group if key != "params"} for group in real.param_groups]
    stand_in = torch.optim.SGD([{**group, "params": [torch.zeros(1)]} for group in settings], lr=0.0)
    twin = copy.deepcopy(scheduler, {id(real): stand_in})
    rates = [_rate(stand_in)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "scheduler.step() before optimizer.step()": so it is
        for _ in range(scheduler.last_epoch, until):
            try:
                twin.step()
            except ValueError:  # OneCycleLR: past its last step
                break
            rates.append(_rate(stand_in))
    return np.array(rates)


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return sum(float(group["lr"]) for group in optimizer.param_groups)


def end_of(curve: NDArray[np.float64], *, start: int = 0) -> int | None:
    """Index at which ``curve`` first reaches its lowest value in the manner of a schedule that ends; else None.

    Args:
        start: the schedule's step at which the curve begins, above 0 in a run that is taken up again.
    """
    curve = curve.clip(min=0)  # some go on below it, and some come down to it but for rounding
    floor, peak = curve.min(), curve.max()
    if peak == 0 or floor > END * peak:
        return None
    left = (curve - floor) / (peak - floor)  # 1 at the peak, 0 at the end
    arrivals = 1 + np.flatnonzero((left[1:] <= ROUNDING) & (left[:-1] > ROUNDING))
    if len(arrivals) == 0 or _is_cycle(start + arrivals):
        return None
    end = int(arrivals[0])
    top = int(left[:end].argmax())
    if np.diff(left[top:]).max() > JUMP:
        return None
    fall = left[top : end + 1] / left[top]
    half, quarter, eighth = (_crossing(fall, level) for level in (1 / 2, 1 / 4, 1 / 8))
    gradual = np.diff(fall[int(half) : int(np.ceil(eighth)) + 1])
    if np.diff(fall).min() < -JUMP or np.mean(gradual < 0) < 0.5:
        return None
    return end if eighth - quarter < BEND * (quarter - half) else None


def _is_cycle(arrivals: NDArray[np.int64]) -> bool:
    """Whether steps at which the lowest rate is reached are multiples of their distance: then it began there too.

    Those of a cosine that was overshot and comes up again are half a period off, because it began at its peak.
    """
    if len(arrivals) < 2:
        return False
    period = arrivals[1] - arrivals[0]
    rest = arrivals[0] % period
    return bool(min(rest, period - rest) <= 1)  # floating point may miss a step


def _crossing(fall: Sequence[float] | NDArray[np.float64], level: float) -> float:
    """Where the falling curve first goes below ``level``, between two steps in proportion."""
    after = next(i for i, (a, b) in enumerate(itertools.pairwise(fall), 1) if b <= level < a)
    before, now = fall[after - 1], fall[after]
    return after - 1 + float((before - level) / (before - now))
