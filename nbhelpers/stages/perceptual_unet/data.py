"""SEVIR's file format: the catalogue, the HDF5 event files and what their grey levels mean.

Veillette, Samsi, Mattioli (2020), "SEVIR: A Storm Event Imagery Dataset for Deep Learning Applications in Radar
and Satellite Meteorology", NeurIPS. Any radar written in this layout reads the same way: sizes, number of frames
and time step come from the files.
"""

from __future__ import annotations

import csv
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.core.fields import Affine, Field

IMG_TYPE = "vil"  # vertically integrated liquid, the only image type this stage reads
MISSING = 255  # grey level of pixels without a measurement
THRESHOLDS = (16, 74, 133, 160, 181, 219)  # grey levels at which SEVIR's event scores are defined
TEST_FROM = datetime(2019, 6, 1)  # SEVIR's official test split begins here
SIMULATION_NAME = "SIMULATED.json"  # stands beside the catalogue of simulated data and says how they were made
CATALOGUE_NAMES = ("CATALOG.csv", "SEVIR_CATALOG.csv")
CATALOGUE_COLUMNS = (
    "id,file_name,file_index,img_type,time_utc,minute_offsets,episode_id,event_id,event_type,llcrnrlat,llcrnrlon,"
    "urcrnrlat,urcrnrlon,proj,size_x,size_y,height_m,width_m,data_min,data_max,pct_missing"
).split(",")
NEEDED_COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "minute_offsets", "pct_missing")

# Mean and standard deviation are those published with SEVIR for all VIL frames.
VIL = Field(
    name="vil",
    units="grey level (0-254)",
    valid_range=(0.0, 254.0),
    mean=33.44,
    std=47.54,
    missing=MISSING,
    transform=Affine(scale=255.0),
)


def vil_kg_m2(level: NDArray) -> NDArray[np.float64]:
    """Vertically integrated liquid in kg m⁻² of SEVIR grey levels; NaN where missing (255).

    0 for X ≤ 5, (X − 2)/90.66 for 5 < X ≤ 18, exp((X − 83.9)/38.9) above.
    """
    x = np.asarray(level, dtype=np.float64)
    value = np.where(x <= 5, 0.0, np.where(x <= 18, (x - 2) / 90.66, np.exp((x - 83.9) / 38.9)))
    return np.where(x == MISSING, np.nan, value)


@dataclass(frozen=True)
class Event:
    """One row of the catalogue: a sequence of radar frames over one place."""

    id: str  # unique name, e.g. R18032505027684
    path: Path  # HDF5 file that holds it
    index: int  # its position along the first axis of the file's `vil`
    time: datetime  # UTC time of minute offset 0
    minutes: tuple[int, ...]  # minute offset of each frame


def find_catalogue(data_dir: Path) -> Path:
    """The catalogue in ``data_dir`` itself or in its ``data`` or ``sevir`` folder (as people keep it on Drive)."""
    if not data_dir.is_dir():
        raise UserError(f"data folder {data_dir} does not exist: give --data-dir the folder that holds CATALOG.csv.")
    for folder in (data_dir, data_dir / "data", data_dir / "sevir"):
        for name in CATALOGUE_NAMES:
            if (folder / name).is_file():
                return folder / name
    inside = ", ".join(sorted(p.name for p in data_dir.iterdir())[:5]) or "nothing"
    raise UserError(
        f"no CATALOG.csv or SEVIR_CATALOG.csv in {data_dir} (it holds {inside}): point --data-dir at SEVIR's folder, "
        "or make data with `nbhelpers data simulate perceptual-unet`."
    )


def simulation_record(data_dir: Path) -> dict[str, Any] | None:
    """How the data were simulated; None for data that do not say they are."""
    record = find_catalogue(data_dir).parent / SIMULATION_NAME
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None


