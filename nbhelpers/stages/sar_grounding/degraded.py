"""Optical tiles as a poor previous step would hand them over: a stand-in for ``opt_v2`` where none was made.

Four faults, each of which a radar image can help to mend: everything is blurred; in places the structure is missing
altogether; clouds were filled from their surroundings; and the colours are off by a factor and a constant of each band.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

Array = NDArray[np.float32]

BLUR = (1.2, 2.0)  # pixels, standard deviation, from tile to tile
BIAS = (1.12, 1.06, 0.94, 0.90)  # factor of B2, B3, B4, B8, the same for all tiles
BIAS_FACTOR, BIAS_CONSTANT = 0.025, 0.003  # standard deviation of a band's factor and constant from tile to tile
MISSING, MISSING_BLUR = 0.35, 6.0  # share of a tile without structure; what its blur is, pixels
CLOUDS = (0.1, 0.4)  # share of a tile that clouds covered
FILL = 10.0  # pixels, width of the weights with which surroundings fill a cloud
EDGE = 0.15  # width of a soft edge, in standard deviations of the field that draws it
NOISE = 0.003  # reflectance


def degraded(truth: Array, *, seed: int) -> Array:
    """``(4, H, W)`` reflectance of a poor image of ``truth``; NaN where ``truth`` is NaN in any band."""
    rng = np.random.default_rng(seed)
    gaps = np.asarray(np.isnan(truth).any(axis=0))
    if gaps.all():
        return np.full_like(truth, np.nan)
    image = _nearest(truth, gaps)
    rough = _soft_mask(rng, image.shape[1:], MISSING, scale=10.0)
    cloud = _soft_mask(rng, image.shape[1:], rng.uniform(*CLOUDS), scale=14.0)
    blurred = _blurred(image, rng.uniform(*BLUR))
    structureless = _blurred(image, MISSING_BLUR)
    poor = blurred + rough * (structureless - blurred)
    poor += cloud * (_filled(poor, cloud) - poor)
    bands = (len(BIAS), 1, 1)
    factor = np.reshape(BIAS, bands) * (1 + BIAS_FACTOR * rng.standard_normal(bands))
    tinted = poor * factor + BIAS_CONSTANT * rng.standard_normal(bands) + NOISE * rng.standard_normal(poor.shape)
    return np.where(gaps, np.nan, np.maximum(tinted, 0.0)).astype(np.float32)


def name_seed(name: str, *, salt: str) -> int:
    """A number that depends on the tile's name alone, so that every run sees the same image."""
    return int.from_bytes(hashlib.sha256(f"{salt} {name}".encode()).digest()[:8], "little")


def _soft_mask(rng: np.random.Generator, shape: tuple[int, ...], share: float, *, scale: float) -> Array:
    """``(H, W)`` 0 to 1: blobs about ``scale`` pixels wide over ``share`` of the tile."""
    field = gaussian_filter(rng.standard_normal(shape), scale, mode="reflect")
    field = (field - field.mean()) / field.std()
    return np.clip((field - np.quantile(field, 1 - share)) / EDGE + 0.5, 0, 1).astype(np.float32)


def _blurred(image: Array, sigma: float) -> Array:
    return np.stack([gaussian_filter(band, sigma, mode="reflect") for band in image])


def _filled(image: Array, hidden: Array) -> Array:
    """The mean of what is not hidden around each pixel."""
    clear = np.maximum(1 - hidden, 1e-4)
    weight = gaussian_filter(clear, FILL, mode="reflect")
    return np.stack([gaussian_filter(band * clear, FILL, mode="reflect") / weight for band in image])


def _nearest(image: Array, gaps: NDArray[np.bool_]) -> Array:
    """``image`` with the nearest measured pixel in place of each gap."""
    if not gaps.any():
        return image
    rows, columns = distance_transform_edt(gaps, return_distances=False, return_indices=True)
    return image[:, rows, columns]
