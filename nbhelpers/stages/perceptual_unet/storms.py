"""Simulated storms: radar frames that are partly predictable and partly not.

What is modelled, and why:

* **Motion.** A steady, divergence-free flow ``u = k × ∇ψ``: a mean wind and a few long waves of the streamfunction ψ,
  so that paths are curved. Rain is not stepped through the grid (which would smear it): a parcel's *label*, where
  it was at the first frame, is traced back (semi-Lagrangian; Staniforth, Côté 1991, Mon. Wea. Rev. 119) and the rain
  is looked up there.
* **Stratiform rain.** A Gaussian field with a power-law spectrum; every wavelength follows an AR(1) process in the
  moving frame whose lifetime grows with the wavelength, so small scales are forgotten first (S-PROG: Seed 2003,
  J. Appl. Meteor. 42; STEPS: Bowler, Pierce, Seed 2006, Q. J. R. Meteorol. Soc. 132). It rains where the field
  exceeds a threshold that drifts with time, log-normally above it.
* **Convection.** Cells are born along lines or in clusters, move with the flow and a deviation of their own, and live
  through growth, maturity and decay (Byers, Braham 1949, "The Thunderstorm"): 20-60 min, strong cells longer, wide
  when old. Each leaves an anvil that moves with the flow alone, spreads and fades, which makes the stratiform region
  behind a squall line (Houze 2004, Rev. Geophys. 42). New cells form ahead of a line or on a cluster's flank.
* **Place.** A fixed smooth map of growth and decay regions. Noise of a grey level or two, clutter near a radar, and
  in one event of seven a sector or segment without measurements.

So the next frames are partly predictable: motion beats persistence, the life cycle can be learned beyond motion,
births and small scales cannot. It is no storm model: no dynamics, no microphysics, and no place in a paper's table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from nbhelpers.stages.perceptual_unet.data import MISSING

VERSION = 2  # of the physics below: raise it whenever the same parameters give other storms
SPIN_UP = 150.0  # minutes of convection before the first frame


@dataclass(frozen=True)
class Regime:
    """A kind of weather; convective numbers are per 192 × 192 km."""

    kind: str  # which of SEVIR's files it goes to
    event_type: str  # as in NOAA's Storm Events, empty for random events
    probability: float
    lines: int  # squall lines
    clusters: int  # groups of cells
    births: float  # cells born per minute and line or cluster
    scattered: float  # single cells born per minute anywhere
    peak: float  # median of a cell's largest VIL, kg m⁻²
    threshold: float  # standard deviations above which the stratiform field rains


REGIMES = (
    Regime("STORMEVENTS", "Thunderstorm Wind", 0.35, 1, 0, 2.0, 0.05, 11.0, 1.1),  # squall line
    Regime("STORMEVENTS", "Hail", 0.25, 0, 3, 0.25, 0.08, 13.0, 1.0),  # multicell clusters
    Regime("RANDOMEVENTS", "", 0.10, 0, 0, 0.0, 0.45, 8.0, 1.1),  # scattered showers
    Regime("RANDOMEVENTS", "", 0.30, 0, 2, 0.20, 0.10, 5.0, 0.0),  # widespread rain with embedded cells
)


@dataclass(frozen=True)
class Flow:
    """A steady flow; ψ's waves as arrays of the same length."""

    mean: NDArray[np.float64]  # (2,) y and x, km per minute
    wave: NDArray[np.float64]  # (M, 2) wavenumbers, radians per km
    amplitude: NDArray[np.float64]  # (M,) largest speed of each wave, km per minute
    phase: NDArray[np.float64]  # (M,) radians

    def __call__(self, position: NDArray) -> NDArray[np.float64]:
        """Velocity (..., 2) in km per minute at ``position`` (..., 2) in km: ``(v, u) = (∂ψ/∂x, −∂ψ/∂y)`` + mean."""
        along = self.wave / np.linalg.norm(self.wave, axis=1, keepdims=True)
        across = np.stack((along[:, 1], -along[:, 0]), axis=1) * self.amplitude[:, None]
        return self.mean + np.cos(position @ self.wave.T + self.phase) @ across


