"""Draw rain from the model: from the prior, which is generation, or from the posterior, which has seen the day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.stages.rainfall_cvae.batches import Batch, statics_of
from nbhelpers.stages.rainfall_cvae.copula import Correlation, correlated_uniform
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle
from nbhelpers.stages.rainfall_cvae.model import Cvae, draw
from nbhelpers.stages.rainfall_cvae.transform import MOST_LOG, RainTransform

Source = Literal["prior", "posterior"]


@dataclass(frozen=True)
class Inputs:
    """A batch in model units."""

    x: Tensor  # (B, C, h, w) standardised predictors
    rain: Tensor  # (B, H, W) mm/day, 0 where not measured
    valid: Tensor  # (B, H, W) bool: measured land
    statics: Sequence[Tensor]  # (B, S, ·, ·) at each resolution, coarsest first


@dataclass(frozen=True, eq=False)
class Sampler:
    """What the stage makes of its network.

    Args:
        hurdle: the likelihood whose parameters the network puts out; None: it puts out rain.
        activation: of the rain, in the scale of ``transform``.
    """

    days: Days
    cvae: Cvae
    transform: RainTransform
    hurdle: Hurdle | None
    activation: Literal["softplus", "relu", "none"]

    def inputs(self, batch: Batch) -> Inputs:
        """A batch on the network's device."""
        device = self.cvae.statics.device
        rain, land = batch.y.to(device), torch.from_numpy(self.days.land).to(device)
        valid = rain.isfinite() & statics_of(batch, land)
        return Inputs(
            self.days.standardise_x(batch.x.to(device)),
            torch.where(valid, rain, 0.0),
            valid,
            self.cvae.pyramid(statics_of(batch, self.cvae.statics)),
        )

    def seen(self, inputs: Inputs) -> Tensor:
        """``(B, H, W)``: rain as the posterior gets it."""
        return torch.where(inputs.valid, self.transform.forward(inputs.rain), 0.0)

    def output(self, raw: Tensor) -> Tensor:
        """``(B, H, W)`` of the decoder's single map, in the scale of the transform."""
        value = raw[:, 0].float()
        if self.activation == "softplus":
            return F.softplus(value)
        return value.relu() if self.activation == "relu" else value

    def rain(self, raw: Tensor) -> Tensor:
        """``(B, H, W)`` mm/day of it; below 0 only where no activation forbids it, so that it has a gradient there."""
        value = self.output(raw)
        return self.transform.inverse(value.clamp(max=MOST_LOG) if self.transform.kind == "log1p" else value)

    def expected(self, raw: Tensor) -> Tensor:
        """``(B, H, W)`` mm/day: the mean of the rain that these maps stand for."""
        return self.rain(raw).clamp(min=0.0) if self.hurdle is None else self.hurdle.mean(raw.float())

    def latent(self, inputs: Inputs, context: Tensor, source: Source) -> Tensor:
        """``(B, 2 d_z, h, w)`` statistics that z is drawn by; empty without a latent."""
        if not self.cvae.d_z:
            return context.new_zeros(len(context), 0, *context.shape[-2:])
        if source == "prior":
            return self.cvae.prior(context)
        return self.cvae.posterior(self.seen(inputs), inputs.valid, inputs.statics[-1], context)

    @torch.no_grad()
    def raw(
        self, inputs: Inputs, numbers: Sequence[int], k: int, *, seed: int, source: Source, shuffle_z: bool = False
    ) -> Iterator[Tensor]:
        """``(B, n_out, H, W)`` of k draws of the latent, one after the other.

        Args:
            numbers: of the days; a day's draws depend on it and on the seed, and not on the batch.
            shuffle_z: give every day the latent statistics of another one of the batch.
        """
        context = self.cvae.weather(inputs.x, inputs.statics[0])
        stats = self.latent(inputs, context, source)
        stats = stats.roll(apart(len(stats)), 0) if shuffle_z else stats
        shape = (k, self.cvae.d_z, *context.shape[-2:])
        noise = torch.stack([torch.randn(shape, generator=generator(seed, day, "latent")) for day in numbers])
        for each in noise.to(context).unbind(1):
            yield self.cvae.decoder(draw(stats, each) if self.cvae.d_z else each, context, inputs.statics)

    @torch.no_grad()
    def members(
        self,
        batch: Batch,
        k: int,
        *,
        seed: int,
        source: Source = "prior",
        shuffle_x: bool = False,
        shuffle_z: bool = False,
    ) -> Tensor:
        """``(B, K, H, W)`` mm/day, 0 over sea.

        Args:
            shuffle_x: give every day the predictors of another one of the batch.
        """
        inputs = self.inputs(batch)
        if shuffle_x:
            inputs = Inputs(inputs.x.roll(apart(len(inputs.x)), 0), inputs.rain, inputs.valid, inputs.statics)
        noise = self._noise(batch, k, seed)
        land = statics_of(batch, torch.from_numpy(self.days.land)).to(inputs.x.device)
        drawn = []
        for index, raw in enumerate(self.raw(inputs, batch.days, k, seed=seed, source=source, shuffle_z=shuffle_z)):
            if self.hurdle is None or noise is None:
                rain = self.rain(raw).clamp(min=0.0)
            else:
                rain = self.hurdle.quantile(raw.float(), noise[:, index].to(raw.device))
            drawn.append(torch.where(land, rain, 0.0))
        return torch.stack(drawn, 1)

    def _noise(self, batch: Batch, k: int, seed: int) -> Tensor | None:
        """``(B, K, H, W)`` uniform numbers that neighbouring pixels share; None where nothing is drawn by them."""
        if self.hurdle is None:
            return None
        correlation = Correlation.from_tensor(self.cvae.correlation)
        return torch.stack(
            [
                correlated_uniform(
                    (k, *self.days.shape),
                    correlation,
                    factor=self.cvae.factor,
                    generator=generator(seed, day, "noise"),
                )
                for day in batch.days
            ]
        )


def apart(n: int) -> int:
    """By how many days a batch is rolled, so that a day meets one that is not its neighbour."""
    return n // 2


def generator(seed: int, day: int, what: Literal["latent", "noise"]) -> torch.Generator:
    """Random numbers of a day, the same whatever it is batched with and on every device."""
    words = np.random.SeedSequence([seed, day, ("latent", "noise").index(what)]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
