"""Gates and the decision table of the rainfall stage, from reports made by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.verdict import gates, reference_gates, steady_gate, verdict

GOOD = {
    "crps": 1.0, "mae_all": 1.5, "mae_tail": 9.0, "p99_ratio": 0.98, "p999_ratio": 1.05, "wet_frequency_01": -1.0,
    "wet_frequency_1": 2.0, "spread_skill_pixel": 1.0, "spread_skill_block": 0.9, "spread_skill_domain": 1.1,
    "rapsd_ratio": 0.9,
}  # fmt: skip
WORSE = {"climatology": 2.0, "analogues": 1.5, "bilinear": 1.3}
ORACLE = {"crps": 0.95, "p99_ratio": 1.0, "p999_ratio": 1.0}


def metric(value: float | None, n: int = 30) -> dict[str, Any]:
    return {"value": value, "n": n, "units": "mm/day, at least P95 (20 mm/day), n = 812 pixels of 30 days"}


def config(**changes: Any) -> dict[str, Any]:
    """Settings as they stand in a record."""
    whole = Config(**{"epochs": 40, "warmup_epochs": 8, "early_stopping_patience": None, **changes})
    return json.loads(json.dumps(dataclasses.asdict(whole)))


def report(
    *,
    oracle: Mapping[str, float] | None = ORACLE,
    n: int = 30,
    baselines: Mapping[str, float] = WORSE,
    shuffled: float = 1.8,
    settings: Mapping[str, Any] | None = None,
    **metrics: float | None,
) -> dict[str, Any]:
    """Of a run that passes everything, but for what is changed.

    Args:
        baselines: their CRPS; the model is better where it is lower, with an interval of ± 0.1.
    """
    values = {**GOOD, **metrics}
    crps = values["crps"]
    rows: dict[str, Any] = {
        name: {
            "crps": metric(theirs)
            | {
                "model_minus_this": {
                    "value": crps - theirs,
                    "ci95": [crps - theirs - 0.1, crps - theirs + 0.1],
                    "is_better": None if abs(crps - theirs) < 0.1 else crps < theirs,
                }
            }
        }
        for name, theirs in baselines.items()
    }
    rows["x_shuffled"] = {"crps": metric(shuffled)}
    if oracle is not None:
        rows["oracle"] = {name: metric(value) for name, value in oracle.items()}
    return {
        "checkpoint": {"step": 40},  # of the last of 40 epochs
        "run": "mine",
        "config": config(**(settings or {})),
        "metrics": {name: metric(value, n) for name, value in values.items()},
        "baselines": rows,
        "guards": [],
    }


def history(
    losses: Sequence[float] = (1.0,) * 40,
    train: Sequence[float | None] | None = None,
    *,
    tail: Sequence[float | None] | None = None,
    active: float | None = 9.0,
    share: float | None = 0.2,
) -> list[dict[str, Any]]:
    train = [1 - 0.01 * epoch for epoch in range(len(losses))] if train is None else train
    return [
        {
            "epoch": epoch + 1,
            "step": epoch + 1,
            "val_loss": loss,
            "val_crps": loss,
            "val_mae_tail": loss if tail is None else tail[epoch],
            "train_total": total,
            "train_mae": total,
            "val_active_units": active,
            "val_z_share": share,
        }
        for epoch, (loss, total) in enumerate(zip(losses, train, strict=True))
    ]


def failed(rep: dict[str, Any], rows: list[dict[str, Any]] | None = None, **how: Any) -> list[str]:
    return [gate.name for gate in gates(rep, history() if rows is None else rows, **how) if gate.passed is False]


def judged(rep: dict[str, Any], rows: list[dict[str, Any]] | None = None, reference: Any = None) -> str:
    found = verdict(rep, history() if rows is None else rows, reference)
    assert found.meaning.endswith(".") and found.next_step.endswith("."), found
    return found.name


# --- gates -----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_all_one_wants_passes_every_gate() -> None:
    found = gates(report(), history())
    assert len(found) == 14 and all(gate.passed for gate in found) and all(gate.value for gate in found)
    assert [gate.name for gate in gates(report(oracle=None), history())] == [
        gate.name.replace("the oracle's", "the observed") for gate in found if "CRPS within" not in gate.name
    ]


@pytest.mark.parametrize(
    ("rep", "names"),
    [
        (report(baselines=WORSE | {"analogues": 0.9}), ["CRPS better than analogues"]),
        (report(baselines=WORSE | {"bilinear": 1.05}), ["CRPS better than bilinear"]),
        (report(baselines=WORSE | {"climatology": 0.5}), ["CRPS better than climatology"]),
        (report(crps=1.06), ["CRPS within 10% of the oracle's"]),
        (report(p99_ratio=0.89), ["P99 of land rain within 10% of the oracle's"]),
        (report(p999_ratio=1.11), ["P99.9 of land rain within 10% of the oracle's"]),
        (report(wet_frequency_01=-3.1), ["as many pixels of 0.1 mm or more as observed"]),
        (report(wet_frequency_1=3.1), ["as many pixels of 1 mm or more as observed"]),
        (report(spread_skill_pixel=0.79), ["spread over error per pixel"]),
        (report(spread_skill_block=1.26), ["spread over error per block"]),
        (report(spread_skill_domain=0.5), ["spread over error per domain"]),
        (report(rapsd_ratio=0.69), ["power of the finest octaves"]),
        (report(rapsd_ratio=1.41), ["power of the finest octaves"]),
        (report(shuffled=1.0), ["the weather matters"]),
    ],
)
def test_each_gate_fails_for_its_own_reason(rep: dict[str, Any], names: list[str]) -> None:
    found = failed(rep)
    assert len(found) == len(names) and all(name in gate for name, gate in zip(names, found, strict=True)), found


def test_quantiles_are_held_against_the_oracle_where_there_is_one() -> None:
    """The scored days have chance events of their own, which the oracle does not know either."""
    rare = report(p99_ratio=0.80, p999_ratio=0.70, oracle=ORACLE | {"p99_ratio": 0.82, "p999_ratio": 0.72})
    assert not failed(rare)
    assert len(failed(report(p99_ratio=0.80, p999_ratio=0.70, oracle=None))) == 2


def test_nothing_is_decided_on_too_few_blocks_or_undefined_scores() -> None:
    few = {gate.name: gate for gate in gates(report(n=5), history())}
    for null in WORSE:
        assert few[f"CRPS better than {null}"].passed is None
        assert "n = 5 blocks" in few[f"CRPS better than {null}"].value
    undefined = report(p99_ratio=None, spread_skill_block=None)
    found = [gate for gate in gates(undefined, history()) if gate.passed is None]
    assert ["P99 of" in found[0].name, "per block" in found[1].name] == [True, True] and len(found) == 2
    assert {gate.value for gate in found} == {"undefined"}
    dry = report(p99_ratio=None, oracle=ORACLE | {"p99_ratio": 0.0})
    assert [gate.name[:6] for gate in gates(dry, history()) if gate.passed is None] == ["P99 of"]
    assert judged(dry) == judged(undefined) == "undecided", "no extreme, no verdict on extremes"


def test_the_validation_loss_must_be_steady_once_the_warm_up_is_over() -> None:
    rising = [5.0, 1.0] * 4  # β rises, and the loss with it
    assert not failed(report(), history([*rising, *[1.0, 1.19] * 16]))
    (found,) = failed(report(), history([*rising, *[1.0] * 31, 1.21]))
    assert "changes by less than 20% an epoch after the warm-up" in found
    assert steady_gate(report(), history([1.0] * 9)) is None, "one epoch has nothing to be compared with"
    assert steady_gate(report(settings={"armed_after": 2}), history([9.0, 9.0, 1.0, 1.0])) is not None
    control = steady_gate(report(settings={"d_z": 0}), history([1.0, 1.0]))
    assert control is not None and control.passed, "without a latent nothing rises"
    negative = steady_gate(report(), history([0.0] * 8 + [-1.0, -1.3]))
    assert negative is not None and not negative.passed, "a log density may be negative"


# --- the decision table, first match wins -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rep", "rows", "name"),
    [
        (report(), history(), "believable extremes"),
        (report(oracle=None), history(), "believable extremes"),
        (report(), history(train=[1.0] * 39 + [math.nan]), "unstable training"),
        (report(n=5), history(), "undecided"),
        (report(baselines=WORSE | {"analogues": 0.9}), history(), "not better than the baselines"),
        (report(baselines=WORSE | {"bilinear": 1.05}), history(), "not better than the baselines"),
        (report(), history([1.0] * 8), "stopped in the warm-up"),
        (report(), [], "stopped in the warm-up"),
        (report(settings={"early_stopping_patience": 5}), history([1.0] * 29), "stopped early"),
        # the user stopped it: crps still falls
        (
            report(settings={"early_stopping_patience": 5}),
            history([1 - 0.01 * i for i in range(29)]),
            "believable extremes",
        ),
        (report(settings={"early_stopping_patience": 5}), history([1.0] * 30), "believable extremes"),
        (report(settings={"early_stopping_patience": 5, "epochs": 20}), history([1.0] * 20), "believable extremes"),
        (report(), history([1.0] * 8 + [1.0, 1.5] * 16), "volatile"),
        (report(), history([1.0] * 39 + [1.11]), "overfitted"),
        (report(), history([1.0] * 39 + [1.11], train=[1.0] * 39 + [1.2]), "believable extremes"),
        (report(), history(active=0.0), "latent collapsed"),
        (report(settings={"d_z": 0}), history(active=None, share=None), "believable extremes"),
        (report(p99_ratio=0.89), history(), "extremes poor"),
        (report(p999_ratio=1.2), history(), "extremes poor"),
        (report(spread_skill_pixel=0.5), history(), "better than the baselines, not calibrated"),
        (report(wet_frequency_1=5.0), history(), "better than the baselines, not calibrated"),
        (report(), history([1.0] * 20 + [1.25] + [1.3] * 19, train=[1.0] * 39 + [1.2]), "better than"),
    ],
)
def test_each_row_of_the_decision_table(rep: dict[str, Any], rows: list[dict[str, Any]], name: str) -> None:
    assert judged(rep, rows).startswith(name)


def test_the_composite_is_as_steady_as_its_error_on_extremes() -> None:
    jumps = history(tail=[9.0] * 8 + [9.0, 12.0] * 16)
    assert judged(report(settings=COMPOSITE), jumps) == "volatile" and judged(report(), jumps) == "believable extremes"
    gate = steady_gate(report(settings=COMPOSITE), jumps)
    assert gate is not None and not gate.passed
    dry = history(tail=[None] * 40)
    assert judged(report(settings=COMPOSITE), dry) == "believable extremes", "no extremes on validation: nothing to see"


def test_every_fine_octave_is_judged_by_itself() -> None:
    """Pooled by power, too much in the one and too little in the other would be just right."""
    rep = report(rapsd_ratio=0.95)
    for values, passed in (({"4-8 px": 0.75, "2-4 px": 1.35}, True), ({"4-8 px": 0.75, "2-4 px": 1.45}, False)):
        rep["metrics"]["rapsd_ratio"]["by_label"] = {label: {"value": value} for label, value in values.items()}
        (gate,) = [gate for gate in gates(rep, history()) if gate.name.startswith("power of the finest octaves")]
        assert gate.passed is passed and "4-8 px 0.750, 2-4 px 1." in gate.value


def test_next_steps_fit_the_run() -> None:
    assert "compare with d_z 0" in verdict(report(), history(), None).next_step
    assert "d_z 0" not in verdict(report(settings={"d_z": 0}), history(share=None), None).next_step
    wide = {"spread_skill_pixel": 0.5}
    assert "use hurdle_gamma" in verdict(report(settings=COMPOSITE, **wide), history(), None).next_step
    assert "eval_days" in verdict(report(**wide), history(), None).next_step
    warned = report() | {"guards": [{"name": "latent", "severity": "warn"}]}
    assert "guards have warned: latent" in verdict(warned, history(), None).meaning


def test_rows_above_win() -> None:
    everything = {"p99_ratio": 0.5, "spread_skill_pixel": 0.1, "n": 30}
    volatile = history([1.0] * 8 + [1.0, 1.5] * 16, active=0.0)
    poor = report(baselines=dict.fromkeys(WORSE, 0.5), **everything)
    assert judged(poor, volatile) == "not better than the baselines"
    assert judged(report(**everything), volatile) == "volatile"
    assert judged(report(**everything), history(active=0.0)) == "latent collapsed"
    assert judged(report(**everything)) == "extremes poor"


@pytest.mark.parametrize(
    ("tail", "ratio", "said"), [("gpd", 1.2, "take tail gamma"), ("gpd", 0.8, ""), ("gamma", 0.8, "take tail gpd"),
                                ("gamma", 1.2, "")],
)  # fmt: skip
def test_too_much_rain_asks_for_the_lighter_tail_and_too_little_for_the_heavier(
    tail: str, ratio: float, said: str
) -> None:
    found = verdict(report(settings={"tail": tail}, p999_ratio=ratio * ORACLE["p999_ratio"]), history(), None)
    assert found.name == "extremes poor"
    assert said in found.next_step if said else "take tail" not in found.next_step


def test_the_verdict_says_what_was_lost_and_what_the_latent_does() -> None:
    lost = verdict(report(baselines=WORSE | {"analogues": 0.9, "bilinear": 0.9}), history(), None)
    assert "analogues and bilinear" in lost.meaning and "climatology" not in lost.meaning
    good = verdict(report(), history(share=0.004), None)
    assert "0.4% of the variance of prior members" in good.meaning and "d_z 0" in good.next_step
    assert "there is no latent" in verdict(report(settings={"d_z": 0}), history(share=None), None).meaning
    early = verdict(report(settings={"early_stopping_patience": 5}), history([1.0] * 14), None)
    assert "14 of 40 epochs" in early.meaning and "30–40" in early.next_step


# --- references ------------------------------------------------------------------------------------------------------

COMPOSITE = {"likelihood": "tail_mae", "tail_share": 0.3}
PLAIN = report(settings={"likelihood": "tail_mae", "tail_share": 0.0}, mae_tail=10.0, mae_all=1.45)


def test_against_the_same_model_without_a_latent() -> None:
    control = report(settings={"d_z": 0, "warmup_epochs": 0, "prior_fraction": 0.0})
    (gate,) = reference_gates(report(), control)
    assert gate.passed and gate.name == "no worse than the same model without a latent" and "1.000" in gate.value
    assert reference_gates(report(crps=1.009), control)[0].passed, "seeds differ by as much"
    (gate,) = reference_gates(report(crps=1.02), control)
    assert gate.passed is False
    found = verdict(report(crps=1.02), history(), control)
    assert found.name == "worse than the reference" and "1.020 of the CRPS without a latent" in found.meaning
    assert judged(report(), reference=control) == "believable extremes"
    assert "it is not needed" in verdict(report(crps=0.995), history(), control).meaning
    assert "it is needed" in verdict(report(crps=0.98), history(), control).meaning
    assert gate.name in [one.name for one in gates(report(crps=1.02), history(), control)]


def test_against_plain_mae() -> None:
    tail, whole = reference_gates(report(settings=COMPOSITE), PLAIN)
    assert tail.passed and "-10.0%" in tail.value and "n = 812 pixels" in tail.value, "n stands beside the metric"
    assert whole.passed and "+3.4%" in whole.value
    assert judged(report(settings=COMPOSITE), reference=PLAIN) == "believable extremes"
    worse = report(settings=COMPOSITE, mae_tail=10.1)
    assert [gate.passed for gate in reference_gates(worse, PLAIN)] == [False, True]
    dear = report(settings=COMPOSITE, mae_all=1.53)
    assert [gate.passed for gate in reference_gates(dear, PLAIN)] == [True, False]
    for one in (worse, dear):
        assert judged(one, reference=PLAIN) == "worse than the reference"
    diluted = {"likelihood": "tail_mae", "lambda_ext": 2.0, "tail_share": None, "dilute_tail": True}
    assert len(reference_gates(report(settings=diluted), PLAIN)) == 2
    none = report(settings=COMPOSITE, mae_tail=None)
    assert [gate.passed for gate in reference_gates(none, PLAIN)] == [None, True], "no extremes, nothing to decide"
    assert judged(none, reference=PLAIN) == "undecided"


@pytest.mark.parametrize(
    ("settings", "reference", "words"),
    [
        ({}, report(), "differs in nothing"),
        ({}, report(settings={"d_z": 0, "lr": 0.5}), "differs in d_z, lr"),
        ({}, report(settings={"seed": 3}), "differs in seed"),
        ({"d_z": 0}, report(), "differs in d_z"),
        (COMPOSITE, report(settings=COMPOSITE), "differs in nothing"),
        (COMPOSITE, report(), "differs in likelihood"),
        (COMPOSITE, report(settings={"likelihood": "tail_mae", "tail_share": 0.0, "epochs": 9}), "differs in epochs"),
        ({}, report(settings={"tail_share": 0.0}), "differs in tail_share"),
    ],
)
def test_any_other_reference_is_refused(settings: dict[str, Any], reference: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match="reference run 'mine'") as caught:
        gates(report(settings=settings), history(), reference)
    assert words in str(caught.value) and "the same run with d_z 0, or of a tail_mae run" in str(caught.value)
