"""Copies of a run in a second folder: what comes there, readable whenever the copying is killed, and the way back."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, history, mirror
from nbhelpers.training.mirror import CopyError, pull, push
from nbhelpers.training.run import Run, read_json, write_json

POINTERS = ("best", "last")
# Everything that changes a folder tells Python's audit hooks first; "open" is told apart by its mode.
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile", "os.truncate"}


def save(run: Run, step: int, *, best: bool = False, seed: int | None = None, size: int = 4) -> checkpoint.Checkpoint:
    """A real checkpoint with the small files that go with it."""
    torch.manual_seed(step if seed is None else seed)
    modules = {"net": nn.Linear(size, size)}
    state = {"moments": torch.randn(size), "seed": seed}
    if not run.config_file.exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        hashes = {key: "0" for key in ("config", "architecture", "data", "split")}
        write_json(run.config_file, {"stage": "toy", "config": {}, "data": {}, "hashes": hashes})
    history.append_rows(run.history_file, [{"step": step, "mse": 1 / step, "seed": seed or 0}])
    return checkpoint.save(run, step=step, modules=modules, state=state, best=best)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below ``folder`` with the marks that any write would change."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}


def found(run: Run) -> dict[str, tuple[int, str]]:
    """Step and sha256 of the checkpoints that can be read with their states; raises where one is not complete."""
    checkpoints = {which: checkpoint.find(run, which) for which in POINTERS}
    for one in filter(None, checkpoints.values()):
        checkpoint.load_state(one)
    return {which: (one.step, one.sha256) for which, one in checkpoints.items() if one is not None}


def assert_copied(run: Run, copy: Run) -> None:
    """The copy holds the run's checkpoints and records, and nothing else."""
    assert found(copy) == found(run)
    folders = {Path(read_json(copy.checkpoints / f"{which}.json", what="it")["path"]).name for which in found(copy)}
    assert {path.name for path in copy.checkpoints.iterdir()} == folders | {f"{which}.json" for which in found(copy)}
    assert not list(copy.folder.rglob("*.tmp"))
    for path in copy.folder.rglob("*"):
        if path.is_file() and copy.checkpoints not in path.parents:
            assert path.read_bytes() == (run.folder / path.relative_to(copy.folder)).read_bytes()
    assert copy.history_file.exists() and copy.config_file.exists()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / "run")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


@pytest.fixture
def copy(second: Path) -> Run:
    return Run(second / "run")


# what is copied ------------------------------------------------------------------------------------------------------


def test_the_first_copy_holds_what_the_run_needs(run: Run, second: Path, copy: Run) -> None:
    for step in (4, 8, 12):
        save(run, step, best=step == 4)
    for name in ("ledger.csv", "guards.json", "report.json", "report.md", "notes.txt", ".lock"):
        (run.folder / name).write_text(name)
    run.figures.mkdir()
    (run.figures / "curve.png").write_bytes(b"png")
    push(run, second)
    assert_copied(run, copy)
    assert {name: content for name, content in snapshot(run.folder).items() if name in snapshot(copy.folder)} == (
        snapshot(copy.folder)
    ), "the pointers too, byte for byte"
    assert set(snapshot(run.folder)) - set(snapshot(copy.folder)) == {
        "notes.txt", ".lock",
        "checkpoints/step_000008/model.safetensors", "checkpoints/step_000008/state.pt",
    }  # fmt: skip


def test_the_next_copy_adds_and_prunes(run: Run, second: Path, copy: Run) -> None:
    save(run, 4, best=True)
    push(run, second)
    kept = stamps(copy.checkpoints / "step_000004")
    for step in (8, 12):
        save(run, step)
        push(run, second)
        assert_copied(run, copy)
    assert {path.name for path in copy.checkpoints.glob("step_*")} == {"step_000004", "step_000012"}
    assert stamps(copy.checkpoints / "step_000004") == kept, "what was there was not written again"
    save(run, 16, best=True)
    push(run, second)
    assert [path.name for path in copy.checkpoints.glob("step_*")] == ["step_000016"]


