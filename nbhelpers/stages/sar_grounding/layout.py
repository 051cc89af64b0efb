"""The tile layout: names of its folders and keys, and what the JSON beside a tile says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from rasterio.crs import CRS
from rasterio.errors import CRSError

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import SPLITS

TILES, STAGE2 = "tiles", "stage2_outputs"  # folders
S1_KEYS = ("s1_vv", "s1_vh")
S2_KEYS = ("s2_b2", "s2_b3", "s2_b4", "s2_b8")
BANDS = ("B2", "B3", "B4", "B8")  # blue, green, red, near infrared: order of the channels
RED, NIR = 2, 3  # channels
RGB = (2, 1, 0)  # channels as a screen shows them
OPT_KEY = "opt_v2"  # (4, H, W), in the files of the previous step
L2A_KEY = "s2_l2a"  # (12, H, W) digital numbers, in tiles that have all bands
N_L2A = 12
FARTHEST = 1e9  # metres or degrees: of a transform's numbers
MOST_OFFSET = 10_000  # DN
# Stands in `source` where S1 is no plain GRD: its statistics are those of gamma0 on the terrain, not of sigma0.
RTC = "S1 is terrain-corrected (RTC, gamma0)"

S1Units = Literal["dB"]
S2Units = Literal["reflectance", "dn"]


@dataclass(frozen=True)
class About:
    """What the JSON beside a tile says."""

    split: str  # train, val or test
    block: str  # tiles of one block lie near each other and are never in two splits
    s1_units: S1Units  # backscatter in decibels
    s2_units: S2Units  # of s2_b2 ... s2_b8: reflectance, or digital numbers of which 0 means "not measured"
    s2_offset: int  # DN to add before DN / 1e4 is a reflectance: 0, or -1000 for products of baseline 04.00 and later
    pixel_m: float  # side of a pixel
    source: str  # where the tile comes from
    simulated: bool
    country: str | None = None
    date_s1: str | None = None  # YYYY-MM-DD
    date_s2: str | None = None
    crs: str | None = None  # as rasterio reads it, e.g. EPSG:32633
    transform: tuple[float, ...] | None = None  # six numbers: a, b, c, d, e, f of the pixels


@dataclass(frozen=True)
class TilePath:
    """Where a tile's two files are."""

    name: str  # tile_000
    npz: Path

    @property
    def json(self) -> Path:
        return self.npz.with_suffix(".json")


def find_tiles(data_dir: Path) -> dict[str, tuple[TilePath, ...]]:
    """Tiles of each split's folder by name.

    Raises:
        UserError: no folder of tiles, or one without any.
    """
    root = data_dir / TILES
    if not root.is_dir():
        raise UserError(
            f"{root} is not there: point --data-dir at a folder that holds tiles/train, tiles/val and tiles/test, or "
            "make one with `nbhelpers data simulate sar-grounding` or `nbhelpers data prepare tiles`."
        )
    found = {
        split: tuple(TilePath(path.stem, path) for path in sorted((root / split).glob("*.npz"))) for split in SPLITS
    }
    if empty := [split for split in SPLITS if not found[split]]:
        raise UserError(f"{root / empty[0]} holds no .npz tile: every split needs one at least.")
    return found


