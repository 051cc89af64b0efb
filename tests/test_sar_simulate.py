"""The scene simulator: what the radar and the camera show of one landscape, and what the poor image has lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

from nbhelpers.core.errors import UserError
from nbhelpers.science.landscape.canvas import Canvas
from nbhelpers.science.landscape.painting import paint_landscape
from nbhelpers.science.landscape.regions import REGIONS
from nbhelpers.stages.sar_grounding.backscatter import SPREAD, palette
from nbhelpers.stages.sar_grounding.degraded import degraded, name_seed
from nbhelpers.stages.sar_grounding.radar import FLOOR, LOOKS, View, sentinel1, slope_gain, speckled
from nbhelpers.stages.sar_grounding.simulate import BANDS, scene, simulate
from nbhelpers.stages.sar_grounding.tiles import Tiles, open_tiles

SMALL = {"n_scenes": 4, "size": 32, "seed": 3, "progress": False}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("scenes") / "data", **SMALL)


@pytest.fixture(scope="module")
def tiles(folder: Path) -> Tiles:
    return open_tiles(folder)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """S1 and S2 of one scene of each region, 128 x 128."""
    return [scene(region, size=128, seed=(11, number)) for number, region in enumerate(REGIONS)]


class TestFiles:
    def test_the_reader_opens_them(self, tiles: Tiles) -> None:
        assert sum(len(names) for names in tiles.split.values()) == 16 and tiles.size == (32, 32)
        assert tiles.simulated and tiles.opt_v2_kind == "simulated" and "stage2_outputs" in tiles.source
        assert len(set(tiles.block.values())) == 4 and not tiles.warnings

    def test_a_block_is_a_scene_and_in_one_split(self, tiles: Tiles) -> None:
        for block in set(tiles.block.values()):
            members = [name for name in tiles.block if tiles.block[name] == block]
            assert len(members) == 4 and len({tiles.about[name].split for name in members}) == 1

    def test_a_missing_opt_v2_is_not_made_up(self, tmp_path: Path) -> None:
        data = simulate(tmp_path / "data", **SMALL)
        (data / "stage2_outputs" / "tile_003.npz").unlink()
        with pytest.raises(UserError, match="tile_003.npz is not there"):
            open_tiles(data)

    def test_same_seed_same_files_other_seed_others(self, folder: Path, tmp_path: Path) -> None:
        assert contents(simulate(tmp_path / "again", **SMALL)) == contents(folder)
        other = open_tiles(simulate(tmp_path / "other", **{**SMALL, "seed": 4}))
        assert np.abs(other.s2("tile_000") - open_tiles(folder).s2("tile_000")).mean() > 0.003

    def test_a_scene_does_not_depend_on_their_number(self, folder: Path, tmp_path: Path) -> None:
        more = open_tiles(simulate(tmp_path / "more", **{**SMALL, "n_scenes": 5}))
        np.testing.assert_array_equal(more.s1("tile_007"), open_tiles(folder).s1("tile_007"))

    def test_whole_folders_stay_and_others_are_refused(self, folder: Path, tmp_path: Path) -> None:
        before = contents(folder)
        assert simulate(folder, **SMALL) == folder and contents(folder) == before
        with pytest.raises(UserError, match=r"size=32 \(asked: 48\)"):
            simulate(folder, **{**SMALL, "size": 48})
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").touch()
        with pytest.raises(UserError, match="holds thesis.txt but no simulated tiles"):
            simulate(tmp_path / "mine", **SMALL)

    @pytest.mark.parametrize("wrong", [{"n_scenes": 2}, {"size": 8}, {"seed": -1}])
    def test_impossible_settings(self, tmp_path: Path, wrong: dict[str, int]) -> None:
        with pytest.raises(UserError, match=next(iter(wrong))):
            simulate(tmp_path / "data", **{**SMALL, **wrong})


class TestRadar:
    def test_speckle_has_the_stated_looks_and_the_mean_of_the_power(self) -> None:
        seen = speckled(np.full((400, 400), 0.2, np.float32), np.random.default_rng(0))
        assert seen.mean() == pytest.approx(0.2, rel=0.02)
        assert seen.mean() ** 2 / seen.var() == pytest.approx(LOOKS, rel=0.1)
        x = seen - seen.mean()
        neighbours, next_but_one = ((x[:, k:] * x[:, :-k]).mean() / x.var() for k in (1, 2))
        assert neighbours == pytest.approx(np.exp(-0.5), abs=0.05)  # 0.52 to 0.69 in real scenes
        assert next_but_one == pytest.approx(np.exp(-2), abs=0.05)
        one_look = speckled(np.full((400, 400), 0.2, np.float32), np.random.default_rng(0), looks=1)
        assert one_look.mean() ** 2 / one_look.var() == pytest.approx(1, rel=0.15)

    def test_calm_water_shows_the_noise_floor(self) -> None:
        dark, flat = np.full((2, 200, 200), 1e-7, np.float32), np.zeros((200, 200), np.float32)
        seen = sentinel1(dark, flat, np.zeros((2, 200, 200)), View(38.0, True), np.random.default_rng(0))
        np.testing.assert_allclose(10 * np.log10((10 ** (seen / 10)).mean((1, 2))), FLOOR, atol=0.2)

    @pytest.mark.parametrize(("ascending", "facing"), [(True, 1), (False, -1)])
    def test_slopes_towards_the_radar_are_bright(self, ascending: bool, facing: int) -> None:
        flat, slope = np.zeros((8, 8), np.float32), np.zeros((2, 8, 8), np.float32)
        view = View(40.0, ascending)
        np.testing.assert_allclose(slope_gain(slope, flat, view), 1, rtol=1e-6)
        slope[1] = 0.2 * facing  # rises eastwards: faces west, where an ascending satellite is
        assert slope_gain(slope, flat, view).min() > 1.3 > 0.8 > slope_gain(-slope, flat, view).max()
        assert slope_gain(-10 * slope, flat, view).max() == pytest.approx(0.05)  # shadow

    def test_woods_have_a_bright_and_a_dark_edge(self) -> None:
        height = np.zeros((64, 64), np.float32)
        height[:, 20:44] = 20
        gain = slope_gain(np.zeros((2, 64, 64)), height, View(40.0, True))[32]
        assert gain[18:22].max() > 1.2 and gain[42:46].min() < 0.8
        assert gain[32] == pytest.approx(1, abs=0.01)

    def test_it_looks_like_sentinel_1(self, scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Within what seven real tiles have: VV -13.3 to -10.1 dB, VH -18.7 to -16.1, deviations 2.5 to 5.4 dB."""
        for s1, _ in scenes:
            (vv, vh), spread = s1.mean((1, 2)), s1.std((1, 2))
            assert -14.5 < vv < -9.5 and -21 < vh < -15 and 4.5 < vv - vh < 9
            assert 2.2 < spread.min() <= spread.max() < 6.5
            assert s1.min() > -50 and s1.max() < 25

    def test_water_is_dark_and_villages_are_bright(self) -> None:
        s1, s2 = scene(REGIONS[2], size=128, seed=(0, 2))
        water = gaussian_filter((s2[3] < 0.02).astype(float), 2) > 0.99
        assert water.mean() > 0.1
        assert s1[0][water].mean() < s1[0][~water].mean() - 5
        lowland, _ = scene(REGIONS[4], size=192, seed=(11, 4))
        assert np.percentile(lowland[0], 99.8) > lowland[0].mean() + 12

    def test_fields_may_differ_for_one_of_the_two_only(self) -> None:
        table = palette(BANDS)
        np.testing.assert_array_equal(table["soil_dark"][4:], table["soil_light"][4:])
        assert np.abs(table["soil_dark"][:4] - table["soil_light"][:4]).min() > 0.02
        bare = replace(REGIONS[0], crops={"grass": 1}, woods=0, hedges=0, roads=0, rivers=0, villages=0, relief=0)
        images = []
        for spread in (SPREAD, (0.0, 0.0, 0.0)):
            canvas = Canvas(np.random.default_rng(0), bare, (400, 400), table, n_lit=4, spread=spread)
            paint_landscape(canvas)
            images.append(canvas.values.copy())
        np.testing.assert_array_equal(images[0][:4], images[1][:4])
        tilled, even = (10 * np.log10(image[4]).std() for image in images)
        assert tilled > even + 0.4


