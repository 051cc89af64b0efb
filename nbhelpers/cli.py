"""The command line: the same code as the notebooks, for scripts and clusters."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbhelpers import __version__
from nbhelpers.core import flags, manifest, preflight, runtime, settings
from nbhelpers.core.disk import human_bytes
from nbhelpers.core.errors import UserError

STAGES = ("perceptual-unet",)
STAGE_HELP = "the stage: " + ", ".join(STAGES)


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

    _data_parser(commands)

    train = commands.add_parser(
        "train", help="train a stage (goes on where an earlier run stopped) and write its report"
    )
    stages = train.add_subparsers(dest="stage", required=True, metavar="STAGE", help=STAGE_HELP)
    for name in STAGES:
        stage = stages.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        _run_flags(stage)
        stage.add_argument(
            "--config", type=Path, metavar="FILE.yaml", help="settings, between the profile and the flags"
        )
        stage.add_argument(
            "--resume",
            default="auto",
            metavar="{auto,never,PATH}",
            help="go on with the run; start <name>-2; or go on from a checkpoint folder",
        )
        stage.add_argument(
            "--copy-dir", type=Path, help="an existing folder (Drive) that runs are copied to, and brought back from"
        )
        stage.add_argument(
            "--tracker", choices=("none", "tensorboard", "wandb"), default="none", help="also log the history there"
        )
        if _is_asked_for(argv, "train", name):  # the stage's settings import its code
            flags.add_flags(stage.add_argument_group("settings of the stage"), _stage(name).Config)
        stage.set_defaults(run=_train)

    for command, run, text in (
        ("evaluate", _evaluate, "score a run's checkpoint beside its baselines and write report.json"),
        ("predict", _predict, "write a run's forecasts"),
    ):
        other = commands.add_parser(command, help=text)
        other.add_argument("stage", choices=STAGES, metavar="STAGE", help=STAGE_HELP)
        _run_flags(other)
        other.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights")
        other.add_argument("--split", choices=("train", "val", "test"), default="test", help="which events")
        other.set_defaults(run=run)
        if command == "evaluate":
            other.add_argument("--reference", type=Path, metavar="RUN_DIR", help="a run to compare with in the verdict")
        else:
            other.add_argument(
                "--to", type=Path, metavar="FILE", help="output file (default: forecasts.h5 in the run folder)"
            )

    report = commands.add_parser("report", help="print a finished run's report")
    report.add_argument("run_dir", type=Path)
    report.add_argument("--json", action="store_true", help="print report.json instead of report.md")
    report.set_defaults(run=_report)
    return parser


def _data_parser(commands: Any) -> None:
    data = commands.add_parser("data", help="list, fetch, verify or simulate data")
    actions = data.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="the data sets that can be fetched")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_data_list)
    for action, run in (("fetch", _data_fetch), ("verify", _data_verify)):
        one = actions.add_parser(action, help=f"{action} a data set")
        one.add_argument("name", help="as `data list` prints it, or the path of a manifest")
        one.add_argument("--data-dir", type=Path, help="where its files belong")
        one.set_defaults(run=run)
        if action == "fetch":
            one.add_argument(
                "--only", nargs="+", metavar="FILE", help="some of its files; patterns such as 'vil/2019/*'"
            )
    simulate = actions.add_parser("simulate", help="make data for a stage, in the format of the real ones")
    simulate.add_argument("stage", choices=STAGES, metavar="STAGE", help=STAGE_HELP)
    simulate.add_argument("--profile", choices=runtime.PROFILES, help="how much (default: by this machine)")
    simulate.add_argument("--data-dir", type=Path, help="an empty or new folder")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.set_defaults(run=_data_simulate)


def _run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, default=argparse.SUPPRESS, help="folder with the data")
    parser.add_argument("--output-dir", type=Path, default=argparse.SUPPRESS, help="folder of all runs")
    parser.add_argument("--run-name", default=argparse.SUPPRESS, help="folder of this run in it")


def _is_asked_for(argv: Sequence[str], *words: str) -> bool:
    return [word for word in argv if not word.startswith("-")][: len(words)] == list(words)


def _stage(name: str) -> Any:
    return importlib.import_module(f"nbhelpers.stages.{name.replace('-', '_')}.commands")


def _simulated_dir(stage: str, profile: str) -> Path:
    return runtime.workspace().data_dir / f"{stage}-{profile}"


def _doctor(arguments: argparse.Namespace) -> int:
    place = runtime.workspace()
    checks = preflight.preflight(output_dir=place.output_dir, data_dir=place.data_dir)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        print(preflight.format_checks(checks))
    return 2 if any(check.status == "stop" for check in checks) else 0


def _data_list(arguments: argparse.Namespace) -> int:
    found = [manifest.load_manifest(name) for name in manifest.list_manifests()]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2, default=str))
        return 0
    for one in found:
        sizes = [file.bytes for file in one.files]
        size = human_bytes(sum(s or 0 for s in sizes)) + (" or more" if None in sizes else "")
        print(f"{one.name:22} {one.title}: {len(one.files)} files, {size}")
    for stage in STAGES:
        print(f"{stage:22} simulated: `nbhelpers data simulate {stage}`")
    return 0


def _data_fetch(arguments: argparse.Namespace) -> int:
    wanted = manifest.load_manifest(arguments.name)
    folder = arguments.data_dir or runtime.workspace().data_dir / wanted.name
    for path in manifest.fetch(wanted, folder, only=arguments.only):
        print(path)
    return 0


def _data_verify(arguments: argparse.Namespace) -> int:
    wanted = manifest.load_manifest(arguments.name)
    states = manifest.verify(wanted, arguments.data_dir or runtime.workspace().data_dir / wanted.name)
    for state in states:
        print(f"{state.status:22} {state.location}")
    return 0 if all(state.ok for state in states) else 2


def _data_simulate(arguments: argparse.Namespace) -> int:
    profile = arguments.profile or runtime.default_profile()
    folder = arguments.data_dir or _simulated_dir(arguments.stage, profile)
    print(_stage(arguments.stage).simulate(folder, profile=profile, seed=arguments.seed))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from nbhelpers.training import checkpoint
    from nbhelpers.training.fit import fit
    from nbhelpers.training.opening import open_run
    from nbhelpers.training.report import make_report

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training in several processes is not there yet: start one process, on one GPU.")
    start = None if arguments.resume in ("auto", "never") else Path(arguments.resume)
    if start is not None:
        checkpoint.at(start)  # a wrong path is said before a run folder is made
    stage = _stage(arguments.stage)
    names = {field.name for field in dataclasses.fields(stage.Config)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    from_file = settings.read_yaml(arguments.config) if arguments.config else {}
    profile = given.get("profile") or from_file.get("profile") or runtime.default_profile()
    config = stage.Config.for_profile(profile)
    config = config.replace(from_file, source=str(arguments.config)) if from_file else config
    config = config.replace(given, source="the command line")

    task = stage.Task(config, getattr(arguments, "data_dir", _simulated_dir(arguments.stage, profile)))
    for remark in [*task.remarks(), *stage.advice(task)]:
        print(f"NOTE {remark}")
    output_dir = getattr(arguments, "output_dir", runtime.workspace().output_dir)
    resume = "never" if arguments.resume == "never" else "auto"
    name = getattr(arguments, "run_name", f"{arguments.stage}-{profile}")
    copy_dir = arguments.copy_dir or runtime.make_copy_dir(runtime.workspace())
    run = open_run(task, output_dir, name, resume=resume, copy_dir=copy_dir)
    print(f"Run folder: {run.folder}")
    fitted = fit(task, run, start=start, tracker=arguments.tracker)
    if fitted.interrupted:
        return 130
    report = make_report(task, run)
    _print_summary(report, run.folder)
    return 0


def _open_existing(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The run that the flags name, and its task with the settings it was trained with."""
    from nbhelpers.training.run import Run

    output_dir = getattr(arguments, "output_dir", runtime.workspace().output_dir)
    if not hasattr(arguments, "run_name"):
        raise UserError(f"say which run: --run-name NAME (a folder in {output_dir}).")
    run = Run(output_dir / arguments.run_name)
    record = run.read_config()
    if record.get("stage") != arguments.stage:
        raise UserError(f"{run.folder} is a run of stage {record.get('stage')!r}, not {arguments.stage!r}.")
    stage = _stage(arguments.stage)
    config = stage.Config.for_profile(record["config"]["profile"]).replace(
        record["config"], source=str(run.config_file)
    )
    return stage.Task(config, getattr(arguments, "data_dir", Path(record["data"]["source"]))), run


