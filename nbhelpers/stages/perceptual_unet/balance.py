"""The question behind the λ panel: on a real batch, what would each setting of the weights mean?"""

from __future__ import annotations

from collections.abc import Callable

from nbhelpers.core.knobs import Knob
from nbhelpers.science.perceptual import PerceptualLoss
from nbhelpers.stages.perceptual_unet import data
from nbhelpers.stages.perceptual_unet.config import CLASSICAL_LAMBDA, Config
from nbhelpers.stages.perceptual_unet.losses import perceptual_error
from nbhelpers.stages.perceptual_unet.task import NowcastTask, pixel_term
from nbhelpers.training.ledger import Entry, entries, probe, resolve_weights
from nbhelpers.training.task import LossTerm

KNOBS = (
    Knob(
        "lambda_perc",
        "λ",
        1e-5,
        10.0,
        start=5e-4,
        log=True,
        marked=CLASSICAL_LAMBDA,
        mark="classical range 1e-4 … 5e-3",
    ),
    Knob("perceptual_share", "gradient share", 0.0, 0.6, start=0.1),
)


def measure_balance(task: NowcastTask) -> Callable[[Config], list[Entry]]:
    """Probe the loss terms once, on the first training batch with the model as it is.

    Returns a function that says what any other λ or share would mean on that batch; it costs no forward pass, because
    a weight scales a term's value and gradient and changes nothing else.
    """
    batch = next(iter(task.batches("train", epoch=0)))
    frames, valid = data.VIL.to_model(batch.frames.to(task.device))
    n_in = task.config.n_in
    target, mask = frames[:, n_in:], valid[:, n_in:]
    perceptual = task.perceptual or PerceptualLoss(task.config.backbone, task.config.backbone_weights).to(task.device)
    pixel = pixel_term(task.config, target, mask)
    against = perceptual_error(perceptual, target, mask, n_frames=task.config.perceptual_frames)
    probed = probe(task.forecast(batch), (pixel, LossTerm("perceptual", against, 1.0)))
    norms = dict(zip(probed.names, probed.norms, strict=True))

    def balance(config: Config) -> list[Entry]:
        return entries(probed, resolve_weights({pixel.name: 1.0, "perceptual": config.perceptual_weight}, norms))

    return balance
