"""What may not be trained on is named before epoch 0, and real patches pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sentinel import product, real_places, scene, write_v2

from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.patch import DEFAULT_BANDS, FOLDER, band_file, write_patch
from nbhelpers.stages.super_resolution.patches import open_patches
from nbhelpers.stages.super_resolution.validation import Validation, validate


def checked(data_dir: Path, *, scale: int = 4) -> Validation:
    return validate(open_patches(data_dir), scale=scale)


def write_changed(
    data_dir: Path, change: Callable[[NDArray[np.float64]], NDArray], *, n: int = 6, size: int = 48
) -> None:
    """``n`` patches, each band of each put through ``change``."""
    for number in range(n):
        bands = {
            band: np.round(change(pixels.astype(float))).astype(np.uint16)
            for band, pixels in scene(number, size=size).items()
        }
        write_patch(data_dir / "field", f"field_{number}_0", bands)


def test_a_healthy_set(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 3, "29UPU": 2})
    found = checked(tmp_path)
    assert found.usable == (0, 1, 2, 3, 4) and found.offsets == {0: 5} and found.shapes == ((48, 48),) * 5
    assert not (found.broken or found.incomplete or found.warnings or found.remarks())
    pixels = np.stack([open_patches(tmp_path)[i] for i in range(5)]) / 1e4
    assert found.low == pytest.approx(pixels.min(axis=(0, 2, 3)))
    assert found.high == pytest.approx(pixels.max(axis=(0, 2, 3)))
    assert found.std == pytest.approx(pixels.std(axis=(0, 2, 3)), rel=1e-5)
    text = found.lines()
    assert text[-1] == "Data validation passed: 0 of 5 patches failed" and text[0].startswith("HR B02: 0.0")


def test_real_places_pass(real_data: Path, tmp_path: Path) -> None:
    found = checked(real_places(real_data, tmp_path / "all"))
    assert len(found.usable) == 21 and not found.remarks() and min(found.std) > 0.05
    assert "Data validation passed" in found.lines()[-1]


def test_real_patches_of_the_archive_pass(real_data: Path) -> None:
    assert len(validate(open_patches(real_data / "bigearthnet"), scale=8).usable) == 4


# --- a stretch of each patch ----------------------------------------------------------------------------------------


def by_percentiles(percent: float, *, low: float, high: float, clip: bool) -> Callable[[NDArray], NDArray]:
    def stretch(pixels: NDArray) -> NDArray:
        first, last = np.percentile(pixels, [percent, 100 - percent])
        scaled = low + (high - low) * (pixels - first) / (last - first)
        return np.clip(scaled, low, high) if clip else scaled

    return stretch


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 10_000), (1, 10_000), (500, 3000)])
@pytest.mark.parametrize("percent", [0, 2])
def test_a_stretch_of_each_patch_is_named(tmp_path: Path, low: float, high: float, percent: float) -> None:
    write_changed(tmp_path, by_percentiles(percent, low=low, high=high, clip=True))
    with pytest.raises(UserError, match=f"stretched by itself .* are {low} and {high} DN in 100% of 6 patches"):
        checked(tmp_path)


@pytest.mark.parametrize("percent", [1, 2, 5])
def test_a_stretch_that_does_not_clip_is_named(tmp_path: Path, percent: float) -> None:
    write_changed(tmp_path, by_percentiles(percent, low=2000, high=6000, clip=False), size=96)
    with pytest.raises(UserError, match=f"percentiles {percent} and {100 - percent} are"):
        checked(tmp_path)


def test_real_patches_stretched_one_by_one_are_named(real_data: Path, tmp_path: Path) -> None:
    own = open_patches(real_places(real_data, tmp_path / "all"))
    stretch = by_percentiles(2, low=1, high=10_000, clip=True)
    for patch in own.patches:
        pixels = np.stack([stretch(band.astype(float)) for band in own[patch.index]]).round().astype(np.uint16)
        write_patch(tmp_path / "new" / patch.place, patch.id, dict(zip(DEFAULT_BANDS, pixels, strict=True)))
    with pytest.raises(UserError, match="stretched by itself"):
        checked(tmp_path / "new")


def test_one_stretch_for_all_is_none_of_it(tmp_path: Path) -> None:
    write_changed(tmp_path, lambda pixels: np.clip((pixels - 300) / 2200 * 10_000, 1, 10_000))
    assert len(checked(tmp_path).usable) == 6


def test_a_few_stretched_patches_among_others_do_not_condemn_the_set(tmp_path: Path) -> None:
    write_changed(tmp_path / "a", by_percentiles(2, low=1, high=10_000, clip=True), n=2)
    for path in (tmp_path / "a" / "field").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "a" / "field").rmdir()
    (tmp_path / "a").rmdir()
    for number in range(2, 8):
        write_patch(tmp_path, f"field_{number}_0", scene(number))
    assert len(checked(tmp_path).usable) == 8


def test_copies_of_one_patch_are_no_stretch(tmp_path: Path) -> None:
    for number in range(6):
        write_patch(tmp_path, f"copy_{number}_0", scene(1))
    assert len(set(checked(tmp_path).content.values())) == 1


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pixels: pixels / 4000 * 20 + 200, "standard deviation of 0.000"),
        (lambda pixels: np.full_like(pixels, 700), "standard deviation of 0.0"),
        (lambda pixels: pixels * 13, "outside -0.1 to 2.0 reflectance"),
    ],
)
def test_values_that_are_no_reflectance(tmp_path: Path, change: Callable[[NDArray], NDArray], said: str) -> None:
    write_changed(tmp_path, change)
    with pytest.raises(UserError, match=said):
        checked(tmp_path)


def test_a_wrong_offset_is_named(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 3, "29UPU": 2})
    with pytest.raises(UserError, match="check the units and the offset"):
        validate(open_patches(tmp_path, offset=-4000), scale=4)


def test_an_offset_that_was_not_declared_is_suspected(tmp_path: Path) -> None:
    write_changed(tmp_path, lambda pixels: pixels + 1000)
    (warning,) = checked(tmp_path).warnings
    assert "99 % of B02 are brighter than" in warning and "give offset -1000" in warning
    assert not validate(open_patches(tmp_path, offset=-1000), scale=4).warnings


def test_single_glints_are_a_remark(tmp_path: Path) -> None:
    def glint(pixels: NDArray) -> NDArray:
        pixels[0, 0] = 30_000
        return pixels

    write_changed(tmp_path, glint)
    assert checked(tmp_path).warnings == ("24 values lie outside -0.1 to 2.0 reflectance",)


def test_a_size_that_the_scale_does_not_divide(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 2}, size=50)
    with pytest.raises(UserError, match=r"has 50 x 50 pixels, expected multiples of the scale 4"):
        checked(tmp_path)
    assert checked(tmp_path, scale=2).shapes == ((50, 50),) * 2


# --- broken and incomplete patches ----------------------------------------------------------------------------------


def break_patch(data_dir: Path, number: int, band: str = "B04") -> None:
    name = f"{product('33UUP')}_{number}_7"
    path = band_file(data_dir / FOLDER / product("33UUP") / name, name, band)
    path.write_bytes(path.read_bytes()[:200])


def test_broken_patches_are_listed_with_reasons(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 5})
    break_patch(tmp_path, 1)
    break_patch(tmp_path, 3, "B08")
    found = checked(tmp_path)
    assert sorted(found.broken) == [1, 3] and found.usable == (0, 2, 4) and len(found.shapes) == 5
    assert "_1_7_B04.tif is not a readable GeoTIFF" in found.broken[1]
    text = "\n".join(found.lines())
    assert "2 of 5 patches cannot be read" in text and "_3_7_B08.tif" in text
    assert "Data validation failed for 2 of 5 patches" in text and "passed" not in text


def test_a_reader_that_fails_on_every_file(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 3})
    for number in range(3):
        break_patch(tmp_path, number)
    with pytest.raises(UserError, match=r"none of the 3 patches .* can be read: .*_0_7_B04.tif"):
        checked(tmp_path)


def test_missing_pixels(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 4})
    holes = scene(9)
    holes["B08"][:2] = 0
    write_patch(tmp_path / FOLDER / product("33UUP"), f"{product('33UUP')}_9_7", holes)
    found = checked(tmp_path)
    assert found.incomplete == (f"{product('33UUP')}_9_7",) and not found.broken and len(found.usable) == 4
    assert min(found.low) >= 0.01  # the zeros are in no statistic
    assert "1 patches have pixels without data and are left out" in "\n".join(found.lines())
    assert "Data validation passed" in found.lines()[-1]
    assert len(validate(open_patches(tmp_path, ["B02", "B03"]), scale=4).usable) == 5  # the hole is in B08


def test_nothing_but_missing_pixels(tmp_path: Path) -> None:
    for number in range(3):
        bands = scene(number)
        bands["B02"][0, 0] = 0
        write_patch(tmp_path, f"a_{number}_0", bands)
    with pytest.raises(UserError, match="each of the 3 readable patches"):
        checked(tmp_path)


def test_only_some_patches_are_looked_at(tmp_path: Path) -> None:
    write_v2(tmp_path, {"33UUP": 3, "29UPU": 2})
    break_patch(tmp_path, 2)
    every = open_patches(tmp_path)
    (broken,) = validate(every).broken
    wanted = [index for index in range(5) if index != broken][:3]
    found = validate(every, only=wanted)
    assert found.usable == tuple(wanted) and not found.broken and (found.n_patches, found.n_left_out) == (3, 2)
    assert len(found.shapes) == 5 and "2 of the 5 patches are beyond max_patches" in found.remarks()[0]
    assert set(found.ground) == set(wanted)


@pytest.mark.parametrize(("size", "said"), [(44, "set scale to 4, which fits all"), (45, "scale 8: cut the patches")])
def test_a_scale_that_fits_is_named(tmp_path: Path, size: int, said: str) -> None:
    write_v2(tmp_path, {"33UUP": 2}, size=size)
    with pytest.raises(UserError, match=said):
        checked(tmp_path, scale=8)
