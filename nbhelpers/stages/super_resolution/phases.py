"""The two stages of training: their optimizers, learning rates, and what their checkpoints are compared by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.training.task import Monitor, Phase

FIDELITY = Monitor("psnr", "max")  # of the first stage; the second one's is a setting
PIXEL, ADVERSARIAL = "pixel", "adversarial"
HALVINGS = (1 / 2, 3 / 4, 7 / 8)  # of the second stage, where its learning rates are halved
# What can be watched; the feature distance has a name of its own.
BETTER: dict[str, Literal["min", "max"]] = {"psnr": "max", "ssim": "max", "mae": "min", "sam": "min", "ergas": "min"}


def make_phases(config: Config, modules: Mapping[str, nn.Module], *, distance: str) -> Iterator[Phase]:
    """The first stage, and the second one if the settings have it.

    Args:
        distance: key of the feature distance.

    Raises:
        UserError: a monitor that does not exist or that has no better end.
    """
    steps = math.ceil(math.ceil(config.crops_per_epoch / config.batch_size) / config.accumulate)

    def adam(name: str, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(modules[name].parameters(), lr=rate, weight_decay=config.weight_decay)

    first, total = adam("generator", config.stage1_lr), config.stage1_epochs * steps
    cosine = LambdaLR(first, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / total, 1))))
    yield Phase(PIXEL, config.stage1_epochs, {"generator": first}, {"generator": cosine})
    if not config.stage2_epochs:
        return
    rates = {"generator": config.stage2_lr, "discriminator": config.stage2_lr * config.discriminator_lr_factor}
    optimizers = {name: adam(name, rate) for name, rate in rates.items()}
    cuts = {max(1, round(config.stage2_epochs * steps * part)) for part in HALVINGS}

    def halved(step: int) -> float:  # a function is no part of a state: in a prolonged stage the cuts are the new ones
        return 0.5 ** sum(step >= cut for cut in cuts)

    yield Phase(
        ADVERSARIAL,
        config.stage2_epochs,
        optimizers,
        {name: LambdaLR(one, halved) for name, one in optimizers.items()},
        monitor=_monitor(config.monitor, distance),
        keep=config.ensemble,
    )


def _monitor(asked: str, distance: str) -> Monitor:
    modes: dict[str, Literal["min", "max"]] = {**BETTER, distance: "min"}
    metric = distance if asked == "lpips" else asked
    if metric not in modes:
        raise UserError(f"monitor is {asked!r}, expected one of {', '.join(modes)}.")
    return Monitor(metric, modes[metric])
