"""Perceptual losses against a direct computation, LPIPS against its package, and where the weights come from."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio
import torch
import torchvision
from torch import Tensor, nn

from nbhelpers.core import download, manifest
from nbhelpers.core.errors import UserError
from nbhelpers.science import backbones
from nbhelpers.science.perceptual import Lpips, PerceptualLoss

NETS = ("squeeze", "alex", "vgg16", "vgg19")
LPIPS_NETS = ("squeeze", "alex", "vgg16")
BUILD = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg16": "vgg16", "vgg19": "vgg19"}
PACKAGE = {"squeeze": "squeeze", "alex": "alex", "vgg16": "vgg"}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Sequential, Path]]:
    """torchvision's ``features`` with weights of our own, and the file that holds them."""
    folder = tmp_path_factory.mktemp("weights")
    made: dict[str, tuple[nn.Sequential, Path]] = {}

    def make(net: str) -> tuple[nn.Sequential, Path]:
        if net not in made:
            torch.manual_seed(NETS.index(net) + 1)
            features = getattr(torchvision.models, BUILD[net])(weights=None).features
            torch.save({f"features.{key}": tensor for key, tensor in features.state_dict().items()}, folder / net)
            made[net] = features.eval().requires_grad_(False), folder / net
        return made[net]

    return make


@pytest.fixture(scope="module")
def rgb(real_data: Path) -> Tensor:
    """(N, 3, 120, 120) real patches in true colours, stretched by one constant."""
    patches = sorted(path for path in (real_data / "bigearthnet/BigEarthNet-S2").iterdir() if path.is_dir())
    images = []
    for patch in patches:
        bands = []
        for band in ("B04", "B03", "B02"):
            with rasterio.open(patch / f"{patch.name}_{band}.tif") as file:
                bands.append(torch.from_numpy(file.read(1).astype("float32")))
        images.append(torch.stack(bands) / 3000)
    return torch.stack(images).clamp(0, 1)


def pair(seed: int, *, shape: tuple[int, ...] = (3, 3, 64, 48)) -> tuple[Tensor, Tensor]:
    """A prediction and a target in [0, 1]; their three channels differ."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator)
    return (target + 0.3 * torch.randn(shape, generator=generator)).requires_grad_(True), target


def vgg_layer_names(features: nn.Sequential) -> list[str]:
    """relu1_1, relu1_2, pool1, … as the papers name VGG's layers."""
    names, block, number = [], 1, 0
    for layer in features:
        kind = {nn.Conv2d: "conv", nn.ReLU: "relu", nn.MaxPool2d: "pool"}[type(layer)]
        number += kind == "conv"
        names.append(f"{kind}{block}_{number}" if kind != "pool" else f"pool{block}")
        if kind == "pool":
            block, number = block + 1, 0
    return names


