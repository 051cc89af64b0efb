"""A few days of a split with their members: what the figures of fields and tails are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nbhelpers.stages.rainfall_cvae.baselines import oracle
from nbhelpers.stages.rainfall_cvae.batches import EVAL_BATCH, Batch, loader, spaced
from nbhelpers.training.task import Predictor

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.task import RainfallTask

MEMBERS = 8  # of the model: days, and not the members of one, are what tails are known by
COMPARED = ("oracle", "analogues", "climatology", "bilinear")  # with the model, as far as there are such


@dataclass(frozen=True, eq=False)
class Drawn:
    """Days and what was drawn for them, on the CPU."""

    split: str
    days: tuple[int, ...]
    observed: Tensor  # (N, H, W) mm/day, NaN where not measured
    members: Mapping[str, Tensor]  # (N, K, H, W) mm/day by predictor, the model first


def heaviest_days(task: RainfallTask, split: str, count: int) -> tuple[int, ...]:
    """The scored days with most rain in excess of P95 over land, heaviest first, of one block of days only one."""
    days, blocks = task.days, task.days.blocks(split)

    def excess(day: int) -> float:
        return float(np.nansum(np.clip(days.y(day)[days.land] - task.event_level, 0, None)))

    chosen: dict[str, int] = {}
    for day in sorted(set(task.scored(split)) - set(days.unreadable), key=excess, reverse=True):
        chosen.setdefault(blocks[day], day)
    return tuple(chosen.values())[:count]


def batch_of(task: RainfallTask, days: Sequence[int]) -> Batch:
    """The given days in one batch."""
    return next(iter(loader(task.days, days, batch_size=len(days))))


def fixed_sample(task: RainfallTask, *, split: str = "val") -> Batch:
    """The heaviest scored day of a split, the same in every call."""
    return batch_of(task, heaviest_days(task, split, 1))


def predictors(task: RainfallTask) -> dict[str, Predictor]:
    """The model, and what it is drawn beside."""
    k, seed = min(MEMBERS, task.config.members), task.config.seed
    found: dict[str, Predictor] = {"model": lambda batch: task.sampler.members(batch, k, seed=seed)}
    found |= {name: task.nulls[name] for name in COMPARED if name in task.nulls}
    if "oracle" in found:
        found["oracle"] = oracle(task.days, k, seed)
    return found


@torch.no_grad()
def draw_days(task: RainfallTask, *, split: str = "test", most: int = 120) -> Drawn:
    """Members of the model and of the baselines for at most so many scored days of a split, evenly spaced."""
    days = spaced(task.scored(split), most)
    who = predictors(task)
    found: dict[str, list[Tensor]] = {name: [] for name in who}
    observed = []
    for batch in loader(task.days, days, batch_size=EVAL_BATCH):
        observed.append(batch.y)
        for name, predictor in who.items():
            found[name].append(predictor(batch).cpu())
    return Drawn(split, days, torch.cat(observed), {name: torch.cat(each) for name, each in found.items()})
