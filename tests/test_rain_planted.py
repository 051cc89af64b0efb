"""Faults planted into real small data folders and runs of the rainfall stage: each is stopped with its cause named.

Every fault is a change of files, network or settings; no guard is told of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rain import tiny_days
from rain_run import findings, flags, some_days, stopped, task_on, trained
from torch import nn

from nbhelpers import cli
from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import layout
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.training import checkpoint

TRAIN, VAL, TEST = range(0, 96), range(96, 112), range(112, 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_days(tmp_path_factory.mktemp("data") / "rain", n=(len(TRAIN), len(VAL), len(TEST)))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the days to damage."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def rewrite(folder: Path, change: Callable[[np.ndarray], np.ndarray], days: range | None = None) -> Path:
    """The rain of these days (default: all) changed, ``(1, H, W)`` at a time."""
    for day in days if days is not None else range(TRAIN.start, TEST.stop):
        path = layout.y_file(folder, day)
        np.save(path, change(np.load(path)).astype(np.float32))
    return folder


def refused(folder: Path, where: Path, capfd: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one sentence with which training on the command line ends."""
    places = [f"--data-dir={folder}", f"--output-dir={where}", "--run-name=run", "--profile=smoke"]
    capfd.readouterr()
    assert cli.main(["train", "rainfall-cvae", *places, *flags()]) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nbhelpers: ")]
    assert len(lines) == 1 and lines[0].endswith(".")
    return lines[0]


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_a_test_day_among_the_training_days_is_stopped(own: Path, tmp_path: Path) -> None:
    """By its content: it has a training date and number."""
    wettest = max(TEST, key=lambda day: np.nansum(np.load(layout.y_file(own, day))))
    shutil.copyfile(layout.y_file(own, wettest), layout.y_file(own, 7))
    found = stopped(task_on(own), tmp_path, "leakage")
    assert found["message"] == "splits train and test share data: the same content stands in both"
    assert found["evidence"].startswith("1 of ")


