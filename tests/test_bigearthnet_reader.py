"""BigEarthNet's folders, v1 and v2: which patches there are, where they lie, what their numbers mean; and cutting."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zstandard
from numpy.typing import NDArray
from rasterio.transform import Affine
from sentinel import TILES, product, real_places, scene, write_metadata, write_v1, write_v2

from nbhelpers.cli import main
from nbhelpers.core.errors import UserError
from nbhelpers.core.manifest_format import load_manifest
from nbhelpers.core.unpack import unpack
from nbhelpers.science.sentinel2 import LEVEL_1C, band_in, offset_in_name
from nbhelpers.stages.super_resolution.cut import cut_scenes
from nbhelpers.stages.super_resolution.folder import PLACES_NAME, PatchFolder
from nbhelpers.stages.super_resolution.geotiff import read_scene
from nbhelpers.stages.super_resolution.patch import (
    BANDS,
    DEFAULT_BANDS,
    FOLDER,
    FOLDERS,
    band_file,
    common_resolution,
    write_patch,
)
from nbhelpers.stages.super_resolution.place import mgrs_square, tile_in_name

# --- bands and names ----------------------------------------------------------------------------------------------


def test_bands_are_those_of_the_archive_in_order() -> None:
    assert " ".join(BANDS) == "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12"
    assert (common_resolution(DEFAULT_BANDS), common_resolution(["B05", "B8A"])) == (10, 20)


@pytest.mark.parametrize("bands", [[], ["B10"], ["B02", "B02"], ["red"]])
def test_unknown_bands(bands: list[str]) -> None:
    with pytest.raises(UserError, match="some of B01, B02"):
        common_resolution(bands)


def test_bands_of_two_resolutions() -> None:
    with pytest.raises(UserError, match="B02 has pixels of 10 m and band B05 of 20 m"):
        common_resolution(["B02", "B05"])


# --- layouts ------------------------------------------------------------------------------------------------------


def test_v2_pixels_places_and_georeference(tmp_path: Path) -> None:
    ids = write_v2(tmp_path, {"33UUP": 2, "29UPU": 1})
    folder = PatchFolder(tmp_path)
    assert sorted(ids) == [patch.id for patch in folder.patches]
    assert [patch.place for patch in folder.patches] == ["29UPU", "33UUP", "33UUP"]
    expected = scene(1)  # the second patch of the first tile
    index = next(patch.index for patch in folder.patches if patch.id == ids[1])
    image = folder[index]
    assert image.dtype == np.float32 and image.shape == (4, 48, 48)
    assert (image == np.stack(list(expected.values()))).all()
    crs, transform = folder.georeference(index)
    assert (crs, transform) == ("EPSG:32633", (10.0, 0.0, 301200.0, 0.0, -10.0, 5391600.0))


def test_bands_come_in_the_order_asked_for(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 1})
    assert (PatchFolder(tmp_path, ["B08", "B02"])[0] == PatchFolder(tmp_path)[0][[3, 0]]).all()


def test_20_m_bands(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 1}, bands=("B05", "B11"))
    folder = PatchFolder(tmp_path, ["B11", "B05"])
    assert folder[0].shape == (2, 24, 24) and folder.resolution == 20
    assert folder.georeference(0)[1][0] == 20.0


@pytest.mark.parametrize("levels", [(), (FOLDER,), (FOLDER, FOLDER)])
def test_root_may_be_given_at_any_level(tmp_path: Path, levels: tuple[str, ...]) -> None:
    write_v2(tmp_path.joinpath(*levels[1:]), {"33UUP": 1})
    found = [PatchFolder(tmp_path.joinpath(*levels[:depth])).patches for depth in range(len(levels) + 1)]
    assert all(patches == found[0] for patches in found)


def test_v1_places_come_from_the_georeference(tmp_path: Path) -> None:
    # Column 87 of tile 33UUP lies in the next square, 33UVP: only the tile's own corner tells the tile.
    write_v1(tmp_path, "33UUP", [3, 87])
    write_v1(tmp_path, "29UPU", [0], day=17)
    assert [patch.place for patch in PatchFolder(tmp_path).patches] == ["33UUP", "33UUP", "29UPU"]


def test_v1_patches_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    write_v1(tmp_path / "all", "33UUP", [3])
    write_v1(tmp_path / "all", "29UPU", [0], day=17)
    assert {patch.place for patch in PatchFolder(tmp_path).patches} == {"33UUP", "29UPU"}


@pytest.mark.parametrize(("tile", "where"), TILES.items())
def test_squares_and_tiles(tile: str, where: tuple[int, int, int]) -> None:
    epsg, left, top = where
    assert mgrs_square(f"EPSG:{epsg}", left + 54900, top - 54900) == tile


@pytest.mark.parametrize(
    ("epsg", "x", "y", "square"),
    [
        (32631, 448251, 5411932, "31UDQ"),  # Paris, the Eiffel tower
        (32618, 583960, 4507523, "18TWL"),  # New York
        (32756, 334873, 6252266, "56HLH"),  # Sydney
        (4326, 2.0, 48.0, None),
    ],
)
def test_squares_of_known_points(epsg: int, x: float, y: float, square: str | None) -> None:
    assert mgrs_square(f"EPSG:{epsg}", x, y) == square


def test_tile_in_names() -> None:
    assert tile_in_name(product("33UUP")) == tile_in_name(f"{product('33UUP')}_26_57") == "33UUP"
    assert tile_in_name("S2A_MSIL2A_20170613T101031_87_48") is None


def test_without_georeference_the_folder_is_the_place(tmp_path: Path) -> None:
    for name in ("field", "town"):
        write_patch(tmp_path / name, f"{name}_0_0", scene(1))
    assert [patch.place for patch in PatchFolder(tmp_path).patches] == ["field", "town"]


def test_places_that_the_user_says(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 1, "29UPU": 1})
    (tmp_path / FOLDER / PLACES_NAME).write_text(json.dumps({product("33UUP"): "Salzburg"}))
    assert [patch.place for patch in PatchFolder(tmp_path).patches] == ["29UPU", "Salzburg"]
    (tmp_path / FOLDER / PLACES_NAME).write_text("[]")
    with pytest.raises(UserError, match="must be a JSON object"):
        PatchFolder(tmp_path)


@pytest.mark.parametrize(("name", "said"), [("missing", "does not exist"), (".", "no patches")])
def test_no_patches(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        PatchFolder(tmp_path / name)


def test_real_patches(real_data: Path) -> None:
    folder = PatchFolder(real_data / "bigearthnet")
    assert folder.patches == PatchFolder(real_data / "bigearthnet" / FOLDER).patches
    places = {patch.id: patch.place for patch in folder.patches}
    named = {}  # the Sentinel-1 partner's name carries the tile
    for path in (real_data / "bigearthnet" / "BigEarthNet-S1").rglob("*_labels_metadata.json"):
        named[json.loads(path.read_text())["corresponding_s2_patch"]] = path.parent.name.split("_")[-3]
    assert places == named
    assert folder[0].shape == (4, 120, 120) and 0 < folder[0].mean() < 10_000


# --- the archive --------------------------------------------------------------------------------------------------


def write_archive(path: Path, *folders: Path, member: str | None = None) -> Path:
    """A ``.tar.zst`` as Zenodo's."""
    inside = io.BytesIO()
    with tarfile.open(fileobj=inside, mode="w") as tar:
        for folder in folders:
            tar.add(folder, member or folder.name)
    path.write_bytes(zstandard.ZstdCompressor().compress(inside.getvalue()))
    return path


