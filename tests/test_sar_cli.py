"""SAR grounding on the command line: simulate, prepare, train, evaluate, predict, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from sar_run import SMALL, flags, scenes, write_new
from sar_tiles import make_tile, redeclare, rewrite, tile_file
from test_fit import assert_equal_runs
from test_sar_prepare import write_pairs

from nbhelpers import cli
from nbhelpers.stages.sar_grounding import commands
from nbhelpers.stages.sar_grounding.task import GroundingTask
from nbhelpers.stages.sar_grounding.tiles import open_tiles
from nbhelpers.training import checkpoint
from nbhelpers.training.run import Run

SMOKE = ["--profile=smoke", *flags(**SMALL)]
WITHOUT_EPOCHS = [word for word in SMOKE if not word.startswith("--epochs")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "tiles")


def train(data: Path, runs: Path, name: str, *words: str) -> int:
    return cli.main(
        ["train", "sar-grounding", f"--data-dir={data}", f"--output-dir={runs}", f"--run-name={name}", *words]
    )


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs in one go."""
    runs = tmp_path_factory.mktemp("runs")
    assert train(data, runs, "whole", *SMOKE) == 0
    return runs


def test_the_flags_of_the_specification_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "sar-grounding", "--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for name in (
        "data-dir", "stage2-dir", "output-dir", "timesteps", "lora-rank", "lora-alpha", "batch-size", "grad-accum",
        "epochs", "lr", "weight-decay", "sar-weight", "cycle-weight", "identity-weight", "lpips-weight",
        "spectral-weight", "early-stop-patience", "early-stop-delta", "num-workers", "max-samples", "seed", "resume",
        "model", "tile-size", "preset", "opt-v2-source", "config", "run-name", "tracker",
    ):  # fmt: skip
        assert f"--{name} " in listed, name
    assert "--pretrained, --no-pretrained" in listed
    assert "{compact,terramind-backbone,terramind-tokens}" in listed


def test_the_defaults_are_those_of_the_specification() -> None:
    config = commands.Config.for_profile("full")
    said = {
        "stage2_dir": None, "timesteps": 10, "lora_rank": 8, "lora_alpha": 16, "pretrained": True, "batch_size": 1,
        "grad_accum": 8, "epochs": 50, "lr": 1e-4, "weight_decay": 1e-5, "sar_weight": 1, "cycle_weight": 0.5,
        "identity_weight": 0.3, "lpips_weight": 0.1, "spectral_weight": 1, "early_stop_patience": 5,
        "early_stop_delta": 1e-4, "max_samples": None, "seed": 42, "model": "compact",
    }  # fmt: skip
    assert {name: getattr(config, name) for name in said} == said


@pytest.mark.parametrize(
    ("file", "words", "expected"),
    [
        ("", ["--preset=sar_focus"], {"sar_weight": 2.0, "cycle_weight": 0.3, "identity_weight": 0.2, "epochs": 3}),
        ("", ["--preset=sar_focus", "--sar-weight=3"], {"sar_weight": 3.0, "cycle_weight": 0.3}),
        ("preset: perceptual\n", [], {"lpips_weight": 0.5, "sar_weight": 0.8, "cycle_weight": 0.05}),
        ("preset: perceptual\nsar_weight: 1.5\n", ["--lpips-weight=0.2"], {"lpips_weight": 0.2, "sar_weight": 1.5}),
        ("sar_weight: 1.5\n", ["--preset=sar_focus"], {"sar_weight": 2.0}),
        ("", ["--preset=fast", "--epochs=7"], {"epochs": 7, "early_stop_patience": 3, "early_stop_delta": 5e-4}),
        ("", ["--preset=debug"], {"epochs": 5, "max_samples": 100, "grad_accum": 2}),
    ],
)
def test_profile_then_file_then_flags_each_with_its_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, words: list[str], expected: dict[str, Any]
) -> None:
    seen: list[Any] = []

    def only_settings(config: Any, data_dir: Path) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "Task", only_settings)
    (tmp_path / "s.yaml").write_text("profile: smoke\n" + file)
    assert train(tmp_path, tmp_path, "run", f"--config={tmp_path / 's.yaml'}", *words) == 130
    assert {name: getattr(seen[0], name) for name in expected} == expected


