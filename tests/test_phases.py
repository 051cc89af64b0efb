"""Two phases in one run: what the first one leaves behind, what the second one starts from, and that a kill at the
border, like anywhere else, changes nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_fit import assert_equal_runs, assert_same, press
from toy import STEPS_PER_EPOCH
from toy_gan import GanConfig, GanTask, gan, train_gan

from nbhelpers.core.errors import UserError
from nbhelpers.training import border, checkpoint, history, mirror, pointers, saving, weight_average
from nbhelpers.training.fit import Fitted, fit
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run
from nbhelpers.training.session import Session
from nbhelpers.training.task import Monitor, Phase, Update

# 24 samples of a batch each and windows of 5: a partial last window, an average, and ranked checkpoints.
SETTINGS: dict[str, Any] = {"batch_size": 1, "accumulate": 5, "ema_decay": 0.9, "keep": 2}
PER_EPOCH = 5  # steps
BORDER = 2 * PER_EPOCH


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Both phases in one go."""
    return train_gan(tmp_path_factory.mktemp("whole"), **SETTINGS).run


def weights_of(run: Run, which: str) -> dict[str, torch.Tensor]:
    found = checkpoint.find(run, which)
    assert found is not None
    return load_file(found.folder / "model.safetensors")


# what a run of two phases leaves -------------------------------------------------------------------------------------


def test_every_phase_keeps_its_best_and_its_last_checkpoint(tmp_path: Path) -> None:
    """The worst epoch counts as the best, so that best and last are never the same."""
    worst = {"pixel_monitor": Monitor("mse", "max"), "adversarial_monitor": Monitor("mae", "max")}
    run = train_gan(tmp_path, pixel_epochs=4, adversarial_epochs=4, **worst).run
    rows = history.read_rows(run.history_file)
    assert [row["phase"] for row in rows] == ["pixel"] * 4 + ["adversarial"] * 4
    assert pointers.names(run) == ["adversarial_best", "adversarial_last", "pixel_best", "pixel_last", "best", "last"]
    steps = {which: checkpoint.find(run, which).step for which in pointers.names(run)}  # type: ignore[union-attr]
    liked = {
        phase: max((row for row in rows if row["phase"] == phase), key=lambda row: row[column])["step"]
        for phase, column in (("pixel", "val_mse"), ("adversarial", "val_mae"))
    }
    assert steps == {
        "pixel_best": liked["pixel"], "pixel_last": 16, "adversarial_best": liked["adversarial"],
        "adversarial_last": 32, "best": liked["adversarial"], "last": 32,
    }  # fmt: skip
    assert liked["pixel"] < 16 < liked["adversarial"] < 32


def test_a_phase_starts_from_the_best_weights_of_the_one_before(tmp_path: Path) -> None:
    """From the average, where there is one; the discriminator as it stands, the average's counter anew."""
    begun = []

    class Watched(GanTask):
        def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
            updates = super().updates(batch, phase)
            if phase.name == "adversarial":
                now = {f"{n}.{k}": t.clone() for n, m in self.modules.items() for k, t in m.state_dict().items()}
                begun.append(now)
            yield from updates

    config = GanConfig(pixel_epochs=4, ema_decay=0.9, pixel_monitor=Monitor("mse", "max"), adversarial_epochs=1)
    run = open_run(task := Watched(config), tmp_path, "run")
    fresh = {key: tensor.clone() for key, tensor in task.modules["discriminator"].state_dict().items()}
    fit(task, run)
    best, last = weights_of(run, "pixel_best"), weights_of(run, "pixel_last")
    assert not torch.equal(best["net.1.weight"], last["net.1.weight"])
    first = begun[2]  # the first two are rehearsals: when the run began, and now
    assert_same({key: first[key] for key in sorted(best)}, {key: best[key] for key in sorted(best)})
    for key, tensor in fresh.items():
        assert torch.equal(best[f"discriminator.{key}"], tensor), "the first phase leaves the discriminator alone"
    assert checkpoint.load_state(checkpoint.find(run, "last"))["ema"]["updates"] == STEPS_PER_EPOCH  # type: ignore[arg-type]


