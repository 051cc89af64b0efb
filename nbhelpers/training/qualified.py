"""Whether any epoch of a phase qualified as the best, by what history.csv has of the monitored metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbhelpers.training.task import Monitor

Row = Mapping[str, Any]


def none_qualified(
    rows: Sequence[Row], phase: str, monitor: Monitor, step: int | None, *, several: bool = False
) -> str:
    """One sentence where the monitored metric is undefined in every epoch of a phase that could be its best; else "".

    The newest checkpoint then stands in for the best one, so that there is something to go on with and to ship.

    Args:
        rows: of history.csv.
        step: of the checkpoint that is called the best; None where there is none.
        several: whether the run has other phases, so that this one is to be named.
    """
    tried = _tried(rows, phase, monitor)
    if not tried or step is None or any(_is_defined(row.get(f"val_{monitor.metric}")) for row in tried):
        return ""
    of = f" of phase {phase!r}" if several else ""
    epoch = epoch_of(rows, step)
    which = f"step {step}" if epoch is None else f"epoch {epoch} (step {step})"
    return (
        f"No epoch{of} qualified as the best: val_{monitor.metric} is undefined in all of them ({len(tried)}). The "
        f"newest stands in for it: {which}."
    )


def epoch_of(rows: Sequence[Row], step: int | None) -> int | None:
    """The epoch that ended with ``step``; None where none did."""
    return next((row["epoch"] for row in rows if row["step"] == step), None)


def _tried(rows: Sequence[Row], phase: str, monitor: Monitor) -> list[Row]:
    """The epochs of a phase among which the best is chosen: after its warm-up, and under the loss weights it ends with.

    What was best under other weights is forgotten when they move.
    """
    armed = [row for row in rows if row["phase"] == phase][monitor.armed_after :]
    return [row for row in armed if _loss_weights(row) == _loss_weights(armed[-1])]


def _loss_weights(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.startswith("schedule_")}


def _is_defined(value: float | None) -> bool:
    return value is not None and value == value
