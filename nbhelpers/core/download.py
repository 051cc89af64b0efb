"""One URL into one ``.part`` file: resume, retries, progress, and room on the disk checked before the first byte.

pooch cannot resume and fsspec's HTTP needs aiohttp, hence this small ``Range`` downloader on requests (which gdown
brings along). A part is only ever continued when the bytes on the server are known to be the ones it was begun with:
by ``If-Range``, by the validator that came with the earlier answer, or because the sha256 of the whole is known.
A :class:`Span` makes it bring a piece of a file instead: those bytes and not one more.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import requests
from tqdm.auto import tqdm

from nbhelpers.core.disk import check_room, disk_errors
from nbhelpers.core.http_answers import (
    TIMEOUT_SECONDS,
    Interrupted,
    MirrorError,
    check_range,
    check_status,
    new_session,
    range_total,
    reason_of,
    validator_of,
    whole_length,
)

CHUNK_BYTES = 64 * 1024  # what is lost at most when a connection drops
FRUITLESS_ATTEMPTS = 4  # in a row, each bringing less than a chunk, before a mirror is given up
BACKOFF_SECONDS = 0.5  # before the second attempt; doubles with each further one
GDRIVE = "gdrive:"  # prefix of a mirror that gdown fetches


@dataclass(frozen=True)
class Span:
    """Where a piece of a larger file begins, and which version of that file is meant."""

    first: int  # offset of its first byte in the whole file
    length: int  # bytes of the piece
    file_bytes: int  # length of the whole file
    validator: str | None  # strong ETag or Last-Modified of that version, as If-Range takes it


@dataclass(frozen=True)
class _PartState:
    """What the server said about the bytes in a ``.part``; kept in ``<part>.json`` for the next session."""

    url: str  # where the bytes came from
    validator: str | None  # strong ETag or Last-Modified, as If-Range takes it
    total: int | None  # bytes of the whole file
    resumable: bool  # False if the transfer was compressed: offsets then mean nothing


@dataclass(frozen=True)
class _Job:
    """What :func:`download` was asked for."""

    url: str  # http(s)
    part: Path
    size: int | None  # bytes the part must have in the end
    hash_known: bool
    span: Span | None  # None: the whole file
    unpacks: bool
    progress: bool
    on_bytes: Callable[[int], object] | None


def download(
    mirror: str,
    part: Path,
    *,
    size: int | None,
    hash_known: bool,
    span: Span | None = None,
    unpacks: bool = False,
    progress: bool = True,
    on_bytes: Callable[[int], object] | None = None,
) -> None:
    """Bring the file behind ``mirror``, or the ``span`` of it, into ``part``, continuing what is there.

    Parameters
    ----------
    mirror: ``http(s)://…`` or ``gdrive:<id>``; only ``http(s)`` with a span.
    part: the file to write; its name ends in ``.part``. ``<part>.json`` beside it remembers ETag and length.
    size: bytes the part must have, or None if unknown; with a span its length counts.
    hash_known: whether the caller can check a sha256 afterwards. If so, bytes of another mirror or session are
        continued even where no ETag vouches for them; if not, such a part is begun anew.
    span: bring a piece of that version of the file; any other answer than exactly those bytes is refused unread.
    unpacks: the file is an archive that will be unpacked beside itself: ask for room for that, too.
    on_bytes: called with the number of bytes that have arrived and been written, piece by piece.

    Raises
    ------
    MirrorError
        the mirror cannot deliver this file.
    UserError
        the disk is too small, full or read-only. What has arrived stays in ``part``.
    """
    if mirror.startswith(GDRIVE):
        _download_gdrive(mirror.removeprefix(GDRIVE), part, hash_known=hash_known, progress=progress)
        if on_bytes:
            on_bytes(_bytes_in(part))
    else:
        size = span.length if span else size
        _download_http(_Job(mirror, part, size, hash_known, span, unpacks, progress, on_bytes))


def pause(fruitless: int) -> None:
    """Wait before another attempt, the longer the more of them have brought nothing."""
    time.sleep(BACKOFF_SECONDS * 2 ** max(fruitless - 1, 0))


def leftovers(part: Path) -> list[Path]:
    """Files that an unfinished download has left: the part, its state, gdown's own part."""
    ours = [part, _state_path(part)]
    return [path for path in ours if path.exists()] + sorted(part.parent.glob(_gdown_name(part) + "*"))


