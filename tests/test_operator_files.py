"""What a run of the turbulence stage leaves on the disk: forecasts, films, figures, and the command line end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from turbulence import RECORD, flow, vorticity, write_matlab, write_own, write_published

from nbhelpers.cli import main
from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import figures, layout
from nbhelpers.stages.neural_operator.config import SIMULATED, Config
from nbhelpers.stages.neural_operator.data import open_collection
from nbhelpers.stages.neural_operator.forecast_file import write_forecasts
from nbhelpers.stages.neural_operator.movie import rollout_movie
from nbhelpers.stages.neural_operator.simulate import simulate
from nbhelpers.stages.neural_operator.spectral_losses import shell_energies
from nbhelpers.stages.neural_operator.task import OperatorTask

CHECKPOINT = "c0ffee"
TINY: dict[str, Any] = {
    "profile": "smoke", "width": 6, "modes": 3, "layers": 2, "batch_size": 3, "windows_per_epoch": 6,
    "rollout_steps": 3, "eval_windows": 2, "sequence_length": (3, 1), "epochs": 2,
}  # fmt: skip
FLAGS = (
    "--profile smoke --width 8 --modes 6 --layers 2 --windows-per-epoch 12 --batch-size 4 --rollout-steps 3 --epochs 2 "
    "--scheduler trigger=epoch,patience=1,warmup_epochs=0,min_epochs=0,transition_step=0.1,final_weight_target=0.1"
).split()


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decaying flows on 24 x 40 points."""
    folder = tmp_path_factory.mktemp("flows")
    return simulate(folder, n_simulations=8, size=(24, 40), n_frames=7, viscosity=8e-3, peak=2.5, progress=False)


def task_on(folder: Path, **changes: Any) -> OperatorTask:
    return OperatorTask(Config(**TINY | changes), folder)


# --- forecasts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_in", "stride"), [(1, 1), (1, 2), (2, 2)])
def test_forecasts_are_read_back_with_the_same_numbers(flows: Path, tmp_path: Path, n_in: int, stride: int) -> None:
    settings: dict[str, Any] = {"fields": "vorticity,velocity", "rollout_steps": 2, "n_in": n_in}
    task = task_on(flows, **settings, sequence_length=(3, stride))
    path = tmp_path / "new" / "forecasts"
    windows = [(batch, index) for batch in task.batches("test", 0) for index in range(len(batch.frames))]
    assert write_forecasts(task, path, split="test", checkpoint=CHECKPOINT) == len(windows) > 0
    found = open_collection(path, fields=task.config.field_names)
    assert (found.channels, found.shape) == (task.collection.channels, (24, 40))
    facts, theirs = found.facts, task.collection.facts
    assert (facts.lengths, facts.periodic) == (theirs.lengths, True)
    assert facts.frame_gap == pytest.approx(stride * theirs.frame_gap)
    assert (found.mean, found.std, found.estimated) == (task.collection.mean, task.collection.std, ())
    assert facts.name == "forecasts of decaying" and facts.simulated is None
    for one, (batch, index) in zip(found.simulations, windows, strict=True):
        frames = found.read(one, list(one.frames))
        assert len(frames) == 1 + 2
        np.testing.assert_allclose(frames[0], batch.frames[index, n_in - 1], rtol=1e-5, atol=1e-6)
        expected = task.to_units(task.forecast(batch).rollout)[index]
        np.testing.assert_allclose(frames[1:], expected, rtol=1e-5, atol=1e-6)
        described = json.loads((path / one.name / layout.DESCRIPTION).read_text())
        assert described == {
            "Simulation": batch.simulations[index],
            "First Frame": batch.starts[index] + (n_in - 1) * stride,
            "Checkpoint": CHECKPOINT,
        }
        source = next(sim for sim in task.collection.simulations if sim.name == described["Simulation"])
        np.testing.assert_allclose(
            frames[0], task.collection.read(source, [described["First Frame"]])[0], rtol=1e-5, atol=1e-6
        )


