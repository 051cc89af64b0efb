"""Reports as they are kept under ``results/``: without paths of the machine, numbers with six digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def kept(report: Any, *, data: str) -> Any:
    """A copy of a report of any kind; ``data`` names the data instead of locating them."""
    if isinstance(report, dict):
        return {key: _entry(key, item, data) for key, item in report.items()}
    if isinstance(report, list):
        return [kept(item, data=data) for item in report]
    return float(f"{report:.6g}") if isinstance(report, float) else report


def _entry(key: str, item: Any, data: str) -> Any:
    if key == "source":
        return data
    if key in ("backbone_weights", "lpips_weights") and item:
        return Path(item).name
    return kept(item, data=data)
