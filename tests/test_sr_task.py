"""The super-resolution task: units, pairs, crops, what the model puts out, scores, and the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import sentinel
import torch
from sr_run import SMALL, landscapes, patch_folders, task_on
from torch import Tensor

from nbhelpers.cli import main
from nbhelpers.core.errors import UserError
from nbhelpers.science.image_quality import psnr
from nbhelpers.stages.super_resolution import config as config_module
from nbhelpers.stages.super_resolution.crops import Batch, random_crops
from nbhelpers.stages.super_resolution.patch import band_file
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training.metrics import summarise

TILES = {"33UUP": 2, "29UPU": 2, "35VPK": 2, "31UFT": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patches of 48 x 48 pixels in four places, and one of 64 x 64 in a fifth."""
    folder = tmp_path_factory.mktemp("patches")
    sentinel.write_v2(folder, TILES)
    sentinel.write_v2(folder, {"34TDR": 1}, size=64)
    return folder


@pytest.fixture(scope="module")
def task(folder: Path) -> SuperResolutionTask:
    return task_on(folder, val_places=("33UUP", "34TDR"), test_places=("29UPU",), eval_patches=99)


def batch_of(task: SuperResolutionTask, split: str = "train") -> Batch:
    return next(iter(task.batches(split, 0)))


# --- units and pairs -------------------------------------------------------------------------------------------------


def test_a_batch_becomes_two_images_in_model_units(task: SuperResolutionTask) -> None:
    batch = batch_of(task)
    high, low = task.pair(batch)
    assert high.shape == (2, 4, 32, 32) and low.shape == (2, 4, 8, 8) and high.dtype == low.dtype == torch.float32
    torch.testing.assert_close(high, 2 * batch.dn / 10_000 - 1)
    torch.testing.assert_close(task.to_reflectance(high), batch.dn / 10_000)
    torch.testing.assert_close(task.to_reflectance(low), task.degradation.degrade(batch.dn / 10_000))
    # Rows of the degradation sum to 1, so it commutes with a change of units.
    torch.testing.assert_close(low, task.degradation.degrade(high), atol=1e-6, rtol=0)


@pytest.mark.parametrize("offset", [0, -1000])
def test_max_reflectance_and_offset_shift_and_stretch_the_units(folder: Path, offset: int) -> None:
    task = task_on(folder, max_reflectance=0.5, offset=offset)
    batch, plain = batch_of(task), batch_of(task_on(folder))
    torch.testing.assert_close(batch.dn, plain.dn + offset)
    high, _ = task.pair(batch)
    torch.testing.assert_close(high, 4 * (plain.dn + offset) / 10_000 - 1)


def test_percentiles_of_the_training_set_are_an_invertible_scaling_that_is_named(folder: Path) -> None:
    held_out = {"test_places": ("29UPU",), "val_places": ("33UUP",), "eval_patches": 99}
    task = task_on(folder, scaling="percentile", **held_out)
    train = [task.patches[one.index].reshape(4, -1) for one in task.split.patches["train"]]
    low, high = np.percentile(np.concatenate(train, 1), (2, 98), axis=1)
    np.testing.assert_allclose(task.units.low, low / 10_000, rtol=1e-5)
    np.testing.assert_allclose(task.units.high, high / 10_000, rtol=1e-5)
    batch = batch_of(task)
    image, _ = task.pair(batch)
    torch.testing.assert_close(task.to_reflectance(image), batch.dn / 10_000, atol=1e-6, rtol=0)
    torch.testing.assert_close(task.to_model(task.to_reflectance(image)), image, atol=1e-5, rtol=0)
    ends = torch.tensor([task.units.low, task.units.high])[..., None, None]
    torch.testing.assert_close(task.to_model(ends).flatten(1), torch.tensor([[-1.0] * 4, [1.0] * 4]))
    assert any("2nd and 98th percentile over the training set" in remark for remark in task.remarks())
    assert not any("percentile" in remark for remark in task_on(folder).remarks())
    # Scores are in reflectance, so they do not depend on the model's units.
    ours, theirs = (
        one.evaluate("val", one.nulls["bicubic"]).metrics["psnr"].value for one in (task, task_on(folder, **held_out))
    )
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_noise_is_new_in_training_and_always_the_same_in_scores(folder: Path) -> None:
    clean, noisy, other = task_on(folder), task_on(folder, noise=0.01), task_on(folder, noise=0.01, seed=1)
    batch = batch_of(noisy, "test")
    plain = clean.to_reflectance(clean.pair(batch)[1])

    def added(task: SuperResolutionTask, **how: bool) -> Tensor:
        return task.to_reflectance(task.pair(batch, **how)[1]) - plain

    for noise in (added(noisy), added(noisy, noisy=True)):
        assert float(noise.std()) == pytest.approx(0.01, rel=0.15) and abs(float(noise.mean())) < 0.002
    assert torch.equal(added(noisy), added(noisy)) and not torch.equal(added(noisy), added(other))
    assert not torch.equal(added(noisy, noisy=True), added(noisy, noisy=True))
    assert not torch.equal(added(noisy)[0], added(noisy)[1]), "each patch has its own"
    alone = Batch(batch.dn[1:], batch.patches[1:])
    assert torch.equal(noisy.pair(alone)[1], noisy.pair(batch)[1][1:]), "whatever batch it is in"
    scores = [
        one.evaluate("test", one.nulls["bicubic"]).metrics["psnr"].value for one in (noisy, task_on(folder, noise=0.01))
    ]
    assert scores[0] == scores[1] < clean.evaluate("test", clean.nulls["bicubic"]).metrics["psnr"].value


