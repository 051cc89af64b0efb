"""Simulated storms, written as SEVIR files: data for demos and tests where SEVIR itself is not at hand.

What the storms are is in ``storms.py``; here are the files, the catalogue and the care taken not to overwrite anything.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from nbhelpers.core.disk import check_room
from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.data import (
    CATALOGUE_COLUMNS,
    CATALOGUE_NAMES,
    IMG_TYPE,
    MISSING,
    SIMULATION_NAME,
    TEST_FROM,
)
from nbhelpers.stages.perceptual_unet.storms import VERSION, regime_of, simulate_event

EARTH_RADIUS = 6370997.0  # m, of SEVIR's projection
PROJECTION = "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere "
# SEVIR's periods of its files, (first month-day, last month-day).
PERIODS = {
    "STORMEVENTS": (("0101", "0630"), ("0701", "1231")),
    "RANDOMEVENTS": (("0101", "0430"), ("0501", "0831"), ("0901", "1231")),
}


def simulate(
    data_dir: Path,
    *,
    n_events: int = 48,
    size: int = 192,
    n_frames: int = 49,
    step_minutes: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write ``n_events`` simulated events of ``n_frames`` × ``size`` × ``size`` pixels (1 km); returns the catalogue.

    The folder then holds ``vil/<year>/SEVIR_VIL_{STORMEVENTS|RANDOMEVENTS}_<year>_<from>_<to>.h5``, ``CATALOG.csv``
    and ``SIMULATED.json``. The catalogue is written last, so a simulation that was killed has none and is simply
    repeated; with the same parameters a complete folder is left as it is. Event ``k`` depends on ``(seed, k)`` and
    the grid, not on ``n_events``.

    Raises:
        UserError: impossible parameters, too little disk, or a folder that holds anything else but these storms.
    """
    parameters = {"n_events": n_events, "size": size, "n_frames": n_frames, "step_minutes": step_minutes, "seed": seed}
    for name, least in {"n_events": 1, "size": 32, "n_frames": 2, "step_minutes": 1, "seed": 0}.items():
        if parameters[name] < least:
            raise UserError(f"{name} is {parameters[name]}, expected at least {least}: choose a larger {name}.")
    rows = [_catalogue_row(index, **parameters) for index in range(n_events)]
    files: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        row["file_index"] = len(files[row["file_name"]])
        files[row["file_name"]].append(index)
    marker = {"simulated": True, "version": VERSION, **parameters}
    catalogue = data_dir / CATALOGUE_NAMES[0]
    if _is_there(data_dir, marker, files):
        return catalogue
    data_dir.mkdir(parents=True, exist_ok=True)
    needed = n_events * size * size * n_frames + 2**20
    check_room(data_dir, needed, "a simulation of these storms")
    _write_text(data_dir / SIMULATION_NAME, json.dumps(marker, indent=2) + "\n")
    with tqdm(total=n_events, desc="simulating storms", unit="event", disable=not progress) as bar:
        for file_name, indices in files.items():
            path = data_dir / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            with h5py.File(part, "w") as file:
                file.create_dataset("id", data=np.array([rows[index]["id"] for index in indices], dtype="S"))
                vil = file.create_dataset(IMG_TYPE, (len(indices), size, size, n_frames), np.uint8)  # contiguous
                for position, index in enumerate(indices):
                    frames = simulate_event(
                        seed=seed, index=index, size=size, n_frames=n_frames, step_minutes=step_minutes
                    ).frames
                    vil[position] = frames.transpose(1, 2, 0)
                    rows[index].update(_statistics(frames))
                    bar.update()
            os.replace(part, path)
    lines = io.StringIO(newline="")
    table = csv.DictWriter(lines, CATALOGUE_COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    _write_text(catalogue, lines.getvalue())
    return catalogue


def _is_there(data_dir: Path, marker: dict[str, Any], files: Iterable[str]) -> bool:
    """Whether ``data_dir`` already holds exactly these storms; raises rather than let anything else be overwritten."""
    places = [data_dir / folder / name for folder in ("", "data", "sevir") for name in CATALOGUE_NAMES]
    catalogue = next((path for path in places if path.is_file()), None)
    targets = [data_dir / name for name in files]
    if not (data_dir / SIMULATION_NAME).is_file():
        # SEVIR's own files have these names.
        found = catalogue or next((path for path in targets if path.exists()), None)
        if found:
            raise UserError(
                f"{found} is not simulated (no {SIMULATION_NAME} in {data_dir}): choose another, empty data folder."
            )
        return False
    try:
        old = json.loads((data_dir / SIMULATION_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{data_dir / SIMULATION_NAME} is not JSON ({error}): choose another data folder for the storms."
        ) from error
    if catalogue is None:
        return False  # a simulation that was killed
    other = ", ".join(f"{key}={old.get(key)} (asked: {new})" for key, new in marker.items() if old.get(key) != new)
    if other:
        raise UserError(f"{data_dir} holds storms simulated with {other}: choose another folder or delete this one.")
    return all(path.is_file() for path in targets)


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)


def _catalogue_row(
    index: int, *, seed: int, size: int, n_frames: int, step_minutes: int, n_events: int
) -> dict[str, Any]:
    """SEVIR's columns of event ``index``, but for ``file_index`` and what only its frames tell."""
    rng = np.random.default_rng([seed, index, 1])
    regime = regime_of(index)
    time = _event_time(rng, index)
    period = next(p for p in PERIODS[regime.kind] if f"{time:%m%d}" <= p[1])
    x, y = rng.uniform(-600e3, 1400e3), rng.uniform(-500e3, 700e3)  # lower left corner: the central United States
    (south, west), (north, east) = _lat_lon(x, y), _lat_lon(x + size * 1e3, y + size * 1e3)
    storm = regime.kind == "STORMEVENTS"
    return {
        "id": f"S{900000 + index}" if storm else f"R{time:%y%m%d%H%M}{index:04d}",
        "file_name": f"vil/{time.year}/SEVIR_VIL_{regime.kind}_{time.year}_{period[0]}_{period[1]}.h5",
        "img_type": IMG_TYPE,
        "time_utc": f"{time:%Y-%m-%d %H:%M:%S}",
        "minute_offsets": ":".join(str((i - n_frames // 2) * step_minutes) for i in range(n_frames)),
        "episode_id": 100000 + index if storm else "",
        "event_id": 900000 + index if storm else "",
        "event_type": regime.event_type,
        "llcrnrlat": south,
        "llcrnrlon": west,
        "urcrnrlat": north,
        "urcrnrlon": east,
        "proj": PROJECTION,
        "size_x": size,
        "size_y": size,
        "height_m": size * 1000,
        "width_m": size * 1000,
    }


def _event_time(rng: np.random.Generator, index: int) -> datetime:
    """70 % before SEVIR's test period, 30 % in it; by the golden ratio, so that even two events fall on both sides."""
    share = (0.3 + index * (np.sqrt(5) - 1) / 2) % 1.0
    first, last = datetime(2018, 1, 1), datetime(2019, 12, 1)
    day = (
        first + share / 0.7 * (TEST_FROM - first)
        if share < 0.7
        else TEST_FROM + (share - 0.7) / 0.3 * (last - TEST_FROM)
    )
    return datetime(day.year, day.month, day.day) + timedelta(minutes=5 * int(rng.integers(288)))


def _lat_lon(x: float, y: float) -> tuple[float, float]:
    """Degrees of a point of SEVIR's projection, metres (inverse Lambert azimuthal, Snyder 1987, eqs. 20-14, 20-15)."""
    lat0, distance = np.radians(38.0), np.hypot(x, y)
    c = 2 * np.arcsin(distance / (2 * EARTH_RADIUS))
    lat = np.arcsin(np.cos(c) * np.sin(lat0) + y * np.sin(c) * np.cos(lat0) / distance)
    lon = np.arctan2(x * np.sin(c), distance * np.cos(lat0) * np.cos(c) - y * np.sin(lat0) * np.sin(c))
    return float(np.degrees(lat)), float(np.degrees(lon)) - 98.0


def _statistics(frames: NDArray[np.uint8]) -> dict[str, Any]:
    measured = frames[frames != MISSING]
    missing = 1 - measured.size / frames.size
    return {"data_min": int(measured.min()), "data_max": int(measured.max()), "pct_missing": missing}
