"""The turbulence task: what it forecasts, trains on and refuses, whatever the model, the grid and the set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from turbulence import RECORD, flow, vorticity, write_matlab, write_own, write_published

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import check_disjoint
from nbhelpers.stages.neural_operator import commands, layout
from nbhelpers.stages.neural_operator.balance import measure_balance
from nbhelpers.stages.neural_operator.config import Config
from nbhelpers.stages.neural_operator.field_losses import divergence_penalty
from nbhelpers.stages.neural_operator.loss_params import LossParams
from nbhelpers.stages.neural_operator.losses import weights_of
from nbhelpers.stages.neural_operator.simulate import simulate
from nbhelpers.stages.neural_operator.task import OperatorTask, one_step, rollout
from nbhelpers.stages.neural_operator.verification import HELD
from nbhelpers.training.flexible import SchedulerParams
from nbhelpers.training.task import LossTerm, Update
from nbhelpers.training.weights import Scheduled, Share

STEP = "stepper"
TINY: dict[str, Any] = {
    "profile": "smoke", "width": 6, "modes": 3, "layers": 2, "batch_size": 3, "windows_per_epoch": 6,
    "rollout_steps": 3, "eval_windows": 2, "sequence_length": (3, 1), "epochs": 2,
}  # fmt: skip
FIVE_STEPS = SchedulerParams(warmup_epochs=0, min_epochs=0, patience=1)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight simulations of 12 x 16 points in a periodic box of 1 by 2, each with a Reynolds number of its own."""
    return write_own(tmp_path_factory.mktemp("own"), 8, n_frames=8)


@pytest.fixture(scope="module")
def turbulent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight decaying flows on 24 x 40 points."""
    folder = tmp_path_factory.mktemp("turbulent")
    return simulate(folder, n_simulations=8, size=(24, 40), n_frames=7, viscosity=8e-3, peak=2.5, progress=False)


@pytest.fixture(scope="module")
def wake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some frames of some simulations of the Inc set, at the numbers that are published for them."""
    inside = np.zeros((12, 16), bool)
    inside[4:8, 2:5] = True
    root = tmp_path_factory.mktemp("inc")
    write_published(root, "inc", [0, 2, 10, 11, 12, 15, 25, 82], n_frames=8, inside=inside)
    for folder in root.glob("sim_*"):
        first = 800 if 10 <= int(folder.name[4:]) <= 80 else 1000
        for path in folder.glob("*_000*.npz"):
            path.rename(path.with_name(f"{path.stem[:-6]}{first + int(path.stem[-6:]):06d}.npz"))
    return root


def task_on(folder: Path, **changes: Any) -> OperatorTask:
    return OperatorTask(Config(**TINY | changes), folder)


def first(task: OperatorTask, split: str = "train") -> Any:
    return next(iter(task.batches(split, 0)))


def update_of(task: OperatorTask) -> Update:
    (update,) = task.updates(first(task), task.phases[0])
    return update


def loss_of(update: Update) -> Tensor:
    return torch.stack([term.fn(update.prediction) for term in update.terms]).sum()


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        task_on(folder, **changes)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".")
    return said


# --- windows ------------------------------------------------------------------------------------------------------


def test_batches_are_frames_of_the_files_and_go_on_where_they_stopped(own: Path) -> None:
    task = task_on(own, sequence_length=(3, 2))
    batches = list(task.batches("train", 1))
    assert [len(batch.frames) for batch in batches] == [3, 3]
    for batch in batches:
        assert batch.frames.shape == (3, 3, 2, 12, 16) and batch.inside is None
        for frames, name, start, told in zip(
            batch.frames, batch.simulations, batch.starts, batch.parameters, strict=True
        ):
            number = int(name[4:])
            expected = flow(number, n_frames=8)["velocity"][start : start + 5 : 2]
            np.testing.assert_array_equal(frames.numpy(), expected)
            assert told.tolist() == [100.0 * (number + 1)]
    (second,) = task.batches("train", 1, start=1)
    assert second.starts == batches[1].starts and second.simulations == batches[1].simulations
    assert [b.starts for b in task.batches("train", 2)] != [b.starts for b in batches]
    assert [b.starts for b in task.batches("val", 0)] == [b.starts for b in task.batches("val", 5)]
    scored = first(task, "test")
    assert scored.frames.shape[1] == 1 + 3 and set(scored.starts) == {0, 1}  # 8 frames, 7 spanned


