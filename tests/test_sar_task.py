"""SAR grounding as a task: batches, what the SAR image has to say, terms with gaps, scores, adapters, exact resume."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sar_run import few_tiles, task_on
from sar_tiles import make_tile, tile_file
from test_fit import assert_equal_runs
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import SPLITS
from nbhelpers.stages.sar_grounding import facts
from nbhelpers.stages.sar_grounding import task as task_module
from nbhelpers.stages.sar_grounding import tiles as tiles_module
from nbhelpers.stages.sar_grounding.batches import Batch, eval_batch, loader, training_order
from nbhelpers.stages.sar_grounding.config import WEIGHTS, Config
from nbhelpers.stages.sar_grounding.folder import write_tiles
from nbhelpers.stages.sar_grounding.task import KEPT, GroundingTask
from nbhelpers.training import checkpoint, ema, history
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.metrics import mean_metric
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import Run
from nbhelpers.training.task import Dependence, Phase, Update

TERMS = [name.removesuffix("_weight") for name in WEIGHTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_tiles(tmp_path_factory.mktemp("data") / "tiles")


@pytest.fixture(scope="module")
def patchy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles with gaps in S1 and in both optical images."""
    return few_tiles(tmp_path_factory.mktemp("data") / "tiles", gaps=True)


@pytest.fixture(scope="module")
def task(folder: Path) -> GroundingTask:
    """As if it had learnt something: every part of the network has a say."""
    return stirred(task_on(folder))


def stirred(task: GroundingTask) -> GroundingTask:
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in task.modules["generator"].parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=draws))
    return task


def batch_of(task: GroundingTask, split: str = "train") -> Batch:
    return next(iter(task.batches(split, 0)))


def update_of(task: GroundingTask, batch: Batch, seed: int = 0) -> Update:
    torch.manual_seed(seed)
    (update,) = task.updates(batch, task.phases[0])
    return update


def same(one: Batch, other: Batch) -> bool:
    images = ((getattr(batch, name) for batch in (one, other)) for name in ("s1", "opt_v2", "truth"))
    return one.tiles == other.tiles and all(torch.equal(a.nan_to_num(-99), b.nan_to_num(-99)) for a, b in images)


