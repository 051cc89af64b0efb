"""The command line: the same code as the notebooks, for scripts and clusters. One file a group of commands."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from nbhelpers import __version__
from nbhelpers.cli import data, ensemble, score, sweep, train
from nbhelpers.core import preflight, runtime
from nbhelpers.core.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 bad input or settings, 3 stopped by a guard)."""
    arguments = _parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        print(f"nbhelpers: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("nbhelpers: interrupted", file=sys.stderr)
        return 130


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nbhelpers", description="Train image models on weather and satellite data.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    doctor = commands.add_parser("doctor", help="look at this machine and say what to mend")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)

    data.add(commands)
    train.add(commands, argv)
    sweep.add(commands, argv)
    score.add(commands, argv)
    ensemble.add(commands)
    return parser


def _doctor(arguments: argparse.Namespace) -> int:
    place = runtime.workspace()
    checks = preflight.preflight(output_dir=place.output_dir, data_dir=place.data_dir)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        print(preflight.format_checks(checks))
    return 2 if any(check.status == "stop" for check in checks) else 0
