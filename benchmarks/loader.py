"""Windows from the event cache against reading an event for every window and decoding it to float32."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from side_by_side import record, side_by_side

from nbhelpers.stages.perceptual_unet import data, windows
from nbhelpers.stages.perceptual_unet.config import Config

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data-dir", type=Path, required=True)
data_dir = parser.parse_args().data_dir
torch.set_num_threads(1)
config = Config.for_profile("quick", backbone_weights="random", cache_gb=8.0)
events = data.read_catalogue(data_dir, max_pct_missing=config.max_pct_missing)[:12]
cache = data.EventCache(int(config.cache_gb * 1e9))
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
