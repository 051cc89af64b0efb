"""The sweep of super-resolution: its grid, the rule case by case, its picture, and a real one."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentinel
from matplotlib.colors import to_hex
from matplotlib.image import imread

from nbhelpers.cli import main
from nbhelpers.core.errors import UserError
from nbhelpers.stages.super_resolution.config import Config
from nbhelpers.stages.super_resolution.sweep import Grid, measure_grid, run_sweep
from nbhelpers.stages.super_resolution.sweep_figure import sweep_figure
from nbhelpers.stages.super_resolution.sweep_verdict import adversarial_effect, judge, points
from nbhelpers.stages.super_resolution.task import SuperResolutionTask
from nbhelpers.training import checkpoint
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.history import read_rows
from nbhelpers.training.metrics import mean_metric
from nbhelpers.training.sweep import Swept
from nbhelpers.training.sweep_scores import compare, effects, spreads

# --- the grid -----------------------------------------------------------------------------------------------------

QUICK = Config.for_profile("quick")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"perceptual_shares": ()}, "no setting beside pixel-only"),
        ({"adversarial_shares": ()}, "one adversarial share, 0 for none"),
        ({"perceptual_shares": (0.3, 0.3)}, "perceptual_shares has 0.3, 0.3, where one stands twice"),
        ({"seeds": (1, 1)}, "seeds has 1, 1"),
        ({"seeds": ()}, "no seed"),
        ({"perceptual_shares": (0.0, 0.3)}, "pixel-only, without the term, is always in"),
        ({"perceptual_shares": (float("nan"),)}, "perceptual_shares has nan"),
        ({"adversarial_shares": (-0.1,)}, "adversarial_shares has -0.1"),
        ({"adversarial_shares": (1.0,)}, "adversarial_shares has 1.0"),
        ({"perceptual_shares": (0.9,)}, "leave nothing for the pixel error"),
    ],
)
def test_grids_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Grid(**values).settings(QUICK)
    assert words in str(caught.value)


def test_every_perceptual_share_with_every_adversarial_one_and_the_first_stage_alone_first() -> None:
    config = QUICK.replace({"lambda_perc": 2.0, "lambda_adv": 0.01, "stage1_epochs": 7}, source="the test")
    found = {one.name: one.config for one in Grid().settings(config)}
    assert {name: (one.stage2_epochs, one.perceptual_share, one.adversarial_share) for name, one in found.items()} == {
        "pixel-only": (0, 0, 0),
        "perceptual-0.3": (8, 0.3, 0),
        "perceptual-0.3-adversarial-0.1": (8, 0.3, 0.1),
        "perceptual-0.6": (8, 0.6, 0),
        "perceptual-0.6-adversarial-0.1": (8, 0.6, 0.1),
    }
    assert list(found)[0] == "pixel-only"
    for one in found.values():
        assert (one.lambda_perc, one.lambda_adv, one.stage1_epochs) == (None, None, 7)


def test_shares_that_print_alike_get_folders_of_their_own() -> None:
    near = Grid(perceptual_shares=(0.3, 0.3000000001), adversarial_shares=(0.1, 0.1000000001))
    names = [one.name for one in near.settings(QUICK)]
    assert len(set(names)) == 5


def test_there_must_be_a_second_stage() -> None:
    with pytest.raises(UserError, match="stage2_epochs is 0, so there is no second stage"):
        Grid().settings(QUICK.replace({"stage2_epochs": 0}, source="the test"))


# --- the rule -----------------------------------------------------------------------------------------------------

Pairs = Sequence[tuple[float, float]]  # PSNR and LPIPS, by seed
NAMES = ("psnr", "lpips", "rapsd_ratio")
PLAIN = "perceptual-0.3"
BOTH = "perceptual-0.3-adversarial-0.1"


def table(
    settings: Mapping[str, Pairs | None],
    *,
    test: Mapping[str, Pairs | None] | None = None,
    planned: int | None = None,
    n: int = 8,
) -> dict[str, Any]:
    """A sweep's report with all that the rule looks at, put together as the sweep does; None: guards stopped it."""
    rows = [
        {"setting": name, "seed": seed, "stopped": "STOP" if pairs is None else None}
        for name, pairs in settings.items()
        for seed in range(2 if pairs is None else len(pairs))
    ]
    shares = {name: [float(word) for word in name.split("-")[1::2] if word[0] == "0"] for name in settings}
    report: dict[str, Any] = {
        "sweep": "s", "reference": "pixel-only", "headlines": list(NAMES), "rows": rows, "seeds": [0, 1],
        "planned": len(rows) if planned is None else planned,
        "baselines": {
            "bicubic": {"psnr": 29.2, "lpips": 0.7, "rapsd_ratio": 0.2},
            "bicubic_projected": {"psnr": 30.0, "lpips": 0.35, "rapsd_ratio": 0.3},
        },
        "settings": {
            name: {"config": dict(zip(("perceptual_share", "adversarial_share"), [*found, 0.0, 0.0], strict=False))}
            for name, found in shares.items()
        },
    }  # fmt: skip
    places, one = np.linspace(-0.01, 0.01, n)[:, None], np.ones((n, 1))
    for split, pairs_of in (("val", settings), ("test", settings if test is None else test)):
        scores = {
            name: {
                seed: {
                    metric: mean_metric(value + places, one, labels=("all",), better=better, units="1")
                    for metric, value, better in zip(
                        NAMES, (*pair, 1.5 - 2 * pair[1]), ("higher", "lower", "one"), strict=True
                    )
                }
                for seed, pair in enumerate(pairs)
            }
            for name, pairs in pairs_of.items()
            if pairs is not None
        }
        report[split] = compare(scores, "pixel-only", NAMES)
    report["spread"] = {split: spreads(report[split], NAMES) for split in ("val", "test")}
    report["effects"] = {split: effects(report[split], report["spread"][split]) for split in ("val", "test")}
    report["best"], report["gates"], report["verdict"] = judge(report)
    return report


