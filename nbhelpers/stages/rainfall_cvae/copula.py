"""A Gaussian copula for rain: how alike the residuals of two pixels are, and noise that is as alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.fft import next_fast_len
from scipy.optimize import least_squares
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle

ORDERS = 16  # Hermite polynomials of the expansion: with 60 % dry pixels 0.98 is taken for 0.987, 0.9 for 0.901
WHITE = 0.02  # correlation of neighbours below which residuals count as independent


@dataclass(frozen=True)
class Correlation:
    """A Gaussian field g with the correlation (1 − nugget)·exp(−(r/length)^exponent) at a distance of r > 0 pixels.

    1 at r = 0; a length of 0 stands for independent pixels. Where the coarse rain fixes the mean of a coarse cell, the
    residuals g' = (g − known·mean of g over the cell)/deviation are alike near by, opposed within the rest of the cell
    and next to independent beyond; each has the variance 1.
    """

    nugget: float  # share of the variance that no other pixel has, in [0, 1)
    length: float  # pixels at which the rest has fallen to 1/e
    exponent: float  # 2: smooth fields, 1: rough ones, towards 0.3: long tails
    known: float = 0.0  # share of a coarse cell's mean that the coarse rain has fixed, in [0, 1)

    def at(self, distance: Tensor) -> Tensor:
        """Correlation at distances of any shape, in pixels."""
        if self.length == 0:
            return (distance == 0).to(distance.dtype)
        rest = (1 - self.nugget) * torch.exp(-((distance / self.length) ** self.exponent))
        return torch.where(distance == 0, 1.0, rest)

    def deviation(self, factor: int) -> Tensor:
        """``(factor, factor)`` standard deviations of g − known·(mean of g over the cell), by place in the cell."""
        places = torch.cartesian_prod(*[torch.arange(factor, dtype=torch.float64)] * 2).reshape(-1, 2)
        with_mean = self.at(torch.cdist(places, places)).mean(0)  # covariance with the mean of the cell
        variance = 1 - 2 * self.known * with_mean + self.known**2 * with_mean.mean()
        return variance.sqrt().reshape(factor, factor)

    def as_tensor(self) -> Tensor:
        """``(4,)`` float32, for a module's buffer."""
        return torch.tensor(astuple(self), dtype=torch.float32)

    @classmethod
    def from_tensor(cls, values: Tensor) -> Correlation:
        """Inverse of :meth:`as_tensor`."""
        return cls(*values.tolist())

    def __str__(self) -> str:
        if self.length == 0:
            text = "residuals of neighbouring pixels are independent: no spatial noise"
        else:
            text = (
                f"residuals are correlated over {self.length:.1f} pixels "
                f"(exponent {self.exponent:.2f}, {self.nugget:.0%} unshared)"
            )
        return text + (f", {self.known:.0%} of a coarse cell's mean is known" if self.known >= 0.005 else "")


# --- residuals ----------------------------------------------------------------------------------------------------


def normal_scores(u: Tensor) -> Tensor:
    """Φ⁻¹(u), kept finite where rounding made u 0 or 1."""
    limits = torch.finfo(u.dtype)
    return torch.special.ndtri(u.clamp(limits.tiny, 1 - limits.eps / 2))


