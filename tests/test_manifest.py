"""Data manifests, against a real HTTP server that refuses, drops, lies and changes its mind."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from nbhelpers.core import download as download_module
from nbhelpers.core.disk import human_bytes
from nbhelpers.core.errors import UserError
from nbhelpers.core.manifest import Manifest, ManifestFile, fetch, list_manifests, load_manifest, verify
from nbhelpers.core.unpack import MARKER

CONTENT = bytes(hashlib.shake_256(b"storm").digest(1_000_000))
SHA = hashlib.sha256(CONTENT).hexdigest()
OTHER = bytes(hashlib.shake_256(b"calm").digest(1_000_000))


@dataclass
class Page:
    """What the server does for one path."""

    content: bytes = CONTENT
    ranges: bool = True  # answer Range with 206
    if_range: bool = True  # honour If-Range
    etag: str | None = '"v1"'
    drops: list[int] = field(default_factory=list)  # end the next connections after this many bytes of body
    announce: int | None = None  # lie about Content-Length; -1: leave it out
    range_start: int | None = None  # lie about the beginning in Content-Range
    refusals: list[int] = field(default_factory=list)  # statuses of the next answers
    headers: dict[str, str] = field(default_factory=dict)
    seconds_per_block: float = 0.0
    asked: list[str | None] = field(default_factory=list)  # Range header of every request
    sent: list[int] = field(default_factory=list)  # bytes of body sent for every request


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page: Page | None = self.server.pages.get(self.path)  # type: ignore[attr-defined]
        if page is None:
            return self.send_error(404)
        page.asked.append(self.headers.get("Range"))
        page.sent.append(0)
        if page.refusals:
            return self.send_error(page.refusals.pop(0))
        total, start, status = len(page.content), 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fresh = page.if_range and self.headers.get("If-Range") not in (None, page.etag)
        if wanted and page.ranges and not fresh:
            start, status = int(wanted[1]), 206
        if start >= total and status == 206:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            return self.end_headers()
        self.send_response(status)
        body = page.content[start:]
        if page.announce != -1:
            self.send_header("Content-Length", str(len(body) if page.announce is None else page.announce - start))
        if status == 206:
            claimed = start if page.range_start is None else page.range_start
            self.send_header("Content-Range", f"bytes {claimed}-{total - 1}/{total}")
        if page.etag:
            self.send_header("ETag", page.etag)
        for name, value in page.headers.items():
            self.send_header(name, value)
        self.end_headers()
        body = body[: page.drops.pop(0)] if page.drops else body
        for offset in range(0, len(body), 50_000):
            block = body[offset : offset + 50_000]
            try:
                self.wfile.write(block)
            except (BrokenPipeError, ConnectionResetError):
                return
            page.sent[-1] += len(block)
            time.sleep(page.seconds_per_block)

    def log_message(self, *_: Any) -> None:
        pass


class Site:
    """The running server: ``site.url(name)`` of a page put under ``site.pages["/" + name]``."""

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.server.pages = self.pages  # type: ignore[attr-defined]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def put(self, name: str, page: Page) -> Page:
        self.pages["/" + name] = page
        return page

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "BACKOFF_SECONDS", 0.001)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def make(path: str, *mirrors: str, **facts: Any) -> Manifest:
    return Manifest("trial", "Trial", "a trial", "CC0-1.0", "nobody", (ManifestFile(path, tuple(mirrors), **facts),))


def get(manifest: Manifest, data_dir: Path, **options: Any) -> Path:
    (path,) = fetch(manifest, data_dir, progress=False, **{"kaggle_input": data_dir / "no-kaggle", **options})
    return path


def refused(*args: Any, **options: Any) -> str:
    """The sentence of the UserError that :func:`get` must end in."""
    with pytest.raises(UserError) as caught:
        get(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def status_of(manifest: Manifest, data_dir: Path) -> str:
    (found,) = verify(manifest, data_dir)
    return found.status


# --- downloading -------------------------------------------------------------------------------------------------


def test_fetch_once_then_keep(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page())
    manifest = make("sub/a.bin", site.url("a.bin"), bytes=len(CONTENT), sha256=SHA[:8])
    assert status_of(manifest, tmp_path) == "missing"
    assert get(manifest, tmp_path) == tmp_path / "sub/a.bin"
    assert (tmp_path / "sub/a.bin").read_bytes() == CONTENT
    get(manifest, tmp_path)
    assert len(page.asked) == 1 and status_of(manifest, tmp_path) == "ok"
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.bin"]


@pytest.mark.parametrize("sha256", [SHA, None])
def test_dropped_connection_continues_with_the_rest_only(site: Site, tmp_path: Path, sha256: str | None) -> None:
    page = site.put("a.bin", Page(drops=[400_000, 300_000]))
    path = get(make("a.bin", site.url("a.bin"), sha256=sha256), tmp_path)
    assert path.read_bytes() == CONTENT
    assert page.asked[0] is None and all(asked is not None for asked in page.asked[1:])
    # a drop may cost what stood in one unfinished chunk, no more
    assert len(CONTENT) <= sum(page.sent) <= len(CONTENT) + 2 * download_module.CHUNK_BYTES


def test_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page(ranges=False, drops=[400_000]))
    assert get(make("a.bin", site.url("a.bin"), sha256=SHA), tmp_path).read_bytes() == CONTENT
    assert page.sent == [400_000, len(CONTENT)]


def test_killed_process_leaves_a_part_that_the_next_run_completes(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page(seconds_per_block=0.05))
    manifest = tmp_path / "trial.json"
    entry = {"path": "a.bin", "sha256": SHA, "mirrors": [site.url("a.bin")]}
    texts = {"name": "trial", "title": "t", "description": "d", "licence": "l", "citation": "c"}
    manifest.write_text(json.dumps({**texts, "files": [entry]}))
    code = "import sys; from nbhelpers.core.manifest import *; fetch(load_manifest(sys.argv[1]), sys.argv[2])"
    root = Path(__file__).resolve().parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(manifest), str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.DEVNULL,
    )
    part, deadline = tmp_path / "data/a.bin.part", time.monotonic() + 20
    while not (part.exists() and part.stat().st_size >= 200_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = part.stat().st_size
    assert 200_000 <= kept < len(CONTENT) and not (tmp_path / "data/a.bin").exists()
    page.seconds_per_block = 0.0
    assert get(load_manifest(manifest), tmp_path / "data").read_bytes() == CONTENT
    assert page.asked[-1] == f"bytes={kept}-" and page.sent[-1] == len(CONTENT) - kept
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["a.bin"]


@pytest.mark.parametrize("content", [OTHER, OTHER[:100_000]])
@pytest.mark.parametrize("if_range", [True, False])
def test_changed_remote_file_is_not_spliced(site: Site, tmp_path: Path, if_range: bool, content: bytes) -> None:
    page = site.put("a.bin", Page(drops=[300_000] + [0] * 9))
    refused(make("a.bin", site.url("a.bin")), tmp_path)
    assert (tmp_path / "a.bin.part").stat().st_size > 0
    page.content, page.etag, page.if_range, page.drops, page.asked = content, '"v2"', if_range, [], []
    assert get(make("a.bin", site.url("a.bin")), tmp_path).read_bytes() == content
    assert len(page.asked) == (1 if if_range else 2)


def test_passing_refusals_are_waited_out(site: Site, tmp_path: Path) -> None:
    site.put("a.bin", Page(refusals=[503, 429]))
    assert get(make("a.bin", site.url("a.bin")), tmp_path).read_bytes() == CONTENT


def test_body_without_announced_length_is_held_to_the_manifest(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page(announce=-1, drops=[400_000]))
    assert get(make("a.bin", site.url("a.bin"), bytes=len(CONTENT)), tmp_path).read_bytes() == CONTENT
    assert len(page.asked) == 2


def test_part_without_validator_or_hash_is_begun_anew(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page(etag=None))
    (tmp_path / "a.bin.part").write_bytes(OTHER[:1000])
    assert get(make("a.bin", site.url("a.bin")), tmp_path).read_bytes() == CONTENT
    assert page.asked == [None]


def test_wrong_part_under_a_known_hash_is_begun_anew_once(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page())
    (tmp_path / "a.bin.part").write_bytes(OTHER[:1000])
    assert get(make("a.bin", site.url("a.bin"), sha256=SHA), tmp_path).read_bytes() == CONTENT
    assert page.asked == ["bytes=1000-", None]


def test_second_mirror_continues_what_the_first_began(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = site.put("first.bin", Page(drops=[600_000] + [0] * 9))
    second = site.put("second.bin", Page(etag='"elsewhere"'))
    manifest = make("a.bin", site.url("first.bin"), site.url("second.bin"), sha256=SHA)
    assert get(manifest, tmp_path).read_bytes() == CONTENT
    assert len(first.asked) == 1 + download_module.FRUITLESS_ATTEMPTS
    assert second.sent[0] <= len(CONTENT) - 600_000 + download_module.CHUNK_BYTES
    message = capsys.readouterr().err
    assert "mirror 1 of 2" in message and f"trying {site.url('second.bin')} next" in message


def test_complete_part_answered_with_416(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page())
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert get(make("a.bin", site.url("a.bin"), sha256=SHA), tmp_path).read_bytes() == CONTENT
    assert page.asked == [f"bytes={len(CONTENT)}-"] and page.sent == [0]


def test_overlong_part_answered_with_416_is_begun_anew(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page())
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    assert get(make("a.bin", site.url("a.bin"), sha256=SHA), tmp_path).read_bytes() == CONTENT
    assert page.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_wrong_content_range_is_not_appended(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page(range_start=0, drops=[500_000]))
    assert get(make("a.bin", site.url("a.bin"), sha256=SHA), tmp_path).read_bytes() == CONTENT
    assert page.asked[-1] is None


def test_announced_length_longer_than_the_body(site: Site, tmp_path: Path) -> None:
    site.put("a.bin", Page(announce=len(CONTENT) + 5, ranges=False))
    message = refused(make("a.bin", site.url("a.bin")), tmp_path)
    assert "mirror 1 of 1" in message and "attempts" in message
    assert not (tmp_path / "a.bin").exists()


def test_length_other_than_the_manifest_says(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page(announce=1234))
    message = refused(make("a.bin", site.url("a.bin"), bytes=len(CONTENT), sha256=SHA), tmp_path)
    assert f"the server has 1234 bytes where the manifest says {len(CONTENT)}" in message and len(page.asked) == 1


@pytest.mark.parametrize("cut", [False, True])
def test_server_that_compresses_regardless(site: Site, tmp_path: Path, cut: bool) -> None:
    drops = [400_000] if cut else []
    page = site.put("a.csv", Page(gzip.compress(CONTENT), headers={"Content-Encoding": "gzip"}, drops=drops))
    assert get(make("a.csv", site.url("a.csv")), tmp_path).read_bytes() == CONTENT
    assert page.asked == [None] * (1 + cut)  # offsets would count compressed bytes


def test_every_mirror_fails_in_one_sentence(site: Site, tmp_path: Path) -> None:
    site.put("forbidden.bin", Page(refusals=[403]))
    site.put("down.bin", Page(refusals=[503] * 9))
    site.put("login", Page(content=b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}))
    unreachable = f"http://127.0.0.1:{closed_port()}/a.bin"
    mirrors = [site.url("none.bin"), site.url("forbidden.bin"), site.url("down.bin"), site.url("login"), unreachable]
    message = refused(make("sub/a.bin", *mirrors, bytes=7, sha256=SHA), tmp_path)
    for index, mirror in enumerate(mirrors):
        assert f"mirror {index + 1} of 5, {mirror}: " in message
    for reason in ("HTTP 404", "HTTP 403", "HTTP 503", "web page", "Connection refused"):
        assert reason in message
    assert f"place it at {tmp_path / 'sub/a.bin'} (7 bytes, sha256 {SHA})" in message


def test_dropping_server_without_validator_ends(site: Site, tmp_path: Path) -> None:
    site.put("a.bin", Page(ranges=False, drops=[500_000] * 99))
    assert "mirror 1 of 1" in refused(make("a.bin", site.url("a.bin"), sha256=SHA), tmp_path)
    site.put("b.bin", Page(range_start=0, drops=[500_000] * 99))
    assert "mirror 1 of 1" in refused(make("b.bin", site.url("b.bin"), sha256=SHA), tmp_path)


# --- hashes ------------------------------------------------------------------------------------------------------


def test_wrong_hash_names_expected_found_path_and_mirror_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.put("a.bin", Page(content=OTHER))
    message = refused(make("a.bin", site.url("a.bin"), sha256=SHA), tmp_path)
    for part in (SHA, hashlib.sha256(OTHER).hexdigest(), str(tmp_path / "a.bin"), site.url("a.bin")):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_wrong_file_in_place_is_left_alone(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page())
    (tmp_path / "a.bin").write_bytes(b"mine")
    sized = make("a.bin", site.url("a.bin"), bytes=len(CONTENT), sha256=SHA)
    assert status_of(sized, tmp_path) == "wrong size"
    assert "it has 4 bytes, expected 1000000" in refused(sized, tmp_path)
    assert status_of(make("a.bin", "http://x.invalid/a", sha256=SHA), tmp_path) == "wrong sha256"
    assert (tmp_path / "a.bin").read_bytes() == b"mine" and page.asked == []


def test_unpublished_hash_is_recorded_on_first_use_and_held_to(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page())
    manifest = make("a.bin", site.url("a.bin"))
    path = get(manifest, tmp_path)
    lock = json.loads((tmp_path / "manifest.lock.json").read_text())
    assert lock["a.bin"]["sha256"] == SHA and lock["a.bin"]["source"] == site.url("a.bin")
    assert status_of(manifest, tmp_path) == "recorded on first use"

    path.write_bytes(OTHER)
    assert status_of(manifest, tmp_path) == "wrong sha256"
    message = refused(manifest, tmp_path)
    assert "recorded on first use" in message and str(tmp_path / "manifest.lock.json") in message

    path.unlink()
    page.content = OTHER
    assert "recorded on first use" in refused(manifest, tmp_path)
    assert not path.exists() and json.loads((tmp_path / "manifest.lock.json").read_text()) == lock

    page.content, lock["a.bin"]["recorded"] = CONTENT, "long ago"
    (tmp_path / "manifest.lock.json").write_text(json.dumps(lock))
    assert get(manifest, tmp_path) == path and json.loads((tmp_path / "manifest.lock.json").read_text()) == lock


def test_file_placed_by_hand_is_recorded_by_fetch_only(tmp_path: Path) -> None:
    manifest = make("a.bin", "http://x.invalid/a.bin")
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert status_of(manifest, tmp_path) == "not recorded" and not (tmp_path / "manifest.lock.json").exists()
    assert get(manifest, tmp_path).read_bytes() == CONTENT
    assert status_of(manifest, tmp_path) == "recorded on first use"


@pytest.mark.parametrize("text", ["{", "[]", '{"a.bin": {}}', '{"a.bin": {"sha256": "12"}}'])
def test_damaged_lock_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.lock.json").write_text(text)
    with pytest.raises(UserError, match="manifest.lock.json is damaged"):
        verify(make("a.bin", "http://x.invalid/a.bin"), tmp_path)


# --- disk --------------------------------------------------------------------------------------------------------


def test_room_is_checked_before_the_first_request(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page())
    message = refused(make("a.bin", site.url("a.bin"), bytes=10**18, sha256=SHA), tmp_path)
    assert "1000000.0 TB" in message and str(tmp_path) in message and page.asked == []


def test_room_is_checked_against_the_announced_length(site: Site, tmp_path: Path) -> None:
    site.put("a.bin", Page(announce=10**18))
    assert "has" in (message := refused(make("a.bin", site.url("a.bin")), tmp_path)) and "free" in message
    assert not (tmp_path / "a.bin.part").exists()


def test_archive_needs_room_for_its_content_too(site: Site, tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    site.put("a.zip", Page(announce=free * 2 // 3))
    assert "free" in refused(make("a.zip", site.url("a.zip"), unpack="zip"), tmp_path)
    unasked = site.put("b.zip", Page())
    assert "free" in refused(make("b.zip", site.url("b.zip"), bytes=free * 2 // 3, unpack="zip"), tmp_path)
    assert unasked.asked == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file-size limit")
def test_full_disk_keeps_the_part(site: Site, tmp_path: Path) -> None:
    import resource

    page = site.put("a.bin", Page())
    manifest = make("a.bin", site.url("a.bin"), sha256=SHA)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))  # a write beyond fails as on a full disk
    try:
        message = refused(manifest, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "full" in message and "run again" in message
    assert 200_000 < (tmp_path / "a.bin.part").stat().st_size <= 300_000
    assert get(manifest, tmp_path).read_bytes() == CONTENT
    assert page.asked[-1] == f"bytes={len(CONTENT) - page.sent[-1]}-"


def test_data_dir_that_is_a_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert "writable directory" in refused(make("a.bin", site.url("a.bin")), tmp_path / "data")


def test_human_bytes() -> None:
    assert [human_bytes(n) for n in (0, 999, 1000, 4_958_839)] == ["0 B", "999 B", "1.0 kB", "5.0 MB"]


# --- Kaggle ------------------------------------------------------------------------------------------------------


def test_kaggle_input_comes_before_the_network(site: Site, tmp_path: Path) -> None:
    page = site.put("a.bin", Page())
    kaggle = tmp_path / "kaggle"
    for folder, content in (("1-other", OTHER), ("2-right/deep", CONTENT)):
        (kaggle / folder).mkdir(parents=True)
        (kaggle / folder / "a.bin").write_bytes(content)
    manifest = make("sub/a.bin", site.url("a.bin"), sha256=SHA)
    path = get(manifest, tmp_path / "data", kaggle_input=kaggle)
    assert path.read_bytes() == CONTENT and page.asked == [] and status_of(manifest, tmp_path / "data") == "ok"
    assert path.is_symlink() and path.resolve() == kaggle / "2-right/deep/a.bin"


def test_wrong_kaggle_file_is_named_and_the_network_used(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.put("a.bin", Page())
    (tmp_path / "kaggle").mkdir()
    (tmp_path / "kaggle/a.bin").write_bytes(OTHER)
    manifest = make("a.bin", site.url("a.bin"), sha256=SHA)
    assert get(manifest, tmp_path / "data", kaggle_input=tmp_path / "kaggle").read_bytes() == CONTENT
    assert str(tmp_path / "kaggle/a.bin") in capsys.readouterr().err


def test_kaggle_file_without_published_facts_needs_its_whole_path(site: Site, tmp_path: Path) -> None:
    site.put("a.bin", Page())
    manifest = make("sub/a.bin", site.url("a.bin"))
    for folder in ("other", "right/sub"):
        (tmp_path / "kaggle" / folder).mkdir(parents=True)
    (tmp_path / "kaggle/other/a.bin").write_bytes(OTHER)
    assert get(manifest, tmp_path / "one", kaggle_input=tmp_path / "kaggle").read_bytes() == CONTENT
    (tmp_path / "kaggle/right/sub/a.bin").write_bytes(OTHER)
    assert get(manifest, tmp_path / "two", kaggle_input=tmp_path / "kaggle").read_bytes() == OTHER
    lock = json.loads((tmp_path / "two/manifest.lock.json").read_text())
    assert lock["sub/a.bin"]["source"] == str(tmp_path / "kaggle/right/sub/a.bin")


# --- archives ----------------------------------------------------------------------------------------------------


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(*members: tuple[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("in/data.zip", "zip", zip_of(("a/b.txt", b"storm"), ("empty/", b""))),
        ("in/data.tar.gz", "tar", tar_of(("a/b.txt", b"storm"), ("a/link", special(tarfile.SYMTYPE, "b.txt")))),
        ("in/data.tar.xz", "tar", tar_of(("a/b.txt", b"storm"), mode="w:xz")),
    ],
)
def test_archives_are_unpacked_once(site: Site, tmp_path: Path, path: str, kind: Any, content: bytes) -> None:
    page = site.put("archive", Page(content=content))
    manifest = make(path, site.url("archive"), sha256=hashlib.sha256(content).hexdigest()[:12], unpack=kind)
    folder = get(manifest, tmp_path)
    assert folder == tmp_path / "in/data" and (folder / "a/b.txt").read_bytes() == b"storm"
    assert not (tmp_path / "in/data.unpacking").exists() and status_of(manifest, tmp_path) == "ok"

    (folder / "a/b.txt").write_bytes(b"mine")  # an unpacked folder is not unpacked again over people's work
    (tmp_path / path).unlink()  # and the archive may go
    assert get(manifest, tmp_path) == folder and (folder / "a/b.txt").read_bytes() == b"mine" and len(page.asked) == 1


def encrypted_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("secret", b"x")
        archive.filelist[0].flag_bits |= 1
    return buffer.getvalue()


EVIL = {
    "zip encrypted": ("zip", encrypted_zip(), "'secret' is encrypted"),
    "zip up": ("zip", zip_of(("good.txt", b"x"), ("../evil.txt", b"x")), "'../evil.txt' leads outside"),
    "zip up inside": ("zip", zip_of(("a/../../evil.txt", b"x")), "leads outside"),
    "zip absolute": ("zip", zip_of(("/tmp/evil.txt", b"x")), "leads outside"),
    "zip backslash": ("zip", zip_of(("..\\evil.txt", b"x")), "leads outside"),
    "zip drive": ("zip", zip_of(("C:/evil.txt", b"x")), "leads outside"),
    "zip link": ("zip", zip_of((zip_link("link"), b"/etc")), "'link' is a symbolic link"),
    "tar up": ("tar", tar_of(("good.txt", b"x"), ("../evil.txt", b"x")), "'../evil.txt' leads outside"),
    "tar absolute": ("tar", tar_of(("/tmp/evil.txt", b"x")), "leads outside"),
    "tar link up": ("tar", tar_of(("d", special(tarfile.SYMTYPE, "..")), ("d/evil.txt", b"x")), "'d' is a link"),
    "tar link absolute": ("tar", tar_of(("d", special(tarfile.SYMTYPE, "/tmp"))), "'d' is a link to '/tmp'"),
    "tar link chain": (
        "tar",
        tar_of(("p/q/l", special(tarfile.SYMTYPE, "../..")), ("m", special(tarfile.SYMTYPE, "p/q/l/../.."))),
        "'p/q/l' is a link",
    ),
    "tar hard link": ("tar", tar_of(("h", special(tarfile.LNKTYPE, "../secret"))), "'h' is a link"),
    "tar pipe": ("tar", tar_of(("p", special(tarfile.FIFOTYPE))), "'p' is a device or pipe"),
    "tar device": ("tar", tar_of(("null", special(tarfile.CHRTYPE))), "'null' is a device or pipe"),
}


@pytest.mark.parametrize("case", EVIL)
def test_unsafe_archive_is_refused_whole(site: Site, tmp_path: Path, case: str) -> None:
    kind, content, said = EVIL[case]
    site.put("archive", Page(content=content))
    data = tmp_path / "outer" / "data"
    message = refused(make(f"a.{kind}", site.url("archive"), unpack=kind), data)
    assert said in message and str(data / f"a.{kind}") in message
    assert sorted(path.name for path in (tmp_path / "outer").rglob("*") if path != data) == [
        f"a.{kind}",
        "manifest.lock.json",
    ]


def zip_bomb(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("zeros", b"0")
        archive.filelist[0].file_size = size  # what the central directory declares
    return buffer.getvalue()


def tar_bomb(size: int) -> bytes:
    info = tarfile.TarInfo("zeros")
    sparse = {"major": "0", "minor": "1", "name": "zeros", "size": str(size), "map": f"{size},0"}
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
    return tar_of(("zeros", info))


@pytest.mark.parametrize(("kind", "bomb"), [("zip", zip_bomb), ("tar", tar_bomb)])
def test_bomb_is_refused_by_its_declared_size(site: Site, tmp_path: Path, kind: Any, bomb: Any) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    content = bomb(free + 10**9)
    assert len(content) < 2000
    site.put("archive", Page(content=content))
    message = refused(make(f"a.{kind}", site.url("archive"), unpack=kind), tmp_path)
    assert message.startswith(f"unpacking a.{kind} needs") and not (tmp_path / "a").exists()


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("zip", b"not an archive"),
        ("tar", b"not an archive"),
        ("zip", zip_of(("a", CONTENT))[:-30]),
        ("zip", flipped(zip_of(("good", b"x"), ("a", CONTENT)), 5000)),
        ("tar", tar_of(("a", CONTENT), ("b", CONTENT))[:700_000]),
    ],
)
def test_damaged_archive(site: Site, tmp_path: Path, kind: Any, content: bytes) -> None:
    site.put("archive", Page(content=content))
    message = refused(make(f"a.{kind}", site.url("archive"), unpack=kind), tmp_path)
    assert f"{tmp_path / f'a.{kind}'} cannot be unpacked as {kind}" in message
    assert not (tmp_path / "a").exists() and not (tmp_path / "a.unpacking").exists()


def test_folder_of_another_origin_is_left_alone(site: Site, tmp_path: Path) -> None:
    site.put("archive", Page(content=zip_of(("a", b"x"))))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine.txt").write_text("mine")
    assert "was not unpacked from" in refused(make("a.zip", site.url("archive"), unpack="zip"), tmp_path)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine.txt"]


def test_interrupted_unpacking_is_done_again(site: Site, tmp_path: Path) -> None:
    site.put("archive", Page(content=zip_of(("a", b"x"))))
    (tmp_path / "a.unpacking").mkdir()
    (tmp_path / "a.unpacking/half").write_text("half")
    folder = get(make("a.zip", site.url("archive"), unpack="zip"), tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted([MARKER, "a"])


# --- Google Drive, through gdown's own code ------------------------------------------------------------------------


def test_gdrive_offline(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")  # cuts gdown off on every machine
    message = refused(make("a.bin", site.url("none.bin"), "gdrive:1AbC_d-E", sha256=SHA), tmp_path)
    assert "mirror 2 of 2, gdrive:1AbC_d-E: " in message and f"place it at {tmp_path / 'a.bin'}" in message


@pytest.fixture
def drive(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """Google Drive's page for the file, served here: only the address of gdown's requests is changed."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # gdown keeps cookies there
    page = site.put("drive", Page(etag=None, headers={"Content-Type": "text/html; charset=utf-8"}))
    real = requests.Session.get

    def get(self: requests.Session, url: str, **options: Any) -> requests.Response:
        return real(self, site.url("drive") if "drive.google.com" in url else url, **options)

    monkeypatch.setattr(requests.Session, "get", get)
    return page