BASE: dict[str, Pairs | None] = {"pixel-only": [(30.5, 0.40), (30.7, 0.41)]}
SHARP = [(30.0, 0.300), (30.21, 0.311)]
SHARPEST = [(29.0, 0.200), (29.19, 0.211)]
DEAR = [(28.0, 0.10), (28.1, 0.11)]
DEAR_ONCE = [(28.4, 0.10), (28.9, 0.11)]  # 2.1 and 1.8 dB
BLUNT = [(30.4, 0.42), (30.6, 0.43)]
NOISY = [(30.4, 0.30), (30.6, 0.45)]


@pytest.mark.parametrize(
    ("report", "best", "name", "words"),
    [
        (table(BASE | {PLAIN: SHARP}), PLAIN, "success", "lpips -0.0995 and PSNR -0.49 dB against pixel-only"),
        (table(BASE | {PLAIN: SHARP, BOTH: SHARPEST}), BOTH, "success", "-share 0.3 --adversarial-share 0.1,"),
        (table(BASE | {PLAIN: SHARP, BOTH: DEAR}), PLAIN, "success", "--adversarial-share 0,"),
        (table(BASE | {PLAIN: SHARP, BOTH: DEAR_ONCE}), PLAIN, "success", ""),  # within the price on average alone
        (table(BASE | {PLAIN: DEAR}), "pixel-only", "too dear", "costs more than 2 dB of PSNR; nearest is perceptual-"),
        (table(BASE | {PLAIN: BLUNT}), "pixel-only", "pixel-only is best", "No second stage lowers lpips;"),
        (table(BASE | {PLAIN: BLUNT, BOTH: DEAR}), "pixel-only", "pixel-only is best", "lowers lpips at 2 dB of PSNR"),
        (table(BASE | {PLAIN: NOISY}), PLAIN, "not shown to matter", "But lpips: not shown to matter"),
        (table(BASE | {PLAIN: SHARP}, n=5), PLAIN, "undecided", "n = 5 groups and at least 6"),
        (table({"pixel-only": [(30.5, 0.4)], PLAIN: [(30, 0.3)]}), PLAIN, "undecided", "add a seed: --seeds 0 1"),
        (table(BASE | {PLAIN: SHARP}, planned=9), None, "not finished", "4 of 9 runs are done"),
        (table({"pixel-only": None, PLAIN: None}), None, "stopped", "every run"),
        (table(BASE | {PLAIN: None, BOTH: SHARP}), BOTH, "success", ""),
        (table({"pixel-only": None, PLAIN: SHARP}), None, "undecided", "No seed has both pixel-only and another"),
        # decided on validation, whatever test says
        (table(BASE | {PLAIN: SHARP, BOTH: BLUNT}, test=BASE | {PLAIN: DEAR, BOTH: SHARP}), PLAIN, "success", ""),
    ],
)  # fmt: skip
def test_the_rule(report: dict[str, Any], best: str | None, name: str, words: str) -> None:
    verdict = report["verdict"]
    assert (report["best"], verdict.name) == (best, name), verdict
    assert words in f"{verdict.meaning} {verdict.next_step}", verdict


