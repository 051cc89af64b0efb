"""The storm simulator: real SEVIR files, known motion, plausible statistics."""

from __future__ import annotations

import csv
import shutil
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet import data
from nbhelpers.stages.perceptual_unet.simulate import simulate
from nbhelpers.stages.perceptual_unet.storms import simulate_event, vil_level

GRID = {"size": 48, "n_frames": 5, "step_minutes": 5}
SMALL = {"n_events": 12, "seed": 1, "progress": False, **GRID}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("storms"), **SMALL).parent


def test_reader_accepts_every_event_and_reads_the_simulated_frames(storms: Path) -> None:
    events = data.read_catalogue(storms, max_pct_missing=1.0)
    data.check_events(events)
    assert len(events) == 12
    assert events[0].minutes == (-10, -5, 0, 5, 10)
    with (storms / "CATALOG.csv").open(newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    by_id = {event.id: event for event in events}
    for index in (0, 5, 11):
        expected = simulate_event(seed=1, index=index, **GRID).frames
        np.testing.assert_array_equal(data.read_event(by_id[ids[index]]), expected)


def test_files_are_contiguous_and_named_as_sevirs(storms: Path) -> None:
    files = sorted(storms.glob("vil/*/*.h5"))
    assert len(files) >= 3
    assert {path.name.split("_")[2] for path in files} == {"STORMEVENTS", "RANDOMEVENTS"}
    for path in files:
        assert path.name.startswith("SEVIR_VIL_") and path.parent.name == path.stem.split("_")[3]
        with h5py.File(path) as file:
            assert set(file) == {"id", "vil"}
            assert file["vil"].dtype == np.uint8 and file["vil"].shape[1:] == (48, 48, 5)
            assert file["vil"].chunks is None and file["vil"].id.get_offset() is not None
            assert file["id"].dtype.kind == "S"


def test_catalogue_has_sevirs_columns_and_tells_the_truth(storms: Path) -> None:
    with (storms / "CATALOG.csv").open(newline="") as file:
        table = csv.DictReader(file)
        assert table.fieldnames == data.CATALOGUE_COLUMNS
        rows = {row["id"]: row for row in table}
    for event in data.read_catalogue(storms, max_pct_missing=1.0):
        row, frames = rows[event.id], data.read_event(event)
        measured = frames[frames != data.MISSING]
        assert float(row["pct_missing"]) == pytest.approx((frames == data.MISSING).mean(), abs=1e-12)
        assert (int(row["data_min"]), int(row["data_max"])) == (measured.min(), measured.max())
        assert row["height_m"] == "48000" and row["size_x"] == "48"
        assert 25 < float(row["llcrnrlat"]) < float(row["urcrnrlat"]) < 50
        assert -125 < float(row["llcrnrlon"]) < float(row["urcrnrlon"]) < -65
        # 48 km of latitude, give or take the projection's turn
        assert float(row["urcrnrlat"]) - float(row["llcrnrlat"]) == pytest.approx(48 / 111.2, rel=0.3)
        first, last = row["file_name"][:-3].split("_")[-2:]
        assert first <= f"{event.time:%m%d}" <= last and f"_{event.time:%Y}_" in row["file_name"]


def test_official_split_has_about_seventy_per_cent_to_train(tmp_path: Path) -> None:
    grid = {"size": 32, "n_frames": 2, "step_minutes": 5}
    simulate(tmp_path / "forty", n_events=40, progress=False, **grid)
    events = data.read_catalogue(tmp_path / "forty", max_pct_missing=1.0)
    times = [event.time for event in events]
    assert min(times) >= datetime(2018, 1, 1) and max(times) < datetime(2019, 12, 1)
    assert 0.65 <= np.mean([time < datetime(2019, 6, 1) for time in times]) <= 0.75
    simulate(tmp_path / "two", n_events=2, progress=False, **grid)
    two = data.read_catalogue(tmp_path / "two", max_pct_missing=1.0)
    assert sorted(event.time >= datetime(2019, 6, 1) for event in two) == [False, True]


def test_same_parameters_give_the_same_bytes_and_other_seeds_other_storms(storms: Path, tmp_path: Path) -> None:
    assert simulate(tmp_path / "again", **SMALL) == tmp_path / "again" / "CATALOG.csv"
    assert contents(tmp_path / "again") == contents(storms)
    other = simulate_event(seed=2, index=0, **GRID).frames
    assert not np.array_equal(other, simulate_event(seed=1, index=0, **GRID).frames)


def test_second_call_leaves_a_complete_folder_alone_and_mends_an_incomplete_one(tmp_path: Path) -> None:
    settings = {**SMALL, "n_events": 3}
    simulate(tmp_path, **settings)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
    before = contents(tmp_path)
    simulate(tmp_path, **settings)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    # as after a kill: a half-written file under its temporary name, no catalogue
    (tmp_path / "CATALOG.csv").unlink()
    victim = next(iter(files))
    victim.rename(victim.with_name(victim.name + ".part"))
    with pytest.raises(UserError, match="no CATALOG.csv"):
        data.read_catalogue(tmp_path)
    simulate(tmp_path, **settings)
    assert contents(tmp_path) == before


def test_refuses_other_parameters_and_real_data(storms: Path, tmp_path: Path) -> None:
    before = contents(storms)
    with pytest.raises(UserError, match=r"seed=1 \(asked: 7\)"):
        simulate(storms, **{**SMALL, "seed": 7})
    assert contents(storms) == before
    for name in ("SEVIR_CATALOG.csv", "data/CATALOG.csv", *(n for n in before if n.endswith(".h5"))):
        real = tmp_path / name.replace("/", "-") / name
        real.parent.mkdir(parents=True)
        real.write_bytes(b"someone's real data")
        with pytest.raises(UserError, match="is not simulated"):
            simulate(tmp_path / name.replace("/", "-"), **SMALL)
        assert contents(tmp_path / name.replace("/", "-")) == {name: b"someone's real data"}


def test_impossible_parameters_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("n_events", 0), ("size", 16), ("n_frames", 1), ("step_minutes", 0), ("seed", -1)):
        with pytest.raises(UserError, match=f"{name} is {value}"):
            simulate(tmp_path / "none", **{**SMALL, name: value})
    assert not (tmp_path / "none").exists()
    # The real function answers, only the number of free bytes is another one.
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="needs .* but the disk of .* has 1.0 kB free"):
        simulate(tmp_path / "full", **SMALL)
    assert contents(tmp_path / "full") == {}


