"""Guards that watch steps and epochs: faults planted in small real trainings, thresholds, and healthy runs."""

from __future__ import annotations

import copy
import dataclasses
import io
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from toy import STEPS_PER_EPOCH, ToyConfig, ToyTask

from nbhelpers.training.guards.balance import LossBalance, out_of_balance
from nbhelpers.training.guards.blank import BlankPredictions
from nbhelpers.training.guards.finite import LossSpike, NotFinite
from nbhelpers.training.guards.gradients import DeadGradients, fingerprint
from nbhelpers.training.guards.guard import Epoch, Finding, Guard, Rehearsal, Step
from nbhelpers.training.guards.memory import MemoryGrowth, measure, out_of_memory
from nbhelpers.training.ledger import Balance, Entry, entries, probe, surrogate
from nbhelpers.training.task import Evaluation, LossTerm, Phase, Spread, Update
from nbhelpers.training.weights import Ramp, Share

GUARDS = (LossBalance, DeadGradients, NotFinite, LossSpike, BlankPredictions, MemoryGrowth)


class Toy(ToyTask):
    """The toy task with another net, optimizer or loss, as each test needs them."""

    def __init__(
        self,
        *,
        net: nn.Module | None = None,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        schedule: Callable[[int], float] | None = None,
        terms: Callable[[Tensor], tuple[LossTerm, ...]] | None = None,
        **settings: Any,
    ):
        super().__init__(replace(ToyConfig(), **settings))
        net = self.modules["net"] if net is None else net
        self.modules["net"] = net
        chosen = torch.optim.Adam(net.parameters(), lr=self.config.lr) if optimizer is None else optimizer(net)
        schedulers = {} if schedule is None else {"net": LambdaLR(chosen, schedule)}
        self.phases: Sequence[Phase] = (Phase("train", self.config.epochs, {"net": chosen}, schedulers),)
        self.own_terms = terms

    def terms(self, clean: Tensor) -> tuple[LossTerm, ...]:
        return super().terms(clean) if self.own_terms is None else self.own_terms(clean)


def rehearsal(task: Toy) -> Rehearsal:
    with torch.random.fork_rng():  # a loader draws a number when it starts
        batch = next(iter(task.batches("train", 0)))
    return Rehearsal(
        task=task,
        phase=task.phases[0],
        modules=task.modules,
        step=0,
        began_epoch=0,
        began_step=0,
        surveys={},
        first=task.look(batch),
        updates=(),
        evaluation=None,
        batches_per_epoch=1000,  # the loops of this file are shorter than the run they stand for
        steps_per_epoch=1000,
    )


def train(
    task: Toy,
    *guards: Guard,
    steps: int = 16,
    fp16: bool = False,
    precision_scale: float = 2.0**16,
    spoil: Callable[[int, Any], Any] = lambda step, batch: batch,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    swap_at: int | None = None,
) -> list[Finding]:
    """Train honestly and show every step and epoch to the guards; at step ``swap_at`` they are saved and loaded."""
    watching = list(guards)
    found = [finding for guard in watching for finding in guard.before(rehearsal(task))]
    balance, rows = Balance(), []
    scaler = torch.amp.GradScaler("cpu", init_scale=precision_scale, enabled=fp16)
    phase, done, epoch = task.phases[0], 0, 0
    while done < steps:
        for module in task.modules.values():
            module.train()
        raw: Mapping[str, float] = {}
        for number, batch in enumerate(task.batches("train", epoch)):
            time = epoch + number / STEPS_PER_EPOCH
            with torch.autocast("cpu", dtype=torch.float16, enabled=fp16):
                updates = task.updates(spoil(done, batch), phase)
            done += 1
            while True:
                with torch.autocast("cpu", dtype=torch.float16, enabled=fp16):
                    update = next(updates, None)
                if update is None:
                    break
                probed = probe(update.prediction, update.terms)
                weights = balance.weights(probed, update.terms, time=time)
                raw = dict(zip(probed.names, probed.raw, strict=True))
                optimizer = phase.optimizers[update.optimizer]
                optimizer.zero_grad()
                skipped = None
                if not np.isfinite(probed.raw).all():
                    skipped = "loss not finite"
                else:
                    scaler.scale(surrogate(probed, weights)).backward()
                    scaler.unscale_(optimizer)
                    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                    norm = nn.utils.clip_grad_norm_(parameters, task.config.grad_clip)
                    if not bool(torch.isfinite(norm)):
                        skipped = "fp16 overflow" if fp16 else "gradient not finite"
                    if skipped is None or fp16:
                        scaler.step(optimizer)
                        scaler.update()
                for scheduler in phase.schedulers.values():
                    scheduler.step()
                step = Step(
                    task=task,
                    modules=task.modules,
                    phase=phase,
                    step=done,
                    time=epoch + (number + 1) / STEPS_PER_EPOCH,
                    batch=batch,
                    update=update,
                    total=sum(weights[name] * raw[name] for name in raw),
                    raw=raw,
                    shares=entries(probed, weights),
                    skipped=skipped,
                )
                if done == swap_at:
                    watching = [reloaded(guard) for guard in watching]
                    found += [finding for guard in watching for finding in guard.before(rehearsal(task))]
                found += [finding for guard in watching for finding in guard.on_step(step)]
            if done == steps and done % STEPS_PER_EPOCH:
                return found
        epoch += 1
        after_epoch(epoch)
        scored = task.evaluate("val")
        rows.append(
            {
                "epoch": epoch,
                "phase": phase.name,
                **{f"val_{name}": m.value for name, m in scored.metrics.items()},
                **measure(),
            }
        )
        shown = Epoch(task, task.modules, phase, epoch, done, STEPS_PER_EPOCH, rows, scored, task.config.epochs)
        found += [finding for guard in watching for finding in guard.on_epoch(shown)]
    return found


