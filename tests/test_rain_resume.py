"""A run that is stopped in the middle of the warm-up is, bit by bit, the run in one go; so is its copula."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rain_run import TAIL_MAE, batch_of, some_days, task_on
from test_fit import assert_equal_runs, weights

from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.training import checkpoint, history
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run
from nbhelpers.training.task import Phase, Update

STEPS = 6  # of an epoch
REHEARSED = 1  # the updates of one batch are looked at before the first step
SETTINGS: dict[str, Any] = {
    "epochs": 5,
    "warmup_epochs": 3.5,
    "early_stopping_patience": None,
    "batch_size": 8,
    "eval_days": 8,
    "members": 2,
    "dropout": 0.2,
    "noise": 0.1,
    "heavy_oversampling": 3.0,
    "ema_decay": 0.9,
    "prior_fraction": 0.5,
}


class Cut(Exception):
    """The process is gone: nothing is saved any more."""


def dies(task: RainfallTask, at: int, how: type[BaseException]) -> RainfallTask:
    """``how`` strikes within step ``at``, counted in this process."""
    original, steps = task.updates, {"taken": 0}

    def updates(batch: Any, phase: Phase) -> Iterator[Update]:
        for update in original(batch, phase):
            yield update
            steps["taken"] += 1
            if steps["taken"] == at + REHEARSED:
                raise how()

    task.updates = updates  # type: ignore[method-assign]
    return task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_days(tmp_path_factory.mktemp("data") / "rain", n=(8 * STEPS, 12, 12))


def train(folder: Path, where: Path, **changes: Any) -> Run:
    task = task_on(folder, **{**SETTINGS, **changes})
    run = open_run(task, where, "run")
    assert not fit(task, run).interrupted
    return run


def stop(folder: Path, where: Path, at: int, how: type[BaseException], save_minutes: float, **changes: Any) -> int:
    """Train until ``how`` strikes; returns the last step that was saved."""
    task = dies(task_on(folder, **{**SETTINGS, **changes}), at, how)
    run = open_run(task, where, "run")
    if how is KeyboardInterrupt:
        assert fit(task, run, save_minutes=save_minutes).interrupted
    else:
        with pytest.raises(how):
            fit(task, run, save_minutes=save_minutes)
    last = checkpoint.find(run, "last")
    assert last is not None
    return last.step


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """In one go; what every interrupted run must equal."""
    return train(folder, tmp_path_factory.mktemp("whole"))


def test_the_run_in_one_go_has_what_a_resumed_one_could_lose(whole: Run) -> None:
    betas = [row["train_weight_kl"] for row in history.read_rows(whole.history_file)]
    assert betas[0] < betas[1] < betas[2] < betas[3] < betas[4], "β rises for three and a half epochs"
    saved = weights(whole)
    assert saved["cvae.correlation"].any(), "the copula was fitted, and stands in the checkpoint"
    assert not any("statics" in name for name in saved), "static maps come from the data"
    last, best = checkpoint.find(whole, "last"), checkpoint.find(whole, "best")
    assert last is not None and best is not None and best.step > 4 * STEPS - 1


@pytest.mark.parametrize(
    ("at", "how", "save_minutes", "saved"),
    [
        pytest.param(STEPS + 3, Cut, 0.0, STEPS + 2, id="killed in the second epoch, saved at every step"),
        pytest.param(2 * STEPS + 3, Cut, 5.0, 2 * STEPS, id="killed in the third epoch, saved at its beginning"),
        pytest.param(STEPS + 4, KeyboardInterrupt, 5.0, None, id="stopped by hand"),
        pytest.param(3 * STEPS + 4, Cut, 0.0, 3 * STEPS + 3, id="killed where the weight has just stopped rising"),
    ],
)
def test_a_run_that_is_stopped_in_the_warm_up(
    folder: Path, whole: Run, at: int, how: type[BaseException], save_minutes: float, saved: int | None, tmp_path: Path
) -> None:
    step = stop(folder, tmp_path, at, how, save_minutes)
    assert step == saved or saved is None
    assert 0 < step < 4 * STEPS
    assert_equal_runs(train(folder, tmp_path), whole)


def test_a_run_of_the_composite_loss_with_a_share(folder: Path, tmp_path: Path) -> None:
    """Its weights follow from running means of gradients, which must go on, too."""
    one = train(folder, tmp_path / "whole", **TAIL_MAE)
    for at in (4, STEPS + 1, STEPS):
        stop(folder, tmp_path / "cut", at, Cut, 0.0, **TAIL_MAE)
    assert_equal_runs(train(folder, tmp_path / "cut", **TAIL_MAE), one)


def test_a_reloaded_task_gives_the_same_members(folder: Path, whole: Run) -> None:
    found = checkpoint.find(whole, "last")
    assert found is not None
    drawn = []
    for _ in range(2):
        task = task_on(folder, **SETTINGS)
        fresh = task.members(batch_of(task, "test"))
        checkpoint.load_weights(found, task.modules)
        for module in task.modules.values():
            module.eval()
        torch.manual_seed(len(drawn))  # no global generator has a say
        drawn.append(task.members(batch_of(task, "test")))
        assert not torch.equal(fresh, drawn[-1])
    assert torch.equal(*drawn)
    task.sampler.cvae.correlation.zero_()
    assert not torch.equal(task.members(batch_of(task, "test")), drawn[0]), "the copula's noise follows the buffer"


def test_a_run_that_is_stopped_inside_the_warm_up_says_so(folder: Path, tmp_path: Path) -> None:
    stop(folder, tmp_path, 2 * STEPS + 2, KeyboardInterrupt, 5.0)
    run = Run(tmp_path / "run")
    assert checkpoint.find(run, "best") is None
    report = make_report(task_on(folder, **SETTINGS), run)
    assert report["checkpoint"]["name"] == "last"
    (remark,) = [line for line in report["remarks"] if line.startswith("Not finished")]
    assert "2 of 5 epochs" in remark and "in the first 4 (warm-up): what is shipped is the last" in remark
