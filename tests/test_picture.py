"""Figures as PNG, on disk and in a notebook."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from IPython.display import Image
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nbhelpers import widgets
from nbhelpers.core.picture import write_png


def figure() -> Figure:
    made = Figure(figsize=(4.0, 3.0), layout="constrained")
    left, right = made.subplots(1, 2)
    left.plot([1.0, 4.0, 2.0], label="a line")
    left.set_xlabel("lead time, min")
    right.imshow(np.arange(12.0).reshape(3, 4))
    made.suptitle("a title")
    made.legend(loc="outside lower center")
    return made


def pixels(png: bytes) -> NDArray[np.float32]:
    return matplotlib.image.imread(io.BytesIO(png), format="png")


@pytest.mark.parametrize("dpi", [50, 110])
def test_a_picture_is_what_savefig_would_have_drawn(dpi: int) -> None:
    mine, theirs = io.BytesIO(), io.BytesIO()
    write_png(figure(), mine, dpi=dpi)
    figure().savefig(theirs, format="png", dpi=dpi)
    assert pixels(mine.getvalue()).shape == (3 * dpi, 4 * dpi, 4)
    np.testing.assert_array_equal(pixels(mine.getvalue()), pixels(theirs.getvalue()))


def test_a_figure_can_be_written_again_at_another_size(tmp_path: Path) -> None:
    one = figure()
    for dpi in (110, 50, 110):
        write_png(one, tmp_path / f"{dpi}.png", dpi=dpi)
        assert pixels((tmp_path / f"{dpi}.png").read_bytes()).shape[:2] == (3 * dpi, 4 * dpi)


def test_a_notebook_shows_a_figure_and_the_file_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    write_png(figure(), tmp_path / "saved.png", dpi=110)
    widgets.show(tmp_path / "saved.png")
    widgets.show(figure())
    assert shown[0].data == (tmp_path / "saved.png").read_bytes()
    assert [pixels(image.data).shape[:2] for image in shown] == [(330, 440), (300, 400)]
    with pytest.raises(FileNotFoundError, match=r"not_made\.png"):
        widgets.show(tmp_path / "not_made.png")
