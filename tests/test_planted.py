"""Faults planted into real small runs of the nowcast: the right guard speaks, in time, with numbers and a cure.

Every fault is a change of data files, model, loss, schedule or environment; no guard is told of it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sevir
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.utils.data import DataLoader

from nbhelpers import cli
from nbhelpers.core.errors import UserError
from nbhelpers.core.fields import Affine
from nbhelpers.stages.perceptual_unet import data, verification
from nbhelpers.stages.perceptual_unet.config import SIMULATED, Config
from nbhelpers.stages.perceptual_unet.simulate import simulate
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.stages.perceptual_unet.windows import Batch
from nbhelpers.training import checkpoint, history
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import LossTerm, Monitor, Phase, Update

N_FRAMES = 8
SMALL: dict[str, Any] = {
    "n_in": 3,
    "n_out": 1,
    "crop": 32,
    "windows_per_epoch": 72,
    "eval_windows": 2,
    "base_channels": 4,
    "depth": 1,
    "batch_size": 4,
    "epochs": 1,
    "first_guess": "persistence",
    "lambda_perc": 0.0,
    "lpips_weights": "random",
}
# Long runs of tiny steps.
TINY: dict[str, Any] = SMALL | {"first_guess": "none", "n_in": 2, "depth": 0, "eval_windows": 1, "lr": 1e-2}
PLAIN: dict[str, Any] = {"emphasis": 0.0, "even_leads": False, "mae_weight": 0.0}  # the mean squared error alone
Finding = dict[str, Any]
Frames = NDArray[np.uint8]


def events(
    change: Callable[[Frames], Frames] = lambda frames: frames, *, n: int = 12, side: int = 48
) -> dict[str, Frames]:
    """Storms, each of them changed; on 48 x 48 pixels their mean and standard deviation are near those of SEVIR."""
    return {id: change(frames) for id, frames in sevir.storms(n, n_frames=N_FRAMES, height=side, width=side).items()}


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storms")
    sevir.write_sevir(folder, events())
    return folder


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory: pytest.TempPathFactory, root: Path) -> str:
    """Weights of the backbone: pretrained where the sample data are at hand."""
    folder = Path(os.environ.get("NBHELPERS_REAL_DATA", root / "../shared/data")).resolve()
    weights = folder / "weights/squeezenet1_1_caffe_features.pth"
    return str(weights) if weights.exists() else "random"


def planted(folder: Path, kind: type[NowcastTask] = NowcastTask, **settings: Any) -> NowcastTask:
    return kind(Config.for_profile("smoke", **(SMALL | settings)), folder)


def findings(run: Run) -> list[Finding]:
    """What guards.json says, each finding whole and with a number in its evidence."""
    found = read_guards(run)
    for finding in found:
        assert finding.keys() == {"name", "severity", "step", "evidence", "message", "cure"}
        assert finding["evidence"] and finding["message"] and finding["cure"].endswith(".")
        # Names, and no number, are all there is to a scheduler that is in no phase.
        assert re.search(r"\d", finding["evidence"]) or finding["name"] == "scheduler_not_stepped"
        assert not re.search(r"\d\.\d", finding["message"])  # numbers stand in the evidence
    return found


def said(task: NowcastTask, folder: Path) -> list[Finding]:
    """Train to the end; what the guards say on the way."""
    run = open_run(task, folder, "run")
    fit(task, run)
    return findings(run)


def stopped(task: NowcastTask, folder: Path, name: str, *, by: int = 0, exit_code: int = 3) -> Finding:
    """Train until ``name`` stops the run, at step ``by`` at the latest and before any other guard has spoken."""
    run = open_run(task, folder, "run")
    with pytest.raises(GuardStop) as stop:
        fit(task, run)
    found = findings(run)
    assert {finding["name"] for finding in found} == {name}, found
    last = found[-1]
    assert last["severity"] == "stop" and last == dataclasses.asdict(stop.value.finding)
    assert last["step"] <= by and stop.value.exit_code == exit_code
    return last


def refused(
    folder: Path, output: Path, capfd: pytest.CaptureFixture[str], name: str, exit_code: int, **changes: Any
) -> str:
    """The one sentence with which the command line ends when ``name`` stops it."""
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (SMALL | changes).items()]
    places = [f"--data-dir={folder}", f"--output-dir={output}", "--run-name=run", "--profile=smoke"]
    capfd.readouterr()
    assert cli.main(["train", "perceptual-unet", *places, *flags]) == exit_code
    (line,) = capfd.readouterr().err.splitlines()
    (found,) = findings(Run(output / "run"))
    assert (found["name"], found["severity"]) == (name, "stop")
    assert line.startswith(f"nbhelpers: STOP {name} (step {found['step']}): ")
    assert found["evidence"] in line and line.endswith(found["cure"])
    return line


# --- nothing planted -------------------------------------------------------------------------------------------------


def test_nothing_is_said_where_nothing_is_planted(storms: Path, squeeze: str, tmp_path: Path) -> None:
    balanced = {"perceptual_share": 0.1, "lambda_perc": None, "backbone_weights": squeeze, "lpips_weights": None}
    assert said(planted(storms, **balanced, patience=1, epochs=2), tmp_path) == []


def test_nothing_is_said_in_a_longer_run_from_scratch(storms: Path, tmp_path: Path) -> None:
    """As long as it takes until missing skill has stopped a run and blank predictions are told."""
    assert said(planted(storms, **(TINY | {"batch_size": 1, "windows_per_epoch": 203, "epochs": 3})), tmp_path) == []
    assert history.read_rows(tmp_path / "run/history.csv")[-1]["step"] >= 600


# --- G1: balance of the losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["squeeze", "vgg16"])
def test_the_classical_weight_is_inert_with_random_features_which_are_called_so(
    net: str, storms: Path, tmp_path: Path
) -> None:
    task = planted(storms, lambda_perc=5e-4, backbone=net, backbone_weights="random")
    assert any(f"RANDOM features of {net}" in remark for remark in task.remarks())
    (found,) = said(task, tmp_path)
    assert (found["name"], found["severity"]) == ("loss_balance", "warn") and found["step"] <= 15
    assert found["message"].startswith("pixel has nearly all") and "perceptual next to nothing" in found["message"]
    assert 0 < share_in(found, "perceptual") < 1 < 99 < share_in(found, "pixel")


def test_the_same_weight_is_not_called_inert_where_the_features_are_large(
    real_data: Path, storms: Path, tmp_path: Path
) -> None:
    """The sample's SqueezeNet gives P so large that λ/S = 8e-8 has a say: shares are judged, not weights."""
    weights = str(real_data / "weights/squeezenet1_1_caffe_features.pth")
    assert said(planted(storms, lambda_perc=5e-4, backbone_weights=weights), tmp_path) == []
    rows = history.read_rows(tmp_path / "run/ledger.csv")
    assert statistics.median(row["grad_share"] for row in rows if row["term"] == "perceptual") > 0.05


