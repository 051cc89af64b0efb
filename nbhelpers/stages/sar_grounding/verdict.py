"""What a run amounts to: gates against opt_v2 and without SAR, and the stage's decision table, first match wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.science.sar_agreement import band
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

INPUT, RECOLOURED, SHUFFLED = "opt_v2", "recoloured", "sar_shuffled"
COST = 0.5  # dB that another tile's SAR has to cost
CHANCE = 0.5  # sar_agreement of images that have nothing to do with each other
CHANCE_WITHIN = 0.02  # agreement of unrelated tiles may be this far from it: fewer of them than the null asks for
NULLS = {INPUT: "opt_v2", RECOLOURED: "opt_v2 with its bands recoloured"}
BETTER = {"psnr": "PSNR", "sam": "SAM", "sar_agreement": "agreement with the SAR image"}
FLAT = 0.005  # agreement over that of opt_v2, below which it has not moved
PAINTED = 1.15  # relative agreement, above which the image has more of the SAR image's structure than true ones have
TOKENS = "terramind-tokens"  # the model whose loss has none of the five weights
DIVERGED = 1.5  # training loss at the end over its least


def gates(report: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> list[Gate]:
    """Pass or fail: better than the image it was given, because of the SAR image, by a score whose chance is known."""
    found = [*(_beats(report, INPUT, name) for name in BETTER), _beats(report, RECOLOURED, "psnr")]
    if report["config"]["use_sar"]:
        found.append(_uses_sar(report))
    found.append(_chance(report))
    if reference is not None:
        found.append(_beats_control(report, reference))
    return found


def verdict(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None
) -> Verdict:
    """The first row of the decision table that fits.

    Args:
        reference: report of the same run without SAR.
    """
    losses = [row["train_total"] for row in history]
    if not all(math.isfinite(loss) for loss in losses if loss is not None) or _diverged(losses):
        cure = f"set lr {report['config']['lr'] / 2:g} and weight_decay 1e-4."
        return Verdict("diverges", "The training loss rose or became undefined.", cure)
    if (n := report["metrics"]["psnr"]["n"]) < MIN_GROUPS:
        return Verdict(
            "undecided", f"Too little was scored: {_too_few(n)}.", "add tiles of other places to the test split."
        )
    above = _difference(report, INPUT, "psnr")
    if above["is_better"] is not True:
        return Verdict(
            "no better than opt_v2",
            f"Its PSNR is {_value(above):+.2f} dB against that of the image it was given.",
            "train for more epochs"
            + (", or lower sar_weight: structure may be painted where it is not." if _weighs(report) else "."),
        )
    recoloured = _beats(report, RECOLOURED, "psnr")
    if recoloured.passed is None:
        return Verdict(
            "undecided",
            f"Its PSNR is {above['value']:+.2f} dB against that of opt_v2, but whether it is above that of opt_v2 "
            f"with another factor and summand for each band is not shown ({recoloured.value}).",
            "add tiles of other places to the test split, or train for more epochs.",
        )
    if not recoloured.passed:
        return Verdict(
            "only recolours",
            f"Its PSNR is {above['value']:+.2f} dB against that of opt_v2, but below that of opt_v2 with another "
            "factor and summand for each band: colours are mended, and no structure.",
            "train for more epochs, and look whether the guards say that the SAR image is ignored.",
        )
    if (relative := _relative(report)) > PAINTED:
        return Verdict(
            "paints the SAR",
            f"It agrees with the SAR image {relative:.2f} times as far above chance as the true images do: structure "
            "of the SAR image, speckle too, is painted where the ground has none.",
            f"halve sar_weight: {report['config']['sar_weight'] / 2:g}."
            if _weighs(report)
            else "look at the figures for what the truth does not have, and train for more epochs.",
        )
    gained = _value(_difference(report, INPUT, "sar_agreement"))
    if report["config"]["use_sar"] and gained < FLAT:
        return Verdict(
            "agreement flat",
            f"The image is better, but agrees with the SAR image as opt_v2 does ({gained:+.3f}).",
            _more_sar(report["config"]),
        )
    if report["config"]["use_sar"] and _uses_sar(report).passed is False:
        return Verdict(
            "the SAR is not used",
            f"With another tile's SAR image it loses {_cost(report):.2f} dB, expected {COST:g} at least.",
            "look at the opt_v2 images: where nothing is missing in them, SAR has nothing to add.",
        )
    failed = [gate for gate in gates(report, reference) if gate.passed is False]
    if failed:
        return Verdict(
            "better than opt_v2, not in everything",
            f"Failed: {'; '.join(str(gate) for gate in failed)}.",
            "look at the figures of these tiles, and at the shares in the ledger.",
        )
    if not report["config"]["use_sar"]:
        return Verdict(
            "better than opt_v2, without SAR",
            f"PSNR {above['value']:+.2f} dB and agreement {gained:+.3f} against opt_v2, of a model that never sees it.",
            "use it as the reference of the same run with SAR (--reference).",
        )
    return Verdict(
        "grounded",
        f"PSNR {above['value']:+.2f} dB and agreement {gained:+.3f} against opt_v2, "
        f"{relative_band(report)} beside what the true images have; without its SAR it loses {_cost(report):.2f} dB.",
        "predict on tiles of your own; compare with use_sar off (--reference).",
    )


def relative_band(report: Mapping[str, Any]) -> str:
    """The relative agreement in a word: how much of what the true images agree above chance."""
    value = _relative(report)
    if math.isnan(value):
        return "unknown (the true images agree with the SAR by chance only)"
    return f"{band(value)} ({value:.2f})"


def _more_sar(config: Mapping[str, Any]) -> str:
    """Of the classical weights 1, 0.5 and 0.3 it makes 1.5, 0.3 and 0.2; terms that are off stay off, but for SAR."""
    rate = f"lr {config['lr'] / 2:g} or {2 * config['lr']:g}"
    if config["model"] == TOKENS:
        return f"set {rate}, or a higher lora_rank, or train for more epochs."
    factors = {"sar_weight": 1.5, "cycle_weight": 0.6, "identity_weight": 2 / 3}
    now = {name: config[name] for name in factors} | {"sar_weight": config["sar_weight"] or Config.sar_weight}
    weights = ", ".join(f"{name} {factor * now[name]:.2g}" for name, factor in factors.items() if now[name])
    return f"set {weights}, and {rate}."


def _weighs(report: Mapping[str, Any]) -> bool:
    """Whether the weight of the SAR term had a say in the training."""
    return report["config"]["model"] != TOKENS and report["config"]["sar_weight"] > 0


def _beats(report: Mapping[str, Any], null: str, metric: str) -> Gate:
    name, n = f"{BETTER[metric]} better than that of {NULLS[null]}", report["metrics"][metric]["n"]
    if n < MIN_GROUPS:
        return Gate(name, None, _too_few(n))
    found = _difference(report, null, metric)
    low, high = found["ci95"]
    if found["value"] is None or low is None:
        return Gate(name, None, "undefined")
    return Gate(name, found["is_better"], f"{found['value']:+.3f} [{low:+.3f}, {high:+.3f}], n = {n} blocks")


def _uses_sar(report: Mapping[str, Any]) -> Gate:
    name, n = f"another tile's SAR costs at least {COST:g} dB", report["metrics"]["psnr"]["n"]
    if n < MIN_GROUPS:
        return Gate(name, None, _too_few(n))
    found = _difference(report, SHUFFLED, "psnr")
    low, high = found["ci95"]
    if found["value"] is None or low is None:
        return Gate(name, None, "undefined")
    return Gate(
        name, found["value"] >= COST and bool(found["is_better"]), f"{found['value']:.2f} dB [{low:.2f}, {high:.2f}]"
    )


def _cost(report: Mapping[str, Any]) -> float:
    return _value(_difference(report, SHUFFLED, "psnr"))


def _relative(report: Mapping[str, Any]) -> float:
    return _value(report["metrics"]["sar_agreement_relative"])


def _value(found: Mapping[str, Any]) -> float:
    """NaN where a report has None: undefined, or infinite."""
    return math.nan if found["value"] is None else float(found["value"])


def _chance(report: Mapping[str, Any]) -> Gate:
    found = report["metrics"]["sar_agreement_unrelated"]
    name = f"agreement of unrelated tiles is {CHANCE:g} ± {CHANCE_WITHIN:g}"
    if found["value"] is None:
        return Gate(name, None, "the tiles are all of one spatial block")
    if found["n"] < MIN_GROUPS:
        return Gate(name, None, _too_few(found["n"]))
    low, high = found["ci95"]
    return Gate(name, abs(found["value"] - CHANCE) <= CHANCE_WITHIN, f"{found['value']:.3f} [{low:.3f}, {high:.3f}]")


def _beats_control(report: Mapping[str, Any], reference: Mapping[str, Any]) -> Gate:
    """Against the same run without SAR.

    Raises:
        UserError: the reference is no such run.
    """
    mine, theirs = report["config"], reference["config"]
    differ = {name for name in mine if name in theirs and theirs[name] != mine[name] and name != "num_workers"}
    if differ != {"use_sar"} or theirs["use_sar"]:
        raise UserError(
            f"reference run {reference['run']!r} differs in {', '.join(sorted(differ)) or 'nothing'}: expected the "
            "same run with use_sar off."
        )
    gain = report["metrics"]["psnr"]["value"] - reference["metrics"]["psnr"]["value"]
    return Gate("PSNR better than that of the same model without SAR", gain > 0, f"{gain:+.2f} dB")


def _difference(report: Mapping[str, Any], other: str, metric: str) -> Mapping[str, Any]:
    return report["baselines"][other][metric]["model_minus_this"]


def _diverged(losses: Sequence[float | None]) -> bool:
    known = [loss for loss in losses if loss is not None]
    return bool(known) and min(known) > 0 and known[-1] > DIVERGED * min(known)


def _too_few(n: int) -> str:
    return f"n = {n} spatial blocks, at least {MIN_GROUPS} are needed to tell"
