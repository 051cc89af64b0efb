"""What the materials of simulated landscapes return to Sentinel-1's radar, and how high they stand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nbhelpers.science.landscape.regions import reflectances

# C-band backscatter (sigma nought, VV and VH, dB) at an incidence angle of 38 degrees, typical of mid-latitude scenes
# (magnitudes as in Ulaby and Dobson, 1989, "Handbook of Radar Scattering Statistics for Terrain"), and height in m.
# Soils differ in colour only, grass and ripe grain hardly for the radar, woods less than their colours do; roofs
# return the double bounce between wall and street. What stands high throws radar shadows.
MATERIALS = {
    "soil_dark": (-13.0, -22.0, 0.0),
    "soil_light": (-13.0, -22.0, 0.0),
    "soil_red": (-13.0, -22.0, 0.0),
    "green": (-9.5, -15.0, 1.0),
    "grass": (-14.0, -20.5, 0.2),
    "ripe": (-16.0, -21.0, 0.8),
    "stubble": (-11.0, -20.0, 0.1),
    "deciduous": (-9.0, -14.5, 18.0),
    "conifer": (-9.6, -15.2, 20.0),
    "shrub": (-11.5, -17.5, 2.0),
    "water": (-21.0, -32.0, 0.0),
    "sand": (-16.0, -26.0, 0.0),
    "asphalt": (-18.0, -27.0, 0.0),
    "gravel": (-14.0, -23.0, 0.0),
    "roof_red": (3.0, -6.0, 7.0),
    "roof_grey": (4.0, -5.0, 7.0),
    "roof_white": (9.0, -4.0, 8.0),
    "cloud": (0.0, 0.0, 0.0),  # never painted on these channels: the radar sees through it
}

# Standard deviation, in logarithms, of VV, VH and height from parcel to parcel: tillage and moisture, which a camera
# hardly sees; 0.25 are 1.1 dB.
SPREAD = (0.25, 0.22, 0.05)


def palette(bands: tuple[str, ...], *, wind_db: float = 0.0) -> Mapping[str, NDArray[np.float32]]:
    """(B + 3,) channels of each material: reflectance in ``bands``, then power in VV and VH, then height in m.

    Args:
        wind_db: added to the backscatter of water, which is smooth without wind.
    """
    found = {}
    for name, optical in reflectances(bands).items():
        vv, vh, height = MATERIALS[name]
        rough = wind_db if name == "water" else 0.0
        radar = np.array([10 ** ((vv + rough) / 10), 10 ** ((vh + rough / 2) / 10), height], np.float32)
        found[name] = np.concatenate((optical, radar))
    return found
