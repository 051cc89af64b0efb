"""Runs that are not worth going on: a score that was missed, and a loss that stands still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import ToyConfig, ToyTask

from nbhelpers.training import history
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.guard import Epoch, GuardStop, Step
from nbhelpers.training.guards.milestones import StandingStill
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import Evaluation, LossTerm, Milestone, Update


def trained(tmp_path: Path, *milestones: Milestone, **settings: Any) -> Run:
    task = ToyTask(ToyConfig(epochs=4, **settings))
    task.milestones = milestones
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    return run


@pytest.mark.parametrize(
    ("bound", "evidence"), [({"at_most": 0.2}, "expected at most 0.2"), ({"at_least": 0.9}, "expected at least 0.9")]
)
def test_a_score_that_was_missed_stops_the_run(tmp_path: Path, bound: dict[str, float], evidence: str) -> None:
    """The toy has an mse of 0.35 and 0.26 after two epochs."""
    with pytest.raises(GuardStop, match="The mse on validation is not what it has to be after epoch 2") as stopped:
        trained(tmp_path, Milestone("mse", 2, "Look at the data.", **bound))
    found = stopped.value.finding
    assert (found.name, found.severity, found.step, found.cure) == ("milestones", "stop", 8, "Look at the data.")
    assert found.evidence.startswith("the best so far is 0.") and found.evidence.endswith(evidence)
    assert len(history.read_rows(Run(tmp_path / "run").history_file)) == 2


def test_a_score_that_was_reached_earlier_counts(tmp_path: Path) -> None:
    """The first epoch is the worst; and an epoch beyond the run's end is not asked for."""
    late = Milestone("mse", 9, "No cure.", at_most=0.0)
    run = trained(tmp_path, Milestone("mse", 4, "No cure.", at_least=0.3), Milestone("mse", 4, "", at_most=0.3), late)
    assert read_guards(run) == []


def test_a_score_that_is_never_defined_is_missed(tmp_path: Path) -> None:
    with pytest.raises(GuardStop, match="The never_counted on validation is not what.*the best so far is undefined"):
        trained(tmp_path, Milestone("never_counted", 1, "Count.", at_most=1.0))


def test_an_unknown_metric_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(GuardStop, match="'psnr' is not among.*Set the milestone of epoch 5 to one of these") as stopped:
        trained(tmp_path, Milestone("psnr", 5, "", at_least=10.0))
    assert stopped.value.exit_code == 2 and stopped.value.finding.step == 0


def test_a_milestone_has_one_bound() -> None:
    for bounds in ({}, {"at_least": 1.0, "at_most": 2.0}):
        with pytest.raises(ValueError, match="either at_least or at_most"):
            Milestone("mse", 1, "", **bounds)


class Constant(ToyTask):
    """Noise that is the same in every epoch, and no dropout: without learning nothing changes."""

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.modules["net"][0].p = 0.0  # type: ignore[index]

    def batches(self, split: str, epoch: int, start: int = 0) -> Any:
        return super().batches(split, 0, start)


def test_a_loss_that_stands_still_stops_the_run(tmp_path: Path) -> None:
    """The learning rate is too small for single precision, so that no other guard sees a tensor that should move."""
    task = Constant(ToyConfig(epochs=5, lr=1e-12, slope_weight=0.1))
    with pytest.raises(GuardStop, match="Loss term 'mse' stands still") as stopped:
        fit(task, open_run(task, tmp_path, "run"))
    assert (stopped.value.finding.name, stopped.value.finding.step) == ("standing_still", 12)
    learning = Constant(ToyConfig(epochs=5, slope_weight=0.1))
    run = open_run(learning, tmp_path, "learning")
    fit(learning, run)
    assert read_guards(run) == []


def test_limits() -> None:
    task = ToyTask(ToyConfig())
    guard = StandingStill(objectives=["mse"])

    def stops(*column: float | None, phases: str = "") -> bool:
        rows = [
            {"phase": "train" if not phases or phases[i] == "t" else "before", "train_mse": value}
            for i, value in enumerate(column)
        ]
        shown = Epoch(task, task.modules, task.phases[0], len(rows), 9, 3, rows, Evaluation({}, {}), 9)
        return bool(list(guard.on_epoch(shown)))

    assert stops(0.5, 0.797885, 0.797885, 0.797885)
    assert stops(0.7978851, 0.7978853, 0.7978849)
    assert not stops(0.797885, 0.797886, 0.797885)
    assert not stops(0.797885, 0.797885)
    assert not stops(0.0, 0.0, 0.0)
    assert not stops(None, None, None)
    assert not stops(0.5, 0.5, 0.5, phases="btt")


def test_only_objectives_are_followed() -> None:
    task, guard = ToyTask(ToyConfig()), StandingStill()
    terms = (LossTerm("mse", torch.sum, 1.0), LossTerm("bound", torch.sum, 1.0, "regulariser"))
    update = Update("net", torch.zeros(1), terms)
    list(guard.on_step(Step(task, task.modules, task.phases[0], 1, 0.0, None, update, 1.0, {}, None, None)))
    assert guard.objectives == ["mse"]
