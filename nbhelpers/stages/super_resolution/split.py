"""Which patches are for training, validation and test: by place, by country, or as the data set's authors say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nbhelpers.core import splits
from nbhelpers.core.errors import UserError
from nbhelpers.science.ground import cell_name
from nbhelpers.stages.super_resolution.patch import Patch

FRACTIONS = (0.6, 0.15, 0.25)  # train, val, test of the places (or countries)
OFFICIAL = {"train": "train", "validation": "val", "test": "test"}  # names in metadata.parquet

Rule = Literal["place", "country", "official"]


@dataclass(frozen=True)
class Split:
    """Patches by split name, and the rule that made them, in words."""

    rule: str
    patches: Mapping[str, tuple[Patch, ...]]  # train, val, test; sorted by index
    by_place: bool  # whether no place may stand in two splits


def split_patches(
    patches: Sequence[Patch],
    *,
    by: Rule = "place",
    val_places: Collection[str] = (),
    test_places: Collection[str] = (),
    broken: Collection[int] = (),
    ground: Mapping[int, Collection[int]] | None = None,
) -> Split:
    """Whole places to each split; with ``by="official"`` what ``metadata.parquet`` says.

    Patches whose ``part`` is "val" (of a separate validation folder) are the validation split, and the others are
    divided into training and test.

    Neighbouring tiles overlap by some 10 km, so two places may show the same ground: training patches that overlap
    with validation or test, and validation patches that overlap with the test, are left out. A validation folder is
    taken as it is.

    Args:
        patches: those to use, without incomplete ones.
        val_places: places to hold out for validation; the other two splits share the rest.
        test_places: places to hold out for the test.
        broken: indices of patches that cannot be read: they go where their place goes, and to training where no patch
            of it can be read, so that none is lost to the count of failures.
        ground: cells on the ground by index, of the validation.

    Raises:
        UserError: a split of which nothing is left, too few places, an unknown or doubly held out place, no country or
            official split in the metadata.
    """
    if by == "official":
        if val_places or test_places or any(patch.part for patch in patches):
            raise UserError(
                "split is 'official', but val_places, test_places or val_dir are given too: choose one of them."
            )
        return _apart(_official(patches), ground or {}, keep=())
    own = [patch for patch in patches if not patch.part]
    given = {"val": [patch for patch in patches if patch.part]} if len(own) < len(patches) else {}
    groups = _countries(own) if by == "country" else {patch.place: patch.place for patch in own}
    readable = {patch.place for patch in own if patch.index not in set(broken)}
    chosen = _places(readable, groups, given, set(val_places), set(test_places), by)
    named = {place: name for name, places in chosen.items() for place in places}
    members: dict[str, list[Patch]] = {name: list(given.get(name, ())) for name in splits.SPLITS}
    for patch in own:
        if patch.place in groups:
            members[named.get(patch.place, "train")].append(patch)
    what = "country" if by == "country" else "place"
    rule = f"by {what}: validation {_names(chosen['val'], given)}, test {_names(chosen['test'], {})}"
    if left_out := len(own) - sum(len(group) for group in members.values()) + len(given.get("val", ())):
        rule += f"; {left_out} patches that metadata.parquet does not list are left out"
    split = Split(rule, {name: _sorted(group) for name, group in members.items()}, by_place=True)
    return _apart(split, ground or {}, keep=given)


def in_turn(patches: Iterable[Patch], n: int | None) -> list[Patch]:
    """At most ``n`` patches: one of every place, then another of every place; places and patches by their hashes."""
    by_place: dict[str, list[Patch]] = defaultdict(list)
    for patch in patches:
        by_place[patch.place].append(patch)
    ranked = []
    for number, place in enumerate(splits.hash_order(by_place)):
        rank = {id_: rank for rank, id_ in enumerate(splits.hash_order({patch.id for patch in by_place[place]}))}
        group = sorted(by_place[place], key=lambda patch: (rank[patch.id], patch.index))
        ranked += [((turn, number), patch) for turn, patch in enumerate(group)]
    return [patch for _, patch in sorted(ranked, key=lambda one: one[0])][:n]


def _apart(split: Split, ground: Mapping[int, Collection[int]], *, keep: Collection[str]) -> Split:
    """The split without patches that show ground of a later one; those named in ``keep`` are not touched or minded."""
    taken: set[int] = set()
    patches, rule = dict(split.patches), split.rule
    for name in ("test", "val", "train"):
        if name in keep:
            continue
        patches[name] = tuple(one for one in patches[name] if taken.isdisjoint(ground.get(one.index, ())))
        if lost := len(split.patches[name]) - len(patches[name]):
            if not patches[name]:
                raise UserError(
                    f"all {lost} patches of the {name} split show ground that a patch of another split shows too: add "
                    "patches of other places, or give val_places and test_places that lie apart."
                )
            rule += f"; {lost} {name} patches that overlap with other splits on the ground are left out"
        taken.update(cell for one in patches[name] for cell in ground.get(one.index, ()))
    return Split(rule, patches, split.by_place)


def _places(
    readable: set[str],
    groups: Mapping[str, str],
    given: Mapping[str, Sequence[Patch]],
    val_places: set[str],
    test_places: set[str],
    by: Rule,
) -> dict[str, list[str]]:
    """Places of each split: those asked for, and whole groups of the others by a hash of their names."""
    if unknown := sorted((val_places | test_places) - readable):
        raise UserError(
            f"there is no readable patch of place {unknown[0]!r}: val_places and test_places may name "
            f"{', '.join(sorted(readable)[:8])}."
        )
    if both := sorted(val_places & test_places):
        raise UserError(f"place {both[0]!r} is in val_places and in test_places: hold it out for one of them.")
    if given and val_places:
        raise UserError("val_places and a validation folder are both given: choose one of them.")
    asked = {"val": val_places, "test": test_places}
    wanted = [name for name in ("val", "test") if not asked[name] and name not in given]
    members = defaultdict(list)
    for place in sorted(readable - val_places - test_places):
        if place in groups:
            members[groups[place]].append(place)
    order = splits.hash_order(members)
    if len(order) < 1 + len(wanted):
        what = "countries" if by == "country" else "places"
        raise UserError(
            f"found {len(order)} {what} ({', '.join(sorted(order)) or 'none'}) to divide, but a split into training"
            f"{' and ' if wanted else ''}{' and '.join(wanted)} by {what} needs {1 + len(wanted)}: add patches of "
            "other places, or give val_places, test_places or a validation folder."
        )
    cut: dict[str, list[str]] = {"train": order}
    if wanted:
        # A split that is not drawn leaves its share to the training split.
        fraction = dict(zip(splits.SPLITS, FRACTIONS, strict=True))
        counts = {name: max(1, round(fraction[name] * len(order))) for name in wanted}
        while sum(counts.values()) >= len(order):
            counts[max(counts, key=lambda name: counts[name])] -= 1
        n_train, n_val = len(order) - sum(counts.values()), counts.get("val", 0)
        cut = {"train": order[:n_train], "val": order[n_train : n_train + n_val], "test": order[n_train + n_val :]}
    drawn = {name: [place for group in cut.get(name, ()) for place in members[group]] for name in splits.SPLITS}
    return {name: sorted([*drawn[name], *asked.get(name, ())]) for name in splits.SPLITS}


def _countries(patches: Sequence[Patch]) -> dict[str, str]:
    """Country of each place that the metadata know: that of most of its patches, because tiles cross borders."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for patch in patches:
        if patch.country is not None:
            counts[patch.place][patch.country] += 1
    if not counts:
        raise UserError("split is 'country', but no metadata.parquet beside the data names countries: use 'place'.")
    return {place: min(count, key=lambda one: (-count[one], one)) for place, count in counts.items()}


