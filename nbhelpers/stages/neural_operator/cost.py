"""What a trained model saves beside our own solver at equal error, and after how many runs its training is paid for.

Model and solver answer the same question: given the same frames on the stored grid, in model units, give the next
frames there. The solver cuts the spectrum of the last given vorticity down to a coarse grid, marches to the time of
every frame with the largest step that is stable, and pads each spectrum back; these conversions are timed with it.
Which solver is the rival is decided by error: the cheapest one that is at least as accurate as the model.

How to read it:

* The truth was made by this very solver. On the grid and at the step it was made with, the solver's error is rounding,
  at the larger step used here still next to nothing, *by construction*: that row shows that the comparison is right,
  and not that the solver is perfect. So there is always a rival, except perhaps where the data were computed on a
  finer grid than they are stored on (kind fno): what was cut off there is unknown to the solver too.
* The solver knows the equation, the viscosity and the force, which a model learns from frames; where they are not
  known there is no such rival.
* A surrogate is often compared with a solver that is far more accurate than itself; at equal error, advantages of
  orders of magnitude tend to vanish (McGreivy, Hakim 2024, Nature Machine Intelligence 6).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nbhelpers.stages.neural_operator import coarse, solver
from nbhelpers.stages.neural_operator.coarse import Size
from nbhelpers.stages.neural_operator.simulate import Settings
from nbhelpers.stages.neural_operator.task import EVAL_BATCH, rollout
from nbhelpers.stages.neural_operator.verification import HELD

if TYPE_CHECKING:
    from nbhelpers.stages.neural_operator.task import OperatorTask

DATA_BATCH, DATA_STEPS = 16, 4  # flows and steps from which the time of simulating the training data is told


@dataclass(frozen=True)
class Row:
    """One way of forecasting: the model, or the solver with one grid and step."""

    size: Size | None  # of the solver's grid; None: the model
    dt: float | None  # the solver's step
    error: tuple[float, ...]  # relative L2 at every step of the rollout, the mean over rollouts
    seconds: float  # wall clock of one run of all these steps, computed in a batch

    @property
    def mean_error(self) -> float:
        return statistics.fmean(self.error)

    @property
    def name(self) -> str:
        return "model" if self.size is None else f"solver on {self.size[0]} x {self.size[1]} points"


@dataclass(frozen=True)
class Cost:
    """The model beside solvers of rising cost."""

    model: Row
    solvers: tuple[Row, ...]  # coarsest first
    train_seconds: float  # of training the model
    data_seconds: float  # of simulating the flows it was trained on
    batch_size: int  # runs computed at once, by model and solver
    device: str

    @property
    def rival(self) -> Row | None:
        """The cheapest solver whose mean error is at most the model's."""
        good = [row for row in self.solvers if row.mean_error <= self.model.mean_error]
        return min(good, key=lambda row: row.seconds, default=None)

    @property
    def speed_up(self) -> float | None:
        """Seconds of the rival over seconds of the model; below 1 the model is the slower one."""
        return None if self.rival is None else self.rival.seconds / self.model.seconds

    @property
    def break_even(self) -> int | None:
        """Runs after which training and its data have paid for themselves; None: never, or no rival."""
        if self.rival is None:
            return None
        return break_even(self.train_seconds + self.data_seconds, self.rival.seconds, self.model.seconds)

    @property
    def conclusion(self) -> str:
        """What this amounts to, in two sentences."""
        mine, rival, ratio = self.model, self.rival, self.speed_up
        if rival is None or ratio is None:
            best = min(row.mean_error for row in self.solvers)
            return (
                f"No solver setting is as accurate as the model: mean error {best:.3g} at best, the model's is "
                f"{mine.mean_error:.3g}. There is no cost at equal error, and no break-even."
            )
        how = f"is {ratio:.3g} times as fast as" if ratio >= 1 else f"takes {1 / ratio:.3g} times as long as"
        compared = (
            f"At equal error (mean relative L2: model {mine.mean_error:.3g}, solver {rival.mean_error:.3g}) the model "
            f"{how} the {rival.name}: {1e3 * mine.seconds:.3g} ms a run beside {1e3 * rival.seconds:.3g} ms."
        )
        spent = f"training ({self.train_seconds:.3g} s) and simulating its data ({self.data_seconds:.3g} s)"
        if self.break_even is None:
            return f"{compared} It never pays back {spent}: the solver is as fast or faster."
        return f"{compared} It pays back {spent} after {self.break_even} runs."


