"""Which patches show the same ground, over random places, sizes, turns and projections."""

from __future__ import annotations

import time

import numpy as np
import pytest
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points

from nbhelpers.science.ground import Georeference, cell_name, ground_cells

Place = tuple[Georeference, tuple[int, int]]


def patch(
    east: float, north: float, size: int | tuple[int, int], *, zone: int = 33, metres: float = 10.0, turn: float = 0.0
) -> Place:
    """With its upper left corner there."""
    transform = Affine.translation(east, north) @ Affine.rotation(turn) @ Affine.scale(metres, -metres)
    return (f"EPSG:{32600 + zone}", tuple(transform)[:6]), (size, size) if isinstance(size, int) else size


def shared(*places: Place) -> list[list[bool]]:
    """Whether each two have a cell in common."""
    found = ground_cells({n: place for n, (place, _) in enumerate(places)}, {n: of for n, (_, of) in enumerate(places)})
    sets = [set(found.get(n, ())) for n in range(len(places))]
    return [[bool(one & other) for other in sets] for one in sets]


def in_pixels(of: Place, other: Place, n: int = 60) -> np.ndarray:
    """``(n², 2)`` points of ``other``, edges included, in fractions of ``of``'s width and height."""
    (crs, transform), (height, width) = other
    u, v = (one.ravel() for one in np.meshgrid(np.linspace(0, width, n), np.linspace(0, height, n)))
    a, b, c, d, e, f = transform
    x, y = warp_points(crs, of[0][0], a * u + b * v + c, d * u + e * v + f)
    inverse = ~Affine(*of[0][1])
    a, b, c, d, e, f = tuple(inverse)[:6]
    x, y = np.array(x), np.array(y)
    return np.stack(((a * x + b * y + c) / of[1][1], (d * x + e * y + f) / of[1][0]), -1)


@pytest.mark.parametrize("size", [24, 48, 64, 120])
@pytest.mark.parametrize("share", [0.92, 0.5, 0.05])
def test_small_tiles_that_overlap_are_found_wherever_they_lie(size: int, share: float) -> None:
    rng, side = np.random.default_rng(size), 10 * size
    places = []
    for _ in range(100):
        east, north = rng.uniform(2e5, 8e5), rng.uniform(1e5, 8e6)
        places += [patch(east, north, size), patch(east + (1 - share) * side, north, size)]
    found = np.array(shared(*places))
    assert found[np.arange(0, 200, 2), np.arange(1, 200, 2)].all()


@pytest.mark.parametrize("size", [24, 48, 120])
def test_tiles_that_touch_share_nothing_wherever_they_lie(size: int) -> None:
    rng, side = np.random.default_rng(size), 10 * size
    for _ in range(5):
        east, north = rng.uniform(2e5, 8e5), rng.uniform(1e5, 8e6)
        places = [patch(east + column * side, north - row * side, size) for column in range(5) for row in range(5)]
        assert (np.array(shared(*places)) == np.eye(25, dtype=bool)).all()
        near = patch(east + side - 4, north, size)
        assert not shared(places[0], near)[0][1], "less than half a pixel is rounding"
        assert shared(places[0], patch(east + side - 6, north, size))[0][1]


@pytest.mark.parametrize("zones", [(33, 33), (32, 33)])
def test_random_sizes_and_turns_agree_with_counting_points(zones: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(zones))
    seen = []
    for _ in range(150):
        east, north = rng.uniform(2.5e5, 3e5), rng.uniform(4e6, 6e6)
        sizes = [(int(rng.integers(10, 200)), int(rng.integers(10, 200))) for _ in range(2)]
        one = patch(east, north, sizes[0], zone=33, turn=rng.choice([0, rng.uniform(0, 360)]))
        x, y = east + rng.uniform(-2500, 2500), north + rng.uniform(-2500, 2500)
        (x,), (y,) = warp_points("EPSG:32633", f"EPSG:{32600 + zones[0]}", [x], [y])
        metres = float(rng.choice([5.0, 10.0, 20.0]))
        other = patch(x, y, sizes[1], zone=zones[0], metres=metres, turn=rng.choice([0, rng.uniform(0, 360)]))
        inside, around = (
            any(
                ((low <= points) & (points <= 1 - low)).all(1).any()
                for points in (in_pixels(one, other), in_pixels(other, one))
            )
            for low in (0.1, -0.1)
        )
        answer = shared(one, other)[0][1]
        seen.append(answer)
        assert answer or not inside, "they have points in common that lie well within"
        assert around or not answer, "no point of one is even near the other"
    assert 20 < sum(seen) < 130


def test_a_small_tile_within_a_scene_and_a_cross_of_two_strips() -> None:
    scene, inner, outside = patch(3e5, 6e6, 10980), patch(3.5e5, 5.95e6, 24), patch(2.9e5, 6e6, 24)
    assert shared(scene, inner, outside)[0] == [True, True, False]
    lying, standing = patch(3e5, 5e6, (20, 400)), patch(3.02e5, 5.002e6, (400, 20))
    assert shared(lying, standing)[0][1], "neither has a corner in the other"


def test_the_cell_in_common_lies_in_both() -> None:
    one, other = patch(4e5, 5e6, 48), patch(4e5 + 240, 5e6 - 240, 48)
    found = ground_cells({0: one[0], 1: other[0]}, {0: one[1], 1: other[1]})
    (cell,) = set(found[0]) & set(found[1])
    lat, _, lon, _ = cell_name(cell).split()
    (x,), (y,) = warp_points("EPSG:4326", "EPSG:32633", [float(lon)], [float(lat)])
    assert (x, y) == pytest.approx((4e5 + 360, 5e6 - 360), abs=1)


def test_images_of_one_place_at_many_dates_are_one_footprint() -> None:
    series = [patch(4e5, 5e6, 48)] * 300
    assert np.array(shared(*series, patch(5e5, 5e6, 48)))[:300, :300].all()


def test_across_the_antimeridian() -> None:
    (x,), (y,) = warp_points("EPSG:4326", "EPSG:32660", [179.998], [10.0])
    over = patch(x, y, 120, zone=60)
    (x,), (y,) = warp_points("EPSG:4326", "EPSG:32601", [-179.999], [9.999])
    assert shared(over, patch(x, y, 48, zone=1), patch(x + 2e4, y, 48, zone=1))[0] == [True, True, False]


def test_ten_thousand_tiles_take_seconds() -> None:
    places = [patch(3e5 + 480 * (n % 100), 5e6 - 480 * (n // 100), 48) for n in range(10_000)]
    start = time.perf_counter()
    found = ground_cells({n: place for n, (place, _) in enumerate(places)}, dict.fromkeys(range(10_000), (48, 48)))
    assert time.perf_counter() - start < 20, "0.6 s on two cores"
    assert all(len(cells) == 1 for cells in found.values()) and len({cells[0] for cells in found.values()}) == 10_000
