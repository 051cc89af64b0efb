"""How often it rains, how often it rains hard, how much in all; and whether hard rain falls where members put it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nbhelpers.science.extremes import sedi
from nbhelpers.stages.rainfall_cvae.points import FAR_TAIL, TAIL, WET_LEVELS, Columns, counted
from nbhelpers.training.metrics import Metric, ratio

Sums = NDArray[np.float64]


def frequency_metrics(columns: Columns, thresholds: Mapping[str, float]) -> dict[str, Metric]:
    """Frequencies over all land pixel-days, of members as the mean over members.

    For 0.1 and 1 mm/day ``wet_frequency_01`` and ``wet_frequency_1``, predicted minus observed in percentage points,
    and each of both (``…_pred``, ``…_obs``) as a share; ``extreme_freq_pred`` and ``extreme_freq_obs``, shares of at
    least P95; ``mass_bias``, the total predicted over the total observed, minus 1.
    """
    metrics: dict[str, Metric] = {}
    for name, mm in WET_LEVELS.items():
        what = f"of land pixel-days >= {mm:g} mm/day"
        metrics |= {
            f"wet_frequency_{name}": columns.metric(
                f"wet_{name}_pred wet_{name}_obs n", _points, None, f"percentage points {what}, predicted - observed"
            ),
            f"wet_frequency_{name}_pred": columns.metric(f"wet_{name}_pred n", ratio, None, f"share {what}"),
            f"wet_frequency_{name}_obs": columns.metric(f"wet_{name}_obs n", ratio, None, f"share {what}"),
        }
    what = f"share of land pixel-days >= P95 = {thresholds[TAIL]:.3g} mm/day, {counted(columns, TAIL)}"
    return metrics | {
        "extreme_freq_pred": columns.metric(f"{TAIL}_pred n", ratio, None, what),
        "extreme_freq_obs": columns.metric(f"{TAIL}_obs n", ratio, None, what),
        "mass_bias": columns.metric("rain_pred y", _excess, None, "share of the observed rain"),
    }


def sedi_metrics(columns: Columns, thresholds: Mapping[str, float]) -> dict[str, Metric]:
    """``sedi_p95`` and ``sedi_p99``: each member taken as a yes/no forecast, the counts of all of them added up.

    The median would say yes to almost no extreme, by construction; a member is what a user of the samples gets. Read it
    beside the frequency of extremes: forecasting too many of them flatters it.
    """
    return {
        f"sedi_{name.lower()}": columns.metric(
            f"{name}_hits {name}_pred {name}_obs n",
            _sedi,
            "higher",
            f"single members, >= {name} = {thresholds[name]:.3g} mm/day, {counted(columns, name)}",
        )
        for name in (TAIL, FAR_TAIL)
    }


def _points(sums: Sums) -> Sums:
    return 100 * ratio(np.stack([sums[..., 0] - sums[..., 1], sums[..., 2]], -1))


def _excess(sums: Sums) -> Sums:
    return ratio(sums) - 1


def _sedi(sums: Sums) -> Sums:
    hits, predicted, observed, n = np.moveaxis(sums, -1, 0)
    return sedi(np.stack([hits, observed - hits, predicted - hits, n - predicted - observed + hits], -1))
