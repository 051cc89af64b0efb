"""TerraMind's two routes, on terratorch's own tiny network with random weights.

In an environment of its own, because terratorch brings 120 packages: without it pytest collects no test here and says
so by its exit status 5.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding import terramind, terramind_tokens
from nbhelpers.stages.sar_grounding.adapters import expected_share, load_adapters, remarks_of
from nbhelpers.stages.sar_grounding.terramind_backbone import TerraMindBackbone
from nbhelpers.stages.sar_grounding.terramind_tokens import IGNORED, TerraMindTokens, draw, refuse_tokenizer
from nbhelpers.training.checkpoint import digest_of
from nbhelpers.training.guards.adapters import adapter_size, trainable_share
from nbhelpers.training.guards.gradients import fingerprint

if importlib.util.find_spec("terratorch") is None:
    pytest.skip("terratorch is not installed: pip install -e '.[terramind]'", allow_module_level=True)

INFORMATIVE_STEPS = 3  # LoRA's A waits for B, and B for the zero-initialised head


def tiles(n: int = 8, side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """SAR in dB, opt_v2 and the 12 true bands in DN: fields with edges, which opt_v2 has lost and SAR shows."""
    draws = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, 1, 4, 4, generator=draws) > 0.5
    land = coarse.float().repeat_interleave(side // 4, -1).repeat_interleave(side // 4, -2)
    s1 = torch.tensor([-14.0, -21.0])[:, None, None] + 6 * land + torch.randn(n, 2, side, side, generator=draws)
    levels = torch.linspace(400, 3000, 12)[:, None, None]
    l2a = levels * (1 + 0.5 * land) + 20 * torch.randn(n, 12, side, side, generator=draws)
    truth = l2a[:, list(terramind.PLACES)] / 1e4
    return s1, truth.mean((-2, -1), keepdim=True).expand_as(truth).contiguous(), l2a


def truth_of(l2a: Tensor) -> Tensor:
    return l2a[:, list(terramind.PLACES)] / 1e4


def train(model: nn.Module, loss: Callable[[], Tensor], *, steps: int, rate: float) -> tuple[list[float], list[int]]:
    """Losses, and how many trainable tensors still wait for a gradient after each step."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=rate)
    losses, waiting, waits = [], set(trainable), []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        waiting -= {name for name in waiting if trainable[name].grad is not None and trainable[name].grad.any()}
        waits.append(len(waiting))
        optimizer.step()
        losses.append(value.item())
    return losses, waits


def frozen_of(model: nn.Module) -> dict[str, list[int]]:
    """What each frozen tensor is, to the bit."""
    return {name: fingerprint(p) for name, p in model.named_parameters() if not p.requires_grad}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def backbone() -> TerraMindBackbone:
    torch.manual_seed(0)
    return TerraMindBackbone("tiny", pretrained=False, width=8)


@pytest.fixture(scope="module")
def untrained() -> TerraMindTokens:
    """Built once; none of its tests trains it."""
    torch.manual_seed(0)
    model = TerraMindTokens("tiny", pretrained=False, timesteps=1)
    with torch.random.fork_rng():  # the library starts its decoder's last layers at 0, and every image would be black
        for p in model.tokenizer.network.decoder.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.02)
    return model.eval()


def test_the_statistics_and_the_order_of_bands_are_the_librarys() -> None:
    from terratorch.models.backbones.terramind.model import terramind_register as library

    for kind, s1, s2 in (("mean", terramind.S1_MEAN, terramind.S2_MEAN), ("std", terramind.S1_STD, terramind.S2_STD)):
        theirs = getattr(library, f"v1_pretraining_{kind}")
        assert theirs["untok_sen1grd@224"] == list(s1)
        assert theirs["untok_sen2l2a@224"] == theirs["tok_sen2l2a@224"] == list(s2)
    assert library.PRETRAINED_BANDS["untok_sen1grd@224"] == ["VV", "VH"]
    bands = library.PRETRAINED_BANDS["untok_sen2l2a@224"]
    assert [bands[place] for place in terramind.PLACES] == list(terramind.BAND_NAMES) and len(bands) == 12
    assert len(terramind.L2A) == 12 and [terramind.L2A[p] for p in terramind.PLACES] == ["B02", "B03", "B04", "B08"]


