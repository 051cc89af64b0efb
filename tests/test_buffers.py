"""What a scoring fits into a module's buffers stays there, also beside an average of the weights, and is resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import Stopped, assert_equal_runs, press
from torch import Tensor, nn
from toy import ToyConfig, ToyTask

from nbhelpers.training import checkpoint, pointers
from nbhelpers.training.ema import Ema
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import Evaluation, Predictor

SETTINGS: dict[str, Any] = {"epochs": 4, "ema_decay": 0.9}


class Spread(nn.Module):
    """The typical size of the error, which every scoring on validation measures."""

    size: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.zeros(()))


class Calibrated(ToyTask):
    """A toy whose loss depends on such a buffer, so that a lost one is seen in the weights."""

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.modules["spread"] = Spread()
        self.phases = (dataclasses.replace(self.phases[0], keep=2),)

    def terms(self, clean: Tensor) -> Any:
        mse, slope = super().terms(clean)
        size = self.modules["spread"].size.clone()
        return dataclasses.replace(mse, fn=lambda prediction: (prediction - clean + size).square().mean()), slope

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        scored = super().evaluate(split, predictor)
        if split == "val" and predictor is None:
            self.modules["spread"].size.fill_(0.1 * scored.metrics["mae"].value)
        return scored


def test_a_live_figure_shows_the_weights_that_were_scored(tmp_path: Path) -> None:
    task = ToyTask(ToyConfig(**SETTINGS))
    seen: list[tuple[float, float]] = []

    def on_epoch(rows: list[dict[str, Any]]) -> None:
        seen.append((task.evaluate("val").metrics["mse"].value, rows[-1]["val_mse"]))

    fit(task, open_run(task, tmp_path, "run"), on_epoch=on_epoch)
    assert len(seen) == 4 and all(drawn == pytest.approx(scored) for drawn, scored in seen)


class CalibratedAndStopped(Stopped, Calibrated):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    task = Calibrated(ToyConfig(**SETTINGS))
    return fit(task, open_run(task, tmp_path_factory.mktemp("whole"), "run")).run


def test_every_checkpoint_has_what_its_own_scoring_fitted(whole: Run) -> None:
    """The averaged weights are in model.safetensors, and so is what was fitted with them."""
    for which in pointers.names(whole):
        task = Calibrated(ToyConfig())
        found = checkpoint.find(whole, which)
        assert found is not None
        checkpoint.load_weights(found, task.modules)
        fitted = float(task.modules["spread"].size)
        assert fitted > 0
        task.evaluate("val")
        assert float(task.modules["spread"].size) == fitted, which


def test_the_average_of_several_is_fitted_anew(tmp_path: Path) -> None:
    """Large steps: the weights jump about a good place, so that an average is better."""
    task = Calibrated(ToyConfig(epochs=6, lr=0.3))
    run = fit(task, open_run(task, tmp_path, "run")).run
    pointer = pointers.read(run, "average")
    assert pointer is not None and len(pointer["parents"]) > 1
    checkpoint.load_weights(checkpoint.find(run, "average"), task.modules)  # type: ignore[arg-type]
    fitted = float(task.modules["spread"].size)
    task.evaluate("val")
    assert fitted == float(task.modules["spread"].size) > 0


@pytest.mark.parametrize("at", [5, 8])
def test_stopped_and_taken_up_it_is_the_run_in_one_go(whole: Run, tmp_path: Path, at: int) -> None:
    task = CalibratedAndStopped(ToyConfig(**SETTINGS), at, press)
    run = open_run(task, tmp_path, "run")
    assert fit(task, run).interrupted
    task = Calibrated(ToyConfig(**SETTINGS))
    fit(task, run)
    assert_equal_runs(run, whole)


def test_only_parameters_are_averaged_and_exchanged() -> None:
    task = Calibrated(ToyConfig())
    net, spread = task.modules["net"], task.modules["spread"]
    ema = Ema(task.modules, 0.5)
    with torch.no_grad():
        net[1].bias.fill_(4.0)
        spread.size.fill_(3.0)
        before = ema.trained()
        own = ema.take_in()
    assert set(own) == set(before) == {"net.1.weight", "net.1.bias"}
    assert net[1].bias.item() != 4.0 and float(spread.size) == 3.0