def test_gdrive_quota_is_named(drive: Page, tmp_path: Path) -> None:
    drive.content = (
        b'<html><p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. '
        b"Please try accessing the file again later.</p></html>"
    )
    message = refused(make("a.bin", "gdrive:1AbC"), tmp_path)
    assert "Google Drive refuses further downloads of this file for now (too many users" in message


def test_gdrive_delivers(drive: Page, tmp_path: Path) -> None:
    drive.headers = {"Content-Type": "application/octet-stream", "Content-Disposition": 'attachment; filename="x.bin"'}
    assert get(make("a.bin", "gdrive:1AbC", sha256=SHA), tmp_path / "data").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a.bin"]


# --- the format --------------------------------------------------------------------------------------------------

GOOD_FILE = {"path": "a.bin", "bytes": 1, "sha256": "0" * 64, "mirrors": ["https://x.org/a"], "unpack": None}


def written(tmp_path: Path, *, file: dict[str, Any] | None = None, **changes: Any) -> Path:
    texts = {"name": "trial", "title": "t", "description": "d", "licence": "l", "citation": "c"}
    raw = {**texts, "files": [{**GOOD_FILE, **(file or {})}], **changes}
    path = tmp_path / "trial.json"
    path.write_text(json.dumps({key: value for key, value in raw.items() if value != "absent"}))
    return path


