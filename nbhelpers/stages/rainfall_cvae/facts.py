"""What the task takes from the data: static maps, declared fields, a start at the climate, and what reports say."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nbhelpers.core.fields import Affine, Field
from nbhelpers.core.splits import split_hash
from nbhelpers.stages.rainfall_cvae.layout import PR, WET

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.config import Config
    from nbhelpers.stages.rainfall_cvae.data import Days
    from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle
    from nbhelpers.stages.rainfall_cvae.model import Cvae

RAIN = "rain"  # key of the high-resolution rain among the fields
DRY_BATCHES = 0.01  # share of the batches from which on their dryness is worth a remark
HEAD_GAIN = 0.3  # of the untrained head's weights: it starts near the climate and not at a random one


def static_maps(days: Days) -> Tensor:
    """``(S + 2, H, W)``: the data's own maps, and the mean and the deviation of each pixel's training rain.

    Local climate that no static map explains is in the last two; their logarithms, standardised over land.
    """
    climate = np.log1p(np.stack([days.rain_mean, days.rain_std]))
    over_land = climate[:, days.land]
    mean, std = over_land.mean(1)[:, None, None], over_land.std(1)[:, None, None]
    climate = np.where(days.land, (climate - mean) / np.maximum(std, 1e-6), 0.0)
    return torch.from_numpy(np.concatenate([days.statics, climate]).astype(np.float32))


def start_at_climate(cvae: Cvae, hurdle: Hurdle | None, days: Days) -> None:
    """Let an untrained decoder put out the climate's wet probability and amounts, whatever the weather."""
    if hurdle is None:
        return
    wet_days, wet_rain, measured = 0, 0.0, 0
    for day in days.split["train"]:
        if day in days.unreadable:
            continue
        rain = days.y(day)[days.land]
        rain = rain[np.isfinite(rain)]
        wet = rain[rain >= hurdle.wet]
        wet_days, wet_rain, measured = wet_days + len(wet), wet_rain + float(wet.sum()), measured + len(rain)
    bias = hurdle.initial_bias(
        wet_fraction=wet_days / max(1, measured), mean_excess=wet_rain / max(1, wet_days) - hurdle.wet
    )
    with torch.no_grad():
        cvae.decoder.head.weight.mul_(HEAD_GAIN)
        cvae.decoder.head.bias = nn.Parameter(bias)


def fields(days: Days) -> dict[str, Field]:
    """The channels of the weather (all but rain, whose logarithm is what has statistics) and the rain to predict."""
    found = {
        name: Field(
            name,
            days.x_units.get(name, ""),
            (-math.inf, math.inf),
            float(mean),
            float(std),
            None,
            Affine(float(std), float(mean)),
        )
        for name, mean, std in zip(days.channels, days.x_mean, days.x_std, strict=True)
        if name != PR
    }
    mean, std = (one[days.land].astype(float) for one in (days.rain_mean, days.rain_std))
    whole = math.sqrt(float((std**2).mean() + mean.var()))  # within pixels and between them
    found[RAIN] = Field(RAIN, "mm/day", (0.0, math.inf), float(mean.mean()), whole, math.nan, Affine())
    return found


def describe_data(days: Days) -> dict[str, Any]:
    """Where the data came from and how they were split; the sha256 is over predictors, rain and statics."""
    ids = {name: [days.dates[day].isoformat() for day in chosen] for name, chosen in days.split.items()}
    return {
        "source": str(days.folder.resolve()),
        "sha256": _content(days),
        "simulated": days.simulated,
        "name": days.name,
        "product": days.source,
        "channels": list(days.channels),
        "shape": list(days.shape),
        "factor": days.factor,
        "pixel_km": days.pixel_km,
        "thresholds": {name: round(float(value), 3) for name, value in days.thresholds.items()},
        "wet_from": WET,
        "split": {
            "rule": "years",
            **{name: f"{len(chosen)} days of {_span(sorted(days.years[name]))}" for name, chosen in days.split.items()},
        },
        "split_sha256": split_hash(ids),
    }


def _content(days: Days) -> str:
    """A hash of all that a model or a score is made of."""
    found = hashlib.sha256(json.dumps([days.channels, days.static_names]).encode())
    found.update(days.statics.tobytes())
    for day in sorted(day for chosen in days.split.values() for day in chosen if day not in days.unreadable):
        found.update(days.dates[day].isoformat().encode())
        found.update(np.ascontiguousarray(days.x(day)).tobytes())
        found.update(np.ascontiguousarray(days.y(day)).tobytes())
    return found.hexdigest()


def _span(years: list[int]) -> str:
    whole = years == list(range(years[0], years[-1] + 1)) and len(years) > 1
    return f"{years[0]}–{years[-1]}" if whole else ", ".join(map(str, years))


def _dry_batches(days: Days, config: Config) -> list[str]:
    """What to say of batches of dry days only: they are legal, but there is no amount in them to learn from."""
    heavy, dry = (sum(days.category[day] == name for day in days.split["train"]) for name in ("heavy", "dry"))
    share = dry / (len(days.split["train"]) + (config.heavy_oversampling - 1) * heavy)
    if (batches := share**config.batch_size) < DRY_BATCHES:
        return []
    return [
        f"About {batches:.0%} of the batches will be all dry: {share:.0%} of the days that are drawn are, and a batch "
        f"has {config.batch_size} of them. Such a batch teaches where it stays dry and nothing about amounts: raise "
        "batch_size or heavy_oversampling."
    ]


def remarks(days: Days, config: Config) -> list[str]:
    """What a reader of the report must know first."""
    found = []
    if days.simulated:
        found.append("Simulated weather with a known law of rain: the oracle among the baselines knows its true state.")
    if days.missing:
        found.append(f"{days.missing:.3%} of the land pixels of all days are missing; they are masked.")
    if days.unreadable:
        found.append(f"{len(days.unreadable)} training days cannot be read and are left out.")
    found += _dry_batches(days, config)
    if config.early_stopping_metric == "l_rec":
        found.append(
            "Checkpoints are selected by l_rec, the error of a reconstruction that has seen the day: it is volatile "
            "and says nothing about sampled rain; crps does."
        )
    if config.likelihood == "hurdle_gamma" and (config.lambda_ext is not None or config.dilute_tail):
        found.append(
            "lambda_ext and dilute_tail weigh a term that likelihood hurdle_gamma does not have: they do nothing here; "
            "tail_mae has it."
        )
    elif config.dilute_tail:
        found.append(
            "dilute_tail multiplies the error on extreme pixels by the share of days that have any: a lambda_ext of 2 "
            "may act as 0.2. It is there for comparison only."
        )
    if config.heavy_oversampling > 1 and config.likelihood == "tail_mae":
        found.append(
            f"Heavy days are drawn {config.heavy_oversampling:g} times as often in training; scores are of all days as "
            "they are."
        )
    return found
