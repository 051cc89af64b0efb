"""The pictures of the stage: flows, forecasts beside truth, rollouts, spectra, and what the weights did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science import spectra
from nbhelpers.stages.neural_operator import solver
from nbhelpers.stages.neural_operator.sequences import Batch
from nbhelpers.stages.neural_operator.spectral_losses import shell_energies
from nbhelpers.stages.neural_operator.verification import Forecast

if TYPE_CHECKING:
    from nbhelpers.stages.neural_operator.task import OperatorTask

WHO = {
    "truth": "#17202a", "model": "#c0392b", "linear": "#2471a3", "persistence": "#7f8c8d", "mean": "#b7950b",
}  # fmt: skip
SHOWN = ("model", "linear", "persistence")
TERMS = {"field_error": "#2471a3", "spectrum_error": "#c0392b"}
OBSTACLE = "#6e6e6e"


class View:
    """What of a flow is drawn: vorticity where it can be had, else the first channel.

    Vorticity shows eddies and filaments that a velocity hides.
    """

    def __init__(self, task: OperatorTask):
        self._task = task
        self._channel = task.collection.channels.index("vorticity") if "vorticity" in task.collection.channels else None
        self.title = task.collection.channels[0]
        if task.domain.velocity is not None or self._channel is not None:
            self.title = "vorticity"

    def __call__(self, fields: Tensor) -> NDArray[np.float32]:
        """``(…, H, W)`` in the units of the files, of ``(…, C, H, W)`` in model units."""
        fields = self._task.to_units(fields.detach())
        if self._channel is not None:
            shown = fields[..., self._channel, :, :]
        elif self._task.domain.velocity is not None:
            velocity = fields[..., list(self._task.domain.velocity), :, :]
            shown = solver.vorticity_of(velocity.flatten(0, -4), self._task.domain.lengths)
            shown = shown.reshape(*fields.shape[:-3], *fields.shape[-2:])
        else:
            shown = fields[..., 0, :, :]
        return shown.float().cpu().numpy()


def draw(
    axes: Axes, values: NDArray[np.float32], *, limit: tuple[float, float], inside: Any = None, title: str = ""
) -> Any:
    """One field, x to the right and y upwards; obstacles are grey."""
    palette = "RdBu_r" if limit[0] < 0 else "viridis"
    masked = np.ma.masked_array(values, mask=inside if inside is not None else np.zeros_like(values, bool))
    axes.set_facecolor(OBSTACLE)
    image = axes.imshow(masked, cmap=palette, vmin=limit[0], vmax=limit[1], origin="lower", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def limits(values: NDArray[np.float32], inside: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Colour limits that a few extreme points do not decide, symmetric about 0 for fields of both signs.

    Args:
        inside: ``(H, W)``, True in an obstacle, where nothing flows.
    """
    flowing = values if inside is None else values[..., ~inside]
    low, high = (float(x) for x in np.percentile(flowing, [0.5, 99.5]))
    if low < 0 < high:
        return -max(-low, high), max(-low, high)
    return low, max(high, low + 1e-12)


def error_limits(limit: tuple[float, float]) -> tuple[float, float]:
    """Colour limits of an error beside a field with ``limit``: the same for fields of both signs, else as wide."""
    return limit if limit[0] < 0 else (limit[0] - limit[1], limit[1] - limit[0])


def fixed_sample(task: OperatorTask, *, split: str = "val") -> Batch:
    """The first window of a split, the same in every call."""
    batch = next(iter(task.batches(split, 0)))
    inside = None if batch.inside is None else batch.inside[:1]
    return Batch(batch.frames[:1], batch.parameters[:1], inside, batch.simulations[:1], batch.starts[:1])


def _inside(batch: Batch) -> NDArray[np.bool_] | None:
    return None if batch.inside is None else batch.inside[0].numpy()


def _row(fields: NDArray[np.float32], width: float) -> float:
    """Height in inches of a row of fields ``(…, H, W)`` that are so wide, with their titles."""
    return width * fields.shape[-2] / fields.shape[-1] + 0.2


def _bar(figure: Any, image: Any, axes: Any, view: View) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.015)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(f"{view.title}, units of the files", fontsize=8)


