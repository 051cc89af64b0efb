"""A training step with ledger and guards against the same step written plainly; both on the same batches, in turns."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from side_by_side import record
from torch import nn

from nbhelpers.stages.perceptual_unet.config import SIMULATED, Config
from nbhelpers.stages.perceptual_unet.simulate import simulate
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.training import fit
from nbhelpers.training.guards.rehearsal import rehearse
from nbhelpers.training.guards.watch import Watch
from nbhelpers.training.run import Run
from nbhelpers.training.saving import Saver
from nbhelpers.training.session import Session
from nbhelpers.training.stop_button import StopButton
from nbhelpers.training.weights import Share

ROUNDS = 60  # six of them with a ledger row, as in any sixty steps

folder = Path(tempfile.mkdtemp())
simulate(folder, **SIMULATED["smoke"] | {"size": 192, "n_frames": 49})
weights = os.environ.get("NBHELPERS_BACKBONE_WEIGHTS", "random")
config = Config.for_profile("quick", backbone_weights=weights, max_pct_missing=1.0)


def ours() -> Callable[[object], None]:
    """The step of ``fit``: probe, share, ledger, surrogate backward, clip, step, guards."""
    task, run = NowcastTask(config, folder), Run(folder / "run")
    run.folder.mkdir()
    accelerator = Accelerator(cpu=True)
    phase = fit._prepared(task.phases[0], accelerator)
    session = Session(
        task,
        run,
        accelerator,
        dict(task.modules),
        [phase],
        None,
        Watch(run),
        Saver(run, minutes=1e9),
        StopButton(),
        None,
    )
    session.watch.before(rehearse(task, phase, session.modules, step=0))
    task.modules["unet"].train()

    def step(batch: object) -> None:
        fit._step(session, phase, [batch], time=session.progress.step / 100, n_batches=100)
        session.progress.step += 1

    return step


def plain() -> Callable[[object], None]:
    """What one would write in a notebook: forward, weighted sum, backward, clip, step."""
    task = NowcastTask(config, folder)
    (phase,), unet = task.phases, task.modules["unet"].train()
    optimizer, scheduler = phase.optimizers["unet"], phase.schedulers["unet"]

    def step(batch: object) -> None:
        (update,) = task.updates(batch, phase)
        numbers = [1e-4 if isinstance(term.weight, Share) else term.weight for term in update.terms]
        loss = sum(w * term.fn(update.prediction) for w, term in zip(numbers, update.terms, strict=True))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), config.grad_clip)
        optimizer.step()
        scheduler.step()
        loss.item()

    return step


ways = {"plain": plain(), "with_ledger_and_guards": ours()}
loader = NowcastTask(config, folder).batches("train", 0)
batches = [batch for _, batch in zip(range(20), loader, strict=False)]
for step in ways.values():  # the first steps have a ledger row each and look at every gradient
    for batch in batches:
        step(batch)
seconds: dict[str, list[float]] = {name: [] for name in ways}
for number in range(ROUNDS):
    for name, step in ways.items():
        began = time.perf_counter()
        step(batches[number % len(batches)])
        seconds[name].append(time.perf_counter() - began)
ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
record(
    "ledger_cost",
    {
        "what": f"profile quick: {config.batch_size} windows of {config.n_in + config.n_out} x {config.crop} x "
        f"{config.crop}, SqueezeNet features, {ROUNDS} steps each in turns",
        "mean_seconds": {name: statistics.fmean(times) for name, times in seconds.items()},
        "ratio": sum(seconds["with_ledger_and_guards"]) / sum(seconds["plain"]),
        "median_ratio_of_pairs": statistics.median(ratios),
        "floor": "ratio <= 1.03",
    },
)
