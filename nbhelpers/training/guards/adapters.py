"""G10 for adapters: a base that is trained with them, another share than was declared, and adapters without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nbhelpers.training.guards.guard import Finding, Guard, Rehearsal, Step

USUAL_RANK, USUAL_SHARE = 8, (0.005, 0.05)  # what LoRA of that rank trains of a network, on attention and MLP
TOLERANCE = 1e-9  # relative difference between the share that is trained and the declared one: both are counted
EFFECT_STEPS = 10  # steps after which every adapter has changed the weights that it belongs to
NAMED = 5  # layers that a finding names


@dataclass
class Adapters(Guard):
    """Looks at what is trained before a phase, and at its tenth step at what low-rank adapters have come to.

    Whether each of their tensors gets a gradient, and whether what is frozen stays as it is, ``dead_gradients`` finds.
    """

    name = "adapters"

    taken: dict[str, int] = field(default_factory=dict)  # by phase: steps that changed something
    ends: dict[str, int] = field(default_factory=dict)  # the last step of each phase
    judged: list[str] = field(default_factory=list)  # phases that are done

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        phase, step = rehearsal.phase, rehearsal.step
        self.ends[phase.name] = rehearsal.began_step + phase.epochs * rehearsal.steps_per_epoch
        layers = adapted_layers(rehearsal.modules)
        trained = [name for name, layer in layers.items() if _trains(layer.base_layer)]
        if trained:
            yield self.stop(
                step,
                "the layers under adapters are trained as well, so they are no frozen base",
                evidence=_named(trained, len(layers)),
                cure="Freeze the base with requires_grad_(False) after the adapters are on it, and before the "
                "optimizer is made.",
            )
        for name, declared in phase.trainable.items():
            share = trainable_share(rehearsal.modules[name])
            if abs(share - declared) > TOLERANCE * declared:
                yield self.stop(
                    step,
                    f"another share of the {name}'s parameters is trained than was declared",
                    evidence=f"{100 * share:.3g} % instead of {100 * declared:.3g} %",
                    cure="Look for a requires_grad_ after the adapters were put on or the base was frozen, or declare "
                    "what is meant to be trained.",
                )
        for name, module in rehearsal.modules.items():
            ranks = {layer.r[key] for layer in adapted_layers({name: module}).values() for key in layer.lora_A}
            if len(ranks) != 1:
                continue
            share = adapter_size(module).share
            if (unusual := unusual_share(share, *ranks)) is not None:
                yield self.warn(
                    step,
                    f"the adapters of the {name} are an unusual share of the network that they are on",
                    evidence=f"{100 * share:.2f} % at rank {ranks.pop()}",
                    cure=unusual,
                )

    def on_step(self, step: Step) -> Iterator[Finding]:
        phase = step.phase
        if phase.name in self.judged or step.skipped is not None:
            return
        layers = {
            name: layer for name, layer in adapted_layers(step.modules).items() if any(map(_trains, _parts(layer)))
        }
        groups = [group for optimizer in phase.optimizers.values() for group in optimizer.param_groups]
        moving = {id(p) for group in groups if group["lr"] > 0 for p in group["params"]}
        if not any(id(p) in moving for layer in layers.values() for part in _parts(layer) for p in part.parameters()):
            return
        self.taken[phase.name] = self.taken.get(phase.name, 0) + 1
        if self.taken[phase.name] < EFFECT_STEPS and step.step != self.ends.get(phase.name):  # a short run has fewer
            return
        self.judged.append(phase.name)
        taken = self.taken.pop(phase.name)
        if inert := [name for name, layer in layers.items() if not change_of(layer) > 0]:
            yield self.stop(
                step.step,
                "adapters change nothing: their product B·A is 0",
                evidence=f"{_named(inert, len(layers))} after {taken} steps",
                cure="Let nothing set A and B back, see that the optimizer has both of them, and that the layers are "
                "used in the forward pass.",
            )


class WithAdapters(nn.Module):
    """A frozen network and low-rank adapters on it, and nothing else: what the adapters are a share of."""


@dataclass(frozen=True)
class AdapterSize:
    """Numbers of parameters."""

    adapters: int
    base: int  # of the network that they are on

    @property
    def whole(self) -> int:
        """Both together."""
        return self.adapters + self.base

    @property
    def share(self) -> float:
        """The adapters, as a share of both."""
        return self.adapters / self.whole


def adapter_size(module: nn.Module) -> AdapterSize:
    """What the adapters within a module and their bases come to.

    A part beside them, like a decoder or a tokenizer, is no base. Where no :class:`WithAdapters` says what is one, the
    whole module is.
    """
    parts: list[nn.Module] = [part for part in module.modules() if isinstance(part, WithAdapters)]
    sizes = {True: 0, False: 0}
    for part in parts or [module]:
        for name, parameter in part.named_parameters():
            sizes[is_adapter(name)] += parameter.numel()
    return AdapterSize(sizes[True], sizes[False])


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an A or a B."""
    return ".lora_A." in name or ".lora_B." in name


def adapted_layers(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The layers that low-rank adapters of peft stand on, by name."""
    return {
        f"{key}.{name}": layer
        for key, module in modules.items()
        for name, layer in module.named_modules()
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer") and len(layer.lora_A)
    }


def change_of(layer: Any) -> float:
    """‖ΔW‖/‖W‖ (Frobenius) of an adapted layer, ΔW = scale · B·A summed over its adapters."""
    weight: Tensor = layer.base_layer.weight.detach()
    squared = 0.0
    for key in layer.lora_A:
        # ‖B·A‖² = Σ (BᵀB)∘(AAᵀ), with matrices of rank × rank instead of ΔW itself.
        a = layer.lora_A[key].weight.detach().float().flatten(1)
        b = layer.lora_B[key].weight.detach().float().flatten(1)
        squared += float(layer.scaling[key] ** 2 * ((b.T @ b) * (a @ a.T)).sum())
    return max(squared, 0.0) ** 0.5 / float(weight.float().norm())


def trainable_share(module: nn.Module) -> float:
    """Parameters that are trained, as a share of all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes)


def unusual_share(share: float, rank: int) -> str | None:
    """What to make of adapters that are more or less of a network than is usual; None where they are not.

    Only rank 8 has a usual share, and it is that of :func:`adapter_size`.
    """
    low, high = USUAL_SHARE
    if rank != USUAL_RANK or low <= share <= high:
        return None
    why = "too few or too small layers" if share < low else "a small network, or more layers than attention and MLP"
    return (
        f"At rank {rank}, {100 * low:g}–{100 * high:g} % of a network are usual and {100 * share:.2f} % are trained: "
        f"look at the names that the LoRA targets match ({why})."
    )


def _parts(layer: Any) -> tuple[nn.Module, nn.Module]:
    return layer.lora_A, layer.lora_B


def _trains(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _named(names: list[str], total: int) -> str:
    return f"{len(names)} of {total} layers: {', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''}"
