"""The pictures of SAR grounding show what they say: images, errors, scores and curves, with gaps too."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sar_run import few_tiles, task_on

from nbhelpers.stages.sar_grounding import figures
from nbhelpers.stages.sar_grounding.task import GroundingTask
from nbhelpers.training.metrics import summarise

BESIDE = ("train_total", "train_prediction_min", "train_prediction_max", "train_skill")  # of a history, no terms


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> GroundingTask:
    return task_on(few_tiles(tmp_path_factory.mktemp("data") / "tiles", gaps=True), sar_weight=2.0)


@pytest.fixture(scope="module")
def report(task: GroundingTask) -> dict[str, Any]:
    predictors = {**task.nulls, **task.controls}
    found = {
        name: {key: summarise(one) for key, one in task.evaluate("test", predictors.get(name)).metrics.items()}
        for name in ("model", *predictors)
    }
    return {"metrics": found.pop("model"), "baselines": found}


@pytest.fixture
def history() -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "val_mae": 0.1 / epoch, "val_sar_agreement": 0.5 + 0.01 * epoch, **dict.fromkeys(BESIDE, 7.0)}
        | {f"train_{name}": 1.0 / epoch for name in ("sar", "cycle", "identity", "lpips", "spectral")}
        for epoch in (1, 2, 3)
    ]


def drawn(figure: Figure) -> Figure:
    """Rendered, so that what goes wrong only then does; and without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), dpi=50)
    return figure


def image(axes: Axes) -> np.ndarray:
    (shown,) = axes.get_images()
    return np.ma.filled(shown.get_array().astype(float), np.nan)


def columns(figure: Figure, rows: int) -> dict[str, list[Axes]]:
    """Panels by their titles."""
    with_images = [axes for axes in figure.axes if axes.get_images()]
    width = len(with_images) // rows
    return {with_images[n].get_title(): with_images[n::width] for n in range(width)}


def test_examples_are_of_different_blocks_and_the_same_every_time(task: GroundingTask) -> None:
    batch = figures.examples(task, "train", most=2)
    assert len(batch.tiles) == 2 and len({task.tiles.block[name] for name in batch.tiles}) == 2
    assert figures.examples(task, "train", most=2).tiles == batch.tiles
    assert len(figures.examples(task, "train").tiles) == 3, "one a block"


def test_the_data_are_shown_as_they_are(task: GroundingTask) -> None:
    batch = figures.examples(task, "train")
    figure = drawn(figures.data_figure(task, batch))
    shown = columns(figure, 3)
    assert list(shown) == ["S1 VV", "S1 VH", "opt_v2", "truth", "truth, infrared"]
    for row, name in enumerate(batch.tiles):
        np.testing.assert_array_equal(image(shown["S1 VH"][row]), batch.s1[row, 1].numpy())
        assert shown["S1 VV"][row].get_ylabel() == name and "dB" in shown["S1 VV"][row].get_xlabel()
        truth, infrared = (image(shown[title][row]) for title in ("truth", "truth, infrared"))
        measured = batch.truth[row].isfinite().all(0).numpy()
        assert truth.shape == (48, 48, 3) and np.isfinite(truth).all() and (truth[~measured] == 0.8).all()
        white = max(0.25, np.nanquantile(batch.truth[row, [2, 1, 0]].numpy(), 0.995))
        red = np.clip(batch.truth[row, 2].numpy() / white, 0, 1) ** (1 / 1.6)
        assert truth[measured][:, 0] == pytest.approx(red[measured], abs=1e-6), "red first"
        near = np.clip(batch.truth[row, 3].numpy() / (2 * white), 0, 1) ** (1 / 1.6)
        assert infrared[measured][:, 0] == pytest.approx(near[measured], abs=1e-6)
    assert task.tiles.source in figure.get_suptitle()


def test_tiles_have_their_errors_on_one_scale_and_the_mean_beneath(task: GroundingTask) -> None:
    batch = figures.examples(task, "test")
    figure = drawn(figures.tiles_figure(task, batch))
    shown, refined = columns(figure, 2), task.refine(batch)
    for row in range(2):
        before, after = (shown[f"|{name} − truth|"][row] for name in ("opt_v2", "opt_v3"))
        for axes, made in ((before, batch.opt_v2), (after, refined)):
            error = (made[row] - batch.truth[row]).abs().mean(0)
            np.testing.assert_allclose(image(axes), error.numpy(), atol=1e-6)
            assert axes.get_xlabel() == f"mean {float(error.nanmean()):.4f}"
        assert before.get_images()[0].get_clim() == after.get_images()[0].get_clim()
        agreement = image(shown["agreement of opt_v3"][row])
        assert np.isfinite(agreement).all() and np.abs(agreement).max() <= 1 + 1e-5


def test_errors_and_agreement_have_a_colour_bar_with_units_and_nothing_is_cut_off(task: GroundingTask) -> None:
    figure = drawn(figures.tiles_figure(task, figures.examples(task, "test")))
    assert {axes.get_xlabel() for axes in figure.axes} >= {
        "reflectance, mean over the bands", "local correlation of edges",
    }  # fmt: skip
    images = {axes.get_title(): axes.get_images()[0] for axes in figure.axes if axes.get_title()}
    bars = {axes.get_xlabel(): axes.get_xlim() for axes in figure.axes if not axes.get_images()}
    assert bars["reflectance, mean over the bands"] == images["|opt_v3 − truth|"].get_clim()
    assert bars["local correlation of edges"] == images["agreement of opt_v3"].get_clim() == (-1, 1)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        box = axes.get_tightbbox(canvas.get_renderer())
        assert box is not None and min(box.x0, box.y0) >= 0, axes.get_title()
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, axes.get_title()


