"""Gates and the decision table of SAR grounding, from reports made by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.stages.sar_grounding.verdict import gates, relative_band, verdict

METRICS = {
    "psnr": 33.0, "sam": 3.0, "sar_agreement": 0.62, "sar_agreement_relative": 0.85, "sar_agreement_unrelated": 0.503,
}  # fmt: skip
GAIN = {"psnr": 2.0, "sam": -1.0, "sar_agreement": 0.05}  # over opt_v2
LOWER_IS_BETTER = {"sam"}
HALF = {"psnr": 0.2, "sam": 0.2, "sar_agreement": 0.004}  # of the intervals


def settings(**changes: Any) -> dict[str, Any]:
    """As they stand in a record."""
    return json.loads(json.dumps(dataclasses.asdict(Config.for_profile("quick", **changes))))


def difference(name: str, value: float | None) -> dict[str, Any]:
    if value is None:
        return {"model_minus_this": {"value": None, "ci95": [None, None], "is_better": None}}
    low, high = value - HALF[name], value + HALF[name]
    better = None if low <= 0 <= high else (value < 0) == (name in LOWER_IS_BETTER)
    return {"model_minus_this": {"value": value, "ci95": [low, high], "is_better": better}}


def metric(value: float | None, n: int) -> dict[str, Any]:
    return {"value": value, "n": n, "ci95": [None, None] if value is None else [value - 0.01, value + 0.01]}


def report(
    *, gain: Mapping[str, float | None] | None = None, over_recoloured: float | None = 0.5, cost: float | None = 1.2,
    n: int = 12, run: str = "mine", config: Mapping[str, Any] | None = None, **metrics: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Of a run that passes everything, but for what is changed.

    Args:
        gain: of scores over those of opt_v2.
        over_recoloured: dB over opt_v2 with its bands recoloured.
        cost: dB that another tile's SAR costs.
    """
    return {
        "run": run,
        "config": settings(**(config or {})),
        "metrics": {name: metric(value, n) for name, value in {**METRICS, **metrics}.items()},
        "baselines": {
            "opt_v2": {name: difference(name, value) for name, value in {**GAIN, **(gain or {})}.items()},
            "recoloured": {"psnr": difference("psnr", over_recoloured)},
            "sar_shuffled": {"psnr": difference("psnr", cost)},
        },
    }


def history(losses: Sequence[float | None] = (1.0, 0.8, 0.7)) -> list[dict[str, Any]]:
    return [{"epoch": epoch + 1, "train_total": loss} for epoch, loss in enumerate(losses)]


def judged(rep: dict[str, Any], rows: list[dict[str, Any]] | None = None, reference: Any = None) -> str:
    found = verdict(rep, history() if rows is None else rows, reference)
    assert found.meaning.endswith(".") and found.next_step.endswith("."), found
    return found.name


# --- gates -----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_all_one_wants_passes_every_gate() -> None:
    found = gates(report())
    assert [gate.name for gate in found] == [
        "PSNR better than that of opt_v2",
        "SAM better than that of opt_v2",
        "agreement with the SAR image better than that of opt_v2",
        "PSNR better than that of opt_v2 with its bands recoloured",
        "another tile's SAR costs at least 0.5 dB",
        "agreement of unrelated tiles is 0.5 ± 0.02",
    ]
    assert all(gate.passed and gate.value for gate in found)
    assert found[0].value == "+2.000 [+1.800, +2.200], n = 12 blocks"


@pytest.mark.parametrize(
    ("rep", "name"),
    [
        (report(gain={"psnr": -0.5}), "PSNR better"),
        (report(gain={"sam": 0.3}), "SAM better"),
        (report(gain={"sar_agreement": -0.01}), "agreement with the SAR image better"),
        (report(cost=0.49), "another tile's SAR"),
        (report(cost=-1.0), "another tile's SAR"),
        (report(sar_agreement_unrelated=0.523), "agreement of unrelated tiles"),
        (report(sar_agreement_unrelated=0.477), "agreement of unrelated tiles"),
    ],
)
def test_each_gate_fails_for_its_own_reason(rep: dict[str, Any], name: str) -> None:
    (found,) = [gate for gate in gates(rep) if gate.passed is False]
    assert found.name.startswith(name)


