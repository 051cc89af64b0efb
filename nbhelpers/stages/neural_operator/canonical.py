"""What is published about the sets Inc, Tra and Iso: grids, statistics and which simulations are for testing.

Kohl, Chen, Thuerey (2023), "Benchmarking Autoregressive Conditional Diffusion Models for Turbulent Flow Simulation",
arXiv:2309.01745; data: doi:10.14459/2024mp1734798. All of it at 128 points along x and 64 along y; the arrays on disk
are ``(C, x, y)``, and their obstacle masks are 1 in the fluid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """A number of a simulation that a model may be told, and its statistics over the training simulations."""

    name: str  # as in description.json
    mean: float
    std: float


@dataclass(frozen=True)
class TestSet:
    """One of the published tests."""

    __test__ = False  # for pytest, which would collect it by its name

    name: str
    numbers: tuple[int, ...]  # of its simulations
    frames: range  # in which its sequences lie


@dataclass(frozen=True)
class CanonicalSet:
    """The published facts about one set."""

    title: str
    marks: tuple[str, ...]  # keys by which its description.json is known
    numbered_by: tuple[str, float, float]  # key of description.json; its value in simulation 0; its step per number
    lengths: tuple[float, float]  # (Ly, Lx) of the box that the grid covers
    frame_gap: float  # model time between two stored frames
    statistics: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]  # field: means, standard deviations
    parameter: Parameter | None  # that the published models are told
    training: tuple[int, ...]  # numbers of the published training simulations, our validation among them
    validation: tuple[int, ...]  # numbers that are held out of `training`
    unused: tuple[int, ...]  # numbers of `training` too close to validation to train on
    frames: range  # of the training simulations
    tests: tuple[TestSet, ...]


# Vortex street behind a cylinder of diameter 0.6 in a box of 4 by 2, inflow 0.5; Reynolds numbers 1000, 990, … 100.
# Time step 0.05, every one stored; 1300 frames, of which the first 800 (the onset of shedding) are not trained on.
INC = CanonicalSet(
    title="Inc, incompressible wake flow",
    marks=("Reynolds Number", "Cylinder Size"),
    numbered_by=("Reynolds Number", 1000.0, -10.0),
    lengths=(2.0, 4.0),
    frame_gap=0.05,
    statistics={
        "velocity": ((0.444969, 0.000299), (0.206128, 0.206128)),
        "pressure": ((0.000586,), (0.003942,)),
    },
    parameter=Parameter("Reynolds Number", 550.0, 262.678467),
    training=tuple(range(10, 81)),
    validation=tuple(range(15, 81, 10)),
    unused=(),
    frames=range(800, 1300),
    tests=(
        TestSet("low Reynolds", (82, 84, 86, 88, 90), range(1000, 1150)),
        TestSet("high Reynolds", (0, 2, 4, 6, 8), range(1000, 1150)),
    ),
)

# Cylinder of diameter 1 at Reynolds 10000 and Mach 0.50, 0.51, … 0.90, on x in [-1.5, 10.5] and y in [-3, 3]. The gap
# is in units of diameter / inflow speed (50 steps of 0.002). The published generator fills the field `velocity` with
# the solver's momentum (density times velocity).
TRA = CanonicalSet(
    title="Tra, transonic cylinder flow",
    marks=("Reynolds Number", "Mach Number", "Drag Coefficient"),
    numbered_by=("Mach Number", 0.5, 0.01),
    lengths=(6.0, 12.0),
    frame_gap=0.1,
    statistics={
        "velocity": ((0.560642, -0.000129), (0.216987, 0.216987)),
        "density": ((0.903352,), (0.145391,)),
        "pressure": ((0.637941,), (0.119944,)),
    },
    parameter=Parameter("Mach Number", 0.7, 0.118322),
    training=tuple(n for n in range(41) if n not in (0, 1, 2, *range(14, 19))),
    validation=(8, 23, 33),
    unused=(),
    frames=range(0, 1000),
    tests=(
        TestSet("extrapolate", (0, 1, 2), range(500, 750)),
        TestSet("interpolate", (16, 17, 18), range(500, 750)),
        TestSet("long", (14, 15), range(0, 1000)),
    ),
)

# Slices z = 1, 2, … 1000 of forced isotropic turbulence (Johns Hopkins Turbulence Database, isotropic1024coarse): every
# second of 256 x 128 of 1024 points to a period of 2 pi, so not periodic; every stored time step. Neighbouring slices
# are nearly the same field: validation is the last block, with slices that nobody uses before it.
ISO = CanonicalSet(
    title="Iso, slices of isotropic turbulence",
    marks=("JHTDB Dataset", "Z Slice"),
    numbered_by=("Z Slice", 1.0, 1.0),
    lengths=(math.pi / 4, math.pi / 2),
    frame_gap=0.002,
    statistics={
        "velocity": ((-0.054618, -0.385225), (0.539194, 0.710318)),
        "velocityZ": ((-0.255757,), (0.510352,)),
        "pressure": ((0.033446,), (0.258235,)),
    },
    parameter=None,
    training=(*range(200), *range(351, 1000)),
    validation=tuple(range(960, 1000)),
    unused=tuple(range(930, 960)),
    frames=range(0, 1000),
    tests=(TestSet("interpolate", tuple(range(200, 351, 10)), range(500, 600)),),
)

SETS: Mapping[str, CanonicalSet] = {"inc": INC, "tra": TRA, "iso": ISO}

# The protocol of the FNO benchmark's files (arXiv:2010.08895): the first rows train, the last ones test. It holds
# nothing out for validation; here that is the end of the training rows.
FNO_TRAIN, FNO_VALIDATION, FNO_TEST = 1000, 50, 200
