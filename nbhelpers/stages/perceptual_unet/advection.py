"""Advection baseline: estimate where the rain moves, then move the last frame along that motion, unchanged.

Motion is a multi-frame Lucas-Kanade estimate: within a window all pixels share one displacement v per frame step,
found by weighted least squares on brightness constancy, ``I(x, t) = I(x - k v, t - k)``, over all lags k. It runs
coarse to fine, warping the older frames with the current estimate at every pass. The window has heavy tails (a sum
of Gaussians and the whole domain), so that places without texture take the motion of the wider area around them.
The forecast is backward semi-Lagrangian: positions are traced back, and each lead reads the last frame once.

Motion: channel 0 is x (columns, to the right), 1 is y (rows, **down**), the way the rain moves, in pixels per frame
step: ``next_frame(x) = frame(x - motion)``.

Sources: Lucas and Kanade (1981), Proc. IJCAI, 674; Germann and Zawadzki (2002), Mon. Wea. Rev. 130, 2859 (the
semi-Lagrangian scheme); Bowler, Pierce and Seed (2004), J. Hydrol. 288, 74 (optical flow for rain); Pulkkinen et al.
(2019), Geosci. Model Dev. 12, 4185 (pySTEPS, with which this one was compared).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.bilinear import ReadLearnt, pixels, read

FRAMES = 12  # the motion is estimated from at most so many last frames
CELL = 8  # px: motion is solved on cells of this size and interpolated between their centres
WINDOW = 12.0  # px: sigma of the innermost Gaussian window, at least ...
SPREAD = 4.0  # ... so many pixels of the pyramid level at hand
TAILS = (1.0, 0.2, 0.04, 0.008)  # weights of the windows: sigma 1, 2 and 4 times the innermost, and the whole domain
COARSEST = 16  # px: the pyramid ends at images of about this size
PASSES = 4  # warps per pyramid level
RESIDUAL = 0.2  # grey level / 255: larger residuals (growth, decay, clutter) lose weight (Cauchy)
RIDGE = 1e-2  # pull of a window with texture in one direction only towards the motion of the domain
KNOWN = 0.99  # share of observed area from which an averaged or interpolated pixel counts as observed


@torch.no_grad()
def motion_field(frames: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Motion of the rain at the time of the last frame, estimated from the last ``FRAMES`` frames.

    Parameters: ``frames`` (B, T, H, W) float in [0, 1] (grey level / 255, 0 = dry), oldest first; ``valid``
    (B, T, H, W) bool, False where missing: such pixels have no say. Returns (B, 2, H, W) in pixels per frame step,
    finite everywhere; 0 in a batch member without texture. Raises ``UserError`` if T < 2 or the shapes disagree.
    """
    images, seen = _checked(frames, valid)
    images, seen = images[:, -FRAMES:], seen[:, -FRAMES:]
    height, width = images.shape[-2:]
    levels = max(1, round(math.log2(min(height, width) / COARSEST)))
    block = max(CELL, 2**levels)  # cells and levels nest exactly after padding, which counts as missing
    padding = (0, -width % block, 0, -height % block)
    images, seen = F.pad(images, padding), F.pad(seen, padding)
    full, pyramid = images.shape[-2:], []
    for level in range(levels + 1):
        if level:
            share = F.avg_pool2d(seen, 2)
            images, seen = F.avg_pool2d(images * seen, 2) / share.clamp_min(1e-6), (share > KNOWN).to(images)
        if level or images.shape[1] < 4:  # more frames average the aliasing of half size out: full size gains nothing
            eroded = -F.max_pool2d(-seen, 3, stride=1, padding=1)  # no gradients across the edge of a mask
            pyramid.append((2**level, images, eroded))
    motion = images.new_zeros(len(images), 2, 1, 1)
    for number, (scale, images, seen) in enumerate(reversed(pyramid)):
        lags = range(1, min(images.shape[1] - 1, 4**number) + 1)  # long lags once the motion is roughly known
        for number_pass in range(PASSES):
            smooth = number < len(pyramid) - 1 or number_pass < PASSES - 1
            motion = _refine(images, seen, motion, scale, lags, smooth)
    return F.interpolate(motion, size=full, mode="bilinear")[..., :height, :width]


