"""The hand-over of loss weight: its rules under any parameters and any metric, and its mistakes by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from nbhelpers.training.flexible import (
    PRESETS,
    FlexibleScheduler,
    SchedulerParams,
    earliest_finish,
    infeasible,
    trajectory,
)

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
METRIC = "field_error"
numbers = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1e-12, math.nan, math.inf, -math.inf, 1e30])
metrics = st.lists(numbers, max_size=80)


@st.composite
def plans(draw: st.DrawFn, **fixed: Any) -> SchedulerParams:
    """Any parameters that are accepted; odd totals and binding caps among them."""
    weights = st.floats(0, 5)
    fields = {
        "initial_weight_source": draw(weights),
        "initial_weight_target": draw(weights | st.just(0.0)),
        "final_weight_source": draw(weights),
        "final_weight_target": draw(weights),
        "max_weight_target": draw(st.floats(0.1, 10)),
        "trigger": draw(st.sampled_from(["plateau", "increase", "epoch"])),
        "mode": draw(st.sampled_from(["min", "max"])),
        "patience": draw(st.integers(1, 6)),
        "min_delta": draw(st.just(0.0) | st.floats(0, 0.5)),
        "ema_beta": draw(st.just(0.0) | st.floats(0, 0.99)),
        "transition_step": draw(st.floats(0.05, 5)),
        "adaptive_step": draw(st.booleans()),
        "warmup_epochs": draw(st.integers(0, 12)),
        "min_epochs": draw(st.integers(0, 20)),
        "max_consecutive_adaptations": draw(st.integers(1, 12)),
        **fixed,
    }
    try:
        return SchedulerParams(**fields)
    except ValueError:
        assume(False)
        raise


def run(params: SchedulerParams, metric: list[float]) -> tuple[FlexibleScheduler, list[tuple[float, float]]]:
    """The scheduler after the metric's epochs, and the weights (source, target) before and after each."""
    scheduler = FlexibleScheduler(params)
    weights = [tuple(scheduler.get_loss_weights().values())]
    for epoch, value in enumerate(metric, start=1):
        moved = scheduler.step(epoch, {METRIC: value})
        weights.append(tuple(scheduler.get_loss_weights().values()))
        assert moved == (weights[-1] != weights[-2])
    return scheduler, weights


def stalling(params: SchedulerParams, epochs: int) -> list[float]:
    """A metric that never improves: constant, or for "increase" twice as bad in each epoch."""
    if params.trigger != "increase":
        return [0.3] * epochs
    sign = 1 if params.mode == "min" else -1
    return [sign * 2.0**epoch for epoch in range(epochs)]


# --- any parameters, any metric -------------------------------------------------------------------------------------


@QUICK
@given(plans(), metrics)
def test_weights_are_monotone_bounded_and_keep_their_total(params: SchedulerParams, metric: list[float]) -> None:
    _, weights = run(params, metric)
    assert weights[0] == (params.initial_weight_source, params.initial_weight_target)
    total = params.initial_weight_source + params.initial_weight_target
    source_end, target_end = params.final_weights
    for (source, target), (next_source, next_target) in zip(weights, weights[1:], strict=False):
        assert next_source <= source and next_target >= target
    for source, target in weights:
        assert source + target == pytest.approx(total, rel=1e-12)
        assert source_end <= source <= params.initial_weight_source
        assert params.initial_weight_target <= target <= target_end <= params.max_weight_target


@QUICK
@given(plans(), metrics)
def test_it_acts_neither_in_warm_up_nor_before_min_epochs_nor_faster_than_its_patience(
    params: SchedulerParams, metric: list[float]
) -> None:
    scheduler, _ = run(params, metric)
    epochs = [epoch for epoch, *_ in scheduler.events]
    assert all(epoch >= max(params.warmup_epochs + params.patience, params.min_epochs) for epoch in epochs)
    assert all(later - epoch >= params.patience for epoch, later in zip(epochs, epochs[1:], strict=False))


