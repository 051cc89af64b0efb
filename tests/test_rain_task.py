"""The rainfall task: what the model puts out on any grid, what its members depend on, and what is scored."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from rain_run import TAIL_MAE, batch_of, days_of, some_days, task_on
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.rainfall_cvae import task as task_module
from nbhelpers.stages.rainfall_cvae.batches import Batch
from nbhelpers.stages.rainfall_cvae.config import PROFILES, Config
from nbhelpers.stages.rainfall_cvae.copula import Correlation
from nbhelpers.stages.rainfall_cvae.likelihood import Hurdle
from nbhelpers.stages.rainfall_cvae.model import Cvae, grid_steps
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.training.task import Update

BOTH = pytest.mark.parametrize("likelihood", [{}, TAIL_MAE], ids=["hurdle_gamma", "tail_mae"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_days(tmp_path_factory.mktemp("data") / "rain", n=(48, 20, 20))


def update_of(task: RainfallTask, batch: Batch, seed: int = 0) -> Update:
    torch.manual_seed(seed)
    (update,) = task.updates(batch, task.phases[0])
    return update


def roughly_trained(task: RainfallTask) -> RainfallTask:
    """As if it had learnt something: every part of the network has a say, and noise is correlated."""
    generator = torch.Generator().manual_seed(5)
    cvae = task.sampler.cvae
    with torch.no_grad():
        for tensor in cvae.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        values = cvae.correlation.clone()
        values[:3] = Correlation(0.1, 2.0, 1.0).as_tensor()[:3]
        cvae.correlation.copy_(values)
    cvae.eval()
    return task


# --- the network -----------------------------------------------------------------------------------------------------


def network(factor: int, coarse: tuple[int, int], d_z: int = 2, **sizes: Any) -> Cvae:
    statics = torch.randn(3, factor * coarse[0], factor * coarse[1])
    sizes = {"base_filters": 4, "d_y": 8, "dropout": 0.0, **sizes}
    return Cvae(5, statics, factor=factor, n_out=4, d_z=d_z, **sizes)


def forward(cvae: Cvae, coarse: tuple[int, int], **changed: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    n, (h, w) = 2, coarse
    shape = (n, h * cvae.factor, w * cvae.factor)
    given = {
        "x": torch.randn(n, 5, h, w, generator=generator),
        "rain": torch.rand(shape, generator=generator),
        "measured": torch.ones(shape, dtype=torch.bool),
        "from_prior": torch.zeros(n, dtype=torch.bool),
        "noise": torch.randn(n, cvae.d_z, h, w, generator=generator),
        **changed,
    }
    return cvae(**given, statics=cvae.pyramid(cvae.statics.expand(n, -1, -1, -1)))


@pytest.mark.parametrize("coarse", [(13, 11), (3, 2), (1, 1)])
@pytest.mark.parametrize("factor", [2, 3, 4, 5, 12])
@pytest.mark.parametrize("d_z", [2, 0])
def test_any_grid(factor: int, coarse: tuple[int, int], d_z: int) -> None:
    assert math.prod(grid_steps(factor)) == factor
    cvae = network(factor, coarse, d_z)
    out, latent = forward(cvae, coarse)
    assert out.shape == (2, 4, factor * coarse[0], factor * coarse[1]) and out.isfinite().all()
    assert latent.shape == (2, 4 * d_z, *coarse), "the latent is a map on the coarse grid"
    (out.square().mean() + latent.square().sum()).backward()
    missing = [name for name, tensor in cvae.named_parameters() if tensor.grad is None]
    assert not missing


def test_latent_and_weather_both_reach_the_output_where_they_are() -> None:
    """Over several untrained networks: each by itself may be blind to its corner."""
    of_latent, of_weather = np.zeros(2), np.zeros(2)  # near the changed cell, and at the other end
    noise, x = torch.zeros(2, 2, 5, 6), torch.zeros(2, 5, 5, 6)
    moved, other = noise.clone(), x.clone()
    moved[0, :, 0, 0] = 3.0
    other[0, :, 4, 5] = 3.0
    for seed in range(8):
        torch.manual_seed(seed)
        cvae = network(4, (5, 6)).eval()
        with torch.no_grad():
            plain = forward(cvae, (5, 6), noise=noise, x=x)[0]
            latent = (forward(cvae, (5, 6), noise=moved, x=x)[0] - plain).abs().sum(1)
            weather = (forward(cvae, (5, 6), noise=noise, x=other)[0] - plain).abs().sum(1)
        assert not latent[1].any() and not weather[1].any(), "another day"
        assert weather[0, :4, :4].any(), "how moist the whole day is says something of every place"
        of_latent += (float(latent[0, :8, :8].mean()), float(latent[0, -4:, -4:].mean()))
        of_weather += (float(weather[0, -4:, -4:].mean()), float(weather[0, :4, :4].mean()))
    assert of_latent[0] > 3 * of_latent[1] and of_weather[0] > 1.5 * of_weather[1], (of_latent, of_weather)


def test_a_share_of_the_days_draws_its_latent_from_the_prior() -> None:
    """Their output does not know the rain of the day; the others' does."""
    cvae = network(2, (3, 3))
    with torch.no_grad():
        cvae.posterior.head.weight.normal_(generator=torch.Generator().manual_seed(3))
    first = torch.tensor([True, False])
    shape = (2, 6, 6)
    dry, _ = forward(cvae, (3, 3), from_prior=first, rain=torch.zeros(shape))
    wet, _ = forward(cvae, (3, 3), from_prior=first, rain=torch.full(shape, 3.0))
    assert torch.equal(dry[0], wet[0]) and not torch.allclose(dry[1], wet[1])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_is_that_of_the_settings(folder: Path, share: float) -> None:
    """With all draws from the prior, the posterior has no gradient but that of the KL."""
    task = task_on(folder, prior_fraction=share)
    update = update_of(task, batch_of(task))
    nll = update.terms[0]
    nll.fn(update.prediction).backward()
    heads = [task.sampler.cvae.posterior.head.weight.grad, task.sampler.cvae.prior.head.weight.grad]
    used = [grad is not None and bool(grad.any()) for grad in heads]
    assert used == ([False, True] if share else [True, False])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("factor", [4, 12])
