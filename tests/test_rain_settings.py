"""Settings of the rainfall stage: profiles, weights and shares of the same term, YAML and flags, senseless values."""

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
from nbhelpers.stages.rainfall_cvae.config import PROFILES, SELECTABLE, SIMULATED, Config
from nbhelpers.training.weights import Ramp, Share


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
def test_every_profile_can_finish_and_trains_by_the_likelihood(profile: str) -> None:
    config = Config.for_profile(profile)
    assert config.profile == profile and config.likelihood == "hurdle_gamma" and config.tail_share == 0.3
    assert SIMULATED[profile]["n_years"] >= 3, "three splits by years"
    assert config.warmup_epochs < config.epochs and config.armed == config.warmup_epochs
    assert config.early_stopping_metric == "crps" and not config.dilute_tail
    assert config.early_stopping_patience is None or config.armed + config.early_stopping_patience < config.epochs


def test_the_full_profile_has_the_published_sizes() -> None:
    config = Config.for_profile("full")
    assert (config.base_filters, config.d_y, config.d_z, config.dropout) == (64, 256, 64, 0.2)
    assert (config.batch_size, config.epochs, config.warmup_epochs, config.lr) == (64, 100, 15, 1e-4)
    assert (config.early_stopping_patience, config.weight_decay, config.grad_clip) == (25, 1e-4, 1.0)


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_come_back_from_the_record_of_a_run(profile: str) -> None:
    config = Config.for_profile(profile, lambda_ext=2.0, dilute_tail=True, early_stopping_metric="L_rec", armed_after=9)
    record = json.loads(json.dumps(dataclasses.asdict(config)))
    assert Config.for_profile(record["profile"]).replace(record, source="config.json") == config
    classical = Config.for_profile(profile, preset="classical", lambda_ext=1.0)
    record = json.loads(json.dumps(dataclasses.asdict(classical)))
    assert Config.for_profile(record["profile"]).replace(record, source="config.json") == classical


def test_an_unknown_profile_and_an_unknown_setting() -> None:
    with pytest.raises(UserError, match="profile 'tiny' is unknown: choose one of smoke, quick, t4, full"):
        Config.for_profile("tiny")
    assert "did you mean 'lambda_ext'" in refusal(lamda_ext=3)


# --- weights, shares, presets ----------------------------------------------------------------------------------------


def test_a_weight_switches_the_share_off_and_the_other_way_round() -> None:
    assert Config().tail_weight == Share(0.3)
    given = Config().replace({"lambda_ext": 2.0}, source="")
    assert (given.lambda_ext, given.tail_share, given.tail_weight) == (2.0, None, 2.0)
    back = given.replace({"tail_share": 0.2}, source="")
    assert (back.lambda_ext, back.tail_share, back.tail_weight) == (None, 0.2, Share(0.2))
    assert Config().replace({"lambda_ext": 0.0}, source="").tail_weight == 0.0
    assert "set either lambda_ext or tail_share" in refusal(lambda_ext=2.0, tail_share=0.2)
    assert "set either lambda_ext or tail_share" in refusal(tail_share=None)


def test_the_classical_preset_brings_its_settings_save_those_beside_it() -> None:
    config = Config.for_profile("quick", preset="classical")
    assert (config.likelihood, config.lambda_base, config.lambda_ext, config.lambda_mass) == (
        "tail_mae",
        1.0,
        5.0,
        0.01,
    )
    assert (config.beta_kl, config.prior_fraction, config.tail_share) == (0.01, 0.0, None)
    assert config.epochs == Config.for_profile("quick").epochs
    assert Config.for_profile("quick", preset="classical", lambda_ext=1.0).lambda_ext == 1.0
    share = Config.for_profile("quick", preset="classical", tail_share=0.3, lambda_ext=None)
    assert share.tail_weight == Share(0.3) and share.beta_kl == 0.01


def test_the_kl_rises_over_the_warm_up_and_checkpoints_count_from_its_end() -> None:
    config = Config(beta_kl=0.4, warmup_epochs=7.5)
    assert config.kl_weight == Ramp(0.4, 7.5) and config.armed == 8
    assert Config(warmup_epochs=0).kl_weight == Config().beta_kl and Config(warmup_epochs=0).armed == 0
    assert Config(warmup_epochs=7.5, armed_after=20).armed == 20 and Config(warmup_epochs=7, armed_after=0).armed == 0
    assert Config(d_z=0).armed == 0, "without a latent nothing rises"


