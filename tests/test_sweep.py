"""Sweeps: resumed, compared and judged; the grid that cannot matter; the panel; the rule, case by case."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from toy import ToyConfig, ToyTask

from nbhelpers.cli import main
from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.sweep import Grid, measure_grid, run_sweep
from nbhelpers.stages.perceptual_unet.sweep_verdict import judge
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.training import checkpoint
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.guards.inert_grid import InertGrid
from nbhelpers.training.history import read_rows
from nbhelpers.training.ledger import Entry, entries, probe, resolve_weights
from nbhelpers.training.metrics import Metric, mean_metric
from nbhelpers.training.run import Run
from nbhelpers.training.sweep import Plan, Setting, Swept, sweep
from nbhelpers.training.sweep_scores import combined, compare, effects, spreads
from nbhelpers.training.task import Batch, Gate, Phase, Update, Verdict
from nbhelpers.widgets import sweep_panel

# --- the generic part, with toy tasks -----------------------------------------------------------------------------


def measure(task: ToyTask) -> Callable[[ToyConfig], list[Entry]]:
    (update,) = task.updates(next(iter(task.batches("train", 0))), task.phases[0])
    probed = probe(update.prediction, update.terms)

    def balance(config: ToyConfig) -> list[Entry]:
        assert config.slope_weight is not None
        return entries(probed, resolve_weights({"mse": 1.0, "slope": config.slope_weight}, {}))

    return balance


class Counted:
    """Makes toy tasks and counts the batches they are asked about: one a step, one to rehearse a run that has anything
    left to train, one to measure the grid. At the ``press_at``-th it presses the stop button, for real."""

    def __init__(self, press_at: int | None = None):
        self.steps, self.press_at = 0, press_at

    def __call__(self, config: ToyConfig) -> ToyTask:
        counted = self

        class Task(ToyTask):
            def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
                counted.steps += 1
                if counted.steps == counted.press_at:
                    counted.press_at = None
                    os.kill(os.getpid(), signal.SIGINT)
                yield from super().updates(batch, phase)

        return Task(config)


def plan(
    weights: Sequence[float] = (0.0, 0.3, 1.0),
    seeds: Sequence[int] = (0, 1),
    make_task: Callable[[Any], Any] = ToyTask,
    **changes: Mapping[str, Any],
) -> Plan:
    """A toy sweep; ``changes`` are other settings of single points of the grid, by name with _ for -."""
    points = [
        Setting(f"slope-{w:g}", ToyConfig(slope_weight=w, **changes.get(f"slope_{w:g}", {})))  # type: ignore[arg-type]
        for w in weights
    ]
    return Plan(
        settings=points,
        seeds=seeds,
        term="slope",
        make_task=make_task,
        measure=measure,
        cure=lambda balance: "Take 1.",
        judge=lambda report: (
            "slope-0" if "slope-0" in report["val"] else None,
            [Gate("rows", True, "all")],
            Verdict("done", f"{len(report['rows'])} rows.", "go home."),
        ),
        decided_by=("mse",),
        figures=lambda report: iter(()),
    )


def epochs_by_run(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(read_rows(path)) for path in sorted(folder.glob("*/history.csv"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Two weights beside the reference and two seeds; "max" makes an early epoch the best of one."""
    folder = tmp_path_factory.mktemp("sweeps") / "s"
    return sweep(plan(**{"slope_0.3": {"mode": "max", "epochs": 3}}), folder)


def test_one_run_folder_for_each_setting_and_seed_and_the_reference_first(finished: Swept) -> None:
    assert not finished.interrupted and not finished.all_stopped
    epochs = {"0": 2, "0.3": 3, "1": 2}
    assert epochs_by_run(finished.folder) == {f"slope-{w}-seed{k}": n for w, n in epochs.items() for k in (0, 1)}
    kept = json.loads((finished.folder / "sweep.json").read_text())
    assert kept == json.loads(json.dumps(finished.report)) and kept["reference"] == "slope-0"
    assert [(row["setting"], row["seed"]) for row in kept["rows"][:4]] == [
        ("slope-0", 0), ("slope-0.3", 0), ("slope-1", 0), ("slope-0", 1),
    ]  # fmt: skip
    text = (finished.folder / "sweep.md").read_text()
    for words in ("## Does the setting matter?", "n = 8 groups", "spread between seeds", "slope-0.3", "as_it_is"):
        assert words in text
    assert "- PASS: rows (all)" in text and kept["gates"] == [{"name": "rows", "passed": True, "value": "all"}]
    mse, minutes = kept["val"]["slope-0"]["mse"]["value"], sum(row["minutes"] for row in kept["rows"])
    line = re.search(
        r"Best setting: slope-0 \(mse ([\d.]+), on validation\); 6 runs, ([\d.]+) min in all on (.*)\.", text
    )
    assert line and float(line[1]) == pytest.approx(mse, abs=5e-4) and line[3] == kept["device"]
    assert float(line[2]) == pytest.approx(minutes, abs=0.06)
    assert [row["grad_share"] for row in kept["rows"] if row["setting"] == "slope-0"] == [0.0, 0.0]
    assert all(0.01 < row["grad_share"] < 0.9 for row in kept["rows"] if row["setting"] != "slope-0")


