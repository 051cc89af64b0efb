"""G10: tensors that should learn and cannot, and tensors that should stand still and do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Rehearsal, Step

# Not 1: LoRA's A has gradient 0 while B is 0, and a zero-initialised head leaves all before it at 0 in step 1.
INFORMATIVE_STEPS = 3
PATIENCE = 50  # steps in which that many must have had a gradient; dry batches may have none
NAMED = 5  # tensors that a finding names
CHUNK = 2**24  # elements whose fingerprint is taken at once: a copy of a large embedding would not fit


@dataclass
class DeadGradients(Guard):
    """Watches each optimizer of each phase until its third step with a gradient, and frozen tensors to the end.

    A step counts that was not skipped, had a learning rate above 0 and data that vary (over a dry batch, the layers
    that see only zeros have no gradient and are well), and gave some tensor a gradient.
    """

    name = "dead_gradients"

    steps: dict[str, int] = field(default_factory=dict)  # by phase and optimizer: those not skipped
    informative: dict[str, int] = field(default_factory=dict)  # those of them with a gradient
    alive: dict[str, list[str]] = field(default_factory=dict)  # tensors that have had a non-zero gradient
    due: dict[str, list[str]] = field(default_factory=dict)  # tensors that a step must have changed
    rates: dict[str, dict[str, float]] = field(default_factory=dict)  # learning rate of each tensor when last seen
    judged: list[str] = field(default_factory=list)  # phases and optimizers that are done
    fingerprints: dict[str, list[int]] = field(default_factory=dict)  # of the tensors as they were before training
    frozen: list[str] = field(default_factory=list)  # tensors that were frozen then

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        tensors = _tensors(rehearsal.modules)
        optimizers = {
            f"{phase.name}/{name}": _rates(optimizer, tensors)
            for phase in rehearsal.task.phases
            for name, optimizer in phase.optimizers.items()
        }
        self.rates.update({key: rates for key, rates in optimizers.items() if key not in self.judged})
        if not self.fingerprints and not self.judged:  # else the run is taken up again
            frozen = _frozen(rehearsal.modules, tensors)
            self.fingerprints = {name: fingerprint(tensor) for name, tensor in (tensors | frozen).items()}
            self.frozen = list(frozen)
        elif rehearsal.begins:  # what was judged in the phase before is judged again
            for optimizer in rehearsal.phase.optimizers:
                for name in optimizers[f"{rehearsal.phase.name}/{optimizer}"]:
                    self.fingerprints.setdefault(name, fingerprint(tensors[name]))
        for update, _ in rehearsal.updates:
            places = [update.prediction if term.at is None else term.at for term in update.terms]
            if not any(place.requires_grad for place in places):
                yield self.stop(
                    rehearsal.step,
                    "what the loss is taken of has no gradient, so it trains nothing",
                    evidence=f"optimizer {update.optimizer}: 0 of {len(places)} loss terms reach a tensor of the model",
                    cure="Train on an output that is computed with gradients: not a sampled, rounded or detached one, "
                    "none from within no_grad, and of a model that is not frozen as a whole.",
                )
        trainable = [name for name, tensor in tensors.items() if tensor.requires_grad]
        owned = {name for rates in optimizers.values() for name in rates}
        if orphans := [name for name in trainable if name not in owned]:
            yield self.stop(
                rehearsal.step,
                "trainable tensors belong to no optimizer and will stay as they are",
                evidence=_named(orphans, len(trainable)),
                cure="Hand them to an optimizer, or freeze them with requires_grad_(False).",
            )

    def on_step(self, step: Step) -> Iterator[Finding]:
        key = f"{step.phase.name}/{step.update.optimizer}"
        if key in self.judged:
            return
        tensors = _tensors(step.modules)
        earlier, self.rates[key] = (
            self.rates.get(key, {}),
            _rates(step.phase.optimizers[step.update.optimizer], tensors),
        )
        # Schedules move on around a step: the smaller of two rates is not above the one that it was taken with.
        rates = {
            name: min(rate, earlier.get(name, 0.0))
            for name, rate in self.rates[key].items()
            if tensors[name].requires_grad
        }
        if step.skipped is not None or not any(rates.values()) or not _varies(step):
            return
        self.steps[key] = self.steps.get(key, 0) + 1
        self._look(key, {name: tensors[name] for name in rates}, rates)
        informative = self.informative.get(key, 0)
        if informative == INFORMATIVE_STEPS:
            yield from self._judge(key, step.step, {name: tensors[name] for name in rates})
            yield from self._thawed(step.step, step.modules)
        elif (taken := self.steps[key]) >= PATIENCE:
            self._close(key)
            yield self.stop(
                step.step,
                "the loss gives the model no gradient",
                evidence=f"optimizer {step.update.optimizer}: {informative} of {taken} steps had one",
                cure="Look for a detach, a no_grad, a rounding or a clamp between the model and the loss.",
            )

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        yield from self._thawed(epoch.step, epoch.modules)

    def _look(self, key: str, tensors: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        """Take note of the tensors that have a gradient, and of those that this step must have changed."""
        gradients = _largest({name: t.grad for name, t in tensors.items() if t.grad is not None})
        gradients = {name: size for name, size in gradients.items() if size > 0}
        if not gradients:
            return
        self.informative[key] = self.informative.get(key, 0) + 1
        values = _largest({name: tensors[name] for name in gradients})
        # Adam steps by about the rate and SGD by rate times gradient; what float cannot resolve changes nothing.
        due = [
            name
            for name, size in gradients.items()
            if rates[name] * min(1.0, size) > torch.finfo(tensors[name].dtype).eps * values[name]
        ]
        self.alive[key] = sorted({*self.alive.get(key, ()), *gradients})
        self.due[key] = sorted({*self.due.get(key, ()), *due})

    def _judge(self, key: str, step: int, tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
        alive, due = self.alive[key], self.due[key]
        self._close(key)
        if dead := [name for name in tensors if name not in alive]:
            yield self.stop(
                step,
                "trainable tensors get no gradient and will stay as they are",
                evidence=f"{_named(dead, len(tensors))} in {INFORMATIVE_STEPS} steps",
                cure="Connect them to the loss, or freeze them with requires_grad_(False).",
            )
        # A tensor that was judged in an earlier phase has no fingerprint from before this one.
        starts = {name: self.fingerprints.pop(name) for name in tensors if name in self.fingerprints}
        if stuck := [name for name in due if name in starts and fingerprint(tensors[name]) == starts[name]]:
            yield self.stop(
                step,
                "tensors have gradients and a learning rate, and their values have not changed",
                evidence=f"{_named(stuck, len(tensors))} after {INFORMATIVE_STEPS} steps",
                cure="Make the optimizer from the parameters of the very model that is trained, and let nothing write "
                "the old values back.",
            )

    def _close(self, key: str) -> None:
        self.judged.append(key)
        for memory in (self.steps, self.informative, self.alive, self.due, self.rates):
            memory.pop(key, None)

    def _thawed(self, step: int, modules: Mapping[str, nn.Module]) -> Iterator[Finding]:
        frozen = _frozen(modules, _tensors(modules))
        still = [name for name in self.frozen if name in frozen]
        if moved := [name for name in still if fingerprint(frozen[name]) != self.fingerprints[name]]:
            yield self.stop(
                step,
                "frozen tensors have changed",
                evidence=_named(moved, len(still)),
                cure="Leave them out of the optimizer, keep frozen batch normalisation in eval mode, and let nothing "
                "else write to them.",
            )


def fingerprint(tensor: Tensor) -> list[int]:
    """Sum and sum of squares of the bits, read as whole numbers modulo 2^64.

    Unlike a sum of floats it is exact: equal values give equal numbers on every device, with any number of threads
    and in any memory layout, and a change of one bit is seen.
    """
    values = tensor.detach()
    values = torch.view_as_real(values) if values.is_complex() else values
    bits = values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
    total = torch.zeros(2, dtype=torch.int64, device=bits.device)
    for part in bits.reshape(-1).split(CHUNK):
        whole = part.long()
        total += torch.stack([whole.sum(), whole.square().sum()])
    return total.tolist()


def _varies(step: Step) -> bool:
    """Whether no field of the step's last batch is constant."""
    return all(bool((raw != raw.flatten()[0]).any()) for raw in step.task.look(step.batch).raw.values())


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Every parameter, under one name."""
    named: dict[str, Tensor] = {}
    for key, module in modules.items():
        named.update({f"{key}.{name}": tensor for name, tensor in module.named_parameters() if tensor.numel()})
    names = {id(tensor): name for name, tensor in reversed(named.items())}  # modules may share some
    return {name: tensor for name, tensor in named.items() if names[id(tensor)] == name}


def _frozen(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that are not trained, and the buffers of layers that have such ones only."""
    frozen = {name: tensor for name, tensor in tensors.items() if not tensor.requires_grad}
    for key, module in modules.items():
        for path, layer in module.named_modules():
            own = list(layer.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                prefix = f"{key}.{path}." if path else f"{key}."
                frozen |= {f"{prefix}{name}": t for name, t in layer.named_buffers(recurse=False) if t.numel()}
    return frozen


def _rates(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Learning rate of each tensor that the optimizer owns."""
    rates = {id(tensor): float(group["lr"]) for group in optimizer.param_groups for tensor in group["params"]}
    return {name: rates[id(tensor)] for name, tensor in tensors.items() if id(tensor) in rates}


def _largest(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest magnitude in each tensor, fetched from the device at once."""
    if not tensors:
        return {}
    sizes = torch.stack([tensor.detach().abs().max().float() for tensor in tensors.values()])
    return dict(zip(tensors, sizes.tolist(), strict=True))


def _named(names: Sequence[str], total: int) -> str:
    return f"{len(names)} of {total} tensors: {', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''}"
