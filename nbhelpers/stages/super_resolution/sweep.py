"""The sweep: what the perceptual and the adversarial term buy over the first stage alone, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.balance import measure_balance
from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.stages.super_resolution.sweep_figure import sweep_figures
from nbhelpers.stages.super_resolution.sweep_verdict import DECIDED_BY, judge
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training.ledger import Entry
from nbhelpers.training.sweep import Plan, Setting, Swept, sweep, term_entry

TERM = "perceptual"
REFERENCE = "pixel-only"
# Settings that are varied, and the flags that vary them.
VARIED = {
    "perceptual_share": "--perceptual-shares",
    "lambda_perc": "--perceptual-shares",
    "adversarial_share": "--adversarial-shares",
    "lambda_adv": "--adversarial-shares",
    "seed": "--seeds",
}


@dataclass(frozen=True)
class Grid:
    """What is tried: each perceptual share with each adversarial one. The first stage alone is always in besides."""

    # Shares of the second stage's gradient that the perceptual term shall have.
    perceptual_shares: tuple[float, ...] = (0.3, 0.6)
    # Shares that the adversarial term shall have beside each of them; 0: a second stage without it.
    adversarial_shares: tuple[float, ...] = (0.0, 0.1)
    # Seeds that every setting is trained with; with one alone, the spread between seeds stays unknown.
    seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        for name in ("perceptual_shares", "adversarial_shares", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise UserError(f"{name} has {', '.join(map(str, values))}, where one stands twice: give each once.")
        if any(not 0 < share < 1 for share in self.perceptual_shares):
            raise UserError(
                f"perceptual_shares has {', '.join(map(str, self.perceptual_shares))}, expected numbers between 0 and 1"
                f" ({REFERENCE}, without the term, is always in)."
            )
        if any(not 0 <= share < 1 for share in self.adversarial_shares):
            given = ", ".join(map(str, self.adversarial_shares))
            raise UserError(f"adversarial_shares has {given}, expected shares in [0, 1), e.g. 0 and 0.1.")
        if not self.perceptual_shares or not self.adversarial_shares:
            raise UserError(
                f"the sweep has no setting beside {REFERENCE}: give at least one perceptual share, e.g. 0.3, and one "
                "adversarial share, 0 for none of it."
            )
        if not self.seeds:
            raise UserError("the sweep has no seed: give at least one, e.g. 0, and better two.")

    def settings(self, config: Config) -> list[Setting]:
        """The settings in the order of the table, the first stage alone first; everything else is as in ``config``.

        Raises:
            UserError: settings without a second stage, or shares that leave nothing for the pixel error.
        """
        if not config.stage2_epochs:
            raise UserError(
                f"stage2_epochs is 0, so there is no second stage to compare with {REFERENCE}: set it above 0."
            )
        alone = {"stage2_epochs": 0, "perceptual_share": 0.0, "adversarial_share": 0.0}
        found = [Setting(REFERENCE, config.replace(alone, source="the grid"))]
        for perceptual in self.perceptual_shares:
            for adversarial in self.adversarial_shares:
                name = f"perceptual-{_plain(perceptual)}" + (f"-adversarial-{_plain(adversarial)}" * (adversarial > 0))
                shares = {"perceptual_share": perceptual, "adversarial_share": adversarial}
                found.append(Setting(name, config.replace(shares, source="the grid")))
        return found


def _plain(value: float) -> str:
    """Every digit, because it is the run folders' name: two settings shall not share one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def measure_grid(task: SuperResolutionTask) -> Callable[[Grid], dict[str, Entry]]:
    """Probe one training batch; returns what any grid would give the perceptual term on it, by setting, for the panel.

    What is returned costs no forward pass a call.

    Raises:
        UserError: a task without a second stage.
    """
    balance = measure_balance(task)
    return lambda grid: {one.name: term_entry(balance(one.config), TERM) for one in grid.settings(task.config)}


def run_sweep(
    config: Config, grid: Grid, data_dir: Path, folder: Path, *, force: bool = False, copy_dir: Path | None = None
) -> Swept:
    """Train and compare ``grid`` in ``folder``; a second call goes on where the first stopped.

    All runs of a seed have the same first stage, step by step, so their differences are those of the second one (whose
    epochs come on top: the first stage alone is trained for less time). Where the adversarial share is 0 the
    discriminator is trained all the same, and nothing listens to it.

    Args:
        config: the settings that all runs share; its weights, shares and seed are replaced.
        folder: of this sweep, one run folder for each setting and seed in it.
        force: train a grid that is inert as a whole.
        copy_dir: an existing folder (Drive) that receives a copy.

    Raises:
        GuardStop: the perceptual term is inert in the whole grid.
        UserError: data, weights or settings that do not fit, or folders that hold something else.
    """
    first: SuperResolutionTask | None = None

    def make_task(one: Config) -> SuperResolutionTask:
        nonlocal first
        task = SuperResolutionTask(one, data_dir, like=first)  # the patches are read and checked once for all runs
        first = first or task
        return task

    plan = Plan(
        settings=grid.settings(config),
        seeds=grid.seeds,
        term=TERM,
        make_task=make_task,
        measure=measure_balance,
        cure=lambda balance: "Give larger shares (--perceptual-shares 0.3), or train this grid all the same (--force).",
        judge=judge,
        decided_by=DECIDED_BY,
        figures=sweep_figures,
    )
    return sweep(plan, folder, force=force, copy_dir=copy_dir)