@dataclass(frozen=True)
class Cells:
    """Convective cells of one event, arrays of length N; kilometres, minutes, kg m⁻²."""

    birth: NDArray[np.float64]  # time, 0 = first frame
    place: NDArray[np.float64]  # (N, 2) y, x at birth
    drift: NDArray[np.float64]  # (N, 2) velocity besides the flow
    life: NDArray[np.float64]  # from birth to the end of the core
    peak: NDArray[np.float64]  # VIL of the core at its strongest
    radius: NDArray[np.float64]  # (N, 2) of the core at its strongest, along y and x


@dataclass(frozen=True)
class Storm:
    """One simulated event."""

    regime: Regime
    frames: NDArray[np.uint8]  # (T, H, W) grey levels, 255 missing
    motion: NDArray[np.float64]  # (2, H, W) true flow along y and x, pixels per frame


def vil_level(kg_m2: NDArray) -> NDArray[np.float64]:
    """Grey level (0-254, not rounded) of vertically integrated liquid in kg m⁻²: the inverse of ``data.vil_kg_m2``.

    0 up to 0.033 (levels to 5 all mean 0), 90.66 v + 2 up to 0.1765, 83.9 + 38.9 ln v above (18 across the gap
    between the two branches); monotone, so that thresholds on either scale select the same pixels.
    """
    v = np.asarray(kg_m2, dtype=np.float64)
    log_branch = np.maximum(83.9 + 38.9 * np.log(np.maximum(v, 0.17)), 18.0)
    level = np.where(v <= 16.0 / 90.66, 90.66 * v + 2.0, log_branch)
    return np.where(v <= 3.0 / 90.66, 0.0, np.minimum(level, 254.0))


def regime_of(index: int) -> Regime:
    """The weather of event ``index``: a quasi-random sequence, so that a dozen events already hold every kind."""
    share = (0.15 + index * np.sqrt(2.0)) % 1.0
    bounds = np.cumsum([regime.probability for regime in REGIMES])
    return REGIMES[min(int(np.searchsorted(bounds, share, side="right")), len(REGIMES) - 1)]


def simulate_event(*, seed: int, index: int, size: int, n_frames: int, step_minutes: int) -> Storm:
    """Event ``index``: a function of its arguments and nothing else; ``size`` pixels of 1 km, time in minutes."""
    rng = np.random.default_rng([seed, index])
    regime = regime_of(index)
    flow = _draw_flow(rng, size)
    duration = step_minutes * n_frames
    cells = _draw_cells(rng, regime, flow, size=size, duration=duration)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1).astype(np.float64)
    growth = _smooth_map(rng, grid)
    texture = _textures(rng, size=size, step_minutes=step_minutes)
    places = _cell_places(cells, flow, step_minutes=step_minutes)
    labels = _labels(flow, size=size, step_minutes=step_minutes)
    # Anvils lag behind a line, which runs ahead, and stream ahead of other cells, whose steering level lies lower.
    shear = flow.mean * (rng.uniform(-0.3, 0.0) if regime.lines else rng.uniform(0.0, 0.4))
    threshold = regime.threshold + rng.normal(0.0, 0.15)
    trend = rng.normal(0.0, 1.8) / 240.0  # of the threshold, standard deviations per minute
    radar = rng.uniform(0, size, 2)
    clutter_probability = 0.25 * np.exp(-((grid - radar) ** 2).sum(-1) / (2 * 18.0**2))
    frames = np.empty((n_frames, size, size), np.uint8)
    for t, (noise, label, place) in enumerate(islice(zip(texture, labels, places, strict=True), n_frames)):
        now = t * step_minutes
        rain, fine, warp_y, warp_x = _sample(noise, label)
        excess = np.maximum(rain + 0.05 * fine + 0.6 * growth - threshold - trend * (now - duration / 2), 0)
        stratiform = 0.6 * np.expm1(2.2 * np.tanh(excess / 2.2))  # log-normal, levelling off near 5 kg m⁻²
        core, anvil = _render(cells, place, now, size=size, shear=shear)
        warped = np.stack((grid[..., 0] + warp_y, grid[..., 1] + warp_x))
        core, anvil = _sample(np.stack((core, anvil), axis=-1), warped, wrap=False)
        anvil = np.maximum(anvil * np.exp(0.5 * rain + 0.08 * fine + 0.5 * growth) - 0.15, 0)
        vil = stratiform + anvil + core * np.exp(0.6 * fine + 0.4 * growth)
        level = vil_level(vil)
        level += (level > 0) * rng.normal(0, 1.5, level.shape)
        clutter = (rng.random(level.shape) < clutter_probability) * rng.uniform(2, 12, level.shape)
        frames[t] = np.rint(np.clip(np.maximum(level, clutter), 0, 254))
    _blank_sectors(rng, frames)
    return Storm(regime, frames, np.moveaxis(flow(grid), -1, 0) * step_minutes)


