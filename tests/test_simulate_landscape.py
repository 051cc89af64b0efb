"""The landscape simulator: BigEarthNet's files, georeference, and pictures with the statistics of Sentinel-2's."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scipy.ndimage import gaussian_filter, zoom

from nbhelpers.core.errors import UserError
from nbhelpers.science.landscape.regions import CROPS, MATERIALS, REGIONS, ROOFS
from nbhelpers.stages.super_resolution.folder import PatchFolder
from nbhelpers.stages.super_resolution.landscape import landscape, measure
from nbhelpers.stages.super_resolution.patch import BANDS, DEFAULT_BANDS, V2_NAME, band_file
from nbhelpers.stages.super_resolution.place import place_of, tile_in_name
from nbhelpers.stages.super_resolution.simulate import (
    MOST_PLACES,
    SQUARES,
    _place,
    simulate,
    simulation_record,
    write_scene,
)

SMALL = {"n_places": 3, "patches_per_place": 4, "bands": ("B02", "B08", "B8A", "B09"), "seed": 1, "progress": False}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("landscapes") / "data", **SMALL)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """One scene (4, 240, 240) of reflectance for each region."""
    scenes = [landscape(region, size=(240, 240), bands=DEFAULT_BANDS, seed=(4, 0)) for region in REGIONS]
    return [np.stack([scene[band] for band in DEFAULT_BANDS]) / 1e4 for scene in scenes]


def test_layout_is_bigearthnets(simulated: Path) -> None:
    root = simulated / "BigEarthNet-S2"
    assert sorted(path.name for path in simulated.iterdir()) == ["BigEarthNet-S2"]
    products = [path for path in root.iterdir() if path.is_dir()]
    assert len(products) == 3 and not list(root.glob(".*"))
    for patch in (patch for product in products for patch in product.iterdir()):
        found = V2_NAME.fullmatch(patch.name)
        assert found and found["product"] == patch.parent.name
        assert sorted(path.name for path in patch.iterdir()) == sorted(
            band_file(patch, patch.name, band).name for band in SMALL["bands"]
        )
        for band, size in (("B02", 120), ("B08", 120), ("B8A", 60), ("B09", 20)):
            with rasterio.open(band_file(patch, patch.name, band)) as file:
                assert (file.count, file.dtypes[0], file.shape) == (1, "uint16", (size, size))
                assert file.res == (1200 / size, 1200 / size)
                assert file.read(1).min() > 0


def test_patches_of_a_place_adjoin_and_lie_where_their_names_say(simulated: Path) -> None:
    boxes = defaultdict(set)
    for path in simulated.rglob("*_B02.tif"):
        with rasterio.open(path) as file:
            name = path.parent.name
            assert place_of("no name", file.crs, file.transform, file.shape) == tile_in_name(name)
            column, row = (int(n) for n in name.rsplit("_", 2)[1:])
            west, north = file.bounds.left, file.bounds.top
            assert west % 100_000 == 1200 * column and (100_000 - north % 100_000) % 100_000 == 1200 * row
            boxes[path.parent.parent.name].add((west, north))
    assert len(boxes) == 3
    for corners in boxes.values():
        west, north = min(x for x, _ in corners), max(y for _, y in corners)
        assert corners == {(west + 1200 * i, north - 1200 * j) for i in (0, 1) for j in (0, 1)}


def test_patches_are_cut_from_one_picture(simulated: Path) -> None:
    place = _place(1, seed=1, side=2)
    whole = landscape(place.region, size=(240, 240), bands=("B08",), seed=(1, 1))["B08"]
    column, row = place.first
    name = f"{place.product}_{column + 1}_{row}"  # upper right
    with rasterio.open(band_file(simulated / "BigEarthNet-S2" / place.product / name, name, "B08")) as file:
        np.testing.assert_array_equal(file.read(1), whole[:120, 120:])


def test_reader_finds_every_patch_and_one_place_a_landscape(simulated: Path) -> None:
    patches = PatchFolder(simulated, ("B02", "B08"))
    assert len(patches) == 12 and patches[0].shape == (2, 120, 120)
    assert len({patch.place for patch in patches.patches}) == 3
    assert 0.0 < patches[0].mean() / 1e4 < 0.6


def test_every_place_has_a_square_of_its_own() -> None:
    places = [_place(index, seed=0, side=16) for index in range(MOST_PLACES + len(REGIONS))]
    tiles = [tile_in_name(place.product) for place in places]
    assert None not in tiles and len(set(tiles)) == len(places)
    assert all(0 <= n <= 83 - 16 for place in places for n in place.first)
    assert [place.region for place in places[:9]] == [*REGIONS, REGIONS[0]]
    assert {"33UVQ", "29UPU"} <= set(tiles)  # real tiles of BigEarthNet: Bohemia, Ireland
    assert set(SQUARES) == {region.name for region in REGIONS}


def test_same_parameters_give_the_same_bytes_and_other_seeds_other_pictures(simulated: Path, tmp_path: Path) -> None:
    again = simulate(tmp_path / "again", **SMALL)
    assert contents(again) == contents(simulated)
    one, other = (landscape(REGIONS[0], size=(60, 60), bands=("B04",), seed=(s, 0))["B04"] for s in (1, 2))
    assert not np.array_equal(one, other)


def test_a_band_does_not_depend_on_the_others() -> None:
    region = next(region for region in REGIONS if region.lakes > 0.1)
    every = landscape(region, size=(120, 120), bands=BANDS, seed=(0, 2))
    for band in ("B02", "B11", "B09"):
        np.testing.assert_array_equal(landscape(region, size=(120, 120), bands=(band,), seed=(0, 2))[band], every[band])


def test_a_killed_simulation_goes_on_and_a_complete_one_is_left_alone(simulated: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(simulated, data)
    root = data / "BigEarthNet-S2"
    products = sorted(path for path in root.iterdir() if path.is_dir())
    files = {path: path.stat().st_mtime_ns for path in data.rglob("*.tif")}
    simulate(data, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.tif")} == files
    # as after a kill: one place lies half written in the folder for unfinished ones
    (root / ".unfinished").mkdir()
    products[1].rename(root / ".unfinished" / products[1].name)
    next((root / ".unfinished").rglob("*_B08.tif")).write_bytes(b"II*")
    assert len(PatchFolder(data, ("B02",))) == 8
    simulate(data, **SMALL)
    assert contents(data) == contents(simulated)
    kept = [path for path in files if products[1] not in path.parents]
    assert len(kept) == 32 and all(path.stat().st_mtime_ns == files[path] for path in kept)


def test_refuses_other_parameters_and_other_data(simulated: Path, tmp_path: Path) -> None:
    before = contents(simulated)
    with pytest.raises(UserError, match=r"seed=1 \(asked: 7\)"):
        simulate(simulated, **{**SMALL, "seed": 7})
    assert contents(simulated) == before
    for name in ("notes.txt", "BigEarthNet-S2/S2A_MSIL2A_20170613T101031_87_48/real.tif"):
        folder = tmp_path / name[:5]
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"someone's data")
        with pytest.raises(UserError, match="but no simulated patches"):
            simulate(folder, **SMALL)
        assert contents(folder) == {name: b"someone's data"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_places": 0}, "n_places is 0, expected 1 to 120"),
        ({"n_places": 121}, "n_places is 121"),
        ({"patches_per_place": 8}, "patches_per_place is 8, expected a square number: choose 4"),
        ({"seed": -1}, "seed is -1"),
        ({"bands": ("B10",)}, "bands are B10"),
        ({"bands": ()}, "bands are none"),
    ],
)
def test_impossible_parameters(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        simulate(tmp_path / "none", **{**SMALL, **change})
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real function answers, only the number of free bytes is another one.
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="needs .* but the disk of .* has 1.0 kB free"):
        simulate(tmp_path / "full", **SMALL)
    assert contents(tmp_path / "full") == {}


def test_says_that_it_is_simulated(simulated: Path, tmp_path: Path) -> None:
    record = simulation_record(simulated)
    assert record is not None and record == simulation_record(simulated / "BigEarthNet-S2")
    assert record["simulated"] is True
    assert {key: record[key] for key in ("n_places", "seed", "bands")} == json.loads(
        '{"n_places": 3, "seed": 1, "bands": ["B02", "B08", "B8A", "B09"]}'
    )
    assert simulation_record(tmp_path) is None


def lag_1(image: np.ndarray) -> float:
    z = image - image.mean()
    return float(((z[1:] * z[:-1]).mean() + (z[:, 1:] * z[:, :-1]).mean()) / 2 / (z**2).mean())


def slope(image: np.ndarray) -> float:
    """Of the power spectrum over wavenumber between 200 m and 20 m, in both logarithms."""
    n = len(image)
    window = np.hanning(n)[:, None] * np.hanning(n)
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n))
    edges = np.geomspace(0.05, 0.5, 9)
    mean = [power[(radius >= low) & (radius < high)].mean() for low, high in zip(edges[:-1], edges[1:], strict=True)]
    return float(np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(mean), 1)[0])


def detail_psnr(image: np.ndarray) -> float:
    """PSNR (range 1) of what four times fewer pixels a side keep: blur, mean of 4 x 4, cubic spline."""
    small = gaussian_filter(image, 1.5).reshape(len(image) // 4, 4, -1, 4).mean((1, 3))
    back = zoom(small, 4, order=3, mode="nearest", grid_mode=True)
    return float(-10 * np.log10(((back - image)[4:-4, 4:-4] ** 2).mean()))


def real_patches(real_data: Path) -> list[np.ndarray]:
    folder = PatchFolder(real_data / "bigearthnet", DEFAULT_BANDS)
    return [folder[index].astype(np.float64) / 1e4 for index in range(len(folder))]


def test_statistics_are_those_of_sentinel_2(pictures: list[np.ndarray]) -> None:
    # Bounds about the seven real samples: mean 0.015-0.083, 0.035-0.116, 0.028-0.159, 0.17-0.46 and std 0.006-0.079,
    # 0.014-0.091, 0.013-0.107, 0.035-0.128 by band; slope -2.3 to -3.8; lag-1 correlation 0.81 to 0.99.
    means = ((0.015, 0.10), (0.03, 0.14), (0.02, 0.16), (0.12, 0.50))
    deviations = ((0.004, 0.08), (0.007, 0.09), (0.007, 0.11), (0.03, 0.16))
    for picture in pictures:
        for image, (low, high), (least, most) in zip(picture, means, deviations, strict=True):
            assert low < image.mean() < high and least < image.std() < most
            assert lag_1(image) > 0.78
            assert -4.0 < slope(image) < -1.8
            assert image.min() >= 1e-4 and image.max() < 0.8
    every = [image for picture in pictures for image in picture]
    assert 0.88 < np.median([lag_1(image) for image in every]) < 0.98
    assert -3.5 < np.median([slope(image) for image in every]) < -2.0


def test_detail_and_band_correlations_are_those_of_real_patches(pictures: list[np.ndarray], real_data: Path) -> None:
    real = real_patches(real_data)

    def measured(scenes: list[np.ndarray], number: int) -> tuple[float, float]:
        correlation = [np.corrcoef(x.reshape(4, -1)) for x in scenes]
        return (
            float(np.median([detail_psnr(x[number]) for x in scenes])),
            float(np.median([c[0, 1] for c in correlation])),
        )

    for number in range(4):
        (psnr, visible), (real_psnr, real_visible) = measured(pictures, number), measured(real, number)
        assert abs(psnr - real_psnr) < 3.5  # dB; real patches differ by 13 dB among themselves
        assert visible == pytest.approx(real_visible, abs=0.1)  # blue and green
    for number in range(4):
        ratio = np.median([x[number].mean() for x in pictures]) / np.median([x[number].mean() for x in real])
        assert 0.5 < ratio < 2.0


def test_regions_differ_more_than_scenes_of_one_region() -> None:
    ndvi = []
    for region in REGIONS:
        scenes = [landscape(region, size=(120, 120), bands=("B04", "B08"), seed=(s, 0)) for s in range(3)]
        ndvi.append([np.mean((s["B08"] - 1.0 * s["B04"]) / (s["B08"] + 1.0 * s["B04"])) for s in scenes])
    within, between = np.std(ndvi, axis=1).mean(), np.std(np.mean(ndvi, axis=1))
    assert between > 1.5 * within


def test_bands_of_10_20_and_60_m_show_the_same_scene() -> None:
    for region in REGIONS:
        scene = landscape(region, size=(120, 120), bands=("B04", "B05", "B08", "B8A", "B09"), seed=(0, 5))
        blocks = scene["B08"].reshape(60, 2, 60, 2).mean((1, 3))
        assert np.corrcoef(blocks.ravel(), scene["B8A"].ravel())[0, 1] > 0.9
        coarse = scene["B8A"].reshape(20, 3, 20, 3).mean((1, 3))
        assert np.corrcoef(coarse.ravel(), scene["B09"].ravel())[0, 1] > 0.9
        # one pixel further they agree less: the grids are not shifted against each other
        shifted = np.corrcoef(blocks[:, 1:].ravel(), scene["B8A"][:, :-1].ravel())[0, 1]
        assert shifted < np.corrcoef(blocks.ravel(), scene["B8A"].ravel())[0, 1]


@pytest.mark.parametrize("metres", [10, 20, 60])
def test_the_sensor_passes_a_quarter_at_the_nyquist_frequency(metres: int) -> None:
    centre = metres / 2  # of the first pixel; cells of 5 m
    wave = np.cos(np.pi * (2.5 + 5.0 * np.arange(480) - centre) / metres)
    cells = np.broadcast_to(0.3 + 0.2 * wave, (480, 480)).astype(np.float32)
    measured = measure(cells, metres, np.random.default_rng(0))
    signs = (-1.0) ** np.arange(measured.shape[1])
    inner = slice(2, -2)
    contrast = (measured / 1e4 * signs)[inner, inner].mean() / 0.2
    assert contrast == pytest.approx(0.25, abs=0.01)
    noise = (measured[inner] / 1e4).std(axis=0).mean()
    assert noise == pytest.approx(0.0012, rel=0.2)


def test_clouds_cover_a_part_and_leave_the_rest(tmp_path: Path) -> None:
    clear, cloudy = (landscape(REGIONS[1], size=(240, 240), bands=("B02",), seed=(3, 1), clouds=c) for c in (0, 1))
    white = cloudy["B02"] > 4000
    assert 0.02 < white.mean() < 0.5 and not (clear["B02"] > 4000).any()
    untouched = np.abs(cloudy["B02"].astype(int) - clear["B02"]) < 5
    assert untouched.mean() > 0.25
    assert (cloudy["B02"][~white] < 0.8 * clear["B02"][~white]).mean() > 0.02  # their shadows


def test_a_scene_is_one_geotiff_of_a_place_that_no_data_set_holds(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "new" / "scene.tif", size=(100, 150), region="wet pasture", seed=2)
    with rasterio.open(path) as file:
        assert (file.shape, file.count, file.nodata) == ((100, 150), 4, 0)
        assert file.descriptions == DEFAULT_BANDS and set(file.dtypes) == {"uint16"}
        assert file.crs.to_epsg() in (32629, 32630) and file.res == (10.0, 10.0)
        tile = place_of("scene", file.crs, file.transform, file.shape)
        values = file.read()
    assert values.min() > 0 and 0.2 < values[3].mean() / 1e4 < 0.6
    assert tile not in {tile_in_name(_place(index, seed=2, side=1).product) for index in range(MOST_PLACES)}
    assert write_scene(tmp_path / "again.tif", size=(100, 150), region="wet pasture", seed=2).read_bytes() == (
        path.read_bytes()
    )
    coarse = write_scene(tmp_path / "coarse.tif", size=(50, 50), bands=("B05", "B11"))
    with rasterio.open(coarse) as file:
        assert file.res == (20.0, 20.0) and file.shape == (50, 50)


def test_impossible_scenes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="region is 'Mars', expected one of loess plain, "):
        write_scene(tmp_path / "scene.tif", region="Mars")
    with pytest.raises(UserError, match="size is 8 x 100"):
        write_scene(tmp_path / "scene.tif", size=(8, 100))
    with pytest.raises(UserError, match="choose bands of one resolution"):
        write_scene(tmp_path / "scene.tif", bands=("B02", "B11"))
    assert not list(tmp_path.iterdir())


def test_materials_are_complete() -> None:
    assert all(len(spectrum) == len(BANDS) for spectrum in MATERIALS.values())
    used = {material for crop in CROPS.values() for material in crop[:2]} - {"soil"}
    assert used | set(ROOFS) | {soil for region in REGIONS for soil in region.soils} <= set(MATERIALS)
    for region in REGIONS:
        assert set(region.crops) <= set(CROPS)
