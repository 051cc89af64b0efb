"""Healthy runs of the turbulence stage: no guard says a word, and the hand-over of weight happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbhelpers.stages.neural_operator.config import SIMULATED, Config
from nbhelpers.stages.neural_operator.simulate import simulate
from nbhelpers.stages.neural_operator.task import OperatorTask
from nbhelpers.training.fit import fit
from nbhelpers.training.flexible import SchedulerParams
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.history import read_rows
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run

PLATEAU = SchedulerParams(
    patience=1, min_delta=0.15, ema_beta=0.0, warmup_epochs=3, min_epochs=4, final_weight_source=0.95,
    final_weight_target=0.05, transition_step=0.025, adaptive_step=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flows")
    return simulate(folder, **SIMULATED["smoke"], progress=False)


def trained(flows: Path, folder: Path, **changes: Any) -> tuple[OperatorTask, Run]:
    task = OperatorTask(Config.for_profile("smoke", **changes), flows)
    run = open_run(task, folder, "healthy")
    assert fit(task, run).epochs == task.config.epochs
    assert run.guards_file.exists()
    return task, run


def raised(run: Run) -> list[dict[str, Any]]:
    return [found for found in read_guards(run) if found["severity"] != "info"]


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_raises_nothing_and_hands_weight_over(flows: Path, seed: int, tmp_path: Path) -> None:
    """The smoke profile as it is: long enough for the balance of the losses to be judged."""
    task, run = trained(flows, tmp_path, seed=seed)
    rows = read_rows(run.history_file)
    assert rows[-1]["step"] >= 40 > 15  # probes of the loss balance
    assert raised(run) == []
    scheduler, params = task.loss_scheduler, task.config.scheduler
    assert scheduler is not None and params is not None and scheduler.finished
    handed = [row["schedule_spectrum_error"] for row in rows]
    assert handed[: params.warmup_epochs] == [0] * params.warmup_epochs and handed == sorted(handed)
    assert handed[-1] == pytest.approx(params.final_weights[1])
    total = [row["schedule_spectrum_error"] + row["schedule_field_error"] for row in rows]
    assert total == pytest.approx([1.0] * len(rows))
    # What the criterion multiplied the term by: its weight in units of the field error's magnitude.
    used = [row["train_weight_spectrum_error"] for row in rows]
    assert [weight > 0 for weight in used] == [weight > 0 for weight in handed] and used[-1] > 0
    assert rows[-1]["val_field_error"] < 0.5 * rows[0]["val_field_error"]


@pytest.mark.parametrize("seed", range(2))
def test_a_hand_over_at_a_plateau_fires_in_a_real_run(flows: Path, seed: int, tmp_path: Path) -> None:
    task, run = trained(flows, tmp_path, seed=seed, epochs=14, scheduler=PLATEAU, windows_per_epoch=32)
    assert raised(run) == []
    assert task.loss_scheduler is not None and task.loss_scheduler.finished
    events = task.loss_scheduler.events
    assert [round(target, 6) for _, _, target, _ in events] == [0.025, 0.05] and events[0][0] >= PLATEAU.min_epochs
    rows = {row["epoch"]: row for row in read_rows(run.history_file)}
    first = events[0][0]
    assert rows[first]["schedule_spectrum_error"] == rows[first]["train_weight_spectrum_error"] == 0
    if first + 1 in rows:
        assert rows[first + 1]["schedule_spectrum_error"] == pytest.approx(0.025)
        assert rows[first + 1]["train_weight_spectrum_error"] > 0


@pytest.mark.parametrize("changes", [{}, {"spectrum_share": 0.1}])
def test_runs_without_a_scheduler_are_healthy_too(flows: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    _, run = trained(flows, tmp_path, scheduler=None, windows_per_epoch=32, **changes)
    rows = read_rows(run.history_file)
    assert raised(run) == [] and not any(name.startswith("schedule_") for name in rows[0])


@pytest.mark.parametrize("training", ["unrolled", "pushforward"])
def test_other_ways_of_training_are_healthy_too(flows: Path, training: str, tmp_path: Path) -> None:
    _, run = trained(flows, tmp_path, training=training, sequence_length=(3, 1), windows_per_epoch=32)
    assert raised(run) == []
