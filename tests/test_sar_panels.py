"""Panels of several settings: shares of the five weights, what rank and time steps amount to, refused settings."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from typing import Any

import pytest
import torch
from sar_run import few_tiles, task_on

from nbhelpers.core.errors import UserError
from nbhelpers.core.knobs import Knob
from nbhelpers.stages.sar_grounding.adapters import Adapted, remarks_of
from nbhelpers.stages.sar_grounding.balance import WEIGHT_KNOBS, measure_balance, weight_knobs
from nbhelpers.stages.sar_grounding.commands import advice
from nbhelpers.stages.sar_grounding.config import PROFILES, WEIGHTS, Config
from nbhelpers.stages.sar_grounding.networks import COMPACT_TARGETS
from nbhelpers.stages.sar_grounding.size import SIZE_KNOBS, measure_size
from nbhelpers.stages.sar_grounding.task import GroundingTask
from nbhelpers.training.guards.adapters import adapter_size
from nbhelpers.training.ledger import Entry
from nbhelpers.widgets import settings_panel, weights_panel
from nbhelpers.widgets.several import SeveralPanel

TERMS = [name.removesuffix("_weight") for name in WEIGHTS]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> GroundingTask:
    return task_on(few_tiles(tmp_path_factory.mktemp("data") / "tiles", gaps=True))


@pytest.fixture(scope="module")
def balance(task: GroundingTask) -> Any:
    return measure_balance(task)


# --- the five weights ------------------------------------------------------------------------------------------------


def test_shares_sum_to_one_and_follow_the_weights(task: GroundingTask, balance: Any) -> None:
    for changes in ({}, {"sar_weight": 2.0}, {"lpips_weight": 5.0}, {"sar_weight": 0.0, "cycle_weight": 0.0}):
        rows: list[Entry] = balance(task.config.replace(changes, source=""))
        assert [row.term for row in rows] == TERMS
        assert sum(row.value_share for row in rows) == pytest.approx(1)
        assert sum(row.grad_share for row in rows) == pytest.approx(1)
    ratio = {}
    for weight in (1.0, 3.0):
        share = {row.term: row.grad_share for row in balance(task.config.replace({"sar_weight": weight}, source=""))}
        ratio[weight] = share["sar"] / share["spectral"]
    assert ratio[3.0] == pytest.approx(3 * ratio[1.0]), "a weight scales its gradient and nothing else"


def test_it_disturbs_no_random_numbers_and_no_network(task: GroundingTask) -> None:
    before, weights = torch.get_rng_state(), [t.clone() for t in task.modules["generator"].parameters()]
    measure_balance(task)
    measure_size(task)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(weights, task.modules["generator"].parameters(), strict=True):
        assert torch.equal(one, other) and other.grad is None


def test_the_weights_panel_shows_and_sets(task: GroundingTask, balance: Any) -> None:
    panel = weights_panel(task.config, balance, WEIGHT_KNOBS)
    assert panel.config is task.config and list(panel.sliders) == list(WEIGHTS)
    assert [slider.value for slider in panel.sliders.values()] == [getattr(task.config, name) for name in WEIGHTS]
    assert all(term in panel.picture.value for term in TERMS)
    before = panel.picture.value
    panel.sliders["sar_weight"].value = 2.5
    panel.sliders["lpips_weight"].value = 0.0
    assert panel.config == task.config.replace({"sar_weight": 2.5, "lpips_weight": 0.0}, source="")
    assert panel.picture.value != before and "off: lpips" in panel.picture.value
    assert [panel.numbers[name].value for name in ("sar_weight", "lpips_weight")] == ["2.5", "off"]


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_profile_sets_can_be_set_again_by_hand(task: GroundingTask, balance: Any, profile: str) -> None:
    weights = {name: getattr(Config.for_profile(profile), name) for name in WEIGHTS}
    panel = weights_panel(task.config.replace(weights, source=""), balance, WEIGHT_KNOBS)
    for name, weight in weights.items():
        slider, first = panel.sliders[name], panel.numbers[name].value
        slider.value = 10.0
        assert getattr(panel.config, name) == 10.0
        # Where a front end can put it: a whole number of steps from the left.
        steps = round((math.log10(weight) - slider.min) / slider.step)
        slider.value = 10 ** (slider.min + steps * slider.step)
        assert getattr(panel.config, name) == weight and panel.numbers[name].value == first == f"{weight:.3g}"
        slider.value = 10**slider.min
        assert panel.numbers[name].value == "off" and getattr(panel.config, name) == 0
        slider.value = 10 ** (slider.min + steps * slider.step)


def test_the_token_route_has_no_shares_to_show() -> None:
    config = Config.for_profile("smoke", model="terramind-tokens")
    assert weight_knobs(config) == () and weight_knobs(Config.for_profile("smoke")) == WEIGHT_KNOBS
    rows = measure_balance(types.SimpleNamespace(config=config))  # type: ignore[arg-type]
    assert rows(config) == []
    panel = weights_panel(config, rows, weight_knobs(config))
    assert panel.config is config and not panel.sliders and "a single term: there is nothing" in panel.picture.value
    assert not any(term in panel.picture.value for term in TERMS)


def test_a_term_that_drowns_the_rest_and_one_that_is_inert_are_named(task: GroundingTask, balance: Any) -> None:
    panel = weights_panel(task.config.replace(dict.fromkeys(WEIGHTS, 1.0), source=""), balance, WEIGHT_KNOBS)
    for name in WEIGHTS:
        if name != "sar_weight":
            panel.sliders[name].value = 0.025 if name == "spectral_weight" else 0.0
    panel.sliders["sar_weight"].value = 5.0
    assert "sar drowns the rest" in panel.picture.value and "spectral: inert" in panel.picture.value
    assert "off: cycle, identity, lpips" in panel.picture.value


def test_weights_that_are_refused_leave_the_settings_from_before(task: GroundingTask, balance: Any) -> None:
    panel = weights_panel(task.config, balance, WEIGHT_KNOBS)
    for name in WEIGHTS:
        panel.sliders[name].value = 0.0
    last = panel.config
    assert last.spectral_weight == 1.0 and "all five weights are 0" in panel.problem.value
    assert "from before count" in panel.problem.value
    panel.sliders["cycle_weight"].value = 0.5
    assert panel.problem.value == ""
    assert {name: getattr(panel.config, name) for name in WEIGHTS} == dict.fromkeys(WEIGHTS, 0.0) | {
        "cycle_weight": 0.5
    }, "what the sliders show counts again, the one that was refused too"


# --- sizes -----------------------------------------------------------------------------------------------------------


def shares(said: dict[str, str], config: Config) -> tuple[int, float]:
    """Adapters' parameters and their share, as the panel says them."""
    found = re.match(r"([\d,]+) parameters, ([\d.]+)%", said[f"LoRA of rank {config.lora_rank}"])
    assert found is not None
    return int(found[1].replace(",", "")), float(found[2])


