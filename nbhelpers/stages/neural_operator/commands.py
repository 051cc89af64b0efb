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
    """Nothing to say before training: the guards and the ledger say what the weights mean."""
    return []