@QUICK
@given(plans(), metrics)
def test_it_ends_under_any_metric_and_never_before_the_earliest_finish(
    params: SchedulerParams, metric: list[float]
) -> None:
    scheduler, weights = run(params, metric)
    half_steps = 2 * (params.final_weights[1] - params.initial_weight_target) / params.transition_step
    assert len(scheduler.events) <= half_steps + 1
    assert scheduler.finished == (weights[-1] == params.final_weights)
    if scheduler.finished and (earliest := earliest_finish(params)):
        assert scheduler.events[-1][0] >= earliest


@QUICK
@given(plans())
def test_it_ends_at_its_earliest_finish_when_the_metric_never_improves(params: SchedulerParams) -> None:
    finish = earliest_finish(params)
    epochs = min(finish or 400, 900)
    scheduler, weights = run(params, stalling(params, epochs))
    assert scheduler.finished == (finish is not None) and scheduler.paused == (finish is None)
    if finish is not None:
        assert weights[-1] == params.final_weights and weights[-2] != weights[-1]
    drawn = [(source, target) for _, source, target in trajectory(params, epochs)]
    assert drawn == weights[1:]  # what the panel draws is what happens
    assert trajectory(params, epochs, stalling(params, epochs)) == trajectory(params, epochs)


@QUICK
@given(plans(), st.integers(1, 300))
def test_a_plan_is_refused_exactly_if_it_cannot_end(params: SchedulerParams, epochs: int) -> None:
    finish = earliest_finish(params)
    if finish is not None and finish <= epochs:
        assert infeasible(params, epochs) is None
        FlexibleScheduler(params, epochs=epochs)
    else:
        with pytest.raises(ValueError, match=r"^the hand-over "):
            FlexibleScheduler(params, epochs=epochs)


@QUICK
@given(plans(), metrics, st.data())
def test_a_saved_state_goes_on_exactly_even_through_json(
    params: SchedulerParams, metric: list[float], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(metric)))
    whole, _ = run(params, metric)
    first, _ = run(params, metric[:cut])
    second = FlexibleScheduler(params)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert second.state_dict() == first.state_dict()
    for epoch, value in enumerate(metric[cut:], start=cut + 1):
        second.step(epoch, {METRIC: value})
    assert second.state_dict() == whole.state_dict() and second.events == whole.events
    assert second.get_loss_weights() == whole.get_loss_weights()


@QUICK
@given(
    plans(trigger="plateau") | plans(trigger="increase"),
    metrics,
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.data(),
)
def test_what_is_not_finite_teaches_nothing(
    params: SchedulerParams, metric: list[float], bad: float, data: st.DataObject
) -> None:
    assert run(params, [bad] * 60)[0].events == []
    scheduler, _ = run(params, metric)
    before = {**scheduler.state_dict(), "epoch": None}
    assert not scheduler.step(len(metric) + 1, {METRIC: bad})
    assert {**scheduler.state_dict(), "epoch": None} == before


# --- what calls for a step ------------------------------------------------------------------------------------------


@QUICK
@given(
    plans(min_delta=1e-3) | plans(min_delta=0.0),
    st.floats(0.8, 0.95),  # of the metric is left after an epoch
    st.integers(0, 79),
    st.floats(-1e9, 1e9) | st.sampled_from([1e300, -1e300, 0.0]),
)
@example(SchedulerParams(), 0.95, 30, 1e6)  # thrown into an average it would take 100 epochs to fade
@example(SchedulerParams(), 0.95, 0, -1e6)
def test_one_spike_while_the_metric_improves_moves_nothing(
    params: SchedulerParams, left: float, where: int, spike: float
) -> None:
    assume(params.trigger != "epoch" and params.patience >= 3)
    sign = 1 if params.mode == "min" else -1
    metric = [sign * 10 * left**epoch for epoch in range(80)]
    metric[where] = sign * spike
    assert run(params, metric)[0].events == []


