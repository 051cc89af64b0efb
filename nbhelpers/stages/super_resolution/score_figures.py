"""The scores of a report as pictures: gains by place and by band, and what a sharper image costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbhelpers.stages.super_resolution.verdict import FIRST_STAGE, GAIN, NAMES, PROJECTED, asks_for_gain, distance

WHO = {
    "bicubic": "#7f8c8d", "lanczos": "#7d3c98", PROJECTED: "#2471a3", "linear": "#1e8449",
    "linear_projected": "#48c9b0", FIRST_STAGE: "#b7950b", "model": "#c0392b", "truth": "#17202a",
}  # fmt: skip
BARS = (PROJECTED, "linear", "linear_projected", FIRST_STAGE, "model")  # whose gain over bicubic is drawn
MOST_PLACES = 12  # whose bars can be told apart
LABEL = (0.0125, 0.055)  # of the panel, that a letter of a name needs in width, and a name in height


def name_of(who: str) -> str:
    """A predictor's name in plain words."""
    return NAMES.get(who, who)


def tidy(axes: Axes, title: str, label: str = "") -> None:
    """Title, label of the x axis, and small ticks on a faint grid."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=7, which="both")
    axes.grid(alpha=0.25)


def place_figure(report: Mapping[str, Any]) -> Figure:
    """PSNR over bicubic's at every place; by band where there is one place, or too many for a picture."""
    by_place = 1 < len(_by_label(report["metrics"], "psnr_place")) <= MOST_PLACES
    metric, what = ("psnr_place", "place") if by_place else ("psnr", "band")
    n = len(_by_label(report["metrics"], metric))
    figure = Figure(figsize=(max(6.0, 2.5 + 0.9 * n), 3.2), layout="constrained")
    _gains(figure.subplots(), report, metric, f"PSNR over bicubic by {what}, {report['data']['scored_split']}")
    return figure


def band_figure(report: Mapping[str, Any]) -> Figure:
    """PSNR of every predictor by band, and what it gains over bicubic there."""
    scores = _scores(report)
    figure = Figure(figsize=(10.0, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, metrics) in enumerate(scores.items()):
        values = _by_label(metrics, "psnr")
        at = np.arange(len(values)) + (index - (len(scores) - 1) / 2) * 0.12
        left.plot(at, list(values.values()), "o", ms=5, color=WHO.get(name, "#555"), label=name_of(name))
    left.set_xticks(range(len(values)), list(values))
    tidy(left, f"PSNR by band, {report['data']['scored_split']}")
    left.set_ylabel("dB", fontsize=8)
    left.legend(fontsize=7)
    _gains(right, report, "psnr", "PSNR over bicubic by band")
    return figure


def tradeoff_figure(report: Mapping[str, Any]) -> Figure:
    """Feature distance against PSNR: no method can be best in both.

    Blau, Michaeli (2018), "The Perception-Distortion Tradeoff", CVPR, arXiv:1711.06077.
    """
    scores, key = _scores(report), distance(report)
    points = {name: (metrics["psnr"]["value"], metrics[key]["value"]) for name, metrics in scores.items()}
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.subplots()
    if FIRST_STAGE in points:
        axes.plot(*zip(points[FIRST_STAGE], points["model"], strict=True), color="#aaa", lw=1, ls=":", zorder=1)
    for name, point in points.items():
        axes.plot(*point, "o", ms=7, color=WHO.get(name, "#555"))
    axes.margins(x=0.4, y=0.15)  # room for the names
    _label(axes, points)
    tidy(axes, f"faithful and sharp, {report['data']['scored_split']}: best at the lower right", "PSNR, dB")
    axes.set_ylabel(key.replace("_", " "), fontsize=8)
    return figure


def _label(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names beside their points, each at the nearest spot that covers no point and no other name."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    at = {name: ((x - left) / (right - left), (y - bottom) / (top - bottom)) for name, (x, y) in points.items()}
    taken = [(x - 0.012, x + 0.012, y) for x, y in at.values()]  # left end, right end, height
    spots = [(side, step * LABEL[1]) for step in (0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0) for side in (1, -1)]
    for name, (x, y) in at.items():
        width = LABEL[0] * len(name_of(name))
        for side, up in spots:
            start = x + 0.02 if side > 0 else x - 0.02 - width
            spot = start, start + width, y + up
            if not any(spot[0] < b and a < spot[1] and abs(spot[2] - h) < LABEL[1] for a, b, h in taken):
                break
        taken.append(spot)
        axes.annotate(
            name_of(name), points[name], (spot[0], spot[2]), textcoords="axes fraction", fontsize=8, va="center"
        )


def _scores(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Metrics of all predictors, the model last."""
    found = {**report["baselines"], "model": report["metrics"]}
    order = list(WHO)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1))


def _by_label(metrics: Mapping[str, Any], metric: str) -> dict[str, float]:
    """Values by band or place; one value where there is but one of them."""
    entry = metrics[metric]
    found = entry.get("by_label") or {"all": entry}
    return {label: np.nan if one["value"] is None else one["value"] for label, one in found.items()}


def _gains(axes: Axes, report: Mapping[str, Any], metric: str, title: str) -> None:
    """Bars of what each predictor gains over bicubic at every label of ``metric``."""
    scores = _scores(report)
    theirs = _by_label(scores["bicubic"], metric)
    shown = [name for name in BARS if name in scores]
    width = 0.8 / len(shown)
    for index, name in enumerate(shown):
        gains = [value - theirs[label] for label, value in _by_label(scores[name], metric).items()]
        at = np.arange(len(gains)) + (index - (len(shown) - 1) / 2) * width
        axes.bar(at, gains, width * 0.9, color=WHO[name], label=name_of(name))
    if asks_for_gain(report):
        axes.axhline(GAIN, color="#555", lw=1, ls="--", label=f"{GAIN:+g} dB")
    axes.axhline(0, color="#555", lw=0.8)
    axes.set_xticks(range(len(theirs)), list(theirs))
    tidy(axes, title)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("dB", fontsize=8)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
