# Mount Google Drive on Colab: runs are copied there and outlive the session. Elsewhere this only says where runs go.
# This cell stands alone: it needs nothing but Python. Running it again is harmless.
import importlib
import importlib.util
import os
from pathlib import Path


def mount_drive(drive: Path = Path("/content/drive")) -> None:
    """Mount if this is Colab and the Setup cell did not say `MOUNT_DRIVE = False`; print what was done."""
    copies = None
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # asked first: Kaggle's image is built from Colab's
        home, note = Path("/kaggle/working"), "Kaggle keeps them when you press Save Version."
    elif not (
        "COLAB_RELEASE_TAG" in os.environ
        or "COLAB_GPU" in os.environ
        or (importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"))
    ):
        home, note = Path.cwd() / "nbhelpers-workspace", "This is not Colab: there is no Drive to mount."
    else:
        home, copies = Path("/content/nbhelpers"), drive / "MyDrive" / "nbhelpers" / "runs"
        if os.path.ismount(drive):  # a mere folder of that name would be lost with the session
            note = "Google Drive was mounted already."
        elif globals().get("MOUNT_DRIVE", True):
            importlib.import_module("google.colab.drive").mount(str(drive))  # Colab asks for your permission
            note = "Google Drive is mounted now."
        else:
            copies, note = None, "They are lost with the session: see MOUNT_DRIVE in Setup."
    if os.environ.get("NBHELPERS_HOME"):
        home, copies = Path(os.environ["NBHELPERS_HOME"]).expanduser(), None
    if os.environ.get("NBHELPERS_COPY_DIR"):
        copies = Path(os.environ["NBHELPERS_COPY_DIR"]).expanduser()
    copied = f" and are copied to {copies} as they are saved" if copies else ""
    print(f"Runs go to {home / 'runs'}{copied}. {note}")


mount_drive()
