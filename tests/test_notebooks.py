"""The notebooks as files: built from their sources, clean, in the agreed order, pointing at the right repository.

That they run is shown by nbmake (``make test`` executes each in profile ``smoke``).
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECTIONS = (
    "Setup", "Settings", "Data", "Baselines first", "Model and losses", "Train", "Evaluate", "Verdict",
    "Save, reload, predict", "Troubleshooting",
)  # fmt: skip


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "notebooks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in load("build").sources()] != []


@each_notebook
def test_is_built_from_its_source(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == load("build").build(path.with_suffix(".py")), "run `make notebooks`"


@each_notebook
def test_is_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    assert [cell["id"] for cell in notebook.cells] == [f"{path.stem}-{n:02d}" for n in range(len(notebook.cells))]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in code) == 1


@each_notebook
def test_sections_stand_in_order(path: Path) -> None:
    text = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    headings = [line.split(" ", 2)[1:] for source in text for line in source.splitlines() if line.startswith("## ")]
    assert [(number, title) for number, title in headings] == [(str(n), s) for n, s in enumerate(SECTIONS, start=1)]


@each_notebook
def test_every_code_cell_follows_a_sentence_or_another_code_cell_of_its_section(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    run = 0
    for cell in cells:
        run = run + 1 if cell.cell_type == "code" else 0
        assert run <= 3, f"more than three code cells in a row at {cell['id']}"


@each_notebook
def test_cells_to_paste_are_the_notebooks_own(path: Path) -> None:
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for name in ("setup.py", "mount_drive.py"):
        assert (ROOT / "colab_cells" / name).read_text(encoding="utf-8").strip() in sources


def addresses(text: str) -> set[str]:
    """OWNER/NAME of every GitHub address that a badge, picture or install line uses."""
    patterns = (
        r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob",
        r"raw\.githubusercontent\.com/([\w.-]+/[\w.-]+)/",
        r"src=https://github\.com/([\w.-]+/[\w.-]+)/blob",
        r'REPOSITORY = "https://github\.com/([\w.-]+/[\w.-]+)"',
    )
    return {found for pattern in patterns for found in re.findall(pattern, text)}


def test_the_repository_address_is_the_same_everywhere() -> None:
    stamp = load("stamp")
    slug = stamp.slug(stamp.current())
    for place in [*stamp.places(), *NOTEBOOKS]:
        assert addresses(place.read_text(encoding="utf-8")) == {slug}, place


def test_stamping_changes_every_place(tmp_path: Path) -> None:
    stamp = load("stamp")
    for place in [ROOT / "setup.cfg", *stamp.places()]:
        copy = tmp_path / place.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(place.read_bytes())
    (tmp_path / "notebooks" / "stamp.py").write_bytes((ROOT / "notebooks" / "stamp.py").read_bytes())
    command = ["python", tmp_path / "notebooks" / "stamp.py", "https://github.com/someone/else"]
    subprocess.run(command, check=True, capture_output=True)
    for place in stamp.places():
        assert addresses((tmp_path / place.relative_to(ROOT)).read_text(encoding="utf-8")) == {"someone/else"}
    assert "url = https://github.com/someone/else\n" in (tmp_path / "setup.cfg").read_text(encoding="utf-8")


SECRET = re.compile(
    r"hf_[A-Za-z0-9]{30,}|(?i:(wandb|hf|api)[_-]?(key|token))\s*=\s*[\"'][A-Za-z0-9_]{20,}|AKIA[A-Z0-9]{16}"
)


def test_no_secret_is_committed() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    texts = {name: (ROOT / name).read_bytes().decode(errors="ignore") for name in files if (ROOT / name).is_file()}
    assert [name for name, text in texts.items() if SECRET.search(text)] == []
    assert SECRET.search("hf_" + "a" * 34) and SECRET.search('WANDB_API_KEY = "' + "a" * 40 + '"')
