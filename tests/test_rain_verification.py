"""Scores of members: closed forms, independence of batching, and that only measured land counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pytest
import torch
from rain import tiny_days
from torch import Tensor

from nbhelpers.science.ensemble import reliability_index
from nbhelpers.stages.rainfall_cvae import histogram
from nbhelpers.stages.rainfall_cvae.calibration import rank_metrics
from nbhelpers.stages.rainfall_cvae.data import Days, open_days
from nbhelpers.stages.rainfall_cvae.patterns import octaves
from nbhelpers.stages.rainfall_cvae.verification import RainVerification
from nbhelpers.training.metrics import Metric, paired_difference, summarise

K = 16
SPREAD = {"spread_skill_pixel", "spread_skill_block", "spread_skill_domain"}
RANKS = {"rank_histogram", "reliability_index", "reliability_index_chance", "diversity"}


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    """120 days of 16 x 20 pixels with a factor of 4; some land pixels of three days were not measured."""
    folder = tiny_days(tmp_path_factory.mktemp("data") / "rain")
    for day in (3, 50, 81):
        file = folder / f"Y_hr/day_{day:06d}.npy"
        rain = np.load(file)
        rain[0, 9:11, 12 : 14 + day % 2] = np.nan
        np.save(file, rain)
    return open_days(folder)


@pytest.fixture(scope="module")
def observed(days: Days) -> Tensor:
    """(120, 16, 20) of the days 0-119."""
    return torch.from_numpy(np.stack([days.y(day) for day in range(120)]))


@pytest.fixture(scope="module")
def members(observed: Tensor) -> Tensor:
    """(120, 16, 16, 20): rain that is moved about and made heavier and lighter, also over sea."""
    generator = torch.Generator().manual_seed(0)
    rain = observed.nan_to_num(2.0)
    moved = torch.stack([rain.roll((k % 3 - 1, k % 4 - 1), (-2, -1)) for k in range(K)], 1)
    return moved * (0.4 * torch.randn(moved.shape, generator=generator)).exp()


def verify(
    days: Days, members: Tensor, observed: Tensor, which: Sequence[int], *, size: int = 999, full: bool = True
) -> RainVerification:
    scores = RainVerification(days, n_members=members.shape[1], full=full)
    for first in range(0, len(which), size):
        part = slice(first, first + size)
        scores.add(members[part], observed[part], which[part])
    return scores


def value(metrics: dict[str, Metric]) -> dict[str, float]:
    return {name: metric.value for name, metric in metrics.items()}


def reliable(days: Days, *, inflate: float = 1.0) -> tuple[Tensor, Tensor]:
    """Members and truth (120, …) of one law that changes from day to day; ``inflate`` spreads the members more."""
    rng = np.random.default_rng(0)
    level = rng.uniform(0, 2, size=(120, 1, 1, 1))
    shared = 0.3 * rng.normal(size=(120, K + 1, 1, 1))  # of a whole field: its mean is uncertain as well
    drawn = level + shared + rng.normal(size=(120, K + 1, *days.shape))
    drawn[:, 1:] = level + inflate * (drawn[:, 1:] - level)
    fields = np.maximum(8 * drawn, 0.0)
    return torch.from_numpy(fields[:, 1:]), torch.from_numpy(np.where(days.land, fields[:, 0], np.nan))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_neither_the_batch_size_nor_the_order_of_the_days_matters(
    days: Days, members: Tensor, observed: Tensor, size: int
) -> None:
    whole = verify(days, members, observed, range(120))
    order = torch.randperm(120, generator=torch.Generator().manual_seed(size))
    parts = verify(days, members[order], observed[order], order.tolist(), size=size)
    assert set(whole.metrics()) == set(parts.metrics())
    for name, metric in whole.metrics().items():
        np.testing.assert_allclose(parts.metrics()[name].sums, metric.sums, rtol=1e-9, atol=1e-9, err_msg=name)
        assert len(metric.sums) == 24  # three splits of eight blocks of five days
    for name, spread in whole.spreads().items():
        assert astuple(parts.spreads()[name]) == pytest.approx(astuple(spread))
    assert parts.quantiles() == whole.quantiles()


def test_what_members_have_where_nothing_was_measured_changes_nothing(
    days: Days, members: Tensor, observed: Tensor
) -> None:
    plain = verify(days, members, observed, range(120))
    for wild in (0.0, 5000.0, float("nan")):
        elsewhere = torch.where(observed.isnan()[:, None], wild, members)
        other = verify(days, elsewhere, observed, range(120))
        for name, metric in plain.metrics().items():
            np.testing.assert_allclose(other.metrics()[name].sums, metric.sums, rtol=1e-12, err_msg=name)
        assert other.spreads() == plain.spreads()


def test_scores_are_numpys_over_measured_land(days: Days, members: Tensor, observed: Tensor) -> None:
    metrics = verify(days, members, observed, range(120)).metrics()
    measured = np.isfinite(observed.numpy())
    assert (measured[:, days.land].size - measured[:, days.land].sum()) == 3 * 2 * 2 + 2 * 2  # days 3 and 81 have 6
    y = observed.double().numpy()[measured]
    x = members.double().movedim(1, -1).numpy()[measured]  # (N, K)
    between = np.abs(x[:, :, None] - x[:, None]).sum((1, 2)) / (2 * K * (K - 1))
    crps = np.abs(x - y[:, None]).mean(1) - between
    median, tail = np.median(x, axis=1), y >= days.thresholds["P95"]
    found = value(metrics)
    assert tail.sum() > 50
    assert found["crps"] == pytest.approx(crps.mean(), rel=1e-9)
    p95 = days.thresholds["P95"]
    cut, cut_y = np.maximum(x, p95), np.maximum(y, p95)
    between = np.abs(cut[:, :, None] - cut[:, None]).sum((1, 2)) / (2 * K * (K - 1))
    assert found["tw_crps"] == pytest.approx((np.abs(cut - cut_y[:, None]).mean(1) - between).mean(), rel=1e-9)
    assert found["mae_all"] == pytest.approx(np.abs(median - y).mean(), rel=1e-9)
    assert found["mae_tail"] == pytest.approx(np.abs(median - y)[tail].mean(), rel=1e-9)
    assert found["rmse_all"] == pytest.approx(np.sqrt(np.mean((median - y) ** 2)), rel=1e-9)
    assert found["rmse_tail"] == pytest.approx(np.sqrt(np.mean((median - y)[tail] ** 2)), rel=1e-9)
    assert found["corr"] == pytest.approx(np.corrcoef(median, y)[0, 1], rel=1e-9)
    for name, mm in (("01", 0.1), ("1", 1.0)):
        assert found[f"wet_frequency_{name}_pred"] == pytest.approx((x >= mm).mean())
        assert found[f"wet_frequency_{name}_obs"] == pytest.approx((y >= mm).mean())
        assert found[f"wet_frequency_{name}"] == pytest.approx(100 * ((x >= mm).mean() - (y >= mm).mean()))
    assert found["extreme_freq_pred"] == pytest.approx((x >= p95).mean())
    assert found["extreme_freq_obs"] == pytest.approx(tail.mean())
    assert found["mass_bias"] == pytest.approx(x.mean() / y.mean() - 1)
    assert found["p99_ratio"] == pytest.approx(np.quantile(x, 0.99) / np.quantile(y, 0.99), rel=0.01)
    apart = np.abs(x[:, :, None] - x[:, None]).sum() / (K * (K - 1)) / len(x)
    assert found["diversity"] == pytest.approx(apart / np.abs(x - y[:, None]).mean())
    skill = np.sqrt((K + 1) / K * x.var(1, ddof=1).mean() / np.mean((x.mean(1) - y) ** 2))
    assert found["spread_skill_pixel"] == pytest.approx(skill, rel=1e-9)


def test_scores_by_category_are_those_of_its_days(days: Days, members: Tensor, observed: Tensor) -> None:
    whole = verify(days, members, observed, range(120)).metrics()
    for index, label in enumerate(("dry", "moderate", "heavy")):
        which = [day for day in range(120) if days.category[day] == label]
        alone = verify(days, members[which], observed[which], which).metrics()
        for name in ("crps", "tw_crps", "mae_all"):
            assert whole[name].labels[index] == label
            assert whole[name].by_label[index] == pytest.approx(alone[name].value, rel=1e-12)
        assert f"{len(which)} {label}" in whole["crps"].units


def test_units_say_how_many_events_there_are(days: Days, members: Tensor, observed: Tensor) -> None:
    extreme = observed >= days.thresholds["P95"]
    said = f"n = {int(extreme.sum()):,} pixels on {int(extreme.any(2).any(1).sum())} days"
    metrics = verify(days, members, observed, range(120)).metrics()
    for name in ("mae_tail", "rmse_tail", "tw_crps", "sedi_p95", "extreme_freq_pred"):
        assert said in metrics[name].units


def test_the_truth_as_every_member_is_perfect(days: Days, observed: Tensor) -> None:
    found = value(verify(days, observed[:, None].expand(-1, 4, -1, -1), observed, range(120)).metrics())
    zero = ["crps", "tw_crps", "mae_all", "mae_tail", "rmse_all", "rmse_tail", "wet_frequency_01", "wet_frequency_1"]
    zero += ["mass_bias"]
    one = ["corr", "p99_ratio", "p999_ratio", "fss_p95", "fss_1", "rapsd_ratio"]
    assert {name: found[name] for name in zero} == pytest.approx(dict.fromkeys(zero, 0.0), abs=1e-9)
    assert {name: found[name] for name in one} == pytest.approx(dict.fromkeys(one, 1.0), rel=1e-9)


def test_twice_the_rain_has_twice_the_quantiles_and_four_times_the_power(days: Days, observed: Tensor) -> None:
    found = value(verify(days, 2 * observed[:, None], observed, range(120)).metrics())
    assert found["mass_bias"] == pytest.approx(1.0, rel=1e-6)
    assert found["p99_ratio"] == pytest.approx(2.0, rel=0.005)
    assert found["p999_ratio"] == pytest.approx(2.0, rel=0.01)  # some 25 values lie above it, with gaps between them
    assert found["rapsd_ratio"] == pytest.approx(4.0, rel=1e-6)
    assert found["corr"] == pytest.approx(1.0)


def test_members_of_the_truths_own_law_are_calibrated(days: Days) -> None:
    members, observed = reliable(days)
    metrics = verify(days, members, observed, range(120)).metrics()
    found = value(metrics)
    assert found["spread_skill_pixel"] == pytest.approx(1.0, abs=0.1)
    assert found["spread_skill_block"] == pytest.approx(1.0, abs=0.15)
    assert found["spread_skill_domain"] == pytest.approx(1.0, abs=0.25)
    assert found["diversity"] == pytest.approx(1.0, abs=0.05)
    assert found["p99_ratio"] == pytest.approx(1.0, abs=0.1)
    assert found["reliability_index"] < 2 * found["reliability_index_chance"]
    assert abs(metrics["rank_histogram"].by_label - 1).max() < 0.3


@pytest.mark.parametrize(("inflate", "ends"), [(0.4, "many"), (2.0, "few")])
def test_too_little_and_too_much_spread_show(days: Days, inflate: float, ends: str) -> None:
    observed = reliable(days)[1]
    metrics = verify(days, reliable(days, inflate=inflate)[0], observed, range(120)).metrics()
    found, ranks = value(metrics), metrics["rank_histogram"].by_label
    for name in ("diversity", *SPREAD):
        assert (found[name] < 0.75) if ends == "many" else (found[name] > 1.05), name
    assert (ranks[-1] > 2) if ends == "many" else (ranks[-1] < 0.7)
    assert found["reliability_index"] > 3 * found["reliability_index_chance"]


def test_one_member_is_scored_as_a_sure_forecast_and_pairs_with_many(
    days: Days, members: Tensor, observed: Tensor
) -> None:
    many = verify(days, members, observed, range(120)).metrics()
    one = verify(days, members[:, :1], observed, range(120)).metrics()
    assert set(many) - set(one) == SPREAD | RANKS
    np.testing.assert_array_equal(one["crps"].sums, one["mae_all"].sums)
    p95, land = days.thresholds["P95"], ~observed.isnan()
    cut = (members[:, 0].clamp(min=p95) - observed.clamp(min=p95))[land].abs().double().mean()
    assert one["tw_crps"].value == pytest.approx(float(cut), rel=1e-6)
    for name, metric in one.items():
        paired_difference(many[name], metric)
        assert not metric.units.startswith("median")


def test_the_light_set_has_the_full_sets_values(days: Days, members: Tensor, observed: Tensor) -> None:
    full = value(verify(days, members, observed, range(120)).metrics())
    light = value(verify(days, members, observed, range(120), full=False).metrics())
    assert {name: full[name] for name in light} == light
    for name in ("crps", "tw_crps", "mae_all", "mae_tail", "rmse_all", "rmse_tail", "corr", "extreme_freq_pred",
                 "extreme_freq_obs", "mass_bias", "wet_frequency_01", "wet_frequency_1", "p99_ratio", "p999_ratio",
                 *SPREAD):  # fmt: skip
        assert name in light


def test_a_member_that_is_not_a_number_is_not_passed_over(days: Days, members: Tensor, observed: Tensor) -> None:
    broken = members.clone()
    broken[5, 3, 10, 10] = torch.nan
    found = value(verify(days, broken, observed, range(120)).metrics())
    assert np.isnan(found["crps"]) and np.isnan(found["mae_all"]) and np.isnan(found["mass_bias"])


def test_days_without_rain_are_scored(days: Days, observed: Tensor) -> None:
    dry = torch.where(observed.isnan(), observed, 0.0)
    found = value(verify(days, torch.zeros(120, 4, *days.shape), dry, range(120)).metrics())
    assert found["crps"] == found["tw_crps"] == found["mae_all"] == 0
    assert np.isnan(found["mae_tail"]) and np.isnan(found["p99_ratio"]) and np.isnan(found["mass_bias"])


def test_a_stack_of_another_size_is_refused(days: Days, members: Tensor, observed: Tensor) -> None:
    scores = RainVerification(days, n_members=4)
    with pytest.raises(ValueError, match=r"expected members \(120, 4, 16, 20\)"):
        scores.add(members, observed, range(120))


@pytest.mark.parametrize("probability", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("step", [None, 0.254])  # gauges count in hundredths of an inch
def test_quantiles_are_off_by_less_than_a_bin(probability: float, step: float | None) -> None:
    rain = np.random.default_rng(1).lognormal(0.5, 1.3, size=(20, 5000))
    rain = np.where(np.random.default_rng(2).random(rain.shape) < 0.6, 0.0, rain)
    if step:
        rain = np.round(rain / step) * step
    counts = histogram.log_histogram(torch.from_numpy(rain)).numpy()
    assert counts.sum() == rain.size
    within = 0.005 if step is None else histogram.WIDTH  # atoms lie anywhere in their bin
    expected = np.quantile(rain, probability, method="inverted_cdf")
    assert histogram.quantiles(counts.sum(0), [probability])[0] == pytest.approx(expected, rel=within)
    weights = np.random.default_rng(3).multinomial(20, np.full(20, 1 / 20))  # a resample of the bootstrap
    expected = np.quantile(np.repeat(rain, weights, axis=0), probability, method="inverted_cdf")
    assert histogram.quantiles(weights @ counts, [probability])[0] == pytest.approx(expected, rel=within)


def test_no_rain_has_the_quantile_0_and_endless_rain_the_last_bins() -> None:
    counts = histogram.log_histogram(torch.tensor([[0.0, 0.05, 0.0999, float("nan")], [0.1, 5e3, 7e4, float("inf")]]))
    assert counts[0, 0] == 4 and counts[1, 1] == 1 and counts[1, -1] == 3
    assert histogram.quantiles(counts[0].double().numpy(), [0.5])[0] == 0.0
    assert np.isnan(histogram.quantiles(np.zeros(1 + histogram.N_BINS), [0.5])[0])


def test_the_quantile_table_has_intervals_and_leaves_out_what_too_few_values_tell(
    days: Days, members: Tensor, observed: Tensor
) -> None:
    whole = verify(days, members, observed, range(120))
    table = whole.quantiles()
    y = observed[~observed.isnan()].numpy()
    for name, p in (("P90", 0.9), ("P99", 0.99), ("P99.9", 0.999)):
        row = table[name]
        assert row["observed"] == pytest.approx(np.quantile(y, p, method="inverted_cdf"), rel=0.005)
        low, high = row["observed_ci95"]
        assert low <= row["observed"] <= high and low < high
    assert table["P99"]["predicted"] / table["P99"]["observed"] == pytest.approx(
        whole.metrics()["p99_ratio"].value, rel=1e-12
    )
    few = verify(days, members[:5], observed[:5], range(5)).quantiles()
    assert "P99" in few and "P99.9" not in few and few["P99"]["observed_ci95"] is None


def test_fss_is_that_of_the_share_of_members(days: Days, members: Tensor, observed: Tensor) -> None:
    metric = verify(days, members, observed, range(120)).metrics()["fss_1"]
    assert metric.labels == ("1 px", "4 px", "16 px")
    land = ~observed.isnan()
    p, o = (members >= 1).double().mean(1)[land], (observed >= 1).double()[land]
    expected = 1 - (p - o).square().sum() / (p.square() + o.square()).sum()
    assert metric.by_label[0] == pytest.approx(float(expected), rel=1e-6)
    assert metric.by_label[0] < metric.by_label[1] < metric.by_label[2]


def test_power_is_compared_where_the_predictors_end(days: Days, observed: Tensor) -> None:
    assert [*octaves((52, 44), 4)] == ["4-8 px", "2-4 px"] and [*octaves((156, 132), 12)][0] == "12-24 px"
    blocks = observed.nan_to_num().unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4)).mean((-3, -1))
    smooth = torch.nn.functional.interpolate(blocks[:, None], scale_factor=4, mode="bilinear")
    metric = verify(days, smooth, observed, range(120)).metrics()["rapsd_ratio"]
    assert metric.labels == ("4-8 px", "2-4 px") and (metric.by_label < 0.4).all()


def test_the_chance_level_is_the_mean_index_of_reliable_ensembles() -> None:
    """Pixels of a block share much of their rank, as rain does: counting pixels would promise a flat histogram."""
    rng, groups, pixels, ranks = np.random.default_rng(0), 60, 200, 9
    found, chance = [], []
    for _ in range(100):
        shared = rng.normal(size=(groups, ranks, 1))
        values = shared + rng.normal(size=(groups, ranks, pixels))  # the truth is the first of the ranks' fields
        places = (values[:, 1:] < values[:, :1]).sum(1)
        counts = np.stack([(places == rank).sum(1) for rank in range(ranks)], -1).astype(float)
        metrics = rank_metrics(counts)
        found.append(metrics["reliability_index"].value)
        chance.append(metrics["reliability_index_chance"].value)
    assert np.mean(chance) == pytest.approx(np.mean(found), rel=0.1)
    independent = reliability_index(rng.multinomial(groups * pixels, np.full(ranks, 1 / ranks)))
    assert np.mean(found) > 3 * independent


def test_all_metrics_have_intervals_that_hold_their_values(days: Days, members: Tensor, observed: Tensor) -> None:
    for name, metric in verify(days, members, observed, range(120)).metrics().items():
        summary = summarise(metric)
        low, high = summary["ci95"]
        assert summary["n"] == 24
        if name not in ("rank_histogram", "reliability_index"):  # fixed at 1; more uneven in every resample
            assert low <= summary["value"] <= high, name
