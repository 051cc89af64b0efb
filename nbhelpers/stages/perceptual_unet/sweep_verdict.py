"""What a λ sweep amounts to: the best setting by the rule, and what to try next. Decided on validation alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbhelpers.core.knobs import INERT_SHARE
from nbhelpers.stages.perceptual_unet.verdict import (
    COMPARISONS,
    GOOD_CSI,
    HEADLINE,
    REFERENCE_CSI,
    REFERENCE_LPIPS,
    SHARP,
    absolute_verdict,
    is_sevir,
    too_few,
)
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

DECIDED_BY = (HEADLINE, "lpips", "feature_distance_random")  # the two that the rule looks at; a task has one distance
LOW_CSI = 0.55  # no setting reaches it, on SEVIR: the fault is not the weight
MANY_FAILED = 5  # settings that had a say and missed the rule: more of them will not help
HIGHEST_SHARE, LOWEST_SHARE = 0.6, 0.02  # that is suggested
MORE_EVENTS = (
    "add validation events; where there are none, read the test sentences under 'Does the setting matter?', which are "
    "shown and not used for choosing."
)


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


def judge(report: Mapping[str, Any]) -> tuple[str | None, list[Gate], Verdict]:
    """The best setting by the rule, or None; gates of it, or else of the nearest to the rule; the verdict, first match.

    The rule: the highest CSI@74 among those with LPIPS (alex) < 0.35 on SEVIR's official split; elsewhere among those
    with at least 95 % of the CSI@74 of λ = 0 and at most 87 % of its feature distance. What the best one amounts to is
    graded as a run is, but beating the baselines is read off pooled validation scores. A setting has failed when its
    perceptual term had a say (or a guard stopped it) and it misses the rule. Many failures come before "iterate": else
    nothing would ever end a search in which the distance never improves.

    Args:
        report: the content of sweep.json so far.
    """
    absolute, points = is_absolute(report), _points(report)
    early = _nothing_to_judge(report, points, absolute)
    if early is not None:
        return None, [], early
    met = [point for point in points if _meets(point, absolute)]
    if met:
        best = max(met, key=lambda point: point.csi)
        said = f"{_described(report, best)} is best by the rule ({_rule(absolute)})."
        return best.name, _gates(report, best, absolute), _verdict(report, points, best, said, absolute)
    others = [point for point in points if point.name != report["reference"]]
    nearest = min(_with_a_say(report, points) or others, key=lambda point: _shortfall(point, absolute))
    said = f"The rule is {_rule(absolute)}; nearest to it is {_described(report, nearest)}."
    return None, _gates(report, nearest, absolute), _verdict(report, points, None, said, absolute)


def _nothing_to_judge(report: Mapping[str, Any], points: Sequence[_Point], absolute: bool) -> Verdict | None:
    """Why no setting can be judged yet, if so."""
    reference, cells = report["reference"], report["val"].get(report["reference"])
    if len(report["rows"]) < report["planned"]:
        done = f"{len(report['rows'])} of {report['planned']} runs are done"
        return Verdict("not finished", f"{done}.", "run the sweep again: it goes on where it stopped.")
    if all(row["stopped"] is not None for row in report["rows"]):
        return Verdict("stopped", "Guards stopped every run.", "do what the first of them says, then run again.")
    if cells is None and not absolute:
        return _undecided(f"No run of {reference} was finished, and the rule compares with it.", "see why.")
    if cells is not None and not cells[HEADLINE]["value"]:
        return _undecided(f"{reference} hit no pixel >= 74 in validation.", "train longer, or take wetter events.")
    if all(point.name == reference for point in points):
        return _undecided(f"Guards stopped every setting but {reference}.", "do what they say, or take others.")
    return None


def _verdict(
    report: Mapping[str, Any], points: Sequence[_Point], best: _Point | None, said: str, absolute: bool
) -> Verdict:
    had_a_say = _with_a_say(report, points)
    if not had_a_say:
        meaning = f"The perceptual term had less than {INERT_SHARE:.0%} of the gradient in every setting. {said}"
        return Verdict("perceptual term inert", meaning, "sweep shares: --shares 0.05 0.1 0.2.")
    if (n := _events(report)) < MIN_GROUPS:
        few = f"But n = {n} validation events, at least {MIN_GROUPS} are needed to tell."
        return _undecided(f"{said} {few}", MORE_EVENTS)
    if best is not None:
        return _verdict_of_best(report, best, said, absolute)
    failed = len(had_a_say) + len(report["settings"].keys() - {point.name for point in points} - {report["reference"]})
    if failed >= MANY_FAILED:
        step = "go on without the perceptual term and write this down; more weights will hardly help, more data may."
        return Verdict("skip, documented", f"{said} {failed} settings failed.", step)
    following = _next(report, had_a_say, absolute)
    if absolute and all(point.csi < LOW_CSI for point in points):
        step = f"train longer or on more events first; then try {following}."
        return Verdict("iterate", f"{said} All CSI@74 are below {LOW_CSI}.", step)
    if all(point.distance_ratio is not None and point.distance_ratio >= 1 for point in had_a_say):
        return Verdict("iterate", f"{said} The feature distance improves in none.", f"try {following}.")
    return Verdict("no setting meets the rule", said, f"try {following}.")


def _verdict_of_best(report: Mapping[str, Any], best: _Point, said: str, absolute: bool) -> Verdict:
    """As a run with these scores is graded; a term without a say cannot be what has won."""
    if best.share < INERT_SHARE:
        again = "" if best.name == report["reference"] else " Its term had no say: it is λ = 0 once more."
        meaning = f"{said}{again} The perceptual term is not worth having here."
        return Verdict("λ = 0 is best", meaning, "go on without it (--lambda-perc 0) and write this down.")
    beats, _ = _against_baselines(report, best)
    if absolute:
        graded = absolute_verdict(best.csi, best.distance, beats=beats)
    elif beats:
        graded = Verdict("success", "", "")
    else:
        graded = Verdict("sharper at little cost", "", "train longer: a baseline is as good.")
    meaning = f"{said} It is {'better' if beats else 'not better'} than persistence and advection."
    how = "--lambda-perc" if best.name.startswith("lambda") else "--perceptual-share"
    flag = f"{how} {best.name.partition('-')[2]}"
    if graded.name == "success":
        return Verdict("success", meaning, f"train longer with {flag}, then build an ensemble of its seeds.")
    return Verdict(graded.name, meaning, f"{graded.next_step} Best so far: {flag}.")


def _gates(report: Mapping[str, Any], point: _Point, absolute: bool) -> list[Gate]:
    """The criteria one by one, for one setting on validation."""
    n, distance = _events(report), distance_key(report)
    if absolute:
        found = [
            (f"CSI@74 at least {GOOD_CSI}", point.csi >= GOOD_CSI, f"{point.csi:.3f}"),
            (f"LPIPS (alex) below {SHARP}", point.distance < SHARP, f"{point.distance:.3f}"),
        ]
    else:
        assert point.csi_ratio is not None and point.distance_ratio is not None
        base = report["val"][report["reference"]]
        csi = f"{point.csi_ratio:.1%}, {point.csi:.3f} of {base[HEADLINE]['value']:.3f}"
        far = f"{point.distance_ratio:.1%}, {point.distance:.3f} of {base[distance]['value']:.3f}"
        found = [
            (f"CSI@74 at least {REFERENCE_CSI:.0%} of λ = 0's", _keeps_skill(point, absolute), csi),
            (f"{distance} at most {REFERENCE_LPIPS:.0%} of λ = 0's", _is_sharp(point, absolute), far),
        ]
    found.append(("mse and CSI@74 better than persistence and advection", *_against_baselines(report, point)))
    few = f"; {too_few(n)}" if n < MIN_GROUPS else ""
    return [Gate(name, None if few else passed, f"{point.name}: {value}{few}") for name, passed, value in found]


def _against_baselines(report: Mapping[str, Any], point: _Point) -> tuple[bool, str]:
    """Whether a setting is ahead of both forecasts that need no training, pooled over validation, and the scores."""
    ahead, listed = [], []
    for null, name in COMPARISONS:
        mine, other = report["val"][point.name][name]["value"], report["baselines"][null][name]
        ahead.append(other is not None and (mine > other if name == HEADLINE else mine < other))
        listed.append(f"{name} {mine:.4f} against {null}'s {'–' if other is None else f'{other:.4f}'}")
    return all(ahead), "; ".join(listed)


def _with_a_say(report: Mapping[str, Any], points: Sequence[_Point]) -> list[_Point]:
    """The settings whose perceptual term was more than a name."""
    return [point for point in points if point.name != report["reference"] and point.share >= INERT_SHARE]


def _events(report: Mapping[str, Any]) -> int:
    return next(iter(report["val"].values()))[HEADLINE]["n"]


def _undecided(meaning: str, step: str) -> Verdict:
    return Verdict("undecided", meaning, step)


def _rule(absolute: bool) -> str:
    if absolute:
        return f"highest CSI@74 with LPIPS (alex) < {SHARP}"
    return f"highest CSI@74 with CSI@74 >= {REFERENCE_CSI:.0%} and feature distance <= {REFERENCE_LPIPS:.0%} of λ = 0's"


def _points(report: Mapping[str, Any]) -> list[_Point]:
    """Settings with a finished run and both scores."""
    distance, base = distance_key(report), report["val"].get(report["reference"])
    comparable = base is not None and base[HEADLINE]["value"]
    found = []
    for name, cells in report["val"].items():
        csi, far = cells[HEADLINE]["value"], cells[distance]["value"]
        if csi is None or far is None:
            continue
        shares = [row["grad_share"] for row in report["rows"] if row["setting"] == name and row["stopped"] is None]
        ratios = (csi / base[HEADLINE]["value"], far / base[distance]["value"]) if comparable else (None, None)
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


def _next(report: Mapping[str, Any], points: Sequence[_Point], absolute: bool) -> str:
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