def _refine(images: Tensor, seen: Tensor, motion: Tensor, scale: int, lags: range, smooth: bool) -> Tensor:
    """One Gauss-Newton pass on the level whose pixels are ``scale`` px wide; motion on any grid, in full-size px.

    ``smooth``: solve for the motion itself, which the window smooths; else for its correction, which halves the error
    that smoothing left in rotation and shear."""
    here = F.interpolate(motion, size=images.shape[-2:], mode="bilinear") / scale
    now, now_seen, grid = images[:, -1:], seen[:, -1:], pixels(images)
    cell, terms = max(CELL, scale), []
    for lag in lags:
        older = torch.stack([images[:, -1 - lag], seen[:, -1 - lag]], 1)
        past, past_seen = read(older, grid - lag * here).split(1, 1)
        residual = now - past
        gy, gx = torch.gradient((now + past) / 2, dim=(-2, -1))
        # Least squares gives lag k the weight k^2; with k, long lags (precise) do not silence short ones (recent).
        weight = lag * now_seen * (past_seen > KNOWN) / (1 + (residual / RESIDUAL) ** 2)
        along = smooth * (gx * here[:, :1] + gy * here[:, 1:]) - residual / lag
        equations = weight * torch.cat([gx * gx, gx * gy, gy * gy, gx * along, gy * along], 1)
        terms.append(F.avg_pool2d(equations, cell // scale))
    sums = _windowed(torch.stack(terms).sum(0), max(WINDOW, SPREAD * scale) / cell)
    domain = _solve(sums.mean((-2, -1), keepdim=True), images.new_zeros(len(images), 2, 1, 1))
    return _solve(sums, domain) * scale + (0 if smooth else motion)


def _windowed(sums: Tensor, sigma: float) -> Tensor:
    """Sums (B, C, h, w) under a heavy-tailed window: Gaussians of ``sigma``, 2 and 4 ``sigma`` cells, the domain."""
    out = TAILS[-1] * sums.mean((-2, -1), keepdim=True)
    places = [torch.arange(n, dtype=sums.dtype, device=sums.device) for n in sums.shape[-2:]]
    for share, width in zip(TAILS, (sigma, 2 * sigma, 4 * sigma), strict=False):
        rows, columns = (torch.exp(-(((x[:, None] - x) / width) ** 2) / 2) for x in places)
        out = out + share / (2 * math.pi * width**2) * rows @ sums @ columns
    return out


def _solve(sums: Tensor, prior: Tensor) -> Tensor:
    """Motion (B, 2, h, w) from the normal equations (B, 5, h, w); ``prior`` decides where they leave it open."""
    ridge = RIDGE * (sums[:, :1] + sums[:, 2:3]) + 1e-12
    xx, xy, yy = sums[:, :1] + ridge, sums[:, 1:2], sums[:, 2:3] + ridge
    bx, by = (sums[:, 3:] + ridge * prior).split(1, 1)
    return torch.cat([yy * bx - xy * by, xx * by - xy * bx], 1) / (xx * yy - xy * xy)


def extrapolate(frame: Tensor, motion: Tensor, leads: int, *, valid: Tensor | None = None) -> Tensor:
    """Move ``frame`` along a steady ``motion`` field, backward semi-Lagrangian, for ``leads`` frame steps.

    Parameters: ``frame`` (B, H, W), ``motion`` (B, 2, H, W) px per step, ``valid`` (B, H, W) bool; returns
    (B, leads, H, W). **Border rule**: once the air of a pixel comes from outside the image or from missing pixels,
    the pixel keeps its forecast of the lead before; where no lead ever saw an observation it is dry (0).
    """
    seen = torch.ones_like(frame) if valid is None else valid.to(frame)
    still = frame[:, None].expand(-1, leads, -1, -1)
    return _carried(torch.where(seen[:, None] > 0, still, 0.0), seen, _departures(motion, leads))


def _carried(fields: Tensor, seen: Tensor, places: Iterable[Tensor]) -> Tensor:
    """Field k of (B, leads, H, W), given where the air is now, read at place k; border rule of ``extrapolate``."""
    current, out = fields[:, 0], []
    for lead, place in enumerate(places):
        value = ReadLearnt.apply(fields[:, lead : lead + 1], place)[:, 0]
        known = read(seen[:, None], place)[:, 0]
        current = torch.where(known > 0.5, value / known.clamp_min(0.5), current)
        out.append(current)
    return torch.stack(out, 1)


def _departures(motion: Tensor, leads: int) -> Iterator[Tensor]:
    """Where the air of each pixel was 1, 2, ... steps ago: (B, 2, H, W) px, by the iterated mid-point rule."""
    place = pixels(motion).expand_as(motion)
    step = motion
    for _ in range(leads):
        for _ in range(2):  # 2 iterations: motion is smooth over the length of a step
            step = read(motion, place - step / 2, padding_mode="border")
        place = place - step
        yield place


@dataclass(frozen=True)
class Moving:
    """Frames seen from coordinates that move with the rain: where it only moves, nothing changes."""

    aligned: Tensor  # (B, T, H, W): every input frame, brought to where its air is at the time of the last one
    seen: Tensor  # (B, H, W), 1 where the last aligned frame is known, else 0
    places: tuple[Tensor, ...]  # (B, 2, H, W) px for each lead: where its air is at the time of the last frame
    held: Tensor  # (B, leads) bool: leads at which everything stays where it is

    def carry(self, fields: Tensor) -> Tensor:
        """Fields (B, leads, H, W) in moving coordinates, each carried to its place; border rule of ``extrapolate``.

        The last aligned frame, repeated, gives the advection nowcast.
        """
        known = torch.where(self.seen[:, None] > 0, fields, 0.0)
        return torch.where(self.held[..., None, None], known, _carried(known, self.seen, self.places))


@torch.no_grad()
def moving_frames(frames: Tensor, n_out: int, *, valid: Tensor | None = None) -> Moving:
    """Frames (B, T, H, W) in [0, 1] in moving coordinates, and the way back for ``n_out`` leads.

    What the last frame misses is filled from older frames along the motion. A mosaic whose radars refresh less often
    than its frames come stands still, then jumps, and persistence wins the first leads. So the motion is tried on the
    input frames: leads before the first one at which its squared error is smaller stay where they are, each batch
    member by itself. Raises ``UserError`` like ``motion_field``.
    """
    images, seen = _checked(frames, valid)
    motion = motion_field(images, valid=seen > 0)
    places = list(_departures(motion, max(n_out, images.shape[1] - 1)))
    older, older_seen = _aligned(images[:, :-1], seen[:, :-1], places)
    last, known = images[:, -1], seen[:, -1]
    for age in range(older.shape[1]):  # the youngest frame that saw a hole fills it
        gap = (known == 0) & (older_seen[:, -1 - age] > 0.5)
        last, known = torch.where(gap, older[:, -1 - age], last), torch.where(gap, 1.0, known)
    n_held = _held_leads(images, seen, places[: min(n_out, images.shape[1] // 2)])
    held = torch.arange(n_out, device=n_held.device) < n_held[:, None]
    return Moving(torch.cat([older, last[:, None]], 1), known, tuple(places[:n_out]), held)


@torch.no_grad()
def advection_nowcast(frames: Tensor, n_out: int, *, valid: Tensor | None = None) -> Tensor:
    """Advection forecast (B, n_out, H, W) from ``frames`` (B, T, H, W) in [0, 1]; ``valid`` as in ``motion_field``.

    The last frame, moved along the motion: see ``moving_frames``.
    """
    moving = moving_frames(frames, n_out, valid=valid)
    return moving.carry(moving.aligned[:, -1:].expand(-1, n_out, -1, -1))


def _aligned(images: Tensor, seen: Tensor, places: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Older frames (B, T-1, H, W) read at their own departure places, and how much of each pixel they saw."""
    values, shares = [], []
    for age in range(images.shape[1], 0, -1):
        value, known = read(torch.stack([images[:, -age], seen[:, -age]], 1), places[age - 1]).unbind(1)
        values.append(torch.where(known > 0.5, value / known.clamp_min(0.5), 0.0))
        shares.append(known)
    return torch.stack(values, 1), torch.stack(shares, 1)


def _held_leads(images: Tensor, seen: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Number (B,) of first leads at which, within the input frames, persistence has a smaller error than motion."""
    held = torch.zeros(len(images), dtype=torch.long, device=images.device)
    for lead, place in enumerate(places):
        older, older_seen, truth = images[:, : -lead - 1], seen[:, : -lead - 1], images[:, lead + 1 :]
        moved, reached = read(torch.cat([older, older_seen], 1), place).chunk(2, 1)
        judged = seen[:, lead + 1 :] * older_seen * (reached > KNOWN)
        gain = (judged * ((older - truth) ** 2 - (moved - truth) ** 2)).sum((1, 2, 3))
        held += (held == lead) & (gain < 0)
    return held


def _checked(frames: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Frames with 0 at missing pixels, and the mask as numbers; raises ``UserError`` on shapes that do not fit."""
    if frames.ndim != 4 or frames.shape[1] < 2 or not frames.is_floating_point():
        found = f"{tuple(frames.shape)} {frames.dtype}"
        raise UserError(f"Advection got frames {found}: pass float (B, T, H, W), grey level / 255, T at least 2.")
    if valid is not None and valid.shape != frames.shape:
        raise UserError(f"The valid mask is {tuple(valid.shape)}, but must be {tuple(frames.shape)} like the frames.")
    seen = torch.ones_like(frames) if valid is None else valid.to(frames)
    return torch.where(seen > 0, frames, 0.0), seen