def test_the_columns_tell_the_optimizers_apart(whole: Run) -> None:
    rows = history.read_rows(whole.history_file)
    pixel, adversarial = rows[0], rows[-1]
    assert pixel["train_total"] > 0 and adversarial["train_total"] is None
    assert adversarial["train_total_net"] > 0 and pixel["train_total_net"] is None
    assert adversarial["train_total_discriminator"] == pytest.approx(adversarial["train_tell_apart"])
    assert 0 <= adversarial["train_accuracy_discriminator"] <= 1
    assert adversarial["train_skill"] > 0.5, "of the images, and not of the discriminator's decisions"
    ledger = history.read_rows(whole.ledger_file)
    assert list(ledger[0])[:4] == ["step", "phase", "optimizer", "term"]
    told = {(row["phase"], row["optimizer"], row["term"]) for row in ledger}
    assert told == {
        ("pixel", "net", "mse"), ("pixel", "net", "slope"), ("adversarial", "net", "mse"),
        ("adversarial", "net", "fool"), ("adversarial", "discriminator", "tell_apart"),
    }  # fmt: skip
    for step in {row["step"] for row in ledger}:
        for optimizer in ("net", "discriminator"):
            rows = [row for row in ledger if (row["step"], row["optimizer"]) == (step, optimizer)]
            assert not rows or sum(row["grad_share"] for row in rows) == pytest.approx(1)


def test_the_beginning_of_a_phase_has_dense_rows_in_the_ledger(tmp_path: Path) -> None:
    run = train_gan(tmp_path, pixel_epochs=5, adversarial_epochs=5).run
    steps = sorted({row["step"] for row in history.read_rows(run.ledger_file)})
    assert steps == [*range(16), *range(20, 36)]


def test_patience_ends_its_phase_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"pixel_epochs": 9, "adversarial_epochs": 3, "pixel_monitor": Monitor("mse", "max", 2)}
    fitted = train_gan(tmp_path, **settings)
    rows = history.read_rows(fitted.run.history_file)
    assert [row["phase"] for row in rows] == ["pixel"] * 3 + ["adversarial"] * 3
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert (fitted.epochs, fitted.stopped_early) == (6, False)
    best = f"best val_mse {rows[0]['val_mse']:.4g} at epoch 1"
    assert f"Phase 'pixel' ends early: {best}; val_mse has not improved for 2 epochs.\n" in capsys.readouterr().out
    again = train_gan(tmp_path, **settings)
    assert (again.epochs, again.stopped_early) == (6, False)
    assert "Phase 'pixel' has ended after 3 of 9 epochs and stays as it is." in capsys.readouterr().out


def test_the_patience_of_the_last_phase_ends_the_run(tmp_path: Path) -> None:
    fitted = train_gan(tmp_path, pixel_epochs=1, adversarial_epochs=9, adversarial_monitor=Monitor("mae", "max", 2))
    assert fitted.stopped_early and fitted.epochs == 4
    assert history.read_rows(fitted.run.history_file)[-1]["phase"] == "adversarial"


def test_a_weight_rises_in_epochs_of_its_phase(tmp_path: Path) -> None:
    rows = history.read_rows(train_gan(tmp_path, pixel_epochs=4, ramp=2.0).run.history_file)
    weights = [row["train_weight_fool"] for row in rows]
    assert weights[:4] == [None] * 4
    assert weights[4:] == pytest.approx([0.01 * 0.375 / 2, 0.01 * 1.375 / 2, 0.01])


def test_a_fault_of_the_second_phase_is_found_before_the_first_step(tmp_path: Path) -> None:
    for settings, word in (
        ({"adversarial_monitor": Monitor("lpips", "min")}, "'lpips' is not among the validation metrics"),
        ({"adversarial_monitor": Monitor("mae", "min", patience=3)}, "can never act"),
        ({"ramp": 3.5}, "still rising when phase 'adversarial' ends"),
    ):
        with pytest.raises(GuardStop, match=word) as stopped:
            train_gan(tmp_path, word.split()[0].strip("'"), **settings)  # type: ignore[arg-type]
        assert stopped.value.finding.step == 0 and stopped.value.exit_code == 2


def test_a_healthy_run_of_two_phases_raises_nothing(tmp_path: Path) -> None:
    run = train_gan(tmp_path, pixel_epochs=5, adversarial_epochs=6, ema_decay=0.9).run
    assert read_guards(run) == []


