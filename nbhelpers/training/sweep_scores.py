"""What the scores of a sweep's runs say together: seeds put together, settings against the reference, spreads.

Seeds are not independent draws of the data: every seed is scored on the same events. So the sums of equal events are
added over seeds, and intervals resample events. They say nothing about what another seed would have given; the spread
between seeds does, and a setting matters only where its difference exceeds both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from nbhelpers.training.metrics import MIN_GROUPS, Metric, paired_difference, summarise

Scores = Mapping[str, Metric]  # by name, of one run on one split


def combined(metrics: Sequence[Metric]) -> Metric:
    """One metric over several runs that were scored on the same groups: the sums of equal groups are added.

    Raises:
        ValueError: when they were not scored on the same number of groups and labels.
    """
    first = metrics[0]
    for other in metrics[1:]:
        if other.sums.shape != first.sums.shape or other.labels != first.labels:
            raise ValueError(f"not the same groups: {first.sums.shape} and {other.sums.shape}, labels {other.labels}")
    return dataclasses.replace(first, sums=sum((other.sums for other in metrics[1:]), first.sums))


def compare(
    scores: Mapping[str, Mapping[int, Scores]], reference: str, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Each metric of each setting, all seeds together, and its paired difference to the reference.

    The difference is over the seeds that both have, so that a setting is not judged by another's luckier seeds.

    Args:
        scores: by setting and seed; settings without a finished run may be absent.

    Returns:
        setting -> metric -> {value, ci95, n, units, better, seeds: {seed: value}, minus_reference}; the last is None
        for the reference itself and where no seed is shared.
    """
    found: dict[str, dict[str, Any]] = {}
    for setting, by_seed in scores.items():
        theirs = scores.get(reference, {})
        shared = sorted(by_seed.keys() & theirs.keys()) if setting != reference else []
        found[setting] = {}
        for name in names:
            whole = summarise(combined([metrics[name] for metrics in by_seed.values()]))
            cell = {key: whole[key] for key in ("value", "ci95", "n", "units", "better")}
            cell["seeds"] = {str(seed): _plain(metrics[name].value) for seed, metrics in by_seed.items()}
            cell["minus_reference"] = None
            if shared:
                mine, other = (combined([them[seed][name] for seed in shared]) for them in (by_seed, theirs))
                difference = paired_difference(mine, other)
                cell["minus_reference"] = {key: difference[key] for key in ("value", "ci95", "is_better")}
                paired = {str(s): _plain(by_seed[s][name].value - theirs[s][name].value) for s in shared}
                cell["minus_reference"] |= {"n": mine.groups, "seeds": shared, "by_seed": paired}
            found[setting][name] = cell
    return found


def spreads(compared: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each metric the standard deviation between seeds of a setting, and between the means of the settings.

    ``between_seeds`` is pooled over settings (the root of the mean variance, which few seeds do not bias as they do a
    mean of standard deviations). ``of_differences`` is the same for a setting minus the reference at equal seed: the
    two share their first weights and their windows, so it is mostly smaller; it has ``degrees`` of freedom. None
    where there are too few values.
    """
    found = {}
    for name in names:
        per_setting = [[v for v in cells[name]["seeds"].values() if v is not None] for cells in compared.values()]
        means = [fmean(values) for values in per_setting if values]
        differences = [cells[name]["minus_reference"] for cells in compared.values()]
        per_difference = [[v for v in d["by_seed"].values() if v is not None] for d in differences if d is not None]
        of_differences, degrees = _pooled(per_difference)
        found[name] = {
            "between_seeds": _pooled(per_setting)[0],
            "of_differences": of_differences,
            "degrees": degrees,
            "between_settings": stdev(means) if len(means) > 1 else None,
        }
    return found


def _pooled(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """The standard deviation within groups, and its degrees of freedom."""
    degrees = sum(len(values) - 1 for values in groups if values)
    squares = sum((value - fmean(values)) ** 2 for values in groups for value in values)
    return (math.sqrt(squares / degrees) if degrees else None), degrees


def effects(
    compared: Mapping[str, Mapping[str, Any]], spread: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """For each metric that has a better end: which settings differ from the reference, and a sentence that says so.

    A setting differs when the paired interval over events excludes 0 and the difference is larger than seeds explain:
    ``|d| > t(0.975, degrees) · s / sqrt(m)`` with the spread s of such differences over m seeds.

    Returns:
        metric -> {differ: settings or None where it could not be decided, sentence}.
    """
    from scipy.stats import t

    found: dict[str, dict[str, Any]] = {}
    for name, one in spread.items():
        cells = {setting: metrics[name] for setting, metrics in compared.items()}
        differences = {s: c["minus_reference"] for s, c in cells.items() if c["minus_reference"] is not None}
        if not differences or next(iter(cells.values()))["better"] not in ("lower", "higher"):
            continue
        n = next(iter(differences.values()))["n"]
        if n < MIN_GROUPS:
            found[name] = {
                "differ": None,
                "sentence": f"{name}: undecided, n = {n} events and at least {MIN_GROUPS} are needed to tell.",
            }
            continue
        if not one["degrees"]:
            found[name] = {
                "differ": None,
                "sentence": f"{name}: undecided, with one seed the spread between seeds is unknown; add a seed.",
            }
            continue
        least = float(t.ppf(0.975, one["degrees"])) * one["of_differences"]
        differ = [
            setting
            for setting, d in differences.items()
            if d["is_better"] is not None and abs(d["value"]) > least / math.sqrt(len(d["seeds"]))
        ]
        against = (
            f"spread between settings {one['between_settings']:.2g}, between seeds {one['between_seeds']:.2g}, of the "
            f"difference at equal seed {one['of_differences']:.2g}"
        )
        if differ:
            listed = ", ".join(f"{setting} {signed(differences[setting])}" for setting in differ)
            said = f"{name}: it matters: {listed} (n = {n} events; {against})."
        else:
            said = f"{name}: not shown to matter (n = {n} events; {against})."
        found[name] = {"differ": differ, "sentence": said}
    return found


def signed(difference: Mapping[str, Any]) -> str:
    """A paired difference with its interval and a mark, as the tables print it."""
    low, high = difference["ci95"]
    if difference["value"] is None or low is None:
        return "undefined"
    mark = {True: " ✓", False: " ✗", None: ""}[difference["is_better"]]
    return f"{_digits(difference['value']):+} [{_digits(low):+}, {_digits(high):+}]{mark}"


def _digits(value: float) -> float:
    """Four decimals, or three digits of what is small."""
    return round(value, 4) if abs(value) >= 0.1 else float(f"{value:.3g}")


def number(value: float | None) -> str:
    """A score as the tables print it."""
    return "–" if value is None else f"{_digits(value):g}"


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
