"""A file behind one URL that can be read like a local one: only the blocks that are touched come over the network.

h5py opens such an object, so the header of a file of many gigabytes costs a few blocks.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import requests

from nbhelpers.core.download import FRUITLESS_ATTEMPTS, Span, pause
from nbhelpers.core.http_answers import (
    TIMEOUT_SECONDS,
    Interrupted,
    MirrorError,
    check_range,
    new_session,
    reason_of,
    validator_of,
)

BLOCK_BYTES = 16 * 1024  # of one request; the header of an HDF5 file and a thousand short names fit in two


class RemoteFile(io.RawIOBase):
    """Read-only and seekable; every block is fetched once and kept in memory.

    All blocks are of one version of the file: the first answer says which (ETag or date, and length), and each
    further one is held to it.

    Args:
        url: http(s) address.
        on_bytes: called with the number of bytes that have come over the network, piece by piece.

    Raises:
        MirrorError: on opening and on reading, when the server does not deliver exactly the bytes asked for.
    """

    def __init__(self, url: str, *, on_bytes: Callable[[int], object] | None = None):
        super().__init__()
        self.url = url
        self._on_bytes = on_bytes
        self._session = new_session()
        self._blocks: dict[int, bytes] = {}
        self._position = 0
        self._size: int | None = None
        self._validator: str | None = None
        try:
            self._block(0)
        except MirrorError:
            self.close()
            raise

    def span(self, first: int, length: int) -> Span:
        """The piece of ``length`` bytes from ``first`` on, of just this version of the file."""
        if first + length > self._length():
            raise MirrorError(f"it ends after {self._length()} bytes, but {first + length} are needed")
        return Span(first, length, self._length(), self._validator)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length()}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer) -> int:
        """Fills the whole buffer, short only at the end of the file: HDF5 does not ask again."""
        wanted = max(0, min(len(buffer), self._length() - self._position))
        done = 0
        while done < wanted:
            index, offset = divmod(self._position, BLOCK_BYTES)
            piece = self._block(index)[offset : offset + wanted - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done

    def close(self) -> None:
        self._session.close()
        super().close()

    def _length(self) -> int:
        assert self._size is not None  # known from the first block on
        return self._size

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            self._blocks[index] = self._fetch(index * BLOCK_BYTES)
        return self._blocks[index]

    def _fetch(self, first: int) -> bytes:
        reason = ""
        for attempt in range(FRUITLESS_ATTEMPTS):
            if attempt:
                pause(attempt)
            try:
                return self._request(first)
            except (Interrupted, requests.RequestException) as error:
                reason = reason_of(error)
        raise MirrorError(f"{reason} ({FRUITLESS_ATTEMPTS} attempts at byte {first})")

    def _request(self, first: int) -> bytes:
        last = first + BLOCK_BYTES - 1
        if self._size is not None:
            last = min(last, self._size - 1)
        headers = {"Range": f"bytes={first}-{last}"}
        if self._validator:
            headers["If-Range"] = self._validator
        with self._session.get(self.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            size = check_range(response, first=first, last=last, total=self._size, validator=self._validator)
            length = min(last, size - 1) - first + 1
            body = bytearray()
            for chunk in response.iter_content(BLOCK_BYTES):
                body += chunk
                if self._on_bytes:
                    self._on_bytes(len(chunk))
                if len(body) > length:
                    raise MirrorError(f"it sends more than the {length} bytes that were asked for")
        if len(body) < length:
            raise Interrupted(f"the connection ended after {len(body)} of {length} bytes")
        if self._size is None:
            self._size, self._validator = size, validator_of(response.headers)
        return bytes(body)
