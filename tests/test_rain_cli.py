"""The rainfall stage on the command line: simulate, train, evaluate, predict, report, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rain_run import TINY, flags, simulated

from nbhelpers import cli
from nbhelpers.stages.rainfall_cvae.data import open_days

ROWS = ["climatology", "analogues", "bilinear", "oracle", "x_shuffled", "posterior"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("data") / "rain")


def train(data: Path, runs: Path, name: str, *words: str) -> int:
    places = [f"--data-dir={data}", f"--output-dir={runs}", f"--run-name={name}"]
    return cli.main(["train", "rainfall-cvae", *places, *words])


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one from a YAML file and a flag, one without a latent."""
    runs = tmp_path_factory.mktemp("runs")
    settings = {**TINY, "profile": "smoke", "batch_size": 32, "epochs": 1, "tail": "gamma"}
    (runs / "s.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    assert (
        train(data, runs, "mine", f"--config={runs / 's.yaml'}", "--epochs=2", "--early-stopping-metric=MAE_tail") == 0
    )
    assert train(data, runs, "control", f"--config={runs / 's.yaml'}", "--epochs=2", "--early-stopping-metric=MAE_tail",
                 "--d-z=0") == 0  # fmt: skip
    return runs


def test_the_flags_of_the_specification_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "rainfall-cvae", "--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for name in (
        "lambda_base", "lambda_ext", "lambda_mass", "beta_kl", "warmup_epochs", "lr", "epochs", "batch_size", "dropout",
        "early_stopping_patience", "early_stopping_metric", "weight_decay", "base_filters", "d_y", "d_z", "config",
        "likelihood", "tail_share", "free_bits", "prior_fraction", "heavy_oversampling", "preset",
    ):  # fmt: skip
        assert f"--{name.replace('_', '-')} " in listed, name


def test_simulated_weather_is_a_folder_that_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "rain"
    assert cli.main(["data", "simulate", "rainfall-cvae", "--profile=smoke", f"--data-dir={where}"]) == 0
    assert str(where) in capsys.readouterr().out
    days = open_days(where)
    assert days.shape == (24, 24) and days.factor == 4 and {name: len(y) for name, y in days.years.items()} == {
        "train": 1, "val": 1, "test": 1
    }  # fmt: skip
    assert cli.main(["data", "simulate", "rainfall-cvae", "--profile=smoke", "--kind=snow"]) == 2
    assert "data of one kind only" in capsys.readouterr().err


def test_a_run_has_the_settings_of_file_and_flags(runs: Path) -> None:
    record = json.loads((runs / "mine/config.json").read_text())["config"]
    assert (record["epochs"], record["tail"], record["early_stopping_metric"]) == (2, "gamma", "mae_tail")
    assert record["profile"] == "smoke" and record["lr"] == 4e-3, "what nobody gave is the profile's"


def test_the_report_has_every_row_and_opens(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((runs / "mine/report.json").read_text())
    assert sorted(report["baselines"]) == sorted(ROWS)
    assert "posterior" not in json.loads((runs / "control/report.json").read_text())["baselines"]
    names = [gate["name"] for gate in report["gates"]]
    for words in ("better than analogues", "better than bilinear", "the oracle's", "P99 of", "P99.9 of",
                  "0.1 mm or more", "1 mm or more", "per pixel", "per block", "per domain", "finest octaves",
                  "weather matters"):  # fmt: skip
        assert any(words in name for name in names), words
    assert report["verdict"]["name"] and "mm/day" in report["metrics"]["crps"]["units"]
    assert "n = " in report["metrics"]["mae_tail"]["units"], "the number of events stands beside the tail's score"
    assert cli.main(["report", str(runs / "mine")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# rainfall-cvae · mine") and "Simulated weather with a known law of rain" in text
    assert "| posterior |" in text and "## Gates" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (runs / "mine" / line.split("(")[1].rstrip(")")).stat().st_size > 1000
    assert cli.main(["report", str(runs / "mine"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "mine"


def test_evaluating_against_the_run_without_a_latent(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["evaluate", "rainfall-cvae", f"--output-dir={runs}", "--run-name=mine"]
    assert cli.main([*place, f"--reference={runs / 'mine'}"]) == 2
    assert "differs in nothing: expected the same run with d_z 0" in capsys.readouterr().err
    assert cli.main([*place, f"--reference={runs / 'control'}"]) == 0
    assert "no worse than the same model without a latent" in capsys.readouterr().out


def test_prior_draws_of_heavy_training_days(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["predict", "rainfall-cvae", f"--output-dir={runs}", "--run-name=mine"]
    assert cli.main([*place, "--mode=posterior", "--K=1"]) == 2
    assert "near copies" in capsys.readouterr().err
    assert cli.main([*place, "--mode=prior", "--K=2", "--days", "heavy"]) == 0
    assert "forecasts of the train split" in capsys.readouterr().out
    about = json.loads((runs / "mine/synth/provenance.json").read_text())
    assert about["mode"] == "prior" and about["K"] == 2 and len(about["files"]) == 2 * about["n_days"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--early-stopping-metric=posterior_crps"], "samples that have seen the day they predict"),
        (["--lambda-ext=2", "--tail-share=0.3"], "set either lambda_ext or tail_share"),
        (["--d-y=10"], "expected a multiple of 4"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (flags(base_filters=64, d_y=256, d_z=64), "more than 10,000 a day"),
    ],
)
def test_settings_that_are_refused_end_with_code_2_and_a_sentence(
    data: Path, tmp_path: Path, words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path, "run", "--profile=smoke", *words) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nbhelpers: ")]
    assert said in line and not (tmp_path / "run").exists()
