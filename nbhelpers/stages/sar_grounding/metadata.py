"""BigEarthNet v2's ``metadata.parquet``: which Sentinel-1 and Sentinel-2 patches are a pair, and in which country."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import UserError
from nbhelpers.science.bigearthnet_metadata import read_columns

COLUMNS = ("s1_name", "patch_id", "country")


@dataclass(frozen=True)
class Row:
    """What the metadata say of one pair."""

    s2_name: str  # of the Sentinel-2 patch in v2
    country: str | None  # e.g. Austria


def read_metadata(path: Path) -> Mapping[str, Row]:
    """Rows by the name of the Sentinel-1 patch, which is the same in v1 and v2.

    Raises:
        UserError: pyarrow is not installed, a damaged file, a column that is absent or holds no names, a Sentinel-1
            patch with two partners.
    """
    table = read_columns(
        path, COLUMNS, without="countries, and without the pairs of version 2, which are named only here"
    )
    rows: dict[str, Row] = {}
    for s1_name, s2_name, country in zip(*(table[name] for name in COLUMNS), strict=True):
        if s1_name is None or s2_name is None:
            continue  # a patch without a partner is in no pair
        if not all(isinstance(one, str) for one in (s1_name, s2_name, country or "")):
            raise UserError(
                f"{path} has {s1_name!r}, {s2_name!r}, {country!r} in a row, expected text: fetch it again."
            )
        if (other := rows.setdefault(s1_name, Row(s2_name, country))).s2_name != s2_name:
            raise UserError(
                f"{path} pairs {s1_name} with {other.s2_name} and {s2_name}, expected one partner: fetch it again."
            )
    return rows
