"""Whole scenes: tiles without seams, one projection, GeoTIFFs that lie where their input lay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.core.errors import UserError
from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution import geotiff, scene
from nbhelpers.stages.super_resolution.blocks import enlarge
from nbhelpers.stages.super_resolution.generator import Generator
from nbhelpers.stages.super_resolution.geotiff import Scene, read_scene, write_scene
from nbhelpers.stages.super_resolution.scene import super_resolve_scene
from nbhelpers.stages.super_resolution.units import Units

BANDS = ("B02", "B03", "B04", "B08")
D = Degradation(4, (0.3,) * 4)
UNITS = Units.physical(4, maximum=1.0)
CORNER = Affine(10, 0, 600_000, 0, -10, 5_300_000)


def generator(*, gain: float = 3.0) -> Generator:
    """An untrained network whose weights are so large that it adds as much as a trained one."""
    torch.manual_seed(0)
    model = Generator(4, scale=4, features=16, growth=8, num_rrdb=1, num_rrfdb=1, degradation=D).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain)
    return model.requires_grad_(False)


def land(height: int, width: int, seed: int = 0) -> Tensor:
    """``(4, height, width)`` reflectance that a 4 times finer image without negative pixels explains."""
    coarse = torch.rand(1, 4, -(-height // 4), -(-width // 4), generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(0.05 + 0.3 * coarse, scale_factor=16, mode="bicubic")[..., : 4 * height, : 4 * width]
    return D.degrade(fine.clamp(min=0.05))[0]


@pytest.fixture(scope="module")
def tile(real_data: Path) -> Path:
    return sorted((real_data / "s1s2_tiles/S2L2A").iterdir())[1]


@pytest.fixture(scope="module")
def dark_tile(real_data: Path) -> Path:
    """Water of a reflectance of 0.0001."""
    return sorted((real_data / "s1s2_tiles/S2L2A").iterdir())[2]


def write(path: Path, image: Any, *, bands: tuple[str | None, ...] = BANDS, **profile: Any) -> Path:
    image = np.asarray(image)
    options = {"crs": "EPSG:32633", "transform": CORNER, **profile}
    shape = dict(zip(("count", "height", "width"), image.shape, strict=True))
    tags = {name: options.pop(name) for name in ("scales", "offsets") if name in options}
    with rasterio.open(path, "w", driver="GTiff", dtype=image.dtype, **shape, **options) as file:
        file.write(image)
        for name, value in tags.items():
            setattr(file, name, (value,) * len(image))
        for number, band in enumerate(bands, start=1):
            if band:
                file.set_band_description(number, band)
    return path


def dn(height: int = 8, width: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 4000, (4, height, width)).astype("uint16")


# --- Tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 63, 64, 65, 100, 111, 257, 1000])
@pytest.mark.parametrize(("tile", "margin"), [(64, 8), (64, 20), (96, 28)])
def test_weights_of_all_tiles_sum_to_one(n: int, tile: int, margin: int) -> None:
    overlap = 2 * margin + scene.RAMP
    places = scene.tiles(n, tile, overlap)
    total = torch.zeros(4 * n)
    for (start, stop), weight in zip(places, scene.weights(n, places, 4, margin), strict=True):
        assert stop - start == min(n, tile) and weight.shape == (4 * (stop - start),)
        assert float(weight.min()) >= 0 and float(weight.diff().abs().max() if n > 1 else 0) < 0.05, "smooth"
        for inner, edge in ((start > 0, weight[: 4 * margin]), (stop < n, weight[-4 * margin :])):
            assert not inner or not edge.any(), "what lies near an inner edge counts nothing"
        total[4 * start : 4 * stop] += weight
    assert float((total - 1).abs().max()) < 1e-6
    assert places[0][0] == 0 and places[-1][1] == n
    assert all(left[1] - right[0] >= overlap for left, right in zip(places, places[1:], strict=False))


def test_tiles_leave_no_seams() -> None:
    low, network = land(150, 131), generator()
    whole, _ = super_resolve_scene(network, low, degradation=D, units=UNITS, tile=200)
    floor = D.project_nonnegative(enlarge(low[None], 4), low[None], floor=0.0)[0][0]
    detail = float((whole - floor).std())
    assert detail > 0.004, "as much as a trained one adds"
    tiled, _ = super_resolve_scene(network, low, degradation=D, units=UNITS, tile=96, batch_size=3)
    assert float((tiled - whole).square().mean().sqrt()) < 1e-3 * detail
    assert float((tiled - whole).abs().max()) < 0.02 * detail
    # Tiles that merely touch are no match: the overlap is what does it.
    touching, _ = super_resolve_scene(network, low, degradation=D, units=UNITS, tile=96, margin=0)
    assert float((touching - whole).square().mean().sqrt()) > 1e-2 * detail


@pytest.mark.parametrize("size", [(1, 1), (5, 90), (64, 64), (101, 70)])
def test_any_size_is_consistent(size: tuple[int, int]) -> None:
    low = land(*size)
    image, said = super_resolve_scene(generator(), low, degradation=D, units=UNITS, tile=80)
    assert image.shape == (4, 4 * size[0], 4 * size[1]) and float(image.min()) >= 0
    off = (D.degrade(image) - low).abs()
    assert said.residual == pytest.approx(float(off.max()), abs=1e-7) and said.residual < 3e-5
    assert said.above == pytest.approx(float((off > 1e-5).double().mean()), abs=1e-9) and said.missing == 0
    alone = UNITS.to_reflectance(generator()(UNITS.to_model(low[None])))[0]
    if max(size) <= 80 and float(alone.min()) >= 0:
        assert float((image - alone).abs().max()) < 1e-5, "a scene that fits into a tile is one"


def test_the_blend_is_projected_and_not_the_tiles() -> None:
    low, options = land(100, 90), {"degradation": D, "units": UNITS, "tile": 48, "margin": 8}
    random = torch.Generator().manual_seed(0)

    def network(x: Tensor) -> Tensor:
        """Every tile degrades to its input, with detail that its neighbours do not have."""
        seen = enlarge(x, 4)
        return D.project(seen + 0.02 * torch.randn(seen.shape, generator=random), x)

    image, said = super_resolve_scene(network, low, **options)
    _, before = super_resolve_scene(network, low, consistency=False, **options)
    assert before.residual > 1e-4 and before.above > 0.01, "blended, they no longer do"
    assert said.residual < 1e-5 and said.above == 0 and float(image.min()) >= 0


def test_the_network_may_project_or_not() -> None:
    low, network = land(60, 60), generator()
    with_projection, _ = super_resolve_scene(network, low, degradation=D, units=UNITS)
    network.consistency = False
    without, _ = super_resolve_scene(network, low, degradation=D, units=UNITS)
    assert float((with_projection - without).abs().max()) < 1e-4


def test_missing_pixels_stay_missing_and_touch_nothing_else() -> None:
    low = land(70, 60)
    gap = torch.zeros(70, 60, dtype=torch.bool)
    gap[20:45, 30:], gap[3, 5] = True, True
    holed = low.clone()
    holed[2, gap] = torch.nan  # in one band only
    whole, _ = super_resolve_scene(generator(), low, degradation=D, units=UNITS, tile=64, margin=12)
    image, said = super_resolve_scene(generator(), holed, degradation=D, units=UNITS, tile=64, margin=12)
    blocks = gap.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(torch.isnan(image), blocks.expand_as(image)), "whole blocks, in all bands, and no other pixel"
    assert said.missing == pytest.approx(float(gap.double().mean())) and said.residual < 1e-3
    assert "17.9% of its pixels were not measured" in str(said)
    far = slice(0, 4 * 70), slice(0, 4)  # 29 LR pixels from the large gap, next to none
    assert float((image - whole)[:, far[0], far[1]][:, 80:].abs().max()) < 1e-3
    # The gap was filled from beside it: a fill of 0 would leave its mark on the pixels around.
    near = image[:, 4 * 20 : 4 * 45, 4 * 29 : 4 * 30] - whole[:, 4 * 20 : 4 * 45, 4 * 29 : 4 * 30]
    assert float(near.square().mean().sqrt()) < 0.05


def test_a_value_that_nothing_explains_is_reported(dark_tile: Path) -> None:
    low = land(40, 40)
    low[1, 20, 20] = -0.02
    image, said = super_resolve_scene(generator(), low, degradation=D, units=UNITS)
    assert float(image.min()) >= 0 and said.residual > 0.019 and 1 / 6400 <= said.above < 0.1
    water = read_scene(dark_tile, BANDS).image[:, :64, :64]
    image, said = super_resolve_scene(generator(gain=1.0), water, degradation=D, units=UNITS)
    assert float(image.min()) >= 0 and said.residual > 1e-4


def test_impossible_scenes() -> None:
    options: dict[str, Any] = {"degradation": D, "units": UNITS}
    with pytest.raises(UserError, match=r"shape \(3, 8, 8\), expected \(4, rows, columns\)"):
        super_resolve_scene(generator(), land(8, 8)[:3], **options)
    with pytest.raises(UserError, match="no pixel that was measured"):
        super_resolve_scene(generator(), torch.full((4, 8, 8), torch.nan), **options)
    with pytest.raises(UserError, match="tile above 72"):
        super_resolve_scene(generator(), land(8, 8), tile=72, **options)
    with pytest.raises(UserError, match=r"100000 x 100000 pixels needs 5\.8 TB of memory"):
        super_resolve_scene(generator(), torch.zeros(4, 1, 1).expand(4, 100_000, 100_000), **options)


PEAK = """
import resource, torch
from nbhelpers.science.degradation import Degradation
from nbhelpers.stages.super_resolution.blocks import enlarge
from nbhelpers.stages.super_resolution.scene import super_resolve_scene
from nbhelpers.stages.super_resolution.units import Units
low = enlarge(0.1 + 0.1 * torch.rand(1, 2, 32, 32), 32)[0]  # smooth: one round of the projection will do
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
units = Units.physical(2, maximum=1.0)
super_resolve_scene(lambda x: enlarge(x, 4), low, degradation=Degradation(4, (0.3,) * 2), units=units)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_is_the_image_and_some_bands() -> None:
    result = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    # Each of the image's two bands has 64 MB.
    assert float(result.stdout) < 2 * 64 + 64 * (scene.COPIES + 2)


