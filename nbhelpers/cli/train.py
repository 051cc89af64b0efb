"""``nbhelpers train``: train a stage, or go on with a run, and write its report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbhelpers.cli.common import (
    STAGE_HELP,
    STAGES,
    is_asked_for,
    print_summary,
    resolved_config,
    run_flags,
    settings_flags,
    simulated_dir,
    stage_commands,
)
from nbhelpers.core import runtime
from nbhelpers.core.errors import UserError


def add(commands: Any, argv: Sequence[str]) -> None:
    """Add the command. The flags of a stage's settings import its code, so only those that ``argv`` asks for."""
    train = commands.add_parser(
        "train", help="train a stage (goes on where an earlier run stopped) and write its report"
    )
    stages = train.add_subparsers(dest="stage", required=True, metavar="STAGE", help=STAGE_HELP)
    for name in STAGES:
        stage = stages.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        run_flags(stage)
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
        stage.add_argument(
            "--quick-check",
            action="store_true",
            help="train a few short epochs first, and stop before the long run if they fail (super-resolution)",
        )
        settings_flags(stage, name, wanted=is_asked_for(argv, "train", name))
        stage.set_defaults(run=_train)


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
    stage, config = stage_commands(arguments.stage), resolved_config(arguments)
    if arguments.quick_check and not hasattr(stage, "quick_check"):
        raise UserError(f"--quick-check is not there for {arguments.stage}: leave it out.")
    task = stage.Task(config, getattr(arguments, "data_dir", simulated_dir(arguments.stage, config.profile)))
    for remark in [*task.remarks(), *stage.advice(task)]:
        print(f"NOTE {remark}")
    output_dir = getattr(arguments, "output_dir", runtime.workspace().output_dir)
    name = getattr(arguments, "run_name", f"{arguments.stage}-{config.profile}")
    if arguments.quick_check:
        gates = stage.quick_check(task, output_dir, name)
        print(*gates, sep="\n")
        stage.require(gates)
    resume = "never" if arguments.resume == "never" else "auto"
    copy_dir = arguments.copy_dir or runtime.make_copy_dir(runtime.workspace())
    run = open_run(task, output_dir, name, resume=resume, copy_dir=copy_dir)
    print(f"Run folder: {run.folder}")
    fitted = fit(task, run, start=start, tracker=arguments.tracker)
    if fitted.interrupted:
        return 130
    report = make_report(task, run)
    print_summary(report, run.folder)
    return 0
