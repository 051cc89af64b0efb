"""Aligned S1 and S2 tiles and the optical image to refine: a data folder opened, checked and kept in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from nbhelpers.core.disk import human_bytes
from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import SPLITS, hash_order
from nbhelpers.stages.sar_grounding import layout
from nbhelpers.stages.sar_grounding.layout import About, TilePath, find_tiles, read_about
from nbhelpers.stages.sar_grounding.opt_v2 import Kind, Source, choose_source
from nbhelpers.stages.sar_grounding.survey import Statistics, Survey, check_blocks, check_ground
from nbhelpers.stages.sar_grounding.tile_files import UnreadableTile, read_arrays, read_tile
from nbhelpers.stages.sar_grounding.units import Look, check_all

Array = NDArray[np.float32]

MAX_UNREADABLE = 0.001  # of the training tiles; of validation and test none, because scores would change with it
BUDGET = 4_000_000_000  # bytes of tiles in memory: 10,000 of 96 x 96 pixels are 3.7 GB


class Store:
    """Tiles as they were read, kept in memory until ``budget`` bytes are full; whatever is not kept is read again."""

    def __init__(self, paths: Mapping[str, TilePath], about: Mapping[str, About], source: Source, budget: int):
        self._paths, self._about, self._source, self._left = paths, about, source, budget
        self._kept: dict[str, tuple[Array, Array, Array]] = {}

    def __getitem__(self, name: str) -> tuple[Array, Array, Array]:
        """``(2, H, W)`` dB, ``(4, H, W)`` reflectance of the truth, and of opt_v2."""
        return self._kept[name] if name in self._kept else self.read(name)[0]

    def __getstate__(self) -> dict[str, Any]:
        """For loader processes that are started anew: they read from files instead of getting gigabytes."""
        return {**vars(self), "_kept": {}, "_left": 0}

    def holds(self, names: Collection[str]) -> bool:
        """Whether all of them are in memory."""
        return all(name in self._kept for name in names)

    def read(self, name: str) -> tuple[tuple[Array, Array, Array], Look]:
        """The tile and what was seen of it."""
        s1, s2, seen = read_tile(self._paths[name].npz, self._about[name])
        three = s1, s2, self._source.read(name, self._about[name], s2)
        for array in three:
            array.flags.writeable = False  # everyone gets the same one
        if (size := sum(array.nbytes for array in three)) <= self._left:
            self._left -= size
            self._kept[name] = three
        return three, seen


@dataclass(frozen=True, eq=False)
class Tiles:
    """A folder of tiles. Arrays are read-only; NaN where not measured."""

    folder: Path
    split: Mapping[str, tuple[str, ...]]  # train, val, test: names of tiles, sorted
    block: Mapping[str, str]  # of each tile
    about: Mapping[str, About]  # what the JSON beside each tile says
    size: tuple[int, int]  # (H, W) of every tile
    pixel_m: float  # side of a pixel
    simulated: bool
    opt_v2_kind: Kind  # where the images to refine come from
    source: str  # the same in words, for the report
    statistics: Statistics  # of the training tiles
    unreadable: Mapping[str, str]  # training tiles whose files are damaged, and why; few, or the folder does not open
    warnings: tuple[str, ...]  # what to look at before the tiles are trusted, a sentence each
    store: Store = field(repr=False)

    def s1(self, name: str) -> Array:
        """``(2, H, W)`` dB: VV, VH."""
        return self.store[name][0]

    def s2(self, name: str) -> Array:
        """``(4, H, W)`` reflectance of the true image: B2, B3, B4, B8."""
        return self.store[name][1]

    def opt_v2(self, name: str) -> Array:
        """``(4, H, W)`` reflectance of the image to refine."""
        return self.store[name][2]

    def s2_l2a(self, name: str) -> Array:
        """``(12, H, W)`` digital numbers of all bands with the offset added, NaN where not measured.

        Raises:
            UnreadableTile: the file is damaged.
            UserError: the tile has the four bands only, or other shapes.
        """
        path = self.folder / layout.TILES / self.about[name].split / f"{name}.npz"
        try:
            (stored,) = read_arrays(path, (layout.L2A_KEY,))
        except UnreadableTile:
            raise
        except UserError as error:
            raise UserError(
                f"{error} The token route learns from all {layout.N_L2A} bands of level 2A: prepare tiles from images "
                "that have them (nbhelpers data prepare tiles), or train --model terramind-backbone, which takes 4."
            ) from error
        if stored.shape != (layout.N_L2A, *self.size):
            raise UserError(
                f"{path} holds {layout.L2A_KEY} of shape {stored.shape}, expected {(layout.N_L2A, *self.size)}: write "
                "all 12 bands of level 2A on the tile's grid."
            )
        return np.where(stored == 0, np.nan, stored.astype(np.float32) + self.about[name].s2_offset).astype(np.float32)

    def check_all_bands(self) -> None:
        """See that every training tile has the 12 bands, from which tokens are learnt; damaged ones are left for later.

        Raises:
            UserError: one has not.
        """
        for name in self.split["train"]:
            with suppress(UnreadableTile):  # the loader tells of it, and a guard counts them
                self.s2_l2a(name)


def open_tiles(
    data_dir: Path,
    *,
    stage2_dir: Path | None = None,
    opt_v2_source: Kind | None = None,
    max_samples: int | None = None,
    budget: int = BUDGET,
) -> Tiles:
    """Open a folder of tiles; every tile is read once and checked.

    Args:
        data_dir: holds ``tiles/{train,val,test}/tile_XXX.npz`` and a ``.json`` beside each.
        stage2_dir: holds ``tile_XXX.npz`` with the images that a previous step made.
        opt_v2_source: "stage2", "simulated" or "proxy"; None: what there is, see ``opt_v2.choose_source``.
        max_samples: at most so many tiles of each split, chosen by a hash of their names.
        budget: bytes of memory for tiles.

    Raises:
        UserError: a file, key or declaration of the layout is absent, damaged or contradicts another; numbers in other
            units than declared; a stage-2 file that is missing or is the truth; a block or the same ground in two
            splits, the same content twice; damaged tiles beyond their budget.
    """
    if not data_dir.is_dir():
        raise UserError(f"data folder {data_dir} does not exist: give --data-dir the one that holds {layout.TILES}.")
    if max_samples is not None and max_samples < 1:
        raise UserError(f"max_samples is {max_samples}, expected 1 or more: leave it out to take all tiles.")
    paths, about = _declared(find_tiles(data_dir), max_samples)
    check_blocks(about)
    simulated, pixel_m = _one(about, "simulated", data_dir), _one(about, "pixel_m", data_dir)
    source = choose_source(data_dir, stage2_dir, opt_v2_source, simulated=simulated)
    store, survey = Store(paths, about, source, budget), Survey()
    shapes, looks, unreadable = _read_all(store, about, survey, data_dir)
    sizes = {shape: name for name, shape in shapes.items()}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise UserError(f"{first} has {one} pixels and {second} {other}: cut all tiles in {data_dir} to one size.")
    check_ground(about, shapes)
    warnings = check_all(looks, where=str(data_dir))
    if not store.holds(shapes):
        warnings = (
            *warnings,
            f"the tiles need more than {human_bytes(budget)} of memory: those beyond are read anew each time, which is "
            "slower (max_samples takes fewer of them).",
        )
    return Tiles(
        folder=data_dir,
        split={split: tuple(name for name in shapes if about[name].split == split) for split in SPLITS},
        block={name: about[name].block for name in shapes},
        about={name: about[name] for name in shapes},
        size=next(iter(sizes)),
        pixel_m=pixel_m,
        simulated=simulated,
        opt_v2_kind=source.kind,
        source=str(source),
        statistics=survey.statistics,
        unreadable=unreadable,
        warnings=warnings,
        store=store,
    )


def _declared(
    found: Mapping[str, tuple[TilePath, ...]], most: int | None
) -> tuple[dict[str, TilePath], dict[str, About]]:
    """Paths and declarations of the tiles to use, by name."""
    paths: dict[str, TilePath] = {}
    about: dict[str, About] = {}
    for split in SPLITS:
        by_name = {path.name: path for path in found[split]}
        for name in sorted(hash_order(by_name)[:most]):
            if name in paths:
                raise UserError(f"{paths[name].npz} and {by_name[name].npz} have one name: rename one of them.")
            paths[name], about[name] = by_name[name], read_about(by_name[name].json)
            if about[name].split != split:
                raise UserError(
                    f"{by_name[name].json} says split {about[name].split!r} but lies in {split}: move the tile or "
                    "correct the JSON."
                )
    return paths, about


def _one(about: Mapping[str, About], key: str, folder: Path) -> Any:
    """What all tiles declare as ``key``."""
    values = {getattr(one, key): name for name, one in about.items()}
    if len(values) > 1:
        (one, first), (other, second) = list(values.items())[:2]
        raise UserError(f"{first} has {key} {one} and {second} {other}: keep tiles of one kind in {folder}.")
    return next(iter(values))


def _read_all(
    store: Store, about: Mapping[str, About], survey: Survey, folder: Path
) -> tuple[dict[str, tuple[int, int]], dict[str, Look], dict[str, str]]:
    """Read every tile once: sizes and what was seen, by name; and the training tiles that are damaged."""
    shapes: dict[str, tuple[int, int]] = {}
    looks: dict[str, Look] = {}
    unreadable: dict[str, str] = {}
    for name in tqdm(about, desc="reading tiles", unit="tile", leave=False, disable=None):
        train = about[name].split == "train"
        try:
            three, looks[name] = store.read(name)
        except UnreadableTile as error:
            if not train:
                raise
            unreadable[name] = str(error)
            continue
        survey.add(name, *three, split=about[name].split)
        shapes[name] = (three[0].shape[1], three[0].shape[2])
    n_train = sum(one.split == "train" for one in about.values())
    if len(unreadable) > MAX_UNREADABLE * n_train:
        raise UserError(
            f"{len(unreadable)} of {n_train} training tiles in {folder} cannot be read, at most "
            f"{MAX_UNREADABLE:.1%} may be: {next(iter(unreadable.values()))}"
        )
    return shapes, looks, unreadable
