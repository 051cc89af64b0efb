"""The ledger as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

ALPHA = 0.8
SHARES = {"value_share": "share of the loss value", "grad_share": "share of the gradient"}


def ledger_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Value share and gradient share of every term over the steps of a run, from the rows of ledger.csv.

    One line of panels for each optimizer, because shares are shares of one optimizer's loss. An optimizer with one term
    has nothing to share and no panel, unless it is the only one. Where a phase begins there is a vertical line.
    """
    by_optimizer: dict[str | None, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_optimizer.setdefault(row.get("optimizer"), []).append(row)
    shared = {name: mine for name, mine in by_optimizer.items() if len({row["term"] for row in mine}) > 1}
    shown = shared or dict([*by_optimizer.items()][:1]) or {None: []}
    figure = Figure(figsize=(9.0, 2.8 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 2, sharey=True, sharex=True, squeeze=False)
    phases = list(dict.fromkeys(row.get("phase") for row in rows))
    for line, (optimizer, mine) in zip(axes, shown.items(), strict=True):
        terms = list(dict.fromkeys(row["term"] for row in mine))
        for one, (key, title) in zip(line, SHARES.items(), strict=True):
            for phase in phases:  # one by one: between the last probe of one and the first of the next is nothing
                _stack(one, [row for row in mine if row.get("phase") == phase], terms, key)
                if phase != phases[0]:
                    begin = min(row["step"] for row in rows if row.get("phase") == phase)
                    one.axvline(begin, color="black", linewidth=1, linestyle="--")
                    one.text(begin, 0.99, f" {phase}", fontsize=7, va="top")
            one.set_title(title if len(by_optimizer) == 1 else f"{optimizer}: {title}", fontsize=9)
            one.set_xlabel("step", fontsize=8)
            one.tick_params(labelsize=7, labelbottom=True)
            one.set_ylim(0, 1)
            one.margins(x=0)
        patches = [Patch(color=f"C{number % 10}", alpha=ALPHA) for number in range(len(terms))]
        line[0].legend(patches, terms, fontsize=7, loc="center right")
    return figure


def _stack(axes: Axes, rows: Sequence[Mapping[str, Any]], terms: Sequence[str], key: str) -> None:
    """The shares of one phase, terms in the colours of their places in ``terms``."""
    here = [term for term in terms if any(row["term"] == term for row in rows)]
    steps = np.array(sorted({row["step"] for row in rows}))
    by_step = {(row["term"], row["step"]): row[key] for row in rows}
    shares = [[by_step.get((term, step), 0.0) for step in steps] for term in here]
    colors = [f"C{terms.index(term) % 10}" for term in here]
    if here:
        axes.stackplot(steps, shares, colors=colors, alpha=ALPHA)
