"""An exponential moving average of the weights: what is scored and shipped, while the weights themselves train on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """``average ← d·average + (1 − d)·weights`` after every step, with d = min(decay, (1 + n)/(10 + n)) at step n.

    The rising d lets the average leave the untrained weights within tens of steps whatever the decay. Buffers are not
    averaged: the modules' own serve both. Polyak and Juditsky (1992), doi:10.1137/0330046.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float):
        self.decay, self.updates = decay, 0
        self._modules = modules
        self._average: dict[str, Tensor] = {}
        self.restart(0)

    def restart(self, updates: int) -> None:
        """Take the modules' present weights for the average after ``updates`` steps."""
        self.updates = updates
        self._average = {name: tensor.detach().clone() for name, tensor in parameters(self._modules).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the modules' weights into account after a step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in parameters(self._modules).items():
            self._average[name].lerp_(tensor, 1 - decay)

    def take_in(self) -> dict[str, Tensor]:
        """Put the average into the modules; returns their own weights, for :func:`load` to put back."""
        own = {name: tensor.detach().clone() for name, tensor in parameters(self._modules).items()}
        load(self._modules, self._average)
        return own

    def trained(self) -> dict[str, Tensor]:
        """A copy of the weights that are being trained, named ``module.parameter``, on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in parameters(self._modules).items()}


@torch.no_grad()
def load(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors named ``module.tensor`` into ``modules``."""
    there = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    for name, tensor in tensors.items():
        there[name].copy_(tensor)


def parameters(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What can be averaged, named ``module.parameter``: everything but buffers, and what is frozen."""
    return {
        f"{name}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in module.named_parameters()
        if tensor.requires_grad
    }