def sample_figure(task: OperatorTask, *, split: str = "val", n_simulations: int = 3) -> Figure:
    """A few simulations through time."""
    view, batches = View(task), []
    for batch in task.batches(split, 0):
        batches.append(batch)
        if len({name for one in batches for name in one.simulations}) >= n_simulations:
            break
    chosen: dict[str, Tensor] = {}
    obstacles: dict[str, Any] = {}
    for batch in batches:
        for index, name in enumerate(batch.simulations):
            chosen.setdefault(name, batch.frames[index])
            obstacles.setdefault(name, None if batch.inside is None else batch.inside[index].numpy())
    names = list(chosen)[:n_simulations]
    fields = view(task.to_model(torch.stack([chosen[name] for name in names])))
    limit = limits(fields, obstacles[names[0]])
    columns = sorted({round(i) for i in np.linspace(0, fields.shape[1] - 1, 5)})
    figure = Figure(figsize=(2.0 * len(columns) + 1.3, _row(fields, 2.0) * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    gap = task.collection.facts.frame_gap * task.config.sequence_length[1]
    for row, name in enumerate(names):
        for column, index in enumerate(columns):
            title, inside = f"t + {index * gap:.3g}", obstacles[name]
            image = draw(axes[row, column], fields[row, index], limit=limit, inside=inside, title=title)
        axes[row, 0].set_ylabel(name, fontsize=7)
    _bar(figure, image, axes, view)
    return figure


def _forecasts(task: OperatorTask, batch: Batch, who: Sequence[str] = SHOWN) -> dict[str, Forecast]:
    return {name: task.forecast(batch) if name == "model" else task.nulls[name](batch) for name in who}


def rollout_figure(task: OperatorTask, batch: Batch) -> Figure:
    """Truth, model and baselines after one step, half way and at the end of a rollout, and the model's error."""
    view, n_in = View(task), task.config.n_in
    target = task.to_model(batch.frames)[:, n_in:]
    truth = view(target)[0]
    shown = {"truth": truth} | {name: view(one.rollout)[0] for name, one in _forecasts(task, batch).items()}
    steps = sorted({0, len(truth) // 2, len(truth) - 1})
    inside = _inside(batch)
    limit = limits(truth, inside)
    figure = Figure(figsize=(2.15 * (len(shown) + 1) + 1.0, _row(truth, 2.15) * len(steps)), layout="constrained")
    axes = figure.subplots(len(steps), len(shown) + 1, squeeze=False)
    for row, step in enumerate(steps):
        for column, (name, fields) in enumerate(shown.items()):
            title = f"{name}, step {step + 1}"
            image = draw(axes[row, column], fields[step], limit=limit, inside=inside, title=title)
        error = shown["model"][step] - truth[step]
        span = error_limits(limit)
        title = "model − truth" + ("" if span == limit else f", ±{span[1]:.2g}")
        draw(axes[row, -1], error, limit=span, inside=inside, title=title)
    _bar(figure, image, axes, view)
    figure.suptitle(f"{batch.simulations[0]} from frame {batch.starts[0]}", fontsize=9)
    return figure


def _mean_spectra(task: OperatorTask, split: str) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Energy per shell over channels, the mean over a split, one step ahead and at the end of the rollouts."""
    sums: dict[str, dict[str, Any]] = {"one step": {}, "end of the rollout": {}}
    for batch in task.batches(split, 0):
        target = task.to_model(batch.frames)[:, task.config.n_in :]
        fields = {"truth": Forecast(target, target)} | _forecasts(task, batch)
        for name, one in fields.items():
            for when, chosen in (("one step", one.one_step), ("end of the rollout", one.rollout[:, -1:])):
                domain, valid = task.domain, task.valid(batch)
                energy = shell_energies(chosen, lengths=domain.lengths, window=domain.window, valid=valid)
                each = energy[..., 1:-1].sum(2).flatten(0, 1).double().cpu().numpy()  # (frames, shells)
                sums[when].setdefault(name, []).append(each)
    return {when: {name: np.concatenate(each).mean(0) for name, each in found.items()} for when, found in sums.items()}


def spectrum_figure(task: OperatorTask, *, split: str = "test") -> Figure:
    """Energy spectra of truth and forecasts: where the small scales are lost, or made up."""
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (when, curves) in zip(panels, _mean_spectra(task, split).items(), strict=True):
        for name, energy in curves.items():
            shells = np.arange(1, len(energy) + 1)
            axes.loglog(shells, energy, color=WHO[name], lw=2.2 if name == "truth" else 1.3, label=name)
        for index, (name, part) in enumerate(spectra.bands(len(shells)).items()):
            axes.axvspan(shells[part][0] - 0.5, shells[part][-1] + 0.5, color="#888", alpha=0.05 + 0.05 * index, lw=0)
            axes.text(np.sqrt(shells[part][0] * shells[part][-1]), 0.03, name, fontsize=7, ha="center",
                      transform=axes.get_xaxis_transform())  # fmt: skip
        axes.set_title(when, fontsize=9)
        axes.set_xlabel("wavenumber, waves across the box", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2, which="both")
    truth = curves["truth"]  # at the end of the rollout, where there is least
    figure.axes[0].set_ylim(truth.min() * 0.05, truth.max() * 5)
    figure.axes[0].set_ylabel("energy per shell, model units", fontsize=8)
    figure.axes[0].legend(fontsize=7)
    return figure


def by_step_figure(report: Mapping[str, Any]) -> Figure:
    """Scores against the step of the rollout, with 95 % intervals over simulations."""
    panels = {
        "rollout_rel_l2": "relative L2 error ↓", "rollout_spectrum_error_high": "high-band (Δ ln E)² ↓",
        "energy_ratio": "kinetic energy, forecast/truth → 1",
    }  # fmt: skip
    panels = {metric: title for metric, title in panels.items() if metric in report["metrics"]}  # not all have energy
    figure = Figure(figsize=(3.5 * len(panels), 3.0), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in ("model", *SHOWN[1:]):
            entry = (report["metrics"] if name == "model" else report["baselines"][name])[metric]
            values = list(entry.get("by_label", {"step 1": entry}).values())
            steps = range(1, len(values) + 1)
            centre, low, high = (
                [np.nan if x is None else x for x in column]
                for column in ([v["value"] for v in values], *zip(*(v["ci95"] for v in values), strict=True))
            )
            axes.plot(steps, centre, "o-", ms=3, color=WHO[name], label=name)
            axes.fill_between(steps, np.array(low, float), np.array(high, float), color=WHO[name], alpha=0.12, lw=0)
        if metric == "rollout_spectrum_error_high":
            axes.set_yscale("log")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=7)
    n = report["metrics"]["field_error"]["n"]
    figure.suptitle(f"{report['run']}: {n} {report['data']['scored_split']} simulations", fontsize=10)
    return figure


def history_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Field error, spectrum error and the scheduler's weights over the epochs."""
    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    _curves(figure.subplots(1, 3), history)
    return figure


def _curves(axes: Sequence[Axes], history: Sequence[Mapping[str, Any]]) -> None:
    epochs = [row["epoch"] for row in history]

    def column(name: str) -> list[float]:
        return [np.nan if row.get(name) is None else row[name] for row in history]

    for one, term in zip(axes, TERMS, strict=False):
        for kind, style in (("train", "o--"), ("val", "o-")):
            if history[0].get(f"{kind}_{term}") is not None:
                one.semilogy(epochs, column(f"{kind}_{term}"), style, ms=3, color=TERMS[term], label=kind)
        one.set_title(term.replace("_", " "), fontsize=9)
        one.legend(fontsize=7)
    scheduled = [name for name in history[0] if name.startswith("schedule_")]
    for name in scheduled:
        term = name.removeprefix("schedule_")
        axes[2].step(epochs, column(name), where="mid", color=TERMS.get(term), label=term.replace("_", " "))
    axes[2].set_title("the scheduler's weights" if scheduled else "no scheduler: weights stay", fontsize=9)
    if scheduled:
        axes[2].set_ylim(-0.05, 1.05)
        axes[2].legend(fontsize=7)
    for one in axes:
        one.set_xlabel("epoch", fontsize=8)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.tick_params(labelsize=7, which="both")
        one.grid(alpha=0.25)


def live_figure(task: OperatorTask, history: Sequence[Mapping[str, Any]], batch: Batch) -> Figure:
    """What to look at while training: the curves, and one validation flow a step ahead and at a rollout's end."""
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1))
    _curves(top.subplots(1, 3), history)
    axes = bottom.subplots(1, 4)
    view, forecast = View(task), task.forecast(batch)
    truth, model = view(task.to_model(batch.frames)[:, task.config.n_in :])[0], view(forecast.rollout)[0]
    inside, last = _inside(batch), len(truth) - 1
    limit = limits(truth, inside)
    draw(axes[0], truth[0], limit=limit, inside=inside, title="truth, step 1")
    draw(axes[1], model[0], limit=limit, inside=inside, title=f"model after epoch {history[-1]['epoch']}, step 1")
    draw(axes[2], truth[last], limit=limit, inside=inside, title=f"truth, step {last + 1}")
    image = draw(axes[3], model[last], limit=limit, inside=inside, title=f"model, step {last + 1}")
    _bar(bottom, image, axes, view)
    return figure


def report_figures(
    task: OperatorTask, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Figure]]:
    """The figures of a run's report, by file name."""
    split = report["data"]["scored_split"]
    yield "rollout", rollout_figure(task, fixed_sample(task, split=split))
    yield "by_step", by_step_figure(report)
    if history:
        yield "history", history_figure(history)
    yield "spectrum", spectrum_figure(task, split=split)
