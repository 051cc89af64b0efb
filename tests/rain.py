"""Tiny but real folders in the day-file layout, written by the package itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbhelpers.stages.rainfall_cvae.folder import write_days

CHANNELS = ("tas", "pr", "huss")
X_UNITS = {"tas": "K", "pr": "mm/day", "huss": "kg/kg"}


def statics(shape: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    """Land with the sea in one corner, the distance to it, and hills."""
    row, column = np.indices(shape)
    distance = row / shape[0] + column / shape[1] - 0.3
    return {
        "land_sea_mask": (distance > 0).astype(np.float32),
        "dist_to_coast_km": (np.maximum(distance, 0) * 100).astype(np.float32),
        "elevation_m": (500 * np.sin(row / 3) ** 2 + 20 * column).astype(np.float32),
    }


def weather(
    dates: Sequence[date], *, seed: int = 0, factor: int = 4, coarse: tuple[int, int] = (4, 5)
) -> Iterator[tuple[date, NDArray[np.float32], NDArray[np.float32]]]:
    """Days with half of the pixels dry, gamma-like rain that follows the coarse rain, and no rain over sea."""
    rng = np.random.default_rng(seed)
    shape = (coarse[0] * factor, coarse[1] * factor)
    land = statics(shape)["land_sea_mask"] > 0.5
    wetness = 0.0
    for when in dates:
        wetness = 0.7 * wetness + 0.7 * rng.normal()  # today's weather is much of yesterday's
        large = np.kron(rng.normal(size=coarse), np.ones((factor, factor)))
        level = wetness + 0.6 * large + 0.5 * rng.normal(size=shape)
        rain = np.where(level > 0.0, rng.gamma(0.8, 7.0 * np.maximum(level, 0.05)), 0.0)
        blocks = rain.reshape(coarse[0], factor, coarse[1], factor).mean((1, 3))
        tas = 285 + 8 * np.sin(2 * np.pi * when.timetuple().tm_yday / 365) - wetness + rng.normal(size=coarse)
        x = np.stack([tas, blocks, 0.008 + 0.002 * wetness + 0.001 * rng.normal(size=coarse)])
        yield when, x.astype(np.float32), np.where(land, rain, np.nan).astype(np.float32)


def tiny_days(
    folder: Path,
    *,
    n_years: int = 3,
    days_per_year: int = 40,
    factor: int = 4,
    coarse: tuple[int, int] = (4, 5),
    seed: int = 0,
    **changes: Any,
) -> Path:
    """The first days of the years from 2001 on; ``changes`` go to ``write_days``."""
    dates = [date(2001 + year, 1, 1) + timedelta(day) for year in range(n_years) for day in range(days_per_year)]
    about: dict[str, Any] = {"name": "tiny", "source": "made for a test", "simulated": True, "pixel_km": 12.0}
    about |= {"statics": statics((coarse[0] * factor, coarse[1] * factor)), "channels": CHANNELS, "x_units": X_UNITS}
    days = changes.pop("days", None) or weather(dates, seed=seed, factor=factor, coarse=coarse)
    return write_days(folder, days, **about | changes)


def long_training(folder: Path) -> Path:
    """1,100 training days of 8 x 8 pixels, enough for one that cannot be read, and four of the other splits."""
    dates = [date(2001, 1, 1) + timedelta(day) for day in range(1100)]
    dates += [date(year, 6, day) for year in (2005, 2006) for day in (1, 2)]
    years = {"train": range(2001, 2005), "val": [2005], "test": [2006]}
    return tiny_days(folder, days=weather(dates, coarse=(2, 2)), coarse=(2, 2), years=years)
