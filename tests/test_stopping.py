"""A run that ends before its time, by its patience or by what happens around it, and what it takes to go on."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_fit import MEASURED, Stopped, assert_equal_runs, assert_same, press, weights
from test_run_folder import file_size_limit
from toy import COUNTS, HALVES, SIZE, STEPS_PER_EPOCH, ToyConfig, ToyTask, train

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, ema, epoch_end, history, lock, mirror, session
from nbhelpers.training.fit import Fitted, fit
from nbhelpers.training.guards import watch
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.metrics import mean_metric
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run
from nbhelpers.training.task import Evaluation, Monitor, Phase, Predictor, Update


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four epochs in one go; what every disturbed run must equal."""
    return train(tmp_path_factory.mktemp("whole"), epochs=4).run


# early stopping ------------------------------------------------------------------------------------------------------

SCORES = (5.0, 4.0, 4.5, 3.0, 3.5, 3.2, 3.1, 2.9, 3.3, 3.4)  # after each epoch; 3.5 and 3.2 follow the second best


class Scripted(ToyTask):
    """Its validation scores are given; which epoch it is, the optimizer's own counter says, so also after a resume."""

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        scored = super().evaluate(split, predictor)
        states = list(self.phases[0].optimizers["net"].state.values())
        if split != "val" or predictor is not None or not states:
            return scored
        score = SCORES[int(states[0]["step"]) // STEPS_PER_EPOCH - 1]
        counts = np.full((COUNTS[split], len(HALVES)), SIZE * SIZE / len(HALVES))
        mse = mean_metric(score * counts, counts, labels=HALVES, better="lower", units="m^2")
        return Evaluation({**scored.metrics, "mse": mse}, scored.spreads)


def scripted(folder: Path, name: str = "run", at: int | None = None, **settings: Any) -> tuple[ToyTask, Run]:
    class ScriptedAndStopped(Stopped, Scripted):
        pass

    config = ToyConfig(epochs=len(SCORES), **settings)
    task = Scripted(config) if at is None else ScriptedAndStopped(config, at, press)
    return task, open_run(task, folder, name)


@pytest.mark.parametrize(
    ("patience", "armed_after", "last_epoch"),
    [
        (1, 0, 3),
        (2, 0, 6),  # the third epoch's stale one is forgotten at the fourth
        (4, 0, 10),  # 3.5, 3.2, 3.1 are stale, 2.9 is not
        (1, 3, 5),  # the third epoch is not counted
        (1, 5, 9),  # the best of all but the first five is the eighth
        (3, 6, 10),
    ],
)
def test_patience_counts_epochs_without_a_better_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], patience: int, armed_after: int, last_epoch: int
) -> None:
    task, run = scripted(tmp_path, patience=patience, armed_after=armed_after)
    fitted = fit(task, run)
    early = last_epoch < len(SCORES)
    assert fitted.epochs == last_epoch == len(history.read_rows(run.history_file))
    assert (fitted.stopped_early, fitted.interrupted) == (early, False)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Early stopping: ")]
    best = checkpoint.find(run, "best")
    assert best is not None
    liked = armed_after + int(np.argmin(SCORES[armed_after:last_epoch]))
    assert said == early * [
        f"Early stopping: best val_mse {SCORES[liked]:.4g} at epoch {1 + liked}; val_mse has not improved for "
        f"{patience} epochs. A larger patience goes on from here."
    ]
    assert best.step == STEPS_PER_EPOCH * (1 + liked), "none of the warm-up"


def test_what_is_better() -> None:
    low, high = Monitor("mae", "min"), Monitor("psnr", "max")
    assert low.better(1.0, None) and high.better(1.0, None)
    assert low.better(math.nextafter(1.0, 0), 1.0) and not low.better(1.0, 1.0) and not low.better(1.1, 1.0)
    assert high.better(math.nextafter(1.0, 2), 1.0) and not high.better(1.0, 1.0) and not high.better(0.9, 1.0)
    assert low.better(0.85, 1.0, by=0.1) and not low.better(0.95, 1.0, by=0.1)
    assert high.better(1.15, 1.0, by=0.1) and not high.better(1.05, 1.0, by=0.1)
    assert not low.better(math.nan, 1.0) and not high.better(math.nan, None)


