"""The one invertible map between rain in mm/day and what a model sees, shared by loss, metrics and sampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.data import Days

Kind = Literal["none", "log1p", "zscore"]
KINDS = ("none", "log1p", "zscore")
MOST_LOG = 8.0  # log(1 + mm/day) of 3 m of rain: further out expm1 overflows before training can call it back
LEAST_STD = 1e-3  # mm/day: a pixel whose rain varies less is only shifted, not scaled


@dataclass(frozen=True, eq=False)
class RainTransform:
    """``none``: mm/day as they are. ``log1p``: log(1 + mm/day). ``zscore``: (mm/day − mean) / deviation of each pixel.

    NaN stays NaN. A z-score is negative where it is dry, so a head that cannot be negative cannot reach it (G6).
    """

    kind: Kind
    mean: Tensor  # (H, W) mm/day of the training days; 0 unless `kind` is zscore
    std: Tensor  # (H, W) mm/day; 1 unless `kind` is zscore

    @staticmethod
    def fit(kind: Kind, days: Days) -> RainTransform:
        """With the statistics of the training days."""
        if kind not in KINDS:
            raise UserError(f"transform is {kind!r}, expected one of {', '.join(KINDS)}: choose one of them.")
        mean, std = torch.from_numpy(days.rain_mean), torch.from_numpy(days.rain_std)
        if kind != "zscore":
            return RainTransform(kind, torch.zeros_like(mean), torch.ones_like(std))
        return RainTransform(kind, mean, torch.where(std < LEAST_STD, 1.0, std))

    def forward(self, mm: Tensor) -> Tensor:
        """mm/day ``(…, H, W)`` to model values."""
        if self.kind == "none":
            return mm
        return mm.log1p() if self.kind == "log1p" else (mm - self.mean) / self.std

    def inverse(self, value: Tensor) -> Tensor:
        """Model values ``(…, H, W)`` to mm/day; not clipped, so that it undoes ``forward`` and has a gradient."""
        if self.kind == "none":
            return value
        return value.expm1() if self.kind == "log1p" else value * self.std + self.mean

    def to(self, device: torch.device) -> RainTransform:
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))
