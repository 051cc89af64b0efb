"""What losses and scores must know of the data, and the kinetic energy and enstrophy that follow from it.

Both are per area (and density), the mean over the box, from whatever of the flow is there:

* a velocity: ``e = ½ <u² + v²>``, in any box, over the points outside obstacles. Where the box is periodic, enstrophy
  is the energy of the gradients, ``Z = ½ Σ_n (2π n / L)² E_n`` over the resolved shells n with ``E_n = Σ |û|² + |v̂|²``:
  that of the vorticity, if the velocity has no divergence.
* vorticity alone, in a periodic box without obstacles: ``e = ½ Σ_k |ŵ|² / |k|²`` and ``Z = ½ Σ_k |ŵ|²`` over all
  modes but the mean, because û = i k_y ŵ / |k|² and v̂ = -i k_x ŵ / |k|².

Otherwise they are not known: pressure and density are no energy, and at walls or cut-outs no spectrum gives the
enstrophy. Tra's `velocity` is a momentum, so there it is the energy of the momentum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nbhelpers.science import spectra
from nbhelpers.stages.neural_operator.data import Collection
from nbhelpers.stages.neural_operator.spectral_losses import shell_energies


@dataclass(frozen=True)
class Domain:
    """The box, its fields' units, and which channels are the flow."""

    lengths: tuple[float, float]  # of the box, rows first
    window: spectra.Window  # for spectra
    means: tuple[float, ...]  # of each channel, in its own unit
    scales: tuple[float, ...]  # standard deviation of each channel, in its own unit
    velocity: tuple[int, int] | None = None  # channels of (u, v), where they are there and the box is periodic
    components: tuple[int, ...] = ()  # channels of all components of a velocity, in any box
    vorticity: int | None = None  # its channel, where it alone tells the whole flow (see above)

    @property
    def has_energy(self) -> bool:
        return bool(self.components) or self.vorticity is not None

    @property
    def has_enstrophy(self) -> bool:
        return self.velocity is not None or self.vorticity is not None

    def velocity_of(self, fields: Tensor) -> Tensor:
        """``(…, 2, H, W)`` of ``(…, C, H, W)`` in model units: u and v less their means, in one unit to be added."""
        assert self.velocity is not None
        return self._of(fields, self.velocity)

    def _of(self, fields: Tensor, channels: tuple[int, ...]) -> Tensor:
        scales = fields.new_tensor([self.scales[channel] for channel in channels])
        return fields[..., list(channels), :, :] * scales[:, None, None]


def domain_of(collection: Collection, *, window: Literal["auto", "none", "hann"]) -> Domain:
    """The domain of a collection; ``auto`` tapers what is not periodic."""
    channels, periodic = collection.channels, collection.facts.periodic
    in_plane = [channels.index(name) for name in ("velocity_x", "velocity_y") if name in channels]
    whole = len(in_plane) == 2
    open_box = periodic and not any(one.has_obstacle for one in collection.simulations)
    taper: spectra.Window = "none" if periodic else "hann"
    return Domain(
        collection.facts.lengths,
        taper if window == "auto" else window,
        means=tuple(map(float, collection.mean)),
        scales=tuple(map(float, collection.std)),
        velocity=(in_plane[0], in_plane[1]) if whole and periodic else None,
        components=tuple(i for i, name in enumerate(channels) if name.startswith("velocity")) if whole else (),
        vorticity=channels.index("vorticity") if "vorticity" in channels and open_box and not whole else None,
    )


def kinetic_energy(fields: Tensor, domain: Domain, valid: Tensor | None = None) -> Tensor:
    """``(B, T)`` kinetic energy, the square of the fields' own unit of speed, of a domain that has it.

    Args:
        fields: ``(B, T, C, H, W)`` in model units.
        valid: ``(B, H, W)`` bool, False inside obstacles: 0 there.
    """
    if domain.components:
        means = fields.new_tensor([domain.means[channel] for channel in domain.components])
        velocity = domain._of(fields, domain.components) + means[:, None, None]
        if valid is not None:
            velocity = torch.where(valid[:, None, None], velocity, 0.0)
        return velocity.square().sum(-3).mean((-2, -1)) / 2
    squares = spectra.squared_wavenumber(fields.shape[-2:], lengths=domain.lengths) * _fundamental(domain) ** 2
    return _sum_of_modes(fields, domain, torch.where(squares > 0, 1 / squares, 0.0)) / 2


def enstrophy(fields: Tensor, domain: Domain, valid: Tensor | None = None) -> Tensor:
    """``(B, T)`` enstrophy, per squared unit of time, of a domain that has it; arguments as :func:`kinetic_energy`."""
    if domain.velocity is None:
        squares = spectra.squared_wavenumber(fields.shape[-2:], lengths=domain.lengths)
        return _sum_of_modes(fields, domain, (squares > 0).double()) / 2
    velocity = domain.velocity_of(fields)
    energy = shell_energies(velocity, lengths=domain.lengths, window=domain.window, valid=valid)[..., 1:-1]
    number = torch.arange(1, energy.shape[-1] + 1, device=fields.device) * _fundamental(domain)
    return (energy * number.square()).sum((-2, -1)) / 2


def _fundamental(domain: Domain) -> float:
    """The smallest wavenumber of the box, in radians per length."""
    return 2 * math.pi / max(domain.lengths)


def _sum_of_modes(fields: Tensor, domain: Domain, weights: Tensor) -> Tensor:
    """``(B, T)`` Σ_k weights |ŵ|² of the vorticity, whose mean has the weight 0."""
    assert domain.vorticity is not None
    power = spectra.mode_power(spectra.coefficients(domain._of(fields, (domain.vorticity,))[..., 0, :, :]))
    return (power * (weights * spectra.multiplicity(fields.shape[-2:])).to(power)).sum((-2, -1))
