"""What a run amounts to: gates against the baselines and the first stage, and the decision table, first match wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

PROJECTED = "bicubic_projected"  # the baseline that a consistent network has to beat
FIRST_STAGE = "pixel_best"  # the first stage's best checkpoint, scored beside the baselines
NAMES = {
    PROJECTED: "bicubic + projection", "linear": "linear filter", "linear_projected": "linear filter + projection",
    FIRST_STAGE: "first stage", "truth": "HR",
}  # fmt: skip
GAIN = 1.0  # dB over bicubic, in every place
GAIN_AT = {"scale": 4, "mtf": 0.30}  # what that is asked for: at x2, or with a higher mtf, there is less to gain
LEAST_MEAN, LEAST_PLACE = 0.05, -0.1  # dB over bicubic + projection: on average, and in the worst place
PRICE = 2.0  # dB that sharper pictures may cost
CONSISTENT = 10.0  # 1e-6 reflectance
BLOW_UP = 10  # times the median training loss of the epochs before: no longer noise
MOST_LISTED, WORST = 12, 3  # places that a gate names all; with more of them only so many of the worst


def gates(report: Mapping[str, Any]) -> list[Gate]:
    """Fidelity of the first stage, what the second one changed, consistency, and whether each term has a say."""
    found = []
    if asks_for_gain(report):
        above = gains(report, "bicubic")
        name = f"PSNR at least {GAIN:g} dB above bicubic in every place"
        found.append(Gate(name, min(above.values()) >= GAIN, listed(above)))
    found += [_above_projection(report), _above_untrained(report)]
    if FIRST_STAGE in report["baselines"]:
        key = distance(report)
        for other in (FIRST_STAGE, "bicubic", PROJECTED):
            found.append(Gate(f"{key} lower than that of {other}", is_sharper(report, other), _compared(report, other)))
        lost = -_difference(report, FIRST_STAGE, "psnr")
        said = f"{lost:.2f} dB below; {_n(report)}"
        found.append(Gate(f"PSNR at most {PRICE:g} dB below the first stage's", lost <= PRICE, said))
        for term in ("perceptual", "adversarial"):
            if (share := _share(report, term)) is not None:
                said = f"{share:.1%} of the gradient"
                found.append(Gate(f"the {term} term has a say", INERT_SHARE <= share <= DROWNING_SHARE, said))
    if report["config"]["consistency"]:
        off, left = (report["metrics"][name]["value"] for name in ("consistency", "residual"))
        said = f"off by {off * 1e-6:.1e} reflectance; {left * 1e-6:.1e} once nothing is negative"
        found.append(Gate("the output degrades to its input", off <= CONSISTENT, said))
    return found


def distance(report: Mapping[str, Any]) -> str:
    """The key of the feature distance: it is not called LPIPS where its network has random weights."""
    return "lpips" if "lpips" in report["metrics"] else "feature_distance_random"


def fidelity(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Scores of what shall be faithful: the first stage where there are two, else the model."""
    return report["baselines"].get(FIRST_STAGE, report["metrics"])


def gains(report: Mapping[str, Any], null: str) -> dict[str, float]:
    """PSNR above a baseline in dB, of the first stage, by place; "all" where there is but one place."""
    mine, theirs = fidelity(report)["psnr_place"], report["baselines"][null]["psnr_place"]
    if "by_label" not in mine:
        return {"all": mine["value"] - theirs["value"]}
    return {place: entry["value"] - theirs["by_label"][place]["value"] for place, entry in mine["by_label"].items()}


def asks_for_gain(report: Mapping[str, Any]) -> bool:
    """Whether the bar of ``GAIN`` over bicubic is stated for the run's scale and blur."""
    config = report["config"]
    return config["scale"] == GAIN_AT["scale"] and set(config["mtf"]) == {GAIN_AT["mtf"]}


def best_untrained(report: Mapping[str, Any]) -> str:
    """The baseline above which the first stage gains least, on average over places."""
    nulls = [name for name in report["baselines"] if name != FIRST_STAGE]
    return min(nulls, key=lambda null: fmean(gains(report, null).values()))


def is_sharper(report: Mapping[str, Any], other: str) -> bool | None:
    """Whether the model's feature distance is lower than another's; None: the interval over places leaves it open.

    Of fewer places than an interval needs the means are compared.
    """
    entry = report["baselines"][other][distance(report)]
    if _places(report) >= MIN_GROUPS:
        return entry["model_minus_this"]["is_better"]
    return _difference(report, other, distance(report)) < 0


def listed(found: Mapping[str, float]) -> str:
    """Gains of places in words, the worst first; of many places only those."""
    worst_first = sorted(found.items(), key=lambda item: item[1])
    shown = worst_first if len(found) <= MOST_LISTED else worst_first[:WORST]
    said = ", ".join(f"{place} {gain:+.2f}" for place, gain in shown) + " dB"
    if len(shown) < len(found):
        return f"worst {said}; n = {len(found)} places"
    return f"{said}; n = {len(found)} place{'s' * (len(found) > 1)}"


