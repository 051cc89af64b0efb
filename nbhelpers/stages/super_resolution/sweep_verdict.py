"""What a sweep amounts to: the sharpest setting at the allowed price. Decided on validation; test is only shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from nbhelpers.stages.super_resolution.verdict import PRICE
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

FIDELITY = "psnr"
TITLES = {"val": "validation", "test": "test"}  # splits as gates call them
DECIDED_BY = (FIDELITY, "lpips", "feature_distance_random")  # a task has one of the two distances


@dataclass(frozen=True)
class Point:
    """One setting against the first stage alone, seed by seed, on one split."""

    name: str
    change: float  # of the feature distance, the mean over seeds; below 0 is sharper
    lost: float  # dB of PSNR, likewise; above 0 is less faithful
    by_seed: Mapping[str, tuple[float, float]]

    @property
    def is_sharper(self) -> bool:
        """Whether the feature distance is lower with every seed."""
        return all(change < 0 for change, _ in self.by_seed.values())

    @property
    def is_allowed(self) -> bool:
        """Whether it is within the price with every seed."""
        return all(lost <= PRICE for _, lost in self.by_seed.values())


def distance_key(report: Mapping[str, Any]) -> str:
    """The name of the feature distance in a sweep's report."""
    return "lpips" if "lpips" in report["headlines"] else "feature_distance_random"


def points(report: Mapping[str, Any], split: str) -> list[Point]:
    """Every setting but the reference that shares a seed with it."""
    key, theirs = distance_key(report), report[split].get(report["reference"])
    found = []
    for name, cells in report[split].items():
        if name == report["reference"] or theirs is None:
            continue
        by_seed = {
            seed: (
                cells[key]["seeds"][seed] - theirs[key]["seeds"][seed],
                theirs[FIDELITY]["seeds"][seed] - cells[FIDELITY]["seeds"][seed],
            )
            for seed in cells[FIDELITY]["seeds"]
            if seed in theirs[FIDELITY]["seeds"]
        }
        if by_seed:
            change, lost = (fmean(pair[i] for pair in by_seed.values()) for i in (0, 1))
            found.append(Point(name, change, lost, by_seed))
    return found


def judge(report: Mapping[str, Any]) -> tuple[str | None, list[Gate], Verdict]:
    """The setting of the lowest feature distance among those within the price; gates, the verdict.

    The price is ``PRICE`` dB of PSNR below the first stage alone, with every seed. The first stage alone takes part: it
    is best where no setting is sharper at that price. Distances are compared at equal seed. Gates are of the best
    second stage, or else of the one nearest to the rule, on validation and on test. Checkpoints of the second stage
    were chosen by their feature distance on validation, so test is the fairer of the two.

    Args:
        report: the content of sweep.json so far.
    """
    if len(report["rows"]) < report["planned"]:
        done = f"{len(report['rows'])} of {report['planned']} runs are done"
        return None, [], Verdict("not finished", f"{done}.", "run it again: it goes on where it stopped.")
    if all(row["stopped"] is not None for row in report["rows"]):
        return None, [], Verdict("stopped", "Guards stopped every run.", "do what the first of them says.")
    reference, found = report["reference"], points(report, "val")
    if not found:
        said = f"No seed has both {reference} and another setting."
        return None, [], Verdict("undecided", said, "do what the guards said that stopped the others, and run again.")
    allowed = [point for point in found if point.is_allowed]
    shown = min(allowed, key=lambda p: p.change) if allowed else min(found, key=lambda p: p.lost)
    best = shown.name if shown.is_allowed and shown.change < 0 else reference
    gates = [
        gate
        for split in TITLES
        for point in points(report, split)
        if point.name == shown.name
        for gate in _gates(report, point, split)
    ]
    return best, gates, _verdict(report, found, shown)


