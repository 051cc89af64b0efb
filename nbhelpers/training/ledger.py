"""What every loss term contributes, by value and by gradient, and the weights that follow from it.

Each term's gradient is taken at the detached prediction, gᵢ = ∂Lᵢ/∂ŷ; the model's backward is then driven by
ŷ·Σ wᵢgᵢ, which has exactly the gradient of Σ wᵢLᵢ. So the shares cost a few norms instead of a second backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbhelpers.training.task import LossTerm
from nbhelpers.training.weights import Share

EMA = 0.9  # of the gradient norms behind share-based weights: about ten steps of memory


@dataclass(frozen=True)
class Probe:
    """Every term at one prediction, before weighting."""

    names: tuple[str, ...]
    raw: Tensor  # (terms,) values of the unweighted terms, float32
    gradients: tuple[Tensor, ...]  # each of the prediction's shape, float32
    norms: Tensor  # (terms,) Euclidean norms of the gradients


@dataclass(frozen=True)
class Entry:
    """One row of ledger.csv."""

    term: str
    raw: float  # the unweighted term
    weight: float
    value_share: float  # of the summed absolute weighted values
    grad_share: float  # of the summed norms of the weighted gradients
    cosine_to_total: float  # between this term's gradient and the whole loss's


def probe(prediction: Tensor, terms: Sequence[LossTerm]) -> Probe:
    """Value and gradient of every term at ``prediction`` (its own graph is left alone)."""
    values, gradients = [], []
    for term in terms:
        leaf = prediction.detach().float().requires_grad_(True)
        value = term.fn(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        values.append(value.detach().float())
        gradients.append(gradient)
    norms = torch.stack([gradient.norm() for gradient in gradients])
    return Probe(tuple(term.name for term in terms), torch.stack(values), tuple(gradients), norms)


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
    """The ledger of one probe under numeric ``weights``."""
    w = torch.tensor([weights[name] for name in probed.names], device=probed.raw.device)
    total = weighted_sum(probed.gradients, w)
    dots = torch.stack([(gradient * total).sum() for gradient in probed.gradients])
    raw, norms, dots, total_norm = (x.double().cpu() for x in (probed.raw, probed.norms, dots, total.norm()))
    w = w.double().cpu()
    value = (w * raw).abs()
    gradient = (w * norms).abs()
    # A term of weight 0 still has a direction; its cosine says which way it would pull.
    signs = torch.where(w < 0, -1.0, 1.0)
    cosine = signs * dots / (norms * total_norm)
    return [
        Entry(
            name,
            float(raw[i]),
            float(w[i]),
            float(value[i] / value.sum()) if value.sum() > 0 else 0.0,
            float(gradient[i] / gradient.sum()) if gradient.sum() > 0 else 0.0,
            float(cosine[i]) if torch.isfinite(cosine[i]) else 0.0,
        )
        for i, name in enumerate(probed.names)
    ]


def weighted_sum(gradients: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ wᵢgᵢ."""
    total = weights[0] * gradients[0]
    for weight, gradient in zip(weights[1:], gradients[1:], strict=True):
        total = total + weight * gradient
    return total


class Balance:
    """Keeps the running gradient norms that turn shares into weights; checkpointed with the run."""

    def __init__(self) -> None:
        self.norms: dict[str, float] = {}

    def weights(self, probed: Probe, terms: Sequence[LossTerm]) -> dict[str, float]:
        """Numeric weights for this step, after taking its gradient norms into account."""
        declared = {term.name: term.weight for term in terms}
        if any(isinstance(weight, Share) for weight in declared.values()):
            for name, norm in zip(probed.names, probed.norms.tolist(), strict=True):
                # A mean that starts at 0 (a dry first batch, say) would take tens of steps to find the term's scale.
                previous = self.norms.get(name, 0.0) or norm
                self.norms[name] = EMA * previous + (1 - EMA) * norm
        return resolve_weights(declared, self.norms)

    def state_dict(self) -> dict[str, Any]:
        return {"norms": dict(self.norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.norms = dict(state["norms"])


def surrogate(prediction: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient at ``prediction`` is ``gradient``: what backward is called on."""
    return (prediction.float() * gradient.detach()).sum()
