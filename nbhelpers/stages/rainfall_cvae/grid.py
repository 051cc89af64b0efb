"""Regular grids of coarse and fine data: their order, size in km, and which fine pixels a coarse cell covers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nbhelpers.core.errors import UserError

Kind = Literal["geographic", "rotated", "projected"]
DEGREE_KM = math.pi * 6371.0 / 180  # length of a degree of latitude on a sphere of the Earth's mean radius
NO_COAST_KM = 1000.0  # distance to the coast everywhere, where the data know no sea: a constant, which tells nothing
EDGE = 1e-3  # fine pixels; a centre on the edge of a cell, but for rounding, lies in the cell to its east or south
OFF_CENTRE = 0.55  # fine pixels by which blocks may miss their coarse cells: half a pixel, and the files' rounding


@dataclass(frozen=True)
class Grid:
    """Centres of the pixels of a regular grid; row 0 is the northernmost, column 0 the westernmost."""

    y: NDArray[np.float64]  # (H,) falling
    x: NDArray[np.float64]  # (W,) rising; geographic ones may pass 180 where the grid lies across that meridian
    kind: Kind
    unit_km: float  # of x and y: DEGREE_KM for degrees, 0.001 for metres
    mapping: tuple[tuple[str, float], ...] = ()  # of the projection, such as the rotated pole: name and value

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.y), len(self.x)

    @property
    def steps(self) -> tuple[float, float]:
        """Distance of neighbouring rows and of neighbouring columns, in the grid's own unit."""
        return (self.y[0] - self.y[-1]) / (len(self.y) - 1), (self.x[-1] - self.x[0]) / (len(self.x) - 1)

    def same_as(self, other: Grid) -> bool:
        """Whether pixels lie in the same places, but for the rounding of files (a hundredth of a pixel)."""
        return (
            (self.shape, self.kind, self.unit_km) == (other.shape, other.kind, other.unit_km)
            and bool(np.abs(self.y - other.y).max() <= 0.01 * self.steps[0])
            and bool(np.abs(self.x - other.x).max() <= 0.01 * self.steps[1])
        )

    def __str__(self) -> str:
        return (
            f"{len(self.y)} x {len(self.x)} pixels, {self.y[-1]:g} to {self.y[0]:g} north and {self.x[0]:g} to "
            f"{self.x[-1]:g} east ({self.kind})"
        )


def pixel_km(grid: Grid) -> tuple[float, float]:
    """Height and width of a pixel in km, at the grid's mean latitude."""
    down, right = grid.steps
    narrow = 1.0 if grid.kind == "projected" else math.cos(math.radians(float(grid.y.mean())))
    return down * grid.unit_km, right * grid.unit_km * narrow


def distance_to_sea(land: NDArray[np.bool_], grid: Grid) -> NDArray[np.float32]:
    """``(H, W)`` km from each land pixel to the nearest sea pixel, 0 at sea; ``NO_COAST_KM`` if there is no sea.

    Planar distances with the pixels' size at the mean latitude: a map for a network to read, not a survey.
    """
    if land.all():
        return np.full(land.shape, NO_COAST_KM, np.float32)
    return distance_transform_edt(land, sampling=pixel_km(grid)).astype(np.float32)


def in_box(grid: Grid, box: tuple[float, float, float, float]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns whose centres lie in ``box`` = (west, south, east, north), from the west to the east.

    Longitudes are compared modulo 360; a west greater than the east crosses the 180th meridian.

    Raises:
        UserError: fewer than two rows or columns are in it, or the grid has a gap there.
    """
    west, south, east, north = box
    if grid.kind == "geographic":
        east += 360 if east < west else 0
        columns = eastward(grid, west)
        x = west + (grid.x[columns] - west) % 360
    else:
        columns, x = np.arange(len(grid.x)), grid.x
    columns, x = columns[(x >= west) & (x <= east)], x[(x >= west) & (x <= east)]
    rows = np.flatnonzero((grid.y >= south) & (grid.y <= north))
    if min(len(rows), len(columns)) < 2 or np.diff(x).max() > 1.5 * grid.steps[1]:
        raise UserError(
            f"the box {west:g} {south:g} {east:g} {north:g} (west south east north) holds {len(rows)} x {len(columns)} "
            f"pixels side by side of a grid of {grid}: give a --box inside it."
        )
    return rows, columns


def eastward(grid: Grid, seam: float) -> NDArray[np.intp]:
    """Columns of a geographic grid in the order in which one meets them going east from the longitude ``seam``."""
    return np.argsort((grid.x - seam) % 360, kind="stable")


def continuous(longitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes without the jump from 360 to 0 or from 180 to -180, their mean from -180 to below 180."""
    x = np.unwrap(longitudes, period=360.0)
    return x - 360.0 * np.floor((x.mean() + 180.0) / 360.0)


def covering(fine: Grid, coarse: Grid) -> tuple[int, NDArray[np.intp], NDArray[np.intp]]:
    """Factor between the grids, and the rows and columns of ``fine`` of which each coarse cell covers factor x factor.

    Raises:
        UserError: other projections, pixels whose size is no whole multiple, coarse cells beyond the fine grid.
    """
    if fine.kind != coarse.kind or _differ(fine.mapping, coarse.mapping):
        raise UserError(
            f"the rain lies on a {fine.kind} grid {dict(fine.mapping) or ''} and the predictors on a {coarse.kind} one "
            f"{dict(coarse.mapping) or ''}: bring both to one projection, e.g. with `cdo remapbil`."
        )
    scale = coarse.unit_km / fine.unit_km
    ratios = [theirs * scale / ours for theirs, ours in zip(coarse.steps, fine.steps, strict=True)]
    factor = max(1, round(ratios[1]))
    columns, x = np.arange(len(fine.x)), fine.x
    if fine.kind == "geographic":
        seam = coarse.x[0] - coarse.steps[1] / 2 - EDGE * fine.steps[1]
        columns = eastward(fine, seam)
        x = seam + (fine.x[columns] - seam) % 360
    rows = _covered(-fine.y, -coarse.y * scale, factor, fine.steps[0])
    across = _covered(x, coarse.x * scale, factor, fine.steps[1])
    if factor < 2 or rows is None or across is None:
        raise UserError(
            f"the rain has {fine} and the predictors have {coarse}: each coarse cell must cover the same whole number "
            f"of rain pixels (2 or more) each way, and none may lie beyond them, but a cell has {ratios[0]:.2f} x "
            f"{ratios[1]:.2f} of them: give a --box inside both, or regrid one, e.g. with `cdo remapcon`."
        )
    return factor, rows, columns[across]


def _covered(fine: NDArray, coarse: NDArray, factor: int, step: float) -> NDArray[np.intp] | None:
    """Indices of the rising ``fine`` with centres in cells of ``coarse``; None unless each has ``factor`` of them."""
    half_cell = (coarse[-1] - coarse[0]) / (len(coarse) - 1) / 2
    low, high = coarse[0] - half_cell - EDGE * step, coarse[-1] + half_cell - EDGE * step
    inside = np.flatnonzero((fine >= low) & (fine < high))
    if len(inside) != factor * len(coarse):
        return None
    middles = fine[inside].reshape(len(coarse), factor).mean(axis=1)
    return inside if np.abs(middles - coarse).max() <= OFF_CENTRE * step else None


def _differ(one: tuple[tuple[str, float], ...], other: tuple[tuple[str, float], ...]) -> bool:
    """Whether a parameter that both projections name has two values."""
    theirs = dict(other)
    return any(abs(value - theirs.get(name, value)) > 1e-3 for name, value in one)
