"""Tiny but real files in SEVIR's layout: contiguous HDF5 and a catalogue."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nbhelpers.stages.perceptual_unet.data import CATALOGUE_COLUMNS, Event

FILE_NAME = "vil/2019/SEVIR_VIL_RANDOMEVENTS_2019_0501_0831.h5"
DAY = "2019-05-04"


def storm(seed: int, *, n_frames: int = 13, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """``(T, H, W)`` grey levels: blobs up to level 250 that move one to two pixels a frame on dry ground."""
    rng = np.random.default_rng(seed)
    place, speed = rng.uniform(0, [height, width], (6, 2)), rng.uniform(0.8, 1.6, 2)
    radius, peak = rng.uniform(3, 7, 6), np.linspace(90, 250, 6)
    y, x = np.indices((height, width))
    frames = np.empty((n_frames, height, width), np.uint8)
    for t in range(n_frames):
        centre = (place + t * speed) % [height, width]
        blobs = [
            p * np.exp(-(((y - a) / r) ** 2) - ((x - b) / r) ** 2)
            for p, r, (a, b) in zip(peak, radius, centre, strict=True)
        ]
        frames[t] = np.max(blobs, axis=0).round()
    return frames


def offsets(n_frames: int, step: int = 5) -> str:
    """``minute_offsets`` as SEVIR writes them, 0 in the middle."""
    return ":".join(str((t - n_frames // 2) * step) for t in range(n_frames))


def row(id: str, index: int, frames: NDArray, *, day: str = DAY, step: int = 5, **changes: Any) -> dict[str, Any]:
    """One catalogue row with SEVIR's columns."""
    cells = dict.fromkeys(CATALOGUE_COLUMNS, "")
    cells |= {"id": id, "file_name": FILE_NAME, "file_index": index, "img_type": "vil", "time_utc": f"{day} 12:00:00"}
    cells |= {"minute_offsets": offsets(len(frames), step), "size_x": frames.shape[2], "size_y": frames.shape[1]}
    return cells | {"pct_missing": (frames == 255).mean(), **changes}


def write_catalogue(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, CATALOGUE_COLUMNS)
        table.writeheader()
        table.writerows(rows)
    return path


def write_hdf5(path: Path, events: Mapping[str, NDArray], **storage: Any) -> Path:
    """``id`` and ``vil`` (N, H, W, T) with time fastest; contiguous unless ``storage`` says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["id"] = np.array(list(events), dtype="S")
        file.create_dataset("vil", data=np.stack([f.transpose(1, 2, 0) for f in events.values()]), **storage)
    return path


def write_sevir(
    folder: Path, events: Mapping[str, NDArray], *, days: Sequence[str] = (), step: int = 5, **storage: Any
) -> Path:
    """One HDF5 file and its catalogue; ``days`` (default: all on ``DAY``) in the order of ``events``."""
    write_hdf5(folder / FILE_NAME, events, **storage)
    when = days or [DAY] * len(events)
    rows = [row(id, i, events[id], day=day, step=step) for i, (id, day) in enumerate(zip(events, when, strict=True))]
    return write_catalogue(folder / "CATALOG.csv", rows)


def storms(n_events: int, **size: int) -> dict[str, NDArray[np.uint8]]:
    """Events R00, R01, … for :func:`write_sevir`."""
    return {f"R{i:02d}": storm(i, **size) for i in range(n_events)}


def event(id: str = "R00", *, day: str = DAY, n_frames: int = 49, step: int = 5) -> Event:
    """An event that exists in no file, for what only looks at dates and offsets."""
    minutes = tuple(int(m) for m in offsets(n_frames, step).split(":"))
    return Event(id, Path("nowhere.h5"), 0, datetime.fromisoformat(f"{day} 12:00:00"), minutes)