def _draw_flow(rng: np.random.Generator, size: int) -> Flow:
    # Small domains get slower storms, which else would be gone after a few frames.
    speed = rng.uniform(2.5, 6.5) / 5.0 * min(1.0, (size / 192) ** 0.5)
    heading = rng.normal(0.3, 0.7)  # radians north of east: weather mostly comes from the west
    turn = rng.uniform(0, 2 * np.pi, 3)
    length = rng.uniform(250.0, 600.0, 3)
    return Flow(
        mean=speed * np.array([-np.sin(heading), np.cos(heading)]),
        wave=2 * np.pi / length[:, None] * np.stack((np.sin(turn), np.cos(turn)), axis=1),
        amplitude=speed * rng.uniform(0.05, 0.22, 3),
        phase=rng.uniform(0, 2 * np.pi, 3),
    )


def _draw_cells(rng: np.random.Generator, regime: Regime, flow: Flow, *, size: int, duration: int) -> Cells:
    speed = float(np.linalg.norm(flow.mean))
    ahead = flow.mean / speed
    side = np.array([ahead[1], -ahead[0]])
    births: list[NDArray] = []
    places: list[NDArray] = []

    def add(birth: NDArray, place: NDArray) -> None:
        births.append(birth)
        places.append(place)

    for _ in range(regime.lines):
        tilt = rng.normal(0.0, 0.35)
        along = np.cos(tilt) * side + np.sin(tilt) * ahead
        length, bow = rng.uniform(0.7, 1.3) * size, rng.uniform(0.0, 0.4)
        centre = size / 2 + max(0.2 * size, 40.0) * rng.uniform(-1, 1, 2)
        birth = rng.uniform(-SPIN_UP, duration, rng.poisson(regime.births * length / 192 * (SPIN_UP + duration)))
        # Cells come in clumps along the line, and the line runs ahead of its cells: births lead, decay trails.
        clump = rng.uniform(-0.5, 0.5, ceil(length / 12)) * length
        s = rng.choice(clump, birth.size) + rng.normal(0, 7.0, birth.size)
        depth = rng.normal(0, 2.0, birth.size) - bow * s**2 / length
        moved = (flow.mean + 0.3 * speed * ahead) * (birth - duration / 2)[:, None]
        add(birth, centre + moved + s[:, None] * along + depth[:, None] * ahead)
    margin = 20.0  # clusters reach in from outside
    for _ in range(round(regime.clusters * ((size + 2 * margin) / 192) ** 2)):
        middle, half = rng.uniform(0, duration), rng.uniform(50, 110)
        birth = rng.uniform(middle - half, middle + half, rng.poisson(regime.births * 2 * half))
        centre = rng.uniform(-margin, size + margin, 2)
        scatter = rng.normal(0, 6.0, (birth.size, 2)) + rng.normal(0, 1.0, (birth.size, 1)) * rng.normal(0, 13.0, 2)
        # New cells prefer the right flank, so the cluster turns off to the right of its cells.
        velocity = flow(centre) + speed * rng.uniform(0.0, 0.3) * side
        moved = velocity * (birth - middle)[:, None]
        add(birth, centre + moved + scatter)
    pad = speed * 40.0  # cells drift in from upstream
    n = rng.poisson(regime.scattered * ((size + 2 * pad) / 192) ** 2 * (SPIN_UP + duration))
    add(rng.uniform(-SPIN_UP, duration, n), rng.uniform(-pad, size + pad, (n, 2)))

    birth, place = np.concatenate(births), np.concatenate(places)
    peak = np.minimum(regime.peak * rng.lognormal(0.0, 0.65, birth.size), 70.0)
    strength = peak / 12.0
    return Cells(
        birth=birth,
        place=place,
        drift=rng.normal(0, 0.06 * speed, (birth.size, 2)),
        life=np.clip(42.0 * strength**0.3 * rng.lognormal(0.0, 0.2, birth.size), 20.0, 60.0),
        peak=peak,
        radius=2.7 * strength[:, None] ** 0.25 * rng.lognormal(0.0, 0.2, (birth.size, 2)),
    )


