"""The gain control: a filter fitted on validation forecasts, which mends energies and leaves phases alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import turbulence
from numpy.typing import NDArray
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.science import spectra
from nbhelpers.stages.neural_operator.config import Config
from nbhelpers.stages.neural_operator.gain import Filtered, fit_gain, gain_predictor
from nbhelpers.stages.neural_operator.simulate import simulate
from nbhelpers.stages.neural_operator.task import OperatorTask

SHELLS = 16  # of (32, 48) points in a box of (2 pi, 3 pi): two thirds of the 24 waves along the longer side


def make_task(data_dir: Path, **changes: Any) -> OperatorTask:
    settings = {"rollout_steps": 4, "eval_windows": 2, "width": 4, "modes": 4, "layers": 1, "scheduler": "none"}
    torch.set_num_threads(1)
    return OperatorTask(Config.for_profile("smoke", **(settings | changes)), data_dir)


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve decaying flows in a box that is wider than high."""
    return simulate(
        tmp_path_factory.mktemp("flows"), n_simulations=12, size=(32, 48), n_frames=8, viscosity=2e-3, peak=4.0,
        u_rms=0.1, burn_in=1.0, seed=1, progress=False,
    )  # fmt: skip


@pytest.fixture
def task(flows: Path) -> OperatorTask:
    return make_task(flows)


def shells_by_hand(rows: int, columns: int) -> NDArray[np.int64]:
    """Shell of every mode of ``rfft2`` in a box whose sides are as its numbers of points."""
    y, x = np.fft.fftfreq(rows, 1 / rows)[:, None], np.fft.rfftfreq(columns, 1 / columns)[None]
    return np.floor(np.hypot(y * max(rows, columns) / rows, x * max(rows, columns) / columns) + 0.5).astype(int)


def known_gain(channels: int) -> Tensor:
    """(C, shells): too little at small scales, too much at middling ones, different for every channel."""
    n = torch.arange(1, SHELLS + 1) / SHELLS
    return torch.stack([(0.3 + 0.2 * c) * torch.sin(3 * n) - (1 + c) * n**2 for c in range(channels)]).exp()


class KnowsTheFuture(nn.Module):
    """The true next frame of every frame of the set, times a known gain for each shell."""

    def __init__(self, task: OperatorTask, gain: Tensor):
        super().__init__()
        read = [task.collection.read(one, one.frames) for one in task.collection.simulations]
        frames = task.to_model(torch.from_numpy(np.stack(read)))
        self.now, self.next = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        shells = torch.from_numpy(shells_by_hand(32, 48)).clamp(max=SHELLS + 1)
        one = torch.ones(len(gain), 1)
        self.factors = torch.cat([one, gain, one], 1)[:, shells]

    def forward(self, frames: Tensor, conditions: Tensor | None) -> Tensor:
        nearest = torch.cdist(frames[:, -1].flatten(1), self.now.flatten(1)).argmin(1)
        return torch.fft.irfft2(torch.fft.rfft2(self.next[nearest]) * self.factors, s=(32, 48))


