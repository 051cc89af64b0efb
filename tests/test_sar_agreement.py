"""Edges and their agreement with SAR: closed forms, chance levels, and real pairs of Sentinel-1 and Sentinel-2."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science import edges, sar_agreement
from nbhelpers.science.sar_agreement import (
    SCALES,
    SHIFTS,
    EdgeMaps,
    agreement,
    band,
    correlation,
    optical_edges,
    relative_agreement,
    sar_edges,
)
from nbhelpers.training.metrics import mean_metric, paired_difference


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parcels(seed: int, *, size: int = 96, scale: float = 6.0) -> NDArray[np.int64]:
    """``(size, size)`` kinds of ground, 0 to 4."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), scale)
    return np.digitize(field / field.std(), [-1.0, -0.3, 0.3, 1.0])


def pair(seed: int, *, looks: float = 4.4, size: int = 96) -> tuple[Tensor, Tensor]:
    """``(1, 2, H, W)`` dB with speckle and ``(1, 4, H, W)`` reflectance of the same parcels."""
    rng, kinds = np.random.default_rng(seed), parcels(seed, size=size)
    db = np.array([[-20, -9, -13, -16, -7], [-28, -15, -20, -22, -13]])[:, kinds]
    db = db + 10 * np.log10(rng.gamma(looks, 1 / looks, db.shape))
    optical = np.array([[0.03, 0.04, 0.1, 0.07, 0.2], [0.04, 0.07, 0.12, 0.1, 0.2],
                        [0.03, 0.04, 0.16, 0.1, 0.22], [0.02, 0.35, 0.25, 0.3, 0.26]])[:, kinds]  # fmt: skip
    optical = optical + 0.003 * rng.normal(size=optical.shape)
    return torch.from_numpy(db).float()[None], torch.from_numpy(optical).float()[None]


def part(maps: EdgeMaps, index: int, times: int) -> EdgeMaps:
    """One sample, as often as a batch needs it."""
    valid = tuple(v[index].expand(times, -1, -1) for v in maps.valid)
    return EdgeMaps(
        tuple(m[index].expand(times, -1, -1) for m in maps.maps), valid, maps.naive[index].expand(times, -1, -1)
    )


def every_pair(sar: EdgeMaps, optical: EdgeMaps) -> Tensor:
    """``(B, B)`` scores of each SAR image with each optical one."""
    n = len(sar.naive)
    return torch.stack([agreement(sar, part(optical, index, n)).score for index in range(n)], 1)


# --- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SCALES)
def test_a_plane_has_its_slope_everywhere(sigma: float) -> None:
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(70.0), indexing="ij")
    found = edges.edge_strength(torch.stack([0.3 * x + 0.4 * y, 1.2 * x])[None], sigma, least=1e-4)
    reach = edges.radius(sigma)
    assert found.shape == (1, 60 - 2 * reach, 70 - 2 * reach)
    torch.testing.assert_close(found, torch.full_like(found, math.hypot(0.5, 1.2)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("sigma", SCALES)
def test_edges_and_texture_equal_scipys_filters(sigma: float) -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(2, 64, 80)), (0, 1, 1))
    reach = edges.radius(sigma)
    inner = (..., slice(reach, -reach), slice(reach, -reach))
    x = torch.from_numpy(image).float()[None]

    slopes = [ndimage.gaussian_filter(image, (0, sigma, sigma), order=(0, *o), truncate=6) for o in ((0, 1), (1, 0))]
    expected = np.sqrt(np.square(slopes).sum((0, 1)))[inner]
    found = edges.edge_strength(x, sigma, least=1e-6)[0].numpy()
    # Ours ends at 2.5 standard deviations and is exact for planes, which makes waves 9 % steeper.
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99 and found.mean() / expected.mean() < 1.25

    mean, square = (ndimage.gaussian_filter(y, (0, sigma, sigma), radius=(0, reach, reach)) for y in (image, image**2))
    expected = np.sqrt((square - mean**2).sum(0))[inner]
    np.testing.assert_allclose(edges.local_deviation(x, sigma, least=1e-6)[0].numpy(), expected, rtol=1e-3)


def test_a_filter_saw_only_what_is_inside() -> None:
    valid = torch.ones(1, 20, 30, dtype=torch.bool)
    valid[0, 9, 14] = False
    found = edges.inside(valid, 3)
    expected = torch.ones(1, 14, 24, dtype=torch.bool)
    expected[0, 3:10, 8:15] = False
    assert torch.equal(found, expected)


