"""Settings layer by layer, the flags made from them, fields, splits and knobs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

from nbhelpers.core import flags
from nbhelpers.core.errors import UserError
from nbhelpers.core.fields import Affine, Field
from nbhelpers.core.knobs import Knob
from nbhelpers.core.settings import parse_group, read_yaml, replace_checked
from nbhelpers.core.splits import by_hash, by_order, check_disjoint, hash_order, split_hash


@dataclass(frozen=True)
class Settings:
    """An example with a field of each kind."""

    # Passes over the data.
    epochs: int = 10
    # Learning rate of Adam,
    # 100 % of it.
    lr: float = 1e-3
    # Weight; none leaves it to the share.
    weight: float | None = None
    # Minutes between frames.
    step: int | None = 5
    # Which weights: a path, or imagenet.
    source: str = "imagenet"
    # Size of the network.
    size: Literal["small", "large"] = "small"
    # Flip the windows.
    augment: bool = True
    plain: int = 0

    may_change: ClassVar[frozenset[str]] = frozenset({"epochs"})

    def replace(self, **changes: Any) -> Settings:
        return replace_checked(self, changes, source="the test")


@dataclass(frozen=True)
class Group:
    """Settings within the settings."""

    patience: int = 5
    weight: float = 0.5
    names: tuple[str, ...] = ("a", "b")

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience is {self.patience}, expected at least 1")
        if self.weight < 0:
            raise ValueError(f"weight is {self.weight}; expected 0 or more.")


@dataclass(frozen=True)
class Grouped:
    """Settings with groups: one that is always there, one that may be none."""

    # Weights, 100 % of them.
    loss: Group = Group()
    # When; none for never.
    plan: Group | None = None
    steps: tuple[float, ...] = (0.1,)

    def replace(self, source: str = "the test", **changes: Any) -> Grouped:
        return replace_checked(self, changes, source=source)


# settings ------------------------------------------------------------------------------------------------------------


def test_yaml_spellings_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("lr: 5e-4\nweight: 1\nstep: none\nepochs: 3\naugment: no\nsize: large\n")
    settings = replace_checked(Settings(), read_yaml(path), source=str(path))
    assert settings == Settings(epochs=3, lr=5e-4, weight=1.0, step=None, size="large", augment=False)
    assert isinstance(settings.weight, float)
    path.write_text("step: null\nweight: 0.5\n")
    assert replace_checked(Settings(), read_yaml(path), source="").step is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_settings_file_changes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    assert read_yaml(tmp_path / "s.yaml") == {}


def test_an_unknown_setting_gets_a_suggestion() -> None:
    with pytest.raises(
        UserError, match="the test sets 'epoch', which is no setting of this stage: did you mean 'epochs'"
    ):
        Settings().replace(epoch=3)
    with pytest.raises(UserError, match="known settings: augment, epochs, lr"):
        Settings().replace(zzz=3)
    with pytest.raises(UserError, match="no setting"):
        Settings().replace(may_change=frozenset())
    with pytest.raises(UserError, match="no setting"):
        replace_checked(Settings(), {1: 2}, source="s.yaml")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 2.5, "expected int"),
        ("epochs", "3", "expected int"),
        ("epochs", True, "expected int"),
        ("epochs", None, "expected int"),
        ("lr", "fast", "expected float (finite)"),
        ("lr", True, "expected float (finite)"),
        ("lr", "nan", "expected float (finite)"),
        ("lr", float("inf"), "expected float (finite)"),
        ("lr", None, "expected float (finite)"),
        ("weight", [1], "expected float (finite) or none"),
        ("step", "five", "expected int or none"),
        ("source", 3, "expected str"),
        ("size", "huge", "expected 'small' or 'large'"),
        ("augment", 1, "expected bool"),
        ("augment", "yes", "expected bool"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings().replace(**{name: value})
    assert str(caught.value) == f"the test sets {name} to {value!r}, {expected}."


def test_settings_are_copied_not_changed() -> None:
    before = Settings()
    assert before.replace(epochs=1).epochs == 1 and before == Settings()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1,", "not valid YAML"),
        (b"- a\n- b\n", "holds a list"),
        (b"[]", "holds a list"),
        (b"false", "holds a bool"),
        (b"just text", "holds a str"),
        (b"\xff\xfe\x00\x81", "cannot be read"),
        (b"a: !!python/object/apply:os.mkdir [marker]\n", "not valid YAML"),
    ],
)
def test_a_bad_settings_file_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_settings_file_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read.*check --config"):
        read_yaml(tmp_path / name)


# groups of settings --------------------------------------------------------------------------------------------------


def grouped_flags(words: str) -> dict[str, Any]:
    made = argparse.ArgumentParser(prog="x")
    flags.add_flags(made, Grouped)
    return vars(made.parse_args(words.split()))


def test_a_later_layer_changes_within_a_group_only_what_it_names(tmp_path: Path) -> None:
    profile = Grouped(loss=Group(patience=9, weight=0.9, names=("p",)), plan=Group(patience=8, weight=0.8))
    path = tmp_path / "s.yaml"
    path.write_text("loss: {patience: 3, weight: 1}\nplan:\n  weight: 2e-1\n")
    with_file = profile.replace(str(path), **read_yaml(path))
    assert with_file == Grouped(loss=Group(3, 1.0, ("p",)), plan=Group(8, 0.2))
    given = grouped_flags("--loss weight=5e-4 --plan patience=1,names=[x]")
    assert given == {"loss": {"weight": "5e-4"}, "plan": {"patience": 1, "names": ["x"]}}
    assert with_file.replace(**given) == Grouped(loss=Group(3, 5e-4, ("p",)), plan=Group(1, 0.2, ("x",)))
    assert profile == Grouped(loss=Group(9, 0.9, ("p",)), plan=Group(8, 0.8)), "the profile itself stays as it is"


def test_a_group_that_is_not_there_starts_from_its_defaults() -> None:
    assert Grouped().replace(plan={"patience": 2}).plan == Group(patience=2)
    assert Grouped().replace(plan={}).plan == Group()
    assert Grouped().replace(plan=Group(7)).plan == Group(7)


@pytest.mark.parametrize("none", [None, "none", "None"])
def test_none_takes_a_group_away_and_stays_none(none: str | None) -> None:
    assert Grouped(plan=Group(2)).replace(plan=none).plan is None
    assert Grouped().replace(plan=none).plan is None
    assert Grouped().replace(steps=(1,)).plan is None
    with pytest.raises(UserError, match="expected settings of Group"):
        Grouped().replace(loss=none)


def test_none_on_the_flag_of_a_group() -> None:
    assert grouped_flags("--plan none") == {"plan": None}
    assert Grouped(plan=Group(2)).replace(**grouped_flags("--plan None")).plan is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"plan": {"pacience": 1}},
            "the test for plan sets 'pacience', which is no setting of this stage: did you mean 'patience'?",
        ),
        ({"plan": {"patience": 1.5}}, "the test for plan sets patience to 1.5, expected int."),
        ({"plan": {"names": "ab"}}, "the test for plan sets names to 'ab', expected a list of str."),
        ({"plan": {"patience": None}}, "the test for plan sets patience to None, expected int."),
        ({"plan": {"patience": 0}}, "the test sets plan to what cannot work: patience is 0, expected at least 1."),
        ({"plan": {"weight": -1}}, "the test sets plan to what cannot work: weight is -1.0; expected 0 or more."),
        ({"plan": 3}, "the test sets plan to 3, expected settings of Group (patience, weight, names) or none."),
        ({"steps": [0.1, "much"]}, "the test sets steps to 'much', expected float (finite)."),
        ({"steps": 0.1}, "the test sets steps to 0.1, expected a list of float (finite)."),
    ],
)  # fmt: skip
def test_what_a_group_or_a_list_refuses_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Grouped(plan=Group(patience=2, weight=0.1)).replace(**changes)
    assert str(caught.value) == words


def test_lists_of_any_length() -> None:
    assert Grouped().replace(steps=[1, "5e-1"]).steps == (1.0, 0.5)
    assert Grouped().replace(steps=[]).steps == ()
    assert grouped_flags("--steps 1 0.5") == {"steps": [1.0, 0.5]}


def test_a_group_as_text() -> None:
    assert parse_group("tra") == "tra" and parse_group("") == ""
    assert parse_group(" a = 1 , b=none,c=yes, d=5e-4,e=x=y") == {
        "a": 1,
        "b": "none",
        "c": True,
        "d": "5e-4",
        "e": "x=y",
    }
    for text in ("a=1,", "a=1,b", "=1", "a=", "a=1,,b=2"):
        with pytest.raises(ValueError, match="is no name=value"):
            parse_group(text)
    for text in (
        "patience=[1",
        "patience=[1,2]",
        "patience={",
        'patience="',
        "patience=*x",
        "patience=!!python/name:os",
    ):
        with pytest.raises(ValueError, match="'patience=.* has a value that cannot be read"):
            parse_group(text)


# flags ---------------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="x", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flags.add_flags(made.add_argument_group("settings"), Settings)
    return made


def test_a_flag_not_given_leaves_no_trace() -> None:
    assert vars(parser().parse_args([])) == {}


def test_a_choice_that_may_be_none() -> None:
    @dataclass(frozen=True)
    class Chosen:
        # Where it comes from.
        source: Literal["stage2", "proxy"] | None = None

    one = argparse.ArgumentParser()
    flags.add_flags(one, Chosen)
    assert "--source {stage2,proxy,none}" in one.format_help()
    for word, value in (("proxy", "proxy"), ("none", None)):
        assert vars(one.parse_args(["--source", word])) == {"source": value}
        assert replace_checked(Chosen(), {"source": value}, source="test").source == value
    with pytest.raises(SystemExit):
        one.parse_args(["--source", "other"])


def test_flags_given_arrive_with_their_types() -> None:
    words = "--epochs 3 --lr 5e-4 --weight none --step 7 --source a/b.pt --size large --no-augment"
    given = vars(parser().parse_args(words.split()))
    assert given == {
        "epochs": 3, "lr": 5e-4, "weight": None, "step": 7, "source": "a/b.pt", "size": "large", "augment": False,
    }  # fmt: skip
    assert Settings().replace(**given).step == 7
    assert vars(parser().parse_args(["--step", "None", "--weight", "0.1", "--augment"])) == {
        "step": None, "weight": 0.1, "augment": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs many", "argument --epochs: invalid int value: 'many'"),
        ("--epochs none", "argument --epochs: invalid int value: 'none'"),
        ("--weight much", "argument --weight: invalid float value: 'much'"),
        ("--size huge", "argument --size: invalid choice: 'huge'"),
        ("--may-change epochs", "unrecognized arguments: --may-change"),
    ],
)
def test_a_bad_flag_ends_with_exit_code_2(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(words.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--plan patience=[1", "argument --plan: 'patience=[1' has a value that cannot be read"),
        ("--plan patience=1,weight", "argument --plan: 'weight' is no name=value"),
    ],
)
def test_a_bad_group_on_a_flag_is_a_sentence(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        grouped_flags(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_of_a_group_shows_how_it_is_written_and_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        grouped_flags("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--loss NAME=VALUE,... Weights, 100 % of them. Names: patience, weight, names." in text
    assert "--plan NAME=VALUE,... When; none for never. Names: patience, weight, names." in text


def test_help_is_the_comment_above_the_field() -> None:
    text = " ".join(parser().format_help().split())
    for comment in ("Passes over the data.", "Learning rate of Adam, 100 % of it.", "Flip the windows."):
        assert comment in text
    assert "--size {small,large} Size of the network." in text
    assert "--weight FLOAT Weight; none leaves it to the share." in text
    assert flags.field_comments(Settings)["step"] == "Minutes between frames."
    assert "plain" not in flags.field_comments(Settings)


# fields --------------------------------------------------------------------------------------------------------------


def field(missing: float | None = 255.0) -> Field:
    return Field("vil", "level", (0.0, 254.0), 30.0, 40.0, missing, Affine(scale=255.0))


def test_missing_pixels_become_zero_and_are_told_apart() -> None:
    raw = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    scaled, valid = field().to_model(raw)
    assert scaled.dtype == torch.float32 and scaled.tolist() == [[0.0, pytest.approx(0.2), 0.0]]
    assert valid.tolist() == [[True, True, False]]
    assert field(missing=None).to_model(raw)[1].all()


def test_nan_can_be_the_missing_value() -> None:
    scaled, valid = field(missing=float("nan")).to_model(torch.tensor([51.0, float("nan")]))
    assert valid.tolist() == [True, False]
    assert scaled.tolist() == [pytest.approx(0.2), 0.0]


def test_units_come_back_within_the_valid_range() -> None:
    levels = torch.arange(255, dtype=torch.uint8)
    assert torch.equal(field().to_units(field().to_model(levels)[0]).round().to(torch.uint8), levels)
    assert field().to_units(torch.tensor([-0.5, 2.0])).tolist() == [0.0, 254.0]
    kelvin = Affine(scale=10.0, offset=273.15)
    assert kelvin.forward(torch.tensor(283.15)) == pytest.approx(1.0)
    assert kelvin.inverse(torch.tensor(-1.0)) == pytest.approx(263.15)


# splits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 5, 10, 101])
@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.1, 0.1, 0.8), (0.1, 0.8, 0.1)])
def test_every_split_has_something_and_nothing_twice(n: int, fractions: tuple[float, float, float]) -> None:
    keys = [f"event{i}" for i in range(n)]
    for split in (by_hash(keys, fractions), by_order(keys, fractions)):
        assert sorted(sum(split.values(), [])) == sorted(keys)
        assert list(split) == ["train", "val", "test"] and all(split.values())
        check_disjoint(split)
        if n == 101:
            for name, fraction in zip(split, fractions, strict=True):
                assert len(split[name]) == pytest.approx(n * fraction, abs=1.5)


def test_a_split_depends_on_the_keys_alone() -> None:
    keys = [f"S{i}" for i in range(40)]
    assert by_hash(keys, (0.8, 0.1, 0.1)) == by_hash(keys[::-1], (0.8, 0.1, 0.1))
    assert hash_order(["a", "b", "c"]) == ["c", "b", "a"]  # sha256 2e7d…, 3e23…, ca97… on every machine
    assert hash_order(keys) != keys
    assert by_order([3, 1, 2, 9], (0.5, 0.25, 0.25)) == {"train": [3, 1], "val": [2], "test": [9]}


def test_too_few_keys_and_shared_keys_are_errors() -> None:
    with pytest.raises(UserError, match="found 2 events, but a train/val/test split needs at least 3"):
        by_hash(["a", "b"], (0.8, 0.1, 0.1))
    with pytest.raises(UserError, match="splits train and test share 2 of their keys, e.g. 'b'"):
        check_disjoint({"train": ["a", "b", "c"], "val": ["d"], "test": ["c", "b", "e"]})


def test_a_split_hash_names_who_is_where() -> None:
    one = {"train": ["a", "b"], "test": ["c"]}
    assert split_hash(one) == split_hash({"test": ["c"], "train": ["b", "a"]})
    assert split_hash(one) != split_hash({"train": ["a"], "test": ["b", "c"]})


# knobs ---------------------------------------------------------------------------------------------------------------


def test_a_logarithmic_knob_is_even_in_decades() -> None:
    knob = Knob("weight", "λ", 1e-5, 10.0, start=5e-4, log=True)
    assert [knob.at(fraction) for fraction in (0, 1 / 3, 1)] == pytest.approx([1e-5, 1e-3, 10.0])
    assert knob.fraction(1e-3) == pytest.approx(1 / 3)
    assert (knob.fraction(0.0), knob.fraction(1e9)) == (0.0, 1.0), "what lies outside stands at the end"


def test_a_linear_knob() -> None:
    knob = Knob("share", "share", 0.2, 0.6, start=0.3)
    assert knob.at(0.25) == pytest.approx(0.3) and knob.fraction(0.3) == pytest.approx(0.25)
    assert (knob.fraction(-1.0), knob.fraction(2.0)) == (0.0, 1.0)
