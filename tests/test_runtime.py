"""The machine: platform, folders, device, precision, seeds, and the checks that come before a run."""

from __future__ import annotations

import configparser
import getpass
import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nbhelpers.core import preflight as pf
from nbhelpers.core import runtime
from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import Gpu

KAGGLE = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}
COLAB = {"COLAB_RELEASE_TAG": "release-colab_20260801", "COLAB_GPU": "1"}
ARCHS = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
T4 = Gpu("Tesla T4", (7, 5), None)
P100 = Gpu("Tesla P100-PCIE-16GB", (6, 0), "this torch has no code for sm_60")
GIB = 2**30


def plant(folder: Path, **versions: str) -> list[str]:
    """Distributions that are installed as far as their metadata say; returns a search path."""
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return [str(folder)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set this process's environment to that of another platform."""

    def become(**environ: str) -> None:
        for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "COLAB_GPU", "NBHELPERS_HOME", "NBHELPERS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    become()
    return become


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package named google that can be imported; Colab's part is for the test to add."""
    package = tmp_path / "site" / "google"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    for name in [m for m in sys.modules if m.split(".")[0] == "google"]:
        monkeypatch.delitem(sys.modules, name)
    yield package
    for name in [m for m in sys.modules if m.split(".")[0] == "google"]:
        del sys.modules[name]


# --- the package ----------------------------------------------------------------------------------------------------


def test_import_is_quick_and_leaves_heavy_libraries_alone(root: Path) -> None:
    code = (
        "import time, sys; start = time.perf_counter(); import nbhelpers; seconds = time.perf_counter() - start;"
        "import nbhelpers.core.runtime, nbhelpers.core.preflight;"
        "heavy = 'torch numpy lpips h5py rasterio matplotlib ipywidgets peft'.split();"
        "print(seconds, *[name for name in heavy if name in sys.modules])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert min(float(output[0]) for output in outputs) < 0.5
    assert outputs[0][1:] == []


def test_required_libraries_are_those_of_setup_cfg(root: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    declared = {re.split(r"[<>=!~ ]", line)[0] for line in setup["options"]["install_requires"].split("\n") if line}
    assert set(runtime.REQUIRED) == declared | {"numpy"}


# --- platform and folders -------------------------------------------------------------------------------------------


def test_kaggle_is_asked_before_colab() -> None:
    assert runtime.platform_name(KAGGLE) == "kaggle"
    assert runtime.platform_name({**COLAB, **KAGGLE}) == "kaggle"
    assert runtime.platform_name(COLAB) == "colab"
    assert runtime.platform_name({"COLAB_GPU": ""}) == "colab"  # present and empty on a CPU runtime


def test_colab_is_known_by_its_package(google: Path) -> None:
    assert runtime.platform_name({}) == "local"  # another google package (protobuf) proves nothing
    (google / "colab").mkdir()
    (google / "colab" / "__init__.py").touch()
    assert runtime.platform_name({}) == "colab"
    assert runtime.platform_name(KAGGLE) == "kaggle"


@pytest.mark.parametrize(
    ("environ", "drive", "home", "copies"),
    [
        (KAGGLE, False, "/kaggle/working", None),
        ({**COLAB, **KAGGLE}, True, "/kaggle/working", None),
        (COLAB, False, "/content/nbhelpers", None),
        (COLAB, True, "/content/nbhelpers", "/content/drive/MyDrive/nbhelpers/runs"),
        ({}, False, "nbhelpers-workspace", None),
        ({"NBHELPERS_HOME": "/scratch/me"}, False, "/scratch/me", None),
        ({**COLAB, "NBHELPERS_HOME": "/scratch/me"}, True, "/scratch/me", None),
        ({"NBHELPERS_COPY_DIR": "/mnt/safe"}, False, "nbhelpers-workspace", "/mnt/safe"),
        ({**COLAB, "NBHELPERS_COPY_DIR": "/mnt/safe"}, True, "/content/nbhelpers", "/mnt/safe"),
        ({"NBHELPERS_HOME": "/scratch/me", "NBHELPERS_COPY_DIR": "/mnt/safe"}, False, "/scratch/me", "/mnt/safe"),
    ],
)
def test_workspace(environ: dict[str, str], drive: bool, home: str, copies: str | None) -> None:
    place = runtime.workspace(environ, drive=drive)
    assert (place.data_dir, place.output_dir) == (Path(home, "data"), Path(home, "runs"))
    assert place.copy_dir == (copies and Path(copies))
    assert place.platform == runtime.platform_name(environ)


def test_workspace_folders_may_be_written_with_a_tilde() -> None:
    place = runtime.workspace({"NBHELPERS_HOME": "~/nb", "NBHELPERS_COPY_DIR": "~/copies"})
    assert (place.data_dir, place.copy_dir) == (Path.home() / "nb" / "data", Path.home() / "copies")


def test_a_folder_named_drive_is_not_drive(tmp_path: Path) -> None:
    (tmp_path / "MyDrive").mkdir()
    assert not runtime.drive_mounted(tmp_path)
    assert not runtime.drive_mounted(tmp_path / "missing")


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no /proc to stand for a mounted file system")
def test_a_mount_is_seen(machine: Callable[..., None]) -> None:
    assert runtime.drive_mounted(Path("/proc"))
    machine(**COLAB)
    assert "already" in runtime.mount_drive(Path("/proc"))  # and Colab, which is not here, is not called


def test_mount_drive(google: Path, tmp_path: Path, machine: Callable[..., None]) -> None:
    (google / "colab").mkdir()
    (google / "colab" / "__init__.py").touch()
    (google / "colab" / "drive.py").write_text("calls = []\ndef mount(mountpoint):\n    calls.append(mountpoint)\n")
    from google.colab import drive  # type: ignore[import-not-found]

    machine(**KAGGLE)
    assert "Colab only" in runtime.mount_drive(tmp_path / "drive")
    assert drive.calls == []

    machine(**COLAB)
    assert str(tmp_path / "drive") in runtime.mount_drive(tmp_path / "drive")
    assert drive.calls == [str(tmp_path / "drive")]

    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    with pytest.raises(UserError, match="before mounting.*mv"):
        runtime.mount_drive(tmp_path / "drive")
    assert len(drive.calls) == 1


# --- device, precision, profile -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "arch_list", "runs"),
    [
        ((6, 0), ARCHS, False),  # Kaggle's P100
        ((7, 5), ARCHS, True),  # T4
        ((8, 9), ARCHS, True),  # L4: sm_86 runs on a later minor version
        ((8, 7), ["sm_89"], False),  # never on an earlier one
        ((7, 0), ["sm_75"], False),
        ((8, 0), ["sm_75"], False),  # nor on another major version
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((12, 1), ["sm_75", "compute_120"], True),  # compiled on the spot
        ((6, 1), ["sm_60"], True),
        ((10, 3), ["sm_100"], True),  # 10.0, not 1.00
        ((9, 4), ["gfx90a", "gfx942"], True),  # ROCm: for the first operation to tell
        ((8, 0), [], True),
    ],
)
def test_arch_supported(capability: tuple[int, int], arch_list: list[str], runs: bool) -> None:
    assert runtime.arch_supported(capability, arch_list) is runs


def test_first_operation() -> None:
    assert runtime.first_operation_fault("cpu") is None
    if torch.cuda.is_available() or torch.version.cuda is None:
        pytest.skip("needs a torch for CUDA and no GPU")
    fault = runtime.first_operation_fault("cuda")
    assert fault is not None and "\n" not in fault


def test_device_of_this_machine() -> None:
    device = runtime.pick_device()
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert runtime.pick_precision(torch.device("cpu")) == "no"
    assert runtime.pick_precision(device) in ("fp16", "bf16") or device.type == "cpu"


def test_a_gpu_that_cannot_be_used_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, machine: Callable[..., None]
) -> None:
    monkeypatch.setattr(runtime, "find_gpu", lambda: P100)
    machine(**KAGGLE)
    with pytest.raises(UserError, match='P100.*sm_60.*"GPU T4 x2"'):
        runtime.pick_device()
    assert runtime.default_profile({}) == "quick"
    monkeypatch.setattr(runtime, "find_gpu", lambda: T4)
    assert runtime.pick_device() == torch.device("cuda")
    assert runtime.default_profile({}) == "t4"
    monkeypatch.setattr(runtime, "find_gpu", lambda: None)
    assert runtime.default_profile({}) == "quick"


def test_precision_by_compute_capability() -> None:
    asked: list[tuple[int, int] | None] = [None, (6, 0), (7, 5), (8, 0), (8, 9), (9, 0), (12, 0)]
    assert [runtime.precision_for(c) for c in asked] == ["no", "fp16", "fp16", "bf16", "bf16", "bf16", "bf16"]


def test_profile_from_the_environment() -> None:
    assert runtime.default_profile({"NBHELPERS_PROFILE": "smoke"}) == "smoke"
    with pytest.raises(UserError, match="NBHELPERS_PROFILE is 'tiny'.*smoke, quick, t4, full"):
        runtime.default_profile({"NBHELPERS_PROFILE": "tiny"})


# --- seeds and record -----------------------------------------------------------------------------------------------


def test_seed_everything_repeats_all_three_generators() -> None:
    def draw(seed: int) -> tuple[float, float, float]:
        runtime.seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draw(7)
    assert draw(7) == first
    assert not set(draw(8)) & set(first)
    draw(2**40)  # beyond what numpy takes


def test_environment_is_plain_and_names_nobody() -> None:
    record = runtime.environment()
    assert json.loads(json.dumps(record)) == record
    assert (
        record["packages"]["torch"] == torch.__version__.split("+")[0]
        or record["packages"]["torch"] == torch.__version__
    )
    assert set(record["packages"]) == set(runtime.REQUIRED)
    text = json.dumps(record)
    assert socket.gethostname() not in text and str(Path.home()) not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text


def test_versions_are_read_without_importing(tmp_path: Path) -> None:
    path = plant(tmp_path, torchao="0.10.0")
    assert runtime.installed_version("torchao", path=path) == "0.10.0"
    assert runtime.installed_version("peft", path=path) is None


def test_a_test_run_is_no_notebook() -> None:
    assert runtime.is_notebook() is False  # a real kernel is asked in test_colab_cells.py


# --- the checks -----------------------------------------------------------------------------------------------------


def test_python() -> None:
    assert [pf.check_python(v).status for v in ((3, 9, 18), (3, 10, 0), (3, 13, 1))] == ["stop", "ok", "ok"]


def test_missing_libraries_are_named(tmp_path: Path) -> None:
    versions = dict.fromkeys(runtime.REQUIRED, "1.0")
    assert pf.check_libraries(plant(tmp_path / "all", **versions)).status == "ok"
    del versions["lpips"], versions["gdown"], versions["ipywidgets"]
    check = pf.check_libraries(plant(tmp_path / "some", **versions))
    assert (check.status, check.cure) == ("stop", "pip install lpips gdown")


def test_numpy_replaced_in_the_running_session() -> None:
    check = pf.check_numpy("2.1.3", "2.3.0")
    assert (check.status, check.cure) == ("stop", "restart the session, then run again")
    assert pf.check_numpy("2.1.3", "2.1.3").status == "ok"
    assert pf.check_numpy("2.10.0", "2.10").status == "ok"  # one version, written in two ways
    assert pf.check_numpy(None, "2.3.0").status == "ok"  # not loaded yet


def test_device_rows() -> None:
    p100 = pf.check_device(P100, "kaggle", "2.11.0")
    assert p100.status == "stop" and "sm_60" in p100.found and '"GPU T4 x2"' in p100.cure
    assert pf.check_device(T4, "colab", "2.11.0") == pf.Check("device", "ok", "Tesla T4 (sm_75), torch 2.11.0")
    none = {p: pf.check_device(None, p, "2.11.0") for p in ("local", "colab", "kaggle")}
    assert {p: c.status for p, c in none.items()} == {"local": "ok", "colab": "warn", "kaggle": "warn"}
    assert "Runtime > Change runtime type" in none["colab"].cure and "Accelerator" in none["kaggle"].cure


def test_profile_rows() -> None:
    rows = [(profile, gpu) for profile in ("quick", "t4") for gpu in (True, False)]
    assert [pf.check_profile(*row).status for row in rows] == ["ok", "ok", "ok", "warn"]


def test_precision_rows_say_why() -> None:
    assert "fp16" in pf.check_precision((7, 5)).found and "4 times slower" in pf.check_precision((7, 5)).found
    assert pf.check_precision((8, 0)).found.startswith("bf16")
    assert pf.check_precision(None).found.startswith("fp32")


def test_memory_rows() -> None:
    assert [pf.check_gpu_memory(free * GIB, 15 * GIB).status for free in (14, 8, 3)] == ["ok", "ok", "warn"]
    assert [pf.check_memory(free * GIB, 13 * GIB).status for free in (9, 2, 1)] == ["ok", "ok", "warn"]


def test_disk_rows(tmp_path: Path) -> None:
    statuses = [pf.check_disk("output", tmp_path, int(free * GIB)).status for free in (80, 5, 4.9, 1, 0.9)]
    assert statuses == ["ok", "ok", "warn", "warn", "stop"]


def test_writable_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert pf.write_fault(tmp_path / "not" / "yet") is None
    assert list(tmp_path.iterdir()) == []


def test_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = pf.check_output(tmp_path / "file" / "runs")
    assert check.status == "stop" and str(tmp_path / "file" / "runs") in check.found and check.cure


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no /proc to stand for a read-only file system")
def test_data_folder_may_be_read_only_if_it_is_there(tmp_path: Path) -> None:
    assert pf.check_data(Path("/proc/self")).status == "ok"
    assert pf.check_data(Path("/proc/no-such-folder")).status == "stop"
    assert pf.check_data(tmp_path / "new").name == "data"


@pytest.mark.parametrize(
    ("torchao", "status"), [("0.10.0", "stop"), ("0.9.0", "stop"), ("0.15.9", "stop"), ("0.16.0", "ok"), ("1.0", "ok")]
)
def test_peft_refuses_an_old_torchao(tmp_path: Path, torchao: str, status: str) -> None:
    check = pf.check_torchao(plant(tmp_path, torchao=torchao, peft="0.20.0"))
    assert check.status == status
    if status == "stop":
        assert check.cure == "pip uninstall -y torchao" and torchao in check.found and "0.20.0" in check.found


def test_torchao_alone_or_absent_is_fine(tmp_path: Path) -> None:
    assert pf.check_torchao(plant(tmp_path / "a", torchao="0.10.0")).status == "ok"
    assert pf.check_torchao(plant(tmp_path / "b", peft="0.20.0")).status == "ok"


def test_ipywidgets_rows() -> None:
    versions = ("7.7.1", "8.1.5", "7.7.0", "7.10.0", None)
    assert [pf.check_ipywidgets(v).status for v in versions] == ["ok", "ok", "warn", "ok", "warn"]


def test_drive_row(tmp_path: Path) -> None:
    copied = pf.check_drive(True, tmp_path, Path("/mnt/copies"))
    assert copied.status == "ok" and "copied to /mnt/copies" in copied.found
    home = pf.check_drive(True, tmp_path, None)
    assert home.status == "ok" and f"{tmp_path} and are not copied" in home.found
    lost = pf.check_drive(False, tmp_path, None)
    assert lost.status == "warn" and "MOUNT_DRIVE = True" in lost.cure


def test_internet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert pf.internet_reachable("127.0.0.1", port)
    assert not pf.internet_reachable("127.0.0.1", port, timeout=0.5)
    assert pf.check_internet(True, "kaggle").status == "ok"
    off = pf.check_internet(False, "kaggle")
    assert off.status == "warn" and "internet" in off.cure and "/kaggle/input" in off.cure


# --- the report -----------------------------------------------------------------------------------------------------


def test_preflight_of_this_machine(tmp_path: Path, machine: Callable[..., None]) -> None:
    checks = pf.preflight(output_dir=tmp_path / "runs", data_dir=tmp_path / "data")
    names = [c.name for c in checks]
    assert names[:6] == ["Python", "libraries", "numpy", "device", "profile", "precision"]
    assert {"memory", "output", "data", "torchao", "ipywidgets"} <= set(names)
    assert not {"Drive", "internet"} & set(names)
    assert not list(tmp_path.iterdir())
    pf.raise_on_stop(checks)

    machine(NBHELPERS_PROFILE="tiny")
    with pytest.raises(UserError, match="NBHELPERS_PROFILE"):
        pf.raise_on_stop(pf.preflight(output_dir=tmp_path, data_dir=tmp_path))


def test_preflight_on_colab_looks_for_drive_and_network(
    tmp_path: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pf, "internet_reachable", lambda: False)
    machine(**COLAB)
    rows = {c.name: c for c in pf.preflight(output_dir=tmp_path, data_dir=tmp_path)}
    assert rows["Drive"].status == rows["internet"].status == "warn"
    machine(**COLAB, **KAGGLE)
    rows = {c.name: c for c in pf.preflight(output_dir=tmp_path, data_dir=tmp_path)}
    assert "Drive" not in rows and "Kaggle Dataset" in rows["internet"].cure


def test_preflight_ends_where_numpy_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "1.0.0")
    checks = pf.preflight()
    assert checks[-1].name == "numpy" and checks[-1].status == "stop"