def trained(task: GroundingTask, where: Path, name: str = "run", **how: Any) -> Run:
    run = open_run(task, where, name)
    fit(task, run, **how)
    return run


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_a_pure_function_of_seed_epoch_and_place(folder: Path, task: GroundingTask) -> None:
    tiles, names = task.tiles, task.tiles.split["train"]

    def drawn(epoch: int = 0, seed: int = 0, start: int = 0) -> list[Batch]:
        return list(loader(tiles, names, batch_size=4, start=start, crop=32, seed=seed, epoch=epoch))

    torch.manual_seed(1)
    once = drawn()
    torch.manual_seed(2)
    assert [len(batch.tiles) for batch in once] == [4, 2] and all(map(same, once, drawn()))
    assert same(drawn(start=1)[0], once[1]), "wherever a run goes on"
    assert not same(drawn(epoch=1)[0], once[0]) and not same(drawn(seed=1)[0], once[0])
    orders = {training_order(names, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4 and all(sorted(order) == list(names) for order in orders)
    first = batch_of(task)
    assert first.tiles == training_order(names, seed=42, epoch=0)[:4] and same(first, batch_of(task_on(folder)))
    assert [batch.tiles for batch in task.batches("val", 0)] == [batch.tiles for batch in task.batches("val", 7)]


def test_crops_of_the_three_images_lie_on_the_same_ground(task: GroundingTask) -> None:
    tiles = task.tiles
    corners = []
    for batch in loader(tiles, tiles.split["train"], batch_size=4, crop=32):
        for place, name in enumerate(batch.tiles):
            pixel = batch.truth[place, :, 0, 0].numpy()
            ((row, column),) = np.argwhere((tiles.s2(name) == pixel[:, None, None]).all(0))
            part = (slice(None), slice(row, row + 32), slice(column, column + 32))
            for whole, cut in ((tiles.s1, batch.s1), (tiles.opt_v2, batch.opt_v2), (tiles.s2, batch.truth)):
                np.testing.assert_array_equal(whole(name)[part], cut[place].numpy())
            corners.append((row, column))
    assert len(set(corners)) > 3


def test_all_bands_are_cut_like_the_others(tmp_path: Path) -> None:
    l2a = np.arange(1, 12 * 48 * 48 + 1, dtype=np.uint16).reshape(12, 48, 48)
    tiles = [dataclasses.replace(make_tile(n, split=s, block=s, size=48), s2_l2a=l2a) for n, s in enumerate(SPLITS)]
    task = task_on(write_tiles(tmp_path / "tiles", tiles))
    (batch,) = loader(task.tiles, task.tiles.split["train"], batch_size=1, crop=32, all_bands=True)
    ((row, column),) = np.argwhere((task.tiles.s1("tile_000") == batch.s1[0, :, :1, :1].numpy()).all(0))
    assert batch.l2a is not None and batch.to(torch.device("cpu")).l2a is not None
    np.testing.assert_array_equal(batch.l2a[0], l2a[:, row : row + 32, column : column + 32])
    assert batch_of(task).l2a is None
    path = tile_file(task.data_dir, "tile_000")
    path.write_bytes(path.read_bytes()[:-300])
    task.tiles.check_all_bands()  # a damaged tile is left to the loader, and to the guard that counts them
    (none,) = loader(task.tiles, ["tile_000"], batch_size=1, all_bands=True, forgiving=True)
    assert len(none.unreadable) == 1 and "cannot be read" in none.unreadable[0]


@pytest.mark.parametrize(("tile_size", "side"), [(64, 48), (128, 48), (None, 48)])
def test_tiles_that_are_no_larger_than_a_crop_are_taken_whole(folder: Path, tile_size: int | None, side: int) -> None:
    assert batch_of(task_on(folder, tile_size=tile_size)).truth.shape[-2:] == (side, side)


def test_larger_tiles_are_cropped(tmp_path: Path) -> None:
    tiles = [make_tile(n, split=split, block=split, size=100) for n, split in enumerate(SPLITS)]
    task = task_on(write_tiles(tmp_path / "tiles", tiles), tile_size=64)
    assert batch_of(task).truth.shape[-2:] == (64, 64) and batch_of(task, "val").truth.shape[-2:] == (100, 100)


def test_tiles_beyond_the_memory_are_read_once_a_sample_and_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = tiles_module.open_tiles(folder, budget=3 * 10 * 48 * 48 * 4)  # three tiles of ten channels
    assert any("need more than" in warning and "read anew" in warning for warning in few.warnings)
    read = []
    monkeypatch.setattr(
        tiles_module, "read_tile", lambda path, about, read=read, real=tiles_module.read_tile: (
            read.append(path.stem) or real(path, about)
        )
    )  # fmt: skip
    names = few.split["train"]
    list(loader(few, names, batch_size=2))
    assert read and len(read) == len(set(read)) < len(names)
    kept = task_on(folder)
    assert not any("read anew" in warning for warning in kept.tiles.warnings)
    assert kept._workers(names) == 0 and task_on(folder, num_workers=3)._workers(names) == 3
    kept.tiles = few
    assert 1 <= kept._workers(names) <= 4
    again = pickle.loads(pickle.dumps(task_on(folder).tiles.store))
    assert not again.holds(names[:1]), "a process that is started anew does not get the memory of this one"
    np.testing.assert_array_equal(again[names[0]][0], few.s1(names[0]))


@pytest.mark.parametrize(("size", "expected"), [((48, 48), 8), ((128, 128), 8), ((256, 256), 2), ((1024, 1024), 1)])
def test_fewer_large_tiles_are_scored_at_once(folder: Path, size: tuple[int, int], expected: int) -> None:
    assert eval_batch(dataclasses.replace(task_on(folder).tiles, size=size)) == expected


@pytest.mark.parametrize(
    ("changes", "side", "expected"),
    [
        ({"batch_size": 8}, 128, ["halve batch_size (it is 8)", "tile_size 96", "lpips_weight 0", "lower fine"]),
        ({"batch_size": 1, "tile_size": 96, "lpips_weight": 0.0}, 256, ["lower fine"]),
        ({"batch_size": 1, "base": "run"}, 64, ["lpips_weight 0", "lora_rank to 4 and lora_alpha to 8"]),
        (
            {"batch_size": 2, "model": "terramind-backbone"},
            96,
            ["halve batch_size (it is 2)", "terramind tiny", "lpips_weight 0", "lora_rank to 4"],
        ),
        (
            {"batch_size": 1, "model": "terramind-tokens", "terramind": "tiny", "lora_rank": 4},
            96,
            ["nothing is left to make smaller"],
        ),
    ],
)
def test_what_a_shortage_of_memory_is_answered_with(changes: dict[str, Any], side: int, expected: list[str]) -> None:
    found = facts.smaller(Config.for_profile("full", **changes), side)
    assert len(found) == len(expected)
    for sentence, words in zip(found, expected, strict=True):
        assert words in sentence


def test_a_tile_that_cannot_be_read_is_told_and_in_validation_ends_it(tmp_path: Path) -> None:
    task = task_on(few_tiles(tmp_path / "tiles"))
    gone = {split: task.tiles.split[split][0] for split in ("train", "val")}
    for name in gone.values():
        path = tile_file(task.data_dir, name)
        path.write_bytes(path.read_bytes()[:-300])
    task.tiles.store._kept.clear()  # as with more tiles than fit into memory
    batches = list(task.batches("train", 0))
    assert sum(len(batch.tiles) for batch in batches) == 5
    (said,) = [why for batch in batches for why in task.unreadable(batch)]
    assert f"{gone['train']}.npz cannot be read" in said and "\n" not in said
    with pytest.raises(UserError, match=f"{gone['val']}.npz cannot be read"):
        list(task.batches("val", 0))
    (empty,) = loader(task.tiles, [gone["train"]], batch_size=1, forgiving=True)
    assert empty.truth.shape == (0, 4, 48, 48) and list(task.updates(empty, task.phases[0])) == []


# --- what the SAR image has to say -----------------------------------------------------------------------------------


def test_the_partner_is_of_another_block_of_the_split_and_each_serves_once(task: GroundingTask) -> None:
    for split in ("train", "val", "test"):
        names, partner = task.tiles.split[split], task._partner
        assert sorted(partner[name] for name in names) == list(names)
        assert all(task.tiles.block[partner[name]] != task.tiles.block[name] for name in names)
    batch = batch_of(task, "val")
    other = task.other_sar(batch)
    for place, name in enumerate(batch.tiles):
        np.testing.assert_array_equal(other[place].numpy(), task.tiles.s1(task._partner[name]))


def test_in_a_split_of_one_block_the_partner_is_of_another_split(folder: Path) -> None:
    task = task_on(folder)
    tiles = task.tiles
    block = {name: split for split, names in tiles.split.items() for name in names}
    task.tiles = dataclasses.replace(tiles, block=block, split={**tiles.split, "val": tiles.split["val"][:1]})
    assert set(task._partner) == {name for names in task.tiles.split.values() for name in names}
    assert all(block[other] != block[name] for name, other in task._partner.items())


def test_an_image_does_not_depend_on_its_neighbours(task: GroundingTask) -> None:
    names = task.tiles.split["train"]
    (together,) = loader(task.tiles, names, batch_size=len(names))
    whole = task.refine(together)
    for place, name in enumerate(names):
        (alone,) = loader(task.tiles, [name], batch_size=1)
        torch.testing.assert_close(task.refine(alone)[0], whole[place], atol=1e-5, rtol=0)
    assert (whole[0] - together.opt_v2[0] - (whole[1] - together.opt_v2[1])).abs().max() > 1e-3, "noise of its own"


def test_recoloured_is_the_best_factor_and_summand_of_each_band(folder: Path) -> None:
    task = task_on(folder)
    (batch,) = loader(task.tiles, task.tiles.split["train"], batch_size=99)
    found = task.nulls["recoloured"](batch)
    for band in range(4):
        x, y = (image[:, band].double().flatten().numpy() for image in (batch.opt_v2, batch.truth))
        slope, shift = np.polyfit(x, y, 1)
        np.testing.assert_allclose(found[:, band].flatten(), slope * x + shift, atol=1e-5)
    error = {name: task.evaluate("train", null).metrics["mae"].value for name, null in task.nulls.items()}
    assert error["recoloured"] != error["opt_v2"] and error["recoloured"] < error["mean"]


def test_refine_is_the_same_in_every_call_and_leaves_everything_alone(patchy: Path) -> None:
    task = stirred(task_on(patchy))
    batch, generator = batch_of(task), task.modules["generator"]
    kept = Batch(batch.s1.clone(), batch.opt_v2.clone(), batch.truth.clone(), batch.tiles)
    for training in (True, False):
        generator.train(training)
        torch.manual_seed(int(training))
        state = torch.get_rng_state()
        once, again = task.refine(batch), task.refine(batch)
        assert torch.equal(once, again) and once.shape == batch.truth.shape and once.isfinite().all()
        assert torch.equal(torch.get_rng_state(), state) and generator.training is training
    assert same(batch, kept) and not once.requires_grad
    assert torch.equal(stirred(task_on(patchy)).refine(batch), once), "in another process, too"
    assert not torch.equal(stirred(task_on(patchy, seed=1)).refine(batch), once)


def test_another_tiles_sar_and_none_at_all_change_the_image(folder: Path, task: GroundingTask) -> None:
    batch = batch_of(task, "val")
    shuffled, zeroed = (task.controls[name](batch) for name in ("sar_shuffled", "sar_zeroed"))
    images = [task.refine(batch), shuffled, zeroed]
    assert all(not torch.allclose(images[i], images[j], atol=1e-4) for i, j in ((0, 1), (0, 2), (1, 2)))
    flat = task._flat_sar(batch)
    assert flat.isfinite().all() and torch.allclose(flat[:, :, 0, 0], torch.tensor(task.tiles.statistics.s1_mean))
    assert torch.equal(task.nulls["opt_v2"](batch), batch.opt_v2)
    blind = stirred(task_on(folder, use_sar=False))
    assert torch.equal(blind.controls["sar_shuffled"](batch), blind.refine(batch))


def test_an_untrained_model_returns_what_it_was_given(folder: Path) -> None:
    task = task_on(folder)
    batch = batch_of(task)
    torch.testing.assert_close(task.refine(batch), batch.opt_v2)


# --- terms -----------------------------------------------------------------------------------------------------------


def test_terms_have_finite_gradients_whatever_was_not_measured(patchy: Path) -> None:
    task = stirred(task_on(patchy))
    batch = batch_of(task)
    assert all(image.isnan().any() for image in (batch.s1, batch.opt_v2, batch.truth))
    batch.s1[0] = torch.nan  # and one tile without any S1
    update = update_of(task, batch)
    assert [term.name for term in update.terms] == TERMS
    assert [term.name for term in update.terms if term.role == "regulariser"] == ["cycle", "identity"]
    assert update.prediction.isfinite().all() and update.valid is not None and update.target is not None
    assert torch.equal(update.valid, batch.truth.isfinite().all(1, keepdim=True).expand_as(update.valid))
    for term in update.terms:
        leaf = update.prediction.detach().requires_grad_(True)
        value = term.fn(leaf)
        (found,) = torch.autograd.grad(value, leaf)
        assert value.isfinite() and found.isfinite().all() and found.any(), term.name
        if term.name in ("spectral", "lpips"):
            assert not found[~update.valid].any(), "nothing is known there"
    sum(term.weight * term.fn(update.prediction) for term in update.terms).backward()
    missing = [
        name
        for name, tensor in task.modules["generator"].named_parameters()
        if tensor.grad is None or not tensor.grad.isfinite().all()
    ]
    assert not missing


def test_terms_without_weight_are_left_out(folder: Path) -> None:
    task = task_on(folder, sar_weight=0.0, lpips_weight=0.0, cycle_weight=0.7)
    terms = update_of(task, batch_of(task)).terms
    assert {term.name: term.weight for term in terms} == {"cycle": 0.7, "identity": 0.05, "spectral": 1.0}


def test_noise_in_training_follows_from_torchs_generator(task: GroundingTask) -> None:
    batch = batch_of(task)
    one, again, other = (update_of(task, batch, seed).prediction for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_on_validation_the_model_is_asked_what_it_takes_from_the_sar(folder: Path, task: GroundingTask) -> None:
    found = task.evaluate("val")
    shuffled = task.evaluate("val", task.controls["sar_shuffled"]).metrics["mae"].value
    mine = task.evaluate("val", task.refine)
    assert found.dependence == {"sar": Dependence("mae", mine.metrics["mae"].value, shuffled)}
    assert found.metrics.keys() - mine.metrics.keys() == {KEPT} and not mine.dependence
    test = task.evaluate("test")
    assert not test.dependence and KEPT not in test.metrics and test.metrics["psnr"].groups == 2
    assert set(task.headlines) <= test.metrics.keys()
    assert task_on(folder, use_sar=False).evaluate("val").dependence == {}


def test_a_better_agreement_counts_only_where_nothing_else_has_become_worse(task: GroundingTask) -> None:
    def metric(value: float) -> Any:
        return mean_metric(np.array([[value]]), np.ones((1, 1)), labels=("all",), better=None, units="1")

    given, lpips = task.scores_of_input, task.lpips.key
    limits = {name: given[name].value for name in ("mae", lpips)}

    def kept(**changes: float) -> float:
        values = {**limits, "sar_agreement": 0.7, **changes}
        return task._kept({name: metric(value) for name, value in values.items()}).value

    assert kept() == kept(mae=0.9 * limits["mae"]) == pytest.approx(0.7)
    assert math.isnan(kept(mae=1.01 * limits["mae"])) and math.isnan(kept(**{lpips: 1.01 * limits[lpips]}))


def test_an_untrained_model_is_no_worse_than_what_it_was_given_and_a_ruined_one_is(folder: Path) -> None:
    task = task_on(folder, early_stop_metric="sar_agreement", early_stop_delta=1e-4)
    monitor = task.monitor
    assert (monitor.metric, monitor.mode, monitor.patience, monitor.delta) == (KEPT, "max", None, 1e-4)
    plain = task_on(folder).monitor
    assert (plain.metric, plain.mode, plain.delta) == ("mae", "min", 1e-4)
    found = task.evaluate("val").metrics
    assert found[KEPT].value == found["sar_agreement"].value
    assert math.isnan(stirred(task).evaluate("val").metrics[KEPT].value)


def test_what_the_report_says_first(folder: Path, task: GroundingTask) -> None:
    first, *others = task.remarks()
    assert first == f"The image that is refined (opt_v2) is simulated: {folder / 'stage2_outputs'}."
    assert any("RANDOM weights" in said for said in others) and not any("never sees" in said for said in others)
    proxy = task_on(folder, opt_v2_source="proxy", use_sar=False)
    assert proxy.remarks()[0].startswith(
        "The image that is refined (opt_v2) is proxy: the true image with noise N(0, 0.05)"
    )
    assert any("never sees the SAR image" in said for said in proxy.remarks())
    about = task.describe_data()
    assert about["split"]["train"] == "6 tiles of 3 blocks" and about["opt_v2"] == "simulated"
    assert about["sha256"] != proxy.describe_data()["sha256"] and proxy.describe_data()["opt_v2"] == "proxy"


def test_a_task_like_another_reads_no_tiles_again(folder: Path, task: GroundingTask) -> None:
    assert GroundingTask(task.config.replace({"lr": 0.5}, source=""), folder, like=task).tiles is task.tiles
    fewer = GroundingTask(task.config.replace({"max_samples": 2}, source=""), folder, like=task)
    assert [len(names) for names in fewer.tiles.split.values()] == [2, 2, 2]


# --- monitor ---------------------------------------------------------------------------------------------------------


# --- runs ------------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Draws nothing, so that it does not matter how tiles are batched."""

    gap = torch.full((4, 1, 1), 0.1)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, s1: Tensor, opt_v2: Tensor, generator: torch.Generator, truth: Tensor | None = None) -> Tensor:
        return opt_v2 + 0.1 * self.net(torch.cat([s1 / 20, opt_v2], 1))


def test_accumulated_batches_with_a_partial_last_window_are_large_batches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six tiles: windows of four and of two."""
    monkeypatch.setattr(task_module, "make_generator", lambda config, tiles: Plain())
    found = {}
    for name, how in (("small", {"batch_size": 1, "grad_accum": 4}), ("large", {"batch_size": 4, "grad_accum": 1})):
        task = task_on(folder, epochs=2, **how)
        start = [tensor.detach().clone() for tensor in task.modules["generator"].parameters()]
        run = trained(task, tmp_path, name)
        assert [row["step"] for row in history.read_rows(run.history_file)] == [2, 4]
        found[name] = list(task.modules["generator"].parameters())
        assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(start, found[name], strict=True))
    for one, other in zip(found["small"], found["large"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


class Cut(Exception):
    """The process is gone: nothing is saved any more."""


def test_a_run_that_dies_within_an_epoch_goes_on_exactly(patchy: Path, tmp_path: Path) -> None:
    """In the second of two windows of its first epoch, and in the first of its second."""
    settings: dict[str, Any] = {"batch_size": 1, "grad_accum": 4, "ema_decay": 0.9, "early_stop_patience": 1}
    whole = trained(task_on(patchy, **settings), tmp_path, "whole")
    for batch in (5, 3):  # counted after the one that is looked at before the first step
        task = task_on(patchy, **settings)
        original, seen = task.updates, {"n": 0}

        def updates(
            shown: Any, phase: Phase, original: Any = original, seen: dict[str, int] = seen, last: int = batch
        ) -> Iterator[Update]:
            seen["n"] += 1
            if seen["n"] > last + 1:
                raise Cut
            yield from original(shown, phase)

        task.updates = updates  # type: ignore[method-assign]
        with pytest.raises(Cut):
            trained(task, tmp_path, "cut", save_minutes=0.0)
        last = checkpoint.find(Run(tmp_path / "cut"), "last")
        assert last is not None and last.step == {5: 1, 3: 2}[batch]
    assert_equal_runs(trained(task_on(patchy, **settings), tmp_path, "cut"), whole)


def digest(module: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted((*module.named_parameters(), *module.named_buffers())):
        if ".lora_" not in name:
            found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def test_with_a_base_only_adapters_are_trained(folder: Path, tmp_path: Path) -> None:
    first = checkpoint.find(trained(task_on(folder, epochs=1, lr=1e-2), tmp_path, "base"), "last")
    assert first is not None
    settings: dict[str, Any] = {"base": str(first.folder), "lora_rank": 2, "ema_decay": 0.5}
    task = task_on(folder, **settings)
    generator = task.modules["generator"]
    assert list(generator.base.buffers()) and 0 < task.phases[0].trainable["generator"] < 0.3
    assert all((".lora_" in name) == tensor.requires_grad for name, tensor in generator.named_parameters())
    assert all(".lora_" in name for name in ema.parameters(task.modules)), "what is frozen is not averaged"
    before, start = digest(generator), {name: t.clone() for name, t in generator.adapters().items()}
    base = task_on(folder)
    checkpoint.load_weights(first, base.modules)
    batch = batch_of(task, "val")
    torch.testing.assert_close(task.refine(batch), base.refine(batch))  # B is 0
    run = trained(task, tmp_path, "adapters")
    assert read_guards(run) == []
    assert digest(generator) == before and checkpoint.at(first.folder).sha256 == first.sha256
    assert all(not torch.equal(start[name], tensor) for name, tensor in generator.adapters().items())
    assert not torch.allclose(task.refine(batch), base.refine(batch), atol=1e-6)
    assert any(said.startswith("LoRA of rank 2 on 10 layers") for said in task.remarks())
    last = checkpoint.find(run, "last")
    assert last is not None
    with safe_open(last.folder / checkpoint.WEIGHTS, framework="pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118 - safe_open is no mapping
    checkpoint.load_weights(last, task.modules)  # the average, which a run ships
    again = task_on(folder, **settings)
    assert not torch.equal(again.refine(batch), task.refine(batch))
    checkpoint.load_weights(last, again.modules)
    assert torch.equal(again.refine(batch), task.refine(batch))


def test_a_base_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model.safetensors"):
        task_on(folder, base=str(tmp_path))
    first = checkpoint.find(trained(task_on(folder, epochs=1), tmp_path, "base"), "last")
    assert first is not None
    with pytest.raises(UserError, match="weights of another architecture"):
        task_on(folder, base=str(first.folder), coarse=12)


def test_a_run_that_never_sees_the_sar(folder: Path, tmp_path: Path) -> None:
    task = task_on(folder, use_sar=False, epochs=1)
    run = trained(task, tmp_path)
    assert read_guards(run) == []
    (row,) = history.read_rows(run.history_file)
    assert math.isfinite(row["val_mae"]) and math.isfinite(row["train_sar"]), "the loss knows of it all the same"
    seen = [tensor.shape[1] for name, tensor in task.modules["generator"].encoder.named_parameters() if tensor.ndim > 2]
    assert seen[0] % 5 == 0, "four bands and where they were measured, in the place of two polarisations"
