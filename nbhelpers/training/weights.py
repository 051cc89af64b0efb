"""Loss weights that are not plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A weight that keeps a term at this share of the summed gradient norms, whatever the term's magnitude."""

    target: float  # between 0 and 1, 0.1 = 10 % of the gradient

    def __post_init__(self) -> None:
        if not 0.0 <= self.target < 1.0:
            raise ValueError(f"a gradient share lies in [0, 1), got {self.target}")


@dataclass(frozen=True)
class Ramp:
    """A weight that rises linearly from 0 and then stays: the warm-up of a term that would choke a young model."""

    to: float  # the weight at the end
    epochs: float  # how long the rise takes, in epochs
    start: float = 0.0  # epoch at which it begins

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.start >= 0):
            raise ValueError(f"a ramp takes more than 0 epochs and starts at 0 or later, got {self}")

    @property
    def end(self) -> float:
        """Epoch from which the weight stands."""
        return self.start + self.epochs

    def at(self, epoch: float) -> float:
        """The weight at a time in epochs."""
        return self.to * min(1.0, max(0.0, (epoch - self.start) / self.epochs))


Weight = float | Share | Ramp
