"""The solver as a forecaster: coarse grids and large steps, from frames in model units to frames in model units.

The spectrum of the last given vorticity is cut down to the coarse grid, the flow marched to the time of every frame,
and each spectrum padded back to the stored grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import solver
from nbhelpers.stages.neural_operator.resample import resample
from nbhelpers.stages.neural_operator.simulate import VERSION, Kind, Settings

if TYPE_CHECKING:
    from nbhelpers.stages.neural_operator.task import OperatorTask

Size = tuple[int, int]  # (H, W)
SETTINGS = {one.name for one in fields(Settings)} - {"kind"}  # as dataset.json of a simulated set has them; kind: set
COARSER = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # of the points along a side: 16, 24, 32, 48 and 64 of 64
SMALLEST = 4  # points along a side
COURANT = 1.0  # of the fastest point in the scored frames; 1.35 is unstable, and coarse flows may be a little faster


def can_compare(task: OperatorTask) -> str | None:
    """None if the solver can forecast what the task's model does, else a sentence that says why not."""
    facts, root = task.collection.facts, task.collection.root
    record: Mapping[str, Any] = facts.simulated or {}
    ours = record.get("version") == VERSION and record.get("set") in get_args(Kind)
    if not ours or SETTINGS - record.keys():
        return (
            f"The data in {root} were not simulated by this solver, whose version {VERSION} notes how in dataset.json: "
            "there is no solver to compare with at equal error, use flows made by `data simulate`."
        )
    if not facts.periodic:
        return f"The flows in {root} are not periodic, which the solver needs: measure its cost on others."
    other = [name for name in task.collection.channels if name not in ("velocity_x", "velocity_y", "vorticity")]
    if other:
        return (
            f"The model forecasts {', '.join(other)}, which the solver does not: measure its cost with the fields "
            "velocity and vorticity alone."
        )
    return None


def simulated_settings(task: OperatorTask) -> Settings:
    """With what our solver made the task's data.

    Raises:
        UserError: it did not make them, or it cannot continue them.
    """
    if reason := can_compare(task):
        raise UserError(reason)
    record: Mapping[str, Any] = task.collection.facts.simulated or {}
    values: dict[str, Any] = {name: record[name] for name in SETTINGS}
    values |= {name: tuple(values[name]) for name in ("size", "solve_size")}
    return Settings(kind=record["set"], **values)


def vorticity_of(task: OperatorTask, frames: Tensor) -> Tensor:
    """``(..., C, H, W)`` in model units to ``(..., H, W)`` in those of the files."""
    channels, values = task.collection.channels, task.to_units(frames)
    if "vorticity" in channels:
        return values[..., channels.index("vorticity"), :, :]
    velocity = [channels.index(name) for name in ("velocity_x", "velocity_y")]
    return solver.vorticity_of(values[..., velocity, :, :], task.domain.lengths)


def _frames_of(task: OperatorTask, vorticity: Tensor) -> Tensor:
    """``(..., H, W)`` back to ``(..., C, H, W)`` in model units."""
    u, v = solver.velocity(vorticity, task.domain.lengths).unbind(-3)
    parts = {"vorticity": vorticity, "velocity_x": u, "velocity_y": v}
    return task.to_model(torch.stack([parts[name] for name in task.collection.channels], -3))


def solve(
    task: OperatorTask,
    settings: Settings,
    given: Tensor,
    conditions: Tensor | None,
    *,
    size: Size,
    gap: float,
    count: int,
    horizon: int,
) -> Tensor:
    """``(B, horizon, C, H, W)`` after ``(B, n_in, C, H, W)``, on ``size`` with ``count`` steps a frame."""
    del conditions  # one viscosity for the whole set
    start = resample(vorticity_of(task, given[:, -1]), size)
    frames = solver.trajectory(start, settings.flow, dt=gap / count, steps_per_frame=count, n_frames=horizon)
    return _frames_of(task, resample(frames, task.collection.shape))


def solver_grids(task: OperatorTask, grids: Sequence[int] | None) -> list[Size]:
    shape = task.collection.shape
    short = min(shape)
    if grids is None:
        grids = [max(SMALLEST, round(part * short)) for part in COARSER]
    if not grids or not all(SMALLEST <= points <= short for points in grids):
        raise UserError(
            f"grids is {list(grids)}, expected points along the shorter side between {SMALLEST} and the {short} of the "
            "stored frames: choose other grids."
        )
    return [(round(shape[0] * n / short), round(shape[1] * n / short)) for n in sorted(set(grids))]


def stable_steps(task: OperatorTask, settings: Settings, sizes: Sequence[Size], split: str) -> dict[Size, float]:
    """The largest step for each grid, by the fastest point in all frames of the split: what experience would tell."""
    largest = dict.fromkeys(sizes, math.inf)
    for batch in task.batches(split, 0):
        vorticity = vorticity_of(task, task.to_model(batch.frames)).flatten(0, 1)
        for size in sizes:
            step = solver.stable_dt(resample(vorticity, size), settings.flow, cfl=COURANT)
            largest[size] = min(largest[size], step)
    return largest
