"""What every loss term contributes, by value and by gradient, and the weights that follow from it.

Each term's gradient is taken at the detached prediction, gᵢ = ∂Lᵢ/∂ŷ; the model's backward is then driven by
ŷ·Σ wᵢgᵢ, which has exactly the gradient of Σ wᵢLᵢ. So the shares cost a few norms instead of a second backward.
Terms that do not act on the prediction are treated alike at the tensor they act on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbhelpers.training.task import LossTerm
from nbhelpers.training.weights import Moving, Share

LEDGER_EVERY = 10  # steps between rows of ledger.csv
LEDGER_FIRST = 16  # steps at the beginning that all have rows: the balance of the losses is judged on them
EMA = 0.9  # of the gradient norms behind share-based weights: about ten steps of memory, fewer at the beginning


@dataclass(frozen=True)
class Probe:
    """Every term where it acts, before weighting."""

    names: tuple[str, ...]
    raw: tuple[float, ...]  # values of the unweighted terms
    gradients: tuple[Tensor, ...]  # each of the shape of its place, float32
    norms: tuple[float, ...]  # Euclidean norms of the gradients
    places: tuple[Tensor, ...]  # the tensor of the graph that each term is a function of: mostly the prediction
    events: tuple[int | None, ...] = ()  # samples that a rare-event term measures on; None for the other terms


@dataclass(frozen=True)
class Entry:
    """What one term contributed at one step. Gradients are compared with those that meet them at the same place."""

    term: str
    raw: float  # the unweighted term
    weight: float
    value_share: float  # of the summed absolute weighted values
    grad_share: float  # of the summed norms of the weighted gradients
    cosine_to_total: float  # between this term's gradient and the whole loss's
    cosines: Mapping[str, float]  # between this term's gradient and each other term's at the same place
    # Of a rare-event term: Σ|∂(wL)/∂ŷ|, which of a mean absolute error of weight w is w, and less where it is diluted.
    effective_weight: float | None = None
    events: int | None = None  # samples of the batch that it measures on

    def row(self) -> dict[str, Any]:
        """The cells of ledger.csv; the cosines come last, because their columns depend on the terms."""
        cells = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "cosines"}
        return cells | {f"cosine_to_{term}": value for term, value in self.cosines.items()}


def probe(prediction: Tensor, terms: Sequence[LossTerm]) -> Probe:
    """Value and gradient of every term where it acts (the graph behind that is left alone).

    Raises:
        ValueError: a term does not depend on the tensor it acts on.
    """
    values, gradients, places = [], [], []
    for term in terms:
        place = prediction if term.at is None else term.at
        leaf = place.detach().float().requires_grad_(True)
        value = term.fn(leaf)
        gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
        if gradient is None:
            of = "prediction" if term.at is None else "tensor it acts on"
            raise ValueError(f"term {term.name!r} does not depend on the {of}: compute it from the argument of its fn")
        values.append(value.detach().float())
        gradients.append(gradient)
        places.append(place)
    norms = [gradient.norm() for gradient in gradients]
    numbers = torch.stack([*values, *norms]).tolist()  # one transfer for all
    names = tuple(term.name for term in terms)
    raw, sizes, events = numbers[: len(names)], numbers[len(names) :], tuple(term.events for term in terms)
    return Probe(names, tuple(raw), tuple(gradients), tuple(sizes), tuple(places), events)


def resolve_weights(weights: Mapping[str, float | Share], norms: Mapping[str, float]) -> dict[str, float]:
    """Numbers for all weights: a share s becomes the factor that gives its term s of the summed gradient norms.

    With fixed terms of weighted norms F = Σ wⱼ‖gⱼ‖ and all shares together S, wᵢ = sᵢ/(1 − S) · F/‖gᵢ‖.

    Raises:
        ValueError: when the shares leave nothing for the fixed terms, or there is no fixed term to be measured by.
    """
    shares = {name: weight.target for name, weight in weights.items() if isinstance(weight, Share)}
    total_share = sum(shares.values())
    if total_share >= 1.0:
        raise ValueError(f"gradient shares {shares} add up to {total_share}, which leaves nothing for the other terms")
    resolved = {name: float(weight) for name, weight in weights.items() if not isinstance(weight, Share)}
    if shares and not any(resolved.values()):
        raise ValueError(f"gradient shares {shares} need another term with a plain weight above 0 to be shares of")
    fixed = sum(abs(weight) * norms[name] for name, weight in resolved.items()) if shares else 0.0
    for name, share in shares.items():
        resolved[name] = share / (1.0 - total_share) * fixed / norms[name] if norms[name] > 0 else 0.0
    return {name: resolved[name] for name in weights}


def entries(probed: Probe, weights: Mapping[str, float]) -> list[Entry]:
    """The ledger of one probe under numeric ``weights``.

    Terms on the prediction meet each other there. A term that acts elsewhere (a KL, at the latent's parameters) meets
    what the others send back to that place, which takes a backward pass from the prediction to it.
    """
    weighted = [weights[name] * value for name, value in zip(probed.names, probed.raw, strict=True)]
    total = sum(map(abs, weighted))
    found: dict[str, Entry] = {}
    for place in _distinct(probed.places):
        here = [i for i, other in enumerate(probed.places) if other is place]
        names = [probed.names[i] for i in here]
        gradients = [probed.gradients[i] for i in here]
        factors = [weights[name] for name in names]
        if (sent := _sent_back(probed, weights, place)) is not None:
            gradients, factors = [*gradients, sent.float()], [*factors, 1.0]
        products = _products(gradients)
        w = torch.tensor(factors, dtype=torch.float64)
        norms = products.diagonal().clamp(min=0).sqrt()
        shares = (w * norms).abs()
        towards_total = products @ w
        total_norm = float((w @ towards_total).clamp(min=0).sqrt())
        for k, (i, name) in enumerate(zip(here, names, strict=True)):
            events = probed.events[i] if probed.events else None
            sign = -1.0 if factors[k] < 0 else 1.0  # at weight 0 the cosine says which way the term would pull
            found[name] = Entry(
                name,
                probed.raw[i],
                factors[k],
                abs(weighted[i]) / total if total > 0 else 0.0,
                float(shares[k] / shares.sum()) if shares.sum() > 0 else 0.0,
                sign * _cosine(towards_total[k], norms[k] * total_norm),
                {other: _cosine(products[k, m], norms[k] * norms[m]) for m, other in enumerate(names) if m != k},
                None if events is None else abs(factors[k]) * float(gradients[k].abs().sum()),
                events,
            )
    return [found[name] for name in probed.names]


def _products(gradients: Sequence[Tensor]) -> Tensor:
    """(n, n) scalar products of gradients, float64 on the CPU, in one transfer."""
    n = len(gradients)
    upper = [(gradients[i] * gradients[j]).sum() for i in range(n) for j in range(i, n)]
    flat = torch.stack(upper).double().cpu()
    products = torch.zeros(n, n, dtype=torch.float64)
    rows, columns = torch.triu_indices(n, n)
    products[rows, columns] = products[columns, rows] = flat
    return products


def _cosine(product: Tensor, norms: Tensor) -> float:
    cosine = float(product / norms)
    return cosine if math.isfinite(cosine) else 0.0


def _sent_back(probed: Probe, weights: Mapping[str, float], place: Tensor) -> Tensor | None:
    """What the other terms' gradient is at ``place``; None where the prediction does not depend on it."""
    others = [i for i, other in enumerate(probed.places) if other is not place]
    if not others or not place.requires_grad:
        return None
    names = [probed.names[i] for i in others]
    scalar = surrogate(_chosen(probed, others), {name: weights[name] for name in names})
    (gradient,) = torch.autograd.grad(scalar, place, retain_graph=True, allow_unused=True)
    return gradient


def _chosen(probed: Probe, indices: Sequence[int]) -> Probe:
    pick = list(indices)
    return Probe(
        tuple(probed.names[i] for i in pick),
        tuple(probed.raw[i] for i in pick),
        tuple(probed.gradients[i] for i in pick),
        tuple(probed.norms[i] for i in pick),
        tuple(probed.places[i] for i in pick),
    )


def _distinct(places: Sequence[Tensor]) -> list[Tensor]:
    return list({id(place): place for place in places}.values())


class RunningMean:
    """Running geometric means of positive numbers, by name; checkpointed with the run.

    Geometric, because gradient norms and losses differ between batches by factors (a dry one, a storm), and half of the
    steps shall lie above what was asked for and half below.
    """

    def __init__(self) -> None:
        self.means: dict[str, float] = {}
        self.seen: dict[str, int] = {}

    def learn(self, name: str, value: float) -> None:
        if value <= 0:  # a dry batch says nothing about the term's scale
            return
        seen = self.seen.get(name, 0)
        keep = min(EMA, seen / (seen + 1))  # a plain mean until the memory is full: the first batch is one of many
        self.means[name] = value ** (1 - keep) * self.means.get(name, 1.0) ** keep
        self.seen[name] = seen + 1

    def state_dict(self) -> dict[str, Any]:
        return {"means": dict(self.means), "seen": dict(self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.means, self.seen = dict(state["means"]), dict(state["seen"])


class Balance:
    """Keeps what turns shares and relative weights into factors: every term's running gradient norm and magnitude."""

    def __init__(self) -> None:
        self.norms, self.magnitudes = RunningMean(), RunningMean()

    def weights(self, probed: Probe, terms: Sequence[LossTerm], *, time: float = 0.0) -> dict[str, float]:
        """Numeric weights for this step, after taking its gradient norms into account.

        Args:
            time: in epochs, for weights that rise.

        Raises:
            ValueError: a share for a term that does not act on the prediction: there is no common place to share; or a
                term relative to one that is not there.
        """
        norms = dict(zip(probed.names, probed.norms, strict=True))
        declared: dict[str, float | Share] = {}
        for term in terms:
            weight = term.weight.at(time) if isinstance(term.weight, Moving) else term.weight
            if isinstance(weight, Share) and term.at is not None:
                raise ValueError(f"term {term.name!r} acts elsewhere than on the prediction: it cannot have a share")
            declared[term.name] = weight
        if any(isinstance(weight, Share) for weight in declared.values()):
            for name, norm in norms.items():
                self.norms.learn(name, norm)
        if any(term.relative_to is not None for term in terms):
            for name, raw in zip(probed.names, probed.raw, strict=True):
                self.magnitudes.learn(name, abs(raw))
            for term in terms:
                declared[term.name] = self._relative(term, declared[term.name])
        elsewhere = {term.name for term in terms if term.at is not None}
        known = {name: 0.0 if name in elsewhere else self.norms.means.get(name, norm) for name, norm in norms.items()}
        return resolve_weights(declared, known)

    def _relative(self, term: LossTerm, weight: float | Share) -> float | Share:
        """The factor that makes ``weight`` mean what it says in units of another term's running magnitude."""
        if term.relative_to is None or isinstance(weight, Share):
            return weight
        magnitudes = self.magnitudes.means
        if term.name not in magnitudes:  # it has been 0 so far
            return 0.0
        if term.relative_to not in magnitudes:
            raise ValueError(f"term {term.name!r} is measured in units of {term.relative_to!r}, which has no magnitude")
        return weight * magnitudes[term.relative_to] / magnitudes[term.name]

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self.norms.state_dict(), "magnitudes": self.magnitudes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.norms.load_state_dict(state["norms"])
        self.magnitudes.load_state_dict(state["magnitudes"])


def surrogate(probed: Probe, weights: Mapping[str, float]) -> Tensor:
    """A scalar whose gradient is that of Σ wᵢLᵢ: what backward is called on."""
    parts = []
    for place in _distinct(probed.places):
        total: Tensor | None = None
        for name, gradient, other in zip(probed.names, probed.gradients, probed.places, strict=True):
            if other is place:
                total = weights[name] * gradient if total is None else total.add(gradient, alpha=weights[name])
        assert total is not None
        parts.append((place.float() * total).sum())
    return torch.stack(parts).sum()
