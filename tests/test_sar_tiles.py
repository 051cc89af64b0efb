"""The tile reader: what it gives, and every way in which a folder can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sar_tiles import SIZE, in_dn, make_tile, make_tiles, measured, redeclare, rewrite, tile_file, write_folder

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.folder import Tile, split_blocks, write_tiles
from nbhelpers.stages.sar_grounding.tiles import open_tiles

UTM = {"crs": "EPSG:32633"}


def at(east: float, north: float) -> dict[str, Any]:
    """Georeference of a tile's upper left corner."""
    return {**UTM, "transform": (10.0, 0.0, east, 0.0, -10.0, north)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def test_what_was_written_is_read(folder: Path) -> None:
    tiles, written = open_tiles(folder), make_tiles()
    assert {split: len(names) for split, names in tiles.split.items()} == {"train": 4, "val": 2, "test": 2}
    assert (tiles.size, tiles.pixel_m, tiles.simulated) == ((SIZE, SIZE), 10.0, False)
    for number, tile in enumerate(written):
        name = f"tile_{number:03d}"
        np.testing.assert_array_equal(tiles.s1(name), tile.s1.astype(np.float32))
        np.testing.assert_array_equal(tiles.s2(name), tile.s2.astype(np.float32))
        assert tiles.s1(name).dtype == tiles.opt_v2(name).dtype == np.float32
        assert tiles.block[name] == tile.about.block and tiles.about[name] == tile.about
        assert measured(tiles, name).all()


def test_arrays_cannot_be_changed_by_whoever_gets_them(folder: Path) -> None:
    tiles = open_tiles(folder)
    with pytest.raises(ValueError, match="read-only"):
        tiles.s2("tile_000")[:] = 0


def test_statistics_are_those_of_the_training_tiles(folder: Path) -> None:
    tiles = open_tiles(folder, stage2_dir=folder / "stage2_outputs")
    for read, mean, std in (
        (tiles.s1, tiles.statistics.s1_mean, tiles.statistics.s1_std),
        (tiles.s2, tiles.statistics.s2_mean, tiles.statistics.s2_std),
        (tiles.opt_v2, tiles.statistics.opt_v2_mean, tiles.statistics.opt_v2_std),
    ):
        pixels = np.stack([read(name) for name in tiles.split["train"]]).astype(np.float64)
        np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-5)


def test_digital_numbers_become_reflectance_and_0_a_gap(tmp_path: Path) -> None:
    def change(number: int, tile: Tile) -> Tile:
        changed = in_dn(tile, offset=-1000 if number % 2 else 0)
        changed.s2[:, 3, 5] = 0
        return changed

    tiles = open_tiles(write_folder(tmp_path / "dn", change=change))
    for number, tile in enumerate(make_tiles()):
        image = tiles.s2(f"tile_{number:03d}")
        gaps = np.isnan(image).any(0)
        assert gaps[3, 5] and gaps.sum() == 1
        np.testing.assert_allclose(image[:, ~gaps], tile.s2[:, ~gaps], atol=6e-5)
        assert not measured(tiles, f"tile_{number:03d}")[3, 5]
    assert np.isfinite([tiles.statistics.s2_mean, tiles.statistics.opt_v2_std]).all()


def test_without_memory_the_same_tiles_are_read_again(folder: Path) -> None:
    kept, read_again = open_tiles(folder), open_tiles(folder, budget=0)
    for name in kept.block:
        np.testing.assert_array_equal(kept.opt_v2(name), read_again.opt_v2(name))


def test_max_samples_is_the_same_choice_every_time(folder: Path) -> None:
    few = open_tiles(folder, max_samples=1)
    assert [len(names) for names in few.split.values()] == [1, 1, 1]
    assert few.split == open_tiles(folder, max_samples=1).split
    assert set(few.split["train"]) < set(open_tiles(folder).split["train"])
    with pytest.raises(UserError, match="max_samples is 0"):
        open_tiles(folder, max_samples=0)