def test_each_row_is_one_checkpoint_whose_weights_give_its_numbers(finished: Swept) -> None:
    assert finished.report["rows"][1]["checkpoint"]["step"] < 12
    for row in finished.report["rows"]:
        found = checkpoint.at(finished.folder / row["checkpoint"]["path"])
        assert (found.sha256, found.step) == (row["checkpoint"]["sha256"], row["checkpoint"]["step"])
        task = ToyTask(ToyConfig(seed=row["seed"]))
        checkpoint.load_weights(found, task.modules)
        for split in ("val", "test"):
            assert task.evaluate(split).metrics["mse"].value == pytest.approx(row[split]["mse"], rel=1e-6)


def test_the_paired_difference_is_the_one_done_by_hand(finished: Swept) -> None:
    errors: dict[tuple[str, int], np.ndarray] = {}  # mean squared error of each event
    for row in finished.report["rows"]:
        task = ToyTask(ToyConfig(seed=row["seed"]))
        checkpoint.load_weights(checkpoint.at(finished.folder / row["checkpoint"]["path"]), task.modules)
        sums = task.evaluate("val").metrics["mse"].sums.sum(1)
        errors[row["setting"], row["seed"]] = sums[:, 0] / sums[:, 1]
    gain = (errors["slope-1", 0] - errors["slope-0", 0] + errors["slope-1", 1] - errors["slope-0", 1]) / 2
    draws = np.random.default_rng(7).choice(gain, (20_000, len(gain))).mean(1)
    cell = finished.report["val"]["slope-1"]["mse"]["minus_reference"]
    assert cell["value"] == pytest.approx(gain.mean(), rel=1e-6) and (cell["n"], cell["seeds"]) == (8, [0, 1])
    assert cell["ci95"] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.1 * draws.std())
    assert finished.report["val"]["slope-0"]["mse"]["minus_reference"] is None


def test_stopped_in_the_second_run_and_run_again_trains_nothing_twice(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"weights": (0.0, 1.0), "seeds": (0, 1)}
    whole = Counted()
    expected = sweep(plan(**settings, make_task=whole), tmp_path / "whole").report
    assert whole.steps == 1 + 4 * (1 + 8)
    first, second, third = Counted(press_at=15), Counted(), Counted()
    broken = sweep(plan(**settings, make_task=first), tmp_path / "s")
    assert broken.interrupted and [row["run"] for row in broken.report["rows"]] == ["slope-0-seed0"]
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["rows"] == broken.report["rows"]
    assert "Not finished: 1 of 4 runs" in (tmp_path / "s" / "sweep.md").read_text()
    again = sweep(plan(**settings, make_task=second), tmp_path / "s")
    assert not again.interrupted
    assert first.steps + second.steps == whole.steps + 2  # one more to measure, one more to rehearse the run taken up
    assert [row["val"] for row in again.report["rows"]] == [row["val"] for row in expected["rows"]]
    assert sweep(plan(**settings, make_task=third), tmp_path / "s").report == again.report and third.steps == 1


def test_stopped_before_the_first_run_there_is_a_table_without_rows(tmp_path: Path) -> None:
    broken = sweep(plan((0.0, 1.0), make_task=Counted(press_at=3)), tmp_path / "s")
    assert broken.interrupted and broken.report["rows"] == [] and not broken.all_stopped and broken.finished == {}
    assert "Not finished: 0 of 4 runs" in (tmp_path / "s" / "sweep.md").read_text()


def test_a_checkpoint_is_scored_once_and_again_only_when_it_is_another(tmp_path: Path) -> None:
    def scoring(config: ToyConfig) -> ToyTask:
        task = ToyTask(config)
        evaluate = task.evaluate

        def counted(split: str, predictor: Any = None) -> Any:
            if split == "test":
                seen.append(config.seed)
            return evaluate(split, predictor)

        task.evaluate = counted  # type: ignore[method-assign]
        return task

    seen: list[int] = []
    grid: dict[str, Any] = {"weights": (0.0, 1.0), "seeds": (3,), "make_task": scoring}
    before = sweep(plan(**grid), tmp_path).report
    assert seen == [3, 3]
    assert sweep(plan(**grid), tmp_path).report == before and len(seen) == 2
    longer = sweep(plan(**grid, slope_1={"epochs": 4}), tmp_path).report
    assert len(seen) == 3 and longer["rows"][1]["test"] != before["rows"][1]["test"]

    kept = tmp_path / "slope-0-seed3" / "scores.npz"
    spoilt: tuple[Callable[[dict[str, np.ndarray]], Any], ...] = (
        lambda arrays: arrays.update(version=np.array("0.0.1")),
        lambda arrays: arrays.pop("val/mse"),
        lambda arrays: arrays.update({"val/mae": arrays["val/mae"][:, :1]}),  # by one label less
    )
    for number, spoil in enumerate(spoilt, start=4):
        with np.load(kept) as file:
            arrays = dict(file)
        spoil(arrays)
        np.savez(kept, **arrays)
        assert sweep(plan(**grid, slope_1={"epochs": 4}), tmp_path).report == longer and len(seen) == number
    kept.write_bytes(b"no zip")
    with pytest.raises(UserError, match="scores.npz is damaged"):
        sweep(plan(**grid), tmp_path)


