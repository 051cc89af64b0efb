"""The real Sentinel-2 samples as one data folder: ``python benchmarks/sentinel_sample.py DATA TO``.

DATA is the folder of samples (``NBHELPERS_REAL_DATA``). Tests use the same function.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from nbhelpers.science.sentinel2 import LEVEL_1C
from nbhelpers.stages.super_resolution.cut import cut_scenes
from nbhelpers.stages.super_resolution.patch import (
    BANDS,
    DEFAULT_BANDS,
    DN_PER_REFLECTANCE,
    DTYPE,
    FOLDER,
    band_file,
    write_patch,
)

SERIES = "series"  # place of the five dates, which have no georeference
TILE_SIDE = 112  # half of a scene of 224 pixels, and a multiple of 8


def real_places(real_data: Path, to: Path) -> Path:
    """Write all samples to the new folder ``to`` in BigEarthNet v2's layout; returns it.

    Seven places: 29UPU (2 patches of BigEarthNet), 33UUP and 35VPK (1 each), three scenes of 4 patches (22JGS, 36MXB,
    32VNJ), and five dates of one place without a georeference.
    """
    root = to / FOLDER
    for folder in sorted((real_data / "bigearthnet" / FOLDER).iterdir()):
        target = root / folder.name.rsplit("_", 2)[0] / folder.name
        target.mkdir(parents=True)
        for band in BANDS:
            shutil.copyfile(band_file(folder, folder.name, band), band_file(target, folder.name, band))
    scenes = sorted((real_data / "s1s2_tiles" / "S2L2A").glob("*.tif"))
    cut_scenes(scenes, to, size=TILE_SIDE)
    dates = np.load(real_data / "s2_timeseries" / "REFERENCE_SCENES.npy", allow_pickle=False)  # (T, H, W, 13)
    for number, date in enumerate(dates):
        bands = {
            band: np.round(date[:100, :100, LEVEL_1C.index(band)] * DN_PER_REFLECTANCE).astype(DTYPE)
            for band in DEFAULT_BANDS
        }
        write_patch(root / SERIES, f"{SERIES}_{number}_0", bands)
    return to


if __name__ == "__main__":
    print(real_places(Path(sys.argv[1]), Path(sys.argv[2])))
