"""``nbhelpers sweep``: several weights of a loss term and several seeds, compared."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbhelpers.cli.common import (
    STAGE_HELP,
    STAGES,
    is_asked_for,
    resolved_config,
    run_flags,
    settings_flags,
    simulated_dir,
)
from nbhelpers.core import flags, runtime, settings
from nbhelpers.core.errors import UserError


def add(commands: Any, argv: Sequence[str]) -> None:
    """Add the command. A stage's flags import its code, so only those that ``argv`` asks for."""
    sweep = commands.add_parser("sweep", help="train several loss weights with several seeds and say which is best")
    stages = sweep.add_subparsers(dest="stage", required=True, metavar="STAGE", help=STAGE_HELP)
    for name in STAGES:
        stage = stages.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        run_flags(stage)
        wanted = is_asked_for(argv, "sweep", name)
        if wanted:
            flags.add_flags(stage.add_argument_group("what is tried"), _sweeps(name).Grid)
        stage.add_argument("--force", action="store_true", help="train a grid that cannot matter all the same")
        stage.add_argument(
            "--copy-dir", type=Path, help="an existing folder (Drive) that runs are copied to, and brought back from"
        )
        settings_flags(stage, name, wanted=wanted)
        stage.set_defaults(run=_sweep)


def _sweeps(stage: str) -> Any:
    return importlib.import_module(f"nbhelpers.stages.{stage.replace('-', '_')}.sweep")


def _sweep(arguments: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep in several processes is not there yet: start one process, on one GPU.")
    stage = _sweeps(arguments.stage)
    from_file = settings.read_yaml(arguments.config) if arguments.config else {}
    for field, flag in stage.VARIED.items():
        if field in from_file or hasattr(arguments, field):
            where = f"{arguments.config} sets" if field in from_file else f"--{field.replace('_', '-')} gives"
            raise UserError(f"{where} {field}, which a sweep varies: take it away and give {flag} instead.")
    # Training code is heavy, so it is imported when the command runs.
    from nbhelpers.training.sweep_text import effect_sentences, summary
    from nbhelpers.training.task import Gate

    config = resolved_config(arguments)
    tried = [field.name for field in dataclasses.fields(stage.Grid)]
    asked = {name: getattr(arguments, name) for name in tried if name in arguments}
    given = {name: value if isinstance(value, bool) else tuple(value) for name, value in asked.items()}
    output_dir = getattr(arguments, "output_dir", runtime.workspace().output_dir)
    folder = Path(output_dir) / getattr(arguments, "run_name", f"sweep-{arguments.stage}-{config.profile}")
    print(f"Sweep folder: {folder}")
    done = stage.run_sweep(
        config,
        stage.Grid(**given),
        getattr(arguments, "data_dir", simulated_dir(arguments.stage, config.profile)),
        folder,
        force=arguments.force,
        copy_dir=arguments.copy_dir or runtime.make_copy_dir(runtime.workspace()),
    )
    for sentence in effect_sentences(done.report):
        print(sentence)
    for gate in done.report["gates"]:
        print(Gate(**gate))
    print(summary(done.report))
    verdict = done.report["verdict"]
    print(f"Verdict: {verdict['name']}. {verdict['meaning']}\nNext: {verdict['next_step']}")
    print(f"Table: {folder / 'sweep.md'}")
    return 130 if done.interrupted else 3 if done.all_stopped else 0
