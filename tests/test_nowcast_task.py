"""The nowcast task: what the untrained model forecasts, and which terms its loss has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sevir
import torch

from nbhelpers.core.errors import UserError
from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.task import NowcastTask


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events with a sector that is missing now and then."""
    folder = tmp_path_factory.mktemp("storms")
    events = sevir.storms(8, n_frames=12, height=48, width=64)
    for frames in events.values():
        frames[3:7, 10:20, 5:30] = 255
    sevir.write_sevir(folder, events)
    return folder


def task_on(folder: Path, **changes: object) -> NowcastTask:
    settings = {"n_in": 5, "n_out": 3, "crop": 0, "lambda_perc": 0.0, "lpips_weights": "random", "max_pct_missing": 1.0}
    return NowcastTask(Config.for_profile("smoke", **settings | changes), folder)


@pytest.mark.parametrize(
    ("first_guess", "null"), [("advection", "advection"), ("persistence", "persistence"), ("none", None)]
)
def test_an_untrained_model_forecasts_its_first_guess(storms: Path, first_guess: str, null: str | None) -> None:
    task = task_on(storms, first_guess=first_guess)
    for batch in task.batches("test", 0):
        forecast = task.forecast(batch)
        assert forecast.shape == (*batch.frames.shape[:1], 3, 48, 64)
        if null is None:
            assert not torch.allclose(forecast, task.nulls["advection"](batch), atol=0.05)
        else:
            torch.testing.assert_close(forecast, task.nulls[null](batch))


def test_every_weight_of_a_model_that_moves_with_the_rain_learns(storms: Path) -> None:
    task = task_on(storms)
    unet, (phase,) = task.modules["unet"], task.phases
    for _ in range(2):  # the head starts at zero: what is before it learns from the second step on
        (update,) = task.updates(next(iter(task.batches("train", 0))), phase)
        unet.zero_grad()
        update.terms[0].fn(update.prediction).backward()
        phase.optimizers["unet"].step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in unet.parameters())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "pixel"),
        ({"emphasis": 0.0, "even_leads": False}, "pixel"),
        ({"emphasis": 0.0, "even_leads": False, "mae_weight": 0.0}, "mse"),
        ({"even_leads": False, "mae_weight": 0.0}, "pixel"),
    ],
)
def test_the_pixel_term_is_called_mse_where_it_is_just_that(
    storms: Path, changes: dict[str, object], name: str
) -> None:
    task = task_on(storms, **changes)
    batch = next(iter(task.batches("train", 0)))
    (update,) = task.updates(batch, task.phases[0])
    (term,) = update.terms
    assert (term.name, term.weight) == (name, 1.0)
    frames = batch.frames[:, 5:].double().numpy()
    error = (update.prediction.detach().double().numpy() - frames / 255)[frames != 255]
    config, value = task.config, float(term.fn(update.prediction).detach())
    if not config.emphasis and not config.even_leads:
        expected = np.mean(error**2) + config.mae_weight * np.mean(np.abs(error))
        assert value == pytest.approx(expected, rel=1e-4)
    else:
        assert value != pytest.approx(np.mean(error**2), rel=1e-2)


@pytest.mark.parametrize("name", ["emphasis", "mae_weight"])
def test_weights_below_zero_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is -1.0, expected 0 or more"):
        Config.for_profile("smoke", **{name: -1.0})
