"""What all figures of the stage share: who has which colour, the one scale of rain, maps over land."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.image import AxesImage
from numpy.typing import NDArray

# Okabe and Ito's colours, which are told apart with any colour vision; the marks tell them apart without colour.
WHO = {
    "observed": "#000000", "model": "#d55e00", "posterior": "#cc79a7", "oracle": "#009e73", "analogues": "#0072b2",
    "climatology": "#56b4e9", "bilinear": "#e69f00",
}  # fmt: skip
MARKS = {"model": "o", "posterior": "P", "oracle": "s", "analogues": "^", "climatology": "v", "bilinear": "D"}
NAMES = {"model": "prior members", "posterior": "posterior (has seen the day)", "oracle": "oracle (knows the law)"}
SEA = "#bdbdbd"
# Edges of the colours of rain, mm/day; below the first a day is dry, and white.
LEVELS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)


def name_of(who: str) -> str:
    """A predictor's name in plain words."""
    return NAMES.get(who, who)


def tidy(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Title, labels of both axes, and small ticks on a faint grid."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7, which="both")
    axes.grid(alpha=0.25)


def rain_scale(most: float) -> tuple[Colormap, BoundaryNorm]:
    """Colours of rain up to ``most`` mm/day: white for dry, sea in grey."""
    n = next((i for i, level in enumerate(LEVELS) if level >= most), len(LEVELS) - 1)
    edges = [0, *LEVELS[: max(n, 3) + 1]]
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.06, 1, len(edges) - 2))
    palette = ListedColormap([(1.0, 1.0, 1.0, 1.0), *map(tuple, colours)]).with_extremes(bad=SEA, over="#3b0f4f")
    return palette, BoundaryNorm(edges, palette.N)


def show_map(
    axes: Axes, field: NDArray[Any], *, shown: NDArray[np.bool_] | None = None, title: str = "", **style: Any
) -> AxesImage:
    """Draw ``(H, W)`` with the first row of the files on top, grey where not ``shown`` or NaN."""
    hidden = ~np.isfinite(field) if shown is None else ~shown | ~np.isfinite(field)
    image = axes.imshow(np.ma.masked_where(hidden, field), interpolation="nearest", **style)
    axes.set_facecolor(SEA)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def show_rain(
    axes: Axes, field: NDArray[Any], land: NDArray[np.bool_] | None, *, most: float, title: str = ""
) -> AxesImage:
    """A map of rain in mm/day on the scale of all maps whose largest value is ``most``."""
    palette, norm = rain_scale(most)
    return show_map(axes, field, shown=land, title=title, cmap=palette, norm=norm)


def colour_bar(figure: Any, image: AxesImage, axes: Any, label: str, **where: Any) -> None:
    """A bar beside ``axes`` with small ticks; that of rain has one at the edge of each colour."""
    bar = figure.colorbar(image, ax=axes, **{"shrink": 0.9, "pad": 0.02, "aspect": 30} | where)
    if isinstance(image.norm, BoundaryNorm):
        bar.set_ticks(list(image.norm.boundaries))
        bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label, fontsize=8)


def interval(entry: Mapping[str, Any]) -> tuple[float, float, float]:
    """Value and 95 % limits of an entry of a report, NaN where there are none."""
    value, (low, high) = entry["value"], entry["ci95"]
    numbers = tuple(np.nan if x is None else float(x) for x in (value, low, high))
    return numbers[0], numbers[1], numbers[2]


def whiskers(entries: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(n,)`` values and ``(2, n)`` lengths of their error bars, 0 where there is no interval."""
    value, low, high = np.array([interval(entry) for entry in entries]).T
    return value, np.nan_to_num(np.clip([value - low, high - value], 0, None))
