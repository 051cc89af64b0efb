"""The run folder on disk: config.json, the CSV files, the checkpoints, and everything that may be wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import toy, train

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, history
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run, architecture_hash, read_json, write_json


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond ``size`` bytes: what a full disk or quota looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# config.json ---------------------------------------------------------------------------------------------------------


def test_a_new_run_records_what_it_is(tmp_path: Path) -> None:
    task, run = toy(tmp_path / "runs")
    record = run.read_config()
    assert run.folder == tmp_path / "runs" / "run" and run.name == "run"
    assert record["stage"] == "toy" and record["config"]["lr"] == 0.03
    assert set(record["hashes"]) == {"config", "architecture", "data", "split"}
    assert record["hashes"]["architecture"] == architecture_hash(task.modules)
    assert record["environment"]["packages"]["torch"] == metadata.version("torch")
    assert str(Path.home()) not in run.config_file.read_text()


def test_the_same_settings_open_the_same_run_and_change_nothing(tmp_path: Path) -> None:
    _, run = toy(tmp_path)
    before = snapshot(run.folder)
    assert toy(tmp_path)[1] == run
    assert snapshot(run.folder) == before


def test_other_settings_are_refused_by_name_and_the_folder_is_untouched(tmp_path: Path) -> None:
    run = train(tmp_path).run
    (tmp_path / "run-2").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"lr \(0.03 there, 0.1 now\).*seed \(0 there, 4 now\)|seed.*lr") as caught:
        toy(tmp_path, lr=0.1, seed=4, epochs=9)
    message = str(caught.value)
    assert "'run-3'" in message, "a name that is free"
    assert str(run.folder) in message and "epochs" not in message and "width" not in message
    assert snapshot(tmp_path) == before


def test_fields_that_may_change_do(tmp_path: Path) -> None:
    toy(tmp_path)
    _, run = toy(tmp_path, epochs=9, workers=1)
    assert run.read_config()["config"]["epochs"] == 9
    first = run.read_config()["hashes"]["config"]
    assert first == toy(tmp_path, "other")[1].read_config()["hashes"]["config"], "they are no part of the hash"
    assert first != toy(tmp_path, "another", lr=0.5)[1].read_config()["hashes"]["config"]


@pytest.mark.parametrize("what", ["architecture", "data", "split"])
def test_another_model_or_other_data_under_the_same_settings_are_refused(tmp_path: Path, what: str) -> None:
    train(tmp_path)
    task, _ = toy(tmp_path)
    if what == "architecture":
        task.modules["net"].append(nn.Conv2d(1, 1, 1))
    else:
        data = dict(task.describe_data()) | {"sha256" if what == "data" else "split_sha256": "other"}
        task.describe_data = lambda: data
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=f"the {what} hash"):
        open_run(task, tmp_path, "run")
    assert snapshot(tmp_path) == before


def test_a_run_that_has_not_begun_takes_other_settings(tmp_path: Path) -> None:
    """A guard stopped it before its first step, the settings were mended, and nothing would be lost."""
    toy(tmp_path, lr=9.0)
    _, run = toy(tmp_path, lr=0.01)
    assert run.read_config()["config"]["lr"] == 0.01
    task, _ = toy(tmp_path, lr=0.01)
    mended = dict(task.describe_data()) | {"sha256": "mended"}
    task.describe_data = lambda: mended
    assert open_run(task, tmp_path, "run").read_config()["hashes"]["data"] == "mended"


def test_resume_never_starts_beside_it(tmp_path: Path) -> None:
    names = [toy(tmp_path, resume="never", lr=lr)[1].name for lr in (0.1, 0.2, 0.3)]
    assert names == ["run", "run-2", "run-3"]
    assert [Run(tmp_path / name).read_config()["config"]["lr"] for name in names] == [0.1, 0.2, 0.3]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    for name in ("photos", "file"):
        with pytest.raises(UserError, match="is no run"):
            toy(tmp_path, name)
    assert snapshot(tmp_path) == before
    toy(tmp_path, "empty")


def test_a_run_of_another_stage_is_refused(tmp_path: Path) -> None:
    task, _ = toy(tmp_path)
    task.stage = "other"
    with pytest.raises(UserError, match="belongs to stage 'toy', not 'other'"):
        open_run(task, tmp_path, "run")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_a_run_name_is_a_plain_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="not a plain folder name"):
        toy(tmp_path / "runs", name)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="choose another --output-dir"):
        toy(tmp_path / "file")


def test_a_full_disk_at_the_first_file_leaves_a_folder_that_can_be_used_later(tmp_path: Path) -> None:
    with file_size_limit(100), pytest.raises(UserError, match="free some space"):
        toy(tmp_path)
    assert toy(tmp_path)[1].read_config()["stage"] == "toy"


@pytest.mark.parametrize("text", ["{not json", "[1]", ""])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    _, run = toy(tmp_path)
    run.config_file.write_text(text)
    with pytest.raises(UserError, match="config.json"):
        toy(tmp_path)
    assert run.config_file.read_text() == text


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with file_size_limit(50), pytest.raises(OSError, match="too large"):
        write_json(path, {"a": "x" * 1000})
    assert read_json(path, what="it") == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]

    flushed: list[str] = []  # what stood under the real name when the new content went to disk
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(path.read_text()))
    write_json(path, {"a": 2})
    assert json.loads(flushed[0]) == {"a": 1} and read_json(path, what="it") == {"a": 2}


# history.csv, ledger.csv ---------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"step": 4, "phase": "train", "mse": 0.25, "none": None},
    {"step": 8, "phase": "train", "mse": float("nan"), "none": 1},
]


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    assert history.read_rows(path) == []
    history.append_rows(path, [])
    assert not path.exists()
    history.append_rows(path, ROWS[:1])
    history.append_rows(path, ROWS[1:])
    first, second = history.read_rows(path)
    assert first == ROWS[0] and isinstance(first["step"], int)
    assert second["mse"] != second["mse"] and second["none"] == 1
    assert path.read_text().splitlines()[0] == "step,phase,mse,none"


def test_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    numbers = {f"c{i}": value for i, value in enumerate(torch.randn(50, dtype=torch.float64).tolist())}
    history.append_rows(tmp_path / "h.csv", [numbers])
    assert history.read_rows(tmp_path / "h.csv") == [numbers]


def test_new_columns_are_added_and_absent_cells_are_empty(tmp_path: Path) -> None:
    """A second phase has other terms."""
    path = tmp_path / "history.csv"
    history.append_rows(path, [{"step": 1, "mse": 0.5}])
    history.append_rows(path, [{"step": 2, "adversarial": 0.1}])
    history.append_rows(path, [{"step": 3}])
    assert history.read_rows(path) == [
        {"step": 1, "mse": 0.5, "adversarial": None},
        {"step": 2, "mse": None, "adversarial": 0.1},
        {"step": 3, "mse": None, "adversarial": None},
    ]


def test_rows_are_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    history.keep_rows(path, lambda row: True)
    assert not path.exists()
    history.append_rows(path, ROWS)
    one = tmp_path / "one.csv"
    history.append_rows(one, ROWS[:1])
    history.keep_rows(path, lambda row: row["step"] <= 4)
    assert path.read_bytes() == one.read_bytes()
    history.keep_rows(path, lambda row: False)
    history.append_rows(path, [{"other": 1}])
    assert history.read_rows(path) == [{"other": 1}], "without rows no column is fixed"


def test_a_row_cut_anywhere_by_a_kill_does_not_count(tmp_path: Path) -> None:
    path, row = tmp_path / "history.csv", {"step": 4, "mse": 0.25, "seconds": 12.75}
    history.append_rows(path, [row])
    complete = path.read_bytes()
    history.append_rows(path, [{**row, "step": 8}])
    longer = path.read_bytes()
    for end in range(len(complete), len(longer)):
        path.write_bytes(longer[:end])
        assert history.read_rows(path) == [row], f"after {longer[:end]!r}"
        history.keep_rows(path, lambda row: True)
        assert path.read_bytes() == complete
    for end in range(complete.index(b"\n")):  # a header cut short
        path.write_bytes(complete[:end])
        history.keep_rows(path, lambda row: True)
        history.append_rows(path, [row])
        assert path.read_bytes() == complete


def test_a_full_disk_while_a_row_is_added(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    history.append_rows(path, ROWS[:1])
    with file_size_limit(path.stat().st_size + 5), pytest.raises(UserError, match="history.csv.*free some space"):
        history.append_rows(path, ROWS[1:])
    assert history.read_rows(path) == ROWS[:1]


# checkpoints ---------------------------------------------------------------------------------------------------------


def net(seed: int = 0, width: int = 3) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {"net": nn.Sequential(nn.Linear(width, 2), nn.BatchNorm1d(2)), "head": nn.Linear(2, 1)}


def save(run: Run, step: int, seed: int | None = None, best: bool = False, **state: Any) -> checkpoint.Checkpoint:
    modules = net(step if seed is None else seed)
    return checkpoint.save(run, step=step, modules=modules, state={"note": step, **state}, best=best)


def same(one: dict[str, nn.Module], other: dict[str, nn.Module]) -> bool:
    return all(
        torch.equal(a, b)
        for name in one
        for a, b in zip(one[name].state_dict().values(), other[name].state_dict().values(), strict=True)
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_checkpoint_comes_back_as_it_was_saved(run: Run) -> None:
    modules = net(1)
    state = {"moments": {"a": torch.arange(4.0)}, "balance": {"mse": 0.1}, "best": None, "lr": [1e-3]}
    written = checkpoint.save(run, step=7, modules=modules, state=state, best=True)
    for which in ("last", "best"):
        pointer = read_json(run.checkpoints / f"{which}.json", what="a pointer")
        assert pointer == {"step": 7, "path": "checkpoints/step_000007", "sha256": written.sha256}
        assert checkpoint.find(run, which) == written
    assert checkpoint.file_sha256(written.folder / "model.safetensors") == written.sha256
    assert checkpoint.at(written.folder) == written
    fresh = net(2)
    assert not same(fresh, modules)
    checkpoint.load_weights(written, fresh)
    assert same(fresh, modules)
    loaded = checkpoint.load_state(written)
    assert torch.equal(loaded.pop("moments")["a"], torch.arange(4.0))
    assert len(loaded.pop("weights_sha256")) == 64
    assert loaded == {"format": checkpoint.FORMAT, "step": 7, "balance": {"mse": 0.1}, "best": None, "lr": [1e-3]}


def test_a_run_folder_can_be_moved(run: Run, tmp_path: Path) -> None:
    written = save(run, 3)
    run.folder.rename(tmp_path / "elsewhere")
    found = checkpoint.find(Run(tmp_path / "elsewhere"), "last")
    assert found is not None and found.sha256 == written.sha256


def test_no_pointer_is_no_checkpoint(run: Run) -> None:
    assert checkpoint.find(run, "last") is None
    save(run, 1)
    assert checkpoint.find(run, "best") is None


def test_the_last_two_and_the_best_are_kept(run: Run) -> None:
    for step in (4, 8, 12, 16, 20):
        save(run, step, best=step == 8)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "best.json", "last.json", "step_000008", "step_000016", "step_000020",
    ]  # fmt: skip
    (run.checkpoints / "step_000016 (copy)").mkdir()  # Drive makes such
    save(run, 1_000_000, best=True)
    assert {path.name for path in run.checkpoints.glob("step_*")} == {
        "step_000016 (copy)", "step_000020", "step_1000000",
    }  # fmt: skip


def test_what_was_just_saved_stays_though_later_steps_are_there(run: Run) -> None:
    """A run taken up from one of its earlier checkpoints."""
    for step in (4, 8, 12):
        save(run, step, best=step == 4)
    for step in (5, 6, 7):
        save(run, step)
        last, best = checkpoint.find(run, "last"), checkpoint.find(run, "best")
        assert last is not None and last.step == step and best is not None and best.step == 4


def test_what_a_pointer_names_is_never_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same step is saved again (stopped in the evaluation, gone back): at no moment may the run be unreadable."""
    save(run, 4, seed=1, best=True)
    replace, seen = os.replace, []

    def watched(source: Any, target: Any) -> None:
        seen.append([checkpoint.find(run, which) for which in ("last", "best")])
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    again = save(run, 4, seed=2)
    third = save(run, 4, seed=3)
    assert len(seen) == 4 and all(None not in pair for pair in seen)
    assert checkpoint.find(run, "last") == third and third.step == 4
    assert checkpoint.find(run, "best").folder.name == "step_000004"
    assert again.folder != third.folder
    save(run, 5)
    save(run, 6)
    assert {path.name for path in run.checkpoints.glob("step_*")} == {"step_000004", "step_000005", "step_000006"}


