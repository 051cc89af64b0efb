"""``fit``: it learns, it resumes exactly, it stops in one sentence, and everything it did stands in the folder."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from accelerate import tracking
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from toy import STEPS_PER_EPOCH, ToyConfig, ToyTask, toy, train
from toy_gan import train_gan

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, history, pointers
from nbhelpers.training import fit as fit_module
from nbhelpers.training import session as session_module
from nbhelpers.training import state as state_module
from nbhelpers.training.fit import Fitted, fit
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.opening import open_run
from nbhelpers.training.qualified import none_qualified
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run
from nbhelpers.training.task import Evaluation, LossTerm, Monitor, Phase, Update


def press() -> None:
    """The notebook's stop button, or Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


class Stopped(ToyTask):
    """Presses the stop button (or whatever ``fault`` does) before the update of step ``at``."""

    def __init__(self, config: ToyConfig, at: int, fault: Callable[[], None] | None = None):
        super().__init__(config)
        self.at, self.fault = at + 1, fault  # the first update is the rehearsal's

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        self.at -= 1
        if self.at == -1:
            if self.fault is None:
                raise KeyboardInterrupt
            self.fault()
        yield from super().updates(batch, phase)


def weights(run: Run) -> dict[str, torch.Tensor]:
    found = checkpoint.find(run, "last")
    assert found is not None
    return load_file(found.folder / "model.safetensors")


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    """Exact equality of nested plain types and tensors."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert one == other or (one != one and other != other), f"{where}: {one} against {other}"


MEASURED = dict.fromkeys(("seconds", "memory_gb", "gpu_memory_gb"))  # of the machine, not of the run


def assert_equal_runs(one: Run, other: Run) -> None:
    """Weights, optimizer, schedules, balance, guards, history (but the machine's) and ledger are equal, bit by bit."""
    assert_same(weights(one), weights(other), "weights")
    ids = [checkpoint.find(run, "last").sha256 for run in (one, other)]
    assert ids[0] == ids[1], "a report names the same checkpoint"
    states = [checkpoint.load_state(found) for found in (checkpoint.find(one, "last"), checkpoint.find(other, "last"))]
    assert_same(*states)
    assert one.guards_file.read_text() == other.guards_file.read_text()
    rows = [[{**row, **MEASURED} for row in history.read_rows(run.history_file)] for run in (one, other)]
    assert_same(*rows, "history")
    assert one.ledger_file.read_text() == other.ledger_file.read_text()
    assert_same(*(named_checkpoints(run) for run in (one, other)), "pointers")


def named_checkpoints(run: Run) -> dict[str, Any]:
    """Every pointer of a run, without the folders: one that was written twice has another name."""

    def plain(pointer: dict[str, Any]) -> dict[str, Any]:
        # Not the file's sha256: that of a run that was extended holds the plan that was known when it was written.
        content = {"step": pointer["step"], "value": pointer.get("value")}
        content["weights"] = load_file(run.folder / pointer["path"] / "model.safetensors")
        content |= {key: [plain(one) for one in pointer.get(key, ())] for key in pointers.LISTS}
        return content | {"parents": [one["step"] for one in pointer.get("parents", ())]}

    found = {name: pointers.read(run, name) for name in pointers.names(run)}
    for name in found:
        assert checkpoint.find(run, name) is not None
    return {name: plain(pointer) for name, pointer in found.items() if pointer is not None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four epochs in one go; what every interrupted run must equal."""
    return train(tmp_path_factory.mktemp("whole"), epochs=4).run


# training ------------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_writes_down_how(tmp_path: Path) -> None:
    task, run = toy(tmp_path, epochs=8)
    start = task.evaluate("val").metrics["mse"].value
    seen: list[int] = []
    fitted = fit(task, run, on_epoch=lambda rows: seen.append(len(rows)))
    assert fitted == Fitted(run, epochs=8, resumed_from=None, interrupted=False)
    assert seen == list(range(1, 9))
    rows = history.read_rows(run.history_file)
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows] == [STEPS_PER_EPOCH * row["epoch"] for row in rows]
    assert list(rows[0]) == [
        "epoch", "step", "phase", "train_total", "train_mse", "train_slope", "train_weight_slope",
        "train_prediction_min", "train_prediction_max", "train_skill", "skipped_steps", "val_mse", "val_mae",
        "val_never_counted", "val_prediction_min", "val_prediction_max", "val_target_min", "val_target_max", "lr_net",
        "seconds", "memory_gb", "gpu_memory_gb",
    ]  # fmt: skip
    assert rows[-1]["train_total"] < 0.3 * rows[0]["train_total"]
    assert rows[-1]["val_mse"] < 0.3 * start
    assert rows[-1]["val_mse"] == pytest.approx(task.evaluate("val").metrics["mse"].value), "scored after the epoch"
    assert rows[0]["lr_net"] > rows[-1]["lr_net"] == pytest.approx(0.03 / (1 + 32 / 50)), "the schedule steps per step"
    assert all(row["train_prediction_min"] < row["train_prediction_max"] for row in rows)
    assert fitted.run.read_config()["config"]["epochs"] == 8


def test_the_ledger_has_the_first_steps_then_every_tenth_and_the_share_that_was_asked_for(tmp_path: Path) -> None:
    rows = history.read_rows(train(tmp_path, epochs=15, slope_share=0.1).run.ledger_file)
    assert [(row["step"], row["term"]) for row in rows] == [
        (step, term) for step in (*range(16), *range(20, 60, 10)) for term in ("mse", "slope")
    ]
    assert list(rows[0]) == [
        "step", "phase", "optimizer", "term", "raw", "weight", "value_share", "grad_share", "cosine_to_total",
        "effective_weight", "events", "cosine_to_slope", "cosine_to_mse",
    ]  # fmt: skip
    for mse, slope in zip(rows[::2], rows[1::2], strict=True):
        assert mse["grad_share"] + slope["grad_share"] == pytest.approx(1)
        assert 0.07 < slope["grad_share"] < 0.15
        assert mse["cosine_to_slope"] == pytest.approx(slope["cosine_to_mse"])
    shares = [row["grad_share"] for row in rows if row["term"] == "slope"]
    assert 0.08 < median(shares) < 0.12
    assert len({row["weight"] for row in rows if row["term"] == "slope"}) > 3, "the weight follows the gradients"


def test_the_gradient_that_trains_is_that_of_the_weighted_sum(tmp_path: Path) -> None:
    """One step of ``fit`` against the step written out by hand."""
    task, run = toy(tmp_path, epochs=1, slope_weight=0.7, grad_clip=0.5)
    plain = ToyTask(task.config)
    (optimizer,) = plain.phases[0].optimizers.values()
    (schedule,) = plain.phases[0].schedulers.values()
    fit(task, run)
    plain.modules["net"].train()
    for step, batch in enumerate(plain.batches("train", 0)):
        fit_module._reseed(plain, step)  # dropout
        (update,) = plain.updates(batch, plain.phases[0])
        optimizer.zero_grad()
        sum(float(term.weight) * term.fn(update.prediction) for term in update.terms).backward()
        torch.nn.utils.clip_grad_norm_(plain.modules["net"].parameters(), 0.5)
        optimizer.step()
        schedule.step()
    for ours, by_hand in zip(task.modules["net"].parameters(), plain.modules["net"].parameters(), strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-6)
    (row,) = history.read_rows(run.history_file)
    assert row["train_total"] == pytest.approx(row["train_mse"] + 0.7 * row["train_slope"])
    assert "train_weight_slope" not in row, "a plain weight stands in config.json"


@pytest.mark.parametrize(("mode", "liked"), [("min", min), ("max", max)])
def test_the_best_checkpoint_is_the_one_the_monitor_liked_most(tmp_path: Path, mode: str, liked: Any) -> None:
    run = train(tmp_path, epochs=6, mode=mode).run
    scores = {row["step"]: row["val_mse"] for row in history.read_rows(run.history_file)}
    best, last = checkpoint.find(run, "best"), checkpoint.find(run, "last")
    assert best is not None and last is not None and last.step == 24
    assert best.step == liked(scores, key=scores.__getitem__)
    assert (best == last) == (mode == "min")
    task = ToyTask(ToyConfig())
    checkpoint.load_weights(best, task.modules)
    assert task.evaluate("val").metrics["mse"].value == pytest.approx(scores[best.step])


NONE = (
    "No epoch qualified as the best: val_never_counted is undefined in all of them ({n}). The newest stands in for it: "
)


def test_a_score_that_is_never_defined_leaves_the_last_as_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, run = toy(tmp_path, epochs=3, monitor="never_counted", armed_after=1)
    fit(task, run)
    assert checkpoint.find(run, "best") == checkpoint.find(run, "last") != None  # noqa: E711
    said = NONE.format(n=2) + "epoch 3 (step 12)."
    assert capsys.readouterr().out.splitlines()[-1] == said
    report = make_report(task, run)
    assert report["remarks"] == [said, *task.remarks()]
    assert report["checkpoint"]["step"] == 12
    assert (run.folder / "report.md").read_text().splitlines()[2] == f"> **{said}**"


def test_stopped_before_any_epoch_qualified_the_report_says_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"epochs": 5, "monitor": "never_counted", "patience": 2}
    stopped = Stopped(ToyConfig(**settings), at=5, fault=press)
    run = open_run(stopped, tmp_path, "run")
    assert fit(stopped, run).interrupted
    assert make_report(*toy(tmp_path, **settings))["remarks"][0] == NONE.format(n=1) + "epoch 1 (step 4)."
    assert train(tmp_path, **settings).stopped_early
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == (
        "Early stopping: val_never_counted has not improved for 2 epochs. A larger patience goes on from here."
    )
    assert said[-1] == NONE.format(n=2) + "epoch 2 (step 8)."
    remarks = make_report(*toy(tmp_path, **settings))["remarks"]
    assert [remark.split()[0] for remark in remarks] == ["No", "Stopped", "Made-up"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "armed_after", "weights", "counted"),
    [
        ((NAN, NAN, None), 0, None, 3),
        ((1.0, NAN, NAN), 1, None, 2),  # the first epoch is warm-up
        ((NAN, NAN, NAN), 3, None, 0),  # all are: none could be the best
        ((NAN, 1.0, NAN), 1, None, 0),
        ((1.0, NAN, NAN), 0, (0.1, 0.2, 0.2), 2),  # what was best under other loss weights is forgotten
        ((NAN, NAN, 1.0), 0, (0.1, 0.2, 0.2), 0),
    ],
)
def test_which_epochs_could_have_been_the_best(
    scores: tuple[Any, ...], armed_after: int, weights: tuple[float, ...] | None, counted: int
) -> None:
    rows: list[dict[str, Any]] = [{"phase": "first", "epoch": 1, "step": 4, "val_mse": 1.0}]
    for number, score in enumerate(scores):
        schedule = {} if weights is None else {"schedule_mse": weights[number]}
        rows.append({"phase": "second", "epoch": number + 2, "step": 4 * number + 8, "val_mse": score, **schedule})
    said = none_qualified(rows, "second", Monitor("mse", "min", armed_after=armed_after), 16, several=True)
    expected = (
        f"No epoch of phase 'second' qualified as the best: val_mse is undefined in all of them ({counted}). "
        "The newest stands in for it: epoch 4 (step 16)."
    )
    assert said == (expected if counted else "")
    assert none_qualified(rows, "second", Monitor("mse", "min", armed_after=armed_after), None) == ""


def test_one_epoch_that_qualifies_is_the_best_and_nothing_is_remarked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Late(ToyTask):
        """Its score is undefined in all epochs but the second."""

        def evaluate(self, split: str, predictor: Any = None) -> Evaluation:
            scored = super().evaluate(split, predictor)
            step = max((int(s["step"]) for s in self.phases[0].optimizers["net"].state.values()), default=0)
            return scored if step != 8 else Evaluation({**scored.metrics, "never_counted": scored.metrics["mse"]}, {})

    task = Late(ToyConfig(epochs=4, monitor="never_counted"))
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    best = checkpoint.find(run, "best")
    assert best is not None and best.step == 8
    assert "No epoch" not in capsys.readouterr().out
    assert make_report(task, run)["remarks"] == task.remarks()


# what is printed -----------------------------------------------------------------------------------------------------


def test_the_line_of_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, run = toy(tmp_path, epochs=2)
    task.monitor = Monitor("mse", "min", beside=("mae",))
    fit(task, run)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    for line, row in zip(lines, history.read_rows(run.history_file), strict=True):
        numbers = f"loss {row['train_total']:.4g}  val_mse {row['val_mse']:.4g}  val_mae {row['val_mae']:.4g}"
        rest = f"lr {row['lr_net']:.3g}  {row['seconds']:.0f} s  best so far"
        assert line == f"epoch {row['epoch']}/2  {numbers}  {rest}"
    assert "lr 0.0278  " in lines[0], "0.03 / (1 + 4/50)"


def test_learning_rates_that_differ_are_all_in_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"pixel_epochs": 1, "adversarial_epochs": 1, "generator_lr": 0.01}
    train_gan(tmp_path, "two", discriminator_lr=0.001, **settings)
    train_gan(tmp_path, "one", discriminator_lr=0.01, **settings)
    lines = [line for line in capsys.readouterr().out.splitlines() if " (adversarial) " in line]
    assert "  lr 0.00926/0.000926  " in lines[0] and "  lr 0.00926  " in lines[1]


def test_the_progress_bar_has_the_last_scores_beside_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []

    class Bar(fit_module.tqdm):  # type: ignore[misc]
        def set_postfix(self, ordered_dict: Any = None, refresh: Any = True, **more: Any) -> None:
            shown.append(dict(ordered_dict))

    monkeypatch.setattr(fit_module, "tqdm", Bar)
    monkeypatch.setattr(fit_module, "is_notebook", lambda: True)
    for at in (5, 99):  # taken up within the second epoch it still knows what the first one scored
        task = Stopped(ToyConfig(epochs=3), at=at, fault=press)
        task.monitor = Monitor("mse", "min", beside=("mae", "never_counted"))
        run = open_run(task, tmp_path, "run")
        fit(task, run)
    rows = history.read_rows(run.history_file)
    first, second, third = shown[:4], shown[4:7], shown[7:]  # the step in which the button was pressed shows nothing
    assert all(list(one) == ["total", "mse", "slope", "weight_slope"] for one in first)
    for row, epoch in zip(rows, (second, third), strict=False):
        assert [list(one)[:3] for one in epoch] == [["total", "val_mae", "val_never_counted"]] * len(epoch)
        assert {one["val_mae"] for one in epoch} == {f"{row['val_mae']:.4g}"}
    assert len(third) == STEPS_PER_EPOCH


def test_two_updates_of_one_batch_are_averaged_apart(tmp_path: Path) -> None:
    class Twice(ToyTask):
        def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
            (first,) = super().updates(batch, phase)
            yield first
            prediction = self.modules["net"](batch[0])
            yield Update("net", prediction, (LossTerm("constant", lambda p: 0 * p.sum() + 2.0, 1.0),))

    task = Twice(ToyConfig(epochs=1))
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    (row,) = history.read_rows(run.history_file)
    assert row["train_constant"] == 2.0
    assert row["step"] == STEPS_PER_EPOCH


def test_autocast_does_not_outlive_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mixed precision the report of the notebook's task must be that of a fresh process: float32."""
    monkeypatch.setattr(fit_module, "pick_precision", lambda device: "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate allows one precision a process
    try:
        task, run = toy(tmp_path, epochs=1)
        dtypes = []
        task.modules["net"][1].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        fit(task, run)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert set(dtypes) == {torch.bfloat16}
    fresh = ToyTask(task.config)
    checkpoint.load_weights(checkpoint.find(run, "last"), fresh.modules)
    batch = next(iter(task.batches("val", 0)))
    assert torch.equal(task.predict(batch), fresh.predict(batch))


# resuming ------------------------------------------------------------------------------------------------------------


def test_two_runs_of_the_same_seed_are_equal_and_of_another_are_not(whole: Run, tmp_path: Path) -> None:
    run = train(tmp_path, epochs=4).run
    assert_equal_runs(run, whole)
    assert checkpoint.find(run, "last").sha256 == checkpoint.find(whole, "last").sha256
    other = train(tmp_path, "other", epochs=4, seed=1).run
    assert not torch.equal(weights(other)["net.1.weight"], weights(whole)["net.1.weight"])


def test_more_epochs_extend_a_run_to_what_it_had_been_in_one_go(
    whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, epochs=1).resumed_from is None
    assert "Resuming" not in capsys.readouterr().out
    fitted = train(tmp_path, epochs=3)
    assert (fitted.resumed_from, fitted.epochs) == (4, 3)
    assert f"Resuming {fitted.run.folder} after epoch 1 (step 4)" in capsys.readouterr().out
    assert_equal_runs(train(tmp_path, epochs=4).run, whole)


def test_a_finished_run_is_left_as_it_is(whole: Run) -> None:
    before = {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}
    fitted = train(whole.folder.parent, epochs=4)
    assert (fitted.resumed_from, fitted.epochs, fitted.interrupted) == (16, 4, False)
    assert {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("at", [0, 2, 4, 11], ids=lambda at: f"update {at}")
@pytest.mark.parametrize("again", ["same task", "fresh task"])
def test_the_stop_button_costs_nothing(
    whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int, again: str
) -> None:
    """Pressed in the middle of a step, which is finished first; then the notebook's cell is run again (same task), or
    the notebook is opened again (fresh task)."""
    task = Stopped(ToyConfig(epochs=4), at, press)
    run = open_run(task, tmp_path, "run")
    stopped = fit(task, run)
    assert (stopped.interrupted, stopped.epochs) == (True, at // STEPS_PER_EPOCH)
    last = checkpoint.find(run, "last")
    assert last is not None and last.step == at + 1, "the step was finished and saved"
    said = capsys.readouterr().out
    assert f"Stopped in epoch {at // 4 + 1} of 4. Run again to go on from step {at + 1}." in said
    assert task.evaluate("val").metrics["mse"].groups == 8, "the later cells work"
    assert make_report(task, run)["checkpoint"]["step"] <= at + 1
    fitted = fit(task, run) if again == "same task" else train(tmp_path, epochs=4)
    assert (fitted.interrupted, fitted.epochs, fitted.resumed_from) == (False, 4, at + 1)
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("at", [2, 11])
def test_a_torn_step_is_not_saved(whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int) -> None:
    """Pressed twice: the step is not waited for, and the run goes on from the checkpoint before."""

    def twice() -> None:
        press()
        press()

    task = Stopped(ToyConfig(epochs=4), at, twice)
    run = open_run(task, tmp_path, "run")
    assert fit(task, run).interrupted
    before = at // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    where = f"from step {before}" if before else "from the beginning"
    assert f"Run again to go on {where}." in capsys.readouterr().out
    assert_equal_runs(train(tmp_path, epochs=4).run, whole)


def test_the_button_works_during_the_evaluation(whole: Run, tmp_path: Path) -> None:
    class Slow(ToyTask):
        seen = 0

        def evaluate(self, split: str, predictor: Any = None) -> Any:
            self.seen += 1
            if self.seen == 3:  # before training, after epoch 1, after epoch 2
                press()
            return super().evaluate(split, predictor)

    task = Slow(ToyConfig(epochs=4))
    run = open_run(task, tmp_path, "run")
    stopped = fit(task, run)
    assert (stopped.interrupted, stopped.epochs) == (True, 1)
    last = checkpoint.find(run, "last")
    assert last is not None and last.step == 2 * STEPS_PER_EPOCH, "the second epoch's training is saved"
    assert_equal_runs(train(tmp_path, epochs=4).run, whole)


@pytest.mark.parametrize("pointer", ["best.json", "last.json"])
def test_a_save_that_dies_between_data_and_pointer_costs_one_epoch(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pointer: str
) -> None:
    write = checkpoint.write_json

    def killed(path: Path, content: dict[str, Any]) -> None:
        if path.name == pointer and content["step"] == 8:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_json", killed)
    assert train(tmp_path, epochs=4).interrupted
    monkeypatch.undo()
    fitted = train(tmp_path, epochs=4)
    assert fitted.resumed_from == 4
    assert_equal_runs(fitted.run, whole)


def test_a_disk_that_fills_up_ends_in_a_sentence_and_the_run_goes_on_later(whole: Run, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))

    task = Stopped(ToyConfig(epochs=4), at=9, fault=fill)
    run = open_run(task, tmp_path, "run")
    try:
        with pytest.raises(UserError, match="free some space and run again"):
            fit(task, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = checkpoint.find(run, "last")
    assert last is not None and last.step == 8
    assert len(history.read_rows(run.history_file)) == 2
    assert_equal_runs(train(tmp_path, epochs=4).run, whole)


def test_going_on_from_a_given_checkpoint_of_the_run_itself(tmp_path: Path) -> None:
    run = train(tmp_path, epochs=8, mode="max").run
    best = checkpoint.find(run, "best")
    assert best is not None and best.step == 4
    task, _ = toy(tmp_path, epochs=8, mode="max")
    after = history.read_rows(run.history_file)
    fitted = fit(task, run, start=best.folder)
    assert (fitted.resumed_from, fitted.epochs) == (4, 8)
    assert_same([{**row, **MEASURED} for row in history.read_rows(run.history_file)],
                [{**row, **MEASURED} for row in after])  # fmt: skip
    assert checkpoint.find(run, "best") == best


def test_going_back_and_killed_before_the_first_save_the_run_is_back_there(tmp_path: Path) -> None:
    """Its rows are cut to the earlier checkpoint, so its last one must be that as well."""
    run = train(tmp_path, epochs=4, mode="max").run
    best = checkpoint.find(run, "best")
    assert best is not None and best.step == 4

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    task = Stopped(ToyConfig(epochs=4, mode="max"), at=0, fault=kill)
    with pytest.raises(Killed):
        fit(task, run, start=best.folder)
    assert checkpoint.find(run, "last") == best
    assert train(tmp_path, epochs=4, mode="max").resumed_from == 4
    assert [row["epoch"] for row in history.read_rows(run.history_file)] == [1, 2, 3, 4]


def test_the_button_while_a_run_is_taken_up_changes_nothing(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tmp_path, epochs=2).run
    before = checkpoint.find(run, "last")
    for module, name in ((session_module, "restore"), (state_module, "load_weights"), (checkpoint, "find")):
        function = getattr(module, name)

        def pressed(*args: Any, function: Callable[..., Any] = function) -> Any:
            monkeypatch.undo()
            press()
            return function(*args)

        monkeypatch.setattr(module, name, pressed)
        assert train(tmp_path, epochs=4).interrupted
        assert checkpoint.find(run, "last") == before
        assert len(history.read_rows(run.history_file)) == 2
    assert_equal_runs(train(tmp_path, epochs=4).run, whole)


def test_fewer_epochs_than_are_trained_are_refused(tmp_path: Path) -> None:
    run = train(tmp_path, epochs=3).run
    with pytest.raises(UserError, match="has 3 finished epochs and 2 are asked for"):
        train(tmp_path, epochs=2)
    assert run.read_config()["config"]["epochs"] == 3


def test_stopped_after_going_back_the_pointers_still_hold(tmp_path: Path) -> None:
    run = train(tmp_path, epochs=8, mode="max").run
    best = checkpoint.find(run, "best")
    assert best is not None
    task = Stopped(ToyConfig(epochs=8, mode="max"), at=2 * STEPS_PER_EPOCH - 1, fault=press)
    assert fit(task, run, start=best.folder).interrupted
    last = checkpoint.find(run, "last")
    assert last is not None and last.step == best.step + 2 * STEPS_PER_EPOCH
    assert train(tmp_path, epochs=8, mode="max").resumed_from == last.step


def test_going_on_from_another_runs_checkpoint_finds_a_best_of_its_own(tmp_path: Path) -> None:
    first = train(tmp_path, "first", epochs=8, mode="max").run
    start = checkpoint.find(first, "last")
    assert start is not None and start.step == 32
    task, run = toy(tmp_path, "second", epochs=9, mode="max")  # the first run's best stays out of reach
    stopped = Stopped(task.config, at=0, fault=press)  # at once: what was taken over is saved already
    assert fit(stopped, run, start=start.folder).interrupted
    fitted = fit(task, run)
    assert (fitted.resumed_from, fitted.epochs) == (33, 9)
    best = checkpoint.find(run, "best")
    assert best is not None and best.folder.is_relative_to(run.folder)
    rows = history.read_rows(run.history_file)
    assert [row["epoch"] for row in rows] == list(range(1, 10))
    assert_same(rows[:8], history.read_rows(first.history_file))
    assert make_report(task, run)["remarks"] == task.remarks(), "a finished run like any other"


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    task, run = toy(tmp_path)
    for name, settings, named in (
        ("wide", {"width": 2}, r"another config, architecture than .*\(settings: width\)"),
        ("slow", {"lr": 0.01}, r"another config than .*\(settings: lr\)"),  # the optimizer would bring its own
        ("elsewhere", {"data_seed": 1}, "another config, data, split than"),  # our test data may be its training data
    ):
        start = checkpoint.find(train(tmp_path, name, epochs=1, **settings).run, "last")
        with pytest.raises(UserError, match=named):
            fit(task, run, start=start.folder)
    spoiled = checkpoint.find(train(tmp_path, "spoiled").run, "last")
    weights = bytearray((spoiled.folder / "model.safetensors").read_bytes())
    weights[-2] ^= 0x40
    (spoiled.folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="is not what was saved with state.pt"):
        fit(task, run, start=spoiled.folder)
    with pytest.raises(UserError, match="holds no model.safetensors"):
        fit(task, run, start=tmp_path / "nowhere")
    assert fit(task, run).epochs == 2


def test_a_pickle_bomb_in_the_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    last = checkpoint.find(train(tmp_path).run, "last")
    torch.save({"format": 1, "step": Path}, last.folder / "state.pt")
    with pytest.raises(UserError, match="holds code, which is never run"):
        train(tmp_path, epochs=3)


# what goes wrong -----------------------------------------------------------------------------------------------------


def test_an_unknown_monitor_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'cis_74' is not among the validation metrics: choose one of mae, mse, never"):
        train(tmp_path, monitor="cis_74")


def test_no_training_batch_is_an_error(tmp_path: Path) -> None:
    task, run = toy(tmp_path)
    task.batches = lambda split, epoch: torch.utils.data.DataLoader([])
    with pytest.raises(UserError, match="yields no batch"):
        fit(task, run)


def test_out_of_memory_comes_with_the_stages_advice(tmp_path: Path) -> None:
    def exhaust() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    task = Stopped(ToyConfig(), at=1, fault=exhaust)
    with pytest.raises(GuardStop, match="memory does not hold a step of this size.*Take smaller fields"):
        fit(task, open_run(task, tmp_path, "run"))


@pytest.mark.filterwarnings("ignore:.*no supported trackers:UserWarning")
@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_not_passed_over(
    tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])  # accelerate's list; other libraries may have brought some
    task, run = toy(tmp_path)
    with pytest.raises(UserError, match=f"tracker '{tracker}' cannot be used.*install it"):
        fit(task, run, tracker=tracker)
    assert fit(task, run).epochs == 2