def test_an_unpacked_archive_is_read(tmp_path: Path) -> None:
    ids = write_v2(tmp_path / "origin", {"33UUP": 2})
    archive = write_archive(tmp_path / f"{FOLDER}.tar.zst", tmp_path / "origin" / FOLDER)
    unpack(archive, tmp_path / "data" / FOLDER, kind="tar", sha256="0" * 64)
    write_metadata(tmp_path / "data" / "metadata.parquet", [(ids[0], "test", "Austria")])
    folder = PatchFolder(tmp_path / "data")
    assert [patch.official for patch in folder.patches] == ["test", None]
    assert (folder[1] == PatchFolder(tmp_path / "origin")[1]).all()


def test_the_manifest_unpacks_to_where_the_reader_looks() -> None:
    assert {file.folder for file in load_manifest("bigearthnet-s2").files} == {None, FOLDER}
    (old,) = load_manifest("bigearthnet-s2-v1").files
    assert old.folder in FOLDERS


def test_archives_of_zstandard_are_judged_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v2(tmp_path / "origin", {"33UUP": 1})
    evil = write_archive(tmp_path / "evil.tar.zst", tmp_path / "origin", member="../evil")
    with pytest.raises(UserError, match="leads outside its folder"):
        unpack(evil, tmp_path / "data", kind="tar", sha256="0" * 64)
    inside = tmp_path / "origin" / FOLDER
    (inside / "link").hardlink_to(next(inside.rglob("*_B02.tif")))
    with pytest.raises(UserError, match="is a hard link"):
        unpack(write_archive(evil, tmp_path / "origin"), tmp_path / "data", kind="tar", sha256="0" * 64)
    evil.write_bytes(evil.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be unpacked as tar"):
        unpack(evil, tmp_path / "data", kind="tar", sha256="0" * 64)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="pip install zstandard"):
        unpack(evil, tmp_path / "data", kind="tar", sha256="0" * 64)
    assert not (tmp_path / "data").exists()


