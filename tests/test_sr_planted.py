"""Faults planted into real small runs of super-resolution: each is stopped within an epoch, with its cause named.

Every fault is a change of files, loader, network or settings; no guard is told of it.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from sr_run import SMALL, findings, landscapes, patch_folders, rewrite, said, stopped, task_on, truncate
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nbhelpers import cli
from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.crops import Batch
from nbhelpers.stages.super_resolution.patch import FOLDER, band_file
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.opening import open_run


@pytest.fixture(scope="module")
def land(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return landscapes(tmp_path_factory.mktemp("land"))


@pytest.fixture
def own(land: Path, tmp_path: Path) -> Path:
    """A copy of the patches to damage."""
    return Path(shutil.copytree(land, tmp_path / "own"))


def refusal(folder: Path, **changes: Any) -> str:
    """The one sentence with which the task refuses its data."""
    with pytest.raises(UserError) as caught:
        task_on(folder, **changes)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_nothing_is_said_where_nothing_is_planted(land: Path, tmp_path: Path) -> None:
    assert said(task_on(land, stage2_epochs=1), tmp_path) == []


# --- noise, constants, unrelated pairs -------------------------------------------------------------------------------


def as_dark_and_varied_as_land(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(rng.normal(1500, 60), 400, pixels.shape).clip(1).astype(np.uint16)


def of_one_histogram(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The percentiles of all patches agree, as if each had been stretched."""
    return rng.integers(1, 10_000, pixels.shape, dtype=np.uint16)


