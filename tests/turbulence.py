"""Tiny but real sets of simulations, written by the package's own writer, and MATLAB files as MATLAB writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from nbhelpers.stages.neural_operator import layout
from nbhelpers.stages.neural_operator.canonical import SETS
from nbhelpers.stages.neural_operator.facts import Facts, Simulation, facts_of
from nbhelpers.stages.neural_operator.layout import write_simulation

RECORD = {"set": "decaying", "simulated": True, "lengths": [1.0, 2.0], "periodic": True, "frame_gap": 0.5}


def flow(seed: int, *, n_frames: int = 6, shape: tuple[int, int] = (12, 16)) -> dict[str, NDArray[np.float32]]:
    """Fields ``(T, C, H, W)`` and ``(T, H, W)``, rows y, that no transposition leaves alone."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape) / 10
    t = np.arange(n_frames)[:, None, None] / 7
    phase = rng.uniform(0, 6, 3)
    u = np.sin(x + 2 * y + t + phase[0])
    v = np.cos(3 * x - y + t + phase[1])
    p = np.sin(x * y + t + phase[2]) + 2
    return {"velocity": np.stack([u, v], axis=1).astype(np.float32), "pressure": p.astype(np.float32)}


def write_own(
    root: Path,
    n_simulations: int = 4,
    *,
    record: Mapping[str, Any] | None = RECORD,
    obstacle: NDArray[np.bool_] | None = None,
    **size: Any,
) -> Path:
    """A set with a dataset.json (unless ``record`` is None); only its even simulations have the obstacle."""
    for number in range(n_simulations):
        mask = obstacle if number % 2 == 0 else None
        told = {"Reynolds Number": 100.0 * (number + 1), "Seed": number, "Solver": "ours"}
        write_simulation(root, number, flow(number, **size), description=told, obstacle=mask)
    if record is not None:
        (root / layout.DATASET).write_text(json.dumps(record))
    return root


def published_description(kind: str, number: int, n_frames: int) -> dict[str, Any]:
    """What the published sets say of a simulation, with their odds and ends."""
    if kind == "inc":
        return {"Reynolds Number": 1000.0 - 10 * number, "Cylinder Size": 0.6, "Resolution": [256, 128], "Dt": 0.05}
    if kind == "tra":
        lift = [0.1 * frame for frame in range(n_frames)]
        return {"Reynolds Number": 10000.0, "Mach Number": 0.5 + 0.01 * number, "Drag Coefficient": lift}
    return {"JHTDB Dataset": "isotropic1024coarse", "Z Slice": number + 1, "Cutout Positions": ["idx: 0"] * n_frames}


def write_published(
    root: Path,
    kind: str,
    numbers: Sequence[int],
    *,
    n_frames: int = 4,
    shape: tuple[int, int] = (12, 16),
    inside: NDArray[np.bool_] | None = None,
) -> dict[int, dict[str, NDArray[np.float32]]]:
    """A set as published: arrays (C, x, y), masks 1 in the fluid; returns the fields with rows y, by number."""
    written = {}
    for number in numbers:
        made = flow(number, n_frames=n_frames, shape=shape)
        fields = {"velocity": made["velocity"], "pressure": made["pressure"][:, None]}
        if kind == "tra":
            fields["density"] = fields["pressure"] + 1
        if kind == "iso":
            fields["velocityZ"] = fields["pressure"] - 1
        written[number] = fields
        on_disk = {name: values.swapaxes(-1, -2) for name, values in fields.items()}
        fluid = None if inside is None else ~inside.T
        write_simulation(
            root, number, on_disk, description=published_description(kind, number, n_frames), obstacle=fluid
        )
    return written


def published(kind: str, numbers: Sequence[int], n_frames: int) -> tuple[tuple[Simulation, ...], Facts]:
    """Simulations of a published set that exist in no file, for what only looks at numbers and frames."""
    key, at_zero, step = SETS[kind].numbered_by
    told = {number: {key: at_zero + step * number} for number in numbers}
    if kind == "iso":
        told = {number: {"Z Slice": number + 1.0} for number in numbers}
    simulations = tuple(
        Simulation(layout.simulation_name(number), number, range(n_frames), told[number]) for number in numbers
    )
    return simulations, facts_of(Path("nowhere"), simulations, kind)  # type: ignore[arg-type]


def vorticity(n_rows: int, *, n_frames: int = 5, shape: tuple[int, int] = (8, 10)) -> NDArray[np.float32]:
    """``(N, T, H, W)`` with rows y."""
    rows = [flow(seed, n_frames=n_frames, shape=shape)["velocity"][:, 0] for seed in range(n_rows)]
    return np.stack(rows) * np.float32(3)


def write_matlab(path: Path, rows: NDArray[np.float32], *, hdf5: bool, **storage: Any) -> Path:
    """``u`` of shape (N, x, y, T) as MATLAB saves it: reversed axes in HDF5 (-v7.3), as they are in older files."""
    u = rows.transpose(0, 3, 2, 1)
    times = np.arange(1.0, u.shape[3] + 1)[None]
    if not hdf5:
        scipy.io.savemat(path, {"a": u[..., 0], "u": u, "t": times})
        return path
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("a", data=u[..., 0].transpose())
        file.create_dataset("u", data=u.transpose(), **storage)
        file.create_dataset("t", data=times.transpose())
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    return path
