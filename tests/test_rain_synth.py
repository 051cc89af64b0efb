"""Synthetic days: what is written, what is refused, and what is found before anything is trained on them."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rain import tiny_days

from nbhelpers import __version__
from nbhelpers.cli import main
from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import synth
from nbhelpers.stages.rainfall_cvae.config import Config
from nbhelpers.stages.rainfall_cvae.data import Days, open_days
from nbhelpers.stages.rainfall_cvae.synth import PROVENANCE, open_synthetic, write_forecasts
from nbhelpers.stages.rainfall_cvae.synthesis import Synthesis, chosen_days
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.training import checkpoint
from nbhelpers.training.opening import open_run

CHECKPOINT = "c0ffee" * 10 + "beef"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> RainfallTask:
    """An untrained model, whose draws are of the climate; 40 training days, 2001."""
    folder = tiny_days(tmp_path_factory.mktemp("data") / "rain")
    return RainfallTask(Config.for_profile("smoke", d_y=8, dropout=0.5, tail="gpd"), folder)


@pytest.fixture(scope="module")
def written(task: RainfallTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(task, tmp_path_factory.mktemp("drawn") / "synth")


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """Draws to spoil."""
    return Path(shutil.copytree(written, tmp_path / "synth"))


def write(task: RainfallTask, path: Path, **options: Any) -> Path:
    wanted = Synthesis(**{"K": 2, **options})
    write_forecasts(task, path, checkpoint=CHECKPOINT, step=123, run="first", options=wanted)
    return path


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.npy")}


def respoken(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """With a provenance that says something else."""
    about = json.loads((folder / PROVENANCE).read_text())
    change(about)
    (folder / PROVENANCE).write_text(json.dumps(about))
    return folder


def test_files_are_rain_in_the_layout_of_the_observed_days(task: RainfallTask, written: Path) -> None:
    heavy = [day for day in task.days.split["train"] if task.days.category[day] == "heavy"]
    names = [f"day_{day:06d}_sample_{number:02d}.npy" for day in heavy for number in range(2)]
    assert sorted(path.name for path in written.iterdir()) == sorted([*names, PROVENANCE]) and len(heavy) > 3
    for name in names:
        rain = np.load(written / name)
        assert rain.shape == (1, *task.days.shape) and rain.dtype == np.float32
        np.testing.assert_array_equal(np.isfinite(rain[0]), task.days.land)
        assert np.nanmin(rain) >= 0


def test_provenance_says_where_every_file_comes_from(task: RainfallTask, written: Path) -> None:
    about = json.loads((written / PROVENANCE).read_text())
    files = about.pop("files")
    data = task.describe_data()
    expected = {
        "format": 1, "mode": "prior", "K": 2, "seed": 0, "split": "train", "asked": ["heavy"], "n_days": len(files) / 2,
        "years": [2001], "training_years": [2001], "units": "mm/day", "run": "first",
        "checkpoint": {"sha256": CHECKPOINT, "step": 123}, "likelihood": "hurdle_gamma", "tail": "gpd",
        "created": about["created"], "version": __version__,
        "data": {key: data[key] for key in ("source", "name", "product", "simulated", "sha256", "split_sha256")},
    }  # fmt: skip
    assert about == expected and len(about["created"]) == len("2001-01-01")
    assert {one["file"]: one["sha256"] for one in files} == hashes(written)
    assert {one["category"] for one in files} == {"heavy"} and {one["date"][:4] for one in files} == {"2001"}
    p95 = task.days.thresholds["P95"]
    for one in files:
        reached = (np.load(written / one["file"])[0][task.days.land] >= p95).mean() >= 0.02
        assert (one["drawn"] == "heavy") == reached  # of the draw itself
    lines = (written / PROVENANCE).read_text().splitlines()
    assert sum(line.startswith('  {"file"') for line in lines) == len(files)  # a line each


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    task: RainfallTask, written: Path, tmp_path: Path
) -> None:
    training = [module.train() for module in task.modules.values()]  # dropout would make draws of chance
    again, other = hashes(write(task, tmp_path / "again")), hashes(write(task, tmp_path / "other", seed=1))
    assert again == hashes(written)
    assert set(other) == set(again) and not set(other.values()) & set(again.values())
    assert len(set(again.values())) == len(again)  # no draw equals another
    assert all(module.training for module in training)


def test_days_are_chosen_by_category_or_number(task: RainfallTask) -> None:
    days, train = task.days, task.days.split["train"]
    for name in ("dry", "moderate", "heavy"):
        assert chosen_days(days, [name]) == tuple(day for day in train if days.category[day] == name)
    assert chosen_days(days, ["all"]) == train
    assert chosen_days(days, ["7", "3-5", "4"]) == (3, 4, 5, 7)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["85"], r"day 85 is of the test years, and only days of the training years may be augmented"),
        (["38-42"], r"day 40 is of the val years"),
        (["900"], r"day 900 is not in "),
        (["stormy"], r"--days has 'stormy', expected one of dry, moderate, heavy, all"),
        (["3-"], r"--days has '3-'"),
        (["heavy", "3"], r"--days has 'heavy'"),
        ([], r"--days names no day"),
    ],
)
def test_days_that_may_not_be_drawn_are_refused(task: RainfallTask, asked: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        chosen_days(task.days, asked)


@pytest.mark.parametrize("split", ["val", "test"])
def test_other_splits_are_refused(task: RainfallTask, tmp_path: Path, split: str) -> None:
    with pytest.raises(UserError, match=f"split is '{split}', but only days of the training years may be augmented"):
        write_forecasts(task, tmp_path / "synth", split=split, checkpoint=CHECKPOINT, step=1, run="first")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "posterior"}, "near copies of it: .* or add --allow-copies"),
        ({"mode": "both"}, "mode is 'both', expected one of prior, posterior"),
        ({"K": 0}, "K is 0, expected at least one"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Synthesis(**options)


def test_copies_are_written_and_read_only_by_their_name(task: RainfallTask, tmp_path: Path) -> None:
    folder = write(task, tmp_path / "copies", mode="posterior", allow_copies=True, days=("3",))
    assert {path.name for path in folder.glob("*.npy")} == {f"day_000003_posterior_0{k}.npy" for k in (0, 1)}
    with pytest.raises(UserError, match="says that these are draws of the posterior, near copies"):
        open_synthetic(folder, task.days)
    assert [day for day, _ in open_synthetic(folder, task.days, allow_copies=True)] == [3, 3]
    respoken(folder, lambda about: about.update(mode="prior"))
    with pytest.raises(UserError, match=r"says mode 'prior' and names day_000003_posterior_00.npy"):
        open_synthetic(folder, task.days)


def test_a_folder_that_holds_something_is_left_as_it_is(task: RainfallTask, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(UserError, match="exists already: delete it, or choose another folder"):
        write(task, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    task: RainfallTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = np.save, []

    def full(file: Path, value: np.ndarray) -> None:
        if len(saved) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(file)
        save(file, value)

    monkeypatch.setattr(synth.np, "save", full)
    with pytest.raises(UserError, match="the disk, quota or file-size limit is full"):
        write(task, tmp_path / "synth")
    assert len(saved) == 3 and not list(tmp_path.iterdir())


def test_draws_are_read_back(task: RainfallTask, written: Path) -> None:
    found = open_synthetic(written, task.days)
    assert {path.name for _, path in found} == set(hashes(written))
    assert all(path.name.startswith(f"day_{day:06d}_") for day, path in found)


def _another_day(about: dict[str, Any]) -> None:
    """A day of the test year, under its own name."""
    one = about["files"][0]
    one.update(day=85, date="2003-01-06", file="day_000085_sample_00.npy")


def _renumbered(about: dict[str, Any]) -> None:
    about["files"][0]["date"] = "2003-01-06"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_another_day, r"names day 85, which is of the test years of .* only days of the training years may augment"),
        (lambda about: about.update(split="test"), r"in draws of the 'test' split"),
        (_renumbered, r"has 2003-01-06 for day \d+, which is 2001-"),
        (lambda about: about["data"].update(sha256="0" * 64), r"drawn by a model of other data \(sha256 000000000000…"),
        (lambda about: about["data"].update(split_sha256="0" * 64), r"drawn by a model of another split"),
        (lambda about: about.update(mode="guess"), r"says mode 'guess', expected one of prior, posterior"),
        (lambda about: about.update(format=9), r"has the format 9, expected 1"),
        (lambda about: about.pop("split"), r"does not say 'split'"),
        (lambda about: about["files"][1].pop("sha256"), r"does not say 'sha256'"),
        (lambda about: about["files"].pop(), r"is not named in provenance.json"),
    ],
)
def test_a_provenance_that_does_not_fit_is_refused(task: RainfallTask, copy: Path, change: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_synthetic(respoken(copy, change), task.days)


def test_draws_from_another_data_folder_are_refused(written: Path, tmp_path: Path) -> None:
    other = open_days(tiny_days(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="drawn by a model of other data"):
        open_synthetic(written, other)


def test_days_that_moved_between_splits_are_found(task: RainfallTask, written: Path, tmp_path: Path) -> None:
    """The same days in another order of years: what was trained on is now the test."""
    folder = Path(shutil.copytree(task.days.folder, tmp_path / "data"))
    split = json.loads((folder / "metadata/split.json").read_text())
    swapped = {**split, "val": split["test"], "test": split["val"]}
    (folder / "metadata/split.json").write_text(json.dumps(swapped))
    with pytest.raises(UserError, match="drawn by a model of another split"):
        open_synthetic(written, open_days(folder))


def test_the_rain_of_a_test_day_under_a_training_days_name_is_found(task: RainfallTask, copy: Path) -> None:
    days: Days = task.days
    day = next(day for day in days.split["test"] if days.category[day] == "heavy")
    file = min(copy.glob("*.npy"))
    np.save(file, days.y(day)[None])
    with pytest.raises(UserError, match="is not the file that provenance.json was written for"):
        open_synthetic(copy, days)

    def admit(about: dict[str, Any]) -> None:
        next(one for one in about["files"] if one["file"] == file.name)["sha256"] = hashes(copy)[file.name]

    with pytest.raises(UserError, match="holds the observed rain of a validation or test day"):
        open_synthetic(respoken(copy, admit), days)


def test_files_that_are_gone_or_without_provenance_are_refused(task: RainfallTask, copy: Path) -> None:
    min(copy.glob("*.npy")).unlink()
    with pytest.raises(UserError, match=r"sample_00.npy is missing, but named in provenance.json"):
        open_synthetic(copy, task.days)
    (copy / PROVENANCE).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        open_synthetic(copy, task.days)
    (copy / PROVENANCE).unlink()
    with pytest.raises(UserError, match="nobody knows where these days come from"):
        open_synthetic(copy, task.days)


def test_the_command_line_draws_training_days(
    task: RainfallTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = checkpoint.save(open_run(task, tmp_path, "run"), step=7, modules=task.modules, state={}, best=True)
    place = ["rainfall-cvae", "--output-dir", str(tmp_path), "--run-name", "run"]
    assert main(["predict", *place, "--mode", "posterior"]) == 2
    assert "add --allow-copies" in capsys.readouterr().err
    assert main(["predict", *place, "--split", "test"]) == 2
    assert "only days of the training years may be augmented" in capsys.readouterr().err
    assert main(["predict", *place, "--mode", "prior", "--K", "3", "--days", "1-3", "9"]) == 0
    folder = tmp_path / "run/synth"
    assert f"12 forecasts of the train split: {folder}" in capsys.readouterr().out
    about = json.loads((folder / PROVENANCE).read_text())
    assert about["checkpoint"] == {"sha256": saved.sha256, "step": 7} and about["K"] == 3 and about["run"] == "run"
    assert [day for day, _ in open_synthetic(folder, task.days)] == [1] * 3 + [2] * 3 + [3] * 3 + [9] * 3
