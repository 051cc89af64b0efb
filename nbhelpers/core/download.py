"""One URL into one ``.part`` file: resume, retries, progress, and room on the disk checked before the first byte.

pooch cannot resume and fsspec's HTTP needs aiohttp, hence this small ``Range`` downloader on requests (which gdown
brings along). A part is only ever continued when the bytes on the server are known to be the ones it was begun with:
by ``If-Range``, by the validator that came with the earlier answer, or because the sha256 of the whole is known.
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

TIMEOUT_SECONDS = (10.0, 60.0)  # to connect; between two packets
CHUNK_BYTES = 64 * 1024  # what is lost at most when a connection drops
FRUITLESS_ATTEMPTS = 4  # in a row, each bringing less than a chunk, before a mirror is given up
BACKOFF_SECONDS = 0.5  # before the second attempt; doubles with each further one
GDRIVE = "gdrive:"  # prefix of a mirror that gdown fetches

_WORTH_RETRYING = {408, 425, 429}


class MirrorError(Exception):
    """This mirror does not deliver the file; the message says why, and the caller tries the next one."""


class _Interrupted(Exception):
    """An attempt that ended early although the next one may go further."""


@dataclass(frozen=True)
class _PartState:
    """What the server said about the bytes in a ``.part``; kept in ``<part>.json`` for the next session."""

    url: str  # where the bytes came from
    validator: str | None  # strong ETag or Last-Modified, as If-Range takes it
    total: int | None  # bytes of the whole file
    resumable: bool  # False if the transfer was compressed: offsets then mean nothing


def download(
    mirror: str,
    part: Path,
    *,
    size: int | None,
    hash_known: bool,
    unpacks: bool = False,
    progress: bool = True,
) -> None:
    """Bring the whole file behind ``mirror`` into ``part``, continuing what is there.

    Parameters
    ----------
    mirror: ``http(s)://…`` or ``gdrive:<id>``.
    part: the file to write; its name ends in ``.part``. ``<part>.json`` beside it remembers ETag and length.
    size: bytes the file must have, or None if unknown.
    hash_known: whether the caller can check a sha256 afterwards. If so, bytes of another mirror or session are
        continued even where no ETag vouches for them; if not, such a part is begun anew.
    unpacks: the file is an archive that will be unpacked beside itself: ask for room for that, too.

    Raises
    ------
    MirrorError
        the mirror cannot deliver this file.
    UserError
        the disk is too small, full or read-only. What has arrived stays in ``part``.
    """
    if mirror.startswith(GDRIVE):
        _download_gdrive(mirror.removeprefix(GDRIVE), part, hash_known=hash_known, progress=progress)
    else:
        _download_http(mirror, part, size=size, hash_known=hash_known, unpacks=unpacks, progress=progress)


def leftovers(part: Path) -> list[Path]:
    """Files that an unfinished download has left: the part, its state, gdown's own part."""
    ours = [part, _state_path(part)]
    return [path for path in ours if path.exists()] + sorted(part.parent.glob(_gdown_name(part) + "*"))


def discard(part: Path) -> None:
    """Remove an unfinished download, so that the next one begins at byte 0."""
    for path in leftovers(part):
        path.unlink()


def _download_http(url: str, part: Path, *, size: int | None, hash_known: bool, unpacks: bool, progress: bool) -> None:
    fruitless, furthest = 0, _bytes_in(part)
    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # offsets must count the file's own bytes
        while True:
            try:
                return _attempt(
                    session, url, part, size=size, hash_known=hash_known, unpacks=unpacks, progress=progress
                )
            except (_Interrupted, requests.RequestException) as error:
                reason = _reason(error)
            arrived = _bytes_in(part)  # measured against the furthest point: beginning anew is no gain
            fruitless = 0 if arrived - furthest >= CHUNK_BYTES else fruitless + 1
            furthest = max(furthest, arrived)
            if fruitless >= FRUITLESS_ATTEMPTS:
                raise MirrorError(f"{reason} ({fruitless} attempts, {arrived} bytes arrived)")
            time.sleep(BACKOFF_SECONDS * 2 ** max(fruitless - 1, 0))


