"""The day-file layout: names of its files, what is called wet and extreme, and its JSON read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nbhelpers.core.disk import disk_errors
from nbhelpers.core.errors import UserError

X_FOLDER, Y_FOLDER, STATICS_FOLDER, METADATA_FOLDER = "X_lr", "Y_hr", "statics", "metadata"
SPLIT_NAME, DATES_NAME, CATEGORIES_NAME = "split.json", "dates.json", "categories.json"
THRESHOLDS_NAME, SIZE_NAME, DATASET_NAME = "thresholds.json", "H_W.json", "dataset.json"

LAND, COAST = "land_sea_mask", "dist_to_coast_km"  # statics that every folder has
PR = "pr"  # the coarse predictor that is rain; every folder has it
WET = 1.0  # mm/day: a wet day as ETCCDI counts it
PERCENTILES = {"P90": 0.90, "P95": 0.95, "P99": 0.99, "P99.5": 0.995}  # of the wet land pixels of the training years
CATEGORIES = ("dry", "moderate", "heavy")
SHARE = 0.02  # of a day's measured land pixels: fewer wet ones make a dry day, as many above P95 a heavy one

UNITS = "mm/day"  # of rain
# No day had more rain than 1,825 mm (Foc-Foc, La Réunion, 1966; World Meteorological Organization).
MOST_RAIN = 2000.0  # mm/day


def x_file(folder: Path, day: int) -> Path:
    return folder / X_FOLDER / f"day_{day:06d}.npy"


def y_file(folder: Path, day: int) -> Path:
    return folder / Y_FOLDER / f"day_{day:06d}.npy"


def metadata_file(folder: Path, name: str) -> Path:
    return folder / METADATA_FOLDER / name


EXAMPLES = {
    SPLIT_NAME: '{"train": [0, 1], "val": [2], "test": [3]}',
    DATES_NAME: '{"000000": "1990-01-01"}',
    CATEGORIES_NAME: '{"dry": [0], "moderate": [1, 2], "heavy": [3]}',
    THRESHOLDS_NAME: '{"P90": 18, "P95": 26, "P99": 47, "P99.5": 56, "units": "mm/day", "wet": 1.0, "years": [1990]}',
    SIZE_NAME: '{"H": 156, "W": 132}',
    DATASET_NAME: (
        '{"name": "mine", "source": "", "simulated": false, "channels": ["pr"], "x_units": {"pr": "mm/day"}, '
        '"factor": 12, "pixel_km": 5}'
    ),
}  # of what `metadata` holds


def write_json(folder: Path, name: str, value: Any) -> None:
    """``value`` as ``metadata/<name>`` in ``folder``."""
    path = metadata_file(folder, name)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8", newline="\n")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in ``metadata/<name>``; ``UserError`` when it is absent, damaged or no object."""
    path = metadata_file(folder, name)
    if not path.is_file():
        raise UserError(
            f"{path} is not there: point --data-dir at a folder made by `nbhelpers data prepare rainfall-cvae` or "
            f"`nbhelpers data simulate rainfall-cvae`, or write it, e.g. {EXAMPLES[name]}."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): correct it, or make the folder again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object: make the folder again.")
    return value