def test_saving_a_step_again_replaces_it(run: Run) -> None:
    save(run, 4, seed=1, best=True)
    again = save(run, 4, seed=2, best=True)
    assert checkpoint.find(run, "best") == again
    fresh = net(3)
    checkpoint.load_weights(again, fresh)
    assert same(fresh, net(2))


def test_changed_weights_are_noticed(run: Run) -> None:
    path = save(run, 4).folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="sha256.*last.json recorded.*damaged"):
        checkpoint.find(run, "last")


def test_missing_weights_are_noticed(run: Run, tmp_path: Path) -> None:
    shutil.rmtree(save(run, 4).folder)
    with pytest.raises(UserError, match=r"last.json points to .*step_000004, which has no model.safetensors"):
        checkpoint.find(run, "last")
    with pytest.raises(UserError, match="give a folder such as"):
        checkpoint.at(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 60, 300])
def test_truncated_weights_are_named(run: Run, size: int) -> None:
    written = save(run, 4)
    path = written.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    for use in (lambda: checkpoint.at(written.folder), lambda: checkpoint.load_weights(written, net())):
        with pytest.raises(UserError, match="model.safetensors is not a readable safetensors file"):
            use()


def test_weights_of_another_architecture_are_refused(run: Run) -> None:
    written, other = save(run, 4), net(width=5)
    before = {name: parameter.clone() for name, parameter in other["net"].state_dict().items()}
    with pytest.raises(UserError, match="another architecture"):
        checkpoint.load_weights(written, other)
    assert all(torch.equal(before[name], value) for name, value in other["net"].state_dict().items())


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("container", ["pickle", "torch", "old torch", "a whole checkpoint"])
def test_a_pickle_bomb_is_refused_without_being_run(run: Run, tmp_path: Path, container: str) -> None:
    bomb = {"bomb": Bomb(tmp_path / "marker")}
    written = save(run, 4, **(bomb if container == "a whole checkpoint" else {}))  # then its checksum is right
    path = written.folder / "state.pt"
    if container == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif container != "a whole checkpoint":
        torch.save(bomb, path, _use_new_zipfile_serialization=container == "torch")
    with pytest.raises(UserError, match="holds code, which is never run"):
        checkpoint.load_state(written)
    assert not (tmp_path / "marker").exists()
    if container != "pickle":  # the bomb is live
        torch.load(path, weights_only=False)
        assert (tmp_path / "marker").exists()