def test_a_larger_grid_extends_the_sweep(tmp_path: Path) -> None:
    small = sweep(plan((0.0, 1.0), seeds=(0,)), tmp_path).report
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*/state.pt")}
    large = sweep(plan((0.0, 0.3, 1.0), seeds=(0,)), tmp_path).report
    assert len(large["rows"]) == 3 and [large["rows"][0], large["rows"][2]] == small["rows"]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_run_that_a_guard_stops_is_a_row_with_its_reason(tmp_path: Path) -> None:
    done = sweep(plan(**{"slope_0.3": {"monitor": "nonsense"}}), tmp_path)
    stopped = [row for row in done.report["rows"] if row["stopped"]]
    assert [row["run"] for row in stopped] == ["slope-0.3-seed0", "slope-0.3-seed1"] and not done.all_stopped
    assert "nonsense" in stopped[0]["stopped"] and stopped[0]["checkpoint"] is None
    assert set(done.report["val"]) == {"slope-0", "slope-1"}
    assert done.finished == {n: [tmp_path / f"{n}-seed{k}" for k in (0, 1)] for n in ("slope-0", "slope-1")}
    assert done.report["val"]["slope-1"]["mse"]["minus_reference"]["seeds"] == [0, 1]
    assert "slope-0.3-seed0: STOP" in (tmp_path / "sweep.md").read_text()
    everything = {f"slope_{w}": {"monitor": "nonsense"} for w in ("0", "1")}
    assert sweep(plan((0.0, 1.0), **everything), tmp_path / "none").all_stopped


def test_other_settings_or_a_run_in_its_place_are_refused(tmp_path: Path) -> None:
    sweep(plan((0.0, 1.0), seeds=(0,)), tmp_path / "s")
    with pytest.raises(UserError, match=r"other settings: lr"):
        sweep(plan((0.0, 1.0), seeds=(0,), slope_0={"lr": 0.1}), tmp_path / "s")
    with pytest.raises(UserError, match="is a run, and a sweep is a folder of runs"):
        sweep(plan(), tmp_path / "s" / "slope-0-seed0")


def test_a_second_folder_gets_every_run_and_the_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        sweep(plan((0.0, 1.0), seeds=(0,)), tmp_path / "s", copy_dir=tmp_path / "drive")
    (tmp_path / "drive").mkdir()
    sweep(plan((0.0, 1.0), seeds=(0,)), tmp_path / "s", copy_dir=tmp_path / "drive")
    copy = tmp_path / "drive" / "s"
    assert (copy / "sweep.md").read_text() == (tmp_path / "s" / "sweep.md").read_text()
    counted = Counted()  # another machine, where only the copy is left
    again = sweep(plan((0.0, 1.0), seeds=(0,), make_task=counted), tmp_path / "new/s", copy_dir=tmp_path / "drive")
    assert counted.steps == 1 and len(again.report["rows"]) == 2


def test_a_grid_that_cannot_matter_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(GuardStop) as stop:
        sweep(plan((0.0, 1e-6, 1e-4)), tmp_path / "s")
    assert stop.value.exit_code == 2 and stop.value.finding.name == "inert_grid"
    assert "slope-1e-06" in str(stop.value) and "slope-0.0001" in str(stop.value) and "Take 1." in str(stop.value)
    assert not (tmp_path / "s").exists()
    forced = sweep(plan((0.0, 1e-4), seeds=(0,)), tmp_path / "s", force=True).report
    assert forced["forced"] and [found["name"] for found in forced["guards"]] == ["inert_grid"]
    assert "WARN inert_grid" in (tmp_path / "s" / "sweep.md").read_text()
    one_is_enough = sweep(plan((0.0, 1e-6, 1.0), seeds=(0,)), tmp_path / "t").report
    assert not one_is_enough["forced"] and one_is_enough["guards"] == []


@pytest.mark.parametrize(("largest", "refused"), [(0.0099, True), (0.01, False), (0.5, False)])
def test_the_guard_looks_at_the_largest_share(largest: float, refused: bool) -> None:
    found = list(InertGrid().on_grid("x", {"a": 1e-6, "b": largest}, cure="More."))
    assert bool(found) is refused
    if found:
        assert "a 0.0001 %, b 0.99 %" in found[0].evidence


# --- what the scores say together ---------------------------------------------------------------------------------


def metric(values: Sequence[float] | np.ndarray, better: Any = "lower") -> Metric:
    """A mean over events of one value each."""
    column = np.asarray(values, dtype=float)[:, None]
    return mean_metric(column, np.ones_like(column), labels=("all",), better=better, units="")


EVENTS = np.linspace(0.2, 0.9, 8)  # events differ far more than settings do


def invented(offsets: Mapping[str, Sequence[float]], events: np.ndarray = EVENTS) -> dict[str, dict[int, Any]]:
    """Scores by setting and seed: every event's value is moved by the same amount."""
    return {name: {k: {"mse": metric(events + d)} for k, d in enumerate(ds)} for name, ds in offsets.items()}


def test_seeds_add_up_and_events_stay_the_groups() -> None:
    both = combined([metric(EVENTS), metric(EVENTS + 0.2)])
    assert both.groups == 8 and both.value == pytest.approx(EVENTS.mean() + 0.1)
    with pytest.raises(ValueError, match="not the same groups"):
        combined([metric(EVENTS), metric(EVENTS[:5])])


