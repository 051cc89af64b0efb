"""A second copy of a run in another folder (Google Drive), verified, readable at every moment; and the way back.

A run is written on the local disk, which is lost with a runtime. What the run needs to go on is copied after each
save. The order makes the copy readable whenever the copying is killed: checkpoints under a temporary name, read back,
then renamed; the small files; the pointers; what the pointers no longer name goes last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nbhelpers.core.disk import file_sha256
from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, pointers
from nbhelpers.training.checkpoint import Checkpoint
from nbhelpers.training.run import Run, write_json, writing

# Small files beside config.json; those that exist are copied.
FILES = ("history.csv", "ledger.csv", "guards.json", "report.json", "report.md")


class CopyError(UserError):
    """A copy that did not succeed this time. Nothing that was complete before is harmed, and trying again may help."""


def push(run: Run, second: Path) -> None:
    """Make ``second/<run name>`` a copy of what the run needs to go on: its records and the checkpoints it names.

    What is there already is not written again. ``second`` itself is never created: where a Drive was unmounted, the
    folder would be made on the disk that is lost.

    Raises:
        CopyError: ``second`` is gone, full or not writable, or a file does not read back as it was written. The copy
            made before stays readable.
        UserError: a run of that name with other settings lies there, ``second`` is the folder of the run itself, or
            the run's own checkpoint is damaged.
    """
    copy = Run(second / run.name)
    cure = f"the run is complete in {run.folder}; mount Drive again or make room there, and the next save tries again"
    with _copying(copy, failure=f"{run.name} was not copied to {second}", cure=cure):
        _expect(second)
        copy.folder.mkdir(exist_ok=True)
        if copy.folder.samefile(run.folder):
            raise UserError(f"{second} is the folder of the run itself: choose another folder for copies.")
        _check_same_run(run, copy)
        _sweep(copy)
        _prune(copy)  # what a killed copying left would need room twice
        _copy(run, copy)
        _prune(copy)


def pull(run: Run, second: Path) -> bool:
    """Restore a run from ``second/<run name>`` where the local folder has none, or is at an earlier step.

    Killed in between, a restore into nothing leaves no run, because ``config.json`` comes last; a restore of a later
    step leaves the earlier one or the later one.

    Returns:
        Whether anything was restored; False where no copy is, or where the local run is as far or farther.

    Raises:
        CopyError: ``second`` is gone, the local disk is full, or a file does not read back as it was written.
        UserError: the copy is damaged, or is that of a run with other settings.
    """
    copy = Run(second / run.name)
    cure = "make the folder or mount Drive again, see that the local disk has room, and run again"
    with _copying(run, failure=f"{run.name} was not restored from {second}", cure=cure):
        _expect(second)
        if not copy.config_file.exists():
            return False
        if run.config_file.exists():
            if _last_step(copy) <= _last_step(run):
                return False
            _check_same_run(run, copy)
        run.folder.mkdir(parents=True, exist_ok=True)
        _sweep(run)
        _copy(copy, run)
    return True


def take(found: Checkpoint, run: Run) -> Checkpoint:
    """Copy another run's checkpoint into this one's folder; no pointer names it yet.

    Raises:
        UserError: the disk is full, or a file does not read back as it was written.
    """
    with writing(run.checkpoints):
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        return checkpoint.at(run.folder / _copy_checkpoint(found.folder, run))


def _copy(source: Run, target: Run) -> None:
    """Everything from ``source`` to ``target``, in the order that keeps ``target`` readable."""
    listed = {which: _without_gone(source, pointer) for which, pointer in _pointers(source).items()}
    there = _pointers(target)
    target.checkpoints.mkdir(exist_ok=True)
    known = {one["sha256"]: one["path"] for pointer in there.values() for one in pointers.entries(pointer)}
    placed: dict[str, str] = {}  # where the target keeps a checkpoint, by its sha256
    for which, pointer in listed.items():
        for one in pointers.entries(pointer):
            if (digest := one["sha256"]) in placed:
                continue
            # A folder that a pointer names was verified when it came, and the sha256 of the weights, whose header holds
            # that of the state, tells it from every other: hashing it again would read it all back at every save.
            place, folder = known.get(digest), source.folder / one["path"]
            if place is None or _sizes(target.folder / place) != _sizes(folder):
                checkpoint.verify(folder, one, f"{which}.json")  # raises where the source is damaged itself
                place = _copy_checkpoint(folder, target)
            placed[digest] = place
    for file in FILES:
        _copy_file(source.folder / file, target.folder / file)
    for figure in sorted(source.figures.glob("*.png")):
        target.figures.mkdir(exist_ok=True)
        _copy_file(figure, target.figures / figure.name)
    for which, pointer in listed.items():
        pointer = {**pointer, "path": placed[pointer["sha256"]]}
        for key in pointers.LISTS:
            if key in pointer:
                pointer[key] = [{**one, "path": placed[one["sha256"]]} for one in pointer[key]]
        if there.get(which) != pointer:
            write_json(target.checkpoints / f"{which}.json", pointer)
    for which in there.keys() - listed.keys():  # a phase that had ended and goes on
        pointers.forget(target, which)
    _copy_file(source.config_file, target.config_file)


def _without_gone(run: Run, pointer: pointers.Pointer) -> pointers.Pointer:
    """The pointer without epochs whose checkpoints somebody has deleted, to make room: nothing goes on from them."""
    kept = [one for one in pointer.get("epochs", ()) if (run.folder / one["path"]).is_dir()]
    rest = {key: value for key, value in pointer.items() if key != "epochs"}
    return {**rest, "epochs": kept} if kept else rest


def _copy_checkpoint(folder: Path, target: Run) -> str:
    """Copy a checkpoint folder; its path in ``target``, as a pointer has it.

    A folder of that name with other content (training went back to an earlier step) may be the one that a pointer
    names, and no folder can be swapped for another in one step: the new one gets a name that is free.
    """
    place, plain, number = target.checkpoints / folder.name, folder.name.partition("-")[0], 2
    while place.exists():
        place, number = target.checkpoints / f"{plain}-{number}", number + 1
    temporary = place.with_name(place.name + ".tmp")
    temporary.mkdir()
    for name in _sizes(folder):
        _copy_verified(folder / name, temporary / name)
    os.replace(temporary, place)
    return f"{target.checkpoints.name}/{place.name}"


def _copy_file(source: Path, target: Path) -> None:
    """Replace ``target`` in one step, unless it is the same already or there is no ``source``."""
    if not source.exists():
        return
    size = source.stat().st_size
    if target.exists() and target.stat().st_size == size and target.read_bytes() == source.read_bytes():
        return
    temporary = target.with_name(target.name + ".tmp")
    _copy_verified(source, temporary)
    os.replace(temporary, target)


def _copy_verified(source: Path, target: Path) -> None:
    """Copy a file, flush it to the disk and read it back."""
    digest = file_sha256(source)
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    if file_sha256(target) != digest:
        raise OSError(f"{target} does not read back as it was written")


def _pointers(run: Run) -> dict[str, pointers.Pointer]:
    """The pointers of a run, in the order in which they are written: the last one commits the others."""
    return {which: pointers.check(run, which) for which in pointers.names(run)}


def _last_step(run: Run) -> int:
    last = _pointers(run).get("last")
    return -1 if last is None else int(last["step"])


def _sizes(folder: Path) -> dict[str, int]:
    """The files of a checkpoint folder with their sizes; none where there is no such folder."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*")) if path.is_file()}


