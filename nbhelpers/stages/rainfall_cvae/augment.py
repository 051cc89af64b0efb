"""Variations of a training day: noise on the weather, a mixture with another day, mirrors of everything at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.layout import PR
from nbhelpers.stages.rainfall_cvae.survey import log_rain

WIND = re.compile(r"[uv](a|as|)\d*")  # names of a wind's components, whose sign a mirror would have to change

Fields = tuple[NDArray[np.float32], NDArray[np.float32]]  # x (C, h, w) raw, y (H, W) mm/day


@dataclass(frozen=True)
class Augmentation:
    """What is done to training days; by default nothing.

    A mixture rains where either day rains, and less than the wetter one: it makes drizzle and damps extremes. A mirror
    turns the land around under the prevailing wind: the statics turn along, but the lee side becomes the windward one.
    """

    noise: float = 0.0  # standard deviation of the noise on x, in standard deviations of each channel
    mixup: float = 0.0  # a of Beta(a, a), from which the share of the day itself is drawn; 0: no mixtures
    flips: bool = False  # mirror x, y and statics together (on a square grid also with rows and columns swapped)

    def __post_init__(self) -> None:
        for name in ("noise", "mixup"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} of the augmentation is {getattr(self, name)}, expected 0 (off) or more.")


def symmetries(days: Days) -> int:
    """How many codes of :func:`turned` keep the shape of the days' fields: 4, or 8 where they are square.

    Raises:
        UserError: a predictor is a component of the wind.
    """
    if winds := [channel for channel in days.channels if WIND.fullmatch(channel)]:
        raise UserError(
            f"flips are on, but {winds[0]!r} is a component of the wind, whose sign a mirror changes: turn flips off, "
            "or use the wind's speed."
        )
    return 8 if days.shape[0] == days.shape[1] else 4


def turned(field: Tensor, codes: Sequence[int]) -> Tensor:
    """``(…, H, W)`` once for each code: ``(B, …, H, W)``.

    A code is 0–7, one of a square's symmetries: 4 swaps rows and columns, then 1 mirrors top-down, 2 left-right.
    """
    return torch.stack([_turned(field, code) for code in codes])


def _turned(field: Tensor, code: int) -> Tensor:
    if code & 4:
        field = field.transpose(-1, -2)
    mirrored = [dim for bit, dim in ((1, -2), (2, -1)) if code & bit]
    return field.flip(mirrored) if mirrored else field


def turn(fields: Fields, code: int) -> Fields:
    """x and y of one day turned alike."""
    if code == 0:
        return fields
    x, y = (_turned(torch.from_numpy(field), code).contiguous().numpy() for field in fields)
    return x, y


def noisy(x: NDArray[np.float32], days: Days, noise: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """``(C, h, w)`` with white noise of ``noise`` standard deviations of each channel; ``pr`` on log1p(mm/day)."""
    pr = days.channels.index(PR)
    changed = x.astype(np.float64)
    changed[pr] = log_rain(changed[pr] * days.pr_scale)
    changed += noise * days.x_std[:, None, None] * rng.standard_normal(x.shape)
    changed[pr] = np.maximum(np.expm1(changed[pr]), 0.0) / days.pr_scale
    return changed.astype(np.float32)


def mixed(one: Fields, other: Fields, share: float) -> Fields:
    """``share`` of one day and the rest of another, x and y alike; NaN where either is not measured."""
    x, y = (np.float32(share) * a + np.float32(1 - share) * b for a, b in zip(one, other, strict=True))
    return x, y
