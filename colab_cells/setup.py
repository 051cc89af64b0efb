# Setup: installs only what is missing, mounts Google Drive if asked, and checks this machine before any quota is spent.
# This cell stands alone: paste it as the first cell of any notebook. Running it again is harmless.
import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

# True, on Colab: runs are copied to your Google Drive and outlive the session. Colab will ask for your permission.
MOUNT_DRIVE = False  # @param {type:"boolean"}
REPOSITORY = "https://github.com/nbhelpers/nbhelpers"

# Never installed, replaced or removed: another copy under a running session breaks the next import.
KEEP = ("torch", "torchvision", "numpy", "ipywidgets")


def pip(*arguments: str) -> None:
    """Run pip for this very Python; on failure show pip's own last words instead of a page of traceback."""
    result = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(
            f"pip {arguments[0]} failed: {result.stderr.strip()[-1000:]}\n"
            "Without a network? On Kaggle: Settings > Turn on internet, or attach a dataset that holds the wheels "
            "of nbhelpers and of what is missing (colab_cells/README.md says how to make one)."
        )


def install_nbhelpers() -> None:
    """Make `import nbhelpers` work: as installed, else from this checkout, attached wheels, or the repository."""
    spec = importlib.util.find_spec("nbhelpers")
    if spec is not None and spec.origin is not None:  # a mere folder of that name (our data folder) has no origin
        return
    for folder in (Path.cwd(), Path.cwd().parent):
        if (folder / "nbhelpers" / "__init__.py").is_file():
            sys.path.insert(0, str(folder))
            return
    absent = [name for name in KEEP if importlib.util.find_spec(name) is None]
    if absent:
        raise RuntimeError(
            f"{', '.join(absent)}: not installed, and this cell leaves that to you, because the right build depends on "
            "your machine (for torch and torchvision see pytorch.org/get-started). Then run this cell again."
        )
    # Given their present versions as constraints, pip installs what is missing and fails rather than touch them.
    constraints = Path(tempfile.mkdtemp(), "keep.txt")
    constraints.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in KEEP))
    # Kaggle without a network: wheels in an attached dataset. A full `**` would walk through every image there.
    levels = ("*/" * depth + "nbhelpers-*.whl" for depth in range(1, 5))
    wheelhouses = sorted({str(wheel.parent) for level in levels for wheel in Path("/kaggle/input").glob(level)})
    if wheelhouses:
        source = ["--no-index", *(f"--find-links={folder}" for folder in wheelhouses), "nbhelpers"]
    else:
        source = [f"nbhelpers @ git+{REPOSITORY}"]
    print(f"Installing nbhelpers from {', '.join(wheelhouses) or REPOSITORY} ...")
    pip("install", "--quiet", "--constraint", str(constraints), *source)
    importlib.invalidate_caches()


def check_machine() -> None:
    """Mount Drive if asked, cure what can be cured, print one row for each thing that could fail later."""
    from nbhelpers.core import preflight, runtime

    if MOUNT_DRIVE:
        print(runtime.mount_drive())
    refused = preflight.torchao_refused()
    if refused and runtime.platform_name() != "local":  # a machine of your own is yours to change
        pip("uninstall", "--yes", "torchao")
        print(f"Removed torchao {refused}: the installed peft refuses it, and nothing here needs it.")
    checks = preflight.preflight()
    print(preflight.format_checks(checks))
    preflight.raise_on_stop(checks)


install_nbhelpers()
check_machine()
