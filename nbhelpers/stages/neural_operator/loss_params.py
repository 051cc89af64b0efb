"""How much of each loss term: the weights, and what older configurations called them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys of earlier configurations and the term that they meant. Theirs had an autoencoder, whose reconstruction had a
# weight of its own beside the prediction's; here there is nothing to reconstruct, so it is left out where both stand.
LEGACY = {"predMSE": "field_error", "predFieldError": "field_error", "spectrumError": "spectrum_error"}
LEGACY_RECONSTRUCTION = ("recMSE", "recFieldError")


@dataclass(frozen=True)
class LossParams:
    """Weights of the loss terms by name; 0 leaves a term out."""

    # Relative squared error, per frame and channel.
    field_error: float = 1.0
    # Squared log-spectral distance, per frame and channel.
    spectrum_error: float = 0.0
    # The older spectrum error: relative squared error of log spectra, which depends on units.
    relative_log: float = 0.0
    # Relative squared error of values and first derivatives (H1).
    sobolev: float = 0.0
    # Squared error of binned spectral power ratios.
    spectral_power: float = 0.0
    # Squared divergence of the velocity, relative to its gradients.
    divergence: float = 0.0

    def __post_init__(self) -> None:
        weights = vars(self)
        for name, weight in weights.items():
            if not weight >= 0:
                raise ValueError(f"the weight of {name} is {weight}, expected 0 or more")
        if not any(weights.values()):
            raise ValueError("all loss weights are 0, expected at least one above 0")


def migrate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the loss weights under the names they have now; says which older names it found."""
    found = {name: value for name, value in settings.items() if name in LEGACY or name in LEGACY_RECONSTRUCTION}
    if not found:
        return dict(settings)
    kept = {name: value for name, value in settings.items() if name not in found}
    new = {LEGACY[name]: value for name, value in found.items() if name in LEGACY}
    dropped = [name for name in found if name in LEGACY_RECONSTRUCTION]
    if dropped and "field_error" not in new:
        new["field_error"], dropped = found[dropped[0]], []
    note = f"{', '.join(found)}: older names; use {', '.join(new)} instead"
    if dropped:
        note += f" ({', '.join(dropped)} weighted a reconstruction that this stage does not have, and is left out)"
    warnings.warn(note, FutureWarning, stacklevel=2)  # one that Python shows to users
    return {**new, **kept}
