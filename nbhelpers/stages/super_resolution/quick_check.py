"""A few short epochs before a long run: do the data and the first stage behave as they should?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.stages.super_resolution.verdict import NAMES, PROJECTED
from nbhelpers.training import history
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.task import Gate

EPOCHS = 5
CROPS = 160  # of an epoch: a few minutes at the full size of the generator, seconds at the small ones
LEAST_STD = 0.01  # reflectance, of the high resolution
DIGITS = 6  # significant ones of a loss that is called constant when they do not change
GROWTH = 1.25  # times the first epoch's loss: it starts low, and random crops alone make a difference of some 5 %
MOVED = 1e-4  # dB; a network whose PSNR varies less from epoch to epoch does not train
SLACK = 0.01  # dB below the bar that a network may be after so few steps


def quick_check(task: SuperResolutionTask, output_dir: Path, run_name: str) -> list[Gate]:
    """Train the first stage for five short epochs in a run folder of its own, and say whether it is worth going on.

    The run is ``<run_name>-check``; called again with the same settings it is not trained again. ``task`` itself stays
    untrained.

    Returns:
        Gates: contrast of the data, a loss that moves and does not grow, a score that moves, and PSNR beside what the
        network starts as: bicubic interpolation, projected if the network's outputs are.
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
    if fit(trial, run).interrupted:
        raise UserError("the quick check was stopped before its end: run it again, it goes on where it stopped.")
    null = PROJECTED if config.consistency else "bicubic"
    bar = trial.evaluate("val", trial.nulls[null]).metrics["psnr"].value
    rows = history.read_rows(run.history_file)
    return check_gates(rows, bar=bar, whose=NAMES.get(null, null), std=min(task.validation.std))


def require(gates: Sequence[Gate]) -> None:
    """Stop before a long run that would come to nothing.

    Raises:
        UserError: a gate of the quick check failed.
    """
    if failed := [f"{gate.name} ({gate.value})" for gate in gates if not gate.passed]:
        raise UserError(
            f"the quick check failed, expected each of its gates to pass before a long run: {'; '.join(failed)}; look "
            "at the data figure and lower or raise stage1_lr."
        )


def check_gates(rows: Sequence[Mapping[str, Any]], *, bar: float, whose: str, std: float) -> list[Gate]:
    """What a history must show after a few epochs.

    Args:
        rows: of history.csv.
        bar: PSNR on the same patches, in dB, of what the network starts as.
        whose: its name.
        std: reflectance, of the band that varies least.
    """
    losses = [row["train_total"] for row in rows]
    scores = [row["val_psnr"] for row in rows]
    finite = all(isinstance(one, (int, float)) and math.isfinite(one) for one in (*losses, *scores))
    best, moved = (max(scores), max(scores) - min(scores)) if finite else (math.nan, math.nan)
    return [
        Gate("the high resolution has contrast", std > LEAST_STD, f"HR std {std:.4f}, at least {LEAST_STD} expected"),
        Gate(
            "the loss is not constant and does not grow",
            finite and losses[-1] < GROWTH * losses[0] and len({f"{one:.{DIGITS}g}" for one in losses}) > 1,
            f"from {losses[0]:.4g} to {losses[-1]:.4g} in {len(rows)} epochs" if finite else f"losses {losses}",
        ),
        # The loss is of random crops, so it differs between epochs even if the network is always the same.
        Gate(
            "the network learns: PSNR on validation moves",
            moved > MOVED,
            f"by {moved:.2g} dB between epochs, more than {MOVED:g} expected",
        ),
        Gate(f"PSNR not below that of {whose}", finite and best >= bar - SLACK, f"{best:.3f} dB, {whose} {bar:.3f} dB"),
    ]
