"""G1: one objective has the model to itself while another has no say."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.training.guards.guard import Finding, Guard, Rehearsal, Step
from nbhelpers.training.task import LossTerm
from nbhelpers.training.weights import Moving, Share, Weight

FIRST_PROBE, LAST_PROBE = 5, 15  # numbers from 1; the first steps of an untrained model are not typical


def out_of_balance(shares: Mapping[str, float], rare: Collection[str] = ()) -> tuple[str, str] | None:
    """The dominant and the inert one among objectives with these gradient shares, or None when all have a say.

    Args:
        rare: those whose being inert is another guard's business.
    """
    if len(shares) < 2 or shares.keys() <= {*rare}:
        return None
    dominant = max(shares, key=shares.__getitem__)
    inert = min((name for name in shares if name not in rare), key=shares.__getitem__)
    return (dominant, inert) if shares[dominant] > DROWNING_SHARE and shares[inert] < INERT_SHARE else None


@dataclass
class LossBalance(Guard):
    """Judges the medians of the ledger's gradient shares over probes 5-15, once for each optimizer of each phase.

    Regularisers and terms that are switched off (a declared weight of 0) are listed and not judged; that a rare-event
    term is inert, the guard of those terms says (G12). Nothing is collected while a weight is moving, because all
    shares change with it.
    """

    name = "loss_balance"

    # By phase and optimizer: a mapping of term to (gradient share, value share) for each probe so far.
    probes: dict[str, list[dict[str, tuple[float, float]]]] = field(default_factory=dict)
    judged: list[str] = field(default_factory=list)  # phases and optimizers that are done
    ends: dict[str, int] = field(default_factory=dict)  # the last step of each phase

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        phase = rehearsal.phase
        self.ends[phase.name] = rehearsal.began_step + phase.epochs * rehearsal.steps_per_epoch
        yield from ()

    def on_step(self, step: Step) -> Iterator[Finding]:
        key, terms = f"{step.phase.name}/{step.update.optimizer}", step.update.terms
        objectives = [term for term in terms if term.role != "regulariser" and not is_off(term)]
        if step.shares is None or key in self.judged or len(objectives) < 2:
            return
        if any(isinstance(term.weight, Moving) and step.time < term.weight.end for term in terms):
            return
        # Without any gradient (a flat batch), or with one that is not finite, a batch has nothing to say about shares.
        if not sum(entry.grad_share for entry in step.shares) > 0:
            return
        probes = self.probes.setdefault(key, [])
        probes.append({entry.term: (entry.grad_share, entry.value_share) for entry in step.shares})
        if len(probes) < LAST_PROBE and step.step != self.ends.get(step.phase.name):  # a short run has fewer
            return
        self.judged.append(key)
        probes = self.probes.pop(key)
        seen = probes[FIRST_PROBE - 1 :] or probes
        gradient = {term.name: median(probe[term.name][0] for probe in seen) for term in terms}
        value = {term.name: median(probe[term.name][1] for probe in seen) for term in terms}
        rare = {term.name for term in objectives if term.events is not None}
        found = out_of_balance({term.name: gradient[term.name] for term in objectives}, rare)
        if found is not None:
            dominant, inert = found
            listed = [
                f"{name} {percent(gradient[name])} of the gradient and {percent(value[name])} of the loss"
                for name in gradient
            ]
            yield self.warn(
                step.step,
                f"{dominant} has nearly all of the gradient and {inert} next to nothing, so the model learns as if "
                f"{inert} were not there",
                evidence=f"{'; '.join(listed)}; medians of {len(seen)} steps",
                cure=_cure(objectives, dominant, inert, has_gradient=gradient[inert] > 0),
            )


def is_off(term: LossTerm) -> bool:
    """Whether the term was switched off on purpose."""
    weight = _risen(term.weight)
    return (weight.target if isinstance(weight, Share) else weight) == 0


def _risen(weight: Weight) -> float | Share:
    """What a weight is once it stands."""
    return weight.to if isinstance(weight, Moving) else weight


def _cure(objectives: Sequence[LossTerm], dominant: str, inert: str, *, has_gradient: bool) -> str:
    """What to do with the later one of the two: a stage lists first what it is about, and then what it adds."""
    if not has_gradient:
        return f"Find out why {inert} has no gradient at the prediction."
    extra = [term for term in objectives if term.name in (dominant, inert)][-1]
    verb = "raise" if extra.name == inert else "lower"
    weight = _risen(extra.weight)
    if isinstance(weight, Share):
        return f"{verb.capitalize()} the target gradient share of {extra.name}, which is {percent(weight.target)}."
    if extra.at is not None:  # a share is one of the gradient at the prediction
        return f"{verb.capitalize()} the weight of {extra.name}, which is {weight:g}."
    if extra.name == inert:
        return f"Give {extra.name} a target gradient share, e.g. 10 %, instead of its weight {weight:g}."
    return f"Lower the weight of {extra.name}, which is {weight:g}, or give it a target gradient share, e.g. 10 %."


def percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.1f} %"
