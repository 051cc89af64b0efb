"""Settings from a profile, a YAML file and flags, each layer checked and the later one winning."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nbhelpers.core.errors import UserError

Config = TypeVar("Config")


def replace_checked(config: Config, changes: Mapping[str, Any], *, source: str) -> Config:
    """A copy of the dataclass ``config`` with ``changes``.

    Raises:
        UserError: an unknown name (the nearest known one is suggested) or a value of the wrong type, naming ``source``.
    """
    known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(type(config))
    checked = {}
    for name, value in changes.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(sorted(known))}."
            raise UserError(f"{source} sets {name!r}, which is no setting of this stage: {hint}")
        checked[name] = _as(hints[name], value, name=name, source=source)
    return dataclasses.replace(config, **checked)  # type: ignore[type-var]


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, as a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"settings file {path} cannot be read ({error}): check --config.") from error
    except yaml.YAMLError as error:
        raise UserError(f"settings file {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content or {}, dict):
        raise UserError(f"settings file {path} holds a {type(content).__name__}, expected `name: value` lines.")
    return dict(content or {})


def _as(hint: Any, value: Any, *, name: str, source: str) -> Any:
    """``value`` as type ``hint``; YAML reads 5e-4 as text and 1 where a float is meant, both are accepted."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if typing.get_origin(option) is typing.Literal:
            if value in typing.get_args(option):
                return value
        elif option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        elif isinstance(option, type) and isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return value
    expected = " or ".join(getattr(o, "__name__", str(o)).replace("typing.", "") for o in options)
    raise UserError(f"{source} sets {name} to {value!r}, expected {expected}.")
