"""The before/after slider: what it draws, refuses and leaves behind without a front end, then in a real browser."""

from __future__ import annotations

import base64
import io
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from lab import jupyter_lab
from PIL import Image

from nbhelpers.core.errors import UserError
from nbhelpers.widgets import Swipe, swipe
from nbhelpers.widgets.swipe import WIDGET_MIME, compose

SIZE = 240
COLOURS = {"LR": (1.0, 0.0, 0.0), "SR": (0.0, 1.0, 0.0), "HR": (0.0, 0.0, 1.0)}
SIDES = {"LR": 30, "SR": 120, "HR": 120}


def pictures() -> dict[str, np.ndarray]:
    """One colour each: red, green and blue."""
    return {name: np.full((SIDES[name], SIDES[name], 3), colour) for name, colour in COLOURS.items()}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def row(panel: Swipe) -> np.ndarray:
    """Colours along a line below the labels."""
    return pixels(panel.picture.value)[SIZE // 2]


def share_of_left(panel: Swipe) -> float:
    return float((row(panel) == [255, 0, 0]).all(-1).mean())


def test_untouched_it_shows_half_of_the_first_and_half_of_the_last() -> None:
    panel = swipe(pictures(), size=SIZE)
    shown = pixels(panel.picture.value)
    assert shown.shape == (SIZE, SIZE, 3)
    assert (panel.left.value, panel.right.value) == ("LR", "HR")
    assert (row(panel)[: SIZE // 2] == [255, 0, 0]).all() and (row(panel)[SIZE // 2 + 1 :] == [0, 0, 255]).all()
    assert (shown[:, SIZE // 2] == 255).all(), "the line where they meet"


@pytest.mark.parametrize("position", [0.0, 0.25, 0.8, 1.0])
def test_the_slider_moves_the_line(position: float) -> None:
    panel = swipe(pictures(), size=SIZE)
    panel.position.value = position
    assert share_of_left(panel) == pytest.approx(position, abs=1.5 / SIZE)
    if position in (0, 1):  # all of one picture, and no line
        assert share_of_left(panel) == position


def test_the_choices_change_their_side() -> None:
    panel = swipe(pictures(), left="SR", right="LR", size=SIZE)
    assert (row(panel)[10] == [0, 255, 0]).all() and (row(panel)[-10] == [255, 0, 0]).all()
    panel.right.value = "HR"
    assert (row(panel)[10] == [0, 255, 0]).all() and (row(panel)[-10] == [0, 0, 255]).all()


def test_a_place_can_be_chosen_where_there_are_several() -> None:
    dark = {name: image * 0 for name, image in pictures().items()}
    panel = swipe({"33UUP": pictures(), "29UPU": dark}, size=SIZE)
    assert panel.sample in panel.box.children and panel.sample.options == ("33UUP", "29UPU")
    panel.position.value = 0.25
    panel.sample.value = "29UPU"
    assert row(panel)[: SIZE // 4].max() == 0
    assert panel.sample not in swipe(pictures()).box.children


def test_pixels_are_repeated_and_not_smoothed() -> None:
    chequered = np.indices((4, 4)).sum(0)[..., None].repeat(3, -1) % 2
    panel = swipe({"LR": chequered * 1.0, "HR": (chequered * 255).astype(np.uint8)}, size=8 * 4)
    panel.position.value = 1.0  # too small for a label
    assert np.array_equal(pixels(panel.picture.value), (chequered * 255).repeat(8, 0).repeat(8, 1))
    wide = swipe({"a": np.zeros((10, 20, 3)), "b": np.zeros((5, 10, 3))}, size=64)
    assert pixels(wide.picture.value).shape == (32, 64, 3)


def test_a_label_stands_where_its_part_is_wide_enough() -> None:
    blank = np.zeros((SIZE, SIZE, 3), np.uint8)

    def written(position: float) -> tuple[bool, bool]:
        shown = pixels(compose(blank, blank, position, labels=("LR", "bicubic + projection ×4")))
        cut = round(position * SIZE)
        return bool(shown[:40, : max(0, cut - 1)].any()), bool(shown[:40, cut + 2 :].any())

    assert written(0.15) == (False, True)
    assert written(0.5) == (True, False)  # the long one has no room
    assert written(0.2) == (True, True)


def test_without_a_front_end_the_picture_stays() -> None:
    panel = swipe(pictures(), size=SIZE)
    data, _ = DisplayFormatter().format(panel)
    assert np.array_equal(pixels(base64.b64decode(data["image/png"])), pixels(panel.picture.value))
    assert data["text/plain"] == "LR | HR"
    assert data[WIDGET_MIME]["model_id"] == panel.box.model_id


def test_a_move_takes_less_than_50_milliseconds() -> None:
    noise = np.random.default_rng(0).random((120, 120, 3))  # nothing is harder to compress
    panel = swipe({"a": noise, "b": noise[::-1]})
    spent = []
    for position in np.linspace(0, 1, 9):
        start = time.perf_counter()
        panel.position.value = position
        spent.append(time.perf_counter() - start)
    assert min(spent[1:]) < 0.05


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ({}, "no picture"),
        ({"HR": np.zeros((3, 8, 8))}, r"'HR' has the shape \(3, 8, 8\), expected \(rows, columns, 3\)"),
        ({"HR": np.full((8, 8, 3), 1.2)}, "'HR' has values from 1.2 to 1.2, expected 0 to 1"),
        ({"HR": np.full((8, 8, 3), np.nan)}, "values from nan"),
        ({"HR": np.zeros((8, 8, 3), np.int64)}, "holds int64"),
        (
            {"LR": np.zeros((8, 8, 3)), "HR": np.zeros((8, 16, 3))},
            "'HR' has 8 x 16 pixels, other proportions than 'LR'",
        ),
        ({"A": pictures(), "B": {"LR": np.zeros((8, 8, 3))}}, "B has the pictures LR, expected LR, SR, HR"),
        ({"A": {"HR": np.full((8, 8, 3), 1.2)}}, "picture 'HR' of A has values"),
    ],
)
def test_pictures_that_make_no_sense_are_refused(images: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        swipe(images)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="right is 'truth', expected the name of a picture: LR, SR, HR"):
        swipe(pictures(), right="truth")


CELL = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_swipe_widget import SIZE, pictures
from nbhelpers.widgets import swipe
panel = swipe(pictures(), size=SIZE)
panel
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    with jupyter_lab([CELL, "print('AT', panel.position.value, panel.right.value)"], tmp_path) as address:
        yield address


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium")
@pytest.mark.timeout(240)
def test_in_a_browser_the_slider_and_a_choice_change_the_picture(lab: str) -> None:
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=quiet)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(lab)
        page.locator(".jp-Cell").first.wait_for(timeout=90_000)
        page.get_by_text("| Idle").wait_for(timeout=90_000)  # a cell run before the kernel is there is not run at all
        page.locator(".jp-Cell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        picture = page.locator("img.widget-image")
        picture.wait_for(timeout=90_000)
        assert page.locator(".jp-OutputArea-output img").count() == 1, "the panel, and not its stand-in besides"

        def colours() -> tuple[str, str]:
            """What is seen near the left and near the right edge."""
            seen = pixels(picture.screenshot())
            ends = seen[len(seen) // 2, [8, -8]]
            return tuple("RGB"[int(end.argmax())] if end.max() > 200 > end.min() else "?" for end in ends)

        def becomes(expected: tuple[str, str]) -> None:
            for _ in range(100):
                if colours() == expected:
                    return
                page.wait_for_timeout(200)
            raise AssertionError(f"the picture shows {colours()}, expected {expected}")

        becomes(("R", "B"))
        page.locator(".noUi-handle").focus()
        page.keyboard.press("End")
        becomes(("R", "R"))
        page.keyboard.press("Home")
        becomes(("B", "B"))
        page.locator(".widget-dropdown select").nth(1).select_option("SR")
        becomes(("G", "G"))
        page.locator(".jp-Cell .cm-content").nth(1).click()
        page.keyboard.press("Shift+Enter")
        page.get_by_text("AT 0.0 SR").wait_for(timeout=20_000)
        if folder := os.environ.get("NBHELPERS_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / "swipe.png"))
        browser.close()
