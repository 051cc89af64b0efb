"""The cell that judges rain samples: it stands alone, its numbers are the package's, and it names what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rain import tiny_days

from nbhelpers.science import ensemble
from nbhelpers.stages.rainfall_cvae import histogram
from nbhelpers.stages.rainfall_cvae.calibration import rank_metrics
from nbhelpers.stages.rainfall_cvae.data import open_days
from nbhelpers.stages.rainfall_cvae.verification import RainVerification

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CELL = Path(__file__).resolve().parents[1] / "colab_cells" / "check_rain_samples.py"
TEXT = CELL.read_text(encoding="utf-8")
CALL = "rain_check = check(members, observed)"

# Runs the user's cell and then ours as a kernel does, where there is nothing but numpy and matplotlib and no network.
DRIVER = """
import socket, sys
def refuse(*arguments, **options):
    raise OSError("this machine has no network")
socket.create_connection = refuse
for missing in ("nbhelpers", "torch", "scipy", "pandas"):
    sys.modules[missing] = None
space = {"__name__": "__main__"}
for cell in sys.argv[1:]:
    exec(compile(cell, "cell", "exec"), space)
"""


def paste(folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run an earlier cell and then ours in a new interpreter; its figure lands in ``figure.png``."""
    assert "plt.show()" in TEXT
    cell = TEXT.replace("plt.show()", 'plt.savefig("figure.png")')
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", DRIVER, before, cell],
        cwd=folder, env={**kept, "MPLBACKEND": "Agg"}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cell() -> Iterator[dict[str, Any]]:
    """What the cell defines, without what it runs at the end."""
    assert TEXT.rstrip().endswith(CALL)
    space: dict[str, Any] = {"__name__": "cell"}
    exec(compile(TEXT.replace(CALL, "").replace("plt.show()", "pass"), "cell", "exec"), space)
    yield space
    plt.close("all")


# --- it stands alone ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_the_demonstration_shows_one_good_and_two_bad_models(tmp_path: Path) -> None:
    result = paste(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "MADE-UP" in result.stdout.splitlines()[0]
    said = {}
    for name in ("calibrated", "too sure of itself", "posterior samples"):
        said[name] = [line for line in result.stdout.splitlines() if line.startswith(f"{name}: ")]
    assert len(said["calibrated"]) == 1 and "nothing wrong was found" in said["calibrated"][0]
    assert "TOO LITTLE SPREAD" in said["too sure of itself"][0]
    assert any("MISSING EXTREMES" in line for line in said["too sure of itself"])
    assert len(said["posterior samples"]) == 1
    assert "near copies of the day they are scored on" in said["posterior samples"][0]
    assert (tmp_path / "figure.png").stat().st_size > 30_000


@pytest.mark.timeout(120)
def test_variables_of_an_earlier_cell_and_paths_are_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "mine.npy", rng.gamma(0.5, 8, (5, 12, 9, 10)).astype(np.float32))
    np.save(tmp_path / "truth.npy", rng.gamma(0.5, 8, (12, 9, 10)))
    result = paste(tmp_path, "members, observed = 'mine.npy', 'truth.npy'")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("5 samples of each of 12 days of 9 x 10 pixels, 100% measured.")
    assert "MADE-UP" not in result.stdout and (tmp_path / "figure.png").exists()
    half = paste(tmp_path, "members = 'mine.npy'")
    assert half.returncode == 1
    assert half.stderr.splitlines()[-1].startswith("ValueError: members is given and observed is not: set both")


def test_tensors_masks_integers_and_few_days(cell: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).gamma(0.5, 8, (4, 2, 8, 8))).requires_grad_()
    y = np.ma.masked_less(np.arange(-4, 124).reshape(2, 8, 8), 0)
    y[1] = np.ma.masked  # nothing was measured on that day
    judged = cell["check"]({"a": x, "b": x.detach() * 1.2}, y)
    assert list(judged) == ["a", "b"] and judged["a"]["findings"] == judged["b"]["findings"] == []
    assert "Only 2 days" in capsys.readouterr().out
    assert np.isnan(judged["a"]["value"]["climatology's CRPS"])
    measured = torch.from_numpy(y.filled(0)[0, 0, 4:]).double()
    plain = cell["judge"](x.detach().numpy()[:, :1, :1, 4:], measured.numpy()[None, None])
    expected = ensemble.fair_crps(x.detach()[None, :, 0, 0, 4:], measured[None]).mean()
    assert plain["value"]["fair CRPS"] == pytest.approx(float(expected), rel=1e-12)


