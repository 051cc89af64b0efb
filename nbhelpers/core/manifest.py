"""Bringing the files of a data manifest into a data folder, and judging what lies there.

A file counts only once its size and sha256 agree with the manifest. Where the manifest knows no sha256, that of the
first arrival is recorded in ``<data_dir>/manifest.lock.json`` and the file is checked against it from then on. The
format of a manifest is in :mod:`nbhelpers.core.manifest_format`.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nbhelpers.core.disk import check_room, disk_errors, file_sha256
from nbhelpers.core.download import discard, download, leftovers
from nbhelpers.core.errors import UserError
from nbhelpers.core.http_answers import MirrorError
from nbhelpers.core.manifest_format import LOCK_NAME, Manifest, ManifestFile, list_manifests, load_manifest
from nbhelpers.core.unpack import unpack, unpacked_from

__all__ = ["FileStatus", "Manifest", "ManifestFile", "fetch", "list_manifests", "load_manifest", "verify"]

KAGGLE_INPUT = Path("/kaggle/input")  # data sets attached to a Kaggle notebook, read-only

Status = Literal["ok", "missing", "wrong size", "wrong sha256", "recorded on first use", "not recorded"]


@dataclass(frozen=True)
class FileStatus:
    """What :func:`verify` found for one file of a manifest."""

    path: str  # as in the manifest
    status: Status  # "not recorded": it is there, but neither manifest nor lock file knows its sha256 yet
    location: Path  # where it was looked for; the folder of an archive that is unpacked or should be
    bytes: int | None = None  # size found
    sha256: str | None = None  # digest found, all 64 digits; None where the size settled the matter

    @property
    def ok(self) -> bool:
        """Whether the file can be used: as published, or as it was on first use."""
        return self.status in ("ok", "recorded on first use")


def fetch(
    manifest: Manifest,
    data_dir: str | Path,
    *,
    only: Iterable[str] | None = None,
    progress: bool = True,
    kaggle_input: Path = KAGGLE_INPUT,
    on_bytes: Callable[[int], object] | None = None,
) -> list[Path]:
    """Make the files of ``manifest`` present and verified under ``data_dir``; one process at a time.

    What is there and verified is kept. What is missing is searched under ``kaggle_input`` (and linked), then
    downloaded from its mirrors in order, continuing an unfinished download; archives are unpacked.

    Parameters
    ----------
    only: paths of the manifest, or patterns such as ``"vil/2019/*"``; None means all files.
    progress: show progress bars.
    kaggle_input: folder to search before the network, used if it exists.
    on_bytes: called with the number of bytes that have come over the network, piece by piece.

    Returns
    -------
    The files in the manifest's order; for an archive the folder it was unpacked to.

    Raises
    ------
    UserError
        A pattern matches nothing; a file that is already there is not the right one (it is left alone); no mirror
        delivers, with each one's reason and where to place the file by hand; too little room on the disk; an archive
        is unsafe or damaged; a folder exists that was not unpacked from the archive.
    """
    data_dir = Path(data_dir)
    files = _choose(manifest, only)
    missing = [file for file in files if not _present(manifest, file, data_dir)]
    attached = find_named({Path(file.path).name for file in missing}, kaggle_input)
    missing = [file for file in missing if not _link_from_kaggle(file, data_dir, attached)]
    _check_room_for(missing, manifest, data_dir)
    for file in missing:
        _download(manifest, file, data_dir, progress=progress, on_bytes=on_bytes)
    return [_ready(file, data_dir) for file in files]


def verify(manifest: Manifest, data_dir: str | Path) -> list[FileStatus]:
    """Judge every file of ``manifest`` under ``data_dir`` by size and sha256; reads everything, changes nothing."""
    data_dir = Path(data_dir)
    lock = read_lock(data_dir)
    return [_judge(file, data_dir, lock) for file in manifest.files]


def _judge(file: ManifestFile, data_dir: Path, lock: Mapping[str, Any]) -> FileStatus:
    recorded = lock[file.path]["sha256"] if file.path in lock else None
    expected = file.sha256 or recorded
    good: Status = "ok" if file.sha256 else "recorded on first use" if recorded else "not recorded"
    location = data_dir / file.path
    if file.folder:
        origin = unpacked_from(data_dir / file.folder)
        if origin and expected and origin.startswith(expected):  # the archive itself may have been removed since
            return FileStatus(file.path, good, data_dir / file.folder, None, origin)
    if not location.is_file():
        return FileStatus(file.path, "missing", location)
    size = location.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return FileStatus(file.path, "wrong size", location, size)
    digest = file_sha256(location)
    if expected and not digest.startswith(expected):
        return FileStatus(file.path, "wrong sha256", location, size, digest)
    if file.folder and good != "not recorded":
        return FileStatus(file.path, "missing", data_dir / file.folder)  # a good archive, not unpacked
    return FileStatus(file.path, good, location, size, digest)


def _choose(manifest: Manifest, only: Iterable[str] | None) -> list[ManifestFile]:
    if only is None:
        return list(manifest.files)
    patterns = [only] if isinstance(only, str) else list(only)
    for pattern in patterns:
        if not fnmatch.filter([file.path for file in manifest.files], pattern):
            known = ", ".join(file.path for file in manifest.files)
            raise UserError(f"manifest {manifest.name} has no file {pattern!r}: choose among {known}")
    return [file for file in manifest.files if any(fnmatch.fnmatch(file.path, pattern) for pattern in patterns)]


def _present(manifest: Manifest, file: ManifestFile, data_dir: Path) -> bool:
    """Whether the file (or the folder unpacked from it) is there and right; a wrong one is the user's to judge."""
    found = _judge(file, data_dir, read_lock(data_dir))
    if found.status == "not recorded" and found.sha256:
        _record(file, data_dir, found.sha256, source="found in the data folder")
    if found.status in ("wrong size", "wrong sha256"):
        problem, _ = _problem(file, found.location, data_dir)
        cure = "move or delete it and fetch again"
        if found.status == "wrong sha256" and not file.sha256:
            cure += f" (if you changed it on purpose, remove its entry from {data_dir / LOCK_NAME})"
        raise UserError(f"{found.location} is not {file.path} of manifest {manifest.name} ({problem}): {cure}")
    return found.ok or (data_dir / file.path).is_file()


