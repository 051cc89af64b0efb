"""Reading SEVIR's layout: catalogue, HDF5 files of either storage, the cache, and what the levels mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sevir

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet import data, windows
from nbhelpers.stages.perceptual_unet.config import Config

CHUNKED = {"chunks": (1, 16, 16, 13), "compression": "gzip"}


@pytest.mark.parametrize("storage", [{}, CHUNKED, {"chunks": (1, 32, 32, 13)}], ids=["contiguous", "gzip", "chunked"])
def test_frames_come_time_first_and_equal_whatever_the_storage(tmp_path: Path, storage: dict) -> None:
    events = sevir.storms(3)
    sevir.write_sevir(tmp_path, events, **storage)
    found = data.read_catalogue(tmp_path)
    assert data.check_events(found) == (32, 32)
    for event in found:
        frames = data.read_event(event)
        assert frames.dtype == np.uint8 and frames.flags.c_contiguous
        np.testing.assert_array_equal(frames, events[event.id])


@pytest.mark.parametrize(("n_frames", "height", "width", "step"), [(7, 20, 45, 2), (49, 16, 8, 5), (2, 9, 9, 10)])
def test_any_number_of_frames_step_and_shape(tmp_path: Path, n_frames: int, height: int, width: int, step: int) -> None:
    events = sevir.storms(2, n_frames=n_frames, height=height, width=width)
    sevir.write_sevir(tmp_path, events, step=step)
    found = data.read_catalogue(tmp_path)
    assert data.check_events(found) == (height, width)
    assert [windows.native_step(event) for event in found] == [step, step]
    np.testing.assert_array_equal(data.read_event(found[1]), events["R01"])


def test_offsets_that_jitter_by_a_scan_keep_their_step(tmp_path: Path) -> None:
    frames = sevir.storm(0, n_frames=8)
    sevir.write_hdf5(tmp_path / sevir.FILE_NAME, {"R00": frames})
    jitter = {"minute_offsets": "-21:-16:-10:-6:-1:5:9:14"}
    sevir.write_catalogue(tmp_path / "CATALOG.csv", [sevir.row("R00", 0, frames, **jitter)])
    (event,) = data.read_catalogue(tmp_path)
    assert event.minutes == (-21, -16, -10, -6, -1, 5, 9, 14)
    assert windows.native_step(event) == 5
    assert windows.frame_stride(event, 10) == 2


def test_duplicate_ids_appear_once_and_other_image_types_not_at_all(tmp_path: Path) -> None:
    events = sevir.storms(3)
    sevir.write_hdf5(tmp_path / sevir.FILE_NAME, events)
    rows = [sevir.row(id, i, events[id]) for i, id in enumerate(events)]
    rows = [rows[1], *rows, rows[2], sevir.row("R09", 0, events["R00"], img_type="ir069", file_name="ir069/x.h5")]
    sevir.write_catalogue(tmp_path / "CATALOG.csv", rows)
    assert [event.id for event in data.read_catalogue(tmp_path)] == ["R00", "R01", "R02"]


def test_events_with_missing_pixels_are_left_out_up_to_the_limit(tmp_path: Path) -> None:
    events = sevir.storms(3)
    events["R01"][:, :8] = 255  # a quarter
    events["R02"][:, 0, 0] = 255  # a thousandth
    sevir.write_sevir(tmp_path, events)
    kept = {limit: [e.id for e in data.read_catalogue(tmp_path, max_pct_missing=limit)] for limit in (0.0, 0.01, 0.25)}
    assert kept == {0.0: ["R00"], 0.01: ["R00", "R02"], 0.25: ["R00", "R01", "R02"]}


def test_a_file_that_only_unused_rows_name_need_not_be_there(tmp_path: Path) -> None:
    events = sevir.storms(1)
    sevir.write_hdf5(tmp_path / sevir.FILE_NAME, events)
    gone = sevir.row("R05", 0, events["R00"], file_name="vil/2018/gone.h5", pct_missing=0.5)
    sevir.write_catalogue(tmp_path / "CATALOG.csv", [sevir.row("R00", 0, events["R00"]), gone])
    assert [event.id for event in data.read_catalogue(tmp_path)] == ["R00"]


def test_indices_as_floats_and_empty_pct_missing_are_read_as_sevir_writes_them(tmp_path: Path) -> None:
    events = sevir.storms(2)
    sevir.write_hdf5(tmp_path / sevir.FILE_NAME, events)
    odd = sevir.row("R01", 1, events["R01"], file_index="1.0", pct_missing="")
    catalogue = sevir.write_catalogue(tmp_path / "CATALOG.csv", [odd])
    catalogue.write_bytes(b"\xef\xbb\xbf" + catalogue.read_bytes())  # as a spreadsheet saves it
    (event,) = data.read_catalogue(tmp_path)
    np.testing.assert_array_equal(data.read_event(event), events["R01"])


@pytest.mark.parametrize(
    ("catalogue", "files"),
    [
        ("CATALOG.csv", ""),
        ("SEVIR_CATALOG.csv", "data"),
        ("data/SEVIR_CATALOG.csv", "data/sevir"),  # MyDrive/SEVIR_Data as people keep it
        ("data/CATALOG.csv", "data/sevir"),
        ("sevir/CATALOG.csv", "sevir"),
    ],
)
def test_the_layouts_that_people_keep_are_found(tmp_path: Path, catalogue: str, files: str) -> None:
    events = sevir.storms(1)
    sevir.write_hdf5(tmp_path / files / sevir.FILE_NAME, events)
    written = sevir.write_catalogue(tmp_path / catalogue, [sevir.row("R00", 0, events["R00"])])
    assert data.find_catalogue(tmp_path) == written
    (event,) = data.read_catalogue(tmp_path)
    np.testing.assert_array_equal(data.read_event(event), events["R00"])


def test_the_cache_drops_the_least_recently_used_event_and_reads_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = sevir.storms(3)
    sevir.write_sevir(tmp_path, events)
    first, second, third = data.read_catalogue(tmp_path)
    reads = _count_reads(monkeypatch)
    cache = data.EventCache(2 * events["R00"].nbytes)
    for event in (first, second, first, third, first, second):  # third pushes second out, not first
        np.testing.assert_array_equal(cache[event], events[event.id])
    assert reads == ["R00", "R01", "R02", "R01"]


@pytest.mark.parametrize("room", [1, 2, 4])
def test_an_epoch_reads_each_event_once_however_small_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    events = sevir.storms(6)
    sevir.write_sevir(tmp_path, events)
    found = data.read_catalogue(tmp_path)
    reads = _count_reads(monkeypatch)
    cache = data.EventCache(int(room * 1.5) * events["R00"].nbytes)
    config = Config(n_in=3, n_out=2, crop=0, windows_per_epoch=6 * 4)
    for epoch in range(2):
        del reads[:]
        group = cache.events_that_fit(found, (32, 32))
        drawn = windows.random_windows(found, config, epoch=epoch, shape=(32, 32), group=group)
        batches = list(windows.loader(drawn, config, cache, batch_size=5))
        assert sum(len(batch.events) for batch in batches) == 24
        assert len(reads) == len(set(reads)) <= 6


def test_the_cache_holds_no_more_than_it_may_but_always_one_event(tmp_path: Path) -> None:
    events = sevir.storms(4)
    sevir.write_sevir(tmp_path, events)
    found = data.read_catalogue(tmp_path)
    size = events["R00"].nbytes
    assert [data.EventCache(n).events_that_fit(found, (32, 32)) for n in (1, size, 2 * size - 1, 3 * size)] == [
        1,
        1,
        1,
        3,
    ]
    cache = data.EventCache(1)
    assert [cache[event].shape for event in found] == [(13, 32, 32)] * 4


def test_the_real_sample_is_read(real_data: Path) -> None:
    everything = data.read_catalogue(real_data / "radar_sevir_layout", max_pct_missing=1.0)
    complete = data.read_catalogue(real_data / "radar_sevir_layout")
    assert {event.id for event in complete} < {event.id for event in everything}
    shape = data.check_events(everything)
    for event in complete[:3]:
        frames = data.read_event(event)
        assert frames.shape == (len(event.minutes), *shape)
        assert frames.max() < 255
        # The order of the axes: real rain changes far less from frame to frame than from row to row.
        steps = [np.abs(np.diff(frames.astype(int), axis=axis)).mean() for axis in (0, 1, 2)]
        assert 0 < steps[0] < min(steps[1:])


def test_vil_of_grey_levels() -> None:
    known = {16: 0.154, 74: 0.775, 133: 3.53, 160: 7.07, 181: 12.1, 219: 32.2}
    for level, value in known.items():
        assert f"{data.vil_kg_m2(np.uint8(level)):.3g}" == f"{value:.3g}"
    low = data.vil_kg_m2(np.array([0, 5, 6, 18, 19], np.uint8))
    np.testing.assert_allclose(low, [0, 0, 4 / 90.66, 16 / 90.66, np.exp((19 - 83.9) / 38.9)], rtol=1e-12)
    assert np.isnan(data.vil_kg_m2(np.array([255], np.uint8))).all()
    assert (np.diff(data.vil_kg_m2(np.arange(255))) >= 0).all()


def test_a_catalogue_cut_off_in_a_row_is_refused(tmp_path: Path) -> None:
    catalogue = sevir.write_sevir(tmp_path, sevir.storms(3))
    text = catalogue.read_text(encoding="utf-8")
    for cut in (len(text) - 8, len(text) - 60, len(text) - 140):
        catalogue.write_text(text[:cut], encoding="utf-8")
        with pytest.raises(UserError, match="line 4 ends early"):
            data.read_catalogue(tmp_path)


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the events that are read from now on, in order."""
    reads: list[str] = []
    read = data.read_event

    def counted(event: data.Event) -> np.ndarray:
        reads.append(event.id)
        return read(event)

    monkeypatch.setattr(data, "read_event", counted)
    return reads