def discard(part: Path) -> None:
    """Remove an unfinished download, so that the next one begins at byte 0."""
    for path in leftovers(part):
        path.unlink()


def _download_http(job: _Job) -> None:
    fruitless, furthest = 0, _bytes_in(job.part)
    with new_session() as session:
        while True:
            try:
                return _attempt(session, job)
            except (Interrupted, requests.RequestException) as error:
                reason = reason_of(error)
            arrived = _bytes_in(job.part)  # measured against the furthest point: beginning anew is no gain
            fruitless = 0 if arrived - furthest >= CHUNK_BYTES else fruitless + 1
            furthest = max(furthest, arrived)
            if fruitless >= FRUITLESS_ATTEMPTS:
                raise MirrorError(f"{reason} ({fruitless} attempts, {arrived} bytes arrived)")
            pause(fruitless)


def _attempt(session: requests.Session, job: _Job) -> None:
    """One request. Returns when the part is complete; raises Interrupted when another request may help."""
    part, span, state = job.part, job.span, _read_state(job.part)
    start, validator = _resume_point(job, state)
    if job.size is not None and start > job.size:
        discard(part)
        start, validator = 0, None
    if job.size is not None and start == job.size:
        return
    headers = {}
    if span:
        first, last, validator = span.first + start, span.first + span.length - 1, span.validator
        headers["Range"] = f"bytes={first}-{last}"
    elif start:
        headers["Range"] = f"bytes={start}-"
    if validator:
        headers["If-Range"] = validator

    with session.get(job.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        total: int | None
        if span:
            total = check_range(response, first=first, last=last, total=span.file_bytes, validator=validator)
            goal = job.size
        else:
            answer = _judge_whole(response, job, start=start, validator=validator, state=state)
            if answer is None:
                return
            start, total = answer
            goal = job.size if total is None else total
        if goal is not None:
            check_room(part.parent, goal - start + (goal if job.unpacks else 0), part.stem)
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        if start == 0:
            discard(part)  # before the new state is written: an old part must never stand beside it
        _write_state(part, _PartState(job.url, validator_of(response.headers), total, resumable=not encoded))
        _write_body(response, job, start=start, goal=goal)
        announced = response.headers.get("Content-Length", "0")
        cut_off = announced.isdecimal() and response.raw.tell() < int(announced)  # counted as sent, compressed or not
    arrived = _bytes_in(part)
    if span and goal is not None and arrived > goal:
        discard(part)
        raise MirrorError(f"it sends more than the {goal} bytes that were asked for")
    if cut_off or (goal is not None and arrived != goal):
        raise Interrupted(f"the connection ended after {arrived} of {goal or 'unknown'} bytes")


def _judge_whole(
    response: requests.Response, job: _Job, *, start: int, validator: str | None, state: _PartState | None
) -> tuple[int, int | None] | None:
    """Where the body of a request for the whole file (or its rest) begins, and the file's length.

    None if every byte was here already.
    """
    if response.status_code == 416 and start:
        total = range_total(response.headers)
        if start == (total if total is not None else state.total if state else None):
            return None
        discard(job.part)
        raise Interrupted("the server has no bytes beyond those of an earlier, different file")
    check_status(response, page=".htm" in job.part.name)
    if response.status_code == 206:
        total = range_total(response.headers)
        if not _continues(response.headers, start=start, validator=validator, state=state, url=job.url):
            discard(job.part)
            raise Interrupted("the server answered with another range or another version of the file")
    else:
        start, total = 0, whole_length(response.headers)
    if job.size is not None and total is not None and total != job.size:
        raise MirrorError(f"the server has {total} bytes where the manifest says {job.size}")
    return start, total


def _write_body(response: requests.Response, job: _Job, *, start: int, goal: int | None) -> None:
    bar = tqdm(
        total=goal,
        initial=start,
        unit="B",
        unit_scale=True,
        desc=job.part.stem,
        disable=not job.progress,
        dynamic_ncols=True,
    )
    with bar, disk_errors(job.part), job.part.open("r+b" if start else "wb") as out:
        out.seek(start)
        out.truncate()
        for chunk in response.iter_content(CHUNK_BYTES):
            out.write(chunk)
            bar.update(len(chunk))
            if job.on_bytes:
                job.on_bytes(len(chunk))
            if job.span and goal is not None and out.tell() > goal:
                break  # the rest of gigabytes that nobody asked for
        out.flush()
        os.fsync(out.fileno())  # the rename that follows must not reach the disk before the bytes


def _resume_point(job: _Job, state: _PartState | None) -> tuple[int, str | None]:
    """How many bytes of the part to keep, and the validator under which the server may continue them."""
    have = _bytes_in(job.part)
    if state is not None and not state.resumable:
        return 0, None
    if state is not None and state.url == job.url and state.validator and _same_version(job.span, state):
        return have, state.validator
    return (have, None) if job.hash_known else (0, None)


def _same_version(span: Span | None, state: _PartState) -> bool:
    return span is None or span.validator == state.validator


def _continues(
    headers: Mapping[str, str], *, start: int, validator: str | None, state: _PartState | None, url: str
) -> bool:
    """Whether a 206 answer holds the bytes from ``start`` of the file that the part was begun with."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start or start == 0:
        return False
    if validator and validator_of(headers) not in (None, validator):
        return False  # the server ignored If-Range
    if state is not None and state.url == url and state.total is not None and match[2] != "*":
        return state.total == int(match[2])
    return True


def _bytes_in(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _state_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path) -> _PartState | None:
    try:
        return _PartState(**json.loads(_state_path(part).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # nothing vouches for the part: _resume_point decides


def _write_state(part: Path, state: _PartState) -> None:
    with disk_errors(part):
        _state_path(part).write_text(json.dumps(asdict(state)), encoding="utf-8")


def _gdown_name(part: Path) -> str:
    return part.stem + ".gdown"


def _download_gdrive(file_id: str, part: Path, *, hash_known: bool, progress: bool) -> None:
    """Through gdown, whose own part file it continues only under a known hash: gdown asks for no validator."""
    import gdown

    if not hash_known:
        discard(part)
    target = part.with_name(_gdown_name(part))
    failures = (gdown.exceptions.FileURLRetrievalError, getattr(gdown.exceptions, "DownloadError", requests.HTTPError))
    fetch: Callable[..., object] = gdown.download
    try:
        with disk_errors(part):
            fetched = fetch(id=file_id, output=str(target), quiet=not progress, resume=True)
    except failures as error:
        raise MirrorError(_gdrive_reason(str(error))) from error
    except requests.RequestException as error:
        raise MirrorError(reason_of(error)) from error
    if fetched is None or not target.is_file():
        raise MirrorError("gdown returned no file")
    target.replace(part)


def _gdrive_reason(message: str) -> str:
    """gdown's page of advice in a clause."""
    text = " ".join(message.split())
    if re.search(r"too many users|many accesses|quota", text, re.IGNORECASE):
        return (
            "Google Drive refuses further downloads of this file for now (too many users have viewed or downloaded "
            "it recently), or it is not shared with 'Anyone with the link'"
        )
    return f"gdown: {text.removeprefix('Failed to retrieve file url: ')[:200]}"
