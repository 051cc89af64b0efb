"""Whole runs on terratorch's own tiny network with random weights: training, scoring, and taking a run up again.

In an environment of its own, like ``test_sar_terramind.py``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from test_fit import assert_equal_runs
from test_sar_panels import memory

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.adapters import remarks_of
from nbhelpers.stages.sar_grounding.batches import Batch
from nbhelpers.stages.sar_grounding.config import Config
from nbhelpers.stages.sar_grounding.prepare import prepare_tiles
from nbhelpers.stages.sar_grounding.simulate import simulate
from nbhelpers.stages.sar_grounding.size import measure_size
from nbhelpers.stages.sar_grounding.task import GroundingTask
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.adapters import adapter_size, trainable_share
from nbhelpers.training.history import read_rows
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run
from nbhelpers.training.task import Phase, Update

if importlib.util.find_spec("terratorch") is None:
    pytest.skip("terratorch is not installed: pip install -e '.[terramind]'", allow_module_level=True)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def all_bands(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real tiles of all 12 bands, with noise in place of a previous step's images."""
    folder = tmp_path_factory.mktemp("real") / "tiles"
    prepare_tiles(folder, s1=real_data / "s1s2_tiles/S1RTC", s2=real_data / "s1s2_tiles/S2L2A", size=96)
    return folder


def small(model: str, **changes: Any) -> Config:
    few = {"max_samples": 2, "batch_size": 1, "grad_accum": 1, "epochs": 3, "timesteps": 1, "lr": 5e-3}
    nothing = {"terramind": "tiny", "pretrained": False, "lpips_weights": "random"}
    return Config.for_profile("smoke", model=model, **{**few, **nothing, **changes})


def cut_after(task: GroundingTask, batches: int) -> None:
    """Let training die before the batch that comes then; the one that is looked at before step 0 does not count."""
    updates, seen = task.updates, iter(range(batches + 1))

    def until(batch: Batch, phase: Phase) -> Iterator[Update]:
        if next(seen, None) is None:
            raise Cut
        yield from updates(batch, phase)

    task.updates = until  # type: ignore[method-assign]


class Cut(Exception):
    """The runtime is gone."""


def trained(task: GroundingTask, folder: Path) -> Run:
    run = open_run(task, folder.parent, folder.name)
    fit(task, run, save_minutes=0.0)
    return run


def stops(report: Mapping[str, Any]) -> list[Any]:
    return [found for found in report["guards"] if found["severity"] == "stop"]


def test_tokens_from_files_to_a_report(all_bands: Path, tmp_path: Path) -> None:
    task = GroundingTask(small("terramind-tokens"), all_bands)
    run = trained(task, tmp_path / "run")
    rows = read_rows(run.history_file)
    assert rows[0]["train_tokens"] == pytest.approx(math.log(15360), abs=0.5), "chance, on random weights"
    assert rows[-1]["train_tokens"] < rows[0]["train_tokens"] - 0.5
    found = checkpoint.find(run, "best")
    assert found is not None
    with safe_open(found.folder / checkpoint.WEIGHTS, framework="pt") as weights:
        names = list(weights.keys())
    assert len(names) == 88 and all(".lora_" in name for name in names), "neither TerraMind nor its tokenizer is copied"
    report = make_report(task, run)
    assert not stops(report)
    for said in ("cross-entropy on tokens alone", "1.65 %", "RANDOM weights"):
        assert any(said in remark for remark in report["remarks"]), said


def test_tokens_want_all_bands_before_anything_is_trained(tmp_path: Path) -> None:
    simulate(tmp_path / "data", n_scenes=8, size=48, seed=0, progress=False)
    with pytest.raises(UserError, match=r"s2_l2a"):
        trained(GroundingTask(small("terramind-tokens"), tmp_path / "data"), tmp_path / "run")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_backbone_goes_on_exactly_where_it_died(tmp_path: Path) -> None:
    simulate(tmp_path / "data", n_scenes=8, size=48, seed=0, progress=False)
    config = small("terramind-backbone", epochs=2)
    whole = trained(GroundingTask(config, tmp_path / "data"), tmp_path / "whole")
    task = GroundingTask(config, tmp_path / "data")
    cut_after(task, 3)  # in the second of its two epochs
    with pytest.raises(Cut):
        trained(task, tmp_path / "cut")
    again = GroundingTask(config, tmp_path / "data")
    assert_equal_runs(trained(again, tmp_path / "cut"), whole)
    report = make_report(again, whole)
    assert not stops(report) and any("4.98 %" in remark for remark in report["remarks"])


@pytest.mark.parametrize(("model", "lora", "passes"), [
    ("terramind-backbone", "4.98", "one pass through the network (it has no time steps)"),
    ("terramind-tokens", "1.65", "one pass through the network, 7 through the tokenizer's decoder"),
])  # fmt: skip
def test_panel_guard_and_remarks_say_the_same_of_what_is_trained(
    model: str, lora: str, passes: str, all_bands: Path
) -> None:
    task = GroundingTask(small(model), all_bands)
    generator = task.modules["generator"]
    describe = measure_size(task)
    panel = describe(task.config.replace({"timesteps": 7}, source=""))
    said = remarks_of(generator)
    assert f"({lora} %)" in said[0] and f"{lora}%" in panel["LoRA of rank 8"]
    assert f"{100 * adapter_size(generator).share:.2f}" == lora
    everything = trainable_share(generator)
    assert f"({100 * everything:.2f} %)" in said[1] and f"({everything:.2%})" in panel["trained"]
    assert task.phases[0].trainable == {"generator": pytest.approx(everything, rel=1e-12)}
    assert panel["a sample"] == passes
    assert panel["memory of a step"] == describe(task.config)["memory of a step"], "a step is one pass"
    frozen = sum(p.numel() for p in generator.parameters() if not p.requires_grad)
    # What it says is rounded to a tenth.
    assert 3.8 * frozen < memory(panel) < 3.8 * frozen + (1 << 30), "weights that stay as they are count once"
