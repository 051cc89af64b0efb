"""Scores of refined tiles: streamed in batches, grouped by spatial block, only measured pixels counted."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from nbhelpers.science import image_quality
from nbhelpers.science.perceptual import Lpips
from nbhelpers.science.sar_agreement import COSINE_CHANCE, SCALES, agreement, optical_edges, sar_edges
from nbhelpers.stages.sar_grounding.confidence import sar_confidence
from nbhelpers.stages.sar_grounding.losses import picture
from nbhelpers.stages.sar_grounding.verification import GroundingVerification
from nbhelpers.training.metrics import paired_difference, summarise
from nbhelpers.training.task import Evaluation

SIZE = 72
BLOCKS = ("north", "north", "east", "west", "east", "far")


def pair(seed: int) -> tuple[Tensor, Tensor]:
    """``(2, H, W)`` dB and ``(4, H, W)`` reflectance of the same parcels."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 5)
    kinds = np.digitize(field / field.std(), [-0.8, 0.0, 0.8])
    db = np.array([[-20, -9, -13, -7], [-27, -15, -20, -13]])[:, kinds]
    db = db + 10 * np.log10(rng.gamma(4.4, 1 / 4.4, db.shape))
    optical = np.array([[0.03, 0.04, 0.1, 0.2], [0.04, 0.07, 0.12, 0.2], [0.03, 0.04, 0.16, 0.22],
                        [0.02, 0.35, 0.25, 0.26]])[:, kinds] + 0.003 * rng.normal(size=(4, SIZE, SIZE))  # fmt: skip
    return torch.from_numpy(db).float(), torch.from_numpy(optical).float()


@pytest.fixture(scope="module")
def tiles() -> tuple[Tensor, Tensor, Tensor]:
    """S1, truth and a blurred, noisy image of six tiles."""
    s1, truth = (torch.stack(images) for images in zip(*(pair(seed) for seed in range(6)), strict=True))
    blurred = torch.from_numpy(ndimage.gaussian_filter(truth.numpy(), (0, 0, 3, 3)))
    return s1, truth, 1.05 * blurred + 0.01 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    torch.manual_seed(0)
    return Lpips("squeeze", "random")


def scored(
    refined: Tensor,
    truth: Tensor,
    s1: Tensor,
    *,
    blocks: Sequence[str] = BLOCKS,
    sizes: Sequence[int] = (6,),
    lpips: Lpips | None = None,
) -> Evaluation:
    verification, first = GroundingVerification(lpips=lpips), 0
    for size in sizes:
        part = slice(first, first + size)
        verification.add(refined[part], truth[part], s1[part], blocks[part])
        first += size
    return verification.evaluation()


