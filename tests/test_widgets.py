"""The panel: what it shows and sets, first without a front end, then in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import jupyter_lab

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import Knob
from nbhelpers.core.settings import replace_checked
from nbhelpers.widgets import LossBalance, loss_balance

KNOBS = (
    Knob("weight", "λ", 1e-4, 10.0, start=1e-3, log=True, marked=(1e-3, 1e-2), mark="classical"),
    Knob("share", "share", 0, 0.5, start=0.1),
)


@dataclass(frozen=True)
class Settings:
    weight: float | None = None
    share: float | None = 0.2

    def replace(self, changes: dict[str, Any], *, source: str) -> Settings:
        other = {"weight": "share", "share": "weight"}
        return replace_checked(self, {**{other[name]: None for name in changes}, **changes}, source=source)


@dataclass(frozen=True)
class Row:
    term: str
    raw: float
    weight: float
    value_share: float
    grad_share: float
    cosine_to_total: float = 1.0


def balance(settings: Settings) -> list[Row]:
    share = settings.share if settings.share is not None else settings.weight / (1 + settings.weight)  # type: ignore[operator]
    return [Row("mse", 0.01, 1.0, 1 - share, 1 - share), Row("extra", 5.0, 0.5, share, share)]


@pytest.fixture
def panel() -> LossBalance:
    return loss_balance(Settings(), balance, KNOBS, judged="extra")


def test_untouched_it_returns_the_settings_it_was_given(panel: LossBalance) -> None:
    assert panel.config == Settings()
    assert panel.choice.value == "share"
    assert "20.0% of the gradient" in panel.picture.value


def test_a_slider_sets_its_field_and_redraws(panel: LossBalance) -> None:
    panel.sliders["share"].value = 0.3
    assert panel.config == Settings(weight=None, share=0.3)
    assert "extra is at work: 30.0% of the gradient" in panel.picture.value


def test_the_other_knob_takes_over(panel: LossBalance) -> None:
    panel.choice.value = "λ"
    assert panel.config == Settings(weight=1e-3, share=None)
    assert "extra is inert: 0.100% of the gradient" in panel.picture.value
    assert panel.place.children == (panel.sliders["λ"],)
    panel.sliders["λ"].value = 10.0
    assert panel.config.weight == 10.0
    assert "extra drowns the rest: 90.9% of the gradient" in panel.picture.value


def test_the_strip_shows_all_three_zones_and_the_marked_range(panel: LossBalance) -> None:
    panel.choice.value = "λ"
    for text in ("classical", "#d5d8dc", "#a9dfbf", "#f1948a"):
        assert text in panel.picture.value


def test_a_log_knob_is_evenly_spaced_in_its_logarithm() -> None:
    knob = KNOBS[0]
    assert knob.at(0.0) == pytest.approx(1e-4) and knob.at(1.0) == pytest.approx(10.0)
    assert knob.at(0.4) == pytest.approx(1e-2)
    assert knob.fraction(knob.at(0.37)) == pytest.approx(0.37)
    assert (knob.fraction(0.0), knob.fraction(99.0)) == (0.0, 1.0)


def test_settings_that_refuse_a_value_say_so(panel: LossBalance) -> None:
    with pytest.raises(UserError, match="expected float"):
        panel.config.replace({"share": "much"}, source="the panel")


class Careful(Settings):
    """Settings in which a share may not go beyond what is left."""

    def replace(self, changes: dict[str, Any], *, source: str) -> Settings:
        if (changes.get("share") or 0) > 0.4:
            raise UserError("share is more than is left: lower it.")
        return Careful(**vars(super().replace(changes, source=source)))


def test_a_value_that_the_settings_refuse_is_left_white_and_leaves_them_as_they_were() -> None:
    panel = loss_balance(Careful(), balance, KNOBS, judged="extra")
    strip = panel.picture.value.partition("gradient share of")[0]
    assert strip.count("background:#fff'") == 12, "the last fifth of a slider that ends at 0.5"
    panel.sliders["share"].value = 0.45
    assert panel.config == Careful() and "more than is left" in panel.picture.value
    panel.sliders["share"].value = 0.3
    assert panel.config.share == 0.3 and "extra is at work" in panel.picture.value


CELL = """
import sys
sys.path.insert(0, {tests!r})
from test_widgets import KNOBS, Settings, balance
from nbhelpers.widgets import loss_balance
panel = loss_balance(Settings(), balance, KNOBS, judged="extra")
panel
"""
SEVERAL = """
from test_widgets import SEVERAL_KNOBS, Several, shares
from nbhelpers.widgets import settings_panel, weights_panel
weights = weights_panel(Several(), shares, SEVERAL_KNOBS[:1])
weights
"""
SIZES = """
sizes = settings_panel(weights.config, lambda config: {"a sample": f"{config.steps} passes"}, SEVERAL_KNOBS[1:])
sizes
"""
SEVERAL_KNOBS = (
    Knob("weight", "λ", 1e-3, 10.0, start=1.0, log=True, off=True),
    Knob("steps", "time steps", 1, 50, start=10, whole=True),
)


@dataclass(frozen=True)
class Several:
    weight: float = 0.2
    steps: int = 10

    def replace(self, changes: dict[str, Any], *, source: str) -> Several:
        return replace_checked(self, changes, source=source)


def shares(settings: Several) -> list[Row]:
    share = settings.weight / (1 + settings.weight)
    return [Row("mse", 0.01, 1.0, 1 - share, 1 - share), Row("extra", 5.0, settings.weight, share, share)]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    cells = [CELL.format(tests=str(Path(__file__).parent)), "print('SETTINGS', panel.config)"]
    cells += [SEVERAL, SIZES, "print('CHOSEN', sizes.config, weights.config.weight)"]
    with jupyter_lab(cells, tmp_path) as address:
        yield address


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium")
@pytest.mark.timeout(240)
def test_in_a_browser_the_keyboard_moves_the_slider_and_the_next_cell_reads_it(lab: str) -> None:
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=quiet)
        page = browser.new_page(viewport={"width": 1200, "height": 1600})
        page.goto(lab)
        page.locator(".jp-Cell").first.wait_for(timeout=90_000)
        page.get_by_text("| Idle").wait_for(timeout=90_000)  # a cell run before the kernel is there is not run at all
        page.locator(".jp-Cell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        picture = page.locator(".widget-html-content")
        picture.get_by_text("extra is at work: 20.0% of the gradient").wait_for(timeout=90_000)
        page.get_by_role("button", name="λ").click()
        picture.get_by_text("extra is inert: 0.100% of the gradient").wait_for(timeout=20_000)
        handle = page.locator(".noUi-handle")
        handle.focus()
        page.keyboard.press("End")
        picture.get_by_text("extra drowns the rest: 90.9% of the gradient").wait_for(timeout=20_000)
        page.locator(".jp-Cell .cm-content").nth(1).click()
        page.keyboard.press("Shift+Enter")
        page.get_by_text("SETTINGS Settings(weight=10.0, share=None)").wait_for(timeout=20_000)
        # The panels of several settings: off at the left end, back to a weight, and a second panel that starts from it.
        page.locator(".jp-Cell .cm-content").nth(2).click()
        page.keyboard.press("Shift+Enter")
        picture.get_by_text("every term is at work").wait_for(timeout=20_000)
        weight = page.locator(".noUi-handle").nth(1)
        weight.focus()
        page.keyboard.press("Home")
        page.locator(".widget-label").get_by_text("off", exact=True).wait_for(timeout=20_000)
        picture.get_by_text("off: extra").wait_for(timeout=20_000)
        page.keyboard.press("End")
        picture.get_by_text("extra drowns the rest", exact=True).wait_for(timeout=20_000)
        page.locator(".jp-Cell .cm-content").nth(3).click()
        page.keyboard.press("Shift+Enter")
        picture.get_by_text("10 passes").wait_for(timeout=20_000)
        page.locator(".noUi-handle").nth(2).focus()
        page.keyboard.press("Home")
        picture.get_by_text("1 passes", exact=True).wait_for(timeout=20_000)
        page.locator(".jp-Cell .cm-content").nth(4).click()
        page.keyboard.press("Shift+Enter")
        page.get_by_text("CHOSEN Several(weight=10.0, steps=1) 10.0").wait_for(timeout=20_000)
        if folder := os.environ.get("NBHELPERS_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / "panel.png"))
        browser.close()
