"""Which events, tiles or simulations are for training, validation and test; the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

from nbhelpers.core.errors import UserError

Key = TypeVar("Key", bound=Hashable)

SPLITS = ("train", "val", "test")


def _rank(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def hash_order(keys: Iterable[str]) -> list[str]:
    """``keys`` in an order that looks random but depends on nothing but the keys themselves."""
    return sorted(keys, key=_rank)


def by_hash(keys: Sequence[str], fractions: tuple[float, float, float]) -> dict[str, list[str]]:
    """Split unique ``keys`` into train, val and test of about the given fractions, each of at least one key.

    Raises:
        UserError: with fewer than three keys, because then one split would be empty.
    """
    return _cut(hash_order(keys), fractions, what="events")


def by_order(keys: Sequence[Key], fractions: tuple[float, float, float]) -> dict[str, list[Key]]:
    """Split ``keys``, sorted in time, so that training comes first, then validation, then test."""
    return _cut(list(keys), fractions, what="dates")


def _cut(ordered: list[Key], fractions: tuple[float, float, float], *, what: str) -> dict[str, list[Key]]:
    n = len(ordered)
    if n < 3:
        raise UserError(
            f"found {n} {what}, but a train/val/test split needs at least 3: add data or give an own split."
        )
    n_test = max(1, round(n * fractions[2]))
    n_val = max(1, round(n * fractions[1]))
    n_train = max(1, n - n_val - n_test)
    n_val = min(n_val, n - n_train - 1)
    return {
        "train": ordered[:n_train],
        "val": ordered[n_train : n_train + n_val],
        "test": ordered[n_train + n_val :],
    }


def check_disjoint(splits: Mapping[str, Iterable[Hashable]]) -> None:
    """Raise ``UserError`` when a key stands in two splits: such a test score would be a training score."""
    sets = {name: set(keys) for name, keys in splits.items()}
    for (a, keys_a), (b, keys_b) in combinations(sets.items(), 2):
        if shared := keys_a & keys_b:
            example = sorted(map(str, shared))[0]
            raise UserError(
                f"splits {a} and {b} share {len(shared)} of their keys, e.g. {example!r}: make them disjoint."
            )


def split_hash(splits: Mapping[str, Iterable[str]]) -> str:
    """sha256 over the split's names and keys: two runs with equal hashes were scored on the same events."""
    text = json.dumps({name: sorted(keys) for name, keys in splits.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
