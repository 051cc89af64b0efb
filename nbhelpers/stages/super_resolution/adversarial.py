"""Relativistic average GAN losses: is the real image more real than the others are on average?"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½·(−E log σ(C(x_r) − E C(x_f)) − E log(1 − σ(C(x_f) − E C(x_r)))), from logits.

    It is log 2 where nothing is told apart. Jolicoeur-Martineau (2018), arXiv:1807.00734, there without the half. σ and
    logarithm are one softplus, in float32 whatever the logits are in.

    Args:
        real, fake: logits C of real and of generated images, of any shape; means are taken over all of them.
    """
    over_fake, over_real = _over_the_others(real, fake)
    return (F.softplus(-over_fake).mean() + F.softplus(over_real).mean()) / 2


def generator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½·(−E log σ(C(x_f) − E C(x_r)) − E log(1 − σ(C(x_r) − E C(x_f)))): real and fake have changed places.

    Give the real logits without gradient: they do not depend on the generator. Arguments as of
    :func:`discriminator_loss`.
    """
    return discriminator_loss(fake, real)


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share in [0, 1] of the logits on the right side of the others' mean, real ones above, fake ones below.

    A logit that is equal to the others' mean counts one half, so a discriminator that says the same of everything has
    0.5. Real and fake count alike, however many there are. Arguments as of :func:`discriminator_loss`.
    """
    over_fake, over_real = (x.detach() for x in _over_the_others(real, fake))
    return (1 + (over_fake.sign().mean() - over_real.sign().mean()) / 2) / 2


def _over_the_others(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Real logits above the mean of the fake ones, and fake ones above the mean of the real ones."""
    real, fake = real.float(), fake.float()
    return real - fake.mean(), fake - real.mean()