def _cell_places(cells: Cells, flow: Flow, *, step_minutes: int) -> Iterator[NDArray[np.float64]]:
    """(N, 2) positions at each frame; a cell that is not yet born stands where it will be."""
    place, now = cells.place.copy(), -ceil(SPIN_UP / step_minutes) * step_minutes
    while True:
        if now >= 0:
            yield place
        dt = np.clip(now + step_minutes - cells.birth, 0, step_minutes)[:, None]
        middle = place + dt / 2 * (flow(place) + cells.drift)
        place = place + dt * (flow(middle) + cells.drift)
        now += step_minutes


def _render(cells: Cells, place: NDArray, now: float, *, size: int, shear: NDArray) -> tuple[NDArray, NDArray]:
    """VIL (H, W) of cores and of anvils: sums of Gaussians, each a product of two profiles, hence one matmul."""
    age = now - cells.birth
    alive = (age > 0) & (age < cells.life + 150.0)
    age, life, place = age[alive], cells.life[alive], place[alive]
    stage = np.minimum(age / life, 1.0)
    grown = cells.radius[alive] * (0.6 + 0.6 * stage)[:, None]  # old cells are wide
    core = cells.peak[alive] * np.sin(np.pi * stage**0.7) ** 1.3  # strongest at 37 % of its life
    fade = np.exp(-np.maximum(age - life, 0) / 45.0)
    anvil = 0.9 * np.sqrt(cells.peak[alive] / 12.0) * (1 - np.exp(-age / life)) * fade
    spread = np.minimum(2.5 * cells.radius[alive] + 0.08 * age[:, None], 24.0)
    axis = np.arange(size)

    def total(amplitude: NDArray, centre: NDArray, radius: NDArray) -> NDArray:
        y, x = (np.exp(-(((axis - centre[:, i, None]) / radius[:, i, None]) ** 2) / 2) for i in (0, 1))
        return (amplitude[:, None] * y).T @ x

    plume = total(anvil, place + age[:, None] * shear, spread)
    return total(core, place, grown), 1.8 * -np.expm1(-plume / 1.8)  # overlapping anvils do not add up for ever


