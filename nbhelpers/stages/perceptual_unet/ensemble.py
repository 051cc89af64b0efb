"""Several trained nets that forecast together: found, checked, run one after the other, and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet import windows
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.ensemble_scores import (
    EnsembleVerification,
    as_if_sure,
    probability_matched_mean,
)
from nbhelpers.stages.perceptual_unet.task import EVAL_BATCH, STAGE, NowcastTask
from nbhelpers.stages.perceptual_unet.verification import Verification
from nbhelpers.stages.perceptual_unet.windows import Batch
from nbhelpers.training import checkpoint
from nbhelpers.training.checkpoint import Checkpoint
from nbhelpers.training.metrics import Metric
from nbhelpers.training.opening import check_same_data
from nbhelpers.training.run import Run

Scores = Mapping[str, Mapping[str, Metric]]  # of "member", "mean", "pmm" and "ensemble"


@dataclass(frozen=True)
class Member:
    """One trained net: a checkpoint of a run."""

    run: Run
    checkpoint: Checkpoint
    config: Config  # the settings it was trained with

    def __str__(self) -> str:
        return f"{self.run.name} step {self.checkpoint.step}"


@dataclass(frozen=True)
class Ensemble:
    """Members of one architecture, trained on the same events."""

    task: NowcastTask  # its net takes the weights of one member after the other
    members: tuple[Member, ...]
    weights: tuple[Mapping[str, Tensor], ...]  # of each member's net, in the memory of the host

    @property
    def loss(self) -> str:
        """What tells the members' losses apart, in words."""
        return " or ".join(dict.fromkeys(_loss(member.config) for member in self.members))


def _loss(config: Config) -> str:
    if config.perceptual_is_off:
        return "no perceptual term"
    if config.lambda_perc is not None:
        return f"perceptual λ {config.lambda_perc:g}"
    return f"perceptual share {config.perceptual_share:g}"


def open_ensemble(folders: Sequence[Path], *, data_dir: Path | None = None, beside: Ensemble | None = None) -> Ensemble:
    """Load the members; each folder is a run (its best checkpoint) or a checkpoint ``RUN/checkpoints/step_000123``.

    The weights wait in the host's memory (about 30 MB each for the default net) and there is one net on the device.

    Args:
        data_dir: where the data now lie, if not where the first member was trained on them.
        beside: an ensemble to compare with; the new one is scored on the same windows and must fit to it.

    Raises:
        UserError: fewer than two members, one of them twice, or members that differ in stage, data, split, frames or
            architecture.
    """
    if len(folders) < 2:
        raise UserError(f"an ensemble of {len(folders)} has no spread: give at least 2 runs or checkpoints.")
    members = tuple(_find(Path(folder)) for folder in folders)
    first = members[0] if beside is None else beside.members[0]
    for member in members:
        _check_like(member, first)
    task = _task(first, data_dir) if beside is None else beside.task
    weights = tuple(_weights(task, member) for member in members)
    _check_different(members, weights)
    return Ensemble(task, members, weights)


def _find(folder: Path) -> Member:
    if (folder / checkpoint.WEIGHTS).is_file():
        run, found = Run(folder.resolve().parents[1]), checkpoint.at(folder)
    else:
        run = Run(folder)
        best = checkpoint.find(run, "best") if run.config_file.is_file() else None
        if best is None:
            raise UserError(
                f"{folder} is neither a run with a best checkpoint nor a checkpoint: give a run folder that has been "
                "trained for an epoch, or one such as RUN/checkpoints/step_000123."
            )
        found = best
    record = run.read_config()
    if record["stage"] != STAGE:
        raise UserError(f"{folder} is a run of stage {record['stage']!r}, expected {STAGE!r}: leave it out.")
    config = Config.for_profile(record["config"]["profile"]).replace(record["config"], source=str(run.config_file))
    return Member(run, found, config)