def test_rank_and_its_trained_share_are_those_of_real_adapters(task: GroundingTask) -> None:
    describe = measure_size(task)
    for rank in (1, 4, 8):
        adapted = Adapted(task_on(task.data_dir).modules["generator"], targets=COMPACT_TARGETS, rank=rank)
        config = task.config.replace({"lora_rank": rank, "base": "a checkpoint"}, source="")
        said = describe(config)
        n = sum(tensor.numel() for tensor in adapted.adapters().values())
        assert shares(said, config) == (n, pytest.approx(100 * adapted.share, abs=0.006))
        whole = sum(tensor.numel() for tensor in adapted.parameters())
        assert said["trained"] == f"{n:,} of {whole:,} parameters ({n / whole:.2%})"
    plain = describe(task.config)
    assert plain["a sample"] == "2 passes through the network"
    total = sum(tensor.numel() for tensor in task.modules["generator"].parameters())
    assert plain["trained"] == f"{total:,} of {total:,} parameters (100.00%)"


def test_a_run_with_a_base_says_the_same_in_the_panel_the_guard_and_the_remark(task: GroundingTask) -> None:
    one = task_on(task.data_dir, lora_rank=8)
    one.modules["generator"] = Adapted(one.modules["generator"], targets=COMPACT_TARGETS, rank=8)
    config = one.config.replace({"base": "a checkpoint"}, source="")
    n, share = shares(measure_size(one)(config), config)
    size = adapter_size(one.modules["generator"])
    assert (n, f"{share:.2f}") == (size.adapters, f"{100 * size.share:.2f}")
    assert f"{n:,} of {size.whole:,} parameters" in (remark := remarks_of(one.modules["generator"])[0])
    assert f"({100 * size.share:.2f} %)" in remark


