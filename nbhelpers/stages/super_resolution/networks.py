"""The networks that the settings ask for: for training, and for using a run without its data."""

from __future__ import annotations

import torch
from torch import nn

from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.stages.super_resolution.discriminator import Discriminator
from nbhelpers.stages.super_resolution.generator import Generator


def degradation_of(config: Config) -> Degradation:
    """What made the low resolution."""
    return Degradation(config.scale, config.mtf_by_band, config.noise)


def make_networks(config: Config) -> dict[str, nn.Module]:
    """The generator, and the discriminator if there is a second stage; initialised from the seed.

    Raises:
        UserError: a scale or a transfer function that the degradation cannot have.
    """
    torch.manual_seed(config.seed)
    networks: dict[str, nn.Module] = {
        "generator": Generator(
            len(config.bands),
            scale=config.scale,
            features=config.features,
            growth=config.growth,
            num_rrdb=config.num_rrdb,
            num_rrfdb=config.num_rrfdb,
            degradation=degradation_of(config),
            consistency=config.consistency,
        )
    }
    if config.stage2_epochs:
        features, kind = config.discriminator_features, config.discriminator
        networks["discriminator"] = Discriminator(len(config.bands), features, kind)
    return {name: network.to(memory_format=torch.channels_last) for name, network in networks.items()}
