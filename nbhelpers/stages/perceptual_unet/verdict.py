"""What a run amounts to: gates against the baselines, and the stage's decision table, first match wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

BLOW_UP = 10  # times the median training loss of the epochs before: no longer noise
ADVECTION_GAP = 10  # minutes; shorter leads belong to persistence
GOOD_CSI, SHARP = 0.65, 0.35  # CSI@74 and LPIPS (alex) of a success on SEVIR
REFERENCE_CSI, REFERENCE_LPIPS = 0.95, 0.87  # of the λ = 0 run's
HEADLINE = "csi_74"
COMPARISONS = tuple((null, name) for null in ("persistence", "advection") for name in ("mse", HEADLINE))


def gates(report: Mapping[str, Any]) -> list[Gate]:
    """Pass or fail against each forecast baseline, by the paired interval at every lead time that is judged."""
    found = []
    leads = report["data"]["lead_minutes"]
    for null in ("persistence", "advection"):
        found.append(_beats(report, null, "mse", list(leads)))
        late = [lead for lead in leads if lead >= ADVECTION_GAP]
        if late:
            found.append(_beats(report, null, HEADLINE, late))
    if "perceptual" in report["ledger"]:
        share = report["ledger"]["perceptual"]["grad_share"]
        balanced = INERT_SHARE <= share <= DROWNING_SHARE
        found.append(Gate("both loss terms have a say", balanced, f"perceptual: {share:.2%} of the gradient"))
    return found


def _beats(report: Mapping[str, Any], null: str, metric: str, leads: Sequence[int]) -> Gate:
    difference = report["baselines"][null][metric]["model_minus_this"]
    by_lead = difference.get("by_label", {f"{leads[0]} min": difference})
    results = {lead: by_lead[f"{lead} min"] for lead in leads}
    worst = [f"{lead} min {_signed(entry)}" for lead, entry in results.items() if entry["is_better"] is not True]
    n = report["metrics"][metric]["n"]
    name = f"{metric} better than {null} at every lead time" + ("" if metric == "mse" else f" from {leads[0]} min")
    if n < MIN_GROUPS:
        return Gate(name, None, too_few(n))
    value = "; ".join(worst) if worst else f"all {len(leads)} lead times, n = {n} events"
    undefined = all(entry["is_better"] is True or entry["ci95"][0] is None for entry in results.values())
    return Gate(name, True if not worst else None if undefined else False, value)


def too_few(n: int) -> str:
    """Why nothing is decided on so few events."""
    return f"n = {n} events, at least {MIN_GROUPS} are needed to tell"


def _signed(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci95"]
    if low is None:
        return "undefined"
    return f"{entry['value']:+.4f} [{low:+.4f}, {high:+.4f}]"


def verdict(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None
) -> Verdict:
    """The first row of the decision table that fits.

    The absolute thresholds (CSI@74 0.65 and 0.60, LPIPS 0.35 and 0.38) are SEVIR's with LPIPS(alex), and are used only
    there. Elsewhere the rule is relative to ``reference``, the same run with λ = 0.

    Raises:
        UserError: a reference that has the perceptual term as well, or reports another feature distance.
    """
    csi = report["metrics"][HEADLINE]["value"]
    mse = report["metrics"]["mse"]["value"]
    epochs = int(history[-1]["epoch"]) if history else 0
    beats = _beats_both(report)
    if _diverged([row["train_total"] for row in history]):
        return Verdict(
            "unstable",
            f"The training loss became undefined or ended above {BLOW_UP} times what it had been.",
            "lower lr by a factor of 3 and start a new run.",
        )
    if report["metrics"]["pod_74"]["value"] is None:
        return Verdict(
            "undecided",
            "The scored split holds no pixel >= 74, so there is no event to hit or miss.",
            "score more or wetter events.",
        )
    if not csi and epochs < 10:
        return Verdict(
            "too few epochs",
            f"No pixel >= 74 was hit after {epochs} epochs; event scores emerge late.",
            "train to at least epoch 10.",
        )
    if not csi and mse > 0.05:
        return Verdict(
            "bug",
            f"CSI is 0 and the MSE {mse:.3f} after {epochs} epochs.",
            "look at the data figure: units, missing values, time order.",
        )
    share = report["ledger"].get("perceptual", {}).get("grad_share")
    if share is not None and share < INERT_SHARE:
        return Verdict(
            "perceptual term inert",
            f"The perceptual term made up {share:.2%} of the gradient: this is a run without it.",
            "set perceptual_share=0.1, or raise lambda_perc (the λ panel shows where it begins to matter).",
        )
    if is_sevir(report):
        return absolute_verdict(csi, report["metrics"]["lpips"]["value"], beats=beats)
    if reference is not None:
        return _relative(report, reference, beats)
    if report["metrics"]["mse"]["n"] < MIN_GROUPS:
        return Verdict(
            "undecided",
            f"Too little was scored: {too_few(report['metrics']['mse']['n'])}.",
            "add events; the numbers in the table are right, but say little about other days.",
        )
    if beats:
        return Verdict(
            "better than the baselines",
            "Mean squared error and CSI@74 beat persistence and advection over all lead times.",
            "train the same with lambda_perc=0 and compare (`--reference`): what did the perceptual term change?",
        )
    if won := [f"{name} than {null}" for null, name in COMPARISONS if _is_better(report, null, name)]:
        return Verdict(
            "better in part",
            f"Over all lead times better in {', '.join(won)}; not shown for the rest.",
            "more epochs or events; compare with lambda_perc=0; the gates say which lead times are short of it.",
        )
    return Verdict(
        "not better than the baselines",
        "Persistence or advection is as good over all lead times: the gates say where.",
        "more epochs, more events, or longer lead times (short ones belong to persistence).",
    )


def _beats_both(report: Mapping[str, Any]) -> bool:
    return all(_is_better(report, null, name) for null, name in COMPARISONS)


def _is_better(report: Mapping[str, Any], null: str, name: str) -> bool:
    return report["baselines"][null][name]["model_minus_this"]["is_better"] is True


def is_sevir(report: Mapping[str, Any]) -> bool:
    """Real data under SEVIR's official split, scored with the LPIPS that the published thresholds mean."""
    lpips = report["metrics"].get("lpips")
    official = report["data"]["split"]["rule"].startswith("SEVIR")
    return official and not report["data"]["simulated"] and lpips is not None and lpips["units"] == "LPIPS (alex)"


