"""Chosen events of SEVIR by HTTP Range, against a real server that drops, lies, refuses ranges and changes its mind."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sevir

from nbhelpers.cli import main
from nbhelpers.core import download as download_module
from nbhelpers.core import remote_file
from nbhelpers.core.errors import UserError
from nbhelpers.core.http_answers import MirrorError
from nbhelpers.core.manifest import load_manifest, read_lock
from nbhelpers.core.remote_file import RemoteFile
from nbhelpers.stages.perceptual_unet import data, sevir_choice, sevir_subset
from nbhelpers.stages.perceptual_unet.commands import Config, Task, fetch_events
from nbhelpers.stages.perceptual_unet.windows import split_events

TRAIN_FILE = "vil/2018/SEVIR_VIL_RANDOMEVENTS_2018_0101_0430.h5"
TEST_FILE = "vil/2019/SEVIR_VIL_STORMEVENTS_2019_0701_1231.h5"
STORMS = sevir.storms(20)
EVENT = STORMS["R00"].size  # bytes of one event
BLOCK = 2048  # of header reads here: events are small
KILLED_AT = 512  # bytes of a chunk here


@dataclass
class Page:
    """What the server does for one path."""

    content: bytes
    etag: str | None = '"v1"'
    ranges: bool = True  # answer Range with 206
    if_range: bool = True  # honour If-Range
    total: int | None = None  # lie about the file's length in Content-Range
    shift: int = 0  # lie about the beginning in Content-Range
    announce: int = 0  # lie about Content-Length by so much
    surplus: int = 0  # send so many bytes more than asked for, without a Content-Length
    html: bool = False  # answer with an error page under status 200
    refusals: list[int] = field(default_factory=list)  # statuses of the next answers
    lies_from: int = 0  # the lies begin with this request, counted from 0
    becomes: tuple[int, bytes, str] | None = None  # from this request on: another content and ETag
    asked: list[str | None] = field(default_factory=list)  # Range header of every request
    sent: list[int] = field(default_factory=list)  # bytes of body sent for every request


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]
        page = site.pages.get(self.path)
        if page is None:
            return self.send_error(404)
        number = len(page.asked)
        page.asked.append(self.headers.get("Range"))
        page.sent.append(0)
        lies = number >= page.lies_from
        if page.becomes and number >= page.becomes[0]:
            page.content, page.etag = page.becomes[1:]
        if page.refusals:
            return self.send_error(page.refusals.pop(0))
        if page.html and lies:
            return self.answer(page, 200, b"<html>Sorry</html>", {"Content-Type": "text/html"})
        total = len(page.content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        other = page.if_range and self.headers.get("If-Range") not in (None, page.etag)
        if not wanted or other or not (page.ranges or not lies):
            return self.answer(page, 200, page.content, {"Content-Length": str(total)})
        first, last = int(wanted[1]), min(int(wanted[2] or total), total - 1)
        if first >= total:
            return self.answer(page, 416, b"", {"Content-Range": f"bytes */{total}"})
        body = page.content[first : last + 1]
        headers = {"Content-Length": str(len(body))}
        said, begin = total, first
        if lies:
            said, begin = page.total or total, first + page.shift
            headers["Content-Length"] = str(len(body) + page.announce)
            if page.surplus:
                headers, body = {}, page.content[first : last + 1 + page.surplus]
        headers["Content-Range"] = f"bytes {begin}-{begin + last - first}/{said}"
        return self.answer(page, 206, body, headers)

    def answer(self, page: Page, status: int, body: bytes, headers: dict[str, str]) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if page.etag:
            self.send_header("ETag", page.etag)
        self.end_headers()
        for offset in range(0, len(body), 4096):
            block = body[offset : offset + 4096]
            if site.budget is not None:
                block, site.budget = block[: site.budget], max(0, site.budget - len(block))
            try:
                self.wfile.write(block)
            except (BrokenPipeError, ConnectionResetError):
                return
            page.sent[-1] += len(block)
            if len(block) < min(4096, len(body) - offset):
                return  # the line is cut
            time.sleep(site.seconds_per_block)

    def log_message(self, *_: Any) -> None:
        pass


class Site:
    """The running server; ``budget`` bytes of body are sent before every connection is cut."""

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.site = self  # type: ignore[attr-defined]
        self.pages: dict[str, Page] = {}
        self.budget: int | None = None
        self.seconds_per_block = 0.0
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def url(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def forget(self) -> None:
        for page in self.pages.values():
            page.asked.clear()
            page.sent.clear()


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture(autouse=True)
def _small_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(download_module, "CHUNK_BYTES", KILLED_AT)
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", BLOCK)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@dataclass(frozen=True)
class Bucket:
    """A small SEVIR on the server: 12 events of 2018 and 8 of July 2019, and a manifest that names them."""

    site: Site
    folder: Path  # the files that are served
    manifest: Path

    def page(self, name: str) -> Page:
        return self.site.pages[f"/data/{name}"]

    def get(self, data_dir: Path, n: int, **options: Any) -> Any:
        options = {"kaggle_input": self.folder / "no-kaggle", **options}
        return fetch_events(load_manifest(self.manifest), data_dir, n, progress=False, **options)

    def refused(self, data_dir: Path, n: int, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            self.get(data_dir, n, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)


def catalogue_of(files: dict[str, list[str]]) -> list[dict[str, Any]]:
    rows = []
    for name, ids in files.items():
        for index, id in enumerate(ids):
            day = f"2018-01-{index + 1:02d}" if name == TRAIN_FILE else f"2019-07-{index + 1:02d}"
            rows.append(sevir.row(id, index, STORMS[id], day=day, file_name=name))
    return rows


FILES = {TRAIN_FILE: list(STORMS)[:12], TEST_FILE: list(STORMS)[12:]}


@pytest.fixture
def bucket(site: Site, tmp_path: Path) -> Bucket:
    made = Bucket(site, tmp_path / "bucket", tmp_path / "trial.json")
    for name, ids in FILES.items():
        path = sevir.write_hdf5(made.folder / name, {id: STORMS[id] for id in ids})
        site.pages[f"/data/{name}"] = Page(path.read_bytes())
    publish(made, catalogue_of(FILES))
    return made


def publish(bucket: Bucket, rows: list[dict[str, Any]], *bases: str) -> None:
    """Serve a catalogue and write the manifest that names it and the mirrors."""
    path = sevir.write_catalogue(bucket.folder / "CATALOG.csv", rows)
    content = path.read_bytes()
    bucket.site.pages["/CATALOG.csv"] = Page(content)
    entry = {"path": "CATALOG.csv", "bytes": len(content), "mirrors": [bucket.site.url("CATALOG.csv")]}
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    texts = {"name": "trial", "title": "t", "description": "d", "licence": "l", "citation": "c"}
    mirrors = list(bases) or [bucket.site.url("data/")]
    bucket.manifest.write_text(json.dumps({**texts, "files": [entry], "range_mirrors": mirrors}))


def assert_holds(data_dir: Path, n: int) -> list[str]:
    """The folder reads like any SEVIR folder, with ``n`` events, each as it was published; returns their ids."""
    events = data.read_catalogue(data_dir)
    assert data.check_events(events) == (32, 32) and len(events) == n
    for event in events:
        np.testing.assert_array_equal(data.read_event(event), STORMS[event.id])
    lock = read_lock(data_dir)
    for event in events:
        raw = STORMS[event.id].transpose(1, 2, 0).tobytes()
        found = lock[f"vil/SEVIR_VIL_EVENTS.h5#{event.id}"]
        assert (found["sha256"], found["bytes"]) == (hashlib.sha256(raw).hexdigest(), EVENT)
    assert data.absent_files(data_dir) == []
    return [event.id for event in events]


def only_the_result(data_dir: Path) -> bool:
    """Nothing temporary is left."""
    names = {path.relative_to(data_dir).as_posix() for path in data_dir.rglob("*") if path.is_file()}
    return names == {"CATALOG.csv", "manifest.lock.json", "source/CATALOG.csv", "vil/SEVIR_VIL_EVENTS.h5"}


# --- what is transferred ----------------------------------------------------------------------------------------


def test_exactly_the_bytes_of_the_events_come_over_the_line(bucket: Bucket, tmp_path: Path) -> None:
    done = bucket.get(tmp_path / "data", 10)
    ids = assert_holds(tmp_path / "data", 10)
    assert (done.n_train, done.n_test, done.n_new) == (7, 3, 10) and only_the_result(tmp_path / "data")

    ranges, headers = [], 0
    for name in FILES:
        page = bucket.page(name)
        with h5py.File(bucket.folder / name) as file:
            offset = file["vil"].id.get_offset()
        assert len(page.asked) == len(set(page.asked))  # the header once, too
        for asked, sent in zip(page.asked, page.sent, strict=True):
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            assert sent == last - first + 1
            if (first - offset) % EVENT == 0 and sent == EVENT:
                ranges.append(FILES[name][(first - offset) // EVENT])
            else:
                headers += sent
                assert first % BLOCK == 0
    assert sorted(ranges) == ids  # each event asked for once, to the byte
    catalogue = len(bucket.site.pages["/CATALOG.csv"].content)
    assert vars(done.traffic) == {"catalogue": catalogue, "headers": headers, "events": 10 * EVENT}
    assert headers <= 2 * 8 * BLOCK
    assert sum(sum(page.sent) for page in bucket.site.pages.values()) == catalogue + headers + 10 * EVENT
    assert str(done).startswith("10 events (7 before 2019-06-01, 3 from it on; 10 new)") and "133.1 kB" in str(done)


def test_the_stored_file_is_contiguous_and_whole(bucket: Bucket, tmp_path: Path) -> None:
    bucket.get(tmp_path / "data", 5)
    path = tmp_path / "data/vil/SEVIR_VIL_EVENTS.h5"
    with h5py.File(path) as file:
        assert file["vil"].shape == (5, 32, 32, 13) and file["vil"].dtype == np.uint8
        assert file["vil"].id.get_offset() is not None
    assert path.stat().st_blocks * 512 >= 5 * EVENT  # no holes


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"userblock_size": 4096}])
def test_the_offset_is_that_of_the_header(bucket: Bucket, tmp_path: Path, options: dict[str, Any]) -> None:
    path = bucket.folder / "other.h5"
    with h5py.File(path, "w", **options) as file:
        file.create_group("something/else").create_dataset("before", data=np.zeros(777))
        file["vil"] = np.stack([STORMS[id].transpose(1, 2, 0) for id in FILES[TRAIN_FILE]])
        file["id"] = FILES[TRAIN_FILE]  # strings of variable length, behind the frames
    bucket.page(TRAIN_FILE).content = path.read_bytes()
    bucket.get(tmp_path / "data", 8)
    assert_holds(tmp_path / "data", 8)


def test_more_events_later_add_to_those_that_are_there(bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    bucket.get(folder, 4)
    few = assert_holds(folder, 4)
    bucket.site.forget()
    done = bucket.get(folder, 9)
    assert set(few) < set(assert_holds(folder, 9)) and only_the_result(folder)
    assert (done.n_new, done.traffic.events, done.traffic.catalogue) == (5, 5 * EVENT, 0)

    bucket.site.forget()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for n in (9, 3):  # fewer than there are: all are kept
        done = bucket.get(folder, n)
        assert (done.n_new, done.n_train + done.n_test) == (0, 9) and set(vars(done.traffic).values()) == {0}
    assert not any(page.asked for page in bucket.site.pages.values())
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    bucket.get(folder, 20)
    assert_holds(folder, 20)


def test_a_task_trains_and_tests_on_the_fetched_folder(bucket: Bucket, tmp_path: Path) -> None:
    bucket.get(tmp_path / "data", 10)
    task = make_task(tmp_path / "data")
    sizes = {name: len(group) for name, group in task.split.events.items()}
    assert sizes == {"train": 6, "val": 1, "test": 3} and "official" in task.split.rule


def make_task(data_dir: Path) -> Task:
    settings = {"backbone_weights": "random", "lpips_weights": "random", "n_in": 3, "lambda_perc": 0.0}
    return Task(Config.for_profile("smoke").replace({**settings, "subset": "all"}, source="test"), data_dir)


def hashes(data_dir: Path) -> tuple[str, str]:
    described = make_task(data_dir).describe_data()
    return described["sha256"], described["split_sha256"]


# --- which data a run was trained on ----------------------------------------------------------------------------


def test_the_same_events_are_the_same_data_however_they_arrived(bucket: Bucket, tmp_path: Path) -> None:
    for n in (5, 9):
        bucket.get(tmp_path / "in two goes", n)
    bucket.get(tmp_path / "at once", 9)
    ids = [sevir_subset.stored_ids(tmp_path / name) for name in ("in two goes", "at once")]
    assert ids[0] != ids[1] and sorted(ids[0]) == sorted(ids[1])
    expected = hashes(tmp_path / "in two goes")
    assert hashes(tmp_path / "at once") == expected

    # The bucket's own files, compressed, with a catalogue of more events than there are files for.
    rows = [row for row in catalogue_of(FILES) if row["id"] in ids[0]]
    for name, group in FILES.items():
        sevir.write_hdf5(tmp_path / "whole" / name, {id: STORMS[id] for id in group}, chunks=True, compression="gzip")
    absent = sevir.row("R99", 0, STORMS["R00"], file_name="vil/absent.h5")
    sevir.write_catalogue(tmp_path / "whole/CATALOG.csv", [*rows, absent])
    assert hashes(tmp_path / "whole") == expected


@pytest.mark.parametrize(
    "changes",
    [{"pct_missing": "0.01"}, {"time_utc": "2018-01-01 12:05:00"}, {"time_utc": "2018-01-20 12:00:00"},
     {"minute_offsets": sevir.offsets(13).replace("-30", "-31")}, {"event_type": "Hail"}],
)  # fmt: skip
def test_another_cell_makes_other_data(tmp_path: Path, changes: dict[str, Any]) -> None:
    sevir.write_sevir(
        tmp_path, {id: STORMS[id] for id in list(STORMS)[:4]}, days=[f"2018-01-0{n}" for n in range(1, 5)]
    )
    before = hashes(tmp_path)
    with (tmp_path / "CATALOG.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sevir.write_catalogue(tmp_path / "CATALOG.csv", rows[::-1])
    assert hashes(tmp_path) == before
    sevir.write_catalogue(tmp_path / "CATALOG.csv", [{**rows[0], **changes}, *rows[1:]])
    assert hashes(tmp_path)[0] != before[0]


def test_other_events_sizes_and_pixels_make_other_data(tmp_path: Path) -> None:
    some = {id: STORMS[id] for id in list(STORMS)[:4]}
    renamed = {f"S{id}": frames for id, frames in some.items()}
    wider = {id: np.pad(frames, ((0, 0), (0, 0), (0, 1))) for id, frames in some.items()}
    later = {id: frames[::-1] for id, frames in some.items()}  # of the same shape, in a file as long
    found = set()
    for index, events in enumerate((some, renamed, wider, later, dict(list(some.items())[:3]))):
        sevir.write_sevir(tmp_path / str(index), events)
        rows = [{**sevir.row(id, i, STORMS["R00"]), "size_x": ""} for i, id in enumerate(events)]
        sevir.write_catalogue(tmp_path / str(index) / "CATALOG.csv", rows)
        found.add(hashes(tmp_path / str(index))[0])
    assert len(found) == 5


# --- the choice -------------------------------------------------------------------------------------------------


def many(n: int, **changes: Any) -> list[dict[str, Any]]:
    days = [f"2018-{1 + i % 12:02d}-{1 + i % 28:02d}" if i % 3 else f"2019-{6 + i % 6:02d}-05" for i in range(n)]
    return [sevir.row(f"S{i:04d}", i, STORMS["R00"], day=days[i], **changes) for i in range(n)]


def chosen(path: Path, n: int) -> list[sevir_choice.RemoteEvent]:
    return sevir_choice.choose(sevir_choice.complete_events(path), n)


def test_the_choice_grows_keeps_its_proportion_and_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = many(120)
    path = sevir.write_catalogue(tmp_path / "a.csv", rows)
    shuffled = sevir.write_catalogue(tmp_path / "b.csv", random.Random(1).sample(rows, len(rows)))
    smaller: set[str] = set()
    for n in range(3, 121):
        events = chosen(path, n)
        ids = {event.id for event in events}
        assert len(ids) == n and smaller <= ids and ids == {event.id for event in chosen(shuffled, n)}
        if n <= 100:  # 40 of them are from the test date on
            assert sum(event.is_test for event in events) == max(1, round(0.3 * n))
        smaller = ids
    for n in (10, 20, 60):
        picked = [sevir.event(event.id, day=event.row["time_utc"][:10]) for event in chosen(path, n)]
        split = split_events(picked)
        sizes = {name: len(group) for name, group in split.events.items()}
        assert "official" in split.rule and sizes["test"] == round(0.3 * n) and sizes["val"] >= 1
        assert sizes["train"] >= 0.4 * n


def test_only_complete_vil_events_are_chosen_and_each_once(tmp_path: Path) -> None:
    rows = many(8)
    rows[0]["pct_missing"], rows[1]["img_type"], rows[2]["pct_missing"] = 0.001, "ir069", ""
    rows.append({**rows[5], "file_name": "vil/2018/copy.h5"})
    events = sevir_choice.complete_events(sevir.write_catalogue(tmp_path / "a.csv", rows))
    assert sorted(events) == ["S0002", "S0003", "S0004", "S0005", "S0006", "S0007"]
    assert events["S0005"].file_name == sevir.FILE_NAME  # the first of two rows


@pytest.mark.parametrize("n", [-1, 0, 2, 21])
def test_too_few_or_too_many_events(bucket: Bucket, tmp_path: Path, n: int) -> None:
    assert f"{n} events were asked for, expected 3 to 20" in bucket.refused(tmp_path / "data", n)


@pytest.mark.parametrize(
    "changes",
    [{"id": "../x"}, {"file_name": "../x.h5"}, {"file_name": "/x.h5"}, {"file_index": -1}, {"file_index": "one"}],
)
def test_impossible_rows_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = sevir.write_catalogue(tmp_path / "a.csv", [*many(4), {**many(1)[0], **changes}])
    with pytest.raises(UserError, match="line 6 .*fetch the catalogue again"):
        sevir_choice.complete_events(path)


def test_events_of_different_sizes_are_refused(tmp_path: Path) -> None:
    rows = many(4)
    rows[2]["size_x"] = 64
    with pytest.raises(UserError, match="different sizes"):
        chosen(sevir.write_catalogue(tmp_path / "a.csv", rows), 4)


# --- interruptions ----------------------------------------------------------------------------------------------


def test_a_cut_at_any_byte_costs_less_than_a_chunk(bucket: Bucket, tmp_path: Path) -> None:
    n = 5
    whole = bucket.get(tmp_path / "whole", n).traffic
    expected = (tmp_path / "whole/CATALOG.csv").read_bytes()
    everything = whole.catalogue + whole.headers + whole.events
    rng = random.Random(0)
    cuts = [0, 1, whole.catalogue, everything - 1] + [rng.randrange(everything) for _ in range(36)]
    for number, cut in enumerate(cuts):
        folder = tmp_path / f"cut{number}"
        bucket.site.forget()
        bucket.site.budget = cut
        assert "run again" in bucket.refused(folder, n)
        with pytest.raises(UserError, match="no CATALOG.csv|does not exist"):
            data.find_catalogue(folder)  # the full catalogue in source/ is not taken for the subset's
        bucket.site.budget = None
        parts = folder / "vil/SEVIR_VIL_EVENTS.parts"
        kept = sum(path.stat().st_size for path in parts.glob("*.part"))
        again = bucket.get(folder, n).traffic
        assert_holds(folder, n)
        assert only_the_result(folder) and (folder / "CATALOG.csv").read_bytes() == expected
        assert again.events == n * EVENT - kept  # what had arrived does not come again
        sent = sum(sum(page.sent) for page in bucket.site.pages.values())
        # Lost: the chunk in the cut, and the header blocks, which the second run reads anew.
        assert everything <= sent <= everything + 2 * KILLED_AT + whole.headers


def test_a_part_cut_at_any_byte_is_continued_there(bucket: Bucket, tmp_path: Path) -> None:
    n, rng = 4, random.Random(1)
    whole = bucket.get(tmp_path / "whole", n).traffic
    everything = whole.catalogue + whole.headers + whole.events
    for number in range(20):
        folder = tmp_path / str(number)
        bucket.site.budget = rng.randrange(everything - 4 * EVENT + KILLED_AT, everything)
        bucket.refused(folder, n)
        bucket.site.budget = None
        parts = sorted((folder / "vil/SEVIR_VIL_EVENTS.parts").glob("*.part"))
        with parts[-1].open("r+b") as file:  # as a process killed while it wrote leaves it
            file.truncate(rng.randrange(parts[-1].stat().st_size + 1))
        kept = sum(path.stat().st_size for path in parts)
        assert bucket.get(folder, n).traffic.events == n * EVENT - kept
        assert_holds(folder, n)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_rename_the_folder_reads_as_before_or_after(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    bucket.get(tmp_path / "few", 4)
    replace, unlink, calls, kill_at = os.replace, Path.unlink, [0], [0]

    def step(do: Any, *args: Any, **options: Any) -> None:
        calls[0] += 1
        if after:
            do(*args, **options)
        if calls[0] == kill_at[0]:
            raise Killed
        if not after:
            do(*args, **options)

    # A rename or removal is where the folder changes.
    monkeypatch.setattr(os, "replace", lambda *args: step(replace, *args))
    monkeypatch.setattr(Path, "unlink", lambda *args, **options: step(unlink, *args, **options))
    seen = set()
    while True:
        kill_at[0] += 1
        folder = tmp_path / f"killed{kill_at[0]}"
        shutil.copytree(tmp_path / "few", folder)
        calls[0] = 0
        try:
            bucket.get(folder, 8)
            break
        except Killed:
            calls[0] = -(10**6)
        seen.add(len(data.read_catalogue(folder)))
        assert_holds(folder, len(data.read_catalogue(folder)))
        done = bucket.get(folder, 8)
        assert_holds(folder, 8)
        assert done.traffic.events <= 4 * EVENT and only_the_result(folder)
    assert seen == {4, 8} and kill_at[0] > 8


def test_a_killed_process_is_taken_up(bucket: Bucket, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nbhelpers.core.manifest import load_manifest\n"
        "from nbhelpers.stages.perceptual_unet.sevir_fetch import fetch_events\n"
        "fetch_events(load_manifest(sys.argv[1]), sys.argv[2], 8, progress=False)"
    )
    folder, root = tmp_path / "data", Path(__file__).resolve().parents[1]
    parts = folder / "vil/SEVIR_VIL_EVENTS.parts"
    bucket.site.seconds_per_block = 0.03
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(bucket.manifest), str(folder)], env={**os.environ, "PYTHONPATH": str(root)}
    )
    deadline = time.monotonic() + 30
    while len(list(parts.glob("*.part"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = sum(path.stat().st_size for path in parts.glob("*.part"))
    assert 2 * EVENT <= kept < 8 * EVENT
    bucket.site.seconds_per_block = 0.0
    assert bucket.get(folder, 8).traffic.events == 8 * EVENT - kept
    assert_holds(folder, 8)
    assert only_the_result(folder)


def test_events_that_have_all_arrived_need_no_network_any_more(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(sevir_subset, "add_events", lambda *_: (_ for _ in ()).throw(Killed))
        bucket.get(tmp_path / "data", 5)
    part = sorted((tmp_path / "data/vil/SEVIR_VIL_EVENTS.parts").glob("*.part"))[0]
    pages = dict(bucket.site.pages)
    bucket.site.pages.clear()
    shutil.copytree(tmp_path / "data", tmp_path / "offline")
    assert set(vars(bucket.get(tmp_path / "offline", 5).traffic).values()) == {0}
    assert_holds(tmp_path / "offline", 5)

    part.write_bytes(bytes(EVENT))  # as long as it should be, and wrong
    bucket.site.pages.update(pages)
    assert bucket.get(tmp_path / "data", 5).traffic.events == EVENT
    assert_holds(tmp_path / "data", 5)


def test_dropped_lines_and_passing_refusals_are_waited_out(bucket: Bucket, tmp_path: Path) -> None:
    bucket.page(TRAIN_FILE).refusals = [503]
    bucket.page(TEST_FILE).refusals = [429, 500]
    bucket.get(tmp_path / "data", 6)
    assert_holds(tmp_path / "data", 6)


# --- servers that lie -------------------------------------------------------------------------------------------

BIG = 40_000_000

LIES = {
    "refuses ranges": ({"ranges": False}, "refuses ranges"),
    "refuses them after the header": ({"ranges": False, "lies_from": 9}, "refuses ranges"),
    "error page": ({"html": True}, "web page"),
    "error page after the header": ({"html": True, "lies_from": 9}, "web page"),
    "too long a total": ({"total": BIG, "lies_from": 1}, "bytes where it said"),
    "too short a total": ({"total": 1000, "lies_from": 9}, "bytes where it said"),
    "short from the start": ({"total": 60_000}, "cannot be read as HDF5"),
    "other bytes than asked for": ({"shift": -1, "lies_from": 9}, "it sends the bytes"),
    "a longer body announced": ({"announce": 7}, "it announces"),
    "a shorter body announced": ({"announce": -7, "lies_from": 9}, "it announces"),
    "more than asked for": ({"surplus": BIG, "lies_from": 9}, "it sends more"),
    "header with more than asked for": ({"surplus": BIG}, "it sends more"),
    "gone": ({"refusals": [404]}, "HTTP 404"),
    "down": ({"refusals": [503] * 99}, "HTTP 503"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_is_left_and_the_next_mirror_taken(
    bucket: Bucket, tmp_path: Path, lie: str, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour, said = LIES[lie]
    behaviour = dict(behaviour)
    if behaviour.get("lies_from") == 9:
        behaviour["lies_from"] = header_requests(bucket)
    for name in FILES:
        page = bucket.page(name)
        padded = page.content + bytes(BIG) if {"ranges", "surplus"} & set(behaviour) else page.content
        bucket.site.pages[f"/liar/{name}"] = Page(padded, **behaviour)
    publish(bucket, catalogue_of(FILES), bucket.site.url("liar/"))
    message = bucket.refused(tmp_path / "data", 5)
    assert said in message and bucket.site.url("liar/") in message
    liars = [page for path, page in bucket.site.pages.items() if path.startswith("/liar/")]
    assert sum(sum(page.sent) for page in liars) < BIG / 2  # what the sockets take, not the file
    with pytest.raises(UserError, match="no CATALOG.csv"):
        data.find_catalogue(tmp_path / "data")

    publish(bucket, catalogue_of(FILES), bucket.site.url("liar/"), bucket.site.url("data/"))
    bucket.get(tmp_path / "data", 5)
    assert_holds(tmp_path / "data", 5)
    assert only_the_result(tmp_path / "data") and said in capsys.readouterr().err


def header_requests(bucket: Bucket) -> int:
    """How many requests it takes to find an event in each file."""
    counts = set()
    for name, ids in FILES.items():
        page = bucket.page(name)
        with RemoteFile(bucket.site.url(f"data/{name}")) as remote, h5py.File(remote) as file:
            assert file["vil"].id.get_offset() and file["id"][0].decode() == ids[0]
        counts.add(len(page.asked))
        page.asked.clear()
        page.sent.clear()
    (count,) = counts
    return count


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_between_two_requests(bucket: Bucket, tmp_path: Path, if_range: bool) -> None:
    other = sevir.write_hdf5(bucket.folder / "other.h5", {id: STORMS[id][::-1] for id in FILES[TRAIN_FILE]})
    page = bucket.page(TRAIN_FILE)
    page.if_range, page.becomes = if_range, (header_requests(bucket) + 1, other.read_bytes(), '"v2"')
    message = bucket.refused(tmp_path / "data", 6)
    assert "changed between two requests" in message and "run again" in message
    before = read_lock(tmp_path / "data")
    assert len(before) == 1  # the one event that came before the change
    assert sum(page.sent) < 3 * EVENT + 8 * BLOCK + len(other.read_bytes())
    bucket.get(tmp_path / "data", 6)  # the new version from now on, and no mixture within an event
    stored = {event.id: data.read_event(event) for event in data.read_catalogue(tmp_path / "data")}
    for id, frames in stored.items():
        old, new = STORMS[id], STORMS[id][::-1]
        expected = new if id in FILES[TRAIN_FILE] and f"vil/SEVIR_VIL_EVENTS.h5#{id}" not in before else old
        np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize("etag", ['"v1"', None])
def test_a_part_of_another_version_is_not_continued(bucket: Bucket, tmp_path: Path, etag: str | None) -> None:
    for name in FILES:
        bucket.page(name).etag = etag
    whole = bucket.get(tmp_path / "whole", 3).traffic
    bucket.site.budget = whole.catalogue + whole.headers + EVENT // 2
    bucket.refused(tmp_path / "data", 3)
    bucket.site.budget = None
    (part,) = (tmp_path / "data/vil/SEVIR_VIL_EVENTS.parts").glob("*.part")
    assert part.stat().st_size < EVENT
    for name, ids in FILES.items():
        other = sevir.write_hdf5(bucket.folder / "other.h5", {id: STORMS[id][::-1] for id in ids})
        bucket.site.pages[f"/data/{name}"] = Page(other.read_bytes(), etag=etag and '"v2"')
    assert bucket.get(tmp_path / "data", 3).traffic.events == 3 * EVENT
    for event in data.read_catalogue(tmp_path / "data"):
        np.testing.assert_array_equal(data.read_event(event), STORMS[event.id][::-1])


def test_a_lying_catalogue_is_an_error(bucket: Bucket, tmp_path: Path) -> None:
    rows = catalogue_of(FILES)
    for row in rows:
        row["file_index"] = (row["file_index"] + 1) % len(FILES[row["file_name"]])
    publish(bucket, rows)
    message = bucket.refused(tmp_path / "data", 5)
    assert re.search(r"it holds event R\d\d at index \d+ where the catalogue has R\d\d", message)
    publish(bucket, [{**row, "file_index": 99} for row in catalogue_of(FILES)])
    assert "it holds 12 events" in bucket.refused(tmp_path / "other", 5)
    publish(bucket, [{**row, "size_x": 31} for row in catalogue_of(FILES)])
    assert "(32, 32, 13)" in bucket.refused(tmp_path / "third", 5)
    assert not list(tmp_path.glob("*/vil/*.parts/*.part"))  # no byte of any event


@pytest.mark.parametrize(
    ("storage", "said"),
    [({"chunks": (1, 32, 32, 13), "compression": "gzip"}, "not contiguous"), ({"dtype": "int16"}, "uint8")],
)
def test_a_file_of_another_layout(bucket: Bucket, tmp_path: Path, storage: dict[str, Any], said: str) -> None:
    for name, ids in FILES.items():
        path = sevir.write_hdf5(bucket.folder / name, {id: STORMS[id] for id in ids}, **storage)
        bucket.page(name).content = path.read_bytes()
    assert said in bucket.refused(tmp_path / "data", 5)


@pytest.mark.parametrize("content", [b"no HDF5 at all" * 9000, b"\x89HDF\r\n\x1a\n" + bytes(100_000)])
def test_a_file_that_is_no_hdf5(bucket: Bucket, tmp_path: Path, content: bytes) -> None:
    for name in FILES:
        bucket.page(name).content = content
    assert "cannot be read as HDF5" in bucket.refused(tmp_path / "data", 5)


# --- what is there already --------------------------------------------------------------------------------------


def test_a_changed_local_event_is_an_error_that_says_what_to_do(bucket: Bucket, tmp_path: Path) -> None:
    bucket.get(tmp_path / "data", 4)
    path = tmp_path / "data/vil/SEVIR_VIL_EVENTS.h5"
    with h5py.File(path, "r+") as file:
        file["vil"][1, 3, 3, 3] ^= 1
        changed = file["id"][1].decode()
    bucket.site.forget()
    message = bucket.refused(tmp_path / "data", 8)
    for word in (changed, "expected", "delete that file", str(path), "manifest.lock.json"):
        assert word in message
    assert not any(page.asked for page in bucket.site.pages.values())
    path.unlink()
    bucket.get(tmp_path / "data", 8)
    assert_holds(tmp_path / "data", 8)


def test_without_its_lock_file_the_hashes_are_recorded_anew(bucket: Bucket, tmp_path: Path) -> None:
    bucket.get(tmp_path / "data", 4)
    (tmp_path / "data/manifest.lock.json").unlink()
    assert bucket.get(tmp_path / "data", 4).traffic.events == 0
    assert_holds(tmp_path / "data", 4)


def test_an_event_that_comes_with_other_bytes_than_recorded(bucket: Bucket, tmp_path: Path) -> None:
    bucket.get(tmp_path / "data", 3)
    (tmp_path / "data/vil/SEVIR_VIL_EVENTS.h5").unlink()
    for name, ids in FILES.items():
        other = sevir.write_hdf5(bucket.folder / "other.h5", {id: STORMS[id][::-1] for id in ids})
        bucket.page(name).content = other.read_bytes()
    message = bucket.refused(tmp_path / "data", 3)
    assert "as recorded earlier" in message and "manifest.lock.json" in message


@pytest.mark.parametrize("name", ["CATALOG.csv", "SEVIR_CATALOG.csv", "data/CATALOG.csv", "sevir/CATALOG.csv"])
def test_a_folder_with_other_data_is_left_alone(bucket: Bucket, tmp_path: Path, name: str) -> None:
    mine = sevir.write_catalogue(tmp_path / "data" / name, [sevir.row("R00", 0, STORMS["R00"])])
    before = mine.read_bytes()
    assert "catalogue of other data" in bucket.refused(tmp_path / "data", 4)
    assert mine.read_bytes() == before and not bucket.site.pages["/CATALOG.csv"].asked


def test_room_is_checked_before_the_first_event(bucket: Bucket, tmp_path: Path) -> None:
    publish(bucket, [{**row, "size_x": 10**12} for row in catalogue_of(FILES)])
    message = bucket.refused(tmp_path / "data", 4)
    assert "fetching 4 events needs" in message and not bucket.page(TRAIN_FILE).asked


def test_whole_files_attached_on_kaggle_come_before_the_network(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle = tmp_path / "kaggle"
    for name, folder in ((TRAIN_FILE, "set-1/deep"), (TEST_FILE, "set-2")):
        ids = FILES[name] if name == TRAIN_FILE else FILES[name][::-1]  # the second is in another order
        path = kaggle / folder / Path(name).name
        sevir.write_hdf5(path, {id: STORMS[id] for id in ids}, chunks=(1, 32, 32, 13), compression="gzip")
    (kaggle / "set-0").mkdir()
    (kaggle / "set-0" / Path(TRAIN_FILE).name).write_bytes(b"half a file")
    done = bucket.get(tmp_path / "data", 10, kaggle_input=kaggle)
    assert_holds(tmp_path / "data", 10)
    assert done.traffic.events == 3 * EVENT and not bucket.page(TRAIN_FILE).asked
    told = capsys.readouterr().err
    assert "set-0" in told and "where the catalogue has" in told


# --- reading the remote file, the layouts, the command ----------------------------------------------------------


def test_a_remote_file_reads_like_a_local_one_and_each_block_once(bucket: Bucket) -> None:
    content, rng = bucket.page(TEST_FILE).content, random.Random(2)
    counted: list[int] = []
    with RemoteFile(bucket.site.url(f"data/{TEST_FILE}"), on_bytes=counted.append) as remote:
        for _ in range(200):
            first, length = rng.randrange(len(content) + 10), rng.randrange(3 * BLOCK)
            assert remote.seek(first) == first
            assert remote.read(length) == content[first : first + length]
        assert remote.seek(-5, os.SEEK_END) == len(content) - 5 and remote.read() == content[-5:]
        with pytest.raises(MirrorError, match="it ends after"):
            remote.span(len(content) - 5, 6)
    page = bucket.page(TEST_FILE)
    assert len(page.asked) == len(set(page.asked)) and sum(counted) == sum(page.sent) <= len(content)


@pytest.mark.parametrize("pointed_at", ["SEVIR_Data", "SEVIR_Data/data"])
@pytest.mark.parametrize("catalogue", ["SEVIR_CATALOG.csv", "CATALOG.csv"])
@pytest.mark.parametrize("files", ["sevir", ""])
def test_the_two_layouts_on_drive_are_read_from_both_folders(
    tmp_path: Path, pointed_at: str, catalogue: str, files: str
) -> None:
    inside = tmp_path / "SEVIR_Data/data"
    sevir.write_hdf5(inside / files / sevir.FILE_NAME, {"R00": STORMS["R00"]})
    written = sevir.write_catalogue(inside / catalogue, [sevir.row("R00", 0, STORMS["R00"])])
    assert data.find_catalogue(tmp_path / pointed_at) == written
    (event,) = data.read_catalogue(tmp_path / pointed_at)
    np.testing.assert_array_equal(data.read_event(event), STORMS["R00"])
    assert data.absent_files(tmp_path / pointed_at) == []


def test_the_command(bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, command = tmp_path / "data", ["data", "fetch", str(bucket.manifest), "--events", "5"]
    assert main([*command, "--data-dir", str(folder)]) == 0
    assert_holds(folder, 5)
    assert f"5 events (3 before 2019-06-01, 2 from it on; 5 new) in {folder}" in capsys.readouterr().out
    assert main([*command, "--only", "CATALOG.csv"]) == 2
    assert "give one of the two" in capsys.readouterr().err
    raw = json.loads(bucket.manifest.read_text())
    bucket.manifest.write_text(json.dumps({**raw, "range_mirrors": []}))
    assert main([*command, "--data-dir", str(folder)]) == 2
    assert "has no 'range_mirrors'" in capsys.readouterr().err


def test_the_subsets_catalogue_keeps_the_cells_of_the_full_one(bucket: Bucket, tmp_path: Path) -> None:
    rows = [{**row, "event_type": "Hail", "llcrnrlat": "36.5"} for row in catalogue_of(FILES)]
    publish(bucket, rows)
    bucket.get(tmp_path / "data", 4)
    with (tmp_path / "data/CATALOG.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    full = {row["id"]: {key: str(value) for key, value in row.items()} for row in rows}
    for index, row in enumerate(written):
        own = {"file_name": sevir_subset.EVENTS_FILE, "file_index": str(index)}
        assert row == {**full[row["id"]], **own}


def test_sevir_names_the_bucket() -> None:
    manifest = load_manifest("sevir")
    assert manifest.range_mirrors == ("https://sevir.s3.amazonaws.com/data/",)
    whole = [file.mirrors[0] for file in manifest.files if file.path.startswith("vil/")]
    assert all(address.startswith(manifest.range_mirrors) for address in whole)
