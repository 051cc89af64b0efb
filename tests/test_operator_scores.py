"""Scores of forecasts: closed forms, explicit loops, obstacles, silent channels, forecasts that run away, streaming."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from turbulence import RECORD, flow

from nbhelpers.science import spectra
from nbhelpers.stages.neural_operator import solver
from nbhelpers.stages.neural_operator.constraints import leray
from nbhelpers.stages.neural_operator.data import open_collection
from nbhelpers.stages.neural_operator.domain import Domain, domain_of, enstrophy, kinetic_energy
from nbhelpers.stages.neural_operator.layout import write_simulation
from nbhelpers.stages.neural_operator.spectral_losses import shell_energies
from nbhelpers.stages.neural_operator.verification import BY_TEST_SET, HELD, METRICS, Forecast, Verification, metrics_of
from nbhelpers.training.metrics import ratio, summarise
from nbhelpers.training.task import Evaluation

SHAPE, LENGTHS, STEPS = (24, 40), (1.0, 2.0), 4
DOMAIN = Domain(LENGTHS, "none", (0.0, 0.0), (1.0, 2.0), velocity=(0, 1), components=(0, 1))
TAPERED = Domain(LENGTHS, "hann", (0.5, -0.3), (1.0, 2.0), components=(0, 1))  # not periodic
STEP_LABELS = ("step 1", "step 2", "step 3", "step 4")
BY_STEP = {
    "rollout_field_error", "rollout_rel_l2", "rollout_spectrum_error_high", "energy_ratio", "enstrophy_ratio",
}  # fmt: skip


def flows(seed: int, *, batch: int = 3, channels: int = 2) -> Tensor:
    """(B, T, C, H, W) with energy in every shell, less of it in the higher ones."""
    noise = torch.randn(batch, STEPS, channels, *SHAPE, generator=torch.Generator().manual_seed(seed))
    square = spectra.squared_wavenumber(SHAPE, lengths=LENGTHS)
    return torch.fft.irfft2(torch.fft.rfft2(noise) / (1 + square).float(), s=SHAPE) * 3


def score(
    forecast: Forecast | Tensor,
    target: Tensor,
    *,
    simulations: Sequence[str] = ("A", "B", "C"),
    valid: Tensor | None = None,
    domain: Domain = DOMAIN,
    sizes: Sequence[int] | None = None,
    test_sets: dict[str, str] | None = None,
) -> Evaluation:
    if isinstance(forecast, Tensor):
        forecast = Forecast(forecast, forecast)
    found, first = Verification(domain, steps=target.shape[1], test_sets=test_sets), 0
    for size in sizes or (len(target),):
        part = slice(first, first + size)
        found.add(
            Forecast(forecast.one_step[part], forecast.rollout[part]),
            target[part],
            simulations[part],
            None if valid is None else valid[part],
        )
        first += size
    return found.evaluation()


def values(evaluation: Evaluation) -> dict[str, float]:
    return {name: metric.value for name, metric in evaluation.metrics.items()}


def finite(evaluation: Evaluation) -> bool:
    """Pooled, by label, and with their intervals."""

    def numbers(entry: object) -> list[object]:
        if isinstance(entry, dict):
            return [n for key, part in entry.items() if key not in ("units", "better") for n in numbers(part)]
        return [n for part in entry for n in numbers(part)] if isinstance(entry, list) else [entry]

    found = [n for metric in evaluation.metrics.values() for n in numbers(summarise(metric))]
    return all(isinstance(n, (int, float)) and math.isfinite(n) for n in found)


# --- closed forms ------------------------------------------------------------------------------------------------


def test_a_perfect_forecast_has_perfect_scores() -> None:
    target = flows(0)
    found = values(score(target, target))
    assert set(found) == set(METRICS)
    best = dict.fromkeys(METRICS, 0.0) | {"correlation_time": STEPS, "energy_ratio": 1.0, "enstrophy_ratio": 1.0}
    del found["divergence"]  # that of the truth, which is any flow here
    assert found == pytest.approx({name: best[name] for name in found}, abs=1e-12)


@pytest.mark.parametrize("gain", [0.8, 1.1, 2.0])
def test_a_uniform_gain_has_the_errors_of_the_closed_forms(gain: float) -> None:
    target = flows(1)
    found = values(score(gain * target, target))
    expected = {
        "field_error": (gain - 1) ** 2, "rel_l2": abs(gain - 1),
        "spectrum_error": (2 * math.log(gain)) ** 2, "spectrum_error_high": (2 * math.log(gain)) ** 2,
        "lsd": abs(20 * math.log10(gain)),
        "rollout_field_error": (gain - 1) ** 2, "rollout_rel_l2": abs(gain - 1),
        "rollout_spectrum_error_high": (2 * math.log(gain)) ** 2, "trajectory_rel_l2": abs(gain - 1),
        "correlation_time": STEPS, "energy_ratio": gain**2, "enstrophy_ratio": gain**2, "blow_up_rate": 0.0,
    }  # fmt: skip
    del found["divergence"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_gain_of_one_band_is_an_error_of_that_band_alone() -> None:
    target = flows(2)
    shell = spectra.shell_numbers(SHAPE, lengths=LENGTHS)
    n_shells = spectra.resolved_shells(SHAPE, lengths=LENGTHS)
    high = spectra.bands(n_shells)["high"]
    among = (shell > high.start) & (shell <= high.stop)  # a band is a slice of the shells from 1 on
    forecast = torch.fft.irfft2(torch.fft.rfft2(target) * (1 + 0.5 * among), s=SHAPE)
    metrics = score(forecast, target).metrics
    expected = (2 * math.log(1.5)) ** 2
    assert metrics["spectrum_error"].labels == metrics["lsd"].labels == spectra.BANDS == ("low", "mid", "high")
    assert metrics["spectrum_error"].by_label == pytest.approx([0, 0, expected], rel=1e-3, abs=1e-6)
    assert metrics["lsd"].by_label == pytest.approx([0, 0, 20 * math.log10(1.5)], rel=1e-3, abs=0.02)
    assert metrics["spectrum_error_high"].value == pytest.approx(expected, rel=1e-3)
    share = (high.stop - high.start) / n_shells
    assert metrics["spectrum_error"].value == pytest.approx(share * expected, rel=1e-3)


def test_labels_units_and_what_is_better() -> None:
    target = flows(3)
    metrics = score(0.9 * target, target).metrics
    assert tuple(metrics) == METRICS
    assert {name for name, metric in metrics.items() if metric.labels == STEP_LABELS} == BY_STEP
    assert metrics["spectrum_error_high"].labels == ("high",)
    assert metrics["trajectory_rel_l2"].labels == metrics["correlation_time"].labels == ("all",)
    better = {name: metric.better for name, metric in metrics.items()}
    assert {name for name, word in better.items() if word == "one"} == {"energy_ratio", "enstrophy_ratio"}
    assert {name for name, word in better.items() if word == "higher"} == {"correlation_time"}
    assert (metrics["lsd"].units, metrics["correlation_time"].units) == ("dB", "frames")


def test_channels_of_opposite_sign_do_not_cancel_before_the_transform() -> None:
    one = flows(4, channels=1)
    target = torch.cat([one, -one], 2)
    opposite = score(-target, target)
    assert values(opposite)["spectrum_error"] == pytest.approx(0.0, abs=1e-9)  # a spectrum is blind to phase
    assert values(opposite)["field_error"] == pytest.approx(4.0, rel=1e-5)
    gains = torch.tensor([1.3, 1 / 1.3])[:, None, None]
    assert values(score(gains * target, target))["spectrum_error"] == pytest.approx((2 * math.log(1.3)) ** 2, rel=1e-4)


# --- explicit loops ----------------------------------------------------------------------------------------------


def test_scores_are_what_slow_loops_give() -> None:
    target, one, run = flows(5), flows(6), flows(5) + 0.4 * flows(7)
    run[0, 2] = flows(8)[0, 2]
    metrics = score(Forecast(one, run), target).metrics
    y, a, b = (field.double().numpy() for field in (target, one, run))

    def relative(x: np.ndarray, z: np.ndarray) -> float:
        return float(((x - z) ** 2).sum() / (z**2).sum())

    frames = [(i, t) for i in range(3) for t in range(STEPS)]
    channels = [(i, t, c) for i, t in frames for c in range(2)]
    assert metrics["field_error"].value == pytest.approx(np.mean([relative(a[k], y[k]) for k in channels]), rel=1e-5)
    assert metrics["rel_l2"].value == pytest.approx(np.mean([relative(a[k], y[k]) ** 0.5 for k in frames]), rel=1e-5)
    by_step = [np.mean([relative(b[i, t], y[i, t]) ** 0.5 for i in range(3)]) for t in range(STEPS)]
    assert metrics["rollout_rel_l2"].by_label == pytest.approx(by_step, rel=1e-5)
    assert metrics["trajectory_rel_l2"].value == pytest.approx(
        np.mean([relative(b[i], y[i]) ** 0.5 for i in range(3)]), rel=1e-5
    )
    unit = np.array(DOMAIN.scales)[:, None, None]
    ratios = [((unit * b[:, t]) ** 2).sum() / ((unit * y[:, t]) ** 2).sum() for t in range(STEPS)]
    assert metrics["energy_ratio"].by_label == pytest.approx(ratios, rel=1e-5)
    times = []
    for i in range(3):
        time = 0
        for t in range(STEPS):
            parts = [np.stack([c - c.mean() for c in field[i, t]]).ravel() for field in (b, y)]
            if np.corrcoef(*parts)[0, 1] <= 0.8:
                break
            time += 1
        times.append(time)
    assert times[0] == 2 and metrics["correlation_time"].value == pytest.approx(np.mean(times))


def test_spectra_are_those_of_a_loop_over_modes() -> None:
    target, forecast = flows(9), flows(10)
    n_shells = spectra.resolved_shells(SHAPE, lengths=LENGTHS)
    scale = max(LENGTHS) / np.array(LENGTHS)
    waves = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) * s for n, s in zip(SHAPE, scale, strict=True)), indexing="ij")
    shell = np.floor(np.hypot(*waves) + 0.5 + 1e-9).astype(int)

    def energies(field: Tensor) -> np.ndarray:
        power = np.abs(np.fft.fft2(field.double().numpy(), norm="forward")) ** 2
        return np.stack([power[..., shell == n].sum(-1) for n in range(1, n_shells + 1)], -1)

    unit = np.array(DOMAIN.scales)[:, None]
    distance = (np.log(energies(forecast)) - np.log(energies(target))) ** 2
    high = spectra.bands(n_shells)["high"]
    metrics = score(forecast, target).metrics
    assert metrics["spectrum_error"].value == pytest.approx(distance.mean(), rel=1e-3)
    assert metrics["rollout_spectrum_error_high"].by_label == pytest.approx(
        distance[..., high].mean((0, 2, 3)), rel=1e-3
    )
    squares = (np.arange(1, n_shells + 1) * unit) ** 2
    ratios = [(energies(x[:, t]) * squares).sum() / (energies(y[:, t]) * squares).sum()
              for x, y in [(forecast, target)] for t in range(STEPS)]  # fmt: skip
    assert metrics["enstrophy_ratio"].by_label == pytest.approx(ratios, rel=1e-3)


def test_correlation_time_counts_until_the_first_drop() -> None:
    target = flows(11)
    run = target.clone()
    run[0, 2] *= -1  # and right again at the last step
    run[1, 0] = flows(12)[1, 0]
    evaluation = score(Forecast(target, run), target)
    per_simulation = evaluation.metrics["correlation_time"].sums[:, 0]
    assert per_simulation[:, 0].tolist() == [2, 0, 4] and per_simulation[:, 1].tolist() == [1, 1, 1]


def test_a_projected_velocity_has_no_divergence_and_units_are_put_back_first() -> None:
    scales = torch.tensor(DOMAIN.scales)[:, None, None]
    target = flows(13)
    free = leray(target * scales, LENGTHS) / scales
    assert values(score(free, target))["divergence"] < 1e-10
    assert values(score(leray(target, LENGTHS), target))["divergence"] > 1e-3  # free of it in the wrong units
    assert "divergence" not in score(free, target, domain=TAPERED).metrics


# --- forecasts that run away -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 100.0])
def test_a_rollout_that_runs_away_is_counted_and_every_score_stays_a_number(value: float) -> None:
    target = flows(14)
    run = target.clone()
    run[1, 2:] = value
    found = score(Forecast(target, run), target)
    assert found.metrics["blow_up_rate"].value == pytest.approx(1 / 3)
    assert found.metrics["correlation_time"].sums[:, 0, 0].tolist() == [4, 2, 4]
    assert found.metrics["rollout_field_error"].by_label[2] > 1 and found.metrics["field_error"].value == 0
    assert finite(found)


def test_a_step_that_is_undefined_keeps_every_score_a_number() -> None:
    target = flows(15)
    one = target.clone()
    one[0, 1, 0, 3, 4] = math.nan
    found = score(Forecast(one, target), target)
    assert finite(found) and found.metrics["field_error"].value > 1
    assert all(math.isfinite(x) for x in astuple(found.spreads["prediction"]))
    assert found.spreads["prediction"].high == HELD


def test_ten_times_the_energy_is_a_blow_up_and_nine_times_is_not() -> None:
    target = flows(16)
    for factor, rate in ((9.0, 0.0), (11.0, 1.0)):
        assert values(score(math.sqrt(factor) * target, target))["blow_up_rate"] == rate


# --- what does not count -----------------------------------------------------------------------------------------


def test_what_a_forecast_has_inside_obstacles_changes_no_score() -> None:
    target, forecast = flows(17), flows(17) + 0.3 * flows(18)
    valid = torch.ones(3, *SHAPE, dtype=torch.bool)
    valid[0, 5:12, 8:20] = False
    valid[2, :3, :] = False
    plain = score(forecast, target, valid=valid, domain=TAPERED)
    for value in (0.0, 7.0, -300.0, math.nan):
        filled = torch.where(valid[:, None, None], forecast, value)
        wild = score(filled, target, valid=valid, domain=TAPERED)
        for name, metric in plain.metrics.items():
            np.testing.assert_allclose(wild.metrics[name].sums, metric.sums, rtol=1e-5, atol=1e-7, err_msg=name)
        assert astuple(wild.spreads["prediction"]) == pytest.approx(astuple(plain.spreads["prediction"]))
    open_field = score(forecast, target, domain=TAPERED)
    assert open_field.metrics["field_error"].value != pytest.approx(plain.metrics["field_error"].value, rel=1e-4)


def test_errors_around_obstacles_are_those_of_the_measured_points() -> None:
    target, forecast = flows(19), flows(19) + 0.5 * flows(20)
    valid = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.3
    metrics = score(forecast, target, valid=valid, domain=TAPERED).metrics
    errors = []
    for i in range(3):
        y, x = (field[i].double().numpy()[..., valid[i].numpy()] for field in (target, forecast))
        errors.append((((x - y) ** 2).sum(-1) / (y**2).sum(-1)).mean())
    assert metrics["field_error"].value == pytest.approx(np.mean(errors), rel=1e-5)
    time = [
        np.cumprod([
            np.corrcoef(*((f[i, t].double().numpy()[:, valid[i]] - f[i, t].double().numpy()[:, valid[i]].mean(
                1, keepdims=True)).ravel() for f in (forecast, target)))[0, 1] > 0.8 for t in range(STEPS)
        ]).sum() for i in range(3)
    ]  # fmt: skip
    assert metrics["correlation_time"].value == pytest.approx(np.mean(time))


def test_a_silent_channel_has_no_relative_error_and_no_spectrum() -> None:
    target = flows(21, channels=3)
    target[:, :, 2] = 0.0
    forecast = 1.1 * target
    forecast[:, :, 2] = 0.3 * flows(22, channels=1)[:, :, 0]
    found = values(score(forecast, target, domain=replace(DOMAIN, scales=(1.0, 2.0, 1.0))))
    assert found["field_error"] == pytest.approx(0.01, rel=1e-4)
    assert found["rollout_field_error"] == pytest.approx(0.01, rel=1e-4)
    assert found["spectrum_error"] == pytest.approx((2 * math.log(1.1)) ** 2, rel=1e-4)
    assert found["rollout_spectrum_error_high"] == pytest.approx((2 * math.log(1.1)) ** 2, rel=1e-4)


@pytest.mark.filterwarnings("error")
def test_nothing_but_silence_has_no_spectrum_and_no_warning() -> None:
    found = values(score(torch.zeros(3, STEPS, 2, *SHAPE), torch.zeros(3, STEPS, 2, *SHAPE)))
    assert math.isnan(found["field_error"]) and math.isnan(found["spectrum_error"]) and math.isnan(found["lsd"])
    assert found["blow_up_rate"] == 0


def test_the_mean_of_a_tapered_flow_is_no_enstrophy() -> None:
    target = flows(23)
    domain = replace(DOMAIN, window="hann")
    assert values(score(target + 5, target, domain=domain))["enstrophy_ratio"] == pytest.approx(1, rel=1e-3)


# --- kinetic energy and enstrophy ----------------------------------------------------------------------------------


def swirls(seed: int, *, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    """(B, T, 1, H, W) vorticity, and the (B, T, 2, H, W) velocity that it belongs to."""
    vorticity = flows(seed, channels=1).double()
    vorticity = vorticity - vorticity.mean((-2, -1), keepdim=True)
    return vorticity + mean, solver.velocity(vorticity[:, :, 0], LENGTHS)


def test_vorticity_alone_tells_the_energy_of_its_velocity() -> None:
    by_vorticity = Domain(LENGTHS, "none", (0.2,), (4.0,), vorticity=0)
    by_velocity = Domain(LENGTHS, "none", (0.0, 0.0), (2.0, 2.0), velocity=(0, 1), components=(0, 1))
    vorticity, velocity = swirls(40, mean=3.0)  # which no periodic flow has
    squares = velocity.square().sum(2).mean((-2, -1))
    torch.testing.assert_close(kinetic_energy(velocity / 2, by_velocity), squares / 2)
    torch.testing.assert_close(kinetic_energy(vorticity / 4, by_vorticity), squares / 2)
    swirl = (vorticity - 3)[:, :, 0].square().mean((-2, -1)) / 2
    torch.testing.assert_close(enstrophy(vorticity / 4, by_vorticity), swirl)
    # in shells of whole numbers, and without what lies beyond the cut-off
    torch.testing.assert_close(enstrophy(velocity / 2, by_velocity), swirl, rtol=0.2, atol=0)


def test_enstrophy_of_a_velocity_is_that_of_its_vorticity_in_its_own_unit() -> None:
    x = LENGTHS[1] * torch.arange(SHAPE[1]) / SHAPE[1]
    k = 2 * math.pi * 3 / LENGTHS[1]  # three waves along the longest side: u = 0, v = sin(k x), w = k cos(k x)
    v = torch.sin(k * x).expand(*SHAPE)
    velocity = torch.stack([0 * v, v / DOMAIN.scales[1]])[None, None]
    assert float(enstrophy(velocity, DOMAIN)) == pytest.approx(k**2 / 4, rel=1e-5)
    assert float(kinetic_energy(velocity, DOMAIN)) == pytest.approx(1 / 4, rel=1e-5)


def test_the_mean_flow_is_energy_and_obstacles_hold_none() -> None:
    still = torch.zeros(3, STEPS, 2, *SHAPE)  # in model units: everything moves as on average
    assert kinetic_energy(still, TAPERED) == pytest.approx((0.5**2 + 0.3**2) / 2)
    valid = torch.ones(3, *SHAPE, dtype=torch.bool)
    valid[:, :, :10] = False
    assert kinetic_energy(still, TAPERED, valid) == pytest.approx(0.75 * (0.5**2 + 0.3**2) / 2)
    faster = score(still, still, domain=replace(TAPERED, means=(1.0, 0.0))).metrics["energy_ratio"]
    assert faster.value == 1.0  # defined, where model units have none


@pytest.mark.parametrize(
    ("domain", "absent"),
    [
        (DOMAIN, set()),
        (Domain(LENGTHS, "none", (0.0,), (1.0,), vorticity=0), {"divergence"}),
        (TAPERED, {"divergence", "enstrophy_ratio"}),
        (Domain(LENGTHS, "hann", (0.0, 0.0), (1.0, 1.0)), {"divergence", "enstrophy_ratio", "energy_ratio"}),
    ],
)
def test_what_is_not_there_is_not_scored(domain: Domain, absent: set[str]) -> None:
    target = flows(41, channels=len(domain.scales))
    assert set(METRICS) - set(score(0.9 * target, target, domain=domain).metrics) == absent
    assert metrics_of(domain) == tuple(name for name in METRICS if name not in absent)


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("obstacle", [True, False])
def test_what_of_a_set_is_the_flow(tmp_path: Path, periodic: bool, obstacle: bool) -> None:
    inside = np.zeros((12, 16), bool)
    inside[2:6, 9:14] = True
    for number in range(3):
        fields = flow(number)
        fields["vorticity"] = fields["pressure"] - 2
        write_simulation(tmp_path, number, fields, description={}, obstacle=inside if obstacle else None)
    (tmp_path / "dataset.json").write_text(json.dumps(RECORD | {"periodic": periodic}))

    def domain(*fields: str) -> Domain:
        return domain_of(open_collection(tmp_path, fields=fields), window="auto")

    both = domain("pressure", "velocity", "vorticity")
    assert (both.velocity, both.components, both.vorticity) == ((1, 2) if periodic else None, (1, 2), None)
    assert both.window == ("none" if periodic else "hann") and both.means[0] > 2 > both.means[1]
    alone = domain("pressure", "vorticity")
    assert alone.vorticity == (1 if periodic and not obstacle else None) and not alone.components
    assert not domain("pressure").has_energy


# --- what is left out, and what is told apart ------------------------------------------------------------------------


def test_how_much_is_left_out_is_told_where_something_is() -> None:
    target = flows(42)
    assert "left_out" not in score(target, target).metrics
    target[1, 0, 1] = 0.0
    target[2, :2, 0] = 1e-9
    found = score(target, target).metrics["left_out"]
    assert found.value == pytest.approx(3 / (3 * STEPS * 2)) and found.better is None
    assert ratio(found.sums)[:, 0].tolist() == pytest.approx([0, 1 / 8, 2 / 8])


def test_published_test_sets_are_scored_apart() -> None:
    target, forecast = flows(43), flows(43) + 0.3 * flows(44)
    names = ("A", "B", "A")
    plain = score(forecast, target, simulations=names, sizes=(1, 2)).metrics
    found = score(forecast, target, simulations=names, test_sets={"A": "long", "B": "interpolate"}).metrics
    assert set(found) - set(plain) == {f"test_set_{name}" for name in BY_TEST_SET}
    for name in BY_TEST_SET:
        whole, apart = found[name], found[f"test_set_{name}"]
        assert apart.labels == ("long", "interpolate") and apart.better == whole.better
        assert apart.by_label == pytest.approx(ratio(whole.sums.sum(1)))  # a simulation in each
        assert apart.value == pytest.approx(whole.value)
        assert (apart.sums[0, 1] == 0).all() and (apart.sums[1, 0] == 0).all()
    one = score(forecast, target, simulations=names, test_sets={"A": "interpolate", "B": "interpolate"}).metrics
    assert set(one) == set(plain)  # nothing to tell apart


def test_a_spectrum_is_that_of_the_fluctuations_outside_obstacles() -> None:
    target = flows(45)
    valid = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1)) > 0.2
    for window, mask in (("hann", None), ("none", valid), ("hann", valid)):
        energy = shell_energies(target, lengths=LENGTHS, window=window, valid=mask)
        shifted = target + 7 if mask is None else torch.where(mask[:, None, None], target + 7, 1e3)
        again = shell_energies(shifted, lengths=LENGTHS, window=window, valid=mask)
        torch.testing.assert_close(again[..., 1:], energy[..., 1:], rtol=1e-3, atol=1e-6)


# --- sums ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (1, 1, 1)])
def test_any_batch_size_gives_the_same_scores(sizes: Sequence[int]) -> None:
    target, forecast = flows(24), Forecast(flows(25), flows(26))
    whole, parts = score(forecast, target), score(forecast, target, sizes=sizes)
    assert tuple(whole.metrics) == tuple(parts.metrics)
    for name, metric in whole.metrics.items():
        np.testing.assert_allclose(parts.metrics[name].sums, metric.sums, rtol=1e-5, err_msg=name)
    for name, spread in whole.spreads.items():
        assert astuple(parts.spreads[name]) == pytest.approx(astuple(spread))


def test_groups_are_simulations_however_many_windows_they_have() -> None:
    target, forecast = flows(27), flows(28)
    apart = score(forecast, target)
    shared = score(forecast, target, simulations=("B", "A", "B"), sizes=(2, 1))
    for name, metric in shared.metrics.items():
        assert metric.groups == 2
        expected = apart.metrics[name].sums[[0, 1]]
        expected[0] += apart.metrics[name].sums[2]
        np.testing.assert_allclose(metric.sums, expected, rtol=1e-6, err_msg=name)


def test_spreads_are_those_of_the_steps_and_of_the_truth() -> None:
    target, forecast = flows(29), Forecast(2 * flows(30), flows(31))
    found = score(forecast, target, sizes=(2, 1)).spreads
    for name, field in (("prediction", forecast.one_step), ("target", target)):
        expected = (float(field.min()), float(field.max()), float(field.double().std(correction=0)))
        assert astuple(found[name]) == pytest.approx(expected)
