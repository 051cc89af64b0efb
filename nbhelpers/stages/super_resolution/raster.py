"""Which band of a GeoTIFF is which, for scenes that are cut into patches and for scenes that are enlarged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.patch import BANDS

LEVEL_1C = (*BANDS[:-2], "B10", *BANDS[-2:])  # top of atmosphere: with cirrus


def band_in(text: str) -> str | None:
    """B02 of ``B2``, ``b02``, ``T33UUP_20170613T101031_B02_10m``; None where no band, or more than one, is named."""
    words = re.split(r"[^0-9A-Z]+", text.upper())
    found = {f"B{match[1]:0>2}" for word in words if (match := re.fullmatch(r"B0?(8A|\d|1\d)", word))}
    return found.pop() if len(found) == 1 and found <= set(LEVEL_1C) else None


def bands_of(file: Any, usual: Sequence[str] = ()) -> dict[str, int]:
    """Number (from 1) of each band of an opened GeoTIFF by its name; empty where nothing tells the names.

    The file's own descriptions decide. Without any, a file of as many bands as ``usual`` has those in that order, and
    one of 12 or 13 bands is level 2A or 1C in its order.

    Raises:
        UserError: two bands of one name.
    """
    if any(file.descriptions):
        names = [band_in(text or "") for text in file.descriptions]
    elif file.count == len(usual):
        names = list(usual)
    else:
        names = list({len(BANDS): BANDS, len(LEVEL_1C): LEVEL_1C}.get(file.count, ()))
    known = [name for name in names if name]
    if twice := [name for name in known if known.count(name) > 1]:
        raise UserError(f"{file.name} holds {twice[0]} twice: describe each of its bands by another name.")
    return {name: number for number, name in enumerate(names, 1) if name}