def break_even(invested: float, solver_seconds: float, model_seconds: float) -> int | None:
    """Runs after which ``invested`` seconds are saved; None when no run saves any."""
    saved = solver_seconds - model_seconds
    return math.ceil(invested / saved) if saved > 0 else None


def measure_cost(
    task: OperatorTask,
    *,
    train_seconds: float,
    data_seconds: float | None = None,
    split: str = "test",
    grids: Sequence[int] | None = None,
    batch_size: int = EVAL_BATCH,
    rounds: int = 5,
) -> Cost:
    """Rollouts of the task's model and of coarse solvers: their errors over a split, and their time.

    Args:
        train_seconds: what training took; ``train_seconds`` of a run's report.
        data_seconds: what simulating the training flows took; None: measured on this device by a few of its steps.
        grids: points along the shorter side; None: a quarter to all of the stored ones.
        batch_size: runs that are computed at once while the clock runs.
        rounds: repeats, taken in turns; the median counts.

    Raises:
        UserError: data that our solver did not simulate, boxes that are not periodic, other channels than velocity and
            vorticity, or a grid finer than the stored one.
    """
    settings = coarse.simulated_settings(task)
    sizes = coarse.solver_grids(task, grids)
    gap, horizon = task.collection.facts.frame_gap * task.config.sequence_length[1], task.config.rollout_steps
    largest = coarse.stable_steps(task, settings, sizes, split)
    steps = {size: solver.steps_for(gap, dt) for size, dt in largest.items()}
    stepper = task.modules["stepper"].eval()

    @torch.no_grad()
    def model(given: Tensor, conditions: Tensor | None) -> Tensor:
        return rollout(stepper, given, conditions, steps=horizon, held=HELD)

    ways: dict[Size | None, Callable[[Tensor, Tensor | None], Tensor]] = {None: model}
    for size, count in steps.items():
        ways[size] = partial(coarse.solve, task, settings, size=size, gap=gap, count=count, horizon=horizon)
    errors: dict[Size | None, list[Tensor]] = {name: [] for name in ways}
    first: tuple[Tensor, Tensor | None] | None = None
    for batch in task.batches(split, 0):
        frames, conditions = task.to_model(batch.frames), task.conditions(batch)
        given, target = frames[:, : task.config.n_in], frames[:, task.config.n_in :]
        for name, way in ways.items():
            errors[name].append(relative_l2(way(given, conditions), target).cpu())
        if first is None:
            again = torch.arange(batch_size) % len(given)
            first = given[again], None if conditions is None else conditions[again]
    assert first is not None
    seconds = _seconds({name: partial(way, *first) for name, way in ways.items()}, rounds, task.device)
    if data_seconds is None:
        data_seconds = _data_seconds(task, settings, coarse.vorticity_of(task, first[0])[:, -1])
    rows = [
        Row(
            name,
            None if name is None else gap / steps[name],
            tuple(torch.cat(errors[name]).mean(0).tolist()),
            seconds[name] / batch_size,
        )
        for name in ways
    ]
    return Cost(rows[0], tuple(rows[1:]), train_seconds, data_seconds, batch_size, str(task.device))


def relative_l2(forecast: Tensor, target: Tensor) -> Tensor:
    """``(B, T, C, H, W)`` twice to ``(B, T)``: |forecast − target| / |target| over channels and points."""
    return (forecast - target).flatten(2).norm(dim=-1) / target.flatten(2).norm(dim=-1)


def _seconds(ways: Mapping[Any, Callable[[], Any]], rounds: int, device: torch.device) -> dict[Any, float]:
    """Median seconds of each way; they take turns, so that a busy machine slows all of them alike."""

    def timed(way: Callable[[], Any]) -> float:
        began = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    turns = [[timed(way) for way in ways.values()] for _ in range(rounds + 1)][1:]  # the first one warms up
    return {name: statistics.median(times) for name, times in zip(ways, zip(*turns, strict=True), strict=True)}


def _data_seconds(task: OperatorTask, settings: Settings, vorticity: Tensor) -> float:
    """Seconds to simulate the flows of the training split as they were, told from a few steps."""
    flows = len({segment.simulation.name for segment in task.split.segments["train"]})
    steps = solver.steps_for(settings.burn_in, settings.largest_step)
    steps += (settings.n_frames - 1) * solver.steps_for(settings.frame_gap, settings.largest_step)
    start = coarse.resample(vorticity[torch.arange(DATA_BATCH) % len(vorticity)], settings.solve_size)
    run = partial(solver.advance, start, settings.flow, dt=settings.largest_step, steps=DATA_STEPS)
    return _seconds({"data": run}, 3, task.device)["data"] / (DATA_BATCH * DATA_STEPS) * steps * flows
