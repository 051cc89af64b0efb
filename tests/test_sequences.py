"""Splits of simulations, what they may not share, and the windows and batches that are cut out of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import turbulence
from turbulence import RECORD, flow, published, vorticity, write_matlab, write_own, write_published

from nbhelpers.core.errors import UserError
from nbhelpers.core.splits import check_disjoint
from nbhelpers.stages.neural_operator import sequences
from nbhelpers.stages.neural_operator.data import Collection, FrameCache, open_collection
from nbhelpers.stages.neural_operator.facts import Facts, Simulation
from nbhelpers.stages.neural_operator.sequences import Batch, Window, fixed_windows, training_windows
from nbhelpers.stages.neural_operator.split import Segment, Split, keys, split_simulations

BOTH = ("velocity", "pressure")
OWN = Facts("mine", "own", (1.0, 1.0), True, 0.1)


def bare(count: int, n_frames: int = 100) -> list[Simulation]:
    return [Simulation(f"sim_{k:06d}", k, range(n_frames)) for k in range(count)]


def numbers(split: Split, name: str, label: str | None = None) -> list[int]:
    return [one.simulation.number for one in split.segments[name] if label in (None, one.label)]


def assert_disjoint(split: Split) -> None:
    for by_split in keys(split).values():
        check_disjoint(by_split)


# --- published splits --------------------------------------------------------------------------------------------


def test_tra_number_by_number() -> None:
    split = split_simulations(*published("tra", range(41), 1001))
    training = [n for n in range(41) if n not in (0, 1, 2, 14, 15, 16, 17, 18)]
    assert sorted(numbers(split, "train") + numbers(split, "val")) == training and len(training) == 33
    assert numbers(split, "val") == [8, 23, 33]
    assert numbers(split, "test", "extrapolate") == [0, 1, 2]
    assert numbers(split, "test", "interpolate") == [16, 17, 18]
    assert numbers(split, "test", "long") == [14, 15]
    assert {one.frames for one in split.segments["train"] + split.segments["val"]} == {range(0, 1000)}
    frames = {one.label: one.frames for one in split.segments["test"]}
    assert frames == {"extrapolate": range(500, 750), "interpolate": range(500, 750), "long": range(0, 1000)}
    assert "3–13, 19–40" in split.rule and "extrapolate 0–2" in split.rule and not split.by_time
    assert_disjoint(split)


def test_inc_number_by_number() -> None:
    split = split_simulations(*published("inc", range(91), 1300))
    assert sorted(numbers(split, "train") + numbers(split, "val")) == list(range(10, 81))
    assert numbers(split, "val") == [15, 25, 35, 45, 55, 65, 75]
    assert numbers(split, "test", "low Reynolds") == [82, 84, 86, 88, 90]
    assert numbers(split, "test", "high Reynolds") == [0, 2, 4, 6, 8]
    assert {one.frames for one in split.segments["train"]} == {range(800, 1300)}
    assert {one.frames for one in split.segments["test"]} == {range(1000, 1150)}
    assert_disjoint(split)


def test_iso_number_by_number() -> None:
    split = split_simulations(*published("iso", range(1000), 1001))
    assert numbers(split, "test") == list(range(200, 351, 10))
    assert {one.frames for one in split.segments["test"]} == {range(500, 600)}
    assert numbers(split, "val") == list(range(960, 1000))
    assert numbers(split, "train") == [*range(200), *range(351, 930)]  # 30 slices lie between it and validation
    assert {one.frames for one in split.segments["train"]} == {range(0, 1000)}
    assert_disjoint(split)


def test_numbers_that_are_not_the_published_ones_are_not_split_as_published() -> None:
    simulations, facts = published("tra", [20], 1001)  # the authors' small archive calls Mach 0.7 number 0
    alone = [Simulation("sim_000000", 0, range(1001), simulations[0].parameters)]
    split = split_simulations(alone, facts)
    assert split.by_time and "sim_000000 has Mach Number 0.7" in split.rule and "0.5" in split.rule
    some = [Simulation(f"sim_{k:06d}", k, range(1001), {"Mach Number": 0.7 + 0.02 * k}) for k in range(6)]
    split = split_simulations(some, facts)
    assert split.rule.startswith("by a hash") and "published" in split.rule
    split = split_simulations(*published("inc", range(10, 20), 1300))
    assert split.rule.startswith("by a hash") and "none of the published test simulations" in split.rule


def test_a_published_set_cut_short_in_time_is_refused() -> None:
    with pytest.raises(UserError, match="sim_000010 has frames 0 to 599, but .* 800 to 1299"):
        split_simulations(*published("inc", range(91), 600))


def test_rows_of_the_fno_benchmark() -> None:
    facts = Facts("fno", "fno-benchmark", (1.0, 1.0), True, 1.0)
    split = split_simulations(bare(5000, 50), facts)
    assert numbers(split, "train") == list(range(950)) and numbers(split, "val") == list(range(950, 1000))
    assert numbers(split, "test") == list(range(4800, 5000))
    assert_disjoint(split_simulations(bare(1200, 20), facts))
    assert "needs 1200 rows" in split_simulations(bare(1199, 20), facts).rule


# --- own sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 20, 101])
def test_own_simulations_are_split_by_the_hash_of_their_names(count: int) -> None:
    split = split_simulations(bare(count), OWN)
    parts = {name: numbers(split, name) for name in split.segments}
    assert sorted(sum(parts.values(), [])) == list(range(count)) and all(parts.values())
    assert_disjoint(split)
    if count >= 20:
        assert len(parts["train"]) == pytest.approx(0.7 * count, abs=1)
        assert len(parts["val"]) == pytest.approx(0.15 * count, abs=1)
    shuffled = split_simulations(list(reversed(bare(count))), OWN)
    assert {name: numbers(shuffled, name) for name in parts} == parts
    assert len(numbers(split_simulations(bare(20), OWN, fractions=(0.5, 0.25, 0.25)), "test")) == 5


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_simulations_are_split_in_time_with_a_gap(count: int) -> None:
    simulations = [Simulation(f"sim_{k:06d}", k, range(10, 110)) for k in range(count)]
    split = split_simulations(simulations, OWN)
    assert split.by_time and f"only {count} simulation(s)" in split.rule and "5 frames are left out" in split.rule
    for k in range(count):
        train, val, test = (split.segments[name][k].frames for name in ("train", "val", "test"))
        assert (train, val, test) == (range(10, 72), range(77, 91), range(96, 110))
    assert_disjoint(split)
    with pytest.raises(UserError, match="4 frames, too few"):
        split_simulations(bare(1, 4), OWN)


def test_keys_find_a_simulation_or_a_frame_that_two_splits_share() -> None:
    split = split_simulations(bare(10), OWN)
    moved = {**split.segments, "test": (*split.segments["test"], split.segments["train"][0])}
    with pytest.raises(UserError, match="train and test share 1"):
        check_disjoint(keys(Split("", moved, by_time=False))["simulation"])
    in_time = split_simulations(bare(1), OWN)
    (val,) = in_time.segments["val"]
    wider = {**in_time.segments, "val": (Segment(val.simulation, range(val.frames.start, val.frames.stop + 6)),)}
    with pytest.raises(UserError, match="val and test share 1 .* 'sim_000000 frame 86'"):
        check_disjoint(keys(Split("", wider, by_time=True))["frame"])


def test_content_finds_a_simulation_copied_to_another_number(tmp_path: Path) -> None:
    found = open_collection(write_own(tmp_path, 10), fields=BOTH)
    split = sequences.split_collection(found)
    check_disjoint(keys(split, found.read)["content"])
    source, target = (split.segments[name][0].simulation.name for name in ("train", "test"))
    shutil.rmtree(tmp_path / target)
    shutil.copytree(tmp_path / source, tmp_path / target)
    with pytest.raises(UserError, match="train and test share 1"):
        check_disjoint(keys(split, FrameCache(found, 10**6).read)["content"])
    (tmp_path / target / "velocity_000003.npz").write_bytes(b"")  # what cannot be read is found by training
    assert len(keys(split, found.read)["content"]["test"]) == len(split.segments["test"]) - 1


def test_fields_at_rest_are_no_copies_and_parts_of_one_simulation_no_leak(tmp_path: Path) -> None:
    for number in range(4):
        still = {"velocity": np.zeros((6, 2, 12, 16)), "pressure": np.ones((6, 12, 16))}
        turbulence.write_simulation(tmp_path / "still", number, still, description={})
    (tmp_path / "still/dataset.json").write_text(json.dumps(RECORD))
    found = open_collection(tmp_path / "still", fields=BOTH)
    assert not any(keys(sequences.split_collection(found), found.read)["content"].values())
    assert found.constant == found.channels
    found = open_collection(write_own(tmp_path / "one", 1, n_frames=20), fields=BOTH)
    content = keys(sequences.split_collection(found), found.read)["content"]
    check_disjoint(content)
    assert all(content.values())


# --- windows -----------------------------------------------------------------------------------------------------


def pairs(windows: list[Window]) -> list[tuple[int, int]]:
    return [(window.segment.simulation.number, window.start) for window in windows]


SEGMENTS = [Segment(one, range(10, 30)) for one in bare(3)]


def test_training_windows_are_all_that_fit_once_in_an_order_of_seed_and_epoch_alone() -> None:
    def drawn(seed: int = 0, epoch: int = 0) -> list[tuple[int, int]]:
        return pairs(training_windows(SEGMENTS, length=4, stride=3, epoch=epoch, seed=seed))

    assert sorted(drawn()) == [(k, start) for k in range(3) for start in range(10, 21)]  # the last one ends at 29
    assert drawn() == drawn() and drawn() != drawn(epoch=1) and drawn() != drawn(seed=1) and drawn() != sorted(drawn())


@pytest.mark.parametrize("per_epoch", [1, 10, 33, 70])
def test_a_number_of_windows_is_drawn_evenly(per_epoch: int) -> None:
    drawn = pairs(training_windows(SEGMENTS, length=4, stride=3, epoch=2, seed=3, per_epoch=per_epoch))
    times = [drawn.count(one) for one in {(k, start) for k in range(3) for start in range(10, 21)}]
    assert len(drawn) == per_epoch and max(times) - min(times) <= 1


def test_groups_are_finished_one_after_the_other() -> None:
    segments = [Segment(one, range(8)) for one in bare(7)]
    drawn = pairs(training_windows(segments, length=2, stride=1, epoch=0, seed=0, group=3))
    assert sorted(drawn) == [(k, start) for k in range(7) for start in range(7)]
    blocks = [{k for k, _ in drawn[begin:end]} for begin, end in ((0, 21), (21, 42), (42, 49))]
    assert [len(block) for block in blocks] == [3, 3, 1] and set().union(*blocks) == set(range(7))
    assert [k for k, _ in drawn[:21]] != sorted(k for k, _ in drawn[:21])
    again = pairs(training_windows(segments, length=2, stride=1, epoch=1, seed=0, group=3))
    assert {k for k, _ in again[:21]} != blocks[0] or again != drawn


def test_fixed_windows_are_evenly_spaced_and_reach_both_ends() -> None:
    assert pairs(fixed_windows(SEGMENTS[:1], length=4, stride=3, per_segment=3)) == [(0, 10), (0, 15), (0, 20)]
    assert pairs(fixed_windows(SEGMENTS[:1], length=20, stride=1, per_segment=5)) == [(0, 10)]
    assert pairs(fixed_windows(SEGMENTS[:1], length=1, stride=1, per_segment=1)) == [(0, 10)]


@pytest.mark.parametrize(("length", "stride"), [(21, 1), (3, 10), (8, 3)])
def test_a_window_that_does_not_fit_is_refused(length: int, stride: int) -> None:
    for draw in (
        lambda: training_windows(SEGMENTS, length=length, stride=stride, epoch=0, seed=0),
        lambda: fixed_windows(SEGMENTS, length=length, stride=stride, per_segment=2),
    ):
        with pytest.raises(UserError, match="20 frames here .10 to 29.: shorten sequence_length"):
            draw()
    with pytest.raises(UserError, match="at least one frame"):
        fixed_windows(SEGMENTS, length=2, stride=0, per_segment=2)


# --- batches -----------------------------------------------------------------------------------------------------


def batches(root: Path, **options: Any) -> tuple[list[Batch], Collection]:
    found = open_collection(root, fields=BOTH)
    split = sequences.split_collection(found)
    windows = fixed_windows(split.segments["train"], length=3, stride=2, per_segment=2)
    cache = FrameCache(found, 10**7)
    return list(sequences.loader(windows, cache, length=3, stride=2, batch_size=4, **options)), found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_the_frames_parameters_and_obstacles_of_their_windows(tmp_path: Path, num_workers: int) -> None:
    inside = np.zeros((12, 16), bool)
    inside[2:5, 9:14] = True
    write_own(tmp_path, 6, n_frames=8, obstacle=inside)
    found, _ = batches(tmp_path, num_workers=num_workers)
    assert [len(batch.frames) for batch in found] == [4, 4]
    for batch in found:
        assert batch.frames.dtype == torch.float32 and batch.frames.shape == (4, 3, 3, 12, 16)
        assert batch.parameters.shape == (4, 1) and batch.inside is not None and batch.inside.dtype == torch.bool
        for i, (name, start) in enumerate(zip(batch.simulations, batch.starts, strict=True)):
            number = int(name[4:])
            made = flow(number, n_frames=8)
            np.testing.assert_array_equal(batch.frames[i, :, :2], made["velocity"][start : start + 5 : 2])
            np.testing.assert_array_equal(batch.frames[i, :, 2], made["pressure"][start : start + 5 : 2])
            assert batch.parameters[i] == 100.0 * (number + 1)
            np.testing.assert_array_equal(batch.inside[i], inside if number % 2 == 0 else np.zeros_like(inside))
        assert batch.unreadable == ()


def test_a_set_without_obstacles_or_parameters(tmp_path: Path) -> None:
    write_published(tmp_path, "iso", range(3), n_frames=8)
    found, _ = batches(tmp_path)
    assert found[0].inside is None and found[0].parameters.shape == (len(found[0].frames), 0)


def test_what_cannot_be_read_stops_or_is_left_out_with_its_reason(tmp_path: Path) -> None:
    write_own(tmp_path, 6, n_frames=8)
    whole, found = batches(tmp_path)
    victim = whole[0].simulations[0]
    (tmp_path / victim / "velocity_000002.npz").write_bytes(b"")
    with pytest.raises(UserError, match=f"{victim}/velocity_000002.npz is not a readable"):
        batches(tmp_path)
    first, second = batches(tmp_path, forgiving=True)[0]
    assert first.simulations == whole[0].simulations[1:]  # the later window does not touch that frame
    (reason,) = first.unreadable
    assert f"{victim}/velocity_000002.npz" in reason and len(first.frames) == 3 and second.unreadable == ()
    for path in tmp_path.glob("sim_*/velocity_00000[45].npz"):
        path.write_bytes(b"")
    windows = fixed_windows(sequences.split_collection(found).segments["train"], length=3, stride=2, per_segment=2)
    some = sequences.loader(windows, FrameCache(found, 10**6), length=3, stride=2, batch_size=4, forgiving=True)
    nothing = next(iter(some))
    assert len(nothing.unreadable) == 4 and nothing.simulations == ()
    assert nothing.frames.shape == (0, 3, 3, 12, 16) and nothing.parameters.shape == (0, 1)


def test_matlab_rows_reach_the_batch(tmp_path: Path) -> None:
    rows = vorticity(8)
    path = write_matlab(tmp_path / "ns_V1e-3_N8_T5.mat", rows, hdf5=True, compression="gzip")
    found = open_collection(path, fields=("vorticity",))
    split = sequences.split_collection(found)
    windows = training_windows(split.segments["train"], length=3, stride=1, epoch=0, seed=0)
    (batch,) = sequences.loader(windows, FrameCache(found, 10**6), length=3, stride=1, batch_size=99)
    assert len(batch.frames) == 3 * len(split.segments["train"]) and batch.parameters.shape[1] == 0
    for frames, name, start in zip(batch.frames, batch.simulations, batch.starts, strict=True):
        np.testing.assert_array_equal(frames[:, 0], rows[int(name[4:]), start : start + 3])
