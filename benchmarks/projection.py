"""The projection in closed form beside conjugate gradients on D Dᵀ stopped at 1e-5, and a whole scene.

D and Dᵀ cost both ways the same; conjugate gradients need them once in every step. Errors are the largest difference
between the degraded result and the LR image, of reflectances from 0 to 1, in float32.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import torch
from side_by_side import record, side_by_side
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.science.degradation import Degradation

torch.set_num_threads(1)
torch.manual_seed(0)
TOLERANCE = 1e-5
degradation = Degradation(4, (0.3,) * 4)


def conjugate_gradients(x: Tensor, lr: Tensor) -> tuple[Tensor, int]:
    """The same projection, Dᵀ(D Dᵀ)⁻¹ step by step; also the number of steps."""

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum((-2, -1), keepdim=True)

    rest = lr - degradation.degrade(x)
    direction, found, size = rest, torch.zeros_like(rest), dot(rest, rest)
    steps = 0
    while float(rest.detach().abs().max()) > TOLERANCE:
        seen = degradation.degrade(degradation.adjoint(direction))
        step = size / dot(direction, seen)
        found, rest = found + step * direction, rest - step * seen
        size, before = dot(rest, rest), size
        direction = rest + size / before * direction
        steps += 1
    return x + degradation.adjoint(found), steps


def error(x: Tensor, lr: Tensor) -> float:
    return float((degradation.degrade(x) - lr).abs().max())


def with_gradient(project: Callable[[Tensor], Tensor], x: Tensor) -> None:
    leaf = x.requires_grad_()
    project(leaf).square().sum().backward()
    leaf.grad = None
    leaf.requires_grad_(False)


def measure(*shape: int, rounds: int, gradient: bool) -> dict[str, object]:
    """Both on a smooth image with texture, enlarged from its LR image and off by a little."""
    truth = F.interpolate(torch.rand(*shape[:2], shape[2] // 8, shape[3] // 8), scale_factor=8, mode="bicubic")
    truth = (0.7 * truth + 0.3 * torch.rand(shape)).clamp(0, 1)
    lr = degradation.degrade(truth)
    x = F.interpolate(lr, scale_factor=4, mode="bicubic")
    ways: dict[str, Callable[[], object]] = {
        "closed_form": lambda: degradation.project(x, lr),
        "conjugate_gradients": lambda: conjugate_gradients(x, lr),
        "bicubic": lambda: F.interpolate(lr, scale_factor=4, mode="bicubic"),
    }
    if gradient:
        ways["closed_form_and_gradient"] = lambda: with_gradient(lambda leaf: degradation.project(leaf, lr), x)
        ways["conjugate_gradients_and_gradient"] = lambda: with_gradient(
            lambda leaf: conjugate_gradients(leaf, lr)[0], x
        )
    seconds = side_by_side(ways, rounds=rounds)
    by_steps, steps = conjugate_gradients(x, lr)
    result: dict[str, object] = {
        "shape": shape,
        "seconds": seconds,
        "ratio": seconds["conjugate_gradients"] / seconds["closed_form"],
        "error_before": error(x, lr),
        "error_closed_form": error(degradation.project(x, lr), lr),
        "error_conjugate_gradients": error(by_steps, lr),
        "steps": steps,
    }
    if gradient:
        result["ratio_with_gradient"] = (
            seconds["conjugate_gradients_and_gradient"] / seconds["closed_form_and_gradient"]
        )
    return result


def scene(side: int) -> dict[str, object]:
    """Four bands of ``side`` x ``side`` pixels in place, non-negativity included."""
    lr = torch.rand(4, side // 4, side // 4)
    x = F.interpolate(lr[None], scale_factor=4, mode="bicubic")[0]
    bytes_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    residual = degradation.project_scene(x, lr, floor=-10.0)
    return {
        "shape": tuple(x.shape),
        "seconds": time.perf_counter() - began,
        "error": error(x, lr),
        "residual": residual.tolist(),
        "scene_bytes": x.nbytes,
        "peak_bytes_beyond_the_scene": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - bytes_before,
    }


with torch.no_grad():
    large = scene(4096)  # first: the peak of memory counts from the start of the process
    square = measure(1, 4, 2048, 2048, rounds=2, gradient=False)
batch = measure(8, 4, 128, 128, rounds=25, gradient=True)
record(
    "projection",
    {
        "what": "projection onto LR images, scale 4, MTF 0.30; conjugate gradients stopped at 1e-5",
        "training_batch": batch,
        "scene_2048": square,
        "scene_4096_in_place": large,
    },
)
