"""How far SAR and optical images agree that belong together, that do not, and that are noise.

No benchmark of its own: ``grounding.py`` takes from it what the score is worth before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbhelpers.science.sar_agreement import COSINE_CHANCE, Agreement, agreement, optical_edges, sar_edges
from nbhelpers.stages.sar_grounding.tiles import Tiles
from nbhelpers.training.metrics import mean_metric, paired_difference
from nbhelpers.training.task import Gate

CHANCE, WITHIN = 0.5, 0.01  # agreement of images that have nothing to do with each other
N_UNRELATED, N_NOISE, LEAST_PAIRS = 1000, 400, 100
NOISE_SIDE = 96  # pixels
BATCH = 50


@dataclass(frozen=True)
class Chance:
    """Pairs that have nothing to do with each other."""

    n: int
    agreement: float  # mean
    error: float  # of the mean: one standard deviation, if pairs were independent
    cosine: float  # mean of the raw cosine of edge maps, which chance correction replaces

    def __str__(self) -> str:
        return f"{self.agreement:.4f} ± {self.error:.4f} (n = {self.n}), raw cosine {self.cosine:.3f}"


@dataclass(frozen=True)
class Paired:
    """One tile's optical image with its own SAR image, and with those of tiles of other places."""

    tile: str  # data set and name
    shows: str  # where it comes from
    place: str  # its spatial block
    own: float  # agreement
    others: tuple[float, ...]


def chance_gates(tiles: Tiles, seed: int) -> list[dict[str, Any]]:
    """Unrelated true images of a folder of tiles, and white noise, each beside the raw cosine."""
    apart, noise = unrelated(tiles, seed=seed), white_noise(seed=seed)
    gates = [
        _chance_gate("unrelated pairs", apart),
        _chance_gate("white noise", noise),
        Gate(
            f"where the raw cosine of the noise is {COSINE_CHANCE:.3f} ± {WITHIN:g}",
            abs(noise.cosine - COSINE_CHANCE) <= WITHIN,
            f"{noise.cosine:.4f}",
        ),
    ]
    return [asdict(gate) for gate in gates]


def _chance_gate(of: str, found: Chance) -> Gate:
    passed = abs(found.agreement - CHANCE) <= WITHIN if found.n >= LEAST_PAIRS else None
    return Gate(f"agreement of {of} is {CHANCE:g} ± {WITHIN:g}", passed, str(found))


def unrelated(tiles: Tiles, *, seed: int, n: int = N_UNRELATED) -> Chance:
    """SAR images beside the true optical ones of other places: up to ``n`` pairs, none of them twice."""
    names = sorted(tiles.block)
    rng, pairs = np.random.default_rng(seed), []
    for number in rng.permutation(len(names) ** 2):
        one, other = (names[index] for index in divmod(int(number), len(names)))
        if tiles.block[one] != tiles.block[other]:
            pairs.append((one, other))
        if len(pairs) == n:
            break
    found = []
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        s1 = torch.stack([torch.from_numpy(tiles.s1(one).copy()) for one, _ in part])
        s2 = torch.stack([torch.from_numpy(tiles.s2(other).copy()) for _, other in part])
        found.append(_score(s1, s2))
    return _chance(found)


def white_noise(*, seed: int, n: int = N_NOISE) -> Chance:
    """Backscatter and reflectance that are white noise."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(0, n, BATCH):
        s1, s2 = (torch.randn(BATCH, c, NOISE_SIDE, NOISE_SIDE, generator=generator) for c in (2, 4))
        found.append(_score(3 * s1 - 12, 0.01 * s2 + 0.1))
    return _chance(found)


def _score(s1: Tensor, s2: Tensor) -> Agreement:
    return agreement(sar_edges(s1), optical_edges(s2))


def _chance(found: Sequence[Agreement]) -> Chance:
    score, cosine = (torch.cat([getattr(one, name)[one.known] for one in found]) for name in ("score", "cosine"))
    error = float(score.std()) / math.sqrt(len(score))
    return Chance(len(score), float(score.mean()), error, float(cosine.mean()))


def real_pairs(data: Mapping[str, Tiles]) -> list[Paired]:
    """Every tile of the data sets, all of one size, against the SAR images of all tiles of other places."""
    rows = [
        (f"{title}/{name}", f"{title} {tiles.block[name]}", tiles.about[name].source, tiles.s1(name), tiles.s2(name))
        for title, tiles in data.items()
        for name in sorted(tiles.block)
    ]
    s1 = torch.stack([torch.from_numpy(row[3].copy()) for row in rows])
    found = []
    for index, (tile, place, shows, _, s2) in enumerate(rows):
        image = torch.from_numpy(s2.copy())[None].expand(len(rows), -1, -1, -1)
        scores = _score(s1, image).score.tolist()
        others = tuple(score for score, row in zip(scores, rows, strict=True) if row[1] != place)
        found.append(Paired(tile, shows, place, scores[index], others))
    return found


def pairs_gate(found: Sequence[Paired]) -> Gate:
    """True pairs against shuffled ones, over places."""
    places = sorted({one.place for one in found})

    def metric(values: Sequence[float]) -> Any:
        sums, counts = np.zeros((len(places), 1)), np.zeros((len(places), 1))
        for one, value in zip(found, values, strict=True):
            sums[places.index(one.place)] += value
            counts[places.index(one.place)] += 1
        return mean_metric(sums, counts, labels=("all",), better="higher", units="1")

    own, shuffled = metric([one.own for one in found]), metric([fmean(one.others) for one in found])
    difference = paired_difference(own, shuffled)
    low, high = difference["ci95"]
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    value = f"{own.value:.3f} and {shuffled.value:.3f}: {difference['value']:+.3f}{interval}, n = {len(places)} places"
    return Gate("true pairs agree more than shuffled ones", difference["is_better"], value)


def exceptions(found: Sequence[Paired]) -> list[str]:
    """How many tiles agree more with their own SAR image than with any other, and which do not, a sentence each."""
    beaten = [one for one in found if one.own <= max(one.others)]
    said = [
        f"{len(found) - len(beaten)} of {len(found)} tiles agree more with their own SAR image than with any of "
        f"other places, {sum(one.own > fmean(one.others) for one in found)} more than with those on average."
    ]
    return said + [
        f"Not {one.tile} ({one.shows}, {one.place}): {one.own:.3f}, others {fmean(one.others):.3f} on average, up to "
        f"{max(one.others):.3f}, {sum(score >= one.own for score in one.others)} of {len(one.others)} not below it."
        for one in beaten
    ]
