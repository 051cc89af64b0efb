"""Fixtures every test file may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with small public samples (``NBHELPERS_REAL_DATA``); never part of the repository."""
    folder = Path(os.environ.get("NBHELPERS_REAL_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set NBHELPERS_REAL_DATA")
    return folder
