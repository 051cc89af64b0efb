"""The pictures of super-resolution show what they say: the numbers of the report, one stretch, one error scale."""

from __future__ import annotations

import copy
import dataclasses
import io
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentinel
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nbhelpers.science.image_quality import psnr
from nbhelpers.stages.super_resolution import figures
from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.stages.super_resolution.crops import Batch
from nbhelpers.stages.super_resolution.score_figures import WHO
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training.metrics import summarise
from nbhelpers.widgets import swipe

SIDE = 96


def task_on(folder: Path, **changes: object) -> SuperResolutionTask:
    settings = {"backbone_weights": "random", "crop": 48, "features": 8, "growth": 4}
    return SuperResolutionTask(Config.for_profile("smoke", **settings | changes), folder)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SuperResolutionTask:
    folder = tmp_path_factory.mktemp("patches")
    sentinel.write_v2(folder, {"33UUP": 2, "29UPU": 2, "35VPK": 2, "31UFT": 2}, size=SIDE)
    return task_on(folder, val_places=("33UUP",), test_places=("29UPU", "35VPK"))


@pytest.fixture(scope="module")
def report(task: SuperResolutionTask) -> dict[str, Any]:
    """With a first stage that is a little better than the model."""
    scores = {"model": task.evaluate("test")} | {name: task.evaluate("test", null) for name, null in task.nulls.items()}
    found = {name: {key: summarise(one) for key, one in each.metrics.items()} for name, each in scores.items()}
    found["pixel_best"] = copy.deepcopy(found["model"])
    for metric in ("psnr", "psnr_place"):
        for entry in (found["pixel_best"][metric], *found["pixel_best"][metric]["by_label"].values()):
            entry["value"] += 0.4
    config = dataclasses.asdict(task.config)
    return {"metrics": found.pop("model"), "baselines": found, "data": {"scored_split": "test"}, "config": config}


@pytest.fixture
def history() -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, 6):
        phase = "pixel" if epoch <= 3 else "adversarial"
        row = {"epoch": epoch, "phase": phase, "train_pixel": 1.0 / epoch, "val_psnr": 30.0 + epoch}
        rows.append({**row, "val_feature_distance_random": 0.3 - 0.01 * epoch})
    rows[1]["train_pixel"] = None  # every step of the epoch was skipped
    return rows


def drawn(figure: Figure) -> Figure:
    """Rendered, so that what goes wrong only then does."""
    figure.savefig(io.BytesIO(), dpi=60)
    return figure


def images(figure: Figure) -> dict[str, list[np.ndarray]]:
    """Image data by title of the panel."""
    found: dict[str, list[np.ndarray]] = {}
    for axes in figure.axes:
        for image in axes.get_images():
            found.setdefault(axes.get_title(), []).append(np.asarray(image.get_array()))
    return found


def texts(axes: Axes) -> list[str]:
    return [text.get_text().strip() for text in axes.texts]


def bars(axes: Axes) -> dict[str, list[float]]:
    return {group.get_label(): [bar.get_height() for bar in group] for group in axes.containers}


def test_the_fixed_sample_is_the_same_in_every_call_and_of_different_places(task: SuperResolutionTask) -> None:
    one, again = figures.fixed_sample(task, split="test"), figures.fixed_sample(task, split="test")
    assert torch.equal(one.dn, again.dn) and one.patches == again.patches
    assert [task.patches.patches[index].place for index in one.patches] == ["29UPU", "35VPK"]
    more = figures.fixed_sample(task, split="test", count=3)
    assert more.patches[:2] == one.patches and len(set(more.patches)) == 3
    assert len(figures.fixed_sample(task, split="val", count=5).patches) == 2, "all that there are"


def test_the_fixed_sample_of_a_place_has_the_most_detail(tmp_path: Path) -> None:
    sentinel.write_v2(tmp_path, {"33UUP": 4, "29UPU": 1, "35VPK": 1}, size=SIDE)
    task = task_on(tmp_path, val_places=("33UUP",))
    index = {patch.id: patch.index for patch in task.split.patches["val"]}
    busy = sorted(index.values())[2]
    pixels = task.reader[busy]  # kept in memory: the change stays
    pixels[:, ::8] += 2000
    assert figures.fixed_sample(task, count=1).patches == (busy,)