def test_model_units_have_the_recorded_statistics(turbulent: Path) -> None:
    task = task_on(turbulent, fields="velocity,vorticity")
    frames = torch.cat([batch.frames for batch in task.batches("train", 0)])
    scaled = task.to_model(frames)
    assert scaled.std((0, 1, 3, 4)).tolist() == pytest.approx([1, 1, 1], abs=0.35)
    torch.testing.assert_close(task.to_units(scaled), frames, atol=1e-6, rtol=1e-5)
    statistics = json.loads((turbulent / layout.DATASET).read_text())["normalisation"]
    assert task.collection.std[2] == pytest.approx(statistics["vorticity"]["std"][0])


# --- forecasts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_in", [1, 3])
@pytest.mark.parametrize("condition", [False, True])
def test_forecasts_are_those_of_a_slow_loop(own: Path, n_in: int, condition: bool) -> None:
    task = task_on(own, n_in=n_in, sequence_length=(5, 1), condition=condition)
    batch, stepper = first(task, "test"), task.modules[STEP].eval()
    frames = (batch.frames - torch.tensor(task.collection.mean)[:, None, None]) / torch.tensor(task.collection.std)[
        :, None, None
    ]
    frames, told = frames.float(), None
    if condition:
        reynolds = 100.0 * (np.arange(8) + 1)
        told = ((batch.parameters - reynolds.mean()) / reynolds.std()).float()
    with torch.no_grad():
        for b in range(len(frames)):
            mine = None if told is None else told[b : b + 1]
            history = [frames[b, t] for t in range(n_in)]
            for t in range(3):
                direct = stepper(frames[b : b + 1, t : t + n_in], mine)[0]
                torch.testing.assert_close(task.forecast(batch).one_step[b, t], direct, atol=1e-5, rtol=1e-4)
                history.append(stepper(torch.stack(history[-n_in:])[None], mine)[0])
                torch.testing.assert_close(task.forecast(batch).rollout[b, t], history[-1], atol=1e-5, rtol=1e-4)


def test_a_model_that_is_told_parameters_forecasts_by_them(own: Path) -> None:
    task = task_on(own, condition=True)
    batch = first(task)
    told = task.conditions(batch)
    assert told is not None and told.shape == (3, 1)
    expected = (batch.parameters.numpy() - 450) / np.std(100 * np.arange(1, 9))
    np.testing.assert_allclose(told.numpy(), expected, rtol=1e-5)
    frames = task.to_model(batch.frames)
    stepper = task.modules[STEP].eval()
    assert not torch.allclose(stepper(frames[:, :1], told), stepper(frames[:, :1], told + 1))
    assert task_on(own).conditions(batch) is None


def test_a_rollout_that_runs_away_is_held(own: Path) -> None:
    task = task_on(own)

    class Runaway(torch.nn.Module):
        def forward(self, frames: Tensor, conditions: Tensor | None) -> Tensor:
            return frames[:, -1] * 1e30 * 1e30

    task.modules[STEP] = Runaway()
    forecast = task.forecast(first(task, "val"))
    assert forecast.rollout.isfinite().all() and forecast.rollout.abs().max() == HELD
    metrics = task.evaluate("val").metrics
    assert metrics["blow_up_rate"].value == 1 and all(np.isfinite(m.value) for m in metrics.values())


def test_what_the_modes_of_training_predict(own: Path) -> None:
    tasks = {
        mode: task_on(own, training=mode, sequence_length=(4, 1)) for mode in ("teacher", "unrolled", "pushforward")
    }
    batch = first(tasks["teacher"])
    frames = tasks["teacher"].to_model(batch.frames)
    stepper = tasks["teacher"].modules[STEP]
    assert {mode: task.predict(frames, None).shape[1] for mode, task in tasks.items()} == {
        "teacher": 3, "unrolled": 3, "pushforward": 1,
    }  # fmt: skip
    torch.testing.assert_close(tasks["teacher"].predict(frames, None), one_step(stepper, frames, None, n_in=1))
    unrolled = rollout(stepper, frames[:, :1], None, steps=3)
    torch.testing.assert_close(tasks["unrolled"].predict(frames, None), unrolled)
    torch.testing.assert_close(tasks["pushforward"].predict(frames, None), unrolled[:, -1:])
    update = update_of(tasks["pushforward"])
    torch.testing.assert_close(update.target, frames[:, -1:])


