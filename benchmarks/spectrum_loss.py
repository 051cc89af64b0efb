"""The spectrum error and its gradient: beside a loop over masks of shells, and as a share of a model's step.

Fields have 4 channels in batches of 8; the model is the operator of the stage's quick profile. Memory is what autograd
keeps for the backward pass, parameters left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from side_by_side import record, side_by_side
from torch import Tensor, nn

from nbhelpers.science import spectra
from nbhelpers.stages.neural_operator.field_losses import field_error
from nbhelpers.stages.neural_operator.fno import FNO2d
from nbhelpers.stages.neural_operator.spectral_losses import FLOOR, spectrum_error

torch.set_num_threads(1)
torch.manual_seed(0)


def mask_loop(prediction: Tensor, target: Tensor) -> Tensor:
    """The same error, shell by shell, as one would write it down first."""
    shape = target.shape[-2:]
    radius = spectra.squared_wavenumber(shape).sqrt().float()
    weights = spectra.multiplicity(shape).float()
    guess, truth = (torch.fft.rfft2(field, norm="forward").abs().square() * weights for field in (prediction, target))
    floor = FLOOR * target.var((-1, -2), correction=0)
    errors = []
    for n in range(1, spectra.resolved_shells(shape) + 1):
        mask = (radius >= n - 0.5) & (radius < n + 0.5)
        energies = [torch.maximum((power * mask).sum((-1, -2)), floor) for power in (guess, truth)]
        errors.append((energies[0].log() - energies[1].log()).square())
    return torch.stack(errors, -1).mean()


def with_gradient(loss: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor) -> Tensor:
    leaf = prediction.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf, target), leaf)[0]


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of the tensors that ``forward`` leaves to its backward pass, storages counted once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    sizes = [t.untyped_storage().nbytes() for address, t in kept.items() if address not in parameters]
    loss.backward()
    return sum(sizes)


def measure(side: int, *, rounds: int) -> dict[str, object]:
    model = FNO2d(channels_in=4, channels_out=4, width=24, modes=16, layers=4)
    optimizer = torch.optim.AdamW(model.parameters())
    fields, target, prediction = torch.randn(3, 8, 1, 4, side, side)
    torch.testing.assert_close(spectrum_error(prediction, target), mask_loop(prediction, target), rtol=1e-4, atol=0)
    gradients = [with_gradient(loss, prediction, target) for loss in (spectrum_error, mask_loop)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-8)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        optimizer.zero_grad()
        loss(model(fields[:, 0])[:, None], target).backward()
        optimizer.step()

    error = partial(with_gradient, spectrum_error, prediction, target)
    loop = partial(with_gradient, mask_loop, prediction, target)
    alone = side_by_side({"spectrum_error": error, "mask_loop": loop}, rounds=5 * rounds)
    # In turn with whole steps, so that the error finds the caches as a step leaves them.
    in_a_run = side_by_side(
        {"step_with_field_error": partial(step, field_error), "spectrum_error": error}, rounds=rounds
    )
    model_bytes = kept_bytes(lambda: field_error(model(fields[:, 0])[:, None], target), model)
    leaf = prediction.clone().requires_grad_()
    loss_bytes = kept_bytes(lambda: spectrum_error(leaf, target), model)
    return {
        "seconds_alone": alone,
        "ratio_mask_loop": alone["mask_loop"] / alone["spectrum_error"],
        "seconds_in_a_run": in_a_run,
        "share_of_a_step_timed_alone": alone["spectrum_error"] / in_a_run["step_with_field_error"],
        "share_of_a_step_right_after_one": in_a_run["spectrum_error"] / in_a_run["step_with_field_error"],
        "bytes_kept": {"model_and_field_error": model_bytes, "spectrum_error": loss_bytes},
        "share_of_memory": loss_bytes / model_bytes,
    }


record(
    "spectrum_loss",
    {
        "what": "spectrum error and gradient, batch 8, 4 channels; FNO of width 24, 16 modes, 4 layers",
        "64x64": measure(64, rounds=41),
        "128x128": measure(128, rounds=7),
    },
)
