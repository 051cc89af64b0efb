"""BigEarthNet v2's ``metadata.parquet``: country and official split of every patch without snow, cloud or shadow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import UserError

NAME = "metadata.parquet"
COLUMNS = ("patch_id", "split", "country")
V1_COLUMN = "s2v1_name"  # what the same patch is called in v1


@dataclass(frozen=True)
class Row:
    """What the metadata say of one patch."""

    patch_id: str  # its name in v2, which holds the tile
    split: str  # train, validation or test
    country: str  # e.g. Austria


def find_metadata(*folders: Path) -> Path | None:
    """The file in the first of ``folders`` that has one."""
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def read_metadata(path: Path) -> Mapping[str, Row]:
    """Rows by the name of the patch, both that of v2 and, where it is known, that of v1.

    Raises:
        UserError: pyarrow is not installed, a damaged file, a column that is absent.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{path} needs the package pyarrow: `pip install pyarrow`, or move the file away to do without countries "
            "and the official split."
        ) from error
    try:
        names = parquet.read_schema(path).names
        if absent := [name for name in COLUMNS if name not in names]:
            raise UserError(
                f"{path} lacks the column(s) {', '.join(absent)} (it has {', '.join(names[:8])}): use BigEarthNet v2's "
                "own file."
            )
        wanted = [*COLUMNS, *([V1_COLUMN] if V1_COLUMN in names else [])]
        table = parquet.read_table(path, columns=wanted).to_pydict()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}): fetch it again or move it away.") from error
    rows = [Row(*cells) for cells in zip(*(table[name] for name in COLUMNS), strict=True)]
    by_name = {row.patch_id: row for row in rows}
    by_name |= {old: row for old, row in zip(table.get(V1_COLUMN, ()), rows, strict=False) if old}
    return by_name
