"""How heavy the heaviest events are: the generalised Pareto law over a threshold, return levels, scores of rare events.

Excesses x over a high threshold follow P(X > x) = (1 + ξx/σ)^(−1/ξ) with a shape ξ (0: exponential, > 0: heavy tail,
< 0: bounded) and a scale σ, and come ``rate`` times a year. Coles (2001), An Introduction to Statistical Modeling of
Extreme Values, chapter 4. Intervals of fits are likelihood intervals: symmetric ones from standard errors end too low
for return levels of decades.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from nbhelpers.core.errors import UserError

Array = NDArray[np.float64]

MIN_EXCESSES = 10  # two parameters fitted to fewer say nothing
MIN_BLOCKS = 10  # fewer do not tell how much they vary
# Where the likelihood is searched: log(1 + θ·largest excess) with θ = ξ/σ, whose 0 is the exponential law.
GRID = np.linspace(-6.0, 12.0, 145)
ALONG = -np.cos(np.linspace(0, math.pi, 181))  # places along a contour, dense where it turns


class Estimate(NamedTuple):
    """A number with its confidence interval, whose limits are NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Gpd:
    """A generalised Pareto law as it was fitted."""

    shape: Estimate  # ξ
    scale: Estimate  # σ, in the unit of the excesses
    n: int  # excesses
    contour: Array  # (points, 2): ξ and σ of the laws on the edge of the likelihood region of the intervals


def fit_gpd(excess: ArrayLike, *, blocks: ArrayLike | None = None, confidence: float = 0.95) -> Gpd:
    """The law of maximum likelihood, with profile-likelihood intervals.

    Among laws of one θ = ξ/σ, that with ξ = mean log(1 + θx) is the likeliest, so that one dimension is searched
    (Grimshaw 1993, Technometrics 35). The laws whose log-likelihood is within χ²₁/2 of the greatest form a region, and
    the profile interval of any quantity (Coles 2001, section 2.6.6) is its range over the edge of it. With v = mean
    log(1 + θx)/ξ, that edge is where v·exp(−v) has a given value, which Lambert's W solves. Shapes end at −1, below
    which the likelihood has no maximum.

    Excesses of many pixels and members depend on each other, and count for fewer. With ``blocks`` the likelihood is
    divided by the mean eigenvalue of H⁻¹J, with H its expected information and J the variance of its gradient over
    blocks (Ribatet, Cooley and Davison 2012, Stat. Sinica 22), and t² of the number of blocks stands for χ²₁. The
    fit stays the same. In simulated fields of 30 dependent pixels such 95 % intervals held return levels of 10 and 50
    years in 90 to 100 % of the cases and of 2 years in 83 to 97 %; percentiles over resampled blocks in 70 to 92 %.

    Args:
        excess: ``(n,)`` values minus threshold.
        blocks: ``(n,)`` the block (a year, a few days) of each, independent of the others; None where excesses are
            independent (of a series, the highest value of each cluster). Fewer than ``MIN_BLOCKS`` of them give no
            intervals.
        confidence: of the intervals.

    Raises:
        UserError: fewer than ``MIN_EXCESSES``, or values that are no excesses.
    """
    x = np.asarray(excess, dtype=float).ravel()
    if len(x) < MIN_EXCESSES:
        raise UserError(
            f"The tail has {len(x)} values above its threshold, expected at least {MIN_EXCESSES} to fit a law to: "
            f"lower the threshold or give more data."
        )
    if not (np.isfinite(x).all() and x.min() >= 0 < x.max()):
        raise UserError(
            f"The excesses of the tail lie between {x.min():g} and {x.max():g}, expected finite numbers from 0 on: "
            f"give the values above the threshold, minus the threshold."
        )
    likelihood = _Likelihood(x)
    heights = np.array([likelihood.profile(u) for u in GRID])
    best = int(heights.argmax())
    around = GRID[max(best - 1, 0)], GRID[min(best + 1, len(GRID) - 1)]
    # 1e300, not infinity, where there is no law: the search interpolates between values.
    found = optimize.minimize_scalar(
        lambda u: min(-likelihood.profile(u), 1e300), bounds=around, method="bounded", options={"xatol": 1e-10}
    )
    shape, scale = likelihood.law(found.x)
    if blocks is None:
        drop = stats.chi2.ppf(confidence, 1)
    else:
        drop = _block_drop(x, np.asarray(blocks).ravel(), shape, scale, confidence)
    contour = _contour(likelihood, heights, found.x, -found.fun - drop / (2 * len(x)))
    return Gpd(Estimate(shape, *_range(contour[:, 0])), Estimate(scale, *_range(contour[:, 1])), len(x), contour)


class _Likelihood:
    """Of excesses, along u = log(1 + θ·largest), so that every u is a law."""

    def __init__(self, x: Array):
        self.x, self.largest = x, float(x.max())

    def theta(self, u: float) -> float:
        return math.expm1(u) / self.largest

    def scale(self, u: float) -> float:
        """The likeliest σ at this θ, mean log(1 + θx)/θ; ξ is θ times it."""
        theta = self.theta(u)
        return float(np.log1p(theta * self.x).mean() / theta) if theta else float(self.x.mean())

    def law(self, u: float) -> tuple[float, float]:
        return self.theta(u) * self.scale(u), self.scale(u)

    def profile(self, u: float) -> float:
        """The greatest log-likelihood at this θ, over n, plus 1; −∞ where its shape would be below −1."""
        shape, scale = self.law(u)
        return -math.log(scale) - shape if shape >= -1 else -math.inf


