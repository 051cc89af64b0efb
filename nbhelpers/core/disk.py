"""Files and the disk they lie on: room asked before writing, a full disk as one sentence, a file's checksum."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbhelpers.core.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise UserError unless the disk of ``folder`` (which exists) has ``needed`` bytes free for ``what``."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{what} needs {human_bytes(needed)} but the disk of {folder} has {human_bytes(free)} free: "
            "make room there or choose another data folder"
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk met while writing ``path`` into one sentence; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(path.parent).free
            raise UserError(
                f"writing {path} stopped because the disk, quota or file-size limit is full ({human_bytes(free)} "
                "free on that disk): make room or choose another data folder, then run again (a download continues "
                "where it stopped)"
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise UserError(
                f"cannot write {path} ({error.strerror}): choose a data folder that is a writable directory"
            ) from error
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes ``path`` at the end, and is deleted if that is not reached.

    ``path`` does not exist, or is empty.
    """
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    try:
        part.mkdir(parents=True)
        yield part
        if path.exists():
            path.rmdir()  # empty; not every system renames onto it
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # nothing is left of it if it became the whole


def human_bytes(count: int) -> str:
    """``1394497418`` → ``1.4 GB`` (decimal units, as disks and browsers count)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def file_sha256(path: Path) -> str:
    """sha256 of a file of any size, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
