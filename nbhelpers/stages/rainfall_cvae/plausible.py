"""Whether numbers that are declared in a unit can be that: rain in mm/day, temperatures in K or °C (G7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.layout import PR, UNITS
from nbhelpers.stages.rainfall_cvae.units import SPELLINGS, conversion

# Factor to mm/day of what rain that is said to be mm/day often is.
MISTAKES: Mapping[str, float] = {
    "mm/h": 24.0,
    "kg m-2 s-1": 86_400.0,
    "m/day": 1000.0,
    "tenths of mm/day": 0.1,
    "mm/month": 1 / 30.4,
    "mm/day multiplied by 24 once too often": 1 / 24,
}
NEAR, NEAR_CLIMATE = 2.0, 6.0  # a ratio within this factor of a mistake's names it; climates differ by more
MAX_RATIO = 3.0  # of the mean rain over land to that of the coarse predictor, either way
# Mean daily rain over land lies in these bounds from deserts to the wettest places, and where it rains at all, one
# land pixel in a thousand has more than 10 mm.
MEAN_RANGE, LEAST_P999 = (0.05, 30.0), 10.0
TYPICAL_MEAN = 2.2  # mm/day: all land of the world has some 800 mm a year (Global Precipitation Climatology Centre)
TEMPERATURES = ("tas", "tasmax", "tasmin")
COLDEST_KELVIN, HOTTEST_CELSIUS = 180.0, 60.0  # beyond these a mean is in the other of the two units


def rain_factor(unit: str, what: str) -> float:
    """The factor that turns rain in ``unit`` into mm/day; ``what`` is named in the error for an unknown unit."""
    found = conversion(unit, UNITS)
    if found is None:
        raise UserError(f"{what} is in {unit!r}, which is no known unit of rain: write one such as {SPELLINGS[UNITS]}.")
    return found[0]


def check_rain(mean: float, p999: float, pr_mean: float, *, where: str) -> None:
    """Raise ``UserError`` when rain that is said to be in mm/day cannot be.

    Two facts decide: how the rain compares with the coarse predictor ``pr``, whose unit is declared, and whether
    such a climate exists.

    Args:
        mean: of the measured land pixels of the training days.
        p999: 99.9th percentile of the same.
        pr_mean: of the predictor over land on the same days, mm/day as its unit says.
    """
    if mean == 0:
        raise UserError(
            f"the rain of all training days in {where} is 0 over land: the days are not those of the rain, or missing "
            "values were written as 0."
        )
    if pr_mean <= 0:
        raise UserError(
            f"the predictor {PR!r} in {where} has a mean of {pr_mean:.3g} over land, where it rains {mean:.3g} mm/day: "
            "it was standardised, or it is not rain; write it as measured."
        )
    ratio = mean / pr_mean
    if not 1 / MAX_RATIO <= ratio <= MAX_RATIO:
        # One of the two is wrong: the one whose mean is farther from what falls on land.
        if _distance(mean) >= _distance(pr_mean):
            raise UserError(
                f"rain in {where} has a mean of {mean:.3g} over land where the predictor {PR!r} has {pr_mean:.3g} "
                f"mm/day, expected about as much: {_cure(ratio, 'the rain')}."
            )
        raise UserError(
            f"the predictor {PR!r} in {where} has a mean of {pr_mean:.3g} mm/day over land by its declared unit, where "
            f"the rain has {mean:.3g} mm/day: {_cure(1 / ratio, repr(PR))}."
        )
    low, high = MEAN_RANGE
    if not low <= mean <= high or p999 < LEAST_P999:
        raise UserError(
            f"rain in {where} has a mean of {mean:.3g} and a P99.9 of {p999:.3g} over land, but rain in mm/day has a "
            f"mean of {low:g} to {high:g} and a P99.9 above {LEAST_P999:g}: "
            f"{_cure(mean / TYPICAL_MEAN, 'the rain', near=NEAR_CLIMATE)}."
        )


def check_temperatures(means: NDArray, channels: Sequence[str], units: Mapping[str, str], *, where: str) -> None:
    """Raise ``UserError`` for a temperature in K that is said to be in °C, or the other way round."""
    for channel, mean in zip(channels, np.asarray(means), strict=True):
        if channel not in TEMPERATURES or (found := conversion(units[channel], "K")) is None:
            continue
        kelvin = found[1] == 0.0
        if (kelvin and mean < COLDEST_KELVIN) or (not kelvin and mean > HOTTEST_CELSIUS):
            raise UserError(
                f"{channel!r} in {where} is said to be in {units[channel]} and has a mean of {mean:.4g}, which is a "
                f"temperature in {'°C' if kelvin else 'K'}: correct x_units in dataset.json."
            )


def _distance(mean: float) -> float:
    return abs(math.log(mean / TYPICAL_MEAN)) if mean > 0 else math.inf


def _cure(ratio: float, what: str, *, near: float = NEAR) -> str:
    """What is probably the unit of ``what``, whose values are ``ratio`` times what they should be."""
    unit = min(MISTAKES, key=lambda name: abs(math.log(ratio * MISTAKES[name])))
    factor = MISTAKES[unit]
    if abs(math.log(ratio * factor)) > math.log(near):
        return f"no common unit explains that, so check where {what} comes from, which days they are, and their units"
    change = f"multiply by {factor:,.5g}" if factor > 1 else f"divide by {1 / factor:,.5g}"
    return f"{what} looks like {unit}, so {change}"