def find_named(names: set[str], root: Path) -> dict[str, list[Path]]:
    """Files under ``root`` with one of ``names``, in one walk (attached data sets can hold 100,000 files)."""
    found: dict[str, list[Path]] = {name: [] for name in names}
    for folder, _, files in os.walk(root) if names else ():
        for name in names.intersection(files):
            found[name].append(Path(folder, name))
    return {name: sorted(paths) for name, paths in found.items()}


def _link_from_kaggle(file: ManifestFile, data_dir: Path, attached: Mapping[str, list[Path]]) -> bool:
    """Take the file from an attached Kaggle data set if one holds it, by a link where the system allows it."""
    for candidate in attached[Path(file.path).name]:
        # A name alone is no evidence: without size and hash the whole relative path has to agree.
        if file.bytes is None and not _expected(file, data_dir) and not candidate.as_posix().endswith("/" + file.path):
            continue
        problem, digest = _problem(file, candidate, data_dir)
        if problem:
            say(f"{candidate} is not used for {file.path}: {problem}")
            continue
        target = data_dir / file.path
        part = target.with_name(target.name + ".part")
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            discard(part)
            try:
                part.symlink_to(candidate)
            except OSError:  # Windows and some network drives have no links
                shutil.copyfile(candidate, part)
            os.replace(part, target)
        _record(file, data_dir, digest, source=str(candidate))
        return True
    return False


