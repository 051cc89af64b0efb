"""Predictors that need no training: whose rain they take, and that they never find the day itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from rain import tiny_days, weather
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import baselines
from nbhelpers.stages.rainfall_cvae.baselines import NEAR, SEASON, Baseline
from nbhelpers.stages.rainfall_cvae.batches import Batch
from nbhelpers.stages.rainfall_cvae.data import Days, open_days
from nbhelpers.stages.rainfall_cvae.simulate import simulate
from nbhelpers.stages.rainfall_cvae.verification import RainVerification
from nbhelpers.training.metrics import Metric, paired_difference

K = 8


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    """8 x 8 pixels: 426 training days, in January and from April to July of three years, and June days of later ones.

    No two days have the same rain; day 90 has a gap.
    """
    dates = [date(year, 1, 1) + timedelta(day) for year in (2001, 2002, 2003) for day in [*range(20), *range(90, 212)]]
    dates += [date(year, 6, day) for year in (2005, 2006) for day in (1, 2)]
    years = {"train": [2001, 2002, 2003], "val": [2005], "test": [2006]}

    def marked() -> Iterator[tuple[date, np.ndarray, np.ndarray]]:
        for number, (when, x, rain) in enumerate(weather(dates, coarse=(2, 2))):
            rain[7, 7] = 1 + number / 100
            rain[6, 6] = np.nan if number == 90 else rain[6, 6]
            yield when, x, rain

    return open_days(tiny_days(tmp_path_factory.mktemp("data") / "rain", days=marked(), coarse=(2, 2), years=years))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Days:
    folder = tmp_path_factory.mktemp("data") / "simulated"
    return open_days(simulate(folder, n_years=3, seed=0, coarse=(4, 4), progress=False))


def batch(days: Days, which: Sequence[int]) -> Batch:
    x = torch.from_numpy(np.stack([days.x(day) for day in which]))
    y = torch.from_numpy(np.stack([days.y(day) for day in which]))
    return Batch(x, y, torch.ones(len(which)), tuple(which), (0,) * len(which))


def sources(days: Days, members: Tensor) -> list[int]:
    """Which training day each of the members (K, H, W) is."""
    library = {np.nan_to_num(days.y(day)).tobytes(): day for day in days.split["train"]}
    return [library[member.numpy().tobytes()] for member in members]


@pytest.mark.parametrize("make", [baselines.climatology, baselines.analogues])
@pytest.mark.parametrize("day", [426, 429, 25, 141, 250])
def test_members_are_days_of_the_training_years_like_it_but_not_it(days: Days, make: type, day: int) -> None:
    members = make(days, 40)(batch(days, [day]))
    assert members.shape == (1, 40, 8, 8) and members.dtype == torch.float32
    found = sources(days, members[0])
    when = days.dates[day]
    assert all(abs((days.dates[other] - when).days) > NEAR for other in found)
    if make is baselines.climatology:
        assert {days.season(other) for other in found} == {days.season(day)}
    else:
        apart = [abs(days.dates[other].timetuple().tm_yday - when.timetuple().tm_yday) for other in found]
        assert max(min(one, 365.25 - one) for one in apart) <= SEASON and len(set(found)) == 40
    if day >= 426:
        assert len({days.dates[other].year for other in found}) == 3


def test_a_day_with_a_gap_lends_its_rain_to_nobody(days: Days) -> None:
    found = sources(days, baselines.analogues(days, 272)(batch(days, [426]))[0])  # all of the season but one
    assert 90 not in found and {89, 91} < set(found)


def test_climatology_depends_on_the_day_and_the_seed_alone(days: Days) -> None:
    together = baselines.climatology(days, K, 1)(batch(days, [426, 428, 7]))
    assert torch.equal(baselines.climatology(days, K, 1)(batch(days, [428]))[0], together[1])
    assert not torch.equal(together[0], together[1])  # of one season, but other draws
    assert not torch.equal(baselines.climatology(days, K, 2)(batch(days, [428]))[0], together[1])


def test_climatology_draws_from_the_whole_season(days: Days) -> None:
    found = sources(days, baselines.climatology(days, 5000)(batch(days, [426]))[0])
    summer = {day for day in days.split["train"] if days.season(day) == "JJA" and day != 90}
    assert set(found) == summer
    assert np.bincount(found).max() < 3 * 5000 / len(summer)


def test_analogues_are_the_nearest_in_standardised_predictors(days: Days) -> None:
    of = batch(days, [427])
    allowed = [day for day in days.split["train"] if abs(days.dates[day].timetuple().tm_yday - 153) <= SEASON]
    allowed.remove(90)
    own = days.standardise_x(of.x).numpy()
    library = days.standardise_x(batch(days, allowed).x).numpy()
    squares = ((library - own) ** 2).sum((2, 3))
    distance = squares[:, 1] + squares[:, [0, 2]].mean(1)  # tas, pr, huss: the rain weighs as much as the others
    expected = [allowed[index] for index in np.argsort(distance)[:K]]
    assert sources(days, baselines.analogues(days, K)(of)[0]) == expected


def test_an_analogue_that_is_the_same_weather_comes_first(days: Days) -> None:
    of = batch(days, [426, 427])
    of.x[0] = torch.from_numpy(days.x(207))  # 2002-05-16, in the season of June
    assert sources(days, baselines.analogues(days, K)(of)[0])[0] == 207
    assert 207 not in sources(days, baselines.analogues(days, K)(batch(days, [207]))[0])


def test_too_few_days_to_draw_from_are_said(days: Days, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"day 426 \(2005-06-01\) has 272 training days within 45 days of its calendar"):
        baselines.analogues(days, 300)(batch(days, [426]))
    winter = [date(year, 1, 1) + timedelta(day) for year in (2001, 2002) for day in range(30)]
    dates = [*winter, *(date(2003, 1, day) for day in (1, 2)), *(date(2004, 7, day) for day in (1, 2))]
    years = {"train": [2001, 2002], "val": [2003], "test": [2004]}
    summer = open_days(tiny_days(tmp_path / "rain", days=weather(dates), years=years))
    with pytest.raises(UserError, match=r"day 62 \(2004-07-01\) has 0 training days of JJA"):
        baselines.climatology(summer, K)(batch(summer, [62]))
    baselines.climatology(summer, K)(batch(summer, [60]))


def test_bilinear_rain_is_centred_on_the_coarse_pixels(days: Days) -> None:
    of = batch(days, [426, 427])
    of.x[:, 1] = torch.tensor([[2.0, 6.0], [2.0, 6.0]])
    members = baselines.bilinear(days)(of)
    assert members.shape == (2, 1, 8, 8)
    # Centres of the coarse pixels lie between fine columns 1 and 2, and between 5 and 6; beyond, nothing changes.
    expected = torch.tensor([2.0, 2.0, 2.5, 3.5, 4.5, 5.5, 6.0, 6.0])
    torch.testing.assert_close(members[0, 0], expected.expand(8, 8))
    of.x[:, 1] = -1e-9  # packing noise
    assert (baselines.bilinear(days)(of) == 0).all()


def test_the_oracle_beats_what_knows_less(simulated: Days) -> None:
    which = simulated.split["test"][::5]
    of = batch(simulated, which)

    def crps(make: Baseline) -> Metric:
        members = make(of)
        assert torch.isfinite(members).all() and (members >= 0).all()
        scores = RainVerification(simulated, n_members=members.shape[1], full=False)
        scores.add(members, of.y, of.days)
        return scores.metrics()["crps"]

    best = crps(baselines.oracle(simulated, K, 3))
    for make in (
        baselines.climatology(simulated, K),
        baselines.analogues(simulated, K),
        baselines.bilinear(simulated),
    ):
        assert paired_difference(best, crps(make))["is_better"] is True


def test_the_oracle_redraws_by_seed_and_needs_simulated_days(simulated: Days, days: Days) -> None:
    of = batch(simulated, simulated.split["val"][:2])
    members = baselines.oracle(simulated, K, 3)(of)
    assert members.shape == (2, K, *simulated.shape)
    assert torch.equal(members, baselines.oracle(simulated, K, 3)(of))
    assert not torch.equal(members, baselines.oracle(simulated, K, 4)(of))
    assert (members[..., ~torch.from_numpy(simulated.land)] == 0).all()
    with pytest.raises(UserError):
        baselines.oracle(days, K)