# --- metadata -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [".", FOLDER])
def test_metadata_beside_or_above(tmp_path: Path, level: str) -> None:
    ids = write_v2(tmp_path, {"33UUP": 2})
    write_metadata(tmp_path / level / "metadata.parquet", [(ids[1], "validation", "Austria")])
    found = [(patch.country, patch.official) for patch in PatchFolder(tmp_path).patches]
    assert found == [(None, None), ("Austria", "validation")]


def test_metadata_know_v1_names_and_their_tiles(tmp_path: Path) -> None:
    (name,) = write_v1(tmp_path, "33UUP", [3])
    write_metadata(tmp_path / "metadata.parquet", [(f"{product('34TDR')}_3_7", "train", "Serbia")], v1_names=[name])
    (patch,) = PatchFolder(tmp_path).patches
    assert (patch.country, patch.place) == ("Serbia", "34TDR")  # what the metadata say goes first


def test_metadata_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = write_v2(tmp_path, {"33UUP": 1})
    write_metadata(tmp_path / "metadata.parquet", [(ids[0], "train", "Austria")])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        PatchFolder(tmp_path)


def test_damaged_metadata(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 1})
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        PatchFolder(tmp_path)


# --- offset -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "offset"),
    [("N0204", 0), ("N0301", 0), ("N0400", -1000), ("N0511", -1000), ("N9999", 0)],
)
def test_offset_by_processing_baseline(tmp_path: Path, name: str, offset: int) -> None:
    assert offset_in_name(product("33UUP", baseline=name)) == offset
    write_v2(tmp_path, {"33UUP": 1}, baseline=name)
    assert (PatchFolder(tmp_path)[0] == np.stack(list(scene(0).values())).astype(np.float32) + offset).all()
    assert PatchFolder(tmp_path).raw(0)[1] == offset


def test_tags_go_before_names_and_the_config_before_all(tmp_path: Path) -> None:
    name = f"{product('33UUP', baseline='N0400')}_1_2"
    write_patch(tmp_path / product("33UUP", baseline="N0400"), name, scene(3), offset=-500)
    assert PatchFolder(tmp_path).raw(0)[1] == -500
    assert PatchFolder(tmp_path, offset=0).raw(0)[1] == 0


def test_a_scale_that_is_not_sentinels(tmp_path: Path) -> None:
    folder = write_patch(tmp_path, "a", scene(3), transform=Affine.scale(10))
    for band in DEFAULT_BANDS:
        with rasterio.open(band_file(folder, "a", band), "r+") as file:
            file.scales = (2.75e-05,)
    with pytest.raises(UserError, match=r"scale tag 2.75e-05, expected 1 \(none\) or 1e-4"):
        PatchFolder(tmp_path)[0]


# --- what cannot be read ------------------------------------------------------------------------------------------


def test_a_band_that_is_not_there(tmp_path: Path) -> None:
    folder = write_patch(tmp_path, "a", scene(3))
    band_file(folder, "a", "B08").unlink()
    with pytest.raises(UserError, match=r"a_B08.tif is not there"):
        PatchFolder(tmp_path)[0]


