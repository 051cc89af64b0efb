"""Refined images on disk: arrays with where they come from, images that a next run refines, or GeoTIFFs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from nbhelpers import __version__
from nbhelpers.core.disk import whole_folder
from nbhelpers.core.errors import UserError
from nbhelpers.science.geotiff import write_reflectance
from nbhelpers.stages.sar_grounding.blend import OVERLAP, WINDOW, Windows
from nbhelpers.stages.sar_grounding.layout import OPT_KEY
from nbhelpers.training.run import writing

STAGE = "sar-grounding"
KEY = "opt_v3"  # of the array in files of the format npz
NAMES = ("B02", "B03", "B04", "B08")  # of a GeoTIFF's bands, as Sentinel-2's products have them
REMARK = "Structure that opt_v2 does not have is estimated from the SAR image, not measured."


@dataclass(frozen=True)
class ForecastOptions:
    """What `predict` is asked for beside the tiles."""

    # Files to write: npz (array opt_v3), opt-v2 (what the next run takes as --stage2-dir), geotiff.
    format: Literal["npz", "opt-v2", "geotiff"] = "npz"
    # Side of the windows that images of --input-dir are cut into, in pixels; tiles of a split are refined whole.
    window: int = WINDOW
    # Pixels at least that two neighbouring windows share.
    overlap: int = OVERLAP

    def __post_init__(self) -> None:
        self.windows  # noqa: B018 - a length that makes no sense is said at once

    @property
    def windows(self) -> Windows:
        return Windows(self.window, self.overlap)


@dataclass(frozen=True)
class Origin:
    """What refined images were made by."""

    run: str  # its name
    step: int  # of the checkpoint
    checkpoint: str  # sha256 of its weights
    opt_v2: str  # what was refined, in words


@dataclass(frozen=True)
class Place:
    """One image's name and where it lies."""

    name: str
    source: str | None  # where the tile comes from
    split: str | None  # None: of no data set
    crs: str | None
    transform: tuple[float, ...] | None  # six numbers

    def check_georeference(self) -> None:
        """Raise unless a GeoTIFF of this image would lie somewhere."""
        if self.crs is None or self.transform is None:
            raise UserError(
                f"the JSON of {self.name} gives no {'crs' if self.crs is None else 'transform'}, without which a "
                "GeoTIFF lies nowhere: add crs and transform to it, or write --format npz."
            )
        try:
            CRS.from_user_input(self.crs)
        except CRSError as error:
            raise UserError(
                f"the JSON of {self.name} gives crs {self.crs!r}, which is none ({error}): write one such as "
                "EPSG:32633, or write --format npz."
            ) from error


@contextmanager
def results_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes ``path`` when all images are in it.

    Raises:
        UserError: ``path`` exists and holds something, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: delete it, or choose another folder with --to.")
    with writing(path), whole_folder(path) as part:
        yield part


def write_image(folder: Path, image: NDArray[np.float32], place: Place, origin: Origin, kind: str) -> Path:
    """Write one refined image and return its file.

    Args:
        image: ``(4, H, W)`` float32 reflectance, NaN where opt_v2 was not measured.
        kind: as ``ForecastOptions.format``. The first two put a JSON beside the array.
    """
    if kind == "geotiff":
        assert place.transform is not None  # checked before anything was refined
        tags = {
            "UNITS": "reflectance", "CHECKPOINT_SHA256": origin.checkpoint, "RUN": origin.run, "STEP": str(origin.step),
            "SOURCE": place.source or place.name, "OPT_V2": origin.opt_v2, "REMARK": REMARK,
        }  # fmt: skip
        transform, path = Affine(*place.transform), folder / f"{place.name}.tif"
        return write_reflectance(path, image, bands=NAMES, crs=place.crs, transform=transform, tags=tags)
    arrays: dict[str, Any] = {KEY if kind == "npz" else OPT_KEY: image}
    path = folder / f"{place.name}.npz"
    np.savez(path, **arrays)
    about = {
        "s2_units": "reflectance",
        "s2_offset": 0,
        "stage": STAGE,
        "run": origin.run,
        "step": origin.step,
        "checkpoint": origin.checkpoint,
        "opt_v2": origin.opt_v2,
        "source": place.source,
        "split": place.split,
        "crs": place.crs,
        "transform": place.transform,
        "remark": REMARK,
        "version": __version__,
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8", newline="\n")
    return path
