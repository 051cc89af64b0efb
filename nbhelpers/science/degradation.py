"""How a sensor of a coarser pixel would have seen an image, and the least change that makes two images agree.

Wald's protocol: blur every band by a Gaussian that stands for the sensor's modulation transfer function (MTF), take one
pixel of each block of s x s (Wald et al. 1997, Photogramm. Eng. Remote Sens. 63; MTF-matched Gaussians: Aiazzi et al.
2006, Photogramm. Eng. Remote Sens. 72). Data, projection and scores use the same object, so they cannot differ.

Both steps are linear and separable: LR = A_h X A_wᵀ for every band, A of the shape (n/s, n). So is the pseudo-inverse,
as (A_h ⊗ A_w)⁺ = A_h⁺ ⊗ A_w⁺: what else takes some twenty steps of conjugate gradients is two products, exact and
differentiable. Rows of A sum to 1, so that degrading and projecting commute with a change of units y = a x + b.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.science.spectra import at_least_float32

Kind = Literal["forward", "adjoint", "pseudo_inverse"]
LOWEST_MTF = 0.02  # below, float32 cannot undo the blur
HIGHEST_MTF = {2: 0.6, 4: 0.9, 8: 0.95}  # by scale; above, the Gaussian falls between the pixels of an even kernel
RADIUS = 4.0  # of the kernel, in standard deviations
PIECE = 64  # LR pixels that one product yields along an axis; longer axes are put together from pieces


@dataclass(frozen=True)
class Degradation:
    """The map D from HR images ``(..., C, H, W)`` to LR images ``(..., C, H/s, W/s)``, without noise, and its inverses.

    All methods compute in float32, under autocast too (float64 stays float64), on the device of their input. TF32,
    which PyTorch leaves off, would cost three digits. LR pixel i is centred on its block, s·i + (s−1)/2; the image
    goes on symmetrically beyond its edges.

    Raises:
        UserError: scale, MTF or noise is out of range; in the methods: an image does not fit.
    """

    scale: int  # s: HR pixels along a side of an LR pixel; 2, 4 or 8
    mtf: tuple[float, ...]  # of each band at the LR Nyquist frequency, 1/(2s) cycles per HR pixel; e.g. 0.30
    noise: float = 0.0  # standard deviation of what add_noise adds, in the unit of the images

    def __post_init__(self) -> None:
        if self.scale not in HIGHEST_MTF:
            raise UserError(
                f"The scale {self.scale} of a degradation is none of {', '.join(map(str, HIGHEST_MTF))}: set `scale` "
                f"to one of them."
            )
        highest = HIGHEST_MTF[self.scale]
        if not self.mtf or not all(LOWEST_MTF <= value <= highest for value in self.mtf):
            raise UserError(
                f"The MTF of a degradation is {self.mtf}, expected one number per band from {LOWEST_MTF} to {highest} "
                f"at scale {self.scale}: Sentinel-2's 10 m bands have 0.2 to 0.3."
            )
        if not 0 <= self.noise < math.inf:
            raise UserError(f"The noise of a degradation is {self.noise}: set `noise` to 0 or a standard deviation.")

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Standard deviations of the bands' Gaussians in HR pixels: s √(−2 ln MTF) / π, e.g. 1.976 for 0.30 at s = 4.

        From exp(−2 π² σ² f²) = MTF at f = 1/(2s).
        """
        return tuple(self.scale * math.sqrt(-2 * math.log(value)) / math.pi for value in self.mtf)

    def degrade(self, x: Tensor) -> Tensor:
        """D x, ``(..., C, H/s, W/s)``: what the coarser sensor would have seen of ``x`` ``(..., C, H, W)``."""
        x = self._bands(x)
        if any(side == 0 or side % self.scale for side in x.shape[-2:]):
            raise UserError(
                f"An image of {x.shape[-2]} x {x.shape[-1]} pixels has no whole blocks of {self.scale} x {self.scale}: "
                f"crop it to multiples of {self.scale}."
            )
        return self._separable(x, "forward")

    def adjoint(self, y: Tensor) -> Tensor:
        """Dᵀ y, ``(..., C, H, W)``: ⟨D x, y⟩ = ⟨x, Dᵀ y⟩ for every ``x``; ``y`` is ``(..., C, H/s, W/s)``."""
        return self._separable(self._bands(y), "adjoint")

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """D⁺ y, ``(..., C, H, W)``: of all images that degrade to ``y`` ``(..., C, H/s, W/s)`` that of least norm."""
        return self._separable(self._bands(y), "pseudo_inverse")

    def project(self, x: Tensor, lr: Tensor) -> Tensor:
        """x + D⁺ (lr − D x), ``(..., C, H, W)``: the image nearest to ``x`` that degrades to ``lr``.

        D of the result is ``lr`` up to rounding, about 1e-6 of the values in float32. Half precision comes back as
        float32, for it could not hold that.
        """
        return at_least_float32(x) + self.pseudo_inverse(self._residual(x, lr))

    def project_nonnegative(
        self, x: Tensor, lr: Tensor, *, floor: float, rounds: int = 20, tolerance: float = 1e-5
    ) -> tuple[Tensor, Tensor]:
        """The image nearest to ``x`` that is nowhere below ``floor`` and degrades to ``lr``, as far as one exists.

        That image is max(x + D⁺ μ, floor) for some μ ``(B, C, H/s, W/s)``. Each round adds what is missing, lr − D of
        the image, to μ: accelerated gradient ascent on the dual problem (Beck & Teboulle 2009, SIAM J. Imaging Sci. 2)
        with restarts (O'Donoghue & Candès 2015, Found. Comput. Math. 15). It costs as much as clamping and projecting
        in turns and leaves several times less. The clamp comes last, so the floor holds exactly. An LR pixel that no
        such image explains, like one that is itself below the floor, leaves a residual.

        Args:
            x: ``(B, C, H, W)``; it need not be projected.
            lr: ``(B, C, H/s, W/s)``.
            floor: reflectance 0 in the unit of the images.
            rounds: at most so many corrections; one suffices where nothing is clamped.
            tolerance: enough when no LR pixel is farther off.

        Returns:
            The image ``(B, C, H, W)``, and for each sample the residual ``(B,)``: the largest difference of D x to lr.
        """
        start = at_least_float32(x)
        image = start.clamp(min=floor)
        residual = self._residual(image, lr)
        multiplier = ahead = torch.zeros_like(residual)
        speed = residual.new_ones(*residual.shape[:-2], 1, 1)  # of each band of each sample
        for _ in range(rounds):
            if float(residual.detach().abs().max()) <= tolerance:
                break
            stepped = ahead + residual
            move = stepped - multiplier
            overshot = (residual * move).sum((-2, -1), keepdim=True) < 0
            speed = torch.where(overshot, 1.0, speed)
            faster = (1 + (1 + 4 * speed.square()).sqrt()) / 2
            ahead = stepped + (speed - 1) / faster * move
            multiplier, speed = stepped, faster
            image = (start + self.pseudo_inverse(ahead)).clamp(min=floor)
            residual = self._residual(image, lr)
        return image, residual.abs().amax((-3, -2, -1))

    def project_scene(self, x: Tensor, lr: Tensor, *, floor: float, rounds: int = 20) -> Tensor:
        """:meth:`project_nonnegative` in place and band by band, for scenes of which few copies fit into memory.

        Args:
            x: ``(C, H, W)`` float32, overwritten. Beside it, room for some five bands is needed.
            lr: ``(C, H/s, W/s)``.

        Returns:
            The residual of each band, ``(C,)``.
        """
        self._bands(x)
        self._bands(lr)
        residuals = []
        with torch.no_grad():
            for value, band, band_lr in zip(self.mtf, x.unsqueeze(1), lr.unsqueeze(1), strict=True):
                one = Degradation(self.scale, (value,))
                image, residual = one.project_nonnegative(band[None], band_lr[None], floor=floor, rounds=rounds)
                band.copy_(image[0])
                residuals.append(residual)
        return torch.cat(residuals)

    def add_noise(self, lr: Tensor, generator: torch.Generator) -> Tensor:
        """``lr`` plus white Gaussian noise of the standard deviation ``noise``; ``lr`` itself where that is 0.

        Drawn on the generator's device in the dtype of ``lr``, so that a CPU generator gives the same on every device.
        """
        if self.noise == 0:
            return lr
        drawn = torch.randn(lr.shape, generator=generator, device=generator.device, dtype=lr.dtype)
        return lr + self.noise * drawn.to(lr.device)

    def _bands(self, image: Tensor) -> Tensor:
        if image.ndim < 3 or image.shape[-3] != len(self.mtf):
            raise UserError(
                f"An image of the shape {tuple(image.shape)} met a degradation with the MTF of {len(self.mtf)} bands: "
                f"hand over (..., bands, rows, columns) with as many bands as `mtf` has numbers."
            )
        return at_least_float32(image)

    def _residual(self, x: Tensor, lr: Tensor) -> Tensor:
        seen, lr = self.degrade(x), self._bands(lr)
        if seen.shape[-2:] != lr.shape[-2:]:
            raise UserError(
                f"An image of {x.shape[-2]} x {x.shape[-1]} pixels met an LR image of {lr.shape[-2]} x {lr.shape[-1]}, "
                f"expected {seen.shape[-2]} x {seen.shape[-1]} at scale {self.scale}: hand over the same place."
            )
        return lr - seen

    def _separable(self, image: Tensor, kind: Kind) -> Tensor:
        """The map of one kind along both axes, the longer products over the folded rows of all bands alike."""
        results = []
        start = 0
        with torch.autocast(image.device.type, enabled=False):
            for sigma, alike in groupby(self.sigmas):
                n_bands = len(list(alike))
                part = image.narrow(-3, start, n_bands)
                for axis in (-1, -2) if kind == "forward" else (-2, -1):  # the cheaper axis first
                    part = _along(part, axis, kind, self.scale, sigma)
                results.append(part)
                start += n_bands
        return results[0] if len(results) == 1 else torch.cat(results, -3)


