"""The first batch without a step: what guards can know before training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from nbhelpers.core.errors import UserError
from nbhelpers.training.guards.guard import Rehearsal
from nbhelpers.training.guards.survey import Survey, survey
from nbhelpers.training.ledger import Balance, Probe, probe
from nbhelpers.training.task import Phase, Task, Update


def rehearse(
    task: Task,
    phase: Phase,
    modules: Mapping[str, nn.Module],
    *,
    step: int,
    began: tuple[int, int] = (0, 0),
    surveys: Mapping[str, Survey] | None = None,
    is_ahead: bool = False,
) -> Rehearsal:
    """Survey the data, run the first batch of a phase forward and, before the first step, score the untrained model.

    A validation that cannot run (a metric that fails, too little memory) thus ends a run in its first minute, not
    after its first epoch.

    Args:
        step: optimizer steps finished.
        began: epochs and steps finished when the phase begins.
        surveys: those that were made for an earlier rehearsal of the same call; the untrained model has been scored
            then too.
        is_ahead: whether the phase is still to come.

    Raises:
        UserError: the training split has no batch, or the weights of the loss cannot be had together.
    """
    loader = task.batches("train", began[0])
    if len(loader) == 0:
        raise UserError("the training split yields no batch: give more events or a smaller batch_size.")
    is_first = not surveys
    surveys = surveys or {split: survey(task, split) for split in ("train", "val")}
    batch = next(iter(loader))
    with _buffers_kept(modules):
        for module in task.modules.values():
            module.train()
        updates = [(update, probe(update.prediction, update.terms)) for update in task.updates(batch, phase)]
    for update, probed in updates:
        _check_weights(update, probed, phase)
    evaluation = None
    if step == 0 and is_first:
        for module in task.modules.values():
            module.eval()
        evaluation = task.evaluate("val")
    steps = math.ceil(len(loader) / task.config.accumulate)
    return Rehearsal(
        task, phase, modules, step, *began, surveys, task.look(batch), updates, evaluation, len(loader), steps, is_ahead
    )


def _check_weights(update: Update, probed: Probe, phase: Phase) -> None:
    """Raise where weights cannot be had together, at the phase's beginning or once they have risen."""
    for time in (0.0, math.inf):
        try:
            Balance().weights(probed, update.terms, time=time)
        except ValueError as error:
            raise UserError(
                f"the loss of optimizer {update.optimizer!r} in phase {phase.name!r} cannot be weighed: {error}; "
                "change these weights in the settings."
            ) from error


@contextmanager
def _buffers_kept(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Running statistics that a forward pass in training mode moves are put back."""
    kept = [(buffer, buffer.clone()) for module in modules.values() for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
