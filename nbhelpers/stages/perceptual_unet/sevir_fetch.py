"""Fetching chosen events of SEVIR instead of whole files: the catalogue, and of each event its bytes by HTTP Range.

An event is one contiguous block of its HDF5 file. Where it begins is read from the file's own header, through h5py
and a few blocks of the remote file; the file's ``id`` at that place must be the one that the catalogue gives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import h5py
import numpy as np
from tqdm.auto import tqdm

from nbhelpers.core.disk import check_room, disk_errors, file_sha256, human_bytes
from nbhelpers.core.download import discard, download, leftovers
from nbhelpers.core.errors import UserError
from nbhelpers.core.http_answers import MirrorError
from nbhelpers.core.manifest import KAGGLE_INPUT, fetch, find_named, read_lock, record, say
from nbhelpers.core.manifest_format import LOCK_NAME, Manifest
from nbhelpers.core.remote_file import RemoteFile
from nbhelpers.stages.perceptual_unet import sevir_subset as subset
from nbhelpers.stages.perceptual_unet.data import CATALOGUE_NAMES, IMG_TYPE, TEST_FROM
from nbhelpers.stages.perceptual_unet.sevir_choice import RemoteEvent, choose, complete_events

_HDF5_ERRORS = (OSError, KeyError, RuntimeError, ValueError)  # which of them a bad header raises depends on the place


@dataclass
class Traffic:
    """Bytes that came over the network, those of repeated attempts included."""

    catalogue: int = 0  # the full catalogue
    headers: int = 0  # blocks of the HDF5 files read to find the events
    events: int = 0  # the events themselves


@dataclass(frozen=True)
class Fetched:
    """What :func:`fetch_events` did, in one line when printed."""

    catalogue: Path  # of the events in the folder
    n_train: int  # events in the folder before the official test date (for training and validation)
    n_test: int  # and from it on
    n_new: int  # how many of them this call added
    traffic: Traffic  # bytes transferred by this call

    def __str__(self) -> str:
        sent = self.traffic
        return (
            f"{self.n_train + self.n_test} events ({self.n_train} before {TEST_FROM.date()}, {self.n_test} from it on; "
            f"{self.n_new} new) in {self.catalogue.parent}: transferred {human_bytes(sent.events)} of events, "
            f"{human_bytes(sent.headers)} of file headers, {human_bytes(sent.catalogue)} of catalogue."
        )


def fetch_events(
    manifest: Manifest,
    data_dir: str | Path,
    n_events: int,
    *,
    progress: bool = True,
    kaggle_input: Path = KAGGLE_INPUT,
) -> Fetched:
    """Make a SEVIR folder of ``n_events`` chosen events in ``data_dir``; one process at a time.

    Which events: see :func:`sevir_choice.choose`. Those that are there already are checked and kept, also where fewer
    are asked for now. Whatever interrupts it, the next call goes on at that byte, and the folder stays readable.

    Parameters
    ----------
    manifest: names the catalogue (its file ``CATALOG.csv``) and the ``range_mirrors`` of the HDF5 files.
    data_dir: a new folder, or one that an earlier call has made.
    kaggle_input: folder searched for the whole HDF5 files before the network, used if it exists.

    Raises
    ------
    UserError
        impossible ``n_events``; a folder with other data; too little room; no mirror delivers the catalogue or an
        event (files that changed, are not SEVIR's layout or hold another event than the catalogue says included);
        bytes that differ from those once recorded.
    """
    data_dir, traffic = Path(data_dir), Traffic()
    if not manifest.range_mirrors:
        raise UserError(f"manifest {manifest.name} has no 'range_mirrors': fetch its files whole, without events.")
    if data_dir.is_dir():
        subset.check_folder(data_dir)

    def count_catalogue(n: int) -> None:
        traffic.catalogue += n

    (full,) = fetch(
        manifest,
        data_dir / subset.FULL_FOLDER,
        only=[CATALOGUE_NAMES[0]],
        progress=progress,
        kaggle_input=kaggle_input,
        on_bytes=count_catalogue,
    )
    events = complete_events(full)
    chosen = choose(events, n_events)
    subset.check_stored(data_dir, events, progress=progress)
    subset.clear(data_dir)
    stored = set(subset.stored_ids(data_dir))
    missing = [event for event in chosen if event.id not in stored]
    _check_room(missing, data_dir, n_stored=len(stored))
    _collect(manifest, missing, data_dir, traffic, progress=progress, kaggle_input=kaggle_input)
    if missing:
        subset.add_events(data_dir, missing)
    catalogue = subset.write_catalogue(data_dir, {key: event.row for key, event in events.items()})
    subset.clear(data_dir)
    here = [events[key].is_test for key in subset.stored_ids(data_dir)]
    return Fetched(catalogue, len(here) - sum(here), sum(here), len(missing), traffic)


def _check_room(missing: Sequence[RemoteEvent], data_dir: Path, *, n_stored: int) -> None:
    """Parts, and the new file beside the old one, before the first byte of an event."""
    if missing:
        parts = [path for event in missing for path in leftovers(subset.part_of(data_dir, event.id))]
        here = sum(path.stat().st_size for path in parts)
        needed = (2 * len(missing) + n_stored) * missing[0].n_bytes - here + 2**20
        check_room(data_dir, needed, f"fetching {len(missing)} events")


def _collect(
    manifest: Manifest,
    missing: Sequence[RemoteEvent],
    data_dir: Path,
    traffic: Traffic,
    *,
    progress: bool,
    kaggle_input: Path,
) -> None:
    """Bring the bytes of the ``missing`` events into their parts, file by file."""
    pending: dict[str, list[RemoteEvent]] = defaultdict(list)
    for event in missing:
        if not _has_arrived(event, data_dir):
            pending[event.file_name].append(event)
    attached = find_named({Path(name).name for name in pending}, kaggle_input)
    total = sum(event.n_bytes for group in pending.values() for event in group)
    quiet = not progress or not pending
    with tqdm(total=total, unit="B", unit_scale=True, desc="events", disable=quiet, dynamic_ncols=True) as bar:

        def count_event(n: int) -> None:
            traffic.events += n
            bar.update(n)

        def count_header(n: int) -> None:
            traffic.headers += n

        for file_name, group in pending.items():
            with disk_errors(data_dir / subset.PARTS_FOLDER):
                (data_dir / subset.PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
            if _from_attached(attached[Path(file_name).name], group, data_dir, bar.update):
                continue
            failures = []
            for base in manifest.range_mirrors:
                try:
                    _from_mirror(base + quote(file_name), group, data_dir, count_header, count_event)
                    break
                except MirrorError as error:
                    failures.append(f"{base}: {error}")
                    say(f"{file_name}: {failures[-1]}")
            else:
                raise UserError(
                    f"{len(group)} events of {file_name} could not be fetched into {data_dir} ({'; '.join(failures)}): "
                    "check the connection and run again, what has arrived is kept; or attach that whole file on Kaggle."
                )


def _has_arrived(event: RemoteEvent, data_dir: Path) -> bool:
    part, expected = subset.part_of(data_dir, event.id), _recorded(event, data_dir)
    whole = part.is_file() and part.stat().st_size == event.n_bytes
    return whole and expected is not None and file_sha256(part) == expected


def _from_mirror(
    url: str,
    events: Sequence[RemoteEvent],
    data_dir: Path,
    count_header: Callable[[int], None],
    count_event: Callable[[int], None],
) -> None:
    """Bring ``events`` from one remote file; MirrorError if it does not deliver them."""
    with RemoteFile(url, on_bytes=count_header) as remote:
        try:
            with h5py.File(remote, "r") as file:
                offset = _checked(file, events).id.get_offset()
        except _HDF5_ERRORS as error:
            raise MirrorError(f"its header cannot be read as HDF5 ({error})") from error
        if offset is None:
            raise MirrorError(f"its {IMG_TYPE!r} is not contiguous, so that no event is one piece of the file")
        for event in events:
            span = remote.span(offset + event.index * event.n_bytes, event.n_bytes)
            part = subset.part_of(data_dir, event.id)
            while True:  # as often as a continued part may turn out wrong: once
                continued, known = bool(leftovers(part)), _recorded(event, data_dir) is not None
                download(url, part, size=None, hash_known=known, span=span, progress=False, on_bytes=count_event)
                try:
                    _settle(event, data_dir, source=f"{url} bytes {span.first}-{span.first + span.length - 1}")
                    break
                except MirrorError:
                    discard(part)
                    if not continued:
                        raise


def _from_attached(
    candidates: Sequence[Path], events: Sequence[RemoteEvent], data_dir: Path, count: Callable[[int], object]
) -> bool:
    """Take ``events`` from the first attached file that holds them; says why one that looks like it does not."""
    for path in candidates:
        try:
            with h5py.File(path, "r") as file:
                vil = _checked(file, events)
                for event in events:
                    part = subset.part_of(data_dir, event.id)
                    discard(part)
                    with disk_errors(part):
                        part.write_bytes(vil[event.index].tobytes())
                    _settle(event, data_dir, source=str(path))
                    count(event.n_bytes)
            return True
        except (MirrorError, *_HDF5_ERRORS) as error:
            say(f"{path} is not used: {error}")
    return False


def _checked(file: h5py.File, events: Sequence[RemoteEvent]) -> h5py.Dataset:
    """The frames in an HDF5 file of SEVIR; MirrorError unless it holds ``events`` where the catalogue says.

    Of the ids only those are read that matter, and none of the frames.
    """
    vil, ids = file.get(IMG_TYPE), file.get("id")
    if not isinstance(vil, h5py.Dataset) or vil.dtype != np.uint8 or vil.ndim != 4:
        raise MirrorError(f"it has no {IMG_TYPE!r} of uint8 with four axes")
    if not isinstance(ids, h5py.Dataset) or ids.shape != vil.shape[:1]:
        raise MirrorError(f"it has no 'id' for each of the {vil.shape[0]} events")
    for event in events:
        if event.index >= vil.shape[0] or vil.shape[1:] != event.shape:
            raise MirrorError(
                f"it holds {vil.shape[0]} events of {vil.shape[1:]} (height, width, frames) where the catalogue has "
                f"{event.id} of {event.shape} at index {event.index}"
            )
        found = ids[event.index]
        name = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
        if name != event.id:
            raise MirrorError(f"it holds event {name} at index {event.index} where the catalogue has {event.id}")
    return vil


def _settle(event: RemoteEvent, data_dir: Path, *, source: str) -> None:
    """Record the sha256 of an event that has arrived, or hold it to the record."""
    digest, expected = file_sha256(subset.part_of(data_dir, event.id)), _recorded(event, data_dir)
    if expected is None:
        record(data_dir, subset.lock_name(event.id), sha256=digest, size=event.n_bytes, source=source)
    elif digest != expected:
        raise MirrorError(
            f"event {event.id} has sha256 {digest}, expected {expected} as recorded earlier (if the new bytes are the "
            f"right ones, remove its entry from {data_dir / LOCK_NAME})"
        )


def _recorded(event: RemoteEvent, data_dir: Path) -> str | None:
    return read_lock(data_dir).get(subset.lock_name(event.id), {}).get("sha256")
