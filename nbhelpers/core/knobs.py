"""A weight that can be turned by hand: its range, what is marked on it, and where it means nothing or everything."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Shares of the gradient at which an extra loss term stops having a say, and starts to be the only one that has.
INERT_SHARE, DROWNING_SHARE = 0.01, 0.9


@dataclass(frozen=True)
class Knob:
    """How a panel offers one field of the settings."""

    field: str  # name in the settings
    label: str
    low: float
    high: float
    start: float  # where it stands when the settings leave the field empty
    log: bool = False  # logarithmic between low and high (both are values, not exponents)
    off: bool = False  # the lowest position means 0; for logarithmic ones, which have no 0
    whole: bool = False  # whole numbers only
    marked: tuple[float, float] | None = None  # a range to draw
    mark: str = ""  # what that range is

    def at(self, fraction: float) -> float:
        """The value at a fraction (0–1) of the way from low to high."""
        if self.log:
            return self.low * (self.high / self.low) ** fraction
        return self.low + (self.high - self.low) * fraction

    def read(self, position: float) -> float:
        """What a slider at ``position`` sets: the number that is shown there."""
        if self.off and position <= self.low * (1 + 1e-9):
            return 0.0
        if self.whole:
            return round(position)
        # Two digits are finer than a hand's step; with more, a weight such as 0.05 would lie between two positions.
        return float(f"{position:.2g}" if self.log else f"{position:.4g}")

    def fraction(self, value: float) -> float:
        """The way from low to high at which ``value`` stands, within 0–1."""
        if self.log:
            way = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            way = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, way))
