"""What TerraMind needs beside this package, and how it gets there."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from collections.abc import Callable

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import platform_name

LIBRARY = "terratorch.registry"

# On Colab pip's own choice would replace numpy under the running session, so it gets the names of what is missing.
# torchgeo 0.10 lacks what terratorch imports; rioxarray 0.21 needs a newer xarray than the image has.
COLAB_PACKAGES = (
    *("terratorch>=1.2.13", "torchgeo>=0.9,<0.10", "lightly==1.5.22", "rioxarray<0.21", "aenum", "hydra-core"),
    *("jsonargparse", "kornia", "kornia-rs", "lightly-utils", "lightning", "lightning-utilities"),
    *("pytorch-lightning", "segmentation-models-pytorch", "torchmetrics", "typeshed-client"),
)


def install_line(platform: str) -> str:
    """The command that installs what TerraMind needs on a platform ("colab", "kaggle" or "local")."""
    if platform == "local":
        return "pip install 'nbhelpers[terramind]'"
    return "pip install --no-deps " + shlex.join(COLAB_PACKAGES)


def install(*, run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> str:
    """Install what TerraMind needs on Colab and Kaggle, unless it is there; says what was done.

    Args:
        run: the function that runs pip.

    Raises:
        UserError: pip fails, or what it installed cannot be imported, or this is a machine of one's own, where nothing
            is installed without asking.
    """
    try:
        importlib.import_module(LIBRARY)
        return "terratorch is installed: nothing to do."
    except ImportError as error:
        if (platform := platform_name()) == "local":
            raise missing(error) from error
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", *shlex.split(install_line(platform))[1:]]
    done = run(words, capture_output=True, text=True)
    if done.returncode:
        last = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()][-1:] or ["no word"]
        raise UserError(
            f"pip could not install what TerraMind needs (its last words: {last[0].strip()}): see that this session "
            "may use the internet, and run the cell again."
        )
    importlib.invalidate_caches()
    try:
        importlib.import_module(LIBRARY)
    except ImportError as error:
        raise UserError(
            f"terratorch was installed and cannot be imported ({error}): restart the session and run the cell again."
        ) from error
    return f"Installed terratorch and {len(COLAB_PACKAGES) - 1} packages that it needs."


def missing(error: ImportError) -> UserError:
    """What to tell a user without terratorch."""
    return UserError(
        f"TerraMind comes with terratorch, which cannot be imported here ({error}): install it with "
        f"`{install_line(platform_name())}`, or train --model compact."
    )
