"""Which frames make one sample: windows of a split's segments, in training order and for scoring, and their loader."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator.data import Collection, FrameCache
from nbhelpers.stages.neural_operator.split import FRACTIONS, Segment, Split, split_simulations


@dataclass(frozen=True)
class Window:
    """Where one sample begins; how many frames it has, and how far apart, is the same for all windows of a loader."""

    segment: Segment
    start: int  # number of its first frame


@dataclass(frozen=True)
class Batch:
    """Windows as they come from the loader, in raw units."""

    frames: Tensor  # (B, T, C, H, W) float32
    parameters: Tensor  # (B, P) float32: what the model is told, at the first frame; P may be 0
    inside: Tensor | None  # (B, H, W) bool, True inside an obstacle; None in a set without any
    simulations: tuple[str, ...]  # name of each window's simulation
    starts: tuple[int, ...]  # number of each window's first frame
    unreadable: tuple[str, ...] = ()  # why windows that belong here are not, a sentence each

    def pin_memory(self) -> Batch:
        """Called by the loader where there is a GPU."""
        inside = None if self.inside is None else self.inside.pin_memory()
        pinned = self.frames.pin_memory(), self.parameters.pin_memory(), inside
        return Batch(*pinned, self.simulations, self.starts, self.unreadable)


def split_collection(collection: Collection, *, fractions: tuple[float, float, float] = FRACTIONS) -> Split:
    """:func:`split.split_simulations` of a collection."""
    return split_simulations(collection.simulations, collection.facts, fractions=fractions)


def starts(segment: Segment, *, length: int, stride: int) -> range:
    """Frames at which a window of ``length`` frames, ``stride`` apart, can begin.

    Raises:
        UserError: none fits, or length or stride is below 1.
    """
    if length < 1 or stride < 1:
        raise UserError(f"sequence_length is [{length}, {stride}]: give at least one frame and a stride of at least 1.")
    span = (length - 1) * stride + 1
    if span > len(segment.frames):
        raise UserError(
            f"a sequence of {length} frames {stride} apart spans {span}, but {segment.simulation.name} has "
            f"{len(segment.frames)} frames here ({segment.frames[0]} to {segment.frames[-1]}): shorten sequence_length."
        )
    return segment.frames[: len(segment.frames) - span + 1]


def training_windows(
    segments: Sequence[Segment],
    *,
    length: int,
    stride: int,
    epoch: int,
    seed: int,
    per_epoch: int | None = None,
    group: int | None = None,
) -> list[Window]:
    """An epoch's windows in random order, a pure function of (seed, epoch) and the segments.

    Args:
        per_epoch: how many, drawn evenly from all that are possible (each once before any comes twice); None: all.
        group: segments come in shuffled groups of as many as the cache holds, and windows are shuffled within a
            group, so that each file is read once an epoch however small the memory; None: all are one group.
    """
    possible = [starts(segment, length=length, stride=stride) for segment in segments]
    ends = np.cumsum([len(each) for each in possible])
    total = int(ends[-1])
    rng = np.random.default_rng([seed, epoch])
    wanted = total if per_epoch is None else per_epoch
    drawn = np.concatenate([rng.permutation(total) for _ in range(math.ceil(wanted / total))])[:wanted]
    owner = np.searchsorted(ends, drawn, side="right")
    if group is not None:
        order = np.argsort((rng.permutation(len(segments)) // group)[owner], kind="stable")
        drawn, owner = drawn[order], owner[order]
    return [
        Window(segments[i], possible[i][int(at - ends[i] + len(possible[i]))])
        for at, i in zip(drawn.tolist(), owner.tolist(), strict=True)
    ]


def fixed_windows(segments: Sequence[Segment], *, length: int, stride: int, per_segment: int) -> list[Window]:
    """Windows at evenly spaced starts, the same in every run; fewer where a segment has not so many."""
    windows = []
    for segment in segments:
        possible = starts(segment, length=length, stride=stride)
        chosen = np.linspace(0, len(possible) - 1, per_segment).round().astype(int)
        windows += [Window(segment, possible[i]) for i in sorted(set(chosen.tolist()))]
    return windows


Sample = tuple[Tensor, Tensor, Tensor | None, str, int]  # frames, parameters, inside, simulation, start


class WindowDataset(Dataset):
    """Cuts windows out of cached frames; index in, one :data:`Sample` out.

    Args:
        forgiving: a window that cannot be read gives the reason in words, and does not raise; how many of them a
            training may do without is not decided here.
    """

    def __init__(
        self, windows: Sequence[Window], cache: FrameCache, *, length: int, stride: int, forgiving: bool = False
    ):
        self.windows, self.cache, self.length, self.stride = windows, cache, length, stride
        self.forgiving = forgiving
        self.obstacles = any(one.has_obstacle for one in cache.collection.simulations)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample | str:
        window = self.windows[index]
        simulation = window.segment.simulation
        try:
            numbers = range(window.start, window.start + self.length * self.stride, self.stride)
            frames = torch.from_numpy(self.cache.read(simulation, numbers))
            inside = self.cache.obstacle(simulation)
        except UserError as error:
            if not self.forgiving:
                raise
            return str(error)
        told = torch.tensor(self.cache.collection.condition(simulation, window.start), dtype=torch.float32)
        shape = self.cache.collection.shape
        mask = torch.zeros(shape, dtype=torch.bool) if inside is None else torch.from_numpy(inside)
        return frames, told, mask if self.obstacles else None, simulation.name, window.start


def collate(samples: Sequence[Sample | str], *, empty: tuple[int, ...], n_parameters: int) -> Batch:
    """One batch of what could be read; ``empty`` is the shape ``(T, C, H, W)`` where nothing could."""
    read = [sample for sample in samples if not isinstance(sample, str)]
    unreadable = tuple(sample for sample in samples if isinstance(sample, str))
    masks = [inside for _, _, inside, _, _ in read if inside is not None]
    return Batch(
        frames=torch.stack([frames for frames, *_ in read]) if read else torch.empty(0, *empty),
        parameters=torch.stack([told for _, told, *_ in read]) if read else torch.empty(0, n_parameters),
        inside=torch.stack(masks) if masks else None,
        simulations=tuple(name for *_, name, _ in read),
        starts=tuple(start for *_, start in read),
        unreadable=unreadable,
    )


def loader(
    windows: Sequence[Window],
    cache: FrameCache,
    *,
    length: int,
    stride: int,
    batch_size: int,
    num_workers: int = 0,
    forgiving: bool = False,
) -> DataLoader:
    """Batches of ``windows`` in the given order; ``forgiving`` ones do without files that cannot be read."""
    collection = cache.collection
    return DataLoader(
        WindowDataset(windows, cache, length=length, stride=stride, forgiving=forgiving),
        batch_size=batch_size,
        collate_fn=partial(
            collate,
            empty=(length, len(collection.channels), *collection.shape),
            n_parameters=len(collection.facts.conditions),
        ),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