def _check_like(member: Member, first: Member) -> None:
    """Raise ``UserError`` unless the two forecast the same frames from the same ones and were kept from the same."""
    ours, theirs = first.run.read_config(), member.run.read_config()

    def frames(config: Config, lead_minutes: Sequence[int]) -> str:
        return f"{config.n_in} frames in and {config.n_out} out every {lead_minutes[0]} min"

    one, other = (frames(m.config, record["data"]["lead_minutes"]) for m, record in ((first, ours), (member, theirs)))
    if one != other:
        raise UserError(
            f"{member.run.folder} takes {other}, but {first.run.folder} takes {one}: members must forecast the same."
        )
    if any(ours["hashes"][key] != theirs["hashes"][key] for key in ("data", "split")):
        raise UserError(
            f"{member.run.folder} was trained on other events or another split of them than {first.run.folder}, so "
            "one's training events could be the other's test: use runs on the same data and split."
        )
    if ours["hashes"]["architecture"] != theirs["hashes"]["architecture"]:
        raise UserError(
            f"{member.run.folder} has another architecture than {first.run.folder}: use runs with the same net, which "
            "differ in seed, loss or step."
        )


def _task(first: Member, data_dir: Path | None) -> NowcastTask:
    # Only forecasts are wanted of it: the network behind the perceptual loss stays unloaded.
    config = first.config.replace({"lambda_perc": 0.0}, source="the ensemble")
    task: Any = NowcastTask(config, data_dir or Path(first.run.read_config()["data"]["source"]))
    check_same_data(task, first.run)
    return task


def _weights(task: NowcastTask, member: Member) -> dict[str, Tensor]:
    checkpoint.load_weights(member.checkpoint, task.modules)
    return {key: tensor.detach().cpu().clone() for key, tensor in task.modules["unet"].state_dict().items()}


def _check_different(members: Sequence[Member], weights: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise ``UserError`` where two members are one net: an ensemble would look surer than it is."""
    for i, mine in enumerate(weights):
        for j in range(i):
            if all(torch.equal(tensor, weights[j][key]) for key, tensor in mine.items()):
                raise UserError(
                    f"{members[j].checkpoint.folder} and {members[i].checkpoint.folder} hold the same weights: give "
                    "each net once (another seed makes another net)."
                )


def forecast_members(ensemble: Ensemble, batch: Batch) -> Tensor:
    """``(B, M, n_out, H, W)`` forecasts of all members in model units, clipped to [0, 1]."""
    unet, found = ensemble.task.modules["unet"], []
    for weights in ensemble.weights:
        unet.load_state_dict(weights)
        found.append(ensemble.task.forecast(batch).clamp(0, 1))
    return torch.stack(found, dim=1)


def score_ensemble(ensemble: Ensemble, split: str) -> Scores:
    """Scores on the fixed windows of a split, by event and lead time.

    ``member`` (one member, pooled over all of them), ``mean`` and ``pmm`` (the probability-matched mean) have every
    score of a forecast, and what they earn as a probability when they are read as certain; ``ensemble`` has the
    probabilistic scores.

    Raises:
        UserError: unknown split.
    """
    task = ensemble.task
    if split not in task.split.events:
        raise UserError(f"split {split!r} is unknown: choose one of {', '.join(task.split.events)}.")
    single = {name: Verification(task.leads, task.lpips) for name in ("member", "mean", "pmm")}
    probable = EnsembleVerification(task.leads, len(ensemble.members))
    fixed = windows.fixed_windows(task.split.events[split], task.config)
    loader = windows.loader(fixed, task.config, task.cache, batch_size=EVAL_BATCH)
    for batch in tqdm(loader, desc=f"ensemble of {len(ensemble.members)}", leave=False, disable=None):
        observed = batch.frames[:, task.config.n_in :].to(task.device)
        members = forecast_members(ensemble, batch)
        probable.accumulate(members, observed, batch.events)
        for member in members.unbind(1):
            single["member"].accumulate(member, observed, batch.events)
        single["mean"].accumulate(members.mean(1), observed, batch.events)
        single["pmm"].accumulate(probability_matched_mean(members), observed, batch.events)
    found = {name: verification.compute().metrics for name, verification in single.items()}
    return {**{name: {**own, **as_if_sure(own)} for name, own in found.items()}, "ensemble": probable.compute()}