def _attempt(
    session: requests.Session,
    url: str,
    part: Path,
    *,
    size: int | None,
    hash_known: bool,
    unpacks: bool,
    progress: bool,
) -> None:
    """One request. Returns when the part is complete; raises _Interrupted when another request may help."""
    state = _read_state(part)
    start, validator = _resume_point(part, url, state, hash_known=hash_known)
    if size is not None and start > size:
        discard(part)
        start, validator = 0, None
    if size is not None and start == size:
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    if validator:
        headers["If-Range"] = validator

    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == 416 and start:
            total = _range_total(response.headers)
            if start == (total if total is not None else state.total if state else None):
                return  # every byte was here already
            discard(part)
            raise _Interrupted("the server has no bytes beyond those of an earlier, different file")
        if response.status_code >= 500 or response.status_code in _WORTH_RETRYING:
            raise _Interrupted(f"HTTP {response.status_code} {response.reason}")
        if response.status_code not in (200, 206):
            raise MirrorError(f"HTTP {response.status_code} {response.reason}")
        if response.headers.get("Content-Type", "").startswith("text/html") and ".htm" not in part.name:
            raise MirrorError("the answer is a web page (a login or an error page), not the file")

        if response.status_code == 206:
            total = _range_total(response.headers)
            if not _continues(response.headers, start=start, validator=validator, state=state, url=url):
                discard(part)
                raise _Interrupted("the server answered with another range or another version of the file")
        else:
            start, total = 0, _whole_length(response.headers)
        if size is not None and total is not None and total != size:
            raise MirrorError(f"the server has {total} bytes where the manifest says {size}")

        goal = size if total is None else total
        if goal is not None:
            check_room(part.parent, goal - start + (goal if unpacks else 0), part.stem)
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        if start == 0:
            discard(part)  # before the new state is written: an old part must never stand beside it
        _write_state(part, _PartState(url, _validator(response.headers), total, resumable=not encoded))
        _write_body(response, part, start=start, total=goal, progress=progress)
        announced = response.headers.get("Content-Length", "0")
        cut_off = announced.isdecimal() and response.raw.tell() < int(announced)  # counted as sent, compressed or not
    arrived = _bytes_in(part)
    if cut_off or (goal is not None and arrived != goal):
        raise _Interrupted(f"the connection ended after {arrived} of {goal or 'unknown'} bytes")


def _write_body(response: requests.Response, part: Path, *, start: int, total: int | None, progress: bool) -> None:
    bar = tqdm(
        total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress, dynamic_ncols=True
    )
    with bar, disk_errors(part), part.open("r+b" if start else "wb") as out:
        out.seek(start)
        out.truncate()
        for chunk in response.iter_content(CHUNK_BYTES):
            out.write(chunk)
            bar.update(len(chunk))
        out.flush()
        os.fsync(out.fileno())  # the rename that follows must not reach the disk before the bytes


def _resume_point(part: Path, url: str, state: _PartState | None, *, hash_known: bool) -> tuple[int, str | None]:
    """How many bytes of ``part`` to keep, and the validator under which the server may continue them."""
    have = _bytes_in(part)
    if state is not None and not state.resumable:
        return 0, None
    if state is not None and state.url == url and state.validator:
        return have, state.validator
    return (have, None) if hash_known else (0, None)


def _continues(
    headers: Mapping[str, str], *, start: int, validator: str | None, state: _PartState | None, url: str
) -> bool:
    """Whether a 206 answer holds the bytes from ``start`` of the file that the part was begun with."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start or start == 0:
        return False
    if validator and _validator(headers) not in (None, validator):
        return False  # the server ignored If-Range
    if state is not None and state.url == url and state.total is not None and match[2] != "*":
        return state.total == int(match[2])
    return True


def _validator(headers: Mapping[str, str]) -> str | None:
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):  # a weak tag does not promise equal bytes
        return etag
    return headers.get("Last-Modified")


def _range_total(headers: Mapping[str, str]) -> int | None:
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _whole_length(headers: Mapping[str, str]) -> int | None:
    """Content-Length, unless it counts something other than the bytes that will be written."""
    length = headers.get("Content-Length", "")
    encoded = headers.get("Content-Encoding", "identity") != "identity" or "Transfer-Encoding" in headers
    return int(length) if length.isdecimal() and not encoded else None


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


def _reason(error: Exception) -> str:
    """The innermost cause: ``[Errno 111] Connection refused`` instead of three nested representations."""
    inner = error.args[0] if error.args else error
    inner = getattr(inner, "reason", inner)
    return re.sub(r"^\w*(?:ConnectionPool|Connection)\(.*?\): ", "", str(inner)) or type(error).__name__


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
        raise MirrorError(_reason(error)) from error
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
