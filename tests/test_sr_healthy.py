"""Healthy runs of super-resolution: no guard says a word, and the report shows what was learnt beside the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentinel

from nbhelpers.stages.super_resolution.config import SIMULATED, Config
from nbhelpers.stages.super_resolution.simulate import simulate
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.history import read_rows
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"simulated": simulate(tmp_path_factory.mktemp("land"), **SIMULATED["smoke"], progress=False)}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("source", ["simulated", "real"])
def test_a_healthy_run_raises_nothing_and_learns(
    source: str,
    seed: int,
    folders: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    """The smoke profile as it is, but for the weights of the networks that judge."""
    settings: dict[str, Any] = {"seed": seed, "backbone_weights": "random"}
    if source == "real":
        real_data: Path = request.getfixturevalue("real_data")
        settings["backbone_weights"] = str(real_data / "weights/squeezenet1_1_caffe_features.pth")
        if source not in folders:
            folders[source] = sentinel.real_places(real_data, tmp_path_factory.mktemp("real"))
    task = SuperResolutionTask(Config.for_profile("smoke", **settings), folders[source])
    run = open_run(task, tmp_path, "healthy")
    fitted = fit(task, run)
    assert fitted.epochs == task.config.stage1_epochs + task.config.stage2_epochs and not fitted.interrupted
    assert [found for found in read_guards(run) if found["severity"] != "info"] == []

    rows = read_rows(run.history_file)
    first = [row for row in rows if row["phase"] == "pixel"]
    # (The loss of random crops may rise from one short epoch to the next by more than is learnt in it.)
    assert first[-1]["val_psnr"] >= first[0]["val_psnr"] - 0.01
    projected = task.evaluate("val", task.nulls["bicubic_projected"]).metrics["psnr"].value
    assert max(row["val_psnr"] for row in first) >= projected - 0.05
    assert all(row["val_consistency"] < 10 for row in rows)

    if seed:
        return
    report = make_report(task, run)
    assert report["checkpoint"]["name"] == "average"
    gates = {gate["name"]: gate["passed"] for gate in report["gates"]}
    for words in ("1 dB above bicubic", "above bicubic + projection", "lower than that of pixel_best", "has a say"):
        assert words in " | ".join(gates)
    assert gates["the output degrades to its input"] and report["metrics"]["consistency"]["value"] < 10
    assert gates["the perceptual term has a say"] and gates["the adversarial term has a say"]
    assert set(report["baselines"]) == {
        "bicubic",
        "lanczos",
        "linear",
        "linear_projected",
        "bicubic_projected",
        "pixel_best",
    }
    assert report["verdict"]["name"] != "unstable training"