@pytest.mark.parametrize(("mode", "reaches"), [("unrolled", True), ("pushforward", False)])
def test_gradients_run_through_earlier_steps_only_when_unrolled(own: Path, mode: str, reaches: bool) -> None:
    task = task_on(own, training=mode, sequence_length=(4, 1))
    frames = task.to_model(first(task).frames).requires_grad_()
    (gradient,) = torch.autograd.grad(task.predict(frames, None)[:, -1].sum(), frames, allow_unused=True)
    assert (gradient is not None and bool(gradient.abs().sum() > 0)) is reaches
    update = update_of(task)
    loss_of(update).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in task.modules[STEP].parameters())


def test_pushforward_of_one_step_is_teacher_forcing(own: Path) -> None:
    pushed, taught = (task_on(own, training=mode, sequence_length=(2, 1)) for mode in ("pushforward", "teacher"))
    frames = pushed.to_model(first(pushed).frames)
    torch.testing.assert_close(pushed.predict(frames, None), taught.predict(frames, None))


@pytest.mark.parametrize("model", ["fno", "ffno", "unet"])
@pytest.mark.parametrize("n_in", [1, 2])
def test_every_model_trains_on_a_grid_that_is_not_square(turbulent: Path, model: str, n_in: int) -> None:
    task = task_on(
        turbulent, model=model, fields="velocity,vorticity", n_in=n_in, sequence_length=(n_in + 2, 1), lr=0.01
    )
    assert task.domain.lengths[1] > task.domain.lengths[0] and task.collection.shape == (24, 40)
    losses = []
    for _ in range(20):
        update = update_of(task)
        loss = loss_of(update)
        task.modules[STEP].zero_grad()
        loss.backward()
        task.phases[0].optimizers[STEP].step()
        losses.append(float(loss.detach()))
    assert update.prediction.shape == update.target.shape == (3, 2, 3, 24, 40) and update.valid is None
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("model", ["fno", "unet"])
def test_constraints_hold_in_every_prediction(turbulent: Path, model: str) -> None:
    fields = "vorticity,velocity"
    task = task_on(turbulent, fields=fields, model=model, divergence_free=True, keep_mean=True)
    assert task.domain.velocity == (1, 2)
    batch = first(task, "test")
    forecast, last = task.forecast(batch), task.to_model(batch.frames)[:, :1]
    for fields_of, reference in ((forecast.rollout, last), (forecast.one_step, task.to_model(batch.frames)[:, :-1])):
        velocity = task.domain.velocity_of(fields_of)
        assert divergence_penalty(velocity, lengths=task.domain.lengths) < 1e-7  # float32
        means = [x.mean((-2, -1)).expand(-1, 3, -1) for x in (fields_of, reference)]
        torch.testing.assert_close(*means, atol=1e-5, rtol=0)
    free = task_on(turbulent, fields=fields, model=model).forecast(batch)
    assert divergence_penalty(task.domain.velocity_of(free.one_step), lengths=task.domain.lengths) > 1e-3
    assert task.evaluate("test").metrics["divergence"].value < 1e-7


def test_a_model_of_the_change_that_says_nothing_is_persistence(own: Path) -> None:
    task = task_on(own, predicts="change")
    for parameter in task.modules[STEP].parameters():
        torch.nn.init.zeros_(parameter)
    batch = first(task, "val")
    torch.testing.assert_close(task.forecast(batch).rollout, task.nulls["persistence"](batch).rollout)
    torch.testing.assert_close(task.forecast(batch).one_step, task.to_model(batch.frames)[:, :-1])


# --- baselines ----------------------------------------------------------------------------------------------------