class TestWhichImageIsRefined:
    def test_real_tiles_get_a_stated_proxy(self, folder: Path) -> None:
        tiles = open_tiles(folder)
        assert tiles.opt_v2_kind == "proxy" and "0.05" in tiles.source
        noise = np.stack([tiles.opt_v2(name) - tiles.s2(name) for name in tiles.block])
        assert noise.std() == pytest.approx(0.05, rel=0.03) and abs(noise.mean()) < 0.002
        np.testing.assert_array_equal(tiles.opt_v2("tile_001"), open_tiles(folder).opt_v2("tile_001"))
        assert np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] < 0.1

    def test_stage_2_files_are_taken_when_a_folder_is_given(self, folder: Path) -> None:
        tiles = open_tiles(folder, stage2_dir=folder / "stage2_outputs")
        assert tiles.opt_v2_kind == "stage2" and "stage2_outputs" in tiles.source
        np.testing.assert_array_equal(tiles.opt_v2("tile_002"), make_tiles()[2].opt_v2.astype(np.float32))

    def test_a_simulated_one_can_be_asked_for(self, folder: Path) -> None:
        tiles = open_tiles(folder, opt_v2_source="simulated")
        assert tiles.source.startswith("simulated")
        detail = [np.abs(np.diff(read("tile_000"), axis=-1)).mean() for read in (tiles.opt_v2, tiles.s2)]
        assert detail[0] < detail[1]

    def test_a_missing_file_is_never_replaced(self, folder: Path) -> None:
        (folder / "stage2_outputs" / "tile_005.npz").unlink()
        with pytest.raises(UserError, match=r"tile_005.npz is not there.*nothing takes its place"):
            open_tiles(folder, stage2_dir=folder / "stage2_outputs")

    def test_the_truth_itself_is_a_leak(self, folder: Path) -> None:
        truth = make_tiles()[4].s2
        rewrite(folder / "stage2_outputs" / "tile_004.npz", opt_v2=np.round(truth, 4))
        with pytest.raises(UserError, match=r"tile_004.npz is the true S2 image itself"):
            open_tiles(folder, stage2_dir=folder / "stage2_outputs")

    def test_units_are_those_of_its_own_json_else_of_the_tile(self, folder: Path) -> None:
        stage2 = folder / "stage2_outputs"
        expected = make_tiles()[0].opt_v2
        rewrite(stage2 / "tile_000.npz", opt_v2=np.round(expected * 1e4 + 1000))
        redeclare(stage2 / "tile_000.npz", s2_units="dn", s2_offset=-1000)
        np.testing.assert_allclose(open_tiles(folder, stage2_dir=stage2).opt_v2("tile_000"), expected, atol=6e-5)
        (stage2 / "tile_000.json").unlink()
        with pytest.raises(UserError, match=r"tile_000.npz declares reflectance but holds"):
            open_tiles(folder, stage2_dir=stage2)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"opt_v2": None, "image": np.ones(3)}, "lacks opt_v2"),
            ({"opt_v2": np.full((3, SIZE, SIZE), 0.1)}, "shape"),
            ({"opt_v2": np.full((4, SIZE, SIZE), np.nan)}, "no value in 576 pixels"),
        ],
    )
    def test_a_file_that_does_not_fit(self, folder: Path, arrays: dict[str, Any], message: str) -> None:
        rewrite(folder / "stage2_outputs" / "tile_006.npz", **arrays)
        with pytest.raises(UserError, match=f"tile_006.npz.*{message}"):
            open_tiles(folder, stage2_dir=folder / "stage2_outputs")

    def test_choices_that_contradict_each_other(self, folder: Path) -> None:
        with pytest.raises(UserError, match="leave one of the two out"):
            open_tiles(folder, stage2_dir=folder / "stage2_outputs", opt_v2_source="proxy")
        with pytest.raises(UserError, match="no --stage2-dir is given"):
            open_tiles(folder, opt_v2_source="stage2")
        with pytest.raises(UserError, match="is not a folder"):
            open_tiles(folder, stage2_dir=folder / "nowhere")


def linear(tile: Tile) -> Tile:
    return replace(tile, s1=10 ** (tile.s1 / 10))


def swapped(tile: Tile) -> Tile:
    return replace(tile, s1=tile.s1[::-1])