def _check_room_for(missing: list[ManifestFile], manifest: Manifest, data_dir: Path) -> None:
    """All that is to come, before the first byte of it; an archive takes at least its own size again."""
    if not missing:
        return
    with disk_errors(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
    needed = 0
    for file in missing:
        here = sum(path.stat().st_size for path in leftovers(_part(file, data_dir)))
        needed += max((file.bytes or 0) * (2 if file.unpack else 1) - here, 0)
    check_room(data_dir, needed, f"manifest {manifest.name}")


def _download(
    manifest: Manifest,
    file: ManifestFile,
    data_dir: Path,
    *,
    progress: bool,
    on_bytes: Callable[[int], object] | None,
) -> None:
    target, part = data_dir / file.path, _part(file, data_dir)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for index, mirror in enumerate(file.mirrors):
        try:
            digest = _download_verified(mirror, file, data_dir, part, progress=progress, on_bytes=on_bytes)
        except MirrorError as error:
            failures.append(f"mirror {index + 1} of {len(file.mirrors)}, {mirror}: {error}")
            if index + 1 < len(file.mirrors):
                say(f"{file.path}: {failures[-1]}; trying {file.mirrors[index + 1]} next")
            continue
        with disk_errors(target):
            os.replace(part, target)
            discard(part)
        _record(file, data_dir, digest, source=mirror)
        return
    facts = [f"{file.bytes} bytes"] if file.bytes is not None else []
    facts += [f"sha256 {file.sha256}"] if file.sha256 else []
    raise UserError(
        f"{file.path} of manifest {manifest.name} could not be fetched ({'; '.join(failures)}): check the connection "
        f"and run again, or get the file by hand and place it at {target.absolute()}"
        + (f" ({', '.join(facts)})" if facts else "")
    )


def _download_verified(mirror: str, file: ManifestFile, data_dir: Path, part: Path, **options: Any) -> str:
    """Download to ``part`` and return its sha256. A continued part that turns out wrong is begun anew once."""
    hash_known = _expected(file, data_dir) is not None
    while True:
        continued = bool(leftovers(part))
        download(mirror, part, size=file.bytes, hash_known=hash_known, unpacks=bool(file.unpack), **options)
        problem, digest = _problem(file, part, data_dir)
        if not problem:
            return digest
        discard(part)
        if not continued:
            raise MirrorError(f"{problem}, so the download was discarded")


def _ready(file: ManifestFile, data_dir: Path) -> Path:
    """The path to use: the file, or the folder of an archive, unpacked now if it is not yet."""
    if not file.folder or not file.unpack:
        return data_dir / file.path
    archive, folder = data_dir / file.path, data_dir / file.folder
    origin, expected = unpacked_from(folder), _expected(file, data_dir)
    if origin and expected and origin.startswith(expected):
        return folder
    if folder.exists():
        raise UserError(
            f"{folder} exists but was not unpacked from {archive}: move or delete that folder and fetch again"
        )
    unpack(archive, folder, kind=file.unpack, sha256=file_sha256(archive))
    return folder


def _problem(file: ManifestFile, path: Path, data_dir: Path) -> tuple[str | None, str]:
    """What is wrong with ``path`` as this file (None: nothing), and its sha256 ("" if the size settled it)."""
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"it has {size} bytes, expected {file.bytes}", ""
    digest, expected = file_sha256(path), _expected(file, data_dir)
    if expected and not digest.startswith(expected):
        recorded = "" if file.sha256 else " as recorded on first use"
        return f"its sha256 is {digest}, expected {expected}{recorded}", digest
    return None, digest


def _expected(file: ManifestFile, data_dir: Path) -> str | None:
    """The sha256 to hold the file to: the manifest's, else the one recorded on first use."""
    if file.sha256:
        return file.sha256
    return read_lock(data_dir).get(file.path, {}).get("sha256")


def _record(file: ManifestFile, data_dir: Path, digest: str, *, source: str) -> None:
    """Record the hash of a first arrival; files with a published hash need none."""
    if not file.sha256 and file.path not in read_lock(data_dir):
        record(data_dir, file.path, sha256=digest, size=(data_dir / file.path).stat().st_size, source=source)


def record(data_dir: Path, name: str, *, sha256: str, size: int, source: str) -> None:
    """Enter a file, or a piece of one, in the lock file of ``data_dir``, by one rename."""
    lock = read_lock(data_dir)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lock[name] = {"sha256": sha256, "bytes": size, "source": source, "recorded": now}
    path = data_dir / LOCK_NAME
    with disk_errors(path):
        temporary = path.with_name(LOCK_NAME + ".new")
        temporary.write_text(json.dumps(lock, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def read_lock(data_dir: Path) -> dict[str, Any]:
    """What is recorded of each file, by its path in the manifest; UserError if the lock file is damaged."""
    path = data_dir / LOCK_NAME
    if not path.is_file():
        return {}
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        if all(len(entry["sha256"]) == 64 for entry in lock.values()):
            return lock
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or delete it to record the hashes anew") from error
    raise UserError(f"{path} is damaged (a sha256 without 64 digits): restore it, or delete it to record anew")


def _part(file: ManifestFile, data_dir: Path) -> Path:
    return data_dir / (file.path + ".part")


def say(message: str) -> None:
    """Tell the user what happens, without disturbing what a command prints as its result."""
    print(message, file=sys.stderr)  # a command's standard output may be JSON
