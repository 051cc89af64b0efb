"""The FNO benchmark, ν = 1e-5, N = 1000: ``python benchmarks/fno_benchmark.py`` (made for a GPU).

Vorticity on 64 × 64 points, ten frames given, ten predicted; relative L2 over a whole predicted trajectory. The data
are simulated to the published specification (Li et al. 2021, arXiv:2010.08895), so the number is comparable with those
below but not of the same test set. With ``--simulations 20 --epochs 1 --solve-size 64 --layers 1 --width 4``
it only shows that everything runs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from side_by_side import record

from nbhelpers.stages.neural_operator.config import Config
from nbhelpers.stages.neural_operator.simulate import simulate
from nbhelpers.stages.neural_operator.task import OperatorTask
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report

PUBLISHED = {"FNO": 0.156, "F-FNO": 0.115, "LNO": 0.0845}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1200, help="the first 1000 train, the last 200 test")
    parser.add_argument("--solve-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--work", type=Path, help="folder for data and runs (default: a temporary one)")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    simulate(
        work / "fno",
        kind="fno",
        viscosity=1e-5,
        n_simulations=arguments.simulations,
        solve_size=arguments.solve_size,
        device=device,
        batch=100,
    )
    config = Config.for_profile(
        "t4", fields="vorticity", model="ffno", layers=arguments.layers, width=arguments.width, modes=16, n_in=10,
        sequence_length=[20, 1], training="unrolled", rollout_steps=10, eval_windows=1,
        windows_per_epoch=min(1000, arguments.simulations), epochs=arguments.epochs, lr=2e-3, scheduler=None,
    )  # fmt: skip
    task = OperatorTask(config, work / "fno")
    run = open_run(task, work / "runs", "fno-benchmark")
    fit(task, run)
    report = make_report(task, run)
    record(
        "fno_benchmark",
        {
            "what": "relative L2 over ten predicted frames, FNO benchmark at viscosity 1e-5, re-simulated",
            "trajectory_rel_l2": report["metrics"]["trajectory_rel_l2"],
            "published": PUBLISHED,
            "split": report["data"]["split"],
            "train_minutes": report["train_seconds"] / 60,
            "device": report["device"],
        },
    )


if __name__ == "__main__":
    main()