def reloaded(guard: Guard) -> Guard:
    """A new guard with the state of another, as a resumed run has it."""
    file = io.BytesIO()
    torch.save(guard.state_dict(), file)
    file.seek(0)
    fresh = type(guard)()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def only(found: Sequence[Finding]) -> Finding:
    assert len({(finding.name, finding.message) for finding in found}) == 1, found
    return found[0]


def mse(clean: Tensor, weight: Any = 1.0, **more: Any) -> LossTerm:
    return LossTerm("mse", lambda prediction: (prediction - clean).square().mean(), weight, **more)


def mae(clean: Tensor, weight: Any, **more: Any) -> LossTerm:
    return LossTerm("mae", lambda prediction: (prediction - clean).abs().mean(), weight, **more)


class TestHealthy:
    @pytest.mark.parametrize("seed", range(5))
    def test_toy_run_raises_nothing(self, seed: int) -> None:
        assert train(Toy(seed=seed), *(guard() for guard in GUARDS), steps=80) == []

    @pytest.mark.parametrize("seed", range(5))
    def test_deep_net_with_normalisation_and_plain_weights(self, seed: int) -> None:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 1, 1))
        task = Toy(net=net, seed=seed, slope_weight=0.2, schedule=lambda step: min(1.0, step / 20))
        assert train(task, *(guard() for guard in GUARDS), steps=80) == []

    @pytest.mark.parametrize("guard", GUARDS)
    def test_state_is_plain_and_a_loaded_guard_has_it(self, guard: type[Guard]) -> None:
        watching = guard()
        train(Toy(slope_weight=1e-6), watching, steps=10)
        assert reloaded(watching).state_dict() == watching.state_dict()


