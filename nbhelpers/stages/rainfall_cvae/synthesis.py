"""Which days to draw rain for, how often, and from what: the flags of ``nbhelpers predict rainfall-cvae``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.data import Days
from nbhelpers.stages.rainfall_cvae.layout import CATEGORIES

Mode = Literal["prior", "posterior"]


@dataclass(frozen=True)
class Synthesis:
    """What to draw for a training set that is to be augmented."""

    # Where the latent is drawn from: the prior (generation), or the posterior, which has seen the rain of the day.
    mode: Mode = "prior"
    # Draws of each day.
    K: int = 8
    # Training days to draw: heavy, moderate, dry, all, or numbers of days and ranges such as 3 17 40-60.
    days: tuple[str, ...] = ("heavy",)
    # Seed of the draws.
    seed: int = 0
    # Write draws of the posterior all the same; files and provenance then say what they are.
    allow_copies: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UserError(f"mode is {self.mode!r}, expected one of {', '.join(get_args(Mode))}.")
        if self.K < 1:
            raise UserError(f"K is {self.K}, expected at least one draw of each day.")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}, expected 0 or more.")
        if self.mode == "posterior" and not self.allow_copies:
            raise UserError(
                "mode is 'posterior', whose draws have seen the rain of their day and are near copies of it: draw new "
                "rain with --mode prior, or add --allow-copies if copies are what you want."
            )


def chosen_days(days: Days, asked: Sequence[str]) -> tuple[int, ...]:
    """The training days that ``asked`` names (see ``Synthesis.days``), in time order, without unreadable ones.

    Raises:
        UserError: a word that means nothing, a day that is not of the training years or cannot be read, or no day.
    """
    train = days.split["train"]
    if len(asked) == 1 and asked[0] in (*CATEGORIES, "all"):
        found = [day for day in train if asked[0] in ("all", days.category[day]) and day not in days.unreadable]
        if not found:
            raise UserError(f"no training day in {days.folder} is {asked[0]}: choose other days with --days.")
        return tuple(found)
    wanted = [day for word in asked for day in _numbers(word)]
    for day in wanted:
        if (name := split_of(days, day)) != "train":
            where = f"is of the {name} years" if name else f"is not in {days.folder}"
            raise UserError(
                f"day {day} {where}, and only days of the training years may be augmented: what is trained on such "
                "draws would be scored on weather that it knows; leave it out of --days."
            )
        if day in days.unreadable:
            raise UserError(f"day {day} cannot be drawn: {days.unreadable[day]}")
    if not wanted:
        raise UserError(f"--days names no day, expected {', '.join(CATEGORIES)}, all, or numbers such as 3 40-60.")
    return tuple(day for day in train if day in set(wanted))


def _numbers(word: str) -> range:
    first, _, last = word.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()) or ("-" in word and not last):
        raise UserError(
            f"--days has {word!r}, expected one of {', '.join(CATEGORIES)}, all, or numbers and ranges such as 3 40-60."
        )
    return range(int(first), int(last or first) + 1)


def split_of(days: Days, day: int) -> str | None:
    """The split that a day stands in, if any."""
    return next((name for name, members in days.split.items() if day in members), None)
