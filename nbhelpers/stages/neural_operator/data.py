"""A set of simulations, wherever it comes from: opened once, read frame by frame, kept in memory as far as it fits.

Three sources read the same way: the published sets Inc, Tra and Iso (:mod:`canonical`), sets with a ``dataset.json``
at their root as our simulator writes it (:mod:`layout`), and the ``.mat`` files of the FNO benchmark (:mod:`matlab`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core import splits
from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import layout
from nbhelpers.stages.neural_operator.facts import Facts, Simulation, facts_of
from nbhelpers.stages.neural_operator.folder import FolderStore, find_simulations, look_into, read_array
from nbhelpers.stages.neural_operator.matlab import SUFFIX, MatlabStore, find_file, open_matlab
from nbhelpers.stages.neural_operator.split import split_simulations

SAMPLE = (16, 8)  # training simulations, and frames of each, from which statistics are estimated that nobody states
CONSTANT = 1e-6  # a standard deviation below this share of the mean is rounding, not variation


@dataclass(frozen=True)
class Collection:
    """A set of simulations on one grid, and what its numbers mean."""

    root: Path  # the folder of the simulation folders, or the file
    facts: Facts  # name, box, times, parameters
    simulations: tuple[Simulation, ...]  # by number
    channels: tuple[str, ...]  # e.g. velocity_x, velocity_y, pressure
    shape: tuple[int, int]  # (H, W): rows are y, columns x
    mean: tuple[float, ...]  # of each channel, raw units
    std: tuple[float, ...]  # of each channel, raw units; 1 for those in `constant`
    constant: tuple[str, ...]  # channels that do not vary
    estimated: tuple[str, ...]  # channels whose mean and std nobody states: they come from a few training frames
    store: FolderStore | MatlabStore = field(repr=False, hash=False)

    def read(self, simulation: Simulation, frames: Sequence[int]) -> NDArray[np.float32]:
        """``(T, C, H, W)`` raw values of the numbered frames.

        Raises:
            UserError: a frame that the simulation does not have, a damaged or missing file, another shape, NaN.
        """
        self.check_frames(simulation, frames)
        if isinstance(self.store, MatlabStore):
            return self.store.rows(simulation.number, simulation.number + 1)[0][list(frames)]
        return self.store.read(simulation.name, frames)

    def check_frames(self, simulation: Simulation, frames: Sequence[int]) -> None:
        """Raise UserError for a frame that the simulation does not have."""
        if absent := [frame for frame in frames if frame not in simulation.frames]:
            raise UserError(
                f"frame {absent[0]} of {simulation.name} in {self.root} was asked for, but it has frames "
                f"{simulation.frames[0]} to {simulation.frames[-1]}: choose a shorter or an earlier sequence."
            )

    def obstacle(self, simulation: Simulation) -> NDArray[np.bool_] | None:
        """``(H, W)``, True inside the obstacle; None for a simulation without one."""
        return self.store.obstacle(simulation.name) if isinstance(self.store, FolderStore) else None

    def condition(self, simulation: Simulation, frame: int) -> tuple[float, ...]:
        """The parameters ``facts.conditions`` as they are at that frame, raw units."""
        return tuple(
            simulation.parameters[known.name]
            if known.name in simulation.parameters
            else simulation.series[known.name][frame]
            for known in self.facts.conditions
        )


def open_collection(
    path: Path, *, fields: Sequence[str], kind: Literal["auto", "inc", "tra", "iso"] = "auto"
) -> Collection:
    """Look into a set; of the fields themselves only a few frames are read.

    Args:
        path: a folder of ``sim_%06d`` folders or a ``.mat`` file, or a folder that holds one such.
        fields: names as in the file names, e.g. ``("velocity", "pressure")``; ``("vorticity",)`` of a ``.mat`` file.
        kind: read it as one of the published sets; ``auto`` goes by dataset.json where there is one, and else
            recognises the published sets by their description.json.

    Raises:
        UserError: no simulations, an unknown field, gaps in the frames, damaged files, an unknown set.
    """
    if not fields or isinstance(fields, str) or len(set(fields)) < len(fields):
        raise UserError(f"fields is {fields!r}: name the fields of {path} to read, each one once.")
    folders = layout.SIMULATION_PREFIX + "*"
    if not any(path.glob(folders)) and (file := find_file(path)):
        if any(path.glob("*/" + folders)):
            raise UserError(f"{path} holds {file.name} and folders of simulations: point --data-dir at one of them.")
        path = file
    store: FolderStore | MatlabStore
    if path.suffix == SUFFIX:
        if tuple(fields) != ("vorticity",) or kind != "auto":
            raise UserError(
                f"{path} holds vorticity alone, but {', '.join(fields)} of a set {kind!r} was asked for: ask for the "
                "field vorticity, and leave the kind to auto."
            )
        root, store = path, open_matlab(path)
        simulations, facts, counts = store.simulations(), store.facts(), {"vorticity": 1}
    else:
        root, numbers = find_simulations(path)
        simulations = tuple(look_into(root, number, fields) for number in numbers)
        facts = facts_of(root, simulations, kind)
        store = _folder_store(root, simulations[0], fields, published=facts.canonical is not None)
        counts = dict(store.channels)
    mean, std, estimated = _statistics(store, simulations, facts, counts)
    names = [name for one, count in counts.items() for name in _channel_names(one, count)]
    constant = [name for name, m, s in zip(names, mean, std, strict=True) if not s > CONSTANT * abs(m)]
    return Collection(
        root=root,
        facts=facts,
        simulations=simulations,
        channels=tuple(names),
        shape=store.shape,
        mean=mean,
        std=tuple(1.0 if name in constant else s for name, s in zip(names, std, strict=True)),
        constant=tuple(constant),
        estimated=tuple(name for one in estimated for name in _channel_names(one, counts[one])),
        store=store,
    )


def _folder_store(root: Path, first: Simulation, fields: Sequence[str], *, published: bool) -> FolderStore:
    """Channels and grid as the first frame of the first simulation has them; every other frame is held to it."""
    channels: dict[str, int] = {}
    shape = (0, 0)
    for name in fields:
        path = root / first.name / layout.frame_name(name, first.frames[0])
        count, *grid = read_array(path, x_first=published).shape
        if channels and (grid[0], grid[1]) != shape:
            raise UserError(f"{path} is on a grid of {tuple(grid)}, but {fields[0]} on {shape}: keep to one grid.")
        channels[name], shape = count, (grid[0], grid[1])
    return FolderStore(root, channels, shape, x_first=published, mask_in_fluid=published)


def _channel_names(field_name: str, count: int) -> list[str]:
    if field_name == layout.VELOCITY and count in (2, 3):
        return [f"{field_name}_{axis}" for axis in "xyz"[:count]]
    return [field_name] if count == 1 else [f"{field_name}_{i}" for i in range(count)]


def _statistics(
    store: FolderStore | MatlabStore, simulations: Sequence[Simulation], facts: Facts, counts: dict[str, int]
) -> tuple[tuple[float, ...], tuple[float, ...], list[str]]:
    """Mean and standard deviation of each channel, and the fields for which they had to be estimated."""
    known = {name: facts.statistics[name] for name in counts if name in facts.statistics}
    for name, (means, _) in known.items():
        if len(means) != counts[name]:
            raise UserError(
                f"the set {facts.name} states the mean of {len(means)} channels of {name!r}, but its files hold "
                f"{counts[name]}: correct the one or the other."
            )
    if estimated := [name for name in counts if name not in known]:
        sample = _sample(store, simulations, facts).astype(np.float64)  # (T, C, H, W)
        mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
        begin = 0
        for name, count in counts.items():
            if name in estimated:
                known[name] = (tuple(mean[begin : begin + count]), tuple(std[begin : begin + count]))
            begin += count
    both = [(float(m), float(s)) for name in counts for m, s in zip(*known[name], strict=True)]
    return tuple(m for m, _ in both), tuple(s for _, s in both), estimated


def _sample(store: FolderStore | MatlabStore, simulations: Sequence[Simulation], facts: Facts) -> NDArray[np.float32]:
    """``(T, C, H, W)``: some frames of some training simulations, the same ones every time."""
    train = {one.simulation.name: one for one in split_simulations(simulations, facts).segments["train"]}
    n_simulations, n_frames = SAMPLE
    # The first in hash order are for training whatever the fractions of the split are.
    some = [train[name] for name in splits.hash_order(train)[:n_simulations]]
    if isinstance(store, MatlabStore):  # neighbours, which come off the disk in one piece
        first, rows = store.block(min(one.simulation.number for one in train.values()))
        near = {one.simulation.number - first: one for one in train.values()}
        some = [near[row] for row in range(len(rows)) if row in near][:n_simulations]
    found, faults = [], []
    for segment in some:
        frames = np.linspace(segment.frames[0], segment.frames[-1], n_frames).round().astype(int)
        chosen = sorted(set(frames.tolist()))
        try:
            if isinstance(store, MatlabStore):
                found.append(rows[segment.simulation.number - first][chosen])
            else:
                found.append(store.read(segment.simulation.name, chosen))
        except UserError as error:  # how many damaged files are too many is for training to say
            faults.append(error)
    if not found:
        raise faults[0]
    return np.concatenate(found)


class FrameCache:
    """Frames in memory, least recently used out first, so that training does not unpack a file at every step.

    It carries no state that matters: whatever it forgets, it reads again.
    """

    def __init__(self, collection: Collection, max_bytes: int):
        self.collection, self.max_bytes = collection, max_bytes
        self._obstacles: dict[str, NDArray[np.bool_] | None] = {}
        self._frames: OrderedDict[tuple[str, int], NDArray[np.float32]] = OrderedDict()
        self._bytes = 0

    def read(self, simulation: Simulation, frames: Sequence[int]) -> NDArray[np.float32]:
        """``(T, C, H, W)`` raw values as :meth:`Collection.read` gives them; from disk only what is not in memory."""
        found = {frame: self._frames.get((simulation.name, frame)) for frame in frames}
        if missing := [frame for frame, values in found.items() if values is None]:
            found |= dict(zip(missing, self._load(simulation, missing), strict=True))
        for frame in found:
            if (simulation.name, frame) in self._frames:
                self._frames.move_to_end((simulation.name, frame))
        return np.stack([found[frame] for frame in frames])  # type: ignore[misc]  # none is None by now

    def obstacle(self, simulation: Simulation) -> NDArray[np.bool_] | None:
        """As :meth:`Collection.obstacle`, read once."""
        if simulation.name not in self._obstacles:
            self._obstacles[simulation.name] = self.collection.obstacle(simulation)
        return self._obstacles[simulation.name]

    def _load(self, simulation: Simulation, missing: Sequence[int]) -> list[NDArray[np.float32]]:
        store = self.collection.store
        self.collection.check_frames(simulation, missing)
        if isinstance(store, MatlabStore):
            first, rows = store.block(simulation.number)
            for one, values in zip(self.collection.simulations[first:], rows, strict=False):
                for frame in one.frames:
                    self._keep(one.name, frame, values[frame])
            return list(rows[simulation.number - first][list(missing)])
        loaded = list(self.collection.read(simulation, missing))
        for frame, values in zip(missing, loaded, strict=True):
            self._keep(simulation.name, frame, values)
        return loaded

    def _keep(self, name: str, frame: int, values: NDArray[np.float32]) -> None:
        if (name, frame) in self._frames or values.nbytes > self.max_bytes:
            return
        self._frames[name, frame] = values.copy()  # a view would hold the whole array that was read
        self._bytes += values.nbytes
        while self._bytes > self.max_bytes:
            _, dropped = self._frames.popitem(last=False)
            self._bytes -= dropped.nbytes

    def simulations_that_fit(self) -> int:
        """How many whole simulations the cache holds at once, at least one; reads none of them."""
        height, width = self.collection.shape
        longest = max(len(one.frames) for one in self.collection.simulations)
        return max(1, self.max_bytes // (longest * len(self.collection.channels) * height * width * 4))