def test_a_difference_is_over_the_seeds_that_both_have() -> None:
    scores = invented({"ref": [0.0, 0.1], "x": [-0.05, 0.05]})
    assert compare(scores, "ref", ["mse"])["x"]["mse"]["minus_reference"]["value"] == pytest.approx(-0.05)
    del scores["ref"][1]
    cell = compare(scores, "ref", ["mse"])["x"]["mse"]
    assert cell["minus_reference"]["value"] == pytest.approx(-0.05) and cell["minus_reference"]["seeds"] == [0]
    assert cell["minus_reference"]["ci95"] == pytest.approx([-0.05, -0.05])  # each event moves alike
    assert cell["minus_reference"]["is_better"] is True and cell["value"] == pytest.approx(EVENTS.mean())


def test_spreads_between_seeds_and_between_settings() -> None:
    compared = compare(invented({"ref": [0.0, 0.02], "x": [0.1, 0.16], "y": [0.3]}), "ref", ["mse"])
    found = spreads(compared, ["mse"])["mse"]
    assert found["between_seeds"] == pytest.approx(np.sqrt((0.02**2 / 2 + 0.06**2 / 2) / 2))
    assert (found["of_differences"], found["degrees"]) == (pytest.approx(0.04 / np.sqrt(2)), 1)  # 0.10 and 0.14
    assert found["between_settings"] == pytest.approx(np.std([0.01, 0.13, 0.3], ddof=1))


@pytest.mark.parametrize(
    ("offsets", "events", "differ", "words"),
    [
        ({"ref": [0.0, 0.001], "x": [-0.1, -0.101]}, EVENTS, ["x"], "it matters: x -0.101"),
        # Seeds differ by more than settings, but alike: at equal seed the difference is always the same.
        ({"ref": [0.0, 0.5], "x": [-0.1, 0.401]}, EVENTS, ["x"], "between seeds 0.35"),
        # As large in every event, but with one seed twice what it is with the other.
        ({"ref": [0.0, 0.2], "x": [-0.1, 0.05]}, EVENTS, [], "not shown to matter"),
        ({"ref": [0.0, 0.001], "x": [0.0, 0.001]}, EVENTS, [], "not shown to matter"),
        ({"ref": [0.0, 0.001], "x": [-0.1, -0.101]}, EVENTS[:5], None, "undecided, n = 5 groups"),
        ({"ref": [0.0], "x": [-0.1]}, EVENTS, None, "with one seed the spread between seeds is unknown"),
        ({"ref": [0.0], "x": [-0.1]}, EVENTS * np.nan, None, "mse: undefined, the 8 groups hold nothing"),
    ],
)
def test_a_setting_matters_where_events_and_seeds_both_say_so(
    offsets: Any, events: np.ndarray, differ: Any, words: str
) -> None:
    compared = compare(invented(offsets, events), "ref", ["mse"])
    found = effects(compared, spreads(compared, ["mse"]))["mse"]
    assert found["differ"] == differ and words in found["sentence"]


@pytest.mark.parametrize(
    ("settings", "seeds", "missing"),
    [(5, 2, 0), (2, 3, 0), (5, 3, 2)],  # with the reference; `missing` runs of the last setting are not there
)
def test_where_nothing_matters_one_comparison_in_twenty_says_it_does(settings: int, seeds: int, missing: int) -> None:
    """Settings share the reference's runs, so their differences to it go up and down together."""
    rng, wrong, repetitions = np.random.default_rng(4), 0, 2500
    for _ in range(repetitions):
        values = rng.normal(size=(settings, seeds)) + 3 * rng.normal(size=(1, seeds))
        compared = {}
        for i, own in enumerate(values):
            there = range(missing if i == settings - 1 else 0, seeds)
            difference = np.mean([own[k] - values[0, k] for k in there])
            compared[str(i)] = {
                "mse": {
                    "seeds": {str(k): own[k] for k in there},
                    "better": "lower",
                    # The events have no say: they exclude 0 always.
                    "minus_reference": {
                        "value": difference, "ci95": [0.0, 0.0], "is_better": True, "n": 8, "seeds": list(there),
                    } if i else None,
                }
            }  # fmt: skip
        wrong += len(effects(compared, spreads(compared, ["mse"]))["mse"]["differ"])
    assert wrong / (repetitions * (settings - 1)) == pytest.approx(0.05, abs=0.009)


def test_the_spread_of_a_difference_has_the_degrees_that_the_layout_leaves() -> None:
    full = {"ref": [0.0, 0.1, 0.3], "x": [0.2, 0.2, 0.6], "y": [0.1, 0.3, 0.2]}
    found = spreads(compare(invented(full), "ref", ["mse"]), ["mse"])["mse"]
    values = np.array(list(full.values()))
    left = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    assert found["degrees"] == 4 and found["of_differences"] == pytest.approx(np.sqrt(2 * np.square(left).sum() / 4))
    # A setting with a single run, or a seed of a single setting, says nothing about the spread.
    more = spreads(compare(invented(full | {"z": [0.9]}), "ref", ["mse"]), ["mse"])["mse"]
    assert (more["of_differences"], more["degrees"]) == (pytest.approx(found["of_differences"]), 4)
    longer = spreads(compare(invented(full | {"x": [0.2, 0.2, 0.6, 0.9]}), "ref", ["mse"]), ["mse"])["mse"]
    assert (longer["of_differences"], longer["degrees"]) == (pytest.approx(found["of_differences"]), 4)