def test_every_score_is_the_mean_over_tiles_of_its_definition(tiles: tuple[Tensor, ...], lpips: Lpips) -> None:
    s1, truth, refined = tiles
    metrics = scored(refined, truth, s1, lpips=lpips).metrics
    psnr, ssim = (score(refined, truth, data_range=1.0) for score in (image_quality.psnr, image_quality.ssim))
    np.testing.assert_allclose(metrics["psnr"].by_label, psnr.mean(0), rtol=1e-9)
    np.testing.assert_allclose(metrics["ssim"].by_label, ssim.mean(0), rtol=1e-9)
    np.testing.assert_allclose(metrics["mae"].by_label, (refined - truth).abs().mean((0, 2, 3)), rtol=1e-5)
    assert metrics["psnr"].labels == ("B2", "B3", "B4", "B8")
    assert metrics["psnr"].value == pytest.approx(float(psnr.mean()))
    assert metrics["sam"].value == pytest.approx(float(image_quality.spectral_angle(refined, truth).mean()))
    assert metrics[lpips.key].value == pytest.approx(float(lpips(picture(refined), picture(truth)).mean()), rel=1e-5)

    def ndvi(image: Tensor) -> Tensor:
        image = image.double().clamp(min=0)
        return (image[:, 3] - image[:, 2]) / (image[:, 3] + image[:, 2]).clamp(min=0.02)

    assert metrics["ndvi_error"].value == pytest.approx(float((ndvi(refined) - ndvi(truth)).abs().mean()), rel=1e-6)
    sar = sar_edges(s1)
    found, best = agreement(sar, optical_edges(refined)), agreement(sar, optical_edges(truth))
    assert metrics["sar_agreement"].value == pytest.approx(float(found.score.mean()), abs=1e-6)
    assert metrics["sar_agreement_truth"].value == pytest.approx(float(best.score.mean()), abs=1e-6)
    relative = (float(found.score.mean()) - 0.5) / (float(best.score.mean()) - 0.5)
    assert metrics["sar_agreement_relative"].value == pytest.approx(relative, abs=1e-5)
    np.testing.assert_allclose(metrics["sar_rho"].by_label, found.rho.mean(0), atol=1e-6)
    np.testing.assert_allclose(metrics["sar_rho_null"].by_label, found.rho_null.mean(0), atol=1e-6)
    assert len(metrics["sar_rho"].labels) == len(SCALES)
    assert metrics["sar_cosine"].value == pytest.approx(float(found.cosine.mean()), abs=1e-6)
    assert f"{COSINE_CHANCE:.3f}" == "0.785" and "0.785" in metrics["sar_cosine"].units
    assert metrics["sar_confidence"].value == pytest.approx(float(sar_confidence(s1).mean()), rel=1e-5)


def test_batches_do_not_matter_and_groups_are_blocks(tiles: tuple[Tensor, ...]) -> None:
    s1, truth, refined = tiles
    together = scored(refined, truth, s1)
    for sizes in ((1, 1, 1, 1, 1, 1), (4, 2)):
        parts = scored(refined, truth, s1, sizes=sizes)
        for name, metric in together.metrics.items():
            np.testing.assert_allclose(parts.metrics[name].sums, metric.sums, rtol=1e-5, atol=1e-6, err_msg=name)
        for name, spread in together.spreads.items():
            assert parts.spreads[name].std == pytest.approx(spread.std, rel=1e-6)
    assert together.metrics["psnr"].groups == 4
    assert together.metrics["psnr"].sums[:, 0, 1].tolist() == [2, 1, 2, 1]  # east, far, north, west


def test_the_truth_is_perfect_and_agrees_as_itself(tiles: tuple[Tensor, ...]) -> None:
    s1, truth, refined = tiles
    perfect, worse = scored(truth, truth, s1), scored(refined, truth, s1)
    assert perfect.metrics["mae"].value == perfect.metrics["sam"].value == perfect.metrics["ndvi_error"].value == 0
    assert perfect.metrics["ssim"].value == pytest.approx(1) and perfect.metrics["psnr"].value == math.inf
    assert perfect.metrics["sar_agreement_relative"].value == pytest.approx(1)
    difference = paired_difference(worse.metrics["sar_agreement"], perfect.metrics["sar_agreement"])
    assert difference["ci95"][1] is not None and worse.metrics["sar_agreement_relative"].value != 1
    for metric in (perfect.metrics["sar_agreement_relative"], *worse.metrics.values()):
        json.dumps(summarise(metric), allow_nan=False)


