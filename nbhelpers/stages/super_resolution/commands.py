"""What the command line asks of this stage."""

from __future__ import annotations

from pathlib import Path

from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.stages.super_resolution.balance import measure_balance
from nbhelpers.stages.super_resolution.config import SIMULATED, Config
from nbhelpers.stages.super_resolution.cut import cut_scenes
from nbhelpers.stages.super_resolution.opt_v2_files import ForecastOptions
from nbhelpers.stages.super_resolution.pack import pack
from nbhelpers.stages.super_resolution.predict import FORECASTS, predict_scenes, write_forecasts
from nbhelpers.stages.super_resolution.quick_check import quick_check, require
from nbhelpers.stages.super_resolution.simulate import simulate as simulate_landscapes
from nbhelpers.stages.super_resolution.task import SuperResolutionTask as Task

__all__ = [
    "FORECASTS",
    "Config",
    "ForecastOptions",
    "Task",
    "advice",
    "cut_scenes",
    "pack",
    "predict_scenes",
    "quick_check",
    "require",
    "simulate",
    "write_forecasts",
]


def simulate(data_dir: Path, *, profile: str, seed: int) -> Path:
    """Write simulated landscapes of the profile's size in BigEarthNet's layout; returns the folder."""
    much = SIMULATED[profile]
    return simulate_landscapes(
        data_dir, n_places=much["n_places"], patches_per_place=much["patches_per_place"], seed=seed
    )


def advice(task: Task) -> list[str]:
    """What given weights of the second stage mean on the first training batch, where they mean nothing or all."""
    config = task.config
    given = {"perceptual": config.lambda_perc, "adversarial": config.lambda_adv}
    if not config.stage2_epochs or not any(given.values()):
        return []
    said = []
    for row in measure_balance(task)(config):
        weight = given.get(row.term)
        if not weight or INERT_SHARE <= row.grad_share <= DROWNING_SHARE:
            continue
        what = "inert" if row.grad_share < INERT_SHARE else "all there is"
        said.append(
            f"the weight {weight:g} gives the {row.term} term {row.grad_share:.3%} of the second stage's gradient: it "
            f"is {what}; {row.term}_share 0.1 would give it a say."
        )
    return said