def test_what_guards_see_of_a_batch(task: SuperResolutionTask) -> None:
    batch = batch_of(task)
    sample = task.look(batch)
    assert set(sample.raw) == set(task.fields) and torch.equal(sample.raw["high"], batch.dn)
    assert sample.pair is not None
    torch.testing.assert_close(*sample.pair, atol=1e-6, rtol=0)
    assert sample.pair[0].mean((-2, -1)).abs().max() < 1e-6, "without the bands' means, in which places are alike"
    empty = task.look(Batch(torch.empty(0, 1, 1, 1), (), ("why",)))
    assert empty.pair is None and len(empty.raw["high"]) == 0


# --- crops, splits, data ---------------------------------------------------------------------------------------------


def test_crops_are_a_pure_function_of_seed_epoch_and_number(folder: Path) -> None:
    changes = {"crops_per_epoch": 11, "augment": True}
    one, other = task_on(folder, **changes), task_on(folder, **changes)
    first = [batch.dn for batch in one.batches("train", 3)]
    for _ in one.batches("train", 2):  # whatever was read before
        torch.rand(1)
    again = [batch.dn for batch in other.batches("train", 3)]
    assert [len(dn) for dn in first] == [2, 2, 2, 2, 2, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    later = list(one.batches("train", 3, start=4))
    assert len(later) == len(one.batches("train", 3, start=4)) == 2
    assert all(torch.equal(a, b.dn) for a, b in zip(first[4:], later, strict=True))
    assert not torch.equal(first[0], next(iter(one.batches("train", 4))).dn)
    assert not torch.equal(first[0], next(iter(task_on(folder, seed=1, **changes).batches("train", 3))).dn)


def test_crops_lie_anywhere_in_every_patch_equally_often(folder: Path) -> None:
    task = task_on(folder, crops_per_epoch=400)
    crops = random_crops([3, 5, 8], task.config, epoch=0)
    counts = [sum(crop.patch == patch for crop in crops) for patch in (3, 5, 8)]
    assert sorted(counts) == [133, 133, 134] and {crop.symmetry for crop in crops} == set(range(8))
    rows = {int(crop.top * 17) for crop in crops}  # 48 - 32 + 1 places
    assert rows == set(range(17))
    unturned = task_on(folder, augment=False).config
    assert {crop.symmetry for crop in random_crops([0], unturned, epoch=0)} == {0}


def test_a_crop_is_a_piece_of_its_patch_mirrored_or_turned(folder: Path) -> None:
    task = task_on(folder, crops_per_epoch=40)
    seen = set()
    for batch in task.batches("train", 0):
        for dn, index in zip(batch.dn, batch.patches, strict=True):
            whole = torch.from_numpy(task.patches[index])
            for symmetry in range(8):
                image = dn.rot90(symmetry % 4, (-2, -1))
                image = image.flip(-1) if symmetry >= 4 else image
                row, column = (whole == image[0, 0, 0]).any(0).nonzero().T
                if any(torch.equal(whole[:, r : r + 32, c : c + 32], image) for r, c in zip(row, column, strict=True)):
                    seen.add(symmetry)
                    break
            else:
                pytest.fail("a crop that is no piece of its patch")
    assert len(seen) == 8


def test_scoring_takes_whole_patches_whatever_the_epoch_and_sizes(task: SuperResolutionTask) -> None:
    by_split = {}
    for split in ("val", "test"):
        batches = [list(task.batches(split, epoch)) for epoch in (0, 5)]
        assert all(torch.equal(a.dn, b.dn) for a, b in zip(*batches, strict=True))
        by_split[split] = [(tuple(batch.dn.shape), batch.patches) for batch in batches[0]]
    assert [shape for shape, _ in by_split["val"]] == [(2, 4, 48, 48), (1, 4, 64, 64)]
    assert [shape for shape, _ in by_split["test"]] == [(2, 4, 48, 48)]
    metrics = task.evaluate("val").metrics
    assert metrics["psnr_place"].labels == ("33UUP", "34TDR")


def test_eval_patches_limits_what_is_scored_and_not_what_is_known(folder: Path) -> None:
    held_out = {"val_places": ("33UUP", "35VPK"), "test_places": ("29UPU",)}
    task, all_of_them = task_on(folder, eval_patches=3, **held_out), task_on(folder, eval_patches=99, **held_out)
    chosen, everything = (
        [index for batch in one.batches("val", 0) for index in batch.patches] for one in (task, all_of_them)
    )
    assert len(chosen) == 3 and len(everything) == 4 and set(chosen) < set(everything)
    assert sorted(chosen) == task.scored("val") and len(task.scored("test")) == 2
    two = task_on(folder, eval_patches=2, **held_out)
    assert {two.patches.patches[index].place for index in two.scored("val")} == set(held_out["val_places"])
    assert task.describe_data() == all_of_them.describe_data()


def test_max_patches_limits_what_is_read(folder: Path) -> None:
    task = task_on(folder, max_patches=6)
    used = [one for group in task.split.patches.values() for one in group]
    assert len(used) == 6 and len({one.place for one in used}) == 5
    assert any("3 of the 9 patches are beyond max_patches" in remark for remark in task.remarks())
    other = SuperResolutionTask(task.config.replace({"max_patches": None}, source=""), folder, like=task)
    assert sum(len(group) for group in other.split.patches.values()) == 9


def test_percentiles_do_without_broken_patches(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (name, patch), *_ = [(key, path) for key, path in patch_folders(other).items() if "35VPK" in key]
    band_file(patch, name, "B08").write_bytes(b"no")
    task = task_on(other, scaling="percentile", val_places=("33UUP",), test_places=("29UPU",), eval_patches=99)
    assert name in {one.id for one in task.split.patches["train"]} and task.units.low[0] < task.units.high[0]


def test_a_task_like_another_shares_its_data_and_has_a_network_of_its_own(folder: Path) -> None:
    task = task_on(folder)
    other = SuperResolutionTask(task.config.replace({"seed": 1}, source=""), folder, like=task)
    assert other.validation is task.validation and other.describe_data() == task.describe_data()
    ours, theirs = (one.modules["generator"].tail.weight for one in (task, other))
    assert ours is not theirs and not torch.equal(ours, theirs)
    shifted = SuperResolutionTask(task.config.replace({"offset": -100}, source=""), folder, like=task)
    assert shifted.describe_data()["sha256"] != task.describe_data()["sha256"], "other pixels are read again"


def test_no_place_stands_in_two_splits(folder: Path) -> None:
    for seed in range(3):
        task = task_on(folder, seed=seed)
        places = [{one.place for one in task.split.patches[split]} for split in ("train", "val", "test")]
        assert all(places) and not (places[0] & places[1] or places[0] & places[2] or places[1] & places[2])
        assert set.union(*places) == {*TILES, "34TDR"}
        assert {kind: len(found["train"] & found["test"]) for kind, found in task.keys().items()} == {
            "patch": 0, "content": 0, "ground": 0, "place": 0,
        }  # fmt: skip


def test_one_pixel_changes_the_hash_of_the_data(folder: Path, tmp_path: Path) -> None:
    before = task_on(folder).describe_data()
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    same = task_on(other).describe_data()
    assert (same["sha256"], same["split_sha256"]) == (before["sha256"], before["split_sha256"])
    assert not before["simulated"] and before["bands"] == ["B02", "B03", "B04", "B08"]
    name, patch = next(iter(patch_folders(other).items()))
    with rasterio.open(band_file(patch, name, "B08"), "r+") as file:
        pixels = file.read(1)
        pixels[17, 3] += 1
        file.write(pixels, 1)
    after = task_on(other).describe_data()
    assert after["sha256"] != before["sha256"] and after["split_sha256"] == before["split_sha256"]
    assert task_on(folder, offset=-100).describe_data()["sha256"] != before["sha256"]


# --- what the model puts out -----------------------------------------------------------------------------------------


def trained_a_bit(task: SuperResolutionTask) -> SuperResolutionTask:
    """Weights far enough from the start for the output to leave the range."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in task.modules["generator"].tail.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    return task


def test_the_output_is_nowhere_negative_and_degrades_to_its_input(folder: Path) -> None:
    task = trained_a_bit(task_on(folder, scale=2, max_reflectance=0.2))
    (batch, *_) = task.batches("test", 0)
    dark = Batch((batch.dn - batch.dn.amin((-2, -1), keepdim=True)) * 0.5, batch.patches)
    high, low = task.pair(dark)
    plain = task.to_reflectance(task.output(low))
    output = task.super_resolve(low)
    reflectance = task.to_reflectance(output)
    assert output.shape == high.shape and plain.min() < 0 <= reflectance.min()
    assert (task.degradation.degrade(reflectance) - task.to_reflectance(low)).abs().max() < 2e-5
    metrics = task.evaluate("test").metrics
    assert metrics["negative"].value == 0 and metrics["consistency"].value < 20
    assert task.modules["generator"].training


def test_without_the_projection_it_is_still_nowhere_negative(folder: Path) -> None:
    task = trained_a_bit(task_on(folder, consistency=False))
    metrics = task.evaluate("test").metrics
    assert metrics["negative"].value == 0 and metrics["consistency"].value > 1000


def test_an_input_below_zero_leaves_a_residual_there_alone(folder: Path) -> None:
    task = task_on(folder)
    _, low = task.pair(batch_of(task, "test"))
    seen = task.to_reflectance(low).clone()
    seen[:, 0, 6, 6] = -0.02
    reflectance = task.to_reflectance(task.super_resolve(task.to_model(seen)))
    residual = (task.degradation.degrade(reflectance) - seen).abs()
    assert reflectance.min() >= 0 and (residual[:, 0, 6, 6] >= 0.02 - 1e-6).all()
    assert residual[:, 1:].max() < 2e-5, "other bands are not touched"


def symmetries(x: Tensor) -> list[Tensor]:
    return [y for turns in range(4) for y in (x.rot90(turns, (-2, -1)), x.rot90(turns, (-2, -1)).flip(-1))]


def test_the_self_ensemble_prefers_no_direction(folder: Path) -> None:
    plain, task = (trained_a_bit(task_on(folder, self_ensemble=flag)) for flag in (False, True))
    _, low = task.pair(batch_of(task, "test"))

    def off(one: SuperResolutionTask) -> float:
        turned = [one.super_resolve(x) for x in symmetries(low)]
        return max(float((a - b).abs().max()) for a, b in zip(turned, symmetries(turned[0]), strict=True))

    assert off(task) < 1e-5 < 1e-3 < off(plain)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_named_and_the_psnr_is_that_of_a_direct_computation(task: SuperResolutionTask) -> None:
    found = task.evaluate("val").metrics
    assert set(found) == {
        "psnr", "ssim", "mae", "sam", "ergas", "feature_distance_random", "rapsd_ratio", "consistency", "residual",
        "negative", "psnr_place",
    }  # fmt: skip
    assert set(task.headlines) <= set(found) and "lpips" not in found
    by_place: dict[str, list[Tensor]] = {}
    for batch in task.batches("val", 0):
        high, low = (task.to_reflectance(one).double() for one in task.pair(batch))
        output = task.to_reflectance(task.super_resolve(task.pair(batch)[1])).double()
        inner = (..., slice(4, -4), slice(4, -4))
        mse = (output - high)[inner].square().mean((-2, -1))
        for value, index in zip(-10 * mse.log10(), batch.patches, strict=True):
            by_place.setdefault(task.patches.patches[index].place, []).append(value)
        torch.testing.assert_close(psnr(output, high, data_range=1.0, border=4), -10 * mse.log10())
        assert low.shape[-1] * 4 == high.shape[-1]
    values = torch.stack([value for place in sorted(by_place) for value in by_place[place]])
    assert found["psnr"].value == pytest.approx(float(values.mean()), abs=1e-4)
    summary = summarise(found["psnr_place"])["by_label"]
    assert {place: entry["value"] for place, entry in summary.items()} == pytest.approx(
        {place: float(torch.stack(mine).mean()) for place, mine in by_place.items()}, abs=1e-4
    )
    by_band = summarise(found["psnr"])["by_label"]
    assert [by_band[band]["value"] for band in task.config.bands] == pytest.approx(values.mean(0).tolist(), abs=1e-4)


def test_baselines_need_no_training_and_the_projected_one_is_consistent(task: SuperResolutionTask) -> None:
    assert set(task.nulls) == {"bicubic", "lanczos", "linear", "bicubic_projected", "linear_projected"}
    found = {name: task.evaluate("test", null).metrics for name, null in task.nulls.items()}
    assert found["bicubic_projected"]["psnr"].value > found["bicubic"]["psnr"].value
    assert found["bicubic_projected"]["consistency"].value < 10 < 100 < found["bicubic"]["consistency"].value
    assert found["linear_projected"]["consistency"].value < 10 < found["linear"]["consistency"].value
    untrained = task.evaluate("test").metrics["psnr"].value
    assert untrained == pytest.approx(found["bicubic_projected"]["psnr"].value, abs=0.2)


# --- other bands and scales ------------------------------------------------------------------------------------------


def one_step(task: SuperResolutionTask) -> None:
    """Both phases run a batch."""
    for phase in task.phases:
        for update in task.updates(batch_of(task), phase):
            assert all(torch.isfinite(term.fn(update.prediction)) for term in update.terms)


def test_bands_of_20_m_at_scale_2(tmp_path: Path) -> None:
    bands = ("B05", "B8A", "B11")
    sentinel.write_v2(tmp_path, TILES, size=96, bands=bands)
    settings = {"bands": bands, "rgb": bands[::-1], "scale": 2, "mtf": (0.25, 0.3, 0.2), "stage2_epochs": 1}
    task = task_on(tmp_path, **settings, adversarial_ramp=1.0)
    high, low = task.pair(batch_of(task))
    assert high.shape == (2, 3, 32, 32) and low.shape == (2, 3, 16, 16) and task.rgb == [2, 1, 0]
    one_step(task)
    metrics = task.evaluate("val").metrics
    assert metrics["psnr"].labels == bands and metrics["consistency"].value < 10


def test_three_bands(folder: Path) -> None:
    task = task_on(folder, bands=("B04", "B03", "B02"), scale=8, stage2_epochs=1, adversarial_ramp=1.0)
    assert task.rgb == [0, 1, 2] and task.pair(batch_of(task))[1].shape == (2, 3, 4, 4)
    one_step(task)
    assert task.evaluate("test").metrics["psnr"].labels == ("B04", "B03", "B02")


def test_bands_of_two_resolutions_and_sizes_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="B02 has pixels of 10 m and band B05 of 20 m"):
        task_on(folder, bands=("B02", "B05", "B03", "B04"))
    sentinel.write_v2(tmp_path, TILES, size=44)
    with pytest.raises(UserError, match="44 x 44 pixels, expected multiples of the scale 8"):
        task_on(tmp_path, scale=8)


def test_the_second_stages_updates_stay_in_the_range_and_consistent(folder: Path) -> None:
    task = trained_a_bit(task_on(folder, stage2_epochs=1, max_reflectance=0.4, adversarial_ramp=1.0))
    generator, judge = task.updates(batch_of(task), task.phases[1])
    _, low = task.pair(batch_of(task))
    assert [term.name for term in generator.terms] == ["pixel", "perceptual", "adversarial"]
    assert [term.name for term in judge.terms] == ["discriminator"] and judge.accuracy is not None
    reflectance = task.to_reflectance(generator.prediction.detach())
    seen = task.to_reflectance(low)
    assert (task.degradation.degrade(reflectance) - seen).abs().max() < 1e-5
    loose = task_on(folder, stage2_epochs=1, consistency=False, max_reflectance=0.4, adversarial_ramp=1.0)
    first = next(task_updates := trained_a_bit(loose).updates(batch_of(loose), loose.phases[1]))
    shown = loose.to_reflectance(first.prediction.detach())
    assert shown.min() > -1e-6 and shown.max() < 0.4 + 1e-6
    task_updates.close()


# --- on the command line ---------------------------------------------------------------------------------------------

FLAGS = [
    word
    for key, value in (SMALL | {"stage2_epochs": 1, "adversarial_ramp": 0.5, "crops_per_epoch": 8}).items()
    for word in (f"--{key.replace('_', '-')}", str(value))
]


def test_simulate_train_evaluate_predict_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbhelpers.stages.super_resolution import commands

    monkeypatch.setenv("NBHELPERS_HOME", str(tmp_path))
    for module in (config_module, commands):
        monkeypatch.setitem(module.SIMULATED, "smoke", {"n_places": 5, "patches_per_place": 1})
    assert main(["data", "simulate", "super-resolution", "--profile", "smoke"]) == 0
    data = Path(capsys.readouterr().out.strip())
    assert len(patch_folders(data)) == 5
    place = ["--output-dir", str(tmp_path / "runs"), "--run-name", "first"]
    assert main(["train", "super-resolution", "--profile", "smoke", *place, *FLAGS]) == 0
    said = capsys.readouterr().out
    assert "NOTE Simulated landscapes" in said and "RANDOM features of squeeze" in said and "Verdict:" in said
    run = tmp_path / "runs" / "first"
    report = json.loads((run / "report.json").read_text())
    assert report["data"]["simulated"] and report["remarks"][0].startswith("Simulated landscapes")
    assert set(report["metrics"]["psnr"]["by_label"]) == {"B02", "B03", "B04", "B08"}
    assert main(["evaluate", "super-resolution", *place, "--split", "val", "--checkpoint", "pixel_best"]) == 0
    assert json.loads((run / "report.json").read_text())["data"]["scored_split"] == "val"
    assert main(["predict", "super-resolution", *place]) == 0
    written = sorted((run / commands.FORECASTS).rglob("*.tif"))
    assert written
    with rasterio.open(written[0]) as file:
        assert file.count == 4 and set(file.dtypes) == {"float32"} and file.shape == (120, 120)
        assert 0 <= file.read().min() < file.read().max() < 2
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "# super-resolution · first" in capsys.readouterr().out
    # A resumed command has nothing left to train and writes the same report.
    assert main(["train", "super-resolution", "--profile", "smoke", *place, *FLAGS]) == 0
    again: dict[str, Any] = json.loads((run / "report.json").read_text())
    assert again["metrics"] == report["metrics"] and again["checkpoint"] == report["checkpoint"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--discriminator", "patch"], "invalid choice"),
        (["--rgb", "B11", "B03", "B02"], "rgb is B11 B03 B02"),
        (["--val-places", "99ZZZ"], "no readable patch of place '99ZZZ'"),
        (["--val-dir", "nowhere"], "data folder nowhere does not exist"),
        (["--monitor", "fid", "--stage2-epochs", "1"], "monitor is 'fid'"),
        (["--crop", "56"], "crop is 56, but the smallest training patch has 48 x 48"),
        (["--split", "country"], "no metadata.parquet"),
        (["--mtf", "0.3", "0.2"], "one a band"),
        (["--backbone-weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_exit_code_2(
    words: list[str], said: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-dir", str(folder), "--output-dir", str(tmp_path), "--run-name", "bad"]
    try:
        code = main(["train", "super-resolution", "--profile", "smoke", *place, *FLAGS, *words])
    except SystemExit as stop:  # argparse's own
        code = stop.code  # type: ignore[assignment]
    error = capfd.readouterr().err
    assert code == 2 and said in error
    assert "invalid choice" in error or len(error.splitlines()) == 1
    assert not (tmp_path / "bad").exists()


def test_landscapes_are_what_they_say(tmp_path: Path) -> None:
    task = task_on(landscapes(tmp_path, n_places=5))
    assert task.describe_data()["simulated"]
    assert any(remark.startswith("Simulated landscapes") for remark in task.remarks())
