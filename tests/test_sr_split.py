"""No place in two splits, whoever divides them; copies are found under any name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points
from sentinel import product, scene, write_v2

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import check_disjoint
from nbhelpers.science.ground import CELL, cell_name, ground_cells
from nbhelpers.stages.super_resolution.patch import FOLDER, Patch, write_patch
from nbhelpers.stages.super_resolution.patches import WithValidation, open_patches
from nbhelpers.stages.super_resolution.split import Split, in_turn, keys, split_patches
from nbhelpers.stages.super_resolution.validation import validate


def patches(*places: str, each: int = 3, countries: Sequence[str | None] = (), official: str = "") -> list[Patch]:
    """``each`` patches of every place; ``countries`` and ``official`` (letters t, v, e, -) go round."""
    found = []
    for place in places:
        for number in range(each):
            index = len(found)
            country = countries[index % len(countries)] if countries else None
            letter = official[index % len(official)] if official else "-"
            named = {"t": "train", "v": "validation", "e": "test"}.get(letter)
            found.append(Patch(index, f"{place}_{number}", place, country, named))
    return found


def places(split: Split) -> dict[str, list[str]]:
    return {name: sorted({patch.place for patch in group}) for name, group in split.patches.items()}


def test_whole_places_in_the_stated_shares() -> None:
    split = split_patches(patches(*(f"T{i:02d}" for i in range(20))))
    assert {name: len(group) for name, group in places(split).items()} == {"train": 12, "val": 3, "test": 5}
    assert sum(len(group) for group in split.patches.values()) == 60 and split.by_place
    assert split.rule.startswith("by place: validation T")


@given(st.integers(3, 60), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_every_split_has_a_place_of_its_own(n_places: int, each: int) -> None:
    split = split_patches(patches(*(f"T{i}" for i in range(n_places)), each=each))
    check_disjoint(places(split))
    assert all(split.patches.values()) and sum(map(len, split.patches.values())) == n_places * each


def test_it_depends_on_nothing_but_the_names() -> None:
    one = split_patches(patches("a", "b", "c", "d", "e"))
    other = split_patches(patches("d", "e", "a", "c", "b", each=1))
    assert places(one) == places(other)


def test_places_that_are_asked_for() -> None:
    every = patches("a", "b", "c", "d", "e")
    split = split_patches(every, val_places=("d",), test_places=("a", "b"))
    assert places(split) == {"train": ["c", "e"], "val": ["d"], "test": ["a", "b"]}
    some = places(split_patches(every, test_places=("a",)))
    assert some["test"] == ["a"] and len(some["val"]) == 1 and len(some["train"]) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"val_places": ("x",)}, "no readable patch of place 'x'"),
        ({"val_places": ("a",), "test_places": ("a",)}, "in val_places and in test_places"),
        ({"test_places": ("a", "b")}, "found 1 places"),
        ({"by": "country"}, "no metadata.parquet"),
        ({"by": "official"}, "names no train patch"),
        ({"by": "official", "val_places": ("a",)}, "choose one of them"),
    ],
)
def test_what_cannot_be_split(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        split_patches(patches("a", "b", "c"), **options)


def test_two_places_are_too_few() -> None:
    with pytest.raises(UserError, match=r"found 2 places \(a, b\) to divide, .* by places needs 3"):
        split_patches(patches("a", "b"))


def test_by_country_keeps_tiles_on_borders_whole() -> None:
    every = patches("a", "b", "c", "d", "e", "f", countries=("Austria", "Austria", "Serbia"))  # a, b, … all Austrian
    every = [dataclasses.replace(p, country={"c": "Serbia", "d": "Ireland"}.get(p.place, p.country)) for p in every]
    every.append(Patch(len(every), "unlisted", "z"))
    split = split_patches(every, by="country")
    found = places(split)
    check_disjoint(found)
    assert sorted(map(tuple, found.values())) == [("a", "b", "e", "f"), ("c",), ("d",)]
    assert "1 patches that metadata.parquet does not list are left out" in split.rule


def test_official_split_says_what_it_shares() -> None:
    split = split_patches(patches("a", "b", each=4, official="tve-"), by="official")
    assert {name: len(group) for name, group in split.patches.items()} == {"train": 2, "val": 2, "test": 2}
    assert "2 of 2 tiles stand in more than one split" in split.rule and "2 patches that it does not list" in split.rule
    assert not split.by_place and "place" not in keys(split, {})
    apart = split_patches(patches("a", "b", "c", each=1, official="tve"), by="official")
    assert apart.by_place and "place" in keys(apart, {})


def test_broken_patches_are_not_lost() -> None:
    every = patches("a", "b", "c", "d")
    split = split_patches(every, test_places=("a",), broken=[0, 3, 4, 5])  # one of a, and all of b
    assert every[0] in split.patches["test"]
    assert set(every[3:6]) <= set(split.patches["train"])
    assert {patch.place for patch in split.patches["val"]} <= {"c", "d"}


def test_a_folder_for_validation() -> None:
    own = patches("a", "b", "c", "d")
    separate = [Patch(12 + i, f"v{i}", "v", part="val") for i in range(2)]
    split = split_patches([*own, *separate])
    assert split.patches["val"] == tuple(separate) and "validation from a folder of its own" in split.rule
    assert len(places(split)["test"]) == 1 and len(places(split)["train"]) == 3
    with pytest.raises(UserError, match="val_places and a validation folder"):
        split_patches([*own, *separate], val_places=("a",))


def test_the_same_folder_for_validation_is_found(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 2, "29UPU": 2, "35VPK": 2})
    same = WithValidation(open_patches(tmp_path), open_patches(tmp_path))
    content = validate(same).content
    found = keys(split_patches(same.patches), content)
    for kind in ("place", "patch", "content"):
        with pytest.raises(UserError, match="share"):
            check_disjoint(found[kind])


def test_a_copy_under_another_name_and_offset_is_found(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 2, "29UPU": 2, "35VPK": 2})
    own = open_patches(tmp_path)
    clean = keys(split_patches(own.patches), validate(own).content)
    for kind in clean.values():
        check_disjoint(kind)
    shifted = {band: pixels + 1000 for band, pixels in scene(0).items()}  # the first patch of 33UUP
    write_patch(tmp_path / FOLDER / product("31UFT"), f"{product('31UFT')}_5_5", shifted, offset=-1000)
    more = open_patches(tmp_path)
    split = split_patches(more.patches, val_places=("33UUP",), test_places=("29UPU",))
    found = keys(split, validate(more).content)
    check_disjoint(found["place"])
    with pytest.raises(UserError, match="share 1 of their keys"):
        check_disjoint(found["content"])


# --- overlaps on the ground -----------------------------------------------------------------------------------------

SIDE = 1200.0  # metres


def at(x: float, y: float, zone: int = 33) -> tuple[str, tuple[float, ...]]:
    """A patch of 120 x 120 pixels of 10 m with its upper left corner there."""
    return f"EPSG:{32600 + zone}", (10.0, 0.0, x, 0.0, -10.0, y)


def cells(*where: tuple[str | None, tuple[float, ...]]) -> list[set[int]]:
    found = ground_cells(dict(enumerate(where)), dict.fromkeys(range(len(where)), (120, 120)))
    return [set(found.get(index, ())) for index in range(len(where))]


def test_neighbours_share_no_ground() -> None:
    grid = [at(300_000 + SIDE * column, 5_400_000 - SIDE * row) for row in range(12) for column in range(12)]
    found = cells(*grid)
    assert all(found) and sum(map(len, found)) == len(set.union(*found))
    area = cells(*grid, ("EPSG:32633", (120.0, 0.0, 300_000.0, 0.0, -120.0, 5_400_000.0)))
    assert all(one & area[-1] for one in area[:-1]), "the whole area shows ground of each patch in it"


@pytest.mark.parametrize("zone", [32, 34])
def test_overlaps_are_found_in_another_zone(zone: int) -> None:
    x, y = 300_000.0, 5_400_000.0
    (east,), (north,) = warp_points("EPSG:32633", f"EPSG:{32600 + zone}", [x + 300], [y - 250])
    ours, theirs, far = cells(at(x, y), at(east, north, zone), at(east + 5000, north, zone))
    assert ours & theirs and not ours & far and ours != theirs


@given(st.floats(-1180, 1180), st.floats(-1180, 1180))
@settings(max_examples=40, deadline=None)
def test_the_smallest_overlap_is_found(right: float, down: float) -> None:
    one, other = cells(at(700_000, 6_000_000), at(700_000 + right, 6_000_000 - down))
    assert one & other


def test_without_a_georeference_there_is_no_ground() -> None:
    assert cells((None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)), at(300_000, 5_400_000))[0] == set()


def test_names_of_cells_are_where_they_lie() -> None:
    (found,) = cells(at(300_000, 5_400_000))
    (lon,), (lat,) = warp_points("EPSG:32633", "EPSG:4326", [300_600], [5_399_400])
    north, _, east, _ = cell_name(min(found)).split()
    assert abs(float(north) - lat) < 30 * CELL and abs(float(east) - lon) < 30 * CELL, "the middle, to a few metres"
    (south_west,) = cells(("EPSG:32733", (10.0, 0.0, 300_000.0, 0.0, -10.0, 8_000_000.0)))
    assert float(cell_name(min(south_west)).split()[0]) < 0


def test_patches_that_overlap_are_left_out_of_the_earlier_split() -> None:
    every = patches("a", "b", "c", "d", each=2)  # 0 1 of a, 2 3 of b, and so on
    ground = {0: (1,), 1: (2,), 2: (2, 3), 3: (4,), 4: (4,), 5: (6,)}
    split = split_patches(every, val_places=("b",), test_places=("c",), ground=ground)
    left = {name: [patch.index for patch in group] for name, group in split.patches.items()}
    assert left == {"train": [0, 6, 7], "val": [2], "test": [4, 5]}, "1 overlaps with 2, and 3 with 4"
    assert "1 val patches that overlap" in split.rule and "1 train patches that overlap" in split.rule
    check_disjoint(keys(split, {}, ground)["ground"])
    with pytest.raises(UserError, match="all 2 patches of the val split show ground"):
        split_patches(every, val_places=("b",), test_places=("c",), ground={2: (1,), 3: (1,), 4: (1,)})


def test_a_validation_folder_that_overlaps_is_named_and_not_thinned() -> None:
    every = [*patches("a", "b", "c"), Patch(9, "v", "v", part="val")]
    split = split_patches(every, test_places=("c",), ground={0: (1,), 9: (1,)})
    assert len(split.patches["val"]) == 1 and len(split.patches["train"]) == 6
    with pytest.raises(UserError, match="share 1 of their keys"):
        check_disjoint(keys(split, {}, {0: (1,), 9: (1,)})["ground"])


def test_two_tiles_of_the_same_ground_in_real_files(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 2, "29UPU": 2, "35VPK": 2}, size=120)
    (x,), (y,) = warp_points("EPSG:32633", "EPSG:32632", [300_100], [5_391_500])
    transform = Affine(10, 0, x, 0, -10, y)
    other = f"{product('32TMT')}_5_5"
    write_patch(tmp_path / FOLDER / product("32TMT"), other, scene(77, size=120), crs="EPSG:32632", transform=transform)
    more = open_patches(tmp_path)
    seen = validate(more)
    assert len(seen.ground) == 7 and all(seen.ground.values())
    split = split_patches(more.patches, val_places=("29UPU",), test_places=("33UUP",), ground=seen.ground)
    assert other not in {patch.id for patch in split.patches["train"]}
    assert "1 train patches that overlap with other splits on the ground are left out" in split.rule
    careless = split_patches(more.patches, val_places=("29UPU",), test_places=("33UUP",))
    with pytest.raises(UserError, match=r"splits train and test share \d+ of their keys, e.g. '48.\d+ N 12.\d+ E'"):
        check_disjoint(keys(careless, seen.content, seen.ground)["ground"])


# --- some of the patches --------------------------------------------------------------------------------------------


def test_patches_are_taken_from_all_places_in_turn() -> None:
    every = [*patches("a", each=50), *(Patch(50 + i, f"b_{i}", "b") for i in range(2)), Patch(52, "c", "c")]
    counts = [[patch.place for patch in in_turn(every, n)].count("a") for n in (3, 5, 6)]
    assert counts == [1, 2, 3] and in_turn(every, 3) == in_turn(every[::-1], 3)
    assert sorted(patch.index for patch in in_turn(every, None)) == list(range(53))
    assert [patch.index for patch in in_turn(patches("a", each=50), 5)] != [0, 1, 2, 3, 4], "not the first of a place"
