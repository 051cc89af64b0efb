"""An image of any size through a generator: windows that overlap, blended into one.

Windows begin at multiples of 32 pixels, where the compact generator's own attention windows and TerraMind's patches
begin, so that what lies in two of them is cut up in the same way in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError

STEP = 32  # pixels; windows begin at multiples of it
WINDOW, OVERLAP = 256, 64  # pixels

Refine = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # s1, opt_v2, noise → opt_v3, as all generators take them


@dataclass(frozen=True)
class Windows:
    """How an image is cut up."""

    size: int = WINDOW  # pixels along a side; the last one along a side may have up to 31 more
    overlap: int = OVERLAP  # pixels at least that neighbours share, over which one gives way to the next

    def __post_init__(self) -> None:
        for name, value in (("window", self.size), ("overlap", self.overlap)):
            if value < STEP or value % STEP:
                raise UserError(f"{name} is {value} pixels, expected a multiple of {STEP}.")
        if 2 * self.overlap > self.size:
            raise UserError(
                f"overlap is {self.overlap} pixels of a window of {self.size}, expected half of it at most: lower the "
                "overlap or raise the window."
            )

    def along(self, n: int) -> list[tuple[int, int]]:
        """First pixel and the one after the last of the windows along a side of ``n`` pixels, spread evenly."""
        free = (n - self.size) // STEP  # steps from the first window to the last
        if free <= 0:
            return [(0, n)]
        count = 1 + math.ceil(free * STEP / (self.size - self.overlap))
        starts = [STEP * round(k * free / (count - 1)) for k in range(count)]
        return [(start, start + self.size) for start in starts[:-1]] + [(starts[-1], n)]

    def weights(self, n: int) -> list[Tensor]:
        """Weight of every pixel of each window along a side of ``n``; over all windows they sum to 1.

        (1 − cos πt)/2 over the overlap from an inner edge, then 1, divided by the sum.
        """
        t = (torch.arange(self.overlap, dtype=torch.float64) + 0.5) / self.overlap
        rise = (1 - torch.cos(math.pi * t)) / 2
        places, found = self.along(n), []
        total = torch.zeros(n, dtype=torch.float64)
        for start, stop in places:
            weight = torch.ones(stop - start, dtype=torch.float64)
            if start > 0:
                weight[: self.overlap] *= rise
            if stop < n:
                weight[-self.overlap :] *= rise.flip(0)
            total[start:stop] += weight
            found.append(weight)
        return [(weight / total[start:stop]).float() for weight, (start, stop) in zip(found, places, strict=True)]


@torch.no_grad()
def refine_image(
    refine: Refine,
    s1: Tensor,
    opt_v2: Tensor,
    *,
    noise: Callable[[int, int], torch.Generator],
    windows: Windows | None = None,
    device: torch.device | None = None,
    progress: bool = False,
) -> Tensor:
    """opt_v3 of one image. One that is no larger than a window (or by less than 32 pixels) is one window.

    Every window draws noise of its own, so where two overlap the result is the mean of two samples: its detail is a
    little weaker there, and closer to the best estimate.

    Args:
        refine: a generator in evaluation mode.
        s1: ``(2, H, W)`` dB, NaN where not measured, on the CPU.
        opt_v2: ``(4, H, W)`` reflectance, the same.
        noise: generator of the random numbers of the window whose first row and column are given.
        windows: None: 256 pixels, overlapping by 64.
        device: of the generator; None: the CPU.

    Returns:
        ``(4, H, W)`` float32 reflectance on the CPU, NaN where ``opt_v2`` is.
    """
    windows, device = windows or Windows(), device or torch.device("cpu")
    rows, columns = ((windows.along(n), windows.weights(n)) for n in opt_v2.shape[-2:])
    grid = [(row, column) for row in zip(*rows, strict=True) for column in zip(*columns, strict=True)]
    image, gaps = torch.zeros_like(opt_v2, dtype=torch.float32), opt_v2.isnan()
    for ((top, bottom), down), ((left, right), across) in tqdm(
        grid, desc="refining", unit="window", leave=False, disable=None if progress and len(grid) > 1 else True
    ):
        part = (slice(None), slice(top, bottom), slice(left, right))
        found = refine(s1[part][None].to(device), opt_v2[part][None].to(device), noise(top, left))[0].float().cpu()
        image[part] += down[:, None] * across * found
    return image.masked_fill_(gaps, torch.nan)
