"""Tiny but real folders of Sentinel-2 patches, in the layouts of BigEarthNet v1 and v2."""

from __future__ import annotations

import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet
from rasterio.transform import Affine
from scipy.ndimage import gaussian_filter

from nbhelpers.stages.super_resolution.patch import DEFAULT_BANDS, FOLDER, RESOLUTION, write_patch

ROOT = Path(__file__).resolve().parents[1]
real_places = runpy.run_path(str(ROOT / "benchmarks" / "sentinel_sample.py"))["real_places"]
# UTM zone and upper left corner (easting, northing) of tiles.
TILES = {
    "33UUP": (32633, 300000, 5400000),
    "29UPU": (32629, 600000, 5900040),
    "35VPK": (32635, 600000, 7000020),
    "31UFT": (32631, 600000, 5800020),
    "34TDR": (32634, 399960, 5100000),
    "32TMT": (32632, 399960, 5300040),
}


def scene(seed: int, *, size: int = 48, bands: Sequence[str] = DEFAULT_BANDS) -> dict[str, NDArray[np.uint16]]:
    """``(H, W)`` digital numbers by band: correlated smooth fields at several scales, between 100 and 4000."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(600, 1400)
    found = {}
    for band in bands:
        side = size * 10 // RESOLUTION[band]
        field = sum(gaussian_filter(rng.normal(size=(side, side)), sigma, mode="wrap") * sigma for sigma in (1, 3, 8))
        found[band] = np.clip(level + 350 * field, 100, 4000).round().astype(np.uint16)
    return found


def product(tile: str, *, baseline: str = "N9999", day: int = 13) -> str:
    """A product's name as in v2."""
    return f"S2A_MSIL2A_201706{day:02d}T101031_{baseline}_R022_T{tile}"


def write_v2(
    data_dir: Path, patches: Mapping[str, int], *, size: int = 48, bands: Sequence[str] = DEFAULT_BANDS, **names: str
) -> list[str]:
    """``patches`` of each tile (of ``TILES``); returns the ids."""
    ids = []
    for number, (tile, count) in enumerate(patches.items()):
        epsg, left, top = TILES[tile]
        for column in range(count):
            ids.append(f"{product(tile, **names)}_{column}_7")
            write_patch(
                data_dir / FOLDER / product(tile, **names),
                ids[-1],
                scene(100 * number + column, size=size, bands=bands),
                crs=f"EPSG:{epsg}",
                transform=Affine(10, 0, left + 1200 * column, 0, -10, top - 1200 * 7),
            )
    return ids


def write_v1(data_dir: Path, tile: str, columns: Sequence[int], *, day: int = 13, size: int = 48) -> list[str]:
    """Patches of one tile as v1 names them; returns the ids."""
    epsg, left, top = TILES[tile]
    ids = []
    for column in columns:
        ids.append(f"S2A_MSIL2A_201706{day:02d}T101031_{column}_7")
        transform = Affine(10, 0, left + 1200 * column, 0, -10, top - 1200 * 7)
        write_patch(data_dir, ids[-1], scene(1000 * day + column, size=size), crs=f"EPSG:{epsg}", transform=transform)
    return ids


def write_metadata(path: Path, rows: Sequence[tuple[str, str, str]], *, v1_names: Sequence[str] = ()) -> None:
    """``metadata.parquet`` of (patch_id, split, country) with all columns of the real one."""
    ids, splits, countries = (list(column) for column in zip(*rows, strict=True))
    table = {
        "patch_id": ids,
        "labels": [["Pastures"]] * len(rows),
        "split": splits,
        "country": countries,
        "s1_name": [f"S1A_{name}" for name in ids],
        "s2v1_name": list(v1_names) or [f"v1 of {name}" for name in ids],
        "contains_seasonal_snow": [False] * len(rows),
        "contains_cloud_or_shadow": [False] * len(rows),
    }
    parquet.write_table(pyarrow.table(table), path)
