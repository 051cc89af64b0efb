"""What a run amounts to: gates against the baselines, and the stage's decision table, first match wins."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.training.flexible import SchedulerParams
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

BLOW_UP = 10  # times the median training loss of the epochs before: no longer noise
HALF, DEARER = 0.5, 1.05  # what a scheduled loss shall make of the plain one's high-band and field error
NULLS = ("persistence", "mean", "linear")
SPECTRAL = "spectrum_error"
OF_THE_LOSS = ("loss", "scheduler", "normalise", "spectrum_share", "num_workers", "patience", "armed_after")


def gates(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None = None
) -> list[Gate]:
    """Pass or fail against every baseline by paired intervals, of the rollouts, and of what the loss was made of."""
    found = [_beats(report, null, "field_error") for null in NULLS]
    found.append(_beats(report, "persistence", "rollout_rel_l2"))
    blown = report["metrics"]["blow_up_rate"]["value"]
    steps = len(report["metrics"]["rollout_rel_l2"].get("by_label", {"step 1": None}))
    found.append(Gate("no rollout blows up", blown == 0, f"{blown:.0%} of the rollouts over {steps} steps"))
    if (handed := hand_over_gate(report, history)) is not None:
        found.append(handed)
    if SPECTRAL in report["ledger"]:
        share = report["ledger"][SPECTRAL]["grad_share"]
        balanced = INERT_SHARE <= share <= DROWNING_SHARE
        found.append(Gate("the spectrum has a say in the loss", balanced, f"{SPECTRAL}: {share:.1%} of the gradient"))
    if reference is not None:
        found += reference_gates(report, reference)
    return found


def reference_gates(report: Mapping[str, Any], reference: Mapping[str, Any]) -> list[Gate]:
    """The stage's floor: against the same run with field error alone."""
    sharper, dearer = ratios(report, reference)
    return [
        Gate("high-band spectrum error at most half of the field-only run's", sharper <= HALF, f"{sharper:.2f} of it"),
        Gate("field error at most 5 % above the field-only run's", dearer <= DEARER, f"{dearer - 1:+.1%}"),
    ]


