"""One gain for every shell of wavenumbers, fitted after training: what a linear filter can do for a spectrum.

The control beside a spectral loss. A network trained by field error alone forecasts too little energy at small scales,
because what it cannot know it averages away. A filter can put that energy back without any training, but cannot move
it: what is in the wrong place stays there, and costs field error. A spectral loss that does no better than this has
taught the network nothing that a filter could not add.

Every mode of a one-step forecast is multiplied by the gain g_n of its channel and shell n. The squared log-spectral
error, the mean over frames of (ln g_n² Ê_n − ln E_n)², is least at

    ln g_n = mean over frames of (ln E_n − ln Ê_n) / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.science import spectra
from nbhelpers.stages.neural_operator.field_losses import SILENT
from nbhelpers.stages.neural_operator.sequences import Batch
from nbhelpers.stages.neural_operator.spectral_losses import FLOOR
from nbhelpers.stages.neural_operator.task import one_step, rollout
from nbhelpers.stages.neural_operator.verification import HELD, Forecast

if TYPE_CHECKING:
    from nbhelpers.stages.neural_operator.task import OperatorTask


class Filtered(nn.Module):
    """A stepper whose every answer is filtered: phases, the mean and what lies beyond the cut-off stay as they are.

    Args:
        stepper: ``(B, n_in, C, H, W)`` and conditions to ``(B, C, H, W)``, as :class:`model.Stepper`.
        gain: ``(C, shells)``, factors of amplitude for shells 1 … of the fields.
        lengths: of the box, rows first.

    Raises:
        UserError: a forecast whose channels or shells are not those of the gain.
    """

    def __init__(self, stepper: nn.Module, gain: Tensor, *, lengths: tuple[float, float]):
        super().__init__()
        self.stepper, self.gain, self.lengths = stepper, gain, lengths

    def forward(self, frames: Tensor, conditions: Tensor | None) -> Tensor:
        """``(B, C, H, W)`` after ``(B, n_in, C, H, W)``, in model units."""
        answer: Tensor = self.stepper(frames, conditions)
        shape = answer.shape[-2:]
        expected = (answer.shape[-3], spectra.resolved_shells(shape, lengths=self.lengths))
        if self.gain.shape != expected:
            raise UserError(
                f"The gain has the shape {tuple(self.gain.shape)} and the forecast {expected[0]} channels of "
                f"{expected[1]} shells: fit it to the same model and data with fit_gain."
            )
        shells = spectra.shell_numbers(shape, lengths=self.lengths).to(answer.device)
        one = self.gain.new_ones(len(self.gain), 1)
        factors = torch.cat([one, self.gain, one], 1).to(answer)[:, shells]  # (C, H, W // 2 + 1)
        return torch.fft.irfft2(torch.fft.rfft2(answer) * factors, s=shape)


@torch.no_grad()
def fit_gain(task: OperatorTask) -> Tensor:
    """``(C, shells)`` gains by the formula above, on the one-step forecasts of the validation windows.

    Energies are floored as in the score, so a shell in which the forecast holds nothing is not lifted without bound. A
    channel without a spectrum keeps gain 1.

    Raises:
        UserError: spectra of this data need a window or leave out obstacles: no gain of a mode is exact there.
    """
    domain, n_in = task.domain, task.config.n_in
    if domain.window != "none" or any(one.has_obstacle for one in task.collection.simulations):
        raise UserError(
            f"The gain control multiplies Fourier modes, but spectra of the set {task.collection.facts.name} are taken "
            f"with window {domain.window!r} or around obstacles: use it on periodic flows without obstacles."
        )
    stepper = task.modules["stepper"].eval()
    shape = (len(task.collection.channels), spectra.resolved_shells(task.collection.shape, lengths=domain.lengths))
    sums, counts = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], 1, dtype=torch.float64)
    for batch in task.batches("val", 0):
        frames = task.to_model(batch.frames)
        fields = one_step(stepper, frames, task.conditions(batch), n_in=n_in), frames[:, n_in:]
        guess, truth = (spectra.shell_energy(field, lengths=domain.lengths).double() for field in fields)
        total = truth[..., 1:].sum(-1, keepdim=True)  # (B, T, C, 1)
        counted = total > SILENT * (1 + truth[..., :1])
        floor = FLOOR * torch.where(counted, total, 1.0)
        difference = (torch.maximum(truth, floor) / torch.maximum(guess, floor)).log()[..., 1:-1] / 2
        sums += torch.where(counted, difference, 0.0).sum((0, 1)).cpu()
        counts += counted.sum((0, 1)).cpu()
    return (sums / counts.clamp(min=1)).exp().float()


def gain_predictor(task: OperatorTask, gain: Tensor) -> Callable[[Batch], Forecast]:
    """The task's model with ``gain`` on every answer, for ``task.evaluate(split, predictor)``.

    In a rollout each frame is filtered before it is fed back. Channels are filtered one by one: a velocity that had no
    divergence has some afterwards, if the gains of u and v differ.
    """
    stepper = Filtered(task.modules["stepper"], gain, lengths=task.domain.lengths)

    @torch.no_grad()
    def forecast(batch: Batch) -> Forecast:
        filtered, n_in = stepper.eval(), task.config.n_in
        frames, conditions = task.to_model(batch.frames), task.conditions(batch)
        steps = frames.shape[1] - n_in
        return Forecast(
            one_step(filtered, frames, conditions, n_in=n_in),
            rollout(filtered, frames[:, :n_in], conditions, steps=steps, held=HELD),
        )

    return forecast