def test_simulated_and_prepared_tiles_are_folders_that_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(commands.SIMULATED, "smoke", {"n_scenes": 3, "size": 32})
    assert cli.main(["data", "simulate", "sar-grounding", "--profile=smoke", f"--data-dir={tmp_path / 'sim'}"]) == 0
    assert str(tmp_path / "sim") in capsys.readouterr().out
    assert open_tiles(tmp_path / "sim").simulated
    folders = [f"--{name}={path}" for name, path in write_pairs(tmp_path / "pairs").items()]
    for name, words in (("tiles", ["--size=20"]), ("sar-grounding", ["--offset=-10", "--block-km=5"])):
        assert cli.main(["data", "prepare", name, *folders, f"--to={tmp_path / name}", *words]) == 0
        assert f"tiles of 4 bands in {tmp_path / name}: " in capsys.readouterr().out
    assert open_tiles(tmp_path / "tiles").size == (20, 20)
    tiles = open_tiles(tmp_path / "sar-grounding")
    assert {about.s2_offset for about in tiles.about.values()} == {-10} and tiles.opt_v2_kind == "proxy"
    assert cli.main(["data", "prepare", "tiles", *folders, f"--to={tmp_path / 'tiles'}"]) == 2
    assert "holds files already" in capsys.readouterr().err


def test_train_evaluate_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["evaluate", "sar-grounding", f"--output-dir={runs}", "--run-name=whole"]
    assert cli.main([*place, "--split=val", "--checkpoint=last"]) == 0
    assert "Verdict: " in capsys.readouterr().out
    report = json.loads((runs / "whole/report.json").read_text())
    assert report["data"]["scored_split"] == "val" and report["checkpoint"]["step"] == 4
    assert {"opt_v2", "mean", "sar_shuffled", "sar_zeroed"} <= set(report["baselines"])
    assert report["remarks"][0].startswith("The image that is refined (opt_v2) is simulated")
    assert cli.main(["report", str(runs / "whole")]) == 0
    assert capsys.readouterr().out.startswith("# sar-grounding · whole")


