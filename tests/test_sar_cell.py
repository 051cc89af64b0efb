"""The cell that grounds tiles of one's own, on a run that was saved and not trained."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from sar_run import SMALL, write_new
from sar_tiles import make_tile

from nbhelpers.stages.sar_grounding.compact import Compact
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.stages.sar_grounding.predict import predict_folder
from nbhelpers.training import checkpoint
from nbhelpers.training.run import Run, architecture_hash, write_json

CELL = Path(__file__).resolve().parents[1] / "colab_cells" / "ground_tiles.py"
CONFIG = Config.for_profile("smoke", **SMALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with one run, `runs/tiny`, that changes its input, and a later one of another stage."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    generator = Compact(
        sar_mean=(-11, -17), sar_std=(3, 3), optical_mean=(0.04, 0.07, 0.06, 0.3), optical_std=(0.02,) * 3 + (0.06,),
        residual_std=(0.01,) * 4, **{name: getattr(CONFIG, name) for name in ("timesteps", "noise", "fine", "coarse")},
    )  # fmt: skip
    torch.nn.init.normal_(generator.denoiser.head.weight, std=0.1)
    modules = {"generator": generator}
    record = {
        "stage": "sar-grounding",
        "config": json.loads(json.dumps(dataclasses.asdict(CONFIG))),
        "data": {"source": str(home / "no data here")},
        "hashes": {"architecture": architecture_hash(modules)},
    }
    for name, stage in (("tiny", "sar-grounding"), ("other", "perceptual-unet")):
        run = Run(home / "runs" / name)
        run.folder.mkdir(parents=True)
        write_json(run.config_file, record | {"stage": stage})
        checkpoint.save(run, step=7, modules=modules, state={}, best=True)
    return home


@pytest.fixture(scope="module")
def mine(home: Path) -> Path:
    """Two tiles: one in reflectance, one in digital numbers, of another shape and with a gap."""
    one, other = make_tile(1, size=64), make_tile(2, size=80)
    assert one.opt_v2 is not None and other.opt_v2 is not None
    write_new(home / "mine/field.npz", one.s1, one.opt_v2)
    numbers = np.round(other.opt_v2[:, :56] * 1e4 + 1000)
    numbers[:, :, :7] = 0
    write_new(home / "mine/town.npz", other.s1[:, :56], numbers, s2_units="dn", s2_offset=-1000)
    return home / "mine"


def paste(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the cell with these variables in a new interpreter; its figure lands in ``figure.png``."""
    text = CELL.read_text(encoding="utf-8")
    for name, value in variables.items():
        text, n = re.subn(rf'^{name} = "\w*"', lambda _, n=name, v=value: f"{n} = {v!r}", text, flags=re.MULTILINE)
        assert n == 1
    text = text.replace("plt.show()", 'plt.savefig("figure.png")')
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COLAB", "KAGGLE", "NBHELPERS"))}
    places = {"PYTHONPATH": str(CELL.parents[1]), "MPLBACKEND": "Agg", "NBHELPERS_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", text], cwd=home, env={**kept, **places}, capture_output=True, text=True
    )  # fmt: skip


@pytest.mark.timeout(180)
def test_the_cell_grounds_tiles_of_ones_own(home: Path, mine: Path, tmp_path: Path) -> None:
    run = Run(home / "runs" / "tiny")
    result = paste(home, RUN_FOLDER=str(run.folder), TILES=str(mine), OUT=str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    found = checkpoint.find(run, "best")
    assert found is not None and found.sha256[:12] in result.stdout and "SIMULATED" not in result.stdout
    assert "2 tile(s)" in result.stdout and "estimated from the SAR image, not measured" in result.stdout
    expected = predict_folder(run, mine, tmp_path / "expected")
    assert [path.name for path in expected] == ["field.npz", "town.npz"]
    for path in expected:
        with np.load(path) as theirs, np.load(tmp_path / "out" / path.name) as ours, np.load(mine / path.name) as given:
            np.testing.assert_allclose(ours["opt_v3"], theirs["opt_v3"], atol=1e-6)
            assert path.stem != "town" or np.array_equal(np.isnan(ours["opt_v3"]), given["opt_v2"] == 0)
            assert path.stem != "field" or np.abs(ours["opt_v3"] - given["opt_v2"]).mean() > 1e-4, "it did something"
    assert (home / "figure.png").stat().st_size > 10_000
    again = paste(home, RUN_FOLDER=str(run.folder), TILES=str(mine), OUT=str(tmp_path / "out"))
    assert again.returncode != 0 and "exists already: delete it, or name a new folder" in again.stderr


@pytest.mark.timeout(180)
def test_without_tiles_the_cell_simulates_one_and_takes_the_latest_run(home: Path) -> None:
    result = paste(home, FORMAT="geotiff")
    assert result.returncode == 0, result.stderr
    assert f"Run: {home / 'runs/tiny'}" in result.stdout, "the other run is later, but of another stage"
    assert "this is a SIMULATED tile" in result.stdout
    (about,) = home.rglob("simulated.json")
    declared = json.loads(about.read_text())
    with rasterio.open(next(home.rglob("simulated_tile_opt_v3/simulated.tif"))) as file:
        assert file.crs == rasterio.CRS.from_user_input(declared["crs"]) and file.shape == (160, 160)
        assert list(file.transform)[:6] == declared["transform"] and file.tags()["UNITS"] == "reflectance"
        assert np.isfinite(file.read()).all()
    assert (home / "figure.png").stat().st_size > 10_000


@pytest.mark.timeout(180)
def test_without_a_run_the_cell_says_what_to_do(tmp_path: Path) -> None:
    result = paste(tmp_path)
    assert result.returncode != 0 and "There is no trained SAR-grounding run in" in result.stderr
    assert "set RUN_FOLDER" in result.stderr and not (tmp_path / "figure.png").exists()


def test_without_nbhelpers_the_cell_names_the_setup_cell(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-I", "-S", str(CELL)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0 and "run the setup cell" in result.stderr


def test_the_table_of_cells_names_it() -> None:
    assert f"| `{CELL.name}` |" in (CELL.parent / "README.md").read_text(encoding="utf-8")
