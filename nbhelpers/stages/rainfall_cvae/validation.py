"""What validation tells beside the scores of prior members: reconstruction, latent, and what the model depends on."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nbhelpers.science.ensemble import fair_crps
from nbhelpers.stages.rainfall_cvae import losses
from nbhelpers.stages.rainfall_cvae.batches import Batch
from nbhelpers.stages.rainfall_cvae.model import draw
from nbhelpers.stages.rainfall_cvae.sampler import Inputs
from nbhelpers.training.metrics import Metric, mean_metric
from nbhelpers.training.task import Dependence

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.task import RainfallTask

ACTIVE = 0.01  # variance of a latent's posterior mean over the days from which on it counts as active
FEW = 4  # members of these checks, which compare with each other and not with the scores


class Diagnosis:
    """Accumulates over the batches of a split; every score here is a mean over the measured pixels of all days."""

    def __init__(self, task: RainfallTask):
        self._task = task
        self._sums: dict[str, list[tuple[float, float]]] = defaultdict(list)  # by name: (sum, count) of each batch
        self._means: list[Tensor] = []  # posterior means of each batch

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Take in a batch with at least one day."""
        sampler, config = self._task.sampler, self._task.config
        inputs = sampler.inputs(batch)
        intact = self._add_crps("crps", batch, inputs)
        several = len(batch.days) > 1
        if several:
            self._add_crps("x_shuffled", batch, inputs, shuffle_x=True)
        self._add_losses(batch, inputs)
        if not config.d_z:
            return
        self._add_crps("posterior", batch, inputs, source="posterior")
        if several:
            self._add_crps("z_shuffled", batch, inputs, source="posterior", shuffle_z=True)
        expected = torch.stack(
            [sampler.expected(raw) for raw in sampler.raw(inputs, batch.days, FEW, seed=config.seed, source="prior")], 1
        )
        self._add("from_latent", expected.var(1), inputs.valid)
        self._add("variance", intact.var(1), inputs.valid)

    def _add(self, name: str, values: Tensor, valid: Tensor) -> None:
        self._sums[name].append((float(values[valid].double().sum()), float(valid.sum())))

    def _add_crps(self, name: str, batch: Batch, inputs: Inputs, **how: Any) -> Tensor:
        members = self._task.sampler.members(batch, FEW, seed=self._task.config.seed, **how)
        self._add(name, fair_crps(members, inputs.rain), inputs.valid)
        return members

    def _add_losses(self, batch: Batch, inputs: Inputs) -> None:
        """The terms of the loss for a reconstruction: one draw from the posterior."""
        task, sampler = self._task, self._task.sampler
        context = sampler.cvae.weather(inputs.x, inputs.statics[0])
        posterior = sampler.latent(inputs, context, "posterior")
        z = posterior[:, : task.config.d_z]
        if task.config.d_z:
            self._means.append(z.cpu())
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(task.config.seed)).to(z)
            z = draw(posterior, noise)
        raw = sampler.cvae.decoder(z, context, inputs.statics)
        weight, n = batch.weight.to(raw.device), float(len(batch.days))
        latent = torch.cat([posterior, sampler.latent(inputs, context, "prior")], 1)
        found = {
            "l_kl": losses.kl_divergence(task.n_land, weight, free_bits=0.0)(latent) if task.config.d_z else 0.0,
            "l_mass": losses.mass_error(inputs.rain, inputs.valid)(sampler.expected(raw)),
            "l_rec": (
                losses.absolute_error(inputs.rain, inputs.valid)(sampler.expected(raw))
                if sampler.hurdle is None
                else losses.negative_log_likelihood(sampler.hurdle, inputs.rain, inputs.valid, weight)(raw)
            ),
        }
        for name, value in found.items():
            self._sums[name].append((float(value) * n, n))

    def _mean(self, name: str) -> float:
        total, count = np.sum(self._sums[name], axis=0)
        return float(total / count) if count else float("nan")

    @property
    def active_units(self) -> tuple[int, int] | None:
        """Latents whose posterior mean varies over the days, and how many there are.

        None without a latent, or with fewer than two days to vary over.
        """
        if sum(map(len, self._means)) < 2:
            return None
        varies = torch.cat(self._means).var(0) > ACTIVE
        return int(varies.sum()), varies.numel()

    @property
    def dependence(self) -> dict[str, Dependence]:
        """What the error becomes when the days exchange their weather, and when they exchange their latents."""
        pairs = {"x": ("crps", "x_shuffled"), "z": ("posterior", "z_shuffled")}
        return {
            name: Dependence("crps", self._mean(intact), self._mean(shuffled))
            for name, (intact, shuffled) in pairs.items()
            if shuffled in self._sums
        }

    def metrics(self) -> dict[str, Metric]:
        """Columns of the history; a report has the posterior in a row of its own."""
        unit = "mm/day" if self._task.sampler.hurdle is None else "nats a pixel"
        known: dict[str, tuple[float, str]] = {
            "l_rec": (self._mean("l_rec"), f"{unit}, reconstruction"),
            "l_mass": (self._mean("l_mass"), "mm/day, reconstruction"),
            "l_kl": (self._mean("l_kl"), "nats a land pixel"),
        }
        known["loss"] = (known["l_rec"][0] + self._task.config.beta_kl * known["l_kl"][0], f"{unit}, l_rec + beta l_kl")
        for name in ("x", "z"):
            if f"{name}_shuffled" in self._sums:
                known[f"{name}_shuffled_crps"] = (
                    self._mean(f"{name}_shuffled"),
                    f"mm/day, with the {name} of another day" + (", of days that it has seen" if name == "z" else ""),
                )
        if self.active_units is not None:
            known["posterior_crps"] = (self._mean("posterior"), "mm/day, of days that the latent has seen")
            known["active_units"] = (float(self.active_units[0]), f"of {self.active_units[1]} latents")
            known["z_share"] = (
                self._mean("from_latent") / max(self._mean("variance"), 1e-12),
                "of the variance of prior members",
            )
        return {name: _plain(value, units) for name, (value, units) in known.items()}


def _plain(value: float, units: str) -> Metric:
    return mean_metric(np.array([[value]]), np.ones((1, 1)), labels=("all",), better=None, units=units)
