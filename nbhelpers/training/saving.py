"""When a checkpoint is due, what is written before it, and its copy in the second folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from nbhelpers.training import checkpoint, history, mirror
from nbhelpers.training.guards.guard import Finding
from nbhelpers.training.run import Run


class Saver:
    """Writes a run's checkpoints.

    Args:
        minutes: at least so often one is due.
    """

    def __init__(self, run: Run, *, minutes: float):
        self._run, self._seconds = run, 60 * minutes
        self._last = time.monotonic()
        self.ledger_rows: list[dict[str, Any]] = []  # written with the next checkpoint

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds

    def save(
        self,
        step: int,
        modules: Mapping[str, nn.Module],
        state: Mapping[str, Any],
        *,
        best: bool,
        ranked: Mapping[int, float] | None,
        epoch: int | None,
    ) -> None:
        """Ledger rows first: a resume cuts them back to the checkpoint it finds."""
        history.append_rows(self._run.ledger_file, self.ledger_rows)
        self.ledger_rows = []
        checkpoint.save(self._run, step=step, modules=modules, state=state, best=best, ranked=ranked, epoch=epoch)
        self._last = time.monotonic()

    def copy_problem(self, step: int) -> Finding | None:
        """Bring the copy up to date; says what went wrong, because training need not stop for it."""
        if self._run.copy_dir is None:
            return None
        try:
            mirror.push(self._run, self._run.copy_dir)
        except mirror.CopyError as error:
            return Finding(
                "second_folder",
                "warn",
                step,
                str(error),
                "the run is saved on this machine only",
                "Mend it while the run goes on: the next checkpoint is copied again.",
            )
        return None
