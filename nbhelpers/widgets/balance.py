"""The λ panel: one weight, and what it means on a real batch."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE, Knob

TERM_COLOURS = ("#2471a3", "#c0392b", "#1e8449", "#b7950b", "#7d3c98")
STRIP_STEPS = 60  # pieces of the coloured strip under a slider
REFUSED = "#fff"  # where the settings do not allow a value


class Contribution(Protocol):
    """What a panel shows of a loss term; the ledger's rows are such."""

    @property
    def term(self) -> str: ...
    @property
    def raw(self) -> float: ...
    @property
    def weight(self) -> float: ...
    @property
    def value_share(self) -> float: ...
    @property
    def grad_share(self) -> float: ...
    @property
    def cosine_to_total(self) -> float: ...


class LossBalance:
    """The panel behind :func:`loss_balance`; read ``panel.config`` in the next cell."""

    def __init__(
        self,
        config: Any,
        balance: Callable[[Any], Sequence[Contribution]],
        knobs: Sequence[Knob],
        judged: str,
        note: Callable[[Any], str] | None,
    ):
        import ipywidgets as w

        self.config = config
        self._balance, self._judged, self._note = balance, judged, note
        self._knobs = {knob.label: knob for knob in knobs}
        self.sliders = {knob.label: _slider(knob, getattr(config, knob.field)) for knob in knobs}
        active = next((knob.label for knob in knobs if getattr(config, knob.field) is not None), knobs[0].label)
        self.choice = w.ToggleButtons(options=list(self._knobs), value=active, description="set by")
        self.place = w.VBox([self.sliders[active]])
        self.picture = w.HTML(self._html())
        self.box = w.VBox([self.choice, self.place, self.picture])
        self.choice.observe(self._moved, "value")
        for slider in self.sliders.values():
            slider.observe(self._moved, "value")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    @property
    def knob(self) -> Knob:
        """The knob that counts now."""
        return self._knobs[self.choice.value]

    def _moved(self, change: Mapping[str, Any]) -> None:
        slider = self.sliders[self.choice.value]
        self.place.children = (slider,)
        # Four digits are what the panel shows; the settings shall hold what was read there.
        value = float(f"{slider.value:.4g}")
        try:
            self.config = self.config.replace({self.knob.field: value}, source="the panel")
        except UserError as error:  # two shares that leave nothing, say: the settings stay as they were
            self.picture.value = f"<div style='font:13px sans-serif;color:#7b241c'>{html.escape(str(error))}</div>"
        else:
            self.picture.value = self._html()

    def _html(self) -> str:
        knob, rows = self.knob, self._balance(self.config)
        value = getattr(self.config, knob.field)
        parts = [
            "<div style='font:13px sans-serif;max-width:680px'>",
            f"<div style='margin:2px 0 6px 0'><b>{html.escape(knob.label)} = {value:.4g}</b> &nbsp; ",
            f"{_judgement(rows, self._judged)}</div>",
            self._strip(knob),
            bars("share of the loss value", rows, "value_share"),
            bars("share of the gradient", rows, "grad_share"),
            table(rows),
            "" if self._note is None else f"<div style='margin-top:6px'>{html.escape(self._note(self.config))}</div>",
            "</div>",
        ]
        return "".join(parts)

    def _strip(self, knob: Knob) -> str:
        """Where along the slider the judged term is inert, balanced or dominating, measured on the batch."""
        cells = []
        for index in range(STRIP_STEPS):
            try:
                config = self.config.replace({knob.field: knob.at((index + 0.5) / STRIP_STEPS)}, source="the panel")
            except UserError:  # beside the other settings that value cannot be
                colour = REFUSED
            else:
                colour = zone_colour(_share(self._balance(config), self._judged))
            cells.append(f"<span style='flex:1;background:{colour}'></span>")
        left = 100 * knob.fraction(getattr(self.config, knob.field))
        here = f"<div style='position:absolute;left:{left:.1f}%;top:-3px;width:2px;height:16px;background:#000'></div>"
        marked = ""
        if knob.marked is not None:
            low, high = (100 * knob.fraction(edge) for edge in knob.marked)
            marked = (
                f"<div style='margin-left:{low:.1f}%;width:{high - low:.1f}%;border-top:3px solid #555;font-size:10px;"
                f"white-space:nowrap'>{html.escape(knob.mark)}</div>"
            )
        legend = "".join(
            f"<span style='background:{zone_colour(share)};padding:0 5px;margin-right:6px'>{text}</span>"
            for share, text in (
                (0.0, f"inert, below {INERT_SHARE:.0%}"),
                (0.3, "at work"),
                (0.95, f"drowns the rest, above {DROWNING_SHARE:.0%}"),
            )
        )
        return (
            "<div style='width:560px'><div style='position:relative;display:flex;height:10px'>"
            f"{''.join(cells)}{here}</div>{marked}</div><div style='font-size:10px;margin:4px 0 8px 0'>"
            f"gradient share of {html.escape(self._judged)}: {legend}</div>"
        )


