"""The order of an epoch, weights that undo oversampling, and variations that keep x, y and the land together."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rain import CHANNELS, X_UNITS, long_training, statics, tiny_days

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.augment import Augmentation, mixed, noisy, turned
from nbhelpers.stages.rainfall_cvae.batches import Batch, Order, loader, statics_of, training_order
from nbhelpers.stages.rainfall_cvae.data import Days, open_days


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return open_days(tiny_days(tmp_path_factory.mktemp("data") / "rain", days_per_year=30))


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return open_days(tiny_days(tmp_path_factory.mktemp("square") / "rain", days_per_year=12, coarse=(4, 4)))


def same(one: Batch, other: Batch) -> bool:
    return (
        one.days == other.days
        and one.flip == other.flip
        and torch.equal(one.x, other.x)
        and torch.equal(one.y.nan_to_num(-1), other.y.nan_to_num(-1))
        and torch.equal(one.weight, other.weight)
    )


def test_without_oversampling_every_day_once(days: Days) -> None:
    order = training_order(days, seed=0, epoch=0)
    assert sorted(order.days) == list(days.split["train"]) != list(order.days)
    assert order.weights == (1.0,) * 30


def test_the_order_is_a_function_of_seed_and_epoch(days: Days) -> None:
    orders = {(s, e): training_order(days, seed=s, epoch=e, heavy_oversampling=3) for s in (0, 1) for e in (0, 1)}
    assert orders[1, 1] == training_order(days, seed=1, epoch=1, heavy_oversampling=3)
    assert len({order.days for order in orders.values()}) == 4


@pytest.mark.parametrize("times", [1.0, 2.0, 5.0])
def test_heavy_days_come_as_often_as_asked_and_weigh_so_much_less(days: Days, times: float) -> None:
    heavy = {day for day in days.split["train"] if days.category[day] == "heavy"}
    assert 3 < len(heavy) < 20
    drawn: Counter[int] = Counter()
    weighted: Counter[int] = Counter()
    n_epochs = 400
    for epoch in range(n_epochs):
        order = training_order(days, seed=0, epoch=epoch, heavy_oversampling=times)
        assert len(order.days) == 30  # an epoch is as long as ever
        assert np.mean(order.weights) == pytest.approx(1.0, abs=2 / 30)
        drawn.update(order.days)
        for day, weight in zip(order.days, order.weights, strict=True):
            weighted[day] += weight  # type: ignore[assignment]
    rate = {kind: np.mean([drawn[day] for day in chosen]) for kind, chosen in _kinds(days, heavy).items()}
    assert rate["heavy"] / rate["other"] == pytest.approx(times, rel=0.05)
    # Every day counts as one day an epoch, whatever it is: weighted frequencies are those of the data.
    for chosen in _kinds(days, heavy).values():
        assert np.mean([weighted[day] for day in chosen]) / n_epochs == pytest.approx(1.0, abs=0.03)
    assert max(abs(weighted[day] / n_epochs - 1) for day in days.split["train"]) < 0.35


def _kinds(days: Days, heavy: set[int]) -> dict[str, list[int]]:
    return {"heavy": sorted(heavy), "other": [day for day in days.split["train"] if day not in heavy]}


def test_weighted_frequency_of_extremes_is_that_of_the_data(days: Days) -> None:
    p95 = days.thresholds["P95"]
    share = {day: float((days.y(day) >= p95).mean()) for day in days.split["train"]}
    truth, plain, undone = np.mean(list(share.values())), [], []
    for epoch in range(200):
        order = training_order(days, seed=0, epoch=epoch, heavy_oversampling=4)
        found = np.array([share[day] for day in order.days])
        plain.append(found.mean())
        undone.append((found * order.weights).sum() / sum(order.weights))
    assert np.mean(undone) == pytest.approx(truth, rel=0.03)
    assert np.mean(plain) > 1.5 * truth


def test_a_number_below_one_is_refused(days: Days) -> None:
    with pytest.raises(UserError, match="heavy_oversampling is 0.5, expected 1"):
        training_order(days, seed=0, epoch=0, heavy_oversampling=0.5)


def test_what_a_batch_holds(days: Days) -> None:
    first, *_, last = list(loader(days, days.split["val"], batch_size=8))
    assert first.x.shape == (8, 3, 4, 5) and first.y.shape == (8, 16, 20) and len(last.days) == 6
    assert first.days == days.split["val"][:8] and first.flip == (0,) * 8 and torch.equal(first.weight, torch.ones(8))
    assert np.array_equal(first.y[2].numpy(), days.y(first.days[2]), equal_nan=True)
    assert np.array_equal(first.x[2].numpy(), days.x(first.days[2]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_start_in_the_middle_is_the_same_epoch(days: Days, num_workers: int) -> None:
    order = training_order(days, seed=3, epoch=2, heavy_oversampling=2)
    varied = {"augmentation": Augmentation(noise=0.1, mixup=0.4, flips=True), "seed": 3, "epoch": 2}
    whole = list(loader(days, order, batch_size=8, **varied))
    rest = list(loader(days, order, batch_size=8, start=2, num_workers=num_workers, **varied))
    assert len(whole) == 4 and len(rest) == 2 == len(loader(days, order, batch_size=8, start=2))
    assert all(same(one, other) for one, other in zip(whole[2:], rest, strict=True))
    other = next(iter(loader(days, order, batch_size=8, **varied | {"epoch": 3})))
    assert not same(whole[0], other)


def test_all_turn_together(square: Days) -> None:
    """Land, sea and the block means of x must fit each other after any symmetry."""
    order = Order(square.split["train"] * 4, (1.0,) * 48)
    (batch,) = list(loader(square, order, batch_size=48, augmentation=Augmentation(flips=True)))
    assert set(batch.flip) == set(range(8))
    turned_statics = statics_of(batch, torch.from_numpy(square.statics))
    assert turned_statics.shape == (48, 3, 16, 16)
    land = statics_of(batch, torch.from_numpy(square.land))
    assert torch.equal(batch.y.isnan(), ~land) and torch.equal(turned_statics[:, 0] > 0.5, land)
    blocks = batch.y.nan_to_num().unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
    inland = land.unfold(1, 4, 4).unfold(2, 4, 4).float().mean((-1, -2)) == 1
    assert torch.allclose(blocks[inland], square.pr(batch.x)[inland], atol=1e-4)
    changed = [day for place, day in enumerate(batch.days) if not _is_plain(square, batch, place, day)]
    assert len(changed) > 30  # most codes do something


def _is_plain(days: Days, batch: Batch, place: int, day: int) -> bool:
    return np.array_equal(batch.y[place].numpy(), days.y(day), equal_nan=True)


def test_a_grid_that_is_not_square_is_only_mirrored(days: Days) -> None:
    order = training_order(days, seed=0, epoch=0)
    batches = list(loader(days, order, batch_size=30, augmentation=Augmentation(flips=True)))
    assert set(batches[0].flip) == {0, 1, 2, 3} and batches[0].y.shape == (30, 16, 20)


def test_statics_without_flips_are_not_copied(days: Days) -> None:
    batch = next(iter(loader(days, days.split["val"], batch_size=8)))
    fields = torch.from_numpy(days.statics)
    found = statics_of(batch, fields)
    assert found.shape == (8, 3, 16, 20) and found.data_ptr() == fields.data_ptr()


def test_codes_are_the_eight_symmetries_of_a_square() -> None:
    field = torch.arange(9.0).reshape(3, 3)
    found = {tuple(one.flatten().tolist()) for one in turned(field, range(8))}
    mine = {tuple(np.rot90(one, k).flatten()) for one in (field.numpy(), field.numpy().T) for k in range(4)}
    assert found == mine and len(found) == 8


def test_a_component_of_the_wind_cannot_be_mirrored(tmp_path: Path, days: Days) -> None:
    some = [(days.dates[day], days.x(day), days.y(day)) for day in days.dates]
    channels = (*CHANNELS[:2], "uas")
    units = {**X_UNITS, "uas": "m/s"}
    other = open_days(tiny_days(tmp_path / "rain", days=some, channels=channels, x_units=units))
    with pytest.raises(UserError, match="'uas' is a component of the wind"):
        loader(other, other.split["train"], batch_size=8, augmentation=Augmentation(flips=True))


def test_noise_is_in_deviations_of_each_channel(days: Days) -> None:
    x = days.x(3)
    rng = np.random.default_rng(0)
    many = torch.from_numpy(np.stack([noisy(x, days, 0.2, rng) for _ in range(2000)]))
    change = days.standardise_x(many) - days.standardise_x(torch.from_numpy(x)[None])
    assert torch.allclose(change[:, [0, 2]].std((0, 2, 3)), torch.full((2,), 0.2), rtol=0.03)
    wet = days.pr(torch.from_numpy(x)[None])[0] > 2  # where the noise does not reach 0
    assert float(change[:, 1, wet].std()) == pytest.approx(0.2, rel=0.05)
    assert bool((many[:, 1] >= 0).all())


def test_a_mixture_is_of_x_and_y_alike() -> None:
    one, other = (np.full((2, 3, 3), 4.0, np.float32), np.full((6, 6), 8.0, np.float32)), None
    other = (np.zeros((2, 3, 3), np.float32), np.full((6, 6), np.nan, np.float32))
    other[1][0, 0] = 0.0
    x, y = mixed(one, other, 0.75)
    assert x.dtype == y.dtype == np.float32 and bool((x == 3.0).all())
    assert y[0, 0] == 6.0 and np.isnan(y).sum() == 35  # not measured on either day: not measured


def test_mixtures_damp_extremes_and_make_drizzle(days: Days) -> None:
    order = Order(days.split["train"] * 10, (1.0,) * 300)
    plain, mixture = (
        next(iter(loader(days, order, batch_size=300, augmentation=Augmentation(mixup=mixup)))).y.flatten()
        for mixup in (0.0, 1.0)
    )
    plain, mixture = plain[~plain.isnan()], mixture[~mixture.isnan()]
    assert float(mixture.mean()) == pytest.approx(float(plain.mean()), rel=0.15)
    assert mixture.quantile(0.999) < 0.95 * plain.quantile(0.999)
    assert (mixture > 0).float().mean() > (plain > 0).float().mean() + 0.1


@pytest.mark.parametrize("settings", [{"noise": -0.1}, {"mixup": -1.0}, {"noise": float("nan")}])
def test_variations_below_nothing_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="of the augmentation is .*, expected 0"):
        Augmentation(**settings)


def test_an_unreadable_day_is_left_out_and_said(tmp_path: Path) -> None:
    folder = long_training(tmp_path / "rain")
    lost = json.loads((folder / "metadata/categories.json").read_text())["heavy"][5]
    (folder / f"Y_hr/day_{lost:06d}.npy").unlink()
    days = open_days(folder)
    orders = [training_order(days, seed=0, epoch=epoch, heavy_oversampling=3) for epoch in range(20)]
    assert all(order.days.count(lost) <= 1 for order in orders)  # not as often as a heavy day: it would count as many
    which, said = (lost - 1, lost, lost + 1), rf"day_{lost:06d}\.npy is not there"
    (batch,) = list(loader(days, which, batch_size=3, forgiving=True))
    assert batch.days == (lost - 1, lost + 1) and len(batch.y) == 2
    assert len(batch.unreadable) == 1 and re.search(said, batch.unreadable[0])
    (empty,) = list(loader(days, (lost,), batch_size=3, forgiving=True))
    assert empty.y.shape == (0, 8, 8) and empty.x.shape == (0, 3, 2, 2)
    for num_workers in (0, 1):
        with pytest.raises(UserError, match=rf"^[^\n]*{said}[^\n]*$"):
            list(loader(days, which, batch_size=3, num_workers=num_workers))
    mixture = Augmentation(mixup=1.0)  # a partner that cannot be read is none
    pairs = Order((lost - 1, lost) * 5, (1.0,) * 10)
    assert sum(len(one.y) for one in loader(days, pairs, batch_size=5, augmentation=mixture, forgiving=True)) == 5


def test_statics_of_the_tests_have_sea() -> None:
    assert 0.02 < 1 - statics((16, 20))["land_sea_mask"].mean() < 0.3
