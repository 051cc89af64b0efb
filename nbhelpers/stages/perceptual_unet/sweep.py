"""The λ sweep: which weight of the perceptual term is worth having, and does it matter at all?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.balance import measure_balance
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.data import EventCache
from nbhelpers.stages.perceptual_unet.sweep_figure import sweep_figures
from nbhelpers.stages.perceptual_unet.sweep_verdict import DECIDED_BY, judge
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.training.ledger import Entry
from nbhelpers.training.sweep import Balance, Plan, Setting, Swept, sweep, term_entry

TERM = "perceptual"
VARIED = {"lambda_perc": "--lambdas", "perceptual_share": "--shares", "seed": "--seeds"}  # settings, and their flags
WANTED_SHARE = 0.05  # of the gradient: clearly more than inert, far from drowning


@dataclass(frozen=True)
class Grid:
    """What is tried. λ = 0, no perceptual term, is always in besides: it is what the others are compared with."""

    # Weights λ of the perceptual term.
    lambdas: tuple[float, ...] = (1e-4, 5e-4, 1e-3)
    # Shares of the gradient that the perceptual term shall have.
    shares: tuple[float, ...] = (0.1,)
    # Seeds that every setting is trained with; with one alone, the spread between seeds stays unknown.
    seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        for name in ("lambdas", "shares", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise UserError(f"{name} has {', '.join(map(str, values))}, where one stands twice: give each once.")
        if not any([*self.lambdas, *self.shares]):
            raise UserError("the sweep has no setting beside λ = 0: give at least one λ or share above 0.")
        if not self.seeds:
            raise UserError("the sweep has no seed: give at least one, e.g. 0, and better two.")

    def settings(self, config: Config) -> list[Setting]:
        """The settings in the order of the table, λ = 0 first; everything else is as in ``config``.

        Raises:
            UserError: a λ or share that the settings of the stage refuse.
        """
        return [
            _setting(config, "lambda", "lambda_perc", 0.0),
            *(_setting(config, "lambda", "lambda_perc", value) for value in self.lambdas if value != 0),
            *(_setting(config, "share", "perceptual_share", value) for value in self.shares if value != 0),
        ]


def _setting(config: Config, prefix: str, field: str, value: float) -> Setting:
    """The name keeps every digit, because it is the run folders': two settings shall not share one."""
    short = f"{value:g}"
    name = short if float(short) == value else repr(float(value))
    return Setting(f"{prefix}-{name}", config.replace({field: value}, source="the grid"))


def measure_grid(task: NowcastTask) -> Callable[[Grid], dict[str, Entry]]:
    """Probe one training batch; returns what any grid would give the perceptual term on it, by setting, for the panel.

    What is returned costs no forward pass a call.
    """
    balance = measure_balance(task)
    return lambda grid: {one.name: term_entry(balance(one.config), TERM) for one in grid.settings(task.config)}


def run_sweep(
    config: Config, grid: Grid, data_dir: Path, folder: Path, *, force: bool = False, copy_dir: Path | None = None
) -> Swept:
    """Train and compare ``grid`` in ``folder``; a second call goes on where the first stopped.

    Args:
        config: the settings that all runs share; its λ, share and seed are replaced.
        folder: of this sweep, one run folder for each setting and seed in it.
        force: train a grid that is inert as a whole.
        copy_dir: an existing folder (Drive) that receives a copy.

    Raises:
        GuardStop: the whole grid is inert.
        UserError: data, weights or settings that do not fit, or folders that hold something else.
    """
    events: EventCache | None = None

    def make_task(one: Config) -> NowcastTask:
        nonlocal events
        task = NowcastTask(one, data_dir)
        events = task.cache = task.cache if events is None else events  # decoded once for all runs
        return task

    plan = Plan(
        settings=grid.settings(config),
        seeds=grid.seeds,
        term=TERM,
        make_task=make_task,
        measure=measure_balance,
        cure=lambda balance: _cure(balance, config),
        judge=judge,
        decided_by=DECIDED_BY,
        figures=sweep_figures,
    )
    return sweep(plan, folder, force=force, copy_dir=copy_dir)


def _cure(balance: Balance, config: Config) -> str:
    """The λ that would have ``WANTED_SHARE``: a weight scales the odds of its term's share."""
    unit = config.replace({"lambda_perc": 1.0}, source="the grid")
    share = term_entry(balance(unit), TERM).grad_share
    if not 0 < share < 1:
        return "Sweep shares instead: --shares 0.1 (no λ can be named, on this batch the term has no gradient)."
    wanted = WANTED_SHARE / (1 - WANTED_SHARE) * (1 - share) / share
    return (
        f"λ = {wanted:.2g} would have {WANTED_SHARE:.0%} of the gradient on this batch: sweep around it "
        f"(--lambdas {wanted:.2g}), or set shares (--shares 0.1), or train this grid all the same (--force)."
    )