# --- Files -----------------------------------------------------------------------------------------------------------


def test_bands_by_name_by_number_and_by_file(tmp_path: Path) -> None:
    pixels = dn()
    expected = torch.from_numpy(pixels.astype("float32") / 1e4)
    named = write(tmp_path / "named.tif", pixels[::-1], bands=("B8", "b04", "Band B3 (green)", "B2"))
    torch.testing.assert_close(read_scene(named, BANDS).image, expected)
    in_order = write(tmp_path / "four.tif", pixels, bands=())
    torch.testing.assert_close(read_scene(in_order, BANDS).image, expected)
    twelve = np.stack([np.full((8, 10), 100 * n, "uint16") for n in range(1, 13)])
    level_2a = write(tmp_path / "twelve.tif", twelve, bands=())
    found = read_scene(level_2a, ("B8A", "B02", "B11", "B12"))
    assert [round(1e4 * float(x)) for x in found.image[:, 0, 0]] == [900, 200, 1100, 1200] and found.bands[0] == "B8A"
    (tmp_path / "R10m").mkdir()
    for band, one in zip(BANDS, pixels, strict=True):
        write(tmp_path / f"R10m/T33UUP_20170613T101031_{band}_10m.tif", one[None], bands=())
    write(tmp_path / "R10m/T33UUP_20170613T101031_TCI_10m.tif", np.zeros((3, 8, 10), "uint8"), bands=())
    torch.testing.assert_close(read_scene(tmp_path / "R10m", BANDS).image, expected)
    files = [tmp_path / f"R10m/T33UUP_20170613T101031_{band}_10m.tif" for band in reversed(BANDS)]
    torch.testing.assert_close(read_scene(files, BANDS).image, expected)


