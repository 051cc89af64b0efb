"""The compact generator: the identity at first, exact where the denoiser is, and a user of the SAR once trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.compact import Compact, padded
from nbhelpers.stages.sar_grounding.denoiser import HALO, MULTIPLE, WINDOW, CrossAttention
from nbhelpers.training.run import architecture_hash

STATISTICS: dict[str, tuple[float, ...]] = {
    "sar_mean": (-12.0, -19.0),
    "sar_std": (3.0, 4.0),
    "optical_mean": (0.06, 0.08, 0.09, 0.25),
    "optical_std": (0.03, 0.03, 0.04, 0.08),
    "residual_std": (0.01, 0.02, 0.02, 0.05),
}
SMALL = {"fine": 8, "coarse": 16, "heads": 2, "blocks": 1}


def compact(**settings: Any) -> Compact:
    torch.manual_seed(0)
    return Compact(**{**STATISTICS, **SMALL, **settings})


def stirred(**settings: Any) -> Compact:
    """Not the identity any more: its last layer is not 0."""
    model = compact(**settings)
    nn.init.normal_(model.denoiser.head.weight, std=0.1)
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiles(height: int, width: int, n: int = 2, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """SAR in dB, opt_v2 and truth in reflectance."""
    draw = seeded(seed)
    s1 = -15 + 4 * torch.randn(n, 2, height, width, generator=draw)
    optical = 0.1 + 0.05 * torch.rand(n, 4, height, width, generator=draw)
    return s1, optical, optical + 0.02 * torch.randn(n, 4, height, width, generator=draw)


class TestInterface:
    @pytest.mark.parametrize("size", [(64, 64), (40, 56), (33, 17), (5, 7), (96, 96)])
    def test_untrained_it_is_the_identity_at_any_size(self, size: tuple[int, int]) -> None:
        s1, optical, truth = tiles(*size)
        model = compact(timesteps=2)
        assert torch.equal(model(s1, optical, seeded()), optical)
        assert torch.equal(model(s1, optical, seeded(), truth=truth), optical)

    def test_seeded_and_inputs_stay(self) -> None:
        s1, optical, truth = tiles(33, 40)
        before = [image.clone() for image in (s1, optical, truth)]
        model = stirred(timesteps=3)
        for more in ({}, {"truth": truth}):
            once, again, other = (model(s1, optical, seeded(seed), **more) for seed in (0, 0, 1))
            assert torch.equal(once, again) and not torch.allclose(once, other, atol=1e-4)
            assert once.dtype == torch.float32 and once.shape == optical.shape
        assert all(torch.equal(image, old) for image, old in zip((s1, optical, truth), before, strict=True))

    def test_units_are_standardised_within(self) -> None:
        """Other units, and statistics in those: the same residual in standard deviations."""
        s1, optical, _ = tiles(32, 32)
        plain = stirred(timesteps=2)
        scaled = stirred(
            timesteps=2,
            sar_mean=[2 * mean + 5 for mean in STATISTICS["sar_mean"]],
            sar_std=[2 * std for std in STATISTICS["sar_std"]],
            **{name: [1e4 * x for x in STATISTICS[name]] for name in ("optical_mean", "optical_std", "residual_std")},
        )
        expected = plain(s1, optical, seeded())
        assert not torch.allclose(expected, optical, atol=1e-3)
        assert torch.allclose(scaled(2 * s1 + 5, 1e4 * optical, seeded()) / 1e4, expected, atol=1e-5)
        assert not torch.allclose(plain(2 * s1 + 5, optical, seeded()), expected, atol=1e-3)

    def test_padding_repeats_the_border(self) -> None:
        s1, optical, _ = tiles(40, 50)
        whole, model = padded(optical), stirred(timesteps=1)
        assert whole.shape[-2:] == (64, 64) and torch.equal(
            whole[..., 39:, :50], optical[..., 39:, :].expand(-1, -1, 25, -1)
        )
        truth, t, noise = whole, torch.ones(2, dtype=torch.long), torch.zeros_like(whole)
        larger = model.estimate(padded(s1), whole, truth, t, noise)
        smaller = model.estimate(s1, optical, optical, t, noise[..., :40, :50])
        assert torch.allclose(larger[..., :40, :50], smaller, atol=1e-6)

    def test_what_was_not_measured(self) -> None:
        s1, optical, truth = tiles(32, 32)
        s1[0, 1, :9], optical[1, :, 20:] = torch.nan, torch.nan
        model = stirred(timesteps=2)
        for out in (model(s1, optical, seeded()), model(s1, optical, seeded(), truth=truth)):
            assert torch.equal(out.isnan(), optical.isnan())
        out.nansum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        filled = torch.where(s1.isnan(), model.sar_mean, s1)
        assert not torch.equal(model(filled, optical, seeded())[0], model(s1, optical, seeded())[0])  # it is told

    def test_a_pixel_loss_does_not_train_through_the_samples(self) -> None:
        s1, optical, truth = tiles(32, 32)
        model = stirred(timesteps=1)
        assert not model(s1, optical, seeded()).requires_grad
        assert model(s1, optical, seeded(), truth=truth).requires_grad

    def test_half_precision(self) -> None:
        """Autocast reaches the networks, and what they are added to stays in full precision."""
        s1, optical, truth = tiles(32, 32)
        model = stirred(timesteps=2)
        exact = model(s1, optical, seeded(), truth=truth)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(s1, optical, seeded(), truth=truth)
        assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
        assert float((rounded - exact).detach().abs().max()) < 0.05 * float((exact - optical).detach().abs().max())

    def test_settings(self) -> None:
        with pytest.raises(UserError, match="0 time steps"):
            compact(timesteps=0)
        with pytest.raises(UserError, match="noise 0: it starts at noise"):
            compact(noise=0.0)
        with pytest.raises(UserError, match="residual_std of the training tiles is 0.1, 0, 0.1, 0.1"):
            compact(residual_std=(0.1, 0.0, 0.1, 0.1))
        kinds = [{}, {"timesteps": 4}, {"noise": 0.5}, {"with_sar": False}, {"coarse": 32}]
        assert len({architecture_hash({"net": compact(**kind)}) for kind in kinds}) == len(kinds)

    def test_default_size(self) -> None:
        assert 300_000 < sum(p.numel() for p in Compact(**STATISTICS).parameters()) < 600_000


class Oracle(nn.Module):
    """A denoiser that knows the answer."""

    def __init__(self, clean: Tensor):
        super().__init__()
        self.clean = clean

    def forward(self, noisy: Tensor, optical: Tensor, seen: Any, time: Tensor) -> Tensor:
        return self.clean


class Gaussian(nn.Module):
    """The best estimate of a residual of variance v: E[r | u] = signal·v / (signal²·v + scale²) · u."""

    def __init__(self, model: Compact, variance: float):
        super().__init__()
        self.path, self.variance, self.timesteps = model._path, variance, model.timesteps

    def forward(self, noisy: Tensor, optical: Tensor, seen: Any, time: Tensor) -> Tensor:
        signal, scale = (part[:, None, None, None] for part in self.path(time * self.timesteps))
        return signal * self.variance / (signal.square() * self.variance + scale.square()) * noisy


class TestDiffusion:
    @pytest.mark.parametrize("timesteps", [1, 2, 10])
    def test_a_perfect_denoiser_gives_the_truth(self, timesteps: int) -> None:
        s1, optical, truth = tiles(MULTIPLE, MULTIPLE)
        model = compact(timesteps=timesteps)
        model.denoiser = Oracle((truth - optical) / model.residual_std)
        assert torch.allclose(model(s1, optical, seeded()), truth, atol=1e-6)
        assert torch.allclose(model(s1, optical, seeded(), truth=truth), truth, atol=1e-6)

    @pytest.mark.parametrize("variance", [0.25, 1.0])
    def test_samples_of_a_gaussian_have_its_variance(self, variance: float) -> None:
        """With the best denoiser of N(0, v) the flow takes noise ε to √v·ε, up to the error of finite steps."""
        s1, optical, _ = tiles(MULTIPLE, MULTIPLE)
        noise = torch.randn(optical.shape, generator=seeded())

        def error(timesteps: int) -> float:
            model = compact(timesteps=timesteps)
            model.denoiser = Gaussian(model, variance)
            drawn = (model.sample(s1, optical, noise) - optical) / model.residual_std
            return float((drawn - variance**0.5 * noise).abs().max() / (variance**0.5 * noise.abs().max()))

        assert error(400) < 0.01 and error(20) > 4 * error(100)

    def test_nothing_of_the_truth_is_seen_at_the_last_time(self) -> None:
        s1, optical, truth = tiles(32, 32)
        model, noise = stirred(timesteps=10), torch.randn(optical.shape, generator=seeded())

        def estimate(truth: Tensor, t: int) -> Tensor:
            return model.estimate(s1, optical, truth, torch.full((2,), t), noise)

        assert torch.equal(estimate(truth, 10), estimate(optical, 10))
        assert not torch.allclose(estimate(truth, 9), estimate(optical, 9), atol=1e-5)

    def test_half_of_the_times_are_the_last(self) -> None:
        drawn = compact(timesteps=4).times(20_000, seeded())
        counts = [int((drawn == t).sum()) / 20_000 for t in range(1, 5)]
        assert counts == pytest.approx([0.125, 0.125, 0.125, 0.625], abs=0.02) and int(drawn.min()) == 1

    def test_times_differ_within_a_batch(self) -> None:
        """Each tile is estimated at its own time: alone it gives the same."""
        s1, optical, truth = tiles(32, 32)
        model, noise, t = stirred(timesteps=10), torch.randn(optical.shape, generator=seeded()), torch.tensor([2, 9])
        both = model.estimate(s1, optical, truth, t, noise)
        for i in range(2):
            one = slice(i, i + 1)
            alone = model.estimate(s1[one], optical[one], truth[one], t[one], noise[one])
            assert torch.allclose(both[one], alone, atol=1e-5)
        assert not torch.allclose(both[1], model.estimate(s1, optical, truth, t.flip(0), noise)[1], atol=1e-3)


class TestNetworks:
    @pytest.mark.parametrize("with_sar", [True, False])
    def test_all_tensors_have_had_a_gradient_by_step_three(self, with_sar: bool) -> None:
        s1, optical, truth = tiles(32, 32)
        model, draw = compact(with_sar=with_sar), seeded()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        alive: set[str] = set()
        for _ in range(3):
            optimizer.zero_grad()
            (model(s1, optical, draw, truth=truth) - truth).abs().mean().backward()
            alive |= {name for name, p in model.named_parameters() if bool((p.grad != 0).any())}
            optimizer.step()
        assert alive == {name for name, _ in model.named_parameters()}

    def test_without_sar_nothing_of_it_is_seen(self) -> None:
        s1, optical, _ = tiles(32, 32)
        control, model = stirred(with_sar=False, timesteps=2), stirred(timesteps=2)
        assert torch.equal(control(s1, optical, seeded()), control(s1 * torch.nan, optical, seeded()))
        assert not torch.allclose(model(s1, optical, seeded()), model(s1.flip(0), optical, seeded()), atol=1e-4)
        sizes = [sum(p.numel() for p in network.parameters()) for network in (control, model)]
        assert 1 < sizes[0] / sizes[1] < 1.1  # four bands come in instead of two

    def test_far_away_makes_no_difference(self) -> None:
        """Nothing is taken over a whole tile, so tiles of any size can be blended."""
        s1, optical, _ = tiles(32, 256, n=1)
        other = s1.clone()
        other[..., 200:] += 5
        model = stirred(timesteps=1)
        one, two = (model(image, optical, seeded()) for image in (s1, other))
        assert torch.equal(one[..., :96], two[..., :96]) and not torch.equal(one[..., 200:], two[..., 200:])

    def test_attention_is_what_it_says(self) -> None:
        """Against plain sums over each query's window and the cells around it."""
        torch.manual_seed(0)
        channels, heads, h, w = 8, 2, WINDOW, 2 * WINDOW
        layer = CrossAttention(channels, heads)
        nn.init.normal_(layer.bias)
        x, y = torch.randn(1, h, w, channels), torch.randn(1, h, w, channels)
        q = layer.q(layer.norm_x(x)).view(h, w, heads, -1)
        k, v = layer.kv(layer.norm_y(y)).view(h, w, 2, heads, -1).unbind(2)
        side = 2 * WINDOW + 2 * HALO - 1
        bias = layer.bias.view(side, side, heads)
        out = layer(x, y)
        for row, column in [(0, 0), (3, 7), (7, 8), (5, 15)]:
            top, left = row // WINDOW * WINDOW - HALO, column // WINDOW * WINDOW - HALO
            cells = [(a, b) for a in range(top, top + 2 * WINDOW) for b in range(left, left + 2 * WINDOW)]
            at = [(min(max(a, 0), h - 1), min(max(b, 0), w - 1)) for a, b in cells]  # the border goes on outside
            keys, values = (torch.stack([part[a, b] for a, b in at]) for part in (k, v))
            shift = HALO + WINDOW - 1
            near = torch.stack([bias[a - row + shift, b - column + shift] for a, b in cells])
            score = ((keys * q[row, column]).sum(-1) / (channels / heads) ** 0.5 + near).softmax(0)
            expected = layer.proj((score[..., None] * values).sum(0).flatten())
            assert torch.allclose(out[0, row, column], expected, atol=1e-5)


