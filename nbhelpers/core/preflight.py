"""Checks this machine before any quota is spent: what was found, whether it will do, and the cure if it will not.

Every check is a small function of what was found, so that it can be tried with planted values; :func:`preflight`
looks at the machine and hands the findings over.
"""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import (
    REQUIRED,
    Gpu,
    Platform,
    default_profile,
    drive_mounted,
    find_gpu,
    first_operation_fault,
    gpu_cure,
    installed_version,
    platform_name,
    precision_for,
    workspace,
)

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One row of the report."""

    name: str
    status: Literal["ok", "warn", "stop"]  # stop: training would fail, or cannot be trusted
    found: str
    cure: str = ""


def check_python(version: tuple[int, int, int]) -> Check:
    """Python 3.10 or newer."""
    found = ".".join(str(part) for part in version)
    if version >= (3, 10, 0):
        return Check("Python", "ok", found)
    return Check("Python", "stop", f"{found}, and 3.10 or newer is needed", "use a newer Python")


def check_libraries(path: Sequence[str] | None = None) -> Check:
    """All required libraries but ipywidgets, which has a row of its own."""
    missing = [n for n in REQUIRED if n != "ipywidgets" and installed_version(n, path=path) is None]
    if not missing:
        return Check("libraries", "ok", "all present")
    cure = f"pip install {' '.join(missing)}"
    if "torch" in missing:
        cure += " (for torch see pytorch.org/get-started)"
    return Check("libraries", "stop", f"not installed: {', '.join(missing)}", cure)


def check_numpy(loaded: str | None, on_disk: str | None) -> Check:
    """The numpy that runs is the numpy on disk; else the next import of a library built on it breaks."""
    from packaging.version import Version

    if loaded is None or on_disk is None or Version(loaded) == Version(on_disk):
        return Check("numpy", "ok", on_disk or loaded or "not installed")
    found = f"{loaded} is running, {on_disk} is installed: it was replaced after this session started"
    return Check("numpy", "stop", found, "restart the session, then run again")


def check_device(gpu: Gpu | None, platform: Platform, torch_version: str) -> Check:
    """A GPU that works; without one the CPU, on which one operation is tried just the same."""
    if gpu is not None:
        found = f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]}), torch {torch_version}"
        if gpu.fault is not None:
            return Check("device", "stop", f"{found}: {gpu.fault}", gpu_cure(platform))
        return Check("device", "ok", found)
    found = f"CPU, torch {torch_version}"
    fault = first_operation_fault("cpu")
    if fault is not None:
        return Check("device", "stop", f"{found}: {fault}", "reinstall torch")
    if platform == "local":  # on a machine of one's own a missing GPU is no oversight that a menu could mend
        return Check("device", "ok", f"{found}, no GPU")
    menu = "Runtime > Change runtime type > T4 GPU" if platform == "colab" else 'Settings > Accelerator > "GPU T4 x2"'
    return Check("device", "warn", f"{found}, no GPU", f"{menu}, then Run all again")


def check_profile(profile: str, usable_gpu: bool) -> Check:
    """The profile that will be used; the two large ones take a day and more without a GPU."""
    if usable_gpu or profile in ("smoke", "quick"):
        return Check("profile", "ok", profile)
    return Check("profile", "warn", f"{profile}, and there is no GPU for it", "NBHELPERS_PROFILE=quick")


def check_precision(capability: tuple[int, int] | None) -> Check:
    """Says what was chosen and why; there is nothing to fail."""
    why = {
        "no": "fp32: autocast on a CPU is slower",
        "fp16": "fp16 with loss scaling: below sm_80 bf16 is reported as supported and is about 4 times slower",
        "bf16": "bf16: sm_80 or newer",
    }
    return Check("precision", "ok", why[precision_for(capability)])


def check_gpu_memory(free: int, total: int) -> Check:
    """At least half of the GPU's memory (bytes) is free."""
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free >= total / 2:
        return Check("GPU memory", "ok", found)
    return Check("GPU memory", "warn", found, "another kernel holds the rest: shut it down, or restart this session")


