"""Small but real runs of the rainfall stage: a tiny model on tiny days, and what guards said of a run."""

from __future__ import annotations

import dataclasses
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from nbhelpers.stages.rainfall_cvae.batches import Batch
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.folder import write_days
from nbhelpers.stages.rainfall_cvae.simulate import Settings, simulate, simulated_days
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.stages.rainfall_cvae.terrain import terrain
from nbhelpers.stages.rainfall_cvae.weather import CHANNELS, UNITS
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run

TINY: dict[str, Any] = {
    "base_filters": 4,
    "d_y": 8,
    "d_z": 2,
    "dropout": 0.0,
    "members": 4,
    "batch_size": 8,
    "eval_days": 8,
    "test_days": 12,
    "epochs": 2,
    "warmup_epochs": 1,
}
TAIL_MAE: dict[str, Any] = {"likelihood": "tail_mae", "beta_kl": 0.01}


def simulated(folder: Path, **changes: Any) -> Path:
    """Three years of 16 x 16 pixels, a year in each split, with their truth."""
    return simulate(folder, **{"n_years": 3, "seed": 0, "factor": 4, "coarse": (4, 4), "progress": False, **changes})


def some_days(folder: Path, *, n: tuple[int, int, int] = (96, 48, 48), seed: int = 0, **settings: Any) -> Path:
    """The first days of a simulation as if they were of three years: training, validation and test; without truth."""
    whole = Settings(**{"n_years": 1, "seed": seed, "factor": 4, "coarse": (4, 4), "first_year": 1991, **settings})
    dates = [date(2001 + year, 1, 1) + timedelta(day) for year, count in enumerate(n) for day in range(count)]
    days = [(when, x, y) for when, (_, x, y) in zip(dates, simulated_days(whole), strict=False)]
    land = terrain(seed=seed, factor=whole.factor, coarse=whole.coarse)
    return write_days(
        folder,
        days,
        statics=land.statics,
        channels=CHANNELS,
        x_units=UNITS,
        name="some days",
        source="made for a test",
        simulated=True,
        pixel_km=land.fine.cell_km,
    )


def task_on(folder: Path, kind: type[RainfallTask] = RainfallTask, **changes: Any) -> RainfallTask:
    return kind(Config.for_profile("smoke", **(TINY | changes)), folder)


def flags(**changes: Any) -> list[str]:
    """Settings of a tiny run as the command line takes them."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | changes).items()]


def batch_of(task: RainfallTask, split: str = "train") -> Batch:
    return next(iter(task.batches(split, 0)))


def days_of(task: RainfallTask, *days: int) -> Batch:
    """A batch of these days."""
    x = torch.stack([torch.from_numpy(task.days.x(day)) for day in days])
    y = torch.stack([torch.from_numpy(task.days.y(day)) for day in days])
    return Batch(x, y, torch.ones(len(days)), days, (0,) * len(days))


def trained(task: RainfallTask, folder: Path, name: str = "run") -> Run:
    """A run to its end."""
    run = open_run(task, folder, name)
    fit(task, run)
    return run


def findings(run: Run) -> list[dict[str, Any]]:
    """What guards.json says, each finding with a number in its evidence."""
    found = read_guards(run)
    for finding in found:
        assert finding["message"] and finding["cure"].endswith(".") and re.search(r"\d", finding["evidence"])
    return found


def said(task: RainfallTask, folder: Path) -> list[dict[str, Any]]:
    """Train to the end; what the guards say on the way."""
    return findings(trained(task, folder))


def stopped(task: RainfallTask, folder: Path, name: str, *, by: int = 0, exit_code: int = 3) -> dict[str, Any]:
    """Train until ``name`` stops the run, at step ``by`` at the latest and before any other guard has spoken."""
    run = open_run(task, folder, "run")
    with pytest.raises(GuardStop) as stop:
        fit(task, run)
    (found,) = findings(run)
    assert found == dataclasses.asdict(stop.value.finding)
    assert (found["name"], found["severity"], stop.value.exit_code) == (name, "stop", exit_code), found
    assert found["step"] <= by
    return found
