"""The decision table row by row, every gate, and the comparison with a run of field error alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator.verdict import gates, verdict
from nbhelpers.training.metrics import mean_metric, paired_difference, summarise
from nbhelpers.training.task import Gate

CONFIG = {"profile": "quick", "seed": 0, "width": 24, "scheduler": None}
NULLS = ("persistence", "mean", "linear")
SPECTRUM_SAY = "the spectrum has a say in the loss"
SHARPER = "high-band spectrum error at most half of the field-only run's"
DEARER = "field error at most 5 % above the field-only run's"


def report(
    field_error: float = 0.02,
    high: float = 0.5,
    *,
    run: str = "mine",
    n: int = 9,
    share: float | None = None,
    weight: float = 0.1,
    blown: float = 0.0,
    lost: Sequence[str] = (),
    undecided: Sequence[str] = (),
) -> dict[str, Any]:
    """What a table and its gates look at; ``lost`` are baselines that are better, ``undecided`` as good."""
    values = {
        "field_error": field_error, "spectrum_error_high": high, "blow_up_rate": blown, "correlation_time": 6.25,
        "rollout_rel_l2": 0.3,
    }  # fmt: skip
    metrics: dict[str, Any] = {name: {"value": value, "n": n} for name, value in values.items()}
    metrics["rollout_rel_l2"]["by_label"] = {f"step {k}": {} for k in (1, 2, 3)}
    baselines = {}
    for null in NULLS:
        is_better = False if null in lost else None if null in undecided else True
        size = 0.1 if null in lost else -0.1
        entry = {"value": size, "ci95": [size - 0.01, size + 0.01], "is_better": is_better}
        one = {"model_minus_this": copy.deepcopy(entry)}
        by_step = {"model_minus_this": entry | {"by_label": {"step 1": entry, "step 2": copy.deepcopy(entry)}}}
        baselines[null] = {"field_error": one, "rollout_rel_l2": by_step}
    ledger = {"field_error": {"weight": 1.0, "grad_share": 1.0}}
    if share is not None:
        ledger = {"field_error": {"weight": 0.9, "grad_share": 1 - share}}
        ledger["spectrum_error"] = {"weight": weight, "grad_share": share}
    return {"run": run, "config": dict(CONFIG), "metrics": metrics, "baselines": baselines, "ledger": ledger}


def history(losses: Sequence[Any] = (0.4, 0.1, 0.05)) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "train_total": total} for epoch, total in enumerate(losses, start=1)]


def by_name(found: Sequence[Gate]) -> dict[str, bool | None]:
    assert len({gate.name for gate in found}) == len(found)
    return {gate.name: gate.passed for gate in found}


PLAIN = report(0.02, 1.0, run="plain")


# --- the table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "unstable"),
    [
        ([0.1, float("nan")], True),
        ([float("inf"), 0.1], True),
        ([0.1, None], True),
        ([0.1, "nan"], True),
        ([0.1, 0.05, 0.04, 5.0], True),
        ([0.4, 0.1, 0.05, 0.2], False),
        ([3.0], False),
        ([], False),
    ],
)
def test_a_loss_that_is_undefined_or_blew_up_is_unstable_whatever_else_holds(losses: list[Any], unstable: bool) -> None:
    assert (verdict(report(n=2), history(losses), None).name == "unstable training") is unstable


@pytest.mark.parametrize(
    ("rep", "reference", "name", "words"),
    [
        (report(n=5, lost=NULLS), None, "undecided", "n = 5 simulations"),
        (report(n=6), None, "better than the baselines", "Field error 0.0200 one step ahead, correlated with"),
        (report(lost=["linear"], blown=0.5), None, "not better than the baselines", "linear is as good"),
        (report(undecided=["linear"]), None, "not better than the baselines", "linear is as good"),
        (report(lost=["persistence", "mean"]), None, "not better than the baselines", "persistence and mean are"),
        (report(blown=0.25, share=0.001), None, "good for one step, not for many", "25% of the rollouts"),
        (report(share=0.0099), PLAIN, "spectral term inert", "0.99% of the gradient"),
        (report(share=0.01), None, "better than the baselines", "6.2 steps"),
        (report(0.0209, 0.5, share=0.1), PLAIN, "success", "0.50 and field error 1.045"),
        (report(0.0212, 0.3, share=0.1), PLAIN, "sharper at a price", "'plain'"),
        (report(0.0200, 0.51, share=0.1), PLAIN, "as good, not sharper", "0.51"),
        (report(0.0300, 0.8, share=0.1), PLAIN, "worse", "1.500"),
        (report(0.0209, 0.5, share=0.1), None, "better than the baselines", "scheduler none and compare"),
    ],
)  # fmt: skip
def test_the_first_row_that_fits(rep: dict[str, Any], reference: dict[str, Any] | None, name: str, words: str) -> None:
    found = verdict(rep, history(), reference)
    assert found.name == name and words in f"{found.meaning} {found.next_step}", found
    assert found.next_step.endswith((".", "?"))


# --- gates --------------------------------------------------------------------------------------------------------


def test_a_good_run_passes_every_gate() -> None:
    found = by_name(gates(report(share=0.2), history()))
    assert found == {
        "field_error better than persistence": True,
        "field_error better than mean": True,
        "field_error better than linear": True,
        "rollout_rel_l2 better than persistence at every step": True,
        "no rollout blows up": True,
        SPECTRUM_SAY: True,
    }


@pytest.mark.parametrize(
    ("rep", "name", "passed", "value"),
    [
        (report(lost=["linear"]), "field_error better than linear", False, "all +0.1000 [+0.0900, +0.1100]"),
        (report(undecided=["mean"]), "field_error better than mean", False, "all -0.1000"),
        (report(n=5), "field_error better than mean", None, "n = 5 simulations"),
        (report(n=5), "rollout_rel_l2 better than persistence at every step", None, "n = 5"),
        (report(), "field_error better than mean", True, "n = 9 simulations"),
        (report(lost=["persistence"]), "rollout_rel_l2 better than persistence at every step", False, "step 2 +0.1"),
        (report(blown=0.1), "no rollout blows up", False, "10% of the rollouts over 3 steps"),
        (report(share=0.0099), SPECTRUM_SAY, False, "1.0% of the gradient"),
        (report(share=0.01), SPECTRUM_SAY, True, ""),
        (report(share=0.9), SPECTRUM_SAY, True, ""),
        (report(share=0.901), SPECTRUM_SAY, False, "90.1%"),
    ],
)
def test_each_gate(rep: dict[str, Any], name: str, passed: bool | None, value: str) -> None:
    (gate,) = (one for one in gates(rep, history()) if one.name == name)
    assert gate.passed is passed and value in gate.value, gate


def test_a_run_without_a_spectral_term_is_not_judged_by_its_share() -> None:
    assert SPECTRUM_SAY not in by_name(gates(report(), history()))


def test_one_step_that_is_no_better_fails_the_rollout() -> None:
    rep = report()
    rep["baselines"]["persistence"]["rollout_rel_l2"]["model_minus_this"]["by_label"]["step 2"] = {
        "value": None, "ci95": [None, None], "is_better": None,
    }  # fmt: skip
    (gate,) = (one for one in gates(rep, history()) if "at every step" in one.name)
    assert gate.passed is False and gate.value == "step 2 undefined"


def test_rollouts_of_one_step_have_no_labels() -> None:
    rep = report()
    del rep["metrics"]["rollout_rel_l2"]["by_label"]
    for null in NULLS:
        del rep["baselines"][null]["rollout_rel_l2"]["model_minus_this"]["by_label"]
    assert set(by_name(gates(rep, history())).values()) == {True}


@pytest.mark.parametrize(("luck", "passed"), [(False, True), (True, False)])
def test_gates_rest_on_paired_intervals(luck: bool, passed: bool) -> None:
    """Simulations differ by factors; a small gain in each counts, a large one in a single one does not."""
    rng = np.random.default_rng(0)
    theirs = rng.uniform(0.05, 0.8, (12, 1))
    gain = np.where(np.arange(12)[:, None] == 0, 0.04, 0.0) if luck else 0.002 + 1e-4 * rng.normal(size=(12, 1))
    model, null = (
        mean_metric(values, np.ones_like(values), labels=("all",), better="lower", units="1")
        for values in (theirs - gain, theirs)
    )
    rep = report()
    rep["metrics"]["field_error"] = summarise(model)
    for name in NULLS:
        rep["baselines"][name]["field_error"] = {"model_minus_this": paired_difference(model, null)}
    found = by_name(gates(rep, history()))
    assert [found[f"field_error better than {null}"] for null in NULLS] == [passed] * 3
    assert (verdict(rep, history(), None).name == "better than the baselines") is passed


# --- the reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field_error", "high", "sharper", "dearer"),
    [(0.0209, 0.49, True, True), (0.0211, 0.49, True, False), (0.0209, 0.51, False, True), (0.03, 2.0, False, False)],
)
def test_the_floor_is_a_pair_of_gates(field_error: float, high: float, sharper: bool, dearer: bool) -> None:
    found = by_name(gates(report(field_error, high, share=0.1), history(), PLAIN))
    assert (found[SHARPER], found[DEARER]) == (sharper, dearer)
    assert SHARPER not in by_name(gates(report(field_error, high, share=0.1), history()))


def test_a_reference_with_a_spectral_term_is_refused() -> None:
    spectral = report(run="other", share=0.3)
    for act in (lambda: gates(report(), history(), spectral), lambda: verdict(report(share=0.1), history(), spectral)):
        with pytest.raises(UserError, match="'other' was trained with field_error, spectrum_error.*--scheduler none"):
            act()


def test_a_reference_that_only_followed_the_spectrum_is_accepted() -> None:
    followed = report(0.02, 1.0, run="plain", share=0.0, weight=0.0)
    assert by_name(gates(report(0.02, 0.4, share=0.1), history(), followed))[SHARPER] is True
    without_ledger = PLAIN | {"ledger": {}}
    assert by_name(gates(report(0.02, 0.4, share=0.1), history(), without_ledger))[SHARPER] is True


@pytest.mark.parametrize("setting", ["width", "seed"])
def test_a_reference_that_differs_in_more_than_its_loss_is_refused(setting: str) -> None:
    other = report(0.02, 1.0, run="plain")
    other["config"] |= {setting: 7, "scheduler": {"patience": 3}}
    with pytest.raises(UserError, match=f"'plain' differs in {setting}: expected the same run"):
        verdict(report(share=0.1), history(), other)


def test_a_reference_without_a_high_band_is_nothing_to_compare_with() -> None:
    for value in (None, 0.0):
        with pytest.raises(UserError, match="spectrum_error_high is 0.5 here and .* there is nothing to compare"):
            verdict(report(share=0.1), history(), report(0.02, value, run="plain"))  # type: ignore[arg-type]


# --- the hand-over ----------------------------------------------------------------------------------------------------

PARAMS = {"target": "spectrum_error", "final_weight_source": 0.9, "final_weight_target": 0.1}


@pytest.mark.parametrize(
    ("weights", "passed", "words"),
    [
        ((0.0, 0.05, 0.1), True, "0.1 of 0.1 in the last epoch, and more than at first from epoch 2 on"),
        ((0.0, 0.0, 0.05), False, "0.05 of 0.1 in the last epoch, and more than at first from epoch 3 on"),
        ((0.0, 0.0, 0.0), False, "0 of 0.1 in the last epoch, and never another"),
    ],
)
def test_a_hand_over_has_a_gate_and_one_that_stopped_short_a_verdict(
    weights: Sequence[float], passed: bool, words: str
) -> None:
    rep = report(share=0.0)
    rep["config"]["scheduler"] = PARAMS
    rows = [row | {"schedule_spectrum_error": weight} for row, weight in zip(history(), weights, strict=True)]
    (gate,) = (one for one in gates(rep, rows) if one.name == "the loss weights were handed over")
    assert gate.passed is passed and words in gate.value
    assert verdict(rep, rows, None).name == ("spectral term inert" if passed else "not handed over")
    assert "the loss weights were handed over" not in by_name(gates(report(), rows))
