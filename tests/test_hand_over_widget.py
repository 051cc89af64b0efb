"""The hand-over panel over the real scheduler: what it sets, draws and refuses, without a front end."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import Knob
from nbhelpers.training.flexible import SchedulerParams, earliest_finish, infeasible, trajectory
from nbhelpers.widgets.hand_over import HEIGHT, WIDTH, HandOverPanel, hand_over_panel

EPOCHS = 100
KNOBS = (
    Knob("patience", "patience", 1, 30, start=5),
    Knob("warmup_epochs", "warm-up", 0, 200, start=5),
    Knob("transition_step", "step", 0.01, 0.5, start=0.1),
    Knob("min_delta", "min. change", 1e-5, 1e-1, start=1e-3, log=True),
    Knob("final_weight_target", "final weight", 0.0, 1.0, start=0.7),
)
CHOICES = {"trigger": ("plateau", "increase", "epoch"), "adaptive_step": (True, False)}


def make(params: SchedulerParams | None = None, epochs: int = EPOCHS) -> HandOverPanel:
    return hand_over_panel(
        params or SchedulerParams(),
        KNOBS,
        trajectory=lambda config: trajectory(config, epochs),
        fits=lambda config: infeasible(config, epochs),
        choices=CHOICES,
    )


@pytest.fixture
def panel() -> HandOverPanel:
    return make()


def svg(panel: HandOverPanel) -> ElementTree.Element:
    (text,) = re.findall("<svg.*</svg>", panel.picture.value)
    return ElementTree.fromstring(text)


def tags(panel: HandOverPanel, tag: str) -> list[ElementTree.Element]:
    return list(svg(panel).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def test_untouched_it_returns_the_settings_it_was_given(panel: HandOverPanel) -> None:
    assert panel.config == SchedulerParams() and panel.problem.value == ""
    outside = make(SchedulerParams(patience=50, final_weight_source=2.0), 1000)  # beyond the slider's end
    assert outside.config.patience == 50
    outside.fields["trigger"].value = "epoch"
    assert (outside.config.patience, outside.config.trigger) == (50, "epoch")  # only what was moved is set


def test_it_says_whether_the_hand_over_fits(panel: HandOverPanel) -> None:
    assert "Done after epoch 55 of 100 at the earliest" in panel.picture.value
    assert "0.3 field_error + 0.7 spectrum_error: 45." in panel.picture.value
    assert "This does not fit" not in panel.picture.value
    panel.fields["patience"].value = 20
    assert panel.config.patience == 20  # a plan for a longer run is a plan: the scheduler refuses it for this one
    assert "<b>This does not fit into the run:</b> the hand-over ends after epoch" in panel.picture.value
    assert "but the run has 100: lower patience to 9" in panel.picture.value
    panel.fields["patience"].value = 9
    assert f"Done after epoch {earliest_finish(panel.config)} of 100" in panel.picture.value


def test_it_draws_the_trajectory_with_its_marks(panel: HandOverPanel) -> None:
    _, source, target = (path.attrib["d"] for path in tags(panel, "path"))
    corners = [(float(x), float(y)) for x, y in re.findall(r"H([\d.]+) V([\d.]+)", target)]
    assert len(corners) == EPOCHS and len(re.findall("V", source)) == EPOCHS
    heights = [y for _, y in corners]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 11
    first, last = heights[0], heights[-1]
    scale = (first - last) / 0.7  # pixels for a weight of 1
    for (_, height), (_, _, weight) in zip(corners, trajectory(SchedulerParams(), EPOCHS), strict=True):
        assert first - height == pytest.approx(scale * weight, abs=0.11)
    texts = [text.text for text in tags(panel, "text")]
    assert "earliest finish 55" in texts and "no step before 10" in texts
    (shade,) = tags(panel, "rect")
    assert float(shade.attrib["x"]) + float(shade.attrib["width"]) == pytest.approx(corners[4][0], abs=0.1)  # epoch 5
    finish = next(line for line in tags(panel, "line") if line.attrib["x1"] == f"{corners[54][0]:.1f}")
    assert finish.attrib["x2"] == finish.attrib["x1"]


@pytest.mark.parametrize("epochs", [1, 3, 20, 55, 56, 400])
@pytest.mark.parametrize("warmup", [0, 5, 200])
def test_everything_stays_inside_the_picture(epochs: int, warmup: int) -> None:
    panel = make(SchedulerParams(warmup_epochs=warmup, initial_weight_source=3.0, max_weight_target=2.9), epochs)
    texts = [text.text or "" for text in tags(panel, "text")]
    assert any(text.startswith("earliest finish") for text in texts) == (infeasible(panel.config, epochs) is None)
    for tag, keys in (("line", ("x1", "x2")), ("text", ("x",)), ("rect", ("x", "width"))):
        for element in tags(panel, tag):
            assert all(0 <= float(element.attrib[key]) <= WIDTH for key in keys)
    for path in tags(panel, "path"):
        assert all(0 <= float(x) <= WIDTH for x in re.findall(r"[MH]([\d.]+)", path.attrib["d"]))
        assert all(0 <= float(y) <= HEIGHT for y in re.findall(r"V([\d.]+)", path.attrib["d"]))


def test_every_kind_of_field_sets_its_setting(panel: HandOverPanel) -> None:
    panel.fields["trigger"].value = "increase"
    panel.fields["adaptive_step"].value = False
    panel.fields["warmup_epochs"].value = 12
    panel.fields["transition_step"].value = 0.123456
    panel.fields["min_delta"].value = 1e-2
    assert panel.config == SchedulerParams(
        trigger="increase", adaptive_step=False, warmup_epochs=12, transition_step=0.1235, min_delta=0.01
    )
    assert isinstance(panel.config.warmup_epochs, int)


def test_a_refused_combination_says_why_and_leaves_the_last_valid_settings() -> None:
    panel = make(SchedulerParams(initial_weight_source=0.6, initial_weight_target=0.4))
    panel.fields["patience"].value = 4
    before, picture = panel.config, panel.picture.value
    panel.fields["final_weight_target"].value = 0.1
    assert "the panel: SchedulerParams has initial_weight_target = 0.4, expected less than the 0.1" in (
        panel.problem.value
    )
    assert "The settings from before count." in panel.problem.value
    assert panel.config is before and panel.picture.value == picture
    panel.fields["patience"].value = 3  # still refused, and not forgotten
    assert panel.config is before and panel.problem.value
    panel.fields["final_weight_target"].value = 0.6
    assert (panel.config.final_weight_target, panel.config.patience) == (0.6, 3)
    assert panel.problem.value == "" and panel.picture.value != picture


def test_a_users_error_is_shown_too_and_a_fault_of_ours_is_not_hidden() -> None:
    class Picky(SchedulerParams):
        def replace(self, changes: dict, *, source: str) -> SchedulerParams:
            raise {3: UserError("<three> is a crowd"), 4: RuntimeError("a fault")}[changes["patience"]]

    panel = make(Picky())
    panel.fields["patience"].value = 3
    assert "&lt;three&gt; is a crowd" in panel.problem.value
    with pytest.raises(RuntimeError, match="a fault"):
        panel.fields["patience"].value = 4


def test_names_are_escaped() -> None:
    assert "<b>" not in make(SchedulerParams(target="<b>bold")).picture.value
