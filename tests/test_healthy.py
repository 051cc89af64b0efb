"""Healthy runs, short but whole: five seeds each on simulated storms and on real radar, and no guard says a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sevir

from nbhelpers.stages.perceptual_unet import data
from nbhelpers.stages.perceptual_unet.config import SIMULATED, Config
from nbhelpers.stages.perceptual_unet.simulate import simulate
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.training import history
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run

SIDE = 96  # pixels of a real frame that are kept: all 384 make a validation take ten seconds


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storms")
    simulate(folder, **SIMULATED["smoke"], seed=0, progress=False)
    return folder


@pytest.fixture(scope="module")
def radar(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The middle of every real event, all of its frames, chunked and compressed as the real file is."""
    folder = tmp_path_factory.mktemp("radar")
    found = data.read_catalogue(real_data / "radar_sevir_layout", max_pct_missing=1.0)
    middle = slice((384 - SIDE) // 2, (384 + SIDE) // 2)
    events = {event.id: data.read_event(event)[:, middle, middle] for event in found}
    days = [str(event.time.date()) for event in found]
    sevir.write_sevir(folder, events, days=days, step=2, compression=1)
    with h5py.File(folder / sevir.FILE_NAME) as file:
        assert file["vil"].shape == (16, SIDE, SIDE, 36) and file["vil"].chunks
    return folder


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rain in a corner of the frames only: most windows of a batch of one are dry, and that is legal."""
    folder = tmp_path_factory.mktemp("sparse")
    events = {}
    for name, frames in sevir.storms(10, n_frames=12, height=30, width=30).items():
        events[name] = np.zeros((12, SIDE, SIDE), np.uint8)
        events[name][:, 20:50, 30:60] = frames
    sevir.write_sevir(folder, events)
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_a_run_on_mostly_dry_windows_raises_nothing(sparse: Path, seed: int, tmp_path: Path) -> None:
    """Layers that see only zeros have no gradient, and a wet window has a hundred times the loss of a dry one."""
    config = Config.for_profile(
        "smoke", seed=seed, backbone_weights="random", batch_size=1, crop=32, base_channels=4, depth=2, eval_windows=1
    )
    run = open_run(task := NowcastTask(config, sparse), tmp_path, "sparse")
    fit(task, run)
    assert read_guards(run) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("source", ["simulated", "radar"])
def test_a_healthy_run_raises_nothing(
    source: str, seed: int, real_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The smoke profile with real pretrained features; long enough for the loss balance to be judged."""
    weights = str(real_data / "weights/squeezenet1_1_caffe_features.pth")
    settings: dict[str, Any] = {"seed": seed, "backbone_weights": weights, "eval_windows": 1, "windows_per_epoch": 64}
    task = NowcastTask(Config.for_profile("smoke", **settings), request.getfixturevalue(source))
    run = open_run(task, tmp_path, "healthy")
    fitted = fit(task, run)
    assert fitted.epochs == task.config.epochs == 2
    assert history.read_rows(run.history_file)[-1]["step"] >= 16 > 15  # probes of the loss balance
    assert run.guards_file.exists()
    assert [found for found in read_guards(run) if found["severity"] != "info"] == []
