"""The warm-up panel: what it sets, draws and says, with the stage's own rule, which is that of the schedule guard."""

from __future__ import annotations

import itertools
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from rain import tiny_days

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import task as stage
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.data import Days, open_days
from nbhelpers.stages.rainfall_cvae.knobs import WARM_UP_KNOBS
from nbhelpers.stages.rainfall_cvae.schedule_fit import fits
from nbhelpers.training.guards.guard import Rehearsal
from nbhelpers.training.guards.schedule import Schedule
from nbhelpers.training.ledger import probe
from nbhelpers.training.task import Sample
from nbhelpers.widgets import WarmUpPanel, warm_up_panel
from nbhelpers.widgets.warm_up import HEIGHT, WIDTH

SETTINGS = {"beta_kl": 0.5, "warmup_epochs": 15.0, "epochs": 60, "early_stopping_patience": 25}


def make(**changes: Any) -> WarmUpPanel:
    return warm_up_panel(Config.for_profile("t4", **SETTINGS | changes), fits, WARM_UP_KNOBS)


def tags(panel: WarmUpPanel, tag: str) -> list[ElementTree.Element]:
    (text,) = re.findall("<svg.*</svg>", panel.picture.value)
    return list(ElementTree.fromstring(text).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def texts(panel: WarmUpPanel) -> list[str]:
    return [text.text or "" for text in tags(panel, "text")]


def curve(panel: WarmUpPanel) -> list[tuple[float, float]]:
    """The corners of β in pixels."""
    path = tags(panel, "path")[-1].attrib["d"]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+),([\d.]+)", path)]


def strip(panel: WarmUpPanel) -> list[str]:
    return re.findall(r"flex:1;background:(#\w+)'", panel.picture.value)


def test_untouched_it_returns_the_settings_it_was_given() -> None:
    config = Config.for_profile("t4", **SETTINGS)
    panel = warm_up_panel(config, fits, WARM_UP_KNOBS)
    assert panel.config is config and panel.problem.value == ""
    outside = make(epochs=500, early_stopping_patience=None)  # beyond the slider's end, and off
    assert (outside.config.epochs, outside.config.early_stopping_patience) == (500, None)
    assert outside.sliders["early_stopping_patience"].value == 0
    outside.sliders["warmup_epochs"].value = 20
    assert (outside.config.epochs, outside.config.warmup_epochs) == (500, 20), "only what was moved is set"


def test_sliders_set_their_fields_and_say_whether_it_fits() -> None:
    panel = make()
    assert "<b>fits: 45 epochs after the warm-up</b>" in panel.picture.value
    panel.sliders["early_stopping_patience"].value = 0
    panel.sliders["warmup_epochs"].value = 30
    panel.sliders["epochs"].value = 25
    assert (panel.config.warmup_epochs, panel.config.epochs, panel.config.early_stopping_patience) == (30, 25, None)
    assert "<b>warm-up 30 does not fit into 25 epochs" in panel.picture.value and "fits:" not in panel.picture.value
    panel.sliders["beta_kl"].value = 0.123456
    assert panel.config.beta_kl == 0.1235, "what was read on the slider"
    assert isinstance(panel.config.epochs, int)


def test_stopping_armed_inside_the_warm_up_is_said() -> None:
    panel = make(epochs=80, warmup_epochs=30, early_stopping_patience=20, armed_after=0)
    assert "stopping is armed at epoch 0, inside the warm-up, which ends at epoch 30" in panel.picture.value
    panel = make(epochs=80, warmup_epochs=30, early_stopping_patience=None, armed_after=0)
    assert "fits: 50 epochs after the warm-up; but checkpoints are ranked from epoch 0 on" in panel.picture.value


def test_it_draws_beta_with_its_marks() -> None:
    panel = make()
    (x0, y0), (x1, y1), (x2, y2) = curve(panel)
    assert (x1 - x0) / (x2 - x0) == pytest.approx(15 / 60, abs=1e-3) and y0 > y1 == y2
    (shade,) = tags(panel, "rect")
    assert float(shade.attrib["x"]) + float(shade.attrib["width"]) == pytest.approx(x1, abs=0.1)
    assert {"0.5", "0.25", "0", "checkpoints count after epoch 15", "the run could end after epoch 41"} <= set(
        texts(panel)
    )
    places = [float(line.attrib["x1"]) for line in tags(panel, "line")]
    assert [(place - x0) / (x2 - x0) * 60 for place in places] == pytest.approx([15, 41], abs=0.02)
    never = make(early_stopping_patience=None)
    assert not [text for text in texts(never) if "could end" in text]


