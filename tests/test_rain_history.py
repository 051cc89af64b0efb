"""Configurations that once cost days, run again: each is refused or named, and the profiles' own settings are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rain_run import TAIL_MAE, TINY, findings, flags, said, some_days, stopped, task_on, trained

from nbhelpers import cli
from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.sampler import Inputs
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.training import checkpoint, history
from nbhelpers.training.ledger_summary import ledger_summary
from nbhelpers.training.metrics import mean_metric
from nbhelpers.training.task import Evaluation, LossTerm, Predictor

AT_ONCE: dict[str, Any] = {**TAIL_MAE, "warmup_epochs": 0}  # shares are judged once nothing rises any more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_days(tmp_path_factory.mktemp("data") / "rain")


def ledger(task: RainfallTask, folder: Path) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    run = trained(task, folder)
    return ledger_summary(history.read_rows(run.ledger_file)), findings(run)


# --- the error on extremes times the share of days that have any -----------------------------------------------------


def test_a_diluted_tail_is_named_with_the_weight_that_it_acts_with(folder: Path, tmp_path: Path) -> None:
    task = task_on(folder, **AT_ONCE, lambda_ext=2.0, dilute_tail=True)
    shares, found = ledger(task, tmp_path)
    (diluted,) = [one for one in found if one["name"] == "rare_events"]
    assert diluted["severity"] == "warn" and "mae_ext is diluted" in diluted["message"]
    assert "instead of 2" in diluted["evidence"] and "samples a batch have events" in diluted["evidence"]
    tail = shares["mae_ext"]
    assert tail["weight"] == 2.0 and tail["effective_weight"] < 1.0 and 0 < tail["events"] < 4
    for row in history.read_rows(tmp_path / "run/ledger.csv"):
        if row["term"] == "mae_ext":
            assert row["effective_weight"] == pytest.approx(2.0 * row["events"] / TINY["batch_size"], rel=1e-4)
    assert any("a lambda_ext of 2 may act as 0.2" in line for line in task.remarks())


def test_a_diluted_tail_is_named_in_the_middle_of_a_warm_up(folder: Path, tmp_path: Path) -> None:
    """The weight of the KL has nothing to do with it."""
    settings = {**AT_ONCE, "warmup_epochs": 2, "epochs": 4, "lambda_ext": 2.0, "dilute_tail": True}
    run = trained(task_on(folder, **settings), tmp_path)
    (diluted,) = [one for one in findings(run) if one["name"] == "rare_events" and "diluted" in one["message"]]
    rows = history.read_rows(run.history_file)
    assert diluted["step"] < rows[1]["step"] and rows[0]["train_weight_kl"] < task_on(folder).config.beta_kl


def test_undiluted_it_acts_with_the_weight_it_has(folder: Path, tmp_path: Path) -> None:
    task = task_on(folder, **AT_ONCE, lambda_ext=2.0)
    shares, found = ledger(task, tmp_path)
    assert shares["mae_ext"]["effective_weight"] == pytest.approx(2.0, rel=1e-4)
    assert not any("dilute" in line for line in task.remarks())
    assert [one["name"] for one in found if one["name"] == "rare_events"] == []


def test_a_tail_without_a_say_is_named(folder: Path, tmp_path: Path) -> None:
    found = said(task_on(folder, **AT_ONCE, lambda_ext=1e-5, lambda_mass=0.0), tmp_path)
    assert ["next to nothing of the gradient" in one["message"] for one in found] == [True]
    assert found[0]["name"] == "rare_events" and found[0]["severity"] == "warn"


# --- warm-ups and stopping -------------------------------------------------------------------------------------------


def test_a_warm_up_of_30_in_25_epochs_is_refused(folder: Path, tmp_path: Path) -> None:
    found = stopped(task_on(folder, warmup_epochs=30, epochs=25), tmp_path, "schedule", exit_code=2)
    assert "'kl' is still rising when the run ends" in found["message"] and "epoch 30" in found["evidence"]


@pytest.mark.parametrize("armed", [0, 10])
def test_stopping_that_is_armed_inside_the_warm_up_is_refused(folder: Path, armed: int, tmp_path: Path) -> None:
    changes = {"warmup_epochs": 30, "epochs": 80, "early_stopping_patience": 20}
    task = task_on(folder, **changes, armed_after=armed)
    found = stopped(task, tmp_path, "schedule", exit_code=2)
    assert "counts epochs in which the weight of loss term 'kl' is still rising" in found["message"]
    assert f"armed after {armed} epochs" in found["evidence"] and "epoch 30" in found["evidence"]
    assert task_on(folder, **changes).monitor.armed_after == 30, "left alone, it is armed at the warm-up's end"


def test_the_command_line_refuses_it_with_code_2(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = [f"--data-dir={folder}", f"--output-dir={tmp_path}", "--run-name=run", "--profile=smoke"]
    long = flags(warmup_epochs=30, epochs=25)
    assert cli.main(["train", "rainfall-cvae", *places, *long]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("nbhelpers: STOP schedule (step 0): ") and "still rising when the run ends" in line


class WorseAndWorse(RainfallTask):
    """Every epoch scores worse than the one before, so that the first would be the best if it counted."""

    calls = 0

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        found = super().evaluate(split, predictor)
        self.calls += 1
        worse = np.array([[1 + 0.1 * self.calls]])
        value = mean_metric(worse, np.ones((1, 1)), labels=("all",), better="lower", units="mm/day")
        return dataclasses.replace(found, metrics={**found.metrics, "crps": value})


def test_no_checkpoint_of_the_warm_up_is_the_best_and_patience_does_not_count_in_it(
    folder: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"epochs": 9, "warmup_epochs": 2.5, "early_stopping_patience": 2}
    task = task_on(folder, WorseAndWorse, **settings, batch_size=48, eval_days=2)
    assert task.monitor.armed_after == 3
    run = trained(task, tmp_path)
    rows = history.read_rows(run.history_file)
    best = checkpoint.find(run, "best")
    assert min(rows, key=lambda row: row["val_crps"])["epoch"] == 1, "or nothing would be shown"
    assert best is not None and best.step == rows[3]["step"], "the first epoch after the warm-up"
    assert len(rows) == 6, "two epochs of patience after it"
    betas = [row["train_weight_kl"] for row in rows]
    assert betas[0] < betas[1] < betas[2] < betas[3] == betas[-1] == task.config.beta_kl


# --- what checkpoints are selected by --------------------------------------------------------------------------------


def test_selecting_by_the_reconstruction_is_allowed_with_a_warning(folder: Path, tmp_path: Path) -> None:
    task = task_on(folder, early_stopping_metric="L_rec", early_stopping_patience=1, epochs=3)
    assert task.monitor.metric == "l_rec"
    assert any("has seen the day: it is volatile" in line for line in task.remarks())
    assert any("volatile" in line and "crps does" in line for line in task.remarks())
    run = trained(task, tmp_path)
    rows = history.read_rows(run.history_file)
    best = checkpoint.find(run, "best")
    settled = {row["step"]: row["val_l_rec"] for row in rows if row["epoch"] > 1}
    assert best is not None and settled[best.step] == min(settled.values())
    assert not task_on(folder).remarks()[1:], "nothing is said of crps"


@pytest.mark.parametrize(("spelt", "metric"), [("MAE_all", "mae_all"), ("MAE_tail", "mae_tail"), ("L_rec", "l_rec")])
def test_metrics_may_be_spelt_as_they_were(spelt: str, metric: str) -> None:
    assert Config.for_profile("quick", early_stopping_metric=spelt).early_stopping_metric == metric


def test_posterior_samples_cannot_select(folder: Path) -> None:
    for metric in ("posterior_crps", "Posterior_CRPS"):
        with pytest.raises(UserError, match="scores samples that have seen the day") as caught:
            task_on(folder, early_stopping_metric=metric)
        assert caught.value.exit_code == 2 and "of prior samples" in str(caught.value)


# --- activations that cannot reach the target -------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "operation"), [("relu", "Relu"), ("softplus", "Softplus")])
def test_an_output_that_cannot_be_negative_is_refused_on_z_scores(
    folder: Path, activation: str, operation: str, tmp_path: Path
) -> None:
    task = task_on(folder, **AT_ONCE, transform="zscore", output_activation=activation)
    found = stopped(task, tmp_path, "output_range", exit_code=2)
    assert f"the model ends in {operation}" in found["message"] and "gives 0 to inf" in found["evidence"]


@pytest.mark.parametrize(
    ("transform", "activation"), [("zscore", "none"), ("log1p", "softplus"), ("log1p", "none"), ("none", "relu")]
)
def test_outputs_that_reach_the_target_are_not(folder: Path, transform: str, activation: str, tmp_path: Path) -> None:
    task = task_on(folder, **AT_ONCE, epochs=1, transform=transform, output_activation=activation, lr=1e-4)
    assert [one for one in said(task, tmp_path) if one["name"] == "output_range"] == []


# --- terms that drown the others -------------------------------------------------------------------------------------


class SummedMass(RainfallTask):
    """The error of the mean, written as a sum over land."""

    def terms(self, inputs: Inputs, *others: Any) -> tuple[LossTerm, ...]:
        return tuple(
            dataclasses.replace(term, fn=lambda rain, mean=term.fn: self.n_land * mean(rain))
            if term.name == "mass"
            else term
            for term in super().terms(inputs, *others)
        )


def test_a_mass_error_that_is_a_sum_is_named_as_dominating(tmp_path: Path) -> None:
    """On the grid of the full-size layout, with its classical weight."""
    folder = some_days(tmp_path / "rain", n=(24, 4, 4), factor=12, coarse=(13, 11))
    settings = {**AT_ONCE, "tail_share": 0.0, "lambda_mass": 0.01, "batch_size": 2, "eval_days": 1, "members": 2}
    (found,) = said(task_on(folder, SummedMass, **settings), tmp_path)
    assert found["name"] == "loss_balance" and found["severity"] == "warn"
    assert found["message"].startswith("mass has nearly all of the gradient and mae next to nothing")
    # As a mean it needs more weight to be heard at all.
    assert said(task_on(folder, **settings | {"lambda_mass": 0.02}), tmp_path / "mean") == []


def test_the_classical_preset_drowns_by_design(folder: Path, tmp_path: Path) -> None:
    task = task_on(folder, preset="classical", warmup_epochs=1)
    assert (task.config.lambda_ext, task.config.beta_kl, task.config.prior_fraction) == (5.0, 0.01, 0.0)
    shares, found = ledger(task, tmp_path)
    (balance,) = [one for one in found if one["severity"] != "info"]
    assert balance["name"] == "loss_balance" and balance["message"].startswith("mae_ext has nearly all")
    assert shares["mae_ext"]["grad_share"] > 0.9 and shares["mass"]["grad_share"] < 0.01


# --- healthy runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_days(tmp_path_factory.mktemp("data") / "rain", n=(360, 24, 12), n_years=2)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("likelihood", ["hurdle_gamma", "tail_mae"])
def test_a_healthy_run_raises_nothing_and_learns(year: Path, likelihood: str, seed: int, tmp_path: Path) -> None:
    """The smoke profile on fewer pixels. (The guard of the latent waits for 200 steps, which it does not have.)"""
    task = RainfallTask(Config.for_profile("smoke", seed=seed, likelihood=likelihood, members=4), year)
    assert likelihood == "hurdle_gamma" or task.config.tail_share == 0.3
    run = trained(task, tmp_path)
    assert [one for one in findings(run) if one["severity"] != "info"] == []
    rows = history.read_rows(run.history_file)
    assert len(rows) == 3 and min(row["val_crps"] for row in rows[1:]) < rows[0]["val_crps"]
