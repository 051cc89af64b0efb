"""A training step of FNO2d beside one of the neuraloperator package's FNO; the other operators beside them.

Forward, backward and Adam, float32, on 64 x 64 points. The two FNOs have the same blocks and number of parameters;
theirs takes its activation twice between blocks (tests/test_operators.py), so it is also timed as if it took one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from neuralop.models import FNO
from side_by_side import record, side_by_side
from torch import Tensor, nn

from nbhelpers.stages.neural_operator.factorised import FFNO2d
from nbhelpers.stages.neural_operator.fno import FNO2d
from nbhelpers.stages.neural_operator.unet import UNet2d

torch.set_num_threads(1)
SETTINGS = {
    "quick": {"batch": 8, "channels_in": 2, "channels_out": 2, "width": 24, "modes": 16},
    "fno_benchmark": {"batch": 20, "channels_in": 10, "channels_out": 1, "width": 32, "modes": 12},
}


def once(x: Tensor) -> Tensor:
    """GELU that leaves its own results alone."""
    if getattr(x, "activated", False):
        return x
    out = F.gelu(x)
    out.activated = True  # type: ignore[attr-defined]
    return out


def step_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()

    return step


results = {}
for name, setting in SETTINGS.items():
    torch.manual_seed(0)
    channels = {key: setting[key] for key in ("channels_in", "channels_out", "width")}
    modes = setting["modes"]
    theirs = {
        "n_modes": (2 * modes, 2 * modes - 1),
        "in_channels": setting["channels_in"],
        "out_channels": setting["channels_out"],
        "hidden_channels": setting["width"],
        "use_channel_mlp": False,
    }
    models = {
        "ours": FNO2d(**channels, modes=modes),
        "neuralop": FNO(**theirs),
        "neuralop_one_activation": FNO(**theirs, non_linearity=once),
        "factorised": FFNO2d(**channels, modes=modes),
        "unet": UNet2d(**channels),
    }
    x = torch.randn(setting["batch"], setting["channels_in"], 64, 64)
    y = torch.randn(setting["batch"], setting["channels_out"], 64, 64)
    seconds = side_by_side({key: step_of(model, x, y) for key, model in models.items()}, rounds=9)
    results[name] = {
        "setting": setting,
        "parameters": {
            key: sum(p.numel() * (1 + p.is_complex()) for p in model.parameters()) for key, model in models.items()
        },
        "seconds": seconds,
        "times_neuralop": {key: seconds[key] / seconds["neuralop"] for key in seconds},
        "times_neuralop_one_activation": seconds["ours"] / seconds["neuralop_one_activation"],
    }
record("fno_step", {"what": "one training step at 64 x 64, float32, processor", **results})
