"""Which events of SEVIR to fetch when only some are wanted: complete ones, the same on every machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import prod
from pathlib import Path

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import hash_order
from nbhelpers.core.unpack import escapes
from nbhelpers.stages.perceptual_unet.data import TEST_FROM, catalogue_rows

TEST_SHARE = 0.3  # of the chosen events from the official test date on; the rest before it, for training and validation
FEWEST = 3  # one each to train, validate and test on


@dataclass(frozen=True)
class RemoteEvent:
    """An event that the full catalogue names, and where its bytes lie."""

    id: str
    file_name: str  # HDF5 file that holds it, relative to the folder of all data
    index: int  # its position along the first axis of the file's `vil`
    shape: tuple[int, int, int]  # (H, W, T) as in the file
    is_test: bool  # from the official test date on
    row: Mapping[str, str]  # its cells in the catalogue

    @property
    def n_bytes(self) -> int:
        return prod(self.shape)


def complete_events(catalogue: Path) -> dict[str, RemoteEvent]:
    """Events of type ``vil`` without missing pixels by id; of an id that stands twice, the first row.

    Raises:
        UserError: a row that cannot be read, or whose id or file name is none that SEVIR would give.
    """
    events: dict[str, RemoteEvent] = {}
    for line, row in catalogue_rows(catalogue):
        try:
            if float(row["pct_missing"] or 0.0) != 0:  # empty where nothing is missing, as the reader takes it
                continue
            event = RemoteEvent(
                id=row["id"],
                file_name=row["file_name"],
                index=int(float(row["file_index"])),
                shape=(int(float(row["size_y"])), int(float(row["size_x"])), row["minute_offsets"].count(":") + 1),
                is_test=datetime.fromisoformat(row["time_utc"]) >= TEST_FROM,
                row=row,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{catalogue} line {line} cannot be read ({error!r}): fetch the catalogue again."
            ) from error
        if not re.fullmatch(r"\w[\w-]*", event.id) or escapes(event.file_name) or event.index < 0 or event.n_bytes < 1:
            raise UserError(
                f"{catalogue} line {line} names event {event.id!r} at index {event.index} of {event.file_name!r}, "
                "which cannot be: fetch the catalogue again."
            )
        events.setdefault(event.id, event)
    return events


def choose(events: Mapping[str, RemoteEvent], n_events: int) -> list[RemoteEvent]:
    """``n_events`` of ``events``, ``TEST_SHARE`` of them from the test date on, the others before it.

    Each part is the beginning of one fixed order by hash, so that a larger choice contains the smaller one. Where one
    part has too few events, the other fills up.

    Raises:
        UserError: fewer than ``FEWEST`` asked for, more than there are, or events of different sizes.
    """
    if not FEWEST <= n_events <= len(events):
        raise UserError(
            f"{n_events} events were asked for, expected {FEWEST} to {len(events)}: at least one each to train, "
            "validate and test on, and no more than the catalogue has without missing pixels."
        )
    before = hash_order(key for key, event in events.items() if not event.is_test)
    after = hash_order(key for key, event in events.items() if event.is_test)
    n_after = min(max(1, round(TEST_SHARE * n_events)), len(after))
    n_before = min(n_events - n_after, len(before))
    chosen = [events[key] for key in before[:n_before] + after[: n_events - n_before]]
    if len(shapes := {event.shape for event in chosen}) > 1:
        raise UserError(f"the catalogue has events of different sizes {sorted(shapes)}: keep one grid a data folder.")
    return chosen