# --- the rule and the verdict, with made-up numbers ---------------------------------------------------------------

SEVIR = {"split": {"rule": "SEVIR's official date: test from 2019-06-01"}, "simulated": False}
ELSEWHERE = SEVIR | {"split": {"rule": "by event id"}}
SHARES = {"lambda-0": 0.0, "lambda-1": 0.05, "share-0.1": 0.1, "share-0.2": 0.2, "share-0.4": 0.4, "share-0.5": 0.5}


def table(points: Mapping[str, Any], *, data: Any = ELSEWHERE, n: int = 9, **changes: Any) -> dict[str, Any]:
    """A sweep's report with (CSI@74, LPIPS) by setting; None is a setting that a guard stopped."""
    shares = SHARES | changes.pop("shares", {})
    cells = {
        name: {
            "csi_74": {"value": point[0], "n": n},
            "lpips": {"value": point[1], "n": n, "units": "LPIPS (alex)"},
            "mse": {"value": 0.01, "n": n},
        }
        for name, point in points.items()
        if point is not None
    }
    rows = [
        {"setting": name, "stopped": "STOP" if point is None else None, "grad_share": shares[name]}
        for name, point in points.items()
    ]
    of_config = {name: {"lambda_perc": float(name[7:]) if name[:3] == "lam" else None} for name in points}
    settings = {name: {"config": of_config[name], "grad_share": shares[name]} for name in points}
    return {
        "reference": "lambda-0",
        "planned": len(rows),
        "rows": rows,
        "settings": settings,
        "headlines": ["csi_74", "lpips"],
        "val": cells,
        "data": data,
        "baselines": {"persistence": {"mse": 0.02, "csi_74": 0.3}, "advection": {"mse": 0.015, "csi_74": 0.4}},
    } | changes


BASELINES = "mse and CSI@74 better than persistence and advection"
STOPPED, INERT = dict.fromkeys(SHARES), dict.fromkeys(SHARES, 0.005)
BASE = {"lambda-0": (0.60, 0.40)}
WEAK = {"lambda-1": 0.005}
STRONG = {"persistence": {"mse": 0.02, "csi_74": 0.3}, "advection": {"mse": 0.009, "csi_74": 0.4}}


