"""Event scores: exact counts through the model's float path, closed forms, pooling and both reductions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from nbhelpers.stages.perceptual_unet import contingency as cont
from nbhelpers.stages.perceptual_unet.data import MISSING, THRESHOLDS, VIL
from nbhelpers.training.metrics import summarise

WORKED = np.array([82.0, 23.0, 38.0, 222.0])  # hits, misses, false alarms, correct negatives


def levels(seed: int, *, shape: tuple[int, ...] = (2, 3, 33, 38), missing: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 255, shape, generator=generator).to(torch.uint8)
    return torch.where(torch.rand(shape, generator=generator) < missing, MISSING, drawn).to(torch.uint8)


def boolean_counts(forecast: np.ndarray, observed: np.ndarray, threshold: int, level: int | None = None) -> list[int]:
    measured = observed != MISSING
    yes, event = (forecast >= (level or threshold))[measured], (observed >= threshold)[measured]
    return [int(n.sum()) for n in (yes & event, ~yes & event, yes & ~event, ~yes & ~event)]


def test_scores_of_the_worked_example() -> None:
    scores = {name: float(score(WORKED)) for name, (score, _) in cont.SCORES.items()}
    expected = {"csi": 0.573426, "hss": 0.608871, "pod": 82 / 105, "sucr": 82 / 120, "bias": 120 / 105}
    assert scores == pytest.approx(expected, abs=1e-6)
    # The same table as images: 82 hits, 38 false alarms, 23 misses, 222 correct negatives.
    forecast = torch.tensor([200] * 82 + [200] * 38 + [10] * 23 + [10] * 222, dtype=torch.uint8).view(1, 1, 5, 73)
    observed = torch.tensor([90] * 82 + [73] * 38 + [74] * 23 + [0] * 222, dtype=torch.uint8).view(1, 1, 5, 73)
    counts = cont.counts_at(cont.joint_histogram(forecast, observed).numpy(), 74)
    np.testing.assert_array_equal(counts[0, 0], WORKED)


def test_scores_without_events_are_undefined_and_chance_has_no_skill() -> None:
    nothing = np.array([0.0, 0.0, 0.0, 50.0])
    assert all(np.isnan(score(nothing)) for score in (cont.csi, cont.pod, cont.sucr, cont.frequency_bias, cont.hss))
    assert float(cont.hss(np.array([4.0, 6.0, 36.0, 54.0]))) == pytest.approx(0.0)  # forecast independent of the truth
    assert cont.csi(np.array([0.0, 3.0, 0.0, 9.0])) == 0.0


def test_every_grey_level_survives_the_way_through_the_model_units() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    scaled, valid = VIL.to_model(grey)
    assert torch.equal(valid, grey != MISSING)
    found = cont.to_levels(scaled)
    assert torch.equal(found[valid], grey[valid])
    assert torch.equal(cont.to_levels(grey.float() / 255)[valid], grey[valid])
    assert torch.equal(cont.to_levels(grey.float() * (1 / 255))[valid], grey[valid])


def test_values_between_two_levels_go_to_the_nearer_one() -> None:
    grey = torch.arange(1, 254)
    for offset in (-0.49, -0.25, 0.25, 0.49):
        assert torch.equal(cont.to_levels(((grey + offset) / 255).view(1, 1, 11, 23)).flatten().long(), grey)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_at_every_threshold_every_level_falls_on_its_own_side(threshold: int) -> None:
    grey = torch.arange(255, dtype=torch.uint8).view(255, 1, 1, 1)  # one frame a level
    forecast = cont.to_levels(VIL.to_model(grey)[0])
    histogram = cont.joint_histogram(forecast, grey).numpy()
    for level, counts in enumerate(cont.counts_at(histogram, threshold)[:, 0]):
        np.testing.assert_array_equal(counts, [1, 0, 0, 0] if level >= threshold else [0, 0, 0, 1])


def test_a_forecast_is_never_missing_and_never_wraps_around() -> None:
    wild = torch.tensor([-3.0, -1e-4, 0.0, 0.9999, 1.0, 1.2, 300.0]).view(1, 1, 1, 7)
    assert cont.to_levels(wild).flatten().tolist() == [0, 0, 0, 254, 254, 254, 254]


def test_the_joint_histogram_equals_a_loop() -> None:
    forecast, observed = levels(0, shape=(2, 2, 9, 7)), levels(1, shape=(2, 2, 9, 7), missing=0.2)
    expected = np.zeros((2, 2, 7, 256), np.int64)
    for b, t, y, x in np.ndindex(2, 2, 9, 7):
        value = int(observed[b, t, y, x])
        if value != MISSING:
            expected[b, t, sum(value >= threshold for threshold in THRESHOLDS), int(forecast[b, t, y, x])] += 1
    found = cont.joint_histogram(forecast, observed)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.sum() == (observed != MISSING).sum() < observed.numel()


@pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
def test_counts_are_those_of_boolean_images(missing: float) -> None:
    forecast, observed = levels(2), levels(3, missing=missing)
    histogram = cont.joint_histogram(forecast, observed).numpy()
    for threshold in THRESHOLDS:
        counts = cont.counts_at(histogram, threshold)
        assert counts.shape == (2, 3, 4)
        for b, t in np.ndindex(2, 3):
            expected = boolean_counts(forecast[b, t].numpy(), observed[b, t].numpy(), threshold)
            assert counts[b, t].tolist() == expected


def test_counts_with_another_level_for_the_forecast() -> None:
    forecast, observed = levels(2), levels(3, missing=0.1)
    histogram = cont.joint_histogram(forecast, observed).numpy()
    for level in (1, 100, 255):
        found = cont.counts_at(histogram, 133, level).sum((0, 1))
        assert found.tolist() == boolean_counts(forecast.numpy(), observed.numpy(), 133, level)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_pooling_takes_the_largest_measured_level_of_each_block(size: int) -> None:
    frames = levels(4, missing=0.6)
    frames[0, 0, :16, :16] = MISSING
    pooled = cont.max_pool(frames, size).numpy()
    height, width = 33 // size, 38 // size
    assert pooled.shape == (2, 3, height, width)
    for b, t, y, x in np.ndindex(*pooled.shape):
        block = frames[b, t, y * size : (y + 1) * size, x * size : (x + 1) * size].numpy()
        measured = block[block != MISSING]
        assert pooled[b, t, y, x] == (measured.max() if measured.size else MISSING)
    assert (pooled == MISSING).any()


@pytest.mark.parametrize("size", [4, 16])
def test_pooling_of_complete_frames_equals_scipy(size: int) -> None:
    frames = levels(5, shape=(1, 2, 64, 48))
    for t in range(2):
        shifted = ndimage.maximum_filter(frames[0, t].numpy(), size=size, origin=-(size // 2))
        np.testing.assert_array_equal(cont.max_pool(frames, size)[0, t].numpy(), shifted[::size, ::size])


def test_the_matched_level_brings_the_frequency_bias_to_one() -> None:
    observed = levels(6, shape=(3, 2, 40, 40))
    forecast = (observed.float() * 0.6).to(torch.uint8)  # a timid forecast: the right places, too low
    histogram = cont.joint_histogram(forecast, observed).numpy()
    plain = cont.counts_at(histogram, 133).sum((0, 1))
    assert cont.frequency_bias(plain) < 0.7
    level = cont.matched_level(histogram, 133)
    assert level == 79  # 0.6 · 133 = 79.8, cut off to 79
    matched = cont.counts_at(histogram, 133, level).sum((0, 1))
    assert cont.csi(matched) > 0.95 > 0.7 > cont.csi(plain)
    every_level = [abs(cont.frequency_bias(cont.counts_at(histogram, 133, x).sum((0, 1))) - 1) for x in range(255)]
    assert abs(cont.frequency_bias(matched) - 1) == min(every_level) < 0.02


def two_events() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histograms (2 events, 3 leads) whose two reductions differ, and the levels behind them."""
    forecast, observed = levels(7), levels(8, missing=0.1)
    observed[:, 1] = torch.where(observed[:, 1] == MISSING, MISSING, observed[:, 1] // 3).to(torch.uint8)
    forecast[:, 2] = observed[:, 2].clamp(max=254)
    return cont.joint_histogram(forecast, observed).numpy(), forecast.numpy(), observed.numpy()


def test_both_reductions_over_lead_times_are_what_they_say() -> None:
    histogram, forecast, observed = two_events()
    metrics = cont.event_metrics(histogram, ("5 min", "10 min", "15 min"))
    entry = summarise(metrics["csi_74"])
    by_lead = []
    for t in range(3):
        hits, misses, false_alarms, _ = boolean_counts(forecast[:, t], observed[:, t], 74)
        by_lead.append(hits / (hits + misses + false_alarms))
    hits, misses, false_alarms, _ = boolean_counts(forecast, observed, 74)
    assert entry["value"] == pytest.approx(hits / (hits + misses + false_alarms), rel=1e-12)
    assert [entry["by_label"][f"{m} min"]["value"] for m in (5, 10, 15)] == pytest.approx(by_lead, rel=1e-12)
    assert entry["mean_over_labels"] == pytest.approx(np.mean(by_lead), rel=1e-12)
    assert abs(entry["value"] - entry["mean_over_labels"]) > 0.005
    assert entry["n"] == 2


def test_csi_m_is_the_mean_over_the_thresholds_that_are_defined() -> None:
    histogram, forecast, observed = two_events()
    metrics = cont.event_metrics(histogram, ("5 min", "10 min", "15 min"))
    scores = [metrics[f"csi_{threshold}"].value for threshold in THRESHOLDS]
    assert metrics["csi_m"].value == pytest.approx(np.mean(scores), rel=1e-12)
    by_lead = np.mean([metrics[f"csi_{threshold}"].by_label for threshold in THRESHOLDS], axis=0)
    np.testing.assert_allclose(metrics["csi_m"].by_label, by_lead, rtol=1e-12)
    low = np.minimum(forecast, 140)
    dim = cont.joint_histogram(torch.from_numpy(low), torch.from_numpy(np.where(observed == MISSING, MISSING, low)))
    metrics = cont.event_metrics(dim.numpy(), ("5 min", "10 min", "15 min"))
    assert np.isnan(metrics["csi_181"].value) and metrics["csi_m"].value == 1.0


def test_names_and_directions() -> None:
    histogram, *_ = two_events()
    metrics = cont.event_metrics(histogram, ("5 min", "10 min", "15 min"))
    names = {f"{s}_{t}" for s in ("csi", "pod", "sucr", "bias", "hss", "csi_matched") for t in THRESHOLDS} | {"csi_m"}
    assert set(metrics) == names
    assert {name for name, metric in metrics.items() if metric.better == "one"} == {f"bias_{t}" for t in THRESHOLDS}
    assert metrics["sucr_74"].value == pytest.approx(
        (lambda h, m, f, c: h / (h + f))(*cont.counts_at(histogram, 74).sum((0, 1)))
    )
    pooled = cont.pooled_metrics(histogram, ("5 min", "10 min", "15 min"), 4)
    assert set(pooled) == {f"csi_{t}_pool4" for t in THRESHOLDS} | {"csi_m_pool4"}
    assert pooled["csi_m_pool4"].value == metrics["csi_m"].value