def test_samples_are_shown_in_both_resolutions_with_their_units(task: SuperResolutionTask) -> None:
    figure = drawn(figures.sample_figure(task, count=1))
    shown = images(figure)
    assert [one.shape for one in shown["HR, pixels of 10 m"]] == [(48, 48, 3)]
    assert [one.shape for one in shown["LR, pixels of 40 m"]] == [(12, 12, 3)]
    grey = shown["HR, B08"][0]
    assert grey.shape == (48, 48) and 0.01 <= grey.min() < grey.max() <= 0.4  # reflectance, as the scenes were made
    assert figure.axes[0].get_ylabel() == "31UFT (train)" and texts(figure.axes[0]) == ["100 m"]
    assert figure.axes[-1].get_ylabel() == "B08, reflectance"


def test_a_scale_bar_is_as_long_as_it_says(task: SuperResolutionTask) -> None:
    figure = figures.panel_figure(task, figures.fixed_sample(task, split="test"))
    hr = next(axes for axes in figure.axes if axes.get_title() == "HR\n10 m")
    (bar,) = hr.lines
    assert texts(hr) == ["400 m"] and np.ptp(bar.get_xdata()) == pytest.approx(400 / 10)


def test_the_panels_have_one_stretch_and_one_error_scale(task: SuperResolutionTask) -> None:
    batch = figures.fixed_sample(task, split="test")
    figure = drawn(figures.panel_figure(task, batch))
    shown = images(figure)
    reflectance = (batch.dn / 1e4).numpy()
    for row, whole in enumerate(shown["the whole patch, HR"]):
        expected = (reflectance[row, [2, 1, 0]] / 0.3).clip(0, 1).transpose(1, 2, 0)
        assert whole == pytest.approx(expected, abs=1e-5)
    errors = [
        image for axes in figure.axes for image in axes.get_images() if axes.get_title().endswith("− HR|")
    ]  # three of each patch
    assert len(errors) == 6 and len({image.get_clim() for image in errors}) == 1
    high, _ = task.pair(batch)
    enlarged = task.to_reflectance(task.nulls["bicubic"](batch))
    scores = psnr(enlarged, task.to_reflectance(high), data_range=1.0, border=4).mean(1)
    for row, score in enumerate(scores):
        assert f"bicubic\n{score:.2f} dB" in [axes.get_title() for axes in figure.axes][10 * row :]
    error = (enlarged - task.to_reflectance(high)).abs().mean(1).cpu().numpy()[0]
    (box,) = next(axes for axes in figure.axes if axes.get_title() == "the whole patch, HR").patches
    left, top, side = (round(x + 0.5) for x in (*box.get_xy(), box.get_width() - 0.5))
    assert (left % 4, top % 4, side) == (0, 0, 60)
    assert shown["|bicubic − HR|"][0] == pytest.approx(error[top : top + side, left : left + side], abs=1e-6)
    assert shown["HR\n10 m"][0] == pytest.approx(shown["the whole patch, HR"][0][top : top + side, left : left + side])


def test_the_detail_is_where_bicubic_misses_most(task: SuperResolutionTask) -> None:
    dn = torch.full((1, 4, SIDE, SIDE), 1000.0)
    dn[..., 80:90:2, 4:20] = 2500
    ((top, left, side),) = figures._detail(task, Batch(dn, (0,)))
    assert side == 60 and top <= 80 - 4 and top + side >= 90 and left == 0


def test_pictures_can_be_swiped(task: SuperResolutionTask) -> None:
    found = figures.pictures(task, figures.fixed_sample(task, split="test", count=3))
    assert list(found) == ["1: 29UPU", "2: 35VPK", "3: 29UPU"]
    assert list(found["1: 29UPU"]) == ["LR", "bicubic", "bicubic + projection", "model", "HR"]
    assert found["1: 29UPU"]["LR"].shape == (24, 24, 3) and found["1: 29UPU"]["HR"].shape == (SIDE, SIDE, 3)
    panel = swipe(found)
    before = panel.picture.value
    panel.sample.value = "2: 35VPK"
    assert panel.picture.value != before


