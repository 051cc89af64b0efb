# Ground optical tiles of your own with a model that you trained in the SAR-grounding notebook, and look at the result.
# This cell stands alone: paste it into any notebook behind the setup cell. Without a trained run it says what to do.
from pathlib import Path

# The folder of a trained run (it holds config.json). Empty: the latest one on this machine.
RUN_FOLDER = ""  # @param {type:"string"}
# A folder of tiles of any size: NAME.npz with s1_vv, s1_vh (H, W) in dB and opt_v2 (4, H, W: blue, green, red, NIR),
# and NAME.json with "s1_units": "dB", "s2_units": "reflectance" or "dn", "s2_offset": 0 or -1000 (DN to add), and for
# GeoTIFFs "crs" and "transform". Empty: a simulated tile.
TILES = ""  # @param {type:"string"}
# A new folder for the results. Empty: beside the other data, as <tiles>_opt_v3.
OUT = ""  # @param {type:"string"}
# npz: the array opt_v3; geotiff; opt-v2: what a next run of this stage takes as its stage2_dir.
FORMAT = "npz"  # @param ["npz", "geotiff", "opt-v2"]
VIEW, SHOWN = 256, 3  # pixels along a side of what is shown of a tile, from its middle; how many tiles are shown

# ruff: noqa: E402
try:
    import nbhelpers  # noqa: F401
except ModuleNotFoundError as error:
    raise RuntimeError("nbhelpers is not installed: run the setup cell (colab_cells/setup.py) first.") from error

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import torch

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import workspace
from nbhelpers.science.sar_agreement import agreement, optical_edges, sar_edges
from nbhelpers.stages.sar_grounding.figures import agreement_map
from nbhelpers.stages.sar_grounding.layout import RGB
from nbhelpers.stages.sar_grounding.new_tiles import open_new_tiles
from nbhelpers.stages.sar_grounding.opt_v3_files import REMARK, STAGE, ForecastOptions
from nbhelpers.stages.sar_grounding.predict import predict_folder
from nbhelpers.stages.sar_grounding.simulate import Settings, scene_tiles
from nbhelpers.training import checkpoint
from nbhelpers.training.run import Run


def latest_run() -> Path:
    """The run of this stage that was saved last."""
    folder = workspace().output_dir
    saved = sorted(folder.glob("*/checkpoints/last.json"), key=lambda pointer: pointer.stat().st_mtime, reverse=True)
    runs = [pointer.parents[1] for pointer in saved]
    found = next((run for run in runs if Run(run).read_config()["stage"] == STAGE), None)
    if found is None:
        raise UserError(
            f"There is no trained SAR-grounding run in {folder}, and without one nothing to ground with: run the "
            "SAR-grounding notebook first, or set RUN_FOLDER to a run's folder (with config.json and checkpoints)."
        )
    return found


def simulated_tiles(folder: Path) -> Path:
    """A folder with one tile as this cell takes them; its truth is known and not used."""
    tile = next(scene_tiles(Settings(n_scenes=1, size=160, seed=5), 0, split="test"))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "simulated.npz", s1_vv=tile.s1[0], s1_vh=tile.s1[1], opt_v2=tile.opt_v2)
    (folder / "simulated.json").write_text(json.dumps(dataclasses.asdict(tile.about)), encoding="utf-8")
    return folder


def new_folder(near: Path) -> Path:
    """A folder beside the other data that is not there yet, so that nothing is overwritten when the cell runs again."""
    names = (f"{near.resolve().name}_opt_v3{end}" for end in ["", *(f"_{number}" for number in range(2, 1000))])
    return next(path for name in names if not (path := workspace().data_dir / name).exists())


def read_result(path: Path) -> torch.Tensor:
    """``(4, H, W)`` reflectance of one result of any format."""
    if path.suffix == ".tif":
        with rasterio.open(path) as file:
            return torch.from_numpy(file.read())
    with np.load(path) as file:
        return torch.from_numpy(file[file.files[0]])


def middle(image: torch.Tensor) -> torch.Tensor:
    """``(1, C, h, w)`` of ``(C, H, W)``: what is shown."""
    height, width = image.shape[-2:]
    top, left = max(height - VIEW, 0) // 2, max(width - VIEW, 0) // 2
    return image[None, :, top : top + VIEW, left : left + VIEW]


def score(s1: torch.Tensor, image: torch.Tensor) -> float:
    """Agreement of structure with the SAR image, 0.5 is chance."""
    return float(agreement(sar_edges(s1), optical_edges(image)).score)


def show_row(row, name: str, s1: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
    """One tile: the SAR image, both optical ones in one stretch, and where the edges of the result are the SAR's."""
    height, width = s1.shape[-2:]
    low, high = np.nanquantile(s1[0, 0], (0.01, 0.99))
    row[0].imshow(s1[0, 0], cmap="gray", vmin=low, vmax=high)
    row[0].set(ylabel=name, xlabel=f"{low:.0f} … {high:.0f} dB")
    white = float(np.nanquantile(before[:, list(RGB)], 0.995))
    for axes, image in zip(row[1:3], (before, after), strict=True):
        picture = (image[0, list(RGB)] / white).clamp(0, 1).permute(1, 2, 0).numpy() ** (1 / 1.6)
        axes.imshow(np.where(np.isfinite(picture), picture, 0.8))  # what was not measured is light grey
        axes.set_xlabel(f"agreement with the SAR {score(s1, image):.3f}")
    found = agreement_map(s1, after)[0]
    edge = (height - found.shape[0]) / 2  # of the image, where the edge filter does not reach
    row[3].imshow(found, cmap="RdBu", vmin=-1, vmax=1, extent=(edge, width - edge, height - edge, edge))
    row[3].set(xlim=(0, width), ylim=(height, 0), xlabel="blue: edges in both, red: in one only")
    for axes in row:
        axes.set(xticks=[], yticks=[])


run = Run(Path(RUN_FOLDER) if RUN_FOLDER else latest_run())
if OUT and Path(OUT).exists():
    raise UserError(f"OUT {OUT} exists already: delete it, or name a new folder.")
which, weights = checkpoint.asked_for(run, "shipped")
print(f"Run: {run.folder} (checkpoint {which}, weights {weights.sha256[:12]}…).")
if TILES:
    folder = Path(TILES)
else:
    folder = simulated_tiles(workspace().data_dir / "simulated_tile")
    print("TILES is empty: this is a SIMULATED tile, which shows how it works and nothing else.")

files = predict_folder(run, folder, Path(OUT) if OUT else new_folder(folder), options=ForecastOptions(format=FORMAT))
print(f"Result: {len(files)} tile(s) in {files[0].parent}, float32 reflectance, NaN where opt_v2 has nothing.")
print(REMARK)
print("Agreement of structure with the SAR: 0.5 is chance; real, perfectly paired images have 0.54 to 0.79.")

tiles = open_new_tiles(folder)[0][:SHOWN]
figure, grid = plt.subplots(len(tiles), 4, figsize=(13, 3.6 * len(tiles)), layout="constrained", squeeze=False)
for axes, title in zip(grid[0], ("S1 VV", "opt_v2", "opt_v3", "agreement of opt_v3"), strict=True):
    axes.set_title(title)
for row, tile, file in zip(grid, tiles, files, strict=False):
    s1, opt_v2 = (middle(torch.from_numpy(image)) for image in tile.read())
    show_row(row, tile.name, s1, opt_v2, middle(read_result(file)))
plt.show()
