"""The command line as one types it: from simulated storms to a report, and the ways it says no."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pytest
import torch

from nbhelpers import __version__
from nbhelpers.cli import main

TINY = (
    "--profile smoke --n-in 3 --n-out 2 --crop 32 --windows-per-epoch 8 --eval-windows 1 --base-channels 4 --depth 1 "
    "--epochs 1 --batch-size 4 --backbone-weights random"
).split()


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nbhelpers.stages.perceptual_unet.simulate import simulate

    folder = tmp_path_factory.mktemp("storms")
    simulate(folder, n_events=8, size=48, n_frames=8, progress=False)
    return folder


def test_train_evaluate_predict_report(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--data-dir", str(storms), "--output-dir", str(tmp_path), "--run-name", "first"]
    assert main(["train", "perceptual-unet", *place, *TINY]) == 0
    said = capsys.readouterr().out
    assert "NOTE Simulated storms" in said and "RANDOM features of squeeze" in said and "Verdict:" in said
    run = tmp_path / "first"
    report = json.loads((run / "report.json").read_text())
    assert {
        "stage",
        "run",
        "profile",
        "checkpoint",
        "data",
        "metrics",
        "baselines",
        "ledger",
        "guards",
        "gates",
        "verdict",
    } <= set(report)
    assert report["data"]["simulated"] and report["remarks"][0].startswith("Simulated storms")
    assert set(report["baselines"]) == {"persistence", "advection", "blurred_truth"}
    assert "lpips" not in report["metrics"] and "feature_distance_random" in report["metrics"]
    assert list(report["metrics"]["csi_74"]["by_label"]) == ["5 min", "10 min"]
    assert (run / "report.md").read_text().splitlines()[2].startswith("> **Simulated storms")
    assert {path.stem for path in (run / "figures").glob("*.png")} == {
        "nowcast",
        "lead_time",
        "history",
        "spectrum",
        "ledger",
    }

    assert main(["evaluate", "perceptual-unet", *place[2:], "--split", "val", "--checkpoint", "last"]) == 0
    assert json.loads((run / "report.json").read_text())["data"]["scored_split"] == "val"
    assert main(["predict", "perceptual-unet", *place[2:]]) == 0
    with h5py.File(run / "forecasts.h5") as file:
        assert file["vil"].shape[1:] == (48, 48, 2) and list(file.attrs["lead_minutes"]) == [5, 10]
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "# perceptual-unet · first" in capsys.readouterr().out
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "first"


def test_epochs_extend_a_run_and_other_settings_are_refused(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [
        "train",
        "perceptual-unet",
        "--data-dir",
        str(storms),
        "--output-dir",
        str(tmp_path),
        "--run-name",
        "grows",
        *TINY,
    ]
    assert main([*place, "--lambda-perc", "0"]) == 0
    capsys.readouterr()
    assert main([*place, "--lambda-perc", "0", "--epochs", "2"]) == 0
    assert "Resuming" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in (tmp_path / "grows").rglob("*") if path.is_file()}
    assert main([*place, "--lambda-perc", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "lambda_perc (0.0 there, 0.5 now)" in error and "'grows-2'" in error
    assert {path: path.read_bytes() for path in (tmp_path / "grows").rglob("*") if path.is_file()} == before
    assert main([*place, "--lambda-perc", "0.5", "--resume", "never"]) == 0
    assert (tmp_path / "grows-2" / "report.json").exists()


def test_a_lambda_that_means_nothing_or_everything_is_said_before_training(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["train", "perceptual-unet", "--data-dir", str(storms), "--output-dir", str(tmp_path), *TINY]
    assert main([*place, "--run-name", "inert", "--lambda-perc", "1e-7"]) == 0
    said = capsys.readouterr().out
    assert said.index("it is inert") < said.index("epoch 1/1") and "perceptual term inert" in said
    assert main([*place, "--run-name", "drowns", "--lambda-perc", "1e6", "--perceptual-scale", "1"]) == 0
    assert "it drowns the MSE" in capsys.readouterr().out


def test_settings_come_from_profile_then_file_then_flags(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("profile: smoke\nlr: 5e-4\nperceptual_share: 0.2\nseed: 7\n")
    flags = [word for word in TINY if word not in ("--profile", "smoke")]
    place = [
        "--data-dir",
        str(storms),
        "--output-dir",
        str(tmp_path),
        "--run-name",
        "layers",
        "--config",
        str(tmp_path / "mine.yaml"),
    ]
    assert main(["train", "perceptual-unet", *place, *flags, "--seed", "8"]) == 0
    config = json.loads((tmp_path / "layers" / "config.json").read_text())["config"]
    assert (config["profile"], config["lr"], config["perceptual_share"], config["seed"]) == ("smoke", 5e-4, 0.2, 8)
    (tmp_path / "mine.yaml").write_text("perceptual_shar: 0.2\n")
    capsys.readouterr()
    assert main(["train", "perceptual-unet", *place, *flags]) == 2
    assert "did you mean 'perceptual_share'?" in capsys.readouterr().err


def test_help_says_what_each_flag_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "perceptual-unet", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--lambda-perc",
        "Weight λ of the perceptual term",
        "--perceptual-share",
        "--resume {auto,never,PATH}",
    ):
        assert words in text


def test_a_quick_check_that_a_stage_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "perceptual-unet", "--output-dir", str(tmp_path), *TINY, "--quick-check"]) == 2
    assert "--quick-check is not there for perceptual-unet: leave it out." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_says_how_a_group_of_settings_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "neural-operator", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--scheduler NAME=VALUE,..." in text and "Names: source, target, initial_weight_source" in text
    assert "--loss NAME=VALUE,..." in text and "Names: field_error, spectrum_error" in text


@pytest.fixture
def tiny_flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in which two small flows are as much as any profile simulates."""
    from nbhelpers.stages.neural_operator import config

    monkeypatch.setenv("NBHELPERS_HOME", str(tmp_path))
    monkeypatch.setitem(config.SIMULATED, "smoke", {"n_simulations": 2, "size": 64, "n_frames": 2})
    return tmp_path / "data"


