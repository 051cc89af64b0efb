"""The known law of simulated rain: what falls, given the true weather.

A latent Gaussian field ``g = mean + SPREAD e`` is censored and stretched, ``scale g₊^POWER exp(TAIL g₊² / 2)``, where
the last factor is that of Tukey's h-distribution: exact zeros with sharp edges, and a heavy tail. The mean follows
moisture, ascent, the air's climb up the slopes and the distance to the coast. The noise ``e`` of unit variance is the
sum of two Matérn fields of smoothness 1 with lengths ``NOISE_KM``: the short one is texture, the long one is what
nobody can know of the whole domain's rain. To that come convective cells: their number is Poisson with a rate of the
warm and moist rising air, they are drawn out along the wind, and their peaks follow a generalised Pareto law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2

from nbhelpers.stages.rainfall_cvae.terrain import Array, Grid, Terrain, block_mean
from nbhelpers.stages.rainfall_cvae.weather import Weather

NOISE_KM = (14.0, 70.0)  # Matérn lengths 1 / kappa; the correlation falls to 1/e at 1.65 times that
NOISE_SHARE = (0.6, 0.4)  # of the variance
SPREAD = 0.45  # standard deviation of the noise; the mean varies by about 1 from day to day
POWER, TAIL = 1.6, 0.08  # of the stretching; 1 and 0 would leave the Gaussian's tail
SCALE = 5.5  # mm/day at g = 1 in air of mean moisture
CELL_RATE = 2.0  # cells on 10,000 km² in air of mean moisture, ascent and warmth
CELL_PEAK, CELL_SHAPE = 9.0, 0.1  # mm/day and shape of the generalised Pareto law of the peaks
MOST_CELLS = 15.0  # the highest such rate
CELL_KM, CELL_VARIES = 14.0, 0.4  # half width across the wind: median, and standard deviation of its logarithm
CELL_TEXTURE = 0.35  # the noise's share in the logarithm of the cells' rain: no two look alike
COARSE_DRAWS = 4  # redraws whose mean is the climate model's rain: too often and too weak, as such models rain
COARSE_BIAS, COARSE_NOISE = 0.9, 0.15  # of that rain: factor, and standard deviation of the logarithm


@dataclass(frozen=True)
class Conditions:
    """Parameters of the law on one day, on the fine grid."""

    mean: Array  # (H, W) of the latent field
    scale: Array  # (H, W) mm/day
    cell_rate: Array  # (H, W) cells per pixel
    wind: tuple[float, float]  # m/s towards the east and the north


def conditions(day: Weather, land: Terrain) -> Conditions:
    """The law's parameters under the weather ``day`` (on the fine grid) over ``land``."""
    wind_east, wind_north = day.wind
    climb = (wind_east * land.slope_east + wind_north * land.slope_north) / 100  # vertical speed, in units of 0.1 m/s
    near_coast = np.exp(-land.coast_km / 40)
    mean = -0.41 + 0.65 * day.ascent + 0.35 * day.moisture + 0.45 * np.tanh(climb) + 0.15 * near_coast
    scale = SCALE * np.exp(0.25 * day.moisture + 0.25 * np.tanh(climb))
    warm = (day.temperature - 289.0) / 8
    rate = CELL_RATE * np.exp(0.9 * day.moisture + 1.0 * day.ascent + 0.7 * np.tanh(warm) - 1.5)
    return Conditions(mean, scale, np.minimum(rate, MOST_CELLS) * land.fine.cell_km**2 / 1e4, day.wind)


def draw_rain(law: Conditions, grid: Grid, amplitude: Array, rng: np.random.Generator) -> Array:
    """One day of rain (H, W) in mm/day, over sea too; ``amplitude`` is :func:`noise_amplitude` of ``grid``."""
    noise = _noise(grid.shape, amplitude, rng)
    g = np.maximum(law.mean + SPREAD * noise, 0)
    return law.scale * g**POWER * np.exp(TAIL / 2 * g**2) + _cells(law, grid, rng) * np.exp(CELL_TEXTURE * noise)


def coarse_rain(law: Conditions, land: Terrain, amplitude: Array, rng: np.random.Generator) -> Array:
    """A climate model's rain (h, w) in mm/day: it knows the weather but not what fell."""
    rain = np.mean([draw_rain(law, land.fine, amplitude, rng) for _ in range(COARSE_DRAWS)], axis=0)
    blocks = block_mean(rain, land.factor)
    return COARSE_BIAS * blocks * np.exp(COARSE_NOISE * rng.standard_normal(blocks.shape))


def noise_amplitude(grid: Grid) -> NDArray[np.float32]:
    """Square root of the noise's spectrum (P, Q // 2 + 1) on a periodic grid that is wider than ``grid``.

    Matérn's spectrum in two dimensions at smoothness 1 is ``kappa² / (kappa² + k²)²`` (Whittle 1954).
    """
    margin = 4 * max(NOISE_KM) / grid.cell_km  # beyond which the noise has next to no correlation
    rows, columns = (next_fast_len(round(n + margin), real=True) for n in grid.shape)
    k = 2 * np.pi / grid.cell_km * np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None, :])
    spectrum = np.zeros_like(k)
    for length, share in zip(NOISE_KM, NOISE_SHARE, strict=True):
        one = (1 / (1 + (length * k) ** 2)) ** 2
        spectrum += share * one / one.mean()
    return np.sqrt(spectrum[:, : columns // 2 + 1]).astype(np.float32)


def _noise(shape: tuple[int, int], amplitude: Array, rng: np.random.Generator) -> NDArray[np.float32]:
    rows = amplitude.shape[0]
    columns = 2 * (amplitude.shape[1] - 1)
    white = rng.standard_normal((rows, columns), dtype=np.float32)
    return irfft2(rfft2(white) * amplitude, s=(rows, columns))[: shape[0], : shape[1]]


def _cells(law: Conditions, grid: Grid, rng: np.random.Generator) -> Array:
    """Rain (H, W) of the day's convective cells: bells of finite width, drawn out along the wind."""
    rain = np.zeros(grid.shape)
    reached = np.cumsum(law.cell_rate)
    count = int(rng.poisson(reached[-1]))
    pixel = np.searchsorted(reached, rng.random(count) * reached[-1])
    north, east = (axis.ravel() for axis in grid.centres)
    rows, columns = np.unravel_index(np.minimum(pixel, rain.size - 1), rain.shape)
    centre_north = north[rows] + (rng.random(count) - 0.5) * grid.cell_km
    centre_east = east[columns] + (rng.random(count) - 0.5) * grid.cell_km
    peaks = CELL_PEAK * np.expm1(CELL_SHAPE * rng.standard_exponential(count)) / CELL_SHAPE
    widths = CELL_KM * np.exp(CELL_VARIES * rng.standard_normal(count))
    speed = max(float(np.hypot(*law.wind)), 1e-6)
    along_east, along_north = law.wind[0] / speed, law.wind[1] / speed
    stretch = 1 + speed / 8
    reach = widths * stretch
    for k in range(count):
        i = slice(*np.searchsorted(-north, (-centre_north[k] - reach[k], -centre_north[k] + reach[k])))
        j = slice(*np.searchsorted(east, (centre_east[k] - reach[k], centre_east[k] + reach[k])))
        y, x = (north[i] - centre_north[k])[:, None], (east[j] - centre_east[k])[None, :]
        along, across = along_east * x + along_north * y, along_east * y - along_north * x
        inside = 1 - ((along / stretch) ** 2 + across**2) / widths[k] ** 2
        rain[i, j] += peaks[k] * np.maximum(inside, 0) ** 2
    return rain
