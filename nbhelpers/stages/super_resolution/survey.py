"""One reading of every patch before training: its size, its offset, what its values are, and a hash of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.patch import NODATA, Patch

# Percentiles of each band of a patch; they pair up around the middle, as the limits of a contrast stretch do.
PERCENTILES = (0.0, 1.0, 2.0, 5.0, 95.0, 98.0, 99.0, 100.0)
BIN = 16  # DN in a bin of the pooled histograms
LEAST_STRUCTURE = 0.1  # correlation of neighbouring pixels below which a band is noise


@dataclass(frozen=True)
class Look:
    """What was seen of one patch."""

    shape: tuple[int, int]  # (H, W)
    offset: int  # DN, as declared by whoever knows best
    n_missing: int  # pixels of value 0 in one of the bands
    content: str | None  # sha256 of its DN with the offset added, whatever its name is; None for a constant image
    percentiles: NDArray[np.float64]  # (C, 8) DN as stored, at PERCENTILES
    structure: float  # correlation of neighbouring pixels in the band in which it is least; 1 where none varies


@dataclass
class Pool:
    """Statistics of all complete patches together, by band."""

    n_bands: int
    n: int = 0  # pixels of a band
    total: NDArray[np.float64] = field(init=False)  # (C,) of DN with the offset
    squares: NDArray[np.float64] = field(init=False)  # (C,)
    lowest: NDArray[np.float64] = field(init=False)  # (C,)
    highest: NDArray[np.float64] = field(init=False)  # (C,)
    counts: NDArray[np.int64] = field(init=False)  # (C, 4096) histogram of the DN as stored, in bins of BIN
    n_outside: int = 0  # values of any band outside the limits

    def __post_init__(self) -> None:
        self.total, self.squares = np.zeros(self.n_bands), np.zeros(self.n_bands)
        self.lowest, self.highest = np.full(self.n_bands, np.inf), np.full(self.n_bands, -np.inf)
        self.counts = np.zeros((self.n_bands, 65536 // BIN), np.int64)

    def add(self, bands: NDArray[np.uint16], offset: int, limits: tuple[float, float]) -> None:
        """Count ``(C, H·W)`` in; ``limits`` are the DN that are plausible once the offset is added."""
        values = bands.astype(np.float64) + offset
        self.n += bands.shape[1]
        self.total += values.sum(axis=1)
        self.squares += np.einsum("cn,cn->c", values, values)
        self.lowest = np.minimum(self.lowest, values.min(axis=1))
        self.highest = np.maximum(self.highest, values.max(axis=1))
        self.n_outside += int(((values < limits[0]) | (values > limits[1])).sum())
        for counts, band in zip(self.counts, bands, strict=True):
            counts += np.bincount(band // BIN, minlength=len(counts))

    @property
    def std(self) -> NDArray[np.float64]:
        """(C,) standard deviation of DN over all pixels of all patches."""
        return np.sqrt(np.maximum(self.squares / self.n - (self.total / self.n) ** 2, 0.0))

    def percentile(self, band: int, percent: float) -> float:
        """DN as stored below which ``percent`` of the pixels lie, to within a bin."""
        below = np.cumsum(self.counts[band]) / self.counts[band].sum()
        return float(np.searchsorted(below, percent / 100) * BIN)


def survey(
    patches: Iterable[Patch],
    read: Callable[[int], tuple[NDArray[np.uint16], int]],
    *,
    n_bands: int,
    limits: tuple[float, float],
) -> tuple[dict[int, Look], dict[int, str], Pool]:
    """Read every patch once.

    Args:
        read: index of a patch -> ``(C, H, W)`` uint16 DN and their offset; raises UserError where it cannot.
        limits: DN with offset that are plausible.

    Returns:
        What was seen by index; why the others cannot be read, by index; statistics of the complete ones.
    """
    looks: dict[int, Look] = {}
    broken: dict[int, str] = {}
    pool = Pool(n_bands)
    for patch in tqdm(patches, desc="checking patches", unit="patch", leave=False, disable=None):
        try:
            pixels, offset = read(patch.index)
        except UserError as error:
            broken[patch.index] = str(error)
            continue
        bands = pixels.reshape(len(pixels), -1)
        look = _look(pixels, offset)
        looks[patch.index] = look
        if not look.n_missing:
            pool.add(bands, offset, limits)
    return looks, broken, pool


def _look(pixels: NDArray[np.uint16], offset: int) -> Look:
    """What is seen of ``(C, H, W)`` DN."""
    shape = (pixels.shape[1], pixels.shape[2])
    bands = pixels.reshape(len(pixels), -1)
    ordered = np.sort(bands, axis=1, kind="stable")  # a radix sort, faster for 16 bits than a partition
    places = np.round(np.array(PERCENTILES) / 100 * (bands.shape[1] - 1)).astype(int)
    n_missing = int((bands == NODATA).any(axis=0).sum()) if ordered[:, 0].min() == NODATA else 0
    constant = bool((ordered[:, 0] == ordered[:, -1]).all())
    values = np.ascontiguousarray(bands.astype(np.int32) + offset)
    content = None if constant else hashlib.sha256(repr(shape).encode() + values.tobytes()).hexdigest()
    return Look(shape, offset, n_missing, content, ordered[:, places].astype(np.float64), _structure(pixels))


def _structure(pixels: NDArray[np.uint16]) -> float:
    """Least correlation of neighbouring pixels among the bands of ``(C, H, W)`` that vary; 1 where none does."""
    x = pixels - pixels.mean(axis=(1, 2), keepdims=True)
    pairs = ((x[:, :, :-1], x[:, :, 1:]), (x[:, :-1], x[:, 1:]))
    products = sum(np.einsum("cij,cij->c", a, b) for a, b in pairs)
    squares = sum(np.einsum("cij,cij->c", a, a) + np.einsum("cij,cij->c", b, b) for a, b in pairs) / 2
    return float(np.divide(products, squares, out=np.ones(len(x)), where=squares > 0).min())


def stretched(looks: Iterable[Look]) -> str:
    """Evidence that each patch was stretched by its own percentiles; empty where there is none.

    Such a stretch puts the same two percentiles of every patch onto the same two values: 0 and 255, 0 and 10000. Of
    patches from a sensor hardly any two agree in both ends. Tried are the pairs of ``PERCENTILES``; it takes at least 4
    different patches to tell, of which 90 % must agree within 1 % of the range in more than half of the bands. Noise
    has the same percentiles everywhere without any stretch, so patches without structure do not count.
    """
    different = {
        look.content: look.percentiles
        for look in looks
        if look.content is not None and look.structure >= LEAST_STRUCTURE
    }
    if len(different) < 4:
        return ""
    seen = np.stack(list(different.values()))  # (N, C, 8)
    for first in range(len(PERCENTILES) // 2):
        last = len(PERCENTILES) - 1 - first
        ends = seen[:, :, [first, last]]
        usual = np.median(ends, axis=0)  # (C, 2)
        width = usual[:, 1] - usual[:, 0]
        agree = (np.abs(ends - usual) <= 0.01 * width[:, None]).all(axis=2).mean(axis=0)  # (C,)
        same = (agree >= 0.9) & (width > 0)
        if same.mean() > 0.5:
            low, high = usual[int(np.argmax(same))]
            return (
                f"percentiles {PERCENTILES[first]:g} and {PERCENTILES[last]:g} are {low:g} and {high:g} DN in "
                f"{agree[same].min():.0%} of {len(seen)} patches"
            )
    return ""
