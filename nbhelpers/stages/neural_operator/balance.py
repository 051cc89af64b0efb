"""On a real batch, what would each setting of the weights mean?"""

from __future__ import annotations

from collections.abc import Callable

import torch

from nbhelpers.stages.neural_operator.config import Config
from nbhelpers.stages.neural_operator.losses import loss_functions, loss_terms, weights_of
from nbhelpers.stages.neural_operator.task import OperatorTask
from nbhelpers.training.ledger import Balance, Entry, entries, probe
from nbhelpers.training.weights import Moving


def measure_balance(task: OperatorTask) -> Callable[[Config], list[Entry]]:
    """Forecast the first training batch once, with the model as it is.

    Returns a function that says what the losses of any other settings would contribute on it, with the weights that a
    scheduler ends at. It costs the losses and no forward pass.
    """
    batch = next(iter(task.batches("train", epoch=0)))
    frames = task.to_model(batch.frames)
    with torch.no_grad():
        prediction = task.predict(frames, task.conditions(batch))
    functions = loss_functions(frames[:, -prediction.shape[1] :], task.domain, task.valid(batch))

    def balance(config: Config) -> list[Entry]:
        declared = weights_of(config, config.make_scheduler())
        final = {name: weight.to if isinstance(weight, Moving) else weight for name, weight in declared.items()}
        final.setdefault("spectrum_error", 0.0)  # what is off is shown too
        terms = loss_terms(config, final, functions)
        probed = probe(prediction, terms)
        return entries(probed, Balance().weights(probed, terms))

    return balance