def write_about(npz: Path, about: About) -> None:
    """The JSON beside the tile ``npz``."""
    npz.with_suffix(".json").write_text(json.dumps(asdict(about), indent=1) + "\n", encoding="utf-8", newline="\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; ``UserError`` when it is absent, damaged or no object."""
    if not path.is_file():
        raise UserError(f"{path} is not there: every tile has a .json beside it that declares split, block and units.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): correct it, or make the tiles again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object: make the tiles again.")
    return value


def read_declared(path: Path, required: Sequence[str]) -> dict[str, Any]:
    """The JSON beside a tile, which says ``required`` things, units of S1 and S2 among them.

    Raises:
        UserError: it is absent or damaged, lacks something, declares units that are not known, a georeference that is
            none, or other things than text.
    """
    value = read_json(path)
    if absent := [key for key in required if key not in value]:
        raise UserError(f"{path} does not say {absent[0]!r}: a tile's JSON has {', '.join(required)}.")
    check_units(value, path)
    if value["s1_units"] not in get_args(S1Units):
        raise UserError(
            f"{path} declares S1 in {value['s1_units']!r}, expected 'dB': convert linear power by 10 log10(power)."
        )
    for key in ("source", "country", "date_s1", "date_s2"):
        if not isinstance(value.get(key), str | None):
            raise UserError(f"{path} has {key} {value[key]!r}, expected text: correct it.")
    check_crs(value, path)
    transform_in(value, path)
    return value


def read_about(path: Path) -> About:
    """What ``path`` says of its tile.

    Raises:
        UserError: as :func:`read_declared`, and an unknown split, a block, source, pixel or ``simulated`` that is none.
    """
    required = ("split", "block", "s1_units", "s2_units", "s2_offset", "pixel_m", "source", "simulated")
    value = read_declared(path, required)
    known = [field.name for field in fields(About)]
    if value["split"] not in SPLITS:
        raise UserError(f"{path} has split {value['split']!r}, expected one of {', '.join(SPLITS)}: correct it.")
    given = {key: value[key] for key in known if key in value}
    if type(given["pixel_m"]) in (int, float) and 0 < given["pixel_m"] < FARTHEST:
        given["pixel_m"] = float(given["pixel_m"])
    else:
        raise UserError(f"{path} has pixel_m {given['pixel_m']!r}, expected metres above 0: correct it.")
    for key, kind, what in (("block", str, "text"), ("source", str, "text"), ("simulated", bool, "true or false")):
        if not isinstance(given[key], kind):
            raise UserError(f"{path} has {key} {given[key]!r}, expected {what}: correct it.")
    given["transform"] = transform_in(value, path)
    return About(**given)


def transform_in(value: Mapping[str, Any], path: Path) -> tuple[float, ...] | None:
    """The six numbers of the pixels' transform in ``value``, read from ``path``; None where it has none."""
    if (numbers := value.get("transform")) is None:
        return None
    # Compared before they become floats, which a JSON's whole numbers may be too large for; NaN fails, too.
    if (
        not isinstance(numbers, list)
        or len(numbers) != 6
        or not all(type(number) in (int, float) and abs(number) < FARTHEST for number in numbers)
        or numbers[0] * numbers[4] == numbers[1] * numbers[3]
    ):
        raise UserError(
            f"{path} has transform {numbers!r}, expected six numbers (a, b, c, d, e, f) that give pixels an area: "
            "write those of the image, or null in both crs and transform if it has none."
        )
    return tuple(float(number) for number in numbers)


def check_crs(value: Mapping[str, Any], path: Path) -> None:
    """Raise unless ``crs`` in ``value``, read from ``path``, is one that knows where it lies on the earth, or null."""
    crs = value.get("crs")
    if crs is not None and (not isinstance(crs, str) or not _is_crs(crs)):
        raise UserError(
            f"{path} gives crs {crs!r}, which is none that knows its place on the earth: write one such as EPSG:32633, "
            "or null if the tile has none."
        )


@lru_cache(maxsize=1000)
def _is_crs(text: str) -> bool:
    try:
        crs = CRS.from_user_input(text)
        return bool(crs.is_projected or crs.is_geographic)
    except (CRSError, ValueError):
        return False


def check_units(value: Mapping[str, Any], path: Path) -> None:
    """Raise unless ``s2_units`` and ``s2_offset`` in ``value``, read from ``path``, are known ones."""
    if value["s2_units"] not in get_args(S2Units):
        raise UserError(
            f"{path} declares S2 in {value['s2_units']!r}, expected 'reflectance' (about 0 to 1) or 'dn' (reflectance "
            "x 1e4): convert the tile or correct the JSON."
        )
    offset = value["s2_offset"]
    if type(offset) is not int or abs(offset) > (0 if value["s2_units"] == "reflectance" else MOST_OFFSET):
        raise UserError(
            f"{path} has s2_offset {offset!r} for S2 in {value['s2_units']}, expected a whole number of DN (0 or "
            "-1000), and 0 for reflectance: correct it."
        )


def check_empty(folder: Path, what: str) -> None:
    """Raise unless ``folder`` is absent or empty, so that ``what`` overwrites and joins nothing."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds files already: delete it, or choose another folder for {what}.")
