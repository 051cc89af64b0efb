"""One tile's arrays from its file, in decibels and reflectance; tiles that cannot be read are told from wrong data."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding import layout
from nbhelpers.stages.sar_grounding.layout import About
from nbhelpers.stages.sar_grounding.units import Look, check_db, check_optical, look, to_reflectance

Array = NDArray[np.float32]

SAME = 1.5e-4  # reflectance: the truth rounded to digital numbers is still the truth


class UnreadableTile(UserError):
    """A tile whose file is damaged: training may do without very few of these."""


def read_arrays(path: Path, keys: Sequence[str]) -> list[NDArray]:
    """The arrays ``keys`` of an .npz file.

    Raises:
        UnreadableTile: the file is damaged.
        UserError: it is absent, lacks a key, or holds something else than numbers.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there: make it again, nothing takes its place.")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if absent := [key for key in keys if key not in file.files]:
                raise UserError(
                    f"{path} lacks {', '.join(absent)} (it has {', '.join(file.files) or 'nothing'}): write every key "
                    "of the layout."
                )
            found = [file[key] for key in keys]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UnreadableTile(f"{path} cannot be read ({error}): make it again, or take the tile away.") from error
    for key, array in zip(keys, found, strict=True):
        if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
            raise UserError(f"{path} holds {key} as {array.dtype}, expected real numbers: write float32.")
    return found


def read_tile(npz: Path, about: About) -> tuple[Array, Array, Look]:
    """``(2, H, W)`` dB, ``(4, H, W)`` reflectance, both NaN where not measured, and what was seen of them.

    Raises:
        UnreadableTile: the file is damaged.
        UserError: a key that is absent, bands of several shapes, units other than declared, nothing measured.
    """
    keys = (*layout.S1_KEYS, *layout.S2_KEYS)
    arrays = read_arrays(npz, keys)
    shapes = {key: array.shape for key, array in zip(keys, arrays, strict=True)}
    first = shapes[keys[0]]
    if len(first) != 2 or len(set(shapes.values())) > 1:
        other = next((key for key in keys if shapes[key] != first), keys[1])
        raise UserError(
            f"{npz} holds {keys[0]} of shape {first} and {other} of {shapes[other]}, expected one (H, W): bring all "
            "bands to one grid."
        )
    s1, stored = np.stack(arrays[:2]).astype(np.float32), np.stack(arrays[2:])
    check_db(s1, str(npz))
    check_optical(stored, about.s2_units, about.s2_offset, str(npz))
    s2 = to_reflectance(stored, about.s2_units, about.s2_offset)
    for name, image in (("S1", s1), ("S2", s2)):
        if np.isnan(image).any(0).all():
            raise UserError(f"{npz} holds no pixel of {name} that was measured: take the tile away.")
    return s1, s2, look(s1, stored, about.s2_units, about.s2_offset)


def read_opt_v2(npz: Path, about: About, truth: Array) -> Array:
    """``(4, H, W)`` reflectance that a previous step made of the tile whose true image is ``truth``.

    The JSON beside the file declares ``s2_units`` and ``s2_offset``; without it they are the tile's, of ``about``.

    Raises:
        UserError: the file is absent or damaged, lacks its key, has another shape or other units than declared, gaps
            where ``truth`` has none, or is ``truth`` itself.
    """
    (stored,) = read_arrays(npz, (layout.OPT_KEY,))
    if stored.shape != truth.shape:
        raise UserError(
            f"{npz} holds {layout.OPT_KEY} of shape {stored.shape}, expected {truth.shape} as its tile: B2, B3, B4, B8 "
            "on the tile's grid."
        )
    units, offset, path = about.s2_units, about.s2_offset, npz.with_suffix(".json")
    if path.is_file():
        declared = {"s2_offset": 0, **layout.read_json(path)}
        if "s2_units" not in declared:
            raise UserError(f"{path} does not say 's2_units': write 'reflectance' or 'dn', or take the file away.")
        layout.check_units(declared, path)
        units, offset = declared["s2_units"], declared["s2_offset"]
    check_optical(stored, units, offset, str(npz))
    image = to_reflectance(stored, units, offset)
    if lost := int((np.isnan(image).any(0) & ~np.isnan(truth).any(0)).sum()):
        raise UserError(f"{npz} has no value in {lost} pixels that the tile has: write the image without gaps.")
    check_not_truth(image, truth, str(npz))
    return image


def check_not_truth(image: Array, truth: Array, where: str) -> None:
    """Raise where ``image`` is ``truth``: whoever is given the answer learns nothing and scores perfectly."""
    same = np.isclose(image, truth, rtol=0, atol=SAME, equal_nan=True)
    if same.all():
        raise UserError(
            f"{where} is the true S2 image itself, which leaks the answer into the input: write what the previous step "
            "made, or leave --stage2-dir out to train on a proxy."
        )
