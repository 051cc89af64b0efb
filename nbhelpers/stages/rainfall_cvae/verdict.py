"""What a run amounts to: gates against baselines and oracle, and the stage's decision table, first match wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.config import armed_after
from nbhelpers.training.metrics import MIN_GROUPS
from nbhelpers.training.task import Gate, Verdict

NULLS = ("climatology", "analogues", "bilinear")
ORACLE, SHUFFLED = "oracle", "x_shuffled"
NEAR = 0.10  # quantiles and CRPS may be this far from the oracle's
POINTS = 3.0  # percentage points that wet frequencies may be off
SPREAD = (0.8, 1.25)  # spread over error
FINE = (0.7, 1.4)  # power at the finest wavelengths over the observed
CONTROL = 1.01  # CRPS over that of the run without a latent: seeds differ by as much
NEEDED = 0.99  # of that CRPS, below which the latent is worth having
DEARER = 1.05  # what a better tail may make of the error over all pixels
VOLATILE = 0.2  # change of the validation loss from one epoch to the next
OVERFIT = 1.1  # validation loss at the end over its best, while the training loss still falls
EARLY = 30  # epochs before which it is too early to stop a long run
SCALES = ("pixel", "block", "domain")
OF_THE_TAIL = ("tail_share", "lambda_ext", "dilute_tail", "num_workers", "early_stopping_patience")
OF_THE_LATENT = ("d_z", "beta_kl", "warmup_epochs", "armed_after", "prior_fraction", "free_bits", "num_workers")


def gates(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None = None
) -> list[Gate]:
    """Pass or fail: prior members against every baseline, their extremes, their spread, and what they depend on."""
    found = [_beats(report, null) for null in NULLS]
    if ORACLE in report["baselines"]:
        found.append(_near_oracle(report))
    found += [_quantile(report, name) for name in ("p99_ratio", "p999_ratio")]
    found += [_frequency(report, name) for name in ("wet_frequency_01", "wet_frequency_1")]
    found += [_within(report, f"spread_skill_{scale}", SPREAD, f"spread over error per {scale}") for scale in SCALES]
    found.append(_fine_power(report))
    found.append(_uses_weather(report))
    if (steady := steady_gate(report, history)) is not None:
        found.append(steady)
    if reference is not None:
        found += reference_gates(report, reference)
    return found


def reference_gates(report: Mapping[str, Any], reference: Mapping[str, Any]) -> list[Gate]:
    """Against the same run without a latent, or against the same run without weight on the tail.

    Raises:
        UserError: a reference that is neither.
    """
    mine, theirs = report["config"], reference["config"]
    differ = {name for name in mine if name in theirs and theirs[name] != _plain(mine[name])}
    if theirs["d_z"] == 0 < mine["d_z"] and differ <= set(OF_THE_LATENT):
        ratio = _value(report, "crps") / _value(reference, "crps")
        said = f"{ratio:.3f} of the CRPS without a latent"
        return [Gate("no worse than the same model without a latent", ratio <= CONTROL, said)]
    if mine["likelihood"] == "tail_mae" and _tail_is_off(theirs) and differ <= set(OF_THE_TAIL):
        tail, whole = (_value(report, name) / _value(reference, name) for name in ("mae_tail", "mae_all"))
        better = None if math.isnan(tail) else tail < 1
        return [
            Gate("smaller error on extremes than with plain MAE", better, f"{tail - 1:+.1%}, {_events(report)}"),
            Gate("at most 5 % more error over all pixels than with plain MAE", whole <= DEARER, f"{whole - 1:+.1%}"),
        ]
    raise UserError(
        f"reference run {reference['run']!r} differs in {', '.join(sorted(differ)) or 'nothing'}: expected the same "
        "run with d_z 0, or of a tail_mae run the same with tail_share 0."
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tail_is_off(config: Mapping[str, Any]) -> bool:
    return not (config["tail_share"] or config["lambda_ext"])


def steady_gate(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Gate | None:
    """Whether the validation loss is steady once the warm-up is over; None when there are no two such epochs."""
    settled = [row for row in history if row["epoch"] > armed_after(report["config"])]
    if len(settled) < 2:
        return None
    worst = max(change for column in _watched(report["config"]) for change in _changes(settled, column))
    return Gate(
        f"validation loss changes by less than {VOLATILE:.0%} an epoch after the warm-up",
        worst < VOLATILE,
        f"at most {worst:.1%} over {len(settled)} epochs",
    )


def verdict(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None
) -> Verdict:
    """The first row of the decision table that fits.

    Args:
        reference: report of the same run without a latent, or of plain MAE.
    """
    config, n = report["config"], report["metrics"]["crps"]["n"]
    if not all(math.isfinite(row["train_total"]) for row in history if row["train_total"] is not None):
        return Verdict("unstable training", "The training loss became undefined.", "lower lr by a factor of 3.")
    if n < MIN_GROUPS:
        return Verdict(
            "undecided", f"Too little was scored: {_too_few(n)}.", "score more days (test_days, more years)."
        )
    lost = [null for null in NULLS if not _is_better(report, null)]
    if lost:
        return Verdict(
            "not better than the baselines",
            f"Sampled rain is no closer to the truth than that of {' and '.join(lost)}.",
            "train for more epochs or on more years; look at the figures of sampled days.",
        )
    found = _of_training(report, history)
    if found is not None:
        return found
    judged = gates(report, history)
    failed = [gate.name for gate in judged if gate.passed is False]
    if [name for name in failed if name.startswith("P99")]:
        return Verdict(
            "extremes poor",
            f"{_quantiles(report)} of the {'oracle' if ORACLE in report['baselines'] else 'observed'}.",
            _cure_of_extremes(report),
        )
    compared = [] if reference is None else reference_gates(report, reference)
    unseen = [gate.name for gate in (*judged, *compared) if gate.passed is None]
    if unseen:
        return Verdict(
            "undecided",
            f"There is too little heavy rain among the scored days to say: {'; '.join(unseen)}.",
            "score more days (test_days, more years).",
        )
    if worse := [f"{gate.name}: {gate.value}" for gate in compared if gate.passed is False]:
        return Verdict(
            "worse than the reference", f"{'; '.join(worse)}.", "lower tail_share, or the weight of the latent."
        )
    if failed:
        return Verdict(
            "better than the baselines, not calibrated",
            f"Failed: {'; '.join(failed)}.",
            _cure_of_calibration(report["config"]),
        )
    return Verdict(
        "believable extremes",
        f"CRPS {_value(report, 'crps'):.3f} mm/day, better than {', '.join(NULLS)}; {_quantiles(report)}; spread and "
        f"error agree at all scales; {_latent(report, history, reference)}{_warned(report)}.",
        "sample heavy training days for augmentation (predict --mode prior)"
        + (", and compare with d_z 0 (--reference)." if config["d_z"] and reference is None else "."),
    )


def _of_training(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """What the history tells by itself."""
    config = report["config"]
    settled = [row for row in history if row["epoch"] > armed_after(config)]
    if not settled:
        return Verdict(
            "stopped in the warm-up",
            f"The run has {len(history)} epochs; checkpoints count from epoch {armed_after(config) + 1} on.",
            "run it again: it goes on where it stopped.",
        )
    if len(history) < min(EARLY, config["epochs"]) and _ran_out(config, settled):
        return Verdict(
            "stopped early",
            f"It stopped after {len(history)} of {config['epochs']} epochs.",
            "raise early_stopping_patience to 30–40 and run it again: it goes on.",
        )
    changes = max((_changes(settled, column) for column in _watched(config)), key=lambda found: median(found or [0.0]))
    if changes and median(changes) >= VOLATILE:
        return Verdict(
            "volatile",
            f"The error on validation changes by {median(changes):.0%} an epoch.",
            "lower lambda_ext to 1.0 or give tail_share 0.3 instead, or raise batch_size to 128.",
        )
    losses = [row["val_loss"] for row in settled]
    train = [row["train_mae" if config["likelihood"] == "tail_mae" else "train_total"] for row in settled]
    if len(losses) > 2 and losses[-1] > OVERFIT * min(losses) and train[-1] <= min(train):
        return Verdict(
            "overfitted",
            f"The validation loss ended at {losses[-1] / min(losses):.2f} of its best while the training loss fell.",
            "lower base_filters, or raise weight_decay to 1e-3 and dropout to 0.2–0.3.",
        )
    if config["d_z"] and _row_of(report, history).get("val_active_units") == 0:
        return Verdict(
            "latent collapsed",
            "The posterior says the same of every day, so the latent carries nothing.",
            "raise free_bits or lower beta_kl; or train with d_z 0, which is the same model and smaller.",
        )
    return None


def _watched(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells whether training is steady: under tail_mae the validation loss knows nothing of the tail."""
    return ("val_loss", "val_mae_tail") if config["likelihood"] == "tail_mae" else ("val_loss",)