@pytest.mark.parametrize(("patience", "last_epoch"), [(3, 7), (4, 8), (5, 9), (7, 10)])
def test_gains_below_the_delta_use_up_patience_and_yet_make_the_best_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], patience: int, last_epoch: int
) -> None:
    """2.9 is better than 3, but not by more than 0.5: patience counts on from 3, and 2.9 is best."""
    task, run = scripted(tmp_path, patience=patience, delta=0.5)
    fitted = fit(task, run)
    best = checkpoint.find(run, "best")
    assert best is not None
    assert fitted.epochs == last_epoch
    assert best.step == STEPS_PER_EPOCH * (4 if last_epoch < 8 else 8)
    said = capsys.readouterr().out.splitlines()
    eighth = [line for line in said if line.startswith("epoch 8/10")]
    assert all(line.endswith(f"best so far  no improvement by more than 0.5 (4/{patience})") for line in eighth)
    assert len(eighth) == (last_epoch >= 8)
    remark = f"Stopped early after {last_epoch} of 10 epochs: {patience} without a better mse by more than 0.5."
    assert (remark in make_report(task, run)["remarks"]) == fitted.stopped_early == (last_epoch < 10)


def test_many_small_gains_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch is 0.2 better: two are not enough for a delta of 0.5, three are, counted from where patience began."""
    monkeypatch.setattr(sys.modules[__name__], "SCORES", tuple(5 - 0.2 * epoch for epoch in range(10)))
    for patience, last_epoch in ((2, 3), (3, 10)):
        task, run = scripted(tmp_path, f"patience_{patience}", patience=patience, delta=0.5)
        assert fit(task, run).epochs == last_epoch


def test_a_run_that_stopped_early_stays_stopped_and_says_so(tmp_path: Path) -> None:
    task, run = scripted(tmp_path, patience=2)
    fit(task, run)
    before = contents(run.folder)
    for again in (task, scripted(tmp_path, patience=2)[0], scripted(tmp_path, patience=1)[0]):
        config = before["config.json"]
        fitted = fit(again, run)
        assert (fitted.epochs, fitted.stopped_early, fitted.interrupted) == (6, True, False)
        assert fitted.resumed_from == 6 * STEPS_PER_EPOCH
        assert {**contents(run.folder), "config.json": config} == before
    remarks = make_report(task, run)["remarks"]
    assert remarks[0] == "Stopped early after 6 of 10 epochs: 2 without a better mse."


def test_a_larger_patience_goes_on(tmp_path: Path) -> None:
    at_once, straight = scripted(tmp_path, "at_once", patience=3)
    fit(at_once, straight)
    task, run = scripted(tmp_path, patience=2)
    assert fit(task, run).epochs == 6
    task, run = scripted(tmp_path, patience=3)
    fitted = fit(task, run)
    assert (fitted.epochs, fitted.stopped_early, fitted.resumed_from) == (7, True, 6 * STEPS_PER_EPOCH)
    assert_equal_runs(run, straight)
    task, run = scripted(tmp_path, patience=5)
    assert fit(task, run).epochs == 10
    assert "Stopped early" not in str(make_report(task, run)["remarks"])


@pytest.mark.parametrize(
    ("at", "settings"),
    [
        (19, {"patience": 2}),  # in the last step of the first stale epoch
        (20, {"patience": 2}),  # in the first of the second
        (33, {"patience": 5, "delta": 0.5}),  # after the eighth, which is best and stale
    ],
)
def test_patience_survives_the_stop_button(tmp_path: Path, at: int, settings: dict[str, Any]) -> None:
    task, straight = scripted(tmp_path, "straight", **settings)
    fit(task, straight)
    task, run = scripted(tmp_path, at=at, **settings)
    stopped = fit(task, run)
    assert stopped.interrupted and not stopped.stopped_early
    task, run = scripted(tmp_path, **settings)
    assert fit(task, run).stopped_early
    assert_equal_runs(run, straight)


# other processes -----------------------------------------------------------------------------------------------------


def test_patience_that_runs_out_with_the_last_epoch_stops_nothing(tmp_path: Path) -> None:
    fitted = train(tmp_path, epochs=4, mode="max", patience=3)
    assert (fitted.epochs, fitted.stopped_early) == (4, False)


# the stop button at odd moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", range(4))
def test_the_button_while_the_average_is_in_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: int
) -> None:
    """Two exchanges to score an epoch, two to save it; pressed in any of them, the weights are those in training."""
    whole = train(tmp_path, "whole", epochs=3, ema_decay=0.9).run
    count = -1

    def pressed(modules: Any, tensors: Any) -> None:
        nonlocal count
        load(modules, tensors)
        count += 1
        if count == 4 + exchange:  # two of the rehearsal's end, two of the first checkpoint
            press()

    load = ema.load
    for module in (ema, session):
        monkeypatch.setattr(module, "load", pressed)
    task = ToyTask(ToyConfig(epochs=3, ema_decay=0.9))
    run = open_run(task, tmp_path, "run")
    assert fit(task, run).interrupted and count >= 4 + exchange
    monkeypatch.undo()
    assert_equal_runs(train(tmp_path, epochs=3, ema_decay=0.9).run, whole)


def test_the_button_when_all_is_done_is_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell = epoch_end._tell

    def pressed(task: Any, row: Any, *more: Any) -> None:
        tell(task, row, *more)
        if row["epoch"] == 2:
            press()

    monkeypatch.setattr(epoch_end, "_tell", pressed)
    fitted = train(tmp_path, epochs=2)
    assert (fitted.interrupted, fitted.epochs) == (False, 2)
    assert "Stopped" not in capsys.readouterr().out


# two processes -------------------------------------------------------------------------------------------------------


class Telling(ToyTask):
    """Says when each update begins, and can stay in one for good."""

    def __init__(self, config: ToyConfig, tell: Connection, stay_in: int):
        super().__init__(config)
        self.tell, self.number, self.stay_in = tell, -1, stay_in  # the first update is the rehearsal's

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        self.tell.send(self.number)
        if self.number == self.stay_in:
            time.sleep(60)
        self.number += 1
        time.sleep(0.01)  # a signal from outside takes a moment
        yield from super().updates(batch, phase)


def _train(folder: Path, tell: Connection, stay_in: int) -> None:
    task = Telling(ToyConfig(epochs=4), tell, stay_in)
    fitted = fit(task, open_run(task, folder, "run"))
    tell.send((fitted.interrupted, fitted.epochs))


@contextmanager
def another_process(folder: Path, stay_in: int = -2) -> Iterator[tuple[Any, Connection]]:
    """A real one that trains in ``folder``, and its words."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nbhelpers.training.fit", "torch._dynamo"])  # the second one by the optimizers
    hear, tell = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(folder, tell, stay_in))
    process.start()
    tell.close()
    try:
        yield process, hear
    finally:
        process.kill()
        process.join()