def check_memory(free: int, total: int) -> Check:
    """At least 2 GiB of main memory (bytes) are free."""
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free >= 2 * GIB:
        return Check("memory", "ok", found)
    return Check("memory", "warn", found, "close other programs or notebooks, or use a smaller cache")


def existing_parent(folder: Path) -> Path:
    """The folder itself or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(p for p in (folder, *folder.parents) if p.exists())


def write_fault(folder: Path) -> str | None:
    """Why nothing can be written at ``folder`` (which need not exist yet), found by writing; ``None`` if it can."""
    try:
        with tempfile.TemporaryFile(dir=existing_parent(folder)) as file:
            file.write(b"nbhelpers")
    except OSError as error:
        return error.strerror or str(error)
    return None


def check_disk(name: str, folder: Path, free: int) -> Check:
    """Free space (bytes): 5 GiB are comfortable, below 1 GiB a checkpoint may not fit."""
    found = f"{free / GIB:.1f} GiB free at {folder.absolute()}"
    if free >= 5 * GIB:
        return Check(name, "ok", found)
    cure = "delete old runs or data there, or choose another folder"
    return Check(name, "stop" if free < GIB else "warn", found, cure)


def check_output(folder: Path) -> Check:
    """Results can be written, and there is room for them."""
    fault = write_fault(folder)
    if fault is not None:
        return Check("output", "stop", f"cannot write at {folder}: {fault}", "choose another output folder")
    return check_disk("output", folder, shutil.disk_usage(existing_parent(folder)).free)


def check_data(folder: Path) -> Check:
    """Room for data. A read-only folder that exists (``/kaggle/input``) is fine: nothing will be written there."""
    fault = write_fault(folder)
    if fault is None:
        return check_disk("data", folder, shutil.disk_usage(existing_parent(folder)).free)
    if folder.is_dir():
        return Check("data", "ok", f"{folder} is read-only: it is used as it is")
    return Check("data", "stop", f"{folder} does not exist and cannot be made: {fault}", "choose another data folder")


def torchao_refused(path: Sequence[str] | None = None) -> str | None:
    """The installed torchao's version if peft is installed too and refuses it (below 0.16), else ``None``."""
    torchao = installed_version("torchao", path=path)
    if torchao is None or installed_version("peft", path=path) is None:
        return None
    from packaging.version import Version  # comes with peft

    return torchao if Version(torchao) < Version("0.16") else None


def check_torchao(path: Sequence[str] | None = None) -> Check:
    """peft raises on the first LoRA layer when a torchao older than 0.16 is installed; nothing here needs torchao."""
    refused = torchao_refused(path)
    if refused is None:
        return Check("torchao", "ok", installed_version("torchao", path=path) or "not installed (not needed)")
    peft = installed_version("peft", path=path)
    found = f"{refused}, and peft {peft} refuses a torchao below 0.16"
    return Check("torchao", "stop", found, "pip uninstall -y torchao")


def check_ipywidgets(version: str | None) -> Check:
    """Panels need ipywidgets 7.7.1 or newer; everything else works without."""
    from packaging.version import Version

    if version is not None and Version(version) >= Version("7.7.1"):
        return Check("ipywidgets", "ok", version)
    found = "not installed" if version is None else f"{version}, and 7.7.1 or newer is needed"
    return Check("ipywidgets", "warn", f"{found}: no panels, settings keep their defaults", "pip install ipywidgets")


def check_drive(mounted: bool, output_dir: Path, copy_dir: Path | None) -> Check:
    """On Colab the VM's disk is lost with the session: runs outlive it where they are copied as they are saved."""
    if copy_dir is not None:
        return Check("Drive", "ok", f"runs are copied to {copy_dir} as they are saved")
    if mounted:
        return Check("Drive", "ok", f"mounted; runs go to {output_dir} and are not copied")
    cure = "set MOUNT_DRIVE = True in the Setup cell and run it again"
    return Check("Drive", "warn", f"not mounted: {output_dir} is lost when the session ends", cure)


