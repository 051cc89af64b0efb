"""How much rain is extreme, from training years alone, and which days are dry, moderate or heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.layout import PERCENTILES, SHARE, UNITS, WET

MOST = 50_000_000  # wet pixels that are kept for the percentiles; of more than these, every second, third…
FEWEST = 200  # wet pixels behind P99.5, so that at least one lies above it


def thresholds(rain: Iterable[NDArray], land: NDArray[np.bool_], years: Iterable[int]) -> dict[str, Any]:
    """``thresholds.json``: percentiles in mm/day of the wet land pixels, pooled over days.

    Args:
        rain: ``(H, W)`` mm/day of the training days alone, NaN where not measured.
        land: ``(H, W)``.
        years: the training years, noted so that a reader can check that no other year is among them.

    Raises:
        UserError: hardly a wet land pixel in them: nothing about extremes can be learnt, or the units are others.
    """
    kept: list[NDArray] = []
    n_kept, step = 0, 1
    for field in rain:
        on_land = field[land]
        wet = on_land[on_land >= WET][::step]
        kept.append(wet)
        n_kept += wet.size
        if n_kept > MOST:  # thin what is there, and what comes, alike
            kept = [one[::2] for one in kept]
            n_kept, step = sum(one.size for one in kept), 2 * step
    if n_kept < FEWEST:
        raise UserError(
            f"only {n_kept} land pixels of all training days have at least {WET:g} mm/day, expected {FEWEST} or more: "
            "the training years are all dry, or the rain is not in mm/day (multiply mm/h by 24, kg m-2 s-1 by 86,400)."
        )
    values = np.quantile(np.concatenate(kept), list(PERCENTILES.values()))
    found: dict[str, Any] = {name: round(float(value), 4) for name, value in zip(PERCENTILES, values, strict=True)}
    return found | {"units": UNITS, "wet": WET, "years": sorted(years)}


def category(rain: NDArray, land: NDArray[np.bool_], p95: float) -> str:
    """ "heavy", "dry" or "moderate", by the shares of the measured land pixels at or above P95 and 1 mm/day."""
    on_land = rain[land]
    measured = on_land[np.isfinite(on_land)]
    if not measured.size:
        return "dry"
    if (measured >= p95).mean() >= SHARE:
        return "heavy"
    return "dry" if (measured >= WET).mean() < SHARE else "moderate"