def test_a_pickle_bomb_as_weights_is_refused_without_being_run(run: Run, tmp_path: Path) -> None:
    written = save(run, 4)
    (written.folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    with pytest.raises(UserError, match="not a readable safetensors file"):
        checkpoint.at(written.folder)
    assert not (tmp_path / "marker").exists()


def test_a_damaged_state_is_named_wherever_the_damage_is(run: Run) -> None:
    written = save(run, 4, moments=torch.randn(30))
    path = written.folder / "state.pt"
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 0x55
        for content in (whole[:position], flipped):
            path.write_bytes(content)
            with pytest.raises(UserError, match="state.pt is not a state this package wrote"):
                checkpoint.load_state(written)
    path.write_bytes(whole)
    assert len(checkpoint.load_state(written)["moments"]) == 30


def test_a_state_that_is_missing_or_of_another_version_is_named(run: Run) -> None:
    written = save(run, 4)
    with pytest.raises(UserError, match="another version"):
        checkpoint.load_state(save(run, 8, format=99))
    (written.folder / "state.pt").unlink()
    with pytest.raises(UserError, match="state.pt is missing"):
        checkpoint.load_state(written)


@pytest.mark.parametrize("full", ["weights", "state"])
def test_a_full_disk_leaves_the_last_good_checkpoint(run: Run, full: str) -> None:
    good = save(run, 4, best=True)
    before = snapshot(run.folder)
    modules = {"net": nn.Linear(200, 200)} if full == "weights" else net()
    state = {"moments": torch.zeros(200, 200)} if full == "state" else {}
    with file_size_limit(60_000), pytest.raises(UserError, match="step 8 could not be written.*free some space"):
        checkpoint.save(run, step=8, modules=modules, state=state, best=True)
    assert snapshot(run.folder) == before
    assert checkpoint.find(run, "last") == checkpoint.find(run, "best") == good
    checkpoint.load_state(good)


def test_pointers_move_only_after_the_data_are_on_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 4)
    synced: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(number: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        fsync(number)

    def note_replace(source: Any, target: Any) -> None:
        if Path(target).name == "last.json":
            assert {"model.safetensors", "state.pt", "last.json.tmp"} <= set(synced)
            assert (run.checkpoints / "step_000008" / "state.pt").is_file()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    save(run, 8)
    assert "last.json.tmp" in synced
