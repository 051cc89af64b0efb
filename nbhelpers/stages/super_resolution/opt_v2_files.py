"""Super-resolved patches as the files that a run of SAR grounding refines: its ``--stage2-dir``.

Such a run looks for an image by the name of a tile. A tile shows the ground of a patch, or of a part of it, and says so
by its georeference, so with a folder of tiles every image gets the name and the extent of its tile.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.patch import DEFAULT_BANDS
from nbhelpers.training.run import read_json

KEY = "opt_v2"  # of the array, (4, H, W): B2, B3, B4, B8
TOLERANCE = 0.01  # of a pixel


@dataclass(frozen=True)
class ForecastOptions:
    """What `predict` is asked for beside the split."""

    # Files to write: geotiff, or opt-v2 (npz that SAR grounding takes as --stage2-dir).
    format: Literal["geotiff", "opt-v2"] = "geotiff"
    # With opt-v2: the tiles of SAR grounding whose names and extents the images get; none: the patches' own.
    tiles: str | None = None

    def __post_init__(self) -> None:
        if self.tiles is not None and self.format != "opt-v2":
            raise UserError(f"--tiles is given, but the format is {self.format}: add --format opt-v2, or leave it out.")


@dataclass(frozen=True)
class Extent:
    """A tile, by the JSON beside it."""

    name: str
    split: str
    crs: CRS
    transform: Affine
    shape: tuple[int, int]

    def within(self, crs: CRS, transform: Affine, shape: tuple[int, int]) -> tuple[slice, slice] | None:
        """Rows and columns of a patch that the tile shows; None where it is not on its grid, or reaches beyond it."""
        size = abs(transform.a)
        alike = all(abs(self.transform[n] - transform[n]) * max(shape) < TOLERANCE * size for n in (0, 1, 3, 4))
        if not alike or self.crs != crs:
            return None
        back, x, y = ~transform, self.transform.c, self.transform.f
        places = (back.d * x + back.e * y + back.f, back.a * x + back.b * y + back.c)
        first = [round(place) for place in places]
        inside = all(0 <= start <= n - m for start, n, m in zip(first, shape, self.shape, strict=True))
        if not inside or any(abs(place - start) > TOLERANCE for place, start in zip(places, first, strict=True)):
            return None
        rows, columns = (slice(start, start + m) for start, m in zip(first, self.shape, strict=True))
        return rows, columns


def read_extents(folder: Path) -> list[Extent]:
    """All tiles of a data folder of SAR grounding.

    Raises:
        UserError: there are none, or one that does not say where it lies.
    """
    found = []
    for path in sorted(folder.glob("tiles/*/*.npz")):
        said = read_json(path.with_suffix(".json"), what="what a tile says of itself")
        if said.get("crs") is None or said.get("transform") is None:
            raise UserError(
                f"{path.with_suffix('.json')} gives no crs and transform, by which its patch is found: prepare the "
                "tiles with `nbhelpers data prepare tiles`."
            )
        try:
            crs, transform = CRS.from_user_input(said["crs"]), Affine(*said["transform"])
            with np.load(path, allow_pickle=False) as file:
                shape = file["s2_b2"].shape
        except (CRSError, TypeError, ValueError, KeyError, OSError) as error:
            raise UserError(f"{path} and its JSON are no tile ({error}): prepare the tiles again.") from error
        found.append(Extent(path.stem, path.parent.name, crs, transform, (shape[0], shape[1])))
    if not found:
        raise UserError(f"--tiles {folder} holds no tiles/*/*.npz: name the --data-dir of the SAR grounding run.")
    return found


def channels(bands: Sequence[str]) -> list[int]:
    """Where the four bands of an opt_v2 stand among those of a run.

    Raises:
        UserError: one is absent.
    """
    if absent := [band for band in DEFAULT_BANDS if band not in bands]:
        raise UserError(
            f"the run has bands {', '.join(bands)} and no {absent[0]}, but opt-v2 holds {', '.join(DEFAULT_BANDS)}: "
            "train one with these bands."
        )
    return [list(bands).index(band) for band in DEFAULT_BANDS]


def write_opt_v2(folder: Path, name: str, image: NDArray[np.float32], about: dict[str, Any]) -> None:
    """Write ``(4, H, W)`` reflectance as ``name.npz``, and beside it what is known ``about`` it."""
    arrays: dict[str, Any] = {KEY: image}
    np.savez(folder / f"{name}.npz", **arrays)
    said = {"s2_units": "reflectance", "s2_offset": 0, **about}
    (folder / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8", newline="\n")