def wait_for(hear: Connection, word: Any) -> None:
    while hear.poll(60) and hear.recv() != word:
        pass


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 5 < lock.PATIENCE < 7, "the loader processes of a killed run live for five seconds"
    monkeypatch.setattr(lock, "PATIENCE", 1.0)
    with another_process(tmp_path, stay_in=6) as (process, hear):
        wait_for(hear, 6)
        run = Run(tmp_path / "run")
        before = contents(run.folder)
        task = ToyTask(ToyConfig(epochs=4))
        began = time.monotonic()
        with pytest.raises(UserError, match="another process is training in") as caught:
            fit(task, open_run(task, tmp_path, "run"))
        assert 1 <= time.monotonic() - began < 4
        assert str(run.folder) in str(caught.value)
        with pytest.raises(UserError, match="another process is training in"):  # nor are its settings changed
            open_run(ToyTask(ToyConfig(epochs=9)), tmp_path, "run")
        assert contents(run.folder) == before
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        # The task that was refused is as good as new, and a killed process holds nothing.
        assert fit(task, run).resumed_from == STEPS_PER_EPOCH
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_process_saves_and_ends_it(tmp_path: Path, whole: Run, number: signal.Signals) -> None:
    """Ctrl-C ends the training, SIGTERM the process: a script must not go on to its next run."""
    with another_process(tmp_path) as (process, hear):
        wait_for(hear, 5)
        os.kill(process.pid, number)
        heard: list[Any] = [5]
        with suppress(EOFError):
            while True:
                heard.append(hear.recv())
        process.join()
    steps = max(word for word in heard if isinstance(word, int))
    if number == signal.SIGTERM:
        assert process.exitcode == 128 + signal.SIGTERM and heard[-1] == steps
    else:
        assert process.exitcode == 0 and heard[-1] == (True, (steps + 1) // STEPS_PER_EPOCH)
    run = Run(tmp_path / "run")
    last = checkpoint.find(run, "last")
    assert last is not None and last.step == steps + 1 < 4 * STEPS_PER_EPOCH, "the step it was in is saved"
    assert train(tmp_path, epochs=4).resumed_from == last.step
    assert_equal_runs(run, whole)


# the second folder ---------------------------------------------------------------------------------------------------


def assert_equal_but_for(run: Run, whole: Run, finding: str) -> None:
    """As ``assert_equal_runs``, apart from one guard's findings and what they add to the state."""
    assert_same(weights(run), weights(whole), "weights")
    states = [checkpoint.load_state(checkpoint.find(one, "last")) for one in (run, whole)]  # type: ignore[arg-type]
    for state in states:
        found = state["guards"]["findings"]
        state["guards"]["findings"] = [one for one in found if one["name"] != finding]
    assert_same(*states)
    rows = [[{**row, **MEASURED} for row in history.read_rows(one.history_file)] for one in (run, whole)]
    assert_same(*rows, "history")
    assert run.ledger_file.read_text() == whole.ledger_file.read_text()


def assert_copied(run: Run) -> None:
    """The second folder holds what the run needs to go on."""
    assert run.copy_dir is not None
    copy = Run(run.copy_dir / run.name)
    assert_equal_runs(copy, run)
    for which in ("best", "last"):
        there, here = checkpoint.find(copy, which), checkpoint.find(run, which)
        assert there is not None and here is not None and there.sha256 == here.sha256


def train_with_copy(folder: Path, at: int = -1, fault: Callable[[], None] = press, epochs: int = 4) -> Fitted:
    (folder / "drive").mkdir(exist_ok=True)
    config = ToyConfig(epochs=epochs)
    task = ToyTask(config) if at < 0 else Stopped(config, at, fault)
    return fit(task, open_run(task, folder, "run", copy_dir=folder / "drive"))


@pytest.mark.parametrize("vanish", [shutil.rmtree, lambda drive: drive.rename(drive.with_name("away"))])
def test_the_second_folder_vanishes_and_the_training_goes_on(
    tmp_path: Path, whole: Run, vanish: Callable[[Path], Any]
) -> None:
    run = train_with_copy(tmp_path, at=5, fault=lambda: vanish(tmp_path / "drive")).run
    assert len(history.read_rows(run.history_file)) == 4
    (found,) = read_guards(run)
    assert (found["name"], found["severity"], found["step"]) == ("second_folder", "warn", 2 * STEPS_PER_EPOCH)
    assert "there is no such folder" in found["evidence"]
    assert not (tmp_path / "drive").exists(), "it is not made anew on the disk that is lost"
    assert_equal_but_for(run, whole, "second_folder")


def test_the_second_folder_comes_back_and_the_next_save_completes_it(tmp_path: Path, whole: Run) -> None:
    class Unplugged(ToyTask):
        calls = -1  # the first update is the rehearsal's

        def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
            drive, away = tmp_path / "drive", tmp_path / "away"
            if self.calls == 5:  # the save after the second epoch finds nothing
                drive.rename(away)
            if self.calls == 10:
                away.rename(drive)
            self.calls += 1
            yield from super().updates(batch, phase)

    (tmp_path / "drive").mkdir()
    task = Unplugged(ToyConfig(epochs=4))
    run = open_run(task, tmp_path, "run", copy_dir=tmp_path / "drive")
    fit(task, run)
    assert [found["name"] for found in read_guards(run)] == ["second_folder"]
    assert_equal_but_for(run, whole, "second_folder")
    assert_copied(run)


@pytest.mark.parametrize("file", ["state.pt", "model.safetensors", "history.csv"])
def test_the_second_folder_is_full_and_the_training_goes_on(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    copyfile, failures = shutil.copyfile, []

    def full(source: Path, target: Path) -> Any:
        if Path(source).name == file and 0 < len(history.read_rows(run.history_file)) < 4:
            Path(target).write_bytes(Path(source).read_bytes()[:40])
            failures.append(target)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return copyfile(source, target)

    run = Run(tmp_path / "run", tmp_path / "drive")
    monkeypatch.setattr(mirror.shutil, "copyfile", full)
    train_with_copy(tmp_path)
    assert len(failures) == 3, "every save tries again"
    (found,) = read_guards(run)
    assert (found["name"], found["severity"], found["step"]) == ("second_folder", "warn", STEPS_PER_EPOCH)
    assert "No space left on device" in found["evidence"]
    assert_equal_but_for(run, whole, "second_folder")
    assert_copied(run)
    assert not list((tmp_path / "drive").rglob("*.tmp"))


@pytest.mark.parametrize("at", [None, 1, 9])
def test_a_run_whose_disk_is_lost_goes_on_from_its_copy(
    tmp_path: Path, whole: Run, at: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lost after two epochs, or after the stop button in the middle of one; opened again on another machine."""
    if at is None:
        train_with_copy(tmp_path, epochs=2)
    else:
        assert train_with_copy(tmp_path, at=at).interrupted
    shutil.rmtree(tmp_path / "run")
    task = ToyTask(ToyConfig(epochs=4))
    run = open_run(task, tmp_path / "elsewhere", "run", copy_dir=tmp_path / "drive")
    assert "Brought 'run' back" in capsys.readouterr().out
    assert fit(task, run).resumed_from == (8 if at is None else at + 1)
    assert_equal_runs(run, whole)
    assert_copied(run)


# the run's own disk --------------------------------------------------------------------------------------------------


class Nan(ToyTask):
    """The sixth step is not taken: a finding for guards.json in the middle of an epoch."""

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        (sixth,) = (b for number, b in enumerate(self.batches("train", 1)) if number == 1)
        if (batch[0] == sixth[0]).all():
            batch = [batch[0] * float("nan"), batch[1]]
        yield from super().updates(batch, phase)


# What writes the file, which of its calls fails (the first argument's name, the number of rows or the step there is),
# and the bytes beyond which: 20 more than there are leave half a row behind.
WRITES: dict[str, tuple[Any, str, str, int]] = {
    "state.pt": (checkpoint.torch, "save", "state.pt", 900),
    "model.safetensors": (checkpoint, "save_file", "model.safetensors", 100),
    "best.json": (checkpoint, "write_json", "best.json", 40),
    "last.json": (checkpoint, "write_json", "last.json", 40),
    "history.csv": (history, "append_rows", "history.csv", -20),
    "ledger.csv": (history, "append_rows", "ledger.csv", -20),
    "guards.json": (watch, "write_json", "guards.json", 40),
}


@pytest.fixture(scope="module")
def whole_with_nan(tmp_path_factory: pytest.TempPathFactory) -> Run:
    task = Nan(ToyConfig(epochs=3))
    return fit(task, open_run(task, tmp_path_factory.mktemp("nan"), "run")).run


@pytest.mark.parametrize("file", WRITES)
def test_the_disk_is_full_at_any_file_and_the_run_goes_on_later(
    tmp_path: Path, whole_with_nan: Run, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    module, function, name, limit = WRITES[file]
    write, failed = getattr(module, function), []

    def fail(*arguments: Any, **options: Any) -> Any:
        path = next(value for value in arguments if isinstance(value, Path))
        rows = len(history.read_rows(run.history_file))
        # The second epoch's save; its row comes before the save, and the guard speaks before the row.
        if path.name != name or rows != (1 if file in ("history.csv", "guards.json") else 2) or step() < 5:
            return write(*arguments, **options)
        failed.append(path)
        with file_size_limit(path.stat().st_size - limit if limit < 0 else limit):
            return write(*arguments, **options)

    def step() -> int:
        return max((int(state["step"]) for state in task.phases[0].optimizers["net"].state.values()), default=0)

    task = Nan(ToyConfig(epochs=3))
    run = open_run(task, tmp_path, "run")
    monkeypatch.setattr(module, function, fail)
    with pytest.raises(UserError, match="could not be written.*free some space and run again") as caught:
        fit(task, run)
    monkeypatch.undo()
    assert len(failed) == 1 and "\n" not in str(caught.value)
    last = checkpoint.find(run, "last")
    assert last is not None and last.step == STEPS_PER_EPOCH
    checkpoint.load_weights(last, task.modules)
    assert checkpoint.load_state(last)["step"] == STEPS_PER_EPOCH
    assert [row["epoch"] for row in history.read_rows(run.history_file)][:1] == [1]
    read_guards(run)
    task = Nan(ToyConfig(epochs=3))
    assert fit(task, run).resumed_from == STEPS_PER_EPOCH
    assert_equal_runs(run, whole_with_nan)
    assert [found["name"] for found in read_guards(run)] == ["not_finite"]
    assert not list(run.folder.rglob("*.tmp"))


def test_a_disk_that_is_full_when_a_run_is_taken_up_is_one_sentence(tmp_path: Path) -> None:
    train(tmp_path, epochs=2)
    task = ToyTask(ToyConfig(epochs=3))
    run = open_run(task, tmp_path, "run")
    with file_size_limit(100), pytest.raises(UserError, match="could not be written .*free some space and run again"):
        fit(task, run)
    assert train(tmp_path, epochs=3).epochs == 3