def test_units_and_offsets(tmp_path: Path) -> None:
    pixels = dn()
    expected = torch.from_numpy((pixels.astype("float32") - 1000) / 1e4)
    tagged = write(tmp_path / "tagged.tif", pixels, scales=1e-4, offsets=-0.1)
    product = write(tmp_path / "S2B_MSIL2A_20230101T101031_N0509_R022_T33UUP.tif", pixels)
    plain = write(tmp_path / "plain.tif", pixels)
    as_reflectance = write(tmp_path / "float.tif", expected.numpy())
    as_floats = write(tmp_path / "floats.tif", pixels.astype("float32"), scales=1e-4, offsets=-0.1)
    signed = write(tmp_path / "signed.tif", pixels.astype("int16") - np.int16(1000) + np.int16(0))
    for path, offset in ((tagged, None), (product, None), (plain, -1000), (as_reflectance, None), (as_floats, None)):
        found = read_scene(path, BANDS, offset=offset)
        torch.testing.assert_close(found.image, expected, atol=1e-7, rtol=0)
        assert ("digital" in found.units) == (path != as_reflectance)
    assert read_scene(product, BANDS, offset=0).units == "digital numbers, reflectance = (DN +0) / 10000"
    torch.testing.assert_close(read_scene(signed, BANDS).image.nan_to_num(0), expected, atol=1e-7, rtol=0)


