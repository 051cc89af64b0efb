"""Do synthetic days help? One downscaler, trained with and without them for the same number of steps, over seeds.

What more heavy days can change depends on how they were chosen. The draws of a heavy day's weather are not all heavy:
the day was so partly by chance. All of them together (``synthetic``) leave the rain given the weather as it is, and so
a conditional mean where it was, if the generator has no faults; what faults it has are learnt. Those that are heavy
themselves (``synthetic_heavy``) are further draws of what heavy days are, like the observed ones repeated
(``oversampled``), but with other rain each time: the two differ in nothing but that. Both shift the rain given the
weather upwards, so they buy hits with false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.batches import loader
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.downscaler import Downscaler, Fields, Training, train_downscaler
from nbhelpers.stages.rainfall_cvae.synth import drawn_categories, open_synthetic
from nbhelpers.stages.rainfall_cvae.verification import RainVerification

Better = Literal["lower", "higher", "one"]
ARMS = ("plain", "oversampled", "synthetic", "synthetic_heavy")
# What is said of each, and in which direction it is good; "one": the nearer to 1.
SCORES: dict[str, tuple[str, Better]] = {
    "mae_all": ("MAE, mm/day", "lower"),
    "rmse_all": ("RMSE, mm/day", "lower"),
    "mae_tail": ("MAE where truth >= P95, mm/day", "lower"),
    "rmse_tail": ("RMSE where truth >= P95, mm/day", "lower"),
    "sedi_p95": ("SEDI >= P95", "higher"),
    "sedi_p99": ("SEDI >= P99", "higher"),
    "frequency_p95": ("frequency >= P95, predicted / observed", "one"),
    "frequency_p99": ("frequency >= P99, predicted / observed", "one"),
    "p99_ratio": ("P99 of all rain, predicted / observed", "one"),
    "p999_ratio": ("P99.9 of all rain, predicted / observed", "one"),
    "hit_rate_p95": ("hits / observed >= P95", "higher"),
    "hit_rate_p99": ("hits / observed >= P99", "higher"),
    "false_alarm_ratio_p95": ("false alarms / predicted >= P95", "lower"),
    "false_alarm_ratio_p99": ("false alarms / predicted >= P99", "lower"),
    "false_alarm_rate_p95": ("false alarms / observed < P95", "lower"),
    "false_alarm_rate_p99": ("false alarms / observed < P99", "lower"),
}
LEVELS = ("P95", "P99")
BATCH = 32  # days at once while scoring


@dataclass(frozen=True)
class TrainingSet:
    """What a downscaler sees in the mean of its batches."""

    n_fields: int  # different fields of rain
    share_p95: float  # of the measured land pixels: rain of at least P95
    share_p99: float


@dataclass(frozen=True)
class Demonstration:
    """Scores on a split of downscalers that differ in the days they were trained on, by name of the set."""

    seeds: tuple[int, ...]
    training: Training  # its seed is the first
    scored: str  # which days, in words
    thresholds: Mapping[str, float]  # mm/day
    sets: Mapping[str, TrainingSet]
    scores: Mapping[str, Mapping[str, tuple[float, ...]]]  # by set and score: a value for each seed
    # By set, and "observed": mm/day by name of the quantile, the mean over seeds.
    quantiles: Mapping[str, Mapping[str, float]]

    def compared(self, name: str, other: str, score: str) -> Literal["better", "worse", "mixed"]:
        """Whether a set is better than another one with every seed."""
        pairs = zip(self.scores[name][score], self.scores[other][score], strict=True)
        gains = [_loss(score, theirs) - _loss(score, ours) for ours, theirs in pairs]
        if all(gain > 0 for gain in gains):
            return "better"
        return "worse" if all(gain < 0 for gain in gains) else "mixed"


def _loss(score: str, value: float) -> float:
    """The smaller the better, whatever the score."""
    better = SCORES[score][1]
    if better == "one":
        return abs(math.log(value)) if value > 0 else math.inf
    return value if better == "lower" else -value


def demonstrate(
    days: Days,
    synth_folder: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 600,
    batch_size: int = 32,
    share: float = 0.5,
    split: Literal["val", "test"] = "test",
    more: Mapping[str, Mapping[int, Fields]] | None = None,
) -> Demonstration:
    """Train the downscaler on each set of days (ARMS) with each seed, and score it on another split's days.

    Args:
        synth_folder: draws of the training days of ``days``, as ``nbhelpers predict rainfall-cvae`` writes them.
        share: part of every batch that is taken from the heavy days added, observed or drawn.
        more: further sets by name: fields to add, by training day.

    Raises:
        UserError: draws that may not be trained on (see ``open_synthetic``), none of which is heavy, or no seed.
    """
    if not seeds:
        raise UserError("seeds is empty, expected at least one, better three: give e.g. (0, 1, 2).")
    training = Training(steps, batch_size, share, seeds[0])
    sets: dict[str, Mapping[int, Fields] | None] = {"plain": None, **added_fields(days, synth_folder), **(more or {})}
    scores: dict[str, dict[str, list[float]]] = {name: {score: [] for score in SCORES} for name in sets}
    quantiles: dict[str, list[dict[str, float]]] = {name: [] for name in ("observed", *sets)}
    with tqdm(total=len(sets) * len(seeds), desc="training downscalers", leave=False, disable=None) as bar:
        for seed in seeds:
            for name, added in sets.items():
                net = train_downscaler(days, Training(steps, batch_size, share, seed), added)
                found, predicted, observed = _scored(net, days, split)
                for score, value in found.items():
                    scores[name][score].append(value)
                quantiles[name].append(predicted)
                quantiles["observed"].append(observed)
                bar.update()
    return Demonstration(
        tuple(seeds),
        training,
        f"{len(days.split[split])} {split} days of {', '.join(map(str, sorted(days.years[split])))}",
        {name: float(days.thresholds[name]) for name in LEVELS},
        {name: _training_set(days, added, share) for name, added in sets.items()},
        {name: {score: tuple(values) for score, values in mine.items()} for name, mine in scores.items()},
        {name: {p: fmean(one[p] for one in found) for p in found[0]} for name, found in quantiles.items()},
    )


def added_fields(days: Days, synth_folder: Path) -> dict[str, dict[int, Fields]]:
    """What each set has beside the training days: fields by day.

    Raises:
        UserError: as ``open_synthetic``; or no draw is of a heavy day, or is heavy itself.
    """
    drawn = drawn_categories(synth_folder)
    draws: dict[int, list[NDArray[np.float32]]] = {}
    heavy: dict[int, list[NDArray[np.float32]]] = {}
    for day, file in open_synthetic(synth_folder, days):
        if days.category[day] == "heavy":
            rain = np.load(file)[0]
            draws.setdefault(day, []).append(rain)
            if drawn[file.name] == "heavy":
                heavy.setdefault(day, []).append(rain)
    if not heavy:
        raise UserError(
            f"{synth_folder} has draws of {len(draws)} heavy days, none of which is heavy itself, expected some: draw "
            "more with --days heavy and a larger --K, or from a model that was trained for longer."
        )
    # The observed fields of the same days, so that sets differ in nothing else.
    return {"oversampled": {day: [None] for day in draws}, "synthetic": dict(draws), "synthetic_heavy": dict(heavy)}


def _training_set(days: Days, added: Mapping[int, Fields] | None, share: float) -> TrainingSet:
    base = [day for day in days.split["train"] if day not in days.unreadable]
    observed = np.mean([_shares(days, days.y(day)) for day in base], axis=0)
    if added is None:
        return TrainingSet(len(base), *observed.tolist())
    of_day = [
        np.mean([_shares(days, days.y(day) if drawn is None else drawn) for drawn in fields], axis=0)
        for day, fields in added.items()
        if fields
    ]
    mean = (1 - share) * observed + share * np.mean(of_day, axis=0)
    new = sum(drawn is not None for fields in added.values() for drawn in fields)
    return TrainingSet(len(base) + new, *mean.tolist())


def _shares(days: Days, rain: NDArray[np.float32]) -> list[float]:
    on_land = rain[days.land]
    measured = on_land[np.isfinite(on_land)]
    return [float((measured >= days.thresholds[name]).mean()) for name in LEVELS]


def _scored(net: Downscaler, days: Days, split: str) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Scores, and quantiles predicted and observed in mm/day."""
    scores, counts = RainVerification(days, n_members=1), torch.zeros(len(LEVELS), 4, dtype=torch.float64)
    for batch in loader(days, days.split[split], batch_size=BATCH):
        rain = net.rain(batch)
        observed = batch.y.to(rain.device)
        scores.add(rain, observed, batch.days)
        counts += _contingency(rain[:, 0], observed, days).cpu()
    metrics = scores.metrics()
    found = {name: metrics[name].value for name in SCORES if name in metrics}
    for name, (hits, alarms, misses, negatives) in zip(("p95", "p99"), counts.tolist(), strict=True):
        found[f"frequency_{name}"] = _part(hits + alarms, hits + misses)
        found[f"hit_rate_{name}"] = _part(hits, hits + misses)
        found[f"false_alarm_ratio_{name}"] = _part(alarms, hits + alarms)
        found[f"false_alarm_rate_{name}"] = _part(alarms, alarms + negatives)
    rows = scores.quantiles()
    predicted, truth = ({p: float(row[who]) for p, row in rows.items()} for who in ("predicted", "observed"))
    return found, predicted, truth


