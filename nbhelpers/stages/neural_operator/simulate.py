"""Simulated two-dimensional turbulence in the layout of the public sets: data where those are not at hand.

Three kinds of flow, all in periodic boxes:

* ``decaying``: turbulence left to itself, from random phases; small eddies merge and the flow slowly dies.
* ``kolmogorov``: driven by a steady sine-shaped force against a linear drag, statistically steady.
* ``fno``: the Fourier neural operator's benchmark (Li et al. 2021, arXiv:2010.08895): unit square, Gaussian random
  start, steady forcing, a frame every time unit from 1 on, solved on 256 x 256 points of which every fourth is kept.
  Made to the same specification, so comparable with the published set, but not that set.

Every flow is checked for resolution while it runs.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import pi
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nbhelpers.core.disk import check_room, disk_errors
from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import solver
from nbhelpers.stages.neural_operator.initial import decaying_turbulence, gaussian_field
from nbhelpers.stages.neural_operator.layout import (
    DATASET,
    DESCRIPTION,
    KEY,
    UNFINISHED,
    frame_name,
    simulation_name,
    write_simulation,
)
from nbhelpers.stages.neural_operator.resample import resample

Kind = Literal["decaying", "kolmogorov", "fno"]
VERSION = 1  # of the physics below: raise it whenever the same settings give other flows
FIELDS = {"velocity": ("u", "v"), "vorticity": ("w",)}
FNO_FRAMES = {1e-3: 50, 1e-4: 30, 1e-5: 20}  # of the benchmark, by viscosity
FNO_SPEED = 0.1  # nominal, for the Reynolds number; half way through the benchmark 0.11 to 0.15 r.m.s. were measured
FASTEST = 6.0  # |u| + |v| anywhere, in units of the root mean square speed; about 4.4 measured
FNO_FASTEST = 0.8  # |u| + |v| at the benchmark's end; 0.65 measured at 1e-5, less at more viscosity
BURN_IN = {"decaying": 5.6, "kolmogorov": 50.0, "fno": 1.0}  # time of the first frame, by kind
COURANT, LARGEST_COURANT = 0.5, 1.0  # aimed at with the speeds above; never exceeded (1.35 is unstable)
KOLMOGOROV_FORCE, KOLMOGOROV_DRAG, KOLMOGOROV_WAVES = 0.75, 0.1, 4  # force / u_rms², drag / u_rms, per 2 pi


@dataclass(frozen=True)
class Settings:
    """Everything that the simulated numbers depend on."""

    kind: Kind
    n_simulations: int
    size: tuple[int, int]  # (H, W) stored
    solve_size: tuple[int, int]  # (H, W) computed on
    n_frames: int
    frame_gap: float  # time between frames
    burn_in: float  # time of the first frame
    viscosity: float
    u_rms: float  # root mean square speed: of the start (decaying), about what the flow settles at (else)
    peak: float  # wavenumber at which the energy is highest at the start (not fno)
    dt: float | None  # largest step; None: COURANT at the fastest speed to expect
    seed: int

    @property
    def lengths(self) -> tuple[float, float]:
        """Of the box (y, x): 1 for fno, else 2 pi for the shorter side and square cells."""
        side = 1.0 if self.kind == "fno" else 2 * pi
        return side * self.size[0] / min(self.size), side * self.size[1] / min(self.size)

    @property
    def largest_step(self) -> float:
        if self.dt is not None:
            return self.dt
        cell = min(self.lengths) / min(self.solve_size)
        return COURANT * cell / (FNO_FASTEST if self.kind == "fno" else FASTEST * self.u_rms)

    @property
    def reynolds(self) -> float:
        """``u_rms L / viscosity`` with L the box's shorter side."""
        return self.u_rms * min(self.lengths) / self.viscosity

    @property
    def flow(self) -> solver.Flow:
        if self.kind == "fno":
            return solver.Flow(self.viscosity, self.lengths, forcing=solver.fno_forcing)
        if self.kind == "decaying":
            return solver.Flow(self.viscosity, self.lengths)
        waves = round(KOLMOGOROV_WAVES * self.lengths[0] / (2 * pi))
        forcing = solver.kolmogorov_forcing(KOLMOGOROV_FORCE * self.u_rms**2, waves, self.lengths[0])
        return solver.Flow(self.viscosity, self.lengths, drag=KOLMOGOROV_DRAG * self.u_rms, forcing=forcing)