def direct_perceptual(features: nn.Sequential, taps: list[int], prediction: Tensor, target: Tensor) -> Tensor:
    """Σ over taps of the feature MSE, channel by channel and layer by layer."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    maps: list[list[Tensor]] = [[], []]
    for image, kept in zip((prediction, target), maps, strict=True):
        x = torch.stack([(image[:, i] - mean[i]) / std[i] for i in range(3)], 1)
        for index, layer in enumerate(features[: taps[-1] + 1]):
            x = layer(x.clone())  # some of torchvision's ReLUs work in place
            if index in taps:
                kept.append(x)
    return sum((((a - b) ** 2).sum() / a.numel() for a, b in zip(*maps, strict=True)), torch.zeros(()))


@pytest.mark.parametrize("net", NETS)
def test_the_taps_are_the_layers_of_the_papers(net: str, networks: Callable) -> None:
    features, _ = networks(net)
    taps = backbones.TAPS[net]
    if net.startswith("vgg"):
        names = vgg_layer_names(features)
        expected = {"vgg16": ["relu1_2", "relu2_2", "relu3_3", "relu4_3"], "vgg19": ["relu5_4"]}
        assert [names[tap] for tap in taps] == expected[net]
        assert names[backbones.PRE_ACTIVATION[net][0]] == {"vgg16": "conv5_3", "vgg19": "conv5_4"}[net]
        return
    kinds = {type(features[tap]).__name__ for tap in taps}
    assert kinds == ({"ReLU"} if net == "alex" else {"ReLU", "Fire"})
    x, channels = torch.rand(1, 3, 64, 64), []
    for index, layer in enumerate(features):
        x = layer(x)
        channels += [x.shape[1]] if index in taps else []
    assert channels == {"alex": [64, 192, 384, 256, 256], "squeeze": [64, 128, 256, 384, 384, 512, 512]}[net]


@pytest.mark.parametrize("net", LPIPS_NETS)
def test_the_perceptual_term_equals_a_direct_computation(net: str, networks: Callable) -> None:
    features, path = networks(net)
    taps = {"vgg16": [3, 8, 15, 22], "alex": [1, 4, 7, 9, 11], "squeeze": [1, 4, 7, 9, 10, 11, 12]}[net]
    prediction, target = pair(1)
    value = PerceptualLoss(net, str(path)).against(target)(prediction)
    expected = direct_perceptual(features, taps, prediction, target)
    assert expected.item() > 1e-4
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(v, prediction)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("net", ["squeeze", "alex", "vgg19"])
def test_features_before_activation_are_those_that_the_last_relu_rectifies(net: str, networks: Callable) -> None:
    features, path = networks(net)
    (tap,) = backbones.PRE_ACTIVATION[net]
    perceptual = PerceptualLoss(net, str(path), before_activation=True)
    images = pair(2)[1]
    (before,) = perceptual.activations(images)
    x = (images - perceptual.mean) / perceptual.std
    for layer in features[: tap + (1 if net == "squeeze" else 2)]:  # the ReLUs of a Fire module are inside it
        x = layer(x.clone())
    torch.testing.assert_close(before.relu(), x)
    assert 0.05 < float((before < 0).float().mean()) < 0.95


def test_random_vgg19_is_built_and_has_values_below_zero() -> None:
    perceptual = PerceptualLoss("vgg19", "random", before_activation=True, absolute=True)
    assert perceptual.taps == (34,) and isinstance(perceptual.features[-1], nn.Conv2d)
    (features,) = perceptual.activations(pair(2, shape=(1, 3, 32, 32))[1])
    assert features.shape == (1, 512, 2, 2) and (features < 0).any() and (features > 0).any()


def test_the_absolute_distance_is_the_mean_of_absolute_differences(networks: Callable) -> None:
    perceptual = PerceptualLoss("vgg19", str(networks("vgg19")[1]), before_activation=True, absolute=True)
    prediction, target = pair(3)
    with torch.no_grad():
        guess, truth = (perceptual.activations(image)[0].double() for image in (prediction, target))
        expected = (guess - truth).abs().mean()
    assert perceptual.against(target)(prediction).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("before_activation", [False, True])
def test_real_weights_tell_real_images_from_blurred_ones(
    real_data: Path, rgb: Tensor, absolute: bool, before_activation: bool
) -> None:
    path = real_data / "weights/squeezenet1_1_caffe_features.pth"
    perceptual = PerceptualLoss("squeeze", str(path), absolute=absolute, before_activation=before_activation)
    assert perceptual.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loss = perceptual.against(rgb)
    blurred = nn.functional.avg_pool2d(rgb, 5, stride=1, padding=2, count_include_pad=False).requires_grad_(True)
    value = loss(blurred)
    value.backward()
    assert blurred.grad is not None and (blurred.grad.abs().sum((-2, -1)) > 0).all()  # every channel of every image
    with torch.no_grad():
        assert loss(rgb) == 0.0
        assert 0 < float(loss(rgb + 0.1 * (blurred - rgb))) < 0.5 * float(value)


def test_missing_pixels_do_not_reach_the_loss(networks: Callable) -> None:
    perceptual = PerceptualLoss("squeeze", str(networks("squeeze")[1]))
    prediction, target = pair(4)
    valid = torch.ones(3, 1, 64, 48, dtype=torch.bool)
    valid[0, :, :20, 10:30] = False
    loss = perceptual.against(target, valid)
    value = loss(prediction)
    (gradient,) = torch.autograd.grad(value, prediction)
    missing = ~valid.expand_as(target)
    assert (gradient[missing] == 0).all() and (gradient[~missing] != 0).any()
    assert loss(torch.where(valid, prediction, torch.tensor(7.0))) == value
    assert loss(torch.where(valid, target, torch.tensor(7.0))) == 0.0


def test_target_features_carry_no_gradient(networks: Callable) -> None:
    perceptual = PerceptualLoss("squeeze", str(networks("squeeze")[1]))
    prediction, target = pair(3)
    target.requires_grad_(True)
    perceptual.against(target)(prediction).backward()
    assert prediction.grad is not None and (prediction.grad != 0).any()
    assert target.grad is None or (target.grad == 0).all()
    assert all(not p.requires_grad and p.grad is None for p in perceptual.parameters())
    assert not perceptual.features.training


def test_the_loss_is_float32_whatever_the_precision_around_it(networks: Callable) -> None:
    perceptual = PerceptualLoss("squeeze", str(networks("squeeze")[1]))
    prediction, target = pair(4)
    plain = perceptual.against(target)(prediction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = perceptual.against(target)(prediction)
    assert mixed.dtype == torch.float32 and torch.equal(plain, mixed)


# --- LPIPS --------------------------------------------------------------------------------------------------------


def package_lpips(net: str, features: nn.Sequential) -> nn.Module:
    """The lpips package's own distance, with the given backbone copied in by position."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distance = lpips.LPIPS(net=PACKAGE[net], pnet_rand=True, verbose=False).eval()
    theirs = list(distance.net.parameters())
    with torch.no_grad():
        for parameter, own in zip(theirs, list(features.parameters())[: len(theirs)], strict=True):
            parameter.copy_(own)
    return distance


