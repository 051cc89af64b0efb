"""Two pictures of one place, one on each side of a line that a slider moves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError

Pictures = Mapping[str, NDArray[Any]]  # (H, W, 3) by name
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
PAD, TEXT = 6, 14  # pixels: about a label, and its height
LINE, LABEL = (255, 255, 255), (0, 0, 0, 150)


class Swipe:
    """The panel behind :func:`swipe`."""

    def __init__(self, samples: Mapping[str, Pictures], left: str | None, right: str | None, size: int):
        import ipywidgets as w

        self._samples = {name: _enlarged(pictures, name, size) for name, pictures in samples.items()}
        names = _names(self._samples)
        style, layout = {"description_width": "50px"}, w.Layout(width=f"{size // 2 - 4}px")
        chosen = {"left": names[0] if left is None else left, "right": names[-1] if right is None else right}
        for side, name in chosen.items():
            if name not in names:
                raise UserError(f"{side} is {name!r}, expected the name of a picture: {', '.join(names)}.")
        self.left, self.right = (
            w.Dropdown(options=names, value=name, description=side, layout=layout, style=style)
            for side, name in chosen.items()
        )
        self.sample = w.Dropdown(options=list(samples), description="place", layout=layout, style=style)
        self.position = w.FloatSlider(
            value=0.5, min=0.0, max=1.0, step=0.01, readout=False, layout=w.Layout(width=f"{size}px")
        )
        self.picture = w.Image(value=self._png(), format="png", layout=w.Layout(width=f"{size}px"))
        controls = [w.HBox([self.left, self.right]), self.position, self.picture]
        self.box = w.VBox([self.sample, *controls] if len(samples) > 1 else controls)
        for control in (self.left, self.right, self.sample, self.position):
            control.observe(self._moved, "value")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The panel, and the picture as it is now for places where no widget lives: a saved notebook, a web page."""
        return {
            "text/plain": f"{self.left.value} | {self.right.value}",
            "image/png": base64.b64encode(self.picture.value).decode(),
            WIDGET_MIME: {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id},
        }

    def _moved(self, change: Mapping[str, Any]) -> None:
        self.picture.value = self._png()

    def _png(self) -> bytes:
        pictures = self._samples[self.sample.value]
        left, right = self.left.value, self.right.value
        return compose(pictures[left], pictures[right], self.position.value, labels=(left, right))


def swipe(
    images: Pictures | Mapping[str, Pictures], *, left: str | None = None, right: str | None = None, size: int = 480
) -> Swipe:
    """A before/after slider: left of its line one picture, right of it another of the same place.

    Args:
        images: pictures ``(H, W, 3)`` by name, float in [0, 1] or uint8; or such mappings by the name of a place, to
            choose one. Pixels are enlarged as they are, so that one of a coarse picture covers many of a fine one.
        left, right: the names to begin with; by default the first and the last.
        size: pixels along the longer side on the screen.

    Raises:
        UserError: no picture, one of another shape or range, or of other proportions than the rest; unknown names.
    """
    nested = bool(images) and isinstance(next(iter(images.values())), Mapping)
    samples = cast("Mapping[str, Pictures]", images if nested else {"": images})
    return Swipe(samples, left, right, size)


def compose(
    left: NDArray[np.uint8], right: NDArray[np.uint8], position: float, *, labels: tuple[str, str] = ("", "")
) -> bytes:
    """A PNG of the left part of ``left`` and the rest of ``right``, both ``(H, W, 3)``, with a line between them.

    Args:
        position: share of the width that shows ``left``.
        labels: in the upper corners, each where its part is wide enough for it.
    """
    from PIL import Image, ImageDraw

    width = left.shape[1]
    cut = round(position * width)
    image = Image.fromarray(np.concatenate([left[:, :cut], right[:, cut:]], 1))
    draw = ImageDraw.Draw(image, "RGBA")
    for label, room, at_left in zip(labels, (cut, width - cut), (True, False), strict=True):
        needed = draw.textlength(label, font=_font()) + 2 * PAD
        if label and room >= needed + 2 * PAD:
            x = PAD if at_left else width - PAD - needed
            draw.rectangle((x, PAD, x + needed, 2 * PAD + TEXT + PAD), fill=LABEL)
            draw.text((x + PAD, 2 * PAD - 2), label, fill=LINE, font=_font())
    if 0 < cut < width:
        draw.line((cut, 0, cut, image.height), fill=LINE, width=1)
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _font() -> Any:
    """A font with more than Latin letters, whatever the age of Pillow: matplotlib's own."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), TEXT)


def _enlarged(pictures: Pictures, sample: str, size: int) -> dict[str, NDArray[np.uint8]]:
    """All pictures of a place in one size, ``size`` along the longer side, by repeating pixels."""
    shape: tuple[int, int] | None = None
    found: dict[str, NDArray[np.uint8]] = {}
    for name, picture in pictures.items():
        where = f"picture {name!r}" + (f" of {sample}" if sample else "")
        pixels = _bytes(np.asarray(picture), where)
        height, width = pixels.shape[:2]
        longer = max(height, width)
        own = round(size * height / longer), round(size * width / longer)
        if shape is not None and own != shape:
            raise UserError(
                f"{where} has {height} x {width} pixels, other proportions than {next(iter(found))!r}: give pictures "
                "of one place."
            )
        shape = own
        rows, columns = np.arange(own[0]) * height // own[0], np.arange(own[1]) * width // own[1]
        found[name] = pixels[rows[:, None], columns]
    return found


def _bytes(picture: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise UserError(
            f"{where} has the shape {picture.shape}, expected (rows, columns, 3): red, green and blue last."
        )
    if picture.dtype == np.uint8:
        return picture
    if not np.issubdtype(picture.dtype, np.floating):
        raise UserError(f"{where} holds {picture.dtype}, expected floats from 0 to 1, or uint8.")
    low, high = float(picture.min()), float(picture.max())
    if not (low >= 0 and high <= 1):  # undefined values too
        raise UserError(f"{where} has values from {low:.3g} to {high:.3g}, expected 0 to 1: stretch and clip it first.")
    return np.rint(picture * 255).astype(np.uint8)


def _names(samples: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of the pictures, which all places share."""
    each = {place: list(pictures) for place, pictures in samples.items()}
    names = next(iter(each.values()), [])
    if not names:
        raise UserError("There is no picture to swipe: give at least one, by name.")
    for place, other in each.items():
        if other != names:
            raise UserError(f"{place} has the pictures {', '.join(other)}, expected {', '.join(names)} as the others.")
    return names
