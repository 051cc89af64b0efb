"""On a real batch, what would each setting of the weights mean; and how much say has the tail in an average one?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.layout import WET
from nbhelpers.training.ledger import Entry, Probe, entries, probe, resolve_weights
from nbhelpers.training.task import Update
from nbhelpers.training.weights import Share

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.task import RainfallTask


def measure_balance(task: RainfallTask) -> Callable[[Config], list[Entry]]:
    """Probe the terms once, on the first training batch that has extremes, with the model as it is.

    Returns a function that says what any other λ, share or β (the one it rises to) would mean on that batch; it costs
    no pass through the network, because a weight scales a term's value and gradient and changes nothing else. The
    likelihood and ``dilute_tail`` are those of the task.

    Raises:
        UserError: no training day has extremes.
    """
    update = _first_with_extremes(task)
    probed = probe(update.prediction, update.terms)
    light = _light(probed)
    # What acts elsewhere has no gradient at the prediction to be a share of.
    norms = {
        name: norm if place is update.prediction else 0.0
        for name, norm, place in zip(probed.names, probed.norms, probed.places, strict=True)
    }
    lengths = {name: float(gradient.abs().sum()) for name, gradient in zip(probed.names, probed.gradients, strict=True)}

    def balance(config: Config) -> list[Entry]:
        everything: dict[str, float | Share] = {
            "nll": 1.0,
            "mae": config.lambda_base,
            "mae_ext": config.tail_weight,
            "mass": config.lambda_mass,
            "kl": config.beta_kl,
        }
        found = entries(light, resolve_weights({name: everything[name] for name in probed.names}, norms))
        return [
            entry
            if entry.events is None
            else dataclasses.replace(entry, effective_weight=abs(entry.weight) * lengths[entry.term])
            for entry in found
        ]

    return balance


def _first_with_extremes(task: RainfallTask) -> Update:
    """The update of the first training batch in which some pixel reaches P95; its random draws disturb no others."""
    land = torch.from_numpy(task.days.land)
    with torch.random.fork_rng():  # a loader draws a number as well
        torch.manual_seed(task.config.seed)
        for batch in task.batches("train", epoch=0):
            if bool(((batch.y >= task.event_level) & land).any()):
                return next(task.updates(batch, task.phases[0]))
    raise UserError(
        f"no training day in {task.days.folder} has a pixel of at least P95 = {task.event_level:.3g} mm/day: there is "
        "no tail to weigh."
    )


def _light(probed: Probe) -> Probe:
    """The same terms with gradients of a few numbers, so that no network lies between the places any more.

    Gradients are written in an orthonormal basis of what they span, which keeps all their products. The network's part
    in it is linear: what each term sends back to the latent is measured once, and a small matrix stands for it.
    """
    main = probed.places[0]
    here = [i for i, place in enumerate(probed.places) if place is main]
    there = [i for i, place in enumerate(probed.places) if place is not main]
    at_main = _coordinates([probed.gradients[i] for i in here])
    small = dict(zip(here, at_main.unbind(1), strict=True))
    if not there:
        leaf = torch.zeros(len(here))
        return _replaced(probed, small, dict.fromkeys(here, leaf))
    latent = probed.places[there[0]]
    sent = [
        torch.autograd.grad(main, latent, probed.gradients[i].to(main), retain_graph=True, allow_unused=True)[0]
        for i in here
    ]
    at_latent = _coordinates(
        [torch.zeros_like(latent) if one is None else one for one in sent] + [probed.gradients[i] for i in there]
    )
    small |= dict(zip(there, at_latent[:, len(here) :].unbind(1), strict=True))
    leaf = torch.zeros(len(at_latent), requires_grad=True)
    back = at_latent[:, : len(here)].double() @ torch.linalg.pinv(at_main.double())  # what is sent back of a gradient
    prediction = back.float().T @ leaf
    return _replaced(probed, small, {**dict.fromkeys(here, prediction), **dict.fromkeys(there, leaf)})


def _coordinates(gradients: Sequence[Tensor]) -> Tensor:
    """``(n, n)``: each of n gradients as a column of n coordinates."""
    columns = torch.stack([gradient.detach().flatten().double().cpu() for gradient in gradients], 1)
    return torch.linalg.qr(columns, mode="r").R.float()


def _replaced(probed: Probe, gradients: dict[int, Tensor], places: dict[int, Tensor]) -> Probe:
    indices = range(len(probed.names))
    return dataclasses.replace(
        probed, gradients=tuple(gradients[i] for i in indices), places=tuple(places[i] for i in indices)
    )


def tail_weight(task: RainfallTask, balance: Callable[[Config], list[Entry]]) -> Callable[[Config], str]:
    """Says what weight the error on extreme pixels has in an average batch, and what is left of it when diluted.

    Args:
        balance: of :func:`measure_balance`, for the factor that a share amounts to.
    """
    have, pixels, wet = _extremes(task)

    def said(config: Config) -> str:
        batch = min(config.batch_size, len(task.days.split["train"]))
        who = (
            f"An average batch of {batch} days has {have * batch:.1f} with extremes (≥ P95 = {task.event_level:.3g} "
            f"mm/day), {pixels:.0f} pixels on each of them ({pixels / task.n_land:.1%} of the land; {wet:.0f} are wet)."
        )
        entry = next((entry for entry in balance(config) if entry.term == "mae_ext"), None)
        if entry is None:
            return f"{who} The likelihood weighs every pixel alike: no term is for them alone."
        weight, diluted = entry.weight, entry.weight * have
        if config.dilute_tail:
            return f"{who} Their error acts with {diluted:.3g} instead of {weight:.3g}, diluted by the other days."
        return (
            f"{who} Their error acts with its whole weight of {weight:.3g}; averaged over all days, with extremes or "
            f"without, it would act with {diluted:.3g}."
        )

    return said


def _extremes(task: RainfallTask) -> tuple[float, float, float]:
    """Share of the days as they are drawn that have extremes, and how many extreme and wet pixels those have."""
    days, times = task.days, task.config.heavy_oversampling
    readable = [day for day in days.split["train"] if day not in days.unreadable]
    drawn = np.array([times if days.category[day] == "heavy" else 1.0 for day in readable])
    counts = np.array(
        [[(days.y(day)[days.land] >= level).sum() for level in (task.event_level, WET)] for day in readable], float
    )
    with_extremes = drawn * (counts[:, 0] > 0)
    total = max(float(with_extremes.sum()), 1e-12)
    extreme, wet = with_extremes @ counts / total
    return float(with_extremes.sum() / drawn.sum()), float(extreme), float(wet)
