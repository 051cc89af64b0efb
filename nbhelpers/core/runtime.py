"""Which machine this is, where its files go, which device and precision it trains with, and how it is seeded."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbhelpers import __version__
from nbhelpers.core.errors import UserError

if TYPE_CHECKING:
    import torch

Platform = Literal["kaggle", "colab", "local"]
Precision = Literal["no", "fp16", "bf16"]

PROFILES = ("smoke", "quick", "t4", "full")
DRIVE = Path("/content/drive")
# What `setup.cfg` requires, and numpy, which comes with all of it; a test compares the two lists.
REQUIRED = (
    "torch", "torchvision", "numpy", "lpips", "h5py", "rasterio", "matplotlib", "ipywidgets", "gdown", "tqdm", "peft",
    "accelerate", "safetensors", "PyYAML", "scipy", "requests", "filelock", "psutil",
)  # fmt: skip


def platform_name(environ: Mapping[str, str] = os.environ) -> Platform:
    """``"kaggle"``, ``"colab"`` or ``"local"``.

    Kaggle comes first because its image is built from Colab's and carries Colab's marks too.
    """
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:
        return "kaggle"
    if "COLAB_RELEASE_TAG" in environ or "COLAB_GPU" in environ:
        return "colab"
    # `find_spec("google.colab")` raises where no package named google exists, so that one is asked for first.
    if importlib.util.find_spec("google") is not None and importlib.util.find_spec("google.colab") is not None:
        return "colab"
    return "local"


def drive_mounted(mountpoint: Path = DRIVE) -> bool:
    """Whether Google Drive is really there.

    A folder of that name is no proof: ``makedirs`` before mounting makes one on the VM's own disk, and what is
    written there is lost with the session.
    """
    return os.path.ismount(mountpoint)


def mount_drive(mountpoint: Path = DRIVE) -> str:
    """Mount Google Drive on Colab, do nothing elsewhere, and return a sentence that says what happened.

    Raises:
        UserError: files stand at the mount point already; Colab refuses to mount over them.
    """
    if platform_name() != "colab":
        return "Google Drive can be mounted on Colab only: nothing to mount here."
    if drive_mounted(mountpoint):
        return f"Google Drive is mounted at {mountpoint} already."
    if mountpoint.is_dir() and any(mountpoint.iterdir()):
        raise UserError(
            f"Google Drive cannot be mounted at {mountpoint} because files were written there before mounting: "
            f"move them away (`!mv {mountpoint} {mountpoint}_unmounted`), then run this cell again."
        )
    importlib.import_module("google.colab.drive").mount(str(mountpoint))
    return f"Google Drive is mounted at {mountpoint}."


@dataclass(frozen=True)
class Workspace:
    """Where this machine keeps data and results. Nothing is created until something is written."""

    platform: Platform
    data_dir: Path  # datasets, on a local disk: training from Drive is many times slower
    output_dir: Path  # run folders, on a local disk too
    copy_dir: Path | None  # where runs are copied to as they are saved; None: nowhere


def workspace(environ: Mapping[str, str] = os.environ, *, drive: bool | None = None) -> Workspace:
    """The folders to use when the user names none.

    ``NBHELPERS_HOME`` wins everywhere and holds data and runs. Else Kaggle writes below ``/kaggle/working``; Colab
    works on the VM's disk and copies runs to Drive if that is mounted; any other machine gets
    ``./nbhelpers-workspace``. ``NBHELPERS_COPY_DIR`` names the folder for copies everywhere.

    Args:
        drive: whether Drive is mounted; ``None`` looks.
    """
    name, copies = platform_name(environ), None
    if environ.get("NBHELPERS_HOME"):
        home = Path(environ["NBHELPERS_HOME"]).expanduser()
    elif name == "kaggle":
        home = Path("/kaggle/working")
    elif name == "colab":
        home = Path("/content/nbhelpers")
        if drive if drive is not None else drive_mounted():
            copies = DRIVE / "MyDrive" / "nbhelpers" / "runs"
    else:
        home = Path("nbhelpers-workspace")
    if environ.get("NBHELPERS_COPY_DIR"):
        copies = Path(environ["NBHELPERS_COPY_DIR"]).expanduser()
    return Workspace(name, home / "data", home / "runs", copies)


def make_copy_dir(place: Workspace) -> Path | None:
    """The workspace's folder for copies, made if it lies on a Drive that is mounted.

    Anywhere else it must exist: a folder that is not there may belong to a disk that is not there.
    """
    copies = place.copy_dir
    if copies is not None and drive_mounted() and copies.is_relative_to(DRIVE):
        copies.mkdir(parents=True, exist_ok=True)
    return copies


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device as it was found by trying it."""

    name: str  # as torch reports it
    capability: tuple[int, int]  # compute capability, (7, 5) for a T4
    fault: str | None  # why it cannot be used; None for a working one


