"""One process at a time trains in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from nbhelpers.core.errors import UserError
from nbhelpers.training.run import Run, writing

PATIENCE = 6.0  # seconds; the loader processes of a killed run notice its death after five


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the run folder; the operating system lets go of it when the process ends, however it ends.

    Raises:
        UserError: another process holds it, or the folder is read-only.
    """
    path = run.folder / ".lock"
    lock = FileLock(path)
    with writing(path):
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise UserError(
                f"another process is training in {run.folder}: wait for it, stop it, or choose another run name."
            ) from error
    try:
        yield
    finally:
        lock.release()
