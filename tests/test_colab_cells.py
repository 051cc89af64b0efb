"""The cells people paste: run as they stand, in fresh interpreters, on simulated and on real ground."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from nbhelpers.core.runtime import workspace

KEEP = ("torch", "torchvision", "numpy", "ipywidgets")
COLAB = {"COLAB_RELEASE_TAG": "release-colab_20260801", "COLAB_GPU": "0"}
KAGGLE = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}

# Runs a cell the way a kernel does, on a machine without a network.
DRIVER = """
import socket, sys
def refuse(*arguments, **options):
    raise OSError("this machine has no network")
socket.create_connection = refuse
exec(compile(open(sys.argv[1]).read(), "cell", "exec"), {"__name__": "__main__"})
"""

# Stands in front of the real pip: writes down what it was asked, and does it to the planted folder only.
PIP = """
import json, os, pathlib, shutil, sys
site = pathlib.Path(__file__).parents[1]
asked = {"argv": sys.argv[1:], "constraints": ""}
if "--constraint" in sys.argv:
    asked["constraints"] = pathlib.Path(sys.argv[sys.argv.index("--constraint") + 1]).read_text()
with open(site / "asked.jsonl", "a") as log:
    print(json.dumps(asked), file=log)
if sys.argv[1] == "install":
    os.symlink(ROOT + "/nbhelpers", site / "nbhelpers")
else:
    [shutil.rmtree(info) for info in site.glob(sys.argv[-1] + "-*.dist-info")]
"""


def plant(site: Path, name: str, version: str) -> None:
    """A distribution that is installed as far as its metadata say."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def link_libraries(site: Path, *hidden: str) -> None:
    """Put every library of this environment at ``site``, except the hidden, nbhelpers, torchao and `.pth` hooks."""
    site.mkdir(parents=True, exist_ok=True)
    hidden = ("nbhelpers", "__editable__", "torchao", *hidden)
    for folder in (Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")):
        for entry in folder.iterdir():
            if not entry.name.startswith(hidden) and entry.suffix != ".pth" and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)


def colab_package(site: Path) -> None:
    """A `google.colab` whose Drive only remembers that it was mounted."""
    package = site / "google" / "colab"
    if package.parent.is_symlink():  # a library brought a google package, which this one must not be written into
        package.parent.unlink()
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "drive.py").write_text("def mount(mountpoint):\n    print('COLAB MOUNTS', mountpoint)\n")