def _textures(rng: np.random.Generator, *, size: int, step_minutes: int) -> Iterator[NDArray[np.float32]]:
    """Per frame (P, P, 4), periodic, P = 2·size: rain and fine texture of unit variance, warp in y and x in km.

    One spectrum of AR(1) coefficients with lifetime τ = 6 min per km of wavelength; the four fields filter it.
    """
    n = fft.next_fast_len(2 * size, real=True)
    ky, kx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :]
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.6)
    along, across = ky * np.sin(turn) + kx * np.cos(turn), kx * np.sin(turn) - ky * np.cos(turn)
    k = np.maximum(np.hypot(along * stretch, across / stretch**0.5), 0.5 / n)
    keep = np.exp(-step_minutes * k / 6.0).astype(np.float32)
    fresh = np.sqrt(1 - keep**2)
    rain = (k**2 + (1 / 200) ** 2) ** (-3.2 / 4)  # variance density k^-3.2, flat beyond 200 km
    fine = (1 - np.exp(-((20 * k) ** 2))) * k ** (-2.4 / 2)
    warp = (k**2 + (1 / 30) ** 2) ** (-3.2 / 4)
    filters = np.stack((rain, fine, warp * 1j * ky / k, warp * 1j * kx / k))
    filters[:, 0, 0] = 0
    # irfft2 counts the columns kx > 0 twice and takes the real part of kx = 0.
    power = 2 * np.sum(np.abs(filters) ** 2 * np.where(kx > 0, 2, 1), axis=(1, 2), keepdims=True)
    filters *= np.array([1.0, 1.0, 3.0, 3.0])[:, None, None] / np.sqrt(power)
    filters[:, :, 0] *= np.sqrt(2)
    filters = filters.astype(np.complex64)

    def noise() -> NDArray[np.complex64]:
        return rng.standard_normal((n, n // 2 + 1, 2), dtype=np.float32).view(np.complex64)[..., 0]

    state = noise()
    while True:
        yield np.moveaxis(fft.irfft2(filters * state, s=(n, n), norm="forward"), 0, -1)
        state = keep * state + fresh * noise()


def _labels(flow: Flow, *, size: int, step_minutes: int) -> Iterator[NDArray[np.float64]]:
    """Per frame (2, H, W): where the air over each pixel was at the first frame, km; traced on a grid of 8 km."""
    knots = np.arange(0, size + 8, 8)
    label = np.stack(np.meshgrid(knots, knots, indexing="ij"), axis=-1).astype(np.float64)
    position = np.arange(size)[:, None] / 8.0
    interpolate = np.maximum(0, 1 - np.abs(position - np.arange(knots.size)))  # (size, knots), linear
    while True:
        yield np.stack([interpolate @ label[..., i] @ interpolate.T for i in (0, 1)])
        # The flow is steady, so going back t + 1 steps is going back one step from where t steps led.
        middle = label - step_minutes / 2 * flow(label)
        label = label - step_minutes * flow(middle)


def _sample(field: NDArray, at: NDArray, *, wrap: bool = True) -> NDArray:
    """Bilinear values (C, H, W) of ``field`` (P, Q, C) at ``at`` (2, H, W); periodic, or held at the border."""
    p, q, channels = field.shape
    if not wrap:
        at = np.clip(at, 0, np.array([p - 1, q - 1])[:, None, None])
    floor = np.floor(at)
    wy, wx = (at - floor).astype(np.float32)[..., None]
    y, x = floor.astype(np.int64)
    rows = [np.mod(y + i, p) * q for i in (0, 1)]
    columns = [np.mod(x + i, q) for i in (0, 1)]
    flat = np.ascontiguousarray(field).reshape(p * q, channels)
    upper, lower = (
        flat.take(row + columns[0], axis=0) * (1 - wx) + flat.take(row + columns[1], axis=0) * wx for row in rows
    )
    return np.moveaxis(upper * (1 - wy) + lower * wy, -1, 0)


def _smooth_map(rng: np.random.Generator, grid: NDArray) -> NDArray[np.float64]:
    """(H, W), unit variance, wavelengths of 120-300 km: where storms grow (> 0) and decay."""
    turn, length, phase = rng.uniform(0, 2 * np.pi, 6), rng.uniform(120, 300, 6), rng.uniform(0, 2 * np.pi, 6)
    wave = 2 * np.pi / length[:, None] * np.stack((np.sin(turn), np.cos(turn)), axis=1)
    return np.cos(grid @ wave.T + phase).sum(-1) / np.sqrt(3.0)


def _blank_sectors(rng: np.random.Generator, frames: NDArray[np.uint8]) -> None:
    """In 15 % of events: a beam's sector or what lies beyond a radar's range is 255, in all or some frames."""
    n_frames, size, _ = frames.shape
    if rng.random() >= 0.15:
        return
    y, x = np.indices((size, size)) - size * rng.uniform(0.2, 0.8, (2, 1, 1))
    if rng.random() < 0.5:
        off = np.angle(np.exp(1j * (np.arctan2(y, x) - rng.uniform(0, 2 * np.pi))))
        blank = np.abs(off) < rng.uniform(0.05, 0.4)
    else:
        distance = np.hypot(y, x)
        blank = distance > np.quantile(distance, rng.uniform(0.75, 0.97))
    first = 0 if rng.random() < 0.5 else int(rng.integers(n_frames))
    last = n_frames if rng.random() < 0.5 else int(rng.integers(first + 1, n_frames + 1))
    frames[first:last, blank] = MISSING