def simulate(
    root: Path,
    *,
    kind: Kind = "decaying",
    n_simulations: int = 40,
    size: int | tuple[int, int] = 64,
    n_frames: int | None = None,
    viscosity: float | None = None,
    u_rms: float = 0.2,
    peak: float = 5.0,
    frame_gap: float | None = None,
    burn_in: float | None = None,
    solve_size: int | tuple[int, int] | None = None,
    dt: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    batch: int = 16,
    progress: bool = True,
) -> Path:
    """Write ``n_simulations`` flows with velocity ``(T, 2, H, W)`` and vorticity ``(T, H, W)``; returns ``root``.

    What is None takes the kind's own value: for decaying and kolmogorov 30 frames 0.7 apart, viscosity 1e-3, from time
    5.6 (decaying) or 50 on (kolmogorov), solved on the grid that is stored; for fno the benchmark's 50, 30 or 20 frames
    at viscosity 1e-3, 1e-4 or 1e-5 (the last by default), and ``u_rms`` and ``peak`` play no part.

    The folder then holds ``sim_%06d/`` (see ``layout.py``) and ``dataset.json``: the settings, and mean and standard
    deviation of every channel over all simulations. That file is written last: a simulation that was killed goes on
    where it stopped, a complete one with the same settings is left as it is. Flow ``k`` depends on ``(seed, k)`` and
    the settings, not on ``n_simulations``, nor (beyond rounding) on ``batch`` or ``device`` (None: the CPU).

    A ``solve_size`` finer than ``size`` is brought down by cutting the spectrum; for fno by keeping every n-th point,
    as the benchmark does. The stored velocity is that of the stored vorticity, so it is free of divergence.

    Raises:
        UserError: impossible settings, a flow that the grid does not resolve or that outruns ``dt``, too little disk,
            or a folder that holds anything but these flows.
    """
    fno = kind == "fno"
    stored = _pair(size)
    factor = max(1, 256 // max(*stored, 1)) if fno else 1
    viscosity = viscosity if viscosity is not None else 1e-5 if fno else 1e-3
    settings = Settings(
        kind=kind,
        n_simulations=n_simulations,
        size=stored,
        solve_size=(stored[0] * factor, stored[1] * factor) if solve_size is None else _pair(solve_size),
        n_frames=n_frames if n_frames is not None else FNO_FRAMES.get(viscosity, 20) if fno else 30,
        frame_gap=frame_gap if frame_gap is not None else 1.0 if fno else 0.7,
        burn_in=burn_in if burn_in is not None else BURN_IN.get(kind, 0.0),
        viscosity=viscosity,
        u_rms=FNO_SPEED if fno else u_rms,
        peak=peak,
        dt=dt,
        seed=seed,
    )
    _check(settings)
    if batch < 1:
        raise UserError(f"batch is {batch}, expected at least 1: choose how many flows are computed at a time.")
    marker = _marker(settings)
    if _is_there(root, marker, settings):
        return root
    names = [simulation_name(number) for number in range(n_simulations)]
    missing = [number for number, name in enumerate(names) if not _is_written(root / name)]
    with disk_errors(root / DATASET):
        with tqdm(total=len(missing) * settings.n_frames, desc="simulating flows", disable=not progress) as bar:
            for first in range(0, len(missing), batch):
                numbers = missing[first : first + batch]
                states = []
                for state in _states(_initial(settings, numbers).to(device or "cpu"), settings):
                    states.append(_to_size(state, settings).cpu())
                    bar.update(len(numbers))
                vorticity = torch.stack(states, dim=1)
                if first == 0:  # a flow that cannot be computed leaves no trace
                    root.mkdir(parents=True, exist_ok=True)
                    check_room(root, len(missing) * vorticity[0].numel() * 3 * 4, "a simulation of these flows")
                    _write_json(root / UNFINISHED, marker)
                speed = solver.velocity(vorticity, settings.lengths)
                for number, w, uv in zip(numbers, vorticity.numpy(), speed.numpy(), strict=True):
                    described = {"Reynolds Number": settings.reynolds, "Viscosity": settings.viscosity, "Flow": number}
                    write_simulation(root, number, {"velocity": uv, "vorticity": w}, description=described)
        statistics = {field: _statistics(root, field, settings) for field in FIELDS}
        _write_json(root / DATASET, {**marker, "normalisation": statistics})
        (root / UNFINISHED).unlink(missing_ok=True)
    return root


def _check(settings: Settings) -> None:
    """Raise UserError unless these settings are possible."""
    if settings.kind not in BURN_IN:
        raise UserError(f"kind is {settings.kind!r}, expected one of {', '.join(BURN_IN)}: choose one of them.")
    (rows, columns), (fine_rows, fine_columns) = settings.size, settings.solve_size
    least = {"n_simulations": 1, "n_frames": 1, "burn_in": 0, "seed": 0}
    for name, value, smallest in [
        ("size", min(rows, columns), 16),
        *((n, getattr(settings, n), k) for n, k in least.items()),
    ]:
        if value < smallest:
            raise UserError(f"{name} is {value}, expected at least {smallest}: choose a larger {name}.")
    for name in ("viscosity", "u_rms", "peak", "frame_gap", "dt"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}, expected a positive number: choose another {name}.")
    fno = settings.kind == "fno"
    if fno and rows != columns:
        raise UserError(f"size is {rows} x {columns}, expected a square for kind fno: choose one number.")
    if fine_rows < rows or fine_rows * columns != fine_columns * rows or (fno and fine_rows % rows):
        raise UserError(
            f"solve_size is {fine_rows} x {fine_columns} for a size of {rows} x {columns}, expected a grid of the same "
            f"shape, {'a whole multiple of it' if fno else 'as fine or finer'}: choose another solve_size."
        )


def _initial(settings: Settings, numbers: Sequence[int]) -> Tensor:
    size, seed = settings.solve_size, settings.seed
    if settings.kind == "fno":
        return gaussian_field(numbers, size, seed=seed)
    return decaying_turbulence(numbers, size, settings.lengths, u_rms=settings.u_rms, peak=settings.peak, seed=seed)


def _states(vorticity: Tensor, settings: Settings) -> Iterator[Tensor]:
    """The flow ``(B, H, W)`` at each frame. It is checked during the burn-in too, where it is resolved worst."""
    state = solver.dealias(vorticity)
    if settings.burn_in > 0:
        checks = solver.steps_for(settings.burn_in, settings.frame_gap)
        state = deque(_march(state, settings, settings.burn_in / checks, checks), maxlen=1).pop()
    yield state
    yield from _march(state, settings, settings.frame_gap, settings.n_frames - 1)


def _march(vorticity: Tensor, settings: Settings, gap: float, count: int) -> Iterator[Tensor]:
    """``count`` states ``gap`` apart, each of them resolved and slow enough for the step."""
    steps = solver.steps_for(gap, settings.largest_step)
    dt = gap / steps
    run = solver.frames(vorticity, settings.flow, dt=dt, steps_per_frame=steps)
    for state in islice(run, count):
        fastest = float(solver.courant(state, settings.lengths, dt).max())
        if fastest > LARGEST_COURANT:
            raise UserError(
                f"the flow crosses {fastest:.2f} cells in a step of {dt:.3g}, expected at most {LARGEST_COURANT:g}: "
                f"set dt to {dt * COURANT / fastest:.2g} or less."
            )
        solver.check_resolved(state, settings.flow)
        yield state


def _to_size(vorticity: Tensor, settings: Settings) -> Tensor:
    """``(B, *solve_size) -> (B, *size)``: every n-th point for fno, as the benchmark has it, else the same spectrum."""
    if settings.kind != "fno":
        return resample(vorticity, settings.size)
    step_y, step_x = (fine // stored for fine, stored in zip(settings.solve_size, settings.size, strict=True))
    return vorticity[:, ::step_y, ::step_x]


def _marker(settings: Settings) -> dict[str, Any]:
    """What tells these flows from any others, as JSON gives it back."""
    facts = {
        "set": settings.kind,
        "simulated": True,
        "version": VERSION,
        "lengths": settings.lengths,
        "periodic": True,
        "reynolds": settings.reynolds,
        "fields": FIELDS,
        **asdict(settings),
        "largest_step": settings.largest_step,
        "dt": settings.frame_gap / solver.steps_for(settings.frame_gap, settings.largest_step),  # between frames
    }
    del facts["kind"]
    marker: dict[str, Any] = json.loads(json.dumps(facts))
    return marker


def _is_there(root: Path, marker: dict[str, Any], settings: Settings) -> bool:
    """Whether ``root`` already holds all of these flows; raises rather than let anything else be overwritten."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file, expected a folder for the flows: choose another folder.")
    found = next((root / name for name in (DATASET, UNFINISHED) if (root / name).is_file()), None)
    if found is None:
        other = next((path for path in sorted(root.glob("*")) if not path.name.startswith(".")), None)
        if other is not None:
            raise UserError(f"{root} holds {other.name} but no simulated flows: choose another, empty folder.")
        return False
    try:
        old = json.loads(found.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{found} is not JSON ({error}): choose another folder for the flows.") from error
    old = old if isinstance(old, dict) else {}
    differs = ", ".join(f"{key}={old.get(key)} (asked: {new})" for key, new in marker.items() if old.get(key) != new)
    if differs:
        raise UserError(f"{root} holds flows with {differs}: choose another folder or delete this one.")
    names = [simulation_name(number) for number in range(settings.n_simulations)]
    return found.name == DATASET and all(_is_written(root / name) for name in names)


def _is_written(folder: Path) -> bool:
    """The description is the last file of a simulation; a disk that ran full may leave it empty."""
    description = folder / DESCRIPTION
    return description.is_file() and description.stat().st_size > 0


def _statistics(root: Path, field: str, settings: Settings) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel over all frames of all simulations, as they lie on the disk.

    Test simulations among them: the units of a set must not depend on how it is split, and these few numbers tell
    next to nothing of the test flows, which are draws of the same law.
    """
    moments = []
    for number in range(settings.n_simulations):
        for frame in range(settings.n_frames):
            path = root / simulation_name(number) / frame_name(field, frame)
            with np.load(path, allow_pickle=False) as file:
                values = file[KEY].astype(np.float64).reshape(len(FIELDS[field]), -1)
            moments.append((values.mean(axis=1), np.square(values).mean(axis=1)))
    mean, square = np.mean(moments, axis=0)
    return {"mean": mean.tolist(), "std": np.sqrt(square - mean**2).tolist()}


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
    os.replace(part, path)
