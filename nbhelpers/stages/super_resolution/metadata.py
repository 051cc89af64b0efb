"""BigEarthNet v2's ``metadata.parquet``: country and official split of every patch without snow, cloud or shadow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.science.bigearthnet_metadata import read_columns

COLUMNS = ("patch_id", "split", "country")
V1_COLUMN = "s2v1_name"  # what the same patch is called in v1


@dataclass(frozen=True)
class Row:
    """What the metadata say of one patch."""

    patch_id: str  # its name in v2, which holds the tile
    split: str  # train, validation or test
    country: str  # e.g. Austria


def read_metadata(path: Path) -> Mapping[str, Row]:
    """Rows by the name of the patch, both that of v2 and, where it is known, that of v1.

    Raises:
        UserError: pyarrow is not installed, a damaged file, a column that is absent.
    """
    table = read_columns(path, COLUMNS, optional=(V1_COLUMN,), without="countries and the official split")
    rows = [Row(*cells) for cells in zip(*(table[name] for name in COLUMNS), strict=True)]
    by_name = {row.patch_id: row for row in rows}
    by_name |= {old: row for old, row in zip(table.get(V1_COLUMN, ()), rows, strict=False) if old}
    return by_name
