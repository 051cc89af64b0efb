"""Sentinel-1 looking at a painted landscape: relief, shadow, resolution, speckle of stated looks, noise, decibels.

* **Geometry.** The image lies on the map already, as a terrain-corrected product does. A slope that faces the radar
  returns tan(theta) / tan(theta - alpha) times the power of level ground (the area that a pixel's share of the beam
  lights up), one that turns away less, and beyond grazing nothing. Edges of woods count as slopes: the near one is
  bright, behind the far one is shadow.
* **Speckle.** Each of ``LOOKS`` independent looks is a circular complex Gaussian field of the local power, blurred to
  the product's resolution, so that neighbouring pixels are correlated as real ones are; their intensities are averaged
  (Goodman, 1976: the mean of n looks is Gamma(n) distributed). VV and VH have speckle of their own.
* **Noise.** ``FLOOR`` of thermal noise is added to the power before the speckle: calm water is no darker.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin, tan

import numpy as np
from scipy.ndimage import gaussian_filter

from nbhelpers.science.landscape.canvas import CELL, Array

LOOKS = 5  # of ground range detected products in the wide-swath mode; 4.4 equivalent ones are measured in real ones
PIXEL = 10.0  # m
# Pixels, standard deviation of a point's amplitude: neighbours then correlate by exp(-1/2) = 0.61 and those two apart
# by 0.14; in even parts of seven real scenes on a 10 m grid these are 0.52 to 0.69 and 0.01 to 0.20.
BLUR = 1.0
FLOOR = (-28.0, -30.0)  # dB, noise equivalent backscatter of VV and VH
GAIN = (0.05, 5.0)  # limits of the factor of a slope: shadow and layover
EDGE = 12.0  # m over which the height of a wood's edge makes a slope


@dataclass(frozen=True)
class View:
    """From where the radar looks."""

    incidence: float  # degrees from the vertical, 30 to 46 in the wide swath
    ascending: bool  # northward, looking east; else southward, looking west

    @property
    def towards(self) -> tuple[float, float]:
        """Unit vector to the radar along y (south) and x (east)."""
        azimuth = radians(258.0 if self.ascending else 102.0)  # the orbit is 12 degrees off the meridian
        return -cos(azimuth), sin(azimuth)


def sentinel1(power: Array, height: Array, slope: Array, view: View, rng: np.random.Generator) -> Array:
    """``(2, h, w)`` dB, VV and VH, of pixels of 10 m.

    Args:
        power: ``(2, H, W)`` linear backscatter of level ground on the canvas' grid of 5 m.
        height: ``(H, W)`` m of what stands on the ground.
        slope: ``(2, H, W)`` of the ground along y and x.
    """
    k = round(PIXEL / CELL)
    gain = slope_gain(slope, height, view)
    rows, columns = power.shape[1] // k, power.shape[2] // k
    mean = (power * gain).reshape(2, rows, k, columns, k).mean((2, 4))
    found = np.empty((2, rows, columns), np.float32)
    for channel, (values, floor) in enumerate(zip(mean, FLOOR, strict=True)):
        found[channel] = 10 * np.log10(speckled(values + 10 ** (floor / 10), rng))
    return found


def slope_gain(slope: Array, height: Array, view: View) -> Array:
    """``(H, W)`` factor of the power that relief, and the edges of what stands high, make."""
    smooth = gaussian_filter(height, EDGE / 2 / CELL)
    # A wood returns its power from a depth of its canopy, so that its edge is no wall.
    edges = 0.5 * np.stack(np.gradient(smooth, CELL))
    south, east = view.towards
    facing = -(slope[0] + edges[0]) * south - (slope[1] + edges[1]) * east
    theta = radians(view.incidence)
    local = np.clip(theta - np.arctan(facing), 0.05, None)
    gain = np.where(local < radians(88), tan(theta) / np.tan(np.minimum(local, radians(88))), 0.0)
    return np.clip(gain, *GAIN).astype(np.float32)


def speckled(power: Array, rng: np.random.Generator, *, looks: int = LOOKS) -> Array:
    """``(h, w)`` linear intensity of ``looks`` looks at ``power`` (h, w); its mean is ``power``, blurred."""
    amplitude = np.sqrt(power)
    total = np.zeros(power.shape, np.float32)
    for _ in range(2 * looks):  # real and imaginary parts
        field = amplitude * rng.standard_normal(power.shape, np.float32)
        total += gaussian_filter(field, BLUR, mode="reflect", truncate=3.0) ** 2
    impulse = np.zeros(4 * round(4 * BLUR) + 1)
    impulse[len(impulse) // 2] = 1
    left = float((gaussian_filter(impulse, BLUR, truncate=3.0) ** 2).sum()) ** 2  # of white noise of variance 1
    return total / np.float32(2 * looks * left)
