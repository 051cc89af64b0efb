"""One set of weights from the best checkpoints of a run: a greedy average of those that help on validation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, pointers
from nbhelpers.training.checkpoint import Checkpoint
from nbhelpers.training.ema import load, parameters
from nbhelpers.training.metrics import values
from nbhelpers.training.run import Run, architecture_hash, write_json
from nbhelpers.training.session import Session


def greedy_average(session: Session) -> Checkpoint:
    """Average the ranked checkpoints of a run that is over, and write the result as ``average.json``.

    Beginning with the best, each next one is taken in if the uniform average with it scores no worse on validation than
    without it: a greedy soup, Wortsman et al. (2022), arXiv:2203.05482. So the average is never worse there than the
    best checkpoint alone, of which it consists when no other helps.

    Only parameters are averaged. Buffers (counters, running statistics, the vectors of a spectral norm) are the best
    checkpoint's, but for what the last scoring of the average sets. The weights that were being trained are put back.
    """
    progress, monitor, modules = session.progress, session.monitor, session.modules
    own = {name: tensor.detach().clone() for name, tensor in checkpoint.tensors_of(modules).items()}
    (first, alone), *others = _ranked(session)
    parents, best = [first], alone
    fitted: dict[str, Tensor] = {}  # buffers as the scoring of the average left them
    try:
        total = _parameters(first, modules)
        for other, _ in others:
            tried = {name: total[name] + tensor for name, tensor in _parameters(other, modules).items()}
            _put(modules, first, tried, len(parents) + 1)
            value = _validation(session)
            if value == best or monitor.better(value, best):
                total, best, fitted = tried, value, _buffers(modules)
                parents.append(other)
        _put(modules, first, total, len(parents))
        load(modules, fitted)
        with session.stop.held():
            average = _save(session.run, progress.step, modules, parents)
            session.copy()
    finally:
        with session.stop.held():
            load(modules, own)
    print(
        f"Averaged {len(parents)} of the {len(others) + 1} best checkpoints: val_{monitor.metric} {best:.6g}, "
        f"{alone:.6g} for the best alone."
    )
    return average


def _save(run: Run, step: int, modules: Mapping[str, nn.Module], parents: Sequence[Checkpoint]) -> Checkpoint:
    """Write the modules' weights as an average. Training cannot go on from it: nobody has trained these weights."""
    folder = run.checkpoints / f"average_{step:06d}"
    temporary = folder.with_name(folder.name + ".tmp")
    named = [{"step": parent.step, "sha256": parent.sha256} for parent in parents]
    about = {"step": step, "architecture": architecture_hash(modules), "parents": named}
    try:
        for there in (temporary, folder):  # left by a kill before its pointer was written
            shutil.rmtree(there, ignore_errors=True)
        temporary.mkdir()
        checkpoint.write_weights(temporary, checkpoint.tensors_of(modules), about)
        os.replace(temporary, folder)
        average = checkpoint.at(folder)
        write_json(run.checkpoints / "average.json", {**checkpoint.pointer_to(average), "parents": named})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"the average of checkpoints could not be written to {folder} ({error}): free some space and "
            "run again; the checkpoints already there are untouched."
        ) from error
    return average


def _ranked(session: Session) -> list[tuple[Checkpoint, float]]:
    """The checkpoints that the run has ranked, best first, with their scores."""
    listed = {one["step"]: one for one in pointers.check(session.run, "best").get("ranked", ())}
    return [
        (checkpoint.verify(session.run.folder / listed[step]["path"], listed[step], "best.json"), value)
        for step, value in session.progress.ranked.items()
    ]


def _parameters(found: Checkpoint, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The parameters of a checkpoint in double precision, on the CPU; they are in the modules afterwards."""
    checkpoint.load_weights(found, modules)
    return {
        name: tensor.detach().cpu().to(torch.promote_types(tensor.dtype, torch.float64))
        for name, tensor in parameters(modules).items()
    }


@torch.no_grad()
def _put(modules: Mapping[str, nn.Module], first: Checkpoint, total: Mapping[str, Tensor], n: int) -> None:
    """The mean of ``n`` checkpoints into the modules, with the buffers of the first."""
    checkpoint.load_weights(first, modules)
    for name, tensor in parameters(modules).items():
        tensor.copy_(total[name] / n)


def _buffers(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    learned = parameters(modules)
    return {name: t.detach().clone() for name, t in checkpoint.tensors_of(modules).items() if name not in learned}


def _validation(session: Session) -> float:
    for module in session.task.modules.values():
        module.eval()
    return float(values(session.task.evaluate("val").metrics)[session.monitor.metric])
