"""The first batch without a step: what guards can know before training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from nbhelpers.core.errors import UserError
from nbhelpers.training.guards.guard import Rehearsal
from nbhelpers.training.guards.survey import survey
from nbhelpers.training.ledger import probe
from nbhelpers.training.task import Phase, Task


def rehearse(task: Task, phase: Phase, modules: Mapping[str, nn.Module], *, step: int) -> Rehearsal:
    """Survey the data, run the first batch forward and, before the first step, score the untrained model.

    A validation that cannot run (a metric that fails, too little memory) thus ends a run in its first minute, not
    after its first epoch.

    Raises:
        UserError: the training split has no batch.
    """
    loader = task.batches("train", 0)
    if len(loader) == 0:
        raise UserError("the training split yields no batch: give more events or a smaller batch_size.")
    surveys = {split: survey(task, split) for split in ("train", "val")}
    batch = next(iter(loader))
    with _buffers_kept(modules):
        for module in task.modules.values():
            module.train()
        updates = [(update, probe(update.prediction, update.terms)) for update in task.updates(batch, phase)]
    evaluation = None
    if step == 0:
        for module in task.modules.values():
            module.eval()
        evaluation = task.evaluate("val")
    steps = math.ceil(len(loader) / task.config.accumulate)
    return Rehearsal(task, modules, step, surveys, task.look(batch), updates, evaluation, len(loader), steps)


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