def test_the_agreement_map_is_the_local_correlation_of_edges() -> None:
    draws = torch.Generator().manual_seed(0)
    ground = torch.nn.functional.avg_pool2d(torch.randn(1, 1, 68, 68, generator=draws), 5, 1)
    ground = (ground - ground.mean()) / ground.std()
    s1 = -12 + 4 * ground.expand(1, 2, -1, -1)
    like = (0.1 * torch.exp(0.9 * ground)).expand(1, 4, -1, -1)
    mine = figures.agreement_map(s1, like)
    other = figures.agreement_map(s1, like.roll(29, -1))
    assert float(mine.median()) > 0.6 and abs(float(other.median())) < 0.3 and float(mine.abs().max()) <= 1 + 1e-5
    holes = s1.clone()
    holes[..., :20, :] = torch.nan
    assert figures.agreement_map(holes, like).isfinite().all()
    nothing = torch.full_like(s1, torch.nan)
    assert not figures.agreement_map(nothing, like).any(), "nothing measured, no agreement"


def test_scores_are_those_of_the_report_and_chance_is_drawn(report: dict[str, Any]) -> None:
    figure = drawn(figures.scores_figure(report))
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["PSNR, dB ↑", "SAM, degrees ↓", "NDVI error ↓", "agreement with SAR ↑"], "no lpips: random"
    points = {
        line.get_label(): float(line.get_ydata()[0]) for line in panels["PSNR, dB ↑"].lines if line.get_marker() == "o"
    }
    rows = {"model": report["metrics"]} | report["baselines"]
    assert points == {figures.NAMES.get(name, name): rows[name]["psnr"]["value"] for name in rows if name != "mean"}
    said = {text.get_text() for text in panels["agreement with SAR ↑"].texts}
    assert said == {"chance", "truth"}


def test_any_rows_of_a_report_are_drawn_each_in_a_colour_of_its_own(report: dict[str, Any]) -> None:
    given = report["baselines"]["opt_v2"]
    figure = drawn(figures.scores_figure({**report, "baselines": {"opt_v2": given, "one": given, "two": given}}))
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_label() for line in points] == ["opt_v3", "opt_v2", "one", "two"]
    assert len({line.get_color() for line in points}) == 4


def test_a_score_that_is_undefined_is_left_out(report: dict[str, Any]) -> None:
    nothing = {"value": None, "ci95": [None, None]}
    metrics = {**report["metrics"], "sar_agreement": nothing, "sar_agreement_truth": nothing}
    figure = drawn(figures.scores_figure({**report, "metrics": metrics}))
    labels = {line.get_label() for line in figure.axes[-1].lines if line.get_marker() == "o"}
    rows = [name for name in report["baselines"] if name != "mean"]
    assert labels == {figures.NAMES.get(name, name) for name in rows}


def test_curves_are_those_of_the_history(task: GroundingTask, history: list[dict[str, Any]]) -> None:
    history[1]["train_sar"] = None  # every step of the epoch was skipped
    figure = drawn(figures.curves_figure(task, history))
    terms, error, agreement = figure.axes
    lines = {line.get_label(): np.asarray(line.get_ydata(), float) for line in terms.lines}
    assert set(lines) == {"sar", "cycle", "identity", "lpips", "spectral"}
    np.testing.assert_allclose(lines["sar"], [2.0, np.nan, 2 / 3])
    np.testing.assert_allclose(lines["cycle"], task.config.cycle_weight * np.array([1.0, 0.5, 1 / 3]))
    for axes, metric in ((error, "mae"), (agreement, "sar_agreement")):
        assert list(axes.lines[0].get_ydata()) == [row[f"val_{metric}"] for row in history]
        assert axes.lines[1].get_ydata()[0] == task.scores_of_input[metric].value
    drawn(figures.curves_figure(task, []))


def test_curves_of_the_token_route_are_those_of_its_one_term(
    task: GroundingTask, history: list[dict[str, Any]]
) -> None:
    rows = [{key: row[key] for key in row if key in BESIDE or not key.startswith("train_")} for row in history]
    figure = drawn(figures.curves_figure(task, [row | {"train_tokens": 9.0 / row["epoch"]} for row in rows]))
    (line,) = figure.axes[0].lines
    assert line.get_label() == "tokens" and list(line.get_ydata()) == [9.0, 4.5, 3.0]


def test_the_live_figure_shows_the_first_tile(task: GroundingTask, history: list[dict[str, Any]]) -> None:
    batch = figures.examples(task, "val")
    figure = drawn(figures.live_figure(task, history, batch))
    images = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in images] == ["S1 VV", "opt_v2", "opt_v3, epoch 3", "truth"]
    np.testing.assert_array_equal(image(images[0]), batch.s1[0, 0].numpy())


def test_figures_of_a_run_have_names(
    task: GroundingTask, report: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    assert [name for name, _ in task.figures(report, history)] == ["tiles", "scores", "curves"]
