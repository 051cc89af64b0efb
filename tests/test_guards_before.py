"""Guards on data, losses and schedules: each fires on a planted fault in a real small task, and healthy ones pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import lr_scheduler as lr
from torch.utils.data import DataLoader, TensorDataset
from toy import STEPS_PER_EPOCH, ToyConfig, ToyTask

from nbhelpers.core.fields import Affine, Field
from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Rehearsal, Step
from nbhelpers.training.guards.horizon import run_ahead
from nbhelpers.training.guards.leakage import Leakage
from nbhelpers.training.guards.missing import MissingValues
from nbhelpers.training.guards.output_range import OutputRange, reachable
from nbhelpers.training.guards.rehearsal import rehearse
from nbhelpers.training.guards.schedule import Schedule, SchedulerNotStepped, UnknownMonitor
from nbhelpers.training.guards.signal import Noise, NoSkill, UnrelatedPairs
from nbhelpers.training.guards.survey import survey
from nbhelpers.training.guards.units import Units
from nbhelpers.training.guards.unreadable import Unreadable
from nbhelpers.training.task import Evaluation, LossTerm, Monitor, Phase, Predictor, Sample, Spread, Update
from nbhelpers.training.weights import Ramp

GUARDS = (
    *(Leakage, Schedule, UnknownMonitor, Units, Noise, UnrelatedPairs, Unreadable, MissingValues, OutputRange),
    *(SchedulerNotStepped, NoSkill),
)
SENTINEL = -99.0
Fields = tuple[Tensor, Tensor]  # noisy and clean, (N, 1, 8, 8) each


class Altered(ToyTask):
    """A toy whose data, model or loss can be spoiled on the way; as it stands it is a healthy one."""

    tail: nn.Module | None = None  # what the model ends in

    def spoil(self, split: str, fields: Fields) -> Fields:
        return fields

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        plain = super().batches(split, epoch, start)
        assert isinstance(plain.dataset, TensorDataset)
        noisy, clean = self.spoil(split, (plain.dataset.tensors[0], plain.dataset.tensors[1]))
        return DataLoader(TensorDataset(noisy, clean), batch_size=plain.batch_size)

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        for update in super().updates(batch, phase):
            if self.tail is not None:
                update = dataclasses.replace(update, prediction=self.tail(update.prediction))
            yield update


class Masked(Altered):
    """A toy with missing pixels in its targets; both the loss and the metrics leave them out."""

    masks_loss, masks_metrics = True, True
    first_gap = 0  # samples before it are complete

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        field = dataclasses.replace(self.fields["target"], missing=SENTINEL)
        self.fields = {"input": self.fields["input"], "target": field}

    def spoil(self, split: str, fields: Fields) -> Fields:
        clean = fields[1].clone()
        clean[self.first_gap :, :, :2, 3:5] = SENTINEL
        return fields[0], clean

    def look(self, batch: Any) -> Sample:
        noisy, clean = batch
        return Sample({"input": noisy, "target": clean}, (clean.masked_fill(clean == SENTINEL, math.nan), noisy))

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        for update in super().updates(batch, phase):
            yield dataclasses.replace(update, valid=batch[1] != SENTINEL)

    def terms(self, clean: Tensor) -> tuple[LossTerm, ...]:
        target, valid = self.fields["target"].to_model(clean)
        if not self.masks_loss:
            valid = torch.ones_like(valid)
        return (LossTerm("mse", lambda p: torch.where(valid, p - target, 0.0).square().sum() / valid.sum(), 1.0),)

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        evaluation = super().evaluate(split, predictor)
        if not self.masks_metrics:
            return evaluation
        clean = torch.cat([batch[1] for batch in self.batches(split, 0)])
        seen = clean[clean != SENTINEL]
        spread = Spread(float(seen.min()), float(seen.max()), float(seen.std()))
        return dataclasses.replace(evaluation, spreads={**evaluation.spreads, "target": spread})


def rehearsal(task: ToyTask) -> Rehearsal:
    return rehearse(task, task.phases[0], task.modules, step=0)


def steps(task: ToyTask, *, epoch: int = 0) -> Iterator[Step]:
    """One epoch of real optimizer steps."""
    phase = task.phases[0]
    for module in task.modules.values():
        module.train()
    for number, batch in enumerate(task.batches("train", epoch)):
        update = next(task.updates(batch, phase))
        terms = {term.name: term.fn(update.prediction) for term in update.terms}
        loss = torch.stack(list(terms.values())).sum()
        phase.optimizers["net"].zero_grad()
        loss.backward()
        phase.optimizers["net"].step()
        if "net" in phase.schedulers:
            phase.schedulers["net"].step()
        done, time = epoch * STEPS_PER_EPOCH + number + 1, epoch + number / STEPS_PER_EPOCH
        raw = {name: float(value.detach()) for name, value in terms.items()}
        yield Step(task, task.modules, phase, done, time, batch, update, float(loss.detach()), raw, None, None)


def epoch_of(task: ToyTask, skills: Sequence[float | None], *, steps: int = 200) -> Epoch:
    """The last of epochs with these training skills."""
    phase = task.phases[0]
    rows = [{"epoch": i, "step": i * steps, "phase": phase.name, "train_skill": s} for i, s in enumerate(skills, 1)]
    n = len(rows)
    return Epoch(task, task.modules, phase, n, n * steps, steps, rows, task.evaluate("val"), task.config.epochs)


def found_before(guard: Guard, task: ToyTask) -> list[Finding]:
    return list(guard.before(rehearsal(task)))


def the_stop(findings: Sequence[Finding]) -> Finding:
    assert [finding.severity for finding in findings] == ["stop"]
    said = findings[0]
    assert said.evidence and said.cure.endswith(".")
    return said


def spoiled(change: Callable[[str, Fields], Fields], **settings: Any) -> Altered:
    """A toy whose data went through ``change(split, fields)``."""
    task = Altered(ToyConfig(**settings))
    task.spoil = change  # type: ignore[method-assign, assignment]
    return task


# Healthy runs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [ToyTask, Masked])
def test_healthy_runs_raise_nothing(kind: type[ToyTask], seed: int) -> None:
    task = kind(ToyConfig(seed=seed, data_seed=seed, epochs=2, patience=1))
    guards = [guard() for guard in GUARDS]
    seen = rehearsal(task)
    found = [finding for guard in guards for finding in guard.before(seen)]
    for epoch in range(task.config.epochs):
        found += [finding for step in steps(task, epoch=epoch) for guard in guards for finding in guard.on_step(step)]
        ended = epoch_of(task, [0.3, 0.9][: epoch + 1], steps=STEPS_PER_EPOCH)
        found += [finding for guard in guards for finding in guard.on_epoch(ended)]
    assert found == []


@pytest.mark.parametrize("guard", GUARDS)
def test_the_memory_of_a_guard_survives_a_checkpoint(guard: type[Guard], tmp_path: Any) -> None:
    task, old, new = ToyTask(ToyConfig()), guard(), guard()
    list(old.before(rehearsal(task)))
    for step in steps(task):
        list(old.on_step(step))
    torch.save(old.state_dict(), tmp_path / "state.pt")
    new.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert new.state_dict() == old.state_dict()


# The survey


class Fixed(ToyTask):
    """A toy that yields the given batches."""

    def __init__(self, batches: Sequence[Fields], field: Field):
        super().__init__(ToyConfig())
        self.given, self.fields = batches, {"input": field, "target": field}

    def batches(self, split: str, epoch: int, start: int = 0) -> Any:
        return self.given[start:]


@pytest.mark.parametrize("gaps", [0.0, 0.2])
def test_the_survey_measures_what_numpy_does_in_one_piece(gaps: float) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(280, 5, (18, 2, 3, 6, 7)).cumsum(-1).astype(np.float32)
    data[rng.random(data.shape) < gaps] = SENTINEL
    if gaps:
        data[0, 0, 0, 0, 0] = np.nan
    field = Field("temperature", "K", (0.0, 1e4), 280.0, 5.0, SENTINEL, Affine(scale=10.0, offset=280.0))
    batches = [(torch.tensor(data[i : i + 1]), torch.tensor(data[i : i + 1])) for i in range(18)]
    seen = survey(Fixed(batches, field), "train")
    assert (seen.batches, seen.samples) == (16, 16)
    x = np.where(data[:16] == SENTINEL, np.nan, data[:16]).astype(np.float64)
    images = x.reshape(-1, 6, 7)
    d = images - np.nanmean(images, axis=(1, 2), keepdims=True)
    pairs = [(d[..., :-1], d[..., 1:]), (d[:, :-1], d[:, 1:])]
    a, b = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    both = ~np.isnan(a * b)
    correlation = (a * b)[both].sum() / ((a**2 + b**2) / 2)[both].sum()
    got = seen.fields["target"]
    assert [got.mean, got.std, got.low, got.high] == pytest.approx([f(x) for f in _nan_statistics()], rel=1e-6)
    assert got.autocorrelation == pytest.approx(correlation, rel=1e-6)
    assert got.missing == pytest.approx(np.isnan(x).mean())
    assert got.absolute_mean == pytest.approx(np.nanmean(np.abs((x - 280) / 10)), rel=1e-6)


def _nan_statistics() -> tuple[Callable, ...]:
    return np.nanmean, np.nanstd, np.nanmin, np.nanmax


@pytest.mark.parametrize("size", [1, 4])
def test_likeness_is_that_of_each_sample_with_its_own_and_the_one_before(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noisy, clean = torch.randn(2, 8, 1, 6, 6, generator=generator)
    noisy += clean
    clean[3], noisy[5] = 0.1, 7.0  # without variance: left out
    clean[0, 0, :2] = math.nan
    batches = [(noisy[i : i + size], clean[i : i + size]) for i in range(0, 8, size)]
    seen = survey(Fixed(batches, Field("height", "m", (-10, 10), 0.0, 1.0, math.nan, Affine())), "val")

    def mean(pairs: Sequence[tuple[int, int]]) -> float:
        known = [~np.isnan(clean[i].numpy()) for i, _ in pairs]
        return np.mean(
            [
                np.corrcoef(clean[i].numpy()[k], noisy[j].numpy()[k])[0, 1]
                for (i, j), k in zip(pairs, known, strict=True)
            ]
        )

    assert seen.likeness == pytest.approx(mean([(i, i) for i in range(8) if i not in (3, 5)]), abs=1e-6)
    assert seen.chance == pytest.approx(mean([(i, i - 1) for i in range(1, 8) if i not in (3, 6)]), abs=1e-6)
    assert seen.pairs == 5


def test_the_survey_of_dry_or_missing_data_is_nan_without_warnings() -> None:
    field = Field("height", "m", (-10, 10), 0.0, 1.0, SENTINEL, Affine())
    dry = torch.full((2, 1, 4, 4), 0.1)
    seen = survey(Fixed([(dry, torch.full_like(dry, SENTINEL))], field), "train")
    assert seen.fields["input"].std == 0.0 and math.isnan(seen.fields["input"].autocorrelation)
    assert seen.fields["target"].missing == 1.0 and math.isnan(seen.fields["target"].mean)
    assert seen.likeness is not None and math.isnan(seen.likeness) and seen.pairs == 0


# G3


def test_noise_is_recognised_and_named() -> None:
    noise = torch.randn(24, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    task = spoiled(lambda split, fields: (fields[0], noise) if split == "train" else fields)
    task.look = lambda batch: Sample({"input": batch[0], "target": batch[1]})  # type: ignore[method-assign]
    seen = dataclasses.replace(rehearsal(ToyTask(ToyConfig())), surveys={"train": survey(task, "train")})
    said = the_stop(list(Noise().before(seen)))
    assert "'target' of train" in said.message and "PSNR 6.02 dB" in said.evidence and "0.79" in said.evidence


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("value", [0.0, 273.15])
def test_a_constant_is_recognised(split: str, value: float) -> None:
    task = spoiled(lambda s, fields: (fields[0], fields[1] * 0 + value) if s == split else fields)
    said = the_stop(found_before(Noise(), task))
    assert f"of {split}" in said.message and f"{value:g} everywhere" in said.evidence


def test_shuffled_pixels_are_recognised() -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    task = spoiled(lambda split, fields: (fields[0].flatten(2)[..., order].view_as(fields[0]), fields[1]))
    found = found_before(Noise(), task)
    assert {f.message.split(" looks")[0] for f in found} == {"field 'input' of train", "field 'input' of val"}


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_noise_whose_level_differs_between_images_is_recognised(offset: float) -> None:
    """Levels of bands or days, alike in both neighbours, would pass for structure."""
    generator = torch.Generator().manual_seed(0)
    levels = offset + 100 * torch.randn(24, 1, 1, 1, generator=generator, dtype=torch.float64)
    noise = levels + torch.randn(24, 1, 8, 8, generator=generator, dtype=torch.float64)
    task = spoiled(lambda split, fields: (fields[0], noise) if split == "train" else fields)
    said = the_stop(found_before(Noise(), task))
    assert "'target' of train looks like noise" in said.message and "correlation of neighbours -0.0" in said.evidence


def test_images_without_variance_are_not_noise_whatever_their_levels() -> None:
    """One in ten millions of a resampled constant is rounding."""
    field = Field("height", "m", (-1e4, 1e4), 0.0, 1.0, None, Affine())
    flat = 0.1 + torch.arange(4.0)[:, None, None, None].expand(4, 1, 8, 8).double()
    flat = flat + 1e-8 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = survey(Fixed([(flat, flat)], field), "train")
    assert math.isnan(seen.fields["input"].autocorrelation) and seen.fields["input"].std > 1


def test_unrelated_pairs_are_recognised() -> None:
    task = spoiled(lambda split, fields: (fields[0].roll(7, 0), fields[1]) if split == "train" else fields)
    said = the_stop(found_before(UnrelatedPairs(), task))
    assert "of train" in said.message and "23 samples" in said.evidence


def test_right_pairs_with_a_common_mean_state_are_not_called_unrelated() -> None:
    relief = 10 * torch.linspace(-1, 1, 8)[:, None].expand(8, 8)  # any two samples are 99 % alike
    task = spoiled(lambda split, fields: (fields[0] + relief, fields[1] + relief))
    seen = rehearsal(task)
    likeness, chance = seen.surveys["train"].likeness, seen.surveys["train"].chance
    assert likeness is not None and chance is not None and likeness - chance < 0.1
    assert list(UnrelatedPairs().before(seen)) == []


@pytest.mark.parametrize(
    ("skills", "steps", "stops"),
    [
        ([0.002], 200, True),
        ([-0.008], 200, True),
        ([-0.06, -0.055], 200, True),  # no longer rising
        ([0.002], 199, False),  # too early
        ([-0.6], 200, False),  # a model from scratch in its first epoch
        ([-0.6, -0.1], 200, False),
        ([-0.3, 0.005], 200, False),  # passes 0 on its way up
        ([0.9, 0.9], 200, False),
        ([None], 200, False),
        ([math.nan], 200, False),
    ],
)
def test_no_skill(skills: Sequence[float | None], steps: int, stops: bool) -> None:
    found = list(NoSkill().on_epoch(epoch_of(ToyTask(ToyConfig()), skills, steps=steps)))
    assert [finding.severity for finding in found] == ["stop"] * stops


def test_skill_is_counted_from_the_beginning_of_a_phase() -> None:
    epoch = epoch_of(ToyTask(ToyConfig()), [0.9, 0.0], steps=200)
    rows: list[dict[str, Any]] = [{**epoch.rows[0], "phase": "pretraining", "step": 300}, dict(epoch.rows[1])]
    assert list(NoSkill().on_epoch(dataclasses.replace(epoch, rows=rows))) == []
    rows[0]["step"] = 200
    assert the_stop(list(NoSkill().on_epoch(dataclasses.replace(epoch, rows=rows))))


# G5


def test_a_sentinel_in_the_loss_is_recognised() -> None:
    task = Masked(ToyConfig())
    task.masks_loss = False
    said = the_stop(found_before(MissingValues(), task))
    assert "'mse'" in said.message and "6.25% of the target's pixels" in said.evidence and "mask" in said.cure


def test_an_undeclared_nan_in_the_loss_is_recognised() -> None:
    def change(split: str, fields: Fields) -> Fields:
        clean = fields[1].clone()
        clean[0, 0, 0, 0] = math.nan
        return (fields[0], clean) if split == "train" else fields

    found = found_before(MissingValues(), spoiled(change))
    assert ["'mse'" in found[0].message, "'slope'" in found[1].message] == [True, True]


def test_the_first_batch_with_gaps_is_judged_when_the_first_of_all_has_none() -> None:
    task = Masked(ToyConfig())
    task.masks_loss, task.first_gap = False, 14  # batches of 6: the third has gaps
    guard = MissingValues()
    assert list(guard.before(rehearsal(task))) == []
    found = [list(guard.on_step(step)) for step in steps(task)]
    assert [len(f) for f in found] == [0, 0, 1, 0]
    assert "'mse'" in the_stop(found[2]).message


def test_a_sentinel_in_the_metrics_is_recognised() -> None:
    task = Masked(ToyConfig())
    task.masks_metrics = False
    said = the_stop(found_before(MissingValues(), task))
    assert "-99" in said.evidence and "metrics" in said.cure
    assert the_stop(list(MissingValues().on_epoch(epoch_of(task, [0.9]))))


# G4


class Gappy(ToyTask):
    """A toy that could not read one sample of its first batch."""

    def unreadable(self, batch: Any) -> Sequence[str]:
        first = next(iter(self.batches("train", 0)))
        return ["a.h5 ends early"] if torch.equal(batch[1], first[1]) else ()


def test_an_unreadable_sample_stops_a_small_set_before_it_trains() -> None:
    said = the_stop(found_before(Unreadable(), Gappy(ToyConfig())))
    assert "1 of about 25 samples" in said.evidence and "a.h5 ends early" in said.evidence


def test_an_unreadable_sample_is_told_once_in_a_large_set_and_more_of_them_stop_it() -> None:
    task, guard = Gappy(ToyConfig()), Unreadable()
    first = next(iter(task.batches("train", 0)))
    rest = list(task.batches("train", 0))[1:]
    large = dataclasses.replace(rehearsal(task), batches_per_epoch=1000)  # 6250 samples
    assert [finding.severity for finding in guard.before(large)] == ["warn"]
    assert list(guard.on_batches(task, rest, 0)) == []
    for _ in range(6):
        assert [finding.severity for finding in guard.on_batches(task, [first, *rest], 1)] == ["warn"]
    again = Unreadable()
    again.load_state_dict(guard.state_dict())
    assert "7 of about 6250" in the_stop(list(again.on_batches(task, [*rest, first], 2))).evidence
    list(guard.on_epoch(epoch_of(task, [0.9])))
    assert [finding.severity for finding in guard.on_batches(task, [first], 3)] == ["warn"], "counted anew"


# G7


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: x / 255, "divided by 255"),
        (lambda x: x * 1000, "multiplied by 1000"),
        (lambda x: x + 273.15, "°C to K"),
        (lambda x: x * 57, "57"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_other_units_are_recognised(change: Callable[[Tensor], Tensor], cause: str, split: str) -> None:
    task = spoiled(lambda s, fields: (fields[0], change(fields[1])) if s == split else fields)
    said = the_stop(found_before(Units(), task))
    assert f"'target' of {split}" in said.message and cause in said.cure and " m," in said.cure


def test_data_in_model_units_are_recognised() -> None:
    task = spoiled(lambda split, fields: (2 / 3 + 0.4 * fields[0], 2 / 3 + 0.4 * fields[1]))
    field = Field("temperature", "K", (200.0, 330.0), 280.0, 12.0, None, Affine(scale=30.0, offset=260.0))
    task.fields = {"input": field, "target": field}
    found = found_before(Units(), task)
    assert len(found) == 4 and all("in model units already" in finding.cure for finding in found)


def test_a_nearly_dry_validation_is_legal() -> None:
    def dry(split: str, fields: Fields) -> Fields:
        drops = torch.zeros_like(fields[1])
        drops[0, 0, 3, 3:5] = 2.0
        return (fields[0], drops) if split == "val" else fields

    task = spoiled(dry)
    seen = rehearsal(task)
    assert seen.surveys["val"].fields["target"].std < 0.2
    field = dataclasses.replace(task.fields["target"], std=1.9)
    task.fields = {**task.fields, "target": field}
    assert list(Units().before(seen)) == []


# G6


@pytest.mark.parametrize("tail", [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.ReLU6(), nn.ELU(0.1)])
def test_an_activation_that_cannot_reach_the_target_is_recognised(tail: nn.Module) -> None:
    task = Altered(ToyConfig())
    task.tail = nn.Sequential(tail, nn.Flatten(), nn.Unflatten(1, (1, 8, 8)))
    guard = OutputRange()
    said = the_stop(found_before(guard, task))
    assert guard.exit_code == 2 and "cannot reach" in said.message and "outside" in said.evidence


@pytest.mark.parametrize("tail", [nn.LeakyReLU(), nn.Hardtanh(-2, 2), nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1))])
def test_an_activation_that_reaches_the_target_is_legal(tail: nn.Module) -> None:
    task = Altered(ToyConfig())
    task.tail = tail
    assert found_before(OutputRange(), task) == []


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_where_the_prediction_is_made_of_the_output_the_output_is_judged(offset: float) -> None:
    """Fields between -2 and 2, which a ReLU reaches once they are moved up by 3."""

    class Moved(Altered):
        def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
            for update in super().updates(batch, phase):
                output = update.prediction.relu()
                assert update.target is not None
                yield dataclasses.replace(update, prediction=output - offset, output=(output, update.target + offset))

    found = found_before(OutputRange(), Moved(ToyConfig()))
    assert found == [] if offset else the_stop(found).evidence.startswith("Relu gives 0 to inf")


@pytest.mark.parametrize(
    ("make", "interval"),
    [
        (lambda x: x.relu()[..., 1:].half().permute(0, 2, 1)[:, 0], (0, math.inf)),
        (lambda x: x.sigmoid().unsqueeze(1).squeeze(1).contiguous().double(), (0, 1)),
        (lambda x: torch.cat([x.sigmoid(), x.tanh()]), (-1, 1)),
        (lambda x: torch.cat([x.sigmoid(), x]), (-math.inf, math.inf)),
        (lambda x: x.sigmoid().clamp(0.1, 3), (0.1, 1)),
        (lambda x: x.clamp(max=torch.tensor([2.0, 5.0, 3.0])), (-math.inf, 5)),
        (lambda x: x.clamp_min(-1), (-1, math.inf)),
        (lambda x: torch.nn.functional.selu(x), (-1.7580993, math.inf)),
        (lambda x: x.relu() + x, (-math.inf, math.inf)),
        (lambda x: 2 * x.sigmoid() - 1, (-math.inf, math.inf)),
        (lambda x: x.detach(), (-math.inf, math.inf)),
    ],
)
def test_reachable_values(make: Callable[[Tensor], Tensor], interval: tuple[float, float]) -> None:
    prediction = make(torch.randn(2, 4, 3, requires_grad=True))
    assert reachable(prediction)[:2] == pytest.approx(interval)


# G15


def test_leakage_is_recognised() -> None:
    class Leaky(ToyTask):
        def keys(self) -> dict[str, dict[str, list[str]]]:
            return {**super().keys(), "day": {"train": ["1 May", "2 May"], "val": ["3 May"], "test": ["2 May"]}}

    said = the_stop(found_before(Leakage(), Leaky(ToyConfig())))
    assert "train and test" in said.message and "day" in said.message and "'2 May'" in said.evidence


# G8 and G9


def scheduled(
    make: Callable[[torch.optim.Optimizer, int], Any] | None = None, *, epochs: int = 10, **settings: Any
) -> ToyTask:
    """A toy whose learning rate follows ``make(optimizer, steps of the run)``."""
    task = ToyTask(ToyConfig(epochs=epochs, **settings))
    optimizer = torch.optim.Adam(task.modules["net"].parameters(), lr=0.01)
    schedulers = {} if make is None else {"net": make(optimizer, epochs * STEPS_PER_EPOCH)}
    task.phases = (Phase("train", epochs, {"net": optimizer}, schedulers),)
    return task


def ramped(task: ToyTask, ramp: Ramp) -> ToyTask:
    plain = task.terms
    task.terms = lambda clean: (plain(clean)[0], dataclasses.replace(plain(clean)[1], weight=ramp))  # type: ignore
    return task


@pytest.mark.parametrize(
    ("settings", "ramp", "word"),
    [
        ({}, Ramp(1.0, epochs=4, start=7), "still rising when the run ends"),
        ({"patience": 2, "armed_after": 1}, Ramp(1.0, epochs=2), "still rising"),
        ({"patience": 8, "armed_after": 2}, None, "never act"),
    ],
)
def test_schedules_that_cannot_finish(settings: Mapping[str, Any], ramp: Ramp | None, word: str) -> None:
    task = scheduled(**settings)
    guard = Schedule()
    said = the_stop(found_before(guard, task if ramp is None else ramped(task, ramp)))
    assert word in said.message and guard.exit_code == 2


def test_schedules_that_just_fit_are_legal() -> None:
    task = ramped(scheduled(patience=2, armed_after=7), Ramp(1.0, epochs=5, start=2))
    assert found_before(Schedule(), task) == []


def cosine(length: Callable[[int], int]) -> Callable:
    return lambda o, n: lr.LambdaLR(o, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / length(n), 1))))


def warm_then_cosine(o: torch.optim.Optimizer, n: int) -> Any:
    return lr.SequentialLR(o, [lr.LinearLR(o, 0.01, 1.0, 8), lr.CosineAnnealingLR(o, n - 8)], [8])


WRONG = {
    "cosine too short": (lambda o, n: lr.CosineAnnealingLR(o, n // 2), 20),
    "cosine too long": (lambda o, n: lr.CosineAnnealingLR(o, 2 * n), 80),
    "cosine in epochs": (lambda o, n: lr.CosineAnnealingLR(o, n // STEPS_PER_EPOCH), 10),
    "one cycle too long": (lambda o, n: lr.OneCycleLR(o, 0.1, total_steps=2 * n), 79),
    "one cycle too short": (lambda o, n: lr.OneCycleLR(o, 0.1, total_steps=n // 2), 19),
    "linear too short": (lambda o, n: lr.LinearLR(o, 1.0, 0.0, n // 2), 20),
    "lambda too short": (cosine(lambda n: n // 2), 20),
    "lambda too long": (cosine(lambda n: 3 * n), 120),
    "warm-up, then too short": (
        lambda o, n: lr.SequentialLR(o, [lr.LinearLR(o, 0.01, 1.0, 8), lr.CosineAnnealingLR(o, 12)], [8]),
        20,
    ),
    "polynomial too long": (lambda o, n: lr.PolynomialLR(o, 2 * n, 2.0), 80),
}
RIGHT = {
    "none": None,
    "cosine": lambda o, n: lr.CosineAnnealingLR(o, n),
    "cosine to 1 %": lambda o, n: lr.CosineAnnealingLR(o, n, eta_min=1e-4),
    "cosine, an epoch short": lambda o, n: lr.CosineAnnealingLR(o, n - STEPS_PER_EPOCH),
    "one cycle": lambda o, n: lr.OneCycleLR(o, 0.1, total_steps=n),
    "linear": lambda o, n: lr.LinearLR(o, 1.0, 0.0, n),
    "linear beyond 0": lambda o, n: lr.LambdaLR(o, lambda step: 1 - step / n),
    "lambda": cosine(lambda n: n),
    "warm-up, then cosine": warm_then_cosine,
    "constant": lambda o, n: lr.ConstantLR(o, 1.0),
    "exponential": lambda o, n: lr.ExponentialLR(o, 0.9),
    "steep exponential": lambda o, n: lr.ExponentialLR(o, 0.3),
    "exponential to a floor": lambda o, n: lr.LambdaLR(o, lambda step: max(0.01, 0.8**step)),
    "hyperbolic": lambda o, n: lr.LambdaLR(o, lambda step: 1 / (1 + step / 50)),
    "inverse root": lambda o, n: lr.LambdaLR(o, lambda step: min((step + 1) / 8, ((step + 1) / 8) ** -0.5)),
    "steps": lambda o, n: lr.StepLR(o, n // 3),
    "milestones": lambda o, n: lr.MultiStepLR(o, [n // 2, 3 * n // 4], 0.1),
    "halvings": lambda o, n: lr.MultiStepLR(o, [n // 2, 7 * n // 10, 8 * n // 10, 9 * n // 10], 0.5),
    "plateau": lambda o, n: lr.ReduceLROnPlateau(o),
    "warm restarts": lambda o, n: lr.CosineAnnealingWarmRestarts(o, n // 4),
    "growing restarts": lambda o, n: lr.CosineAnnealingWarmRestarts(o, n // 10, T_mult=2),
    "triangles": lambda o, n: lr.CyclicLR(o, 1e-4, 1e-2, step_size_up=n // 10, cycle_momentum=False),
    "shrinking triangles": lambda o, n: lr.CyclicLR(
        o, 1e-4, 1e-2, step_size_up=n // 10, mode="triangular2", cycle_momentum=False
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_learning_rate_for_another_length_is_recognised(name: str) -> None:
    make, end = WRONG[name]
    said = the_stop(found_before(Schedule(), scheduled(make)))
    step = int(said.evidence.split("end at step ")[1].split(",")[0])
    assert abs(step - end) <= 1 and "40 steps" in said.evidence


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("epochs", [3, 10, 50])
def test_a_learning_rate_that_fits_or_never_ends_is_legal(name: str, epochs: int) -> None:
    assert found_before(Schedule(), scheduled(RIGHT[name], epochs=epochs)) == []


@pytest.mark.parametrize("name", [name for name in RIGHT if name not in ("none", "plateau")])
def test_looking_ahead_tells_the_future_and_changes_nothing(name: str) -> None:
    make = RIGHT[name]
    assert make is not None
    task = scheduled(make)
    phase = task.phases[0]
    optimizer, scheduler = phase.optimizers["net"], phase.schedulers["net"]
    for _ in range(11):  # a run that is taken up in the middle
        optimizer.step()
        scheduler.step()
    saved = scheduler.state_dict(), [{**group, "params": None} for group in optimizer.param_groups]
    ahead = run_ahead(scheduler, 39)
    assert (scheduler.state_dict(), [{**group, "params": None} for group in optimizer.param_groups]) == saved
    real = [optimizer.param_groups[0]["lr"]]
    for _ in range(11, 39):
        optimizer.step()
        scheduler.step()
        real.append(optimizer.param_groups[0]["lr"])
    assert ahead == pytest.approx(np.array(real), abs=1e-15)


@pytest.mark.parametrize("name", [name for name in RIGHT if name not in ("none", "plateau")])
@pytest.mark.parametrize("done", [1, 15, 36, 39])
def test_a_right_schedule_is_legal_when_a_run_is_taken_up(name: str, done: int) -> None:
    task = scheduled(RIGHT[name])
    for _ in range(done):
        task.phases[0].optimizers["net"].step()
        task.phases[0].schedulers["net"].step()
    assert found_before(Schedule(), task) == []


def test_a_schedule_that_ends_before_the_epochs_asked_for_anew_is_recognised() -> None:
    task = scheduled(RIGHT["cosine"])  # made for 10 epochs
    for _ in range(20):
        task.phases[0].optimizers["net"].step()
        task.phases[0].schedulers["net"].step()
    task.phases = (dataclasses.replace(task.phases[0], epochs=20),)
    assert "at step 40, the phase has 80" in the_stop(found_before(Schedule(), task)).evidence


def test_a_scheduler_that_nobody_steps_is_recognised() -> None:
    task = scheduled(warm_then_cosine)
    guard = SchedulerNotStepped()
    assert list(guard.before(rehearsal(task))) == []
    assert len(list(steps(task))) == STEPS_PER_EPOCH
    assert list(guard.on_epoch(epoch_of(task, [0.9], steps=STEPS_PER_EPOCH))) == []
    (said,) = guard.on_epoch(epoch_of(task, [0.9, 0.9], steps=STEPS_PER_EPOCH))  # an epoch that did not step it
    assert said.severity == "warn" and "has not been stepped" in said.message


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_scheduler_in_no_phase_is_recognised(wrapped: bool) -> None:
    task = scheduled(lambda o, n: lr.StepLR(o, n))
    phase = task.phases[0]
    if wrapped:
        prepared = {"net": Accelerator(cpu=True).prepare(phase.optimizers["net"])}
        task.phases = (dataclasses.replace(phase, optimizers=prepared),)
        assert found_before(SchedulerNotStepped(), task) == []
    task.phases = (dataclasses.replace(task.phases[0], schedulers={}),)
    (said,) = found_before(SchedulerNotStepped(), task)
    assert said.severity == "warn" and "in no phase" in said.message


def test_a_scheduler_under_another_name_is_recognised() -> None:
    task = scheduled(lambda o, n: lr.StepLR(o, n))
    task.phases = (dataclasses.replace(task.phases[0], schedulers={"nett": task.phases[0].schedulers["net"]}),)
    (said,) = found_before(SchedulerNotStepped(), task)
    assert said.severity == "warn" and "'nett'" in said.message


def test_an_unknown_monitor_is_recognised() -> None:
    task = ToyTask(ToyConfig())
    task.monitor = Monitor("cis_74", "max")
    guard = UnknownMonitor()
    said = the_stop(found_before(guard, task))
    assert "'cis_74' is not among the validation metrics: choose one of mae, mse" in said.message
    assert guard.exit_code == 2
