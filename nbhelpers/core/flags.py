"""Command-line flags made from a settings dataclass: one flag a field, its comment as help."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import typing
from typing import Any

from nbhelpers.core.settings import parse_group


def add_flags(parser: argparse._ActionsContainer, settings: type) -> None:
    """Add ``--field-name`` for every field of the dataclass ``settings``.

    A flag that is not given leaves no trace in the parsed namespace, so that it cannot override a profile or a YAML
    file with a default. A group of settings (a dataclass within the settings) is one flag, ``name=value,...``; its help
    lists the names.
    """
    hints = typing.get_type_hints(settings)
    comments = field_comments(settings)
    for field in dataclasses.fields(settings):
        flag, hint = "--" + field.name.replace("_", "-"), hints[field.name]
        options = [option for option in typing.get_args(hint) or (hint,) if option is not type(None)]
        common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": comments.get(field.name, "").replace("%", "%%")}
        if hint is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif typing.get_origin(hint) is typing.Literal:
            choices = typing.get_args(hint)
            parser.add_argument(flag, type=type(choices[0]), choices=choices, **common)
        elif typing.get_origin(options[0]) is typing.Literal:  # or none
            choices = typing.get_args(options[0])
            metavar = f"{{{','.join(map(str, choices))},none}}"
            parse = _parser(type(choices[0]), optional=True)
            parser.add_argument(flag, type=parse, choices=(*choices, None), metavar=metavar, **common)
        elif typing.get_origin(hint) is tuple:
            kinds = typing.get_args(hint)
            count = "*" if kinds[-1] is Ellipsis else len(kinds)
            parser.add_argument(flag, type=kinds[0], nargs=count, metavar=kinds[0].__name__.upper(), **common)
        else:
            metavar = options[0].__name__.upper()
            if dataclasses.is_dataclass(options[0]):
                metavar = "NAME=VALUE,..."
                common["help"] += f" Names: {', '.join(one.name for one in dataclasses.fields(options[0]))}."
            optional = type(None) in typing.get_args(hint)
            parser.add_argument(flag, type=_parser(options[0], optional), metavar=metavar, **common)


def _parser(kind: type, optional: bool) -> Any:
    def parse(text: str) -> Any:
        if optional and text.lower() == "none":
            return None
        if not dataclasses.is_dataclass(kind):
            return kind(text)
        try:
            return parse_group(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parse.__name__ = kind.__name__  # argparse names it in "invalid float value"
    return parse


def field_comments(settings: type) -> dict[str, str]:
    """The comment lines above each field in the source of a dataclass."""
    comments, pending = {}, []
    for line in inspect.getsource(settings).splitlines():
        line = line.strip()
        if line.startswith("#"):
            pending.append(line.lstrip("# "))
            continue
        name = line.partition(":")[0]
        if pending and name.isidentifier():
            comments[name] = " ".join(pending)
        pending = []
    return comments
