"""The sweep of the composite loss: its grid, the rule case by case, its picture, and a real one."""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread
from matplotlib.patches import FancyArrowPatch

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.simulate import simulate
from nbhelpers.stages.rainfall_cvae.sweep import Grid, acting_weights, measure_grid, run_sweep
from nbhelpers.stages.rainfall_cvae.sweep_figure import sweep_figure, sweep_figures
from nbhelpers.stages.rainfall_cvae.sweep_verdict import dilution, judge, points
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.training import checkpoint
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.metrics import mean_metric
from nbhelpers.training.sweep import Swept
from nbhelpers.training.sweep_scores import compare

# --- the grid -----------------------------------------------------------------------------------------------------

QUICK = Config.for_profile("quick")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tail_shares": (), "lambdas": ()}, "no setting beside plain-mae"),
        ({"tail_shares": (0.3, 0.3)}, "tail_shares has 0.3, 0.3, where one stands twice"),
        ({"lambdas": (0.1, 0.1)}, "lambdas has 0.1, 0.1"),
        ({"seeds": (1, 1)}, "seeds has 1, 1"),
        ({"seeds": ()}, "no seed"),
        ({"tail_shares": (0.0,)}, "plain-mae, without the term, is always in"),
        ({"tail_shares": (1.0,)}, "tail_shares has 1.0, expected numbers between 0 and 1"),
        ({"tail_shares": (float("nan"),)}, "tail_shares has nan"),
        ({"lambdas": (0.0,)}, "lambdas has 0.0, expected weights above 0"),
        ({"lambdas": (-1.0,)}, "lambdas has -1.0"),
        ({"lambdas": (float("inf"),)}, "lambdas has inf"),
    ],
)
def test_grids_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Grid(**values)
    assert words in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"lambda_ext": 2.0}, {"dilute_tail": True}, {"preset": "classical"}])
def test_settings_differ_in_the_weight_on_extremes_and_in_nothing_else(changes: dict[str, Any]) -> None:
    base = QUICK.replace({"d_z": 4, "lr": 0.01, **changes}, source="the test")
    found = {one.name: one.config for one in Grid((0.3, 0.5), (0.05, 2.0)).settings(base)}
    assert {name: (one.tail_share, one.lambda_ext, one.dilute_tail) for name, one in found.items()} == {
        "plain-mae": (0.0, None, False),
        "share-0.3": (0.3, None, False),
        "share-0.5": (0.5, None, False),
        "lambda-0.05": (None, 0.05, False),
        "lambda-0.05-diluted": (None, 0.05, True),
        "lambda-2": (None, 2.0, False),
        "lambda-2-diluted": (None, 2.0, True),
    }
    assert list(found)[0] == "plain-mae"
    varied = {"tail_share", "lambda_ext", "dilute_tail", "likelihood"}
    for one in found.values():
        assert one.likelihood == "tail_mae"
        assert {k: v for k, v in vars(one).items() if k not in varied} == {
            k: v for k, v in vars(base).items() if k not in varied
        }


def test_without_diluted_and_with_weights_that_print_alike() -> None:
    names = [one.name for one in Grid((), (0.05, 0.05000000001), diluted=False).settings(QUICK)]
    assert len(set(names)) == 3 and names[:2] == ["plain-mae", "lambda-0.05"] and "diluted" not in "".join(names)


# --- the rule -----------------------------------------------------------------------------------------------------

Pairs = Sequence[tuple[float, float]]  # MAE_tail and MAE_all, by seed
NAMES = ("mae_all", "mae_tail")
SHARE, WEIGHT, DILUTED = "share-0.3", "lambda-0.05", "lambda-0.05-diluted"