def absolute_verdict(csi: float, lpips: float, *, beats: bool) -> Verdict:
    """By SEVIR's thresholds.

    Args:
        csi: CSI@74.
        lpips: LPIPS (alex).
        beats: whether mean squared error and CSI@74 are better than persistence's and advection's.
    """
    beaten = "better" if beats else "not better"
    both = f"CSI@74 {csi:.3f}, LPIPS (alex) {lpips:.3f}, {beaten} than persistence and advection."
    if csi >= GOOD_CSI and lpips < SHARP and beats:
        return Verdict("success", both, "sweep λ to see what it trades, then build an ensemble.")
    if csi >= 0.60 and lpips < 0.38:
        return Verdict("proceed", both, "train longer or on more events.")
    if csi < 0.60 and lpips < SHARP:
        return Verdict("too aggressive", both, "lower perceptual_share or λ.")
    if csi >= 0.60:
        return Verdict("skill kept, not sharper", both, "raise perceptual_share or λ.")
    if csi >= 0.55:
        return Verdict("stretch", both, "go on with this trade-off written down, or train longer.")
    return Verdict("iterate", both, "halve perceptual_share, or train longer; the gates say which baseline is ahead.")


def _relative(report: Mapping[str, Any], reference: Mapping[str, Any], beats: bool) -> Verdict:
    distance = "lpips" if "lpips" in report["metrics"] else "feature_distance_random"
    ours, theirs = report["metrics"][distance], reference["metrics"].get(distance, {"units": "no such distance"})
    if ours["units"] != theirs["units"]:
        raise UserError(
            f"reference run {reference['run']!r} reports {theirs['units']}, this one {ours['units']}: give both the "
            "same lpips_net and lpips_weights."
        )
    weight = [reference["config"][name] for name in ("lambda_perc", "perceptual_share")]
    if 0 not in weight:
        raise UserError(
            f"reference run {reference['run']!r} has lambda_perc {weight[0]} and perceptual_share {weight[1]}: "
            "expected a run without the perceptual term, train one with --lambda-perc 0."
        )
    if not reference["metrics"][HEADLINE]["value"]:
        return Verdict(
            "undecided",
            f"The λ = 0 run {reference['run']!r} hit no pixel >= 74.",
            "train it longer, then compare again.",
        )
    csi = report["metrics"][HEADLINE]["value"] / reference["metrics"][HEADLINE]["value"]
    lpips = ours["value"] / theirs["value"]
    numbers = f"CSI@74 {csi:.1%} and {distance} {lpips:.1%} of the λ = 0 run {reference['run']!r}'s."
    if csi >= REFERENCE_CSI and lpips <= REFERENCE_LPIPS:
        name, step = (
            ("success", "sweep λ.") if beats else ("sharper at little cost", "train longer: a baseline is as good.")
        )
        return Verdict(name, numbers, step)
    if csi < REFERENCE_CSI and lpips <= REFERENCE_LPIPS:
        return Verdict("too aggressive", numbers, "lower perceptual_share or λ.")
    if csi >= REFERENCE_CSI:
        return Verdict("skill kept, not sharper", numbers, "raise perceptual_share or λ.")
    return Verdict("iterate", numbers, "train longer, or try half the perceptual_share.")


def _diverged(losses: Sequence[Any]) -> bool:
    if not all(isinstance(loss, (int, float)) and math.isfinite(loss) for loss in losses):
        return True
    return len(losses) > 1 and losses[-1] > BLOW_UP * median(losses[:-1])
