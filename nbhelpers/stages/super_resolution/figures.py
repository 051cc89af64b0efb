"""The pictures of the stage: samples, images beside the truth, curves and spectra; the scores' are drawn elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nbhelpers.science.image_quality import power_by_wavelength, psnr
from nbhelpers.stages.super_resolution.crops import Batch
from nbhelpers.stages.super_resolution.losses import STRETCH
from nbhelpers.stages.super_resolution.score_figures import (
    WHO,
    band_figure,
    name_of,
    place_figure,
    tidy,
    tradeoff_figure,
)
from nbhelpers.stages.super_resolution.verdict import PROJECTED, distance

if TYPE_CHECKING:
    from nbhelpers.stages.super_resolution.task import SuperResolutionTask

DISTANCE = "#7d3c98"  # colour of the feature distance
PHASES = {"pixel": "first stage", "adversarial": "second stage"}
SHOWN = ("bicubic", PROJECTED, "model")  # that are drawn as images
DETAIL = 60  # pixels: side of a cut-out in which single ones can be seen
SPECTRUM_BATCHES = 6  # of a split, for its spectra
TICKS = (20, 50, 100, 200, 500, 1000, 2000, 5000)  # metres


def show(axes: Axes, image: NDArray[Any], *, title: str = "", **style: Any) -> AxesImage:
    """Draw ``(H, W, 3)`` in [0, 1] or ``(H, W)``, each pixel a square."""
    drawn = axes.imshow(image, interpolation="nearest", **style)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return drawn


def _rgb(task: SuperResolutionTask, image: Tensor) -> NDArray[np.float32]:
    """``(B, H, W, 3)`` of images in model units, with the one stretch of all pictures."""
    return task.picture(image).permute(0, 2, 3, 1).float().cpu().numpy()


def _places(task: SuperResolutionTask, batch: Batch) -> list[str]:
    return [task.patches.patches[index].place for index in batch.patches]


def _metres(task: SuperResolutionTask) -> tuple[int, int]:
    """Pixel of the low and of the high resolution."""
    return task.patches.resolution * task.config.scale, task.patches.resolution


def _bar(figure: Any, image: AxesImage, axes: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.015, aspect=35)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label, fontsize=8)


def fixed_sample(task: SuperResolutionTask, *, split: str = "val", count: int = 2) -> Batch:
    """A few patches of a split, the same in every call: of different places as far as there are, full of detail."""
    by_place: dict[str, list[tuple[float, Tensor, int]]] = {}
    for batch in task.batches(split, 0):
        if not len(batch.dn):  # nothing of it could be read
            continue
        details = _missed(task, batch).mean((1, 2)).tolist()
        for detail, dn, patch, place in zip(details, batch.dn, batch.patches, _places(task, batch), strict=True):
            best = [*by_place.get(place, ()), (detail, dn, patch)]
            by_place[place] = sorted(best, key=lambda one: -one[0])[:count]
        if len(by_place) >= count and split == "train":
            break
    ranks = itertools.zip_longest(*(best for _, best in sorted(by_place.items())))
    found = [one for rank in ranks for one in rank if one is not None]
    chosen = [one for one in found if one[1].shape == found[0][1].shape][:count]
    return Batch(torch.stack([dn for _, dn, _ in chosen]), tuple(patch for *_, patch in chosen))


def _missed(task: SuperResolutionTask, batch: Batch) -> Tensor:
    """``(B, H, W)``: the squared error of bicubic interpolation in each pixel of the picture."""
    return (task.picture(task.pair(batch)[0]) - task.picture(task.nulls["bicubic"](batch))).square().mean(1)


def sample_figure(task: SuperResolutionTask, *, split: str = "train", count: int = 3) -> Figure:
    """A few crops as the training sees them: true colours in both resolutions, and the near infrared with its scale."""
    batch = fixed_sample(task, split=split, count=count)
    high, low = task.pair(batch)
    coarse, fine = _metres(task)
    band = "B08" if "B08" in task.config.bands else task.config.bands[-1]
    grey = task.to_reflectance(high)[:, task.config.bands.index(band)].cpu().numpy()
    colours = {f"HR, pixels of {fine} m": _rgb(task, high), f"LR, pixels of {coarse} m": _rgb(task, low)}
    figure = Figure(figsize=(8.2, 2.5 * len(grey)), layout="constrained")
    axes = figure.subplots(len(grey), 3, squeeze=False)
    for row, place in enumerate(_places(task, batch)):
        for column, (title, images) in enumerate(colours.items()):
            show(axes[row, column], images[row], title=title)
        limit = {"vmin": 0.0, "vmax": float(np.percentile(grey, 99.5))}
        image = show(axes[row, 2], grey[row], title=f"HR, {band}", cmap="gray", **limit)
        axes[row, 0].set_ylabel(f"{place} ({split})", fontsize=8)
        _scale_bar(axes[row, 0], fine)
    _bar(figure, image, axes, f"{band}, reflectance")
    figure.suptitle(f"{', '.join(task.config.rgb)}: white is reflectance {STRETCH:g}", fontsize=9)
    return figure


def _scale_bar(axes: Axes, metres: int) -> None:
    """A bar in the lower left corner of an image with pixels of so many metres: 400 m long, or 100 if it is small."""
    (_, right), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    length = 400 if 400 / metres < 0.8 * right else 100
    axes.plot([0.06 * right, 0.06 * right + length / metres], [0.93 * bottom] * 2, color="white", lw=3)
    axes.text(0.06 * right, 0.9 * bottom, f"{length} m", color="white", fontsize=8, va="bottom")


@torch.no_grad()
def _images(task: SuperResolutionTask, batch: Batch, who: Sequence[str] = SHOWN) -> dict[str, Tensor]:
    """``(B, C, H, W)`` in model units of each predictor."""
    low = task.pair(batch)[1]
    return {name: task.super_resolve(low) if name == "model" else task.nulls[name](batch) for name in who}


def pictures(task: SuperResolutionTask, batch: Batch) -> dict[str, dict[str, NDArray[np.float32]]]:
    """LR, predictions and HR of each patch of ``batch`` as ``(H, W, 3)`` in [0, 1], by place and name: for a swipe."""
    high, low = task.pair(batch)
    images = {"LR": low, **{name_of(name): image for name, image in _images(task, batch).items()}, "HR": high}
    colours = {name: _rgb(task, image) for name, image in images.items()}
    return {
        f"{row + 1}: {place}": {name: each[row] for name, each in colours.items()}
        for row, place in enumerate(_places(task, batch))
    }


def _psnr(task: SuperResolutionTask, image: Tensor, high: Tensor) -> Tensor:
    """``(B, C)`` in dB, as it is scored."""
    both = (task.to_reflectance(one) for one in (image, high))
    return psnr(*both, data_range=task.config.max_reflectance, border=task.config.scale)


def _detail(task: SuperResolutionTask, batch: Batch) -> list[tuple[int, int, int]]:
    """Row, column and side of each patch's square, on whole LR pixels, of which bicubic interpolation misses most."""
    scale, missed = task.config.scale, _missed(task, batch)
    side = min(DETAIL, *missed.shape[1:]) // scale * scale
    means = avg_pool2d(missed[:, None], side, scale)[:, 0]
    best = means.flatten(1).argmax(1).tolist()
    return [(index // means.shape[-1] * scale, index % means.shape[-1] * scale, side) for index in best]


def panel_figure(task: SuperResolutionTask, batch: Batch) -> Figure:
    """A detail of each patch of ``batch`` as LR, bicubic, projected, super-resolved and HR, and how far each is off."""
    high, low = task.pair(batch)
    images = _images(task, batch)
    scores = {name: _psnr(task, image, high).mean(1).tolist() for name, image in images.items()}
    truth = task.to_reflectance(high)
    errors = {name: (task.to_reflectance(image) - truth).abs().mean(1).cpu().numpy() for name, image in images.items()}
    limit = float(np.percentile(np.stack(list(errors.values())), 99.5))
    coarse, fine = _metres(task)
    whole = {"LR": _rgb(task, low).repeat(task.config.scale, 1).repeat(task.config.scale, 2), "HR": _rgb(task, high)}
    pictures = {"LR": whole["LR"], **{name: _rgb(task, image) for name, image in images.items()}, "HR": whole["HR"]}
    figure = Figure(figsize=(11.4, 4.5 * len(high)), layout="constrained")
    axes = figure.subplots(2 * len(high), 5, squeeze=False)
    for row, (place, (top, left, side)) in enumerate(zip(_places(task, batch), _detail(task, batch), strict=True)):
        cut = (row, slice(top, top + side), slice(left, left + side))
        upper, lower = axes[2 * row], axes[2 * row + 1]
        for one, (name, picture) in zip(upper, pictures.items(), strict=True):
            second = f"{scores[name][row]:.2f} dB" if name in scores else f"{coarse if name == 'LR' else fine} m"
            show(one, picture[cut], title=f"{name_of(name)}\n{second}")
        for one, name in ((lower[0], "LR"), (lower[-1], "HR")):
            show(one, whole[name][row], title=f"the whole patch, {name}")
            one.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, color="white", lw=1.2))
        for one, name in zip(lower[1:-1], errors, strict=True):
            error = show(one, errors[name][cut], title=f"|{name_of(name)} − HR|", cmap="magma", vmin=0, vmax=limit)
        upper[0].set_ylabel(place, fontsize=9)
        _scale_bar(upper[-1], fine)
    _bar(figure, error, axes, "absolute error, mean over the bands, reflectance")
    figure.suptitle(
        f"{', '.join(task.config.rgb)}, white is reflectance {STRETCH:g}; PSNR of the whole patch, all bands",
        fontsize=9,
    )
    return figure


