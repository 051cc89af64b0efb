"""Redraws of simulated rain given the true weather: the best that a model could do.

The coarse predictors show the state but for little noise, and the climate model's rain adds nothing to it (it is drawn
from the state alone), so no model of x can have a lower expected CRPS than these members.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nbhelpers.stages.rainfall_cvae.rain_truth import Conditions, conditions, draw_rain, noise_amplitude
from nbhelpers.stages.rainfall_cvae.simulate import SETTINGS, STATES, TRUTH, read_settings
from nbhelpers.stages.rainfall_cvae.terrain import Array, Terrain, terrain
from nbhelpers.stages.rainfall_cvae.weather import weather


class HasFolder(Protocol):
    """Days on the disk."""

    @property
    def folder(self) -> Path: ...


def has_truth(folder: Path) -> bool:
    """Whether the days in ``folder`` can be redrawn."""
    return (folder / TRUTH / SETTINGS).is_file() and (folder / TRUTH / STATES).is_file()


class Oracle:
    """The law of simulated rain, opened for days of one folder.

    Raises:
        UserError: the folder was not simulated, or by another version of the law.
    """

    def __init__(self, days: HasFolder):
        self.settings = read_settings(days.folder)
        self.states: Array = np.load(days.folder / TRUTH / STATES)
        s = self.settings
        self.land: Terrain = terrain(seed=s.seed, factor=s.factor, coarse=s.coarse)
        self._amplitude = noise_amplitude(self.land.fine)
        self._first = s.dates[0]

    def conditions(self, day: int) -> Conditions:
        """The law's parameters on ``day``."""
        date = self._first + timedelta(days=int(day))
        sky = weather(self.states[day], day_of_year=date.timetuple().tm_yday, grid=self.land.fine)
        return conditions(sky, self.land)

    def members(self, day: int, k: int, *, seed: int) -> NDArray[np.float32]:
        """``k`` redraws (k, H, W) of ``day`` in mm/day, NaN over sea; independent of the day's own rain."""
        law = self.conditions(day)
        members = np.full((k, *self.land.fine.shape), np.nan, dtype=np.float32)
        for number in range(k):
            rng = np.random.default_rng([self.settings.seed, 3, day, seed, number])
            rain = draw_rain(law, self.land.fine, self._amplitude, rng)
            members[number, self.land.land] = rain[self.land.land]
        return members