@torch.no_grad()
def censored_scores(hurdle: Hurdle, raw: Tensor, y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals without random draws, and where they are cut: two ``(B, H, W)``; NaN where not measured.

    With the cut c = Φ⁻¹(P(dry)), a wet pixel has g = Φ⁻¹(F(y)) > c, and a dry one the mean of all g below c, which is
    −φ(c)/Φ(c). Drawn at random below it instead (Dunn and Smyth 1996, J. Comput. Graph. Stat. 5), independently of each
    other, dry pixels would make rain look less alike than it is.

    Args:
        raw: ``(B, P, H, W)``.
        y: ``(B, H, W)`` in mm/day.
        valid: mask of the same shape.
    """
    dry = 1 - hurdle.wet_probability(raw)
    cut = normal_scores(dry).clamp(min=-8)  # a dry pixel that was held to be impossible
    scores = torch.where(y < hurdle.wet, -_density(cut) / torch.special.ndtr(cut), normal_scores(hurdle.cdf(raw, y)))
    measured = valid & ~y.isnan()
    return torch.where(measured, scores, math.nan), torch.where(measured, cut, math.nan)


def _density(z: Tensor) -> Tensor:
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


# --- correlograms -------------------------------------------------------------------------------------------------


@torch.no_grad()
def latent_correlogram(scores: Tensor, cut: Tensor, valid: Tensor, max_lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean distances in pixels and correlations, at 1 … max_lag pixels, of a field g seen above a cut only.

    A shell is all pairs of measured pixels of the same day at n − ½ ≤ r < n + ½; one without a pair has NaN.

    The seen part is a(g; c) = g where g > c, else E[g | g ≤ c]. With its Hermite coefficients h_n(c) = E[a He_n(g)],
    Mehler's formula gives cov(a_i, a_j) = Σ_n h_n(c_i) h_n(c_j) ρ^n/n!: the ρ of each shell is the one whose sum over
    the shell's pairs is what they have. Nothing is simulated, and dry pixels count for as much as they tell.

    Args:
        scores: ``(N, H, W)`` of :func:`censored_scores`.
        cut: c of the same shape.
        valid: mask, broadcast to that shape.
        max_lag: pixels.
    """
    measured = (valid & ~scores.isnan()).expand_as(scores)
    seen = torch.where(measured, scores.double(), 0.0)
    cut = torch.where(measured, cut.double(), 0.0)
    lags, products = _pair_means(itertools.chain([seen], (h * measured for h in _hermite(cut))), measured, max_lag)
    # h_1 is the variance of a, too. Margins that are too narrow or too wide must not pass for correlation.
    width = float(seen.square().sum() / (next(_hermite(cut)) * measured).sum())
    rho = np.linspace(-0.999, 0.999, 4001)
    curves = np.maximum.accumulate(rho[:, None] ** np.arange(1, ORDERS + 1) @ products[1:])
    latent = [np.interp(product, curve, rho) for product, curve in zip(products[0] / width, curves.T, strict=True)]
    return lags, np.array(latent)


def _hermite(cut: Tensor) -> Iterator[Tensor]:
    """h_n(c)/√n! of a(g; c), one n = 1 … ORDERS after the other: all at once would not fit into memory.

    With ∫_c^∞ He_n φ = He_{n−1}(c) φ(c) and g He_n = He_{n+1} + n He_{n−1}:
    h_1 = 1 − Φ + cφ + φ²/Φ, h_n = φ·(He_n + n He_{n−2} + He_{n−1} φ/Φ).
    """
    density = _density(cut)
    low = density / torch.special.ndtr(cut)  # minus the mean of g below c
    yield torch.special.ndtr(-cut) + density * (cut + low)
    # He_{n−2}/√(n−2)! and He_{n−1}/√(n−1)!: He_n itself overflows.
    before, last = torch.ones_like(cut), cut
    for n in range(2, ORDERS + 1):
        this = (cut * last - math.sqrt(n - 1) * before) / math.sqrt(n)
        yield density * (this + math.sqrt(n / (n - 1)) * before + last * low / math.sqrt(n))
        before, last = last, this


def _pair_means(fields: Iterable[Tensor], measured: Tensor, max_lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean distances ``(max_lag,)`` and, for each field, mean products ``(F, max_lag)`` of pairs of the same day.

    Fields ``(N, H, W)`` are 0 where not measured. Shells without a pair have NaN.
    """
    height, width = measured.shape[-2:]
    size = (next_fast_len(height + max_lag, real=True), next_fast_len(width + max_lag, real=True))

    def products(values: Tensor) -> Tensor:
        power = torch.zeros((size[0], size[1] // 2 + 1), dtype=values.dtype, device=values.device)
        for some in values.split(32):  # memory
            spectrum = torch.fft.rfft2(some, s=size)
            power += (spectrum.real.square() + spectrum.imag.square()).sum(0)
        return torch.fft.irfft2(power, s=size)

    distance = torus_distance(size).to(measured.device)
    shell = (distance + 0.5).long().clamp(max=max_lag + 1).flatten()

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(max_lag + 2).scatter_add_(0, shell, values.flatten())[1:-1]

    pairs = products(measured.double()).round()
    counts = sums(pairs)
    means = torch.stack([sums(products(field)) for field in fields]) / counts
    return (sums(pairs * distance) / counts).cpu().numpy(), means.cpu().numpy()


def torus_distance(size: tuple[int, int]) -> Tensor:
    """``size`` float64 distances in pixels from the first one, going round the ends the shorter way."""
    rows, columns = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in size)
    return torch.hypot(rows[:, None], columns)


def fit(lags: np.ndarray, correlation: np.ndarray) -> Correlation:
    """The powered exponential closest to a correlogram; length 0 where neighbours are independent.

    Least squares with a soft L1 loss, exponent in [0.3, 2]; pairs far apart, which are many but alike, have no more
    say than near ones. Shells without a pair (NaN) are left out.

    Raises:
        UserError: no shell has a pair.
    """
    known = np.isfinite(correlation)
    lags, correlation = lags[known], correlation[known]
    if not len(lags):
        raise UserError(
            "The validation days have no two measured pixels close to each other, expected some to fit the correlation "
            "of the rain's residuals: check the land mask and the missing values of the rain files."
        )
    if correlation[:2].mean() < WHITE:
        return Correlation(0.0, 0.0, 1.0)

    def misfit(values: np.ndarray) -> np.ndarray:
        nugget, log_length, exponent = values
        return (1 - nugget) * np.exp(-((lags / np.exp(log_length)) ** exponent)) - correlation

    bounds = ([0, np.log(0.1), 0.3], [0.99, np.log(10 * lags[-1]), 2])
    starts = [(0.05, np.log(length), exponent) for length in (1, lags[-1] / 3) for exponent in (0.7, 1.3)]
    best = min(
        (least_squares(misfit, s, bounds=bounds, loss="soft_l1", f_scale=0.05) for s in starts), key=lambda f: f.cost
    )
    return Correlation(float(best.x[0]), float(np.exp(best.x[1])), float(best.x[2]))


# --- noise --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def correlated_uniform(
    shape: tuple[int, int, int],
    correlation: Correlation,
    *,
    factor: int = 1,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``(N, H, W)`` float32 fields in (0, 1), each value uniform, Φ⁻¹ of which has the given correlation.

    Circulant embedding (Dietrich and Newsam 1997, SIAM J. Sci. Comput. 18): the field is cut from a torus wide enough
    that no pair is closer round the back; negative eigenvalues are set to 0 and the variance is brought back to 1.
    Then the known share of each coarse cell's mean is taken off.

    Args:
        shape: of the fields; H and W are multiples of the factor.
        factor: how many pixels a coarse cell is wide.
        generator: may be on another device: its draws, and so the fields, are then the same on any.
    """
    n, height, width = shape
    amplitudes = _amplitudes(height, width, correlation)
    # The real and the imaginary part of a complex field are two independent ones.
    noise = torch.randn(((n + 1) // 2, *amplitudes.shape, 2), generator=generator, device=generator.device)
    modes = torch.view_as_complex(noise.to(device)) * amplitudes.to(device)
    field = torch.view_as_real(torch.fft.fft2(modes, norm="ortho")[:, :height, :width])
    field = field.movedim(-1, 1).reshape(-1, height, width)[:n]
    if correlation.known:
        cells = field.reshape(n, height // factor, factor, width // factor, factor)
        left = cells - correlation.known * cells.mean((2, 4), keepdim=True)
        field = (left / correlation.deviation(factor).to(left)[:, None]).reshape(n, height, width)
    u = torch.special.ndtr(field)
    limits = torch.finfo(u.dtype)
    return u.clamp(limits.tiny, 1 - limits.eps / 2)


@lru_cache(maxsize=4)  # a day's few members take no longer than this
def _amplitudes(height: int, width: int, correlation: Correlation) -> Tensor:
    """Root of the eigenvalues, float32, on a torus wider by what correlation reaches, at most twice as wide."""
    reach = 0 if correlation.length == 0 else math.ceil(correlation.length * 7 ** (1 / correlation.exponent))  # e^{−7}
    rows, columns = (next_fast_len(side + min(reach, max(height, width))) for side in (height, width))
    eigenvalues = torch.fft.fft2(correlation.at(torus_distance((rows, columns)))).real.clamp(min=0)
    return (eigenvalues / eigenvalues.mean()).sqrt().float()
