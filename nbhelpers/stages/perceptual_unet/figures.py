"""The pictures of the stage: samples, forecasts beside truth, curves, shares, spectra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nbhelpers.science.image_quality import power_by_wavelength
from nbhelpers.stages.perceptual_unet.data import MISSING, VIL, vil_kg_m2
from nbhelpers.stages.perceptual_unet.windows import Batch

if TYPE_CHECKING:
    from nbhelpers.stages.perceptual_unet.task import NowcastTask

LEVELS = (0, 16, 31, 59, 74, 100, 133, 160, 181, 219, 255)  # edges of the colours; the event thresholds are among them
COLOURS = (
    "#f7f7f4", "#d5e4ee", "#a3c6de", "#5b9cc4", "#3f9b6c", "#8cc152", "#f2d13d", "#f2953c", "#dd4b39", "#8e2a6b",
)  # fmt: skip
MISSING_COLOUR = "#b9b9b9"
WHO = {
    "model": "#c0392b",
    "persistence": "#7f8c8d",
    "advection": "#2471a3",
    "blurred_truth": "#b7950b",
    "truth": "#17202a",
}


def show_levels(axes: Axes, levels: NDArray[np.uint8], *, title: str = "") -> AxesImage:
    """Draw ``(H, W)`` grey levels; missing pixels are grey."""
    palette = ListedColormap(list(COLOURS)).with_extremes(bad=MISSING_COLOUR)
    masked = np.ma.masked_equal(levels, MISSING)
    image = axes.imshow(masked, cmap=palette, norm=BoundaryNorm(LEVELS, palette.N), interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def colour_bar(figure: Figure, image: AxesImage, axes: Any) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.015, ticks=LEVELS[:-1])
    labels = [f"{level}  ({vil_kg_m2(np.array(level)):.2g})" for level in LEVELS[:-1]]
    bar.ax.set_yticklabels(labels, fontsize=7)
    bar.set_label("grey level (as SEVIR VIL: kg m⁻²)", fontsize=8)


def sample_figure(task: NowcastTask, *, split: str = "train", n_events: int = 3) -> Figure:
    """A few windows of a split through time, with units and missing pixels."""
    batch = _windows_of_different_events(task, split, n_events)
    frames, n_in = batch.frames.numpy(), task.config.n_in
    shown = sorted({0, n_in // 2, n_in - 1, n_in, frames.shape[1] - 1})
    figure = Figure(figsize=(2.1 * len(shown) + 1.4, 2.2 * len(frames)), layout="constrained")
    axes = figure.subplots(len(frames), len(shown), squeeze=False)
    step = task.leads[0]
    for row, event in enumerate(batch.events):
        for column, index in enumerate(shown):
            minutes = (index - n_in + 1) * step
            when = f"{minutes:+d} min" if minutes else "now"
            image = show_levels(
                axes[row, column], frames[row, index], title=f"{when}, {'input' if index < n_in else 'to predict'}"
            )
        axes[row, 0].set_ylabel(event, fontsize=7)
    colour_bar(figure, image, axes)
    return figure


def _windows_of_different_events(task: NowcastTask, split: str, count: int) -> Batch:
    chosen: dict[str, torch.Tensor] = {}
    for batch in task.batches(split, epoch=0):
        for frames, event in zip(batch.frames, batch.events, strict=True):
            chosen.setdefault(event, frames)
        if len(chosen) >= count and split == "train":
            break
    # The wettest first: an empty sky shows nothing.
    order = sorted(chosen, key=lambda event: -float(VIL.to_model(chosen[event])[0].mean()))[:count]
    return Batch(torch.stack([chosen[event] for event in order]), tuple(order))


def fixed_sample(task: NowcastTask, *, split: str = "val") -> Batch:
    """One window of a split, the same in every call: the wettest, for the live picture and the report."""
    return _windows_of_different_events(task, split, 1)


def nowcast_figure(task: NowcastTask, batch: Batch) -> Figure:
    """Inputs, truth, model, advection and persistence at several lead times, for the first window of ``batch``."""
    n_in = task.config.n_in
    leads = sorted({0, task.config.n_out // 2, task.config.n_out - 1})
    inputs = [round(i) for i in np.linspace(max(0, n_in - 1 - 2 * (n_in // 3)), n_in - 1, len(leads))]
    frames = batch.frames[0].numpy()
    truth = frames[n_in:]
    rows: dict[str, NDArray[np.uint8]] = {"truth": truth}
    for name in ("model", "advection", "persistence"):
        forecast = task.forecast(batch) if name == "model" else task.nulls[name](batch)
        rows[name] = np.where(truth == MISSING, MISSING, _levels(forecast[0]))
    figure = Figure(figsize=(2.3 * (len(rows) + 1) + 1.3, 2.45 * len(leads)), layout="constrained")
    axes = figure.subplots(len(leads), len(rows) + 1, squeeze=False)
    for row, (index, lead) in enumerate(zip(inputs, leads, strict=True)):
        minutes = (index - n_in + 1) * task.leads[0]
        show_levels(axes[row, 0], frames[index], title=f"input, {minutes} min" if minutes else "input, now")
        for column, (name, levels) in enumerate(rows.items(), start=1):
            image = show_levels(axes[row, column], levels[lead], title=f"{name}, +{task.leads[lead]} min")
    colour_bar(figure, image, axes)
    figure.suptitle(f"event {batch.events[0]}", fontsize=9)
    return figure


def _levels(forecast: torch.Tensor) -> NDArray[np.uint8]:
    """Grey levels of a forecast in model units."""
    return VIL.to_units(forecast.cpu()).round().to(torch.uint8).numpy()


def _plot_by_lead(axes: Axes, report: Mapping[str, Any], metric: str, who: Sequence[str], title: str) -> None:
    leads = report["data"]["lead_minutes"]
    for name in who:
        entry = (report["metrics"] if name == "model" else report["baselines"][name])[metric]
        by_label = entry.get("by_label") or {f"{leads[0]} min": entry}
        values = [by_label[f"{lead} min"] for lead in leads]
        centre, low, high = (
            np.array([np.nan if v is None else v for v in column], dtype=float)
            for column in ([v["value"] for v in values], [v["ci95"][0] for v in values], [v["ci95"][1] for v in values])
        )
        axes.plot(leads, centre, "o-", ms=3, color=WHO[name], label=name.replace("_", " "))
        axes.fill_between(leads, low, high, color=WHO[name], alpha=0.12, lw=0)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("lead time (min)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def lead_time_figure(report: Mapping[str, Any]) -> Figure:
    """Scores against lead time for the model and its baselines, with 95 % intervals over events."""
    distance = "lpips" if "lpips" in report["metrics"] else "feature_distance_random"
    panels = [
        ("mse", "MSE, (level/255)² ↓"), ("csi_74", "CSI, level ≥ 74 ↑"), ("csi_133", "CSI, level ≥ 133 ↑"),
        ("bias_74", "frequency bias, level ≥ 74 → 1"), (distance, f"{distance.replace('_', ' ')} ↓"),
        ("rapsd_ratio", "power at ≤ 8 px, forecast/observed → 1"),
    ]  # fmt: skip
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        # The blurred truth knows the answer; it belongs only where blur is the question.
        who = ["persistence", "advection", "model"]
        _plot_by_lead(
            axes, report, metric, [*who, "blurred_truth"] if metric in (distance, "rapsd_ratio") else who, title
        )
    figure.axes[0].legend(fontsize=7)
    figure.axes[4].legend(fontsize=7)
    n = report["metrics"]["mse"]["n"]
    figure.suptitle(
        f"{report['run']}: {n} {report['data']['scored_split']} events, bands are 95 % bootstrap intervals", fontsize=10
    )
    return figure


def history_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss terms, validation scores and the range of the predictions over the epochs."""
    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    axes = figure.subplots(1, 3)
    _curves(axes, history)
    return figure