def test_what_was_not_measured(tmp_path: Path) -> None:
    pixels = dn()
    pixels[1, 2, 3], pixels[3, 4, 5] = 0, 65535
    found = read_scene(write(tmp_path / "dn.tif", pixels, nodata=65535), BANDS).image
    gap = torch.zeros(8, 10, dtype=torch.bool)
    gap[2, 3] = gap[4, 5] = True
    assert torch.equal(torch.isnan(found), gap.expand(4, -1, -1)), "in all bands, and nowhere else"
    floats = pixels.astype("float32") / 1e4
    floats[1, 2, 3], floats[3, 4, 5], floats[0, 0, 0] = np.nan, -9999, 0.0
    found = read_scene(write(tmp_path / "float.tif", floats, nodata=-9999), BANDS).image
    assert torch.equal(torch.isnan(found), gap.expand(4, -1, -1)), "a reflectance of 0 is one"


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    pixels, floats = dn(), dn().astype("float32")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tif").write_text("no picture")
    floats_undeclared = floats / 1e4
    floats_undeclared[0, 0, 0] = -9999
    wrong = {
        "missing.tif": "does not exist",
        "empty": "holds no .tif",
        "text.tif": "not a readable GeoTIFF",
        write(tmp_path / "five.tif", dn().repeat(2, 0)[:5], bands=()).name: "has 5 band.* expected B02, B03, B04, B08",
        write(tmp_path / "rgb.tif", pixels, bands=("red", "green", "blue", "nir")).name: "with red, green, blue, nir",
        write(tmp_path / "bytes.tif", pixels.astype("uint8")).name: "holds uint8 values",
        write(tmp_path / "floats.tif", floats).name: "reflectances from .* to 3.99e\\+03, expected 0 to about 1",
        write(tmp_path / "undeclared.tif", floats_undeclared).name: "from -1e\\+04 to",
        write(tmp_path / "scaled.tif", pixels, scales=0.1).name: "scale tag 0.1",
    }
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message):
            read_scene(tmp_path / name, BANDS)
    (tmp_path / "mixed").mkdir()
    for band, one in zip(BANDS, pixels, strict=True):
        write(tmp_path / f"mixed/{band}.tif", one[None, :4] if band == "B08" else one[None], bands=())
    with pytest.raises(UserError, match=r"B08.tif has 4 x 10 pixels and .*B02.tif 8 x 10"):
        read_scene(tmp_path / "mixed", BANDS)
    write(tmp_path / "mixed/B08.tif", floats[3:] / 1e4, bands=())
    with pytest.raises(UserError, match="mixes digital numbers and reflectance"):
        read_scene(tmp_path / "mixed", BANDS)
    write(tmp_path / "mixed/B2.tif", pixels[:1], bands=())
    with pytest.raises(UserError, match="both hold B02"):
        read_scene(tmp_path / "mixed", BANDS)