def test_what_the_adversarial_term_did_is_said_at_equal_share_and_seed() -> None:
    report = table(
        BASE | {PLAIN: SHARP, BOTH: SHARPEST, "perceptual-0.6": DEAR, "perceptual-0.7-adversarial-0.1": DEAR}
    )
    said = adversarial_effect(report, points(report, "val"))
    assert said.startswith("Adding the adversarial term changed lpips by -0.1 and PSNR by -1.01 dB (mean of 2 pairs")
    assert said in report["verdict"].meaning
    alone = table(BASE | {PLAIN: SHARP})
    assert adversarial_effect(alone, points(alone, "val")) == "" and "adversarial term" not in alone["verdict"].meaning


def test_a_cheaper_setting_that_is_as_sharp_is_named() -> None:
    near = table(BASE | {PLAIN: [(30.3, 0.31), (30.5, 0.30)], BOTH: [(29.5, 0.295), (29.7, 0.305)]})
    assert near["best"] == BOTH and f"and cheaper: {PLAIN} (-0.20 dB)" in near["verdict"].meaning
    assert "cheaper" not in table(BASE | {PLAIN: SHARP, BOTH: SHARPEST})["verdict"].meaning


def test_gates_are_of_both_splits_and_name_the_seeds() -> None:
    report = table(BASE | {PLAIN: SHARP}, test=BASE | {PLAIN: [(28.4, 0.45), (30.0, 0.35)]})
    assert [(gate.name, gate.passed, gate.value) for gate in report["gates"]] == [
        (f"{PLAIN} has a lower lpips than pixel-only on validation", True, "-0.1, -0.099, by seed; n = 8 places"),
        (
            f"{PLAIN} is at most 2 dB of PSNR below pixel-only on validation",
            True,
            "-0.50, -0.49 dB, by seed; n = 8 places",
        ),
        (f"{PLAIN} has a lower lpips than pixel-only on test", False, "+0.05, -0.06, by seed; n = 8 places"),
        (f"{PLAIN} is at most 2 dB of PSNR below pixel-only on test", False, "-2.10, -0.70 dB, by seed; n = 8 places"),
    ]
    nearest = table(BASE | {PLAIN: DEAR, BOTH: DEAR_ONCE})["gates"]
    assert {gate.name.split()[0] for gate in nearest} == {BOTH}


def test_seeds_are_compared_with_themselves() -> None:
    report = table({"pixel-only": [(30.5, 0.40), (31.5, 0.2)], PLAIN: [(30.0, 0.3)]})
    (point,) = points(report, "val")
    assert dict(point.by_seed) == {"0": pytest.approx((-0.1, 0.5))}


# --- the picture --------------------------------------------------------------------------------------------------


