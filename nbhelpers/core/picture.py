"""Figures as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_png(figure: Figure, target: Path | BinaryIO, *, dpi: int) -> None:
    """Write a figure at ``dpi`` pixels per inch; it is drawn once, where ``savefig`` draws what has a layout twice.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    imsave(target, canvas.buffer_rgba(), format="png", dpi=dpi)