def test_units() -> None:
    units = terramind.Units()
    s1 = torch.tensor([-12.599 + 5.195, torch.nan])[None, :, None, None]
    assert units.sar(s1).flatten().tolist() == pytest.approx([1, 0], abs=1e-6)
    mean = torch.tensor(terramind.S2_MEAN)[None, :, None, None]
    assert float(units.l2a(mean).abs().max()) < 1e-6
    four = truth_of(mean)
    assert float(units.optical(four).abs().max()) < 1e-5
    image = torch.rand(2, 4, 3, 5)
    torch.testing.assert_close(units.reflectance(units.among_l2a(units.optical(image))), image)
    assert not units.state_dict()


@pytest.mark.parametrize(("size", "plain", "square"), [((32, 48), (32, 48), (64, 64)), ((50, 70), (64, 80), (96, 96))])
def test_padding(size: tuple[int, int], plain: tuple[int, int], square: tuple[int, int]) -> None:
    image = torch.rand(1, 2, *size)
    for padded, wanted in (
        (terramind.pad_to_patches(image), plain),
        (terramind.pad_to_patches(image, square=True), square),
    ):
        assert padded.shape[-2:] == wanted
        assert torch.equal(padded[..., : size[0], : size[1]], image)
        assert torch.equal(padded[..., -1, -1], image[..., -1, -1])


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = terramind.build_encoder("tiny", pretrained=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert digest_of(first.state_dict()) == digest_of(terramind.build_encoder("tiny", pretrained=False).state_dict())


@pytest.mark.parametrize("size", [(32, 32), (50, 70)])
def test_backbone_starts_at_the_identity_at_any_size(backbone: TerraMindBackbone, size: tuple[int, int]) -> None:
    s1, opt_v2 = torch.randn(1, 2, *size) - 12, torch.rand(1, 4, *size)
    given = s1.clone(), opt_v2.clone()
    assert torch.equal(backbone(s1, opt_v2, torch.Generator()), opt_v2)
    nn.init.normal_(backbone.head.weight)
    grounded = backbone(s1, opt_v2, torch.Generator())
    assert grounded.shape == opt_v2.shape and not torch.allclose(grounded, opt_v2, atol=1e-3)
    assert torch.equal(s1, given[0]) and torch.equal(opt_v2, given[1])


def test_backbone_where_nothing_was_measured(backbone: TerraMindBackbone) -> None:
    nn.init.normal_(backbone.head.weight)
    s1, opt_v2, _ = tiles(1)
    s1[..., :10], opt_v2[..., :5, :] = torch.nan, torch.nan
    grounded = backbone(s1, opt_v2)
    assert torch.equal(grounded.isnan(), opt_v2.isnan())


def test_backbone_trains_and_its_base_does_not(backbone: TerraMindBackbone, capsys: pytest.CaptureFixture[str]) -> None:
    s1, opt_v2, l2a = tiles()
    frozen = frozen_of(backbone)
    losses, waits = train(backbone, lambda: (backbone(s1, opt_v2) - truth_of(l2a)).abs().mean(), steps=12, rate=3e-3)
    assert losses[-1] < 0.7 * losses[0], losses
    assert waits[0] > waits[1] > waits[INFORMATIVE_STEPS - 1] == 0
    assert len(frozen) > 100 and frozen_of(backbone) == frozen
    whole = sum(p.numel() for p in backbone.parameters())
    rest = whole - sum(p.numel() for p in backbone.encoder.parameters())
    print(*remarks_of(backbone))
    lora, everything = capsys.readouterr().out.splitlines()[0].split(". With ")
    assert "294,912 of 5,924,160 parameters" in lora and "(4.98 %)" in lora
    assert f"{294_912 + rest:,} of {whole:,} parameters" in everything
    assert f"({100 * (294_912 + rest) / whole:.2f} %)" in everything and rest > 294_912
    shuffled = (backbone(s1.roll(1, 0), opt_v2) - truth_of(l2a)).abs().mean()
    assert shuffled.item() > 1.1 * losses[-1], "the SAR makes no difference"


def test_what_is_meant_to_be_trained_does_not_follow_what_is(backbone: TerraMindBackbone) -> None:
    expected = expected_share(backbone)
    assert trainable_share(backbone) == expected
    base = backbone.encoder.base.encoder[3].mlp.fc1.base_layer
    base.requires_grad_(True)
    assert trainable_share(backbone) > expected == expected_share(backbone)
    base.requires_grad_(False)
    next(iter(backbone.encoder.adapters().values())).requires_grad_(False)
    assert trainable_share(backbone) < expected == expected_share(backbone)


def test_backbone_goes_into_a_file_and_back_and_merges(backbone: TerraMindBackbone, tmp_path: Path) -> None:
    s1, opt_v2, l2a = tiles(2)
    train(backbone, lambda: (backbone(s1, opt_v2) - truth_of(l2a)).abs().mean(), steps=4, rate=1e-2)
    trained = backbone(s1, opt_v2).detach()
    state = backbone.state_dict()
    assert set(state) == {name for name, p in backbone.named_parameters() if p.requires_grad}
    torch.save(state, tmp_path / "weights.pt")
    again = TerraMindBackbone("tiny", pretrained=False, width=8)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(again(s1, opt_v2), trained)

    backbone.encoder.save(tmp_path / "adapters.safetensors")
    base = terramind.build_encoder("tiny", pretrained=False)
    again.encoder = load_adapters(base, tmp_path / "adapters.safetensors")
    assert torch.equal(again(s1, opt_v2), trained)
    again.encoder = again.encoder.merged()
    torch.testing.assert_close(again(s1, opt_v2), trained, atol=1e-5, rtol=0)
    again.encoder = terramind.build_encoder("tiny", pretrained=False)
    assert not torch.allclose(again(s1, opt_v2), trained, atol=1e-4), "the adapters make no difference"


def test_tokens_train_and_their_base_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = TerraMindTokens("tiny", pretrained=False)
    s1, opt_v2, l2a = tiles()
    ids = model.tokens(l2a)
    frozen = frozen_of(model)
    losses, waits = train(model, lambda: model.cross_entropy(s1, opt_v2, ids), steps=10, rate=5e-3)
    assert losses[0] == pytest.approx(torch.tensor(15360.0).log().item(), abs=0.2)
    assert losses[-1] < losses[0] - 0.5, losses
    assert waits[0] == 88 / 2 and waits[INFORMATIVE_STEPS - 1] == 0
    assert len(frozen) > 300 and frozen_of(model) == frozen
    print(*remarks_of(model))
    said = capsys.readouterr().out
    assert "190,464 of 11,572,032 parameters" in said and "(1.65 %)" in said and "parameters of the generator" in said
    assert adapter_size(model).share == model.predictor.share, "the tokenizer is no base"
    assert trainable_share(model) == expected_share(model) < 0.001
    digest = digest_of(model.tokenizer.network.state_dict())
    assert f"tokenizer={digest}" in model.extra_repr() and "timesteps=10" in model.extra_repr()

    state = model.state_dict()
    assert len(state) == 88 and all(".lora_" in name for name in state)
    with torch.no_grad():
        trained = model.logits(s1, opt_v2)
        model.predictor.save(tmp_path / "adapters.safetensors")
        merged = model.predictor.merged()
        sar, optical = model.units.sar(s1), model.units.among_l2a(model.units.optical(opt_v2))
        torch.testing.assert_close(merged(sar, optical), trained, atol=1e-5 * float(trained.abs().max()), rtol=0)
        untrained = terramind.build_generator("tiny", pretrained=False)
        base = terramind_tokens.TokenLogits(untrained.sampler)
        assert not torch.allclose(base(sar, optical), trained, atol=1e-3), "the adapters make no difference"
        again = load_adapters(base, tmp_path / "adapters.safetensors")
        assert torch.equal(again(sar, optical), trained)
        model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in state.items()})  # strict
        assert not torch.allclose(model.logits(s1, opt_v2), trained, atol=1e-3)