def _curves(axes: Sequence[Axes], history: Sequence[Mapping[str, Any]]) -> None:
    epochs = [row["epoch"] for row in history]

    def curve(one: Axes, name: str, label: str, **style: Any) -> None:
        if history[0].get(name) is not None:
            one.plot(
                epochs,
                [np.nan if row[name] is None else row[name] for row in history],
                "o-",
                ms=3,
                label=label,
                **style,
            )

    curve(axes[0], "train_total", "loss")
    curve(axes[0], "train_mse", "MSE")
    curve(axes[0], "train_pixel", "pixel error")
    curve(axes[0], "val_mse", "MSE, validation")
    axes[0].set_title("loss and its terms", fontsize=9)
    if "train_perceptual" in history[0]:  # its scale is the network's, hundreds or thousands of times the MSE's
        right = axes[0].twinx()
        curve(right, "train_perceptual", "P, raw (right)", color="#7f8c8d")
        right.tick_params(labelsize=7)
        right.legend(fontsize=7, loc="lower left")
    curve(axes[1], "val_csi_74", "CSI ≥ 74")
    curve(axes[1], "val_csi_m", "CSI, mean of six")
    axes[1].set_title("validation", fontsize=9)
    for name, colour in (("prediction", WHO["model"]), ("target", WHO["truth"])):
        low, high = ([row[f"val_{name}_{end}"] for row in history] for end in ("min", "max"))
        axes[2].fill_between(epochs, low, high, alpha=0.2, color=colour, label=name)
        axes[2].plot(epochs, high, "o-", ms=3, color=colour)
    axes[2].set_title("range on validation, level/255", fontsize=9)
    for one in axes:
        one.set_xlabel("epoch", fontsize=8)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.tick_params(labelsize=7)
        one.grid(alpha=0.25)
        one.legend(fontsize=7)


