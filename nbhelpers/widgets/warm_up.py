"""The warm-up panel: how the weight of the KL rises, from when on epochs count, and whether it fits into the run."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import Knob
from nbhelpers.widgets.balance import REFUSED

BETA, SHADE, COUNTS, STOPS, GOOD, BAD = "#2471a3", "#fcf3cf", "#1e8449", "#b9770e", "#196f3d", "#b03a2e"
FITTING, FAILING = "#a9dfbf", "#f1948a"  # of the strip
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 220, 46, 36, 40  # of the picture and its margins, pixels
PATIENCE, WARM_UP = "early_stopping_patience", "warmup_epochs"
STRIP_STEPS = 60  # pieces of the strip at most


class Plan(Protocol):
    """What the panel needs of the settings."""

    @property
    def epochs(self) -> int: ...
    @property
    def beta_kl(self) -> float: ...
    @property
    def warmup_epochs(self) -> float: ...
    @property
    def armed(self) -> int: ...
    @property
    def early_stopping_patience(self) -> int | None: ...
    def replace(self, changes: Mapping[str, Any], *, source: str) -> Any: ...


Check = Callable[[Any], tuple[bool, str]]


class WarmUpPanel:
    """The panel behind :func:`warm_up_panel`; read ``panel.config`` in the next cell."""

    def __init__(self, config: Plan, check: Check, knobs: Sequence[Knob]):
        import ipywidgets as w

        self.config = config
        self._check = check
        self._knobs = {knob.field: knob for knob in knobs}
        self._moved: dict[str, Any] = {}  # what was set since the settings were last valid
        self.sliders = {knob.field: _slider(knob, getattr(config, knob.field)) for knob in knobs}
        self.problem = w.HTML("")
        self.picture = w.HTML(self._html(config))
        self.box = w.VBox([*self.sliders.values(), self.problem, self.picture])
        for field, slider in self.sliders.items():
            slider.observe(lambda change, field=field: self._set(field, change["new"]), "value")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    def _set(self, field: str, value: Any) -> None:
        # Four digits are what a slider shows; the settings shall hold what was read there.
        number = float(f"{value:.4g}") if self._knobs[field].log else int(value)
        self._moved[field] = None if field == PATIENCE and not number else number
        try:
            config = self.config.replace(self._moved, source="the panel")
        except UserError as error:
            self.problem.value = (
                f"<span style='color:{BAD};font:13px sans-serif'>{html.escape(str(error))} The settings from before "
                "count.</span>"
            )
            return
        self.config, self._moved, self.problem.value, self.picture.value = config, {}, "", self._html(config)

    def _html(self, config: Plan) -> str:
        fits, said = self._check(config)
        colour = GOOD if fits else BAD
        return (
            f"<div style='font:13px sans-serif;max-width:{WIDTH + 40}px'>"
            f"<div style='margin:6px 0;color:{colour}'><b>{html.escape(said)}</b></div>"
            f"{_picture(config)}{self._strip(config)}</div>"
        )

    def _strip(self, config: Plan) -> str:
        """Which lengths of the warm-up would fit beside the other settings; nothing without that knob."""
        if WARM_UP not in self._knobs:
            return ""
        knob = self._knobs[WARM_UP]
        steps = min(STRIP_STEPS, int(knob.high - knob.low) + 1)
        cells = []
        for index in range(steps):
            length = round(knob.at(index / max(1, steps - 1)))
            try:
                fits, _ = self._check(config.replace({WARM_UP: length}, source="the panel"))
            except UserError:  # beside the other settings that value cannot be
                colour = REFUSED
            else:
                colour = FITTING if fits else FAILING
            cells.append(f"<span style='flex:1;background:{colour}'></span>")
        left = 100 * knob.fraction(config.warmup_epochs)
        here = f"<div style='position:absolute;left:{left:.1f}%;top:-3px;width:2px;height:16px;background:#000'></div>"
        legend = "".join(
            f"<span style='background:{colour};padding:0 5px;margin-right:6px'>{text}</span>"
            for colour, text in ((FITTING, "fits"), (FAILING, "does not"), (REFUSED, "refused"))
        )
        return (
            f"<div style='width:560px'><div style='position:relative;display:flex;height:10px'>{''.join(cells)}{here}"
            f"</div></div><div style='font-size:10px;margin:4px 0'>warm-up of {knob.low:g} to {knob.high:g} epochs: "
            f"{legend}</div>"
        )


def warm_up_panel(config: Plan, check: Check, knobs: Sequence[Knob]) -> WarmUpPanel:
    """A panel that sets the weight of the KL and its warm-up, and says whether they fit the run.

    Args:
        config: settings with a ``replace(changes, source=…)`` that returns a checked copy or raises ``UserError``; then
            the settings from before count.
        check: settings -> whether a run with them is legal, and a sentence that says why, or what it has.
        knobs: the fields that can be set, of ``beta_kl``, ``warmup_epochs``, ``epochs`` and
            ``early_stopping_patience`` (0: none). Those that are not logarithmic hold whole numbers.
    """
    return WarmUpPanel(config, check, knobs)


def _slider(knob: Knob, value: float | None) -> Any:
    import math

    import ipywidgets as w

    shown = {
        "value": knob.start if value is None else value,  # none: a patience that is off
        "description": knob.label,
        "continuous_update": False,
        "layout": w.Layout(width="560px"),
        "style": {"description_width": "120px"},
    }
    if knob.log:
        low, high = math.log10(knob.low), math.log10(knob.high)
        return w.FloatLogSlider(min=low, max=high, step=0.01, readout_format=".3g", **shown)
    return w.IntSlider(min=int(knob.low), max=int(knob.high), **{**shown, "value": round(shown["value"])})


def _picture(config: Plan) -> str:
    """β over the epochs, the warm-up shaded, and where checkpoints begin to count and a run could first end early."""
    epochs, rise, top = config.epochs, config.warmup_epochs, config.beta_kl
    right, floor = WIDTH - 14, HEIGHT - BOTTOM

    def x(epoch: float) -> float:
        return LEFT + (right - LEFT) * min(epoch, epochs) / epochs

    def y(weight: float) -> float:
        return floor - (floor - TOP) * weight / (top or 1.0)

    def words(at: float, height: float, text: str, anchor: str = "middle", colour: str = "#333") -> str:
        style = f"font-size='11' font-family='sans-serif' text-anchor='{anchor}' fill='{colour}'"
        return f"<text x='{at:.1f}' y='{height:.1f}' {style}>{html.escape(text)}</text>"

    def upright(epoch: int, text: str, height: float, colour: str) -> str:
        anchor = "start" if epoch < 0.25 * epochs else "end" if epoch > 0.75 * epochs else "middle"
        line = f"<line x1='{x(epoch):.1f}' x2='{x(epoch):.1f}' y1='{height + 3:.1f}' y2='{floor}'"
        return f"{line} stroke='{colour}' stroke-dasharray='4 3'/>" + words(x(epoch), height, text, anchor, colour)

    parts = [
        f"<rect x='{LEFT}' y='{TOP}' width='{x(rise) - LEFT:.1f}' height='{floor - TOP}' fill='{SHADE}'/>",
        f"<path d='M{LEFT},{TOP} V{floor} H{right}' fill='none' stroke='#888'/>",
        *(words(LEFT - 4, y(weight) + 4, f"{weight:.3g}", "end") for weight in sorted({0.0, top / 2, top})),
        *(words(x(epoch), floor + 14, f"{epoch}") for epoch in sorted({round(epochs * part / 4) for part in range(5)})),
        words((LEFT + right) / 2, floor + 30, "epochs finished; the curve is β, shaded: warm-up"),
    ]
    if config.armed < epochs:
        parts.append(upright(config.armed, f"checkpoints count after epoch {config.armed}", TOP - 8, COUNTS))
    # The first epoch that counts is the best so far; patience is what follows it.
    if config.early_stopping_patience is not None and (
        (first := config.armed + 1 + config.early_stopping_patience) <= epochs
    ):
        parts.append(upright(first, f"the run could end after epoch {first}", TOP - 24, STOPS))
    reached = top * min(1.0, epochs / rise) if rise else top
    start = 0.0 if rise else top
    path = f"M{x(0):.1f},{y(start):.1f} L{x(rise):.1f},{y(reached):.1f} L{x(epochs):.1f},{y(reached):.1f}"
    parts.append(f"<path d='{path}' fill='none' stroke='{BETA}' stroke-width='2.5'/>")
    return f"<svg width='{WIDTH}' height='{HEIGHT}' xmlns='http://www.w3.org/2000/svg'>{''.join(parts)}</svg>"
