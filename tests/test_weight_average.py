"""The average of the ranked checkpoints: greedy, never worse on validation, and a checkpoint like any other but one
from which training cannot go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_fit import assert_same
from toy_gan import GanConfig, GanTask, gan, tensors, train_gan

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, history, pointers, weight_average
from nbhelpers.training.fit import fit
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run
from nbhelpers.training.task import Monitor

# Large steps: the weights jump about a good place, which is what an average helps against.
SETTINGS: dict[str, Any] = {"pixel_epochs": 1, "adversarial_epochs": 8, "keep": 3, "generator_lr": 0.1}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_gan(tmp_path_factory.mktemp("done"), **SETTINGS).run


def mae(task: GanTask, folder: Path) -> float:
    checkpoint.load_weights(checkpoint.at(folder), task.modules)
    return task.evaluate("val").metrics["mae"].value


def test_the_best_ones_are_listed_and_kept(done: Run) -> None:
    rows = [row for row in history.read_rows(done.history_file) if row["phase"] == "adversarial"]
    liked = sorted(rows, key=lambda row: row["val_mae"])[:3]
    best = pointers.read(done, "best")
    assert best is not None and best["step"] == liked[0]["step"]
    assert [(one["step"], one["value"]) for one in best["ranked"]] == [(r["step"], r["val_mae"]) for r in liked]
    task = GanTask(GanConfig())
    for one in best["ranked"]:
        assert checkpoint.file_sha256(done.folder / one["path"] / "model.safetensors") == one["sha256"]
        assert mae(task, done.folder / one["path"]) == pytest.approx(one["value"])


def test_it_is_the_greedy_average(done: Run) -> None:
    """Written out by hand: best first, the next one only if the uniform average is no worse with it."""
    ranked = pointers.read(done, "best")["ranked"]  # type: ignore[index]
    weights = [load_file(done.folder / one["path"] / "model.safetensors") for one in ranked]
    task, trained = GanTask(GanConfig()), {"net.1.weight", "net.1.bias"}
    taken, score = [0], ranked[0]["value"]
    for number in range(1, len(ranked)):
        tried = [*taken, number]
        for key in trained:
            mean = torch.stack([weights[i][key].double() for i in tried]).mean(0).float()
            task.modules["net"].state_dict()[key.removeprefix("net.")].copy_(mean)
        if (value := task.evaluate("val").metrics["mae"].value) <= score:
            taken, score = tried, value
    pointer = pointers.read(done, "average")
    assert pointer is not None
    assert [parent["step"] for parent in pointer["parents"]] == [ranked[i]["step"] for i in taken]
    assert len(taken) > 1, "something is averaged"
    found = checkpoint.find(done, "average")
    assert found is not None and found.folder.name == "average_000036"
    assert checkpoint.parents(found) == {"parents": pointer["parents"]}
    assert mae(task, found.folder) == pytest.approx(score) and score < ranked[0]["value"]
    average = load_file(found.folder / "model.safetensors")
    for key, tensor in average.items():
        mean = torch.stack([weights[i][key].double() for i in taken]).mean(0).float()
        buffer = key.endswith(("_u", "_v"))
        assert torch.equal(tensor, weights[0][key]) if buffer else torch.allclose(tensor, mean, atol=1e-7), key


def test_what_makes_it_worse_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, run = gan(tmp_path, **{**SETTINGS, "adversarial_epochs": 3})
    monkeypatch.setattr(weight_average, "_validation", lambda session: 9.0)
    fit(task, run)
    pointer = pointers.read(run, "average")
    assert pointer is not None and len(pointer["parents"]) == 1
    best, average = (checkpoint.find(run, which) for which in ("best", "average"))
    assert best is not None and average is not None
    assert_same(*(load_file(found.folder / "model.safetensors") for found in (best, average)))


def test_the_weights_that_were_trained_are_put_back(tmp_path: Path) -> None:
    task, run = gan(tmp_path, **SETTINGS)
    fit(task, run)
    last = load_file(checkpoint.find(run, "last").folder / "model.safetensors")  # type: ignore[union-attr]
    assert_same(tensors(task, "net"), {key: last[f"net.{key}"] for key in tensors(task, "net")})


def test_the_report_is_of_it_and_names_its_parents(done: Run) -> None:
    report = make_report(GanTask(GanConfig(**SETTINGS)), done)
    entry = report["checkpoint"]
    assert (entry["name"], entry["path"]) == ("average", "checkpoints/average_000036")
    assert entry["parents"] == pointers.read(done, "average")["parents"]  # type: ignore[index]
    steps = " and ".join(str(parent["step"]) for parent in entry["parents"])
    assert f"(average, step 36, the average of step {steps})" in (done.folder / "report.md").read_text()
    for which in ("best", "last", "pixel_best"):
        other = make_report(GanTask(GanConfig(**SETTINGS)), done, which=which)["checkpoint"]
        assert other["name"] == which and "parents" not in other
    with pytest.raises(UserError, match="no checkpoint 'pixle_best': choose one of adversarial_best, .*, last"):
        make_report(GanTask(GanConfig(**SETTINGS)), done, which="pixle_best")


def test_the_table_of_the_ledger_has_phase_and_optimizer(done: Run) -> None:
    report = make_report(GanTask(GanConfig(**SETTINGS)), done)
    assert set(report["ledger"]) == {"mse", "fool", "tell_apart"}, "of the last phase"
    rows = [(row["phase"], row["optimizer"], row["term"]) for row in report["ledger_by_phase"]]
    assert rows[0] == ("pixel", "net", "mse") and rows[-1] == ("adversarial", "discriminator", "tell_apart")
    text = (done.folder / "report.md").read_text()
    assert "| phase | optimizer | term |" in text and "| adversarial | net | fool |" in text


def test_training_cannot_go_on_from_it(done: Run, tmp_path: Path) -> None:
    task, run = gan(tmp_path, **SETTINGS)
    found = checkpoint.find(done, "average")
    assert found is not None
    with pytest.raises(UserError, match="state.pt is missing, so training cannot go on from it"):
        fit(task, run, start=found.folder)


def test_a_run_that_goes_on_is_averaged_anew(done: Run, tmp_path: Path) -> None:
    first = train_gan(tmp_path, **{**SETTINGS, "adversarial_epochs": 6}).run
    before = checkpoint.find(first, "average")
    assert before is not None and before.step == 28
    run = train_gan(tmp_path, **SETTINGS).run
    assert not before.folder.exists()
    ours, theirs = (checkpoint.find(one, "average") for one in (run, done))
    assert ours is not None and theirs is not None and ours.step == 36
    assert_same(*(load_file(found.folder / "model.safetensors") for found in (ours, theirs)))


def test_only_the_last_phase_is_averaged(tmp_path: Path) -> None:
    task, run = gan(tmp_path)
    first, second = task.phases
    task.phases = (second, first)
    object.__setattr__(second, "keep", 2)
    with pytest.raises(ValueError, match="keep"):
        fit(task, run)


def test_a_score_that_is_never_defined_leaves_nothing_to_average(tmp_path: Path) -> None:
    run = train_gan(tmp_path, keep=2, adversarial_monitor=Monitor("never_counted", "min")).run
    assert checkpoint.find(run, "average") is None
    assert make_report(GanTask(GanConfig()), run)["checkpoint"]["name"] == "best"
