"""What the panels offer of the settings."""

from __future__ import annotations

from nbhelpers.core.knobs import Knob
from nbhelpers.stages.rainfall_cvae.config import PRESETS

CLASSICAL = PRESETS["classical"]

# Of the error on extreme pixels (tail_mae); alternatives.
TAIL_KNOBS = (
    Knob("tail_share", "gradient share", 0.0, 0.9, start=0.3),
    Knob(
        "lambda_ext",
        "λ_ext",
        1e-3,
        20.0,
        start=CLASSICAL["lambda_ext"],
        log=True,
        marked=(CLASSICAL["lambda_ext"] / 1.25, CLASSICAL["lambda_ext"] * 1.25),
        mark=f"classical {CLASSICAL['lambda_ext']:g}",
    ),
)
# Of the KL divergence, under both likelihoods.
KL_KNOBS = (
    Knob(
        "beta_kl",
        "β",
        1e-3,
        10.0,
        start=1.0,
        log=True,
        marked=(CLASSICAL["beta_kl"] / 1.25, CLASSICAL["beta_kl"] * 1.25),
        mark=f"classical {CLASSICAL['beta_kl']:g}",
    ),
)
WARM_UP_KNOBS = (
    Knob("beta_kl", "β", 1e-3, 10.0, start=1.0, log=True),
    Knob("warmup_epochs", "warm-up, epochs", 0, 100, start=15),
    Knob("epochs", "epochs", 1, 200, start=60),
    Knob("early_stopping_patience", "patience, 0: none", 0, 100, start=0),
)