def test_a_copy_of_an_unchanged_run_writes_nothing(run: Run, second: Path, copy: Run) -> None:
    save(run, 4, best=True)
    save(run, 8)
    push(run, second)
    before = stamps(second)
    push(run, second)
    assert stamps(second) == before


def test_a_large_checkpoint_that_is_there_is_not_read_again(
    run: Run, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 4, best=True)
    push(run, second)
    read: list[str] = []
    real = mirror.file_sha256
    monkeypatch.setattr(mirror, "file_sha256", lambda path: (read.append(path.name), real(path))[1])
    monkeypatch.setattr(checkpoint, "file_sha256", lambda path: (read.append(path.name), real(path))[1])
    (run.folder / "report.md").write_text("a report")
    push(run, second)
    assert read == ["report.md", "report.md.tmp"]


def test_a_checkpoint_of_the_same_name_with_other_content(run: Run, second: Path, copy: Run) -> None:
    save(run, 4, best=True, seed=1)
    push(run, second)
    shutil.rmtree(run.checkpoints)
    save(run, 4, best=True, seed=2)
    push(run, second)
    assert_copied(run, copy)
    push(run, second)
    assert_copied(run, copy)
    save(run, 8, best=True)
    push(run, second)
    assert_copied(run, copy)


def test_a_run_taken_up_from_an_earlier_checkpoint(run: Run, second: Path, copy: Run) -> None:
    for step, seed in ((4, 1), (8, 1), (12, 1), (8, 2), (12, 2), (8, 3)):
        save(run, step, best=step == 4, seed=seed)
        push(run, second)
        assert_copied(run, copy)


def test_a_damaged_copy_is_replaced(run: Run, second: Path, copy: Run) -> None:
    state = save(run, 4, best=True).folder / "state.pt"
    push(run, second)
    (copy.checkpoints / "step_000004" / "state.pt").write_bytes(state.read_bytes()[:-1])
    push(run, second)
    assert_copied(run, copy)


