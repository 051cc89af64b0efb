"""Panels of several settings at once: the weights of all loss terms, or what sets the size of a model."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE, Knob
from nbhelpers.widgets.balance import Contribution, bars, table

GOOD, BAD = "#196f3d", "#7b241c"


class SeveralPanel:
    """The panel behind :func:`weights_panel` and :func:`settings_panel`; read ``panel.config`` in the next cell."""

    def __init__(self, config: Any, knobs: Sequence[Knob], picture: Callable[[Any], str]):
        import ipywidgets as w

        self.config = config
        self._picture = picture
        self._knobs = {knob.field: knob for knob in knobs}
        self._moved: dict[str, Any] = {}  # what was set since the settings were last valid
        self.sliders = {knob.field: _slider(knob, _start(knob, config)) for knob in knobs}
        # The readout of a slider would show its off position as the lowest number.
        self.numbers = {knob.field: w.Label(_shown(_start(knob, config))) for knob in knobs if knob.off}
        self.problem = w.HTML("")
        self.picture = w.HTML(picture(config))
        rows = [w.HBox([slider, *filter(None, [self.numbers.get(name)])]) for name, slider in self.sliders.items()]
        self.box = w.VBox([*rows, self.problem, self.picture])
        for field, slider in self.sliders.items():
            slider.observe(lambda change, field=field: self._set(field, change["new"]), "value")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    def _set(self, field: str, value: Any) -> None:
        knob = self._knobs[field]
        self._moved[field] = knob.read(value)
        if field in self.numbers:
            self.numbers[field].value = _shown(self._moved[field])
        try:
            config = self.config.replace(self._moved, source="the panel")
        except UserError as error:
            self.problem.value = (
                f"<span style='color:{BAD};font:13px sans-serif'>{html.escape(str(error))} The settings from before "
                "count.</span>"
            )
            return
        self.config, self._moved, self.problem.value, self.picture.value = config, {}, "", self._picture(config)


def weights_panel(config: Any, balance: Callable[[Any], Sequence[Contribution]], knobs: Sequence[Knob]) -> SeveralPanel:
    """A slider for the weight of each loss term, and what they all mean on a real batch.

    Args:
        config: settings with a ``replace(changes, source=…)`` that returns a checked copy or raises ``UserError``; then
            the settings from before count.
        balance: settings -> what each loss term contributes; called on every move, so it must be cheap.
        knobs: the fields that can be set, one a term; without any the panel says that there is nothing to weigh.
    """

    def picture(config: Any) -> str:
        if not knobs:
            return "<b style='font:13px sans-serif'>The loss is a single term: there is nothing to weigh.</b>"
        rows = balance(config)
        return (
            f"<div style='font:13px sans-serif;max-width:680px'><div style='margin:4px 0'>{_judgement(rows)}</div>"
            f"{bars('share of the loss value', rows, 'value_share')}"
            f"{bars('share of the gradient', rows, 'grad_share')}{table(rows)}</div>"
        )

    return SeveralPanel(config, knobs, picture)


def settings_panel(config: Any, describe: Callable[[Any], Mapping[str, str]], knobs: Sequence[Knob]) -> SeveralPanel:
    """Sliders, and what settings amount to.

    Args:
        config: as for :func:`weights_panel`.
        describe: settings -> what to show, by name; called on every move, so it must be cheap.
        knobs: the fields that can be set.
    """

    def picture(config: Any) -> str:
        rows = "".join(
            f"<tr><td style='padding:0 14px 0 0;color:#555'>{html.escape(name)}</td><td>{html.escape(said)}</td></tr>"
            for name, said in describe(config).items()
        )
        return f"<table style='font:13px sans-serif;margin-top:6px'>{rows}</table>"

    return SeveralPanel(config, knobs, picture)


def _judgement(rows: Sequence[Contribution]) -> str:
    inert = [row.term for row in rows if row.weight and row.grad_share < INERT_SHARE]
    drowning = [row.term for row in rows if row.grad_share > DROWNING_SHARE]
    off = [row.term for row in rows if not row.weight]
    said = [f"{' and '.join(inert)}: inert, below {INERT_SHARE:.0%} of the gradient"] if inert else []
    said += [f"{' and '.join(drowning)} drowns the rest"] if drowning else []
    colour = BAD if said else GOOD
    said = said or ["every term is at work"]
    said += [f"off: {', '.join(off)}"] if off else []
    return f"<b style='color:{colour}'>{html.escape('; '.join(said))}</b>"


def _start(knob: Knob, config: Any) -> float:
    value = getattr(config, knob.field)
    return knob.start if value is None else value


def _shown(number: float) -> str:
    return f"{number:.4g}" if number else "off"


def _slider(knob: Knob, value: float) -> Any:
    import ipywidgets as w

    shown = {
        "value": value,
        "description": knob.label,
        "readout": not knob.off,
        "continuous_update": False,
        "layout": w.Layout(width="560px"),
        "style": {"description_width": "120px"},
    }
    if knob.whole:
        return w.IntSlider(min=int(knob.low), max=int(knob.high), **{**shown, "value": round(value)})
    if knob.log:
        # Fine enough to meet every number of one digit when it is read to two.
        return w.FloatLogSlider(min=math.log10(knob.low), max=math.log10(knob.high), step=0.005, **shown)
    return w.FloatSlider(min=knob.low, max=knob.high, step=(knob.high - knob.low) / 200, **shown)