def test_logits_are_those_that_the_library_draws_from(untrained: TerraMindTokens) -> None:
    from terratorch.models.backbones.terramind.model import generate
    from terratorch.models.backbones.terramind.model.modality_info import MODALITY_INFO

    s1, opt_v2, _ = tiles(2, side=64)
    units, sampler = untrained.units, untrained.predictor.base.sampler
    images = dict(zip(terramind_tokens.IMAGES, (units.sar(s1), units.among_l2a(units.optical(opt_v2))), strict=True))
    none, all_of = torch.zeros(2, 16, dtype=torch.bool), torch.ones(2, 16, dtype=torch.bool)
    masks = {"input_mask": none, "target_mask": all_of, "decoder_attention_mask": none}
    given: dict[str, Any] = {name: {"tensor": x, **masks} for name, x in images.items()}
    target = terramind_tokens.TARGET
    given[target] = generate.init_empty_target_modality(MODALITY_INFO, target, 2, 16, torch.device("cpu"))
    with torch.no_grad(), torch.random.fork_rng():
        theirs, places = sampler.forward_enc_dec_roar_batched(given, target, 16, seed=0)
        ours = untrained.logits(s1, opt_v2)
    torch.testing.assert_close(ours.gather(1, places[..., None].expand_as(theirs)), theirs, atol=1e-4, rtol=1e-4)


