"""What the command line asks of this stage."""

from __future__ import annotations

from pathlib import Path

from nbhelpers.core.runtime import pick_device
from nbhelpers.stages.neural_operator.config import Config, simulated
from nbhelpers.stages.neural_operator.forecast_file import FORECASTS, write_forecasts
from nbhelpers.stages.neural_operator.simulate import simulate as simulate_flows
from nbhelpers.stages.neural_operator.task import OperatorTask as Task

__all__ = ["FORECASTS", "Config", "Task", "advice", "simulate", "write_forecasts"]


def simulate(data_dir: Path, *, profile: str, seed: int, kind: str = "decaying") -> Path:
    """Write simulated turbulence of the profile's size in the layout of the public sets; returns the folder.

    Raises:
        UserError: an unknown ``kind`` of flow, or what the simulator says.
    """
    return simulate_flows(data_dir, **simulated(profile, kind=kind), seed=seed, device=pick_device())


def advice(task: Task) -> list[str]:
    """What only a look at the data shows: the profiles are made for flows in which nothing depends on the place."""
    if task.config.coordinates or task.config.model == "unet" or task.collection.facts.name == "decaying":
        return []
    return [
        f"coordinates is off, so the model cannot know where a force acts or a wall stands in {task.collection.root}: "
        "switch it on (--coordinates) unless all places are alike there."
    ]
