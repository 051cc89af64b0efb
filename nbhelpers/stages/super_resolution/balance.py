"""On a real batch, what would each setting of the second stage's weights mean?"""

from __future__ import annotations

from collections.abc import Callable

import torch

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import Knob
from nbhelpers.stages.super_resolution.config import CLASSICAL_ADV, CLASSICAL_PERC, Config
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training.ledger import Entry, entries, probe, resolve_weights

PERCEPTUAL_KNOBS = (
    Knob("perceptual_share", "gradient share", 0.0, 0.8, start=0.3),
    Knob("lambda_perc", "λ_perc", 1e-5, 10.0, start=CLASSICAL_PERC, log=True),
)
ADVERSARIAL_KNOBS = (
    Knob("adversarial_share", "gradient share", 0.0, 0.6, start=0.1),
    Knob(
        "lambda_adv",
        "λ_adv",
        1e-5,
        10.0,
        start=CLASSICAL_ADV,
        log=True,
        marked=(CLASSICAL_ADV / 2, 2 * CLASSICAL_ADV),
        mark="classical 1e-3",
    ),
)


def measure_balance(task: SuperResolutionTask) -> Callable[[Config], list[Entry]]:
    """Probe the second stage's terms once, on the first training batch with both networks as they are.

    Returns a function that says what any other weights or shares would mean on that batch; it costs no forward pass,
    because a weight scales a term's value and gradient and changes nothing else.

    Raises:
        UserError: a run without a second stage.
    """
    if not task.config.stage2_epochs:
        raise UserError("stage2_epochs is 0, so there is no second stage whose terms could be weighed: set it above 0.")
    high, low = task.pair(next(iter(task.batches("train", epoch=0))))
    with torch.no_grad():
        output = task.modules["generator"](low)
    probed = probe(output, task.terms(high, low))
    norms = dict(zip(probed.names, probed.norms, strict=True))

    def balance(config: Config) -> list[Entry]:
        weights = {
            "pixel": config.lambda_pix,
            "perceptual": config.perceptual_weight,
            "adversarial": config.adversarial_weight,
        }
        return entries(probed, resolve_weights(weights, norms))

    return balance
