"""What an HTTP answer says about the bytes it brings: usable, worth another attempt, or not this file."""

from __future__ import annotations

import re
from collections.abc import Mapping

import requests

TIMEOUT_SECONDS = (10.0, 60.0)  # to connect; between two packets

_WORTH_RETRYING = {408, 425, 429}


class MirrorError(Exception):
    """This mirror does not deliver the file; the message says why, and the caller tries the next one."""


class Interrupted(Exception):
    """An attempt that ended early although the next one may go further."""


def new_session() -> requests.Session:
    """A session whose answers are to count the file's own bytes, not compressed ones."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    return session


def check_status(response: requests.Response, *, page: bool = False) -> None:
    """Raise Interrupted or MirrorError unless the answer brings a file; ``page``: a web page is what was asked for."""
    if response.status_code >= 500 or response.status_code in _WORTH_RETRYING:
        raise Interrupted(f"HTTP {response.status_code} {response.reason}")
    if response.status_code not in (200, 206):
        raise MirrorError(f"HTTP {response.status_code} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html") and not page:
        raise MirrorError("the answer is a web page (a login or an error page), not the file")


def check_range(
    response: requests.Response, *, first: int, last: int, total: int | None = None, validator: str | None = None
) -> int:
    """Raise unless the answer holds exactly bytes ``first``…``last`` of the expected file; returns the file's length.

    No byte of the body is read: a server that answers with four gigabytes instead is left at once.

    Parameters
    ----------
    first, last: the bytes that were asked for, counted from 0, both included; a shorter file may end before ``last``.
    total: length of the whole file as known from an earlier answer.
    validator: what that answer said about its version (see :func:`validator_of`).

    Raises
    ------
    Interrupted
        a passing refusal.
    MirrorError
        an error page, a file that changed since, no support for ranges, other bytes or lengths than asked for.
    """
    headers = response.headers
    if validator is not None and validator_of(headers) not in (None, validator):
        raise MirrorError("the file was changed between two requests, so run again to begin with its new version")
    if response.status_code == 416:
        raise MirrorError(f"the file there ends before byte {first}")
    check_status(response)
    if response.status_code == 200:
        raise MirrorError(
            f"it answers a request for {last - first + 1} bytes with the whole file, that is, it refuses ranges"
        )
    said = headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", said)
    if match is None:
        raise MirrorError(f"it does not say which bytes it sends (Content-Range {said!r})")
    length = int(match[3])
    if total is not None and length != total:
        raise MirrorError(f"it says that the file has {length} bytes where it said {total} before")
    if (int(match[1]), int(match[2])) != (first, min(last, length - 1)):
        raise MirrorError(f"it sends the bytes {match[1]}-{match[2]} where {first}-{last} were asked for")
    announced = headers.get("Content-Length")
    if announced is not None and announced != str(int(match[2]) - first + 1):
        raise MirrorError(f"it announces {announced} bytes for the bytes {match[1]}-{match[2]}")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise MirrorError("it compresses a range, whose offsets then mean nothing")
    return length


def validator_of(headers: Mapping[str, str]) -> str | None:
    """What names this version of the file, as ``If-Range`` takes it: a strong ETag, else the date of its change."""
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):  # a weak tag does not promise equal bytes
        return etag
    return headers.get("Last-Modified")


def range_total(headers: Mapping[str, str]) -> int | None:
    """Length of the whole file by ``Content-Range``."""
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def whole_length(headers: Mapping[str, str]) -> int | None:
    """Content-Length, unless it counts something other than the bytes that will be written."""
    length = headers.get("Content-Length", "")
    encoded = headers.get("Content-Encoding", "identity") != "identity" or "Transfer-Encoding" in headers
    return int(length) if length.isdecimal() and not encoded else None


def reason_of(error: Exception) -> str:
    """The innermost cause: ``[Errno 111] Connection refused`` instead of three nested representations."""
    inner = error.args[0] if error.args else error
    inner = getattr(inner, "reason", inner)
    if isinstance(inner, Exception) and len(inner.args) > 1 and isinstance(inner.args[1], Exception):
        inner = inner.args[0]  # urllib3 says it in words and then gives the error that it has just named
    return re.sub(r"^\w*(?:ConnectionPool|Connection)\(.*?\): ", "", str(inner)) or type(error).__name__
