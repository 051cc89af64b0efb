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

import numpy as np

from nbhelpers.training.metrics import MIN_GROUPS, Metric, paired_difference, summarise
from nbhelpers.training.tables import MARKS

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
            cell["seeds"] = {str(seed): plain(metrics[name].value) for seed, metrics in by_seed.items()}
            cell["minus_reference"] = None
            if shared:
                mine, other = (combined([them[seed][name] for seed in shared]) for them in (by_seed, theirs))
                difference = paired_difference(mine, other)
                cell["minus_reference"] = {key: difference[key] for key in ("value", "ci95", "is_better")}
                paired = {str(s): plain(by_seed[s][name].value - theirs[s][name].value) for s in shared}
                cell["minus_reference"] |= {"n": mine.groups, "seeds": shared, "by_seed": paired}
            found[setting][name] = cell
    return found


def spreads(compared: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each metric the standard deviation between seeds of a setting, and between the means of the settings.

    ``between_seeds`` is pooled over settings (the root of the mean variance, which few seeds do not bias as they do a
    mean of standard deviations). ``of_differences`` is that of a difference of two settings at equal seed: they share
    their first weights and their windows, so it is mostly smaller. It is the root of 2 s², with s² the mean square of
    what setting + seed leave unexplained, and has ``degrees`` of freedom, (k - 1)(m - 1) for k settings with the same m
    seeds. (The spread of the differences to the reference themselves would claim more than it knows: they all have the
    reference's runs in common.) None where there are too few values.
    """
    found = {}
    for name in names:
        values = {
            setting: {seed: value for seed, value in cells[name]["seeds"].items() if value is not None}
            for setting, cells in compared.items()
        }
        means = [fmean(by_seed.values()) for by_seed in values.values() if by_seed]
        of_differences, degrees = _of_differences(values)
        found[name] = {
            "between_seeds": _between_seeds(values),
            "of_differences": of_differences,
            "degrees": degrees,
            "between_settings": stdev(means) if len(means) > 1 else None,
        }
    return found


def _between_seeds(values: Mapping[str, Mapping[str, float]]) -> float | None:
    """The standard deviation within settings."""
    groups = [list(by_seed.values()) for by_seed in values.values() if by_seed]
    degrees = sum(len(group) - 1 for group in groups)
    squares = sum((value - fmean(group)) ** 2 for group in groups for value in group)
    return math.sqrt(squares / degrees) if degrees else None


def _of_differences(values: Mapping[str, Mapping[str, float]]) -> tuple[float | None, int]:
    """Residuals of the least-squares fit setting + seed (some may be missing), as the spread of a difference."""
    seeds = sorted({seed for by_seed in values.values() for seed in by_seed})
    rows = [
        ([other == setting for other in values] + [other == seed for other in seeds], value)
        for setting, by_seed in values.items()
        for seed, value in by_seed.items()
    ]
    if not rows:
        return None, 0
    layout = np.array([row for row, _ in rows], dtype=float)
    measured = np.array([value for _, value in rows])
    fitted, _, rank, _ = np.linalg.lstsq(layout, measured, rcond=None)
    degrees = len(rows) - int(rank)
    squares = float(np.square(measured - layout @ fitted).sum())
    return (math.sqrt(2 * squares / degrees) if degrees else None), degrees


def effects(
    compared: Mapping[str, Mapping[str, Any]], spread: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """For each metric that has a better end: which settings differ from the reference, and a sentence that says so.

    A setting differs when the paired interval over groups excludes 0 and the difference is larger than seeds explain:
    ``|d| > t(0.975, degrees) · s / sqrt(m)`` with the spread s of a difference at equal seed, over m seeds.

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
        defined = {setting: d for setting, d in differences.items() if d["value"] is not None}
        undecided = None
        if not defined:
            undecided = f"undefined, the {n} groups hold nothing that it could be computed from."
        elif n < MIN_GROUPS:
            undecided = f"undecided, n = {n} groups and at least {MIN_GROUPS} are needed to tell."
        elif not one["degrees"]:
            undecided = "undecided, with one seed the spread between seeds is unknown; add a seed."
        if undecided is not None:
            found[name] = {"differ": None, "sentence": f"{name}: {undecided}"}
            continue
        least = float(t.ppf(0.975, one["degrees"])) * one["of_differences"]
        differ = [
            setting
            for setting, d in defined.items()
            if d["is_better"] is not None and abs(d["value"]) > least / math.sqrt(len(d["seeds"]))
        ]
        against = (
            f"spread between settings {one['between_settings']:.2g}, between seeds {one['between_seeds']:.2g}, of a "
            f"difference at equal seed {one['of_differences']:.2g}"
        )
        if differ:
            listed = ", ".join(f"{setting} {signed(defined[setting])}" for setting in differ)
            said = f"{name}: it matters: {listed} (n = {n} groups; {against})."
        else:
            said = f"{name}: not shown to matter (n = {n} groups; {against})."
        found[name] = {"differ": differ, "sentence": said}
    return found


def signed(difference: Mapping[str, Any]) -> str:
    """A paired difference with its interval and a mark, as the tables print it."""
    low, high = difference["ci95"]
    if difference["value"] is None or low is None:
        return "undefined"
    return f"{_digits(difference['value']):+} [{_digits(low):+}, {_digits(high):+}]{MARKS[difference['is_better']]}"


def _digits(value: float) -> float:
    """Four decimals, or three digits of what is small."""
    return round(value, 4) if abs(value) >= 0.1 else float(f"{value:.3g}")


def number(value: float | None) -> str:
    """A score as the tables print it."""
    return "–" if value is None else f"{_digits(value):g}"


def plain(value: float) -> float | None:
    """A number for JSON; None where it is not defined."""
    return float(value) if math.isfinite(value) else None