def baseline_psnr(task: SuperResolutionTask, *, split: str = "val") -> dict[str, float]:
    """PSNR in dB of bicubic and of bicubic + projection on a split, the mean over patches and bands."""
    found: dict[str, list[Tensor]] = {"bicubic": [], PROJECTED: []}
    for batch in task.batches(split, 0):
        high = task.pair(batch)[0]
        for name, image in _images(task, batch, tuple(found)).items():
            found[name].append(_psnr(task, image, high))
    return {name: float(torch.cat(each).mean()) for name, each in found.items()}


def history_figure(history: Sequence[Mapping[str, Any]], levels: Mapping[str, float]) -> Figure:
    """Pixel loss, validation PSNR and feature distance over the epochs; ``levels`` of :func:`baseline_psnr`."""
    figure = Figure(figsize=(9.5, 3.0), layout="constrained")
    _curves(figure.subplots(1, 2), history, levels)
    return figure


def _curves(axes: Sequence[Axes], history: Sequence[Mapping[str, Any]], levels: Mapping[str, float]) -> None:
    phases = list(dict.fromkeys(row["phase"] for row in history))

    def curve(one: Axes, name: str, **style: Any) -> None:
        """A line for each phase: what is minimised changes between them."""
        for phase in phases:
            rows = [row for row in history if row["phase"] == phase and row.get(name) is not None]
            one.plot([row["epoch"] for row in rows], [row[name] for row in rows], "o-", ms=3, **style)

    curve(axes[0], "train_pixel", color=WHO["model"])
    tidy(axes[0], "pixel loss, training", "epoch")
    curve(axes[1], "val_psnr", color=WHO["model"])
    for name, level in levels.items():
        axes[1].axhline(level, color=WHO[name], lw=1.2, ls="--")
        axes[1].annotate(name_of(name), (0.99, level), (0, -3), xycoords=axes[1].get_yaxis_transform(), fontsize=7,
                         textcoords="offset points", ha="right", va="top", color=WHO[name])  # fmt: skip
    axes[1].set_ylabel("PSNR, dB", fontsize=8, color=WHO["model"])
    key = distance({"metrics": {name.removeprefix("val_"): None for name in history[0]}})
    tidy(axes[1], f"validation: PSNR ↑ and {key.replace('_', ' ')} ↓", "epoch")
    right = axes[1].twinx()
    curve(right, f"val_{key}", color=DISTANCE, alpha=0.7)
    right.set_ylabel(key.replace("_", " "), fontsize=8, color=DISTANCE)
    right.tick_params(labelsize=7)
    for one in (*axes, right):
        one.margins(y=0.15)
        one.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    for one in axes:
        one.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for before, phase in itertools.pairwise(phases):
            border = max(row["epoch"] for row in history if row["phase"] == before) + 0.5
            one.axvline(border, color="#555", lw=1, ls=":")
            for text, side in ((before, "right"), (phase, "left")):
                one.text(border, 0.97, f" {PHASES.get(text, text)} ", fontsize=7, ha=side, va="top", color="#555",
                         transform=one.get_xaxis_transform())  # fmt: skip


