"""The nowcast as a ``Task``: data, model, losses and scores put together."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from nbhelpers.core.errors import UserError
from nbhelpers.core.fields import Field
from nbhelpers.core.runtime import pick_device
from nbhelpers.core.splits import hash_order, split_hash
from nbhelpers.science.perceptual import Lpips, PerceptualLoss
from nbhelpers.stages.perceptual_unet import baselines, data, windows
from nbhelpers.stages.perceptual_unet.advection import moving_frames
from nbhelpers.stages.perceptual_unet.config import MIN_SIDE, Config
from nbhelpers.stages.perceptual_unet.content import fingerprint
from nbhelpers.stages.perceptual_unet.losses import absolute_error, perceptual_error, pixel_weights, squared_error
from nbhelpers.stages.perceptual_unet.model import UNet2D
from nbhelpers.stages.perceptual_unet.verification import Verification
from nbhelpers.stages.perceptual_unet.windows import Batch
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

STAGE = "perceptual-unet"
EVAL_BATCH = 4  # whole frames at once while scoring
LOOKED_INTO = 16  # events whose pixels count in the data's sha256; each is a short read
GB = 1_000_000_000


def _monitor(config: Config, distance: str) -> Monitor:
    """How to compare checkpoints by ``config.monitor``; ``distance`` is the key of the feature distance.

    Raises:
        UserError: a metric that does not exist or that has no better end (a bias is best at 1).
    """
    metric, lower = config.monitor, ["mse", "mae", distance]
    higher = ["ssim", "csi_m", *(f"{score}_{level}" for score in ("csi", "hss") for level in data.THRESHOLDS)]
    if metric not in lower + higher:
        raise UserError(f"monitor is {metric!r}, expected one of {', '.join(lower + higher)}.")
    return Monitor(metric, "min" if metric in lower else "max", config.patience, config.armed_after)


def pixel_term(config: Config, target: Tensor, valid: Tensor) -> LossTerm:
    """The summand of the loss that compares pixel by pixel with ``target``, ``(B, n_out, H, W)`` in model units.

    One term, because the perceptual one is weighed against all of it. It is called ``mse`` where it is just that.
    """
    weights = pixel_weights(valid, target, emphasis=config.emphasis, even_leads=config.even_leads)
    plain = not (config.emphasis or config.even_leads or config.mae_weight)

    def error(prediction: Tensor) -> Tensor:
        squared = squared_error(prediction, target, weights)
        if not config.mae_weight:
            return squared
        return squared + config.mae_weight * absolute_error(prediction, target, weights)

    return LossTerm("mse" if plain else "pixel", error, 1.0)


class NowcastTask:
    """Radar nowcasting on data in SEVIR's format.

    Args:
        config: the resolved settings.
        data_dir: folder with the catalogue.

    Raises:
        UserError: data or weights that are missing, damaged or do not fit the settings.
    """

    stage = STAGE

    def __init__(self, config: Config, data_dir: Path):
        self.config, self.data_dir = config, Path(data_dir)
        events = data.read_catalogue(self.data_dir, max_pct_missing=config.max_pct_missing)
        self.shape = data.check_events(events)  # height and width of a frame
        if min(self.shape) < MIN_SIDE:
            raise UserError(
                f"the frames in {self.data_dir} have {self.shape[0]} x {self.shape[1]} pixels, expected at least "
                f"{MIN_SIDE} each way: the networks behind the perceptual loss and LPIPS pool smaller ones away."
            )
        self.split = windows.split_events(events, subset=config.subset)
        used = [event for group in self.split.events.values() for event in group]
        for event in used:
            windows.window_span(event, config)
        self.leads = windows.lead_minutes(used, config)
        self.cache = data.EventCache(int(config.cache_gb * GB))
        self.fields: Mapping[str, Field] = {"input": data.VIL, "target": data.VIL}

        torch.manual_seed(config.seed)
        unet = UNet2D(
            config.n_in,
            config.n_out,
            base=config.base_channels,
            depth=config.depth,
            residual=config.first_guess != "none",
            coordinates="moving" if config.first_guess == "advection" else "fixed",
        ).to(memory_format=torch.channels_last)  # a third faster, on the CPU too
        self.modules: MutableMapping[str, nn.Module] = {"unet": unet}
        self.perceptual = None if config.perceptual_is_off else PerceptualLoss(config.backbone, config.backbone_weights)
        self.lpips = Lpips(config.lpips_net, config.lpips_source)

        self.phases = (self._phase(unet),)
        self.monitor = _monitor(config, self.lpips.key)
        self.milestones: Sequence[Milestone] = ()
        self.controls: Mapping[str, Predictor] = {}
        self.loss_scheduler = None
        self.event_level: float | None = data.THRESHOLDS[0] / 255
        make = {
            "persistence": baselines.persistence,
            "advection": baselines.advection,
            "blurred_truth": baselines.blurred_truth,
        }
        self.nulls: Mapping[str, Predictor] = {name: partial(self._null, forecast) for name, forecast in make.items()}
        headlines = ("mse", "csi_74", "csi_133", "csi_m", "bias_74", "fss_74_4", "ssim", self.lpips.key, "rapsd_ratio")
        self.headlines: Sequence[str] = headlines
        self.oom_advice: Sequence[str] = (
            f"halve batch_size (it is {config.batch_size})",
            f"lower crop (it is {config.crop})",
            f"lower base_channels (it is {config.base_channels})",
            "use backbone 'squeeze'",
        )
        self.to(pick_device())  # baselines and the λ panel run before any training, and shall not wait for a CPU

    def _phase(self, unet: nn.Module) -> Phase:
        optimizer = torch.optim.Adam(unet.parameters(), lr=self.config.lr)
        n_events = len(self.split.events["train"])
        drawn = n_events * windows.windows_per_event(self.config, n_events)
        batches = math.ceil(drawn / self.config.batch_size)
        steps = self.config.epochs * math.ceil(batches / self.config.accumulate)
        schedulers = {}
        if self.config.cosine:
            schedulers["unet"] = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))
        return Phase("train", self.config.epochs, {"unet": optimizer}, schedulers)

    def to(self, device: torch.device) -> None:
        self.device = device
        for module in (*self.modules.values(), self.lpips):
            module.to(device)
        if self.perceptual is not None:
            self.perceptual.to(device)

    def keys(self) -> dict[str, dict[str, set[str]]]:
        """Events, their content, and their days where the split is by date."""
        found = {
            "event": {name: {event.id for event in group} for name, group in self.split.events.items()},
            "content": {
                name: {key for event in group if (key := fingerprint(event)) is not None}
                for name, group in self.split.events.items()
            },
        }
        if self.split.by_day:
            found["day"] = {n: {str(event.time.date()) for event in group} for n, group in self.split.events.items()}
        return found

    def look(self, batch: Batch) -> Sample:
        """Grey levels, and the first frame to predict beside the last one seen."""
        n_in = self.config.n_in
        near = batch.frames[:, n_in - 1 : n_in + 1].float()
        last, first = torch.where(near == data.MISSING, torch.nan, near).unbind(1)
        return Sample({"input": batch.frames[:, :n_in], "target": batch.frames[:, n_in:]}, (first, last))

    def unreadable(self, batch: Batch) -> Sequence[str]:
        return batch.unreadable

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        """Random windows of the training events, or the fixed windows of another split (whatever the epoch)."""
        events = self.split.events[split]
        if split != "train":
            fixed = windows.fixed_windows(events, self.config)[start * EVAL_BATCH :]
            return windows.loader(fixed, self.config, self.cache, batch_size=EVAL_BATCH)
        drawn = windows.random_windows(
            events, self.config, epoch=epoch, shape=self.shape, group=self.cache.events_that_fit(events, self.shape)
        )
        drawn = drawn[start * self.config.batch_size :]
        return windows.loader(drawn, self.config, self.cache, batch_size=self.config.batch_size, forgiving=True)

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        if not len(batch.frames):
            return
        frames, valid = data.VIL.to_model(batch.frames.to(self.device, non_blocking=True))
        n_in = self.config.n_in
        prediction = self._predict(frames[:, :n_in], valid[:, :n_in])
        target, measured = frames[:, n_in:], valid[:, n_in:]
        yield Update("unet", prediction, self.terms(target, measured), target, measured)

    def _predict(self, frames: Tensor, valid: Tensor) -> Tensor:
        """``(B, n_out, H, W)`` of the net for ``(B, n_in, H, W)`` inputs in model units and their mask."""
        if self.config.first_guess != "advection":
            return self.modules["unet"](frames)
        # In coordinates that move with the rain the last frame is the advection nowcast, and what is left to learn is
        # where rain grows and decays.
        moving = moving_frames(frames, self.config.n_out, valid=valid)
        return moving.carry(self.modules["unet"](moving.aligned))

    def terms(self, target: Tensor, valid: Tensor) -> tuple[LossTerm, ...]:
        """The summands of the loss against ``target``, ``(B, n_out, H, W)`` in model units."""
        pixel = pixel_term(self.config, target, valid)
        if self.perceptual is None:
            return (pixel,)
        return pixel, LossTerm(
            "perceptual",
            perceptual_error(self.perceptual, target, valid, n_frames=self.config.perceptual_frames),
            self.config.perceptual_weight,
        )

    @torch.no_grad()
    def forecast(self, batch: Batch) -> Tensor:
        """The model's forecast of a batch: ``(B, n_out, H, W)`` in model units, not clipped."""
        frames, valid = data.VIL.to_model(batch.frames[:, : self.config.n_in].to(self.device))
        unet = self.modules["unet"]
        was_training = unet.training
        unet.eval()
        prediction = self._predict(frames, valid)
        unet.train(was_training)
        return prediction.float()

    def _null(self, forecast: Any, batch: Batch) -> Tensor:
        return forecast(batch.frames.to(self.device), self.config.n_in, self.config.n_out)

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        # The model's raw perceptual term is followed on validation, to be read beside its value in training.
        followed = self.perceptual if split == "val" and predictor is None else None
        scores = Verification(self.leads, self.lpips, perceptual=followed)
        fixed = windows.fixed_windows(self.split.events[split], self.config)
        for batch in windows.loader(fixed, self.config, self.cache, batch_size=EVAL_BATCH):
            observed = batch.frames[:, self.config.n_in :].to(self.device)
            scores.accumulate((predictor or self.forecast)(batch), observed, batch.events)
        return scores.compute()

    def describe_data(self) -> dict[str, Any]:
        """Where the data came from and how they were split.

        ``sha256`` is over what the catalogue says of the used events and a look into some of them: hashing tens of
        gigabytes would take longer than a short run. In which file an event lies, and where in it, does not count.
        """
        used = {event.id: event for group in self.split.events.values() for event in group}
        columns = [name for name in data.CATALOGUE_COLUMNS if name not in ("file_name", "file_index")]
        # Events that were fetched in two goes stand in another order than the same ones fetched at once.
        rows = sorted(
            {
                tuple(row.get(name) or "" for name in columns)
                for _, row in data.catalogue_rows(data.find_catalogue(self.data_dir))
                if row["id"] in used
            }
        )
        looks = [fingerprint(used[key]) for key in hash_order(used)[:LOOKED_INTO]]
        digest = hashlib.sha256(json.dumps([self.shape, rows, looks]).encode()).hexdigest()
        ids = {name: [event.id for event in group] for name, group in self.split.events.items()}
        return {
            "source": str(self.data_dir.resolve()),
            "sha256": digest,
            "simulated": data.simulation_record(self.data_dir) is not None,
            "shape": list(self.shape),
            "lead_minutes": list(self.leads),
            "split": {"rule": self.split.rule, **{name: len(group) for name, group in ids.items()}},
            "split_sha256": split_hash(ids),
        }

    def remarks(self) -> list[str]:
        remarks = []
        if data.simulation_record(self.data_dir) is not None:
            remarks.append(
                "Simulated storms: the scores say how well the method works here, not how well it forecasts weather."
            )
        if self.perceptual is not None and self.perceptual.weights.is_random:
            remarks.append(
                f"The perceptual term uses RANDOM features of {self.config.backbone}, as asked for: no pretrained "
                "weights."
            )
        if self.lpips.weights.is_random:
            remarks.append(
                "LPIPS is not reported: its network has random weights; feature_distance_random stands in its place."
            )
        elif self.lpips.weights.source != "imagenet":
            remarks.append(f"lpips is {self.lpips.name}: close to canonical LPIPS, not the same.")
        if absent := data.absent_files(self.data_dir):
            remarks.append(
                f"{len(absent)} files that the catalogue names are not in the data folder (e.g. {absent[0]}): their "
                "events are left out."
            )
        nets = [] if self.perceptual is None else [f"perceptual term: {self.perceptual.weights}"]
        remarks.append("; ".join([*nets, f"feature distance: {self.lpips.weights}"]) + ".")
        return remarks

    def judge(
        self,
        report: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        reference: Mapping[str, Any] | None = None,
    ) -> tuple[Sequence[Gate], Verdict]:
        from nbhelpers.stages.perceptual_unet.verdict import gates, verdict

        return gates(report), verdict(report, history, reference)

    def figures(self, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
        from nbhelpers.stages.perceptual_unet.figures import report_figures

        yield from report_figures(self, report, history)
