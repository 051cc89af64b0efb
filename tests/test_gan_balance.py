"""G19 on a toy GAN: silent while both sides learn, loud when one of them has won."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import l1_loss
from toy_gan import GanConfig, GanTask, train_gan

from nbhelpers.training import history
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.gan_balance import GanBalance
from nbhelpers.training.guards.guard import Finding, GuardStop, Step
from nbhelpers.training.guards.rehearsal import rehearse
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.opening import open_run
from nbhelpers.training.task import LossTerm, Phase, Update
from nbhelpers.training.weights import Share


def shown(accuracies: Sequence[float | None], *, ramp: float | None = None, per_epoch: int = 100) -> list[Finding]:
    """What the guard says of a discriminator with these accuracies, taken up again after every step."""
    task = GanTask(GanConfig(adversarial_epochs=9, ramp=ramp))
    phase, guard = task.phases[1], GanBalance()
    found = list(guard.before(rehearse(task, phase, task.modules, step=0)))
    for number, accuracy in enumerate(accuracies):
        update = Update("discriminator", torch.zeros(1), ())
        time = number / per_epoch
        step = Step(task, task.modules, phase, number + 1, time, None, update, 1.0, {}, None, None, (), accuracy)
        found += guard.on_step(step)
        again = GanBalance()
        again.load_state_dict(guard.state_dict())
        guard = again
    return found


@pytest.mark.parametrize(
    ("accuracies", "first"),
    [
        ([0.96] * 200, 150),  # 50 steps of grace, and 10 windows of 10
        ([0.95] * 200, None),
        ([0.54] * 200, 150),
        ([0.55] * 200, None),
        ([1.0, 0.2] * 100, None),  # it is the mean of a window that counts
        ([0.2] * 50 + [0.75] * 150, None),
        ([1.0] * 145 + [0.0] * 5 + [1.0] * 100, 250),  # once in between counts from the beginning
        ([0.99] * 149, None),
        ([None] * 200, None),
    ],
)
def test_limits(accuracies: Sequence[float | None], first: int | None) -> None:
    found = shown(accuracies)
    assert (found[0].step if found else None) == first
    assert {one.severity for one in found} <= {"warn"}


def test_it_says_who_has_won() -> None:
    won, lost = shown([1.0] * 150)[0], shown([0.5] * 150)[0]
    assert "'discriminator' has won" in won.message and won.cure.startswith("Lower the learning rate of 'discrim")
    assert "'discriminator' has lost" in lost.message and lost.cure.startswith("Raise the learning rate of 'discrim")
    assert "between 1.000 and 1.000 of its decisions are right" in won.evidence


def test_weights_that_rise_are_waited_for() -> None:
    assert shown([1.0] * 400, ramp=2.0)[0].step == 200 + 150
    assert shown([1.0] * 340, ramp=2.0) == []


def long(output_dir: Path, **settings: Any) -> list[dict[str, Any]]:
    """208 steps of the second phase."""
    run = train_gan(output_dir, pixel_epochs=1, adversarial_epochs=52, **settings).run
    rows = [row for row in history.read_rows(run.history_file) if row["phase"] == "adversarial"]
    assert all(0 <= row["train_accuracy_discriminator"] <= 1 for row in rows)
    return read_guards(run)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_healthy_gan_raises_nothing(seed: int, tmp_path: Path) -> None:
    assert long(tmp_path, seed=seed) == []


class Three(GanTask):
    """A perceptual stand-in beside the pixels: of three objectives, two share what the adversarial term lacks."""

    def updates(self, batch: Any, phase: Phase) -> Iterator[Update]:
        for update in super().updates(batch, phase):
            if phase.name == "adversarial" and update.optimizer == "net":
                mse, fool = update.terms
                clean = batch[1]
                rough = LossTerm("rough", partial(l1_loss, target=clean), Share(0.4))
                update = dataclasses.replace(update, terms=(mse, rough, fool))
            yield update


def three(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    task = Three(GanConfig(pixel_epochs=1, adversarial_epochs=8, **settings))
    fit(task, run := open_run(task, folder, "run"))
    return read_guards(run)


def test_an_adversarial_term_that_is_inert_or_drowns_the_others(tmp_path: Path) -> None:
    assert three(tmp_path / "healthy") == []
    (found,) = three(tmp_path / "inert", adversarial_weight=1e-6)
    assert (found["name"], found["severity"], found["step"]) == ("gan_balance", "warn", 4 + 15)
    assert "fool of phase 'adversarial' has next to nothing of the gradient" in found["message"]
    assert "median of 11 steps" in found["evidence"]
    assert found["cure"] == "Give fool a target gradient share, e.g. 20 %, instead of its weight 1e-06."
    # Two terms: the share of the third one would be kept.
    run = train_gan(tmp_path, "drowning", pixel_epochs=1, adversarial_epochs=8, adversarial_weight=1e4).run
    drowning = [one for one in read_guards(run) if one["name"] == "gan_balance"]
    assert "fool of phase 'adversarial' has nearly all of the gradient" in drowning[0]["message"]


def test_an_adversarial_share_is_judged_once_it_has_risen(tmp_path: Path) -> None:
    (found,) = three(tmp_path, adversarial_share=0.004)
    assert found["cure"] == "Raise the target gradient share of fool, which is 0.4 %."


def test_an_adversarial_term_that_is_switched_off_is_not_judged(tmp_path: Path) -> None:
    assert [one for one in three(tmp_path, adversarial_weight=0.0) if one["name"] == "gan_balance"] == []


def test_a_learning_rate_a_thousand_times_too_high(tmp_path: Path) -> None:
    (found,) = long(tmp_path, discriminator_lr=10.0)
    assert (found["name"], found["severity"], found["step"]) == ("gan_balance", "warn", 4 + 150)
    assert "has lost" in found["message"]


def test_a_generator_that_cannot_follow(tmp_path: Path) -> None:
    (found,) = long(tmp_path, generator_lr=1e-6, discriminator_lr=0.05)
    assert (found["name"], found["severity"]) == ("gan_balance", "warn")
    assert "has won" in found["message"]


def test_a_discriminator_whose_loss_weighs_nothing(tmp_path: Path) -> None:
    """It gets no gradient, which another guard knows."""
    with pytest.raises(GuardStop, match="dead_gradients"):
        long(tmp_path, discriminator_weight=0.0)
