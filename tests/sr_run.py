"""Small but real runs of super-resolution: simulated landscapes, a tiny generator, and what guards said of a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.stages.super_resolution.patch import DEFAULT_BANDS, FOLDER, band_file, write_patch
from nbhelpers.stages.super_resolution.simulate import simulate
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run

SMALL: dict[str, Any] = {
    "features": 8,
    "growth": 4,
    "num_rrfdb": 0,
    "discriminator_features": 4,
    "backbone_weights": "random",
    "crop": 32,
    "crops_per_epoch": 16,
    "batch_size": 2,
    "eval_patches": 2,
    "stage1_epochs": 1,
    "stage2_epochs": 0,
    "bicubic_by": 99,  # a handful of steps is judged by nothing but the guards
}
Pixels = NDArray[Any]


def landscapes(folder: Path, *, n_places: int = 6, patches_per_place: int = 1, **options: Any) -> Path:
    """Simulated patches of 120 x 120 pixels."""
    return simulate(folder, n_places=n_places, patches_per_place=patches_per_place, progress=False, **options)


def task_on(folder: Path, kind: type[SuperResolutionTask] = SuperResolutionTask, **changes: Any) -> SuperResolutionTask:
    return kind(Config.for_profile("smoke", **(SMALL | changes)), folder)


def patch_folders(folder: Path) -> dict[str, Path]:
    """Folder of each patch by its id."""
    return {path.parent.name: path.parent for path in sorted((folder / FOLDER).glob("*/*/*_B02.tif"))}


def rewrite(folder: Path, change: Callable[[Pixels], Pixels]) -> Path:
    """Every patch changed, ``(C, H, W)`` digital numbers at a time, in files of the same names and places."""
    for name, patch in patch_folders(folder).items():
        layers = []
        for band in DEFAULT_BANDS:
            with rasterio.open(band_file(patch, name, band)) as file:
                layers.append(file.read(1))
                where = {"crs": file.crs, "transform": file.transform}
        changed = change(np.stack(layers))
        write_patch(patch.parent, name, dict(zip(DEFAULT_BANDS, changed, strict=True)), **where)
    return folder


def truncate(patch: Path, band: str = "B04") -> Path:
    """Cut the end off a band of a patch."""
    path = band_file(patch, patch.name, band)
    path.write_bytes(path.read_bytes()[:-6000])
    return path


def findings(run: Run) -> list[dict[str, Any]]:
    """What guards.json says, each finding with a number in its evidence."""
    found = read_guards(run)
    for finding in found:
        assert finding["message"] and finding["cure"].endswith(".") and re.search(r"\d", finding["evidence"])
    return found


def said(task: SuperResolutionTask, folder: Path) -> list[dict[str, Any]]:
    """Train to the end; what the guards say on the way."""
    run = open_run(task, folder, "run")
    fit(task, run)
    return findings(run)


def stopped(task: SuperResolutionTask, folder: Path, name: str, *, by: int = 0, exit_code: int = 3) -> dict[str, Any]:
    """Train until ``name`` stops the run, at step ``by`` at the latest and before any other guard has spoken."""
    run = open_run(task, folder, "run")
    with pytest.raises(GuardStop) as stop:
        fit(task, run)
    (found,) = findings(run)
    assert found == dataclasses.asdict(stop.value.finding)
    assert (found["name"], found["severity"], stop.value.exit_code) == (name, "stop", exit_code), found
    assert found["step"] <= by
    return found
