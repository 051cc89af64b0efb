"""Checkpoints: weights as safetensors, everything else as plain types, pointers swapped after the data are on disk."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nbhelpers.core.disk import file_sha256
from nbhelpers.core.errors import UserError
from nbhelpers.training import pointers
from nbhelpers.training.run import Run, architecture_hash, write_json

FORMAT = 5  # of state.pt; raised when its keys change
KEEP = 2  # newest checkpoints that stay beside the best one
WEIGHTS, STATE = "model.safetensors", "state.pt"
ABOUT = "checkpoint"  # key of the metadata in model.safetensors


@dataclass(frozen=True)
class Checkpoint:
    """One folder ``checkpoints/step_000123``."""

    folder: Path
    step: int
    sha256: str  # of model.safetensors: the identity that a report names


def save(
    run: Run,
    *,
    step: int,
    modules: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    best: bool,
    ranked: Mapping[int, float] | None = None,
    epoch: int | None = None,
) -> Checkpoint:
    """Write a checkpoint and point ``last.json`` (and ``best.json``) at it; older ones are pruned afterwards.

    Args:
        ranked: the steps whose checkpoints stay beside the best one, with their scores; they are listed in
            ``best.json``, best first. None: no others do.
        epoch: the epoch that it is the checkpoint of, if it shall stay; these are listed in ``last.json``.

    Raises:
        UserError: the disk is full or the folder is gone; the checkpoints already there stay as they are.
    """
    folder = _free_folder(run, step)
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors = tensors_of(modules)
        whole = {"format": FORMAT, "step": step, "weights_sha256": digest_of(tensors), **state}
        torch.save(_canonical(whole), temporary / STATE)
        about = {"step": step, "architecture": architecture_hash(modules)}
        write_weights(temporary, tensors, {**about, "state_sha256": file_sha256(temporary / STATE)})
        _flush(temporary / STATE)
        os.replace(temporary, folder)
        checkpoint = Checkpoint(folder, step, file_sha256(folder / WEIGHTS))
        pointer = pointer_to(checkpoint)
        # In this order: a run killed in between does the epoch again and finds the best one again.
        if best or (ranked and step in ranked):
            write_json(run.checkpoints / "best.json", pointers.best(run, pointer, is_best=best, ranked=ranked))
        write_json(run.checkpoints / "last.json", pointers.last(run, pointer, epoch=epoch))
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"checkpoint of step {step} could not be written to {run.checkpoints} ({error}): free some space and run "
            "again; the checkpoints already there are untouched."
        ) from error
    _prune(run, step)
    return checkpoint


def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Everything that a checkpoint's weights file holds, named ``module.tensor``."""
    return {
        f"{name}.{key}": t.contiguous() for name, module in modules.items() for key, t in module.state_dict().items()
    }


