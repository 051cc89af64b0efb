"""G19: a generator and a discriminator of which one has won, or whose term is inert or drowns the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean, median

from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.training.guards.balance import FIRST_PROBE, LAST_PROBE, is_off, percent
from nbhelpers.training.guards.guard import Finding, Guard, Rehearsal, Step
from nbhelpers.training.ledger import Entry
from nbhelpers.training.task import LossTerm
from nbhelpers.training.weights import Moving, Ramp, Share

LOW, HIGH = 0.55, 0.95  # shares of right decisions between which both learn
WARM_UP = 50  # steps of a discriminator before it is judged, after all weights have risen
WINDOW = 10  # steps to a probe: their mean, because a small batch has few decisions
PROBES = 10  # in a row on the same side


@dataclass
class GanBalance(Guard):
    """Follows the accuracy that an update tells of its discriminator, in every phase that has one.

    Whether the adversarial term is inert or drowns the others is judged, once a phase, by the median of its gradient
    shares over the ledger's probes 5-15 after all weights have risen. The loss balance (G1) only speaks where one
    objective is inert and another has nearly all: of three, two others may share what the adversarial term lacks.
    """

    name = "gan_balance"

    armed: dict[str, float] = field(default_factory=dict)  # by phase: the epoch from which all its weights stand
    steps: dict[str, int] = field(default_factory=dict)  # by phase and optimizer, since then
    window: dict[str, list[float]] = field(default_factory=dict)  # accuracies of the steps of the running probe
    probes: dict[str, list[float]] = field(default_factory=dict)  # the latest
    shares: dict[str, list[float]] = field(default_factory=dict)  # by phase and adversarial term: of the gradient
    ends: dict[str, int] = field(default_factory=dict)  # the last step of each phase

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        weights = [term.weight for update, _ in rehearsal.updates for term in update.terms]
        self.armed[rehearsal.phase.name] = max((w.end for w in weights if isinstance(w, Ramp)), default=0.0)
        self.ends[rehearsal.phase.name] = rehearsal.began_step + rehearsal.phase.epochs * rehearsal.steps_per_epoch
        yield from ()

    def on_step(self, step: Step) -> Iterator[Finding]:
        if step.skipped is not None or step.time < self.armed.get(step.phase.name, 0.0):
            return
        if step.shares is not None and len(step.shares) > 1:
            entries = {entry.term: entry for entry in step.shares}
            for term in step.update.terms:
                if term.role == "adversarial" and not is_off(term):
                    yield from self._share(step, term, entries[term.name])
        if step.accuracy is not None:
            yield from self._accuracy(step, step.accuracy)

    def _share(self, step: Step, term: LossTerm, entry: Entry) -> Iterator[Finding]:
        """Judge the term's share of the gradient once there are enough probes."""
        shares = self.shares.setdefault(f"{step.phase.name}/{term.name}", [])
        if len(shares) >= LAST_PROBE:  # judged
            return
        shares.append(entry.grad_share)
        if len(shares) < LAST_PROBE and step.step != self.ends.get(step.phase.name):  # a short run has fewer
            return
        seen = shares[FIRST_PROBE - 1 :] or shares
        middle, weight = median(seen), term.weight.to if isinstance(term.weight, Moving) else term.weight
        is_inert = middle < INERT_SHARE
        if not is_inert and middle <= DROWNING_SHARE:
            return
        cure = f"Give {term.name} a target gradient share, e.g. 20 %, instead of its weight {entry.weight:.3g}."
        if isinstance(weight, Share):
            verb = "Raise" if is_inert else "Lower"
            cure = f"{verb} the target gradient share of {term.name}, which is {percent(weight.target)}."
        yield self.warn(
            step.step,
            f"adversarial term {term.name} of phase {step.phase.name!r} has next to nothing of the gradient, so the "
            "generator learns as if there were no discriminator"
            if is_inert
            else f"adversarial term {term.name} of phase {step.phase.name!r} has nearly all of the gradient, so the "
            "generator learns as if there were no other term",
            evidence=f"{percent(middle)} of the gradient, median of {len(seen)} steps; {percent(INERT_SHARE)} to "
            f"{percent(DROWNING_SHARE)} is healthy",
            cure=cure,
        )

    def _accuracy(self, step: Step, accuracy: float) -> Iterator[Finding]:
        """Judge the discriminator by windows of its decisions."""
        optimizer = step.update.optimizer
        key = f"{step.phase.name}/{optimizer}"
        self.steps[key] = self.steps.get(key, 0) + 1
        if self.steps[key] <= WARM_UP:
            return
        window, probes = self.window.setdefault(key, []), self.probes.setdefault(key, [])
        window.append(accuracy)
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
