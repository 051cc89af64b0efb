"""The hand-over panel: a scheduler's settings, and the weights it would take through the run."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import Knob

SOURCE, TARGET, SHADE, BAD = "#2471a3", "#c0392b", "#d5d8dc", "#b03a2e"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 220, 40, 36, 26  # of the picture and its margins, pixels

Weights = Sequence[tuple[int, float, float]]  # (epoch, weight of the source, weight of the target) after each epoch


class Plan(Protocol):
    """What the panel needs of the settings; a scheduler's parameters have it."""

    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def initial_weight_source(self) -> float: ...
    @property
    def initial_weight_target(self) -> float: ...
    @property
    def warmup_epochs(self) -> int: ...
    @property
    def min_epochs(self) -> int: ...
    def replace(self, changes: Mapping[str, Any], *, source: str) -> Any: ...


class HandOverPanel:
    """The panel behind :func:`hand_over_panel`; read ``panel.config`` in the next cell."""

    def __init__(
        self,
        config: Plan,
        knobs: Sequence[Knob],
        trajectory: Callable[[Any], Weights],
        fits: Callable[[Any], str | None],
        choices: Mapping[str, Sequence[Any]],
    ):
        import ipywidgets as w

        self.config = config
        self._trajectory, self._fits = trajectory, fits
        self._moved: dict[str, Any] = {}  # what was set since the settings were last valid
        layout, style = w.Layout(width="420px"), {"description_width": "150px"}
        self.fields: dict[str, Any] = {}
        for field, options in choices.items():
            self.fields[field] = w.Dropdown(
                options=list(options), value=getattr(config, field), description=field, layout=layout, style=style
            )
        for knob in knobs:
            self.fields[knob.field] = _slider(knob, getattr(config, knob.field), layout, style)
        self.problem = w.HTML("")
        self.picture = w.HTML(self._html(config))
        self.box = w.VBox([*self.fields.values(), self.problem, self.picture])
        for field, widget in self.fields.items():
            widget.observe(lambda change, field=field: self._set(field, change["new"]), "value")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    def _set(self, field: str, value: Any) -> None:
        # Four digits are what a slider shows; the settings shall hold what was read there.
        self._moved[field] = float(f"{value:.4g}") if isinstance(value, float) else value
        try:
            config = self.config.replace(self._moved, source="the panel")
            picture = self._html(config)
        except (UserError, ValueError) as error:
            self.problem.value = (
                f"<span style='color:{BAD};font:13px sans-serif'>{html.escape(str(error))}. The settings from before "
                "count.</span>"
            )
            return
        self.config, self._moved, self.problem.value, self.picture.value = config, {}, "", picture

    def _html(self, config: Plan) -> str:
        weights, problem = self._trajectory(config), self._fits(config)
        epochs, last = len(weights), weights[-1][1:]
        finish = next(epoch for epoch, *now in weights if tuple(now) == last) if problem is None else None
        if finish is None:
            reason = html.escape(str(problem))
            said = f"<span style='color:{BAD}'><b>This does not fit into the run:</b> {reason}.</span>"
        else:
            said = (
                f"Done after epoch {finish} of {epochs} at the earliest. Epochs left for {last[0]:.3g} "
                f"{html.escape(config.source)} + {last[1]:.3g} {html.escape(config.target)}: {epochs - finish}."
            )
        legend = "".join(
            f"<span style='margin-right:14px'><span style='color:{colour}'>■</span> {html.escape(name)}</span>"
            for colour, name in ((SOURCE, config.source), (TARGET, config.target), (SHADE, "warm-up"))
        )
        note = "This is the earliest possible: each improvement of the monitored metric puts the next step off."
        return (
            f"<div style='font:13px sans-serif;max-width:{WIDTH + 40}px'><div style='margin:6px 0'>{said}</div>"
            f"<div style='font-size:12px;margin-left:{LEFT}px'>{legend}</div>"
            f"{_picture(config, weights, finish)}<div style='font-size:11px;color:#555'>{note}</div></div>"
        )