def test_a_weight_without_the_classical_scale_drowns_the_mse(storms: Path, squeeze: str, tmp_path: Path) -> None:
    task = planted(storms, lambda_perc=0.1, perceptual_scale=1.0, backbone_weights=squeeze)
    (found,) = said(task, tmp_path)
    assert (found["name"], found["severity"]) == ("loss_balance", "warn") and found["step"] <= 15
    assert found["message"].startswith("perceptual has nearly all") and "pixel next to nothing" in found["message"]
    assert 0 < share_in(found, "pixel") < 1 < 90 < share_in(found, "perceptual")


def share_in(found: Finding, term: str) -> float:
    """Gradient share in percent, as the evidence states it."""
    stated = re.search(rf"\b{term} ([\d.e+-]+) %", found["evidence"])
    assert stated, found["evidence"]
    return float(stated[1])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("source", ["simulated", "radar"])
def test_a_share_lands_where_it_is_asked_for(
    source: str, seed: int, squeeze: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if source == "radar":
        folder = request.getfixturevalue("real_data") / "radar_sevir_layout"
        small = {name: SMALL[name] for name in ("n_in", "n_out", "depth", "base_channels", "first_guess")}
    else:
        folder, small = tmp_path / "storms", {}
        simulate(folder, **SIMULATED["smoke"], progress=False)
    settings = {"backbone_weights": squeeze, "eval_windows": 1, "windows_per_epoch": 144, "epochs": 1, "seed": seed}
    task = NowcastTask(Config.for_profile("smoke", **settings, **small), folder)
    assert task.config.perceptual_share == 0.1
    assert said(task, tmp_path) == []
    rows = history.read_rows(tmp_path / "run/ledger.csv")
    shares = [row["grad_share"] for row in rows if row["term"] == "perceptual" and row["step"] > 0]
    assert len(shares) >= 15 and 0.08 < statistics.median(shares) < 0.12


# --- G3: noise, constants, unrelated pairs, no skill -----------------------------------------------------------------


def shuffled_pixels(frames: Frames) -> Frames:
    """Every frame with its own histogram and without any structure."""
    flat = np.random.default_rng(0).permuted(frames.reshape(len(frames), -1), axis=1)
    return flat.reshape(frames.shape)


def test_noise_is_stopped_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sevir.write_sevir(tmp_path / "data", events(shuffled_pixels))
    line = refused(tmp_path / "data", tmp_path / "runs", capfd, "training_on_noise", 3)
    assert "step 0" in line and "correlation of neighbours" in line


@pytest.mark.parametrize("level", [0, 120])
def test_constant_files_are_stopped(level: int, tmp_path: Path) -> None:
    sevir.write_sevir(tmp_path / "data", events(lambda frames: np.full_like(frames, level)))
    found = stopped(planted(tmp_path / "data"), tmp_path, "training_on_noise")
    assert f"{level} everywhere" in found["evidence"] and "constant" in found["message"]


def test_files_whose_end_comes_from_another_event_are_stopped(tmp_path: Path) -> None:
    own = events()
    ends = [*list(own.values())[1:], next(iter(own.values()))]
    n_in = SMALL["n_in"]
    sevir.write_sevir(
        tmp_path / "data",
        {id: np.concatenate([a[:n_in], b[n_in : n_in + 1]]) for (id, a), b in zip(own.items(), ends, strict=True)},
    )
    found = stopped(planted(tmp_path / "data"), tmp_path, "unrelated_pairs")
    assert "mean correlation" in found["evidence"]


class PairsApart(NowcastTask):
    """A loader that hands every target to the next sample."""

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        loader = super().batches(split, epoch, start)
        collate, n_in = loader.collate_fn, self.config.n_in

        def apart(samples: Any) -> Batch:
            batch = collate(samples)
            batch.frames[:, n_in:] = batch.frames[:, n_in:].roll(1, dims=0)
            return batch

        loader.collate_fn = apart
        return loader


def test_a_loader_that_mixes_up_pairs_is_stopped(storms: Path, tmp_path: Path) -> None:
    stopped(planted(storms, PairsApart), tmp_path, "unrelated_pairs")


class InputsApart(NowcastTask):
    """A training step that gives the model the frames of another sample; the data themselves are in order."""

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        n_in = self.config.n_in
        frames = torch.cat([batch.frames[:, :n_in].roll(1, dims=0), batch.frames[:, n_in:]], dim=1)
        yield from super().updates(dataclasses.replace(batch, frames=frames), phase)


@pytest.mark.parametrize(("loss", "by"), [(PLAIN, 250), ({}, 300)])  # a weighted loss takes an epoch more to settle
def test_a_model_without_skill_is_stopped_after_200_steps(
    loss: dict[str, Any], by: int, storms: Path, tmp_path: Path
) -> None:
    settings = TINY | {"windows_per_epoch": 280, "epochs": 5} | loss
    found = stopped(planted(storms, InputsApart, **settings), tmp_path, "no_skill", by=by)
    assert found["step"] >= 200
    assert re.search(r"skill -?0\.\d+ in training, below 0.01, after 2\d\d steps", found["evidence"])


# --- G4: samples that cannot be read ---------------------------------------------------------------------------------


def write_single_files(folder: Path) -> dict[str, Path]:
    """One event a file."""
    paths, rows = {}, []
    for id, frames in events(n=8).items():
        name = f"vil/2019/{id}.h5"
        paths[id] = sevir.write_hdf5(folder / name, {id: frames})
        rows.append(sevir.row(id, 0, frames, file_name=name))
    sevir.write_catalogue(folder / "CATALOG.csv", rows)
    return paths


def blank_out(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["vil"][:] = 255


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [blank_out, cut_off])
def test_an_event_that_turns_unreadable_stops_training(
    damage: Callable[[Path], None], workers: int, tmp_path: Path
) -> None:
    paths = write_single_files(tmp_path / "data")
    task = planted(tmp_path / "data", num_workers=workers)
    lost = task.split.events["train"][0].id
    damage(paths[lost])
    found = stopped(task, tmp_path, "unreadable_samples")
    assert lost in found["evidence"] and re.match(r"[1-9]\d* of about 7\d samples", found["evidence"])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_event_that_turns_unreadable_during_the_run_stops_it_at_its_first_batch(
    workers: int, tmp_path: Path
) -> None:
    paths = write_single_files(tmp_path / "data")
    task = planted(tmp_path / "data", num_workers=workers, epochs=2, cache_gb=1e-9)
    run = open_run(task, tmp_path, "run")

    def damage(rows: list[dict[str, Any]]) -> None:
        for event in task.split.events["train"]:
            cut_off(paths[event.id])

    with pytest.raises(GuardStop):
        fit(task, run, on_epoch=damage)
    (found,) = findings(run)
    assert (found["name"], found["severity"], found["step"]) == (
        "unreadable_samples",
        "stop",
        len(task.batches("train", 0)),
    )
    assert checkpoint.find(run, "last") is not None  # of the first epoch


def test_an_unreadable_event_in_validation_is_an_error_at_once(tmp_path: Path) -> None:
    paths = write_single_files(tmp_path / "data")
    task = planted(tmp_path / "data")
    blank_out(paths[task.split.events["val"][0].id])
    run = open_run(task, tmp_path, "run")
    with pytest.raises(UserError, match="holds nothing but 255") as error:
        fit(task, run)
    assert not isinstance(error.value, GuardStop) and findings(run) == [] and not history.read_rows(run.history_file)


def test_an_empty_event_stops_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = write_single_files(tmp_path / "data")
    lost = planted(tmp_path / "data").split.events["train"][-1].id
    blank_out(paths[lost])
    line = refused(tmp_path / "data", tmp_path / "runs", capfd, "unreadable_samples", 3)
    assert f"event {lost}" in line and "holds nothing but 255" in line


# --- G5: missing values ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gappy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storms with a corner that the radar does not see."""

    def hide(frames: Frames) -> Frames:
        hidden = frames.copy()
        hidden[:, :20, :24] = 255
        return hidden

    folder = tmp_path_factory.mktemp("gappy")
    sevir.write_sevir(folder, events(hide))
    return folder


class Unmasked(NowcastTask):
    """A mean squared error over all pixels; missing ones are 0 in model units."""

    def terms(self, target: Tensor, valid: Tensor) -> tuple[LossTerm, ...]:
        return (LossTerm("pixel", lambda prediction: (prediction - target).square().mean(), 1.0),)


class Sentinels(NowcastTask):
    """Grey levels divided by 255 and nothing else: what is missing is the strongest rain there is."""

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        frames = batch.frames.to(self.device).float() / 255
        n_in = self.config.n_in
        target = frames[:, n_in:]
        everywhere = torch.ones_like(target, dtype=torch.bool)
        prediction = self._predict(frames[:, :n_in], torch.ones_like(frames[:, :n_in], dtype=torch.bool))
        yield Update("unet", prediction, self.terms(target, everywhere), target)


@pytest.mark.parametrize("first_guess", ["none", "persistence"])
@pytest.mark.parametrize("kind", [Unmasked, Sentinels])
def test_a_loss_that_ignores_the_mask_is_stopped(
    kind: type[NowcastTask], first_guess: str, gappy: Path, tmp_path: Path
) -> None:
    found = stopped(planted(gappy, kind, first_guess=first_guess), tmp_path, "missing_values", by=2)
    assert "loss term 'pixel'" in found["message"] and "of the target's pixels are missing" in found["evidence"]


def test_a_gap_that_the_loss_leaves_out_is_no_fault(gappy: Path, tmp_path: Path) -> None:
    assert said(planted(gappy), tmp_path) == []


def test_metrics_that_score_missing_values_are_stopped(
    gappy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "VIL", dataclasses.replace(data.VIL, missing=None))
    found = stopped(planted(gappy), tmp_path, "missing_values")
    assert "validation" in found["message"] and "to 1 in model units" in found["evidence"]


# --- G6: output activation -------------------------------------------------------------------------------------------


class Ending(nn.Module):
    """A network with an activation after its last layer."""

    def __init__(self, net: nn.Module, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.activation = net, activation

    def forward(self, *frames: Tensor) -> Tensor:
        return self.activation(self.net(*frames))


class ZScores(NowcastTask):
    """Standardised fields, and a model that ends in an activation made for [0, 1]."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, config: Config, data_dir: Path):
        super().__init__(config, data_dir)
        self.standard = dataclasses.replace(data.VIL, transform=Affine(data.VIL.std, data.VIL.mean))
        self.fields = {"input": self.standard, "target": self.standard}
        self.modules["unet"] = Ending(self.modules["unet"], type(self).activation)

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        frames, valid = self.standard.to_model(batch.frames.to(self.device))
        n_in = self.config.n_in
        prediction, target, measured = self.modules["unet"](frames[:, :n_in]), frames[:, n_in:], valid[:, n_in:]
        yield Update("unet", prediction, self.terms(target, measured), target, measured)

    def forecast(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            frames, _ = self.standard.to_model(batch.frames[:, : self.config.n_in].to(self.device))
            return self.standard.to_units(self.modules["unet"](frames)).float() / 255


@pytest.mark.parametrize("activation", [F.relu, torch.sigmoid, F.softplus])
def test_an_activation_that_cannot_reach_the_target_is_refused(
    activation: Callable[[Tensor], Tensor], storms: Path, tmp_path: Path
) -> None:
    kind = type("Ended", (ZScores,), {"activation": staticmethod(activation)})
    found = stopped(planted(storms, kind, first_guess="none"), tmp_path, "output_range", exit_code=2)
    assert "the target has -0.7" in found["evidence"]


# --- G7: units -------------------------------------------------------------------------------------------------------


def in_kg_m2(frames: Frames) -> Frames:
    return data.vil_kg_m2(frames).astype(np.uint8)


def as_share(frames: Frames) -> Frames:
    return (frames / 255).round().astype(np.uint8)


@pytest.mark.parametrize(("change", "side"), [(in_kg_m2, 72), (as_share, 48)])
def test_files_in_other_units_are_stopped(
    change: Callable[[Frames], Frames], side: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sevir.write_sevir(tmp_path / "data", events(change, side=side))
    line = refused(tmp_path / "data", tmp_path / "runs", capfd, "units", 3)
    assert "not in the units it is declared in" in line and "grey level (0-254)" in line


# --- G8: schedules that cannot finish --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"patience": 2, "epochs": 2}, {"patience": 1, "armed_after": 3, "epochs": 4}])
def test_patience_that_can_never_run_out_is_refused(
    settings: Mapping[str, int], storms: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused(storms, tmp_path, capfd, "schedule", 2, **settings)
    assert "can never act" in line and f"patience of {settings['patience']}" in line


class OtherCosine(NowcastTask):
    """A cosine made for a run of another length."""

    epochs: int

    def _phase(self, unet: nn.Module) -> Phase:
        phase = super()._phase(unet)
        steps = self.epochs * self.config.windows_per_epoch // self.config.batch_size
        return dataclasses.replace(phase, schedulers={"unet": CosineAnnealingLR(phase.optimizers["unet"], steps)})


@pytest.mark.parametrize("epochs", [2, 9])
def test_a_cosine_of_another_length_is_refused(epochs: int, storms: Path, tmp_path: Path) -> None:
    kind = type("Other", (OtherCosine,), {"epochs": epochs})
    found = stopped(planted(storms, kind, epochs=5), tmp_path, "schedule", exit_code=2)
    steps = re.search(r"end at step (\d+), the phase has (\d+) steps", found["evidence"])
    assert steps and abs(int(steps[1]) - 18 * epochs) <= 1 and int(steps[2]) == 90


# --- G9: what nobody calls -------------------------------------------------------------------------------------------


class UnderAnotherName(NowcastTask):
    def _phase(self, unet: nn.Module) -> Phase:
        phase = super()._phase(unet)
        return dataclasses.replace(phase, schedulers={"net": phase.schedulers["unet"]})


class NotHandedOver(NowcastTask):
    def _phase(self, unet: nn.Module) -> Phase:
        return dataclasses.replace(super()._phase(unet), schedulers={})


@pytest.mark.parametrize("kind", [UnderAnotherName, NotHandedOver])
def test_a_scheduler_that_nobody_steps_is_told(kind: type[NowcastTask], storms: Path, tmp_path: Path) -> None:
    (found,) = said(planted(storms, kind), tmp_path)
    assert (found["name"], found["severity"], found["step"]) == ("scheduler_not_stepped", "warn", 0)


class OtherMonitor(NowcastTask):
    """A metric that the stage does not have, past the check of the settings."""

    def __init__(self, config: Config, data_dir: Path):
        super().__init__(config, data_dir)
        self.monitor = Monitor("csi_75", "max")


def test_a_monitor_that_does_not_exist_is_refused(storms: Path, tmp_path: Path) -> None:
    found = stopped(planted(storms, OtherMonitor), tmp_path, "unknown_monitor", exit_code=2)
    assert "'csi_75'" in found["message"] and "csi_74" in found["message"]


# --- G10: gradients --------------------------------------------------------------------------------------------------


class Detached(NowcastTask):
    """The coarse branch of the UNet is cut from the graph."""

    def __init__(self, config: Config, data_dir: Path):
        super().__init__(config, data_dir)
        self.modules["unet"].up[0].register_forward_hook(lambda module, inputs, output: output.detach())


@pytest.mark.parametrize("first_guess", ["none", "persistence"])
def test_a_detached_branch_is_stopped_at_step_3(first_guess: str, storms: Path, tmp_path: Path) -> None:
    found = stopped(planted(storms, Detached, first_guess=first_guess), tmp_path, "dead_gradients", by=3)
    assert "unet.up.0.weight" in found["evidence"] or "unet.down.1" in found["evidence"]


class HeadForgotten(NowcastTask):
    """An optimizer that was given all layers but the last."""

    def _phase(self, unet: nn.Module) -> Phase:
        phase = super()._phase(unet)
        rest = [tensor for name, tensor in unet.named_parameters() if not name.startswith("head")]
        return dataclasses.replace(phase, optimizers={"unet": torch.optim.Adam(rest)}, schedulers={})


def test_a_layer_without_an_optimizer_is_stopped_before_training(storms: Path, tmp_path: Path) -> None:
    found = stopped(planted(storms, HeadForgotten), tmp_path, "dead_gradients")
    assert found["evidence"].startswith("2 of ") and "unet.head.weight, unet.head.bias" in found["evidence"]


class Decaying(torch.optim.Adam):
    """Weight decay for all tensors it was given, those without a gradient too."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.mul_(1 - 0.01)
        return loss


class FrozenInName(NowcastTask):
    """A frozen first layer that the optimizer's weight decay moves all the same."""

    def _phase(self, unet: nn.Module) -> Phase:
        unet.down[0].requires_grad_(False)  # type: ignore[index]
        phase = super()._phase(unet)
        return dataclasses.replace(
            phase, optimizers={"unet": Decaying(unet.parameters(), lr=self.config.lr)}, schedulers={}
        )


def test_a_frozen_layer_that_moves_is_stopped_at_step_3(storms: Path, tmp_path: Path) -> None:
    found = stopped(planted(storms, FrozenInName), tmp_path, "dead_gradients", by=3)
    assert "frozen tensors have changed" in found["message"] and "unet.down.0" in found["evidence"]


class OtherModel(NowcastTask):
    """The optimizer holds the parameters of a copy that was made before."""

    def _phase(self, unet: nn.Module) -> Phase:
        return super()._phase(type(unet)(self.config.n_in, self.config.n_out, base=4, depth=1))


def test_an_optimizer_of_another_model_is_stopped_before_training(storms: Path, tmp_path: Path) -> None:
    stopped(planted(storms, OtherModel), tmp_path, "dead_gradients")


# --- G15: leakage ----------------------------------------------------------------------------------------------------


def test_an_event_that_returns_under_another_name_and_date_stops_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = events(n=8)
    days = [f"2019-05-{4 + day:02d}" for day in range(8)]
    again = {**found, "R77": found["R00"]}  # the first day trains, the last one tests
    sevir.write_sevir(tmp_path / "data", again, days=[*days, "2019-07-01"])
    line = refused(tmp_path / "data", tmp_path / "runs", capfd, "leakage", 3)
    assert "Splits train and test share data: the same content" in line and "1 of " in line


class SameEvent(NowcastTask):
    """A split that puts a training event into validation as well."""

    def __init__(self, config: Config, data_dir: Path):
        super().__init__(config, data_dir)
        self.split.events["val"].append(self.split.events["train"][0])


def test_an_event_in_two_splits_is_stopped(storms: Path, tmp_path: Path) -> None:
    task = planted(storms, SameEvent)
    found = stopped(task, tmp_path, "leakage")
    assert "the same event" in found["message"] and task.split.events["train"][0].id in found["evidence"]


# --- G17: another architecture ---------------------------------------------------------------------------------------


def test_weights_of_another_architecture_are_refused(
    storms: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = open_run(planted(storms), tmp_path, "narrow")
    fit(planted(storms), run)
    found = checkpoint.find(run, "last")
    assert found is not None
    wider = planted(storms, base_channels=8)
    before = {name: tensor.clone() for name, tensor in wider.modules["unet"].state_dict().items()}
    with pytest.raises(UserError):
        checkpoint.load_weights(found, wider.modules)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wider.modules["unet"].state_dict().items())
    # Same names and shapes, another meaning: the head no longer corrects a first guess.
    with pytest.raises(UserError):
        checkpoint.load_weights(found, planted(storms, first_guess="none").modules)
    # Nor is a forecast in coordinates that move with the rain one in fixed coordinates.
    with pytest.raises(UserError):
        checkpoint.load_weights(found, planted(storms, first_guess="advection").modules)
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (SMALL | {"base_channels": 8}).items()]
    places = [f"--data-dir={storms}", f"--output-dir={tmp_path}", "--run-name=wide", "--profile=smoke"]
    capfd.readouterr()
    assert cli.main(["train", "perceptual-unet", *places, *flags, f"--resume={found.folder}"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("nbhelpers: ") and "architecture" in line


# --- G18: what is not finite, and spikes -----------------------------------------------------------------------------


class JumpingRate(NowcastTask):
    """A learning rate that is a million times too high from the 25th step on."""

    def _phase(self, unet: nn.Module) -> Phase:
        phase = super()._phase(unet)
        jump = LambdaLR(phase.optimizers["unet"], lambda step: 1e6 if step >= 24 else 1.0)
        return dataclasses.replace(phase, schedulers={"unet": jump})


def test_a_loss_that_blows_up_is_told_at_once(storms: Path, tmp_path: Path) -> None:
    found = said(planted(storms, JumpingRate, windows_per_epoch=128), tmp_path)
    assert {one["name"] for one in found} == {"loss_spike"} and found[0]["severity"] == "warn"
    assert 25 <= found[0]["step"] <= 27 and "after a median of" in found[0]["evidence"]


def test_a_rate_that_leaves_the_floats_is_stopped(storms: Path, tmp_path: Path) -> None:
    task = planted(storms, lr=1e30, grad_clip=0.0, first_guess="none")
    found = stopped(task, tmp_path, "not_finite", by=15)
    assert "10 in a row" in found["evidence"]


class LogOfNegatives(NowcastTask):
    def terms(self, target: Tensor, valid: Tensor) -> tuple[LossTerm, ...]:
        (mse,) = super().terms(target, valid)
        return mse, LossTerm("log", lambda prediction: (prediction.log() - (target + 1).log()).square().mean(), 0.1)


class RootAtZero(NowcastTask):
    """Per-pixel |ŷ − y| as a root of squares: finite everywhere, its slope at 0 is not, and dry pixels are 0."""

    def terms(self, target: Tensor, valid: Tensor) -> tuple[LossTerm, ...]:
        (mse,) = super().terms(target, valid)
        return mse, LossTerm("root", lambda prediction: (prediction - target).square().sqrt().mean(), 0.1)


@pytest.mark.parametrize(("kind", "what"), [(LogOfNegatives, "log = nan"), (RootAtZero, "root = ")])
def test_nan_is_told_at_once_and_stops_after_ten_in_a_row(
    kind: type[NowcastTask], what: str, storms: Path, tmp_path: Path
) -> None:
    guess = "none" if kind is LogOfNegatives else "persistence"
    task = planted(storms, kind, first_guess=guess)
    found = stopped(task, tmp_path, "not_finite", by=10)
    assert what in found["evidence"]
    assert [(one["severity"], one["step"]) for one in findings(Run(tmp_path / "run"))] == [("warn", 1), ("stop", 10)]


# --- G20: blank predictions ------------------------------------------------------------------------------------------


class Faint(NowcastTask):
    """Forecasts that are divided by 255 once too often; the training itself is in order."""

    def forecast(self, batch: Batch) -> Tensor:
        return super().forecast(batch) / 255


def test_faint_predictions_are_told_after_600_steps_and_stopped_after_1200(storms: Path, tmp_path: Path) -> None:
    task = planted(storms, Faint, **(TINY | {"batch_size": 1, "windows_per_epoch": 203, "epochs": 7}))
    per_epoch = len(task.batches("train", 0))
    assert 200 <= per_epoch < 210
    found = stopped(task, tmp_path, "blank_predictions", by=6 * per_epoch)
    assert "lowest event level 0.06275" in found["evidence"] and "of the truth's" in found["evidence"]
    both = [(one["severity"], one["step"]) for one in findings(Run(tmp_path / "run"))]
    assert both == [("warn", 3 * per_epoch), ("stop", 6 * per_epoch)]


class Flattened(NowcastTask):
    """A smoothness term so strong that the forecast keeps a fraction of its contrast."""

    def terms(self, target: Tensor, valid: Tensor) -> tuple[LossTerm, ...]:
        (mse,) = super().terms(target, valid)
        return mse, LossTerm("contrast", lambda prediction: prediction.var(), 6.0, role="regulariser")


def test_flat_predictions_are_told_after_600_steps(storms: Path, tmp_path: Path) -> None:
    # With the plain error the best forecast has 1/7 of the contrast.
    task = planted(storms, Flattened, **(TINY | PLAIN | {"batch_size": 1, "windows_per_epoch": 203, "epochs": 3}))
    (found,) = said(task, tmp_path)
    assert (found["name"], found["severity"]) == ("blank_predictions", "warn")
    assert found["step"] == 3 * len(task.batches("train", 0))
    assert found["evidence"].startswith("the variance of the predictions is 0.0")


class Silenced(NowcastTask):
    """A penalty that leaves nothing of the forecast, in training too."""

    def terms(self, target: Tensor, valid: Tensor) -> tuple[LossTerm, ...]:
        (mse,) = super().terms(target, valid)
        return mse, LossTerm("size", lambda prediction: prediction.square().mean(), 100.0, role="regulariser")


def test_predictions_that_are_blank_in_training_are_stopped_for_having_no_skill(storms: Path, tmp_path: Path) -> None:
    """The same cause, found earlier: the model is no better than zero."""
    settings = TINY | {"windows_per_epoch": 280, "epochs": 5}
    stopped(planted(storms, Silenced, **settings), tmp_path, "no_skill", by=300)


# --- G21 and G22: memory, in processes of their own ------------------------------------------------------------------

CHILD = """
    import resource, sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import torch
    import test_planted
    test_planted.{function}(Path({folder!r}))
"""


def in_a_process_of_its_own(function: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(CHILD.format(tests=str(Path(__file__).parent), function=function, folder=str(folder)))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=folder)


# Many frames and a small net: much is kept for little work.
KEEPING: dict[str, Any] = TINY | {"n_in": 7, "crop": 0, "windows_per_epoch": 48, "batch_size": 8, "epochs": 6}


class KeepsBatches(NowcastTask):
    """Keeps every batch of training "for a figure later on"."""

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        self.kept = [*getattr(self, "kept", []), batch.frames.double()]
        yield from super().updates(batch, phase)


def keep_batches(folder: Path) -> None:
    said(planted(folder / "data", KeepsBatches, **KEEPING), folder)


def test_memory_that_grows_is_told_after_five_epochs(tmp_path: Path, counted_memory: None) -> None:
    frames = {id: np.tile(f, (1, 4, 4)) for id, f in events(n=8).items()}  # 192 x 192 pixels
    sevir.write_sevir(tmp_path / "data", frames)
    done = in_a_process_of_its_own("keep_batches", tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = findings(Run(tmp_path / "run"))
    assert (found["name"], found["severity"]) == ("memory_growth", "warn")
    rows = history.read_rows(tmp_path / "run/history.csv")
    assert found["step"] == rows[5]["step"]  # five times from one epoch to the next
    grown = [float(gb) for gb in re.findall(r"[\d.]+(?= (?:->|GB))", found["evidence"])]
    assert len(grown) == 6 and all(b > 1.05 * a for a, b in zip(grown, grown[1:], strict=False))


def run_short_of_memory(folder: Path) -> None:
    import resource

    planted(folder / "data")  # everything that is imported late
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 300 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (SMALL | {"base_channels": 256}).items()]
    places = [f"--data-dir={folder / 'data'}", f"--output-dir={folder}", "--run-name=run", "--profile=smoke"]
    sys.exit(cli.main(["train", "perceptual-unet", *places, *flags, "--crop=0"]))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc and RLIMIT_AS")
def test_too_little_memory_names_the_next_smaller_setting(tmp_path: Path) -> None:
    frames = {id: np.tile(f, (1, 4, 4)) for id, f in events(n=8).items()}
    sevir.write_sevir(tmp_path / "data", frames)
    done = in_a_process_of_its_own("run_short_of_memory", tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3, done.stderr
    assert line.startswith("nbhelpers: STOP out_of_memory (step 0): ")
    assert "Halve batch_size (it is 4)" in line and "lower crop (it is 0)" in line
    (found,) = findings(Run(tmp_path / "run"))
    assert (found["name"], found["severity"], found["step"]) == ("out_of_memory", "stop", 0)