def test_packaged_manifests_are_valid_and_say_what_they_are() -> None:
    assert {"perceptual-weights", "sevir"} <= set(list_manifests())
    for name in list_manifests():
        manifest = load_manifest(name)
        assert manifest.name == name and len(manifest.citation) > 20 and manifest.files
    for file in load_manifest("perceptual-weights").files:
        published = re.search(r"-([0-9a-f]{8})\.pth", file.path)
        assert published and file.sha256 and file.sha256.startswith(published[1])


def test_optional_keys_may_be_left_out(tmp_path: Path) -> None:
    (file,) = load_manifest(
        written(tmp_path, files=[{"path": "a/b.tgz", "unpack": "tar", "mirrors": ["gdrive:1_-a"]}])
    ).files
    assert (file.bytes, file.sha256, file.folder) == (None, None, "a/b")


def test_range_mirrors_are_read(tmp_path: Path) -> None:
    assert load_manifest(written(tmp_path)).range_mirrors == ()
    bases = ["https://x.org/", "http://y.org/data/"]
    assert load_manifest(written(tmp_path, range_mirrors=bases)).range_mirrors == tuple(bases)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"url": "x"}, "unknown key 'url'"),
        ({"path": "/etc/a"}, "'/etc/a'"),
        ({"path": "../a"}, "'../a'"),
        ({"path": "a/../b"}, "no '..'"),
        ({"path": "a\\b"}, "forward slashes"),
        ({"path": "C:/a"}, "relative"),
        ({"path": "a//b"}, "relative"),
        ({"path": ""}, "relative"),
        ({"path": 7}, "relative"),
        ({"path": "manifest.lock.json"}, "choose another name"),
        ({"bytes": "12"}, "'bytes'"),
        ({"bytes": -1}, "'bytes'"),
        ({"bytes": True}, "'bytes'"),
        ({"sha256": "1234567"}, "8 or more"),
        ({"sha256": "g" * 64}, "hex digits"),
        ({"sha256": "0" * 65}, "hex digits"),
        ({"mirrors": []}, "no mirrors"),
        ({"mirrors": "https://x.org/a"}, "no mirrors"),
        ({"mirrors": ["ftp://x.org/a"]}, "ftp://x.org/a"),
        ({"mirrors": ["https:///a"]}, "http"),
        ({"mirrors": ["gdrive:"]}, "gdrive"),
        ({"unpack": "rar"}, "'rar'"),
        ({"unpack": "zip"}, "end accordingly"),
    ],
)
def test_bad_file_entry(tmp_path: Path, file: dict[str, Any], said: str) -> None:
    path = written(tmp_path, file=file)
    with pytest.raises(UserError) as caught:
        load_manifest(path)
    assert said in str(caught.value) and f"{path}, files[0]" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": []}, "'files'"),
        ({"files": ["a"]}, "JSON object"),
        ({"files": [{"path": "a"}]}, "lacks the key 'mirrors'"),
        ({"licence": "absent"}, "lacks the key 'licence'"),
        ({"range_mirrors": "https://x.org/"}, "a list of http(s) addresses"),
        ({"range_mirrors": ["https://x.org"]}, "'https://x.org': it must be an http(s) address that ends in '/'"),
        ({"range_mirrors": ["gdrive:1AbC/"]}, "ends in '/'"),
        ({"range_mirrors": [7]}, "ends in '/'"),
        ({"license": "MIT"}, "unknown key 'license'"),
        ({"citation": None}, "'citation'"),
        ({"name": "other"}, "calls itself 'other'"),
        ({"files": [GOOD_FILE, GOOD_FILE]}, "a place of its own"),
        ({"files": [GOOD_FILE, {**GOOD_FILE, "path": "a.bin/b"}]}, "a place of its own"),
        ({"files": [{**GOOD_FILE, "path": "a.zip", "unpack": "zip"}, {**GOOD_FILE, "path": "a/b"}]}, "of its own"),
    ],
)
def test_bad_manifest(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        load_manifest(written(tmp_path, **changes))


def test_unknown_missing_or_broken_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of .*sevir"):
        load_manifest("sevri")
    with pytest.raises(UserError, match="cannot be read"):
        load_manifest(tmp_path / "none.json")
    (tmp_path / "trial.json").write_text('{\n"name": }')
    with pytest.raises(UserError, match="not JSON .line 2"):
        load_manifest(tmp_path / "trial.json")


def test_only_chooses_and_refuses_what_is_not_there(site: Site, tmp_path: Path) -> None:
    site.put("a.bin", Page())
    files = tuple(ManifestFile(path, (site.url("a.bin"),)) for path in ("a/1.bin", "a/2.bin", "b.bin"))
    manifest = Manifest("trial", "t", "d", "l", "c", files)
    options = {"progress": False, "kaggle_input": tmp_path / "none"}
    assert fetch(manifest, tmp_path, only=["a/*"], **options) == [tmp_path / "a/1.bin", tmp_path / "a/2.bin"]
    assert [found.ok for found in verify(manifest, tmp_path)] == [True, True, False]
    with pytest.raises(UserError, match="no file 'c.bin'.*a/1.bin"):
        fetch(manifest, tmp_path, only=["b.bin", "c.bin"], **options)
