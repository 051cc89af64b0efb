"""Simulated daily weather: a state of a few numbers that persists from day to day, and the coarse maps it shows.

Every number of the state is a first-order autoregression of unit variance, ``s(t) = a s(t-1) + sqrt(1 - a²) e(t)``.
From the state come smooth maps of moisture, ascent and temperature, one wind for the whole domain, and a front: a band
of ascent with cold air behind it. What a climate model's files would show are near-surface variables, each a plain
function of those maps plus little noise: humidity tells of moisture, the daily temperature range (clouds) of ascent,
and the temperature gradient of the wind's direction (thermal wind), which has no file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from nbhelpers.stages.rainfall_cvae.terrain import Array, Grid, Terrain

PERSISTENCE = {  # the state's numbers, in order, and their correlation from one day to the next
    **{f"moisture_{k}": 0.7 for k in range(3)},
    **{f"ascent_{k}": a for k, a in enumerate((0.6, 0.4, 0.4, 0.25, 0.25, 0.25))},
    "temperature": 0.85,
    "wind_east": 0.6,
    "wind_north": 0.5,
    "front_position": 0.2,
    "front_angle": 0.4,
    "front_strength": 0.5,
}
WAVES = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0))  # half waves of each smooth mode along rows and columns
MOISTURE_SIZE = (0.9, 0.3, 0.3)  # standard deviation of each mode
ASCENT_SIZE = (0.75, 0.35, 0.35, 0.25, 0.25, 0.25)
WIND = ((3.0, 3.7), (0.0, 3.7))  # m/s mean and standard deviation, towards the east and the north
FRONT_POSITION, FRONT_WIDTH = 160.0, 38.0  # km, standard deviations
FRONT_ANGLE = (-0.35, 0.5)  # radians from east, mean and standard deviation, of the direction the front moves in
CHANNELS = ("tas", "pr", "huss", "sfcWind", "tasmax", "tasmin")
UNITS = {"tas": "K", "pr": "mm/day", "huss": "kg/kg", "sfcWind": "m/s", "tasmax": "K", "tasmin": "K"}
NOISE = {"tas": 0.25, "huss": 0.02, "sfcWind": 0.25, "range": 0.2}  # K, share, m/s, K: of the coarse maps


@dataclass(frozen=True)
class Weather:
    """The true weather of a day on some grid; the wind is the same everywhere."""

    moisture: Array  # (rows, columns) standard deviations from the mean of the whole year
    ascent: Array  # (rows, columns) the same
    temperature: Array  # (rows, columns) K at sea level
    warmth: float  # -1 in mid-January to 1 in mid-July
    wind: tuple[float, float]  # m/s towards the east and the north


def state_series(n_days: int, *, seed: int) -> Array:
    """States (n_days, S) of consecutive days; those of the first days do not depend on ``n_days``."""
    noise = np.random.default_rng([seed, 1]).standard_normal((n_days, len(PERSISTENCE)))
    columns = []
    for column, a in zip(noise.T, PERSISTENCE.values(), strict=True):
        shock = np.concatenate([column[:1], column[1:] * np.sqrt(1 - a**2)])  # stationary from the first day on
        columns.append(lfilter([1.0], [1.0, -a], shock))
    return np.stack(columns, axis=1)


def weather(state: Array, *, day_of_year: int, grid: Grid) -> Weather:
    """Maps of ``state`` (S,) on ``grid`` on that day of the year (1 to 366)."""
    s = dict(zip(PERSISTENCE, (float(value) for value in state), strict=True))
    warmth = -cos(2 * pi * (day_of_year - 16) / 365.25)
    autumn = -cos(2 * pi * (day_of_year - 105) / 365.25)  # 1 in mid-October: the sea is still warm
    north, east = grid.centres
    moisture = _modes([s[f"moisture_{k}"] for k in range(3)], MOISTURE_SIZE, grid) + 0.25 * autumn - 0.15 * warmth
    ascent = _modes([s[f"ascent_{k}"] for k in range(6)], ASCENT_SIZE, grid) - 0.35 * warmth
    wind = (WIND[0][0] + WIND[0][1] * s["wind_east"], WIND[1][0] + WIND[1][1] * s["wind_north"])
    angle = FRONT_ANGLE[0] + FRONT_ANGLE[1] * s["front_angle"]
    ahead = (cos(angle) * east + sin(angle) * north - FRONT_POSITION * s["front_position"]) / FRONT_WIDTH
    strength = np.logaddexp(0.0, 1.2 * s["front_strength"] - 0.4 * warmth)
    gradient = (wind[0] * north - wind[1] * east) / 100  # K: colder to the left of the wind
    temperature = 289.0 + 2.5 * s["temperature"] + 8.0 * warmth - 0.4 * gradient - strength * (1 - np.tanh(ahead))
    return Weather(moisture, ascent + strength * np.exp(-0.5 * ahead**2), temperature, warmth, wind)


def coarse_maps(day: Weather, land: Terrain, coarse_rain: Array, rng: np.random.Generator) -> NDArray[np.float32]:
    """Predictors (6, h, w) in the order of ``CHANNELS`` and in ``UNITS``; ``day`` is the weather on the coarse grid."""
    shape = land.coarse.shape
    at_sea = 1 - land.coarse_land
    tas = day.temperature - 0.0065 * land.coarse_elevation - 3.0 * day.warmth * at_sea
    tas = tas + NOISE["tas"] * rng.standard_normal(shape)
    humidity = 0.35 + 0.6 / (1 + np.exp(-0.8 * day.moisture))
    huss = humidity * saturation(tas) * (1 + NOISE["huss"] * rng.standard_normal(shape))
    speed = np.hypot(*day.wind) * (0.6 + 0.4 * at_sea)
    wind = np.abs(speed + NOISE["sfcWind"] * rng.standard_normal(shape)) + 0.1
    span = (11.0 + 2.0 * day.warmth - 4.0 * at_sea) * np.exp(-0.3 * day.ascent)
    above, below = span * 0.55, span * 0.45
    above = np.maximum(above + NOISE["range"] * rng.standard_normal(shape), 0.1)
    below = np.maximum(below + NOISE["range"] * rng.standard_normal(shape), 0.1)
    return np.stack([tas, coarse_rain, huss, wind, tas + above, tas - below]).astype(np.float32)


def saturation(kelvin: Array) -> Array:
    """Specific humidity of saturated air, kg/kg, at sea-level pressure (Magnus formula, Alduchov and Eskridge 1996)."""
    celsius = kelvin - 273.15
    pressure = 6.1094 * np.exp(17.625 * celsius / (celsius + 243.04))  # hPa
    return 0.622 * pressure / (1013.25 - 0.378 * pressure)


def _modes(amplitudes: list[float], sizes: tuple[float, ...], grid: Grid) -> Array:
    """Sum of cosines (rows, columns), each with unit mean square over the domain times its size."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in grid.shape)
    total = np.zeros(grid.shape)
    for amplitude, size, (i, j) in zip(amplitudes, sizes, WAVES, strict=False):
        norm = (2.0 if i else 1.0) ** 0.5 * (2.0 if j else 1.0) ** 0.5
        total += amplitude * size * norm * np.cos(pi * i * rows)[:, None] * np.cos(pi * j * columns)[None, :]
    return total
