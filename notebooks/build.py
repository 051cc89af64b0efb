"""Build the notebooks from their percent-format sources: ``python notebooks/build.py [--check]``.

A code cell that consists of ``# include: PATH`` is replaced by that file's text, so that a cell to paste and the cell
in a notebook are the same. Outputs and widget metadata never get in, and cell ids are ``<stem>-NN``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).resolve().parent
INCLUDE = "# include: "


def build(source: Path) -> str:
    """The ``.ipynb`` text of a percent-format source."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.startswith(INCLUDE):
            cell.source = (
                (source.parent / cell.source.removeprefix(INCLUDE).strip()).read_text(encoding="utf-8").strip()
            )
        cell["id"] = f"{source.stem}-{number:02d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def sources() -> list[Path]:
    """The notebooks' sources, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which notebooks differ from their source")
    check = parser.parse_args().check
    stale = [path for path in sources() if not _same(path)]
    for path in stale:
        if not check:
            path.with_suffix(".ipynb").write_text(build(path), encoding="utf-8")
        print(f"{'stale' if check else 'built'}: {path.with_suffix('.ipynb').name}")
    return 1 if check and stale else 0


def _same(source: Path) -> bool:
    target = source.with_suffix(".ipynb")
    return target.exists() and target.read_text(encoding="utf-8") == build(source)


if __name__ == "__main__":
    sys.exit(main())
