"""Time two or more ways of doing the same thing, turn by turn, and record their ratios."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def side_by_side(ways: Mapping[str, Callable[[], Any]], *, rounds: int = 7) -> dict[str, float]:
    """Median seconds of each way. They take turns, so that a busy machine slows all of them alike."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def record(name: str, result: Mapping[str, Any]) -> None:
    """Print the result and keep it as ``results/<name>.json``."""
    content = {
        **result,
        "repeat": f"python benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    text = json.dumps(content, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
