"""Which patches show the same ground, whatever their sizes, places and projections: exactly, by their four corners.

A grid of cells cannot tell: cells as wide as a patch miss most overlaps, fine ones are millions for a single scene. So
footprints are compared, each with those that lie near it, and two that overlap get a number in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points

CELL = 1e-6  # degrees along a side, WGS 84: 0.1 m, so that no two overlaps lie in one
_AROUND = 1_000_000_000  # above the number of cells around the earth
TOUCH = 0.5  # pixels by which patches may reach into each other and still only touch
_MOST_PAIRS = 50_000  # compared at once, by memory

Georeference = tuple[str | None, tuple[float, ...]]  # CRS, and six numbers of the transform
Corners = NDArray[np.float64]  # (n, 4, 2), in turn around each patch


def ground_cells(
    where: Mapping[int, Georeference], shapes: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[int, ...]]:
    """Cells of ground by the patch's index: two patches have one in common if they overlap, and only then.

    The cells are that of the patch's middle, and for each other patch that it overlaps with the one in the middle of
    what both show. Patches that touch, by up to ``TOUCH`` pixels, do not overlap. Edges count as straight, in either
    projection: those of a tile bend by centimetres, those of a scene of 100 km by a few metres. A patch without a
    georeference has no cells.

    Args:
        where: CRS and transform by index.
        shapes: (H, W) by index.
    """
    # Images of one place at many dates have one footprint, and are one here.
    members: dict[tuple[Georeference, tuple[int, int]], list[int]] = defaultdict(list)
    for index, place in where.items():
        if place[0] is not None:
            members[place, shapes[index]].append(index)
    if not members:
        return {}
    places, sizes = [place for place, _ in members], np.array([shape for _, shape in members], float)
    corners = _corners([place[1] for place in places], sizes)
    names = sorted({str(crs) for crs, _ in places})
    projection = np.array([names.index(str(crs)) for crs, _ in places])
    degrees = np.full_like(corners, np.nan)
    for number, name in enumerate(names):
        degrees[projection == number] = _warped(corners[projection == number], name, "EPSG:4326")
    spans = np.ptp(degrees[..., 0], axis=1) > 180
    degrees[spans, :, 0] %= 360  # across the antimeridian
    pixel = np.minimum(*(_length(corners[:, k] - corners[:, 0]) / sizes[:, axis] for k, axis in ((1, 1), (3, 0))))
    cells: list[list[int]] = [[int(cell)] for cell in _cells(degrees.mean(1))]
    for lost in np.flatnonzero(~np.isfinite(degrees).all((1, 2))):
        cells[int(lost)] = []
    for one, other in _near(degrees):
        for code in np.unique(projection[one] * len(names) + projection[other]):
            chosen = projection[one] * len(names) + projection[other] == code
            first, second = divmod(int(code), len(names))
            a, b = one[chosen], other[chosen]
            origin = corners[a, :1]
            ours, theirs, finer = corners[a] - origin, corners[b], pixel[b]
            if first != second:
                theirs = _warped(theirs, names[second], names[first])
                finer = _length(theirs[:, 1] - theirs[:, 0]) / sizes[b, 1]
            theirs = theirs - origin
            deep = _depth(ours, theirs) > TOUCH * np.minimum(pixel[a], finer)
            if not deep.any():
                continue
            middles = _middles(ours[deep], theirs[deep])[:, None] + origin[deep]
            for x, y, cell in zip(
                a[deep], b[deep], _cells(_warped(middles, names[first], "EPSG:4326")[:, 0]), strict=True
            ):
                cells[x].append(int(cell))
                cells[y].append(int(cell))
    return {index: tuple(of) for indices, of in zip(members.values(), cells, strict=True) if of for index in indices}


def cell_name(cell: int) -> str:
    """Latitude and longitude of the cell's centre, in degrees."""
    row, column = divmod(cell, _AROUND)
    return f"{(row + 0.5) * CELL - 90:.6f} N {(column + 0.5) * CELL - 180:.6f} E"


def _corners(transforms: list[tuple[float, ...]], sizes: NDArray) -> Corners:
    a, b, c, d, e, f = np.array([tuple(Affine(*numbers))[:6] for numbers in transforms]).T
    height, width = sizes.T
    turn = ((0 * width, 0 * height), (width, 0 * height), (width, height), (0 * width, height))
    return np.stack([np.stack((a * x + b * y + c, d * x + e * y + f), -1) for x, y in turn], 1)


def _warped(points: Corners, source: str, target: str) -> Corners:
    """In another projection; all at once, because a call for each patch would take minutes for 100,000 of them."""
    x, y = points[..., 0].ravel(), points[..., 1].ravel()
    found = warp_points(CRS.from_user_input(source), CRS.from_user_input(target), x, y)
    return np.stack([np.array(one, float) for one in found], -1).reshape(points.shape)