def test_table_is_aligned_and_narrow() -> None:
    checks = [
        pf.Check("Python", "ok", "3.13.1"),
        pf.Check("device", "stop", "word " * 40, 'choose Accelerator "GPU T4 x2"'),
        pf.Check("ipywidgets", "warn", "none", "pip uninstall -y torchao"),
    ]
    lines = pf.format_checks(checks, width=80).split("\n")
    assert max(map(len, lines)) <= 80
    column = lines[0].index("3.13.1")
    assert lines[1][column:].startswith("word") and all(line[:column].strip() == "" for line in lines[2:4])
    assert [line.index("->") for line in lines if "->" in line] == [column, column]
    assert lines[-1] == "Not ready: 1 to mend (stop), 1 to know about (warn)."
    assert pf.format_checks(checks[:1]).endswith("Ready.")


def test_stops_are_raised_as_one_sentence_with_the_cure() -> None:
    pf.raise_on_stop([pf.Check("a", "ok", "x"), pf.Check("b", "warn", "x", "y")])
    with pytest.raises(UserError, match="torchao: 0.10.0.*cure: pip uninstall -y torchao") as caught:
        pf.raise_on_stop([pf.Check("torchao", "stop", "0.10.0", "pip uninstall -y torchao")])
    assert "\n" not in str(caught.value)
