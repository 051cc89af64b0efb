"""Sentinel-2's bands and digital numbers: what a file's bands are called and what must be added to its numbers.

Since processing baseline 04.00 (25 January 2022) products hold 1000 more than before, so that dark pixels need not be
cut off at 0 (Copernicus, Sentinel-2 Products Specification Document, BOA_ADD_OFFSET).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nbhelpers.core.errors import UserError

# Metres on the ground of a pixel; B10 (cirrus) holds nothing of the surface and is not in level-2A products.
RESOLUTION = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 20),
    **dict.fromkeys(("B01", "B09"), 60),
}
BANDS = tuple(sorted(RESOLUTION, key=lambda band: "B08A" if band == "B8A" else band))  # by wavelength, as in products
DN_PER_REFLECTANCE = 10_000  # reflectance = (DN + offset) / 1e4
LEVEL_1C = (*BANDS[:-2], "B10", *BANDS[-2:])  # top of atmosphere: with cirrus
NEW_OFFSET = -1000  # of products of baseline 04.00 and later
_BASELINE = re.compile(r"_N(\d{4})_")
HIGH_DARKS = 1000  # DN: where not even 1 % of the blue band is darker, 1000 may have been added
_REPROCESSED = 9999  # "baseline" of products made with the stand-alone sen2cor, as BigEarthNet v2's; it has no offset


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


def offset_in_name(name: str) -> int:
    """-1000 for a product or patch of baseline 04.00 or later, else 0."""
    found = _BASELINE.search(name)
    return NEW_OFFSET if found and 400 <= int(found[1]) < _REPROCESSED else 0


def offset_of_scene(path: Path, tags: Iterable[tuple[float, float]]) -> int:
    """Offset in DN of a scene's file, by its (scale, offset) tags, else by the processing baseline in a name.

    The name is the file's, else that of the nearest folder around it that has a baseline, such as ``….SAFE``.

    Raises:
        UserError: as :func:`offset_in_tags`.
    """
    declared = offset_in_tags(tags, str(path))
    if declared is not None:
        return declared
    names = [f"_{Path(part).stem}_" for part in reversed(path.absolute().parts)]
    return next((offset_in_name(name) for name in names if _BASELINE.search(name)), 0)


def high_darks(dark: float) -> str | None:
    """A warning for images without an offset the blue band of which has its first percentile at ``dark`` DN."""
    if dark <= HIGH_DARKS:
        return None
    return (
        f"99 % of B02 are brighter than {dark:.0f} DN though no offset is declared: products of baseline 04.00 and "
        f"later hold {-NEW_OFFSET} more; if these do, give offset {NEW_OFFSET}"
    )


def offset_in_tags(tags: Iterable[tuple[float, float]], source: str) -> int | None:
    """Offset in DN of a GeoTIFF's own (scale, offset) by band; None where the file says nothing (1 and 0).

    Raises:
        UserError: bands that disagree, or a scale that is neither 1 nor 1e-4.
    """
    found = {(round(scale * DN_PER_REFLECTANCE, 6), offset) for scale, offset in tags}
    if len(found) > 1:
        raise UserError(f"{source} has bands of different scale and offset tags: write all bands in one unit.")
    (units, offset) = next(iter(found))
    if units not in (1, DN_PER_REFLECTANCE):
        raise UserError(
            f"{source} has the scale tag {units / DN_PER_REFLECTANCE:g}, expected 1 (none) or 1e-4 as Sentinel-2's "
            "digital numbers: rewrite the file in those units."
        )
    in_dn = round(offset / (units / DN_PER_REFLECTANCE))
    return None if units == DN_PER_REFLECTANCE and in_dn == 0 else in_dn
