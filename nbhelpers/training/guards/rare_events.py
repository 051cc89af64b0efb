"""G12: a rare-event term that acts with a part of its weight only, or has no say at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from nbhelpers.core.knobs import INERT_SHARE
from nbhelpers.training.guards.balance import FIRST_PROBE, LAST_PROBE, is_off, percent
from nbhelpers.training.guards.guard import Finding, Guard, Rehearsal, Step
from nbhelpers.training.ledger import Entry
from nbhelpers.training.task import LossTerm
from nbhelpers.training.weights import Moving, Share

UNDILUTED = 0.5  # of its weight, with which a mean absolute error acts in full

# Of one probe: gradient share, weight, effective weight, samples with events, samples of the batch.
Seen = tuple[float, float, float, int, int]


@dataclass
class RareEvents(Guard):
    """Judges each rare-event term once a phase: how it acts as soon as its own weight stands, its say when all do.

    Diluted: averaged over all samples instead of those that have events, a term of weight 2 acts with 0.2 where a tenth
    of the samples has any. What it acts with is the L1 norm of its weighted gradient, in batches that have events; no
    other term's weight changes it, so it is judged after the first few probes, in the middle of a warm-up too. A target
    share makes up for a dilution, so only plain weights are judged for it. Its share of the gradient is judged over the
    ledger's probes 5-15 after all weights have risen.
    """

    name = "rare_events"

    seen: dict[str, list[Seen]] = field(default_factory=dict)  # by phase, term and rule
    judged: list[str] = field(default_factory=list)  # of these, what is done
    ends: dict[str, int] = field(default_factory=dict)  # the last step of each phase

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        phase = rehearsal.phase
        self.ends[phase.name] = rehearsal.began_step + phase.epochs * rehearsal.steps_per_epoch
        yield from ()

    def on_step(self, step: Step) -> Iterator[Finding]:
        terms = step.update.terms
        if step.shares is None or not sum(entry.grad_share for entry in step.shares) > 0:
            return
        moving = [term.name for term in terms if isinstance(term.weight, Moving) and step.time < term.weight.end]
        entries = {entry.term: entry for entry in step.shares}
        for term in terms:
            if term.events is None or is_off(term) or term.name in moving:
                continue
            key, one = f"{step.phase.name}/{term.name}", _seen(entries[term.name], len(step.update.prediction))
            if seen := self._enough(f"{key}/dilution", one, FIRST_PROBE, step):
                yield from self._judge_dilution(step.step, term, seen)
            if not moving and (seen := self._enough(f"{key}/share", one, LAST_PROBE, step)):
                yield from self._judge_share(step.step, term, seen[FIRST_PROBE - 1 :] or seen, alone=len(terms) == 1)

    def _enough(self, key: str, one: Seen, probes: int, step: Step) -> list[Seen]:
        """All probes so far, once there are enough of them or the phase ends; nothing before and ever after."""
        if key in self.judged:
            return []
        seen = self.seen.setdefault(key, [])
        seen.append(one)
        if len(seen) < probes and step.step != self.ends.get(step.phase.name):  # a short run has fewer
            return []
        self.judged.append(key)
        return self.seen.pop(key)

    def _judge_dilution(self, step: int, term: LossTerm, seen: Sequence[Seen]) -> Iterator[Finding]:
        with_events = [one for one in seen if one[3]]
        if not with_events or isinstance(_declared(term), Share):
            return
        weight, acts = (median(one[i] for one in with_events) for i in (1, 2))
        if acts < UNDILUTED * abs(weight):
            yield self.warn(
                step,
                f"rare-event term {term.name} is diluted: it acts as if it had a smaller weight than it has",
                evidence=f"acts with {acts:.3g} instead of {abs(weight):.3g}; {_events(seen)}",
                cure=f"Average {term.name} over the samples that have events only, and do not multiply it by their "
                "fraction.",
            )

    def _judge_share(self, step: int, term: LossTerm, seen: Sequence[Seen], *, alone: bool) -> Iterator[Finding]:
        with_events = [one for one in seen if one[3]]
        # What it has where it acts, times how often it does: a batch without events has nothing to say against it.
        share = median(one[0] for one in with_events) * len(with_events) / len(seen) if with_events else 0.0
        if share < INERT_SHARE and not alone:
            verb = "Raise its target gradient share" if isinstance(_declared(term), Share) else "Give it a target share"
            yield self.warn(
                step,
                f"rare-event term {term.name} has next to nothing of the gradient, so the model learns as if it were "
                "not there",
                evidence=f"{percent(share)} of the gradient in {len(seen)} steps; {_events(seen)}",
                cure=f"{verb}, e.g. 30 %, or show the model samples with events more often (oversample them).",
            )


def _declared(term: LossTerm) -> float | Share:
    return term.weight.to if isinstance(term.weight, Moving) else term.weight


def _events(seen: Sequence[Seen]) -> str:
    return (
        f"{mean(one[3] for one in seen):.3g} of {mean(one[4] for one in seen):.3g} samples a batch have events, "
        f"{sum(not one[3] for one in seen)} of {len(seen)} batches none"
    )


def _seen(entry: Entry, samples: int) -> Seen:
    assert entry.effective_weight is not None and entry.events is not None
    return entry.grad_share, entry.weight, entry.effective_weight, entry.events, samples