def test_the_same_seed_draws_the_same_image(untrained: TerraMindTokens) -> None:
    s1, opt_v2, _ = tiles(1)
    s1, opt_v2 = s1[..., :25], opt_v2[..., :25]  # 32 × 25 pixels: padded, and cropped again
    given, state = (s1.clone(), opt_v2.clone()), torch.get_rng_state()
    first, second, other = (untrained(s1, opt_v2, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert first.shape == opt_v2.shape and first.dtype == torch.float32 and not first.requires_grad
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(s1, given[0]) and torch.equal(opt_v2, given[1])
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator was used"


@pytest.mark.parametrize(("size", "n"), [((48, 48), 4), ((100, 100), 8), ((112, 112), 8), ((64, 80), 6)])
def test_tokens_and_images_of_any_size(untrained: TerraMindTokens, size: tuple[int, int], n: int) -> None:
    """The tokenizer's decoder takes multiples of 32 pixels alone; what is added is not learnt."""
    height, width = size
    s1, opt_v2, l2a = (x[..., :height, :width] for x in tiles(1, side=112))
    ids = untrained.tokens(l2a)
    assert ids.shape == (1, n, n) and int((ids != IGNORED).sum()) == (height // 16) * (width // 16)
    assert (ids[:, : height // 16, : width // 16] != IGNORED).all()
    with torch.no_grad():
        assert untrained(s1, opt_v2, None).shape == (1, n * n, 15360)
        assert bool(untrained.cross_entropy(s1, opt_v2, ids).isfinite())
    image = untrained(s1, opt_v2, torch.Generator().manual_seed(0))
    assert image.shape == opt_v2.shape and bool(image.isfinite().all())


def test_an_image_does_not_depend_on_those_beside_it(untrained: TerraMindTokens) -> None:
    s1, opt_v2, _ = tiles(2)

    def drawn(*numbers: int) -> Tensor:
        seeds = [torch.Generator().manual_seed(number) for number in numbers]
        return untrained(s1[list(numbers)], opt_v2[list(numbers)], seeds)

    both, turned = drawn(0, 1), drawn(1, 0)
    assert torch.equal(both, turned.flip(0)) and torch.equal(both[:1], drawn(0))
    assert torch.equal(both[1:], untrained(s1[1:], opt_v2[1:], torch.Generator().manual_seed(1)))
    assert not torch.equal(both[0], both[1])


def test_a_pixel_loss_through_drawn_tokens_is_refused(untrained: TerraMindTokens) -> None:
    s1, opt_v2, _ = tiles(1)
    untrained.train()
    try:
        assert not untrained.tokenizer.network.training
        with pytest.raises(UserError, match="passes no gradient back.*terramind-backbone"):
            untrained(s1, opt_v2, torch.Generator())
        with torch.no_grad():
            untrained(s1, opt_v2, torch.Generator())
    finally:
        untrained.eval()


def test_targets_are_the_tokenizers_numbers_where_a_square_was_measured(untrained: TerraMindTokens) -> None:
    s1, opt_v2, l2a = tiles(2)
    whole = untrained.tokens(l2a)
    with torch.no_grad():
        theirs = untrained.tokenizer.network.tokenize(untrained.units.l2a(l2a))
    assert torch.equal(whole, theirs.long()) and whole.shape == (2, 2, 2) and int(whole.min()) >= 0
    l2a[0, 3, 20, 1] = torch.nan
    known = untrained.tokens(l2a) != IGNORED
    assert known.flatten(1).tolist() == [[True, True, False, True], [True] * 4]
    assert (untrained.tokens(l2a[..., :20]) != IGNORED)[1].tolist() == [[True, False], [True, False]]
    with torch.no_grad():
        partly = torch.where(known, whole, IGNORED)
        log_p = untrained.logits(s1, opt_v2).log_softmax(-1).gather(-1, whole.flatten(1)[..., None])[..., 0]
        wanted = -log_p[known.flatten(1)].mean()
        torch.testing.assert_close(untrained.cross_entropy(s1, opt_v2, partly), wanted)
        assert float(untrained.cross_entropy(s1, opt_v2, torch.full_like(whole, IGNORED))) == 0


def test_images_that_the_token_route_cannot_take(untrained: TerraMindTokens) -> None:
    _, opt_v2, l2a = tiles(1)
    with pytest.raises(UserError, match="all 12 bands .* got 4"):
        untrained.tokens(opt_v2)
    with pytest.raises(UserError, match="takes digital numbers"):
        untrained.tokens(l2a / 1e4)


def test_targets_that_hit_the_tokenizer_or_nothing(untrained: TerraMindTokens) -> None:
    network = nn.ModuleDict()
    network.tokenizer = untrained.tokenizer.network
    network.sampler = nn.ModuleDict({"qkv": nn.Linear(2, 2)})
    for short in ("qkv", "proj", r".*attn\.(qkv|proj)"):
        with pytest.raises(UserError, match=r"hit \d+ layers of the tokenizer, e.g. tokenizer\."):
            refuse_tokenizer(network, short)
    refuse_tokenizer(network, r"sampler\.qkv")
    with pytest.raises(UserError, match="match the whole name of no"):
        refuse_tokenizer(network, "query")


def test_drawing_keeps_to_the_likeliest() -> None:
    p = torch.tensor([0.05, 0.5, 0.15, 0.3])
    logits = p.log().expand(1, 20000, 4)
    drawn = draw(logits, torch.Generator().manual_seed(0), top_p=0.7)[0].bincount(minlength=4) / 20000
    assert drawn[0] == drawn[2] == 0
    assert drawn[1].item() == pytest.approx(0.5 / 0.8, abs=0.02)
    assert set(draw(logits, torch.Generator(), top_p=0.0).flatten().tolist()) == {1}
    everything = draw(logits, torch.Generator().manual_seed(0), top_p=1.0)[0].bincount(minlength=4) / 20000
    torch.testing.assert_close(everything, p, atol=0.02, rtol=0)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from terratorch.models.backbones.terramind.model import terramind_register

    with pytest.raises(UserError, match="terramind_v1_tiny are not on this machine .*--no-pretrained"):
        terramind.build_encoder("tiny", pretrained=True)

    def weights_of(network: nn.Module, *, without: str, cut: str = "") -> Any:
        state = {key: value for key, value in network.state_dict().items() if key != without}
        state = {key: value[:-1] if key == cut else value for key, value in state.items()}
        torch.save(state, tmp_path / "weights.pt")
        return lambda **asked: str(tmp_path / "weights.pt")

    whole = terramind_register.terramind_v1_tiny(modalities=["S1GRD", "S2L2A"])
    monkeypatch.setattr(terramind_register, "hf_hub_download", weights_of(whole, without=""))
    loaded = terramind.build_encoder("tiny", pretrained=True)
    key = "encoder.3.attn.qkv.weight"
    assert torch.equal(loaded.state_dict()[key], whole.state_dict()[key])
    monkeypatch.setattr(terramind_register, "hf_hub_download", weights_of(whole, without=key))
    with pytest.raises(UserError, match=f"leave 1 of its 125 tensors untrained, e.g. {key}"):
        terramind.build_encoder("tiny", pretrained=True)
    monkeypatch.setattr(terramind_register, "hf_hub_download", weights_of(whole, without="", cut=key))
    with pytest.raises(UserError, match=f"leave 1 of its 125 tensors untrained, e.g. {key}"):
        terramind.build_encoder("tiny", pretrained=True)

    file = weights_of(whole, without="")
    monkeypatch.setattr(terramind_register, "hf_hub_download", file)
    monkeypatch.setattr(terramind_register, "checkpoint_filter_fn", lambda state, model: model.state_dict())
    with pytest.raises(UserError, match="leave .* of its 125 tensors untrained"):  # and the library says nothing of it
        terramind.build_encoder("tiny", pretrained=True)

    monkeypatch.setattr(terramind_register, "checkpoint_filter_fn", lambda state, model: state)
    here, tables = iter([True]), terramind_register.pretrained_weights

    def renamed(**asked: str) -> Any:  # after the library has used its table
        if next(here, False):
            monkeypatch.setattr(terramind_register, "pretrained_weights", {})
        return file(**asked)

    monkeypatch.setattr(terramind_register, "hf_hub_download", renamed)
    with pytest.raises(UserError, match="does not say where the weights of terramind_v1_tiny come from"):
        terramind.build_encoder("tiny", pretrained=True)
    monkeypatch.setattr(terramind_register, "pretrained_weights", tables)

    for module in ("terratorch", "terratorch.registry"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=r"comes with terratorch.*pip install 'nbhelpers\[terramind\]'"):
        terramind.build_encoder("tiny", pretrained=False)
