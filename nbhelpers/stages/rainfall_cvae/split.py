"""Which days are for training, validation and test: whole years, because the weather of a day is that of the next.

Here are also the seasons, and the blocks of days that a bootstrap may not part.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np

from nbhelpers.core import splits
from nbhelpers.core.errors import UserError

if TYPE_CHECKING:
    from nbhelpers.stages.rainfall_cvae.data import Days

FRACTIONS = (0.7, 0.15, 0.15)  # train, val, test of the years
BLOCK = 5  # days: weather forgets within about a week
DISTINCT = 8  # a field of fewer values than these may equal another without being its copy
SEASONS = ("DJF", "MAM", "JJA", "SON")


def season(when: date) -> str:
    """The meteorological season: DJF, MAM, JJA or SON."""
    return SEASONS[when.month % 12 // 3]


def years_of(dates: Mapping[int, date]) -> dict[int, int]:
    """The year that each day belongs to.

    The calendar year; but where the days are of a part of the year that runs over New Year (winters), the months
    before it count to the next year, so that a winter is never cut in two.
    """
    months = {when.month for when in dates.values()}
    first = 13  # from this month on, days count to the next year
    if {12, 1} <= months and len(months) < 12:
        while first - 1 in months:
            first -= 1
    return {day: when.year + (when.month >= first) for day, when in dates.items()}


def split_days(
    dates: Mapping[int, date], years: Mapping[str, Collection[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Days by split name in time order: the first years train, then val, and the last are the test.

    Args:
        years: which years for "train", "val" and "test", if not 70, 15 and 15 % of them; days of others are left out.

    Raises:
        UserError: fewer than three years, a split without a day, a year for two splits.
    """
    year = years_of(dates)
    there = sorted(set(year.values()))
    if years is None:
        if len(there) < 3:
            raise UserError(
                f"the days are of {len(there)} year(s) ({', '.join(map(str, there))}), but a split by years needs at "
                "least 3, one each for training, validation and test: add years (days of one year are never shuffled "
                "between splits)."
            )
        years = splits.by_order(there, FRACTIONS)
    if set(years) != set(splits.SPLITS):
        raise UserError(f"years are given for {sorted(years)}, expected {', '.join(splits.SPLITS)}: name all three.")
    splits.check_disjoint(years)
    in_order = sorted(dates, key=lambda day: dates[day])
    chosen = {name: tuple(day for day in in_order if year[day] in set(years[name])) for name in splits.SPLITS}
    if empty := [name for name, days in chosen.items() if not days]:
        raise UserError(
            f"no day is of the {empty[0]} years {sorted(years[empty[0]])}, the days are of {there[0]} to {there[-1]}: "
            "name years that are there."
        )
    return chosen


def checked_years(split: Mapping[str, Sequence[int]], dates: Mapping[int, date]) -> dict[str, set[int]]:
    """The years of each split, none of which stands in two of them.

    Winters may be divided by winter (December counts to the next year) or by calendar year.

    Raises:
        UserError: a year in two splits, as shuffled days have it.
    """
    by_winter, by_calendar = years_of(dates), {day: when.year for day, when in dates.items()}
    shared: list[tuple[int, list[str]]] = []
    for year in (by_winter, by_calendar):
        found = {name: {year[day] for day in days} for name, days in split.items()}
        holders = {one: [name for name in found if one in found[name]] for one in set().union(*found.values())}
        shared = sorted((one, names) for one, names in holders.items() if len(names) > 1)
        if not shared:
            return found
    one, names = shared[0]
    raise UserError(
        f"days of the year {one} stand in {' and '.join(names)} ({len(shared)} year(s) in all are divided so): days "
        "that were shuffled leak the weather of neighbouring days into the scores, so give every split whole years of "
        "its own."
    )


def blocks(days: Iterable[int], dates: Mapping[int, date]) -> dict[int, str]:
    """Label of the block that each day belongs to: the ISO date of the block's first day.

    A block is up to ``BLOCK`` consecutive days of one season; days are not independent, blocks nearly are.
    """
    labels: dict[int, str] = {}
    first: date | None = None
    previous: date | None = None
    for day in sorted(days, key=lambda day: dates[day]):
        when = dates[day]
        follows = previous is not None and when - previous == timedelta(days=1) and season(when) == season(previous)
        if first is None or not follows or (when - first).days >= BLOCK:
            first = when
        labels[day], previous = first.isoformat(), when
    return labels


def keys(days: Days) -> dict[str, dict[str, set[str]]]:
    """What no two splits may share, by kind and split: years, dates, and hashes of the rain (a copy by another name).

    Fields with hardly a value in them (all dry, say) are equal without being copies: they have no hash.
    """
    found: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for name, chosen in days.split.items():
        found["year"][name] = {str(year) for year in days.years[name]}
        found["day"][name] = {days.dates[day].isoformat() for day in chosen}
        rain = (days.y(day) for day in chosen if day not in days.unreadable)
        found["content"][name] = {code for field in rain if (code := content(field)) is not None}
    return dict(found)


def content(rain: np.ndarray) -> str | None:
    """A hash of a field of rain; None for one of hardly a value."""
    measured = rain[np.isfinite(rain)]
    if len(np.unique(measured)) < DISTINCT:
        return None
    return hashlib.sha256(np.ascontiguousarray(measured, np.float32).tobytes()).hexdigest()