def shuffled(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every band with its own histogram and without any structure."""
    return rng.permuted(pixels.reshape(len(pixels), -1), axis=1).reshape(pixels.shape)


@pytest.mark.parametrize("change", [as_dark_and_varied_as_land, of_one_histogram, shuffled])
def test_files_of_noise_are_stopped_before_the_first_step(
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray], own: Path, tmp_path: Path
) -> None:
    """Nothing but the neighbours tells."""
    rng = np.random.default_rng(0)
    found = stopped(task_on(rewrite(own, lambda pixels: change(pixels, rng))), tmp_path, "training_on_noise")
    assert "looks like noise" in found["message"] and "correlation of neighbours" in found["evidence"]


class NormalNoise(SuperResolutionTask):
    """A loader that hands out standard normal numbers, in model units, in place of every training crop."""

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        loader = super().batches(split, epoch, start)
        if split == "train":
            collate = loader.collate_fn

            def noise(samples: Any) -> Batch:
                batch = collate(samples)
                return dataclasses.replace(batch, dn=5000 + 5000 * torch.randn_like(batch.dn))

            loader.collate_fn = noise
        return loader


def test_a_loader_that_draws_noise_is_stopped_before_the_first_step(land: Path, tmp_path: Path) -> None:
    """It once trained for 20 epochs at loss 0.798 and 6.02 dB."""
    stopped(task_on(land, NormalNoise, max_reflectance=1.0), tmp_path, "training_on_noise")


def test_constant_files_are_refused(own: Path) -> None:
    message = refusal(rewrite(own, lambda pixels: np.full_like(pixels, 1300)))
    assert "standard deviation of 0.00000 reflectance" in message and "blank" in message


class OthersInput(SuperResolutionTask):
    """Every low resolution is that of the next sample in the batch."""

    def pair(self, batch: Batch, *, noisy: bool = False) -> tuple[Tensor, Tensor]:
        high, low = super().pair(batch, noisy=noisy)
        return high, low.roll(1, dims=0)


def test_pairs_that_do_not_belong_together_are_stopped(land: Path, tmp_path: Path) -> None:
    found = stopped(task_on(land, OthersInput), tmp_path, "unrelated_pairs")
    assert "do not belong to their inputs" in found["message"] and "mean correlation" in found["evidence"]


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_the_same_folder_for_validation_is_stopped(land: Path, tmp_path: Path) -> None:
    found = stopped(task_on(land, val_dir=str(land)), tmp_path, "leakage")
    assert found["message"] == "splits train and val share data: the same patch stands in both"


def test_a_copy_under_other_names_is_stopped_by_its_content(land: Path, tmp_path: Path) -> None:
    for name, patch in patch_folders(land).items():
        other = re.sub(r"_T\d{2}[A-Z]{3}_", "_T60XWM_", name)
        folder = tmp_path / "copies" / FOLDER / other.rsplit("_", 2)[0] / other
        folder.mkdir(parents=True)
        for path in patch.glob("*.tif"):
            shutil.copyfile(path, folder / path.name.replace(name, other))
    found = stopped(task_on(land, val_dir=str(tmp_path / "copies")), tmp_path, "leakage")
    assert found["message"] == "splits train and val share data: the same content stands in both"
    assert re.match(r"[1-9] of [1-9] in train", found["evidence"])


# --- files that cannot be read ---------------------------------------------------------------------------------------


def train_folders(task: SuperResolutionTask, folder: Path, split: str = "train") -> list[Path]:
    return [patch_folders(folder)[one.id] for one in task.split.patches[split]]


def test_a_truncated_band_among_the_training_patches_stops_training(own: Path, tmp_path: Path) -> None:
    broken = truncate(train_folders(task_on(own), own)[0])
    task = task_on(own)
    assert task.validation.lines()[-1] == "Data validation failed for 1 of 6 patches"
    found = stopped(task, tmp_path, "unreadable_samples")
    assert str(broken) in found["evidence"] and "training samples cannot be read" in found["message"]


def test_a_truncated_band_in_validation_is_an_error_at_once(tmp_path: Path) -> None:
    folder = landscapes(tmp_path / "data", n_places=4, patches_per_place=4)
    changes = {"val_places": (task_on(folder).split.patches["val"][0].place,), "eval_patches": 4}
    broken = truncate(train_folders(task_on(folder, **changes), folder, "val")[2])
    task = task_on(folder, **changes)
    with pytest.raises(UserError, match="is not a readable GeoTIFF") as caught:
        fit(task, open_run(task, tmp_path, "run"))
    assert str(broken) in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reader_that_fails_on_every_training_file_is_stopped(own: Path, workers: int, tmp_path: Path) -> None:
    task = task_on(own, num_workers=workers)
    for folder in train_folders(task, own):
        truncate(folder)
    found = stopped(task, tmp_path, "unreadable_samples")
    assert re.match(r"16 of about 16 samples", found["evidence"])


def test_a_reader_that_fails_during_the_run_stops_it_at_its_next_batch(own: Path, tmp_path: Path) -> None:
    task = task_on(own, stage1_epochs=2, cache_gb=1e-9)
    run = open_run(task, tmp_path, "run")

    def damage(rows: list[dict[str, Any]]) -> None:
        for folder in train_folders(task, own):
            shutil.rmtree(folder)

    with pytest.raises(GuardStop, match="unreadable_samples"):
        fit(task, run, on_epoch=damage)
    (found,) = findings(run)
    assert found["step"] == 8 and "is not there" in found["evidence"]
    assert checkpoint.find(run, "last") is not None


def test_a_set_of_which_nothing_can_be_read_is_refused(own: Path) -> None:
    for folder in patch_folders(own).values():
        truncate(folder)
    assert "none of the 6 patches" in refusal(own)


def test_crops_larger_than_the_patches_are_refused(land: Path) -> None:
    message = refusal(land, crop=128)
    assert "crop is 128" in message and "120 x 120" in message and "at most 120" in message


# --- radiometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high", "top"), [(0, 100, 255), (2, 98, 10_000)])
def test_patches_that_were_stretched_one_by_one_are_refused(own: Path, low: float, high: float, top: int) -> None:
    def stretch(pixels: np.ndarray) -> np.ndarray:
        ends = np.percentile(pixels, (low, high), axis=(1, 2), keepdims=True)
        return ((pixels - ends[0]) / (ends[1] - ends[0])).clip(0, 1).__mul__(top).round().astype(np.uint16)

    message = refusal(rewrite(own, stretch))
    assert "was stretched by itself" in message and f"are 0 and {top} DN" in message


def test_reflectance_as_floats_is_refused(own: Path) -> None:
    for name, patch in patch_folders(own).items():
        path = band_file(patch, name, "B02")
        with rasterio.open(path) as file:
            pixels, profile = file.read(1), file.profile
        with rasterio.open(path, "w", **(profile | {"dtype": "float32"})) as file:
            file.write((pixels / 10_000).astype(np.float32), 1)
    assert "band(s) of float32, expected one of uint16" in refusal(own)


@pytest.mark.parametrize(("factor", "words"), [(0.01, "not reflectance times 10000"), (20, "check the units")])
def test_digital_numbers_of_another_scale_are_refused(own: Path, factor: float, words: str) -> None:
    scaled = rewrite(own, lambda pixels: (pixels * factor + 1).round().clip(1, 65535).astype(np.uint16))
    assert words in refusal(scaled)


def test_a_wrong_offset_is_stopped_before_the_first_step(land: Path, tmp_path: Path) -> None:
    found = stopped(task_on(land, offset=5000), tmp_path, "units")
    assert "not in the units" in found["message"] and "reflectance x 1e4" in found["evidence"]


# --- networks --------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Hands values and gradients on, and keeps its own weights out of the graph."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: tensor.detach() for name, tensor in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, weights, (x,))


class DeadBody(SuperResolutionTask):
    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        generator = self.modules["generator"]
        generator.body = Fixed(generator.body)


class Orphan(SuperResolutionTask):
    """A tensor of the generator that no optimizer has."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.modules["generator"].extra = nn.Parameter(torch.ones(3))


class Stuck(SuperResolutionTask):
    """Something writes the old weights of a layer back at every step."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        tail = self.modules["generator"].tail
        old = tail.weight.detach().clone()

        def write_back(*_: Any) -> None:
            tail.weight.data.copy_(old)

        self.modules["generator"].register_forward_pre_hook(write_back)
        for phase in self.phases:
            phase.optimizers["generator"].register_step_post_hook(write_back)


@pytest.mark.parametrize(
    ("kind", "by", "message", "evidence"),
    [
        (DeadBody, 3, "get no gradient", "generator.body.inner"),
        (Orphan, 0, "belong to no optimizer", "generator.extra"),
        (Stuck, 3, "their values have not changed", "generator.tail.weight"),
    ],
)
def test_tensors_that_cannot_learn_are_stopped_by_step_3(
    kind: type[SuperResolutionTask], by: int, message: str, evidence: str, land: Path, tmp_path: Path
) -> None:
    found = stopped(task_on(land, kind), tmp_path, "dead_gradients", by=by)
    assert message in found["message"] and evidence in found["evidence"]


class DeadDiscriminator(SuperResolutionTask):
    """A judge whose last layers learn nothing; the first phase knows nothing of it."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.modules["discriminator"].tail = Fixed(self.modules["discriminator"].tail)


def test_a_judge_that_cannot_learn_is_stopped_three_steps_into_its_phase(land: Path, tmp_path: Path) -> None:
    found = stopped(task_on(land, DeadDiscriminator, stage2_epochs=1), tmp_path, "dead_gradients", by=8 + 3)
    assert "discriminator." in found["evidence"]


LONG = {
    "crop": 32, "crops_per_epoch": 160, "batch_size": 1, "stage1_epochs": 1, "stage2_epochs": 1, "adversarial_ramp": 0,
    "eval_patches": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"discriminator_lr_factor": 1000.0, "stage2_lr": 1e-6}, "has won"),
        (
            {"discriminator_lr_factor": 1e-9, "stage2_lr": 1e-3, "adversarial_share": 0.8, "perceptual_share": 0.01},
            "has lost",
        ),
    ],
)
def test_a_judge_out_of_balance_is_told(changes: dict[str, Any], words: str, land: Path, tmp_path: Path) -> None:
    found = said(task_on(land, **(LONG | changes)), tmp_path)
    (balance,) = [one for one in found if one["name"] == "gan_balance"]
    assert balance["severity"] == "warn" and words in balance["message"] and "0.55 to 0.95" in balance["evidence"]


