"""The pictures of the stage: tiles before and after beside the truth, scores beside baselines, and curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.science.sar_agreement import optical_edges, sar_edges
from nbhelpers.stages.sar_grounding.batches import Batch, loader
from nbhelpers.stages.sar_grounding.layout import NIR, RED, RGB

if TYPE_CHECKING:
    from nbhelpers.stages.sar_grounding.task import GroundingTask

SHOWN = 4  # tiles in a figure
WHITE = 0.25  # reflectance that is white in a picture, unless the tile is brighter
MAP_SCALE = 1  # of the edges of the agreement map, among the scales of the score
MAP_BLUR = 9  # pixels over which products of edges are averaged
COLOURS = {
    "model": "#0072b2", "opt_v2": "#d55e00", "recoloured": "#009e73", "sar_shuffled": "#e69f00",
    "sar_zeroed": "#cc79a7", "truth": "#333333",
}  # fmt: skip
OTHER_COLOURS = ("#56b4e9", "#999999", "#8c564b")  # of rows of a report that have none here
NAMES = {
    "model": "opt_v3", "recoloured": "opt_v2, colours fitted", "sar_shuffled": "SAR of another tile",
    "sar_zeroed": "SAR flat",
}  # fmt: skip
FAR = ("mean",)  # rows that are not drawn: beside them all others would be one point
NO_TERMS = ("train_total", "train_prediction_min", "train_prediction_max", "train_skill")  # columns of a history
Array = NDArray[np.float32]


def report_figures(
    task: GroundingTask, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Figure]]:
    """Named figures of a finished run."""
    yield "tiles", tiles_figure(task, examples(task, "test"))
    yield "scores", scores_figure(report)
    yield "curves", curves_figure(task, history)


def examples(task: GroundingTask, split: str, most: int = SHOWN) -> Batch:
    """Tiles of as many blocks of a split, evenly spaced, the same in every call."""
    tiles = task.tiles
    first: dict[str, str] = {}
    for name in tiles.split[split]:
        if name not in tiles.unreadable:
            first.setdefault(tiles.block[name], name)
    names = list(first.values())
    chosen = names if len(names) <= most else [names[i * len(names) // most] for i in range(most)]
    return next(iter(loader(tiles, chosen, batch_size=len(chosen))))


def data_figure(task: GroundingTask, batch: Batch) -> Figure:
    """What there is to learn from: both polarisations, the image to refine, the truth in colour and in infrared."""
    columns = ("S1 VV", "S1 VH", "opt_v2", "truth", "truth, infrared")
    figure = Figure(figsize=(2.1 * len(columns), 2.25 * len(batch.tiles)), layout="constrained")
    grid = figure.subplots(len(batch.tiles), len(columns), squeeze=False)
    for row, name in enumerate(batch.tiles):
        white = _white(batch.truth[row])
        _show_db(grid[row][0], batch.s1[row, 0])
        _show_db(grid[row][1], batch.s1[row, 1])
        _show_rgb(grid[row][2], batch.opt_v2[row], white)
        _show_rgb(grid[row][3], batch.truth[row], white)
        _show_rgb(grid[row][4], batch.truth[row], 2 * white, (NIR, RED, 1))
        grid[row][0].set_ylabel(name, fontsize=7)
    _titles(grid[0], columns)
    figure.suptitle(f"opt_v2 is {task.tiles.source}", fontsize=8)
    return figure


def tiles_figure(task: GroundingTask, batch: Batch) -> Figure:
    """S1, the image before and after, the truth, both errors, and where structure agrees with the SAR image."""
    refined = task.refine(batch).cpu()
    columns = ("S1 VV", "opt_v2", "opt_v3", "truth", "|opt_v2 − truth|", "|opt_v3 − truth|", "agreement of opt_v3")
    figure = Figure(figsize=(2.05 * len(columns), 2.25 * len(batch.tiles) + 0.7), layout="compressed")
    grid = figure.subplots(len(batch.tiles), len(columns), squeeze=False)
    before, after = ((one - batch.truth).abs().mean(1) for one in (batch.opt_v2, refined))
    of_errors, of_agreement = Normalize(0, float(np.nanquantile(before.numpy(), 0.99))), Normalize(-1, 1)
    agreement = agreement_map(batch.s1, refined)
    for row, name in enumerate(batch.tiles):
        white = _white(batch.truth[row])
        _show_db(grid[row][0], batch.s1[row, 0])
        for column, one in enumerate((batch.opt_v2[row], refined[row], batch.truth[row]), 1):
            _show_rgb(grid[row][column], one, white)
        for column, error in enumerate((before[row], after[row]), 4):
            grid[row][column].imshow(error.numpy(), cmap="magma", norm=of_errors)
            grid[row][column].set_xlabel(f"mean {float(error.nanmean()):.4f}", fontsize=6.5)
        grid[row][6].imshow(agreement[row].numpy(), cmap="RdBu", norm=of_agreement)
        grid[row][0].set_ylabel(name, fontsize=7)
    _titles(grid[0], columns)
    _colour_bar(figure, of_errors, "magma", grid[:, 4:6], "reflectance, mean over the bands")
    _colour_bar(figure, of_agreement, "RdBu", grid[:, 6:], "local correlation of edges")
    return figure


def agreement_map(s1: Tensor, image: Tensor) -> Tensor:
    """``(B, h, w)`` local correlation of the edges of SAR and optical image, −1 to 1.

    Args:
        s1: ``(B, 2, H, W)`` dB.
        image: ``(B, 4, H, W)`` reflectance.
    """
    sar, optical = sar_edges(s1), optical_edges(image, image.isfinite().all(1))
    valid = sar.valid[MAP_SCALE] * optical.valid[MAP_SCALE]
    a, b = sar.maps[MAP_SCALE], optical.maps[MAP_SCALE]

    def smooth(x: Tensor) -> Tensor:
        return F.avg_pool2d(x[:, None], MAP_BLUR, 1, MAP_BLUR // 2, count_include_pad=False)[:, 0]

    def centred(x: Tensor) -> Tensor:
        total = (x * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
        return torch.where(valid > 0, x - total[:, None, None], 0.0)

    a, b = centred(a), centred(b)
    scale = (smooth(a.square()) * smooth(b.square())).sqrt().clamp(min=1e-12)
    return smooth(a * b) / scale


def scores_figure(report: Mapping[str, Any]) -> Figure:
    """Headline scores of the model and of every row beside it but the mean image, with intervals.

    LPIPS is left out where its network has random weights: the score then has another name.
    """
    baselines = {name: scores for name, scores in report["baselines"].items() if name not in FAR}
    rows = {"model": report["metrics"], **baselines}
    spare = iter(OTHER_COLOURS)
    colours = {name: COLOURS.get(name) or next(spare, OTHER_COLOURS[-1]) for name in rows}
    panels = [
        (name, title)
        for name, title in (
            ("psnr", "PSNR, dB ↑"), ("sam", "SAM, degrees ↓"), ("lpips", "LPIPS ↓"), ("ndvi_error", "NDVI error ↓"),
            ("sar_agreement", "agreement with SAR ↑"),
        )
        if name in report["metrics"]
    ]  # fmt: skip
    figure = Figure(figsize=(2.3 * len(panels) + 1.2, 2.6), layout="constrained")
    every = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, (metric, title) in zip(every, panels, strict=True):
        for place, (name, scores) in enumerate(rows.items()):
            value, interval = scores[metric]["value"], scores[metric].get("ci95")
            if value is None:
                continue
            if interval is not None:
                axes.plot([place, place], interval, color=colours[name], lw=1.4)
            axes.plot(place, value, "o", ms=6, color=colours[name], label=NAMES.get(name, name))
        if metric == "sar_agreement":
            truth = report["metrics"]["sar_agreement_truth"]["value"]
            axes.axhline(0.5, color="#888", lw=0.8, ls=":")
            said = {"xytext": (0, 2), "textcoords": "offset points", "fontsize": 6, "ha": "right"}
            axes.annotate("chance", (len(rows) - 0.6, 0.5), color="#666", **said)
            if truth is not None:
                axes.axhline(truth, color=COLOURS["truth"], lw=0.8, ls="--")
                axes.annotate("truth", (len(rows) - 0.6, truth), **said)
            axes.margins(y=0.1)  # room for the word above the line
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.set_xticks([])
        _tidy(axes, title)
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(rows), fontsize=7)
    return figure


def live_figure(task: GroundingTask, history: Sequence[Mapping[str, Any]], watched: Batch) -> Figure:
    """One tile as it is refined now, and the curves so far.

    Args:
        watched: tiles of which the first is drawn.
    """
    one = Batch(watched.s1[:1], watched.opt_v2[:1], watched.truth[:1], watched.tiles[:1])
    refined = task.refine(one).cpu()
    figure = Figure(figsize=(10.4, 4.9), layout="constrained")
    grid = figure.add_gridspec(2, 1)
    above, below = (figure.add_subfigure(grid[row]) for row in (0, 1))
    white = _white(one.truth[0])
    axes = above.subplots(1, 4)
    _show_db(axes[0], one.s1[0, 0])
    for place, image in enumerate((one.opt_v2[0], refined[0], one.truth[0]), 1):
        _show_rgb(axes[place], image, white)
    for each, title in zip(axes, ("S1 VV", "opt_v2", f"opt_v3, epoch {len(history)}", "truth"), strict=True):
        each.set_title(title, fontsize=8)
        each.set_xticks([])
        each.set_yticks([])
    _draw_curves(below.subplots(1, 3), task, history)
    return figure


def curves_figure(task: GroundingTask, history: Sequence[Mapping[str, Any]]) -> Figure:
    """Terms of the loss as they are weighted, the error and the agreement on validation, by epoch."""
    figure = Figure(figsize=(10.4, 2.8), layout="constrained")
    _draw_curves(figure.subplots(1, 3), task, history)
    return figure


def _draw_curves(panels: Sequence[Axes], task: GroundingTask, history: Sequence[Mapping[str, Any]]) -> None:
    terms, error, agreement = panels
    epochs = [row["epoch"] for row in history]
    columns = dict.fromkeys(key for row in history for key in row if key.startswith("train_") and key not in NO_TERMS)
    for column in columns:
        name = column.removeprefix("train_")
        values = np.array([row.get(column) for row in history], float)  # None: every step was skipped
        weight = getattr(task.config, f"{name}_weight", 1.0)  # the tokens' cross-entropy has none
        terms.plot(epochs, weight * values, marker=".", label=name)
    if terms.lines:
        terms.legend(fontsize=7)
    _tidy(terms, "terms of the loss, times their weights", "epoch")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    given = task.scores_of_input
    for axes, metric, title in (
        (error, "mae", "error on validation, reflectance ↓"),
        (agreement, "sar_agreement", "agreement with SAR on validation ↑"),
    ):
        axes.plot(epochs, [row[f"val_{metric}"] for row in history], marker=".", color=COLOURS["model"], label="opt_v3")
        axes.axhline(given[metric].value, color=COLOURS["opt_v2"], lw=1, ls="--", label="opt_v2")
        _tidy(axes, title, "epoch")
        axes.legend(fontsize=7)


def _white(truth: Tensor) -> float:
    """Reflectance that is shown as white: the tile's own for bright ground."""
    return max(WHITE, float(np.nanquantile(truth[list(RGB)].numpy(), 0.995)))


def _show_rgb(axes: Axes, image: Tensor, white: float, channels: Sequence[int] = RGB) -> None:
    picture = (image[list(channels)].permute(1, 2, 0).numpy() / white).clip(0, 1) ** (1 / 1.6)
    axes.imshow(np.where(np.isfinite(picture), picture, 0.8))


def _show_db(axes: Axes, band: Tensor) -> None:
    values: Array = band.numpy()
    low, high = np.nanquantile(values, (0.01, 0.99))
    axes.imshow(values, cmap="gray", vmin=low, vmax=high)
    axes.set_xlabel(f"{low:.0f} … {high:.0f} dB", fontsize=6.5)


def _colour_bar(figure: Figure, scale: Normalize, cmap: str, over: NDArray, label: str) -> None:
    """One below the panels that share it."""
    bar = figure.colorbar(
        ScalarMappable(scale, cmap), ax=over.ravel().tolist(), location="bottom", shrink=0.9, aspect=30, pad=0.02
    )
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=6)


def _titles(row: Sequence[Axes], columns: Sequence[str]) -> None:
    for axes, title in zip(row, columns, strict=True):
        axes.set_title(title, fontsize=8)
    for axes in row[0].figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])


def _tidy(axes: Axes, title: str, x: str = "") -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