def hand_over_panel(
    config: Plan,
    knobs: Sequence[Knob],
    *,
    trajectory: Callable[[Any], Weights],
    fits: Callable[[Any], str | None],
    choices: Mapping[str, Sequence[Any]] | None = None,
) -> HandOverPanel:
    """A panel that sets a scheduler and draws the weights it would take if the metric never improved.

    Args:
        config: a scheduler's settings, with a ``replace(changes, source=…)`` that returns a checked copy or raises
            ``UserError`` or ``ValueError``. After a refusal the settings from before count.
        knobs: the fields that are numbers; a field that holds a whole number stays one.
        trajectory: settings -> weights after each epoch of the run.
        fits: settings -> why the hand-over cannot end within the run, None if it can.
        choices: the fields that are one of a few values, and these values.
    """
    return HandOverPanel(config, knobs, trajectory, fits, choices or {})


def _slider(knob: Knob, value: float, layout: Any, style: Any) -> Any:
    import math

    import ipywidgets as w

    shown = {"description": knob.label, "layout": layout, "style": style, "continuous_update": False, "value": value}
    if isinstance(value, int):
        return w.IntSlider(min=int(knob.low), max=int(knob.high), **shown)
    if knob.log:
        low, high = math.log10(knob.low), math.log10(knob.high)
        return w.FloatLogSlider(min=low, max=high, step=0.05, readout_format=".2g", **shown)
    step = (knob.high - knob.low) / 100
    return w.FloatSlider(min=knob.low, max=knob.high, step=step, readout_format=".3g", **shown)


def _picture(config: Plan, weights: Weights, finish: int | None) -> str:
    """Both weights as steps over the run, the warm-up shaded, min_epochs and the earliest finish marked."""
    start = (0, config.initial_weight_source, config.initial_weight_target)
    points = [start, *weights]
    epochs, most = len(weights), max(max(now) for _, *now in points)
    right, floor = WIDTH - 10, HEIGHT - BOTTOM

    def x(epoch: float) -> float:
        return LEFT + (right - LEFT) * epoch / epochs

    def y(weight: float) -> float:
        return floor - (floor - TOP) * weight / most

    def words(at: float, height: float, text: str, anchor: str = "middle", colour: str = "#333") -> str:
        style = f"font-size='11' font-family='sans-serif' text-anchor='{anchor}' fill='{colour}'"
        return f"<text x='{at:.1f}' y='{height:.1f}' {style}>{html.escape(text)}</text>"

    def upright(epoch: int, text: str, height: float, colour: str) -> str:
        anchor = "end" if epoch > 0.8 * epochs else "middle"
        line = f"<line x1='{x(epoch):.1f}' x2='{x(epoch):.1f}' y1='{TOP}' y2='{floor}'"
        return f"{line} stroke='{colour}' stroke-dasharray='4 3'/>" + words(x(epoch), height, text, anchor, colour)

    parts = [
        f"<rect x='{LEFT}' y='{TOP}' width='{x(min(config.warmup_epochs, epochs)) - LEFT:.1f}' height='{floor - TOP}' "
        f"fill='{SHADE}'/>",
        f"<path d='M{LEFT},{TOP} V{floor} H{right}' fill='none' stroke='#888'/>",
    ]
    for weight in (0.0, most / 2, most):
        parts.append(words(LEFT - 4, y(weight) + 4, f"{weight:.3g}", "end"))
    for epoch in sorted({round(epochs * quarter / 4) for quarter in range(5)}):
        parts.append(words(x(epoch), floor + 14, f"{epoch}"))
    parts.append(words((LEFT + right) / 2, floor + 30, "epochs finished"))
    if 0 < config.min_epochs <= epochs and config.min_epochs != finish:
        parts.append(upright(config.min_epochs, f"no step before {config.min_epochs}", TOP - 16, "#777"))
    if finish is not None:
        parts.append(upright(finish, f"earliest finish {finish}", TOP - 4, "#1e8449"))
    for column, colour in ((1, SOURCE), (2, TARGET)):
        # The weight after epoch 10 is that of the epochs from 10 to the next step.
        path = f"M{x(0):.1f},{y(points[0][column]):.1f}"
        path += "".join(f" H{x(point[0]):.1f} V{y(point[column]):.1f}" for point in weights)
        parts.append(f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='2.5'/>")
    return f"<svg width='{WIDTH}' height='{HEIGHT}' xmlns='http://www.w3.org/2000/svg'>{''.join(parts)}</svg>"
