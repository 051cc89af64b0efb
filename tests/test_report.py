"""The report: its keys, one checkpoint behind every number, and whom it may be compared with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy import STEPS_PER_EPOCH, ToyConfig, ToyTask, toy, train

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.ledger_figure import ledger_figure
from nbhelpers.training.ledger_summary import ledger_by_phase, ledger_rows, ledger_summary
from nbhelpers.training.report import make_report, read_report, table
from nbhelpers.training.run import Run
from nbhelpers.training.task import Evaluation, Predictor


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A run whose best checkpoint is its first, and its report."""
    run = train(tmp_path_factory.mktemp("done"), epochs=4, mode="max").run
    return run, make_report(ToyTask(ToyConfig(epochs=4, mode="max")), run)


def test_the_report_has_the_keys_of_the_contract(done: tuple[Run, dict[str, Any]]) -> None:
    run, report = done
    assert json.loads(run.report_file.read_text()) == json.loads(json.dumps(report)) == read_report(run)
    assert {
        "stage", "run", "profile", "checkpoint", "data", "metrics", "baselines", "ledger", "guards", "gates", "verdict",
    } <= set(report)  # fmt: skip
    assert (report["stage"], report["run"], report["profile"]) == ("toy", "run", "smoke")
    assert {"source", "sha256", "split"} <= set(report["data"]) and report["data"]["scored_split"] == "test"
    for name, entry in report["metrics"].items():
        assert {"value", "ci95", "n", "units"} <= set(entry) and entry["n"] == 8, name
    assert set(report["baselines"]) == {"as_it_is", "zero"}
    assert all(set(scores) == set(report["metrics"]) for scores in report["baselines"].values())
    assert set(report["ledger"]) == {"mse", "slope"}
    assert report["gates"] == [{"name": "less noise", "passed": True, "value": "no reference"}]
    assert set(report["verdict"]) == {"name", "meaning", "next_step"}
    assert report["verdict"]["meaning"] == "4 epochs."


def test_nothing_in_it_is_nan_though_a_metric_is(done: tuple[Run, dict[str, Any]]) -> None:
    run, report = done
    text = run.report_file.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert report["metrics"]["never_counted"]["value"] is None
    assert report["baselines"]["zero"]["never_counted"]["model_minus_this"]["is_better"] is None


class Controlled(ToyTask):
    """Scored upside down as well; and its predictor "zero" has no mean absolute error."""

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.controls = {"upside_down": lambda batch: -batch[1]}

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        scored = super().evaluate(split, predictor)
        if predictor is not self.nulls["zero"]:
            return scored
        return dataclasses.replace(scored, metrics={k: m for k, m in scored.metrics.items() if k != "mae"})


def test_controls_have_rows_and_a_baseline_may_lack_a_metric(tmp_path: Path) -> None:
    config = ToyConfig(epochs=1)
    task, run = Controlled(config), train(tmp_path, epochs=1).run
    report = make_report(task, run)
    assert list(report["baselines"]) == ["as_it_is", "zero", "upside_down"]
    clean = torch.cat([clean for _, clean in task.batches("test", 0)])
    upside_down = report["baselines"]["upside_down"]
    assert upside_down["mse"]["value"] == pytest.approx(float((2 * clean).square().mean()))
    assert "mae" in report["metrics"] and "mae" not in report["baselines"]["zero"]
    rows = {row[0].split()[0]: row[2:] for row in table(report)}
    assert rows["mae"][1] == "" and all(rows["mae"][i] for i in (0, 2)) and all(rows["mse"])
    assert "mae" in (run.folder / "report.md").read_text()


def test_the_numbers_are_those_of_the_predictors(done: tuple[Run, dict[str, Any]]) -> None:
    _, report = done
    task = ToyTask(ToyConfig())
    noise = torch.cat([noisy - clean for noisy, clean in task.batches("test", 0)])
    entry = report["baselines"]["as_it_is"]["mse"]
    assert entry["value"] == pytest.approx(float(noise.square().mean()))
    assert entry["by_label"]["top"]["value"] == pytest.approx(float(noise[..., :4, :].square().mean()))
    difference = entry["model_minus_this"]
    assert difference["value"] == pytest.approx(report["metrics"]["mse"]["value"] - entry["value"])
    assert difference["ci95"][0] < difference["value"] < difference["ci95"][1] < 0 and difference["is_better"]


