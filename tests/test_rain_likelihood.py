"""The hurdle likelihood of rain against scipy's distributions, and its maximum on draws of known parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.likelihood import SHAPE, SIZE, XI, Hurdle, Tail

TAILS: tuple[Tail, ...] = ("gamma", "gpd")
WET = 0.1


def raw_maps(p: np.ndarray, size: np.ndarray, shape: np.ndarray, xi: np.ndarray | None = None) -> Tensor:
    """Float64 raw maps ``(1, P, 1, n)`` of parameters ``(n,)``."""

    def unbounded(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
        low, high = np.log(bounds)
        return (high - low) / 2 * np.arctanh((np.log(values) - (low + high) / 2) / ((high - low) / 2))

    maps = [np.log(p / (1 - p)), unbounded(size, SIZE), unbounded(shape, SHAPE)]
    if xi is not None:
        share = (xi - XI[0]) / (XI[1] - XI[0])
        maps.append(np.log(share / (1 - share)))
    return torch.from_numpy(np.stack(np.broadcast_arrays(*maps)))[None, :, None]


def some(tail: Tail, n: int, *, shapes: tuple[float, float] = (0.1, 20)) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Raw maps of n random sets of parameters, and these."""
    rng = np.random.default_rng(0)
    parts = {
        "p": rng.uniform(0.02, 0.98, n),
        "size": np.exp(rng.uniform(np.log(0.3), np.log(60), n)),
        "shape": np.exp(rng.uniform(*np.log(shapes), n)),
    }
    if tail == "gpd":
        parts["xi"] = rng.uniform(0.01, 0.39, n)
    return raw_maps(*parts.values()), parts


class ExtendedPareto:
    """F = G^κ with scipy's generalised Pareto G, by numpy."""

    def __init__(self, size: np.ndarray, shape: np.ndarray, xi: np.ndarray):
        self.pareto, self.kappa = stats.genpareto(xi, scale=size), shape

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return self.pareto.cdf(x) ** self.kappa

    def ppf(self, v: np.ndarray) -> np.ndarray:
        return self.pareto.isf(-np.expm1(np.log(v) / self.kappa))

    def logpdf(self, x: np.ndarray) -> np.ndarray:
        return np.log(self.kappa) + self.pareto.logpdf(x) + (self.kappa - 1) * self.pareto.logcdf(x)


def excess(size: np.ndarray, shape: np.ndarray, xi: np.ndarray | None = None) -> Any:
    """scipy's distribution of the excess."""
    return stats.gamma(shape, scale=size / shape) if xi is None else ExtendedPareto(size, shape, xi)


