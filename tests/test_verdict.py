"""The decision table row by row, and gates that rest on paired intervals."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.verdict import gates, verdict
from nbhelpers.training.metrics import Metric, paired_difference, ratio, summarise

NULLS = ("persistence", "advection")
SEVIR = {"split": {"rule": "SEVIR's official date: test from 2019-06-01"}, "simulated": False, "lead_minutes": [5, 10]}
ELSEWHERE = SEVIR | {"split": {"rule": "by event id, because all events fall on 1 day(s)"}}


def entry(value: float | None, units: str = "") -> dict[str, Any]:
    return {"value": value, "units": units, "n": 9}


def report(
    csi: float | None = 0.5,
    lpips: float = 0.3,
    *,
    mse: float = 0.01,
    beats: bool | None = True,
    share: float | None = 0.1,
    pod: float | None = 0.5,
    data: dict[str, Any] = SEVIR,
    units: str = "LPIPS (alex)",
    lambda_perc: float | None = None,
) -> dict[str, Any]:
    """A report with what the decision table looks at."""
    metrics = {"csi_74": entry(csi), "pod_74": entry(pod), "mse": entry(mse), "lpips": entry(lpips, units)}
    against = {name: {"model_minus_this": {"is_better": beats}} for name in ("mse", "csi_74")}
    return {
        "run": "r",
        "metrics": metrics,
        "baselines": {null: copy.deepcopy(against) for null in NULLS},
        "ledger": {} if share is None else {"perceptual": {"grad_share": share}},
        "data": data,
        "config": {"lambda_perc": lambda_perc, "perceptual_share": None if lambda_perc is not None else share},
    }


def history(epochs: int, losses: Sequence[Any] = ()) -> list[dict[str, Any]]:
    totals = [*losses] or [0.01] * epochs
    return [{"epoch": epoch, "train_total": total} for epoch, total in enumerate(totals, start=1)]


def name_of(rep: dict[str, Any], *, epochs: int = 20, reference: dict[str, Any] | None = None) -> str:
    return verdict(rep, history(epochs), reference).name


@pytest.mark.parametrize(
    "losses", [[0.1, float("nan")], [float("inf"), 0.1], [0.1, None], [0.1, 0.05, 0.04, 5.0], [0.1, "nan"]]
)
def test_a_loss_that_is_undefined_or_blew_up_is_unstable_whatever_else_holds(losses: list[Any]) -> None:
    assert verdict(report(0.9, 0.1), history(0, losses), None).name == "unstable"


def test_a_noisy_loss_is_not_unstable() -> None:
    assert verdict(report(0.9, 0.1), history(0, [0.4, 0.1, 0.05, 0.2]), None).name == "success"


@pytest.mark.parametrize(
    ("rep", "epochs", "expected"),
    [
        (report(None, pod=None), 20, "undecided"),  # no event was observed at all
        (report(0.0, pod=None), 20, "undecided"),  # … and false alarms do not make one
        (report(0.0, pod=0.0), 9, "too few epochs"),
        (report(0.0, pod=0.0, mse=0.9, share=0.001), 9, "too few epochs"),
        (report(0.0, pod=0.0, mse=0.051), 10, "bug"),
        (report(0.0, pod=0.0, mse=0.051, share=0.001), 30, "bug"),
        (report(0.0, pod=0.0, mse=0.05, share=0.001), 10, "perceptual term inert"),
        (report(0.9, 0.1, share=0.0099), 10, "perceptual term inert"),
        (report(0.65, 0.349), 10, "success"),
        (report(0.65, 0.349, share=None), 10, "success"),  # a plain MSE run cannot have an inert term
        (report(0.65, 0.349, share=0.01), 10, "success"),
        (report(0.65, 0.35), 10, "proceed"),
        (report(0.72, 0.30, beats=None), 10, "proceed"),  # 0.72, but persistence may be as good
        (report(0.72, 0.30, beats=False), 10, "proceed"),
        (report(0.60, 0.379), 10, "proceed"),
        (report(0.599, 0.349), 10, "too aggressive"),
        (report(0.30, 0.2), 10, "too aggressive"),
        (report(0.60, 0.38), 10, "skill kept, not sharper"),
        (report(0.80, 0.6), 10, "skill kept, not sharper"),
        (report(0.599, 0.35), 10, "stretch"),
        (report(0.55, 0.6), 10, "stretch"),
        (report(0.549, 0.35), 10, "iterate"),
        (report(0.0, 0.6, pod=0.0), 10, "iterate"),
    ],
)
def test_every_row_of_sevirs_table_first_match_first(rep: dict[str, Any], epochs: int, expected: str) -> None:
    found = verdict(rep, history(epochs), None)
    assert found.name == expected
    assert found.meaning and found.next_step


def test_one_baseline_that_is_as_good_is_enough_to_spoil_success() -> None:
    for null in NULLS:
        for metric in ("mse", "csi_74"):
            rep = report(0.7, 0.3)
            rep["baselines"][null][metric]["model_minus_this"]["is_better"] = None
            assert name_of(rep) == "proceed"


@pytest.mark.parametrize(
    "change", [{"data": ELSEWHERE}, {"data": SEVIR | {"simulated": True}}, {"units": "LPIPS (squeeze)"}]
)
def test_sevirs_thresholds_are_used_nowhere_else(change: dict[str, Any]) -> None:
    assert name_of(report(0.9, 0.1, **change)) == "better than the baselines"
    assert name_of(report(0.9, 0.1, beats=None, **change)) == "not better than the baselines"


REFERENCE = report(0.50, 0.40, data=ELSEWHERE, lambda_perc=0.0, share=None)


@pytest.mark.parametrize(
    ("csi", "lpips", "beats", "expected"),
    [
        (0.475, 0.348, True, "success"),  # exactly 95 % and 87 %
        (0.475, 0.348, None, "sharper at little cost"),
        (0.474, 0.348, True, "too aggressive"),
        (0.475, 0.349, True, "skill kept, not sharper"),
        (0.600, 0.500, True, "skill kept, not sharper"),
        (0.474, 0.349, True, "iterate"),
    ],
)
def test_elsewhere_the_rule_is_relative_to_the_run_without_the_term(
    csi: float, lpips: float, beats: bool | None, expected: str
) -> None:
    found = verdict(report(csi, lpips, beats=beats, data=ELSEWHERE), history(20), REFERENCE)
    assert found.name == expected
    assert f"{csi / 0.5:.1%}" in found.meaning and f"{lpips / 0.4:.1%}" in found.meaning  # both changes are printed


def test_the_relative_rule_also_takes_a_random_feature_distance() -> None:
    reports = [report(0.5, 0.3, data=ELSEWHERE), copy.deepcopy(REFERENCE)]
    for rep in reports:
        rep["metrics"]["feature_distance_random"] = rep["metrics"].pop("lpips") | {"units": "of a random squeeze"}
    found = verdict(reports[0], history(20), reports[1])
    assert found.name == "success" and "feature_distance_random 75.0%" in found.meaning


def test_a_reference_that_cannot_be_compared_is_refused() -> None:
    rep = report(data=ELSEWHERE)
    with pytest.raises(UserError, match="reports LPIPS .squeeze., this one LPIPS .alex."):
        verdict(rep, history(20), report(data=ELSEWHERE, lambda_perc=0.0, share=None, units="LPIPS (squeeze)"))
    other = copy.deepcopy(REFERENCE)
    other["metrics"]["feature_distance_random"] = other["metrics"].pop("lpips")
    with pytest.raises(UserError, match="no such distance"):
        verdict(rep, history(20), other)
    with pytest.raises(UserError, match="train one with --lambda-perc 0"):
        verdict(rep, history(20), report(data=ELSEWHERE))
    no_share = report(data=ELSEWHERE, share=0.0)  # is no term either
    assert name_of(rep, reference=no_share) == "skill kept, not sharper"


def test_a_reference_without_any_hit_decides_nothing() -> None:
    blank = report(0.0, 0.4, data=ELSEWHERE, lambda_perc=0.0, share=None)
    assert name_of(report(data=ELSEWHERE), reference=blank) == "undecided"


# --- gates: real metrics of invented events -----------------------------------------------------------------------


def metric(values: np.ndarray, better: Any, labels: tuple[str, ...]) -> Metric:
    """A mean over events of ``(events, leads)`` values."""
    return Metric(np.stack([values, np.ones_like(values)], -1), ratio, labels, better, "")


def judged(gain: dict[str, np.ndarray], leads: Sequence[int] = (5, 10, 15)) -> dict[str, bool | None]:
    """Gates by name; ``gain`` is how much better than both baselines the model is, (events, leads) for each metric."""
    labels = tuple(f"{lead} min" for lead in leads)
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"metrics": {}, "baselines": {null: {} for null in NULLS}, "ledger": {}}
    found["data"] = {"lead_minutes": list(leads)}
    for name, better in (("mse", "lower"), ("csi_74", "higher")):
        base = rng.uniform(0.2, 0.8, gain[name].shape)  # events differ far more than the two predictors do
        sign = -1 if better == "lower" else 1
        model, null = metric(base + sign * gain[name], better, labels), metric(base, better, labels)
        found["metrics"][name] = summarise(model)
        for baseline in NULLS:
            found["baselines"][baseline][name] = {"model_minus_this": paired_difference(model, null)}
    return {gate.name: gate.passed for gate in gates(found)}


def steady(size: float, n: int = 12, leads: int = 3) -> np.ndarray:
    return np.full((n, leads), size) + np.random.default_rng(1).normal(0, abs(size) / 10, (n, leads))


def test_a_small_gain_in_every_event_passes_because_the_interval_is_paired() -> None:
    found = judged({"mse": steady(0.01), "csi_74": steady(0.01)})
    assert found == {
        "mse better than persistence at every lead time": True,
        "csi_74 better than persistence at every lead time from 10 min": True,
        "mse better than advection at every lead time": True,
        "csi_74 better than advection at every lead time from 10 min": True,
    }


def test_a_gain_in_the_mean_alone_does_not_pass() -> None:
    lucky = np.zeros((12, 3))
    lucky[0] = 0.5  # one event carries it all
    assert set(judged({"mse": lucky, "csi_74": lucky}).values()) == {False}
    assert set(judged({"mse": steady(-0.01), "csi_74": steady(-0.01)}).values()) == {False}


def test_short_lead_times_count_for_the_error_but_not_for_event_scores() -> None:
    loses_early = steady(0.01)
    loses_early[:, 0] = -0.2
    found = judged({"mse": loses_early, "csi_74": loses_early})
    assert [found[f"mse better than {null} at every lead time"] for null in NULLS] == [False, False]
    assert [found[f"csi_74 better than {null} at every lead time from 10 min"] for null in NULLS] == [True, True]
    loses_late = steady(0.01)
    loses_late[:, 2] = -0.2
    assert set(judged({"mse": loses_late, "csi_74": loses_late}).values()) == {False}


def test_one_lead_time() -> None:
    gain = steady(0.01, leads=1)
    assert set(judged({"mse": gain, "csi_74": gain}, leads=[5])) == {
        f"mse better than {n} at every lead time" for n in NULLS
    }
    assert set(judged({"mse": gain, "csi_74": gain}, leads=[10]).values()) == {True}


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_handful_of_events_decides_nothing(n: int) -> None:
    for gain in (steady(0.01, n=n), steady(-0.01, n=n)):
        assert set(judged({"mse": gain, "csi_74": gain}).values()) == {None}
    assert set(judged({"mse": steady(0.01, n=6), "csi_74": steady(0.01, n=6)}).values()) == {True}
    rep = report(0.9, 0.1, data=ELSEWHERE)
    rep["metrics"]["mse"]["n"] = n
    found = verdict(rep, history(20), None)
    assert found.name == "undecided" and f"n = {n} events" in found.meaning


def test_a_lead_time_without_a_score_is_not_decided() -> None:
    mixed = steady(0.01)
    mixed[:, 1] = np.nan  # at 10 min nothing could be scored
    found = judged({"mse": mixed, "csi_74": steady(0.01)})
    assert found["mse better than advection at every lead time"] is None
    mixed[:, 2] = -0.2  # but 15 min is decided
    assert judged({"mse": mixed, "csi_74": steady(0.01)})["mse better than advection at every lead time"] is False


@pytest.mark.parametrize(("share", "passed"), [(0.0099, False), (0.01, True), (0.5, True)])
def test_the_share_of_the_perceptual_term_is_a_gate(share: float, passed: bool) -> None:
    rep = {"ledger": {"perceptual": {"grad_share": share}}, "data": {"lead_minutes": [5]}, "metrics": {"mse": {"n": 9}}}
    better = {"mse": {"model_minus_this": {"is_better": True, "value": -1.0, "ci95": [-2.0, -0.5]}}}
    rep["baselines"] = {null: better for null in NULLS}
    assert [gate.passed for gate in gates(rep) if "have a say" in gate.name] == [passed]
