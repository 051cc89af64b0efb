"""The λ sweep on the real radar sample, and its seeds as ensembles: ``python benchmarks/sweep.py`` (an hour or two).

With ``--work DIR`` a second call goes on where the first stopped. Table and scores go to ``results/sweep``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from floors import REAL_DATA, WEIGHTS
from kept import kept

from nbhelpers.stages.perceptual_unet.config import Config
from nbhelpers.stages.perceptual_unet.ensemble import open_ensemble
from nbhelpers.stages.perceptual_unet.ensemble_report import make_ensemble_report
from nbhelpers.stages.perceptual_unet.sweep import Grid, run_sweep

TO = Path(__file__).resolve().parent / "results/sweep"
GRID = Grid(lambdas=(1e-4, 5e-4, 1e-3), shares=(0.1, 0.3), seeds=(0, 1))
EPOCHS = 5  # what the stage calls a quick test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the runs (default: a temporary one)")
    work = parser.parse_args().work or Path(tempfile.mkdtemp())
    config = Config.for_profile("quick", epochs=EPOCHS, backbone_weights=str(WEIGHTS))
    radar = REAL_DATA / "radar_sevir_layout"
    folder = work / "radar"
    report = run_sweep(config, GRID, radar, folder).report
    TO.mkdir(parents=True, exist_ok=True)
    repeat = {"repeat": "python benchmarks/sweep.py"}
    (TO / "sweep.json").write_text(json.dumps(repeat | kept(report, data="radar")) + "\n")
    for name in ("sweep", "sweep_test"):
        shutil.copyfile(folder / f"figures/{name}.png", TO / f"{name}.png")
    reference, *_, last = report["settings"]
    ensemble = open_ensemble([folder / f"{last}-seed{seed}" for seed in GRID.seeds])
    against = open_ensemble([folder / f"{reference}-seed{seed}" for seed in GRID.seeds], beside=ensemble)
    together = make_ensemble_report(ensemble, work / "ensemble", against=against)
    (TO / "ensemble.json").write_text(json.dumps(repeat | kept(together, data="radar")) + "\n")


if __name__ == "__main__":
    main()
