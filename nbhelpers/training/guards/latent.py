"""G11: a latent that has collapsed, or an input that the model does not look at."""

from __future__ import annotations

from collections.abc import Iterator

from nbhelpers.training.guards.guard import Epoch, Finding, Guard
from nbhelpers.training.task import Dependence, monitor_of

LATENT = "z"
COST = 0.01  # of the error: by so much at least it has to grow when an input that matters is another sample's
ACTIVE = 0.05  # of the latent's dimensions, and at least one of them
EPOCHS, STEPS = 1, 200  # of the phase: before, a model has learnt nothing yet from any input

CURES = {
    LATENT: "Raise the free bits or lower beta, and check that the decoder gets z at every level.",
    "x": "Check that the decoder (and a learned prior) gets x, and that x and the target are of the same samples.",
}


class Latent(Guard):
    """Looks at every evaluation that tells what the model takes from its inputs, once the warm-up is over."""

    name = "latent"

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        rows = epoch.phase_rows
        began = max((row["step"] for row in epoch.rows if row["phase"] != epoch.phase.name), default=0)
        if len(rows) < max(EPOCHS, monitor_of(epoch.task, epoch.phase).armed_after + 1) or epoch.step - began < STEPS:
            return
        for name, dependence in epoch.evaluation.dependence.items():
            if dependence.shuffled < (1 + COST) * dependence.intact:
                yield self.warn(
                    epoch.step,
                    f"the model ignores {name}: with that of other samples it is as good as with its own",
                    evidence=_words(dependence),
                    cure=CURES.get(name, f"Check that {name} reaches what the model predicts with."),
                )
        if epoch.evaluation.active_units is not None:
            active, units = epoch.evaluation.active_units
            if active < max(1, ACTIVE * units):
                yield self.warn(
                    epoch.step,
                    "the latent has collapsed: hardly any of its dimensions differs between samples",
                    evidence=f"{active} of {units} dimensions vary, at least {max(1, ACTIVE * units):g} are expected",
                    cure=CURES[LATENT],
                )


def _words(dependence: Dependence) -> str:
    return (
        f"{dependence.metric} is {dependence.shuffled:.4g} with it shuffled and {dependence.intact:.4g} as it is; it "
        f"has to grow by {100 * COST:g} % at least"
    )
