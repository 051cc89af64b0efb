"""Pretrained image networks whose features perceptual losses and LPIPS compare."""

from __future__ import annotations

import pickle
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nbhelpers.core.disk import file_sha256
from nbhelpers.core.errors import UserError
from nbhelpers.core.manifest import fetch, load_manifest

# Layers of torchvision's `features` after which activations are taken. vgg16: relu1_2, relu2_2, relu3_3, relu4_3
# (Johnson, Alahi, Fei-Fei 2016); squeeze and alex: the layers that LPIPS taps (Zhang et al. 2018); vgg19: relu5_4, the
# φ5,4 of SRGAN (Ledig et al. 2017).
TAPS = {"vgg16": (3, 8, 15, 22), "vgg19": (35,), "squeeze": (1, 4, 7, 9, 10, 11, 12), "alex": (1, 4, 7, 9, 11)}
# The last convolution before its ReLU, as ESRGAN taps vgg19 (Wang et al. 2018): deep features are sparse once they are
# rectified, and those that are 0 in both images teach nothing. vgg: conv5_3 and conv5_4. squeeze has no plain
# convolution there: it is the two expanding convolutions of its last Fire module, whose own ReLUs are taken out.
PRE_ACTIVATION = {"vgg16": (28,), "vgg19": (34,), "squeeze": (12,), "alex": (10,)}
IMAGENET_FILES = {
    "vgg16": "vgg16-397923af.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
    "alex": "alexnet-owt-7be5be79.pth",
}
# What pickle and torch raise between them on a file that is no state dict, or one with flipped bytes.
_TORN = (AssertionError, EOFError, LookupError, RuntimeError, TypeError, ValueError, struct.error)
_DAMAGED = (pickle.UnpicklingError, *_TORN)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Weights:
    """Where a network's weights came from, for the preflight line and the report."""

    net: str  # vgg16, vgg19, squeeze or alex
    source: str  # imagenet, random, or the name of the file given
    sha256: str | None  # of the weight file; None for random weights

    @property
    def is_random(self) -> bool:
        return self.source == "random"

    def __str__(self) -> str:
        return f"{self.net}, {self.source} weights" + (f", sha256 {self.sha256[:12]}…" if self.sha256 else "")


def load_features(
    net: str, source: str, *, last: int | None = None, before_activation: bool = False
) -> tuple[nn.Sequential, Weights]:
    """torchvision's ``features`` of ``net``, frozen, in float32 and eval mode.

    Args:
        net: "vgg16", "vgg19", "squeeze" or "alex".
        source: "imagenet" (fetched once, into torch's own cache of weights), the path of a state dict with
            torchvision's key names, or "random", which must be asked for.
        last: index of the last layer to keep (default: the last tap).
        before_activation: end at the layer of ``PRE_ACTIVATION`` whatever ``last`` is, with features not rectified.

    Raises:
        UserError: weights that cannot be fetched or read, or that belong to another network.
    """
    import torchvision

    build = {
        "vgg16": torchvision.models.vgg16,
        "vgg19": torchvision.models.vgg19,
        "squeeze": torchvision.models.squeezenet1_1,
        "alex": torchvision.models.alexnet,
    }[net]
    if source == "random":
        # A generator of its own: the features must not depend on what was drawn before, nor change what is drawn after.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            features = build(weights=None).features
        weights = Weights(net, "random", None)
    else:
        path = _imagenet_file(net) if source == "imagenet" else Path(source)
        features = build(weights=None).features
        features.load_state_dict(_feature_state(path, net, features))
        weights = Weights(net, "imagenet" if source == "imagenet" else path.name, file_sha256(path))
    if before_activation:
        last = PRE_ACTIVATION[net][-1]
    elif last is None:
        last = TAPS[net][-1]
    features = features[: last + 1].eval().requires_grad_(False)
    if before_activation and net == "squeeze":
        features[-1].expand1x1_activation = features[-1].expand3x3_activation = nn.Identity()
    for module in features.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # a tapped activation must not be overwritten by the next layer
    return features, weights


def _imagenet_file(net: str) -> Path:
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return fetch(load_manifest("perceptual-weights"), cache, only=[IMAGENET_FILES[net]])[0]
    except UserError as error:
        raise UserError(
            f"ImageNet weights of {net} are not here and cannot be fetched ({error}); without a network, give "
            "backbone_weights (or lpips_weights) the path of the file, or set it to 'random', which the report names."
        ) from error


def _feature_state(path: Path, net: str, features: nn.Module) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders about the pickle protocol of files that are none of its own
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"weights {path} cannot be read ({error}): check backbone_weights / lpips_weights.") from error
    except _DAMAGED as error:
        raise UserError(
            f"{path} is no state dict of plain tensors (damaged, or it holds code, which is never run): expected "
            f"torchvision weights of {net}."
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, expected a state dict of {net}.")
    state = {
        key.removeprefix("features."): value
        for key, value in state.items()
        if isinstance(key, str) and key.startswith("features.") and isinstance(value, Tensor)
    }
    wanted = {key: tuple(value.shape) for key, value in features.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if wanted != found:
        odd = sorted(set(wanted.items()) ^ set(found.items()))[0][0]
        raise UserError(
            f"{path} does not hold the features of {net} (they differ at 'features.{odd}'): give that net's weights."
        )
    return state


def tapped(features: nn.Sequential, taps: tuple[int, ...], images: Tensor) -> list[Tensor]:
    """Activations after the ``taps`` layers for ``(N, 3, H, W)`` images."""
    activations = []
    x = images
    for index, layer in enumerate(features):
        x = layer(x)
        if index in taps:
            activations.append(x)
    return activations
