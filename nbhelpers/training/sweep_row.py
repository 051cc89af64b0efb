"""One row of a sweep's table: a run trained to its end, and its best checkpoint scored once on each split."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbhelpers import __version__
from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import pick_device
from nbhelpers.training import checkpoint, history
from nbhelpers.training.checkpoint import Checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.ledger_summary import ledger_summary, settled_step
from nbhelpers.training.run import Run, writing
from nbhelpers.training.sweep_scores import Scores, plain
from nbhelpers.training.task import Task

SPLITS = ("val", "test")  # choices are made on the first; the second is scored once and only shown
UNITS = "units of "  # before the key of a metric's sums in SCORES
SCORES = "scores.npz"  # in the run's folder: the sums behind its scores, so that no call scores a checkpoint twice


@dataclass(frozen=True)
class Row:
    """One run of a sweep."""

    record: dict[str, Any]  # its entry in sweep.json
    scores: Mapping[str, Scores]  # by split; empty where a guard stopped the run


def make_row(task: Task, run: Run, *, setting: str, term: str, like: Scores) -> Row | None:
    """Train a run to its end, or what is left of it, and score it; None when the user stopped it.

    Args:
        setting: the name of the setting in the table.
        term: the loss term whose share of the loss and of the gradient is wanted.
        like: metrics of any predictor on these data; those of the row are of the same names.
    """
    stopped = None
    try:
        if fit(task, run).interrupted:
            return None
    except GuardStop as error:
        stopped = str(error)
        print(stopped)
    rows = history.read_rows(run.history_file)
    ledger = ledger_summary(history.read_rows(run.ledger_file), since=settled_step(rows))
    share = ledger.get(term, {"value_share": 0.0, "grad_share": 0.0})
    record: dict[str, Any] = {
        "setting": setting,
        "seed": task.config.seed,
        "run": run.name,
        "stopped": stopped,
        "checkpoint": None,
        "epochs": rows[-1]["epoch"] if rows else 0,
        "minutes": sum(row["seconds"] for row in rows) / 60,
        "value_share": share["value_share"],
        "grad_share": share["grad_share"],
    }
    if stopped is not None:
        return Row(record, {})
    found = checkpoint.find(run, "best")
    assert found is not None, "a run that was trained to its end has a best checkpoint"
    record["checkpoint"] = {"path": f"{run.name}/checkpoints/{found.folder.name}", "step": found.step}
    record["checkpoint"]["sha256"] = found.sha256
    scores = _kept(run, found, like) or _score(task, run, found, like)
    record |= {split: {name: plain(metric.value) for name, metric in scores[split].items()} for split in SPLITS}
    return Row(record, scores)


def _score(task: Task, run: Run, found: Checkpoint, like: Scores) -> Mapping[str, Scores]:
    """Both splits with the checkpoint's weights; the sums are kept beside the run."""
    checkpoint.load_weights(found, task.modules)
    task.to(pick_device())
    for module in task.modules.values():
        module.to(pick_device()).eval()
    # What only the model has (a loss term followed on validation) is no score to compare.
    scores = {split: {n: m for n, m in task.evaluate(split).metrics.items() if n in like} for split in SPLITS}
    arrays: dict[str, Any] = {f"{split}/{name}": m.sums for split in SPLITS for name, m in scores[split].items()}
    # They may count what a split has.
    arrays |= {f"{UNITS}{split}/{name}": np.array(m.units) for split in SPLITS for name, m in scores[split].items()}
    arrays |= {key: np.array(value) for key, value in _origin(found).items()}
    path = run.folder / SCORES
    with writing(path):
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    return scores


def _kept(run: Run, found: Checkpoint, like: Scores) -> Mapping[str, Scores] | None:
    """What an earlier call scored, if it was this checkpoint by this version and by the metrics there are now.

    What a sum means is read off another's metric, so the two must have the same names and labels.
    """
    path = run.folder / SCORES
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the run is scored again.") from error
    origin = _origin(found)
    if {key: str(arrays.pop(key, None)) for key in origin} != origin:
        return None
    units = {key.removeprefix(UNITS): str(arrays.pop(key)) for key in list(arrays) if key.startswith(UNITS)}
    labels = {f"{split}/{name}": metric.sums.shape[1:] for split in SPLITS for name, metric in like.items()}
    if {key: sums.shape[1:] for key, sums in arrays.items()} != labels or units.keys() != labels.keys():
        return None
    keys = {split: {name: f"{split}/{name}" for name in like} for split in SPLITS}
    return {
        split: {name: dataclasses.replace(like[name], sums=arrays[key], units=units[key]) for name, key in mine.items()}
        for split, mine in keys.items()
    }


def _origin(found: Checkpoint) -> dict[str, str]:
    """What else the sums depend on, besides the data of the run."""
    return {"sha256": found.sha256, "version": __version__}