# --- its numbers are the package's ----------------------------------------------------------------------------------


def test_scores_are_those_of_a_report(cell: dict[str, Any], tmp_path: Path) -> None:
    days = open_days(tiny_days(tmp_path / "rain"))
    assert days.factor == cell["BLOCK"]
    for name, mine in {"LOWEST": "LOWEST", "HIGHEST": "HIGHEST", "WIDTH": "WIDTH", "N_BINS": "BINS"}.items():
        assert getattr(histogram, name) == cell[mine], "other bins, other quantiles: change the cell's too"
    observed = np.stack([days.y(day) for day in range(120)])
    observed[7, 9:11, 12:15] = observed[50, 5:, 3:] = np.nan
    rng = np.random.default_rng(1)
    members = observed[:, None] * rng.gamma(2, 0.5, (120, 9, 1, 1)) + rng.gamma(0.3, 3, (120, 9, *days.shape))
    members = np.nan_to_num(members, nan=500.0).astype(np.float32)
    report = RainVerification(days, n_members=9)
    report.add(torch.from_numpy(members), torch.from_numpy(observed), range(120))
    theirs = {name: metric.value for name, metric in report.metrics().items()}
    ours = cell["judge"](members.swapaxes(0, 1), observed)
    names = {"fair CRPS": "crps", "P99 ratio": "p99_ratio", "P99.9 ratio": "p999_ratio"}
    names |= {f"spread/skill {scale}": f"spread_skill_{scale}" for scale in ("pixel", "block", "domain")}
    names |= {"wet days 0.1 mm": "wet_frequency_01_pred", "wet days 1 mm": "wet_frequency_1_pred"}
    names |= {"observed wet days 0.1 mm": "wet_frequency_01_obs", "observed wet days 1 mm": "wet_frequency_1_obs"}
    for mine, other in names.items():
        assert ours["value"][mine] == pytest.approx(theirs[other], rel=1e-6), mine
    flat = report.metrics()["rank_histogram"].by_label
    np.testing.assert_allclose(ours["ranks"]["flatness"], flat, rtol=1e-6)
    assert ours["ranks"]["index"] == pytest.approx(theirs["reliability_index"], rel=1e-6)
    table = report.quantiles()
    pairs = [[row["predicted"], row["observed"]] for row in table.values()]
    assert len(pairs) > 5
    np.testing.assert_allclose(ours["quantiles"], pairs, rtol=1e-6)


