"""A warm-up: while a loss is still being ramped up, patience is not counted and no checkpoint is chosen as the best."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_fit import assert_equal_runs, press
from test_stopping import SCORES, Scripted, scripted
from torch import Tensor
from toy import STEPS_PER_EPOCH, ToyConfig, ToyTask
from toy_gan import GanConfig, GanTask, train_gan

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, pointers
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run
from nbhelpers.training.task import LossTerm, Monitor, Phase, Update
from nbhelpers.training.weights import Ramp

SETTINGS: dict[str, Any] = {"armed_after": 4, "ema_decay": 0.9}


def warm(folder: Path, name: str = "run", at: int | None = None, **settings: Any) -> tuple[ToyTask, Run]:
    """A scripted run that keeps its three best checkpoints."""
    task, run = scripted(folder, name, at, **SETTINGS, **settings)
    task.phases = (dataclasses.replace(task.phases[0], keep=3),)
    return task, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    task, run = warm(tmp_path_factory.mktemp("whole"))
    return fit(task, run).run


def best_epochs(folder: Path, **settings: Any) -> list[int | None]:
    """After each epoch, the one whose checkpoint is the best."""
    task, run = scripted(folder, **settings)
    found: list[int | None] = []

    def note(rows: list[dict[str, Any]]) -> None:
        best = pointers.read(run, "best")
        found.append(None if best is None else best["step"] // STEPS_PER_EPOCH)

    fit(task, run, on_epoch=note)
    return found


def test_the_best_is_never_one_of_the_warm_up(tmp_path: Path) -> None:
    assert best_epochs(tmp_path / "four", armed_after=4) == [None] * 4 + [5, 6, 7, 8, 8, 8]
    assert best_epochs(tmp_path / "worst", armed_after=6, mode="max") == [None] * 6 + [7, 7, 9, 10]


def test_patience_begins_anew_when_the_warm_up_is_over(tmp_path: Path) -> None:
    """Scores that are worse than one of the warm-up are not stale: under the loss of then they say nothing."""
    task, run = scripted(tmp_path, armed_after=4, patience=3)
    assert (fit(task, run).epochs, min(SCORES[:4])) == (10, 3.0)
    task, run = scripted(tmp_path, "worst", armed_after=5, patience=2, mode="max")
    fitted = fit(task, run)
    assert (fitted.epochs, fitted.stopped_early) == (8, True)
    best = checkpoint.find(run, "best")
    assert best is not None and best.step == 6 * STEPS_PER_EPOCH


def test_no_checkpoint_of_the_warm_up_is_averaged(whole: Run) -> None:
    best, average = (pointers.read(whole, which) for which in ("best", "average"))
    assert best is not None and average is not None
    assert [one["step"] // STEPS_PER_EPOCH for one in best["ranked"]] == [8, 7, 6], "and not 4, which scored 3.0"
    assert {parent["step"] for parent in average["parents"]} <= {one["step"] for one in best["ranked"]}


@pytest.mark.parametrize("at", [5, 15, 16, 20])
def test_stopped_anywhere_it_is_the_run_in_one_go(whole: Run, tmp_path: Path, at: int) -> None:
    """Within the warm-up, at its end (after sixteen steps), and within the first epoch that counts."""
    task, run = warm(tmp_path, at=at)
    assert fit(task, run).interrupted
    assert ("best" in pointers.names(run)) == (at >= 20), "the fifth epoch ends with step 20"
    task, run = warm(tmp_path)
    fit(task, run)
    assert_equal_runs(run, whole)


@pytest.fixture
def five(tmp_path: Path) -> Run:
    """A run of the first five epochs, whose checkpoints of the last two are there."""
    task = Scripted(ToyConfig(epochs=5, **SETTINGS))
    task.phases = (dataclasses.replace(task.phases[0], keep=3),)
    return fit(task, open_run(task, tmp_path, "run")).run


def test_a_run_that_is_prolonged_is_the_run_in_one_go(whole: Run, five: Run) -> None:
    assert pointers.read(five, "best")["step"] == 20  # type: ignore[index]
    task, run = warm(five.folder.parent)
    fit(task, run)
    assert_equal_runs(run, whole)


def test_going_back_into_the_warm_up_there_is_no_best_any_more(whole: Run, five: Run) -> None:
    task, run = warm(five.folder.parent, at=0)
    assert fit(task, run, start=run.checkpoints / "step_000016").interrupted
    assert pointers.names(run) == ["last"]
    task, run = warm(five.folder.parent)
    fit(task, run)
    assert_equal_runs(run, whole)


def test_stopped_in_the_warm_up_the_last_checkpoint_is_shipped_and_the_report_says_so(tmp_path: Path) -> None:
    task, run = warm(tmp_path, at=13)
    assert fit(task, run).interrupted
    report = make_report(task, run)
    assert report["checkpoint"]["name"] == "last"
    assert report["remarks"][0] == (
        "Not finished: 3 of 10 epochs are trained. None is chosen as the best in the first 4 (warm-up): what is "
        "shipped is the last checkpoint."
    )
    with pytest.raises(UserError, match="has no best checkpoint yet: train it first"):
        checkpoint.asked_for(run, "shipped")
    task, run = warm(tmp_path, "later", at=21)
    fit(task, run)
    report = make_report(task, run)
    assert report["checkpoint"]["name"] == "best" and report["remarks"][0].endswith("5 of 10 epochs are trained.")


# in the second phase ---------------------------------------------------------------------------------------------

TWO: dict[str, Any] = {
    "adversarial_epochs": 5,
    "adversarial_monitor": Monitor("mae", "max", armed_after=3),  # the first would be the best
    "keep": 2,
    "ema_decay": 0.9,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_gan(tmp_path_factory.mktemp("two"), **TWO).run


def test_a_warm_up_is_of_its_phase(two: Run) -> None:
    """Two epochs of the first phase and three of warm-up: steps 24 and 28 may be the best."""
    assert pointers.read(two, "adversarial_best")["step"] in (24, 28)  # type: ignore[index]
    assert [one["step"] for one in pointers.read(two, "best")["ranked"]] in ([24, 28], [28, 24])  # type: ignore[index]


class StoppedGan(GanTask):
    """The stop button in the second phase, when as many of its steps have been taken."""

    at = 0

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        steps = self.phases[1].optimizers["net"].state_dict()["state"]
        if phase.name == "adversarial" and steps and int(steps[0]["step"]) == self.at:
            self.at = -1
            press()
        yield from super().updates(batch, phase)


@pytest.mark.parametrize("at", [9, 15, 17])
def test_stopped_in_the_second_phase_it_is_the_run_in_one_go(two: Run, tmp_path: Path, at: int) -> None:
    task = StoppedGan(GanConfig(**TWO))
    task.at = at
    run = open_run(task, tmp_path, "run")
    assert fit(task, run).interrupted
    best, first = pointers.read(run, "best"), pointers.read(run, "pixel_best")
    assert best is not None and first is not None
    assert (best["step"] == first["step"]) == (at < 16), "that of the first phase, until one may be chosen"
    if at == 9:
        assert "what is shipped is the best one of the phase before" in make_report(task, run)["remarks"][0]
    assert_equal_runs(train_gan(tmp_path, **TWO).run, two)


def test_when_the_best_of_the_phase_before_is_gone_none_of_the_warm_up_takes_its_place(
    two: Run, tmp_path: Path
) -> None:
    task = StoppedGan(GanConfig(**TWO, pixel_monitor=Monitor("mse", "max")))
    task.at = 9
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    gone = pointers.read(run, "best")
    assert gone is not None
    for which in ("best", "pixel_best"):
        pointers.forget(run, which)
    shutil.rmtree(run.folder / gone["path"])
    task = StoppedGan(GanConfig(**TWO, pixel_monitor=Monitor("mse", "max")))
    task.at = 10
    fit(task, run)
    assert "best" not in pointers.names(run)
    run = train_gan(tmp_path, **TWO, pixel_monitor=Monitor("mse", "max")).run
    assert pointers.read(run, "best")["step"] in (24, 28)  # type: ignore[index]


# schedules that do not fit it ------------------------------------------------------------------------------------


class Rising(ToyTask):
    """A toy whose slope rises over the given epochs."""

    rise = 30.0

    def terms(self, clean: Tensor) -> tuple[LossTerm, ...]:
        mse, slope = super().terms(clean)
        return mse, dataclasses.replace(slope, weight=Ramp(0.1, epochs=self.rise))


@pytest.mark.parametrize(
    ("settings", "words", "numbers"),
    [
        ({"epochs": 25}, "still rising when the run ends", "its ramp ends at epoch 30, the run at 25"),
        (
            {"epochs": 80, "patience": 20},
            "early stopping counts epochs in which the weight of loss term 'slope' is still rising",
            "armed after 0 epochs, its weight stands from epoch 30 on",
        ),
        (
            {"epochs": 80, "patience": 20, "armed_after": 29},
            "is still rising",
            "armed after 29 epochs, its weight stands from epoch 30 on",
        ),
        ({"epochs": 80, "armed_after": 80}, "all of it is warm-up", "armed after 80 epochs, the run ends at 80"),
        ({"epochs": 80, "patience": 50, "armed_after": 30}, "can never act", "armed after 30 epochs with a patience"),
    ],
)
def test_a_warm_up_that_does_not_fit_the_run_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str, numbers: str
) -> None:
    task = Rising(ToyConfig(**settings))
    with pytest.raises(GuardStop) as stopped:
        fit(task, open_run(task, tmp_path, "run"))
    found = stopped.value.finding
    assert words in found.message and numbers in found.evidence and found.cure.endswith(".")
    assert (found.name, stopped.value.exit_code, found.step) == ("schedule", 2, 0)


def test_a_warm_up_that_fits_is_legal(tmp_path: Path) -> None:
    task = Rising(ToyConfig(epochs=7, patience=2, armed_after=4))
    task.rise = 4
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    assert read_guards(run) == []