@pytest.mark.parametrize("left", [0, 50, 3000])
def test_a_damaged_band(tmp_path: Path, left: int) -> None:
    folder = write_patch(tmp_path, "a", scene(3))
    path = band_file(folder, "a", "B03")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=r"a_B03.tif is not a readable GeoTIFF"):
        PatchFolder(tmp_path)[0]


def test_bands_of_different_size(tmp_path: Path) -> None:
    write_patch(tmp_path, "a", {**scene(3), "B08": scene(3, size=24)["B08"]})
    with pytest.raises(UserError, match="has bands of"):
        PatchFolder(tmp_path)[0]


def test_floats_are_no_patch(tmp_path: Path) -> None:
    folder = write_patch(tmp_path, "a", scene(3))
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": 48, "width": 48}
    with rasterio.open(band_file(folder, "a", "B02"), "w", transform=Affine.scale(10), **profile) as file:
        file.write(np.full((48, 48), 0.2, np.float32), 1)
    with pytest.raises(UserError, match="nbhelpers data prepare"):
        PatchFolder(tmp_path)[0]


# --- cutting ------------------------------------------------------------------------------------------------------

GEO = {"crs": "EPSG:32633", "transform": Affine(10, 0, 350000, 0, -10, 5350000)}


def write_scene(path: Path, pixels: NDArray, *, names: list[str] | None = None, **profile: object) -> Path:
    count, height, width = pixels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"driver": "GTiff", "dtype": pixels.dtype, "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", **{**shape, **GEO, **profile}) as file:
        file.write(pixels)
        if names:
            file.descriptions = names
    return path


def stack(n_bands: int, height: int = 100, width: int = 70, dtype: str = "uint16") -> NDArray:
    """A scene in which every value tells its band, row and column."""
    band, row, column = np.indices((n_bands, height, width))
    return (1000 * band + 10 * (row % 50) + column + 1).astype(dtype)


def test_cut_scene_is_read_back_whole(tmp_path: Path) -> None:
    pixels = stack(12)
    cutting = cut_scenes([write_scene(tmp_path / "in/s.tif", pixels)], tmp_path / "out", size=48)
    assert (cutting.n_patches, cutting.places, cutting.bands) == (6, ("33UUP",), DEFAULT_BANDS)
    folder = PatchFolder(tmp_path / "out")
    assert {patch.place for patch in folder.patches} == {"33UUP"}
    seen = np.zeros((100, 70), int)
    ten = pixels[[BANDS.index(band) for band in DEFAULT_BANDS]]
    for patch in folder.patches:
        crs, transform = folder.georeference(patch.index)
        column, row = round((transform[2] - 350000) / 10), round((5350000 - transform[5]) / 10)
        assert crs == "EPSG:32633" and transform[0] == 10
        assert (folder[patch.index] == ten[:, row : row + 48, column : column + 48]).all()
        seen[row : row + 48, column : column + 48] += 1
    assert seen.min() == 1 and seen.max() == 4  # all of it; the last row and column of patches overlap


def test_bands_by_description_and_by_name(tmp_path: Path) -> None:
    pixels = stack(3, 48, 48)
    write_scene(tmp_path / "a.tif", pixels, names=["B4", "B8A", "b02"])
    assert cut_scenes([tmp_path / "a.tif"], tmp_path / "one", size=48).bands == ("B04", "B02")
    write_scene(tmp_path / "b.tif", pixels)
    with pytest.raises(UserError, match="3 bands and no names"):
        cut_scenes([tmp_path / "b.tif"], tmp_path / "two", size=48)
    cut_scenes([tmp_path / "b.tif"], tmp_path / "two", size=48, bands=["B08", "B03", "B05"])
    assert (PatchFolder(tmp_path / "two", ["B03"])[0] == pixels[1]).all()


def test_20_m_scene_gives_20_m_bands(tmp_path: Path) -> None:
    transform = Affine(20, 0, 350000, 0, -20, 5350000)
    write_scene(tmp_path / "a.tif", stack(2, 48, 48), names=["B05", "B02"], transform=transform)
    assert cut_scenes([tmp_path / "a.tif"], tmp_path / "out", size=48).bands == ("B05",)
    assert PatchFolder(tmp_path / "out", ["B05"]).georeference(0)[1] == tuple(transform)[:6]


