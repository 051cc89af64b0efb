"""Reading images between their pixels, with a gradient that is the same to the last bit in every run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


def pixels(like: Tensor) -> Tensor:
    """Pixel positions (1, 2, H, W), x then y, of an image batch (..., H, W)."""
    rows, columns = (torch.arange(n, dtype=like.dtype, device=like.device) for n in like.shape[-2:])
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None]


def read(image: Tensor, place: Tensor, padding_mode: str = "zeros") -> Tensor:
    """Bilinear values (B, C, h, w) of ``image`` (B, C, H, W) at ``place`` (B, 2, h, w), x then y, in pixels."""
    grid = torch.stack([place[:, i] * (2 / (image.shape[-1 - i] - 1)) - 1 for i in (0, 1)], -1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding_mode, align_corners=True)


class ReadLearnt(torch.autograd.Function):
    """``read`` with zeros outside, for images (B, 1, H, W) that carry a gradient; ``ReadLearnt.apply(image, place)``.

    On a GPU the gradient of ``grid_sample`` is added up in an order that changes from run to run, and no run would be
    equal to a resumed one. This one is added up in a fixed order there, too. There is none for ``place``.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, image: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.size = image.shape  # type: ignore[attr-defined]
        return read(image, place)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors  # type: ignore[attr-defined]
        batch, _, height, width = size = ctx.size  # type: ignore[attr-defined]
        x, y = place.unbind(1)
        first = torch.arange(batch, device=place.device).view(-1, 1, 1) * height * width
        total = gradient.new_zeros(batch * height * width)
        for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
            column, row = x.floor() + right, y.floor() + below
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
            index = torch.where(inside, first + row.long() * width + column.long(), 0).flatten()
            values = (gradient[:, 0] * share).flatten()
            # Each of the two has a fixed order on its own device only.
            if total.is_cuda:
                total.index_put_((index,), values, accumulate=True)
            else:
                total.index_add_(0, index, values)
        return total.view(size), None
