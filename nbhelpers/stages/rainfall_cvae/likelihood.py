"""The hurdle likelihood of a day's rain: dry or wet, and how much above the threshold where it is wet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import gammainccinv, gammaincinv, gammaln, log_ndtr, ndtr
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.core.errors import UserError
from nbhelpers.science.spectra import at_least_float32

Tail = Literal["gamma", "gpd"]

SIZE = (1e-2, 1e3)  # mm/day: mean (gamma) or scale (gpd) of the excess; no climate's daily rain lies outside
SHAPE = (0.05, 50.0)  # below: a spike at zero, where the density has no bound; above: as good as certain
# No bounded tail (ξ < 0) and no infinite variance (ξ ≥ ½): gauges have ξ of 0 to 0.25, about 0.11 on average
# (Papalexiou and Koutsoyiannis 2013, WRR 49). The lower end stands for the exponential tail without dividing by 0.
XI = (1e-3, 0.4)
LEAST_EXCESS = 1e-3  # mm/day: the density of y = wet is infinite for shapes below 1; finer than any rain record


@dataclass(frozen=True)
class Hurdle:
    """Rain y that is below ``wet`` with probability 1 − p and ``wet`` + excess else, from raw maps of a network.

    The raw maps ``(B, P, H, W)`` are unbounded; P = :attr:`channels`:

    * map 0: logit of p, the probability of y ≥ wet,
    * map 1: log of the excess's size in mm/day: its mean (gamma) or the scale σ (gpd), softly within :data:`SIZE`,
    * map 2: log of the shape, k (gamma) or κ (gpd), softly within :data:`SHAPE`; raw 0 stands for their middle,
    * map 3, gpd only: logit of ξ within :data:`XI`.

    "gamma": the mean m and the shape k, whose estimates are independent in large samples; density
    (k/m)^k x^{k−1} e^{−kx/m}/Γ(k). "gpd": the extended generalised Pareto distribution
    F(x) = [1 − (1 + ξx/σ)^{−1/ξ}]^κ, like x^κ for light rain, with a heavy upper tail (Naveau et al. 2016,
    WRR 52).
    """

    tail: Tail = "gamma"  # distribution of the excess
    wet: float = 0.1  # mm/day from which on a pixel is wet here; draws below it are 0

    def __post_init__(self) -> None:
        if self.tail not in get_args(Tail):
            raise UserError(
                f"The tail {self.tail!r} of the rain's likelihood is unknown, expected one of "
                f"{', '.join(get_args(Tail))}: set `tail` to gamma, or to gpd for heavy tails."
            )
        if not 0 <= self.wet < math.inf:
            raise UserError(
                f"The wet threshold of the rain's likelihood is {self.wet:g} mm/day, expected 0 or more: set `wet` to "
                f"the smallest amount the data resolves, e.g. 0.1."
            )

    @property
    def channels(self) -> int:
        """Number P of raw maps."""
        return 3 if self.tail == "gamma" else 4

    def nll(self, raw: Tensor, y: Tensor, valid: Tensor) -> Tensor:
        """Negative log likelihood ``(B, H, W)`` in nats of rain in mm/day; 0 where not measured.

        −log(1 − p) where y < wet, −log p − log f(y − wet) else.

        Args:
            raw: ``(B, P, H, W)``.
            y: ``(B, H, W)`` in mm/day.
            valid: mask of the same shape; NaNs of y count as not measured too.
        """
        logit, *tail = at_least_float32(raw).unbind(1)
        measured = valid & ~y.isnan()
        wet = measured & (y >= self.wet)
        # Chosen before the density, too: the gradient of a NaN that is thrown away afterwards is still NaN.
        excess = torch.where(wet, y - self.wet, 1.0).clamp(min=LEAST_EXCESS)
        amount = -F.logsigmoid(logit) - self._log_density(tail, excess)
        return torch.where(measured, torch.where(wet, amount, -F.logsigmoid(-logit)), 0.0)

    def wet_probability(self, raw: Tensor) -> Tensor:
        """Probability ``(B, H, W)`` of y ≥ wet."""
        return at_least_float32(raw[:, 0]).sigmoid()

    def mean(self, raw: Tensor) -> Tensor:
        """Expected rain ``(B, H, W)`` in mm/day, where y < wet counts as 0; differentiable."""
        logit, *tail = at_least_float32(raw).unbind(1)
        return logit.sigmoid() * (self.wet + self._mean_excess(tail))

    @torch.no_grad()
    def cdf(self, raw: Tensor, y: Tensor) -> Tensor:
        """P(Y ≤ y) for y in mm/day: ``(B, H, W)`` or members ``(B, K, H, W)`` of the same raw maps; no gradient.

        1 − p for 0 ≤ y < wet, where Y is 0 or unresolved; 0 below 0; NaN where y is.
        """
        logit, *tail = self._maps_like(raw, y)
        x = (y - self.wet).clamp(min=0).double()
        if self.tail == "gamma":
            mean, shape = self._gamma(tail)
            below = torch.special.gammainc(shape.double(), x * (shape / mean))
        else:
            scale, kappa, xi = self._gpd(tail)
            below = (-torch.expm1(-torch.log1p(xi * x / scale) / xi)) ** kappa
        probability = torch.sigmoid(-logit) + logit.sigmoid() * below
        return torch.where(y < 0, 0.0, probability).to(torch.promote_types(raw.dtype, y.dtype))

    @torch.no_grad()
    def quantile(self, raw: Tensor, u: Tensor) -> Tensor:
        """Rain in mm/day below which y lies with probability u in (0, 1): 0 where u ≤ 1 − p; no gradient.

        The inverse of :meth:`cdf` above ``wet``; relative error of the excess below 1e-4. Uniform u give draws.

        Args:
            raw: ``(B, P, H, W)``.
            u: ``(B, H, W)``, or ``(B, K, H, W)`` for K members of the same raw maps.
        """
        logit, *tail = self._maps_like(raw, u)
        dry, wet = torch.sigmoid(-logit), logit.sigmoid()
        least = torch.finfo(dry.dtype).tiny
        # Both tails have a probability of their own: 1 − v has no digits left where v is nearly 1. The steps are done
        # in place, because fetching memory for millions of values takes longer than the arithmetic.
        per_wet = wet.clamp(min=least).reciprocal()
        below = (u - dry).mul_(per_wet).clamp_(least, 1)
        above = (1 - u).mul_(per_wet).clamp_(least, 1)
        low = below < 0.5
        log_below = torch.where(low, below.log(), (-above).log1p_())
        if self.tail == "gamma":
            mean, shape = self._gamma(tail)
            score = torch.special.ndtri(torch.minimum(below, above))
            score = torch.where(low, score, score.neg())
            excess = _log_gamma_quantile(shape.log(), score).addcdiv_(log_below, shape).exp_().mul_(mean / shape)
        else:
            scale, kappa, xi = self._gpd(tail)
            # 1 − v^{1/κ}, kept from 0: its logarithm is taken.
            beyond = log_below.div_(kappa).expm1_().neg_().clamp_(min=least)
            excess = beyond.log_().mul_(-xi).expm1_().mul_(scale / xi)
        return torch.where(u > dry, excess.add_(self.wet), 0.0)

    def initial_bias(self, *, wet_fraction: float, mean_excess: float) -> Tensor:
        """Raw values ``(P,)`` for the head's bias, so that training starts from the climatology.

        Args:
            wet_fraction: of measured pixels with y ≥ wet, in (0, 1).
            mean_excess: mean of y − wet over these, in mm/day.

        Raises:
            UserError: the rain is always or never wet, or its size is outside :data:`SIZE`.
        """
        xi = 0.1
        size = mean_excess if self.tail == "gamma" else mean_excess * (1 - xi)  # a Pareto excess has the mean σ/(1 − ξ)
        if not (0 < wet_fraction < 1 and SIZE[0] < size < SIZE[1]):
            raise UserError(
                f"The training rain has a wet fraction of {wet_fraction:g} and a mean of {mean_excess:g} mm/day above "
                f"the wet threshold, expected a fraction between 0 and 1 and a mean of {SIZE[0]:g} to {SIZE[1]:g}: "
                f"check that it is in mm/day and that it has dry and wet pixels."
            )
        share = (xi - XI[0]) / (XI[1] - XI[0])
        bias = [_logit(wet_fraction), _unbounded(size, SIZE), _unbounded(1.0, SHAPE), _logit(share)]
        return torch.tensor(bias[: self.channels])

    def _maps_like(self, raw: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """The raw maps in the values' precision, with an axis for members where the values have one."""
        maps = at_least_float32(raw).to(torch.promote_types(raw.dtype, values.dtype)).unbind(1)
        return maps if values.ndim < raw.ndim else tuple(m.unsqueeze(1) for m in maps)

    def _gamma(self, tail: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and shape."""
        return _log_bounded(tail[0], SIZE).exp(), _log_bounded(tail[1], SHAPE).exp()

    def _gpd(self, tail: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Scale σ, lower shape κ, upper shape ξ."""
        return *self._gamma(tail), XI[0] + (XI[1] - XI[0]) * tail[2].sigmoid()

    def _log_density(self, tail: list[Tensor], x: Tensor) -> Tensor:
        size, shape = self._gamma(tail)
        if self.tail == "gamma":
            rate = shape / size
            return shape * rate.log() + (shape - 1) * x.log() - rate * x - torch.lgamma(shape)
        scale, kappa, xi = self._gpd(tail)
        hazard = torch.log1p(xi * x / scale) / xi  # −log of the Pareto distribution's probability of more
        return (kappa / scale).log() + (kappa - 1) * (-torch.expm1(-hazard)).log() - (1 + xi) * hazard

    def _mean_excess(self, tail: list[Tensor]) -> Tensor:
        if self.tail == "gamma":
            return self._gamma(tail)[0]
        # σ/ξ·(κ B(κ, 1 − ξ) − 1), in float64: the bracket goes to 0 with ξ.
        scale, kappa, xi = (p.double() for p in self._gpd(tail))
        beta = torch.lgamma(kappa + 1) + torch.lgamma(1 - xi) - torch.lgamma(kappa + 1 - xi)
        return (scale / xi * torch.expm1(beta)).to(tail[0].dtype)


def _log_bounded(raw: Tensor, bounds: tuple[float, float]) -> Tensor:
    """log of a value within bounds: the middle of their logarithms + raw, bent so that it stays within."""
    middle, half = _middle_and_half(bounds)
    return middle + half * torch.tanh(raw / half)


def _unbounded(value: float, bounds: tuple[float, float]) -> float:
    """The raw number of a value, inverse of :func:`_log_bounded`."""
    middle, half = _middle_and_half(bounds)
    return half * math.atanh((math.log(value) - middle) / half)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _middle_and_half(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = map(math.log, bounds)
    return (low + high) / 2, (high - low) / 2


# --- quantiles of the gamma distribution --------------------------------------------------------------------------

SCORES = (-8.0, 7.0, 800)  # grid of normal scores: first, last, number
LOG_SHAPES = (math.log(SHAPE[0]) - 0.01, math.log(SHAPE[1]) + 0.01, 400)


def _log_gamma_quantile(log_shape: Tensor, score: Tensor) -> Tensor:
    """log x − log(v)/k for the quantile x of unit scale at probability v = Φ(score): bilinear in a table.

    The part log(v)/k, which is taken off, is that of small x, where v = x^k/Γ(k + 1); what is left is smooth, and the
    table's error stays below 6e-5. Newton's steps with the incomplete gamma function take several times as long.
    """
    table = _table(log_shape.dtype, log_shape.device)
    row, down = _place(log_shape, LOG_SHAPES)
    column, right = _place(score, SCORES)
    corner = column.add_(row * SCORES[2])
    near = table.take(corner).lerp_(table.take(corner.add_(1)), right)
    far = table.take(corner.add_(SCORES[2]))
    return near.lerp_(table.take(corner.sub_(1)).lerp_(far, right), down)


def _place(values: Tensor, grid: tuple[float, float, int]) -> tuple[Tensor, Tensor]:
    """The grid point below each value and the way to the next, 0 to 1; values outside are moved to the edge."""
    first, last, n = grid
    position = (values - first).mul_((n - 1) / (last - first)).clamp_(0, n - 1)
    point = position.long().clamp_(max=n - 2)
    return point, position.sub_(point)


@lru_cache(maxsize=8)
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    shape = np.exp(np.linspace(*LOG_SHAPES))[:, None]
    score = np.linspace(*SCORES)[None]
    with np.errstate(divide="ignore"):
        x = np.where(score < 0, gammaincinv(shape, ndtr(score)), gammainccinv(shape, ndtr(-score)))
        # Quantiles too small for a float64 are those of the series.
        left = np.where(x > 1e-200, np.log(x) - log_ndtr(score) / shape, gammaln(shape + 1) / shape)
    return torch.from_numpy(left).to(device, dtype)
