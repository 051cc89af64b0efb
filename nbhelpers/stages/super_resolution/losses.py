"""The terms of both training stages, each a function of the super-resolved image alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LEAST_CONTRAST = 0.005  # reflectance; over flat water the error is not measured by less than this
STRETCH = 0.3  # reflectance that is white in pictures, and for networks that were trained on photographs


def contrast(low: Tensor, *, least: Tensor) -> Tensor:
    """``(B, C, 1, 1)``: what errors of each sample and band are measured in, the standard deviation of its input.

    A dark forest and a bright field then count alike; in plain reflectance the loss is all bright fields.

    Args:
        low: ``(B, C, h, w)`` in model units.
        least: lower bound, in model units, that broadcasts with the result.
    """
    return torch.maximum(low.float().std((-2, -1), keepdim=True), least)


def pixel_error(target: Tensor, unit: Tensor, *, l1_part: float) -> Callable[[Tensor], Tensor]:
    """``a·mean|e| + (1 − a)·mean e²`` with ``e = (prediction − target)/unit`` and a = ``l1_part``.

    Args:
        target: ``(B, C, H, W)`` in model units.
        unit: what errors are measured in; broadcasts with the target.
    """

    def error(prediction: Tensor) -> Tensor:
        difference = (prediction.float() - target) / unit
        return l1_part * difference.abs().mean() + (1 - l1_part) * difference.square().mean()

    return error


def picture(reflectance: Tensor, channels: Sequence[int]) -> Tensor:
    """``(B, 3, H, W)`` images in [0, 1] of the ``channels`` (red, green, blue), with one stretch for all."""
    return (reflectance[:, list(channels)] / STRETCH).clamp(0, 1)
