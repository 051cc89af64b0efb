"""The split, the windows and the loader: which frames are trained and scored on."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import sevir
import torch

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet import data, windows
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.stages.perceptual_unet.windows import Split, Window


def on_days(first: str, n_days: int, *, per_day: int = 3, every: int = 7) -> list[data.Event]:
    days = [date.fromisoformat(first) + timedelta(days=every * i) for i in range(n_days)]
    return [sevir.event(f"R{i:02d}{k}", day=str(day)) for i, day in enumerate(days) for k in range(per_day)]


def days_of(split: Split) -> dict[str, set[date]]:
    return {name: {event.time.date() for event in group} for name, group in split.events.items()}


def ids_of(split: Split) -> dict[str, list[str]]:
    return {name: [event.id for event in group] for name, group in split.events.items()}


def test_sevirs_official_split_is_by_date() -> None:
    events = on_days("2018-06-02", 70)
    split = windows.split_events(events)
    days = days_of(split)
    assert split.rule.startswith("SEVIR's official date")
    assert max(days["train"]) < min(days["val"])  # validation: the last of the training dates
    assert max(days["val"]) < date(2019, 6, 1) <= min(days["test"])
    assert 0.05 < len(days["val"]) / len(days["train"] | days["val"]) < 0.25
    assert sum(map(len, split.events.values())) == len(events)


def test_the_first_of_june_belongs_to_the_test_split() -> None:
    events = [*on_days("2019-05-22", 10, every=1), sevir.event("R99", day="2019-06-01")]
    days = days_of(windows.split_events(events))
    assert days["test"] == {date(2019, 6, 1)}
    assert days["val"] == {date(2019, 5, 31)}


@pytest.mark.parametrize("n_days", [3, 5, 8, 40])
@pytest.mark.parametrize("first", ["2017-01-05", "2019-07-01"])
def test_elsewhere_the_split_is_by_date_in_order_of_time(n_days: int, first: str) -> None:
    split = windows.split_events(on_days(first, n_days, every=1))
    days = days_of(split)
    assert split.rule.startswith("by date")
    assert max(days["train"]) < min(days["val"]) <= max(days["val"]) < min(days["test"])
    assert sum(map(len, days.values())) == n_days


def test_events_of_one_day_are_split_by_id() -> None:
    events = [sevir.event(f"R{i:02d}") for i in range(16)]
    split = windows.split_events(events)
    assert split.rule.startswith("by event id")
    found = ids_of(split)
    assert sorted(sum(found.values(), [])) == [event.id for event in events]
    assert {name: len(ids) for name, ids in found.items()} == {"train": 8, "val": 2, "test": 6}
    # A few more events do not shuffle everything: the order comes from each id alone.
    grown = ids_of(windows.split_events([*events, sevir.event("R16")]))
    assert len(set(found["train"]) & set(grown["train"])) >= 7


@pytest.mark.parametrize("events", [on_days("2018-06-02", 70), [sevir.event(f"R{i:02d}") for i in range(80)]])
def test_subsets_are_fixed_parts_of_the_same_split(events: list[data.Event]) -> None:
    whole = ids_of(windows.split_events(events))
    for subset, (n_train, n_eval) in {"tiny": (8, 4), "medium": (24, 6), "large": (48, 12)}.items():
        part = ids_of(windows.split_events(events, subset=subset))
        sizes = {"train": n_train, "val": n_eval, "test": n_eval}
        assert {name: len(ids) for name, ids in part.items()} == {
            name: min(sizes[name], len(ids)) for name, ids in whole.items()
        }
        assert all(set(part[name]) <= set(whole[name]) for name in whole)


def test_the_split_does_not_depend_on_the_order_of_the_catalogue() -> None:
    for events in (on_days("2018-06-02", 70), [sevir.event(f"R{i:02d}") for i in range(20)]):
        one, other = windows.split_events(events), windows.split_events(events[::-1])
        assert {n: set(i) for n, i in ids_of(one).items()} == {n: set(i) for n, i in ids_of(other).items()}


def test_two_events_cannot_be_split() -> None:
    with pytest.raises(UserError, match="found 2 events.*at least 3"):
        windows.split_events([sevir.event("A"), sevir.event("B")])


def test_fixed_windows_of_the_official_protocol() -> None:
    events = [sevir.event("A"), sevir.event("B")]
    config = Config(n_in=13, n_out=12, eval_windows=3)
    found = windows.fixed_windows(events, config)
    assert [(w.event.id, w.start) for w in found] == [(id, start) for id in "AB" for start in (0, 12, 24)]
    assert {(w.stride, w.crop, w.symmetry) for w in found} == {(1, 0, 0)}


def test_fixed_windows_are_never_repeated_in_short_events() -> None:
    config = Config(n_in=12, n_out=2, eval_windows=3)
    assert [w.start for w in windows.fixed_windows([sevir.event(n_frames=14)], config)] == [0]
    assert [w.start for w in windows.fixed_windows([sevir.event(n_frames=15)], config)] == [0, 1]


def draw(config: Config, *, epoch: int = 0, shape: tuple[int, int] = (64, 64), group: int = 99) -> list[Window]:
    events = [sevir.event(f"R{i:02d}") for i in range(6)]
    return windows.random_windows(events, config, epoch=epoch, shape=shape, group=group)


def test_random_windows_are_a_pure_function_of_seed_and_epoch() -> None:
    config = Config(crop=40, seed=3)
    first = draw(config, epoch=5)
    torch.manual_seed(1)
    np.random.seed(1)
    assert draw(config, epoch=5) == first
    assert draw(config, epoch=6) != first
    assert draw(Config(crop=40, seed=4), epoch=5) != first
    # Not even the sum: (seed 3, epoch 5) and (seed 5, epoch 3) are different draws.
    assert draw(Config(crop=40, seed=5), epoch=3) != first


def test_random_windows_reach_every_start_corner_and_symmetry_and_stay_inside() -> None:
    config = Config(n_in=12, n_out=6, crop=60, windows_per_epoch=6 * 400)
    drawn = draw(config, shape=(64, 62))
    assert len(drawn) == 6 * 400
    assert {w.start for w in drawn} == set(range(49 - 18 + 1))
    assert {w.row for w in drawn} == set(range(5)) and {w.column for w in drawn} == set(range(3))
    assert {w.symmetry for w in drawn} == set(range(8))
    assert {w.symmetry for w in draw(Config(crop=60, augment=False))} == {0}


def test_a_crop_larger_than_the_frames_means_whole_frames() -> None:
    drawn = draw(Config(crop=256, windows_per_epoch=6 * 50), shape=(64, 48))
    assert {w.crop for w in drawn} == {0}
    assert {w.symmetry for w in drawn} == {0, 1, 2, 3}  # swapped rows and columns would change the shape


def test_windows_of_a_group_of_events_come_together() -> None:
    drawn = draw(Config(crop=40, windows_per_epoch=6 * 5), group=2)
    groups = [{w.event.id for w in drawn[i : i + 10]} for i in range(0, 30, 10)]
    assert [len(group) for group in groups] == [2, 2, 2]
    assert len(set.union(*groups)) == 6


def one(cache: data.EventCache, window: Window, n_frames: int) -> np.ndarray:
    frames, _ = windows.WindowDataset([window], n_frames, cache)[0]
    return frames.numpy()


def test_a_window_is_the_frames_and_pixels_it_names(tmp_path: Path) -> None:
    events = sevir.storms(1, n_frames=20, height=32, width=45)
    sevir.write_sevir(tmp_path, events)
    (event,), truth, cache = data.read_catalogue(tmp_path), events["R00"], data.EventCache(10**9)
    np.testing.assert_array_equal(one(cache, Window(event, 4, 3), 5), truth[[4, 7, 10, 13, 16]])
    crop = one(cache, Window(event, 1, 2, row=3, column=7, crop=9), 4)
    np.testing.assert_array_equal(crop, truth[1:9:2, 3:12, 7:16])


def test_the_symmetries_are_the_eight_of_a_square_and_turn_all_frames_alike(tmp_path: Path) -> None:
    events = sevir.storms(1)
    sevir.write_sevir(tmp_path, events)
    (event,), cache = data.read_catalogue(tmp_path), data.EventCache(10**9)
    original = events["R00"][:4, 3:12, 7:16]
    eight = [np.rot90(o, k, axes=(1, 2)) for o in (original, original[:, ::-1]) for k in range(4)]
    found = [one(cache, Window(event, 0, 1, 3, 7, 9, symmetry), 4) for symmetry in range(8)]
    assert {frames.tobytes() for frames in found} == {frames.tobytes() for frames in eight}
    np.testing.assert_array_equal(found[0], original)


@pytest.mark.parametrize("step", [None, 4, 10])
def test_frames_of_rectangular_events_with_a_wider_step(tmp_path: Path, step: int | None) -> None:
    events = sevir.storms(3, n_frames=36, height=32, width=40)
    sevir.write_sevir(tmp_path, events, step=2)
    found = data.read_catalogue(tmp_path)
    config = Config(n_in=4, n_out=3, step_minutes=step, crop=0, windows_per_epoch=3 * 6)
    stride = (step or 2) // 2
    drawn = windows.random_windows(found, config, epoch=0, shape=(32, 40), group=3)
    assert {w.stride for w in drawn} == {stride}
    assert max(w.start for w in drawn) <= 35 - 6 * stride
    for batch in windows.loader(drawn, config, data.EventCache(10**9), batch_size=4):
        assert batch.frames.shape[1:] == (7, 32, 40) and batch.frames.dtype == torch.uint8
    assert windows.lead_minutes(found, config) == tuple((step or 2) * k for k in (1, 2, 3))


def test_a_lead_time_means_the_same_in_all_events() -> None:
    mixed = [sevir.event("A", step=5), sevir.event("B", step=2)]
    with pytest.raises(UserError, match="B has a frame every 2 min, but event A every 5 min"):
        windows.lead_minutes(mixed, Config(n_in=2, n_out=2))
    assert windows.lead_minutes(mixed, Config(n_in=2, n_out=2, step_minutes=10)) == (10, 20)


def test_a_window_too_long_for_an_event_is_one_sentence() -> None:
    short = sevir.event("R07", n_frames=18)
    with pytest.raises(UserError, match=r"12 \+ 7 frames every 5 min does not fit into event R07 with 18 frames"):
        windows.window_span(short, Config(n_in=12, n_out=7))
    assert windows.window_span(short, Config(n_in=12, n_out=6)) == (1, 0)


@pytest.mark.parametrize("step", [1, 7, 0, -5])
def test_a_step_that_is_no_multiple_of_the_events_own_is_refused(step: int) -> None:
    with pytest.raises(UserError, match="every 5 min: use a multiple"):
        windows.frame_stride(sevir.event(), step)


def test_offsets_that_do_not_rise_are_refused() -> None:
    event = data.Event("R00", Path("x.h5"), 0, sevir.event().time, (0, 0, 0, 5))
    with pytest.raises(UserError, match="minute_offsets that do not rise"):
        windows.native_step(event)


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    sevir.write_sevir(tmp_path, sevir.storms(5))
    found = data.read_catalogue(tmp_path)
    batches = []
    for workers in (0, 2):
        config = Config(n_in=3, n_out=2, crop=32, windows_per_epoch=5 * 3, num_workers=workers)
        drawn = windows.random_windows(found, config, epoch=1, shape=(32, 32), group=2)
        batches.append(list(windows.loader(drawn, config, data.EventCache(10**9), batch_size=4)))
    assert [b.events for b in batches[0]] == [b.events for b in batches[1]]
    assert [len(b.events) for b in batches[0]] == [4, 4, 4, 3]
    for mine, theirs in zip(*batches, strict=True):
        assert torch.equal(mine.frames, theirs.frames)


def make_task(folder: Path, **changes: object) -> NowcastTask:
    settings = {"n_in": 3, "n_out": 2, "crop": 0, "windows_per_epoch": 12, "base_channels": 4, "depth": 1}
    settings |= {"lambda_perc": 0.0, "lpips_net": "squeeze", "lpips_weights": "random", "first_guess": "persistence"}
    return NowcastTask(Config.for_profile("t4", **settings, **changes), folder)


def test_the_task_reads_each_event_once_an_epoch_however_small_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = sevir.storms(9)
    sevir.write_sevir(tmp_path, events)
    reads, read = [], data.read_event
    monkeypatch.setattr(data, "read_event", lambda event: reads.append(event.id) or read(event))
    task = make_task(tmp_path, cache_gb=2.5 * events["R00"].nbytes / 1e9)
    task.describe_data()
    assert reads == []  # headers only, until the first batch
    for epoch in range(2):
        for split in ("train", "val", "test"):
            del reads[:]
            batches = list(task.batches(split, epoch))
            assert {id for batch in batches for id in batch.events} == {e.id for e in task.split.events[split]}
            assert len(reads) == len(set(reads)) <= len(task.split.events[split])


def test_the_task_draws_the_same_windows_for_the_same_epoch_only(tmp_path: Path) -> None:
    sevir.write_sevir(tmp_path, sevir.storms(9))
    one, other = make_task(tmp_path), make_task(tmp_path)

    def frames(task: NowcastTask, split: str, epoch: int) -> torch.Tensor:
        return torch.cat([batch.frames for batch in task.batches(split, epoch)])

    assert torch.equal(frames(one, "train", 0), frames(other, "train", 0))
    assert not torch.equal(frames(one, "train", 0), frames(one, "train", 1))
    assert torch.equal(frames(one, "val", 0), frames(other, "val", 1))


@pytest.mark.parametrize(("metric", "mode"), [("csi_74", "max"), ("ssim", "max"), ("mse", "min"), ("hss_133", "max")])
def test_the_best_checkpoint_is_the_best(tmp_path: Path, metric: str, mode: str) -> None:
    sevir.write_sevir(tmp_path, sevir.storms(3))
    assert make_task(tmp_path, monitor=metric).monitor.mode == mode


@pytest.mark.parametrize("metric", ["csi74", "bias_74", "rapsd_ratio", "lpips"])
def test_a_metric_that_cannot_choose_is_refused_before_training(tmp_path: Path, metric: str) -> None:
    sevir.write_sevir(tmp_path, sevir.storms(3))
    with pytest.raises(UserError, match=f"monitor is '{metric}', expected one of mse, mae, feature_distance_random"):
        make_task(tmp_path, monitor=metric)


def test_a_random_feature_distance_is_better_when_small(tmp_path: Path) -> None:
    sevir.write_sevir(tmp_path, sevir.storms(3))
    task = make_task(tmp_path, monitor="feature_distance_random")
    better = task.evaluate("val").metrics["feature_distance_random"].better
    assert (task.monitor.mode, better) == ("min", "lower")