def test_predict_a_split_and_new_tiles(
    data: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["predict", "sar-grounding", f"--output-dir={runs}", "--run-name=whole"]
    assert cli.main(place) == 0
    assert f"4 forecasts of the test split: {runs / 'whole/opt_v3'}" in capsys.readouterr().out
    tile = make_tile(1, size=100)
    corner = [10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0]
    write_new(tmp_path / "new/mine.npz", tile.s1[:, :70], tile.opt_v2[:, :70], crs="EPSG:32633", transform=corner)
    words = [f"--input-dir={tmp_path / 'new'}", f"--to={tmp_path / 'out'}", "--format=geotiff", "--window=64"]
    assert cli.main([*place, *words, "--overlap=32"]) == 0
    assert f"1 images: {tmp_path / 'out'}" in capsys.readouterr().out
    with rasterio.open(tmp_path / "out/mine.tif") as file:
        assert file.shape == (70, 100) and file.crs.to_epsg() == 32633 and list(file.transform)[:6] == corner
        assert np.isfinite(file.read()).all() and file.tags()["RUN"] == "whole"


def test_what_was_refined_is_refined_again_by_a_next_run(
    data: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["predict", "sar-grounding", f"--output-dir={runs}", "--run-name=whole", "--split=all"]
    assert cli.main([*place, "--format=opt-v2", f"--to={tmp_path / 'next'}"]) == 0
    assert "16 forecasts of all splits" in capsys.readouterr().out
    words = [*WITHOUT_EPOCHS, "--epochs=1", f"--stage2-dir={tmp_path / 'next'}"]
    assert train(data, tmp_path, "second", *words) == 0
    report = json.loads((tmp_path / "second/report.json").read_text())
    assert report["remarks"][0] == f"The image that is refined (opt_v2) is stage2: {tmp_path / 'next'}."


class Cut(Exception):
    """The process is gone: nothing is saved any more."""


REHEARSED = 1  # forward passes before the first step


def test_a_run_that_was_killed_ends_as_one_in_one_go(
    data: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had one step of its second epoch behind it."""
    steps, original = {"taken": 0}, GroundingTask.updates

    def dies(self: GroundingTask, batch: Any, phase: Any) -> Iterator[Any]:
        steps["taken"] += 1
        if steps["taken"] == REHEARSED + 4:
            raise Cut
        yield from original(self, batch, phase)

    with monkeypatch.context() as patched:
        patched.setattr(GroundingTask, "updates", dies)
        with pytest.raises(Cut):
            train(data, tmp_path, "killed", *SMOKE)
    last = checkpoint.find(Run(tmp_path / "killed"), "last")
    assert last is not None and last.step == 2
    assert train(data, tmp_path, "killed", *SMOKE) == 0
    assert_equal_runs(Run(tmp_path / "killed"), Run(runs / "whole"))


def said(capfd: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nbhelpers: ")]
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--timesteps=0"], "timesteps is 0"),
        (["--tile-size=100"], "tile_size is 100, expected a multiple of 32"),
        (["--model=terramind-tokens"], "train --model terramind-backbone, which takes 4"),
        (["--stage2-dir=nowhere"], "--stage2-dir nowhere is not a folder"),
        (["--opt-v2-source=stage2"], "no --stage2-dir is given"),
        (["--opt-v2-source=proxy", "--stage2-dir=."], "leave one of the two out"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--resume=nowhere"], "nowhere"),
        (["--model=terramind-backbone", "--no-use-sar"], "use_sar is off"),
        (["--data-dir=nowhere"], "nowhere does not exist"),
    ],
)
def test_settings_that_are_refused(
    data: Path, tmp_path: Path, words: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path, "run", *SMOKE, *words) == 2
    assert expected in said(capfd) and not (tmp_path / "run").exists()


def test_tiles_that_are_not_what_they_say_are_refused(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from shutil import copytree

    own = copytree(data, tmp_path / "own")
    name = open_tiles(data).split["train"][0]
    redeclare(tile_file(own, name), s2_units="dn")
    assert train(own, tmp_path, "run", *SMOKE) == 2
    assert f"{name}.npz declares digital numbers" in said(capfd)
    redeclare(tile_file(own, name), s2_units="reflectance")
    rewrite(tile_file(own, name), s1_vh=None)
    assert train(own, tmp_path, "run", *SMOKE) == 2
    assert f"{name}.npz lacks s1_vh" in said(capfd)
    (copytree(data, tmp_path / "less") / f"stage2_outputs/{name}.npz").unlink()
    assert train(tmp_path / "less", tmp_path, "run", *SMOKE) == 2
    assert f"{name}.npz is not there: make it again, nothing takes its place" in said(capfd)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--window=100"], "window is 100 pixels, expected a multiple of 32"),
        (["--split=val", "--window=64", "--overlap=32"], "are for --input-dir"),
        (["--input-dir=nowhere"], "--input-dir nowhere is not a folder"),
        (["--input-dir=nowhere", "--split=val"], "--split and --input-dir are given"),
        (["--scene", "scene.tif"], "sar-grounding has no scenes to predict"),
        (["--checkpoint=pixel_best"], "has no checkpoint 'pixel_best': choose one of best, last"),
    ],
)
def test_predictions_that_are_refused(
    runs: Path, tmp_path: Path, words: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place = ["predict", "sar-grounding", f"--output-dir={runs}", "--run-name=whole", f"--to={tmp_path / 'out'}"]
    assert cli.main([*place, *words]) == 2
    assert expected in said(capfd) and not (tmp_path / "out").exists()


def test_only_stages_with_tiles_take_folders_of_them(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "perceptual-unet", "--run-name=none", "--input-dir=new"]) == 2
    assert "perceptual-unet has no folders of tiles to predict: leave --input-dir out." in said(capfd)
