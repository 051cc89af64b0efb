"""Opening a run's folder: a new one, the one that is there, or the one that a lost session left on Drive."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import environment
from nbhelpers.training import mirror
from nbhelpers.training.checkpoint import Checkpoint
from nbhelpers.training.history import read_rows
from nbhelpers.training.lock import locked
from nbhelpers.training.run import Run, architecture_hash, json_hash, write_json, writing
from nbhelpers.training.task import Task


def open_run(task: Task, output_dir: Path, run_name: str, *, resume: str = "auto", copy_dir: Path | None = None) -> Run:
    """The folder ``output_dir/run_name``: a new one, or an existing one that was started with the same settings.

    Args:
        resume: "auto" continues an existing run; "never" starts ``<run_name>-2`` (or -3, …) beside it.
        copy_dir: an existing folder (on Drive, say) to which the run is copied as it is saved. A run that is only
            there, or further on there, is brought back first: the session it was trained in is gone.

    Raises:
        UserError: the run has been trained with other data, model, loss or seed; or the folder holds something that is
            no run. It is left untouched.
    """
    if run_name == ".." or Path(run_name).name != run_name or not run_name:
        raise UserError(f"run name {run_name!r} is not a plain folder name: use letters, digits, '-' and '_'.")
    copy_dir = None if copy_dir is None else Path(copy_dir)
    run = Run(Path(output_dir) / run_name, copy_dir)
    if resume == "never":
        run = Run(_free_name(run), copy_dir)
    record = _record(task)
    if copy_dir is not None:
        if copy_dir.resolve() == Path(output_dir).resolve():
            raise UserError(f"runs cannot be copied to {copy_dir}, where they are written: choose another folder.")
        if (copy := Run(copy_dir / run.name)).config_file.exists():
            _check_same(copy, record, task)
        with locked(run) if run.config_file.exists() else contextlib.nullcontext():
            brought_back = mirror.pull(run, copy_dir)
        if brought_back:
            print(f"Brought {run.name!r} back from {copy_dir}.")
    if run.config_file.exists():
        _check_same(run, record, task)
        old = run.read_config()
        # A run that goes on may have changed in fields such as the epochs; one that has not begun in everything.
        if old["config"] != record["config"] if _has_begun(run) else old != record:
            with locked(run), writing(run.config_file):
                _check_end(task, run, old["config"], record["config"])
                write_json(run.config_file, record)
        return run
    if run.folder.exists() and (not run.folder.is_dir() or any(run.folder.iterdir())):
        raise UserError(f"{run.folder} exists but holds no config.json, so it is no run: choose another run name.")
    with writing(run.config_file):
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.config_file, record)
    return run


def _check_end(task: Task, run: Run, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Say what another number of epochs means, and refuse one that is behind the run already."""
    rows = read_rows(run.history_file)
    for phase in task.phases:
        done = sum(row["phase"] == phase.name for row in rows)
        if done > phase.epochs:
            which = f" of phase {phase.name!r}" if len(task.phases) > 1 else ""
            raise UserError(
                f"{run.folder} has {done} finished epochs{which} and {phase.epochs} are asked for: ask for at least as "
                "many, go back to an earlier checkpoint (--resume PATH) in a run of another name, or leave it as it is."
            )
    for field in sorted(field for field in task.config.may_change if field.endswith("epochs")):
        if field in old and old[field] != new[field]:
            print(
                f"This run was planned for {old[field]} {field.replace('_', ' ')} and now ends at {new[field]}; a "
                "learning rate that falls to their end follows the new number."
            )


def check_same_run(task: Task, run: Run, start: Checkpoint) -> None:
    """Raise ``UserError`` unless the checkpoint was trained with the run's settings, data, split and architecture.

    Its optimizer, schedule and counters are taken over, so other settings would be ignored without a word; and what it
    was trained on must not be among this run's test data.
    """
    donor = Run(start.folder.resolve().parents[1])
    if donor.folder == run.folder.resolve():
        return
    theirs, ours = donor.read_config(), run.read_config()
    differ = [
        key for key in ("config", "data", "split", "architecture") if theirs["hashes"][key] != ours["hashes"][key]
    ]
    if differ:
        fixed = [key for key in ours["config"] if key not in task.config.may_change]
        fields = [key for key in fixed if theirs["config"].get(key) != ours["config"][key]]
        named = f" (settings: {', '.join(fields)})" if fields else ""
        raise UserError(
            f"{start.folder} was trained with another {', '.join(differ)} than {run.folder}{named}: a run can only go "
            "on from a checkpoint of its own kind; go back to those settings and data, or train from the beginning."
        )


def check_same_data(task: Task, run: Run) -> None:
    """Raise ``UserError`` when the task's data are not those the run was trained on.

    Events move between the splits when the data change, so a test score could then be one of training events.
    """
    now, then = task.describe_data(), run.read_config()["hashes"]
    for what, key in (("data", "sha256"), ("split", "split_sha256")):
        if now[key] != then[what]:
            raise UserError(
                f"{run.folder} was trained on another {what} than {now['source']} gives now (sha256 "
                f"{then[what][:12]}… there, {now[key][:12]}… now), so training events could be scored as "
                "test: use the data it was trained on."
            )


def _free_name(run: Run) -> Path:
    """The run's folder, or the first of ``<name>-2``, ``-3``, … that is taken neither here nor among the copies."""

    def taken(folder: Path) -> bool:
        return folder.exists() or (run.copy_dir is not None and (run.copy_dir / folder.name).exists())

    number, folder = 1, run.folder
    while taken(folder):
        number += 1
        folder = run.folder.with_name(f"{run.name}-{number}")
    return folder


def _record(task: Task) -> dict[str, Any]:
    config = json.loads(json.dumps(dataclasses.asdict(task.config)))
    data = dict(task.describe_data())
    fixed = {key: value for key, value in config.items() if key not in task.config.may_change}
    return {
        "stage": task.stage,
        "config": config,
        "data": data,
        "remarks": list(task.remarks()),
        "hashes": {
            "config": json_hash(fixed),
            "architecture": architecture_hash(task.modules),
            "data": data["sha256"],
            "split": data["split_sha256"],
        },
        "environment": environment(),
    }


def _has_begun(run: Run) -> bool:
    """Whether anything was trained; a run that a guard stopped before its first step has only its settings."""
    return (run.checkpoints / "last.json").exists()


def _check_same(run: Run, record: Mapping[str, Any], task: Task) -> None:
    old = run.read_config()
    if old.get("stage") != record["stage"]:
        raise UserError(
            f"{run.folder} belongs to stage {old.get('stage')!r}, not {record['stage']!r}: choose another run name."
        )
    if not _has_begun(run):
        return
    changes = [
        f"{key} ({_shown(old['config'].get(key))} there, {_shown(value)} now)"
        for key, value in record["config"].items()
        if key not in task.config.may_change and old["config"].get(key) != value
    ]
    if not changes:
        changes = [
            f"the {key} hash"
            for key in ("architecture", "data", "split")
            if old["hashes"][key] != record["hashes"][key]
        ]
    if changes:
        raise UserError(
            f"run folder {run.folder} was started with other settings: {', '.join(changes)}. Choose a new run name, "
            f"e.g. {_free_name(run).name!r}, or go back to those settings; the folder is left as it is."
        )


def _shown(value: Any) -> str:
    """A setting as one writes it on the command line."""
    return "none" if value is None else repr(value)
