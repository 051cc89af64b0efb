"""The balance of the loss on a batch with extremes, and the weight of the tail in an average one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rain import tiny_days

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import balance as stage_balance
from nbhelpers.stages.rainfall_cvae.balance import measure_balance, tail_weight
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.knobs import KL_KNOBS, TAIL_KNOBS
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.training.ledger import entries, probe
from nbhelpers.widgets import loss_balance

TINY: dict[str, Any] = {"base_filters": 4, "d_y": 4, "d_z": 2, "batch_size": 8, "likelihood": "tail_mae"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_days(tmp_path_factory.mktemp("data") / "rain")


def make(folder: Path, **changes: Any) -> RainfallTask:
    return RainfallTask(Config.for_profile("smoke", **TINY | changes), folder)


@pytest.fixture(scope="module")
def task(folder: Path) -> RainfallTask:
    return make(folder)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["mae", "mae_ext", "mass", "kl"]),
        ({"d_z": 0}, ["mae", "mae_ext", "mass"]),
        ({"likelihood": "hurdle_gamma"}, ["nll", "kl"]),
        ({"dilute_tail": True}, ["mae", "mae_ext", "mass", "kl"]),
    ],
)
def test_it_is_the_ledger_of_the_same_batch(folder: Path, changes: dict[str, Any], names: list[str]) -> None:
    """Whatever the weights, although the network is not asked again."""
    task = make(folder, **changes)
    found = measure_balance(task)
    update = stage_balance._first_with_extremes(task)
    probed = probe(update.prediction, update.terms)
    assert list(probed.names) == names
    for lambda_ext, beta in ((0.0, 0.0), (5.0, 0.01), (0.3, 2.0)):
        config = task.config.replace({"lambda_ext": lambda_ext, "beta_kl": beta}, source="the test")
        weights = {"nll": 1.0, "mae": 1.0, "mae_ext": lambda_ext, "mass": 0.01, "kl": beta}
        expected = entries(probed, {name: weights[name] for name in names})
        for mine, theirs in zip(found(config), expected, strict=True):
            ours, row = mine.row(), theirs.row()
            assert ours.keys() == row.keys()
            for key, value in row.items():
                numeric = isinstance(value, float)
                wanted = pytest.approx(value, abs=2e-4, rel=2e-4) if numeric else value
                assert ours[key] == wanted, (mine.term, key)


def test_a_share_is_the_share_of_the_gradient(task: RainfallTask) -> None:
    rows = {row.term: row for row in measure_balance(task)(task.config.replace({"tail_share": 0.4}, source="the test"))}
    assert sum(rows[name].grad_share for name in ("mae", "mae_ext", "mass")) == pytest.approx(1)
    assert rows["mae_ext"].grad_share == pytest.approx(0.4, abs=1e-4)
    assert rows["mae_ext"].effective_weight == pytest.approx(rows["mae_ext"].weight, rel=1e-4)
    assert rows["mae_ext"].events


def test_the_first_batch_without_extremes_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(folder, batch_size=4)
    first, *others = list(task.batches("train", 0))
    others = [batch for batch in others if bool((batch.y >= task.event_level).any())]
    first.y.clamp_(max=1.0)
    monkeypatch.setattr(task, "batches", lambda split, epoch: [first, *others])
    rows = {row.term: row for row in measure_balance(task)(task.config)}
    extreme = (others[0].y >= task.event_level) & torch.from_numpy(task.days.land)
    assert rows["mae_ext"].events == int(extreme.flatten(1).any(1).sum())
    monkeypatch.setattr(task, "batches", lambda split, epoch: [first])
    with pytest.raises(UserError, match=r"no training day in .* has a pixel of at least P95 = .* mm/day"):
        measure_balance(task)


def test_it_disturbs_no_random_numbers(task: RainfallTask) -> None:
    before = torch.get_rng_state()
    measure_balance(task)
    assert torch.equal(torch.get_rng_state(), before)


def counted(task: RainfallTask) -> tuple[float, float]:
    """Share of the training days with extremes, and how many pixels those have."""
    rain = np.stack([task.days.y(day) for day in task.days.split["train"]])
    pixels = ((rain >= task.event_level) & task.days.land).sum((1, 2))
    return float((pixels > 0).mean()), float(pixels[pixels > 0].mean())


def test_the_tail_of_an_average_batch_is_counted_over_the_training_days(task: RainfallTask) -> None:
    share, pixels = counted(task)
    config = task.config.replace({"lambda_ext": 5.0}, source="the test")
    said = tail_weight(task, measure_balance(task))(config)
    assert f"An average batch of 8 days has {share * 8:.1f} with extremes" in said
    assert f"P95 = {task.event_level:.3g} mm/day), {pixels:.0f} pixels on each of them" in said
    assert said.endswith(f"its whole weight of 5; averaged over all days, with extremes or without, it would act with "
                         f"{5 * share:.3g}.")  # fmt: skip


def test_the_weight_that_is_said_is_that_of_the_share(task: RainfallTask) -> None:
    balance = measure_balance(task)
    weight = next(row.weight for row in balance(task.config) if row.term == "mae_ext")
    assert f"whole weight of {weight:.3g};" in tail_weight(task, balance)(task.config)


def test_a_diluted_term_says_what_is_left_of_it(folder: Path) -> None:
    task = make(folder, dilute_tail=True, lambda_ext=2.0)
    share, _ = counted(task)
    said = tail_weight(task, measure_balance(task))(task.config)
    assert said.endswith(f"Their error acts with {2 * share:.3g} instead of 2, diluted by the other days.")


def test_heavy_days_drawn_more_often_bring_more_extremes(folder: Path) -> None:
    def often(times: float) -> float:
        task = make(folder, heavy_oversampling=times)
        said = tail_weight(task, measure_balance(task))(task.config)
        return float(re.findall(r"has ([\d.]+) with extremes", said)[0])

    assert often(5.0) > often(1.0)


def test_under_the_likelihood_no_term_is_for_extremes_alone(folder: Path) -> None:
    task = make(folder, likelihood="hurdle_gamma")
    said = tail_weight(task, measure_balance(task))(task.config)
    assert "with extremes" in said and said.endswith("no term is for them alone.")


def test_the_panel_shows_shares_and_the_sentence_below_them(task: RainfallTask) -> None:
    balance = measure_balance(task)
    panel = loss_balance(task.config, balance, TAIL_KNOBS, judged="mae_ext", note=tail_weight(task, balance))
    assert panel.config is task.config
    assert "mae_ext is at work: 30.0% of the gradient" in panel.picture.value
    assert "An average batch of 8 days" in panel.picture.value.partition("</table>")[2]
    panel.choice.value = "λ_ext"
    assert panel.config.lambda_ext == 5 and panel.config.tail_share is None
    assert "classical 5" in panel.picture.value and "whole weight of 5;" in panel.picture.value
    low, high = TAIL_KNOBS[1].marked or (0, 0)
    assert low < 5 < high


def test_the_panel_of_the_kl(folder: Path) -> None:
    task = make(folder, likelihood="hurdle_gamma")
    panel = loss_balance(task.config, measure_balance(task), KL_KNOBS, judged="kl")
    panel.sliders["β"].value = 0.01
    assert panel.config.beta_kl == 0.01 and "<b>β = 0.01</b>" in panel.picture.value
    assert "An average batch" not in panel.picture.value
