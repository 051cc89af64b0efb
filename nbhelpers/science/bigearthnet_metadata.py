"""BigEarthNet v2's ``metadata.parquet``, a row for every patch: where it is, and how to read columns of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbhelpers.core.errors import UserError

NAME = "metadata.parquet"


def find_metadata(*folders: Path) -> Path | None:
    """The file in the first of ``folders`` that has one."""
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def read_columns(
    path: Path, columns: Sequence[str], *, optional: Sequence[str] = (), without: str
) -> Mapping[str, list[Any]]:
    """Columns of the file, by name; those that are ``optional`` only where they are there.

    Args:
        without: what one does without if the file is moved away, for the message.

    Raises:
        UserError: pyarrow is not installed, a damaged file, a column that is absent.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{path} needs the package pyarrow: `pip install pyarrow`, or move the file away to do without {without}."
        ) from error
    try:
        names = parquet.read_schema(path).names
        if absent := [name for name in columns if name not in names]:
            raise UserError(
                f"{path} lacks the column(s) {', '.join(absent)} (it has {', '.join(names[:8])}): use BigEarthNet v2's "
                "own file."
            )
        wanted = [*columns, *(name for name in optional if name in names)]
        found: Mapping[str, list[Any]] = parquet.read_table(path, columns=wanted).to_pydict()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}): fetch it again or move it away.") from error
    return found
