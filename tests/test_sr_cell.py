"""The cell that super-resolves a GeoTIFF, and the predictions behind it, on a run that was saved and not trained."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import sentinel
import torch
from torch import nn

from nbhelpers.cli import main
from nbhelpers.core.errors import UserError
from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.stages.super_resolution.discriminator import Discriminator
from nbhelpers.stages.super_resolution.generator import Generator
from nbhelpers.stages.super_resolution.geotiff import read_scene
from nbhelpers.stages.super_resolution.predict import load_trained, predict_scenes, super_resolve, write_forecasts
from nbhelpers.stages.super_resolution.simulate import write_scene as simulate_scene
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training import checkpoint
from nbhelpers.training.run import Run, architecture_hash, write_json

CELL = Path(__file__).resolve().parents[1] / "colab_cells" / "super_resolve_geotiff.py"
CONFIG = Config.for_profile("smoke", features=8, growth=4, discriminator_features=8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with one run, `runs/tiny`, whose weights are those at the start of training."""
    home = tmp_path_factory.mktemp("home")
    run = Run(home / "runs" / "tiny")
    run.folder.mkdir(parents=True)
    torch.manual_seed(0)
    degradation = Degradation(CONFIG.scale, CONFIG.mtf_by_band)
    sizes = {name: getattr(CONFIG, name) for name in ("scale", "features", "growth", "num_rrdb", "num_rrfdb")}
    modules: dict[str, nn.Module] = {
        "generator": Generator(4, degradation=degradation, **sizes),
        "discriminator": Discriminator(4, CONFIG.discriminator_features, CONFIG.discriminator),
    }
    record = {
        "stage": "super-resolution",
        "config": json.loads(json.dumps(dataclasses.asdict(CONFIG))),
        "data": {"source": str(home / "no data here")},
        "hashes": {"architecture": architecture_hash(modules)},
    }
    write_json(run.config_file, record)
    checkpoint.save(run, step=7, modules=modules, state={}, best=True)
    return home


@pytest.fixture
def run(home: Path) -> Run:
    return Run(home / "runs" / "tiny")


@pytest.fixture(scope="module")
def small_scene(home: Path) -> Path:
    return simulate_scene(home / "scene.tif", size=(40, 56))


