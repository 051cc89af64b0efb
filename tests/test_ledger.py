"""The ledger: shares by hand, weights from shares, and a backward pass that is the plain one."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import Tensor, nn
from toy import ToyConfig, ToyTask

from nbhelpers.training.ledger import Balance, entries, probe, resolve_weights, surrogate
from nbhelpers.training.task import LossTerm
from nbhelpers.training.weights import Ramp, Share

POINT = torch.tensor([3.0, 4.0])
BOWL = LossTerm("bowl", lambda p: p.square().sum() / 2, 2.0)  # value 12.5, gradient (3, 4) of norm 5
RAMP = LossTerm("ramp", lambda p: 2 * p[0], 3.0)  # value 6, gradient (2, 0) of norm 2
FLAT = LossTerm("flat", lambda p: 0 * p.sum() + 7, 1.0)  # a value without a gradient


def test_shares_and_cosines_by_hand() -> None:
    probed = probe(POINT, (BOWL, RAMP))
    assert probed.raw == (12.5, 6.0) and probed.norms == (5.0, 2.0)
    bowl, ramp = entries(probed, {"bowl": 2.0, "ramp": 3.0})
    # Weighted values 25 and 18, weighted norms 10 and 6, total gradient (12, 8).
    assert (bowl.value_share, ramp.value_share) == pytest.approx((25 / 43, 18 / 43))
    assert (bowl.grad_share, ramp.grad_share) == pytest.approx((0.625, 0.375))
    assert bowl.cosine_to_total == pytest.approx(68 / (5 * 208**0.5))
    assert ramp.cosine_to_total == pytest.approx(12 / 208**0.5)
    assert (bowl.raw, bowl.weight, ramp.weight) == (12.5, 2.0, 3.0)


def test_a_negative_weight_pulls_the_other_way() -> None:
    bowl, ramp = entries(probe(POINT, (BOWL, RAMP)), {"bowl": 1.0, "ramp": -1.0})  # total gradient (1, 4)
    assert ramp.cosine_to_total == pytest.approx(-1 / 17**0.5)
    assert bowl.cosine_to_total == pytest.approx(19 / (5 * 17**0.5))
    assert bowl.value_share + ramp.value_share == pytest.approx(1.0)
    assert bowl.grad_share == pytest.approx(5 / 7)


def test_a_term_without_gradient_has_share_and_cosine_zero() -> None:
    bowl, flat = entries(probe(POINT, (BOWL, FLAT)), {"bowl": 1.0, "flat": 1.0})
    assert (flat.grad_share, flat.cosine_to_total) == (0.0, 0.0)
    assert (bowl.grad_share, bowl.cosine_to_total) == pytest.approx((1.0, 1.0))
    assert flat.value_share == pytest.approx(7 / 19.5)
    (alone,) = entries(probe(POINT, (FLAT,)), {"flat": 0.0})
    assert (alone.value_share, alone.grad_share, alone.cosine_to_total) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_surrogate_backward_is_plain_autograd(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.GELU(), nn.BatchNorm2d(6), nn.Conv2d(6, 1, 3)).to(dtype)
    fields, target = torch.randn(4, 2, 10, 10, dtype=dtype), torch.randn(4, 1, 8, 8)

    def spectral(p: Tensor) -> Tensor:
        return (torch.fft.rfft2(p).abs() - torch.fft.rfft2(target).abs()).abs().mean()

    terms = (
        LossTerm("mse", lambda p: (p - target).square().mean(), 1.0),
        LossTerm("mae", lambda p: (p - target).abs().mean(), 0.3),
        LossTerm("spectral", spectral, Share(0.2)),
    )
    prediction = net(fields)
    probed = probe(prediction, terms)
    weights = Balance().weights(probed, terms)
    surrogate(probed, weights).backward()
    ours = [parameter.grad.clone() for parameter in net.parameters()]

    net.zero_grad()
    prediction = net(fields)
    sum(weights[term.name] * term.fn(prediction.float()) for term in terms).backward()
    for mine, parameter in zip(ours, net.parameters(), strict=True):
        error = (mine - parameter.grad).float().norm() / parameter.grad.float().norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_probe_is_float32_and_leaves_the_models_graph_alone() -> None:
    weight = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    prediction = weight * POINT.bfloat16()
    seen: list[torch.dtype] = []

    def bowl(p: Tensor) -> Tensor:
        seen.append(p.dtype)
        return p.square().sum() / 2

    probed = probe(prediction, (LossTerm("bowl", bowl, 1.0),))
    assert seen == [torch.float32] and probed.gradients[0].dtype == torch.float32
    assert weight.grad is None
    surrogate(probed, {"bowl": 1.0}).backward()
    assert weight.grad.tolist() == [9.0, 16.0]


def test_shares_become_weights_in_closed_form() -> None:
    norms = {"bowl": 5.0, "ramp": 2.0, "flat": 0.5}
    # F = 2·5 = 10: a share of 0.2 beside 0.3 wants 0.2/0.5·10/2 = 2, and 0.3 wants 0.3/0.5·10/0.5 = 12.
    weights = resolve_weights({"ramp": Share(0.2), "bowl": 2.0, "flat": Share(0.3)}, norms)
    assert weights == pytest.approx({"ramp": 2.0, "bowl": 2.0, "flat": 12.0})
    assert list(weights) == ["ramp", "bowl", "flat"]
    assert resolve_weights({"bowl": 1.0, "ramp": Share(0.0)}, norms)["ramp"] == 0.0


def test_a_share_reached_at_once_on_one_probe() -> None:
    probed = probe(POINT, (BOWL, RAMP))
    norms = dict(zip(probed.names, probed.norms, strict=True))
    _, ramp = entries(probed, resolve_weights({"bowl": 1.0, "ramp": Share(0.1)}, norms))
    assert ramp.grad_share == pytest.approx(0.1)


def test_a_share_of_a_term_without_gradient_is_weight_zero() -> None:
    probed = probe(POINT, (BOWL, FLAT))
    weights = Balance().weights(probed, (BOWL, LossTerm("flat", FLAT.fn, Share(0.5))))
    assert weights == {"bowl": 2.0, "flat": 0.0}


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 1.0"):
        resolve_weights({"a": Share(0.6), "b": Share(0.4), "c": 1.0}, {"a": 1, "b": 1, "c": 1})
    with pytest.raises(ValueError, match="need another term"):
        resolve_weights({"a": Share(0.6), "b": 0.0}, {"a": 1, "b": 1})
    for target in (1.0, -0.1):
        with pytest.raises(ValueError, match="lies in"):
            Share(target)


def _train(targets: dict[str, float], scales: dict[str, float], steps: int) -> dict[str, list[float]]:
    """Gradient shares at every step of a small training whose terms have wildly different scales."""
    task = ToyTask(ToyConfig(slope_weight=1.0))
    optimizer, balance = task.phases[0].optimizers["net"], Balance()
    shares: dict[str, list[float]] = {}
    while steps:
        for batch in task.batches("train", epoch=steps):
            (update,) = task.updates(batch, task.phases[0])
            mse, slope = update.terms
            curve = LossTerm("curve", lambda p, y=batch[1]: (p - y).diff(n=2, dim=-2).abs().mean(), 1.0)
            terms = (mse, *(LossTerm(t.name, lambda p, t=t: scales[t.name] * t.fn(p), Share(targets[t.name]))
                            for t in (slope, curve) if t.name in targets))  # fmt: skip
            probed = probe(update.prediction, terms)
            weights = balance.weights(probed, terms)
            for entry in entries(probed, weights):
                shares.setdefault(entry.term, []).append(entry.grad_share)
            optimizer.zero_grad()
            surrogate(probed, weights).backward()
            optimizer.step()
            steps -= 1
    return shares


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_share_of_a_tenth_is_kept_while_training(scale: float) -> None:
    later = _train({"slope": 0.1}, {"slope": scale}, steps=60)["slope"][10:]
    assert 0.08 < median(later) < 0.12
    assert all(0.05 < share < 0.2 for share in later)


def test_several_shares_are_kept_together() -> None:
    shares = _train({"slope": 0.2, "curve": 0.3}, {"slope": 50.0, "curve": 0.01}, steps=60)
    for name, target in (("slope", 0.2), ("curve", 0.3), ("mse", 0.5)):
        assert median(shares[name][10:]) == pytest.approx(target, rel=0.15)


def test_one_odd_batch_moves_a_weight_little() -> None:
    terms = (BOWL, LossTerm("ramp", RAMP.fn, Share(0.1)))
    balance = Balance()
    for _ in range(20):
        usual = balance.weights(probe(POINT, terms), terms)["ramp"]
    odd = balance.weights(probe(POINT * 10, terms), terms)["ramp"]  # the bowl's gradient is ten times as large
    assert odd == pytest.approx(usual * 10**0.1)


def test_the_first_batches_count_alike() -> None:
    """The second one moves the mean by half: an odd first batch is soon forgotten."""
    terms = (BOWL, LossTerm("ramp", RAMP.fn, Share(0.1)))
    balance = Balance()
    odd = balance.weights(probe(POINT * 100, terms), terms)["ramp"]
    assert balance.weights(probe(POINT, terms), terms)["ramp"] == pytest.approx(odd / 100**0.5)
    assert balance.weights(probe(POINT, terms), terms)["ramp"] == pytest.approx(odd / 100 ** (2 / 3))


def test_a_batch_without_gradient_does_not_bias_the_weight() -> None:
    steady = (BOWL, LossTerm("ramp", RAMP.fn, Share(0.1)))
    dry = (BOWL, LossTerm("ramp", FLAT.fn, Share(0.1)))
    balance = Balance()
    assert balance.weights(probe(POINT, dry), dry)["ramp"] == 0.0
    fresh = Balance().weights(probe(POINT, steady), steady)
    assert balance.weights(probe(POINT, steady), steady) == pytest.approx(fresh)
    assert balance.weights(probe(POINT, dry), dry) == pytest.approx(fresh), "nor later"


def test_a_balance_restored_goes_on_as_if_never_stopped() -> None:
    terms = (BOWL, LossTerm("ramp", RAMP.fn, Share(0.1)))
    one, other = Balance(), Balance()
    one.weights(probe(POINT, terms), terms)
    other.load_state_dict(one.state_dict())
    assert one.weights(probe(2 * POINT, terms), terms) == other.weights(probe(2 * POINT, terms), terms)
    assert other.norms.means == pytest.approx({"bowl": 50**0.5, "ramp": 2.0})


def test_cosines_between_terms_and_the_cells_of_a_row() -> None:
    bowl, ramp = entries(probe(POINT, (BOWL, RAMP)), {"bowl": 2.0, "ramp": 3.0})
    assert bowl.cosines == pytest.approx({"ramp": 0.6}) and ramp.cosines == pytest.approx({"bowl": 0.6})
    assert list(bowl.row()) == [
        "term", "raw", "weight", "value_share", "grad_share", "cosine_to_total", "effective_weight",
        "events", "cosine_to_ramp",
    ]  # fmt: skip


def test_a_term_that_acts_elsewhere_meets_what_the_others_send_back_there() -> None:
    """Latent z = (1, 2), prediction 3z: a bowl on the prediction sends 9z back, a KL-like term pulls with z."""
    z = torch.tensor([1.0, 2.0], requires_grad=True)
    latent = z * 1
    terms = (
        LossTerm("bowl", lambda p: p.square().sum() / 2, 1.0),
        LossTerm("kl", lambda q: q.square().sum() / 2, 3.0, role="regulariser", at=latent),
    )
    probed = probe(3 * latent, terms)
    assert probed.norms == pytest.approx((3 * 5**0.5, 5**0.5))
    bowl, kl = entries(probed, {"bowl": 1.0, "kl": 3.0})
    assert bowl.grad_share == 1.0, "nothing else acts on the prediction"
    assert kl.grad_share == pytest.approx(3 / 12)
    assert kl.cosine_to_total == pytest.approx(1.0) and kl.cosines == {}
    surrogate(probed, {"bowl": 1.0, "kl": 3.0}).backward()
    assert z.grad.tolist() == [12.0, 24.0]


@pytest.mark.parametrize("fn", [lambda p: torch.tensor(1.0), lambda p: torch.ones(1, requires_grad=True).sum()])
def test_a_term_that_does_not_depend_on_what_it_acts_on_is_named(fn: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="term 'lost' does not depend on the prediction: compute it from"):
        probe(POINT, (BOWL, LossTerm("lost", fn, 1.0)))
    with pytest.raises(ValueError, match="term 'lost' does not depend on the tensor it acts on"):
        probe(POINT, (BOWL, LossTerm("lost", fn, 1.0, at=POINT)))


def test_a_share_at_another_place_is_refused() -> None:
    z = torch.ones(2, requires_grad=True)
    terms = (BOWL, LossTerm("kl", lambda q: q.square().sum(), Share(0.1), at=z))
    with pytest.raises(ValueError, match="cannot have a share"):
        Balance().weights(probe(POINT, terms), terms)


def test_a_ramp_rises_with_time_and_stays() -> None:
    terms = (BOWL, LossTerm("ramp", RAMP.fn, Ramp(0.4, epochs=4, start=1)))
    weights = [Balance().weights(probe(POINT, terms), terms, time=time)["ramp"] for time in (0, 1, 2, 5, 9)]
    assert weights == pytest.approx([0, 0, 0.1, 0.4, 0.4])
