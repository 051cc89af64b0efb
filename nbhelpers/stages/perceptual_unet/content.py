"""Recognising the same radar frames under another name, date or file."""

from __future__ import annotations

import hashlib

import h5py
import numpy as np

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.data import MISSING, Event, read_event


def fingerprint(event: Event) -> str | None:
    """A hash of the event's middle row of pixels at all times; of the whole event where that row says nothing.

    One row is one short read, so that twenty thousand events take minutes and not hours. None for events of a single
    value (dry, say), which are equal without being copies, and for those that cannot be read: training finds them.
    """
    try:
        with h5py.File(event.path, "r") as file:
            vil = file["vil"]
            row = np.asarray(vil[event.index, vil.shape[1] // 2])
        if not _varies(row):
            row = read_event(event)
    except (OSError, UserError):
        return None
    return hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest() if _varies(row) else None


def _varies(levels: np.ndarray) -> bool:
    measured = levels[levels != MISSING]
    return len(np.unique(measured)) > 4