def _contingency(rain: Tensor, observed: Tensor, days: Days) -> Tensor:
    """``(levels, 4)``: hits, false alarms, misses, correct negatives of ``(B, H, W)`` on measured land."""
    measured = torch.from_numpy(days.land).to(rain.device) & observed.isfinite()
    found = []
    for name in LEVELS:
        said, was = rain >= days.thresholds[name], observed >= days.thresholds[name]
        kinds = (said & was, said & ~was, ~said & was, ~said & ~was)
        found.append(torch.stack([(kind & measured).sum() for kind in kinds]))
    return torch.stack(found).double()


def _part(some: float, whole: float) -> float:
    return some / whole if whole else math.nan


def table(shown: Demonstration) -> str:
    """The scores as Markdown: mean over seeds ± their standard deviation, and what every seed agrees on.

    ``+`` (``-``): better (worse) than without added days with every seed; ``*`` (``/``): better (worse) than
    oversampling of the same days with every seed.
    """
    rows = [
        f"| score | {' | '.join(name.replace('_', ' ') for name in shown.sets)} |",
        "|---" * (1 + len(shown.sets)) + "|",
    ]
    for label, get in (("different fields", "n_fields"), ("training pixels >= P95", "share_p95"),
                       ("training pixels >= P99", "share_p99")):  # fmt: skip
        values = [getattr(shown.sets[name], get) for name in shown.sets]
        rows.append(f"| {label} | {' | '.join(f'{v:,}' if isinstance(v, int) else f'{v:.2%}' for v in values)} |")
    for score, (label, better) in SCORES.items():
        arrow = {"lower": "↓", "higher": "↑", "one": "→ 1"}[better]
        rows.append(f"| {label} {arrow} | {' | '.join(_cell(shown, name, score) for name in shown.sets)} |")
    return "\n".join(rows) + "\n"


def _cell(shown: Demonstration, name: str, score: str) -> str:
    values = shown.scores[name][score]
    text = f"{np.mean(values):.3g}" + (f" ± {np.std(values, ddof=1):.1g}" if len(values) > 1 else "")
    if name != "plain":
        text += {"better": " +", "worse": " -", "mixed": ""}[shown.compared(name, "plain", score)]
    if name not in ("plain", "oversampled"):
        text += {"better": " *", "worse": " /", "mixed": ""}[shown.compared(name, "oversampled", score)]
    return text
