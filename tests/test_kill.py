"""A run that is killed again and again is, bit by bit, the run that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import sevir
from test_fit import assert_equal_runs
from toy import ToyConfig, ToyTask
from toy_gan import GanConfig, GanTask

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.training import checkpoint, history, mirror, pointers
from nbhelpers.training.fit import fit
from nbhelpers.training.flexible import SchedulerParams
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run

EPOCHS = 6
MOMENTS = {"step": 3, "save": 2, "copy": 2, "evaluate": 1}  # and how many of them at most before the kill
# Imported once, so that each of many processes starts in a moment; torch's optimizers import the third.
PRELOAD = ["nbhelpers.stages.perceptual_unet.task", "nbhelpers.training.fit", "torch._dynamo", "lpips"]
MakeTask = Callable[..., Any]


HAND_OVER = SchedulerParams(
    source="mse", target="slope", monitor_metric="mse", trigger="epoch", patience=1, warmup_epochs=1, min_epochs=1,
    transition_step=0.3,
)  # fmt: skip


def toy_task(folder: Path, workers: int) -> ToyTask:
    """Average, accumulation with a partial last window, a hand-over of loss weight: all the state there is.

    (That patience is counted is shown by the other one; it may not count during a hand-over.)
    """
    config = ToyConfig(
        epochs=EPOCHS, workers=workers, batch_size=1, accumulate=5, ema_decay=0.9, scheduler=HAND_OVER, relative=True
    )
    return ToyTask(config)


def nowcast_task(folder: Path, workers: int) -> NowcastTask:
    """The real thing, small; the perceptual term draws its first lead time from torch's generator."""
    config = Config.for_profile(
        "smoke", epochs=EPOCHS, n_in=3, n_out=2, base_channels=2, depth=2, crop=32, windows_per_epoch=12, batch_size=1,
        perceptual_frames=1, backbone_weights="random", lpips_weights="random", ema_decay=0.9, accumulate=5, patience=5,
        num_workers=workers, eval_windows=1, first_guess="persistence",
    )  # fmt: skip
    return NowcastTask(config, folder / "data")


def gan_task(folder: Path, workers: int) -> GanTask:
    """Two phases, two optimizers, a spectral norm, an average, accumulation and ranked checkpoints."""
    config = GanConfig(
        pixel_epochs=3, adversarial_epochs=3, workers=workers, batch_size=1, accumulate=5, ema_decay=0.9, keep=2
    )
    return GanTask(config)


def _train(make: MakeTask, folder: Path, workers: int, tell: Connection) -> None:
    """One process: take the run up, and say when each kind of moment begins."""
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as in any other process
    task = make(folder, workers)

    def telling(moment: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            tell.send(moment)
            return function(*args, **options)

        return wrapped

    task.updates = telling("step", task.updates)  # type: ignore[method-assign]
    task.evaluate = telling("evaluate", task.evaluate)  # type: ignore[method-assign]
    checkpoint.save = telling("save", checkpoint.save)
    mirror.push = telling("copy", mirror.push)
    try:
        fit(task, open_run(task, folder / "runs", "run", copy_dir=folder / "copies"), save_minutes=0.0)
    except UserError as error:
        tell.send(f"error: {error}")
        raise
    tell.send("done")


def _readable(run: Run) -> None:
    """What a person, a plot or a widget reads from a run folder, at whatever moment."""
    if not run.config_file.exists():
        return
    run.read_config()
    rows = history.read_rows(run.history_file)
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    history.read_rows(run.ledger_file)
    read_guards(run)
    for name in pointers.names(run):
        checkpoint.find(run, name)
    last = checkpoint.find(run, "last")
    if last is not None:
        checkpoint.load_state(last)


def _kill_at(make: MakeTask, folder: Path, workers: int, moment: str, count: int, delay: float) -> str:
    """Start the run again and kill it ``delay`` seconds into the ``count``-th such moment; returns the last word."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    hear, tell = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(make, folder, workers, tell))
    process.start()
    tell.close()
    word = ""
    while True:
        try:
            word = hear.recv()
        except EOFError:  # the process has ended by itself
            break
        count -= word == moment
        if count <= 0:
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            break
    process.join()
    return word


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [toy_task, nowcast_task, gan_task])
def test_killed_at_many_moments_it_is_the_run_in_one_go(make: MakeTask, workers: int, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        sevir.write_sevir(folder / "data", sevir.storms(6, n_frames=9))
        (folder / "copies").mkdir()
    assert _kill_at(make, whole, 0, "never", 1, 0.0) == "done"
    rng, run, steps = random.Random(workers), Run(killed / "runs" / "run"), [0]
    for number in range(12):
        moment = list(MOMENTS)[number % len(MOMENTS)]
        word = _kill_at(make, killed, workers, moment, rng.randint(1, MOMENTS[moment]), rng.uniform(0.0, 0.02))
        assert word == moment, f"kill {number}: {word}"
        for folder in (run, Run(killed / "copies" / "run")):
            _readable(folder)
        last = checkpoint.find(run, "last")
        steps.append(0 if last is None else last.step)
    assert steps == sorted(steps) and steps[-1] > 0, "every life gets further, none goes back"
    assert _kill_at(make, killed, workers, "never", 1, 0.0) == "done"
    assert_equal_runs(run, Run(whole / "runs" / "run"))
    assert_equal_runs(Run(killed / "copies" / "run"), run)
