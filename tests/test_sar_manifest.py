"""Manifests of paired Sentinel-1 and Sentinel-2 patches: addresses, terms, and archives that become tiles."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import rasterio
from numpy.typing import NDArray
from pyarrow import parquet
from rasterio.transform import Affine
from sar_tiles import make_tile

from nbhelpers.core.errors import UserError
from nbhelpers.core.manifest import fetch, load_manifest, verify
from nbhelpers.stages.sar_grounding import pairs
from nbhelpers.stages.sar_grounding.pairs import LABELS
from nbhelpers.stages.sar_grounding.prepare import prepare_tiles
from nbhelpers.stages.sar_grounding.tiles import open_tiles

V1, V2 = "bigearthnet-pairs-v1", "bigearthnet-s1"
ROOTS = {"S1": "BigEarthNet-S1-v1.0", "S2": "BigEarthNet-v1.0"}  # the folder that each archive of version 1 holds
PLACES = {"33UUP_87_48": (400_000, 5_900_000), "29UPU_4_55": (480_000, 5_800_000), "35VPK_69_24": (560_000, 5_500_000)}


def test_both_halves_come_from_the_archive_that_the_authors_keep() -> None:
    for name, record, files in (
        (V1, "12687186", ["BigEarthNet-S1-v1.0.tar.gz", "BigEarthNet-S2-v1.0.tar.gz"]),
        (V2, "10891137", ["BigEarthNet-S1.tar.zst"]),
    ):
        manifest = load_manifest(name)
        assert [file.path for file in manifest.files] == files and manifest.licence == "CDLA-Permissive-1.0"
        for file in manifest.files:
            assert file.mirrors[0] == f"https://zenodo.org/records/{record}/files/{file.path}?download=1"
            assert file.unpack == "tar" and file.sha256 is None, "published is an MD5 alone"
        assert len(re.findall(r"\b[0-9a-f]{32}\b", manifest.description)) == len(files)


def test_version_2_stands_beside_its_sentinel_2_half() -> None:
    one, other = load_manifest(V2), load_manifest("bigearthnet-s2")
    assert one.citation == other.citation and one.licence == other.licence
    assert one.files[0].bytes == 54_439_153_171 and "54.4 GB" in one.title
    assert "bigearthnet-s2" in one.description and V1 in one.description


def write_band(path: Path, band: NDArray, corner: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": "EPSG:32632", "transform": Affine(10, 0, corner[0], 0, -10, corner[1])}
    height, width = band.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=height, width=width, dtype=band.dtype, **place
    ) as file:
        file.write(band, 1)


def write_pair(folder: Path, place: str, seed: int) -> None:
    """One pair as version 1 has it, of four bands and 48 x 48 pixels."""
    tile = make_tile(seed, size=48)
    s1, s2 = f"S1A_IW_GRDH_1SDV_20170613T165043_{place}", f"S2A_MSIL2A_20170613T101031_{place[6:]}"
    of_s1, of_s2 = folder / ROOTS["S1"] / s1, folder / ROOTS["S2"] / s2
    for name, db in zip(("VV", "VH"), tile.s1, strict=True):
        write_band(of_s1 / f"{s1}_{name}.tif", db.astype(np.float32), PLACES[place])
    about = {"corresponding_s2_patch": s2, "acquisition_time": "2017-06-13T16:50:43"}
    (of_s1 / f"{s1}{LABELS}").write_text(json.dumps(about))
    for name, band in zip(("B02", "B03", "B04", "B08"), tile.s2, strict=True):
        write_band(of_s2 / f"{s2}_{name}.tif", np.round(band * 1e4).astype(np.uint16), PLACES[place])


def test_archives_placed_by_hand_become_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, place in enumerate(PLACES):
        write_pair(tmp_path / "origin", place, seed)
    data, manifest = tmp_path / "data", load_manifest(V1)
    data.mkdir()
    for file, root in zip(manifest.files, ROOTS.values(), strict=True):
        with tarfile.open(data / file.path, "w:gz") as archive:
            archive.add(tmp_path / "origin" / root, root)
    fetch(manifest, data, progress=False, kaggle_input=tmp_path / "none")
    assert [state.status for state in verify(manifest, data)] == ["recorded on first use"] * 2
    said = re.search(r"`nbhelpers data prepare tiles --s1 (\S+) --s2 (\S+) --to (\S+)`", manifest.description)
    assert said is not None
    monkeypatch.chdir(data)
    done = prepare_tiles(Path(said[3]), s1=Path(said[1]), s2=Path(said[2]))
    assert done.tiles == {"train": 1, "val": 1, "test": 1}
    tiles = open_tiles(data / said[3])
    assert tiles.size == (48, 48) and {about.date_s2 for about in tiles.about.values()} == {"2017-06-13"}


def write_pair_v2(folder: Path, place: str, seed: int) -> tuple[str, str]:
    """One pair as version 2 has it: in folders of the scenes, with nothing that names the partner; both names."""
    tile, tail = make_tile(seed, size=48), place[5:]
    s1_scene = "S1A_IW_GRDH_1SDV_20170613T165043"
    s2_scene = f"S2A_MSIL2A_20170612T101031_N9999_R022_T{place[:5]}"
    s1, s2 = f"{s1_scene}_{place}", f"{s2_scene}{tail}"
    for name, db in zip(("VV", "VH"), tile.s1, strict=True):
        write_band(folder / "BigEarthNet-S1" / s1_scene / s1 / f"{s1}_{name}.tif", db.astype(np.float32), PLACES[place])
    for name, band in zip(("B02", "B03", "B04", "B08"), tile.s2, strict=True):
        numbers = np.round(band * 1e4).astype(np.uint16)
        write_band(folder / "BigEarthNet-S2" / s2_scene / s2 / f"{s2}_{name}.tif", numbers, PLACES[place])
    return s1, s2


def write_metadata(path: Path, rows: list[tuple[str | None, str, str | None]], *, without: str = "") -> None:
    """``metadata.parquet`` of (s1_name, patch_id, country) among other columns."""
    columns = dict(zip(("s1_name", "patch_id", "country"), map(list, zip(*rows, strict=True)), strict=True))
    table = {**columns, "split": ["train"] * len(rows), "labels": [["Pastures"]] * len(rows)}
    parquet.write_table(pyarrow.table({key: value for key, value in table.items() if key != without}), path)


COUNTRIES = dict(zip(PLACES, ("Austria", None, "Finland"), strict=True))


@pytest.fixture
def version_2(tmp_path: Path) -> tuple[Path, list[tuple[str | None, str, str | None]]]:
    """Folder of three pairs with their metadata beside both halves, and the rows."""
    root = tmp_path / "v2"
    rows = [(*write_pair_v2(root, place, seed), COUNTRIES[place]) for seed, place in enumerate(PLACES)]
    write_metadata(root / "metadata.parquet", [*rows, ("S1B_elsewhere", "S2B_elsewhere", "Portugal"), (None, "x", "y")])
    return root, rows


def prepare(root: Path, to: Path) -> Any:
    return prepare_tiles(to, s1=root / "BigEarthNet-S1", s2=root / "BigEarthNet-S2")


def test_version_2_is_paired_by_its_metadata(tmp_path: Path, version_2: tuple[Path, list]) -> None:
    root, rows = version_2
    done = prepare(root, tmp_path / "tiles")
    assert done.tiles == {"train": 1, "val": 1, "test": 1} and done.warnings == ()
    tiles = open_tiles(tmp_path / "tiles")
    found = {about.source: about for about in tiles.about.values()}
    assert set(found) == {f"BigEarthNet v2 {s1} / {s2}" for s1, s2, _ in rows}
    for seed, (s1, s2, country) in enumerate(rows):
        (name,) = (name for name, about in tiles.about.items() if f"{s1} / {s2}" in about.source)
        about = tiles.about[name]
        assert (about.country, about.date_s1, about.date_s2) == (country, "2017-06-13", "2017-06-12")
        np.testing.assert_allclose(tiles.s1(name), make_tile(seed, size=48).s1, rtol=1e-5)
        np.testing.assert_allclose(tiles.s2(name), make_tile(seed, size=48).s2, atol=6e-5)


def test_patches_that_the_metadata_do_not_list_are_left_out_and_said(
    tmp_path: Path, version_2: tuple[Path, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, rows = version_2
    monkeypatch.setitem(PLACES, "34VFM_3_5", (700_000, 6_500_000))
    write_pair_v2(root, "34VFM_3_5", 9)
    done = prepare(root, tmp_path / "tiles")
    assert sum(done.tiles.values()) == 3 and "1 of 4 S1 patches are left out because" in str(done)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", "v2, but no metadata.parquet that names the pairs"),
        ("damaged", "cannot be read as Parquet"),
        ("s1_name", r"lacks the column\(s\) s1_name"),
        ("country", r"lacks the column\(s\) country"),
        ("other", "lists none of the 3 patches"),
        ("twice", "with .* and S2A_other, expected one partner"),
        ("numbers", "in a row, expected text"),
        ("partner", "with S2A_gone, which is not in .*BigEarthNet-S2"),
    ],
)
def test_metadata_that_do_not_fit(tmp_path: Path, version_2: tuple[Path, list], what: str, message: str) -> None:
    root, rows = version_2
    path, first = root / "metadata.parquet", rows[0]
    if what == "none":
        path.unlink()
    elif what == "damaged":
        path.write_bytes(b"PAR1 no")
    elif what == "other":
        write_metadata(path, [("S1B_elsewhere", "S2B_elsewhere", "Portugal")])
    elif what == "twice":
        write_metadata(path, [*rows, (first[0], "S2A_other", "Austria")])
    elif what == "numbers":
        parquet.write_table(pyarrow.table({"s1_name": [1], "patch_id": [2], "country": [3]}), path)
    elif what == "partner":
        write_metadata(path, [(first[0], "S2A_gone", "Austria"), *rows[1:]])
    else:
        write_metadata(path, rows, without=what)
    with pytest.raises(UserError, match=message):
        prepare(root, tmp_path / "tiles")
    assert not (tmp_path / "tiles").exists()


def test_version_1_takes_countries_from_metadata_and_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for seed, place in enumerate(PLACES):
        write_pair(tmp_path, place, seed)
        names.append(f"S1A_IW_GRDH_1SDV_20170613T165043_{place}")
    folders = {"s1": tmp_path / ROOTS["S1"], "s2": tmp_path / ROOTS["S2"]}
    prepare_tiles(tmp_path / "without", **folders)
    assert {about.country for about in open_tiles(tmp_path / "without").about.values()} == {None}
    write_metadata(tmp_path / "metadata.parquet", [(name, "S2", "Austria") for name in names[:2]])
    prepare_tiles(tmp_path / "with", **folders)
    found = {about.source.split()[2]: about.country for about in open_tiles(tmp_path / "with").about.values()}
    assert found == dict(zip(names, ("Austria", "Austria", None), strict=True))
    monkeypatch.setattr(pairs, "find_spec", lambda name: None)  # as on a plain installation
    done = prepare_tiles(tmp_path / "open", **folders)
    assert any("pyarrow is not installed" in said for said in done.warnings)
    assert {about.country for about in open_tiles(tmp_path / "open").about.values()} == {None}
