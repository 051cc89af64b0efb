"""What a run's ledger amounts to: medians by phase, optimizer and term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from nbhelpers.training.ledger import LEDGER_EVERY, LEDGER_FIRST

MEDIANS = ("raw", "weight", "value_share", "grad_share", "cosine_to_total")
# Of rare-event terms: the median of the weight they really act with, where a batch has events, and the mean of how many
# of its samples have any.
RARE = ("effective_weight", "events")
Rows = Sequence[Mapping[str, Any]]


def settled_step(history_rows: Rows) -> int:
    """The step from which on a loss scheduler's weights are those of the run's end; 0 without one."""
    weights = [{key: value for key, value in row.items() if key.startswith("schedule_")} for row in history_rows]
    step = 0
    for row, now, after in zip(history_rows, weights, weights[1:], strict=False):
        if after != now:
            step = row["step"]
    return step


def ledger_summary(rows: Rows, *, since: int = 0) -> dict[str, dict[str, float]]:
    """Medians by term over the last phase of a run: what the weights that are judged were trained with.

    Args:
        since: the step from which on the weights are those that the run is judged with.
    """
    found = ledger_by_phase(rows, since=since)
    last = found[-1]["phase"] if found else None
    return {
        entry["term"]: {key: entry[key] for key in (*MEDIANS, *RARE) if key in entry}
        for entry in found
        if entry["phase"] == last
    }


def ledger_by_phase(rows: Rows, *, since: int = 0) -> list[dict[str, Any]]:
    """Medians over each phase of what each term of each optimizer contributed.

    The first probe of each, of a model that has not learnt from the term yet, is left out. In a ledger that an earlier
    version wrote, phase and optimizer are None.
    """
    found: dict[tuple[str | None, str | None, str], list[Mapping[str, Any]]] = {}
    by_phase: dict[str | None, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["step"] >= since:
            by_phase.setdefault(row.get("phase"), []).append(row)
    for phase, mine in by_phase.items():
        if mine[-1]["step"] - mine[0]["step"] >= 10 * LEDGER_FIRST:  # else the dense beginning would be most of it
            mine = [row for row in mine if row["step"] % LEDGER_EVERY == 0]
        for row in mine:
            found.setdefault((phase, row.get("optimizer"), row["term"]), []).append(row)
    return [
        {"phase": phase, "optimizer": optimizer, "term": term}
        | {key: float(median(row[key] for row in (mine[1:] or mine))) for key in MEDIANS}
        | _rare(mine[1:] or mine)
        for (phase, optimizer, term), mine in found.items()
    ]


def _rare(rows: Rows) -> dict[str, float]:
    """What rare-event terms have beside the medians; nothing for other terms, or in an earlier version's rows."""
    events = [row["events"] for row in rows if row.get("events") is not None]
    if not events:
        return {}
    weights = [row["effective_weight"] for row in rows if row.get("events")]
    return {"effective_weight": float(median(weights or [0.0])), "events": float(mean(events))}


def ledger_rows(found: Rows) -> list[list[str]]:
    """Rows of text, header first, of what :func:`ledger_by_phase` gives; columns with one value only are left out."""
    named = [key for key in ("phase", "optimizer") if len({entry[key] for entry in found}) > 1] + ["term"]
    shown = [*MEDIANS, *(key for key in RARE if any(key in entry for entry in found))]
    cells = [[f"{entry[key]:.4g}" if key in entry else "–" for key in shown] for entry in found]
    return [
        [*named, *shown],
        *([*(str(entry[key]) for key in named), *row] for entry, row in zip(found, cells, strict=True)),
    ]
