"""The degradation against a plain blur and least squares, and its projection on real patches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from scipy.ndimage import correlate1d
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.core.errors import UserError
from nbhelpers.science import degradation
from nbhelpers.science.degradation import Degradation, blur_and_decimate

SIZES = [(2, 7, 12), (4, 8, 8), (4, 5, 11), (4, 1, 30), (8, 6, 3), (8, 4, 4)]  # scale, LR rows, LR columns
FOUR = Degradation(4, (0.3,) * 4)


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def least_norm(d: Degradation, y: Tensor) -> Tensor:
    """D⁺ y of one band by conjugate gradients on D Dᵀ, which know of D and Dᵀ alone."""

    def normal(flat: np.ndarray) -> np.ndarray:
        return d.degrade(d.adjoint(torch.from_numpy(flat).view(y.shape))).numpy().ravel()

    solution, failed = cg(LinearOperator((y.numel(), y.numel()), normal), y.numpy().ravel(), rtol=1e-12, maxiter=1000)
    assert not failed
    return d.adjoint(torch.from_numpy(solution).view(y.shape))


@pytest.fixture(scope="module")
def patches(real_data: Path) -> Tensor:
    """``(B, 4, 120, 120)`` reflectance of real patches."""
    folders = sorted((real_data / "bigearthnet/BigEarthNet-S2").iterdir())
    read = []
    for folder in folders:
        names = [folder / f"{folder.name}_{band}.tif" for band in ("B02", "B03", "B04", "B08")]
        read.append(np.stack([rasterio.open(name).read(1) for name in names]))
    return torch.from_numpy(np.stack(read).astype(np.float32) / 1e4)


def psnr(prediction: Tensor, truth: Tensor) -> float:
    """Mean over patches and bands, 4 pixels of border left out."""
    errors = (prediction - truth)[..., 4:-4, 4:-4].square().mean((-2, -1))
    return float(-10 * errors.log10().mean())


@pytest.mark.parametrize(
    ("scale", "mtf", "sigma"), [(4, 0.3, 1.976), (2, 0.3, 0.988), (8, 0.3, 3.952), (4, 0.2, 2.284)]
)
def test_the_blur_has_the_mtf_asked_for(scale: int, mtf: float, sigma: float) -> None:
    assert Degradation(scale, (mtf,)).sigmas[0] == pytest.approx(sigma, abs=5e-4)
    n = 64 * scale
    middle = blur_and_decimate(64, scale, Degradation(scale, (mtf,)).sigmas[0])[32]
    frequency = 1 / (2 * scale)
    response = np.abs(np.sum(middle * np.exp(-2j * np.pi * frequency * np.arange(n))))
    assert response == pytest.approx(mtf, abs=1e-3)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_every_mtf_that_is_let_in_is_met(scale: int) -> None:
    for mtf in (degradation.LOWEST_MTF, 0.1, 0.3, 0.5, degradation.HIGHEST_MTF[scale]):
        (sigma,) = Degradation(scale, (mtf,)).sigmas
        middle = blur_and_decimate(64, scale, sigma)[32]
        response = np.abs(np.sum(middle * np.exp(-1j * np.pi / scale * np.arange(len(middle)))))
        assert response == pytest.approx(mtf, abs=0.01)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_lr_pixels_are_centred_on_their_blocks(scale: int) -> None:
    n = 32 * scale
    row, column = torch.arange(n).double(), 3 * torch.arange(n).double()
    seen = Degradation(scale, (0.3,)).degrade((row[:, None] + column)[None])[0]
    centres = scale * torch.arange(32).double() + (scale - 1) / 2
    inside = slice(4, -4)  # beyond an edge the ramp turns
    expected = centres[:, None] + 3 * centres
    torch.testing.assert_close(seen[inside, inside], expected[inside, inside], rtol=0, atol=1e-9)


def test_an_odd_kernel_would_shift_and_look_two_db_worse(patches: Tensor) -> None:
    taps = np.arange(-8, 9)
    kernel = np.exp(-0.5 * (taps / 1.976) ** 2)

    def odd(x: np.ndarray) -> np.ndarray:
        for axis in (-1, -2):
            x = correlate1d(x, kernel / kernel.sum(), axis=axis, mode="reflect")
        return x[..., ::4, ::4]

    ramp = np.tile(np.arange(128.0), (128, 1))
    shift = 4 * np.arange(32) + 1.5 - odd(ramp)[16]
    np.testing.assert_allclose(shift[4:-4], 1.5, atol=1e-9)

    lr = torch.from_numpy(odd(patches.numpy()))
    shifted, centred = (
        psnr(F.interpolate(low, scale_factor=4, mode="bicubic"), patches) for low in (lr, FOUR.degrade(patches))
    )
    assert 1.5 < centred - shifted < 4


@pytest.mark.parametrize(("scale", "h", "w"), [(2, 20, 9), (4, 7, 16), (8, 5, 6)])
def test_degrading_is_a_symmetric_blur_and_every_sth_pixel(scale: int, h: int, w: int) -> None:
    x = image(3, h * scale, w * scale, dtype=torch.float64)
    d = Degradation(scale, (0.3,) * 3)
    half = math.ceil(4 * d.sigmas[0])
    kernel = np.exp(-0.5 * ((np.arange(2 * half) - half + 0.5) / d.sigmas[0]) ** 2)
    blurred = x.numpy()
    for axis in (-1, -2):  # SciPy centres an even kernel between pixels i − 1 and i
        blurred = correlate1d(blurred, kernel / kernel.sum(), axis=axis, mode="reflect")
    expected = blurred[..., scale // 2 :: scale, scale // 2 :: scale]
    np.testing.assert_allclose(d.degrade(x).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(("scale", "h", "w"), SIZES)
def test_constants_stay(scale: int, h: int, w: int) -> None:
    d = Degradation(scale, (0.3, 0.2))
    constant = torch.full((2, h * scale, w * scale), 0.7)
    assert (d.degrade(constant) - 0.7).abs().max() < 1e-6
    assert (d.project(constant, torch.full((2, h, w), 0.7)) - 0.7).abs().max() < 1e-6


@pytest.mark.parametrize(("scale", "h", "w"), SIZES)
def test_the_adjoint(scale: int, h: int, w: int) -> None:
    d = Degradation(scale, (0.3, 0.2))
    x, y = image(2, h * scale, w * scale, dtype=torch.float64), image(2, h, w, seed=1, dtype=torch.float64)
    assert float((d.degrade(x) * y).sum()) == pytest.approx(float((x * d.adjoint(y)).sum()), rel=1e-12)


@pytest.mark.parametrize(("scale", "h", "w"), SIZES)
@pytest.mark.parametrize("mtf", [0.15, 0.3, 0.5])
def test_the_pseudo_inverse_undoes_in_float32(scale: int, h: int, w: int, mtf: float) -> None:
    d = Degradation(scale, (mtf,))
    y = image(3, 1, h, w)
    assert (d.degrade(d.pseudo_inverse(y)) - y).abs().max() < 1e-6


@pytest.mark.parametrize(("scale", "h", "w"), SIZES)
def test_the_pseudo_inverse_is_that_of_conjugate_gradients(scale: int, h: int, w: int) -> None:
    d = Degradation(scale, (0.3,))
    y = image(1, h, w, dtype=torch.float64)
    torch.testing.assert_close(d.pseudo_inverse(y), least_norm(d, y), rtol=0, atol=1e-9)


def test_the_projection_is_consistent_and_least() -> None:
    x, lr = image(2, 4, 48, 64), image(2, 4, 12, 16, seed=1)
    projected = FOUR.project(x, lr)
    assert (FOUR.degrade(projected) - lr).abs().max() < 2e-6
    torch.testing.assert_close(FOUR.project(projected, lr), projected, rtol=0, atol=1e-5)
    other = projected.double() + (lambda v: v - FOUR.pseudo_inverse(FOUR.degrade(v)))(image(2, 4, 48, 64).double())
    assert (FOUR.degrade(other) - lr).abs().max() < 2e-6  # it is consistent too,
    moved = (projected - x).double()
    assert abs(float((moved * (other - projected)).sum())) < 1e-3  # and lies at a right angle to the way to ours


@pytest.mark.parametrize("units", [(1e4, 0.0), (2.0, -1.0)])
def test_units_do_not_matter(units: tuple[float, float]) -> None:
    a, b = units
    x, lr = image(4, 32, 32, dtype=torch.float64), image(4, 8, 8, seed=1, dtype=torch.float64)
    torch.testing.assert_close(FOUR.project(a * x + b, a * lr + b), a * FOUR.project(x, lr) + b)


@pytest.mark.parametrize(("mtf", "side"), [(0.3, 300), (0.1, 260), (0.02, 400)])
def test_long_axes_come_in_pieces_that_make_the_whole(mtf: float, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    d = Degradation(2, (mtf,))
    x, y = image(1, 2 * side, 8, dtype=torch.float64), image(1, side, 4, dtype=torch.float64)
    pieces = d.degrade(x), d.adjoint(y), d.pseudo_inverse(y), d.degrade(x.mT), d.pseudo_inverse(y.mT)
    monkeypatch.setattr(degradation, "PIECE", 10**6)
    whole = d.degrade(x), d.adjoint(y), d.pseudo_inverse(y), d.degrade(x.mT), d.pseudo_inverse(y.mT)
    for piece, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(piece, expected, rtol=0, atol=2e-7)


def test_each_band_has_its_own_mtf() -> None:
    d = Degradation(4, (0.3, 0.3, 0.15, 0.3))
    x, y = image(2, 4, 32, 40), image(2, 4, 8, 10)
    for found, one in ((d.degrade(x), "degrade"), (d.adjoint(y), "adjoint"), (d.pseudo_inverse(y), "pseudo_inverse")):
        given = x if one == "degrade" else y
        for band, mtf in enumerate(d.mtf):
            expected = getattr(Degradation(4, (mtf,)), one)(given[:, band, None])
            torch.testing.assert_close(found[:, band, None], expected)
    assert (d.degrade(x)[:, 2] - FOUR.degrade(x)[:, 2]).abs().max() > 0.01


def test_gradients() -> None:
    d = Degradation(2, (0.3, 0.2))
    x = image(1, 2, 6, 8, dtype=torch.float64).requires_grad_()
    lr = image(1, 2, 3, 4, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(d.project, (x, lr))
    assert torch.autograd.gradcheck(lambda v: d.project_nonnegative(v, lr.detach(), floor=0.2, rounds=3)[0], x)


def test_float32_inside_autocast_and_matrices_from_inference_serve_training() -> None:
    degradation._matrix.cache_clear()
    x, lr = image(1, 4, 32, 32), image(1, 4, 8, 8, seed=1)
    with torch.inference_mode():
        expected = FOUR.project(x, lr)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = FOUR.project(x.requires_grad_(), lr)
    assert found.dtype == torch.float32
    assert torch.equal(found.detach(), expected)
    found.sum().backward()
    assert FOUR.project(x.detach().bfloat16(), lr.bfloat16()).dtype == torch.float32


def test_a_nonnegative_image_that_explains_is_found() -> None:
    truth = (image(2, 4, 64, 64) - 0.3).clamp(min=0)  # a third lies on the floor
    lr = FOUR.degrade(truth)
    start = F.interpolate(lr, scale_factor=4, mode="bicubic")
    assert FOUR.project(start, lr).min() < -0.005
    found, residual = FOUR.project_nonnegative(start, lr, floor=0.0, rounds=7)
    assert found.min() == 0.0
    assert residual.shape == (2,)
    assert residual.max() <= 1e-5
    torch.testing.assert_close(residual, (FOUR.degrade(found) - lr).abs().amax((1, 2, 3)))


def test_it_is_the_nearest_such_image() -> None:
    """Optimality: what still separates it from the start is D⁺ of something where it lies above the floor, and more
    below: no step towards another image that explains, like the truth, comes nearer to the start."""
    truth = (image(1, 1, 32, 32, dtype=torch.float64) - 0.3).clamp(min=0)
    one = Degradation(4, (0.3,))
    start, lr = truth + 0.2 * image(1, 1, 32, 32, seed=1, dtype=torch.float64) - 0.15, one.degrade(truth)
    found, residual = one.project_nonnegative(start, lr, floor=0.0, rounds=2000, tolerance=1e-9)
    assert residual.max() < 1e-7
    assert float(((start - found) * (truth - found)).sum()) < 1e-5
    in_turns = start
    for _ in range(300):
        in_turns = one.project(in_turns, lr).clamp(min=0)
    assert (found - start).norm() < (in_turns - start).norm()


def test_twenty_rounds_leave_less_than_projecting_and_clamping_in_turns(patches: Tensor) -> None:
    dark = (patches - patches.flatten(2).quantile(0.2, -1)[..., None, None]).clamp(min=0)
    lr = FOUR.degrade(dark)
    in_turns = start = F.interpolate(lr, scale_factor=4, mode="bicubic")
    for _ in range(20):
        in_turns = FOUR.project(in_turns, lr).clamp(min=0)
    _, residual = FOUR.project_nonnegative(start, lr, floor=0.0)
    assert (residual < 0.75 * (FOUR.degrade(in_turns) - lr).abs().amax((1, 2, 3))).all()


def test_twenty_rounds_explain_real_patches(patches: Tensor) -> None:
    lr = FOUR.degrade(patches)
    start = F.interpolate(lr, scale_factor=4, mode="bicubic")
    assert FOUR.project(start, lr).min() < -0.01
    found, residual = FOUR.project_nonnegative(start, lr, floor=0.0, tolerance=1e-6)
    assert found.min() >= 0
    assert residual.max() <= 1e-6  # 1e-5 without restarts


def test_what_no_nonnegative_image_explains_leaves_a_residual_in_its_sample_alone() -> None:
    lr = FOUR.degrade(image(2, 4, 64, 64) * 0.5 + 0.2)
    lr[1, 2, 7, 7] = -0.05
    found, residual = FOUR.project_nonnegative(F.interpolate(lr, scale_factor=4), lr, floor=0.0)
    assert found.min() >= 0
    assert residual[0] <= 1e-5
    assert 0.05 < residual[1] < 0.2


def test_an_image_that_is_fine_is_left_as_it_is_and_the_floor_holds_without_rounds() -> None:
    x = image(1, 4, 32, 32)
    found, residual = FOUR.project_nonnegative(x, FOUR.degrade(x), floor=0.0)
    assert torch.equal(found, x)
    assert residual.max() < 1e-6
    assert FOUR.project_nonnegative(x - 1, FOUR.degrade(x), floor=-0.4, rounds=0)[0].min() == pytest.approx(-0.4)


def test_a_scene_is_projected_in_place_band_by_band() -> None:
    d = Degradation(4, (0.3, 0.2))
    x, lr = image(2, 600, 560) - 0.1, image(2, 150, 140, seed=1)
    expected = [d.project_nonnegative(x[None], lr[None], floor=-0.05)[0][0]]
    scene = x.clone()
    residual = d.project_scene(scene, lr, floor=-0.05)
    assert residual.shape == (2,)
    torch.testing.assert_close(scene, expected[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(residual, (d.degrade(scene) - lr).abs().amax((1, 2)))


def test_noise_comes_from_its_own_generator_in_the_unit_of_the_images() -> None:
    lr = image(4, 4, 64, 64)
    noisy = Degradation(4, (0.3,) * 4, noise=0.01)
    drawn = [noisy.add_noise(lr, torch.Generator().manual_seed(seed)) - lr for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert float(drawn[0].std()) == pytest.approx(0.01, rel=0.02)
    assert FOUR.add_noise(lr, torch.Generator()) is lr


def test_bicubic_and_projection_beats_bicubic_on_real_patches(patches: Tensor) -> None:
    lr = FOUR.degrade(patches)
    bicubic = F.interpolate(lr, scale_factor=4, mode="bicubic")
    projected = FOUR.project(bicubic, lr)
    assert (FOUR.degrade(projected) - lr).abs().max() < 1e-6
    for one, other, truth in zip(projected, bicubic, patches, strict=True):
        assert psnr(one, truth) > psnr(other, truth) + 1


def test_mistakes_are_named() -> None:
    for mtf in ((), (0.0,), (1.0,), (0.3, -0.2), (0.01,), (0.95,)):
        with pytest.raises(UserError, match=r"from 0\.02 to 0\.9 at scale 4"):
            Degradation(4, mtf)
    with pytest.raises(UserError, match="scale 3"):
        Degradation(3, (0.3,))
    with pytest.raises(UserError, match=r"noise .* is -1"):
        Degradation(4, (0.3,), noise=-1)
    with pytest.raises(UserError, match="30 x 32 pixels has no whole blocks of 4 x 4"):
        FOUR.degrade(torch.zeros(4, 30, 32))
    with pytest.raises(UserError, match=r"\(3, 32, 32\) met a degradation with the MTF of 4 bands"):
        FOUR.degrade(torch.zeros(3, 32, 32))
    with pytest.raises(UserError, match="32 x 32 pixels met an LR image of 8 x 9, expected 8 x 8"):
        FOUR.project(torch.zeros(4, 32, 32), torch.zeros(4, 8, 9))