# --- against scipy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_the_negative_log_likelihood_is_scipys(tail: Tail, dtype: torch.dtype, tolerance: float) -> None:
    raw, parts = some(tail, 4000)
    p = parts.pop("p")
    y = np.random.default_rng(1).exponential(np.geomspace(0.05, 80, 4000))
    x = np.maximum(y - WET, 1e-3)
    expected = np.where(y < WET, -np.log1p(-p), -np.log(p) - excess(**parts).logpdf(x))
    rain = torch.from_numpy(y).to(dtype)[None, None]
    nll = Hurdle(tail).nll(raw.to(dtype), rain, torch.ones_like(rain, dtype=torch.bool))
    assert nll.dtype == dtype and (y < WET).any()
    np.testing.assert_allclose(nll.double().numpy().ravel(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tail", TAILS)
def test_the_cdf_is_scipys(tail: Tail) -> None:
    raw, parts = some(tail, 4000)
    p = parts.pop("p")
    y = np.random.default_rng(1).exponential(np.geomspace(0.05, 80, 4000))
    expected = 1 - p + p * excess(**parts).cdf(np.maximum(y - WET, 0))
    np.testing.assert_allclose(Hurdle(tail).cdf(raw, torch.from_numpy(y)[None, None]).ravel(), expected, atol=1e-9)
    below = Hurdle(tail).cdf(raw, torch.full((1, 1, 4000), -1e-6, dtype=torch.float64))
    assert (below == 0).all()


@pytest.mark.parametrize("tail", TAILS)
def test_quantiles_are_scipys_to_one_in_ten_thousand_far_into_both_tails(tail: Tail) -> None:
    raw, parts = some(tail, 20_000, shapes=(0.0505, 49.5))
    p = parts.pop("p")
    rng = np.random.default_rng(2)
    v = np.concatenate([rng.uniform(0.001, 0.999, 10_000), 1 - 10 ** rng.uniform(-6, -1, 10_000)])
    u = 1 - p + p * v
    drawn = Hurdle(tail).quantile(raw, torch.from_numpy(u)[None, None]).numpy().ravel() - WET
    np.testing.assert_allclose(drawn, excess(**parts).ppf(v), rtol=1e-4, atol=1e-9)
    single = Hurdle(tail).quantile(raw.float(), torch.from_numpy(u).float()[None, None]).numpy().ravel() - WET
    core = v < 0.999  # beyond, the digits of a float32 u are too few
    np.testing.assert_allclose(single[core], excess(**parts).ppf(v)[core], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tail", TAILS)
def test_the_mean_is_that_of_the_quantiles(tail: Tail) -> None:
    raw, _ = some(tail, 40)
    n = 20_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    values = Hurdle(tail).quantile(raw[..., None].expand(-1, -1, -1, -1, n).reshape(1, raw.shape[1], 40, n),
                                   u.expand(1, 40, n))  # fmt: skip
    torch.testing.assert_close(values.mean(-1), Hurdle(tail).mean(raw)[0], rtol=0.02, atol=0.01)


# --- consistency --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", TAILS)
def test_the_cdf_undoes_the_quantile_and_dry_draws_are_zero(tail: Tail) -> None:
    raw, parts = some(tail, 20_000)
    u = torch.rand((1, 1, 20_000), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hurdle = Hurdle(tail)
    y = hurdle.quantile(raw, u)
    dry = u.ravel() <= torch.from_numpy(1 - parts["p"])
    assert (y.ravel()[dry] == 0).all() and (y.ravel()[~dry] >= WET).all()
    seen = (y > WET + 1e-6).ravel()  # less than that is lost in the digits of WET + excess
    assert seen.sum() > 0.95 * (~dry).sum()
    torch.testing.assert_close(hurdle.cdf(raw, y).ravel()[seen], u.ravel()[seen], rtol=0, atol=1e-4)
    torch.testing.assert_close(hurdle.cdf(raw, y).ravel()[dry], 1 - hurdle.wet_probability(raw).ravel()[dry])


@pytest.mark.parametrize("tail", TAILS)
def test_members_share_the_raw_maps_of_their_day(tail: Tail) -> None:
    generator = torch.Generator().manual_seed(0)
    hurdle = Hurdle(tail)
    raw = torch.randn((3, hurdle.channels, 5, 4), generator=generator)
    u = torch.rand((3, 7, 5, 4), generator=generator)
    y = hurdle.quantile(raw, u)
    assert y.shape == u.shape
    for k in range(7):
        torch.testing.assert_close(y[:, k], hurdle.quantile(raw, u[:, k]), rtol=0, atol=0)
        torch.testing.assert_close(hurdle.cdf(raw, y)[:, k], hurdle.cdf(raw, y[:, k]), rtol=0, atol=0)


@pytest.mark.parametrize("tail", TAILS)
def test_quantiles_of_extreme_raw_maps_are_finite_and_rise_with_u(tail: Tail) -> None:
    hurdle = Hurdle(tail)
    corners = torch.cartesian_prod(*[torch.tensor([-1e4, 0.0, 1e4])] * hurdle.channels)  # (n, P)
    u = torch.tensor([1e-30, 1e-6, 0.1, 0.5, 0.9, 1 - 2**-20, 1 - 2**-24])
    raw = corners.T[None, :, :, None].expand(-1, -1, -1, len(u))
    y = hurdle.quantile(raw, u.expand(1, len(corners), -1))
    assert y.isfinite().all() and (y >= 0).all()
    assert (y.diff(dim=-1) >= -1e-4 * y[..., 1:]).all()
    assert hurdle.mean(raw).isfinite().all() and hurdle.cdf(raw, y).isfinite().all()


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("size", [0.0, 3.0, 1e4])
def test_gradients_are_finite_for_any_rain_and_any_raw_map(tail: Tail, size: float) -> None:
    hurdle = Hurdle(tail)
    y = torch.tensor([0.0, WET - 1e-6, WET, WET + 1e-9, 1.0, 500.0, math.nan]).expand(64, 1, -1)
    raw = size * torch.randn((64, hurdle.channels, 1, 7), generator=torch.Generator().manual_seed(0))
    raw.requires_grad_()
    nll = hurdle.nll(raw, y, torch.ones_like(y, dtype=torch.bool))
    nll.sum().backward()
    assert raw.grad is not None and nll.isfinite().all() and raw.grad.isfinite().all()
    assert (nll[..., -1] == 0).all() and (raw.grad[..., -1] == 0).all()  # NaN: not measured


def test_pixels_outside_the_mask_have_no_say() -> None:
    hurdle = Hurdle()
    raw = torch.zeros((1, 3, 2, 2), requires_grad=True)
    y = torch.tensor([[[0.0, 5.0], [5.0, 0.0]]])
    valid = torch.tensor([[[True, True], [False, False]]])
    nll = hurdle.nll(raw, y, valid)
    nll.sum().backward()
    assert raw.grad is not None
    assert (nll[~valid] == 0).all() and (nll[valid] > 0).all() and (raw.grad[:, :, 1] == 0).all()


def test_half_precision_maps_are_scored_in_single_precision() -> None:
    hurdle = Hurdle("gpd")
    raw = torch.randn((2, 4, 3, 3), generator=torch.Generator().manual_seed(0)).bfloat16()
    y = torch.full((2, 3, 3), 40.0)
    mask = torch.ones_like(y, dtype=torch.bool)
    torch.testing.assert_close(hurdle.nll(raw, y, mask), hurdle.nll(raw.float(), y, mask))
    torch.testing.assert_close(hurdle.mean(raw), hurdle.mean(raw.float()))
    torch.testing.assert_close(hurdle.quantile(raw, y / 50), hurdle.quantile(raw.float(), y / 50))


# --- estimation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "truth"), [("gamma", (0.4, 6.0, 0.7)), ("gamma", (0.9, 2.0, 3.0)), ("gpd", (0.4, 5.0, 0.8, 0.15))]
)
def test_the_likelihood_of_50_000_draws_is_highest_at_their_parameters(tail: Tail, truth: tuple[float, ...]) -> None:
    hurdle = Hurdle(tail)
    exact = raw_maps(*(np.array([t]) for t in truth))
    u = torch.rand((1, 1, 50_000), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = hurdle.quantile(exact.expand(-1, -1, -1, 50_000), u)
    mask = torch.ones_like(y, dtype=torch.bool)
    wet = y >= WET
    start = hurdle.initial_bias(wet_fraction=float(wet.double().mean()), mean_excess=float((y[wet] - WET).mean()))
    raw = start.double().view(1, -1, 1, 1).requires_grad_()
    optimiser = torch.optim.LBFGS([raw], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = hurdle.nll(raw.expand(-1, -1, -1, 50_000), y, mask).mean()
        value.backward()
        return value

    optimiser.step(loss)
    # The mean rain, the shape of light and of heavy rain: what is reported of a model.
    levels = torch.tensor([0.7, 0.9, 0.99, 0.999], dtype=torch.float64).view(1, 4, 1, 1)
    torch.testing.assert_close(hurdle.wet_probability(raw), hurdle.wet_probability(exact), rtol=0, atol=0.01)
    torch.testing.assert_close(hurdle.mean(raw), hurdle.mean(exact), rtol=0.03, atol=0)
    torch.testing.assert_close(hurdle.quantile(raw, levels), hurdle.quantile(exact, levels), rtol=0.06, atol=0.02)
    torch.testing.assert_close(raw[:, 2], exact[:, 2], rtol=0, atol=0.05)  # log of the shape, about


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("wet_fraction", "mean_excess"), [(0.35, 6.0), (0.02, 0.3)])
def test_training_starts_from_the_climatology(tail: Tail, wet_fraction: float, mean_excess: float) -> None:
    hurdle = Hurdle(tail)
    bias = hurdle.initial_bias(wet_fraction=wet_fraction, mean_excess=mean_excess)
    assert bias.shape == (hurdle.channels,)
    raw = bias.view(1, -1, 1, 1)
    assert hurdle.wet_probability(raw).item() == pytest.approx(wet_fraction, rel=1e-4)
    assert hurdle.mean(raw).item() == pytest.approx(wet_fraction * (WET + mean_excess), rel=1e-3)


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="'normal' of the rain's likelihood is unknown"):
        Hurdle("normal")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="-1 mm/day, expected 0 or more"):
        Hurdle(wet=-1)
    with pytest.raises(UserError, match="check that it is in mm/day"):
        Hurdle().initial_bias(wet_fraction=1.0, mean_excess=3.0)
    with pytest.raises(UserError, match="check that it is in mm/day"):
        Hurdle().initial_bias(wet_fraction=0.5, mean_excess=7e-5)  # kg/m²/s
