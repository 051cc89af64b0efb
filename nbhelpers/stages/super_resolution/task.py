"""Super-resolution as a ``Task``: data, two networks, two stages of training and the scores put together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nbhelpers.core.fields import Field
from nbhelpers.core.runtime import pick_device
from nbhelpers.science.perceptual import Lpips, PerceptualLoss
from nbhelpers.stages.super_resolution import baselines, crops, facts
from nbhelpers.stages.super_resolution.adversarial import accuracy, discriminator_loss, generator_loss
from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.stages.super_resolution.crops import Batch, Crop
from nbhelpers.stages.super_resolution.generator import self_ensemble
from nbhelpers.stages.super_resolution.losses import LEAST_CONTRAST, contrast, picture, pixel_error
from nbhelpers.stages.super_resolution.networks import degradation_of, make_networks
from nbhelpers.stages.super_resolution.patch import DN_PER_REFLECTANCE
from nbhelpers.stages.super_resolution.patches import Patches, WithValidation, open_patches
from nbhelpers.stages.super_resolution.phases import FIDELITY, PIXEL, make_phases
from nbhelpers.stages.super_resolution.split import in_turn, keys, split_patches
from nbhelpers.stages.super_resolution.units import SURFACE, Units
from nbhelpers.stages.super_resolution.validation import Validation, validate
from nbhelpers.stages.super_resolution.verification import Verification
from nbhelpers.training.flexible import FlexibleScheduler
from nbhelpers.training.task import (
    Evaluation,
    Gate,
    LossTerm,
    Milestone,
    Phase,
    Predictor,
    Sample,
    Update,
    Verdict,
)  # fmt: skip
from nbhelpers.training.weights import Ramp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGE = "super-resolution"
GB = 1_000_000_000
FIT_BATCHES = 16  # of training crops that the linear filter is fitted to


class SuperResolutionTask:
    """Sentinel-2 patches from an input that is coarser by ``config.scale``, made from them by a known degradation.

    Args:
        config: the resolved settings.
        data_dir: folder of patches in BigEarthNet's layout, or a packed set.
        like: a task whose patches, if they are the same, need not be read and checked once more.

    Raises:
        UserError: data or weights that are missing, damaged or do not fit the settings.
    """

    stage = STAGE
    patches: Patches
    validation: Validation
    reader: crops.Reader

    def __init__(self, config: Config, data_dir: Path, *, like: SuperResolutionTask | None = None):
        self.config, self.data_dir = config, Path(data_dir)
        if like is not None and like._reads() == self._reads():
            self.patches, self.validation, self.reader = like.patches, like.validation, like.reader
        else:
            self.patches = self._open()
            chosen = in_turn(self.patches.patches, config.max_patches)
            self.validation = validate(self.patches, scale=config.scale, only={one.index for one in chosen})
            self.reader = crops.Reader(self.patches.__getitem__, int(config.cache_gb * GB))
        self.split = split_patches(
            # Broken ones too: how many of them a training may do without is a guard's decision.
            [self.patches.patches[index] for index in sorted({*self.validation.usable, *self.validation.broken})],
            by=config.split,
            val_places=config.val_places,
            test_places=config.test_places,
            broken=self.validation.broken,
            ground=self.validation.ground,
        )
        crops.check_sizes([self.validation.shapes[one.index] for one in self.split.patches["train"]], config)
        self.fields: Mapping[str, Field] = {"high": SURFACE}
        self.degradation = degradation_of(config)
        self.rgb = [config.bands.index(band) for band in config.rgb]

        self.modules: MutableMapping[str, nn.Module] = dict(make_networks(config))
        self.lpips = Lpips(config.lpips_net, config.lpips_source)
        self.perceptual: PerceptualLoss | None = None
        if config.stage2_epochs:
            self.perceptual = PerceptualLoss(
                config.backbone,
                config.backbone_weights,
                before_activation=config.backbone == "vgg19",  # as in ESRGAN; the small nets by all their layers
                absolute=True,
            )
        self.phases: Sequence[Phase] = tuple(make_phases(config, self.modules, distance=self.lpips.key))
        self.monitor = FIDELITY
        self.loss_scheduler: FlexibleScheduler | None = None
        self.event_level: float | None = None
        self.controls: Mapping[str, Predictor] = {}
        self.nulls: Mapping[str, Predictor] = {
            "bicubic": self._null(lambda low: baselines.bicubic(low, config.scale)),
            "lanczos": self._null(lambda low: baselines.lanczos(low, config.scale)),
            "linear": self._null(lambda low: self.linear(low)),
            "bicubic_projected": self._null(
                baselines.projected(lambda low: baselines.bicubic(low, config.scale), self.degradation)
            ),
            "linear_projected": self._null(baselines.projected(lambda low: self.linear(low), self.degradation)),
        }
        self.headlines: Sequence[str] = (
            "psnr", "ssim", "sam", "ergas", self.lpips.key, "rapsd_ratio", "consistency", "residual", "negative",
        )  # fmt: skip
        self.oom_advice: Sequence[str] = (
            f"halve batch_size (it is {config.batch_size}) and double accumulate",
            f"lower crop (it is {config.crop})",
            f"lower features (it is {config.features}) or num_rrdb (it is {config.num_rrdb})",
            "use discriminator 'vgg'",
        )
        self.to(pick_device())

    def _reads(self) -> tuple[Any, ...]:
        """What decides which pixels are read, and what they are checked for."""
        config = self.config
        size = (config.max_patches, config.scale, config.cache_gb)
        return (self.data_dir.resolve(), config.val_dir, config.bands, config.offset, *size)

    def _open(self) -> Patches:
        config = self.config
        patches = open_patches(self.data_dir, config.bands, offset=config.offset)
        if config.val_dir is None:
            return patches
        return WithValidation(patches, open_patches(Path(config.val_dir), config.bands, offset=config.offset))

    @cached_property
    def milestones(self) -> Sequence[Milestone]:
        """What a run must have reached by an epoch to be worth going on with; nothing goes on after the last one."""
        bicubic = self.evaluate("val", self.nulls["bicubic"]).metrics["psnr"].value
        cure = "Look at the data figure; lower stage1_lr."
        floors = ((5, 10.0), (10, 12.0), (self.config.bicubic_by, bicubic))
        latest = self.config.stage1_epochs - (self.config.stage2_epochs == 0)
        return tuple(Milestone("psnr", epoch, at_least=psnr, cure=cure) for epoch, psnr in floors if epoch <= latest)

    def to(self, device: torch.device) -> None:
        self.device = device
        for module in (*self.modules.values(), self.lpips, self.perceptual):
            if module is not None:
                module.to(device)

    @cached_property
    def units(self) -> Units:
        """The map between reflectance and model units."""
        if self.config.scaling == "physical":
            return Units.physical(len(self.config.bands), maximum=self.config.max_reflectance)
        usable = set(self.validation.usable)
        chosen = in_turn((one for one in self.split.patches["train"] if one.index in usable), self.config.eval_patches)
        return Units.percentiles(self.reader[one.index] for one in chosen)

    def to_model(self, reflectance: Tensor) -> Tensor:
        """``(B, C, H, W)`` reflectance in model units."""
        return self.units.to_model(reflectance)

    def to_reflectance(self, image: Tensor) -> Tensor:
        """``(B, C, H, W)`` in model units as reflectance."""
        return self.units.to_reflectance(image)

    def pair(self, batch: Batch, *, noisy: bool = False) -> tuple[Tensor, Tensor]:
        """High and low resolution of a batch, ``(B, C, H, W)`` and ``(B, C, h, w)``, in model units.

        Args:
            noisy: take new noise, as training does; else that of each patch, the same whenever it is asked for.
        """
        high = batch.dn.to(self.device, non_blocking=True) / DN_PER_REFLECTANCE
        low = self.degradation.degrade(high)
        if noisy:
            low = self.degradation.add_noise(low, torch.default_generator)
        elif self.config.noise:
            generators = crops.generators(batch.patches, self.config)
            low = torch.stack([self.degradation.add_noise(*one) for one in zip(low, generators, strict=True)])
        return self.to_model(high), self.to_model(low)

    def keys(self) -> Mapping[str, Mapping[str, set[str]]]:
        return keys(self.split, self.validation.content, self.validation.ground)

    def look(self, batch: Batch) -> Sample:
        """Digital numbers, and what the model sees beside what the high resolution says it should see."""
        if not len(batch.dn):  # nothing of the batch could be read
            return Sample({"high": batch.dn})
        high, low = self.pair(batch)
        # Without the bands' means, in which any two places are alike.
        ours, theirs = (one - one.mean((-2, -1), keepdim=True) for one in (self.degradation.degrade(high), low))
        return Sample({"high": batch.dn}, (ours, theirs))

    def unreadable(self, batch: Batch) -> Sequence[str]:
        return batch.unreadable

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        """Random crops of the training patches, or whole patches of another split (whatever the epoch)."""
        if split != "train":
            whole, groups = self._whole[split]
            return crops.loader(whole, self.reader, batches=groups[start:])
        config = self.config
        drawn = crops.random_crops([one.index for one in self.split.patches["train"]], config, epoch=epoch)
        groups = crops.in_order(len(drawn), config.batch_size)[start:]
        return crops.loader(drawn, self.reader, batches=groups, num_workers=config.num_workers, forgiving=True)

    def scored(self, split: str) -> list[int]:
        """Indices of the patches of "val" or "test" that are scored: at most ``eval_patches``, all places in turn."""
        return sorted(one.index for one in in_turn(self.split.patches[split], self.config.eval_patches))

    @cached_property
    def _whole(self) -> dict[str, tuple[list[Crop], list[list[int]]]]:
        """Whole patches that are scored, and batches of them of one shape each, by split."""
        found = {}
        for name in ("val", "test"):
            chosen = self.scored(name)
            shapes = [self.validation.shapes[index] for index in chosen]
            found[name] = ([Crop(index) for index in chosen], crops.same_shape(shapes, crops.EVAL_BATCH))
        return found

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        if not len(batch.dn):
            return
        high, low = self.pair(batch, noisy=True)
        output = self.modules["generator"](low)
        if phase.name == PIXEL:
            yield Update("generator", output, (self.pixel_term(high, low, l1_part=self.config.l1_part),), high)
            return
        # Within the range first, then as near to that as the input allows.
        low_end, high_end = (self.units.of_reflectance(x, output) for x in (0.0, self.config.max_reflectance))
        output = output.maximum(low_end).minimum(high_end)
        if self.config.consistency:
            output = self.degradation.project(output, low)
        yield Update("generator", output, self.terms(high, low), high)
        discriminator = self.modules["discriminator"]
        logits = torch.cat([discriminator(high, low), discriminator(output.detach(), low)], 1)

        def judge(logits: Tensor) -> Tensor:
            return discriminator_loss(logits[:, :1], logits[:, 1:])

        right = accuracy(logits[:, :1], logits[:, 1:])
        yield Update("discriminator", logits, (LossTerm("discriminator", judge, 1.0),), accuracy=right)

    def pixel_term(self, high: Tensor, low: Tensor, *, l1_part: float, weight: float = 1.0) -> LossTerm:
        """The error at every pixel against ``high``, in units of each sample's contrast."""
        least = LEAST_CONTRAST / low.new_tensor(self.units.scale)[:, None, None]
        return LossTerm("pixel", pixel_error(high, contrast(low, least=least), l1_part=l1_part), weight)

    def terms(self, high: Tensor, low: Tensor) -> tuple[LossTerm, ...]:
        """The summands of the generator's loss in the second stage."""
        config, discriminator, perceptual = self.config, self.modules["discriminator"], self.perceptual
        assert perceptual is not None
        features = perceptual.against(self.picture(high))
        with torch.no_grad():
            real = discriminator(high, low)
        risen = config.adversarial_weight
        return (
            self.pixel_term(high, low, l1_part=1.0, weight=config.lambda_pix),
            LossTerm("perceptual", lambda output: features(self.picture(output)), config.perceptual_weight),
            LossTerm(
                "adversarial",
                lambda output: generator_loss(real, discriminator(output, low)),
                Ramp(risen, config.adversarial_ramp) if config.adversarial_ramp else risen,
                role="adversarial",
            ),
        )

    def picture(self, image: Tensor) -> Tensor:
        """``(B, 3, H, W)`` RGB in [0, 1] of images in model units."""
        return picture(self.to_reflectance(image), self.rgb)

    @torch.no_grad()
    def output(self, low: Tensor) -> Tensor:
        """What the generator makes, ``(B, C, H, W)``, of ``low`` ``(B, C, h, w)``, both in model units."""
        generator = self.modules["generator"]
        was_training = generator.training
        generator.eval()
        output = self_ensemble(generator, low) if self.config.self_ensemble else generator(low).float()
        generator.train(was_training)
        return output

    def super_resolve(self, low: Tensor) -> Tensor:
        """The same as it is handed out: nowhere negative, and as consistent as that allows."""
        return self._nonnegative(self.output(low), low)

    def _nonnegative(self, output: Tensor, low: Tensor) -> Tensor:
        reflectance = self.to_reflectance(output)
        if not self.config.consistency:
            return self.to_model(reflectance.clamp(min=0.0))
        seen = self.to_reflectance(low)
        return self.to_model(self.degradation.project_nonnegative(reflectance, seen, floor=0.0)[0])

    def _null(self, enlarge: baselines.Enlargement) -> Predictor:
        return lambda batch: enlarge(self.pair(batch)[1])

    @cached_property
    def linear(self) -> baselines.LinearFilter:
        """The linear baseline, fitted to training crops when it is first asked for."""
        loader = itertools.islice(self.batches("train", 0), FIT_BATCHES)
        return baselines.LinearFilter.fit(self.pair(batch)[::-1] for batch in loader if len(batch.dn))

    @torch.no_grad()
    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        """Scores on whole patches, as reflectance; groups are places."""
        scores = Verification(
            self.config.bands,
            self.degradation,
            data_range=self.config.max_reflectance,
            lpips=self.lpips,
            rgb=self.rgb,
        )
        for batch in self.batches(split, 0):
            high, low = self.pair(batch)
            before = self.output(low) if predictor is None else predictor(batch)
            after = self._nonnegative(before, low) if predictor is None else before
            places = [self.patches.patches[index].place for index in batch.patches]
            before, after, high, low = (self.to_reflectance(image) for image in (before, after, high, low))
            scores.add(after, high, low, places, before=before)
        return scores.evaluation()

    def describe_data(self) -> dict[str, Any]:
        return facts.describe_data(self)

    def remarks(self) -> list[str]:
        return facts.remarks(self)

    def judge(
        self,
        report: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        reference: Mapping[str, Any] | None = None,
    ) -> tuple[Sequence[Gate], Verdict]:
        from nbhelpers.stages.super_resolution.verdict import gates, verdict

        return gates(report), verdict(report, history)

    def figures(self, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
        from nbhelpers.stages.super_resolution.figures import report_figures

        yield from report_figures(self, report, history)
