"""What a λ sweep amounts to: the best setting by the rule, and what to try next. Decided on validation alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbhelpers.core.knobs import INERT_SHARE
from nbhelpers.stages.perceptual_unet.verdict import HEADLINE, REFERENCE_CSI, REFERENCE_LPIPS, is_sevir
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Verdict

SHARP = 0.35  # LPIPS (alex) below it is sharp, on SEVIR
LOW_CSI = 0.55  # no setting reaches it, on SEVIR: the fault is not the weight
MANY_FAILED = 5  # settings that had a say and missed the rule: more of them will not help
HIGHEST_SHARE, LOWEST_SHARE = 0.6, 0.02  # that is suggested


@dataclass(frozen=True)
class _Point:
    """One setting on validation, all its seeds together."""

    name: str
    share: float  # of the gradient, median over the run, mean over seeds
    csi: float
    distance: float  # LPIPS or what stands in its place
    csi_ratio: float | None  # to λ = 0; None without such a run
    distance_ratio: float | None


def distance_key(report: Mapping[str, Any]) -> str:
    """The name of the feature distance in a sweep's report."""
    return "lpips" if "lpips" in report["headlines"] else "feature_distance_random"


def is_absolute(report: Mapping[str, Any]) -> bool:
    """Whether the published thresholds hold: SEVIR's official split and LPIPS (alex)."""
    cells: Mapping[str, Any] = next(iter(report["val"].values()), {})
    return is_sevir({"data": report["data"], "metrics": cells})


def judge(report: Mapping[str, Any]) -> tuple[str | None, Verdict]:
    """The best setting by the rule, or None, and the verdict; first match wins.

    The rule: the highest CSI@74 among those with LPIPS (alex) < 0.35 on SEVIR's official split; elsewhere among those
    with at least 95 % of the CSI@74 of λ = 0 and at most 87 % of its feature distance. A setting has failed when its
    perceptual term had a say (or a guard stopped it) and it misses the rule. Many failures come before "iterate": else
    nothing would ever end a search in which the distance never improves.

    Args:
        report: the content of sweep.json so far.
    """
    if len(report["rows"]) < report["planned"]:
        done = f"{len(report['rows'])} of {report['planned']} runs are done"
        return None, Verdict("not finished", f"{done}.", "run the sweep again: it goes on where it stopped.")
    if all(row["stopped"] is not None for row in report["rows"]):
        return None, Verdict("stopped", "Guards stopped every run.", "do what the first of them says, then run again.")
    reference, absolute = report["reference"], is_absolute(report)
    cells = report["val"].get(reference)
    if cells is None and not absolute:
        return None, _undecided(f"No run of {reference} was finished, and the rule compares with it.", "see why.")
    if cells is not None and not cells[HEADLINE]["value"]:
        said = f"{reference} hit no pixel >= 74 in validation."
        return None, _undecided(said, "train longer, or take wetter events.")
    points = _points(report)
    others = [point for point in points if point.name != reference]
    if not others:
        return None, _undecided(f"Guards stopped every setting but {reference}.", "do what they say, or take others.")
    n = next(iter(report["val"].values()))[HEADLINE]["n"]
    few = f"But n = {n} validation events, at least {MIN_GROUPS} are needed to tell." if n < MIN_GROUPS else ""
    met = [point for point in points if _meets(point, absolute)]
    if met:
        best = max(met, key=lambda point: point.csi)
        said = f"{_described(report, best)} is best by the rule ({_rule(absolute)})."
        if few:
            return best.name, _undecided(f"{said} {few}", "add events.")
        how = "--lambda-perc" if best.name.startswith("lambda") else "--perceptual-share"
        step = f"train longer with {how} {best.name.partition('-')[2]}, then build an ensemble of its seeds."
        return best.name, Verdict("success", said, step)
    had_a_say = [point for point in others if point.share >= INERT_SHARE]
    stopped = report["settings"].keys() - {point.name for point in points} - {reference}
    nearest = min(had_a_say or others, key=lambda point: _shortfall(point, absolute))
    near = f"The rule is {_rule(absolute)}; nearest to it is {_described(report, nearest)}."
    if not had_a_say:
        said = f"The perceptual term had less than {INERT_SHARE:.0%} of the gradient in every setting."
        return None, Verdict("perceptual term inert", said, "sweep shares: --shares 0.05 0.1 0.2.")
    if few:
        return None, _undecided(f"{near} {few}", "add events.")
    failed = len(had_a_say) + len(stopped)
    if failed >= MANY_FAILED:
        step = "go on without the perceptual term and write this down; more weights will hardly help, more data may."
        return None, Verdict("skip, documented", f"{near} {failed} settings failed.", step)
    following = _next(report, had_a_say, absolute)
    if absolute and all(point.csi < LOW_CSI for point in points):
        said = f"{near} All CSI@74 are below {LOW_CSI}."
        return None, Verdict("iterate", said, f"train longer or on more events first; then try {following}.")
    if all(point.distance_ratio is not None and point.distance_ratio >= 1 for point in had_a_say):
        said = f"{near} The feature distance improves in none."
        return None, Verdict("iterate", said, f"try {following}.")
    return None, Verdict("no setting meets the rule", near, f"try {following}.")