def _prune(copy: Run) -> None:
    """Delete the checkpoints that no pointer names."""
    named = pointers.named_folders(copy)
    for folder in copy.checkpoints.glob("*_*"):
        if pointers.FOLDER.fullmatch(folder.name) and folder.is_dir() and folder.name not in named:
            shutil.rmtree(folder)


def _sweep(run: Run) -> None:
    """Delete what a copying that was killed left under temporary names."""
    for folder in (run.folder, run.figures, run.checkpoints):
        for path in folder.glob("*.tmp"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _expect(second: Path) -> None:
    if not second.is_dir():
        raise FileNotFoundError("there is no such folder")


def _check_same_run(run: Run, copy: Run) -> None:
    """Raise rather than write one run over another that happens to have its name."""
    if not (run.config_file.exists() and copy.config_file.exists()):
        return
    if run.read_config()["hashes"] != copy.read_config()["hashes"]:
        raise UserError(
            f"{copy.folder} is the copy of a run with other settings than {run.folder}: choose another run name, or "
            "move that copy away."
        )


@contextmanager
def _copying(target: Run, *, failure: str, cure: str) -> Iterator[None]:
    """Clean up after an operating system's error and say it as one sentence."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # where the folder is gone there is nothing to clean up; the next copying does it
            _sweep(target)
        raise CopyError(f"{failure} ({error}): {cure}.") from error