def test_says_that_it_is_simulated(storms: Path) -> None:
    marker = data.simulation_record(storms)
    assert marker is not None and marker["simulated"] is True
    assert {key: marker[key] for key in ("n_events", "seed", "size")} == {"n_events": 12, "seed": 1, "size": 48}


def displacement(earlier: np.ndarray, later: np.ndarray, box: slice, reach: int = 10) -> np.ndarray:
    """(2,) whole pixels to where the square ``box`` of ``earlier`` is found again in ``later``, by correlation."""
    patch = earlier[box, box].ravel().astype(float)
    shifts = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    found = [later[box.start + dy : box.stop + dy, box.start + dx : box.stop + dx].ravel() for dy, dx in shifts]
    return np.array(shifts[int(np.argmax([np.corrcoef(patch, there)[0, 1] for there in found]))])


@pytest.mark.parametrize("index", [2, 4, 6])
def test_frames_move_with_the_steering_flow(index: int) -> None:
    storm = simulate_event(seed=0, index=index, size=128, n_frames=6, step_minutes=5)
    assert (storm.frames != data.MISSING).all()
    box = slice(32, 96)
    flow = storm.motion[:, box, box].mean(axis=(1, 2))
    assert np.hypot(*flow) > 1.5
    seen = np.mean([displacement(storm.frames[t], storm.frames[t + 1], box) for t in range(5)], axis=0)
    np.testing.assert_allclose(seen, flow, atol=0.8)


def test_time_step_scales_the_motion() -> None:
    slow, fast = (simulate_event(seed=0, index=2, size=64, n_frames=2, step_minutes=step) for step in (2, 10))
    np.testing.assert_allclose(fast.motion, 5 * slow.motion)


def test_flow_is_curved_and_free_of_divergence() -> None:
    v, u = simulate_event(seed=0, index=0, size=96, n_frames=2, step_minutes=5).motion
    divergence = np.gradient(v, axis=0) + np.gradient(u, axis=1)
    shear = np.hypot(np.gradient(v, axis=1), np.gradient(u, axis=0))
    assert shear[1:-1, 1:-1].max() > 2e-3
    assert np.abs(divergence[1:-1, 1:-1]).max() < 0.01 * shear.max()


def test_statistics_and_skill_of_persistence() -> None:
    grid = {"size": 128, "n_frames": 13, "step_minutes": 5}
    events = [simulate_event(seed=0, index=index, **grid).frames for index in range(24)]
    level = np.concatenate([frames[frames != data.MISSING] for frames in events])
    assert 20 < level.mean() < 50 and 30 < level.std() < 60
    for threshold, low, high in ((16, 25, 52), (74, 8, 28), (133, 2.5, 12), (160, 0.8, 6), (219, 0.05, 2)):
        assert low < 100 * (level >= threshold).mean() < high, threshold
    csi = []
    for lead in (1, 3, 6):
        pairs = [(f[t], f[t + lead]) for f in events for t in range(6) if data.MISSING not in f]
        hits = sum(np.sum((a >= 74) & (b >= 74)) for a, b in pairs)
        csi.append(hits / sum(np.sum((a >= 74) | (b >= 74)) for a, b in pairs))
    assert 0.6 < csi[0] < 0.85 and 0.25 < csi[2] < 0.55 and csi[0] > csi[1] > csi[2]


def test_missing_sectors_are_marked_and_catalogued(tmp_path: Path) -> None:
    simulate(tmp_path, n_events=40, size=32, n_frames=4, step_minutes=5, progress=False)
    every = data.read_catalogue(tmp_path, max_pct_missing=1.0)
    complete = data.read_catalogue(tmp_path)
    assert 2 <= len(every) - len(complete) <= 12
    for event in every:
        gaps = data.read_event(event) == data.MISSING
        assert gaps.any() == (event not in complete)
        assert gaps.mean() < 0.5


def test_level_is_the_inverse_of_vil() -> None:
    levels = np.arange(255)
    back = np.rint(vil_level(data.vil_kg_m2(levels)))
    np.testing.assert_array_equal(back, np.where(levels <= 5, 0, levels))
    kg_m2 = np.concatenate(([0.0], np.geomspace(1e-4, 500, 20001)))
    assert (np.diff(vil_level(kg_m2)) >= 0).all() and vil_level(kg_m2).max() == 254
    np.testing.assert_allclose(vil_level(np.array([0.775, 3.53, 32.2])), [74, 133, 219], atol=0.05)
