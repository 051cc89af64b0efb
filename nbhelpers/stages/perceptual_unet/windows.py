"""Which frames of which events are trained and scored on: the split, the windows and the loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nbhelpers.core import splits
from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.data import TEST_FROM, Event, EventCache

FRACTIONS = (0.5, 0.15, 0.35)  # train, val, test where no official date applies; 16 events give 6 to test on
VAL_OF_TRAIN = 0.12  # share of the training dates that is held out, from their end
SUBSETS = {"tiny": (8, 4), "medium": (24, 6), "large": (48, 12)}


@dataclass(frozen=True)
class Split:
    """Events by split name, and the rule that made them, in words."""

    rule: str
    events: dict[str, list[Event]]
    by_day: bool  # whether no day may stand in two splits


def split_events(events: Sequence[Event], *, subset: str = "all") -> Split:
    """SEVIR's official split by date where it applies, else by date, else by event id.

    Validation is the end of the training dates. No day stands in two splits; where all events share a day (or two),
    the split is by event id and the report says so.
    """
    days = sorted({event.time.date() for event in events})
    cut = TEST_FROM.date()
    by_day: dict[str, list] = {}
    if days[0] < cut <= days[-1] and (train_days := [day for day in days if day < cut])[1:]:
        n_val = max(1, round(VAL_OF_TRAIN * len(train_days)))
        by_day = {"train": train_days[:-n_val], "val": train_days[-n_val:], "test": [d for d in days if d >= cut]}
        rule = f"SEVIR's official date: test from {cut}, validation from {by_day['val'][0]}"
    elif len(days) >= 3:
        by_day = splits.by_order(days, FRACTIONS)
        rule = f"by date: validation from {by_day['val'][0]}, test from {by_day['test'][0]}"
    else:
        keys = splits.by_hash([event.id for event in events], FRACTIONS)
        chosen = {name: [event for event in events if event.id in set(keys[name])] for name in splits.SPLITS}
        return Split(f"by event id, because all events fall on {len(days)} day(s)", _limit(chosen, subset), False)
    chosen = {name: [event for event in events if event.time.date() in set(by_day[name])] for name in splits.SPLITS}
    return Split(rule, _limit(chosen, subset), True)


def _limit(chosen: dict[str, list[Event]], subset: str) -> dict[str, list[Event]]:
    if subset == "all":
        return chosen
    n_train, n_eval = SUBSETS[subset]
    limits = {"train": n_train, "val": n_eval, "test": n_eval}
    first = {name: set(splits.hash_order(e.id for e in group)[: limits[name]]) for name, group in chosen.items()}
    return {name: [event for event in group if event.id in first[name]] for name, group in chosen.items()}


def frame_stride(event: Event, step_minutes: int | None) -> int:
    """How many of the event's own frames make one step of ``step_minutes`` (None: its own step)."""
    own = native_step(event)
    if step_minutes is None:
        return 1
    if step_minutes < own or step_minutes % own:
        raise UserError(
            f"step_minutes is {step_minutes}, but event {event.id} has a frame every {own} min: use a multiple of it."
        )
    return step_minutes // own


def native_step(event: Event) -> int:
    """Minutes between the event's frames (their median: SEVIR's offsets jitter by a scan)."""
    gaps = [b - a for a, b in zip(event.minutes, event.minutes[1:], strict=False)]
    step = round(median(gaps)) if gaps else 0
    if step < 1:
        raise UserError(
            f"event {event.id} has minute_offsets that do not rise ({event.minutes[:4]}…): correct the catalogue."
        )
    return step


@dataclass(frozen=True)
class Window:
    """Where one sample is cut out: frames ``start, start + stride, …`` and a square crop, mirrored by ``symmetry``."""

    event: Event
    start: int
    stride: int
    row: int = 0
    column: int = 0
    crop: int = 0  # 0: the whole frame
    symmetry: int = 0  # 0-7, one of a square's: 4 swaps rows and columns, then 1 mirrors top-down, 2 left-right


@dataclass(frozen=True)
class Batch:
    """Windows as they come from the loader, still in grey levels."""

    frames: Tensor  # (B, n_in + n_out, H, W) uint8, 255 missing
    events: tuple[str, ...]  # event id of each window
    unreadable: tuple[str, ...] = ()  # why windows that belong here are not, a sentence each

    def pin_memory(self) -> Batch:
        """Called by the loader where there is a GPU."""
        return Batch(self.frames.pin_memory(), self.events, self.unreadable)


def window_span(event: Event, config: Config) -> tuple[int, int]:
    """(stride, last possible start) of a window in this event."""
    stride = frame_stride(event, config.step_minutes)
    last = len(event.minutes) - 1 - (config.n_in + config.n_out - 1) * stride
    if last < 0:
        raise UserError(
            f"a window of {config.n_in} + {config.n_out} frames every {native_step(event) * stride} min does not fit "
            f"into event {event.id} with {len(event.minutes)} frames: lower n_in, n_out or step_minutes."
        )
    return stride, last


