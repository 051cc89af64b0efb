"""``nbhelpers ensemble``: what several runs are worth together, and against several others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

STAGES = ("perceptual-unet",)  # those whose runs can be members: the report below is theirs


def add(commands: Any) -> None:
    """Add the command."""
    ensemble = commands.add_parser("ensemble", help="score several runs of a stage as an ensemble")
    ensemble.add_argument("stage", choices=STAGES, metavar="STAGE", help="the stage: " + ", ".join(STAGES))
    what = "run folder (its best checkpoint), or a checkpoint folder RUN/checkpoints/step_000123"
    ensemble.add_argument("members", type=Path, nargs="+", metavar="RUN_DIR", help=what)
    ensemble.add_argument("--against", type=Path, nargs="+", metavar="RUN_DIR", help="another ensemble to compare with")
    ensemble.add_argument("--split", choices=("val", "test"), default="test", help="which events")
    ensemble.add_argument("--data-dir", type=Path, help="where the data now lie (default: where they were trained on)")
    ensemble.add_argument(
        "--to", type=Path, metavar="DIR", help="output folder (default: `ensemble` beside the first run)"
    )
    ensemble.set_defaults(run=_ensemble)


def _ensemble(arguments: argparse.Namespace) -> int:
    from nbhelpers.stages.perceptual_unet.ensemble import open_ensemble
    from nbhelpers.stages.perceptual_unet.ensemble_report import (
        LEGEND,
        difference_table,
        make_ensemble_report,
        table,
    )

    ensemble = open_ensemble(arguments.members, data_dir=arguments.data_dir)
    against = open_ensemble(arguments.against, beside=ensemble) if arguments.against else None
    folder = arguments.to or ensemble.members[0].run.folder.resolve().parent / "ensemble"
    report = make_ensemble_report(ensemble, folder, split=arguments.split, against=against)
    for remark in report["remarks"]:
        print(f"NOTE {remark}")
    for name, metrics in report["metrics"].items():
        n = metrics["ensemble"]["crps"]["n"]
        print(f"\n{name}, {n} {arguments.split} events")
        _print_table(table(metrics))
    print(LEGEND)
    if report["differences"]:
        print("\n" + " (first) minus ".join(report["metrics"]) + " (second), paired over events")
        _print_table(difference_table(report["differences"]))
    print(f"Report: {folder / 'ensemble.md'}")
    return 0


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
