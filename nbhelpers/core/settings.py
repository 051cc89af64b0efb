"""Settings from a profile, a YAML file and flags, each layer checked and the later one winning."""

from __future__ import annotations

import dataclasses
import difflib
import math
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
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(sorted(known))}."
            raise UserError(f"{source} sets {name!r}, which is no setting of this stage: {hint}")
        checked[name] = _as(hints[name], value, name=name, source=source, current=getattr(config, name))
    return dataclasses.replace(config, **checked)  # type: ignore[type-var]


def parse_group(text: str) -> dict[str, Any] | str:
    """A group of settings as it is given on one flag: ``patience=2,final_weight_target=0.5``, or the name of a preset.

    Raises:
        ValueError: a part that is no ``name=value``, or whose value is no YAML.
    """
    if "=" not in text:
        return text
    pairs = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise ValueError(f"{part!r} is no name=value")
        try:
            pairs[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{part!r} has a value that cannot be read (a comma begins the next name)") from error
    return pairs


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, as a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"settings file {path} cannot be read ({error}): check --config.") from error
    except yaml.YAMLError as error:
        raise UserError(f"settings file {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"settings file {path} holds a {type(content).__name__}, expected `name: value` lines.")
    return content


def _as(hint: Any, value: Any, *, name: str, source: str, current: Any = None) -> Any:
    """``value`` as type ``hint``; YAML reads 5e-4 and none as text and 1 where a float is meant, all are accepted.

    A group of settings (a dataclass within the settings) is given as a mapping: what it names is changed in
    ``current``, or in the group's defaults where there is none.
    """
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if type(None) in options and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    for option in options:
        if typing.get_origin(option) is typing.Literal:
            if value in typing.get_args(option):
                return value
        elif option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                return number
        elif typing.get_origin(option) is tuple:
            kinds = typing.get_args(option)
            if kinds[-1] is Ellipsis and isinstance(value, (list, tuple)):
                kinds = kinds[:1] * len(value)
            if isinstance(value, (list, tuple)) and len(value) == len(kinds):
                return tuple(_as(kind, item, name=name, source=source) for kind, item in zip(kinds, value, strict=True))
        elif dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            try:
                base = current if isinstance(current, option) else option()  # type: ignore[arg-type, operator]
                return replace_checked(base, value, source=f"{source} for {name}")
            except ValueError as error:
                raise UserError(f"{source} sets {name} to what cannot work: {str(error).rstrip('.')}.") from error
        elif isinstance(option, type) and isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return value
    expected = " or ".join(_type_name(option) for option in options)
    raise UserError(f"{source} sets {name} to {value!r}, expected {expected}.")


def _type_name(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(option)))
    if option is float:
        return "float (finite)"
    if typing.get_origin(option) is tuple:
        kinds = typing.get_args(option)
        if kinds[-1] is Ellipsis:
            return f"a list of {_type_name(kinds[0])}"
        return f"{len(kinds)} values ({', '.join(map(_type_name, kinds))})"
    if dataclasses.is_dataclass(option):
        return f"settings of {_type_name_of(option)}"
    return "none" if option is type(None) else getattr(option, "__name__", str(option))


def _type_name_of(kind: Any) -> str:
    return f"{kind.__name__} ({', '.join(field.name for field in dataclasses.fields(kind))})"
