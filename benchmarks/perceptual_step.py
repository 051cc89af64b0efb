"""The perceptual term with target features computed once without a gradient, without that, and beside plain lpips.

All three are the loss and its gradient at the prediction, for the same windows and the same frozen network.
"""

from __future__ import annotations

import os

import torch
from side_by_side import record, side_by_side
from torch import Tensor

from nbhelpers.science.perceptual import Lpips, PerceptualLoss
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.losses import perceptual_error

torch.set_num_threads(1)
torch.manual_seed(0)
config = Config.for_profile("quick")
weights = os.environ.get("NBHELPERS_BACKBONE_WEIGHTS", "random")
perceptual, lpips = PerceptualLoss(config.backbone, weights), Lpips(config.backbone, weights)
side, n_frames = config.crop, config.perceptual_frames or config.n_out
target, forecast = torch.rand(2, config.batch_size, n_frames, side, side)
valid = torch.ones_like(target, dtype=torch.bool)


def gradient(loss: Tensor, prediction: Tensor) -> Tensor:
    return torch.autograd.grad(loss, prediction)[0]


def reused() -> Tensor:
    prediction = forecast.clone().requires_grad_()
    return gradient(perceptual_error(perceptual, target, valid)(prediction), prediction)


def not_reused() -> Tensor:
    """Both images through the network in one batch, the target's graph kept like the prediction's."""
    prediction = forecast.clone().requires_grad_()
    both = torch.cat([prediction, target.clone().requires_grad_()])
    images = both.flatten(0, 1).unsqueeze(1).expand(-1, 3, -1, -1)
    layers = [activation.chunk(2) for activation in perceptual.activations(images)]
    return gradient(torch.stack([(a - b).square().mean() for a, b in layers]).sum(), prediction)


def twice_reused() -> None:
    """Two looks at one target, as a ledger's and a step's would be."""
    loss = perceptual_error(perceptual, target, valid)
    for _ in range(2):
        prediction = forecast.clone().requires_grad_()
        gradient(loss(prediction), prediction)


def twice_not_reused() -> None:
    not_reused()
    not_reused()


def plain_lpips() -> Tensor:
    prediction = forecast.clone().requires_grad_()
    images = [(2 * x.flatten(0, 1).unsqueeze(1) - 1).expand(-1, 3, -1, -1) for x in (prediction, target)]
    return gradient(lpips.distance(*images).mean(), prediction)


torch.testing.assert_close(reused(), not_reused(), rtol=1e-3, atol=1e-4)
ways = {
    "reused": reused,
    "not_reused": not_reused,
    "lpips": plain_lpips,
    "twice_reused": twice_reused,
    "twice_not_reused": twice_not_reused,
}
seconds = side_by_side(ways, rounds=15)
record(
    "perceptual_step",
    {
        "what": f"{config.backbone}: {config.batch_size * n_frames} frames of {side} x {side}, loss and gradient",
        "seconds": seconds,
        "ratio_not_reused": seconds["not_reused"] / seconds["reused"],
        "ratio_twice_not_reused": seconds["twice_not_reused"] / seconds["twice_reused"],
        "ratio_lpips": seconds["lpips"] / seconds["reused"],
    },
)
