"""LoRA on modules: what it is put on, that it starts at the base, what is saved, and that a base is never copied."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from toy import ToyConfig, ToyTask

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.adapters import Adapted, expected_share, load_adapters, matching, remarks_of
from nbhelpers.stages.sar_grounding.compact import Compact
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.adapters import adapter_size, trainable_share
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import architecture_hash
from nbhelpers.training.task import Phase

ATTENTION = r"(encoder|decoder)\.\d+\.attention\.(q|kv)"


class Attention(nn.Module):
    """Two linear layers that are added up; the names are what matters."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) + torch.tanh(self.kv(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attention(), nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x))


class Network(nn.Module):
    """An encoder and a decoder, and a tokenizer whose layers have the same names."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.tokenizer, self.q = Layer(), nn.Linear(24, 24)
        self.encoder, self.decoder = nn.Sequential(Layer(), Layer()), nn.Sequential(Layer())
        self.head = nn.Conv1d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.encoder(self.q(self.tokenizer(x)))).transpose(-1, -2))


@torch.no_grad()
def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def stirred(adapted: Adapted, seed: int = 1) -> Adapted:
    """As if it had been trained: no A and no B is what it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapted.adapters().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return adapted.eval()


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


class TestPuttingThemOn:
    def test_at_first_it_is_the_base(self) -> None:
        x, adapted = some(2, 5, 24), Adapted(Network(), targets=ATTENTION)
        assert torch.equal(adapted(x), Network()(x))
        assert not torch.equal(stirred(adapted)(x), Network()(x))

    def test_share_and_what_is_trained(self) -> None:
        base = Network()
        before = sum(p.numel() for p in base.parameters())
        adapted = Adapted(base, targets=ATTENTION, rank=3)
        added = 3 * 2 * 3 * (24 + 24)  # three layers of attention, two matrices each, rank 3
        trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
        assert trained == set(adapted.adapters()) and len(trained) == 12
        assert sum(p.numel() for p in adapted.adapters().values()) == added
        assert adapted.share == pytest.approx(added / (before + added), rel=1e-12)
        said = f"LoRA of rank 3 on 6 layers of a frozen network: {added:,} of {before + added:,} parameters"
        whole = f"{said}, those of LoRA among them, are trained ({100 * adapted.share:.2f} %)."
        assert adapted.remarks() == remarks_of(adapted) == [whole]

    def test_only_whole_names_match(self) -> None:
        """The short name 'q' ends the names of a tokenizer's layers too."""
        assert matching(Network(), "q") == ("q",)
        assert list(Adapted(Network(), targets="q").state_dict()) == ["base.q.lora_A.default.weight"] + [
            "base.q.lora_B.default.weight"
        ]
        found = matching(Network(), ATTENTION)
        assert len(found) == 6 and not any("tokenizer" in name for name in found)

    def test_containers_and_norms_are_passed_over(self) -> None:
        base = Network()
        found = matching(base, r".*attention.*|head|.*norm")
        assert len(found) == 9 and all(isinstance(base.get_submodule(name), nn.Linear | nn.Conv1d) for name in found)
        adapted = stirred(Adapted(base, targets=r".*attention.*|head|.*norm"))
        assert adapted(some(2, 5, 24)).shape == (2, 3, 5)

    def test_nothing_matches(self) -> None:
        with pytest.raises(
            UserError, match=r"'attention' match the whole name of no .* of Network .*10, e\.g\. .*attention"
        ):
            Adapted(Network(), targets="attention")
        with pytest.raises(UserError, match="LayerNorm .it has no such layers"):
            Adapted(nn.LayerNorm(3), targets=".*")

    @pytest.mark.parametrize(
        ("settings", "said"), [({"targets": "("}, "no regular expression"), ({"targets": "q", "rank": 0}, "rank 0")]
    )
    def test_settings_that_make_no_sense(self, settings: dict[str, Any], said: str) -> None:
        base = Network()
        with pytest.raises(UserError, match=said):
            Adapted(base, **settings)
        assert all(p.requires_grad for p in base.parameters())  # nothing has been touched

    def test_not_twice(self) -> None:
        base = Network()
        Adapted(base, targets="q")
        with pytest.raises(UserError, match="has adapters already"):
            Adapted(base, targets=ATTENTION)

    @pytest.mark.parametrize(("rank", "targets", "unusual"), [(8, ".*", "small network"), (4, ".*", None)])
    def test_unusual_share(self, rank: int, targets: str, unusual: str | None) -> None:
        said = Adapted(Network(), targets=targets, rank=rank).remarks()
        assert len(said) == (1 if unusual is None else 2)
        assert unusual is None or (unusual in said[1] and "0.5–5 %" in said[1])

    def test_too_small_a_share_is_said_too(self) -> None:
        wide = nn.Sequential(nn.Linear(1800, 1800), nn.Linear(1800, 1))
        assert "too few or too small layers" in Adapted(wide, targets="1").remarks()[1]