def arch_supported(capability: tuple[int, int], arch_list: Sequence[str]) -> bool:
    """Whether a torch build has code that this GPU can run.

    ``sm_XY`` is machine code: it runs on the same major version and any minor one from Y up. ``compute_XY`` is
    compiled on the spot for anything newer. A letter at the end (``sm_90a``) ties the code to that very chip.
    A list without either kind (a ROCm build) says nothing, and the answer is left to the first real operation.

    Args:
        arch_list: ``torch.cuda.get_arch_list()``, for instance ``["sm_75", "sm_80", "compute_120"]``.
    """
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", arch) for arch in arch_list]
    known = [(m[1], (int(m[2]), int(m[3])), m[4]) for m in found if m]
    if not known:
        return True
    for kind, version, letter in known:
        if letter:
            runs = version == capability
        elif kind == "sm":
            runs = version[0] == capability[0] and version <= capability
        else:
            runs = version <= capability
        if runs:
            return True
    return False


def first_operation_fault(device: torch.device | str) -> str | None:
    """Run one small product on ``device``; ``None`` when its result is right, else what went wrong."""
    import torch

    try:
        ones = torch.ones(8, 8, device=device)
        total = float((ones @ ones).sum())
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None if total == 512.0 else f"a product of ones gave {total} instead of 512"


def find_gpu() -> Gpu | None:
    """The CUDA device, tried and not only listed; ``None`` where torch sees none.

    ``torch.cuda.is_available()`` is True on Kaggle's P100 although the first operation on it fails.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    if not arch_supported(capability, torch.cuda.get_arch_list()):
        fault: str | None = f"this torch has no code for sm_{capability[0]}{capability[1]}"
    else:
        fault = first_operation_fault("cuda")
    return Gpu(name, capability, fault)


def gpu_cure(name: Platform) -> str:
    """What to do about a GPU that is there and cannot be used."""
    if name == "kaggle":
        return 'choose Accelerator "GPU T4 x2" (Settings > Accelerator); the P100 is too old for this torch'
    if name == "colab":
        return "Runtime > Change runtime type > T4 GPU"
    return "install a torch built for this GPU (pytorch.org/get-started), or train on the CPU: CUDA_VISIBLE_DEVICES="


def pick_device() -> torch.device:
    """CUDA if there is a GPU, else the CPU.

    Raises:
        UserError: a GPU is there and cannot be used. It is not passed over in silence: a session that was meant
            for a GPU would spend its hours on the CPU.
    """
    import torch

    gpu = find_gpu()
    if gpu is None:
        return torch.device("cpu")
    if gpu.fault is not None:
        raise UserError(f"The GPU {gpu.name} cannot be used: {gpu.fault}; {gpu_cure(platform_name())}.")
    return torch.device("cuda")


def precision_for(capability: tuple[int, int] | None) -> Precision:
    """Mixed precision by compute capability (``None`` for a CPU), in accelerate's names.

    Below 8.0 bfloat16 is emulated: a T4 reports support for it and is four times slower with it. On a CPU autocast
    is slower than float32.
    """
    if capability is None:
        return "no"
    return "bf16" if capability >= (8, 0) else "fp16"


def pick_precision(device: torch.device) -> Precision:
    """``"no"``, ``"fp16"`` or ``"bf16"`` for a device, see :func:`precision_for`."""
    import torch

    return precision_for(torch.cuda.get_device_capability(device) if device.type == "cuda" else None)


def default_profile(environ: Mapping[str, str] = os.environ) -> str:
    """``NBHELPERS_PROFILE``, else ``"t4"`` with a usable GPU, else ``"quick"``.

    Raises:
        UserError: the variable names no profile.
    """
    named = environ.get("NBHELPERS_PROFILE")
    if named:
        if named not in PROFILES:
            raise UserError(
                f"The environment variable NBHELPERS_PROFILE is {named!r}: set it to one of {', '.join(PROFILES)}."
            )
        return named
    gpu = find_gpu()
    return "t4" if gpu is not None and gpu.fault is None else "quick"


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (every device). Data randomness has its own seeds and does not need this."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def installed_version(name: str, *, path: Sequence[str] | None = None) -> str | None:
    """Version of an installed distribution, read from its metadata without importing it; ``None`` if absent.

    Args:
        path: folders to search instead of ``sys.path``.
    """
    found = importlib.metadata.distributions(name=name, path=list(sys.path if path is None else path))
    return next((distribution.version for distribution in found), None)


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """What a run needs on record to be repeated, in plain JSON types, without host, user or folder names.

    Args:
        device: the device the run trains on; picked if not given.
    """
    import torch

    device = pick_device() if device is None else device
    return {
        "nbhelpers": __version__,
        "python": platform.python_version(),
        "platform": platform_name(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "packages": {name: installed_version(name) for name in REQUIRED},
    }


def is_notebook() -> bool:
    """Whether this runs in a Jupyter kernel (Colab and Kaggle too), which can show widgets and redraw figures."""
    # Whoever runs in a kernel has IPython imported; importing it here would only cost time elsewhere.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")
