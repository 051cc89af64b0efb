# Super-resolve a GeoTIFF with a network that you trained in the super-resolution notebook, and look at the result.
# This cell stands alone: paste it into any notebook behind the setup cell. Without a trained run it says what to do.
from pathlib import Path

# The folder of a trained run (it holds config.json). Empty: the latest one on this machine.
RUN_FOLDER = ""  # @param {type:"string"}
# A GeoTIFF with several bands, or a folder with one file a band (R10m of a .SAFE product). Empty: a simulated scene.
SCENE = ""  # @param {type:"string"}
# Where the result goes. Empty: beside the other data, as <scene>_x<scale>.tif.
OUT = ""  # @param {type:"string"}
# Digital number added to the scene (-1000 for products since January 2022). None: as its tags or name say.
OFFSET = None  # @param {type:"raw"}
VIEW = 64  # pixels of the input along a side of what is shown, from the middle of the scene

# ruff: noqa: E402
try:
    import nbhelpers  # noqa: F401
except ModuleNotFoundError as error:
    raise RuntimeError("nbhelpers is not installed: run the setup cell (colab_cells/setup.py) first.") from error

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import workspace
from nbhelpers.stages.super_resolution.geotiff import read_scene, write_scene
from nbhelpers.stages.super_resolution.predict import STAGE, load_trained, super_resolve, tags
from nbhelpers.stages.super_resolution.simulate import write_scene as simulate_scene
from nbhelpers.training.run import Run

BRIGHTEST = 0.3  # reflectance that is white; the same stretch for every panel


def latest_run() -> Path:
    """The run of this stage that was saved last."""
    folder = workspace().output_dir
    saved = sorted(folder.glob("*/checkpoints/last.json"), key=lambda pointer: pointer.stat().st_mtime, reverse=True)
    runs = [pointer.parents[1] for pointer in saved]
    found = next((run for run in runs if Run(run).read_config()["stage"] == STAGE), None)
    if found is None:
        raise UserError(
            f"There is no trained super-resolution run in {folder}, and without one nothing to enlarge with: run the "
            "super-resolution notebook first, or set RUN_FOLDER to a run's folder (with config.json and checkpoints)."
        )
    return found


def show(low: torch.Tensor, image: torch.Tensor, rgb: list[int], scale: int) -> None:
    """The middle of the scene: as it came in, enlarged by interpolation, and super-resolved."""
    side = min(VIEW, *low.shape[-2:])
    top, left = ((n - side) // 2 for n in low.shape[-2:])
    seen = low[rgb, top : top + side, left : left + side]
    fine = image[rgb, scale * top : scale * (top + side), scale * left : scale * (left + side)]
    bicubic = F.interpolate(seen[None], scale_factor=scale, mode="bicubic")[0]
    _, axes = plt.subplots(1, 3, figsize=(13, 4.7), layout="constrained", sharex=True, sharey=True)
    titles = ("input", "bicubic interpolation", f"super-resolved, {scale} times finer")
    for one, picture, title in zip(axes, (seen, bicubic, fine), titles, strict=True):
        stretched = (picture / BRIGHTEST).clamp(0, 1).nan_to_num(0).permute(1, 2, 0)
        one.imshow(stretched, extent=(left, left + side, top + side, top), interpolation="nearest")
        one.set(title=title, xlabel="column of the input")
    axes[0].set_ylabel("row of the input")
    plt.show()


run_folder = Path(RUN_FOLDER) if RUN_FOLDER else latest_run()
trained = load_trained(Run(run_folder))
config = trained.config
print(f"Run: {run_folder} (weights {trained.checkpoint[:12]}…), x{config.scale}, on {trained.device}.")

if SCENE:
    path = Path(SCENE)
else:
    path = simulate_scene(workspace().data_dir / "simulated_scene.tif", size=(200, 240), bands=config.bands)
    print("SCENE is empty: this is a SIMULATED landscape, which shows how it works and nothing else.")
scene = read_scene(path, config.bands, offset=OFFSET)
print(f"Scene: {path}, {scene.image.shape[-2]} x {scene.image.shape[-1]} pixels, {scene.units}.")
for warning in scene.warnings:
    print(f"WARNING: {warning}")

image, consistency = super_resolve(trained, scene)
said = tags(config, trained.checkpoint, scene)
name = path.name if path.is_dir() else path.stem
out = write_scene(
    Path(OUT) if OUT else workspace().data_dir / f"{name}_x{config.scale}.tif",
    image,
    like=scene,
    scale=config.scale,
    tags=said,
)
print(
    f"Result: {out}, {image.shape[-2]} x {image.shape[-1]} pixels of float32 reflectance, NaN where nothing was seen."
)
print(f"It {consistency}.")
print(said["REMARK"])
show(scene.image, image, [config.bands.index(band) for band in config.rgb], config.scale)