class Generator(nn.Module):
    """An adapted network between a decoder that is trained and a tokenizer that is not."""

    trained_in_full = ("decoder",)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Adapted(Network(), targets=ATTENTION + "|head", rank=3)
        self.decoder, self.tokenizer = Layer(), Network().requires_grad_(False)


class TestShareOfAGenerator:
    def test_what_is_beside_an_adapted_network_is_no_base(self) -> None:
        whole = Generator()
        size = adapter_size(whole)
        assert size.adapters == sum(tensor.numel() for tensor in whole.encoder.adapters().values())
        assert size.base == sum(p.numel() for p in Network().parameters())
        assert size.share == whole.encoder.share == size.adapters / (size.adapters + size.base)

    def test_remarks_tell_the_adapters_from_all_that_is_trained(self) -> None:
        whole = Generator()
        lora, everything = remarks_of(whole)
        assert [lora] == whole.encoder.remarks()
        n = sum(p.numel() for p in whole.parameters())
        trained = adapter_size(whole).adapters + sum(p.numel() for p in whole.decoder.parameters())
        assert f"{trained:,} of {n:,} parameters of the generator are trained ({100 * trained / n:.2f} %)" in everything
        assert remarks_of(Network()) == []
        assert remarks_of(nn.ModuleDict({"module": whole})) == [lora, everything]  # within somebody's wrapping

    def test_what_is_meant_to_be_trained_does_not_follow_what_is(self) -> None:
        whole = Generator()
        expected = expected_share(whole)
        assert trainable_share(whole) == expected
        whole.encoder.base.q.requires_grad_(True)
        assert trainable_share(whole) > expected == expected_share(whole)
        whole.encoder.base.q.requires_grad_(False)
        next(iter(whole.encoder.adapters().values())).requires_grad_(False)
        assert trainable_share(whole) < expected == expected_share(whole)

    def test_without_adapters_all_is_meant_to_be_trained(self) -> None:
        assert expected_share(Network().requires_grad_(False)) == 1


class TestTraining:
    def test_a_has_no_gradient_at_first_and_the_base_stays(self) -> None:
        base = Network()
        before = checkpoint.digest_of(base.state_dict())
        adapted = Adapted(base, targets=ATTENTION)
        assert adapted.about.base_sha256 == before
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
        seen: list[set[str]] = []
        for _ in range(2):
            optimizer.zero_grad()
            adapted(some(4, 5, 24)).square().mean().backward()
            seen.append({name for name, p in adapted.adapters().items() if bool((p.grad != 0).any())})
            optimizer.step()
        assert seen[0] == {name for name in adapted.adapters() if ".lora_B." in name}
        assert seen[1] == set(adapted.adapters())
        there = Network()
        for name, tensor in adapted.base.named_parameters():
            if "lora_" not in name:
                assert torch.equal(tensor, there.get_parameter(name.replace(".base_layer", "")))


