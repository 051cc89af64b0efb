"""What simulated landscapes are made of: materials, crops, and regions of Europe that differ in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbhelpers.science.sentinel2 import BANDS

# Surface reflectance in percent of each material in `sentinel2.BANDS`, typical of mid-latitude scenes.
MATERIALS = {
    "soil_dark": (3.0, 3.4, 4.8, 6.2, 7.6, 8.8, 9.8, 11.0, 12.0, 12.5, 19.0, 16.5),
    "soil_light": (6.0, 8.0, 11.5, 15.0, 17.5, 19.5, 21.5, 24.0, 25.5, 26.0, 35.0, 30.0),
    "soil_red": (5.5, 7.0, 10.0, 16.0, 18.5, 20.5, 22.5, 25.0, 26.5, 27.0, 37.0, 31.0),
    "green": (1.8, 2.3, 6.6, 2.4, 8.5, 34.0, 45.0, 50.0, 51.5, 51.0, 20.0, 9.0),
    "grass": (2.6, 3.6, 8.4, 4.6, 12.0, 32.0, 39.0, 42.5, 44.5, 44.0, 24.0, 12.5),
    "ripe": (5.0, 7.0, 11.5, 13.5, 18.0, 26.0, 29.5, 32.0, 34.0, 34.0, 34.0, 22.0),
    "stubble": (9.0, 12.8, 18.0, 21.8, 23.5, 28.5, 31.5, 34.0, 36.0, 36.0, 40.0, 31.0),
    "deciduous": (1.6, 1.9, 4.2, 2.1, 7.0, 25.0, 32.0, 35.0, 37.0, 36.5, 15.5, 6.8),
    "conifer": (1.4, 1.7, 3.0, 2.0, 4.8, 13.5, 17.0, 18.5, 19.8, 19.5, 8.8, 4.2),
    "shrub": (2.3, 3.0, 4.8, 4.9, 8.5, 16.0, 19.0, 21.0, 23.0, 23.0, 19.0, 11.5),
    "water": (2.6, 2.3, 2.0, 1.3, 1.2, 1.0, 0.9, 0.8, 0.7, 0.7, 0.4, 0.3),
    "sand": (13.0, 17.0, 22.0, 26.0, 28.0, 29.5, 31.0, 33.0, 34.0, 34.0, 42.0, 38.0),
    "asphalt": (7.0, 8.2, 9.6, 10.6, 11.5, 12.5, 13.2, 14.0, 14.5, 15.0, 16.5, 14.5),
    "gravel": (8.0, 10.0, 13.0, 15.5, 17.5, 20.0, 21.5, 23.5, 24.5, 25.0, 30.0, 26.0),
    "roof_red": (5.5, 6.5, 8.5, 15.0, 17.0, 18.5, 19.5, 20.5, 21.5, 22.0, 26.0, 25.0),
    "roof_grey": (8.5, 10.0, 11.0, 11.8, 12.2, 12.8, 13.4, 14.0, 14.5, 15.0, 17.0, 16.5),
    "roof_white": (18.0, 22.0, 24.0, 25.0, 25.5, 26.5, 27.0, 27.5, 28.0, 28.0, 27.0, 24.0),
    "cloud": (52.0, 52.0, 52.0, 53.0, 54.0, 55.0, 56.0, 57.0, 57.0, 45.0, 42.0, 33.0),
}
# A crop and what shows through it; then how much of the latter, on average.
CROPS = {
    "bare": ("soil", "soil_dark", 0.25),
    "sprouting": ("soil", "green", 0.40),
    "green": ("green", "soil", 0.12),
    "grass": ("grass", "ripe", 0.20),
    "meadow": ("grass", "green", 0.50),
    "ripe": ("ripe", "green", 0.25),
    "stubble": ("stubble", "soil", 0.30),
}


# How common roofs are in villages and on farms, whose sheds are bright.
ROOFS = {"roof_red": (0.50, 0.30), "roof_grey": (0.45, 0.35), "roof_white": (0.05, 0.35)}


@dataclass(frozen=True)
class Region:
    """What makes landscapes of a part of Europe alike; lengths in metres, shares of the land."""

    name: str
    season: str  # month and day of the pictures, MMDD
    crops: Mapping[str, float]  # of CROPS, in any unit
    soils: tuple[str, str]  # of MATERIALS; parcels lie between the two
    soil_share: float  # of the second soil, on average
    block: float  # of land between two lanes
    strip: tuple[float, float]  # width and length of a parcel
    turn: float  # degrees that blocks are turned by against each other (standard deviation)
    hedges: float  # share of the parcels' edges
    woods: float
    conifers: float  # share of the woods
    woods_follow_parcels: float = 0.5  # 0: fractal edges; 1: mostly parcel by parcel
    heath: float = 0.0
    lakes: float = 0.0
    rivers: float = 0.5  # across a scene, on average
    roads: float = 1.5  # across a scene, on average
    villages: float = 0.2  # per square kilometre; farms are ten times as many
    relief: float = 0.0  # standard deviation of the shading


REGIONS = (
    Region(
        name="loess plain",
        season="0613",
        crops={"stubble": 3, "bare": 2, "ripe": 2, "green": 3.5, "sprouting": 1.5, "grass": 1},
        soils=("soil_light", "soil_dark"),
        soil_share=0.3,
        block=700,
        strip=(95, 420),
        turn=14,
        hedges=0.10,
        woods=0.12,
        conifers=0.3,
        woods_follow_parcels=0.7,
        villages=0.22,
        relief=0.02,
    ),
    Region(
        name="wet pasture",
        season="0617",
        crops={"grass": 3, "meadow": 6, "green": 2, "bare": 0.3, "ripe": 0.6},
        soils=("soil_light", "soil_dark"),
        soil_share=0.5,
        block=520,
        strip=(200, 230),
        turn=25,
        hedges=0.75,
        woods=0.03,
        conifers=0.5,
        heath=0.03,
        lakes=0.004,
        villages=0.14,
        relief=0.02,
    ),
    Region(
        name="boreal lakes",
        season="0924",
        crops={"grass": 4, "bare": 1, "stubble": 0.4, "meadow": 1},
        soils=("soil_dark", "soil_light"),
        soil_share=0.2,
        block=700,
        strip=(150, 300),
        turn=35,
        hedges=0.05,
        woods=0.72,
        conifers=0.75,
        woods_follow_parcels=0.3,
        heath=0.30,
        lakes=0.12,
        roads=1.0,
        villages=0.03,
        relief=0.05,
    ),
    Region(
        name="dry plateau",
        season="0821",
        crops={"ripe": 3, "stubble": 1.0, "bare": 3, "green": 0.4, "grass": 0.3},
        soils=("soil_red", "soil_light"),
        soil_share=0.4,
        block=900,
        strip=(220, 400),
        turn=30,
        hedges=0.10,
        woods=0.08,
        conifers=0.2,
        heath=0.35,
        lakes=0.005,
        villages=0.08,
        relief=0.05,
    ),
    Region(
        name="dense lowland",
        season="0526",
        crops={"meadow": 3, "green": 3, "bare": 2, "sprouting": 2, "grass": 2},
        soils=("soil_light", "soil_dark"),
        soil_share=0.6,
        block=520,
        strip=(75, 240),
        turn=20,
        hedges=0.25,
        woods=0.10,
        conifers=0.4,
        woods_follow_parcels=0.8,
        lakes=0.005,
        roads=3.0,
        villages=0.6,
    ),
    Region(
        name="alpine foreland",
        season="0709",
        crops={"meadow": 4, "green": 3, "ripe": 1.5, "bare": 0.6, "grass": 2},
        soils=("soil_light", "soil_dark"),
        soil_share=0.5,
        block=560,
        strip=(100, 260),
        turn=30,
        hedges=0.10,
        woods=0.36,
        conifers=0.65,
        lakes=0.012,
        rivers=1.0,
        villages=0.25,
        relief=0.12,
    ),
    Region(
        name="black earth",
        season="0801",
        crops={"green": 4, "stubble": 2.0, "bare": 2, "ripe": 0.8, "sprouting": 0.6},
        soils=("soil_dark", "soil_light"),
        soil_share=0.3,
        block=1900,
        strip=(330, 900),
        turn=5,
        hedges=0.08,
        woods=0.03,
        conifers=0.1,
        woods_follow_parcels=0.8,
        villages=0.06,
        rivers=0.7,
    ),
    Region(
        name="narrow strips",
        season="0716",
        crops={"ripe": 3, "stubble": 1.5, "green": 2, "grass": 2.5, "bare": 1},
        soils=("soil_light", "soil_red"),
        soil_share=0.4,
        block=560,
        strip=(36, 240),
        turn=40,
        hedges=0.15,
        woods=0.20,
        conifers=0.1,
        heath=0.10,
        villages=0.30,
        relief=0.08,
    ),
)


def reflectances(bands: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """(B,) surface reflectance of each material in ``bands``."""
    columns = [BANDS.index(band) for band in bands]
    return {name: np.asarray(values, np.float32)[columns] / np.float32(100) for name, values in MATERIALS.items()}
