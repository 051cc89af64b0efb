"""Units of tiles: what their numbers are in decibels and reflectance, and whether they can be what they declare.

A tile in [0, 1] that is taken for digital numbers, or one in digital numbers taken for reflectance, is wrong by 1e4:
standardised, it is one constant, and training on it looks calm. Every tile is judged by itself, because one folder may
mix tiles of two makers, and all together, where a single tile says too little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.science.sentinel2 import DN_PER_REFLECTANCE, HIGH_DARKS

Array = NDArray[np.float32]

LOWEST_DB, HIGHEST_DB = -70.0, 40.0  # of a pixel of any scene; no-data values lie far outside
MOST_POSITIVE = 0.5  # share of a tile's VH pixels above 0 dB, which even city centres do not reach
MOST_EXACT = 0.001  # share of pixels that are exactly 0: of decibels, or of all four bands
# Means over all tiles. Land and water give VV -8 to -20 and VH -14 to -30 dB, and VH 4 to 10 dB less than VV.
VV_MEAN, VH_MEAN, VV_ABOVE_VH = (-30.0, 0.0), (-40.0, -7.0), (1.0, 20.0)
MOST_REFLECTANCE, MOST_MEDIAN = 7.0, 2.0  # of a pixel (65535 DN are 6.6), of a tile
LEAST_DN = 10.0  # highest number in a tile of digital numbers: even deep water has tens
LEAST_CODED = -20.0  # reflectance: no z-score is lower, codes for "no data" such as -9999 are
LOWEST_REFLECTANCE = -0.5  # of a pixel; dark ones are a little below 0 after atmospheric correction
NEGATIVE, MOST_NEGATIVE = -0.05, 0.05  # reflectance, and the share of a tile that may be below


@dataclass(frozen=True)
class Look:
    """What was seen of one tile, for the judgement of all together."""

    vv: float  # mean, dB; NaN when nothing was measured
    vh: float
    highest: float  # number in any band as stored
    dark: float  # first percentile of the blue band as stored
    stretched: bool  # every band runs from exactly 0 to exactly 1
    digital: bool  # whether S2 is in digital numbers
    offset: int  # DN that are declared for it


def to_reflectance(stored: NDArray, units: str, offset: int) -> Array:
    """``(…, H, W)`` reflectance, NaN where it was not measured, which digital numbers say by 0."""
    if units == "reflectance":
        return stored.astype(np.float32)
    numbers = stored.astype(np.float32)
    return np.where(numbers == 0, np.nan, (numbers + offset) / DN_PER_REFLECTANCE).astype(np.float32)


def check_db(s1: NDArray, where: str) -> None:
    """Raise unless ``(2, H, W)`` VV and VH can be decibels.

    Raises:
        UserError: infinite values, undeclared no-data values, linear power.
    """
    if np.isinf(s1).any():
        raise UserError(
            f"{where} holds infinite S1 values, as the logarithm of 0 is: write NaN where nothing was measured."
        )
    seen = s1[:, ~np.isnan(s1).any(0)]
    if not seen.size:
        return
    low, high = float(seen.min()), float(seen.max())
    if (zeros := float((seen == 0).all(0).mean())) > MOST_EXACT:
        raise UserError(
            f"{where} has S1 of exactly 0 in {zeros:.1%} of its pixels, which no measurement in dB is: write NaN where "
            "nothing was measured."
        )
    if low >= 0 or float((seen[1] > 0).mean()) > MOST_POSITIVE:
        raise UserError(
            f"{where} declares S1 in dB but holds {low:.3g} to {high:.3g}, where VH is about -30 to -7 dB: that is "
            "linear power or a scaled image, so convert power by 10 log10(power)."
        )
    if low < LOWEST_DB or high > HIGHEST_DB:
        raise UserError(
            f"{where} holds S1 of {low:.4g} to {high:.4g} dB, expected {LOWEST_DB:g} to {HIGHEST_DB:g}: if that number "
            "means 'not measured' write NaN there."
        )


def check_optical(stored: NDArray, units: str, offset: int, where: str) -> None:
    """Raise unless ``(4, H, W)`` numbers can be in the declared ``units`` with the declared ``offset``.

    Raises:
        UserError: infinite values, undeclared no-data values, [0, 1] as digital numbers, digital numbers as
            reflectance, an offset that makes much of the tile negative, z-scores.
    """
    if np.isinf(stored).any():
        raise UserError(f"{where} holds infinite values: write NaN where nothing was measured.")
    seen = stored[:, ~_gaps(stored, units)].astype(np.float64)
    if not seen.size:
        return
    high = float(seen.max())
    if units == "dn" and high < LEAST_DN:
        raise UserError(
            f"{where} declares digital numbers (reflectance x 1e4) but holds {float(seen.min()):.3g} to {high:.3g}: "
            'these are reflectances, so declare "s2_units": "reflectance".'
        )
    image = (seen + offset) / DN_PER_REFLECTANCE if units == "dn" else seen
    if units == "reflectance" and (high > MOST_REFLECTANCE or float(np.median(seen)) > MOST_MEDIAN):
        raise UserError(
            f"{where} declares reflectance but holds {float(seen.min()):.4g} to {high:.4g}, expected about 0 to 1: "
            'these are digital numbers or grey levels, so declare "s2_units": "dn" if they are reflectance x 1e4.'
        )
    if (share := float((image < NEGATIVE).mean())) > MOST_NEGATIVE:
        why = (
            "that number means 'not measured', so write NaN there"
            if image.min() < LEAST_CODED
            else f"the offset {offset} is not in these numbers, so declare 0"
            if offset < 0
            else "z-scores or images in [-1, 1] must be turned back into reflectance"
        )
        raise UserError(
            f"{where} would have {share:.0%} of its reflectances below {NEGATIVE:g}, down to {float(image.min()):.3g}: "
            f"{why}."
        )
    if not LOWEST_REFLECTANCE <= float(image.min()) <= float(image.max()) <= MOST_REFLECTANCE:
        raise UserError(
            f"{where} has reflectances of {float(image.min()):.3g} to {float(image.max()):.3g}, expected about 0 to 1: "
            "write NaN (or 0 in digital numbers) where nothing was measured."
        )
    if units == "reflectance" and (zeros := float((seen == 0).all(0).mean())) > MOST_EXACT:
        raise UserError(
            f"{where} has exactly 0 in all bands of {zeros:.1%} of its pixels, as reflectance: write NaN where nothing "
            "was measured."
        )


def _gaps(stored: NDArray, units: str) -> NDArray[np.bool_]:
    """``(H, W)`` where a band was not measured."""
    return np.asarray((np.isnan(stored) | ((stored == 0) & (units == "dn"))).any(0))


def look(s1: NDArray, s2: NDArray, units: str, offset: int) -> Look:
    """Of ``(2, H, W)`` dB and ``(4, H, W)`` numbers as stored in ``units`` with ``offset``, both checked."""
    measured = s1[:, ~np.isnan(s1).any(0)]
    vv, vh = measured.mean(1) if measured.size else (np.nan, np.nan)
    bands = s2[:, ~_gaps(s2, units)]
    digital = units == "dn"
    if not bands.size:
        return Look(float(vv), float(vh), float("nan"), float("nan"), False, digital, offset)
    ends = np.stack((bands.min(1), bands.max(1)))
    stretched = bool((ends == [[0.0], [1.0]]).all())
    dark = float(np.percentile(bands[0], 1))
    return Look(float(vv), float(vh), float(ends[1].max()), dark, stretched, digital, offset)


def check_all(looks: dict[str, Look], *, where: str) -> tuple[str, ...]:
    """Judge all tiles together; returns warnings, a sentence each.

    Units of S2 are judged over the tiles that share them: one folder may mix digital numbers with and without an
    offset, and reflectance.

    Args:
        looks: by tile.
        where: their folder.

    Raises:
        UserError: VV and VH that are swapped or no decibels, grey levels as digital numbers, tiles that were stretched
            one by one.
    """
    vv, vh = (np.nanmean([getattr(one, name) for one in looks.values()]) for name in ("vv", "vh"))
    if not VV_ABOVE_VH[0] <= vv - vh <= VV_ABOVE_VH[1]:
        raise UserError(
            f"s1_vv is {vv:.1f} dB and s1_vh {vh:.1f} dB on average in {where}, expected VV 4 to 10 dB above VH: the "
            "two are swapped, or scaled one by one."
        )
    for name, mean, (low, high) in (("s1_vv", vv, VV_MEAN), ("s1_vh", vh, VH_MEAN)):
        if not low <= mean <= high:
            raise UserError(
                f"{name} is {mean:.1f} on average in {where}, expected {low:g} to {high:g} dB: turn z-scores or scaled "
                "images back into decibels."
            )
    n_stretched = sum(one.stretched for one in looks.values())
    if n_stretched > len(looks) / 2:
        raise UserError(
            f"{n_stretched} of {len(looks)} tiles in {where} have bands from exactly 0 to exactly 1: each was "
            "stretched by itself and its colours mean nothing, so write reflectances."
        )
    numbers = {name: one for name, one in looks.items() if one.digital and np.isfinite(one.highest)}
    if numbers and max(one.highest for one in numbers.values()) <= 255:
        raise UserError(
            f"no number of S2 in {where} is above 255, expected digital numbers (reflectance x 1e4, land about 300 to "
            "4000): these are grey levels of a picture, so take the product's own numbers."
        )
    bare = {name: one for name, one in numbers.items() if one.offset == 0}
    dark = min((one.dark for one in bare.values()), default=0.0)
    if dark > HIGH_DARKS:
        which = "every tile" if len(bare) == len(looks) else f"each of {len(bare)} tiles, such as {next(iter(bare))},"
        return (
            f"99 % of B2 are brighter than {dark:.0f} DN in {which} of {where} though s2_offset is 0: products of "
            "baseline 04.00 and later hold 1000 more, and if these do, set s2_offset to -1000",
        )
    return ()
