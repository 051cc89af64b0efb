"""What is known of a set beside its fields: box, times, statistics, and what its simulations were told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import layout
from nbhelpers.stages.neural_operator.canonical import SETS, CanonicalSet, Parameter

CONDITIONS = ("Reynolds Number", "Mach Number")  # a model is told those of them that differ within an own set

Statistics = Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]  # field: means and standard deviations


@dataclass(frozen=True)
class Simulation:
    """One run of a solver."""

    name: str  # of its folder, e.g. sim_000014; of a row of a file: row_000014
    number: int
    frames: range  # numbers of the frames that are there, without gaps
    parameters: Mapping[str, float] = field(default_factory=dict, hash=False)  # single numbers of description.json
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)  # its lists, one value a frame
    has_obstacle: bool = False


@dataclass(frozen=True)
class Facts:
    """What holds for a whole set."""

    name: str  # inc, tra, iso, fno, or what dataset.json says
    kind: str  # inc, tra, iso, fno-benchmark or own: whose rule of splitting applies
    lengths: tuple[float, float]  # (Ly, Lx) of the box
    periodic: bool  # in both directions
    frame_gap: float  # time between two stored frames
    statistics: Statistics = field(default_factory=dict, hash=False)  # of the fields for which they are known
    conditions: tuple[Parameter, ...] = ()  # the parameters that a model is told
    simulated: Mapping[str, Any] | None = field(default=None, hash=False)  # dataset.json, if it says it was simulated

    @property
    def canonical(self) -> CanonicalSet | None:
        """What is published, where this is one of the published sets."""
        return SETS.get(self.kind)


def facts_of(root: Path, simulations: Sequence[Simulation], kind: Literal["auto", "inc", "tra", "iso"]) -> Facts:
    """From the set's dataset.json, else as the published set that it is, or that ``kind`` says it is.

    Raises:
        UserError: dataset.json lacks something or lies beside the files of a published set, the set is not recognised,
            is not of the given kind, or a simulation lacks a parameter.
    """
    if kind == "auto" and (root / layout.DATASET).is_file():
        facts = _recorded(root / layout.DATASET, simulations)
        _not_published(root, simulations[0], facts)
    else:
        facts = _published(_recognise(root, simulations[0]) if kind == "auto" else kind)
    for simulation in simulations:
        for known in facts.conditions:
            if known.name not in simulation.parameters and known.name not in simulation.series:
                if kind != "auto":
                    found = ", ".join(sorted({*simulation.parameters, *simulation.series})) or "none"
                    raise UserError(
                        f"data_set is {kind}, whose {layout.DESCRIPTION} have {', '.join(SETS[kind].marks)}, but that "
                        f"of {root / simulation.name} has no number {known.name!r} (its numbers: {found}): leave "
                        "data_set at auto, or name the set that this is."
                    )
                raise UserError(
                    f"{root / simulation.name / layout.DESCRIPTION} has no number {known.name!r}, which the set "
                    f"{facts.name} is told by: add it, or fetch that simulation again."
                )
    return facts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError for what is missing, broken or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: fetch or simulate the set again.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): mend it, or fetch or simulate it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a JSON object: mend it.")
    return content


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _published(kind: str) -> Facts:
    known = SETS[kind]
    conditions = (known.parameter,) if known.parameter else ()
    return Facts(kind, kind, known.lengths, False, known.frame_gap, known.statistics, conditions)


def _kind_of(root: Path, simulation: Simulation) -> str | None:
    """The published set whose marks the simulation's description.json has."""
    description = read_json(root / simulation.name / layout.DESCRIPTION)
    return next((kind for kind, known in SETS.items() if all(mark in description for mark in known.marks)), None)


def _not_published(root: Path, simulation: Simulation, facts: Facts) -> None:
    """Raise UserError where a dataset.json would make us read published files as our own.

    The axes of the arrays would be taken the other way round, and obstacles for fluid.
    """
    if facts.simulated is None and (kind := _kind_of(root, simulation)) is not None:
        known = SETS[kind]
        raise UserError(
            f"{root / layout.DATASET} calls the set {facts.name!r} our own, but {simulation.name} has the "
            f"{layout.DESCRIPTION} of {known.title} ({', '.join(known.marks)}), whose arrays are (C, x, y) and whose "
            f"masks are 1 in the fluid: delete {layout.DATASET} to read the published set, or rename one of those keys "
            "if the files are (C, y, x) and the masks 1 inside obstacles."
        )


def _recognise(root: Path, simulation: Simulation) -> str:
    if kind := _kind_of(root, simulation):
        return kind
    if (root / layout.UNFINISHED).is_file():
        raise UserError(
            f"{root} has no {layout.DATASET} but {layout.UNFINISHED}: the simulation was interrupted; run it with "
            "the same settings, and it goes on where it stopped."
        )
    raise UserError(
        f"{root} has no {layout.DATASET} and is none of the published sets by the {layout.DESCRIPTION} of "
        f'{simulation.name}: write {{"set": "mine", "lengths": [Ly, Lx], "periodic": true, "frame_gap": 0.1}} into '
        f"{root / layout.DATASET}, or say which published set it is."
    )


def _recorded(path: Path, simulations: Sequence[Simulation]) -> Facts:
    record = read_json(path)
    lengths, gap, periodic = record.get("lengths"), record.get("frame_gap"), record.get("periodic")
    if not (isinstance(lengths, list) and len(lengths) == 2 and all(is_number(x) and x > 0 for x in lengths)):
        raise UserError(f"{path} has {lengths!r} as 'lengths': give [Ly, Lx], the sides of the box.")
    if not is_number(gap) or not float(gap or 0) > 0:
        raise UserError(f"{path} has {gap!r} as 'frame_gap': give the time between two frames.")
    if not isinstance(periodic, bool):
        raise UserError(f"{path} has {periodic!r} as 'periodic': give true or false.")
    return Facts(
        name=str(record.get("set", path.parent.name)),
        kind="own",
        lengths=(float(lengths[0]), float(lengths[1])),
        periodic=periodic,
        frame_gap=float(gap or 0),
        statistics=_recorded_statistics(record, path),
        conditions=_varying(simulations),
        simulated=record if record.get("simulated") else None,
    )


def _recorded_statistics(record: Mapping[str, Any], path: Path) -> Statistics:
    found = {}
    try:
        for name, entry in record.get("normalisation", {}).items():
            mean, std = tuple(map(float, entry["mean"])), tuple(map(float, entry["std"]))
            if len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std) < 0:
                raise ValueError(f"{name!r} has mean {mean} and std {std}")
            found[name] = (mean, std)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has a 'normalisation' that cannot be read ({error}): give "
            '{"velocity": {"mean": [0.0, 0.0], "std": [1.0, 1.0]}}, or leave it out.'
        ) from error
    return found


def _varying(simulations: Sequence[Simulation]) -> tuple[Parameter, ...]:
    """The conditions that every simulation states and that are not the same in all of them.

    Their mean and standard deviation are those of all simulations, test included, because the split follows from the
    facts: it sets the unit in which a model is told a number, and says nothing of any flow.
    """
    found = []
    for name in CONDITIONS:
        values = [simulation.parameters[name] for simulation in simulations if name in simulation.parameters]
        if len(values) == len(simulations) and len(set(values)) > 1:
            mean = math.fsum(values) / len(values)
            variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
            found.append(Parameter(name, mean, math.sqrt(variance)))
    return tuple(found)
