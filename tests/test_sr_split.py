"""No place in two splits, whoever divides them; copies are found under any name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentinel import product, scene, write_v2

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import check_disjoint
from nbhelpers.stages.super_resolution.patch import FOLDER, Patch, write_patch
from nbhelpers.stages.super_resolution.patches import WithValidation, open_patches
from nbhelpers.stages.super_resolution.split import Split, keys, split_patches
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