# --- values without sense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"base_filters": 6}, "base_filters is 6, expected a multiple of 4"),
        ({"d_y": 10}, "d_y is 10, expected a multiple of 4"),
        ({"d_z": -1}, "d_z is -1, expected 0 or more"),
        ({"members": 1}, "members is 1, expected at least 2"),
        ({"eval_days": 0}, "eval_days is 0, expected at least 1, or none for all"),
        ({"test_days": 0}, "test_days is 0"),
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"lr": float("nan")}, "lr to nan, expected float (finite)"),
        ({"noise": -0.1}, "noise is -0.1, expected 0 or more"),
        ({"warmup_epochs": -1.0}, "warmup_epochs is -1.0"),
        ({"beta_kl": -0.1}, "beta_kl is -0.1"),
        ({"free_bits": -0.1}, "free_bits is -0.1"),
        ({"lambda_base": -1.0}, "lambda_base is -1.0"),
        ({"lambda_mass": -1.0}, "lambda_mass is -1.0"),
        ({"lambda_ext": -1.0}, "lambda_ext is -1.0, expected 0 or more"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"heavy_oversampling": 0.5}, "heavy_oversampling is 0.5, expected 1 (as often as others) or more"),
        ({"dropout": 1.0}, "dropout is 1.0, expected 0 (off) or a number below 1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"prior_fraction": 1.1}, "prior_fraction is 1.1, expected a share between 0 and 1"),
        ({"tail_share": 1.0}, "tail_share is 1.0, expected a share in [0, 1)"),
        ({"tail_share": 30}, "tail_share is 30"),
        ({"early_stopping_patience": 0}, "early_stopping_patience is 0, expected at least 1 epoch, or none"),
        ({"armed_after": -1}, "armed_after is -1"),
        ({"early_stopping_metric": "csi"}, f"'csi', expected one of {', '.join(SELECTABLE)}"),
        ({"early_stopping_metric": "posterior_crps"}, "scores samples that have seen the day they predict"),
        ({"likelihood": "gamma"}, "expected 'hurdle_gamma' or 'tail_mae'"),
        ({"tail": "pareto"}, "expected 'gamma' or 'gpd'"),
        ({"transform": "sqrt"}, "expected 'none' or 'log1p' or 'zscore'"),
        ({"output_activation": "tanh"}, "expected 'softplus' or 'relu' or 'none'"),
        ({"preset": "modern"}, "expected 'none' or 'classical'"),
        ({"flips": True, "transform": "zscore"}, "flips mirror the days but not the statistics of each pixel"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


# --- files and flags -------------------------------------------------------------------------------------------------


def test_settings_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("lambda_ext: 2.0\ndilute_tail: true\nearly_stopping_metric: MAE_tail\neval_days: none\nlr: 1e-3\n")
    config = Config.for_profile("quick").replace(read_yaml(path), source=str(path))
    assert config.lambda_ext == 2.0 and config.tail_share is None and config.dilute_tail
    assert config.early_stopping_metric == "mae_tail" and config.eval_days is None and config.lr == 1e-3
    path.write_text("batch_size: many\n")
    with pytest.raises(UserError, match="batch_size"):
        Config().replace(read_yaml(path), source=str(path))


def test_settings_on_the_command_line() -> None:
    config = from_flags(
        "--likelihood tail_mae --lambda-ext 5 --lambda-base 2 --lambda-mass 0.1 --beta-kl 0.01 --warmup-epochs 2.5 "
        "--early-stopping-metric MAE_all --early-stopping-patience none --no-cosine --flips --d-z 0 --seed 3"
    )
    assert config.tail_weight == 5.0 and (config.lambda_base, config.lambda_mass, config.beta_kl) == (2.0, 0.1, 0.01)
    assert config.early_stopping_metric == "mae_all" and config.early_stopping_patience is None
    assert not config.cosine and config.flips and config.d_z == 0 and config.seed == 3
    assert from_flags("") == Config.for_profile("t4")
    for words in ("--likelihood gamma", "--epochs many", "--preset modern"):
        with pytest.raises(SystemExit) as stop:
            from_flags(words)
        assert stop.value.code == 2


def test_what_may_change_when_a_run_goes_on() -> None:
    assert Config.may_change == {"epochs", "num_workers", "early_stopping_patience"}