@QUICK
@given(plans(trigger="increase"), metrics)
def test_increase_acts_only_where_the_smoothed_metric_rose(params: SchedulerParams, metric: list[float]) -> None:
    scheduler = FlexibleScheduler(params)
    levels: list[float] = []  # since the last step
    for epoch, value in enumerate(metric, start=1):
        moved = scheduler.step(epoch, {METRIC: value})
        level = scheduler.state_dict()["level"]
        if moved:
            assert level > min(levels) + params.min_delta * abs(min(levels))
            levels = []
        if level is not None:
            levels.append(level)


@pytest.mark.parametrize("trigger", ["plateau", "increase"])
def test_an_improving_metric_is_left_alone_and_a_worsening_one_is_not(trigger: str) -> None:
    params = SchedulerParams(trigger=trigger)
    improving = [0.97**epoch for epoch in range(200)]
    assert run(params, improving)[0].events == []
    assert run(replace(params, mode="max"), [-value for value in improving])[0].events == []
    scheduler, _ = run(params, improving[:40] + [improving[39] * 1.05**epoch for epoch in range(1, 100)])
    assert scheduler.finished and scheduler.events[0][0] > 40


def test_a_noisy_plateau_is_seen() -> None:
    metric = [max(0.1, 0.9**epoch) * (1 + 0.05 * math.sin(7.3 * epoch * epoch)) for epoch in range(150)]
    scheduler, weights = run(SchedulerParams(), metric)
    assert scheduler.finished and weights[-1] == pytest.approx((0.3, 0.7), abs=1e-12)
    assert scheduler.events[0][0] > 22  # the floor of 0.1 is reached in epoch 22


def test_increase_does_not_act_on_a_plateau() -> None:
    params = SchedulerParams(trigger="increase", ema_beta=0.0)
    assert run(params, [0.3] * 300)[0].events == []
    assert len(run(params, [0.3] * 20 + [0.6] * 300)[0].events) == 1  # one rise is one step


def test_epoch_needs_no_metric() -> None:
    scheduler = FlexibleScheduler(SchedulerParams(trigger="epoch", patience=3), known_metrics=["other"])
    moved = [epoch for epoch in range(1, 40) if scheduler.step(epoch, {})]
    assert moved == list(range(10, 40, 3)) and scheduler.finished
    assert scheduler.events[1] == (13, pytest.approx(0.8071428), pytest.approx(0.1928571), "3 epochs passed")


def test_too_many_steps_in_a_row_pause_until_the_metric_improves() -> None:
    params = SchedulerParams(max_consecutive_adaptations=3, patience=2, ema_beta=0.0)
    scheduler, weights = run(params, [1.0] * 50)
    assert scheduler.paused and not scheduler.finished and len(scheduler.events) == 3
    assert scheduler.state_dict()["in_a_row"] == 3
    for epoch in range(51, 60):  # the second of these is the middle of three
        scheduler.step(epoch, {METRIC: 0.5})
        assert scheduler.paused == (epoch < 52 or epoch >= 58)
    assert [epoch for epoch, *_ in scheduler.events[3:]] == [54, 56, 58]


def test_an_event_says_why() -> None:
    scheduler, _ = run(SchedulerParams(mode="max"), [0.25] * 10)
    assert [event[0] for event in scheduler.events] == [10]
    assert scheduler.events[0][3] == "5 epochs without field_error better by 0.1 %: 0.25 to 0.25, smoothed"


