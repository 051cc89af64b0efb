"""Gates and the decision table of super-resolution, from reports made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from nbhelpers.stages.super_resolution.verdict import best_untrained, gains, gates, verdict

PLACES = ("29UPU", "33UUP", "35VPK")
BICUBIC, PROJECTED = 30.0, 31.4


def scores(psnr: dict[str, float], lpips: float, **more: float) -> dict[str, Any]:
    found = {
        "psnr": {"value": sum(psnr.values()) / len(psnr), "n": 12},
        "psnr_place": {"value": sum(psnr.values()) / len(psnr), "by_label": {k: {"value": v} for k, v in psnr.items()}},
        "lpips": {"value": lpips, "model_minus_this": {"is_better": None, "ci95": [-0.01, 0.01]}},
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
    consistency: float = 0.9,
    **untrained: dict[str, float],
) -> dict[str, Any]:
    """Of a run that passes everything, but for what is changed.

    Args:
        first: PSNR of the first stage by place; of the model in a run with ``two=False``.
        lpips: of the model; the first stage has 0.2, bicubic + projection 0.25 and bicubic 0.3.
        lost: dB that the second stage costs.
        consistency: 1e-6 reflectance.
        untrained: PSNR by place of more baselines, by name.
    """
    first = everywhere(31.8) if first is None else first
    baselines = {
        "bicubic": scores(everywhere(BICUBIC), 0.3),
        "bicubic_projected": scores(everywhere(PROJECTED), 0.25),
    }
    model = {place: value - lost for place, value in first.items()} if two else first
    baselines |= {name: scores(psnr, 0.24) for name, psnr in untrained.items()}
    if two:
        baselines["pixel_best"] = scores(first, 0.2)
    for one in baselines.values():  # as with a narrow interval
        one["lpips"]["model_minus_this"]["is_better"] = lpips < one["lpips"]["value"]
    metrics = scores(model, lpips, consistency=consistency, residual=consistency, rapsd_ratio=0.9)
    metrics["psnr"]["n"] = n
    shares = {"perceptual": 0.3, "adversarial": 0.1} if shares is None else shares
    ledger = {term: {"weight": 1.0, "grad_share": share} for term, share in shares.items()} if two else {}
    config = {"consistency": True, "scale": 4, "mtf": [0.30], "backbone": "vgg19", "lpips_net": "alex"}
    config |= {"backbone_weights": "imagenet", "lpips_weights": None}
    return {"metrics": metrics, "baselines": baselines, "ledger": ledger, "config": config}


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
    assert len(found) == 10 and all(gate.passed for gate in found) and all(gate.value for gate in found)
    assert len(gates(report(two=False))) == 4 and not failed(report(two=False))


@pytest.mark.parametrize(
    ("rep", "names"),
    [
        (report(everywhere(30.9)), ["1 dB above bicubic", "above bicubic + projection", "best untrained"]),
        (report(everywhere(32.0, in_29UPU=30.95)), ["1 dB above bicubic", "above bicubic + projection"]),
        (report(linear_projected=everywhere(31.81)), ["best untrained baseline (linear filter + projection)"]),
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
        (report(consistency=10.1), ["degrades to its input"]),
    ],
)
def test_each_gate_fails_for_its_own_reason(rep: dict[str, Any], names: list[str]) -> None:
    found = failed(rep)
    assert len(found) == len(names) and all(name in gate for name, gate in zip(names, found, strict=True)), found


@pytest.mark.parametrize(
    "rep",
    [
        report(linear_projected=everywhere(31.79)),
        report(consistency=9.9),
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
    assert gates(rep)[0].value == "35VPK +1.70, 29UPU +2.00, 33UUP +2.00 dB; n = 3 places"
    rep["config"]["consistency"] = False
    rep["ledger"]["adversarial"]["weight"] = 0
    assert set(passed(report())) - set(passed(rep)) == {
        "the output degrades to its input",
        "the adversarial term has a say",
    }


def test_each_of_many_places_is_judged_and_the_three_worst_are_told() -> None:
    rep = report()
    places = [f"P{number:02}" for number in range(40)]
    for one in (rep["metrics"], *rep["baselines"].values()):
        value = one["psnr_place"]["value"]
        one["psnr_place"]["by_label"] = {place: {"value": value} for place in places}
    assert not failed(rep)
    for place, psnr in (("P07", 29.5), ("P21", 31.1)):
        rep["baselines"]["pixel_best"]["psnr_place"]["by_label"][place]["value"] = psnr
    everywhere_, above_projection, *_ = gates(rep)
    assert (
        everywhere_.passed is False and everywhere_.value == "worst P07 -0.50, P21 +1.10, P00 +1.80 dB; n = 40 places"
    )
    assert above_projection.passed is False, "although the mean is above"
    assert verdict(rep, STEADY).name == "nothing learnt beyond the projection"


def test_a_single_place_has_no_table_by_place() -> None:
    rep = report()
    for one in (rep["metrics"], *rep["baselines"].values()):
        del one["psnr_place"]["by_label"]
    assert gains(rep, "bicubic") == {"all": pytest.approx(1.8)} and not failed(rep)
    assert gates(rep)[0].value.endswith("; n = 1 place")


@pytest.mark.parametrize(
    ("is_better", "mean", "n", "passed"),
    [
        (True, 0.1, 6, True),
        (None, 0.1, 6, None),  # lower, but the interval leaves it open
        (False, 0.3, 6, False),
        (None, 0.1, 5, True),  # too few for an interval: the means are compared
        (None, 0.3, 5, False),
    ],
)
def test_sharper_is_what_the_interval_over_places_says(is_better: Any, mean: float, n: int, passed: Any) -> None:
    rep = report(lpips=mean, n=n)
    rep["baselines"]["pixel_best"]["lpips"]["model_minus_this"]["is_better"] = is_better
    (gate,) = [gate for gate in gates(rep) if gate.name == "lpips lower than that of pixel_best"]
    assert gate.passed is passed and f"n = {n} places" in gate.value
    assert ("too few for an interval" in gate.value) == (n < 6) and ("[-0.0100, +0.0100]" in gate.value) == (n >= 6)
    found = verdict(rep, STEADY)
    assert (found.name == "not sharper") == (not passed) and (n >= 6 or f"{n} places" in found.meaning)


@pytest.mark.parametrize(
    "config", [{"scale": 2}, {"scale": 8}, {"mtf": (0.4,)}, {"mtf": (0.3, 0.3, 0.2, 0.3)}], ids=str
)
def test_the_gain_over_bicubic_is_asked_for_where_it_is_stated(config: dict[str, Any]) -> None:
    rep = report(everywhere(30.9), bicubic_projected=everywhere(30.6))
    rep["config"] |= {"mtf": (0.3, 0.3, 0.3, 0.3)}
    assert failed(rep) == ["PSNR at least 1 dB above bicubic in every place"]
    assert verdict(rep, STEADY).name == "too small a gain"
    rep["config"] |= config
    assert not failed(rep) and not any("1 dB above" in name for name in passed(rep))
    assert verdict(rep, STEADY).name == "sharper and still faithful"


def test_the_best_untrained_baseline_is_that_of_the_highest_psnr_over_places() -> None:
    assert best_untrained(report()) == "bicubic_projected"
    assert best_untrained(report(linear=everywhere(31.39))) == "bicubic_projected"
    rep = report(linear=everywhere(31.41), linear_projected=everywhere(31.9))
    assert best_untrained(rep) == "linear_projected"
    (gate,) = [gate for gate in gates(rep) if "best untrained" in gate.name]
    assert not gate.passed and gate.value.startswith("mean -0.10 dB; ") and gate.value.endswith("n = 3 places")
    found = verdict(rep, STEADY)
    assert found.name == "nothing learnt beyond linear filter + projection" and "-0.10 dB" in found.meaning


def test_a_distance_seen_by_the_network_of_the_loss_is_called_so() -> None:
    rep = report()
    assert "trained with" not in verdict(rep, STEADY).meaning
    rep["config"] |= {"backbone": "squeeze", "lpips_net": "squeeze"}
    assert "lpips, as the network sees it that it was trained with, from 0.2000" in verdict(rep, STEADY).meaning
    rep["config"]["lpips_weights"] = "others.pth"
    assert "trained with" not in verdict(rep, STEADY).meaning


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
    assert found.name == "too small a gain" and "+0.90 dB" in found.meaning and "x4 and mtf 0.30" in found.meaning


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
    assert "1.80 dB above bicubic and 0.40 dB above bicubic + projection." in found.meaning
    assert "too few" not in verdict(report(), STEADY).meaning
