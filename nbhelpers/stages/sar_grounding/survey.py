"""What is found out about a folder of tiles in one reading: statistics, contents, and which ground they show."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.science.ground import cell_name, ground_cells
from nbhelpers.stages.sar_grounding.layout import About

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation by channel over the measured pixels of the training tiles."""

    s1_mean: tuple[float, ...]  # (2,) dB
    s1_std: tuple[float, ...]
    s2_mean: tuple[float, ...]  # (4,) reflectance of the truth
    s2_std: tuple[float, ...]
    opt_v2_mean: tuple[float, ...]  # (4,) reflectance
    opt_v2_std: tuple[float, ...]


@dataclass
class Sums:
    """Sums over images of one kind."""

    count: int = 0  # pixels
    total: NDArray | float = 0.0  # (C,)
    squares: NDArray | float = 0.0  # (C,)

    def add(self, image: Array) -> None:
        """Count ``(C, H, W)`` in, without pixels that were not measured in every channel."""
        seen = image[:, ~np.isnan(image).any(0)].astype(np.float64)
        self.count += seen.shape[1]
        self.total = self.total + seen.sum(1)
        self.squares = self.squares + (seen**2).sum(1)

    @property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean = np.asarray(self.total) / self.count
        std = np.sqrt(np.maximum(np.asarray(self.squares) / self.count - mean**2, 0.0))
        return tuple(mean.tolist()), tuple(std.tolist())


@dataclass
class Survey:
    """Collected tile by tile."""

    sums: dict[str, Sums] = field(default_factory=lambda: {name: Sums() for name in ("s1", "s2", "opt_v2")})
    seen: dict[str, tuple[str, str]] = field(default_factory=dict)  # tile and split by the sha256 of an image

    def add(self, name: str, s1: Array, s2: Array, opt_v2: Array, *, split: str) -> None:
        """One tile as it was read.

        Raises:
            UserError: another tile is the same, or one of another split has the same S1 or S2 image.
        """
        same = []
        for what, image in (("S1", s1), ("S2", s2)):
            content = f"{what} {hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()}"
            other, of = self.seen.setdefault(content, (name, split))
            same += [other] if other != name else []
            if of != split or len(same) == 2:
                raise UserError(
                    f"tiles {other} ({of}) and {name} ({split}) hold the same {what} image: take one of them away, "
                    "because a copy in another split turns a test score into a training score."
                )
        if split == "train":
            for key, image in (("s1", s1), ("s2", s2), ("opt_v2", opt_v2)):
                self.sums[key].add(image)

    @property
    def statistics(self) -> Statistics:
        found = [number for key in ("s1", "s2", "opt_v2") for number in self.sums[key].mean_std]
        return Statistics(*found)


def check_blocks(about: Mapping[str, About]) -> None:
    """Raise where a block stands in two splits.

    Args:
        about: by tile.
    """
    first: dict[str, tuple[str, str]] = {}
    for name, one in about.items():
        split, other = first.setdefault(one.block, (one.split, name))
        if split != one.split:
            raise UserError(
                f"block {one.block!r} is in two splits: {other} in {split} and {name} in {one.split}, which are "
                "neighbours on the ground, so move all tiles of the block to one split."
            )


def check_ground(about: Mapping[str, About], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise where tiles of two splits show the same ground, whatever their blocks are called.

    Args:
        about: by tile; those without georeference are passed over.
        shapes: (H, W) by tile.
    """
    names = list(shapes)
    where = {
        number: (about[name].crs, about[name].transform or ())
        for number, name in enumerate(names)
        if about[name].crs is not None and about[name].transform is not None
    }
    cells = ground_cells(where, {number: shapes[names[number]] for number in where})
    first: dict[int, str] = {}
    for number, seen in cells.items():
        for cell in seen:
            other = first.setdefault(cell, names[number])
            if about[other].split != about[names[number]].split:
                raise UserError(
                    f"tiles {other} ({about[other].split}) and {names[number]} ({about[names[number]].split}) show the "
                    f"same ground near {cell_name(cell)}: put both into one split and one block."
                )
