"""The pictures of a run: its curves, what to look at while it trains, and all that a report shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nbhelpers.stages.rainfall_cvae.batches import Batch
from nbhelpers.stages.rainfall_cvae.calibration_figures import latent_figure, latent_use, rank_figure, spread_figure
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.drawing import WHO, colour_bar, tidy
from nbhelpers.stages.rainfall_cvae.drawn import draw_days
from nbhelpers.stages.rainfall_cvae.map_figures import day_fields, extremes_figure, show_fields, spectrum_figure
from nbhelpers.stages.rainfall_cvae.tail_figures import quantile_figure, quantile_tables, return_figure
from nbhelpers.training.task import Monitor

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.task import RainfallTask

TRAIN, VAL, KL = "#7f7f7f", WHO["model"], "#0072b2"
WARM_UP = "#f0e442"
HEADROOM = 0.12  # of the axis, above the curves for a line of the legend
BETA = "its weight β"
EXTREMES = "MAE of the median, extremes"
Lines = Mapping[str, tuple[str, str]]  # (label, colour) by column of the history


def panels(config: Config) -> dict[str, tuple[str, Lines]]:
    """Title -> unit and columns of each panel of the curves."""
    unit = "nats a pixel" if config.likelihood == "hurdle_gamma" else "mm/day"
    return {
        "loss": (
            unit,
            {
                "train_total": ("training, all terms", TRAIN),
                "val_loss": ("validation, l_rec + β l_kl", VAL),
                "val_l_rec": ("of which l_rec (has seen the day)", WHO["posterior"]),
            },
        ),
        "KL, unweighted": ("nats a land pixel", {"train_kl": ("training", TRAIN), "val_l_kl": ("validation", KL)}),
        BETA: ("mean over the epoch", {"train_weight_kl": ("β", KL)}),
        "fair CRPS": (
            "mm/day",
            {
                "val_crps": ("prior members", WHO["model"]),
                "val_posterior_crps": ("posterior (has seen the day)", WHO["posterior"]),
            },
        ),
        "MAE of the median": ("mm/day", {"val_mae_all": ("all land pixels", WHO["model"])}),
        EXTREMES: ("mm/day", {"val_mae_tail": ("truth at least P95", WHO["model"])}),
    }


def best_epoch(history: Sequence[Mapping[str, Any]], config: Config) -> int | None:
    """The epoch whose checkpoint is chosen: of those that count, the first with the lowest metric; None if none is."""
    monitor = Monitor(config.early_stopping_metric, "min", armed_after=config.armed)
    best: tuple[float, int] | None = None
    for row in history:
        value = row.get(f"val_{monitor.metric}")
        if row["epoch"] <= monitor.armed_after or value is None:
            continue
        if monitor.better(value, None if best is None else best[0]):
            best = value, row["epoch"]
    return None if best is None else best[1]


def history_figure(history: Sequence[Mapping[str, Any]], config: Config) -> Figure:
    """Losses, β and the scores of prior and posterior members over the epochs, with the warm-up and the best epoch."""
    figure = Figure(figsize=(12.0, 5.2), layout="constrained")
    _curves(figure, history, config, list(panels(config)), columns=3)
    return figure


def _curves(
    figure: Any, history: Sequence[Mapping[str, Any]], config: Config, titles: Sequence[str], *, columns: int
) -> None:
    known = panels(config)
    shown = [title for title in titles if any(_column(history, name) is not None for name in known[title][1])]
    axes = list(np.asarray(figure.subplots(-(-len(shown) // columns), columns, squeeze=False)).flat)
    for one, title in zip(axes, shown, strict=False):
        unit, lines = known[title]
        drawn = {name: values for name in lines if (values := _column(history, name)) is not None}
        for name, values in drawn.items():
            label, colour = lines[name]
            style = "o--" if name == "val_l_rec" else "o-"  # lies on the loss where the KL is small
            one.plot([row["epoch"] for row in history], values, style, ms=3, lw=1.3, color=colour, label=label)
        tidy(one, title, "epoch", unit)
        one.legend(fontsize=6.5, loc="lower right" if title == BETA else "upper right")
        low, high = one.get_ylim()
        one.set_ylim(low, high + HEADROOM * len(drawn) * (high - low))
        if title == BETA:
            one.set_ylim(0, 1.05 * max(*drawn["train_weight_kl"], config.beta_kl, 1e-9))
        marks = _marks(one, history, config)
        one.set_xlim(0, max(history[-1]["epoch"], 1) + 0.5)
        one.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for one in axes[len(shown) :]:
        one.axis("off")
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3, fontsize=7, frameon=False)


def _column(history: Sequence[Mapping[str, Any]], name: str) -> list[float] | None:
    """A column with NaN where it is empty; None where there is nothing at all."""
    values = [row.get(name) for row in history]
    if all(value is None for value in values):
        return None
    return [np.nan if value is None else float(value) for value in values]


def _marks(axes: Axes, history: Sequence[Mapping[str, Any]], config: Config) -> dict[str, Artist]:
    """The warm-up, where checkpoints begin to count, and the best epoch; each by what it is called."""
    marks: dict[str, Artist] = {}
    if config.d_z and config.warmup_epochs:
        marks["warm-up of β"] = axes.axvspan(0, config.warmup_epochs, color=WARM_UP, alpha=0.25, lw=0)
    marks[f"checkpoints count after epoch {config.armed}"] = axes.axvline(config.armed, color="#555", lw=1.2, ls=":")
    if (best := best_epoch(history, config)) is not None:
        name = f"best {config.early_stopping_metric} that counts: epoch {best}"
        marks[name] = axes.axvline(best, color=WHO["oracle"], lw=1.2, ls="--")
    return marks


def live_figure(task: RainfallTask, history: Sequence[Mapping[str, Any]], batch: Batch) -> Figure:
    """What to look at while training: the curves, and members of one validation day beside what was observed.

    Args:
        batch: of :func:`~nbhelpers.stages.rainfall_cvae.drawn.fixed_sample`; its first day is drawn, on a scale that
            the observed rain decides, so that epochs compare.
    """
    height, width = task.days.shape
    row = 2.0 * height / width + 0.7
    figure = Figure(figsize=(12.0, 2.9 + row), layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(2.9, row)))
    _curves(top, history, task.config, ("loss", "fair CRPS", EXTREMES, "KL, unweighted"), columns=4)
    fields = {name: each[0] for name, each in day_fields(task, batch, members=3).items()}
    axes = bottom.subplots(1, len(fields))
    image = show_fields(axes, task, fields, float(np.nanmax(fields["observed"])))
    colour_bar(bottom, image, axes, "rain, mm/day")
    axes[0].set_ylabel(f"{task.days.dates[batch.days[0]]} (validation)", fontsize=8)
    bottom.suptitle(f"after epoch {history[-1]['epoch']}; mean and greatest value over land, mm/day", fontsize=9)
    return figure


def report_figures(
    task: RainfallTask, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Figure]]:
    """The figures of a run's report, by file name.

    Fields, quantiles, return levels and spectra are of members that are drawn anew for some of the scored days; ranks,
    spread and error are those of the report.
    """
    split = report["data"]["scored_split"]
    yield "extremes", extremes_figure(task, split=split)
    drawn = draw_days(task, split=split)
    yield "quantiles", quantile_figure(quantile_tables(task, drawn), title=f"{len(drawn.days)} {split} days")
    yield "return_levels", return_figure(task, drawn)
    yield "spectrum", spectrum_figure(task, drawn)
    for name, figure in (("ranks", rank_figure(report)), ("spread", spread_figure(report))):
        if figure is not None:
            yield name, figure
    if task.config.d_z and len(task.scored("val")) > 1:
        yield "latent", latent_figure(latent_use(task))
    if history:
        yield "history", history_figure(history, task.config)
