"""G21 and G22: memory that grows from epoch to epoch, and memory that is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from nbhelpers.training.guards.guard import Epoch, Finding, Guard
from nbhelpers.training.task import Task

GROWTH = 1.05  # from one epoch to the next
EPOCHS = 5  # in each of which it has grown; caches fill up in the first ones and then stop
GB = 1_000_000_000
COLUMNS = {"memory_gb": "memory", "gpu_memory_gb": "GPU memory"}  # of history.csv
# What a RuntimeError says when there was no memory: PyTorch on a CPU, on Apple's GPUs, and CUDA outside its allocator.
SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "MPS backend out of memory", "CUDA error: out of memory")


def measure() -> dict[str, float]:
    """Memory in use, in GB, for an epoch's row in history.csv.

    ``memory_gb`` is what this process holds in RAM. The workers of a loader are left out: they end with their epoch,
    so they cannot grow over epochs, and they would count again what they share with this process.
    ``gpu_memory_gb`` is the peak of PyTorch's CUDA tensors since the process began; 0 without CUDA.
    """
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"memory_gb": round(this_process().memory_info().rss / GB, 3), "gpu_memory_gb": round(gpu / GB, 3)}


def this_process() -> psutil.Process:
    """This process by the number that /proc gives it.

    A sandbox may show the /proc of the system around it, where ``os.getpid()`` is the number of another process.
    """
    own = Path("/proc/self")
    return psutil.Process(int(own.readlink().name)) if own.is_symlink() else psutil.Process()


@dataclass
class MemoryGrowth(Guard):
    """Compares epochs of one process; its memory is not checkpointed, because another process starts anew."""

    name = "memory_growth"

    seen: dict[str, list[float]] = field(default_factory=dict)  # the latest epochs, by column of history.csv

    def on_epoch(self, epoch: Epoch) -> Iterator[Finding]:
        for column, what in COLUMNS.items():
            seen = self.seen.setdefault(column, [])
            seen.append(epoch.rows[-1][column])
            del seen[: -EPOCHS - 1]
            if len(seen) > EPOCHS and all(now > GROWTH * last for last, now in zip(seen, seen[1:], strict=False)):
                yield self.warn(
                    epoch.step,
                    f"{what} grows with every epoch and will run out",
                    evidence=" -> ".join(f"{gb:.4g}" for gb in seen) + f" GB in {EPOCHS} epochs",
                    cure="Look for tensors or arrays that are kept from step to step, and detach or drop them.",
                )

    def state_dict(self) -> dict[str, Any]:
        return {}


def out_of_memory(error: BaseException, task: Task, *, step: int) -> Finding | None:
    """What to do about ``error`` if it means that memory was not enough; None if it means something else."""
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    if not known and not (isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)):
        return None
    first, *others = task.oom_advice
    cure = f"{first[0].upper()}{first[1:]} and start a run of another name"
    cure += f"; if that is not enough: {'; '.join(others)}." if others else "."
    evidence = str(error).strip().partition("\n")[0] or type(error).__name__
    return Finding("out_of_memory", "stop", step, evidence, "the memory does not hold a step of this size", cure)
