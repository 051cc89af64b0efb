"""What every report is written with: tables as text, arrows and marks in them, and figures on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbhelpers.core.picture import write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARROWS = {"lower": " ↓", "higher": " ↑", "one": " →1"}  # behind a metric's name: its better end
MARKS = {True: " ✓", False: " ✗", None: ""}  # behind a number: whether a paired difference is an improvement


def md_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, header first, as a Markdown table."""
    header, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body))


def save_figures(folder: Path, figures: Iterable[tuple[str, Figure]]) -> None:
    """Write ``<name>.png`` for each; a reader sees the old picture or the new one, whole.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures:
        temporary = folder / f"{name}.tmp"
        write_png(figure, temporary, dpi=110)
        os.replace(temporary, folder / f"{name}.png")
