"""What the networks of this stage are built of: local contrast, bicubic enlargement, RRDB and RRFDB."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIDUAL_SCALE = 0.2  # of every dense block's and of every block of blocks' own contribution
INIT_GAIN = 0.1  # times Kaiming: small residuals at the start keep a deep stack close to the identity
SLOPE = 0.2  # of LeakyReLU below zero
DILATIONS = (1, 2, 3)  # of the three branches of a receptive-field block
N_CONVS = 5  # of a dense block

# Width of the averaging window of the local contrast, LR pixels.
WINDOW = 15
REACH = 4 * (WINDOW // 2)  # LR pixels beyond which nothing enters it: two passes for the mean, two for the deviation
# Least local standard deviation, model units (0.002 of reflectance at max_reflectance 1): the noise of dark water and
# shade, about half of it, must not be blown up to the contrast of a field's edge.
STD_FLOOR = 4e-3


class LocalContrast(NamedTuple):
    """Mean and standard deviation ``(B, C, h, w)`` around each pixel, per band, in the units of the image."""

    mean: Tensor
    std: Tensor

    def normalise(self, image: Tensor) -> Tensor:
        """(x − mean)/std: brightness and contrast of the place are gone."""
        return (image - self.mean) / self.std

    def upsample(self, scale: int) -> LocalContrast:
        """The same at ``(B, C, s·h, s·w)``, by bilinear interpolation, which keeps the deviation positive."""
        return LocalContrast(*(F.interpolate(x, scale_factor=scale, mode="bilinear") for x in self))


def local_contrast(image: Tensor) -> LocalContrast:
    """Local mean m = W∗x and standard deviation sqrt(W∗(x − m)² + floor²) of ``(B, C, h, w)``, in float32.

    W averages twice over 15 × 15 pixels (a bell of 29 × 29, so that a bright roof enters it gently), over those that
    lie within the image. Away from the edges it is the same in a tile as in the whole scene, which the statistics of
    a patch are not.
    """
    image = image.float()
    mean = _average(image)
    return LocalContrast(mean, (_average((image - mean).square()) + STD_FLOOR**2).sqrt())


def _average(image: Tensor) -> Tensor:
    for _ in range(2):
        image = F.avg_pool2d(image, (WINDOW, 1), 1, (WINDOW // 2, 0), count_include_pad=False)
        image = F.avg_pool2d(image, (1, WINDOW), 1, (0, WINDOW // 2), count_include_pad=False)
    return image


def enlarge(lr: Tensor, scale: int) -> Tensor:
    """Bicubic ``(B, C, s·h, s·w)`` of ``(B, C, h, w)``, torch's kernel (a = −0.75), pixel areas aligned."""
    return F.interpolate(lr, scale_factor=scale, mode="bicubic")


def conv(n_in: int, n_out: int, size: int = 3, *, dilation: int = 1, gain: float = INIT_GAIN) -> nn.Conv2d:
    """A convolution that keeps the size: Kaiming's weights (He et al. 2015) times ``gain``, zero bias."""
    layer = nn.Conv2d(n_in, n_out, size, padding=dilation * (size // 2), dilation=dilation)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    with torch.no_grad():
        layer.weight.mul_(gain)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class ReceptiveField(nn.Module):
    """Looks at three distances at once, in place of a 3 × 3 convolution with the same channels in and out.

    1 × 1 reduction → LeakyReLU → 3 × 3 branches with dilation 1, 2 and 3, side by side → LeakyReLU → 1 × 1 fusion,
    added to a 1 × 1 shortcut. Liu, Huang, Wang (2018), arXiv:1711.07767; in super-resolution Shang
    et al. (2020), arXiv:2005.12597.
    """

    def __init__(self, n_in: int, n_out: int, width: int):
        super().__init__()
        # The small start belongs to the whole block: to its last convolution and its shortcut, not to every layer.
        self.reduce = conv(n_in, len(DILATIONS) * width, 1, gain=1.0)
        self.branches = nn.ModuleList(conv(width, width, dilation=d, gain=1.0) for d in DILATIONS)
        self.fuse = conv(len(DILATIONS) * width, n_out, 1)
        self.shortcut = conv(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, n_in, h, w)`` → ``(B, n_out, h, w)``."""
        parts = F.leaky_relu(self.reduce(x), SLOPE, inplace=True).chunk(len(DILATIONS), dim=1)
        seen = torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], dim=1)
        return self.shortcut(x) + self.fuse(F.leaky_relu(seen, SLOPE, inplace=True))


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the input and all before it; x + 0.2·(the last one's output).

    Args:
        features: channels in and out.
        growth: channels that each of the first four adds.
        field_width: channels of each branch of a :class:`ReceptiveField`; None has plain 3 × 3 convolutions.
    """

    def __init__(self, features: int, growth: int, field_width: int | None = None):
        super().__init__()
        outputs = [growth] * (N_CONVS - 1) + [features]
        self.convs = nn.ModuleList(
            conv(features + index * growth, n_out)
            if field_width is None
            else ReceptiveField(features + index * growth, n_out, field_width)
            for index, n_out in enumerate(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, features, h, w)`` → the same shape."""
        *growing, last = self.convs
        seen = x
        for layer in growing:
            seen = torch.cat([seen, F.leaky_relu(layer(seen), SLOPE, inplace=True)], dim=1)
        return x.add(last(seen), alpha=RESIDUAL_SCALE)


class ResidualInResidual(nn.Module):
    """Three dense blocks in a row and a residual around them: x + 0.2·(blocks(x)).

    With plain convolutions the RRDB of ESRGAN (Wang et al. 2018, arXiv:1809.00219), with receptive-field blocks the
    RRFDB of RFB-ESRGAN (Shang et al. 2020, arXiv:2005.12597). Arguments as of :class:`DenseBlock`.
    """

    def __init__(self, features: int, growth: int, field_width: int | None = None):
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(features, growth, field_width) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, features, h, w)`` → the same shape."""
        return x.add(self.blocks(x), alpha=RESIDUAL_SCALE)
