"""Figures and tables in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbhelpers.core.picture import write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show(figure: Figure | Path) -> None:
    """Show a figure in a notebook, whichever backend matplotlib has there; or a PNG file, such as one of a report."""
    from IPython.display import Image, display

    display(Image(data=figure.read_bytes()) if isinstance(figure, Path) else _image(figure))


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Show rows of text, header first, as a table."""
    from IPython.display import HTML, display

    head, *body = rows
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
    for first, *rest in body:
        cells = f"<td style='text-align:left'>{html.escape(first)}</td>" + "".join(
            f"<td>{html.escape(c)}</td>" for c in rest
        )
        lines.append(f"<tr>{cells}</tr>")
    display(HTML(f"<table>{''.join(lines)}</table>"))


class LiveFigure:
    """A picture that is redrawn in place; pass it to ``fit`` as ``on_epoch``."""

    def __init__(self, draw: Callable[[Sequence[Mapping[str, Any]]], Figure]):
        self._draw = draw
        self._handle: Any = None

    def __call__(self, history: Sequence[Mapping[str, Any]]) -> None:
        from IPython.display import display

        image = _image(self._draw(history))
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)


def _image(figure: Figure) -> Any:
    from IPython.display import Image

    buffer = io.BytesIO()
    write_png(figure, buffer, dpi=100)
    return Image(data=buffer.getvalue())
