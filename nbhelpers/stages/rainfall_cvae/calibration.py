"""Whether members differ from one another as much as the truth differs from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science.ensemble import block_means, rank_histogram, ranks, reliability_index, spread, variance_and_error
from nbhelpers.stages.rainfall_cvae.points import Columns, Points
from nbhelpers.training.metrics import Metric, ratio

Sums = NDArray[np.float64]


def spread_sums(members: Tensor, observed: Tensor, land: Tensor, points: Points, factor: int) -> dict[str, Tensor]:
    """``(B, 3)`` at the scale of a pixel, of a coarse cell and of the domain: variance, squared error, how many.

    Means over cells and the domain are those over measured land; of a cell at least half must be.
    """
    by_member = points.members.movedim(-1, 1)
    pixel = [values.sum(1) for values in variance_and_error(by_member, points.observed)]
    found = {"pixel": torch.stack([*pixel, points.measured.sum(1)], -1)}
    valid = land & ~observed.isnan()
    for scale, size in (("block", factor), ("domain", None)):
        means = block_means(members, size, valid[:, None])
        cells = torch.stack([*variance_and_error(means, block_means(observed, size, valid))], -1)
        counted = ~cells.isnan().any(-1, keepdim=True)
        found[scale] = torch.cat([torch.where(counted, cells, 0.0), counted.double()], -1).sum((1, 2))
    return found


def rank_counts(points: Points, days: Sequence[int]) -> Tensor:
    """``(B, K + 1)``: how often each rank came on each day; ties depend on the day's number alone."""
    rows = []
    for day, members, observed, measured in zip(days, points.members, points.observed, points.measured, strict=True):
        generator = torch.Generator(observed.device).manual_seed(day)
        places = ranks(members, observed, generator)
        rows.append(rank_histogram(torch.where(measured, places, -1)[None], points.n_members)[0])
    return torch.stack(rows)


def spread_metrics(sums: Mapping[str, Sums], n_members: int) -> dict[str, Metric]:
    """``spread_skill_pixel``, ``…_block`` and ``…_domain`` of the sums ``(groups, 3)`` of :func:`spread_sums`."""

    def statistic(found: Sums) -> Sums:
        error = np.sqrt(ratio(found[..., 1:]))
        return ratio(np.stack([spread(ratio(found[..., [0, 2]]), n_members), error], -1))

    what = {"pixel": "a pixel", "block": "a coarse cell", "domain": "the domain"}
    return {
        f"spread_skill_{scale}": Metric(
            found[:, None], statistic, ("all",), "one", f"spread / error of the members' mean, of {what[scale]}"
        )
        for scale, found in sums.items()
    }


def rank_metrics(counts: Sums) -> dict[str, Metric]:
    """What is made of the rank counts ``(groups, K + 1)``.

    ``rank_histogram`` has the ranks as labels: how many times as often each came as it should. ``reliability_index``
    (Delle Monache et al. 2006, J. Geophys. Res. 111) sums how far the ranks' shares are from 1/(K + 1), and
    ``reliability_index_chance`` is what it would be if only chance moved them.
    """
    n_ranks = counts.shape[-1]
    n = counts.sum(-1, keepdims=True)
    flat = np.stack([counts, np.broadcast_to(n / n_ranks, counts.shape)], -1)
    by_chance = np.concatenate([counts, counts**2, n * counts, n**2, np.ones_like(n)], -1)
    labels = tuple(str(rank) for rank in range(n_ranks))
    what = f"sum of the {n_ranks} ranks' distances from 1/{n_ranks}"
    return {
        "rank_histogram": Metric(flat, ratio, labels, None, "share of the rank / share in a flat histogram"),
        "reliability_index": Metric(counts[:, None], reliability_index, ("all",), "lower", what),
        "reliability_index_chance": Metric(by_chance[:, None], _chance, ("all",), None, f"{what}, by chance alone"),
    }


def _chance(sums: Sums) -> Sums:
    """Σₖ E|fₖ − E fₖ| with the shares f normally distributed, of the variance that they have as ratios over groups.

    Blocks of days are what is independent; pixels of a day are not, and counting them would give a chance level of 0.
    """
    n_ranks = (sums.shape[-1] - 2) // 3
    count, square, product = (sums[..., i * n_ranks : (i + 1) * n_ranks] for i in range(3))
    n, groups = count.sum(-1), sums[..., -1]
    share = ratio(np.stack(np.broadcast_arrays(count, n[..., None]), -1))
    scatter = square - 2 * share * product + share**2 * sums[..., -2, None]
    deviation = np.sqrt(np.maximum(scatter, 0.0) * 2 / np.pi).sum(-1)
    return ratio(np.stack([deviation, n * np.sqrt(np.maximum(1 - 1 / np.maximum(groups, 1), 0))], -1))


def diversity(columns: Columns) -> Metric:
    """How far two members lie apart on average, over how far a member lies from the truth.

    1 for members that are like the truth, because any two of the K + 1 fields are then alike; 0 for equal members. Both
    are parts of the CRPS: mean|x − y| − ½ mean|x − x'|, of different members.
    """
    return columns.metric("member_absolute crps", _diversity, "one", "mean |member - member| / mean |member - truth|")


def _diversity(sums: Sums) -> Sums:
    return ratio(np.stack([2 * (sums[..., 0] - sums[..., 1]), sums[..., 0]], -1))
