"""Enlargements beside PyTorch's and Pillow's, and the linear filter on worlds it can and cannot learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.core.errors import UserError
from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution.baselines import LinearFilter, bicubic, lanczos, projected

FOUR = Degradation(4, (0.3,) * 4)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def by_pillow(lr: Tensor, scale: int, kernel: Image.Resampling) -> Tensor:
    size = (lr.shape[-1] * scale, lr.shape[-2] * scale)
    planes = [np.asarray(Image.fromarray(plane.numpy()).resize(size, kernel)) for plane in lr.flatten(0, 1)]
    return torch.from_numpy(np.stack(planes)).view(*lr.shape[:2], size[1], size[0])


@pytest.fixture(scope="module")
def places(real_data: Path) -> dict[str, Tensor]:
    """``(B, 4, H, W)`` reflectance of real patches by place."""
    found = {}
    for folder in sorted((real_data / "bigearthnet/BigEarthNet-S2").iterdir()):
        names = [folder / f"{folder.name}_{band}.tif" for band in ("B02", "B03", "B04", "B08")]
        patch = np.stack([rasterio.open(name).read(1) for name in names])[None]
        pass_over = "_".join(folder.name.split("_")[:3])
        found[pass_over] = np.concatenate((found[pass_over], patch)) if pass_over in found else patch
    for name in sorted((real_data / "s1s2_tiles/S2L2A").iterdir()):
        found[name.stem] = rasterio.open(name).read([2, 3, 4, 8])[None]
    return {place: torch.from_numpy(patches.astype(np.float32) / 1e4) for place, patches in found.items()}


def psnr(prediction: Tensor, truth: Tensor) -> float:
    """Mean over patches and bands, 4 pixels of border left out."""
    errors = (prediction - truth)[..., 4:-4, 4:-4].square().mean((-2, -1))
    return float(-10 * errors.log10().mean())


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_kernels_are_those_of_the_libraries(scale: int) -> None:
    lr = image(2, 3, 9, 14)
    torch.testing.assert_close(
        bicubic(lr, scale), F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)
    )
    keys = by_pillow(lr, scale, Image.Resampling.BICUBIC)
    torch.testing.assert_close(bicubic(lr, scale, a=-0.5), keys, rtol=0, atol=2e-6)
    inside = (..., slice(3 * scale, -3 * scale), slice(3 * scale, -3 * scale))
    windowed = by_pillow(lr, scale, Image.Resampling.LANCZOS)
    torch.testing.assert_close(lanczos(lr, scale)[inside], windowed[inside], rtol=0, atol=2e-6)
    assert (bicubic(lr, scale) - keys).abs().max() > 0.01


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_beyond_an_edge_lanczos_sees_the_mirrored_image(scale: int) -> None:
    lr = image(1, 2, 7, 5)
    torch.testing.assert_close(lanczos(lr.flip(-1), scale), lanczos(lr, scale).flip(-1))
    mirrored = torch.cat((lr.flip(-1), lr, lr.flip(-1)), -1)
    width = lr.shape[-1] * scale
    torch.testing.assert_close(lanczos(mirrored, scale)[..., width:-width], lanczos(lr, scale))
    assert (lanczos(torch.full((1, 1, 4, 4), 0.3), scale) - 0.3).abs().max() < 1e-6


def test_the_two_bicubic_kernels_and_lanczos_on_real_patches(places: dict[str, Tensor]) -> None:
    for truth in places.values():
        lr = FOUR.degrade(truth)
        enlarged = bicubic(lr, 4), bicubic(lr, 4, a=-0.5), lanczos(lr, 4)
        sharp, soft, windowed = (psnr(one, truth) for one in enlarged)
        assert 0.08 < sharp - soft < 0.35
        assert 0.03 < windowed - sharp < 0.15


def test_a_linear_world_is_learnt_exactly() -> None:
    """HR pixels that are a fixed sum of LR pixels, symmetric as the fit takes the land to be."""
    pairs = [(lr, lanczos(lr, 2)) for lr in (image(4, 2, 24, 20, seed=seed) for seed in range(3))]
    fitted = LinearFilter.fit(pairs, size=7, ridge=1e-12)
    lr = image(1, 2, 11, 13, seed=9)
    torch.testing.assert_close(fitted(lr), lanczos(lr, 2), rtol=0, atol=1e-5)
    small = LinearFilter.fit(pairs, size=3)
    assert (small(lr) - lanczos(lr, 2)).abs().max() > 0.01


def test_the_fit_is_that_of_least_squares_over_all_views() -> None:
    lr, hr = image(2, 1, 6, 7).double(), image(2, 1, 12, 14, seed=1).double()
    fitted = LinearFilter.fit([(lr, hr)], size=3, ridge=1e-3)
    rows, targets = [], []
    for turn in range(4):
        for mirror in (False, True):
            low, high = (t.rot90(turn, (-2, -1)).flip(-1) if mirror else t.rot90(turn, (-2, -1)) for t in (lr, hr))
            for b in range(2):
                padded = np.pad(low[b, 0].numpy(), 1, mode="symmetric")
                for i, j in np.ndindex(low.shape[-2:]):
                    near = padded[i : i + 3, j : j + 3].ravel()
                    rows.append(near - near.mean())
                    targets.append(high[b, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].numpy().ravel() - near.mean())
    p, y = np.array(rows).T, np.array(targets).T
    gram = p @ p.T
    w = y @ p.T @ np.linalg.inv(gram + 1e-3 * np.trace(gram) / 9 * np.eye(9))
    expected = w - w.mean(1, keepdims=True) + 1 / 9
    np.testing.assert_allclose(fitted.weight.flatten(1).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_brightness_and_units_do_not_matter() -> None:
    pairs = [(FOUR.degrade(hr), hr) for hr in (image(2, 4, 64, 64, seed=seed).double() for seed in range(2))]
    fitted = LinearFilter.fit(pairs)
    lr = image(1, 4, 12, 12, seed=5)
    torch.testing.assert_close(fitted(lr + 3), fitted(lr) + 3, rtol=0, atol=1e-5)
    torch.testing.assert_close(fitted(torch.ones(1, 4, 8, 8)), torch.ones(1, 4, 32, 32))
    in_numbers = LinearFilter.fit([(1e4 * low, 1e4 * high) for low, high in pairs])
    torch.testing.assert_close(in_numbers.weight, fitted.weight)
    constant = LinearFilter.fit([(torch.ones(1, 4, 8, 8), torch.ones(1, 4, 32, 32))])
    torch.testing.assert_close(constant(lr).mean(), lr.mean(), rtol=0, atol=0.02)  # the mean of what is near


def test_each_band_has_a_filter_of_its_own() -> None:
    lr = image(3, 2, 16, 16)
    hr = torch.cat((lanczos(lr[:, :1], 2), F.interpolate(lr[:, 1:], scale_factor=2)), 1)
    torch.testing.assert_close(LinearFilter.fit([(lr, hr)], size=7, ridge=1e-12)(lr), hr, rtol=0, atol=1e-5)


def test_batches_may_come_from_a_generator_in_any_cut() -> None:
    hr = image(6, 4, 32, 32)
    lr = FOUR.degrade(hr)
    whole = LinearFilter.fit([(lr, hr)])
    cut = LinearFilter.fit((low, high) for low, high in zip(lr.split(2), hr.split(2), strict=True))
    torch.testing.assert_close(cut.weight, whole.weight)


def test_on_real_places_that_it_has_not_seen(places: dict[str, Tensor]) -> None:
    pairs = {place: (FOUR.degrade(truth), truth) for place, truth in places.items()}
    gains = {"projected bicubic": [], "filter": [], "small filter": [], "projected filter": []}
    for place, (lr, truth) in pairs.items():
        seen = [pair for other, pair in pairs.items() if other != place]
        base = psnr(bicubic(lr, 4), truth)
        fitted = LinearFilter.fit(seen)
        gains["projected bicubic"].append(psnr(projected(lambda low: bicubic(low, 4), FOUR)(lr), truth) - base)
        gains["small filter"].append(psnr(LinearFilter.fit(seen, size=5)(lr), truth) - base)
        gains["filter"].append(psnr(fitted(lr), truth) - base)
        gains["projected filter"].append(psnr(projected(fitted, FOUR)(lr), truth) - base)
        assert (FOUR.degrade(projected(fitted, FOUR)(lr)) - lr).abs().max() < 1e-6
    assert min(map(min, gains.values())) > 1.0
    means = {name: float(np.mean(values)) for name, values in gains.items()}
    assert means["filter"] > means["small filter"] + 0.05
    assert means["projected filter"] > means["projected bicubic"] + 0.03
    assert means["projected filter"] >= means["filter"]


def test_half_precision_is_computed_in_float32() -> None:
    lr = image(1, 4, 8, 8)
    fitted = LinearFilter.fit([(image(1, 4, 8, 8), image(1, 4, 32, 32))], size=3)
    expected = fitted(lr), lanczos(lr, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fitted(lr), lanczos(lr, 4)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_mistakes_are_named() -> None:
    lr, hr = torch.rand(1, 4, 8, 8), torch.rand(1, 4, 32, 32)
    with pytest.raises(UserError, match="no pairs"):
        LinearFilter.fit([])
    with pytest.raises(UserError, match="size=4 has no middle"):
        LinearFilter.fit([(lr, hr)], size=4)
    with pytest.raises(UserError, match=r"\(1, 4, 8, 8\) with an HR batch of \(1, 4, 32, 31\)"):
        LinearFilter.fit([(lr, hr[..., :-1])])
    with pytest.raises(UserError, match=r"\(1, 4, 32, 32\) with an HR batch of \(1, 4, 8, 8\)"):
        LinearFilter.fit([(hr, lr)])
    with pytest.raises(UserError, match=r"fitted to 4 bands met an LR batch of \(1, 3, 8, 8\)"):
        LinearFilter.fit([(lr, hr)])(lr[:, :3])
    with pytest.raises(UserError, match=r"a=-0\.6"):
        bicubic(lr, 4, a=-0.6)