# exactness -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no ``except`` of the training catches: the process is gone."""


def killing(function: Callable[..., Any], at: Callable[..., bool]) -> Callable[..., Any]:
    def deadly(*args: Any, **options: Any) -> Any:
        if at(*args, **options):
            raise Killed
        return function(*args, **options)

    return deadly


def pointing(which: str, step: int) -> Callable[..., bool]:
    return lambda path, content: path.name == f"{which}.json" and content["step"] == step


MOMENTS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "after the first phase's last checkpoint": (border, "end_phase", lambda session: session.progress.step == BORDER),
    "naming its best": (pointers, "write_json", pointing("pixel_best", BORDER)),
    "naming its last": (pointers, "write_json", pointing("pixel_last", BORDER)),
    "crossing": (border, "next_phase", lambda session: session.progress.step == BORDER),
    "first best of the second phase": (checkpoint, "write_json", pointing("best", BORDER + PER_EPOCH)),
    "between that and last": (checkpoint, "write_json", pointing("last", BORDER + PER_EPOCH)),
    "later in the second phase": (saving.Saver, "save", lambda saver, step, *a, **b: step == BORDER + 2 * PER_EPOCH),
    "naming the run's best": (pointers, "write_json", pointing("adversarial_best", BORDER + 3 * PER_EPOCH)),
    "after the run's last checkpoint": (border, "end_phase", lambda session: session.progress.step > BORDER),
    "naming the average": (weight_average, "write_json", lambda path, content: path.name == "average.json"),
}