@pytest.mark.parametrize(
    ("rep", "names", "words"),
    [
        (report(gain={"psnr": 0.1}), ["PSNR"], "[-0.100, +0.300]"),
        (
            report(n=5),
            ["PSNR", "SAM", "agreement with", "PSNR", "another tile's SAR", "agreement of unrelated"],
            "n = 5 spatial blocks, at least 6",
        ),
        (report(over_recoloured=0.1), ["PSNR better than that of opt_v2 with"], "[-0.100, +0.300]"),
        (report(gain={"sar_agreement": None}), ["agreement with"], "undefined"),
        (report(cost=None), ["another tile's SAR"], "undefined"),
        (report(sar_agreement_unrelated=None), ["agreement of unrelated"], "one spatial block"),
    ],
)
def test_what_cannot_be_decided(rep: dict[str, Any], names: list[str], words: str) -> None:
    found = [gate for gate in gates(rep) if gate.passed is not True]
    assert len(found) == len(names)
    for gate, name in zip(found, names, strict=True):
        assert gate.passed is None and gate.name.startswith(name) and words in gate.value


def test_a_model_that_never_sees_sar_need_not_use_it() -> None:
    rep = report(cost=0.0, config={"use_sar": False})
    assert all(gate.passed and "another tile's SAR" not in gate.name for gate in gates(rep))
    assert judged(rep) == "better than opt_v2, without SAR"


# --- the decision table, first match wins -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rep", "losses", "name"),
    [
        (report(), (1.0, 0.8, 0.7), "grounded"),
        (report(), (), "grounded"),
        (report(), (1.0, None, 0.7), "grounded"),
        (report(), (1.0, 0.6, 0.89), "grounded"),
        (report(), (1.0, 0.6, 0.91), "diverges"),
        (report(), (1.0, math.nan, 0.9), "diverges"),
        (report(), (1.0, math.inf), "diverges"),
        (report(n=5), (1.0, 0.9), "undecided"),
        (report(gain={"psnr": 0.1}), (1.0,), "no better than opt_v2"),
        (report(gain={"psnr": -3.0}), (1.0,), "no better than opt_v2"),
        (report(gain={"psnr": None}), (1.0,), "no better than opt_v2"),
        (report(over_recoloured=0.1), (1.0,), "undecided"),
        (report(over_recoloured=-0.5), (1.0,), "only recolours"),
        (report(sar_agreement_relative=1.16), (1.0,), "paints the SAR"),
        (report(sar_agreement_relative=1.14), (1.0,), "grounded"),
        (report(sar_agreement_relative=None), (1.0,), "grounded"),
        (report(gain={"sar_agreement": 0.004}), (1.0,), "agreement flat"),
        (report(gain={"sar_agreement": -0.1}), (1.0,), "agreement flat"),
        (report(gain={"sar_agreement": 0.006}), (1.0,), "grounded"),
        (report(cost=0.49), (1.0,), "the SAR is not used"),
        (report(cost=0.51), (1.0,), "grounded"),
        (report(gain={"sam": 0.3}), (1.0,), "better than opt_v2, not in everything"),
        (report(sar_agreement_unrelated=0.53), (1.0,), "better than opt_v2, not in everything"),
    ],
)
def test_each_row_of_the_decision_table(rep: dict[str, Any], losses: tuple[float | None, ...], name: str) -> None:
    assert judged(rep, history(losses)) == name


def test_rows_above_win() -> None:
    faults: list[tuple[str, dict[str, Any], dict[str, float | None]]] = [
        ("undecided", {"n": 5}, {}),
        ("no better than opt_v2", {}, {"psnr": -1.0}),
        ("only recolours", {"over_recoloured": -0.5}, {}),
        ("paints the SAR", {"sar_agreement_relative": 1.3}, {}),
        ("agreement flat", {}, {"sar_agreement": 0.0}),
        ("the SAR is not used", {"cost": 0.0}, {}),
        ("better than opt_v2, not in everything", {}, {"sam": 0.3}),
    ]
    for place, (name, _, _) in enumerate(faults):
        changes: dict[str, Any] = {}
        gain: dict[str, float | None] = {}
        for _, one, other in faults[place:]:
            changes, gain = {**changes, **one}, {**gain, **other}
        assert judged(report(gain=gain, **changes)) == name
        assert judged(report(gain=gain, **changes), history((1.0, 2.0))) == "diverges"