def test_the_parts_are_those_of_the_package(cell: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    counts = rng.poisson(40, (30, 7)) + rng.integers(0, 30, (30, 1))
    assert cell["rank_table"](counts)["chance"] == pytest.approx(
        rank_metrics(counts.astype(float))["reliability_index_chance"].value, rel=1e-9
    )
    fields, valid = rng.gamma(1, 3, (3, 10, 13)), rng.random((10, 13)) > 0.4
    for side in (1, 4, None):
        theirs = ensemble.block_means(torch.from_numpy(fields), side, torch.from_numpy(valid))
        np.testing.assert_allclose(cell["block_means"](fields, side, valid), theirs.numpy(), rtol=1e-12)
    # Ties are shared out where the package draws: the same in the mean.
    x, y = rng.integers(0, 3, (6, 4000)).astype(float), rng.integers(0, 3, 4000).astype(float)
    places = ensemble.ranks(torch.from_numpy(x[None]), torch.from_numpy(y[None]), torch.Generator().manual_seed(0))
    drawn = ensemble.rank_histogram(places, 6)[0].numpy()
    shared = cell["rank_counts"](x, y)
    assert shared.sum() == pytest.approx(4000) and np.abs(shared - drawn).max() < 5 * np.sqrt(drawn.max())
    assert np.abs(cell["rank_counts"](x, 0 * y) - shared).max() > 500


def test_climatology_is_the_fair_crps_of_all_other_days(cell: dict[str, Any]) -> None:
    y = np.random.default_rng(3).gamma(0.5, 8, (9, 2, 3))
    y[y < 1] = 0.0
    y[2:5, 0, 1] = y[:7, 1, 1] = np.nan  # six days are left at one pixel, and two, too few, at another
    found = cell["climatology_sums"](y)
    expected = np.zeros((9, 2))
    for row, column in np.ndindex(2, 3):
        measured = np.flatnonzero(~np.isnan(y[:, row, column]))
        for day in measured if len(measured) > 2 else ():
            others = torch.tensor(y[np.setdiff1d(measured, day), row, column])[None]
            expected[day] += [float(ensemble.fair_crps(others, torch.tensor(y[day, row, column])[None])), 1]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


# --- it names what is wrong -----------------------------------------------------------------------------------------

K, DAYS, SIDE = 12, 80, 16


def rain(level: NDArray) -> NDArray:
    return 6 * np.maximum(level - 0.2, 0) ** 1.6


@pytest.fixture(scope="module")
def made() -> dict[str, NDArray]:
    """Levels of the weather that is known and of K + 1 redraws of what is not, and independent noise as strong."""
    rng = np.random.default_rng(5)
    weather = 0.6 * rng.normal(size=(DAYS, 1, 1)) + 0.5 * np.kron(rng.normal(size=(DAYS, 4, 4)), np.ones((1, 4, 4)))
    patches = np.kron(rng.normal(size=(K + 1, DAYS, 4, 4)), np.ones((1, 1, 4, 4)))
    return {"weather": weather, "unknown": 0.7 * patches, "pixels": 0.7 * rng.normal(size=(K, DAYS, SIDE, SIDE))}


Faulty = Callable[[dict[str, NDArray], NDArray, NDArray], NDArray]  # of the levels, good members and the days
FAULTS: dict[str, tuple[str, Faulty]] = {
    "good": ("", lambda made, x, y: x),
    "narrow": ("TOO LITTLE SPREAD: ", lambda made, x, y: x.mean(0) + 0.4 * (x - x.mean(0))),
    "wide": ("TOO MUCH SPREAD: ", lambda made, x, y: rain(made["weather"] + 2 * made["unknown"][1:])),
    "pixels": ("INDEPENDENT PIXELS: .*too small per block", lambda made, x, y: rain(made["weather"] + made["pixels"])),
    "drizzle": ("DRIZZLE: ", lambda made, x, y: np.maximum(x, 0.3)),
    "dry": ("TOO DRY: ", lambda made, x, y: np.where(x < 2, 0, x)),
    "cut": ("MISSING EXTREMES: .*P99.9 is 0", lambda made, x, y: np.minimum(x, np.quantile(y, 0.98))),
    "heavy": ("TOO EXTREME: ", lambda made, x, y: x * (1 + (x > 8))),
    "much": ("WRONG TOTAL: ", lambda made, x, y: 1.5 * x),
    "another day": ("NO SKILL: ", lambda made, x, y: 0.1 * x + 0.9 * x[:1, ::-1]),
    "negative": ("NEGATIVE RAIN: ", lambda made, x, y: np.where(x == 0, -0.5, x)),
    "copies": ("NEAR COPIES: ", lambda made, x, y: y * np.exp(0.05 * made["pixels"])),
    "loose copies": ("Was the model shown the day", lambda made, x, y: y * np.exp(0.7 * made["unknown"][1:] - 0.12)),
    "one copy too many": ("NEAR COPIES: ", lambda made, x, y: np.broadcast_to(y, x.shape)),
    "mm/h": (r"WRONG UNITS\? mine looks like mm/h, .*multiply mine by 24\.", lambda made, x, y: x / 24),
    "SI": (r"WRONG UNITS\? mine looks like kg m-2 s-1, .*by 86400\.", lambda made, x, y: x / 86400),
    "metres": (r"WRONG UNITS\? mine looks like m/day, ", lambda made, x, y: x / 1000),
    "observed": (r"WRONG UNITS\? observed looks like mm/h, .*by 24\.", lambda made, x, y: x * 24),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(cell: dict[str, Any], made: dict[str, NDArray], fault: str) -> None:
    y, *good = rain(made["weather"] + made["unknown"])
    says, spoil = FAULTS[fault]
    words = cell["judge"](spoil(made, np.stack(good), y), y, "mine")["findings"]
    if says:
        assert any(re.search(says, sentence) for sentence in words), words
    if fault in ("good", "copies", "one copy too many", "mm/h", "SI", "metres", "observed"):
        assert len(words) == (fault != "good"), "of a cause that explains the rest nothing else is said"


@pytest.mark.parametrize(("divisor", "unit"), [(86400, "kg m-2 s-1"), (1000, "m/day"), (24, "mm/h")])
def test_both_in_other_units(cell: dict[str, Any], made: dict[str, NDArray], divisor: int, unit: str) -> None:
    y, *good = rain(made["weather"] + made["unknown"]) / divisor
    words = cell["judge"](np.stack(good), y)["findings"]
    assert len(words) == 1 and words[0].startswith(f"WRONG UNITS? observed looks like {unit}, not mm/day")
    assert f"by {divisor}, unless" in words[0]


def test_chance_is_no_fault(cell: dict[str, Any]) -> None:
    for seed in range(4):
        models, y = cell["demonstration"](k=8, days=40, side=16, seed=seed)
        assert cell["judge"](models["calibrated"], y)["findings"] == []


def test_dry_days_and_members_without_any_spread_are_drawn(cell: dict[str, Any]) -> None:
    dry = np.zeros((8, 6, 6))
    judged = cell["check"](np.full((3, 8, 6, 6), 2.0), dry)
    assert any("dry everywhere" in sentence for sentence in judged["members"]["findings"])


GOOD = np.ones((3, 4, 8, 9))
REFUSED = {
    "three axes": (GOOD[0], GOOD[0], r"members has shape \(4, 8, 9\), expected \(K, D, H, W\)"),
    "channel": (GOOD, GOOD[0][:, None], r"observed has shape \(4, 1, 8, 9\), expected \(D, H, W\)"),
    "days": (GOOD[:, :3], GOOD[0], r"members has shape \(3, 3, 8, 9\), expected \(K, 4, 8, 9\), as observed has it"),
    "swapped": (GOOD.swapaxes(0, 1), GOOD[0], r"its first two axes are exchanged, give array.swapaxes\(0, 1\)"),
    "one": (GOOD[:1], GOOD[0], "has 1 sample of each day, expected at least 2"),
    "all NaN": (GOOD, np.nan * GOOD[0], "NaN everywhere"),
    "no days": (GOOD[:, :0], GOOD[0, :0], "NaN everywhere or empty"),
    "sentinel": (GOOD, np.where(GOOD[0] > 0, -9999.0, 0), "goes down to -9999 mm/day"),
    "infinite truth": (GOOD, GOOD[0] * np.inf, "observed has infinite values"),
    "NaN members": (GOOD * np.nan, GOOD[0], "864 values that are NaN or infinite where observed was measured"),
    "words": (GOOD.astype(str), GOOD[0], "members holds <U32, expected numbers in mm/day"),
    "no file": ("nowhere.npy", GOOD[0], "members is 'nowhere.npy', expected an array or the path of an existing .npy"),
    "no model": ({}, GOOD[0], "members is an empty dict"),
    "no members": (None, GOOD[0], "observed is given and members is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(cell: dict[str, Any], case: str) -> None:
    members, observed, says = REFUSED[case]
    with pytest.raises(ValueError, match=says) as refused:
        cell["check"](members, observed)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")
