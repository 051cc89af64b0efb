"""Pairs of pixels by their distance and by the smallest window they share, and how alike a correlation makes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.stages.rainfall_cvae.copula import Correlation
from nbhelpers.stages.rainfall_cvae.model import grid_steps


def window_sides(factor: int, shape: tuple[int, int]) -> tuple[int, ...]:
    """Sides in pixels of nested windows: 1, parts of a coarse cell, the cell, two cells … until one holds the map."""
    sides = [1]
    for step in grid_steps(factor):
        sides.append(sides[-1] * step)
    while sides[-1] < max(shape) or sides[-1] == factor:
        sides.append(2 * sides[-1])
    return tuple(sides)


def window_squares(fields: Tensor, sides: tuple[int, ...]) -> Tensor:
    """``(..., S)``: for each side, the sum over all windows of (sum of the field in the window)².

    Windows start at the first pixel; the last ones are filled up with zeros. So are pixels that were not measured.

    Args:
        fields: ``(..., H, W)``.
        sides: of :func:`window_sides`.
    """
    squares, before = [], 1
    sums = fields.reshape(-1, 1, *fields.shape[-2:])
    for side in sides:
        step = side // before
        sums = F.pad(sums, (0, -sums.shape[-1] % step, 0, -sums.shape[-2] % step))
        sums, before = F.avg_pool2d(sums, step) * step**2, side
        squares.append(sums.square().sum((1, 2, 3)))
    return torch.stack(squares, -1).reshape(*fields.shape[:-2], len(sides))


class Pairs:
    """All pairs of pixels of a map, sorted once for the many correlations that a fit tries.

    Args:
        land: ``(H, W)`` bool: where rain is measured.
        factor: how many pixels a coarse cell is wide.
    """

    def __init__(self, land: Tensor, factor: int):
        self.factor, self.sides = factor, window_sides(factor, (land.shape[0], land.shape[1]))
        # Near pairs have their place in the cell: every pixel of one cell, and those of it and of three neighbours.
        row, column = torch.cartesian_prod(*[torch.arange(2 * factor)] * 2).unbind(1)
        first = (row < factor) & (column < factor)
        down, right = row - row[first][:, None], column - column[first][:, None]
        self.distance = torch.hypot(down.double(), right.double())
        self.cell = row // factor * 2 + column // factor
        self.level = torch.zeros_like(down)  # how many of the windows, from the smallest on, the two do not share
        for side in self.sides:
            above, beside = row // side, column // side
            self.level += (above != above[first][:, None]) | (beside != beside[first][:, None])
        # All pairs up to a cell apart start in that cell. Those to the right and down stand for their mirror images.
        near = (down >= 0) & (right >= 0) & (down.maximum(right) <= factor)
        self.shell = torch.where(near, (self.distance + 0.5).long(), 0).clamp(max=factor + 1)
        self.images = (1 + (down > 0).double()) * (1 + (right > 0).double())
        # Pairs further apart are counted by how far.
        wide = self.sides[self.sides.index(factor) + 1 :]
        self.far = torch.stack([_by_displacement(land, side) for side in wide]).diff(dim=0)
        rows, columns = (torch.arange(n, dtype=torch.float64) for n in land.shape)
        self.far_distance = torch.hypot(rows[:, None], columns)

    def correlations(self, correlation: Correlation, orders: int) -> tuple[Tensor, Tensor]:
        """``(factor,)`` mean correlations at distances of about 1, 2 … pixels, and ``(S − 1, orders)`` mean powers.

        The powers are the means of ρ, ρ² … over the pairs that share a window of a side but none of the side before it.
        Pairs that share none of two cells' side count as if all had their mean.
        """
        f, known = self.factor, correlation.known
        between = correlation.at(self.distance)
        # Of pixels with the means of cells, and of these with each other.
        of_mean = between.mean(0)
        with_mean = torch.zeros(f**2, 4, dtype=torch.float64).index_add_(1, self.cell, between)[:, self.cell] / f**2
        deviation = correlation.deviation(f)
        rho = between - known * (of_mean + with_mean) + known**2 * with_mean.mean(0)
        rho /= deviation.reshape(-1, 1) * deviation.repeat(2, 2).flatten()
        near = _means(self.shell, rho, self.images)[1 : f + 1]
        powers, power = [], torch.ones_like(rho)
        for _ in range(orders):
            power = power * rho
            powers.append(_means(self.level, power, torch.ones_like(rho))[1:])
        scale = ((1 - known) * (1 / deviation).mean()) ** 2
        far = scale * (self.far * correlation.at(self.far_distance)).sum((1, 2)) / self.far.sum((1, 2)).clamp(min=1)
        return near, torch.cat([torch.stack(powers, 1), far[:, None] ** torch.arange(1, orders + 1)])


def _means(group: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of each group 0, 1 …"""
    size, total = (torch.bincount(group.flatten(), part.flatten()) for part in (weights, weights * values))
    return total / size


def _by_displacement(land: Tensor, side: int) -> Tensor:
    """``(H, W)``: how many pairs of land pixels of the same window are so many rows and columns apart, either way."""
    height, width = land.shape
    windows = F.pad(land.double(), (0, -width % side, 0, -height % side)).unfold(0, side, side).unfold(1, side, side)
    power = torch.fft.rfft2(windows.reshape(-1, side, side), s=(2 * side, 2 * side)).abs().square().sum(0)
    pairs = torch.fft.irfft2(power, s=(2 * side, 2 * side)).round()
    pairs = pairs[:side] + pairs.roll(-1, 0).flip(0)[:side] * (torch.arange(side) > 0)[:, None]
    pairs = pairs[:, :side] + pairs.roll(-1, 1).flip(1)[:, :side] * (torch.arange(side) > 0)
    return F.pad(pairs, (0, max(0, width - side), 0, max(0, height - side)))[:height, :width]
