"""Sentinel-2 looking at a painted landscape: blur, pixels, noise."""

from __future__ import annotations

from math import log, pi, sin, sqrt

import numpy as np
from scipy.ndimage import gaussian_filter

from nbhelpers.science.landscape.canvas import CELL, Array

MTF = 0.25  # of blur and pixel together, at the Nyquist frequency of the band
NOISE = 0.0012  # reflectance, standard deviation of a pixel


def observe(reflectance: Array, metres: int, rng: np.random.Generator) -> Array:
    """(H, W) reflectance of pixels of ``metres`` from a band on the canvas' grid: blur, mean over the pixel, noise.

    Blur and pixel have MTF 0.25 together at the Nyquist frequency (within what ESA reports for Sentinel-2's bands).
    """
    k = round(metres / CELL)
    # The mean of k cells has the transfer sin(pi/2) / (k sin(pi/2k)) at the pixel's Nyquist frequency 1 / 2k.
    pixel = 1 / (k * sin(pi / (2 * k)))
    sigma = 2 * k / (2 * pi) * sqrt(2 * log(pixel / MTF))
    blurred = gaussian_filter(reflectance, sigma, mode="nearest", truncate=3.0)
    height, width = (n // k for n in reflectance.shape)
    mean: Array = blurred.reshape(height, k, width, k).mean((1, 3))
    mean += NOISE * rng.standard_normal(mean.shape, np.float32)
    return mean
