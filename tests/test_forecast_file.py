"""Forecasts on disk: SEVIR's layout, the right frames, and an old file that survives a failure."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import sevir
import torch

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet import data
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.forecast_file import latest_windows, write_forecasts
from nbhelpers.stages.perceptual_unet.task import NowcastTask

CHECKPOINT = "c0ffee" * 10 + "beef"


@pytest.fixture(scope="module")
def events() -> dict[str, np.ndarray]:
    made = sevir.storms(8, n_frames=14, height=32, width=40)
    for frames in made.values():
        frames[:, 5:9, 30:] = 255
    return made


@pytest.fixture(scope="module")
def task(events: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> NowcastTask:
    """An untrained model, which forecasts its first guess, the last frame."""
    folder = tmp_path_factory.mktemp("data")
    sevir.write_sevir(folder, events, step=5)
    config = Config(
        n_in=3,
        n_out=2,
        step_minutes=10,
        crop=0,
        base_channels=4,
        depth=1,
        max_pct_missing=0.5,
        first_guess="persistence",
        lambda_perc=0.0,
        perceptual_share=None,
        lpips_net="squeeze",
        lpips_weights="random",
    )
    return NowcastTask(config, folder)


def test_the_file_is_in_sevirs_layout_and_says_what_it_holds(task: NowcastTask, tmp_path: Path) -> None:
    path = tmp_path / "new/forecasts.h5"
    ids = [event.id for event in task.split.events["test"]]
    assert write_forecasts(task, path, split="test", checkpoint=CHECKPOINT) == len(ids) > 1
    with h5py.File(path) as file:
        assert [key.decode() for key in file["id"][:]] == ids
        assert file["vil"].shape == (len(ids), 32, 40, 2) and file["vil"].dtype == np.uint8
        assert file["vil"].id.get_offset() is not None  # contiguous, as SEVIR's own
        assert file.attrs["lead_minutes"].tolist() == [10, 20]
        assert file.attrs["checkpoint"] == CHECKPOINT
        # 14 frames every 5 min from -35: the latest window takes 5, 7, 9 and forecasts 11, 13.
        assert file.attrs["start_minute"].tolist() == [10] * len(ids)
    assert [p.name for p in path.parent.iterdir()] == ["forecasts.h5"]


def test_an_untrained_model_forecasts_the_last_frame_exactly(
    task: NowcastTask, events: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "forecasts.h5"
    write_forecasts(task, path, split="train", checkpoint=CHECKPOINT)
    for index, event in enumerate(task.split.events["train"]):
        written = data.Event(event.id, path, index, event.time, (10, 20))
        data.check_events([written])
        frames = data.read_event(written)
        last = events[event.id][9]
        assert (last[5:9, 30:] == 255).all()  # not measured, so not forecast either
        np.testing.assert_array_equal(frames, np.stack([last, last]))


def test_a_forecast_is_the_models_for_the_latest_window_alone(
    task: NowcastTask, events: dict[str, np.ndarray], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    unet = task.modules["unet"]
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    torch.nn.init.normal_(unet.head.weight, std=0.2)
    path = tmp_path / "forecasts.h5"
    write_forecasts(task, path, split="test", checkpoint=CHECKPOINT)
    with h5py.File(path) as file:
        found = file["vil"][:]
    for index, event in enumerate(task.split.events["test"]):
        levels = torch.from_numpy(events[event.id][[5, 7, 9]])
        scaled = torch.where(levels == 255, 0.0, levels / 255)
        with torch.no_grad():
            expected = (task.modules["unet"].eval()(scaled[None])[0] * 255).round().clamp(0, 254)
        measured = (levels[-1] != 255).numpy()
        for t in range(2):
            np.testing.assert_array_equal(found[index, ..., t][measured], expected[t].numpy()[measured])
            assert (found[index, ..., t][~measured] == 255).all()
            assert (found[index, ..., t] != events[event.id][9]).any()
    unet.load_state_dict(before)


def test_the_latest_window_ends_with_the_event(task: NowcastTask) -> None:
    (window, *_) = latest_windows(task.split.events["val"], task)
    assert (window.start, window.stride) == (5, 2)
    assert window.start + 4 * window.stride == 13


def test_an_unknown_split_is_refused(task: NowcastTask, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split 'tests' is unknown: choose one of train, val, test"):
        write_forecasts(task, tmp_path / "f.h5", split="tests", checkpoint=CHECKPOINT)


def test_a_file_that_cannot_be_written_leaves_what_is_there(task: NowcastTask, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "kept.txt").write_text("kept")
    with pytest.raises(UserError, match="forecasts cannot be written to .*taken.*choose another --to"):
        write_forecasts(task, taken, split="val", checkpoint=CHECKPOINT)
    with pytest.raises(UserError, match="cannot be written"):
        write_forecasts(task, taken / "kept.txt" / "f.h5", split="val", checkpoint=CHECKPOINT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]
    assert [p.name for p in taken.iterdir()] == ["kept.txt"]
    assert (taken / "kept.txt").read_text() == "kept"


# HDF5 complains once more when Python throws the half-written file away.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_the_old_forecasts(task: NowcastTask, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # no such limits on Windows
    path = tmp_path / "forecasts.h5"
    write_forecasts(task, path, split="test", checkpoint=CHECKPOINT)
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="forecasts cannot be written to"):
            write_forecasts(task, path, split="test", checkpoint=CHECKPOINT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["forecasts.h5"]


def test_an_event_that_cannot_be_read_leaves_the_old_forecasts(
    events: dict[str, np.ndarray], task: NowcastTask, tmp_path: Path
) -> None:
    path = tmp_path / "forecasts.h5"
    write_forecasts(task, path, split="test", checkpoint=CHECKPOINT)
    old = path.read_bytes()
    task.cache = data.EventCache(10**9)
    last = task.split.events["test"][-1]
    with h5py.File(last.path, "r+") as file:
        file["vil"][last.index] = 255
    with pytest.raises(UserError, match=f"event {last.id} .* holds nothing but 255"):
        write_forecasts(task, path, split="test", checkpoint=CHECKPOINT)
    assert path.read_bytes() == old
    with h5py.File(last.path, "r+") as file:
        file["vil"][last.index] = events[last.id].transpose(1, 2, 0)
