"""How simulations lie on disk: names, keys and the writer that our simulator and every test use.

One folder a simulation, one compressed file a field and frame, as the public incompressible (Inc), transonic (Tra) and
isotropic (Iso) sets have it (Kohl, Chen, Thuerey 2023, arXiv:2309.01745). ``dataset.json`` is ours: it says of a whole
set what its single files cannot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY = "arr_0"  # of the one array in every .npz
DESCRIPTION = Path("src") / "description.json"  # of a simulation: its parameters
OBSTACLE = "obstacle_mask.npz"  # of a simulation: (H, W), 1 inside the obstacle
DATASET = "dataset.json"  # of the set
UNFINISHED = "simulating.json"  # stands in its place while a simulation is under way: the settings of what is written
SIMULATION_PREFIX = "sim_"
VELOCITY = "velocity"  # the field whose channels are the components along x and y


def simulation_name(number: int) -> str:
    return f"sim_{number:06d}"


def frame_name(field: str, frame: int) -> str:
    return f"{field}_{frame:06d}.npz"


def write_simulation(
    root: Path,
    number: int,
    fields: Mapping[str, NDArray[Any]],
    *,
    description: Mapping[str, Any],
    obstacle: NDArray[np.bool_] | None = None,
) -> Path:
    """Write one simulation; returns its folder.

    Args:
        fields: by name, ``(T, H, W)`` of a scalar or ``(T, C, H, W)`` of a vector, stored as float32.
        description: the simulation's parameters, e.g. ``{"Reynolds Number": 1000.0}``.
        obstacle: ``(H, W)``, True inside.
    """
    folder = root / simulation_name(number)
    (folder / DESCRIPTION).parent.mkdir(parents=True, exist_ok=True)
    for field, frames in fields.items():
        for frame, values in enumerate(frames):
            np.savez_compressed(folder / frame_name(field, frame), values.astype(np.float32))
    if obstacle is not None:
        np.savez_compressed(folder / OBSTACLE, obstacle.astype(np.float32))
    (folder / DESCRIPTION).write_text(json.dumps(dict(description), indent=2) + "\n", encoding="utf-8")
    return folder