def _along(image: Tensor, axis: Literal[-1, -2], kind: Kind, scale: int, sigma: float) -> Tensor:
    """A, Aᵀ or A⁺ along one axis. On long axes every piece is computed from the window that reaches it.

    The window is taken for an image of its own; what that is wrong about beyond its ends does not reach the piece.
    """
    before, after = (scale, 1) if kind == "forward" else (1, scale)  # pixels per LR pixel
    n, halo = image.shape[axis] // before, _halo(kind, scale, sigma)
    pieces = []
    for first in range(0, n, PIECE):
        last = min(first + PIECE, n)
        start, stop = max(first - halo, 0), min(last + halo, n)
        window = image.narrow(axis, start * before, (stop - start) * before)
        whole = _matrix(kind, stop - start, scale, sigma, image.dtype, image.device)
        matrix = whole[(first - start) * after : (last - start) * after]
        pieces.append(window @ matrix.T if axis == -1 else matrix @ window)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)


def _halo(kind: Kind, scale: int, sigma: float) -> int:
    """LR pixels to each side that matter to an LR pixel or its block.

    The kernel ends; A⁺ falls off exponentially, at every scale and MTF let in below 1e-8 within 17 ln(1/MTF) pixels,
    which is 84 (σ/s)², e.g. 21 for MTF 0.30.
    """
    reach = 84 * (sigma / scale) ** 2 if kind == "pseudo_inverse" else RADIUS * sigma / scale
    return math.ceil(reach) + 1


