"""Refined images: windows blended without seams, new tiles without training data, files that say what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from sar_run import scenes, task_on, write_new
from sar_tiles import make_tile
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.batches import EVAL_BATCH, loader
from nbhelpers.stages.sar_grounding.blend import Windows, refine_image
from nbhelpers.stages.sar_grounding.compact import Compact
from nbhelpers.stages.sar_grounding.networks import seeded
from nbhelpers.stages.sar_grounding.opt_v3_files import ForecastOptions
from nbhelpers.stages.sar_grounding.predict import load_trained, predict_folder, write_forecasts
from nbhelpers.stages.sar_grounding.task import GroundingTask
from nbhelpers.stages.sar_grounding.tiles import open_tiles
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run

GEOTIFF, OPT_V2 = ForecastOptions(format="geotiff"), ForecastOptions(format="opt-v2")

# --- Windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 95, 96, 127, 128, 200, 321, 1000])
@pytest.mark.parametrize(("size", "overlap"), [(64, 32), (96, 32), (256, 64), (256, 128)])
def test_weights_of_all_windows_sum_to_one(n: int, size: int, overlap: int) -> None:
    windows = Windows(size, overlap)
    places, total = windows.along(n), torch.zeros(n)
    for (start, stop), weight in zip(places, windows.weights(n), strict=True):
        assert start % 32 == 0 and size <= stop - start < size + 32 or (start, stop) == (0, n)
        assert len(weight) == stop - start and float(weight.min()) > 0
        assert n == 1 or float(weight.diff().abs().max()) < 0.06, "smooth"
        total[start:stop] += weight
    assert float((total - 1).abs().max()) < 1e-6
    assert places[0][0] == 0 and places[-1][1] == n and (len(places) == 1) == (n < size + 32)
    assert all(left[1] - right[0] >= overlap for left, right in zip(places, places[1:], strict=False))


@pytest.mark.parametrize(
    ("size", "overlap", "said"),
    [(100, 32, "window is 100 pixels"), (96, 0, "overlap is 0"), (96, 64, "overlap is 64 pixels of a window of 96")],
)
def test_windows_that_cannot_be_blended(size: int, overlap: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ForecastOptions(window=size, overlap=overlap)


def generator(*, noise: float = 1e-9) -> Compact:
    """Untrained, with an output that depends on all it sees."""
    torch.manual_seed(0)
    model = Compact(
        sar_mean=(-11, -17), sar_std=(3, 3), optical_mean=(0.04, 0.07, 0.06, 0.3), optical_std=(0.02,) * 3 + (0.06,),
        residual_std=(0.01,) * 4, timesteps=2, noise=noise, fine=8, coarse=8,
    )  # fmt: skip
    torch.nn.init.normal_(model.denoiser.head.weight, std=0.1)
    return model.eval()


def scene(height: int, width: int) -> tuple[Tensor, Tensor]:
    tile = make_tile(5, size=max(height, width))
    s1, poor = torch.from_numpy(tile.s1).float(), torch.from_numpy(tile.opt_v2).float()
    return s1[:, :height, :width].contiguous(), poor[:, :height, :width].contiguous()


def refine(model: Any, s1: Tensor, opt_v2: Tensor, windows: Windows | None = None, seed: int = 1) -> Tensor:
    return refine_image(model, s1, opt_v2, noise=lambda y, x: seeded(seed, "tile", f"{y} {x}"), windows=windows)


def test_an_image_that_fits_into_a_window_is_one_window() -> None:
    s1, opt_v2 = scene(70, 101)
    alone = generator(noise=0.5)(s1[None], opt_v2[None], seeded(1, "tile", "0 0"))[0]
    torch.testing.assert_close(refine(generator(noise=0.5), s1, opt_v2), alone, rtol=0, atol=1e-7)


def test_windows_leave_no_seams() -> None:
    s1, opt_v2 = scene(160, 230)
    whole, cut = refine(generator(), s1, opt_v2), refine(generator(), s1, opt_v2, Windows(96, 32))
    detail = float((whole - opt_v2).std())
    assert detail > 1e-3
    assert float((cut - whole).square().mean().sqrt()) < 0.05 * detail
    steps = (cut - whole).diff(dim=-1).abs()
    assert float(steps.max()) < 0.3 * float((whole - opt_v2).diff(dim=-1).abs().max()), "no edge where a window ends"


def test_the_noise_is_that_of_the_seed_and_each_window_has_its_own() -> None:
    s1, opt_v2 = torch.full((2, 96, 160), -12.0), torch.full((4, 96, 160), 0.1)
    options: dict[str, Any] = {"windows": Windows(64, 32)}
    model = generator(noise=1.0)
    one = refine(model, s1, opt_v2, **options)
    assert torch.equal(one, refine(model, s1, opt_v2, **options))
    assert float((one - refine(model, s1, opt_v2, **options, seed=2)).abs().mean()) > 1e-4
    assert not torch.allclose(one[..., :32, :32], one[..., :32, 128:], atol=1e-4), "the same land, other noise"
    names = [seeded(1, f"tile_{number:04d}").initial_seed() for number in range(30)]
    assert len(set(names)) == 30, "names that differ in their last letter only"


def test_gaps_stay_gaps_and_touch_nothing_else() -> None:
    s1, opt_v2 = scene(140, 140)
    gappy, radar = opt_v2.clone(), s1.clone()
    gappy[:, :, :20] = torch.nan
    gappy[1, 77, 90] = torch.nan
    radar[:, 60:70] = torch.nan
    image = refine(generator(), radar, gappy, Windows(64, 32))
    assert torch.equal(image.isnan(), gappy.isnan()), "a band that was measured is there, and so is all without SAR"
    assert torch.equal(torch.isnan(radar[:, 60:70]), torch.ones(2, 10, 140, dtype=torch.bool)), "inputs are untouched"


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "tiles")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[GroundingTask, Run]:
    task = task_on(data, epochs=1, lpips_weight=0.0)
    run = open_run(task, tmp_path_factory.mktemp("runs"), "mine")
    fit(task, run)
    found = checkpoint.asked_for(run, "shipped")[1]
    checkpoint.load_weights(found, task.modules)
    return task, run


def written(task: GroundingTask, path: Path, split: str, options: ForecastOptions | None = None) -> int:
    return write_forecasts(task, path, split=split, checkpoint="c0ffee", step=7, run="mine", options=options)


def test_a_split_is_written_as_it_was_scored(trained: tuple[GroundingTask, Run], tmp_path: Path) -> None:
    task, _ = trained
    names = task.tiles.split["test"]
    assert written(task, tmp_path / "out", "test") == len(names) == 4
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.{end}" for name in names for end in ("npz", "json")
    )
    errors = []
    for name in names:
        with np.load(tmp_path / f"out/{name}.npz") as file:
            assert file.files == ["opt_v3"]
            errors.append(np.abs(file["opt_v3"] - task.tiles.s2(name)).mean())
    assert np.mean(errors) == pytest.approx(task.evaluate("test").metrics["mae"].value, rel=1e-4)
    about = json.loads((tmp_path / f"out/{names[0]}.json").read_text())
    assert (about["checkpoint"], about["step"], about["run"], about["split"]) == ("c0ffee", 7, "mine", "test")
    assert (about["s2_units"], about["s2_offset"]) == ("reflectance", 0)
    assert about["opt_v2"].startswith("simulated") and "simulated" in about["source"]


def test_opt_v2_files_are_the_next_runs_stage2_dir(
    trained: tuple[GroundingTask, Run], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, _ = trained
    assert written(task, tmp_path / "next", "all", OPT_V2) == 16
    assert "training tiles are refined by a model that has seen their truth" in capsys.readouterr().out
    tiles = open_tiles(data, stage2_dir=tmp_path / "next")
    names = tiles.split["val"]
    (batch,) = loader(task.tiles, names, batch_size=EVAL_BATCH)
    np.testing.assert_array_equal(np.stack([tiles.opt_v2(name) for name in names]), task.refine(batch).numpy())
    assert tiles.opt_v2_kind == "stage2"


def test_geotiffs_lie_where_their_tiles_lie(trained: tuple[GroundingTask, Run], tmp_path: Path) -> None:
    task, _ = trained
    written(task, tmp_path / "tif", "val", GEOTIFF)
    written(task, tmp_path / "npz", "val")
    for name in task.tiles.split["val"]:
        about = task.tiles.about[name]
        with rasterio.open(tmp_path / f"tif/{name}.tif") as file, np.load(tmp_path / f"npz/{name}.npz") as arrays:
            np.testing.assert_array_equal(file.read(), arrays["opt_v3"])
            assert file.crs == rasterio.CRS.from_user_input(about.crs) and file.dtypes == ("float32",) * 4
            assert tuple(file.transform)[:6] == about.transform and file.descriptions == ("B02", "B03", "B04", "B08")
            tags = file.tags()
        assert (tags["CHECKPOINT_SHA256"], tags["UNITS"], tags["STEP"]) == ("c0ffee", "reflectance", "7")
        assert tags["SOURCE"] == about.source and tags["OPT_V2"].startswith("simulated")


def test_splits_that_are_refused(trained: tuple[GroundingTask, Run], tmp_path: Path) -> None:
    task, _ = trained
    with pytest.raises(UserError, match="split 'tests' is unknown: choose one of train, val, test, all"):
        written(task, tmp_path / "out", "tests")
    with pytest.raises(UserError, match="tiles of a split are refined whole"):
        written(task, tmp_path / "out", "test", ForecastOptions(window=64, overlap=32))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/kept.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        written(task, tmp_path / "taken", "test")
    assert not (tmp_path / "out").exists() and (tmp_path / "taken/kept.txt").read_text() == "mine"


class TestNewTiles:
    @pytest.fixture
    def new(self, data: Path, tmp_path: Path) -> Path:
        """A test tile, and an image of other size in digital numbers, with gaps."""
        tiles = open_tiles(data)
        name = tiles.split["test"][0]
        about = tiles.about[name]
        place = {"crs": about.crs, "transform": about.transform, "source": "a place"}
        write_new(tmp_path / f"new/{name}.npz", tiles.s1(name), tiles.opt_v2(name), **place)
        tile = make_tile(3, size=130)
        assert tile.opt_v2 is not None
        numbers = np.round(tile.opt_v2[:, :70] * 1e4 + 1000)
        numbers[:, :9] = 0
        write_new(tmp_path / "new/odd.npz", tile.s1[:, :70], numbers, s2_units="dn", s2_offset=-1000, **place)
        return tmp_path / "new"

    def test_a_run_needs_no_training_data(self, trained: tuple[GroundingTask, Run], new: Path, tmp_path: Path) -> None:
        task, run = trained
        alone = Run(tmp_path / "elsewhere/mine")
        shutil.copytree(run.folder, alone.folder)
        record = json.loads(alone.config_file.read_text())
        record["data"] = {"source": "gone"}
        alone.config_file.write_text(json.dumps(record))
        files = predict_folder(alone, new, options=ForecastOptions(window=64, overlap=32))
        odd, scored = files
        assert [odd.stem, scored.stem] == ["odd", task.tiles.split["test"][0]], "by name"
        assert odd.parent == alone.folder / "opt_v3_new"
        model = load_trained(alone)
        for key, value in task.modules["generator"].state_dict().items():
            assert torch.equal(value.cpu(), model.generator.state_dict()[key].cpu()), key
        name = scored.stem
        with np.load(scored) as file:
            s1, opt_v2 = (torch.from_numpy(one.copy())[None] for one in (task.tiles.s1(name), task.tiles.opt_v2(name)))
            with torch.no_grad():
                expected = task.modules["generator"].eval()(s1, opt_v2, seeded(42, name))[0]
            np.testing.assert_allclose(file["opt_v3"], expected, atol=1e-6)
            batch = next(iter(task.batches("test", 0)))
            scored_one = task.refine(batch)[batch.tiles.index(name)].cpu()
            np.testing.assert_allclose(file["opt_v3"], scored_one, atol=1e-6, err_msg="another image than was scored")
        with np.load(odd) as file, np.load(new / "odd.npz") as given:
            assert file["opt_v3"].shape == (4, 70, 130)
            np.testing.assert_array_equal(np.isnan(file["opt_v3"]), given["opt_v2"] == 0)
            assert np.nanmax(np.abs(file["opt_v3"] - (given["opt_v2"] - 1000) / 1e4)) < 0.2, "reflectance"
        about = json.loads(odd.with_suffix(".json").read_text())
        assert about["checkpoint"] == model.checkpoint and about["split"] is None and about["s2_units"] == "reflectance"

    def test_the_same_in_every_call_and_in_every_format(
        self, trained: tuple[GroundingTask, Run], new: Path, tmp_path: Path
    ) -> None:
        _, run = trained
        one, again = (predict_folder(run, new, tmp_path / name) for name in ("one", "again"))
        tifs = predict_folder(run, new, tmp_path / "tif", options=GEOTIFF)
        nexts = predict_folder(run, new, tmp_path / "next", options=OPT_V2)
        for a, b, tif, after in zip(one, again, tifs, nexts, strict=True):
            with np.load(a) as x, np.load(b) as y, np.load(after) as z, rasterio.open(tif) as file:
                np.testing.assert_array_equal(x["opt_v3"], y["opt_v3"])
                np.testing.assert_array_equal(x["opt_v3"], z["opt_v2"])
                np.testing.assert_array_equal(x["opt_v3"], file.read())
                assert file.crs == rasterio.CRS.from_epsg(32633) and file.tags()["SOURCE"] == "a place"

    @pytest.mark.parametrize(
        ("about", "said"),
        [
            ({"crs": None}, "the JSON of odd gives no crs, without which a GeoTIFF lies nowhere"),
            ({"transform": None}, "gives no transform"),
            ({"crs": "EPSG:0"}, "gives crs 'EPSG:0', which is none"),
            ({"transform": [1, 2]}, "expected six numbers"),
            ({"s1_units": "power"}, "declares S1 in 'power', expected 'dB'"),
            ({"s2_units": "dn"}, "declares digital numbers"),
            ({"s2_units": None}, "does not say 's2_units'"),
            ({"key": "opt"}, "lacks opt_v2"),
            ({"opt_v2": np.full((3, 40, 40), 0.1)}, "expected (H, W), (H, W) and (4, H, W)"),
            ({"opt_v2": np.full((4, 40, 40), np.nan)}, "no pixel of opt_v2 that was measured"),
            ({"s1": np.full((2, 40, 40), 0.05)}, "linear power"),
        ],
        ids=lambda value: str(sorted(value)) if isinstance(value, dict) else "",
    )
    def test_new_tiles_that_are_refused(
        self, trained: tuple[GroundingTask, Run], tmp_path: Path, about: dict[str, Any], said: str
    ) -> None:
        tile = make_tile(3, size=40)
        place = {"crs": "EPSG:32633", "transform": [10, 0, 500_000, 0, -10, 5_000_000]}
        write_new(tmp_path / "new/odd.npz", **{"s1": tile.s1, "opt_v2": tile.opt_v2, **place, **about})
        with pytest.raises(UserError) as error:
            predict_folder(trained[1], tmp_path / "new", tmp_path / "out", options=GEOTIFF)
        assert said in str(error.value) and "odd" in str(error.value) and not (tmp_path / "out").exists()

    def test_folders_without_tiles_and_runs_of_other_stages(
        self, trained: tuple[GroundingTask, Run], new: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="is not a folder"):
            predict_folder(trained[1], tmp_path / "nowhere")
        with pytest.raises(UserError, match="holds no .npz"):
            predict_folder(trained[1], tmp_path)
        other = Run(tmp_path / "other")
        shutil.copytree(trained[1].folder, other.folder)
        other.config_file.write_text(json.dumps({**trained[1].read_config(), "stage": "perceptual-unet"}))
        with pytest.raises(UserError, match="run of stage 'perceptual-unet', not 'sar-grounding'"):
            predict_folder(other, new)