def test_what_a_killed_copying_left_goes_first(
    run: Run, second: Path, copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would need room a second time, and the name of the next checkpoint."""
    save(run, 4, best=True)
    push(run, second)
    save(run, 8, best=True)
    copy.figures.mkdir()
    shutil.copytree(run.checkpoints / "step_000008", copy.checkpoints / "step_000008")
    shutil.copytree(run.checkpoints / "step_000008", copy.checkpoints / "step_000008-2.tmp")
    for name in ("report.md.tmp", "figures/curve.png.tmp", "checkpoints/last.json.tmp"):
        (copy.folder / name).write_text("half")
    there: list[set[str]] = []
    copied = shutil.copyfile

    def note(source: Path, target: Path) -> None:
        there.append({path.name for path in copy.folder.rglob("*") if path.suffix == ".tmp" or path.is_dir()})
        copied(source, target)

    monkeypatch.setattr(shutil, "copyfile", note)
    push(run, second)
    assert there[0] == {"checkpoints", "figures", "step_000004", "step_000008.tmp"}
    assert_copied(run, copy)
    assert [path.name for path in copy.checkpoints.glob("step_*")] == ["step_000008"]


def test_a_run_without_checkpoints_is_copied_too(run: Run, second: Path, copy: Run) -> None:
    save(run, 4)
    shutil.rmtree(run.checkpoints)
    push(run, second)
    assert_copied(run, copy)


# what is refused -----------------------------------------------------------------------------------------------------


def test_the_second_folder_is_never_created(run: Run, second: Path, copy: Run) -> None:
    save(run, 4)
    push(run, second)
    shutil.move(second, gone := second.with_name("unmounted"))
    with pytest.raises(CopyError, match="no such folder.*run is complete in .*mount Drive again.*next save tries"):
        push(run, second)
    with pytest.raises(CopyError, match="no such folder"):
        pull(run, second)
    assert not second.exists()
    shutil.move(gone, second)
    save(run, 8)
    push(run, second)
    assert_copied(run, copy)


@pytest.mark.parametrize("at", range(6))
def test_the_second_folder_vanishes_while_a_copy_is_made(
    run: Run, second: Path, copy: Run, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 4, best=True)
    push(run, second)
    save(run, 8, best=True)
    before, copied = found(copy), shutil.copyfile
    calls: list[Path] = []

    def unmount(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at:
            second.rename(second.with_name("unmounted"))
        copied(source, target)

    monkeypatch.setattr(shutil, "copyfile", unmount)
    if 1 <= at <= 3:  # two files of the checkpoint, one row of history
        with pytest.raises(CopyError, match="No such file"):
            push(run, second)
        assert not second.exists(), "nothing was made in its place"
        second.with_name("unmounted").rename(second)
        assert found(copy) == before
    push(run, second)
    assert len(calls) >= 3
    assert_copied(run, copy)


def test_a_full_disk_leaves_the_copy_made_before(run: Run, second: Path, copy: Run) -> None:
    save(run, 4, best=True)
    push(run, second)
    before = snapshot(second)
    save(run, 8, best=True, size=200)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(CopyError, match="too large.*run is complete in .*make room"):
            push(run, second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(second) == before
    push(run, second)
    assert_copied(run, copy)


def test_a_folder_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    save(run, 4)
    with pytest.raises(CopyError, match="was not copied to /proc "):
        push(run, Path("/proc"))
    (tmp_path / "file").write_text("text")
    with pytest.raises(CopyError, match="no such folder"):
        push(run, tmp_path / "file")


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "history.csv", "config.json"])
def test_a_byte_that_flips_on_the_way_is_noticed(
    run: Run, second: Path, copy: Run, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 4, best=True)
    push(run, second)
    before = found(copy)
    save(run, 8, best=True)
    write_json(run.config_file, {**run.read_config(), "config": {"epochs": 9}})
    copied = shutil.copyfile

    def flip(source: Path, target: Path) -> None:
        copied(source, target)
        if source.name == name:
            content = bytearray(target.read_bytes())
            content[-2] ^= 1
            target.write_bytes(content)

    monkeypatch.setattr(shutil, "copyfile", flip)
    with pytest.raises(CopyError, match=f"{name}.* does not read back as it was written"):
        push(run, second)
    assert found(copy) == (before if name != "config.json" else found(run))
    assert not list(second.rglob("*.tmp"))
    monkeypatch.undo()
    push(run, second)
    assert_copied(run, copy)


def test_damaged_weights_are_not_copied_over_good_ones(run: Run, second: Path, copy: Run) -> None:
    save(run, 4, best=True)
    push(run, second)
    before = snapshot(second)
    path = save(run, 8, best=True).folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="model.safetensors has sha256.*damaged"):
        push(run, second)
    assert snapshot(second) == before


def test_another_run_of_the_same_name_is_not_overwritten(run: Run, second: Path, copy: Run) -> None:
    save(run, 4)
    push(run, second)
    before = snapshot(second)
    write_json(run.config_file, {**run.read_config(), "hashes": {"config": "other"}})
    save(run, 8)
    with pytest.raises(UserError, match="run with other settings.*choose another run name"):
        push(run, second)
    assert snapshot(second) == before
    save(copy, 12)
    before = snapshot(run.folder)
    with pytest.raises(UserError, match="run with other settings"):
        pull(run, second)
    assert snapshot(run.folder) == before


def test_a_run_is_not_copied_onto_itself(run: Run) -> None:
    for step in (4, 8, 12):
        save(run, step, best=step == 4)
    before = snapshot(run.folder)
    with pytest.raises(UserError, match="folder of the run itself"):
        push(run, run.folder.parent)
    assert not pull(run, run.folder.parent)
    assert snapshot(run.folder) == before


@pytest.mark.parametrize("path", ["checkpoints/..", "..", "/tmp/step_1", "checkpoints/a/step_1", "step_1", None])
def test_a_pointer_that_leads_elsewhere_is_refused(run: Run, second: Path, copy: Run, path: str | None) -> None:
    save(run, 4)
    push(run, second)
    write_json(copy.checkpoints / "last.json", {"step": 9, "path": path, "sha256": "0"})
    before = snapshot(second), snapshot(run.folder)
    for way in (push, pull):
        with pytest.raises(UserError, match="last.json holds"):
            way(run, second)
    assert (snapshot(second), snapshot(run.folder)) == before


# restores ------------------------------------------------------------------------------------------------------------


def test_a_lost_run_comes_back(run: Run, second: Path, copy: Run) -> None:
    assert not pull(run, second)
    assert not run.folder.exists()
    for step in (4, 8, 12):
        save(run, step, best=step == 4)
    push(run, second)
    expected, records = found(run), snapshot(copy.folder)
    shutil.rmtree(run.folder.parent)
    assert pull(run, second)
    assert found(run) == expected and snapshot(run.folder) == records
    assert not pull(run, second)
    save(run, 16)
    push(run, second)
    assert_copied(run, copy)


def test_only_a_later_step_comes_back(run: Run, second: Path, copy: Run, tmp_path: Path) -> None:
    save(run, 4, best=True)
    shutil.copytree(run.folder, tmp_path / "early" / "run")
    save(run, 8, best=True)
    push(run, second)
    save(run, 12)
    before = stamps(run.folder)
    assert not pull(run, second), "the local run is newer"
    assert stamps(run.folder) == before
    early = Run(tmp_path / "early" / "run")
    assert pull(early, second)
    assert found(early) == found(copy)
    assert early.history_file.read_bytes() == copy.history_file.read_bytes()
    before = stamps(early.folder)
    assert not pull(early, second), "as far as the copy"
    assert stamps(early.folder) == before


def test_a_run_that_had_no_checkpoint_yet_gets_the_copys(run: Run, second: Path, copy: Run) -> None:
    save(run, 4)
    push(run, second)
    shutil.rmtree(run.checkpoints)
    assert pull(run, second)
    assert found(run) == found(copy)


def test_a_damaged_copy_does_not_come_back(run: Run, second: Path, copy: Run) -> None:
    save(run, 4)
    push(run, second)
    path = copy.checkpoints / "step_000004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    shutil.rmtree(run.folder)
    with pytest.raises(UserError, match="model.safetensors has sha256.*damaged"):
        pull(run, second)
    assert not run.config_file.exists()


# kills ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was handed to the operating system; waiting for the disk would only take time."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


def killed_at(change: int, work: Callable[[], Any]) -> bool:
    """Do ``work`` in a process of its own that SIGKILL ends right before its ``change``-th change to any file.

    Returns:
        Whether it came that far.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), f"the child failed: {status}"
        return status != 0
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in CHANGES or writes:
            count += 1
            if count == change:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(hook)
        work()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("case", ["first", "next", "same name"])