def test_at_most_ten_million_parameters(profile: str, factor: int) -> None:
    config = Config.for_profile(profile)
    sizes = {name: getattr(config, name) for name in ("base_filters", "d_y", "d_z", "dropout")}
    with torch.device("meta"):
        cvae = Cvae(6, torch.zeros(5, factor, factor), factor=factor, n_out=Hurdle("gpd").channels, **sizes)
    count = sum(tensor.numel() for tensor in cvae.parameters())
    assert count <= 10_000_000
    assert profile != "full" or count > 1_000_000


def test_an_absurd_number_of_parameters_for_the_days_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(With the limit of 10,000 a day brought down to the size of a test.)"""
    count = sum(tensor.numel() for tensor in task_on(folder).modules["cvae"].parameters())
    assert task_module.RATIO == 10_000
    monkeypatch.setattr(task_module, "RATIO", count / 48 + 1)
    task_on(folder)
    monkeypatch.setattr(task_module, "RATIO", count / 48 - 1)
    with pytest.raises(UserError, match=f"{count:,} parameters for 48 training days") as caught:
        task_on(folder)
    assert "lower base_filters, d_y or d_z" in str(caught.value)


def test_ten_thousand_parameters_a_day_are_too_many(folder: Path) -> None:
    with pytest.raises(UserError, match="more than 10,000 a day"):
        task_on(folder, base_filters=64, d_y=256, d_z=64)


# --- members ---------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("d_z", [2, 0])
def test_members_are_rain(folder: Path, likelihood: dict[str, Any], d_z: int) -> None:
    task = roughly_trained(task_on(folder, d_z=d_z, **likelihood))
    land = torch.from_numpy(task.days.land)
    for source in ("prior", "posterior"):
        members = task.members(batch_of(task, "test"), source=source)
        assert members.shape == (12, 4, 16, 16) and members.isfinite().all()
        assert float(members.min()) >= 0 and not members[..., ~land].any() and members[..., land].any()
    spread = members.std(1)[:, land].mean()
    assert (float(spread) > 0) == (d_z > 0 or not likelihood), "without latent and likelihood nothing is drawn"


@pytest.mark.parametrize("activation", ["none", "relu", "softplus"])
@pytest.mark.parametrize("transform", ["none", "log1p", "zscore"])
def test_sampled_rain_is_never_negative_whatever_the_output(folder: Path, transform: str, activation: str) -> None:
    task = task_on(folder, **TAIL_MAE, transform=transform, output_activation=activation)
    with torch.no_grad():
        task.sampler.cvae.decoder.head.bias.fill_(-3.0)
    assert float(task.members(batch_of(task, "test")).min()) >= 0


@BOTH
def test_members_depend_on_day_and_seed_and_not_on_the_batch(folder: Path, likelihood: dict[str, Any]) -> None:
    task = roughly_trained(task_on(folder, **likelihood))
    days = task.days.split["test"]
    together = task.members(days_of(task, *days[:5]))
    torch.testing.assert_close(task.members(days_of(task, days[3]))[0], together[3], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(task.members(days_of(task, *days[:5][::-1])).flip(0), together, atol=1e-3, rtol=1e-3)
    assert torch.equal(task.members(days_of(task, *days[:5])), together), "again"
    more = task.sampler.members(days_of(task, *days[:5]), 6, seed=0)
    torch.testing.assert_close(more[:, :2], together[:, :2], atol=1e-3, rtol=1e-3) if likelihood else None
    other = task.sampler.members(days_of(task, *days[:5]), 4, seed=1)
    assert not torch.allclose(other, together)
    assert not torch.allclose(together[:, 0], together[:, 1]), "members differ"


def test_shuffles_change_what_they_name(folder: Path) -> None:
    task = roughly_trained(task_on(folder))
    batch = days_of(task, *task.days.split["test"][:4])
    plain = task.members(batch)
    assert not torch.allclose(task.members(batch, shuffle_x=True), plain)
    swapped = dataclasses.replace(batch, x=batch.x.roll(2, 0))
    assert torch.equal(task.members(batch, shuffle_x=True), task.members(swapped)), "the weather of another day"
    other_rain = dataclasses.replace(batch, y=batch.y.roll(1, 0))
    assert torch.equal(task.members(other_rain), plain), "prior members have not seen the rain"
    assert not torch.allclose(task.members(other_rain, source="posterior"), task.members(batch, source="posterior"))


# --- updates ---------------------------------------------------------------------------------------------------------


@BOTH
def test_the_terms_are_those_of_the_likelihood(folder: Path, likelihood: dict[str, Any]) -> None:
    task = task_on(folder, **likelihood)
    update = update_of(task, batch_of(task))
    names = [term.name for term in update.terms]
    assert names == (["mae", "mae_ext", "mass", "kl"] if likelihood else ["nll", "kl"])
    kl = update.terms[-1]
    assert kl.role == "regulariser" and kl.at is not None and kl.at.shape[1] == 4 * task.config.d_z
    assert [term.name for term in update_of(task_on(folder, d_z=0, **likelihood), batch_of(task)).terms] == names[:-1]


def test_an_untrained_model_begins_at_the_climate(folder: Path) -> None:
    task = task_on(folder)
    batch = batch_of(task)
    inputs = task.sampler.inputs(batch)
    (raw,) = task.sampler.raw(inputs, batch.days, 1, seed=0, source="prior")
    hurdle = task.sampler.hurdle
    assert hurdle is not None
    rain = np.concatenate([task.days.y(day)[task.days.land] for day in task.days.split["train"]])
    wet = float(hurdle.wet_probability(raw)[inputs.valid].mean())
    assert wet == pytest.approx(float((rain >= hurdle.wet).mean()), abs=0.1)
    mean = float(hurdle.mean(raw)[inputs.valid].mean())
    assert 0.4 * rain.mean() < mean < 2.5 * rain.mean()


@BOTH
def test_sea_and_gaps_have_no_gradient_and_no_say(folder: Path, likelihood: dict[str, Any]) -> None:
    task = task_on(folder, **likelihood)
    batch = batch_of(task)
    gaps = batch.y.clone()
    gaps[:, 3] = torch.nan
    update = update_of(task, dataclasses.replace(batch, y=gaps))
    measured = gaps.isfinite() & torch.from_numpy(task.days.land)
    for term in update.terms[:-1]:
        leaf = update.prediction.detach().requires_grad_(True)
        value = term.fn(leaf)
        (found,) = torch.autograd.grad(value, leaf)
        found = found if found.ndim == 4 else found[:, None]
        assert value.isfinite() and found.isfinite().all() and found.any()
        assert not found.movedim(1, -1)[~measured].any(), term.name


@BOTH
def test_a_dry_batch_and_an_empty_one(folder: Path, likelihood: dict[str, Any]) -> None:
    task = task_on(folder, **likelihood)
    batch = batch_of(task)
    dry = dataclasses.replace(batch, y=torch.where(batch.y.isfinite(), 0.0, batch.y))
    update = update_of(task, dry)
    total = sum(term.fn(update.prediction if term.at is None else term.at) for term in update.terms)
    total.backward()
    grads = [tensor.grad for tensor in task.modules["cvae"].parameters() if tensor.grad is not None]
    assert torch.isfinite(total) and grads and all(grad.isfinite().all() for grad in grads)
    empty = Batch(batch.x[:0], batch.y[:0], batch.weight[:0], (), (), ("why",))
    assert list(task.updates(empty, task.phases[0])) == [] and task.unreadable(empty) == ("why",)


def test_the_kl_is_of_what_the_latent_is_drawn_by_under_autocast(folder: Path) -> None:
    """The ledger takes gradients at these statistics; rounded to bfloat16 on the way to z, they would be others."""
    task = task_on(folder, prior_fraction=0.0)
    batch = batch_of(task)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        update = update_of(task, batch)
    (kl,) = [term for term in update.terms if term.name == "kl"]
    assert kl.at is not None and kl.at.dtype == torch.float32
    (nll,) = [term for term in update.terms if term.name == "nll"]
    (through_z,) = torch.autograd.grad(nll.fn(update.prediction), kl.at, retain_graph=True)
    (of_kl,) = torch.autograd.grad(kl.fn(kl.at), kl.at)
    posterior = slice(0, 2 * task.config.d_z)
    assert through_z[:, posterior].any() and of_kl.any(), "both gradients are taken at the same tensor"


def test_members_do_not_depend_on_dropout(folder: Path) -> None:
    task = roughly_trained(task_on(folder, dropout=0.5))
    batch = batch_of(task, "val")
    members = task.members(batch)
    assert torch.equal(members, task.members(batch)) and members.var(1).max() > 0
    task.modules["cvae"].train()
    assert not torch.equal(members, task.members(batch)), "else dropout would do nothing at all"


def test_all_dry_batches_are_announced_before_they_come(folder: Path) -> None:
    days = task_on(folder).days
    dry = fmean(days.category[day] == "dry" for day in days.split["train"])
    assert 0.05 < dry < 0.9

    def said(**settings: Any) -> list[str]:
        return [line for line in task_on(folder, **settings).remarks() if "all dry" in line]

    (alone,) = said(batch_size=1)
    assert f"About {dry:.0%} of the batches will be all dry" in alone and "raise batch_size" in alone
    heavy = fmean(days.category[day] == "heavy" for day in days.split["train"])
    (oversampled,) = said(batch_size=1, heavy_oversampling=5.0)
    assert f"About {dry / (1 + 4 * heavy):.0%} of the batches" in oversampled
    assert said(batch_size=64) == []


# --- scores ----------------------------------------------------------------------------------------------------------


@BOTH
def test_validation_scores_prior_members_and_keeps_the_posterior_apart(
    folder: Path, likelihood: dict[str, Any]
) -> None:
    task = roughly_trained(task_on(folder, **likelihood))
    found = task.evaluate("val")
    prior = task.evaluate("val", task.members)
    assert found.metrics["crps"].value == prior.metrics["crps"].value, "what selects checkpoints has not seen the day"
    posterior = {
        "posterior_crps", "l_rec", "l_kl", "l_mass", "loss", "active_units", "z_share", "x_shuffled_crps",
        "z_shuffled_crps",
    }  # fmt: skip
    assert found.metrics.keys() - prior.metrics.keys() == posterior
    assert found.metrics["posterior_crps"].value != found.metrics["crps"].value
    assert 0 <= found.metrics["z_share"].value <= 1.5
    assert found.active_units is not None and found.active_units[1] == 2 * 4 * 4
    assert set(found.dependence) == {"x", "z"}
    assert task.monitor.metric == "crps" and task.monitor.armed_after == 1


def test_without_a_latent_there_is_nothing_to_say_of_one(folder: Path) -> None:
    task = task_on(folder, d_z=0, eval_days=1)
    found = task.evaluate("val")
    assert found.active_units is None and set(found.dependence) == set()
    assert not {"posterior_crps", "active_units", "z_share"} & found.metrics.keys() and "posterior" not in task.controls
    assert found.metrics["l_kl"].value == 0.0 and task.monitor.armed_after == 0
    assert task_on(folder, eval_days=1).evaluate("val").active_units is None, "one day does not vary"


def test_validation_fits_the_copula_and_nothing_else_does(folder: Path) -> None:
    task = task_on(folder)
    before = task.sampler.cvae.correlation.clone()
    task.evaluate("test")
    task.evaluate("val", task.nulls["climatology"])
    assert torch.equal(task.sampler.cvae.correlation, before)
    task.evaluate("val")
    fitted = task.sampler.cvae.correlation.clone()
    assert not torch.equal(fitted, before), "the residuals of an untrained model are alike near by"
    task.evaluate("val")
    assert torch.equal(task.sampler.cvae.correlation, fitted), "again it is the same"
    assert "correlation" in task.modules["cvae"].state_dict()


def test_every_predictor_has_the_scores_of_the_model(folder: Path) -> None:
    """All of them, but that a single forecast has no spread."""
    task = task_on(folder)
    others = {**task.nulls, **task.controls}
    assert set(others) == {"climatology", "analogues", "bilinear", "x_shuffled", "posterior"}
    model = task.evaluate("test").metrics
    assert set(task.headlines) <= set(model)
    for name, predictor in others.items():
        theirs = task.evaluate("test", predictor).metrics
        missing = set(model) - set(theirs)
        assert set(theirs) <= set(model) and bool(missing) == (name == "bilinear")
        assert all("spread" in one or "rank" in one or "reliab" in one or one == "diversity" for one in missing)
