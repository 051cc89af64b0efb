"""What Colab is told to install for TerraMind, against what its image has (``colab_image.json``), and doing it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from nbhelpers.core.errors import UserError
from nbhelpers.stages.sar_grounding.terramind_install import COLAB_PACKAGES, LIBRARY, install, install_line

# The only thing terratorch asks for that the image lacks: its numpy is older, and works. Replaced under a running
# session it does not.
TOLERATED = {("terratorch", "numpy")}


@pytest.fixture(scope="module")
def image() -> dict:
    return json.loads((Path(__file__).parent / "colab_image.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def line() -> dict[str, Requirement]:
    words = shlex.split(install_line("colab"))
    assert words[:3] == ["pip", "install", "--no-deps"]
    found = [Requirement(word) for word in words[3:]]
    assert len(found) == len(COLAB_PACKAGES)
    return {canonicalize_name(one.name): one for one in found}


def needed(image: dict, name: str, extras: set[str]) -> list[Requirement]:
    """What a missing package requires on the image's Python."""
    python = {"python_version": image["python"], "python_full_version": f"{image['python']}.0"}
    every = [Requirement(text) for text in image["missing"][name]["requires"]]
    wanted = extras | {""}
    return [
        one for one in every if one.marker is None or any(one.marker.evaluate({**python, "extra": e}) for e in wanted)
    ]


def closure(image: dict) -> dict[str, list[Requirement]]:
    """Everything that is missing for terratorch, with what it requires."""
    found: dict[str, list[Requirement]] = {}
    waiting = [Requirement("terratorch")]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in image["missing"]:
            before = {str(r) for r in found.get(name, ())}
            new = [r for r in needed(image, name, one.extras) if str(r) not in before]
            found[name] = found.get(name, []) + new
            waiting += new
    return found


def test_the_line_names_what_is_missing_and_nothing_else(image: dict, line: dict[str, Requirement]) -> None:
    assert not set(line) & set(image["packages"]), "pip would replace a package of the image"
    assert set(line) == set(closure(image)), "something is missing, or superfluous"


def test_every_requirement_is_met(image: dict, line: dict[str, Requirement]) -> None:
    versions = {**image["packages"], **{name: one["version"] for name, one in image["missing"].items()}}
    unmet, absent = set(), set()
    for name, wanted in closure(image).items():
        for one in wanted:
            other = canonicalize_name(one.name)
            if other not in versions:
                absent.add((name, other))
            elif Version(versions[other]) not in one.specifier:
                unmet.add((name, other))
    assert not absent and unmet == TOLERATED


def test_the_pins_choose_versions_that_run_on_the_image(image: dict, line: dict[str, Requirement]) -> None:
    for name, one in line.items():
        about = image["missing"][name]
        assert Version(about["version"]) in one.specifier, name
        assert Version(f"{image['python']}.0") in SpecifierSet(about["python"]), name
    # Without --no-deps pip would not need these: each excludes a version that fails.
    assert Version("0.10.0") not in line["torchgeo"].specifier and Version("0.21") not in line["rioxarray"].specifier


def test_a_machine_of_ones_own_takes_the_extra() -> None:
    assert install_line("local") == "pip install 'nbhelpers[terramind]'"
    assert install_line("kaggle") == install_line("colab")


class Pip:
    """In place of ``subprocess.run``: notes what it is to run, and puts terratorch there or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, code: int = 0, says: str = "", brings: bool = True):
        self.monkeypatch, self.code, self.says, self.brings = monkeypatch, code, says, brings
        self.commands: list[list[str]] = []

    def __call__(self, words: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(words)
        if self.code == 0 and self.brings:
            there(self.monkeypatch)
        return subprocess.CompletedProcess(words, self.code, "Collecting terratorch\n", self.says)


def there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("terratorch", LIBRARY):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("terratorch", LIBRARY):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("mark", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_it_is_installed_where_the_machine_is_nobodys(
    mark: str, missing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mark, "yes")
    pip = Pip(monkeypatch)
    assert install(run=pip) == f"Installed terratorch and {len(COLAB_PACKAGES) - 1} packages that it needs."
    (words,) = pip.commands
    assert words[:3] == [sys.executable, "-m", "pip"] and words[-len(COLAB_PACKAGES) :] == list(COLAB_PACKAGES)
    assert "install" in words and "--no-deps" in words
    assert "nothing to do" in install(run=pip) and len(pip.commands) == 1


def test_what_is_there_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch)
    assert "nothing to do" in install(run=Pip(monkeypatch, code=1))


def test_nothing_is_installed_on_a_machine_of_ones_own(missing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(monkeypatch)
    with pytest.raises(UserError, match=r"`pip install 'nbhelpers\[terramind\]'`"):
        install(run=pip)
    assert not pip.commands


def test_pips_last_words(missing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "yes")
    said = "WARNING: Retrying\nERROR: No matching distribution found for terratorch>=1.2.13\n\n"
    with pytest.raises(UserError, match=r"last words: ERROR: No matching distribution .*1\.2\.13\)"):
        install(run=Pip(monkeypatch, code=1, says=said))
    with pytest.raises(UserError, match=r"was installed and cannot be imported .*restart the session"):
        install(run=Pip(monkeypatch, brings=False))
