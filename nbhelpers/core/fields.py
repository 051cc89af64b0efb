"""Declared units, range, statistics and missing value of the arrays that a stage reads and predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """The invertible map ``scaled = (value - offset) / scale``."""

    scale: float = 1.0  # units of the field per unit of the scaled value
    offset: float = 0.0  # value of the field that becomes 0

    def forward(self, value: Tensor) -> Tensor:
        return (value - self.offset) / self.scale

    def inverse(self, scaled: Tensor) -> Tensor:
        return scaled * self.scale + self.offset


@dataclass(frozen=True)
class Field:
    """One physical quantity as it stands in the files, and how it reaches the model.

    ``mean`` and ``std`` are the statistics one may expect of the raw values (missing ones left out). They are
    declared, not fitted: batches that lie far from them have other units than they claim.
    """

    name: str  # lower snake case, as in metric names
    units: str  # of the raw values
    valid_range: tuple[float, float]  # smallest and largest legal raw value
    mean: float  # expected mean of the raw values
    std: float  # expected standard deviation of the raw values
    missing: float | None  # raw value (NaN too) that means "not measured"; None when every value is data
    transform: Affine  # raw values <-> what the model sees

    def to_model(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled float32 values and the mask of measured pixels, both of ``raw``'s shape.

        Missing pixels become 0 in model units, so that no sentinel reaches a loss; the mask tells them apart.
        """
        import torch

        values = raw.to(torch.float32)
        if self.missing is None:
            return self.transform.forward(values), torch.ones_like(raw, dtype=torch.bool)
        valid = ~torch.isnan(raw) if math.isnan(self.missing) else raw != self.missing
        return torch.where(valid, self.transform.forward(values), 0.0), valid

    def to_units(self, scaled: Tensor) -> Tensor:
        """Model values back in the field's units, clipped to its valid range."""
        return self.transform.inverse(scaled).clamp(*self.valid_range)