def scored(tile: Tile) -> Tile:
    return replace(tile, s1=(tile.s1 - tile.s1.mean((1, 2), keepdims=True)) / 3)


def shrunk(tile: Tile) -> Tile:
    return replace(tile, s1=tile.s1 / 30)


def shifted(tile: Tile) -> Tile:
    return replace(tile, s1=tile.s1 + 12)


def with_s1(value: float, *, where: tuple[Any, ...] = (slice(None), slice(0, 3))) -> Callable[[Tile], Tile]:
    def change(tile: Tile) -> Tile:
        s1 = tile.s1.copy()
        s1[where] = value
        return replace(tile, s1=s1)

    return change


def s2(scale: float, shift: float = 0.0, **about: Any) -> Callable[[Tile], Tile]:
    return lambda tile: replace(tile, s2=tile.s2 * scale + shift, about=replace(tile.about, **about))


def with_s2(value: float, **about: Any) -> Callable[[Tile], Tile]:
    def change(tile: Tile) -> Tile:
        image = tile.s2.copy()
        image[:, 0, :2] = value
        return replace(tile, s2=image, about=replace(tile.about, **about))

    return change


def stretched(tile: Tile) -> Tile:
    low, high = tile.s2.min((1, 2), keepdims=True), tile.s2.max((1, 2), keepdims=True)
    return replace(tile, s2=(tile.s2 - low) / (high - low))


