"""Packed patches: the same as from the folder, read back whatever was asked for, and never mistaken for whole."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from sentinel import product, real_places, scene, write_metadata, write_v2

from nbhelpers.cli import main
from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution import pack as pack_module
from nbhelpers.stages.super_resolution.pack import pack
from nbhelpers.stages.super_resolution.packed import INDEX_NAME, PackedPatches
from nbhelpers.stages.super_resolution.patch import (
    DEFAULT_BANDS,
    FOLDER,
    NODATA,
    SIMULATION_NAME,
    band_file,
    write_patch,
)
from nbhelpers.stages.super_resolution.patches import WithValidation, open_patches
from nbhelpers.stages.super_resolution.validation import validate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven patches of three tiles and two sizes, one product with an offset, and metadata."""
    data_dir = tmp_path / "data"
    ids = write_v2(data_dir, {"33UUP": 3, "29UPU": 2})
    ids += write_v2(data_dir, {"35VPK": 2}, size=32, baseline="N0400")
    write_metadata(data_dir / "metadata.parquet", [(name, "train", "Austria") for name in ids[:4]])
    return data_dir


@pytest.mark.parametrize("shard_bytes", [1, 30_000, 10**9])
def test_packed_equals_folder(folder: Path, tmp_path: Path, shard_bytes: int) -> None:
    said = pack(folder, tmp_path / "packed", shard_bytes=shard_bytes)
    own, packed = open_patches(folder), open_patches(tmp_path / "packed")
    assert isinstance(packed, PackedPatches) and said.n_patches == len(packed) == len(own) == 7
    assert len(packed.shards) == {1: 7, 30_000: 4, 10**9: 2}[shard_bytes]
    there = {patch.id: patch for patch in packed.patches}
    for patch in own.patches:
        twin = there[patch.id]
        assert (twin.place, twin.country, twin.official) == (patch.place, patch.country, patch.official)
        assert packed[twin.index].dtype == np.float32
        assert (packed[twin.index] == own[patch.index]).all()
        assert packed.raw(twin.index)[1] == own.raw(patch.index)[1]
        assert packed.georeference(twin.index) == own.georeference(patch.index)
    assert {own.raw(i)[1] for i in range(7)} == {0, -1000}
    assert set(validate(packed).content.values()) == set(validate(own).content.values())


def test_shards_are_plain_npy_of_uint16(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed")
    arrays = [np.load(path) for path in sorted((tmp_path / "packed").glob("*.npy"))]
    assert sorted(array.shape for array in arrays) == [(2, 4, 32, 32), (5, 4, 48, 48)]
    assert {array.dtype for array in arrays} == {np.dtype("uint16")}


def test_some_of_the_bands_in_any_order(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed")
    packed = open_patches(tmp_path / "packed")
    assert (open_patches(tmp_path / "packed", ["B08", "B03"])[0] == packed[0][[3, 1]]).all()
    with pytest.raises(UserError, match=r"packed with the bands B02, .* lacks B05"):
        open_patches(tmp_path / "packed", ["B05"])


def test_an_offset_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed", offset=-7)
    assert {open_patches(tmp_path / "packed").raw(i)[1] for i in range(7)} == {-7}
    assert {open_patches(tmp_path / "packed", offset=5).raw(i)[1] for i in range(7)} == {5}


def test_incomplete_patches_are_left_out_and_said(folder: Path, tmp_path: Path) -> None:
    holes = scene(1)
    holes["B04"][3, 4] = NODATA
    write_patch(folder / FOLDER / product("33UUP"), f"{product('33UUP')}_9_9", holes)
    said = pack(folder, tmp_path / "packed")
    assert said.incomplete == (f"{product('33UUP')}_9_9",) and said.n_patches == 7
    assert "1 left out for pixels without data" in str(said)


def test_unreadable_patches_stop_it(folder: Path, tmp_path: Path) -> None:
    name = f"{product('33UUP')}_0_7"
    band_file(folder / FOLDER / product("33UUP") / name, name, "B03").write_bytes(b"nothing")
    with pytest.raises(UserError, match="1 of 7 patches .* cannot be read"):
        pack(folder, tmp_path / "packed")
    assert not list(tmp_path.glob("packed*"))


def test_it_is_not_written_over_anything(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    with pytest.raises(UserError, match="exists already"):
        pack(folder, tmp_path / "packed")


def test_killed_half_way(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = pack_module._ShardWriter.add, []

    def add(self: object, *arguments: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            shutil.copytree(tmp_path / "packed.packing", tmp_path / "as-killed")  # what a killed process leaves
            raise KeyboardInterrupt
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pack_module._ShardWriter, "add", add)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "packed")
    assert not (tmp_path / "packed").exists() and list((tmp_path / "as-killed").iterdir())
    with pytest.raises(UserError, match="no patches"):
        open_patches(tmp_path / "as-killed")
    monkeypatch.undo()
    shutil.move(tmp_path / "as-killed", tmp_path / "packed.packing")
    assert pack(folder, tmp_path / "packed").n_patches == 7
    assert not (tmp_path / "packed.packing").exists()


def test_a_full_disk_is_said_before_writing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"packing 7 patches needs 57.3 kB .* has 1.0 kB free"):
        pack(folder, tmp_path / "packed")
    assert not list(tmp_path.glob("packed*"))


@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_that_was_cut_short_or_lost(folder: Path, tmp_path: Path, shard: int) -> None:
    pack(folder, tmp_path / "packed")
    path = sorted((tmp_path / "packed").glob("*.npy"))[shard]
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="not copied whole"):
        open_patches(tmp_path / "packed")
    path.unlink()
    with pytest.raises(UserError, match="is not there"):
        open_patches(tmp_path / "packed")


@pytest.mark.parametrize("at", [3, 60, 5000])
def test_a_damaged_shard(folder: Path, tmp_path: Path, at: int) -> None:
    pack(folder, tmp_path / "packed")
    path = sorted((tmp_path / "packed").glob("*.npy"))[0]
    content = bytearray(path.read_bytes())
    content[at] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        validate(open_patches(tmp_path / "packed"))


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}'])
def test_an_index_that_is_none(folder: Path, tmp_path: Path, text: str) -> None:
    pack(folder, tmp_path / "packed")
    (tmp_path / "packed" / INDEX_NAME).write_text(text)
    with pytest.raises(UserError, match="pack the set again"):
        open_patches(tmp_path / "packed")


