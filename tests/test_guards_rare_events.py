"""G12: a rare-event term that is multiplied by the fraction of samples that have events acts with that part of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import press
from torch import Tensor
from toy import ToyConfig, ToyTask

from nbhelpers.training import history
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.balance import out_of_balance
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.ledger import entries, probe
from nbhelpers.training.ledger_summary import ledger_by_phase, ledger_rows, ledger_summary
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import LossTerm, Phase, Update
from nbhelpers.training.weights import Ramp, Share, Weight

LEVEL = 1.97  # heights above it are extreme: some of the toy's fields come near it and others do not


def extreme(clean: Tensor) -> Tensor:
    """(B, 1, 8, 8) bool."""
    return clean > LEVEL


def mae_of_extremes(prediction: Tensor, clean: Tensor) -> Tensor:
    """Per sample the mean error over extreme pixels, averaged over samples that have any."""
    where = extreme(clean)
    n = where.sum((1, 2, 3))
    by_sample = torch.where(where, (prediction - clean).abs(), 0.0).sum((1, 2, 3)) / n.clamp(min=1)
    return by_sample.sum() / (n > 0).sum().clamp(min=1)


@dataclass(frozen=True)
class Loss:
    """How the extremes enter the toy's loss."""

    weight: Weight = 2.0
    diluted: bool = False  # the planted fault: times the fraction of samples that have extremes


class Extremes(ToyTask):
    """A toy with a mean absolute error and one over extreme heights."""

    def __init__(self, loss: Loss, **settings: Any):
        super().__init__(ToyConfig(**{"data_seed": 2, "batch_size": 4, "epochs": 3, **settings}))
        self.loss = loss

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        (update,) = super().updates(batch, phase)
        clean = batch[1]
        events = int(extreme(clean).any(-1).any(-1).sum())
        factor = events / len(clean) if self.loss.diluted else 1.0
        mae = LossTerm("mae_all", lambda prediction: (prediction - clean).abs().mean(), 1.0)
        tail = LossTerm("mae_tail", lambda p: factor * mae_of_extremes(p, clean), self.loss.weight, events=events)
        yield Update(update.optimizer, update.prediction, (mae, tail), target=clean)


class ExtremesAndStopped(Extremes):
    """The stop button in the step of this number; the rehearsal asks for updates too."""

    def __init__(self, loss: Loss, at: int, **settings: Any):
        super().__init__(loss, **settings)
        self.left = at + 1

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        if self.left == 0:
            press()
        self.left -= 1
        yield from super().updates(batch, phase)


def trained(folder: Path, **loss: Any) -> Run:
    task = Extremes(Loss(**loss))
    return fit(task, open_run(task, folder, "run")).run


def test_a_mean_absolute_error_acts_with_its_weight_and_a_diluted_one_with_a_part() -> None:
    """By hand: 2 of 8 samples have an extreme pixel, one two and the other one."""
    clean = torch.zeros(8, 1, 2, 2)
    clean[1, 0, 0, :], clean[5, 0, 1, 1] = 3.0, 2.0
    prediction = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    plain = LossTerm("mae", lambda p: (p - clean).abs().mean(), 1.0)
    whole = LossTerm("tail", lambda p: mae_of_extremes(p, clean), 2.0, events=2)
    part = LossTerm("part", lambda p: 2 / 8 * mae_of_extremes(p, clean), 2.0, events=2)
    found = entries(probe(prediction, (plain, whole, part)), {"mae": 1.0, "tail": 2.0, "part": 2.0})
    assert [(entry.effective_weight, entry.events) for entry in found] == [
        (None, None), (pytest.approx(2.0), 2), (pytest.approx(0.5), 2),
    ]  # fmt: skip
    assert found[1].row()["effective_weight"] == pytest.approx(2.0)


def test_the_ledger_and_its_summary_tell_it(tmp_path: Path) -> None:
    run = trained(tmp_path, weight=0.5)
    rows = history.read_rows(run.ledger_file)
    tail, others = [r for r in rows if r["term"] == "mae_tail"], [r for r in rows if r["term"] == "mae_all"]
    assert all(row["effective_weight"] is None and row["events"] is None for row in others)
    assert all(row["effective_weight"] == pytest.approx(0.5 if row["events"] else 0.0) for row in tail)
    assert {row["events"] for row in tail} <= set(range(5))
    summary = ledger_summary(rows)
    assert summary["mae_tail"]["effective_weight"] == pytest.approx(0.5) and 0 < summary["mae_tail"]["events"] < 4
    assert "effective_weight" not in summary["mae_all"]
    header, *lines = ledger_rows(ledger_by_phase(rows))
    assert header[-2:] == ["effective_weight", "events"] and lines[0][-2:] == ["–", "–"] and lines[1][-2] == "0.5"