def table(
    settings: Mapping[str, Pairs | None],
    *,
    test: Mapping[str, Pairs | None] | None = None,
    planned: int | None = None,
    n: int = 8,
    acting: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A sweep's report with all that the rule looks at, put together as the sweep does; None: guards stopped it."""
    rows = [
        {"setting": name, "seed": seed, "stopped": "STOP" if pairs is None else None}
        for name, pairs in settings.items()
        for seed in range(3 if pairs is None else len(pairs))
    ]
    report: dict[str, Any] = {
        "sweep": "s", "reference": "plain-mae", "headlines": list(NAMES), "rows": rows, "seeds": [0, 1, 2],
        "planned": len(rows) if planned is None else planned, "settings": dict.fromkeys(settings),
    }  # fmt: skip
    blocks, one = np.linspace(-0.01, 0.01, n)[:, None], np.ones((n, 1))
    units = {"mae_all": "mm/day", "mae_tail": "median of 16, mm/day, truth >= P95 = 12 mm/day, n = 1,234 pixels on 56"}
    for split, pairs_of in (("val", settings), ("test", settings if test is None else test)):
        scores = {
            name: {
                seed: {
                    metric: mean_metric(value + blocks, one, labels=("all",), better="lower", units=units[metric])
                    for metric, value in zip(NAMES, pair[::-1], strict=True)
                }
                for seed, pair in enumerate(pairs)
            }
            for name, pairs in pairs_of.items()
            if pairs is not None
        }
        report[split] = compare(scores, "plain-mae", NAMES)
    report["best"], report["gates"], report["verdict"] = judge(report, acting)
    return report


BASE: dict[str, Pairs | None] = {"plain-mae": [(10.0, 1.0), (11.0, 1.1), (9.0, 0.9)]}
GOOD = [(9.0, 1.02), (10.0, 1.13), (8.5, 0.94)]
BETTER = [(8.0, 1.04), (9.0, 1.15), (7.5, 0.94)]
DEAR = [(5.0, 1.2), (6.0, 1.3), (5.5, 1.1)]
DEAR_ONCE = [(8.0, 1.0), (9.0, 1.17), (7.5, 0.9)]  # 6 % more with one seed
WORSE = [(10.5, 1.01), (11.5, 1.11), (9.5, 0.91)]
WORSE_ONCE = [(8.0, 1.0), (11.1, 1.1), (7.0, 0.9)]
BOTH_WRONG = [(10.5, 1.2), (11.5, 1.3), (9.5, 1.1)]


@pytest.mark.parametrize(
    ("report", "best", "name", "words"),
    [
        (table(BASE | {SHARE: GOOD}), SHARE, "success", "share-0.3 (MAE_tail -8.2% and MAE_all +3.1% against plain"),
        (table(BASE | {SHARE: GOOD}), SHARE, "success", "truth >= P95 = 12 mm/day, n = 1,234 pixels on 56."),
        (table(BASE | {SHARE: GOOD, WEIGHT: BETTER}), WEIGHT, "success", ""),
        (table(BASE | {SHARE: GOOD, WEIGHT: DEAR}), SHARE, "success", ""),
        # diluted is a mistake, whatever it scores
        (table(BASE | {SHARE: GOOD, WEIGHT: DEAR, DILUTED: BETTER}), SHARE, "success", "lambda-0.05 diluted: MAE_tail"),
        (table(BASE | {DILUTED: BETTER, SHARE: None}), None, "undecided", "No seed has a score on extremes of both"),
        (table(BASE | {SHARE: DEAR}), None, "no setting meets the floor", "lower the shares and weights"),
        (table(BASE | {SHARE: WORSE}), None, "no setting meets the floor", "raise the shares and weights"),
        (table(BASE | {SHARE: WORSE, WEIGHT: DEAR}), None, "no setting meets the floor", "between those that are bett"),
        (table(BASE | {SHARE: BOTH_WRONG}), None, "no setting meets the floor", "between those that are better on"),
        # on average they do, and with one of the seeds they do not
        (table(BASE | {SHARE: DEAR_ONCE}), None, "no setting meets the floor", "holds on average, and not with every"),
        (table(BASE | {SHARE: WORSE_ONCE}), None, "no setting meets the floor", "holds on average, and not with every"),
        (table(BASE | {SHARE: GOOD}, n=5), SHARE, "undecided", "n = 5 blocks of days, at least 6"),
        (table(BASE | {SHARE: GOOD[:2]}), SHARE, "undecided", "2 seeds cannot show that it holds: the floor asks"),
        (table(BASE | {SHARE: GOOD[:1]}), SHARE, "undecided", "one seed cannot show"),
        (table(BASE | {SHARE: DEAR_ONCE[:2]}), None, "no setting meets the floor", ""),
        (table(BASE | {SHARE: GOOD}, planned=9), None, "not finished", "6 of 9 runs are done"),
        (table({"plain-mae": None, SHARE: None}), None, "stopped", "every run"),
        (table(BASE | {SHARE: None, WEIGHT: GOOD}), WEIGHT, "success", ""),
        (table({"plain-mae": None, SHARE: GOOD}), None, "undecided", "do what the guards said"),
        # decided on validation, whatever test says
        (table(BASE | {SHARE: GOOD, WEIGHT: DEAR}, test=BASE | {SHARE: DEAR, WEIGHT: GOOD}), SHARE, "success", ""),
    ],
)  # fmt: skip
def test_the_rule(report: dict[str, Any], best: str | None, name: str, words: str) -> None:
    verdict = report["verdict"]
    assert (report["best"], verdict.name) == (best, name), verdict
    assert words in f"{verdict.meaning} {verdict.next_step}", verdict


def test_what_dilution_did_is_said_at_equal_weight_and_seed() -> None:
    settings = BASE | {SHARE: GOOD, WEIGHT: [(8.0, 1.0), (10.0, 1.0), (8.0, 1.0)], DILUTED: [(10.0, 0.9), (11.0, 0.9)]}
    acting = {WEIGHT: 0.05, DILUTED: 0.0123}
    report = table(settings, acting=acting)
    (said,) = dilution(report, acting)
    assert said == (
        "lambda-0.05 diluted acted with a weight of 0.0123 instead of 0.05: MAE_tail +17.5% and MAE_all -10.0% against "
        "undiluted at equal seed (MAE_tail by seed: +25.0%, +10.0%)."
    )
    assert said in report["verdict"].meaning
    assert "acted" not in table(settings)["verdict"].meaning
    assert dilution(table(BASE | {SHARE: GOOD, DILUTED: GOOD}), {}) == []


def test_gates_are_of_both_splits_and_name_the_seeds_and_the_events() -> None:
    report = table(BASE | {SHARE: GOOD}, test=BASE | {SHARE: [(10.5, 1.2), (10.0, 1.1), (8.0, 0.9)]})
    tail = f"{SHARE} has a smaller error on extremes than plain-mae on"
    events = "by seed; truth >= P95 = 12 mm/day, n = 1,234 pixels on 56"
    assert [(gate.name, gate.passed, gate.value) for gate in report["gates"]] == [
        (f"{tail} validation", True, f"-10.0%, -9.1%, -5.6%, {events}"),
        (
            f"{SHARE} has at most 5 % more error over all pixels on validation",
            True,
            "+2.0%, +2.7%, +4.4%, by seed; n = 8 blocks of days",
        ),
        (f"{tail} test", False, "+5.0%, -9.1%, -11.1%, by seed; n = 8 blocks of days"),
        (
            f"{SHARE} has at most 5 % more error over all pixels on test",
            False,
            "+20.0%, +0.0%, +0.0%, by seed; n = 8 blocks of days",
        ),
    ]  # fmt: skip
    nearest = table(BASE | {SHARE: DEAR, WEIGHT: WORSE, DILUTED: GOOD})["gates"]
    assert {gate.name.split()[0] for gate in nearest} == {WEIGHT}


def test_seeds_are_compared_with_themselves_and_only_where_extremes_were_scored() -> None:
    report = table(BASE | {SHARE: GOOD})
    report["val"][SHARE]["mae_tail"]["seeds"] = {"1": 9.9, "2": None}
    (point,) = points(report, "val")
    assert dict(point.by_seed) == {"1": pytest.approx((0.9, 1.13 / 1.1))}


# --- the picture --------------------------------------------------------------------------------------------------


def drawn(report: dict[str, Any], split: str = "val") -> Any:
    figure = sweep_figure(report, split=split)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), dpi=60)
    return figure


