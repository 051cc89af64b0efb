"""A run is a folder: what is written where, and when an existing folder may be continued."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import environment
from nbhelpers.training.task import Task


@dataclass(frozen=True)
class Run:
    """The paths of one run folder. Nothing here is cached: the folder is the truth."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config_file(self) -> Path:
        return self.folder / "config.json"

    @property
    def history_file(self) -> Path:
        return self.folder / "history.csv"

    @property
    def ledger_file(self) -> Path:
        return self.folder / "ledger.csv"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def report_file(self) -> Path:
        return self.folder / "report.json"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    def read_config(self) -> dict[str, Any]:
        """The resolved settings, hashes and versions this run was started with."""
        record = read_json(self.config_file, what="a run folder's config.json")
        if absent := {"stage", "config", "data", "hashes"} - record.keys():
            raise UserError(
                f"{self.config_file} lacks {', '.join(sorted(absent))}: it is damaged; restore it from a copy."
            )
        return record


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """The object in a JSON file, or a sentence about what is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: expected {what}; check the path.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): expected {what}; restore or delete it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected {what}; restore or delete it.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace ``path`` in one step, so that a reader sees the old or the new content and never half of it."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def architecture_hash(modules: Mapping[str, nn.Module]) -> str:
    """sha256 over class, ``extra_repr`` (what shapes do not show) and tensor names and shapes of each module."""
    content = {
        name: [
            type(module).__name__,
            module.extra_repr(),
            {key: list(tensor.shape) for key, tensor in module.state_dict().items()},
        ]
        for name, module in modules.items()
    }
    return _hash(content)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def open_run(task: Task, output_dir: Path, run_name: str, *, resume: str = "auto") -> Run:
    """The folder ``output_dir/run_name``: a new one, or an existing one that was started with the same settings.

    Args:
        resume: "auto" continues an existing run; "never" starts ``<run_name>-2`` (or -3, …) beside it.

    Raises:
        UserError: the folder exists with other data, model, loss or seed; or holds something that is no run. It is
            left untouched.
    """
    if run_name == ".." or Path(run_name).name != run_name or not run_name:
        raise UserError(f"run name {run_name!r} is not a plain folder name: use letters, digits, '-' and '_'.")
    run = Run(Path(output_dir) / run_name)
    if resume == "never":
        run = Run(_free_name(run.folder))
    record = _record(task)
    if run.config_file.exists():
        _check_same(run, record, task)
        old = run.read_config()
        if old["config"] != record["config"]:  # only fields that may change, such as more epochs
            write_json(run.config_file, record)
        return run
    if run.folder.exists() and (not run.folder.is_dir() or any(run.folder.iterdir())):
        raise UserError(f"{run.folder} exists but holds no config.json, so it is no run: choose another run name.")
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.config_file, record)
    except OSError as error:
        raise UserError(
            f"cannot write to {run.folder} ({error}): free some space or choose another --output-dir."
        ) from error
    return run


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


def _free_name(folder: Path) -> Path:
    if not folder.exists():
        return folder
    number = 2
    while (candidate := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return candidate


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
            "config": _hash(fixed),
            "architecture": architecture_hash(task.modules),
            "data": data["sha256"],
            "split": data["split_sha256"],
        },
        "environment": environment(),
    }


def _check_same(run: Run, record: Mapping[str, Any], task: Task) -> None:
    old = run.read_config()
    if old.get("stage") != record["stage"]:
        raise UserError(
            f"{run.folder} belongs to stage {old.get('stage')!r}, not {record['stage']!r}: choose another run name."
        )
    changes = [
        f"{key} ({old['config'].get(key)!r} there, {value!r} now)"
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
            f"e.g. {_free_name(run.folder).name!r}, or go back to those settings; the folder is left as it is."
        )