def _evaluate(arguments: argparse.Namespace) -> int:
    from nbhelpers.training.report import make_report
    from nbhelpers.training.run import Run

    task, run = _open_existing(arguments)
    reference = Run(arguments.reference) if arguments.reference else None
    report = make_report(task, run, which=arguments.checkpoint, split=arguments.split, reference=reference)
    _print_summary(report, run.folder)
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from nbhelpers.training import checkpoint
    from nbhelpers.training.opening import check_same_data

    task, run = _open_existing(arguments)
    check_same_data(task, run)
    found = checkpoint.find(run, arguments.checkpoint)
    if found is None:
        raise UserError(f"{run.folder} has no {arguments.checkpoint} checkpoint yet: train it first.")
    checkpoint.load_weights(found, task.modules)
    path = arguments.to or run.folder / "forecasts.h5"
    n = _stage(arguments.stage).write_forecasts(task, path, split=arguments.split, checkpoint=found.sha256)
    print(f"{n} forecasts of the {arguments.split} events: {path}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from nbhelpers.training.report import read_markdown, read_report
    from nbhelpers.training.run import Run

    run = Run(arguments.run_dir)
    content = read_report(run)
    print(json.dumps(content, indent=2) if arguments.json else read_markdown(run))
    return 0


def _print_summary(report: dict[str, Any], folder: Path) -> None:
    from nbhelpers.training.task import Gate

    verdict = report["verdict"]
    for gate in report["gates"]:
        print(Gate(**gate))
    print(f"Verdict: {verdict['name']}. {verdict['meaning']}\nNext: {verdict['next_step']}")
    print(f"Report: {folder / 'report.md'}")
