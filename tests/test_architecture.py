"""Imports only go down, stages never sideways, and a file is one idea."""

from __future__ import annotations

import ast
import configparser
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nbhelpers"
# What each part may import of ours; a stage may also import itself.
ALLOWED = {
    "core": {"core"},
    "training": {"core", "training"},
    "science": {"core", "science"},
    "stages": {"core", "training", "science"},
    "widgets": {"core", "widgets"},
    "cli": {"cli", "core", "training", "science", "stages"},
    "__main__": {"cli"},
    "__init__": set(),
}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Full names of everything of ours that a file imports, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.names[0].name != "*", f"{path}: import *"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == "nbhelpers"]


def violations(path: Path, names: list[str], package: Path = PACKAGE) -> list[str]:
    parts = path.relative_to(package).with_suffix("").parts
    bad = []
    for name in names:
        target = name.split(".")[1:]
        own_stage = parts[0] == "stages" and target[:2] == list(parts[:2])
        if target[0] not in ALLOWED[parts[0]] and not own_stage and target[0] != "__version__":
            bad.append(f"{'/'.join(parts)} imports {name}")
    return bad


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    assert violations(path, imports(path)) == []


def test_the_rule_can_fail() -> None:
    stage = PACKAGE / "stages" / "perceptual_unet" / "task.py"
    assert violations(stage, ["nbhelpers.stages.rainfall_cvae.model"])
    assert violations(stage, ["nbhelpers.widgets.show"])
    assert violations(PACKAGE / "training" / "fit.py", ["nbhelpers.stages.perceptual_unet.task"])
    assert violations(PACKAGE / "core" / "runtime.py", ["nbhelpers.training.fit"])


def test_an_installed_package_has_every_folder(root: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    declared = set(setup["options"]["packages"].split()) - {"nbhelpers.data_manifests"}  # lies beside the package
    assert declared == {".".join(path.parent.relative_to(root).parts) for path in PACKAGE.rglob("__init__.py")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_idea(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 350, f"{path} has {lines} lines: is it still one idea?"
