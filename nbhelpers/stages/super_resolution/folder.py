"""Patches in BigEarthNet's folders, v1 and v2: which there are, where they lie, and their pixels."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.science.bigearthnet_metadata import find_metadata
from nbhelpers.science.sentinel2 import offset_in_name, offset_in_tags
from nbhelpers.stages.super_resolution.metadata import read_metadata
from nbhelpers.stages.super_resolution.patch import (
    BANDS,
    DEFAULT_BANDS,
    DTYPE,
    FOLDER,
    FOLDERS,
    V1_NAME,
    V2_NAME,
    Patch,
    band_file,
    common_resolution,
)
from nbhelpers.stages.super_resolution.place import place_of, tile_in_name

PLACES_NAME = "places.json"  # optional, beside the product folders: {"folder": "place"}, before all else


class PatchFolder:
    """The patches of one data folder; ``folder[i]`` reads one.

    Args:
        data_dir: the folder that holds the products (v2) or patches (v1), or the one above with ``BigEarthNet-S2``.
        bands: names such as B02, all of one resolution.
        offset: DN to add in all patches; None: as the GeoTIFF's tags say, else the processing baseline in the name.

    Raises:
        UserError: no such folder, no patch in it, bands of two resolutions, metadata that cannot be read.
    """

    def __init__(self, data_dir: Path, bands: Sequence[str] = DEFAULT_BANDS, *, offset: int | None = None):
        self.resolution = common_resolution(bands)
        self.root = find_root(data_dir)
        self.bands = tuple(bands)
        self.offset = offset
        found = find_metadata(self.root, self.root.parent, data_dir)
        self.metadata = read_metadata(found) if found else {}
        self._folders = _patch_folders(self.root)
        places = _places(self.root, self._folders, {name: row.patch_id for name, row in self.metadata.items()})
        self.patches = tuple(
            Patch(
                index=index,
                id=folder.name,
                place=place,
                country=row.country if (row := self.metadata.get(folder.name)) else None,
                official=row.split if row else None,
            )
            for index, (folder, place) in enumerate(zip(self._folders, places, strict=True))
        )

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """``(C, H, W)`` float32 DN with the offset added: reflectance times 1e4."""
        pixels, offset = self.raw(index)
        return pixels.astype(np.float32) + offset

    def raw(self, index: int) -> tuple[NDArray[np.uint16], int]:
        """``(C, H, W)`` uint16 DN as in the files, 0 where nothing was measured, and the offset that belongs to them.

        Raises:
            UserError: a band that is absent or unreadable, of another type or of another size than the first.
        """
        folder = self._folders[index]
        layers, tags = [], []
        for band in self.bands:
            with opened(band_file(folder, folder.name, band)) as file:
                if file.count != 1 or file.dtypes[0] not in (DTYPE, "int16"):
                    raise UserError(
                        f"{file.name} has {file.count} band(s) of {file.dtypes[0]}, expected one of {DTYPE}: it is no "
                        "patch of BigEarthNet; cut scenes with `nbhelpers data prepare super-resolution`."
                    )
                layers.append(file.read(1))
                tags.append((file.scales[0], file.offsets[0]))
        sizes = {layer.shape for layer in layers}
        if len(sizes) > 1:
            raise UserError(f"{folder} has bands of {sorted(sizes)} pixels at one resolution: fetch the patch again.")
        pixels = np.stack(layers)
        if pixels.dtype != DTYPE:
            if pixels.min() < 0:
                raise UserError(f"{folder} holds negative digital numbers: write them as {DTYPE} with an offset tag.")
            pixels = pixels.astype(DTYPE)
        if self.offset is not None:
            return pixels, self.offset
        declared = offset_in_tags(tags, str(folder))
        return pixels, offset_in_name(folder.name) if declared is None else declared

    def georeference(self, index: int) -> tuple[str | None, tuple[float, ...]]:
        """CRS as text (``EPSG:32633`` or WKT; None without one) and the six numbers of the first band's transform."""
        folder = self._folders[index]
        with opened(band_file(folder, folder.name, self.bands[0])) as file:
            return (file.crs.to_string() if file.crs else None), tuple(file.transform)[:6]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The GeoTIFF at ``path``; what GDAL says of a damaged one, on opening or reading, becomes one sentence."""
    if not path.is_file():
        raise UserError(f"{path} is not there: fetch or unpack the patch again, or choose other bands.")
    try:
        # Listing a directory of thousands of files for side-car files would cost more than the reading.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # patches without a georeference are allowed
            with rasterio.open(path) as file:
                yield file
    except RasterioError as error:
        raise UserError(f"{path} is not a readable GeoTIFF ({error}): fetch it again.") from error


def find_root(data_dir: Path) -> Path:
    """``data_dir`` itself or the ``BigEarthNet-S2`` in it (also twice, as a fetched archive is unpacked)."""
    if not data_dir.is_dir():
        raise UserError(f"data folder {data_dir} does not exist: give --data-dir the folder that holds {FOLDER}.")
    inside = next((data_dir / name for name in FOLDERS if (data_dir / name).is_dir()), None)
    return data_dir if inside is None else find_root(inside)


def _patch_folders(root: Path) -> list[Path]:
    """Folders of patches in ``root`` (v1) and in the product folders in it (v2), sorted by name."""
    found: list[Path] = []
    for folder in _subfolders(root):
        found += [folder] if _is_patch(folder) else [inner for inner in _subfolders(folder) if _is_patch(inner)]
    if not found:
        inside = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
        raise UserError(
            f"no patches such as <patch>/<patch>_B02.tif in {root} (it holds {inside}): point --data-dir at "
            f"BigEarthNet's folder, or make data with `nbhelpers data simulate super-resolution`."
        )
    return sorted(found, key=lambda folder: (folder.name, folder.parent.name))


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _is_patch(folder: Path) -> bool:
    # By the name first: asking a mounted drive about a file for each of half a million patches would take hours.
    name = folder.name
    if V2_NAME.fullmatch(name) or V1_NAME.fullmatch(name):
        return True
    return any(band_file(folder, name, band).is_file() for band in BANDS)


def _places(root: Path, folders: Sequence[Path], v2_names: Mapping[str, str]) -> list[str]:
    """A place for each patch: what the user says, the tile in a name, the georeference, the folder's name."""
    said = _said_places(root)
    by_product: dict[Path, str] = {}  # a scene that was cut into patches is one place, wherever squares end in it
    places = []
    for folder in tqdm(folders, desc="finding tiles", unit="patch", leave=False, disable=None):
        product = folder.parent
        own = product == root  # v1: no folder of a product around it
        place = said.get(folder.name if own else product.name) or tile_in_name(v2_names.get(folder.name, folder.name))
        # Names of v1 tell where in its tile a patch lies; other folders may hold patches of several tiles.
        if place is None and not own and not V1_NAME.fullmatch(folder.name):
            if product not in by_product:
                by_product[product] = tile_in_name(product.name) or _georeferenced_place(folder) or product.name
            place = by_product[product]
        places.append(place or _georeferenced_place(folder) or _product_name(folder.name))
    return places


def _said_places(root: Path) -> dict[str, str]:
    path = root / PLACES_NAME
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f'{path} cannot be read ({error}): write {{"folder": "place", …}} or remove it.') from error
    if not isinstance(said, dict) or not all(isinstance(place, str) and place for place in said.values()):
        raise UserError(f'{path} must be a JSON object of texts, {{"folder": "place", …}}: correct or remove it.')
    return said


def _georeferenced_place(folder: Path) -> str | None:
    """By the first band that can be opened; None when there is none, or none with a UTM georeference."""
    for band in BANDS:
        path = band_file(folder, folder.name, band)
        if not path.is_file():
            continue
        try:
            with opened(path) as file:
                return place_of(folder.name, file.crs, file.transform, file.shape)
        except UserError:  # a damaged band is reported when its pixels are wanted
            continue
    return None


def _product_name(name: str) -> str:
    found = V1_NAME.fullmatch(name)
    return found["product"] if found else name
