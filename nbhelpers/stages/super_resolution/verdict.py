"""What a run amounts to: gates against the baselines and the first stage, and the decision table, first match wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

PROJECTED = "bicubic_projected"  # the baseline that a consistent network has to beat
FIRST_STAGE = "pixel_best"  # the first stage's best checkpoint, scored beside the baselines
GAIN = 1.0  # dB over bicubic, in every place
LEAST_MEAN, LEAST_PLACE = 0.05, -0.1  # dB over bicubic + projection: on average, and in the worst place
PRICE = 2.0  # dB that sharper pictures may cost
CONSISTENT = 1e-5  # reflectance
BLOW_UP = 10  # times the median training loss of the epochs before: no longer noise


def gates(report: Mapping[str, Any]) -> list[Gate]:
    """Fidelity of the first stage, what the second one changed, consistency, and whether each term has a say."""
    found = [
        _everywhere(report, "bicubic", GAIN, f"PSNR at least {GAIN:g} dB above bicubic in every place"),
        _above_projection(report),
    ]
    if FIRST_STAGE in report["baselines"]:
        found += [_sharper(report, other) for other in (FIRST_STAGE, "bicubic", PROJECTED)]
        lost = -_difference(report, FIRST_STAGE, "psnr")
        found.append(Gate(f"PSNR at most {PRICE:g} dB below the first stage's", lost <= PRICE, f"{lost:.2f} dB below"))
        for term in ("perceptual", "adversarial"):
            if (share := _share(report, term)) is not None:
                said = f"{share:.1%} of the gradient"
                found.append(Gate(f"the {term} term has a say", INERT_SHARE <= share <= DROWNING_SHARE, said))
    if report["config"]["consistency"]:
        off, left = (report["metrics"][name]["value"] for name in ("consistency", "residual"))
        said = f"off by {off:.1e} reflectance; {left:.1e} once nothing is negative"
        found.append(Gate("the output degrades to its input", off <= CONSISTENT, said))
    return found


def distance(report: Mapping[str, Any]) -> str:
    """The key of the feature distance: it is not called LPIPS where its network has random weights."""
    return "lpips" if "lpips" in report["metrics"] else "feature_distance_random"


def fidelity(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Scores of what shall be faithful: the first stage where there are two, else the model."""
    return report["baselines"].get(FIRST_STAGE, report["metrics"])


def gains(report: Mapping[str, Any], null: str) -> dict[str, float]:
    """PSNR above a baseline, of the first stage, by place; of all places together where there are too many to list."""
    mine, theirs = fidelity(report), report["baselines"][null]
    if "psnr_place" not in mine:
        return {"all": mine["psnr"]["value"] - theirs["psnr"]["value"]}
    mine, theirs = mine["psnr_place"], theirs["psnr_place"]
    if "by_label" not in mine:
        return {"all": mine["value"] - theirs["value"]}
    return {place: entry["value"] - theirs["by_label"][place]["value"] for place, entry in mine["by_label"].items()}


def _everywhere(report: Mapping[str, Any], null: str, least: float, name: str) -> Gate:
    found = gains(report, null)
    return Gate(name, min(found.values()) >= least, _listed(found))


def _above_projection(report: Mapping[str, Any]) -> Gate:
    found = gains(report, PROJECTED)
    mean = sum(found.values()) / len(found)
    passed = mean >= LEAST_MEAN and min(found.values()) >= LEAST_PLACE
    name = f"PSNR above bicubic + projection (mean at least {LEAST_MEAN:+g} dB, no place below {LEAST_PLACE:+g})"
    return Gate(name, passed, f"mean {mean:+.2f} dB; {_listed(found)}")


def _listed(found: Mapping[str, float]) -> str:
    return ", ".join(f"{place} {gain:+.2f}" for place, gain in sorted(found.items(), key=lambda item: item[1])) + " dB"


def _sharper(report: Mapping[str, Any], other: str) -> Gate:
    key = distance(report)
    mine, theirs = report["metrics"][key]["value"], report["baselines"][other][key]["value"]
    return Gate(f"{key} lower than that of {other}", mine < theirs, f"{mine:.4f} against {theirs:.4f}")