def test_markdown_and_figures_say_the_same(done: tuple[Run, dict[str, Any]]) -> None:
    run, report = done
    text = (run.folder / "report.md").read_text()
    assert text.splitlines()[2] == "> **Made-up fields.**", "what one must know first comes first"
    assert f"| mse ↓ | {report['metrics']['mse']['value']:.4f} [" in text
    assert report["checkpoint"]["sha256"] in text and "n = 8" in text
    assert "| never_counted ↓ | – [–, –] |" in text and "nan" not in text
    for name in ("curve", "ledger"):
        assert (run.figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"![{name}](figures/{name}.png)" in text
    header, *rows = table(report, ("mse",))
    assert header == ["metric", "model [95 % interval]", "as_it_is", "zero"]
    assert rows[0][2].endswith("✓")


def _test_mse(path: Path) -> float:
    task = ToyTask(ToyConfig())
    task.modules["net"].load_state_dict({key.removeprefix("net."): value for key, value in load_file(path).items()})
    return task.evaluate("test").metrics["mse"].value


@pytest.mark.parametrize("which", ["best", "last"])
def test_every_number_is_of_the_checkpoint_it_names(done: tuple[Run, dict[str, Any]], which: str) -> None:
    """Best and last differ, and the task comes with weights that are neither."""
    run, _ = done
    task = ToyTask(ToyConfig(epochs=4, mode="max"))
    with torch.no_grad():
        task.modules["net"][1].weight.fill_(9.0)
    report = make_report(task, run, which=which)
    assert report["checkpoint"]["name"] == which
    assert report["checkpoint"]["step"] == (STEPS_PER_EPOCH if which == "best" else 4 * STEPS_PER_EPOCH)
    weights = run.folder / report["checkpoint"]["path"] / "model.safetensors"
    assert checkpoint.file_sha256(weights) == report["checkpoint"]["sha256"]
    assert report["metrics"]["mse"]["value"] == pytest.approx(_test_mse(weights))
    scores = {name: _test_mse(run.checkpoints / f"step_{step:06d}" / "model.safetensors")
              for name, step in (("best", 4), ("last", 16))}  # fmt: skip
    assert scores["best"] > 1.5 * scores["last"], "the two must be told apart"


def test_the_notebooks_task_and_a_fresh_one_report_the_same(tmp_path: Path) -> None:
    task, run = toy(tmp_path)
    fit(task, run)
    in_notebook = make_report(task, run)
    assert in_notebook["metrics"] == make_report(ToyTask(ToyConfig()), run)["metrics"]


def test_validation_can_be_scored_as_well(done: tuple[Run, dict[str, Any]]) -> None:
    run, test = done
    report = make_report(ToyTask(ToyConfig(epochs=4, mode="max")), run, split="val")
    assert report["data"]["scored_split"] == "val"
    assert report["metrics"]["mse"]["value"] != test["metrics"]["mse"]["value"]


def test_a_run_without_a_checkpoint_has_no_report(tmp_path: Path) -> None:
    task, run = toy(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        make_report(task, run)
    with pytest.raises(UserError, match="has no report.json"):
        read_report(run)


def test_a_damaged_checkpoint_is_not_scored(tmp_path: Path) -> None:
    run = train(tmp_path, epochs=1).run
    path = run.checkpoints / "step_000004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(UserError, match="damaged"):
        make_report(ToyTask(ToyConfig()), run)
    assert not run.report_file.exists()


def test_a_reference_is_a_reported_run_on_the_same_data_and_split(tmp_path: Path) -> None:
    task, run = toy(tmp_path, "run", epochs=1)
    reference = train(tmp_path, "plain", epochs=1, slope_weight=0.0).run
    elsewhere = train(tmp_path, "elsewhere", epochs=1, data_seed=5).run
    fit(task, run)
    with pytest.raises(UserError, match="plain has no report.json"):
        make_report(task, run, reference=reference)

    make_report(ToyTask(ToyConfig(slope_weight=0.0)), reference, split="val")
    make_report(ToyTask(ToyConfig(data_seed=5)), elsewhere)
    for other, key in ((reference, "scored_split"), (elsewhere, "sha256")):
        with pytest.raises(UserError, match=f"scored on other data .its {key} differs"):
            make_report(task, run, reference=other)
    assert not run.report_file.exists()

    make_report(ToyTask(ToyConfig(slope_weight=0.0)), reference)
    assert make_report(task, run, reference=reference)["gates"][0]["value"] == "reference plain"


def test_the_ledgers_medians_leave_the_untrained_model_out() -> None:
    keys = ("raw", "weight", "value_share", "grad_share", "cosine_to_total")
    rows = [{"step": 10 * i, "term": "mse", **dict.fromkeys(keys, value)} for i, value in enumerate((100.0, 1, 2, 6))]
    assert ledger_summary(rows) == {"mse": dict.fromkeys(keys, 2.0)}
    assert ledger_summary(rows[:1]) == {"mse": dict.fromkeys(keys, 100.0)}
    assert ledger_summary([]) == {}


def test_the_last_phase_is_judged_and_a_ledger_without_phases_can_be_read() -> None:
    """Before there were phases, ledger.csv had neither their column nor the optimizers'."""
    keys = ("raw", "weight", "value_share", "grad_share", "cosine_to_total")
    rows = [
        {"step": step, "phase": phase, "optimizer": optimizer, "term": term, **dict.fromkeys(keys, value)}
        for step, (phase, optimizer, term, value) in enumerate(
            [("pixel", "g", "l1", 9.0), ("pixel", "g", "l1", 1.0)]
            + [("gan", "g", "l1", 9.0), ("gan", "g", "l1", 2.0), ("gan", "d", "real", 9.0), ("gan", "d", "real", 3.0)]
        )
    ]
    assert ledger_summary(rows) == {"l1": dict.fromkeys(keys, 2.0), "real": dict.fromkeys(keys, 3.0)}
    found = ledger_by_phase(rows)
    assert [(row["phase"], row["optimizer"], row["term"], row["raw"]) for row in found] == [
        ("pixel", "g", "l1", 1.0), ("gan", "g", "l1", 2.0), ("gan", "d", "real", 3.0),
    ]  # fmt: skip
    assert ledger_rows(found)[0] == ["phase", "optimizer", "term", *keys]
    old = [{key: row[key] for key in row if key not in ("phase", "optimizer")} for row in rows[:2]]
    assert ledger_summary(old) == {"l1": dict.fromkeys(keys, 1.0)}
    assert ledger_rows(ledger_by_phase(old))[0] == ["term", *keys]
    for one in (rows, old, []):
        assert ledger_figure(one).axes
