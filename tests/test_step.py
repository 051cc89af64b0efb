"""One optimizer step, whatever it is made of: windows of batches, terms, an average, a scaler, a loss that breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from test_fit import Stopped, assert_equal_runs, assert_same, press, weights
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from toy import STEPS_PER_EPOCH, ToyConfig, ToyTask, toy, train

from nbhelpers.training import checkpoint, history
from nbhelpers.training import fit as fit_module
from nbhelpers.training.fit import fit
from nbhelpers.training.guards import unreadable
from nbhelpers.training.guards.guard import GuardStop
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.ledger import Balance
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.step import optimizer_step
from nbhelpers.training.task import LossTerm, Phase, Update
from nbhelpers.training.weights import Ramp

WEIGHT = 0.7  # of the slope term, a plain one


class Plain(ToyTask):
    """Without dropout, and with a gradient descent that does not hide the gradient's scale, as Adam does.

    Args:
        sizes: of the training batches; they use all 24 fields.
    """

    def __init__(self, config: ToyConfig, sizes: Sequence[int] | None = None):
        super().__init__(config)
        self.sizes = sizes
        self.modules["net"][0].p = 0.0
        optimizer = torch.optim.SGD(self.modules["net"].parameters(), lr=0.2, momentum=0.5)
        schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step / 3))
        self.phases = (Phase("train", config.epochs, {"net": optimizer}, {"net": schedule}),)

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        loader = super().batches(split, epoch, 0 if self.sizes else start)
        if split != "train" or not self.sizes:
            return loader
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        rows = [range(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]
        return DataLoader(loader.dataset, batch_sampler=rows[start:])


def by_hand(task: ToyTask, *, without: int = 0) -> None:
    """Train with plain torch: each window is one large batch, and its loss the mean over its samples.

    Args:
        without: so many steps at the beginning are left out.
    """
    config, (phase,) = task.config, task.phases
    number = 0
    for epoch in range(phase.epochs):
        batches = list(task.batches("train", epoch))
        for first in range(0, len(batches), config.accumulate):
            number += 1
            if number <= without:
                continue
            window = batches[first : first + config.accumulate]
            large = [torch.cat(parts) for parts in zip(*window, strict=True)]
            for update in task.updates(large, phase):
                optimizer = phase.optimizers[update.optimizer]
                optimizer.zero_grad()
                loss = torch.stack([float(term.weight) * term.fn(update.prediction) for term in update.terms]).sum()
                loss.backward()
                owned = [p for group in optimizer.param_groups for p in group["params"]]
                if config.grad_clip:
                    nn.utils.clip_grad_norm_(owned, config.grad_clip)
                optimizer.step()
                if update.optimizer in phase.schedulers:
                    phase.schedulers[update.optimizer].step()


def assert_close(task: ToyTask, plain: ToyTask, atol: float = 1e-6) -> None:
    for name, module in task.modules.items():
        for ours, theirs in zip(module.parameters(), plain.modules[name].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


# windows of batches --------------------------------------------------------------------------------------------------

SIZES = {"last smaller": (5, 5, 5, 5, 4), "first smaller": (1, 6, 6, 6, 5), "all sorts": (3, 7, 2, 1, 8, 2, 1)}


@pytest.mark.parametrize("grad_clip", [0.0, 0.2])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 9])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_a_window_of_batches_is_one_large_batch(
    tmp_path: Path, sizes: tuple[int, ...], accumulate: int, grad_clip: float
) -> None:
    config = ToyConfig(epochs=1, slope_weight=WEIGHT, accumulate=accumulate, grad_clip=grad_clip)
    task, plain, start = Plain(config, sizes), Plain(config, sizes), Plain(config)
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    by_hand(plain)
    assert_close(task, plain)
    assert not torch.allclose(task.modules["net"][1].weight, start.modules["net"][1].weight, atol=1e-3)
    steps = math.ceil(len(sizes) / accumulate)
    (row,) = history.read_rows(run.history_file)
    assert row["step"] == steps
    assert row["lr_net"] == pytest.approx(0.2 / (1 + steps / 3)), "the schedule steps once per optimizer step"
    last = checkpoint.find(run, "last")
    assert last is not None and last.step == steps


def test_the_losses_on_record_are_those_of_the_large_batches(tmp_path: Path) -> None:
    config = ToyConfig(epochs=1, slope_weight=WEIGHT, accumulate=9)
    sizes = (3, 7, 2, 1, 8, 2, 1)
    task, plain = Plain(config, sizes), Plain(config, sizes)
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    noisy, clean = (torch.cat(parts) for parts in zip(*plain.batches("train", 0), strict=True))
    mse, slope = (term.fn(plain.modules["net"](noisy)).item() for term in plain.terms(clean))
    (row,) = history.read_rows(run.history_file)
    assert (row["train_mse"], row["train_slope"]) == pytest.approx((mse, slope))
    assert row["train_total"] == pytest.approx(mse + WEIGHT * slope)


def test_the_step_of_a_resume_counts_windows(tmp_path: Path) -> None:
    """Five batches an epoch in windows of two, three steps; stopped after the second."""
    settings = {"epochs": 3, "batch_size": 5, "accumulate": 2}
    whole = train(tmp_path, "whole", **settings).run
    assert [row["step"] for row in history.read_rows(whole.history_file)] == [3, 6, 9]
    task = Stopped(ToyConfig(**settings), at=8, fault=press)  # in the fifth step's second batch
    run = open_run(task, tmp_path, "run")
    assert fit(task, run).interrupted
    last = checkpoint.find(run, "last")
    assert last is not None
    assert (last.step, checkpoint.load_state(last)["progress"]["batch"]) == (5, 4)
    assert train(tmp_path, **settings).resumed_from == 5
    assert_equal_runs(run, whole)


class Two(Plain):
    """Two nets with an optimizer each; the second smooths what the first has made, as it is after the first's step."""

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.modules["second"] = nn.Conv2d(1, 1, 3, padding=1)
        optimizer = torch.optim.SGD(self.modules["second"].parameters(), lr=0.1)
        (phase,) = self.phases
        self.phases = (Phase("train", config.epochs, {**phase.optimizers, "second": optimizer}, phase.schedulers),)

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        yield from super().updates(batch, phase)
        noisy, clean = batch
        prediction = self.modules["second"](noisy)
        yield Update("second", prediction, (LossTerm("l1", lambda p: (p - clean).abs().mean(), 1.0),), target=clean)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_two_optimizers_each_take_one_step_a_window(tmp_path: Path, accumulate: int) -> None:
    config = ToyConfig(epochs=2, slope_weight=WEIGHT, batch_size=5, accumulate=accumulate)
    task, plain = Two(config), Two(config)
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    by_hand(plain)
    assert_close(task, plain, atol=2e-6)
    steps = math.ceil(5 / accumulate)
    rows = history.read_rows(run.history_file)
    assert [row["step"] for row in rows] == [steps, 2 * steps]
    assert rows[-1]["lr_net"] == pytest.approx(0.2 / (1 + 2 * steps / 3))
    assert rows[-1]["lr_second"] == 0.1
    assert rows[-1]["train_l1"] > 0