def paste(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the cell with these variables in a new interpreter; its figure lands in ``figure.png``."""
    text = CELL.read_text(encoding="utf-8")
    for name, value in variables.items():
        line = f'{name} = ""'
        assert line in text
        text = text.replace(line, f"{name} = {value!r}", 1)
    text = text.replace("plt.show()", 'plt.savefig("figure.png")')
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COLAB", "KAGGLE", "NBHELPERS"))}
    places = {"PYTHONPATH": str(CELL.parents[1]), "MPLBACKEND": "Agg"}
    return subprocess.run(
        [sys.executable, "-c", text], cwd=home, env={**kept, **places}, capture_output=True, text=True
    )  # fmt: skip


@pytest.mark.timeout(180)
def test_the_cell_enlarges_a_scene(home: Path, run: Run, small_scene: Path) -> None:
    result = paste(home, RUN_FOLDER=str(run.folder), SCENE=str(small_scene), OUT=str(home / "fine.tif"))
    assert result.returncode == 0, result.stderr
    found = checkpoint.find(run, "best")
    assert found is not None and found.sha256[:12] in result.stdout
    assert "It degrades to its input up to" in result.stdout and "estimated, not measured" in result.stdout
    with rasterio.open(small_scene) as before, rasterio.open(home / "fine.tif") as after:
        assert after.shape == (160, 224) and after.crs == before.crs and after.bounds == before.bounds
        assert after.tags()["CHECKPOINT_SHA256"] == found.sha256 and after.tags()["UNITS"] == "reflectance"
        assert "trained from 40 m to 10 m; its use on pixels of 10 m assumes" in after.tags()["REMARK"]
        assert after.descriptions == CONFIG.bands
    assert (home / "figure.png").stat().st_size > 10_000


@pytest.mark.timeout(180)
def test_without_a_run_the_cell_says_what_to_give(home: Path, tmp_path: Path) -> None:
    result = paste(tmp_path)
    assert result.returncode != 0 and "There is no trained super-resolution run in" in result.stderr
    assert "set RUN_FOLDER" in result.stderr and not (tmp_path / "figure.png").exists()


def test_without_nbhelpers_the_cell_names_the_setup_cell(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-I", "-S", str(CELL)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0 and "run the setup cell" in result.stderr


def test_the_command_writes_what_the_call_makes(run: Run, small_scene: Path, tmp_path: Path) -> None:
    ((path, said),) = predict_scenes(run, [small_scene], tmp_path / "out", which="best")
    assert path.name == "scene_x4.tif" and said.residual < 1e-3
    trained = load_trained(run)
    image, _ = super_resolve(trained, read_scene(small_scene, CONFIG.bands), progress=False)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), image.numpy())
    # Where the run is: the data that it was trained on are gone, and nothing asks for them.
    (tmp_path / "a").mkdir()
    shutil.copy(small_scene, tmp_path / "a/scene.tif")
    with pytest.raises(UserError, match="two of the scenes would be written to scene_x4.tif"):
        list(predict_scenes(run, [small_scene, tmp_path / "a/scene.tif"], tmp_path / "out"))


def test_the_offset_is_that_of_the_scene_and_not_of_the_training_data(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Run(tmp_path / "runs" / "shifted")
    shutil.copytree(run.folder, other.folder)
    record = run.read_config()
    write_json(other.config_file, {**record, "config": {**record["config"], "offset": -1000}})
    plain = simulate_scene(tmp_path / "plain.tif", size=(24, 24))
    with rasterio.open(plain) as file:
        pixels, profile = file.read(), file.profile
    with rasterio.open(tmp_path / "raised.tif", "w", **profile) as file:
        file.write(pixels + np.uint16(1000))

    def predicted(scene: str, *words: str) -> tuple[np.ndarray, str]:
        place = ["--output-dir", str(tmp_path / "runs"), "--run-name", "shifted", "--to", str(tmp_path / "out")]
        assert main(["predict", "super-resolution", *place, "--scene", str(tmp_path / scene), *words]) == 0
        with rasterio.open(tmp_path / "out" / scene.replace(".", "_x4.")) as file:
            return file.read(), capsys.readouterr().out

    expected, said = predicted("plain.tif")
    assert "(DN +0)" in said and "WARNING" not in said
    found, said = predicted("raised.tif", "--offset", "-1000")
    assert "(DN -1000)" in said and "WARNING" not in said
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "WARNING: 99 % of B02 are brighter than" in predicted("raised.tif")[1]
    place = ["--output-dir", str(tmp_path / "runs"), "--run-name", "shifted"]
    assert main(["predict", "super-resolution", *place, "--offset", "-1000"]) == 2
    assert "--offset is for scenes" in capsys.readouterr().err


def test_only_stages_with_scenes_take_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--output-dir", str(tmp_path), "--run-name", "none", "--scene", "scene.tif"]
    assert main(["predict", "perceptual-unet", *asked]) == 2
    assert "perceptual-unet has no scenes to predict: leave --scene out." in capsys.readouterr().err


def test_the_patches_of_a_split(tmp_path: Path) -> None:
    data = tmp_path / "data"
    sentinel.write_v2(data, {"33UUP": 1, "29UPU": 1, "35VPK": 1, "31UFT": 1})
    task = SuperResolutionTask(CONFIG.replace({"backbone_weights": "random"}, source="test"), data)
    folder = tmp_path / "new" / "out"
    ids = {patch.id for patch in task.split.patches["test"]}
    assert write_forecasts(task, folder, split="test", checkpoint="c0ffee") == len(ids) > 0
    assert {file.stem for file in folder.iterdir()} == ids and [one.name for one in folder.parent.iterdir()] == ["out"]
    patch = task.split.patches["test"][0]
    with rasterio.open(folder / f"{patch.id}.tif") as file:
        image, (crs, transform) = file.read(), task.patches.georeference(patch.index)
        assert file.crs == rasterio.CRS.from_user_input(crs) and tuple(file.transform)[:6] == tuple(transform)
        assert file.tags()["CHECKPOINT_SHA256"] == "c0ffee" and "assumes" not in file.tags()["REMARK"]
    truth = torch.from_numpy(task.reader[patch.index]) / 1e4
    low = task.degradation.degrade(truth)
    assert image.shape == truth.shape
    assert float((task.degradation.degrade(torch.from_numpy(image)) - low).abs().max()) < 1e-5
    assert not np.allclose(image, truth.numpy(), atol=1e-3), "it was made from the input, not copied from the truth"
    with pytest.raises(UserError, match="exists already"):
        write_forecasts(task, folder, split="test", checkpoint="c0ffee")
    with pytest.raises(UserError, match="'tests' is unknown: choose one of train, val, test, all"):
        write_forecasts(task, tmp_path / "other", split="tests", checkpoint="c0ffee")


def test_runs_that_cannot_be_used(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    shutil.copytree(run.folder, other.folder)
    with pytest.raises(UserError, match="has no checkpoint 'pixel_best': choose one of best, last"):
        load_trained(other, "pixel_best")
    record = run.read_config()
    write_json(other.config_file, {**record, "stage": "perceptual-unet"})
    with pytest.raises(UserError, match="run of stage 'perceptual-unet', not 'super-resolution'"):
        load_trained(other)
    percentile = {**record, "config": {**record["config"], "scaling": "percentile"}}
    write_json(other.config_file, percentile)
    with pytest.raises(UserError, match="no data.units"):
        load_trained(other)
    units = {"low": [0.01, 0.02, 0.03, 0.04], "high": [0.3, 0.3, 0.3, 0.5]}
    write_json(other.config_file, {**percentile, "data": {**record["data"], "units": units}})
    assert load_trained(other).units.high == (0.3, 0.3, 0.3, 0.5)