def test_an_edge_does_not_feel_what_was_not_measured() -> None:
    s1, optical = pair(0)
    s1[..., :30] = torch.nan
    optical[..., 60:70, 50:60] = torch.nan
    wild, broken = s1.clone(), optical.clone()
    broken[:, 1:, 64, 55] = 7.0
    wild[:, 0, :, 10] = 30.0  # VV there, VH not
    for a, b in ((sar_edges(s1), sar_edges(wild)), (optical_edges(optical), optical_edges(broken))):
        for x, y, valid in zip(a.maps, b.maps, a.valid, strict=True):
            assert torch.equal(x, y) and x.isfinite().all() and not x[~valid].any() and 0 < valid.float().mean() < 1


def test_saturation_takes_away_units_and_outliers() -> None:
    strength = torch.rand(2, 40, 40, generator=generator()) ** 3
    valid = torch.ones(2, 40, 40, dtype=torch.bool)
    found = edges.saturated(strength, valid, least=1e-6)
    assert float(found.min()) >= 0 and float(found.max()) < 1
    torch.testing.assert_close(edges.saturated(50 * strength, valid, least=1e-6), found)
    spoilt = strength.clone()
    spoilt[:, 7, 7] = 1e4
    torch.testing.assert_close(edges.saturated(spoilt, valid, least=1e-6)[:, 8:], found[:, 8:], atol=5e-3, rtol=0)
    assert not edges.saturated(torch.zeros(1, 20, 20), valid[:1, :20, :20], least=1e-3).any()


def test_a_few_corner_reflectors_and_roofs_do_not_outweigh_everything() -> None:
    kept: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(6):
        s1, optical = pair(seed)
        bright, roofs = s1.clone(), optical.clone()
        for row, column in np.random.default_rng(seed).integers(10, 84, (6, 2)):
            bright[..., row : row + 2, column : column + 2] = 25.0
            roofs[..., column : column + 2, row : row + 2] = 1.2
        for saturate in kept:
            rho = []
            for radar, camera in ((s1, optical), (bright, roofs)):
                maps = []
                for image, least in ((radar, 0.01), (sar_agreement.log_reflectance(camera), 1e-3)):
                    strength = edges.edge_strength(image, 1.5, least=least)
                    everywhere = torch.ones_like(strength, dtype=torch.bool)
                    maps.append(edges.saturated(strength, everywhere, least=least) if saturate else strength)
                rho.append(float(correlation(*maps, torch.ones_like(maps[0]))))
            kept[saturate].append(rho[1] / rho[0])
    assert np.mean(kept[True]) > 0.85 and np.mean(kept[True]) > np.mean(kept[False]) + 0.03, kept


@pytest.mark.parametrize("of", [sar_edges, optical_edges])
def test_tiles_that_are_too_small_are_named(of) -> None:
    channels = 2 if of is sar_edges else 4
    with pytest.raises(UserError, match=r"at a scale of 6 pixels, which needs .* at least 42 pixels .* larger tiles"):
        of(torch.rand(1, channels, 41, 80))
    of(torch.rand(1, channels, 42, 80))


# --- agreement ------------------------------------------------------------------------------------------------------


def test_an_image_agrees_with_itself_and_its_negative() -> None:
    _, optical = pair(1)
    own = optical_edges(optical)
    found = agreement(own, own)
    assert (found.rho > 0.999).all() and (found.rho <= 1).all() and 0.95 < float(found.score) <= 1
    assert float(found.cosine) == pytest.approx(1, abs=1e-5)
    s1, _ = pair(1)
    torch.testing.assert_close(agreement(sar_edges(s1 + 3), own).rho, agreement(sar_edges(s1), own).rho)
    positive, negative = (edges.edge_strength(x, 3.0, least=0.01) for x in (s1, -s1))
    assert torch.equal(positive, negative)  # bright or dark: an edge is an edge


def test_flat_images_agree_with_nothing() -> None:
    s1, optical = pair(2)
    flat = optical_edges(torch.full_like(optical, 0.2))
    for sar in (sar_edges(s1), sar_edges(torch.full_like(s1, -12.0))):
        found = agreement(sar, flat)
        assert float(found.score) == pytest.approx(0.5, abs=1e-3) and found.cosine.isfinite().all()


