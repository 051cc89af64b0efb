"""What an ablation amounts to: the best setting by the stage's floor. Decided on validation; test is only shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from nbhelpers.stages.neural_operator.verdict import DEARER, HALF, too_few
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

SHARPNESS, COST = "spectrum_error_high", "field_error"
DECIDED_BY = (COST, SHARPNESS)


@dataclass(frozen=True)
class Point:
    """One setting against field error alone, seed by seed, on one split."""

    name: str
    sharper: float  # high-band spectrum error over the reference's, the mean over seeds
    dearer: float  # field error over the reference's, likewise
    by_seed: Mapping[str, tuple[float, float]]

    @property
    def meets(self) -> bool:
        """Whether it does what the floor asks, with every seed."""
        return all(sharper <= HALF and dearer <= DEARER for sharper, dearer in self.by_seed.values())

    def __str__(self) -> str:
        return f"{self.name} (high-band error {self.sharper:.2f}x, field error {self.dearer - 1:+.1%})"


def points(report: Mapping[str, Any], split: str) -> list[Point]:
    """Every setting but the reference that shares a seed with it."""
    compared = report[split]
    theirs = compared.get(report["reference"])
    found = []
    for name, cells in compared.items():
        if name == report["reference"] or theirs is None:
            continue
        seeds = [seed for seed in cells[COST]["seeds"] if seed in theirs[COST]["seeds"]]
        by_seed = {
            seed: tuple(cells[metric]["seeds"][seed] / theirs[metric]["seeds"][seed] for metric in (SHARPNESS, COST))
            for seed in seeds
        }
        if by_seed:
            sharper, dearer = (fmean(pair[i] for pair in by_seed.values()) for i in (0, 1))
            found.append(Point(name, sharper, dearer, by_seed))
    return found


def judge(report: Mapping[str, Any]) -> tuple[str | None, list[Gate], Verdict]:
    """The sharpest setting that halves the high-band error at no more than 5 % field error; gates of it; the verdict.

    Args:
        report: the content of sweep.json so far.
    """
    if len(report["rows"]) < report["planned"]:
        done = f"{len(report['rows'])} of {report['planned']} runs are done"
        return None, [], Verdict("not finished", f"{done}.", "run it again: it goes on where it stopped.")
    if all(row["stopped"] is not None for row in report["rows"]):
        return None, [], Verdict("stopped", "Guards stopped every run.", "do what the first of them says.")
    found = points(report, "val")
    if not found:
        reference = report["reference"]
        return None, [], Verdict("undecided", f"No seed has both {reference} and another setting.", "see why.")
    n = report["val"][found[0].name][COST]["n"]
    met = [point for point in found if point.meets]
    best = min(met, key=lambda point: point.sharper) if met else None
    shown = best or min(found, key=lambda point: max(point.sharper / HALF, point.dearer / DEARER))
    said = f"{shown} on validation; the floor is {HALF:g}x at most {DEARER - 1:.0%}."
    gates = _gates(shown, "validation") + [
        gate for point in points(report, "test") if point.name == shown.name for gate in _gates(point, "test")
    ]
    if n < MIN_GROUPS:
        return best.name if best else None, gates, Verdict("undecided", f"{said} But {too_few(n)}.", "add simulations.")
    if best is None:
        return None, gates, Verdict("no setting meets the floor", said, _next(found))
    return best.name, gates, Verdict("success", said, _controls(report, best, found))


def _gates(point: Point, split: str) -> list[Gate]:
    sharper, dearer = (", ".join(f"{pair[i]:.2f}" for pair in point.by_seed.values()) for i in (0, 1))
    return [
        Gate(
            f"{point.name} at least halves the high-band error on {split}",
            all(pair[0] <= HALF for pair in point.by_seed.values()),
            f"{sharper} of field-only's, by seed",
        ),
        Gate(
            f"{point.name} costs at most 5 % field error on {split}",
            all(pair[1] <= DEARER for pair in point.by_seed.values()),
            f"{dearer} of field-only's, by seed",
        ),
    ]


def _controls(report: Mapping[str, Any], best: Point, found: Sequence[Point]) -> str:
    others = [str(point) for point in found if point.name.startswith(("static", "share"))]
    beside = f"beside it {'; '.join(others)}; " if others else ""
    return f"{beside}look at the rollouts, which a sharper step may make better or worse."


def _next(found: Sequence[Point]) -> str:
    if all(point.sharper <= HALF for point in found):
        return "lower the weights: all are sharp enough and cost too much."
    if all(point.dearer <= DEARER for point in found):
        return "raise the weights: all are cheap and not sharp enough."
    return "try weights between those that are sharp and those that are cheap."