def test_baselines_are_what_they_are_called(turbulent: Path) -> None:
    task = task_on(turbulent)
    batch = first(task, "val")
    frames = task.to_model(batch.frames)
    persistence, mean, linear = (task.nulls[name](batch) for name in ("persistence", "mean", "linear"))
    torch.testing.assert_close(persistence.one_step, frames[:, :-1])
    torch.testing.assert_close(persistence.rollout, frames[:, :1].expand(-1, 3, -1, -1, -1))
    assert mean.one_step.abs().max() == mean.rollout.abs().max() == 0
    torch.testing.assert_close(linear.rollout[:, 1], task.linear(task.linear(frames[:, 0])))
    errors = {name: task.evaluate("test", null).metrics["field_error"].value for name, null in task.nulls.items()}
    assert errors["linear"] < errors["persistence"] < errors["mean"] and errors["mean"] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("periodic", [True, False])
def test_the_linear_baseline_of_a_flow_with_few_patterns(tmp_path: Path, periodic: bool) -> None:
    """Sines and cosines of one phase: the frames span fewer patterns than there are pairs to fit."""
    write_own(tmp_path, 14, n_frames=8, record=RECORD | {"periodic": periodic})
    task = task_on(tmp_path, fields="velocity,pressure")
    assert task.evaluate("test", task.nulls["linear"]).metrics["field_error"].value < 0.1


# --- kinds of sets ------------------------------------------------------------------------------------------------


def test_a_channel_that_never_varies_is_kept_and_not_scored(tmp_path: Path) -> None:
    for number in range(6):
        fields = flow(number, n_frames=7)
        fields["velocity"][:, 1] = 0.25
        layout.write_simulation(tmp_path, number, fields, description={})
    (tmp_path / layout.DATASET).write_text(json.dumps(RECORD | {"periodic": False}))
    task = task_on(tmp_path, fields="velocity,pressure")
    assert task.collection.constant == ("velocity_y",) and set(task.fields) == {"velocity_x", "pressure"}
    assert any("velocity_y" in remark and "never vary" in remark for remark in task.remarks())
    sample = task.look(first(task))
    assert set(sample.raw) == set(task.fields) and sample.pair is not None and sample.pair[0].shape[1] == 2
    batch = first(task, "test")
    raw = task.to_units(task.forecast(batch).rollout)
    torch.testing.assert_close(raw[:, :, 1], torch.full_like(raw[:, :, 1], 0.25))
    spoilt = task.forecast(batch)
    update = update_of(task)
    before = loss_of(update)
    other = update.prediction.clone()
    other[:, :, 1] += 5
    torch.testing.assert_close(sum(term.fn(other) for term in update.terms), before)
    assert spoilt.rollout[:, :, 0].std() > 0
    scores = task.evaluate("test").metrics
    assert all(np.isfinite(metric.value) for metric in scores.values())


def test_nothing_inside_an_obstacle_is_trained_on(tmp_path: Path) -> None:
    inside = np.zeros((12, 16), bool)
    inside[2:6, 9:14] = True
    write_own(tmp_path, 6, n_frames=7, obstacle=inside, record=RECORD | {"periodic": False})
    task = task_on(tmp_path, loss=LossParams(field_error=1.0, spectrum_error=0.1), batch_size=6)
    batch = first(task)
    (update,) = task.updates(batch, task.phases[0])
    even = torch.tensor([int(name[4:]) % 2 == 0 for name in batch.simulations])
    assert even.any() and not even.all() and update.valid is not None and update.valid.shape == update.target.shape
    masked = ~update.valid[:, 0, 0].numpy()
    for one, is_even in zip(masked, even, strict=True):
        np.testing.assert_array_equal(one, inside if is_even else np.zeros_like(inside))
    wild = torch.where(update.valid, update.prediction, 99.0)
    for term in update.terms:
        torch.testing.assert_close(term.fn(wild), term.fn(update.prediction))
        assert not torch.isclose(term.fn(update.prediction * 1.5), term.fn(update.prediction))


@pytest.mark.parametrize("hdf5", [True, False])
def test_a_matlab_file_of_the_benchmark(tmp_path: Path, hdf5: bool) -> None:
    path = write_matlab(tmp_path / "ns_V1e-3.mat", vorticity(9, n_frames=8), hdf5=hdf5)
    task = task_on(path, fields="vorticity", n_in=3, sequence_length=(5, 1))
    assert task.domain.velocity is None and task.collection.channels == ("vorticity",)
    assert "divergence" not in task.evaluate("val").metrics
    loss_of(update_of(task)).backward()
    task.forecast(first(task, "test"))
    assert not {kind for kind, groups in task.keys().items() if _shared(groups)}