def test_forecasts_of_a_set_with_obstacles_have_them_too(tmp_path: Path) -> None:
    inside = np.zeros((12, 16), bool)
    inside[2:6, 9:14] = True
    write_own(tmp_path / "data", 8, n_frames=7, obstacle=inside, record=RECORD | {"periodic": False})
    task = task_on(tmp_path / "data", fields="velocity,pressure")
    write_forecasts(task, tmp_path / "out", split="train", checkpoint=CHECKPOINT)
    found = open_collection(tmp_path / "out", fields=("velocity", "pressure"))
    kinds = set()
    for one in found.simulations:
        described = json.loads((tmp_path / "out" / one.name / layout.DESCRIPTION).read_text())
        mask, even = found.obstacle(one), int(described["Simulation"][4:]) % 2 == 0
        assert mask is not None and mask.any() == even
        np.testing.assert_array_equal(mask, inside & even)
        kinds.add(even)
    assert kinds == {True, False}


def test_forecasts_from_a_matlab_file(tmp_path: Path) -> None:
    task = task_on(write_matlab(tmp_path / "ns_V1e-3.mat", vorticity(9, n_frames=8), hdf5=True), fields="vorticity")
    assert write_forecasts(task, tmp_path / "out", split="test", checkpoint=CHECKPOINT) >= 1
    found = open_collection(tmp_path / "out", fields=("vorticity",))
    batch = next(iter(task.batches("test", 0)))
    expected = task.to_units(task.forecast(batch).rollout)[0]
    np.testing.assert_allclose(found.read(found.simulations[0], [1, 2, 3]), expected, rtol=1e-5, atol=1e-6)


def test_a_folder_that_holds_something_and_an_unknown_split_are_refused(flows: Path, tmp_path: Path) -> None:
    task = task_on(flows)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "kept.txt").write_text("kept")
    for path in (tmp_path / "taken", tmp_path / "taken" / "kept.txt"):
        with pytest.raises(UserError, match="exists already: delete it, or choose another folder with --to"):
            write_forecasts(task, path, split="test", checkpoint=CHECKPOINT)
    with pytest.raises(UserError, match="cannot be written|is full|folder"):
        write_forecasts(task, tmp_path / "taken" / "kept.txt" / "f", split="test", checkpoint=CHECKPOINT)
    with pytest.raises(UserError, match="split 'tests' is unknown: choose one of train, val, test"):
        write_forecasts(task, tmp_path / "f", split="tests", checkpoint=CHECKPOINT)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["kept.txt"] and not (tmp_path / "f").exists()


def test_a_write_that_was_cut_short_never_looks_complete(
    flows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, path = task_on(flows), tmp_path / "forecasts"
    real, calls = layout.write_simulation, []

    def killed(root: Path, *rest: Any, **more: Any) -> Path:
        calls.append(root)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(root, *rest, **more)

    monkeypatch.setattr(layout, "write_simulation", killed)
    with pytest.raises(KeyboardInterrupt):
        write_forecasts(task, path, split="test", checkpoint=CHECKPOINT)
    assert len(calls) == 2 and list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "forecasts.part" / "sim_000099").mkdir(parents=True)  # as the power cut left it
    path.mkdir()  # an empty folder is no obstacle
    count = write_forecasts(task, path, split="test", checkpoint=CHECKPOINT)
    assert [one.name for one in tmp_path.iterdir()] == ["forecasts"]
    assert len(open_collection(path, fields=("velocity",)).simulations) == count


# --- pictures -----------------------------------------------------------------------------------------------------


def test_a_film_has_a_picture_for_every_step(flows: Path, tmp_path: Path) -> None:
    task = task_on(flows, rollout_steps=5)
    path = rollout_movie(task, figures.fixed_sample(task, split="test"), tmp_path / "new" / "rollout.gif")
    with Image.open(path) as film:
        assert film.format == "GIF" and film.n_frames == 5 and film.info["duration"] == 200
        film.seek(0)
        before = np.asarray(film.convert("RGB"), int)
        film.seek(4)
        assert np.abs(np.asarray(film.convert("RGB"), int) - before).max() > 30