def test_a_rise_that_does_not_end_is_cut_off_where_the_run_ends() -> None:
    (_, y0), (_, y1), (x2, y2) = curve(make(warmup_epochs=30, epochs=25, early_stopping_patience=None))
    full = curve(make())
    assert x2 == full[-1][0] and y1 == y2
    assert (y0 - y2) / (full[0][1] - full[-1][1]) == pytest.approx(25 / 30, abs=1e-2)


def test_without_a_warm_up_beta_is_there_at_once() -> None:
    heights = {y for _, y in curve(make(warmup_epochs=0))}
    assert len(heights) == 1 and "fits: 60 epochs without a warm-up" in make(warmup_epochs=0).picture.value


@pytest.mark.parametrize("epochs", [1, 3, 60, 400])
@pytest.mark.parametrize("warm_up", [0, 2.5, 200])
@pytest.mark.parametrize("beta", [0.0, 20.0])
def test_everything_stays_inside_the_picture(epochs: int, warm_up: float, beta: float) -> None:
    panel = make(epochs=epochs, warmup_epochs=warm_up, beta_kl=beta, early_stopping_patience=1)
    for tag, keys in (("line", ("x1", "x2")), ("text", ("x",)), ("rect", ("x", "width"))):
        for element in tags(panel, tag):
            assert all(0 <= float(element.attrib[key]) <= WIDTH for key in keys)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in curve(panel))


def test_the_strip_shows_which_warm_ups_fit() -> None:
    cells = strip(make())
    fitting = cells.count("#a9dfbf")
    assert set(cells) == {"#a9dfbf", "#f1948a"} and cells[:fitting] == ["#a9dfbf"] * fitting
    assert fitting / len(cells) == pytest.approx(35 / 100, abs=0.02), "34 + a patience of 25 is less than 60"


class Careful(Config):
    """Settings in which a warm-up may not be longer than 50 epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs > 50:
            raise UserError("warmup_epochs is too much <for> us.")


def test_a_refused_value_is_left_white_says_why_and_leaves_the_settings() -> None:
    panel = warm_up_panel(Careful(**SETTINGS), fits, WARM_UP_KNOBS)
    assert strip(panel).count("#fff") == 30, "the upper half of a slider that ends at 100"
    before, picture = panel.config, panel.picture.value
    panel.sliders["warmup_epochs"].value = 60
    assert "too much &lt;for&gt; us. The settings from before count." in panel.problem.value
    assert panel.config is before and panel.picture.value == picture
    panel.sliders["epochs"].value = 70  # still refused, and not forgotten
    assert panel.config is before
    panel.sliders["warmup_epochs"].value = 10
    assert (panel.config.warmup_epochs, panel.config.epochs, panel.problem.value) == (10, 70, "")


# the rule is that of the guard ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return open_days(tiny_days(tmp_path_factory.mktemp("data") / "rain", coarse=(2, 2)))


def refused(config: Config, days: Days, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the guard says to a task with these settings."""
    monkeypatch.setattr(stage, "open_days", lambda folder, **how: days)  # read once for all of them
    task = stage.RainfallTask(config, days.folder)
    update = next(task.updates(next(iter(task.batches("train", 0))), task.phases[0]))
    rehearsal = Rehearsal(
        task, task.phases[0], task.modules, 0, 0, 0, {}, Sample({}), [(update, probe(update.prediction, update.terms))],
        None, 1, 1,
    )  # fmt: skip
    return [finding.message for finding in Schedule().before(rehearsal) if finding.severity == "stop"]


GRID = [
    dict(zip(("epochs", "warmup_epochs", "early_stopping_patience", "armed_after"), each, strict=True))
    for each in itertools.product((1, 4, 9), (0, 2.5, 4, 12), (None, 1, 5), (None, 0, 3, 9))
]


@pytest.mark.parametrize("d_z", [2, 0])
def test_it_agrees_with_the_guard(d_z: int, days: Days, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"base_filters": 4, "d_y": 4, "d_z": d_z, "batch_size": 4, "cosine": False}
    found = []
    for settings in GRID:
        config = Config.for_profile("smoke", **tiny, **settings)
        ok, said = fits(config)
        found.append(ok)
        messages = refused(config, days, monkeypatch)
        assert ok == (not messages), (settings, said, messages)
        words = {
            "does not fit": "still rising when", "no epoch counts": "all of it is warm-up",
            "inside the warm-up, which": "counts epochs in which", "can never act": "can never act",
        }  # fmt: skip
        for mine, theirs in words.items():
            if mine in said:
                assert any(theirs in message for message in messages)
    assert {True, False} == set(found)


def test_the_profiles_fit() -> None:
    for profile in ("smoke", "quick", "t4", "full"):
        ok, said = fits(Config.for_profile(profile))
        assert ok, f"{profile}: {said}"
