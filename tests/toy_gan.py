"""The toy as a GAN in two phases: the denoiser learns from pixels first, then against a spectrally normed critic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.lr_scheduler import LambdaLR
from toy import ToyConfig, ToyTask

from nbhelpers.training.fit import Fitted, fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import LossTerm, Monitor, Phase, Update
from nbhelpers.training.weights import Ramp, Share, Weight


@dataclass(frozen=True)
class GanConfig(ToyConfig):
    """What a toy GAN computes; ``lr`` is the generator's in the first phase."""

    pixel_epochs: int = 2
    adversarial_epochs: int = 3
    generator_lr: float = 0.01  # of the second phase
    discriminator_lr: float = 0.01
    discriminator_weight: float = 1.0  # 0 freezes it
    adversarial_share: float = 0.2  # of the generator's gradient
    adversarial_weight: float | None = None  # a plain one instead of the share
    ramp: float | None = None  # epochs in which the adversarial weight rises to 0.01, instead of a share
    pixel_monitor: Monitor | None = None
    adversarial_monitor: Monitor | None = Monitor("mae", "min")
    keep: int = 1  # of the second phase

    may_change: ClassVar[frozenset[str]] = ToyConfig.may_change | {"pixel_epochs", "adversarial_epochs"}


class GanTask(ToyTask):
    """Generator ``net`` and ``discriminator``, whose power iteration moves buffers in every forward pass."""

    config: GanConfig

    def __init__(self, config: GanConfig):
        super().__init__(config)
        self.modules["discriminator"] = nn.Sequential(
            spectral_norm(nn.Conv2d(1, 8, 3, padding=1)), nn.LeakyReLU(0.2), nn.Flatten(),
            spectral_norm(nn.Linear(8 * 64, 1)),
        )  # fmt: skip
        net, discriminator = (self.modules[name].parameters() for name in ("net", "discriminator"))
        net = list(net)
        pixel = torch.optim.Adam(net, lr=config.lr)
        adversarial = {
            "net": torch.optim.Adam(net, lr=config.generator_lr),
            "discriminator": torch.optim.Adam(discriminator, lr=config.discriminator_lr, betas=(0.5, 0.9)),
        }
        self.phases = (
            Phase("pixel", config.pixel_epochs, {"net": pixel}, {"net": slower(pixel)}, config.pixel_monitor),
            Phase(
                "adversarial",
                config.adversarial_epochs,
                adversarial,
                {name: slower(optimizer) for name, optimizer in adversarial.items()},
                config.adversarial_monitor,
                config.keep,
            ),
        )

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        noisy, clean = (field.to(self.device) for field in batch)
        prediction = self.modules["net"](noisy)
        if phase.name == "pixel":
            yield Update("net", prediction, self.terms(clean), target=clean)
            return
        discriminator = self.modules["discriminator"]
        mse = LossTerm("mse", lambda image: (image - clean).square().mean(), 1.0)
        weight: Weight = Share(self.config.adversarial_share)
        if self.config.ramp is not None:
            weight = Ramp(0.01, self.config.ramp)
        if self.config.adversarial_weight is not None:
            weight = self.config.adversarial_weight
        fool = LossTerm("fool", lambda image: softplus(-discriminator(image)).mean(), weight, role="adversarial")
        yield Update("net", prediction, (mse, fool), target=clean)
        logits = discriminator(torch.cat([clean, prediction.detach()]))
        real = torch.cat([torch.ones(len(clean), 1), -torch.ones(len(clean), 1)]).to(self.device)
        tell = LossTerm("tell_apart", lambda x: softplus(-real * x).mean(), self.config.discriminator_weight)
        right = (logits.detach() * real > 0).float().mean()
        yield Update("discriminator", logits, (tell,), accuracy=right)


def slower(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1 / (1 + step / 50))


def gan(output_dir: Path, run_name: str = "run", **settings: Any) -> tuple[GanTask, Run]:
    """A fresh task and its run folder, as a new process would have them."""
    task = GanTask(dataclasses.replace(GanConfig(), **settings))
    return task, open_run(task, output_dir, run_name)


def train_gan(output_dir: Path, run_name: str = "run", **settings: Any) -> Fitted:
    return fit(*gan(output_dir, run_name, **settings))


def tensors(task: GanTask, module: str) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.modules[module].state_dict().items()}