@pytest.mark.parametrize("changes", [{"features": 12}, {"scale": 2}, {"mtf": (0.2,)}, {"consistency": False}])
def test_weights_of_another_architecture_are_refused(changes: dict[str, Any], land: Path, tmp_path: Path) -> None:
    run = open_run(task_on(land), tmp_path, "run")
    fit(task_on(land), run)
    found = checkpoint.find(run, "last")
    assert found is not None
    other = task_on(land, **changes)
    before = {name: tensor.clone() for name, tensor in other.modules["generator"].state_dict().items()}
    with pytest.raises(UserError, match="weights of another architecture"):
        checkpoint.load_weights(found, other.modules)
    after = other.modules["generator"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    checkpoint.load_weights(found, task_on(land).modules)


# --- on the command line ---------------------------------------------------------------------------------------------


def test_the_command_line_ends_with_the_guards_sentence_and_code(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    places = [f"--data-dir={own}", f"--output-dir={tmp_path}", "--run-name=run", "--profile=smoke"]
    assert cli.main(["train", "super-resolution", *places, *flags, f"--val-dir={own}"]) == 3
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("nbhelpers: STOP leakage (step 0): Splits train and val share data: the same patch")


@pytest.mark.parametrize(
    ("changes", "code", "folders"),
    [({}, 0, {"run", "run-check"}), ({"stage1_lr": 0.1, "consistency": False}, 2, {"run-check"})],
)
def test_a_quick_check_on_the_command_line_stands_before_the_long_run(
    changes: dict[str, Any], code: int, folders: set[str], land: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"consistency": True} | changes
    switch = "--consistency" if changes.pop("consistency") else "--no-consistency"
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (SMALL | changes).items()]
    places = [f"--data-dir={land}", f"--output-dir={tmp_path}", "--run-name=run", "--profile=smoke"]
    assert cli.main(["train", "super-resolution", *places, *flags, switch, "--quick-check"]) == code
    assert {path.name for path in tmp_path.iterdir()} == folders
    said = capfd.readouterr()
    assert "the high resolution has contrast" in said.out and ("the quick check failed" in said.err) == bool(code)
