"""Faults planted into real small tiles and runs of SAR grounding: each is stopped with its cause named.

Every fault is a change of files, network or settings; no guard is told of it. Pixel losses through drawn tokens and
short LoRA targets stand in test_sar_terramind.py.
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
import torch
from sar_run import few_tiles, flags, task_on
from sar_tiles import redeclare, rewrite
from torch import nn

from nbhelpers import cli
from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.layout import S1_KEYS, S2_KEYS
from nbhelpers.stages.sar_grounding.networks import make_generator
from nbhelpers.stages.sar_grounding.task import GroundingTask
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.guards import latent
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run

SMALL: dict[str, Any] = {"fine": 8, "coarse": 8, "timesteps": 2, "epochs": 1, "lpips_weights": "random"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_tiles(tmp_path_factory.mktemp("data") / "tiles")


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiles to damage."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def arrays(npz: Path) -> dict[str, np.ndarray]:
    with np.load(npz) as file:
        return {key: file[key] for key in file.files}


def stage2(folder: Path, name: str) -> Path:
    return folder / "stage2_outputs" / f"{name}.npz"


def every(folder: Path) -> list[Path]:
    return sorted(folder.glob("tiles/*/*.npz"))


def refused(folder: Path, where: Path, capfd: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one sentence with which training on the command line ends."""
    places = [f"--data-dir={folder}", f"--output-dir={where / 'runs'}", "--run-name=run", "--profile=smoke"]
    capfd.readouterr()
    assert cli.main(["train", "sar-grounding", *places, *flags(**SMALL), *words]) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nbhelpers: ")]
    assert len(lines) == 1 and lines[0].endswith(".")
    return lines[0]


def stopped(task: GroundingTask, where: Path, name: str, *, by: int = 0) -> dict[str, Any]:
    """Train until ``name`` stops the run, at step ``by`` at the latest and before any other guard has spoken."""
    run = open_run(task, where, "run")
    with pytest.raises(GuardStop) as stop:
        fit(task, run)
    (found,) = read_guards(run)
    assert found == dataclasses.asdict(stop.value.finding)
    assert (found["name"], found["severity"]) == (name, "stop"), found
    assert found["step"] <= by and re.search(r"\d", found["evidence"]) and found["cure"].endswith(".")
    return found


# --- the image that is refined ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [9, 4])
def test_an_image_to_refine_that_is_the_truth_is_refused(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], digits: int
) -> None:
    """Also when it went through whole digital numbers on its way."""
    for npz in every(own):
        truth = np.stack([arrays(npz)[key] for key in S2_KEYS])
        rewrite(stage2(own, npz.stem), opt_v2=np.round(truth, digits))
    said = refused(own, tmp_path, capfd, f"--stage2-dir={own / 'stage2_outputs'}")
    assert "is the true S2 image itself, which leaks the answer into the input" in said


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_stage_2_file_is_refused_in_every_split(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], split: str
) -> None:
    name = sorted(own.glob(f"tiles/{split}/*.npz"))[0].stem
    stage2(own, name).unlink()
    said = refused(own, tmp_path, capfd, f"--stage2-dir={own / 'stage2_outputs'}")
    assert f"{name}.npz is not there: make it again, nothing takes its place" in said
    said = refused(own, tmp_path, capfd)
    assert f"{name}.npz is not there" in said, "nor those that were simulated with the tiles"


def test_a_stage_2_file_that_vanishes_while_training_ends_the_run(own: Path, tmp_path: Path) -> None:
    """As with more tiles than fit into memory, which are read again."""
    task = task_on(own)
    name = task.tiles.split["val"][0]
    stage2(own, name).unlink()
    task.tiles.store._kept.clear()
    with pytest.raises(UserError, match=f"{name}.npz is not there"):
        fit(task, open_run(task, tmp_path, "run"))


def test_images_of_other_tiles_are_stopped_before_the_first_step(tmp_path: Path) -> None:
    own = few_tiles(tmp_path / "tiles", a_block=8)
    names = [npz.stem for npz in every(own)]
    images = {name: arrays(stage2(own, name))["opt_v2"] for name in names}
    for place, name in enumerate(names):
        rewrite(stage2(own, name), opt_v2=images[names[place - 1]])
    found = stopped(task_on(own), tmp_path, "unrelated_pairs")
    assert "do not belong to their inputs" in found["message"]


# --- units -----------------------------------------------------------------------------------------------------------


