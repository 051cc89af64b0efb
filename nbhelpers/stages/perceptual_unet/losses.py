"""The terms of ``L = MSE + μ·MAE + (λ/S)·P``, and LPIPS as the metric that none of them is."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nbhelpers.stages.perceptual_unet.backbones import IMAGENET_MEAN, IMAGENET_STD, TAPS, load_features, tapped

LPIPS_LAST = {"vgg16": 29, "squeeze": 12, "alex": 11}  # last layer of torchvision's `features` that LPIPS looks at


def pixel_weights(valid: Tensor, target: Tensor, *, emphasis: float = 0.0, even_leads: bool = False) -> Tensor:
    """Weights ``(B, T, H, W)`` of the pixel errors: 0 where nothing was measured, else (1 + emphasis·y)/k.

    The mean squared error is smallest for the mean of all that may come; where strong rain is possible, that is weaker
    rain, and forecasts of strong rain become rare. Weights that grow with what came make up for it (Shi et al. 2017,
    arXiv:1706.03458, whose balanced errors have them in steps).

    Args:
        valid: mask ``(B, T, H, W)``.
        target: what came, of the same shape, in model units.
        emphasis: how much more than a dry pixel one at full scale counts.
        even_leads: divide by the number k = 1 … T of the lead: errors grow with it, and the first leads would have
            little say.
    """
    weights = valid * (1 + emphasis * target)
    if even_leads:
        weights = weights / torch.arange(1, target.shape[1] + 1, device=target.device).view(-1, 1, 1)
    return weights


def squared_error(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean squared error Σ w(ŷ − y)²/Σ w of ``(B, T, H, W)`` in model units; 0 where all weights are 0."""
    return _weighted_mean(torch.where(weights > 0, prediction - target, 0.0).square(), weights)


def absolute_error(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean absolute error Σ w|ŷ − y|/Σ w; arguments as :func:`squared_error`.

    Smallest for the median, which is dry where rain is unlikely; the squared error leaves drizzle there.
    """
    return _weighted_mean(torch.where(weights > 0, prediction - target, 0.0).abs(), weights)


def _weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    return (weights * errors).sum() / weights.sum().clamp(min=1e-6)


class PerceptualLoss(nn.Module):
    """``P``: the feature MSE of a pretrained network, summed over its tapped layers.

    P = Σ_l mean (φ_l(ŷ) − φ_l(y))² with both images repeated to three channels and normalised as ImageNet's, in
    float32 whatever the precision around it. Johnson, Alahi, Fei-Fei (2016), arXiv:1603.08155.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: str, source: str):
        super().__init__()
        self.features, self.weights = load_features(net, source)
        self.taps = TAPS[net]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def _activations(self, frames: Tensor) -> list[Tensor]:
        images = frames.float().flatten(0, 1).unsqueeze(1)
        return tapped(self.features, self.taps, (images - self.mean) / self.std)

    def against(self, target: Tensor, valid: Tensor, *, n_frames: int | None = None) -> Callable[[Tensor], Tensor]:
        """The loss as a function of the prediction; the target's features are computed once, without gradient.

        Args:
            target: ``(B, T, H, W)`` in [0, 1].
            valid: mask of the same shape; missing pixels are made equal in both images.
            n_frames: look at this many frames of each sample only, in turn through the batch from a random one on, so
                that every lead time is seen equally often; None looks at all.
        """
        leads = None
        if n_frames is not None and n_frames < target.shape[1]:
            first = torch.randint(target.shape[1], ())
            turn = torch.arange(len(target) * n_frames).view(-1, n_frames)
            leads = ((first + turn) % target.shape[1]).to(target.device)
        target, valid = _some_frames(target, leads), _some_frames(valid, leads)
        with torch.no_grad(), torch.autocast(target.device.type, enabled=False):
            truth = self._activations(target)

        def loss(prediction: Tensor) -> Tensor:
            with torch.autocast(target.device.type, enabled=False):
                guess = self._activations(torch.where(valid, _some_frames(prediction, leads), target))
                return torch.stack([(a - b).square().mean() for a, b in zip(guess, truth, strict=True)]).sum()

        return loss


def _some_frames(frames: Tensor, leads: Tensor | None) -> Tensor:
    """``(B, len(leads[0]), H, W)`` of ``(B, T, H, W)``: the frames ``leads[b]`` of each sample b; all when None."""
    if leads is None:
        return frames
    return frames[torch.arange(len(frames), device=frames.device)[:, None], leads]


class Lpips(nn.Module):
    """LPIPS of the ``lpips`` package (Zhang et al. 2018), with the backbone's weights from where one says.

    The linear heads are the package's own (version 0.1). With weights other than torchvision's ImageNet ones the
    distance is "LPIPS-style", and :attr:`name` says so.
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
    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """``(B, T)`` distances of ``(B, T, H, W)`` frames in [0, 1]; missing pixels are equal in both."""
        images = [torch.where(valid, prediction, target), target]
        flat = [(2 * image.float().flatten(0, 1).unsqueeze(1) - 1).expand(-1, 3, -1, -1) for image in images]
        # Frame by frame: the features of many whole frames overflow every cache, and take four times as long.
        pairs = zip(*(image.split(1) for image in flat), strict=True)
        return torch.cat([self.distance(*pair) for pair in pairs]).reshape(prediction.shape[:2])
