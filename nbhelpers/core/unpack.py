"""Unpacking a zip or tar archive that nobody has vouched for: judged as a whole before the first byte is written."""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from nbhelpers.core.disk import check_room, disk_errors
from nbhelpers.core.errors import UserError

Kind = Literal["zip", "tar"]

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "zip": (".zip",),
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"),
}
MARKER = ".unpacked_from_sha256"  # inside the folder, so that one rename makes folder and record appear together

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


def unpack(archive: Path, folder: Path, *, kind: Kind, sha256: str) -> None:
    """Unpack ``archive`` to the new folder ``folder`` and note in it which archive it came from.

    Everything goes to ``<folder>.unpacking`` first, which is then renamed: an interrupted run leaves no folder that
    looks complete. tar files may be plain or compressed with gzip, bzip2, xz or, where the package zstandard is
    installed, Zstandard.

    Raises
    ------
    UserError
        A member has an absolute path or ``..``, is a device, pipe or encrypted, or is a link whose target is absolute
        or goes up (with no ``..`` in names and targets no chain of links can leave the folder; links in a zip are
        refused altogether); the sizes that the members declare exceed the free disk; the archive is damaged. Nothing
        has been written then, except in the last case, where the temporary folder is removed.
    """
    temporary = folder.with_name(folder.name + ".unpacking")
    with disk_errors(temporary):
        if temporary.exists():  # of an interrupted run of ours
            shutil.rmtree(temporary)
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(temporary):
            if kind == "zip":
                _unpack_zip(archive, temporary)
            else:
                _unpack_tar(archive, temporary)
            (temporary / MARKER).write_text(sha256 + "\n", encoding="ascii")
            temporary.replace(folder)
    except _DAMAGED as error:
        why = str(error).partition("\n")[0].rstrip(":")  # tarfile lists every compression it tried
        raise UserError(
            f"{archive} cannot be unpacked as {kind} ({type(error).__name__}: {why}): "
            "remove it and fetch it again, or correct 'unpack' in its manifest"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unpacked_from(folder: Path) -> str | None:
    """sha256 (64 hex digits) of the archive that :func:`unpack` made ``folder`` from; None if it did not make it."""
    marker = folder / MARKER
    return marker.read_text(encoding="ascii").strip() if marker.is_file() else None


def escapes(name: str) -> bool:
    """Whether a path in an archive or manifest could leave its folder on any operating system."""
    return (
        name.startswith(("/", "\\"))
        or re.match("[A-Za-z]:", name) is not None
        or ".." in re.split(r"[/\\]", name)
        or "\0" in name
    )


def _unpack_zip(archive: Path, temporary: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            if escapes(member.orig_filename):
                raise _refusal(archive, member.orig_filename, "leads outside its folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _refusal(archive, member.filename, "is a symbolic link, which a zip archive here must not hold")
            if member.flag_bits & 1:
                raise _refusal(archive, member.filename, "is encrypted")
        check_room(temporary.parent, sum(member.file_size for member in members), f"unpacking {archive.name}")
        opened.extractall(temporary)
        temporary.mkdir(exist_ok=True)  # an empty archive


def _unpack_tar(archive: Path, temporary: Path) -> None:
    needed = 0
    with _opened_tar(archive) as opened:
        for member in _members(opened, forget=_is_zstd(archive)):
            if escapes(member.name):
                raise _refusal(archive, member.name, "leads outside its folder")
            if (member.issym() or member.islnk()) and escapes(member.linkname):
                raise _refusal(archive, member.name, f"is a link to {member.linkname!r}, which may lie outside")
            if member.islnk() and _is_zstd(archive):  # its target would be sought in members that are forgotten
                raise _refusal(archive, member.name, "is a hard link, which a Zstandard archive here must not hold")
            if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
                raise _refusal(archive, member.name, "is a device or pipe")
            needed += member.size
    check_room(temporary.parent, needed, f"unpacking {archive.name}")
    temporary.mkdir()
    with _opened_tar(archive) as opened:
        # Python's own filter as well, where this Python has it (3.10.12, 3.11.4 and later): it also drops setuid bits.
        opened.extraction_filter = getattr(tarfile, "data_filter", None)
        opened.extractall(temporary, members=_members(opened, forget=_is_zstd(archive)))


@contextmanager
def _opened_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    if not _is_zstd(archive):
        with tarfile.open(archive) as opened:
            yield opened
        return
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"{archive} is compressed with Zstandard, which needs the package zstandard: `pip install zstandard`, then "
            "run again; or unpack it yourself with `tar --zstd -xf`"
        ) from error
    try:
        with (
            archive.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
            tarfile.open(fileobj=stream, mode="r|") as opened,
        ):
            yield opened
    except zstandard.ZstdError as error:
        raise tarfile.ReadError(str(error)) from error


def _is_zstd(archive: Path) -> bool:
    return archive.name.lower().endswith(".zst")


def _members(opened: tarfile.TarFile, *, forget: bool) -> Iterator[tarfile.TarInfo]:
    """Members one by one; ``forget`` keeps no list of them, which for millions of files would fill the memory."""
    if not forget:
        yield from opened
        return
    while (member := opened.next()) is not None:
        opened.members = []  # type: ignore[attr-defined]
        yield member


def _refusal(archive: Path, member: str, why: str) -> UserError:
    return UserError(
        f"{archive} was not unpacked because its member {member!r} {why}: get the archive from a source you trust"
    )