def write_weights(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a weights file and flush it to disk; ``about`` (step, architecture, …) goes into its header."""
    # One entry: safetensors writes several in random order, and equal checkpoints would have different sha256.
    save_file(dict(tensors), folder / WEIGHTS, metadata={ABOUT: json.dumps(about)})
    _flush(folder / WEIGHTS)


def pointer_to(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a pointer says of a checkpoint of the run."""
    path = f"{checkpoint.folder.parent.name}/{checkpoint.folder.name}"
    return {"step": checkpoint.step, "path": path, "sha256": checkpoint.sha256}


def asked_for(run: Run, which: str, *, unfinished: bool = False) -> tuple[str, Checkpoint]:
    """The name and the checkpoint of the weights that somebody wants to use.

    "shipped" is the average, else the best: a greedy average is never worse on validation than the best checkpoint
    alone. A run that was stopped before its first validation has neither.

    Args:
        unfinished: whether "shipped" may then be the last one, for a report, which says so.

    Raises:
        UserError: there is no checkpoint of that name.
    """
    names = pointers.names(run)
    if not names:
        raise UserError(f"{run.folder} has no checkpoint yet: train it first.")
    if which == "shipped":
        which = next((name for name in ("average", "best") if name in names), "last")
        if which == "last" and not unfinished:
            raise UserError(f"{run.folder} has no best checkpoint yet: train it first.")
    if which not in names or (found := find(run, which)) is None:
        raise UserError(f"{run.folder} has no checkpoint {which!r}: choose one of {', '.join(names)}.")
    return which, found


def parents(checkpoint: Checkpoint) -> dict[str, Any]:
    """For an average, ``{"parents": [{"step": …, "sha256": …}, …]}``; nothing for other checkpoints."""
    with _open_weights(checkpoint.folder / WEIGHTS) as file:
        return {key: value for key, value in _about(file).items() if key == "parents"}


def find(run: Run, which: str) -> Checkpoint | None:
    """The checkpoint that ``<which>.json`` points to, e.g. "last", "best" or "pixel_best"; None when there is none.

    Raises:
        UserError: the pointer names a checkpoint that is gone or whose weights have changed since.
    """
    while (pointer := pointers.read(run, which)) is not None:
        try:
            return _pointed_to(run, which, pointer)
        except (UserError, OSError):
            if pointers.read(run, which) == pointer:
                raise
            # A run in training has moved on while its checkpoint was being read.
    return None


def _pointed_to(run: Run, which: str, pointer: Mapping[str, Any]) -> Checkpoint:
    pointer_file = run.checkpoints / f"{which}.json"
    if not {"step", "path", "sha256"} <= pointer.keys():
        raise UserError(
            f"{pointer_file} has {', '.join(pointer) or 'nothing'}, expected step, path and sha256: delete it."
        )
    return verify(run.folder / str(pointer["path"]), pointer, pointer_file.name)


def verify(folder: Path, pointer: Mapping[str, Any], pointer_name: str) -> Checkpoint:
    """The checkpoint in ``folder`` of which a pointer tells step and sha256.

    Raises:
        UserError: there is none, or its weights have changed since.
    """
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{pointer_name} points to {folder}, which has no {WEIGHTS}: restore it or delete {pointer_name}."
        )
    digest = file_sha256(folder / WEIGHTS)
    if digest != pointer["sha256"]:
        raise UserError(
            f"{folder / WEIGHTS} has sha256 {digest[:12]}…, but {pointer_name} recorded "
            f"{pointer['sha256'][:12]}…: the file is damaged; restore it from a copy."
        )
    return Checkpoint(folder, int(pointer["step"]), digest)


def at(folder: Path) -> Checkpoint:
    """The checkpoint in a folder given by hand."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no {WEIGHTS}: give a folder such as RUN/checkpoints/step_000123.")
    with _open_weights(folder / WEIGHTS) as file:
        step = int(_about(file).get("step", 0))
    return Checkpoint(folder, step, file_sha256(folder / WEIGHTS))


def holding(run: Run, step: int, weights: str) -> Checkpoint | None:
    """The run's checkpoint of ``step`` whose weights have this digest, named by a pointer or not; None: it is gone."""
    named = pointers.named_folders(run)
    folders = [f for f in run.checkpoints.glob(f"step_{step:06d}*") if pointers.FOLDER.fullmatch(f.name)]
    for folder in sorted(folders, key=lambda folder: (folder.name not in named, folder.name)):
        if (found := at(folder)).step == step and _stored_digest(found) == weights:
            return found
    return None


def load_weights(checkpoint: Checkpoint, modules: Mapping[str, nn.Module]) -> None:
    """Put the checkpoint's weights into ``modules``.

    Raises:
        UserError: no safetensors file, or weights of another architecture.
    """
    path = checkpoint.folder / WEIGHTS
    tensors: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
    with _open_weights(path) as file:
        theirs, ours = _about(file).get("architecture"), architecture_hash(modules)
        if theirs != ours:
            raise UserError(
                f"{path} holds weights of another architecture ({str(theirs)[:12]}…) than this model ({ours[:12]}…): "
                "load it with the settings in its run's config.json."
            )
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            name, _, parameter = key.partition(".")
            tensors[name][parameter] = file.get_tensor(key)
    for name, module in modules.items():
        module.load_state_dict(tensors[name])