@lru_cache(maxsize=64)  # of at most some 1 MB each, because windows are short
def _matrix(kind: Kind, n: int, scale: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A, Aᵀ or A⁺ of an axis with ``n`` LR pixels."""
    forward = blur_and_decimate(n, scale, sigma)
    matrices: dict[Kind, Callable[[], np.ndarray]] = {
        "forward": lambda: forward,
        "adjoint": lambda: forward.T,
        "pseudo_inverse": lambda: np.linalg.solve(forward @ forward.T, forward).T,
    }
    with torch.inference_mode(False), torch.device("cpu"):  # made in validation, it must serve training as well
        return torch.from_numpy(np.ascontiguousarray(matrices[kind]())).to(device, dtype)


def blur_and_decimate(n: int, scale: int, sigma: float) -> np.ndarray:
    """The matrix A of one axis, ``(n, n * scale)`` float64: a Gaussian about the middle of each of ``n`` blocks.

    Its taps lie half a pixel from the middle and further, an even number of them. An odd kernel would be centred on a
    pixel and shift the LR image by (s−1)/2 pixels. What falls beyond an edge is folded back symmetrically.
    """
    half = math.ceil(RADIUS * sigma)
    taps = np.arange(-half, half)
    kernel = np.exp(-0.5 * ((taps + 0.5) / sigma) ** 2)
    pixels = (scale * np.arange(n)[:, None] + scale // 2 + taps) % (2 * n * scale)
    pixels = np.minimum(pixels, 2 * n * scale - 1 - pixels)
    matrix = np.zeros((n, n * scale))
    np.add.at(matrix, (np.arange(n)[:, None], pixels), kernel / kernel.sum())
    return matrix
