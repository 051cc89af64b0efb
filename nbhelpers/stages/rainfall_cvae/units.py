"""What a ``units`` attribute means, and how its values become those of the day files."""

from __future__ import annotations

import re

# Unit of each predictor in the day files, by its name in CMIP and CORDEX.
TARGETS = {"tas": "K", "pr": "mm/day", "huss": "kg/kg", "sfcWind": "m/s", "tasmax": "K", "tasmin": "K"}
# How the same is written in files, for messages.
SPELLINGS = {
    "mm/day": "kg m-2 s-1, mm/day, mm/h, mm, m",
    "K": "K, degC",
    "kg/kg": "1, kg kg-1, g kg-1",
    "m/s": "m s-1, km h-1",
}
_SECONDS = {"s": 1.0, "h": 3600.0, "day": 86400.0}
_SAME = {"sec": "s", "second": "s", "seconds": "s", "hr": "h", "hour": "h", "hours": "h", "d": "day", "days": "day"}
_DEPTH = {"mm": 1.0, "cm": 10.0, "m": 1000.0}  # mm of water
_KELVIN = ({"k": 1}, {"kelvin": 1})
_CELSIUS = tuple(
    {name: 1} for name in ("degc", "c", "celsius", "deg_c", "°c", "degree_celsius", "degrees_celsius", "degreec")
) + ({"deg": 1, "c": 1}, {"degrees": 1, "c": 1})
_PART = re.compile(r"\s*(/?)\s*([a-z°_]+)(-?\d+)?")


def conversion(units: str, target: str) -> tuple[float, float] | None:
    """(factor, offset) with value in ``target`` = factor · value in ``units`` + offset; None if that is unknown.

    ``target`` is one of ``TARGETS``' values. Units are read by their meaning: kg m-2 s-1, kg/m2/s and kg m**-2 s**-1
    are one. A depth without a time (mm, kg m-2, m) is the total of the day that the value stands for, and 1 kg m-2 of
    water is 1 mm deep.
    """
    meaning = _parsed(units)
    if meaning is None:
        return None
    if target == "mm/day":
        factor = _rain_factor(meaning)
        return None if factor is None else (factor, 0.0)
    if target == "K":
        return (1.0, 0.0) if meaning in _KELVIN else (1.0, 273.15) if meaning in _CELSIUS else None
    if target == "kg/kg":
        return (1.0, 0.0) if meaning == {} else (1e-3, 0.0) if meaning == {"g": 1, "kg": -1} else None
    return (1.0, 0.0) if meaning == {"m": 1, "s": -1} else (1 / 3.6, 0.0) if meaning == {"km": 1, "h": -1} else None


def _rain_factor(meaning: dict[str, int]) -> float | None:
    """mm/day of one unit of rain."""
    time = [name for name in _SECONDS if meaning.get(name) == -1]
    depth = {name: power for name, power in meaning.items() if name not in time}
    if len(time) > 1:
        return None
    per_day = _SECONDS["day"] / _SECONDS[time[0]] if time else 1.0
    if depth == {"kg": 1, "m": -2}:
        return per_day
    (name, power), *rest = depth.items() or [("", 0)]
    return None if rest or power != 1 or name not in _DEPTH else _DEPTH[name] * per_day


def _parsed(units: str) -> dict[str, int] | None:
    """Power of each unit: "kg m-2 s-1" → {"kg": 1, "m": -2, "s": -1}; None for what is no product of units."""
    text = re.sub(r"\*\*|\^", "", units.strip().lower())
    text = re.sub(r"[*·]|\.(?=[a-z])", " ", text)
    if text == "1":
        return {}
    powers: dict[str, int] = {}
    position = 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            return None
        slash, name, power = part.groups()
        name = _SAME.get(name, name)
        powers[name] = powers.get(name, 0) + int(power or 1) * (-1 if slash else 1)
        position = part.end()
    return {name: power for name, power in powers.items() if power} if text else None