def test_killed_before_any_change_the_copy_is_readable_and_the_next_completes_it(
    run: Run, second: Path, copy: Run, case: str, tmp_path: Path
) -> None:
    if case != "first":
        save(run, 4, best=True, seed=1)
        push(run, second)
    if case == "same name":
        shutil.rmtree(run.checkpoints)
        save(run, 4, best=True, seed=2)
    else:
        save(run, 8, best=True)
    run.figures.mkdir()
    (run.figures / "curve.png").write_bytes(b"png")
    shutil.copytree(second, before := tmp_path / "before")
    old, new = found(copy), found(run)
    change, seen = 1, []
    while killed_at(change, lambda: push(run, second)):
        now = found(copy)
        assert all(now.get(which, old.get(which)) in (old.get(which), new[which]) for which in new)
        assert set(now) >= set(old)
        seen.append(now)
        if change % 3 == 0:  # a second kill, while what the first one left is cleaned up
            killed_at(change // 2, lambda: push(run, second))
            assert set(found(copy)) >= set(old)
        if copy.config_file.exists() and change % 3 == 1:
            elsewhere = Run(tmp_path / f"vm{change}" / "run")
            assert pull(elsewhere, second) and found(elsewhere) == found(copy)
        push(run, second)
        assert_copied(run, copy)
        shutil.rmtree(second)
        shutil.copytree(before, second)
        change += 1
    assert_copied(run, copy)
    assert change > 15 and old in seen and new in seen


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("case", ["nothing", "an earlier step"])
def test_a_restore_killed_before_any_change(run: Run, second: Path, copy: Run, case: str, tmp_path: Path) -> None:
    before = tmp_path / "before"
    save(run, 4, best=True)
    if case == "an earlier step":
        shutil.copytree(run.folder, before)
    save(run, 8)
    save(run, 12, best=True)
    push(run, second)
    old, new = found(Run(before)), found(run)
    change, seen = 1, []
    while True:
        shutil.rmtree(run.folder)
        if before.exists():
            shutil.copytree(before, run.folder)
        if not killed_at(change, lambda: pull(run, second)):
            break
        if run.config_file.exists():
            now = found(run)
            assert all(now[which] in (old[which], new[which]) for which in new)
            seen.append(now)
        else:
            assert case == "nothing"
        pull(run, second)
        assert found(run) == new and not list(run.folder.rglob("*.tmp"))
        change += 1
    assert found(run) == new
    assert change > 10 and (case == "nothing" or old in seen)


@pytest.mark.parametrize("step", ["replace", "copyfile", "fsync"])
def test_any_write_that_fails_leaves_a_readable_copy(
    run: Run, second: Path, copy: Run, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 4, best=True)
    push(run, second)
    save(run, 8, best=True)
    shutil.copytree(second, before := tmp_path / "before")
    module = shutil if step == "copyfile" else os
    real = getattr(module, step)

    def push_failing(at: int) -> bool:
        """Copy with the call number ``at`` failing; whether it came to that."""
        calls: list[int] = []

        def fail(*arguments: Any) -> Any:
            calls.append(at)
            if len(calls) == at:
                raise OSError(5, "Input/output error")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, step, fail)
            try:
                push(run, second)
            except CopyError as error:
                assert "Input/output error" in str(error)
        return len(calls) >= at

    at = 1
    while push_failing(at):
        assert found(copy).keys() == set(POINTERS)
        assert not list(second.rglob("*.tmp"))
        push(run, second)
        assert_copied(run, copy)
        shutil.rmtree(second)
        shutil.copytree(before, second)
        at += 1
    assert at > 3


@pytest.mark.usefixtures("no_fsync")
def test_sigkill_at_random_moments(run: Run, second: Path, copy: Run) -> None:
    """Saving and copying without a pause, with steps that come again with other content."""
    save(run, 4, best=True, size=300)
    push(run, second)
    draw = random.Random(0)
    moved = set()
    for life in range(10):
        child = os.fork()
        if child == 0:
            try:
                for turn in range(1000):
                    save(run, 4 * (1 + turn % 3), best=turn % 2 == 0, seed=1000 * life + turn, size=300)
                    push(run, second)
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert found(copy).keys() == set(POINTERS)
        moved.add(found(copy)["last"])
        with contextlib.suppress(FileNotFoundError):
            (run.folder / "history.csv").rename(run.folder / "history.old")
        save(run, 16, seed=life, size=300)
        push(run, second)
        assert_copied(run, copy)
    assert len(moved) > 5, "the kills met the copying at work"
