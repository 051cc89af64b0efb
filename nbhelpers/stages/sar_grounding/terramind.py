"""TerraMind through terratorch: its networks, and the units, bands and sizes that they take.

Jakubik et al. (2025), "TerraMind: large-scale generative multimodality for Earth observation", arXiv:2504.11171. This
file alone imports terratorch, and only when a network is asked for, because that takes 15 to 45 seconds.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.science.sentinel2 import BANDS as L2A
from nbhelpers.science.sentinel2 import DN_PER_REFLECTANCE as DN
from nbhelpers.stages.sar_grounding.layout import BANDS
from nbhelpers.stages.sar_grounding.terramind_install import missing

Size = Literal["tiny", "small", "base", "large"]

PATCH = 16  # side in pixels of the square that becomes one token
SQUARE = 32  # of which sides are multiples where tokens are decoded: squares of 4 pixels, halved in number three times
SAR, OPTICAL = "S1GRD", "S2L2A"  # the library's names for what goes in and comes out
PLACES = tuple(L2A.index(f"B0{band[1:]}") for band in BANDS)  # of B2, B3, B4 and B8 among the 12 bands
BAND_NAMES = ("BLUE", "GREEN", "RED", "NIR_BROAD")  # what the library calls those four

# What the weights of version 1 were trained on: VV and VH in dB, the 12 bands in DN.
S1_MEAN, S1_STD = (-12.599, -20.293), (5.195, 5.890)
S2_MEAN = (
    *(1390.458, 1503.317, 1718.197, 1853.910, 2199.100, 2779.975),
    *(2987.011, 3083.234, 3132.220, 3162.988, 2424.884, 1857.648),
)
S2_STD = (
    *(2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926),
    *(1820.257, 1871.918, 1753.829, 1797.379, 1434.261, 1334.311),
)

EMBEDDING = "encoder_embeddings.untok_sen2l2a@224.proj.weight"  # of which an encoder takes the bands it is given
SEED = 0  # of the weights that are drawn where none are loaded, so that adapters find their base again by its hash


def build_encoder(size: Size, *, pretrained: bool) -> nn.Module:
    """TerraMind's encoder for SAR and four optical bands.

    It takes a dictionary of :data:`SAR` ``(B, 2, H, W)`` and :data:`OPTICAL` ``(B, 4, H, W)``, both standardised, with
    sides that are multiples of :data:`PATCH`, and gives a list with one dictionary of tokens
    ``(B, H/16 · W/16, dim)`` for each of its layers, keyed alike. It changes the dictionary it is given: hand it one
    that nobody else holds.

    Args:
        size: of the network.
        pretrained: load weights from the Hugging Face hub, else draw them (always the same).

    Raises:
        UserError: terratorch is not installed, or there are no weights to be had, or they leave some tensor untrained.
    """
    return _build(
        "BACKBONE_REGISTRY",
        f"terramind_v1_{size}",
        pretrained,
        modalities=[SAR, OPTICAL],
        bands={OPTICAL: list(BAND_NAMES)},
        merge_method="dict",
    )


def build_generator(size: Size, *, pretrained: bool) -> nn.Module:
    """TerraMind's encoder, token decoder and S2L2A tokenizer; arguments and errors as of :func:`build_encoder`."""
    return _build(
        "FULL_MODEL_REGISTRY",
        f"terramind_v1_{size}_generate",
        pretrained,
        modalities=[SAR, OPTICAL],
        output_modalities=[OPTICAL],
    )


