"""What several commands need: the stages, the flags that name a run, and opening one."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbhelpers.core import flags, runtime, settings
from nbhelpers.core.errors import UserError

STAGES = ("perceptual-unet", "rainfall-cvae", "super-resolution", "neural-operator", "sar-grounding")
STAGE_HELP = "the stage: " + ", ".join(STAGES)


def run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, default=argparse.SUPPRESS, help="folder with the data")
    parser.add_argument("--output-dir", type=Path, default=argparse.SUPPRESS, help="folder of all runs")
    parser.add_argument("--run-name", default=argparse.SUPPRESS, help="folder of this run in it")


def settings_flags(parser: argparse.ArgumentParser, stage: str, *, wanted: bool) -> None:
    """``--config`` and, where they are ``wanted`` (it imports the stage's code), a flag for each of its settings."""
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="settings, between the profile and the flags")
    if wanted:
        flags.add_flags(parser.add_argument_group("settings of the stage"), stage_commands(stage).Config)


def resolved_config(arguments: argparse.Namespace) -> Any:
    """The stage's settings: profile, then the YAML file, then the flags."""
    kind = stage_commands(arguments.stage).Config
    names = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    from_file = settings.read_yaml(arguments.config) if arguments.config else {}
    profile = given.get("profile") or from_file.get("profile") or runtime.default_profile()
    config = kind.for_profile(profile)
    config = config.replace(from_file, source=str(arguments.config)) if from_file else config
    return config.replace(given, source="the command line")


def is_asked_for(argv: Sequence[str], *words: str) -> bool:
    return [word for word in argv if not word.startswith("-")][: len(words)] == list(words)


def stage_commands(name: str) -> Any:
    return importlib.import_module(f"nbhelpers.stages.{name.replace('-', '_')}.commands")


def simulated_dir(stage: str, profile: str) -> Path:
    return runtime.workspace().data_dir / f"{stage}-{profile}"


def existing_run(arguments: argparse.Namespace) -> Any:
    """The run that the flags name."""
    from nbhelpers.training.run import Run

    output_dir = getattr(arguments, "output_dir", runtime.workspace().output_dir)
    if not hasattr(arguments, "run_name"):
        raise UserError(f"say which run: --run-name NAME (a folder in {output_dir}).")
    run = Run(output_dir / arguments.run_name)
    record = run.read_config()
    if record.get("stage") != arguments.stage:
        raise UserError(f"{run.folder} is a run of stage {record.get('stage')!r}, not {arguments.stage!r}.")
    return run


def open_existing(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The run that the flags name, and its task with the settings it was trained with."""
    run = existing_run(arguments)
    record = run.read_config()
    stage = stage_commands(arguments.stage)
    config = stage.Config.for_profile(record["config"]["profile"]).replace(
        record["config"], source=str(run.config_file)
    )
    return stage.Task(config, getattr(arguments, "data_dir", Path(record["data"]["source"]))), run


def print_summary(report: dict[str, Any], folder: Path) -> None:
    from nbhelpers.training.task import Gate

    verdict = report["verdict"]
    for gate in report["gates"]:
        print(Gate(**gate))
    print(f"Verdict: {verdict['name']}. {verdict['meaning']}\nNext: {verdict['next_step']}")
    print(f"Report: {folder / 'report.md'}")
