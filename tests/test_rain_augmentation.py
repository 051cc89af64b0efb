"""Training a downscaler with and without synthetic days: what it sees, that nothing else differs, what is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rain import tiny_days

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import augmented
from nbhelpers.stages.rainfall_cvae.augmented import ARMS, SCORES, Demonstration, added_fields, demonstrate, table
from nbhelpers.stages.rainfall_cvae.augmented_figure import augmentation_figure
from nbhelpers.stages.rainfall_cvae.batches import Batch
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.downscaler import Downscaler, Training, train_downscaler
from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle
from nbhelpers.stages.rainfall_cvae.synth import write_forecasts
from nbhelpers.stages.rainfall_cvae.synthesis import Synthesis
from nbhelpers.stages.rainfall_cvae.task import RainfallTask

SHORT = Training(steps=30, batch_size=8)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> RainfallTask:
    """An untrained model whose draws are about as wet as a heavy day."""
    found = RainfallTask(
        Config.for_profile("smoke", d_y=8, tail="gamma"), tiny_days(tmp_path_factory.mktemp("data") / "rain")
    )
    with torch.no_grad():
        amount = (found.days.thresholds["P95"] - 1) / 3  # then 0.4 exp(-3) = 2 % of the pixels reach P95
        bias = Hurdle("gamma").initial_bias(wet_fraction=0.4, mean_excess=amount)
        found.modules["cvae"].decoder.head.bias.copy_(bias)
    return found


@pytest.fixture(scope="module")
def days(task: RainfallTask) -> Days:
    return task.days


@pytest.fixture(scope="module")
def drawn(task: RainfallTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "synth"
    write_forecasts(task, folder, checkpoint="c0ffee", step=1, run="first", options=Synthesis(K=3))
    return folder


@pytest.fixture(scope="module")
def shown(days: Days, drawn: Path) -> Demonstration:
    return demonstrate(days, drawn, seeds=(0, 1), steps=6, batch_size=8)


def weights(net: Downscaler) -> torch.Tensor:
    return torch.cat([value.flatten() for value in net.parameters()])


def batch_of(days: Days, which: Sequence[int]) -> Batch:
    x, y = (torch.from_numpy(np.stack([get(day) for day in which])) for get in (days.x, days.y))
    return Batch(x, y, torch.ones(len(which)), tuple(which), (0,) * len(which))


def test_the_downscaler_learns_where_it_rains(days: Days) -> None:
    net, batch = train_downscaler(days, dataclasses.replace(SHORT, steps=150)), batch_of(days, days.split["train"])
    rain = net.rain(batch)
    assert rain.shape == (40, 1, *days.shape) and rain.min() >= 0
    land = torch.from_numpy(days.land)
    got, was = rain[:, 0][:, land].log1p(), batch.y[:, land].log1p()
    assert torch.corrcoef(torch.stack([got.flatten(), was.flatten()]))[0, 1] > 0.5
    assert got.std() < 0.9 * was.std()  # a conditional mean: smoother than rain


def test_training_is_a_function_of_its_settings(days: Days) -> None:
    one, same = (weights(train_downscaler(days, SHORT)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, weights(train_downscaler(days, dataclasses.replace(SHORT, seed=1))))


def test_added_days_are_the_given_part_of_every_batch(days: Days, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 of 12 fields; the days they are of are drawn alike, however many fields each has."""
    seen, forward = [], Downscaler.forward
    monkeypatch.setattr(Downscaler, "forward", lambda net, x: (seen.append(x), forward(net, x))[1])
    rain = days.y(3)
    train_downscaler(days, Training(steps=200, batch_size=12, share=0.25), {3: [rain], 8: [rain] * 9, 9: []})
    both = [torch.from_numpy(days.x(day)) for day in (3, 8)]
    added = torch.stack([torch.stack([(x[-3:] == one).flatten(1).all(1).sum() for one in both]) for x in seen])
    assert len(seen) == 200 and {len(x) for x in seen} == {12} and (added.sum(1) == 3).all()
    assert 0.4 < added[:, 0].sum() / 600 < 0.6


