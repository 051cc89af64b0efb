"""A run's rollouts on disk, in the layout of the data: what reads the simulations reads the forecasts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nbhelpers.core.disk import whole_folder
from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import layout
from nbhelpers.stages.neural_operator.data import Collection
from nbhelpers.stages.neural_operator.folder import FolderStore
from nbhelpers.training.run import writing

if TYPE_CHECKING:
    from nbhelpers.stages.neural_operator.task import OperatorTask

FORECASTS = "forecasts"  # the folder in a run's folder


def write_forecasts(task: OperatorTask, path: Path, *, split: str, checkpoint: str) -> int:
    """Write the rollout of every window of a split as a simulation of its own; returns their number.

    Frame 0 is the last frame that the model was given. Each ``description.json`` says which simulation and frame it
    starts from, and by which checkpoint it was made; the constants of the set are in ``dataset.json``. The folder is
    there when all of it is: it is written under another name beside it first.

    Raises:
        UserError: an unknown split, or a folder that exists and holds something.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: delete it, or choose another folder with --to.")
    if split not in task.split.segments:
        raise UserError(f"split {split!r} is unknown: choose one of {', '.join(task.split.segments)}.")
    collection, n_in, number = task.collection, task.config.n_in, 0
    # a .mat file holds one channel a field
    counts = (
        collection.store.channels
        if isinstance(collection.store, FolderStore)
        else dict.fromkeys(collection.channels, 1)
    )
    stride = task.config.sequence_length[1]
    with writing(path), whole_folder(path) as unfinished:
        for batch in task.batches(split, 0):
            given = task.to_model(batch.frames)[:, n_in - 1 : n_in]
            frames = task.to_units(torch.cat([given, task.forecast(batch).rollout], 1)).cpu().numpy()
            masks = [None] * len(frames) if batch.inside is None else batch.inside.numpy()
            for one, inside, name, start in zip(frames, masks, batch.simulations, batch.starts, strict=True):
                fields, begin = {}, 0
                for field, count in counts.items():
                    part = one[:, begin : begin + count]
                    fields[field], begin = part if count > 1 else part[:, 0], begin + count
                description = {
                    "Simulation": name, "First Frame": start + (n_in - 1) * stride, "Checkpoint": checkpoint,
                }  # fmt: skip
                layout.write_simulation(unfinished, number, fields, description=description, obstacle=inside)
                number += 1
        record = {
            "set": f"forecasts of {collection.facts.name}",
            "lengths": list(collection.facts.lengths),
            "periodic": collection.facts.periodic,
            "frame_gap": collection.facts.frame_gap * stride,
            "normalisation": _normalisation(collection, counts),
        }
        (unfinished / layout.DATASET).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return number


def _normalisation(collection: Collection, counts: Mapping[str, int]) -> dict[str, dict[str, list[float]]]:
    """That of the data, by field: so that a few short forecasts can be read, of which it could not be estimated."""
    named = zip(collection.channels, collection.std, strict=True)
    stds = [0.0 if name in collection.constant else std for name, std in named]
    found, begin = {}, 0
    for field, count in counts.items():
        part, begin = slice(begin, begin + count), begin + count
        found[field] = {"mean": list(collection.mean[part]), "std": stds[part]}
    return found
