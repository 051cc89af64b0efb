"""Scores of refined tiles: by band, by spatial block, and how far their structure agrees with the SAR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science import sar_agreement
from nbhelpers.science.image_quality import spectral_angle, ssim
from nbhelpers.science.perceptual import Lpips
from nbhelpers.science.sar_agreement import SCALES, EdgeMaps, agreement, optical_edges, relative_agreement, sar_edges
from nbhelpers.stages.sar_grounding.confidence import sar_confidence
from nbhelpers.stages.sar_grounding.layout import BANDS, NIR, RED
from nbhelpers.stages.sar_grounding.losses import picture
from nbhelpers.training.metrics import Metric, ratio
from nbhelpers.training.task import Evaluation, Spread

LEAST_SUM = 0.02  # reflectance; red and infrared together below it (deep water) make no index
SCALE_LABELS = tuple(f"{sigma:g} px" for sigma in SCALES)


class GroundingVerification:
    """Gathers the scores of one predictor, a model or a baseline; a group is a spatial block.

    Only measured pixels of the truth count. SSIM and LPIPS look at neighbourhoods: tiles of which a pixel is missing
    have none. Two verifications that were given the same tiles in the same order are paired.

    Args:
        data_range: reflectance, of PSNR and SSIM.
        lpips: distance of the RGB pictures; None leaves it out.
    """

    def __init__(self, *, data_range: float = 1.0, lpips: Lpips | None = None):
        self.data_range, self.lpips = data_range, lpips
        self._blocks: dict[str, dict[str, NDArray[np.float64]]] = {}
        self._others: dict[str, EdgeMaps] = {}  # of the last tile of the two last blocks, the last one last
        self._seen: dict[str, list[float]] = {}  # low, high, n, sum, squares

    @torch.no_grad()
    def add(self, refined: Tensor, truth: Tensor, s1: Tensor, blocks: Sequence[str]) -> None:
        """Take in tiles; the scores do not depend on how tiles are batched.

        Args:
            refined: ``(B, 4, H, W)`` reflectance; NaN in it make scores NaN.
            truth: ``(B, 4, H, W)`` reflectance, NaN where not measured.
            s1: ``(B, 2, H, W)`` dB of the same place, whatever the predictor was given, NaN where not measured.
            blocks: the spatial block of each tile.

        Raises:
            UserError: tiles too small for the coarsest edges.
            ValueError: images that do not belong together.
        """
        if refined.shape != truth.shape or truth.shape[1] != len(BANDS) or len(blocks) != len(truth):
            raise ValueError(f"refined {tuple(refined.shape)}, truth {tuple(truth.shape)}, {len(blocks)} blocks")
        refined, truth = refined.float(), truth.float()
        valid = truth.isfinite().all(1)
        rows = self._image_rows(refined, truth, valid) | self._sar_rows(refined, truth, s1, valid, blocks)
        arrays = {name: values.double().cpu().numpy() for name, values in rows.items()}
        for index, block in enumerate(blocks):
            mine = self._blocks.setdefault(block, {})
            for name, values in arrays.items():
                mine[name] = mine[name] + values[index] if name in mine else values[index]
        inside = valid[:, None].expand_as(truth)
        self._widen("prediction", refined[inside])
        self._widen("target", truth[inside])

    def _image_rows(self, refined: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """``(B, labels, 2)`` of each score: what is added up, and how often."""
        n = valid.flatten(1).sum(1)
        measured, whole = n > 0, valid.flatten(1).all(1)
        # Equal where not measured, and so without error there.
        x, y = (torch.where(valid[:, None], image, 0.0) for image in (refined, truth))
        share = (valid.flatten(1).double().mean(1)).clamp(min=1e-12)[:, None]
        error = (x - y).double()
        mean_square = error.square().mean((-2, -1)) / share
        found = {
            "psnr": _row(10 * torch.log10(self.data_range**2 / mean_square), measured),
            "ssim": _row(ssim(x, y, data_range=self.data_range), whole),
            "mae": _row(error.abs().mean((-2, -1)) / share, measured),
            "sam": torch.stack([spectral_angle(x, y) * valid[0].numel(), n.double()], -1)[:, None],
            "ndvi_error": _ndvi_row(x, y, valid),
        }
        if self.lpips is not None:
            found[self.lpips.key] = _row(self.lpips(picture(x), picture(y))[:, None], whole)
        return found

    def _sar_rows(
        self, refined: Tensor, truth: Tensor, s1: Tensor, valid: Tensor, blocks: Sequence[str]
    ) -> dict[str, Tensor]:
        sar, mine = sar_edges(s1), optical_edges(refined, valid)
        found, best = agreement(sar, mine), agreement(sar, optical_edges(truth, valid))
        known = found.known
        measured = s1.isfinite().all(1).flatten(1).sum(1).double()
        both = torch.stack([found.score, best.score, torch.ones_like(found.score)], -1)
        return {
            "sar_agreement": _row(found.score[:, None], known),
            "sar_agreement_truth": _row(best.score[:, None], known),
            "sar_agreement_relative": torch.where(known[:, None], both, 0.0).double()[:, None],
            "sar_agreement_unrelated": self._unrelated(sar, mine, blocks),
            "sar_rho": _row(found.rho, known),
            "sar_rho_null": _row(found.rho_null, known),
            "sar_cosine": _row(found.cosine[:, None], known),
            "sar_confidence": torch.stack([sar_confidence(s1).double().flatten(1).sum(1), measured], -1)[:, None],
        }

    def _unrelated(self, sar: EdgeMaps, mine: EdgeMaps, blocks: Sequence[str]) -> Tensor:
        """Each tile's SAR against what was predicted for the tile before it that lies in another block."""
        found = torch.zeros(len(blocks), 1, 2, dtype=torch.float64)
        for index, block in enumerate(blocks):
            own = _part(sar, index)
            others = [
                maps for name, maps in self._others.items() if name != block and maps.maps[0].shape == own.maps[0].shape
            ]
            if others:
                score = agreement(own, others[-1])
                found[index] = _row(score.score[:, None], score.known)[0].cpu()
            self._others.pop(block, None)
            self._others[block] = _part(mine, index)
            for name in list(self._others)[:-2]:
                del self._others[name]
        return found

    def _widen(self, name: str, values: Tensor) -> None:
        if not values.numel():
            return
        wide = values.double()
        low, high, n, total, squares = self._seen.get(name, [np.inf, -np.inf, 0.0, 0.0, 0.0])
        self._seen[name] = [
            min(low, float(wide.min())),
            max(high, float(wide.max())),
            n + wide.numel(),
            total + float(wide.sum()),
            squares + float(wide.square().sum()),
        ]

    def evaluation(self) -> Evaluation:
        """All metrics; groups are the blocks in alphabetical order."""

        def stacked(name: str) -> NDArray[np.float64]:
            return np.stack([self._blocks[block][name] for block in sorted(self._blocks)])

        kinds: tuple[tuple[str, tuple[str, ...], Any, str], ...] = (
            ("psnr", BANDS, "higher", "dB"),
            ("ssim", BANDS, "higher", "1"),
            ("mae", BANDS, "lower", "reflectance"),
            ("sam", ("all",), "lower", "degrees"),
            *([(self.lpips.key, ("all",), "lower", "1")] if self.lpips is not None else []),
            ("ndvi_error", ("all",), "lower", "1"),
            ("sar_agreement", ("all",), "higher", "1; 0.5 is chance"),
            ("sar_agreement_truth", ("all",), None, "1; 0.5 is chance"),
            ("sar_agreement_unrelated", ("all",), None, "1; 0.5 is chance"),
            ("sar_rho", SCALE_LABELS, "higher", "1"),
            ("sar_rho_null", SCALE_LABELS, None, "1"),
            ("sar_cosine", ("all",), None, f"1; {sar_agreement.COSINE_CHANCE:.3f} for noise"),
            ("sar_confidence", ("all",), None, "1"),
        )
        metrics = {name: Metric(stacked(name), ratio, labels, better, units) for name, labels, better, units in kinds}
        relative = stacked("sar_agreement_relative")
        metrics["sar_agreement_relative"] = Metric(relative, _relative, ("all",), "higher", "1; the truth has 1")
        return Evaluation(metrics, {name: _spread(seen) for name, seen in self._seen.items()})