def read_catalogue(data_dir: Path, *, max_pct_missing: float = 0.0) -> list[Event]:
    """Events of type ``vil`` with at most ``max_pct_missing`` (a fraction, 0–1) missing, ids once, sorted by id.

    Raises:
        UserError: no catalogue, missing columns, unreadable values, files that are not there, no usable event.
    """
    catalogue = find_catalogue(data_dir)
    rows = catalogue_rows(catalogue)
    events: dict[str, Event] = {}
    paths: dict[str, Path | None] = {}  # asking a mounted drive about the same file for every row would take minutes
    for line, row in rows:
        try:
            # SEVIR writes the index as 12 or 12.0 and leaves pct_missing empty for some rows.
            if not float(row["pct_missing"] or 0.0) <= max_pct_missing:
                continue
            name = row["file_name"]
            if name not in paths:
                paths[name] = _event_file(catalogue, name)
            path = paths[name]
            if path is None:
                continue
            event = Event(
                id=row["id"],
                path=path,
                index=int(float(row["file_index"])),
                time=datetime.fromisoformat(row["time_utc"]),
                minutes=tuple(int(float(m)) for m in row["minute_offsets"].split(":")),
            )
        except (ValueError, OverflowError) as error:
            raise UserError(f"{catalogue} line {line} cannot be read ({error}): repair or delete that row.") from error
        events.setdefault(event.id, event)
    if not events and (gone := [name for name, path in paths.items() if path is None]):
        raise UserError(
            f"{catalogue} names {len(gone)} files, e.g. {gone[0]}, and none of them is in {catalogue.parent}: fetch "
            "them, or point --data-dir at the folder that holds them."
        )
    if not events:
        raise UserError(
            f"{catalogue} has {len(rows)} rows of type {IMG_TYPE!r} but none with pct_missing <= {max_pct_missing}: "
            "raise max_pct_missing or fetch other events."
        )
    return [events[key] for key in sorted(events)]