def test_the_settings_panel_updates_share_passes_and_memory(task: GroundingTask) -> None:
    panel: SeveralPanel = settings_panel(task.config, measure_size(task), SIZE_KNOBS)
    assert "2 passes through the network" in panel.picture.value
    first = panel.picture.value
    panel.sliders["lora_rank"].value = 32
    assert panel.config.lora_rank == 32 and "LoRA of rank 32" in panel.picture.value
    panel.sliders["timesteps"].value = 20
    assert panel.config.timesteps == 20 and "20 passes" in panel.picture.value
    panel.sliders["batch_size"].value = 16
    assert "with 16 tiles" in panel.picture.value and panel.picture.value != first
    assert isinstance(panel.config.batch_size, int)


def memory(said: dict[str, str]) -> float:
    found = re.match(r"about ([\d.]+) (\w+),", said["memory of a step"])
    assert found is not None
    return float(found[1]) * {"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}[found[2]]


def test_memory_grows_with_the_batch_and_the_tile(task: GroundingTask, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = measure_size(task)

    def of(**changes: Any) -> float:
        return memory(describe(task.config.replace(changes, source="")))

    assert of(batch_size=20) == pytest.approx(2 * of(batch_size=10), rel=0.1)
    assert of(batch_size=20, tile_size=96) == of(batch_size=20), "smaller tiles are taken whole"
    small = of(batch_size=20)
    monkeypatch.setattr(task, "tiles", dataclasses.replace(task.tiles, size=(192, 192)))
    assert of(batch_size=20) == pytest.approx(16 * small, rel=0.1)
    assert of(batch_size=20, tile_size=96) == pytest.approx(4 * small, rel=0.1)
    assert of(batch_size=1) > 4 * 48 * 48 * 4, "more than the image itself"


def test_advice_is_about_terms_that_mean_nothing_or_everything(task: GroundingTask) -> None:
    assert not [said for said in advice(task) if said.startswith("spectral_weight")]
    odd = task_on(task.data_dir, lpips_weight=1e-7)
    assert any(said.startswith("lpips_weight 1e-07 gives its term") and "inert" in said for said in advice(odd))


# --- any settings ----------------------------------------------------------------------------------------------------


class Careful:
    """Settings in which one may not exceed the other."""

    def __init__(self, low: int = 1, high: float = 2.0):
        self.low, self.high = low, high

    def replace(self, changes: dict[str, Any], *, source: str) -> Careful:
        new = Careful(**{"low": self.low, "high": self.high, **changes})
        if new.low > new.high:
            raise UserError(f"low is {new.low} <b>, expected at most high.")
        return new


def test_two_moves_that_are_right_together_count_together() -> None:
    knobs = (Knob("low", "low", 0, 9, start=1, whole=True), Knob("high", "high", 0.1, 100, start=2, log=True))
    panel = settings_panel(Careful(), lambda config: {"sum": f"{config.low + config.high:g} <"}, knobs)
    assert "3 &lt;" in panel.picture.value
    panel.sliders["low"].value = 7
    assert (panel.config.low, panel.config.high) == (1, 2.0) and "3 &lt;" in panel.picture.value
    assert "low is 7 &lt;b&gt;" in panel.problem.value
    panel.sliders["high"].value = 10.0
    assert (panel.config.low, panel.config.high) == (7, pytest.approx(10)) and panel.problem.value == ""
    assert "17 &lt;" in panel.picture.value and isinstance(panel.config.low, int)
