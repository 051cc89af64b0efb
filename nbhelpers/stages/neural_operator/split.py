"""Which simulations, or which of their frames, are for training, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core import splits
from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator.canonical import FNO_TEST, FNO_TRAIN, FNO_VALIDATION, CanonicalSet
from nbhelpers.stages.neural_operator.facts import Facts, Simulation

FRACTIONS = (0.7, 0.15, 0.15)  # train, val, test where nothing is published
GAP = 0.05  # share of the frames that is left out between two splits in time: neighbours there are nearly equal
AGREE = 1e-3  # relative: how far a parameter may be from what the published numbering says


@dataclass(frozen=True)
class Segment:
    """A stretch of one simulation."""

    simulation: Simulation
    frames: range  # numbers of its frames
    label: str = ""  # of a published test set, e.g. extrapolate; empty elsewhere


@dataclass(frozen=True)
class Split:
    """Segments by split name, and the rule that made them, in words."""

    rule: str
    segments: Mapping[str, tuple[Segment, ...]]  # train, val, test
    by_time: bool  # whether the splits share simulations and differ in their frames


def split_simulations(
    simulations: Sequence[Simulation], facts: Facts, *, fractions: tuple[float, float, float] = FRACTIONS
) -> Split:
    """The published split where the set and its numbering are the published ones, else by a hash of the name.

    Fewer than three simulations are split in time, with a gap. Validation always comes out of the published training
    simulations. The rule says which of these it was, and why a published one could not be followed.

    Args:
        fractions: train, val, test of a set without a published split.

    Raises:
        UserError: too few frames for a split in time; a published set whose simulations lack the frames it is for.
    """
    why = ""
    if facts.canonical is not None:
        why = _departure(simulations, facts.canonical)
        if not why:
            return _published(simulations, facts.canonical)
    elif facts.kind == "fno-benchmark" or facts.name == "fno":  # the published file, or ours to its specification
        if len(simulations) >= FNO_TRAIN + FNO_TEST:
            return _benchmark_rows(simulations)
        why = f"the benchmark's split needs {FNO_TRAIN + FNO_TEST} rows and there are {len(simulations)}"
    why = f" ({why})" if why else ""
    if len(simulations) < 3:
        return _in_time(simulations, fractions, why)
    by_name = {one.name: one for one in simulations}
    chosen = splits.by_hash(list(by_name), fractions)
    segments = {
        split: tuple(Segment(by_name[name], by_name[name].frames) for name in sorted(names))
        for split, names in chosen.items()
    }
    return Split("by a hash of the simulation's name" + why, segments, by_time=False)


def _departure(simulations: Sequence[Simulation], known: CanonicalSet) -> str:
    """Why the published split does not apply to these simulations; empty if it does."""
    key, at_zero, step = known.numbered_by
    for one in simulations:
        expected = at_zero + step * one.number
        if abs(one.parameters.get(key, np.inf) - expected) > AGREE * abs(expected):
            found = one.parameters.get(key, "no such number")
            return f"{one.name} has {key} {found}, where the published {known.title} has {expected:g}"
    present = {one.number for one in simulations}
    wanted = {
        "training": set(known.training) - set(known.validation) - set(known.unused),
        "validation": set(known.validation),
        "test": {number for test in known.tests for number in test.numbers},
    }
    for name, numbers in wanted.items():
        if not present & numbers:
            return f"none of the published {name} simulations is here"
    return ""


def _published(simulations: Sequence[Simulation], known: CanonicalSet) -> Split:
    by_number = {one.number: one for one in simulations}
    held_out = {*known.validation, *known.unused}
    segments = {
        "train": [_cut(by_number[n], known.frames) for n in known.training if n in by_number and n not in held_out],
        "val": [_cut(by_number[n], known.frames) for n in known.validation if n in by_number],
        "test": [
            _cut(by_number[n], test.frames, test.name) for test in known.tests for n in test.numbers if n in by_number
        ],
    }
    tests = "; ".join(f"{test.name} {_ranges(test.numbers)}" for test in known.tests)
    rule = (
        f"the published split of {known.title}: train {_ranges(known.training)}, of which "
        f"{_ranges(known.validation)} are held out for validation"
        + (f" and {_ranges(known.unused)} are too close to it to be used" if known.unused else "")
        + f"; test {tests}"
    )
    return Split(rule, {name: tuple(group) for name, group in segments.items()}, by_time=False)


def _cut(simulation: Simulation, frames: range, label: str = "") -> Segment:
    """The part of ``frames`` that the simulation has (a set may end a frame earlier or later than published)."""
    have = range(max(frames.start, simulation.frames.start), min(frames.stop, simulation.frames.stop))
    if not have:
        raise UserError(
            f"{simulation.name} has frames {simulation.frames[0]} to {simulation.frames[-1]}, but the published split "
            f"uses {frames[0]} to {frames[-1]}: fetch it whole."
        )
    return Segment(simulation, have, label)


def _benchmark_rows(simulations: Sequence[Simulation]) -> Split:
    n, first_val = len(simulations), FNO_TRAIN - FNO_VALIDATION
    bounds = {"train": (0, first_val), "val": (first_val, FNO_TRAIN), "test": (n - FNO_TEST, n)}
    segments = {
        name: tuple(Segment(one, one.frames) for one in simulations[begin:end]) for name, (begin, end) in bounds.items()
    }
    rule = (
        f"the FNO benchmark's: the first {FNO_TRAIN} rows train, of which the last {FNO_VALIDATION} are held out for "
        f"validation, and the last {FNO_TEST} test"
    )
    return Split(rule, segments, by_time=False)


def _in_time(simulations: Sequence[Simulation], fractions: tuple[float, float, float], why: str) -> Split:
    segments: dict[str, list[Segment]] = {name: [] for name in splits.SPLITS}
    gap = 0
    for one in simulations:
        n = len(one.frames)
        gap = max(1, round(GAP * n))
        usable = n - 2 * gap
        n_val, n_test = (max(1, round(fraction * usable)) for fraction in fractions[1:])
        n_train = usable - n_val - n_test
        if n_train < 1:
            raise UserError(
                f"{one.name} has {n} frames, too few to split {len(simulations)} simulation(s) in time: give at least "
                "3 simulations or longer ones."
            )
        begin = one.frames.start
        for name, length in zip(splits.SPLITS, (n_train, n_val, n_test), strict=True):
            segments[name].append(Segment(one, range(begin, begin + length)))
            begin += length + gap
    rule = f"in time, because there are only {len(simulations)} simulation(s){why}: {gap} frames are left out between"
    return Split(rule, {name: tuple(group) for name, group in segments.items()}, by_time=True)


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers as a reader likes them: ``0–2, 14–18``, and a list where they do not follow one another."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def keys(
    split: Split, read: Callable[[Simulation, Sequence[int]], NDArray[np.float32]] | None = None
) -> dict[str, dict[str, set[str]]]:
    """What no two splits may share, by kind and split: simulations (or their frames), and with ``read`` content.

    Args:
        read: of a collection or a cache; one frame a segment is read, so that a simulation that was copied to another
            number is found. Segments whose middle frame cannot be read or does not vary are left out: training finds
            the one, and fields of a single value are equal without being copies.
    """
    kind = "frame" if split.by_time else "simulation"
    found: dict[str, dict[str, set[str]]] = {kind: {}}
    for name, group in split.segments.items():
        found[kind][name] = (
            {f"{one.simulation.name} frame {frame}" for one in group for frame in one.frames}
            if split.by_time
            else {one.simulation.name for one in group}
        )
    if read is not None:
        found["content"] = {
            # In time, every simulation is in every split, and only its frames tell the splits apart.
            name: {key for one in group if (key := fingerprint(one, read, whole=not split.by_time)) is not None}
            for name, group in split.segments.items()
        }
    return found


def fingerprint(
    segment: Segment, read: Callable[[Simulation, Sequence[int]], NDArray[np.float32]], *, whole: bool = True
) -> str | None:
    """A hash of one frame; None where it cannot be read or does not vary.

    Args:
        whole: take the middle frame of the simulation, by which a copy of it is known whatever part of it the segment
            is; else the middle frame of the segment.
    """
    frames = segment.simulation.frames if whole else segment.frames
    try:
        values = read(segment.simulation, [frames[len(frames) // 2]])
    except UserError:
        return None
    if all(np.ptp(channel) == 0 for channel in values[0]):
        return None
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