def _changes(rows: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    """From each epoch to the next, as a share of the first; of epochs in which it is defined."""
    values = [row[column] for row in rows if row[column] is not None]
    return [abs(after - before) / max(abs(before), 1e-9) for before, after in pairwise(values)]


def _warned(report: Mapping[str, Any]) -> str:
    names = dict.fromkeys(found["name"] for found in report["guards"] if found["severity"] == "warn")
    return f"; guards have warned: {', '.join(names)}" if names else ""


def _cure_of_calibration(config: Mapping[str, Any]) -> str:
    if config["likelihood"] == "tail_mae":
        return "use hurdle_gamma, whose members have the spread of the errors."
    return "train for longer, and score more validation days (eval_days): the noise of the members is fitted on them."


def _cure_of_extremes(report: Mapping[str, Any]) -> str:
    config = report["config"]
    if config["likelihood"] == "tail_mae":
        return "raise tail_share, oversample heavy days, select by mae_tail; or take likelihood hurdle_gamma."
    other = "gamma" if _relative_to_truth(report, "p999_ratio") > 1 else "gpd"  # the lighter tail, or the heavier one
    tail = "" if config["tail"] == other else f"take tail {other}, or "
    return f"{tail}train on more years or for more epochs, and select by tw_crps (early_stopping_metric)."


def _ran_out(config: Mapping[str, Any], settled: Sequence[Mapping[str, Any]]) -> bool:
    """Whether patience ended the run, and not the user."""
    patience, metric = config["early_stopping_patience"], f"val_{config['early_stopping_metric']}"
    watched = [row[metric] for row in settled if row[metric] is not None]
    return patience is not None and bool(watched) and len(watched) - 1 - watched.index(min(watched)) >= patience


def _row_of(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The epoch of the checkpoint that was scored; empty if it was saved within one."""
    step = report["checkpoint"]["step"]
    return next((row for row in history if row["step"] == step), {})


def _latent(
    report: Mapping[str, Any], history: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None
) -> str:
    """What the latent does for prior members: active units of the posterior do not say it, a run without one does."""
    share = _row_of(report, history).get("val_z_share")
    if not report["config"]["d_z"] or share is None:
        return "there is no latent"
    said = f"the latent makes {share:.1%} of the variance of prior members, the likelihood's own noise the rest"
    if reference is None or reference["config"]["d_z"]:
        return said
    ratio = _value(report, "crps") / _value(reference, "crps")
    needed = "is needed" if ratio < NEEDED else "is not needed"
    return f"{said}; with {ratio:.3f} of the CRPS without one, it {needed}"


def _value(report: Mapping[str, Any], metric: str) -> float:
    """NaN where it is undefined: no extremes among the scored days, or a P99 of 0."""
    value = report["metrics"][metric]["value"]
    return math.nan if value is None else value


def _is_better(report: Mapping[str, Any], null: str) -> bool:
    return report["baselines"][null]["crps"]["model_minus_this"]["is_better"] is True


def _beats(report: Mapping[str, Any], null: str) -> Gate:
    name, n = f"CRPS better than {null}", report["metrics"]["crps"]["n"]
    if n < MIN_GROUPS:
        return Gate(name, None, _too_few(n))
    difference = report["baselines"][null]["crps"]["model_minus_this"]
    low, high = difference["ci95"]
    return Gate(
        name, _is_better(report, null), f"{difference['value']:+.3f} [{low:+.3f}, {high:+.3f}] mm/day, n = {n} blocks"
    )


def _near_oracle(report: Mapping[str, Any]) -> Gate:
    ratio = _value(report, "crps") / report["baselines"][ORACLE]["crps"]["value"]
    return Gate(f"CRPS within {NEAR:.0%} of the oracle's", ratio <= 1 + NEAR, f"{ratio:.3f} of it")


def _relative_to_truth(report: Mapping[str, Any], metric: str) -> float:
    """A quantile over the oracle's where there is one: the scored days have chance events of their own."""
    oracle = report["baselines"].get(ORACLE)
    return _value(report, metric) / ((oracle[metric]["value"] or math.nan) if oracle else 1.0)


def _quantile(report: Mapping[str, Any], metric: str) -> Gate:
    label = {"p99_ratio": "P99", "p999_ratio": "P99.9"}[metric]
    whose = "the oracle's" if ORACLE in report["baselines"] else "the observed"
    ratio, name = _relative_to_truth(report, metric), f"{label} of land rain within {NEAR:.0%} of {whose}"
    if math.isnan(ratio):
        return Gate(name, None, "undefined")
    return Gate(name, abs(ratio - 1) <= NEAR, f"{ratio:.3f} of it")


def _quantiles(report: Mapping[str, Any]) -> str:
    p99, p999 = (_relative_to_truth(report, name) for name in ("p99_ratio", "p999_ratio"))
    return f"P99 is {p99:.2f} and P99.9 {p999:.2f}"


def _frequency(report: Mapping[str, Any], metric: str) -> Gate:
    level = {"wet_frequency_01": "0.1", "wet_frequency_1": "1"}[metric]
    off = _value(report, metric)
    return Gate(
        f"as many pixels of {level} mm or more as observed, within {POINTS:g} points", abs(off) <= POINTS, f"{off:+.2f}"
    )


def _within(report: Mapping[str, Any], metric: str, bounds: tuple[float, float], what: str) -> Gate:
    low, high = bounds
    value = _value(report, metric)
    if math.isnan(value):
        return Gate(f"{what} between {low:g} and {high:g}", None, "undefined")
    return Gate(f"{what} between {low:g} and {high:g}", low <= value <= high, f"{value:.3f}")


def _fine_power(report: Mapping[str, Any]) -> Gate:
    """Of every fine octave by itself: too much in one and too little in the next would cancel."""
    low, high = FINE
    name = f"power of the finest octaves over the observed between {low:g} and {high:g}"
    entry = report["metrics"]["rapsd_ratio"]
    octaves = {label: one["value"] for label, one in entry.get("by_label", {"all": entry}).items()}
    if any(value is None for value in octaves.values()):
        return Gate(name, None, "undefined")
    said = ", ".join(f"{label} {value:.3f}" for label, value in octaves.items())
    return Gate(name, all(low <= value <= high for value in octaves.values()), said)


def _uses_weather(report: Mapping[str, Any]) -> Gate:
    shuffled = report["baselines"][SHUFFLED]["crps"]["value"]
    ratio = shuffled / _value(report, "crps")
    return Gate("the weather matters: CRPS rises when days exchange it", ratio > 1.01, f"{ratio:.2f} times")


def _events(report: Mapping[str, Any]) -> str:
    return str(report["metrics"]["mae_tail"]["units"])


def _too_few(n: int) -> str:
    return f"n = {n} blocks of days, at least {MIN_GROUPS} are needed to tell"