def test_correlation_is_numpys_with_weights() -> None:
    a, b, weight = torch.rand(3, 4, 30, 20, generator=generator()).unbind()
    found = correlation(a, b, weight)
    for index in range(4):
        x, y, w = (image[index].double().numpy().ravel() for image in (a, b, weight))
        covariance = np.cov(x, y, aweights=w, bias=True)
        expected = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
        assert float(found[index]) == pytest.approx(expected, abs=1e-4)
    assert correlation(a, a, weight).min() > 0.9999 and not correlation(a, b, torch.zeros_like(a)).any()


def test_the_null_is_the_mean_over_shifts_one_by_one() -> None:
    assert len(set(SHIFTS)) == 24 and all(math.hypot(min(u, 1 - u), min(v, 1 - v)) >= 1 / 3 for u, v in SHIFTS)
    s1, optical = pair(3)
    s1[..., :20, :] = torch.nan
    optical[..., -9:] = torch.nan
    sar, own = sar_edges(s1), optical_edges(optical)
    found = agreement(sar, own)
    for index in range(len(SCALES)):
        a, b, valid_a, valid_b = (m[index][0].numpy() for m in (sar.maps, own.maps, sar.valid, own.valid))
        expected = []
        for u, v in SHIFTS:
            by = (round(u * a.shape[0]), round(v * a.shape[1]))
            both = valid_a & np.roll(valid_b, by, (0, 1))
            expected.append(np.corrcoef(a[both], np.roll(b, by, (0, 1))[both])[0, 1])
        assert float(found.rho_null[0, index]) == pytest.approx(np.mean(expected), abs=1e-3)
    expected_score = 0.5 + 0.5 * float((found.rho - found.rho_null).mean())
    assert float(found.score) == pytest.approx(expected_score, abs=1e-6)


def test_white_noise_scores_one_half_and_its_raw_cosine_pi_over_four() -> None:
    scores, cosines = [], []
    for seed in range(8):
        noise = torch.randn(20, 6, 96, 96, generator=generator(seed))
        found = agreement(sar_edges(noise[:, :2] * 3 - 12), optical_edges(0.3 + 0.04 * noise[:, 2:]))
        scores.append(found.score)
        cosines.append(found.cosine)
    assert float(torch.cat(scores).mean()) == pytest.approx(0.5, abs=0.01)
    assert float(torch.cat(cosines).mean()) == pytest.approx(math.pi / 4, abs=0.005)
    assert pytest.approx(0.785398, abs=1e-6) == sar_agreement.COSINE_CHANCE


def test_unrelated_scenes_score_one_half_and_pairs_far_above() -> None:
    s1, optical = (torch.cat(images) for images in zip(*(pair(seed) for seed in range(16)), strict=True))
    sar, own = sar_edges(s1), optical_edges(optical)
    scores = every_pair(sar, own)
    others = scores[~torch.eye(16, dtype=torch.bool)]  # 240 pairs
    assert float(others.mean()) == pytest.approx(0.5, abs=0.01)
    assert (scores.diagonal() > 0.75).all() and (others < 0.7).all()
    # The cosine of unrelated images is high, too: it must never decide anything by itself.
    assert float(agreement(sar, part(own, 0, 16)).cosine[1:].mean()) > 0.5


def test_what_is_not_measured_has_no_score() -> None:
    s1, optical = pair(4)
    s1, optical = s1.repeat(3, 1, 1, 1), optical.repeat(3, 1, 1, 1)
    s1[1], s1[2, :, :60] = torch.nan, torch.nan
    found = agreement(sar_edges(s1), optical_edges(optical))
    assert found.known.tolist() == [True, False, False]
    for values in (found.score, found.rho[:, 0], found.rho_null[:, 0], found.cosine):
        assert values.isnan().tolist() == [False, True, True]


def test_a_nan_that_a_model_made_is_not_left_out() -> None:
    s1, optical = pair(5)
    broken = optical.clone()
    broken[0, 2, 48, 48] = torch.nan
    valid = optical.isfinite().all(1)
    assert agreement(sar_edges(s1), optical_edges(broken, valid)).score.isnan().all()
    assert agreement(sar_edges(s1), optical_edges(broken)).score.isfinite().all()


def test_gradients_are_finite_on_flat_black_and_negative_images() -> None:
    s1, optical = pair(6)
    sar = sar_edges(s1)
    for image in (torch.full_like(optical, 0.2), torch.zeros_like(optical), -optical, optical):
        image = image.clone().requires_grad_()
        own = optical_edges(image)
        rho = torch.stack([correlation(a, b, v.float()) for a, b, v in zip(sar.maps, own.maps, own.valid, strict=True)])
        rho.sum().backward()
        assert image.grad is not None and image.grad.isfinite().all()
    assert image.grad.abs().sum() > 0


