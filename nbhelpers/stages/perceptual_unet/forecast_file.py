"""Forecasts on disk, in the same layout as the data they were made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet import windows
from nbhelpers.stages.perceptual_unet.data import IMG_TYPE, MISSING, VIL, Event
from nbhelpers.stages.perceptual_unet.task import EVAL_BATCH, NowcastTask

FORECASTS = "forecasts.h5"  # in a run's folder


def latest_windows(events: Sequence[Event], task: NowcastTask) -> list[windows.Window]:
    """For every event the window whose forecast ends with the event's last frame."""
    found = []
    for event in events:
        stride, last = windows.window_span(event, task.config)
        found.append(windows.Window(event, last, stride))
    return found


def write_forecasts(task: NowcastTask, path: Path, *, split: str, checkpoint: str) -> int:
    """Forecast every event of a split and write an HDF5 file; returns how many.

    The file has ``id`` (N,) and ``vil`` (N, H, W, n_out) uint8 grey levels like SEVIR's own, contiguous, 255 where the
    last input frame was missing, and the attributes ``lead_minutes``, ``start_minute`` (minute offset of the last input
    frame in its event) and ``checkpoint``.

    Raises:
        UserError: unknown split, or the file cannot be written (an existing one is left as it was).
    """
    if split not in task.split.events:
        raise UserError(f"split {split!r} is unknown: choose one of {', '.join(task.split.events)}.")
    chosen = latest_windows(task.split.events[split], task)
    n_in = task.config.n_in
    forecasts, ids = [], []
    for batch in windows.loader(chosen, task.config, task.cache, batch_size=EVAL_BATCH):
        levels = VIL.to_units(task.forecast(batch)).round().to(torch.uint8).cpu()
        hidden = batch.frames[:, n_in - 1 : n_in] == MISSING
        forecasts.append(torch.where(hidden, MISSING, levels).permute(0, 2, 3, 1).to(torch.uint8).numpy())
        ids += list(batch.events)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w") as file:
            file["id"] = np.array(ids, dtype="S")
            file[IMG_TYPE] = np.concatenate(forecasts)
            file.attrs["lead_minutes"] = task.leads
            file.attrs["start_minute"] = [w.event.minutes[w.start + (n_in - 1) * w.stride] for w in chosen]
            file.attrs["checkpoint"] = checkpoint
        os.replace(temporary, path)
    except OSError as error:
        if temporary.exists():  # unlink(missing_ok=True) still fails below something that is no folder
            temporary.unlink()
        raise UserError(f"forecasts cannot be written to {path} ({error}): choose another --to.") from error
    return len(ids)