def catalogue_rows(catalogue: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of every row of type ``vil``."""
    try:
        with catalogue.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            header, rows = table.fieldnames or (), [(table.line_num, row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{catalogue} cannot be read as CSV text ({error}): fetch it again, or give --data-dir another folder."
        ) from error
    if absent := [name for name in NEEDED_COLUMNS if name not in header]:
        raise UserError(f"{catalogue} lacks the column(s) {', '.join(absent)}: use SEVIR's own CATALOG.csv layout.")
    for line, row in rows:
        if any(row[name] is None for name in NEEDED_COLUMNS):
            raise UserError(
                f"{catalogue} line {line} ends early: it may be half a download; fetch it again or delete that row."
            )
    return [(line, row) for line, row in rows if row["img_type"] == IMG_TYPE]


def _event_file(catalogue: Path, file_name: str) -> Path | None:
    """Where the file lies; None when it is not there (few people keep all of SEVIR)."""
    folders = (catalogue.parent, catalogue.parent / "data", catalogue.parent / "sevir")
    return next((folder / file_name for folder in folders if (folder / file_name).is_file()), None)


def absent_files(data_dir: Path) -> list[str]:
    """Files that the catalogue names and the folder lacks: their events are left out, which a report must say."""
    catalogue = find_catalogue(data_dir)
    names = sorted({row["file_name"] for _, row in catalogue_rows(catalogue)})
    return [name for name in names if _event_file(catalogue, name) is None]


def check_events(events: Sequence[Event]) -> tuple[int, int]:
    """Open every file once and check that it holds what the catalogue says; returns height and width of the frames.

    Raises:
        UserError: unreadable or truncated file, wrong dtype or shape, an index outside the file, another id at that
            index, another number of frames than minute offsets, frames of different sizes.
    """
    shapes: dict[tuple[int, int], Event] = {}
    for path in sorted({event.path for event in events}):
        mine = [event for event in events if event.path == path]
        with _open(path) as file:
            vil = _dataset(file, path)
            _check_not_truncated(vil, path)
            ids = _ids(file, path, n_events=vil.shape[0])
            for event in mine:
                if not 0 <= event.index < vil.shape[0]:
                    raise UserError(
                        f"event {event.id} has file_index {event.index}, but {path} holds {vil.shape[0]} events: the "
                        "catalogue does not belong to this file."
                    )
                if ids is not None and ids[event.index] != event.id:
                    raise UserError(
                        f"{path} holds event {ids[event.index]} at index {event.index} where the catalogue expects "
                        f"{event.id}: the catalogue does not belong to this file."
                    )
                if len(event.minutes) != vil.shape[3]:
                    raise UserError(
                        f"event {event.id} has {len(event.minutes)} minute_offsets, but {path} holds {vil.shape[3]} "
                        "frames an event: correct the catalogue."
                    )
            shapes.setdefault((vil.shape[1], vil.shape[2]), mine[0])
    if len(shapes) > 1:
        raise UserError(f"events of different sizes {sorted(shapes)} in one catalogue: keep one grid a data folder.")
    return next(iter(shapes))


def read_event(event: Event) -> NDArray[np.uint8]:
    """All frames of one event as ``(T, H, W)`` uint8 grey levels, 255 missing.

    A contiguous dataset (SEVIR's own) is memory-mapped; a chunked or compressed one is read through h5py. The whole
    event is read: time runs fastest in the file, so a strided read of some frames touches every block anyway.

    Raises:
        UserError: as :func:`check_events`, and for an event without a single measured pixel.
    """
    with _open(event.path) as file:
        vil = _dataset(file, event.path)
        _check_not_truncated(vil, event.path)
        offset, shape = vil.id.get_offset(), vil.shape
        if not 0 <= event.index < shape[0]:
            raise UserError(
                f"event {event.id} has file_index {event.index}, but {event.path} holds {shape[0]} events: the "
                "catalogue does not belong to this file."
            )
        with _reading(event.path):
            block = vil[event.index] if offset is None else None
    if block is None:
        size = int(np.prod(shape[1:]))
        # A memmap of just this event: the operating system's page cache then holds nothing else.
        block = np.memmap(event.path, np.uint8, "r", offset=offset + event.index * size, shape=shape[1:])
    frames = np.ascontiguousarray(block.transpose(2, 0, 1))
    if frames.min() == MISSING:
        raise UserError(f"event {event.id} in {event.path} holds nothing but 255 (missing): delete its catalogue row.")
    return frames


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path} is not a readable HDF5 file ({error}): it is damaged or half a download; fetch it again."
        ) from error


def _dataset(file: h5py.File, path: Path) -> h5py.Dataset:
    with _reading(path):
        names = [str(name) for name in file]
        data = file[IMG_TYPE] if IMG_TYPE in names else None
    if not isinstance(data, h5py.Dataset):
        raise UserError(
            f"{path} has no dataset {IMG_TYPE!r} (it has {', '.join(names) or 'none'}): expected SEVIR's layout."
        )
    if data.dtype != np.uint8 or data.ndim != 4:
        raise UserError(
            f"{path}:{IMG_TYPE} is {data.dtype} of shape {data.shape}, expected uint8 of shape (events, height, width, "
            "frames): convert it to SEVIR's grey levels."
        )
    return data


def _ids(file: h5py.File, path: Path, *, n_events: int) -> list[str] | None:
    """The event ids that the file itself holds; None for a file without any."""
    with _reading(path):
        if "id" not in file:
            return None
        data = file["id"]
    if not isinstance(data, h5py.Dataset) or data.shape != (n_events,):
        raise UserError(
            f"{path}:id has shape {getattr(data, 'shape', None)}, expected one id for each of the {n_events} events of "
            f"{IMG_TYPE!r}: the file is damaged; fetch it again."
        )
    with _reading(path):
        return [key.decode(errors="replace") if isinstance(key, bytes) else str(key) for key in data[:]]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what HDF5 raises on a damaged file, which depends on where the damage lies, into one sentence."""
    try:
        yield
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is a damaged HDF5 file ({error}): fetch it again.") from error


def _check_not_truncated(data: h5py.Dataset, path: Path) -> None:
    # HDF5 refuses a file shorter than its header says, but a header can be patched to the length of what is left, and
    # before version 2 it does not look any further.
    offset = data.id.get_offset()
    if offset is not None and offset + data.size > path.stat().st_size:
        raise UserError(
            f"{path} ends after {path.stat().st_size} bytes, but its {IMG_TYPE!r} needs {offset + data.size}: it is "
            "half a download; fetch it again."
        )


class EventCache:
    """Events in memory, least recently used out first; frame-major, so that a window is one slice.

    It carries no state that matters: whatever it forgets, it reads again.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._events: OrderedDict[Event, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, event: Event) -> NDArray[np.uint8]:
        """``(T, H, W)`` uint8 frames of ``event``; read from disk only when they are not in memory."""
        if event in self._events:
            self._events.move_to_end(event)
            return self._events[event]
        frames = read_event(event)
        self._events[event] = frames
        self._bytes += frames.nbytes
        while self._bytes > self.max_bytes and len(self._events) > 1:
            _, dropped = self._events.popitem(last=False)
            self._bytes -= dropped.nbytes
        return frames

    def events_that_fit(self, events: Sequence[Event], shape: tuple[int, int]) -> int:
        """How many of ``events``, with frames of ``shape`` pixels, the cache holds at once; reads none of them."""
        height, width = shape
        return max(1, self.max_bytes // (max(len(event.minutes) for event in events) * height * width))