def load_state(checkpoint: Checkpoint, *, any_format: bool = False) -> dict[str, Any]:
    """Optimizers, schedules and counters of a checkpoint; plain types and tensors only.

    Args:
        any_format: whether one of another version will do: not for training, but for what a report reads of it.

    Raises:
        UserError: the file is missing, damaged, or holds code (it is refused without being run).
    """
    path = checkpoint.folder / STATE
    with _open_weights(checkpoint.folder / WEIGHTS) as file:
        recorded = _about(file).get("state_sha256")
    try:
        if file_sha256(path) != recorded:  # torch reads many a flipped byte without a word
            raise pickle.UnpicklingError("not the file that was saved with these weights")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing, so training cannot go on from it: the weights alone can still be used."
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{path} is not a state this package wrote (damaged, or it holds code, which is never run): restore it "
            "from a copy, or start anew with --resume never."
        ) from error
    if isinstance(state, dict) and any_format:
        return state
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path} has no format {FORMAT} state: it was written by another version; start anew with --resume never."
        )
    if state["weights_sha256"] != _stored_digest(checkpoint):
        raise UserError(f"{checkpoint.folder / WEIGHTS} is not what was saved with {STATE}: restore it from a copy.")
    return state


def _canonical(value: Any) -> Any:
    """The same content with equal strings made one object: pickle writes by identity, and equal states shall be equal
    bytes, also when one of them has been saved and loaded before."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_canonical(item) for item in value)
    return value.detach().clone() if isinstance(value, Tensor) else value


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and values: of the weights alone, whatever is saved with them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored_digest(checkpoint: Checkpoint) -> str:
    with _open_weights(checkpoint.folder / WEIGHTS) as file:
        return digest_of({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - safe_open is no mapping


def _open_weights(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}): restore it from a copy.") from error


def _about(weights: Any) -> dict[str, Any]:
    """What ``save`` wrote about an opened weights file; nothing when another program wrote it."""
    return json.loads((weights.metadata() or {}).get(ABOUT, "{}"))


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def point_at(run: Run, checkpoint: Checkpoint) -> None:
    """Make ``checkpoint``, one of the run's own, its last: the run goes back to it."""
    pointers.write(run, "last", pointers.last(run, pointer_to(checkpoint)))


def _free_folder(run: Run, step: int) -> Path:
    """Where to write a checkpoint of ``step``. What a pointer names is never replaced, not even for an instant."""
    name, named = f"step_{step:06d}", pointers.named_folders(run)
    number = 1
    while (candidate := name if number == 1 else f"{name}-{number}") in named:
        number += 1
    shutil.rmtree(run.checkpoints / candidate, ignore_errors=True)  # left by a kill before its pointer was written
    return run.checkpoints / candidate


def clean(run: Run) -> None:
    """Delete what a killed process left half written."""
    for temporary in run.checkpoints.glob("*.tmp"):
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


def _prune(run: Run, step: int) -> None:
    """Delete checkpoints older than the newest ones up to ``step``, except those that a pointer names.

    Later steps are there when a run was taken up from one of its earlier checkpoints; they do not count as newest.
    """
    named = pointers.named_folders(run)
    found = {f: re.fullmatch(r"step_(\d+)(?:-(\d+))?", f.name) for f in run.checkpoints.iterdir()}
    order = {folder: (int(match[1]), int(match[2] or 1)) for folder, match in found.items() if match}
    folders = sorted((folder for folder in order if order[folder][0] <= step), key=lambda folder: order[folder])
    averages = [f for f in found if pointers.FOLDER.fullmatch(f.name) and f not in order]
    for folder in (*folders[:-KEEP], *averages):
        if folder.name not in named:
            shutil.rmtree(folder)
