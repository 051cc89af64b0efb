"""What time steps, rank and tile size amount to: passes through networks, trained parameters, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nbhelpers.core.disk import human_bytes
from nbhelpers.core.knobs import Knob
from nbhelpers.stages.sar_grounding.adapters import adapters_per_rank, matching
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.stages.sar_grounding.networks import targets
from nbhelpers.training.guards.adapters import AdapterSize, adapter_size, is_adapter

if TYPE_CHECKING:
    from nbhelpers.stages.sar_grounding.task import GroundingTask

SIZE_KNOBS = (
    Knob("timesteps", "time steps", 1, 50, start=10, whole=True),
    Knob("lora_rank", "LoRA rank", 1, 64, start=8, whole=True),
    Knob("batch_size", "batch size", 1, 32, start=8, whole=True),
)


def measure_size(task: GroundingTask) -> Callable[[Config], Mapping[str, str]]:
    """Measure one training step of one tile; returns a function that says what other settings would take.

    Memory is what autograd keeps for the backward pass, in float32 (mixed precision keeps about half of it), and four
    times the trained weights (themselves, their gradients, two moments of AdamW) and once the frozen ones. A training
    step makes one pass, whatever the time steps.
    """
    kept = _kept_bytes(task)
    generator = task.modules["generator"]
    there = adapter_size(generator)
    per_rank = _adapters_per_rank(generator, task.config)
    own = {name: p for name, p in generator.named_parameters() if not is_adapter(name)}
    total = sum(p.numel() for p in own.values())
    beside = sum(p.numel() for p in own.values() if p.requires_grad) if there.adapters else 0  # a decoder of its own

    def described(config: Config) -> dict[str, str]:
        adapters = per_rank * config.lora_rank
        size = AdapterSize(adapters, there.base)
        lora = config.base is not None or config.model != "compact"
        trained, whole = (adapters + beside, total + adapters) if lora else (total, total)
        crop = config.tile_size is not None and config.tile_size < min(task.tiles.size)
        pixels = config.tile_size**2 if config.tile_size is not None and crop else math.prod(task.tiles.size)
        memory = kept * pixels * config.batch_size + 4 * (4 * trained + (whole - trained))
        return {
            "a sample": _passes(config),
            "trained": f"{trained:,} of {whole:,} parameters ({trained / whole:.2%})",
            f"LoRA of rank {config.lora_rank}": f"{adapters:,} parameters, {size.share:.2%} of the network"
            + ("" if lora else " (if base is set: the weights of a run, frozen)"),
            "memory of a step": f"about {human_bytes(round(memory))}, with {config.batch_size} tiles",
        }

    return described


def _passes(config: Config) -> str:
    if config.model == "terramind-backbone":
        return "one pass through the network (it has no time steps)"
    if config.model == "terramind-tokens":
        return f"one pass through the network, {config.timesteps} through the tokenizer's decoder"
    return f"{config.timesteps} passes through the network"


def _adapters_per_rank(generator: nn.Module, config: Config) -> int:
    """Parameters of LoRA of rank 1 on the layers of a generator that match, or of the adapters that it has."""
    if there := adapter_size(generator).adapters:
        return there // config.lora_rank
    return sum(adapters_per_rank(generator.get_submodule(name)) for name in matching(generator, targets(config)))


def _kept_bytes(task: GroundingTask) -> float:
    """Bytes that autograd keeps for each pixel of a tile; activations are counted once."""
    with torch.random.fork_rng():  # a loader and the noise draw numbers
        batch = next(iter(task.batches("train", 0)))
        images = {name: image[:1] for name, image in vars(batch).items() if isinstance(image, Tensor)}
        one = replace(batch, tiles=batch.tiles[:1], **images)
        fixed = {
            p.untyped_storage().data_ptr() for net in (*task.modules.values(), task.lpips) for p in net.parameters()
        }
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in fixed:
                kept[storage.data_ptr()] = storage.nbytes()  # tensors that share memory count once
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            update = next(task.updates(one, task.phases[0]))
            values = [term.fn(update.prediction) for term in update.terms]
        total = sum(kept.values())
        del update, values
    return total / math.prod(one.truth.shape[-2:])
