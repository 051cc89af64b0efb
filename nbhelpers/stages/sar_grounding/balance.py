"""On a real batch, what would each setting of the five weights mean?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from nbhelpers.core.knobs import Knob
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.training.ledger import Entry, entries, probe, resolve_weights

if TYPE_CHECKING:
    from nbhelpers.stages.sar_grounding.task import GroundingTask

LEAST, MOST = 1e-3, 10.0  # of a weight; below the former a slider is off

WEIGHT_KNOBS = (
    Knob("sar_weight", "SAR α", LEAST, MOST, start=1.0, log=True, off=True),
    Knob("cycle_weight", "cycle β", LEAST, MOST, start=0.5, log=True, off=True),
    Knob("identity_weight", "identity γ", LEAST, MOST, start=0.3, log=True, off=True),
    Knob("lpips_weight", "LPIPS δ", LEAST, MOST, start=0.1, log=True, off=True),
    Knob("spectral_weight", "spectral ε", LEAST, MOST, start=1.0, log=True, off=True),
)


def weight_knobs(config: Config) -> tuple[Knob, ...]:
    """The weights that can be turned; none of the token route, whose loss is one cross-entropy."""
    return () if config.model == "terramind-tokens" else WEIGHT_KNOBS


def measure_balance(task: GroundingTask) -> Callable[[Config], list[Entry]]:
    """Probe the terms once, on the first training batch, for an image halfway from opt_v2 to the truth.

    That is where training passes through: an untrained model returns opt_v2, where two terms have no gradient.
    Returns a function that says what any other weights would mean there; it costs no pass through a network, because a
    weight scales a term's value and gradient and changes nothing else. Terms that the task's settings leave out (weight
    0) stay out; of the token route, which has none of the five, it returns no rows.
    """
    if not weight_knobs(task.config):
        return lambda config: []
    with torch.random.fork_rng():  # a loader draws a number
        batch = next(iter(task.batches("train", epoch=0))).to(task.device)
    opt_v2 = task.filled(batch.opt_v2)
    halfway = torch.where(batch.truth.isfinite(), (opt_v2 + batch.truth) / 2, opt_v2)
    probed = probe(halfway.requires_grad_(True), task.terms(batch))
    norms = dict(zip(probed.names, probed.norms, strict=True))

    def balance(config: Config) -> list[Entry]:
        weights = {name: getattr(config, f"{name}_weight") for name in probed.names}
        return entries(probed, resolve_weights(weights, norms))

    return balance