def test_a_real_scene_from_file_to_file(tile: Path, tmp_path: Path) -> None:
    whole = read_scene(tile, BANDS)
    # The real tile is the truth: what a sensor of 40 m pixels saw of it comes in, and goes on lying where it lies.
    seen = D.degrade(whole.image[:, :220, :200])
    seen[:, 10:13, 20] = torch.nan
    coarse = Affine(40, 0, whole.transform.c, 0, -40, whole.transform.f)
    path = write(tmp_path / "coarse.tif", seen.numpy(), crs=whole.crs, transform=coarse, nodata=np.nan)
    low = read_scene(path, BANDS)
    image, said = super_resolve_scene(generator(gain=1.0), low.image, degradation=D, units=UNITS, tile=48, margin=12)
    written = write_scene(tmp_path / "new/fine.tif", image, like=low, scale=4, tags={"SCALE": "4"})
    assert [file.name for file in written.parent.iterdir()] == ["fine.tif"]
    with rasterio.open(written) as file:
        assert file.crs == whole.crs and file.transform.almost_equals(whole.transform) and file.shape == (220, 200)
        assert file.descriptions == BANDS and set(file.dtypes) == {"float32"} and np.isnan(file.nodata)
        assert file.profile["tiled"] and file.compression.name == "deflate" and file.tags()["SCALE"] == "4"
        assert (file.read_masks(1) == 0).sum() == 3 * 16
        again = torch.from_numpy(file.read())
    assert torch.equal(again.nan_to_num(), image.nan_to_num()) and said.missing == pytest.approx(3 / (55 * 50))
    gap = torch.isnan(again)
    off = (D.degrade(again.nan_to_num(0.0)) - seen).abs()
    far = torch.ones(55, 50, dtype=torch.bool)
    far[6:17, 16:25] = False  # where the blur reaches into the gap
    assert float(off[:, far].max()) < 1e-5, "degrade(SR) = LR, as read from the file"
    truth = whole.image[:, :220, :200]

    fitted = torch.where(gap, truth, again)

    def error(rows: int, columns: int) -> float:
        return float((torch.roll(fitted, (rows, columns), (1, 2)) - truth)[:, 2:-2, 2:-2].square().mean())

    for rows, columns in ((1, 0), (0, 1)):  # the bottom of the parabola through the errors of three shifts
        before, here, after = error(-rows, -columns), error(0, 0), error(rows, columns)
        assert abs((before - after) / (before + after - 2 * here) / 2) < 0.1, "pixels that the image is shifted by"


def test_without_a_georeference_there_is_none_after(tmp_path: Path) -> None:
    low = Scene(land(8, 8), BANDS, None, Affine.identity(), (), "reflectance")
    path = write_scene(tmp_path / "plain.tif", torch.rand(4, 32, 32), like=low, scale=4, tags={})
    assert read_scene(path, BANDS).crs is None and low.metres is None
    assert read_scene(write(tmp_path / "utm.tif", dn()), BANDS).metres == pytest.approx(10)


FULL = """
import resource, sys
from pathlib import Path
import torch
from rasterio.transform import Affine
from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.geotiff import Scene, write_scene
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
like = Scene(torch.zeros(1, 1, 1), ("B02",), None, Affine.identity(), (), "reflectance")
try:
    write_scene(Path(sys.argv[1]), torch.rand(1, 300, 300), like=like, scale=1, tags={})
except UserError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.tif"
    path.write_text("the old one")
    result = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert "could not be written" in result.stdout and "make room" in result.stdout
    assert path.read_text() == "the old one" and [file.name for file in tmp_path.iterdir()] == ["out.tif"]


def test_a_scene_is_not_written_over_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", dn())
    low = read_scene(path, BANDS)
    with pytest.raises(UserError, match="is the scene that was read"):
        write_scene(path, torch.rand(4, 32, 40), like=low, scale=4, tags={})
    with pytest.raises(UserError, match="cannot write"):
        write_scene(path / "below.tif", torch.rand(4, 32, 40), like=low, scale=4, tags={})
    assert geotiff.read_scene(path, BANDS).image.shape == (4, 8, 10)
