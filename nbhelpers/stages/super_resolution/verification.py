"""Scores of super-resolved patches: by band, by place, and how well they degrade back to their input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbhelpers.science.degradation import Degradation
from nbhelpers.science.image_quality import ergas, fine_power, psnr, spectral_angle, ssim
from nbhelpers.science.perceptual import Lpips
from nbhelpers.stages.super_resolution.losses import picture
from nbhelpers.training.metrics import Metric, mean_metric, ratio
from nbhelpers.training.task import Evaluation, Spread

MICRO = 1e6  # what consistency and residual are multiplied by: as reflectance they are 0.0000 in every table


@dataclass
class _Sums:
    """Sums over the patches of one place."""

    n: int = 0
    by_band: dict[str, np.ndarray] = field(default_factory=dict)  # (C,)
    plain: dict[str, float] = field(default_factory=dict)

    def add(self, n: int, by_band: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
        self.n += n
        for name, values in by_band.items():
            self.by_band[name] = self.by_band.get(name, 0.0) + values.double().cpu().numpy()
        for name, value in plain.items():
            self.plain[name] = self.plain.get(name, 0.0) + float(value)


class Verification:
    """Gathers the scores of one predictor; a group is a place.

    Args:
        bands: names of the channels.
        degradation: what made the inputs.
        data_range: reflectance, of PSNR and SSIM.
        lpips: distance of the RGB pictures.
        rgb: channels that are red, green and blue.
    """

    def __init__(
        self,
        bands: Sequence[str],
        degradation: Degradation,
        *,
        data_range: float,
        lpips: Lpips,
        rgb: Sequence[int],
    ):
        self.bands, self.degradation, self.data_range = tuple(bands), degradation, data_range
        self.lpips, self.rgb = lpips, rgb
        self._places: dict[str, _Sums] = {}
        self._low = {"prediction": np.inf, "target": np.inf}
        self._high = {"prediction": -np.inf, "target": -np.inf}
        self._moments: dict[str, list[float]] = {"prediction": [0.0, 0.0, 0.0], "target": [0.0, 0.0, 0.0]}

    def add(
        self, prediction: Tensor, target: Tensor, low: Tensor, places: Sequence[str], *, before: Tensor | None = None
    ) -> None:
        """Score patches.

        Args:
            prediction, target: ``(B, C, H, W)`` reflectance.
            low: ``(B, C, h, w)`` reflectance, the input.
            places: the place of each sample.
            before: the prediction before negative values were taken out of it; None: the same.
        """
        prediction, target = prediction.float(), target.float()
        for name, values in (("prediction", prediction), ("target", target)):
            self._low[name] = min(self._low[name], float(values.min()))
            self._high[name] = max(self._high[name], float(values.max()))
            wide = values.double()
            sums = (values.numel(), float(wide.sum()), float(wide.square().sum()))
            self._moments[name] = [a + b for a, b in zip(self._moments[name], sums, strict=True)]
        border = self.degradation.scale
        by_band = {
            "psnr": psnr(prediction, target, data_range=self.data_range, border=border),
            "ssim": ssim(prediction, target, data_range=self.data_range, border=border),
            "mae": (prediction - target).abs().mean((-2, -1)),
            "fine_power": self._fine_power(prediction),
            "fine_power_truth": self._fine_power(target),
        }
        per_image = {
            "sam": spectral_angle(prediction, target),
            "ergas": ergas(prediction, target, scale=self.degradation.scale),
            self.lpips.key: self.lpips(picture(prediction, self.rgb), picture(target, self.rgb)),
            "consistency": self._missed(prediction if before is None else before, low),
            "residual": self._missed(prediction, low),
            "negative": (prediction < 0).double().mean((-3, -2, -1)),
        }
        for place in dict.fromkeys(places):
            mine = torch.tensor([other == place for other in places], device=prediction.device)
            self._places.setdefault(place, _Sums()).add(
                int(mine.sum()),
                {name: values[mine].sum(0) for name, values in by_band.items()},
                {name: values[mine].sum() for name, values in per_image.items()},
            )

    @property
    def finest(self) -> float:
        """Pixels; the shortest wave that the input can hold."""
        return 2.0 * self.degradation.scale

    def _fine_power(self, image: Tensor) -> Tensor:
        """``(B, C)``, each band without its mean, which would leak through the window where land is bright and flat."""
        return fine_power(image - image.mean((-2, -1), keepdim=True), max_wavelength=self.finest)

    def _missed(self, image: Tensor, low: Tensor) -> Tensor:
        """``(B,)``: the largest difference between what an image degrades to and what it should, 1e-6 reflectance."""
        return MICRO * (self.degradation.degrade(image) - low).abs().amax((-3, -2, -1))

    def evaluation(self) -> Evaluation:
        """All metrics; groups are the places in alphabetical order."""
        places = sorted(self._places)
        sums = [self._places[place] for place in places]
        counts = np.array([[one.n] * len(self.bands) for one in sums], dtype=float)
        metrics: dict[str, Metric] = {}

        def by_band(name: str, better: Any, units: str) -> None:
            values = np.stack([one.by_band[name] for one in sums])
            metrics[name] = mean_metric(values, counts, labels=self.bands, better=better, units=units)

        def plain(name: str, better: Any, units: str) -> None:
            values = np.array([[one.plain[name]] for one in sums])
            metrics[name] = mean_metric(values, counts[:, :1], labels=("all",), better=better, units=units)

        by_band("psnr", "higher", "dB")
        by_band("ssim", "higher", "1")
        by_band("mae", "lower", "reflectance")
        plain("sam", "lower", "degrees")
        plain("ergas", "lower", "1")
        plain(self.lpips.key, "lower", "1")
        power = [np.stack([one.by_band[name] for one in sums]) for name in ("fine_power", "fine_power_truth")]
        units = f"power at wavelengths <= {self.finest:g} px, prediction/truth"
        metrics["rapsd_ratio"] = Metric(np.stack(power, -1), ratio, self.bands, "one", units)
        plain("consistency", None, "1e-6 reflectance")
        plain("residual", None, "1e-6 reflectance")
        plain("negative", None, "1")
        # However many places there are: each of them is judged.
        each = np.diag([one.by_band["psnr"].mean() for one in sums])
        metrics["psnr_place"] = mean_metric(
            each, np.diag(counts[:, 0]), labels=tuple(places), better="higher", units="dB"
        )
        return Evaluation(metrics, {name: self._spread(name) for name in self._moments})

    def _spread(self, name: str) -> Spread:
        n, total, squares = self._moments[name]
        variance = max(0.0, squares / n - (total / n) ** 2) if n else 0.0
        return Spread(self._low[name], self._high[name], variance**0.5)
