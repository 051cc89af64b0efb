"""The five terms of the grounding stage: closed forms, bounds, gradients, and that none of them drowns the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.science.perceptual import Lpips
from nbhelpers.science.sar_agreement import agreement, optical_edges, sar_edges
from nbhelpers.stages.sar_grounding import confidence as confidences
from nbhelpers.stages.sar_grounding.confidence import backscatter_weight, sar_confidence
from nbhelpers.stages.sar_grounding.losses import (
    KNEE,
    cycle_error,
    identity_error,
    lpips_error,
    picture,
    sar_consistency,
    spectral_error,
)
from nbhelpers.stages.sar_grounding.radar import speckled

UNIT = torch.tensor([0.05, 0.06, 0.08, 0.13])[:, None, None]  # reflectance, as the bands of real tiles vary
WEIGHTS = {"sar": 1.0, "cycle": 0.5, "identity": 0.3, "lpips": 0.1, "spectral": 1.0}


def parcels(seed: int, *, scale: float = 7.0, size: int = 96) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), scale)
    return np.digitize(field / field.std(), [-1.0, -0.3, 0.3, 1.0])


def pair(seed: int, *, looks: float = 4.4) -> tuple[Tensor, Tensor]:
    """``(1, 2, H, W)`` dB and ``(1, 4, H, W)`` reflectance of the same parcels."""
    rng, kinds = np.random.default_rng(seed), parcels(seed)
    db = np.array([[-20, -9, -13, -16, -7], [-27, -15, -20, -22, -13]])[:, kinds]
    db = db + 10 * np.log10(rng.gamma(looks, 1 / looks, db.shape))
    optical = np.array([[0.03, 0.04, 0.1, 0.07, 0.2], [0.04, 0.07, 0.12, 0.1, 0.2],
                        [0.03, 0.04, 0.16, 0.1, 0.22], [0.02, 0.35, 0.25, 0.3, 0.26]])[:, kinds]  # fmt: skip
    optical = optical + 0.003 * rng.normal(size=optical.shape)
    return torch.from_numpy(db).float()[None], torch.from_numpy(optical).float()[None]


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    torch.manual_seed(0)
    return Lpips("squeeze", "random")


def five(lpips: Lpips, s1: Tensor, opt_v2: Tensor, truth: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "sar": sar_consistency(s1),
        "cycle": cycle_error(opt_v2, UNIT),
        "identity": identity_error(opt_v2, UNIT, sar_confidence(s1)),
        "lpips": lpips_error(lpips, truth),
        "spectral": spectral_error(truth, UNIT),
    }


def gradient(loss: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    image = image.clone().requires_grad_()
    return torch.autograd.grad(loss(image), image)[0]


# --- SAR consistency ------------------------------------------------------------------------------------------------


def test_sar_consistency_is_low_for_the_same_ground_one_by_chance_and_bounded() -> None:
    own, other, wild = [], [], []
    for seed in range(5):
        s1, truth = pair(seed)
        consistency = sar_consistency(s1)
        own.append(float(consistency(truth)))
        other += [float(consistency(pair(seed + k)[1])) for k in (20, 30, 40)]
        wild += [float(consistency(x * truth)) for x in (1e3, 1e-3, -1.0)]
    assert max(own) < 0.55 and np.mean(other) == pytest.approx(1, abs=0.08) and min(other) > 0.7
    assert all(0 <= value <= 2 for value in own + other + wild)


def test_without_speckle_the_sars_own_structure_costs_next_to_nothing() -> None:
    contrast = torch.from_numpy(ndimage.gaussian_filter(parcels(1).astype(float), 1)).float()
    s1 = (contrast - 14).expand(1, 2, -1, -1)
    optical = (0.02 * contrast + 0.2).expand(1, 4, -1, -1)
    assert float(sar_consistency(s1)(optical)) < 0.1


def test_going_down_the_loss_goes_up_in_agreement() -> None:
    s1, truth = pair(2)
    image = ndimage.gaussian_filter(pair(50)[1].numpy(), (0, 0, 2, 2))
    refined, consistency, sar = torch.from_numpy(image), sar_consistency(s1), sar_edges(s1)
    before = float(agreement(sar, optical_edges(refined)).score)
    for _ in range(12):
        refined = refined - 0.006 * gradient(consistency, refined).sign()
    assert float(agreement(sar, optical_edges(refined)).score) > before + 0.1


def test_dark_ground_weighs_less() -> None:
    torch.testing.assert_close(
        backscatter_weight(torch.full((1, 2, 3, 3), confidences.NOISE_DB)), torch.full((1, 3, 3), 0.5)
    )
    levels = torch.tensor([-35.0, -22.0, -10.0]).expand(1, 2, 1, 3)
    power = 10 ** (levels[0, 0, 0] / 10)
    torch.testing.assert_close(backscatter_weight(levels)[0, 0], power / (power + 10 ** (confidences.NOISE_DB / 10)))
    s1, truth = pair(3)
    dark = s1.clone()
    dark[..., 48:] -= 25.0  # the same structure below the radar's noise
    broken = truth.clone()
    broken[..., 60:] = pair(60)[1][..., 60:]
    lost = [float(sar_consistency(x)(broken) - sar_consistency(x)(truth)) for x in (s1, dark)]
    assert lost[1] < 0.6 * lost[0]


def test_a_tile_without_sar_costs_one_and_teaches_nothing() -> None:
    s1, truth = pair(4)
    consistency = sar_consistency(torch.full_like(s1, torch.nan))
    assert float(consistency(truth)) == pytest.approx(1, abs=1e-6) and not gradient(consistency, truth).any()
    half = s1.clone()
    half[..., :48] = torch.nan
    slope = gradient(sar_consistency(half), truth)
    assert slope.isfinite().all() and slope[..., :40].abs().max() < 1e-6 * slope.abs().max()


def test_small_tiles_are_named() -> None:
    with pytest.raises(UserError, match="at least 42 pixels"):
        sar_consistency(torch.full((1, 2, 32, 32), -10.0))


# --- confidence -----------------------------------------------------------------------------------------------------


def seen(db: np.ndarray, seed: int) -> Tensor:
    """``(1, 2, H, W)``: ground of given backscatter as the radar sees it, neighbouring pixels correlated."""
    rng = np.random.default_rng(seed)
    power = np.float32(10 ** (db / 10))
    return torch.from_numpy(10 * np.log10(np.stack([speckled(power, rng) for _ in range(2)])))[None]


def local_variance(db: np.ndarray) -> np.ndarray:
    centred = db - db.mean()
    mean, square = (ndimage.gaussian_filter(x, confidences.WINDOW, truncate=5) for x in (centred, centred**2))
    return np.maximum(square - mean**2, 0)


def test_confidence_in_speckle_is_next_to_none() -> None:
    flat = seen(np.full((112, 112), -12.0), 0)
    assert float(sar_confidence(flat).mean()) < 0.12
    torch.testing.assert_close(sar_confidence(flat - 9), sar_confidence(flat), atol=1e-3, rtol=0)
    assert not sar_confidence(torch.full((1, 2, 60, 60), -12.0)).any()


def test_confidence_is_the_share_of_the_variance_that_is_structure() -> None:
    speckle = local_variance(seen(np.full((128, 128), -12.0), 0)[0, 0].double().numpy()).mean()
    found, true = [], []
    for seed, (scale, contrast) in enumerate((s, c) for s in (6.0, 9.0, 14.0) for c in (1.0, 0.5)):
        db = contrast * np.array([-18.0, -14.0, -11.0, -8.0, -5.0])[parcels(seed, scale=scale, size=128)]
        found.append(sar_confidence(seen(db, seed))[0].numpy().ravel())
        blurred = 10 * np.log10(ndimage.gaussian_filter(10 ** (db / 10), math.sqrt(0.5)))  # as fine as the radar sees
        structure = local_variance(blurred)
        true.append((structure / (structure + speckle)).ravel())
    c, t = np.concatenate(found), np.concatenate(true)
    assert c.mean() == pytest.approx(t.mean(), abs=0.05) and np.corrcoef(c, t)[0, 1] > 0.7
    for low in (0.0, 0.2, 0.4, 0.6):
        inside = (c >= low) & (c < low + 0.2)
        assert inside.sum() > 300 and c[inside].mean() == pytest.approx(t[inside].mean(), abs=0.15), low


def test_confidence_has_no_say_where_nothing_was_measured() -> None:
    s1, _ = pair(5)
    s1[0, 1, :, :50] = torch.nan  # VH alone
    found = sar_confidence(s1)
    assert found.isfinite().all() and not found[..., :50].any() and found[..., 60:].mean() > 0.1
    assert (found >= 0).all() and (found < 1).all()
    assert not sar_confidence(torch.full_like(s1, torch.nan)).any()


# --- the other four -------------------------------------------------------------------------------------------------


def test_cycle_and_identity_have_their_closed_forms() -> None:
    _, v2 = pair(6)
    for steps in (0.0, 0.05, 3.0):
        expected = math.sqrt(steps**2 + KNEE**2) - KNEE
        moved = v2 - steps * UNIT
        assert float(cycle_error(v2, UNIT)(moved)) == pytest.approx(expected, abs=1e-5)
        for c in (0.0, 0.25, 1.0):
            certain = torch.full((1, 96, 96), c)
            assert float(identity_error(v2, UNIT, certain)(moved)) == pytest.approx((1 - c) * expected, abs=1e-5)
    assert not gradient(cycle_error(v2, UNIT), v2).any()  # smooth where a residual model starts


def test_what_the_input_lacks_is_not_asked_for() -> None:
    _, v2 = pair(6)
    valid = torch.ones(1, 96, 96, dtype=torch.bool)
    valid[:, :30] = False
    gaps, c = torch.where(valid[:, None], v2, torch.nan), torch.full((1, 96, 96), 0.25)
    expected = math.sqrt(9 + KNEE**2) - KNEE
    for loss, share in ((cycle_error(gaps, UNIT, valid), 1.0), (identity_error(gaps, UNIT, c, valid), 0.75)):
        assert float(loss(v2 + 3 * UNIT)) == pytest.approx(share * expected, abs=1e-5)
        slope = gradient(loss, v2 + 3 * UNIT)
        assert slope.isfinite().all() and not slope[:, :, :30].any() and (slope[:, :, 30:] > 0).all()


def test_identity_keeps_what_the_sar_cannot_see() -> None:
    _, v2 = pair(7)
    c = torch.zeros(1, 96, 96)
    c[..., :48] = 1.0
    slope = gradient(identity_error(v2, UNIT, c), v2 + 0.1)
    assert not slope[..., :48].any() and (slope[..., 48:] > 0).all()


def test_the_spectral_term_is_the_mean_absolute_error_in_its_unit_over_what_was_measured() -> None:
    _, truth = pair(8)
    assert float(spectral_error(truth, UNIT)(truth + 0.5 * UNIT)) == pytest.approx(0.5, abs=1e-5)
    valid = torch.ones(1, 96, 96, dtype=torch.bool)
    valid[..., 30:] = False
    gaps = torch.where(valid[:, None], truth, torch.nan)
    loss = spectral_error(gaps, UNIT, valid)
    assert float(loss(truth + 0.5 * UNIT)) == pytest.approx(0.5, abs=1e-5)
    slope = gradient(loss, truth + 0.1)
    assert slope.isfinite().all() and not slope[..., 30:].any() and (slope[..., :30] > 0).all()


def test_lpips_sees_red_green_and_blue_in_this_order(lpips: Lpips) -> None:
    _, truth = pair(9)
    refined = truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    rgb = [(image[:, [2, 1, 0]] / 0.3).clamp(0, 1) for image in (refined, truth)]
    torch.testing.assert_close(picture(refined), rgb[0])
    found = lpips_error(lpips, truth)(refined)
    torch.testing.assert_close(found, lpips(*rgb).mean())
    other_order = lpips(*(image.flip(1) for image in rgb)).mean()
    assert abs(float(found - other_order)) > 1e-3 * float(found)
    slope = gradient(lpips_error(lpips, truth), refined)
    assert slope[:, :3].any() and not slope[:, 3].any()
    assert float(lpips_error(lpips, truth)(truth)) == pytest.approx(0, abs=1e-6)


def test_lpips_does_not_look_where_nothing_was_measured(lpips: Lpips) -> None:
    _, truth = pair(10)
    valid = torch.ones(1, 96, 96, dtype=torch.bool)
    valid[..., :40] = False
    gaps, wild = torch.where(valid[:, None], truth, torch.nan), truth.clone()
    wild[..., :40] = 9.0
    loss = lpips_error(lpips, gaps, valid)
    assert float(loss(wild)) == pytest.approx(0, abs=1e-6)
    assert not gradient(loss, wild + 0.01)[..., :40].any()


# --- all of them ----------------------------------------------------------------------------------------------------


def test_gradients_are_finite_on_constant_and_black_images(lpips: Lpips) -> None:
    s1, truth = pair(11)
    for sar in (s1, torch.full_like(s1, -12.0)):
        for level in (0.2, 0.0, -0.1):
            flat = torch.full_like(truth, level)
            for target in (truth, flat):
                for name, loss in five(lpips, sar, flat, target).items():
                    assert gradient(loss, flat).isfinite().all(), (name, level)


def test_a_nan_in_the_prediction_reaches_every_loss(lpips: Lpips) -> None:
    s1, truth = pair(12)
    broken = truth.clone()
    broken[:, :, 40, 40] = torch.nan
    for name, loss in five(lpips, s1, truth, truth).items():
        assert loss(broken).isnan(), name


def test_low_precision_around_them_changes_nothing(lpips: Lpips) -> None:
    s1, truth = pair(13)
    blurred = torch.from_numpy(ndimage.gaussian_filter(truth.numpy(), (0, 0, 2, 2)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = {name: loss(blurred) for name, loss in five(lpips, s1, truth, truth).items()}
    for name, loss in five(lpips, s1, truth, truth).items():
        torch.testing.assert_close(inside[name], loss(blurred), msg=name)


def test_no_term_drowns_the_others_and_errors_in_plain_reflectance_would_be_drowned(lpips: Lpips) -> None:
    s1, truth = (torch.cat(images) for images in zip(*(pair(seed) for seed in range(4)), strict=True))
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    v2 = torch.from_numpy(ndimage.gaussian_filter(truth.numpy(), (0, 0, 2, 2))) * 1.1 + 0.01
    refined = v2 + 0.2 * (truth - v2) + 0.002 * noise
    norms = {
        name: WEIGHTS[name] * float(gradient(loss, refined).norm()) for name, loss in five(lpips, s1, v2, truth).items()
    }
    shares = {name: norm / sum(norms.values()) for name, norm in norms.items()}
    assert max(shares.values()) < DROWNING_SHARE and min(shares.values()) > INERT_SHARE, shares
    plain = float(gradient(spectral_error(truth, torch.ones(1)), refined).norm())
    assert plain / (plain + norms["sar"]) < 0.05
