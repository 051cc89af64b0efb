"""What the command line asks of this stage."""

from __future__ import annotations

from pathlib import Path

from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.stages.perceptual_unet.balance import measure_balance
from nbhelpers.stages.perceptual_unet.config import SIMULATED, Config
from nbhelpers.stages.perceptual_unet.forecast_file import FORECASTS, write_forecasts
from nbhelpers.stages.perceptual_unet.sevir_fetch import fetch_events
from nbhelpers.stages.perceptual_unet.simulate import simulate as simulate_storms
from nbhelpers.stages.perceptual_unet.task import NowcastTask as Task

__all__ = ["FORECASTS", "Config", "Task", "advice", "fetch_events", "simulate", "write_forecasts"]


def simulate(data_dir: Path, *, profile: str, seed: int) -> Path:
    """Write simulated storms of the profile's size in SEVIR's format; returns the catalogue."""
    much = SIMULATED[profile]
    return simulate_storms(data_dir, n_events=much["n_events"], size=much["size"], n_frames=much["n_frames"], seed=seed)


def advice(task: Task) -> list[str]:
    """What a given λ means on the first training batch, where it means nothing or everything; before any training."""
    if task.config.lambda_perc is None or task.config.perceptual_is_off:
        return []
    share = next(row.grad_share for row in measure_balance(task)(task.config) if row.term == "perceptual")
    found = f"lambda_perc {task.config.lambda_perc:g} gives the perceptual term {share:.3%} of the gradient"
    if share < INERT_SHARE:
        return [f"{found}: it is inert, this will be a run without it; perceptual_share 0.1 would give it a say."]
    if share > DROWNING_SHARE:
        return [f"{found}: it drowns the MSE; perceptual_share 0.1 would keep both."]
    return []
