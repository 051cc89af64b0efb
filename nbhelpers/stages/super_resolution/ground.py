"""Which ground patches show, so that two of them can be known to overlap whatever their place or projection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points

CELL = 0.005  # degrees along a side, WGS 84: 560 m from north to south, as much or less from west to east
_AROUND = 100_000  # above the number of cells around the earth

Georeference = tuple[str | None, tuple[float, ...]]  # CRS, and six numbers of the transform


def ground_cells(
    where: Mapping[int, Georeference], shapes: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[int, ...]]:
    """Cells of one grid of longitude and latitude whose centres lie in each patch, by the patch's index.

    Patches that share more than a cell's length both ways share a cell; patches that only touch never do, because a
    centre on their common edge is counted for one of them. A patch without a georeference has no cells.

    Args:
        where: CRS and transform by index.
        shapes: (H, W) by index.
    """
    by_crs = defaultdict(list)
    for index, (crs, _) in where.items():
        if crs is not None:
            by_crs[crs].append(index)
    found: dict[int, tuple[int, ...]] = {}
    for name, members in by_crs.items():
        crs = CRS.from_user_input(name)
        transforms = [Affine(*where[index][1]) for index in members]
        # All points of a CRS at once: a call for each patch would take minutes for 100,000 of them.
        corners = [
            (t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)
            for t, (height, width) in zip(transforms, (shapes[index] for index in members), strict=True)
            for x, y in ((0, 0), (width, 0), (0, height), (width, height))
        ]
        lon, lat = (np.array(one).reshape(-1, 4) for one in warp_points(crs, "EPSG:4326", *zip(*corners, strict=True)))
        candidates, owners = [], []
        for owner, (east, north) in enumerate(zip(lon / CELL, lat / CELL, strict=True)):
            if not np.isfinite([east, north]).all():
                continue
            # An edge of a patch bends by metres between its corners, which one more cell on each side allows for.
            columns, rows = (np.arange(np.floor(one.min()) - 1, np.ceil(one.max()) + 1) for one in (east, north))
            grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
            candidates.append(grid)
            owners.append(np.full(len(grid), owner))
        if not candidates:
            continue
        cells, owner_of = np.concatenate(candidates), np.concatenate(owners)
        centres = (cells + 0.5) * CELL
        x, y = (np.array(one) for one in warp_points("EPSG:4326", crs, centres[:, 1], centres[:, 0]))
        a, b, c, d, e, f = np.array([tuple(~t)[:6] for t in transforms])[owner_of].T
        height, width = np.array([shapes[index] for index in members])[owner_of].T
        column, row = a * x + b * y + c, d * x + e * y + f
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        numbers = (cells[:, 0] * _AROUND + cells[:, 1]).astype(np.int64)
        seen, ends = numbers[inside], np.searchsorted(owner_of[inside], np.arange(len(members) + 1))
        for number, index in enumerate(members):
            found[index] = tuple(seen[ends[number] : ends[number + 1]].tolist())
    return found


def cell_name(cell: int) -> str:
    """Latitude and longitude of the cell's centre, in degrees."""
    row = round(cell / _AROUND)
    return f"{(row + 0.5) * CELL:.4f} N {(cell - row * _AROUND + 0.5) * CELL:.4f} E"
