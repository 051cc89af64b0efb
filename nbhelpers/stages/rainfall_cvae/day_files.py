"""One day's arrays from their files, cleaned; days that cannot be read are told from data that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.layout import MOST_RAIN, x_file, y_file

NOISE = 0.01  # mm/day: what packing into integers leaves below 0
MAX_DAY_MISSING = 0.5  # share of the land; a day with more of it missing counts as unreadable


class UnreadableDay(UserError):
    """A day that is absent, damaged or hardly measured: training may do without very few of these."""


def read_array(path: Path) -> NDArray:
    """The array of one ``.npy`` file; ``UnreadableDay`` if there is none, ``UserError`` if it holds no fractions."""
    try:
        value = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UnreadableDay(f"{path} {why}: make it again, or take its day out of split.json.") from error
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
        raise UserError(
            f"{path} holds {getattr(value, 'dtype', type(value).__name__)}, expected float32: unpack integers with "
            "their scale and offset, and write the folder again."
        )
    return value


def read_x(folder: Path, day: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """``(C, h, w)`` predictors of a day, all finite."""
    path = x_file(folder, day)
    x = read_array(path)
    if x.shape != shape:
        raise UserError(f"{path} has shape {x.shape}, expected {shape} as the other days: bring all to one grid.")
    if not np.isfinite(x).all():
        channels = sorted({int(channel) for channel in np.argwhere(~np.isfinite(x))[:, 0]})
        raise UnreadableDay(
            f"{path} holds NaN or infinity in channel(s) {channels}: fill them, or take day {day} out of split.json."
        )
    return x.astype(np.float32, copy=False)


def read_y(folder: Path, day: int, land: NDArray[np.bool_]) -> NDArray[np.float32]:
    """``(H, W)`` rain of a day in mm/day, NaN over sea and where it was not measured."""
    path = y_file(folder, day)
    y = read_array(path)
    if y.shape != (1, *land.shape):
        raise UserError(
            f"{path} has shape {y.shape}, expected {(1, *land.shape)} as the land_sea_mask: bring all to one grid."
        )
    y = np.where(land, y[0], np.nan).astype(np.float32)
    on_land = y[land]
    missing = np.isnan(on_land)
    if missing.mean() > MAX_DAY_MISSING:
        raise UnreadableDay(
            f"{path} is NaN over {missing.mean():.1%} of the land: take day {day} out of split.json, or fetch it again."
        )
    low, high = float(np.nanmin(on_land)), float(np.nanmax(on_land))
    if low < -NOISE:
        raise UserError(
            f"{path} holds negative rain, down to {low:g} mm/day on {np.mean(on_land < -NOISE):.2%} of the land: if "
            "that number means 'not measured' write NaN there, and if these are anomalies or z-scores write mm/day."
        )
    if high > MOST_RAIN:
        raise UserError(
            f"{path} holds {high:g} as rain in mm/day, more than has ever been measured in a day "
            f"({MOST_RAIN:g} here): write NaN where it means 'not measured', or convert the units."
        )
    return y if low >= 0 else np.maximum(y, 0.0)
