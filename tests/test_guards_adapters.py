"""G10 with adapters, planted in small real trainings: a base that is trained or moves, adapters without gradient or
effect, a share that was not declared; healthy runs raise nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import STEPS_PER_EPOCH, ToyConfig, ToyTask

from nbhelpers.stages.sar_grounding.adapters import Adapted, expected_share
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.adapters import EFFECT_STEPS, adapted_layers, change_of, trainable_share, unusual_share
from nbhelpers.training.guards.guard import Finding, GuardStop
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.task import Phase, Update

Plant = Callable[["LoraToy"], None]


class LoraToy(ToyTask):
    """A small network with adapters on its convolutions, and a frozen norm between them."""

    def __init__(self, config: ToyConfig, plant: Plant, *, rank: int = 2, norm: nn.Module | None = None):
        super().__init__(config)
        torch.manual_seed(config.seed)
        norm = nn.GroupNorm(2, 8) if norm is None else norm
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm, nn.GELU(), nn.Conv2d(8, 1, 3, padding=1))
        self.net = Adapted(net, targets=r"\d", rank=rank)
        self.modules, self.declared, self.sampled = {"net": self.net}, expected_share(self.net), False
        plant(self)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=config.lr)
        self.phases = (Phase("train", config.epochs, {"net": optimizer}, trainable={"net": self.declared}),)

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        for update in super().updates(batch, phase):
            with torch.no_grad():
                sampled = update.prediction.round(decimals=1)
            yield dataclasses.replace(update, prediction=sampled) if self.sampled else update


def healthy(task: LoraToy) -> None:
    pass


def trained(folder: Path, plant: Plant, after: Plant = healthy, *, epochs: int = 4, seed: int = 0, **kind: Any) -> list:
    """Findings of a run, ``plant``ed before its optimizer is made and ``after`` that; a stop is the last of them."""
    task = LoraToy(dataclasses.replace(ToyConfig(), epochs=epochs, seed=seed), plant, **kind)
    after(task)
    run = open_run(task, folder, "run")
    try:
        fit(task, run)
    except GuardStop as stopped:
        assert stopped.finding == Finding(**read_guards(run)[-1])
    return [Finding(**row) for row in read_guards(run)]


def stop(found: list[Finding], name: str) -> Finding:
    assert [(one.name, one.severity) for one in found] == [(name, "stop")], found
    return found[0]


@pytest.mark.parametrize("seed", range(3))
def test_healthy_run_raises_nothing(tmp_path: Path, seed: int) -> None:
    seen: list[LoraToy] = []
    assert trained(tmp_path, healthy, seen.append, seed=seed) == []
    (task,) = seen
    changes = {name: change_of(layer) for name, layer in adapted_layers(task.modules).items()}
    assert list(changes) == ["net.base.0", "net.base.3"] and min(changes.values()) > 1e-3


def test_a_rising_learning_rate_and_two_calls_are_healthy(tmp_path: Path) -> None:
    def rising(task: LoraToy) -> None:
        optimizer = task.phases[0].optimizers["net"]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 6))
        task.phases = (dataclasses.replace(task.phases[0], schedulers={"net": schedule}),)

    assert trained(tmp_path, healthy, rising, epochs=2) == []
    assert trained(tmp_path, healthy, rising, epochs=5) == []


class TestBase:
    def test_layers_under_adapters_are_trained(self, tmp_path: Path) -> None:
        def thaw(task: LoraToy) -> None:
            task.net.base.requires_grad_(True)

        found = stop(trained(tmp_path, thaw), "adapters")
        assert (
            found.step == 0
            and found.message == "the layers under adapters are trained as well, so they are no frozen base"
        )
        assert found.evidence == "2 of 2 layers: net.base.0, net.base.3"

    def test_another_share_than_declared(self, tmp_path: Path) -> None:
        """A norm that nobody froze is under no adapter."""

        def thaw(task: LoraToy) -> None:
            task.net.base[1].requires_grad_(True)

        found = stop(trained(tmp_path, thaw), "adapters")
        assert found.step == 0 and found.message == "another share of the net's parameters is trained than was declared"
        more, less = (float(part.split(" %")[0]) for part in found.evidence.split(" instead of "))
        assert more > 1.05 * less

    def test_one_bias_of_the_base_and_one_adapter(self, tmp_path: Path) -> None:
        """However small, what should be frozen is not trained, and what should be trained is not frozen."""

        def thaw(task: LoraToy) -> None:
            task.net.base[1].bias.requires_grad_(True)

        def freeze(task: LoraToy) -> None:
            task.net.base[0].lora_A["default"].requires_grad_(False)

        for plant in (thaw, freeze):
            found = stop(trained(tmp_path / plant.__name__, plant), "adapters")
            assert found.step == 0 and "than was declared" in found.message

    def test_what_is_meant_to_be_trained_may_be_declared(self, tmp_path: Path) -> None:
        def thaw(task: LoraToy) -> None:
            task.net.base[1].requires_grad_(True)
            task.declared = trainable_share(task.net)

        assert trained(tmp_path, thaw) == []

    def test_statistics_of_a_frozen_norm_move(self, tmp_path: Path) -> None:
        found = stop(trained(tmp_path, healthy, norm=nn.BatchNorm2d(8)), "dead_gradients")
        assert (found.step, found.message) == (3, "frozen tensors have changed")
        assert "net.base.1.running_mean" in found.evidence

    def test_a_frozen_norm_in_eval_mode_is_healthy(self, tmp_path: Path) -> None:
        class Still(nn.BatchNorm2d):
            def train(self, mode: bool = True) -> Still:
                return super().train(False)

        assert trained(tmp_path, healthy, norm=Still(8)) == []

    def test_a_frozen_weight_is_written_to(self, tmp_path: Path) -> None:
        def decay(task: LoraToy) -> None:
            def shrink(*_: Any) -> None:
                task.net.base[0].base_layer.weight.data.mul_(1 - 1e-6)

            task.phases[0].optimizers["net"].register_step_post_hook(shrink)

        found = stop(trained(tmp_path, healthy, decay), "dead_gradients")
        assert (found.step, found.evidence) == (3, "1 of 6 tensors: net.base.0.base_layer.weight")


class TestEffect:
    def test_loss_on_a_sampled_output(self, tmp_path: Path) -> None:
        def sample(task: LoraToy) -> None:
            task.sampled = True

        found = stop(trained(tmp_path, sample), "dead_gradients")
        assert found.step == 0 and found.message == "what the loss is taken of has no gradient, so it trains nothing"

    def test_adapters_on_a_layer_that_the_output_does_not_need(self, tmp_path: Path) -> None:
        """As those on a tokenizer: they never get a gradient."""

        def block(task: LoraToy) -> None:
            task.net.base[1].register_forward_hook(lambda module, inputs, output: output.detach())

        found = stop(trained(tmp_path, block), "dead_gradients")
        assert found.step == 3 and found.evidence.startswith(
            "2 of 4 tensors: net.base.0.lora_A.default.weight, net.base.0."
        )

    def test_b_that_is_not_trained_leaves_a_dead(self, tmp_path: Path) -> None:
        def freeze(task: LoraToy) -> None:
            for name, tensor in task.net.adapters().items():
                tensor.requires_grad_(".lora_A." in name)
            task.declared = trainable_share(task.net)

        found = stop(trained(tmp_path, freeze), "adapters")
        assert found.step == EFFECT_STEPS and found.message == "adapters change nothing: their product B·A is 0"

    @pytest.mark.parametrize("epochs", [2, 4])
    def test_adapters_that_are_set_back(self, tmp_path: Path, epochs: int) -> None:
        """After the third step dead gradients look no more; a run of less than ten steps is judged at its end."""

        def set_back(task: LoraToy) -> None:
            taken = []

            def write(*_: Any) -> None:
                taken.append(None)
                if len(taken) > 4:
                    task.net.base[3].lora_B["default"].weight.data.zero_()

            task.phases[0].optimizers["net"].register_step_post_hook(write)

        found = stop(trained(tmp_path, healthy, set_back, epochs=epochs), "adapters")
        last = min(EFFECT_STEPS, epochs * STEPS_PER_EPOCH)
        assert (found.step, found.evidence) == (last, f"1 of 2 layers: net.base.3 after {last} steps")


class TestShare:
    def test_rank_eight_on_a_small_network_warns(self, tmp_path: Path) -> None:
        (found,) = trained(tmp_path, healthy, rank=8)
        assert (found.name, found.severity, found.step) == ("adapters", "warn", 0)
        assert found.message == "the adapters of the net are an unusual share of the network that they are on"
        assert "at rank 8" in found.evidence

    @pytest.mark.parametrize(
        ("share", "rank", "unusual"),
        [(0.005, 8, False), (0.0049, 8, True), (0.05, 8, False), (0.051, 8, True), (0.3, 4, False), (0.001, 16, False)],
    )
    def test_bounds(self, share: float, rank: int, unusual: bool) -> None:
        assert (unusual_share(share, rank) is not None) == unusual

    def test_change_is_that_of_the_merged_weights(self) -> None:
        torch.manual_seed(0)
        adapted = Adapted(
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 5)), targets=r"\d", rank=2, alpha=3.0
        )
        for tensor in adapted.adapters().values():
            nn.init.normal_(tensor)
        merged = adapted.merged()
        for name, layer in adapted_layers({"net": adapted}).items():
            plain = merged.get_submodule(name.removeprefix("net.base.")).weight
            weight = layer.base_layer.weight
            assert change_of(layer) == pytest.approx(float((plain - weight).norm() / weight.norm()), rel=1e-4)

    def test_share_counts_parameters(self) -> None:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        net[0].requires_grad_(False)
        assert trainable_share(net) == pytest.approx(4 / 16)
