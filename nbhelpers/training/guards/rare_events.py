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
    """Judges each rare-event term once a phase, over the ledger's probes 5-15 after all weights have risen.

    Diluted: averaged over all samples instead of those that have events, a term of weight 2 acts with 0.2 where a tenth
    of the samples has any. What it acts with is the L1 norm of its weighted gradient, in batches that have events. A
    target share makes up for a dilution, so only plain weights are judged for it.
    """

    name = "rare_events"

    seen: dict[str, list[Seen]] = field(default_factory=dict)  # by phase and term
    judged: list[str] = field(default_factory=list)  # phases and terms that are done
    ends: dict[str, int] = field(default_factory=dict)  # the last step of each phase

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        phase = rehearsal.phase
        self.ends[phase.name] = rehearsal.began_step + phase.epochs * rehearsal.steps_per_epoch
        yield from ()

    def on_step(self, step: Step) -> Iterator[Finding]:
        terms = step.update.terms
        if step.shares is None or not sum(entry.grad_share for entry in step.shares) > 0:
            return
        if any(isinstance(term.weight, Moving) and step.time < term.weight.end for term in terms):
            return
        entries = {entry.term: entry for entry in step.shares}
        for term in terms:
            key = f"{step.phase.name}/{term.name}"
            if term.events is None or is_off(term) or key in self.judged:
                continue
            seen = self.seen.setdefault(key, [])
            seen.append(_seen(entries[term.name], len(step.update.prediction)))
            if len(seen) < LAST_PROBE and step.step != self.ends.get(step.phase.name):  # a short run has fewer
                continue
            self.judged.append(key)
            del self.seen[key]
            yield from self._judge(step.step, term, seen[FIRST_PROBE - 1 :] or seen, alone=len(terms) == 1)

    def _judge(self, step: int, term: LossTerm, seen: Sequence[Seen], *, alone: bool) -> Iterator[Finding]:
        declared = term.weight.to if isinstance(term.weight, Moving) else term.weight
        with_events = [one for one in seen if one[3]]
        events = (
            f"{mean(one[3] for one in seen):.3g} of {mean(one[4] for one in seen):.3g} samples a batch have events, "
            f"{len(seen) - len(with_events)} of {len(seen)} batches none"
        )
        if with_events and not isinstance(declared, Share):
            weight, acts = (median(one[i] for one in with_events) for i in (1, 2))
            if acts < UNDILUTED * abs(weight):
                yield self.warn(
                    step,
                    f"rare-event term {term.name} is diluted: it acts as if it had a smaller weight than it has",
                    evidence=f"acts with {acts:.3g} instead of {abs(weight):.3g}; {events}",
                    cure=f"Average {term.name} over the samples that have events only, and do not multiply it by their "
                    "fraction.",
                )
        # What it has where it acts, times how often it does: a batch without events has nothing to say against it.
        share = median(one[0] for one in with_events) * len(with_events) / len(seen) if with_events else 0.0
        if share < INERT_SHARE and not alone:
            verb = "Raise its target gradient share" if isinstance(declared, Share) else "Give it a target share"
            yield self.warn(
                step,
                f"rare-event term {term.name} has next to nothing of the gradient, so the model learns as if it were "
                "not there",
                evidence=f"{percent(share)} of the gradient in {len(seen)} steps; {events}",
                cure=f"{verb}, e.g. 30 %, or show the model samples with events more often (oversample them).",
            )


def _seen(entry: Entry, samples: int) -> Seen:
    assert entry.effective_weight is not None and entry.events is not None
    return entry.grad_share, entry.weight, entry.effective_weight, entry.events, samples