SIMULATE = ["data", "simulate", "neural-operator", "--profile", "smoke", "--seed", "3"]


def test_flows_of_the_kind_that_is_asked_for(tiny_flows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for words in ([], ["--kind", "decaying"], ["--kind", "fno"]):
        assert main([*SIMULATE, *words]) == 0
        folder = Path(capsys.readouterr().out.strip())
        assert folder.parent == tiny_flows and (folder / "sim_000001" / "velocity_000001.npz").is_file()
        found[folder.name] = json.loads((folder / "dataset.json").read_text())
    assert {name: record["set"] for name, record in found.items()} == {
        "neural-operator-smoke": "decaying", "neural-operator-decaying-smoke": "decaying",
        "neural-operator-fno-smoke": "fno",
    }  # fmt: skip
    assert {record["seed"] for record in found.values()} == {3}
    assert found["neural-operator-fno-smoke"]["n_frames"] == 20, "the benchmark's own"


def test_kinds_that_there_are_not(tiny_flows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SIMULATE, "--kind", "boiling"]) == 2
    assert "kind is 'boiling', expected one of decaying, kolmogorov, fno" in capsys.readouterr().err
    assert main(["data", "simulate", "perceptual-unet", "--profile", "smoke", "--kind", "hail"]) == 2
    assert (
        "--kind is 'hail', but perceptual-unet simulates data of one kind only: leave it out."
        in capsys.readouterr().err
    )
    assert not tiny_flows.exists() or not list(tiny_flows.iterdir())


def test_flows_are_computed_on_the_device_that_is_there(tiny_flows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbhelpers.stages.neural_operator import commands

    asked: list[torch.device] = []
    monkeypatch.setattr(commands, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(commands, "simulate_flows", lambda folder, *, device, **_: asked.append(device) or folder)
    assert main(SIMULATE) == 0
    assert asked == [torch.device("cuda")]


@pytest.mark.parametrize("words", [["train", "no-such-stage"], ["train"], ["frobnicate"], ["data", "fetch"]])
def test_words_it_does_not_know_end_in_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2


def test_doctor_and_data_list_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)
    assert {"Python", "device", "output"} <= {check["name"] for check in checks}
    assert main(["data", "list", "--json"]) == 0
    assert {"sevir", "perceptual-weights"} <= {one["name"] for one in json.loads(capsys.readouterr().out)}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


def test_a_run_that_is_not_there_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "perceptual-unet", "--output-dir", str(tmp_path), "--run-name", "none"]) == 2
    assert "config.json does not exist" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "has no report.json" in capsys.readouterr().err


def test_a_run_is_not_scored_on_another_split(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--output-dir", str(tmp_path / "runs"), "--run-name", "first"]
    copy = tmp_path / "copy"
    shutil.copytree(storms, copy)
    assert main(["train", "perceptual-unet", "--data-dir", str(copy), *place, *TINY, "--lambda-perc", "0"]) == 0
    report = (tmp_path / "runs" / "first" / "report.json").read_bytes()
    gone = max(copy.rglob("*.h5"))
    gone.unlink()
    for command in ("evaluate", "predict"):
        capsys.readouterr()
        assert main([command, "perceptual-unet", *place]) == 2
        assert "was trained on another data than" in capsys.readouterr().err
    assert (tmp_path / "runs" / "first" / "report.json").read_bytes() == report


def test_files_that_are_not_there_are_left_out_and_named(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(storms, copy)
    gone = min(copy.rglob("*.h5"))
    gone.unlink()
    place = ["--data-dir", str(copy), "--output-dir", str(tmp_path), "--run-name", "part"]
    assert main(["train", "perceptual-unet", *place, *TINY, "--lambda-perc", "0"]) == 0
    assert (
        f"NOTE 1 files that the catalogue names are not in the data folder (e.g. vil/{gone.parent.name}/{gone.name})"
        in (capsys.readouterr().out)
    )
    assert any(
        "their events are left out" in remark
        for remark in json.loads((tmp_path / "part/report.json").read_text())["remarks"]
    )


def test_several_processes_are_refused_in_a_sentence(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "perceptual-unet", "--data-dir", str(storms), "--output-dir", str(tmp_path), *TINY]) == 2
    assert "several processes" in capsys.readouterr().err and not list(tmp_path.iterdir())
