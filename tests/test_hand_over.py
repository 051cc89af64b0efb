"""A loss scheduler in a real run: the weights move, the loss uses them, a resume goes through it, guards look on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import Stopped, assert_equal_runs, press
from toy import STEPS_PER_EPOCH, ToyConfig, ToyTask, train

from nbhelpers.training import checkpoint, history
from nbhelpers.training.fit import fit
from nbhelpers.training.flexible import FlexibleScheduler, SchedulerParams
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.ledger import Balance, Probe
from nbhelpers.training.ledger_summary import ledger_summary, settled_step
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import Evaluation, LossTerm, Phase, Predictor, Update
from nbhelpers.training.weights import Scheduled

EPOCHS = 7
PLAN = SchedulerParams(
    source="mse", target="slope", monitor_metric="mse", trigger="epoch", patience=1, warmup_epochs=2, min_epochs=3,
    transition_step=0.3, adaptive_step=False,
)  # fmt: skip
AFTER = [(1.0, 0.0)] * 3 + [(0.7, 0.3), (0.4, 0.6)] + [(0.3, 0.7)] * 2  # the weights of epochs 1, 2, …


def whole(folder: Path, **settings: Any) -> Run:
    return train(folder, epochs=EPOCHS, scheduler=PLAN, **settings).run


def names(run: Run) -> list[str]:
    return [found["name"] for found in read_guards(run)]


# the run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True])
def test_the_weights_move_and_the_loss_uses_them(tmp_path: Path, relative: bool) -> None:
    run = whole(tmp_path, relative=relative)
    rows = history.read_rows(run.history_file)
    assert [(row["schedule_mse"], row["schedule_slope"]) for row in rows] == [pytest.approx(pair) for pair in AFTER]
    for row, (source, target) in zip(rows, AFTER, strict=True):
        assert row["train_weight_mse"] == pytest.approx(source)
        if not relative:
            assert row["train_weight_slope"] == pytest.approx(target)
            total = source * row["train_mse"] + target * row["train_slope"]
            assert row["train_total"] == pytest.approx(total, rel=1e-5)
        elif target:  # 0.7 of it is 0.7 of the loss, give or take what a batch differs from the running mean
            part = row["train_weight_slope"] * row["train_slope"]
            assert part / (part + source * row["train_mse"]) == pytest.approx(target, rel=0.25)
    assert names(run) == []


def test_the_model_is_another_one_than_without_the_hand_over(tmp_path: Path) -> None:
    moved, stayed = whole(tmp_path / "a"), train(tmp_path / "b", epochs=EPOCHS, slope_weight=0.0).run
    theirs = [checkpoint.find(run, "last") for run in (moved, stayed)]
    tasks = [ToyTask(ToyConfig()) for _ in theirs]
    for task, found in zip(tasks, theirs, strict=True):
        assert found is not None
        checkpoint.load_weights(found, task.modules)
    one, other = (torch.cat([p.flatten() for p in task.modules["net"].parameters()]) for task in tasks)
    assert not torch.allclose(one, other, atol=1e-3)


def test_the_best_checkpoint_is_one_of_those_with_the_last_weights(tmp_path: Path) -> None:
    """With mode "max" the first epoch would be the best of all."""
    run = whole(tmp_path, mode="max")
    best = checkpoint.find(run, "best")
    assert best is not None and best.step > 5 * STEPS_PER_EPOCH
    plain = train(tmp_path / "plain", epochs=EPOCHS, slope_weight=0.0, mode="max").run
    first = checkpoint.find(plain, "best")
    assert first is not None and first.step == STEPS_PER_EPOCH


def test_the_ledger_is_summed_up_from_the_last_hand_over_on(tmp_path: Path) -> None:
    run = whole(tmp_path)
    rows = history.read_rows(run.history_file)
    assert settled_step(rows) == 5 * STEPS_PER_EPOCH
    ledger = history.read_rows(run.ledger_file)
    assert ledger_summary(ledger, since=settled_step(rows))["slope"]["weight"] == pytest.approx(0.7)
    assert ledger_summary(ledger)["slope"]["weight"] < 0.7
    assert settled_step(history.read_rows(train(tmp_path / "plain").run.history_file)) == 0


@pytest.mark.parametrize("at", range(2, EPOCHS * STEPS_PER_EPOCH, 3))
def test_a_resume_through_the_hand_over_is_exact(tmp_path: Path, at: int) -> None:
    config = ToyConfig(epochs=EPOCHS, scheduler=PLAN, relative=True)
    task = Stopped(config, at)
    stopped = fit(task, open_run(task, tmp_path / "stopped", "run"))
    assert stopped.interrupted
    again = fit(ToyTask(config), open_run(ToyTask(config), tmp_path / "stopped", "run"))
    assert_equal_runs(again.run, whole(tmp_path / "whole", relative=True))


def test_a_checkpoint_from_before_the_hand_over_is_gone_back_to(tmp_path: Path) -> None:
    run = whole(tmp_path)
    early = min(run.checkpoints.glob("step_*"))
    task = ToyTask(ToyConfig(epochs=EPOCHS, scheduler=PLAN))
    fit(task, run, start=early)
    rows = history.read_rows(run.history_file)
    assert [row["schedule_slope"] for row in rows] == [pytest.approx(target) for _, target in AFTER]


class Pressed(ToyTask):
    """Presses the stop button in the last moment of an epoch: scored, and not yet finished."""

    def __init__(self, config: ToyConfig, at: int):
        super().__init__(config)
        self.left = at + 1  # the first evaluation is the rehearsal's

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        scored = super().evaluate(split, predictor)
        if (left := self.left) == 0:
            press()
        self.left = left - 1
        return scored


@pytest.mark.parametrize("at", range(EPOCHS))
def test_a_stop_between_scoring_and_saving_does_not_step_the_scheduler_twice(tmp_path: Path, at: int) -> None:
    task = Pressed(ToyConfig(epochs=EPOCHS, scheduler=PLAN, relative=True), at)
    fit(task, open_run(task, tmp_path / "stopped", "run"))
    again = ToyTask(task.config)
    run = open_run(again, tmp_path / "stopped", "run")
    fit(again, run)
    assert_equal_runs(run, whole(tmp_path / "whole", relative=True))


def test_more_epochs_equal_as_many_in_one_go(tmp_path: Path) -> None:
    """The first call ends with the epoch after which the weights move (which it is warned of)."""
    train(tmp_path / "a", epochs=5, scheduler=PLAN)
    runs = [whole(tmp_path / name) for name in ("a", "b")]
    ends = [(checkpoint.find(run, "best"), history.read_rows(run.history_file)) for run in runs]
    assert [found and found.step for found, _ in ends] == [EPOCHS * STEPS_PER_EPOCH] * 2
    columns = ("val_mse", "train_total", "schedule_slope", "train_weight_slope")
    one, other = ([[row[name] for name in columns] for row in rows] for _, rows in ends)
    assert one == other


# relative weights -----------------------------------------------------------------------------------------------------


def weights_after(values: list[tuple[float, float]], *terms: LossTerm) -> dict[str, float]:
    balance, found = Balance(), {}
    for raw in values:
        probed = Probe(("a", "b"), raw, (torch.ones(1),) * 2, (1.0, 1.0), (torch.ones(1),) * 2)
        found = balance.weights(probed, terms)
    return found


def term(name: str, weight: float, relative_to: str | None = None) -> LossTerm:
    return LossTerm(name, lambda prediction: prediction.sum(), weight, relative_to=relative_to)


def test_a_relative_weight_is_in_units_of_the_other_term() -> None:
    found = weights_after([(0.01, 4.0)], term("a", 0.3), term("b", 0.7, "a"))
    assert found == {"a": 0.3, "b": pytest.approx(0.7 * 0.01 / 4.0)}
    steady = weights_after([(0.01, 4.0)] * 50, term("a", 0.3), term("b", 0.7, "a"))
    assert steady["b"] == pytest.approx(0.7 * 0.01 / 4.0)
    # after ten times as many steps as the memory is long, only the new magnitudes count
    later = weights_after([(0.01, 4.0)] * 5 + [(1.0, 2.0)] * 200, term("a", 0.3), term("b", 0.7, "a"))
    assert later["b"] == pytest.approx(0.7 * 1.0 / 2.0)


def test_a_term_that_was_always_0_has_no_say_and_breaks_nothing() -> None:
    assert weights_after([(0.5, 0.0)], term("a", 1.0), term("b", 0.7, "a"))["b"] == 0.0


def test_a_yardstick_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="measured in units of 'c'"):
        weights_after([(0.5, 1.0)], term("a", 1.0), term("b", 0.7, "c"))


def test_a_component_that_the_scheduler_does_not_move_is_an_error() -> None:
    with pytest.raises(ValueError, match="moves the weights of mse, slope, and not of 'other'"):
        Scheduled(FlexibleScheduler(PLAN), "other")


# guards (G8, G9) ------------------------------------------------------------------------------------------------------


class Faulty(ToyTask):
    """A toy with a scheduler that something is wrong with; ``fit`` and the guards are the real ones."""

    def __init__(self, config: ToyConfig, **wrong: Any):
        super().__init__(config)
        self.wrong = wrong
        if wrong.get("hidden"):  # the terms still use it
            self.hidden, self.loss_scheduler = self.loss_scheduler, None
        if wrong.get("kind"):
            assert config.scheduler is not None
            self.loss_scheduler = wrong["kind"](config.scheduler)

    def terms(self, clean: torch.Tensor) -> tuple[LossTerm, ...]:
        if self.wrong.get("hidden"):
            self.loss_scheduler = self.hidden
            terms = super().terms(clean)
            self.loss_scheduler = None
            return terms
        terms = super().terms(clean)
        if self.wrong.get("unused"):
            return tuple(dataclasses.replace(one, weight=1.0) for one in terms)
        return terms


class Still(FlexibleScheduler):
    """Counts its epochs and forgets to move."""

    def step(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        self._epoch = epoch
        return False


def run_with(folder: Path, plan: SchedulerParams = PLAN, epochs: int = EPOCHS, **wrong: Any) -> Run:
    task = Faulty(ToyConfig(epochs=epochs, scheduler=plan, patience=wrong.pop("patience", None)), **wrong)
    run = open_run(task, folder, "run")
    fit(task, run)
    return run


def test_a_scheduler_that_nobody_steps_is_told_in_the_first_epoch(tmp_path: Path) -> None:
    run = run_with(tmp_path, hidden=True)
    (found,) = read_guards(run)
    assert (found["name"], found["severity"]) == ("loss_scheduler", "warn")
    assert "nobody steps" in found["message"] and found["step"] <= STEPS_PER_EPOCH


def test_weights_that_no_loss_uses_are_told_in_the_first_epoch(tmp_path: Path) -> None:
    (found,) = read_guards(run_with(tmp_path, unused=True))
    assert "moves the weight of mse and slope, and no loss term uses it" in found["message"]
    assert found["step"] == STEPS_PER_EPOCH


def test_a_scheduler_that_does_not_move_when_it_should_is_told_at_once(tmp_path: Path) -> None:
    found, at_the_end = read_guards(run_with(tmp_path, kind=Still))
    assert "never fired" in at_the_end["message"]
    assert "did not move weight as its trigger says" in found["message"]
    assert found["step"] == 3 * STEPS_PER_EPOCH  # the first epoch after which it should have
    assert "slope 0.3" in found["evidence"]


def test_a_metric_that_does_not_exist_is_refused_before_training(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, trigger="plateau", monitor_metric="mxe", patience=1)
    with pytest.raises(GuardStop, match="'mxe' is not among the validation metrics: choose one of mae, mse") as stopped:
        run_with(tmp_path, plan)
    assert stopped.value.exit_code == 2 and stopped.value.finding.step == 0


def test_a_hand_over_that_cannot_finish_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(GuardStop, match="cannot finish in this run") as stopped:
        run_with(tmp_path, epochs=4)
    assert stopped.value.exit_code == 2 and "it needs 5 epochs" in stopped.value.finding.evidence


PLATEAU = dataclasses.replace(PLAN, trigger="plateau", min_delta=0.001, ema_beta=0.0)


def test_a_scheduler_that_never_fires_is_told_at_the_end(tmp_path: Path) -> None:
    """The error falls in every epoch, by far more than min_delta."""
    (found,) = read_guards(run_with(tmp_path, PLATEAU))
    assert (found["name"], found["severity"]) == ("loss_scheduler", "warn")
    assert "never fired" in found["message"] and "weight 0 of 0.7 after 0 steps" in found["evidence"]
    assert found["step"] == EPOCHS * STEPS_PER_EPOCH


def test_a_hand_over_that_ends_with_the_run_is_told_before_training(tmp_path: Path) -> None:
    (found,) = read_guards(run_with(tmp_path, epochs=5))
    assert "ends with the run" in found["message"] and found["step"] == 0


def test_patience_counts_once_all_weight_is_handed_over(tmp_path: Path) -> None:
    """With mode "max" every epoch is worse than the first, so that patience would run out before the plateau."""
    plan = dataclasses.replace(PLATEAU, min_delta=0.001)
    run = train(tmp_path, epochs=30, scheduler=plan, patience=2, armed_after=6, mode="max").run
    rows = history.read_rows(run.history_file)
    first = next(row["epoch"] for row in rows if row["schedule_slope"] > 0)
    assert first > 6 + 2 and rows[-1]["schedule_slope"] == pytest.approx(0.7)


def test_patience_that_counts_during_the_hand_over_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuardStop, match="still rising") as stopped:
        run_with(tmp_path, patience=2)
    assert "stands from epoch 5 on" in stopped.value.finding.evidence


def test_the_balance_of_the_losses_is_judged_after_the_hand_over(tmp_path: Path) -> None:
    """The slope ends with next to no weight: said, but not of the time when it had none on purpose."""
    plan = dataclasses.replace(PLAN, final_weight_source=0.9999, final_weight_target=0.0001, transition_step=0.001)
    run = train(tmp_path, epochs=12, scheduler=plan).run
    (found,) = read_guards(run)
    assert found["name"] == "loss_balance" and found["step"] > 3 * STEPS_PER_EPOCH
    assert "slope" in found["message"]


def times_1000(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda prediction: 1000 * fn(prediction)


class Steep(ToyTask):
    """Its slope is a thousand times as large as its mean squared error."""

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        for update in super().updates(batch, phase):
            mse, slope = update.terms
            yield dataclasses.replace(update, terms=(mse, dataclasses.replace(slope, fn=times_1000(slope.fn))))


def test_a_loss_that_rises_with_its_weights_has_not_jumped(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, warmup_epochs=8, min_epochs=8)
    task = Steep(ToyConfig(epochs=14, scheduler=plan))
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    rows = history.read_rows(run.history_file)
    assert rows[9]["train_total"] > 10 * rows[8]["train_total"]
    assert "loss_spike" not in names(run)
    assert not math.isnan(rows[-1]["train_total"])