def test_the_picture_shows_every_run_and_where_dilution_leads() -> None:
    test = {"plain-mae": BASE["plain-mae"], SHARE: WORSE}
    report = table(BASE | {SHARE: GOOD, WEIGHT: BETTER, DILUTED: WORSE[:2]}, test=test)
    figure = drawn(report)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines[SHARE].get_xdata()) == pytest.approx([1.02, 1.13 / 1.1, 0.94 / 0.9])
    assert list(lines[SHARE].get_ydata()) == pytest.approx([0.9, 10 / 11, 8.5 / 9])
    weight, diluted = lines[f"{WEIGHT}, best"], lines[f"{DILUTED}\n(arrows lead there)"]
    assert to_hex(weight.get_color()) == to_hex(diluted.get_color()) != to_hex(lines[SHARE].get_color())
    assert diluted.get_markerfacecolor() == "none" and len(diluted.get_xdata()) == 2
    assert sum(isinstance(patch, FancyArrowPatch) for patch in axes.patches) == 2
    assert lines["plain-mae"].get_xydata().tolist() == [[1, 1]]
    assert {text.get_text() for text in axes.texts} == {"0", "1", "2"}
    assert (
        "8 blocks of days, seeds 0, 1, 2 (numbers)" in figure.get_suptitle() and "1,234 pixels" in figure.get_suptitle()
    )
    (shown,) = drawn(report, "test").axes
    assert list(next(line for line in shown.get_lines() if line.get_label() == SHARE).get_ydata())[0] == 1.05
    assert [name for name, _ in sweep_figures(report)] == ["sweep", "sweep_test"]


