"""Packing: patches from their GeoTIFFs into a few large arrays, for ``nbhelpers data pack``."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from nbhelpers.core.disk import check_room, disk_errors, file_sha256, human_bytes
from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.folder import PatchFolder
from nbhelpers.stages.super_resolution.packed import FORMAT, INDEX_NAME, Shard
from nbhelpers.stages.super_resolution.patch import DEFAULT_BANDS, DTYPE, NODATA, SIMULATION_NAME

SHARD_BYTES = 1_000_000_000
MAX_UNREADABLE = 0.001  # share of the patches that may be left out because they cannot be read
_HEADER = 128  # bytes of a .npy header, which is padded to a multiple of 64


@dataclasses.dataclass(frozen=True)
class Packing:
    """What was packed and what was left out."""

    folder: Path  # the packed set
    n_patches: int  # in it
    bytes: int  # of its shards
    unreadable: tuple[str, ...]  # a sentence for each patch that could not be read
    incomplete: tuple[str, ...]  # ids of patches with pixels that were not measured

    def __str__(self) -> str:
        text = f"{self.n_patches} patches, {human_bytes(self.bytes)}, in {self.folder}"
        if self.incomplete:
            text += f"; {len(self.incomplete)} left out for pixels without data, e.g. {self.incomplete[0]}"
        if self.unreadable:
            text += f"; {len(self.unreadable)} left out as unreadable: {self.unreadable[0]}"
        return text


def pack(
    data_dir: Path,
    to: Path,
    *,
    bands: Sequence[str] = DEFAULT_BANDS,
    offset: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Packing:
    """Write the patches of ``data_dir`` as a packed set, one patch in memory at a time.

    Everything goes to ``<to>.packing`` first, which is then renamed, so that an interrupted run leaves nothing that
    looks whole. Patches with missing pixels are left out and counted.

    Args:
        data_dir: a folder in BigEarthNet's layout.
        to: a folder that does not exist yet.
        bands: of one resolution.
        offset: DN to add in all patches; None: what each file or its name says. The index keeps it; pixels stay as
            they are.
        shard_bytes: about the size of the largest file.

    Raises:
        UserError: ``to`` exists, no room on its disk, more than 0.1 % of the patches unreadable, none usable, and what
            :class:`~nbhelpers.stages.super_resolution.folder.PatchFolder` says.
    """
    if to.exists():
        raise UserError(f"{to} exists already: give --to a new folder, or remove it first.")
    source = PatchFolder(data_dir, bands, offset=offset)
    temporary = to.with_name(to.name + ".packing")
    with disk_errors(temporary):
        shutil.rmtree(temporary, ignore_errors=True)  # of an interrupted run of ours
        temporary.mkdir(parents=True)
    try:
        with disk_errors(temporary / INDEX_NAME):
            shards, unreadable, incomplete = _write_shards(source, temporary, shard_bytes)
            index = {
                "format": FORMAT,
                "source": str(data_dir),
                "bands": list(bands),
                "resolution": source.resolution,
                "left_out": {"unreadable": unreadable, "incomplete": incomplete},
                "shards": [dataclasses.asdict(shard) for shard, _ in shards],
                "patches": [row for _, rows in shards for row in rows],
            }
            if (source.root / SIMULATION_NAME).is_file():
                shutil.copyfile(source.root / SIMULATION_NAME, temporary / SIMULATION_NAME)
            (temporary / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
            temporary.replace(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(shard.bytes for shard, _ in shards)
    return Packing(to, sum(shard.shape[0] for shard, _ in shards), size, tuple(unreadable), tuple(incomplete))


_Written = list[tuple[Shard, list[dict[str, Any]]]]


def _write_shards(source: PatchFolder, folder: Path, shard_bytes: int) -> tuple[_Written, list[str], list[str]]:
    """Shards with a row of the index for each of their patches; what could not be read; ids of incomplete patches."""
    unreadable: list[str] = []
    incomplete: list[str] = []
    open_shards: dict[tuple[int, int, int], _ShardWriter] = {}  # by the shape of their patches
    finished: _Written = []
    n_shards = 0
    try:
        for patch in tqdm(source.patches, desc="packing", unit="patch", disable=None):
            try:
                pixels, offset = source.raw(patch.index)
                crs, transform = source.georeference(patch.index)
            except UserError as error:
                unreadable.append(str(error))
                continue
            if (pixels == NODATA).any():
                incomplete.append(patch.id)
                continue
            if not open_shards and not finished:
                check_room(folder, pixels.nbytes * len(source), f"packing {len(source)} patches")
            shape = (pixels.shape[0], pixels.shape[1], pixels.shape[2])
            if shape not in open_shards:
                open_shards[shape] = _ShardWriter(folder / f"patches-{n_shards:03d}.npy", shape)
                n_shards += 1
            writer = open_shards[shape]
            row = {"id": patch.id, "place": patch.place, "country": patch.country, "official": patch.official}
            writer.add(pixels, {**row, "offset": offset, "crs": crs, "transform": transform})
            if writer.n_bytes >= shard_bytes:
                finished.append(open_shards.pop(shape).close())
    finally:
        finished += [writer.close() for writer in open_shards.values()]
    if len(unreadable) > MAX_UNREADABLE * len(source):
        raise UserError(
            f"{len(unreadable)} of {len(source)} patches in {source.root} cannot be read, more than "
            f"{MAX_UNREADABLE:.1%}: {unreadable[0]}"
        )
    if not finished:
        raise UserError(
            f"none of the {len(source)} patches in {source.root} is complete: pixels of value {NODATA} mean no data."
        )
    return sorted(finished, key=lambda written: written[0].file), unreadable, incomplete


class _ShardWriter:
    """A ``.npy`` that grows by a patch at a time; its header is written last, when their number is known."""

    def __init__(self, path: Path, shape: tuple[int, int, int]):
        self._path, self._shape, self._rows = path, shape, list[dict[str, Any]]()
        self._file = path.open("wb")
        self._file.seek(_HEADER)

    @property
    def n_bytes(self) -> int:
        return self._file.tell()

    def add(self, pixels: NDArray[np.uint16], row: dict[str, Any]) -> None:
        self._file.write(pixels.astype("<u2").tobytes())
        self._rows.append(row)

    def close(self) -> tuple[Shard, list[dict[str, Any]]]:
        shape = (len(self._rows), *self._shape)
        with self._file:
            self._file.seek(0)
            header = {"descr": np.dtype(DTYPE).newbyteorder("<").str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)
            if self._file.tell() != _HEADER:
                raise RuntimeError(f"the .npy header of {self._path} takes {self._file.tell()} bytes, not {_HEADER}")
        size = self._path.stat().st_size
        return Shard(self._path.name, shape, size, file_sha256(self._path)), self._rows