def test_negative_values_get_an_offset_and_stay(tmp_path: Path) -> None:
    pixels = stack(12, 48, 48, "int16") - np.int16(1005)
    pixels[pixels == 0] = -3  # in whole numbers 0 means no data
    write_scene(tmp_path / "a.tif", pixels, nodata=-32768)
    cut_scenes([tmp_path / "a.tif"], tmp_path / "out", size=48)
    folder = PatchFolder(tmp_path / "out")
    stored, offset = folder.raw(0)
    expected = pixels[[1, 2, 3, 7]]
    assert (expected.min() < 0, (expected == 0).any(), offset) == (True, False, -1000)
    assert (folder[0] == expected).all() and stored.min() > 0


def test_float_reflectance_with_nan(tmp_path: Path) -> None:
    pixels = (stack(13, 48, 96) / 20_000 - 0.08).astype(np.float32)
    pixels[:, :, :50] = np.nan
    write_scene(tmp_path / "a.tif", pixels)
    cut_scenes([tmp_path / "a.tif"], tmp_path / "out", size=48)
    folder = PatchFolder(tmp_path / "out")  # the left patch holds nothing and is not written
    assert len(folder) == 1
    raw, offset = folder.raw(0)
    assert offset == -1000 and (raw[:, :, :2] == 0).all() and raw[:, :, 2:].min() > 0
    chosen = pixels[[LEVEL_1C.index(band) for band in DEFAULT_BANDS]][:, :, 50:]
    assert np.abs(folder[0][:, :, 2:] / 1e4 - chosen).max() <= 0.5e-4 + 1e-7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crs": "EPSG:4326", "transform": Affine(9e-5, 0, 15, 0, -9e-5, 48)}, "degrees, expected 10, 20 or 60 m"),
        ({"transform": Affine(30, 0, 350000, 0, -30, 5350000)}, "pixels of 30 m"),
        ({"pixels": stack(12, 40, 100)}, "smaller than a patch of 48"),
        ({"pixels": stack(12, 48, 48, "float32")}, "floats up to"),
    ],
)
def test_scenes_that_cannot_be_cut(tmp_path: Path, change: dict, said: str) -> None:
    write_scene(tmp_path / "a.tif", **{"pixels": stack(12, 48, 48), **change})
    with pytest.raises(UserError, match=said):
        cut_scenes([tmp_path / "a.tif"], tmp_path / "out", size=48)
    assert not (tmp_path / "out" / FOLDER / "a").exists()


def test_a_scene_is_not_cut_twice_into_one_folder(tmp_path: Path) -> None:
    write_scene(tmp_path / "in/a.tif", stack(12, 48, 48))
    cut_scenes([tmp_path / "in"], tmp_path / "out", size=48, place="home")
    assert PatchFolder(tmp_path / "out").patches[0].place == "home"
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = cut_scenes([tmp_path / "in"], tmp_path / "out", size=48, place="home")
    assert (again.n_patches, again.places, again.bands) == (1, ("home",), DEFAULT_BANDS)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    for options in ({"place": "away"}, {"size": 32}, {"bands": ["B02"]}, {"offset": -5}):
        with pytest.raises(UserError, match=f"exists already .cut with another .*{next(iter(options))}"):
            cut_scenes([tmp_path / "in"], tmp_path / "out", **{"size": 48, "place": "home", **options})
    write_scene(tmp_path / "in/a.tif", stack(12, 48, 48) + np.uint16(1))
    with pytest.raises(UserError, match="exists already .cut with another source"):
        cut_scenes([tmp_path / "in"], tmp_path / "out", size=48, place="home")