class Critic(Two):
    """The net's loss runs through the other optimizer's layer, which must get nothing of that gradient."""

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        noisy, clean = batch
        net, second = self.modules["net"], self.modules["second"]

        def mse(prediction: Tensor) -> Tensor:
            return (prediction - clean).square().mean()

        yield Update("second", second(net(noisy).detach()), (LossTerm("second_mse", mse, 1.0),))
        yield Update("net", second(net(noisy)), (LossTerm("mse", mse, 1.0),))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_loss_through_another_optimizers_layer_leaves_it_alone(tmp_path: Path, accumulate: int) -> None:
    config = ToyConfig(epochs=1, accumulate=accumulate, grad_clip=0.0)
    task, plain = Critic(config), Critic(config)
    fit(task, open_run(task, tmp_path, "run"))
    by_hand(plain)
    for ours, theirs in zip(task.modules["second"].parameters(), plain.modules["second"].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_an_optimizer_that_steps_twice_a_batch_cannot_gather(tmp_path: Path) -> None:
    class Twice(Plain):
        def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
            yield from super().updates(batch, phase)
            yield from super().updates(batch, phase)

    task = Twice(ToyConfig(accumulate=2))
    with pytest.raises(ValueError, match="'net' steps twice a batch, so accumulate must be 1"):
        fit(task, open_run(task, tmp_path, "run"))


class Holey(Plain):
    """Of some batches nothing could be read."""

    empty: frozenset[int] = frozenset()

    def batches(self, split: str, epoch: int, start: int = 0) -> Any:
        batches = list(super().batches(split, epoch, start))
        return [[x[:0] for x in b] if split == "train" and n in self.empty else b for n, b in enumerate(batches)]

    def unreadable(self, batch: Any) -> Sequence[str]:
        return () if len(batch[0]) else ("a.h5 ends early",)

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        if len(batch[0]):
            yield from super().updates(batch, phase)


@pytest.mark.parametrize("empty", [{0}, {1}, {3}, {2, 3}])
def test_a_batch_of_which_nothing_could_be_read_takes_no_step_and_spoils_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: set[int]
) -> None:
    monkeypatch.setattr(unreadable, "MAX_SHARE", 1.0)  # the budget is tested elsewhere
    task, whole = Holey(ToyConfig(epochs=1, accumulate=2)), Plain(ToyConfig(epochs=1, slope_weight=WEIGHT))
    task.empty = frozenset(empty)
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    (row,) = history.read_rows(run.history_file)
    assert row["step"] == 2 and row["skipped_steps"] == 0 and row["train_mse"] > 0
    assert all(bool(torch.isfinite(p).all()) for p in task.modules["net"].parameters())
    changed = (a - b for a, b in zip(task.modules["net"].parameters(), whole.modules["net"].parameters(), strict=True))
    assert any(bool((difference != 0).any()) for difference in changed)


