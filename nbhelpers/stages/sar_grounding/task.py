"""Grounding of optical tiles by SAR as a ``Task``: data, generator, losses and scores put together."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from nbhelpers.core.fields import Field
from nbhelpers.core.runtime import pick_device
from nbhelpers.science.perceptual import Lpips
from nbhelpers.stages.sar_grounding import facts, losses
from nbhelpers.stages.sar_grounding.adapters import expected_share
from nbhelpers.stages.sar_grounding.batches import Batch, eval_batch, loader, training_order
from nbhelpers.stages.sar_grounding.confidence import sar_confidence
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.stages.sar_grounding.layout import BANDS
from nbhelpers.stages.sar_grounding.networks import gap_values, make_generator, seeded, trained
from nbhelpers.stages.sar_grounding.terramind_tokens import token_error
from nbhelpers.stages.sar_grounding.tiles import Tiles, open_tiles
from nbhelpers.stages.sar_grounding.verification import GroundingVerification
from nbhelpers.training.metrics import Metric, mean_metric
from nbhelpers.training.task import (
    Dependence,
    Evaluation,
    Gate,
    LossTerm,
    Milestone,
    Monitor,
    Phase,
    Predictor,
    Sample,
    Update,
    Verdict,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGE = "sar-grounding"
MOST_WORKERS = 4


class GroundingTask:
    """Optical tiles refined with what a SAR image of the same place shows.

    Args:
        config: the resolved settings.
        data_dir: folder of tiles.
        like: a task whose tiles, if they are the same, need not be read and checked once more.

    Raises:
        UserError: data or weights that are missing, damaged or do not fit the settings.
    """

    stage = STAGE

    def __init__(self, config: Config, data_dir: Path, *, like: GroundingTask | None = None):
        self.config, self.data_dir = config, Path(data_dir)
        same = like is not None and like._reads() == self._reads()
        self.tiles: Tiles = like.tiles if like is not None and same else self._open()
        if config.model == "terramind-tokens" and not (like is not None and same and like.config.model == config.model):
            self.tiles.check_all_bands()
        cuts = config.tile_size is not None and config.tile_size < min(self.tiles.size)
        self.crop = config.tile_size if cuts else None  # side of the training crops; None: whole tiles
        torch.manual_seed(config.seed)
        generator = make_generator(config, self.tiles)
        self.modules: MutableMapping[str, nn.Module] = {"generator": generator.to(memory_format=torch.channels_last)}
        self.lpips = Lpips(config.lpips_net, config.lpips_weights)
        self.fields: Mapping[str, Field] = facts.fields()
        self.phases = (self._phase(generator),)
        patience, delta = config.early_stop_patience, config.early_stop_delta
        self.monitor = {
            "spectral_l1": Monitor("mae", "min", patience, delta=delta, beside=("sar_agreement",)),
            "sar_agreement": Monitor(KEPT, "max", patience, delta=delta, beside=("sar_agreement", "mae")),
        }[config.early_stop_metric]
        self.milestones: Sequence[Milestone] = ()
        self.loss_scheduler = None
        self.event_level: float | None = None
        self.nulls: Mapping[str, Predictor] = {
            "opt_v2": lambda batch: batch.opt_v2,
            "recoloured": self._recoloured,
            "mean": self._mean,
        }
        self.controls: Mapping[str, Predictor] = {
            "sar_shuffled": lambda batch: self.refine(batch, s1=self.other_sar(batch)),
            "sar_zeroed": lambda batch: self.refine(batch, s1=self._flat_sar(batch)),
        }
        self.headlines: Sequence[str] = (
            "psnr", "ssim", "sam", "mae", self.lpips.key, "ndvi_error", "sar_agreement", "sar_agreement_relative",
            "sar_confidence",
        )  # fmt: skip
        self.oom_advice: Sequence[str] = facts.smaller(config, min(self.tiles.size))
        self.to(pick_device())

    def _reads(self) -> tuple[Any, ...]:
        config = self.config
        return self.data_dir.resolve(), config.stage2_dir, config.opt_v2_source, config.max_samples

    def _open(self) -> Tiles:
        config = self.config
        return open_tiles(
            self.data_dir,
            stage2_dir=None if config.stage2_dir is None else Path(config.stage2_dir),
            opt_v2_source=config.opt_v2_source,
            max_samples=config.max_samples,
        )

    def _phase(self, generator: nn.Module) -> Phase:
        config = self.config
        optimizer = torch.optim.AdamW(trained(generator), lr=config.lr, weight_decay=config.weight_decay)
        batches = math.ceil(len(self.tiles.split["train"]) / config.batch_size)
        steps = config.epochs * math.ceil(batches / config.grad_accum)
        cosine = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))
        share = expected_share(generator)
        trainable = {"generator": share} if share < 1 else {}
        return Phase(
            "train", config.epochs, {"generator": optimizer}, {"generator": cosine}, trainable=trainable, prune=False
        )

    def to(self, device: torch.device) -> None:
        self.device = device
        self.unit = torch.tensor(self.tiles.statistics.s2_std, device=device)[:, None, None]
        for module in (*self.modules.values(), self.lpips):
            module.to(device)

    def keys(self) -> Mapping[str, Mapping[str, set[str]]]:
        return facts.keys(self.tiles)

    def look(self, batch: Batch) -> Sample:
        """Backscatter and reflectance by band, and the image to refine, which the truth must resemble."""
        images = (batch.s1, batch.truth)
        raw = dict(zip(self.fields, torch.cat(images, 1).unbind(1), strict=True))
        return Sample(raw, (batch.truth.mean(1), batch.opt_v2.mean(1)))

    def unreadable(self, batch: Batch) -> Sequence[str]:
        return batch.unreadable

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        """Training tiles (or crops) in the order of the epoch; all tiles of another split (whatever the epoch)."""
        config, names = self.config, self.tiles.split[split]
        if split != "train":
            return loader(self.tiles, names, batch_size=eval_batch(self.tiles), start=start)
        return loader(
            self.tiles,
            training_order(names, seed=config.seed, epoch=epoch),
            batch_size=config.batch_size,
            start=start,
            crop=self.crop,
            seed=config.seed,
            epoch=epoch,
            num_workers=self._workers(names),
            forgiving=True,
            all_bands=config.model == "terramind-tokens",
        )

    def _workers(self, names: Sequence[str]) -> int:
        """As set; else none where all is in memory, which is fastest, and a few where files are read at each step."""
        if self.config.num_workers is not None:
            return self.config.num_workers
        readable = [name for name in names if name not in self.tiles.unreadable]
        in_memory = self.tiles.store.holds(readable) and self.config.model != "terramind-tokens"
        return 0 if in_memory else min(MOST_WORKERS, os.cpu_count() or 1)

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        if not len(batch.truth):
            return
        batch = batch.to(self.device)
        generator, opt_v2 = self.modules["generator"], self.filled(batch.opt_v2)
        if self.config.model == "terramind-tokens":
            yield self._token_update(batch, opt_v2)
            return
        noise = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        if self.config.model == "compact":
            refined = generator(batch.s1, opt_v2, noise, truth=batch.truth)
        else:
            refined = generator(batch.s1, opt_v2, noise)
        valid = batch.truth.isfinite().all(1, keepdim=True).expand_as(refined)
        yield Update("generator", refined, self.terms(batch), batch.truth.nan_to_num(), valid)

    def _token_update(self, batch: Batch, opt_v2: Tensor) -> Update:
        """Cross-entropy on the tokens of the true image: drawing them passes no gradient, so no pixel loss applies."""
        generator: Any = self.modules["generator"]
        plain = getattr(generator, "module", generator)  # within accelerate's wrapping, if there is any
        ids = plain.tokens(batch.l2a)
        return Update("generator", generator(batch.s1, opt_v2, None), (LossTerm("tokens", token_error(ids), 1.0),))

    def terms(self, batch: Batch) -> tuple[LossTerm, ...]:
        """The five summands, functions of the refined image in reflectance; a batch on the task's device."""
        config, truth, unit = self.config, batch.truth, self.unit
        opt_v2, valid = self.filled(batch.opt_v2), truth.isfinite().all(1)
        made = {
            "sar": (config.sar_weight, lambda: losses.sar_consistency(batch.s1)),
            "cycle": (config.cycle_weight, lambda: losses.cycle_error(opt_v2, unit)),
            "identity": (
                config.identity_weight,
                lambda: losses.identity_error(opt_v2, unit, sar_confidence(batch.s1)),
            ),
            "lpips": (config.lpips_weight, lambda: losses.lpips_error(self.lpips, truth, valid)),
            "spectral": (config.spectral_weight, lambda: losses.spectral_error(truth, unit, valid)),
        }
        # Both have no gradient where a residual model starts, and are there to hold it back.
        roles: dict[str, Literal["objective", "regulariser"]] = {"cycle": "regulariser", "identity": "regulariser"}
        return tuple(
            LossTerm(name, make(), weight, roles.get(name, "objective"))
            for name, (weight, make) in made.items()
            if weight
        )

    def filled(self, opt_v2: Tensor) -> Tensor:
        """``(B, 4, H, W)``, with what the generator makes of gaps itself, so that new tiles are refined alike."""
        return torch.where(opt_v2.isfinite(), opt_v2, gap_values(self.modules["generator"]))

    @torch.no_grad()
    def refine(self, batch: Batch, *, s1: Tensor | None = None) -> Tensor:
        """``(B, 4, H, W)`` reflectance of opt_v3, the same in every call and whichever tiles are beside.

        Args:
            s1: dB in place of the batch's own.
        """
        batch = batch.to(self.device)
        generator = self.modules["generator"]
        was_training = generator.training
        generator.eval()
        noise = [seeded(self.config.seed, name) for name in batch.tiles]
        refined = generator(batch.s1 if s1 is None else s1.to(self.device), self.filled(batch.opt_v2), noise).float()
        generator.train(was_training)
        return refined

    def other_sar(self, batch: Batch) -> Tensor:
        """``(B, 2, H, W)`` dB, for each tile that of one of another block."""
        return torch.stack([torch.from_numpy(self.tiles.s1(self._partner[name]).copy()) for name in batch.tiles])

    @cached_property
    def _partner(self) -> dict[str, str]:
        """For each tile one of another block, half a split further on, or of another split if its own has one block."""
        found = {}
        splits = [[name for name in names if name not in self.tiles.unreadable] for names in self.tiles.split.values()]
        for readable in splits:
            elsewhere = [name for names in splits if names is not readable for name in names]
            for place, name in enumerate(readable):
                start = (place + len(readable) // 2) % len(readable)
                turned = readable[start:] + readable[:start] + elsewhere  # no two splits share a block
                found[name] = next(one for one in turned if self.tiles.block[one] != self.tiles.block[name])
        return found

    def _flat_sar(self, batch: Batch) -> Tensor:
        mean = torch.tensor(self.tiles.statistics.s1_mean)[:, None, None]
        return mean.expand(batch.s1.shape).clone()

    def _mean(self, batch: Batch) -> Tensor:
        mean = torch.tensor(self.tiles.statistics.s2_mean)[:, None, None]
        return mean.expand(batch.truth.shape).clone()

    def _recoloured(self, batch: Batch) -> Tensor:
        """opt_v2 with the factor and summand for each band that fit the training truth best: no new structure."""
        slope, shift = (torch.tensor(one, dtype=torch.float32)[:, None, None] for one in self._recolouring)
        return slope * batch.opt_v2 + shift

    @cached_property
    def _recolouring(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``(4,)`` each: least squares of truth = slope · opt_v2 + shift over the pixels of the training tiles."""
        sums = np.zeros((len(BANDS), 5))  # n, x, y, xx, xy
        for name in self.tiles.split["train"]:
            if name in self.tiles.unreadable:
                continue
            _, truth, opt_v2 = self.tiles.store[name]
            for band, (x, y) in enumerate(zip(opt_v2.astype(np.float64), truth.astype(np.float64), strict=True)):
                known = np.isfinite(x) & np.isfinite(y)
                x, y = x[known], y[known]
                sums[band] += x.size, x.sum(), y.sum(), (x * x).sum(), (x * y).sum()
        n, x, y, xx, xy = sums.T
        slope = (n * xy - x * y) / (n * xx - x * x)
        return slope, (y - slope * x) / n

    @torch.no_grad()
    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        """Scores on whole tiles, as reflectance; groups are spatial blocks.

        On validation the model is asked what it takes from the SAR image.
        """
        scores = self._score(split, predictor or self.refine)
        if split != "val" or predictor is not None:
            return scores
        shuffled = self._score(split, self.controls["sar_shuffled"]).metrics["mae"]
        mine = scores.metrics["mae"]
        metrics = {**scores.metrics, KEPT: self._kept(scores.metrics)}
        dependence = {"sar": Dependence("mae", mine.value, shuffled.value)} if self.config.use_sar else {}
        return Evaluation(metrics, scores.spreads, dependence)

    def _score(self, split: str, predictor: Predictor) -> Evaluation:
        scores = GroundingVerification(lpips=self.lpips)
        for batch in self.batches(split, 0):
            refined, here = predictor(batch).to(self.device), batch.to(self.device)
            scores.add(refined, here.truth, here.s1, [self.tiles.block[name] for name in batch.tiles])
        return scores.evaluation()

    def _kept(self, metrics: Mapping[str, Metric]) -> Metric:
        """The agreement, undefined where error or LPIPS are worse than those of opt_v2."""
        limits = self.scores_of_input
        worse = [name for name in ("mae", self.lpips.key) if metrics[name].value > limits[name].value]
        value = math.nan if worse else metrics["sar_agreement"].value
        return mean_metric(np.array([[value]]), np.ones((1, 1)), labels=("all",), better=None, units="1; 0.5 is chance")

    @cached_property
    def scores_of_input(self) -> Mapping[str, Metric]:
        """Scores of opt_v2 on validation."""
        return self._score("val", self.nulls["opt_v2"]).metrics

    def describe_data(self) -> dict[str, Any]:
        return facts.describe_data(self.tiles)

    def remarks(self) -> list[str]:
        return facts.remarks(self)

    def judge(
        self,
        report: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        reference: Mapping[str, Any] | None = None,
    ) -> tuple[Sequence[Gate], Verdict]:
        from nbhelpers.stages.sar_grounding.verdict import gates, verdict

        return gates(report, reference), verdict(report, history, reference)

    def figures(self, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
        from nbhelpers.stages.sar_grounding.figures import report_figures

        yield from report_figures(self, report, history)


KEPT = "sar_agreement_kept"  # validation metric: the agreement of a model that is otherwise no worse than opt_v2
