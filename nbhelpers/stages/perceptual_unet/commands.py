"""What the command line asks of this stage."""

from __future__ import annotations

from pathlib import Path

from nbhelpers.stages.perceptual_unet.config import SIMULATED, Config
from nbhelpers.stages.perceptual_unet.forecast_file import write_forecasts
from nbhelpers.stages.perceptual_unet.simulate import simulate as simulate_storms
from nbhelpers.stages.perceptual_unet.task import NowcastTask as Task

__all__ = ["Config", "Task", "simulate", "write_forecasts"]


def simulate(data_dir: Path, *, profile: str, seed: int) -> Path:
    """Write simulated storms of the profile's size in SEVIR's format; returns the catalogue."""
    much = SIMULATED[profile]
    return simulate_storms(data_dir, n_events=much["n_events"], size=much["size"], n_frames=much["n_frames"], seed=seed)
