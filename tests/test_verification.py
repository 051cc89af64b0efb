"""All scores together: streamed in batches, grouped by event, missing pixels left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pytest
import sevir
import torch
from scipy import ndimage
from torch import Tensor

from nbhelpers.science.fractions import fss_sums
from nbhelpers.science.image_quality import fine_power, ssim
from nbhelpers.science.perceptual import Lpips, PerceptualLoss
from nbhelpers.stages.perceptual_unet.baselines import gaussian_blur
from nbhelpers.stages.perceptual_unet.contingency import max_pool, to_levels
from nbhelpers.stages.perceptual_unet.data import MISSING, THRESHOLDS
from nbhelpers.stages.perceptual_unet.losses import frame_distance, perceptual_error
from nbhelpers.stages.perceptual_unet.verification import Verification
from nbhelpers.training.metrics import summarise
from nbhelpers.training.task import Evaluation

LEADS = (5, 10)
EVENTS = ("B", "A", "B", "C", "A")  # five windows of three events


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    return Lpips("squeeze", "random")


@pytest.fixture(scope="module")
def observed() -> Tensor:
    """(5, 2, 48, 40) grey levels with a missing sector."""
    frames = np.stack([sevir.storm(i, n_frames=2, height=48, width=40) for i in range(5)])
    frames[0, :, :20, 10:25] = MISSING
    frames[3, 1] = np.where(np.arange(40) < 9, MISSING, frames[3, 1])
    return torch.from_numpy(frames)


@pytest.fixture(scope="module")
def forecast(observed: Tensor) -> Tensor:
    """In model units, in places outside [0, 1]."""
    noise = torch.randn(observed.shape, generator=torch.Generator().manual_seed(0))
    moved = observed.roll(2, -1)
    return torch.where(moved == MISSING, 0, moved) / 255 + 0.05 * noise


def score(lpips: Lpips, forecast: Tensor, observed: Tensor, *, sizes: Sequence[int] = (5,)) -> Evaluation:
    verification, first = Verification(LEADS, lpips), 0
    for size in sizes:
        part = slice(first, first + size)
        verification.accumulate(forecast[part], observed[part], EVENTS[part])
        first += size
    return verification.compute()


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3), (4, 1)])
def test_any_batch_size_gives_the_same_scores(
    lpips: Lpips, forecast: Tensor, observed: Tensor, sizes: Sequence[int]
) -> None:
    whole, parts = score(lpips, forecast, observed), score(lpips, forecast, observed, sizes=sizes)
    assert set(whole.metrics) == set(parts.metrics)
    for name, spread in whole.spreads.items():
        assert astuple(parts.spreads[name]) == pytest.approx(astuple(spread))
    for name, metric in whole.metrics.items():
        other = parts.metrics[name]
        assert metric.sums.shape[:2] == (3, 2) and metric.labels == ("5 min", "10 min")
        if name.startswith(("csi", "pod", "sucr", "bias", "hss")):
            np.testing.assert_array_equal(metric.sums, other.sums)
        else:
            np.testing.assert_allclose(metric.sums, other.sums, rtol=1e-5, atol=1e-9, err_msg=name)


def test_a_perfect_forecast_has_perfect_scores(lpips: Lpips, observed: Tensor) -> None:
    truth = torch.where(observed == MISSING, 0, observed) / 255
    metrics = score(lpips, truth, observed).metrics
    perfect = {name: metric.value for name, metric in metrics.items()}
    best = {"lower": 0.0, "higher": 1.0, "one": 1.0}
    assert perfect == pytest.approx({name: best[metric.better or ""] for name, metric in metrics.items()}, abs=1e-9)


def test_what_is_forecast_where_nothing_was_measured_changes_nothing(
    lpips: Lpips, forecast: Tensor, observed: Tensor
) -> None:
    plain = score(lpips, forecast, observed)
    for value in (-5.0, 0.5, 1.0):
        wild = score(lpips, torch.where(observed == MISSING, value, forecast), observed)
        for name, metric in plain.metrics.items():
            np.testing.assert_array_equal(metric.sums, wild.metrics[name].sums, err_msg=name)


def test_errors_are_numpys_over_measured_pixels_of_the_clipped_forecast(
    lpips: Lpips, forecast: Tensor, observed: Tensor
) -> None:
    metrics = score(lpips, forecast, observed).metrics
    measured = (observed != MISSING).numpy()
    error = forecast.double().clamp(0, 1).numpy() - observed.numpy() / 255
    for t in range(2):
        mine = error[:, t][measured[:, t]]
        assert metrics["mse"].by_label[t] == pytest.approx(np.mean(mine**2), rel=1e-6)
        assert metrics["mae"].by_label[t] == pytest.approx(np.mean(np.abs(mine)), rel=1e-6)
    assert metrics["mse"].value == pytest.approx(np.mean(error[measured] ** 2), rel=1e-6)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_event_scores_are_those_of_boolean_images_of_pooled_levels(
    lpips: Lpips, forecast: Tensor, observed: Tensor, size: int
) -> None:
    metrics = score(lpips, forecast, observed).metrics
    measured = observed != MISSING
    pooled_truth = max_pool(observed, size).numpy()
    pooled_forecast = max_pool(torch.where(measured, to_levels(forecast), 0), size).numpy()
    known = pooled_truth != MISSING
    for threshold in THRESHOLDS:
        yes, event = (pooled_forecast >= threshold)[known], (pooled_truth >= threshold)[known]
        name = f"csi_{threshold}" + (f"_pool{size}" if size > 1 else "")
        assert metrics[name].value == pytest.approx((yes & event).sum() / (yes | event).sum(), rel=1e-12)


def test_scores_of_whole_frames_see_equal_pixels_where_nothing_was_measured(
    lpips: Lpips, forecast: Tensor, observed: Tensor
) -> None:
    metrics = score(lpips, forecast, observed).metrics
    measured = observed != MISSING
    truth = torch.where(measured, observed / 255, 0.0)
    shown = torch.where(measured, forecast.clamp(0, 1), 0.0)
    assert metrics["ssim"].value == pytest.approx(float(ssim(shown, truth, data_range=1.0).mean()), rel=1e-6)
    assert metrics["rapsd_ratio"].value == pytest.approx(
        float(fine_power(shown).sum() / fine_power(truth).sum()), rel=1e-5
    )
    distance = frame_distance(lpips, shown, truth, torch.ones_like(measured))
    assert metrics[lpips.key].value == pytest.approx(float(distance.mean()), rel=1e-4)
    for size in (1, 4, 16):
        sums = fss_sums(to_levels(shown) >= 74, to_levels(truth) >= 74, size).double().sum((0, 1))
        assert metrics[f"fss_74_{size}"].value == pytest.approx(float(1 - sums[0] / sums[1]), rel=1e-5)


def test_the_raw_perceptual_term_is_the_mean_over_frames_of_the_loss(
    lpips: Lpips, forecast: Tensor, observed: Tensor
) -> None:
    loss = PerceptualLoss("squeeze", "random")
    verification = Verification(LEADS, lpips, perceptual=loss)
    verification.accumulate(forecast, observed, EVENTS)
    metrics = verification.compute().metrics
    truth = torch.where(observed != MISSING, observed / 255, 0.0)
    with torch.no_grad():
        expected = perceptual_error(loss, truth, observed != MISSING)(forecast.clamp(0, 1))
    assert metrics["perceptual"].value == pytest.approx(float(expected), rel=1e-5)
    assert metrics["perceptual"].better == "lower" and "random" in metrics["perceptual"].units
    assert set(metrics) - {"perceptual"} == set(score(lpips, forecast, observed).metrics)


def test_groups_are_events_and_lead_times_stay_apart(lpips: Lpips, forecast: Tensor, observed: Tensor) -> None:
    metrics = score(lpips, forecast, observed).metrics
    entry = summarise(metrics["csi_74"])
    assert entry["n"] == 3 and list(entry["by_label"]) == ["5 min", "10 min"]
    worse = forecast.clone()
    worse[:, 1] = 0.0
    other = score(lpips, worse, observed).metrics
    assert other["mse"].by_label[0] == metrics["mse"].by_label[0]
    assert other["mse"].by_label[1] > metrics["mse"].by_label[1]
    assert other["csi_74"].by_label.tolist() == [metrics["csi_74"].by_label[0], 0.0]


def test_spreads_are_those_of_the_unclipped_forecast_and_the_measured_truth(
    lpips: Lpips, forecast: Tensor, observed: Tensor
) -> None:
    spreads = score(lpips, forecast, observed).spreads
    measured = observed[observed != MISSING] / 255
    for name, values in (("prediction", forecast), ("target", measured)):
        expected = (float(values.min()), float(values.max()), float(values.double().std(correction=0)))
        assert astuple(spreads[name]) == pytest.approx(expected)
    assert spreads["prediction"].low < 0


def test_every_score_of_the_stage_is_there(lpips: Lpips, forecast: Tensor, observed: Tensor) -> None:
    found = score(lpips, forecast, observed).metrics
    names = {"mse", "mae", "ssim", "feature_distance_random", "rapsd_ratio", "csi_m", "csi_m_pool4", "csi_m_pool16"}
    names |= {f"fss_74_{size}" for size in (1, 4, 16)}
    for threshold in (16, 74, 133, 160, 181, 219):
        names |= {f"{name}_{threshold}" for name in ("csi", "pod", "sucr", "bias", "hss", "csi_matched")}
        names |= {f"csi_{threshold}_pool{size}" for size in (4, 16)}
    assert set(found) == names


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_the_blur_of_the_control_is_scipys(forecast: Tensor, sigma: float) -> None:
    expected = ndimage.gaussian_filter(forecast.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(gaussian_blur(forecast, sigma).numpy(), expected, atol=2e-6)