@pytest.mark.parametrize("minutes", [5.0, 0.0], ids=["saved after epochs", "saved after steps"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_the_border_it_is_the_run_in_one_go(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, minutes: float
) -> None:
    where, name, at = MOMENTS[moment]
    task, run = gan(tmp_path, **SETTINGS)
    monkeypatch.setattr(where, name, killing(getattr(where, name), at))
    with pytest.raises(Killed):
        fit(task, run, save_minutes=minutes)
    monkeypatch.undo()
    assert train_gan(tmp_path, **SETTINGS).resumed_from is not None
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("minutes", [5.0, 0.0], ids=["saved after epochs", "saved after steps"])
@pytest.mark.parametrize("batch", [0, 3, 11, 30], ids=lambda batch: f"batch {batch}")
def test_killed_within_the_second_phase(whole: Run, tmp_path: Path, batch: int, minutes: float) -> None:
    class Dying(GanTask):
        left = batch + 2  # rehearsals

        def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
            updates = super().updates(batch, phase)
            if phase.name == "adversarial":
                yield next(updates)
                self.left -= 1
                if self.left < 0:  # between the generator's step and the discriminator's
                    raise Killed
            yield from updates

    task = Dying(GanConfig(**SETTINGS))
    run = open_run(task, tmp_path, "run")
    with pytest.raises(Killed):
        fit(task, run, save_minutes=minutes)
    train_gan(tmp_path, **SETTINGS)
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("minutes", [5.0, 0.0], ids=["saved after epochs", "saved after steps"])
def test_the_stop_button_at_the_border(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    task, run = gan(tmp_path, **SETTINGS)
    load = checkpoint.load_weights

    def pressed(*args: Any) -> None:
        press()
        load(*args)

    monkeypatch.setattr(checkpoint, "load_weights", pressed)
    stopped = fit(task, run, save_minutes=minutes)
    monkeypatch.undo()
    assert (stopped.interrupted, stopped.epochs) == (True, 2)
    assert fit(task, run).epochs == 5, "the same task goes on, as in a notebook"
    assert_equal_runs(run, whole)


def test_a_longer_second_phase_extends_the_run(whole: Run, tmp_path: Path) -> None:
    assert train_gan(tmp_path, **SETTINGS, adversarial_epochs=1).epochs == 3
    fitted = train_gan(tmp_path, **SETTINGS)
    assert (fitted.resumed_from, fitted.epochs) == (BORDER + PER_EPOCH, 5)
    assert_equal_runs(fitted.run, whole)


def test_a_second_phase_may_be_added_later(whole: Run, tmp_path: Path) -> None:
    """What was named at the end of the shorter run is not named where it was no end."""
    for epochs in ({"pixel_epochs": 1, "adversarial_epochs": 0}, {"pixel_epochs": 2, "adversarial_epochs": 0}, {}):
        fitted = train_gan(tmp_path, **SETTINGS, **epochs)
    assert_equal_runs(fitted.run, whole)


def test_a_phase_of_no_epochs_is_passed_over(tmp_path: Path) -> None:
    """Nothing of it is asked for: its ramp would not fit into it."""
    fitted = train_gan(tmp_path, adversarial_epochs=0, ramp=2.0)
    assert fitted.epochs == 2 and read_guards(fitted.run) == []
    assert pointers.names(fitted.run) == ["pixel_best", "pixel_last", "best", "last"]
    only = train_gan(tmp_path, "only", pixel_epochs=0)
    assert only.epochs == 3 and "pixel_best" not in pointers.names(only.run)


def test_a_finished_run_is_left_as_it_is(whole: Run) -> None:
    before = {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}
    fitted = train_gan(whole.folder.parent, **SETTINGS)
    assert (fitted.resumed_from, fitted.epochs, fitted.interrupted) == (BORDER + 3 * PER_EPOCH, 5, False)
    assert {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("which", ["pixel_best", "pixel_last"])
def test_going_back_into_the_first_phase(whole: Run, tmp_path: Path, which: str) -> None:
    """The second phase is done again, and comes out the same from the first one's end."""
    run = train_gan(tmp_path, **SETTINGS).run
    found = checkpoint.find(run, which)
    assert found is not None
    fitted = fit(GanTask(GanConfig(**SETTINGS)), run, start=found.folder)
    assert fitted.resumed_from == BORDER and fitted.epochs == 5
    assert_equal_runs(run, whole)


WORST: dict[str, Any] = {"pixel_epochs": 4, "adversarial_epochs": 2, "pixel_monitor": Monitor("mse", "max")}


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The first epoch of the first phase counts as its best one, so that it is not the border."""
    run = train_gan(tmp_path_factory.mktemp("early"), **WORST).run
    best, last = (pointers.read(run, which) for which in ("pixel_best", "pixel_last"))
    assert best is not None and last is not None and (best["step"], last["step"]) == (4, 16)
    return run


class Dying(GanTask):
    """Killed in the second step of this call, before anything is saved."""

    left = 3  # two of them are rehearsals

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().updates(batch, phase)


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed before the next save"])
def test_going_back_to_the_best_of_a_phase(early: Run, tmp_path: Path, killed: bool) -> None:
    run = Run(Path(shutil.copytree(early.folder, tmp_path / "run")))
    found = checkpoint.find(run, "pixel_best")
    assert found is not None
    if killed:
        with pytest.raises(Killed):
            fit(Dying(GanConfig(**WORST)), run, start=found.folder)
        assert checkpoint.find(run, "best") == found, "and not the second phase's"
        train_gan(tmp_path, **WORST)
    else:
        fit(GanTask(GanConfig(**WORST)), run, start=found.folder)
    assert_equal_runs(run, early)


def test_a_best_that_is_gone_is_replaced_at_once(early: Run, tmp_path: Path) -> None:
    """Only the checkpoint that was gone back to is left, so the best is what it holds, also after a kill."""
    run = Run(Path(shutil.copytree(early.folder, tmp_path / "run")))
    found = checkpoint.find(run, "pixel_last")
    assert found is not None
    pointers.forget(run, "pixel_best")
    shutil.rmtree(run.checkpoints / "step_000004")
    with pytest.raises(Killed):
        fit(Dying(GanConfig(**WORST)), run, start=found.folder)
    best = checkpoint.find(run, "best")
    assert best is not None and best.step == 16
    assert train_gan(tmp_path, **WORST).epochs == 6
    assert pointers.read(run, "pixel_best")["step"] == 16  # type: ignore[index]


def test_without_any_best_checkpoint_it_is_one_sentence(early: Run, tmp_path: Path, monkeypatch: Any) -> None:
    run = Run(Path(shutil.copytree(early.folder, tmp_path / "run")))
    found = checkpoint.find(run, "pixel_last")
    assert found is not None
    monkeypatch.setattr(border, "end_phase", lambda session: pointers.forget(session.run, "pixel_best"))
    with pytest.raises(UserError, match="no best checkpoint of phase 'pixel', which is over: restore pixel_best.json"):
        fit(GanTask(GanConfig(**WORST)), run, start=found.folder)


def test_going_back_to_the_end_of_a_phase_that_patience_ended(tmp_path: Path) -> None:
    settings = {**WORST, "pixel_epochs": 9, "pixel_monitor": Monitor("mse", "max", 2)}
    whole = train_gan(tmp_path, **settings).run
    run = Run(Path(shutil.copytree(whole.folder, tmp_path / "again" / "run")))
    found = checkpoint.find(run, "pixel_last")
    assert found is not None
    fitted = fit(GanTask(GanConfig(**settings)), run, start=found.folder)
    assert (fitted.resumed_from, fitted.epochs) == (12, 5)
    assert_equal_runs(run, whole)


def test_going_on_in_another_run_from_the_end_of_its_first_phase(early: Run, tmp_path: Path) -> None:
    """The best checkpoint of the phase is not the one that is taken up, and comes along."""
    task, run = gan(tmp_path, "other", **WORST)
    found = checkpoint.find(early, "pixel_last")
    assert found is not None
    fit(task, run, start=found.folder)
    assert pointers.read(run, "pixel_best")["step"] == 4  # type: ignore[index]
    assert_same(weights_of(run, "last"), weights_of(early, "last"))


def test_a_copy_that_was_killed_between_the_pointers_is_taken_up(tmp_path: Path, monkeypatch: Any) -> None:
    """The copying fails at the border, and the next one is killed before it has named the first phase's best."""
    (tmp_path / "drive").mkdir()
    settings: dict[str, Any] = {"adversarial_epochs": 2}
    task = GanTask(GanConfig(**settings))
    run = open_run(task, tmp_path / "here", "run", copy_dir=tmp_path / "drive")
    push = mirror.push

    def failing(run: Run, second: Path) -> None:
        if pointers.read(run, "last")["step"] == 8 and "pixel_best" in pointers.names(run):  # type: ignore[index]
            raise mirror.CopyError("no room")
        push(run, second)

    monkeypatch.setattr(mirror, "push", failing)
    monkeypatch.setattr(
        mirror, "write_json", killing(mirror.write_json, lambda path, _: path.name == "pixel_best.json")
    )
    with pytest.raises(Killed):
        fit(task, run)
    monkeypatch.undo()
    task = GanTask(GanConfig(**settings))
    again = open_run(task, tmp_path / "there", "run", copy_dir=tmp_path / "drive")
    assert fit(task, again).epochs == 4
    copy = Run(tmp_path / "drive" / "run")
    assert pointers.names(copy) == pointers.names(again) and "pixel_best" in pointers.names(copy)


def test_names_that_were_given_before_a_kill_are_copied_later(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "drive").mkdir()
    run = open_run(task := GanTask(GanConfig()), tmp_path, "run", copy_dir=tmp_path / "drive")
    copy = Session.copy
    monkeypatch.setattr(Session, "copy", killing(copy, lambda s: "adversarial_best" in pointers.names(s.run)))
    with pytest.raises(Killed):
        fit(task, run)
    monkeypatch.undo()
    fit(task := GanTask(GanConfig()), open_run(task, tmp_path, "run", copy_dir=tmp_path / "drive"))
    assert pointers.names(Run(tmp_path / "drive" / "run")) == pointers.names(run)


def test_shares_are_measured_anew_in_every_phase(tmp_path: Path) -> None:
    """The norms of the first phase are those of other weights, and its memory is of many steps."""
    run = train_gan(tmp_path, pixel_epochs=20, adversarial_epochs=1, pixel_monitor=Monitor("mse", "max")).run
    rows = [row for row in history.read_rows(run.ledger_file) if row["phase"] == "adversarial"]
    first = next(row for row in rows if row["term"] == "fool")
    assert first["grad_share"] == pytest.approx(0.2, abs=1e-6), "of the first step it is exact"


def test_weights_that_cannot_be_had_together_end_the_run_before_its_first_step(tmp_path: Path) -> None:
    class Unweighed(GanTask):
        def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
            for update in super().updates(batch, phase):
                terms = [dataclasses.replace(one, weight=0.0) if one.name == "mse" else one for one in update.terms]
                yield update if phase.name == "pixel" else dataclasses.replace(update, terms=tuple(terms))

    run = open_run(task := Unweighed(GanConfig()), tmp_path, "run")
    with pytest.raises(UserError, match="in phase 'adversarial' cannot be weighed: .* need another term"):
        fit(task, run)
    assert history.read_rows(run.history_file) == []


def test_the_report_of_a_run_stopped_at_the_border_and_of_one_prolonged(early: Run, tmp_path: Path) -> None:
    class Ends(GanTask):
        def batches(self, split: str, epoch: int, start: int = 0) -> Any:
            if split == "train" and epoch == 1 and "pixel_best" in pointers.names(run):
                raise Killed
            return super().batches(split, epoch, start)

    run = open_run(task := Ends(GanConfig(pixel_epochs=1)), tmp_path, "run")
    with pytest.raises(Killed):
        fit(task, run)
    report = make_report(GanTask(GanConfig(pixel_epochs=1)), run)
    assert report["checkpoint"]["name"] == "best" and report["earlier_phases"] == {}, "it is not compared with itself"
    longer = GanTask(GanConfig(**{**WORST, "pixel_epochs": 6}))
    remarks = make_report(longer, Run(Path(shutil.copytree(early.folder, tmp_path / "longer"))))["remarks"]
    assert remarks[0].startswith("Ended after 4 of 6 epochs of phase 'pixel': their number was raised later")


def test_only_a_report_takes_what_was_not_validated_yet(tmp_path: Path) -> None:
    run = open_run(task := Dying(GanConfig()), tmp_path, "run")
    with pytest.raises(Killed):
        fit(task, run)
    assert checkpoint.asked_for(run, "shipped", unfinished=True)[0] == "last"
    with pytest.raises(UserError, match="has no best checkpoint yet: train it first"):
        checkpoint.asked_for(run, "shipped")


def test_a_report_reads_a_run_of_another_version_and_training_does_not(
    early: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    run = Run(Path(shutil.copytree(early.folder, tmp_path / "run")))
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    assert make_report(GanTask(GanConfig(**WORST)), run)["remarks"] == ["Made-up fields."]
    with pytest.raises(UserError, match="another version"):
        train_gan(tmp_path, **WORST)


def test_other_epochs_of_a_phase_are_told(early: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(Path(shutil.copytree(early.folder, tmp_path / "run")))
    gan(tmp_path, run.name, **{**WORST, "adversarial_epochs": 5})
    assert "was planned for 2 adversarial epochs and now ends at 5" in capsys.readouterr().out


def test_other_files_among_the_checkpoints_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "drive").mkdir()
    fit(task := GanTask(GanConfig()), run := open_run(task, tmp_path, "run", copy_dir=tmp_path / "drive"))
    copy = Run(tmp_path / "drive" / "run")
    for place in (run, copy):
        (place.checkpoints / "my_favourite").mkdir()
        (place.checkpoints / "average_of_mine").mkdir()
        (place.checkpoints / "notes.json").write_text('{"a": 1}')
    longer = GanTask(GanConfig(adversarial_epochs=4))
    fit(longer, open_run(longer, tmp_path, "run", copy_dir=tmp_path / "drive"))
    for place in (run, copy):
        names = {path.name for path in place.checkpoints.iterdir()}
        assert {"my_favourite", "average_of_mine", "notes.json"} <= names


def test_going_on_in_another_run_from_its_second_phase(whole: Run, tmp_path: Path) -> None:
    task, run = gan(tmp_path, "other", **SETTINGS, adversarial_epochs=4)
    found = checkpoint.find(whole, "last")
    assert found is not None
    fitted: Fitted = fit(task, run, start=found.folder)
    assert (fitted.resumed_from, fitted.epochs) == (found.step, 6)
    ours, theirs = (checkpoint.find(one, "pixel_best") for one in (run, whole))
    assert ours is not None and theirs is not None and ours.sha256 == theirs.sha256
    assert ours.folder.is_relative_to(run.folder), "a copy of the other run's, for the report to compare with"
    assert history.read_rows(run.history_file)[-1]["phase"] == "adversarial"


def test_fewer_epochs_than_a_phase_has_are_refused(tmp_path: Path) -> None:
    train_gan(tmp_path)
    with pytest.raises(UserError, match="3 finished epochs of phase 'adversarial' and 2 are asked for"):
        train_gan(tmp_path, adversarial_epochs=2)