def _above_projection(report: Mapping[str, Any]) -> Gate:
    found = gains(report, PROJECTED)
    name = f"PSNR above bicubic + projection (mean at least {LEAST_MEAN:+g} dB, no place below {LEAST_PLACE:+g})"
    passed = fmean(found.values()) >= LEAST_MEAN and min(found.values()) >= LEAST_PLACE
    return Gate(name, passed, f"mean {fmean(found.values()):+.2f} dB; {listed(found)}")


def _above_untrained(report: Mapping[str, Any]) -> Gate:
    null = best_untrained(report)
    found = gains(report, null)
    mean = fmean(found.values())
    name = f"PSNR above the best untrained baseline ({NAMES.get(null, null)}), mean over places"
    return Gate(name, mean > 0, f"mean {mean:+.2f} dB; {listed(found)}")


def _compared(report: Mapping[str, Any], other: str) -> str:
    key = distance(report)
    entry = report["baselines"][other][key]
    said = f"{report['metrics'][key]['value']:.4f} against {entry['value']:.4f}; {_n(report)}"
    if _places(report) < MIN_GROUPS:
        return f"{said}: too few for an interval"
    low, high = entry["model_minus_this"]["ci95"]
    return f"{said}, difference [{low:+.4f}, {high:+.4f}]"


def _places(report: Mapping[str, Any]) -> int:
    return report["metrics"]["psnr"]["n"]


def _n(report: Mapping[str, Any]) -> str:
    n = _places(report)
    return f"n = {n} place{'s' * (n != 1)}"


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
    if (nothing := _nothing_learnt(report)) is not None:
        return nothing
    above = gains(report, "bicubic")
    if asks_for_gain(report) and min(above.values()) < GAIN:
        worst = min(above, key=lambda place: above[place])
        return Verdict(
            "too small a gain",
            f"{worst} gains {above[worst]:+.2f} dB over bicubic, {GAIN:g} are expected everywhere at "
            f"x{GAIN_AT['scale']} and mtf {GAIN_AT['mtf']:.2f} (at x2, or with a higher mtf, there is less to gain).",
            "train the first stage for longer or on more places, and look at the worst place: flat land gains less.",
        )
    few = f" Scored on {_n(report)[4:]}: too few to speak for others." if _places(report) < MIN_GROUPS else ""
    if not two:
        return Verdict(
            "faithful",
            f"{_first(report)}{few}",
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
    if blunt := [other for other in (FIRST_STAGE, "bicubic", PROJECTED) if not is_sharper(report, other)]:
        shown = "; ".join(f"{other}: {_compared(report, other)}" for other in blunt)
        return Verdict(
            "not sharper",
            f"{key} is not shown to be lower than that of {', '.join(blunt)} ({shown}).",
            "raise perceptual_share or stage2_epochs.",
        )
    as_seen = ", as the network sees it that it was trained with," if looks_through_its_loss(report) else ""
    if lost > PRICE:
        return Verdict(
            "sharp but not faithful",
            f"{key}{as_seen} is lower, and PSNR {lost:.2f} dB below the first stage's.",
            "lower adversarial_share and perceptual_share, or stage2_lr.",
        )
    sharp = report["metrics"]["rapsd_ratio"]["value"]
    return Verdict(
        "sharper and still faithful",
        f"{_first(report)} The second stage lowers {key}{as_seen} from "
        f"{report['baselines'][FIRST_STAGE][key]['value']:.4f} to {report['metrics'][key]['value']:.4f} for "
        f"{lost:.2f} dB; its fine structure has {sharp:.0%} of the true power.{few}",
        "look at the figures place by place: detail that was made up is sharp, too.",
    )


def _nothing_learnt(report: Mapping[str, Any]) -> Verdict | None:
    """The row of a network that adds nothing to the better of what needs no training."""
    for null, gate in ((best_untrained(report), _above_untrained), (PROJECTED, _above_projection)):
        if not (found := gate(report)).passed:
            name = "the projection" if null == PROJECTED else NAMES.get(null, null)
            return Verdict(
                f"nothing learnt beyond {name}",
                f"Without any network, {NAMES.get(null, null)} is as good: PSNR above it {found.value}.",
                "train the first stage for longer, on more places or with more crops_per_epoch.",
            )
    return None


def looks_through_its_loss(report: Mapping[str, Any]) -> bool:
    """Whether the feature distance is measured with the network (and weights) of the perceptual term."""
    config = report["config"]
    same_weights = config["lpips_weights"] in (None, config["backbone_weights"])
    return config["backbone"] == config["lpips_net"] and same_weights and _share(report, "perceptual") is not None


def _first(report: Mapping[str, Any]) -> str:
    nulls = dict.fromkeys(("bicubic", PROJECTED, best_untrained(report)))
    said = [f"{fmean(gains(report, null).values()):.2f} dB above {NAMES.get(null, null)}" for null in nulls]
    return f"The first stage is {', '.join(said[:-1])} and {said[-1]}."


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
