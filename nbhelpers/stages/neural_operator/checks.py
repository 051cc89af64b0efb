"""Do the settings fit the data? What can be known before training is said before training."""

from __future__ import annotations

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import sequences
from nbhelpers.stages.neural_operator.config import Config
from nbhelpers.stages.neural_operator.data import Collection
from nbhelpers.stages.neural_operator.split import Split


def check_settings(config: Config, collection: Collection, split: Split, *, has_velocity: bool) -> None:
    """Check what only the data can tell of the settings.

    Args:
        has_velocity: the fields have a velocity, in a periodic domain.

    Raises:
        UserError: windows or rollouts longer than a simulation, parameters that are not known, or a divergence of what
            is no periodic velocity.
    """
    _check_windows(config, split)
    if config.condition and not collection.facts.conditions:
        raise UserError(
            f"condition is on, but {collection.root} states no parameter that differs between its simulations: switch "
            "it off."
        )
    if not has_velocity and (asked := _divergences(config)):
        raise UserError(
            f"{asked[0]} needs the field velocity in a periodic domain, found {', '.join(collection.channels)} in one "
            f"that is {'' if collection.facts.periodic else 'not '}periodic: choose something else there."
        )


def _check_windows(config: Config, split: Split) -> None:
    length, stride = config.sequence_length
    sequences.fixed_windows(split.segments["train"], length=length, stride=stride, per_segment=1)
    for name in ("val", "test"):
        shortest = min(split.segments[name], key=lambda segment: len(segment.frames))
        have, need = len(shortest.frames), (config.n_in + config.rollout_steps - 1) * stride + 1
        if need > have:
            raise UserError(
                f"rollout_steps is {config.rollout_steps}, which with n_in {config.n_in} and a stride of {stride} "
                f"takes {need} frames, but {shortest.simulation.name} has {have} for {name}: set rollout_steps to "
                f"{(have - 1) // stride + 1 - config.n_in} or less, or lower the stride."
            )


def _divergences(config: Config) -> list[str]:
    """The settings that ask for a divergence."""
    params = config.scheduler
    asked = {
        "divergence_free": config.divergence_free,
        "the loss term divergence": config.loss.divergence > 0,
        "monitor divergence": config.monitor == "divergence",
        "the scheduler's term divergence": params is not None and "divergence" in (params.source, params.target),
        "the scheduler's monitor_metric divergence": params is not None and params.monitor_metric == "divergence",
    }
    return [name for name, yes in asked.items() if yes]
