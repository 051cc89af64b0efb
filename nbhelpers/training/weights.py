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
