"""How alike the errors of neighbouring pixels are: the copula's correlation, from days that were not trained on.

Two things are asked of it there. Near pixels are to be as alike as the residuals are, which gives the rain its texture.
And the sum over a window of any size, from a part of a coarse cell to the whole map, is to vary among members by as
much as their mean is wrong (spread equal to skill; Fortin et al. 2014, J. Hydrometeorol. 15). The second cannot be read
off normal scores: what the coarse rain fixes is the mean of the rain, not that of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

from nbhelpers.stages.rainfall_cvae import copula
from nbhelpers.stages.rainfall_cvae.batches import Batch
from nbhelpers.stages.rainfall_cvae.copula import Correlation, correlated_uniform
from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle
from nbhelpers.stages.rainfall_cvae.pixel_pairs import Pairs, window_squares
from nbhelpers.stages.rainfall_cvae.sampler import Sampler, generator

LAG_PART = 3  # correlations are taken up to this part of the shorter side: further out there are few pairs
ORDERS = 6  # Hermite polynomials of rain: each further one adds next to nothing to a window's variance
NODES = np.linspace(-5, 5, 21)  # normal scores at which rain is worked out for them
TOLERANCE = 0.05  # of a correlation, and of a ratio of spread to skill, that the fit takes for equal
ROUNDS, MEMBERS = 2, 6  # how often members are drawn to see what the expansion leaves out, and how many

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """Squares of rain in mm/day of N days, summed over the windows of S sides (:func:`window_squares`)."""

    error: Array  # (N, S) of the sum of rain − its mean
    latent: Array  # (N, S) variance of that mean, by the latent
    pixels: Array  # (N,) sum of the variances of rain in each pixel, given the latent
    products: Array  # (N, ORDERS, S) of the sum of the coefficients of :func:`rain_moments`

    @classmethod
    def joined(cls, parts: Iterable[Windows]) -> Windows:
        """The days of all of them."""
        columns = zip(*((p.error, p.latent, p.pixels, p.products) for p in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def variance(self, powers: Array) -> Array:
        """``(S,)`` mean over the days of the variance given the latent, if pairs have these powers of correlations.

        Args:
            powers: ``(S − 1, ORDERS)`` of :meth:`Pairs.correlations`.
        """
        between = (np.diff(self.products.mean(0)).T * powers).sum(1)
        return self.pixels.mean() + np.concatenate([[0.0], np.cumsum(between)])


@torch.no_grad()
def fit_correlation(sampler: Sampler, batches: Iterable[Batch], *, seed: int) -> Correlation:
    """The correlation of what the likelihood leaves open, given the weather and a latent drawn from the prior.

    Raises:
        UserError: no two measured pixels are close to each other.
    """
    assert sampler.hurdle is not None
    hurdle, factor = sampler.hurdle, sampler.cvae.factor
    pairs = Pairs(torch.from_numpy(sampler.days.land), factor)
    scores, cuts, valid, maps, numbers, windows = [], [], [], [], [], []
    for batch in batches:
        inputs = sampler.inputs(batch)
        draws = 2 if sampler.cvae.d_z else 1
        raws = [r.float() for r in sampler.raw(inputs, batch.days, draws, seed=seed, source="prior")]
        score, cut = copula.censored_scores(hurdle, raws[0], inputs.rain, inputs.valid)
        windows.append(windows_of(hurdle, raws, inputs.rain, inputs.valid, pairs.sides))
        scores.append(score.cpu())
        cuts.append(cut.cpu())
        valid.append(inputs.valid.cpu())
        maps.append(raws[0].cpu())
        numbers.append(batch.days)
    lags, curve = copula.latent_correlogram(
        torch.cat(scores), torch.cat(cuts), torch.cat(valid), max(2, min(sampler.days.shape) // LAG_PART)
    )

    def drawn(correlation: Correlation) -> Array:
        total = [
            drawn_squares(hurdle, raw[[i]], seen[[i]], correlation, pairs, generator(seed + 1, day, "noise"))
            for raw, seen, days in zip(maps, valid, numbers, strict=True)
            for i, day in enumerate(days)
        ]
        return np.concatenate(total).mean(0)

    return calibrated(lags, curve, Windows.joined(windows), pairs, drawn)


def calibrated(
    lags: Array, curve: Array, windows: Windows, pairs: Pairs, drawn: Callable[[Correlation], Array]
) -> Correlation:
    """:func:`fit`, and again with what members drawn with its result vary by: the expansion is not exact.

    Its errors are large where the coarse rain is known: it takes rain within a cell to be as variable in one pixel as
    in the next, and only then is a known mean of the scores a known mean of the rain.

    Args:
        drawn: mean variances ``(S,)`` of members, by windows.
    """
    found = fit(lags, curve, windows, pairs)
    for _ in range(ROUNDS):
        expected = windows.variance(pairs.correlations(found, ORDERS)[1].numpy())
        found = fit(lags, curve, windows, pairs, left_out=drawn(found) / expected)
    return found


def rain_moments(hurdle: Hurdle, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance ``(B, H, W)`` of rain y(g), and its coefficients c_n = E[y(g) He_n(g)]/√n! ``(B, n, H, W)``.

    By Mehler's formula cov(y_i, y_j) = Σ_n c_n,i c_n,j ρ^n for pixels whose normal scores g have the correlation ρ.
    """
    weights = np.exp(-(NODES**2) / 2)
    basis = np.polynomial.hermite_e.hermevander(NODES, ORDERS) / np.sqrt([math.factorial(n) for n in range(ORDERS + 1)])
    basis *= (weights / weights.sum())[:, None]
    like = torch.zeros_like(raw[:, 0], dtype=torch.float64)
    square, coefficients = like.clone(), torch.stack([like] * (ORDERS + 1), 1)
    for score, weight in zip(torch.from_numpy(NODES), torch.from_numpy(basis).to(like), strict=True):
        rain = hurdle.quantile(raw, torch.full_like(like, torch.special.ndtr(score).item()))
        square += weight[0] * rain.square()
        coefficients += weight[:, None, None] * rain[:, None]
    mean = coefficients[:, 0]
    return mean, square - mean.square(), coefficients[:, 1:]