def _official(patches: Sequence[Patch]) -> Split:
    members: dict[str, list[Patch]] = {name: [] for name in splits.SPLITS}
    for patch in patches:
        if patch.official in OFFICIAL:
            members[OFFICIAL[patch.official]].append(patch)
    if empty := [name for name, group in members.items() if not group]:
        raise UserError(
            f"split is 'official', but metadata.parquet names no {empty[0]} patch of this data set: use 'place'."
        )
    places: dict[str, set[str]] = {name: {patch.place for patch in group} for name, group in members.items()}
    everywhere = set.union(*places.values())
    shared = {place for place in everywhere if sum(place in found for found in places.values()) > 1}
    rule = "official, as metadata.parquet says"
    if shared:
        rule += f" (cells of a grid: {len(shared)} of {len(everywhere)} tiles stand in more than one split)"
    if left_out := len(patches) - sum(len(group) for group in members.values()):
        rule += f"; {left_out} patches that it does not list are left out"
    return Split(rule, {name: _sorted(group) for name, group in members.items()}, by_place=not shared)


def keys(
    split: Split, content: Mapping[int, str], ground: Mapping[int, Collection[int]] | None = None
) -> dict[str, dict[str, set[str]]]:
    """What no two splits may share, by kind and split: places (where the split is by place), patches, content, ground.

    Args:
        content: hash of the pixels by index of a patch (of the validation): a copy under another name is found.
        ground: cells on the ground by index of a patch (of the validation): an overlap is found.
    """
    cells = {index: {cell_name(cell) for cell in of_patch} for index, of_patch in (ground or {}).items()}
    found = {
        "patch": {name: {patch.id for patch in group} for name, group in split.patches.items()},
        "content": {
            name: {content[patch.index] for patch in group if patch.index in content}
            for name, group in split.patches.items()
        },
        "ground": {
            name: {cell for patch in group for cell in cells.get(patch.index, ())}
            for name, group in split.patches.items()
        },
    }
    if split.by_place:
        found["place"] = {name: {patch.place for patch in group} for name, group in split.patches.items()}
    return found


def _sorted(patches: Sequence[Patch]) -> tuple[Patch, ...]:
    return tuple(sorted(patches, key=lambda patch: patch.index))


def _names(places: Sequence[str], given: Mapping[str, Sequence[Patch]]) -> str:
    if given:
        return "from a folder of its own"
    return ", ".join(places[:6]) + (f" and {len(places) - 6} more" if len(places) > 6 else "")