def test_every_mode_is_in_the_shell_that_its_wavenumber_says() -> None:
    for shape in ((32, 48), (48, 32), (17, 21)):
        numbers = spectra.shell_numbers(shape)
        last = spectra.resolved_shells(shape) + 1
        np.testing.assert_array_equal(numbers, shells_by_hand(*shape).clip(max=last))
        assert numbers[0, 0] == 0 and numbers.max() == last
    field = torch.randn(32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    power = spectra.coefficients(field).abs().square() * spectra.multiplicity((32, 48))
    sums = torch.zeros(SHELLS + 2, dtype=torch.float64)
    sums.index_add_(0, spectra.shell_numbers((32, 48)).flatten(), power.flatten())
    torch.testing.assert_close(sums, spectra.shell_energy(field))


@pytest.mark.parametrize("fields", ["velocity", "vorticity"])
def test_a_known_gain_is_found_and_taken_back(flows: Path, fields: str) -> None:
    task = make_task(flows, fields=fields)
    planted = known_gain(len(task.collection.channels))
    task.modules["stepper"] = KnowsTheFuture(task, planted)
    gain = fit_gain(task)
    if fields == "velocity":  # shell 1 is the wave along x, in which u has no energy to tell a gain by
        assert gain[0, 0] == pytest.approx(1.0, abs=1e-4)
        planted[0, 0] = 1.0
    torch.testing.assert_close(gain * planted, torch.ones_like(planted), rtol=0, atol=1e-3)
    before, after = (task.evaluate("test", who).metrics for who in (None, gain_predictor(task, gain)))
    for name in ("spectrum_error", "spectrum_error_high", "rollout_spectrum_error_high"):
        assert before[name].value > 0.5 and after[name].value < 1e-5
    assert after["field_error"].value < 1e-6 < 1e-3 < before["field_error"].value
    assert after["rollout_rel_l2"].by_label.max() < 1e-3  # each frame was mended before it was fed back
    assert before["rollout_rel_l2"].by_label[-1] > 0.1


def test_the_fit_reads_validation_windows_alone(task: OperatorTask, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, asked = task.batches, []

    def noted(split: str, epoch: int, start: int = 0) -> Any:
        asked.append(split)
        return batches(split, epoch, start)

    read: set[str] = set()
    load = task.cache.read
    monkeypatch.setattr(task, "batches", noted)
    monkeypatch.setattr(task.cache, "read", lambda one, frames: [read.add(one.name), load(one, frames)][1])
    fit_gain(task)
    assert asked == ["val"]
    assert read == {segment.simulation.name for segment in task.split.segments["val"]}


def test_a_gain_of_one_changes_nothing(task: OperatorTask) -> None:
    batch = next(iter(task.batches("test", 0)))
    plain, same = task.forecast(batch), gain_predictor(task, torch.ones(2, SHELLS))(batch)
    torch.testing.assert_close(same.one_step, plain.one_step, rtol=0, atol=1e-5)
    torch.testing.assert_close(same.rollout, plain.rollout, rtol=0, atol=1e-5)
    task.modules["stepper"] = KnowsTheFuture(task, torch.ones(2, SHELLS))
    torch.testing.assert_close(fit_gain(task), torch.ones(2, SHELLS), rtol=0, atol=1e-5)


def test_only_amplitudes_within_the_cut_off_change(task: OperatorTask) -> None:
    answer = torch.randn(3, 2, 32, 48, generator=torch.Generator().manual_seed(0)) + 0.5

    class Says(nn.Module):
        def forward(self, frames: Tensor, conditions: Tensor | None) -> Tensor:
            return answer

    gain = known_gain(2)
    after = Filtered(Says(), gain, lengths=task.domain.lengths)(answer[:, None], None)
    ratio = (torch.fft.rfft2(after.double()) / torch.fft.rfft2(answer.double())).numpy()
    shells = shells_by_hand(32, 48)
    expected = np.ones((2, 32, 25))
    inside = (shells >= 1) & (shells <= SHELLS)
    expected[:, inside] = gain.numpy()[:, shells[inside] - 1]
    own = np.ones((32, 25), bool)
    own[0, [0, -1]] = own[16, [0, -1]] = False  # their own conjugates: rounding alone decides on their phase
    np.testing.assert_allclose(np.abs(ratio), np.broadcast_to(expected, ratio.shape), rtol=1e-3)
    np.testing.assert_allclose(np.angle(ratio)[..., own], 0, atol=1e-3)


def test_a_shell_without_energy_is_not_lifted_without_bound(task: OperatorTask) -> None:
    nothing = known_gain(2)
    nothing[:, -1] = 0.0
    task.modules["stepper"] = KnowsTheFuture(task, nothing)
    gain = fit_gain(task)
    assert torch.isfinite(gain).all() and gain[:, -1].max() < 1e3


def test_what_cannot_be_filtered_is_refused(task: OperatorTask, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gain has the shape \(2, 5\) and the forecast 2 channels of 16 shells"):
        gain_predictor(task, torch.ones(2, 5))(next(iter(task.batches("val", 0))))
    obstacle = np.zeros((12, 16), bool)
    obstacle[4:6, 4:6] = True
    around = turbulence.write_own(tmp_path / "around", 8, obstacle=obstacle)
    walls = turbulence.write_own(tmp_path / "walls", 8, record={**turbulence.RECORD, "periodic": False})
    for root in (around, walls):
        with pytest.raises(UserError, match="use it on periodic flows without obstacles"):
            fit_gain(make_task(root, rollout_steps=2))
