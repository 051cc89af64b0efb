"""Cost at equal error as a table and as a picture."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from nbhelpers.stages.neural_operator.cost import Cost

MODEL, SOLVER = "#c0392b", "#17202a"


def cost_table(cost: Cost) -> list[list[str]]:
    """Rows of text, header first: the model, and the solver from coarse to fine, the one at equal error marked."""
    steps = len(cost.model.error)
    rows = [["", "time step", "mean relative L2", f"at step {steps}", "ms a run", "times the model's"]]
    for row in (cost.model, *cost.solvers):
        rows.append(
            [
                row.name + (" (equal error)" if row is cost.rival else ""),
                "" if row.dt is None else f"{row.dt:.3g}",
                f"{row.mean_error:.3g}",
                f"{row.error[-1]:.3g}",
                f"{1e3 * row.seconds:.3g}",
                "" if row.size is None else f"{row.seconds / cost.model.seconds:.3g}",
            ]
        )
    return rows


def cost_figure(cost: Cost) -> Figure:
    """Mean error of the rollouts against the time of a run: the solver from coarse to fine, the model a star.

    A model left of the solver's line, or below it, is better than the solver.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    x, y = [1e3 * row.seconds for row in cost.solvers], [row.mean_error for row in cost.solvers]
    axes.plot(x, y, "o-", color=SOLVER, ms=5, lw=1.2, label="solver")
    for row in cost.solvers:
        assert row.size is not None
        label = f"{row.size[0]} x {row.size[1]}"
        axes.annotate(label, (1e3 * row.seconds, row.mean_error), (6, 5), textcoords="offset points", fontsize=7)
    model = cost.model
    axes.plot(1e3 * model.seconds, model.mean_error, "*", color=MODEL, ms=15, label="model", zorder=3)
    axes.axhline(model.mean_error, color=MODEL, lw=0.8, ls=":")
    if cost.rival is not None:
        at = 1e3 * cost.rival.seconds, cost.rival.mean_error
        axes.plot(*at, "o", ms=13, mew=1.3, mfc="none", color=MODEL, label="solver at equal error")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(
        f"milliseconds a run of {len(model.error)} steps, {cost.batch_size} at once on {cost.device}", fontsize=8
    )
    axes.set_ylabel("relative L2 error, mean over the steps", fontsize=8)
    axes.tick_params(labelsize=7, which="both")
    axes.grid(alpha=0.25, which="both")
    axes.margins(0.12)
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)
    return figure
