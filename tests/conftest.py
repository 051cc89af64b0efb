"""Fixtures every test file may use."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def counted_memory() -> None:
    """Only where the system counts the memory that a process has touched: some sandboxes keep it at a constant."""
    statm, touched = Path("/proc/self/statm"), 64 * 2**20
    if not statm.exists():
        return  # psutil asks such systems in their own way
    before = int(statm.read_text().split()[1])
    with mmap.mmap(-1, touched) as block:
        block.write(b"\1" * touched)
        grown = (int(statm.read_text().split()[1]) - before) * mmap.PAGESIZE
    if grown < touched // 2:
        pytest.skip(f"this system counts {grown} bytes of {touched} that were written")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with small public samples (``NBHELPERS_REAL_DATA``); never part of the repository."""
    folder = Path(os.environ.get("NBHELPERS_REAL_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set NBHELPERS_REAL_DATA")
    return folder
