"""The MATLAB files of the FNO benchmark's Navier-Stokes data: vorticity ``u`` (N, x, y, T), a simulation a row.

Li et al. (2021), "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR, arXiv:2010.08895: the
unit square, periodic, 64 by 64 points, a frame each unit of time. Some of the files are version 7.3 (HDF5, which shows
the axes of MATLAB in reverse), others older; the name gives viscosity, number of rows and final time.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator.facts import Facts, Simulation

SUFFIX = ".mat"
NAME = re.compile(r"_V(?P<viscosity>\d+(?:\.\d+)?(?:e-?\d+)?)(?:_N\d+)?(?:_T(?P<time>\d+(?:\.\d+)?))?", re.IGNORECASE)
VARIABLE = "u"
TIMES = "t"  # of the frames
OLDER_ROWS = 16  # brought into the reader's order at once, where the whole file is in memory anyway
BLOCK_BYTES = 128 * 2**20  # of neighbouring rows read at once where MATLAB has interleaved them


@dataclass(frozen=True)
class MatlabStore:
    """The rows of one file; nothing but the shape is read before a row is asked for."""

    path: Path
    n_rows: int
    shape: tuple[int, int]  # (H, W), rows are y
    n_frames: int
    viscosity: float
    frame_gap: float  # time between two frames
    rows_at_once: int  # that share their bytes on disk: reading one costs as much as reading all of them
    loaded: NDArray[Any] | None = field(repr=False, compare=False)  # the whole variable of an older file, else None

    def simulations(self) -> tuple[Simulation, ...]:
        """One a row."""
        told = {"Viscosity": self.viscosity}
        return tuple(Simulation(f"row_{row:06d}", row, range(self.n_frames), told) for row in range(self.n_rows))

    def facts(self) -> Facts:
        """The benchmark's unit square; statistics are not published."""
        return Facts("fno", "fno-benchmark", (1.0, 1.0), True, self.frame_gap)

    def rows(self, first: int, stop: int) -> NDArray[np.float32]:
        """``(N, T, 1, H, W)`` of the rows from ``first`` to before ``stop``.

        Raises:
            UserError: the file is damaged, or the rows hold NaN or infinity.
        """
        if self.loaded is not None:
            values = self.loaded[first:stop].transpose(0, 3, 2, 1)  # (N, x, y, T) -> (N, T, y, x)
        else:
            try:
                with h5py.File(self.path, "r") as file:
                    values = file[VARIABLE][..., first:stop].transpose(3, 0, 1, 2)  # (T, y, x, N) -> (N, T, y, x)
            except (OSError, KeyError, RuntimeError) as error:
                raise UserError(f"{self.path} is a damaged MATLAB file ({error}): fetch it again.") from error
        out = np.ascontiguousarray(values, dtype=np.float32)
        if not np.isfinite(out).all():
            bad = first + int(np.flatnonzero(~np.isfinite(out).all(axis=(1, 2, 3)))[0])
            raise UserError(f"{self.path} holds NaN or infinite values in row {bad} of {VARIABLE!r}: fetch it again.")
        return out[:, :, None]

    def block(self, row: int) -> tuple[int, NDArray[np.float32]]:
        """The rows that come off the disk together with ``row``: the first one's number, and all of them."""
        first = row - row % self.rows_at_once
        return first, self.rows(first, min(first + self.rows_at_once, self.n_rows))


def find_file(path: Path) -> Path | None:
    """The one ``.mat`` file in a folder or one level inside it, as an archive leaves it; None where there is none."""
    found = sorted([*path.glob("*" + SUFFIX), *path.glob("*/*" + SUFFIX)])
    if len(found) > 1:
        names = ", ".join(str(one.relative_to(path)) for one in found)
        raise UserError(f"{path} holds {len(found)} MATLAB files ({names}): point --data-dir at one of them.")
    return found[0] if found else None


def open_matlab(path: Path) -> MatlabStore:
    """Look into a file of the benchmark.

    Raises:
        UserError: not a MATLAB file, no four-dimensional ``u``, or a name without the viscosity (``_V1e-5``).
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give --data-dir the .mat file itself or a folder of simulations.")
    name = NAME.search(path.stem)
    if name is None:
        raise UserError(
            f"the name of {path} does not say the viscosity: call it as the benchmark does, e.g. "
            "NavierStokes_V1e-5_N1200_T20.mat."
        )
    if h5py.is_hdf5(path):
        shape, rows_at_once, times = _look_into_hdf5(path)
        loaded = None
    else:
        loaded, times = _load_older(path)
        shape, rows_at_once = loaded.shape, min(len(loaded), OLDER_ROWS)
    n_rows, width, height, n_frames = shape
    return MatlabStore(
        path,
        n_rows,
        (height, width),
        n_frames,
        float(name["viscosity"]),
        _frame_gap(times, name["time"], n_frames, path),
        rows_at_once,
        loaded,
    )


def _look_into_hdf5(path: Path) -> tuple[tuple[int, ...], int, NDArray[np.float64]]:
    """Shape of ``u`` as MATLAB gives it, how many rows to read at once, and the times."""
    try:
        with h5py.File(path, "r") as file:
            names = [str(name) for name in file]
            data = file[VARIABLE] if VARIABLE in names else None
            if not isinstance(data, h5py.Dataset) or data.ndim != 4 or data.dtype.kind != "f" or 0 in data.shape:
                raise UserError(_wrong(path, names, getattr(data, "shape", None)))
            row_bytes = data.nbytes // data.shape[3]
            chunk = data.chunks[3] if data.chunks else 1
            times = np.ravel(file[TIMES][()]).astype(np.float64) if TIMES in names else np.empty(0)
            return data.shape[::-1], chunk * max(1, BLOCK_BYTES // (row_bytes * chunk)), times
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is a damaged MATLAB file ({error}): fetch it again.") from error


def _load_older(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The whole of ``u``, which these files hold in one compressed piece, and the times."""
    try:
        content = scipy.io.loadmat(path, variable_names=[VARIABLE, TIMES])
        names = [name for name, *_ in scipy.io.whosmat(path)]
    except (OSError, ValueError, TypeError, NotImplementedError, EOFError, zlib.error, MatReadError) as error:
        raise UserError(f"{path} is not a readable MATLAB file ({error}): fetch it again.") from error
    values = content.get(VARIABLE)
    if values is None or values.ndim != 4 or values.dtype.kind != "f" or 0 in values.shape:
        raise UserError(_wrong(path, names, getattr(values, "shape", None)))
    return values, np.ravel(content.get(TIMES, [])).astype(np.float64)


def _wrong(path: Path, names: list[str], shape: tuple[int, ...] | None) -> str:
    found = f"{VARIABLE!r} of shape {shape}" if shape else f"the variables {', '.join(names) or 'none'}"
    return (
        f"{path} holds {found}, expected real numbers {VARIABLE!r} of shape (simulations, x, y, times): use the "
        "benchmark's own layout."
    )


def _frame_gap(times: NDArray[np.float64], final: str | None, n_frames: int, path: Path) -> float:
    """From the file's own times; the final time of the name is not always that of the last frame."""
    if len(times) == n_frames > 1 and (gap := float(np.median(np.diff(times)))) > 0:
        return gap
    if final is None:
        raise UserError(f"{path} has no {TIMES!r} and no final time in its name: name it as ns_V1e-3_N5000_T50.mat.")
    return float(final) / n_frames
