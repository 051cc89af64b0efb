"""A run is a folder: what is written where."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from nbhelpers.core.errors import UserError


@dataclass(frozen=True)
class Run:
    """The paths of one run folder. Nothing here is cached: the folder is the truth."""

    folder: Path
    copy_dir: Path | None = None  # folder of all runs' copies (Drive), which outlives this machine; None: no copy

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
    def guards_file(self) -> Path:
        return self.folder / "guards.json"

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


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Replace ``path`` in one step, so that a reader sees the old or the new content and never half of it."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of ``path`` when it is on disk; a reader sees the old or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a file that cannot be written into one sentence.

    Raises:
        UserError: the disk is full, read-only or gone.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error}): free some space and run again, or choose another --output-dir."
        ) from error


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
    return json_hash(content)


def json_hash(content: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
