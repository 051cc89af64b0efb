"""The compact generator: it draws the residual truth − opt_v2 in a few denoising steps, given SAR and opt_v2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.denoiser import MULTIPLE, Denoiser, Encoder


class Compact(nn.Module):
    """opt_v3 = opt_v2 + σ·r, with r drawn by a diffusion model of the standardised residual (truth − opt_v2)/σ.

    At time t of T the noisy residual is u = cos(πt/2T)·r + κ·sin(πt/2T)·ε: at T nothing but noise. The network
    estimates r at any t (Salimans and Ho 2022, arXiv:2202.00512, section 4), so that in training every loss on pixels
    applies to the estimate; :meth:`sample` goes from T to 0 by the deterministic sampler of Song et al. (2021), "DDIM",
    arXiv:2010.02502. An untrained generator returns opt_v2: its last layer is 0.

    Tiles may have any height and width, and NaN where nothing was measured: in ``s1`` the network is told so, and
    where ``opt_v2`` is NaN, the output is.

    Args:
        sar_mean, sar_std: dB, of VV and VH over the training tiles.
        optical_mean, optical_std: reflectance, of each band over the training tiles.
        residual_std: reflectance, σ: the standard deviation of truth − opt_v2 in each band over the training tiles.
        timesteps: T, and so the number of denoising steps of a sample.
        noise: κ. With 1 a sample has as much detail as the truth, and up to twice the squared error of the best
            estimate; the less noise, the closer it keeps to that estimate.
        fine, coarse: channels at a half and at a quarter of the resolution.
        heads, blocks: of the cross-attention from optical to SAR features.
        with_sar: False makes the control that never sees SAR: the same network looks at ``opt_v2`` in its place.

    Raises:
        UserError: no time steps, no noise, or statistics that are not positive.
    """

    sar_mean: Tensor
    sar_std: Tensor
    optical_mean: Tensor
    optical_std: Tensor
    residual_std: Tensor

    def __init__(
        self,
        *,
        sar_mean: Sequence[float],
        sar_std: Sequence[float],
        optical_mean: Sequence[float],
        optical_std: Sequence[float],
        residual_std: Sequence[float],
        timesteps: int = 10,
        noise: float = 1.0,
        fine: int = 48,
        coarse: int = 64,
        heads: int = 4,
        blocks: int = 2,
        with_sar: bool = True,
    ):
        super().__init__()
        if timesteps < 1:
            raise UserError(f"the generator was asked for {timesteps} time steps: it needs at least 1 (--timesteps).")
        if not noise > 0:
            raise UserError(
                f"the generator was asked for noise {noise:g}: it starts at noise, so give more than 0, e.g. 1."
            )
        scales = {"sar_std": sar_std, "optical_std": optical_std, "residual_std": residual_std}
        for name, values in {"sar_mean": sar_mean, "optical_mean": optical_mean, **scales}.items():
            if name in scales and not all(value > 0 for value in values):
                raise UserError(
                    f"{name} of the training tiles is {', '.join(f'{value:g}' for value in values)}, expected numbers "
                    "above 0: look for bands that are constant, or an opt_v2 that is the truth."
                )
            self.register_buffer(name, torch.tensor(list(values), dtype=torch.float32)[:, None, None])
        self.timesteps, self.noise, self.with_sar = timesteps, noise, with_sar
        bands = len(optical_mean)
        self.encoder = Encoder((len(sar_mean) if with_sar else bands) + 1, fine, coarse)
        self.denoiser = Denoiser(bands, fine=fine, coarse=coarse, heads=heads, blocks=blocks)

    @property
    def gap(self) -> Tensor:
        """``(4, 1, 1)`` reflectance that counts where opt_v2 was not measured: the mean of the training tiles."""
        return self.optical_mean

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return f"timesteps={self.timesteps}, noise={self.noise:g}, with_sar={self.with_sar}"

    def forward(
        self,
        s1: Tensor,
        opt_v2: Tensor,
        generator: torch.Generator | Sequence[torch.Generator],
        truth: Tensor | None = None,
    ) -> Tensor:
        """``(B, 4, H, W)`` reflectance: a sample, or, given the truth to train on, an estimate at a random time.

        Args:
            s1: ``(B, 2, H, W)`` dB, NaN where not measured.
            opt_v2: ``(B, 4, H, W)`` reflectance; where it is NaN, the result is.
            generator: of the noise and the times. Noise is drawn on its device, so a seed means the same everywhere.
                One for each image gives it a sample that does not depend on which others are beside it.
            truth: ``(B, 4, H, W)`` reflectance.
        """
        if not isinstance(generator, torch.Generator):
            if truth is not None:
                raise ValueError("training takes one generator: a sample has no gradient")
            return self.sample(s1, opt_v2, torch.cat([self._noise(opt_v2[:1], one) for one in generator]))
        noise = self._noise(opt_v2, generator)
        if truth is None:
            return self.sample(s1, opt_v2, noise)
        return self.estimate(s1, opt_v2, truth, self.times(len(opt_v2), generator).to(opt_v2.device), noise)

    @staticmethod
    def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """``(n,)`` time steps to train on: T for half of them, where SAR and opt_v2 are all that there is to see."""
        drawn = torch.rand(2, n, generator=generator, device=generator.device)
        return torch.where(drawn[0] < 0.5, self.timesteps, 1 + (drawn[1] * self.timesteps).long())

    def estimate(self, s1: Tensor, opt_v2: Tensor, truth: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """opt_v3 as it is estimated at time ``t`` ``(B,)``, 1 to T, with gradients; ``noise`` is standard normal."""
        residual = torch.nan_to_num((truth - opt_v2) / self.residual_std)
        signal, scale = (part[:, None, None, None] for part in self._path(t))
        noisy = signal * residual + scale * noise
        return opt_v2 + self.residual_std * self._clean(noisy, opt_v2, self._see(s1, opt_v2), t)

    @torch.no_grad()
    def sample(self, s1: Tensor, opt_v2: Tensor, noise: Tensor) -> Tensor:
        """opt_v3 by T denoising steps from standard normal ``noise``, without gradients: no loss trains through it."""
        seen = self._see(s1, opt_v2)
        noisy, clean = self.noise * noise, torch.zeros_like(opt_v2)
        for step in range(self.timesteps, 0, -1):
            t = torch.full((len(opt_v2),), step, device=opt_v2.device)
            clean = self._clean(noisy, opt_v2, seen, t)
            (signal, scale), (next_signal, next_scale) = self._path(t[0]), self._path(t[0] - 1)
            noisy = next_signal * clean + next_scale / scale * (noisy - signal * clean)
        return opt_v2 + self.residual_std * clean

    def _path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of residual and noise at time ``t``."""
        angle = t * (math.pi / 2 / self.timesteps)
        # Rounding leaves cos(π/2) at −4e-8; at T the residual shall be out of sight.
        return angle.cos().clamp(min=0.0), self.noise * angle.sin()

    def _see(self, s1: Tensor, opt_v2: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the SAR image, the same at every time step."""
        if self.with_sar:
            image, mean, std = s1, self.sar_mean, self.sar_std
        else:  # gaps of opt_v2 are not shown, as they are not in training
            image = torch.where(opt_v2.isfinite(), opt_v2, self.gap)
            mean, std = self.optical_mean, self.optical_std
        measured = image.isfinite().all(1, keepdim=True)
        image = torch.where(measured, (image - mean) / std, 0.0)
        return self.encoder(padded(torch.cat([image, measured.to(image.dtype)], 1)))

    def _clean(self, noisy: Tensor, opt_v2: Tensor, seen: Sequence[Tensor], t: Tensor) -> Tensor:
        """The standardised residual, from a noisy one at time ``t``, in float32."""
        optical = torch.nan_to_num((opt_v2 - self.optical_mean) / self.optical_std)
        clean = self.denoiser(padded(noisy), padded(optical), seen, t / self.timesteps).float()
        return clean[..., : opt_v2.shape[-2], : opt_v2.shape[-1]]


def padded(image: Tensor) -> Tensor:
    """``image`` with its last row and column repeated up to a height and width that the networks can take."""
    below, right = -image.shape[-2] % MULTIPLE, -image.shape[-1] % MULTIPLE
    return F.pad(image, (0, right, 0, below), mode="replicate")