def live_figure(
    task: SuperResolutionTask,
    history: Sequence[Mapping[str, Any]],
    batch: Batch,
    *,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """What to look at while training: the curves, and one validation patch beside its input and the truth.

    Args:
        levels: of :func:`baseline_psnr`; give it, so that it is not computed again for every picture.
    """
    figure = Figure(figsize=(11.0, 5.4), layout="constrained")
    curves, pictures = np.asarray(figure.subfigures(1, 2, width_ratios=(1, 1.05)))
    _curves(curves.subplots(2, 1), history, baseline_psnr(task) if levels is None else levels)
    one = Batch(batch.dn[:1], batch.patches[:1])
    high, low = task.pair(one)
    coarse, fine = _metres(task)
    shown = {f"LR, {coarse} m": low, f"HR, {fine} m": high}
    for name, image in _images(task, one, (PROJECTED, "model")).items():
        when = f" after epoch {history[-1]['epoch']}" if name == "model" else ""
        shown[f"{name_of(name)}{when}, {float(_psnr(task, image, high).mean()):.2f} dB"] = image
    for axes, (title, image) in zip(pictures.subplots(2, 2).flat, shown.items(), strict=True):
        show(axes, _rgb(task, image)[0], title=title)
    pictures.suptitle(f"{_places(task, one)[0]} (validation)", fontsize=9)
    return figure


def spectrum_figure(task: SuperResolutionTask, *, split: str = "test") -> Figure:
    """Radially averaged power spectra of HR and predictions, and their ratio: where detail is lost or made up."""
    sums: dict[str, Any] = {}
    side = 0
    for batch in itertools.islice(task.batches(split, 0), SPECTRUM_BATCHES):
        side = side or min(batch.dn.shape[-2:])
        if side != min(batch.dn.shape[-2:]):  # its spectrum has other wavelengths
            continue
        high = task.pair(batch)[0]
        for name, image in {"truth": high, **_images(task, batch)}.items():
            image = task.to_reflectance(image)
            power = power_by_wavelength(image - image.mean((-2, -1), keepdim=True)).mean(1)
            sums[name] = sums.get(name, 0) + power.sum(0).double().cpu().numpy()
    coarse, fine = _metres(task)
    wavelength = fine * side / np.arange(1, len(sums["truth"]) + 1)
    figure = Figure(figsize=(9.5, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, power in sums.items():
        style = {"color": WHO[name], "lw": 2.2 if name == "truth" else 1.4, "label": name_of(name)}
        left.loglog(wavelength, power / sums["truth"].max(), **style)
        right.semilogx(wavelength, power / sums["truth"], **style)
    left.set_ylim(bottom=0.01 * sums["truth"].min() / sums["truth"].max())
    left.text(2 * coarse, 0.02, f"shortest wave of LR, {2 * coarse} m ", fontsize=7, color="#555", ha="right",
              transform=left.get_xaxis_transform())  # fmt: skip
    ticks = [m for m in TICKS if wavelength[-1] <= m <= wavelength[0]]
    for axes, title in ((left, "power, of HR's largest"), (right, "power over that of HR → 1")):
        axes.axvline(2 * coarse, color="#555", lw=1, ls=":")
        axes.set_xticks(ticks, [str(m) for m in ticks])
        axes.minorticks_off()
        axes.invert_xaxis()
        tidy(axes, f"{title}, {split}", "wavelength, m")
    left.legend(fontsize=7)
    return figure


def report_figures(
    task: SuperResolutionTask, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Figure]]:
    """The figures of a run's report, by file name."""
    split = report["data"]["scored_split"]
    yield "panel", panel_figure(task, fixed_sample(task, split=split))
    yield "places", place_figure(report)
    yield "bands", band_figure(report)
    yield "tradeoff", tradeoff_figure(report)
    if history:
        yield "history", history_figure(history, baseline_psnr(task))
    yield "spectrum", spectrum_figure(task, split=split)