class Units(nn.Module):
    """dB and reflectance to what TerraMind was trained on, and back; what was not measured becomes the mean, 0."""

    mean_s1: Tensor
    std_s1: Tensor
    mean_s2: Tensor
    std_s2: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("s1", (S1_MEAN, S1_STD)), ("s2", (S2_MEAN, S2_STD))):
            for kind, numbers in zip(("mean", "std"), values, strict=True):
                self.register_buffer(f"{kind}_{name}", torch.tensor(numbers)[:, None, None], persistent=False)

    def sar(self, s1: Tensor) -> Tensor:
        """``(B, 2, H, W)`` dB → standardised."""
        return _filled((s1.float() - self.mean_s1) / self.std_s1)

    def optical(self, reflectance: Tensor) -> Tensor:
        """``(B, 4, H, W)`` reflectance of B2, B3, B4, B8 → standardised."""
        places = list(PLACES)
        return _filled((DN * reflectance.float() - self.mean_s2[places]) / self.std_s2[places])

    @property
    def mean_reflectance(self) -> Tensor:
        """``(4, 1, 1)`` of B2, B3, B4, B8: what counts as the mean, and so for what was not measured."""
        return self.mean_s2[list(PLACES)] / DN

    def l2a(self, numbers: Tensor) -> Tensor:
        """``(B, 12, H, W)`` DN → standardised."""
        return _filled((numbers.float() - self.mean_s2) / self.std_s2)

    def among_l2a(self, standard: Tensor) -> Tensor:
        """Four standardised bands ``(B, 4, H, W)`` → 12 with 0, the mean, in place of the others.

        The patch embedding has no bias, so this is exactly the embedding of the four bands alone.
        """
        whole = standard.new_zeros(len(standard), len(L2A), *standard.shape[-2:])
        whole[:, list(PLACES)] = standard
        return whole

    def reflectance(self, standard: Tensor) -> Tensor:
        """``(B, 12, H, W)`` standardised → ``(B, 4, H, W)`` reflectance of B2, B3, B4, B8."""
        places = list(PLACES)
        return (standard.float()[:, places] * self.std_s2[places] + self.mean_s2[places]) / DN


class Frozen(nn.Module):
    """A network that is neither trained nor saved: it stays in evaluation mode, and ``state_dict`` leaves it out."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Always evaluation mode."""
        self.training = mode
        return self

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Nothing."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # The network keeps what it has, and a strict load misses nothing.
        for name, tensor in self.network.state_dict(prefix=f"{prefix}network.").items():
            state_dict.setdefault(name, tensor)
        super()._load_from_state_dict(state_dict, prefix, *args)


def pad_to_patches(images: Tensor, *, square: bool = False) -> Tensor:
    """``(B, C, H, W)`` with its edge repeated at the bottom and right until the sides are multiples of 16.

    Args:
        square: until they are equal as well, as the library's token positions have to be, and multiples of 32, as the
            tokenizer's decoder needs.
    """
    height, width = images.shape[-2:]
    rows, columns = (side + -side % (SQUARE if square else PATCH) for side in (height, width))
    if square:
        rows = columns = max(rows, columns)
    return F.pad(images, (0, columns - width, 0, rows - height), mode="replicate")


def _build(registry: str, name: str, pretrained: bool, **options: Any) -> nn.Module:
    try:
        import terratorch.registry
    except ImportError as error:
        raise missing(error) from error
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network: nn.Module = getattr(terratorch.registry, registry).build(name, pretrained=pretrained, **options)
        untrained = _untrained(network, name) if pretrained else []
    except OSError as error:
        raise UserError(
            f"the weights of {name} are not on this machine and could not be fetched from the Hugging Face hub "
            f"({str(error).splitlines()[0]}): connect it, put the hub's files in $HF_HOME, or ask for random weights "
            "(--no-pretrained)."
        ) from error
    if untrained:
        raise UserError(
            f"the weights of {name} leave {len(untrained)} of its {len(list(network.parameters()))} tensors untrained, "
            f"e.g. {untrained[0]}: install the version of terratorch that they belong to."
        )
    return network


def _untrained(network: nn.Module, name: str) -> list[str]:
    """Names of parameters that are not what the file of weights says; the library leaves them as they were drawn.

    The library loads its tokenizers strictly, so they are not looked at.
    """
    from terratorch.models.backbones.terramind.model import terramind_register as library

    try:
        about = library.pretrained_weights[name.removesuffix("_generate")]
        path = library.hf_hub_download(repo_id=about["hf_hub_id"], filename=about["hf_hub_filename"])
    except (AttributeError, KeyError) as error:
        raise UserError(
            f"this version of terratorch does not say where the weights of {name} come from ({error}), so whether they "
            "are all there cannot be seen: install terratorch 1.2.13."
        ) from error
    file = torch.load(path, map_location="cpu", weights_only=True)
    found = []
    for key, ours in network.named_parameters():
        theirs = file.get(key.removeprefix("sampler.model."))
        if theirs is not None and key == EMBEDDING:  # (length of a token, pixels of a square × bands)
            theirs = theirs.unflatten(1, (-1, len(L2A)))[..., list(PLACES)].flatten(1)
        if not key.startswith("tokenizer.") and (theirs is None or not torch.equal(theirs.to(ours.dtype), ours)):
            found.append(key)
    return found


def _filled(standard: Tensor) -> Tensor:
    return torch.where(standard.isnan(), torch.zeros((), device=standard.device), standard)