def fixed_windows(events: Sequence[Event], config: Config) -> list[Window]:
    """Whole-frame windows at evenly spaced starts, the same in every run (0, 12, 24 in the 13→12 protocol)."""
    windows = []
    for event in events:
        stride, last = window_span(event, config)
        starts = sorted(set(np.linspace(0, last, config.eval_windows).round().astype(int).tolist()))
        windows += [Window(event, start, stride) for start in starts]
    return windows


def windows_per_event(config: Config, n_events: int) -> int:
    """How many windows an epoch draws from each of ``n_events`` training events, at least one."""
    return max(1, round(config.windows_per_epoch / n_events))


def random_windows(
    events: Sequence[Event], config: Config, *, epoch: int, shape: tuple[int, int], group: int
) -> list[Window]:
    """Random training windows of an epoch, a pure function of (seed, epoch) and the events.

    Events come in shuffled groups of ``group`` (as many as the cache holds) and windows are shuffled within a group,
    so that each event is read once an epoch however small the memory.

    Args:
        shape: height and width of the frames; a crop that does not fit into them means whole frames.
    """
    rng = np.random.default_rng([config.seed, epoch])
    height, width = shape
    crop = config.crop if config.crop <= min(shape) else 0
    # Swapped rows and columns would change the shape of frames that are not square; mirrors do not.
    symmetries = range(8 if crop or height == width else 4)
    order = rng.permutation(len(events))
    windows: list[Window] = []
    for begin in range(0, len(order), group):
        drawn = []
        for index in order[begin : begin + group]:
            stride, last = window_span(events[index], config)
            for _ in range(windows_per_event(config, len(events))):
                start = int(rng.integers(0, last + 1))
                row = int(rng.integers(0, height - crop + 1)) if crop else 0
                column = int(rng.integers(0, width - crop + 1)) if crop else 0
                symmetry = symmetries[int(rng.integers(len(symmetries)))] if config.augment else 0
                drawn.append(Window(events[index], start, stride, row, column, crop, symmetry))
        windows += [drawn[i] for i in rng.permutation(len(drawn))]
    return windows


class WindowDataset(Dataset):
    """Cuts windows out of cached events; index in, ``(T, H, W)`` uint8 and event id out.

    Args:
        forgiving: an event that cannot be read gives None and the reason, and does not raise; how many of them a
            training may do without is not decided here.
    """

    def __init__(self, windows: Sequence[Window], n_frames: int, cache: EventCache, *, forgiving: bool = False):
        self.windows, self.n_frames, self.cache, self.forgiving = windows, n_frames, cache, forgiving

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str]:
        window = self.windows[index]
        try:
            event = self.cache[window.event]
        except UserError as error:
            if not self.forgiving:
                raise
            return None, str(error)
        frames = event[window.start :: window.stride][: self.n_frames]
        if window.crop:
            frames = frames[:, window.row : window.row + window.crop, window.column : window.column + window.crop]
        if window.symmetry & 4:
            frames = frames.transpose(0, 2, 1)
        sample = torch.from_numpy(np.ascontiguousarray(frames))
        # torch mirrors bytes ten times as fast as a copy of numpy's reversed view.
        mirrored = [dim for bit, dim in ((1, 1), (2, 2)) if window.symmetry & bit]
        return sample.flip(mirrored) if mirrored else sample, window.event.id


def collate(samples: Sequence[tuple[Tensor | None, str]], *, n_frames: int) -> Batch:
    read = [(frames, event) for frames, event in samples if frames is not None]
    unreadable = tuple(reason for frames, reason in samples if frames is None)
    frames = torch.stack([frames for frames, _ in read]) if read else torch.empty(0, n_frames, 1, 1, dtype=torch.uint8)
    return Batch(frames, tuple(event for _, event in read), unreadable)


def loader(
    windows: Sequence[Window], config: Config, cache: EventCache, *, batch_size: int, forgiving: bool = False
) -> DataLoader:
    """Batches of ``windows`` in the given order; ``forgiving`` ones do without events that cannot be read."""
    n_frames = config.n_in + config.n_out
    return DataLoader(
        WindowDataset(windows, n_frames, cache, forgiving=forgiving),
        batch_size=batch_size,
        collate_fn=partial(collate, n_frames=n_frames),
        num_workers=config.num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def lead_minutes(events: Sequence[Event], config: Config) -> tuple[int, ...]:
    """Minutes ahead of each predicted frame, the same for all ``events``.

    Raises:
        UserError: their frames are different numbers of minutes apart, so that a lead time would mean two things.
    """
    by_step = {native_step(event) * frame_stride(event, config.step_minutes): event.id for event in events}
    if len(by_step) > 1:
        (step, one), (other_step, other) = sorted(by_step.items())[:2]
        raise UserError(
            f"event {one} has a frame every {step} min, but event {other} every {other_step} min: set step_minutes to "
            "a common multiple."
        )
    (step,) = by_step
    return tuple(range(step, step * config.n_out + 1, step))