@pytest.mark.parametrize(
    ("report", "best", "verdict", "words"),
    [
        # Elsewhere: relative to λ = 0; exactly 95 % and 87 % satisfy it, and the highest CSI of those wins.
        (table(BASE | {"share-0.1": (0.570, 0.348)}), "share-0.1", "success", "CSI@74 -5.0%, lpips -13.0%"),
        (table(BASE | {"share-0.1": (0.58, 0.34), "share-0.2": (0.59, 0.33)}), "share-0.2", "success", "0.590"),
        (table(BASE | {"share-0.1": (0.59, 0.39), "share-0.2": (0.58, 0.30)}), "share-0.2", "success", "0.580"),
        (table(BASE | {"share-0.1": (0.58, 0.34)}, n=5), "share-0.1", "undecided", "n = 5 validation events"),
        (table(BASE | {"share-0.1": (0.58, 0.34)}, n=5), "share-0.1", "undecided", "the test sentences under 'Does"),
        (table(BASE | {"share-0.1": (0.569, 0.30)}), None, "no setting meets the rule", "nearest to it is share-0.1"),
        (table(BASE | {"share-0.1": (0.59, 0.349)}), None, "no setting meets the rule", "try --shares 0.18"),
        (
            table(BASE | {"share-0.1": (0.59, 0.38), "share-0.4": (0.40, 0.20)}),
            None,
            "no setting meets the rule",
            "try --shares 0.21",  # between, in odds: sqrt(1/9 * 2/3) = 0.272
        ),
        (table(BASE | {"lambda-1": (0.59, 0.39)}), None, "no setting meets the rule", "about --lambdas 2"),
        (table(BASE | {"share-0.1": (0.59, 0.41), "share-0.2": (0.5, 0.42)}), None, "iterate", "improves in none"),
        (table(BASE | {"share-0.1": (0.59, 0.41)}, n=3), None, "undecided", "n = 3"),
        (table({n: (0.6 - s, 0.4 - s) for n, s in SHARES.items()}), None, "skip, documented", "5 settings failed"),
        (table(STOPPED | BASE | {"share-0.1": (0.5, 0.39)}), None, "skip, documented", "5 settings failed"),
        # Settings whose term has no say are λ = 0 once more, and no failures.
        (table({n: (0.6, 0.4) for n in SHARES}, shares=INERT), None, "perceptual term inert", "less than 1%"),
        (table({"lambda-0": None, "share-0.1": (0.6, 0.3)}), None, "undecided", "No run of lambda-0"),
        (table({"lambda-0": (0.0, 0.3), "share-0.1": (0.6, 0.3)}), None, "undecided", "no pixel >= 74"),
        (table({"lambda-0": (0.5, 0.3), "share-0.1": None}), None, "undecided", "every setting but lambda-0"),
        (table({"lambda-0": None, "share-0.1": None}), None, "stopped", "every run"),
        (table(BASE, planned=4), None, "not finished", "1 of 4 runs"),
        # SEVIR: LPIPS (alex) < 0.35 and nothing else; plain MSE may win.
        (
            table(BASE | {"share-0.1": (0.65, 0.349), "share-0.2": (0.7, 0.35)}, data=SEVIR),
            "share-0.1",
            "success",
            "better than persistence and advection. train longer with --perceptual-share 0.1, then",
        ),
        # The best by the rule is graded as a run with its scores would be.
        (table(BASE | {"lambda-1": (0.649, 0.3)}, data=SEVIR), "lambda-1", "proceed", "Best so far: --lambda-perc 1."),
        (table(BASE | {"share-0.1": (0.599, 0.3)}, data=SEVIR), "share-0.1", "too aggressive", "lower perceptual_"),
        (table(BASE | {"share-0.1": (0.8, 0.3)}, data=SEVIR, baselines=STRONG), "share-0.1", "proceed", "not better"),
        (table(BASE | {"share-0.1": (0.58, 0.34)}, baselines=STRONG), "share-0.1", "sharper at little cost", "longer"),
        (table({"lambda-0": (0.7, 0.3), "share-0.1": (0.6, 0.2)}, data=SEVIR), "lambda-0", "λ = 0 is best", "not wor"),
        (
            table({"lambda-0": (0.6, 0.3), "lambda-1": (0.7, 0.3), "share-0.1": (0.5, 0.2)}, data=SEVIR, shares=WEAK),
            "lambda-1",
            "λ = 0 is best",
            "it is λ = 0 once more",
        ),
        (table({n: (0.7, 0.3) for n in SHARES}, data=SEVIR, shares=INERT), "lambda-0", "perceptual term inert", ""),
        (table({"lambda-0": (0.54, 0.5), "share-0.1": (0.549, 0.4)}, data=SEVIR), None, "iterate", "below 0.55"),
        (table({"lambda-0": (0.55, 0.5), "share-0.1": (0.5, 0.4)}, data=SEVIR), None, "no setting meets the rule", ""),
        (table({"lambda-0": (0.55, 0.5), "share-0.1": (0.56, 0.6)}, data=SEVIR), None, "iterate", "improves in none"),
        (table({"lambda-0": None, "share-0.1": (0.66, 0.3)}, data=SEVIR), "share-0.1", "success", "0.660"),
    ],
)  # fmt: skip
def test_the_rule_and_the_verdict(report: dict[str, Any], best: str | None, verdict: str, words: str) -> None:
    found, _, said = judge(report)
    assert (found, said.name) == (best, verdict), said
    assert words in f"{said.meaning} {said.next_step}"


@pytest.mark.parametrize(
    ("report", "passed", "values"),
    [
        (
            table(BASE | {"share-0.1": (0.58, 0.34), "share-0.2": (0.57, 0.2)}),
            {"CSI@74 at least 95% of λ = 0's": True, "lpips at most 87% of λ = 0's": True, BASELINES: True},
            ("share-0.1: 96.7%, 0.580 of 0.600", "85.0%, 0.340 of 0.400", "csi_74 0.5800 against advection's 0.4000"),
        ),
        (  # no best: the nearest
            table(BASE | {"share-0.1": (0.58, 0.38), "share-0.2": (0.3, 0.2)}, baselines=STRONG),
            {"CSI@74 at least 95% of λ = 0's": True, "lpips at most 87% of λ = 0's": False, BASELINES: False},
            ("share-0.1: 96.7%", "share-0.1: 95.0%", "mse 0.0100 against advection's 0.0090"),
        ),
        (
            table(BASE | {"share-0.1": (0.64, 0.34)}, data=SEVIR),
            {"CSI@74 at least 0.65": False, "LPIPS (alex) below 0.35": True, BASELINES: True},
            ("share-0.1: 0.640", "share-0.1: 0.340", ""),
        ),
        (
            table(BASE | {"share-0.1": (0.66, 0.34)}, data=SEVIR, n=4),
            {"CSI@74 at least 0.65": None, "LPIPS (alex) below 0.35": None, BASELINES: None},
            ("0.660; n = 4 events, at least 6", "0.340; n = 4", "n = 4"),
        ),
        (table(BASE, planned=4), {}, ()),
    ],
)
def test_the_gates_are_those_of_the_best_setting_or_the_nearest(
    report: dict[str, Any], passed: dict[str, bool | None], values: tuple[str, ...]
) -> None:
    _, gates, _ = judge(report)
    assert {gate.name: gate.passed for gate in gates} == passed
    assert all(words in gate.value for words, gate in zip(values, gates, strict=True))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lambdas": (), "shares": ()}, "no setting beside"),
        ({"lambdas": (0.0,), "shares": ()}, "no setting beside"),
        ({"shares": (0.1, 0.1)}, "one stands twice"),
        ({"seeds": ()}, "no seed"),
        ({"shares": (1.5,)}, "perceptual_share is 1.5"),
        ({"lambdas": (-1.0,)}, "lambda_perc is -1.0"),
        ({"lambdas": (float("nan"),)}, "finite"),
    ],
)
def test_grids_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Grid(**values).settings(Config.for_profile("smoke"))


