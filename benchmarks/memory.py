"""Memory of a training step by stage and profile: what autograd keeps for the backward pass, in float32.

Counted by a hook on every tensor that is saved, weights aside, for one sample and times the batch size, for the update
of the last phase that keeps most; it does not depend on the machine, and half precision keeps about half of it. A GPU
needs the weights four times (themselves, their gradients, two moments of Adam), those of a feature network once, and
what the libraries take for themselves.

For SAR grounding also what each setting that a shortage of memory suggests changes, of a batch of the ``t4`` profile;
with TerraMind where terratorch is installed (``make terramind``), at random weights.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import record
from torch import nn

from nbhelpers.stages.neural_operator import commands as operator
from nbhelpers.stages.neural_operator.config import simulated
from nbhelpers.stages.neural_operator.simulate import simulate as simulate_flows
from nbhelpers.stages.perceptual_unet import commands as nowcast
from nbhelpers.stages.perceptual_unet.simulate import simulate as simulate_storms
from nbhelpers.stages.rainfall_cvae import commands as rainfall
from nbhelpers.stages.rainfall_cvae.config import SIMULATED as WEATHER
from nbhelpers.stages.rainfall_cvae.simulate import simulate as simulate_rain
from nbhelpers.stages.sar_grounding import commands as grounding
from nbhelpers.stages.sar_grounding.config import SIMULATED as SCENES
from nbhelpers.stages.sar_grounding.simulate import simulate as simulate_scenes
from nbhelpers.stages.super_resolution import commands as finer
from nbhelpers.stages.super_resolution.simulate import simulate as simulate_land

GB = 1e9
PROFILES = ("smoke", "quick", "t4", "full")
# Of SAR grounding: what is changed, by itself, when memory is short.
SMALLER: dict[str, dict[str, Any]] = {
    "as it is": {},
    "batch_size 4": {"batch_size": 4},
    "tile_size 96": {"tile_size": 96},
    "lpips_weight 0": {"lpips_weight": 0.0},
    "timesteps 5": {"timesteps": 5},
    "lora_rank 4, lora_alpha 8": {"lora_rank": 4, "lora_alpha": 8.0},
}


def saved_bytes(task: Any) -> dict[str, float]:
    """For a batch of one."""
    batch = next(iter(task.batches("train", 0)))
    kept: dict[int, int] = {}
    nets = [*task.modules.values(), *(part for part in vars(task).values() if isinstance(part, nn.Module))]
    fixed = {tensor.untyped_storage().data_ptr() for net in nets for tensor in (*net.parameters(), *net.buffers())}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes()  # tensors that share memory count once
        return tensor

    net = losses = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for update in task.updates(batch, task.phases[-1]):
            own = sum(kept.values())
            values = [term.fn(update.prediction) for term in update.terms]
            total = sum(kept.values())
            if total > net + losses:
                net, losses = own, total - own
            kept.clear()
            del values, update
    parameters = sum(p.numel() for module in task.modules.values() for p in module.parameters())
    trained = sum(p.numel() for module in task.modules.values() for p in module.parameters() if p.requires_grad)
    samples = next(value for value in vars(batch).values() if isinstance(value, torch.Tensor))
    return {
        "frames": samples.shape[1],  # or bands
        "side": samples.shape[-1],
        "parameters_millions": parameters / 1e6,
        "net_gb": net / GB,
        "losses_gb": losses / GB,
        "weights_and_adam_gb": (4 * (parameters - trained) + 16 * trained) / GB,
    }


def of_batch(stage: Any, config: Any, data: Path) -> dict[str, float]:
    one = saved_bytes(stage.Task(config.replace({"batch_size": 1}, source="here"), data))
    scale = {key: one[key] * config.batch_size for key in ("net_gb", "losses_gb")}
    return {"batch_size": config.batch_size, **one, **scale}


def by_profile(stage: Any, data: Callable[[str], Path], **settings: Any) -> dict[str, dict[str, float]]:
    configs = {profile: stage.Config.for_profile(profile, **settings) for profile in PROFILES}
    return {profile: of_batch(stage, config, data(profile)) for profile, config in configs.items()}


def by_setting(data: Path, **settings: Any) -> dict[str, dict[str, float]]:
    config = grounding.Config.for_profile("t4", lpips_weights="random", **settings)
    return {name: of_batch(grounding, config.replace(change, source="here"), data) for name, change in SMALLER.items()}


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    # Frames of SEVIR's own size, so that every profile's crop fits.
    simulate_storms(folder / "storms", n_events=4, size=384, n_frames=49)

    def flows(profile: str) -> Path:
        return simulate_flows(folder / profile, **simulated(profile) | {"n_simulations": 3})

    simulate_land(folder / "land", n_places=3, patches_per_place=1)

    def scenes(profile: str) -> Path:
        return simulate_scenes(
            folder / f"scenes-{profile}", n_scenes=8, size=SCENES[profile]["size"], seed=0, progress=False
        )

    def weather(profile: str) -> Path:
        size = WEATHER[profile] | {"n_years": 6}
        return simulate_rain(folder / f"rain-{size['factor']}-{len(size)}", **size, seed=0, progress=False)

    stages = {
        "perceptual-unet": by_profile(
            nowcast,
            lambda profile: folder / "storms",
            backbone_weights="random",
            lpips_weights="random",
            max_pct_missing=1.0,
        ),
        "rainfall-cvae": by_profile(rainfall, weather),
        "super-resolution": by_profile(
            finer, lambda profile: folder / "land", backbone_weights="random", lpips_weights="random"
        ),
        "neural-operator": by_profile(operator, flows),
        "sar-grounding": by_profile(grounding, scenes, lpips_weights="random"),
    }
    settings = {"compact": by_setting(folder / "scenes-t4")}
    if importlib.util.find_spec("terratorch") is not None:
        backbone: dict[str, Any] = {"model": "terramind-backbone", "terramind": "base", "pretrained": False}
        settings["terramind-backbone base"] = by_setting(folder / "scenes-t4", **backbone)
record(
    "memory",
    {
        "what": "kept for backward, float32, at the profile's batch size",
        "stages": stages,
        "sar-grounding by setting": settings,
    },
)