def test_an_error_has_colours_for_both_signs() -> None:
    assert figures.error_limits((-2.0, 2.0)) == (-2.0, 2.0) and figures.error_limits((1.0, 4.0)) == (-3.0, 3.0)
    assert figures.limits(np.linspace(-1, 3, 1000, dtype=np.float32)) == pytest.approx((-2.98, 2.98), abs=0.01)
    assert figures.limits(np.ones(9, np.float32))[1] > 1


def test_a_film_and_figures_of_a_set_with_obstacles(tmp_path: Path) -> None:
    inside = np.zeros((12, 16), bool)
    inside[2:6, 9:14] = True
    write_own(tmp_path / "data", 8, n_frames=7, obstacle=inside, record=RECORD | {"periodic": False})
    task = task_on(tmp_path / "data", fields="pressure,velocity")
    view = figures.View(task)
    assert view.title == "pressure"
    sample = figures.fixed_sample(task, split="train")
    assert view(task.to_model(sample.frames)).shape == (1, 3, 12, 16)
    rollout_movie(task, sample, tmp_path / "film.gif")
    figures.sample_figure(task, n_simulations=2).savefig(tmp_path / "sample.png")
    figures.spectrum_figure(task, split="val").savefig(tmp_path / "spectrum.png")


def test_the_spectra_in_the_figure_are_those_of_the_score(tmp_path: Path) -> None:
    inside = np.zeros((12, 16), bool)
    inside[2:6, 9:14] = True
    write_own(tmp_path / "data", 8, n_frames=7, obstacle=inside, record=RECORD | {"periodic": False})
    task = task_on(tmp_path / "data", fields="pressure,velocity")
    curves = figures._mean_spectra(task, "val")
    for name, one in (("linear", task.nulls["linear"]), ("model", task.forecast)):
        errors = []
        for batch in task.batches("val", 0):
            target = task.to_model(batch.frames)[:, 1:]
            fields = {"lengths": task.domain.lengths, "window": "hann", "valid": task.valid(batch)}
            guess = shell_energies(one(batch).one_step, **fields)[..., 1:-1].sum(2)
            truth = shell_energies(target, **fields)[..., 1:-1].sum(2)
            errors.append(torch.stack([guess, truth]).flatten(1, 2))
        guess, truth = torch.cat(errors, 1).double().mean(1).numpy()
        np.testing.assert_allclose(curves["one step"][name], guess, rtol=1e-5)
        np.testing.assert_allclose(curves["one step"]["truth"], truth, rtol=1e-5)