def test_an_index_of_other_shards(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed")
    index = json.loads((tmp_path / "packed" / INDEX_NAME).read_text())
    (tmp_path / "packed" / INDEX_NAME).write_text(json.dumps({**index, "patches": index["patches"][1:]}))
    with pytest.raises(UserError, match="lists 6 patches, but its shards hold 7"):
        open_patches(tmp_path / "packed")


def test_workers_get_no_pixels(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed")
    packed = open_patches(tmp_path / "packed")
    first = packed[0]
    sent = pickle.dumps(packed)
    assert len(sent) < first.nbytes // 2 and (pickle.loads(sent)[0] == first).all()


def test_that_data_were_simulated_is_kept(folder: Path, tmp_path: Path) -> None:
    (folder / FOLDER / SIMULATION_NAME).write_text("{}")
    pack(folder, tmp_path / "packed")
    assert (tmp_path / "packed" / SIMULATION_NAME).read_text() == "{}"


def test_folder_and_packed_set_together(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed")
    own, packed = open_patches(folder), open_patches(tmp_path / "packed")
    both = WithValidation(own, packed)
    assert len(both) == 14 and [patch.index for patch in both.patches] == list(range(14))
    assert [patch.part for patch in both.patches] == [""] * 7 + ["val"] * 7
    assert (both[3] == own[3]).all() and (both[10] == packed[3]).all()
    assert both.georeference(10) == packed.georeference(3)


def test_real_patches(real_data: Path, tmp_path: Path) -> None:
    data = real_places(real_data, tmp_path / "all")
    pack(data, tmp_path / "packed")
    own, packed = open_patches(data), open_patches(tmp_path / "packed", DEFAULT_BANDS)
    there = {patch.id: patch.index for patch in packed.patches}
    assert len(own) == 21 and all((own[p.index] == packed[there[p.id]]).all() for p in own.patches)


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "packed"
    pack_it = ["data", "pack", "super-resolution", "--data-dir", str(folder), "--to", str(packed)]
    assert main([*pack_it, "--bands", "B02", "B08", "--offset", "-5"]) == 0
    assert "7 patches" in capsys.readouterr().out
    assert open_patches(packed, ["B08"]).raw(0)[1] == -5
    assert main(pack_it) == 2
    assert "exists already" in capsys.readouterr().err
    scene_file = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 4, "height": 60, "width": 60, "crs": "EPSG:32633"}
    with rasterio.open(scene_file, "w", transform=Affine(10, 0, 350000, 0, -10, 5350000), **profile) as file:
        file.write(np.stack(list(scene(1, size=60).values())))
    prepare = ["data", "prepare", "super-resolution", "--from", str(scene_file), "--to", str(tmp_path / "own")]
    assert main([*prepare, "--bands", *DEFAULT_BANDS, "--size", "48", "--place", "home"]) == 0
    assert "4 patches with B02, B03, B04, B08" in capsys.readouterr().out
    assert {patch.place for patch in open_patches(tmp_path / "own").patches} == {"home"}