def test_a_cut_that_lost_patches_is_not_taken_for_whole(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", stack(12, 48, 96))
    assert cut_scenes([path], tmp_path / "out", size=48).n_patches == 2
    shutil.rmtree(tmp_path / "out" / FOLDER / "a/a_1_0")
    with pytest.raises(UserError, match="of 2 patches 1 left"):
        cut_scenes([path], tmp_path / "out", size=48)


def test_what_a_file_says_of_its_bands_goes_before_what_the_caller_says(tmp_path: Path) -> None:
    pixels = stack(4, 48, 48)
    said = ["B08", "B04", "B03", "B02"]
    path = write_scene(tmp_path / "a.tif", pixels, names=said)
    cut_scenes([path], tmp_path / "out", size=48, bands=DEFAULT_BANDS)
    expected = pixels[[said.index(band) for band in DEFAULT_BANDS]]
    assert (PatchFolder(tmp_path / "out")[0] == expected).all()
    assert np.allclose(read_scene(path, DEFAULT_BANDS).image * 1e4, expected)
    with pytest.raises(UserError, match="has the bands B08, B04, B03, B02 and --bands asks for B05"):
        cut_scenes([path], tmp_path / "other", size=48, bands=["B02", "B03", "B04", "B05"])


@pytest.mark.parametrize("bands", [("B02", "B03", "B04", "B08"), ("B08", "B02")])
def test_level_2a_without_names_is_in_its_own_order_whatever_is_wanted(tmp_path: Path, bands: tuple[str, ...]) -> None:
    path = write_scene(tmp_path / "a.tif", stack(12, 48, 48))
    expected = stack(12, 48, 48)[[BANDS.index(band) for band in bands]]
    assert set(cut_scenes([path], tmp_path / "out", size=48, bands=bands).bands) == set(bands)
    assert (PatchFolder(tmp_path / "out", bands)[0] == expected).all()
    found = read_scene(path, bands)
    assert found.image.shape == expected.shape and np.allclose(found.image * 1e4, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("text", "band"),
    [("B2", "B02"), ("b8a", "B8A"), ("T33UUP_20170613T101031_B02_10m", "B02"), ("B4, red", "B04"), ("B10", "B10")]
    + [("B02/B03", None), ("red", None), ("B13", None), ("", None)],
)
def test_band_names_in_texts(text: str, band: str | None) -> None:
    assert band_in(text) == band


@pytest.mark.parametrize(
    ("where", "offset"),
    [
        ("plain.tif", 0),
        (f"{product('33UUP', baseline='N0509')}.tif", -1000),
        (f"{product('33UUP', baseline='N0509')}.SAFE/IMG_DATA/scene.tif", -1000),
        (f"{product('33UUP', baseline='N0509')}.SAFE/{product('33UUP', baseline='N0301')}.tif", 0),
    ],
)
def test_a_scene_has_one_offset_whoever_reads_it(tmp_path: Path, where: str, offset: int) -> None:
    pixels = stack(12, 48, 48) + np.uint16(1000)
    path = write_scene(tmp_path / where, pixels)
    cut_scenes([path], tmp_path / "out", size=48)
    found = PatchFolder(tmp_path / "out")
    expected = pixels[[1, 2, 3, 7]].astype(float) + offset
    assert (found[0] == expected).all()
    assert np.allclose(read_scene(path, DEFAULT_BANDS).image * 1e4, expected, atol=1e-2)


def test_a_scenes_baseline_is_kept(tmp_path: Path) -> None:
    name = f"{product('33UUP', baseline='N0509')}.tif"
    write_scene(tmp_path / name, stack(12, 48, 48) + np.uint16(1000))
    cut_scenes([tmp_path / name], tmp_path / "out", size=48)
    assert (PatchFolder(tmp_path / "out")[0] == stack(12, 48, 48)[[1, 2, 3, 7]]).all()


def test_real_places(real_data: Path, tmp_path: Path) -> None:
    folder = PatchFolder(real_places(real_data, tmp_path / "all"))
    found = Counter(patch.place for patch in folder.patches)
    assert found == {"22JGS": 4, "29UPU": 2, "32VNJ": 4, "33UUP": 1, "35VPK": 1, "36MXB": 4, "series": 5}
    assert {folder[i].shape[1:] for i in range(len(folder))} == {(100, 100), (112, 112), (120, 120)}


def test_prepare_is_for_stages_that_offer_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "prepare", "neural-operator", "--from", str(tmp_path), "--to", str(tmp_path / "x")])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert all(word in said for word in ("invalid choice", "super-resolution", "rainfall-cvae"))
