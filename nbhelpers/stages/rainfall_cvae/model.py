"""The conditional VAE of rain: what is known about a day, what is drawn, and what comes out in mm/day.

Sohn, Lee, Yan (2015), "Learning structured output representation using deep conditional generative models", NeurIPS.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbhelpers.stages.rainfall_cvae.copula import Correlation
from nbhelpers.stages.rainfall_cvae.networks import Decoder, Posterior, Prior, WeatherEncoder

LOG_VARIANCE = (-8.0, 4.0)  # beyond these a latent is a constant, or so wide that exp overflows in half precision


def grid_steps(factor: int) -> tuple[int, ...]:
    """The prime factors of ``factor``, ascending: by how much the grid grows at each level of the decoder."""
    steps, rest, prime = [], factor, 2
    while rest > 1:
        while rest % prime == 0:
            steps.append(prime)
            rest //= prime
        prime += 1
    return tuple(steps)


class Cvae(nn.Module):
    """Encoder of the weather, prior p(z|x), posterior q(z|x, y) and decoder.

    Args:
        n_predictors: channels of the coarse predictors.
        statics: ``(S, H, W)`` static maps, standardised.
        factor: how many fine pixels a coarse cell is wide.
        n_out: maps that the decoder puts out: the parameters of the likelihood, or the rain itself.
        base_filters: channels at the fine grid; twice and four times as many below.
        d_y: channels of the encoded rain.
        d_z: channels of the latent map; 0 leaves it out (the control without a VAE).
        dropout: share of channels dropped in encoders and decoder.
    """

    statics: Tensor
    correlation: Tensor

    def __init__(
        self,
        n_predictors: int,
        statics: Tensor,
        *,
        factor: int,
        n_out: int,
        base_filters: int,
        d_y: int,
        d_z: int,
        dropout: float,
    ):
        super().__init__()
        self.d_z, self.factor = d_z, factor
        self.register_buffer("statics", statics.float(), persistent=False)
        # How alike the residuals of two pixels are; fitted on validation whenever the model is scored there.
        self.register_buffer("correlation", Correlation(0.0, 0.0, 1.0).as_tensor())
        steps, n_statics, context = grid_steps(factor), len(statics), 2 * base_filters
        self.steps = steps
        self.weather = WeatherEncoder(n_predictors, n_statics, context, dropout=dropout)
        self.decoder = Decoder(d_z, context, n_statics, n_out, steps=steps, base_filters=base_filters, dropout=dropout)
        if d_z:
            self.prior = Prior(context, d_z)
            self.posterior = Posterior(
                n_statics, context, steps=steps[::-1], base_filters=base_filters, d_y=d_y, d_z=d_z, dropout=dropout
            )

    def pyramid(self, statics: Tensor) -> list[Tensor]:
        """Static maps ``(B, S, H, W)`` at the resolution of each level, coarsest first."""
        levels = [statics]
        for step in self.steps[::-1]:
            levels.append(F.avg_pool2d(levels[-1], step))
        return levels[::-1]

    def forward(
        self, x: Tensor, rain: Tensor, measured: Tensor, statics: Sequence[Tensor], from_prior: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the decoder makes of a training batch, and the latent statistics that the KL is taken of.

        Args:
            x: ``(B, C, h, w)`` standardised predictors.
            rain: ``(B, H, W)`` transformed rain, 0 where not measured.
            measured: ``(B, H, W)`` bool.
            statics: :meth:`pyramid` of the batch.
            from_prior: ``(B,)`` bool: whose z is drawn from the prior (hybrid training, Sohn et al. 2015, section 4.2).
            noise: ``(B, d_z, h, w)`` standard normal.

        Returns:
            ``(B, n_out, H, W)`` and ``(B, 4 d_z, h, w)``: mean and log-variance of the posterior, then of the prior.
        """
        context = self.weather(x, statics[0])
        if not self.d_z:
            return self.decoder(noise, context, statics), context.new_zeros(len(x), 0, *context.shape[-2:])
        q = self.posterior(rain, measured, statics[-1], context)
        # In float32 before z is drawn: what the KL is taken of is then the very tensor that z depends on.
        latent = torch.cat([q, self.prior(context)], 1).float()
        q, p = latent.chunk(2, 1)
        z = torch.where(from_prior[:, None, None, None], draw(p, noise), draw(q, noise))
        return self.decoder(z, context, statics), latent


def draw(stats: Tensor, noise: Tensor) -> Tensor:
    """``mean + exp(log-variance / 2) · noise`` of ``(B, 2 d, h, w)`` statistics."""
    mean, log_variance = stats.chunk(2, 1)
    return mean + (0.5 * log_variance.clamp(*LOG_VARIANCE)).exp() * noise


def kl_by_latent(latent: Tensor) -> Tensor:
    """``(B, d_z, h, w)`` nats: KL(q‖p) of diagonal Gaussians, from the statistics that :class:`Cvae` returns."""
    (q_mean, q_log), (p_mean, p_log) = (part.chunk(2, 1) for part in latent.float().chunk(2, 1))
    q_log, p_log = q_log.clamp(*LOG_VARIANCE), p_log.clamp(*LOG_VARIANCE)
    return 0.5 * (p_log - q_log + (q_log.exp() + (q_mean - p_mean).square()) / p_log.exp() - 1)