def test_lambda_zero_is_always_in_once_and_first() -> None:
    config = Config.for_profile("smoke", perceptual_share=0.3)
    names = [setting.name for setting in Grid(lambdas=(0.0, 5e-4), shares=(0.1,)).settings(config)]
    assert names == ["lambda-0", "lambda-0.0005", "share-0.1"]
    assert Grid().settings(config)[0].config.perceptual_is_off


def test_every_setting_has_a_name_of_its_own_and_usual_values_keep_theirs() -> None:
    values = (1.0, 1.0000001, 1e-4, 5e-4, 1e-3, 1e-5, 0.1234567)
    settings = Grid(lambdas=values, shares=()).settings(SMOKE)[1:]
    assert [setting.name for setting in settings] == [
        "lambda-1", "lambda-1.0000001", "lambda-0.0001", "lambda-0.0005", "lambda-0.001", "lambda-1e-05",
        "lambda-0.1234567",
    ]  # fmt: skip
    assert Grid(lambdas=(np.float64(0.1234567),)).settings(SMOKE)[1].name == "lambda-0.1234567"


# --- the whole, on tiny storms ------------------------------------------------------------------------------------

TINY = (
    "--profile smoke --n-in 3 --n-out 2 --crop 32 --windows-per-epoch 8 --eval-windows 1 --base-channels 4 --depth 1 "
    "--epochs 1 --batch-size 4 --backbone-weights random"
).split()


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nbhelpers.stages.perceptual_unet.simulate import simulate

    folder = tmp_path_factory.mktemp("storms")
    simulate(folder, n_events=16, size=48, n_frames=8, progress=False)
    return folder


def nbhelpers_sweep(*words: str) -> int:
    return main(["sweep", "perceptual-unet", *words])