class TestLossBalance:
    def test_inert_term_is_found_at_probe_15(self) -> None:
        found = only(train(Toy(slope_weight=1e-6), LossBalance()))
        assert (found.severity, found.step) == ("warn", 15)
        assert "mse has nearly all of the gradient and slope next to nothing" in found.message
        assert found.cure == "Give slope a target gradient share, e.g. 10 %, instead of its weight 1e-06."
        share = float(found.evidence.rpartition("slope ")[2].partition(" %")[0])
        assert 1e-5 < share < 1e-3  # per cent: two orders around the weight, and more than 0

    @pytest.mark.parametrize(("steps", "judged_on"), [(3, 3), (10, 6)])
    def test_a_run_shorter_than_fifteen_steps_is_judged_at_its_end(self, steps: int, judged_on: int) -> None:
        task, guard = Toy(slope_weight=1e-6), LossBalance()
        task.phases = (dataclasses.replace(task.phases[0], epochs=1),)
        short = dataclasses.replace(rehearsal(task), steps_per_epoch=steps)
        guard.before = lambda _, before=guard.before: before(short)  # type: ignore[method-assign]
        found = only(train(task, guard, steps=steps))
        assert found.step == steps and found.evidence.endswith(f"medians of {judged_on} steps")

    def test_drowning_term_is_found(self) -> None:
        found = only(train(Toy(slope_weight=1e4), LossBalance()))
        assert "slope has nearly all of the gradient and mse next to nothing" in found.message
        assert found.cure.startswith("Lower the weight of slope, which is 10000,")

    def test_cures_name_what_can_be_done(self) -> None:
        def cure(weight: Any, fn: Callable[[Tensor], Tensor]) -> str:
            terms = lambda clean: (mse(clean), LossTerm("extra", fn, weight))  # noqa: E731
            return only(train(Toy(terms=terms), LossBalance())).cure

        assert cure(Share(0.005), lambda x: x.mean()) == ("Raise the target gradient share of extra, which is 0.5 %.")
        assert cure(0.1, lambda x: x.round().mean()) == "Find out why extra has no gradient at the prediction."

    def test_regularisers_single_losses_and_switched_off_terms_are_not_judged(self) -> None:
        for terms in (
            lambda clean: (mse(clean),),
            lambda clean: (mse(clean), mae(clean, 0.0)),
            lambda clean: (mse(clean), mae(clean, Share(0.0))),
            lambda clean: (mse(clean), mae(clean, Ramp(0.0, epochs=1))),
            lambda clean: (mse(clean), mae(clean, 1e-6, role="regulariser")),
        ):
            assert train(Toy(terms=terms), LossBalance(), steps=20) == []

    def test_a_ramp_is_waited_for(self) -> None:
        def task(to: float) -> Toy:
            return Toy(terms=lambda clean: (mse(clean), mae(clean, Ramp(to, epochs=2))))

        assert train(task(1.0), LossBalance(), steps=40) == []  # inert while it rises, and that is meant
        found = only(train(task(1e-6), LossBalance(), steps=40))
        assert found.step == 2 * STEPS_PER_EPOCH + 14  # the step that ends with the ramp is the first probe

    def test_flat_batches_are_no_probes(self) -> None:
        def flat(step: int, batch: Any) -> Any:
            return [0 * field for field in batch] if step % 2 else batch

        net = nn.Conv2d(1, 1, 3, padding=1, bias=False)  # 0 from 0: no gradient at all on such a batch
        assert train(Toy(net=net, slope_weight=0.3), LossBalance(), steps=40, spoil=flat) == []
        assert only(train(Toy(net=net, slope_weight=1e-6), LossBalance(), steps=40, spoil=flat)).step == 29

    def test_each_optimizer_is_judged_by_its_own_terms(self) -> None:
        found = only(train(Pair(second=lambda clean: (mse(clean), mae(clean, 1e-6))), LossBalance(), steps=20))
        assert (found.step, "mae next to nothing" in found.message) == (15, True)

    def test_limits(self) -> None:
        assert out_of_balance({"a": 0.9901, "b": 0.0099}) == ("a", "b")
        assert out_of_balance({"b": 0.01, "a": 0.99}) is None
        assert out_of_balance({"a": 0.9, "b": 0.001, "c": 0.099}) is None
        assert out_of_balance({"a": 0.9001, "b": 0.0001, "c": 0.0998}) == ("a", "b")
        assert out_of_balance({"a": 1.0}) is None

    def test_median_is_over_probes_5_to_15(self) -> None:
        def judged(shares: Sequence[float]) -> list[Finding]:
            guard = LossBalance()
            task = Toy()
            update = next(iter(task.updates(next(iter(task.batches("train", 0))), task.phases[0])))
            found = []
            for number, share in enumerate(shares, start=1):
                rows = [
                    Entry("mse", 1.0, 1.0, 1 - share, 1 - share, 1.0, {}),
                    Entry("slope", 1.0, 1.0, share, share, 1.0, {}),
                ]
                found += guard.on_step(
                    Step(task, task.modules, task.phases[0], number, 0.0, None, update, 1.0, {}, rows, None)
                )
            return found

        fine, inert = [0.5], [0.001]
        assert judged(fine * 4 + inert * 6 + fine * 5)  # 6 of the 11 that count
        assert not judged(inert * 4 + inert * 5 + fine * 6)
        assert not judged(inert * 14)
        assert len(judged(inert * 40)) == 1


