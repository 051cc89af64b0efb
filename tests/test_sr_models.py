"""Generator and discriminator of the super-resolution stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import rasterio
import torch
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution.blocks import (
    REACH,
    STD_FLOOR,
    DenseBlock,
    ReceptiveField,
    ResidualInResidual,
    enlarge,
    local_contrast,
)
from nbhelpers.stages.super_resolution.discriminator import Discriminator
from nbhelpers.stages.super_resolution.generator import Generator
from nbhelpers.stages.super_resolution.scene import MARGIN

SMALL = {"features": 32, "growth": 16, "num_rrdb": 1, "num_rrfdb": 1}
D4 = Degradation(4, (0.3,) * 4)


def small(scale: int = 4, **options: object) -> Generator:
    torch.manual_seed(0)
    return Generator(4, scale=scale, degradation=Degradation(scale, (0.3,) * 4), **{**SMALL, **options})


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def landscape(*size: int) -> Tensor:
    """LR images with contrast, in model units: mean −0.7, standard deviation 0.1."""
    torch.manual_seed(1)
    return 0.1 * torch.randn(2, 4, *size) - 0.7


@pytest.fixture(scope="module")
def real_hr(real_data: Path) -> Tensor:
    """``(1, 4, 96, 96)`` B02, B03, B04, B08 of a real tile in model units."""
    with rasterio.open(sorted((real_data / "s1s2_tiles/S2L2A").iterdir())[0]) as tile:
        dn = tile.read([2, 3, 4, 8])[:, 64:160, 32:128].astype("float32")
    return 2 * torch.from_numpy(dn)[None] / 1e4 - 1


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("size", [(8, 8), (17, 9), (1, 33)])
def test_any_size_at_every_scale(scale: int, size: tuple[int, int]) -> None:
    model, lr = small(scale).requires_grad_(False), landscape(*size)
    sr = model(lr)
    assert sr.shape == (2, 4, scale * size[0], scale * size[1]) and sr.dtype == torch.float32
    assert float((model.degradation.degrade(sr) - lr).abs().max()) < 1e-5
    model.consistency = False
    assert float((model.degradation.degrade(model(lr)) - lr).abs().max()) > 1e-3, "the projection had nothing to do"


def test_the_numbers_of_parameters_that_the_docstring_states() -> None:
    counts = [n_parameters(Generator(4, scale=s, degradation=Degradation(s, (0.3,) * 4))) for s in (2, 4, 8)]
    assert [round(count / 1e6, 1) for count in counts] == [9.8, 9.8, 10.0]
    assert round(n_parameters(small()) / 1e6, 2) == 0.27


def test_a_dense_block_is_that_of_the_paper() -> None:
    # Five 3 × 3 convolutions; growth 32: 64, 96, 128, 160 → 32 and 192 → 64 channels.
    widths = [(64, 32), (96, 32), (128, 32), (160, 32), (192, 64)]
    assert n_parameters(DenseBlock(64, 32)) == sum(9 * a * b + b for a, b in widths)
    block = ResidualInResidual(8, 4).double()
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    inner = x
    for dense in block.blocks:
        seen = [inner]
        for layer in dense.convs:
            out = layer(torch.cat(seen, 1))
            seen.append(nn.functional.leaky_relu(out, 0.2))
        inner = inner + 0.2 * out
    torch.testing.assert_close(block(x), x + 0.2 * inner)


def test_a_receptive_field_looks_one_two_and_three_pixels_away() -> None:
    torch.manual_seed(0)
    block = ReceptiveField(3, 5, width=4)
    x = torch.randn(1, 3, 15, 15, requires_grad=True)
    block(x)[0, :, 7, 7].sum().backward()
    assert x.grad is not None
    touched = x.grad[0].abs().sum(0) > 0
    rows, columns = (touched.nonzero() - 7).unbind(1)
    cross = {(r, c) for d in (1, 2, 3) for r in (-d, 0, d) for c in (-d, 0, d)}
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == cross


def test_untrained_it_is_projected_bicubic(real_hr: Tensor) -> None:
    lr = D4.degrade(real_hr)
    floor = D4.project(enlarge(lr, 4), lr)
    with torch.no_grad():
        sr = small()(lr)

    def psnr(image: Tensor) -> float:
        return float(-10 * torch.log10(((image - real_hr) / 2).square().mean()))

    assert psnr(sr) == pytest.approx(psnr(floor), abs=0.05)
    assert psnr(floor) > psnr(enlarge(lr, 4)) + 1.0, "the projection is worth more than a decibel"
    assert not torch.equal(sr, floor)


def test_brightness_and_contrast_of_a_place_do_not_matter() -> None:
    model, lr = small().eval(), landscape(24, 24)
    with torch.no_grad():
        sr, changed = model(lr), model(3 * lr + 1.4)
    detail = (sr - D4.project(enlarge(lr, 4), lr)).abs().max()
    assert float((changed - (3 * sr + 1.4)).abs().max()) < 0.01 * float(detail)


def test_a_tile_has_the_local_contrast_of_the_scene() -> None:
    scene = landscape(96, 110)
    whole, tile = local_contrast(scene), local_contrast(scene[..., 10:90, 20:100])
    inner = slice(REACH, -REACH)
    for of_scene, of_tile in zip(whole, tile, strict=True):
        torch.testing.assert_close(of_tile[..., inner, inner], of_scene[..., 10:90, 20:100][..., inner, inner])
        assert not torch.allclose(of_tile[..., 0, :], of_scene[..., 10, 20:100], atol=1e-4), "the edge does differ"


def test_a_tile_with_its_margin_comes_out_as_in_the_scene() -> None:
    model, scene = small().requires_grad_(False), landscape(104, 100)
    for parameter in model.parameters():
        parameter.mul_(2)  # detail of about the size that training gives it
    whole = model(scene)[..., 160:240, 160:240]
    detail = (whole - enlarge(scene, 4)[..., 160:240, 160:240]).std()

    def off(context: int) -> float:
        inside, window = slice(4 * context, -4 * context), slice(40 - context, 60 + context)
        return float((model(scene[..., window, window])[..., inside, inside] - whole).abs().max() / detail)

    assert off(MARGIN) < 1e-3 < off(8)


def test_local_contrast_of_a_constant_and_of_dark_noise() -> None:
    flat = local_contrast(torch.full((1, 1, 9, 40), 0.5))
    assert float((flat.mean - 0.5).abs().max()) < 1e-6
    assert float(flat.std.max()) == pytest.approx(STD_FLOOR, rel=1e-3)
    torch.manual_seed(0)
    noise = 0.002 * torch.randn(1, 4, 64, 64) - 0.98  # reflectance 0.01 ± 0.001: clear water
    assert float(local_contrast(noise).normalise(noise).std()) < 0.5
    assert float(local_contrast(50 * noise).normalise(50 * noise).std()) == pytest.approx(1, abs=0.05)


def test_every_parameter_learns() -> None:
    model, judge = small(), Discriminator(4, 8)
    lr = landscape(16, 16)
    sr = model(lr)
    loss = (sr - torch.randn_like(sr)).square().mean() + judge(sr, lr).square().mean()
    loss.backward()
    for part in (model, judge):
        idle = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert idle == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_projection_stays_float32_under_autocast(dtype: torch.dtype) -> None:
    model, lr = small().requires_grad_(False), landscape(12, 12)
    with torch.autocast("cpu", dtype=dtype):
        sr = model(lr)
        judged = Discriminator(4, 8)(sr, lr)
    assert sr.dtype == torch.float32 and judged.dtype == dtype
    assert float((D4.degrade(sr) - lr).abs().max()) < 1e-5


def test_scale_and_bands_must_be_the_degradations() -> None:
    with pytest.raises(UserError, match="scale 2 and 4 bands .* scale 4 and 4 bands"):
        Generator(4, scale=2, degradation=D4, **SMALL)
    with pytest.raises(UserError, match="3 bands"):
        Generator(3, scale=4, degradation=D4, **SMALL)


def test_weights_go_into_a_file_and_back(tmp_path: Path) -> None:
    lr = landscape(8, 8)
    for make in (lambda: small(), lambda: Discriminator(4, 8), lambda: Discriminator(4, 8, "vgg")):
        torch.manual_seed(0)
        first = make()
        with torch.no_grad():
            for p in first.parameters():
                p.add_(0.1 * torch.randn_like(p))
        torch.save(first.state_dict(), tmp_path / "weights.pt")
        second = make()
        second.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        inputs = (lr,) if isinstance(first, Generator) else (enlarge(lr, 4), lr)
        with torch.no_grad():
            assert torch.equal(first.eval()(*inputs), second.eval()(*inputs))


def test_channels_last_gives_the_same() -> None:
    lr = landscape(12, 16)
    plain, turned = small(), small().to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(turned(lr.to(memory_format=torch.channels_last)), plain(lr), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["unet", "vgg"])
@pytest.mark.parametrize("size", [(32, 32), (40, 96)])
def test_logits_of_any_multiple_of_eight(kind: str, size: tuple[int, int]) -> None:
    judge = Discriminator(4, 8, kind)
    for scale in (2, 4, 8):
        logits = judge(torch.randn(2, 4, *size), torch.randn(2, 4, size[0] // scale, size[1] // scale))
        assert logits.shape == (2, 1, *(side if kind == "unet" else side // 8 for side in size))


def test_a_discriminator_says_what_it_cannot_take() -> None:
    judge = Discriminator(4, 8)
    for size in (24, 44):
        with pytest.raises(UserError, match=f"{size} x {size} pixels, expected"):
            judge(torch.randn(1, 4, size, size), torch.randn(1, 4, size // 4, size // 4))
    with pytest.raises(UserError, match="'patch', expected 'unet' or 'vgg'"):
        Discriminator(4, 8, "patch")


@pytest.mark.parametrize("kind", ["unet", "vgg"])
def test_spectral_norm_holds(kind: str) -> None:
    torch.manual_seed(0)
    judge, lr = Discriminator(4, 8, kind), landscape(8, 8)
    held = [m for m in judge.modules() if nn.utils.parametrize.is_parametrized(m)]
    convolutions = [m for m in judge.modules() if isinstance(m, nn.Conv2d)]
    assert len(held) == len(convolutions) - 2  # the first and the last are free
    with torch.no_grad():
        for module in held:
            module.parametrizations.weight.original.mul_(10 * torch.rand_like(module.parametrizations.weight.original))
        for _ in range(30):
            judge(enlarge(lr, 4), lr)
    for module in held:
        largest = torch.linalg.svdvals(module.weight.detach().flatten(1))[0]
        assert float(largest) == pytest.approx(1, abs=0.02)


def test_evaluation_changes_nothing() -> None:
    judge, lr = Discriminator(4, 8).eval(), landscape(8, 8)
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(judge(enlarge(lr, 4), lr), judge(enlarge(lr, 4), lr))
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())


def test_a_discriminator_does_not_see_brightness_or_contrast() -> None:
    torch.manual_seed(0)
    judge, lr = Discriminator(4, 8).eval(), landscape(12, 12)
    image = enlarge(lr, 4) + 0.02 * torch.randn(2, 4, 48, 48)
    with torch.no_grad():
        logits, changed = judge(image, lr), judge(3 * image + 1.4, 3 * lr + 1.4)
    assert float((changed - logits).abs().max()) < 0.02 * float(logits.std())
