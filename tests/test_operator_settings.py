"""Settings of the turbulence stage: from YAML and flags, older names, presets, and hand-overs that cannot end."""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from nbhelpers.core import flags
from nbhelpers.core.errors import UserError
from nbhelpers.core.settings import read_yaml
from nbhelpers.stages.neural_operator.config import BETTER, PROFILES, SIMULATED, Config
from nbhelpers.stages.neural_operator.knobs import CHOICES, KNOBS
from nbhelpers.stages.neural_operator.loss_params import LossParams, migrate
from nbhelpers.stages.neural_operator.verification import METRICS
from nbhelpers.training.flexible import PRESETS, SchedulerParams, earliest_finish


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        Config().replace(changes, source="the test")
    said = str(caught.value)
    assert "\n" not in said and said[-1] in ".?"
    return said


def from_flags(words: str) -> Config:
    """The settings as the command line makes them, on the profile t4."""
    parser = argparse.ArgumentParser()
    flags.add_flags(parser, Config)
    return Config.for_profile("t4").replace(vars(parser.parse_args(words.split())), source="the command line")


# --- profiles -----------------------------------------------------------------------------------------------------


def test_plain_settings_have_no_scheduler_and_field_error_alone() -> None:
    config = Config()
    assert config.scheduler is None and config.make_scheduler() is None
    assert {name: weight for name, weight in vars(config.loss).items() if weight} == {"field_error": 1.0}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid_and_its_hand_over_ends_within_the_run(profile: str) -> None:
    config = Config.for_profile(profile)
    assert config.profile == profile and profile in SIMULATED
    assert config.scheduler is not None and (earliest_finish(config.scheduler) or 10**9) <= config.epochs
    scheduler = config.make_scheduler()
    assert scheduler is not None and scheduler.get_loss_weights() == {"field_error": 1.0, "spectrum_error": 0.0}
    frames = SIMULATED[profile]["n_frames"]
    length, stride = config.sequence_length
    assert max(length, config.n_in + config.rollout_steps) * stride <= frames, "its own data are long enough"


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_come_back_from_the_record_of_a_run(profile: str) -> None:
    config = Config.for_profile(profile, loss=LossParams(sobolev=0.1), sequence_length=(4, 2), patience=None)
    record = json.loads(json.dumps(dataclasses.asdict(config)))
    assert Config.for_profile(record["profile"]).replace(record, source="config.json") == config


def test_an_unknown_profile_and_an_unknown_setting() -> None:
    with pytest.raises(UserError, match="profile 'tiny' is unknown: choose one of smoke, quick, t4, full"):
        Config.for_profile("tiny")
    assert "did you mean 'modes'" in refusal(mode=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, "width is 0, expected at least 1"),
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"grad_clip": -1.0}, "grad_clip is -1.0, expected 0 or more"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"patience": 0}, "patience is 0"),
        ({"fields": " , "}, "expected names with commas"),
        ({"sequence_length": (2, 0)}, "sequence_length is 2 0 with n_in 1"),
        ({"sequence_length": (2, 1), "n_in": 2}, "expected more frames than n_in"),
        ({"sequence_length": (2, 1, 1)}, "sequence_length to (2, 1, 1), expected 2 values (int, int)"),
        ({"sequence_length": [2.5, 1]}, "sequence_length to 2.5, expected int"),
        ({"spectrum_share": 1.0}, "spectrum_share is 1.0, expected a share between 0 and 1"),
        ({"spectrum_share": 0.1, "loss": {"spectrum_error": 0.1}}, "set one of them"),
        ({"model": "transformer"}, "expected 'fno' or 'ffno' or 'unet'"),
        ({"loss": {"spectrum_error": -1}}, "the weight of spectrum_error is -1.0, expected 0 or more"),
        ({"loss": {"field_error": 0}}, "all loss weights are 0"),
        ({"loss": {"spectrum": 1}}, "did you mean 'spectrum_error'"),
        ({"loss": "heavy"}, "expected settings of LossParams (field_error, spectrum_error"),
        ({"loss": {"sobolev": "much"}}, "sobolev to 'much', expected float"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


# --- scheduler ----------------------------------------------------------------------------------------------------


def test_scheduler_and_loss_are_groups_in_a_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "epochs: 30\nscheduler:\n  patience: 1\n  final_weight_source: 0.9\n  final_weight_target: 0.1\n"
        "  min_delta: 1e-2\nloss:\n  sobolev: 0.5\nsequence_length: [4, 2]\n"
    )
    config = Config().replace(read_yaml(path), source=str(path))
    assert config.scheduler == SchedulerParams(
        patience=1, final_weight_source=0.9, final_weight_target=0.1, min_delta=0.01
    )
    assert config.loss == LossParams(sobolev=0.5) and config.sequence_length == (4, 2)
    path.write_text("scheduler: none\n")
    assert Config.for_profile("quick").replace(read_yaml(path), source="").scheduler is None
    path.write_text("scheduler: tra\nepochs: 200\n")
    assert Config().replace(read_yaml(path), source="").scheduler == SchedulerParams(**PRESETS["tra"])