def _undecided(meaning: str, step: str) -> Verdict:
    return Verdict("undecided", meaning, step)


def _rule(absolute: bool) -> str:
    if absolute:
        return f"highest CSI@74 with LPIPS (alex) < {SHARP}"
    return f"highest CSI@74 with CSI@74 >= {REFERENCE_CSI:.0%} and feature distance <= {REFERENCE_LPIPS:.0%} of λ = 0's"


def _points(report: Mapping[str, Any]) -> list[_Point]:
    """Settings with a finished run and both scores."""
    distance, base = distance_key(report), report["val"].get(report["reference"])
    found = []
    for name, cells in report["val"].items():
        csi, far = cells[HEADLINE]["value"], cells[distance]["value"]
        if csi is None or far is None:
            continue
        shares = [row["grad_share"] for row in report["rows"] if row["setting"] == name and row["stopped"] is None]
        ratios = (csi / base[HEADLINE]["value"], far / base[distance]["value"]) if base else (None, None)
        found.append(_Point(name, sum(shares) / len(shares), csi, far, *ratios))
    return found


def _keeps_skill(point: _Point, absolute: bool) -> bool:
    if absolute:
        return point.csi >= LOW_CSI
    return point.csi_ratio is not None and point.csi_ratio >= REFERENCE_CSI


def _is_sharp(point: _Point, absolute: bool) -> bool:
    if absolute:
        return point.distance < SHARP
    return point.distance_ratio is not None and point.distance_ratio <= REFERENCE_LPIPS


def _meets(point: _Point, absolute: bool) -> bool:
    return _is_sharp(point, absolute) and (absolute or _keeps_skill(point, absolute))


def _shortfall(point: _Point, absolute: bool) -> float:
    """How far a setting is from the rule, as a sum of fractions of its limits."""
    if absolute:
        return max(0.0, point.distance / SHARP - 1)
    assert point.csi_ratio is not None and point.distance_ratio is not None
    return max(0.0, 1 - point.csi_ratio / REFERENCE_CSI) + max(0.0, point.distance_ratio / REFERENCE_LPIPS - 1)


def _described(report: Mapping[str, Any], point: _Point) -> str:
    distance = distance_key(report)
    numbers = f"CSI@74 {point.csi:.3f}, {distance} {point.distance:.3f}"
    if point.name == report["reference"] or point.csi_ratio is None or point.distance_ratio is None:
        return f"{point.name} ({numbers})"
    return (
        f"{point.name} ({numbers}; against λ = 0 CSI@74 {point.csi_ratio - 1:+.1%}, {distance} "
        f"{point.distance_ratio - 1:+.1%})"
    )


def _next(report: Mapping[str, Any], points: list[_Point], absolute: bool) -> str:
    """The share to try next: between one that is not sharp yet and one that has lost skill, or beyond the only kind.

    In odds, because a weight scales those: so the λ that would give it can be named as well.
    """
    weak = [point.share for point in points if _keeps_skill(point, absolute) and not _is_sharp(point, absolute)]
    strong = [point.share for point in points if not _keeps_skill(point, absolute)]
    if weak and strong and max(weak) < min(strong):
        odds = math.sqrt(_odds(max(weak)) * _odds(min(strong)))
    elif strong:
        odds = _odds(min(strong)) / 2
    else:
        odds = 2 * _odds(max(weak))
    share = min(HIGHEST_SHARE, max(LOWEST_SHARE, odds / (1 + odds)))
    said = f"--shares {share:.2g}"
    for name, setting in report["settings"].items():
        weight = setting["config"].get("lambda_perc")
        if weight and 0 < setting["grad_share"] < 1 and name != report["reference"]:
            return f"{said}, which is about --lambdas {weight * _odds(share) / _odds(setting['grad_share']):.2g}"
    return said


def _odds(share: float) -> float:
    share = min(share, 0.99)
    return share / (1 - share)
