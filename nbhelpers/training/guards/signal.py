"""Training on noise, on constants, on pairs that do not belong together, or without learning anything (G3)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Rehearsal
from nbhelpers.training.guards.survey import FieldSurvey

MIN_AUTOCORRELATION = 0.1  # between neighbouring pixels; white noise has 0, images and fields have 0.5 to 1
NORMAL_ABSOLUTE_MEAN = math.sqrt(2 / math.pi)  # E|x| of a standard normal variable, 0.797885
SIGNATURE_TOLERANCE = 1e-3  # how near to it the mean |x| of standard normal noise lies, from about a million values on
MIN_LIKENESS = 0.1  # of target and input above chance, as a share of what is possible above chance
MIN_PAIRS = 8  # with fewer the mean correlation says too little
MIN_SKILL = 0.01  # 1 - SSE / SSE of the better of the zero and the mean predictor, over an epoch's training steps
MIN_STEPS = 200  # before them a model that starts from scratch may still be finding the mean


class Noise(Guard):
    """Data without structure: white noise, a constant, or nothing measured at all, over the surveyed batches."""

    name = "training_on_noise"

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        for split, survey in rehearsal.surveys.items():
            for key, field in survey.fields.items():
                where = f"over {survey.batches} batches of {split}"
                if field.missing == 1.0 or field.std == 0.0:
                    what = "not measured anywhere" if field.missing == 1.0 else f"{field.low:.6g} everywhere"
                    yield self.stop(
                        rehearsal.step,
                        f"field {key!r} of {split} is constant or missing throughout, so there is nothing to learn",
                        evidence=f"{what} {where}",
                        cure=f"Look at the files of {split}, and at the code that reads {key!r} from them.",
                    )
                elif field.autocorrelation < MIN_AUTOCORRELATION:
                    yield self.stop(
                        rehearsal.step,
                        f"field {key!r} of {split} looks like noise: neighbouring pixels have nothing in common",
                        evidence=f"correlation of neighbours {field.autocorrelation:.3f}, below {MIN_AUTOCORRELATION}, "
                        f"{where}{_signature(field)}",
                        cure=f"Look at {key!r} as an image: stand-in data, shuffled axes or a wrong dtype do this.",
                    )


def _signature(field: FieldSurvey) -> str:
    if abs(field.absolute_mean - NORMAL_ABSOLUTE_MEAN) > SIGNATURE_TOLERANCE:
        return ""
    return (
        f"; mean |x| {field.absolute_mean:.4f} in model units is that of standard normal noise, on which a zero "
        "predictor scores L1 0.798 and, with peak-to-peak 2, PSNR 6.02 dB"
    )


class UnrelatedPairs(Guard):
    """Targets that resemble their own input no more than another sample's.

    The measure is (likeness - chance) / (1 - chance): where all samples share a mean state (temperature over the same
    orography), any two are alike, and what is left above chance is small although the pairs are right.
    """

    name = "unrelated_pairs"

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        for split, survey in rehearsal.surveys.items():
            likeness, chance = survey.likeness, survey.chance
            if likeness is None or chance is None or survey.pairs < MIN_PAIRS or chance >= 1.0:
                continue
            if (likeness - chance) / (1 - chance) < MIN_LIKENESS:
                yield self.stop(
                    rehearsal.step,
                    f"targets of {split} do not belong to their inputs: they resemble another sample's input as much",
                    evidence=f"mean correlation {likeness:.3f} with the own input, {chance:.3f} with another one, "
                    f"{survey.pairs} samples",
                    cure="Check how inputs and targets are matched: the order of file lists, dates, ids, crop windows.",
                )


class NoSkill(Guard):
    """Training whose predictions are no better than a constant.

    A skill near 0 is judged at once. A skill below may be the epoch's beginning, when a model from scratch was far
    off, so it is judged when an epoch no longer improves on the one before.
    """

    name = "no_skill"

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        began = max((row["step"] for row in epoch.rows if row["phase"] != epoch.phase.name), default=0)
        skills = [row["train_skill"] for row in epoch.phase_rows[-2:] if row.get("train_skill") is not None]
        if epoch.step - began < MIN_STEPS or epoch.rows[-1].get("train_skill") is None or not skills[-1] < MIN_SKILL:
            return
        rising = skills[-1] - skills[0] > MIN_SKILL if len(skills) == 2 else skills[-1] < -MIN_SKILL
        if not rising:
            yield self.stop(
                epoch.step,
                "the model is no better than predicting zero or the mean",
                evidence=f"skill {skills[-1]:.4f} in training, below {MIN_SKILL}, after {epoch.step - began} steps",
                cure="Check that input and target belong together, then the learning rate (try 10 times less and more) "
                "and that gradients reach the model.",
            )
