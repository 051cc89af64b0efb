"""The canvas of simulated landscapes: cells of 5 m that materials are laid over."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, radians, sin

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from nbhelpers.science.landscape.regions import Region

Array = NDArray[np.float32]
Window = tuple[slice, slice]

CELL = 5.0  # m, of the grid that is painted
TABLE = 4096  # parcels, plots and streaks are looked up in tables of this length
SUN = radians(150.0)  # east of north
SUN_ZENITH = radians(35.0)
EVERYWHERE = (slice(None), slice(None))


class Canvas:
    """What is being painted: ``values`` (B, H, W) on the 5 m grid, and where its cells are.

    A channel is anything that adds up over the materials in a cell: reflectance, or backscattered power. Sunlight and
    shadows fall on the first ``n_lit`` channels; the others vary from parcel to parcel in a way of their own.

    Args:
        palette: (B,) values of each material.
        n_lit: channels that show reflected sunlight; None: all.
        spread: (B - n_lit,) standard deviation, in logarithms, of the other channels from parcel to parcel.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        region: Region,
        shape: tuple[int, int],
        palette: Mapping[str, Array],
        *,
        n_lit: int | None = None,
        spread: tuple[float, ...] = (),
    ) -> None:
        self.rng, self.region, self.shape, self.palette, self.spread = rng, region, shape, palette, spread
        self.extent = (shape[0] * CELL, shape[1] * CELL)  # metres along y and x
        self.values = np.zeros((len(next(iter(palette.values()))), *shape), np.float32)
        self.lit = self.values[:n_lit]  # a view
        self.dry = np.ones(shape, np.float32)  # 0 in lakes: no hedge, road or house there
        self.slope = np.zeros((2, *shape), np.float32)  # of the relief along y (south) and x (east), metres per metre
        self.y = CELL * np.arange(shape[0], dtype=np.float32)[:, None]
        self.x = CELL * np.arange(shape[1], dtype=np.float32)[None, :]

    def colour(self, material: str) -> Array:
        """(B,) values."""
        return self.palette[material]

    def paint(
        self, material: str, cover: Array | float, *, texture: Array | float = 1.0, window: Window = EVERYWHERE
    ) -> None:
        """Lay ``material``, its values times ``texture``, over the share ``cover`` (0-1) of each cell."""
        for values, value in zip(self.values, self.colour(material), strict=True):
            part = values[window]
            part += cover * (value * texture - part)

    def noise(self, slope: float, *, longest: float = 1e5) -> Array:
        """(H, W) Gaussian, zero mean, unit variance, power spectrum ~ k^-slope, flat beyond ``longest`` metres."""
        size = [fft.next_fast_len(n, real=True) for n in self.shape]
        white = self.rng.standard_normal(size, dtype=np.float32)
        k2 = np.fft.fftfreq(size[0], CELL)[:, None] ** 2 + np.fft.rfftfreq(size[1], CELL) ** 2
        weight = ((k2 + longest**-2) ** (-slope / 4)).astype(np.float32)
        field: Array = fft.irfft2(fft.rfft2(white) * weight, s=size)[: self.shape[0], : self.shape[1]]
        return ((field - field.mean()) / field.std()).astype(np.float32)


def hashed(*numbers: NDArray[np.int32] | int) -> NDArray[np.int32]:
    """Pseudo-random numbers 0 ... TABLE - 1, a function of ``numbers``."""
    mixed: NDArray[np.uint32] = np.zeros(1, np.uint32)
    for number, prime in zip(numbers, (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D), strict=False):
        mixed = mixed ^ (np.asarray(number, np.int32).view(np.uint32) * np.uint32(prime))
        mixed = mixed ^ (mixed >> np.uint32(15))
    mixed = mixed * np.uint32(0x27D4EB2F)
    return ((mixed >> np.uint32(16)) % np.uint32(TABLE)).astype(np.int32)


def above(field: Array, share: float, edge: float) -> Array:
    """Cover 0-1 of about ``share`` of the cells, where ``field`` is highest; ``edge`` is the width of the rise."""
    if share <= 0:
        return np.zeros_like(field)
    level = np.quantile(field[::4, ::4], 1 - min(share, 1.0))
    return np.clip((field - level) / edge + 0.5, 0, 1).astype(np.float32)


def away_from_sun(field: Array, metres: float) -> Array:
    """``field`` moved as shadows fall (rows run south)."""
    return np.roll(field, (round(metres / CELL * cos(SUN)), round(-metres / CELL * sin(SUN))), (0, 1))


def line(distance: Array, width: Array | float) -> Array:
    """Cover of a line ``width`` metres wide, which may be less than a cell."""
    cover = np.clip((width / 2 - distance) / CELL + 0.5, 0, 1) * np.minimum(width / CELL, 1)
    return cover.astype(np.float32)


def border(label: NDArray[np.int32]) -> Array:
    """1 in cells whose right or lower neighbour has another label."""
    differs = np.zeros(label.shape, np.float32)
    differs[:, :-1] = label[:, :-1] != label[:, 1:]
    differs[:-1] = np.maximum(differs[:-1], label[:-1] != label[1:])
    return differs
