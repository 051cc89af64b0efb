"""Super-resolved patches as images that SAR grounding refines: names, extents and units of its tiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentinel
from sar_tiles import make_tile
from sr_run import task_on

from nbhelpers import cli
from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.folder import write_tiles
from nbhelpers.stages.sar_grounding.prepare import prepare_tiles
from nbhelpers.stages.sar_grounding.tiles import open_tiles
from nbhelpers.stages.super_resolution.opt_v2_files import ForecastOptions
from nbhelpers.stages.super_resolution.predict import write_forecasts
from nbhelpers.stages.super_resolution.task import SuperResolutionTask

PATCHES = {"33UUP": 1, "29UPU": 1, "35VPK": 1, "31UFT": 1}


def write(task: SuperResolutionTask, path: Path, *, split: str = "all", tiles: Path | None = None) -> int:
    options = ForecastOptions(format="opt-v2", tiles=None if tiles is None else str(tiles))
    return write_forecasts(task, path, split=split, checkpoint="c0ffee", step=3, run="fine", options=options)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SuperResolutionTask:
    folder = tmp_path_factory.mktemp("patches")
    sentinel.write_v2(folder, PATCHES)
    return task_on(folder)


@pytest.mark.parametrize("size", [None, 60])
def test_real_pairs_from_super_resolution_to_grounding(
    real_data: Path, tmp_path: Path, size: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = real_data / "bigearthnet"
    prepare_tiles(tmp_path / "tiles", s1=root / "BigEarthNet-S1", s2=root / "BigEarthNet-S2", size=size)
    task = task_on(root)
    n = write(task, tmp_path / "opt_v2", tiles=tmp_path / "tiles")
    assert n == (4 if size is None else 16) == len(list((tmp_path / "opt_v2").glob("*.npz")))
    tiles = open_tiles(tmp_path / "tiles", stage2_dir=tmp_path / "opt_v2")
    assert tiles.opt_v2_kind == "stage2" and f"stage2: {tmp_path / 'opt_v2'}" in tiles.source
    trained_on = 0
    for name, about in tiles.about.items():
        said = json.loads((tmp_path / f"opt_v2/{name}.json").read_text())
        assert said["source"] == about.source.split()[-1], "the tile's own patch"
        assert (said["run"], said["step"], said["checkpoint"]) == ("fine", 3, "c0ffee")
        trained_on += said["split"] == "train" and about.split != "train"
        for other in tiles.about:
            errors = [np.abs(tiles.opt_v2(name) - tiles.s2(one)).mean() for one in (name, other)]
            assert errors[0] <= errors[1] and errors[0] > 1e-4, "it lies on its tile, and is not the truth"
    note = f"NOTE {trained_on} validation or test tiles are patches that the super-resolution was trained on"
    assert (note in capsys.readouterr().out) == (trained_on > 0)


def test_without_tiles_the_files_are_called_as_the_patches(task: SuperResolutionTask, tmp_path: Path) -> None:
    ids = {patch.id for patch in task.split.patches["val"]}
    assert write(task, tmp_path / "out", split="val") == len(ids) > 0
    assert {path.stem for path in (tmp_path / "out").iterdir()} == ids
    for name in ids:
        with np.load(tmp_path / f"out/{name}.npz") as file:
            assert file.files == ["opt_v2"] and file["opt_v2"].shape == (4, 48, 48)
            assert file["opt_v2"].dtype == np.float32 and 0 <= file["opt_v2"].min() <= file["opt_v2"].max() < 1
        said = json.loads((tmp_path / f"out/{name}.json").read_text())
        assert (said["s2_units"], said["s2_offset"], said["split"]) == ("reflectance", 0, "val")


def tiles_at(folder: Path, east: float, *, metres: float = 10.0, crs: str | None = "EPSG:32633") -> Path:
    """Three tiles of 24 x 24 pixels, the first of which lies near the patch of 33UUP."""
    corners = [(east, crs), (0.0, "EPSG:32634"), (9e4, "EPSG:32634")]
    return write_tiles(
        folder,
        [
            make_tile(
                number, split=split, block=split, crs=where, transform=(metres, 0.0, x, 0.0, -metres, 5400000 - 8400.0)
            )
            for number, (split, (x, where)) in enumerate(zip(("train", "val", "test"), corners, strict=True))
        ],
    )


def test_a_tile_within_a_patch_gets_its_part_of_it(task: SuperResolutionTask, tmp_path: Path) -> None:
    assert write(task, tmp_path / "one", tiles=tiles_at(tmp_path / "t", 300_000 + 70)) == 1
    assert write(task, tmp_path / "all") == 4
    (whole,) = (tmp_path / "all").glob("*T33UUP*.npz")
    with np.load(tmp_path / "one/tile_000.npz") as part, np.load(whole) as image:
        np.testing.assert_array_equal(part["opt_v2"], image["opt_v2"][:, :24, 7:31])


@pytest.mark.parametrize(
    "tiles",
    [
        {"east": 300_000 + 75.0},  # half a pixel off
        {"east": 300_000 + 250.0},  # reaches beyond the patch
        {"east": 300_000.0, "metres": 20.0},
        {"east": 300_000.0, "crs": "EPSG:32632"},
    ],
    ids=lambda tiles: str(tiles),
)
def test_tiles_on_other_grids_get_nothing(task: SuperResolutionTask, tmp_path: Path, tiles: dict[str, float]) -> None:
    with pytest.raises(UserError, match="no tile in .* lies in a patch of"):
        write(task, tmp_path / "out", tiles=tiles_at(tmp_path / "t", **tiles))
    assert not (tmp_path / "out").exists()


def test_what_is_refused(task: SuperResolutionTask, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="holds no tiles"):
        write(task, tmp_path / "out", tiles=tmp_path)
    with pytest.raises(UserError, match="gives no crs and transform"):
        write(task, tmp_path / "out", tiles=tiles_at(tmp_path / "t", 300_000, crs=None))
    sentinel.write_v2(tmp_path / "red", PATCHES, size=96, bands=("B8A", "B11", "B12"))
    red = task_on(tmp_path / "red", bands=("B8A", "B11", "B12"), rgb=("B12", "B11", "B8A"))
    with pytest.raises(UserError, match="has bands B8A, B11, B12 and no B02"):
        write(red, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    place = ["predict", "super-resolution", f"--output-dir={tmp_path}", "--run-name=none"]
    assert cli.main([*place, "--scene", "scene.tif", "--format=opt-v2"]) == 2
    assert "--format is for the images of a split: leave it out with --scene" in capfd.readouterr().err
    assert cli.main([*place, "--tiles=t"]) == 2
    assert "--tiles is given, but the format is geotiff" in capfd.readouterr().err