def test_a_published_set_is_split_as_published_tapered_and_told_its_reynolds_number(wake: Path) -> None:
    task = task_on(wake, fields="velocity,pressure", condition=True, sequence_length=(3, 2), rollout_steps=2)
    assert task.collection.facts.name == "inc" and "published split" in task.split.rule
    assert {name: [s.simulation.number for s in group] for name, group in task.split.segments.items()} == {
        "train": [10, 11, 12], "val": [15, 25], "test": [82, 0, 2],
    }  # fmt: skip
    assert task.domain.window == "hann" and task.domain.velocity is None
    assert task.describe_data()["frame_gap"] == pytest.approx(0.1)
    batch = first(task, "test")
    told = task.conditions(batch)
    np.testing.assert_allclose(told, (batch.parameters.numpy() - 550) / 262.678467, rtol=1e-5)
    assert min(batch.starts) == 1000 and batch.inside is not None and batch.inside.any()
    loss_of(update_of(task)).backward()
    scores = task.evaluate("test").metrics
    assert scores["field_error"].groups == 3 and all(np.isfinite(metric.value) for metric in scores.values())


def test_spectra_are_tapered_where_the_domain_is_not_periodic_unless_asked_otherwise(own: Path, wake: Path) -> None:
    both = {"fields": "velocity,pressure"}
    assert task_on(own).domain.window == "none" and task_on(own, window="hann").domain.window == "hann"
    inc = task_on(wake, **both, window="none")
    assert inc.domain.window == "none"
    # The taper is of spectra: what lies beyond a side is a matter of the data.
    same = (task_on(wake, **both).modules[STEP], inc.modules[STEP])
    assert same[0].extra_repr() == same[1].extra_repr()
    assert task_on(own, window="hann").modules[STEP].extra_repr() == task_on(own).modules[STEP].extra_repr()
    assert task_on(own).modules[STEP].extra_repr() != task_on(own, keep_mean=True).modules[STEP].extra_repr()


# --- what the data are --------------------------------------------------------------------------------------------


def test_the_hash_of_the_data_is_of_their_content_and_not_of_their_place(own: Path, tmp_path: Path) -> None:
    before = task_on(own).describe_data()
    assert before["simulated"] and before["channels"] == ["velocity_x", "velocity_y"] and before["shape"] == [12, 16]
    copy = shutil.copytree(own, tmp_path / "copy")
    moved = task_on(copy).describe_data()
    assert moved["source"] != before["source"]
    assert moved | {"source": ""} == before | {"source": ""}
    json.dumps(moved)
    path = copy / "sim_000003" / "velocity_000004.npz"
    values = np.load(path)[layout.KEY]
    values[0, 0, 0] += 0.01
    np.savez_compressed(path, values)
    changed = task_on(copy).describe_data()
    assert changed["sha256"] != before["sha256"] and changed["split_sha256"] == before["split_sha256"]
    shutil.rmtree(copy / "sim_000007")
    fewer = task_on(copy).describe_data()
    assert fewer["sha256"] != changed["sha256"] and fewer["split_sha256"] != before["split_sha256"]


def _shared(groups: Any) -> bool:
    return bool(groups["train"] & groups["test"] or groups["train"] & groups["val"] or groups["val"] & groups["test"])


def test_a_simulation_that_was_copied_to_another_number_is_found(own: Path, tmp_path: Path) -> None:
    keys = task_on(own).keys()
    assert set(keys) == {"simulation", "content"}
    for groups in keys.values():
        check_disjoint(groups)
    copy = shutil.copytree(own, tmp_path / "copy")
    split = task_on(copy).split.segments
    mine, theirs = (split[name][0].simulation.name for name in ("train", "test"))
    for path in (copy / mine).glob("velocity_*"):
        shutil.copy(path, copy / theirs)
    keys = task_on(copy).keys()
    check_disjoint(keys["simulation"])
    with pytest.raises(UserError, match="train and test share 1"):
        check_disjoint(keys["content"])


