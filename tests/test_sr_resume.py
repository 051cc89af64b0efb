"""A two-stage run that is stopped is, bit by bit, the run in one go: optimizers, average, spectral norm, guards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sr_run import landscapes, task_on
from test_fit import assert_equal_runs

from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training import checkpoint, history
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import Phase, Update

STEPS = 6  # of an epoch
SETTINGS: dict[str, Any] = {
    "crops_per_epoch": 2 * STEPS,
    "stage1_epochs": 2,
    "stage2_epochs": 3,
    "ema_decay": 0.9,
    "ensemble": 3,
    "noise": 0.002,
    "adversarial_ramp": 1.5,
    "stage2_lr": 1e-3,
}


class Cut(Exception):
    """The process is gone: nothing is saved any more."""


def dies(task: SuperResolutionTask, at: int, how: type[BaseException]) -> SuperResolutionTask:
    """``how`` strikes within step ``at`` (counted in this process), between the generator's and the judge's turn."""
    original = task.updates
    steps = {"taken": 0}

    def updates(batch: Any, phase: Phase) -> Iterator[Update]:
        for number, update in enumerate(original(batch, phase)):
            yield update
            if number == 0:
                steps["taken"] += 1
                if steps["taken"] == at:
                    raise how()

    task.updates = updates  # type: ignore[method-assign]
    return task


def train(land: Path, folder: Path, **changes: Any) -> Run:
    task = task_on(land, **(SETTINGS | changes))
    run = open_run(task, folder, "run")
    assert not fit(task, run).interrupted
    return run


def go_on(land: Path, folder: Path, at: int, how: type[BaseException], save_minutes: float = 5.0) -> None:
    task = dies(task_on(land, **SETTINGS), at, how)
    run = open_run(task, folder, "run")
    if how is KeyboardInterrupt:
        assert fit(task, run, save_minutes=save_minutes).interrupted
        return
    with pytest.raises(how):
        fit(task, run, save_minutes=save_minutes)


@pytest.fixture(scope="module")
def land(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return landscapes(tmp_path_factory.mktemp("land"))


@pytest.fixture(scope="module")
def whole(land: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """In one go; what every interrupted run must equal."""
    return train(land, tmp_path_factory.mktemp("whole"))


def digest(run: Run, which: str) -> str:
    found = checkpoint.find(run, which)
    assert found is not None
    return hashlib.sha256((found.folder / "model.safetensors").read_bytes()).hexdigest()


def assert_same_runs(run: Run, whole: Run) -> None:
    assert_equal_runs(run, whole)
    for which in ("last", "best", "average", "pixel_best", "pixel_last", "adversarial_best", "adversarial_last"):
        assert digest(run, which) == digest(whole, which), which


def test_the_run_in_one_go_has_what_a_resumed_one_could_lose(whole: Run) -> None:
    rows = history.read_rows(whole.history_file)
    assert [row["phase"] for row in rows] == ["pixel"] * 2 + ["adversarial"] * 3
    assert rows[2]["train_weight_adversarial"] != rows[3]["train_weight_adversarial"], "its weight rises"
    assert whole.ledger_file.read_text().count("adversarial") > 6
    found = checkpoint.find(whole, "last")
    assert found is not None
    state = checkpoint.load_state(found)
    assert (
        set(state["phases"]["adversarial"]["optimizers"]) == {"generator", "discriminator"} and state["ema"]["weights"]
    )


# A forward pass for the rehearsal of each phase counts too: 2 before the first step, 1 at the border.
REHEARSED = 2


@pytest.mark.parametrize(
    ("at", "how", "saved"),
    [
        pytest.param(REHEARSED + 2 * STEPS + 1 + 1, Cut, 2 * STEPS, id="first batch of the second stage"),
        pytest.param(REHEARSED + 2 * STEPS + 1 + 3, KeyboardInterrupt, 2 * STEPS, id="third batch of it"),
        pytest.param(REHEARSED + 3 * STEPS + 1 + 4, Cut, 3 * STEPS, id="middle of it"),
    ],
)
def test_a_run_that_is_stopped_in_the_second_stage(
    land: Path, whole: Run, at: int, how: type[BaseException], saved: int, tmp_path: Path
) -> None:
    go_on(land, tmp_path, at, how)
    last = checkpoint.find(Run(tmp_path / "run"), "last")
    assert last is not None and last.step == saved
    assert_same_runs(train(land, tmp_path), whole)


def test_a_run_that_is_stopped_at_the_last_checkpoint_of_the_first_stage(
    land: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the names of the ended stage are written, then in the rehearsal of the next one."""
    from nbhelpers.training import border

    def killed(*_: Any) -> None:
        raise Cut

    for name in ("end_phase", "next_phase"):
        with monkeypatch.context() as patched:
            patched.setattr(border, name, killed)
            task = task_on(land, **SETTINGS)
            run = open_run(task, tmp_path, "run")
            with pytest.raises(Cut):
                fit(task, run)
        last = checkpoint.find(run, "last")
        assert last is not None and last.step == 2 * STEPS
    assert_same_runs(train(land, tmp_path), whole)


def test_a_run_that_is_stopped_again_and_again_and_saved_within_epochs(land: Path, whole: Run, tmp_path: Path) -> None:
    lives: list[tuple[int, type[BaseException]]] = [
        (REHEARSED + 4, Cut), (REHEARSED + 3, KeyboardInterrupt), (REHEARSED + 2 * STEPS - 4, Cut),
        (5, KeyboardInterrupt), (7, Cut),
    ]  # fmt: skip
    steps = []
    for at, how in lives:
        go_on(land, tmp_path, at, how, save_minutes=0.0)
        last = checkpoint.find(Run(tmp_path / "run"), "last")
        assert last is not None
        steps.append(last.step)
    assert steps == sorted(set(steps)) and steps[0] < 2 * STEPS < steps[-1], "every life gets further"
    assert_same_runs(train(land, tmp_path), whole)


def test_a_second_stage_that_is_prolonged_goes_on_from_where_it_ended(land: Path, tmp_path: Path) -> None:
    """The cuts of its learning rate follow the new number, so it is not the longer run in one go."""
    changes = {"stage1_epochs": 1, "adversarial_ramp": 1.0, "ensemble": 1}
    run = train(land, tmp_path, stage2_epochs=1, **changes)
    task = task_on(land, **(SETTINGS | changes | {"stage2_epochs": 3}))
    fitted = fit(task, open_run(task, tmp_path, "run"))
    assert fitted.resumed_from == 2 * STEPS and fitted.epochs == 4
    rows = history.read_rows(run.history_file)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    # Cuts of 6 steps: 3, 4 and 5; of 18: 9, 14 and 16. Two epochs of three are after the first one only.
    rates = [row["lr_generator"] / SETTINGS["stage2_lr"] for row in rows[1:]]
    assert rates == pytest.approx([1 / 8, 1 / 2, 1 / 8])
    assert rows[2]["lr_discriminator"] == pytest.approx(4 * rows[1]["lr_discriminator"])
