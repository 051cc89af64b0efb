"""Settings of SAR grounding: profiles, presets, the flags of the specification, values that make no sense."""

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
from nbhelpers.stages.sar_grounding.balance import WEIGHT_KNOBS
from nbhelpers.stages.sar_grounding.config import PRESETS, PROFILES, SIMULATED, WEIGHTS, Config
from nbhelpers.stages.sar_grounding.size import SIZE_KNOBS

LEAST = 42  # pixels that the coarsest edges need


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        Config().replace(changes, source="the test")
    said = str(caught.value)
    assert "\n" not in said and said[-1] in ".?" and caught.value.exit_code == 2
    return said


def from_flags(words: str, profile: str = "t4") -> Config:
    """The settings as the command line makes them."""
    parser = argparse.ArgumentParser()
    flags.add_flags(parser, Config)
    return Config.for_profile(profile).replace(vars(parser.parse_args(words.split())), source="the command line")


# --- profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_finish_on_its_own_data(profile: str) -> None:
    config = Config.for_profile(profile)
    assert config.profile == profile and config.model == "compact" and config.use_sar and config.base is None
    assert SIMULATED[profile]["n_scenes"] >= 10, "splits by scenes"
    assert SIMULATED[profile]["size"] >= LEAST and (config.tile_size or 0) <= SIMULATED[profile]["size"]
    assert config.early_stop_metric == "spectral_l1", "agreement alone rewards painting speckle"
    assert config.early_stop_patience is None or config.early_stop_patience < config.epochs
    assert config.accumulate == config.grad_accum
    balanced = [0.02, 0.05, 0.05, 0.1, 1.0]
    assert [getattr(config, name) for name in WEIGHTS] == ([1.0, 0.5, 0.3, 0.1, 1.0] if profile == "full" else balanced)


def test_the_full_profile_has_the_defaults_of_the_specification() -> None:
    config = Config.for_profile("full")
    assert dataclasses.replace(config, profile="t4") == Config()
    assert (config.timesteps, config.lora_rank, config.lora_alpha, config.pretrained) == (10, 8, 16.0, True)
    assert (config.batch_size, config.grad_accum, config.epochs, config.seed) == (1, 8, 50, 42)
    assert (config.lr, config.weight_decay) == (1e-4, 1e-5)
    assert (config.early_stop_patience, config.early_stop_delta) == (5, 1e-4)
    assert (config.stage2_dir, config.opt_v2_source, config.max_samples, config.tile_size) == (None,) * 4


@pytest.mark.parametrize("preset", ["none", *PRESETS])
@pytest.mark.parametrize("profile", PROFILES)
def test_settings_come_back_from_the_record_of_a_run(profile: str, preset: str) -> None:
    config = Config.for_profile(profile, preset=preset, sar_weight=0.7, stage2_dir="somewhere", early_stop_delta=0.0)
    record = json.loads(json.dumps(dataclasses.asdict(config)))
    assert Config.for_profile(record["profile"]).replace(record, source="config.json") == config


def test_an_unknown_profile_and_an_unknown_setting() -> None:
    with pytest.raises(UserError, match="profile 'tiny' is unknown: choose one of smoke, quick, t4, full"):
        Config.for_profile("tiny")
    assert "did you mean 'lora_rank'" in refusal(lora_rnak=3)


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("sar_focus", {"sar_weight": 2.0, "cycle_weight": 0.3, "identity_weight": 0.2}),
        ("perceptual", {"lpips_weight": 0.5, "sar_weight": 0.8}),
        ("fast", {"early_stop_patience": 3, "early_stop_delta": 5e-4, "epochs": 30}),
        ("debug", {"max_samples": 100, "epochs": 5, "grad_accum": 2}),
    ],
)
def test_a_preset_brings_its_settings_and_nothing_else(preset: str, expected: dict[str, Any]) -> None:
    plain, config = (dataclasses.asdict(Config.for_profile("full", preset=one)) for one in ("none", preset))
    assert {name for name in plain if plain[name] != config[name]} == {*expected, "preset"}
    assert {name: config[name] for name in expected} == expected


def test_what_is_set_beside_a_preset_counts() -> None:
    config = Config.for_profile("quick", preset="sar_focus", sar_weight=3.0)
    assert (config.sar_weight, config.cycle_weight, config.preset) == (3.0, 0.3, "sar_focus")
    later = config.replace({"cycle_weight": 0.9}, source="the test")
    assert (later.sar_weight, later.cycle_weight) == (3.0, 0.9)
    again = later.replace({"preset": "sar_focus", "lr": 1e-3}, source="the test")
    assert (again.sar_weight, again.cycle_weight) == (3.0, 0.9), "it is there already"
    other = later.replace({"preset": "perceptual"}, source="the test")
    assert (other.sar_weight, other.lpips_weight, other.cycle_weight) == (0.8, 0.5, 0.9)


