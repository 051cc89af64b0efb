"""Settings of super-resolution: profiles, weights and shares of the same term, YAML and flags, values without sense."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from nbhelpers.core import flags
from nbhelpers.core.errors import UserError
from nbhelpers.core.settings import read_yaml
from nbhelpers.stages.super_resolution.balance import ADVERSARIAL_KNOBS, PERCEPTUAL_KNOBS
from nbhelpers.stages.super_resolution.config import ALTERNATIVES, PROFILES, SIMULATED, Config
from nbhelpers.training.weights import Share


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        Config().replace(changes, source="the test")
    said = str(caught.value)
    assert "\n" not in said and said[-1] in ".?"
    return said


def from_flags(words: str, profile: str = "t4") -> Config:
    """The settings as the command line makes them."""
    parser = argparse.ArgumentParser()
    flags.add_flags(parser, Config)
    return Config.for_profile(profile).replace(vars(parser.parse_args(words.split())), source="the command line")


# --- profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid_and_its_own_data_are_large_enough(profile: str) -> None:
    config = Config.for_profile(profile)
    assert config.profile == profile and config.crop <= 120
    assert SIMULATED[profile]["n_places"] >= 5, "three splits by place"
    assert config.adversarial_ramp <= config.stage2_epochs and config.bicubic_by <= config.stage1_epochs
    assert config.ensemble <= config.stage2_epochs


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_come_back_from_the_record_of_a_run(profile: str) -> None:
    config = Config.for_profile(profile, val_places=("33UUP",), mtf=(0.3, 0.3, 0.3, 0.2), lambda_adv=5e-3, offset=0)
    record = json.loads(json.dumps(dataclasses.asdict(config)))
    assert Config.for_profile(record["profile"]).replace(record, source="config.json") == config


def test_an_unknown_profile_and_an_unknown_setting() -> None:
    with pytest.raises(UserError, match="profile 'tiny' is unknown: choose one of smoke, quick, t4, full"):
        Config.for_profile("tiny")
    assert "did you mean 'num_rrdb'" in refusal(num_rrbd=3)


def test_the_published_settings_are_the_defaults() -> None:
    config = Config()
    assert (config.stage1_epochs, config.stage1_lr, config.stage2_lr, config.grad_clip) == (50, 1e-4, 5e-5, 0.1)
    assert (config.num_rrdb, config.num_rrfdb, config.features, config.growth) == (12, 6, 64, 32)
    assert (config.batch_size, config.weight_decay, config.l1_part, config.ema_decay) == (8, 1e-4, 0.8, 0.999)
    assert (config.lambda_pix, config.discriminator_lr_factor, config.mtf_by_band) == (1.0, 2.0, (0.3,) * 4)


# --- weights and shares ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "share"), ALTERNATIVES)
def test_a_weight_switches_the_share_off_and_the_other_way_round(number: str, share: str) -> None:
    config = Config()
    assert getattr(config, number) is None and getattr(config, share) is not None
    given = config.replace({number: 0.5}, source="")
    assert getattr(given, number) == 0.5 and getattr(given, share) is None
    back = given.replace({share: 0.2}, source="")
    assert getattr(back, number) is None and getattr(back, share) == 0.2
    assert config.replace({number: 0.0}, source="") == dataclasses.replace(config, **{number: 0.0, share: None})
    assert f"set either {number} or {share}" in refusal(**{number: 0.5, share: 0.2})
    assert f"set either {number} or {share}" in refusal(**{share: None})


def test_what_training_gets_of_them() -> None:
    assert Config().perceptual_weight == Share(0.3) and Config().adversarial_weight == Share(0.1)
    config = Config.for_profile("t4", lambda_perc=1.0, lambda_adv=1e-3)
    assert (config.perceptual_weight, config.adversarial_weight) == (1.0, 1e-3)
    assert Config.for_profile("t4", perceptual_share=0.0).perceptual_weight == Share(0.0)
    assert "leave nothing for the pixel error" in refusal(perceptual_share=0.6, adversarial_share=0.4)
    assert Config.for_profile("t4", lambda_perc=9.0, adversarial_share=0.9).perceptual_share is None


def test_the_panel_offers_settings_that_exist() -> None:
    names = {field.name for field in dataclasses.fields(Config)}
    for knob in (*PERCEPTUAL_KNOBS, *ADVERSARIAL_KNOBS):
        assert knob.field in names and knob.low <= knob.start <= knob.high
        Config.for_profile("t4", **{knob.field: knob.start})


def test_lpips_weights_follow_the_backbone_of_the_same_net() -> None:
    assert Config(backbone="squeeze", lpips_net="squeeze", backbone_weights="w.pth").lpips_source == "w.pth"
    assert Config(backbone="vgg19", lpips_net="alex", backbone_weights="random").lpips_source == "imagenet"
    assert Config(lpips_weights="mine.pth").lpips_source == "mine.pth"


# --- values without sense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": 0}, "features is 0, expected at least 1"),
        ({"ensemble": 0}, "ensemble is 0, expected at least 1"),
        ({"stage1_epochs": 0}, "stage1_epochs is 0, expected at least 1"),
        ({"stage2_epochs": -1}, "stage2_epochs is -1, expected 0 or more"),
        ({"stage1_lr": 0.0}, "stage1_lr is 0.0, expected a number above 0"),
        ({"stage2_lr": float("nan")}, "stage2_lr to nan, expected float (finite)"),
        ({"max_reflectance": -1.0}, "max_reflectance is -1.0"),
        ({"discriminator_lr_factor": 0.0}, "discriminator_lr_factor is 0.0"),
        ({"noise": -0.1}, "noise is -0.1, expected 0 or more"),
        ({"grad_clip": -1.0}, "grad_clip is -1.0, expected 0 or more"),
        ({"num_rrfdb": -1}, "num_rrfdb is -1, expected 0 or more"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"l1_part": 1.1}, "l1_part is 1.1, expected a part between 0 and 1"),
        ({"bands": ("B02", "B02", "B03", "B04")}, "expected different band names"),
        ({"bands": ("B02", "B03", "B08")}, "rgb is B04 B03 B02, expected three of the bands (B02 B03 B08)"),
        ({"rgb": ("B04", "B03")}, "expected 3 values"),
        ({"mtf": (0.3, 0.2)}, "one a band (4 of them)"),
        ({"mtf": (1.0,)}, "expected one value between 0 and 1"),
        ({"mtf": ()}, "mtf"),
        ({"max_patches": 2}, "max_patches is 2, expected at least 3"),
        ({"crop": 60}, "crop is 60, expected a multiple of 8"),
        ({"crop": 24}, "crop is 24, expected a multiple of 8 of at least 32"),
        ({"scale": 3}, "expected 2 or 4 or 8"),
        ({"scaling": "patch"}, "expected 'physical' or 'percentile'"),
        ({"split": "patch"}, "expected 'place' or 'country' or 'official'"),
        ({"val_places": ("33UUP",), "test_places": ("33UUP", "29UPU")}, "33UUP stands in val_places and"),
        ({"lambda_perc": -1.0}, "lambda_perc is -1.0, expected 0 or more"),
        ({"adversarial_share": 1.0}, "adversarial_share is 1.0, expected a share in [0, 1)"),
        ({"adversarial_ramp": -1.0}, "adversarial_ramp is -1.0"),
        ({"discriminator": "patch"}, "expected 'unet' or 'vgg'"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


# --- files and flags -------------------------------------------------------------------------------------------------


def test_settings_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "bands: [B05, B06, B07]\nrgb: [B07, B06, B05]\nscale: 2\nmtf: [0.25]\nval_places: [33UUP]\noffset: none\n"
        "lambda_adv: 1e-3\n"
    )
    config = Config.for_profile("quick").replace(read_yaml(path), source=str(path))
    assert config.bands == ("B05", "B06", "B07") and config.rgb == ("B07", "B06", "B05") and config.scale == 2
    assert config.mtf_by_band == (0.25,) * 3 and config.val_places == ("33UUP",) and config.offset is None
    assert config.lambda_adv == 1e-3 and config.adversarial_share is None
    path.write_text("bands: B02\n")
    with pytest.raises(UserError, match="bands"):
        Config().replace(read_yaml(path), source=str(path))


def test_settings_on_the_command_line() -> None:
    config = from_flags(
        "--bands B02 B03 B04 --mtf 0.3 0.3 0.2 --offset -1000 --no-augment --no-consistency --lambda-perc 1 "
        "--val-places 33UUP 29UPU --seed 3"
    )
    assert config.bands == ("B02", "B03", "B04") and config.mtf == (0.3, 0.3, 0.2)
    assert config.offset == -1000 and not config.augment and not config.consistency and config.seed == 3
    assert config.perceptual_weight == 1.0 and config.perceptual_share is None
    assert config.val_places == ("33UUP", "29UPU") and from_flags("") == Config.for_profile("t4")
    assert from_flags("--offset none", "smoke").offset is None
    assert from_flags("").max_patches == 20_000 and from_flags("--max-patches none").max_patches is None
    for words in ("--scale 3", "--rgb B04 B03", "--discriminator patch", "--crop wide"):
        with pytest.raises(SystemExit) as stop:
            from_flags(words)
        assert stop.value.code == 2


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_scale_on_the_command_line(scale: int) -> None:
    assert from_flags(f"--scale {scale}").scale == scale


def test_what_may_change_when_a_run_goes_on() -> None:
    assert Config.may_change == {"stage2_epochs", "num_workers", "cache_gb"}
