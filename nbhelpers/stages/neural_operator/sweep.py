"""The ablation: field error alone, a static mix, a scheduled one, a gradient share; over seeds, on validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator.balance import measure_balance
from nbhelpers.stages.neural_operator.config import Config
from nbhelpers.stages.neural_operator.data import FrameCache
from nbhelpers.stages.neural_operator.loss_params import LossParams
from nbhelpers.stages.neural_operator.sweep_figure import sweep_figures
from nbhelpers.stages.neural_operator.sweep_verdict import DECIDED_BY, judge
from nbhelpers.stages.neural_operator.task import OperatorTask
from nbhelpers.training.flexible import SchedulerParams
from nbhelpers.training.ledger import Entry
from nbhelpers.training.sweep import Plan, Setting, Swept, sweep, term_entry

TERM = "spectrum_error"
# Settings that are varied, and the flags that vary them. The scheduler of the settings is taken with other end weights.
VARIED = {"loss": "--static", "spectrum_share": "--shares", "seed": "--seeds"}


@dataclass(frozen=True)
class Grid:
    """What is tried. Field error alone is always in besides: it is what the others are compared with."""

    # End weights of spectrum_error that the scheduler hands over to.
    weights: tuple[float, ...] = (0.03, 0.05)
    # Weights of spectrum_error that stand from the first step on.
    static: tuple[float, ...] = (0.05,)
    # Shares of the gradient that spectrum_error shall have from the first step on.
    shares: tuple[float, ...] = (0.25,)
    # Seeds that every setting is trained with; with one alone, the spread between seeds stays unknown.
    seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        for name in ("weights", "static", "shares", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise UserError(f"{name} has {', '.join(map(str, values))}, where one stands twice: give each once.")
        for name in ("weights", "static", "shares"):
            if any(not 0 < value < 1 for value in getattr(self, name)):
                raise UserError(f"{name} has {getattr(self, name)}, expected numbers between 0 and 1.")
        if not [*self.weights, *self.static, *self.shares]:
            raise UserError("the ablation has no setting beside field error alone: give a weight or a share.")
        if not self.seeds:
            raise UserError("the ablation has no seed: give at least one, e.g. 0, and better two.")

    def settings(self, config: Config) -> list[Setting]:
        """The settings in the order of the table, field error alone first; everything else is as in ``config``.

        Raises:
            UserError: a weight that the settings of the stage refuse.
        """
        plain = dataclasses.replace(config, scheduler=None, spectrum_share=None, loss=LossParams())
        found = [Setting("field-only", plain)]
        for weight in self.weights:
            found.append(
                Setting(f"scheduled-{_plain(weight)}", dataclasses.replace(plain, scheduler=ending_at(config, weight)))
            )
        for weight in self.static:
            loss = LossParams(field_error=1 - weight, spectrum_error=weight)
            found.append(Setting(f"static-{_plain(weight)}", dataclasses.replace(plain, loss=loss)))
        for share in self.shares:
            found.append(Setting(f"share-{_plain(share)}", dataclasses.replace(plain, spectrum_share=share)))
        return found


def _plain(value: float) -> str:
    """Every digit, because it is the run folders' name: two settings shall not share one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def ending_at(config: Config, weight: float) -> SchedulerParams:
    """The scheduler of ``config`` (or the default one) with another end weight, reached in as many steps.

    Raises:
        UserError: a weight that its cap or its initial weights do not allow.
    """
    params = config.scheduler or SchedulerParams()
    if params.final_weights[1] == weight:
        return params
    step = params.transition_step * weight / params.final_weights[1]
    if weight > params.max_weight_target:
        raise UserError(
            f"weights has {weight:g}, above max_weight_target of the scheduler, {params.max_weight_target:g}: lower "
            "the one or raise the other."
        )
    try:
        return dataclasses.replace(
            params, final_weight_source=1 - weight, final_weight_target=weight, transition_step=step
        )
    except ValueError as error:
        raise UserError(f"weights has {weight:g}, which the scheduler refuses: {error}.") from error


def measure_grid(task: OperatorTask) -> Callable[[Grid], dict[str, Entry]]:
    """Probe one training batch; returns what any grid would give the spectral term on it, by setting, for the panel."""
    balance = measure_balance(task)
    return lambda grid: {one.name: term_entry(balance(one.config), TERM) for one in grid.settings(task.config)}


def run_sweep(
    config: Config, grid: Grid, data_dir: Path, folder: Path, *, force: bool = False, copy_dir: Path | None = None
) -> Swept:
    """Train and compare ``grid`` in ``folder``; a second call goes on where the first stopped.

    Args:
        config: the settings that all runs share; its weights and seed are replaced.
        folder: of this ablation, one run folder for each setting and seed in it.
        force: train a grid that is inert as a whole.
        copy_dir: an existing folder (Drive) that receives a copy.

    Raises:
        GuardStop: the whole grid is inert.
        UserError: data or settings that do not fit, or folders that hold something else.
    """
    frames: FrameCache | None = None

    def make_task(one: Config) -> OperatorTask:
        nonlocal frames
        task = OperatorTask(one, data_dir)
        frames = task.cache = task.cache if frames is None else frames  # read once for all runs
        return task

    plan = Plan(
        settings=grid.settings(config),
        seeds=grid.seeds,
        term=TERM,
        make_task=make_task,
        measure=measure_balance,
        cure=lambda balance: "Give larger --weights, or a gradient share (--shares 0.1).",
        judge=judge,
        decided_by=DECIDED_BY,
        figures=sweep_figures,
    )
    return sweep(plan, folder, force=force, copy_dir=copy_dir)
