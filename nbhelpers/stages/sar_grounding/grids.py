"""Grids of S1 and S2 images on the ground: the part that two share without resampling, and blocks of neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, floor, radians

from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points

from nbhelpers.core.errors import UserError
from nbhelpers.science.ground import ground_cells

TOLERANCE = 0.01  # pixels by which two grids may be off each other
KM_PER_DEGREE = 111.2


@dataclass(frozen=True)
class Grid:
    """Where the pixels of an image lie."""

    crs: str  # as rasterio reads it
    transform: tuple[float, ...]  # a, b, c, d, e, f
    shape: tuple[int, int]  # (H, W)

    def __str__(self) -> str:
        a, _, c, _, e, f = self.transform
        return f"{self.shape[0]} x {self.shape[1]} pixels of {a:g} x {-e:g} from {c:.2f}, {f:.2f} in {self.crs}"

    def cut(self, row: int, column: int, shape: tuple[int, int]) -> Grid:
        """The part of ``shape`` that begins at ``row`` and ``column``."""
        a, b, c, d, e, f = self.transform
        moved = (a, b, c + a * column + b * row, d, e, f + d * column + e * row)
        return Grid(self.crs, moved, shape)

    @property
    def pixel_m(self) -> float | None:
        """Side of a pixel; None where the CRS has no unit of length."""
        crs = CRS.from_user_input(self.crs)
        if not crs.is_projected:
            return None
        return float(abs(Affine(*self.transform).determinant) ** 0.5 * crs.linear_units_factor[1])


def grid_of(file: object, where: str) -> Grid:
    """Of an opened raster.

    Raises:
        UserError: it has no georeference, or one in degrees.
    """
    crs, transform, shape = (getattr(file, name) for name in ("crs", "transform", "shape"))
    if crs is None:
        raise UserError(
            f"{where} has no georeference, so nothing tells which images lie near each other: write its CRS and "
            "transform, e.g. with `gdal_edit`."
        )
    epsg = crs.to_epsg()
    grid = Grid(f"EPSG:{epsg}" if epsg else crs.to_wkt(), tuple(transform)[:6], tuple(shape))
    if grid.pixel_m is None:
        raise UserError(
            f"{where} has pixels in degrees ({grid.crs}): bring it to UTM, e.g. with `gdalwarp -t_srs EPSG:326xx`."
        )
    return grid


def shared_part(one: Grid, other: Grid, names: tuple[str, str]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of each image that show the ground that both show, pixel by pixel.

    Raises:
        UserError: another CRS, other pixels, or pixels that do not lie upon each other; nothing is ever resampled.
    """
    allowed = TOLERANCE * abs(one.transform[0]) / max(*one.shape, *other.shape)
    same_pixels = all(abs(one.transform[n] - other.transform[n]) < allowed for n in (0, 1, 3, 4))
    inverse, x, y = ~Affine(*one.transform), other.transform[2], other.transform[5]
    column, row = inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f
    whole = abs(column - round(column)) < TOLERANCE and abs(row - round(row)) < TOLERANCE
    if CRS.from_user_input(one.crs) != CRS.from_user_input(other.crs) or not same_pixels or not whole:
        raise UserError(
            f"{names[0]} has {one} and {names[1]} {other}: these are different grids that no crop aligns, so warp one "
            "onto the other first, e.g. with `rio warp --like`."
        )
    spans = []
    for first, length, other_length in zip((round(row), round(column)), one.shape, other.shape, strict=True):
        start, stop = max(0, first), min(length, first + other_length)
        if stop <= start:
            raise UserError(f"{names[0]} has {one} and {names[1]} {other}: they show no common ground, check the pair.")
        spans.append((slice(start, stop), slice(start - first, stop - first)))
    (rows, other_rows), (columns, other_columns) = spans
    return (rows, columns), (other_rows, other_columns)


def blocks_of(grids: Mapping[str, Grid], *, block_km: float) -> dict[str, str]:
    """Block of each image: the square of ``block_km`` that holds its centre, joined with those it reaches into.

    Two squares become one block where images of both show the same ground, so that no ground is in two blocks. Images
    that only touch stay apart: where a whole region is covered without gaps, squares are what can be told apart.

    Args:
        grids: by name of the image.
        block_km: side of a square, from north to south and from west to east.
    """
    names = list(grids)
    squares = [_square(grids[name], block_km) for name in names]
    joined = {square: square for square in squares}

    def root(square: tuple[int, int]) -> tuple[int, int]:
        while joined[square] != square:
            square = joined[square]
        return square

    where = {number: (grids[name].crs, grids[name].transform) for number, name in enumerate(names)}
    cells = ground_cells(where, {number: grids[names[number]].shape for number in where})
    first: dict[int, tuple[int, int]] = {}
    for number, seen in cells.items():
        for cell in seen:
            low, high = sorted((root(first.setdefault(cell, squares[number])), root(squares[number])))
            joined[high] = low
    return {name: _square_name(root(square), block_km) for name, square in zip(names, squares, strict=True)}


def _square(grid: Grid, block_km: float) -> tuple[int, int]:
    centre = grid.cut(grid.shape[0] // 2, grid.shape[1] // 2, (1, 1)).transform
    (lon,), (lat,) = warp_points(grid.crs, "EPSG:4326", [centre[2]], [centre[5]])
    row = floor(lat * KM_PER_DEGREE / block_km)
    return row, floor(lon * KM_PER_DEGREE * _narrower(row, block_km) / block_km)


def _square_name(square: tuple[int, int], block_km: float) -> str:
    lat = (square[0] + 0.5) * block_km / KM_PER_DEGREE
    lon = (square[1] + 0.5) * block_km / KM_PER_DEGREE / _narrower(square[0], block_km)
    return f"{abs(lat):.2f}{'N' if lat >= 0 else 'S'} {abs(lon):.2f}{'E' if lon >= 0 else 'W'}"


def _narrower(row: int, block_km: float) -> float:
    """Of a degree of longitude in this row of squares."""
    return max(cos(radians((row + 0.5) * block_km / KM_PER_DEGREE)), 0.01)