def test_what_is_drawn_of_a_velocity_is_its_vorticity_in_units_of_the_files(flows: Path) -> None:
    by_velocity, stored = task_on(flows), task_on(flows, fields="vorticity")
    batch, other = figures.fixed_sample(by_velocity, split="test"), figures.fixed_sample(stored, split="test")
    assert batch.simulations == other.simulations
    shown = figures.View(by_velocity)(by_velocity.to_model(batch.frames))
    np.testing.assert_allclose(shown, other.frames[:, :, 0], atol=2e-4 * float(other.frames.abs().max()))
    np.testing.assert_allclose(figures.View(stored)(stored.to_model(other.frames)), other.frames[:, :, 0], atol=1e-5)


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(flows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a plain one and one with a scheduler, trained on the command line."""
    folder = tmp_path_factory.mktemp("runs")
    place = ["train", "neural-operator", "--data-dir", str(flows), "--output-dir", str(folder), *FLAGS]
    assert main([*place, "--run-name", "plain", "--scheduler", "none"]) == 0
    assert main([*place, "--run-name", "scheduled"]) == 0
    return folder


def test_a_trained_run_has_a_report_with_figures(trained: Path) -> None:
    run = trained / "scheduled"
    report = json.loads((run / "report.json").read_text())
    assert report["stage"] == "neural-operator" and report["verdict"]["name"] == "undecided"
    assert set(report["baselines"]) == {"persistence", "mean", "linear"} and report["data"]["simulated"]
    assert set(report["ledger"]) == {"field_error", "spectrum_error"}
    assert list(report["metrics"]["rollout_rel_l2"]["by_label"]) == ["step 1", "step 2", "step 3"]
    assert report["remarks"][0].startswith("Simulated flow (decaying)")
    pictures = {path.stem for path in (run / "figures").glob("*.png")}
    assert pictures == {"rollout", "by_step", "history", "spectrum", "ledger"}
    for path in (run / "figures").glob("*.png"):
        assert imread(path)[..., :3].std() > 0.02
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["scheduler"]["final_weight_source"] == 0.9 and config["loss"]["field_error"] == 1.0
    assert json.loads((trained / "plain" / "config.json").read_text())["config"]["scheduler"] is None


def test_evaluate_predict_and_report(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["neural-operator", "--output-dir", str(trained), "--run-name", "scheduled"]
    assert main(["evaluate", *place, "--split", "val", "--checkpoint", "last"]) == 0
    assert json.loads((trained / "scheduled" / "report.json").read_text())["data"]["scored_split"] == "val"
    assert main(["evaluate", *place, "--reference", str(trained / "plain")]) == 0
    assert "high-band spectrum error at most half of the field-only run's" in capsys.readouterr().out
    assert main(["evaluate", *place[:-1], "plain", "--reference", str(trained / "scheduled")]) == 2
    assert "was trained with field_error, spectrum_error" in capsys.readouterr().err
    assert main(["predict", *place]) == 0
    forecasts = trained / "scheduled" / "forecasts"
    assert str(forecasts) in capsys.readouterr().out
    found = open_collection(forecasts, fields=("velocity",))
    described = json.loads((forecasts / found.simulations[0].name / layout.DESCRIPTION).read_text())
    assert len(described["Checkpoint"]) == 64 and len(found.simulations[0].frames) == 4
    assert main(["predict", *place]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["predict", *place, "--to", str(tmp_path / "again"), "--split", "val"]) == 0
    capsys.readouterr()
    assert main(["report", str(trained / "scheduled")]) == 0
    assert "# neural-operator · scheduled" in capsys.readouterr().out
    assert main(["report", str(trained / "scheduled"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "scheduled"


def test_a_set_that_is_not_periodic_and_has_obstacles_from_training_to_a_film(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the published wakes: no divergence, a channel that never varies, another number of each simulation."""
    inside = np.zeros((12, 16), bool)
    inside[4:8, 2:5] = True
    for number in range(8):
        fields = flow(number, n_frames=7)
        fields["velocity"][:, 1] = 0.25
        told = {"Reynolds Number": 100.0 * (number + 1)}
        layout.write_simulation(tmp_path / "data", number, fields, description=told, obstacle=inside)
    (tmp_path / "data" / layout.DATASET).write_text(json.dumps(RECORD | {"periodic": False}))
    place = ["neural-operator", "--output-dir", str(tmp_path / "runs"), "--run-name", "wake"]
    data = ["--data-dir", str(tmp_path / "data"), "--fields", "velocity,pressure", "--condition"]
    assert main(["train", *place, *data, *FLAGS]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "runs" / "wake" / "report.json").read_text())
    assert "divergence" not in report["metrics"] and report["metrics"]["rollout_rel_l2"]["value"] is not None
    assert any("velocity_y" in remark for remark in report["remarks"])
    assert report["metrics"]["left_out"]["value"] == pytest.approx(1 / 3)  # that one, of three channels
    assert [found for found in report["guards"] if found["severity"] != "info"] == []
    assert main(["predict", *place]) == 0
    found = open_collection(tmp_path / "runs" / "wake" / "forecasts", fields=("velocity", "pressure"))
    assert found.constant == ("velocity_y",)
    assert (found.read(found.simulations[0], [1, 2, 3])[:, 1] == 0.25).all()


