"""The small files that say which checkpoint is which: ``last.json``, ``best.json`` and those of ended phases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.training.run import Run, read_json, write_json, writing

# Folders are made and removed by the names in pointers, so nothing else is believed.
FOLDER = re.compile(r"(?:step|average)_\d+(?:-\d+)?")
NAME = re.compile(r"last|best|average|[a-z]\w*_(?:best|last)")

# step, path, sha256; `ranked` (of the best one), `epochs` (of the last one) and `parents` (of an average) are lists of
# such. The checkpoints in the first two lists stay as long as they are listed.
Pointer = dict[str, Any]
LISTS = ("ranked", "epochs")


def read(run: Run, which: str) -> Pointer | None:
    """The content of ``<which>.json``; None where there is no such pointer.

    Raises:
        UserError: the file is damaged.
    """
    file = run.checkpoints / f"{which}.json"
    if not file.exists():
        return None
    return read_json(file, what="a checkpoint pointer {step, path, sha256}")


def names(run: Run) -> list[str]:
    """The names of the pointers that there are, in the order in which they are copied.

    Those of ended phases come first: "best" is then the next phase's, so it must not be copied while they are not.
    "last" comes last, because it commits the others.
    """
    order = ("average", "best", "last")
    found = sorted(file.stem for file in run.checkpoints.glob("*.json") if NAME.fullmatch(file.stem))
    return sorted(found, key=lambda name: order.index(name) if name in order else -1)


def entries(pointer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a pointer names: its own checkpoint, and those that stay beside it."""
    return [pointer, *(one for key in LISTS for one in pointer.get(key, ()))]


def named_folders(run: Run) -> set[str]:
    """Names of the folders that any pointer names."""
    return {Path(str(one["path"])).name for which in names(run) for one in entries(check(run, which))}


def check(run: Run, which: str) -> Pointer:
    """A pointer that is there, and may be copied, moved and deleted by.

    Raises:
        UserError: it names no checkpoint folder of the run.
    """
    pointer = read(run, which) or {}
    file = run.checkpoints / f"{which}.json"
    for one in entries(pointer):
        place, _, folder = str(one.get("path")).partition("/")
        if place != run.checkpoints.name or not FOLDER.fullmatch(folder) or not {"step", "sha256"} <= one.keys():
            raise UserError(
                f"{file} holds {one}, expected step, sha256 and a path such as checkpoints/step_000123: delete it."
            )
    return pointer


def write(run: Run, which: str, pointer: Mapping[str, Any]) -> bool:
    """Point ``which`` at a checkpoint; what stands there already is not written again.

    Returns:
        Whether anything was written.

    Raises:
        UserError: the disk is full or the folder is gone.
    """
    if read(run, which) == pointer:
        return False
    with writing(run.checkpoints):
        write_json(run.checkpoints / f"{which}.json", pointer)
    return True


def best(run: Run, newest: Mapping[str, Any], *, is_best: bool, ranked: Mapping[int, float] | None) -> Pointer:
    """What ``best.json`` says after a checkpoint that is the best one, or one of the ranked."""
    there = read(run, "best") or {}
    if ranked is None:
        return dict(newest)
    known = {one["step"]: one for one in (*there.get("ranked", ()), newest)}
    listed = [{**known[step], "value": value} for step, value in ranked.items() if step in known]
    chosen = newest if is_best else there
    return {**{key: chosen[key] for key in ("step", "path", "sha256")}, "ranked": listed}


def last(run: Run, newest: Mapping[str, Any], *, epoch: int | None = None) -> Pointer:
    """What ``last.json`` says of the run's newest checkpoint, or of the one that it goes back to.

    The checkpoints of later epochs are no longer listed: the run has not come there yet, or does it again.

    Args:
        epoch: the epoch that it is the checkpoint of, if it shall stay.
    """
    there = (read(run, "last") or {}).get("epochs", ())
    listed = [one for one in there if one["step"] < newest["step"] or one["path"] == newest["path"]]
    if epoch is not None:
        listed.append({"epoch": epoch, **newest})
    return {**newest, "epochs": listed} if listed else dict(newest)


def forget(run: Run, which: str) -> None:
    """Take a pointer away; its folder goes when checkpoints are next pruned."""
    (run.checkpoints / f"{which}.json").unlink(missing_ok=True)