def test_the_command_line_ends_with_the_guards_code(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wettest = max(VAL, key=lambda day: np.nansum(np.load(layout.y_file(own, day))))
    shutil.copyfile(layout.y_file(own, wettest), layout.y_file(own, 7))
    said = refused(own, tmp_path, capfd, code=3)
    assert said.startswith("nbhelpers: STOP leakage (step 0): Splits train and val share data: the same content")


def test_shuffled_days_are_refused(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    split = layout.read_json(own, layout.SPLIT_NAME)
    split["train"][0], split["test"][0] = split["test"][0], split["train"][0]
    layout.write_json(own, layout.SPLIT_NAME, split)
    said = refused(own, tmp_path, capfd)
    assert "stand in test and train" in said or "stand in train and test" in said
    assert "days that were shuffled leak" in said


# --- files -----------------------------------------------------------------------------------------------------------


def test_gaps_over_land_are_refused(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    land = np.isfinite(np.load(layout.y_file(own, 0))[0])
    row, column = np.argwhere(land)[5]

    def gap(rain: np.ndarray) -> np.ndarray:
        rain[0, row, column] = np.nan
        return rain

    said = refused(rewrite(own, gap), tmp_path, capfd)
    assert "NaN over land" in said and f"row {row} column {column}" in said and "land_sea_mask" in said


def test_rain_in_mm_per_hour_is_refused(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(rewrite(own, lambda rain: rain / 24), tmp_path, capfd)
    assert "looks like mm/h, so multiply by 24" in said


def test_training_days_without_rain_are_refused(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(rewrite(own, lambda rain: 0 * rain, TRAIN), tmp_path, capfd)
    assert "rain of all training days" in said and "is 0 over land" in said


def test_an_unknown_folder_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(tmp_path / "nowhere", tmp_path, capfd)
    assert "nowhere does not exist" in said and "--data-dir" in said


@pytest.mark.parametrize("day", [40, TEST.start + 3])
def test_a_truncated_day_is_refused(own: Path, day: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = layout.y_file(own, day)
    path.write_bytes(path.read_bytes()[:-300])
    said = refused(own, tmp_path, capfd)
    assert path.name in said
    assert ("1 of 96 training days" in said) == (day in TRAIN)


def test_a_file_that_breaks_while_training_ends_the_run_in_a_sentence(own: Path, tmp_path: Path) -> None:
    """As with more days than fit into memory, which are read again."""
    task, path = task_on(own), layout.y_file(own, 40)
    path.write_bytes(path.read_bytes()[:-300])
    task.days.store._kept.clear()
    with pytest.raises(UserError) as caught:
        trained(task, tmp_path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_predictors_without_structure_are_stopped_before_the_first_step(tmp_path: Path) -> None:
    """Temperatures drawn pixel by pixel."""
    found = stopped(task_on(tiny_days(tmp_path / "noise")), tmp_path, "training_on_noise")
    assert "'tas' of train looks like noise" in found["message"] and "correlation of neighbours" in found["evidence"]


def test_rain_of_other_days_is_stopped_before_the_first_step(own: Path, tmp_path: Path) -> None:
    """Each rain file is that of another day of its split."""
    for days in (TRAIN, VAL, TEST):
        rain = {day: np.load(layout.y_file(own, day)) for day in days}
        for day in days:
            np.save(layout.y_file(own, day), rain[days.start + (day - days.start + len(days) // 2) % len(days)])
    found = stopped(task_on(own), tmp_path, "unrelated_pairs")
    assert "do not belong to their inputs" in found["message"]


# --- networks --------------------------------------------------------------------------------------------------------


class Orphan(RainfallTask):
    """A tensor that came after the optimizer was made."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.modules["cvae"].decoder.extra = nn.Parameter(torch.ones(3))


def test_a_tensor_that_no_optimizer_has_is_stopped(folder: Path, tmp_path: Path) -> None:
    found = stopped(task_on(folder, Orphan), tmp_path, "dead_gradients")
    assert "belong to no optimizer" in found["message"] and "cvae.decoder.extra" in found["evidence"]


class Blind(RainfallTask):
    """Whatever the weather, the network is shown its mean."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.modules["cvae"].weather.register_forward_pre_hook(lambda _, inputs: (0 * inputs[0], inputs[1]))


LONG: dict[str, Any] = {"batch_size": 4, "epochs": 9, "eval_days": 8, "members": 2, "warmup_epochs": 1, "lr": 3e-3}


def latent_findings(task: RainfallTask, folder: Path) -> str:
    return " | ".join(
        f"{one['severity']}: {one['message']}" for one in findings(trained(task, folder)) if one["name"] == "latent"
    )


def test_weather_that_is_ignored_is_told(folder: Path, tmp_path: Path) -> None:
    said = latent_findings(task_on(folder, Blind, **LONG, d_z=0), tmp_path)
    assert said == "warn: the model ignores x: with that of other samples it is as good as with its own"


def test_a_latent_that_has_collapsed_is_told(folder: Path, tmp_path: Path) -> None:
    said = latent_findings(task_on(folder, **LONG, beta_kl=1e4, prior_fraction=0.0, grad_clip=0.0), tmp_path)
    assert "warn: the latent has collapsed" in said and "warn: the model ignores z" in said
    assert "ignores x" not in said


@pytest.mark.parametrize(
    "changes", [{"base_filters": 8}, {"d_z": 4}, {"d_z": 0}, {"d_y": 12}, {"tail": "gamma"}, {"likelihood": "tail_mae"}]
)
def test_weights_of_another_architecture_are_refused(
    folder: Path, changes: dict[str, Any], tmp_path: Path, saved: checkpoint.Checkpoint
) -> None:
    other = task_on(folder, **changes)
    before = {name: tensor.clone() for name, tensor in other.modules["cvae"].state_dict().items()}
    with pytest.raises(UserError, match="weights of another architecture"):
        checkpoint.load_weights(saved, other.modules)
    after = other.modules["cvae"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    task = task_on(folder, epochs=1, warmup_epochs=0, eval_days=4)
    found = checkpoint.find(trained(task, tmp_path_factory.mktemp("run")), "last")
    assert found is not None
    checkpoint.load_weights(found, task.modules)
    return found
