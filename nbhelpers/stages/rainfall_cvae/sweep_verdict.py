"""What a sweep amounts to: the best setting by the stage's floor. Decided on validation; test is only shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from nbhelpers.stages.rainfall_cvae.verdict import DEARER
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

TAIL, WHOLE = "mae_tail", "mae_all"
DECIDED_BY = (WHOLE, TAIL)
DILUTED = "-diluted"  # end of the name of a setting that is trained for comparison only
SEEDS = 3  # the floor asks for as many
TITLES = {"val": "validation", "test": "test"}  # splits as gates call them
Pair = tuple[float, float]  # MAE_tail and MAE_all over those of another setting with the same seed


@dataclass(frozen=True)
class Point:
    """One setting against plain MAE, seed by seed, on one split."""

    name: str
    by_seed: Mapping[str, Pair]

    @property
    def mean(self) -> Pair:
        """Over seeds."""
        return _mean(self.by_seed)

    @property
    def is_better(self) -> bool:
        """Whether extremes are closer to the truth with every seed."""
        return all(tail < 1 for tail, _ in self.by_seed.values())

    @property
    def is_allowed(self) -> bool:
        """Whether it is within the price with every seed."""
        return all(whole <= DEARER for _, whole in self.by_seed.values())

    @property
    def meets(self) -> bool:
        """Whether it does what the floor asks."""
        return self.is_better and self.is_allowed

    @property
    def misses_by(self) -> float:
        """How far the worse of the two is from the floor, on average over seeds; the smaller the nearer."""
        tail, whole = self.mean
        return max(tail, whole / DEARER)

    def __str__(self) -> str:
        return f"{self.name} ({_change(self.mean)} against plain-mae at equal seed)"


def ratios(report: Mapping[str, Any], split: str, name: str, other: str) -> dict[str, Pair]:
    """MAE_tail and MAE_all of a setting over those of ``other``, by the seeds that both were finished with."""
    mine, theirs = (report[split].get(one) for one in (name, other))
    if mine is None or theirs is None:
        return {}
    found = {}
    for seed in mine[TAIL]["seeds"]:
        values = [(mine[metric]["seeds"][seed], theirs[metric]["seeds"].get(seed)) for metric in (TAIL, WHOLE)]
        if all(value is not None for pair in values for value in pair):  # MAE_tail needs extremes in the truth
            (tail, plain_tail), (whole, plain_whole) = values
            found[seed] = (tail / plain_tail, whole / plain_whole)
    return found


def points(report: Mapping[str, Any], split: str) -> list[Point]:
    """Every setting but the reference that shares a seed with it, in the order of the table."""
    reference = report["reference"]
    found = [Point(name, ratios(report, split, name, reference)) for name in report[split] if name != reference]
    return [point for point in found if point.by_seed]


def judge(
    report: Mapping[str, Any], acting: Mapping[str, float] | None = None
) -> tuple[str | None, list[Gate], Verdict]:
    """The setting of the lowest MAE_tail among those that meet the floor; gates, the verdict.

    The floor: with every seed a lower MAE_tail than plain MAE, at no more than 5 % of MAE_all. Diluted settings stand
    beside and are never the best. Gates are of the best one, or else of the one nearest to the floor.

    Args:
        report: the content of sweep.json so far.
        acting: the weight that the tail term really acted with, by setting (the ledgers').
    """
    if len(report["rows"]) < report["planned"]:
        done = f"{len(report['rows'])} of {report['planned']} runs are done"
        return None, [], Verdict("not finished", f"{done}.", "run it again: it goes on where it stopped.")
    if all(row["stopped"] is not None for row in report["rows"]):
        return None, [], Verdict("stopped", "Guards stopped every run.", "do what the first of them says.")
    found = [point for point in points(report, "val") if not point.name.endswith(DILUTED)]
    if not found:
        said = f"No seed has a score on extremes of both {report['reference']} and another setting."
        step = "do what the guards said that stopped the others, or score more days (eval_days)."
        return None, [], Verdict("undecided", said, step)
    met = [point for point in found if point.meets]
    best = min(met, key=lambda point: point.mean[0]) if met else None
    shown = best or min(found, key=lambda point: point.misses_by)
    gates = [
        gate
        for split in TITLES
        for point in points(report, split)
        if point.name == shown.name
        for gate in point_gates(report, point, split)
    ]
    return best.name if best else None, gates, _verdict(report, found, shown, acting or {})


def _verdict(report: Mapping[str, Any], found: Sequence[Point], shown: Point, acting: Mapping[str, float]) -> Verdict:
    """The first that fits, of the best setting or else of the nearest."""
    cell = report["val"][shown.name][TAIL]
    parts = [f"{shown} on validation, {events(cell)}.", *dilution(report, acting)]
    if cell["n"] < MIN_GROUPS:
        few = f"But n = {cell['n']} blocks of days, at least {MIN_GROUPS} are needed to tell."
        return Verdict("undecided", " ".join([*parts, few]), "score more days (eval_days, more years).")
    if not shown.meets:
        return Verdict("no setting meets the floor", " ".join(parts), _next(found))
    if len(shown.by_seed) < SEEDS:
        few = f"But {_seeds(len(shown.by_seed))} cannot show that it holds: the floor asks for {SEEDS}."
        return Verdict("undecided", " ".join([*parts, few]), "add seeds: --seeds 0 1 2.")
    step = "train with it, and look at the sampled days: hurdle_gamma gives them the spread that a median has not."
    return Verdict("success", " ".join(parts), step)


def events(cell: Mapping[str, Any]) -> str:
    """What counts as extreme and how often it was, from the units of MAE_tail."""
    return "truth " + cell["units"].rpartition("truth ")[2]


def dilution(report: Mapping[str, Any], acting: Mapping[str, float]) -> list[str]:
    """For each weight that was trained diluted, too, what that changed at equal weight and seed; a sentence each."""
    said = []
    for name in report["val"]:
        plain = name.removesuffix(DILUTED)
        by_seed = ratios(report, "val", name, plain) if name != plain else {}
        if not by_seed:
            continue
        tails = ", ".join(f"{tail - 1:+.1%}" for tail, _ in by_seed.values())
        acts = ""
        if name in acting and plain in acting:
            acts = f" acted with a weight of {acting[name]:.3g} instead of {acting[plain]:.3g}"
        change = f"{_change(_mean(by_seed))} against undiluted at equal seed (MAE_tail by seed: {tails})"
        said.append(f"{plain} diluted{acts}: {change}.")
    return said


def point_gates(report: Mapping[str, Any], point: Point, split: str) -> list[Gate]:
    """The two halves of the floor for one setting on one split, with its numbers by seed."""
    tails, wholes = (", ".join(f"{pair[i] - 1:+.1%}" for pair in point.by_seed.values()) for i in (0, 1))
    named, blocks = f"{point.name} has", f"n = {report[split][point.name][WHOLE]['n']} blocks of days"
    # Units are of the validation days: kept sums are read by a metric of theirs.
    extremes = events(report[split][point.name][TAIL]) if split == "val" else blocks
    return [
        Gate(
            f"{named} a smaller error on extremes than {report['reference']} on {TITLES[split]}",
            point.is_better,
            f"{tails}, by seed; {extremes}",
        ),
        Gate(
            f"{named} at most 5 % more error over all pixels on {TITLES[split]}",
            point.is_allowed,
            f"{wholes}, by seed; {blocks}",
        ),
    ]


def _next(found: Sequence[Point]) -> str:
    means = [point.mean for point in found]
    if any(tail < 1 and whole <= DEARER for tail, whole in means):
        return "train for longer or on more years: a setting holds on average, and not with every seed."
    if all(tail < 1 for tail, _ in means):
        return "lower the shares and weights: all are better on extremes and cost too much."
    if all(whole <= DEARER for _, whole in means):
        return "raise the shares and weights: all are cheap and no better on extremes."
    return "try shares between those that are better on extremes and those that are cheap."


def _mean(by_seed: Mapping[str, Pair]) -> Pair:
    tails, wholes = zip(*by_seed.values(), strict=True)
    return fmean(tails), fmean(wholes)


def _change(pair: Pair) -> str:
    return f"MAE_tail {pair[0] - 1:+.1%} and MAE_all {pair[1] - 1:+.1%}"


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"
