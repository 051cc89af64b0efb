"""A rollout as a film."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nbhelpers.stages.neural_operator.figures import View, draw, error_limits, limits
from nbhelpers.stages.neural_operator.sequences import Batch

if TYPE_CHECKING:
    from nbhelpers.stages.neural_operator.task import OperatorTask

PER_SECOND = 5


def rollout_movie(task: OperatorTask, batch: Batch, path: Path) -> Path:
    """Write truth, model and error of the first window, step by step, as an animated GIF; returns ``path``."""
    view = View(task)
    truth = view(task.to_model(batch.frames)[:, task.config.n_in :])[0]
    model = view(task.forecast(batch).rollout)[0]
    inside = None if batch.inside is None else batch.inside[0].numpy()
    limit = limits(truth, inside)
    shown = [("truth", truth, limit), ("model", model, limit), ("model − truth", model - truth, error_limits(limit))]
    height, width = truth.shape[-2:]
    figure = Figure(figsize=(8.4, 2.9 * height / width + 0.35), layout="constrained", dpi=80)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)

    def frame(step: int) -> list:
        for one, (title, values, span) in zip(axes, shown, strict=True):
            one.clear()
            draw(one, values[step], limit=span, inside=inside, title=f"{title}, step {step + 1}")
        return []

    path.parent.mkdir(parents=True, exist_ok=True)
    animation = FuncAnimation(figure, frame, frames=len(truth))
    animation.save(path, writer=PillowWriter(fps=PER_SECOND))
    return path
