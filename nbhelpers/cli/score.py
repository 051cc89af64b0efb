"""``nbhelpers evaluate``, ``predict`` and ``report``: what is asked of a run that is there."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbhelpers.cli.common import (
    STAGE_HELP,
    STAGES,
    existing_run,
    is_asked_for,
    open_existing,
    print_summary,
    run_flags,
    stage_commands,
)
from nbhelpers.core import flags
from nbhelpers.core.errors import UserError


def add(commands: Any, argv: Sequence[str]) -> None:
    """Add the commands. The flags of a stage's own forecasts import its code, so only those that ``argv`` asks for."""
    for command, run, text in (
        ("evaluate", _evaluate, "score a run's checkpoint beside its baselines and write report.json"),
        ("predict", _predict, "write a run's forecasts"),
    ):
        other = commands.add_parser(command, help=text)
        other.add_argument("stage", choices=STAGES, metavar="STAGE", help=STAGE_HELP)
        run_flags(other)
        other.add_argument(
            "--checkpoint",
            default="shipped",
            metavar="NAME",
            help="which weights: best, last, average, PHASE_best, … (default: the average where there is one, else the "
            "best)",
        )
        scored = command == "evaluate"
        other.add_argument(
            "--split",
            choices=("train", "val", "test") if scored else ("train", "val", "test", "all"),
            default="test" if scored else None,
            help="which part of the data (default: test)"
            if scored
            else "which part of the data (default: test; for rain that is to augment a training set: train; all: for "
            "images only, as the next step needs them)",
        )
        other.set_defaults(run=run)
        if command == "evaluate":
            other.add_argument("--reference", type=Path, metavar="RUN_DIR", help="a run to compare with in the verdict")
        else:
            other.add_argument(
                "--to", type=Path, metavar="PATH", help="output (default: forecasts.h5, or a folder, in the run folder)"
            )
            other.add_argument(
                "--scene", type=Path, nargs="+", metavar="PATH", help="GeoTIFFs to apply the model to, not --split"
            )
            other.add_argument(
                "--input-dir", type=Path, metavar="DIR", help="new tiles to apply the model to, not --split"
            )
            other.add_argument(
                "--offset", type=int, metavar="DN", help="to add to scenes (default: as the files or their names say)"
            )
            for name in (name for name in STAGES if is_asked_for(argv, "predict", name)):
                if (own := _own_options(name)) is not None:
                    flags.add_flags(other.add_argument_group(f"what {name} draws"), own)

    report = commands.add_parser("report", help="print a finished run's report, or a sweep's table")
    report.add_argument("run_dir", type=Path)
    report.add_argument("--json", action="store_true", help="print the JSON instead of the text")
    report.set_defaults(run=_report)


def _evaluate(arguments: argparse.Namespace) -> int:
    from nbhelpers.training.report import make_report
    from nbhelpers.training.run import Run

    task, run = open_existing(arguments)
    reference = Run(arguments.reference) if arguments.reference else None
    report = make_report(task, run, which=arguments.checkpoint, split=arguments.split, reference=reference)
    print_summary(report, run.folder)
    return 0


def _own_options(stage: str) -> Any:
    """The dataclass of what a stage asks for beyond the split, if there is such."""
    return getattr(stage_commands(stage), "ForecastOptions", None)


def _asked_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The stage's own options, made before any data are read, so that a flag that makes no sense is said at once."""
    if (own := _own_options(arguments.stage)) is None:
        return {}
    names = [field.name for field in dataclasses.fields(own)]
    given = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return {"options": own(**{name: tuple(one) if isinstance(one, list) else one for name, one in given.items()})}


def _predict(arguments: argparse.Namespace) -> int:
    if arguments.input_dir:
        return _predict_folder(arguments)
    if arguments.scene:
        return _predict_scenes(arguments)
    if arguments.offset is not None:
        raise UserError("--offset is for scenes: give --scene too, or leave it out.")
    from nbhelpers.training import checkpoint
    from nbhelpers.training.opening import check_same_data

    stage, more = stage_commands(arguments.stage), _asked_options(arguments)
    split = arguments.split or getattr(stage, "PREDICTED_SPLIT", "test")
    task, run = open_existing(arguments)
    check_same_data(task, run)
    _, found = checkpoint.asked_for(run, arguments.checkpoint)
    checkpoint.load_weights(found, task.modules)
    if more:
        more |= {"step": found.step, "run": run.name}
    path = arguments.to or run.folder / stage.FORECASTS
    n = stage.write_forecasts(task, path, split=split, checkpoint=found.sha256, **more)
    which = "all splits" if split == "all" else f"the {split} split"
    print(f"{n} forecasts of {which}: {path}")
    return 0


def _predict_folder(arguments: argparse.Namespace) -> int:
    predict = getattr(stage_commands(arguments.stage), "predict_folder", None)
    if predict is None:
        raise UserError(f"{arguments.stage} has no folders of tiles to predict: leave --input-dir out.")
    given = {"--split": arguments.split, "--scene": arguments.scene, "--offset": arguments.offset}
    if beside := [flag for flag, value in given.items() if value is not None]:
        raise UserError(
            f"{beside[0]} and --input-dir are given: new tiles are of no split and say their units; give one."
        )
    more = {"which": arguments.checkpoint, **_asked_options(arguments)}
    files = predict(existing_run(arguments), arguments.input_dir, arguments.to, **more)
    print(f"{len(files)} images: {files[0].parent}")
    return 0


def _predict_scenes(arguments: argparse.Namespace) -> int:
    predict = getattr(stage_commands(arguments.stage), "predict_scenes", None)
    if predict is None:
        raise UserError(f"{arguments.stage} has no scenes to predict: leave --scene out.")
    own = _own_options(arguments.stage)
    for field in dataclasses.fields(own) if own is not None else ():
        if hasattr(arguments, field.name):
            raise UserError(f"--{field.name} is for the images of a split: leave it out with --scene.")
    run, asked = existing_run(arguments), {"which": arguments.checkpoint, "offset": arguments.offset}
    for path, said in predict(run, arguments.scene, arguments.to, **asked):
        print(f"{path}: {said}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from nbhelpers.training.report import read_markdown, read_report
    from nbhelpers.training.run import Run
    from nbhelpers.training.sweep_text import is_sweep, read_sweep, read_text

    if is_sweep(arguments.run_dir):
        content = read_sweep(arguments.run_dir)
        print(json.dumps(content, indent=2) if arguments.json else read_text(arguments.run_dir))
        return 0
    run = Run(arguments.run_dir)
    content = read_report(run)
    print(json.dumps(content, indent=2) if arguments.json else read_markdown(run))
    return 0
