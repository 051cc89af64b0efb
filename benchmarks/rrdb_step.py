"""A training step of the generator without receptive-field blocks beside one of spandrel's RRDBNet of the same size.

Forward, backward and Adam, float32, x4. The trunks (first convolution, RRDBs, convolution, long skip) have the same
number of parameters; the tails differ: theirs doubles the resolution twice and keeps 64 channels up to the end, ours
goes there in one step with 16. Whole, ours also normalises, enlarges and, where it says so, projects.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from side_by_side import record, side_by_side
from spandrel.architectures.ESRGAN import ESRGAN
from torch import Tensor, nn

from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution.generator import Generator

torch.set_num_threads(1)
BANDS, SCALE, FEATURES, GROWTH, RRDBS, BATCH, SIDE = 4, 4, 64, 32, 2, 2, 24


class Trunk(nn.Module):
    """First convolution, RRDBs and long skip of our generator."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.head, self.body = generator.head, generator.body

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        return shallow + self.body(shallow)


def ours(*, consistency: bool) -> Generator:
    degradation = Degradation(SCALE, (0.3,) * BANDS)
    sizes = {"features": FEATURES, "growth": GROWTH, "num_rrdb": RRDBS, "num_rrfdb": 0}
    return Generator(BANDS, scale=SCALE, degradation=degradation, consistency=consistency, **sizes)


def theirs() -> nn.Module:
    sizes = {"num_filters": FEATURES, "num_blocks": RRDBS, "scale": SCALE}
    return ESRGAN(in_nc=BANDS, out_nc=BANDS, upsampler="pixel_shuffle", **sizes)


def step_of(model: nn.Module, lr: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    with torch.no_grad():
        hr = torch.zeros_like(model(lr))

    def step() -> None:
        optimizer.zero_grad()
        F.l1_loss(model(lr), hr).backward()
        optimizer.step()

    return step


torch.manual_seed(0)
models = {
    "trunk_ours": Trunk(ours(consistency=False)),
    "trunk_spandrel": theirs().model[:2],
    "ours": ours(consistency=False),
    "ours_with_projection": ours(consistency=True),
    "ours_channels_last": ours(consistency=False).to(memory_format=torch.channels_last),
    "spandrel": theirs(),
}
lr = torch.randn(BATCH, BANDS, SIDE, SIDE)
seconds = side_by_side({name: step_of(model, lr) for name, model in models.items()}, rounds=9)
record(
    "rrdb_step",
    {
        "what": f"one training step, batch {BATCH}, LR {SIDE} x {SIDE}, x{SCALE}, {RRDBS} RRDBs of {FEATURES} channels",
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "seconds": seconds,
        "trunk_times_spandrel": seconds["trunk_ours"] / seconds["trunk_spandrel"],
        "whole_times_spandrel": seconds["ours"] / seconds["spandrel"],
        "whole_with_projection_times_spandrel": seconds["ours_with_projection"] / seconds["spandrel"],
    },
)