def test_remarks_say_what_a_reader_must_know(own: Path, turbulent: Path) -> None:
    said = " ".join(task_on(own).remarks())
    assert "Simulated flow (decaying)" in said and "estimated" in said and "few shells" in said
    assert "estimated" not in " ".join(task_on(turbulent).remarks())


def test_scores_are_of_simulations(own: Path) -> None:
    task = task_on(own)
    found = task.evaluate("val")
    names = {name for batch in task.batches("val", 0) for name in batch.simulations}
    assert {metric.groups for metric in found.metrics.values()} == {len(names)}
    assert found.metrics["rollout_rel_l2"].labels == ("step 1", "step 2", "step 3")
    assert task.evaluate("val", task.nulls["mean"]).metrics["field_error"].value == pytest.approx(1, rel=1e-5)


# --- losses -------------------------------------------------------------------------------------------------------


def terms_of(folder: Path, **changes: Any) -> dict[str, LossTerm]:
    return {term.name: term for term in update_of(task_on(folder, **changes)).terms}


def test_the_loss_is_field_error_alone_unless_asked_for_more(own: Path) -> None:
    (term,) = terms_of(own).values()
    assert (term.name, term.weight, term.role, term.relative_to) == ("field_error", 1.0, "objective", None)
    update = update_of(task_on(own))
    y, x = update.target.double(), update.prediction.double()
    expected = ((x - y).square().mean((-2, -1)) / y.square().mean((-2, -1))).mean().detach()
    assert float(update.terms[0].fn(update.prediction).detach()) == pytest.approx(float(expected), rel=1e-4)


def test_the_yardstick_comes_first_and_the_others_are_measured_in_it(own: Path) -> None:
    loss = LossParams(
        spectrum_error=0.3, field_error=0.7, relative_log=0.1, sobolev=0.1, spectral_power=0.1, divergence=0.1
    )
    found = terms_of(own, loss=loss)
    assert list(found)[0] == "field_error" and set(found) == set(vars(loss))
    assert {name: term.weight for name, term in found.items()} == vars(loss)
    assert {name for name, term in found.items() if term.relative_to == "field_error"} == set(found) - {"field_error"}
    assert {name for name, term in found.items() if term.role == "regulariser"} == {"divergence"}
    raw = terms_of(own, loss=loss, normalise="none")
    assert all(term.relative_to is None for term in raw.values())
    alone = terms_of(own, loss=LossParams(field_error=0.0, spectrum_error=1.0))
    assert list(alone) == ["spectrum_error"] and alone["spectrum_error"].relative_to is None


