"""What the command line asks of this stage."""

from __future__ import annotations

from pathlib import Path

from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.stages.sar_grounding.balance import measure_balance
from nbhelpers.stages.sar_grounding.config import SIMULATED, Config
from nbhelpers.stages.sar_grounding.opt_v3_files import ForecastOptions
from nbhelpers.stages.sar_grounding.predict import FORECASTS, predict_folder, write_forecasts
from nbhelpers.stages.sar_grounding.simulate import simulate as simulate_scenes
from nbhelpers.stages.sar_grounding.task import GroundingTask as Task

__all__ = [
    "FORECASTS",
    "Config",
    "ForecastOptions",
    "Task",
    "advice",
    "predict_folder",
    "simulate",
    "write_forecasts",
]


def simulate(data_dir: Path, *, profile: str, seed: int) -> Path:
    """Write simulated scenes of the profile's size as tiles; returns the folder."""
    much = SIMULATED[profile]
    return simulate_scenes(data_dir, n_scenes=much["n_scenes"], size=much["size"], seed=seed)


def advice(task: Task) -> list[str]:
    """Terms whose weights mean nothing, or everything, on the first training batch."""
    if task.config.model == "terramind-tokens":
        return []  # its loss has one term
    said = []
    for row in measure_balance(task)(task.config):
        if INERT_SHARE <= row.grad_share <= DROWNING_SHARE:
            continue
        what = "inert" if row.grad_share < INERT_SHARE else "all there is"
        said.append(
            f"{row.term}_weight {row.weight:g} gives its term {row.grad_share:.3%} of the gradient: it is {what}."
        )
    return said