def internet_reachable(host: str = "1.1.1.1", port: int = 443, *, timeout: float = 2.0) -> bool:
    """Whether a connection opens within ``timeout`` seconds.

    The host is an address because without a network the look-up of a name can hang for much longer than that.
    """
    try:
        socket.create_connection((host, port), timeout=timeout).close()
    except OSError:
        return False
    return True


def check_internet(reachable: bool, platform: Platform) -> Check:
    """Kaggle sessions start without a network; then data must come from attached datasets."""
    if reachable:
        return Check("internet", "ok", "reachable")
    cure = "simulated and uploaded data work without it; for downloads connect the runtime again"
    if platform == "kaggle":
        cure = "Settings > Turn on internet, or attach the data as a Kaggle Dataset (searched in /kaggle/input)"
    return Check("internet", "warn", "not reachable: nothing can be downloaded", cure)


def preflight(*, output_dir: Path | None = None, data_dir: Path | None = None) -> list[Check]:
    """Look at this machine; folders that are not given are the workspace's.

    Where Python, a library or numpy is at fault the list ends there: torch could not be asked anything.
    """
    numpy = sys.modules.get("numpy")
    checks = [check_python(sys.version_info[:3]), check_libraries()]
    if all(c.status != "stop" for c in checks):  # else packaging, which compares versions, may be missing too
        checks.append(check_numpy(numpy.__version__ if numpy else None, installed_version("numpy")))
    if any(c.status == "stop" for c in checks):
        return checks

    import psutil
    import torch

    place = workspace()
    output_dir, data_dir = Path(output_dir or place.output_dir), Path(data_dir or place.data_dir)
    platform, gpu, memory = platform_name(), find_gpu(), psutil.virtual_memory()
    usable = gpu if gpu is not None and gpu.fault is None else None
    checks.append(check_device(gpu, platform, torch.__version__))
    try:
        checks.append(check_profile(default_profile(), usable is not None))
    except UserError as error:
        checks.append(Check("profile", "stop", str(error)))
    checks.append(check_precision(usable.capability if usable else None))
    if usable:
        checks.append(check_gpu_memory(*torch.cuda.mem_get_info()))
    checks += [
        check_memory(memory.available, memory.total),
        check_output(output_dir),
        check_data(data_dir),
        check_torchao(),
        check_ipywidgets(installed_version("ipywidgets")),
    ]
    if platform == "colab":
        checks.append(check_drive(drive_mounted(), output_dir, place.copy_dir))
    if platform != "local":
        checks.append(check_internet(internet_reachable(), platform))
    return checks


def format_checks(checks: Sequence[Check], *, width: int = 110) -> str:
    """An aligned plain-text table, at most ``width`` characters wide, each cure on a line of its own below its row."""
    name_width = max((len(c.name) for c in checks), default=0)
    margin = " " * (6 + name_width + 2)

    def wrap(text: str, indent: str) -> list[str]:  # paths and commands stay in one piece
        return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

    lines = []
    for check in checks:
        head = f"{check.status:<6}{check.name:<{name_width}}  "
        lines += wrap(head + check.found, margin)
        if check.cure:
            lines += wrap(margin + "-> " + check.cure, margin + "   ")
    stops, warnings = (sum(c.status == status for c in checks) for status in ("stop", "warn"))
    counts = f": {stops} to mend (stop), {warnings} to know about (warn)" if stops or warnings else ""
    lines.append(f"{'Not ready' if stops else 'Ready'}{counts}.")
    return "\n".join(lines)


def raise_on_stop(checks: Sequence[Check]) -> None:
    """Raise if anything must be mended first.

    Raises:
        UserError: names every check that says stop, with its cure.
    """
    stops = [f"{c.name}: {c.found}" + (f" (cure: {c.cure})" if c.cure else "") for c in checks if c.status == "stop"]
    if stops:
        raise UserError(f"This machine is not ready: {'; '.join(stops)}.")
