"""G20: predictions without the events, or without the variation, that the truth has."""

from __future__ import annotations

from collections.abc import Iterator

from nbhelpers.training.guards.guard import Epoch, Finding, Guard

VARIANCE_RATIO = 0.05  # of the prediction to the target, below which a prediction is flat
# Event scores of healthy runs start at 0 and emerge around epoch 3-5.
WARN_EPOCHS, WARN_STEPS = 3, 600
STOP_EPOCHS, STOP_STEPS = 6, 1200


class BlankPredictions(Guard):
    """Looks at the spread of the predictions on validation after every epoch."""

    name = "blank_predictions"

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        if epoch.epoch < WARN_EPOCHS or epoch.step < WARN_STEPS:
            return
        prediction, target = epoch.evaluation.spreads["prediction"], epoch.evaluation.spreads["target"]
        level = epoch.task.event_level
        evidence = []
        if level is not None and prediction.high < level <= target.high:
            evidence.append(
                f"the largest prediction is {prediction.high:.4g}, the lowest event level {level:.4g}, and the truth "
                f"reaches {target.high:.4g}"
            )
        if target.std > 0 and (ratio := (prediction.std / target.std) ** 2) < VARIANCE_RATIO:
            evidence.append(f"the variance of the predictions is {ratio:.4g} of the truth's")
        if not evidence:
            return
        cure = (
            "Raise the learning rate or change the loss: it is content with a constant; look at predictions and data."
        )
        if epoch.epoch >= STOP_EPOCHS and epoch.step >= STOP_STEPS:
            yield self.stop(epoch.step, "predictions are still blank", evidence="; ".join(evidence), cure=cure)
        else:
            yield self.warn(epoch.step, "predictions are blank", evidence="; ".join(evidence), cure=cure)