def run(
    cell: Path, *flags: str, cwd: Path, interpreter: str = sys.executable, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a cell in a new interpreter, with none of this machine's pip settings or platform marks."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "COLAB", "KAGGLE", "NBHELPERS"))}
    return subprocess.run(
        [interpreter, *flags, "-c", DRIVER, str(cell)],
        cwd=cwd, env={**kept, "PIP_CONFIG_FILE": os.devnull, **environ}, capture_output=True, text=True,
    )  # fmt: skip


def replaced(cell: Path, target: Path, **changes: str) -> Path:
    """A copy of a cell in which a setting or a folder is another; whatever is replaced must have been there."""
    text = cell.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    target.write_text(text)
    return target


class Bare:
    """A Python with nothing but its standard library, the four libraries that must stay, and the recording pip."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.site, self.cwd = folder / "site", folder / "work"
        self.cwd.mkdir(parents=True)
        (self.site / "pip").mkdir(parents=True)
        (self.site / "pip" / "__init__.py").touch()
        (self.site / "pip" / "__main__.py").write_text(f"ROOT = {str(root)!r}\n{PIP}")
        for name in KEEP:
            plant(self.site, name, "1.2.3+local")
            (self.site / name).mkdir()
            (self.site / name / "__init__.py").touch()

    def run(self, cell: Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return run(cell, "-S", cwd=self.cwd, PYTHONPATH=str(self.site), **environ)

    @property
    def asked(self) -> list[dict]:
        log = self.site / "asked.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def bare(tmp_path: Path, root: Path) -> Bare:
    return Bare(tmp_path, root)


@pytest.fixture
def setup_cell(root: Path) -> Path:
    return root / "colab_cells" / "setup.py"


@pytest.fixture
def mount_cell(root: Path) -> Path:
    return root / "colab_cells" / "mount_drive.py"


@pytest.fixture
def repository(root: Path) -> str:
    """The repository's address, which stands in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    return config["metadata"]["url"]


def assert_keeps(asked: dict) -> None:
    """pip was given the present version of each library that must stay, and was asked for none of them."""
    assert asked["constraints"].splitlines() == [f"{name}==1.2.3+local" for name in KEEP]
    words = re.split(r"[^a-z0-9]+", " ".join(asked["argv"]).lower())
    assert not {*KEEP, "upgrade", "force", "u"} & set(words)


# --- Setup: what it would install -----------------------------------------------------------------------------------


@pytest.mark.parametrize("environ", [{}, COLAB, KAGGLE, {**COLAB, **KAGGLE}], ids=["local", "colab", "kaggle", "both"])
def test_setup_installs_from_the_repository(
    bare: Bare, setup_cell: Path, repository: str, environ: dict[str, str]
) -> None:
    result = bare.run(setup_cell, **environ)
    (asked,) = bare.asked
    argv = asked["argv"]
    assert argv[:3] == ["install", "--quiet", "--constraint"] and argv[4:] == [f"nbhelpers @ git+{repository}"]
    assert_keeps(asked)
    # The recording pip brought nbhelpers alone: the table must say so, with a cure, and stop the notebook.
    assert re.search(r"^stop  libraries +not installed: lpips,", result.stdout, re.MULTILINE)
    assert result.returncode == 1 and "UserError: This machine is not ready: libraries" in result.stderr
    again = bare.run(setup_cell, **environ)
    assert again.stdout.startswith("ok") and len(bare.asked) == 1  # once is enough


@pytest.mark.parametrize("where", ["wheels", "datasets/someone/wheels"])
def test_setup_prefers_attached_wheels(bare: Bare, setup_cell: Path, tmp_path: Path, where: str) -> None:
    wheels = tmp_path / "input" / where
    wheels.mkdir(parents=True)
    (wheels / "nbhelpers-0.1.0-py3-none-any.whl").touch()
    cell = replaced(setup_cell, tmp_path / "cell.py", **{"/kaggle/input": str(tmp_path / "input")})
    bare.run(cell, **KAGGLE)
    (asked,) = bare.asked
    assert asked["argv"][4:] == ["--no-index", f"--find-links={wheels}", "nbhelpers"]
    assert_keeps(asked)


def test_setup_is_not_fooled_by_our_own_data_folder(bare: Bare, setup_cell: Path) -> None:
    (bare.cwd / "nbhelpers" / "data").mkdir(parents=True)  # /content/nbhelpers, importable as an empty namespace
    bare.run(setup_cell, **COLAB)
    assert len(bare.asked) == 1


@pytest.mark.parametrize("folder", [".", "colab_cells"])
def test_setup_in_a_checkout_installs_nothing(bare: Bare, setup_cell: Path, root: Path, folder: str) -> None:
    bare.cwd = root / folder
    result = bare.run(setup_cell)
    assert bare.asked == []
    assert result.stdout.startswith("ok    Python")


def test_setup_never_installs_torch(bare: Bare, setup_cell: Path) -> None:
    (bare.site / "torch" / "__init__.py").unlink()
    (bare.site / "torch").rmdir()
    result = bare.run(setup_cell)
    assert bare.asked == [] and result.returncode == 1
    assert "RuntimeError: torch: not installed" in result.stderr and "run this cell again" in result.stderr


def test_setup_shows_what_pip_said(bare: Bare, setup_cell: Path) -> None:
    (bare.site / "pip" / "__main__.py").write_text("raise SystemExit('ERROR: no route to host')")
    result = bare.run(setup_cell, **KAGGLE)
    assert result.returncode == 1
    assert "ERROR: no route to host" in result.stderr and "Turn on internet" in result.stderr


def test_setup_on_colab_mounts_drive_and_removes_torchao(bare: Bare, setup_cell: Path, tmp_path: Path) -> None:
    """With all real libraries present, and the pair that peft refuses."""
    for name in KEEP:
        (bare.site / name / "__init__.py").unlink()
        (bare.site / name).rmdir()
        (bare.site / f"{name}-1.2.3+local.dist-info" / "METADATA").unlink()
        (bare.site / f"{name}-1.2.3+local.dist-info").rmdir()
    link_libraries(bare.site)
    plant(bare.site, "torchao", "0.10.0")
    colab_package(bare.site)
    cell = replaced(setup_cell, tmp_path / "cell.py", **{"MOUNT_DRIVE = False": "MOUNT_DRIVE = True"})
    result = bare.run(cell, **COLAB)
    assert [asked["argv"] for asked in bare.asked[1:]] == [["uninstall", "--yes", "torchao"]]
    assert "COLAB MOUNTS /content/drive\nGoogle Drive is mounted at /content/drive." in result.stdout
    assert "Removed torchao 0.10.0" in result.stdout
    assert "Change runtime type" in result.stdout or "(sm_" in result.stdout
    assert re.search(r"^warn  internet ", result.stdout, re.MULTILINE)
    assert result.returncode == 0 and "Ready: 0 to mend" in result.stdout, result.stderr


# --- Setup: for real ------------------------------------------------------------------------------------------------


def make_wheel(folder: Path, name: str, version: str, requires: list[str], package: Path | None = None) -> None:
    """A wheel as pip takes it; without ``package`` it holds one empty module."""
    files = {f"{name}/__init__.py": b""}
    if package is not None:
        files = {str(f.relative_to(package.parent)): f.read_bytes() for f in package.rglob("*.py")}
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)


