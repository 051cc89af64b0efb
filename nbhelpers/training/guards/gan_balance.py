"""G19: a generator and a discriminator of which one has won, so that neither learns from the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean

from nbhelpers.training.guards.guard import Finding, Guard, Rehearsal, Step
from nbhelpers.training.weights import Ramp

LOW, HIGH = 0.55, 0.95  # shares of right decisions between which both learn
WARM_UP = 50  # steps of a discriminator before it is judged, after all weights have risen
WINDOW = 10  # steps to a probe: their mean, because a small batch has few decisions
PROBES = 10  # in a row on the same side


@dataclass
class GanBalance(Guard):
    """Follows the accuracy that an update tells of its discriminator, in every phase that has one.

    That the adversarial term is inert or drowns the others is for the loss balance (G1) to say: it is one of the
    generator's objectives.
    """

    name = "gan_balance"

    armed: dict[str, float] = field(default_factory=dict)  # by phase: the epoch from which all its weights stand
    steps: dict[str, int] = field(default_factory=dict)  # by phase and optimizer, since then
    window: dict[str, list[float]] = field(default_factory=dict)  # accuracies of the steps of the running probe
    probes: dict[str, list[float]] = field(default_factory=dict)  # the latest

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        weights = [term.weight for update, _ in rehearsal.updates for term in update.terms]
        self.armed[rehearsal.phase.name] = max((w.end for w in weights if isinstance(w, Ramp)), default=0.0)
        yield from ()

    def on_step(self, step: Step) -> Iterator[Finding]:
        if step.accuracy is None or step.skipped is not None or step.time < self.armed.get(step.phase.name, 0.0):
            return
        optimizer = step.update.optimizer
        key = f"{step.phase.name}/{optimizer}"
        self.steps[key] = self.steps.get(key, 0) + 1
        if self.steps[key] <= WARM_UP:
            return
        window, probes = self.window.setdefault(key, []), self.probes.setdefault(key, [])
        window.append(step.accuracy)
        if len(window) < WINDOW:
            return
        probes.append(mean(window))
        window.clear()
        del probes[:-PROBES]
        if len(probes) < PROBES:
            return
        evidence = (
            f"between {min(probes):.3f} and {max(probes):.3f} of its decisions are right over {PROBES} times {WINDOW} "
            f"steps, {LOW} to {HIGH} is healthy"
        )
        if min(probes) > HIGH:
            yield self.warn(
                step.step,
                f"discriminator {optimizer!r} has won: it tells nearly all images apart, and the generator learns "
                "little from it",
                evidence=evidence,
                cure=f"Lower the learning rate of {optimizer!r}, or raise the weight of the generator's adversarial "
                "term or its learning rate, or let that weight rise for longer.",
            )
        elif max(probes) < LOW:
            yield self.warn(
                step.step,
                f"discriminator {optimizer!r} has lost: it tells images apart hardly better than chance, and what it "
                "sends to the generator means nothing",
                evidence=evidence,
                cure=f"Raise the learning rate of {optimizer!r}, give it more layers, or lower the weight of the "
                "generator's adversarial term.",
            )
