"""Training data among the validation or test data (G15)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from nbhelpers.training.guards.guard import Finding, Guard, Rehearsal


class Leakage(Guard):
    """No key of any kind (event, tile, date, content) may stand in two splits."""

    name = "leakage"

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        for kind, splits in rehearsal.task.keys().items():
            sets = {split: set(keys) for split, keys in splits.items()}
            for a, b in combinations(sets, 2):
                if shared := sets[a] & sets[b]:
                    yield self.stop(
                        rehearsal.step,
                        f"splits {a} and {b} share data: the same {kind} stands in both",
                        evidence=f"{len(shared)} of {len(sets[a])} in {a} and {len(sets[b])} in {b}, e.g. "
                        f"{min(map(str, shared))!r}",
                        cure=f"Split the data by {kind}, and take what stands twice out of {a}.",
                    )
