"""Simulated weather and rain in the stage's layout: data for demos and tests, with a truth to be measured against.

Weather (``weather.py``) passes over a land (``terrain.py``) and lets rain fall by a known law (``rain_truth.py``). The
folder keeps the true states, so that :class:`~nbhelpers.stages.rainfall_cvae.oracle.Oracle` can redraw any day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from nbhelpers.core.disk import check_room, disk_errors, whole_folder
from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae.folder import write_days
from nbhelpers.stages.rainfall_cvae.rain_truth import coarse_rain, conditions, draw_rain, noise_amplitude
from nbhelpers.stages.rainfall_cvae.terrain import FINEST, terrain
from nbhelpers.stages.rainfall_cvae.weather import CHANNELS, UNITS, coarse_maps, state_series, weather

VERSION = 1  # of the weather and the law: raise it whenever the same settings give other days
TRUTH, SETTINGS, STATES = "truth", "settings.json", "states.npy"
Day = tuple[date, NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Settings:
    """Everything that the simulated numbers depend on."""

    n_years: int  # whole calendar years
    seed: int
    factor: int  # fine pixels along a coarse cell
    coarse: tuple[int, int]  # (h, w)
    first_year: int
    version: int = VERSION

    @property
    def dates(self) -> list[date]:
        first = date(self.first_year, 1, 1)
        count = (date(self.first_year + self.n_years, 1, 1) - first).days
        return [first + timedelta(days=n) for n in range(count)]


def simulate(
    folder: Path,
    *,
    n_years: int,
    seed: int,
    factor: int = 4,
    coarse: tuple[int, int] = (13, 11),
    first_year: int = 1991,
    progress: bool = True,
) -> Path:
    """Write ``n_years`` of daily weather x (6, h, w) and rain y (H, W) = factor * (h, w); returns ``folder``.

    Rain is NaN over sea, in mm/day like the coarse ``pr``; ``truth/`` holds the settings and the states (n_days, S).
    Day ``n`` depends on ``(seed, n)`` and the grid, not on ``n_years``. The folder appears when it is whole; one that
    holds the same days already is left as it is.

    Raises:
        UserError: impossible settings, too little disk, or a folder that holds anything but these days.
    """
    settings = Settings(n_years, seed, factor, coarse, first_year)
    _check(settings)
    if _is_there(folder, settings):
        return folder
    n_days = len(settings.dates)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        check_room(folder.parent, n_days * coarse[0] * coarse[1] * 4 * (6 + factor**2), "a simulation of these days")
        with whole_folder(folder) as part:
            land = terrain(seed=seed, factor=factor, coarse=coarse)
            write_days(
                part,
                tqdm(simulated_days(settings), total=n_days, desc="simulating days", disable=not progress),
                statics=land.statics,
                channels=CHANNELS,
                x_units=UNITS,
                name=f"simulated rain, seed {seed}",
                source="nbhelpers: simulated weather with a known law of rain",
                simulated=True,
                pixel_km=land.fine.cell_km,
            )
            (part / TRUTH).mkdir()
            np.save(part / TRUTH / STATES, state_series(n_days, seed=seed))
            record = json.dumps(asdict(settings), indent=2) + "\n"
            (part / TRUTH / SETTINGS).write_text(record, encoding="utf-8", newline="\n")
    return folder


def simulated_days(settings: Settings) -> Iterator[Day]:
    """Date, x (6, h, w) and y (H, W) of every day in time order."""
    land = terrain(seed=settings.seed, factor=settings.factor, coarse=settings.coarse)
    amplitude = noise_amplitude(land.fine)
    dates = settings.dates
    for number, (when, state) in enumerate(zip(dates, state_series(len(dates), seed=settings.seed), strict=True)):
        rng = np.random.default_rng([settings.seed, 2, number])
        day_of_year = when.timetuple().tm_yday
        law = conditions(weather(state, day_of_year=day_of_year, grid=land.fine), land)
        rain = np.where(land.land, draw_rain(law, land.fine, amplitude, rng), np.nan).astype(np.float32)
        seen = coarse_rain(law, land, amplitude, rng)
        x = coarse_maps(weather(state, day_of_year=day_of_year, grid=land.coarse), land, seen, rng)
        yield when, x, rain


def _check(settings: Settings) -> None:
    for name, value, least in (
        ("n_years", settings.n_years, 3),
        ("seed", settings.seed, 0),
        ("coarse", min(settings.coarse), 4),
        ("first_year", settings.first_year, 1),
    ):
        if value < least:
            raise UserError(f"{name} is {value}, expected at least {least}: choose a larger {name}.")
    if settings.factor < 1 or FINEST % settings.factor:
        raise UserError(f"factor is {settings.factor}, expected a divisor of {FINEST}: choose 4 or 12, say.")


def _is_there(folder: Path, settings: Settings) -> bool:
    """Whether ``folder`` holds these very days; raise rather than let anything else be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, expected a folder for the days: choose another folder.")
    record = folder / TRUTH / SETTINGS
    if not record.is_file():
        other = next(iter(sorted(folder.glob("*"))), None)
        if other is not None:
            raise UserError(f"{folder} holds {other.name} but no simulated days: choose another, empty folder.")
        return False
    old, new = read_settings(folder), settings
    differs = ", ".join(f"{k}={v} (asked: {asdict(new)[k]})" for k, v in asdict(old).items() if v != asdict(new)[k])
    if differs:
        raise UserError(f"{folder} holds days simulated with {differs}: choose another folder or delete this one.")
    return True


def read_settings(folder: Path) -> Settings:
    """What the days in ``folder`` were simulated with.

    Raises:
        UserError: no truth is there, it is not readable, or it is another version's.
    """
    path = folder / TRUTH / SETTINGS
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        settings = Settings(**{**kept, "coarse": tuple(kept["coarse"])})
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: redraws need a folder that nbhelpers simulated.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a simulation's settings ({error}): simulate these days again.") from error
    if settings.version != VERSION:
        raise UserError(
            f"{folder} was simulated by version {settings.version} of the rain's law, this is version {VERSION}: "
            "simulate the days again in another folder."
        )
    return settings