def _verdict(report: Mapping[str, Any], found: Sequence[Point], shown: Point) -> Verdict:
    """The first that fits, of the best second stage or else of the nearest."""
    key, reference = distance_key(report), report["reference"]
    effect = report["effects"]["val"][key]
    said = f"{_described(report, shown)}, on validation. {adversarial_effect(report, found)}".strip()
    if effect["differ"] is None:
        few = report["val"][shown.name][key]["n"] < MIN_GROUPS
        step = "take data with more places (or name more val_places)." if few else "add a seed: --seeds 0 1."
        return Verdict("undecided", f"{said} {effect['sentence']}", step)
    if not shown.is_allowed:
        meaning = f"Every second stage costs more than {PRICE:g} dB of PSNR; nearest is {said}"
        return Verdict("too dear", meaning, "lower the shares or stage2_lr.")
    if not shown.change < 0:
        dear = "" if all(point.is_allowed for point in found) else f" at {PRICE:g} dB of PSNR"
        meaning = f"No second stage lowers {key}{dear}; nearest is {said}"
        return Verdict(f"{reference} is best", meaning, "raise --perceptual-shares or stage2_epochs, or go without it.")
    if shown.name not in effect["differ"]:
        meaning = f"Lowest is {said} But {effect['sentence']}"
        return Verdict("not shown to matter", meaning, "train the second stage for longer, or add seeds.")
    config = report["settings"][shown.name]["config"]
    flags = f"--perceptual-share {config['perceptual_share']:g} --adversarial-share {config['adversarial_share']:g}"
    step = f"train longer with {flags}, and look at its figures: detail that was made up is sharp, too."
    return Verdict("success", f"Best is {said} {_alike(report, found, shown)}".strip(), step)


def adversarial_effect(report: Mapping[str, Any], found: Sequence[Point]) -> str:
    """What adding the adversarial term did at equal perceptual share and seed, a sentence; empty without such pairs."""
    config = {name: setting["config"] for name, setting in report["settings"].items()}
    without = {config[p.name]["perceptual_share"]: p for p in found if not config[p.name]["adversarial_share"]}
    pairs = [
        (mine[0] - without[share].by_seed[seed][0], mine[1] - without[share].by_seed[seed][1])
        for point in found
        if config[point.name]["adversarial_share"] and (share := config[point.name]["perceptual_share"]) in without
        for seed, mine in point.by_seed.items()
        if seed in without[share].by_seed
    ]
    if not pairs:
        return ""
    change, lost = (fmean(pair[i] for pair in pairs) for i in (0, 1))
    how_many = f"mean of {len(pairs)} pairs" if len(pairs) > 1 else "one pair"
    return (
        f"Adding the adversarial term changed {distance_key(report)} by {change:+.3g} and PSNR by {-lost:+.2f} dB "
        f"({how_many} at equal perceptual share and seed)."
    )


def _alike(report: Mapping[str, Any], found: Sequence[Point], best: Point) -> str:
    """The cheaper settings whose distance is no further from the best one's than seeds differ."""
    spread = report["spread"]["val"][distance_key(report)]["of_differences"]
    alike = [
        f"{point.name} ({-point.lost:+.2f} dB)"
        for point in found
        if point.lost < best.lost and abs(point.change - best.change) <= spread
    ]
    return f"As sharp within what seeds differ by ({spread:.2g}), and cheaper: {', '.join(alike)}." if alike else ""


def _described(report: Mapping[str, Any], point: Point) -> str:
    scores = f"{distance_key(report)} {point.change:+.3g} and PSNR {-point.lost:+.2f} dB"
    return f"{point.name} ({scores} against {report['reference']} at equal seed)"


def _gates(report: Mapping[str, Any], point: Point, split: str) -> list[Gate]:
    key, reference = distance_key(report), report["reference"]
    changes = ", ".join(f"{change:+.3g}" for change, _ in point.by_seed.values())
    prices = ", ".join(f"{-lost:+.2f}" for _, lost in point.by_seed.values())
    of = f"by seed; n = {report[split][point.name][key]['n']} places"
    return [
        Gate(
            f"{point.name} has a lower {key} than {reference} on {TITLES[split]}", point.is_sharper, f"{changes}, {of}"
        ),
        Gate(
            f"{point.name} is at most {PRICE:g} dB of PSNR below {reference} on {TITLES[split]}",
            point.is_allowed,
            f"{prices} dB, {of}",
        ),
    ]
