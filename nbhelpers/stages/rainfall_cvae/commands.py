"""What the command line asks of this stage."""

from __future__ import annotations

from pathlib import Path

from nbhelpers.stages.rainfall_cvae.config import SIMULATED, Config
from nbhelpers.stages.rainfall_cvae.simulate import simulate as simulate_weather
from nbhelpers.stages.rainfall_cvae.synth import FORECASTS, write_forecasts
from nbhelpers.stages.rainfall_cvae.synthesis import Synthesis as ForecastOptions
from nbhelpers.stages.rainfall_cvae.task import RainfallTask as Task

PREDICTED_SPLIT = "train"  # what is drawn is there to be trained on

__all__ = [
    "FORECASTS",
    "PREDICTED_SPLIT",
    "Config",
    "ForecastOptions",
    "Task",
    "advice",
    "simulate",
    "write_forecasts",
]


def simulate(data_dir: Path, *, profile: str, seed: int) -> Path:
    """Write simulated weather of the profile's size as day files; returns the folder."""
    return simulate_weather(data_dir, seed=seed, **SIMULATED[profile])


def advice(task: Task) -> list[str]:
    """Nothing beyond the task's remarks, which notebooks print as well."""
    return []
