"""Reflectance and model units: one invertible map a band, the same for every patch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.core.fields import Affine, Field
from nbhelpers.stages.super_resolution.patch import DN_PER_REFLECTANCE

PERCENTILES = (2, 98)  # of each band over the training set, that are -1 and 1 where one asks for it
# All bands together, as one may expect of land: forests and water darker, bare fields brighter.
SURFACE = Field(
    "reflectance",
    "reflectance x 1e4",
    (-1000.0, 20_000.0),
    mean=1300.0,
    std=1200.0,
    missing=None,  # patches with pixels that were not measured are left out as a whole
    transform=Affine(DN_PER_REFLECTANCE / 2, DN_PER_REFLECTANCE / 2),
)


@dataclass(frozen=True)
class Units:
    """What reflectances become -1 and 1, by band. Linear, without clipping: brighter than the maximum is above 1."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def physical(cls, n_bands: int, *, maximum: float) -> Units:
        """0 and ``maximum`` in every band."""
        return cls((0.0,) * n_bands, (maximum,) * n_bands)

    @classmethod
    def percentiles(cls, patches: Iterable[NDArray[np.float32]]) -> Units:
        """The percentiles of each band over ``(C, H, W)`` patches of reflectance x 1e4."""
        values = np.concatenate([patch.reshape(len(patch), -1) for patch in patches], 1) / DN_PER_REFLECTANCE
        low, high = np.percentile(values, PERCENTILES, axis=1)
        return cls(tuple(low.tolist()), tuple(high.tolist()))

    @property
    def scale(self) -> tuple[float, ...]:
        """Reflectance that a model unit is, by band."""
        return tuple((high - low) / 2 for low, high in zip(self.low, self.high, strict=True))

    def to_model(self, reflectance: Tensor) -> Tensor:
        """``(…, C, H, W)`` reflectance in model units."""
        return (reflectance - self._middle(reflectance)) / self._by_band(self.scale, reflectance)

    def to_reflectance(self, image: Tensor) -> Tensor:
        """``(…, C, H, W)`` in model units as reflectance."""
        return image * self._by_band(self.scale, image) + self._middle(image)

    def of_reflectance(self, value: float, like: Tensor) -> Tensor:
        """``(C, 1, 1)``: one reflectance in the model units of each band."""
        return self.to_model(torch.full((len(self.low), 1, 1), value, device=like.device))

    def _middle(self, like: Tensor) -> Tensor:
        return self._by_band([(a + b) / 2 for a, b in zip(self.low, self.high, strict=True)], like)

    @staticmethod
    def _by_band(values: Iterable[float], like: Tensor) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=like.device)[:, None, None]