def windows_of(hurdle: Hurdle, raws: list[Tensor], rain: Tensor, valid: Tensor, sides: tuple[int, ...]) -> Windows:
    """What the days of a batch tell of the sums over windows.

    With the means of two independent draws of the latent, rain less the one times rain less the other is, on average,
    what the members of all draws are to vary by; half the square of their difference is what the latent does of it.

    Args:
        raws: one draw ``(B, P, H, W)`` of the raw maps, or two.
        rain: ``(B, H, W)`` in mm/day.
        valid: bool of the same shape.
    """
    means = [rain_moments(hurdle, raw) for raw in raws]
    (first, variance, coefficients), (second, *_) = means[0], means[-1]

    def squares(fields: Tensor) -> Array:
        return window_squares(torch.where(valid[:, None], fields, 0.0), sides).cpu().numpy()

    apart = squares((first - second)[:, None])[:, 0]
    error = squares((rain - (first + second) / 2)[:, None])[:, 0] - apart / 4
    pixels = torch.where(valid, variance, 0.0).sum((1, 2)).cpu().numpy()
    return Windows(error, apart / 2, pixels, squares(coefficients))


def drawn_squares(
    hurdle: Hurdle, raw: Tensor, valid: Tensor, correlation: Correlation, pairs: Pairs, draws: torch.Generator
) -> Array:
    """``(B, S)`` variances of the sums over windows, in (mm/day)², of a few members drawn from raw maps."""
    days, (height, width) = len(raw), raw.shape[-2:]
    noise = correlated_uniform((days * MEMBERS, height, width), correlation, factor=pairs.factor, generator=draws)
    rain = hurdle.quantile(raw, noise.reshape(days, MEMBERS, height, width)).double()
    rain = torch.where(valid[:, None], rain - rain.mean(1, keepdim=True), 0.0)
    return window_squares(rain, pairs.sides).sum(1).numpy() / (MEMBERS - 1)


def fit(
    lags: Array, correlation: Array, windows: Windows, pairs: Pairs, *, left_out: Array | float = 1.0
) -> Correlation:
    """The correlation whose near lags are those of the residuals, and whose windows have a spread equal to skill.

    Least squares with a soft L1 loss, of the correlations up to a coarse cell's side and of log(spread/skill) for
    windows of all sides above 1; both have the same weight, and windows of which there are few a smaller one.

    Args:
        lags, correlation: of :func:`copula.latent_correlogram`.
        left_out: variance of members over that by :meth:`Windows.variance`, ``(S,)``.

    Raises:
        UserError: no shell has a pair.
    """
    simple = copula.fit(lags, correlation)
    near = correlation[: pairs.factor]
    known = np.isfinite(near)
    error = windows.error[:, 1:]
    skill, latent = error.mean(0), windows.latent.mean(0)[1:]
    skill = skill.clip(1e-3 * windows.pixels.mean())  # no rain at all, or none that is not expected
    weight = 1 / np.hypot(TOLERANCE, error.std(0) / skill / 2 / math.sqrt(len(error)))

    def misfit(values: Array) -> Array:
        nugget, log_length, exponent, share = values
        curve, powers = pairs.correlations(Correlation(nugget, math.exp(log_length), exponent, share), ORDERS)
        spread = (windows.variance(powers.numpy()) * left_out)[1:] + latent
        ratio = np.log(spread.clip(1e-6 * skill) / skill) / 2
        wrong = (curve.numpy()[: len(near)] - near)[known]
        return np.concatenate(
            [wrong / TOLERANCE / math.sqrt(max(1, len(wrong))), ratio * weight / math.sqrt(len(ratio))]
        )

    furthest = lags[np.isfinite(lags)][-1]
    starts = [(max(simple.nugget, 0.01), max(simple.length, 0.5), simple.exponent, 0.05)]
    starts += [(0.05, length, 1.0, 0.7) for length in (1.5, furthest / 3)]
    bounds = ([0, math.log(0.1), 0.3, 0], [0.99, math.log(10 * furthest), 2, 0.99])
    fits = [
        least_squares(misfit, (nugget, math.log(length), *rest), bounds=bounds, loss="soft_l1")
        for nugget, length, *rest in starts
    ]
    nugget, log_length, exponent, share = min(fits, key=lambda one: one.cost).x.tolist()
    found = Correlation(nugget, math.exp(log_length), exponent, share)
    neighbours = found.at(torch.ones((), dtype=torch.float64)).item()
    return found if neighbours >= copula.WHITE else Correlation(0.0, 0.0, 1.0, share)