class TestFiles:
    def test_reloaded_and_merged_are_the_same(self, tmp_path: Path) -> None:
        x, adapted = some(2, 5, 24), stirred(Adapted(Network(), targets=ATTENTION + "|head", rank=4, alpha=10.0))
        adapted.save(tmp_path / "lora.safetensors")
        again = load_adapters(Network(), tmp_path / "lora.safetensors").eval()
        assert torch.equal(again(x), adapted(x)) and again.about == adapted.about
        merged = adapted.merged()
        assert distance(merged(x), adapted(x)) < 1e-5
        assert distance(merged(x), Network()(x)) > 1e-2
        assert merged.state_dict().keys() == Network().state_dict().keys()
        assert torch.equal(again(x), adapted(x))  # merging has made a copy

    def test_the_base_is_not_in_the_file(self, tmp_path: Path) -> None:
        adapted = Adapted(Network(), targets=ATTENTION)
        adapted.save(tmp_path / "lora.safetensors")
        with safe_open(tmp_path / "lora.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(adapted.adapters())

    def test_another_base_is_refused(self, tmp_path: Path) -> None:
        Adapted(Network(), targets=ATTENTION).save(tmp_path / "lora.safetensors")
        other = Network()
        with torch.no_grad():
            other.head.bias[0] += 1e-6
        with pytest.raises(UserError, match=r"lora\.safetensors holds adapters of a base with sha256"):
            load_adapters(other, tmp_path / "lora.safetensors")

    def test_files_that_are_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "text.safetensors").write_text("nothing of the kind")
        for name in ("text.safetensors", "missing.safetensors"):
            with pytest.raises(UserError, match=f"{name} is no file of adapters"):
                load_adapters(Network(), tmp_path / name)
        with pytest.raises(UserError, match="could not be written"):
            Adapted(Network(), targets="q").save(tmp_path / "no_such_folder" / "lora.safetensors")

    def test_state_within_a_larger_module(self) -> None:
        """Keys of the base are neither written nor missed; all others are."""

        class Larger(nn.Module):
            def __init__(self, seed: int):
                super().__init__()
                self.inner = Adapted(Network(), targets=ATTENTION)
                torch.manual_seed(seed)
                self.outer = nn.Linear(5, 2)

        one, two = Larger(1), Larger(2)
        stirred(one.inner)
        state = one.state_dict()
        assert set(state) == {f"inner.{name}" for name in one.inner.adapters()} | {"outer.weight", "outer.bias"}
        two.load_state_dict(state)  # strict
        assert torch.equal(two.inner(some(1, 5, 24)), one.inner.train()(some(1, 5, 24)))
        del state["outer.bias"]
        with pytest.raises(RuntimeError, match="outer.bias"):
            two.load_state_dict(state)
        del state[f"inner.{next(iter(one.inner.adapters()))}"]
        with pytest.raises(RuntimeError, match="lora_A"):
            two.load_state_dict(state)

    def test_the_architecture_names_base_rank_and_alpha(self) -> None:
        def hashed(seed: int = 0, **settings: Any) -> str:
            return architecture_hash({"net": Adapted(Network(seed), targets="q", **settings)})

        assert hashed() == hashed()
        assert len({hashed(), hashed(1), hashed(alpha=4.0), hashed(rank=4)}) == 4


class AdaptedToy(ToyTask):
    """The toy's convolution with adapters on it."""

    def __init__(self, config: ToyConfig, base_seed: int = 0):
        super().__init__(config)
        torch.manual_seed(base_seed)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 1, 3, padding=1))
        torch.manual_seed(config.seed)
        adapted = Adapted(net, targets=r"\d", rank=2)
        self.modules = {"net": adapted}
        optimizer = torch.optim.Adam(adapted.adapters().values(), lr=config.lr)
        self.phases = (Phase("train", config.epochs, {"net": optimizer}, trainable={"net": adapted.share}),)


class TestRun:
    def weights(self, folder: Path) -> Mapping[str, Tensor]:
        with safe_open(folder / checkpoint.WEIGHTS, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping

    def test_checkpoints_refer_to_the_base_and_a_run_goes_on_exactly(self, tmp_path: Path) -> None:
        def trained(name: str, epochs: int) -> Mapping[str, Tensor]:
            task = AdaptedToy(dataclasses.replace(ToyConfig(), epochs=epochs))
            run = open_run(task, tmp_path, name)
            fit(task, run)
            found = checkpoint.find(run, "last")
            assert found is not None
            return self.weights(found.folder)

        whole = trained("whole", 3)
        trained("parts", 1)
        parts = trained("parts", 3)
        assert whole.keys() == parts.keys() and all(".lora_" in name for name in whole)
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

    def test_a_run_does_not_go_on_upon_another_base(self, tmp_path: Path) -> None:
        task = AdaptedToy(ToyConfig())
        fit(task, open_run(task, tmp_path, "run"))
        with pytest.raises(UserError, match="architecture hash"):
            open_run(AdaptedToy(ToyConfig(), base_seed=1), tmp_path, "run")


def test_on_the_compact_generator() -> None:
    """At rank 8 on its attention and perceptrons LoRA trains a usual share, and merged equals unmerged."""
    torch.manual_seed(0)
    base = Compact(
        sar_mean=(-12.0, -19.0),
        sar_std=(3.0, 3.0),
        optical_mean=(0.1,) * 4,
        optical_std=(0.05,) * 4,
        residual_std=(0.03,) * 4,
        timesteps=2,
    )
    nn.init.normal_(base.denoiser.head.weight, std=0.02)
    adapted = Adapted(base, targets=r"denoiser\.blocks\.\d+\.(attention\.(q|kv|proj)|widen|narrow)")
    assert expected_share(adapted) == trainable_share(adapted)
    assert len(adapted.about.targets) == 10 and 0.005 < adapted.share < 0.05 and len(adapted.remarks()) == 1
    s1, optical = -15 + 3 * some(1, 2, 40, 40), 0.1 + 0.05 * some(1, 4, 40, 40)

    def out(model: nn.Module) -> Tensor:
        return model(s1, optical, torch.Generator().manual_seed(0))

    untrained = out(adapted)
    stirred(adapted)
    assert distance(out(adapted), untrained) > 1e-4
    assert distance(out(adapted.merged()), out(adapted)) < 1e-5
