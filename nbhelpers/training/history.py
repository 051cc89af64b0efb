"""CSV files that grow row by row and can be cut back to a checkpoint."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append ``rows`` and flush them to disk; the first call writes the header.

    Raises:
        ValueError: when a row's columns differ from the header's.
    """
    if not rows:
        return
    new = not path.exists()
    header = list(rows[0]) if new else _header(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        if new:
            writer.writeheader()
        for row in rows:
            if set(row) != set(header):
                raise ValueError(f"{path.name} has columns {header}, but a row has {list(row)}")
            writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows, numbers as int or float and empty cells as None; an absent file has no rows."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _number(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def keep_rows(path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrite the file with only the rows that ``keep`` accepts, in one step."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        header = list(table.fieldnames or ())
        # A row that a killed process left half written has missing cells.
        rows = [row for row in table if None not in row.values() and keep({k: _number(v) for k, v in row.items()})]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def _number(cell: str | None) -> Any:
    if cell is None or cell == "":
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
