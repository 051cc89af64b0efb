# Mount Google Drive on Colab, so that runs outlive the session. Elsewhere this only says where runs go.
# This cell stands alone: it needs nothing but Python. Running it again is harmless.
import importlib
import importlib.util
import os
from pathlib import Path


def mount_drive(drive: Path = Path("/content/drive")) -> None:
    """Mount if this is Colab and the Setup cell did not say `MOUNT_DRIVE = False`; print what was done."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # asked first: Kaggle's image is built from Colab's
        home, note = Path("/kaggle/working"), "Kaggle keeps them when you press Save Version."
    elif not (
        "COLAB_RELEASE_TAG" in os.environ
        or "COLAB_GPU" in os.environ
        or (importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"))
    ):
        home, note = Path.cwd() / "nbhelpers-workspace", "This is not Colab: there is no Drive to mount."
    elif os.path.ismount(drive):  # a mere folder of that name would be lost with the session
        home, note = drive / "MyDrive" / "nbhelpers", "Google Drive was mounted already."
    elif globals().get("MOUNT_DRIVE", True):
        importlib.import_module("google.colab.drive").mount(str(drive))  # Colab asks for your permission
        home, note = drive / "MyDrive" / "nbhelpers", "Google Drive is mounted now."
    else:
        home, note = Path("/content/nbhelpers"), "They are lost with the session: see MOUNT_DRIVE in Setup."
    home = Path(os.environ.get("NBHELPERS_HOME") or home).expanduser()
    print(f"Runs go to {home / 'runs'}. {note}")


mount_drive()