class TestWorth:
    def test_edges_lie_where_the_camera_has_them(self, scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
        radar = [sum(gaussian_gradient_magnitude(band, 3) for band in s1) for s1, _ in scenes]
        camera = [gaussian_gradient_magnitude(np.log(s2 + 0.02).sum(0), 3) for _, s2 in scenes]
        true = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(radar, camera, strict=True)]
        wrong = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for n, a in enumerate(radar) for b in camera[:n]]
        assert np.mean(true) > 0.15 > 0.06 > abs(np.mean(wrong))

    def test_the_poor_image_is_poor_but_not_another(self, scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
        for number, (_, s2) in enumerate(scenes):
            poor = degraded(s2, seed=number)
            assert 22 < -10 * np.log10(((poor - s2) ** 2).mean()) < 34
            lost = [gaussian_gradient_magnitude(image[3], 1).mean() for image in (poor, s2)]
            assert lost[0] < 0.75 * lost[1]
            assert poor.min() >= 0 and poor.dtype == np.float32

    def test_colours_are_off_by_a_lasting_and_an_own_factor(self, scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
        ratios = np.array([degraded(s2, seed=n).mean((1, 2)) / s2.mean((1, 2)) for n, (_, s2) in enumerate(scenes)])
        assert ratios.mean(0)[0] > 1.05 and ratios.mean(0)[3] < 0.95
        assert (ratios.std(0) > 0.01).all()

    def test_gaps_stay_gaps_and_harm_nothing_else(self, scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
        truth = scenes[0][1].copy()
        truth[:, :, 100:] = np.nan
        poor = degraded(truth, seed=1)
        np.testing.assert_array_equal(np.isnan(poor), np.isnan(truth))
        assert np.isnan(degraded(np.full((4, 8, 8), np.nan, np.float32), seed=1)).all()

    def test_it_is_the_same_in_every_run(self, scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
        truth = scenes[0][1]
        np.testing.assert_array_equal(*(degraded(truth, seed=name_seed("tile_001", salt="simulated")) for _ in "ab"))
        assert name_seed("tile_001", salt="simulated") == 14416753651173472525
        assert name_seed("tile_001", salt="simulated") != name_seed("tile_001", salt="proxy")