# --- values without sense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *[({name: 0}, f"{name} is 0, expected at least 1.") for name in
          ("batch_size", "grad_accum", "timesteps", "lora_rank", "epochs")],
        ({"max_samples": 0}, "max_samples is 0, expected at least 1, or none"),
        ({"early_stop_patience": 0}, "early_stop_patience is 0, expected at least 1, or none"),
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"lr": float("nan")}, "lr to nan, expected float (finite)"),
        ({"lora_alpha": 0.0}, "lora_alpha is 0.0, expected a number above 0"),
        ({"noise": 0.0}, "noise is 0.0, expected a number above 0"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"grad_clip": -1.0}, "grad_clip is -1.0"),
        ({"early_stop_delta": -1e-4}, "early_stop_delta is -0.0001, expected 0 or more"),
        *[({name: -0.1}, f"{name} is -0.1, expected 0 or more") for name in WEIGHTS],
        (dict.fromkeys(WEIGHTS, 0.0), "all five weights are 0: give spectral_weight, or another, a number above 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0, expected 0 (off) or a decay below 1"),
        ({"tile_size": 100}, "tile_size is 100, expected a multiple of 32 of at least 64, or none"),
        ({"tile_size": 32}, "tile_size is 32"),
        ({"fine": 6}, "fine is 6, expected a multiple of 4"),
        ({"coarse": 0}, "coarse is 0, expected a multiple of 4"),
        ({"model": "terramind"}, "expected 'compact' or 'terramind-backbone' or 'terramind-tokens'"),
        ({"model": "terramind-backbone", "base": "run"}, "its base is TerraMind, so leave base out"),
        ({"model": "terramind-backbone", "use_sar": False}, "only the compact model has such a control"),
        ({"opt_v2_source": "truth"}, "expected 'stage2' or 'simulated' or 'proxy'"),
        ({"preset": "sar"}, "expected 'none' or 'sar_focus' or 'perceptual' or 'fast' or 'debug'"),
        ({"early_stop_metric": "loss"}, "expected 'spectral_l1' or 'sar_agreement'"),
        ({"lpips_net": "vgg"}, "expected 'squeeze' or 'alex' or 'vgg16'"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


def test_one_weight_above_0_is_enough() -> None:
    for name in WEIGHTS:
        Config.for_profile("smoke", **{**dict.fromkeys(WEIGHTS, 0.0), name: 0.1})


# --- files and flags -------------------------------------------------------------------------------------------------


def test_settings_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("preset: fast\nepochs: 12\nstage2_dir: before\nopt_v2_source: none\nlr: 1e-3\nuse_sar: false\n")
    config = Config.for_profile("quick").replace(read_yaml(path), source=str(path))
    assert (config.epochs, config.early_stop_patience, config.stage2_dir, config.lr) == (12, 3, "before", 1e-3)
    assert config.opt_v2_source is None and not config.use_sar
    path.write_text("tile_size: large\n")
    with pytest.raises(UserError, match="tile_size"):
        Config().replace(read_yaml(path), source=str(path))


def test_the_flags_of_the_specification() -> None:
    config = from_flags(
        "--stage2-dir before --timesteps 5 --lora-rank 4 --lora-alpha 8 --no-pretrained --batch-size 2 --grad-accum 4 "
        "--epochs 7 --lr 2e-4 --weight-decay 1e-4 --sar-weight 1.5 --cycle-weight 0.3 --identity-weight 0.2 "
        "--lpips-weight 0 --spectral-weight 2 --early-stop-patience 3 --early-stop-delta 5e-4 --num-workers 1 "
        "--max-samples 9 --seed 1 --model terramind-backbone --terramind tiny --tile-size 96 --opt-v2-source stage2"
    )
    expected = Config(
        stage2_dir="before", timesteps=5, lora_rank=4, lora_alpha=8.0, pretrained=False, batch_size=2, grad_accum=4,
        epochs=7, lr=2e-4, weight_decay=1e-4, sar_weight=1.5, cycle_weight=0.3, identity_weight=0.2, lpips_weight=0.0,
        spectral_weight=2.0, early_stop_patience=3, early_stop_delta=5e-4, num_workers=1, max_samples=9, seed=1,
        model="terramind-backbone", terramind="tiny", tile_size=96, opt_v2_source="stage2", ema_decay=0.999, noise=0.1,
    )  # fmt: skip
    assert config == expected
    assert from_flags("") == Config.for_profile("t4") and from_flags("--pretrained").pretrained
    off = from_flags("--early-stop-patience none --tile-size none --no-use-sar --preset perceptual")
    assert (off.early_stop_patience, off.tile_size, off.use_sar, off.lpips_weight) == (None, None, False, 0.5)
    for words in ("--model unet", "--epochs many", "--preset best", "--opt-v2-source truth"):
        with pytest.raises(SystemExit) as stop:
            from_flags(words)
        assert stop.value.code == 2


def test_what_may_change_when_a_run_goes_on() -> None:
    assert Config.may_change == {"epochs", "num_workers", "early_stop_patience", "early_stop_delta"}


@pytest.mark.parametrize("knob", [*WEIGHT_KNOBS, *SIZE_KNOBS], ids=lambda knob: knob.field)
def test_every_knob_stays_within_what_the_settings_take(knob: Any) -> None:
    config = Config.for_profile("quick")
    for value in (knob.low, knob.high, knob.start):
        config.replace({knob.field: int(value) if knob.whole else float(value)}, source="the test")
    if knob.field in WEIGHTS:
        assert knob.start == getattr(Config(), knob.field)


def test_there_is_a_knob_for_each_weight() -> None:
    assert tuple(knob.field for knob in WEIGHT_KNOBS) == WEIGHTS
