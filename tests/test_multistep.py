"""Half an hour (12→6) and SEVIR's official hour (13→12) from one end to the other, on events of 49 frames."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import sevir

from nbhelpers.stages.perceptual_unet.config import PROFILES, Config
from nbhelpers.stages.perceptual_unet.forecast_file import write_forecasts
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.stages.perceptual_unet.windows import fixed_windows
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight events of 4 h, a frame every 5 min."""
    folder = tmp_path_factory.mktemp("data")
    sevir.write_sevir(folder, sevir.storms(8, n_frames=49), step=5)
    return folder


def test_the_profiles_are_the_published_settings() -> None:
    assert (PROFILES["full"]["n_in"], PROFILES["full"]["n_out"]) == (13, 12)
    assert (Config().n_in, Config().n_out) == (12, 1) and PROFILES["t4"]["n_out"] == 6


@pytest.mark.parametrize(
    ("n_in", "n_out", "starts", "first_guess"),
    [(12, 6, [0, 16, 31], "persistence"), (13, 12, [0, 12, 24], "advection")],  # 13→12: the official protocol's windows
)
def test_from_windows_to_forecasts_on_disk(
    data_dir: Path, tmp_path: Path, n_in: int, n_out: int, starts: list[int], first_guess: str
) -> None:
    config = Config.for_profile(
        "smoke", n_in=n_in, n_out=n_out, eval_windows=3, crop=0, windows_per_epoch=8, base_channels=4, depth=1,
        batch_size=4, epochs=1, lambda_perc=0.0, lpips_weights="random", first_guess=first_guess,
    )  # fmt: skip
    task = NowcastTask(config, data_dir)
    leads = list(range(5, 5 * n_out + 1, 5))
    for split in ("val", "test"):
        events = task.split.events[split]
        windows = fixed_windows(events, config)
        assert [(w.event, w.start, w.stride) for w in windows] == [(e, s, 1) for e in events for s in starts]
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    report = make_report(task, run)
    by_label = report["metrics"]["csi_74"]["by_label"]
    assert list(by_label) == [f"{lead} min" for lead in leads] and report["data"]["lead_minutes"] == leads
    assert all(report["baselines"][name]["mse"]["by_label"].keys() == by_label.keys() for name in report["baselines"])

    found = checkpoint.find(run, "best") or checkpoint.find(run, "last")
    assert found is not None
    path = tmp_path / "forecasts.h5"
    events = task.split.events["test"]
    assert write_forecasts(task, path, split="test", checkpoint=found.sha256) == len(events)
    with h5py.File(path) as file:
        assert file["vil"].shape == (len(events), 32, 32, n_out) and file["vil"].dtype == np.uint8
        assert file.attrs["lead_minutes"].tolist() == leads
        # 49 frames from -120 to +120 min: the last forecast frame is the event's last.
        assert (file.attrs["start_minute"] + leads[-1]).tolist() == [120] * len(events)
        # A storm that moves does not stand still in the forecast of an hour either.
        assert first_guess == "persistence" or (file["vil"][..., 0] != file["vil"][..., -1]).any()
