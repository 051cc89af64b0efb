"""LoRA on any module: which layers get adapters, how much is trained, and files that refer to the base by its hash.

Hu et al. (2021), "LoRA: low-rank adaptation of large language models", arXiv:2106.09685.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.training.checkpoint import digest_of
from nbhelpers.training.guards.adapters import WithAdapters, adapter_size, is_adapter, trainable_share, unusual_share
from nbhelpers.training.run import writing

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)  # what an adapter is put on
ABOUT = "adapters"  # key of the metadata in an adapters file
NAMED = 6  # modules that an error names
SHOWN = 12  # characters of a hash in a message


@dataclass(frozen=True)
class Lora:
    """What stands in an adapters file beside the tensors."""

    targets: tuple[str, ...]  # dotted names of the layers that have an adapter
    rank: int
    alpha: float  # the change of a layer's weights is alpha / rank · B·A
    dropout: float  # of the adapters' input, in training
    base_sha256: str  # of names and values of all tensors of the base, as it was before it got adapters


class Adapted(WithAdapters):
    """A frozen base with LoRA on some of its layers: W + alpha/rank · B·A, where only A and B are trained.

    B begins at 0, so an untrained :class:`Adapted` computes exactly what its base does; A is drawn from torch's
    generator. ``state_dict`` holds A and B alone: a checkpoint refers to the base by its hash, which stands in
    ``extra_repr`` and so in the architecture hash of a run whose module this is (a module that contains one should
    repeat it in its own).

    Args:
        base: changed in place; call its other methods as ``adapted.base.method()``.
        targets: regular expression that the whole dotted name of a layer has to match. Only linear layers and
            convolutions (``ADAPTABLE``) get adapters; containers that match are passed over.
        rank: r, rows of A and columns of B.
        alpha: the change is multiplied by alpha / rank.
        dropout: share of the adapters' inputs that is dropped in training.

    Raises:
        UserError: nothing matches, the expression is none, the rank is below 1, or the base has adapters already.
    """

    def __init__(self, base: nn.Module, *, targets: str, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0):
        super().__init__()
        if rank < 1:
            raise UserError(f"LoRA was asked for with rank {rank}: the rank is at least 1, 8 is usual (--lora-rank).")
        names = matching(base, targets)
        self.about = Lora(names, rank, alpha, dropout, digest_of(base.state_dict()))
        self.base = _inject(base, self.about)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base makes of its arguments."""
        return self.base(*args, **kwargs)

    def extra_repr(self) -> str:
        """What no shape of a weight shows; part of the architecture hash."""
        return f"rank={self.about.rank}, alpha={self.about.alpha:g}, base={self.about.base_sha256}"

    @property
    def share(self) -> float:
        """Trained parameters as a share of all, those of the adapters included."""
        return adapter_size(self).share

    @property
    def expected(self) -> int:
        """Parameters that A and B have by the rank and the shapes of their layers."""
        layers: list[Any] = [self.base.get_submodule(name) for name in self.about.targets]
        return self.about.rank * sum(adapters_per_rank(layer.base_layer) for layer in layers)

    def adapters(self) -> dict[str, Tensor]:
        """The trained tensors A and B, by their names in ``state_dict``."""
        return {name: tensor for name, tensor in self.named_parameters() if is_adapter(name)}

    def remarks(self) -> list[str]:
        """How much the adapters are, and a second sentence where that is unusual."""
        size, n = adapter_size(self), len(self.about.targets)
        said = (
            f"LoRA of rank {self.about.rank} on {n} layers of a frozen network: {size.adapters:,} of {size.whole:,} "
            f"parameters, those of LoRA among them, are trained ({100 * size.share:.2f} %)."
        )
        unusual = unusual_share(size.share, self.about.rank)
        return [said] if unusual is None else [said, unusual]

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """A and B alone."""
        whole = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        for name in [name for name in whole if name.startswith(prefix) and not is_adapter(name)]:
            del whole[name]
        return whole

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # The base keeps what it has, and a strict load misses nothing.
        for name, tensor in super().state_dict(prefix=prefix).items():
            if not is_adapter(name):
                state_dict.setdefault(name, tensor)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def merged(self) -> nn.Module:
        """A copy of the base with the adapters' change added to its weights: equal output (to 1e-5), plain layers."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        whole = copy.deepcopy(self.base)
        for name, layer in list(whole.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(whole.get_submodule(parent), child, layer.get_base_layer())
        return whole

    def save(self, path: Path) -> None:
        """Write A and B, and how to put them back, to a safetensors file.

        Raises:
            UserError: the disk is full or the folder is gone.
        """
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.adapters().items()}
        with writing(path):
            try:
                save_file(tensors, path, metadata={ABOUT: json.dumps(dataclasses.asdict(self.about))})
            except SafetensorError as error:  # what it makes of a full disk
                raise OSError(str(error)) from error


def load_adapters(base: nn.Module, path: Path) -> Adapted:
    """``base``, changed in place, with the adapters of a file that :meth:`Adapted.save` wrote.

    Raises:
        UserError: no adapters file, or adapters of another base.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
            about = Lora(**json.loads((file.metadata() or {})[ABOUT]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no file of adapters ({error}): give one that this package has saved.") from error
    if (sha256 := digest_of(base.state_dict())) != about.base_sha256:
        raise UserError(
            f"{path} holds adapters of a base with sha256 {about.base_sha256[:SHOWN]}… and this "
            f"{type(base).__name__} has {sha256[:SHOWN]}…: load the base that they were trained on."
        )
    exact = "|".join(re.escape(name) for name in about.targets)
    adapted = Adapted(base, targets=exact, rank=about.rank, alpha=about.alpha, dropout=about.dropout)
    adapted.load_state_dict(tensors)
    return adapted


def remarks_of(generator: nn.Module) -> list[str]:
    """What the adapters within a generator are a share of, and what all that is trained is of the whole of it."""
    parts = [part for part in generator.modules() if isinstance(part, Adapted)]
    said = [remark for part in parts for remark in part.remarks()]
    if parts and (whole := _count(generator)) > sum(_count(part) for part in parts):
        trained = sum(p.numel() for p in generator.parameters() if p.requires_grad)
        said.append(
            f"With what stands beside that network, {trained:,} of {whole:,} parameters of the generator are trained "
            f"({100 * trainable_share(generator):.2f} %)."
        )
    return said


def expected_share(generator: nn.Module) -> float:
    """Parameters that are meant to be trained, as a share of all, whatever is frozen in fact.

    Adapters by their rank and the shapes of the layers that they are on, and the parts that a generator names in
    ``trained_in_full``; 1 without adapters.
    """
    parts = [part for part in generator.modules() if isinstance(part, Adapted)]
    if not parts:
        return 1.0
    adapters = sum(part.expected for part in parts)
    in_full = sum(_count(generator.get_submodule(name)) for name in getattr(generator, "trained_in_full", ()))
    base = sum(p.numel() for name, p in generator.named_parameters() if not is_adapter(name))
    return (adapters + in_full) / (adapters + base)


def adapters_per_rank(layer: nn.Module) -> int:
    """Parameters of LoRA of rank 1 on a linear layer or a convolution: a row of A and a column of B."""
    weight: Any = layer.weight
    return weight.shape[0] + weight[0].numel()


def matching(module: nn.Module, pattern: str) -> tuple[str, ...]:
    """Dotted names of the layers that can have an adapter and whose whole name matches ``pattern``.

    Raises:
        UserError: there is none, ``pattern`` is no regular expression, or the layers have adapters already.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UserError(f"LoRA targets {pattern!r} are no regular expression ({error}): mend it.") from error
    kind = type(module).__name__
    if any(is_adapter(name) for name, _ in module.named_parameters()):
        raise UserError(f"this {kind} has adapters already: merge them first, or make the base anew.")
    names = [name for name, layer in module.named_modules() if name and isinstance(layer, ADAPTABLE)]
    if not (found := tuple(name for name in names if wanted.fullmatch(name))):
        alike = difflib.get_close_matches(pattern, names, NAMED, cutoff=0.0)
        there = f"it has {len(names)}, e.g. {', '.join(alike)}" if names else "it has no such layers"
        raise UserError(
            f"LoRA targets {pattern!r} match the whole name of no linear layer or convolution of {kind} ({there}): "
            "give a regular expression of such names."
        )
    return found


def _inject(base: nn.Module, about: Lora) -> nn.Module:
    """``base`` with adapters, everything else frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    # An expression of whole names: peft takes the names in a list for endings, which other layers may have as well.
    exact = "|".join(re.escape(name) for name in about.targets)
    config = LoraConfig(
        target_modules=exact,
        r=about.rank,
        lora_alpha=about.alpha,  # type: ignore[arg-type]  # it is only divided by the rank
        lora_dropout=about.dropout,
    )
    base.requires_grad_(False)
    return inject_adapter_in_model(config, base)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
