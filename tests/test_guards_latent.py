"""G11 and G14 on a small conditional VAE: a latent that collapses, an input that is ignored, and a selection on
reconstructions; a healthy one raises nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import COUNTS, HALVES, SIZE, ToyConfig, ToyTask

from nbhelpers.training.fit import fit
from nbhelpers.training.guards.guard import Epoch, Finding, GuardStop
from nbhelpers.training.guards.latent import Latent
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.metrics import mean_metric
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import (
    Dependence,
    Evaluation,
    LossTerm,
    Monitor,
    Phase,
    Predictor,
    Update,
)

UNITS = 8  # latent dimensions


class Vae(nn.Module):
    """A field of 64 pixels, from the means of its columns with noise and from a latent that has seen the field."""

    def __init__(self) -> None:
        super().__init__()
        n = SIZE * SIZE
        self.encoder, self.decoder = nn.Linear(2 * n, 2 * UNITS), nn.Linear(n + UNITS, n)
        with torch.no_grad():
            self.encoder.weight.mul_(0.1)  # a latent that says nothing yet

    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, 2 · units): mean and log-variance."""
        return self.encoder(torch.cat([x.flatten(1), y.flatten(1)], 1))

    def decode(self, x: Tensor, z: Tensor) -> Tensor:
        return self.decoder(torch.cat([x.flatten(1), z], 1)).view_as(x)


def divergence(moments: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² − 1 − ln σ²) over latents, averaged over samples."""
    mean, log_variance = moments.chunk(2, 1)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


class VaeTask(ToyTask):
    """Faults to plant: a beta that chokes the latent, and a decoder that does not get the input."""

    sees_input = True
    beta = 0.003

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        torch.manual_seed(config.seed)
        self.modules = {"net": Vae()}
        self.phases = (
            Phase("train", config.epochs, {"net": torch.optim.Adam(self.modules["net"].parameters(), lr=1e-3)}),
        )

    def shown(self, x: Tensor) -> Tensor:
        """What the decoder gets: it leaves open how the field varies within a column."""
        return x.mean(-2, keepdim=True).expand_as(x) if self.sees_input else torch.zeros_like(x)

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        x, y = batch
        net = self.modules["net"]
        moments = net.encode(x, y)
        mean, log_variance = moments.chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        prediction = net.decode(self.shown(x), z)
        mse = LossTerm("mse", lambda p: (p - y).square().mean(), 1.0)
        kl = LossTerm("kl", divergence, self.beta, role="regulariser", at=moments)
        yield Update("net", prediction, (mse, kl), target=y)

    @torch.no_grad()
    def predict(self, batch: Any) -> Tensor:
        return self.modules["net"].decode(self.shown(batch[0]), torch.zeros(len(batch[0]), UNITS))

    @torch.no_grad()
    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        scored = super().evaluate(split, predictor)
        if predictor is not None:
            return scored
        net, batches = self.modules["net"], list(self.batches(split, 0))
        x, y = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
        mean = net.encode(x, y)[:, :UNITS]

        def error(x: Tensor, z: Tensor) -> float:
            return float((net.decode(self.shown(x), z) - y).abs().mean())

        intact = error(x, mean)
        rolled = {"z": error(x, mean.roll(1, 0)), "x": error(x.roll(1, 0), mean)}
        counts = np.full((COUNTS[split], len(HALVES)), 1.0)
        crps = mean_metric(intact * counts, counts, labels=HALVES, better="lower", units="m")
        return dataclasses.replace(
            scored,
            metrics={**scored.metrics, "posterior_mae": crps},
            dependence={name: Dependence("posterior_mae", intact, value) for name, value in rolled.items()},
            active_units=(int((mean.var(0) > 0.01).sum()), UNITS),
        )


def trained(folder: Path, *, beta: float = 0.003, sees_input: bool = True, **settings: Any) -> Run:
    task = VaeTask(ToyConfig(**{"epochs": 10, "batch_size": 1, **settings}))  # 24 steps an epoch: 200 in the ninth
    task.beta, task.sees_input = beta, sees_input
    return fit(task, open_run(task, folder, "run")).run


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_one_raises_nothing(tmp_path: Path, seed: int) -> None:
    assert read_guards(trained(tmp_path, seed=seed)) == []


def test_a_collapsed_latent_is_told_once(tmp_path: Path) -> None:
    found = read_guards(trained(tmp_path, beta=10.0))
    assert {(one["name"], one["severity"]) for one in found} == {("latent", "warn")}
    assert {one["step"] for one in found} <= {9 * 24, 10 * 24}, "not before 200 steps"
    ignored, collapsed = found
    assert ignored["message"].startswith("the model ignores z") and "posterior_mae is" in ignored["evidence"]
    assert "the latent has collapsed" in collapsed["message"] and "0 of 8 dimensions" in collapsed["evidence"]
    assert all("free bits" in one["cure"] and "beta" in one["cure"] for one in found)


def test_an_input_that_does_not_reach_the_decoder_is_told(tmp_path: Path) -> None:
    (found,) = read_guards(trained(tmp_path, sees_input=False))
    assert found["name"] == "latent" and found["message"].startswith("the model ignores x")
    assert "Check that the decoder" in found["cure"]


def judged(scored: Evaluation, *, steps: int = 200, epochs: int = 1, armed_after: int = 0) -> list[Finding]:
    task = ToyTask(ToyConfig(epochs=10))
    task.monitor = Monitor("mse", "min", None, armed_after)
    rows = [{"epoch": n, "step": n * steps // epochs, "phase": "train"} for n in range(1, epochs + 1)]
    phase = task.phases[0]
    return list(Latent().on_epoch(Epoch(task, task.modules, phase, epochs, steps, 1, rows, scored, 10)))


def scored(intact: float, shuffled: float, units: tuple[int, int] | None = None) -> Evaluation:
    return Evaluation({}, {}, {"z": Dependence("crps", intact, shuffled)}, units)


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        (scored(1.0, 1.0099), 1),
        (scored(1.0, 1.0101), 0),
        (scored(1.0, 0.9), 1),  # better with another's
        (scored(float("nan"), 1.0), 0),
        (scored(0.0, 0.0), 0),
        (scored(1.0, 2.0, (4, 100)), 1),
        (scored(1.0, 2.0, (5, 100)), 0),
        (scored(1.0, 2.0, (0, 8)), 1),
        (scored(1.0, 2.0, (1, 8)), 0),
        (Evaluation({}, {}), 0),
    ],
)
def test_limits(evaluation: Evaluation, said: int) -> None:
    assert len(judged(evaluation)) == said


def test_a_model_that_is_young_or_in_its_warm_up_is_not_judged() -> None:
    collapsed = scored(1.0, 1.0, (0, 8))
    assert judged(collapsed, steps=199) == []
    assert judged(collapsed, epochs=3, armed_after=3) == []
    assert len(judged(collapsed, epochs=4, armed_after=3)) == 2


def test_to_select_on_reconstructions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuardStop, match="Posterior samples have seen the target: select on prior samples") as stopped:
        trained(tmp_path, monitor="posterior_mae", epochs=1)
    found = stopped.value.finding
    assert (found.name, stopped.value.exit_code, found.step) == ("reconstruction", 2, 0)
    assert found.cure == "Set the monitor to 'mae', or another metric of prior samples."
    assert "'posterior_mae'" in found.evidence
