"""The pictures of the rainfall stage show what they say: the numbers of the fields, the report and the history."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from rain import tiny_days

from nbhelpers.science.extremes import fit_gpd, return_level
from nbhelpers.science.fractions import rapsd
from nbhelpers.stages.rainfall_cvae import calibration_figures, figures, map_figures, tail_figures
from nbhelpers.stages.rainfall_cvae.batches import EVAL_BATCH, spaced
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.drawing import LEVELS, SEA, WHO, name_of, rain_scale
from nbhelpers.stages.rainfall_cvae.drawn import Drawn, batch_of, draw_days, fixed_sample, heaviest_days
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.stages.rainfall_cvae.verification import RainVerification
from nbhelpers.training.metrics import summarise

PREDICTORS = ("climatology", "analogues", "bilinear")


def make(folder: Path, **changes: Any) -> RainfallTask:
    settings = {"base_filters": 4, "d_y": 4, "d_z": 2, "members": 6, "test_days": 30} | changes
    task = RainfallTask(Config.for_profile("smoke", **settings), folder)
    task.modules["cvae"].eval()
    return task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_days(tmp_path_factory.mktemp("data") / "rain", days_per_year=60)


@pytest.fixture(scope="module")
def task(folder: Path) -> RainfallTask:
    return make(folder)


@pytest.fixture(scope="module")
def drawn(task: RainfallTask) -> Drawn:
    return draw_days(task, most=20)


@pytest.fixture(scope="module")
def report(task: RainfallTask) -> dict[str, Any]:
    """Like that of a run: every metric of the model and of three baselines."""
    found = {
        name: {
            key: summarise(one) for key, one in task.evaluate("test", task.nulls.get(name)).metrics.items()
        }
        for name in ("model", *PREDICTORS)
    }  # fmt: skip
    return {"metrics": found.pop("model"), "baselines": found, "data": {"scored_split": "test"}}


@pytest.fixture
def history() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for epoch in range(1, 7):
        rows.append(
            {
                "epoch": epoch, "train_total": 2.0 / epoch, "train_kl": 0.1 * epoch,
                "train_weight_kl": min(1, epoch / 3),
                "val_loss": 2.2 / epoch, "val_l_rec": 2.1 / epoch, "val_l_kl": 0.11 * epoch, "val_crps": 1.5,
                "val_posterior_crps": 1.0 / epoch, "val_mae_all": 3.0 / epoch, "val_mae_tail": 40.0 / epoch,
            }
        )  # fmt: skip
    for epoch, crps in ((2, 0.1), (4, 1.2), (5, 0.9), (6, 0.9)):  # 0.1 within the warm-up
        rows[epoch - 1]["val_crps"] = crps
    rows[2]["train_total"] = None  # every step of the epoch was skipped
    return rows


def drawn_figure(figure: Figure | None) -> Figure:
    """Rendered, so that what goes wrong only then does."""
    assert figure is not None
    figure.savefig(io.BytesIO(), dpi=50)
    return figure


def maps(figure: Figure) -> dict[str, list[np.ma.MaskedArray]]:
    """What is drawn in panels, by the first line of the title."""
    found: dict[str, list[np.ma.MaskedArray]] = {}
    for axes in figure.axes:
        for image in axes.get_images():
            found.setdefault(axes.get_title().split("\n")[0], []).append(image.get_array())
    return found


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title().startswith(title))


def lines(axes: Axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in axes.lines}


def levels(entries: Any, *keys: str) -> list[float]:
    return [np.nan if entry[keys[0]] is None else entry[keys[0]] for entry in entries]


# days and members -------------------------------------------------------------------------------------------------


def test_the_heaviest_days_are_those_with_most_rain_above_p95_each_of_its_own_block(task: RainfallTask) -> None:
    chosen, days = heaviest_days(task, "train", 4), task.days
    excess = {
        day: np.nansum(np.clip(days.y(day)[days.land] - task.event_level, 0, None)) for day in days.split["train"]
    }
    assert chosen[0] == max(excess, key=lambda day: excess[day])
    labels = days.blocks("train")
    assert len({labels[day] for day in chosen}) == 4
    for day in chosen:
        assert excess[day] == max(value for other, value in excess.items() if labels[other] == labels[day])
    assert fixed_sample(task).days == heaviest_days(task, "val", 1)


def test_days_are_evenly_spaced_and_no_more_than_asked_for(task: RainfallTask, drawn: Drawn) -> None:
    assert spaced(range(10), 4) == (0, 2, 5, 7) and spaced((3, 1), 4) == (3, 1)
    assert drawn.days == spaced(task.scored("test"), 20)
    assert list(drawn.members) == ["model", "analogues", "climatology", "bilinear"]
    assert drawn.members["model"].shape == (20, 6, 16, 20) and drawn.members["bilinear"].shape[1] == 1
    batch = batch_of(task, drawn.days[:EVAL_BATCH])  # the same batch: another one is rounded otherwise
    assert torch.equal(drawn.observed[:EVAL_BATCH].nan_to_num(-1), batch.y.nan_to_num(-1))
    assert torch.equal(drawn.members["model"][:EVAL_BATCH], task.members(batch)), "the members that are scored"


# maps -------------------------------------------------------------------------------------------------------------


def test_rain_is_white_when_dry_and_its_scale_reaches_the_largest_value() -> None:
    for most in (0.3, 5.0, 42.0, 99.9, 5000.0):
        palette, norm = rain_scale(most)
        assert norm.boundaries[:2].tolist() == [0, 1] and palette(norm(0.99))[:3] == (1, 1, 1)
        assert norm.boundaries[-1] >= min(most, LEVELS[-1]) and palette(norm(1.0))[:3] != (1, 1, 1)
        assert to_hex(palette(np.ma.masked)) == SEA
        light = [sum(palette(norm(level))[:3]) for level in norm.boundaries[:-1]]
        assert light == sorted(light, reverse=True), "darker is more, also without colours"


def test_a_sample_shows_the_heaviest_training_day_with_units(task: RainfallTask) -> None:
    figure, (day,) = drawn_figure(map_figures.sample_figure(task)), heaviest_days(task, "train", 1)
    shown, days = maps(figure), task.days
    assert np.asarray(shown["tas, 4 x 5"][0]) == pytest.approx(days.x(day)[0])
    assert np.asarray(shown["pr, 4 x 5"][0]) == pytest.approx(days.x(day)[1])
    rain = shown["rain to predict, 16 x 20"][0]
    assert rain.compressed() == pytest.approx(days.y(day)[days.land]) and (rain.mask == ~days.land).all()
    assert {"land sea mask", "dist to coast km", "elevation m"} <= shown.keys()
    units = {axes.get_xlabel() for axes in figure.axes}
    assert {"K", "mm/day", "kg/kg", "km", "m", "1: land, 0: sea"} <= units
    assert str(days.dates[day]) in figure.get_suptitle()


def test_the_histogram_is_of_wet_land_pixels_with_the_thresholds(task: RainfallTask) -> None:
    figure, days = map_figures.sample_figure(task), task.days
    axes = panel(figure, "wet land pixels of 60 training days")
    rain = np.concatenate([days.y(day)[days.land] for day in days.split["train"]])
    counts, edges, _ = axes.patches[0].get_data()
    assert counts.sum() * 1e3 == pytest.approx((rain >= 1).sum()) and edges[0] == 1
    assert [line.get_xdata()[0] for line in axes.lines] == list(days.thresholds.values())
    assert f"P95: {days.thresholds['P95']:.3g}" in [text.get_text() for text in axes.texts]


def test_extreme_days_have_one_scale_and_are_those_of_the_task(task: RainfallTask) -> None:
    figure = drawn_figure(map_figures.extremes_figure(task, count=2, members=3))
    batch = batch_of(task, heaviest_days(task, "test", 2))
    shown, land, members = maps(figure), task.days.land, task.members(batch).numpy()
    assert list(shown) == ["observed", "bilinear", "median of 6", "member 1", "member 2", "member 3"]
    for row in range(2):
        assert shown["observed"][row].compressed() == pytest.approx(batch.y[row].numpy()[land])
        assert shown["median of 6"][row].compressed() == pytest.approx(np.median(members[row], 0)[land], abs=1e-5)
        assert shown["member 3"][row].compressed() == pytest.approx(members[row, 2][land])
    images = [image for axes in figure.axes for image in axes.get_images()]
    assert len({tuple(image.norm.boundaries) for image in images}) == 1
    first = batch.y[0].numpy()[land]
    assert figure.axes[0].get_title() == f"observed\n{first.mean():.1f}, max. {first.max():.0f}"
    assert (
        figure.axes[-1].get_ylabel() == "rain, mm/day" and "2 heaviest of 30 scored test days" in figure.get_suptitle()
    )


def test_spectra_are_those_of_single_fields(task: RainfallTask, drawn: Drawn) -> None:
    left, right = drawn_figure(map_figures.spectrum_figure(task, drawn)).axes
    valid = torch.from_numpy(task.days.land) & ~drawn.observed.isnan()
    observed = rapsd(drawn.observed, valid=valid).mean(0)[1:].numpy()
    model = rapsd(drawn.members["model"], valid=valid[:, None]).mean((0, 1))[1:].numpy()
    shown = lines(left)
    assert shown["observed"] == pytest.approx(observed) and shown[name_of("model")] == pytest.approx(model)
    assert lines(right)[name_of("model")] == pytest.approx(model / observed)
    longest = max(line.get_xdata()[0] for line in left.lines if len(line.get_xdata()) > 2)
    assert longest == 20 * 12.0, "the longer side in km"
    assert [line.get_xdata()[0] for line in left.lines if len(set(line.get_xdata())) == 1] == [2 * 4 * 12.0]


# tails ------------------------------------------------------------------------------------------------------------


def test_quantiles_are_those_of_the_verification(task: RainfallTask, drawn: Drawn) -> None:
    tables = tail_figures.quantile_tables(task, drawn)
    for name, members in drawn.members.items():
        scores = RainVerification(task.days, n_members=members.shape[1], full=False)
        scores.add(members, drawn.observed, drawn.days)
        assert tables[name] == scores.quantiles()
    left, right = drawn_figure(tail_figures.quantile_figure(tables, title="so many days")).axes
    rows = [row for row in tables["model"].values() if row["observed"] > 0 and row["predicted"] > 0]
    container = next(one for one in left.containers if one.get_label() == name_of("model"))
    x, y = container[0].get_data()
    assert x == pytest.approx(levels(rows, "observed")) and y == pytest.approx(levels(rows, "predicted"))
    segments = container[2][0].get_segments()  # of the observed
    for (start, end), row in zip(segments, rows, strict=True):
        assert end[0] == pytest.approx(max(row["observed_ci95"][1], row["observed"]))
        assert start[0] == pytest.approx(max(row["observed_ci95"][0], 0.05 * row["observed"]))
    assert lines(right)[name_of("model")] == pytest.approx(y / x)
    assert left.get_xscale() == left.get_yscale() == "log"
    diagonal = left.lines[-1]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())


def test_without_intervals_there_are_no_error_bars() -> None:
    row = {"predicted": 10.0, "observed": 12.0, "predicted_ci95": None, "observed_ci95": None}
    dry = {**row, "predicted": 0.0}
    figure = drawn_figure(tail_figures.quantile_figure({"model": {"P95": dry, "P99": row}}))
    (container,) = figure.axes[0].containers
    assert not container.has_xerr and not container.has_yerr and list(container[0].get_xdata()) == [12.0]
    drawn_figure(tail_figures.quantile_figure({"model": {"P99": {**dry, "observed": 0.0}}}))  # nothing to draw


def test_return_levels_are_of_the_pooled_pixels(task: RainfallTask, drawn: Drawn) -> None:
    """A year of the tiny data has 60 days; 20 of them are a third of one."""
    tail = tail_figures.tail_of(task, drawn, drawn.observed[:, None])
    land, threshold = task.days.land, task.days.thresholds["P95"]
    rain = drawn.observed.numpy()[:, land].astype(float)
    excess = rain[rain > threshold] - threshold
    assert tail.years == pytest.approx(1 / 3) and tail.n == len(excess)
    assert tail.rate.value == pytest.approx(len(excess) / land.sum() / tail.years)
    assert tail.law is not None and tail.law.shape.value == pytest.approx(fit_gpd(excess).shape.value)
    figure = drawn_figure(tail_figures.return_figure(task, drawn))
    (axes,) = figure.axes
    shown = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    (name,) = [label for label in shown if label.startswith("observed")]
    assert f"n = {len(excess):,} exceedances, ξ = {tail.law.shape.value:.2f}" in name
    at, level = (np.asarray(values) for values in shown[name].get_data())
    assert at[0] == 1 and at[-1] == pytest.approx(20)
    for years, value in ((at[-1], level[-1]), (at[20], level[20])):
        if tail.rate.value * years > 1:
            expected = return_level(tail.law, threshold=threshold, rate=tail.rate.value, years=years).value
            assert value == pytest.approx(expected)
    assert any(label.startswith(name_of("model")) for label in shown)
    assert "20 test days = 0.333 years" in figure.get_suptitle() and "GPD above P95" in figure.get_suptitle()


def test_the_counted_marks_are_exceeded_as_often_as_they_say(task: RainfallTask, drawn: Drawn) -> None:
    members = drawn.members["climatology"]
    tail = tail_figures.tail_of(task, drawn, members)
    rain = members.numpy()[..., task.days.land]
    assert len(tail.counted[0])
    for years, level in zip(*tail.counted, strict=True):
        reached = int((rain >= level).sum())
        assert reached >= 10 and reached / (task.days.land.sum() * 6 * tail.years) * years == pytest.approx(1, rel=0.1)


def test_too_few_exceedances_are_said_and_not_fitted(task: RainfallTask, drawn: Drawn) -> None:
    dry = Drawn("test", drawn.days, drawn.observed.clamp(max=1.0), {"model": drawn.members["model"] * 0})
    (axes,) = drawn_figure(tail_figures.return_figure(task, dry)).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{name}, n = 0 exceedances: too few to fit" for name in ("observed", name_of("model"))]


# calibration ------------------------------------------------------------------------------------------------------


def test_ranks_are_those_of_the_report(report: dict[str, Any]) -> None:
    figure = drawn_figure(calibration_figures.rank_figure(report))
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == [name_of("model"), "analogues", "climatology"]
    entry = report["metrics"]["rank_histogram"]
    first = figure.axes[0]
    bars = next(one for one in first.containers if hasattr(one, "patches"))
    assert [bar.get_height() for bar in bars] == pytest.approx(levels(entry["by_label"].values(), "value"))
    assert len(bars) == 7 and 1.0 in [line.get_ydata()[0] for line in first.lines if line.get_linestyle() == "--"]
    index, chance = (report["metrics"][key]["value"] for key in ("reliability_index", "reliability_index_chance"))
    assert f"reliability index {index:.3f}, by chance {chance:.3f}" in first.get_title()
    assert f"over {entry['n']} blocks" in figure.get_suptitle()


def test_spread_and_error_are_those_of_the_report(report: dict[str, Any]) -> None:
    (axes,) = drawn_figure(calibration_figures.spread_figure(report)).axes
    shown = {one.get_label(): one for one in axes.containers}
    assert list(shown) == [name_of("model"), "analogues", "climatology"], "one member has no spread"
    scales = ("pixel", "block", "domain")
    for name, metrics in (("model", report["metrics"]), ("analogues", report["baselines"]["analogues"])):
        entries = [metrics[f"spread_skill_{scale}"] for scale in scales]
        container = shown[name_of(name)]
        assert container[0].get_ydata() == pytest.approx(levels(entries, "value"))
        for (low, high), entry in zip(container[2][0].get_segments(), entries, strict=True):
            value, limits = entry["value"], entry["ci95"]
            assert (low[1], high[1]) == pytest.approx((min(limits[0], value), max(limits[1], value)))
    band = axes.patches[0]
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.8, 1.25))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["of a pixel", "of a coarse cell", "of the domain"]


def test_a_report_without_members_has_no_such_figures() -> None:
    bare = {"metrics": {"crps": {}}, "baselines": {"bilinear": {"crps": {}}}, "data": {"scored_split": "test"}}
    assert calibration_figures.rank_figure(bare) is None and calibration_figures.spread_figure(bare) is None


def test_the_latent_is_asked_on_validation_days(task: RainfallTask) -> None:
    use = calibration_figures.latent_use(task, most=12)
    assert use.n_days == 12 and use.kl.shape == (2,) and (use.kl >= 0).all() and use.active[1] == 2 * 4 * 5
    figure = drawn_figure(calibration_figures.latent_figure(use))
    kl, shares, ablations = figure.axes
    assert [bar.get_height() for bar in kl.containers[0]] == pytest.approx(list(use.kl))
    assert kl.get_title() == f"KL(q‖p), {use.kl.sum():.3g} nats a day in all" and kl.get_ylabel() == "nats a day"
    assert [bar.get_height() for bar in shares.containers[0]] == pytest.approx([use.active[0] / 40, use.z_share])
    assert [bar.get_height() for bar in ablations.containers[0]] == pytest.approx(list(use.crps.values()))
    assert "12 val days" in figure.get_suptitle()


def test_the_kl_of_all_channels_is_that_of_the_history(task: RainfallTask) -> None:
    use = calibration_figures.latent_use(task, most=1000)
    assert use.n_days == len(task.scored("val"))
    assert use.kl.sum() / task.n_land == pytest.approx(task.evaluate("val").metrics["l_kl"].value, rel=1e-4)


# the run ----------------------------------------------------------------------------------------------------------

WARM: dict[str, Any] = {"epochs": 6, "warmup_epochs": 3}


def test_curves_are_those_of_the_history_with_their_marks(history: list[dict[str, Any]]) -> None:
    figure = drawn_figure(figures.history_figure(history, Config.for_profile("smoke", **WARM)))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["loss", "KL, unweighted", figures.BETA, "fair CRPS"] and titles[-1] == figures.EXTREMES
    crps, loss = lines(panel(figure, "fair CRPS")), lines(panel(figure, "loss"))
    assert list(crps["prior members"]) == [row["val_crps"] for row in history]
    assert list(crps["posterior (has seen the day)"]) == [row["val_posterior_crps"] for row in history]
    assert np.isnan(loss["training, all terms"][2]) and loss["training, all terms"][3] == 0.5
    assert panel(figure, figures.EXTREMES).get_ylabel() == "mm/day"
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines[-2:]] == [3, 5], "0.1 in the warm-up does not count"
        (shade,) = axes.patches
        assert (shade.get_x(), shade.get_x() + shade.get_width()) == (0, 3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "warm-up of β", "checkpoints count after epoch 3", "best crps that counts: epoch 5",
    ]  # fmt: skip


def test_before_any_epoch_counts_none_is_the_best(history: list[dict[str, Any]]) -> None:
    config = Config.for_profile("smoke", **WARM)
    assert figures.best_epoch(history[:3], config) is None and figures.best_epoch(history, config) == 5
    assert figures.best_epoch(history, config.replace({"armed_after": 0}, source="the test")) == 2
    figure = drawn_figure(figures.history_figure(history[:1], config))
    assert len(figure.legends[0].get_texts()) == 2


def test_without_a_latent_nothing_is_said_of_it(folder: Path, history: list[dict[str, Any]]) -> None:
    config = Config.for_profile("smoke", d_z=0, likelihood="tail_mae")
    gone = {"train_kl", "train_weight_kl", "val_posterior_crps", "val_l_kl"}
    rows = [{key: value for key, value in row.items() if key not in gone} for row in history]
    figure = drawn_figure(figures.history_figure(rows, config))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["loss", "fair CRPS", "MAE of the median", figures.EXTREMES]
    assert panel(figure, "loss").get_ylabel() == "mm/day"
    assert "warm-up of β" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_live_figure_keeps_its_scale(task: RainfallTask, history: list[dict[str, Any]]) -> None:
    batch = fixed_sample(task)
    figure = drawn_figure(figures.live_figure(task, history, batch))
    shown = maps(figure)
    assert list(shown) == ["observed", "bilinear", "median of 6", "member 1", "member 2", "member 3"]
    assert shown["observed"][0].compressed() == pytest.approx(batch.y[0].numpy()[task.days.land])
    observed = float(np.nanmax(batch.y[0].numpy()))
    for axes in figure.axes:
        for image in axes.get_images():
            assert image.norm.boundaries.tolist() == rain_scale(observed)[1].boundaries.tolist()
    assert any(re.search(r"after epoch 6", one.get_suptitle()) for one in figure.subfigs)


def test_a_report_has_all_its_figures(
    task: RainfallTask, report: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    found = [name for name, _ in task.figures(report, history)]
    assert found == [
        "extremes", "quantiles", "return_levels", "spectrum", "ranks", "spread", "latent", "history",
    ]  # fmt: skip


def test_the_control_without_a_latent_has_the_others(folder: Path, report: dict[str, Any]) -> None:
    task = make(folder, d_z=0, likelihood="tail_mae")
    names = [name for name, _ in figures.report_figures(task, report, [])]
    assert names == ["extremes", "quantiles", "return_levels", "spectrum", "ranks", "spread"]


def test_everybody_has_a_colour_of_their_own() -> None:
    assert len(set(WHO.values())) == len(WHO)