def _row(values: Tensor, counted: Tensor) -> Tensor:
    """``(B, labels, 2)``: ``(B, labels)`` values of the samples that count, and ones; zeros of the others."""
    each = torch.where(counted[:, None], values.double(), 0.0)
    return torch.stack([each, counted[:, None].double().expand_as(each)], -1)


def _ndvi_row(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """``(B, 1, 2)``: sum of the absolute errors of (NIR − red)/(NIR + red), and of how many pixels."""

    def index(image: Tensor) -> Tensor:
        image = image.double().clamp(min=0)
        total = image[:, NIR] + image[:, RED]
        return (image[:, NIR] - image[:, RED]) / total.clamp(min=LEAST_SUM)

    counted = valid & (y[:, NIR] + y[:, RED] >= LEAST_SUM)
    error = torch.where(counted, (index(x) - index(y)).abs(), 0.0)
    return torch.stack([error.flatten(1).sum(1), counted.flatten(1).sum(1).double()], -1)[:, None]


def _part(edges: EdgeMaps, index: int) -> EdgeMaps:
    """One sample by itself: a view would keep the whole batch in memory."""

    def one(image: Tensor) -> Tensor:
        return image[index : index + 1].clone()

    return EdgeMaps(tuple(map(one, edges.maps)), tuple(map(one, edges.valid)), one(edges.naive))


def _relative(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Agreement above chance over that of the truth; NaN where the truth has none to speak of."""
    found, truth, n = np.moveaxis(sums, -1, 0)
    n = np.maximum(n, 1)  # without any, both sums are 0, and so below chance
    return relative_agreement(found / n, truth / n)


def _spread(seen: Sequence[float]) -> Spread:
    low, high, n, total, squares = seen
    return Spread(low, high, max(0.0, squares / n - (total / n) ** 2) ** 0.5)
