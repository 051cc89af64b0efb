"""Fields of rain as pictures: a day as the data have it, extreme days beside their members, and power by wavelength."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science.fractions import rapsd, rapsd_wavelengths
from nbhelpers.stages.rainfall_cvae import metadata
from nbhelpers.stages.rainfall_cvae.batches import Batch, spaced
from nbhelpers.stages.rainfall_cvae.drawing import WHO, colour_bar, name_of, show_map, show_rain, tidy
from nbhelpers.stages.rainfall_cvae.drawn import Drawn, batch_of, heaviest_days
from nbhelpers.stages.rainfall_cvae.layout import LAND, PR, WET
from nbhelpers.stages.rainfall_cvae.verdict import FINE

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.task import RainfallTask

COLUMNS = 6  # maps of predictors in a row
HISTOGRAM_DAYS = 400  # training days in the histogram, evenly spaced
BINS = 60
TICKS = (5, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 2000)  # km
STATIC_UNITS = {"km": "km", "m": "m", "deg": "degrees"}  # by how the name of a static map ends


def sample_figure(task: RainfallTask, *, split: str = "train") -> Figure:
    """The heaviest day of a split as it is trained on: coarse weather, rain, static maps; and what rain is extreme."""
    days, (day,) = task.days, heaviest_days(task, split, 1)
    raw, names = metadata.read_statics(days.folder)
    rows = -(-len(days.channels) // COLUMNS)
    height, width = days.shape
    figure = Figure(figsize=(13.0, rows * (1.1 + 1.6 * height / width) + 4.0), layout="constrained")
    heights = (rows * (1.1 + 1.6 * height / width), 4.0)
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=heights))
    most = float(np.nanmax(days.y(day)))
    _predictors(top, task, day, rows, most)
    axes = bottom.subplots(1, 2 + len(raw), width_ratios=[1.3, *[1] * len(raw), 1.5])
    image = show_rain(axes[0], days.y(day), days.land, most=most, title=f"rain to predict, {height} x {width}")
    colour_bar(bottom, image, axes[0], "mm/day", location="bottom", aspect=18)
    for one, field, name in zip(axes[1:-1], raw, names, strict=True):
        unit = STATIC_UNITS.get(name.rsplit("_", 1)[-1], "1: land, 0: sea" if name == LAND else "units of the file")
        shown = None if name == LAND else days.land
        image = show_map(one, field, shown=shown, title=name.replace("_", " "), cmap="cividis")
        colour_bar(bottom, image, one, unit, location="bottom", aspect=14)
    _thresholds(axes[-1], task)
    figure.suptitle(f"{days.dates[day]} ({split}, {days.category[day]}), {days.name}; grey: sea", fontsize=10)
    return figure


def _predictors(figure: Any, task: RainfallTask, day: int, rows: int, most: float) -> None:
    """The coarse maps of a day, each with its own scale and unit; rain on the scale of the fine rain."""
    days = task.days
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    x = torch.from_numpy(days.x(day))[None]
    for one, channel, field in zip(axes, days.channels, days.x(day), strict=False):
        title = f"{channel}, {field.shape[0]} x {field.shape[1]}"
        if channel == PR:
            image = show_rain(one, days.pr(x)[0].numpy(), None, most=most, title=title)
        else:
            image = show_map(one, field, title=title, cmap="cividis")
        unit = "mm/day" if channel == PR else days.x_units.get(channel, "units of the file")
        colour_bar(figure, image, one, unit, location="bottom", aspect=14)
        if channel == PR:
            figure.axes[-1].tick_params(labelrotation=90)
    for one in list(axes)[len(days.channels) :]:
        one.axis("off")


def _thresholds(axes: Axes, task: RainfallTask) -> None:
    """How often wet land pixels of training days have how much rain, with the thresholds of extremes."""
    days = task.days
    readable = [day for day in days.split["train"] if day not in days.unreadable]
    chosen = spaced(readable, HISTOGRAM_DAYS)
    rain = np.concatenate([days.y(day)[days.land] for day in chosen])
    wet = rain[rain >= WET]
    edges = np.geomspace(WET, max(float(wet.max()), 2 * WET), BINS + 1)
    counts, _ = np.histogram(wet, edges)
    axes.stairs(counts / 1e3, edges, fill=True, color="#9ecae1")
    axes.set_xscale("log")
    for (name, level), height in zip(days.thresholds.items(), itertools.cycle((0.97, 0.87, 0.77, 0.67)), strict=False):
        axes.axvline(level, color="#000", lw=1)
        axes.annotate(f"{name}: {level:.3g}", (level, height), (-3, 0), textcoords="offset points", fontsize=7,
                      xycoords=axes.get_xaxis_transform(), ha="right", va="top",
                      bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1})  # fmt: skip
    share = len(wet) / max(1, int(np.isfinite(rain).sum()))
    tidy(axes, f"wet land pixels of {len(chosen)} training days\n({share:.0%} have at least {WET:g} mm)", "mm/day",
         "thousand pixels a bin")  # fmt: skip


def extremes_figure(task: RainfallTask, *, split: str = "test", count: int = 3, members: int = 4) -> Figure:
    """The heaviest scored days of a split: observed, bilinear, the median of the prior members, and some of them."""
    batch = batch_of(task, heaviest_days(task, split, count))
    fields = day_fields(task, batch, members=members)
    most = max(float(np.nanmax(each)) for each in fields.values())
    n, (height, width) = len(batch.days), task.days.shape
    figure = Figure(figsize=(1.9 * len(fields) + 0.9, n * (1.9 * height / width + 0.35) + 0.3), layout="constrained")
    axes = figure.subplots(n, len(fields), squeeze=False)
    for row, day in enumerate(batch.days):
        image = show_fields(axes[row], task, {name: each[row] for name, each in fields.items()}, most)
        axes[row, 0].set_ylabel(f"{task.days.dates[day]}", fontsize=9)
    colour_bar(figure, image, axes, "rain, mm/day")
    figure.suptitle(
        f"the {n} heaviest of {len(task.scored(split))} scored {split} days (most rain above P95 = "
        f"{task.event_level:.3g} mm/day); mean and greatest value over land in mm/day; the median is smooth by nature",
        fontsize=9,
    )
    return figure


@torch.no_grad()
def day_fields(task: RainfallTask, batch: Batch, *, members: int) -> dict[str, NDArray[np.float32]]:
    """``(B, H, W)`` mm/day by name: what was observed, the baseline, and the model; 0 over sea but where observed."""
    drawn = task.members(batch).cpu()
    return {
        "observed": batch.y.numpy(),
        "bilinear": task.nulls["bilinear"](batch)[:, 0].cpu().numpy(),
        f"median of {drawn.shape[1]}": np.median(drawn.numpy(), axis=1),
        **{f"member {k + 1}": drawn[:, k].numpy() for k in range(min(members, drawn.shape[1]))},
    }


def show_fields(axes: Sequence[Axes], task: RainfallTask, fields: dict[str, NDArray], most: float) -> AxesImage:
    """A row of maps ``(H, W)`` of one day on one scale, each with its mean and its greatest value over land."""
    land = task.days.land
    for one, (name, field) in zip(axes, fields.items(), strict=True):
        title = f"{name}\n{np.nanmean(field[land]):.1f}, max. {np.nanmax(field[land]):.0f}"
        image = show_rain(one, field, land, most=most, title=title)
    return image


def spectrum_figure(task: RainfallTask, drawn: Drawn) -> Figure:
    """Radially averaged power of single members and of the observed rain, and their ratio."""
    valid = torch.from_numpy(task.days.land) & ~drawn.observed.isnan()

    def power(fields: Tensor) -> NDArray[np.float64]:
        """Mean over days and members; one day at a time, as float64 spectra of all would fill the memory."""
        each = [rapsd(one, valid=measured).mean(0) for one, measured in zip(fields, valid, strict=True)]
        return torch.stack(each).mean(0)[1:].numpy()

    found = {"observed": power(drawn.observed[:, None]), **{name: power(m) for name, m in drawn.members.items()}}
    wavelength = rapsd_wavelengths(task.days.shape)[1:].numpy() * task.days.pixel_km
    figure = Figure(figsize=(10.0, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, each in found.items():
        style = {"color": WHO[name], "lw": 2.2 if name in ("observed", "model") else 1.2, "label": name_of(name)}
        left.loglog(wavelength, each, **style)
        if name != "observed":
            right.loglog(wavelength, each / found["observed"], **style)
    right.axhspan(*FINE, color="#000", alpha=0.08, lw=0)
    right.axhline(1, color=WHO["observed"], lw=0.8)
    right.text(0.01, FINE[1], f" {FINE[0]:g} … {FINE[1]:g}", fontsize=7, va="bottom",
               transform=right.get_yaxis_transform())  # fmt: skip
    shortest = 2 * task.days.factor * task.days.pixel_km
    n = f"{len(drawn.days)} {drawn.split} days"
    for axes, title, unit in (
        (left, f"power of single fields, mean of {n}", "mm²/day² a mode"),
        (right, "over the power observed → 1", "ratio"),
    ):
        axes.axvline(shortest, color="#555", lw=1, ls=":")
        axes.invert_xaxis()
        tidy(axes, title, "wavelength, km", unit)
        ticks = [km for km in TICKS if wavelength[-1] <= km <= wavelength[0]]
        axes.set_xticks(ticks, [str(km) for km in ticks])
        axes.minorticks_off()
    right.set_yticks((0.1, 0.2, 0.5, 1, 2, 5), ("0.1", "0.2", "0.5", "1", "2", "5"))
    right.set_ylim(0.08, 6)
    left.text(shortest, 0.95, f" finer than the predictors, < {shortest:g} km", fontsize=7, color="#555",
              transform=left.get_xaxis_transform())  # fmt: skip
    left.legend(fontsize=7, loc="lower left")
    return figure
