"""Which optical image is refined: a previous step's, a simulated one, or the truth with noise as a stated proxy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding import layout
from nbhelpers.stages.sar_grounding.degraded import degraded, name_seed
from nbhelpers.stages.sar_grounding.layout import About
from nbhelpers.stages.sar_grounding.tile_files import check_not_truth, read_opt_v2

Array = NDArray[np.float32]
Kind = Literal["stage2", "simulated", "proxy"]

SIGMA = 0.05  # reflectance, standard deviation of the proxy's noise


@dataclass(frozen=True)
class Source:
    """Where every tile's ``opt_v2`` comes from."""

    kind: Kind
    folder: Path | None  # with tile_XXX.npz; None: the image is made from the truth

    def __str__(self) -> str:
        if self.kind == "proxy":
            return f"proxy: the true image with noise N(0, {SIGMA:g}), not the output of any previous step"
        if self.folder is None:
            return "simulated: the true image blurred, with missing structure, filled clouds and other colours"
        return f"{self.kind}: {self.folder}"

    def read(self, name: str, about: About, truth: Array) -> Array:
        """``(4, H, W)`` reflectance for the tile ``name`` whose true image is ``truth``; the same in every run.

        Raises:
            UserError: as :func:`~nbhelpers.stages.sar_grounding.tile_files.read_opt_v2`.
        """
        if self.folder is not None:
            return read_opt_v2(self.folder / f"{name}.npz", about, truth)
        if self.kind == "proxy":
            rng = np.random.default_rng(name_seed(name, salt="proxy"))
            image = truth + SIGMA * rng.standard_normal(truth.shape, np.float32)
        else:
            image = degraded(truth, seed=name_seed(name, salt="simulated"))
        check_not_truth(image, truth, f"the {self.kind} image of {name}")
        return image


def choose_source(data_dir: Path, stage2_dir: Path | None, kind: Kind | None, *, simulated: bool) -> Source:
    """What was asked for, or what there is: files of a previous step, else simulated ones, else the proxy.

    Args:
        kind: None: "stage2" with a ``stage2_dir``, else "simulated" for simulated tiles and "proxy" for real ones.
        simulated: whether the tiles are; their ``opt_v2`` lie in ``stage2_outputs`` beside them.

    Raises:
        UserError: "stage2" without a folder, a folder with another kind, or a folder that does not exist.
    """
    if kind is None:
        kind = "stage2" if stage2_dir is not None else "simulated" if simulated else "proxy"
    if kind != "stage2":
        if stage2_dir is not None:
            raise UserError(
                f"opt_v2_source is {kind!r}, but --stage2-dir {stage2_dir} is given: leave one of the two out."
            )
        return Source(kind, data_dir / layout.STAGE2 if kind == "simulated" and simulated else None)
    if stage2_dir is None:
        raise UserError("opt_v2_source is 'stage2', but no --stage2-dir is given: name the folder with tile_XXX.npz.")
    if not stage2_dir.is_dir():
        raise UserError(f"--stage2-dir {stage2_dir} is not a folder: name the one with tile_XXX.npz.")
    return Source(kind, stage2_dir)
