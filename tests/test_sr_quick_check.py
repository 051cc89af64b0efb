"""The quick check before a long run: it passes on healthy data and tells of a run that learns nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sr_run import SMALL, landscapes

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.stages.super_resolution.quick_check import EPOCHS, check_gates, quick_check, require
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training import checkpoint
from nbhelpers.training.history import read_rows
from nbhelpers.training.run import Run


@pytest.fixture(scope="module")
def land(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return landscapes(tmp_path_factory.mktemp("land"))


def settings(**changes: Any) -> Config:
    return Config.for_profile("smoke", **(SMALL | {"stage2_epochs": 9, "bicubic_by": 5} | changes))


def rows(losses: list[Any], psnr: list[Any]) -> list[dict[str, Any]]:
    return [{"train_total": loss, "val_psnr": score} for loss, score in zip(losses, psnr, strict=True)]


LOSS, MOVES = "the loss is not constant and does not grow", "the network learns: PSNR on validation moves"
PSNR = "PSNR not below that of bicubic"


def failed(losses: list[Any], psnr: list[Any], *, bar: float = 30.0, std: float = 0.02) -> list[str]:
    found = check_gates(rows(losses, psnr), bar=bar, whose="bicubic", std=std)
    return [gate.name for gate in found if not gate.passed]


@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_data_pass_and_the_check_has_a_folder_of_its_own(
    land: Path, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random crops make the loss rise and fall by more than is learnt in so few steps."""
    task = SuperResolutionTask(settings(seed=seed), land)
    start = {name: tensor.clone() for name, tensor in task.modules["generator"].state_dict().items()}
    found = quick_check(task, tmp_path, "long")
    assert all(torch.equal(start[name], now) for name, now in task.modules["generator"].state_dict().items())
    assert [gate.passed for gate in found] == [True] * 4, found
    assert found[-1].name == "PSNR not below that of bicubic + projection"
    require(found)
    said = capsys.readouterr().out
    assert "Data validation passed: 0 of 6 patches failed" in said and "HR B02" in said
    assert [path.name for path in tmp_path.iterdir()] == ["long-check"]
    run = Run(tmp_path / "long-check")
    assert len(read_rows(run.history_file)) == EPOCHS
    before = checkpoint.find(run, "last")
    again = quick_check(SuperResolutionTask(settings(seed=seed), land), tmp_path, "long")
    assert again == found and checkpoint.find(run, "last") == before, "it is not trained again"


def test_a_learning_rate_that_destroys_the_network_fails(land: Path, tmp_path: Path) -> None:
    found = quick_check(SuperResolutionTask(settings(stage1_lr=0.1, consistency=False), land), tmp_path, "wild")
    (gate,) = [gate for gate in found if gate.name == PSNR]
    assert not gate.passed and "dB, bicubic 3" in gate.value


@pytest.mark.parametrize("consistency", [True, False])
def test_a_network_that_stays_as_it_was_fails(land: Path, tmp_path: Path, consistency: bool) -> None:
    """It starts as an interpolation, and crops that differ make its loss differ."""
    frozen = settings(stage1_lr=1e-30, consistency=consistency)
    found = quick_check(SuperResolutionTask(frozen, land), tmp_path, "frozen")
    assert [gate.name for gate in found if not gate.passed] == [MOVES], found
    with pytest.raises(UserError, match=r"the quick check failed.*PSNR on validation moves \(by 0 dB.*stage1_lr"):
        require(found)


@pytest.mark.parametrize(
    ("losses", "psnr", "names"),
    [
        ([0.5, 0.4, 0.3, 0.2, 0.2], [29, 30, 30, 31, 31], []),
        ([0.44, 0.44, 0.42, 0.45, 0.46], [31, 31, 31, 31.0002, 31], []),  # crops differ
        ([0.44, 0.44, 0.42, 0.45, 0.46], [31, 31, 31, 31.00005, 31], [MOVES]),
        ([0.7979] * 5, [31] * 5, [LOSS, MOVES]),
        ([0.79790001, 0.79790002, 0.7979, 0.7979, 0.7979], [31, 31, 31, 31, 31.1], [LOSS]),
        ([0.4, 0.5, 0.6, 0.7, 0.8], [31, 31, 31, 31, 31.1], [LOSS]),
        ([0.5, 0.4, 0.3, 0.2, 0.1], [29.8, 29.9, 29.9, 29.98, 29.9], [PSNR]),
        ([0.5, 0.4, 0.3, 0.2, 0.1], [29.8, 29.9, 29.9, 29.991, 29.9], []),
        ([0.7979] * 5, [6.02] * 5, [LOSS, MOVES, PSNR]),
        ([0.5, float("nan")], [31, 31], [LOSS, MOVES, PSNR]),
    ],
)
def test_gates_of_a_history(losses: list[Any], psnr: list[Any], names: list[str]) -> None:
    assert failed(losses, psnr) == names


def test_an_epoch_of_which_every_step_was_skipped_fails() -> None:
    assert len(failed([0.5, None, 0.4], [31, 31, 31.1])) == 3
    assert len(failed([None, 0.5, 0.4], [31, 31, 31.1])) == 3


def test_data_without_contrast_fail() -> None:
    assert failed([0.5, 0.4], [31, 31.1], std=0.0099) == ["the high resolution has contrast"]