def test_another_tiles_sar_is_at_chance_and_beside_every_score(tiles: tuple[Tensor, ...]) -> None:
    s1, truth, _ = tiles
    s1, truth = (torch.cat([image, image.flip(-1), image.flip(-2), image.mT]) for image in (s1, truth))
    blocks = [f"{block}_{n}" for n in range(4) for block in BLOCKS]
    metrics = scored(truth, truth, s1, blocks=blocks, sizes=(24,)).metrics
    unrelated = metrics["sar_agreement_unrelated"]
    assert unrelated.sums[..., 1].sum() == 22  # all but the first two, which share a block
    assert unrelated.value == pytest.approx(0.5, abs=0.04) and metrics["sar_agreement"].value > 0.7
    first = agreement(sar_edges(s1[2:3]), optical_edges(truth[1:2])).score
    assert unrelated.sums[sorted(blocks).index("east_0"), 0, 0] != 0
    alone = scored(truth[1:3], truth[1:3], s1[1:3], blocks=("north", "east"), sizes=(2,))
    assert alone.metrics["sar_agreement_unrelated"].value == pytest.approx(float(first), abs=1e-6)
    verification = GroundingVerification()
    for place, block in enumerate(blocks):
        one = slice(place, place + 1)
        verification.add(truth[one], truth[one], s1[one], [block])
    assert list(verification._others) == blocks[-2:], "no more is kept than the next tile needs"
    same_block = scored(truth[:2], truth[:2], s1[:2], blocks=("north", "north"), sizes=(2,))
    assert math.isnan(same_block.metrics["sar_agreement_unrelated"].value)


def test_pixels_that_were_not_measured_do_not_count(tiles: tuple[Tensor, ...], lpips: Lpips) -> None:
    s1, truth, refined = tiles
    gaps, wild = truth.clone(), refined.clone()
    gaps[1, :, :, 60:] = torch.nan
    wild[1, :, :, 60:] = 5.0
    gaps[3, 0, 10, 10] = torch.nan  # one band is enough
    gaps[4] = torch.nan
    metrics = scored(wild, gaps, s1, lpips=lpips).metrics
    assert all(math.isfinite(metric.value) for metric in metrics.values())
    inside = (refined - truth)[1:2, :, :, :60]
    expected = 10 * torch.log10(1 / inside.double().square().mean((-2, -1)))
    one = scored(wild[1:2], gaps[1:2], s1[1:2], blocks=("a",), sizes=(1,)).metrics
    np.testing.assert_allclose(one["psnr"].by_label, expected[0], rtol=1e-6)
    np.testing.assert_allclose(one["mae"].by_label, inside.abs().mean((0, 2, 3)), rtol=1e-5)
    angle = image_quality.spectral_angle(refined[1:2, ..., :60], truth[1:2, ..., :60])
    assert one["sam"].value == pytest.approx(float(angle), rel=1e-6)
    assert one["sar_agreement"].value == pytest.approx(
        float(agreement(sar_edges(s1[1:2]), optical_edges(refined[1:2], gaps[1:2].isfinite().all(1))).score), abs=1e-6
    )
    # Windows of SSIM and LPIPS would see the gap.
    assert math.isnan(one["ssim"].value) and metrics["ssim"].sums[..., 0, 1].sum() == 3
    assert metrics[lpips.key].sums[..., 1].sum() == 3 and metrics["psnr"].sums[:, 0, 1].sum() == 5


def test_a_nan_of_the_model_is_seen_in_its_scores(tiles: tuple[Tensor, ...]) -> None:
    s1, truth, refined = tiles
    broken = refined.clone()
    broken[2, 1, 30, 30] = torch.nan
    metrics = scored(broken, truth, s1).metrics
    for name in ("psnr", "mae", "sam", "sar_agreement"):
        assert math.isnan(metrics[name].value), name


def test_nothing_is_relative_to_a_truth_at_chance() -> None:
    noise = torch.randn(3, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    optical = 0.3 + 0.04 * noise[:, 2:]
    metrics = scored(
        optical, optical, torch.full((3, 2, SIZE, SIZE), -12.0), blocks=("a", "b", "c"), sizes=(3,)
    ).metrics
    assert metrics["sar_agreement"].value == pytest.approx(0.5, abs=1e-3)
    assert math.isnan(metrics["sar_agreement_relative"].value)


def test_images_that_do_not_belong_together(tiles: tuple[Tensor, ...]) -> None:
    s1, truth, refined = tiles
    with pytest.raises(ValueError, match="5 blocks"):
        GroundingVerification().add(refined, truth, s1, BLOCKS[:5])
    with pytest.raises(ValueError, match=r"truth \(5, 4, 72, 72\)"):
        GroundingVerification().add(refined, truth[:5], s1, BLOCKS)
