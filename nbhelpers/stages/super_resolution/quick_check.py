"""A few short epochs before a long run: do the data and the first stage behave as they should?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training import history
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.task import Gate

EPOCHS = 5
CROPS = 160  # of an epoch: a few minutes at the full size of the generator, seconds at the small ones
LEAST_STD = 0.01  # reflectance, of the high resolution
DIGITS = 6  # significant ones of a loss that is called constant when they do not change
GROWTH = 1.25  # times the first epoch's loss: it starts low, and random crops alone make a difference of some 5 %
SLACK = 0.01  # dB below bicubic that a network may be after so few steps


def quick_check(task: SuperResolutionTask, output_dir: Path, run_name: str) -> list[Gate]:
    """Train the first stage for five short epochs in a run folder of its own, and say whether it is worth going on.

    The run is ``<run_name>-check``; called again with the same settings it is not trained again. ``task`` itself stays
    untrained.

    Returns:
        Gates: contrast of the data, a loss that moves and does not grow, PSNR beside bicubic interpolation.
    """
    config = task.config
    short = dataclasses.replace(
        config,
        stage1_epochs=EPOCHS,
        stage2_epochs=0,
        crops_per_epoch=min(CROPS, config.crops_per_epoch),
        eval_patches=min(32, config.eval_patches),
        self_ensemble=False,
        bicubic_by=EPOCHS + 1,  # no guard stops the run for it: a gate says so
    )
    trial = SuperResolutionTask(short, task.data_dir, like=task)
    print(*trial.validation.lines(), sep="\n")
    run = open_run(trial, output_dir, f"{run_name}-check")
    fit(trial, run)
    bicubic = trial.evaluate("val", trial.nulls["bicubic"]).metrics["psnr"].value
    return check_gates(history.read_rows(run.history_file), bicubic=bicubic, std=min(task.validation.std))


def check_gates(rows: Sequence[Mapping[str, Any]], *, bicubic: float, std: float) -> list[Gate]:
    """What a history must show after a few epochs.

    Args:
        rows: of history.csv.
        bicubic: PSNR of bicubic interpolation on the same patches, in dB.
        std: reflectance, of the band that varies least.
    """
    losses = [row["train_total"] for row in rows]
    scores = [row["val_psnr"] for row in rows]
    finite = all(isinstance(one, (int, float)) and math.isfinite(one) for one in (*losses, *scores))
    best = max(scores) if finite else math.nan
    return [
        Gate("the high resolution has contrast", std > LEAST_STD, f"HR std {std:.4f}, at least {LEAST_STD} expected"),
        Gate(
            "the loss is not constant and does not grow",
            finite and losses[-1] < GROWTH * losses[0] and len({f"{one:.{DIGITS}g}" for one in losses}) > 1,
            f"from {losses[0]:.4g} to {losses[-1]:.4g} in {len(rows)} epochs" if finite else f"losses {losses}",
        ),
        Gate(
            "PSNR at least bicubic's",
            finite and best >= bicubic - SLACK,
            f"{best:.2f} dB, bicubic interpolation {bicubic:.2f} dB",
        ),
    ]