# the ledger's gradient -----------------------------------------------------------------------------------------------


class Latent(ToyTask):
    """Three terms at the prediction, one of them still rising, and one at the latent between two layers."""

    def __init__(self) -> None:
        super().__init__(ToyConfig(grad_clip=0.0))
        self.encoder, self.decoder = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)
        self.modules = {"net": nn.ModuleList([self.encoder, self.decoder])}
        optimizer = torch.optim.SGD(self.modules["net"].parameters(), lr=0.1)
        self.phases = (Phase("train", 1, {"net": optimizer}),)

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        noisy, clean = batch
        latent = self.encoder(noisy).tanh()
        prediction = self.decoder(latent)
        terms = (
            *self.terms(clean)[:1],
            LossTerm("l1", lambda p: (p - clean).abs().mean(), 0.3),
            LossTerm("roughness", lambda p: p.diff(dim=-1).square().mean(), Ramp(to=2.0, epochs=2.0)),
            LossTerm("latent", lambda z: (z.exp() - z - 1).mean(), 0.2, role="regulariser", at=latent),
        )
        yield Update("net", prediction, terms, target=clean)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_gradient_is_that_of_plain_autograd(n: int) -> None:
    """Terms at two places, a rising weight at a quarter of its rise, windows of batches of unlike sizes."""
    task = Latent()
    (phase,) = task.phases
    noisy, clean = torch.randn(2, 20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    window = list(zip(noisy.split([7, 3, 8, 2]), clean.split([7, 3, 8, 2]), strict=True))[:n]
    large = [torch.cat(parts) for parts in zip(*window, strict=True)]
    factors = {"mse": 1.0, "l1": 0.3, "roughness": 0.5, "latent": 0.2}
    (update,) = task.updates(large, phase)
    places = [update.prediction if term.at is None else term.at for term in update.terms]
    terms = [term.fn(place) for term, place in zip(update.terms, places, strict=True)]
    loss = torch.stack([factors[t.name] * v for t, v in zip(update.terms, terms, strict=True)]).sum()
    expected = torch.autograd.grad(loss, list(task.modules["net"].parameters()))
    (outcome,) = optimizer_step(
        task, phase, window, accelerator=Accelerator(cpu=True), balance=Balance(), time=0.5, probing=0.0,
        with_shares=True,
    )  # fmt: skip
    assert outcome.weights == pytest.approx(factors)
    assert outcome.total == pytest.approx(loss.item(), rel=1e-5)
    for parameter, gradient in zip(task.modules["net"].parameters(), expected, strict=True):
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))
    assert outcome.shares is not None and [entry.term for entry in outcome.shares] == list(factors)


# the average ---------------------------------------------------------------------------------------------------------


