"""Distances between images in the features of pretrained networks: a loss term, and LPIPS as a metric.

Images are RGB, ``(N, 3, H, W)`` in [0, 1], at least 32 pixels each way: the networks pool smaller ones away.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nbhelpers.science.backbones import IMAGENET_MEAN, IMAGENET_STD, PRE_ACTIVATION, TAPS, load_features, tapped

LPIPS_LAST = {"vgg16": 29, "squeeze": 12, "alex": 11}  # last layer of torchvision's `features` that LPIPS looks at


class PerceptualLoss(nn.Module):
    """Distance of the features φ_l of a pretrained network, summed over its tapped layers.

    P = Σ_l mean (φ_l(ŷ) − φ_l(y))², or Σ_l mean |φ_l(ŷ) − φ_l(y)|, with both images normalised as ImageNet's, in
    float32 whatever the precision around it. Johnson, Alahi, Fei-Fei (2016), arXiv:1603.08155; absolute, and before the
    activation of vgg19's last convolution: ESRGAN, Wang et al. (2018), arXiv:1809.00219.

    Args:
        net, source: as for :func:`~nbhelpers.science.backbones.load_features`, and its errors.
        before_activation: compare what enters the last ReLU (``PRE_ACTIVATION``) instead of the layers in ``TAPS``.
        absolute: the absolute distance of features instead of the squared one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: str, source: str, *, before_activation: bool = False, absolute: bool = False):
        super().__init__()
        self.features, self.weights = load_features(net, source, before_activation=before_activation)
        self.taps = (PRE_ACTIVATION if before_activation else TAPS)[net]
        self.absolute = absolute
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def activations(self, images: Tensor) -> list[Tensor]:
        """Features of ``(N, 3, H, W)`` images after each tapped layer."""
        return tapped(self.features, self.taps, (images.float() - self.mean) / self.std)

    def against(self, target: Tensor, valid: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The loss as a function of the prediction; the target's features are computed once, without gradient.

        Args:
            target: ``(N, 3, H, W)`` in [0, 1].
            valid: mask that broadcasts to that shape; missing pixels are made equal in both images.
        """
        with torch.no_grad(), torch.autocast(target.device.type, enabled=False):
            truth = self.activations(target)

        def loss(prediction: Tensor) -> Tensor:
            if valid is not None:
                prediction = torch.where(valid, prediction, target)
            with torch.autocast(target.device.type, enabled=False):
                differences = [a - b for a, b in zip(self.activations(prediction), truth, strict=True)]
            return torch.stack([(d.abs() if self.absolute else d.square()).mean() for d in differences]).sum()

        return loss


class Lpips(nn.Module):
    """LPIPS of the ``lpips`` package (Zhang et al. 2018), with the backbone's weights from where one says.

    The linear heads are the package's own (version 0.1). With weights other than torchvision's ImageNet ones the
    distance is "LPIPS-style", and :attr:`name` says so.

    Args:
        net: "vgg16", "squeeze" or "alex"; there are no heads for vgg19.
        source: as for :func:`~nbhelpers.science.backbones.load_features`, and its errors.
    """

    def __init__(self, net: str, source: str):
        super().__init__()
        import lpips

        with warnings.catch_warnings():
            # lpips asks torchvision for weights by a deprecated keyword and loads its heads by a deprecated default.
            warnings.simplefilter("ignore")
            package_net = {"vgg16": "vgg", "squeeze": "squeeze", "alex": "alex"}[net]
            self.distance = lpips.LPIPS(net=package_net, pnet_rand=True, verbose=False)
        features, self.weights = load_features(net, source, last=LPIPS_LAST[net])
        # The package cuts `features` into slices that keep torchvision's layer numbers as names.
        own = features.state_dict()
        for name, tensor in self.distance.net.state_dict().items():
            tensor.copy_(own[name.partition(".")[2]])
        self.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        """What the number is, for report and figures."""
        if self.weights.is_random:
            return f"feature distance of a random {self.weights.net} (not LPIPS)"
        if self.weights.source == "imagenet":
            return f"LPIPS ({self.weights.net})"
        return f"LPIPS-style ({self.weights})"

    @property
    def key(self) -> str:
        """Its metric key: what has random weights must not be called LPIPS."""
        return "feature_distance_random" if self.weights.is_random else "lpips"

    @torch.no_grad()
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``(N,)`` distances of ``(N, 3, H, W)`` images in [0, 1]."""
        # Image by image: the features of many whole images overflow every cache, and take four times as long.
        pairs = zip(*((2 * image.float() - 1).split(1) for image in (prediction, target)), strict=True)
        return torch.cat([self.distance(*pair).flatten() for pair in pairs])