def _cells(points: NDArray) -> NDArray[np.int64]:
    """Of ``(n, 2)`` longitudes and latitudes."""
    lon, lat = np.nan_to_num(points, posinf=0, neginf=0).T
    rows, columns = np.floor((lat + 90) / CELL), np.floor((lon + 180) % 360 / CELL)
    return np.asarray(rows.astype(np.int64) * _AROUND + columns.astype(np.int64))


def _near(degrees: Corners) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Numbers of patches whose boxes of longitude and latitude meet, each pair once."""
    known = np.flatnonzero(np.isfinite(degrees).all((1, 2)))
    low, high = degrees[known].min(1), degrees[known].max(1)
    middle, half = (low + high) / 2, (high - low) / 2 * 1.01  # edges bend
    if len(known) < 2:
        return
    # Squares as large as most patches, of which each lies in few; a whole number of them goes around the earth.
    around = max(1, int(360 / max(float(np.median(half)) * 2, 1e-7)))
    square = 360 / around
    first = np.floor((middle - half) / square).astype(np.int64)
    counts = np.floor((middle + half) / square).astype(np.int64) - first + 1
    owner = np.repeat(np.arange(len(known)), counts.prod(1))
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts.prod(1)) - counts.prod(1), counts.prod(1))
    columns = (first[owner, 0] + rank % counts[owner, 0]) % around
    numbers = (first[owner, 1] + rank // counts[owner, 0]) * around + columns
    order = np.argsort(numbers, kind="stable")
    numbers, owner = numbers[order], owner[order]
    waiting: list[NDArray[np.int64]] = []
    step, left = 1, np.arange(len(numbers) - 1)
    while len(left := left[left + step < len(numbers)]):
        left = left[numbers[left] == numbers[left + step]]
        one, other = owner[left], owner[left + step]
        apart = np.abs(middle[one] - middle[other])
        apart[:, 0] = np.minimum(apart[:, 0], np.abs(360 - apart[:, 0]))
        meets = (apart <= half[one] + half[other]).all(1) & (one != other)
        waiting.append(np.minimum(one, other)[meets] * len(known) + np.maximum(one, other)[meets])
        step += 1
    pairs = np.unique(np.concatenate(waiting)) if waiting else np.array([], np.int64)
    for start in range(0, len(pairs), _MOST_PAIRS):
        some = pairs[start : start + _MOST_PAIRS]
        yield known[some // len(known)], known[some % len(known)]


def _depth(one: Corners, other: Corners) -> NDArray:
    """How deep each two reach into each other, below 0 where they are apart.

    By the separating axis theorem: convex shapes are apart if and only if they are along the normal of an edge.
    """
    depth = np.full(len(one), np.inf)
    for shape in (one, other):
        normals = _normals(shape)
        own, theirs = (np.einsum("nkc,nec->nek", both, normals) for both in (one, other))
        overlap = np.minimum(own.max(2), theirs.max(2)) - np.maximum(own.min(2), theirs.min(2))
        depth = np.minimum(depth, overlap.min(1))
    return depth


def _middles(one: Corners, other: Corners) -> NDArray:
    """``(n, 2)`` within what each two that overlap have in common: the mean of its corners."""
    parts = [_crossings(one, other)]
    for shape, points in ((one, other), (other, one)):
        normals = _normals(shape)
        own, theirs = (np.einsum("nkc,nec->nek", both, normals) for both in (shape, points))
        within = (theirs >= own.min(2)[..., None]) & (theirs <= own.max(2)[..., None])
        parts.append((points, within.all(1)))
    found, kept = (np.concatenate(both, 1) for both in zip(*parts, strict=True))
    return np.asarray((found * kept[..., None]).sum(1) / np.maximum(kept.sum(1), 1)[:, None])


def _normals(shape: Corners) -> Corners:
    """``(n, 4, 2)`` of the edges, of length 1."""
    edges = np.roll(shape, -1, 1) - shape
    normals = np.stack((-edges[..., 1], edges[..., 0]), -1)
    return np.asarray(normals / np.maximum(_length(normals), 1e-300)[..., None])


def _crossings(one: Corners, other: Corners) -> tuple[NDArray, NDArray[np.bool_]]:
    """``(n, 16, 2)`` points where edges cross, and which of them do."""
    start, along = one[:, :, None], (np.roll(one, -1, 1) - one)[:, :, None]
    begin, across = other[:, None], (np.roll(other, -1, 1) - other)[:, None]

    def cross(u: NDArray, v: NDArray) -> NDArray:
        return np.asarray(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])

    slant, between = cross(along, across), begin - start
    safe = np.where(slant == 0, 1, slant)
    t, s = cross(between, across) / safe, cross(between, along) / safe
    crossing = (slant != 0) & (t >= 0) & (t <= 1) & (s >= 0) & (s <= 1)
    points = start + np.where(crossing, t, 0)[..., None] * along
    return points.reshape(len(one), 16, 2), crossing.reshape(len(one), 16)


def _length(vectors: NDArray) -> NDArray:
    return np.asarray(np.hypot(vectors[..., 0], vectors[..., 1]))