def _slider(knob: Knob, value: float | None) -> Any:
    import math

    import ipywidgets as w

    shown = {"value": knob.start if value is None else value, "readout": False, "continuous_update": False}
    layout = w.Layout(width="572px")
    if knob.log:
        return w.FloatLogSlider(min=math.log10(knob.low), max=math.log10(knob.high), step=0.01, layout=layout, **shown)
    return w.FloatSlider(min=knob.low, max=knob.high, step=(knob.high - knob.low) / 600, layout=layout, **shown)


def loss_balance(
    config: Any,
    balance: Callable[[Any], Sequence[Contribution]],
    knobs: Sequence[Knob],
    *,
    judged: str,
    note: Callable[[Any], str] | None = None,
) -> LossBalance:
    """A panel that sets one weight and shows what it means on a real batch.

    Args:
        config: settings with a ``replace(changes, source=…)`` that returns a checked copy.
        balance: settings -> what each loss term contributes; called on every move, so it must be cheap.
        knobs: the fields that can be set; they are alternatives, the last one moved counts.
        judged: the term whose gradient share is called inert, at work or dominating.
        note: settings -> a sentence to stand below the table.
    """
    return LossBalance(config, balance, knobs, judged, note)


def _share(rows: Sequence[Contribution], term: str) -> float:
    return next(row.grad_share for row in rows if row.term == term)


def zone_colour(share: float) -> str:
    """The colour of a gradient share: inert, at work, or drowning the rest."""
    return "#d5d8dc" if share < INERT_SHARE else "#f1948a" if share > DROWNING_SHARE else "#a9dfbf"


def _judgement(rows: Sequence[Contribution], term: str) -> str:
    share = _share(rows, term)
    if share < INERT_SHARE:
        return f"<span style='color:#7b241c'>{html.escape(term)} is inert: {share:.3%} of the gradient</span>"
    if share > DROWNING_SHARE:
        return f"<span style='color:#7b241c'>{html.escape(term)} drowns the rest: {share:.1%} of the gradient</span>"
    return f"<span style='color:#196f3d'>{html.escape(term)} is at work: {share:.1%} of the gradient</span>"


def bars(title: str, rows: Sequence[Contribution], key: str) -> str:
    """Shares of the terms as pieces of one bar."""
    pieces = "".join(
        f"<span style='width:{100 * getattr(row, key):.2f}%;background:{colour}'></span>"
        for row, colour in zip(rows, TERM_COLOURS, strict=False)
    )
    return (
        f"<div style='font-size:11px'>{title}</div>"
        f"<div style='display:flex;width:560px;height:14px;background:#eee;margin-bottom:4px'>{pieces}</div>"
    )


def table(rows: Sequence[Contribution]) -> str:
    """What each term contributes, a row each."""
    head = "".join(
        f"<th style='padding:0 10px;text-align:right'>{name}</th>"
        for name in ("term", "raw", "weight", "value", "gradient", "cosine")
    )
    body = "".join(
        f"<tr><td style='color:{colour};padding:0 10px'>■ {html.escape(row.term)}</td>"
        + "".join(
            f"<td style='padding:0 10px;text-align:right'>{cell}</td>"
            for cell in (
                f"{row.raw:.4g}",
                f"{row.weight:.4g}",
                f"{row.value_share:.3%}",
                f"{row.grad_share:.3%}",
                f"{row.cosine_to_total:+.2f}",
            )
        )
        + "</tr>"
        for row, colour in zip(rows, TERM_COLOURS, strict=False)
    )
    return f"<table style='font-size:12px;margin-top:6px'><tr>{head}</tr>{body}</table>"
