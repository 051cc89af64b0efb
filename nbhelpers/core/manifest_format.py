"""The format of a data manifest: dataclasses, and the reader that refuses a wrong file with one clear sentence.

``data_manifests/README.md`` describes the JSON. The manifests are data of this package (``nbhelpers.data_manifests``,
mapped from the folder ``data_manifests/`` of the repository), and any other JSON file of that form can be loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from nbhelpers.core.download import GDRIVE
from nbhelpers.core.errors import UserError
from nbhelpers.core.unpack import SUFFIXES, Kind, escapes

LOCK_NAME = "manifest.lock.json"  # in the data folder; no file of a manifest may have this path

_TEXTS = ("name", "title", "description", "licence", "citation")
_FILE_KEYS = ("path", "bytes", "sha256", "mirrors", "unpack")


@dataclass(frozen=True)
class ManifestFile:
    """One file of a data set."""

    path: str  # destination relative to the data folder, with forward slashes
    mirrors: tuple[str, ...]  # http(s):// or gdrive:<id>, tried in this order
    bytes: int | None = None  # size, if published
    sha256: str | None = None  # lower-case hex: all 64 digits, or the published first ones (at least 8)
    unpack: Kind | None = None  # unpack the archive into the folder named like it, without its suffix

    @property
    def folder(self) -> str | None:
        """Where the archive is unpacked to, relative to the data folder; None for a plain file."""
        return _without_suffix(self.path, self.unpack) if self.unpack else None


@dataclass(frozen=True)
class Manifest:
    """A data set: what it is, on what terms, and its files."""

    name: str  # lower case with hyphens, as the file is called
    title: str  # a few words for tables
    description: str  # what the files hold, for which stage
    licence: str  # SPDX identifier or the terms in a sentence
    citation: str  # what to cite
    files: tuple[ManifestFile, ...]
    range_mirrors: tuple[str, ...] = ()  # base addresses of further files, of which pieces are fetched by HTTP Range


def list_manifests() -> list[str]:
    """Names of the manifests that come with the package, sorted."""
    return sorted(_packaged())


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Read a manifest by the name of a packaged one (``"sevir"``) or from a path that ends in ``.json``.

    Raises UserError if there is no such manifest, or if it is not in the format of ``data_manifests/README.md``:
    unknown or missing key, absolute path or ``..``, malformed sha256, no mirror, two files at one place.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        texts = _packaged()
        if str(name_or_path) not in texts:
            raise UserError(
                f"there is no data manifest {str(name_or_path)!r}: choose one of {', '.join(sorted(texts))}, "
                "or give the path of a .json file"
            )
        return _parse(texts[str(name_or_path)], where=f"manifest {name_or_path}", name=str(name_or_path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the data manifest {path} cannot be read ({error}): correct the path") from error
    return _parse(text, where=str(path), name=path.stem)


def _packaged() -> dict[str, str]:
    """JSON texts of the packaged manifests by name."""
    try:
        shelf = resources.files("nbhelpers.data_manifests")
    except ModuleNotFoundError:  # a checkout on sys.path, not installed: setup.cfg's mapping is not in force
        shelf = Path(__file__).resolve().parents[2] / "data_manifests"
    found = [entry for entry in shelf.iterdir() if entry.name.endswith(".json")]
    return {entry.name.removesuffix(".json"): entry.read_text(encoding="utf-8") for entry in found}


def _parse(text: str, *, where: str, name: str) -> Manifest:
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON (line {error.lineno}: {error.msg}): correct that line") from error
    _check_keys(raw, where, required=(*_TEXTS, "files"), optional=("range_mirrors",))
    for key in _TEXTS:
        if not isinstance(raw[key], str) or not raw[key].strip():
            raise UserError(f"{where} has {raw[key]!r} as {key!r}: it must be a text")
    if raw["name"] != name or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UserError(
            f"{where} calls itself {raw['name']!r}: the name must be that of its file, lower case with hyphens"
        )
    if not isinstance(raw["files"], list) or not raw["files"]:
        raise UserError(f"{where} has no list of at least one file under 'files'")
    files = tuple(_parse_file(entry, f"{where}, files[{index}]") for index, entry in enumerate(raw["files"]))
    _check_apart(files, where)
    bases = _parse_bases(raw.get("range_mirrors", []), where)
    return Manifest(raw["name"], raw["title"], raw["description"], raw["licence"], raw["citation"], files, bases)


def _parse_file(raw: Any, where: str) -> ManifestFile:
    _check_keys(raw, where, required=("path", "mirrors"), optional=_FILE_KEYS)
    path, size, sha256, unpack = raw["path"], raw.get("bytes"), raw.get("sha256"), raw.get("unpack")
    if not isinstance(path, str) or not path or escapes(path) or path != str(PurePosixPath(path)) or "\\" in path:
        raise UserError(
            f"{where} has the path {path!r}: it must be relative to the data folder, with forward slashes and no '..'"
        )
    if path == LOCK_NAME or path.endswith(".part"):
        raise UserError(f"{where} has the path {path!r}, which downloads use themselves: choose another name")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise UserError(f"{where} has {size!r} as 'bytes': it must be the size as a whole number, or null")
    if sha256 is not None and (not isinstance(sha256, str) or not re.fullmatch("[0-9a-fA-F]{8,64}", sha256)):
        raise UserError(
            f"{where} has {sha256!r} as 'sha256': it must be hex digits, all 64 or the 8 or more first ones, or null"
        )
    if unpack is not None and (unpack not in SUFFIXES or _without_suffix(path, unpack) is None):
        endings = ", ".join(SUFFIXES["zip"] + SUFFIXES["tar"])
        raise UserError(
            f"{where} has {unpack!r} as 'unpack' for {path!r}: it must be null, 'zip' or 'tar', and the path must end "
            f"accordingly ({endings})"
        )
    return ManifestFile(path, _parse_mirrors(raw["mirrors"], where), size, sha256.lower() if sha256 else None, unpack)


def _parse_mirrors(raw: Any, where: str) -> tuple[str, ...]:
    if not isinstance(raw, list) or not raw:
        raise UserError(f"{where} has no mirrors: give at least one http(s) address or 'gdrive:<id>'")
    for mirror in raw:
        web = isinstance(mirror, str) and _is_web(mirror)
        drive = isinstance(mirror, str) and re.fullmatch(GDRIVE + r"[\w-]+", mirror)
        if not (web or drive):
            raise UserError(f"{where} has the mirror {mirror!r}: it must be an http(s) address or 'gdrive:<id>'")
    return tuple(raw)


def _parse_bases(raw: Any, where: str) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise UserError(f"{where} has {raw!r} as 'range_mirrors': it must be a list of http(s) addresses")
    for base in raw:
        if not (isinstance(base, str) and _is_web(base) and base.endswith("/")):
            raise UserError(f"{where} has the range mirror {base!r}: it must be an http(s) address that ends in '/'")
    return tuple(raw)


def _is_web(address: str) -> bool:
    return urlsplit(address).scheme in ("http", "https") and bool(urlsplit(address).netloc)


def _check_keys(raw: Any, where: str, *, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    if not isinstance(raw, Mapping):
        raise UserError(f"{where} must be a JSON object with the keys {', '.join(required)}, not {raw!r:.60}")
    unknown = sorted(set(raw) - {*required, *optional})
    if unknown:
        raise UserError(f"{where} has the unknown key {unknown[0]!r}: known are {', '.join((*required, *optional))}")
    missing = [key for key in required if key not in raw]
    if missing:
        raise UserError(f"{where} lacks the key {missing[0]!r}: add it (data_manifests/README.md)")


def _check_apart(files: tuple[ManifestFile, ...], where: str) -> None:
    """No two files, and no file and an unpacked folder, at one place or inside one another."""
    taken: set[str] = set()
    for place in sorted([file.path for file in files] + [file.folder for file in files if file.folder]):
        for other in (place, *map(str, PurePosixPath(place).parents)):  # parents sort before what they hold
            if other in taken:
                raise UserError(f"{where} puts {place!r} where {other!r} is: give every file a place of its own")
        taken.add(place)


def _without_suffix(path: str, kind: Kind) -> str | None:
    for suffix in sorted(SUFFIXES[kind], key=len, reverse=True):
        if path.lower().endswith(suffix) and len(PurePosixPath(path).name) > len(suffix):
            return path[: -len(suffix)]
    return None