def test_the_picture_holds_the_floor_however_far_the_runs_are_from_it() -> None:
    for pairs in (DEAR, WORSE, [(10.0, 1.0)] * 3):
        (axes,) = drawn(table(BASE | {SHARE: pairs})).axes
        assert axes.get_xlim()[0] < 1 < 1.05 < axes.get_xlim()[1] and axes.get_ylim()[0] < 1 < axes.get_ylim()[1]


def test_the_picture_without_a_finished_run_of_the_reference() -> None:
    (axes,) = drawn(table({"plain-mae": None, SHARE: GOOD})).axes
    assert not axes.patches and "no seed has scores of both plain-mae" in axes.texts[0].get_text()


# --- a real one ---------------------------------------------------------------------------------------------------

SMALL = Config.for_profile(
    "smoke", base_filters=4, d_y=4, d_z=2, members=4, epochs=2, eval_days=30, test_days=30
)  # fmt: skip
GRID = Grid(tail_shares=(0.4,), lambdas=(0.5,), seeds=(0,))


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days") / "simulated"
    return simulate(folder, n_years=3, seed=0, factor=2, coarse=(6, 6), progress=False)


@pytest.fixture(scope="module")
def swept(days: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return run_sweep(SMALL, GRID, days, tmp_path_factory.mktemp("sweeps") / "tail")


def test_all_settings_trained_scored_and_judged(swept: Swept, days: Path) -> None:
    report = json.loads((swept.folder / "sweep.json").read_text())
    names = ["plain-mae", "share-0.4", "lambda-0.5", "lambda-0.5-diluted"]
    assert [row["run"] for row in report["rows"]] == [f"{name}-seed0" for name in names]
    assert [row["stopped"] for row in report["rows"]] == [None] * 4 and report["term"] == "mae_ext"
    assert report["decided_by"] == ["mae_all", "mae_tail"]
    shares = [row["grad_share"] for row in report["rows"]]
    assert shares[0] == report["settings"]["plain-mae"]["grad_share"] == 0
    assert shares[1] == pytest.approx(0.4, abs=0.1) and 0 < shares[3] < shares[2]
    assert report["settings"]["share-0.4"]["grad_share"] == pytest.approx(0.4, abs=1e-3)
    assert {one["config"]["likelihood"] for one in report["settings"].values()} == {"tail_mae"}
    row = report["rows"][1]
    task = RainfallTask(dataclasses.replace(GRID.settings(SMALL)[1].config, seed=0), days)
    checkpoint.load_weights(checkpoint.at(swept.folder / row["checkpoint"]["path"]), task.modules)
    for split in ("val", "test"):
        metrics = task.evaluate(split).metrics
        for name in ("crps", "mae_all", "mae_tail"):
            assert metrics[name].value == pytest.approx(row[split][name], rel=1e-4)
    text = (swept.folder / "sweep.md").read_text()
    assert "lambda-0.5 diluted acted with a weight of" in text and "figures/sweep_test.png" in text
    for name in ("sweep", "sweep_test"):
        assert imread(swept.folder / "figures" / f"{name}.png").shape[1] > 700


def test_the_ledgers_say_what_the_diluted_weight_is(swept: Swept) -> None:
    acting = acting_weights(swept.folder, swept.report["rows"])
    assert acting["lambda-0.5"] == pytest.approx(0.5, rel=0.01)
    assert 0 < acting["lambda-0.5-diluted"] < 0.48
    said = f"acted with a weight of {acting['lambda-0.5-diluted']:.3g} instead of 0.5"
    assert said in swept.report["verdict"]["meaning"]


def test_a_second_call_trains_nothing(swept: Swept, days: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = {path: path.stat().st_mtime_ns for path in swept.folder.glob("*/checkpoints/*/state.pt")}
    assert states
    again = run_sweep(SMALL, GRID, days, swept.folder)
    assert "epoch 1/2" not in "".join(capsys.readouterr())
    for row, first in zip(again.report["rows"], swept.report["rows"], strict=True):
        for split in ("val", "test"):  # read from what the first call kept
            assert row.pop(split) == pytest.approx(first[split], rel=1e-9, nan_ok=True)
        assert row == {key: value for key, value in first.items() if key not in ("val", "test")}
    assert again.report["verdict"] == swept.report["verdict"]
    assert {path: path.stat().st_mtime_ns for path in swept.folder.glob("*/checkpoints/*/state.pt")} == states


def test_the_panel_is_told_what_a_grid_would_mean(days: Path) -> None:
    assert SMALL.likelihood == "hurdle_gamma"  # as profiles have it
    entries = measure_grid(RainfallTask(SMALL, days))(Grid((0.2,), (0.05, 0.5)))
    found = {name: entry.grad_share for name, entry in entries.items()}
    assert list(found) == [
        "plain-mae", "share-0.2", "lambda-0.05", "lambda-0.05-diluted", "lambda-0.5", "lambda-0.5-diluted"
    ]  # fmt: skip
    assert found["plain-mae"] == 0 and found["share-0.2"] == pytest.approx(0.2, abs=1e-3)
    assert found["lambda-0.05-diluted"] < found["lambda-0.05"] < found["lambda-0.5"]
    part = entries["lambda-0.5"].events / SMALL.batch_size
    assert entries["lambda-0.5-diluted"].effective_weight == pytest.approx(0.5 * part, rel=1e-3) and part < 1


def test_a_grid_that_cannot_matter_is_refused_before_training(days: Path, tmp_path: Path) -> None:
    with pytest.raises(GuardStop) as stop:
        run_sweep(SMALL, Grid((), (1e-9,), diluted=False, seeds=(0,)), days, tmp_path / "s")
    assert stop.value.finding.name == "inert_grid" and "--tail-shares 0.3" in str(stop.value)
    assert not (tmp_path / "s").exists()