def recorded(task: ToyTask) -> list[dict[str, Tensor]]:
    """The net's weights before training and, as it goes on, after every step."""
    net, (phase,) = task.modules["net"], task.phases

    def look() -> dict[str, Tensor]:
        return {f"net.{name}": tensor.detach().clone() for name, tensor in net.state_dict().items()}

    seen = [look()]
    phase.optimizers["net"].register_step_post_hook(lambda *_: seen.append(look()))
    return seen


@pytest.mark.parametrize(("decay", "accumulate"), [(0.9, 1), (0.3, 1), (0.9, 3)])
def test_the_average_follows_its_recursion_and_is_what_is_scored_and_shipped(
    tmp_path: Path, decay: float, accumulate: int
) -> None:
    settings = {"epochs": 6, "accumulate": accumulate, "batch_size": 5}
    plain = train(tmp_path, "plain", **settings).run
    task, run = toy(tmp_path, ema_decay=decay, **settings)
    seen = recorded(task)
    fit(task, run)
    average = seen[0]
    for n, now in enumerate(seen[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        average = {name: d * average[name] + (1 - d) * now[name] for name in now}
    assert len(seen) == 1 + 6 * math.ceil(5 / accumulate)
    shipped, last = weights(run), checkpoint.find(run, "last")
    assert last is not None
    for name, tensor in average.items():
        torch.testing.assert_close(shipped[name], tensor, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(tensor, seen[-1][name], atol=1e-4), "the average is not the last weights"

    state, without = checkpoint.load_state(last), checkpoint.load_state(checkpoint.find(plain, "last"))
    trained = weights(plain)
    assert_same(state["ema"]["weights"], {name: trained[name] for name in seen[0]}, "trained weights")
    assert_same(state["phases"], without["phases"])
    assert state["ema"]["updates"] == len(seen) - 1 and without["ema"] is None
    rows, others = history.read_rows(run.history_file), history.read_rows(plain.history_file)
    assert [row["train_total"] for row in rows] == [row["train_total"] for row in others]

    fresh = ToyTask(ToyConfig())
    checkpoint.load_weights(last, fresh.modules)
    assert fresh.evaluate("val").metrics["mse"].value == rows[-1]["val_mse"] != others[-1]["val_mse"]
    best = checkpoint.find(run, "best")
    assert best is not None
    checkpoint.load_weights(best, fresh.modules)
    assert fresh.evaluate("val").metrics["mse"].value == min(row["val_mse"] for row in rows)
    assert_same({f"net.{k}": v for k, v in task.modules["net"].state_dict().items()}, seen[-1], "after the call")


# fp16's scaler -------------------------------------------------------------------------------------------------------


def use_scaler(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Float32 on the CPU, with the loss scaled as in fp16."""
    make = fit_module._accelerator

    def with_scaler(*args: Any) -> Accelerator:
        accelerator = make(*args)
        accelerator.scaler = torch.amp.GradScaler("cpu", **options)
        return accelerator

    monkeypatch.setattr(fit_module, "_accelerator", with_scaler)


class Seeing(Plain):
    """Notes the weights before every update."""

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.seen: list[Tensor] = []

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        self.seen.append(self.modules["net"][1].weight.detach().clone())
        yield from super().updates(batch, phase)


@pytest.mark.parametrize("grad_clip", [0.0, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_scaled_loss_trains_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grad_clip: float, accumulate: int
) -> None:
    """The scale also grows every second step; clipping a scaled gradient would give other weights."""
    use_scaler(monkeypatch, init_scale=1000.0, growth_interval=2)
    config = ToyConfig(
        epochs=2, slope_weight=WEIGHT, grad_clip=grad_clip, accumulate=accumulate, batch_size=5
    )  # fmt: skip
    task, plain = Plain(config), Plain(config)
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    by_hand(plain)
    assert_close(task, plain, atol=2e-6)
    state = checkpoint.load_state(checkpoint.find(run, "last"))
    assert state["scaler"]["scale"] == 1000.0 * 2 ** (2 * math.ceil(5 / accumulate) // 2)
    assert sum(row["skipped_steps"] for row in history.read_rows(run.history_file)) == 0
    assert read_guards(run) == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_optimizers_share_a_scale_that_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """It may change after a window only: gradients of one window must not carry two scales."""
    use_scaler(monkeypatch, init_scale=1024.0, growth_interval=1)
    config = ToyConfig(epochs=2, slope_weight=WEIGHT, batch_size=5, accumulate=accumulate)
    task, plain = Two(config), Two(config)
    fit(task, open_run(task, tmp_path, "run"))
    by_hand(plain)
    assert_close(task, plain, atol=2e-6)


def test_an_optimizer_may_step_twice_a_batch_under_a_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic does; the scale is brought up to date after each step."""

    class Twice(Plain):
        def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
            yield from super().updates(batch, phase)
            yield from super().updates(batch, phase)

    use_scaler(monkeypatch, init_scale=1024.0, growth_interval=1)
    task, plain = (Twice(ToyConfig(epochs=1, slope_weight=WEIGHT)) for _ in range(2))
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    by_hand(plain)
    assert_close(task, plain, atol=2e-6)
    assert checkpoint.load_state(checkpoint.find(run, "last"))["scaler"]["scale"] == 1024.0 * 2**8


def test_a_step_that_overflows_is_left_out_and_the_scale_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_scaler(monkeypatch, init_scale=1e38)
    config = ToyConfig(epochs=3, slope_weight=50.0)
    task, plain = Seeing(config), Plain(config)
    run = open_run(task, tmp_path, "run")
    fit(task, run)
    rows = history.read_rows(run.history_file)
    skipped = sum(row["skipped_steps"] for row in rows)
    assert 2 <= skipped < 10
    assert [row["step"] for row in rows] == [4, 8, 12]
    before = task.seen[1:]  # without the rehearsal's
    assert all(torch.equal(weight, before[0]) for weight in before[: skipped + 1])
    assert not torch.equal(before[skipped + 1], before[0])
    by_hand(plain, without=skipped)
    assert_close(task, plain, atol=1e-5)
    assert rows[-1]["lr_net"] == pytest.approx(0.2 / (1 + (12 - skipped) / 3)), "the schedule waited too"
    (finding,) = [found for found in read_guards(run) if found["name"] == "not_finite"]
    assert finding["severity"] in ("info", "warn")
    assert "fp16" in finding["message"]
    state = checkpoint.load_state(checkpoint.find(run, "last"))
    assert state["scaler"]["scale"] == pytest.approx(1e38 * 0.5**skipped)


@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_the_scale_survives_the_stop_button(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Stopped while steps overflow, and later, when the scale rises every third step."""
    use_scaler(monkeypatch, init_scale=1e38, growth_interval=3)
    settings = {"epochs": 3, "slope_weight": 50.0, "ema_decay": 0.9}
    whole = train(tmp_path, "whole", **settings).run
    assert any(row["skipped_steps"] for row in history.read_rows(whole.history_file))
    task = Stopped(ToyConfig(**settings), at, press)
    run = open_run(task, tmp_path, "run")
    assert fit(task, run).interrupted
    assert train(tmp_path, **settings).resumed_from == at + 1
    assert_equal_runs(run, whole)


# a loss that breaks --------------------------------------------------------------------------------------------------


def _infinite_gradient(prediction: Tensor) -> Tensor:
    return (prediction - prediction.detach()).sqrt().mean()


BROKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda p: p.mean() * math.nan,
    "inf": lambda p: p.mean() + math.inf,
    "root": _infinite_gradient,
}


class Breaking(Plain):
    """A third term breaks on given training batches; they are known by their content, so also after a resume.

    Args:
        broken: numbers of the batches, counted over the epochs.
    """

    def __init__(self, config: ToyConfig, kind: str, broken: Sequence[int]):
        super().__init__(config)
        self.kind = kind
        epochs = [list(ToyTask.batches(self, "train", epoch)) for epoch in range(config.epochs)]
        self.bad = [batch[0] for number, batch in enumerate(b for e in epochs for b in e) if number in broken]

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        (update,) = super().updates(batch, phase)
        is_bad = any(batch[0].shape == bad.shape and torch.equal(batch[0], bad) for bad in self.bad)
        fn: Callable[[Tensor], Tensor] = lambda p: 0.1 * p.square().mean()  # noqa: E731
        if is_bad and self.kind == "behind":
            update.prediction.register_hook(lambda gradient: gradient * math.inf)
        elif is_bad:
            fn = BROKEN[self.kind]
        yield Update(update.optimizer, update.prediction, (*update.terms, LossTerm("third", fn, 1.0)), update.target)


def is_finite(run: Run) -> bool:
    folders = list(run.checkpoints.glob("step_*"))
    assert folders
    return all(tensor.isfinite().all() for f in folders for tensor in load_file(f / "model.safetensors").values())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["nan", "inf", "root", "behind"])
def test_a_step_that_breaks_is_left_out_and_the_run_goes_on(tmp_path: Path, kind: str, accumulate: int) -> None:
    config = ToyConfig(epochs=3, slope_weight=WEIGHT, accumulate=accumulate, ema_decay=0.5)
    task = Breaking(config, kind, [5])
    run = open_run(task, tmp_path, "run")
    before: list[Tensor] = []
    weight = task.modules["net"][1].weight
    task.phases[0].optimizers["net"].register_step_pre_hook(lambda *_: before.append(weight.detach().clone()))
    assert fit(task, run).epochs == 3
    rows = history.read_rows(run.history_file)
    assert [row["skipped_steps"] for row in rows] == [0, 1, 0]
    steps = 12 // accumulate
    assert rows[-1]["step"] == steps
    assert len(before) == steps - 1, "no step, and no step on the schedule either"
    assert rows[-1]["lr_net"] == pytest.approx(0.2 / (1 + (steps - 1) / 3))
    assert all(isinstance(v, (int, float)) and math.isfinite(v) for k, v in rows[1].items() if k.startswith("train_"))
    assert is_finite(run)
    assert checkpoint.load_state(checkpoint.find(run, "last"))["ema"]["updates"] == steps - 1
    (finding,) = read_guards(run)
    assert (finding["name"], finding["severity"]) == ("not_finite", "warn")
    assert finding["step"] == 5 // accumulate + 1
    assert "third" in finding["evidence"]
    if kind in ("nan", "inf"):
        assert f"third = {kind}" in finding["evidence"] and "mse" not in finding["evidence"], "only the culprit"


def test_a_run_with_a_broken_step_is_stopped_and_goes_on_exactly(tmp_path: Path) -> None:
    config = ToyConfig(epochs=3, accumulate=2)

    def again(name: str) -> Run:
        task = Breaking(config, "nan", [4, 5, 7, 9])
        run = open_run(task, tmp_path, name)
        fit(task, run)
        return run

    whole = again("whole")

    class Pressed(Breaking):
        calls = 0

        def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
            self.calls += 1
            if self.calls == 1 + 6:  # within the window that breaks first
                press()
            yield from super().updates(batch, phase)

    task = Pressed(config, "nan", [4, 5, 7, 9])
    assert fit(task, open_run(task, tmp_path, "run")).interrupted
    assert_equal_runs(again("run"), whole)


@pytest.mark.parametrize("kind", ["nan", "root", "behind"])
@pytest.mark.parametrize("save_minutes", [5.0, 0.0])
def test_when_every_step_breaks_the_run_stops_and_what_was_trained_stays(
    tmp_path: Path, kind: str, save_minutes: float
) -> None:
    config = ToyConfig(epochs=6)
    task = Breaking(config, kind, range(5, 24))
    run = open_run(task, tmp_path, "run")
    with pytest.raises(GuardStop, match="(?i)no step is taken any more.*third") as caught:
        fit(task, run, save_minutes=save_minutes)
    assert caught.value.exit_code == 3
    assert caught.value.finding.step == 5 + 10
    last = checkpoint.find(run, "last")
    assert last is not None
    assert last.step == (14 if save_minutes == 0 else 3 * STEPS_PER_EPOCH), "all before the step that stopped it"
    assert is_finite(run)
    for state in checkpoint.load_state(last)["phases"]["train"]["optimizers"]["net"]["state"].values():
        assert all(value.isfinite().all() for value in state.values() if isinstance(value, Tensor))
    assert read_guards(run)[-1]["severity"] == "stop"


def test_nine_broken_steps_in_a_row_are_lived_through(tmp_path: Path) -> None:
    task = Breaking(ToyConfig(epochs=6), "nan", [*range(3, 12), *range(13, 22)])
    assert fit(task, open_run(task, tmp_path, "run")).epochs == 6