class TestUnits:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (linear, "declares S1 in dB but holds .*linear power"),
            (scored, "declares S1 in dB but holds .*scaled image"),
            (with_s1(-np.inf), "infinite S1"),
            (with_s1(0.0), "exactly 0 in 12.5%"),
            (with_s1(-9999.0, where=(0, 0, 0)), "-9999 .* dB"),
            (s2(1.0, s2_units="dn"), "declares digital numbers .*holds .*these are reflectances"),
            (s2(1e4), "declares reflectance but holds .*digital numbers or grey levels"),
            (s2(255), "declares reflectance but holds"),
            (s2(1e4, s2_units="dn", s2_offset=-1000), "the offset -1000 is not in these numbers"),
            (s2(5.0, -0.8), "z-scores or images in"),
            (with_s2(-9999.0), "-1e[+]04"),
            (with_s2(0.0), "exactly 0 in all bands"),
            (with_s2(np.inf), "infinite"),
            (with_s2(90_000.0, s2_units="dn"), "declares digital|reflectances of"),
        ],
    )
    def test_one_tile_in_other_units_is_named(
        self, tmp_path: Path, change: Callable[[Tile], Tile], message: str
    ) -> None:
        data = write_folder(tmp_path / "data", change=lambda number, tile: change(tile) if number == 0 else tile)
        with pytest.raises(UserError, match=message) as caught:
            open_tiles(data)
        assert "tile_000.npz" in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (swapped, "the two are swapped"),
            (shrunk, "swapped, or scaled one by one"),
            (shifted, "z-scores or scaled images"),
            (s2(255, s2_units="dn"), "grey levels of a picture"),
            (stretched, "each was stretched by itself"),
        ],
    )
    def test_all_tiles_in_other_units(self, tmp_path: Path, change: Callable[[Tile], Tile], message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_tiles(write_folder(tmp_path / "data", change=lambda _, tile: change(tile)))

    def test_an_undeclared_offset_is_a_warning(self, tmp_path: Path) -> None:
        new = write_folder(tmp_path / "new", change=lambda _, tile: s2(1e4, 1000, s2_units="dn")(tile))
        (warning,) = open_tiles(new).warnings
        assert "s2_offset to -1000" in warning
        declared = write_folder(tmp_path / "declared", change=lambda _, tile: in_dn(tile, offset=-1000))
        assert open_tiles(declared).warnings == ()

    def test_an_undeclared_offset_is_seen_beside_tiles_that_declare_theirs(self, tmp_path: Path) -> None:
        """And beside reflectance, the numbers of which are below any digital ones."""

        def change(number: int, tile: Tile) -> Tile:
            if number == 0:
                return in_dn(tile, offset=-1000)
            return tile if number in (1, 5) else s2(1e4, 1000, s2_units="dn")(tile)

        (warning,) = open_tiles(write_folder(tmp_path / "mixed", change=change)).warnings
        assert "each of 5 tiles, such as tile_002," in warning and "s2_offset to -1000" in warning

    def test_grey_levels_are_seen_beside_reflectance_and_reflectance_beside_numbers_is_no_fault(
        self, tmp_path: Path
    ) -> None:
        def change(grey: bool) -> Callable[[int, Tile], Tile]:
            scale = 255 if grey else 1e4
            return lambda number, tile: tile if number % 2 else s2(scale, s2_units="dn")(tile)

        assert open_tiles(write_folder(tmp_path / "mixed", change=change(False))).warnings == ()
        with pytest.raises(UserError, match="grey levels of a picture"):
            open_tiles(write_folder(tmp_path / "grey", change=change(True)))

    def test_dark_bright_and_patchy_scenes_pass(self, tmp_path: Path) -> None:
        """Water, snow, a city for the radar, and the edge of a swath are legal."""

        def change(number: int, tile: Tile) -> Tile:
            if number == 0:
                return replace(tile, s1=tile.s1 - 9, s2=tile.s2 * 0.1)
            if number == 1:
                return replace(tile, s2=tile.s2 * 0.2 + 0.9)
            if number == 2:
                return replace(tile, s1=tile.s1 + 9)
            return with_s1(np.nan)(with_s2(np.nan)(tile))

        tiles = open_tiles(write_folder(tmp_path / "data", change=change))
        assert measured(tiles, "tile_003").mean() == pytest.approx(1 - 3 / SIZE)
        assert np.isfinite(tiles.statistics.s1_std).all()


class TestSplits:
    def test_a_block_in_two_splits(self, folder: Path) -> None:
        redeclare(tile_file(folder, "tile_004"), block="a")
        with pytest.raises(UserError, match="block 'a' is in two splits: tile_000 in train and tile_004 in val"):
            open_tiles(folder)
        tiles = [make_tile(1), make_tile(2, split="val", block="b"), make_tile(3, split="test", block="a")]
        with pytest.raises(UserError, match="block 'a' is in train and in test"):
            write_tiles(folder.parent / "other", tiles)

    @pytest.mark.parametrize(("one", "other", "fault"), [(0, 4, True), (0, 1, True)])
    def test_one_content_twice(self, tmp_path: Path, one: int, other: int, fault: bool) -> None:
        first = make_tiles()[one]

        def change(number: int, tile: Tile) -> Tile:
            return replace(tile, s1=first.s1, s2=first.s2) if number == other else tile

        with pytest.raises(UserError, match=f"tiles tile_00{one} .* and tile_00{other} .* hold the same"):
            open_tiles(write_folder(tmp_path / "data", change=change))

    def test_a_second_pass_of_the_radar_is_no_copy_within_a_split(self, tmp_path: Path) -> None:
        first = make_tiles()[0]

        def change(copy: int) -> Callable[[int, Tile], Tile]:
            return lambda number, tile: replace(tile, s2=first.s2) if number == copy else tile

        open_tiles(write_folder(tmp_path / "within", change=change(1)))
        with pytest.raises(UserError, match="hold the same S2 image"):
            open_tiles(write_folder(tmp_path / "across", change=change(6)))

    def test_the_same_ground_in_two_splits(self, tmp_path: Path) -> None:
        def data(name: str, shift: float) -> Path:
            places = {"train": at(400_000, 5_300_000), "val": at(400_000 + shift, 5_300_000), "test": at(500_000, 5e6)}
            tiles = [
                make_tile(n, split=split, block=split, size=160, **place)
                for n, (split, place) in enumerate(places.items())
            ]
            return write_tiles(tmp_path / name, tiles)

        open_tiles(data("side by side", 1600))
        with pytest.raises(UserError, match=r"tile_000 \(train\) and tile_001 \(val\) show the same ground"):
            open_tiles(data("by one pixel", 1590))
        with pytest.raises(UserError, match=r"tile_000 \(train\) and tile_001 \(val\) show the same ground near 47.8"):
            open_tiles(data("overlapping", 800))

    def test_blocks_are_shared_out_by_their_names(self) -> None:
        names = [f"block {n}" for n in range(40)]
        split = split_blocks([*names, *names])
        counts = [list(split.values()).count(one) for one in ("train", "val", "test")]
        assert counts == [24, 6, 10] and split == split_blocks(reversed(names))
        with pytest.raises(UserError, match=r"2 block\(s\) of neighbours"):
            split_blocks(["a", "b", "a"])


class TestLayout:
    @pytest.mark.parametrize("key", ["s1_vh", "s2_b8"])
    def test_a_missing_key_is_named(self, folder: Path, key: str) -> None:
        rewrite(tile_file(folder, "tile_003"), **{key: None})
        with pytest.raises(UserError, match=f"tile_003.npz lacks {key}"):
            open_tiles(folder)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"block": None}, "does not say 'block'"),
            ({"split": "val"}, "says split 'val' but lies in train"),
            ({"split": "validation"}, "expected one of train, val, test"),
            ({"s1_units": "linear"}, "declares S1 in 'linear'"),
            ({"s2_units": "reflectance x 1e4"}, "expected 'reflectance' .* or 'dn'"),
            ({"s2_offset": -1000}, "and 0 for reflectance"),
            ({"s2_offset": "-1000"}, "whole number"),
            ({"transform": [10, 0, 0]}, "expected six numbers"),
            ({"transform": [10, 0, "a", 0, -10, 0]}, "expected six numbers"),
            ({"transform": [0, 0, 4e5, 0, 0, 5e6]}, "give pixels an area"),
            ({"transform": [10, 20, 4e5, 10, 20, 5e6]}, "give pixels an area"),
            ({"transform": [10, 0, float("nan"), 0, -10, 5e6]}, "expected six numbers"),
            ({"transform": [10, 0, 10**400, 0, -10, 5e6]}, "expected six numbers"),
            ({"transform": "[10, 0, 0, 0, -10, 0]"}, "expected six numbers"),
            ({"crs": "EPSG:foo"}, "gives crs 'EPSG:foo', which is none that knows"),
            ({"crs": 32633}, "gives crs 32633"),
            ({"crs": ""}, "gives crs ''"),
            ({"crs": 'LOCAL_CS["here",UNIT["metre",1]]'}, "which is none that knows"),
            ({"pixel_m": "ten"}, "has pixel_m 'ten', expected metres above 0"),
            ({"pixel_m": True}, "expected metres above 0"),
            ({"pixel_m": 0}, "expected metres above 0"),
            ({"pixel_m": float("nan")}, "expected metres above 0"),
            ({"pixel_m": 10**400}, "expected metres above 0"),
            ({"s2_offset": 10**400}, "whole number"),
            ({"s2_offset": False}, "whole number"),
            ({"s2_units": ["dn"]}, "expected 'reflectance' .* or 'dn'"),
            ({"s1_units": {}}, "declares S1 in {}"),
            ({"split": ["train"]}, "expected one of train, val, test"),
            ({"block": 7}, "has block 7, expected text"),
            ({"source": []}, r"has source \[\], expected text"),
            ({"country": 43}, "has country 43, expected text"),
            ({"date_s1": 20170613}, "has date_s1 20170613, expected text"),
            ({"date_s2": {"year": 2017}}, "has date_s2 .*, expected text"),
            ({"simulated": "no"}, "expected true or false"),
            ({"simulated": True}, "tile_001 has simulated True|simulated False"),
            ({"pixel_m": 20}, "has pixel_m"),
        ],
    )
    def test_what_the_json_may_not_say(self, folder: Path, values: dict[str, Any], message: str) -> None:
        redeclare(tile_file(folder, "tile_001"), **values)
        with pytest.raises(UserError, match=message):
            open_tiles(folder)

    @pytest.mark.parametrize("text", [None, "[]", "{"])
    def test_a_json_that_is_none(self, folder: Path, text: str | None) -> None:
        path = tile_file(folder, "tile_002").with_suffix(".json")
        path.unlink()
        if text is not None:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="tile_002.json"):
            open_tiles(folder)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"s2_b4": np.full((SIZE, 8), 0.1)}, r"s2_b4 of \(24, 8\)"),
            ({"s1_vv": np.full((1, SIZE, SIZE), -9.0)}, "expected one .H, W."),
            ({"s1_vv": np.full((SIZE, SIZE), "a")}, "expected real numbers"),
            ({"s1_vv": np.full((SIZE, SIZE), np.nan)}, "no pixel of S1 that was measured"),
        ],
    )
    def test_arrays_that_do_not_fit(self, folder: Path, arrays: dict[str, Any], message: str) -> None:
        rewrite(tile_file(folder, "tile_001"), **arrays)
        with pytest.raises(UserError, match=f"tile_001.npz.*{message}"):
            open_tiles(folder)

    def test_tiles_of_two_sizes(self, folder: Path) -> None:
        keys = ("s1_vv", "s1_vh", "s2_b2", "s2_b3", "s2_b4", "s2_b8")
        larger = make_tile(99, size=30)
        rewrite(tile_file(folder, "tile_001"), **dict(zip(keys, (*larger.s1, *larger.s2), strict=True)))
        with pytest.raises(UserError, match=r"tile_00\d has \(24, 24\) pixels and tile_001 \(30, 30\)"):
            open_tiles(folder)

    def test_no_folder_and_no_tiles(self, tmp_path: Path, folder: Path) -> None:
        with pytest.raises(UserError, match="does not exist"):
            open_tiles(tmp_path / "nowhere")
        with pytest.raises(UserError, match="nbhelpers data prepare tiles"):
            open_tiles(tmp_path)
        for path in (folder / "tiles" / "val").iterdir():
            path.unlink()
        with pytest.raises(UserError, match="val holds no .npz tile"):
            open_tiles(folder)

    def test_one_name_in_two_splits(self, folder: Path) -> None:
        old = tile_file(folder, "tile_007")
        for path in (old, old.with_suffix(".json")):
            path.rename(path.with_stem("tile_000"))
        with pytest.raises(UserError, match="have one name"):
            open_tiles(folder)

    @pytest.mark.parametrize("name", ["tile_000", "tile_006"])
    def test_damaged_files(self, folder: Path, name: str) -> None:
        path = tile_file(folder, name)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(UserError, match=f"{name}.npz cannot be read"):
            open_tiles(folder)

    def test_very_few_damaged_training_tiles_are_listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nbhelpers.stages.sar_grounding.tiles.MAX_UNREADABLE", 0.25)
        folder = write_folder(tmp_path / "data")
        tile_file(folder, "tile_000").write_bytes(b"PK")
        tiles = open_tiles(folder)
        assert list(tiles.unreadable) == ["tile_000"] and len(tiles.split["train"]) == 3

    def test_nothing_is_left_of_a_folder_that_fails(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no val tile to write"):
            write_tiles(tmp_path / "data", [make_tile(1)])
        assert list(tmp_path.iterdir()) == []
        bad = replace(make_tile(1), s2=np.zeros((3, SIZE, SIZE), np.float32))
        with pytest.raises(UserError, match=r"s2 of shape \(3, 24, 24\)"):
            write_tiles(tmp_path / "data", [bad])
        folder = write_folder(tmp_path / "data")
        with pytest.raises(UserError, match="holds files already"):
            write_folder(folder)

    def test_all_bands_are_there_only_where_they_were_written(self, tmp_path: Path, folder: Path) -> None:
        twelve = np.arange(12 * SIZE**2).reshape(12, SIZE, SIZE) % 3000
        data = write_folder(
            tmp_path / "twelve", change=lambda _, tile: replace(in_dn(tile, offset=-1000), s2_l2a=twelve)
        )
        found = open_tiles(data).s2_l2a("tile_000")
        assert np.isnan(found[0, 0, 0]) and found[0, 0, 1] == 1 - 1000 and found.shape == (12, SIZE, SIZE)
        with pytest.raises(UserError, match="lacks s2_l2a"):
            open_tiles(folder).s2_l2a("tile_000")
