"""Rain given coarse weather as a ``Task``: data, model, losses and scores put together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from nbhelpers.core.errors import UserError
from nbhelpers.core.fields import Field
from nbhelpers.core.runtime import pick_device
from nbhelpers.science.ensemble import block_means
from nbhelpers.stages.rainfall_cvae import baselines, facts, losses, split
from nbhelpers.stages.rainfall_cvae.augment import Augmentation
from nbhelpers.stages.rainfall_cvae.batches import EVAL_BATCH, Batch, loader, spaced, training_order
from nbhelpers.stages.rainfall_cvae.config import RATIO, Config
from nbhelpers.stages.rainfall_cvae.data import Days, open_days
from nbhelpers.stages.rainfall_cvae.facts import RAIN
from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle
from nbhelpers.stages.rainfall_cvae.model import Cvae
from nbhelpers.stages.rainfall_cvae.oracle import has_truth
from nbhelpers.stages.rainfall_cvae.residuals import fit_correlation
from nbhelpers.stages.rainfall_cvae.sampler import Inputs, Sampler, Source
from nbhelpers.stages.rainfall_cvae.transform import RainTransform
from nbhelpers.stages.rainfall_cvae.validation import Diagnosis
from nbhelpers.stages.rainfall_cvae.verification import RainVerification
from nbhelpers.training.task import (
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

STAGE = "rainfall-cvae"


class RainfallTask:
    """High-resolution rain of a day, drawn given its coarse weather.

    Args:
        config: the resolved settings.
        data_dir: folder of day files.
        like: a task on the same folder, whose days are taken over and not read again.

    Raises:
        UserError: data that are missing, damaged or do not fit the settings.
    """

    stage = STAGE

    def __init__(self, config: Config, data_dir: Path, *, like: RainfallTask | None = None):
        self.config, self.data_dir = config, Path(data_dir)
        self.days: Days = like.days if like else open_days(self.data_dir, check_units=config.check_units)
        if self.days.factor < 2:
            raise UserError(
                f"the predictors in {self.data_dir} lie on the grid of the rain itself (factor 1), expected a coarser "
                "one: prepare the folder with a factor of at least 2."
            )
        hurdle = Hurdle(config.tail) if config.likelihood == "hurdle_gamma" else None
        torch.manual_seed(config.seed)
        cvae = Cvae(
            len(self.days.channels),
            facts.static_maps(self.days),
            factor=self.days.factor,
            n_out=1 if hurdle is None else hurdle.channels,
            base_filters=config.base_filters,
            d_y=config.d_y,
            d_z=config.d_z,
            dropout=config.dropout,
        )
        self._check_size(cvae)
        facts.start_at_climate(cvae, hurdle, self.days)
        self.modules: MutableMapping[str, nn.Module] = {"cvae": cvae.to(memory_format=torch.channels_last)}
        self._hurdle = hurdle
        self.fields: Mapping[str, Field] = facts.fields(self.days)
        self.phases = (self._phase(cvae),)
        self.monitor = Monitor(config.early_stopping_metric, "min", config.early_stopping_patience, config.armed)
        self.milestones: Sequence[Milestone] = ()
        self.loss_scheduler = None
        self.event_level = float(self.days.thresholds["P95"])
        self.n_land = int(self.days.land.sum())
        k, seed = config.members, config.seed
        self.nulls: Mapping[str, Predictor] = {
            "climatology": baselines.climatology(self.days, k, seed),
            "analogues": baselines.analogues(self.days, k),
            "bilinear": baselines.bilinear(self.days),
            **({"oracle": baselines.oracle(self.days, k, seed)} if has_truth(self.days.folder) else {}),
        }
        self.controls: Mapping[str, Predictor] = {
            "x_shuffled": lambda batch: self.members(batch, shuffle_x=True),
            **({"posterior": lambda batch: self.members(batch, source="posterior")} if config.d_z else {}),
        }
        self.headlines: Sequence[str] = (
            "crps", "tw_crps", "mae_all", "mae_tail", "wet_frequency_1", "p99_ratio", "p999_ratio",
            "spread_skill_pixel", "spread_skill_block", "spread_skill_domain",
        )  # fmt: skip
        self.oom_advice: Sequence[str] = (
            f"halve batch_size (it is {config.batch_size})",
            f"lower base_filters (it is {config.base_filters}) or d_y (it is {config.d_y})",
            f"draw fewer members when scoring (members is {config.members})",
        )
        self.to(pick_device())

    def _check_size(self, cvae: nn.Module) -> None:
        parameters, n = sum(p.numel() for p in cvae.parameters()), len(self.days.split["train"])
        if parameters > RATIO * n:
            raise UserError(
                f"the model has {parameters:,} parameters for {n} training days, more than {RATIO:,} a day: lower "
                "base_filters, d_y or d_z, or train on more years."
            )

    def _phase(self, cvae: nn.Module) -> Phase:
        config = self.config
        optimizer = torch.optim.AdamW(cvae.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        batches = math.ceil(len(self.days.split["train"]) / config.batch_size)
        steps = config.epochs * math.ceil(batches / config.accumulate)
        schedulers = {}
        if config.cosine:
            cosine = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))
            schedulers["cvae"] = cosine
        return Phase("train", config.epochs, {"cvae": optimizer}, schedulers)

    def to(self, device: torch.device) -> None:
        self.device = device
        self.transform = RainTransform.fit(self.config.transform, self.days).to(device)
        for module in self.modules.values():
            module.to(device)

    @property
    def sampler(self) -> Sampler:
        """What draws from the network as it is."""
        cvae = self.modules["cvae"]
        plain = cast(Cvae, getattr(cvae, "module", cvae))  # within accelerate's wrapping, if there is any
        return Sampler(self.days, plain, self.transform, self._hurdle, self.config.output_activation)

    def keys(self) -> dict[str, dict[str, set[str]]]:
        """Years, days and the content of rainy days."""
        return split.keys(self.days)

    def look(self, batch: Batch) -> Sample:
        """Raw values by channel; block means of the rain beside the coarse rain."""
        raw = {name: batch.x[:, index] for index, name in enumerate(self.days.channels) if name in self.fields}
        coarse = block_means(batch.y, self.days.factor).float()
        return Sample({**raw, RAIN: batch.y}, (coarse, self.days.pr(batch.x)))

    def unreadable(self, batch: Batch) -> Sequence[str]:
        return batch.unreadable

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        """The training days in the order of the epoch, or the scored days of another split (whatever the epoch)."""
        config = self.config
        if split != "train":
            return loader(
                self.days,
                self.scored(split),
                batch_size=EVAL_BATCH,
                start=start,
                num_workers=config.num_workers,
            )
        order = training_order(self.days, seed=config.seed, epoch=epoch, heavy_oversampling=config.heavy_oversampling)
        return loader(
            self.days,
            order,
            batch_size=config.batch_size,
            start=start,
            augmentation=Augmentation(config.noise, config.mixup, config.flips),
            seed=config.seed,
            epoch=epoch,
            num_workers=config.num_workers,
            forgiving=True,
        )

    def scored(self, split: str) -> tuple[int, ...]:
        """The days of a split that are scored, evenly spaced where not all are."""
        days = self.days.split[split]
        most = {"val": self.config.eval_days, "test": self.config.test_days}.get(split)
        return days if most is None else spaced(days, most)

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        if not len(batch.y):
            return
        sampler, config = self.sampler, self.config
        inputs = sampler.inputs(batch)
        n, device = len(batch.y), self.device
        noise = torch.randn(n, config.d_z, *self.days.x_shape[1:], device=device)
        from_prior = torch.rand(n, device=device) < config.prior_fraction
        raw, latent = self.modules["cvae"](
            inputs.x, sampler.seen(inputs), inputs.valid, inputs.statics, from_prior, noise
        )
        weight = batch.weight.to(device) if self._hurdle is not None else torch.ones(n, device=device)
        if self._hurdle is not None:
            yield Update("cvae", raw, self.terms(inputs, weight, latent))
            return
        output = (sampler.output(raw), self.transform.forward(inputs.rain))
        prediction = sampler.rain(raw)
        terms = self.terms(inputs, weight, latent)
        yield Update("cvae", prediction, terms, inputs.rain, inputs.valid, output=output)

    def terms(self, inputs: Inputs, weight: Tensor, latent: Tensor | None) -> tuple[LossTerm, ...]:
        """The summands of the loss: functions of raw maps under hurdle_gamma, else of rain ``(B, H, W)`` in mm/day.

        Args:
            weight: ``(B,)``, undoes the oversampling of heavy days, so that a likelihood is that of the days as they
                are. Errors are to weigh the days as they are drawn: that is what oversampling is for there.
            latent: what the KL is taken of; None leaves it out.
        """
        config, rain, valid = self.config, inputs.rain, inputs.valid
        kl: tuple[LossTerm, ...] = ()
        if latent is not None and config.d_z:
            divergence = losses.kl_divergence(self.n_land, weight, free_bits=config.free_bits)
            kl = (LossTerm("kl", divergence, config.kl_weight, "regulariser", at=latent),)
        if self._hurdle is not None:
            return (LossTerm("nll", losses.negative_log_likelihood(self._hurdle, rain, valid, weight), 1.0), *kl)
        tail, events = losses.tail_error(rain, valid, self.event_level, diluted=config.dilute_tail)
        return (
            LossTerm("mae", losses.absolute_error(rain, valid), config.lambda_base),
            LossTerm("mae_ext", tail, config.tail_weight, events=events),
            LossTerm("mass", losses.mass_error(rain, valid), config.lambda_mass),
            *kl,
        )

    def members(self, batch: Batch, *, source: Source = "prior", **shuffled: bool) -> Tensor:
        """``(B, K, H, W)`` mm/day as they are scored."""
        return self.sampler.members(batch, self.config.members, seed=self.config.seed, source=source, **shuffled)

    @torch.no_grad()
    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        """Scores of prior members on a split's days; groups are blocks of days.

        On validation the copula's correlation is fitted anew, and the model is asked what it takes from the latent
        and from the weather.
        """
        on_validation = split == "val" and predictor is None
        if on_validation and self._hurdle is not None:
            found = fit_correlation(self.sampler, self.batches("val", 0), seed=self.config.seed)
            self.sampler.cvae.correlation.copy_(found.as_tensor())
        scores: RainVerification | None = None
        diagnosis = Diagnosis(self) if on_validation else None
        for batch in self.batches(split, 0):
            members = (predictor or self.members)(batch)
            if scores is None:
                scores = RainVerification(self.days, n_members=members.shape[1], full=split != "val")
            scores.add(members, batch.y.to(members.device), batch.days)
            if diagnosis is not None:
                diagnosis.add(batch)
        assert scores is not None
        if diagnosis is None:
            return Evaluation(scores.metrics(), scores.spreads())
        return Evaluation(
            {**scores.metrics(), **diagnosis.metrics()},
            scores.spreads(),
            dependence=diagnosis.dependence,
            active_units=diagnosis.active_units,
        )

    def describe_data(self) -> dict[str, Any]:
        return facts.describe_data(self.days)

    def remarks(self) -> list[str]:
        return facts.remarks(self.days, self.config)

    def judge(
        self,
        report: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        reference: Mapping[str, Any] | None = None,
    ) -> tuple[Sequence[Gate], Verdict]:
        from nbhelpers.stages.rainfall_cvae.verdict import gates, verdict

        return gates(report, history, reference), verdict(report, history, reference)

    def figures(self, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
        from nbhelpers.stages.rainfall_cvae.figures import report_figures

        yield from report_figures(self, report, history)
