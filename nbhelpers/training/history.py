"""CSV files that grow row by row and can be cut back to a checkpoint."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbhelpers.training.run import replacing, writing


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append ``rows`` and flush them to disk; a column that is new is added at the end, empty in earlier rows.

    Raises:
        UserError: the disk is full or the folder is gone.
    """
    if not rows:
        return
    header, earlier = _read(path) if path.exists() else ([], [])
    columns = list(dict.fromkeys([*header, *(key for row in rows for key in row)]))
    if columns != header:
        _write(path, columns, [*earlier, *rows])
        return
    with writing(path), path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, columns).writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows, numbers as int or float and empty cells as None; an absent file has no rows."""
    if not path.exists():
        return []
    return [_numbers(row) for row in _read(path)[1]]


def keep_rows(path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrite the file with only the rows that ``keep`` accepts, in one step.

    Raises:
        UserError: the disk is full or the folder is gone.
    """
    if not path.exists():
        return
    header, rows = _read(path)
    rows = [row for row in rows if keep(_numbers(row))]
    if not rows:  # without rows no column is fixed yet
        path.unlink()
        return
    _write(path, header, rows)


def _write(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with writing(path), replacing(path) as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows as text, without a last line that a killed process left half written (it has no line end)."""
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return list(table.fieldnames or ()), list(table)


def _numbers(row: Mapping[str, str]) -> dict[str, Any]:
    return {key: _number(cell) for key, cell in row.items()}


def _number(cell: str) -> Any:
    if cell == "":
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