def test_the_relative_agreement_and_its_bands() -> None:
    found = relative_agreement(np.array([0.62, 0.6, 0.5]), np.array([0.7, 0.505, 0.7]))
    np.testing.assert_allclose(found, [0.6, np.nan, 0.0], atol=1e-12)
    names = [band(x) for x in (-0.2, 0.4999, 0.5, 0.6999, 0.7, 0.7999, 0.8, 1.3, math.nan)]
    assert names == ["poor", "poor", "moderate", "moderate", "good", "good", "excellent", "excellent", "unknown"]


# --- real pairs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_data: Path) -> tuple[list[str], Tensor, Tensor]:
    """Names, dB and reflectance of 16 real tiles of 112 x 112: 4 of BigEarthNet, and the quarters of 3 larger ones."""

    def read(path: Path) -> NDArray[np.float32]:
        with rasterio.open(path) as file:
            return file.read().astype(np.float32)

    names, radar, optical = [], [], []
    ben = real_data / "bigearthnet"
    for folder in sorted((ben / "BigEarthNet-S1").iterdir()):
        about = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())
        patch = about["corresponding_s2_patch"]
        s1 = np.concatenate([read(folder / f"{folder.name}_{band}.tif") for band in ("VV", "VH")])
        bands = [read(ben / "BigEarthNet-S2" / patch / f"{patch}_{b}.tif") for b in ("B02", "B03", "B04", "B08")]
        names.append("_".join(folder.name.split("_")[-3:]))
        radar.append(s1[:, 4:116, 4:116])
        optical.append(np.concatenate(bands)[:, 4:116, 4:116] / 1e4)
    for path in sorted((real_data / "s1s2_tiles/S1RTC").glob("*.tif")):
        s1, s2 = read(path), read(real_data / "s1s2_tiles/S2L2A" / path.name)[[1, 2, 3, 7]] / 1e4
        for i, j in np.ndindex(2, 2):
            quarter = (..., slice(112 * i, 112 * (i + 1)), slice(112 * j, 112 * (j + 1)))
            names.append(f"{path.stem} {'NS'[i]}{'WE'[j]}")
            radar.append(s1[quarter])
            optical.append(s2[quarter])
    return names, torch.from_numpy(np.stack(radar)), torch.from_numpy(np.stack(optical))


def test_real_pairs_agree_more_than_shuffled_ones(real: tuple[list[str], Tensor, Tensor]) -> None:
    names, s1, optical = real
    scores = every_pair(sar_edges(s1), optical_edges(optical))
    own, other = scores.diagonal(), ~torch.eye(len(names), dtype=torch.bool)
    assert int(other.sum()) >= 100 and float(scores[other].mean()) == pytest.approx(0.5, abs=0.01)
    assert 0.65 < float(own.mean()) < 0.80 and float(own.min()) > 0.54
    # Quarters of one scene are not independent: the interval is over the seven scenes.
    scenes = sorted({name.split()[0] for name in names})
    member = np.array([[name.split()[0] == scene for name in names] for scene in scenes], dtype=float)
    shuffled = np.array([float(scores[i][other[i]].mean()) for i in range(len(names))])
    true, null = (
        mean_metric(member @ x[:, None], member.sum(1, keepdims=True), labels=("all",), better="higher", units="1")
        for x in (own.numpy().astype(float), shuffled)
    )
    difference = paired_difference(true, null)
    assert difference["is_better"] and difference["ci95"][0] > 0.1
    # One tile does not beat each of its fifteen shuffles: water and forest in the south of Brazil.
    beaten = [name for i, name in enumerate(names) if own[i] <= scores[i][other[i]].max()]
    assert beaten == ["282D_485L_3_3 NE"]


def test_a_real_pair_agrees_less_when_it_is_moved_noisy_or_flat(real: tuple[list[str], Tensor, Tensor]) -> None:
    _, s1, optical = real
    sar = sar_edges(s1)

    def score(image: Tensor) -> Tensor:
        return agreement(sar, optical_edges(image)).score

    truth, moved = score(optical), score(optical.roll(12, -1))
    assert float((truth - moved).mean()) > 0.1 and int((truth > moved).sum()) >= 15
    for spoilt in (optical + 0.05 * torch.randn(optical.shape, generator=generator()), optical.mean((-2, -1), True)):
        assert float((truth - score(spoilt.expand_as(optical))).mean()) > 0.01