def _difference(report: Mapping[str, Any], other: str, metric: str) -> float:
    return report["metrics"][metric]["value"] - report["baselines"][other][metric]["value"]


def _share(report: Mapping[str, Any], term: str) -> float | None:
    entry = report["ledger"].get(term)
    return None if entry is None or entry["weight"] == 0 else entry["grad_share"]


def verdict(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Verdict:
    """The first row of the decision table that fits."""
    two = FIRST_STAGE in report["baselines"]
    if _diverged(history):
        return Verdict(
            "unstable training",
            f"A training loss became undefined or ended above {BLOW_UP} times what it had been.",
            "lower stage1_lr (or stage2_lr, where it happened there) by a factor of 3 and start a new run.",
        )
    above, over = gains(report, "bicubic"), gains(report, PROJECTED)
    mean = sum(over.values()) / len(over)
    if mean < LEAST_MEAN or min(over.values()) < LEAST_PLACE:
        return Verdict(
            "nothing learnt beyond the projection",
            f"The projection alone, without any training, is as good: the network adds {mean:+.2f} dB to it "
            f"({_listed(over)}).",
            "train the first stage for longer, on more places or with more crops_per_epoch.",
        )
    if min(above.values()) < GAIN:
        worst = min(above, key=lambda place: above[place])
        return Verdict(
            "too small a gain",
            f"{worst} gains {above[worst]:+.2f} dB over bicubic, {GAIN:g} are expected everywhere.",
            "check that mtf is that of your data: with another blur the projection and the network mend the wrong one.",
        )
    n = report["metrics"]["psnr"]["n"]
    few = f" Scored on {n} places: too few to speak for others." if n < MIN_GROUPS else ""
    if not two:
        return Verdict(
            "faithful",
            f"{_first(over, above)}{few}",
            "set stage2_epochs above 0 for sharper pictures at a price in PSNR.",
        )
    key, lost = distance(report), -_difference(report, FIRST_STAGE, "psnr")
    for term in ("perceptual", "adversarial"):
        share = _share(report, term)
        if share is not None and share < INERT_SHARE:
            return Verdict(
                f"{term} term inert",
                f"It made up {share:.2%} of the gradient: the second stage went on as the first.",
                f"set {term}_share, e.g. 0.1, instead of its weight.",
            )
    blunt = [other for other in (FIRST_STAGE, "bicubic", PROJECTED) if _difference(report, other, key) >= 0]
    if blunt:
        return Verdict(
            "not sharper",
            f"{key} is not lower than that of {', '.join(blunt)}.",
            "raise perceptual_share or stage2_epochs.",
        )
    if lost > PRICE:
        return Verdict(
            "sharp but not faithful",
            f"{key} is lower, and PSNR {lost:.2f} dB below the first stage's.",
            "lower adversarial_share and perceptual_share, or stage2_lr.",
        )
    sharp = report["metrics"]["rapsd_ratio"]["value"]
    return Verdict(
        "sharper and still faithful",
        f"{_first(over, above)} The second stage lowers {key} from "
        f"{report['baselines'][FIRST_STAGE][key]['value']:.4f} to {report['metrics'][key]['value']:.4f} for "
        f"{lost:.2f} dB; its fine structure has {sharp:.0%} of the true power.{few}",
        "look at the figures place by place: detail that was made up is sharp, too.",
    )


def _first(over: Mapping[str, float], above: Mapping[str, float]) -> str:
    means = [sum(found.values()) / len(found) for found in (above, over)]
    return f"The first stage is {means[0]:.2f} dB above bicubic and {means[1]:.2f} dB above bicubic + projection."


def _diverged(history: Sequence[Mapping[str, Any]]) -> bool:
    by_column: dict[tuple[str, str], list[Any]] = {}
    for row in history:
        for name, value in row.items():
            if name.startswith("train_total"):
                by_column.setdefault((row["phase"], name), []).append(value)
    for losses in by_column.values():
        if all(loss is None for loss in losses):  # of an optimizer that the phase does not have
            continue
        if not all(isinstance(loss, (int, float)) and math.isfinite(loss) for loss in losses):
            return True
        if len(losses) > 1 and losses[-1] > BLOW_UP * median(losses[:-1]):
            return True
    return False