def test_the_plane_shows_every_run_in_the_colour_of_its_setting() -> None:
    report = table(BASE | {PLAIN: SHARP, BOTH: SHARPEST}, test={"pixel-only": BASE["pixel-only"], PLAIN: BLUNT})
    figure = sweep_figure(report)
    figure.savefig(io.BytesIO(), dpi=60)
    plane = figure.axes[0]
    drawn = {line.get_label(): line for line in plane.get_lines() if not line.get_label().startswith("_")}
    for name, label in (("pixel-only", "pixel-only"), (PLAIN, PLAIN), (BOTH, f"{BOTH}, best")):
        cells = report["val"][name]
        assert list(drawn[label].get_xdata()) == list(cells["lpips"]["seeds"].values())
        assert list(drawn[label].get_ydata()) == list(cells["psnr"]["seeds"].values())
    assert len({to_hex(line.get_color()) for line in drawn.values()}) == 5
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "bicubic, outside: lpips 0.7, 29.20 dB" in labels and "bicubic + projection" in labels
    assert any("at most 2 dB below (down to 28.60)" in label for label in labels)
    assert plane.get_xlim()[1] < 0.5 and "8 validation places, seeds 0, 1" in figure.get_suptitle()
    assert figure.axes[1].get_xlim()[1] > 1  # the truth's power is in the picture, though no run comes near it
    test = sweep_figure(report, split="test")
    shown = {line.get_label(): line for line in test.axes[0].get_lines()}
    assert list(shown[PLAIN].get_xdata()) == pytest.approx([0.42, 0.43])
    assert "bicubic" not in "".join(text.get_text() for text in test.legends[0].get_texts())  # not scored there
    assert to_hex(shown[PLAIN].get_color()) == to_hex(drawn[PLAIN].get_color())


def test_a_hundredth_of_a_decibel_does_not_fill_the_plane() -> None:
    figure = sweep_figure(table(BASE | {"pixel-only": [(30.5, 0.4), (30.51, 0.4)], PLAIN: [(30.5, 0.3), (30.51, 0.3)]}))
    bottom, top = figure.axes[0].get_ylim()
    assert top - bottom == pytest.approx(0.1) and bottom < 30.5 < 30.51 < top


def test_the_plane_without_a_finished_run_of_the_reference() -> None:
    figure = sweep_figure(table({"pixel-only": None, PLAIN: SHARP}))
    figure.savefig(io.BytesIO(), dpi=60)
    assert not figure.axes[0].patches and PLAIN in [text.get_text() for text in figure.legends[0].get_texts()]


# --- a real one ---------------------------------------------------------------------------------------------------

SMALL = Config.for_profile(
    "smoke", features=8, growth=4, discriminator_features=8, crop=32, crops_per_epoch=16, stage1_epochs=2,
    stage2_epochs=1, adversarial_ramp=0.0, backbone_weights="random", bicubic_by=9,
)  # fmt: skip
GRID = Grid(perceptual_shares=(0.4,), adversarial_shares=(0.0,), seeds=(0,))


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    sentinel.write_v2(folder, dict.fromkeys(sentinel.TILES, 2), size=48)
    return folder


