"""Whole runs over seeds, their reports kept: ``python benchmarks/floors.py`` (hours; ``make floors``).

Each stage's runs go to ``results/floors/<stage>/<data>-<profile>-seed<k>.json``, the report of one run without paths of
the machine, and ``summary-<profile>.json`` gets a line for each report that is there. A healthy run raises no guard, so
the command fails if one does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kept import kept

from nbhelpers.stages.perceptual_unet.config import SIMULATED, Config
from nbhelpers.stages.perceptual_unet.simulate import simulate
from nbhelpers.stages.perceptual_unet.task import NowcastTask
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("NBHELPERS_REAL_DATA", ROOT / "../shared/data"))
WEIGHTS = REAL_DATA / "weights/squeezenet1_1_caffe_features.pth"


def perceptual_unet(profile: str, work: Path) -> Iterator[tuple[str, Path]]:
    """Names and folders of the data: simulated storms, and the real radar sample if it is there."""
    simulated = work / "simulated"
    simulate(simulated, **SIMULATED[profile])
    yield "simulated", simulated
    if (radar := REAL_DATA / "radar_sevir_layout").is_dir():
        yield "radar", radar


def run_once(name: str, data_dir: Path, profile: str, seed: int, work: Path) -> dict[str, Any]:
    """Train and score one seed; the report as it is kept."""
    weights = str(WEIGHTS) if WEIGHTS.exists() else "random"
    task = NowcastTask(Config.for_profile(profile, seed=seed, backbone_weights=weights), data_dir)
    run = open_run(task, work / "runs", f"{name}-{profile}-seed{seed}")
    fit(task, run)
    return kept(make_report(task, run), data=name)


def line(report: dict[str, Any]) -> dict[str, Any]:
    """What the summary says of a run."""
    scores = {name: report["metrics"][name]["value"] for name in ("mse", "csi_74")}
    others = {
        f"{name}_{null}": report["baselines"][null][name]["value"]
        for null in ("advection", "persistence")
        for name in scores
    }
    gates = {gate["name"]: gate["passed"] for gate in report["gates"]}
    return {
        "run": report["run"],
        "minutes": round(report["train_seconds"] / 60, 1),
        "verdict": report["verdict"]["name"],
        "guards": [found["name"] for found in report["guards"]],
        **{name: round(value, 4) for name, value in (scores | others).items()},
        "gates": gates,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--data", choices=("simulated", "radar"), nargs="+", default=("simulated", "radar"))
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks/results/floors")
    arguments = parser.parse_args()
    folder = arguments.to / "perceptual_unet"
    folder.mkdir(parents=True, exist_ok=True)
    alarms = []
    with tempfile.TemporaryDirectory() as work:
        data = [one for one in perceptual_unet(arguments.profile, Path(work)) if one[0] in arguments.data]
        for seed in arguments.seeds:
            for name, data_dir in data:
                report = run_once(name, data_dir, arguments.profile, seed, Path(work))
                (folder / f"{report['run']}.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
                write_summary(folder, arguments.profile)
                print(json.dumps(line(report)), flush=True)
                if report["guards"]:
                    alarms.append(report["run"])
    if alarms:
        print(f"guards spoke in {', '.join(alarms)}: a false alarm, or a run that is not healthy", file=sys.stderr)
    return 1 if alarms else 0


def write_summary(folder: Path, profile: str) -> None:
    """A line for each report of the profile in the folder."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*-{profile}-seed*.json"))]
    content = {"repeat": f"python benchmarks/floors.py --profile {profile}", "runs": [line(one) for one in reports]}
    (folder / f"summary-{profile}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