def test_the_baselines_level_is_the_score_that_validation_would_give(task: SuperResolutionTask) -> None:
    levels = figures.baseline_psnr(task)
    assert list(levels) == ["bicubic", "bicubic_projected"]
    for name, level in levels.items():
        assert level == pytest.approx(task.evaluate("val", task.nulls[name]).metrics["psnr"].value, abs=1e-6)


def test_the_live_figure_shows_curves_levels_and_the_border_of_the_stages(
    task: SuperResolutionTask, history: list[dict[str, Any]]
) -> None:
    levels = {"bicubic": 31.5, "bicubic_projected": 33.5}
    figure = drawn(figures.live_figure(task, history, figures.fixed_sample(task), levels=levels))
    loss, validation = figure.axes[:2]
    first, second, border = loss.lines
    assert list(first.get_xdata()) == [1, 3] and list(second.get_xdata()) == [4, 5] and border.get_xdata()[0] == 3.5
    assert texts(loss) == ["first stage", "second stage"]
    assert validation.get_title() == "validation: PSNR ↑ and feature distance random ↓"
    found = {line.get_ydata()[0] for line in validation.lines if line.get_linestyle() == "--"}
    assert found == {31.5, 33.5} and {"bicubic", "bicubic + projection"} <= set(texts(validation))
    distances = [y for axes in figure.axes[2:] for line in axes.lines for y in line.get_ydata()]
    assert distances[:5] == pytest.approx([0.29, 0.28, 0.27, 0.26, 0.25])
    titles = list(images(figure))
    assert titles[:2] == ["LR, 40 m", "HR, 10 m"] and titles[3].startswith("model after epoch 5, ")
    early = figures.live_figure(task, history[:1], figures.fixed_sample(task))  # the first epoch, levels computed here
    computed = [line.get_ydata()[0] for line in early.axes[1].lines if line.get_linestyle() == "--"]
    assert computed == pytest.approx(list(figures.baseline_psnr(task).values()))


def test_gains_by_place_are_those_of_the_report(report: dict[str, Any]) -> None:
    (axes,) = drawn(figures.place_figure(report)).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["29UPU", "35VPK"]
    shown = bars(axes)
    assert [name for name in shown if not name.startswith("linear")] == ["bicubic + projection", "first stage", "model"]
    assert "linear filter" in shown
    bicubic = report["baselines"]["bicubic"]["psnr_place"]["by_label"]
    for name, values in (
        ("bicubic + projection", report["baselines"]["bicubic_projected"]),
        ("model", report["metrics"]),
    ):
        assert shown[name] == pytest.approx(
            [values["psnr_place"]["by_label"][place]["value"] - bicubic[place]["value"] for place in bicubic]
        )
    assert 1.0 in [line.get_ydata()[0] for line in axes.lines]
    (axes,) = drawn(figures.place_figure({**report, "config": {**report["config"], "scale": 2}})).axes
    assert 1.0 not in [line.get_ydata()[0] for line in axes.lines], "the bar is not stated for it"


@pytest.mark.parametrize("places", [1, 13])
def test_without_places_to_compare_gains_are_by_band(report: dict[str, Any], places: int) -> None:
    changed = copy.deepcopy(report)
    for metrics in (changed["metrics"], *changed["baselines"].values()):
        value = metrics["psnr_place"].pop("by_label")["29UPU"]
        if places > 1:
            metrics["psnr_place"]["by_label"] = {f"P{number}": value for number in range(places)}
    del changed["baselines"]["pixel_best"]
    (axes,) = drawn(figures.place_figure(changed)).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["B02", "B03", "B04", "B08"]
    assert "first stage" not in bars(axes)


def test_psnr_by_band(report: dict[str, Any]) -> None:
    left, right = drawn(figures.band_figure(report)).axes
    shown = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert shown["lanczos"] == [one["value"] for one in report["baselines"]["lanczos"]["psnr"]["by_label"].values()]
    assert list(shown)[-1] == "model" and len(shown) == len(report["baselines"]) + 1
    assert bars(right)["first stage"] == pytest.approx([0.4 + gain for gain in bars(right)["model"]])
    one = copy.deepcopy(report)
    for metrics in (one["metrics"], *one["baselines"].values()):
        del metrics["psnr"]["by_label"]  # a single band
        metrics["psnr"]["value"] = None  # undefined
    drawn(figures.band_figure(one))


