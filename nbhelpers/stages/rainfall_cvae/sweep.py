"""The sweep of the composite loss: what weight on extremes buys over plain MAE, and what diluting it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.balance import measure_balance
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.sweep_figure import sweep_figures
from nbhelpers.stages.rainfall_cvae.sweep_verdict import DECIDED_BY, DILUTED, judge
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.training.history import read_rows
from nbhelpers.training.ledger import Entry
from nbhelpers.training.ledger_summary import ledger_summary
from nbhelpers.training.run import Run
from nbhelpers.training.sweep import Balance, Plan, Setting, Swept, sweep, term_entry

TERM = "mae_ext"
REFERENCE = "plain-mae"
# Settings that are varied, and the flags that vary them.
VARIED = {"tail_share": "--tail-shares", "lambda_ext": "--lambdas", "dilute_tail": "--diluted", "seed": "--seeds"}


@dataclass(frozen=True)
class Grid:
    """What is tried, all with likelihood tail_mae. Plain MAE, without weight on extremes, is always in besides."""

    # Shares of the gradient that the error on extreme pixels shall have.
    tail_shares: tuple[float, ...] = (0.3,)
    # Weights of the error on extreme pixels.
    lambdas: tuple[float, ...] = (0.05,)
    # Train each weight once more times the share of days with extremes: a known mistake, to see what it does.
    diluted: bool = True
    # Seeds that every setting is trained with; the floor asks for three.
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        for name in ("tail_shares", "lambdas", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise UserError(f"{name} has {', '.join(map(str, values))}, where one stands twice: give each once.")
        if any(not 0 < share < 1 for share in self.tail_shares):
            raise UserError(
                f"tail_shares has {', '.join(map(str, self.tail_shares))}, expected numbers between 0 and 1 "
                f"({REFERENCE}, without the term, is always in)."
            )
        if any(not 0 < weight < math.inf for weight in self.lambdas):
            raise UserError(
                f"lambdas has {', '.join(map(str, self.lambdas))}, expected weights above 0, e.g. 0.05 ({REFERENCE}, "
                "without the term, is always in)."
            )
        if not [*self.tail_shares, *self.lambdas]:
            raise UserError(f"the sweep has no setting beside {REFERENCE}: give a tail share, e.g. 0.3, or a weight.")
        if not self.seeds:
            raise UserError("the sweep has no seed: give at least one, e.g. 0, and better three.")

    def settings(self, config: Config) -> list[Setting]:
        """The settings in the order of the table, plain MAE first; everything else is as in ``config``."""

        def setting(name: str, **changes: Any) -> Setting:
            whole = {"likelihood": "tail_mae", "dilute_tail": False, **changes}
            return Setting(name, config.replace(whole, source="the grid"))

        found = [setting(REFERENCE, tail_share=0.0)]
        found += [setting(f"share-{_plain(share)}", tail_share=share) for share in self.tail_shares]
        for weight in self.lambdas:
            name = f"lambda-{_plain(weight)}"
            found.append(setting(name, lambda_ext=weight))
            if self.diluted:
                found.append(setting(name + DILUTED, lambda_ext=weight, dilute_tail=True))
        return found


def _plain(value: float) -> str:
    """Every digit, because it is the run folders' name: two settings shall not share one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def measure_grid(task: RainfallTask) -> Callable[[Grid], dict[str, Entry]]:
    """Probe one training batch; returns what any grid would give extremes on it, by setting, for the panel.

    What is returned costs no forward pass a call. A task of another likelihood is measured as one of tail_mae.
    """
    if task.config.likelihood != "tail_mae":
        task = RainfallTask(
            task.config.replace({"likelihood": "tail_mae"}, source="the grid"), task.data_dir, like=task
        )
    balance = _balance(task)
    return lambda grid: {one.name: term_entry(balance(one.config), TERM) for one in grid.settings(task.config)}


def _balance(task: RainfallTask) -> Balance:
    """What any settings would mean on a batch; a diluted weight is one that is smaller by the days without extremes."""
    balance = measure_balance(task)
    days = min(task.config.batch_size, len(task.days.split["train"]))  # in the batch

    def measured(config: Config) -> Sequence[Entry]:
        found = balance(config)
        if not config.dilute_tail:
            return found
        entry = term_entry(found, TERM)
        assert entry.events is not None
        return balance(config.replace({"lambda_ext": entry.weight * entry.events / days}, source="the grid"))

    return measured


def run_sweep(
    config: Config, grid: Grid, data_dir: Path, folder: Path, *, force: bool = False, copy_dir: Path | None = None
) -> Swept:
    """Train and compare ``grid`` in ``folder``; a second call goes on where the first stopped.

    Args:
        config: the settings that all runs share; likelihood, weight on extremes and seed are replaced.
        folder: of this sweep, one run folder for each setting and seed in it.
        force: train a grid that is inert as a whole.
        copy_dir: an existing folder (Drive) that receives a copy.

    Raises:
        GuardStop: the whole grid is inert.
        UserError: data or settings that do not fit, or folders that hold something else.
    """
    first: RainfallTask | None = None

    def make_task(one: Config) -> RainfallTask:
        nonlocal first
        task = RainfallTask(one, data_dir, like=first)  # the days are read and checked once for all runs
        first = first or task
        return task

    plan = Plan(
        settings=grid.settings(config),
        seeds=grid.seeds,
        term=TERM,
        make_task=make_task,
        measure=_balance,
        cure=lambda balance: "Give larger --lambdas, or a gradient share (--tail-shares 0.3).",
        judge=lambda report: judge(report, acting_weights(folder, report["rows"])),
        decided_by=DECIDED_BY,
        figures=sweep_figures,
    )
    return sweep(plan, folder, force=force, copy_dir=copy_dir)


def acting_weights(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The weight that the error on extremes really acted with, by setting: the ledgers' medians, their mean over seeds.

    Args:
        folder: of the sweep.
        rows: its finished runs, as in sweep.json.
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        ledger = ledger_summary(read_rows(Run(Path(folder) / row["run"]).ledger_file))
        if "effective_weight" in ledger.get(TERM, {}):
            found.setdefault(row["setting"], []).append(ledger[TERM]["effective_weight"])
    return {setting: fmean(weights) for setting, weights in found.items()}
