"""Run all in notebook 04 with a user's own data: a file of the FNO benchmark, and a set with obstacles."""

from __future__ import annotations

import ast
import dataclasses
import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from IPython.display import display
from turbulence import flow, published_description, vorticity, write_matlab

from nbhelpers.stages.neural_operator import config
from nbhelpers.stages.neural_operator.canonical import TRA
from nbhelpers.stages.neural_operator.layout import write_simulation

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:recMSE.*older names:FutureWarning")  # a cell shows that it is said
SOURCE = ROOT / "notebooks" / "04_neural_operator.py"


def run_all(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Every code cell in turn, as a kernel would, with ``parameters`` after the cell that is tagged so."""
    space: dict[str, Any] = {"__name__": "__main__"}
    build = runpy.run_path(str(ROOT / "notebooks" / "build.py"))["build"]  # the source with its included cells
    for cell in nbformat.reads(build(SOURCE), as_version=4).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell.id, "exec"), space)
        if isinstance(last, ast.Expr) and (shown := eval(compile(ast.Expression(last.value), cell.id, "eval"), space)):
            display(shown)
        if "parameters" in cell.metadata.get("tags", ()):
            assert set(parameters) <= set(space)
            space |= parameters
    return space


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of its own, and a profile smoke that takes seconds: a few steps of a narrow net."""
    monkeypatch.setenv("NBHELPERS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NBHELPERS_COPY_DIR", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    smoke = config.PROFILES["smoke"]
    hand_over = dataclasses.replace(smoke["scheduler"], warmup_epochs=1, min_epochs=1, transition_step=0.05)
    smaller = {"epochs": 3, "scheduler": hand_over, "windows_per_epoch": 16, "width": 6, "modes": 4, "layers": 2}
    monkeypatch.setitem(config.PROFILES, "smoke", {**smoke, **smaller})
    return tmp_path / "home"


def checked(space: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """The report of the run, which has all that a run has."""
    run = space["run"].folder
    assert run.is_relative_to(home) and (run / "figures" / "rollout.gif").stat().st_size > 1000
    assert space["task"].loss_scheduler.finished, "the hand-over is part of what is shown"
    assert space["forecasts"].is_relative_to(run) and (space["forecasts"] / "dataset.json").is_file()
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    assert set(report["baselines"]) == {"persistence", "mean", "linear"} and not report["data"]["simulated"]
    return report


@pytest.mark.timeout(120)
def test_a_matlab_file_of_the_benchmark(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = vorticity(12, n_frames=8, shape=(32, 32))
    path = write_matlab(tmp_path / "NavierStokes_V1e-5_N12_T8.mat", rows, hdf5=True)
    space = run_all({"PROFILE": "smoke", "DATA_DIR": str(path), "FIELDS": "vorticity"})
    report = checked(space, home)
    assert report["data"]["channels"] == ["vorticity"] and report["data"]["set"] == "fno"
    said = capsys.readouterr().out
    assert "STOP" not in said and "were not simulated by this solver" in said


def write_transonic(root: Path, numbers: range) -> Path:
    """Simulations as published: units, arrays ``(C, x, y)``, masks 1 in the fluid, and no dataset.json."""
    y, x = np.indices((24, 32))
    fluid = (y - 12) ** 2 + (x - 8) ** 2 >= 9
    for number in numbers:
        made = flow(number, n_frames=9, shape=fluid.shape)
        raw = {"velocity": made["velocity"], "pressure": made["pressure"][:, None]}
        fields = {}
        for name, values in raw.items():
            mean, std = (np.array(one)[:, None, None] for one in TRA.statistics[name])
            standard = (values - values.mean((0, 2, 3), keepdims=True)) / values.std((0, 2, 3), keepdims=True)
            fields[name] = ((standard * std + mean) * fluid).swapaxes(-1, -2)
        write_simulation(root, number, fields, description=published_description("tra", number, 9), obstacle=fluid.T)
    return root


@pytest.mark.timeout(120)
def test_a_published_set_with_obstacles(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_transonic(tmp_path / "tra", range(3, 12))
    space = run_all({"PROFILE": "smoke", "DATA_DIR": str(data), "FIELDS": "velocity,pressure"})
    report = checked(space, home)
    assert report["data"]["set"] == "tra" and report["data"]["shape"] == [24, 32]
    assert report["data"]["channels"] == ["velocity_x", "velocity_y", "pressure"]
    assert "STOP" not in capsys.readouterr().out
