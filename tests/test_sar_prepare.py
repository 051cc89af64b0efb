"""Tiles from BigEarthNet's pairs and from GeoTIFFs: which images belong together, and which ground they show."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine
from sar_tiles import make_tile, measured

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.grids import Grid, blocks_of, shared_part
from nbhelpers.stages.sar_grounding.layout import RTC
from nbhelpers.stages.sar_grounding.prepare import prepare_tiles
from nbhelpers.stages.sar_grounding.tiles import open_tiles

SIZE = 40
PLACES = {"elbe": (400_000, 5_900_000), "oder": (480_000, 5_800_000), "main": (560_000, 5_500_000)}


def write_tif(path: Path, image: NDArray, corner: tuple[float, float] | None, **options: Any) -> None:
    """(C, H, W) with pixels of 10 m in UTM zone 32."""
    names, tags, scales = (options.pop(key, None) for key in ("names", "tags", "scales"))
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(image), "height": image.shape[1], "width": image.shape[2]}
    if corner is not None:
        metres = options.pop("metres", 10)
        profile |= {"crs": "EPSG:32632", "transform": Affine(metres, 0, corner[0], 0, -metres, corner[1])}
    with rasterio.open(path, "w", **{"dtype": image.dtype, **profile, **options}) as file:
        file.write(image)
        for number, name in enumerate(names or (), 1):
            file.set_band_description(number, name)
        if scales:
            file.scales, file.offsets = ([value] * len(image) for value in scales)
        file.update_tags(**(tags or {}))


def images(seed: int, *, size: int = SIZE, offset: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """S1 in dB and the four bands of S2 in digital numbers."""
    tile = make_tile(seed, size=size)
    return tile.s1.astype(np.float32), np.round(tile.s2 * 1e4 - offset).astype(np.uint16)


def write_pairs(root: Path, names: Sequence[str] = tuple(PLACES), **options: Any) -> dict[str, Path]:
    """A GeoTIFF of S1 and one of S2 for each place."""
    for number, name in enumerate(names):
        s1, s2 = images(number)
        write_tif(root / "S1" / f"{name}.tif", s1, PLACES[name])
        write_tif(root / "S2" / f"{name}.tif", s2, PLACES[name], **options)
    return {"s1": root / "S1", "s2": root / "S2"}


class TestRealData:
    def test_bigearthnet_pairs_are_those_that_the_json_names(self, real_data: Path, tmp_path: Path) -> None:
        root = real_data / "bigearthnet"
        done = prepare_tiles(tmp_path / "tiles", s1=root / "BigEarthNet-S1", s2=root / "BigEarthNet-S2")
        assert sum(done.tiles.values()) == 4 and done.all_bands and not done.warnings and "4 block" not in str(done)
        tiles = open_tiles(tmp_path / "tiles")
        assert tiles.size == (120, 120) and tiles.source.startswith("proxy: ") and not tiles.simulated
        seen = {}
        for name, about in tiles.about.items():
            _, _, patch_s1, _, patch_s2 = about.source.split()
            (found,) = (root / "BigEarthNet-S1").glob(f"{patch_s1}/*_VH.tif")
            with rasterio.open(found) as file:
                np.testing.assert_array_equal(tiles.s1(name)[1], file.read(1))
                assert tuple(file.transform)[:6] == about.transform and about.crs == file.crs.to_string()
            with rasterio.open(root / "BigEarthNet-S2" / patch_s2 / f"{patch_s2}_B08.tif") as file:
                np.testing.assert_allclose(tiles.s2(name)[3], file.read(1) / 1e4, rtol=1e-6)
            with rasterio.open(root / "BigEarthNet-S2" / patch_s2 / f"{patch_s2}_B11.tif") as file:
                np.testing.assert_array_equal(tiles.s2_l2a(name)[10, ::2, 1::2], file.read(1))
            seen[patch_s1] = (patch_s2, about.date_s1, about.date_s2)
        assert seen["S1A_IW_GRDH_1SDV_20170925T043256_35VPK_69_24"] == (
            "S2B_MSIL2A_20170924T93020_69_24",
            "2017-09-25",
            "2017-09-24",
        )

    def test_geotiffs_of_equal_names(self, real_data: Path, tmp_path: Path) -> None:
        root = real_data / "s1s2_tiles"
        done = prepare_tiles(tmp_path / "tiles", s1=root / "S1RTC", s2=root / "S2L2A", size=96)
        assert done.tiles == {"train": 4, "val": 4, "test": 4}
        tiles = open_tiles(tmp_path / "tiles", opt_v2_source="simulated")
        name = tiles.split["train"][0]
        about = tiles.about[name]
        scene = about.source.split()[0].split("/")[1]
        with rasterio.open(root / "S1RTC" / scene) as one, rasterio.open(root / "S2L2A" / scene) as other:
            left, top = one.transform.c, one.transform.f
            column, row = round((about.transform[2] - left) / 10), round((top - about.transform[5]) / 10)
            window = (slice(row, row + 96), slice(column, column + 96))
            np.testing.assert_allclose(tiles.s1(name), one.read()[(..., *window)], rtol=1e-6)
            np.testing.assert_array_equal(tiles.s2_l2a(name), other.read()[(..., *window)])
            np.testing.assert_allclose(tiles.s2(name), other.read([2, 3, 4, 8])[(..., *window)] / 1e4, rtol=1e-6)
            assert about.date_s1 == one.tags()["datetime"][:10]
        assert all(about.source.endswith(RTC) for about in tiles.about.values())

    def test_a_patch_without_its_partner(self, real_data: Path, tmp_path: Path) -> None:
        root = real_data / "bigearthnet"
        shutil.copytree(root / "BigEarthNet-S2", tmp_path / "S2")
        gone = tmp_path / "S2" / "S2A_MSIL2A_20170617T113321_4_55"
        gone.chmod(0o755)
        shutil.rmtree(gone)
        with pytest.raises(UserError, match=f"names {gone.name}, which is not in .*S2"):
            prepare_tiles(tmp_path / "tiles", s1=root / "BigEarthNet-S1", s2=tmp_path / "S2")
        with pytest.raises(UserError, match="corresponding_s2_patch"):
            prepare_tiles(tmp_path / "tiles", s1=root / "BigEarthNet-S2", s2=root / "BigEarthNet-S1")
        assert not (tmp_path / "tiles").exists()


class TestPairs:
    def test_names_dates_and_offsets_come_from_the_files(self, tmp_path: Path) -> None:
        for number, place in enumerate(PLACES):
            s1, s2 = images(number, offset=-1000)
            name = f"{place}_20230601T103629_N0509_x"
            write_tif(tmp_path / "S1" / f"{name}.tif", s1[::-1], PLACES[place], names=("VH", "VV"))
            write_tif(tmp_path / "S2" / f"{name}.tif", s2[::-1], PLACES[place], names=("B8", "B4", "B3", "B2"))
        done = prepare_tiles(tmp_path / "tiles", s1=tmp_path / "S1", s2=tmp_path / "S2")
        assert not done.all_bands and not done.warnings and "4 bands" in str(done)
        tiles = open_tiles(tmp_path / "tiles")
        for number, place in enumerate(PLACES):
            (name,) = (name for name, about in tiles.about.items() if place in about.source)
            expected = make_tile(number, size=SIZE)
            assert tiles.about[name].s2_offset == -1000 and tiles.about[name].date_s2 == "2023-06-01"
            np.testing.assert_allclose(tiles.s1(name), expected.s1, rtol=1e-5)
            np.testing.assert_allclose(tiles.s2(name), expected.s2, atol=6e-5)

    @pytest.mark.parametrize(("folder", "said"), [("sentinel-1-rtc", True), ("S1GRD", False), ("ARTCENTRE", False)])
    def test_terrain_corrected_images_are_told_by_their_names(self, tmp_path: Path, folder: str, said: bool) -> None:
        folders = write_pairs(tmp_path)
        folders["s1"] = folders["s1"].rename(tmp_path / folder)
        prepare_tiles(tmp_path / "tiles", **folders)
        assert {RTC in about.source for about in open_tiles(tmp_path / "tiles").about.values()} == {said}

    def test_an_undeclared_offset_is_a_warning_and_can_be_given(self, tmp_path: Path) -> None:
        folders = write_pairs(tmp_path)
        for number, name in enumerate(PLACES):
            write_tif(tmp_path / "S2" / f"{name}.tif", images(number, offset=-1000)[1], PLACES[name])
        done = prepare_tiles(tmp_path / "a", **folders)
        assert len(done.warnings) == 3 and "give offset -1000" in str(done)
        assert prepare_tiles(tmp_path / "b", offset=-1000, **folders).warnings == ()
        low, high = (open_tiles(tmp_path / name).statistics.s2_mean[0] for name in "ba")
        assert high - low == pytest.approx(0.1, abs=1e-3)

    def test_gaps_are_not_data(self, tmp_path: Path) -> None:
        folders = write_pairs(tmp_path)
        s1, s2 = images(0)
        s1[:, :4], s2[:, -2:] = -9999, 0
        write_tif(tmp_path / "S1" / "elbe.tif", s1, PLACES["elbe"], nodata=-9999)
        write_tif(tmp_path / "S2" / "elbe.tif", s2, PLACES["elbe"])
        prepare_tiles(tmp_path / "tiles", **folders)
        tiles = open_tiles(tmp_path / "tiles")
        (name,) = (name for name, about in tiles.about.items() if "elbe" in about.source)
        valid = measured(tiles, name)
        assert not valid[:4].any() and not valid[-2:].any() and valid[4:-2].all()

    def test_tiles_with_many_gaps_are_left_out_and_counted(self, tmp_path: Path) -> None:
        folders = write_pairs(tmp_path)
        s2 = images(0)[1]
        s2[:, :20, :20] = 0
        write_tif(tmp_path / "S2" / "elbe.tif", s2, PLACES["elbe"])
        done = prepare_tiles(tmp_path / "tiles", size=20, **folders)
        assert done.left_out == 1 and sum(done.tiles.values()) == 11 and "1 tiles with gaps" in str(done)

    @pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("extra", "lone.tif has no partner of that name"),
            ("three bands", "no B08 that can be told|no B02 that can be told"),
            ("one channel", "expected two, VV and VH"),
            ("linear", "linear power"),
            ("reflectance", "these are reflectances"),
            ("no georeference", "has no georeference"),
            ("degrees", "pixels in degrees"),
            ("damaged", "main.tif cannot be read"),
            ("small", "fewer than a tile of 41"),
        ],
    )
    def test_what_cannot_become_tiles(self, tmp_path: Path, what: str, message: str) -> None:
        folders = write_pairs(tmp_path)
        s1, s2 = images(2)
        at = PLACES["main"]
        s1_file, s2_file = tmp_path / "S1" / "main.tif", tmp_path / "S2" / "main.tif"
        if what == "extra":
            write_tif(tmp_path / "S1" / "lone.tif", s1, at)
        elif what == "three bands":
            write_tif(s2_file, s2[:3], at)
        elif what == "one channel":
            write_tif(s1_file, s1[:1], at)
        elif what == "linear":
            write_tif(s1_file, 10 ** (s1 / 10), at)
        elif what == "reflectance":
            write_tif(s2_file, (s2 / 1e4).astype(np.float32), at)
        elif what == "no georeference":
            write_tif(s1_file, s1, None)
        elif what == "degrees":
            write_tif(s1_file, s1, None, crs="EPSG:4326", transform=Affine(1e-4, 0, 9, 0, -1e-4, 50))
        elif what == "damaged":
            s2_file.write_bytes(b"II*\0 nothing")
        size = 41 if what == "small" else None
        with pytest.raises(UserError, match=message):
            prepare_tiles(tmp_path / "tiles", size=size, **folders)
        assert not (tmp_path / "tiles").exists() and not (tmp_path / "tiles.part").exists()

    def test_reflectances_are_taken_when_declared(self, tmp_path: Path) -> None:
        folders = write_pairs(tmp_path)
        for number, name in enumerate(PLACES):
            reflectance = (images(number)[1] / 1e4).astype(np.float32)
            write_tif(tmp_path / "S2" / f"{name}.tif", reflectance, PLACES[name])
        assert not prepare_tiles(tmp_path / "tiles", s2_units="reflectance", **folders).all_bands
        tiles = open_tiles(tmp_path / "tiles")
        assert {round(float(tiles.s2(name)[3].mean()), 3) for name in tiles.block} == {
            round(float(images(number)[1][3].mean() / 1e4), 3) for number in range(len(PLACES))
        }

    def test_nothing_there(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="holds no S1 images"):
            prepare_tiles(tmp_path / "tiles", s1=tmp_path / "empty", s2=tmp_path / "empty")
        with pytest.raises(UserError, match="is not a folder"):
            prepare_tiles(tmp_path / "tiles", s1=tmp_path / "none", s2=tmp_path / "empty")


class TestGrids:
    def test_a_plain_crop_aligns(self, tmp_path: Path) -> None:
        folders = write_pairs(tmp_path)
        s1, s2 = images(7, size=SIZE + 12)
        east, north = PLACES["elbe"]
        write_tif(tmp_path / "S1" / "elbe.tif", s1[:, 4:44, 6:46], (east + 60, north - 40))
        write_tif(tmp_path / "S2" / "elbe.tif", s2[:, :, :], (east, north))
        prepare_tiles(tmp_path / "tiles", **folders)
        tiles = open_tiles(tmp_path / "tiles")
        (name,) = (name for name, about in tiles.about.items() if "elbe" in about.source)
        np.testing.assert_array_equal(tiles.s1(name), s1[:, 4:44, 6:46])
        np.testing.assert_allclose(tiles.s2(name), s2[:, 4:44, 6:46] / 1e4, rtol=1e-6)
        assert tiles.about[name].transform == (10, 0, east + 60, 0, -10, north - 40)

    @pytest.mark.parametrize(
        "other",
        [
            Grid("EPSG:32632", (10, 0, 400_003, 0, -10, 5_900_000), (40, 40)),
            Grid("EPSG:32632", (20, 0, 400_000, 0, -20, 5_900_000), (40, 40)),
            Grid("EPSG:32632", (10, 0, 400_000, 0, -10.002, 5_900_000), (400, 400)),
            Grid("EPSG:32633", (10, 0, 400_000, 0, -10, 5_900_000), (40, 40)),
        ],
    )
    def test_other_grids_are_an_error_that_names_both(self, other: Grid) -> None:
        one = Grid("EPSG:32632", (10, 0, 400_000, 0, -10, 5_900_000), (40, 40))
        with pytest.raises(UserError, match=r"a.tif has 40 x 40 pixels of 10 x 10 .* and b.tif \d+ x .*different"):
            shared_part(one, other, ("a.tif", "b.tif"))

    def test_no_common_ground(self) -> None:
        one, far = (Grid("EPSG:32632", (10, 0, east, 0, -10, 5_900_000), (40, 40)) for east in (400_000, 400_400))
        with pytest.raises(UserError, match="no common ground"):
            shared_part(one, far, ("a.tif", "b.tif"))

    def test_blocks_are_neighbourhoods(self) -> None:
        def grid(east: float, north: float, size: int = 120) -> Grid:
            return Grid("EPSG:32632", (10, 0, east, 0, -10, north), (size, size))

        rows = {f"{x} {y}": grid(400_000 + 1200 * x, 5_900_000 - 1200 * y) for x in range(30) for y in range(30)}
        found = blocks_of(rows, block_km=10)
        sizes = np.unique(list(found.values()), return_counts=True)[1]
        assert 9 <= len(sizes) <= 25 and sizes.max() <= 90  # 36 km x 36 km in squares of 10 km
        # An image across many squares joins them: no ground may be in two blocks.
        across = {**rows, "scene": grid(400_000, 5_900_000, 3600)}
        assert len(set(blocks_of(across, block_km=10).values())) == 1

    def test_blocks_hold_across_projections(self) -> None:
        """The same ground in two UTM zones."""
        near = Grid("EPSG:32632", (10, 0, 690_000, 0, -10, 5_500_000), (300, 300))
        from rasterio.warp import transform

        (east,), (north,) = transform("EPSG:32632", "EPSG:32633", [690_500], [5_499_500])
        same = Grid("EPSG:32633", (10, 0, east, 0, -10, north), (300, 300))
        far = Grid("EPSG:32633", (10, 0, east + 60_000, 0, -10, north), (300, 300))
        found = blocks_of({"near": near, "same": same, "far": far}, block_km=1)
        assert found["near"] == found["same"] != found["far"]

    def test_too_few_places_for_a_split(self, tmp_path: Path) -> None:
        folders = write_pairs(tmp_path, ("elbe", "oder"))
        with pytest.raises(UserError, match=r"2 block\(s\) of neighbours"):
            prepare_tiles(tmp_path / "tiles", **folders)
