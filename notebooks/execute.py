"""Run a stage's notebook from top to bottom and keep the executed copy: ``python notebooks/execute.py STAGE``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from nbhelpers.core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class TalkingClient(NotebookClient):
    """Prints what the cells print while they run, so that ten minutes of training are not ten minutes of silence."""

    def output(self, outs, msg, display_id, cell_index):
        content = msg["content"]
        if msg["msg_type"] == "stream" and content["name"] == "stdout":
            print(content["text"], end="", flush=True)
        return super().output(outs, msg, display_id, cell_index)


def title(cell: nbformat.NotebookNode) -> str:
    """The heading of a markdown cell, or nothing."""
    first = cell.source.splitlines()[0] if cell.source else ""
    return first.lstrip("# ") if cell.cell_type == "markdown" and first.startswith("#") else ""


def choose_weights() -> str:
    """ImageNet weights if they can be had; else random features, said loudly here and in the report's first line."""
    from nbhelpers.science.backbones import load_features

    try:
        load_features("squeeze", "imagenet")
    except UserError as error:
        print(f"\n!! {error}")
        print("!! This demo goes on with RANDOM perceptual features; its report says so in the first line.\n")
        return "random"
    return "imagenet"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", help="e.g. perceptual-unet")
    parser.add_argument("--to", type=Path, default=ROOT / "demo", help="folder for notebook, data and runs")
    arguments = parser.parse_args()
    found = sorted((ROOT / "notebooks").glob(f"[0-9][0-9]_{arguments.stage.replace('-', '_')}.ipynb"))
    if not found:
        parser.error(f"no notebook of stage {arguments.stage!r} yet")
    os.environ.setdefault("NBHELPERS_PROFILE", "quick")
    os.environ.setdefault("NBHELPERS_HOME", str(arguments.to.resolve()))
    arguments.to.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(found[0], as_version=4)
    wanted = "NBHELPERS_BACKBONE_WEIGHTS"
    if wanted not in os.environ and any(wanted in cell.source for cell in notebook.cells):
        os.environ[wanted] = choose_weights()
    client = TalkingClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(arguments.to)}}
    )
    executed = arguments.to / found[0].name
    began = time.monotonic()
    client.on_cell_start = lambda cell, cell_index: print(f"== {title(cell)}", flush=True) if title(cell) else None
    try:
        client.execute()
    except CellExecutionError as error:
        print(f"\nThe notebook stopped: {error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    finally:
        nbformat.write(notebook, executed)
    reports = sorted(
        (Path(os.environ["NBHELPERS_HOME"]) / "runs").glob("*/report.md"), key=lambda path: path.stat().st_mtime
    )
    print(f"\nDone in {time.monotonic() - began:.0f} s.\nNotebook: {executed}\nReport:   {reports[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
