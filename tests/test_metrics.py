"""Metrics from sums: both reductions, intervals over groups, and what is undefined."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nbhelpers.training.metrics import Metric, mean_metric, paired_difference, ratio, summarise, values

ONE = ("all",)


def _mean(values: np.ndarray, better: str | None = "lower") -> Metric:
    """One value a group."""
    return mean_metric(values[:, None], np.ones((len(values), 1)), labels=ONE, better=better, units="m")


def test_the_two_reductions_differ_when_labels_have_different_counts() -> None:
    # 5 min: 1 pixel of error 1; 10 min: 3 pixels of error 3.
    metric = mean_metric(
        np.array([[1.0, 9.0]] * 2), np.array([[1, 3]] * 2), labels=("5 min", "10 min"), better="lower", units="m"
    )
    entry = summarise(metric)
    assert entry["value"] == metric.value == 2.5
    assert entry["mean_over_labels"] == 2.0
    assert [entry["by_label"][label]["value"] for label in ("5 min", "10 min")] == [1.0, 3.0]
    assert (entry["n"], entry["units"], entry["better"]) == (2, "m", "lower")
    assert values({"mae": metric}) == {"mae": 2.5}


def test_a_score_that_is_no_mean_is_computed_from_pooled_counts() -> None:
    hits, false_alarms, misses = 82, 38, 23
    split = np.array([[[80, 8, 3]], [[2, 30, 20]]], dtype=float)  # the same counts in two groups
    csi = Metric(split, lambda s: s[..., 0] / s.sum(-1), ONE, "higher", "")
    assert csi.value == pytest.approx(hits / (hits + false_alarms + misses))
    assert csi.value == pytest.approx(0.573426, abs=1e-6)


def test_the_interval_of_a_mean_has_the_textbook_width() -> None:
    sample = np.random.default_rng(1).normal(2.0, 1.0, 400)
    low, high = summarise(_mean(sample))["ci95"]
    assert (high - low) / 2 == pytest.approx(1.96 * sample.std(ddof=1) / 20, rel=0.08)
    assert (high + low) / 2 == pytest.approx(sample.mean(), abs=0.01)
    assert summarise(_mean(sample)) == summarise(_mean(sample)), "the same data must give the same interval"


def test_windows_of_one_event_do_not_narrow_the_interval() -> None:
    """100 equal windows in each of 8 events are still 8 observations."""
    events = np.random.default_rng(2).normal(size=8)
    once = mean_metric(events[:, None], np.ones((8, 1)), labels=ONE, better="lower", units="")
    often = mean_metric(100 * events[:, None], np.full((8, 1), 100), labels=ONE, better="lower", units="")
    assert summarise(often)["ci95"] == pytest.approx(summarise(once)["ci95"])


def test_a_single_group_has_no_interval_and_is_never_better() -> None:
    good, bad = _mean(np.array([1.0])), _mean(np.array([2.0]))
    assert summarise(good)["ci95"] == [None, None]
    difference = paired_difference(good, bad)
    assert (difference["value"], difference["ci95"], difference["is_better"]) == (-1.0, [None, None], None)


def test_a_small_steady_advantage_shows_only_when_paired() -> None:
    rng = np.random.default_rng(3)
    events = rng.normal(10.0, 3.0, 40)  # events differ far more than models
    model, null = _mean(events), _mean(events + 0.1 + rng.normal(0, 0.05, 40))
    low, high = summarise(model)["ci95"]
    assert low < null.value < high, "unpaired intervals overlap"
    difference = paired_difference(model, null)
    assert difference["ci95"][1] < 0 and difference["is_better"] is True
    assert paired_difference(null, model)["is_better"] is False


@pytest.mark.parametrize(("better", "verdict"), [("lower", True), ("higher", False), ("one", None), (None, None)])
def test_the_good_side_depends_on_the_metric(better: str | None, verdict: bool | None) -> None:
    events = np.random.default_rng(4).normal(size=30)
    difference = paired_difference(_mean(events, better), _mean(events + 1.0, better))
    assert difference["value"] == pytest.approx(-1.0)
    assert difference["is_better"] is verdict


def test_the_same_noise_on_both_sides_is_no_difference() -> None:
    rng = np.random.default_rng(5)
    events = rng.normal(size=60)
    one, other = (_mean(events + rng.normal(0, 0.3, 60)) for _ in range(2))
    low, high = paired_difference(one, other)["ci95"]
    assert low < 0 < high
    assert paired_difference(one, other)["is_better"] is None
    itself = paired_difference(one, one)
    assert itself["ci95"] == [0.0, 0.0] and itself["is_better"] is None


def test_the_false_alarm_rate_of_better_than_is_about_five_per_cent() -> None:
    rng = np.random.default_rng(6)
    alarms = [
        paired_difference(_mean(rng.normal(size=40)), _mean(rng.normal(size=40)))["is_better"] is not None
        for _ in range(200)
    ]
    assert 0.01 <= np.mean(alarms) <= 0.12  # 5 %, within three standard errors and the bootstrap's own excess


def test_differences_by_label() -> None:
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(30, 2))
    counts = np.ones((30, 2))
    model = mean_metric(noise, counts, labels=("5", "10"), better="lower", units="")
    null = mean_metric(noise + [0.0, 1.0], counts, labels=("5", "10"), better="lower", units="")
    by_label = paired_difference(model, null)["by_label"]
    assert by_label["5"]["is_better"] is None and by_label["10"]["is_better"] is True
    assert by_label["10"]["value"] == pytest.approx(-1.0)


def test_scores_of_different_groups_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(_mean(np.zeros(3)), _mean(np.zeros(4)))


def test_what_was_never_counted_is_undefined_and_does_not_spoil_the_rest() -> None:
    sums, counts = np.array([[6.0, 0.0], [2.0, 0.0]]), np.array([[2.0, 0.0], [2.0, 0.0]])
    metric = mean_metric(sums, counts, labels=("5", "10"), better="lower", units="")
    entry = summarise(metric)
    assert entry["value"] == 2.0 and entry["mean_over_labels"] == 2.0
    assert entry["by_label"]["10"] == {"value": None, "ci95": [None, None]}
    assert entry["by_label"]["5"]["ci95"] == [1.0, 3.0]
    difference = paired_difference(metric, metric)
    assert difference["by_label"]["10"] == {"value": None, "ci95": [None, None], "is_better": None}
    json.dumps([entry, difference], allow_nan=False)


def test_an_interval_uses_the_resamples_in_which_the_score_is_defined() -> None:
    sums, counts = np.zeros((10, 1)), np.zeros((10, 1))
    sums[0], counts[0] = 3.0, 1.0  # the only group with an event; a third of the resamples miss it
    assert summarise(mean_metric(sums, counts, labels=ONE, better="lower", units=""))["ci95"] == [3.0, 3.0]


def test_ratio_is_nan_only_where_nothing_was_counted() -> None:
    np.testing.assert_array_equal(ratio(np.array([[1.0, 2.0], [0.0, 0.0]])), [0.5, np.nan])


def test_an_infinite_score_is_no_json_number() -> None:
    psnr = Metric(np.zeros((4, 1, 1)), lambda s: np.where(s[..., 0] == 0, np.inf, 1.0), ONE, "higher", "dB")
    entry = summarise(psnr)
    assert entry["value"] is None
    json.dumps(entry, allow_nan=False)


def test_a_label_that_few_groups_have_is_not_called_better() -> None:
    """Twelve groups, of which two have the second label: too few to tell, whatever the interval says."""
    counts = np.zeros((12, 2))
    counts[:10, 0], counts[10:, 1] = 4.0, 4.0

    def metric(value: float) -> Metric:
        return mean_metric(value * counts, counts, labels=("many", "few"), better="lower", units="1")

    by_label = paired_difference(metric(0.5), metric(1.0))["by_label"]
    assert by_label["many"]["is_better"] is True and by_label["few"]["is_better"] is None
