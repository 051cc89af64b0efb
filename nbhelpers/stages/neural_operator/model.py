"""One step in time: the network, what it is given, and the constraints that its answer must fulfil."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbhelpers.stages.neural_operator.config import Config
from nbhelpers.stages.neural_operator.constraints import keep_mean, leray
from nbhelpers.stages.neural_operator.domain import Domain
from nbhelpers.stages.neural_operator.factorised import FFNO2d
from nbhelpers.stages.neural_operator.fno import FNO2d
from nbhelpers.stages.neural_operator.unet import UNet2d

PADDING = 0.125  # of a domain that is not periodic: what the Fourier layers would wrap around falls into it


class Stepper(nn.Module):
    """The next frame from the last ``n_in``, in model units.

    Args:
        channels: of a frame.
        conditions: numbers that a simulation is known by (Reynolds, Mach, …), given as constant channels; 0: none.
        domain: lengths and scales, for the projection.
        periodic: what lies beyond a side is the opposite side.
        constant: channels that never vary. No loss looks at them, so they are handed on as they came.
    """

    def __init__(
        self,
        config: Config,
        *,
        channels: int,
        conditions: int,
        domain: Domain,
        periodic: bool,
        constant: Sequence[int] = (),
    ):
        super().__init__()
        self.n_in, self.conditions, self.domain, self.constant = config.n_in, conditions, domain, tuple(constant)
        self.predicts, self.divergence_free, self.keep_mean = config.predicts, config.divergence_free, config.keep_mean
        self.net = _network(config, config.n_in * channels + conditions, channels, periodic=periodic)

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return (
            f"predicts={self.predicts}, divergence_free={self.divergence_free}, keep_mean={self.keep_mean}, "
            f"constant={self.constant}, net={type(self.net).__name__}({self.net.extra_repr()})"
        )

    def forward(self, frames: Tensor, conditions: Tensor | None) -> Tensor:
        """``(B, C, H, W)`` after ``(B, n_in, C, H, W)``; ``conditions`` is ``(B, P)``, standardised."""
        last = frames[:, -1]
        given = frames.flatten(1, 2)
        if self.conditions:
            assert conditions is not None
            constant = conditions[:, :, None, None].expand(-1, -1, *frames.shape[-2:])
            given = torch.cat([given, constant], 1)
        answer = self.net(given)
        if self.predicts == "change":
            answer = last + answer
        if self.divergence_free:
            answer = self._projected(answer)
        answer = keep_mean(answer, last) if self.keep_mean else answer
        if not self.constant:
            return answer
        kept = torch.zeros(answer.shape[1], dtype=torch.bool, device=answer.device)
        kept[list(self.constant)] = True
        return torch.where(kept[:, None, None], last, answer)

    def _projected(self, answer: Tensor) -> Tensor:
        assert self.domain.velocity is not None
        scales = answer.new_tensor([self.domain.scales[channel] for channel in self.domain.velocity])[:, None, None]
        velocity = leray(self.domain.velocity_of(answer), self.domain.lengths) / scales
        parts = list(answer.unbind(1))
        for channel, part in zip(self.domain.velocity, velocity.unbind(1), strict=True):
            parts[channel] = part
        return torch.stack(parts, 1)


def one_step(stepper: nn.Module, frames: Tensor, conditions: Tensor | None, *, n_in: int) -> Tensor:
    """``(B, T - n_in, C, H, W)``: every frame of ``(B, T, C, H, W)`` from the true ones before it."""
    histories = frames.unfold(1, n_in, 1)[:, :-1].movedim(-1, 2)  # (B, T - n_in, n_in, C, H, W)
    batch, steps = histories.shape[:2]
    told = None if conditions is None else conditions[:, None].expand(-1, steps, -1).flatten(0, 1)
    return stepper(histories.flatten(0, 1), told).unflatten(0, (batch, steps))


def rollout(
    stepper: nn.Module, frames: Tensor, conditions: Tensor | None, *, steps: int, held: float | None = None
) -> Tensor:
    """``(B, steps, C, H, W)`` after ``(B, n_in, C, H, W)``, each from the model's own frames before it.

    Args:
        held: where not None, frames are kept within ± this, so that a rollout that runs away stays a number.
    """
    history, found = frames, []
    for _ in range(steps):
        answer = stepper(history, conditions)
        if held is not None:
            answer = torch.nan_to_num(answer, nan=held).clamp(-held, held)
        found.append(answer)
        history = torch.cat([history[:, 1:], answer[:, None]], 1)
    return torch.stack(found, 1)


def _network(config: Config, channels_in: int, channels_out: int, *, periodic: bool) -> nn.Module:
    if config.model == "unet":
        return UNet2d(
            channels_in=channels_in,
            channels_out=channels_out,
            width=config.width,
            depth=config.layers,
            periodic=periodic,
        )
    settings: dict[str, Any] = {
        "channels_in": channels_in, "channels_out": channels_out, "width": config.width, "modes": config.modes,
        "layers": config.layers, "grid": config.coordinates,
    }  # fmt: skip
    if config.model == "ffno":
        return FFNO2d(**settings)
    return FNO2d(**settings, padding=0.0 if periodic else PADDING)