def check_lpips(lpips: Lpips, features: nn.Sequential) -> None:
    prediction, target = pair(5)
    prediction = prediction.detach().clamp(0, 1)
    found = lpips(prediction, target)
    assert found.shape == (3,)
    package = package_lpips(lpips.weights.net, features)
    for i in range(3):
        with torch.no_grad():
            expected = package(prediction[i : i + 1], target[i : i + 1], normalize=True)  # its own way from [0, 1]
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-5)
        assert float(expected) > 1e-3


@pytest.mark.parametrize("net", LPIPS_NETS)
def test_lpips_equals_its_package(net: str, networks: Callable) -> None:
    features, path = networks(net)
    check_lpips(Lpips(net, str(path)), features)


def test_lpips_equals_its_package_with_real_weights(real_data: Path, rgb: Tensor) -> None:
    path = real_data / "weights/squeezenet1_1_caffe_features.pth"
    network = torchvision.models.squeezenet1_1(weights=None)
    network.load_state_dict(torch.load(path, weights_only=True), strict=False)
    lpips = Lpips("squeeze", str(path))
    check_lpips(lpips, network.features)
    assert lpips.key == "lpips"
    assert lpips.name.startswith("LPIPS-style (squeeze, squeezenet1_1_caffe_features.pth weights, sha256 ")
    assert (lpips(rgb, rgb) == 0).all()
    smooth = [nn.functional.avg_pool2d(rgb, n, stride=1, padding=n // 2, count_include_pad=False) for n in (3, 9)]
    near, far = (lpips(image, rgb) for image in smooth)
    assert (near > 0).all() and (near < far).all()


def test_random_weights_are_named_and_never_called_lpips() -> None:
    lpips = Lpips("squeeze", "random")
    assert lpips.key == "feature_distance_random" and "not LPIPS" in lpips.name
    assert lpips.weights.is_random and lpips.weights.sha256 is None
    assert str(PerceptualLoss("squeeze", "random").weights) == "squeeze, random weights"


# --- weights ------------------------------------------------------------------------------------------------------


def test_random_weights_are_always_the_same_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, _ = backbones.load_features("squeeze", "random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    other, _ = backbones.load_features("squeeze", "random")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not any(p.requires_grad for p in one.parameters())


def test_weights_of_another_net_are_refused(networks: Callable) -> None:
    with pytest.raises(UserError, match="does not hold the features of alex.*give that net's weights"):
        backbones.load_features("alex", str(networks("squeeze")[1]))


class Bomb:
    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self) -> tuple:
        return Path.touch, (self.flag,)


def bomb(path: Path, kind: str, flag: Path) -> Path:
    if kind == "torch":
        torch.save({"features.0.weight": Bomb(flag)}, path)
    elif kind == "legacy":
        torch.save({"features.0.weight": Bomb(flag)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Bomb(flag)))
    return path


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_a_pickle_bomb_is_refused_without_being_run(tmp_path: Path, kind: str) -> None:
    path = bomb(tmp_path / "weights.pth", kind, tmp_path / "fired")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=r"weights\.pth is no state dict of plain tensors") as caught:
            backbones.load_features("squeeze", str(path))
    assert not (tmp_path / "fired").exists()
    assert "\n" not in str(caught.value)
    torch.load(bomb(tmp_path / "again.pth", "torch", tmp_path / "fired"), weights_only=False)
    assert (tmp_path / "fired").exists()  # it is a bomb


@pytest.mark.parametrize(
    "content",
    [b"", b"not weights at all", b"\x80\x02}q\x00.", pickle.dumps([1, 2]), pickle.dumps({0: 1, "features.0.bias": 2})],
)
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth"):
        backbones.load_features("squeeze", str(path))


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_cut_off_anywhere_are_refused(tmp_path: Path, legacy: bool) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "weights.pth"
    state = {f"features.{i}.bias": torch.zeros(2) for i in range(4)}
    torch.save(state, whole, _use_new_zipfile_serialization=not legacy)
    content = whole.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"weights\.pth"):
            backbones.load_features("squeeze", str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pth cannot be read.*check backbone_weights"):
        backbones.load_features("squeeze", str(tmp_path / "gone.pth"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """An empty cache of weights, and mirrors that nobody answers at; returns the cache's folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)

    def point(**changes: object) -> Path:
        content = json.loads((Path(__file__).parents[1] / "data_manifests/perceptual-weights.json").read_text())
        for file in content["files"]:
            file["mirrors"] = ["http://127.0.0.1:9/" + file["path"]]
            file.update(changes)
        (tmp_path / "perceptual-weights.json").write_text(json.dumps(content))
        written = manifest.load_manifest(tmp_path / "perceptual-weights.json")
        monkeypatch.setattr(backbones, "load_manifest", lambda name: {"perceptual-weights": written}[name])
        return tmp_path / "hub/checkpoints"

    return point


@pytest.mark.parametrize("net", NETS)
def test_imagenet_weights_without_a_network_are_one_sentence_with_the_cure(net: str, offline: Callable) -> None:
    cache = offline()
    with pytest.raises(UserError) as caught:
        backbones.load_features(net, "imagenet")
    sentence = str(caught.value)
    assert sentence.startswith(f"ImageNet weights of {net} are not here and cannot be fetched")
    assert str(cache / backbones.IMAGENET_FILES[net]) in sentence
    assert "or set it to 'random'" in sentence and "\n" not in sentence
    assert [path.name for path in cache.iterdir()] == []


def test_imagenet_weights_in_the_cache_need_no_network(networks: Callable, offline: Callable) -> None:
    features, path = networks("squeeze")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    cache = offline(sha256=sha256, bytes=path.stat().st_size)
    cache.mkdir(parents=True)
    (cache / backbones.IMAGENET_FILES["squeeze"]).write_bytes(path.read_bytes())
    found, weights = backbones.load_features("squeeze", "imagenet")
    assert (weights.net, weights.source, weights.sha256) == ("squeeze", "imagenet", sha256)
    assert torch.equal(next(found.parameters()), next(features.parameters()))
    assert Lpips("squeeze", "imagenet").name == "LPIPS (squeeze)"


def test_a_damaged_file_in_the_cache_is_refused_and_left_alone(networks: Callable, offline: Callable) -> None:
    _, path = networks("squeeze")
    cache = offline()
    cache.mkdir(parents=True)
    damaged = cache / backbones.IMAGENET_FILES["squeeze"]
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="1000 bytes, expected 4958839"):
        backbones.load_features("squeeze", "imagenet")
    assert damaged.stat().st_size == 1000
