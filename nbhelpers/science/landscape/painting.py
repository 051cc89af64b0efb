"""Simulated landscapes: parcels, woods, heath, lakes, rivers, roads, villages.

A scene is painted at 5 m from few materials, each with one value per channel (see ``canvas.py``):

* **Parcels.** Blocks of land (Voronoi cells of jittered points, bent a little) are cut into strips of a heading and
  width of their own. A parcel mixes its crop with what shows through where the crop is thin; the share follows
  streaks along the rows, tramlines and a power-law field. Blocks are parted by lanes, parcels partly by hedges.
* **Woods, heath, lakes** lie where power-law fields exceed a quantile: fractal edges, which partly follow parcels.
  Woods cast a shadow away from the sun. Rivers and main roads are splines across the scene.
* **Villages and farms** are plots along streets: a roof, its shadow, a garden.
* **Relief** shades by the slope towards the sun.

It is a stand-in for demos and tests, no model of any real place, and no place in a paper's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin, tan

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from nbhelpers.science.landscape.canvas import (
    CELL,
    SUN,
    SUN_ZENITH,
    TABLE,
    Array,
    Canvas,
    Window,
    above,
    away_from_sun,
    border,
    hashed,
    line,
)
from nbhelpers.science.landscape.regions import CROPS, ROOFS


def paint_landscape(canvas: Canvas) -> None:
    """Fill the canvas with a landscape of its region."""
    land = _paint_parcels(canvas)
    _paint_cover(canvas, land)
    _paint_lines(canvas, land)
    _paint_settlements(canvas)
    _shade(canvas)


@dataclass(frozen=True)
class _Land:
    block: NDArray[np.int32]  # (H, W) block of land of each cell
    parcel: NDArray[np.int32]  # (H, W) parcel, an index into tables of length TABLE
    taste: Array  # (H, W) standard normal, constant within a parcel: lets woods follow parcels


def _intervals(position: Array, salt: NDArray[np.int32], jitter: Array) -> NDArray[np.int32]:
    """Which interval, 1 long on average, ``position`` falls into; the bounds depend on ``salt``."""
    whole = np.floor(position)
    index = whole.astype(np.int32)
    return index - (position - whole < 0.8 * jitter[hashed(index, salt)])


def _paint_parcels(canvas: Canvas) -> _Land:
    rng, region = canvas.rng, canvas.region
    # Blocks: nearest of jittered points of a turned grid, the way there bent by smooth noise.
    heading = rng.uniform(0, pi)
    reach = np.hypot(*canvas.extent) / 2 + 2 * region.block
    ticks = np.arange(-reach, reach, region.block)
    points = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    points += rng.uniform(-0.42, 0.42, points.shape) * region.block
    bend_y, bend_x = (0.04 * region.block * canvas.noise(7.0, longest=region.block) for _ in range(2))
    y, x = canvas.y - canvas.extent[0] / 2 + bend_y, canvas.x - canvas.extent[1] / 2 + bend_x
    u, v = x * cos(heading) + y * sin(heading), y * cos(heading) - x * sin(heading)
    block = cKDTree(points).query(np.stack((u, v), -1))[1].astype(np.int32)

    # Strips: each block has its own heading, width and length of parcels.
    n = len(points)
    turn = np.radians(rng.normal(0, region.turn, n)) + (rng.random(n) < 0.5) * (pi / 2)
    width, length = ((size * rng.lognormal(0, 0.35, n)).astype(np.float32) for size in region.strip)
    cos_turn, sin_turn = np.cos(turn).astype(np.float32)[block], np.sin(turn).astype(np.float32)[block]
    across, along = u * cos_turn + v * sin_turn, v * cos_turn - u * sin_turn
    jitter = rng.random(TABLE, np.float32)
    i = _intervals(across / width[block], block, jitter)
    parcel = hashed(block, i, _intervals(along / length[block], hashed(block, i), jitter))

    # What grows there, and how thinly.
    crops = list(region.crops)
    share = np.array([region.crops[crop] for crop in crops])
    kind = rng.choice(len(crops), TABLE, p=share / share.sum())
    mixed = np.clip(rng.normal(region.soil_share, 0.25, TABLE), 0, 1).astype(np.float32)[:, None]
    soil = canvas.colour(region.soils[0]) * (1 - mixed) + canvas.colour(region.soils[1]) * mixed
    top, below, thin = np.empty_like(soil), np.empty_like(soil), np.empty(TABLE, np.float32)
    for number, (upper, lower, mean) in enumerate(CROPS[crop] for crop in crops):
        chosen = kind == number
        top[chosen] = soil[chosen] if upper == "soil" else canvas.colour(upper)
        below[chosen] = soil[chosen] if lower == "soil" else canvas.colour(lower)
        thin[chosen] = mean
    light = rng.lognormal(0, 0.10, TABLE).astype(np.float32)
    thin += rng.normal(0, 0.13, TABLE).astype(np.float32)
    patchy, streaky = (0.11 * rng.lognormal(-0.4, 0.6, TABLE).astype(np.float32) for _ in range(2))
    tram = 0.16 * rng.random(TABLE, np.float32) ** 2
    rows = gaussian_filter(rng.standard_normal(TABLE, np.float32), 1.0, mode="wrap") * 1.9
    rows += gaussian_filter(rng.standard_normal(TABLE, np.float32), 6.0, mode="wrap") * 4.6
    spread = canvas.noise(2.6, longest=400)
    row = rows[((across / CELL).astype(np.int32) + parcel * 37) % TABLE]
    wheel = np.maximum(np.cos((2 * pi / 27) * across), 0) ** 3
    thin_here = np.clip(
        thin[parcel] + patchy[parcel] * spread + streaky[parcel] * row + tram[parcel] * wheel, 0, 1
    ).astype(np.float32)
    light_here = light[parcel] * (1 + 0.035 * spread + 0.03 * canvas.noise(1.5, longest=60))
    n_lit = len(canvas.lit)
    rough = _roughness(canvas)
    for band, values in enumerate(canvas.values):
        vary = light_here if band < n_lit else rough[band - n_lit][parcel]
        values[:] = (top[parcel, band] * (1 - thin_here) + below[parcel, band] * thin_here) * vary
    return _Land(block, parcel, rng.standard_normal(TABLE, np.float32)[parcel])


def _roughness(canvas: Canvas) -> Array:
    """(B - n_lit, TABLE) factors of the channels without sunlight: what moisture and tillage make of a parcel."""
    if not canvas.spread:
        return np.ones((0, TABLE), np.float32)
    wet, own = canvas.rng.standard_normal(TABLE), canvas.rng.standard_normal((len(canvas.spread), TABLE))
    factors: Array = np.exp(np.array(canvas.spread)[:, None] * (0.8 * wet + 0.6 * own)).astype(np.float32)
    return factors


def _paint_cover(canvas: Canvas, land: _Land) -> None:
    """Heath, woods, lakes and their shores."""
    rng, region = canvas.rng, canvas.region
    crown = canvas.noise(0.6, longest=25)
    stands = canvas.noise(3.0, longest=500)
    if region.heath:
        heath = above(canvas.noise(3.2, longest=1500) + 0.5 * land.taste, region.heath * rng.lognormal(0, 0.3), 0.3)
        open_ground = np.clip(0.45 + 0.30 * stands + 0.16 * crown, 0, 1)
        canvas.paint("shrub", heath * 0.9, texture=1 + 0.08 * crown)
        canvas.paint(region.soils[0], heath * 0.6 * open_ground)
        canvas.paint("grass", heath * 0.35 * np.clip(0.4 - 0.5 * stands + 0.1 * crown, 0, 1))
    if region.woods:
        field = canvas.noise(3.0, longest=2000) + region.woods_follow_parcels * land.taste
        woods = above(field, region.woods * rng.lognormal(0, 0.3), 0.05)
        # Sunlit crowns and the shade between them; the shade of the edge falls away from the sun.
        shade = np.clip(away_from_sun(woods, 15) - woods, 0, 1)
        canvas.lit *= 1 - 0.45 * shade
        texture = np.exp(0.14 * crown + 0.10 * stands).astype(np.float32)
        canvas.paint("deciduous", woods, texture=texture)
        canvas.paint("conifer", woods * above(stands + 0.4 * land.taste, region.conifers, 0.4), texture=texture)
    if region.lakes:
        depth = canvas.noise(3.9, longest=2500)
        share = region.lakes * rng.lognormal(0, 0.6)
        canvas.paint("shrub", above(depth, 1.25 * share, 0.1), texture=np.exp(0.12 * crown))  # reeds and mud
        lakes = above(depth, share, 0.02)
        canvas.paint("water", lakes, texture=1 + 0.02 * stands)
        canvas.dry -= lakes


def _curve(canvas: Canvas, *, bends: float, sway: float) -> tuple[Array, Array]:
    """Distance in metres (H, W) of each cell from a spline across the scene, and the length along it."""
    rng, (height, width) = canvas.rng, canvas.extent
    turn = rng.uniform(0, pi)
    y = canvas.y - height * rng.uniform(0.2, 0.8)
    x = canvas.x - width * rng.uniform(0.2, 0.8)
    along, across = x * cos(turn) + y * sin(turn), y * cos(turn) - x * sin(turn)
    reach = np.hypot(height, width) + 2 * bends
    knots = np.arange(-reach, reach, bends)
    spline = CubicSpline(knots, rng.normal(0, sway, len(knots)))
    fine = np.arange(-reach, reach - bends, CELL)
    middle, slope = (np.interp(along, fine, spline(fine, order)).astype(np.float32) for order in (0, 1))
    return np.abs(across - middle) / np.sqrt(1 + slope**2), along


def _paint_lines(canvas: Canvas, land: _Land) -> None:
    """Hedges and field margins, lanes between blocks, streams and rivers, main roads."""
    rng, region, dry = canvas.rng, canvas.region, canvas.dry
    trees = canvas.noise(1.2, longest=120)
    edge = border(land.parcel) * dry
    hedge = edge * above(trees + 1.2 * land.taste, region.hedges, 0.8)
    canvas.paint("grass", 0.35 * edge)
    thick = np.clip(gaussian_filter(hedge, 0.8) * (1.9 + 0.5 * trees), 0, 0.9)
    canvas.paint("deciduous", thick, texture=np.exp(0.10 * trees))
    lane = border(land.block) * dry
    track = np.clip(gaussian_filter(lane, 0.6) * 1.1, 0, 0.75)
    canvas.paint("gravel", track * (0.35 + 0.65 * (rng.standard_normal(TABLE, np.float32)[hashed(land.block)] > -0.3)))
    for _ in range(rng.poisson(region.rivers)):
        distance, along = _curve(canvas, bends=rng.uniform(300, 700), sway=rng.uniform(60, 180))
        width = np.float32(rng.lognormal(2.9, 0.7))
        wide = (width * (1 + 0.25 * np.sin(along / 230) + 0.15 * np.sin(along / 71))).astype(np.float32)
        canvas.paint("deciduous", dry * line(distance, wide + 40) * np.clip(0.5 + 0.6 * trees, 0, 0.9))
        canvas.paint("gravel", dry * line(distance, wide + 12) * 0.3)
        canvas.paint("water", line(distance, wide), texture=1.5)
    for _ in range(rng.poisson(region.roads)):
        distance, _along = _curve(canvas, bends=1500, sway=120)
        width = rng.choice([7.0, 9.0, 13.0, 26.0], p=[0.4, 0.35, 0.15, 0.1])
        canvas.paint("grass", 0.8 * dry * line(distance, width * 1.8 + 6))
        canvas.paint("asphalt", dry * line(distance, width), texture=1.15)
        if width > 20:
            canvas.paint("grass", 0.7 * dry * line(distance, 4.0))  # between the carriageways


def _paint_settlements(canvas: Canvas) -> None:
    """Villages and, ten times as many, farms: plots along streets."""
    rng, (height, width) = canvas.rng, canvas.extent
    number = canvas.region.villages * height * width / 1e6
    radii = [*rng.lognormal(4.9, 0.5, rng.poisson(number)), *rng.lognormal(3.5, 0.3, rng.poisson(10 * number))]
    for radius in radii:
        centre = rng.uniform((0, 0), (height, width))
        row, column = (centre / CELL).astype(int)
        if canvas.dry[row, column] < 1:
            continue
        low = np.maximum((centre - 2 * radius) / CELL, 0).astype(int)
        high = ((centre + 2 * radius) / CELL).astype(int) + 1
        _paint_plots(canvas, (slice(low[0], high[0]), slice(low[1], high[1])), centre, radius)


def _paint_plots(canvas: Canvas, window: Window, centre: NDArray, radius: float) -> None:
    rng, turn = canvas.rng, canvas.rng.uniform(0, pi)
    village = radius > 60
    y, x = canvas.y[window[0]] - centre[0], canvas.x[:, window[1]] - centre[1]
    u, v = x * cos(turn) + y * sin(turn), y * cos(turn) - x * sin(turn)
    white = rng.standard_normal(u.shape, np.float32)
    green, ragged = gaussian_filter(white, 1) * 3.0, gaussian_filter(white, 8) * 25
    u += 5 * ragged
    # Most villages are longer than wide, and frayed.
    inside = 1 - np.hypot(u * rng.uniform(0.6, 1.0), v * rng.uniform(1.0, 1.6)) / np.float32(radius) + 0.25 * ragged
    garden = np.clip(3 * inside, 0, 0.8) * canvas.dry[window]
    canvas.paint("grass", garden, texture=1 - 0.08 * green, window=window)
    canvas.paint("deciduous", garden * np.clip(0.35 + 0.40 * green, 0, 0.9), window=window)
    canvas.paint("gravel", garden * np.clip(0.20 - 0.25 * green, 0, 0.6), window=window)
    plot = rng.uniform(17, 24) if village else rng.uniform(26, 36)  # m along the street; a farm's are wider
    street = rng.uniform(2.4, 3.4) * plot  # between two streets, a row of plots on either side
    if village:
        canvas.paint("asphalt", np.clip(4 * inside, 0, 1) * line(np.abs(v % street - street / 2), 5.0), window=window)
    column, row = np.floor(u / plot).astype(np.int32), np.floor(2 * v / street).astype(np.int32)
    name = hashed(column, row, int(rng.integers(TABLE)))

    def drawn(values: NDArray) -> Array:
        """One of ``values`` (TABLE,) a plot."""
        return values.astype(np.float32)[name]

    # Houses stand at the street, which follows every second bound between rows.
    side = np.where(row % 2 == 0, 1, -1)
    half_u, half_v = (plot * drawn(rng.uniform(0.16, 0.38, TABLE)) for _ in range(2))
    du = u - (column + 0.5) * plot - plot * drawn(rng.uniform(-0.15, 0.15, TABLE))
    dv = v - (row + 0.5) * (street / 2) - side * plot * drawn(rng.uniform(0.0, 0.25, TABLE))
    built = (drawn(rng.random(TABLE)) < 0.8) & (inside > 0.1) & (canvas.dry[window] == 1)
    fall = (8 * -sin(SUN), 8 * cos(SUN))  # metres along x and y, away from the sun
    fall_u, fall_v = fall[0] * cos(turn) + fall[1] * sin(turn), fall[1] * cos(turn) - fall[0] * sin(turn)
    shadow = built & (np.abs(du - fall_u) < half_u) & (np.abs(dv - fall_v) < half_v)
    canvas.lit[(slice(None), *window)] *= 1 - 0.4 * shadow
    house = built & (np.abs(du) < half_u) & (np.abs(dv) < half_v)
    roof = rng.choice(len(ROOFS), TABLE, p=[shares[0 if village else 1] for shares in ROOFS.values()])[name]
    light = drawn(rng.lognormal(0, 0.2, TABLE))
    for number, material in enumerate(ROOFS):
        canvas.paint(material, (house & (roof == number)).astype(np.float32), texture=light, window=window)


def _shade(canvas: Canvas) -> None:
    """Relief: brighter on slopes that face the sun."""
    if not canvas.region.relief:
        return
    height = canvas.noise(3.6, longest=3000)
    smooth = gaussian_filter(height, 40 / CELL)
    south, east = np.gradient(smooth, axis=0), np.gradient(smooth, axis=1)
    towards = south * cos(SUN) - east * sin(SUN)
    canvas.lit *= np.clip(1 + canvas.region.relief * towards / towards.std(), 0.35, 1.6)
    # The slopes under which a matt surface is shaded so, to first order.
    canvas.slope[:] = np.stack((south, east)) * (canvas.region.relief / (tan(SUN_ZENITH) * towards.std()))


def paint_clouds(canvas: Canvas) -> None:
    """Clouds and their shadows, for the channels that show sunlight only."""
    field = canvas.noise(3.3, longest=1500)
    thick = above(field, canvas.rng.uniform(0.05, 0.35), 0.5)
    canvas.lit *= 1 - 0.55 * gaussian_filter(away_from_sun(thick, 500), 3)
    cover, texture = np.clip(thick, 0, 0.97), 1 + 0.1 * field
    for values, reflectance in zip(canvas.lit, canvas.colour("cloud"), strict=False):
        values += cover * (reflectance * texture - values)