def test_steps_shrink_to_half_and_the_last_lands() -> None:
    targets = [0.0, *(target for _, _, target, _ in run(SchedulerParams(), [0.3] * 55)[0].events)]
    sizes = [later - earlier for earlier, later in zip(targets, targets[1:], strict=False)]
    assert len(sizes) == 10 and targets[-1] == 0.7
    assert sizes[0] == pytest.approx(0.1) and sizes[-2] > 0.05
    assert sizes == sorted(sizes, reverse=True)
    even = SchedulerParams(adaptive_step=False)
    assert [event[2] for event in run(even, [0.3] * 55)[0].events] == pytest.approx([0.1 * n for n in range(1, 8)])


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, (0.3, 0.7)),
        ({"initial_weight_source": 2.0, "max_weight_target": 9.0}, (0.6, 1.4)),  # the initial total is kept
        ({"initial_weight_source": 2.0}, (1.2, 0.8)),  # the cap comes after the rescaling
        ({"final_weight_source": 1, "final_weight_target": 19}, (0.2, 0.8)),
    ],
)
def test_final_weights_are_rescaled_and_then_cut(changes: dict[str, float], end: tuple[float, float]) -> None:
    assert SchedulerParams(**changes).final_weights == pytest.approx(end)


def test_evaluating_every_other_epoch_is_fine() -> None:
    scheduler = FlexibleScheduler(SchedulerParams())
    moved = [epoch for epoch in range(2, 40, 2) if scheduler.step(epoch, {METRIC: 0.3})]
    assert moved == [12, 18, 24, 30, 36]  # the third value comes with epoch 6


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"source": ""}, "source = '', expected a name"),
        ({"target": "field_error"}, "another term than the source"),
        ({"trigger": "plataeu"}, "trigger = 'plataeu', expected 'plateau', 'increase' or 'epoch'"),
        ({"mode": "low"}, "expected 'min' or 'max'"),
        ({"adaptive_step": 1}, "expected True or False"),
        ({"initial_weight_source": -1.0}, "a number of at least 0"),
        ({"final_weight_target": math.nan}, "final_weight_target = nan"),
        ({"final_weight_source": 0, "final_weight_target": 0}, "not both 0"),
        ({"max_weight_target": 0.0}, "a number above 0"),
        ({"transition_step": 0}, "a number above 0"),
        ({"transition_step": 1e-9}, "within 10000 steps"),
        ({"min_delta": 1.0}, r"in \[0, 1\)"),
        ({"ema_beta": 1.0}, r"in \[0, 1\)"),
        ({"ema_beta": "0.9"}, "ema_beta = '0.9'"),
        ({"patience": 0}, "a whole number of at least 1"),
        ({"patience": 2.0}, "patience = 2.0, expected a whole number"),
        ({"warmup_epochs": -1}, "of at least 0"),
        ({"min_epochs": True}, "min_epochs = True"),
        ({"max_consecutive_adaptations": 0}, "of at least 1"),
        ({"initial_weight_target": 3.0}, "initial_weight_target = 3.0, expected less than the 0.8"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SchedulerParams(**changes)
    with pytest.raises(ValueError, match=f"^the panel: .*{sentence}"):
        SchedulerParams().replace(changes, source="the panel")


def test_replace_checks_names_too() -> None:
    assert SchedulerParams().replace({"patience": 7}, source="the panel") == SchedulerParams(patience=7)
    with pytest.raises(ValueError, match=r"the panel: .*'patient'"):
        SchedulerParams().replace({"patient": 7}, source="the panel")


def test_an_unknown_monitor_is_an_error_that_lists_the_known_nearest_first() -> None:
    known = ["loss", "spectrum_error", "field_error_high"]
    with pytest.raises(ValueError, match=r"'field_error', .* one of \['field_error_high', 'spectrum_error', 'loss'\]"):
        FlexibleScheduler(SchedulerParams(), known_metrics=known)
    FlexibleScheduler(SchedulerParams(monitor_metric="loss"), known_metrics=iter(known))
    scheduler = FlexibleScheduler(SchedulerParams())
    with pytest.raises(ValueError, match=r"'field_error', .* one of \['loss'\]"):
        scheduler.step(1, {"loss": 0.1})
    scheduler.step(1, {METRIC: 0.1})  # the failed call left nothing behind


def test_an_infeasible_plan_says_the_numbers_and_the_cure() -> None:
    sentence = infeasible(SchedulerParams(), 40)
    assert sentence == (
        "the hand-over ends after epoch 55 at the earliest (warm-up 5, first of 10 steps after epoch 10, 5 epochs "
        "apart), but the run has 40: lower patience to 3, raise transition_step (now 0.1), or train longer"
    )
    assert infeasible(SchedulerParams(), 55) is None and infeasible(SchedulerParams(), 54)
    assert infeasible(SchedulerParams(patience=3), 40) is None and infeasible(SchedulerParams(patience=4), 40)
    assert "lower warmup_epochs or min_epochs" in str(infeasible(SchedulerParams(), 8))
    pausing = replace(SchedulerParams(), max_consecutive_adaptations=9)
    assert earliest_finish(pausing) is None
    assert "max_consecutive_adaptations to 10" in str(infeasible(pausing, 10_000))
    assert earliest_finish(replace(pausing, max_consecutive_adaptations=10)) == 55


@pytest.mark.parametrize("epoch", [5, 4, 0, 5.5])
def test_an_epoch_is_stepped_once_and_in_order(epoch: float) -> None:
    scheduler, _ = run(SchedulerParams(), [0.3] * 5)
    with pytest.raises(ValueError, match=f"got epoch {epoch} after epoch 5"):
        scheduler.step(epoch, {METRIC: 0.3})  # type: ignore[arg-type]


def test_a_state_that_does_not_belong_is_refused() -> None:
    state = run(SchedulerParams(), [0.3] * 12)[0].state_dict()
    with pytest.raises(ValueError, match="mode 'min' there and 'max' here, patience 5 there and 6 here"):
        FlexibleScheduler(SchedulerParams(patience=6, mode="max")).load_state_dict(state)
    fresh = FlexibleScheduler(SchedulerParams())
    with pytest.raises(ValueError, match=r"lacks \['waited'\] and has \['wait'\] on top"):
        fresh.load_state_dict({("wait" if key == "waited" else key): value for key, value in state.items()})
    with pytest.raises(ValueError, match="mode 'missing' there and 'min' here"):
        fresh.load_state_dict(
            {**state, "params": {name: value for name, value in state["params"].items() if name != "mode"}}
        )
    assert fresh.events == []


def test_a_state_is_a_copy() -> None:
    scheduler, _ = run(SchedulerParams(), [0.3] * 12)
    other = FlexibleScheduler(SchedulerParams())
    state = scheduler.state_dict()
    other.load_state_dict(state)
    state["events"].append([13, 0.5, 0.5, "x"])
    state["recent"].append(0.0)
    assert len(scheduler.events) == len(other.events) == 1
    assert scheduler.state_dict() == other.state_dict() and scheduler.state_dict()["recent"] == [0.3] * 3


def test_trajectory_wants_a_value_for_each_epoch() -> None:
    with pytest.raises(ValueError, match="3 values of the metric, expected one for each of 4 epochs"):
        trajectory(SchedulerParams(), 4, [0.3] * 3)


# --- presets, and the promise that the file stands alone ------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_small_valid_and_ends(name: str) -> None:
    params = SchedulerParams(**PRESETS[name])
    changed = {field for field, value in asdict(params).items() if value != asdict(SchedulerParams())[field]}
    assert changed == set(PRESETS[name]) and 1 <= len(changed) <= 4
    assert 0 < (earliest_finish(params) or 0) <= 100


def test_the_file_imports_nothing_but_the_standard_library(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "flexible.py"
    copy.write_text((root / "nbhelpers" / "training" / "flexible.py").read_text(encoding="utf-8"), encoding="utf-8")
    check = "import sys, flexible; print(flexible.earliest_finish(flexible.SchedulerParams()))"
    # -S: no site-packages, so torch and nbhelpers cannot be found.
    answer = subprocess.run([sys.executable, "-S", "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert answer.stdout == "55\n", answer.stderr