def hand_over_gate(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Gate | None:
    """Whether all weight was handed over before the last epoch; None without a scheduler."""
    params = report["config"].get("scheduler")
    if params is None or not history:
        return None
    key = f"schedule_{params['target']}"
    used, end = history[-1][key], SchedulerParams(**params).final_weights[1]
    began = next((row["epoch"] for row in history if row[key] != history[0][key]), None)
    said = f"{params['target']} had the weight {used:.3g} of {end:.3g} in the last epoch"
    said += ", and never another" if began is None else f", and more than at first from epoch {began} on"
    return Gate("the loss weights were handed over", math.isclose(used, end, rel_tol=1e-6), said)


def ratios(report: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[float, float]:
    """One-step high-band spectrum error and field error, over those of the reference.

    Raises:
        UserError: a reference that was itself trained with another term, or differs in more than its loss.
    """
    mine, theirs = (json.loads(json.dumps(one["config"])) for one in (report, reference))  # one of them is from a file
    differ = [name for name in mine if name not in OF_THE_LOSS and theirs.get(name) != mine[name]]
    if differ:
        raise UserError(
            f"reference run {reference['run']!r} differs in {', '.join(differ)}: expected the same run with field "
            "error alone."
        )
    terms = [name for name, entry in reference["ledger"].items() if entry["weight"] > 0]
    if terms not in (["field_error"], []):
        raise UserError(
            f"reference run {reference['run']!r} was trained with {', '.join(terms)}: expected one with field_error "
            "alone, train it with --scheduler none."
        )
    both = []
    for name in ("spectrum_error_high", "field_error"):
        mine, theirs = (one["metrics"][name]["value"] for one in (report, reference))
        if mine is None or not theirs:
            raise UserError(f"{name} is {mine} here and {theirs} in {reference['run']!r}: there is nothing to compare.")
        both.append(mine / theirs)
    return both[0], both[1]


def _beats(report: Mapping[str, Any], null: str, metric: str) -> Gate:
    name = f"{metric} better than {null}" + (" at every step" if metric.startswith("rollout") else "")
    n = report["metrics"][metric]["n"]
    if n < MIN_GROUPS:
        return Gate(name, None, too_few(n))
    difference = report["baselines"][null][metric]["model_minus_this"]
    entries = difference.get("by_label", {"all": difference})
    losses = [f"{label} {_signed(entry)}" for label, entry in entries.items() if entry["is_better"] is not True]
    if losses:
        return Gate(name, False, "; ".join(losses))
    return Gate(name, True, f"{_signed(difference)}, n = {n} simulations")


def _signed(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci95"]
    if low is None or entry["value"] is None:
        return "undefined"
    return f"{entry['value']:+.4f} [{low:+.4f}, {high:+.4f}]"


def too_few(n: int) -> str:
    """Why nothing is decided on so few simulations."""
    return f"n = {n} simulations, at least {MIN_GROUPS} are needed to tell"


def verdict(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None
) -> Verdict:
    """The first row of the decision table that fits.

    Args:
        reference: report of the same run with field error alone.
    """
    metrics = report["metrics"]
    if _diverged([row["train_total"] for row in history]):
        return Verdict(
            "unstable training",
            f"The training loss became undefined or ended above {BLOW_UP} times what it had been.",
            "lower lr by a factor of 3 and start a new run.",
        )
    n = metrics["field_error"]["n"]
    if n < MIN_GROUPS:
        return Verdict(
            "undecided",
            f"Too little was scored: {too_few(n)}.",
            "add simulations; the numbers in the table are right, but say little about other flows.",
        )
    lost = [null for null in NULLS if not _is_better(report, null)]
    if lost:
        return Verdict(
            "not better than the baselines",
            f"One step ahead {' and '.join(lost)} {'is' if len(lost) == 1 else 'are'} as good.",
            "train for more epochs, on more simulations, or with a larger frame gap (sequence_length).",
        )
    if metrics["blow_up_rate"]["value"] > 0:
        return Verdict(
            "good for one step, not for many",
            f"{metrics['blow_up_rate']['value']:.0%} of the rollouts blow up.",
            "train with unrolled steps (training=unrolled, a longer sequence_length), or lower the spectral weight.",
        )
    handed = hand_over_gate(report, history)
    if handed is not None and not handed.passed:
        return Verdict(
            "not handed over",
            f"The scheduler did not get to its end: {handed.value}.",
            "raise min_delta, lower patience or ema_beta, take the trigger epoch, or train for more epochs.",
        )
    share = report["ledger"].get(SPECTRAL, {}).get("grad_share")
    if share is not None and share < INERT_SHARE:
        return Verdict(
            "spectral term inert",
            f"The spectral term made up {share:.2%} of the gradient: this is a run without it.",
            "raise final_weight_target, or set spectrum_share.",
        )
    if reference is not None:
        return _relative(report, reference)
    return Verdict(
        "better than the baselines",
        f"Field error {metrics['field_error']['value']:.4f} one step ahead, correlated with the truth for "
        f"{metrics['correlation_time']['value']:.1f} steps; better than {', '.join(NULLS)}.",
        "train the same with scheduler none and compare (`--reference`): what did the spectral term change?",
    )


def _relative(report: Mapping[str, Any], reference: Mapping[str, Any]) -> Verdict:
    sharper, dearer = ratios(report, reference)
    numbers = (
        f"High-band spectrum error {sharper:.2f} and field error {dearer:.3f} of the field-only run "
        f"{reference['run']!r}'s."
    )
    if sharper <= HALF and dearer <= DEARER:
        return Verdict("success", numbers, "compare over seeds (the ablation), and look at the rollouts.")
    if sharper <= HALF:
        return Verdict("sharper at a price", numbers, "lower final_weight_target.")
    if dearer <= DEARER:
        next_step = "raise final_weight_target, or let the hand-over begin earlier."
        return Verdict("as good, not sharper", numbers, next_step)
    return Verdict("worse", numbers, "lower final_weight_target, or let the hand-over begin later.")


def _is_better(report: Mapping[str, Any], null: str) -> bool:
    return report["baselines"][null]["field_error"]["model_minus_this"]["is_better"] is True


def _diverged(losses: Sequence[Any]) -> bool:
    if not all(isinstance(loss, (int, float)) and math.isfinite(loss) for loss in losses):
        return True
    return len(losses) > 1 and losses[-1] > BLOW_UP * median(losses[:-1])
