"""The ledger as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def ledger_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Value share and gradient share of every term over the steps of a run, from the rows of ledger.csv."""
    figure = Figure(figsize=(9.0, 2.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    terms = list(dict.fromkeys(row["term"] for row in rows))
    steps = np.array(sorted({row["step"] for row in rows}))
    titles = {"value_share": "share of the loss value", "grad_share": "share of the gradient"}
    for one, (key, title) in zip(axes, titles.items(), strict=True):
        by_step = {(row["term"], row["step"]): row[key] for row in rows}
        shares = [[by_step.get((term, step), 0.0) for step in steps] for term in terms]
        one.stackplot(steps, shares, labels=terms, alpha=0.8)
        one.set_title(title, fontsize=9)
        one.set_xlabel("step", fontsize=8)
        one.tick_params(labelsize=7)
        one.set_ylim(0, 1)
        one.margins(x=0)
    axes[0].legend(fontsize=7, loc="center right")
    return figure
