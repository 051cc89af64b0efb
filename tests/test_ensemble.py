"""Ensembles of trained runs: who may be a member, what they forecast together, and the report beside another one."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sevir
import torch

from nbhelpers.cli import ensemble as command
from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet import ensemble_figures, windows
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.contingency import to_levels
from nbhelpers.stages.perceptual_unet.data import MISSING, THRESHOLDS
from nbhelpers.stages.perceptual_unet.ensemble import forecast_members, open_ensemble, score_ensemble
from nbhelpers.stages.perceptual_unet.ensemble_report import make_ensemble_report, named, table
from nbhelpers.stages.perceptual_unet.ensemble_scores import probability_matched_mean
from nbhelpers.stages.perceptual_unet.simulate import simulate
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run

TINY = {
    "n_in": 3, "n_out": 2, "crop": 32, "windows_per_epoch": 8, "eval_windows": 1, "base_channels": 4, "depth": 1,
    "epochs": 2, "batch_size": 4, "backbone_weights": "random", "lambda_perc": 0.0,
}  # fmt: skip


def train(data: Path, folder: Path, name: str, **changes: object) -> Run:
    task = NowcastTask(Config.for_profile("smoke", **{**TINY, **changes}), data)
    run = open_run(task, folder, name)
    fit(task, run)
    return run


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storms")
    simulate(folder, n_events=8, size=48, n_frames=8, progress=False)
    return folder


@pytest.fixture(scope="module")
def runs(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds without the perceptual term, two with it."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed, loss in (("mse-0", 0, {}), ("mse-1", 1, {}), ("perc-0", 0, SHARE), ("perc-1", 1, SHARE)):
        train(storms, folder, name, seed=seed, **loss)
    return folder


SHARE = {"perceptual_share": 0.3, "lambda_perc": None}


def test_members_forecast_what_each_run_forecasts_alone(runs: Path, storms: Path) -> None:
    ensemble = open_ensemble([runs / "mse-0", runs / "mse-1", runs / "perc-1"])
    batch = next(iter(ensemble.task.batches("test", epoch=0)))
    found = forecast_members(ensemble, batch)
    assert found.shape == (len(batch.events), 3, 2, 48, 48)
    for i, name in enumerate(("mse-0", "mse-1", "perc-1")):
        seed = int(name[-1]) + 10  # what is forecast is in the weights
        alone = NowcastTask(Config.for_profile("smoke", **{**TINY, "seed": seed}), storms)
        best = checkpoint.find(Run(runs / name), "best")
        assert best is not None
        checkpoint.load_weights(best, alone.modules)
        torch.testing.assert_close(found[:, i], alone.forecast(batch).clamp(0, 1), rtol=0, atol=0)
    assert not torch.equal(found[:, 0], found[:, 1])


def test_checkpoints_of_one_run_are_an_ensemble(runs: Path) -> None:
    folders = sorted((runs / "mse-0" / "checkpoints").glob("step_*"))
    ensemble = open_ensemble(folders)
    assert [member.checkpoint.folder for member in ensemble.members] == folders and len(folders) == 2
    assert {member.run.name for member in ensemble.members} == {"mse-0"}


def test_the_single_member_is_all_members_pooled(runs: Path, storms: Path) -> None:
    scores = score_ensemble(open_ensemble([runs / "mse-0", runs / "mse-1"]), "test")
    task = NowcastTask(Config.for_profile("smoke", **TINY), storms)
    alone = []
    for name in ("mse-0", "mse-1"):
        best = checkpoint.find(Run(runs / name), "best")
        assert best is not None
        checkpoint.load_weights(best, task.modules)
        alone.append(task.evaluate("test").metrics)
    for name in ("mse", "csi_74", "feature_distance_random"):
        pooled = alone[0][name].sums + alone[1][name].sums
        np.testing.assert_allclose(scores["member"][name].sums, pooled, rtol=1e-6, err_msg=name)


def test_mean_and_probability_matched_mean_are_scored_as_forecasts(runs: Path) -> None:
    ensemble = open_ensemble([runs / "mse-0", runs / "mse-1"])
    scores, task = score_ensemble(ensemble, "val"), ensemble.task
    made = {"mean": lambda x: x.mean(1), "pmm": probability_matched_mean}
    for name, make in made.items():
        expected = task.evaluate("val", lambda batch, make=make: make(forecast_members(ensemble, batch))).metrics
        for metric in ("mse", "csi_74"):
            np.testing.assert_allclose(scores[name][metric].sums, expected[metric].sums, rtol=1e-6)
    # Members err on average by as much as their mean, plus their variance.
    assert scores["mean"]["mse"].value < scores["member"]["mse"].value
    assert scores["ensemble"]["rmse_mean"].value == pytest.approx(scores["mean"]["mse"].value ** 0.5, rel=1e-5)
    with pytest.raises(UserError, match="split 'tests' is unknown: choose one of train, val, test"):
        score_ensemble(ensemble, "tests")


def run_command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    arguments = parser.parse_args(["ensemble", "perceptual-unet", *map(str, words)])
    return arguments.run(arguments)


def test_the_command_writes_a_report_beside_another_ensemble(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    perceptual, plain = ([runs / f"{name}-{seed}" for seed in (0, 1)] for name in ("perc", "mse"))
    assert run_command(*perceptual, "--against", *plain, "--split", "val", "--to", tmp_path / "both") == 0
    said = capsys.readouterr().out
    names = ["2 × perceptual share 0.3", "2 × no perceptual term"]
    report = json.loads((tmp_path / "both" / "ensemble.json").read_text())
    assert list(report["metrics"]) == list(report["members"]) == list(report["reliability"]) == names
    assert report["data"]["scored_split"] == "val" and any("Simulated" in remark for remark in report["remarks"])
    assert any("RANDOM features" in remark for remark in report["remarks"])  # said by the members, not by the task
    assert [(one["run"], one["seed"]) for one in report["members"][names[0]]] == [("perc-0", 0), ("perc-1", 1)]
    ensemble = open_ensemble(perceptual)
    scores = score_ensemble(ensemble, "val")
    other = score_ensemble(open_ensemble(plain, beside=ensemble), "val")
    for score, entry in report["differences"].items():
        name, who = score.replace("PMM", "pmm").split(" of ")
        assert entry["value"] == pytest.approx(scores[who][name].value - other[who][name].value, rel=1e-6)
        assert entry["n"] == len(ensemble.task.split.events["val"]) and len(entry["ci95"]) == 2
    assert set(report["differences"]) == {
        "crps of ensemble", "brier_74 of ensemble", "brier_133 of ensemble", "csi_74 of PMM", "csi_133 of PMM"
    }  # fmt: skip
    shown = table(report["metrics"][names[0]])
    assert shown[0] == ["metric", "single member", "ensemble mean", "PMM", "ensemble"]
    crps, csi = ({row[0].split()[0]: row for row in shown}[name] for name in ("crps", "csi_74"))
    assert all(crps[1:]) and crps[1].startswith(f"{scores['member']['mae'].value:.4f}") and csi[-1] == ""
    text = (tmp_path / "both" / "ensemble.md").read_text()
    figures = {"exceedance", "reliability", "spread", "blur"}
    assert {path.stem for path in (tmp_path / "both" / "figures").glob("*")} == figures
    assert all(f"figures/{name}.png" in text for name in figures) and all(f"## {name}" in text for name in names)
    assert f"Report: {tmp_path / 'both' / 'ensemble.md'}" in said and "brier_133 of ensemble" in said


def test_the_report_lies_beside_the_first_run_and_is_not_overwritten_by_another(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(runs / "mse-0", runs / "mse-1") == 0
    assert f"Report: {runs / 'ensemble' / 'ensemble.md'}" in capsys.readouterr().out
    before = (runs / "ensemble" / "ensemble.json").read_bytes()
    assert json.loads(before)["differences"] == {} and not (runs / "ensemble" / "figures" / "blur.png").exists()
    with pytest.raises(UserError, match="is the report of other members than these: choose another folder"):
        run_command(runs / "mse-0", runs / "perc-1")
    with pytest.raises(UserError, match="the scores on 'test' and those on 'val' would replace them: choose another f"):
        run_command(runs / "mse-0", runs / "mse-1", "--split", "val")
    assert (runs / "ensemble" / "ensemble.json").read_bytes() == before


def test_a_report_is_replaced_when_its_runs_have_been_trained_on(runs: Path, storms: Path, tmp_path: Path) -> None:
    for name in ("mse-0", "mse-1"):
        shutil.copytree(runs / name, tmp_path / name)
    folders = [tmp_path / "mse-0", tmp_path / "mse-1"]
    before = make_ensemble_report(open_ensemble(folders), tmp_path / "report", split="val")
    train(storms, tmp_path, "mse-1", seed=1, epochs=5)
    pointers = tmp_path / "mse-1" / "checkpoints"
    shutil.copy(pointers / "last.json", pointers / "best.json")  # whether the longer training was of use or not
    after = make_ensemble_report(open_ensemble(folders), tmp_path / "report", split="val")
    (old,), (new,) = before["members"].values(), after["members"].values()
    assert old[0] == new[0] and old[1]["step"] < new[1]["step"] and old[1]["sha256"] != new[1]["sha256"]
    assert json.loads((tmp_path / "report" / "ensemble.json").read_text())["members"] == after["members"]


def test_a_folder_that_cannot_be_written_is_a_sentence(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("kept")
    with pytest.raises(UserError, match="cannot be written to .*choose another folder"):
        make_ensemble_report(open_ensemble([runs / "mse-0", runs / "mse-1"]), tmp_path / "taken" / "x", split="val")


def test_ensembles_of_one_loss_are_told_apart_and_different_sizes_are_said(runs: Path, tmp_path: Path) -> None:
    both = open_ensemble([runs / "mse-0", runs / "mse-1"])
    steps = open_ensemble(sorted((runs / "mse-0" / "checkpoints").glob("step_*")), beside=both)
    assert list(named(both, steps)) == ["first: 2 × no perceptual term", "second: 2 × no perceptual term"]
    three = open_ensemble([runs / name for name in ("mse-0", "mse-1", "perc-0")], beside=both)
    report = make_ensemble_report(both, tmp_path, split="val", against=three)
    assert any("Ensembles of 2 and 3 members" in remark for remark in report["remarks"])
    assert list(report["metrics"]) == ["2 × no perceptual term", "3 × no perceptual term or perceptual share 0.3"]


def test_one_member_or_one_twice_is_no_ensemble(runs: Path) -> None:
    with pytest.raises(UserError, match="an ensemble of 1 has no spread: give at least 2"):
        open_ensemble([runs / "mse-0"])
    best = checkpoint.find(Run(runs / "mse-0"), "best")
    assert best is not None
    with pytest.raises(UserError, match="hold the same weights: give each net once"):
        open_ensemble([runs / "mse-0", runs / "mse-1", best.folder])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_out": 1}, "takes 3 frames in and 1 out every 5 min, but .* takes 3 frames in and 2 out every 5 min"),
        ({"step_minutes": 10, "n_in": 2}, "takes 2 frames in and 2 out every 10 min"),
        ({"base_channels": 8}, "has another architecture than .*mse-0: use runs with the same net"),
        ({"first_guess": "persistence"}, "has another architecture than .*mse-0: use runs with"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(
    runs: Path, storms: Path, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    train(storms, tmp_path, "other", epochs=1, **changes)
    with pytest.raises(UserError, match=sentence):
        open_ensemble([runs / "mse-0", tmp_path / "other"])
    with pytest.raises(UserError, match=sentence):
        open_ensemble([tmp_path / "other"] * 2, beside=open_ensemble([runs / "mse-0", runs / "mse-1"]))


def test_members_of_another_split_are_refused(tmp_path: Path) -> None:
    sevir.write_sevir(tmp_path / "data", sevir.storms(14, n_frames=8))
    for name, subset in (("all", "all"), ("tiny", "tiny")):
        train(tmp_path / "data", tmp_path, name, epochs=1, subset=subset)
    with pytest.raises(
        UserError, match="tiny was trained on other events or another split of them than .*all, so one's"
    ):
        open_ensemble([tmp_path / "all", tmp_path / "tiny"])


def test_members_of_other_data_or_another_stage_are_refused(runs: Path, storms: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "storms", n_events=8, size=48, n_frames=8, seed=1, progress=False)
    train(tmp_path / "storms", tmp_path, "other", epochs=1)
    with pytest.raises(UserError, match="other was trained on other events or another split of them than .*mse-0"):
        open_ensemble([runs / "mse-0", tmp_path / "other"])
    with pytest.raises(UserError, match="was trained on another data than .*storms"):
        open_ensemble([runs / "mse-0", runs / "mse-1"], data_dir=tmp_path / "storms")
    shutil.copytree(storms, tmp_path / "moved")
    assert open_ensemble([runs / "mse-0", runs / "mse-1"], data_dir=tmp_path / "moved").task.data_dir.name == "moved"
    record = tmp_path / "other" / "config.json"
    record.write_text(record.read_text().replace('"stage": "perceptual-unet"', '"stage": "rainfall-cvae"'))
    with pytest.raises(UserError, match="is a run of stage 'rainfall-cvae', expected 'perceptual-unet'"):
        open_ensemble([runs / "mse-0", tmp_path / "other"])


def test_a_folder_without_a_trained_net_is_refused(runs: Path, storms: Path, tmp_path: Path) -> None:
    open_run(NowcastTask(Config.for_profile("smoke", **TINY), storms), tmp_path, "untrained")
    for folder in (tmp_path / "untrained", tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="neither a run with a best checkpoint nor a checkpoint"):
            open_ensemble([runs / "mse-0", folder])


def test_the_figures_state_the_numbers_they_show(runs: Path) -> None:
    ensemble = open_ensemble([runs / "mse-0", runs / "mse-1"])
    window = ensemble_figures.strongest_window(ensemble, split="test")
    fixed = windows.fixed_windows(ensemble.task.split.events["test"], ensemble.task.config)
    last = [ensemble.task.cache[w.event][w.start + 4] for w in fixed]
    strong = [int(((frame >= 133) & (frame != MISSING)).sum()) for frame in last]
    truth = window.frames[0, -1].numpy()
    assert int(((truth >= 133) & (truth != MISSING)).sum()) == max(strong) > 0

    levels, measured = to_levels(forecast_members(ensemble, window))[0, :, -1].numpy(), truth != MISSING
    titles = [axes.get_title() for axes in ensemble_figures.exceedance_figure(ensemble, window).axes]
    for title, level in zip(titles[2:4], (74, 133), strict=True):
        numbers = [float(number) / 100 for number in re.findall(r"([\d.]+)%", title)]
        expected = [(levels >= level).mean(0)[measured].mean(), (truth >= level)[measured].mean()]
        assert numbers == pytest.approx(expected, abs=6e-4)

    groups = {"a": ensemble, "b": open_ensemble([runs / "perc-0", runs / "perc-1"], beside=ensemble)}
    scores = {name: score_ensemble(one, "test") for name, one in groups.items()}
    figure = ensemble_figures.blur_figure(groups, scores, window)
    titles = [axes.get_title() for axes in figure.axes]
    level = max(t for t in THRESHOLDS if (truth >= t)[measured].mean() >= 0.01)
    assert f"truth: {(truth >= level)[measured].sum()} pixels ≥ {level}" in titles
    assert f"member 2: {((levels[1] >= level) & measured).sum()} pixels ≥ {level}" in titles
    probability = (levels >= level).mean(0)[(truth >= level) & measured].mean()
    assert f"P(level ≥ {level})\n{probability:.0%} where observed" in titles
    notes = [axes.get_xlabel() for axes in figure.axes]
    for mine in scores.values():
        bias, ratio = mine["member"][f"bias_{level}"].by_label[-1], mine["ensemble"]["spread_skill"].by_label[-1]
        assert any(f"frequency bias {bias:.2f}\nspread/error {ratio:.2f}" in note for note in notes)
    (spread,) = ensemble_figures.spread_figure({"a": scores["a"]}, (5, 10)).axes
    ratios = scores["a"]["ensemble"]["spread_skill"].by_label
    assert f"spread/error {ratios[0]:.2f} at 5 min, {ratios[1]:.2f} at 10 min" in spread.get_title()
    top = ensemble_figures.reliability_figure(scores).axes[0]
    assert f"Brier {scores['a']['ensemble']['brier_74'].value:.4f}" in top.get_legend().get_texts()[0].get_text()
