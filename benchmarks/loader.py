"""Windows from the event cache against reading an event for every window and decoding it to float32."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from side_by_side import record, side_by_side

from nbhelpers.stages.perceptual_unet import data, windows
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.simulate import simulate

torch.set_num_threads(1)
folder = tempfile.TemporaryDirectory()
simulate(Path(folder.name), n_events=8, size=384, n_frames=49)  # events of SEVIR's own size
config = Config.for_profile("quick", windows_per_epoch=160)
events = data.read_catalogue(Path(folder.name), max_pct_missing=1.0)
cache = data.EventCache(10**9)
shape = cache[events[0]].shape[1:]
drawn = windows.random_windows(events, config, epoch=0, shape=shape, group=len(events))
n_frames = config.n_in + config.n_out


def from_cache() -> None:
    for _ in windows.loader(drawn, config, cache, batch_size=config.batch_size):
        pass


def read_each_time() -> None:
    for window in drawn:
        frames = data.read_event(window.event).astype(np.float32) / 255.0
        frames = frames[window.start : window.start + n_frames]
        rows, columns = slice(window.row, window.row + window.crop), slice(window.column, window.column + window.crop)
        torch.from_numpy(np.ascontiguousarray(frames[:, rows, columns]))


seconds = side_by_side({"from_cache": from_cache, "read_each_time": read_each_time}, rounds=3)
record(
    "loader",
    {
        "what": f"{len(drawn)} windows of {n_frames} x {config.crop} x {config.crop} from events of {shape}",
        "seconds": seconds,
        "windows_per_second_from_cache": len(drawn) / seconds["from_cache"],
        "ratio": seconds["read_each_time"] / seconds["from_cache"],
    },
)
