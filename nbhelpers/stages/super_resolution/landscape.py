"""Simulated Sentinel-2 scenes in digital numbers: a painted landscape (see ``science.landscape``) seen band by band.

All bands come from one landscape, so 10 m, 20 m and 60 m bands agree with each other as those of an acquisition do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nbhelpers.science.landscape.canvas import Array, Canvas
from nbhelpers.science.landscape.painting import paint_clouds, paint_landscape
from nbhelpers.science.landscape.regions import Region, reflectances
from nbhelpers.science.landscape.sensor import observe
from nbhelpers.stages.super_resolution.patch import BANDS, DN_PER_REFLECTANCE, DTYPE, RESOLUTION

VERSION = 1  # of the pictures below: raise it whenever the same parameters give other landscapes


def landscape(
    region: Region, *, size: tuple[int, int], bands: Sequence[str], seed: Sequence[int], clouds: bool = False
) -> dict[str, NDArray[np.uint16]]:
    """A scene of ``size`` (H, W) pixels of 10 m as digital numbers (reflectance × 1e4, at least 1: 0 is no data).

    Each of ``bands`` is ``(H k, W k)`` with k = 1 at 10 m, 1/2 at 20 m, 1/6 at 60 m; H and W are multiples of 6 for
    all bands, of 2 for those up to 20 m. The picture is a function of the arguments and nothing else, and a band the
    same whatever others are asked for. Drawing takes about 0.6 kB of memory a pixel of 10 m.
    """
    canvas = Canvas(np.random.default_rng(list(seed)), region, (size[0] * 2, size[1] * 2), reflectances(bands))
    paint_landscape(canvas)
    if clouds:
        paint_clouds(canvas)
    return {
        band: measure(reflectance, RESOLUTION[band], np.random.default_rng([*seed, 1, BANDS.index(band)]))
        for band, reflectance in zip(bands, canvas.values, strict=True)
    }


def measure(reflectance: Array, metres: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Digital numbers of pixels of ``metres``: blur, mean over the pixel, noise, rounding."""
    seen = observe(reflectance, metres, rng)
    return np.clip(np.rint(seen * DN_PER_REFLECTANCE), 1, 2**16 - 1).astype(DTYPE)
