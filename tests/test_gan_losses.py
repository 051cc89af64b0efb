"""The relativistic average GAN losses beside their formula, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nbhelpers.stages.super_resolution.adversarial import accuracy, discriminator_loss, generator_loss


def probability(these: Tensor, others: Tensor) -> Tensor:
    """D_Ra: that these are more real than the others on average."""
    return 1 / (1 + torch.exp(-(these - others.mean())))


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 1, 5, 4) + 0.7, 2 * torch.randn(3, 1, 5, 4) - 0.3


def test_the_losses_are_the_formula(logits: tuple[Tensor, Tensor]) -> None:
    real, fake = (x.double() for x in logits)
    of_real, of_fake = probability(real, fake), probability(fake, real)
    judge = (-of_real.log().mean() - (1 - of_fake).log().mean()) / 2
    maker = (-of_fake.log().mean() - (1 - of_real).log().mean()) / 2
    assert float(discriminator_loss(*logits)) == pytest.approx(float(judge), rel=1e-6)
    assert float(generator_loss(*logits)) == pytest.approx(float(maker), rel=1e-6)


def test_each_side_pulls_its_own_way(logits: tuple[Tensor, Tensor]) -> None:
    for loss, sign in ((discriminator_loss, 1), (generator_loss, -1)):
        real, fake = (x.clone().requires_grad_() for x in logits)
        loss(real, fake).backward()
        assert real.grad is not None and fake.grad is not None
        assert bool((sign * real.grad < 0).all()), "descending must move the real logits up for the judge, down else"
        assert bool((sign * fake.grad > 0).all())


@pytest.mark.parametrize("level", [-3.0, 0.0, 40.0])
def test_nothing_told_apart_is_log_2(level: float) -> None:
    same = torch.full((2, 1, 4, 4), level)
    for loss in (discriminator_loss, generator_loss):
        assert float(loss(same, same)) == pytest.approx(math.log(2), abs=1e-7)
    assert float(accuracy(same, same)) == 0.5


def test_a_common_shift_says_nothing(logits: tuple[Tensor, Tensor]) -> None:
    real, fake = logits
    for value in (discriminator_loss, generator_loss, accuracy):
        assert float(value(real + 5, fake + 5)) == pytest.approx(float(value(real, fake)), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_certain_logits_in_half_precision(dtype: torch.dtype) -> None:
    real, fake = torch.full((1, 1, 4, 4), 300.0).to(dtype), torch.full((1, 1, 4, 4), -300.0).to(dtype)
    assert discriminator_loss(real, fake).dtype == torch.float32
    assert float(discriminator_loss(real, fake)) == 0.0
    assert float(generator_loss(real, fake)) == pytest.approx(600.0)


def test_accuracy_counts_the_right_side_of_the_others_mean() -> None:
    real, fake = torch.tensor([3.0, 1.0, -1.0, 5.0]), torch.tensor([0.0, 2.0, 4.0, -6.0, 0.0, 0.0, 0.0, 0.0])
    # Fake mean 0: three of four real ones above. Real mean 2: six of eight fake ones below, one on it, one above.
    assert float(accuracy(real, fake)) == pytest.approx((3 / 4 + 6.5 / 8) / 2)
    assert float(accuracy(real + 100, fake)) == 1.0
    assert float(accuracy(real - 100, fake)) == 0.0