def test_tiles_stretched_to_0_and_1_with_the_statistics_of_digital_numbers_are_refused(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standardised by those, every pixel would have nearly the same value."""
    for npz in every(own):
        redeclare(npz, s2_units="dn")
    said = refused(own, tmp_path, capfd)
    assert "declares digital numbers (reflectance x 1e4) but holds 0." in said and "these are reflectances" in said


def change_all(folder: Path, change: Callable[[np.ndarray], np.ndarray], keys: tuple[str, ...]) -> None:
    for npz in every(folder):
        rewrite(npz, **{key: change(array) for key, array in arrays(npz).items() if key in keys})


@pytest.mark.parametrize(
    ("change", "keys", "words"),
    [
        (lambda x: x * 1e4, S2_KEYS, "declares reflectance but holds"),
        (lambda x: 10 ** (x / 10), S1_KEYS, "declares S1 in dB but holds"),
        (lambda x: (x - x.min()) / (x.max() - x.min()), S1_KEYS, "declares S1 in dB but holds"),
        (lambda x: 0 * x + 0.1, S2_KEYS, ""),
    ],
    ids=["digital numbers", "linear power", "stretched", "constant"],
)
def test_other_units_than_declared_are_refused(
    own: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[np.ndarray], np.ndarray],
    keys: tuple[str, ...],
    words: str,
) -> None:
    change_all(own, change, keys)
    said = refused(own, tmp_path, capfd)
    assert words in said


def test_noise_instead_of_images_is_stopped_before_the_first_step(own: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    change_all(own, lambda x: rng.permutation(x.ravel()).reshape(x.shape), S1_KEYS)
    found = stopped(task_on(own), tmp_path, "training_on_noise")
    assert "s1_v" in found["message"] and "correlation of neighbours" in found["evidence"]


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_tiles_of_one_block_in_two_splits_are_refused(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    redeclare(sorted(own.glob("tiles/test/*.npz"))[0], block="a")
    assert "block 'a' is in two splits" in refused(own, tmp_path, capfd)


def test_a_block_in_two_splits_that_got_past_the_reader_is_stopped(folder: Path, tmp_path: Path) -> None:
    """The guard compares what the task itself says of its splits."""
    task = task_on(folder)
    name = task.tiles.split["test"][0]
    task.tiles = dataclasses.replace(task.tiles, block={**task.tiles.block, name: "a"})
    found = stopped(task, tmp_path, "leakage")
    assert "splits train and test share data" in found["message"] and "block" in found["message"]


def test_the_same_content_under_two_names_is_refused(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = (sorted(own.glob(f"tiles/{split}/*.npz"))[0] for split in ("train", "test"))
    shutil.copyfile(one, other)
    assert "hold the same" in refused(own, tmp_path, capfd)


# --- networks --------------------------------------------------------------------------------------------------------


class Orphan(GroundingTask):
    """A tensor that came after the optimizer was made."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.modules["generator"].extra = nn.Parameter(torch.ones(3))


def test_a_tensor_that_no_optimizer_has_is_stopped(folder: Path, tmp_path: Path) -> None:
    found = stopped(Orphan(task_on(folder).config, folder), tmp_path, "dead_gradients")
    assert "belong to no optimizer" in found["message"] and "generator.extra" in found["evidence"]


@pytest.fixture(scope="module")
def base(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    """Of a run that trained all weights."""
    task = task_on(folder, epochs=1)
    run = open_run(task, tmp_path_factory.mktemp("base"), "run")
    fit(task, run)
    found = checkpoint.find(run, "last")
    assert found is not None
    return found


def adapted(folder: Path, base: checkpoint.Checkpoint, **changes: Any) -> GroundingTask:
    return task_on(folder, base=str(base.folder), lora_rank=2, **changes)


def test_a_base_that_is_not_frozen_is_stopped_before_the_first_step(
    folder: Path, base: checkpoint.Checkpoint, tmp_path: Path
) -> None:
    task = adapted(folder, base)
    generator = task.modules["generator"]
    generator.requires_grad_(True)
    task.phases[0].optimizers["generator"].add_param_group(
        {"params": [tensor for name, tensor in generator.named_parameters() if ".lora_" not in name]}
    )
    (found,) = read_stop(task, tmp_path)
    assert "the layers under adapters are trained as well" in found["message"] and found["step"] == 0


def test_adapters_that_nothing_moves_are_stopped(folder: Path, base: checkpoint.Checkpoint, tmp_path: Path) -> None:
    """Their last factor is set to 0 in every pass, so that the product stays 0."""
    task = adapted(folder, base, epochs=6)
    generator = task.modules["generator"]
    second = [tensor for name, tensor in generator.named_parameters() if ".lora_B." in name]

    def forget(*_: Any) -> None:
        for tensor in second:
            tensor.data.zero_()

    task.phases[0].optimizers["generator"].register_step_post_hook(forget)
    found = read_stop(task, tmp_path)[-1]
    assert found["step"] <= 12 and found["severity"] == "stop", found


def read_stop(task: GroundingTask, where: Path) -> list[dict[str, Any]]:
    run = open_run(task, where, "run")
    with pytest.raises(GuardStop):
        fit(task, run)
    return read_guards(Run(where / "run"))


@pytest.mark.parametrize(
    "changes", [{"fine": 12}, {"coarse": 12}, {"timesteps": 3}, {"noise": 0.5}, {"use_sar": False}]
)
def test_weights_of_another_architecture_are_refused(
    folder: Path, base: checkpoint.Checkpoint, changes: dict[str, Any]
) -> None:
    config = task_on(folder).config.replace(changes, source="the test")
    other = {"generator": make_generator(config)}
    before = [tensor.clone() for tensor in other["generator"].state_dict().values()]
    with pytest.raises(UserError, match="weights of another architecture"):
        checkpoint.load_weights(base, other)
    assert all(map(torch.equal, before, other["generator"].state_dict().values()))


class Blind(GroundingTask):
    """Whatever the SAR image, the network is shown the same."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.modules["generator"].encoder.register_forward_pre_hook(lambda _, inputs: (torch.ones_like(inputs[0]),))


def test_a_sar_image_that_is_ignored_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(With the 200 steps before which nothing is said brought down to the size of a test.)"""
    assert latent.STEPS == 200
    monkeypatch.setattr(latent, "STEPS", 18)
    task = Blind(task_on(folder, epochs=3, batch_size=1, lr=3e-3).config, folder)
    found = task.evaluate("val").dependence["sar"]
    assert found.intact == found.shuffled
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    (warned,) = read_guards(run)
    assert warned["severity"] == "warn" and warned["message"].startswith("the model ignores sar: with that of other")
    assert warned["step"] == 18 and "sar" in warned["cure"]
