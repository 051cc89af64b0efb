"""Packed patches: uint16 arrays on disk that hold many patches each, and an index that says which.

A patch is one slice of a memory-mapped ``.npy`` instead of one GeoTIFF a band to open.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.disk import file_sha256
from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.patch import DEFAULT_BANDS, DTYPE, Patch, common_resolution

INDEX_NAME = "packed.json"  # written last: a folder without it is no packed set
FORMAT = 1  # of the index


@dataclass(frozen=True)
class Shard:
    """One ``.npy`` of patches of one size."""

    file: str  # its name in the folder
    shape: tuple[int, int, int, int]  # (N, C, H, W)
    bytes: int  # of the whole file
    sha256: str  # of the whole file


class PackedPatches:
    """The patches of a packed set; ``packed[i]`` reads one. Only the bands asked for are read.

    Args:
        data_dir: the folder that ``nbhelpers data pack`` wrote.
        bands: some of those that were packed.
        offset: DN to add in all patches; None: as the index says of each.

    Raises:
        UserError: no index or one that cannot be read, a band that was not packed, a shard that is absent or of
            another size than the index says.
    """

    def __init__(self, data_dir: Path, bands: Sequence[str] = DEFAULT_BANDS, *, offset: int | None = None):
        self.root = data_dir
        self.resolution = common_resolution(bands)
        self.bands = tuple(bands)
        index = _read_index(data_dir / INDEX_NAME)
        packed = index["bands"]
        if absent := [band for band in bands if band not in packed]:
            raise UserError(
                f"{data_dir} was packed with the bands {', '.join(packed)} and lacks {', '.join(absent)}: pack it "
                "again with --bands, or choose other bands."
            )
        self._columns = [packed.index(band) for band in bands]
        self.shards = tuple(Shard(**{**shard, "shape": tuple(shard["shape"])}) for shard in index["shards"])
        for shard in self.shards:
            _check_size(data_dir / shard.file, shard.bytes)
        self._where = [(number, row) for number, shard in enumerate(self.shards) for row in range(shard.shape[0])]
        self._rows = index["patches"]
        if len(self._rows) != len(self._where):
            raise UserError(
                f"{data_dir / INDEX_NAME} lists {len(self._rows)} patches, but its shards hold {len(self._where)}: "
                "pack the set again."
            )
        self._offset = offset
        self._maps: dict[int, NDArray[np.uint16]] = {}
        self.patches = tuple(
            Patch(number, row["id"], row["place"], row["country"], row["official"])
            for number, row in enumerate(self._rows)
        )

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """``(C, H, W)`` float32 DN with the offset added: reflectance times 1e4."""
        pixels, offset = self.raw(index)
        return pixels.astype(np.float32) + offset

    def raw(self, index: int) -> tuple[NDArray[np.uint16], int]:
        """``(C, H, W)`` uint16 DN, 0 where nothing was measured, and the offset that belongs to them."""
        number, row = self._where[index]
        stored = self._map(number)[row]
        # A view where all bands are wanted in their order, which is the usual case: nothing is copied.
        pixels = stored if self._columns == list(range(len(stored))) else stored[self._columns]
        return pixels, self._rows[index]["offset"] if self._offset is None else self._offset

    def georeference(self, index: int) -> tuple[str | None, tuple[float, ...]]:
        """CRS as text (None without one), and the six numbers of the transform."""
        row = self._rows[index]
        return row["crs"], tuple(row["transform"])

    def check(self) -> None:
        """Read every shard and compare it with the index.

        Raises:
            UserError: a shard whose bytes are not those that were written.
        """
        for shard in self.shards:
            if file_sha256(self.root / shard.file) != shard.sha256:
                raise UserError(
                    f"{self.root / shard.file} is damaged (its sha256 is not that of {INDEX_NAME}): copy or pack the "
                    "set again."
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a worker process maps the files itself; pickling would copy them

    def _map(self, number: int) -> NDArray[np.uint16]:
        if number not in self._maps:
            shard = self.shards[number]
            try:
                mapped = np.load(self.root / shard.file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self.root / shard.file} is damaged ({error}): copy or pack the set again."
                ) from error
            if mapped.shape != shard.shape or mapped.dtype != DTYPE:
                raise UserError(
                    f"{self.root / shard.file} holds {mapped.dtype} of shape {mapped.shape}, but the index says "
                    f"{DTYPE} of {shard.shape}: pack the set again."
                )
            self._maps[number] = mapped
        return self._maps[number]


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): pack the set again.") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(f"{path} is not an index of packed patches of format {FORMAT}: pack the set again.")
    return index


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        raise UserError(
            f"{path} {'is not there' if found is None else f'has {found} bytes'}, but the index says {size} bytes: "
            "the set was not copied whole; copy or pack it again."
        )