def test_the_plane_of_psnr_and_distance_labels_every_point(report: dict[str, Any]) -> None:
    figure = drawn(figures.tradeoff_figure(report))
    (axes,) = figure.axes
    points = {line.get_color(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines[1:]}
    metrics = report["baselines"]["lanczos"]
    assert points[WHO["lanczos"]] == (metrics["psnr"]["value"], metrics["feature_distance_random"]["value"])
    assert {text.get_text() for text in axes.texts} >= {"model", "first stage", "bicubic + projection", "linear filter"}
    assert axes.get_ylabel() == "feature distance random"


def test_labels_of_the_plane_do_not_cover_each_other(report: dict[str, Any]) -> None:
    crowded = copy.deepcopy(report)
    # As they lie for a trained model: in two narrow groups.
    places = {
        "bicubic": (37.54, 0.320), "lanczos": (37.63, 0.316), "linear": (38.98, 0.250),
        "bicubic_projected": (38.92, 0.248), "pixel_best": (39.0, 0.246), "model": (38.95, 0.243),
        "linear_projected": (38.99, 0.247),
    }  # fmt: skip
    crowded["baselines"].setdefault("linear_projected", copy.deepcopy(crowded["baselines"]["linear"]))
    for name, (x, y) in places.items():
        metrics = crowded["metrics"] if name == "model" else crowded["baselines"][name]
        metrics["psnr"]["value"], metrics["feature_distance_random"]["value"] = x, y
    figure = drawn(figures.tradeoff_figure(crowded))
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 7
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert figure.axes[0].get_window_extent().overlaps(box)
        assert not any(box.contains(*figure.axes[0].transData.transform(point)) for point in places.values())


def test_spectra_show_what_interpolation_loses(task: SuperResolutionTask) -> None:
    figure = drawn(figures.spectrum_figure(task))
    power, ratio = figure.axes
    curves = {line.get_label(): line for line in ratio.lines}
    wavelength = curves["HR"].get_xdata()
    assert (wavelength[0], wavelength[-1]) == (10 * SIDE, 20)
    assert (curves["HR"].get_ydata() == 1).all()
    long, short = wavelength > 400, wavelength < 60
    for name in ("bicubic", "bicubic + projection"):
        values = curves[name].get_ydata()
        assert values[long].min() > 0.7 and values[short].mean() < 0.6
    assert (curves["bicubic"].get_ydata() <= curves["bicubic + projection"].get_ydata() + 0.05).all()
    assert 80 in [line.get_xdata()[0] for line in power.lines] and texts(power) == ["shortest wave of LR, 80 m"]
    low, high = ratio.get_xlim()
    assert low > high, "long waves to the left"


def test_the_report_has_its_figures(
    task: SuperResolutionTask, report: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    named = dict(figures.report_figures(task, report, history))
    assert list(named) == ["panel", "places", "bands", "tradeoff", "history", "spectrum"]
    drawn(named["history"])  # the others are drawn above
    assert "history" not in dict(figures.report_figures(task, report, []))


def test_who_is_who_by_colour() -> None:
    assert len({to_hex(colour) for colour in WHO.values()}) == len(WHO)
    assert figures.DISTANCE not in (WHO["model"], WHO["bicubic"], WHO["bicubic_projected"]), "they share a panel"


def test_real_patches(real_data: Path) -> None:
    task = task_on(real_data / "bigearthnet", scale=2, bands=("B8A", "B11", "B12"), rgb=("B12", "B11", "B8A"))
    drawn(figures.sample_figure(task))
    batch = figures.fixed_sample(task, split="test")
    figure = drawn(figures.panel_figure(task, batch))
    assert {"LR\n40 m", "HR\n20 m"} <= {axes.get_title() for axes in figure.axes}
    assert texts(figures.spectrum_figure(task).axes[0]) == ["shortest wave of LR, 80 m"]