def test_every_loss_has_a_finite_gradient(own: Path) -> None:
    loss = LossParams(*[0.5] * len(vars(LossParams())))
    update = update_of(task_on(own, loss=loss))
    for term in update.terms:
        (gradient,) = torch.autograd.grad(term.fn(update.prediction), update.prediction, retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().max() > 0, term.name


def test_the_scheduler_weights_its_two_terms_and_a_share_the_spectrum(own: Path) -> None:
    config = Config(**TINY | {"epochs": 40, "scheduler": FIVE_STEPS, "loss": LossParams(sobolev=0.2)})
    scheduler = config.make_scheduler()
    found = weights_of(config, scheduler)
    assert found["sobolev"] == 0.2 and isinstance(found["field_error"], Scheduled)
    assert isinstance(found["spectrum_error"], Scheduled) and found["spectrum_error"].to == pytest.approx(0.7)
    task = task_on(own, epochs=40, scheduler=FIVE_STEPS)
    assert task.loss_scheduler is not None and list(task.weights) == ["field_error", "spectrum_error"]
    assert task.weights["spectrum_error"].at(0) == 0
    share = terms_of(own, spectrum_share=0.2)
    assert share["spectrum_error"].weight == Share(0.2) and share["field_error"].weight == 1.0


def test_the_preview_says_what_any_settings_would_contribute(own: Path) -> None:
    task = task_on(own, epochs=40)
    balance = measure_balance(task)

    def spectral(**changes: Any) -> float:
        entries = balance(Config(**TINY | {"epochs": 40} | changes))
        assert sum(entry.grad_share for entry in entries) == pytest.approx(1)
        assert sum(entry.value_share for entry in entries) == pytest.approx(1)
        return next(entry.grad_share for entry in entries if entry.term == "spectrum_error")

    assert spectral() == 0
    weak, strong = (spectral(loss=LossParams(field_error=1 - w, spectrum_error=w)) for w in (0.05, 0.5))
    assert 0 < weak < strong < 1
    assert spectral(spectrum_share=0.25) == pytest.approx(0.25, abs=1e-4)
    ends = SchedulerParams(final_weight_source=0.5, final_weight_target=0.5, warmup_epochs=0, min_epochs=0, patience=1)
    assert spectral(scheduler=ends) == pytest.approx(strong)  # the weights that it ends at
    static = LossParams(field_error=0.5, spectrum_error=0.5)
    assert 1 - spectral(loss=static, normalise="none") < 0.5 * (1 - strong)  # raw, it is many times the field error
    entries = {entry.term: entry for entry in balance(Config(**TINY | {"loss": static}))}
    assert entries["spectrum_error"].value_share == pytest.approx(0.5, rel=1e-4)  # half of the value, as it says


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("monitor", ["nonsense", "energy_ratio", "val_field_error"])
def test_a_monitor_that_no_checkpoint_can_be_chosen_by_is_refused(own: Path, monitor: str) -> None:
    said = refusal(own, monitor=monitor)
    assert monitor in said and "field_error, rel_l2" in said and "energy_ratio, enstrophy" not in said


def test_a_higher_correlation_time_is_better(own: Path) -> None:
    assert task_on(own, monitor="correlation_time").monitor.mode == "max"
    assert task_on(own, monitor="spectrum_error_high").monitor.mode == "min"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout_steps": 8}, ("rollout_steps is 8", "9 frames", "has 8", "set rollout_steps to 7 or less")),
        ({"rollout_steps": 4, "sequence_length": (3, 2)}, ("stride of 2 takes 9 frames", "set rollout_steps to 3")),
        ({"sequence_length": (9, 1)}, ("9 frames", "shorten sequence_length")),
        ({"fields": "velocity,density"}, ("density",)),
    ],
)  # fmt: skip
def test_windows_and_fields_that_the_files_do_not_have(
    own: Path, changes: dict[str, Any], words: Sequence[str]
) -> None:
    said = refusal(own, **changes)
    assert all(word in said for word in words), said


def test_rollouts_must_fit_validation_too(wake: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(wake, tmp_path / "copy")
    for frame in range(803, 808):
        for path in (copy / "sim_000015").glob(f"*_{frame:06d}.npz"):
            path.unlink()
    said = refusal(copy, fields="velocity,pressure", sequence_length=(2, 1), rollout_steps=3)
    assert "sim_000015 has 3 for val" in said and "set rollout_steps to 2 or less" in said


DIVERGENCES: list[dict[str, Any]] = [
    {"divergence_free": True},
    {"loss": LossParams(divergence=0.1)},
    {"monitor": "divergence"},
    {"epochs": 40, "scheduler": SchedulerParams(target="divergence", warmup_epochs=0, min_epochs=0, patience=1)},
    {"epochs": 40, "scheduler": SchedulerParams(monitor_metric="divergence", warmup_epochs=0, patience=1)},
]


@pytest.mark.parametrize("changes", DIVERGENCES)
def test_a_divergence_of_what_is_no_periodic_velocity_is_refused(
    own: Path, wake: Path, changes: dict[str, Any]
) -> None:
    assert "found pressure in one that is periodic" in refusal(own, fields="pressure", **changes)
    assert "not periodic" in refusal(wake, fields="velocity", **changes)
    task_on(own, **changes)


def test_parameters_that_nobody_knows_cannot_be_told(turbulent: Path) -> None:
    assert "condition is on" in refusal(turbulent, condition=True)  # all of one Reynolds number


def test_a_wider_stride_is_another_time_step(own: Path) -> None:
    assert task_on(own, sequence_length=(3, 2)).describe_data()["frame_gap"] == 1.0


def test_a_model_that_is_not_told_where_it_is_is_named_where_the_place_may_matter(wake: Path, turbulent: Path) -> None:
    for data, coordinates, said in ((wake, False, 1), (wake, True, 0), (turbulent, False, 0)):
        advice = commands.advice(OperatorTask(Config(**TINY | {"coordinates": coordinates}), data))
        assert len(advice) == said and all("--coordinates" in sentence for sentence in advice)
