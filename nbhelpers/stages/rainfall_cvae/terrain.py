"""The land that simulated weather passes over: coastline, hills, distance to the coast.

Fractal noise decides where the shore runs and where the hills stand; the sea lies to the west and south-west, where
most of the weather comes from. Everything is drawn on one grid of 2 km and brought to the wanted cell by block means,
so that a coarse and a fine set of the same seed show the same land.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

Array = NDArray[np.floating]
COARSE_KM = 24.0  # side of a cell of the climate model
FINEST = 12  # pixels along a coarse cell on which the land is drawn
SEA_SHARE = 0.32  # of all pixels
HIGHEST = 1800.0  # m, of the drawn land
ROUGHNESS = 1.7  # amplitude of fractal noise falls as wavenumber to this power
SMOOTH_KM = 7.0  # slopes that air feels: the elevation smoothed over this length


@dataclass(frozen=True)
class Grid:
    """Square cells; rows run from north to south, columns from west to east."""

    shape: tuple[int, int]  # (rows, columns)
    cell_km: float  # side of a cell

    @property
    def centres(self) -> tuple[Array, Array]:
        """Kilometres north (rows, 1) and east (1, columns) of the domain's centre, of each cell's centre."""
        rows, columns = self.shape
        north = ((rows - 1) / 2 - np.arange(rows)) * self.cell_km
        east = (np.arange(columns) - (columns - 1) / 2) * self.cell_km
        return north[:, None], east[None, :]


@dataclass(frozen=True)
class Terrain:
    """What lies under the weather, on the coarse grid and on the fine one."""

    coarse: Grid
    fine: Grid
    land: NDArray[np.bool_]  # (H, W)
    elevation: Array  # (H, W) m, 0 over sea
    coast_km: Array  # (H, W) km to the shore, on land and at sea
    slope_north: Array  # (H, W) m per km, of the smoothed elevation
    slope_east: Array  # (H, W) the same towards the east
    coarse_land: Array  # (h, w) share of land
    coarse_elevation: Array  # (h, w) m

    @property
    def factor(self) -> int:
        return self.fine.shape[0] // self.coarse.shape[0]

    @property
    def statics(self) -> dict[str, NDArray[np.float32]]:
        """Maps (H, W) by the names of their files."""
        maps = {"land_sea_mask": self.land, "dist_to_coast_km": self.coast_km, "elevation_m": self.elevation}
        return {name: values.astype(np.float32) for name, values in maps.items()}


def terrain(*, seed: int, factor: int, coarse: tuple[int, int]) -> Terrain:
    """Land of ``seed`` on ``coarse`` (h, w) cells, each of ``factor`` x ``factor`` fine ones (a divisor of 12)."""
    rng = np.random.default_rng([seed, 0])
    finest = Grid((coarse[0] * FINEST, coarse[1] * FINEST), COARSE_KM / FINEST)
    north, east = finest.centres
    half = np.hypot(north.max(), east.max())
    inland = (0.8 * east + 0.45 * north) / half * 3.0 + fractal(finest.shape, rng)
    level = min(np.quantile(inland, np.linspace(0.2, 0.6, 41)), key=lambda v: abs(_sea(inland < v).mean() - SEA_SHARE))
    ashore = np.where(_sea(inland < level), inland - level, np.abs(inland - level))  # water inland is filled: no lakes
    ridges = 1 - np.abs(fractal(finest.shape, rng)) / 1.2
    rising = 1 - np.exp(-np.maximum(ashore, 0) / 0.9)
    height = rising * np.clip(0.25 + 0.75 * ridges, 0.08, None)
    shrink = FINEST // factor
    share = block_mean((ashore > 0).astype(float), shrink)
    land = share >= 0.5
    elevation = np.where(land, block_mean(height / height.max() * HIGHEST, shrink), 0.0)
    fine = Grid((coarse[0] * factor, coarse[1] * factor), COARSE_KM / factor)
    to_shore = np.where(land, distance_transform_edt(land), distance_transform_edt(~land)) * fine.cell_km
    smooth = gaussian_filter(elevation, SMOOTH_KM / fine.cell_km, mode="nearest")
    rows, columns = np.gradient(smooth, fine.cell_km)
    return Terrain(
        coarse=Grid(coarse, COARSE_KM),
        fine=fine,
        land=land,
        elevation=elevation,
        coast_km=to_shore,
        slope_north=-rows,
        slope_east=columns,
        coarse_land=block_mean(land.astype(float), factor),
        coarse_elevation=block_mean(elevation, factor),
    )


def _sea(water: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Water (rows, columns) that reaches the domain's western or southern edge."""
    bodies, _ = label(water)
    return np.isin(bodies, np.setdiff1d(np.concatenate([bodies[:, 0], bodies[-1]]), [0]))


def block_mean(values: Array, factor: int) -> Array:
    """Mean over blocks: (..., H, W) to (..., H / factor, W / factor)."""
    *lead, rows, columns = values.shape
    return values.reshape(*lead, rows // factor, factor, columns // factor, factor).mean(axis=(-3, -1))


def fractal(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Noise (H, W) of unit variance whose amplitude falls as a power of the wavenumber; not periodic."""
    rows, columns = 2 * shape[0], 2 * shape[1]  # one quarter is kept
    wavenumber = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None, :])
    wavenumber[0, 0] = np.inf
    spectrum = rfft2(rng.standard_normal((rows, columns))) * np.maximum(wavenumber, 1 / min(shape)) ** -ROUGHNESS
    noise = irfft2(spectrum, s=(rows, columns))[: shape[0], : shape[1]]
    return (noise - noise.mean()) / noise.std()
