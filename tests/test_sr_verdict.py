"""Gates and the decision table of super-resolution, from reports made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from nbhelpers.stages.super_resolution.verdict import gains, gates, verdict

PLACES = ("29UPU", "33UUP", "35VPK")
BICUBIC, PROJECTED = 30.0, 31.4


def scores(psnr: dict[str, float], lpips: float, **more: float) -> dict[str, Any]:
    found = {
        "psnr": {"value": sum(psnr.values()) / len(psnr), "n": 12},
        "psnr_place": {"value": sum(psnr.values()) / len(psnr), "by_label": {k: {"value": v} for k, v in psnr.items()}},
        "lpips": {"value": lpips},
    }
    return found | {name: {"value": value} for name, value in more.items()}


def everywhere(psnr: float, **other: float) -> dict[str, float]:
    return {place: other.get(f"in_{place}", psnr) for place in PLACES}


def report(
    first: dict[str, float] | None = None,
    *,
    lpips: float = 0.10,
    lost: float = 1.0,
    shares: dict[str, float] | None = None,
    two: bool = True,
    n: int = 12,
    consistency: float = 1e-6,
) -> dict[str, Any]:
    """Of a run that passes everything, but for what is changed.

    Args:
        first: PSNR of the first stage by place; of the model in a run with ``two=False``.
        lpips: of the model; the first stage has 0.2, bicubic + projection 0.25 and bicubic 0.3.
        lost: dB that the second stage costs.
    """
    first = everywhere(31.8) if first is None else first
    baselines = {
        "bicubic": scores(everywhere(BICUBIC), 0.3),
        "bicubic_projected": scores(everywhere(PROJECTED), 0.25),
    }
    model = {place: value - lost for place, value in first.items()} if two else first
    if two:
        baselines["pixel_best"] = scores(first, 0.2)
    metrics = scores(model, lpips, consistency=consistency, residual=consistency, rapsd_ratio=0.9)
    metrics["psnr"]["n"] = n
    shares = {"perceptual": 0.3, "adversarial": 0.1} if shares is None else shares
    ledger = {term: {"weight": 1.0, "grad_share": share} for term, share in shares.items()} if two else {}
    return {"metrics": metrics, "baselines": baselines, "ledger": ledger, "config": {"consistency": True}}


def history(pixel: list[Any], adversarial: list[Any] = ()) -> list[dict[str, Any]]:  # type: ignore[assignment]
    """Rows as they are read back: columns of the other phase are there and empty."""
    empty = {"train_total": None, "train_total_generator": None, "train_total_discriminator": None}
    rows = [{**empty, "phase": "pixel", "train_total": loss} for loss in pixel]
    return rows + [
        {**empty, "phase": "adversarial", "train_total_generator": loss, "train_total_discriminator": 0.6}
        for loss in adversarial
    ]


STEADY = history([0.5, 0.4, 0.3], [1.2, 1.1])


def passed(rep: dict[str, Any]) -> dict[str, bool | None]:
    return {gate.name: gate.passed for gate in gates(rep)}


def failed(rep: dict[str, Any]) -> list[str]:
    return [name for name, good in passed(rep).items() if not good]


# --- gates -----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_all_one_wants_passes_every_gate() -> None:
    found = gates(report())
    assert len(found) == 9 and all(gate.passed for gate in found) and all(gate.value for gate in found)
    assert len(gates(report(two=False))) == 3 and not failed(report(two=False))


@pytest.mark.parametrize(
    ("rep", "names"),
    [
        (report(everywhere(30.9)), ["1 dB above bicubic", "above bicubic + projection"]),
        (report(everywhere(32.0, in_29UPU=30.95)), ["1 dB above bicubic", "above bicubic + projection"]),
        (report(everywhere(31.449)), ["above bicubic + projection"]),
        (report(everywhere(31.8, in_33UUP=31.29)), ["above bicubic + projection"]),
        (report(lpips=0.2), ["lower than that of pixel_best"]),
        (
            report(lpips=0.31),
            ["lower than that of pixel_best", "lower than that of bicubic", "lower than that of bicubic_projected"],
        ),
        (report(lost=2.01), ["at most 2 dB below"]),
        (report(shares={"perceptual": 0.009, "adversarial": 0.1}), ["the perceptual term has a say"]),
        (report(shares={"perceptual": 0.3, "adversarial": 0.991}), ["the adversarial term has a say"]),
        (report(consistency=2e-5), ["degrades to its input"]),
    ],
)
def test_each_gate_fails_for_its_own_reason(rep: dict[str, Any], names: list[str]) -> None:
    found = failed(rep)
    assert len(found) == len(names) and all(name in gate for name, gate in zip(names, found, strict=True)), found


@pytest.mark.parametrize(
    "rep",
    [
        report(everywhere(31.451)),
        report(everywhere(31.8, in_33UUP=31.31)),
        report(lost=1.99),
        report(lpips=0.199),
        report(shares={"perceptual": 0.0101, "adversarial": 0.0101}),
    ],
)
def test_gates_pass_just_within_their_bounds(rep: dict[str, Any]) -> None:
    assert failed(rep) == []


def test_gates_tell_the_worst_place_first_and_ask_for_nothing_that_was_switched_off() -> None:
    rep = report(everywhere(32.0, in_35VPK=31.7))
    assert gates(rep)[0].value == "35VPK +1.70, 29UPU +2.00, 33UUP +2.00 dB"
    rep["config"]["consistency"] = False
    rep["ledger"]["adversarial"]["weight"] = 0
    assert set(passed(report())) - set(passed(rep)) == {
        "the output degrades to its input",
        "the adversarial term has a say",
    }


def test_many_places_are_taken_together() -> None:
    rep = report()
    for one in (rep["metrics"], *rep["baselines"].values()):
        del one["psnr_place"]
    assert gains(rep, "bicubic") == {"all": pytest.approx(1.8)} and not failed(rep)


def test_random_features_are_not_called_lpips() -> None:
    rep = report()
    for one in (rep["metrics"], *rep["baselines"].values()):
        one["feature_distance_random"] = one.pop("lpips")
    assert "feature_distance_random lower than that of bicubic" in passed(rep)
    assert "lpips" not in verdict(rep, STEADY).meaning


# --- the decision table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rep", "expected"),
    [
        (report(everywhere(31.44)), "nothing learnt beyond the projection"),
        (report(everywhere(31.8, in_33UUP=31.29)), "nothing learnt beyond the projection"),
        (report(everywhere(30.9)), "nothing learnt beyond the projection"),  # before "too small a gain"
        (report(two=False), "faithful"),
        (report(shares={"perceptual": 0.0099, "adversarial": 0.1}, lpips=0.4), "perceptual term inert"),
        (report(shares={"perceptual": 0.3, "adversarial": 0.0099}, lost=3.0), "adversarial term inert"),
        (report(lpips=0.2, lost=3.0), "not sharper"),
        (report(lpips=0.27), "not sharper"),
        (report(lost=2.01), "sharp but not faithful"),
        (report(lost=2.0), "sharper and still faithful"),
        (report(), "sharper and still faithful"),
    ],
)
def test_every_row_of_the_table_first_match_first(rep: dict[str, Any], expected: str) -> None:
    found = verdict(rep, STEADY)
    assert found.name == expected
    assert found.meaning.endswith(".") and found.next_step.endswith(".")


def test_a_gain_that_is_too_small_although_the_projection_is_beaten() -> None:
    rep = report(everywhere(30.9))
    for place in PLACES:
        rep["baselines"]["bicubic_projected"]["psnr_place"]["by_label"][place]["value"] = 30.6
    found = verdict(rep, STEADY)
    assert found.name == "too small a gain" and "+0.90 dB" in found.meaning


@pytest.mark.parametrize(
    "rows",
    [
        history([0.5, float("nan")]),
        history([0.5, "nan"]),
        history([float("inf"), 0.5]),
        history([0.5, None, 0.4]),  # every step of an epoch was skipped
        history([0.5, 0.4, 0.4, 4.1]),
        history([0.5, 0.4], [1.0, 1.0, 10.1]),
    ],
)
def test_a_loss_that_is_undefined_or_blew_up_is_unstable_whatever_else_holds(rows: list[dict[str, Any]]) -> None:
    assert verdict(report(), rows).name == "unstable training"


@pytest.mark.parametrize("rows", [history([0.5, 0.1, 0.05, 0.3]), history([0.01, 0.01], [1.0, 1.1]), history([0.5])])
def test_a_noisy_loss_and_another_phases_loss_are_not_unstable(rows: list[dict[str, Any]]) -> None:
    assert verdict(report(), rows).name == "sharper and still faithful"


def test_the_first_stage_is_judged_for_fidelity_and_a_handful_of_places_is_named() -> None:
    """PSNR of the second stage may lie below bicubic + projection: that is its price."""
    found = verdict(report(everywhere(31.8), lost=1.9, n=3), STEADY)
    assert found.name == "sharper and still faithful" and "Scored on 3 places: too few" in found.meaning
    assert "1.80 dB above bicubic and 0.40 dB above bicubic + projection" in found.meaning
    assert "too few" not in verdict(report(), STEADY).meaning