def test_the_training_days_come_in_one_order_whatever_is_added(days: Days, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    forward = Downscaler.forward

    def seeing(net: Downscaler, x: torch.Tensor) -> torch.Tensor:
        orders[-1].append(x[:4])  # the other half are days added
        return forward(net, x)

    monkeypatch.setattr(Downscaler, "forward", seeing)
    for fields in ({3: [None]}, {4: [days.y(3)] * 5}):
        orders.append([])
        train_downscaler(days, SHORT, fields)
    assert all(torch.equal(a, b) for a, b in zip(*orders, strict=True))


def test_floods_in_the_training_set_are_learnt(days: Days) -> None:
    flood = np.where(days.land, np.float32(300), np.float32(np.nan))
    heavy = [day for day in days.split["train"] if days.category[day] == "heavy"]
    batch, land = batch_of(days, heavy), torch.from_numpy(days.land)
    plain = train_downscaler(days, SHORT).rain(batch)[:, 0][:, land].mean()
    assert (
        train_downscaler(days, SHORT, {day: [flood] for day in heavy}).rain(batch)[:, 0][:, land].mean() > 1.5 * plain
    )


def test_sets_hold_the_days_they_are_named_for(days: Days, drawn: Path) -> None:
    sets = added_fields(days, drawn)
    heavy = {day for day in days.split["train"] if days.category[day] == "heavy"}
    assert set(sets["oversampled"]) == set(sets["synthetic"]) == heavy
    assert all(fields == [None] for fields in sets["oversampled"].values())
    assert all(len(fields) == 3 for fields in sets["synthetic"].values())
    assert 0 < sum(map(len, sets["synthetic_heavy"].values())) < 3 * len(heavy)  # some of them, and not all
    p95 = days.thresholds["P95"]
    for day, fields in sets["synthetic"].items():
        kept = [rain for rain in fields if (rain[days.land] >= p95).mean() >= 0.02]
        np.testing.assert_array_equal(kept, sets["synthetic_heavy"].get(day, []))


def test_scores_are_those_of_a_single_member_and_of_counts(days: Days) -> None:
    """A perfect downscaler, and one that never sees an extreme."""

    class Perfect(Downscaler):
        def rain(self, batch: Batch) -> torch.Tensor:
            return batch.y.nan_to_num()[:, None]

    found, predicted, observed = augmented._scored(Perfect(days), days, "test")
    assert set(found) == set(SCORES) and predicted == observed
    perfect = {name: {"lower": 0.0, "higher": 1.0, "one": 1.0}[better] for name, (_, better) in SCORES.items()}
    scored = {name for name in SCORES if "sedi" not in name}  # which no forecast without an error has
    assert {name: found[name] for name in scored} == pytest.approx({name: perfect[name] for name in scored})

    class Doubled(Perfect):
        def rain(self, batch: Batch) -> torch.Tensor:
            return 2 * super().rain(batch)

    found, _, _ = augmented._scored(Doubled(days), days, "test")
    rain = np.stack([days.y(day)[days.land] for day in days.split["test"]])
    said, was = 2 * rain >= np.float32(days.thresholds["P95"]), rain >= np.float32(days.thresholds["P95"])
    assert found["mae_all"] == pytest.approx(np.nanmean(rain), rel=1e-5)
    assert found["hit_rate_p95"] == 1 and found["frequency_p95"] == pytest.approx(said.sum() / was.sum())
    assert found["false_alarm_ratio_p95"] == pytest.approx((said & ~was).sum() / said.sum())
    assert found["false_alarm_rate_p95"] == pytest.approx((said & ~was).sum() / (~was).sum())
    assert found["p99_ratio"] == pytest.approx(2, rel=0.01)


def test_the_demonstration_has_all_of_it(days: Days, drawn: Path, shown: Demonstration) -> None:
    assert set(shown.scores) == set(shown.sets) == set(ARMS) and shown.seeds == (0, 1)
    assert all(len(mine[score]) == 2 for mine in shown.scores.values() for score in SCORES)
    assert shown.scored == "40 test days of 2003"
    n = len(days.split["train"])
    heavy = [day for day in days.split["train"] if days.category[day] == "heavy"]
    assert [shown.sets[name].n_fields for name in ARMS[:3]] == [n, n, n + 3 * len(heavy)]
    p95 = days.thresholds["P95"]
    by_day = {day: float((days.y(day)[days.land] >= p95).mean()) for day in days.split["train"]}
    plain, more = np.mean(list(by_day.values())), np.mean([by_day[day] for day in heavy])
    assert shown.sets["plain"].share_p95 == pytest.approx(plain)
    assert shown.sets["oversampled"].share_p95 == pytest.approx((plain + more) / 2)
    again = demonstrate(days, drawn, seeds=(0, 1), steps=6, batch_size=8)
    assert repr(again) == repr(shown)  # == would part NaN from NaN


def test_gains_count_only_with_every_seed(shown: Demonstration) -> None:
    def with_scores(score: str, plain: tuple[float, ...], other: tuple[float, ...]) -> Demonstration:
        scores = {**shown.scores, "plain": {score: plain}, "synthetic": {score: other}}
        return dataclasses.replace(shown, scores=scores)

    for score, plain, other, expected in (
        ("mae_tail", (9.0, 8.0), (8.0, 7.0), "better"),
        ("mae_tail", (9.0, 8.0), (8.0, 9.0), "mixed"),
        ("sedi_p95", (0.5, 0.6), (0.4, 0.5), "worse"),
        ("p99_ratio", (0.5, 0.5), (1.5, 1.9), "better"),  # 1.9 is nearer to 1 than a half
        ("p99_ratio", (0.9, 0.9), (1.3, 1.2), "worse"),
        ("frequency_p99", (0.0, 0.0), (0.1, 0.1), "better"),
    ):
        assert with_scores(score, plain, other).compared("synthetic", "plain", score) == expected


def test_table_and_figure_show_every_set(shown: Demonstration) -> None:
    rows = table(shown).splitlines()
    assert len(rows) == 2 + 3 + len(SCORES) and all(row.count("|") == 2 + len(ARMS) for row in rows)
    assert rows[0] == "| score | plain | oversampled | synthetic | synthetic heavy |"
    with_more = dataclasses.replace(shown, scores={**shown.scores, "true_law": shown.scores["plain"]})
    with_more = dataclasses.replace(with_more, quantiles={**shown.quantiles, "true_law": shown.quantiles["plain"]})
    assert len(augmentation_figure(with_more).axes[0].get_legend().get_texts()) == len(ARMS) + 1
    figure = augmentation_figure(shown)
    assert len(figure.axes) == 3 and "2 seeds; scored on 40 test days of 2003" in figure._suptitle.get_text()
    assert len(figure.axes[0].get_legend().get_texts()) == len(ARMS)


def test_what_cannot_be_compared_is_refused(days: Days, drawn: Path, task: RainfallTask, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seeds is empty"):
        demonstrate(days, drawn, seeds=())
    with pytest.raises(UserError, match="share is 1.0"):
        demonstrate(days, drawn, share=1.0)
    with pytest.raises(UserError, match="steps is 0"):
        demonstrate(days, drawn, steps=0)
    with pytest.raises(UserError, match="no field to add"):
        train_downscaler(days, SHORT, {3: []})
    options = Synthesis(K=1, days=("dry",))
    write_forecasts(task, tmp_path / "dry", checkpoint="c0ffee", step=1, run="first", options=options)
    with pytest.raises(UserError, match="has draws of 0 heavy days, none of which is heavy itself"):
        demonstrate(days, tmp_path / "dry")