def test_a_published_set_is_scored_by_test_set_without_an_energy_of_its_pressure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_published(tmp_path / "data", "inc", [0, 2, 4, 10, 11, 12, 15, 25, 82, 84], n_frames=7)
    units = {"velocity": (0.45, 0.29), "pressure": (0.0006 - 2 * 0.005, 0.005)}  # near those that are published
    for path in (tmp_path / "data").glob("sim_*/*_000*.npz"):
        field, frame = path.stem.split("_")
        first = 800 if 10 <= int(path.parent.name[4:]) <= 80 else 1000
        with np.load(path) as file:
            values = units[field][0] + units[field][1] * file[layout.KEY]
        np.savez_compressed(path.with_name(layout.frame_name(field, first + int(frame))), values)
        path.unlink()
    data = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "runs"), "--scheduler", "none"]
    for name, fields in (("wake", "velocity,pressure"), ("pressure", "pressure")):
        words = ["train", "neural-operator", *data, "--fields", fields, "--run-name", name]
        assert main([*words, *FLAGS[:-2]]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "runs" / "wake" / "report.json").read_text())
    assert "energy_ratio" in report["metrics"] and "enstrophy_ratio" not in report["metrics"]
    for who in (report["metrics"], report["baselines"]["persistence"], report["baselines"]["linear"]):
        for name in ("field_error", "spectrum_error_high", "rollout_rel_l2"):
            apart = who[f"test_set_{name}"]["by_label"]
            assert list(apart) == ["low Reynolds", "high Reynolds"]
            low, whole, high = sorted([*(entry["value"] for entry in apart.values()), who[name]["value"]])
            assert low <= whole <= high and low < high and whole == who[name]["value"]
    text = (tmp_path / "runs" / "wake" / "report.md").read_text()
    assert "| low Reynolds | high Reynolds | mean |" in text and "| test_set_rollout_rel_l2" in text
    report = json.loads((tmp_path / "runs" / "pressure" / "report.json").read_text())
    assert not {"energy_ratio", "enstrophy_ratio", "divergence"} & set(report["metrics"])
    assert imread(tmp_path / "runs" / "pressure" / "figures" / "by_step.png").shape[1] > 500
    header = (tmp_path / "runs" / "wake" / "history.csv").read_text().splitlines()[0]
    assert "val_field_error" in header and "test_set" not in header


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scheduler", "patience=3"], "the run has 2"),
        (["--scheduler", "tras"], "expected one of tra, iso, inc, or none"),
        (["--monitor", "mse"], "monitor is 'mse'"),
        (["--rollout-steps", "30"], "rollout_steps is 30"),
        (["--fields", "temperature"], "temperature"),
        (["--condition"], "condition is on"),
        (["--data-dir", "nowhere"], "nowhere"),
        (["--loss", "spectrum_error=-1"], "the weight of spectrum_error is -1"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(
    flows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    place = ["train", "neural-operator", "--data-dir", str(flows), "--output-dir", str(tmp_path / "runs"), *FLAGS]
    assert main([*place, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("nbhelpers: ") and said in lines[0], lines
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_scored_on_other_data(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    simulate(other, n_simulations=8, size=(24, 40), n_frames=7, viscosity=8e-3, peak=2.5, seed=1, progress=False)
    place = ["neural-operator", "--output-dir", str(trained), "--run-name", "plain", "--data-dir", str(other)]
    for command in ("evaluate", "predict"):
        assert main([command, *place]) == 2
        assert "was trained on another data than" in capsys.readouterr().err


def test_simulating_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["data", "simulate", "neural-operator", "--profile", "smoke", "--data-dir", str(tmp_path / "set")]
    assert main([*place, "--seed", "3"]) == 0
    assert str(tmp_path / "set") in capsys.readouterr().out
    found = open_collection(tmp_path / "set", fields=("velocity", "vorticity"))
    expected = SIMULATED["smoke"]
    assert len(found.simulations) == expected["n_simulations"] and found.shape == (64, 64)
    assert len(found.simulations[0].frames) == expected["n_frames"]
    torch.testing.assert_close(
        torch.tensor(found.std[:2]), torch.full((2,), found.std[0], dtype=torch.float32), rtol=0.1, atol=0
    )
    assert main([*place, "--seed", "4"]) == 2
    assert "asked: 4" in capsys.readouterr().err


def test_help_says_what_each_flag_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "neural-operator", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--scheduler",
        "--sequence-length",
        "--spectrum-share",
        "Channels of its layers",
        "Hand weight from",
    ):
        assert words in text