def test_trained_it_beats_the_identity_and_needs_its_sar() -> None:
    """Edges that are sharp in SAR and blurred away in opt_v2."""
    draw, steps = seeded(), 120

    def scenes(n: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.arange(32.0)
        middle, angle = 32 * torch.rand(n, 2, generator=draw), 2 * torch.pi * torch.rand(n, generator=draw)
        across = (x - middle[:, :1])[:, None] * angle.cos()[:, None, None]
        across = across + (x - middle[:, 1:])[:, :, None] * angle.sin()[:, None, None]
        sharp, blurred = (torch.sigmoid(across / width)[:, None] for width in (0.3, 4.0))
        s1 = -15 + 6 * sharp + 1.5 * torch.randn(n, 2, 32, 32, generator=draw)
        return s1, (0.05 + 0.2 * blurred).expand(-1, 4, -1, -1), (0.05 + 0.2 * sharp).expand(-1, 4, -1, -1)

    def psnr(out: Tensor, truth: Tensor) -> float:
        return float(-10 * (out - truth).square().mean((1, 2, 3)).log10().mean())

    s1, optical, truth = scenes(64)
    dims = (0, 2, 3)
    model = compact(
        sar_mean=s1.mean(dims).tolist(),
        sar_std=s1.std(dims).tolist(),
        optical_mean=optical.mean(dims).tolist(),
        optical_std=optical.std(dims).tolist(),
        residual_std=(truth - optical).std(dims).tolist(),
        timesteps=4,
        fine=16,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(0, 64, (8,), generator=draw)
        optimizer.zero_grad()
        out = model(s1[chosen], optical[chosen], draw, truth=truth[chosen])
        ((out - truth[chosen]) / model.residual_std).abs().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    s1, optical, truth = scenes(16)
    scores = [psnr(model(image, optical, seeded()), truth) for image in (s1, s1.roll(1, 0))]
    assert scores[0] > psnr(optical, truth) + 1.0
    assert scores[0] > scores[1] + 0.5


def test_the_control_makes_the_same_of_a_gap_as_of_its_filling() -> None:
    """It is trained and scored on filled images, and predicts new tiles as they are."""
    for with_sar in (True, False):
        model = stirred(with_sar=with_sar).eval()
        s1, opt_v2, _ = tiles(32, 48)
        opt_v2[:, :, 4:9, 10:20] = torch.nan
        filled = torch.where(opt_v2.isnan(), model.gap, opt_v2)
        with torch.no_grad():
            found, expected = model(s1, opt_v2, seeded()), model(s1, filled, seeded())
        assert torch.equal(found.isnan(), opt_v2.isnan())
        torch.testing.assert_close(found.nan_to_num(), torch.where(opt_v2.isnan(), 0.0, expected), atol=1e-6, rtol=0)


def test_training_takes_one_generator() -> None:
    s1, opt_v2, truth = tiles(32, 32)
    with pytest.raises(ValueError, match="no gradient"):
        compact()(s1, opt_v2, [seeded(), seeded()], truth=truth)