@pytest.fixture
def scratch(tmp_path: Path, root: Path, setup_cell: Path) -> tuple[Path, Path, Path]:
    """A real environment in which only lpips, gdown and nbhelpers are missing, wheels for them, and the cell."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    link_libraries(site, "lpips", "gdown")
    wheels = tmp_path / "input" / "wheelhouse"
    wheels.mkdir(parents=True)
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    requires = config["options"]["install_requires"].split()
    make_wheel(wheels, "nbhelpers", "0.1.0", requires, root / "nbhelpers")
    make_wheel(wheels, "lpips", "0.1.4", ["torch>=0.4.0", "numpy"])
    make_wheel(wheels, "gdown", "6.0.0", ["tqdm"])
    cell = replaced(setup_cell, tmp_path / "cell.py", **{"/kaggle/input": str(tmp_path / "input")})
    return tmp_path / "env" / "bin" / "python", wheels, cell


def test_setup_with_the_real_pip_and_no_network(scratch: tuple[Path, Path, Path], tmp_path: Path) -> None:
    interpreter, _, cell = scratch
    result = run(cell, cwd=tmp_path, interpreter=str(interpreter), **KAGGLE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok    libraries   all present" in result.stdout and "Ready" in result.stdout
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    installed = {p.name for p in site.iterdir() if not p.is_symlink() and p.suffix == ".dist-info"}
    assert installed == {"nbhelpers-0.1.0.dist-info", "lpips-0.1.4.dist-info", "gdown-6.0.0.dist-info"}


def test_setup_fails_rather_than_replace_numpy(scratch: tuple[Path, Path, Path], tmp_path: Path, root: Path) -> None:
    interpreter, wheels, cell = scratch
    make_wheel(wheels, "numpy", "99.0", [])
    make_wheel(wheels, "nbhelpers", "0.1.0", ["numpy>=99"], root / "nbhelpers")
    # A dry run: were the constraint missing, pip would reach the linked libraries of the environment under test.
    result = run(cell, cwd=tmp_path, interpreter=str(interpreter), PIP_DRY_RUN="1", **KAGGLE)
    assert result.returncode == 1 and "RuntimeError: pip install failed" in result.stderr
    assert "ResolutionImpossible" in result.stderr, result.stderr


def notebook(*cells: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def test_both_cells_in_a_real_kernel(
    setup_cell: Path, mount_cell: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBHELPERS_HOME", str(tmp_path))
    ask = "from nbhelpers.core.runtime import is_notebook\nprint(is_notebook())"
    fault = "from nbhelpers.core.errors import UserError\nraise UserError('one sentence')"
    run_all = notebook(setup_cell.read_text(), mount_cell.read_text(), ask, fault)
    with pytest.raises(CellExecutionError):
        NotebookClient(run_all, timeout=60, resources={"metadata": {"path": str(root / "colab_cells")}}).execute()
    table, mount, kernel, error = (cell.outputs[0] for cell in run_all.cells)
    assert table.text.startswith("ok    Python") and "Ready" in table.text.splitlines()[-1]
    assert mount.text == f"Runs go to {tmp_path / 'runs'}. This is not Colab: there is no Drive to mount.\n"
    assert kernel.text == "True\n"
    assert error.traceback == ["UserError: one sentence"]


# --- Mount ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "not Colab"),
        (KAGGLE, "Save Version"),
        ({**COLAB, **KAGGLE}, "Save Version"),
        (COLAB, "mounted now"),
        ({**COLAB, "NBHELPERS_HOME": "/scratch/me"}, "mounted now"),
        ({**COLAB, "NBHELPERS_COPY_DIR": "/mnt/safe"}, "mounted now"),
        ({"NBHELPERS_COPY_DIR": "~/safe"}, "not Colab"),
    ],
)
def test_mount_cell_stands_alone_and_agrees_with_the_workspace(
    bare: Bare, mount_cell: Path, environ: dict[str, str], says: str
) -> None:
    if "COLAB_GPU" in environ:
        colab_package(bare.site)
    result = bare.run(mount_cell, **environ)
    mounts = says == "mounted now"
    assert result.returncode == 0 and says in result.stdout, result.stderr
    assert ("COLAB MOUNTS /content/drive" in result.stdout) is mounts
    place = workspace(environ, drive=mounts)
    copied = f" and are copied to {place.copy_dir} as they are saved" if place.copy_dir else ""
    assert f"Runs go to {bare.cwd / place.output_dir}{copied}. " in result.stdout


def test_mount_cell_obeys_setup(bare: Bare, mount_cell: Path, tmp_path: Path) -> None:
    colab_package(bare.site)
    (tmp_path / "cell.py").write_text("MOUNT_DRIVE = False\n" + mount_cell.read_text())
    result = bare.run(tmp_path / "cell.py", **COLAB)
    assert result.stdout.startswith("Runs go to /content/nbhelpers/runs. They are lost with the session")


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no /proc to stand for a mounted Drive")
def test_mount_cell_finds_drive_mounted(bare: Bare, mount_cell: Path, tmp_path: Path) -> None:
    cell = replaced(mount_cell, tmp_path / "cell.py", **{"/content/drive": "/proc"})
    result = bare.run(cell, **COLAB)
    assert result.stdout == (
        "Runs go to /content/nbhelpers/runs and are copied to /proc/MyDrive/nbhelpers/runs as they are saved. "
        "Google Drive was mounted already.\n"
    )


# --- the texts ------------------------------------------------------------------------------------------------------


def test_the_repository_is_the_one_of_setup_cfg(setup_cell: Path, repository: str) -> None:
    assert re.findall(r'^REPOSITORY = "(.*)"$', setup_cell.read_text(), re.MULTILINE) == [repository]


def test_setup_can_be_read_by_a_stranger(setup_cell: Path) -> None:
    lines = setup_cell.read_text().splitlines()
    assert len(lines) <= 80
    assert "MOUNT_DRIVE = False" in "\n".join(lines[:20])