def _contour(likelihood: _Likelihood, heights: Array, top: float, lowest: float) -> Array:
    """``(points, 2)`` laws whose log-likelihood, over n, plus 1 is ``lowest``; ``heights`` are the profile on GRID."""
    if math.isnan(lowest):
        return np.full((1, 2), np.nan)

    def crossing(outwards: Array, limit: float) -> float:
        """Where the profile falls to ``lowest``: between its top and the first place of the grid that is below."""
        below = [u for u, height in outwards if height < lowest]
        if not below:
            return limit
        return float(optimize.bisect(lambda u: 1.0 if likelihood.profile(u) > lowest else -1.0, top, below[0]))

    places, middle = np.stack([GRID, heights], -1), int(np.searchsorted(GRID, top))
    low, high = crossing(places[:middle][::-1], GRID[0]), crossing(places[middle:], GRID[-1])
    at = (low + high) / 2 + (high - low) / 2 * ALONG
    laws = np.array([likelihood.law(u) for u in at])
    # At both ends of the edge v is 1, where the product is 1/e and scipy's W undefined.
    product = np.minimum([math.exp(lowest - 1 - likelihood.profile(u)) for u in at], (1 - 1e-12) / math.e)
    return np.concatenate([laws / -special.lambertw(-product, branch).real[:, None] for branch in (0, -1)])


def _block_drop(x: Array, blocks: NDArray, shape: float, scale: float, confidence: float) -> float:
    """What stands for the quantile of χ²₁ where excesses of one block depend on each other."""
    _, label = np.unique(blocks, return_inverse=True)
    n_blocks = int(label.max()) + 1
    if n_blocks < MIN_BLOCKS:
        return math.nan
    xi = shape if abs(shape) > 1e-5 else 1e-5  # the gradient below is a difference of infinities at 0
    z = x / scale
    w = 1 + xi * z
    gradient = np.log(w) / xi**2 - (1 + 1 / xi) * z / w, -1 + (1 + xi) * z / w  # by ξ and log σ
    sums = np.stack([np.bincount(label, weights=part) for part in gradient])
    variance = sums @ sums.T * n_blocks / (n_blocks - 1)
    regular = max(xi, -0.45)  # there is no expected information from -1/2 down
    information = len(x) / ((1 + regular) * (1 + 2 * regular)) * np.array([[2, 1], [1, 1 + regular]])
    inflation = np.trace(np.linalg.solve(information, variance)) / 2
    return float(inflation * stats.t.ppf((1 + confidence) / 2, n_blocks - 1) ** 2)


def _range(values: Array) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def exceedance_rate(counts: ArrayLike, *, years: float, confidence: float = 0.95) -> Estimate:
    """Exceedances a year and how well they are known, from how they vary between blocks of time.

    The interval is that of Student's t about the logarithm, and NaN with fewer than ``MIN_BLOCKS`` blocks or no event.

    Args:
        counts: ``(blocks,)`` exceedances in each block, blocks without any included; of pooled series, divided by how
            many there are (pixels × members).
        years: that the blocks cover together.
    """
    per_block = np.asarray(counts, dtype=float)
    n, total = len(per_block), float(per_block.sum())
    if n < MIN_BLOCKS or total == 0:
        return Estimate(total / years, math.nan, math.nan)
    width = stats.t.ppf((1 + confidence) / 2, n - 1) * math.sqrt(n * per_block.var(ddof=1)) / total
    return Estimate(total / years, total / years * math.exp(-width), total / years * math.exp(width))


def return_level(gpd: Gpd, *, threshold: float, rate: float | Estimate, years: float) -> Estimate:
    """The level exceeded once in ``years`` on average, u + σ((rate·years)^ξ − 1)/ξ, with its interval.

    It is the profile interval for a rate that is a plain number. What an uncertain rate adds is squared and summed with
    it on each side (Zou and Donner 2008, Stat. Med. 27): little for decades, as much again for a year or two.

    Args:
        threshold: u, in the unit of the values.
        rate: exceedances a year, independent ones where the law's are (:func:`exceedance_rate`).

    Raises:
        UserError: less than one exceedance is expected in ``years``.
    """
    known = rate if isinstance(rate, Estimate) else Estimate(rate, rate, rate)
    if known.value * years <= 1:
        raise UserError(
            f"The return level of {years:g} years lies below the threshold {threshold:g}, which is exceeded "
            f"{known.value:.3g} times a year: ask for a longer period or lower the threshold."
        )

    def levels(laws: Array, per_year: float) -> Array:
        return threshold + laws[:, 1] * special.boxcox(per_year * years, laws[:, 0])

    fitted = np.array([[gpd.shape.value, gpd.scale.value]])
    value, lowest, highest = (float(levels(fitted, per_year)[0]) for per_year in known)
    low, high = _range(levels(gpd.contour, known.value))
    return Estimate(
        value, value - math.hypot(value - low, value - lowest), value + math.hypot(high - value, highest - value)
    )


def sedi(counts: ArrayLike) -> Array:
    """``(...)``: the symmetric extremal dependence index of ``(..., 4)`` hits, misses, false alarms, correct negatives.

    (ln F − ln H − ln(1 − F) + ln(1 − H)) / (ln F + ln H + ln(1 − F) + ln(1 − H)), with H = hits/events and F = false
    alarms/other cases. It does not vanish as events get rarer; 0 is chance, 1 perfect. NaN where H or F is 0 or 1: say
    how many events there were (hits + misses). Forecasts with too many or too few events are flattered or punished: cut
    them where as many are forecast as observed. Ferro and Stephenson (2011), Weather Forecast. 26.
    """
    hits, misses, false_alarms, negatives = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = [hits / (hits + misses), false_alarms / (false_alarms + negatives)]
        h, f = (np.where((rate > 0) & (rate < 1), rate, np.nan) for rate in rates)
        return (np.log(f / h) + np.log((1 - h) / (1 - f))) / np.log(f * h * (1 - f) * (1 - h))
