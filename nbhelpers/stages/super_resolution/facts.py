"""What config.json and the report say of the data and of the networks that judge."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

from nbhelpers.core.splits import split_hash
from nbhelpers.stages.super_resolution.patch import SIMULATION_NAME

if TYPE_CHECKING:
    from nbhelpers.stages.super_resolution.task import SuperResolutionTask


def describe_data(task: SuperResolutionTask) -> dict[str, Any]:
    """Where the data came from and how they were split; the sha256 is over the pixels of every patch used."""
    groups, content = task.split.patches, task.validation.content
    ids = {name: sorted(one.id for one in group) for name, group in groups.items()}
    pixels = sorted((one.id, content.get(one.index)) for group in groups.values() for one in group)
    places = {name: len({one.place for one in group}) for name, group in groups.items()}
    return {
        "source": str(task.data_dir.resolve()),
        "sha256": hashlib.sha256(json.dumps([task.config.bands, pixels]).encode()).hexdigest(),
        "simulated": is_simulated(task),
        "bands": list(task.config.bands),
        "units": dataclasses.asdict(task.units),  # a generator can then be used without the data
        "split": {
            "rule": task.split.rule,
            **{name: f"{len(group)} patches of {places[name]} places" for name, group in groups.items()},
        },
        "split_sha256": split_hash(ids),
    }


def is_simulated(task: SuperResolutionTask) -> bool:
    """Whether the data say of themselves that they were simulated."""
    return (task.patches.root / SIMULATION_NAME).exists()


def remarks(task: SuperResolutionTask) -> list[str]:
    """What a reader of the report must know first."""
    config, perceptual, lpips = task.config, task.perceptual, task.lpips
    found = []
    if is_simulated(task):
        found.append("Simulated landscapes: the scores say how well the method works here, not on real ones.")
    found += task.validation.remarks()
    scored = {split: task.scored(split) for split in ("val", "test")}
    of = [
        f"{len(chosen)} patches of {len({task.patches.patches[index].place for index in chosen})} places in {split}"
        for split, chosen in scored.items()
    ]
    found.append(f"Scored are {' and '.join(of)}; a place counts as one independent group.")
    found.append(
        f"PSNR and SSIM: reflectance with a data range of {config.max_reflectance:g}, without a border of "
        f"{config.scale} pixels, of each patch and band, then the mean over both."
    )
    found.append("Bicubic interpolation is PyTorch's, with the slope a = -0.75 of its kernel.")
    if config.self_ensemble:
        found.append("The model's outputs are means over eight mirrored and turned inputs; those of the baselines not.")
    if config.scaling == "percentile":
        found.append("Model units by each band's 2nd and 98th percentile over the training set, as asked for.")
    if perceptual is not None and perceptual.weights.is_random:
        found.append(f"The perceptual term uses RANDOM features of {config.backbone}, as asked for.")
    if lpips.weights.is_random:
        found.append(
            "LPIPS is not reported: its network has random weights; feature_distance_random stands in its place."
        )
    elif lpips.weights.source != "imagenet":
        found.append(f"lpips is {lpips.name}: close to canonical LPIPS, not the same.")
    if perceptual is not None and perceptual.weights.sha256 == lpips.weights.sha256:
        found.append("The perceptual term and lpips look through the same network: lpips is no independent judge.")
    nets = [] if perceptual is None else [f"perceptual term: {perceptual.weights}"]
    found.append("; ".join([*nets, f"feature distance: {lpips.weights}"]) + ".")
    return found
