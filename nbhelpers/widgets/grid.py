"""The sweep panel: the values to try, and what each of them would mean before an hour is spent on it."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import DROWNING_SHARE, INERT_SHARE
from nbhelpers.widgets.balance import zone_colour

BAR_WIDTH = 160  # pixels for a gradient share of 100 %


class Effect(Protocol):
    """What the panel shows of a setting; the ledger's rows are such."""

    @property
    def value_share(self) -> float: ...
    @property
    def grad_share(self) -> float: ...


class SweepPanel:
    """The panel behind :func:`sweep_panel`; read ``panel.grid`` in the next cell."""

    def __init__(
        self,
        grid: Any,
        effects: Callable[[Any], Mapping[str, Effect]],
        labels: Mapping[str, str],
        minutes: float | None,
    ):
        import ipywidgets as w

        self.grid = grid
        self._effects, self._labels, self._minutes = effects, labels, minutes
        layout, style = w.Layout(width="420px"), {"description_width": "130px"}
        self.fields = {
            name: w.Text(value=_listed(getattr(grid, name)), description=label, layout=layout, style=style)
            for name, label in labels.items()
        }
        self.picture = w.HTML(self._html())
        self.problem = w.HTML("")
        self.box = w.VBox([*self.fields.values(), self.problem, self.picture])
        for field in self.fields.values():
            field.observe(self._typed, "value")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    def _typed(self, change: Mapping[str, Any]) -> None:
        try:
            values = {
                name: _numbers(field.value, self._labels[name], whole=name == "seeds")
                for name, field in self.fields.items()
            }
            grid = dataclasses.replace(self.grid, **values)
            picture = self._html(grid)
        except UserError as error:  # half a number is wrong too: the table stays until the text is right again
            self.problem.value = (
                f"<span style='color:#b03a2e;font:13px sans-serif'>{html.escape(str(error))} The values from before "
                "count.</span>"
            )
            return
        self.grid, self.problem.value, self.picture.value = grid, "", picture

    def _html(self, grid: Any = None) -> str:
        grid = self.grid if grid is None else grid
        effects = self._effects(grid)
        reference, *others = effects
        head = "".join(
            f"<th style='padding:0 10px;text-align:left'>{name}</th>"
            for name in ("setting", "of the loss", "of the gradient", "", "")
        )
        rows = [_cells(html.escape(reference), "reference", "", "", "")]
        rows += [_row(setting, effects[setting]) for setting in others]
        runs = len(grid.seeds) * (1 + len(others))
        cost = f"{1 + len(others)} settings x {len(grid.seeds)} seeds = {runs} runs"
        if self._minutes is not None:
            cost += f", about {runs * self._minutes:.0f} minutes ({self._minutes:.1f} a run)"
        lines = [f"<div style='margin:6px 10px'>{cost}</div>"]
        if all(effects[setting].grad_share < INERT_SHARE for setting in others):
            lines.append(
                "<div style='color:#b03a2e;margin:6px 10px'><b>This grid cannot matter:</b> every setting has less "
                f"than {INERT_SHARE:.0%} of the gradient. The sweep will refuse it: raise a value or add a share.</div>"
            )
        return (
            "<div style='font:13px sans-serif;max-width:680px'><table style='font-size:12px;margin-top:6px'>"
            f"<tr>{head}</tr>{''.join(rows)}</table>{''.join(lines)}</div>"
        )


def sweep_panel(
    grid: Any,
    effects: Callable[[Any], Mapping[str, Effect]],
    *,
    labels: Mapping[str, str],
    minutes: float | None = None,
) -> SweepPanel:
    """A panel to type the values of a sweep, with a table of what they mean that follows.

    Args:
        grid: a frozen dataclass with tuples of numbers, ``seeds`` among them, that raises ``UserError`` on values that
            make no sense.
        effects: grid -> what each of its settings gives the term, by name, the reference first; called on every change,
            so it must be cheap.
        labels: the fields of ``grid`` to offer, and what the panel calls them.
        minutes: what one run takes, if it is known.
    """
    return SweepPanel(grid, effects, labels, minutes)


def _row(setting: str, effect: Effect) -> str:
    share = effect.grad_share
    word = "inert" if share < INERT_SHARE else "drowns the rest" if share > DROWNING_SHARE else "has a say"
    bar = (
        f"<div style='width:{BAR_WIDTH}px;height:10px;background:#eee'><div style='width:{BAR_WIDTH * share:.1f}px;"
        f"height:10px;background:{zone_colour(share)};border-right:2px solid #555'></div></div>"
    )
    return _cells(html.escape(setting), f"{effect.value_share:.3%}", f"{share:.2%}", bar, word)


def _cells(*cells: str) -> str:
    return "<tr>" + "".join(f"<td style='padding:0 10px'>{cell}</td>" for cell in cells) + "</tr>"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(map(str, values))  # every digit: what stands here is read back


def _numbers(text: str, label: str, *, whole: bool) -> tuple[float, ...]:
    """The numbers in comma-separated text.

    Raises:
        UserError: a piece that is none.
    """
    found: list[float] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        try:
            found.append(int(piece) if whole else float(piece))
        except ValueError as error:
            kind = "whole numbers" if whole else "numbers"
            raise UserError(f"{label} has {piece!r}, expected {kind} with commas between them.") from error
    return tuple(found)
