"""mm/day to model values and back, with the statistics of the training days."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rain import tiny_days

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.data import Days, open_days
from nbhelpers.stages.rainfall_cvae.transform import KINDS, Kind, RainTransform


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return open_days(tiny_days(tmp_path_factory.mktemp("data") / "rain", days_per_year=20))


def rain(days: Days, split: str = "train") -> torch.Tensor:
    """``(B, H, W)`` of a split."""
    return torch.from_numpy(np.stack([days.y(day) for day in days.split[split]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_there_and_back(days: Days, kind: Kind, split: str) -> None:
    transform, mm = RainTransform.fit(kind, days), rain(days, split)
    back = transform.inverse(transform.forward(mm))
    assert back.dtype == torch.float32 and torch.equal(back.isnan(), mm.isnan())
    assert torch.allclose(back, mm, rtol=2e-6, atol=2e-5, equal_nan=True)
    members = mm[:, None].expand(-1, 3, -1, -1)  # (B, K, H, W) works alike
    assert torch.equal(transform.forward(members)[:, 1].nan_to_num(), transform.forward(mm).nan_to_num())


@pytest.mark.parametrize("amount", [0.0, 1e-4, 0.1, 1.0, 50.0, 1825.0])
def test_a_drizzle_and_a_record_both_come_back(days: Days, amount: float) -> None:
    for kind in KINDS:
        transform = RainTransform.fit(kind, days)  # type: ignore[arg-type]
        back = transform.inverse(transform.forward(torch.full(days.shape, amount)))
        assert torch.allclose(back, torch.full(days.shape, amount), rtol=1e-5, atol=1e-5)


def test_what_the_values_are(days: Days) -> None:
    mm = torch.full(days.shape, math.e - 1)
    assert torch.allclose(RainTransform.fit("log1p", days).forward(mm), torch.ones(days.shape))
    assert torch.equal(RainTransform.fit("none", days).forward(mm), mm)


def test_z_scores_are_of_each_pixel_over_the_training_days(days: Days) -> None:
    transform, land = RainTransform.fit("zscore", days), torch.from_numpy(days.land)
    z = transform.forward(rain(days))[:, land]
    assert torch.allclose(z.mean(0), torch.zeros(z.shape[1]), atol=1e-5)
    assert torch.allclose(z.std(0, correction=0), torch.ones(z.shape[1]), atol=1e-4)
    assert z.min() < -0.1  # dry pixels lie below 0: no head of only positive values reaches them
    other = transform.forward(rain(days, "test"))[:, land]
    assert (other.mean(0).abs() > 0.05).float().mean() > 0.5  # not fitted to them


def test_a_pixel_that_is_always_dry_is_not_divided_by_zero(tmp_path: Path, days: Days) -> None:
    def without(y: np.ndarray) -> np.ndarray:
        y = y.copy()
        y[10, 10] = 0.0
        return y

    some = [(days.dates[day], days.x(day), without(days.y(day))) for day in days.dates]
    other = open_days(tiny_days(tmp_path / "rain", days=some))
    transform = RainTransform.fit("zscore", other)
    assert transform.std[10, 10] == 1.0
    z = transform.forward(rain(other))
    assert bool((z[:, 10, 10] == 0).all()) and bool(z[:, torch.from_numpy(other.land)].isfinite().all())


def test_gradients_pass_both_ways(days: Days) -> None:
    for kind in KINDS:
        transform = RainTransform.fit(kind, days)  # type: ignore[arg-type]
        value = torch.zeros(days.shape, requires_grad=True)
        transform.inverse(value).sum().backward()
        assert value.grad is not None and bool((value.grad > 0).all())


def test_an_unknown_kind(days: Days) -> None:
    with pytest.raises(UserError, match="transform is 'sqrt', expected one of none, log1p, zscore"):
        RainTransform.fit("sqrt", days)  # type: ignore[arg-type]