@pytest.mark.parametrize("weight", [0.5, Ramp(0.5, epochs=1), Share(0.3), Ramp(Share(0.3), epochs=1)])
@pytest.mark.parametrize("seed", range(2))
def test_a_healthy_rare_event_term_raises_nothing(tmp_path: Path, weight: Weight, seed: int) -> None:
    task = Extremes(Loss(weight), seed=seed, data_seed=seed, epochs=4)
    run = fit(task, open_run(task, tmp_path, "run")).run
    assert read_guards(run) == []


@pytest.mark.parametrize(("weight", "step"), [(2.0, 5), (Ramp(2.0, epochs=1), 6 + 5)])
def test_a_diluted_term_is_told_at_the_fifth_probe(tmp_path: Path, weight: Weight, step: int) -> None:
    task = Extremes(Loss(weight, diluted=True), epochs=4)
    (found,) = read_guards(fit(task, open_run(task, tmp_path, "run")).run)
    assert (found["name"], found["severity"], found["step"]) == ("rare_events", "warn", step)
    assert "mae_tail is diluted" in found["message"]
    acts = float(found["evidence"].removeprefix("acts with ").split()[0])
    assert 0.2 < acts < 1 and "instead of 2; " in found["evidence"] and "of 4 samples a batch" in found["evidence"]
    assert found["cure"].startswith("Average mae_tail over the samples that have events only")


def test_a_share_makes_up_for_a_dilution(tmp_path: Path) -> None:
    assert read_guards(trained(tmp_path, weight=Share(0.3), diluted=True)) == []


def test_an_inert_one_is_told_once_and_not_by_the_loss_balance_too(tmp_path: Path) -> None:
    (found,) = read_guards(trained(tmp_path, weight=1e-4))
    assert (found["name"], found["step"]) == ("rare_events", 15)
    assert "next to nothing of the gradient" in found["message"] and "samples a batch have events" in found["evidence"]
    assert "Give it a target share, e.g. 30 %" in found["cure"] and "oversample" in found["cure"]


def test_one_that_drowns_the_others_is_the_loss_balances_business(tmp_path: Path) -> None:
    (found,) = read_guards(trained(tmp_path, weight=1000.0))
    assert found["name"] == "loss_balance" and found["message"].startswith("mae_tail has nearly all of the gradient")


def test_one_that_is_switched_off_is_not_judged(tmp_path: Path) -> None:
    assert read_guards(trained(tmp_path, weight=0.0, diluted=True)) == []


def test_a_short_run_is_judged_at_its_end_and_what_was_seen_survives_a_checkpoint(tmp_path: Path) -> None:
    def stopped(at: int) -> ExtremesAndStopped:
        return ExtremesAndStopped(Loss(1e-4), at, epochs=2)

    (found,) = read_guards(fit(task := stopped(99), open_run(task, tmp_path, "straight")).run)
    assert found["step"] == 12
    run = open_run(task := stopped(7), tmp_path, "run")
    assert fit(task, run).interrupted and read_guards(run) == []
    fit(task := stopped(99), open_run(task, tmp_path, "run"))
    assert read_guards(run) == [found]


def test_the_loss_balance_leaves_only_their_being_inert_to_this_guard() -> None:
    assert out_of_balance({"mae": 0.995, "tail": 0.005}) == ("mae", "tail")
    assert out_of_balance({"mae": 0.995, "tail": 0.005}, rare=["tail"]) is None
    assert out_of_balance({"mae": 0.005, "tail": 0.995}, rare=["tail"]) == ("tail", "mae")
    assert out_of_balance({"mass": 0.003, "mae": 0.995, "tail": 0.002}, rare=["tail"]) == ("mae", "mass")
    assert out_of_balance({"far": 0.995, "tail": 0.005}, rare=["far", "tail"]) is None
