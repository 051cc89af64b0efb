"""What a trained run makes of images: the patches of a split, and whole scenes, as GeoTIFFs.

Of a scene nothing is known but itself. The network has learnt to undo a blur at one ratio of pixel sizes, as a rule
from 40 m to 10 m; on an image of 10 m pixels it makes 2.5 m, which is right as far as land and sensor look alike at
both scales. That is an assumption, it cannot be checked without a finer image, and every file that is written says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rasterio.crs import CRS
from rasterio.transform import Affine
from torch import Tensor

from nbhelpers.core.disk import whole_folder
from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import pick_device
from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.stages.super_resolution.crops import Batch
from nbhelpers.stages.super_resolution.generator import self_ensemble
from nbhelpers.stages.super_resolution.geotiff import Scene, read_scene, write_scene
from nbhelpers.stages.super_resolution.networks import degradation_of, make_networks
from nbhelpers.stages.super_resolution.opt_v2_files import ForecastOptions, channels, read_extents, write_opt_v2
from nbhelpers.stages.super_resolution.patch import Patch, common_resolution
from nbhelpers.stages.super_resolution.scene import Consistency, Network, super_resolve_scene
from nbhelpers.stages.super_resolution.units import Units
from nbhelpers.training import checkpoint
from nbhelpers.training.run import Run, writing

if TYPE_CHECKING:
    from nbhelpers.stages.super_resolution.task import SuperResolutionTask

STAGE = "super-resolution"
FORECASTS = "super_resolved"  # the folder in a run's folder
GPU_TILES = 4  # at a time


@dataclass(frozen=True)
class Trained:
    """The generator of a run, ready to be used without the data that it was trained on."""

    config: Config
    network: Network  # on `device`, in evaluation mode, in model units
    degradation: Degradation
    units: Units
    device: torch.device
    checkpoint: str  # sha256 of its weights


def load_trained(run: Run, which: str = "shipped", *, device: torch.device | None = None) -> Trained:
    """The generator of a run.

    Args:
        which: the checkpoint, e.g. "best"; "shipped" is the average of several where there is one, else the best.
        device: None: the GPU if there is one.

    Raises:
        UserError: no run of this stage, no such checkpoint, or weights that are damaged.
    """
    record = run.read_config()
    if record["stage"] != STAGE:
        raise UserError(f"{run.folder} is a run of stage {record['stage']!r}, not {STAGE!r}.")
    config = Config.for_profile(record["config"]["profile"]).replace(record["config"], source=str(run.config_file))
    _, found = checkpoint.asked_for(run, which)
    modules = make_networks(config)
    checkpoint.load_weights(found, modules)
    device = device or pick_device()
    generator = modules["generator"].to(device).eval()
    network = (lambda low: self_ensemble(generator, low)) if config.self_ensemble else generator
    return Trained(config, network, degradation_of(config), _units(config, record, run), device, found.sha256)


def _units(config: Config, record: dict, run: Run) -> Units:
    if config.scaling == "physical":
        return Units.physical(len(config.bands), maximum=config.max_reflectance)
    if "units" not in record["data"]:
        raise UserError(
            f"{run.config_file} says scaling 'percentile' and no data.units: restore the file from a copy of the run."
        )
    return Units(*(tuple(record["data"]["units"][end]) for end in ("low", "high")))


def super_resolve(trained: Trained, scene: Scene, *, progress: bool = True) -> tuple[Tensor, Consistency]:
    """``(C, s·h, s·w)`` reflectance of a scene, NaN where it was not measured, and how consistent it is."""
    return super_resolve_scene(
        trained.network,
        scene.image,
        degradation=trained.degradation,
        units=trained.units,
        device=trained.device,
        batch_size=GPU_TILES if trained.device.type == "cuda" else 1,
        consistency=trained.config.consistency,
        progress=progress,
    )


def tags(config: Config, sha256: str, scene: Scene | None = None) -> dict[str, str]:
    """What a written file says of itself.

    Args:
        sha256: of the weights.
        scene: what was enlarged; None: an image with the pixels that the network was trained for.
    """
    fine = common_resolution(config.bands)
    said = {
        "CHECKPOINT_SHA256": sha256,
        "SCALE": str(config.scale),
        "UNITS": "reflectance",
        "MTF": " ".join(f"{band}={value:g}" for band, value in zip(config.bands, config.mtf_by_band, strict=True)),
        "TRAINED": f"from {config.scale * fine} m to {fine} m",
        "REMARK": "Detail finer than the pixels of the input is estimated, not measured.",
    }
    if scene is not None:
        said |= {"SOURCE": " ".join(file.name for file in scene.source), "INPUT": scene.units}
        metres = scene.metres
        if metres is None or abs(metres / (config.scale * fine) - 1) > 0.01:
            size = "unknown size" if metres is None else f"{metres:.3g} m"
            said["REMARK"] += (
                f" The network was trained {said['TRAINED']}; its use on pixels of {size} assumes that land and blur "
                "are alike at both scales."
            )
    return said


def write_forecasts(
    task: SuperResolutionTask,
    path: Path,
    *,
    split: str,
    checkpoint: str,
    step: int | None = None,
    run: str | None = None,
    options: ForecastOptions | None = None,
) -> int:
    """Write an image of every patch of a split, made from its degraded self; returns their number.

    float32 reflectance on the grid of the patch: GeoTIFFs ``<patch>.tif``, or the tiles that SAR grounding refines. The
    folder is there when all of it is.

    Args:
        split: "train", "val", "test", or "all" for the three of them, as SAR grounding needs them.
        step: of the checkpoint, for the files of the format opt-v2.
        run: its name, the same.
        options: None: GeoTIFFs.

    Raises:
        UserError: an unknown split, a patch that cannot be read, a folder that exists and holds something, or for
            opt-v2 other bands, and tiles that show none of the patches.
    """
    options = options or ForecastOptions()
    if split not in (*task.split.patches, "all"):
        raise UserError(f"split {split!r} is unknown: choose one of {', '.join(task.split.patches)}, all.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: delete it, or choose another folder with --to.")
    splits = tuple(task.split.patches) if split == "all" else (split,)
    with writing(path), whole_folder(path) as folder:
        if options.format == "opt-v2":
            about = {"stage": STAGE, "run": run, "step": step, "checkpoint": checkpoint}
            return _write_tiles(task, folder, splits, options, about)
        for one in splits:
            for scene, patch in _super_resolved(task, one):
                write_scene(
                    folder / f"{patch.id}.tif", scene.image, like=scene, scale=1, tags=tags(task.config, checkpoint)
                )
    return sum(len(task.split.patches[one]) for one in splits)


def _super_resolved(task: SuperResolutionTask, split: str) -> Iterator[tuple[Scene, Patch]]:
    """The patches of a split, made from their degraded selves."""
    for patch in task.split.patches[split]:
        _, low = task.pair(Batch(torch.from_numpy(task.reader[patch.index])[None], (patch.index,)))
        image = task.to_reflectance(task.super_resolve(low))[0].cpu()
        crs, transform = task.patches.georeference(patch.index)
        crs = crs and CRS.from_user_input(crs)
        yield Scene(image, task.config.bands, crs, Affine(*transform), (), "reflectance"), patch


def _write_tiles(
    task: SuperResolutionTask,
    folder: Path,
    splits: Sequence[str],
    options: ForecastOptions,
    about: dict[str, Any],
) -> int:
    """Write opt_v2 of the patches, or of the tiles that lie in them; returns their number."""
    wanted, extents = channels(task.config.bands), None if options.tiles is None else read_extents(Path(options.tiles))
    n, known = 0, 0
    for split in splits:
        for scene, patch in _super_resolved(task, split):
            image = scene.image.numpy()[wanted]
            said = {**about, "source": patch.id, "split": split}
            if extents is None:
                write_opt_v2(folder, patch.id, image, said)
                n += 1
                continue
            for tile in extents if scene.crs is not None else ():
                part = tile.within(scene.crs, scene.transform, (image.shape[1], image.shape[2]))
                if part is not None:
                    write_opt_v2(folder, tile.name, image[:, part[0], part[1]], said)
                    n, known = n + 1, known + (split == "train" and tile.split != "train")
    if not n:
        raise UserError(
            f"no tile in {options.tiles} lies in a patch of {task.patches.root} ({', '.join(splits)}): give tiles of "
            "the same images, or --split all."
        )
    if known:
        print(
            f"NOTE {known} validation or test tiles are patches that the super-resolution was trained on: their opt_v2 "
            "may be better than on land that is new to it."
        )
    return n


def predict_scenes(
    run: Run, paths: Sequence[Path], to: Path | None = None, *, which: str = "shipped", offset: int | None = None
) -> Iterator[tuple[Path, Consistency]]:
    """Super-resolve scenes, each into ``<name>_x<scale>.tif``; yields the files as they get ready.

    Args:
        paths: GeoTIFFs with several bands, or folders with one file a band.
        to: folder for the results; None: ``super_resolved`` in the run's folder.
        which: the checkpoint, as for :func:`load_trained`.
        offset: DN to add in all scenes; None: what each says, whatever the training data had.

    Raises:
        UserError: as :func:`load_trained`, ``read_scene``, ``super_resolve_scene`` and ``write_scene``.
    """
    trained = load_trained(run, which)
    folder = to or run.folder / FORECASTS
    files = [folder / f"{path.name if path.is_dir() else path.stem}_x{trained.config.scale}.tif" for path in paths]
    if twice := [file.name for file in files if files.count(file) > 1]:
        raise UserError(f"two of the scenes would be written to {twice[0]}: give them one after the other, with --to.")
    for path, file in zip(paths, files, strict=True):
        scene = read_scene(path, trained.config.bands, offset=offset)
        print(f"{path}: {scene.units}")
        for warning in scene.warnings:
            print(f"WARNING: {warning}")
        image, consistency = super_resolve(trained, scene)
        said = tags(trained.config, trained.checkpoint, scene)
        write_scene(file, image, like=scene, scale=trained.config.scale, tags=said)
        yield file, consistency
