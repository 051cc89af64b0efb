"""Memory of a training step by profile: what autograd keeps for the backward pass, in float32.

Counted by a hook on every tensor that is saved, weights aside, for one window and times the batch size; it does not
depend on the machine, and half precision keeps about half of it. A GPU needs the weights four times (themselves, their
gradients, two moments of Adam), those of the feature network once, and the libraries' own besides.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from side_by_side import record

from nbhelpers.stages.perceptual_unet.config import PROFILES, Config
from nbhelpers.stages.perceptual_unet.simulate import simulate
from nbhelpers.stages.perceptual_unet.task import NowcastTask

GB = 1e9


def saved_bytes(config: Config, folder: Path) -> dict[str, float]:
    task = NowcastTask(config, folder)
    batch = next(iter(task.batches("train", 0)))
    kept: dict[int, int] = {}
    nets = [task.modules["unet"], *([task.perceptual] if task.perceptual else [])]
    fixed = {tensor.untyped_storage().data_ptr() for net in nets for tensor in (*net.parameters(), *net.buffers())}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes()  # tensors that share memory count once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        (update,) = task.updates(batch, task.phases[0])
        net = sum(kept.values())
        losses = [term.fn(update.prediction) for term in update.terms]
    total = sum(kept.values())
    parameters = sum(p.numel() for p in task.modules["unet"].parameters())
    del losses, update
    return {
        "batch_size": config.batch_size,
        "frames": config.n_in + config.n_out,
        "side": batch.frames.shape[-1],
        "parameters_millions": parameters / 1e6,
        "net_gb": net / GB,
        "losses_gb": (total - net) / GB,
        "weights_and_adam_gb": 16 * parameters / GB,
    }


results = {}
with tempfile.TemporaryDirectory() as name:
    # Frames of SEVIR's own size, so that every profile's crop fits.
    simulate(Path(name), n_events=4, size=384, n_frames=49)
    for profile in PROFILES:
        config = Config.for_profile(profile, backbone_weights="random", lpips_weights="random", max_pct_missing=1.0)
        one = saved_bytes(config.replace({"batch_size": 1}, source="here"), Path(name))
        scale = {key: one[key] * config.batch_size for key in ("net_gb", "losses_gb")}
        results[profile] = {**one, **scale, "batch_size": config.batch_size}
record("memory", {"what": "kept for backward, float32, at the profile's batch size", "profiles": results})