def everything(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, errors included."""
    return "".join(capsys.readouterr())


def test_two_settings_and_two_seeds_from_the_command_line(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-dir", str(storms), "--output-dir", str(tmp_path), "--run-name", "s", *TINY]
    grid = ["--lambdas", "--shares", "0.1", "--seeds", "0", "1"]
    assert nbhelpers_sweep(*place, *grid) == 0
    said = everything(capsys)
    for words in ("4 of 4: share-0.1 seed 1 (at most about", "Verdict:", "of λ = 0's (share-0.1: ", "4 runs, "):
        assert words in said
    report = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert [row["run"] for row in report["rows"]] == [f"{n}-seed{k}" for k in (0, 1) for n in ("lambda-0", "share-0.1")]
    assert report["rows"][0]["grad_share"] == 0 and 0.03 < report["rows"][1]["grad_share"] < 0.3
    assert (
        set(report["baselines"]) >= {"persistence", "advection"} and report["settings"]["share-0.1"]["grad_share"] > 0
    )
    assert imread(tmp_path / "s" / "figures" / "sweep.png").shape[1] > 900

    row = report["rows"][3]
    task = NowcastTask(Config.for_profile("smoke").replace(config_of(tmp_path / "s" / row["run"]), source="x"), storms)
    checkpoint.load_weights(checkpoint.at(tmp_path / "s" / row["checkpoint"]["path"]), task.modules)
    assert task.evaluate("val").metrics["csi_74"].value == row["val"]["csi_74"]
    assert "perceptual" not in row["val"]  # the raw loss term is no score

    assert nbhelpers_sweep(*place, *grid) == 0
    assert "epoch 1/1" not in everything(capsys)  # nothing was trained
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["rows"] == report["rows"]
    assert main(["report", str(tmp_path / "s")]) == 0
    assert "· sweep s" in everything(capsys)
    assert main(["report", str(tmp_path / "s"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sweep"] == "s"


def config_of(folder: Path) -> dict[str, Any]:
    return Run(folder).read_config()["config"]


def test_an_inert_grid_on_the_command_line(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--data-dir", str(storms), "--output-dir", str(tmp_path), "--run-name", "s", *TINY]
    assert nbhelpers_sweep(*place, "--shares") == 2  # the classical λ alone, with random features
    said = everything(capsys)
    for words in ("inert_grid", "lambda-0.0001", "lambda-0.001", "would have 5% of the gradient", "--shares 0.1"):
        assert words in said
    assert not (tmp_path / "s").exists()
    wanted = said.partition("(--lambdas ")[2].partition(")")[0]
    task = NowcastTask(config_with(storms, tmp_path), storms)
    _, effect = measure_grid(task)(Grid(lambdas=(float(wanted),), shares=())).values()
    assert effect.grad_share == pytest.approx(0.05, rel=0.1)  # the cure cures
    assert nbhelpers_sweep(*place, "--lambdas", "1e-6", "--shares", "--seeds", "0", "--force") == 0
    report = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert report["forced"] and report["verdict"]["name"] == "perceptual term inert"


def config_with(storms: Path, folder: Path) -> Config:
    """The settings that ``TINY`` means."""
    words = iter(TINY)
    changes = {flag[2:].replace("-", "_"): value for flag, value in zip(words, words, strict=True)}
    whole = {k: int(v) if v.isdigit() else v for k, v in changes.items() if k != "profile"}
    return Config.for_profile("smoke", **whole)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "3"], "--seed gives seed"),
        (["--lambda-perc", "0.1"], "give --lambdas instead"),
        (["--perceptual-share", "0.1"], "give --shares instead"),
        (["--seeds"], "has no seed"),
    ],
)
def test_what_the_grid_sets_is_set_nowhere_else(
    words: list[str], expected: str, storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nbhelpers_sweep("--data-dir", str(storms), "--output-dir", str(tmp_path), *words) == 2
    assert expected in everything(capsys)


def test_the_default_grid_is_not_refused(storms: Path, real_data: Path) -> None:
    weights = str(real_data / "weights/squeezenet1_1_caffe_features.pth")
    task = NowcastTask(dataclasses.replace(config_with(storms, storms), backbone_weights=weights), storms)
    shares = {setting: entry.grad_share for setting, entry in measure_grid(task)(Grid()).items()}
    assert next(iter(shares)) == "lambda-0" and shares.pop("lambda-0") == 0.0
    assert list(InertGrid().on_grid("perceptual", shares, cure="")) == []


def test_an_absurd_scale_makes_every_lambda_inert(storms: Path, real_data: Path, tmp_path: Path) -> None:
    weights = str(real_data / "weights/squeezenet1_1_caffe_features.pth")
    config = dataclasses.replace(config_with(storms, storms), backbone_weights=weights, perceptual_scale=1e12)
    with pytest.raises(GuardStop, match="no setting of this sweep|No setting of this sweep"):
        run_sweep(config, Grid(shares=()), storms, tmp_path / "s")
    assert not (tmp_path / "s").exists()


# --- the panel ----------------------------------------------------------------------------------------------------

LABELS = {"lambdas": "λ", "shares": "gradient shares", "seeds": "seeds"}


@dataclasses.dataclass(frozen=True)
class Shown:
    value_share: float
    grad_share: float


def shown(grid: Grid) -> dict[str, Shown]:
    """λ has as much of the gradient as it is large."""
    return {
        s.name: Shown(0.001, s.config.lambda_perc or s.config.perceptual_share or 0.0) for s in grid.settings(SMOKE)
    }


SMOKE = Config.for_profile("smoke")


def test_untouched_the_panel_returns_the_grid_it_was_given() -> None:
    panel = sweep_panel(Grid(), shown, labels=LABELS, minutes=7.5)
    assert panel.grid == Grid()
    text = panel.picture.value
    assert "5 settings x 2 seeds = 10 runs, about 75 minutes" in text and "has a say" in text and "inert" in text
    assert "cannot matter" not in text


def test_typing_redraws_and_an_inert_grid_is_called_so() -> None:
    panel = sweep_panel(Grid(), shown, labels=LABELS)
    panel.fields["shares"].value = ""
    assert panel.grid == Grid(shares=()) and "This grid cannot matter" in panel.picture.value
    panel.fields["lambdas"].value = "0.95, 1e-3"
    assert panel.grid == Grid(lambdas=(0.95, 1e-3), shares=()) and "cannot matter" not in panel.picture.value
    assert "drowns the rest" in panel.picture.value
    panel.fields["seeds"].value = "0, 1, 2"
    assert panel.grid.seeds == (0, 1, 2) and "3 settings x 3 seeds = 9 runs" in panel.picture.value


def test_the_panel_shows_every_digit() -> None:
    grid = Grid(lambdas=(1e-4, 0.12345678), shares=(), seeds=(1_000_000, 12_345_678))
    panel = sweep_panel(grid, shown, labels=LABELS)
    assert panel.fields["lambdas"].value == "0.0001, 0.12345678"
    panel.fields["shares"].value = "0.2"  # reads all fields
    assert panel.problem.value == "" and panel.grid == dataclasses.replace(grid, shares=(0.2,))


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("lambdas", "1e-4, much", "λ has &#x27;much&#x27;, expected numbers"),
        ("seeds", "0.5", "seeds has &#x27;0.5&#x27;, expected whole numbers"),
        ("seeds", "", "no seed"),
        ("shares", "2", "perceptual_share is 2.0"),
        ("lambdas", "1e-4, 1e-4", "one stands twice"),
    ],
)
def test_wrong_text_is_a_sentence_and_the_last_good_grid_stays(field: str, text: str, words: str) -> None:
    panel = sweep_panel(Grid(), shown, labels=LABELS)
    panel.fields["shares"].value = "0.2"
    before = panel.picture.value
    panel.fields[field].value = text
    assert words in panel.problem.value and panel.grid == Grid(shares=(0.2,)) and panel.picture.value == before
    panel.fields[field].value = {"lambdas": "0.3", "shares": "0.3", "seeds": "4"}[field]
    assert panel.problem.value == "" and panel.grid != Grid(shares=(0.2,))


def test_what_a_sweep_returns(tmp_path: Path) -> None:
    rows = [{"stopped": "STOP"}, {"stopped": None}]
    assert not Swept(tmp_path, {"rows": rows}, False).all_stopped
    assert Swept(tmp_path, {"rows": rows[:1]}, False).all_stopped
    assert not Swept(tmp_path, {"rows": []}, True).all_stopped