def test_scheduler_and_loss_on_the_command_line() -> None:
    config = from_flags("--scheduler patience=2,final_weight_target=0.1,trigger=epoch --sequence-length 4 1 --n-in 2")
    profile = from_flags("").scheduler
    assert profile is not None and config.scheduler == dataclasses.replace(
        profile, patience=2, final_weight_source=0.9, final_weight_target=0.1, trigger="epoch"
    )
    assert config.sequence_length == (4, 1) and config.steps_ahead == 2
    assert from_flags("--scheduler none").scheduler is None
    assert from_flags("--loss spectrum_error=0.5,field_error=0.5 --scheduler none").loss == LossParams(0.5, 0.5)
    with pytest.raises(UserError, match="loss and scheduler both weigh field_error and spectrum_error"):
        from_flags("--loss spectrum_error=0.5")
    assert from_flags("--scheduler tra --epochs 200").scheduler == SchedulerParams(**PRESETS["tra"])
    assert from_flags("--no-coordinates --patience none --window hann").window == "hann"
    for words in ("--scheduler patience=2,warmup", "--sequence-length 4", "--model transformer"):
        with pytest.raises(SystemExit) as stop:
            from_flags(words)
        assert stop.value.code == 2
    with pytest.raises(UserError, match="sets scheduler to 'tras', expected one of tra, iso, inc, or none"):
        from_flags("--scheduler tras")
    with pytest.raises(UserError, match="expected settings of LossParams"):
        from_flags("--loss spectrum_error")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_a_long_run(preset: str) -> None:
    config = Config.for_profile("full", scheduler=preset)
    assert config.scheduler == SchedulerParams(**PRESETS[preset])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"patience": 30}, ("ends after epoch 305", "the run has 40", "lower patience to 3")),
        ({"max_consecutive_adaptations": 2}, ("pauses after 2 in a row", "may never end")),
        ({"monitor_metric": "val_field_error"}, ("val_field_error", "no metric of this run", "rollout_field_error")),
        ({"monitor_metric": "mse"}, ("'mse'",)),
        ({"target": "spectrum"}, ("between field_error and spectrum", "choose two of these")),
        ({"patience": 0}, ("patience = 0",)),
        ({"pacience": 1}, ("did you mean 'patience'",)),
        ({"trigger": "sometimes"}, ("'plateau' or 'increase' or 'epoch'",)),
    ],
)  # fmt: skip
def test_hand_overs_that_cannot_work_are_refused_before_training(params: dict[str, Any], words: tuple[str]) -> None:
    said = refusal(scheduler=params)
    assert all(word in said for word in words), said


def test_fewer_epochs_than_the_hand_over_takes_are_refused() -> None:
    with pytest.raises(UserError, match=r"the run has 3\b.*train longer"):
        Config.for_profile("smoke", epochs=3)
    with pytest.raises(UserError, match="the run has 5"):
        Config(epochs=5, scheduler=SchedulerParams())
    assert Config.for_profile("smoke", epochs=3, scheduler=None).epochs == 3


def test_a_spectral_share_and_a_scheduler_exclude_each_other() -> None:
    with pytest.raises(UserError, match="set one of them"):
        Config.for_profile("smoke", spectrum_share=0.1)
    assert Config.for_profile("smoke", spectrum_share=0.1, scheduler=None).spectrum_share == 0.1


# --- older names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"predMSE": 1.0}, {"field_error": 1.0}, ["predMSE", "use field_error"]),
        ({"recMSE": 0.5}, {"field_error": 0.5}, ["recMSE", "use field_error"]),
        ({"recMSE": 0.3, "predMSE": 0.7}, {"field_error": 0.7}, ["recMSE weighted a reconstruction", "left out"]),
        (
            {"predFieldError": 0.9, "spectrumError": 0.1},
            {"field_error": 0.9, "spectrum_error": 0.1},
            ["use field_error, spectrum_error"],
        ),
        ({"predMSE": 1.0, "sobolev": 0.2}, {"field_error": 1.0, "sobolev": 0.2}, ["predMSE: older"]),
    ],
)
def test_older_names_of_the_weights_are_taken_over_with_a_note(
    old: dict[str, float], new: dict[str, float], words: list[str]
) -> None:
    with pytest.warns(FutureWarning) as caught:
        config = Config().replace({"loss": old}, source="an old file")
    assert config.loss == LossParams(**new) and len(caught) == 1
    assert all(word in str(caught[0].message) for word in words), caught[0].message


def test_older_names_on_the_command_line_and_names_of_today() -> None:
    with pytest.warns(FutureWarning, match="predMSE"):
        assert from_flags("--loss predMSE=1").loss == LossParams()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert migrate({"field_error": 1.0}) == {"field_error": 1.0}


# --- knobs --------------------------------------------------------------------------------------------------------


def test_the_panel_offers_settings_that_exist() -> None:
    known = {field.name: field.type for field in dataclasses.fields(SchedulerParams)}
    assert {knob.field for knob in KNOBS} | set(CHOICES) <= set(known)
    assert set(CHOICES["monitor_metric"]) < set(METRICS) == set(BETTER)
    for knob in KNOBS:
        assert knob.low <= knob.start <= knob.high


@pytest.mark.parametrize(("metric", "words"), [
    ("correlation_time", "mode is min, which is not how correlation_time is better: set mode to max"),
    ("energy_ratio", "choose a metric that is better when it is lower"),
])  # fmt: skip
def test_a_scheduler_watches_the_right_end_of_its_metric(metric: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_flags(f"--scheduler monitor_metric={metric}")
    assert from_flags("--scheduler monitor_metric=correlation_time,mode=max").scheduler is not None


def test_weights_in_units_of_a_term_that_is_off_are_refused() -> None:
    with pytest.raises(UserError, match="measures the weights of spectrum_error and sobolev by field_error"):
        from_flags("--loss field_error=0,sobolev=1,spectrum_error=0.1 --scheduler none")
    words = "--loss field_error=0,sobolev=1,spectrum_error=0.1 --scheduler none --normalise none"
    assert from_flags(words).loss.sobolev == 1