@pytest.fixture(scope="module")
def swept(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return run_sweep(SMALL, GRID, patches, tmp_path_factory.mktemp("sweeps") / "shares")


def test_two_settings_trained_scored_and_judged(swept: Swept, patches: Path) -> None:
    report = json.loads((swept.folder / "sweep.json").read_text())
    assert [row["run"] for row in report["rows"]] == ["pixel-only-seed0", "perceptual-0.4-seed0"]
    assert [row["stopped"] for row in report["rows"]] == [None, None] and report["verdict"]["name"] == "undecided"
    assert report["settings"]["pixel-only"]["grad_share"] == report["rows"][0]["grad_share"] == 0
    assert report["settings"]["perceptual-0.4"]["grad_share"] == pytest.approx(0.4, abs=1e-3)
    assert report["rows"][1]["grad_share"] == pytest.approx(0.4, abs=0.1)
    assert any("The perceptual term uses RANDOM features" in remark for remark in report["remarks"])
    row = report["rows"][1]
    config = GRID.settings(SMALL)[1].config
    task = SuperResolutionTask(dataclasses.replace(config, seed=0), patches)
    checkpoint.load_weights(checkpoint.at(swept.folder / row["checkpoint"]["path"]), task.modules)
    for split in ("val", "test"):
        metrics = task.evaluate(split).metrics
        for name in ("psnr", "feature_distance_random", "rapsd_ratio"):
            assert metrics[name].value == pytest.approx(row[split][name], rel=1e-4)
    text = (swept.folder / "sweep.md").read_text()
    assert "perceptual-0.4" in text and "spread" in text and "figures/sweep_test.png" in text
    for name in ("sweep", "sweep_test"):
        assert imread(swept.folder / "figures" / f"{name}.png").shape[1] > 900


def test_the_first_stage_of_a_seed_is_the_same_in_all_settings(swept: Swept) -> None:
    alone, both = (
        read_rows(swept.folder / f"{name}-seed0" / "history.csv") for name in ("pixel-only", "perceptual-0.4")
    )
    assert [row["phase"] for row in alone] == ["pixel"] * 2 and len(both) == 3
    for one, other in zip(alone, both[:2], strict=True):
        for name in ("train_pixel", "val_psnr", "val_feature_distance_random"):
            assert one[name] == other[name]


def test_a_second_call_trains_nothing(swept: Swept, patches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = {path: path.stat().st_mtime_ns for path in swept.folder.glob("*/checkpoints/*/state.pt")}
    assert states
    again = run_sweep(SMALL, GRID, patches, swept.folder)
    assert "epoch 1/2" not in "".join(capsys.readouterr())
    assert again.report["rows"] == swept.report["rows"] and again.report["verdict"] == swept.report["verdict"]
    assert {path: path.stat().st_mtime_ns for path in swept.folder.glob("*/checkpoints/*/state.pt")} == states


def test_the_panel_is_told_what_a_grid_would_mean(patches: Path) -> None:
    shares = measure_grid(SuperResolutionTask(SMALL, patches))
    found = {name: entry.grad_share for name, entry in shares(Grid((0.2,), (0.0, 0.1), (3,))).items()}
    assert found == pytest.approx(
        {"pixel-only": 0, "perceptual-0.2": 0.2, "perceptual-0.2-adversarial-0.1": 0.2}, abs=1e-3
    )


def test_a_grid_that_cannot_matter_is_refused_before_training(patches: Path, tmp_path: Path) -> None:
    with pytest.raises(GuardStop) as stop:
        run_sweep(SMALL, Grid((0.001, 0.002), (0.0,), (0,)), patches, tmp_path / "s")
    assert stop.value.finding.name == "inert_grid" and "--perceptual-shares 0.3" in str(stop.value)
    assert not (tmp_path / "s").exists()


def test_the_command_line(
    swept: Swept, patches: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["sweep", "super-resolution", "--help"])
    said = capsys.readouterr().out
    assert "--perceptual-shares" in said and "--adversarial-shares" in said and "--seeds" in said
    words = (
        "--profile smoke --features 8 --growth 4 --discriminator-features 8 --crop 32 --crops-per-epoch 16 "
        "--stage1-epochs 2 --stage2-epochs 1 --adversarial-ramp 0 --backbone-weights random --bicubic-by 9"
    ).split()
    place = ["--data-dir", str(patches), "--output-dir", str(swept.folder.parent), "--run-name", swept.folder.name]
    start = ["sweep", "super-resolution", *place, *words]
    grid = ["--perceptual-shares", "0.4", "--adversarial-shares", "0", "--seeds", "0"]
    assert main([*start, *grid]) == 0  # the runs of the fixture, by other means
    said = "".join(capsys.readouterr())
    assert "2 of 2: perceptual-0.4 seed 0" in said and "Verdict: undecided" in said and "Table: " in said
    assert "epoch 1/" not in said
    for flag, instead in (
        ("--perceptual-share", "--perceptual-shares"), ("--lambda-perc", "--perceptual-shares"),
        ("--adversarial-share", "--adversarial-shares"), ("--lambda-adv", "--adversarial-shares"),
        ("--seed", "--seeds"),
    ):  # fmt: skip
        assert main([*start, flag, "0"]) == 2
        assert f"which a sweep varies: take it away and give {instead} instead" in capsys.readouterr().err
    assert main([*start, "--stage2-epochs", "0"]) == 2
    assert "no second stage to compare with pixel-only" in capsys.readouterr().err
    assert main(["report", str(swept.folder)]) == 0
    assert "perceptual-0.4" in capsys.readouterr().out