def live_figure(task: NowcastTask, history: Sequence[Mapping[str, Any]], batch: Batch) -> Figure:
    """What to look at while training: the curves, and the forecast of one fixed validation window."""
    figure = Figure(figsize=(10.5, 5.4), layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1))
    _curves(top.subplots(1, 3), history)
    axes = bottom.subplots(1, 4)
    n_in, last = task.config.n_in, task.config.n_out - 1
    truth = batch.frames[0].numpy()
    model, advected = (
        _levels(forecast[0, last]) for forecast in (task.forecast(batch), task.nulls["advection"](batch))
    )
    hidden = truth[n_in + last] == MISSING
    show_levels(axes[0], truth[n_in - 1], title="now (last input)")
    show_levels(axes[1], truth[n_in + last], title=f"truth, +{task.leads[last]} min")
    image = show_levels(axes[2], np.where(hidden, MISSING, model), title=f"model after epoch {history[-1]['epoch']}")
    show_levels(axes[3], np.where(hidden, MISSING, advected), title="advection")
    colour_bar(bottom, image, axes)
    return figure


def spectrum_figure(task: NowcastTask, *, split: str = "test") -> Figure:
    """Radially averaged power spectra at the longest lead: where the forecasts lose fine structure."""
    sums: dict[str, Any] = {}
    for batch in task.batches(split, epoch=0):
        truth, valid = VIL.to_model(batch.frames[:, -1:].to(task.device))
        forecasts = {
            "model": task.forecast(batch),
            **{name: task.nulls[name](batch) for name in ("persistence", "advection")},
        }
        for name, frames in {
            "truth": truth,
            **{n: torch.where(valid, f[:, -1:].clamp(0, 1), 0.0) for n, f in forecasts.items()},
        }.items():
            sums[name] = sums.get(name, 0) + power_by_wavelength(frames).sum((0, 1)).double().cpu().numpy()
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, power in sums.items():
        wavelength = min(task.shape) / np.arange(1, len(power) + 1)
        axes.loglog(wavelength, power, color=WHO[name], lw=2 if name == "truth" else 1.4, label=name)
    axes.invert_xaxis()
    axes.set_xlabel("wavelength (pixels; 1 km for SEVIR)", fontsize=8)
    axes.set_ylabel("power", fontsize=8)
    axes.set_title(f"power spectra at +{task.leads[-1]} min, {split} events", fontsize=9)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
    return figure


def report_figures(
    task: NowcastTask, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Figure]]:
    """The figures of a run's report, by file name."""
    split = report["data"]["scored_split"]
    yield "nowcast", nowcast_figure(task, fixed_sample(task, split=split))
    yield "lead_time", lead_time_figure(report)
    if history:
        yield "history", history_figure(history)
    yield "spectrum", spectrum_figure(task, split=split)
