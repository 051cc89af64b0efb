"""What the task takes from the tiles: declared fields, keys of the split, and what reports say."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from nbhelpers.core.fields import Affine, Field
from nbhelpers.core.splits import split_hash
from nbhelpers.stages.sar_grounding.adapters import remarks_of
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.stages.sar_grounding.layout import OPT_KEY, RTC, S1_KEYS, S2_KEYS
from nbhelpers.stages.sar_grounding.tiles import Tiles

if TYPE_CHECKING:
    from nbhelpers.stages.sar_grounding.task import GroundingTask

# What one may expect of land anywhere: mean, standard deviation, lowest and highest.
EXPECTED = {
    "s1_vv": (-11.0, 5.0, -60.0, 40.0), "s1_vh": (-18.0, 5.5, -60.0, 40.0),
    "s2_b2": (0.06, 0.06, -0.1, 3.0), "s2_b3": (0.08, 0.06, -0.1, 3.0), "s2_b4": (0.08, 0.07, -0.1, 3.0),
    "s2_b8": (0.25, 0.13, -0.1, 3.0),
}  # fmt: skip
SMALL_TILES, SMALL_RANK = 96, 4  # what is tried when memory is short


def fields() -> dict[str, Field]:
    """Backscatter in dB, and reflectance of the truth."""
    return {
        name: Field(
            name, "dB" if name in S1_KEYS else "reflectance", (low, high), mean, std, float("nan"), Affine(std, mean)
        )
        for name, (mean, std, low, high) in EXPECTED.items()
    }


def keys(tiles: Tiles) -> dict[str, dict[str, set[str]]]:
    """What no two splits may share: spatial blocks, and hashes of what the tiles hold."""
    readable = {split: [name for name in names if name not in tiles.unreadable] for split, names in tiles.split.items()}
    return {
        "block": {split: {tiles.block[name] for name in names} for split, names in readable.items()},
        "content": {split: {_content(tiles, name) for name in names} for split, names in readable.items()},
    }


def _content(tiles: Tiles, name: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(tiles.s2(name)).tobytes()).hexdigest()


def describe_data(tiles: Tiles) -> dict[str, Any]:
    """Where the tiles came from and how they were split; the sha256 is over S1, truth and the image to refine."""
    found = hashlib.sha256(json.dumps([*S1_KEYS, *S2_KEYS, OPT_KEY]).encode())
    for name in sorted(name for names in tiles.split.values() for name in names if name not in tiles.unreadable):
        found.update(name.encode())
        for image in (tiles.s1(name), tiles.s2(name), tiles.opt_v2(name)):
            found.update(np.ascontiguousarray(image).tobytes())
    blocks = {split: {tiles.block[name] for name in names} for split, names in tiles.split.items()}
    return {
        "source": str(tiles.folder.resolve()),
        "sha256": found.hexdigest(),
        "simulated": tiles.simulated,
        "opt_v2": tiles.opt_v2_kind,
        "size": list(tiles.size),
        "pixel_m": tiles.pixel_m,
        "statistics": {name: list(values) for name, values in dataclasses.asdict(tiles.statistics).items()},
        "split": {
            "rule": "spatial blocks",
            **{split: f"{len(names)} tiles of {len(blocks[split])} blocks" for split, names in tiles.split.items()},
        },
        "split_sha256": split_hash({split: sorted(names) for split, names in tiles.split.items()}),
    }


def smaller(config: Config, side: int) -> tuple[str, ...]:
    """What to do when memory is short, what helps most first (``benchmarks/memory.py``); time steps cost none.

    Args:
        side: of the tiles, the shorter one.
    """
    found = []
    if config.batch_size > 1:
        found.append(f"halve batch_size (it is {config.batch_size}) and double grad_accum")
    if (side if config.tile_size is None else min(side, config.tile_size)) > SMALL_TILES:
        found.append(f"cut tiles to {SMALL_TILES} x {SMALL_TILES} for training: tile_size {SMALL_TILES}")
    if config.model != "compact" and config.terramind != "tiny":
        found.append(f"take a smaller TerraMind, e.g. terramind tiny (it is {config.terramind})")
    if config.lpips_weight and config.model != "terramind-tokens":
        found.append(f"switch LPIPS off: lpips_weight 0 (it is {config.lpips_weight:g})")
    if (config.model != "compact" or config.base is not None) and config.lora_rank > SMALL_RANK:
        found.append(
            f"lower lora_rank to {SMALL_RANK} and lora_alpha to {2 * SMALL_RANK} (they are {config.lora_rank} and "
            f"{config.lora_alpha:g})"
        )
    if config.model == "compact" and config.base is None:
        found.append(f"lower fine (it is {config.fine}) and coarse (it is {config.coarse})")
    return tuple(found) or ("take a machine with more memory: nothing is left to make smaller",)


def remarks(task: GroundingTask) -> list[str]:
    """What a reader of the report must know first: above all, what the image is that was refined."""
    tiles, config, lpips = task.tiles, task.config, task.lpips
    found = [f"The image that is refined (opt_v2) is {tiles.source}."]
    if tiles.simulated:
        found.append("Simulated scenes: the scores say how well the method works here, not on real ones.")
    found += tiles.warnings
    if tiles.unreadable:
        found.append(f"{len(tiles.unreadable)} training tiles cannot be read and are left out.")
    if config.model != "compact" and not config.pretrained:
        found.append("TerraMind started from RANDOM weights, as asked for (pretrained off): it knows nothing.")
    if config.model != "compact" and any(RTC in (one.source or "") for one in tiles.about.values()):
        found.append(f"{RTC}, and TerraMind was trained on ground-range S1 (GRD): other numbers over slopes.")
    if config.model == "terramind-tokens":
        found.append(
            "The token route learns by cross-entropy on tokens alone: the five weights and LPIPS do not train it."
        )
    if not config.use_sar:
        found.append("The model never sees the SAR image (use_sar off): the control that others are compared with.")
    found += remarks_of(task.modules["generator"])
    found.append("sar_agreement: 0.5 is chance; what the true images reach stands beside it.")
    if lpips.weights.is_random:
        found.append("The LPIPS network has RANDOM weights, as asked for: its distance is not LPIPS.")
    elif lpips.weights.source != "imagenet":
        found.append(f"lpips is {lpips.name}: close to canonical LPIPS, not the same.")
    if config.lpips_weight and config.model != "terramind-tokens":
        found.append("The LPIPS term and the LPIPS metric look through the same network: it is no independent judge.")
    return found
