"""The loss of a run: which functions it adds up, and with which weights.

A new loss is one function here in ``loss_functions`` and one line in :class:`LossParams`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from nbhelpers.stages.neural_operator.config import YARDSTICK, Config
from nbhelpers.stages.neural_operator.domain import Domain
from nbhelpers.stages.neural_operator.field_losses import divergence_penalty, field_error, sobolev
from nbhelpers.stages.neural_operator.spectral_losses import relative_log, spectral_power, spectrum_error
from nbhelpers.training.flexible import FlexibleScheduler
from nbhelpers.training.task import LossTerm
from nbhelpers.training.weights import Scheduled, Share, Weight

REGULARISERS = ("divergence",)


def loss_functions(target: Tensor, domain: Domain, valid: Tensor | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every loss by name, as a function of the prediction.

    Args:
        target: ``(B, T, C, H, W)`` in model units.
        valid: ``(B, H, W)`` bool, False inside obstacles.
    """
    spectral: dict[str, Any] = {"target": target, "lengths": domain.lengths, "window": domain.window, "valid": valid}
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "field_error": partial(field_error, target=target, valid=valid),
        "spectrum_error": partial(spectrum_error, **spectral),
        "relative_log": partial(relative_log, **spectral),
        "sobolev": partial(sobolev, target=target, lengths=domain.lengths),
        "spectral_power": partial(spectral_power, **spectral),
    }
    if domain.velocity is not None:
        found["divergence"] = partial(_divergence, domain=domain)
    return found


def _divergence(prediction: Tensor, domain: Domain) -> Tensor:
    velocity = domain.velocity_of(prediction)
    return divergence_penalty(velocity, lengths=domain.lengths)


def weights_of(config: Config, scheduler: FlexibleScheduler | None) -> dict[str, Weight]:
    """The weights of the terms that the loss has, as the settings declare them."""
    found: dict[str, Weight] = {name: weight for name, weight in vars(config.loss).items() if weight > 0}
    if scheduler is not None:
        found |= {name: Scheduled(scheduler, name) for name in (scheduler.params.source, scheduler.params.target)}
    if config.spectrum_share is not None:
        found["spectrum_error"] = Share(config.spectrum_share)
    return found


def loss_terms(
    config: Config, weights: Mapping[str, Weight], functions: Mapping[str, Callable[[Tensor], Tensor]]
) -> tuple[LossTerm, ...]:
    """The summands of the loss; the yardstick comes first."""
    relative = config.normalise == "running" and YARDSTICK in weights
    order = sorted(weights, key=lambda name: name != YARDSTICK)
    return tuple(
        LossTerm(
            name,
            functions[name],
            weights[name],
            "regulariser" if name in REGULARISERS else "objective",
            relative_to=YARDSTICK if relative and name != YARDSTICK else None,
        )
        for name in order
    )
