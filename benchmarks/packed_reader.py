"""Random crops out of packed patches against opening the GeoTIFFs of each sample, the same crops."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window
from side_by_side import record, side_by_side

from nbhelpers.stages.super_resolution.folder import PatchFolder
from nbhelpers.stages.super_resolution.pack import pack
from nbhelpers.stages.super_resolution.packed import PackedPatches
from nbhelpers.stages.super_resolution.patch import DEFAULT_BANDS, FOLDER, SIZE, band_file, write_patch

PATCHES, CROP, SAMPLES = 100, 96, 120

folder = tempfile.TemporaryDirectory()
source, packed_dir = Path(folder.name) / "data", Path(folder.name) / "packed"
rng = np.random.default_rng(0)
product = source / FOLDER / "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
for number in range(PATCHES):
    bands = {band: rng.integers(1, 4000, (SIZE, SIZE), dtype=np.uint16) for band in DEFAULT_BANDS}
    transform = Affine(10, 0, 300000 + 1200 * number, 0, -10, 5400000)
    write_patch(product, f"{product.name}_{number}_0", bands, crs="EPSG:32633", transform=transform)
pack(source, packed_dir)

crops = [(int(rng.integers(PATCHES)), *rng.integers(0, SIZE - CROP + 1, 2).tolist()) for _ in range(SAMPLES)]
folders = PatchFolder(source)
packed = PackedPatches(packed_dir)
paths = [
    [band_file(product / patch.id, patch.id, band) for band in DEFAULT_BANDS] for patch in folders.patches
]  # the plainest code that anyone would write


def used(sample: np.ndarray) -> float:
    """Make the sample as a loader would; the sum shows that all ways read the same."""
    return float(np.ascontiguousarray(sample)[..., 0].sum())


def from_packed() -> float:
    return sum(used(packed[patch][:, row : row + CROP, column : column + CROP]) for patch, row, column in crops)


def from_folder() -> float:
    return sum(used(folders[patch][:, row : row + CROP, column : column + CROP]) for patch, row, column in crops)


def from_geotiffs() -> float:
    total = 0.0
    for patch, row, column in crops:
        layers = []
        for path in paths[patch]:
            with rasterio.open(path) as file:
                layers.append(file.read(1, window=Window(column, row, CROP, CROP)))
        total += used(np.stack(layers).astype(np.float32))
    return total


def cpu_seconds(way: Callable[[], float]) -> float:
    """Processor time of one turn, which other programs on the machine do not change much."""
    began = time.process_time()
    way()
    return time.process_time() - began


assert [patch.id for patch in packed.patches] == [patch.id for patch in folders.patches]
assert from_packed() == from_folder() == from_geotiffs()
seconds = side_by_side({"packed": from_packed, "geotiffs": from_geotiffs, "patch_folder": from_folder}, rounds=3)
record(
    "packed_reader",
    {
        "what": f"{SAMPLES} random crops of {CROP} x {CROP} in {len(DEFAULT_BANDS)} bands out of {PATCHES} patches of "
        f"{SIZE} x {SIZE}, all in the operating system's cache",
        "seconds": seconds,
        "samples_per_second": {name: SAMPLES / taken for name, taken in seconds.items()},
        "ratio_of_processor_time": min(cpu_seconds(from_geotiffs) for _ in range(3))
        / min(cpu_seconds(from_packed) for _ in range(3)),
        "ratio": seconds["geotiffs"] / seconds["packed"],
        "ratio_to_our_folder_reader": seconds["patch_folder"] / seconds["packed"],
    },
)
folder.cleanup()
