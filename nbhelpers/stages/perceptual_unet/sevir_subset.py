"""A data folder that holds chosen events of SEVIR: one HDF5 file in SEVIR's layout, and a catalogue of just these.

Whatever moment the process is killed at, the folder reads as before or as after: the file is replaced by one rename
and keeps the places of the events it had, so that the old catalogue fits the new file until the new one replaces it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from tqdm.auto import tqdm

from nbhelpers.core.disk import disk_errors
from nbhelpers.core.download import discard
from nbhelpers.core.errors import UserError
from nbhelpers.core.manifest import read_lock, record
from nbhelpers.core.manifest_format import LOCK_NAME
from nbhelpers.stages.perceptual_unet.data import (
    CATALOGUE_COLUMNS,
    CATALOGUE_NAMES,
    IMG_TYPE,
    catalogue_rows,
    check_events,
    read_catalogue,
)
from nbhelpers.stages.perceptual_unet.sevir_choice import RemoteEvent

EVENTS_FILE = "vil/SEVIR_VIL_EVENTS.h5"  # a name that SEVIR itself does not use
FULL_FOLDER = "source"  # holds the full catalogue, out of the reader's sight
PARTS_FOLDER = "vil/SEVIR_VIL_EVENTS.parts"  # events that have arrived, or begun to, and are not in the file yet


def lock_name(event_id: str) -> str:
    """Under which name the lock file records the sha256 of an event's bytes."""
    return f"{EVENTS_FILE}#{event_id}"


def part_of(data_dir: Path, event_id: str) -> Path:
    """Where the bytes of an event are collected before they go to the file."""
    return data_dir / PARTS_FOLDER / f"{event_id}.part"


def check_folder(data_dir: Path) -> None:
    """Raise UserError if ``data_dir`` holds other data, which a subset would hide."""
    own = data_dir / CATALOGUE_NAMES[0]
    places = [data_dir / folder / name for folder in ("", "data", "sevir") for name in CATALOGUE_NAMES]
    foreign = [path for path in places if path.is_file() and path != own]
    if own.is_file() and any(row["file_name"] != EVENTS_FILE for _, row in catalogue_rows(own)):
        foreign.append(own)
    if foreign:
        raise UserError(
            f"{foreign[0]} is the catalogue of other data, expected none or one of fetched events: give --data-dir "
            "another or a new folder for the chosen events."
        )


def stored_ids(data_dir: Path) -> list[str]:
    """Ids of the events in the local file, in its order; none if there is no file yet."""
    if not (data_dir / EVENTS_FILE).is_file():
        return []
    with _opened(data_dir) as (ids, _):
        return ids


def check_stored(data_dir: Path, known: Container[str], *, progress: bool) -> None:
    """Hold every event of the local file to its recorded sha256; one that has no record gets it now.

    Raises:
        UserError: other bytes than those that once arrived, or an event that is not among the ``known`` ids.
    """
    if not (data_dir / EVENTS_FILE).is_file():
        return
    lock = read_lock(data_dir)
    with _opened(data_dir) as (ids, vil):
        for index, event_id in enumerate(tqdm(ids, desc="checking", unit="event", disable=not progress)):
            if event_id not in known:
                raise UserError(
                    f"{data_dir / EVENTS_FILE} holds event {event_id}, which the full catalogue does not have without "
                    "missing pixels: give --data-dir another folder, or delete that file."
                )
            content, name = vil[index].tobytes(), lock_name(event_id)
            digest = hashlib.sha256(content).hexdigest()
            if name not in lock:
                record(data_dir, name, sha256=digest, size=len(content), source="found in the data folder")
            elif lock[name]["sha256"] != digest:
                raise UserError(
                    f"event {event_id} in {data_dir / EVENTS_FILE} has sha256 {digest}, expected "
                    f"{lock[name]['sha256']} as recorded when it arrived: delete that file and fetch again (if you "
                    f"changed it on purpose, remove the event's entry from {data_dir / LOCK_NAME})."
                )


def add_events(data_dir: Path, new: Sequence[RemoteEvent]) -> None:
    """Replace the local file by one that holds its events, at their places, and ``new``, read from their parts.

    Raises:
        UserError: frames of another size than those that are there; the disk is full or read-only.
    """
    path = data_dir / EVENTS_FILE
    temporary = _unfinished(path)
    shape, old = new[0].shape, stored_ids(data_dir)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w") as file:
            file["id"] = np.array([*old, *(event.id for event in new)], dtype="S")
            vil = file.create_dataset(IMG_TYPE, (len(old) + len(new), *shape), np.uint8)  # contiguous
            if old:
                with _opened(data_dir) as (_, before):
                    if before.shape[1:] != shape:
                        raise UserError(
                            f"{path} holds events of {before.shape[1:]} (height, width, frames) and {new[0].id} has "
                            f"{shape}: give --data-dir another folder for these."
                        )
                    for index in range(len(old)):
                        vil[index] = before[index]
            for index, event in enumerate(new, start=len(old)):
                vil[index] = np.fromfile(part_of(data_dir, event.id), np.uint8).reshape(shape)
        _replace(temporary, path)


def clear(data_dir: Path) -> None:
    """Remove an unfinished file, and parts of events that are in the local file; other parts wait for their run."""
    _unfinished(data_dir / EVENTS_FILE).unlink(missing_ok=True)
    for event_id in stored_ids(data_dir):
        discard(part_of(data_dir, event_id))
    folder = data_dir / PARTS_FOLDER
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write_catalogue(data_dir: Path, rows: Mapping[str, Mapping[str, str]]) -> Path:
    """Write the catalogue of the events in the local file, by one rename; returns it.

    ``rows`` are the cells of each event in the full catalogue; only the file and the place in it change.
    """
    path = data_dir / CATALOGUE_NAMES[0]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, CATALOGUE_COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
    table.writeheader()
    for index, event_id in enumerate(stored_ids(data_dir)):
        table.writerow({**rows[event_id], "file_name": EVENTS_FILE, "file_index": index})
    temporary = _unfinished(path)
    with disk_errors(path):
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")
        _replace(temporary, path)
    check_events(read_catalogue(data_dir))  # what was written is what the reader wants
    return path


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _replace(temporary: Path, path: Path) -> None:
    with temporary.open("rb+") as written:
        os.fsync(written.fileno())  # the rename must not reach the disk before the bytes
    os.replace(temporary, path)


@contextmanager
def _opened(data_dir: Path) -> Iterator[tuple[list[str], h5py.Dataset]]:
    """Ids and frames of the local file."""
    path = data_dir / EVENTS_FILE
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file ({error}): delete it and fetch again.") from error
    with file:
        if IMG_TYPE not in file or "id" not in file or file["id"].shape != file[IMG_TYPE].shape[:1]:
            raise UserError(f"{path} is not a file of fetched events: delete it and fetch again.")
        yield [key.decode() for key in file["id"][:]], file[IMG_TYPE]
