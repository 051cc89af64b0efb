"""The notebook's stop button, pressed for real: saved, later cells work, Run all goes on."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nbhelpers.training import checkpoint
from nbhelpers.training.history import read_rows
from nbhelpers.training.run import Run

CONFIG = "config = Config.for_profile(profile, seed=SEED,"


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs if output.output_type == "stream")


async def run_all(notebook: nbformat.NotebookNode, folder: Path, run: Run | None) -> None:
    """Execute the notebook; with ``run``, press stop as soon as it has begun to train."""
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})

    async def press() -> None:
        assert run is not None
        while not (run.checkpoints / "last.json").exists():
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        await client.km.interrupt_kernel()

    pressing = asyncio.ensure_future(press()) if run is not None else None
    await client.async_execute()
    if pressing is not None:
        await pressing


def test_stopped_in_the_first_epoch_later_cells_work_and_run_all_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Path(os.environ.get("NBHELPERS_REAL_DATA", root.parent / "shared/data"))
    weights = samples / "weights/squeezenet1_1_caffe_features.pth"
    monkeypatch.setenv("NBHELPERS_BACKBONE_WEIGHTS", str(weights) if weights.exists() else "random")
    monkeypatch.setenv("NBHELPERS_PROFILE", "smoke")
    monkeypatch.setenv("NBHELPERS_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(root / "notebooks/01_perceptual_unet.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if CONFIG in cell.source)
    cell.source = cell.source.replace(CONFIG, CONFIG + " epochs=3,")
    run = Run(tmp_path / "runs/nowcast-smoke")

    asyncio.run(run_all(notebook, tmp_path, run))
    said = printed(notebook)
    assert "Stopped in epoch 1 of 3. Run again to go on from step" in said
    assert "Not finished: 0 of 3 epochs are trained." in said
    stopped = checkpoint.find(run, "last")
    assert stopped is not None and 0 < stopped.step < 10
    assert (run.folder / "report.md").exists() and (run.folder / "forecasts.h5").exists()

    asyncio.run(run_all(notebook, tmp_path, None))
    assert f"(step {stopped.step}, batch {stopped.step} of epoch 1)" in printed(notebook)
    assert [row["epoch"] for row in read_rows(run.history_file)] == [1, 2, 3]
    assert time.time() - run.report_file.stat().st_mtime < 60
