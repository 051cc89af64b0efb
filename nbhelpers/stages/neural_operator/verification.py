"""Scores of forecasts, one step ahead and in a rollout, as sums per simulation that stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbhelpers.science import spectra
from nbhelpers.stages.neural_operator.config import BETTER
from nbhelpers.stages.neural_operator.domain import Domain, enstrophy, kinetic_energy
from nbhelpers.stages.neural_operator.field_losses import SILENT, divergence_penalty
from nbhelpers.stages.neural_operator.spectral_losses import fluctuation, shell_log_errors
from nbhelpers.training.metrics import Metric, mean_metric, ratio
from nbhelpers.training.task import Evaluation, Spread

CORRELATED = 0.8  # a forecast counts as correlated with the truth above this
BLOWN_UP = 10.0  # times the mean square of the truth, in model units
HELD = 1e3  # model units (standard deviations) at which a rollout that runs away is held, so that scores stay finite
DECIBEL = 10 / math.log(10)

# All scores; those of a rollout are given for each of its steps. `divergence`, `energy_ratio` and `enstrophy_ratio` are
# there where the data have such a thing (see :mod:`domain`).
METRICS = tuple(BETTER)
# Which of them are given for each published test set too, as `test_set_...`: a test of several is not one number.
BY_TEST_SET = ("field_error", "spectrum_error_high", "rollout_rel_l2")


@dataclass(frozen=True)
class Forecast:
    """What a predictor makes of a batch of windows, in model units, ``(B, T, C, H, W)`` each."""

    one_step: Tensor  # every frame from the true ones before it
    rollout: Tensor  # every frame from the predictor's own


def metrics_of(domain: Domain) -> tuple[str, ...]:
    """Those of METRICS that data in this domain have."""
    absent = {
        "divergence": domain.velocity is None,
        "energy_ratio": not domain.has_energy,
        "enstrophy_ratio": not domain.has_enstrophy,
    }
    return tuple(name for name in METRICS if not absent.get(name))


class Verification:
    """Adds up forecasts against the truth.

    Args:
        steps: of the rollout.
        test_sets: the published test set of each simulation, where there are such.
    """

    def __init__(self, domain: Domain, *, steps: int, test_sets: Mapping[str, str] | None = None):
        self._domain, self._steps, self._test_sets = domain, steps, test_sets or {}
        self._sums: dict[str, dict[str, NDArray[np.float64]]] = {}  # by simulation, by name: (labels, 2)
        self._ranges: dict[str, list[Tensor]] = {"prediction": [], "target": []}  # low, high, sum, sum of squares, n

    def add(self, forecast: Forecast, target: Tensor, simulations: Sequence[str], valid: Tensor | None = None) -> None:
        """Take in one batch.

        Args:
            target: ``(B, T, C, H, W)`` in model units.
            simulations: the simulation of each window.
            valid: ``(B, H, W)`` bool, False inside obstacles.
        """
        one, rollout = forecast.one_step.float(), forecast.rollout.float()
        blown = ~torch.isfinite(rollout)
        rollout = torch.where(blown, HELD, rollout.clamp(-HELD, HELD))
        one = torch.where(torch.isfinite(one), one.clamp(-HELD, HELD), HELD)
        rows = self._of_one_step(one, target, valid) | self._of_rollout(rollout, target, valid)
        for index, name in enumerate(simulations):
            mine = self._sums.setdefault(name, {})
            for key, (sums, counts) in rows.items():
                pair = torch.stack([sums[index].reshape(-1), counts[index].reshape(-1)], -1).double().cpu().numpy()
                mine[key] = mine.get(key, 0.0) + pair
        for key, field in (("prediction", one), ("target", target)):
            field = field if valid is None else field[valid[:, None, None].expand_as(field)]
            low, high = field.aminmax()
            moments = [low, high, field.double().sum(), field.double().square().sum(), torch.tensor(field.numel())]
            self._ranges[key].append(torch.stack([moment.double().cpu() for moment in moments]))

    def _of_one_step(self, one: Tensor, target: Tensor, valid: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
        error, counted = _relative_squares(one, target, valid)  # (B, T, C)
        shells, has_spectrum = self._shell_errors(one, target, valid)  # (B, T, C, K), (B, T, C)
        rows = {
            "field_error": ((error * counted).sum((1, 2)), counted.sum((1, 2))),
            "rel_l2": _count_all(_relative_norm(one, target, valid), (1,)),
            "left_out": ((~counted).float().sum((1, 2)), torch.ones_like(counted).sum((1, 2))),
        }
        for name, part in spectra.bands(shells.shape[-1]).items():
            mine = shells[..., part] * has_spectrum[..., None]
            rows[f"spectrum/{name}"] = (mine.sum((1, 2, 3)), has_spectrum.sum((1, 2)) * mine.shape[-1])
        if self._domain.velocity is not None:
            rows["divergence"] = _count_all(self._divergence(one), (1,))
        return rows

    def _of_rollout(self, rollout: Tensor, target: Tensor, valid: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
        error, counted = _relative_squares(rollout, target, valid)
        shells, has_spectrum = self._shell_errors(rollout, target, valid)
        high = shells[..., spectra.bands(shells.shape[-1])["high"]].mean(-1)
        each = torch.ones_like(error[:, :, 0])
        squares = [_where_valid(field, valid).square().sum((1, 2, 3, 4)) for field in (rollout - target, target)]
        norm = (squares[0] / squares[1].clamp(min=SILENT)).sqrt()
        means = [_mean_square(field, valid) for field in (rollout, target)]  # (B, T)
        rows = {
            "rollout_field_error": ((error * counted).sum(2), counted.sum(2)),
            "rollout_rel_l2": (_relative_norm(rollout, target, valid), each),
            "rollout_spectrum_error_high": ((high * has_spectrum).sum(2), has_spectrum.sum(2)),
            "trajectory_rel_l2": (norm, torch.ones_like(norm)),
            "correlation_time": _count_all(_correlated(rollout, target, valid).float().cumprod(1).sum(1), ()),
            "blow_up_rate": _count_all((means[0] > BLOWN_UP * means[1]).any(1).float(), ()),
        }
        if self._domain.has_energy:
            rows["energy_ratio"] = self._both(kinetic_energy, rollout, target, valid)
        if self._domain.has_enstrophy:
            rows["enstrophy_ratio"] = self._both(enstrophy, rollout, target, valid)
        return rows

    def _both(
        self, measure: Callable[..., Tensor], rollout: Tensor, target: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return measure(rollout, self._domain, valid), measure(target, self._domain, valid)

    def _shell_errors(self, field: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        domain = self._domain
        return shell_log_errors(field, target, lengths=domain.lengths, window=domain.window, valid=valid)

    def _divergence(self, field: Tensor) -> Tensor:
        """``(B, T)`` squared divergence relative to the gradients."""
        velocity = self._domain.velocity_of(field)
        each = [divergence_penalty(frame[None, None], lengths=self._domain.lengths) for frame in velocity.flatten(0, 1)]
        return torch.stack(each).reshape(field.shape[:2])

    def evaluation(self) -> Evaluation:
        """Everything that was added, one group a simulation."""
        groups = list(self._sums)
        stacked = {
            key: np.stack([np.asarray(self._sums[group][key]) for group in groups]) for key in self._sums[groups[0]]
        }
        steps = tuple(f"step {step}" for step in range(1, self._steps + 1))
        bands = np.concatenate([stacked.pop(f"spectrum/{name}") for name in spectra.BANDS], axis=1)
        metrics = {
            "spectrum_error": _metric(bands, spectra.BANDS, "lower", "(ln E)^2"),
            "spectrum_error_high": _metric(bands[:, 2:], ("high",), "lower", "(ln E)^2"),
            "lsd": Metric(bands, _decibel, spectra.BANDS, "lower", "dB"),
        }
        for key, sums in stacked.items():
            better, units = _KIND.get(key, ("lower", "1"))
            metrics[key] = _metric(sums, steps if sums.shape[1] > 1 else ("all",), better, units)
        ordered = {name: metrics[name] for name in METRICS if name in metrics}
        if metrics["left_out"].value > 0:
            ordered["left_out"] = metrics["left_out"]
        ordered |= self._by_test_set(groups, ordered)
        return Evaluation(ordered, {name: _spread(torch.stack(rows)) for name, rows in self._ranges.items()})

    def _by_test_set(self, groups: Sequence[str], metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        """The scores BY_TEST_SET with the published test sets as their labels, where there are several."""
        names = tuple(dict.fromkeys(self._test_sets.values()))
        if len(names) < 2:
            return {}
        own = np.array([[self._test_sets.get(group) == name for name in names] for group in groups])  # (groups, sets)
        found = {}
        for name in BY_TEST_SET:
            sums = metrics[name].sums.sum(1, keepdims=True) * own[..., None]  # a simulation counts in its own set
            found[f"test_set_{name}"] = replace(metrics[name], sums=sums, labels=names)
        return found


_KIND = {
    "left_out": (None, "share of all frames and channels"),  # silent ones, which have no relative error
    "correlation_time": ("higher", "frames"),
    "energy_ratio": ("one", "1"),
    "enstrophy_ratio": ("one", "1"),
}


def _metric(sums: NDArray[np.float64], labels: Sequence[str], better: str | None, units: str) -> Metric:
    return mean_metric(sums[..., 0], sums[..., 1], labels=tuple(labels), better=better, units=units)


def _decibel(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return DECIBEL * np.sqrt(ratio(sums))


def _spread(rows: Tensor) -> Spread:
    total, squares, n = rows[:, 2:].sum(0).tolist()
    return Spread(float(rows[:, 0].min()), float(rows[:, 1].max()), math.sqrt(max(0.0, squares / n - (total / n) ** 2)))


def _where_valid(field: Tensor, valid: Tensor | None) -> Tensor:
    return field if valid is None else torch.where(valid[:, None, None], field, 0.0)


def _relative_squares(field: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(B, T, C)`` relative squared errors and which of them are defined."""
    squares = _where_valid(target, valid).square().mean((-2, -1))
    counted = squares > SILENT
    error = _where_valid(field - target, valid).square().mean((-2, -1))
    return error / torch.where(counted, squares, 1.0) * counted, counted


def _relative_norm(field: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """``(B, T)`` relative L2 error over all channels."""
    error, norm = (_where_valid(x, valid).square().sum((-3, -2, -1)) for x in (field - target, target))
    return (error / norm.clamp(min=SILENT)).sqrt()


def _mean_square(field: Tensor, valid: Tensor | None) -> Tensor:
    return _where_valid(field, valid).square().mean((-3, -2, -1))


def _correlated(field: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """``(B, T)`` whether the correlation over space and channels is above CORRELATED."""
    x, y = (fluctuation(one, valid).flatten(2) for one in (field, target))
    return (x * y).sum(-1) > CORRELATED * x.norm(dim=-1) * y.norm(dim=-1)


def _count_all(values: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sums over the given axes, and how many values went into each."""
    ones = torch.ones_like(values)
    return (values.sum(over), ones.sum(over)) if over else (values, ones)