def test_the_cures_are_those_of_the_specification_for_its_own_weights() -> None:
    classical = {"sar_weight": 1.0, "cycle_weight": 0.5, "identity_weight": 0.3, "lr": 1e-4}
    diverges = verdict(report(config=classical), history((1.0, 2.0)), None)
    assert diverges.next_step == "set lr 5e-05 and weight_decay 1e-4."
    flat = verdict(report(config=classical, gain={"sar_agreement": 0.0}), history(), None)
    assert flat.next_step == "set sar_weight 1.5, cycle_weight 0.3, identity_weight 0.2, and lr 5e-05 or 0.0002."


@pytest.mark.parametrize(
    ("config", "flat", "painted", "worse"),
    [
        ({"sar_weight": 0.02}, "sar_weight 0.03, cycle_weight 0.03,", "halve sar_weight: 0.01.", "lower sar_weight"),
        ({"sar_weight": 2.0}, "sar_weight 3,", "halve sar_weight: 1.", "lower sar_weight"),
        ({"sar_weight": 0.0}, "sar_weight 1.5,", "train for more epochs.", "train for more epochs."),
        ({"cycle_weight": 0.0, "identity_weight": 0.0}, "set sar_weight 0.03, and lr", "halve", "lower sar_weight"),
        ({"model": "terramind-tokens"}, "higher lora_rank", "train for more epochs.", "train for more epochs."),
    ],
)
def test_cures_go_the_way_they_say(config: dict[str, Any], flat: str, painted: str, worse: str) -> None:
    paints = verdict(report(config=config, sar_agreement_relative=1.3), history(), None)
    assert "1.30 times" in paints.meaning
    for words, one in (
        (flat, verdict(report(config=config, gain={"sar_agreement": 0.0}), history(), None)),
        (painted, paints),
        (worse, verdict(report(config=config, gain={"psnr": -1.0}), history(), None)),
    ):
        assert words in one.next_step
        assert "weight" not in one.next_step or "model" not in config


@pytest.mark.parametrize(
    ("value", "words"),
    [(-0.2, "poor (-0.20)"), (0.49, "poor"), (0.5, "moderate (0.50)"), (0.7, "good"), (0.8, "excellent"),
     (1.1, "excellent (1.10)"), (None, "unknown")],
)  # fmt: skip
def test_the_relative_agreement_in_a_word(value: float | None, words: str) -> None:
    rep = report(sar_agreement_relative=value)
    assert relative_band(rep).startswith(words)
    assert words in verdict(rep, history(), None).meaning


# --- references ------------------------------------------------------------------------------------------------------


def test_against_the_same_model_without_sar() -> None:
    control = report(run="blind", psnr=32.0, config={"use_sar": False, "num_workers": 2})
    gate = gates(report(), control)[-1]
    assert gate.passed and gate.name == "PSNR better than that of the same model without SAR"
    assert gate.value == "+1.00 dB" and judged(report(), reference=control) == "grounded"
    better = report(run="blind", psnr=33.5, config={"use_sar": False})
    assert gates(report(), better)[-1].passed is False
    assert judged(report(), reference=better) == "better than opt_v2, not in everything"


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ({}, {}, "differs in nothing"),
        ({}, {"use_sar": False, "lr": 0.5}, "differs in lr, use_sar"),
        ({}, {"seed": 3}, "differs in seed"),
        ({"use_sar": False}, {}, "differs in use_sar"),
    ],
)
def test_any_other_reference_is_refused(mine: dict[str, Any], theirs: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"reference run 'other' {words}: expected the same run with use_sar off"):
        gates(report(config=mine), report(run="other", config=theirs))
