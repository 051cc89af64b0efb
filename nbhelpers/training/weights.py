"""Loss weights that are not plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nbhelpers.training.flexible import FlexibleScheduler


@dataclass(frozen=True)
class Share:
    """A weight that keeps a term at this share of the summed gradient norms, whatever the term's magnitude."""

    target: float  # between 0 and 1, 0.1 = 10 % of the gradient

    def __post_init__(self) -> None:
        if not 0.0 <= self.target < 1.0:
            raise ValueError(f"a gradient share lies in [0, 1), got {self.target}")


@dataclass(frozen=True)
class Ramp:
    """A weight or a share that rises linearly from 0 and then stays: a term that would choke a young model."""

    to: float | Share  # what it is at the end
    epochs: float  # how long the rise takes, in epochs
    start: float = 0.0  # epoch of the phase at which it begins

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.start >= 0):
            raise ValueError(f"a ramp takes more than 0 epochs and starts at 0 or later, got {self}")

    @property
    def end(self) -> float:
        """Epoch from which the weight stands."""
        return self.start + self.epochs

    def at(self, epoch: float) -> float | Share:
        """What it is at a time in epochs."""
        part = min(1.0, max(0.0, (epoch - self.start) / self.epochs))
        return Share(part * self.to.target) if isinstance(self.to, Share) else part * self.to


@dataclass(frozen=True)
class Scheduled:
    """A weight that a loss scheduler moves between epochs: that of one of its two components."""

    scheduler: FlexibleScheduler
    component: str

    def __post_init__(self) -> None:
        if self.component not in self.scheduler.get_loss_weights():
            known = ", ".join(self.scheduler.get_loss_weights())
            raise ValueError(f"the scheduler moves the weights of {known}, and not of {self.component!r}")

    @property
    def to(self) -> float:
        """The weight at the end."""
        source, target = self.scheduler.params.final_weights
        return source if self.component == self.scheduler.params.source else target

    @property
    def end(self) -> float:
        """Epoch from which the weight stands; infinite while nobody knows."""
        return self.scheduler.events[-1][0] if self.scheduler.finished else math.inf

    def at(self, epoch: float) -> float:
        """The weight now: the scheduler moves it at the end of an epoch."""
        return self.scheduler.get_loss_weights()[self.component]


Moving = Ramp | Scheduled
Weight = float | Share | Moving