class Pair(Toy):
    """Two nets with an optimizer each, both updated on every batch."""

    def __init__(self, second: Callable[[Tensor], tuple[LossTerm, ...]], **settings: Any):
        super().__init__(**settings)
        self.second = second
        other = nn.Conv2d(1, 1, 3, padding=1)
        self.modules["other"] = other
        optimizers = {**self.phases[0].optimizers, "other": torch.optim.Adam(other.parameters(), lr=0.03)}
        self.phases = (Phase("train", 2, optimizers),)

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        yield from super().updates(batch, phase)
        yield Update("other", self.modules["other"](batch[0]), self.second(batch[1]))


class Branch(nn.Module):
    """A trunk and a branch whose output is cut off from the graph."""

    def __init__(self, cut: bool):
        super().__init__()
        self.trunk, self.branch, self.cut = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1), cut

    def forward(self, x: Tensor) -> Tensor:
        side = self.branch(x)
        return self.trunk(x) + (side.detach() if self.cut else side)


class LoRA(nn.Module):
    """A frozen convolution with a trainable product of two, of which the second starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
        self.a, self.b = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


def trainable(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.01)


class TestDeadGradients:
    def test_dead_branch_stops_at_step_3(self) -> None:
        found = only(train(Toy(net=Branch(cut=True)), DeadGradients()))
        assert (found.severity, found.step) == ("stop", 3)
        assert "get no gradient" in found.message
        assert found.evidence == "2 of 4 tensors: net.branch.weight, net.branch.bias in 3 steps"
        assert train(Toy(net=Branch(cut=False)), DeadGradients()) == []

    def test_tensor_without_an_optimizer_is_found_before_training(self) -> None:
        task = Toy(
            net=Branch(cut=False), optimizer=lambda net: torch.optim.Adam(net.get_submodule("trunk").parameters())
        )
        (found, *_) = DeadGradients().before(rehearsal(task))
        assert (found.severity, found.step) == ("stop", 0)
        assert found.evidence == "2 of 4 tensors: net.branch.weight, net.branch.bias"

    def test_optimizer_of_another_copy_of_the_model(self) -> None:
        task = Toy(optimizer=lambda net: torch.optim.Adam(copy.deepcopy(net).parameters()))
        (found, *_) = DeadGradients().before(rehearsal(task))
        assert "belong to no optimizer" in found.message

    def test_no_more_than_five_names(self) -> None:
        net = nn.ModuleList([nn.Conv2d(1, 1, 1) for _ in range(4)])
        task = Toy(net=net, optimizer=lambda net: torch.optim.Adam([torch.zeros(1, requires_grad=True)]))
        (found, *_) = DeadGradients().before(rehearsal(task))
        assert found.evidence == "8 of 8 tensors: net.0.weight, net.0.bias, net.1.weight, net.1.bias, net.2.weight, …"

    def test_adapter_that_starts_at_zero_is_healthy(self) -> None:
        assert train(Toy(net=LoRA(), optimizer=trainable), DeadGradients(), steps=24) == []

    def test_adapter_that_waits_for_its_warm_up_is_healthy(self) -> None:
        task = Toy(net=LoRA(), optimizer=trainable, schedule=lambda step: max(0.0, step - 9) / 10)
        assert train(task, DeadGradients(), steps=24) == []

    def test_adapter_behind_a_head_at_zero_and_a_warm_up_from_zero_is_healthy(self) -> None:
        head = nn.Conv2d(1, 1, 1)
        nn.init.zeros_(head.weight)  # the adapter's first factor has a gradient in the third step that moves
        task = Toy(net=nn.Sequential(LoRA(), head), optimizer=trainable, schedule=lambda step: min(1.0, step / 10))
        assert train(task, DeadGradients(), steps=24) == []

    def test_rate_too_small_for_float_is_no_fault(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.Conv2d(4, 1, 1))
        task = Toy(net=net, lr=1e-9)  # next to weights of 1.0
        before = fingerprint(net[1].weight)
        assert train(task, DeadGradients()) == []
        assert fingerprint(net[1].weight) == before

    def test_complex_weights_are_watched(self) -> None:
        class Spectral(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(8, 5, dtype=torch.complex64))

            def forward(self, x: Tensor) -> Tensor:
                return torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=x.shape[-2:])

        assert train(Toy(net=Spectral()), DeadGradients()) == []

    def test_frozen_tensor_that_moves_stops(self) -> None:
        class Teacher(Toy):
            def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
                yield from super().updates(batch, phase)
                with torch.no_grad():  # it was meant to stand still
                    for frozen, tensor in zip(
                        self.modules["teacher"].parameters(), self.modules["net"].parameters(), strict=True
                    ):
                        frozen.lerp_(tensor, 0.01)

        task = Teacher()
        task.modules["teacher"] = copy.deepcopy(task.modules["net"]).requires_grad_(False)
        found = train(task, DeadGradients(), steps=6)
        assert (only(found).step, only(found).message) == (3, "frozen tensors have changed")
        assert only(found).evidence == "2 of 2 tensors: teacher.1.weight, teacher.1.bias"

    def test_frozen_tensor_that_moves_later_is_found_after_the_epoch(self) -> None:
        task = Toy(net=LoRA(), optimizer=trainable)

        def move(epoch: int) -> None:
            if epoch == 2:
                task.modules["net"].base.bias.data += 1e-3

        found = only(train(task, DeadGradients(), steps=12, after_epoch=move))
        assert (found.step, found.evidence) == (8, "1 of 2 tensors: net.base.bias")

    def test_frozen_tensors_that_come_back_different(self) -> None:
        task, guard = Toy(net=LoRA(), optimizer=trainable), DeadGradients()
        assert train(task, guard, steps=8) == []
        resumed = reloaded(guard)
        task.modules["net"].load_state_dict(LoRA().state_dict())  # another base than the run began with
        assert list(resumed.before(rehearsal(task))) == []
        found = only(list(resumed.on_epoch(epoch_of(task, 3, 12))))
        assert found.evidence == "2 of 2 tensors: net.base.weight, net.base.bias"

    def test_values_that_are_written_back_stop(self) -> None:
        task = Toy()
        net, optimizer = task.modules["net"], task.phases[0].optimizers["net"]
        kept = copy.deepcopy(net.state_dict())
        optimizer.register_step_post_hook(lambda *_: net.load_state_dict(kept) and None)
        found = only(train(task, DeadGradients()))
        assert (found.step, found.severity) == (3, "stop")
        assert "their values have not changed" in found.message
        assert found.evidence == "2 of 2 tensors: net.1.bias, net.1.weight after 3 steps"

    def test_loss_without_a_gradient_stops_after_50_steps(self) -> None:
        def rounded(clean: Tensor) -> tuple[LossTerm, ...]:
            return (LossTerm("mse", lambda prediction: (prediction.round() - clean).square().mean(), 1.0),)

        found = only(train(Toy(terms=rounded), DeadGradients(), steps=60))
        assert (found.step, found.evidence) == (50, "optimizer net: 0 of 50 steps had one")

    @pytest.mark.parametrize("wet_from, faults", [(47, 0), (48, 1)])
    def test_dry_batches_may_have_no_gradient(self, wet_from: int, faults: int) -> None:
        def dry(step: int, batch: Any) -> Any:
            return batch if step >= wet_from else [0 * field for field in batch]

        net = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        assert len(train(Toy(net=net), DeadGradients(), steps=55, spoil=dry)) == faults

    def test_taken_up_again_in_the_middle(self) -> None:
        for task in (lambda: Toy(net=Branch(cut=True)), lambda: Toy(net=LoRA(), optimizer=trainable)):
            torch.manual_seed(0)
            whole = train(task(), DeadGradients())
            torch.manual_seed(0)
            assert train(task(), DeadGradients(), swap_at=2) == whole

    def test_fingerprint_sees_one_bit_and_no_memory_layout(self) -> None:
        x = torch.randn(4, 3, 5, 5)
        assert fingerprint(x) == fingerprint(x.to(memory_format=torch.channels_last))
        y = x.clone()
        y[1, 2, 3, 4] = torch.nextafter(y[1, 2, 3, 4], torch.tensor(torch.inf))
        assert fingerprint(x) != fingerprint(y)
        up_and_down = torch.tensor([1.5, 1.5])  # where a step up and a step down change the bits alike
        assert fingerprint(up_and_down) != fingerprint(up_and_down + torch.tensor([1e-3, -1e-3]))
        for kind in (torch.float16, torch.bfloat16, torch.float64, torch.complex64):
            assert fingerprint(x.to(kind)) != fingerprint((x + 1).to(kind))


def diverging(**settings: Any) -> Toy:
    return Toy(optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=1e6), grad_clip=1e30, **settings)


class TestNotFinite:
    def test_divergence_warns_and_stops_after_ten_in_a_row(self) -> None:
        found = train(diverging(), NotFinite(), steps=40)
        first, last = found[0], next(finding for finding in found if finding.severity == "stop")
        assert first.severity == "warn"
        assert last.step == first.step + 9
        assert last.evidence.startswith("10 in a row") and "loss not finite" in last.message
        assert "mse = inf" in last.evidence or "mse = nan" in last.evidence

    def test_one_bad_batch_is_warned_about_and_forgiven(self) -> None:
        def poison(step: int, batch: Any) -> Any:
            return [field * torch.nan for field in batch] if step % 10 else batch

        found = train(Toy(), NotFinite(), steps=40, spoil=poison)
        assert {finding.severity for finding in found} == {"warn"}  # never more than nine in a row
        assert "mse = nan" in found[0].evidence

    def test_gradient_that_is_not_finite(self) -> None:
        def root(clean: Tensor) -> tuple[LossTerm, ...]:
            return (LossTerm("root", lambda prediction: (0 * prediction).sqrt().mean(), 1.0),)

        found = train(Toy(terms=root), NotFinite(), steps=12)
        assert [finding.severity for finding in found] == ["warn"] * 9 + ["stop"] * 3
        assert "gradient not finite" in found[0].message and "root" in found[0].cure

    def test_fp16_scale_is_sought_without_a_warning(self) -> None:
        found = train(Toy(), NotFinite(), steps=24, fp16=True, precision_scale=2.0**22)
        assert found and {finding.severity for finding in found} == {"info"}
        assert "overflowed in fp16" in found[0].message and "by itself" in found[0].cure

    def test_fp16_that_overflows_for_good_stops(self) -> None:
        def huge(clean: Tensor) -> tuple[LossTerm, ...]:
            return (mse(clean, 1e15),)

        found = train(Toy(terms=huge), NotFinite(), steps=12, fp16=True)
        assert [finding.severity for finding in found] == ["info"] * 9 + ["stop"] * 3
        assert found[9].step == 10 and "fp16 overflow" in found[9].message

    def test_taken_up_again_in_the_middle(self) -> None:
        assert train(diverging(), NotFinite(), steps=30, swap_at=12) == train(diverging(), NotFinite(), steps=30)

    def test_optimizers_are_counted_apart(self) -> None:
        def never(clean: Tensor) -> tuple[LossTerm, ...]:
            return (LossTerm("log", lambda prediction: (prediction * 0 - 1).log().mean(), 1.0),)

        found = train(Pair(second=never), NotFinite(), steps=12)
        assert [finding.severity for finding in found] == ["warn"] * 9 + ["stop"] * 3


def step_of(task: Toy, total: float, number: int, time: float = 0.0, terms: tuple[LossTerm, ...] = ()) -> Step:
    update = Update("net", torch.zeros(1), terms)
    return Step(task, task.modules, task.phases[0], number, time, None, update, total, {}, None, None)


def spikes(totals: Sequence[float], **more: Any) -> list[int]:
    task, guard = Toy(), LossSpike()
    return [f.step for n, total in enumerate(totals, 1) for f in guard.on_step(step_of(task, total, n, **more))]


class TestLossSpike:
    def test_bad_batch_is_found_at_once(self) -> None:
        def spoil(step: int, batch: Any) -> Any:
            return [field * 30 for field in batch] if step == 33 else batch

        found = only(train(Toy(), LossSpike(), steps=40, spoil=spoil))
        assert (found.severity, found.step) == ("warn", 34)

    def test_taken_up_again_in_the_middle(self) -> None:
        def spoil(step: int, batch: Any) -> Any:
            return [field * 30 for field in batch] if step == 33 else batch

        torch.manual_seed(0)
        whole = train(Toy(), LossSpike(), steps=40, spoil=spoil)
        torch.manual_seed(0)
        assert train(Toy(), LossSpike(), steps=40, spoil=spoil, swap_at=30) == whole

    def test_limits(self) -> None:
        assert spikes([1.0] * 20 + [10.01]) == [21]
        assert spikes([1.0] * 20 + [10.0]) == []
        assert spikes([1.0] * 19 + [10.01]) == []
        assert spikes([0.0] * 20 + [10.0]) == spikes([-1.0] * 20 + [10.0]) == []
        assert spikes([1.0] * 20 + [float("nan"), float("inf"), 10.01]) == [23]
        assert spikes([100.0] * 300 + [1.0] * 200 + [11.0]) == [501]  # only the last 200 count
        assert spikes([1.0, 12.0, 1.0, 1.0] * 6 + [59.0]) == []  # dry and wet batches by turns
        assert spikes([1.0, 12.0, 1.0, 1.0] * 6 + [61.0]) == [25]

    def test_rising_weights_are_no_spike(self) -> None:
        terms = (LossTerm("kl", lambda x: x.sum(), Ramp(1.0, epochs=2, start=1.0)),)
        guard, task, found = LossSpike(), Toy(), []
        for n in range(400):
            time = n / 100
            total = 0.01 + 10 * terms[0].weight.at(time)
            found += guard.on_step(step_of(task, total, n, time, terms))
        assert found == []

    def test_divergence_is_seen_on_validation(self) -> None:
        task = Toy(terms=lambda clean: (mse(clean),), lr=0.001)

        def run_away(epoch: int) -> None:
            if epoch == 6:
                task.modules["net"][1].bias.data += 3

        found = train(task, LossSpike(), steps=24, after_epoch=run_away)
        assert [(f.step, f.message) for f in found] == [(24, "mse on validation has jumped")]

    def test_limits_on_validation(self) -> None:
        def found(*column: Any) -> bool:
            guard, task = LossSpike(objectives=["mse"]), Toy()
            rows = [{"val_mse": value} for value in column]
            return bool(list(guard.on_epoch(epoch_of(task, len(rows), 4 * len(rows), rows=rows))))

        assert found(1.0, 1.0, 1.0, 2.01)
        assert not found(1.0, 1.0, 1.0, 2.0)
        assert not found(1.0, 1.0, 2.01)
        assert not found(-1.0, -1.0, -1.0, 3.0)
        assert not found(1.0, 1.0, 1.0, 3.0, 1.0)
        assert not found(1.0, 1.0, 1.0, 3.0, float("nan"))  # said when it happened, not again
        assert not found(None, None, None, None)


LIVELY = Spread(0.0, 1.0, 0.3)


def epoch_of(
    task: Toy,
    epoch: int,
    step: int,
    *,
    prediction: Spread = LIVELY,
    target: Spread = LIVELY,
    rows: Sequence[Mapping[str, Any]] = ({},),
) -> Epoch:
    spreads = {"prediction": prediction, "target": target}
    rows = [{"phase": "train", **row} for row in rows]
    return Epoch(
        task, task.modules, task.phases[0], epoch, step, 200, rows, Evaluation({}, spreads), task.config.epochs
    )


class TestBlankPredictions:
    def test_constant_model_warns_and_stops(self) -> None:
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 1, 1), nn.Upsample((8, 8)))
        task = Toy(net=net)
        task.event_level = 1.0
        found = train(task, BlankPredictions(), steps=1240)
        assert [(f.severity, f.step) for f in (found[0], found[-1])] == [("warn", 600), ("stop", 1240)]
        assert next(f.step for f in found if f.severity == "stop") == 1200
        assert "the lowest event level 1, and the truth reaches" in found[0].evidence
        assert "variance of the predictions" in found[0].evidence

    @pytest.mark.parametrize(
        "epoch, step, severity",
        [(2, 900, None), (3, 599, None), (3, 600, "warn"), (6, 1199, "warn"), (6, 1200, "stop")],
    )
    def test_patience(self, epoch: int, step: int, severity: str | None) -> None:
        shown = epoch_of(Toy(), epoch, step, prediction=Spread(0.5, 0.5, 0.0))
        assert [finding.severity for finding in BlankPredictions().on_epoch(shown)] == [severity] * (
            severity is not None
        )

    @pytest.mark.parametrize(
        "level, prediction, target, blank",
        [
            (0.8, Spread(0, 0.79, 0.3), Spread(0, 0.8, 0.3), True),
            (0.8, Spread(0, 0.80, 0.3), Spread(0, 0.8, 0.3), False),
            (0.8, Spread(0, 0.50, 0.3), Spread(0, 0.7, 0.3), False),  # no events to miss
            (None, Spread(0, 0.5, 0.223), Spread(0, 1, 1.0), True),  # variance ratio 0.0497
            (None, Spread(0, 0.5, 0.224), Spread(0, 1, 1.0), False),  # 0.0502
            (None, Spread(0, 0, 0.0), Spread(0, 0, 0.0), False),  # a flat truth
        ],
    )
    def test_limits(self, level: float | None, prediction: Spread, target: Spread, blank: bool) -> None:
        task = Toy()
        task.event_level = level
        shown = epoch_of(task, 9, 9000, prediction=prediction, target=target)
        assert len(list(BlankPredictions().on_epoch(shown))) == blank

    def test_late_learner_is_left_alone(self) -> None:
        guard, task = BlankPredictions(), Toy()
        assert list(guard.on_epoch(epoch_of(task, 4, 900, prediction=Spread(0, 0, 0.0))))
        assert list(guard.on_epoch(epoch_of(task, 7, 1500))) == []


class TestMemory:
    def test_leak_is_found_after_five_epochs_of_growth(self) -> None:
        kept = []

        def leak(epoch: int) -> None:
            kept.append(np.ones(int(0.1 * measure()["memory_gb"] * 1e9 / 8)))

        found = only(train(Toy(), MemoryGrowth(), steps=24, after_epoch=leak))
        assert (found.severity, found.step, len(kept)) == ("warn", 24, 6)
        assert found.message.startswith("memory grows")
        assert found.evidence.count("->") == 5

    def test_limits(self) -> None:
        def warned(*column: float, name: str = "gpu_memory_gb") -> list[str]:
            guard, found = MemoryGrowth(), []
            for n, gb in enumerate(column, 1):
                rows = [{"memory_gb": 1.0, "gpu_memory_gb": 0.0, name: gb}]
                found += guard.on_epoch(epoch_of(Toy(), n, 4 * n, rows=rows))
            return [finding.message for finding in found]

        assert warned(*(1.051**n for n in range(6))) == ["GPU memory grows with every epoch and will run out"]
        assert warned(1.0, 1.0, *(1.051**n for n in range(6)))  # what was before does not matter
        assert warned(*(1.051**n for n in range(5))) == []
        assert warned(*(1.049**n for n in range(9))) == []
        assert warned(1.0, 1.1, 1.2, 1.3, 1.3, 1.4, 1.5, 1.6) == []
        assert warned(*(1.051**n for n in range(6)), name="memory_gb")

    def test_another_process_starts_anew(self) -> None:
        guard = MemoryGrowth()
        rows = [{"memory_gb": 1.0, "gpu_memory_gb": 0.0}]
        list(guard.on_epoch(epoch_of(Toy(), 1, 4, rows=rows)))
        assert guard.seen and guard.state_dict() == {} and not reloaded(guard).seen  # type: ignore[attr-defined]

    def test_measured_memory_follows_an_array(self, counted_memory: None) -> None:
        before = measure()
        kept = np.ones(25_000_000)  # 0.2 GB
        grown = measure()["memory_gb"] - before["memory_gb"]
        assert grown == pytest.approx(kept.nbytes / 1e9, abs=0.02)
        assert set(before) == {"memory_gb", "gpu_memory_gb"}

    def test_real_shortage_names_the_next_settings(self, root: Any) -> None:
        """In a process of its own that may not have more than 4 GB of addresses."""
        child = """
            import resource, types
            import numpy as np, torch
            from nbhelpers.training.guards.memory import out_of_memory

            task = types.SimpleNamespace(oom_advice=("halve batch_size (it is 8)", "lower crop (it is 64)"))
            torch.nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 8, 8))
            resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
            big = torch.zeros(1, 1, 4096, 4096)
            for allocate in (
                lambda: torch.nn.functional.conv2d(big, torch.zeros(512, 1, 3, 3)),
                lambda: np.ones(10**10),
                lambda: bytearray(10**11),
            ):
                try:
                    allocate()
                except Exception as error:
                    print(type(error).__name__, "|", out_of_memory(error, task, step=7))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(child)],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = done.stdout.splitlines()
        assert len(lines) == 3, done.stderr
        for line, kind in zip(lines, ("RuntimeError", "MemoryError", "MemoryError"), strict=True):
            assert line.startswith(f"{kind} | STOP out_of_memory (step 7)"), line
            assert "Halve batch_size (it is 8) and start a run of another name" in line
            assert line.endswith("; if that is not enough: lower crop (it is 64).")

    def test_errors_of_other_devices_and_other_errors(self) -> None:
        task = Toy()
        for error in (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            RuntimeError("MPS backend out of memory (MPS allocated: 5.56 GB, other allocations: 1.10 GB)"),
            RuntimeError("CUDA error: out of memory"),
        ):
            found = out_of_memory(error, task, step=3)
            assert found is not None and found.severity == "stop"
            assert found.cure == "Take smaller fields and start a run of another name."
        for other in (RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), KeyboardInterrupt()):
            assert out_of_memory(other, task, step=3) is None
