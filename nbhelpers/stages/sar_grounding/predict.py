"""What a trained run makes of tiles: those of a split, as they were scored, and new ones, without the training data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import pick_device
from nbhelpers.core.splits import SPLITS
from nbhelpers.stages.sar_grounding.batches import eval_batch, loader
from nbhelpers.stages.sar_grounding.blend import OVERLAP, WINDOW, refine_image
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.stages.sar_grounding.networks import make_generator, seeded
from nbhelpers.stages.sar_grounding.new_tiles import open_new_tiles
from nbhelpers.stages.sar_grounding.opt_v3_files import (
    STAGE,
    ForecastOptions,
    Origin,
    Place,
    results_folder,
    write_image,
)
from nbhelpers.training import checkpoint as checkpoints
from nbhelpers.training.run import Run

if TYPE_CHECKING:
    from nbhelpers.stages.sar_grounding.task import GroundingTask

FORECASTS = "opt_v3"  # the folder in a run's folder


@dataclass(frozen=True)
class Trained:
    """The generator of a run, ready to be used without the tiles that it was trained on."""

    config: Config
    generator: nn.Module  # on `device`, in evaluation mode
    device: torch.device
    checkpoint: str  # sha256 of its weights
    step: int


def load_trained(run: Run, which: str = "shipped", *, device: torch.device | None = None) -> Trained:
    """The generator of a run. The statistics that it standardises by stand in its checkpoint.

    Args:
        which: the checkpoint, e.g. "best"; "shipped" is the average of several where there is one, else the best.
        device: None: the GPU if there is one.

    Raises:
        UserError: no run of this stage, no such checkpoint, weights that are damaged, or a frozen base that is gone.
    """
    record = run.read_config()
    if record["stage"] != STAGE:
        raise UserError(f"{run.folder} is a run of stage {record['stage']!r}, not {STAGE!r}.")
    config = Config.for_profile(record["config"]["profile"]).replace(record["config"], source=str(run.config_file))
    _, found = checkpoints.asked_for(run, which)
    generator = make_generator(config)
    checkpoints.load_weights(found, {"generator": generator})
    device = device or pick_device()
    return Trained(config, generator.to(device).eval(), device, found.sha256, found.step)


def write_forecasts(
    task: GroundingTask,
    path: Path,
    *,
    split: str,
    checkpoint: str,
    step: int,
    run: str,
    options: ForecastOptions | None = None,
) -> int:
    """Write opt_v3 of every tile of a split, the very images that a report of it is about; returns their number.

    The folder is there when all of it is, a file a tile.

    Args:
        split: "train", "val", "test", or "all" for the three of them, as a next run needs them.
        checkpoint: sha256 of the weights that ``task`` holds.
        step: of the checkpoint.
        run: its name.

    Raises:
        UserError: an unknown split, tiles without georeference for GeoTIFFs, or a folder that holds something.
    """
    options, tiles = options or ForecastOptions(), task.tiles
    if split not in (*SPLITS, "all"):
        raise UserError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}, all.")
    if (options.window, options.overlap) != (WINDOW, OVERLAP):
        raise UserError(
            "--window and --overlap are for --input-dir, tiles of a split are refined whole, as they are scored: leave "
            "them out."
        )
    splits = SPLITS if split == "all" else (split,)
    places = {
        name: Place(name, tiles.about[name].source, one, tiles.about[name].crs, tiles.about[name].transform)
        for one in splits
        for name in tiles.split[one]
    }
    _check_places(list(places.values()), options)
    if options.format == "opt-v2" and "train" in splits:
        print(
            "NOTE training tiles are refined by a model that has seen their truth, so they may look better than tiles "
            "that are new to it; the JSON beside each file says its split."
        )
    origin = Origin(run, step, checkpoint, tiles.source)
    with results_folder(path) as folder:
        for one in splits:
            for batch in loader(tiles, tiles.split[one], batch_size=eval_batch(tiles)):
                refined = task.refine(batch).cpu().masked_fill(batch.opt_v2.isnan(), torch.nan)
                for name, image in zip(batch.tiles, refined.numpy(), strict=True):
                    write_image(folder, image, places[name], origin, options.format)
    return len(places)


def predict_folder(
    run: Run,
    input_dir: Path,
    to: Path | None = None,
    *,
    which: str = "shipped",
    options: ForecastOptions | None = None,
) -> tuple[Path, ...]:
    """Refine new tiles, each of any size, with a run whose training data need not be there; returns the files.

    Args:
        input_dir: holds ``*.npz`` with s1_vv, s1_vh ``(H, W)`` and opt_v2 ``(4, H, W)``, and beside each a ``.json``
            with s1_units, s2_units and s2_offset, and for GeoTIFFs crs and transform.
        to: folder for the results; None: ``opt_v3_<name of input_dir>`` in the run's folder.
        which: the checkpoint, as for :func:`load_trained`.

    Raises:
        UserError: as :func:`load_trained` and ``new_tiles.open_new_tiles``, tiles without georeference for GeoTIFFs,
            or a folder that holds something.
    """
    options = options or ForecastOptions()
    tiles, warnings = open_new_tiles(input_dir)
    places = [Place(tile.name, tile.source, None, tile.crs, tile.transform) for tile in tiles]
    _check_places(places, options)
    trained = load_trained(run, which)
    for warning in warnings:
        print(f"WARNING: {warning}")
    path = to or run.folder / f"{FORECASTS}_{input_dir.resolve().name}"
    origin = Origin(run.name, trained.step, trained.checkpoint, str(input_dir))
    files = []
    with results_folder(path) as folder:
        for tile, place in zip(tqdm(tiles, desc="refining", unit="tile", disable=None), places, strict=True):
            s1, opt_v2 = map(torch.from_numpy, tile.read())
            image = refine_image(
                trained.generator,
                s1,
                opt_v2,
                noise=partial(_noise, trained.config.seed, tile.name),
                windows=options.windows,
                device=trained.device,
                progress=True,
            )
            files.append(write_image(folder, image.numpy(), place, origin, options.format).name)
    return tuple(path / name for name in files)


def _noise(seed: int, name: str, top: int, left: int) -> torch.Generator:
    """A tile that is one window gets the noise that it is scored with."""
    return seeded(seed, name, *([f"{top} {left}"] if top or left else []))


def _check_places(places: list[Place], options: ForecastOptions) -> None:
    if options.format == "geotiff":
        for place in places:
            place.check_georeference()
