"""Scores of ensembles: closed forms, hand examples, what is missing, and streaming."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import sevir
import torch
from torch import Tensor

from nbhelpers.stages.perceptual_unet.contingency import event_metrics, joint_histogram, to_levels
from nbhelpers.stages.perceptual_unet.data import MISSING, THRESHOLDS
from nbhelpers.stages.perceptual_unet.ensemble_scores import (
    EnsembleVerification,
    as_if_sure,
    exceeding,
    probability_matched_mean,
    reliability_table,
)
from nbhelpers.training.metrics import Metric, mean_metric, paired_difference, summarise

EVENTS = ("B", "A", "B", "C")  # four windows of three events
M = 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def observed() -> Tensor:
    """(4, 2, 24, 20) grey levels with a missing sector."""
    frames = np.stack([sevir.storm(i, n_frames=2, height=24, width=20) for i in range(4)])
    frames[0, :, :10, 5:15] = MISSING
    frames[3, 1, :, :4] = MISSING
    return torch.from_numpy(frames)


@pytest.fixture(scope="module")
def members(observed: Tensor) -> Tensor:
    """In model units, in places outside [0, 1]."""
    truth = torch.where(observed == MISSING, 0, observed) / 255
    moved = torch.stack([truth.roll(shift, -1) for shift in range(M)], dim=1)
    return moved + 0.05 * normal(*moved.shape).float()


def score(members: Tensor, observed: Tensor, sizes: Sequence[int] = (4,)) -> dict[str, Metric]:
    verification, first = EnsembleVerification((5, 10), members.shape[1]), 0
    for size in sizes:
        part = slice(first, first + size)
        verification.accumulate(members[part], observed[part], EVENTS[part])
        first += size
    return verification.compute()


def test_a_member_reaches_a_level_exactly_where_it_is_that_level_or_higher() -> None:
    every = (torch.arange(256) / 255).reshape(1, 1, 1, 16, 16)
    for threshold in THRESHOLDS:
        reached = exceeding(to_levels(torch.cat([every, torch.zeros_like(every)], 1)), threshold).flatten()
        assert reached.tolist() == [int(level >= threshold) for level in range(256)]


def test_brier_is_the_mean_squared_error_of_probabilities_over_measured_pixels(
    members: Tensor, observed: Tensor
) -> None:
    metrics, measured = score(members, observed), (observed != MISSING).numpy()
    for threshold in THRESHOLDS:
        p = (to_levels(members).numpy() >= threshold).mean(1)
        squared = (p - (observed.numpy() >= threshold)) ** 2
        found = metrics[f"brier_{threshold}"]
        assert found.value == pytest.approx(squared[measured].mean(), rel=1e-12)
        for t in range(2):
            assert found.by_label[t] == pytest.approx(squared[:, t][measured[:, t]].mean(), rel=1e-12)


def test_brier_is_reliability_minus_resolution_plus_uncertainty(members: Tensor, observed: Tensor) -> None:
    metrics = score(members, observed)
    for threshold in THRESHOLDS:
        parts = [metrics[f"{part}_{threshold}"] for part in ("brier", "reliability", "resolution", "uncertainty")]
        for values in zip(*([m.value, *m.by_label] for m in parts), strict=True):
            assert values[0] == pytest.approx(values[1] - values[2] + values[3], abs=1e-14)
        assert parts[1].value > 0 and parts[2].value > 0


def test_brier_and_its_parts_by_hand() -> None:
    # Two members on six pixels: said 0, ½, 1 on two each; it rained on none, one and both: reliable, and resolved.
    low, high = 0.0, 200 / 255
    members = torch.tensor([[low, low, low, low, high, high], [low, low, high, high, high, high]])
    observed = torch.tensor([0, 0, 0, 200, 200, 200], dtype=torch.uint8)
    verification = EnsembleVerification((5,), 2)
    verification.accumulate(members.reshape(1, 2, 1, 1, 6), observed.reshape(1, 1, 1, 6), ("A",))
    metrics = verification.compute()
    parts = {part: metrics[f"{part}_74"].value for part in ("brier", "reliability", "resolution", "uncertainty")}
    expected = {"brier": 1 / 12, "reliability": 0.0, "resolution": 1 / 6, "uncertainty": 1 / 4}
    assert parts == pytest.approx(expected, abs=1e-14)
    p, pixels, events = reliability_table(metrics["brier_74"])
    assert (p.tolist(), pixels.tolist(), events.tolist()) == ([0, 0.5, 1], [2, 2, 2], [0, 1, 2])


def test_spread_equals_error_where_the_truth_is_as_one_more_member() -> None:
    draws = 0.5 + 0.05 * normal(1, 4, 1, 300, 300)
    metrics = score_levels(draws[:, :3], (draws[:, 3] * 255).round().to(torch.uint8))
    assert metrics["spread_skill"].value == pytest.approx(1.0, abs=0.01)
    assert metrics["spread"].value == pytest.approx(0.05 * (4 / 3) ** 0.5, rel=0.01)
    twice = score_levels(0.5 + 2 * (draws[:, :3] - 0.5), (draws[:, 3] * 255).round().to(torch.uint8))
    assert twice["spread"].value == pytest.approx(2 * metrics["spread"].value, rel=1e-6)


def score_levels(members: Tensor, observed: Tensor) -> dict[str, Metric]:
    verification = EnsembleVerification((5,), members.shape[1])
    verification.accumulate(members, observed, ("A",))
    return verification.compute()


def test_spread_and_error_are_numpys(members: Tensor, observed: Tensor) -> None:
    metrics, measured = score(members, observed), (observed != MISSING).numpy()
    x = members.clamp(0, 1).double().numpy()
    error = (x.mean(1) - observed.numpy() / 255)[measured]
    assert metrics["rmse_mean"].value == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)
    variance = x.var(1, ddof=1)[measured].mean()
    assert metrics["spread"].value == pytest.approx(np.sqrt((M + 1) / M * variance), rel=1e-12)


def test_what_members_forecast_where_nothing_was_measured_changes_nothing(members: Tensor, observed: Tensor) -> None:
    plain = score(members, observed)
    wild = score(torch.where((observed == MISSING)[:, None], 0.9, members), observed)
    for name, metric in plain.items():
        np.testing.assert_array_equal(metric.sums, wild[name].sums, err_msg=name)
    _, pixels, _ = reliability_table(plain["brier_74"])
    assert pixels.sum() == int((observed != MISSING).sum())


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3), (2, 2)])
def test_any_batch_size_gives_the_same_scores(members: Tensor, observed: Tensor, sizes: Sequence[int]) -> None:
    whole, parts = score(members, observed), score(members, observed, sizes)
    for name, metric in whole.items():
        assert metric.sums.shape[:2] == (3, 2) and metric.labels == ("5 min", "10 min")
        np.testing.assert_array_equal(metric.sums, parts[name].sums, err_msg=name)


def test_ensembles_of_different_size_are_compared_over_events(members: Tensor, observed: Tensor) -> None:
    metrics, fewer = score(members, observed), score(members[:, 2:], observed)
    for name in ("crps", "brier_74"):
        entry = paired_difference(metrics[name], fewer[name])
        assert entry["value"] == pytest.approx(metrics[name].value - fewer[name].value)
        assert entry["is_better"] is None and summarise(metrics[name])["n"] == 3


def test_the_probability_matched_mean_has_the_means_pattern_and_the_members_values(members: Tensor) -> None:
    clipped = members.clamp(0, 1)
    found, mean = probability_matched_mean(clipped), clipped.mean(1)
    for b in range(4):
        for t in range(2):
            order = np.argsort(mean[b, t].numpy(), axis=None, kind="stable")
            pooled = np.sort(clipped[b, :, t].numpy(), axis=None).reshape(-1, M).mean(-1)
            np.testing.assert_allclose(found[b, t].numpy().ravel()[order], pooled, rtol=1e-6)
    torch.testing.assert_close(found.mean((-2, -1)), mean.mean((-2, -1)))


def test_the_probability_matched_mean_undoes_the_smoothing_of_the_mean() -> None:
    # Two members with the same peak at different places: the mean has it twice at half its height.
    members = torch.zeros(1, 2, 1, 4, 4)
    members[0, 0, 0, 1, 1] = members[0, 1, 0, 2, 2] = 1.0
    found = probability_matched_mean(members)
    assert found.max() == 1.0 and found.sum() == 1.0 and members.mean(1).max() == 0.5
    same = random(1, 1, 2, 6, 7).expand(1, 3, 2, 6, 7)
    torch.testing.assert_close(probability_matched_mean(same), same[:, 0])


def test_a_forecast_read_as_certain_scores_as_an_ensemble_that_agrees(members: Tensor, observed: Tensor) -> None:
    one = members[:, :1].clamp(0, 1)
    agreeing = score(one.expand(-1, 2, -1, -1, -1), observed)
    counts = np.zeros((3, 2, 7, 256), np.int64)
    sums, pixels = np.zeros((3, 2)), np.zeros((3, 2))
    histogram, measured = joint_histogram(to_levels(one[:, 0]), observed).numpy(), observed != MISSING
    error = torch.where(measured, (one[:, 0].double() - observed / 255).abs(), 0.0).sum((-2, -1)).numpy()
    for window, event in enumerate(EVENTS):
        group = sorted(set(EVENTS)).index(event)
        counts[group] += histogram[window]
        sums[group] += error[window]
        pixels[group] += measured[window].sum((-2, -1)).numpy()
    labels = ("5 min", "10 min")
    own = {**event_metrics(counts, labels), "mae": mean_metric(sums, pixels, labels=labels, better="lower", units="1")}
    sure = as_if_sure(own)
    assert set(sure) == {"crps", *(f"brier_{threshold}" for threshold in THRESHOLDS)}
    for name, metric in sure.items():
        np.testing.assert_allclose(metric.by_label, agreeing[name].by_label, rtol=1e-6, err_msg=name)
