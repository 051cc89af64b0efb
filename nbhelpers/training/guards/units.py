"""Data in other units, or normalised otherwise, than the stage's fields declare (G7)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nbhelpers.core.fields import Field
from nbhelpers.training.guards.guard import Finding, Guard, Rehearsal
from nbhelpers.training.guards.survey import FieldSurvey

MAX_SHIFT = 3.0  # of the mean, in declared standard deviations
MAX_RATIO = 10.0  # of the standard deviations, either way
FACTORS = (10, 100, 254, 255, 256, 1000, 3600, 10_000, 65_535, 86_400, 1_000_000)  # between units people mix up
KELVIN = 273.15  # offset between °C and K
NEAR = 0.5  # how far mean (in its std) and log std may be from those that a guess at the cause predicts


class Units(Guard):
    """Pooled mean and standard deviation of the data against the declared ones.

    Validation may be dry: there a small standard deviation only counts when the whole range of values is less than
    one declared standard deviation, which is a scaled field or one on which no score means anything.
    """

    name = "units"

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        for split, survey in rehearsal.surveys.items():
            for key, found in survey.fields.items():
                if found.std == 0:  # a constant has no units: it is not data at all
                    continue
                field = rehearsal.task.fields[key]
                ratio = found.std / field.std
                small = ratio < 1 / MAX_RATIO and (split == "train" or found.high - found.low < field.std)
                if abs(found.mean - field.mean) > MAX_SHIFT * field.std or ratio > MAX_RATIO or small:
                    yield self.stop(
                        rehearsal.step,
                        f"field {key!r} of {split} is not in the units it is declared in",
                        evidence=f"mean {found.mean:.5g} and std {found.std:.5g} over {survey.batches} batches; "
                        f"{field.name} in {field.units} has about {field.mean:.5g} and {field.std:.5g}",
                        cure=f"Bring {key!r} to {field.units}, or declare its own units and statistics: "
                        f"{_cause(field, found)}.",
                    )


def _cause(field: Field, found: FieldSurvey) -> str:
    """What was probably done to the declared values, as the end of a sentence."""
    scale, offset = field.transform.scale, field.transform.offset
    guesses = {
        "are in model units already": (1 / scale, -offset / scale),
        "were standardised": (1 / field.std, -field.mean / field.std),
        "were shifted from °C to K": (1.0, KELVIN),
        "were shifted from K to °C": (1.0, -KELVIN),
    }
    for factor in FACTORS:
        guesses[f"were divided by {factor}"] = (1 / factor, 0.0)
        guesses[f"were multiplied by {factor}"] = (float(factor), 0.0)

    def distance(guess: str) -> float:
        a, b = guesses[guess]
        std = abs(a) * field.std
        return max(abs(math.log(found.std / std)), abs(found.mean - a * field.mean - b) / std)

    if found.std > 0:
        best = min(guesses, key=distance)
        if distance(best) < NEAR:
            return f"the values look as if they {best}"
    return f"their std is {found.std / field.std:.4g} times the declared one"
