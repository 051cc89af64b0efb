"""A phase that keeps the checkpoint of every epoch: which stay, what names them, and that they outlive all that a run
can meet with."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_fit import Stopped, assert_equal_runs, press
from toy import STEPS_PER_EPOCH, ToyConfig, ToyTask, toy
from toy_gan import GanConfig, GanTask

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, history, pointers
from nbhelpers.training.fit import Fitted, fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run


class Keeping(ToyTask):
    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.phases = [dataclasses.replace(phase, prune=False) for phase in self.phases]


class KeepingAndStopped(Stopped, Keeping):
    pass


def keep(folder: Path, name: str = "run", epochs: int = 4, **options: Any) -> Fitted:
    """The worst epoch counts as the best, so that it is not the last one."""
    task = Keeping(ToyConfig(epochs=epochs, mode="max"))
    return fit(task, open_run(task, folder, name, copy_dir=options.pop("copy_dir", None)), **options)


def listed(run: Run) -> dict[int, Path]:
    """Epoch and folder of each checkpoint that stays; all are there and undamaged."""
    epochs = (pointers.read(run, "last") or {}).get("epochs", ())
    return {one["epoch"]: checkpoint.verify(run.folder / one["path"], one, "last.json").folder for one in epochs}


def folders(run: Run) -> set[str]:
    return {folder.name for folder in run.checkpoints.iterdir() if folder.is_dir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return keep(tmp_path_factory.mktemp("whole")).run


def test_every_epochs_checkpoint_stays_and_nothing_is_averaged(whole: Run) -> None:
    assert {epoch: folder.name for epoch, folder in listed(whole).items()} == {
        1: "step_000004", 2: "step_000008", 3: "step_000012", 4: "step_000016",
    }  # fmt: skip
    assert folders(whole) == {folder.name for folder in listed(whole).values()}
    assert pointers.names(whole) == ["best", "last"]
    rows, task = history.read_rows(whole.history_file), ToyTask(ToyConfig())
    for epoch, folder in listed(whole).items():
        checkpoint.load_weights(checkpoint.at(folder), task.modules)
        assert task.evaluate("val").metrics["mse"].value == pytest.approx(rows[epoch - 1]["val_mse"])


def test_it_changes_nothing_else(whole: Run, tmp_path: Path) -> None:
    pruned = fit(*toy(tmp_path, epochs=4, mode="max")).run
    assert "epochs" not in (pointers.read(pruned, "last") or {})
    assert len(folders(pruned)) == 3, "the last two and the best"
    found = [checkpoint.find(run, which) for which in ("best", "last") for run in (whole, pruned)]
    assert len({one.sha256 for one in found if one is not None}) == 2


def test_those_within_an_epoch_go(tmp_path: Path) -> None:
    run = keep(tmp_path, epochs=3, save_minutes=0.0).run
    assert [checkpoint.at(folder).step for folder in listed(run).values()] == [4, 8, 12]
    others = folders(run) - {folder.name for folder in listed(run).values()}
    assert others == {"step_000012"}, "written as the last step was done, and one of the two newest"


@pytest.mark.parametrize("at", [0, 4, 5, 11, 12])
def test_they_outlive_the_stop_button(whole: Run, tmp_path: Path, at: int) -> None:
    task = KeepingAndStopped(ToyConfig(epochs=4, mode="max"), at, press)
    assert fit(task, open_run(task, tmp_path, "run")).interrupted
    assert keep(tmp_path).resumed_from == at + 1
    assert_equal_runs(Run(tmp_path / "run"), whole)
    assert list(listed(Run(tmp_path / "run"))) == [1, 2, 3, 4]


def test_more_epochs_add_to_them(whole: Run, tmp_path: Path) -> None:
    keep(tmp_path, epochs=2)
    keep(tmp_path, epochs=4)
    assert_equal_runs(Run(tmp_path / "run"), whole)
    assert list(listed(Run(tmp_path / "run"))) == [1, 2, 3, 4]


def test_going_back_those_of_later_epochs_are_made_anew(whole: Run, tmp_path: Path) -> None:
    run = keep(tmp_path).run
    second = listed(run)[2]
    stopped = KeepingAndStopped(ToyConfig(epochs=4, mode="max"), 0, press)
    assert fit(stopped, run, start=second).interrupted
    assert list(listed(run)) == [1, 2]
    assert keep(tmp_path).resumed_from == 2 * STEPS_PER_EPOCH + 1
    assert_equal_runs(run, whole)
    assert list(listed(run)) == [1, 2, 3, 4]


def test_going_on_in_another_run_it_keeps_those_of_its_own(whole: Run, tmp_path: Path) -> None:
    """Neither what the other one has kept, which stays there, nor what this one was before."""
    run = keep(tmp_path, "other", epochs=4).run
    fitted = keep(tmp_path, "other", epochs=5, start=listed(whole)[3])
    assert (fitted.run, fitted.resumed_from) == (run, 3 * STEPS_PER_EPOCH)
    assert list(listed(run)) == [3, 4, 5]


def test_the_copy_has_them_too_and_brings_them_back(whole: Run, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    run = keep(tmp_path, epochs=3, copy_dir=drive).run
    copy = Run(drive / run.name)
    assert list(listed(copy)) == [1, 2, 3] and len(folders(copy)) == 3
    assert_equal_runs(copy, run)
    shutil.rmtree(run.folder)
    assert keep(tmp_path, copy_dir=drive).resumed_from == 3 * STEPS_PER_EPOCH
    for one in (run, copy):
        assert_equal_runs(one, whole)
        assert list(listed(one)) == [1, 2, 3, 4]


@pytest.mark.parametrize("where", ["run", "copy"])
def test_old_ones_may_be_deleted_to_make_room(whole: Run, tmp_path: Path, where: str) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    run = keep(tmp_path, epochs=3, copy_dir=drive).run
    copy = Run(drive / run.name)
    shutil.rmtree({"run": run, "copy": copy}[where].checkpoints / "step_000008")
    if where == "copy":
        shutil.rmtree(run.folder)
    assert keep(tmp_path, copy_dir=drive).resumed_from == 3 * STEPS_PER_EPOCH
    assert list(listed(copy)) == [1, 3, 4]
    assert checkpoint.find(run, "last") is not None
    shutil.rmtree(copy.checkpoints / "step_000016")  # the last one itself
    shutil.rmtree(run.folder)
    with pytest.raises(UserError, match=r"last\.json"):
        keep(tmp_path, copy_dir=drive)


def test_they_stay_in_the_phases_that_follow_one_that_averages(tmp_path: Path) -> None:
    task = GanTask(GanConfig(pixel_epochs=4, adversarial_epochs=4, keep=2))
    task.phases = [dataclasses.replace(task.phases[0], prune=False), task.phases[1]]
    run = fit(task, open_run(task, tmp_path, "run")).run
    assert list(listed(run)) == [1, 2, 3, 4]
    average = pointers.read(run, "average")
    assert average is not None
    assert min(parent["step"] for parent in average["parents"]) > 4 * STEPS_PER_EPOCH, "the first phase's are not in it"
