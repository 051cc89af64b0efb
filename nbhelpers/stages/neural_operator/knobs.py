"""What the hand-over panel offers of the scheduler's settings."""

from __future__ import annotations

from nbhelpers.core.knobs import Knob
from nbhelpers.stages.neural_operator.config import BETTER

KNOBS = (
    Knob("final_weight_target", "weight handed over", 0.0, 1.0, start=0.1),
    Knob("transition_step", "weight a step", 0.001, 0.5, start=0.02, log=True),
    Knob("patience", "patience, epochs", 1, 20, start=2),
    Knob("warmup_epochs", "warm-up, epochs", 0, 50, start=5),
    Knob("min_epochs", "no step before epoch", 0, 100, start=10),
    Knob("min_delta", "improvement that counts", 1e-4, 0.2, start=1e-3, log=True),
)
WATCHED = tuple(name for name, better in BETTER.items() if better == "min")
CHOICES = {"trigger": ("plateau", "increase", "epoch"), "monitor_metric": WATCHED}
