"""Reading a folder of simulations as :mod:`layout` describes it: what is there, and one frame at a time."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import layout
from nbhelpers.stages.neural_operator.facts import Simulation, is_number, read_json

FOLDER = re.compile(re.escape(layout.SIMULATION_PREFIX) + r"(\d{6})")
FRAME = re.compile(r"(.+)_(\d{6})\.npz")


@dataclass(frozen=True)
class FolderStore:
    """Frames of a set on disk, by simulation name."""

    root: Path  # holds the sim_ folders
    channels: Mapping[str, int]  # of each field, in the order in which they are stacked
    shape: tuple[int, int]  # (H, W) as read: rows are y
    x_first: bool  # arrays on disk are (C, x, y), as in the published sets
    mask_in_fluid: bool  # the obstacle mask is 1 outside the obstacle, as in the published sets

    def read(self, name: str, frames: Sequence[int]) -> NDArray[np.float32]:
        """``(T, C, H, W)`` of the numbered frames.

        Raises:
            UserError: a file is missing, damaged, of another shape than the rest, or holds NaN or infinity.
        """
        out = np.empty((len(frames), sum(self.channels.values()), *self.shape), np.float32)
        for t, frame in enumerate(frames):
            channel = 0
            for field, count in self.channels.items():
                path = self.root / name / layout.frame_name(field, frame)
                values = read_array(path, x_first=self.x_first)
                if values.shape != (count, *self.shape):
                    raise UserError(
                        f"{path} holds {values.shape} (channels, rows, columns), but the set began with "
                        f"{(count, *self.shape)}: keep one grid a set, or fetch that file again."
                    )
                out[t, channel : channel + count] = values
                channel += count
        return out

    def obstacle(self, name: str) -> NDArray[np.bool_] | None:
        """``(H, W)``, True inside the obstacle; None for a simulation without one."""
        path = self.root / name / layout.OBSTACLE
        if not path.is_file():
            return None
        (mask, *more) = read_array(path, x_first=self.x_first)
        if more or mask.shape != self.shape:
            raise UserError(
                f"{path} holds {(1 + len(more), *mask.shape)}, but the fields are {self.shape}: make the mask again."
            )
        inside = mask < 0.5 if self.mask_in_fluid else mask >= 0.5
        if inside.mean() > 0.5:
            wanted = "1 in the fluid" if self.mask_in_fluid else "1 inside the obstacle"
            raise UserError(
                f"{path} makes {inside.mean():.0%} of the grid an obstacle: the mask of this set must be {wanted}, so "
                "turn it round."
            )
        return inside


def find_simulations(path: Path) -> tuple[Path, list[int]]:
    """The folder that holds ``sim_%06d`` folders, and their numbers: ``path``, or one or two levels inside it.

    An archive is unpacked into a folder of its own name, in which its own top folder then lies.
    """
    if not path.is_dir():
        raise UserError(f"data folder {path} does not exist: give --data-dir the folder that holds sim_000000.")
    level = [path]
    for _ in range(3):
        found = {folder: numbers for folder in level if (numbers := _numbers(folder))}
        if len(found) > 1:
            names = ", ".join(str(folder.relative_to(path)) for folder in found)
            raise UserError(f"{path} holds {len(found)} sets ({names}): point --data-dir at one of them.")
        if found:
            return next(iter(found.items()))
        level = sorted(entry for folder in level for entry in folder.iterdir() if entry.is_dir())
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    raise UserError(
        f"no sim_000000 folder in {path} (it holds {inside}): point --data-dir at the set's folder, or make data with "
        "`nbhelpers data simulate neural-operator`."
    )


def _numbers(folder: Path) -> list[int]:
    with os.scandir(folder) as entries:
        found = [int(match[1]) for entry in entries if (match := FOLDER.fullmatch(entry.name)) and entry.is_dir()]
    return sorted(found)


def look_into(root: Path, number: int, fields: Sequence[str]) -> Simulation:
    """What one folder holds; of its frames only the names are read.

    Raises:
        UserError: no description.json, a field that no file has, a frame that is there in one field and not in
            another, or a gap.
    """
    folder = root / layout.simulation_name(number)
    frames = _frames(folder, fields)
    parameters: dict[str, float] = {}
    series: dict[str, tuple[float, ...]] = {}
    for key, value in read_json(folder / layout.DESCRIPTION).items():
        if is_number(value):
            parameters[key] = float(value)
        elif isinstance(value, list) and len(value) > frames[-1] and all(map(is_number, value)):
            series[key] = tuple(map(float, value))
    return Simulation(folder.name, number, frames, parameters, series, (folder / layout.OBSTACLE).is_file())


def _frames(folder: Path, fields: Sequence[str]) -> range:
    by_field: dict[str, set[int]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if match := FRAME.fullmatch(entry.name):
                by_field.setdefault(match[1], set()).add(int(match[2]))
    for field in fields:
        if field not in by_field:
            known = ", ".join(sorted(by_field)) or "none"
            raise UserError(f"{folder} has no field {field!r} (it has {known}): choose fields among those.")
    everything = set().union(*(by_field[field] for field in fields))
    frames = range(min(everything), max(everything) + 1)
    for field in fields:
        if lost := [frame for frame in frames if frame not in by_field[field]]:
            raise UserError(
                f"{folder / layout.frame_name(field, lost[0])} is missing ({len(lost)} of the frames {frames[0]} to "
                f"{frames[-1]} are): fetch it again, or number the frames without gaps."
            )
    return frames


def read_array(path: Path, *, x_first: bool) -> NDArray[np.float32]:
    """The finite array of an ``.npz`` as ``(C, H, W)``, rows y; a scalar may be stored as ``(H, W)``."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it is one bare array")
        with loaded as archive:
            if layout.KEY not in archive:
                raise UserError(
                    f"{path} holds {', '.join(archive.files) or 'nothing'} and no array {layout.KEY!r}: save it with "
                    "numpy.savez_compressed(path, values)."
                )
            values = archive[layout.KEY]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: fetch or simulate that frame again.") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise UserError(f"{path} is not a readable .npz file ({error}): fetch or simulate that frame again.") from error
    if values.dtype.kind not in "fiub" or values.ndim not in (2, 3) or 0 in values.shape:
        raise UserError(
            f"{path} holds {values.dtype} of shape {values.shape}, expected numbers of shape (channels, rows, columns) "
            "or (rows, columns): save it so."
        )
    with np.errstate(over="ignore"):  # what does not fit into float32 is said below
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(
            f"{path} holds {np.count_nonzero(~np.isfinite(values))} values that are NaN or infinite: the simulation "
            "blew up or the file is damaged; make it again."
        )
    values = values if values.ndim == 3 else values[None]
    return values.swapaxes(1, 2) if x_first else values
