"""UNet2D: every pixel at its place, whatever the size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.model import UNet2D

SIZES = [(64, 64), (48, 80), (61, 47), (33, 96), (24, 24), (25, 39)]


def identity_unet(depth: int, *, through_bottom: bool) -> UNet2D:
    """A UNet whose weights only copy: along the first skip, or down through every pooling and up again."""
    unet = UNet2D(2, 1, base=4, depth=depth, residual=False).eval()
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            module.weight.data[0, 0, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1.0
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
            module.weight.data[0, 0] = 1.0
    without_norms(unet)
    if through_bottom:
        for merge, up in zip(unet.merge, unet.up, strict=True):  # channels of a merge: skip first, then the up-sampled
            merge[0].weight.data.zero_()
            merge[0].weight.data[0, up.out_channels, 1, 1] = 1.0
    return unet


def without_norms(unet: UNet2D) -> UNet2D:
    """Group norm spreads every change over the whole frame; what is left is local."""
    for block in [*unet.down, *unet.merge]:
        for index, layer in enumerate(block):
            if isinstance(layer, nn.GroupNorm):
                block[index] = nn.Identity()
    return unet


def delta(size: tuple[int, int], row: int, column: int) -> Tensor:
    frames = torch.zeros(1, 2, *size)
    frames[0, 0, row, column] = 1.0
    return frames


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [0, 1, 3, 4])
def test_a_delta_keeps_its_pixel(size: tuple[int, int], depth: int) -> None:
    skip, bottom, block = (
        identity_unet(depth, through_bottom=False),
        identity_unet(depth, through_bottom=True),
        2**depth,
    )
    height, width = size
    for row, column in [(0, 0), (height - 1, width - 1), (height // 2, width // 3), (7, width - 2), (height - 4, 5)]:
        with torch.no_grad():
            frames = delta(size, row, column)
            assert torch.equal(skip(frames)[0, 0], frames[0, 0])
            expected = torch.zeros(size)  # max pooling keeps the block that the pixel lies in, and nothing else
            top, left = row // block * block, column // block * block
            expected[top : top + block, left : left + block] = 1.0
            assert torch.equal(bottom(frames)[0, 0], expected)


def field_of_view(at: int, depth: int) -> tuple[int, int]:
    """First and last input pixel, along one axis, that output pixel ``at`` depends on by the architecture."""
    first = last = at
    for _ in range(depth):  # two 3x3 convolutions, then to the coarser level
        first, last = (first - 2) // 2, (last + 2) // 2
    for _ in range(depth):  # two 3x3 convolutions, then to the two pixels of the finer level that were pooled
        first, last = 2 * (first - 2), 2 * (last + 2) + 1
    return first - 2, last + 2


@pytest.mark.parametrize("size", [(80, 80), (75, 93)])
@pytest.mark.parametrize("depth", [1, 2])
def test_with_random_weights_a_pixel_looks_around_itself(size: tuple[int, int], depth: int) -> None:
    torch.manual_seed(0)
    unet = without_norms(UNet2D(2, 1, base=8, depth=depth, residual=False))
    row, column = size[0] // 2 + 3, size[1] // 2 - 2
    seen = torch.zeros(size, dtype=torch.bool)
    for _ in range(6):  # max pooling passes the gradient to one pixel in four: several inputs show the whole field
        frames = torch.randn(1, 2, *size, requires_grad=True)
        (gradient,) = torch.autograd.grad(unet(frames)[0, 0, row, column], frames)
        seen |= (gradient != 0).any(1)[0]
    for hit, at in ((seen.any(1), row), (seen.any(0), column)):
        where = hit.nonzero().flatten().tolist()
        assert (where[0], where[-1]) == field_of_view(at, depth)


@pytest.mark.parametrize("residual", [True, False])
def test_input_shifted_by_a_block_gives_output_shifted_by_a_block(residual: bool) -> None:
    torch.manual_seed(0)
    unet = without_norms(UNet2D(3, 2, base=4, depth=2, residual=residual)).eval()
    nn.init.normal_(unet.head.weight)
    frames = torch.rand(1, 3, 92, 104)
    with torch.no_grad():
        one, shifted = unet(frames), unet(frames.roll((4, 8), dims=(2, 3)))
    inside = (..., slice(36, -36), slice(36, -36))
    assert one[inside].std() > 1e-3
    torch.testing.assert_close(one.roll((4, 8), dims=(2, 3))[inside], shifted[inside], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one[inside], shifted[inside], atol=1e-3)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_as_many_up_samplings_as_poolings(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet2D(3, 2, base=8, depth=depth).eval()
    pooled, ups = [], []
    pool = torch.nn.functional.max_pool2d

    def counted(x: Tensor, *args: int) -> Tensor:
        pooled.append(x.shape[-1])
        return pool(x, *args)

    monkeypatch.setattr(torch.nn.functional, "max_pool2d", counted)
    for module in unet.modules():
        if isinstance(module, nn.ConvTranspose2d):
            module.register_forward_hook(lambda _, inputs, output: ups.append(output.shape[-1]))
    unet(torch.rand(1, 3, 64, 64))
    assert pooled == ups[::-1] == [64 // 2**level for level in range(depth)]


@pytest.mark.parametrize("size", SIZES)
def test_a_residual_model_starts_at_persistence_exactly(size: tuple[int, int]) -> None:
    frames = torch.rand(2, 5, *size)
    with torch.no_grad():
        forecast = UNet2D(5, 3, base=8, depth=3)(frames)
    assert torch.equal(forecast, frames[:, -1:].expand(-1, 3, -1, -1))


def test_a_model_without_residual_does_not_start_at_persistence_and_every_part_gets_a_gradient() -> None:
    torch.manual_seed(0)
    frames = torch.rand(2, 5, 40, 48)
    unet = UNet2D(5, 3, base=8, depth=2, residual=False)
    forecast = unet(frames)
    assert (forecast - frames[:, -1:]).abs().mean() > 0.01
    forecast.square().mean().backward()
    dead = [name for name, parameter in unet.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize(("n_in", "n_out"), [(12, 1), (12, 6), (13, 12)])
@pytest.mark.parametrize("size", [(64, 64), (45, 70)])
def test_shapes(n_in: int, n_out: int, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert UNet2D(n_in, n_out, base=8, depth=3)(torch.rand(2, n_in, *size)).shape == (2, n_out, *size)


@pytest.mark.parametrize("base", [1, 6, 12, 20])
def test_any_number_of_channels_will_do(base: int) -> None:
    with torch.no_grad():
        assert UNet2D(2, 1, base=base, depth=2)(torch.rand(1, 2, 16, 16)).shape == (1, 1, 16, 16)


def test_the_default_model_has_the_size_of_the_usual_unet() -> None:
    config = Config()
    unet = UNet2D(config.n_in, config.n_out, base=config.base_channels, depth=config.depth)
    assert 7.5e6 < sum(p.numel() for p in unet.parameters()) < 8.0e6
